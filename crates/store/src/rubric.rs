//! The rubric: what annotators judge by. Versions are kept for ever; each vote carries the version it was given under.

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::AnyConnection;

use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::id::hash_parts;
use crate::ledger;
use crate::project::to_json;
use crate::sql::Columns;

/// What annotators judge by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rubric {
    /// A heading.
    pub title: String,
    /// What to do, as markdown.
    pub instructions: String,
    /// What is judged beside the overall answer.
    pub axes: Vec<Axis>,
    /// Worked examples.
    pub examples: Vec<Example>,
}

/// One aspect to judge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Axis {
    /// Key in votes: lower-case letters, digits, `_`.
    pub key: String,
    /// As shown.
    pub label: String,
    /// What it means, as markdown.
    pub help: String,
}

/// A worked example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// The prompt.
    pub prompt: String,
    /// One response.
    pub left: String,
    /// The other.
    pub right: String,
    /// The answer and why, as markdown.
    pub answer: String,
}

/// A stored version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RubricVersion {
    /// From 1.
    pub version: i64,
    /// What it says.
    pub rubric: Rubric,
    /// BLAKE3 of its JSON.
    pub hash: String,
    /// Who wrote it.
    pub author: String,
    /// Why it was changed.
    pub note: String,
    /// Whether annotators calibrate again before they go on.
    pub recalibrate: bool,
    /// When.
    pub created_ms: i64,
}

impl Rubric {
    /// Helpful, harmless, honest.
    pub fn usual() -> Rubric {
        let axis = |key: &str, label: &str, help: &str| Axis {
            key: key.into(),
            label: label.into(),
            help: help.into(),
        };
        Rubric {
            title: "Which response is better?".into(),
            instructions: "Read the prompt, then both responses to the end. Judge what each does for the person who asked, \
                           not how long it is or which stands first. If you cannot tell them apart, say so: a tie is an answer."
                .into(),
            axes: vec![
                axis("helpful", "Helpful", "Does what was asked, completely, and no more than is useful."),
                axis("harmless", "Harmless", "Does not help anyone to hurt people; does not refuse what is harmless."),
                axis("honest", "Honest", "What it claims is true; what it does not know, it says."),
            ],
            examples: Vec::new(),
        }
    }

    /// Checks that axes have proper keys, each once.
    pub fn validate(&self) -> Result<()> {
        let mut seen = std::collections::BTreeSet::new();
        for axis in &self.axes {
            let proper = !axis.key.is_empty()
                && axis.key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                && axis.key != "overall";
            if !proper {
                return Err(StoreError::invalid(
                    "an axis' key",
                    format!("`{}`", axis.key),
                    "lower-case letters, digits and `_`, and not `overall`",
                ));
            }
            if !seen.insert(&axis.key) {
                return Err(StoreError::invalid(
                    "an axis' key",
                    format!("`{}` twice", axis.key),
                    "each key once",
                ));
            }
        }
        Ok(())
    }
}

/// BLAKE3 of a rubric's JSON text.
pub(crate) fn rubric_hash(content: &str) -> String {
    hash_parts("polity rubric 1", &[content])
}

pub(crate) async fn add(
    connection: &mut AnyConnection,
    rubric: &Rubric,
    author: &str,
    note: &str,
    recalibrate: bool,
    now_ms: i64,
) -> Result<i64> {
    let version = current_version(connection).await? + 1;
    let content = to_json(rubric);
    let hash = rubric_hash(&content);
    sqlx::query(
        "INSERT INTO rubric(version, content, hash, author, note, recalibrate, created_ms) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(version)
    .bind(content)
    .bind(hash.clone())
    .bind(author.to_owned())
    .bind(note.to_owned())
    .bind(i64::from(recalibrate))
    .bind(now_ms)
    .execute(&mut *connection)
    .await
    .doing("add a rubric version")?;
    let body = json!({"version": version, "hash": hash, "recalibrate": recalibrate, "note": note});
    ledger::append(connection, "rubric", author, &body, now_ms).await?;
    Ok(version)
}

pub(crate) async fn current_version(connection: &mut AnyConnection) -> Result<i64> {
    sqlx::query("SELECT COALESCE(MAX(version), 0) AS version FROM rubric")
        .fetch_one(connection)
        .await
        .doing("read the rubric")?
        .int("version")
}

fn from_row(row: &sqlx::any::AnyRow) -> Result<RubricVersion> {
    Ok(RubricVersion {
        version: row.int("version")?,
        rubric: row.json("content")?,
        hash: row.text("hash")?,
        author: row.text("author")?,
        note: row.text("note")?,
        recalibrate: row.yes("recalibrate")?,
        created_ms: row.int("created_ms")?,
    })
}

impl Store {
    /// Adds a version, which is current from then on; an event. With `recalibrate`, annotators answer known comparisons again first, as
    /// the policy's `calibration_first` asks.
    pub async fn add_rubric(
        &self,
        rubric: Rubric,
        author: &str,
        note: &str,
        recalibrate: bool,
        now_ms: i64,
    ) -> Result<i64> {
        rubric.validate()?;
        let (author, note) = (author.to_owned(), note.to_owned());
        self.write(move |connection| {
            Box::pin(async move { add(connection, &rubric, &author, &note, recalibrate, now_ms).await })
        })
        .await
    }

    /// The current version.
    pub async fn current_rubric(&self) -> Result<RubricVersion> {
        let mut all = self.rubrics().await?;
        all.pop().ok_or_else(|| StoreError::not_found("rubric", "1"))
    }

    /// All versions, oldest first.
    pub async fn rubrics(&self) -> Result<Vec<RubricVersion>> {
        self.read(|connection| {
            Box::pin(async move {
                sqlx::query("SELECT * FROM rubric ORDER BY version")
                    .fetch_all(connection)
                    .await
                    .doing("read the rubric")?
                    .iter()
                    .map(from_row)
                    .collect()
            })
        })
        .await
    }
}
