//! A simulated panel's votes, many to a transaction.
//!
//! Annotators who are functions need not ask and answer one comparison at a time. What [`Store::next`] and [`Store::vote`] leave is left here
//! too: an assignment with the side that was shown, the comparison's and the queue's counts, the tallies by category and side, the vote in
//! its chain; and a place that a person has taken, or a comparison that is no longer queued, is theirs.
//!
//! **Which.** Comparisons in the order of their names, which are hashes: as good as drawn, so a fresh one's propensity is `1 / fresh` of its
//! category, as for a person (scores do not count here). Each gets all the judgements it still wants before the next one does, from
//! annotators who have not had it, in an order drawn from (seed, comparison).
//!
//! **Sides, calibration and repeats** as for people (`assign`). What vote `n` of the store is, is drawn from (seed, n).
//!
//! So the n-th vote follows from the seed and the store before it, and it does not matter where one transaction ends and the next begins.
//!
//! Not here: what the annotators answer; judges that are models (`machine`).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use polity_stats::Stream;
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, AssertSqlSafe};

use crate::account::{self, AnnotatorKind};
use crate::answer::Answer;
use crate::assign::{self, A_LEFT, Kind};
use crate::calibration::{self, Qualification, Standing};
use crate::content::Content;
use crate::db::{Meter, Store};
use crate::error::{Doing, Result, StoreError};
use crate::project::Policy;
use crate::sql::{Cell, Columns, insert_many, update_many};
use crate::vote::{self, VoteRecord};

/// Most votes in one transaction: people who vote meanwhile wait for it, 0.15 s.
const VOTES_PER_COMMIT: u64 = 2000;
/// Comparisons read at once.
const PAGE: usize = 100;

/// What a simulated annotator is shown; texts are words alone.
#[derive(Clone, Copy, Debug)]
pub struct Shown<'t> {
    /// Whose turn it is: an index into the simulation's annotators.
    pub annotator: usize,
    /// What is compared.
    pub comparison_id: &'t str,
    /// The prompt.
    pub prompt: &'t str,
    /// The response on the left.
    pub left: &'t str,
    /// The response on the right.
    pub right: &'t str,
}

