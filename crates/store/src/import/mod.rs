//! Files of other tools into the store: all of a file, or nothing of it.
//!
//! [`read`] turns a file into [`Parsed`]: material, votes, what was repeated, and every row that could not be read, with its line.
//! [`Store::import`] puts that into the store in one transaction and one ledger event. Between the two, a dry run stops.
//!
//! The format is told by the first row ([`ImportFormat`]); `docs/data.md` lists the keys of each. What is common to all:
//!
//! - A preference without a grade counts as clear (`left2`), one with equal ranks as a tie.
//! - A file that does not say who judged has one annotator, `file:NAME`; one that does has an annotator for each, `NAME:ID`.
//! - A side is recorded where the tool shows its candidates in the file's order (pairwise votes); it is unknown for `chosen` and
//!   `rejected`, whose order is the answer itself.
//! - The same prompt, response, comparison or vote again is counted and left out. An annotator's other answer to the same comparison
//!   supersedes the earlier one.
//!
//! Not here: reading JSON and Parquet (`polity-rows`), candidates from models (the command line's `sample`).

mod collect;
mod csv;
mod formats;
mod tools;

use std::collections::HashMap;
use std::path::Path;

use polity_rows::{Row, RowsError};
use serde::Serialize;
use serde_json::json;
use sqlx::AnyConnection;

use crate::account::{self, Annotator, AnnotatorKind};
use crate::answer::Answer;
use crate::assign::Kind;
use crate::content::{self, Added, Material};
use crate::db::{Meter, Store};
use crate::error::{Doing, Result, StoreError};
use crate::ledger;
use crate::sql::Columns;
use crate::vote::{self, VoteRecord};

use collect::Collector;

/// The formats that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportFormat {
    /// Rows with TRL's keys: `prompt`, `chosen`, `rejected`; or `prompt` or `messages` alone.
    Trl,
    /// Anthropic HH transcripts in `chosen` and `rejected`.
    Hh,
    /// OpenAssistant conversation trees.
    Oasst,
    /// Argilla's records, version 1 or 2.
    Argilla,
    /// Label Studio's JSON export.
    LabelStudio,
    /// Rows with `response_a`, `response_b` and `winner`; in CSV or JSONL.
    Pairwise,
    /// PandaLM's test set: `response1`, `response2`, `annotator1` ….
    Pandalm,
    /// MT-Bench human judgments: `question_id`, `model_a`, `model_b`, `winner`, `judge`.
    MtBench,
}

impl ImportFormat {
    /// All of them.
    pub const ALL: [ImportFormat; 8] = [
        ImportFormat::Trl,
        ImportFormat::Hh,
        ImportFormat::Oasst,
        ImportFormat::Argilla,
        ImportFormat::LabelStudio,
        ImportFormat::Pairwise,
        ImportFormat::Pandalm,
        ImportFormat::MtBench,
    ];

    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            ImportFormat::Trl => "trl",
            ImportFormat::Hh => "hh",
            ImportFormat::Oasst => "oasst",
            ImportFormat::Argilla => "argilla",
            ImportFormat::LabelStudio => "label-studio",
            ImportFormat::Pairwise => "pairwise",
            ImportFormat::Pandalm => "pandalm",
            ImportFormat::MtBench => "mt-bench",
        }
    }

    /// The format of a file whose first row has these keys.
    fn detect(row: &Row) -> Option<ImportFormat> {
        let has = |key: &str| row.value.get(key).is_some_and(|value| !value.is_null());
        let all = |keys: &[&str]| keys.iter().all(|key| has(key));
        if all(&["question_id", "model_a", "model_b", "winner"]) {
            Some(ImportFormat::MtBench)
        } else if all(&["response1", "response2", "annotator1"]) {
            Some(ImportFormat::Pandalm)
        } else if row.value.get("prompt").is_some_and(|prompt| prompt.get("replies").is_some()) {
            Some(ImportFormat::Oasst)
        } else if all(&["data", "annotations"]) {
            Some(ImportFormat::LabelStudio)
        } else if all(&["fields", "responses"]) {
            Some(ImportFormat::Argilla)
        } else if all(&["response_a", "response_b"]) {
            Some(ImportFormat::Pairwise)
        } else if all(&["chosen", "rejected"]) {
            let transcript = |key: &str| {
                row.value[key].as_str().is_some_and(|text| polity_rows::hh::messages(text).is_some())
            };
            let hh = transcript("chosen") && transcript("rejected") && !has("prompt");
            Some(if hh { ImportFormat::Hh } else { ImportFormat::Trl })
        } else if has("prompt") || has("messages") {
            Some(ImportFormat::Trl)
        } else {
            None
        }
    }
}

/// What to take from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Take {
    /// Prompts alone.
    Prompts,
    /// Comparisons to be annotated; what the file says of them is left out.
    Pairs,
    /// Comparisons and the votes on them.
    Votes,
}

