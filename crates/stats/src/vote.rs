//! Votes as the statistics take them, and the one place where left and right become "first" and "second".
//!
//! A comparison is a prompt and two responses. Which of them stood on the left is chance, so before anything is compared across
//! annotators each vote is turned into the comparison's *canonical orientation*: the response whose id sorts first is the
//! first one, whatever side it was shown on. Two annotators who prefer the same response then have the same value, and a page
//! that shuffles sides cannot fake disagreement. The side is kept beside it for the side-bias figures.
//!
//! ```text
//! strength = + grade   the first response is better          grade in 1..=GRADE_MAX
//!              0       a tie, or both bad
//!            - grade   the second response is better
//! ```
//!
//! Not here: where votes are stored, how they are displayed, and what is computed from them (`panel.rs`).

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::agreement::{Entry, Repeats, SelfConsistency, Table};

/// The strongest grade.
pub const GRADE_MAX: u8 = 3;

/// Which of the two responses, by its place on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The first one shown.
    Left,
    /// The second one shown.
    Right,
}

/// What an annotator answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// One response is better, by a grade from 1 (slightly) to [`GRADE_MAX`] (much).
    Better {
        /// The better one.
        side: Side,
        /// How much better.
        grade: u8,
    },
    /// As good as each other.
    Tie,
    /// As bad as each other.
    BothBad,
    /// No answer was given.
    Skip,
    /// The comparison should not be judged.
    Flag,
}

impl Answer {
    /// The grade, positive for the left response; `None` where nothing was compared.
    pub fn strength(self) -> Option<i8> {
        match self {
            Answer::Better { side: Side::Left, grade } => Some(grade as i8),
            Answer::Better { side: Side::Right, grade } => Some(-(grade as i8)),
            Answer::Tie | Answer::BothBad => Some(0),
            Answer::Skip | Answer::Flag => None,
        }
    }
}

/// One vote, by names: how votes come in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VoteRow<'a> {
    /// Id of the prompt.
    pub prompt: &'a str,
    /// Id of the response that was shown first. Ids need to be unique within a prompt only.
    pub left: &'a str,
    /// Id of the response that was shown second.
    pub right: &'a str,
    /// Who voted.
    pub annotator: &'a str,
    /// What they answered.
    pub answer: Answer,
    /// The prompt's category, for the breakdown.
    pub category: Option<&'a str>,
    /// The rubric's version.
    pub rubric: Option<&'a str>,
    /// When, in milliseconds since 1970.
    pub time_ms: Option<i64>,
    /// Time on task.
    pub duration_ms: Option<u64>,
    /// The right answer of a calibration comparison. Such a vote counts for calibration accuracy and for nothing else.
    pub known: Option<Answer>,
}

/// A comparison in canonical orientation. All are positions in the lists of [`Votes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Comparison {
    /// Which prompt.
    pub prompt: u32,
    /// The response whose id sorts first.
    pub first: u32,
    /// The other one.
    pub second: u32,
}

/// A vote on a comparison, in its canonical orientation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vote {
    /// Position in [`Votes::comparisons`].
    pub comparison: u32,
    /// Position in [`Votes::annotators`].
    pub annotator: u32,
    /// The grade, positive for the comparison's first response.
    pub strength: i8,
    /// Whether the annotator said that both are bad.
    pub both_bad: bool,
    /// Whether the first response stood on the left.
    pub first_on_left: bool,
    /// Position in [`Votes::rubrics`].
    pub rubric: Option<u32>,
    /// When, in milliseconds since 1970.
    pub time_ms: Option<i64>,
    /// Time on task.
    pub duration_ms: Option<u64>,
}

impl Vote {
    /// The grade, positive for the response on the left.
    pub fn left_strength(&self) -> i8 {
        if self.first_on_left { self.strength } else { -self.strength }
    }
}

/// A vote on a comparison whose answer is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CalibrationVote {
    /// Position in [`Votes::annotators`].
    pub annotator: u32,
    /// Whether the side (or the tie) was right; the grade does not matter.
    pub right: bool,
    /// When, in milliseconds since 1970.
    pub time_ms: Option<i64>,
}

