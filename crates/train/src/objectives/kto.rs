//! Kahneman-Tversky optimisation: single responses, each labelled good or bad.
//!
//! With `r = log policy(y) - log reference(y)` (sums over tokens), `b` = beta, `S` the logistic function and `z` a
//! baseline divergence:
//!
//! ```text
//! kto               : good  1 - S(b (r - z))      bad  1 - S(b (z - r))
//! apo_zero_unpaired : good  1 - S(b r)            bad  S(b r)
//! L = sum_i weight_i * loss_i / examples,  weight = desirable_weight or undesirable_weight
//! z = max(0, mean_j [log policy(y_j | x_i) - log reference(y_j | x_i)])    over mismatched pairs, j != i
//! ```
//!
//! The baseline is a statistic of a batch, held constant in the gradient: [`kto_baseline`] makes it of responses that
//! were given to **other** prompts of the same batch. It needs at least two examples, and it depends on which
//! examples share a batch, so the order of the data matters.
//!
//! Source: Ethayarajh et al. 2024, arXiv:2402.01306; D'Oosterlinck et al. 2024, arXiv:2408.06266 (APO); TRL 1.16
//! `kto_trainer.py`.
//!
//! Not here: making the mismatched pairs, the log-probs.

use super::error::{check_value, parse_name};
use super::math::sigmoid;
use super::metric::mean;
use super::{LogprobObjective, MetricDecl, ObjectiveError, Spans, Stats, positive};
use std::str::FromStr;

/// Which loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KtoLoss {
    /// Against the baseline.
    Kto,
    /// Against zero; needs no mismatched pairs.
    ApoZeroUnpaired,
}

impl FromStr for KtoLoss {
    type Err = ObjectiveError;

    fn from_str(name: &str) -> Result<KtoLoss, ObjectiveError> {
        parse_name(
            "loss_type",
            name,
            &[("kto", KtoLoss::Kto), ("apo_zero_unpaired", KtoLoss::ApoZeroUnpaired)],
        )
    }
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KtoConfig {
    /// Which loss.
    pub loss: KtoLoss,
    /// Strength of the pull to the reference.
    pub beta: f64,
    /// Weight of good examples.
    pub desirable_weight: f64,
    /// Weight of bad examples.
    pub undesirable_weight: f64,
}

impl KtoConfig {
    /// Checks the fields.
    pub fn validate(&self) -> Result<(), ObjectiveError> {
        check_value("beta", self.beta, self.beta > 0.0, "> 0", "it scales the log-ratios")?;
        for (field, weight) in
            [("desirable_weight", self.desirable_weight), ("undesirable_weight", self.undesirable_weight)]
        {
            check_value(field, weight, weight >= 0.0, ">= 0", "a negative weight maximises its loss")?;
        }
        Ok(())
    }
}

/// Single responses.
#[derive(Clone, Copy, Debug)]
pub struct KtoBatch<'a> {
    /// Which tokens are whose.
    pub spans: &'a Spans,
    /// `[m]`. Under the policy being trained.
    pub logprob_m: &'a [f32],
    /// `[i]`. The reference's log-prob of each response, summed over its tokens.
    pub ref_logp_i: &'a [f64],
    /// `[i]`. Whether the response is good.
    pub good_i: &'a [bool],
    /// The baseline `z`, nats: [`kto_baseline`]. Not read by `apo_zero_unpaired`.
    pub baseline_nats: f64,
}

/// The baseline divergence of a batch: the mean log-ratio of mismatched pairs, not below zero.
///
/// `logp_j` and `ref_logp_j` are sums over the tokens of each mismatched response. With several workers, pass all of
/// theirs.
///
/// # Panics
///
/// If the slices differ in length or are empty.
pub fn kto_baseline(logp_j: &[f64], ref_logp_j: &[f64]) -> f64 {
    assert_eq!(ref_logp_j.len(), logp_j.len(), "kto_baseline: one reference log-prob per mismatched pair");
    assert!(!logp_j.is_empty(), "kto_baseline: no mismatched pairs; a batch needs at least two examples");
    let sum: f64 = logp_j.iter().zip(ref_logp_j).map(|(policy, reference)| policy - reference).sum();
    let mean = sum / logp_j.len() as f64;
    // A comparison, not f64::max, which would drop a NaN.
    if mean < 0.0 { 0.0 } else { mean }
}

/// Sums over the examples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KtoStats {
    /// Good examples.
    pub chosen: u64,
    /// Bad examples.
    pub rejected: u64,
    /// Sum of the good examples' implicit rewards.
    pub chosen_reward_sum: f64,
    /// Sum of the bad examples' implicit rewards.
    pub rejected_reward_sum: f64,
    /// Sum of the good examples' log-probs.
    pub chosen_logp_sum: f64,
    /// Sum of the bad examples' log-probs.
    pub rejected_logp_sum: f64,
    /// Calls.
    pub calls: u64,
    /// Sum of the calls' baselines.
    pub baseline_nats_sum: f64,
}

