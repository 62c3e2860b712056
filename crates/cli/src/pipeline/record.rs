//! Steps, and the record of one that is done: docs/loop.md has the format.
//!
//! A record says what may be skipped, and nothing else: what happened is in the ledger.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use polity_train::run::{CODE_VERSION, Input};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{CommandError, CommandResult};

/// Digits of a key in the names of what a step makes.
const NAMED: usize = 8;

/// A step, in the order in which they are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Candidates and comparisons.
    Sample,
    /// Votes.
    Panel,
    /// A dataset and its files.
    Freeze,
    /// The reward model.
    Reward,
    /// Whether it will do.
    Accept,
    /// The candidate for release.
    Policy,
    /// Votes on its responses and the baseline's, to prompts that no training saw.
    Compare,
    /// Measures of both.
    Evaluate,
    /// The verdict.
    Gate,
    /// The release.
    Release,
}

impl Step {
    /// As written.
    pub fn name(self) -> &'static str {
        match self {
            Step::Sample => "sample",
            Step::Panel => "panel",
            Step::Freeze => "freeze",
            Step::Reward => "reward",
            Step::Accept => "accept",
            Step::Policy => "policy",
            Step::Compare => "compare",
            Step::Evaluate => "evaluate",
            Step::Gate => "gate",
            Step::Release => "release",
        }
    }
}

/// What a step depends on.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which step.
    pub step: Step,
    /// What the file says of it.
    pub settings: Value,
    /// Hashes of what it reads, by name.
    pub inputs: BTreeMap<String, String>,
    /// Hash of all of it, and of the program's version.
    pub key: String,
}

impl Plan {
    /// With its key.
    pub fn new(step: Step, settings: Value, inputs: BTreeMap<String, String>) -> Plan {
        let mut of = json!({"step": step, "settings": settings, "inputs": inputs, "code": CODE_VERSION});
        of.sort_all_objects();
        let key = blake3::hash(of.to_string().as_bytes()).to_hex().to_string();
        Plan { step, settings, inputs, key }
    }

    /// The beginning of the key, for names.
    pub fn short(&self) -> &str {
        &self.key[..NAMED]
    }
}

/// Something that a step made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Output {
    /// What it is to the steps behind.
    pub name: String,
    /// Where it is, from the project's directory; nothing if it is in the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Its hash.
    pub hash: String,
}

impl Output {
    /// Something in the store.
    pub fn stored(name: &str, hash: impl Into<String>) -> Output {
        Output { name: name.to_owned(), place: None, hash: hash.into() }
    }

    /// A file, or a model's directory, of a project.
    pub fn at(name: &str, project: &Path, place: String) -> CommandResult<Output> {
        let hash = hash(&project.join(&place))?;
        Ok(Output { name: name.to_owned(), place: Some(place), hash })
    }
}

/// A step that is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Which step.
    pub step: Step,
    /// Its plan's key.
    pub key: String,
    /// What the file said of it.
    pub settings: Value,
    /// Hashes of what it read.
    pub inputs: BTreeMap<String, String>,
    /// What it made.
    pub outputs: Vec<Output>,
    /// Its result, for people.
    pub said: Value,
    /// When.
    pub finished: String,
    /// How long it took: what was left of it, after a kill.
    #[serde(default)]
    pub seconds: f64,
}

impl Record {
    /// An output.
    ///
    /// # Panics
    ///
    /// If the step does not make it: the steps before one are done when it is planned.
    pub fn output(&self, name: &str) -> &Output {
        self.find(name).expect("a step makes what the next one reads")
    }

    /// An output, if the step made it.
    pub fn find(&self, name: &str) -> Option<&Output> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// The first output that is not there or not what it was.
    pub fn broken(&self, project: &Path) -> CommandResult<Option<&Output>> {
        for output in &self.outputs {
            let Some(place) = &output.place else { continue };
            let path = project.join(place);
            if !path.exists() || hash(&path)? != output.hash {
                return Ok(Some(output));
            }
        }
        Ok(None)
    }
}

/// The hash of a file or a model's directory.
pub fn hash(path: &Path) -> CommandResult<String> {
    Ok(Input::hash("input", path)?.blake3)
}

/// The records of a loop: a folder.
#[derive(Debug)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Those of a loop in a project.
    pub fn of(project: &Path, name: &str) -> Records {
        Records { dir: project.join("loop").join(name) }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A step's, if there is one. One that cannot be understood is none: the step finds its work again.
    pub fn read(&self, step: Step) -> CommandResult<Option<Record>> {
        let path = self.path(step);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(serde_json::from_str(&text).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CommandError::failed(format!("cannot read {}: {error}", path.display()))),
        }
    }

    /// Writes a step's, whole or not at all.
    pub fn write(&self, record: &Record) -> CommandResult {
        let text = serde_json::to_string_pretty(record).map_err(CommandError::failed)? + "\n";
        polity_rows::atomic_write(self.path(record.step), |out| out.write_all(text.as_bytes()))?;
        Ok(())
    }

    fn path(&self, step: Step) -> PathBuf {
        self.dir.join(format!("{}.json", step.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_depends_on_everything_and_on_no_order() {
        let plan = |step, settings: &str, inputs: &[(&str, &str)]| {
            let inputs = inputs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            Plan::new(step, serde_json::from_str(settings).unwrap(), inputs).key
        };
        let key = plan(Step::Reward, r#"{"a": 1, "b": 2}"#, &[("x", "1"), ("y", "2")]);
        assert_eq!(key, plan(Step::Reward, r#"{"b": 2, "a": 1}"#, &[("y", "2"), ("x", "1")]));
        assert_ne!(key, plan(Step::Policy, r#"{"a": 1, "b": 2}"#, &[("x", "1"), ("y", "2")]));
        assert_ne!(key, plan(Step::Reward, r#"{"a": 1, "b": 3}"#, &[("x", "1"), ("y", "2")]));
        assert_ne!(key, plan(Step::Reward, r#"{"a": 1, "b": 2}"#, &[("x", "1"), ("y", "3")]));
    }

    #[test]
    fn an_output_that_changed_or_went_is_found() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "1").unwrap();
        let outputs = vec![Output::stored("s", "1"), Output::at("x", dir.path(), "x".into()).unwrap()];
        let record = Record {
            step: Step::Freeze,
            key: String::new(),
            settings: json!({}),
            inputs: BTreeMap::new(),
            outputs,
            said: json!({}),
            finished: String::new(),
            seconds: 0.0,
        };
        let broken = || record.broken(dir.path()).unwrap().map(|output| output.name.as_str());
        assert_eq!(broken(), None);
        fs::write(dir.path().join("x"), "2").unwrap();
        assert_eq!(broken(), Some("x"));
        fs::remove_file(dir.path().join("x")).unwrap();
        assert_eq!(broken(), Some("x"));
    }
}