/// A second answer to a comparison that was shown again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RepeatVote {
    /// Position in [`Votes::comparisons`].
    pub comparison: u32,
    /// Position in [`Votes::annotators`].
    pub annotator: u32,
    /// The grade, positive for the comparison's first response.
    pub strength: i8,
}

/// Names and their numbers, in the order of arrival.
#[derive(Clone, Debug, Default)]
pub struct Names {
    list: Vec<String>,
    number: HashMap<String, u32>,
}

impl Names {
    fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.get(name) {
            return number;
        }
        let number = self.list.len() as u32;
        self.list.push(name.to_owned());
        self.number.insert(name.to_owned(), number);
        number
    }

    fn get(&self, name: &str) -> Option<u32> {
        self.number.get(name).copied()
    }

    /// All names.
    pub fn list(&self) -> &[String] {
        &self.list
    }

    /// The name with this number.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn name(&self, number: u32) -> &str {
        &self.list[number as usize]
    }
}

/// All votes of a panel. Filled with [`Votes::push`].
#[derive(Clone, Debug, Default)]
pub struct Votes {
    /// Ids of prompts.
    pub prompts: Names,
    /// Ids of responses.
    pub responses: Names,
    /// Who voted, or was asked to.
    pub annotators: Names,
    /// Categories of prompts.
    pub categories: Names,
    /// Versions of rubrics.
    pub rubrics: Names,
    /// What was compared.
    pub comparisons: Vec<Comparison>,
    /// Category of each comparison, from the first vote on it that has one.
    pub category: Vec<Option<u32>>,
    /// Votes that compare, in the order of arrival.
    pub votes: Vec<Vote>,
    /// Votes on calibration comparisons.
    pub calibration: Vec<CalibrationVote>,
    /// Second answers to comparisons that were shown again.
    pub repeats: Vec<RepeatVote>,
    /// Skips and flags of each annotator.
    pub unanswered: Vec<usize>,
    number: HashMap<Comparison, u32>,
}

impl Votes {
    /// No votes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a vote. Votes of one annotator on one comparison are taken in the order in which they come: the last one
    /// supersedes the others.
    pub fn push(&mut self, row: &VoteRow<'_>) -> Result<(), Error> {
        let Some((annotator, left_strength)) = self.answered(row)? else { return Ok(()) };
        if let Some(known) = row.known.and_then(Answer::strength) {
            let right = known.signum() == left_strength.signum();
            self.calibration.push(CalibrationVote { annotator, right, time_ms: row.time_ms });
            return Ok(());
        }
        let first_on_left = row.left < row.right;
        let (left, right) = (self.responses.number(row.left), self.responses.number(row.right));
        let (first, second) = if first_on_left { (left, right) } else { (right, left) };
        let comparison = Comparison { prompt: self.prompts.number(row.prompt), first, second };
        let category = row.category.map(|name| self.categories.number(name));
        let next = self.comparisons.len() as u32;
        let number = *self.number.entry(comparison).or_insert(next);
        if number == next {
            self.comparisons.push(comparison);
            self.category.push(category);
        } else if self.category[number as usize].is_none() {
            self.category[number as usize] = category;
        }
        self.votes.push(Vote {
            comparison: number,
            annotator,
            strength: if first_on_left { left_strength } else { -left_strength },
            both_bad: row.answer == Answer::BothBad,
            first_on_left,
            rubric: row.rubric.map(|name| self.rubrics.number(name)),
            time_ms: row.time_ms,
            duration_ms: row.duration_ms,
        });
        Ok(())
    }

    /// Adds a second answer to a comparison that the annotator was shown again, to see what they say. It counts for self-consistency and for
    /// nothing else: it supersedes nothing, and says nothing of a comparison without a vote before it.
    pub fn push_repeat(&mut self, row: &VoteRow<'_>) -> Result<(), Error> {
        let Some((annotator, left_strength)) = self.answered(row)? else { return Ok(()) };
        let first_on_left = row.left < row.right;
        let (first, second) = if first_on_left { (row.left, row.right) } else { (row.right, row.left) };
        let prompt = self.prompts.get(row.prompt);
        let responses = self.responses.get(first).zip(self.responses.get(second));
        let comparison = prompt.zip(responses).and_then(|(prompt, (first, second))| {
            self.number.get(&Comparison { prompt, first, second }).copied()
        });
        self.repeats.extend(comparison.map(|comparison| RepeatVote {
            comparison,
            annotator,
            strength: if first_on_left { left_strength } else { -left_strength },
        }));
        Ok(())
    }

