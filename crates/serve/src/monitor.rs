//! Whether what is served is worse than it should be: tests that may be looked at after every value.
//!
//! A policy is a list of criteria. Each watches one measure of one arm, with values in `[0, 1]`, against a rate or against what everyone else
//! gets at the same time:
//!
//! ```text
//! against a rate r:       H0  E x >= r - margin                (worse = "below"; "above" is the mirror image)
//! against stable:         H0  E (c - s) >= -margin             as  E (c - s + 1) / 2 >= (1 - margin) / 2
//! ```
//!
//! and bets against H0 (`stats`' `anytime.rs`): the probability that a criterion whose H0 holds is *ever* rejected is at most its `alpha`,
//! however often one looks, so the probability that a good canary is ever rolled back is at most the sum of the alphas of those that roll
//! back ([`Policy::false_rollbacks_max`]).
//!
//! **Against stable** each bet is on a pair of blocks: values of both arms are gathered until there is at least one of each, and the bet is on
//! the difference of their means. When a block closes depends on who comes, never on what they say, so its mean has the arm's own
//! expectation; and since both halves of a pair come at the same time, a day on which everybody is in a bad mood is no evidence.
//!
//! Values are bets in the order in which they come; whoever votes twice on one answer is heard once (`feedback`).
//!
//! Not here: who votes (`feedback`), what an alarm leads to (`channel`).

use std::collections::BTreeMap;

use polity_stats::{Alternative, BettingTest};
use serde::{Deserialize, Serialize};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Of an answer that someone gave a thumb to: 1 for up, 0 for down.
    ThumbsUp,
    /// Of a comparison of a canary's answer with a stable one: 1 if the canary's is better, ½ for a tie, 0 otherwise.
    Preference,
    /// Of an answer: 1 if it refuses.
    Refusal,
    /// Of an answer: its tokens as a share of the most it was allowed.
    Length,
    /// Of a request that was taken: 1 if the server failed it.
    Error,
}

impl Measure {
    /// As in a policy.
    pub fn name(self) -> &'static str {
        match self {
            Measure::ThumbsUp => "thumbs_up",
            Measure::Preference => "preference",
            Measure::Refusal => "refusal",
            Measure::Length => "length",
            Measure::Error => "error",
        }
    }
}

/// Who gets an answer from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmName {
    /// What everyone gets.
    Stable,
    /// What a share of the users gets instead.
    Canary,
}

impl ArmName {
    /// `"stable"` or `"canary"`.
    pub fn name(self) -> &'static str {
        match self {
            ArmName::Stable => "stable",
            ArmName::Canary => "canary",
        }
    }
}

/// On which side a measure is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Worse {
    /// Smaller values are worse.
    Below,
    /// Larger values are worse.
    Above,
}

/// What a measure is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Against {
    /// What everyone else gets.
    Arm(StableOnly),
    /// A fixed mean.
    Rate(f64),
}

/// The word `stable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StableOnly {
    /// It.
    Stable,
}

/// What follows when a criterion is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Somebody is told.
    Alarm,
    /// The arm is taken back.
    Rollback,
}

/// One thing to watch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Criterion {
    /// Of what.
    pub measure: Measure,
    /// Of whom.
    #[serde(default = "canary")]
    pub arm: ArmName,
    /// On which side it is worse.
    pub worse: Worse,
    /// Compared with what. A preference is one with stable in itself: its rate is ½.
    #[serde(default = "stable")]
    pub against: Against,
    /// By how much it may be worse.
    #[serde(default)]
    pub margin: f64,
    /// Probability, at most, that it is ever rejected although it holds.
    pub alpha: f64,
    /// What follows.
    pub then: Then,
}

fn canary() -> ArmName {
    ArmName::Canary
}

fn stable() -> Against {
    Against::Arm(StableOnly::Stable)
}

/// What is watched, and what follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// In the order of reports.
    #[serde(default, rename = "criterion")]
    pub criteria: Vec<Criterion>,
}

/// The policy of a channel without one of its own.
pub const USUAL_POLICY: &str = "\
# A canary that people like less is taken back; what else is unusual is said.
# A good canary is taken back with a probability of at most the sum of alpha over
# those that say rollback: 5 %.

[[criterion]]
measure = \"preference\"     # comparisons of a canary's answer with a stable one
worse = \"below\"
margin = 0.05
alpha = 0.02
then = \"rollback\"

[[criterion]]
measure = \"thumbs_up\"      # against stable, at the same time
worse = \"below\"
margin = 0.05
alpha = 0.02
then = \"rollback\"

[[criterion]]
measure = \"error\"          # requests that the server failed
worse = \"above\"
margin = 0.01
alpha = 0.01
then = \"rollback\"

[[criterion]]
measure = \"refusal\"
worse = \"above\"
margin = 0.05
alpha = 0.01
then = \"alarm\"

[[criterion]]
measure = \"length\"         # tokens, as a share of those allowed
worse = \"above\"
margin = 0.1
alpha = 0.01
then = \"alarm\"

[[criterion]]
measure = \"length\"
worse = \"below\"
margin = 0.1
alpha = 0.01
then = \"alarm\"
";

impl Policy {
    /// Reads a policy; the error names what is wrong and what was expected.
    pub fn read(text: &str) -> Result<Policy, String> {
        let policy: Policy = toml::from_str(text).map_err(|error| error.to_string())?;
        for (at, criterion) in policy.criteria.iter().enumerate() {
            criterion
                .check()
                .map_err(|what| format!("criterion {} ({}): {what}", at + 1, criterion.measure.name()))?;
        }
        Ok(policy)
    }

    /// [`USUAL_POLICY`].
    pub fn usual() -> Policy {
        Policy::read(USUAL_POLICY).expect("it is tested")
    }

