//! Who is shown what, and when.
//!
//! [`Store::next`] hands out a *lease* in one transaction: it frees leases that ran out, looks for a comparison with `served < wanted` that
//! this annotator has not had, and raises `served` with the lease. Since all changes go through one writer, `served` (judgements
//! plus live leases) never exceeds `wanted`, whatever the number of annotators. A skip or a flag gives its place back. An annotator who asks
//! again while holding a lease gets the same comparison, so a reloaded page loses nothing.
//!
//! **Which.** The category that this annotator has been shown least; in it, first a comparison that others have begun (so that overlaps fill
//! and agreement is known early), else a fresh one. A fresh one is chosen evenly at random, or, where scores are set and with
//! probability `1 - random_share`, evenly among the `score_pool` highest scores. The probability of that choice (given the category) is
//! kept with the comparison and stamped on each of its votes:
//!
//! ```text
//! propensity = random_share / fresh + (1 - random_share) * [in the pool] / pool        (1 / fresh where nothing has a score)
//! ```
//!
//! **Sides.** For each annotator and each contest (a pair of models) it is counted how often the first model was on the left. A count that is
//! two out is corrected; otherwise the comparison's own count is, then the annotator's; otherwise a coin decides. So no annotator's
//! count ever leaves -2..2. The side shown is recorded with the assignment and the vote.
//!
//! **Calibration and repeats** are mixed in unannounced, by the policy's shares; a repeat is an own earlier vote's comparison with its sides
//! swapped. Neither counts towards `wanted`.
//!
//! Not here: what the answers mean (`vote`), who is qualified by what (`calibration`).

use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::AnyConnection;
use sqlx::any::AnyRow;

use polity_stats::Stream;

use crate::account::AnnotatorKind;
use crate::answer::Answer;
use crate::calibration::{self, Qualification};
use crate::db::Store;
use crate::error::{Doing, Result, StoreError};
use crate::ledger;
use crate::project::{self, Policy};
use crate::sql::Columns;

/// Comparisons that others have begun are looked through this far from a random place before a fresh one is taken, so
/// that the time does not grow with what the annotator has already had.
const BEGUN_LOOKED_AT: i64 = 256;

/// Why an annotator is shown a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// For its own sake.
    Work,
    /// Because its answer is known.
    Calibration,
    /// To see whether the annotator answers the same again.
    Repeat,
}

impl Kind {
    /// As stored.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Work => "work",
            Kind::Calibration => "calibration",
            Kind::Repeat => "repeat",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Kind> {
        [Kind::Work, Kind::Calibration, Kind::Repeat]
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| StoreError::Damaged { place: "a vote's kind".into(), found: format!("`{name}`") })
    }
}

/// A comparison in someone's hands. What kind it is must not be shown to them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assignment {
    /// Its number.
    pub id: i64,
    /// Whose.
    pub annotator_id: String,
    /// What to compare.
    pub comparison_id: String,
    /// Why.
    pub kind: Kind,
    /// The response to show on the left.
    pub left_response: String,
    /// The response to show on the right.
    pub right_response: String,
    /// The rubric to judge by.
    pub rubric_version: i64,
    /// `live`, `voted`, `expired` or `released`.
    pub state: String,
    /// Since when.
    pub served_ms: i64,
    /// Until when it is reserved.
    pub expires_ms: i64,
}

/// What there is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// This comparison.
    Assignment(Assignment),
    /// Nothing for this annotator now.
    Nothing(Nothing),
}

/// Why there is nothing to do.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Nothing {
    /// Too many known comparisons were answered wrong.
    NotQualified {
        /// Answered under this rubric version.
        answered: i64,
        /// Right ones among them.
        right: i64,
    },
    /// Everything left is in others' hands or has been answered by this annotator; `open` comparisons still want judgements.
    NothingLeft {
        /// Fresh and open comparisons in the project.
        open: i64,
        /// When the first lease of others runs out, if there is one.
        next_lease_ends_ms: Option<i64>,
    },
}

impl Store {
    /// The next comparison for an annotator; asking again while one is in hand returns the same, with its time renewed.
    pub async fn next(&self, annotator_id: &str, now_ms: i64) -> Result<Next> {
        self.next_seeded(annotator_id, self.random(), now_ms).await
    }

