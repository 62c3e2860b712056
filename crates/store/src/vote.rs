//! Votes: append-only, each chained to the one before.
//!
//! A vote is never changed. Another one by the same annotator *supersedes* it: a change of mind carries a new answer, an undo the answer
//! `withdrawn`. The view `effective_vote` holds the votes that nothing supersedes. A vote's number is its place among all votes, without gaps, and
//!
//! ```text
//! chain_n = BLAKE3("polity vote 1", chain_{n-1}, every column of vote n in the order of VoteRecord::parts)
//! ```
//!
//! so one changed, missing or added vote breaks the chain at its number. [`Store::seal_votes`] puts the last chain hash into the
//! ledger; freezing does so too.
//!
//! Not here: handing comparisons out (`assign`), counting (`polity-stats`).

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use crate::account::AnnotatorKind;
use crate::answer::Answer;
use crate::assign::{self, Assignment, Kind};
use crate::db::{Meter, Store};
use crate::error::{Doing, Result, StoreError};
use crate::id::hash_parts;
use crate::ledger;
use crate::project::{self, to_json};
use crate::sql::Columns;

/// The chain hash before the first vote.
pub const CHAIN_START: &str = ledger::GENESIS;

/// Longest reason, in bytes.
pub const REASON_BYTES_MAX: usize = 10_000;

/// An answer to an assignment, as the page sends it.
#[derive(Clone, Debug, PartialEq)]
pub struct NewVote {
    /// Who answers.
    pub annotator_id: String,
    /// What is answered.
    pub assignment_id: i64,
    /// Which is better, all in all; by the sides shown.
    pub overall: Answer,
    /// The same by axis; keys are the rubric's.
    pub axes: BTreeMap<String, Answer>,
    /// Why, in the annotator's words; may be empty.
    pub reason: String,
    /// When the page was shown.
    pub shown_ms: Option<i64>,
    /// Time on task, as the page measured it.
    pub work_ms: Option<i64>,
}

/// A stored vote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VoteRecord {
    /// Its number among all votes, from 1.
    pub seq: i64,
    /// What was compared.
    pub comparison_id: String,
    /// By whom.
    pub annotator_id: String,
    /// Work, calibration or repeat.
    pub kind: Kind,
    /// The response that was shown on the left; empty for an imported vote whose file does not say. Then the answers are in the canonical
    /// order (left = response `a`).
    pub left_response: String,
    /// The answer, by the sides shown.
    pub overall: Answer,
    /// By axis, by the sides shown.
    pub axes: BTreeMap<String, Answer>,
    /// Why.
    pub reason: String,
    /// The rubric it was given under; 0 for an imported vote.
    pub rubric_version: i64,
    /// When the page was shown.
    pub shown_ms: Option<i64>,
    /// When the answer came.
    pub answered_ms: Option<i64>,
    /// Time on task.
    pub work_ms: Option<i64>,
    /// Whether a machine gave it.
    pub machine: bool,
    /// How the comparison was chosen: `random` or `score`; none for an imported vote.
    pub chosen_by: Option<String>,
    /// With which probability, among those of its category.
    pub propensity: Option<f64>,
    /// The assignment it answers.
    pub assignment_id: Option<i64>,
    /// The vote it supersedes.
    pub supersedes: Option<i64>,
    /// `page`, or where it was imported from.
    pub origin: String,
    /// When it was stored.
    pub recorded_ms: i64,
    /// The chain hash after it.
    pub chain: String,
}

impl VoteRecord {
    /// What [`VoteRecord::chain`] must be after `prev`.
    pub fn computed_chain(&self, prev: &str) -> String {
        let int = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
        let parts = [
            prev.to_owned(),
            self.seq.to_string(),
            self.comparison_id.clone(),
            self.annotator_id.clone(),
            self.kind.name().to_owned(),
            self.left_response.clone(),
            self.overall.to_string(),
            to_json(&self.axes),
            self.reason.clone(),
            self.rubric_version.to_string(),
            int(self.shown_ms),
            int(self.answered_ms),
            int(self.work_ms),
            self.machine.to_string(),
            self.chosen_by.clone().unwrap_or_default(),
            // Rust prints the shortest digits that read back as the same number.
            self.propensity.map(|value| format!("{value:?}")).unwrap_or_default(),
            int(self.assignment_id),
            int(self.supersedes),
            self.origin.clone(),
            self.recorded_ms.to_string(),
        ];
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        hash_parts("polity vote 1", &parts)
    }