impl Stats for KtoStats {
    const METRICS: &'static [MetricDecl] = &[
        MetricDecl {
            name: "kl",
            unit: "nats per sequence",
            formula: "the baseline: max(0, mean log-ratio of mismatched pairs), averaged over calls",
        },
        MetricDecl {
            name: "rewards/chosen",
            unit: "nats",
            formula: "sum over good examples of beta * (log policy - log reference) / good examples",
        },
        MetricDecl {
            name: "rewards/rejected",
            unit: "nats",
            formula: "as rewards/chosen, over bad examples",
        },
        MetricDecl { name: "rewards/margins", unit: "nats", formula: "rewards/chosen - rewards/rejected" },
        MetricDecl {
            name: "logps/chosen",
            unit: "nats per sequence",
            formula: "sum over good examples of log policy / good examples",
        },
        MetricDecl {
            name: "logps/rejected",
            unit: "nats per sequence",
            formula: "sum over bad examples of log policy / bad examples",
        },
    ];

    fn merge(&mut self, other: &KtoStats) {
        self.chosen += other.chosen;
        self.rejected += other.rejected;
        self.chosen_reward_sum += other.chosen_reward_sum;
        self.rejected_reward_sum += other.rejected_reward_sum;
        self.chosen_logp_sum += other.chosen_logp_sum;
        self.rejected_logp_sum += other.rejected_logp_sum;
        self.calls += other.calls;
        self.baseline_nats_sum += other.baseline_nats_sum;
    }

    fn values(&self) -> Vec<Option<f64>> {
        let chosen = mean(self.chosen_reward_sum, self.chosen);
        let rejected = mean(self.rejected_reward_sum, self.rejected);
        vec![
            mean(self.baseline_nats_sum, self.calls),
            chosen,
            rejected,
            chosen.zip(rejected).map(|(chosen, rejected)| chosen - rejected),
            mean(self.chosen_logp_sum, self.chosen),
            mean(self.rejected_logp_sum, self.rejected),
        ]
    }
}