    /// The same with the caller's randomness: for simulated annotators, whose work is to repeat.
    pub async fn next_seeded(&self, annotator_id: &str, seed: u64, now_ms: i64) -> Result<Next> {
        let annotator = annotator_id.to_owned();
        self.write(move |connection| {
            Box::pin(async move { next(connection, &annotator, seed, now_ms).await })
        })
        .await
    }

    /// Gives a comparison back unanswered.
    pub async fn release(&self, annotator_id: &str, assignment_id: i64) -> Result<()> {
        let annotator = annotator_id.to_owned();
        self.write(move |connection| {
            Box::pin(async move {
                let assignment = assignment(connection, assignment_id).await?;
                if assignment.annotator_id != annotator {
                    return Err(StoreError::not_found("assignment", assignment_id.to_string()));
                }
                if assignment.state == "live" {
                    end_lease(connection, &assignment, "released").await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// An assignment of this annotator.
    pub async fn assignment(&self, annotator_id: &str, assignment_id: i64) -> Result<Assignment> {
        let annotator = annotator_id.to_owned();
        self.read(move |connection| {
            Box::pin(async move {
                let assignment = assignment(connection, assignment_id).await?;
                match assignment.annotator_id == annotator {
                    true => Ok(assignment),
                    false => Err(StoreError::not_found("assignment", assignment_id.to_string())),
                }
            })
        })
        .await
    }

    /// Frees the leases that have run out; [`Store::next`] does so too. Returns how many.
    pub async fn expire_leases(&self, now_ms: i64) -> Result<usize> {
        self.write(move |connection| {
            Box::pin(async move { expire(connection, now_ms, None).await.map(|(freed, _)| freed) })
        })
        .await
    }

    /// Closes a comparison to annotators, or queues it again (a held one after review, too); an event.
    pub async fn set_queued(
        &self,
        comparison_id: &str,
        queued: bool,
        actor: &str,
        now_ms: i64,
    ) -> Result<()> {
        let (id, actor) = (comparison_id.to_owned(), actor.to_owned());
        self.write(move |connection| {
            Box::pin(async move {
                let counts = counts_of(connection, &id).await?;
                if counts.state == "gold" {
                    return Err(StoreError::refused(
                        format!("queueing comparison {id}"),
                        "it has a known answer; retire it from calibration first",
                    ));
                }
                let state = match (queued, counts.served < counts.wanted) {
                    (false, _) => "closed",
                    (true, true) => "open",
                    (true, false) => "full",
                };
                set_counts(connection, &id, &counts, counts.served, state).await?;
                let body = json!({"comparison": id, "queued": queued});
                ledger::append(connection, "adjudication", &actor, &body, now_ms).await.map(|_| ())
            })
        })
        .await
    }
}

async fn next(connection: &mut AnyConnection, annotator_id: &str, seed: u64, now_ms: i64) -> Result<Next> {
    // Every statement is a round trip that all annotators wait for: what is always needed is read at once.
    let row = sqlx::query(
        "SELECT policy, (SELECT COUNT(*) FROM annotator WHERE id = $1) AS known, \
                (SELECT COALESCE(MAX(version), 0) FROM rubric) AS rubric_version, \
                (SELECT COALESCE(MAX(version), 0) FROM rubric WHERE recalibrate = 1) AS round FROM project",
    )
    .bind(annotator_id.to_owned())
    .fetch_one(&mut *connection)
    .await
    .doing("read the project")?;
    if !row.yes("known")? {
        return Err(StoreError::not_found("annotator", annotator_id));
    }
    let policy: Policy = row.json("policy")?;
    let expires_ms = now_ms.saturating_add(policy.lease_ms);
    if let Some(held) = expire(connection, now_ms, Some(annotator_id)).await?.1 {
        sqlx::query("UPDATE assignment SET expires_ms = $1 WHERE id = $2")
            .bind(expires_ms)
            .bind(held.id)
            .execute(connection)
            .await
            .doing("renew a lease")?;
        return Ok(Next::Assignment(Assignment { expires_ms, ..held }));
    }
    let mut picker = Picker {
        connection,
        annotator_id,
        policy: &policy,
        stream: Stream::new(seed, "next", 0),
        rubric_version: row.int("rubric_version")?,
        now_ms,
        expires_ms,
    };
    let round = row.int("round")?;
    let standing = calibration::standing_for(picker.connection, annotator_id, round, &policy).await?;
    let qualification = standing.qualification(&policy);
    if qualification != Qualification::Passed
        && let Some(given) = picker.calibration(standing.round).await?
    {
        return Ok(Next::Assignment(given));
    }
    if qualification == Qualification::Failed {
        let (answered, right) = (standing.answered, standing.right);
        return Ok(Next::Nothing(Nothing::NotQualified { answered, right }));
    }
    let given = match policy.kind_at(picker.stream.unit()) {
        Kind::Calibration => picker.calibration(standing.round).await?,
        Kind::Repeat => picker.repeat().await?,
        Kind::Work => None,
    };
    if let Some(given) = given {
        return Ok(Next::Assignment(given));
    }
    match picker.work().await? {
        Some(given) => Ok(Next::Assignment(given)),
        None => nothing_left(picker.connection).await.map(Next::Nothing),
    }
}

async fn nothing_left(connection: &mut AnyConnection) -> Result<Nothing> {
    let open = sqlx::query("SELECT CAST(COALESCE(SUM(fresh + open), 0) AS BIGINT) AS n FROM category_queue")
        .fetch_one(&mut *connection)
        .await
        .doing("count what is open")?
        .int("n")?;
    let next_lease_ends_ms =
        sqlx::query("SELECT MIN(expires_ms) AS at_ms FROM assignment WHERE state = 'live'")
            .fetch_one(connection)
            .await
            .doing("look for leases")?
            .int_or_null("at_ms")?;
    Ok(Nothing::NothingLeft { open, next_lease_ends_ms })
}

/// The search for one annotator's next comparison.
struct Picker<'c> {
    connection: &'c mut AnyConnection,
    annotator_id: &'c str,
    policy: &'c Policy,
    stream: Stream,
    rubric_version: i64,
    now_ms: i64,
    expires_ms: i64,
}

impl Picker<'_> {
    async fn work(&mut self) -> Result<Option<Assignment>> {
        let rows = sqlx::query(
            "SELECT q.category, q.fresh, COALESCE(t.served, 0) AS served FROM category_queue q \
             LEFT JOIN category_tally t ON t.category = q.category AND t.annotator_id = $1 \
             WHERE q.fresh + q.open > 0 ORDER BY COALESCE(t.served, 0), q.category",
        )
        .bind(self.annotator_id.to_owned())
        .fetch_all(&mut *self.connection)
        .await
        .doing("look at the queue")?;
        let mut categories = Vec::with_capacity(rows.len());
        for row in &rows {
            // Chance decides between categories that were shown equally often.
            categories.push((
                row.int("served")?,
                self.stream.next_u64(),
                row.text("category")?,
                row.int("fresh")?,
            ));
        }
        categories.sort();
        for (_, _, category, fresh) in categories {
            let found = match self.begun(&category, Some(BEGUN_LOOKED_AT)).await? {
                Some(id) => Some(id),
                None => match self.fresh(&category, fresh).await? {
                    Some(id) => Some(id),
                    None => self.begun(&category, None).await?,
                },
            };
            if let Some(id) = found {
                return self.give_work(&id, &category).await.map(Some);
            }
        }
        Ok(None)
    }

    /// A comparison that others have begun and this annotator has not had, from a random place on.
    async fn begun(&mut self, category: &str, looked_at: Option<i64>) -> Result<Option<String>> {
        let start = (self.stream.next_u64() >> 1) as i64;
        for sql in [
            "SELECT c.id FROM (SELECT id, shuffle FROM comparison WHERE state = 'open' AND category = $1 AND shuffle >= $2 \
                               ORDER BY shuffle LIMIT $3) c \
             WHERE NOT EXISTS (SELECT 1 FROM assignment a WHERE a.comparison_id = c.id AND a.annotator_id = $4 \
                               AND a.kind = 'work' AND a.state IN ('live', 'voted')) \
             ORDER BY c.shuffle LIMIT 1",
            "SELECT c.id FROM (SELECT id, shuffle FROM comparison WHERE state = 'open' AND category = $1 AND shuffle < $2 \
                               ORDER BY shuffle LIMIT $3) c \
             WHERE NOT EXISTS (SELECT 1 FROM assignment a WHERE a.comparison_id = c.id AND a.annotator_id = $4 \
                               AND a.kind = 'work' AND a.state IN ('live', 'voted')) \
             ORDER BY c.shuffle LIMIT 1",
        ] {
            let row = sqlx::query(sql)
                .bind(category.to_owned())
                .bind(start)
                .bind(looked_at.unwrap_or(i64::MAX))
                .bind(self.annotator_id.to_owned())
                .fetch_optional(&mut *self.connection)
                .await
                .doing("look for a begun comparison")?;
            if let Some(row) = row {
                return row.text("id").map(Some);
            }
        }
        Ok(None)
    }

    /// A comparison that nobody has been shown; records how it was chosen.
    async fn fresh(&mut self, category: &str, fresh: i64) -> Result<Option<String>> {
        let pool = sqlx::query(
            "SELECT id FROM comparison WHERE state = 'fresh' AND category = $1 AND score IS NOT NULL \
             ORDER BY score DESC LIMIT $2",
        )
        .bind(category.to_owned())
        .bind(self.policy.score_pool)
        .fetch_all(&mut *self.connection)
        .await
        .doing("look for high scores")?;
        let pool: Vec<String> = pool.iter().map(|row| row.text("id")).collect::<Result<_>>()?;
        let by_score = !pool.is_empty() && self.stream.unit() >= self.policy.random_share;
        let id = match by_score {
            true => Some(pool[self.stream.below(pool.len())].clone()),
            false => self.random_fresh(category).await?,
        };
        let Some(id) = id else { return Ok(None) };
        let random_share = if pool.is_empty() { 1.0 } else { self.policy.random_share };
        let in_pool = if pool.contains(&id) { (1.0 - random_share) / pool.len() as f64 } else { 0.0 };
        sqlx::query("UPDATE comparison SET chosen_by = $1, propensity = $2 WHERE id = $3")
            .bind(if by_score { "score" } else { "random" })
            .bind(random_share / fresh as f64 + in_pool)
            .bind(id.clone())
            .execute(&mut *self.connection)
            .await
            .doing("record the choice")?;
        Ok(Some(id))
    }

    /// Evenly at random: the first in the fixed shuffled order after a random place. The order was drawn without regard to
    /// the comparisons, so over both draws each is as likely as any other.
    async fn random_fresh(&mut self, category: &str) -> Result<Option<String>> {
        let start = (self.stream.next_u64() >> 1) as i64;
        for sql in [
            "SELECT id FROM comparison WHERE state = 'fresh' AND category = $1 AND shuffle >= $2 ORDER BY shuffle LIMIT 1",
            "SELECT id FROM comparison WHERE state = 'fresh' AND category = $1 AND shuffle < $2 ORDER BY shuffle LIMIT 1",
        ] {
            let row = sqlx::query(sql)
                .bind(category.to_owned())
                .bind(start)
                .fetch_optional(&mut *self.connection)
                .await
                .doing("look for a fresh comparison")?;
            if let Some(row) = row {
                return row.text("id").map(Some);
            }
        }
        Ok(None)
    }

    async fn give_work(&mut self, id: &str, category: &str) -> Result<Assignment> {
        let comparison = self.look_at(id).await?;
        let counts = counts_from(&comparison)?;
        let served = counts.served + 1;
        let state = if served >= counts.wanted { "full" } else { "open" };
        set_counts(self.connection, id, &counts, served, state).await?;
        count_served(self.connection, self.annotator_id, category, 1).await?;
        self.give(id, &comparison, Kind::Work, 0, None).await
    }

    /// A known comparison that this annotator has not answered in this round.
    async fn calibration(&mut self, round: i64) -> Result<Option<Assignment>> {
        let left = calibration::unanswered(self.connection, self.annotator_id, round).await?;
        if left.is_empty() {
            return Ok(None);
        }
        let id = left[self.stream.below(left.len())].clone();
        let comparison = self.look_at(&id).await?;
        self.give(&id, &comparison, Kind::Calibration, round, None).await.map(Some)
    }

    /// The annotator's oldest judgement that has not been repeated and lies far enough back, sides swapped.
    async fn repeat(&mut self) -> Result<Option<Assignment>> {
        let row = sqlx::query(
            "SELECT v.comparison_id AS id, v.left_response FROM effective_vote v \
             WHERE v.annotator_id = $1 AND v.kind = 'work' AND v.overall NOT IN ('skip', 'flag') AND v.assignment_id IS NOT NULL \
               AND (SELECT COUNT(*) FROM (SELECT 1 AS one FROM vote w WHERE w.annotator_id = $1 AND w.seq > v.seq LIMIT $2) x) >= $2 \
               AND NOT EXISTS (SELECT 1 FROM assignment a WHERE a.annotator_id = $1 AND a.comparison_id = v.comparison_id \
                               AND a.kind = 'repeat' AND a.state IN ('live', 'voted')) \
             ORDER BY v.seq LIMIT 1",
        )
        .bind(self.annotator_id.to_owned())
        .bind(self.policy.repeat_gap)
        .fetch_optional(&mut *self.connection)
        .await
        .doing("look for a vote to repeat")?;
        match row {
            Some(row) => {
                let (id, left_before) = (row.text("id")?, row.text("left_response")?);
                let comparison = self.look_at(&id).await?;
                self.give(&id, &comparison, Kind::Repeat, 1, Some(&left_before)).await.map(Some)
            }
            None => Ok(None),
        }
    }

    /// A comparison, its place in the queue, and how its sides and this annotator's are balanced.
    async fn look_at(&mut self, id: &str) -> Result<AnyRow> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "SELECT c.category, c.state, c.served, c.wanted, c.response_a, c.response_b, c.contest, c.a_is_first, \
                    COALESCE((SELECT b.first_left FROM side_balance b \
                              WHERE b.annotator_id = $2 AND b.contest = c.contest), 0) AS own_left, \
                    {A_LEFT} AS a_left \
             FROM comparison c WHERE c.id = $1"
        )))
        .bind(id.to_owned())
        .bind(self.annotator_id.to_owned())
        .fetch_one(&mut *self.connection)
        .await
        .doing("read a comparison")
    }

