//! Advantages without a critic: each response against the other responses to its prompt.
//!
//! ```text
//! group (GRPO) : A_i = (R_i - mean of group) / (std + 1e-4),  std of the group, of the batch, or absent
//! leave-one-out (RLOO) : A_i = R_i - mean of the others of the group;  optionally normalised over the batch
//! ```
//!
//! Standard deviations are unbiased. A response that could not be scored (`None`) is left out of the means and gets
//! advantage 0, as does one whose group has no other score.
//!
//! The loss is PPO's: [`super::ppo::policy_loss`] with every token of a response given its advantage
//! ([`per_token`]) and no critic. TRL's GRPO uses token-level ratios and [`super::kl::kl_loss`] with k3; its RLOO uses
//! [`super::ppo::RatioLevel::SequenceSum`] and takes `beta * KL` off the reward before this file's functions.
//!
//! Sources: Shao et al. 2024, arXiv:2402.03300 (GRPO); Ahmadian et al. 2024, arXiv:2402.14740 (RLOO); Liu et al. 2025,
//! arXiv:2503.20783 (no scaling); TRL 1.16 `grpo_trainer.py`, `rloo_trainer.py`.

use super::error::parse_name;
use super::metric::mean;
use super::whiten::{Moments, Variance};
use super::{MetricDecl, ObjectiveError, Spans, Stats};
use std::str::FromStr;

/// Added to the standard deviation, as in TRL.
const STD_EPS: f64 = 1e-4;

/// What the differences from the group's mean are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleRewards {
    /// The standard deviation of the group.
    Group,
    /// The standard deviation of all the batch's rewards.
    Batch,
    /// Nothing.
    None,
}

impl FromStr for ScaleRewards {
    type Err = ObjectiveError;

    /// TRL's names, its old booleans included.
    fn from_str(name: &str) -> Result<ScaleRewards, ObjectiveError> {
        let table = [
            ("group", ScaleRewards::Group),
            ("batch", ScaleRewards::Batch),
            ("none", ScaleRewards::None),
            ("true", ScaleRewards::Group),
            ("false", ScaleRewards::None),
        ];
        parse_name("scale_rewards", name, &table)
    }
}

/// Advantages of responses.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupAdvantages {
    /// `[i]`.
    pub advantage_i: Vec<f32>,
    /// Sums for the log.
    pub stats: GroupStats,
}

/// Sums over groups and responses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupStats {
    /// Rewards that exist.
    pub rewards: Moments,
    /// Groups with at least one reward.
    pub groups: u64,
    /// Sum over those of the group's standard deviation (0 for a single reward).
    pub std_sum: f64,
    /// Groups whose rewards are all equal: they teach nothing.
    pub groups_without_spread: u64,
    /// Responses that could not be scored.
    pub unscored: u64,
}

impl Stats for GroupStats {
    const METRICS: &'static [MetricDecl] = &[
        MetricDecl { name: "reward", unit: "reward", formula: "sum of rewards / scored responses" },
        MetricDecl {
            name: "reward_std",
            unit: "reward",
            formula: "sum over groups of the group's unbiased standard deviation / groups",
        },
        MetricDecl {
            name: "frac_reward_zero_std",
            unit: "share of groups",
            formula: "groups whose rewards are all equal / groups",
        },
        MetricDecl {
            name: "unscored",
            unit: "responses",
            formula: "responses without a reward; their advantage is 0",
        },
    ];

    fn merge(&mut self, other: &GroupStats) {
        self.rewards.merge(&other.rewards);
        self.groups += other.groups;
        self.std_sum += other.std_sum;
        self.groups_without_spread += other.groups_without_spread;
        self.unscored += other.unscored;
    }

    fn values(&self) -> Vec<Option<f64>> {
        vec![
            (self.rewards.count > 0).then_some(self.rewards.mean),
            mean(self.std_sum, self.groups),
            mean(self.groups_without_spread as f64, self.groups),
            Some(self.unscored as f64),
        ]
    }
}

/// A spread this small is no spread: the tolerance of `torch.isclose`, which TRL counts with.
const NO_SPREAD: f64 = 1e-8;

/// Moments of each group's rewards, and the sums for the log.
fn of_groups(reward_i: &[Option<f32>], groups: &Spans) -> (Vec<Moments>, GroupStats) {
    let mut stats = GroupStats::default();
    let of_group = |range: std::ops::Range<usize>| {
        let scored: Vec<f32> = reward_i[range.clone()].iter().copied().flatten().collect();
        let moments = Moments::of(&scored);
        stats.unscored += (range.len() - scored.len()) as u64;
        stats.rewards.merge(&moments);
        if moments.count > 0 {
            let std = moments.variance(Variance::Unbiased).unwrap_or(0.0).sqrt();
            stats.groups += 1;
            stats.std_sum += std;
            stats.groups_without_spread += u64::from(std <= NO_SPREAD);
        }
        moments
    };
    (groups.iter().map(of_group).collect(), stats)
}

