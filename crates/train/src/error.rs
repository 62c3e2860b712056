//! What can go wrong around a training run, in one enum.
//!
//! A message says which file (with its line) or `--set`, which key, what was found, what was expected and why. The
//! values are fields too, so that a caller can test for them.
//!
//! Not here: exit codes and colours (the command line's); the objectives' own refusals, which become
//! [`TrainError::Setting`] or [`TrainError::Incompatible`] once it is known where the setting came from.

use std::fmt;
use std::io;
use std::path::PathBuf;

use polity_rows::RowsError;

use crate::objectives::ObjectiveError;

/// Where a setting was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a configuration file.
    File {
        /// The file.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
    },
    /// By `--set key=value`.
    Set,
    /// Nowhere: the default, or a value made in code.
    Unset,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { file, line } => write!(f, "{}, line {line}: ", file.display()),
            Origin::Set => write!(f, "--set: "),
            Origin::Unset => Ok(()),
        }
    }
}

/// Why a run could not start, go on, or be saved.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A configuration file that is not TOML.
    #[error("{}, line {line}, column {column}: not valid TOML: {message}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Column, counted from 1.
        column: usize,
        /// The parser's words.
        message: String,
    },

    /// A key that this stage does not have.
    #[error("{origin}unknown setting {key:?} of stage {stage}{advice}")]
    UnknownKey {
        /// Where it was given.
        origin: Box<Origin>,
        /// The key.
        key: String,
        /// The stage (`sft`, `ppo`, …).
        stage: &'static str,
        /// What to write instead, or why it has no meaning here; starts with its own punctuation.
        advice: String,
    },

    /// A value outside what the setting allows.
    #[error("{origin}{key} = {found}, expected {expected}{}", reason_clause(.reason))]
    Setting {
        /// Where it was given.
        origin: Box<Origin>,
        /// The key.
        key: String,
        /// The value given, as TOML.
        found: String,
        /// What is allowed.
        expected: String,
        /// Why.
        reason: String,
    },

    /// Two settings, or a setting and the data, that contradict each other.
    #[error("{origin}{setting} cannot be used with {with}: {reason}")]
    Incompatible {
        /// Where the first of them was given.
        origin: Box<Origin>,
        /// The setting refused.
        setting: String,
        /// What it clashes with.
        with: String,
        /// Why, and what to do instead.
        reason: String,
    },

    /// An objective refused its input while training.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),

    /// Rows could not be read, or a file of rows not written.
    #[error(transparent)]
    Rows(#[from] RowsError),

    /// A model, tokenizer or template could not be read, used or written.
    #[error(transparent)]
    Model(#[from] polity_lm::LmError),

    /// The data would train on nothing, or teach the wrong thing.
    #[error("{what}: {problem}; {hint}")]
    Preflight {
        /// Which data.
        what: String,
        /// What is wrong, with the rows' numbers (from 1).
        problem: String,
        /// What to do.
        hint: String,
    },

    /// A row that the model's tokenizer or chat template cannot take.
    #[error("{what}, row {row}: {source}")]
    Row {
        /// Which data.
        what: String,
        /// The row, counted from 1.
        row: usize,
        /// What is wrong with it.
        source: Box<TrainError>,
    },

    /// A file or directory of a run could not be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file or directory.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A file or directory of a run could not be written; what was complete before still is.
    #[error("cannot {action} {}: {source}", file.display())]
    Write {
        /// The file or directory.
        file: PathBuf,
        /// What was being done, as a verb: "write", "rename".
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },

    /// The output directory already has a run in it.
    #[error(
        "{} already holds a run (found {found}); continue it with --resume, or choose another --out",
        out.display()
    )]
    RunExists {
        /// The directory.
        out: PathBuf,
        /// The file that says so.
        found: &'static str,
    },

    /// There is nothing to resume.
    #[error("{} holds no run to resume (no {missing}); start one without --resume", out.display())]
    NoRun {
        /// The directory.
        out: PathBuf,
        /// The file that a run would have.
        missing: &'static str,
    },

    /// Another process is writing to the run.
    #[error("{} is in use by another process; wait for it, or choose another --out", out.display())]
    RunBusy {
        /// The directory.
        out: PathBuf,
    },

    /// A run cannot be resumed as something else.
    #[error(
        "{} cannot be resumed, because this is not the run that was started there: {}; \
         start a new run in another --out", out.display(), differences.join("; ")
    )]
    RunDiffers {
        /// The directory.
        out: PathBuf,
        /// One sentence for each difference: what, then and now.
        differences: Vec<String>,
    },

    /// A file of a run that is not what it was when it was written.
    #[error("{}: found {found}, expected {expected}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What it is.
        found: String,
        /// What it was.
        expected: String,
    },

    /// A number became NaN or infinite, so that nothing can be learnt from here on.
    #[error("step {step}: {what} is {found}, expected a finite number; {hint}")]
    NotFinite {
        /// The step.
        step: u64,
        /// Metric or quantity.
        what: String,
        /// Its value.
        found: f64,
        /// What to try.
        hint: String,
    },

    /// The monitor raised an alarm and the run was told to stop on alarms.
    #[error("step {step}: stopped by alarm {alarm}: {message}")]
    StoppedByAlarm {
        /// The step.
        step: u64,
        /// The alarm's name.
        alarm: &'static str,
        /// What it says.
        message: String,
    },
}

impl TrainError {
    /// For `map_err` on what went wrong with row `index`, counted from 0.
    pub(crate) fn in_row(what: &str, index: usize) -> impl FnOnce(TrainError) -> TrainError {
        move |source| TrainError::Row { what: what.to_owned(), row: index + 1, source: Box::new(source) }
    }

    /// For `map_err` on a failed write.
    pub(crate) fn write(
        file: impl Into<PathBuf>,
        action: &'static str,
    ) -> impl FnOnce(io::Error) -> TrainError {
        let file = file.into();
        move |source| TrainError::Write { file, action, source }
    }

    /// For `map_err` on a failed read.
    pub(crate) fn read(file: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> TrainError {
        let file = file.into();
        move |source| TrainError::Read { file, source }
    }
}

fn reason_clause(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(origin: Origin, reason: &str, expect: &str) {
        let error = TrainError::Setting {
            origin: Box::new(origin),
            key: "beta".into(),
            found: "-0.1".into(),
            expected: "> 0".into(),
            reason: reason.into(),
        };
        assert_eq!(error.to_string(), expect);
    }

    #[test]
    fn a_setting_says_where_what_and_why() {
        let file = Origin::File { file: "run.toml".into(), line: 3 };
        check(file, "it divides", "run.toml, line 3: beta = -0.1, expected > 0: it divides");
        check(Origin::Set, "it divides", "--set: beta = -0.1, expected > 0: it divides");
        check(Origin::Unset, "", "beta = -0.1, expected > 0");
    }

    #[test]
    fn a_failed_write_names_the_file_and_the_reason() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = TrainError::write("run/checkpoints/.tmp-step-2", "write")(full);
        assert_eq!(error.to_string(), "cannot write run/checkpoints/.tmp-step-2: no storage space");
    }
}
