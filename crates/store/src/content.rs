//! Prompts, responses and comparisons.
//!
//! A prompt is named by its text, a response by its prompt, text and model, a comparison by its two responses, so adding the same
//! again adds nothing. A comparison's two responses are kept in the order of their names, `a` and `b`: the *canonical* order that
//! answers are turned to before they are counted. Which side each was shown on belongs to the vote.
//!
//! **Parts.** A prompt belongs to train, validation or holdout by a hash of its text, so it is in the same part in every dataset ever
//! frozen, whatever else there is. The hash ignores case and white space: a prompt retyped with another capital must not cross from
//! holdout to train.
//!
//! Not here: files (`import`), who is shown what (`assign`).

use std::collections::HashMap;

use polity_rows::Text;
use serde::{Deserialize, Serialize};
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::db::{Meter, Store};
use crate::error::{Doing, Result, StoreError};
use crate::id::{content_id, hash_parts};
use crate::identity;
use crate::project::{self, to_json};
use crate::sql::{Cell, Columns, insert_many};

/// What a prompt or a response says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Text, or messages.
    Text(Text),
    /// A name for a text that the imported file did not hold, such as `mtbench/81/1`. Votes on it count for agreement; it
    /// cannot be shown or frozen.
    Reference {
        /// The name.
        reference: String,
    },
}

impl Content {
    /// Plain text.
    pub fn plain(text: impl Into<String>) -> Content {
        Content::Text(Text::Plain(text.into()))
    }

    /// The words, for search and for comparing: messages' contents on lines of their own.
    pub fn words(&self) -> String {
        match self {
            Content::Text(Text::Plain(text)) => text.clone(),
            Content::Text(Text::Messages(messages)) => {
                messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n")
            }
            Content::Reference { reference } => reference.clone(),
        }
    }
}

/// Which part of every dataset a prompt belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// For training.
    Train,
    /// For choosing between models.
    Validation,
    /// For the last word, and nothing else.
    Holdout,
}

impl Part {
    /// All parts, in the order datasets hold them.
    pub const ALL: [Part; 3] = [Part::Train, Part::Validation, Part::Holdout];

    /// As stored.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::Holdout => "holdout",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Part> {
        Part::ALL.into_iter().find(|part| part.name() == name).ok_or_else(|| StoreError::Damaged {
            place: "a prompt's part".into(),
            found: format!("`{name}`"),
        })
    }

    /// The part of a prompt. With `u` in `[0, 1)` from the first 53 bits of `BLAKE3("polity part 1", words)`, words in lower case with single
    /// spaces: holdout if `u < holdout_share`, validation if `u < holdout_share + validation_share`, else train.
    pub fn of(prompt: &Content, validation_share: f64, holdout_share: f64) -> Part {
        let words = prompt.words().to_lowercase();
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        let hash = hash_parts("polity part 1", &[&words]);
        let bits = u64::from_str_radix(&hash[..16], 16).expect("a hash is hex digits");
        let u = (bits >> 11) as f64 / (1_u64 << 53) as f64;
        if u < holdout_share {
            Part::Holdout
        } else if u < holdout_share + validation_share {
            Part::Validation
        } else {
            Part::Train
        }
    }
}

/// A prompt to add.
#[derive(Clone, Debug, PartialEq)]
pub struct NewPrompt {
    /// What it says.
    pub content: Content,
    /// Its category; `""` becomes [`UNCATEGORISED`].
    pub category: String,
    /// Where it came from: a file's name, say.
    pub origin: String,
}

/// A prompt without a category.
pub const UNCATEGORISED: &str = "other";

/// A response to add.
#[derive(Clone, Debug, PartialEq)]
pub struct NewResponse {
    /// Name of its prompt.
    pub prompt_id: String,
    /// What it says.
    pub content: Content,
    /// Who wrote it: a model's name, `human`, or `unknown`. Never shown to annotators.
    pub model: String,
    /// BLAKE3 of the model's files.
    pub model_hash: Option<String>,
    /// The sampler's settings, as JSON.
    pub sampler: Option<String>,
    /// Which of the prompt's samples.
    pub sample_index: Option<i64>,
    /// Where it came from.
    pub origin: String,
}

