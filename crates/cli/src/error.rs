//! What a command says when it cannot do its work, and the exit code it says it with.
//!
//! | exit | kind | meaning |
//! |---|---|---|
//! | 0 | | done |
//! | 1 | [`Kind::Failed`] | the machine, the training or polity itself failed |
//! | 2 | [`Kind::BadInput`] | a file, a row, a setting or the usage is wrong: what to change is in the message |
//! | 3 | [`Kind::GateFailed`] | a gate's verdict, and a release that is refused because of it |
//! | 4 | [`Kind::Inconclusive`] | the same, and a release without a verdict that still counts |
//! | 130 | [`Kind::Interrupted`] | stopped by Ctrl-C or a signal |
//!
//! A message says where, what was found and what was expected; the hints say what to do. The crates below give both;
//! this file only sorts them into kinds. Source of the shape: jj's `CommandError { kind, error, hints }`.
//!
//! Not here: how it is printed (`ui`).

use std::io;

use polity_eval::EvalError;
use polity_lm::LmError;
use polity_rows::RowsError;
use polity_store::{Refusal, StoreError};
use polity_train::TrainError;

/// Result of a command.
pub type CommandResult<T = ()> = Result<T, CommandError>;

/// Why a command stops, and with which exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It could not be done although the input may be right.
    Failed,
    /// The input, a setting or the usage is wrong.
    BadInput,
    /// A gate's verdict is fail.
    GateFailed,
    /// A gate's verdict is inconclusive.
    Inconclusive,
    /// Someone stopped it.
    Interrupted,
}

impl Kind {
    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::BadInput => 2,
            Kind::GateFailed => 3,
            Kind::Inconclusive => 4,
            Kind::Interrupted => 130,
        }
    }

    /// As `--json` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Failed => "failed",
            Kind::BadInput => "bad_input",
            Kind::GateFailed => "gate_failed",
            Kind::Inconclusive => "inconclusive",
            Kind::Interrupted => "interrupted",
        }
    }
}

/// An error with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct CommandError {
    /// Which sort.
    pub kind: Kind,
    /// What happened.
    pub error: Box<dyn std::error::Error + Send + Sync>,
    /// What to do about it, each a line.
    pub hints: Vec<String>,
}

impl CommandError {
    fn new(kind: Kind, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { kind, error: error.into(), hints: Vec::new() }
    }

    /// The input, a setting or the usage is wrong.
    pub fn bad_input(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Kind::BadInput, error)
    }

    /// It could not be done.
    pub fn failed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Kind::Failed, error)
    }

    /// Someone stopped it.
    pub fn interrupted(what: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, what.into())
    }

    /// Something that a release needs is missing. What the gate has said keeps the gate's exit codes: 3 for a model that fails, 4 for one of which
    /// nothing is shown (any more); 2 where other words would help, 1 where something else must happen first.
    pub fn from_refusal(what: &str, refusal: &Refusal) -> Self {
        let (kind, hint) = match refusal {
            Refusal::NotPassed { said, .. } | Refusal::Overridden { said, .. } if said == "fail" => (
                Kind::GateFailed,
                "it may not be released; what failed is in `polity lineage` and the gate's page",
            ),
            Refusal::NotPassed { .. } => {
                (Kind::Inconclusive, "measure more, and judge again with polity gate")
            }
            Refusal::Overridden { said, .. } if said == "inconclusive" => {
                (Kind::Inconclusive, "measure more, and judge again with polity gate")
            }
            Refusal::Overridden { .. } => (Kind::BadInput, "leave --verdict out: the newest verdict counts"),
            Refusal::NoVerdict { .. } => (
                Kind::Inconclusive,
                "polity gate MODEL --policy FILE --measures FILES judges it, inside the project",
            ),
            Refusal::Expired { .. } => (
                Kind::Inconclusive,
                "measure again: evidence counts for the policy's valid_days from when it was recorded",
            ),
            Refusal::OtherModel { .. } => (Kind::BadInput, "leave --verdict out, or name one on this model"),
            Refusal::OtherPolicy { .. } => {
                (Kind::BadInput, "judge it under the channel's policy; `polity channel` sets another one")
            }
            Refusal::UnknownReleaser { .. } => (
                Kind::Failed,
                "put an API token of yours into POLITY_TOKEN; `polity account token NAME` makes one",
            ),
            Refusal::Approvals { .. } => (
                Kind::Failed,
                "polity approve MODEL --channel NAME, by people who neither trained nor release it",
            ),
            Refusal::Approver { .. } => (Kind::Failed, "it takes another person with the role approver"),
            Refusal::Evidence { .. } => {
                (Kind::Failed, "polity ledger verify and polity lineage say what holds")
            }
            Refusal::NoGoodRelease { .. } => (Kind::Failed, "release a model that is good"),
        };
        Self::new(kind, format!("{what} refused, and recorded: {refusal}")).hint(hint)
    }

    /// A gate's answer.
    pub fn verdict(kind: Kind, what: &str) -> Self {
        Self::new(kind, what.to_owned())
    }

    /// Adds a line that says what to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

impl From<LmError> for CommandError {
    fn from(error: LmError) -> Self {
        let kind = match &error {
            LmError::Io { action: "read" | "open" | "follow", source, .. } => kind_of_reading(source),
            LmError::Io { .. } | LmError::NotFinite { .. } => Kind::Failed,
            _ => Kind::BadInput,
        };
        let hints = error.hint().map(str::to_owned).into_iter().collect();
        Self { kind, hints, error: error.into() }
    }
}

