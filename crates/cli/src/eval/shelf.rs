//! The directory of evaluations: a file for each, found again by what it was made from.
//!
//! `SUITE-MODEL-KEY.json`, with the beginnings of the model's hash and of the evaluation's key, so that names sort by suite and a second
//! run finds what the first has measured. What is found is checked like any file of measures.
//!
//! Not here: what a key covers (`polity_eval::Evaluation::key`).

use std::fs;
use std::path::{Path, PathBuf};

use polity_eval::{Evaluation, Suite};
use serde::de::DeserializeOwned;

use crate::error::{CommandError, CommandResult};
use crate::record::short;

/// Where responses are, in it.
const RESPONSES: &str = "responses";

/// Where evaluations are.
pub struct Shelf<'d> {
    dir: &'d Path,
    again: bool,
}

impl<'d> Shelf<'d> {
    /// Makes the directory if need be. With `again` nothing is found.
    pub fn open(dir: &'d Path, again: bool) -> CommandResult<Shelf<'d>> {
        fs::create_dir_all(dir).map_err(|source| {
            CommandError::failed(format!("cannot make {}: {source}", dir.display()))
                .hint("--out names another directory")
        })?;
        Ok(Shelf { dir, again })
    }

    /// Where an evaluation goes.
    pub fn place(&self, suite: &Suite, evaluation: &Evaluation) -> PathBuf {
        self.dir.join(format!("{}.json", name(suite, evaluation)))
    }

    /// Where the responses go that an evaluation is made from.
    pub fn responses(&self, suite: &Suite, evaluation: &Evaluation) -> CommandResult<PathBuf> {
        let dir = self.dir.join(RESPONSES);
        fs::create_dir_all(&dir)
            .map_err(|source| CommandError::failed(format!("cannot make {}: {source}", dir.display())))?;
        Ok(dir.join(format!("{}.jsonl", name(suite, evaluation))))
    }

    /// Rows of a file that is there.
    pub fn kept<T: DeserializeOwned>(&self, file: &Path) -> CommandResult<Option<Vec<T>>> {
        if self.again || !file.exists() {
            return Ok(None);
        }
        let rows = polity_rows::open(file)?.map(|row| {
            let row = row?;
            serde_json::from_value(row.value.into()).map_err(|error| {
                CommandError::bad_input(format!("{}, line {}: {error}", file.display(), row.index + 1))
                    .hint("it was not written by polity eval, or was changed since: remove it, or measure with --again")
            })
        });
        rows.collect::<CommandResult<_>>().map(Some)
    }

    /// The evaluation with this key, from the directory or from `measure`, and its file.
    pub fn find_or(
        &self,
        suite: &Suite,
        wanted: Evaluation,
        measure: impl FnOnce(&mut Evaluation) -> CommandResult,
    ) -> CommandResult<Found> {
        let file = self.place(suite, &wanted);
        if file.exists() && !self.again {
            let evaluation = Evaluation::read(&file)?;
            if evaluation.key() == wanted.key() {
                return Ok(Found { evaluation, file, known: true });
            }
        }
        let mut evaluation = wanted;
        measure(&mut evaluation)?;
        evaluation.write(&file)?;
        Ok(Found { evaluation, file, known: false })
    }
}

/// `SUITE-MODEL-KEY`.
pub fn name(suite: &Suite, evaluation: &Evaluation) -> String {
    let safe = |c: char| if c.is_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let suite: String = suite.name.chars().map(safe).collect();
    format!("{suite}-{}-{}", short(&evaluation.model), short(&evaluation.key()))
}

/// An evaluation and its file.
pub struct Found {
    /// The evaluation.
    pub evaluation: Evaluation,
    /// Where it is.
    pub file: PathBuf,
    /// Whether it was there already.
    pub known: bool,
}
