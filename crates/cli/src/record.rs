//! What a project's ledger knows of models, read once: for lineage, releases, cards and differences.
//!
//! Not here: whether it is all still so (`lineage`).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use polity_store::{
    Account, Approval, ChannelState, Dataset, EvaluationRecord, Event, Recorded, Release, Run, Verdict,
};
use polity_train::run::{Input, names};

use crate::error::{CommandError, CommandResult};
use crate::project::{DatasetFile, Project};

/// Digits of a hash that are shown.
const SHOWN: usize = 12;
/// Fewest digits that a hash may be named by.
const NAMED: usize = 4;

/// The records.
pub struct Record {
    /// Runs that ended.
    pub runs: Vec<Recorded<Run>>,
    /// Evaluations.
    pub evaluations: Vec<Recorded<EvaluationRecord>>,
    /// Verdicts.
    pub verdicts: Vec<Recorded<Verdict>>,
    /// Approvals.
    pub approvals: Vec<Recorded<Approval>>,
    /// Channels that were ever released to.
    pub channels: Vec<ChannelState>,
    /// Frozen datasets.
    pub datasets: Vec<Dataset>,
    /// Files that were exported: the dataset's hash, and the file's.
    exports: HashSet<(String, String)>,
    accounts: Vec<Account>,
}

/// A model that was asked for.
pub struct Target {
    /// Its hash, as recorded.
    pub model: String,
    /// Where it is, if that is known.
    pub dir: Option<PathBuf>,
    /// The release, if it was one that was asked for.
    pub release: Option<Recorded<Release>>,
}

impl Record {
    /// Reads it.
    pub fn read(project: &Project) -> CommandResult<Record> {
        let store = project.store();
        Ok(Record {
            runs: project.wait(store.runs())?,
            evaluations: project.wait(store.evaluations())?,
            verdicts: project.wait(store.verdicts())?,
            approvals: project.wait(store.approvals())?,
            channels: project.wait(store.channels())?,
            datasets: project.wait(store.datasets())?,
            exports: exports(&project.wait(store.events_of("export"))?),
            accounts: project.wait(store.accounts())?,
        })
    }

    /// All releases, oldest first.
    pub fn releases(&self) -> impl Iterator<Item = &Recorded<Release>> {
        self.channels.iter().flat_map(|state| &state.releases)
    }

    /// The last run that made a model. One that left its own input as it was did not make it.
    pub fn run_of(&self, model: &str) -> Option<&Recorded<Run>> {
        let made = |run: &&Recorded<Run>| {
            run.what.model.as_deref() == Some(model)
                && run.what.inputs.iter().all(|input| input.blake3 != model)
        };
        self.runs.iter().rev().find(made)
    }

    /// The newest verdict on a model.
    pub fn verdict_on(&self, model: &str) -> Option<&Recorded<Verdict>> {
        self.verdicts.iter().rev().find(|verdict| verdict.what.model == model)
    }

    /// Whether an export of this dataset wrote a file with this hash.
    pub fn exported(&self, dataset: &str, file: &str) -> bool {
        self.exports.contains(&(dataset.to_owned(), file.to_owned()))
    }

    /// What people call who acted.
    pub fn name_of(&self, actor: &str) -> String {
        let account = self.accounts.iter().find(|account| account.id == actor);
        account.map_or_else(|| actor.to_owned(), |account| account.name.clone())
    }

    /// The model that is meant: a release's name, a directory, or the beginning of a hash. A directory that the ledger knows means the
    /// model that was recorded there, whether or not it is still that one.
    pub fn find(&self, project: &Project, what: &str) -> CommandResult<Target> {
        let of_release = |release: &Recorded<Release>| Target {
            model: release.what.model.clone(),
            dir: Some(project.dir().join(&release.what.dir)),
            release: Some(release.clone()),
        };
        if let Some(release) = self.releases().find(|release| release.what.release == what) {
            return Ok(of_release(release));
        }
        let dir = Path::new(what);
        if dir.is_dir() {
            let place = project.place(dir)?;
            if let Some(release) = self.releases().find(|release| release.what.dir == place) {
                return Ok(of_release(release));
            }
            let recorded = self.runs.iter().rev().find(|run| model_place(&run.what) == place);
            let model = match recorded.and_then(|run| run.what.model.clone()) {
                Some(model) => model,
                None => Input::hash("model", dir)?.blake3,
            };
            return Ok(Target { model, dir: Some(dir.to_owned()), release: None });
        }
        self.by_hash(project, what)
    }

    fn by_hash(&self, project: &Project, what: &str) -> CommandResult<Target> {
        let runs =
            self.runs.iter().filter_map(|run| Some((run.what.model.as_deref()?, model_place(&run.what))));
        let releases = self.releases().map(|release| (release.what.model.as_str(), release.what.dir.clone()));
        let judged = self.verdicts.iter().map(|verdict| (verdict.what.model.as_str(), String::new()));
        let mut known: Vec<(&str, String)> = judged.chain(runs).chain(releases).collect();
        known.retain(|(model, _)| what.len() >= NAMED && model.starts_with(what));
        let (model, place) = match known.last() {
            Some((model, place)) if known.iter().all(|(other, _)| other == model) => (*model, place),
            Some(_) => {
                return Err(CommandError::bad_input(format!(
                    "{what} is the beginning of several models' hashes"
                ))
                .hint("give more digits"));
            }
            None => {
                let names: Vec<&str> = self.releases().map(|release| release.what.release.as_str()).collect();
                let error = CommandError::bad_input(format!(
                    "{what}: no directory, no release, and no model with a hash that begins so"
                ));
                return Err(match names.is_empty() {
                    true => error.hint("name the model's directory, such as runs/ppo/model"),
                    false => error.hint(format!("releases are {}", names.join(", "))),
                });
            }
        };
        let dir = (!place.is_empty()).then(|| project.dir().join(place));
        Ok(Target { model: model.to_owned(), dir, release: None })
    }
}

fn exports(events: &[Event]) -> HashSet<(String, String)> {
    let mut exports = HashSet::new();
    for event in events {
        let Ok(said) = serde_json::from_str::<DatasetFile>(&event.body) else { continue };
        exports.extend(said.files.into_iter().map(|file| (said.hash.clone(), file.blake3)));
    }
    exports
}

/// Where a run's model is, from the project's directory.
pub fn model_place(run: &Run) -> String {
    format!("{}/{}", run.run, names::MODEL)
}

/// A hash as people see it.
pub fn short(hash: &str) -> &str {
    hash.get(..SHOWN).unwrap_or(hash)
}