impl From<RowsError> for CommandError {
    fn from(error: RowsError) -> Self {
        let kind = match &error {
            RowsError::Open { source, .. } => kind_of_reading(source),
            RowsError::Read { .. } | RowsError::Write { .. } => Kind::Failed,
            _ => Kind::BadInput,
        };
        let hint = match &error {
            RowsError::Write { source, .. } => hint_for_writing(source),
            _ => None,
        };
        Self { kind, hints: hint.map(str::to_owned).into_iter().collect(), error: error.into() }
    }
}

impl From<EvalError> for CommandError {
    fn from(error: EvalError) -> Self {
        match error {
            EvalError::Rows(error) => error.into(),
            EvalError::Read { ref source, .. } => Self::new(kind_of_reading(source), error),
            error => Self::bad_input(error),
        }
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            StoreError::Rows(error) => return error.into(),
            StoreError::Database { .. }
            | StoreError::Commit { .. }
            | StoreError::Closed
            | StoreError::Damaged { .. } => Kind::Failed,
            _ => Kind::BadInput,
        };
        Self { kind, error: error.into(), hints: Vec::new() }
    }
}

impl From<TrainError> for CommandError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Model(error) => error.into(),
            TrainError::Rows(error) => error.into(),
            TrainError::Row { what, row, source } => {
                let inner = CommandError::from(*source);
                let error = format!("{what}, row {row}: {inner}").into();
                CommandError { error, ..inner }
            }
            error => {
                let kind = match &error {
                    TrainError::Read { source, .. } => kind_of_reading(source),
                    TrainError::Write { .. }
                    | TrainError::RunBusy { .. }
                    | TrainError::Damaged { .. }
                    | TrainError::NotFinite { .. }
                    | TrainError::StoppedByAlarm { .. } => Kind::Failed,
                    _ => Kind::BadInput,
                };
                let hint = match &error {
                    TrainError::Write { source, .. } => hint_for_writing(source),
                    _ => None,
                };
                Self { kind, hints: hint.map(str::to_owned).into_iter().collect(), error: error.into() }
            }
        }
    }
}

/// A file that is not there or may not be read is named wrongly; a disk that fails is not the user's input.
fn kind_of_reading(source: &io::Error) -> Kind {
    use io::ErrorKind::{InvalidData, IsADirectory, NotADirectory, NotFound, PermissionDenied};
    match source.kind() {
        NotFound | PermissionDenied | IsADirectory | NotADirectory | InvalidData => Kind::BadInput,
        _ => Kind::Failed,
    }
}

/// What to do when a file cannot be written.
pub fn hint_for_writing(source: &io::Error) -> Option<&'static str> {
    use io::ErrorKind::{IsADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem, StorageFull};
    match source.kind() {
        StorageFull => Some("free some space or write somewhere else; what was there before is untouched"),
        PermissionDenied | ReadOnlyFilesystem => Some("write to a place where you may create files"),
        NotFound => Some("create the directory first"),
        IsADirectory => Some("give the name of a file in it"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_name_is_bad_input_and_a_failing_disk_is_not() {
        let open = |kind: io::ErrorKind| {
            CommandError::from(RowsError::Open { file: "x".into(), source: kind.into() }).kind
        };
        assert_eq!(open(io::ErrorKind::NotFound), Kind::BadInput);
        assert_eq!(open(io::ErrorKind::Other), Kind::Failed);
        let read = |action, kind: io::ErrorKind| {
            CommandError::from(LmError::Io { file: "x".into(), action, source: kind.into() }).kind
        };
        assert_eq!(read("read", io::ErrorKind::PermissionDenied), Kind::BadInput);
        assert_eq!(read("create", io::ErrorKind::PermissionDenied), Kind::Failed);
    }

    #[test]
    fn a_models_error_keeps_its_kind_and_hint_through_a_trainer() {
        let error = LmError::Unsupported { what: "no".into(), hint: "do this".into() };
        let error = CommandError::from(TrainError::Model(error));
        assert_eq!((error.kind, error.to_string()), (Kind::BadInput, "no".into()));
        assert_eq!(error.hints, ["do this"]);
    }

    #[test]
    fn a_row_is_named_and_the_hint_stays() {
        let source = LmError::Unsupported { what: "no".into(), hint: "do this".into() };
        let source = Box::new(TrainError::Model(source));
        let error = CommandError::from(TrainError::Row { what: "pairs".into(), row: 3, source });
        assert_eq!((error.kind, error.to_string()), (Kind::BadInput, "pairs, row 3: no".into()));
        assert_eq!(error.hints, ["do this"]);
    }

    #[test]
    fn a_full_disk_has_a_hint() {
        let source = io::Error::from(io::ErrorKind::StorageFull);
        let error = CommandError::from(RowsError::Write { file: "x".into(), step: "write", source });
        assert_eq!(error.kind, Kind::Failed);
        assert!(error.hints[0].contains("free some space"));
    }

    #[test]
    fn exit_codes_are_the_contract() {
        let codes = [Kind::Failed, Kind::BadInput, Kind::GateFailed, Kind::Inconclusive, Kind::Interrupted]
            .map(Kind::exit_code);
        assert_eq!(codes, [1, 2, 3, 4, 130]);
    }
}
