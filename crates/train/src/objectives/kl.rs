//! The Kullback-Leibler divergence of the policy from the reference, estimated on sampled tokens, and the
//! controllers of its coefficient.
//!
//! Direction: `KL(policy || reference)`, from tokens that the **policy** sampled. With `d = log policy - log reference`
//! of the sampled token (nats):
//!
//! | estimator | value | bias | TRL's names |
//! |---|---|---|---|
//! | k1 | `d` | none; each token's can be negative | `k1` (modern), `kl` (classic) |
//! | k2 | `d^2 / 2` | small | `mse` (classic) |
//! | k3 | `e^-d - 1 + d` | none, never negative | `k3` (modern) |
//! | abs | `\|d\|` | an upper bound on k1's mean, not a KL estimate | `abs` (classic) |
//! | full | `sum_v p_v (log p_v - log q_v)` | exact for the prefix | `full` (classic) |
//!
//! The full divergence needs the whole vocabulary, so the head computes it and it arrives here as numbers.
//!
//! Sources: Schulman 2020, "Approximating KL divergence"; Ziegler et al. 2019, arXiv:1909.08593 (adaptive controller);
//! TRL 1.9.2 and 0.11.4.

use super::error::{check_value, parse_name};
use super::metric::mean;
use super::{Aggregation, LogprobObjective, MetricDecl, ObjectiveError, Spans, Stats};
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// An estimate that needs the sampled token's two log-probs only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KlEstimator {
    /// `d`.
    K1,
    /// `d^2 / 2`.
    K2,
    /// `e^-d - 1 + d`.
    K3,
    /// `|d|`.
    Abs,
}

/// What is penalised: an estimate from samples, or the exact divergence from the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KlPenalty {
    /// From the sampled tokens.
    Sampled(KlEstimator),
    /// Over the vocabulary, computed by the head for each token.
    Full,
}

const PENALTY_NAMES: &[(&str, KlPenalty)] = &[
    ("k1", KlPenalty::Sampled(KlEstimator::K1)),
    ("k2", KlPenalty::Sampled(KlEstimator::K2)),
    ("k3", KlPenalty::Sampled(KlEstimator::K3)),
    ("abs", KlPenalty::Sampled(KlEstimator::Abs)),
    ("full", KlPenalty::Full),
    ("kl", KlPenalty::Sampled(KlEstimator::K1)),
    ("mse", KlPenalty::Sampled(KlEstimator::K2)),
];

impl FromStr for KlPenalty {
    type Err = ObjectiveError;

    /// TRL's modern (`kl_estimator`) and classic (`kl_penalty`) names.
    fn from_str(name: &str) -> Result<KlPenalty, ObjectiveError> {
        parse_name("kl_estimator", name, PENALTY_NAMES)
    }
}

impl KlEstimator {
    /// The estimate for one token, nats.
    pub fn estimate(self, logprob: f64, ref_logprob: f64) -> f64 {
        let d = logprob - ref_logprob;
        match self {
            KlEstimator::K1 => d,
            KlEstimator::K2 => 0.5 * d * d,
            KlEstimator::K3 => (-d).exp_m1() + d,
            KlEstimator::Abs => d.abs(),
        }
    }

    /// The derivative of [`Self::estimate`] with respect to `logprob`.
    fn slope(self, logprob: f64, ref_logprob: f64) -> f64 {
        let d = logprob - ref_logprob;
        match self {
            // forward was: d
            KlEstimator::K1 => 1.0,
            // forward was: d^2 / 2
            KlEstimator::K2 => d,
            // forward was: e^-d - 1 + d
            KlEstimator::K3 => -(-d).exp_m1(),
            // forward was: |d|; zero at the kink
            KlEstimator::Abs if d == 0.0 => 0.0,
            KlEstimator::Abs => d.signum(),
        }
    }
}

/// The estimate for each token, nats.
///
/// # Panics
///
/// If the slices differ in length.
pub fn kl_estimates(estimator: KlEstimator, logprob_m: &[f32], ref_logprob_m: &[f32]) -> Vec<f32> {
    assert_eq!(ref_logprob_m.len(), logprob_m.len(), "kl: one reference log-prob per token");
    let pairs = logprob_m.iter().zip(ref_logprob_m);
    pairs.map(|(&p, &q)| estimator.estimate(f64::from(p), f64::from(q)) as f32).collect()
}

