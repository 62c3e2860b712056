//! The human holdout: votes on prompts that no training part has, and a budget of looks at them.
//!
//! A prompt's part is fixed by its text (`content`), so a comparison of two models on a prompt of the holdout part is in no exported training data. Whoever
//! reads what people said of it learns something, and who keeps the candidate that came out best after many looks has chosen by chance: so each look is an
//! event, bound to the last vote that it saw, and there are [`Policy::holdout_looks`](crate::Policy::holdout_looks) of them. The same look twice (same models, same votes) is
//! one.
//!
//! Not here: the win rate (`polity-eval`).

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::AnyConnection;

use crate::answer::Answer;
use crate::content::{Content, Part};
use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::ledger;
use crate::project;
use crate::sql::Columns;
use crate::vote;

/// One person's answer to a comparison of the two models on a prompt of the holdout.
#[derive(Clone, Debug, PartialEq)]
pub struct HoldoutVote {
    /// The vote's number.
    pub seq: i64,
    /// By whom.
    pub annotator_id: String,
    /// Which prompt.
    pub prompt_id: String,
    /// Its category.
    pub category: String,
    /// 1 for the candidate, 0 for the baseline, ½ for a tie.
    pub score: f64,
    /// Length of the candidate's response, characters.
    pub candidate_chars: usize,
    /// Length of the baseline's.
    pub baseline_chars: usize,
    /// Whether this annotator voted on prompts of the training part too, which reward models learn from.
    pub trained: bool,
}

/// A look, as its event says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Hash of the candidate.
    pub model: String,
    /// Hash of the baseline.
    pub baseline: String,
    /// Number of the last vote that was seen.
    pub votes_to: i64,
    /// How many were.
    pub votes: usize,
    /// Whether machines' were among them.
    pub machine_votes: bool,
}

/// What is left of the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Looks {
    /// Looks so far, this one included.
    pub used: i64,
    /// Looks that there are.
    pub budget: i64,
}

impl Store {
    /// Looks at what people said of two models on the holdout's prompts, and writes into the ledger that it was looked. The votes are in the order in
    /// which they came; machines' are among them only if asked for. Refused once the budget is used up, unless nothing has changed since a look
    /// that was paid for.
    pub async fn look(
        &self,
        model: &str,
        baseline: &str,
        machine_votes: bool,
        actor: &str,
        now_ms: i64,
    ) -> Result<(Vec<HoldoutVote>, Looks)> {
        let (model, baseline, actor) = (model.to_owned(), baseline.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                let votes = holdout_votes(connection, &model, &baseline, machine_votes).await?;
                let look = Look {
                    model,
                    baseline,
                    votes_to: votes.last().map_or(0, |vote| vote.seq),
                    votes: votes.len(),
                    machine_votes,
                };
                let budget = project::project(connection).await?.policy.holdout_looks;
                let looks = pay(connection, &look, budget, &actor, now_ms).await?;
                Ok((votes, looks))
            })
        })
        .await
    }
}

/// Writes the event, if this look is a new one.
async fn pay(
    connection: &mut AnyConnection,
    look: &Look,
    budget: i64,
    actor: &str,
    now_ms: i64,
) -> Result<Looks> {
    let before = ledger::events_of(connection, "look").await?;
    let used = before.len() as i64;
    let paid = |event: &ledger::Event| serde_json::from_str::<Look>(&event.body).is_ok_and(|it| it == *look);
    if look.votes == 0 || before.iter().any(paid) {
        return Ok(Looks { used, budget });
    }
    if used >= budget {
        return Err(StoreError::refused(
            format!("look {} at the holdout", used + 1),
            format!(
                "its budget of {budget} looks is used up: who looks on chooses by chance. Freeze new prompts for a new holdout, or raise \
                 holdout_looks in the project's settings, which is an event too"
            ),
        ));
    }
    vote::seal(connection, actor, now_ms).await?;
    ledger::append(connection, "look", actor, &json!(look), now_ms).await?;
    Ok(Looks { used: used + 1, budget })
}

async fn holdout_votes(
    connection: &mut AnyConnection,
    model: &str,
    baseline: &str,
    machine_votes: bool,
) -> Result<Vec<HoldoutVote>> {
    let rows = sqlx::query(
        "SELECT v.seq, v.annotator_id, v.left_response, v.overall, c.prompt_id, c.category, c.response_a, \
                a.model_hash AS hash_a, a.content AS text_a, b.content AS text_b, \
                CASE WHEN v.annotator_id IN ( \
                    SELECT t.annotator_id FROM effective_vote t JOIN comparison tc ON tc.id = t.comparison_id \
                    JOIN prompt tp ON tp.id = tc.prompt_id WHERE tp.part = $3 AND t.kind = 'work' AND t.overall NOT IN ('skip', 'flag')) \
                THEN 1 ELSE 0 END AS trained \
         FROM effective_vote v JOIN comparison c ON c.id = v.comparison_id JOIN prompt p ON p.id = c.prompt_id \
         JOIN response a ON a.id = c.response_a JOIN response b ON b.id = c.response_b \
         WHERE p.part = $4 AND v.kind = 'work' AND (v.machine = 0 OR $5 = 1) \
           AND ((a.model_hash = $1 AND b.model_hash = $2) OR (a.model_hash = $2 AND b.model_hash = $1)) \
         ORDER BY v.seq",
    )
    .bind(model.to_owned())
    .bind(baseline.to_owned())
    .bind(Part::Train.name())
    .bind(Part::Holdout.name())
    .bind(i64::from(machine_votes))
    .fetch_all(connection)
    .await
    .doing("read the holdout's votes")?;
    let mut votes = Vec::with_capacity(rows.len());
    for row in &rows {
        let (left, a) = (row.text("left_response")?, row.text("response_a")?);
        let answer: Answer = row.text("overall")?.parse()?;
        let Some(left_share) = answer.left_share() else { continue };
        // Where no side was recorded, left stands for `a`.
        let a_share = if left.is_empty() || left == a { left_share } else { 1.0 - left_share };
        let (text_a, text_b): (Content, Content) = (row.json("text_a")?, row.json("text_b")?);
        let chars = |content: &Content| content.words().chars().count();
        let candidate_is_a = row.text("hash_a")? == model;
        let (ours, theirs) = if candidate_is_a { (&text_a, &text_b) } else { (&text_b, &text_a) };
        votes.push(HoldoutVote {
            seq: row.int("seq")?,
            annotator_id: row.text("annotator_id")?,
            prompt_id: row.text("prompt_id")?,
            category: row.text("category")?,
            score: if candidate_is_a { a_share } else { 1.0 - a_share },
            candidate_chars: chars(ours),
            baseline_chars: chars(theirs),
            trained: row.yes("trained")?,
        });
    }
    Ok(votes)
}
