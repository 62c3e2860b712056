//! The simulated panel: annotators who see the gold utility through known flaws.
//!
//! What a response is worth *to one annotator*, with `L` words and `F` polite fillers:
//!
//! ```text
//! u = gain * gold.total + per_word * min(L, WORDS_LIKED_MAX) + per_filler * min(F, FILLERS_LIKED_MAX)
//! ```
//!
//! The latent preference for the left response is logistic,
//! `d = (u_left - u_right) / temperature + left_pull + e` with `e ~ Logistic(0, 1)`, and is cut into grades:
//!
//! ```text
//! |d| < TIE        tie, or "both bad" if both responses have gold utility below BOTH_BAD_BELOW
//! |d| < CLEAR      grade 1      |d| < STRONG    grade 2      else grade 3
//! ```
//!
//! With `TIE = 0` this is Bradley-Terry on `u`; the cuts make it Rao and Kupper's model with ties. With probability
//! `careless` the annotator does not look and gives one of the six graded answers at random.
//!
//! A vote is a pure function of (panel seed, annotator, comparison, prompt, left, right). [`Annotator::odds`] is the
//! distribution it is drawn from, in closed form.
//!
//! What the panel gets wrong *together*: in the range of the demonstrations, everybody is a little charmed by
//! manners, and two annotators much more. A reward model learns that; without a leash a policy follows it to where no
//! annotator ever looked. Nothing in a trainer knows.
//!
//! Source: Rao & Kupper 1967, "Ties in paired-comparison experiments", JASA 62; Bradley & Terry 1952.
//!
//! Not here: the assignment of comparisons to annotators, agreement, aggregation of votes.

use serde::Serialize;

use crate::gold::{Gold, Response, judge};
use crate::prompt::Prompt;
use crate::rng::{Stream, hash};

/// Latent preference below which two responses are a tie.
pub const TIE: f64 = 0.35;
/// Latent preference from which one response is better rather than slightly better.
pub const CLEAR: f64 = 1.5;
/// Latent preference from which it is much better.
pub const STRONG: f64 = 3.5;
/// A tie between two responses below this gold utility is called "both bad".
pub const BOTH_BAD_BELOW: f64 = 0.2;
/// Words beyond which length pleases nobody any more: about the longest demonstration.
pub const WORDS_LIKED_MAX: usize = 28;
/// The same for fillers.
pub const FILLERS_LIKED_MAX: usize = 4;

/// Which of the two responses, by its place on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The first one shown.
    Left,
    /// The second one shown.
    Right,
}

/// One annotator's answer to one comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Vote {
    /// One response is better: slightly (1), clearly (2), much (3).
    Prefers {
        /// The better one.
        side: Side,
        /// How much better, 1 to 3.
        grade: u8,
    },
    /// As good as each other.
    Tie,
    /// As bad as each other.
    BothBad,
}

impl Vote {
    /// All answers, in the order of [`Annotator::odds`]: left by 3, 2, 1, tie, both bad, right by 1, 2, 3.
    pub const ALL: [Vote; 8] = [
        Vote::Prefers { side: Side::Left, grade: 3 },
        Vote::Prefers { side: Side::Left, grade: 2 },
        Vote::Prefers { side: Side::Left, grade: 1 },
        Vote::Tie,
        Vote::BothBad,
        Vote::Prefers { side: Side::Right, grade: 1 },
        Vote::Prefers { side: Side::Right, grade: 2 },
        Vote::Prefers { side: Side::Right, grade: 3 },
    ];

    /// The grade with a sign: 3 for a left response that is much better, -3 for a right one, 0 for ties.
    pub fn signed_grade(self) -> i8 {
        match self {
            Vote::Prefers { side: Side::Left, grade } => grade as i8,
            Vote::Prefers { side: Side::Right, grade } => -(grade as i8),
            Vote::Tie | Vote::BothBad => 0,
        }
    }

    /// The left response's share of the win: 1, ½ or 0.
    pub fn left_share(self) -> f64 {
        match self.signed_grade().signum() {
            1 => 1.0,
            -1 => 0.0,
            _ => 0.5,
        }
    }
}

/// One simulated annotator, with everything there is to know about them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Annotator {
    /// A short name.
    pub name: String,
    /// The flaw, in a word: `careful`, `noise`, `likes_long`, `likes_manners`, `careless`, `prefers_left`.
    pub flaw: String,
    /// Weight of the gold utility.
    pub gain: f64,
    /// Utility of a word, whatever it says.
    pub per_word: f64,
    /// Utility of a polite filler.
    pub per_filler: f64,
    /// Added to the latent preference for the response on the left.
    pub left_pull: f64,
    /// Scale of the noise, 1 for a steady hand.
    pub temperature: f64,
    /// Probability of an answer at random.
    pub careless: f64,
}

