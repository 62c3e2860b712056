//! Best-of-n without sampling n again and again.
//!
//! From `N >= n` responses to a prompt, the expected value of the one that the proxy likes best among `n` of them, drawn without
//! replacement, is
//!
//! ```text
//! E_n = Σ_i v_(i) C(i - 1, n - 1) / C(N, n)          i = 1 .. N in ascending order of the proxy
//! ```
//!
//! unbiased, and with less variance than groups of n. Responses that the proxy scores the same share their part, as if the tie
//! were broken by chance. How far best-of-n is from the policy it samples:
//!
//! ```text
//! KL = ln n - (n - 1) / n      nats per sequence, an upper bound that is reached without ties
//! ```
//!
//! Source: Nakano et al. 2021, arXiv:2112.09332, appendix I (the estimator); Stiennon et al. 2020, arXiv:2009.01325 (the KL); Beirami
//! et al. 2024, arXiv:2401.01879 (that it is a bound).

use crate::{Error, check_count, check_values};

/// Expected `value` of the best of `n` by `proxy`, from all of these responses to one prompt.
///
/// # Panics
///
/// If the lengths differ or `n` is 0.
pub fn best_of_n(proxy: &[f64], value: &[f64], n: usize) -> Result<f64, Error> {
    assert_eq!(proxy.len(), value.len(), "best_of_n: one value for each response");
    assert!(n > 0, "best_of_n: best of none");
    check_count("best_of_n", "responses", proxy.len(), n)?;
    check_values("best_of_n", proxy, "a number", |x| !x.is_nan())?;
    check_values("best_of_n", value, "a finite number", f64::is_finite)?;
    let mut order: Vec<usize> = (0..proxy.len()).collect();
    order.sort_by(|&i, &j| proxy[i].total_cmp(&proxy[j]));

    // C(k, n) / C(N, n): the probability that all n are among the k lowest.
    let total = proxy.len();
    let among_lowest =
        |k: usize| (0..n).map(|j| k.saturating_sub(j) as f64 / (total - j) as f64).product::<f64>();
    let (mut expected, mut below, mut probability_below) = (0.0, 0, 0.0);
    for tied in order.chunk_by(|&i, &j| proxy[i] == proxy[j]) {
        below += tied.len();
        let probability = among_lowest(below);
        let mean = tied.iter().map(|&i| value[i]).sum::<f64>() / tied.len() as f64;
        expected += (probability - probability_below) * mean;
        probability_below = probability;
    }
    Ok(expected)
}

/// KL of best-of-n to the policy that is sampled, in nats per sequence.
///
/// # Panics
///
/// If `n` is 0.
pub fn best_of_n_kl(n: usize) -> f64 {
    assert!(n > 0, "best_of_n_kl: best of none");
    (n as f64).ln() - (n - 1) as f64 / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All groups of n of N, by brute force.
    fn by_groups(proxy: &[f64], value: &[f64], n: usize) -> f64 {
        let (mut sum, mut groups) = (0.0, 0.0);
        for mask in 0_u32..1 << proxy.len() {
            if mask.count_ones() as usize == n {
                let members: Vec<usize> = (0..proxy.len()).filter(|i| mask >> i & 1 == 1).collect();
                let best = members.iter().map(|&i| proxy[i]).fold(f64::NEG_INFINITY, f64::max);
                let winners: Vec<f64> =
                    members.iter().filter(|&&i| proxy[i] == best).map(|&i| value[i]).collect();
                sum += winners.iter().sum::<f64>() / winners.len() as f64;
                groups += 1.0;
            }
        }
        sum / groups
    }

    #[test]
    fn every_group_counts_once() {
        let proxy = [0.3, -1.0, 2.0, 0.3, 1.5, -0.2, 0.3, 1.9];
        let value = [1.0, 4.0, -3.0, 2.0, 5.0, 0.5, 0.0, 2.5];
        for n in 1..=8 {
            let (got, expect) = (best_of_n(&proxy, &value, n).unwrap(), by_groups(&proxy, &value, n));
            // Ties: a group with one of the tied and one with two share the mean of the tied in expectation only if each
            // tied response is in as many such groups, which symmetry gives.
            assert!((got - expect).abs() < 1e-12, "best of {n}: {got}, {expect}");
        }
        assert!(best_of_n(&proxy, &value, 9).is_err());
        assert_eq!(best_of_n_kl(1), 0.0);
        assert!((best_of_n_kl(4) - (4.0_f64.ln() - 0.75)).abs() < 1e-15);
    }
}
