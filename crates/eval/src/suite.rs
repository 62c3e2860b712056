//! A suite: what a model is measured on, as a small TOML file beside a file of rows.
//!
//! ```toml
//! name = "xstest"
//! kind = "refusal"                   # prompts, refusal, exact, numeric, regex, text or preference
//! rows = "xstest_prompts.csv"        # JSONL, JSON, Parquet, also gzip'd; or CSV. Beside this file
//! source = "paul-rottger/exaggerated-safety"
//! licence = "CC-BY-4.0"
//! rows_blake3 = "…"                  # refuses other rows; optional
//!
//! [columns]                          # where a row's keys have other names; optional
//! category = "type"
//! expect = "label"
//!
//! [values.expect]                    # where its values have; optional
//! safe = "comply"
//! unsafe = "refuse"
//!
//! [settings]                         # of the sampler, as for `polity generate`; optional
//! max_new_tokens = 128
//! ```
//!
//! How prompts are asked and answers are read, all optional: `template = "Question: {prompt}\nAnswer:"`; `chat = false` asks in plain text although the
//! model has a chat template; `extract = '#### (-?[0-9.,]+)'` takes an answer (the row's and the model's) from the last place that matches, its first
//! group if there is one.
//!
//! | kind | a row has, beside `id` (its number if left out), `category` |
//! |---|---|
//! | prompts | `prompt` |
//! | refusal | `prompt`, `expect`: comply or refuse |
//! | exact, numeric | `prompt`, `answer` |
//! | regex | `prompt`, `pattern` |
//! | text | `text` |
//! | preference | `prompt`, `first`, `second`, `better`: 1 or 2; or `chosen`, `rejected`, with or without `prompt` and `label`, as for training |
//!
//! `prompt` is a text, or a list of messages `{role, content}`, which a model's chat template takes as they are; `chosen` and `rejected` are then one
//! message of the assistant's.
//!
//! A pair may have `first_votes` and `second_votes`: how many people preferred which. `label` is the share who prefer the chosen one; where it is
//! ½ neither is better, and the row is left out.
//!
//! The suite's hash covers its kind, how it asks and reads, and every row as it is understood, not its settings (those are an evaluation's), the name, the source or the file's format: the same rows are
//! the same suite.
//!
//! Not here: answering and scoring.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use polity_rows::{FromRow, Message, Pair, PreferenceRow, Prompt, PromptRow, Row, Text};
use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{EvalError, strict};

/// What is done with a suite's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Prompts to answer: for win rates, length, KL.
    Prompts,
    /// Prompts that should be answered or refused.
    Refusal,
    /// Prompts with one right answer, as text.
    Exact,
    /// Prompts with one right answer, as a number.
    Numeric,
    /// Prompts whose right answers match a pattern.
    Regex,
    /// Text whose perplexity is measured.
    Text,
    /// Pairs with a better one: for reward models and judges.
    Preference,
}

impl Kind {
    /// Keys that a row must have.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Kind::Prompts => &["prompt"],
            Kind::Refusal => &["prompt", "expect"],
            Kind::Exact | Kind::Numeric => &["prompt", "answer"],
            Kind::Regex => &["prompt", "pattern"],
            Kind::Text => &["text"],
            Kind::Preference => &["prompt", "first", "second", "better"],
        }
    }

    /// Keys that a row may have.
    fn optional_keys(self) -> &'static [&'static str] {
        match self {
            Kind::Preference => &["first_votes", "second_votes"],
            _ => &[],
        }
    }

    /// Keys that a row may have instead of its kind's.
    fn other_keys(self) -> &'static [&'static str] {
        match self {
            Kind::Preference => &["chosen", "rejected", "label"],
            _ => &[],
        }
    }

    /// What a value must be, where not every text will do.
    fn check(self, key: &str, value: &str) -> Result<(), &'static str> {
        let (good, expected) = match (self, key) {
            (Kind::Refusal, "expect") => (["comply", "refuse"].contains(&value), "comply or refuse"),
            (Kind::Numeric, "answer") => (number(value).is_some(), "a number"),
            (Kind::Regex, "pattern") => (Regex::new(value).is_ok(), "a regular expression"),
            (Kind::Preference, "better") => (["1", "2"].contains(&value), "1 or 2"),
            (Kind::Preference, "first_votes" | "second_votes") => {
                (value.parse::<u32>().is_ok(), "a number of votes")
            }
            // An empty answer may be the better or the worse one.
            (Kind::Preference, "first" | "second") => (true, ""),
            _ => (!value.trim().is_empty(), "some text"),
        };
        if good { Ok(()) } else { Err(expected) }
    }
}