    /// Makes the assignment. `left_before` asks for the other side than that time; otherwise sides are balanced.
    async fn give(
        &mut self,
        id: &str,
        comparison: &AnyRow,
        kind: Kind,
        round: i64,
        left_before: Option<&str>,
    ) -> Result<Assignment> {
        let (a, b) = (comparison.text("response_a")?, comparison.text("response_b")?);
        let a_left = match left_before {
            Some(left_before) => left_before != a,
            None => self.balanced_side(comparison).await?,
        };
        let (left, right) = if a_left { (a, b) } else { (b, a) };
        let number = sqlx::query(
            "INSERT INTO assignment(id, annotator_id, comparison_id, kind, round, left_response, rubric_version, state, served_ms, \
             expires_ms) VALUES ((SELECT COALESCE(MAX(id), 0) + 1 FROM assignment), $1, $2, $3, $4, $5, $6, 'live', $7, $8) \
             RETURNING id",
        )
        .bind(self.annotator_id.to_owned())
        .bind(id.to_owned())
        .bind(kind.name())
        .bind(round)
        .bind(left.clone())
        .bind(self.rubric_version)
        .bind(self.now_ms)
        .bind(self.expires_ms)
        .fetch_one(&mut *self.connection)
        .await
        .doing("hand out a comparison")?
        .int("id")?;
        Ok(Assignment {
            id: number,
            annotator_id: self.annotator_id.to_owned(),
            comparison_id: id.to_owned(),
            kind,
            left_response: left,
            right_response: right,
            rubric_version: self.rubric_version,
            state: "live".to_owned(),
            served_ms: self.now_ms,
            expires_ms: self.expires_ms,
        })
    }

