//! How common something is when the one who looks makes known mistakes.
//!
//! A classifier calls a share `q` positive. With its sensitivity `se` (share of true positives called positive) and specificity
//! `sp` (share of true negatives called negative), each measured on labelled items,
//!
//! ```text
//! p = (q + sp - 1) / (se + sp - 1)                                    Rogan & Gladen, cut to [0, 1]
//!
//! q' = (k + z²/2) / (n + z²),   se' and sp' with one success and one failure added,   J' = se' + sp' - 1,   p' as p, of these
//! SE = √(q'(1-q')/(n + z²) + p'² se'(1-se')/(n_se + 2) + (1-p')² sp'(1-sp')/(n_sp + 2)) / J'
//! d  = 2 z² (p' se'(1-se')/(n_se + 2) - (1-p') sp'(1-sp')/(n_sp + 2))
//! p' + d ± z SE                                                        Lang & Reiczigel, cut to [0, 1]
//! ```
//!
//! Why not the delta method: it is symmetric about an estimate that is often on the border (no refusals), where its width collapses;
//! with 40 labelled items of each kind and a prevalence of 2 % its 95 % interval covers 91 %, and this one 98 % (`tests/gate_laws.rs`). Why not the bootstrap: a rate of error
//! of 0 of 40 resamples to 0 of 40.
//!
//! The errors must be those that the classifier makes on *these* items. Measured on other models' answers they may not be, which no
//! formula can repair: leave whole models out when measuring them, and see how they differ.
//!
//! Source: Rogan & Gladen 1978, Am. J. Epidemiol. 107; Lang & Reiczigel 2014, Prev. Vet. Med. 113.

use serde::{Deserialize, Serialize};

use crate::interval::Estimate;
use crate::special::normal_quantile;
use crate::{Error, check_confidence, check_count};

/// How often a classifier was right on labelled items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorRates {
    /// True positives that it called positive.
    pub true_positives: usize,
    /// True positives.
    pub positives: usize,
    /// True negatives that it called negative.
    pub true_negatives: usize,
    /// True negatives.
    pub negatives: usize,
}

impl ErrorRates {
    /// Counts what was called and what is.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn count(called: &[bool], is: &[bool]) -> ErrorRates {
        assert_eq!(called.len(), is.len(), "error rates: one truth for each call");
        let both = |x: bool| called.iter().zip(is).filter(|&(&called, &is)| called == x && is == x).count();
        let positives = is.iter().filter(|&&is| is).count();
        ErrorRates {
            true_positives: both(true),
            positives,
            true_negatives: both(false),
            negatives: is.len() - positives,
        }
    }

    /// Share of true positives called positive; NaN without any.
    pub fn sensitivity(&self) -> f64 {
        self.true_positives as f64 / self.positives as f64
    }

    /// Share of true negatives called negative; NaN without any.
    pub fn specificity(&self) -> f64 {
        self.true_negatives as f64 / self.negatives as f64
    }
}

/// The true share where `called` of `n` items were called positive, with Lang and Reiczigel's interval.
///
/// # Panics
///
/// If more were called than there are, a count of right calls exceeds its number, or `confidence` is not between 0 and 1.
pub fn true_prevalence(
    called: usize,
    n: usize,
    rates: &ErrorRates,
    confidence: f64,
) -> Result<Estimate, Error> {
    const METHOD: &str = "true_prevalence";
    check_confidence(confidence);
    assert!(called <= n, "{METHOD}: {called} of {n} called positive");
    assert!(
        rates.true_positives <= rates.positives && rates.true_negatives <= rates.negatives,
        "{METHOD}: {rates:?}"
    );
    check_count(METHOD, "items", n, 1)?;
    check_count(METHOD, "labelled positives", rates.positives, 1)?;
    check_count(METHOD, "labelled negatives", rates.negatives, 1)?;
    let youden = rates.sensitivity() + rates.specificity() - 1.0;
    if youden <= 0.0 {
        return Err(Error::BadValue {
            method: METHOD,
            index: 0,
            value: youden,
            expected: "a classifier better than chance: sensitivity + specificity - 1 above 0",
        });
    }
    let estimate = ((called as f64 / n as f64 + rates.specificity() - 1.0) / youden).clamp(0.0, 1.0);

    let z = normal_quantile(0.5 + 0.5 * confidence);
    let more = |right: usize, of: usize, added: f64| {
        let (n, k) = (of as f64 + added, right as f64 + 0.5 * added);
        (k / n, k / n * (1.0 - k / n) / n)
    };
    let (q, q_variance) = more(called, n, z * z);
    let (se, se_variance) = more(rates.true_positives, rates.positives, 2.0);
    let (sp, sp_variance) = more(rates.true_negatives, rates.negatives, 2.0);
    let youden = se + sp - 1.0;
    let p = (q + sp - 1.0) / youden;
    let error = (q_variance + p * p * se_variance + (1.0 - p).powi(2) * sp_variance).sqrt() / youden.abs();
    let middle = p + 2.0 * z * z * (p * se_variance - (1.0 - p) * sp_variance);
    let [low, high] = [middle - z * error, middle + z * error].map(|end| end.clamp(0.0, 1.0));
    Ok(Estimate { estimate, low, high, n })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_classifier_needs_no_correction() {
        let perfect = ErrorRates {
            true_positives: 100_000,
            positives: 100_000,
            true_negatives: 100_000,
            negatives: 100_000,
        };
        let got = true_prevalence(30, 200, &perfect, 0.95).unwrap();
        assert!((got.estimate - 0.15).abs() < 1e-15, "{got:?}");
        // Agresti-Coull's interval is what is left.
        assert!((got.low - 0.10671).abs() < 1e-4 && (got.high - 0.20649).abs() < 1e-4, "{got:?}");
        assert!(
            true_prevalence(
                3,
                9,
                &ErrorRates { true_positives: 1, positives: 2, true_negatives: 1, negatives: 2 },
                0.9
            )
            .is_err()
        );
    }

    #[test]
    fn counted_by_hand() {
        let rates = ErrorRates::count(&[true, true, false, false, true], &[true, false, true, false, true]);
        assert_eq!(rates, ErrorRates { true_positives: 2, positives: 3, true_negatives: 1, negatives: 2 });
    }
}
