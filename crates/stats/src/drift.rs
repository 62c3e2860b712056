//! Is an annotator getting worse? Two monitors that may be looked at after every vote.
//!
//! **Calibration accuracy** against a floor `p0`. Under `H0: accuracy >= p0`,
//!
//! ```text
//! M_n = ∫_0^{p0} p^s (1-p)^{n-s} dF(p) / (p0^s (1-p0)^{n-s})        F = Beta(a, b) cut to [0, p0]
//!     = [B(s+a, n-s+b) I_{p0}(s+a, n-s+b)] / [B(a, b) I_{p0}(a, b) p0^s (1-p0)^{n-s}]
//! ```
//!
//! has expectation at most 1 at any stopping time, since each factor `(p/p0)^x ((1-p)/(1-p0))^{1-x}` has for `p <= p0 <=`
//! accuracy. So `P(M_n >= 1/α for any n) <= α` (Ville): the alarm may be looked at as often as one likes.
//!
//! **Agreement with the majority of the others**, where there is no known answer. Page's CUSUM for a fall from `p_in` to
//! `p_out`,
//!
//! ```text
//! S_t = max(0, S_{t-1} + x_t ln(p_out / p_in) + (1 - x_t) ln((1 - p_out) / (1 - p_in))),      alarm at S_t >= h
//! ```
//!
//! has no such guarantee, so `h` is chosen by simulation for a stated rate of false alarms within a stated number of votes, and the
//! rate at the chosen `h` is measured on other simulated sequences. Looking back at a finished sequence,
//! [`drift_p_value`] compares `max_k Σ_{t <= k} (x_t - x̄)`, large after a fall, with that of the sequence's permutations: it needs
//! no `p_in`, and its rate of false alarms is exact.
//!
//! The share of "slightly better" grades is no sign of drift: it grows as models improve.
//!
//! Source: Ville 1939; Robbins 1970, Ann. Math. Stat. 41 (mixtures); Page 1954, Biometrika 41; Besag & Clifford 1991, Biometrika
//! 78 (permutations until enough are as large).

use serde::Serialize;

use crate::rng::Stream;
use crate::special::beta_cdf;
use crate::{Error, Estimate, wilson};

/// An e-process on correct and wrong answers to calibration comparisons.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AccuracyMonitor {
    floor: f64,
    right: u64,
    seen: u64,
    ln_largest: f64,
}

/// Jeffreys' prior on the accuracy below the floor.
const MIXTURE: f64 = 0.5;

impl AccuracyMonitor {
    /// Watches for an accuracy below `floor`.
    ///
    /// # Panics
    ///
    /// If `floor` is not between 0 and 1.
    pub fn new(floor: f64) -> Self {
        assert!(floor > 0.0 && floor < 1.0, "drift: a floor of {floor} is not between 0 and 1");
        Self { floor, right: 0, seen: 0, ln_largest: 0.0 }
    }

    /// Takes the next answer.
    pub fn push(&mut self, right: bool) {
        self.right += u64::from(right);
        self.seen += 1;
        self.ln_largest = self.ln_largest.max(self.ln_evidence());
    }

    /// `ln M_n`.
    pub fn ln_evidence(&self) -> f64 {
        let (s, n, p0) = (self.right as f64, self.seen as f64, self.floor);
        let below = |a: f64, b: f64| {
            libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b)
                + beta_cdf(p0, a, b).max(f64::MIN_POSITIVE).ln()
        };
        below(s + MIXTURE, n - s + MIXTURE)
            - below(MIXTURE, MIXTURE)
            - s * p0.ln()
            - (n - s) * libm::log1p(-p0)
    }

    /// Answers seen.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Right ones among them.
    pub fn right(&self) -> u64 {
        self.right
    }

    /// A p-value that may be looked at at any time: `min(1, 1 / max_n M_n)`.
    pub fn p_anytime(&self) -> f64 {
        (-self.ln_largest).exp().min(1.0)
    }
}

/// Page's CUSUM on agreement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cusum {
    agreed: f64,
    disagreed: f64,
    sum: f64,
    largest: f64,
}

impl Cusum {
    /// Watches for a fall of the agreement rate from `p_in` to `p_out`.
    ///
    /// # Panics
    ///
    /// Unless `0 < p_out < p_in < 1`.
    pub fn new(p_in: f64, p_out: f64) -> Self {
        assert!(0.0 < p_out && p_out < p_in && p_in < 1.0, "drift: a fall from {p_in} to {p_out}");
        Self {
            agreed: (p_out / p_in).ln(),
            disagreed: ((1.0 - p_out) / (1.0 - p_in)).ln(),
            sum: 0.0,
            largest: 0.0,
        }
    }

    /// Takes the next vote and returns `S_t`.
    pub fn push(&mut self, agreed: bool) -> f64 {
        self.sum = (self.sum + if agreed { self.agreed } else { self.disagreed }).max(0.0);
        self.largest = self.largest.max(self.sum);
        self.sum
    }

    /// The largest `S_t` so far.
    pub fn largest(&self) -> f64 {
        self.largest
    }
}

/// A threshold and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Threshold {
    /// `h`.
    pub threshold: f64,
    /// Share of sequences without drift that reach it, measured on sequences that did not choose it.
    pub false_alarms: Estimate,
    /// Share of sequences that have fallen to `p_out` from the start and reach it.
    pub detected: Estimate,
}

