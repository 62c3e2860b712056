//! Reward model losses: pairs, and rankings of k candidates.
//!
//! ```text
//! bradley_terry : x = r_c - r_r - margin
//!                 L = sum_p w_p [-q_p log sigmoid(x) - (1 - q_p) log sigmoid(-x) + c (r_c + r_r)^2] / pairs
//! ranking_pairs : each ranking is the mean of -log sigmoid(r_better - r_worse) over its pairs of unequal rank
//! plackett_luce : each ranking is -sum_j [r_j - log sum_{l >= j} exp r_l], best first
//! ```
//!
//! `q` is the soft label (share of votes for the chosen response; 1 if absent) and `c` centres the rewards, which the
//! pairs alone leave free to drift.
//!
//! Sources: Bradley & Terry 1952; Touvron et al. 2023, arXiv:2307.09288 (margin); Eisenstein et al. 2023,
//! arXiv:2312.09244 (centring); Ouyang et al. 2022, arXiv:2203.02155 (all pairs of a ranking); Plackett 1975 and
//! Luce 1959; TRL 1.16 `RewardTrainer`.
//!
//! Not here: reading the scalar at the last token, the final shift that makes a reference set score zero.

use super::math::{log_sigmoid, sigmoid};
use super::metric::mean;
use super::{MetricDecl, PairColumns, ScalarObjective, Spans, Stats, positive};

/// Sums over pairs and rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct RewardStats {
    /// Rewards.
    pub rewards: u64,
    /// Smallest reward.
    pub reward_min: f64,
    /// Sum of rewards.
    pub reward_sum: f64,
    /// Largest reward.
    pub reward_max: f64,
    /// Pairs (of unequal rank, in rankings).
    pub pairs: u64,
    /// Pairs whose better response has the strictly larger reward.
    pub correct: u64,
    /// Pairs with equal rewards. They count as wrong, as in TRL.
    pub ties: u64,
    /// Sum of reward differences, better minus worse.
    pub margin_sum: f64,
}

impl Default for RewardStats {
    fn default() -> RewardStats {
        RewardStats {
            rewards: 0,
            reward_min: f64::INFINITY,
            reward_sum: 0.0,
            reward_max: f64::NEG_INFINITY,
            pairs: 0,
            correct: 0,
            ties: 0,
            margin_sum: 0.0,
        }
    }
}

impl RewardStats {
    fn add_reward(&mut self, reward: f64) {
        self.rewards += 1;
        self.reward_min = self.reward_min.min(reward);
        self.reward_sum += reward;
        self.reward_max = self.reward_max.max(reward);
    }

    fn add_pair(&mut self, better: f64, worse: f64) {
        self.pairs += 1;
        self.correct += u64::from(better > worse);
        self.ties += u64::from(better == worse);
        self.margin_sum += better - worse;
    }
}

impl Stats for RewardStats {
    const METRICS: &'static [MetricDecl] = &[
        MetricDecl { name: "min_reward", unit: "reward", formula: "smallest reward of the step" },
        MetricDecl { name: "mean_reward", unit: "reward", formula: "sum of rewards / rewards" },
        MetricDecl { name: "max_reward", unit: "reward", formula: "largest reward of the step" },
        MetricDecl {
            name: "accuracy",
            unit: "share of pairs",
            formula: "pairs with reward(better) > reward(worse) / pairs; a tie is wrong",
        },
        MetricDecl {
            name: "ties",
            unit: "share of pairs",
            formula: "pairs with reward(better) = reward(worse) / pairs",
        },
        MetricDecl {
            name: "margin",
            unit: "reward",
            formula: "sum of reward(better) - reward(worse) / pairs; the data's margin is not subtracted",
        },
    ];

    fn merge(&mut self, other: &RewardStats) {
        self.rewards += other.rewards;
        self.reward_min = self.reward_min.min(other.reward_min);
        self.reward_sum += other.reward_sum;
        self.reward_max = self.reward_max.max(other.reward_max);
        self.pairs += other.pairs;
        self.correct += other.correct;
        self.ties += other.ties;
        self.margin_sum += other.margin_sum;
    }

    fn values(&self) -> Vec<Option<f64>> {
        let any = self.rewards > 0;
        vec![
            any.then_some(self.reward_min),
            mean(self.reward_sum, self.rewards),
            any.then_some(self.reward_max),
            mean(self.correct as f64, self.pairs),
            mean(self.ties as f64, self.pairs),
            mean(self.margin_sum, self.pairs),
        ]
    }
}