type Judge = dyn Fn(&Shown<'_>) -> Answer + Send + Sync;

/// Simulated annotators at work.
pub struct Simulation {
    annotators: Arc<[String]>,
    seed: u64,
    judge: Arc<Judge>,
    /// Up to here, by name, there is nothing to do.
    after: String,
}

impl Simulation {
    /// Annotators of the kind [`AnnotatorKind::Simulated`], by id, who answer as `judge` says: a judgement, by the sides shown. `judge` is to be
    /// a pure function.
    pub fn new(
        annotators: Vec<String>,
        seed: u64,
        judge: impl Fn(&Shown<'_>) -> Answer + Send + Sync + 'static,
    ) -> Simulation {
        Simulation { annotators: annotators.into(), seed, judge: Arc::new(judge), after: String::new() }
    }
}

impl Store {
    /// Has simulated annotators cast their next votes, at most `votes_max`, in one transaction. Returns how many; none if nothing is left for
    /// them. To have all, call it until then.
    pub async fn simulate(&self, simulation: &mut Simulation, votes_max: u64, now_ms: i64) -> Result<u64> {
        loop {
            let (annotators, judge) = (simulation.annotators.clone(), simulation.judge.clone());
            let (seed, after, meter) = (simulation.seed, simulation.after.clone(), self.meter());
            let (votes, reached) = self
                .write(move |connection| {
                    Box::pin(async move {
                        let mut batch =
                            Batch::begin(connection, &annotators, seed, votes_max, now_ms).await?;
                        let reached = batch.work(&*judge, after).await?;
                        Ok((batch.end(&meter).await?, reached))
                    })
                })
                .await?;
            // Places that have come free in the meantime.
            let again = votes == 0 && votes_max > 0 && !simulation.after.is_empty();
            simulation.after = if again { String::new() } else { reached };
            if !again {
                return Ok(votes);
            }
        }
    }
}

/// A comparison, its place in the queue, and its texts.
struct Item {
    id: String,
    category: String,
    state: String,
    served: i64,
    wanted: i64,
    a: String,
    b: String,
    contest: String,
    a_is_first: bool,
    chosen_by: Option<String>,
    propensity: Option<f64>,
    /// How often `a` was on the left, less how often `b` was.
    a_left: i64,
    prompt: String,
    words_a: String,
    words_b: String,
}

/// A simulated annotator, as far as it matters for what is next.
struct Member {
    id: String,
    standing: Standing,
    /// Known comparisons not answered in this round, by name.
    known: Vec<String>,
    /// Oldest judgements that have not been repeated: number, comparison, the response on the left.
    repeatable: VecDeque<(i64, String, String)>,
    /// Numbers of the last votes, as many as must lie between a vote and its repeat.
    recent: VecDeque<i64>,
    /// By contest: how often its first model was on the left, less the other way round.
    first_left: HashMap<String, i64>,
}

/// What a turn is for.
enum Turn {
    Work,
    Known(String),
    Repeat { comparison_id: String, left_before: String },
    NotQualified,
}

/// One transaction's votes, and what changes with them.
struct Batch<'c> {
    connection: &'c mut AnyConnection,
    seed: u64,
    now_ms: i64,
    votes_max: usize,
    policy: Policy,
    rubric_version: i64,
    members: Vec<Member>,
    expected: HashMap<String, Answer>,
    /// What the transaction has come to so far, as it is now.
    items: HashMap<String, Item>,
    fresh: HashMap<String, i64>,
    /// Number of the first vote, and of the first assignment.
    first: (i64, i64),
    votes: Vec<VoteRecord>,
    assignments: Vec<Vec<Cell>>,
    comparisons: Vec<Vec<Cell>>,
    queue: BTreeMap<String, (i64, i64)>,
    tally: BTreeMap<(usize, String), i64>,
    sides: BTreeMap<(usize, String), i64>,
}

impl<'c> Batch<'c> {
    async fn begin(
        connection: &'c mut AnyConnection,
        annotators: &[String],
        seed: u64,
        votes_max: u64,
        now_ms: i64,
    ) -> Result<Batch<'c>> {
        let row = sqlx::query(
            "SELECT policy, (SELECT COALESCE(MAX(version), 0) FROM rubric) AS rubric_version, \
                    (SELECT COALESCE(MAX(version), 0) FROM rubric WHERE recalibrate = 1) AS round, \
                    (SELECT COALESCE(MAX(id), 0) FROM assignment) AS assigned FROM project",
        )
        .fetch_one(&mut *connection)
        .await
        .doing("read the project")?;
        let policy: Policy = row.json("policy")?;
        let round = row.int("round")?;
        let votes_max = votes_max.min(VOTES_PER_COMMIT) as usize;
        let first_vote = vote::chain_head(connection).await?.0 + 1;
        let repeats_max = (first_vote..first_vote + votes_max as i64)
            .filter(|&seq| policy.kind_at(turn(seed, seq).unit()) == Kind::Repeat)
            .count();
        let mut members = Vec::with_capacity(annotators.len());
        for id in annotators {
            members.push(member(connection, id, &policy, round, repeats_max as i64, now_ms).await?);
        }
        let mut expected = HashMap::new();
        for item in calibration::items(connection).await?.into_iter().filter(|item| item.active) {
            expected.insert(item.comparison_id, item.expected);
        }
        let mut fresh = HashMap::new();
        let rows = sqlx::query("SELECT category, fresh FROM category_queue")
            .fetch_all(&mut *connection)
            .await
            .doing("look at the queue")?;
        for row in &rows {
            fresh.insert(row.text("category")?, row.int("fresh")?);
        }
        Ok(Batch {
            connection,
            seed,
            now_ms,
            votes_max,
            policy,
            rubric_version: row.int("rubric_version")?,
            members,
            expected,
            items: HashMap::new(),
            fresh,
            first: (first_vote, row.int("assigned")? + 1),
            votes: Vec::with_capacity(votes_max),
            assignments: Vec::with_capacity(votes_max),
            comparisons: Vec::new(),
            queue: BTreeMap::new(),
            tally: BTreeMap::new(),
            sides: BTreeMap::new(),
        })
    }

    /// Goes through the queue from `after` on; up to which name all is done.
    async fn work(&mut self, judge: &Judge, mut after: String) -> Result<String> {
        loop {
            let page = self.page(&after).await?;
            let last = page.len() < PAGE;
            for (mut item, had) in page {
                self.fill(judge, &mut item, &had).await?;
                if self.votes.len() == self.votes_max {
                    return Ok(after);
                }
                after.clone_from(&item.id);
                self.items.insert(item.id.clone(), item);
            }
            if last {
                return Ok(after);
            }
        }
    }
}

