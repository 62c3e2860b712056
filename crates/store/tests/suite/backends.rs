//! A fresh store on each back end, and small material to put in.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use polity_store::*;
use sqlx::Connection;

/// A moment in 2023.
pub const T0: i64 = 1_700_000_000_000;
pub const SEED: [u8; 32] = [7; 32];

/// Runs a test on a fresh store of each back end.
#[macro_export]
macro_rules! on_each {
    ($($(#[$attr:meta])* async fn $name:ident($fixture:ident: Fixture) $body:block)*) => {$(
        $(#[$attr])*
        mod $name {
            use super::*;
            async fn test($fixture: &Fixture) $body
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                test(&$crate::backends::sqlite()).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                if let Some(fixture) = $crate::backends::postgres().await {
                    test(&fixture).await;
                    fixture.remove().await;
                }
            }
        }
    )*};
}

/// Where a store may be made.
pub struct Fixture {
    pub location: String,
    place: Place,
}

enum Place {
    Directory(#[allow(dead_code, reason = "removed when it is dropped")] tempfile::TempDir),
    Schema { url: String, name: String },
}

pub fn sqlite() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let location = directory.path().join("store.db").to_str().unwrap().to_owned();
    Fixture { location, place: Place::Directory(directory) }
}

/// A schema of its own, or nothing where there is no server.
pub async fn postgres() -> Option<Fixture> {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let Ok(url) = std::env::var("POLITY_TEST_POSTGRES") else {
        // Not through `eprintln`, which the test runner keeps for tests that fail.
        let _ = std::io::stderr()
            .write_all(b"skipped on PostgreSQL: POLITY_TEST_POSTGRES is not set (.ci/postgres sets it)\n");
        return None;
    };
    let name = format!("polity_test_{}_{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    execute_at(&url, &format!("CREATE SCHEMA {name}")).await;
    let location = format!("{url}?options=-csearch_path%3D{name}");
    Some(Fixture { location, place: Place::Schema { url, name } })
}

async fn execute_at(url: &str, sql: &str) {
    sqlx::any::install_default_drivers();
    let mut connection = sqlx::AnyConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

/// A policy without calibration and repeats.
pub fn plain_policy(overlap: i64) -> Policy {
    Policy { overlap, calibration_share: 0.0, repeat_share: 0.0, ..Policy::usual() }
}

impl Fixture {
    /// Changes the database behind the store's back, with its triggers out of the way.
    pub async fn tamper(&self, table: &str, sql: &str) {
        match &self.place {
            Place::Directory(_) => {
                let drop = format!(
                    "DROP TRIGGER IF EXISTS {table}_no_update; DROP TRIGGER IF EXISTS {table}_no_delete;"
                );
                execute_at(&format!("sqlite://{}", self.location), &format!("{drop} {sql}")).await;
            }
            Place::Schema { .. } => {
                execute_at(&self.location, &format!("ALTER TABLE {table} DISABLE TRIGGER USER; {sql}")).await;
            }
        }
    }

    /// Runs a statement on the database itself, triggers and all.
    pub async fn try_execute(&self, sql: &str) -> std::result::Result<(), String> {
        let url = match &self.place {
            Place::Directory(_) => format!("sqlite://{}", self.location),
            Place::Schema { .. } => self.location.clone(),
        };
        sqlx::any::install_default_drivers();
        let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await;
        done.map(|_| ()).map_err(|error| error.to_string())
    }

    /// The number that a query gives.
    pub async fn count(&self, sql: &str) -> i64 {
        let url = match &self.place {
            Place::Directory(_) => format!("sqlite://{}", self.location),
            Place::Schema { .. } => self.location.clone(),
        };
        let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
        sqlx::Row::get(&sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(&mut connection).await.unwrap(), 0)
    }

    pub async fn remove(self) {
        if let Place::Schema { url, name } = &self.place {
            execute_at(url, &format!("DROP SCHEMA {name} CASCADE")).await;
        }
    }

    pub async fn store(&self, policy: Policy) -> Store {
        self.try_store(policy).await.unwrap()
    }

    pub async fn try_store(&self, policy: Policy) -> Result<Store> {
        let project = NewProject {
            name: "test".into(),
            validation_share: 0.1,
            holdout_share: 0.1,
            policy,
            rubric: Rubric::usual(),
        };
        Store::create(&self.location, SEED, project, "cli", T0).await
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
    added(store, "ann", AnnotatorKind::Human, n).await
}

pub async fn simulated(store: &Store, n: usize) -> Vec<String> {
    added(store, "simulated:", AnnotatorKind::Simulated, n).await
}

async fn added(store: &Store, prefix: &str, kind: AnnotatorKind, n: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for i in 0..n {
        let id = format!("{prefix}{i}");
        store.add_annotator(&id, &id, kind, T0).await.unwrap();
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