/// Bradley-Terry loss of pairs. `reward_i` alternates chosen and rejected: `2p` and `2p + 1` are pair `p`'s.
///
/// `pairs` is the whole step's number of pairs (or the sum of their weights). A weight scales all of a pair's terms.
///
/// # Panics
///
/// If the rewards are not in twos, a column does not match, or the denominator is not positive.
pub fn bradley_terry(
    reward_i: &[f32],
    columns: PairColumns,
    center_rewards_coefficient: f64,
    pairs: f64,
) -> ScalarObjective<RewardStats> {
    assert!(reward_i.len().is_multiple_of(2), "bradley_terry: two rewards a pair, got {}", reward_i.len());
    columns.expect_pairs("bradley_terry", reward_i.len() / 2);
    let pairs = positive("pairs", pairs);

    let mut out = ScalarObjective {
        loss: 0.0,
        d_scalar: Vec::with_capacity(reward_i.len()),
        stats: RewardStats::default(),
    };
    for (p, pair) in reward_i.chunks_exact(2).enumerate() {
        let (chosen, rejected) = (f64::from(pair[0]), f64::from(pair[1]));
        let factor = columns.weight(p) / pairs;
        let label = columns.label(p);
        let x = chosen - rejected - columns.margin(p);
        let sum = chosen + rejected;
        out.loss += factor
            * (-label * log_sigmoid(x) - (1.0 - label) * log_sigmoid(-x)
                + center_rewards_coefficient * sum * sum);
        // forward was: -q log sigmoid(x) - (1 - q) log sigmoid(-x) + c sum^2
        // so now:
        let d_x = sigmoid(x) - label;
        let d_sum = 2.0 * center_rewards_coefficient * sum;
        out.d_scalar.push((factor * (d_x + d_sum)) as f32);
        out.d_scalar.push((factor * (-d_x + d_sum)) as f32);

        out.stats.add_reward(chosen);
        out.stats.add_reward(rejected);
        out.stats.add_pair(chosen, rejected);
    }
    out
}

/// Loss of rankings as all their pairs. `span` `k` of `spans` holds the candidates of ranking `k`; the smaller
/// `rank_s`, the better, and equal ranks form no pair. Each ranking is averaged over its pairs, so that a prompt with
/// nine candidates weighs as much as one with two.
///
/// `rankings` is the whole step's number of rankings.
///
/// # Panics
///
/// If the slices differ in length or the denominator is not positive.
pub fn ranking_pairs(
    reward_s: &[f32],
    rank_s: &[u32],
    spans: &Spans,
    rankings: f64,
) -> ScalarObjective<RewardStats> {
    spans.expect_tokens("ranking_pairs", "reward_s", reward_s.len());
    spans.expect_tokens("ranking_pairs", "rank_s", rank_s.len());
    let rankings = positive("rankings", rankings);

    let mut stats = RewardStats::default();
    let mut loss = 0.0;
    let mut d_reward_s = vec![0.0_f64; reward_s.len()];
    for range in spans.iter() {
        reward_s[range.clone()].iter().for_each(|&reward| stats.add_reward(reward.into()));
        let pairs: Vec<(usize, usize)> = range
            .clone()
            .flat_map(|better| range.clone().map(move |worse| (better, worse)))
            .filter(|&(better, worse)| rank_s[better] < rank_s[worse])
            .collect();
        for &(better, worse) in &pairs {
            let factor = 1.0 / (pairs.len() as f64 * rankings);
            let x = f64::from(reward_s[better]) - f64::from(reward_s[worse]);
            loss -= factor * log_sigmoid(x);
            // forward was: -log sigmoid(better - worse)
            // so now:
            let d_x = -factor * sigmoid(-x);
            d_reward_s[better] += d_x;
            d_reward_s[worse] -= d_x;
            stats.add_pair(reward_s[better].into(), reward_s[worse].into());
        }
    }
    ScalarObjective { loss, d_scalar: d_reward_s.iter().map(|&d| d as f32).collect(), stats }
}

