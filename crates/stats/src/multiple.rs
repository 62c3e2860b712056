//! Several tests at once.
//!
//! ```text
//! Holm:                 adjusted_(i) = max_{j <= i} min(1, (m - j + 1) p_(j))        p ascending: no false claim with probability 1 - α
//! Benjamini-Hochberg:   adjusted_(i) = min_{j >= i} min(1, p_(j) m / j)              expected share of false claims at most q
//! intersection-union:   p = max_i p_i                                                "all hold", each tested at α: no correction
//! ```
//!
//! Holm is for exploring: many categories, any of which may be claimed. Where *all* criteria must hold, claiming that they do
//! is wrong only if one of its tests is, so each may use the whole α.
//!
//! Source: Holm 1979, Scand. J. Stat. 6; Benjamini & Hochberg 1995, J. R. Stat. Soc. B 57; Berger 1982, Technometrics 24.

/// Holm's adjusted p-values, in the order of the input.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut adjusted = vec![1.0; p.len()];
    let mut most = 0.0_f64;
    for (rank, i) in ascending(p).into_iter().enumerate() {
        most = most.max((p[i] * (p.len() - rank) as f64).min(1.0));
        adjusted[i] = most;
    }
    adjusted
}

/// Benjamini and Hochberg's adjusted p-values, in the order of the input.
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let mut adjusted = vec![1.0; p.len()];
    let mut least = 1.0_f64;
    for (rank, i) in ascending(p).into_iter().enumerate().rev() {
        least = least.min(p[i] * p.len() as f64 / (rank + 1) as f64);
        adjusted[i] = least;
    }
    adjusted
}

/// The p-value of "at least one of these fails" from the p-values of each; 1 if there are none.
pub fn intersection_union(p: &[f64]) -> f64 {
    p.iter().copied().reduce(f64::max).unwrap_or(1.0)
}

fn ascending(p: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjusted_by_hand() {
        // 0.01 * 3/1, then 0.02 * 3/2 = 0.03, then 0.9: the running minimum from the right.
        assert_eq!(benjamini_hochberg(&[0.02, 0.9, 0.01]), [0.03, 0.9, 0.03]);
        // 0.01 * 3, then max(0.03, 0.02 * 2), then max(0.04, 0.9).
        assert_eq!(holm(&[0.02, 0.9, 0.01]), [0.04, 0.9, 0.03]);
        // The second is pulled up to the first, and nothing exceeds 1.
        assert_eq!(holm(&[0.25, 0.26, 0.5]), [0.75, 0.75, 0.75]);
        assert_eq!(holm(&[0.6, 0.9]), [1.0, 1.0]);
        assert_eq!((benjamini_hochberg(&[]), holm(&[])), (vec![], vec![]));
        assert_eq!((intersection_union(&[0.01, 0.04]), intersection_union(&[])), (0.04, 1.0));
    }
}