/// The loss of some examples. `examples` is the whole step's number of examples, good and bad.
///
/// # Panics
///
/// If a slice does not match `spans` or the denominator is not positive.
pub fn kto(batch: KtoBatch, config: &KtoConfig, examples: f64) -> LogprobObjective<KtoStats> {
    let KtoBatch { spans, logprob_m, ref_logp_i, good_i, baseline_nats } = batch;
    spans.expect_tokens("kto", "logprob_m", logprob_m.len());
    spans.expect_sequences("kto", "ref_logp_i", ref_logp_i.len());
    spans.expect_sequences("kto", "good_i", good_i.len());
    let examples = positive("examples", examples);
    let baseline = match config.loss {
        KtoLoss::Kto => baseline_nats,
        KtoLoss::ApoZeroUnpaired => 0.0,
    };

    let mut out =
        LogprobObjective { loss: 0.0, d_logprob_m: vec![0.0; logprob_m.len()], stats: KtoStats::default() };
    out.stats.calls = 1;
    out.stats.baseline_nats_sum = baseline;
    for (i, range) in spans.iter().enumerate() {
        let logp = super::math::sum(&logprob_m[range.clone()]);
        let log_ratio = logp - ref_logp_i[i];
        let (sign, weight) =
            if good_i[i] { (1.0, config.desirable_weight) } else { (-1.0, config.undesirable_weight) };
        // Both labels are 1 - S(x) = S(-x), with x in the direction that the label wants.
        let x = sign * config.beta * (log_ratio - baseline);
        let factor = weight / examples;
        out.loss += factor * sigmoid(-x);
        // forward was: S(-x), with x = sign * beta * (logp - ...)
        // so now:
        let d_logp = -factor * sigmoid(x) * sigmoid(-x) * sign * config.beta;
        out.d_logprob_m[range].fill(d_logp as f32);

        let reward = config.beta * log_ratio;
        let stats = &mut out.stats;
        if good_i[i] {
            stats.chosen += 1;
            stats.chosen_reward_sum += reward;
            stats.chosen_logp_sum += logp;
        } else {
            stats.rejected += 1;
            stats.rejected_reward_sum += reward;
            stats.rejected_logp_sum += logp;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::check::{central_difference, spread};
    use super::*;

    const KTO: KtoConfig =
        KtoConfig { loss: KtoLoss::Kto, beta: 0.5, desirable_weight: 1.0, undesirable_weight: 1.0 };

    #[test]
    fn worked_by_hand() {
        // beta (r - z) = 1/2 (3 - 1) = 1 for the good one, 1/2 (z - r) = 1/2 (1 + 1) = 1 for the bad one.
        let spans = Spans::from_lengths([2, 1]);
        let batch = KtoBatch {
            spans: &spans,
            logprob_m: &[-1.0, -2.0, -4.0],
            ref_logp_i: &[-6.0, -3.0],
            good_i: &[true, false],
            baseline_nats: 1.0,
        };
        let out = kto(batch, &KTO, 2.0);
        let one = 1.0 / (1.0 + 1.0_f64.exp());
        assert!((out.loss - one).abs() < 1e-12, "{}", out.loss);
        let d = one * (1.0 - one) * 0.5 / 2.0;
        for (got, expect) in out.d_logprob_m.iter().zip([-d, -d, d]) {
            assert!((f64::from(*got) - expect).abs() < 1e-8, "{got} {expect}");
        }
        let value = |name| out.stats.value(name).unwrap();
        assert_eq!((value("kl"), value("rewards/chosen"), value("rewards/rejected")), (1.0, 1.5, -0.5));
        assert_eq!(
            (value("rewards/margins"), value("logps/chosen"), value("logps/rejected")),
            (2.0, -3.0, -4.0)
        );

        // Without a baseline: beta r = 3/2 and -1/2.
        let apo = kto(batch, &KtoConfig { loss: KtoLoss::ApoZeroUnpaired, ..KTO }, 2.0);
        let expect = (1.0 / (1.0 + 1.5_f64.exp()) + 1.0 / (1.0 + 0.5_f64.exp())) / 2.0;
        assert!((apo.loss - expect).abs() < 1e-12, "{}", apo.loss);

        let weighted = kto(batch, &KtoConfig { desirable_weight: 2.0, undesirable_weight: 0.0, ..KTO }, 2.0);
        assert!((weighted.loss - one).abs() < 1e-12);
        assert_eq!(weighted.d_logprob_m[2], 0.0);
    }

    #[test]
    fn the_baseline_is_not_negative_and_not_silent_about_nan() {
        assert_eq!(kto_baseline(&[-1.0, -2.0], &[-3.0, -3.0]), 1.5);
        assert_eq!(kto_baseline(&[-5.0, -2.0], &[-3.0, -3.0]), 0.0);
        assert!(kto_baseline(&[f64::NAN], &[0.0]).is_nan());
    }

    #[test]
    #[should_panic(expected = "at least two examples")]
    fn the_baseline_needs_mismatched_pairs() {
        kto_baseline(&[], &[]);
    }

    #[test]
    fn loss_is_one_half_where_policy_is_reference() {
        let spans = Spans::from_lengths([1, 2]);
        let batch = KtoBatch {
            spans: &spans,
            logprob_m: &[-1.0, -2.0, -0.5],
            ref_logp_i: &[-1.0, -2.5],
            good_i: &[true, false],
            baseline_nats: 0.0,
        };
        assert_eq!(kto(batch, &KTO, 2.0).loss, 0.5);
    }

    #[test]
    fn gradients_are_central_differences_and_micro_batches_add_up() {
        let spans = Spans::from_lengths([2, 3, 1, 2]);
        let logprob_m: Vec<f32> = spread(8, 1).iter().map(|x| x - 1.5).collect();
        let ref_logp_i = [-2.5, -5.0, -1.0, -3.5];
        let good_i = [true, false, false, true];
        for loss in [KtoLoss::Kto, KtoLoss::ApoZeroUnpaired] {
            let config = KtoConfig { loss, desirable_weight: 1.3, undesirable_weight: 0.7, ..KTO };
            let of = |logprob_m: &[f32]| {
                let batch = KtoBatch {
                    spans: &spans,
                    logprob_m,
                    ref_logp_i: &ref_logp_i,
                    good_i: &good_i,
                    baseline_nats: 0.4,
                };
                kto(batch, &config, 4.0)
            };
            let out = of(&logprob_m);
            // Measured worst 3.9e-8.
            central_difference(&format!("{loss:?}"), &logprob_m, &out.d_logprob_m, 1e-3, 2e-7, |x| {
                of(x).loss
            });

            let part = |sequences: std::ops::Range<usize>, tokens: std::ops::Range<usize>| {
                let spans = Spans::from_lengths(sequences.clone().map(|i| spans.length(i)));
                let batch = KtoBatch {
                    spans: &spans,
                    logprob_m: &logprob_m[tokens],
                    ref_logp_i: &ref_logp_i[sequences.clone()],
                    good_i: &good_i[sequences],
                    baseline_nats: 0.4,
                };
                kto(batch, &config, 4.0)
            };
            let (a, b) = (part(0..1, 0..2), part(1..4, 2..8));
            assert!((out.loss - a.loss - b.loss).abs() < 1e-15);
            assert_eq!(out.d_logprob_m, [a.d_logprob_m, b.d_logprob_m].concat());
            let mut stats = a.stats;
            stats.merge(&b.stats);
            for (got, expect) in stats.metrics().iter().zip(out.stats.metrics()) {
                assert!((got.value - expect.value).abs() < 1e-12, "{got:?} {expect:?}");
            }
        }
    }

    #[test]
    fn settings_are_checked() {
        assert!(KTO.validate().is_ok());
        assert!(KtoConfig { beta: 0.0, ..KTO }.validate().is_err());
        assert!(KtoConfig { desirable_weight: -1.0, ..KTO }.validate().is_err());
        assert!(KtoConfig { undesirable_weight: f64::INFINITY, ..KTO }.validate().is_err());
        assert_eq!("kto".parse(), Ok(KtoLoss::Kto));
        assert_eq!("apo_zero_unpaired".parse(), Ok(KtoLoss::ApoZeroUnpaired));
        assert!("apo_zero".parse::<KtoLoss>().is_err());
    }
}