/// Plackett-Luce loss of rankings whose candidates are given best first: the best is chosen among all, the next among
/// the rest, and so on. Two candidates make it Bradley-Terry. There are no ties: a ranking with equal ranks has no
/// Plackett-Luce likelihood, use [`ranking_pairs`].
///
/// `rankings` is the whole step's number of rankings. A ranking is a sum over its choices, not a mean.
///
/// # Panics
///
/// If `reward_s` does not match `spans` or the denominator is not positive.
pub fn plackett_luce(reward_s: &[f32], spans: &Spans, rankings: f64) -> ScalarObjective<RewardStats> {
    spans.expect_tokens("plackett_luce", "reward_s", reward_s.len());
    let rankings = positive("rankings", rankings);

    let mut stats = RewardStats::default();
    let mut loss = 0.0;
    let mut d_reward_s = vec![0.0_f64; reward_s.len()];
    for range in spans.iter() {
        for s in range.clone() {
            stats.add_reward(reward_s[s].into());
            (s + 1..range.end).for_each(|worse| stats.add_pair(reward_s[s].into(), reward_s[worse].into()));
        }
        // The last candidate is no choice: its term is zero.
        for j in range.start..range.end.saturating_sub(1) {
            let rest = &reward_s[j..range.end];
            let largest = rest.iter().fold(f64::NEG_INFINITY, |m, &r| m.max(r.into()));
            let total: f64 = rest.iter().map(|&r| (f64::from(r) - largest).exp()).sum();
            loss += (largest + total.ln() - f64::from(reward_s[j])) / rankings;
            // forward was: log sum_{l >= j} exp r_l - r_j
            // so now:
            d_reward_s[j] -= 1.0 / rankings;
            for l in j..range.end {
                d_reward_s[l] += (f64::from(reward_s[l]) - largest).exp() / total / rankings;
            }
        }
    }
    ScalarObjective { loss, d_scalar: d_reward_s.iter().map(|&d| d as f32).collect(), stats }
}

#[cfg(test)]
mod tests {
    use super::super::check::{central_difference, spread};
    use super::*;

    const LN3: f32 = 1.098_612_3;

    #[test]
    fn bradley_terry_by_hand() {
        // Difference ln 3: probability 3/4.
        let out = bradley_terry(&[LN3, 0.0], PairColumns::NONE, 0.0, 1.0);
        assert!((out.loss - (4.0_f64 / 3.0).ln()).abs() < 1e-7, "{}", out.loss);
        assert!((out.d_scalar[0] + 0.25).abs() < 1e-7 && (out.d_scalar[1] - 0.25).abs() < 1e-7);
        // Equal rewards: ln 2, whatever they are.
        assert_eq!(bradley_terry(&[7.0, 7.0], PairColumns::NONE, 0.0, 1.0).loss, std::f64::consts::LN_2);
        // A margin of ln 3 uses the difference up.
        let margin = PairColumns { margin_p: Some(&[LN3]), ..PairColumns::NONE };
        assert_eq!(bradley_terry(&[LN3, 0.0], margin, 0.0, 1.0).loss, std::f64::consts::LN_2);
        // The soft label 3/4 is what the model says: no gradient, and the loss is the label's entropy.
        let soft = PairColumns { label_p: Some(&[0.75]), ..PairColumns::NONE };
        let out = bradley_terry(&[LN3, 0.0], soft, 0.0, 1.0);
        assert!((out.loss - 0.562_335_144_6).abs() < 1e-7, "{}", out.loss);
        assert!(out.d_scalar[0].abs() < 1e-7);
        // Centring: c (3 + 1)^2.
        let centred = bradley_terry(&[3.0, 1.0], PairColumns::NONE, 0.01, 1.0);
        let plain = bradley_terry(&[3.0, 1.0], PairColumns::NONE, 0.0, 1.0);
        assert!((centred.loss - plain.loss - 0.16).abs() < 1e-12);
        assert!((centred.d_scalar[0] - plain.d_scalar[0] - 0.08).abs() < 1e-7);
        assert!((centred.d_scalar[1] - plain.d_scalar[1] - 0.08).abs() < 1e-7);
    }

