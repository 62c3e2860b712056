//! TOML into plain structs: an unknown key or a wrong value is an error that names its line and the nearest known word.
//!
//! The structs are serde's, with `deny_unknown_fields`; what a type cannot say is checked on [`toml::Spanned`] values with [`at`].

use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::EvalError;

/// Reads a document.
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, EvalError> {
    toml::from_str(text).map_err(|error: toml::de::Error| {
        at(file, text, &error.span().unwrap_or(0..0), &with_suggestion(error.message()))
    })
}

/// An error at a place of the document.
pub fn at(file: &Path, text: &str, span: &Range<usize>, message: &str) -> EvalError {
    let line = text.get(..span.start).unwrap_or(text).matches('\n').count() + 1;
    EvalError::Toml { file: file.to_owned(), line, message: message.to_owned() }
}

/// serde says "unknown field `x`, expected one of `a`, `b`"; people want to know which one they meant.
fn with_suggestion(message: &str) -> String {
    let message = message.replace("unknown field", "unknown key").replace("missing field", "missing key");
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match words.split_first() {
        Some((found, known)) if message.starts_with("unknown") => match nearest(found, known) {
            Some(word) => format!("{message}; did you mean `{word}`?"),
            None => message,
        },
        _ => message,
    }
}

/// The known word closest in spelling, if one is close: a third of its letters may differ.
fn nearest<'a>(found: &str, known: &[&'a str]) -> Option<&'a str> {
    let near = known.iter().map(|word| (strsim::osa_distance(found, word), *word));
    near.filter(|(distance, word)| distance * 3 <= word.len().max(3)).min().map(|(_, word)| word)
}