/// A comparison to add.
#[derive(Clone, Debug, PartialEq)]
pub struct NewComparison {
    /// Name of the prompt.
    pub prompt_id: String,
    /// Names of two different responses to it, in any order.
    pub responses: [String; 2],
    /// Judgements wanted.
    pub wanted: i64,
    /// Whether annotators are to be shown it; imported votes usually need no more.
    pub queued: bool,
    /// Where it came from.
    pub origin: String,
}

/// A stored prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prompt {
    /// Its name.
    pub id: String,
    /// What it says.
    pub content: Content,
    /// Its category.
    pub category: String,
    /// Where it came from.
    pub origin: String,
    /// Its part of every dataset.
    pub part: Part,
}

/// A stored response.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Response {
    /// Its name.
    pub id: String,
    /// Name of its prompt.
    pub prompt_id: String,
    /// What it says.
    pub content: Content,
    /// Who wrote it. Never shown to annotators.
    pub model: String,
    /// BLAKE3 of the model's files.
    pub model_hash: Option<String>,
    /// The sampler's settings, as JSON text.
    pub sampler: Option<String>,
    /// Where it came from.
    pub origin: String,
}

/// A stored comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Its name.
    pub id: String,
    /// Name of its prompt.
    pub prompt_id: String,
    /// The response whose name sorts first.
    pub response_a: String,
    /// The other.
    pub response_b: String,
    /// Of its prompt.
    pub category: String,
    /// Judgements wanted.
    pub wanted: i64,
    /// Judgements and live leases.
    pub served: i64,
    /// `fresh`, `open`, `full`, `held`, `closed` or `gold`.
    pub state: String,
    /// What pair selection goes by, if set.
    pub score: Option<f64>,
}

/// A comparison with all that a page needs to show it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparisonTexts {
    /// The comparison.
    pub comparison: Comparison,
    /// Its prompt.
    pub prompt: Prompt,
    /// Its response `a`.
    pub a: Response,
    /// Its response `b`.
    pub b: Response,
}

/// What adding changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Added {
    /// New prompts.
    pub prompts: u64,
    /// Prompts that were there.
    pub prompts_known: u64,
    /// New responses.
    pub responses: u64,
    /// Responses that were there.
    pub responses_known: u64,
    /// New comparisons.
    pub comparisons: u64,
    /// Comparisons that were there.
    pub comparisons_known: u64,
}

/// The name of a prompt.
pub fn prompt_id(content: &Content) -> String {
    content_id("polity prompt 1", &[&to_json(content)])
}

/// The name of a response.
pub fn response_id(prompt_id: &str, content: &Content, model: &str) -> String {
    content_id("polity response 1", &[prompt_id, model, &to_json(content)])
}

/// The name of a comparison of two responses, in any order.
pub fn comparison_id(one: &str, other: &str) -> String {
    content_id("polity comparison 1", &[one.min(other), one.max(other)])
}

/// What a contest is called: the two models in order, so that sides can be balanced between them.
fn contest(model_a: &str, model_b: &str) -> (String, bool) {
    let a_is_first = model_a <= model_b;
    let (first, second) = if a_is_first { (model_a, model_b) } else { (model_b, model_a) };
    (to_json(&[first, second]), a_is_first)
}

/// Material to add in one transaction.
#[derive(Clone, Debug, Default)]
pub struct Material {
    /// Prompts.
    pub prompts: Vec<NewPrompt>,
    /// Responses to them or to stored ones.
    pub responses: Vec<NewResponse>,
    /// Comparisons of them or of stored ones.
    pub comparisons: Vec<NewComparison>,
}

impl Store {
    /// Adds material, all or nothing; what is there already stays as it is and is counted.
    pub async fn add_material(&self, material: Material, now_ms: i64) -> Result<Added> {
        let (seed, meter) = (self.random(), self.meter());
        self.write(move |connection| {
            Box::pin(async move { add_material(connection, material, seed, now_ms, &meter).await })
        })
        .await
    }