    pub(crate) fn from_row(row: &AnyRow) -> Result<VoteRecord> {
        Ok(VoteRecord {
            seq: row.int("seq")?,
            comparison_id: row.text("comparison_id")?,
            annotator_id: row.text("annotator_id")?,
            kind: Kind::parse(&row.text("kind")?)?,
            left_response: row.text("left_response")?,
            overall: row.text("overall")?.parse()?,
            axes: row.json("axes")?,
            reason: row.text("reason")?,
            rubric_version: row.int("rubric_version")?,
            shown_ms: row.int_or_null("shown_ms")?,
            answered_ms: row.int_or_null("answered_ms")?,
            work_ms: row.int_or_null("work_ms")?,
            machine: row.yes("machine")?,
            chosen_by: row.text_or_null("chosen_by")?,
            propensity: row.real_or_null("propensity")?,
            assignment_id: row.int_or_null("assignment_id")?,
            supersedes: row.int_or_null("supersedes")?,
            origin: row.text("origin")?,
            recorded_ms: row.int("recorded_ms")?,
            chain: row.text("chain")?,
        })
    }
}

/// A vote as statistics want it: effective, in the canonical order (left = response `a`).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    /// The vote's number.
    pub seq: i64,
    /// What was compared.
    pub comparison_id: String,
    /// Its prompt.
    pub prompt_id: String,
    /// Its category.
    pub category: String,
    /// By whom.
    pub annotator_id: String,
    /// Work, calibration or repeat.
    pub kind: Kind,
    /// The model behind response `a`.
    pub model_a: String,
    /// The model behind response `b`.
    pub model_b: String,
    /// Whether `a` was shown on the left; unknown for many imported votes.
    pub a_was_left: Option<bool>,
    /// The answer, in the canonical order.
    pub overall: Answer,
    /// The answers by axis, in the canonical order.
    pub axes: BTreeMap<String, Answer>,
    /// The rubric it was given under.
    pub rubric_version: i64,
    /// When the answer came.
    pub answered_ms: Option<i64>,
    /// Time on task.
    pub work_ms: Option<i64>,
    /// Whether a machine gave it.
    pub machine: bool,
    /// With which probability the comparison was chosen, among those of its category.
    pub propensity: Option<f64>,
}

/// Which judgements are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JudgementFilter {
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only people's (`false`) or machines' (`true`).
    pub machine: Option<bool>,
    /// Only this annotator's.
    pub annotator_id: Option<String>,
    /// Only this category.
    pub category: Option<String>,
    /// Only under this rubric version.
    pub rubric_version: Option<i64>,
}

/// What a vote led to.
#[derive(Clone, Debug, PartialEq)]
pub struct Voted {
    /// The vote's number.
    pub seq: i64,
    /// For a calibration vote: whether it was right, and why.
    pub feedback: Option<Feedback>,
}

/// What an annotator is told after a known comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Feedback {
    /// Whether the side (or tie) was right; the strength is not marked.
    pub right: bool,
    /// The known answer, by the sides shown.
    pub expected: Answer,
    /// Why it is so.
    pub explanation: String,
}

impl Store {
    /// Stores a vote. `Ok` means that it is on the disk. Sending the same answer twice stores it once; another answer to the same assignment
    /// supersedes the first. [`StoreError::LeaseLost`] if the lease ran out and others have answered in the meantime.
    pub async fn vote(&self, vote: NewVote, now_ms: i64) -> Result<Voted> {
        self.write(move |connection| Box::pin(async move { submit(connection, vote, now_ms).await })).await
    }

    /// Takes an annotator's last vote back, by a vote that supersedes it, and hands the same comparison out again.
    ///
    /// Not for a calibration vote, whose answer has been shown.
    pub async fn undo(&self, annotator_id: &str, now_ms: i64) -> Result<Assignment> {
        let annotator = annotator_id.to_owned();
        self.write(move |connection| Box::pin(async move { undo(connection, &annotator, now_ms).await }))
            .await
    }