impl Batch<'_> {
    /// The next comparisons that want judgements, and who has had each.
    async fn page(&mut self, after: &str) -> Result<Vec<(Item, HashSet<String>)>> {
        // By the names' own index, so that the queue is not sorted for every page: hence CASE, which hides the state's index.
        let items = items(
            self.connection,
            "WHERE c.id > $1 AND CASE WHEN c.state IN ('fresh', 'open') THEN 1 ELSE 0 END = 1 ORDER BY c.id LIMIT $2",
            after,
            PAGE as i64,
        )
        .await?;
        let Some(last) = items.last() else { return Ok(Vec::new()) };
        let rows = sqlx::query(
            "SELECT s.comparison_id, s.annotator_id FROM comparison c JOIN assignment s ON s.comparison_id = c.id \
             WHERE c.id > $1 AND c.id <= $2 AND CASE WHEN c.state = 'open' THEN 1 ELSE 0 END = 1 \
               AND s.kind = 'work' AND s.state IN ('live', 'voted')",
        )
        .bind(after.to_owned())
        .bind(last.id.clone())
        .fetch_all(&mut *self.connection)
        .await
        .doing("look who has begun")?;
        let mut had: HashMap<String, HashSet<String>> = HashMap::new();
        for row in &rows {
            had.entry(row.text("comparison_id")?).or_default().insert(row.text("annotator_id")?);
        }
        Ok(items
            .into_iter()
            .map(|item| {
                let had = had.remove(&item.id).unwrap_or_default();
                (item, had)
            })
            .collect())
    }

    /// Has the comparison judged by as many as it still wants, and by who is left; with the known comparisons and repeats that come up
    /// in between.
    async fn fill(&mut self, judge: &Judge, item: &mut Item, had: &HashSet<String>) -> Result<()> {
        let (state, served) = (item.state.clone(), item.served);
        for who in order(self.seed, &item.id, self.members.len()) {
            if had.contains(&self.members[who].id) {
                continue;
            }
            let mut waits = true;
            while waits && item.served < item.wanted && self.votes.len() < self.votes_max {
                let seq = self.first.0 + self.votes.len() as i64;
                let mut stream = turn(self.seed, seq);
                match self.turn(who, &mut stream) {
                    Turn::NotQualified => waits = false,
                    Turn::Known(id) => self.known(judge, who, &id, &mut stream).await?,
                    Turn::Repeat { comparison_id, left_before } => {
                        let item = self.item(&comparison_id).await?;
                        let a_left = left_before != item.a;
                        self.vote(judge, who, &item, Kind::Repeat, 1, a_left)?;
                        self.items.insert(comparison_id, item);
                    }
                    Turn::Work => {
                        self.choose(item);
                        let a_left = self.side(who, item, &mut stream).await?;
                        let seq = self.vote(judge, who, item, Kind::Work, 0, a_left)?;
                        let (id, left) = (item.id.clone(), if a_left { &item.a } else { &item.b }.clone());
                        self.members[who].repeatable.push_back((seq, id, left));
                        *self.tally.entry((who, item.category.clone())).or_default() += 1;
                        waits = false;
                    }
                }
            }
        }
        if item.served > served {
            let change = self.queue.entry(item.category.clone()).or_default();
            change.0 -= i64::from(state == "fresh");
            change.1 += i64::from(item.state == "open") - i64::from(state == "open");
            self.comparisons.push(vec![
                Cell::Text(item.id.clone()),
                Cell::Int(item.served),
                Cell::Text(item.state.clone()),
                Cell::TextOrNull(item.chosen_by.clone()),
                Cell::RealOrNull(item.propensity),
            ]);
        }
        Ok(())
    }

    /// What the annotator's turn is for, by the same rules as in `assign`.
    fn turn(&mut self, who: usize, stream: &mut Stream) -> Turn {
        let member = &mut self.members[who];
        let mut kind = self.policy.kind_at(stream.unit());
        let qualification = member.standing.qualification(&self.policy);
        if qualification != Qualification::Passed {
            match (qualification, member.known.is_empty()) {
                (Qualification::Failed, true) => return Turn::NotQualified,
                (_, true) => {}
                (_, false) => kind = Kind::Calibration,
            }
        }
        match kind {
            Kind::Calibration if !member.known.is_empty() => {
                Turn::Known(member.known.remove(stream.below(member.known.len())))
            }
            Kind::Repeat => match member.repeatable.pop_front_if(|(seq, ..)| {
                member.recent.len() as i64 == self.policy.repeat_gap && *seq < member.recent[0]
            }) {
                Some((_, comparison_id, left_before)) => Turn::Repeat { comparison_id, left_before },
                None => Turn::Work,
            },
            _ => Turn::Work,
        }
    }

    /// Asks about a known comparison.
    async fn known(&mut self, judge: &Judge, who: usize, id: &str, stream: &mut Stream) -> Result<()> {
        let mut item = self.item(id).await?;
        let a_left = self.side(who, &mut item, stream).await?;
        let round = self.members[who].standing.round;
        self.vote(judge, who, &item, Kind::Calibration, round, a_left)?;
        let given = self.votes.last().expect("it was just cast").overall;
        let given = if a_left { given } else { given.swapped() };
        let standing = &mut self.members[who].standing;
        standing.answered += 1;
        standing.right += i64::from(vote::agrees(given, self.expected[id]));
        self.items.insert(id.to_owned(), item);
        Ok(())
    }

    /// A comparison that is not in the queue; to be put back.
    async fn item(&mut self, id: &str) -> Result<Item> {
        if let Some(item) = self.items.remove(id) {
            return Ok(item);
        }
        let item = items(self.connection, "WHERE c.id = $1 LIMIT $2", id, 1).await?.pop();
        item.ok_or_else(|| StoreError::not_found("comparison", id))
    }

    /// Takes a place at the comparison; records how a fresh one was chosen.
    fn choose(&mut self, item: &mut Item) {
        if item.state == "fresh" {
            let fresh = self.fresh.get_mut(&item.category).expect("the queue counts every category");
            item.chosen_by = Some("random".to_owned());
            item.propensity = Some(1.0 / *fresh as f64);
            *fresh -= 1;
        }
        item.served += 1;
        item.state = if item.served >= item.wanted { "full" } else { "open" }.to_owned();
    }

    /// Whether `a` goes on the left, and counts it.
    async fn side(&mut self, who: usize, item: &mut Item, stream: &mut Stream) -> Result<bool> {
        let member = &mut self.members[who];
        let own = match member.first_left.get(&item.contest) {
            Some(own) => *own,
            None => assign::first_left(self.connection, &member.id, &item.contest).await?,
        };
        let a_left = if item.a_is_first { item.a_left } else { -item.a_left };
        let first_left = assign::first_goes_left(own, a_left, || stream.below(2) == 0);
        let step = if first_left { 1 } else { -1 };
        member.first_left.insert(item.contest.clone(), own + step);
        *self.sides.entry((who, item.contest.clone())).or_default() += step;
        let a_left = first_left == item.a_is_first;
        item.a_left += if a_left { 1 } else { -1 };
        Ok(a_left)
    }

    /// Has the annotator answer; the vote's number.
    fn vote(
        &mut self,
        judge: &Judge,
        who: usize,
        item: &Item,
        kind: Kind,
        round: i64,
        a_left: bool,
    ) -> Result<i64> {
        let (left, right) = match a_left {
            true => (&item.words_a, &item.words_b),
            false => (&item.words_b, &item.words_a),
        };
        let shown = Shown { annotator: who, comparison_id: &item.id, prompt: &item.prompt, left, right };
        let overall = judge(&shown);
        if !overall.is_judgement() {
            return Err(StoreError::invalid("a simulated answer", format!("`{overall}`"), "a judgement"));
        }
        let n = self.votes.len() as i64;
        let (seq, assignment_id) = (self.first.0 + n, self.first.1 + n);
        let left_response = if a_left { &item.a } else { &item.b };
        let member = &mut self.members[who];
        self.assignments.push(vec![
            Cell::Int(assignment_id),
            Cell::Text(member.id.clone()),
            Cell::Text(item.id.clone()),
            Cell::Text(kind.name().to_owned()),
            Cell::Int(round),
            Cell::Text(left_response.clone()),
            Cell::Int(self.rubric_version),
            Cell::Text("voted".to_owned()),
            Cell::Int(self.now_ms),
            Cell::Int(self.now_ms),
        ]);
        self.votes.push(VoteRecord {
            seq: 0,
            comparison_id: item.id.clone(),
            annotator_id: member.id.clone(),
            kind,
            left_response: left_response.clone(),
            overall,
            axes: BTreeMap::new(),
            reason: String::new(),
            rubric_version: self.rubric_version,
            shown_ms: Some(self.now_ms),
            answered_ms: Some(self.now_ms),
            work_ms: None,
            machine: true,
            chosen_by: item.chosen_by.clone(),
            propensity: item.propensity,
            assignment_id: Some(assignment_id),
            supersedes: None,
            origin: "page".to_owned(),
            recorded_ms: self.now_ms,
            chain: String::new(),
        });
        member.recent.push_back(seq);
        if member.recent.len() as i64 > self.policy.repeat_gap {
            member.recent.pop_front();
        }
        Ok(seq)
    }

    /// Writes it all; how many votes it was.
    async fn end(self, meter: &Meter) -> Result<u64> {
        let columns = [
            "id",
            "annotator_id",
            "comparison_id",
            "kind",
            "round",
            "left_response",
            "rubric_version",
            "state",
            "served_ms",
            "expires_ms",
        ];
        insert_many(self.connection, "assignment", &columns, self.assignments).await?;
        let columns = ["served", "state", "chosen_by", "propensity"];
        update_many(self.connection, "comparison", "id", &columns, self.comparisons).await?;
        for (category, (fresh, open)) in self.queue {
            assign::count_queue(self.connection, &category, fresh, open).await?;
        }
        for ((who, category), served) in self.tally {
            assign::count_served(self.connection, &self.members[who].id, &category, served).await?;
        }
        for ((who, contest), step) in self.sides {
            assign::count_sides(self.connection, &self.members[who].id, &contest, step).await?;
        }
        vote::append_many(self.connection, self.votes, meter).await
    }
}

