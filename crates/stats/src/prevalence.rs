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
//! The errors must be those that the classifier makes on *these* items. Measured on other sources of items (other models' answers) they
//! differ by more than chance. [`ErrorRates::of_new_source`] adds that: with `p_k` the rate in source `k` of `K`, each with half an item added,
//!
//! ```text
//! rate = mean p_k,    V = max(rate (1 - rate) / N, (1 + 1/K) s²(p_k)),    as that of  rate (1 - rate) / V  items
//! ```
//!
//! Two or three sources say little about how sources differ. What needs no assumption is to label a few of the items themselves, drawn
//! at random ([`prediction_powered_share`]): with `d = is - called` on the `n_l` labelled,
//!
//! ```text
//! p = q + d̄,     SE² = q (1 - q) / n + s² / n_l,     s² that of d with half an item of each kind of error added
//! ```
//!
//! Source: Rogan & Gladen 1978, Am. J. Epidemiol. 107; Lang & Reiczigel 2014, Prev. Vet. Med. 113; Angelopoulos et al. 2023, Science 382,
//! for the last.

use serde::{Deserialize, Serialize};

use crate::interval::Estimate;
use crate::special::normal_quantile;
use crate::{Error, check_confidence, check_count};

/// How often a classifier was right on labelled items. Counts may be effective numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorRates {
    /// True positives that it called positive.
    pub true_positives: f64,
    /// True positives.
    pub positives: f64,
    /// True negatives that it called negative.
    pub true_negatives: f64,
    /// True negatives.
    pub negatives: f64,
}

impl ErrorRates {
    /// Counts what was called and what is.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn count(called: &[bool], is: &[bool]) -> ErrorRates {
        assert_eq!(called.len(), is.len(), "error rates: one truth for each call");
        let both =
            |x: bool| called.iter().zip(is).filter(|&(&called, &is)| called == x && is == x).count() as f64;
        let positives = is.iter().filter(|&&is| is).count() as f64;
        ErrorRates {
            true_positives: both(true),
            positives,
            true_negatives: both(false),
            negatives: is.len() as f64 - positives,
        }
    }

    /// What they may be in a source that nobody has labelled, from those in others.
    pub fn of_new_source(sources: &[ErrorRates]) -> Result<ErrorRates, Error> {
        let (true_positives, positives) =
            new_source("sources with positives", sources.iter().map(|s| (s.true_positives, s.positives)))?;
        let (true_negatives, negatives) =
            new_source("sources with negatives", sources.iter().map(|s| (s.true_negatives, s.negatives)))?;
        Ok(ErrorRates { true_positives, positives, true_negatives, negatives })
    }

    /// Share of true positives called positive; NaN without any.
    pub fn sensitivity(&self) -> f64 {
        self.true_positives / self.positives
    }

    /// Share of true negatives called negative; NaN without any.
    pub fn specificity(&self) -> f64 {
        self.true_negatives / self.negatives
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
    for (what, number) in [("labelled positives", rates.positives), ("labelled negatives", rates.negatives)] {
        check_count(METHOD, what, usize::from(number > 0.0), 1)?;
    }
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
    let more = |right: f64, of: f64, added: f64| {
        let (n, k) = (of + added, right + 0.5 * added);
        (k / n, k / n * (1.0 - k / n) / n)
    };
    let (q, q_variance) = more(called as f64, n as f64, z * z);
    let (se, se_variance) = more(rates.true_positives, rates.positives, 2.0);
    let (sp, sp_variance) = more(rates.true_negatives, rates.negatives, 2.0);
    let youden = se + sp - 1.0;
    if youden <= 0.0 {
        return Ok(Estimate { estimate, low: 0.0, high: 1.0, n }); // Too few labelled items to tell it from chance.
    }
    let p = (q + sp - 1.0) / youden;
    let error = (q_variance + p * p * se_variance + (1.0 - p).powi(2) * sp_variance).sqrt() / youden;
    let middle = p + 2.0 * z * z * (p * se_variance - (1.0 - p) * sp_variance);
    let [low, high] = [middle - z * error, middle + z * error].map(|end| end.clamp(0.0, 1.0));
    Ok(Estimate { estimate, low, high, n })
}

/// Right ones and number of a rate in a source that was not seen.
fn new_source(what: &'static str, counts: impl Iterator<Item = (f64, f64)>) -> Result<(f64, f64), Error> {
    let counts: Vec<(f64, f64)> = counts.filter(|&(_, n)| n > 0.0).collect();
    check_count("of_new_source", what, counts.len(), 2)?;
    let rates: Vec<f64> = counts.iter().map(|(right, n)| (right + 0.5) / (n + 1.0)).collect();
    let (k, items) = (rates.len() as f64, counts.iter().map(|(_, n)| n).sum::<f64>());
    let rate = rates.iter().sum::<f64>() / k;
    let between = rates.iter().map(|r| (r - rate) * (r - rate)).sum::<f64>() / (k - 1.0);
    let binomial = rate * (1.0 - rate);
    let n = binomial / (binomial / items).max((1.0 + 1.0 / k) * between);
    Ok((rate * n, n))
}