    /// The same for what models were sampled for; an event, with what the caller says of models and settings. `seed` shuffles the order in
    /// which new comparisons wait, so that what was sampled again waits in the same one.
    pub async fn add_sampled(
        &self,
        material: Material,
        seed: u64,
        body: serde_json::Value,
        actor: &str,
        now_ms: i64,
    ) -> Result<Added> {
        let (actor, meter) = (actor.to_owned(), self.meter());
        self.write(move |connection| {
            Box::pin(async move {
                let added = add_material(connection, material, seed, now_ms, &meter).await?;
                crate::ledger::append(connection, "sample", &actor, &body, now_ms).await?;
                Ok(added)
            })
        })
        .await
    }

    /// A comparison with its texts.
    pub async fn comparison(&self, id: &str) -> Result<ComparisonTexts> {
        let id = id.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                let comparison = comparison(connection, &id).await?;
                let prompt = prompt(connection, &comparison.prompt_id).await?;
                let a = response(connection, &comparison.response_a).await?;
                let b = response(connection, &comparison.response_b).await?;
                Ok(ComparisonTexts { comparison, prompt, a, b })
            })
        })
        .await
    }

    /// A prompt.
    pub async fn prompt(&self, id: &str) -> Result<Prompt> {
        let id = id.to_owned();
        self.read(move |connection| Box::pin(async move { prompt(connection, &id).await })).await
    }

    /// A response.
    pub async fn response(&self, id: &str) -> Result<Response> {
        let id = id.to_owned();
        self.read(move |connection| Box::pin(async move { response(connection, &id).await })).await
    }

    /// Prompts in the order of their names, after the one named `after` (`""` for the first page).
    pub async fn prompts(&self, after: &str, limit: i64) -> Result<Vec<Prompt>> {
        let after = after.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query("SELECT * FROM prompt WHERE id > $1 ORDER BY id LIMIT $2")
                    .bind(after)
                    .bind(limit)
                    .fetch_all(connection)
                    .await
                    .doing("list prompts")?
                    .iter()
                    .map(prompt_from)
                    .collect()
            })
        })
        .await
    }

    /// Comparisons in the order of their names, after the one named `after`; `state` narrows them.
    pub async fn comparisons(&self, state: Option<&str>, after: &str, limit: i64) -> Result<Vec<Comparison>> {
        let (state, after) = (state.map(str::to_owned), after.to_owned());
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query(
                    "SELECT * FROM comparison WHERE id > $1 AND ($2 IS NULL OR state = $2) ORDER BY id LIMIT $3",
                )
                .bind(after)
                .bind(state)
                .bind(limit)
                .fetch_all(connection)
                .await
                .doing("list comparisons")?
                .iter()
                .map(comparison_from)
                .collect()
            })
        })
        .await
    }

    /// Sets what pair selection goes by: higher is shown sooner (disagreement of an ensemble, minus the margin, …).
    pub async fn set_scores(&self, scores: Vec<(String, f64)>) -> Result<()> {
        self.write(move |connection| {
            Box::pin(async move {
                for (id, score) in scores {
                    if !score.is_finite() {
                        return Err(StoreError::invalid(
                            format!("the score of {id}"),
                            score.to_string(),
                            "a finite number",
                        ));
                    }
                    let changed = sqlx::query("UPDATE comparison SET score = $1 WHERE id = $2")
                        .bind(score)
                        .bind(id.clone())
                        .execute(&mut *connection)
                        .await
                        .doing("set a score")?;
                    if changed.rows_affected() == 0 {
                        return Err(StoreError::not_found("comparison", id));
                    }
                }
                Ok(())
            })
        })
        .await
    }
}

