//! What a model has been trained on, as far as its runs' manifests say, for the contamination check.
//!
//! A model in a run's directory names its inputs in `manifest.json`: data files, and the models that it started from, whose own
//! manifests are followed. A file that has changed since is said and left out: its texts are no longer what was trained on. `--train-data` adds files.
//!
//! Not here: the check (`eval::contamination`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use polity_train::run::{Input, Manifest, names};
use serde_json::Value;

use crate::error::CommandResult;
use crate::ui::Ui;

/// Role of what is trained on among a run's inputs; `eval_data` is only looked at.
const DATA_ROLE: &str = "data";

/// Files of training texts, by their hash.
pub struct Training {
    files: BTreeMap<String, PathBuf>,
}

/// The training data of the model in this directory.
pub fn texts_of(model: &Path, more: &[PathBuf], ui: &Ui) -> CommandResult<Training> {
    let mut training = Training { files: BTreeMap::new() };
    let mut models = vec![model.to_owned()];
    let mut followed = Vec::new();
    while let Some(model) = models.pop() {
        if followed.contains(&model) {
            continue;
        }
        if let Some(manifest) = manifest(&model) {
            for input in manifest.inputs {
                match input.path.is_dir() {
                    true => models.push(input.path),
                    false if input.role == DATA_ROLE => training.add_known(input, ui)?,
                    false => {}
                }
            }
        }
        followed.push(model);
    }
    for file in more {
        let hash = Input::hash(DATA_ROLE, file)?.blake3;
        training.files.insert(hash, file.clone());
    }
    Ok(training)
}

fn manifest(model: &Path) -> Option<Manifest> {
    let run = model.canonicalize().ok()?.parent()?.to_owned();
    let text = fs::read_to_string(run.join(names::MANIFEST)).ok()?;
    serde_json::from_str(&text).ok()
}

impl Training {
    fn add_known(&mut self, input: Input, ui: &Ui) -> CommandResult {
        if !input.path.is_file() {
            ui.note(&format!(
                "{}: trained on, and no longer there: not checked for the suite's rows",
                input.path.display()
            ));
            return Ok(());
        }
        if Input::hash(&input.role, &input.path)?.blake3 != input.blake3 {
            ui.warn(&format!(
                "{}: changed since it was trained on: not checked for the suite's rows",
                input.path.display()
            ));
            return Ok(());
        }
        self.files.insert(input.blake3, input.path);
        Ok(())
    }

    /// Whether nothing is known of what the model was trained on.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Hash of all files' hashes.
    pub fn hash(&self) -> Option<String> {
        let mut hasher = blake3::Hasher::new();
        for hash in self.files.keys() {
            hasher.update(hash.as_bytes());
        }
        (!self.is_empty()).then(|| hasher.finalize().to_hex().to_string())
    }

    /// Hands over every text of every row.
    pub fn each(&self, each: &mut dyn FnMut(&str)) -> CommandResult {
        for file in self.files.values() {
            for row in polity_rows::open(file)? {
                texts(&Value::Object(row?.value), each);
            }
        }
        Ok(())
    }
}

fn texts(value: &Value, each: &mut dyn FnMut(&str)) {
    match value {
        Value::String(text) => each(text),
        Value::Array(values) => values.iter().for_each(|value| texts(value, each)),
        Value::Object(map) => map.values().for_each(|value| texts(value, each)),
        _ => {}
    }
}
