//! What can be wrong with a file of rows, and where.
//!
//! Every message says which file, which line (or row, where the format has no lines), what was found, what
//! was expected and, where it is known, what to do. The values are fields too, so that a caller can test for
//! them.
//!
//! Not here: exit codes and colours (the command line's).

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where in the input something was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, or the name given to a stream.
    pub file: Arc<Path>,
    /// Line, counted from 1; `None` for formats without lines (Parquet).
    pub line: Option<usize>,
    /// Row, counted from 0; `None` before the first row.
    pub row: Option<usize>,
}

impl Place {
    pub(crate) fn file(file: &Arc<Path>) -> Box<Place> {
        Box::new(Place { file: file.clone(), line: None, row: None })
    }

    pub(crate) fn line(file: &Arc<Path>, line: usize) -> Box<Place> {
        Box::new(Place { file: file.clone(), line: Some(line), row: None })
    }

    pub(crate) fn row(file: &Path, line: Option<usize>, row: usize) -> Box<Place> {
        Box::new(Place { file: file.into(), line, row: Some(row) })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match (self.line, self.row) {
            (Some(line), _) => write!(f, ", line {line}"),
            // "counted from 0", because that is what the `index` of a result row means.
            (None, Some(row)) => write!(f, ", row {row} (counted from 0)"),
            (None, None) => Ok(()),
        }
    }
}

/// Why a file of rows was refused, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// The file could not be opened.
    #[error("cannot open {}: {source}", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// Reading stopped half way.
    #[error("{place}: cannot read on: {source}")]
    Read {
        /// The last place that could be read.
        place: Box<Place>,
        /// The system's reason.
        source: io::Error,
    },

    /// A gzip stream that ends early or whose content does not match its checksum.
    #[error("{place}: the gzip stream {found}; expected a whole gzip file: copy or download it again")]
    Gzip {
        /// The last place that could be read.
        place: Box<Place>,
        /// What is wrong with the stream.
        found: String,
    },

    /// The content is none of the formats that hold rows.
    #[error(
        "{place}: found {found}; expected JSONL, a JSON list of objects, or Parquet, each also gzip'd{}",
        Hint(hint)
    )]
    Format {
        /// The file.
        place: Box<Place>,
        /// What the first bytes look like.
        found: String,
        /// What to do about it; may be empty.
        hint: String,
    },

    /// The file holds no row at all.
    #[error("{place}: no rows found; expected at least one")]
    Empty {
        /// The file.
        place: Box<Place>,
    },

    /// Bytes that are not UTF-8.
    #[error(
        "{place}: byte {byte} of the text (counted from 0) is {found:#04x}, which is not UTF-8 here; save the file as UTF-8"
    )]
    Utf8 {
        /// The line.
        place: Box<Place>,
        /// Offset of the first bad byte in the (unpacked) file, counted from 0.
        byte: u64,
        /// That byte.
        found: u8,
    },

    /// Text that is not JSON.
    #[error("{place}, column {column}: malformed JSON: {found}{}", Hint(hint))]
    Json {
        /// The line.
        place: Box<Place>,
        /// Byte column, counted from 1.
        column: usize,
        /// What the parser stumbled over.
        found: String,
        /// What to do about it; may be empty.
        hint: String,
    },

    /// The same key twice in one object (or the same column twice in one table).
    #[error(
        "{place}: the key `{key}` appears twice in one object; expected each key once: remove or rename one"
    )]
    DuplicateKey {
        /// The row, or the file for a table.
        place: Box<Place>,
        /// The key.
        key: String,
    },

    /// A row that is JSON, but not an object.
    #[error("{place}: a row is {found}; expected an object such as {{\"prompt\": \"…\"}}")]
    NotAnObject {
        /// The row.
        place: Box<Place>,
        /// What the row is.
        found: String,
    },

    /// A line (or an element of a JSON list) above [`ROW_BYTES_MAX`](crate::ROW_BYTES_MAX), or a packed file
    /// too large to unpack in memory.
    #[error("{place}: {what} is longer than {limit_bytes} bytes{}", Hint(hint))]
    TooLong {
        /// Where it starts.
        place: Box<Place>,
        /// What is too long.
        what: &'static str,
        /// The limit.
        limit_bytes: u64,
        /// What to do about it.
        hint: String,
    },

    /// A Parquet file that cannot be read.
    #[error("{place}: unreadable Parquet: {found}{}", Hint(hint))]
    Parquet {
        /// The file, and the row that was to be read next.
        place: Box<Place>,
        /// What the decoder said.
        found: String,
        /// What to do about it; may be empty.
        hint: String,
    },

    /// A row without any of the key combinations that its use needs.
    #[error("{place}: found {found}; expected {expected}{}", Hint(hint))]
    Keys {
        /// The row.
        place: Box<Place>,
        /// The keys of the row.
        found: String,
        /// The accepted combinations.
        expected: String,
        /// The nearest spelling, the missing key, or the command that takes such rows; may be empty.
        hint: String,
    },

    /// A value of the wrong type or outside its range.
    #[error("{place}: `{key}` is {found}; expected {expected}{}", Hint(hint))]
    Value {
        /// The row.
        place: Box<Place>,
        /// The key, with the position inside lists: `messages[2].role`.
        key: String,
        /// What the value is.
        found: String,
        /// What it should be.
        expected: String,
        /// What to do about it; may be empty.
        hint: String,
    },

    /// A file could not be written; the file that was there before, if any, is untouched.
    #[error("cannot write {}: {step}: {source}", file.display())]
    Write {
        /// The file that was to be written.
        file: PathBuf,
        /// What was being done.
        step: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Appends "; hint" if there is one.
struct Hint<'a>(&'a str);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; {}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_people_say_them() {
        let file: Arc<Path> = Path::new("data.jsonl").into();
        assert_eq!(Place::file(&file).to_string(), "data.jsonl");
        assert_eq!(Place::line(&file, 3).to_string(), "data.jsonl, line 3");
        assert_eq!(Place::row(&file, Some(3), 2).to_string(), "data.jsonl, line 3");
        assert_eq!(Place::row(&file, None, 2).to_string(), "data.jsonl, row 2 (counted from 0)");
    }

    #[test]
    fn an_empty_hint_leaves_no_trace() {
        let file: Arc<Path> = Path::new("x").into();
        let with = |hint: &str| {
            RowsError::Format { place: Place::file(&file), found: "a zip archive".into(), hint: hint.into() }
                .to_string()
        };
        let plain =
            "x: found a zip archive; expected JSONL, a JSON list of objects, or Parquet, each also gzip'd";
        assert_eq!(with(""), plain);
        assert_eq!(with("unpack it"), format!("{plain}; unpack it"));
    }
}