    /// All votes on a comparison, superseded ones too, in order.
    pub async fn votes_on(&self, comparison_id: &str) -> Result<Vec<VoteRecord>> {
        let id = comparison_id.to_owned();
        self.votes_where("SELECT * FROM vote WHERE comparison_id = $1 ORDER BY seq LIMIT $2", id, i64::MAX)
            .await
    }

    /// An annotator's last votes, superseded ones too, newest first.
    pub async fn votes_by(&self, annotator_id: &str, limit: i64) -> Result<Vec<VoteRecord>> {
        let id = annotator_id.to_owned();
        self.votes_where("SELECT * FROM vote WHERE annotator_id = $1 ORDER BY seq DESC LIMIT $2", id, limit)
            .await
    }

    async fn votes_where(&self, sql: &'static str, id: String, limit: i64) -> Result<Vec<VoteRecord>> {
        self.read(move |connection| {
            Box::pin(async move {
                sqlx::query(sql)
                    .bind(id)
                    .bind(limit)
                    .fetch_all(connection)
                    .await
                    .doing("read votes")?
                    .iter()
                    .map(VoteRecord::from_row)
                    .collect()
            })
        })
        .await
    }

    /// Effective votes in the canonical order, skips and flags too (they are no judgement; [`Answer::grade`] says none), by number.
    pub async fn judgements(&self, filter: JudgementFilter) -> Result<Vec<Judgement>> {
        let meter = self.meter();
        self.read(move |connection| Box::pin(async move { judgements(connection, filter, &meter).await }))
            .await
    }

    /// Puts the votes since the last seal into the ledger; none if there are none. Returns the number of the last vote.
    pub async fn seal_votes(&self, actor: &str, now_ms: i64) -> Result<Option<i64>> {
        let actor = actor.to_owned();
        self.write(move |connection| Box::pin(async move { seal(connection, &actor, now_ms).await })).await
    }
}

async fn judgements(
    connection: &mut AnyConnection,
    filter: JudgementFilter,
    meter: &Meter,
) -> Result<Vec<Judgement>> {
    let mut rows = sqlx::query(
        "SELECT v.seq, v.comparison_id, c.prompt_id, c.category, v.annotator_id, v.kind, v.left_response, \
                c.response_a, c.contest, c.a_is_first, v.overall, v.axes, v.rubric_version, v.answered_ms, \
                v.work_ms, v.machine, v.propensity \
         FROM effective_vote v JOIN comparison c ON c.id = v.comparison_id \
         WHERE ($1 IS NULL OR v.kind = $1) AND ($2 IS NULL OR v.machine = $2) \
           AND ($3 IS NULL OR v.annotator_id = $3) AND ($4 IS NULL OR c.category = $4) \
           AND ($5 IS NULL OR v.rubric_version = $5) \
         ORDER BY v.seq",
    )
    .bind(filter.kind.map(|kind| kind.name().to_owned()))
    .bind(filter.machine.map(i64::from))
    .bind(filter.annotator_id)
    .bind(filter.category)
    .bind(filter.rubric_version)
    .fetch(connection);
    let mut contests = BTreeMap::new();
    let mut judgements = Vec::new();
    while let Some(row) = rows.try_next().await.doing("read judgements")? {
        meter.count();
        let (left, a) = (row.text("left_response")?, row.text("response_a")?);
        let a_was_left = (!left.is_empty()).then_some(left == a);
        let turned = |answer: Answer| if a_was_left == Some(false) { answer.swapped() } else { answer };
        let contest = row.text("contest")?;
        let [first, second] = match contests.get(&contest) {
            Some(models) => models,
            None => {
                let models: [String; 2] = row.json("contest")?;
                contests.entry(contest).or_insert(models)
            }
        };
        let (model_a, model_b) = if row.yes("a_is_first")? { (first, second) } else { (second, first) };
        let axes: BTreeMap<String, Answer> = row.json("axes")?;
        judgements.push(Judgement {
            seq: row.int("seq")?,
            comparison_id: row.text("comparison_id")?,
            prompt_id: row.text("prompt_id")?,
            category: row.text("category")?,
            annotator_id: row.text("annotator_id")?,
            kind: Kind::parse(&row.text("kind")?)?,
            model_a: model_a.clone(),
            model_b: model_b.clone(),
            a_was_left,
            overall: turned(row.text("overall")?.parse()?),
            axes: axes.into_iter().map(|(key, answer)| (key, turned(answer))).collect(),
            rubric_version: row.int("rubric_version")?,
            answered_ms: row.int_or_null("answered_ms")?,
            work_ms: row.int_or_null("work_ms")?,
            machine: row.yes("machine")?,
            propensity: row.real_or_null("propensity")?,
        });
    }
    Ok(judgements)
}

