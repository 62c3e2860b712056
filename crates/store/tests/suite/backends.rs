//! A fresh store on each back end, and small material to put in.

use polity_store::*;

/// A moment in 2023.
pub const T0: i64 = 1_700_000_000_000;
pub const SEED: [u8; 32] = [7; 32];

/// Runs a test on a fresh store of each back end.
#[macro_export]
macro_rules! on_each {
    ($($(#[$attr:meta])* async fn $name:ident($fixture:ident: Fixture) $body:block)*) => {$(
        mod $name {
            use super::*;
            async fn test($fixture: Fixture) $body
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                test($crate::backends::sqlite()).await;
            }
        }
    )*};
}

/// Where a store may be made.
pub struct Fixture {
    pub location: String,
    pub _directory: Option<tempfile::TempDir>,
}

pub fn sqlite() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let location = directory.path().join("store.db").to_str().unwrap().to_owned();
    Fixture { location, _directory: Some(directory) }
}

/// A policy without calibration and repeats.
pub fn plain_policy(overlap: i64) -> Policy {
    Policy { overlap, calibration_share: 0.0, repeat_share: 0.0, ..Policy::usual() }
}

impl Fixture {
    pub async fn store(&self, policy: Policy) -> Store {
        let project = NewProject {
            name: "test".into(),
            validation_share: 0.1,
            holdout_share: 0.1,
            policy,
            rubric: Rubric::usual(),
        };
        Store::create(&self.location, SEED, project, "cli", T0).await.unwrap()
    }
}

/// `prompts` prompts in `categories` categories, two responses each by models `m1` and `m2`, one comparison each.
pub fn material(prompts: usize, categories: usize, wanted: i64) -> Material {
    let mut material = Material::default();
    for i in 0..prompts {
        let prompt = Content::plain(format!("prompt {i}"));
        let id = prompt_id(&prompt);
        let category = format!("c{}", i % categories);
        material.prompts.push(NewPrompt { content: prompt, category, origin: "test".into() });
        let mut ids = Vec::new();
        for model in ["m1", "m2"] {
            let content = Content::plain(format!("response of {model} to {i}"));
            ids.push(response_id(&id, &content, model));
            material.responses.push(NewResponse {
                prompt_id: id.clone(),
                content,
                model: model.into(),
                model_hash: None,
                sampler: None,
                sample_index: None,
                origin: "test".into(),
            });
        }
        let responses = [ids.remove(0), ids.remove(0)];
        material.comparisons.push(NewComparison {
            prompt_id: id,
            responses,
            wanted,
            queued: true,
            origin: "test".into(),
        });
    }
    material
}

pub async fn annotators(store: &Store, n: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for i in 0..n {
        let id = format!("ann{i}");
        store.add_annotator(&id, &id, AnnotatorKind::Human, T0).await.unwrap();
        ids.push(id);
    }
    ids
}

pub fn vote(given: &Assignment, overall: &str) -> NewVote {
    NewVote {
        annotator_id: given.annotator_id.clone(),
        assignment_id: given.id,
        overall: overall.parse().unwrap(),
        axes: Default::default(),
        reason: String::new(),
        shown_ms: Some(given.served_ms),
        work_ms: Some(5000),
    }
}

pub async fn next(store: &Store, annotator: &str, now_ms: i64) -> Option<Assignment> {
    match store.next(annotator, now_ms).await.unwrap() {
        Next::Assignment(given) => Some(given),
        Next::Nothing(_) => None,
    }
}