/// How to read a file.
#[derive(Clone, Debug)]
pub struct ImportOptions {
    /// What to take.
    pub take: Take,
    /// The format, if it is not to be told by the content.
    pub format: Option<ImportFormat>,
    /// Category of prompts that have none of their own; `""` for none.
    pub category: String,
    /// Judgements wanted for each comparison that is to be annotated.
    pub wanted: i64,
    /// Errors that are kept word for word; all are counted.
    pub errors_max: usize,
}

/// A file, read.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The file's name.
    pub file: String,
    /// BLAKE3 of its bytes.
    pub file_hash: String,
    /// How it was read.
    pub format: ImportFormat,
    /// What was taken.
    pub take: Take,
    /// Rows.
    pub rows: usize,
    /// Prompts, responses, comparisons.
    pub material: Material,
    /// Votes, one for each annotator and comparison.
    pub votes: Vec<ImportedVote>,
    /// Prompts, comparisons and votes that came more than once.
    pub duplicates: Duplicates,
    /// Rows that could not be read: the first ones, word for word.
    pub errors: Vec<String>,
    /// How many could not be read.
    pub errors_total: usize,
}

/// What came more than once in one file, and was taken once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Prompts, where prompts are imported.
    pub prompts: usize,
    /// Comparisons without votes.
    pub comparisons: usize,
    /// The same annotator, comparison and answer.
    pub votes: usize,
    /// Another answer by the same annotator, which replaced the earlier one.
    pub votes_replaced: usize,
    /// Comparisons whose two responses are the same text of the same model.
    pub identical_responses: usize,
}

/// A vote from a file, in the canonical order.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportedVote {
    /// On what.
    pub comparison_id: String,
    /// By whom: an annotator's id.
    pub annotator_id: String,
    /// Whether a machine gave it.
    pub machine: bool,
    /// The answer, left = response `a`.
    pub answer: Answer,
    /// Which response was shown on the left, if the file says.
    pub left_response: Option<String>,
    /// Whether that is response `a`.
    pub left_is_a: bool,
    /// Why.
    pub reason: String,
    /// When.
    pub answered_ms: Option<i64>,
    /// Time on task.
    pub work_ms: Option<i64>,
}

/// What an import did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Imported {
    /// Material that was new, and that was known.
    pub added: Added,
    /// Votes that were new.
    pub votes: u64,
    /// Votes that were there.
    pub votes_known: u64,
    /// New votes that supersede a stored one.
    pub votes_superseding: u64,
    /// Annotators in the file.
    pub annotators: u64,
}

/// Reads a file whole. Fails only if no row can be read at all; bad rows are in [`Parsed::errors`].
pub fn read(path: &Path, options: &ImportOptions) -> Result<Parsed> {
    let file_hash = hash_file(path)?;
    let mut rows = open(path)?.peekable();
    let format = match (options.format, rows.peek()) {
        (Some(format), _) => format,
        (None, Some(Ok(row))) => ImportFormat::detect(row).ok_or_else(|| {
            let keys: Vec<&str> = row.value.keys().map(String::as_str).take(12).collect();
            let known: Vec<&str> = ImportFormat::ALL.iter().map(|format| format.name()).collect();
            StoreError::invalid(
                format!("{}: the format", path.display()),
                format!("not told by the keys of the first row ({})", keys.join(", ")),
                format!("one of {} (`--format`)", known.join(", ")),
            )
        })?,
        (None, Some(Err(_)) | None) => {
            return match rows.next() {
                Some(Err(error)) => Err(error.into()),
                _ => Err(StoreError::invalid(path.display().to_string(), "empty", "at least one row")),
            };
        }
    };
    let mut collector = Collector::new(path, format, options);
    for row in rows {
        collector.rows += 1;
        match row {
            Err(error) => collector.error(error.to_string()),
            Ok(row) => {
                let place = match row.line {
                    Some(line) => format!("{}, line {line}", path.display()),
                    None => format!("{}, row {} (counted from 0)", path.display(), row.index),
                };
                if let Err(error) = collector.row(row) {
                    let error = error.to_string();
                    // Errors of typed rows name the place themselves.
                    let named = error.starts_with(&path.display().to_string());
                    collector.error(if named { error } else { format!("{place}: {error}") });
                }
            }
        }
    }
    Ok(collector.finish(file_hash))
}

fn open(path: &Path) -> Result<Box<dyn Iterator<Item = std::result::Result<Row, RowsError>>>> {
    let name = path.to_string_lossy().to_lowercase();
    let delimiter = match name.rsplit('.').next() {
        Some("csv") => Some(b','),
        Some("tsv") => Some(b'\t'),
        _ => None,
    };
    match delimiter {
        Some(delimiter) => csv::open(path, delimiter),
        None => Ok(Box::new(polity_rows::open(path)?)),
    }
}