async fn submit(connection: &mut AnyConnection, vote: NewVote, now_ms: i64) -> Result<Voted> {
    check_vote(connection, &vote).await?;
    let assignment = assign::assignment(connection, vote.assignment_id).await?;
    if assignment.annotator_id != vote.annotator_id {
        // Someone else's assignment is as good as none: the answer must not tell which numbers exist.
        return Err(StoreError::not_found("assignment", vote.assignment_id.to_string()));
    }
    let earlier = last_vote_on(connection, assignment.id).await?;
    if let Some(earlier) = &earlier
        && earlier.overall == vote.overall
        && earlier.axes == vote.axes
        && earlier.reason == vote.reason
    {
        let feedback = feedback(connection, earlier).await?;
        return Ok(Voted { seq: earlier.seq, feedback });
    }
    if assignment.kind == Kind::Calibration
        && earlier.as_ref().is_some_and(|earlier| earlier.overall != Answer::Withdrawn)
    {
        return Err(StoreError::refused(
            "a second answer to a known comparison",
            "its answer has been shown",
        ));
    }
    let counted = assign::counts(&assignment, earlier.as_ref().map(|vote| vote.overall));
    assign::answered(connection, &assignment, counted, vote.overall, now_ms).await?;

    let provenance = assign::provenance(connection, &assignment).await?;
    let record = VoteRecord {
        seq: 0,
        comparison_id: assignment.comparison_id.clone(),
        annotator_id: vote.annotator_id,
        kind: assignment.kind,
        left_response: assignment.left_response.clone(),
        overall: vote.overall,
        axes: vote.axes,
        reason: vote.reason,
        rubric_version: assignment.rubric_version,
        shown_ms: vote.shown_ms,
        answered_ms: Some(now_ms),
        work_ms: vote.work_ms,
        machine: provenance.annotator != AnnotatorKind::Human,
        chosen_by: provenance.chosen_by,
        propensity: provenance.propensity,
        assignment_id: Some(assignment.id),
        supersedes: earlier.map(|earlier| earlier.seq),
        origin: "page".to_owned(),
        recorded_ms: now_ms,
        chain: String::new(),
    };
    let record = append(connection, record).await?;
    if record.overall == Answer::Flag {
        assign::hold_if_flagged(connection, &record.comparison_id).await?;
    }
    let feedback = feedback(connection, &record).await?;
    Ok(Voted { seq: record.seq, feedback })
}

async fn check_vote(connection: &mut AnyConnection, vote: &NewVote) -> Result<()> {
    if vote.overall == Answer::Withdrawn {
        return Err(StoreError::invalid("the answer", "`withdrawn`", "an answer; `undo` takes a vote back"));
    }
    check_reason(&vote.reason)?;
    if vote.work_ms.is_some_and(|work_ms| work_ms < 0) {
        return Err(StoreError::invalid("the time on task", "negative", "milliseconds"));
    }
    if vote.axes.is_empty() {
        return Ok(());
    }
    let assignment = assign::assignment(connection, vote.assignment_id).await?;
    check_axes(connection, assignment.rubric_version, &vote.axes).await
}

pub(crate) fn check_reason(reason: &str) -> Result<()> {
    if reason.len() > REASON_BYTES_MAX {
        let found = format!("{} bytes long", reason.len());
        return Err(StoreError::invalid("the reason", found, format!("at most {REASON_BYTES_MAX}")));
    }
    Ok(())
}

