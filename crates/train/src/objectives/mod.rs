//! Training objectives: pure functions from per-prediction numbers to a loss, its gradient and its statistics.
//!
//! Nothing here knows a tensor, a file, a clock or a random number. A trainer asks the model for the log-prob (and
//! entropy) of each predicted token, or for one scalar a row, calls one function of this module, and hands the
//! returned gradient to the head's backward pass.
//!
//! Legend, for every file of this module (flat arrays, one dimension each):
//!
//! | letter | counts |
//! |---|---|
//! | `m` | predicted (response) tokens; sequence `i` owns `spans.range(i)` |
//! | `u` | critic readings; as `m`, plus one past the end where the score is placed there ([`ppo::ScorePlacement`]) |
//! | `i` | sequences (responses) |
//! | `p` | pairs; sequence `2p` is the chosen response and `2p + 1` the rejected one |
//!
//! Inputs and gradients are f32. Losses, sums and statistics accumulate in f64.
//!
//! **Denominators are arguments.** A loss is `sum / denominator` and the caller names the denominator of the whole
//! optimiser step, so splitting a step into micro-batches adds up to the same loss and the same gradient. What needs
//! the whole batch in one call (sorting, whitening, the ratio guard) says so in its documentation.
//!
//! **Statistics are sums**, merged across micro-batches and workers with [`Stats::merge`] and turned into means once,
//! at the end, by [`Stats::metrics`]. Each metric's name, unit and formula is declared beside it.
//!
//! Not here: log-probs from logits (one function, elsewhere), optimiser, schedules, rollouts, logging.

pub mod dpo;
pub mod gae;
pub mod grpo;
pub mod kl;
pub mod kto;
pub mod ppo;
pub mod reward;
pub mod score;
pub mod sft;
pub mod whiten;

mod error;
mod math;
mod metric;
mod pairs;
mod spans;

#[cfg(test)]
mod check;

pub use error::ObjectiveError;
pub use metric::{Metric, MetricDecl, Stats};
pub use pairs::PairColumns;
pub use spans::Spans;

/// A loss that reads token log-probs.
#[derive(Clone, Debug, PartialEq)]
pub struct LogprobObjective<S> {
    /// This call's share of the step's loss (already divided by the step's denominator).
    pub loss: f64,
    /// `[m]`. Gradient of `loss` with respect to each log-prob.
    pub d_logprob_m: Vec<f32>,
    /// Sums for the log.
    pub stats: S,
}

/// A loss that reads one scalar a row (a reward or a value).
#[derive(Clone, Debug, PartialEq)]
pub struct ScalarObjective<S> {
    /// This call's share of the step's loss (already divided by the step's denominator).
    pub loss: f64,
    /// Gradient of `loss` with respect to each scalar, in the order they were given.
    pub d_scalar: Vec<f32>,
    /// Sums for the log.
    pub stats: S,
}

/// How a sum over ragged tokens becomes one number. The denominators belong to the whole optimiser step.
///
/// TRL's GRPO `loss_type`s are choices of this: `grpo` is `SequenceMean { sequences: B }`; `dapo` and `bnpo` are
/// `TokenMean { tokens }`; `dr_grpo` is `TokenMean { tokens: B * max_completion_length }`; `luspo` is
/// `TokenMean { tokens: B }`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aggregation {
    /// `sum_i sum_t x_it / tokens`.
    TokenMean {
        /// Tokens of the whole step.
        tokens: f64,
    },
    /// `sum_i (sum_t x_it / length_i) / sequences`: a long response weighs as much as a short one.
    SequenceMean {
        /// Sequences of the whole step.
        sequences: f64,
    },
}

impl Aggregation {
    /// The factor of each token of a sequence of `length` tokens.
    ///
    /// # Panics
    ///
    /// If the denominator is not positive: the caller counted nothing to train on.
    pub fn token_factor(&self, length: usize) -> f64 {
        match *self {
            Aggregation::TokenMean { tokens } => 1.0 / positive("tokens", tokens),
            Aggregation::SequenceMean { sequences } => {
                1.0 / (positive("sequences", sequences) * length.max(1) as f64)
            }
        }
    }
}

/// Checks a denominator.
fn positive(name: &str, denominator: f64) -> f64 {
    assert!(denominator > 0.0 && denominator.is_finite(), "denominator {name} = {denominator}, expected > 0");
    denominator
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_factors_by_hand() {
        assert_eq!(Aggregation::TokenMean { tokens: 8.0 }.token_factor(3), 0.125);
        assert_eq!(Aggregation::SequenceMean { sequences: 2.0 }.token_factor(4), 0.125);
        assert_eq!(Aggregation::SequenceMean { sequences: 2.0 }.token_factor(0), 0.5);
    }

    #[test]
    #[should_panic(expected = "denominator tokens = 0")]
    fn a_step_without_tokens_is_a_bug() {
        Aggregation::TokenMean { tokens: 0.0 }.token_factor(1);
    }
}