/// A suite in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Suite {
    /// Its name.
    pub name: String,
    /// What is done with its rows.
    pub kind: Kind,
    /// Where it is from.
    pub source: Option<String>,
    /// Its licence.
    pub licence: Option<String>,
    /// How it asks, and how it reads answers.
    pub asking: Asking,
    /// Settings of the sampler, in the file's order.
    pub settings: Vec<(String, String)>,
    /// Hash of kind, asking and rows.
    pub hash: String,
    /// The rows.
    pub rows: Vec<SuiteRow>,
}

/// How prompts are put to a model and what of its response is the answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Asking {
    /// With `{prompt}` where the prompt goes.
    pub template: Option<String>,
    /// Whether as a user's message; as the model has it, if absent.
    pub chat: Option<bool>,
    /// A regular expression whose last match is the answer.
    pub extract: Option<String>,
}

impl Asking {
    /// The text that a model is asked.
    pub fn prompt(&self, prompt: &str) -> String {
        self.template.as_ref().map_or_else(|| prompt.to_owned(), |template| template.replace(PROMPT, prompt))
    }

    /// Finds answers in texts.
    pub fn reader(&self) -> Reader {
        let pattern = |pattern: &String| Regex::new(pattern).expect("checked when the suite was read");
        Reader(self.extract.as_ref().map(pattern))
    }
}

/// Finds answers in texts.
#[derive(Clone, Debug)]
pub struct Reader(Option<Regex>);

impl Reader {
    /// What matches last, its first group if there is one; without a pattern all of the text.
    pub fn read<'t>(&self, text: &'t str) -> Option<&'t str> {
        let Some(pattern) = &self.0 else { return Some(text) };
        let found = pattern.captures_iter(text).last()?;
        found.get(1).or(found.get(0)).map(|part| part.as_str())
    }

    /// The number that it reads as; without a pattern, the last one in the text.
    pub fn number(&self, text: &str) -> Option<f64> {
        match &self.0 {
            Some(_) => number(self.read(text)?),
            None => {
                let word = |c: char| !(c.is_ascii_digit() || matches!(c, '.' | ',' | '-' | '+' | 'e' | 'E'));
                text.split(word).rev().find_map(number)
            }
        }
    }
}

/// `1,234.50`, `$3`, `12 %` and `18.` as people write them.
pub(crate) fn number(text: &str) -> Option<f64> {
    let text = text.trim().trim_start_matches('$').trim_end_matches(['%', ' ']).replace(',', "");
    let number: f64 = text.trim_end_matches('.').parse().ok()?;
    (number.is_finite() && text.contains(|c: char| c.is_ascii_digit())).then_some(number)
}

/// Where a template has the prompt.
const PROMPT: &str = "{prompt}";
/// The value that holds a prompt's messages, as JSON.
const MESSAGES: &str = "messages";

/// One row, by the keys of its kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SuiteRow {
    /// Unique in the suite.
    pub id: String,
    /// What its measures are broken down by.
    pub category: Option<String>,
    /// `prompt`, `answer` and so on; of a prompt in messages, its text.
    pub values: BTreeMap<&'static str, String>,
}