/// The share of positives where `called` of `n` unlabelled items were called positive, and some other items, drawn at random from the
/// same source, were called and labelled: `(called, is)` of each.
///
/// # Panics
///
/// If more were called than there are or `confidence` is not between 0 and 1.
pub fn prediction_powered_share(
    called: usize,
    n: usize,
    labelled: &[(bool, bool)],
    confidence: f64,
) -> Result<Estimate, Error> {
    const METHOD: &str = "prediction_powered_share";
    check_confidence(confidence);
    assert!(called <= n, "{METHOD}: {called} of {n} called positive");
    check_count(METHOD, "items", n, 1)?;
    check_count(METHOD, "labelled items", labelled.len(), 2)?;
    let (q, labels) = (called as f64 / n as f64, labelled.len() as f64);
    let [missed, invented] = [(false, true), (true, false)]
        .map(|error| labelled.iter().filter(|&&pair| pair == error).count() as f64);
    let estimate = (q + (missed - invented) / labels).clamp(0.0, 1.0);
    let [more, less] = [missed, invented].map(|count| (count + 0.5) / (labels + 1.0));
    let variance = q * (1.0 - q) / n as f64 + (more + less - (more - less).powi(2)) / labels;
    let reach = normal_quantile(0.5 + 0.5 * confidence) * variance.sqrt();
    let [low, high] = [-reach, reach].map(|reach| (q + (missed - invented) / labels + reach).clamp(0.0, 1.0));
    Ok(Estimate { estimate, low, high, n: n + labelled.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(true_positives: f64, positives: f64, true_negatives: f64, negatives: f64) -> ErrorRates {
        ErrorRates { true_positives, positives, true_negatives, negatives }
    }

    #[test]
    fn a_perfect_classifier_needs_no_correction() {
        let got = true_prevalence(30, 200, &rates(1e5, 1e5, 1e5, 1e5), 0.95).unwrap();
        assert!((got.estimate - 0.15).abs() < 1e-15, "{got:?}");
        // Agresti-Coull's interval is what is left.
        assert!((got.low - 0.10671).abs() < 1e-4 && (got.high - 0.20649).abs() < 1e-4, "{got:?}");
        assert!(true_prevalence(3, 9, &rates(1.0, 2.0, 1.0, 2.0), 0.9).is_err());
    }

    #[test]
    fn counted_by_hand() {
        let got = ErrorRates::count(&[true, true, false, false, true], &[true, false, true, false, true]);
        assert_eq!(got, rates(2.0, 3.0, 1.0, 2.0));
    }

    #[test]
    fn sources_that_differ_say_less() {
        // (9.5 / 10, 5.5 / 10): mean 0.75, s² = 0.08, V = 1.5 * 0.08 = 0.12, and 0.1875 / 0.12 items.
        let got = ErrorRates::of_new_source(&[rates(9.0, 9.0, 9.0, 9.0), rates(5.0, 9.0, 9.0, 9.0)]).unwrap();
        assert!(
            (got.positives - 1.5625).abs() < 1e-12 && (got.sensitivity() - 0.75).abs() < 1e-12,
            "{got:?}"
        );
        // Sources that agree: as many items as there are.
        assert!((got.negatives - 18.0).abs() < 1e-12 && (got.specificity() - 0.95).abs() < 1e-12, "{got:?}");
        assert!(ErrorRates::of_new_source(&[rates(9.0, 9.0, 9.0, 9.0)]).is_err());
    }

    #[test]
    fn own_labels_by_hand() {
        // 20 of 100 called; of 10 labelled, 2 missed and 1 invented: 0.2 + 0.1.
        let mut labelled = vec![(false, false); 10];
        (labelled[0], labelled[1], labelled[2]) = ((false, true), (false, true), (true, false));
        let got = prediction_powered_share(20, 100, &labelled, 0.95).unwrap();
        assert!((got.estimate - 0.3).abs() < 1e-12, "{got:?}");
        // 0.0016 + (4/11 - 1/121) / 10 = 0.037137.
        assert!(
            (got.high - (0.3 + 1.959_964 * 0.037_137_2_f64.sqrt())).abs() < 1e-5 && got.low == 0.0,
            "{got:?}"
        );
    }
}
