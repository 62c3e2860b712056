//! Files of training rows: prompts, completions, preferences and unpaired judgements, from JSONL, JSON and
//! Parquet.
//!
//! A file becomes an iterator of [`Row`]s (a JSON object, and where it stood), and a row becomes one of four
//! typed rows by the keys it has, which are TRL's: [`PromptRow`], [`CompletionRow`], [`PreferenceRow`],
//! [`UnpairedRow`]. Whatever is wrong is a [`RowsError`] that says where, what was found, what was expected
//! and what to do; no input panics. `docs/data.md` describes the formats for users.
//!
//! Not here: tokens and chat templates (`polity-lm`), what to do with a row that is readable but odd (such
//! rows carry [`Flag`]s; trainers decide), the exports of annotation tools.

#![forbid(unsafe_code)]

pub mod atomic;
mod error;
mod footer;
pub mod hh;
mod json;
mod keys;
mod lock;
mod parquet;
mod prefix;
mod show;
mod source;
mod text;
mod typed;
mod write;

pub use atomic::{atomic_write, write_jsonl};
pub use error::{Place, RowsError};
pub use json::ROW_BYTES_MAX;
pub use lock::FileLock;
pub use source::{Format, PACKED_PARQUET_BYTES_MAX, Rows, open, read};
pub use text::{Message, Text};
pub use typed::{
    Completion, CompletionRow, Flag, FromRow, Pair, PreferenceRow, Prompt, PromptFrom, PromptRow, Row,
    RowInfo, RowKind, Side, UnpairedRow,
};
pub use write::{PairToWrite, write_parquet};