pub(crate) async fn add_material(
    connection: &mut AnyConnection,
    material: Material,
    seed: u64,
    now_ms: i64,
    meter: &Meter,
) -> Result<Added> {
    let project = project::project(connection).await?;
    let mut added = Added::default();

    let count = material.prompts.len() as u64;
    let mut categories = HashMap::with_capacity(material.prompts.len());
    let rows = material.prompts.into_iter().inspect(|_| meter.count()).map(|prompt| {
        let part = Part::of(&prompt.content, project.validation_share, project.holdout_share);
        let category = if prompt.category.is_empty() { UNCATEGORISED.to_owned() } else { prompt.category };
        let id = prompt_id(&prompt.content);
        categories.insert(id.clone(), category.clone());
        vec![
            Cell::Text(id),
            Cell::Text(to_json(&prompt.content)),
            Cell::Text(category),
            Cell::Text(prompt.origin),
            Cell::Text(part.name().to_owned()),
            Cell::Int(now_ms),
        ]
    });
    let columns = ["id", "content", "category", "origin", "part", "added_ms"];
    added.prompts = insert_many(connection, "prompt", &columns, rows).await?;
    added.prompts_known = count - added.prompts;
    if added.prompts_known > 0 {
        // A known prompt keeps the category it has; those are looked up.
        categories.clear();
    }

    let count = material.responses.len() as u64;
    let mut known = HashMap::with_capacity(material.responses.len());
    let rows = material.responses.into_iter().inspect(|_| meter.count()).map(|response| {
        let id = response_id(&response.prompt_id, &response.content, &response.model);
        known.insert(
            id.clone(),
            Known { prompt_id: response.prompt_id.clone(), model: response.model.clone() },
        );
        vec![
            Cell::Text(id),
            Cell::Text(response.prompt_id),
            Cell::Text(to_json(&response.content)),
            Cell::Text(response.model),
            Cell::TextOrNull(response.model_hash),
            Cell::TextOrNull(response.sampler),
            Cell::IntOrNull(response.sample_index),
            Cell::Text(response.origin),
            Cell::Int(now_ms),
        ]
    });
    let columns = [
        "id",
        "prompt_id",
        "content",
        "model",
        "model_hash",
        "sampler",
        "sample_index",
        "origin",
        "added_ms",
    ];
    added.responses = insert_many(connection, "response", &columns, rows).await?;
    added.responses_known = count - added.responses;

    let count = material.comparisons.len() as u64;
    added.comparisons =
        add_comparisons(connection, material.comparisons, known, categories, seed, now_ms, meter).await?;
    added.comparisons_known = count - added.comparisons;
    Ok(added)
}

/// What a comparison needs to know of its responses.
struct Known {
    prompt_id: String,
    model: String,
}

async fn add_comparisons(
    connection: &mut AnyConnection,
    comparisons: Vec<NewComparison>,
    mut known: HashMap<String, Known>,
    mut categories: HashMap<String, String>,
    seed: u64,
    now_ms: i64,
    meter: &Meter,
) -> Result<u64> {
    let mut stream = polity_stats::Stream::new(seed, "shuffle", 0);
    let mut rows = Vec::with_capacity(comparisons.len());
    let mut queued = Vec::new();
    for new in comparisons {
        let [one, other] = new.responses;
        let id = comparison_id(&one, &other);
        if one == other {
            return Err(StoreError::refused(
                format!("a comparison of `{one}` with itself"),
                "expected two different responses",
            ));
        }
        let (a, b) = if one < other { (one, other) } else { (other, one) };
        for response_id in [&a, &b] {
            if !known.contains_key(response_id) {
                let response = response(connection, response_id).await?;
                known.insert(response.id, Known { prompt_id: response.prompt_id, model: response.model });
            }
            if known[response_id].prompt_id != new.prompt_id {
                return Err(StoreError::refused(
                    format!("comparison {id}"),
                    "its responses answer different prompts",
                ));
            }
        }
        if !categories.contains_key(&new.prompt_id) {
            let prompt = prompt(connection, &new.prompt_id).await?;
            categories.insert(prompt.id, prompt.category);
        }
        let (contest, a_is_first) = contest(&known[&a].model, &known[&b].model);
        if new.queued {
            queued.push(id.clone());
        }
        rows.push(vec![
            Cell::Text(id),
            Cell::Text(new.prompt_id.clone()),
            Cell::Text(a),
            Cell::Text(b),
            Cell::Text(categories[&new.prompt_id].clone()),
            Cell::Text(contest),
            Cell::Int(i64::from(a_is_first)),
            Cell::Int((stream.next_u64() >> 1) as i64),
            Cell::Int(new.wanted),
            Cell::Int(0),
            Cell::Text(if new.queued { "fresh" } else { "closed" }.to_owned()),
            Cell::Text(new.origin),
            Cell::Int(now_ms),
        ]);
    }
    let columns = [
        "id",
        "prompt_id",
        "response_a",
        "response_b",
        "category",
        "contest",
        "a_is_first",
        "shuffle",
        "wanted",
        "served",
        "state",
        "origin",
        "added_ms",
    ];
    let inserted =
        insert_many(connection, "comparison", &columns, rows.into_iter().inspect(|_| meter.count())).await?;
    identity::hold(connection, queued).await?;
    recount_queue(connection).await?;
    Ok(inserted)
}

