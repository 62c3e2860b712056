//! Datasets: what the panel has said, frozen.
//!
//! [`Store::freeze`] counts the effective votes of every comparison, in one transaction, into rows that never change; a dataset is there whole
//! or not at all. A row holds the counts in the canonical order (`a_votes`, `b_votes`, `ties`, `both_bad`, the sum of grades towards `a`), a
//! reviewer's decision if there is one, and a probability if a reliability model gave one. What a trainer sees is a pure function of a row
//! and a [`LabelRule`]: [`DatasetRow::label`].
//!
//! ```text
//! chain_start = BLAKE3("polity dataset 1", header)
//! chain_i     = BLAKE3("polity dataset row 1", chain_{i-1}, row_i)       the dataset's hash is the last one
//! ```
//!
//! (parts with their lengths before them, see `id`). `header` is the JSON stored with the dataset (name, rules, rubric hash, last vote's number and chain hash, split shares), a row its JSON as
//! [`DatasetRow::canonical`] writes it. Rows name texts by their content's hash, so the texts are bound too.
//!
//! Not here: files (`export`), the reliability model (`panel` fits it; its probabilities are passed in).

use std::collections::BTreeMap;
use std::ops::Range;

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::answer::{Answer, Side};
use crate::content::{Content, Part};
use crate::db::{Meter, Store};
use crate::error::{Doing, Result, StoreError};
use crate::id::hash_parts;
use crate::ledger;
use crate::project;
use crate::sql::{Cell, Columns, insert_many};
use crate::vote;

/// How counts become a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelRule {
    /// The response with more votes is chosen; no `label`. Rows without a winner are left out.
    Majority,
    /// `label` is the chosen response's share of the votes, ties counting half.
    Soft,
    /// `label` is the probability that the dataset's reliability model gave.
    Model,
}

impl LabelRule {
    /// As stored and as typed.
    pub fn name(self) -> &'static str {
        match self {
            LabelRule::Majority => "majority",
            LabelRule::Soft => "soft",
            LabelRule::Model => "model",
        }
    }
}

/// What to freeze.
#[derive(Clone, Debug, PartialEq)]
pub struct Freeze {
    /// The dataset's name: letters, digits, `.`, `_`, `-`.
    pub name: String,
    /// The label rule that exports use unless told otherwise.
    pub labels: LabelRule,
    /// Whether machines' votes count. People's always do.
    pub machine_votes: bool,
    /// Comparisons with fewer judgements are left out.
    pub votes_min: i64,
    /// A reliability model's probabilities that `a` is better, by comparison, and what it was: [`Store::model_labels`].
    pub model: Option<ModelLabels>,
}

/// Probabilities from a reliability model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelLabels {
    /// Which model, with which settings and version; goes into the header.
    pub description: Value,
    /// Probability that response `a` is better, by comparison.
    pub probability_a: BTreeMap<String, f64>,
}

/// A frozen dataset, without its rows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dataset {
    /// Its name.
    pub name: String,
    /// Its hash, 64 hex digits.
    pub hash: String,
    /// What it was frozen by, as JSON text exactly as it was hashed.
    pub header: String,
    /// Rows for training.
    pub train_rows: i64,
    /// Rows for validation.
    pub validation_rows: i64,
    /// Rows held out.
    pub holdout_rows: i64,
    /// Who froze it.
    pub created_by: String,
    /// When.
    pub created_ms: i64,
}

impl Dataset {
    /// The label rule of an export: the one asked for, or else the one that it was frozen with.
    pub fn rule(&self, asked: Option<LabelRule>) -> Result<LabelRule> {
        let damaged =
            |found: String| StoreError::Damaged { place: format!("dataset {}: header", self.name), found };
        let mut header: Value =
            serde_json::from_str(&self.header).map_err(|error| damaged(error.to_string()))?;
        let own =
            serde_json::from_value(header["labels"].take()).map_err(|error| damaged(error.to_string()))?;
        match asked.unwrap_or(own) {
            LabelRule::Model if header["model"].is_null() => Err(StoreError::refused(
                format!("labels by model of dataset {}", self.name),
                "it was frozen without a reliability model; freeze one with labels by model",
            )),
            rule => Ok(rule),
        }
    }

