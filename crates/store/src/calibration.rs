//! Comparisons with known answers, and who gets them right.
//!
//! A comparison that becomes a known one leaves the queue. A *round* is the last rubric version that asked for recalibration: answers from
//! earlier rounds do not qualify for this one.

use serde::Serialize;
use serde_json::json;
use sqlx::AnyConnection;

use crate::answer::Answer;
use crate::assign::{self, Kind};
use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::ledger;
use crate::project::Policy;
use crate::sql::Columns;
use crate::vote::agrees;

/// A known comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CalibrationItem {
    /// Which.
    pub comparison_id: String,
    /// The known answer, in the canonical order (left = response `a`).
    pub expected: Answer,
    /// Shown after the answer, as markdown.
    pub explanation: String,
    /// Whether it is still handed out.
    pub active: bool,
}

/// How an annotator does on known comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The rubric version that began the round.
    pub round: i64,
    /// Answered in this round.
    pub answered: i64,
    /// Right ones among them.
    pub right: i64,
}

impl Standing {
    /// Whether the share of right answers is at least `share`.
    pub fn passes(&self, share: f64) -> bool {
        self.right as f64 >= share * self.answered as f64
    }

    pub(crate) fn qualification(&self, policy: &Policy) -> Qualification {
        match self.answered < policy.calibration_first {
            _ if policy.calibration_first == 0 => Qualification::Passed,
            true => Qualification::Pending,
            false if self.passes(policy.calibration_pass) => Qualification::Passed,
            false => Qualification::Failed,
        }
    }
}

/// Whether an annotator may work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qualification {
    /// Too few known comparisons answered; with none left there is nothing to be qualified by.
    Pending,
    /// Too many answered wrong; only with another try at what is left.
    Failed,
    /// Yes.
    Passed,
}

/// One answer to a known comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CalibrationAnswer {
    /// The vote.
    pub seq: i64,
    /// By whom.
    pub annotator_id: String,
    /// Which comparison.
    pub comparison_id: String,
    /// When.
    pub answered_ms: Option<i64>,
    /// Whether side (or tie) was right.
    pub right: bool,
}

impl Store {
    /// Makes a comparison a known one, or changes what is known; an event. `expected` is in the canonical order.
    pub async fn set_calibration(&self, item: CalibrationItem, actor: &str, now_ms: i64) -> Result<()> {
        if !item.expected.is_judgement() {
            return Err(StoreError::invalid(
                "the known answer",
                format!("`{}`", item.expected),
                "a judgement",
            ));
        }
        let actor = actor.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                let counts = assign::counts_of(connection, &item.comparison_id).await?;
                let state = if item.active { "gold" } else { "closed" };
                assign::set_counts_state(connection, &item.comparison_id, &counts, state).await?;
                sqlx::query(
                    "INSERT INTO calibration(comparison_id, expected, explanation, active, added_by, added_ms) \
                     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (comparison_id) DO UPDATE SET expected = $2, explanation = $3, active = $4",
                )
                .bind(item.comparison_id.clone())
                .bind(item.expected.to_string())
                .bind(item.explanation.clone())
                .bind(i64::from(item.active))
                .bind(actor.clone())
                .bind(now_ms)
                .execute(&mut *connection)
                .await
                .doing("set a known answer")?;
                ledger::append(connection, "calibration", &actor, &json!(item), now_ms).await.map(|_| ())
            })
        })
        .await
    }

    /// All known comparisons, by name.
    pub async fn calibration_items(&self) -> Result<Vec<CalibrationItem>> {
        self.read(|connection| Box::pin(items(connection))).await
    }

    /// How an annotator does in the current round.
    pub async fn standing(&self, annotator_id: &str) -> Result<Standing> {
        let annotator = annotator_id.to_owned();
        self.read(move |connection| Box::pin(async move { standing(connection, &annotator).await })).await
    }

    /// Answers to known comparisons in the order they came: one annotator's, or everybody's. For drift.
    pub async fn calibration_answers(&self, annotator_id: Option<&str>) -> Result<Vec<CalibrationAnswer>> {
        let annotator = annotator_id.map(str::to_owned);
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "SELECT v.seq, v.annotator_id, v.comparison_id, v.answered_ms, v.overall, v.left_response, c.response_a, k.expected \
                     FROM effective_vote v JOIN calibration k ON k.comparison_id = v.comparison_id \
                     JOIN comparison c ON c.id = v.comparison_id \
                     WHERE v.kind = $1 AND ($2 IS NULL OR v.annotator_id = $2) ORDER BY v.seq",
                )
                .bind(Kind::Calibration.name())
                .bind(annotator)
                .fetch_all(connection)
                .await
                .doing("read answers to known comparisons")?
                .iter()
                .map(|row| {
                    Ok(CalibrationAnswer {
                        seq: row.int("seq")?,
                        annotator_id: row.text("annotator_id")?,
                        comparison_id: row.text("comparison_id")?,
                        answered_ms: row.int_or_null("answered_ms")?,
                        right: is_right(row)?,
                    })
                })
                .collect()
            })
        })
        .await
    }
}