/// Chooses the CUSUM's threshold such that at most `rate` of sequences of `votes` independent votes without drift reach it,
/// from `simulations` sequences, and measures its rates on as many others.
///
/// # Panics
///
/// If `rate` is not between 0 and 1, there are no votes or simulations, or the rates are no fall.
pub fn cusum_threshold(
    p_in: f64,
    p_out: f64,
    votes: usize,
    rate: f64,
    simulations: usize,
    seed: u64,
) -> Result<Threshold, Error> {
    crate::check_confidence(rate);
    assert!(votes > 0 && simulations > 0, "drift: {simulations} simulations of {votes} votes");
    let largest = |name: &str, i: usize, p: f64| {
        let mut stream = Stream::new(seed, name, i as u64);
        let mut cusum = Cusum::new(p_in, p_out);
        (0..votes).for_each(|_| {
            cusum.push(stream.unit() < p);
        });
        cusum.largest()
    };
    let mut reached: Vec<f64> = (0..simulations).map(|i| largest("cusum choice", i, p_in)).collect();
    reached.sort_by(f64::total_cmp);
    let allowed = (rate * simulations as f64).floor() as usize;
    // Just above the largest value that too many sequences reach.
    let threshold = reached[simulations - 1 - allowed.min(simulations - 1)] * (1.0 + 1e-9) + 1e-9;
    let share = |name: &str, p: f64| {
        let over = (0..simulations).filter(|&i| largest(name, i, p) >= threshold).count();
        wilson(over, simulations, 0.95)
    };
    Ok(Threshold {
        threshold,
        false_alarms: share("cusum false alarms", p_in)?,
        detected: share("cusum detection", p_out)?,
    })
}

/// Permutations as large as the sequence after which more would tell little: with 999 in all, no p-value below 0.05 changes.
const AS_LARGE_MAX: usize = 50;

/// Probability, if the order of the answers means nothing, of a fall as clear as theirs: the share of permutations (and of the
/// sequence itself) with at least as large a `max_k Σ_{t <= k} (x_t - x̄)`. `None` without both kinds of answer. Once
/// 50 permutations were as large, their share so far is the answer, as exact: most annotators are steady, and take few.
///
/// # Panics
///
/// If there are no permutations.
pub fn drift_p_value(agreed: &[bool], permutations: usize, seed: u64) -> Option<f64> {
    assert!(permutations > 0, "drift: no permutations");
    let rate = agreed.iter().filter(|&&a| a).count() as f64 / agreed.len().max(1) as f64;
    if rate <= 0.0 || rate >= 1.0 {
        return None;
    }
    let largest = |answers: &[bool]| {
        let steps = answers.iter().map(|&a| f64::from(a) - rate);
        steps.fold((0.0, 0.0_f64), |(sum, most), step| (sum + step, most.max(sum + step))).1
    };
    let own = largest(agreed);
    let mut shuffled = agreed.to_vec();
    let mut as_large = 0;
    for r in 0..permutations {
        let mut stream = Stream::new(seed, "drift permutation", r as u64);
        (1..shuffled.len()).rev().for_each(|i| shuffled.swap(i, stream.below(i + 1)));
        as_large += usize::from(largest(&shuffled) >= own - 1e-9);
        if as_large == AS_LARGE_MAX {
            return Some(as_large as f64 / (r + 1) as f64);
        }
    }
    Some((as_large + 1) as f64 / (permutations + 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_by_hand() {
        // No answer, no evidence.
        let mut monitor = AccuracyMonitor::new(0.5);
        assert!(monitor.ln_evidence().abs() < 1e-14);
        // One wrong answer at p0 = ½ under Beta(½, ½) cut to [0, ½]: M = 2 E(1 - p) with
        // E p = ½ - 1/π on that half, so M = 1 + 2/π.
        monitor.push(false);
        let expect = 1.0 + 2.0 / std::f64::consts::PI;
        assert!((monitor.ln_evidence().exp() - expect).abs() < 1e-12, "{}", monitor.ln_evidence().exp());
        assert!((monitor.p_anytime() - 1.0 / expect).abs() < 1e-12);
        // A right answer takes evidence back, but not what was reached.
        monitor.push(true);
        assert!(monitor.ln_evidence() < expect.ln());
        assert!((monitor.p_anytime() - 1.0 / expect).abs() < 1e-12);
        assert_eq!((monitor.right(), monitor.seen()), (1, 2));
    }

    #[test]
    fn cusum_by_hand() {
        // p 0.8 -> 0.4: a miss adds ln 3, a hit ln ½.
        let mut cusum = Cusum::new(0.8, 0.4);
        let (miss, hit) = (3.0_f64.ln(), 0.5_f64.ln());
        assert_eq!(cusum.push(true), 0.0);
        assert!((cusum.push(false) - miss).abs() < 1e-12);
        assert!((cusum.push(true) - (miss + hit)).abs() < 1e-12);
        assert!((cusum.push(false) - (2.0 * miss + hit)).abs() < 1e-12);
        assert!((cusum.largest() - (2.0 * miss + hit)).abs() < 1e-12);
    }

    #[test]
    fn no_order_no_drift() {
        let alternating: Vec<bool> = (0..200).map(|i| i % 4 != 0).collect();
        assert!(drift_p_value(&alternating, 199, 1).unwrap() > 0.5);
        let falling: Vec<bool> = (0..200).map(|i| i < 100 || i % 2 == 0).collect();
        assert!(drift_p_value(&falling, 199, 1).unwrap() < 0.02);
        // A rise is not a fall.
        let rising: Vec<bool> = falling.iter().rev().copied().collect();
        assert!(drift_p_value(&rising, 199, 1).unwrap() > 0.1);
        assert_eq!(drift_p_value(&[true; 20], 99, 1), None);
        assert_eq!(drift_p_value(&[], 99, 1), None);
    }
}