impl SuiteRow {
    /// The prompt's messages, where the suite has it in messages.
    pub fn messages(&self) -> Option<Vec<Message>> {
        let messages = self.values.get(MESSAGES)?;
        Some(serde_json::from_str(messages).expect("written when the suite was read"))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSuite {
    name: String,
    kind: Kind,
    rows: PathBuf,
    source: Option<String>,
    licence: Option<String>,
    rows_blake3: Option<String>,
    template: Option<toml::Spanned<String>>,
    chat: Option<bool>,
    extract: Option<toml::Spanned<String>>,
    #[serde(default)]
    settings: toml::Table,
    #[serde(default)]
    columns: BTreeMap<String, toml::Spanned<String>>,
    #[serde(default)]
    values: BTreeMap<String, BTreeMap<String, String>>,
}

impl Suite {
    /// Whether it has prompts in messages, which only a chat template can put to a model.
    pub fn has_messages(&self) -> bool {
        self.rows.iter().any(|row| row.values.contains_key(MESSAGES))
    }

    /// Reads a suite and its rows.
    pub fn read(file: &Path) -> Result<Suite, EvalError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| EvalError::Read { file: file.to_owned(), source })?;
        let raw: RawSuite = strict::parse(file, &text)?;
        let kind = raw.kind;
        let known = || {
            let keys = ["id", "category"].iter().chain(kind.keys());
            keys.chain(kind.optional_keys()).chain(kind.other_keys())
        };
        for (key, column) in &raw.columns {
            if !known().any(|known| known == key) {
                let known: Vec<&str> = known().copied().collect();
                let message =
                    format!("`{key}` is no key of this kind of suite; expected one of {}", known.join(", "));
                return Err(strict::at(file, &text, &column.span(), &message));
            }
        }
        let asking = raw.asking(file, &text)?;
        let settings = raw.settings.iter().map(|(key, value)| (key.clone(), as_set(value))).collect();
        let path = file.parent().unwrap_or(Path::new("")).join(&raw.rows);
        if let Some(expected) = &raw.rows_blake3 {
            let bytes =
                std::fs::read(&path).map_err(|source| EvalError::Read { file: path.clone(), source })?;
            let found = blake3::hash(&bytes).to_hex().to_string();
            if *expected != found {
                let message =
                    format!("the rows' blake3 is {found}, and the suite says {expected}: other rows");
                return Err(EvalError::Measures { file: path, message });
            }
        }
        let table = if path.extension().is_some_and(|extension| extension == "csv") {
            csv(&path)?
        } else {
            rows(&path)?
        };
        let mut suite = Suite {
            name: raw.name.clone(),
            kind: raw.kind,
            source: raw.source.clone(),
            licence: raw.licence.clone(),
            asking,
            settings,
            hash: String::new(),
            rows: Vec::with_capacity(table.len()),
        };
        let reader = suite.asking.reader();
        let mut ids = HashSet::new();
        for (number, (place, row)) in table.iter().enumerate() {
            let Some(row) = raw.row(number, row, &reader).map_err(|what| wrong(&path, place, &what))? else {
                continue;
            };
            if !ids.insert(row.id.clone()) {
                return Err(wrong(&path, place, &format!("a second row with id `{}`", row.id)));
            }
            suite.rows.push(row);
        }
        if suite.rows.is_empty() {
            return Err(EvalError::Measures { file: path, message: "no rows; expected at least one".into() });
        }
        // Who asks plainly has the hash from before there were other ways.
        let canonical = match suite.asking == Asking::default() {
            true => serde_json::to_vec(&(suite.kind, &suite.rows)),
            false => serde_json::to_vec(&(suite.kind, &suite.asking, &suite.rows)),
        };
        let canonical = canonical.expect("texts are JSON");
        suite.hash = blake3::hash(&canonical).to_hex().to_string();
        Ok(suite)
    }
}

