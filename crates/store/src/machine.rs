//! Votes of machines: judges that are programs.
//!
//! A judge may see every comparison, whoever else has it: its votes take nobody's place in the overlap (`served` counts people's judgements
//! and leases). It has seen both orders, so its vote has no side: answers are in the canonical order. Another vote of the same judge on the
//! same comparison (under a new rubric) supersedes the first.
//!
//! Not here: how a judge is asked (`polity panel judge`); simulated annotators, who take places as people do (`simulate`).

use std::collections::BTreeMap;

use crate::account::{self, AnnotatorKind};
use crate::answer::Answer;
use crate::assign::Kind;
use crate::content;
use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::sql::Columns;
use crate::vote::{self, VoteRecord};

/// A judge's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineVote {
    /// Who answers: an annotator of the kind [`AnnotatorKind::Machine`].
    pub annotator_id: String,
    /// What is answered.
    pub comparison_id: String,
    /// Which is better, all in all; left is response `a`.
    pub overall: Answer,
    /// The same by axis; keys are the rubric's.
    pub axes: BTreeMap<String, Answer>,
    /// Why, in the judge's words.
    pub reason: String,
    /// The rubric it was given under.
    pub rubric_version: i64,
    /// Which program said so: `judge gpt-4`, say.
    pub origin: String,
}

impl Store {
    /// Stores a judge's vote; `Ok` means that it is on the disk. Returns its number.
    pub async fn machine_vote(&self, new: MachineVote, now_ms: i64) -> Result<i64> {
        self.write(move |connection| {
            Box::pin(async move {
                let annotator = account::annotator(connection, &new.annotator_id).await?;
                if annotator.kind != AnnotatorKind::Machine {
                    return Err(StoreError::refused(
                        format!("a machine's vote by `{}`", new.annotator_id),
                        format!("it is a {} annotator", annotator.kind.name()),
                    ));
                }
                content::comparison(connection, &new.comparison_id).await?;
                if !new.overall.is_judgement() {
                    let found = format!("`{}`", new.overall);
                    return Err(StoreError::invalid("the answer", found, "a judgement"));
                }
                vote::check_reason(&new.reason)?;
                vote::check_axes(connection, new.rubric_version, &new.axes).await?;
                let earlier = sqlx::query(
                    "SELECT seq FROM effective_vote WHERE comparison_id = $1 AND annotator_id = $2",
                )
                .bind(new.comparison_id.clone())
                .bind(new.annotator_id.clone())
                .fetch_optional(&mut *connection)
                .await
                .doing("look for an earlier vote")?;
                let record = VoteRecord {
                    seq: 0,
                    comparison_id: new.comparison_id,
                    annotator_id: new.annotator_id,
                    kind: Kind::Work,
                    left_response: String::new(),
                    overall: new.overall,
                    axes: new.axes,
                    reason: new.reason,
                    rubric_version: new.rubric_version,
                    shown_ms: None,
                    answered_ms: Some(now_ms),
                    work_ms: None,
                    machine: true,
                    chosen_by: None,
                    propensity: None,
                    assignment_id: None,
                    supersedes: earlier.map(|row| row.int("seq")).transpose()?,
                    origin: new.origin,
                    recorded_ms: now_ms,
                    chain: String::new(),
                };
                Ok(vote::append(connection, record).await?.seq)
            })
        })
        .await
    }

    /// Comparisons that this judge has not judged under this rubric version, by name, at most `limit`. Known ones, those held back and
    /// those without texts are left out.
    pub async fn unjudged(&self, annotator_id: &str, rubric_version: i64, limit: i64) -> Result<Vec<String>> {
        let annotator = annotator_id.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "SELECT c.id FROM comparison c JOIN prompt p ON p.id = c.prompt_id \
                     JOIN response a ON a.id = c.response_a JOIN response b ON b.id = c.response_b \
                     WHERE c.state NOT IN ('gold', 'held') \
                       AND p.content NOT LIKE '{\"reference\"%' AND a.content NOT LIKE '{\"reference\"%' \
                       AND b.content NOT LIKE '{\"reference\"%' \
                       AND NOT EXISTS (SELECT 1 FROM effective_vote v WHERE v.comparison_id = c.id \
                                       AND v.annotator_id = $1 AND v.rubric_version = $2) \
                     ORDER BY c.id LIMIT $3",
                )
                .bind(annotator)
                .bind(rubric_version)
                .bind(limit)
                .fetch_all(connection)
                .await
                .doing("look for comparisons to judge")?
                .iter()
                .map(|row| row.text("id"))
                .collect()
            })
        })
        .await
    }
}