/// The randomness of vote `seq`.
fn turn(seed: u64, seq: i64) -> Stream {
    Stream::new(seed, "turn", seq as u64)
}

/// The annotators in the order in which they are asked about a comparison.
fn order(seed: u64, comparison_id: &str, annotators: usize) -> Vec<usize> {
    let mut stream = Stream::new(seed, comparison_id, 0);
    let mut order: Vec<usize> = (0..annotators).collect();
    for i in (1..annotators).rev() {
        order.swap(i, stream.below(i + 1));
    }
    order
}

/// An annotator as the store knows them, their lease given back.
async fn member(
    connection: &mut AnyConnection,
    id: &str,
    policy: &Policy,
    round: i64,
    repeats_max: i64,
    now_ms: i64,
) -> Result<Member> {
    let annotator = account::annotator(connection, id).await?;
    if annotator.kind != AnnotatorKind::Simulated {
        let why = format!("it is a {} annotator", annotator.kind.name());
        return Err(StoreError::refused(format!("simulating `{id}`"), why));
    }
    assign::give_back(connection, id, now_ms).await?;
    let rows = sqlx::query("SELECT seq FROM vote WHERE annotator_id = $1 ORDER BY seq DESC LIMIT $2")
        .bind(id.to_owned())
        .bind(policy.repeat_gap)
        .fetch_all(&mut *connection)
        .await
        .doing("read the last votes")?;
    let recent = rows.iter().rev().map(|row| row.int("seq")).collect::<Result<_>>()?;
    let rows = sqlx::query(
        "SELECT v.seq, v.comparison_id, v.left_response FROM effective_vote v \
         WHERE v.annotator_id = $1 AND v.kind = 'work' AND v.overall NOT IN ('skip', 'flag') AND v.assignment_id IS NOT NULL \
           AND NOT EXISTS (SELECT 1 FROM assignment s WHERE s.annotator_id = $1 AND s.comparison_id = v.comparison_id \
                           AND s.kind = 'repeat' AND s.state IN ('live', 'voted')) \
         ORDER BY v.seq LIMIT $2",
    )
    .bind(id.to_owned())
    .bind(repeats_max)
    .fetch_all(&mut *connection)
    .await
    .doing("look for votes to repeat")?;
    let repeatable = rows
        .iter()
        .map(|row| Ok((row.int("seq")?, row.text("comparison_id")?, row.text("left_response")?)))
        .collect::<Result<_>>()?;
    Ok(Member {
        id: id.to_owned(),
        standing: calibration::standing_for(connection, id, round, policy).await?,
        known: calibration::unanswered(connection, id, round).await?,
        repeatable,
        recent,
        first_left: HashMap::new(),
    })
}