    /// Whether `a` goes on the left.
    async fn balanced_side(&mut self, comparison: &AnyRow) -> Result<bool> {
        let (contest, a_is_first) = (comparison.text("contest")?, comparison.yes("a_is_first")?);
        let (own, a_left) = (comparison.int("own_left")?, comparison.int("a_left")?);
        let comparisons = if a_is_first { a_left } else { -a_left };
        let first_left = first_goes_left(own, comparisons, || self.stream.below(2) == 0);
        let step = if first_left { 1 } else { -1 };
        count_sides(self.connection, self.annotator_id, &contest, step).await?;
        Ok(first_left == a_is_first)
    }
}

/// Whether a contest's first model goes on the left, by how often it was there less the other way round: with this annotator, and on this
/// comparison.
pub(crate) fn first_goes_left(own: i64, comparisons: i64, coin: impl FnOnce() -> bool) -> bool {
    match (own, comparisons) {
        (2.., _) => false,
        (..=-2, _) => true,
        (_, 1..) => false,
        (_, ..=-1) => true,
        (1, 0) => false,
        (-1, 0) => true,
        (_, 0) => coin(),
    }
}

/// How often an annotator was shown a contest with its first on the left, less the other way round.
pub(crate) async fn first_left(
    connection: &mut AnyConnection,
    annotator_id: &str,
    contest: &str,
) -> Result<i64> {
    let row = sqlx::query("SELECT first_left FROM side_balance WHERE annotator_id = $1 AND contest = $2")
        .bind(annotator_id.to_owned())
        .bind(contest.to_owned())
        .fetch_optional(connection)
        .await
        .doing("look at the sides")?;
    row.map_or(Ok(0), |row| row.int("first_left"))
}