    /// Positions of a part's rows.
    pub fn rows_of(&self, part: Part) -> Range<i64> {
        let ends = [0, self.train_rows, self.validation_rows, self.holdout_rows];
        let start: i64 = ends[..=part as usize].iter().sum();
        start..start + ends[part as usize + 1]
    }
}

/// What was left out of a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Comparisons with fewer judgements than asked for.
    pub too_few_votes: i64,
    /// Comparisons whose texts were not in the imported file.
    pub without_text: i64,
    /// Comparisons that were flagged and not decided by a reviewer.
    pub held: i64,
}

/// One comparison of a dataset.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetRow {
    /// Position, from 0.
    pub idx: i64,
    /// The part.
    pub part: Part,
    /// Which comparison.
    pub comparison_id: String,
    /// Its prompt.
    pub prompt_id: String,
    /// Its response `a`.
    pub response_a: String,
    /// Its response `b`.
    pub response_b: String,
    /// Its category.
    pub category: String,
    /// Judgements for `a`.
    pub a_votes: i64,
    /// Judgements for `b`.
    pub b_votes: i64,
    /// Ties.
    pub ties: i64,
    /// Both bad.
    pub both_bad: i64,
    /// Sum of grades, positive towards `a`.
    pub grade_sum: i64,
    /// A reviewer's decision, canonical order.
    pub adjudicated: Option<Answer>,
    /// A reliability model's probability that `a` is better.
    pub probability: Option<f64>,
}

/// A row as a trainer sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Label {
    /// Which response is chosen; left is `a`.
    pub chosen: Side,
    /// Share or probability that the chosen one is better, from ½ to 1; none for a hard label.
    pub label: Option<f64>,
    /// Mean strength towards the chosen one, in grades (0 to 3).
    pub margin: f64,
    /// Judgements behind it.
    pub votes: i64,
}

impl DatasetRow {
    /// Its JSON, exactly as it is hashed.
    pub fn canonical(&self) -> String {
        project::to_json(self)
    }

    /// The label by a rule. None if the rule has none for it: no winner under [`LabelRule::Majority`], no probability under [`LabelRule::Model`].
    /// A reviewer's decision counts as the only vote, under every rule.
    pub fn label(&self, rule: LabelRule) -> Option<Label> {
        let votes = self.a_votes + self.b_votes + self.ties + self.both_bad;
        let (share_a, grade) = match self.adjudicated {
            Some(answer) => (answer.left_share()?, f64::from(answer.grade()?)),
            None if votes == 0 => return None,
            None => {
                let ties = (self.ties + self.both_bad) as f64;
                ((self.a_votes as f64 + 0.5 * ties) / votes as f64, self.grade_sum as f64 / votes as f64)
            }
        };
        let p_a = match (rule, self.adjudicated) {
            (LabelRule::Model, None) => self.probability?,
            _ => share_a,
        };
        if rule == LabelRule::Majority && p_a == 0.5 {
            return None;
        }
        let chosen = if p_a >= 0.5 { Side::Left } else { Side::Right };
        let (p, margin) = match chosen {
            Side::Left => (p_a, grade),
            Side::Right => (1.0 - p_a, -grade),
        };
        let label = (rule != LabelRule::Majority).then_some(p);
        Some(Label { chosen, label, margin: margin.max(0.0), votes })
    }

    pub(crate) fn from_row(row: &AnyRow) -> Result<DatasetRow> {
        let adjudicated: Option<String> = row.text_or_null("adjudicated")?;
        Ok(DatasetRow {
            idx: row.int("idx")?,
            part: Part::parse(&row.text("part")?)?,
            comparison_id: row.text("comparison_id")?,
            prompt_id: row.text("prompt_id")?,
            response_a: row.text("response_a")?,
            response_b: row.text("response_b")?,
            category: row.text("category")?,
            a_votes: row.int("a_votes")?,
            b_votes: row.int("b_votes")?,
            ties: row.int("ties")?,
            both_bad: row.int("both_bad")?,
            grade_sum: row.int("grade_sum")?,
            adjudicated: adjudicated.map(|answer| answer.parse()).transpose()?,
            probability: row.real_or_null("probability")?,
        })
    }
}

/// The chain before the first row of a dataset.
pub(crate) fn dataset_start(header: &str) -> String {
    hash_parts("polity dataset 1", &[header])
}