    #[test]
    fn a_weight_of_two_is_the_pair_twice() {
        let columns = PairColumns { weight_p: Some(&[2.0, 1.0, 0.0]), ..PairColumns::NONE };
        let weighted = bradley_terry(&[0.3, -0.4, 1.0, 1.5, 9.0, -9.0], columns, 0.01, 3.0);
        let twice = bradley_terry(&[0.3, -0.4, 0.3, -0.4, 1.0, 1.5], PairColumns::NONE, 0.01, 3.0);
        assert!((weighted.loss - twice.loss).abs() < 1e-15);
        assert!((weighted.d_scalar[0] - 2.0 * twice.d_scalar[0]).abs() < 1e-7);
        assert_eq!(weighted.d_scalar[4], 0.0);
    }

    #[test]
    fn metrics_by_hand_and_merged() {
        let whole = bradley_terry(&[1.0, 0.0, -2.0, 3.0, 0.5, 0.5], PairColumns::NONE, 0.0, 3.0).stats;
        let mut merged = bradley_terry(&[1.0, 0.0], PairColumns::NONE, 0.0, 3.0).stats;
        merged.merge(&bradley_terry(&[-2.0, 3.0, 0.5, 0.5], PairColumns::NONE, 0.0, 3.0).stats);
        assert_eq!(whole, merged);
        let value = |name| whole.value(name).unwrap();
        assert_eq!((value("min_reward"), value("mean_reward"), value("max_reward")), (-2.0, 0.5, 3.0));
        assert_eq!((value("accuracy"), value("ties")), (1.0 / 3.0, 1.0 / 3.0));
        assert_eq!(value("margin"), -4.0 / 3.0);
        assert!(RewardStats::default().metrics().is_empty());
    }

    #[test]
    fn swapped_candidates_negate_the_margin() {
        let margin =
            |pair: [f32; 2]| bradley_terry(&pair, PairColumns::NONE, 0.0, 1.0).stats.value("margin").unwrap();
        assert_eq!(margin([1.25, -0.5]), -margin([-0.5, 1.25]));
    }

    #[test]
    fn gradients_are_central_differences() {
        let reward_i = spread(8, 1);
        let (margin, weight, label) = ([0.5, 0.0, 0.2, -0.3], [1.0, 0.5, 2.0, 1.5], [1.0, 0.7, 0.5, 0.2]);
        let full = PairColumns { margin_p: Some(&margin), weight_p: Some(&weight), label_p: Some(&label) };
        for (columns, centre) in [
            (PairColumns::NONE, 0.0),
            (PairColumns::NONE, 0.1),
            (PairColumns { margin_p: Some(&margin), ..PairColumns::NONE }, 0.0),
            (PairColumns { weight_p: Some(&weight), ..PairColumns::NONE }, 0.0),
            (PairColumns { label_p: Some(&label), ..PairColumns::NONE }, 0.0),
            (full, 0.1),
        ] {
            let loss = |x: &[f32]| bradley_terry(x, columns, centre, 5.0);
            let out = loss(&reward_i);
            // Measured worst 4.3e-8.
            let what = format!("bradley_terry {columns:?} {centre}");
            central_difference(&what, &reward_i, &out.d_scalar, 1e-3, 2e-7, |x| loss(x).loss);
        }

        let spans = Spans::from_lengths([3, 1, 4]);
        let rank_s = [2, 0, 1, 5, 1, 0, 1, 3];
        let loss = |x: &[f32]| ranking_pairs(x, &rank_s, &spans, 3.0);
        let out = loss(&reward_i);
        central_difference("ranking_pairs", &reward_i, &out.d_scalar, 1e-3, 2e-7, |x| loss(x).loss);
        let loss = |x: &[f32]| plackett_luce(x, &spans, 3.0);
        let out = loss(&reward_i);
        central_difference("plackett_luce", &reward_i, &out.d_scalar, 1e-3, 2e-7, |x| loss(x).loss);
    }