    /// A row's annotator and its strength for the left side; nothing if it was skipped or flagged, which is counted.
    fn answered(&mut self, row: &VoteRow<'_>) -> Result<Option<(u32, i8)>, Error> {
        if row.left == row.right {
            return Err(Error::SameResponse { prompt: row.prompt.to_owned(), response: row.left.to_owned() });
        }
        if let Answer::Better { grade, .. } = row.answer
            && !(1..=GRADE_MAX).contains(&grade)
        {
            return Err(Error::BadGrade { grade });
        }
        let annotator = self.annotators.number(row.annotator);
        if annotator as usize == self.unanswered.len() {
            self.unanswered.push(0);
        }
        let Some(left_strength) = row.answer.strength() else {
            self.unanswered[annotator as usize] += 1;
            return Ok(None);
        };
        Ok(Some((annotator, left_strength)))
    }

    /// The strongest grade that occurs, at least 1.
    pub fn grade_max(&self) -> u8 {
        self.votes.iter().map(|vote| vote.strength.unsigned_abs()).max().unwrap_or(1).max(1)
    }

    /// Items are comparisons, levels are 0 (second better), 1 (tie), 2 (first better).
    pub fn sides(&self) -> Table {
        self.sides_where(|_| true)
    }

    /// The same of the votes for which `keep` holds.
    pub fn sides_where(&self, keep: impl Fn(&Vote) -> bool) -> Table {
        self.table(3, keep, |vote| side_level(vote.strength))
    }

    /// Items are comparisons, levels are the strengths from the strongest for the second response to the strongest for
    /// the first.
    pub fn grades(&self) -> Table {
        self.grades_where(|_| true)
    }

    /// The same of the votes for which `keep` holds.
    pub fn grades_where(&self, keep: impl Fn(&Vote) -> bool) -> Table {
        let most = self.grade_max() as i8;
        self.table(2 * most as usize + 1, keep, |vote| (most + vote.strength) as usize)
    }

    fn table(&self, levels: usize, keep: impl Fn(&Vote) -> bool, level: impl Fn(&Vote) -> usize) -> Table {
        let entries = self.votes.iter().filter(|vote| keep(vote)).map(|vote| Entry {
            item: vote.comparison as usize,
            annotator: vote.annotator as usize,
            level: level(vote),
        });
        Table::new(self.comparisons.len(), self.annotators.list().len(), levels, entries, Repeats::Last)
            .expect("superseded votes are no error")
    }

    /// How each annotator answered the second time: repeats beside the vote that stands (`sides` are [`Votes::sides`]), and votes that
    /// supersede one beside that one. What has no vote before it does not count.
    pub fn self_consistency(&self, sides: &Table) -> Vec<SelfConsistency> {
        let mut consistency = sides.self_consistency().to_vec();
        for repeat in &self.repeats {
            let item = sides.item(repeat.comparison as usize);
            if let Some((_, before)) = item.iter().find(|(annotator, _)| *annotator == repeat.annotator) {
                let own = &mut consistency[repeat.annotator as usize];
                own.repeats += 1;
                own.same += usize::from(*before == side_level(repeat.strength) as u32);
            }
        }
        consistency
    }

    /// Positions in [`Votes::votes`] of those that no later vote supersedes, in order.
    pub fn standing(&self) -> Vec<usize> {
        let mut last = HashMap::with_capacity(self.votes.len());
        for (i, vote) in self.votes.iter().enumerate() {
            last.insert((vote.comparison, vote.annotator), i);
        }
        let mut standing: Vec<usize> = last.into_values().collect();
        standing.sort_unstable();
        standing
    }
}

/// 0 (second better), 1 (tie), 2 (first better).
fn side_level(strength: i8) -> usize {
    (1 + strength.signum()) as usize
}
