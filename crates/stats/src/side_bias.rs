//! Does an annotator lean to one side? An exact test for each, corrected for how many are tested.
//!
//! Of `n` votes for a side, `n_left` were for the left. If sides are assigned at random and the annotator does not lean,
//! `n_left ~ Bin(n, ½)` whatever the responses are, so the exact two-sided binomial test needs no model of the responses.
//! It does need the randomisation: where the same kind of response always stands on the left, a lean and a preference
//! cannot be told apart.
//!
//! The p-values are adjusted by Benjamini and Hochberg's method (`multiple.rs`): calling all with an adjusted value of at most q
//! a bias keeps the expected share of false ones at q.

use serde::Serialize;

use crate::exact::sign_test;
use crate::multiple::benjamini_hochberg;

/// How one annotator's votes for a side split.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SideBias {
    /// Votes for the left side.
    pub left: usize,
    /// Votes for a side.
    pub decided: usize,
    /// Exact two-sided p-value; 1 without votes.
    pub p: f64,
    /// The same, adjusted for the number of annotators with votes.
    pub p_adjusted: f64,
}

/// Tests each annotator, `(left, decided)` being the number of votes for the left and for either side.
///
/// # Panics
///
/// If more votes are for the left than for either side.
pub fn side_bias(counts: &[(usize, usize)]) -> Vec<SideBias> {
    let p: Vec<f64> = counts
        .iter()
        .map(|&(left, decided)| {
            assert!(left <= decided, "side_bias: {left} of {decided} votes for the left");
            sign_test(left as u64, (decided - left) as u64).p_two_sided
        })
        .collect();
    // An annotator without votes is no test.
    let tested: Vec<usize> = (0..counts.len()).filter(|&i| counts[i].1 > 0).collect();
    let adjusted = benjamini_hochberg(&tested.iter().map(|&i| p[i]).collect::<Vec<_>>());
    let mut out: Vec<SideBias> = counts
        .iter()
        .zip(&p)
        .map(|(&(left, decided), &p)| SideBias { left, decided, p, p_adjusted: p })
        .collect();
    tested.into_iter().zip(adjusted).for_each(|(i, p)| out[i].p_adjusted = p);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_without_votes_is_a_test() {
        let got = side_bias(&[(9, 10), (0, 0), (5, 10)]);
        assert!((got[0].p - 22.0 / 1024.0).abs() < 1e-15);
        assert!((got[0].p_adjusted - 44.0 / 1024.0).abs() < 1e-15);
        assert_eq!((got[1].p, got[1].p_adjusted, got[2].p), (1.0, 1.0, 1.0));
    }
}
