//! How many votes are needed.
//!
//! ```text
//! win rate p against ½      n = ((z_{1-α} / 2 + z_{power} √(p (1 - p))) / (p - ½))²
//! not worse by margin m     n = (z_{1-α} + z_{power})² / (4 m²)                      at a true rate of ½
//! majority of n             P(Bin(n, a) > n/2)   with n odd and annotators of accuracy a
//! no failure at rate m      n = ln α / ln (1 - m)
//! smallest effect           δ = (z_{1-α} + z_{power}) SE                             what a measurement with this error could have seen
//! ```
//!
//! One-sided, rounded up. The first two count independent comparisons, so with several votes on a prompt they count
//! prompts, not votes. The smallest rate above ½ that `n` comparisons detect solves the first for `p`.
//!
//! Source: normal approximation, Fleiss, Levin & Paik 2003, Statistical Methods for Rates and Proportions, chapter 2;
//! the majority is Condorcet's.
//!
//! Not here: sequential looks, which need more (`anytime.rs`).

use crate::check_confidence;
use crate::special::{binomial_at_least, normal_quantile};

/// Comparisons without ties to show at level `alpha` with probability `power` that a true win rate of `rate` is above ½.
///
/// # Panics
///
/// If `rate` is not above ½ and below 1, or `alpha` or `power` is not between 0 and 1.
pub fn comparisons_to_detect(rate: f64, alpha: f64, power: f64) -> u64 {
    assert!(rate > 0.5 && rate < 1.0, "power: a win rate of {rate} is not above 0.5 and below 1");
    check_confidence(alpha);
    check_confidence(power);
    let reach = 0.5 * normal_quantile(1.0 - alpha) + normal_quantile(power) * (rate * (1.0 - rate)).sqrt();
    (reach / (rate - 0.5)).powi(2).ceil() as u64
}

/// Comparisons to show that a policy as good as the other is not worse by `margin` of win rate.
///
/// # Panics
///
/// If `margin` is not above 0 and below ½, or `alpha` or `power` is not between 0 and 1.
pub fn comparisons_for_margin(margin: f64, alpha: f64, power: f64) -> u64 {
    assert!(margin > 0.0 && margin < 0.5, "power: a margin of {margin} is not above 0 and below 0.5");
    check_confidence(alpha);
    check_confidence(power);
    let reach = normal_quantile(1.0 - alpha) + normal_quantile(power);
    (0.5 * reach / margin).powi(2).ceil() as u64
}

/// The smallest win rate above ½ that `n` comparisons without ties detect at level `alpha` with probability `power`; 1 if `n` is
/// too small for any.
///
/// # Panics
///
/// If there are no comparisons, or `alpha` or `power` is not between 0 and 1.
pub fn detectable_rate(n: u64, alpha: f64, power: f64) -> f64 {
    assert!(n > 0, "power: no comparisons");
    check_confidence(alpha);
    check_confidence(power);
    let reach = |p: f64| 0.5 * normal_quantile(1.0 - alpha) + normal_quantile(power) * (p * (1.0 - p)).sqrt();
    let enough = |p: f64| (p - 0.5) * (n as f64).sqrt() >= reach(p);
    if !enough(1.0) {
        return 1.0;
    }
    let (mut low, mut high) = (0.5, 1.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        *if enough(middle) { &mut high } else { &mut low } = middle;
    }
    high
}

/// The smallest effect that a measurement with standard error `se` detects at level `alpha` with probability `power`.
///
/// # Panics
///
/// If `alpha` or `power` is not between 0 and 1.
pub fn detectable_effect(se: f64, alpha: f64, power: f64) -> f64 {
    check_confidence(alpha);
    check_confidence(power);
    (normal_quantile(1.0 - alpha) + normal_quantile(power)) * se
}

/// Trials, all without a failure, that show at level `alpha` that failures are rarer than `rate`.
///
/// # Panics
///
/// If `rate` or `alpha` is not between 0 and 1.
pub fn trials_without_failure(rate: f64, alpha: f64) -> u64 {
    check_confidence(rate);
    check_confidence(alpha);
    (alpha.ln() / libm::log1p(-rate)).ceil() as u64
}

/// Probability that the majority of `votes` annotators of this accuracy is right; an even number breaks its tie by chance.
///
/// # Panics
///
/// If there are no votes or `accuracy` is not in `[0, 1]`.
pub fn majority_accuracy(votes: u64, accuracy: f64) -> f64 {
    assert!(votes > 0 && (0.0..=1.0).contains(&accuracy), "power: {votes} votes of accuracy {accuracy}");
    let more = binomial_at_least(votes / 2 + 1, votes, accuracy);
    if votes % 2 == 1 {
        return more;
    }
    more + 0.5 * (binomial_at_least(votes / 2, votes, accuracy) - more)
}

/// The least odd number of votes on an item whose majority is right with probability `wanted`; `None` if no number up to
/// 9999 is enough, as for annotators no better than a coin.
///
/// # Panics
///
/// If `accuracy` is not in `[0, 1]`.
pub fn votes_for_majority(accuracy: f64, wanted: f64) -> Option<u64> {
    if accuracy <= 0.5 && wanted > accuracy {
        return None;
    }
    (1..10_000).step_by(2).find(|&votes| majority_accuracy(votes, accuracy) >= wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_sizes() {
        let detect = |rate| comparisons_to_detect(rate, 0.05, 0.8);
        assert_eq!([0.52, 0.55, 0.60, 0.65].map(detect), [3863, 617, 153, 67]);
        let margin = |margin| comparisons_for_margin(margin, 0.05, 0.8);
        assert_eq!([0.02, 0.05, 0.10].map(margin), [3865, 619, 155]);
        // Backwards: what 3863, 617 ... comparisons detect.
        for rate in [0.52, 0.55, 0.60, 0.65] {
            let found = detectable_rate(detect(rate), 0.05, 0.8);
            assert!(found <= rate && detectable_rate(detect(rate) - 1, 0.05, 0.8) > rate, "{found}");
        }
        assert_eq!(detectable_rate(2, 0.05, 0.8), 1.0);
        // 619 comparisons with a standard deviation of ½ see 5 points.
        let effect = detectable_effect(0.5 / 619.0_f64.sqrt(), 0.05, 0.8);
        assert!((effect - 0.05).abs() < 1e-4 && effect <= 0.05, "{effect}");
        // 59 trials without a failure for 5 %, and 299 for 1 %.
        assert_eq!([0.05, 0.01].map(|rate| trials_without_failure(rate, 0.05)), [59, 299]);
    }

    #[test]
    fn majorities_by_hand() {
        // 3 votes at 0.7: 0.343 + 3 * 0.49 * 0.3 = 0.784; 5 votes: 0.83692.
        assert!((majority_accuracy(3, 0.7) - 0.784).abs() < 1e-12);
        assert!((majority_accuracy(5, 0.7) - 0.83692).abs() < 1e-12);
        // Two votes decide no better than one.
        assert!((majority_accuracy(2, 0.7) - 0.7).abs() < 1e-12);
        assert_eq!(votes_for_majority(0.7, 0.7), Some(1));
        assert_eq!(votes_for_majority(0.7, 0.8), Some(5));
        assert_eq!(votes_for_majority(0.5, 0.8), None);
        assert_eq!(votes_for_majority(0.3, 0.8), None);
    }
}