    #[test]
    fn a_ranking_of_two_is_a_pair() {
        let pair = bradley_terry(&[0.7, -0.2], PairColumns::NONE, 0.0, 1.0);
        let spans = Spans::from_lengths([2]);
        let as_pairs = ranking_pairs(&[0.7, -0.2], &[0, 1], &spans, 1.0);
        let as_choice = plackett_luce(&[0.7, -0.2], &spans, 1.0);
        for other in [as_pairs, as_choice] {
            assert!((other.loss - pair.loss).abs() < 1e-15);
            assert!((other.d_scalar[0] - pair.d_scalar[0]).abs() < 1e-7);
            assert!((other.d_scalar[1] - pair.d_scalar[1]).abs() < 1e-7);
            assert_eq!(other.stats, pair.stats);
        }
    }

    #[test]
    fn rankings_by_hand() {
        // Rewards ln 3, ln 2, ln 1 in that order: choices 3/6 and 2/3.
        let reward_s = [3.0_f32.ln(), 2.0_f32.ln(), 0.0];
        let spans = Spans::from_lengths([3]);
        let choice = plackett_luce(&reward_s, &spans, 1.0);
        assert!((choice.loss - (2.0_f64.ln() + 1.5_f64.ln())).abs() < 1e-7, "{}", choice.loss);
        // Pairs 3/5, 3/4 and 2/3, averaged.
        let pairs = ranking_pairs(&reward_s, &[0, 1, 2], &spans, 1.0);
        let expect = -(0.6_f64.ln() + 0.75_f64.ln() + (2.0_f64 / 3.0).ln()) / 3.0;
        assert!((pairs.loss - expect).abs() < 1e-7, "{}", pairs.loss);
        // The order of the candidates does not matter, their ranks do.
        let shuffled = ranking_pairs(&[reward_s[2], reward_s[0], reward_s[1]], &[2, 0, 1], &spans, 1.0);
        assert!((shuffled.loss - pairs.loss).abs() < 1e-15);
        // Equal ranks form no pair; a ranking of equals says nothing.
        let tied = ranking_pairs(&reward_s, &[0, 1, 1], &spans, 1.0);
        assert!((tied.loss + (0.6_f64.ln() + 0.75_f64.ln()) / 2.0).abs() < 1e-7);
        assert_eq!(ranking_pairs(&reward_s, &[4, 4, 4], &spans, 1.0).loss, 0.0);
        // A step's rankings are averaged whatever their sizes.
        let two = Spans::from_lengths([3, 2]);
        let both = ranking_pairs(&[reward_s[0], reward_s[1], 0.0, 0.0, 0.0], &[0, 1, 2, 0, 1], &two, 2.0);
        assert!((both.loss - (pairs.loss + std::f64::consts::LN_2) / 2.0).abs() < 1e-12);
    }

    #[test]
    #[should_panic(expected = "two rewards a pair")]
    fn rewards_come_in_twos() {
        bradley_terry(&[1.0], PairColumns::NONE, 0.0, 1.0);
    }
}
