//! Exact binomial answers: the sign test, which is McNemar's test on the discordant pairs, and the interval of a share.
//!
//! ```text
//! p_two_sided = min(1, 2 P(Bin(wins + losses, ½) >= max(wins, losses)))
//! p_greater   =          P(Bin(wins + losses, ½) >= wins)
//! share       B⁻¹(α/2; k, n - k + 1),  B⁻¹(1 - α/2; k + 1, n - k)         Clopper-Pearson, B the beta distribution
//! no failure  0 <= p <= 1 - (1 - confidence)^(1/n)                        one-sided; at 95 % about 3/n, the rule of three
//! ```
//!
//! For McNemar, `wins` are the items that only the new model gets right and `losses` those that only the old one does; items on
//! which they agree say nothing about which is better.
//!
//! Source: McNemar 1947, Psychometrika 12; Clopper & Pearson 1934, Biometrika 26; Korn & Graubard 1998, Survey Methodology 24,
//! for clustered shares as shares of an effective number; Hanley & Lippman-Hand 1983, JAMA 249, for no failures.

use serde::Serialize;

use crate::special::{beta_quantile, binomial_at_least};
use crate::{Error, Estimate, check_confidence, check_count};

/// Result of a sign test. Ties are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SignTest {
    /// Items won.
    pub wins: u64,
    /// Items lost.
    pub losses: u64,
    /// Probability of a split as uneven as this, either way, if neither side is better.
    pub p_two_sided: f64,
    /// Probability of as many wins or more, if neither side is better.
    pub p_greater: f64,
}

/// Tests whether wins and losses are as likely as each other. Without any, both probabilities are 1.
pub fn sign_test(wins: u64, losses: u64) -> SignTest {
    let n = wins + losses;
    SignTest {
        wins,
        losses,
        p_two_sided: (2.0 * binomial_at_least(wins.max(losses), n, 0.5)).min(1.0),
        p_greater: binomial_at_least(wins, n, 0.5),
    }
}

/// Clopper and Pearson's interval for `successes` of `n`: it covers at least as often as it says. Both may be effective
/// numbers, of trials that come in clusters; the `n` of the answer is then rounded down.
///
/// # Panics
///
/// If `successes` is not in `[0, n]` or `confidence` is not between 0 and 1.
pub fn clopper_pearson(successes: f64, n: f64, confidence: f64) -> Result<Estimate, Error> {
    check_confidence(confidence);
    assert!((0.0..=n).contains(&successes), "clopper_pearson: {successes} successes of {n}");
    check_count("clopper_pearson", "trials", n as usize, 1)?;
    let tail = 0.5 - 0.5 * confidence;
    let failures = n - successes;
    let low = if successes > 0.0 { beta_quantile(tail, successes, failures + 1.0) } else { 0.0 };
    let high = if failures > 0.0 { beta_quantile(1.0 - tail, successes + 1.0, failures) } else { 1.0 };
    Ok(Estimate { estimate: successes / n, low, high, n: n as usize })
}

/// Largest rate of failure that `n` trials without one leave possible, one-sided.
///
/// # Panics
///
/// If there are no trials or `confidence` is not between 0 and 1.
pub fn zero_failure_bound(n: u64, confidence: f64) -> f64 {
    check_confidence(confidence);
    assert!(n > 0, "zero_failure_bound: no trials");
    -libm::expm1(libm::log1p(-confidence) / n as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_failure_is_not_safety() {
        // 0 of 520 refusals missed: at most 0.574 %, and the rule of three says 0.577 %.
        let bound = zero_failure_bound(520, 0.95);
        assert!((bound - (1.0 - 0.05_f64.powf(1.0 / 520.0))).abs() < 1e-15);
        assert!((bound - 3.0 / 520.0).abs() < 5e-5, "{bound}");
        // One-sided at 95 % is the upper end of the two-sided interval at 90 %.
        let two_sided = clopper_pearson(0.0, 520.0, 0.9).unwrap();
        assert!((two_sided.high - bound).abs() < 1e-14 && two_sided.low == 0.0, "{two_sided:?}");
    }

    #[test]
    fn worked_by_hand() {
        // 9 of 10: P(X >= 9) = (10 + 1) / 1024.
        let test = sign_test(9, 1);
        assert!((test.p_greater - 11.0 / 1024.0).abs() < 1e-15);
        assert!((test.p_two_sided - 22.0 / 1024.0).abs() < 1e-15);
        assert_eq!(sign_test(1, 9).p_two_sided, test.p_two_sided);
        assert!((sign_test(1, 9).p_greater - 1023.0 / 1024.0).abs() < 1e-15);
        assert_eq!(sign_test(5, 5).p_two_sided, 1.0);
        assert_eq!((sign_test(0, 0).p_two_sided, sign_test(0, 0).p_greater), (1.0, 1.0));
    }
}