pub(crate) async fn items(connection: &mut AnyConnection) -> Result<Vec<CalibrationItem>> {
    sqlx::query("SELECT * FROM calibration ORDER BY comparison_id")
        .fetch_all(connection)
        .await
        .doing("list known comparisons")?
        .iter()
        .map(item_from)
        .collect()
}

/// The known comparisons that an annotator has not answered in a round, by name.
pub(crate) async fn unanswered(
    connection: &mut AnyConnection,
    annotator_id: &str,
    round: i64,
) -> Result<Vec<String>> {
    sqlx::query(
        "SELECT k.comparison_id AS id FROM calibration k WHERE k.active = 1 \
         AND NOT EXISTS (SELECT 1 FROM assignment a WHERE a.comparison_id = k.comparison_id AND a.annotator_id = $1 \
                         AND a.kind = 'calibration' AND a.round = $2 AND a.state IN ('live', 'voted')) \
         ORDER BY k.comparison_id",
    )
    .bind(annotator_id.to_owned())
    .bind(round)
    .fetch_all(connection)
    .await
    .doing("look for a known comparison")?
    .iter()
    .map(|row| row.text("id"))
    .collect()
}

pub(crate) fn item_from(row: &sqlx::any::AnyRow) -> Result<CalibrationItem> {
    Ok(CalibrationItem {
        comparison_id: row.text("comparison_id")?,
        expected: row.text("expected")?.parse()?,
        explanation: row.text("explanation")?,
        active: row.yes("active")?,
    })
}

fn is_right(row: &sqlx::any::AnyRow) -> Result<bool> {
    let answer: Answer = row.text("overall")?.parse()?;
    let a_left = row.text("left_response")? == row.text("response_a")?;
    let canonical = if a_left { answer } else { answer.swapped() };
    Ok(agrees(canonical, row.text("expected")?.parse()?))
}

/// An annotator's answers since the current round began.
async fn standing(connection: &mut AnyConnection, annotator_id: &str) -> Result<Standing> {
    let round = sqlx::query("SELECT COALESCE(MAX(version), 0) AS round FROM rubric WHERE recalibrate = 1")
        .fetch_one(&mut *connection)
        .await
        .doing("read the rubric")?
        .int("round")?;
    standing_in(connection, annotator_id, round).await
}

/// How an annotator does in a round, as far as the policy asks.
pub(crate) async fn standing_for(
    connection: &mut AnyConnection,
    annotator_id: &str,
    round: i64,
    policy: &Policy,
) -> Result<Standing> {
    match policy.calibration_first {
        0 => Ok(Standing { round, answered: 0, right: 0 }),
        _ => standing_in(connection, annotator_id, round).await,
    }
}

/// How an annotator does in a round.
async fn standing_in(connection: &mut AnyConnection, annotator_id: &str, round: i64) -> Result<Standing> {
    // From the few known comparisons on (CROSS JOIN: in this order), not through all that the annotator has voted.
    let rows = sqlx::query(
        "SELECT v.overall, v.left_response, c.response_a, k.expected \
         FROM calibration k CROSS JOIN assignment a CROSS JOIN effective_vote v JOIN comparison c ON c.id = v.comparison_id \
         WHERE a.comparison_id = k.comparison_id AND a.annotator_id = $1 AND a.kind = 'calibration' AND a.round = $2 \
           AND v.comparison_id = a.comparison_id AND v.assignment_id = a.id",
    )
    .bind(annotator_id.to_owned())
    .bind(round)
    .fetch_all(connection)
    .await
    .doing("read answers to known comparisons")?;
    let mut right = 0;
    for row in &rows {
        right += i64::from(is_right(row)?);
    }
    Ok(Standing { round, answered: rows.len() as i64, right })
}
