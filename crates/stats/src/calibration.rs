//! How good probabilities are: Brier score, expected calibration error, area under the ROC curve.
//!
//! ```text
//! Brier = mean (p - y)²
//! ECE   = Σ_bins |B|/n |mean y - mean p|
//! AUC   = P(score of a positive > score of a negative) + ½ P(equal)      (Mann-Whitney)
//! NLL   = mean (softplus(z) - y z),   p = σ(z)
//! T     = argmin NLL of z / T                                            1 is calibrated, above 1 was overconfident
//! ```
//!
//! The ECE of a finite sample is above 0 even for perfect probabilities; [`calibration_test`] says by how much and how often it
//! would be this large, and the numbers belong side by side.
//!
//! Source: Brier 1950, Monthly Weather Review 78; Naeini et al. 2015, AAAI, for the ECE; Hanley & McNeil 1982, Radiology 143; Guo et
//! al. 2017, arXiv:1706.04599, for the temperature; Vaicenavicius et al. 2019, AISTATS, for the test.

use serde::Serialize;

use crate::logistic::{Logistic, LogisticConfig, SparseRow, softplus};
use crate::rng::Stream;
use crate::{Error, check_count, check_values};

/// How probabilities are put into bins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binning {
    /// This many bins of equal width on `[0, 1]`; the last one holds 1. Empty bins count nothing.
    EqualWidth(usize),
    /// This many bins of equal number, after sorting by probability (equal ones in the order given). With fewer values
    /// than bins, one value each.
    EqualMass(usize),
}

/// Mean squared distance of probabilities from outcomes; outcomes may be shares.
///
/// # Panics
///
/// If the lengths differ.
pub fn brier_score(probability: &[f64], outcome: &[f64]) -> Result<f64, Error> {
    check("brier_score", probability, outcome)?;
    let squares = probability.iter().zip(outcome).map(|(p, y)| (p - y) * (p - y));
    Ok(squares.sum::<f64>() / probability.len() as f64)
}

/// Expected calibration error.
///
/// # Panics
///
/// If the lengths differ or there are no bins.
pub fn calibration_error(probability: &[f64], outcome: &[f64], binning: Binning) -> Result<f64, Error> {
    check("calibration_error", probability, outcome)?;
    Ok(error_of(&bins(probability, binning), probability, outcome))
}

/// Each value's part of the ECE, `±(y - p)` with the sign of its bin: their mean is the ECE, their spread its error.
///
/// # Panics
///
/// If the lengths differ or there are no bins.
pub fn calibration_terms(probability: &[f64], outcome: &[f64], binning: Binning) -> Result<Vec<f64>, Error> {
    check("calibration_terms", probability, outcome)?;
    let mut terms: Vec<f64> = outcome.iter().zip(probability).map(|(y, p)| y - p).collect();
    for bin in bins(probability, binning) {
        if bin.iter().map(|&i| terms[i]).sum::<f64>() < 0.0 {
            bin.iter().for_each(|&i| terms[i] = -terms[i]);
        }
    }
    Ok(terms)
}

/// An ECE beside what it would be if the probabilities were right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CalibrationTest {
    /// The expected calibration error.
    pub error: f64,
    /// Its mean over outcomes drawn from the probabilities.
    pub if_calibrated: f64,
    /// Its 95 % quantile over them.
    pub if_calibrated_p95: f64,
    /// Share of them at least as large, the data counted among them.
    pub p: f64,
}

/// Compares the ECE with that of `draws` sets of outcomes that the probabilities describe perfectly.
///
/// # Panics
///
/// If the lengths differ, or there are no bins or draws.
pub fn calibration_test(
    probability: &[f64],
    outcome: &[f64],
    binning: Binning,
    draws: usize,
    seed: u64,
) -> Result<CalibrationTest, Error> {
    let error = calibration_error(probability, outcome, binning)?;
    let mut null = null_errors(probability, binning, draws, seed)?;
    null.sort_by(f64::total_cmp);
    let as_large = null.len() - null.partition_point(|&e| e < error - 1e-12);
    Ok(CalibrationTest {
        error,
        if_calibrated: null.iter().sum::<f64>() / draws as f64,
        if_calibrated_p95: null[(0.95 * (draws - 1) as f64).round() as usize],
        p: (as_large + 1) as f64 / (draws + 1) as f64,
    })
}

/// Negative log-likelihood per outcome, in nats, of log-odds; outcomes may be shares.
///
/// # Panics
///
/// If the lengths differ.
pub fn log_loss(logit: &[f64], outcome: &[f64]) -> Result<f64, Error> {
    assert_eq!(logit.len(), outcome.len(), "log_loss: one outcome for each");
    check_count("log_loss", "values", logit.len(), 1)?;
    check_values("log_loss", logit, "a finite number", f64::is_finite)?;
    let losses = logit.iter().zip(outcome).map(|(&z, &y)| softplus(z) - y * z);
    Ok(losses.sum::<f64>() / logit.len() as f64)
}