/// The chain after a row.
pub(crate) fn dataset_chain(prev: &str, row: &DatasetRow) -> String {
    hash_parts("polity dataset row 1", &[prev, &row.canonical()])
}

/// A row with its texts.
#[derive(Clone, Debug, PartialEq)]
pub struct DatasetTexts {
    /// The row.
    pub row: DatasetRow,
    /// Its prompt.
    pub prompt: Content,
    /// Its response `a`.
    pub a: Content,
    /// Its response `b`.
    pub b: Content,
}

impl Store {
    /// Freezes what there is under a new name; an event, with the votes sealed before it. Fails if the name is taken.
    pub async fn freeze(&self, freeze: Freeze, actor: &str, now_ms: i64) -> Result<(Dataset, LeftOut)> {
        let proper = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if freeze.name.is_empty() || freeze.name.len() > 100 || !freeze.name.bytes().all(proper) {
            return Err(StoreError::invalid(
                "the dataset's name",
                format!("`{}`", freeze.name.escape_default()),
                "1 to 100 letters, digits, `.`, `_` or `-`",
            ));
        }
        if freeze.labels == LabelRule::Model && freeze.model.is_none() {
            return Err(StoreError::refused(
                "labels by model",
                "no reliability model was given; `Store::model_labels` fits one",
            ));
        }
        let (actor, meter) = (actor.to_owned(), self.meter());
        self.write(move |connection| {
            Box::pin(async move { freeze_now(connection, freeze, &actor, now_ms, &meter).await })
        })
        .await
    }

    /// All datasets, oldest first.
    pub async fn datasets(&self) -> Result<Vec<Dataset>> {
        self.read(|connection| Box::pin(datasets(connection))).await
    }

    /// A dataset by name.
    pub async fn dataset(&self, name: &str) -> Result<Dataset> {
        self.datasets()
            .await?
            .into_iter()
            .find(|dataset| dataset.name == name)
            .ok_or_else(|| StoreError::not_found("dataset", name))
    }

    /// Rows of a dataset with their texts, by position, from `from` on, at most `limit`.
    pub async fn dataset_rows(&self, name: &str, from: i64, limit: i64) -> Result<Vec<DatasetTexts>> {
        let name = name.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "SELECT d.*, p.content AS prompt_text, a.content AS a_text, b.content AS b_text FROM dataset_row d \
                     JOIN prompt p ON p.id = d.prompt_id JOIN response a ON a.id = d.response_a JOIN response b ON b.id = d.response_b \
                     WHERE d.dataset = $1 AND d.idx >= $2 ORDER BY d.idx LIMIT $3",
                )
                .bind(name)
                .bind(from)
                .bind(limit)
                .fetch_all(connection)
                .await
                .doing("read a dataset")?
                .iter()
                .map(|row| {
                    Ok(DatasetTexts {
                        row: DatasetRow::from_row(row)?,
                        prompt: row.json("prompt_text")?,
                        a: row.json("a_text")?,
                        b: row.json("b_text")?,
                    })
                })
                .collect()
            })
        })
        .await
    }
}

pub(crate) async fn datasets(connection: &mut AnyConnection) -> Result<Vec<Dataset>> {
    sqlx::query("SELECT * FROM dataset ORDER BY created_ms, name")
        .fetch_all(connection)
        .await
        .doing("list datasets")?
        .iter()
        .map(|row| {
            Ok(Dataset {
                name: row.text("name")?,
                hash: row.text("hash")?,
                header: row.text("header")?,
                train_rows: row.int("train_rows")?,
                validation_rows: row.int("validation_rows")?,
                holdout_rows: row.int("holdout_rows")?,
                created_by: row.text("created_by")?,
                created_ms: row.int("created_ms")?,
            })
        })
        .collect()
}