pub(crate) async fn count_sides(
    connection: &mut AnyConnection,
    annotator_id: &str,
    contest: &str,
    step: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO side_balance(annotator_id, contest, first_left) VALUES ($1, $2, $3) \
         ON CONFLICT (annotator_id, contest) DO UPDATE SET first_left = side_balance.first_left + $3",
    )
    .bind(annotator_id.to_owned())
    .bind(contest.to_owned())
    .bind(step)
    .execute(connection)
    .await
    .doing("count the sides")
    .map(|_| ())
}

pub(crate) async fn count_served(
    connection: &mut AnyConnection,
    annotator_id: &str,
    category: &str,
    served: i64,
) -> Result<()> {
    sqlx::query(
        "INSERT INTO category_tally(annotator_id, category, served) VALUES ($1, $2, $3) \
         ON CONFLICT (annotator_id, category) DO UPDATE SET served = category_tally.served + $3",
    )
    .bind(annotator_id.to_owned())
    .bind(category.to_owned())
    .bind(served)
    .execute(connection)
    .await
    .doing("count what was served")
    .map(|_| ())
}

/// How often a comparison `c` was shown with `a` on the left, less the other way round.
pub(crate) const A_LEFT: &str = "(SELECT CAST(COALESCE(SUM(CASE WHEN s.left_response = c.response_a THEN 1 ELSE -1 END), 0) AS BIGINT) \
     FROM assignment s WHERE s.comparison_id = c.id AND s.state IN ('live', 'voted'))";

