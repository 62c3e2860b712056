//! The exact sign test, which is McNemar's exact test on the discordant pairs.
//!
//! ```text
//! p_two_sided = min(1, 2 P(Bin(wins + losses, ½) >= max(wins, losses)))
//! p_greater   =          P(Bin(wins + losses, ½) >= wins)
//! ```
//!
//! For McNemar, `wins` are the items that only the new model gets right and `losses` those that only the old one does; items on
//! which they agree say nothing about which is better.
//!
//! Source: McNemar 1947, Psychometrika 12.

use serde::Serialize;

use crate::special::binomial_at_least;

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

#[cfg(test)]
mod tests {
    use super::*;

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