/// GRPO: `(R - mean of group) / (std + 1e-4)`. Span `k` of `groups` holds the responses to prompt `k`.
///
/// `scale = Batch` needs the whole batch; groups must never be split.
///
/// # Panics
///
/// If `reward_i` does not match `groups`.
pub fn group_advantages(reward_i: &[Option<f32>], groups: &Spans, scale: ScaleRewards) -> GroupAdvantages {
    groups.expect_tokens("group_advantages", "reward_i", reward_i.len());
    let (moments_k, stats) = of_groups(reward_i, groups);
    let mut advantage_i = vec![0.0; reward_i.len()];
    for (range, group) in groups.iter().zip(&moments_k) {
        // A single reward is its own mean: there is nothing to compare it with.
        if group.count < 2 {
            continue;
        }
        let std = match scale {
            ScaleRewards::Group => group.variance(Variance::Unbiased),
            ScaleRewards::Batch => stats.rewards.variance(Variance::Unbiased),
            ScaleRewards::None => None,
        };
        let scale = std.map_or(1.0, |variance| 1.0 / (variance.sqrt() + STD_EPS));
        for i in range {
            advantage_i[i] =
                reward_i[i].map_or(0.0, |reward| ((f64::from(reward) - group.mean) * scale) as f32);
        }
    }
    GroupAdvantages { advantage_i, stats }
}

/// RLOO: `R - mean of the others of the group`, and with `normalise` whitened over the batch's scored responses
/// (which needs the whole batch).
///
/// # Panics
///
/// If `reward_i` does not match `groups`.
pub fn rloo_advantages(reward_i: &[Option<f32>], groups: &Spans, normalise: bool) -> GroupAdvantages {
    groups.expect_tokens("rloo_advantages", "reward_i", reward_i.len());
    let (moments_k, stats) = of_groups(reward_i, groups);
    let mut advantage_i = vec![0.0_f64; reward_i.len()];
    let mut scored = vec![];
    for (range, group) in groups.iter().zip(&moments_k) {
        if group.count < 2 {
            continue;
        }
        let count = group.count as f64;
        for i in range {
            let Some(reward) = reward_i[i].map(f64::from) else { continue };
            // R - (sum - R) / (n - 1), written so that it is exactly zero for equal rewards.
            advantage_i[i] = (reward - group.mean) * count / (count - 1.0);
            scored.push(i);
        }
    }
    if normalise {
        let mut moments = Moments::default();
        scored.iter().for_each(|&i| moments.push(advantage_i[i]));
        let std = moments.variance(Variance::Unbiased).map_or(0.0, f64::sqrt);
        scored.iter().for_each(|&i| advantage_i[i] = (advantage_i[i] - moments.mean) / (std + STD_EPS));
    }
    GroupAdvantages { advantage_i: advantage_i.iter().map(|&a| a as f32).collect(), stats }
}