/// Answers by axis must be on the rubric's axes, and judgements or skips.
pub(crate) async fn check_axes(
    connection: &mut AnyConnection,
    rubric_version: i64,
    axes: &BTreeMap<String, Answer>,
) -> Result<()> {
    let rubric: crate::rubric::Rubric = sqlx::query("SELECT content FROM rubric WHERE version = $1")
        .bind(rubric_version)
        .fetch_optional(connection)
        .await
        .doing("read the rubric")?
        .ok_or_else(|| StoreError::not_found("rubric version", rubric_version.to_string()))?
        .json("content")?;
    for (key, answer) in axes {
        if !rubric.axes.iter().any(|axis| axis.key == *key) {
            let keys: Vec<&str> = rubric.axes.iter().map(|axis| axis.key.as_str()).collect();
            return Err(StoreError::invalid("an axis", format!("`{key}`"), keys.join(", ")));
        }
        if !answer.is_judgement() && *answer != Answer::Skip {
            return Err(StoreError::invalid(
                format!("the answer on `{key}`"),
                format!("`{answer}`"),
                "a judgement",
            ));
        }
    }
    Ok(())
}

async fn undo(connection: &mut AnyConnection, annotator_id: &str, now_ms: i64) -> Result<Assignment> {
    let row = sqlx::query(
        "SELECT * FROM effective_vote WHERE annotator_id = $1 AND assignment_id IS NOT NULL ORDER BY seq DESC LIMIT 1",
    )
    .bind(annotator_id.to_owned())
    .fetch_optional(&mut *connection)
    .await
    .doing("find the last vote")?;
    let last = match row {
        Some(row) => VoteRecord::from_row(&row)?,
        None => return Err(StoreError::refused("undo", "there is no vote to take back")),
    };
    if last.kind == Kind::Calibration {
        return Err(StoreError::refused("undo", "the answer to this comparison has been shown"));
    }
    let id = last.assignment_id.expect("the query asks for votes with an assignment");
    let assignment = assign::assignment(connection, id).await?;
    let counted = assign::counts(&assignment, Some(last.overall));
    let policy = project::project(connection).await?.policy;
    assign::reopen(connection, &assignment, counted, now_ms, policy.lease_ms).await?;
    let withdrawn = VoteRecord {
        overall: Answer::Withdrawn,
        axes: BTreeMap::new(),
        reason: String::new(),
        shown_ms: None,
        answered_ms: Some(now_ms),
        work_ms: None,
        supersedes: Some(last.seq),
        recorded_ms: now_ms,
        ..last
    };
    append(connection, withdrawn).await?;
    assign::assignment(connection, id).await
}

/// The last vote on an assignment: the one that nothing supersedes, be it a withdrawal.
async fn last_vote_on(connection: &mut AnyConnection, assignment_id: i64) -> Result<Option<VoteRecord>> {
    // By comparison and annotator too, because those have indexes.
    let row = sqlx::query(
        "SELECT v.* FROM vote v JOIN assignment a ON a.comparison_id = v.comparison_id AND v.assignment_id = a.id \
         WHERE a.id = $1 ORDER BY v.seq DESC LIMIT 1",
    )
    .bind(assignment_id)
    .fetch_optional(connection)
    .await
    .doing("find an earlier vote")?;
    row.as_ref().map(VoteRecord::from_row).transpose()
}

async fn feedback(connection: &mut AnyConnection, vote: &VoteRecord) -> Result<Option<Feedback>> {
    if vote.kind != Kind::Calibration {
        return Ok(None);
    }
    let row = sqlx::query(
        "SELECT k.expected, k.explanation, c.response_a FROM calibration k JOIN comparison c ON c.id = k.comparison_id \
         WHERE k.comparison_id = $1",
    )
    .bind(vote.comparison_id.clone())
    .fetch_optional(connection)
    .await
    .doing("read a known answer")?;
    let Some(row) = row else { return Ok(None) };
    let expected: Answer = row.text("expected")?.parse()?;
    let expected = if row.text("response_a")? == vote.left_response { expected } else { expected.swapped() };
    Ok(Some(Feedback {
        right: agrees(vote.overall, expected),
        expected,
        explanation: row.text("explanation")?,
    }))
}

