//! Pure statistics: intervals, win rates, exact tests, the bootstrap, calibration, and a linear baseline.
//!
//! Every function maps numbers to numbers: no IO, no clock, no hidden randomness. Where chance is used, the caller gives
//! the seed and the answer is the same on every machine. All sums are in f64.
//!
//! Data that cannot support an answer (one value, one cluster) are an [`Error`]; arguments that no data can excuse (lengths
//! that differ, a confidence of 2) are a bug in the caller and panic.
//!
//! Checked against scipy, statsmodels and scikit-learn: `tests/golden/make_golden.py` writes the numbers that `tests/golden.rs`
//! reads.
//!
//! Not here: agreement between annotators, Bradley-Terry models, sequential tests.

mod bootstrap;
mod calibration;
mod exact;
mod interval;
mod logistic;
mod rng;
mod special;
mod win_rate;

pub use bootstrap::{Bootstrap, Resampling, bootstrap, bootstrap_mean, bootstrap_paired};
pub use calibration::{
    Binning, area_under_curve, brier_score, calibration_error, calibration_error_if_calibrated,
};
pub use exact::{SignTest, sign_test};
pub use interval::{ClusteredMean, Estimate, clustered_mean, mean, wilson};
pub use logistic::{Logistic, LogisticConfig, SparseRow};
pub use rng::Stream;
pub use special::{beta_cdf, binomial_at_least, normal_cdf, normal_quantile, t_cdf, t_quantile};
pub use win_rate::{WinRate, win_rate};

/// Data that cannot support what was asked of them.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// Fewer items than the method needs.
    #[error("{method} needs at least {needed} {what}, found {found}")]
    TooFew {
        /// Which method.
        method: &'static str,
        /// Items of what.
        what: &'static str,
        /// Least number.
        needed: usize,
        /// Number given.
        found: usize,
    },
    /// A value that the method has no meaning for.
    #[error("{method}: value {index} is {value}, expected {expected}")]
    BadValue {
        /// Which method.
        method: &'static str,
        /// Position in the input.
        index: usize,
        /// The value.
        value: f64,
        /// What it should have been.
        expected: &'static str,
    },
    /// An optimiser stopped before it reached its tolerance.
    #[error(
        "{method}: the gradient is still {gradient:e} after {iterations} iterations, tolerance {tolerance:e}"
    )]
    NotConverged {
        /// Which method.
        method: &'static str,
        /// Largest element of the gradient.
        gradient: f64,
        /// Iterations made.
        iterations: usize,
        /// What was asked for.
        tolerance: f64,
    },
}

/// `Err` at the first value that fails the check.
fn check_values(
    method: &'static str,
    values: &[f64],
    expected: &'static str,
    good: impl Fn(f64) -> bool,
) -> Result<(), Error> {
    match values.iter().position(|&value| !good(value)) {
        None => Ok(()),
        Some(index) => Err(Error::BadValue { method, index, value: values[index], expected }),
    }
}

fn check_count(method: &'static str, what: &'static str, found: usize, needed: usize) -> Result<(), Error> {
    if found < needed { Err(Error::TooFew { method, what, needed, found }) } else { Ok(()) }
}

fn check_confidence(confidence: f64) {
    assert!(confidence > 0.0 && confidence < 1.0, "confidence = {confidence} is not between 0 and 1");
}
