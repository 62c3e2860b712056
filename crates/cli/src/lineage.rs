//! The chain from votes to a release, each link checked: what was made from what, by which hash, and whether that is still so.
//!
//! | node | is verified if |
//! |---|---|
//! | release | every file in its directory has the hash that its event says, and none was added |
//! | approval, ledger | the ledger's chain is whole, and people's roles are those it gave |
//! | verdict | its text has its hash, and judging again by the same policy and evaluations gives the same |
//! | policy, evaluation | its text has its hash; an evaluation's file, if it is there, says the same |
//! | model | it has its hash, where it was made |
//! | run | its manifest and settings have their hashes; its directory, if it is there, has them too |
//! | data | an export of the dataset wrote a file with the hash that the run read; the file, if it is there, has it |
//! | dataset, votes, rubric | the store's own verification finds nothing |
//!
//! What a release rests on (the store, the released directory) either holds or **failed**. A working file that a link was made from may have
//! been removed, which is *gone* and no fault, or be another now, which is **changed**: the record holds, the file is not what it was.
//!
//! Not here: how it looks (`lineage_view`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use polity_eval::Evaluation;
use polity_eval::gate::{Models, Policy, Verdict as Said, judge};
use polity_store::{Approval, Bad, Recorded, Release, Run, RunInput, Verdict, Verification, document_hash};
use polity_train::run::{FrozenDataset, Input, Manifest, names};
use serde::Serialize;

use crate::clock::utc_of;
use crate::error::CommandResult;
use crate::export::hash_files;
use crate::project::Project;
use crate::record::{Record, Target, model_place, short};

/// Whether a link holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is what it was.
    Verified,
    /// A working file is not there any more; its hash is on record.
    Gone,
    /// A working file is another now; the record holds.
    Changed,
    /// It is not what it was.
    Failed,
}

impl Status {
    /// As people see it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Verified => "verified",
            Status::Gone => "gone",
            Status::Changed => "CHANGED",
            Status::Failed => "FAILED",
        }
    }
}

/// A thing that something was made from.
#[derive(Clone, Debug, Serialize)]
pub struct Node {
    /// Which kind of thing.
    pub kind: &'static str,
    /// What it is called.
    pub name: String,
    /// Its hash.
    pub hash: String,
    /// Whether it holds.
    pub status: Status,
    /// What is wrong with it.
    pub found: Vec<String>,
    /// What else is known of it.
    pub facts: String,
    /// Where it is, from the project's directory.
    pub place: String,
    /// Positions of what it was made from.
    pub from: Vec<usize>,
}

/// A chain. The first node is what was asked about.
#[derive(Clone, Debug, Serialize)]
pub struct Lineage {
    /// Whether everything holds.
    pub verified: bool,
    /// The links.
    pub nodes: Vec<Node>,
}

impl Lineage {
    /// What is wrong with the evidence.
    pub fn failed(&self) -> Vec<Bad> {
        self.with(|status| status == Status::Failed)
    }

    /// That, and working files that are others now.
    pub fn faults(&self) -> Vec<Bad> {
        self.with(|status| matches!(status, Status::Failed | Status::Changed))
    }

    fn with(&self, wanted: impl Fn(Status) -> bool) -> Vec<Bad> {
        let nodes = self.nodes.iter().filter(|node| wanted(node.status));
        nodes
            .map(|node| Bad { record: format!("{} {}", node.kind, node.name), found: node.found.join("; ") })
            .collect()
    }
}

/// The chain behind a model or a release, given what the store says of itself.
pub fn trace(
    project: &Project,
    record: &Record,
    verification: &Verification,
    target: &Target,
) -> CommandResult<Lineage> {
    let mut tracer = Tracer { project, record, verification, nodes: Vec::new(), known: HashMap::new() };
    match &target.release {
        Some(release) => tracer.release(release)?,
        None => tracer.judged(target)?,
    };
    let verified = tracer.nodes.iter().all(|node| matches!(node.status, Status::Verified | Status::Gone));
    Ok(Lineage { verified, nodes: tracer.nodes })
}

struct Tracer<'p> {
    project: &'p Project,
    record: &'p Record,
    verification: &'p Verification,
    nodes: Vec<Node>,
    known: HashMap<(&'static str, String), usize>,
}

/// What a look at something found.
#[derive(Default)]
struct Look {
    failed: Vec<String>,
    changed: Vec<String>,
    gone: bool,
}

impl Look {
    fn status(&self) -> Status {
        match self {
            Look { failed, .. } if !failed.is_empty() => Status::Failed,
            Look { changed, .. } if !changed.is_empty() => Status::Changed,
            Look { gone: true, .. } => Status::Gone,
            _ => Status::Verified,
        }
    }
}

