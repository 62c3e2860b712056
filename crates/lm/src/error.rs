//! What can be wrong with a model on disk, in one enum.
//!
//! A file is somebody else's work, so every error says which file, which part of it (key, tensor,
//! line), what was found and what was expected; what to do about it is in [`LmError::hint`], which
//! the command line prints on a line of its own.

use std::fmt;
use std::path::{Path, PathBuf};

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// The operating system said no.
    #[error("{}: cannot {action}: {source}", file.display())]
    Io {
        /// Which file or directory.
        file: PathBuf,
        /// What was being done, as a verb: "read", "create".
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that should be JSON is not.
    #[error("{}:{line}:{column}: not valid JSON: {message}", file.display())]
    Json {
        /// Which file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
        /// What the parser said.
        message: String,
    },
    /// A file as a whole is missing, truncated, or not what its name says.
    #[error("{}: {problem}", file.display())]
    File {
        /// Which file or directory.
        file: PathBuf,
        /// What is wrong.
        problem: Box<Mismatch>,
    },
    /// A key of a JSON file.
    #[error("{}: `{key}`: {problem}", file.display())]
    Key {
        /// Which file.
        file: PathBuf,
        /// The key, with dots into nested objects.
        key: String,
        /// What is wrong.
        problem: Box<Mismatch>,
    },
    /// A tensor of a weights file.
    #[error("{}: tensor `{tensor}`: {problem}", file.display())]
    Tensor {
        /// Which file.
        file: PathBuf,
        /// Its name in the file.
        tensor: String,
        /// What is wrong.
        problem: Box<Mismatch>,
    },
    /// A model that is being changed or saved has a number that is not finite.
    #[error("tensor `{tensor}` has {value} at {index:?}: refusing to write it")]
    NotFinite {
        /// Its name in a Hugging Face file.
        tensor: String,
        /// Where in the tensor.
        index: Vec<usize>,
        /// The number.
        value: f32,
    },
    /// Text could not be turned into ids or back.
    #[error("{}: {message}", file.display())]
    Tokenizer {
        /// The tokenizer's file.
        file: PathBuf,
        /// What the tokenizer said.
        message: String,
    },
    /// A chat template does not parse, or refused the messages.
    #[error("{}{}: {message}", file.display(), line.map(|l| format!(":{l}")).unwrap_or_default())]
    Template {
        /// The template's file.
        file: PathBuf,
        /// Line of the template, from 1, where known.
        line: Option<usize>,
        /// What went wrong.
        message: String,
        /// What to do about it; may be empty.
        hint: String,
    },
    /// An operation that this model cannot do.
    #[error("{what}")]
    Unsupported {
        /// What was asked and why it cannot be.
        what: String,
        /// What to do instead; may be empty.
        hint: String,
    },
}

/// What was found where something else was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// In the file.
    pub found: String,
    /// What would have been right.
    pub expected: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "found {}, expected {}", self.found, self.expected)
    }
}

/// Shorthand for this crate's results.
pub type Result<T, E = LmError> = std::result::Result<T, E>;

impl LmError {
    /// What to do about it, if there is something to say beyond the error.
    pub fn hint(&self) -> Option<&str> {
        let hint = match self {
            LmError::File { problem, .. }
            | LmError::Key { problem, .. }
            | LmError::Tensor { problem, .. } => &problem.hint,
            LmError::Template { hint, .. } | LmError::Unsupported { hint, .. } => hint,
            LmError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some space or choose another output directory; what was there before is untouched"
            }
            LmError::NotFinite { .. } => "the last saved files are untouched; lower the learning rate",
            LmError::Io { .. } | LmError::Json { .. } | LmError::Tokenizer { .. } => "",
        };
        (!hint.is_empty()).then_some(hint)
    }

    pub(crate) fn io(file: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { file: file.to_owned(), action, source }
    }

    pub(crate) fn json(file: &Path, error: &serde_json::Error) -> Self {
        let message = error.to_string();
        // serde_json repeats the place at the end of its message; ours stands at the front.
        let end = message.rfind(" at line ").unwrap_or(message.len());
        let (line, column) = (error.line(), error.column());
        Self::Json { file: file.to_owned(), line, column, message: message[..end].to_owned() }
    }

    pub(crate) fn file(
        file: &Path,
        found: impl Into<String>,
        expected: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::File { file: file.to_owned(), problem: mismatch(found, expected, hint) }
    }

    pub(crate) fn key(
        file: &Path,
        key: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Key { file: file.to_owned(), key: key.into(), problem: mismatch(found, expected, hint) }
    }

    pub(crate) fn tensor(
        file: &Path,
        tensor: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Tensor {
            file: file.to_owned(),
            tensor: tensor.into(),
            problem: mismatch(found, expected, hint),
        }
    }
}

fn mismatch(found: impl Into<String>, expected: impl Into<String>, hint: impl Into<String>) -> Box<Mismatch> {
    Box::new(Mismatch { found: found.into(), expected: expected.into(), hint: hint.into() })
}