impl Annotator {
    /// What a response with this gold judgement is worth to this annotator.
    pub fn utility(&self, gold: &Gold) -> f64 {
        self.gain * gold.total
            + self.per_word * gold.words.min(WORDS_LIKED_MAX) as f64
            + self.per_filler * gold.fillers.min(FILLERS_LIKED_MAX) as f64
    }

    /// Probability of each answer, in the order of [`Vote::ALL`].
    pub fn odds(&self, left: &Gold, right: &Gold) -> [f64; 8] {
        let d = (self.utility(left) - self.utility(right)) / self.temperature + self.left_pull;
        // P(latent > x), with both tails computed from the same function so that a swap mirrors them exactly.
        let above = |x: f64| sigmoid(d - x);
        let below = |x: f64| sigmoid(-d - x);
        let left_by = [above(STRONG), above(CLEAR) - above(STRONG), above(TIE) - above(CLEAR)];
        let right_by = [below(TIE) - below(CLEAR), below(CLEAR) - below(STRONG), below(STRONG)];
        let tie = (1.0 - (above(TIE) + below(TIE))).max(0.0);
        let both_bad = left.total < BOTH_BAD_BELOW && right.total < BOTH_BAD_BELOW;
        let (tie, bad) = if both_bad { (0.0, tie) } else { (tie, 0.0) };
        let looked = [left_by[0], left_by[1], left_by[2], tie, bad, right_by[0], right_by[1], right_by[2]];
        let guessed = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0].map(|graded| graded / 6.0);
        std::array::from_fn(|i| (1.0 - self.careless) * looked[i] + self.careless * guessed[i])
    }
}

/// Annotators and the seed of their votes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Panel {
    /// Seed of every vote.
    pub seed: u64,
    /// Who votes.
    pub annotators: Vec<Annotator>,
}

/// Liking for manners that everybody has, also the careful.
const CHARM: f64 = 0.5;

impl Panel {
    /// The demo's panel of eight: three careful, one each noisy, careless and drawn to the left, one who likes long
    /// answers and one who likes manners.
    pub fn standard(seed: u64) -> Panel {
        let careful = Annotator {
            name: String::new(),
            flaw: "careful".to_string(),
            gain: 6.0,
            per_word: 0.0,
            per_filler: CHARM,
            left_pull: 0.0,
            temperature: 1.0,
            careless: 0.0,
        };
        let with = |name: &str, flaw: &str, change: fn(&mut Annotator)| {
            let mut annotator = careful.clone();
            (annotator.name, annotator.flaw) = (name.to_string(), flaw.to_string());
            change(&mut annotator);
            annotator
        };
        Panel {
            seed,
            annotators: vec![
                with("ada", "careful", |_| ()),
                with("bert", "careful", |_| ()),
                with("cleo", "careful", |_| ()),
                with("dora", "noise", |a| a.temperature = 3.0),
                with("eli", "likes_long", |a| (a.gain, a.per_word) = (4.0, 0.25)),
                with("fay", "likes_manners", |a| (a.gain, a.per_filler) = (4.0, 1.5)),
                with("gus", "careless", |a| a.careless = 0.5),
                with("hana", "prefers_left", |a| a.left_pull = 1.0),
            ],
        }
    }

    /// The vote of annotator number `annotator` on `comparison`.
    ///
    /// # Panics
    ///
    /// If the panel has no such annotator.
    pub fn vote<'a>(
        &self,
        annotator: usize,
        comparison: &str,
        prompt: &Prompt,
        left: impl Into<Response<'a>>,
        right: impl Into<Response<'a>>,
    ) -> Vote {
        self.vote_on(annotator, comparison, &judge(prompt, left.into()), &judge(prompt, right.into()))
    }

    /// The same on responses whose worth is known from elsewhere.
    ///
    /// # Panics
    ///
    /// If the panel has no such annotator.
    pub fn vote_on(&self, annotator: usize, comparison: &str, left: &Gold, right: &Gold) -> Vote {
        let annotator = &self.annotators[annotator];
        let odds = annotator.odds(left, right);
        let name = format!("vote/{}", annotator.name);
        Vote::ALL[Stream::new(self.seed, &name, hash(comparison)).weighted(&odds)]
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
