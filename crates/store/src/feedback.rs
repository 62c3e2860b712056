//! Feedback from serving: thumbs on an answer, a preference between two.
//!
//! Texts become prompts and responses of origin `serving`, by a model that is named by its release; two compared answers become a comparison
//! that nobody is shown until a reviewer queues it. What was clicked is a row of its own and never a vote: it is not in any dataset.
//!
//! Not here: who is served what, and what follows (`polity-serve`).

use serde::Serialize;

use crate::content::{
    Content, Material, NewComparison, NewPrompt, NewResponse, UNCATEGORISED, prompt_id, response_id,
};
use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::sql::Columns;

/// The origin of texts that came with feedback.
pub const SERVING: &str = "serving";

/// An answer that was served.
#[derive(Clone, Debug, PartialEq)]
pub struct ServedAnswer {
    /// The answer's id and choice.
    pub completion: String,
    /// `stable` or `canary`.
    pub arm: String,
    /// The release.
    pub release: String,
    /// The model's hash.
    pub model_hash: String,
    /// What was said.
    pub content: Content,
}

/// What a user said.
#[derive(Clone, Debug, PartialEq)]
pub struct NewFeedback {
    /// The channel.
    pub channel: String,
    /// The account whose token was used.
    pub caller: String,
    /// The prompt.
    pub prompt: Content,
    /// The answer, or the first of two.
    pub answer: ServedAnswer,
    /// The second, for a preference.
    pub other: Option<ServedAnswer>,
    /// Of one answer: 1 for a thumb up, 0 for one down. Of two: 1 if the first is better, ½ for a tie, 0 if the second is.
    pub value: f64,
    /// Why.
    pub reason: String,
}

/// A row of feedback.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeedbackRecord {
    /// Position, from 1.
    pub seq: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The channel.
    pub channel: String,
    /// The account whose token was used.
    pub caller: String,
    /// `thumb` or `preference`.
    pub kind: String,
    /// As in [`NewFeedback::value`].
    pub value: f64,
    /// The response, or the first of two.
    pub response_a: String,
    /// Its release.
    pub release_a: String,
    /// Its arm.
    pub arm_a: String,
    /// The second of two.
    pub response_b: Option<String>,
    /// Its release.
    pub release_b: Option<String>,
    /// Its arm.
    pub arm_b: Option<String>,
    /// Why.
    pub reason: String,
}

impl Store {
    /// Keeps feedback; `Ok` means that it is on the disk. Returns its number.
    pub async fn add_feedback(&self, new: NewFeedback, now_ms: i64) -> Result<i64> {
        if !(0.0..=1.0).contains(&new.value) {
            return Err(StoreError::invalid("the feedback", new.value.to_string(), "a number from 0 to 1"));
        }
        let prompt = prompt_id(&new.prompt);
        let response = |answer: &ServedAnswer| NewResponse {
            prompt_id: prompt.clone(),
            content: answer.content.clone(),
            model: answer.release.clone(),
            model_hash: Some(answer.model_hash.clone()),
            sampler: None,
            sample_index: None,
            origin: SERVING.to_owned(),
        };
        let id = |answer: &ServedAnswer| response_id(&prompt, &answer.content, &answer.release);
        let (a, b) = (id(&new.answer), new.other.as_ref().map(id));
        let comparisons = match &b {
            // Two arms may have said the same.
            Some(b) if *b != a => vec![NewComparison {
                prompt_id: prompt.clone(),
                responses: [a.clone(), b.clone()],
                wanted: self.project().await?.policy.overlap,
                queued: false,
                origin: SERVING.to_owned(),
            }],
            _ => Vec::new(),
        };
        let material = Material {
            responses: std::iter::once(&new.answer).chain(&new.other).map(response).collect(),
            prompts: vec![NewPrompt {
                content: new.prompt,
                category: UNCATEGORISED.to_owned(),
                origin: SERVING.to_owned(),
            }],
            comparisons,
        };
        self.add_material(material, now_ms).await?;
        let (answer, other) = (new.answer, new.other);
        let kind = if other.is_some() { "preference" } else { "thumb" };
        self.write(move |connection| {
            Box::pin(async move {
                let seq = sqlx::query("SELECT COALESCE(MAX(seq), 0) + 1 AS seq FROM feedback")
                    .fetch_one(&mut *connection)
                    .await
                    .doing("number the feedback")?
                    .int("seq")?;
                sqlx::query(
                    "INSERT INTO feedback(seq, at_ms, channel, caller, kind, value, response_a, release_a, arm_a, completion_a, \
                     response_b, release_b, arm_b, completion_b, reason) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
                )
                .bind(seq)
                .bind(now_ms)
                .bind(new.channel)
                .bind(new.caller)
                .bind(kind)
                .bind(new.value)
                .bind(a)
                .bind(answer.release)
                .bind(answer.arm)
                .bind(answer.completion)
                .bind(b)
                .bind(other.as_ref().map(|other| other.release.clone()))
                .bind(other.as_ref().map(|other| other.arm.clone()))
                .bind(other.map(|other| other.completion))
                .bind(new.reason)
                .execute(connection)
                .await
                .doing("keep feedback")?;
                Ok(seq)
            })
        })
        .await
    }

    /// The newest feedback of a channel, newest first, at most `limit`.
    pub async fn feedback(&self, channel: &str, limit: i64) -> Result<Vec<FeedbackRecord>> {
        let channel = channel.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query("SELECT * FROM feedback WHERE channel = $1 ORDER BY seq DESC LIMIT $2")
                    .bind(channel)
                    .bind(limit)
                    .fetch_all(connection)
                    .await
                    .doing("read feedback")?
                    .iter()
                    .map(|row| {
                        Ok(FeedbackRecord {
                            seq: row.int("seq")?,
                            at_ms: row.int("at_ms")?,
                            channel: row.text("channel")?,
                            caller: row.text("caller")?,
                            kind: row.text("kind")?,
                            value: row.real("value")?,
                            response_a: row.text("response_a")?,
                            release_a: row.text("release_a")?,
                            arm_a: row.text("arm_a")?,
                            response_b: row.text_or_null("response_b")?,
                            release_b: row.text_or_null("release_b")?,
                            arm_b: row.text_or_null("arm_b")?,
                            reason: row.text("reason")?,
                        })
                    })
                    .collect()
            })
        })
        .await
    }
}