async fn freeze_now(
    connection: &mut AnyConnection,
    freeze: Freeze,
    actor: &str,
    now_ms: i64,
    meter: &Meter,
) -> Result<(Dataset, LeftOut)> {
    let taken = sqlx::query("SELECT COUNT(*) AS n FROM dataset WHERE name = $1")
        .bind(freeze.name.clone())
        .fetch_one(&mut *connection)
        .await
        .doing("look for the name")?
        .int("n")?;
    if taken > 0 {
        return Err(StoreError::refused(
            format!("freezing `{}`", freeze.name),
            "there is a dataset of that name, and datasets never change; choose another name",
        ));
    }
    vote::seal(connection, actor, now_ms).await?;
    let header = header(connection, &freeze).await?;
    let (rows, left_out) = count_votes(connection, &freeze, meter).await?;

    let mut chain = dataset_start(&header);
    let mut chains = Vec::with_capacity(rows.len());
    let mut parts = [0_i64; 3];
    for row in &rows {
        chain = dataset_chain(&chain, row);
        chains.push(chain.clone());
        parts[row.part as usize] += 1;
    }
    let dataset = Dataset {
        name: freeze.name,
        hash: chain,
        header,
        train_rows: parts[Part::Train as usize],
        validation_rows: parts[Part::Validation as usize],
        holdout_rows: parts[Part::Holdout as usize],
        created_by: actor.to_owned(),
        created_ms: now_ms,
    };
    insert_dataset(connection, &dataset, rows.into_iter().zip(chains).inspect(|_| meter.count())).await?;
    let body = json!({
        "name": dataset.name, "hash": dataset.hash, "train": dataset.train_rows,
        "validation": dataset.validation_rows, "holdout": dataset.holdout_rows,
    });
    ledger::append(connection, "freeze", actor, &body, now_ms).await?;
    Ok((dataset, left_out))
}

async fn header(connection: &mut AnyConnection, freeze: &Freeze) -> Result<String> {
    let project = project::project(connection).await?;
    let (votes_to, votes_chain) = vote::chain_head(connection).await?;
    let rubric = sqlx::query("SELECT version, hash FROM rubric ORDER BY version DESC LIMIT 1")
        .fetch_one(connection)
        .await
        .doing("read the rubric")?;
    let header = json!({
        "format": "polity dataset 1",
        "name": freeze.name,
        "labels": freeze.labels,
        "machine_votes": freeze.machine_votes,
        "votes_min": freeze.votes_min,
        "model": freeze.model.as_ref().map(|model| &model.description),
        "rubric_version": rubric.int("version")?,
        "rubric_hash": rubric.text("hash")?,
        "votes_to": votes_to,
        "votes_chain": votes_chain,
        "validation_share": project.validation_share,
        "holdout_share": project.holdout_share,
    });
    Ok(header.to_string())
}

