//! Pure statistics: intervals, win rates, exact and anytime-valid tests, the bootstrap, calibration, a linear baseline; what a
//! panel's votes say: agreement, reliability, strengths, bias, drift, and how many votes are needed; and what a gate asks:
//! paired differences, several tests at once, error-corrected shares, over-optimisation.
//!
//! Every function maps numbers to numbers: no IO, no clock, no hidden randomness. Where chance is used, the caller gives
//! the seed and the answer is the same on every machine. All sums are in f64.
//!
//! Data that cannot support an answer (one value, one cluster) are an [`Error`]; arguments that no data can excuse (lengths
//! that differ, a confidence of 2) are a bug in the caller and panic.
//!
//! Checked against scipy, statsmodels, scikit-learn and confseq: `tests/golden/make_golden.py` and `make_gate.py` write the numbers
//! that `tests/golden.rs` and `tests/gate_golden.rs` read.
//!
//! Reading order for votes: `vote.rs` (what a vote is, and its canonical orientation), `agreement`, `crowd_bt.rs` and
//! `crowd_pairs.rs`, `panel.rs` (all of it in one report). For a gate: `clustered.rs`, `anytime.rs`, `multiple.rs`, `power.rs`.

pub mod agreement;
mod anytime;
mod best_of_n;
mod bootstrap;
mod bradley_terry;
mod calibration;
mod clustered;
mod crowd_bt;
mod crowd_pairs;
mod dawid_skene;
mod drift;
mod exact;
mod interval;
mod length_control;
mod linalg;
mod logistic;
mod multiple;
mod over_optimisation;
pub mod panel;
mod power;
mod prevalence;
mod rng;
mod side_bias;
mod special;
pub mod vote;
mod win_rate;

pub use anytime::{Alternative, BettingTest, confidence_sequence, ln_mixture_evidence, wins_to_decide};
pub use best_of_n::{best_of_n, best_of_n_kl};
pub use bootstrap::{
    Bootstrap, Resampling, Statistic, Sums, bootstrap, bootstrap_mean, bootstrap_paired, bootstrap_sums,
};
pub use bradley_terry::{
    BradleyTerry, BradleyTerryConfig, ELO_PER_NAT, Match, Outcome, Ties, elo, normal_interval,
};
pub use calibration::{
    Binning, CalibrationTest, area_under_curve, brier_score, calibration_error,
    calibration_error_if_calibrated, calibration_terms, calibration_test, log_loss, temperature,
};
pub use clustered::{Cell, cell_difference, cell_mean};
pub use crowd_bt::{CrowdBt, CrowdPrior, Reliability};
pub use crowd_pairs::{CrowdPairs, PairVote, SoftLabel};
pub use dawid_skene::{DawidSkene, DawidSkeneConfig};
pub use drift::{AccuracyMonitor, Cusum, Threshold, cusum_threshold, drift_p_value};
pub use exact::{SignTest, clopper_pearson, sign_test, zero_failure_bound};
pub use interval::{ClusteredMean, Estimate, clustered_mean, mean, wilson};
pub use length_control::{LengthControlled, length_controlled};
pub use logistic::{Logistic, LogisticConfig, SparseRow};
pub use multiple::{benjamini_hochberg, holm, intersection_union};
pub use over_optimisation::{Optimiser, OverOptimisation, over_optimisation};
pub use power::{
    comparisons_for_margin, comparisons_to_detect, detectable_effect, detectable_rate, majority_accuracy,
    trials_without_failure, votes_for_majority,
};
pub use prevalence::{ErrorRates, prediction_powered_share, true_prevalence};
pub use rng::Stream;
pub use side_bias::{SideBias, side_bias};
pub use special::{
    beta_cdf, beta_quantile, binomial_at_least, normal_cdf, normal_quantile, t_cdf, t_quantile,
};
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
    /// More than the method is made for.
    #[error("{method} takes at most {limit} {what}, found {found}")]
    TooMany {
        /// Which method.
        method: &'static str,
        /// Items of what.
        what: &'static str,
        /// Largest number.
        limit: usize,
        /// Number given.
        found: usize,
    },
    /// A statistic that too few clusters carry for a bootstrap.
    #[error(
        "undefined in {undefined} of {resamples} resamples, or without one cluster: too few clusters carry it"
    )]
    Unstable {
        /// Resamples in which it is undefined.
        undefined: usize,
        /// Resamples made.
        resamples: usize,
    },
    /// Comparisons that leave some items infinitely better or worse than others.
    #[error(
        "no finite Bradley-Terry strengths: items {unbeaten:?} never lost or tied against the others, items {winless:?} never won or tied; expected a strongly connected win graph, or a ridge"
    )]
    Disconnected {
        /// Items that never lost or tied against the rest.
        unbeaten: Vec<usize>,
        /// Items that never won or tied against the rest.
        winless: Vec<usize>,
    },
    /// Sides that tell nothing apart from the strengths: some are always shown on the same side of the others.
    #[error(
        "the left side's pull cannot be told from the strengths: who is on the left decides who is shown; expected pairs shown both ways round"
    )]
    SideConfounded,
    /// Several values where one was expected.
    #[error("annotator {annotator} gave item {item} {values} values, expected one")]
    Repeated {
        /// Which item.
        item: usize,
        /// Who.
        annotator: usize,
        /// How many.
        values: usize,
    },
    /// A comparison of a response with itself.
    #[error("prompt `{prompt}`: response `{response}` is compared with itself; expected two responses")]
    SameResponse {
        /// The prompt.
        prompt: String,
        /// The response.
        response: String,
    },
    /// A grade that is not on the scale.
    #[error("a grade of {grade}; expected 1 to {}", vote::GRADE_MAX)]
    BadGrade {
        /// The grade.
        grade: u8,
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
