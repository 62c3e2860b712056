//! Supervised fine-tuning: the negative log-likelihood of the wanted tokens.
//!
//! ```text
//! nll: L = sum_m w_m * -log p_m                    / denominator
//! dft: L = sum_m w_m * -log p_m * stop_gradient(p) / denominator
//! ```
//!
//! Source: TRL 1.16 `SFTTrainer` (`loss_type` nll, dft); DFT is Wu et al. 2025, arXiv:2508.05629.
//!
//! Not here: which tokens are trained (the list of predictions), accuracy and entropy (the head knows them).

use super::error::parse_name;
use super::metric::mean;
use super::{LogprobObjective, MetricDecl, ObjectiveError, Stats, positive};
use std::str::FromStr;

/// Which loss a token has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SftLoss {
    /// `-log p`.
    Nll,
    /// `-p * log p` with the factor `p` held constant: a token the model finds unlikely pulls less.
    Dft,
}

impl FromStr for SftLoss {
    type Err = ObjectiveError;

    /// TRL's names. `chunked_nll` is `nll` computed in pieces, which is how it is always computed here.
    fn from_str(name: &str) -> Result<SftLoss, ObjectiveError> {
        let table = [("nll", SftLoss::Nll), ("chunked_nll", SftLoss::Nll), ("dft", SftLoss::Dft)];
        parse_name("loss_type", name, &table)
    }
}

/// Sums over the trained tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SftStats {
    /// Tokens with a non-zero weight.
    pub tokens: u64,
    /// Sum of `-log p` over those tokens, without weights.
    pub nll_sum: f64,
}

impl Stats for SftStats {
    const METRICS: &'static [MetricDecl] = &[MetricDecl {
        name: "nll_per_token",
        unit: "nats per token",
        formula: "sum of -log p over trained tokens / trained tokens; unweighted, whatever the loss",
    }];

    fn merge(&mut self, other: &SftStats) {
        self.tokens += other.tokens;
        self.nll_sum += other.nll_sum;
    }

    fn values(&self) -> Vec<Option<f64>> {
        vec![mean(self.nll_sum, self.tokens)]
    }
}

/// Token loss of any number of sequences.
///
/// `weight_m` scales each token (all ones if absent). `denominator` is the whole step's: its number of trained
/// tokens, or the sum of their weights.
///
/// # Panics
///
/// If the slices differ in length or the denominator is not positive.
pub fn sft(
    logprob_m: &[f32],
    weight_m: Option<&[f32]>,
    loss: SftLoss,
    denominator: f64,
) -> LogprobObjective<SftStats> {
    if let Some(weight_m) = weight_m {
        assert_eq!(weight_m.len(), logprob_m.len(), "sft: one weight per token");
    }
    let denominator = positive("tokens", denominator);

    let mut out = LogprobObjective {
        loss: 0.0,
        d_logprob_m: Vec::with_capacity(logprob_m.len()),
        stats: SftStats::default(),
    };
    for (m, &logprob) in logprob_m.iter().enumerate() {
        let weight = weight_m.map_or(1.0, |w| f64::from(w[m]));
        let logprob = f64::from(logprob);
        let factor = match loss {
            SftLoss::Nll => weight / denominator,
            SftLoss::Dft => weight / denominator * logprob.exp(),
        };
        out.loss -= factor * logprob;
        out.d_logprob_m.push(-factor as f32);
        if weight != 0.0 {
            out.stats.tokens += 1;
            out.stats.nll_sum -= logprob;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::check::{central_difference, spread};
    use super::*;

    #[test]
    fn worked_by_hand() {
        let half = 0.5_f32.ln();
        let out = sft(&[half, half, 0.0], None, SftLoss::Nll, 3.0);
        assert!((out.loss - 2.0 * std::f64::consts::LN_2 / 3.0).abs() < 1e-7, "{}", out.loss);
        assert_eq!(out.d_logprob_m, [-1.0_f32 / 3.0; 3]);

        // Each of the two uncertain tokens counts by its probability, 1/2.
        let out = sft(&[half, half, 0.0], None, SftLoss::Dft, 3.0);
        assert!((out.loss - std::f64::consts::LN_2 / 3.0).abs() < 1e-7, "{}", out.loss);
        assert_eq!(out.d_logprob_m[2], -1.0_f32 / 3.0);
        assert!((out.d_logprob_m[0] + 1.0 / 6.0).abs() < 1e-7);
    }

    #[test]
    fn weights_scale_tokens_and_a_zero_weight_is_an_absent_token() {
        let out = sft(&[-1.0, -2.0, -4.0], Some(&[1.0, 0.0, 0.5]), SftLoss::Nll, 2.0);
        assert_eq!(out.loss, (1.0 + 2.0) / 2.0);
        assert_eq!(out.d_logprob_m, [-0.5, 0.0, -0.25]);
        assert_eq!(out.stats, SftStats { tokens: 2, nll_sum: 5.0 });
        assert_eq!(out.stats.value("nll_per_token"), Some(2.5));
    }

    #[test]
    fn gradient_is_the_central_difference() {
        let logprob_m: Vec<f32> = spread(7, 1).iter().map(|x| x - 1.5).collect();
        let weight_m: Vec<f32> = spread(7, 2).iter().map(|x| x + 1.0).collect();
        let out = sft(&logprob_m, Some(&weight_m), SftLoss::Nll, 5.0);
        // The loss is linear: only the f32 rounding of the gradient is left. Measured worst 3e-8.
        central_difference("sft", &logprob_m, &out.d_logprob_m, 1e-2, 2e-7, |x| {
            sft(x, Some(&weight_m), SftLoss::Nll, 5.0).loss
        });

        // DFT holds its factor constant, so the difference is taken of the loss with the factor frozen.
        let out = sft(&logprob_m, None, SftLoss::Dft, 5.0);
        central_difference("dft", &logprob_m, &out.d_logprob_m, 1e-2, 2e-7, |x| {
            x.iter().zip(&logprob_m).map(|(&x, &at)| -f64::from(x) * f64::from(at).exp() / 5.0).sum()
        });
    }

    #[test]
    fn micro_batches_add_up() {
        let logprob_m: Vec<f32> = spread(9, 3).iter().map(|x| x - 1.2).collect();
        let whole = sft(&logprob_m, None, SftLoss::Nll, 9.0);
        let (a, b) =
            (sft(&logprob_m[..2], None, SftLoss::Nll, 9.0), sft(&logprob_m[2..], None, SftLoss::Nll, 9.0));
        assert!((whole.loss - a.loss - b.loss).abs() < 1e-15);
        assert_eq!(whole.d_logprob_m, [a.d_logprob_m, b.d_logprob_m].concat());
        let mut merged = a.stats;
        merged.merge(&b.stats);
        assert!((merged.nll_sum - whole.stats.nll_sum).abs() < 1e-12);
        assert_eq!(merged.tokens, whole.stats.tokens);
    }

    #[test]
    fn names() {
        assert_eq!("chunked_nll".parse(), Ok(SftLoss::Nll));
        assert_eq!("dft".parse(), Ok(SftLoss::Dft));
        assert!("dtf".parse::<SftLoss>().unwrap_err().to_string().contains("did you mean \"dft\""));
    }
}