/// One row a comparison, by part and name.
async fn count_votes(
    connection: &mut AnyConnection,
    freeze: &Freeze,
    meter: &Meter,
) -> Result<(Vec<DatasetRow>, LeftOut)> {
    let mut decided = BTreeMap::new();
    for row in sqlx::query("SELECT comparison_id, answer FROM adjudication ORDER BY seq")
        .fetch_all(&mut *connection)
        .await
        .doing("read decisions")?
    {
        decided.insert(row.text("comparison_id")?, row.text("answer")?.parse::<Answer>()?);
    }
    let mut stream = sqlx::query(
        "SELECT c.id AS comparison_id, c.prompt_id, c.response_a, c.response_b, c.category, c.state, p.part, t.a_votes, t.b_votes, t.ties, \
                t.both_bad, t.grade_sum, \
                CASE WHEN p.content LIKE '{\"reference\"%' OR a.content LIKE '{\"reference\"%' OR b.content LIKE '{\"reference\"%' \
                     THEN 1 ELSE 0 END AS without_text \
         FROM ( \
           SELECT g.comparison_id, \
             CAST(SUM(CASE WHEN g.grade > 0 THEN 1 ELSE 0 END) AS BIGINT) AS a_votes, \
             CAST(SUM(CASE WHEN g.grade < 0 THEN 1 ELSE 0 END) AS BIGINT) AS b_votes, \
             CAST(SUM(CASE WHEN g.overall = 'tie' THEN 1 ELSE 0 END) AS BIGINT) AS ties, \
             CAST(SUM(CASE WHEN g.overall = 'both_bad' THEN 1 ELSE 0 END) AS BIGINT) AS both_bad, \
             CAST(SUM(g.grade) AS BIGINT) AS grade_sum \
           FROM (SELECT v.comparison_id, v.overall, \
                   (CASE v.overall WHEN 'left3' THEN 3 WHEN 'left2' THEN 2 WHEN 'left1' THEN 1 WHEN 'right1' THEN -1 \
                                   WHEN 'right2' THEN -2 WHEN 'right3' THEN -3 ELSE 0 END) \
                   * (CASE WHEN v.left_response = k.response_b THEN -1 ELSE 1 END) AS grade \
                 FROM effective_vote v JOIN comparison k ON k.id = v.comparison_id \
                 WHERE v.kind = 'work' AND v.overall NOT IN ('skip', 'flag') AND (v.machine = 0 OR $1 = 1)) g \
           GROUP BY g.comparison_id) t \
         JOIN comparison c ON c.id = t.comparison_id JOIN prompt p ON p.id = c.prompt_id \
         JOIN response a ON a.id = c.response_a JOIN response b ON b.id = c.response_b \
         WHERE c.state <> 'gold'",
    )
    .bind(i64::from(freeze.machine_votes))
    .fetch(connection);
    let mut rows = Vec::new();
    let mut left_out = LeftOut::default();
    while let Some(row) = stream.try_next().await.doing("count votes")? {
        meter.count();
        let id = row.text("comparison_id")?;
        let adjudicated = decided.get(&id).copied();
        let counts = [row.int("a_votes")?, row.int("b_votes")?, row.int("ties")?, row.int("both_bad")?];
        if counts.iter().sum::<i64>() < freeze.votes_min {
            left_out.too_few_votes += 1;
        } else if row.yes("without_text")? {
            left_out.without_text += 1;
        } else if row.text("state")? == "held" && adjudicated.is_none() {
            left_out.held += 1;
        } else {
            rows.push(DatasetRow {
                idx: 0,
                part: Part::parse(&row.text("part")?)?,
                prompt_id: row.text("prompt_id")?,
                response_a: row.text("response_a")?,
                response_b: row.text("response_b")?,
                category: row.text("category")?,
                a_votes: counts[0],
                b_votes: counts[1],
                ties: counts[2],
                both_bad: counts[3],
                grade_sum: row.int("grade_sum")?,
                adjudicated,
                probability: freeze.model.as_ref().and_then(|model| model.probability_a.get(&id).copied()),
                comparison_id: id,
            });
        }
    }
    rows.sort_by(|x, y| (x.part, &x.comparison_id).cmp(&(y.part, &y.comparison_id)));
    for (idx, row) in rows.iter_mut().enumerate() {
        row.idx = idx as i64;
    }
    Ok((rows, left_out))
}

async fn insert_dataset(
    connection: &mut AnyConnection,
    dataset: &Dataset,
    rows: impl IntoIterator<Item = (DatasetRow, String)>,
) -> Result<()> {
    let name = dataset.name.clone();
    let head = vec![
        Cell::Text(name.clone()),
        Cell::Text(dataset.hash.clone()),
        Cell::Text(dataset.header.clone()),
        Cell::Int(dataset.train_rows),
        Cell::Int(dataset.validation_rows),
        Cell::Int(dataset.holdout_rows),
        Cell::Text(dataset.created_by.clone()),
        Cell::Int(dataset.created_ms),
    ];
    let columns = [
        "name",
        "hash",
        "header",
        "train_rows",
        "validation_rows",
        "holdout_rows",
        "created_by",
        "created_ms",
    ];
    insert_many(connection, "dataset", &columns, [head]).await?;
    let columns = [
        "dataset",
        "idx",
        "part",
        "comparison_id",
        "prompt_id",
        "response_a",
        "response_b",
        "category",
        "a_votes",
        "b_votes",
        "ties",
        "both_bad",
        "grade_sum",
        "adjudicated",
        "probability",
        "chain",
    ];
    let cells = rows.into_iter().map(|(row, chain)| {
        vec![
            Cell::Text(name.clone()),
            Cell::Int(row.idx),
            Cell::Text(row.part.name().to_owned()),
            Cell::Text(row.comparison_id),
            Cell::Text(row.prompt_id),
            Cell::Text(row.response_a),
            Cell::Text(row.response_b),
            Cell::Text(row.category),
            Cell::Int(row.a_votes),
            Cell::Int(row.b_votes),
            Cell::Int(row.ties),
            Cell::Int(row.both_bad),
            Cell::Int(row.grade_sum),
            Cell::TextOrNull(row.adjudicated.map(|answer| answer.to_string())),
            Cell::RealOrNull(row.probability),
            Cell::Text(chain),
        ]
    });
    insert_many(connection, "dataset_row", &columns, cells).await.map(|_| ())
}