/// Whether an answer names the same winner as the known one.
pub(crate) fn agrees(answer: Answer, expected: Answer) -> bool {
    match (answer.grade(), expected.grade()) {
        (Some(answer), Some(expected)) => answer.signum() == expected.signum(),
        _ => false,
    }
}

/// The columns of a vote, in the order of the table.
pub(crate) const VOTE_COLUMNS: [&str; 20] = [
    "seq",
    "comparison_id",
    "annotator_id",
    "kind",
    "left_response",
    "overall",
    "axes",
    "reason",
    "rubric_version",
    "shown_ms",
    "answered_ms",
    "work_ms",
    "machine",
    "chosen_by",
    "propensity",
    "assignment_id",
    "supersedes",
    "origin",
    "recorded_ms",
    "chain",
];

/// The number and chain hash of the last vote.
pub(crate) async fn chain_head(connection: &mut AnyConnection) -> Result<(i64, String)> {
    let row = sqlx::query("SELECT seq, chain FROM vote ORDER BY seq DESC LIMIT 1")
        .fetch_optional(connection)
        .await
        .doing("read the last vote")?;
    match row {
        Some(row) => Ok((row.int("seq")?, row.text("chain")?)),
        None => Ok((0, CHAIN_START.to_owned())),
    }
}

/// Appends many votes: gives each its number and its chain hash.
pub(crate) async fn append_many(
    connection: &mut AnyConnection,
    votes: impl IntoIterator<Item = VoteRecord>,
    meter: &Meter,
) -> Result<u64> {
    let (mut seq, mut chain) = chain_head(connection).await?;
    let rows = votes.into_iter().inspect(|_| meter.count()).map(|mut vote| {
        seq += 1;
        vote.seq = seq;
        vote.chain = vote.computed_chain(&chain);
        chain.clone_from(&vote.chain);
        cells(vote)
    });
    crate::sql::insert_many(connection, "vote", &VOTE_COLUMNS, rows).await
}

pub(crate) async fn append(connection: &mut AnyConnection, mut vote: VoteRecord) -> Result<VoteRecord> {
    let (seq, chain) = chain_head(connection).await?;
    vote.seq = seq + 1;
    vote.chain = vote.computed_chain(&chain);
    let inserted = crate::sql::insert_many(connection, "vote", &VOTE_COLUMNS, [cells(vote.clone())]).await?;
    match inserted {
        1 => Ok(vote),
        _ => Err(StoreError::refused("this vote", "the vote it replaces has been replaced already")),
    }
}

fn cells(vote: VoteRecord) -> Vec<crate::sql::Cell> {
    use crate::sql::Cell::{Int, IntOrNull, RealOrNull, Text, TextOrNull};
    vec![
        Int(vote.seq),
        Text(vote.comparison_id),
        Text(vote.annotator_id),
        Text(vote.kind.name().to_owned()),
        Text(vote.left_response),
        Text(vote.overall.to_string()),
        Text(to_json(&vote.axes)),
        Text(vote.reason),
        Int(vote.rubric_version),
        IntOrNull(vote.shown_ms),
        IntOrNull(vote.answered_ms),
        IntOrNull(vote.work_ms),
        Int(i64::from(vote.machine)),
        TextOrNull(vote.chosen_by),
        RealOrNull(vote.propensity),
        IntOrNull(vote.assignment_id),
        IntOrNull(vote.supersedes),
        Text(vote.origin),
        Int(vote.recorded_ms),
        Text(vote.chain),
    ]
}

pub(crate) async fn seal(connection: &mut AnyConnection, actor: &str, now_ms: i64) -> Result<Option<i64>> {
    let (last, chain) = chain_head(connection).await?;
    let sealed = sqlx::query("SELECT body FROM ledger WHERE kind = 'votes' ORDER BY seq DESC LIMIT 1")
        .fetch_optional(&mut *connection)
        .await
        .doing("read the ledger")?;
    let sealed: i64 = match sealed {
        Some(row) => row.json::<serde_json::Value>("body")?["to"].as_i64().unwrap_or(0),
        None => 0,
    };
    if last == sealed {
        return Ok(None);
    }
    let body = json!({"from": sealed + 1, "to": last, "chain": chain});
    ledger::append(connection, "votes", actor, &body, now_ms).await?;
    Ok(Some(last))
}
