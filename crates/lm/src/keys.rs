//! Typed access to a JSON object, with errors that name the file, the key, what it has and what it should.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{LmError, Result};

/// Typed access to a JSON object, with errors that name the file and the key.
pub(crate) struct Keys<'a> {
    pub map: &'a Map<String, Value>,
    pub file: &'a Path,
    /// The key under which this object stands, or empty.
    pub prefix: &'static str,
}

impl<'a> Keys<'a> {
    /// The value; null is as good as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn name(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}.{key}", self.prefix) }
    }

    pub fn bad(&self, key: &str, expected: impl Into<String>, hint: &str) -> LmError {
        let found = match self.map.get(key) {
            Some(value) => shown(value),
            None => "nothing".into(),
        };
        LmError::key(self.file, self.name(key), found, expected, hint)
    }

    pub fn missing(&self, key: &str) -> LmError {
        self.bad(key, "a value", "the key is needed and has no safe default")
    }

    pub fn count(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n <= max);
        let expected = match max {
            usize::MAX => "a whole number".to_owned(),
            _ => format!("a whole number up to {max}"),
        };
        count.map(Some).ok_or_else(|| self.bad(key, expected, ""))
    }

    pub fn required(&self, key: &str, max: usize) -> Result<usize> {
        self.count(key, max)?.ok_or_else(|| self.missing(key))
    }

    /// `value / parts`, which must leave nothing over.
    pub fn divided(&self, key: &str, value: usize, parts: usize) -> Result<usize> {
        if parts == 0 || !value.is_multiple_of(parts) {
            return Err(self.bad(key, format!("a multiple of {parts} attention heads"), ""));
        }
        Ok(value / parts)
    }

    pub fn real(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().filter(|x| x.is_finite()).map(Some).ok_or_else(|| self.bad(key, "a number", ""))
    }

    pub fn positive(&self, key: &str) -> Result<f64> {
        let value = self.real(key)?.ok_or_else(|| self.missing(key))?;
        if value > 0.0 { Ok(value) } else { Err(self.bad(key, "a number above 0", "")) }
    }

    pub fn epsilon(&self, key: &str, default: f64) -> Result<f32> {
        let value = self.real(key)?.unwrap_or(default);
        if (0.0..1.0).contains(&value) { Ok(value as f32) } else { Err(self.bad(key, "a small number", "")) }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.bad(key, "true or false", ""))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.bad(key, "a string", ""))
    }

    /// Fails if the key has a value.
    pub fn refuse(&self, key: &str, expected: &str) -> Result<()> {
        if self.get(key).is_some() { Err(self.bad(key, expected, "")) } else { Ok(()) }
    }

    /// Fails if the key is true; returns false otherwise.
    pub fn refuse_true(&self, key: &str) -> Result<bool> {
        if self.flag(key)?.unwrap_or(false) {
            return Err(self.bad(key, "false", "this option is not implemented in this family"));
        }
        Ok(false)
    }
}

/// A value for an error message: short, on one line.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

pub(crate) fn quoted(text: &str) -> String {
    shown(&Value::from(text))
}

pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