async fn items(
    connection: &mut AnyConnection,
    which: &'static str,
    id: &str,
    limit: i64,
) -> Result<Vec<Item>> {
    sqlx::query(AssertSqlSafe(format!(
        "SELECT c.id, c.category, c.state, c.served, c.wanted, c.response_a, c.response_b, c.contest, c.a_is_first, c.chosen_by, \
                c.propensity, p.content AS prompt, a.content AS content_a, b.content AS content_b, {A_LEFT} AS a_left \
         FROM comparison c JOIN prompt p ON p.id = c.prompt_id \
         JOIN response a ON a.id = c.response_a JOIN response b ON b.id = c.response_b {which}"
    )))
    .bind(id.to_owned())
    .bind(limit)
    .fetch_all(connection)
    .await
    .doing("read comparisons")?
    .iter()
    .map(item)
    .collect()
}

fn item(row: &AnyRow) -> Result<Item> {
    let words = |column: &str| row.json::<Content>(column).map(|content| content.words());
    Ok(Item {
        id: row.text("id")?,
        category: row.text("category")?,
        state: row.text("state")?,
        served: row.int("served")?,
        wanted: row.int("wanted")?,
        a: row.text("response_a")?,
        b: row.text("response_b")?,
        contest: row.text("contest")?,
        a_is_first: row.yes("a_is_first")?,
        chosen_by: row.text_or_null("chosen_by")?,
        propensity: row.real_or_null("propensity")?,
        a_left: row.int("a_left")?,
        prompt: words("prompt")?,
        words_a: words("content_a")?,
        words_b: words("content_b")?,
    })
}
