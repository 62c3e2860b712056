//! What can be wrong with a policy, a suite, a file of measures, or what they say together.
//!
//! Every message says where, what was found, what was expected and what to do.

use std::io;
use std::path::PathBuf;

use polity_rows::RowsError;

/// Why judging stopped.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file of rows.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A place in a TOML file.
    #[error("{}, line {line}: {message}", file.display())]
    Toml {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong there, and what was expected.
        message: String,
    },
    /// A file of measures that is not one, or contradicts itself.
    #[error("{}: {message}", file.display())]
    Measures {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Measures that cannot be judged together.
    #[error("criterion {criterion}: {message}")]
    Criterion {
        /// Its id.
        criterion: String,
        /// What is wrong.
        message: String,
    },
    /// Items that no number can be computed from.
    #[error("measure {measure}: {source}")]
    Stats {
        /// Its name.
        measure: String,
        /// The reason.
        source: polity_stats::Error,
    },
    /// Labelled answers that nothing can be learned from.
    #[error("{}: {message}", file.display())]
    Labels {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
}