/// The temperature that describes these outcomes best, given log-odds (a pair's margin). Fit it on one split and use it on another.
///
/// Log-odds that are all on the right side have no finite one and are [`Error::NotConverged`]; so are those that are worse than
/// chance, for which no positive temperature is best.
///
/// # Panics
///
/// If the lengths differ.
pub fn temperature(logit: &[f64], outcome: &[f64]) -> Result<f64, Error> {
    check_values("temperature", logit, "a finite number", f64::is_finite)?;
    // On a scale of 1, so that the tolerance means the same for margins of any size.
    let scale = (logit.iter().map(|z| z * z).sum::<f64>() / logit.len().max(1) as f64).sqrt();
    let scale = if scale > 0.0 { scale } else { 1.0 };
    let rows: Vec<SparseRow> = logit.iter().map(|&z| vec![(0, z / scale)]).collect();
    let weight = vec![1.0 / logit.len().max(1) as f64; logit.len()];
    let config = LogisticConfig { l2: 0.0, intercept: false, gradient_tolerance: 1e-10, iterations_max: 50 };
    let fit = Logistic::fit(&rows, outcome, &weight, 1, config)?;
    match fit.weights[0] {
        slope if slope > 0.0 => Ok(scale / slope),
        slope => Err(Error::NotConverged {
            method: "temperature",
            gradient: slope.abs(),
            iterations: fit.iterations,
            tolerance: config.gradient_tolerance,
        }),
    }
}

/// Mean ECE of these probabilities over `draws` sets of outcomes that they describe perfectly: what to compare an ECE with.
///
/// # Panics
///
/// If there are no bins or no draws.
pub fn calibration_error_if_calibrated(
    probability: &[f64],
    binning: Binning,
    draws: usize,
    seed: u64,
) -> Result<f64, Error> {
    Ok(null_errors(probability, binning, draws, seed)?.iter().sum::<f64>() / draws as f64)
}

/// ECE of sets of outcomes that are drawn from the probabilities.
fn null_errors(probability: &[f64], binning: Binning, draws: usize, seed: u64) -> Result<Vec<f64>, Error> {
    check("calibration_error_if_calibrated", probability, probability)?;
    assert!(draws > 0, "calibration_error_if_calibrated: no draws");
    let bins = bins(probability, binning);
    let one = |draw: usize| {
        let mut stream = Stream::new(seed, "calibrated outcomes", draw as u64);
        let outcome: Vec<f64> = probability.iter().map(|&p| f64::from(stream.unit() < p)).collect();
        error_of(&bins, probability, &outcome)
    };
    Ok((0..draws).map(one).collect())
}

/// Probability that a positive scores above a negative, ties counted half.
///
/// # Panics
///
/// If the lengths differ.
pub fn area_under_curve(score: &[f64], positive: &[bool]) -> Result<f64, Error> {
    assert_eq!(score.len(), positive.len(), "area_under_curve: one label for each score");
    check_values("area_under_curve", score, "a number", |x| !x.is_nan())?;
    let positives = positive.iter().filter(|&&p| p).count();
    let negatives = positive.len() - positives;
    check_count("area_under_curve", "positives", positives, 1)?;
    check_count("area_under_curve", "negatives", negatives, 1)?;

    let mut order: Vec<usize> = (0..score.len()).collect();
    order.sort_by(|&i, &j| score[i].total_cmp(&score[j]));
    let (mut won, mut below) = (0.0, 0.0); // Pairs won so far, and negatives seen so far.
    // Not by bits: -0.0 and 0.0 are the same score.
    for tied in order.chunk_by(|&i, &j| score[i] == score[j]) {
        let ups = tied.iter().filter(|&&i| positive[i]).count() as f64;
        let downs = tied.len() as f64 - ups;
        won += ups * (below + 0.5 * downs);
        below += downs;
    }
    Ok(won / (positives as f64 * negatives as f64))
}

fn check(method: &'static str, probability: &[f64], outcome: &[f64]) -> Result<(), Error> {
    assert_eq!(probability.len(), outcome.len(), "{method}: one outcome for each probability");
    check_count(method, "values", probability.len(), 1)?;
    check_values(method, probability, "a probability", |x| (0.0..=1.0).contains(&x))?;
    check_values(method, outcome, "an outcome in [0, 1]", |x| (0.0..=1.0).contains(&x))
}

fn bins(probability: &[f64], binning: Binning) -> Vec<Vec<usize>> {
    match binning {
        Binning::EqualWidth(n) => {
            assert!(n > 0, "no bins");
            let mut bins = vec![Vec::new(); n];
            for (i, &p) in probability.iter().enumerate() {
                bins[((p * n as f64) as usize).min(n - 1)].push(i);
            }
            bins
        }
        Binning::EqualMass(n) => {
            assert!(n > 0, "no bins");
            let mut order: Vec<usize> = (0..probability.len()).collect();
            order.sort_by(|&i, &j| probability[i].total_cmp(&probability[j]));
            let n = n.min(order.len());
            (0..n).map(|b| order[b * order.len() / n..(b + 1) * order.len() / n].to_vec()).collect()
        }
    }
}

fn error_of(bins: &[Vec<usize>], probability: &[f64], outcome: &[f64]) -> f64 {
    let gap = |bin: &Vec<usize>| bin.iter().map(|&i| outcome[i] - probability[i]).sum::<f64>().abs();
    bins.iter().map(gap).sum::<f64>() / probability.len() as f64
}
