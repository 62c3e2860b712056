//! An answer to a comparison.
//!
//! As given, sides are those on the page; [`Answer::swapped`] turns it to the canonical order (left = response `a`) before anything is
//! counted: without that, randomised sides look like disagreement.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// A place on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The first one shown; in the canonical order, response `a`.
    Left,
    /// The second one shown; in the canonical order, response `b`.
    Right,
}

/// An answer. As text: `left3`, `left2`, `left1`, `tie`, `right1`, `right2`, `right3`, `both_bad`, `skip`, `flag`, `withdrawn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Answer {
    /// One is better: slightly (1), clearly (2), much (3).
    Better {
        /// Which.
        side: Side,
        /// How much: 1, 2 or 3.
        strength: u8,
    },
    /// As good as each other.
    Tie,
    /// As bad as each other; counted as a tie where only the order matters.
    BothBad,
    /// No answer: someone else should.
    Skip,
    /// Something is wrong with the comparison itself.
    Flag,
    /// An earlier vote is taken back, and nothing put in its place (yet).
    Withdrawn,
}

impl Answer {
    /// Every answer that an annotator may give.
    pub const GIVEN: [Answer; 10] = [
        Answer::Better { side: Side::Left, strength: 3 },
        Answer::Better { side: Side::Left, strength: 2 },
        Answer::Better { side: Side::Left, strength: 1 },
        Answer::Tie,
        Answer::Better { side: Side::Right, strength: 1 },
        Answer::Better { side: Side::Right, strength: 2 },
        Answer::Better { side: Side::Right, strength: 3 },
        Answer::BothBad,
        Answer::Skip,
        Answer::Flag,
    ];

    /// Whether it says something about the responses, and so counts towards the judgements wanted.
    pub fn is_judgement(self) -> bool {
        matches!(self, Answer::Better { .. } | Answer::Tie | Answer::BothBad)
    }

    /// 3 for a left response that is much better down to -3; 0 for a tie or both bad; none if it is no judgement.
    pub fn grade(self) -> Option<i8> {
        match self {
            Answer::Better { side: Side::Left, strength } => Some(strength as i8),
            Answer::Better { side: Side::Right, strength } => Some(-(strength as i8)),
            Answer::Tie | Answer::BothBad => Some(0),
            Answer::Skip | Answer::Flag | Answer::Withdrawn => None,
        }
    }

    /// The left response's share of the win: 1, ½ or 0.
    pub fn left_share(self) -> Option<f64> {
        self.grade().map(|grade| (f64::from(grade.signum()) + 1.0) / 2.0)
    }

    /// The same answer with the sides exchanged.
    pub fn swapped(self) -> Answer {
        match self {
            Answer::Better { side: Side::Left, strength } => Answer::Better { side: Side::Right, strength },
            Answer::Better { side: Side::Right, strength } => Answer::Better { side: Side::Left, strength },
            other => other,
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Better { side: Side::Left, strength } => write!(f, "left{strength}"),
            Answer::Better { side: Side::Right, strength } => write!(f, "right{strength}"),
            Answer::Tie => f.write_str("tie"),
            Answer::BothBad => f.write_str("both_bad"),
            Answer::Skip => f.write_str("skip"),
            Answer::Flag => f.write_str("flag"),
            Answer::Withdrawn => f.write_str("withdrawn"),
        }
    }
}

impl FromStr for Answer {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Answer, StoreError> {
        Answer::GIVEN
            .into_iter()
            .chain([Answer::Withdrawn])
            .find(|answer| answer.to_string() == text)
            .ok_or_else(|| {
                StoreError::invalid(
                    "the answer",
                    format!("`{}`", text.chars().take(40).collect::<String>()),
                    "left3, left2, left1, tie, right1, right2, right3, both_bad, skip or flag",
                )
            })
    }
}

impl TryFrom<String> for Answer {
    type Error = StoreError;
    fn try_from(text: String) -> Result<Answer, StoreError> {
        text.parse()
    }
}

impl From<Answer> for String {
    fn from(answer: Answer) -> String {
        answer.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_they_are_written() {
        for answer in Answer::GIVEN.into_iter().chain([Answer::Withdrawn]) {
            assert_eq!(answer.to_string().parse::<Answer>().unwrap(), answer);
            assert_eq!(answer.swapped().swapped(), answer);
            assert_eq!(answer.swapped().grade(), answer.grade().map(|grade| -grade));
        }
        assert!("left4".parse::<Answer>().is_err());
    }

    #[test]
    fn shares_and_grades() {
        let check = |text: &str, grade: Option<i8>, share: Option<f64>| {
            let answer: Answer = text.parse().unwrap();
            assert_eq!((answer.grade(), answer.left_share()), (grade, share), "{text}");
        };
        check("left3", Some(3), Some(1.0));
        check("right1", Some(-1), Some(0.0));
        check("tie", Some(0), Some(0.5));
        check("both_bad", Some(0), Some(0.5));
        check("skip", None, None);
    }
}