/// The exact divergence `sum_v p_v (log p_v - log q_v)` of one prefix, nats: the reference for the head's version.
///
/// # Panics
///
/// If the slices differ in length.
pub fn kl_full(logprob_v: &[f32], ref_logprob_v: &[f32]) -> f64 {
    assert_eq!(ref_logprob_v.len(), logprob_v.len(), "kl_full: one reference log-prob per vocabulary entry");
    let term = |(&p, &q): (&f32, &f32)| {
        let (p, q) = (f64::from(p), f64::from(q));
        // 0 log 0 = 0: a token that neither can say adds nothing.
        if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
    };
    logprob_v.iter().zip(ref_logprob_v).map(term).sum()
}

/// Sums of a divergence that is part of the loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KlStats {
    /// Tokens.
    pub tokens: u64,
    /// Sum of the estimates, nats.
    pub kl_sum: f64,
}

impl Stats for KlStats {
    const METRICS: &'static [MetricDecl] = &[MetricDecl {
        name: "kl",
        unit: "nats per token",
        formula: "sum of the configured estimate of KL(policy || reference) / tokens",
    }];

    fn merge(&mut self, other: &KlStats) {
        self.tokens += other.tokens;
        self.kl_sum += other.kl_sum;
    }

    fn values(&self) -> Vec<Option<f64>> {
        vec![mean(self.kl_sum, self.tokens)]
    }
}

/// The divergence as a term of the loss (GRPO's `beta`), instead of a part of the reward:
/// `L = coef * sum_m factor_m * kl_m`.
///
/// On the policy's own samples the expected gradient of k1 is zero, because `E[grad log p] = 0`; k2 and k3 pull
/// towards the reference. TRL's GRPO uses k3.
///
/// # Panics
///
/// If a slice does not match `spans`.
pub fn kl_loss(
    logprob_m: &[f32],
    ref_logprob_m: &[f32],
    spans: &Spans,
    estimator: KlEstimator,
    coef: f64,
    aggregation: Aggregation,
) -> LogprobObjective<KlStats> {
    spans.expect_tokens("kl_loss", "logprob_m", logprob_m.len());
    spans.expect_tokens("kl_loss", "ref_logprob_m", ref_logprob_m.len());

    let mut out =
        LogprobObjective { loss: 0.0, d_logprob_m: vec![0.0; logprob_m.len()], stats: KlStats::default() };
    for range in spans.iter() {
        let factor = coef * aggregation.token_factor(range.len());
        for m in range {
            let (logprob, ref_logprob) = (f64::from(logprob_m[m]), f64::from(ref_logprob_m[m]));
            let kl = estimator.estimate(logprob, ref_logprob);
            out.loss += factor * kl;
            out.d_logprob_m[m] = (factor * estimator.slope(logprob, ref_logprob)) as f32;
            out.stats.tokens += 1;
            out.stats.kl_sum += kl;
        }
    }
    out
}

/// The bound on the adaptive controller's relative error, Ziegler et al. 2019.
const ADAPTIVE_ERROR_MAX: f64 = 0.2;

/// The coefficient of the KL penalty, fixed or steered. Part of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum KlController {
    /// The coefficient never changes.
    Fixed {
        /// The coefficient.
        coef: f64,
    },
    /// The coefficient rises while the divergence is above the target and falls while it is below.
    Adaptive {
        /// The present coefficient.
        coef: f64,
        /// Wanted divergence in nats **per sequence** (TRL's unit). OpenRLHF and verl have targets of the same name
        /// in nats per token: multiply theirs by the response length.
        target_nats_per_sequence: f64,
        /// The larger, the slower. In episodes (sequences rolled out).
        horizon_episodes: f64,
    },
}

impl KlController {
    /// Checks the fields.
    pub fn validate(&self) -> Result<(), ObjectiveError> {
        let coef = self.coef();
        check_value(
            "kl_coef",
            coef,
            coef >= 0.0,
            ">= 0",
            "a negative penalty rewards leaving the reference",
        )?;
        if let KlController::Adaptive {
            target_nats_per_sequence: target, horizon_episodes: horizon, ..
        } = *self
        {
            check_value(
                "init_kl_coef",
                coef,
                coef > 0.0,
                "> 0",
                "the controller multiplies it, so zero stays zero",
            )?;
            check_value("target", target, target > 0.0, "> 0", "the error is relative to it")?;
            check_value("horizon", horizon, horizon > 0.0, "> 0", "it divides the step")?;
        }
        Ok(())
    }