/// Counts the queue afresh, after many comparisons changed at once.
pub(crate) async fn recount_queue(connection: &mut AnyConnection) -> Result<()> {
    sqlx::query("DELETE FROM category_queue").execute(&mut *connection).await.doing("count the queue")?;
    sqlx::query(
        "INSERT INTO category_queue(category, fresh, open) \
         SELECT category, CAST(SUM(CASE WHEN state = 'fresh' THEN 1 ELSE 0 END) AS BIGINT), \
                CAST(SUM(CASE WHEN state = 'open' THEN 1 ELSE 0 END) AS BIGINT) \
         FROM comparison GROUP BY category",
    )
    .execute(connection)
    .await
    .doing("count the queue")
    .map(|_| ())
}

pub(crate) async fn prompt(connection: &mut AnyConnection, id: &str) -> Result<Prompt> {
    let row = sqlx::query("SELECT * FROM prompt WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(connection)
        .await
        .doing("find a prompt")?;
    prompt_from(&row.ok_or_else(|| StoreError::not_found("prompt", id))?)
}

pub(crate) async fn response(connection: &mut AnyConnection, id: &str) -> Result<Response> {
    let row = sqlx::query("SELECT * FROM response WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(connection)
        .await
        .doing("find a response")?;
    response_from(&row.ok_or_else(|| StoreError::not_found("response", id))?)
}

pub(crate) async fn comparison(connection: &mut AnyConnection, id: &str) -> Result<Comparison> {
    let row = sqlx::query("SELECT * FROM comparison WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(connection)
        .await
        .doing("find a comparison")?;
    comparison_from(&row.ok_or_else(|| StoreError::not_found("comparison", id))?)
}

pub(crate) fn prompt_from(row: &AnyRow) -> Result<Prompt> {
    Ok(Prompt {
        id: row.text("id")?,
        content: row.json("content")?,
        category: row.text("category")?,
        origin: row.text("origin")?,
        part: Part::parse(&row.text("part")?)?,
    })
}

pub(crate) fn response_from(row: &AnyRow) -> Result<Response> {
    Ok(Response {
        id: row.text("id")?,
        prompt_id: row.text("prompt_id")?,
        content: row.json("content")?,
        model: row.text("model")?,
        model_hash: row.text_or_null("model_hash")?,
        sampler: row.text_or_null("sampler")?,
        origin: row.text("origin")?,
    })
}

pub(crate) fn comparison_from(row: &AnyRow) -> Result<Comparison> {
    Ok(Comparison {
        id: row.text("id")?,
        prompt_id: row.text("prompt_id")?,
        response_a: row.text("response_a")?,
        response_b: row.text("response_b")?,
        category: row.text("category")?,
        wanted: row.int("wanted")?,
        served: row.int("served")?,
        state: row.text("state")?,
        score: row.real_or_null("score")?,
    })
}
