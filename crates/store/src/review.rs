//! Review: what annotators disagree on, what they flagged, and what a reviewer decides.
//!
//! An adjudication is append-only like a vote: a later one supersedes. It overrides the votes wherever a dataset is frozen from then on.

use serde::Serialize;
use serde_json::json;
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::answer::Answer;
use crate::content;
use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::ledger;
use crate::sql::Columns;

/// A reviewer's decision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Adjudication {
    /// Its number.
    pub seq: i64,
    /// On what.
    pub comparison_id: String,
    /// By whom.
    pub reviewer: String,
    /// The answer, in the canonical order (left = response `a`).
    pub answer: Answer,
    /// Why.
    pub reason: String,
    /// The decision it replaces.
    pub supersedes: Option<i64>,
    /// When.
    pub at_ms: i64,
}

/// A comparison for review.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReviewItem {
    /// Which.
    pub comparison_id: String,
    /// Its category.
    pub category: String,
    /// Judgements for `a`, for `b`, and for neither.
    pub a_votes: i64,
    /// See `a_votes`.
    pub b_votes: i64,
    /// See `a_votes`.
    pub ties: i64,
    /// Annotators who flagged it.
    pub flags: i64,
    /// Disagreement: the share of the votes that the most frequent answer did not get.
    pub disagreement: f64,
}

impl Store {
    /// Comparisons with flags first, then those with the most disagreement; none that has been adjudicated since its last vote.
    pub async fn review_queue(&self, limit: i64) -> Result<Vec<ReviewItem>> {
        self.read(move |connection| Box::pin(async move { review_queue(connection, limit).await })).await
    }

    /// Decides a comparison; an event. `answer` is in the canonical order.
    pub async fn adjudicate(
        &self,
        comparison_id: &str,
        answer: Answer,
        reason: &str,
        reviewer: &str,
        now_ms: i64,
    ) -> Result<Adjudication> {
        if !answer.is_judgement() {
            return Err(StoreError::invalid("the decision", format!("`{answer}`"), "a judgement"));
        }
        let (comparison_id, reason, reviewer) =
            (comparison_id.to_owned(), reason.to_owned(), reviewer.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                content::comparison(connection, &comparison_id).await?;
                let earlier = adjudications(connection, &comparison_id).await?.pop();
                let seq = sqlx::query("SELECT COALESCE(MAX(seq), 0) + 1 AS seq FROM adjudication")
                    .fetch_one(&mut *connection)
                    .await
                    .doing("number a decision")?
                    .int("seq")?;
                let decision = Adjudication {
                    seq,
                    comparison_id,
                    reviewer,
                    answer,
                    reason,
                    supersedes: earlier.map(|earlier| earlier.seq),
                    at_ms: now_ms,
                };
                sqlx::query(
                    "INSERT INTO adjudication(seq, comparison_id, reviewer, answer, reason, supersedes, at_ms) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7)",
                )
                .bind(decision.seq)
                .bind(decision.comparison_id.clone())
                .bind(decision.reviewer.clone())
                .bind(decision.answer.to_string())
                .bind(decision.reason.clone())
                .bind(decision.supersedes)
                .bind(now_ms)
                .execute(&mut *connection)
                .await
                .doing("decide")?;
                ledger::append(connection, "adjudication", &decision.reviewer, &json!(decision), now_ms).await?;
                Ok(decision)
            })
        })
        .await
    }

    /// All decisions on a comparison, oldest first; the last one holds.
    pub async fn adjudications(&self, comparison_id: &str) -> Result<Vec<Adjudication>> {
        let id = comparison_id.to_owned();
        self.read(move |connection| Box::pin(async move { adjudications(connection, &id).await })).await
    }
}

async fn review_queue(connection: &mut AnyConnection, limit: i64) -> Result<Vec<ReviewItem>> {
    let rows = sqlx::query(
        "SELECT t.*, c.category FROM ( \
           SELECT v.comparison_id, MAX(v.recorded_ms) AS last_ms, \
             CAST(SUM(CASE WHEN (v.overall LIKE 'left%' AND v.left_response <> c.response_b) \
                             OR (v.overall LIKE 'right%' AND v.left_response = c.response_b) THEN 1 ELSE 0 END) AS BIGINT) AS a_votes, \
             CAST(SUM(CASE WHEN (v.overall LIKE 'left%' AND v.left_response = c.response_b) \
                             OR (v.overall LIKE 'right%' AND v.left_response <> c.response_b) THEN 1 ELSE 0 END) AS BIGINT) AS b_votes, \
             CAST(SUM(CASE WHEN v.overall IN ('tie', 'both_bad') THEN 1 ELSE 0 END) AS BIGINT) AS ties, \
             CAST(SUM(CASE WHEN v.overall = 'flag' THEN 1 ELSE 0 END) AS BIGINT) AS flags \
           FROM effective_vote v JOIN comparison c ON c.id = v.comparison_id \
           WHERE v.kind = 'work' GROUP BY v.comparison_id) t \
         JOIN comparison c ON c.id = t.comparison_id \
         WHERE NOT EXISTS (SELECT 1 FROM adjudication d WHERE d.comparison_id = t.comparison_id AND d.at_ms >= t.last_ms) \
           AND (t.flags > 0 OR (t.a_votes > 0 AND t.b_votes > 0) OR (t.ties > 0 AND t.a_votes + t.b_votes > 0)) \
         ORDER BY t.flags DESC, \
           1.0 * (CASE WHEN t.a_votes >= t.b_votes AND t.a_votes >= t.ties THEN t.a_votes \
                       WHEN t.b_votes >= t.ties THEN t.b_votes ELSE t.ties END) \
             / (CASE WHEN t.a_votes + t.b_votes + t.ties = 0 THEN 1 ELSE t.a_votes + t.b_votes + t.ties END), \
           t.comparison_id LIMIT $1",
    )
    .bind(limit)
    .fetch_all(connection)
    .await
    .doing("look for disagreement")?;
    rows.iter()
        .map(|row| {
            let (a_votes, b_votes, ties) = (row.int("a_votes")?, row.int("b_votes")?, row.int("ties")?);
            let all = a_votes + b_votes + ties;
            let most = a_votes.max(b_votes).max(ties);
            Ok(ReviewItem {
                comparison_id: row.text("comparison_id")?,
                category: row.text("category")?,
                a_votes,
                b_votes,
                ties,
                flags: row.int("flags")?,
                disagreement: if all == 0 { 0.0 } else { (all - most) as f64 / all as f64 },
            })
        })
        .collect()
}

pub(crate) async fn adjudications(
    connection: &mut AnyConnection,
    comparison_id: &str,
) -> Result<Vec<Adjudication>> {
    sqlx::query("SELECT * FROM adjudication WHERE comparison_id = $1 ORDER BY seq")
        .bind(comparison_id.to_owned())
        .fetch_all(connection)
        .await
        .doing("read decisions")?
        .iter()
        .map(adjudication_from)
        .collect()
}

pub(crate) fn adjudication_from(row: &AnyRow) -> Result<Adjudication> {
    Ok(Adjudication {
        seq: row.int("seq")?,
        comparison_id: row.text("comparison_id")?,
        reviewer: row.text("reviewer")?,
        answer: row.text("answer")?.parse()?,
        reason: row.text("reason")?,
        supersedes: row.int_or_null("supersedes")?,
        at_ms: row.int("at_ms")?,
    })
}