impl Tracer<'_> {
    /// Adds a node, or finds the one that is there: what it is made from is added after it.
    fn add(
        &mut self,
        kind: &'static str,
        name: String,
        hash: &str,
        make: impl FnOnce(&mut Self, &mut Node) -> CommandResult<Look>,
    ) -> CommandResult<usize> {
        let key = (kind, format!("{name} {hash}"));
        if let Some(&known) = self.known.get(&key) {
            return Ok(known);
        }
        let position = self.nodes.len();
        self.known.insert(key, position);
        let node = Node {
            kind,
            name,
            hash: hash.to_owned(),
            status: Status::Verified,
            found: Vec::new(),
            facts: String::new(),
            place: String::new(),
            from: Vec::new(),
        };
        // Its place is taken first, so that the root is the first.
        self.nodes.push(node.clone());
        let mut node = node;
        let look = make(self, &mut node)?;
        node.status = look.status();
        node.found = [look.failed, look.changed].concat();
        self.nodes[position] = node;
        Ok(position)
    }

    /// What the store's verification says of records that begin so.
    fn store_says(&self, beginnings: &[&str]) -> Vec<String> {
        let of = |bad: &&Bad| beginnings.iter().any(|beginning| bad.record.starts_with(beginning));
        self.verification.bad.iter().filter(of).map(|bad| format!("{}: {}", bad.record, bad.found)).collect()
    }

    fn at(&self, place: &str) -> std::path::PathBuf {
        self.project.dir().join(place)
    }

    fn release(&mut self, release: &Recorded<Release>) -> CommandResult<usize> {
        let what = &release.what;
        self.add("release", what.release.clone(), &release.id, |tracer, node| {
            let who = tracer.record.name_of(&release.actor);
            node.facts = format!("to {} by {who}, {}", what.channel, utc_of(release.at_ms));
            node.place.clone_from(&what.dir);
            let run = tracer.record.run_of(&what.model).cloned();
            match run {
                Some(run) => node.from.push(tracer.model("model", &what.model, &model_place(&run.what))?),
                None => node.from.push(tracer.model("model", &what.model, &what.dir)?),
            }
            if let Some(verdict) =
                tracer.record.verdicts.iter().find(|verdict| verdict.id == what.verdict).cloned()
            {
                node.from.push(tracer.verdict(&verdict)?);
            }
            let given = |approval: &&Recorded<Approval>| what.approvals.contains(&approval.id);
            let approvals: Vec<_> = tracer.record.approvals.iter().filter(given).cloned().collect();
            for approval in &approvals {
                node.from.push(tracer.approval(approval)?);
            }
            node.from.push(tracer.ledger()?);
            Ok(Look { failed: released_files(&tracer.at(&what.dir), &what.files), ..Look::default() })
        })
    }

    /// A model that was not released, with the newest verdict on it.
    fn judged(&mut self, target: &Target) -> CommandResult<usize> {
        let place = match (&target.dir, self.record.run_of(&target.model)) {
            (_, Some(run)) => model_place(&run.what),
            (Some(dir), None) => self.project.place(dir).unwrap_or_default(),
            (None, None) => String::new(),
        };
        let model = self.model("model", &target.model, &place)?;
        if let Some(verdict) = self.record.verdict_on(&target.model).cloned() {
            let verdict = self.verdict(&verdict)?;
            self.nodes[model].from.push(verdict);
        }
        let ledger = self.ledger()?;
        self.nodes[model].from.push(ledger);
        Ok(model)
    }

    fn model(&mut self, kind: &'static str, hash: &str, place: &str) -> CommandResult<usize> {
        let run = self.record.run_of(hash).cloned();
        let name = if place.is_empty() { short(hash).to_owned() } else { place.to_owned() };
        self.add(kind, name, hash, |tracer, node| {
            node.place = place.to_owned();
            match &run {
                Some(run) => node.from.push(tracer.run(run)?),
                None => node.facts = "from outside: no run in this ledger made it".into(),
            }
            if kind == "reward model"
                && let Some(verdict) = tracer.record.verdict_on(hash).cloned()
            {
                node.from.push(tracer.verdict(&verdict)?);
            }
            let dir = tracer.at(place);
            let mut look = Look { gone: place.is_empty() || !dir.exists(), ..Look::default() };
            if !look.gone {
                let now = Input::hash("model", &dir)?.blake3;
                if now != hash {
                    look.changed.push(format!(
                        "the files in {place} give {}, not {}",
                        short(&now),
                        short(hash)
                    ));
                }
            }
            Ok(look)
        })
    }

    fn run(&mut self, run: &Recorded<Run>) -> CommandResult<usize> {
        let what = &run.what;
        self.add("run", format!("{} {}", what.stage, what.run), &run.id, |tracer, node| {
            node.facts = format!("by {}, {}", tracer.record.name_of(&run.actor), utc_of(run.at_ms));
            node.place.clone_from(&what.run);
            for input in &what.inputs {
                let from = match input.role.as_str() {
                    "model" => tracer.model("model", &input.blake3, &input.path)?,
                    "reward_model" => tracer.model("reward model", &input.blake3, &input.path)?,
                    _ => tracer.data(input)?,
                };
                node.from.push(from);
            }
            if let Some(overridden) = tracer.overridden(what) {
                node.facts += &format!("; {overridden}");
            }
            let mut look = Look { gone: !tracer.at(&what.run).exists(), ..Look::default() };
            for (file, document) in [(names::MANIFEST, &what.manifest), (names::RESOLVED, &what.resolved)] {
                let Some(hash) = document else { continue };
                if let Err(error) = tracer.document(hash) {
                    look.failed.push(error);
                }
                let path = tracer.at(&what.run).join(file);
                if let Ok(text) = std::fs::read_to_string(&path)
                    && document_hash(&text) != *hash
                {
                    look.changed.push(format!("{file} is not what it was when the run ended"));
                }
            }
            Ok(look)
        })
    }

    /// What was overridden when a run was started.
    fn overridden(&self, run: &Run) -> Option<String> {
        let manifest: Manifest = serde_json::from_str(&self.document(run.manifest.as_deref()?).ok()?).ok()?;
        let reason = manifest.acceptance?.overridden?;
        Some(format!("the reward model's failed acceptance was overridden: {reason}"))
    }

    fn data(&mut self, input: &RunInput) -> CommandResult<usize> {
        self.add("data", input.path.clone(), &input.blake3, |tracer, node| {
            node.place.clone_from(&input.path);
            let dataset =
                input.dataset.clone().and_then(|said| serde_json::from_value::<FrozenDataset>(said).ok());
            let path = tracer.at(&input.path);
            let mut look = Look { gone: !path.exists(), ..Look::default() };
            match dataset {
                Some(dataset) => {
                    if !tracer.record.exported(&dataset.hash, &input.blake3) {
                        look.failed.push(format!("no export of dataset {} wrote this file", dataset.name));
                    }
                    node.from.push(tracer.dataset(&dataset)?);
                }
                None => node.facts = "of no frozen dataset".into(),
            }
            if !look.gone && Input::hash("data", &path)?.blake3 != input.blake3 {
                look.changed.push("the file is not what the run read".into());
            }
            Ok(look)
        })
    }

    fn dataset(&mut self, said: &FrozenDataset) -> CommandResult<usize> {
        let stored = self.record.datasets.iter().find(|dataset| dataset.name == said.name).cloned();
        self.add("dataset", said.name.clone(), &said.hash, |tracer, node| {
            let mut failed = tracer.store_says(&[
                &format!("dataset {}", said.name),
                "decision",
                "prompt ",
                "response ",
                "comparison ",
                "the split",
            ]);
            match &stored {
                None => failed.push("it is not in this store".into()),
                Some(dataset) => {
                    node.facts = format!(
                        "{} train, {} validation, {} holdout rows",
                        dataset.train_rows, dataset.validation_rows, dataset.holdout_rows
                    );
                    if dataset.hash != said.hash {
                        failed.push(format!("the one of this name in the store is {}", short(&dataset.hash)));
                    }
                    let header: serde_json::Value = serde_json::from_str(&dataset.header).unwrap_or_default();
                    let text = |key: &str| header[key].as_str().unwrap_or_default().to_owned();
                    let votes = header["votes_to"].as_i64().unwrap_or(0);
                    let version = header["rubric_version"].as_i64().unwrap_or(0);
                    let says = tracer.store_says(&["vote "]);
                    node.from.push(tracer.add(
                        "votes",
                        format!("1 to {votes}"),
                        &text("votes_chain"),
                        |_, _| Ok(Look { failed: says, ..Look::default() }),
                    )?);
                    let says = tracer.store_says(&["rubric version"]);
                    node.from.push(tracer.add(
                        "rubric",
                        format!("version {version}"),
                        &text("rubric_hash"),
                        |_, _| Ok(Look { failed: says, ..Look::default() }),
                    )?);
                }
            }
            Ok(Look { failed, ..Look::default() })
        })
    }

    fn verdict(&mut self, verdict: &Recorded<Verdict>) -> CommandResult<usize> {
        let what = &verdict.what;
        self.add("verdict", what.verdict.clone(), &verdict.id, |tracer, node| {
            node.facts = format!("on {}, until {}", short(&what.model), utc_of(what.expires_ms));
            let policy = tracer.add("policy", what.policy_name.clone(), &what.policy, |tracer, _| {
                Ok(Look {
                    failed: tracer.document(&what.policy).err().into_iter().collect(),
                    ..Look::default()
                })
            })?;
            node.from.push(policy);
            for evaluation in &what.evaluations {
                node.from.push(tracer.evaluation(evaluation)?);
            }
            Ok(Look { failed: tracer.judged_again(what).err().into_iter().collect(), ..Look::default() })
        })
    }

    /// Whether the gate says the same again.
    fn judged_again(&self, verdict: &Verdict) -> Result<(), String> {
        let said: Said =
            serde_json::from_str(&self.document(&verdict.said)?).map_err(|error| error.to_string())?;
        let policy = self.document(&verdict.policy)?;
        let policy =
            Policy::parse(Path::new(&verdict.policy_name), &policy).map_err(|error| error.to_string())?;
        let mut evaluations = Vec::with_capacity(verdict.evaluations.len());
        for hash in &verdict.evaluations {
            let text = self.document(hash)?;
            let file = format!("evaluation {}", short(hash));
            evaluations.push(Evaluation::parse(Path::new(&file), &text).map_err(|error| error.to_string())?);
        }
        let models = Models {
            candidate: said.candidate.clone(),
            baseline: said.baseline.clone(),
            last_release: said.last_release.clone(),
        };
        let again = judge(&policy, &models, &evaluations).map_err(|error| error.to_string())?;
        let decisions = |said: &Said| -> Vec<_> {
            said.criteria.iter().map(|criterion| (criterion.id.clone(), criterion.verdict)).collect()
        };
        match (said.candidate == verdict.model, again.verdict.name() == verdict.verdict) {
            (false, _) => Err(format!("it was said of model {}", short(&said.candidate))),
            (true, false) => Err(format!("judged again it is {}", again.verdict.name())),
            (true, true) if decisions(&again) != decisions(&said) => {
                Err("judged again a criterion says something else".into())
            }
            (true, true) => Ok(()),
        }
    }

    fn evaluation(&mut self, hash: &str) -> CommandResult<usize> {
        let known = self.record.evaluations.iter().find(|known| known.what.evaluation == hash).cloned();
        let file = known.as_ref().map(|known| known.what.file.clone()).unwrap_or_default();
        let name = if file.is_empty() { short(hash).to_owned() } else { file.clone() };
        self.add("evaluation", name, hash, |tracer, node| {
            node.place.clone_from(&file);
            let mut look =
                Look { failed: tracer.document(hash).err().into_iter().collect(), ..Look::default() };
            match known {
                None => look.failed.push("no event in the ledger recorded it".into()),
                Some(known) => {
                    node.facts = format!("of {}, since {}", short(&known.what.model), utc_of(known.at_ms));
                    look.changed.extend(evaluation_file(&tracer.at(&file), hash));
                }
            }
            Ok(look)
        })
    }

    fn approval(&mut self, approval: &Recorded<Approval>) -> CommandResult<usize> {
        let name = format!("by {}", self.record.name_of(&approval.actor));
        self.add("approval", name, &approval.id, |tracer, node| {
            node.facts = format!("for {}, {}", approval.what.channel, utc_of(approval.at_ms));
            Ok(Look { failed: tracer.store_says(&["roles of account"]), ..Look::default() })
        })
    }

    fn ledger(&mut self) -> CommandResult<usize> {
        let (events, head) = (self.verification.events, self.verification.head.clone());
        self.add("ledger", format!("{events} events"), &head, |tracer, _| {
            Ok(Look { failed: tracer.store_says(&["ledger event", "roles of account"]), ..Look::default() })
        })
    }

    fn document(&self, hash: &str) -> Result<String, String> {
        self.project.wait(self.project.store().document(hash)).map_err(|error| error.to_string())
    }
}

/// What is wrong with a released directory; nothing if it is what its event says.
pub fn released_files(dir: &Path, files: &BTreeMap<String, String>) -> Vec<String> {
    if !dir.is_dir() {
        return vec!["its directory is not there".into()];
    }
    let now = match hash_files(dir) {
        Ok(now) => now,
        Err(error) => return vec![error.to_string()],
    };
    let mut found = Vec::new();
    for (name, hash) in files {
        match now.get(name) {
            None => found.push(format!("{name} is missing")),
            Some(other) if other != hash => found.push(format!("{name} was changed")),
            Some(_) => {}
        }
    }
    found
        .extend(now.keys().filter(|name| !files.contains_key(*name)).map(|name| format!("{name} was added")));
    found
}

/// What is wrong with an evaluation's file; nothing if it is gone or says the same.
pub fn evaluation_file(file: &Path, hash: &str) -> Option<String> {
    if !file.is_file() {
        return None;
    }
    match Evaluation::read(file) {
        Err(error) => Some(error.to_string()),
        Ok(now) if document_hash(&now.canonical()) != hash => {
            Some("the file does not say what was judged".into())
        }
        Ok(_) => None,
    }
}