/// A value of `[settings]` as `--set` takes it.
fn as_set(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl RawSuite {
    fn asking(&self, file: &Path, text: &str) -> Result<Asking, EvalError> {
        if let Some(template) = self.template.as_ref().filter(|template| !template.get_ref().contains(PROMPT))
        {
            let message = format!("`template` has no {PROMPT}, which stands for the prompt");
            return Err(strict::at(file, text, &template.span(), &message));
        }
        if let Some(extract) = &self.extract
            && let Err(error) = Regex::new(extract.get_ref())
        {
            return Err(strict::at(file, text, &extract.span(), &format!("`extract`: {error}")));
        }
        let plain =
            |value: &Option<toml::Spanned<String>>| value.as_ref().map(|value| value.get_ref().clone());
        Ok(Asking { template: plain(&self.template), chat: self.chat, extract: plain(&self.extract) })
    }

    /// A row of this kind; nothing if it is a pair of which neither is better.
    fn row(
        &self,
        number: usize,
        row: &Map<String, Value>,
        reader: &Reader,
    ) -> Result<Option<SuiteRow>, String> {
        let get = |key: &str| self.get(row, key);
        let has = |key: &str| row.get(self.column(key)).is_some_and(|value| !value.is_null());
        let ranked = self.kind == Kind::Preference && !has("first") && has("chosen");
        let mut values = BTreeMap::new();
        if ranked {
            let Some(pair) = self.ranked(number, row)? else { return Ok(None) };
            values.extend(pair);
        }
        let messages = if ranked { None } else { self.messages(number, row)? };
        let in_messages = messages.is_some();
        values.extend(messages.into_iter().flat_map(in_chat));
        for &key in if ranked { &[] } else { self.kind.keys() } {
            if key == "prompt" && in_messages {
                continue;
            }
            let value = get(key)?.ok_or_else(|| match self.columns.get(key) {
                Some(column) => format!("`{}` is missing, the column of `{key}`", column.get_ref()),
                None => format!("`{key}` is missing; name its column in [columns] if it has another name"),
            })?;
            let value = match key {
                "answer" => reader.read(&value).map(str::to_owned).unwrap_or(value),
                _ => value,
            };
            values.insert(key, value);
        }
        for &key in self.kind.optional_keys() {
            values.extend(get(key)?.map(|value| (key, value)));
        }
        if values.contains_key(MESSAGES) {
            let what = "`prompt` is a list of messages";
            if self.template.is_some() {
                return Err(format!("{what}, and `template` goes around texts; write it into the messages"));
            }
            if self.chat == Some(false) {
                return Err(format!("{what}, and `chat = false` asks in plain text"));
            }
        }
        for (&key, value) in &values {
            self.kind.check(key, value).map_err(|expected| {
                format!("`{key}` is {:.60}; expected {expected}", format!("{value:?}"))
            })?;
        }
        let id = get("id")?.unwrap_or_else(|| number.to_string());
        Ok(Some(SuiteRow { id, category: get("category")?, values }))
    }

    /// A cell as text, by the suite's name for it.
    fn get(&self, row: &Map<String, Value>, key: &str) -> Result<Option<String>, String> {
        let column = self.column(key);
        let found = match row.get(column) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(_) => return Err(format!("`{column}` is neither a text nor a number")),
        };
        Ok(Some(match self.values.get(key) {
            None => found,
            Some(map) => map.get(&found).cloned().ok_or_else(|| {
                let known: Vec<&str> = map.keys().map(String::as_str).collect();
                format!("`{column}` is {found}; [values.{key}] knows {}", known.join(", "))
            })?,
        }))
    }

    fn column<'s>(&'s self, key: &'s str) -> &'s str {
        self.columns.get(key).map_or(key, |column| column.get_ref().as_str())
    }

    /// The prompt, if it is a list of messages.
    fn messages(&self, number: usize, row: &Map<String, Value>) -> Result<Option<Vec<Message>>, String> {
        let prompt = row.get(self.column("prompt")).filter(|prompt| prompt.is_array());
        let Some(prompt) = prompt.filter(|_| self.kind.keys().contains(&"prompt")) else { return Ok(None) };
        let value = Map::from_iter([("prompt".to_owned(), prompt.clone())]);
        let read = PromptRow::from_row(Row { index: number, line: None, value }, &self.rows);
        match read.map_err(|error| error.to_string())?.prompt {
            Prompt::Text(Text::Messages(messages)) => Ok(Some(messages)),
            Prompt::Text(Text::Plain(_)) | Prompt::Ids(_) => Ok(None),
        }
    }

    /// A pair as trainers read it, with its prompt: the better one first.
    fn ranked(
        &self,
        number: usize,
        row: &Map<String, Value>,
    ) -> Result<Option<Vec<(&'static str, String)>>, String> {
        let keys = ["prompt", "chosen", "rejected", "label"];
        let value: Map<String, Value> = keys
            .into_iter()
            .filter_map(|key| Some((key.to_owned(), row.get(self.column(key))?.clone())))
            .collect();
        let row = Row { index: number, line: None, value };
        let read = PreferenceRow::from_row(row, &self.rows).map_err(|error| error.to_string())?;
        let Pair::Text { prompt, chosen, rejected } = read.pair else {
            return Err("token ids instead of text; write the prompt and both responses as text".into());
        };
        let mut values = match prompt {
            Text::Plain(prompt) => vec![("prompt", prompt)],
            Text::Messages(messages) => in_chat(messages).to_vec(),
        };
        values.extend([("first", response(chosen)?), ("second", response(rejected)?)]);
        let better = match read.label.unwrap_or(1.0).total_cmp(&0.5) {
            Ordering::Greater => "1",
            Ordering::Less => "2",
            Ordering::Equal => return Ok(None),
        };
        values.push(("better", better.into()));
        Ok(Some(values))
    }
}