/// BLAKE3 of a file's bytes.
fn hash_file(path: &Path) -> Result<String> {
    let failed = |source| RowsError::Open { file: path.to_owned(), source };
    let mut hasher = blake3::Hasher::new();
    let mut file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(std::io::ErrorKind::IsADirectory.into()).into());
    }
    std::io::copy(&mut file, &mut hasher).map_err(failed)?;
    Ok(hasher.finalize().to_hex().to_string())
}

impl Store {
    /// Puts a file that was read into the store, all of it or nothing; an event. Refused if any row could not be read.
    pub async fn import(&self, parsed: Parsed, actor: &str, now_ms: i64) -> Result<Imported> {
        if parsed.errors_total > 0 {
            return Err(StoreError::refused(
                format!("importing {}", parsed.file),
                format!("{} of its rows could not be read; nothing was imported", parsed.errors_total),
            ));
        }
        let (seed, actor, meter) = (self.random(), actor.to_owned(), self.meter());
        self.write(move |connection| {
            Box::pin(async move { import(connection, parsed, seed, &actor, now_ms, &meter).await })
        })
        .await
    }
}

async fn import(
    connection: &mut AnyConnection,
    parsed: Parsed,
    seed: u64,
    actor: &str,
    now_ms: i64,
    meter: &Meter,
) -> Result<Imported> {
    let added = content::add_material(connection, parsed.material, seed, now_ms, meter).await?;
    let mut annotators: HashMap<&str, bool> = HashMap::new();
    for vote in &parsed.votes {
        annotators.insert(&vote.annotator_id, vote.machine);
    }
    let mut stored = HashMap::new();
    for (id, machine) in &annotators {
        let kind = if *machine { AnnotatorKind::Machine } else { AnnotatorKind::Human };
        let annotator = Annotator { id: (*id).to_owned(), name: (*id).to_owned(), kind, account_id: None };
        account::add_annotator(connection, &annotator, now_ms).await?;
        effective_votes(connection, id, &mut stored).await?;
    }
    let annotators = annotators.len() as u64;

    let origin = format!("import:{}", parsed.file);
    let (mut votes_known, mut votes_superseding) = (0, 0);
    let mut records = Vec::new();
    for vote in parsed.votes {
        let key = (vote.annotator_id, vote.comparison_id);
        let supersedes = match stored.get(&key) {
            Some((_, answer)) if *answer == vote.answer => {
                votes_known += 1;
                continue;
            }
            Some((seq, _)) => {
                votes_superseding += 1;
                Some(*seq)
            }
            None => None,
        };
        let a_left = vote.left_response.is_none() || vote.left_is_a;
        records.push(VoteRecord {
            seq: 0,
            comparison_id: key.1,
            annotator_id: key.0,
            kind: Kind::Work,
            left_response: vote.left_response.unwrap_or_default(),
            overall: if a_left { vote.answer } else { vote.answer.swapped() },
            axes: Default::default(),
            reason: vote.reason,
            rubric_version: 0,
            shown_ms: None,
            answered_ms: vote.answered_ms,
            work_ms: vote.work_ms,
            machine: vote.machine,
            chosen_by: None,
            propensity: None,
            assignment_id: None,
            supersedes,
            origin: origin.clone(),
            recorded_ms: now_ms,
            chain: String::new(),
        });
    }
    let expected = records.len() as u64;
    let votes = vote::append_many(connection, records, meter).await?;
    if votes != expected {
        return Err(StoreError::Damaged {
            place: "table vote".into(),
            found: format!("{expected} votes were to be added, and {votes} were"),
        });
    }
    let imported = Imported { added, votes, votes_known, votes_superseding, annotators };
    vote::seal(connection, actor, now_ms).await?;
    let body = json!({
        "file": parsed.file, "file_hash": parsed.file_hash, "format": parsed.format, "take": parsed.take,
        "rows": parsed.rows, "imported": imported,
    });
    ledger::append(connection, "import", actor, &body, now_ms).await?;
    Ok(imported)
}

/// An annotator's effective votes in the canonical order, by annotator and comparison.
async fn effective_votes(
    connection: &mut AnyConnection,
    annotator_id: &str,
    into: &mut HashMap<(String, String), (i64, Answer)>,
) -> Result<()> {
    let rows = sqlx::query(
        "SELECT v.seq, v.comparison_id, v.overall, v.left_response, c.response_b FROM effective_vote v \
         JOIN comparison c ON c.id = v.comparison_id WHERE v.annotator_id = $1 AND v.kind = 'work'",
    )
    .bind(annotator_id.to_owned())
    .fetch_all(connection)
    .await
    .doing("read an annotator's votes")?;
    for row in &rows {
        let answer: Answer = row.text("overall")?.parse()?;
        let turned = row.text("left_response")? == row.text("response_b")?;
        let answer = if turned { answer.swapped() } else { answer };
        into.insert((annotator_id.to_owned(), row.text("comparison_id")?), (row.int("seq")?, answer));
    }
    Ok(())
}