const ASSIGNMENT: &str = "SELECT a.*, CASE WHEN a.left_response = c.response_a THEN c.response_b ELSE c.response_a END AS right_response \
     FROM assignment a JOIN comparison c ON c.id = a.comparison_id ";

fn assignment_from(row: &AnyRow) -> Result<Assignment> {
    Ok(Assignment {
        id: row.int("id")?,
        annotator_id: row.text("annotator_id")?,
        comparison_id: row.text("comparison_id")?,
        kind: Kind::parse(&row.text("kind")?)?,
        left_response: row.text("left_response")?,
        right_response: row.text("right_response")?,
        rubric_version: row.int("rubric_version")?,
        state: row.text("state")?,
        served_ms: row.int("served_ms")?,
        expires_ms: row.int("expires_ms")?,
    })
}

pub(crate) async fn assignment(connection: &mut AnyConnection, id: i64) -> Result<Assignment> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{ASSIGNMENT} WHERE a.id = $1")))
        .bind(id)
        .fetch_optional(connection)
        .await
        .doing("find an assignment")?;
    assignment_from(&row.ok_or_else(|| StoreError::not_found("assignment", id.to_string()))?)
}

async fn live(connection: &mut AnyConnection, annotator_id: &str) -> Result<Option<Assignment>> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{ASSIGNMENT} WHERE a.annotator_id = $1 AND a.state = 'live' ORDER BY a.expires_ms DESC, a.id DESC LIMIT 1"
    )))
    .bind(annotator_id.to_owned())
    .fetch_optional(connection)
    .await
    .doing("look for a lease")?;
    row.as_ref().map(assignment_from).transpose()
}

/// Whether an assignment holds one of its comparison's places: a live lease does, or a judgement as the last answer.
pub(crate) fn counts(assignment: &Assignment, last_answer: Option<Answer>) -> bool {
    assignment.kind == Kind::Work
        && match assignment.state.as_str() {
            "live" => true,
            "voted" => last_answer.is_some_and(Answer::is_judgement),
            _ => false,
        }
}