/// Gives every token of a response its response's advantage.
///
/// # Panics
///
/// If `advantage_i` does not match `spans`.
pub fn per_token(advantage_i: &[f32], spans: &Spans) -> Vec<f32> {
    spans.expect_sequences("per_token", "advantage_i", advantage_i.len());
    let tokens = advantage_i.iter().zip(spans.iter());
    tokens.flat_map(|(&advantage, range)| std::iter::repeat_n(advantage, range.len())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(got: &[f32], expect: &[f32]) {
        assert_eq!(got.len(), expect.len());
        for (i, (got, expect)) in got.iter().zip(expect).enumerate() {
            assert!((got - expect).abs() < 1e-5, "{i}: {got} expected {expect}");
        }
    }

    fn some(rewards: &[f32]) -> Vec<Option<f32>> {
        rewards.iter().copied().map(Some).collect()
    }

    #[test]
    fn group_advantages_by_hand() {
        let groups = Spans::from_lengths([3, 2]);
        let rewards = some(&[1.0, 3.0, 5.0, 10.0, 10.0]);
        // Group: mean 3, deviation 2; mean 10, deviation 0.
        let s = 2.0 / 2.0001;
        close(&group_advantages(&rewards, &groups, ScaleRewards::Group).advantage_i, &[-s, 0.0, s, 0.0, 0.0]);
        close(
            &group_advantages(&rewards, &groups, ScaleRewards::None).advantage_i,
            &[-2.0, 0.0, 2.0, 0.0, 0.0],
        );
        // Batch: mean 5.8, squared deviations 66.8, over 4.
        let b = 2.0 / (16.7_f32.sqrt() + 1e-4);
        let out = group_advantages(&rewards, &groups, ScaleRewards::Batch);
        close(&out.advantage_i, &[-b, 0.0, b, 0.0, 0.0]);
        let value = |name| out.stats.value(name).unwrap();
        assert!((value("reward") - 5.8).abs() < 1e-12);
        assert_eq!((value("reward_std"), value("frac_reward_zero_std")), (1.0, 0.5));
        assert_eq!(value("unscored"), 0.0);
    }

    #[test]
    fn two_are_a_group() {
        let groups = Spans::from_lengths([2]);
        let out = group_advantages(&some(&[1.0, 4.0]), &groups, ScaleRewards::None);
        close(&out.advantage_i, &[-1.5, 1.5]);
        close(&rloo_advantages(&some(&[1.0, 4.0]), &groups, false).advantage_i, &[-3.0, 3.0]);
    }

    #[test]
    fn leave_one_out_by_hand() {
        let groups = Spans::from_lengths([3, 2]);
        let out = rloo_advantages(&some(&[1.0, 3.0, 5.0, 7.0, 10.0]), &groups, false);
        close(&out.advantage_i, &[1.0 - 4.0, 0.0, 5.0 - 2.0, -3.0, 3.0]);
        // Mean 0, squared deviations 36, over 4: deviation 3.
        let out = rloo_advantages(&some(&[1.0, 3.0, 5.0, 7.0, 10.0]), &groups, true);
        let s = 3.0 / 3.0001;
        close(&out.advantage_i, &[-s, 0.0, s, -s, s]);
    }

    #[test]
    fn unscored_responses_teach_nothing_and_move_no_mean() {
        let groups = Spans::from_lengths([4, 2, 2]);
        let rewards = [Some(1.0), None, Some(3.0), Some(5.0), Some(9.0), None, None, None];
        let expect = [-2.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0];
        let out = group_advantages(&rewards, &groups, ScaleRewards::None);
        close(&out.advantage_i, &expect);
        assert_eq!((out.stats.unscored, out.stats.groups, out.stats.groups_without_spread), (4, 2, 1));
        close(&rloo_advantages(&rewards, &groups, false).advantage_i, &expect.map(|a| a * 1.5));
        // Normalising is over the three that are compared.
        let white = rloo_advantages(&rewards, &groups, true).advantage_i;
        close(&white, &[-3.0 / 3.0001, 0.0, 0.0, 3.0 / 3.0001, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn equal_rewards_teach_exactly_nothing() {
        let groups = Spans::from_lengths([4]);
        let rewards = some(&[0.1; 4]);
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            assert_eq!(group_advantages(&rewards, &groups, scale).advantage_i, [0.0; 4]);
        }
        for normalise in [false, true] {
            assert_eq!(rloo_advantages(&rewards, &groups, normalise).advantage_i, [0.0; 4]);
        }
    }

    #[test]
    fn a_shift_of_the_rewards_changes_no_advantage() {
        let groups = Spans::from_lengths([3, 4]);
        let rewards = super::super::check::spread(7, 1);
        let shifted: Vec<f32> = rewards.iter().map(|r| r + 8.0).collect();
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            let (a, b) = (some(&rewards), some(&shifted));
            close(
                &group_advantages(&a, &groups, scale).advantage_i,
                &group_advantages(&b, &groups, scale).advantage_i,
            );
        }
    }

    #[test]
    fn parts_merge() {
        let rewards = some(&[1.0, 3.0, 5.0, 10.0, 10.0]);
        let whole = group_advantages(&rewards, &Spans::from_lengths([3, 2]), ScaleRewards::Group).stats;
        let mut merged =
            group_advantages(&rewards[..3], &Spans::from_lengths([3]), ScaleRewards::Group).stats;
        merged.merge(&group_advantages(&rewards[3..], &Spans::from_lengths([2]), ScaleRewards::Group).stats);
        for (got, expect) in merged.metrics().iter().zip(whole.metrics()) {
            assert!((got.value - expect.value).abs() < 1e-12, "{got:?} {expect:?}");
        }
    }

    #[test]
    fn nothing_scored_is_no_mean() {
        let out = group_advantages(&[None, None], &Spans::from_lengths([2]), ScaleRewards::Group);
        assert_eq!(out.advantage_i, [0.0, 0.0]);
        assert_eq!(out.stats.value("unscored"), Some(2.0));
        assert_eq!(out.stats.metrics().len(), 1);
    }

    #[test]
    fn every_token_gets_its_response_s_advantage() {
        assert_eq!(per_token(&[1.0, 2.0, 3.0], &Spans::from_lengths([2, 0, 1])), [1.0, 1.0, 3.0]);
    }

    #[test]
    fn names() {
        assert_eq!("group".parse(), Ok(ScaleRewards::Group));
        assert_eq!("batch".parse(), Ok(ScaleRewards::Batch));
        assert_eq!("none".parse(), Ok(ScaleRewards::None));
        assert_eq!("false".parse(), Ok(ScaleRewards::None));
        assert!("groups".parse::<ScaleRewards>().unwrap_err().to_string().contains("did you mean \"group\""));
    }
}
