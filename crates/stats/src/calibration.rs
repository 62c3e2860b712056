//! How good probabilities are: Brier score, expected calibration error, area under the ROC curve.
//!
//! ```text
//! Brier = mean (p - y)²
//! ECE   = Σ_bins |B|/n |mean y - mean p|
//! AUC   = P(score of a positive > score of a negative) + ½ P(equal)      (Mann-Whitney)
//! ```
//!
//! The ECE of a finite sample is above 0 even for perfect probabilities; [`calibration_error_if_calibrated`] says by how
//! much, and the two belong side by side.
//!
//! Source: Brier 1950, Monthly Weather Review 78; Naeini et al. 2015, AAAI, for the ECE; Hanley & McNeil 1982, Radiology 143.

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
    check("calibration_error_if_calibrated", probability, probability)?;
    assert!(draws > 0, "calibration_error_if_calibrated: no draws");
    let bins = bins(probability, binning);
    let one = |draw: usize| {
        let mut stream = Stream::new(seed, "calibrated outcomes", draw as u64);
        let outcome: Vec<f64> = probability.iter().map(|&p| f64::from(stream.unit() < p)).collect();
        error_of(&bins, probability, &outcome)
    };
    Ok((0..draws).map(one).sum::<f64>() / draws as f64)
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