/// A prompt in messages as values: its text, and the messages. The text of one user's message is what it says, of more with who speaks.
fn in_chat(messages: Vec<Message>) -> [(&'static str, String); 2] {
    let text = match messages.as_slice() {
        [only] if only.role == "user" => only.content.clone(),
        all => {
            let spoken = all.iter().map(|message| format!("[{}] {}", message.role, message.content));
            spoken.collect::<Vec<_>>().join("\n\n")
        }
    };
    [("prompt", text), (MESSAGES, serde_json::to_string(&messages).expect("messages are JSON"))]
}

/// A response as text.
fn response(response: Text) -> Result<String, String> {
    match response {
        Text::Plain(text) => Ok(text),
        Text::Messages(messages) => match messages.as_slice() {
            [only] if only.extra.is_empty() => Ok(only.content.clone()),
            _ => Err(
                "a response of several messages, or with tool calls; expected one message of the assistant's"
                    .into(),
            ),
        },
    }
}

/// A place in words, and the row there.
type Located = (String, Map<String, Value>);

fn rows(path: &Path) -> Result<Vec<Located>, EvalError> {
    polity_rows::open(path)?
        .map(|row| {
            let row = row?;
            let place = match row.line {
                Some(line) => format!("line {line}"),
                None => format!("row {} (counted from 0)", row.index),
            };
            Ok((place, row.value))
        })
        .collect()
}

/// CSV with a header; values are texts.
pub(crate) fn csv(path: &Path) -> Result<Vec<Located>, EvalError> {
    let failed = |error: csv::Error| {
        let message = error.to_string();
        match error.into_kind() {
            csv::ErrorKind::Io(source) => EvalError::Read { file: path.to_owned(), source },
            _ => EvalError::Measures { file: path.to_owned(), message },
        }
    };
    let mut reader = csv::Reader::from_path(path).map_err(failed)?;
    let header = reader.headers().map_err(failed)?.clone();
    let rows = reader.into_records().map(|record| {
        let record = record.map_err(failed)?;
        let place = format!("line {}", record.position().map_or(0, csv::Position::line));
        let values = header.iter().zip(&record).map(|(key, value)| (key.to_owned(), Value::from(value)));
        Ok((place, values.collect()))
    });
    rows.collect()
}

fn wrong(file: &Path, place: &str, what: &str) -> EvalError {
    EvalError::Measures { file: file.to_owned(), message: format!("{place}: {what}") }
}