/// Books an answer: the assignment is voted, and holds a place if the answer is a judgement. `counted` is whether it holds one now.
pub(crate) async fn answered(
    connection: &mut AnyConnection,
    assignment: &Assignment,
    counted: bool,
    answer: Answer,
    now_ms: i64,
) -> Result<()> {
    if matches!(assignment.state.as_str(), "expired" | "released") {
        // The comparison may have gone to the same annotator again, under another number.
        let again = sqlx::query(
            "SELECT COUNT(*) AS n FROM assignment WHERE annotator_id = $1 AND comparison_id = $2 AND kind = $3 \
             AND state IN ('live', 'voted') AND id <> $4",
        )
        .bind(assignment.annotator_id.clone())
        .bind(assignment.comparison_id.clone())
        .bind(assignment.kind.name())
        .bind(assignment.id)
        .fetch_one(&mut *connection)
        .await
        .doing("look for a later lease")?
        .int("n")?;
        if again > 0 {
            return Err(StoreError::LeaseLost);
        }
    }
    if assignment.kind == Kind::Work {
        let place = answer.is_judgement();
        take_place(connection, &assignment.comparison_id, counted, place).await?;
    }
    set_assignment(connection, assignment.id, "voted", now_ms.max(assignment.served_ms)).await
}

/// Hands an answered assignment out again, and gives back whatever else the annotator holds.
pub(crate) async fn reopen(
    connection: &mut AnyConnection,
    assignment: &Assignment,
    counted: bool,
    now_ms: i64,
    lease_ms: i64,
) -> Result<()> {
    if let Some(held) = live(connection, &assignment.annotator_id).await? {
        end_lease(connection, &held, "released").await?;
    }
    if assignment.kind == Kind::Work {
        take_place(connection, &assignment.comparison_id, counted, true).await?;
    }
    set_assignment(connection, assignment.id, "live", now_ms.saturating_add(lease_ms)).await
}

/// Takes a place at a comparison or gives it back, from whether one is held to whether one is wanted.
async fn take_place(connection: &mut AnyConnection, id: &str, held: bool, wanted: bool) -> Result<()> {
    if held == wanted {
        return Ok(());
    }
    let counts = counts_of(connection, id).await?;
    let served = match wanted {
        true if counts.served >= counts.wanted => return Err(StoreError::LeaseLost),
        true => counts.served + 1,
        false => counts.served - 1,
    };
    let state = match counts.state.as_str() {
        "fresh" | "open" | "full" if served >= counts.wanted => "full",
        "fresh" | "open" | "full" => "open",
        other => other,
    };
    set_counts(connection, id, &counts, served, state).await
}

async fn set_assignment(
    connection: &mut AnyConnection,
    id: i64,
    state: &'static str,
    expires_ms: i64,
) -> Result<()> {
    sqlx::query("UPDATE assignment SET state = $1, expires_ms = $2 WHERE id = $3")
        .bind(state)
        .bind(expires_ms)
        .bind(id)
        .execute(connection)
        .await
        .doing("book an answer")
        .map(|_| ())
}

// Leases are read in the order of `assignment_live`, which holds the live ones alone; by number, SQLite goes through all there ever were.

/// Frees the leases that have run out and says how many; and the lease that `holder` has.
async fn expire(
    connection: &mut AnyConnection,
    now_ms: i64,
    holder: Option<&str>,
) -> Result<(usize, Option<Assignment>)> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "{ASSIGNMENT} WHERE a.state = 'live' AND (a.expires_ms <= $1 OR a.annotator_id = $2) ORDER BY a.expires_ms, a.id"
    )))
    .bind(now_ms)
    .bind(holder.map(str::to_owned))
    .fetch_all(&mut *connection)
    .await
    .doing("look for leases")?;
    let (mut freed, mut held) = (0, None);
    for row in &rows {
        let assignment = assignment_from(row)?;
        if assignment.expires_ms <= now_ms {
            end_lease(connection, &assignment, "expired").await?;
            freed += 1;
        } else {
            held = Some(assignment);
        }
    }
    Ok((freed, held))
}

/// Ends the lease that an annotator holds, if there is one.
pub(crate) async fn give_back(connection: &mut AnyConnection, annotator_id: &str, now_ms: i64) -> Result<()> {
    match expire(connection, now_ms, Some(annotator_id)).await?.1 {
        Some(held) => end_lease(connection, &held, "released").await,
        None => Ok(()),
    }
}