    /// Probability, at most, that a canary whose criteria all hold is ever taken back.
    pub fn false_rollbacks_max(&self) -> f64 {
        self.criteria
            .iter()
            .filter(|criterion| criterion.then == Then::Rollback)
            .map(|criterion| criterion.alpha)
            .sum()
    }
}

impl Criterion {
    fn check(&self) -> Result<(), String> {
        if !(self.alpha > 0.0 && self.alpha < 1.0) {
            return Err(format!("alpha = {}; expected a number between 0 and 1", self.alpha));
        }
        if !(0.0..1.0).contains(&self.margin) {
            return Err(format!("margin = {}; expected a number from 0, below 1", self.margin));
        }
        if let Against::Rate(rate) = self.against
            && !(0.0..=1.0).contains(&rate)
        {
            return Err(format!("against = {rate}; expected \"stable\" or a number from 0 to 1"));
        }
        let by_stable = self.against == stable();
        if self.arm == ArmName::Stable && by_stable {
            return Err("arm = \"stable\" is compared with itself; expected `against` to be a number".into());
        }
        if self.arm == ArmName::Stable && self.then == Then::Rollback {
            return Err("only a canary is taken back without a person; expected then = \"alarm\"".into());
        }
        if self.measure == Measure::Preference && (self.arm == ArmName::Stable || !by_stable) {
            return Err("a preference is a canary's against stable; leave `arm` and `against` out".into());
        }
        let null = self.null();
        if !(null > 0.0 && null < 1.0) {
            return Err(format!(
                "nothing could be worse than a mean of {null:.3}; expected a smaller margin"
            ));
        }
        Ok(())
    }

    /// The mean of the bets that is just not worse.
    fn null(&self) -> f64 {
        let margin = match self.worse {
            Worse::Below => -self.margin,
            Worse::Above => self.margin,
        };
        match self.against {
            _ if self.measure == Measure::Preference => 0.5 + margin,
            Against::Rate(rate) => rate + margin,
            Against::Arm(_) => 0.5 * (1.0 + margin),
        }
    }
}

/// A criterion that was rejected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alarm {
    /// Which.
    pub criterion: Criterion,
    /// What was found.
    pub found: Standing,
}

/// How a criterion stands.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Bets so far.
    pub n: u64,
    /// Their mean; against stable, `(difference + 1) / 2`.
    pub mean: f64,
    /// The mean that is just not worse.
    pub null: f64,
    /// A p-value that may be looked at at any time.
    pub p_anytime: f64,
    /// Whether it has been rejected.
    pub rejected: bool,
}

/// Sum and number of values that wait for the other arm's.
#[derive(Clone, Copy, Debug, Default)]
struct Block {
    sum: f64,
    n: f64,
}

impl Block {
    fn push(&mut self, x: f64) {
        self.sum += x;
        self.n += 1.0;
    }
}

/// A criterion and its evidence.
#[derive(Clone, Debug)]
struct Watch {
    criterion: Criterion,
    test: BettingTest,
    n: u64,
    sum: f64,
    blocks: BTreeMap<ArmName, Block>,
}

impl Watch {
    fn new(criterion: Criterion) -> Watch {
        let alternative = match criterion.worse {
            Worse::Below => Alternative::Below,
            Worse::Above => Alternative::Above,
        };
        let test = BettingTest::new(criterion.null(), alternative, criterion.alpha);
        Watch { criterion, test, n: 0, sum: 0.0, blocks: BTreeMap::new() }
    }

    /// What is bet on, if this value makes one whole.
    fn bet_on(&mut self, arm: ArmName, x: f64) -> Option<f64> {
        if self.criterion.measure == Measure::Preference || matches!(self.criterion.against, Against::Rate(_))
        {
            return (arm == self.criterion.arm).then_some(x);
        }
        self.blocks.entry(arm).or_default().push(x);
        let of = |arm| self.blocks.get(&arm).filter(|block| block.n > 0.0).map(|block| block.sum / block.n);
        let difference = of(ArmName::Canary)? - of(ArmName::Stable)?;
        self.blocks.clear();
        Some(0.5 * (difference + 1.0))
    }

    fn push(&mut self, arm: ArmName, x: f64) -> Option<Alarm> {
        let x = self.bet_on(arm, x)?;
        let before = self.test.rejected();
        self.test.push(x);
        (self.n, self.sum) = (self.n + 1, self.sum + x);
        (self.test.rejected() && !before)
            .then(|| Alarm { criterion: self.criterion.clone(), found: self.standing() })
    }

    fn standing(&self) -> Standing {
        Standing {
            n: self.n,
            mean: self.sum / (self.n as f64).max(1.0),
            null: self.criterion.null(),
            p_anytime: self.test.p_anytime(),
            rejected: self.test.rejected(),
        }
    }
}

/// All criteria of a channel, from the day on which its arms became what they are.
#[derive(Clone, Debug)]
pub struct Monitor {
    watches: Vec<Watch>,
}

impl Monitor {
    /// With no evidence yet.
    pub fn new(policy: &Policy) -> Monitor {
        Monitor { watches: policy.criteria.iter().cloned().map(Watch::new).collect() }
    }

    /// Takes a value; gives the alarms that it raises. Each criterion raises one, once.
    pub fn push(&mut self, measure: Measure, arm: ArmName, x: f64) -> Vec<Alarm> {
        let watches = self.watches.iter_mut().filter(|watch| watch.criterion.measure == measure);
        watches.filter_map(|watch| watch.push(arm, x)).collect()
    }

    /// Every criterion and how it stands.
    pub fn standings(&self) -> impl Iterator<Item = (&Criterion, Standing)> {
        self.watches.iter().map(|watch| (&watch.criterion, watch.standing()))
    }
}