    /// The present coefficient.
    pub fn coef(&self) -> f64 {
        match *self {
            KlController::Fixed { coef } | KlController::Adaptive { coef, .. } => coef,
        }
    }

    /// After a rollout of `episodes` sequences whose mean divergence was `kl_nats_per_sequence`:
    ///
    /// ```text
    /// error = clip(kl / target - 1, -0.2, 0.2)
    /// coef <- coef * (1 + error * episodes / horizon)
    /// ```
    ///
    /// `episodes` counts all workers' sequences. A horizon shorter than a fifth of the batch could turn the
    /// coefficient negative; it stops at zero.
    pub fn update(&mut self, kl_nats_per_sequence: f64, episodes: u64) {
        if let KlController::Adaptive { coef, target_nats_per_sequence, horizon_episodes } = self {
            let error = kl_nats_per_sequence / *target_nats_per_sequence - 1.0;
            let error = error.clamp(-ADAPTIVE_ERROR_MAX, ADAPTIVE_ERROR_MAX);
            *coef *= (1.0 + error * episodes as f64 / *horizon_episodes).max(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{central_difference, spread};
    use super::*;

    const ALL: [KlEstimator; 4] = [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3, KlEstimator::Abs];

    #[test]
    fn estimates_by_hand() {
        // d = ln 2: k3 = 1/2 - 1 + ln 2.
        let ln2 = std::f64::consts::LN_2;
        for (estimator, expect) in ALL.into_iter().zip([ln2, 0.5 * ln2 * ln2, ln2 - 0.5, ln2]) {
            assert!((estimator.estimate(-1.0 + ln2, -1.0) - expect).abs() < 1e-15, "{estimator:?}");
        }
        // d = -ln 2: k3 = 2 - 1 - ln 2.
        for (estimator, expect) in ALL.into_iter().zip([-ln2, 0.5 * ln2 * ln2, 1.0 - ln2, ln2]) {
            assert!((estimator.estimate(-1.0 - ln2, -1.0) - expect).abs() < 1e-15, "{estimator:?}");
        }
        let got = kl_estimates(KlEstimator::K1, &[-1.0, -2.0], &[-1.5, -1.0]);
        assert_eq!(got, [0.5, -1.0]);
    }

    /// `E_p[k1] = E_p[k3] = KL(p || q)`, and the direction is policy from reference: the other way gives another
    /// number.
    #[test]
    fn k1_and_k3_are_unbiased_for_the_full_divergence() {
        let p = [0.5_f32, 0.3, 0.15, 0.05].map(f32::ln);
        let q = [0.2_f32, 0.3, 0.1, 0.4].map(f32::ln);
        let full = kl_full(&p, &q);
        assert!((full - (0.5 * 2.5_f64.ln() + 0.15 * 1.5_f64.ln() - 0.05 * 8.0_f64.ln())).abs() < 1e-6);
        for estimator in [KlEstimator::K1, KlEstimator::K3] {
            let expected: f64 = p
                .iter()
                .zip(&q)
                .map(|(&p, &q)| f64::from(p).exp() * estimator.estimate(f64::from(p), f64::from(q)))
                .sum();
            assert!((expected - full).abs() < 1e-6, "{estimator:?}: {expected} {full}");
        }
        assert!((kl_full(&q, &p) - full).abs() > 0.1);
        assert_eq!(kl_full(&[0.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]), 0.0);
    }

    #[test]
    fn every_estimate_is_zero_where_policy_is_reference() {
        let logprob_m: Vec<f32> = spread(6, 1).iter().map(|x| x - 1.1).collect();
        for estimator in ALL {
            assert_eq!(kl_estimates(estimator, &logprob_m, &logprob_m), [0.0; 6], "{estimator:?}");
        }
    }

    #[test]
    fn gradients_are_central_differences() {
        let spans = Spans::from_lengths([3, 4]);
        let logprob_m: Vec<f32> = spread(7, 1).iter().map(|x| x - 1.5).collect();
        let ref_logprob_m: Vec<f32> = spread(7, 2).iter().map(|x| x - 1.5).collect();
        for estimator in ALL {
            for aggregation in
                [Aggregation::TokenMean { tokens: 9.0 }, Aggregation::SequenceMean { sequences: 3.0 }]
            {
                let loss = |x: &[f32]| kl_loss(x, &ref_logprob_m, &spans, estimator, 0.3, aggregation);
                let out = loss(&logprob_m);
                // Measured worst 2.2e-7 (k3, curvature).
                let what = format!("kl_loss {estimator:?} {aggregation:?}");
                central_difference(&what, &logprob_m, &out.d_logprob_m, 1e-3, 1e-6, |x| loss(x).loss);
            }
        }
    }

    #[test]
    fn kl_loss_by_hand() {
        let spans = Spans::from_lengths([1, 2]);
        let (p, q) = ([-1.0, -1.0, -2.0], [-2.0, -1.5, -2.5]);
        let mean = kl_loss(&p, &q, &spans, KlEstimator::K1, 0.5, Aggregation::TokenMean { tokens: 4.0 });
        assert_eq!(mean.loss, 0.5 * 2.0 / 4.0);
        assert_eq!(mean.stats.value("kl"), Some(2.0 / 3.0));
        let mut twice = mean.stats.clone();
        twice.merge(&mean.stats);
        assert_eq!(twice, KlStats { tokens: 6, kl_sum: 4.0 });
        assert!(KlStats::default().metrics().is_empty());
        let by_sequence =
            kl_loss(&p, &q, &spans, KlEstimator::K1, 1.0, Aggregation::SequenceMean { sequences: 2.0 });
        assert_eq!(by_sequence.loss, (1.0 + 0.5) / 2.0);
        assert_eq!(by_sequence.d_logprob_m, [0.5, 0.25, 0.25]);
    }

    #[test]
    fn adaptive_controller_by_hand() {
        let start =
            KlController::Adaptive { coef: 0.2, target_nats_per_sequence: 6.0, horizon_episodes: 10_000.0 };
        let check = |kl: f64, factor: f64| {
            let mut controller = start;
            controller.update(kl, 256);
            assert!((controller.coef() - 0.2 * factor).abs() < 1e-15, "kl = {kl}: {}", controller.coef());
        };
        check(6.0, 1.0); // On target: no change.
        check(6.6, 1.0 + 0.1 * 0.0256);
        check(60.0, 1.0 + 0.2 * 0.0256); // Clipped above,
        check(-3.0, 1.0 - 0.2 * 0.0256); // and below.

        let mut fixed = KlController::Fixed { coef: 0.05 };
        fixed.update(60.0, 256);
        assert_eq!(fixed, KlController::Fixed { coef: 0.05 });
    }

    #[test]
    fn a_controller_comes_back_from_a_checkpoint_bit_for_bit() {
        let mut controller =
            KlController::Adaptive { coef: 0.2, target_nats_per_sequence: 6.0, horizon_episodes: 10_000.0 };
        controller.update(7.3, 17);
        let text = serde_json::to_string(&controller).unwrap();
        assert!(text.contains("\"kind\":\"adaptive\""), "{text}");
        assert_eq!(serde_json::from_str::<KlController>(&text).unwrap(), controller);
    }

    #[test]
    fn controller_settings_are_checked() {
        let adaptive = |coef, target_nats_per_sequence, horizon_episodes| {
            KlController::Adaptive { coef, target_nats_per_sequence, horizon_episodes }
                .validate()
                .map_err(|e| e.to_string().split(',').next().unwrap().to_owned())
        };
        assert_eq!(adaptive(0.2, 6.0, 1e4), Ok(()));
        assert_eq!(adaptive(0.0, 6.0, 1e4), Err("init_kl_coef = 0".into()));
        assert_eq!(adaptive(0.2, 0.0, 1e4), Err("target = 0".into()));
        assert_eq!(adaptive(0.2, 6.0, 0.0), Err("horizon = 0".into()));
        assert!(KlController::Fixed { coef: -0.1 }.validate().is_err());
        assert!(KlController::Fixed { coef: 0.0 }.validate().is_ok());
    }

    #[test]
    fn names() {
        for (name, expect) in [
            ("k1", KlPenalty::Sampled(KlEstimator::K1)),
            ("kl", KlPenalty::Sampled(KlEstimator::K1)),
            ("mse", KlPenalty::Sampled(KlEstimator::K2)),
            ("k2", KlPenalty::Sampled(KlEstimator::K2)),
            ("k3", KlPenalty::Sampled(KlEstimator::K3)),
            ("abs", KlPenalty::Sampled(KlEstimator::Abs)),
            ("full", KlPenalty::Full),
        ] {
            assert_eq!(name.parse(), Ok(expect), "{name}");
        }
        assert!("ful".parse::<KlPenalty>().unwrap_err().to_string().contains("did you mean \"full\""));
    }
}