async fn end_lease(
    connection: &mut AnyConnection,
    assignment: &Assignment,
    state: &'static str,
) -> Result<()> {
    set_assignment(connection, assignment.id, state, assignment.expires_ms).await?;
    match assignment.kind {
        Kind::Work => take_place(connection, &assignment.comparison_id, true, false).await,
        Kind::Calibration | Kind::Repeat => Ok(()),
    }
}

/// What the queue knows of a comparison.
pub(crate) struct Counts {
    category: String,
    state: String,
    served: i64,
    wanted: i64,
}

pub(crate) async fn counts_of(connection: &mut AnyConnection, id: &str) -> Result<Counts> {
    let row = sqlx::query("SELECT category, state, served, wanted FROM comparison WHERE id = $1")
        .bind(id.to_owned())
        .fetch_optional(connection)
        .await
        .doing("read a comparison")?
        .ok_or_else(|| StoreError::not_found("comparison", id))?;
    counts_from(&row)
}

fn counts_from(row: &AnyRow) -> Result<Counts> {
    Ok(Counts {
        category: row.text("category")?,
        state: row.text("state")?,
        served: row.int("served")?,
        wanted: row.int("wanted")?,
    })
}

/// Changes a comparison's place in the queue and the queue's counts with it.
pub(crate) async fn set_counts(
    connection: &mut AnyConnection,
    id: &str,
    before: &Counts,
    served: i64,
    state: &str,
) -> Result<()> {
    sqlx::query("UPDATE comparison SET served = $1, state = $2 WHERE id = $3")
        .bind(served)
        .bind(state.to_owned())
        .bind(id.to_owned())
        .execute(&mut *connection)
        .await
        .doing("change a comparison's state")?;
    let is = |name: &str, state: &str| i64::from(name == state);
    let fresh = is("fresh", state) - is("fresh", &before.state);
    let open = is("open", state) - is("open", &before.state);
    if (fresh, open) == (0, 0) {
        return Ok(());
    }
    count_queue(connection, &before.category, fresh, open).await
}

pub(crate) async fn count_queue(
    connection: &mut AnyConnection,
    category: &str,
    fresh: i64,
    open: i64,
) -> Result<()> {
    sqlx::query("UPDATE category_queue SET fresh = fresh + $1, open = open + $2 WHERE category = $3")
        .bind(fresh)
        .bind(open)
        .bind(category.to_owned())
        .execute(connection)
        .await
        .doing("count the queue")
        .map(|_| ())
}

/// What a vote says of how its comparison was chosen, and of who gave it.
pub(crate) struct Provenance {
    pub chosen_by: Option<String>,
    pub propensity: Option<f64>,
    pub annotator: AnnotatorKind,
}

pub(crate) async fn provenance(
    connection: &mut AnyConnection,
    assignment: &Assignment,
) -> Result<Provenance> {
    let row = sqlx::query(
        "SELECT c.chosen_by, c.propensity, w.kind FROM comparison c JOIN annotator w ON w.id = $2 WHERE c.id = $1",
    )
    .bind(assignment.comparison_id.clone())
    .bind(assignment.annotator_id.clone())
    .fetch_one(connection)
    .await
    .doing("read a comparison")?;
    Ok(Provenance {
        chosen_by: row.text_or_null("chosen_by")?,
        propensity: row.real_or_null("propensity")?,
        annotator: AnnotatorKind::parse(&row.text("kind")?)?,
    })
}

/// Holds a comparison back once enough annotators have flagged it.
pub(crate) async fn hold_if_flagged(connection: &mut AnyConnection, id: &str) -> Result<()> {
    let policy = project::project(connection).await?.policy;
    let flags =
        sqlx::query("SELECT COUNT(*) AS n FROM effective_vote WHERE comparison_id = $1 AND overall = 'flag'")
            .bind(id.to_owned())
            .fetch_one(&mut *connection)
            .await
            .doing("count flags")?
            .int("n")?;
    let counts = counts_of(connection, id).await?;
    if flags >= policy.flags_hold && matches!(counts.state.as_str(), "fresh" | "open" | "full") {
        set_counts(connection, id, &counts, counts.served, "held").await?;
    }
    Ok(())
}

/// Changes the state alone.
pub(crate) async fn set_counts_state(
    connection: &mut AnyConnection,
    id: &str,
    before: &Counts,
    state: &str,
) -> Result<()> {
    set_counts(connection, id, before, before.served, state).await
}
