//! Intervals for a proportion and for a mean, with and without clusters.
//!
//! ```text
//! Wilson:     (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
//! mean:       x̄ ± t_{n-1} s / sqrt(n),                      s² = Σ(x - x̄)² / (n - 1)
//! clustered:  x̄ ± t_{C-1} SE,      SE² = C/(C-1) Σ_c (Σ_{i in c} (x_i - x̄))² / n²
//! ```
//!
//! Responses to the same prompt share its difficulty. Treated as independent they make an interval too narrow, so what
//! was measured more than once per prompt is clustered by prompt.
//!
//! Source: Wilson 1927, JASA 22; Liang & Zeger 1986, Biometrika 73; Miller 2024, "Adding error bars to evals",
//! arXiv:2411.00640, for the clustered mean.

use std::collections::HashMap;
use std::hash::Hash;

use serde::Serialize;

use crate::special::{normal_quantile, t_quantile};
use crate::{Error, check_confidence, check_count, check_values};

/// A number with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The point estimate.
    pub estimate: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Observations behind it.
    pub n: usize,
}

/// A mean of observations that come in clusters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClusteredMean {
    /// Mean over observations, with Student's interval on `clusters - 1` degrees of freedom.
    pub mean: Estimate,
    /// Cluster-robust standard error.
    pub se: f64,
    /// Clusters.
    pub clusters: usize,
}

/// Wilson's interval for a proportion; it stays in `[0, 1]` and has a width even at 0 and at n.
///
/// # Panics
///
/// If `successes > n` or `confidence` is not between 0 and 1.
pub fn wilson(successes: usize, n: usize, confidence: f64) -> Result<Estimate, Error> {
    assert!(successes <= n, "wilson: {successes} successes of {n}");
    check_count("wilson", "trials", n, 1)?;
    let p = successes as f64 / n as f64;
    let (low, high) = wilson_ends(p, n as f64, confidence);
    Ok(Estimate { estimate: p, low, high, n })
}

/// Wilson's ends for a share `p` of `n` trials, where `n` may be an effective number.
pub(crate) fn wilson_ends(p: f64, n: f64, confidence: f64) -> (f64, f64) {
    check_confidence(confidence);
    let z = normal_quantile(0.5 + 0.5 * confidence);
    let centre = p + z * z / (2.0 * n);
    let reach = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    (((centre - reach) / scale).max(0.0), ((centre + reach) / scale).min(1.0))
}

/// Mean of independent values with Student's interval.
///
/// # Panics
///
/// If `confidence` is not between 0 and 1.
pub fn mean(values: &[f64], confidence: f64) -> Result<Estimate, Error> {
    check_confidence(confidence);
    check_count("mean", "values", values.len(), 2)?;
    check_values("mean", values, "a finite number", f64::is_finite)?;
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
    let reach = t_quantile(0.5 + 0.5 * confidence, n - 1.0) * (variance / n).sqrt();
    Ok(Estimate { estimate: mean, low: mean - reach, high: mean + reach, n: values.len() })
}

/// Mean of values in clusters, `cluster[i]` naming the cluster of `values[i]`. With one value per cluster it is [`mean`].
///
/// # Panics
///
/// If the lengths differ or `confidence` is not between 0 and 1.
pub fn clustered_mean<K: Eq + Hash>(
    values: &[f64],
    cluster: &[K],
    confidence: f64,
) -> Result<ClusteredMean, Error> {
    check_confidence(confidence);
    check_values("clustered_mean", values, "a finite number", f64::is_finite)?;
    let members = members_by_cluster(cluster, values.len());
    check_count("clustered_mean", "clusters", members.len(), 2)?;
    let (n, c) = (values.len() as f64, members.len() as f64);
    let mean = values.iter().sum::<f64>() / n;
    let square = |members: &Vec<usize>| members.iter().map(|&i| values[i] - mean).sum::<f64>().powi(2);
    let se = (c / (c - 1.0) * members.iter().map(square).sum::<f64>()).sqrt() / n;
    let reach = t_quantile(0.5 + 0.5 * confidence, c - 1.0) * se;
    let mean = Estimate { estimate: mean, low: mean - reach, high: mean + reach, n: values.len() };
    Ok(ClusteredMean { mean, se, clusters: members.len() })
}

/// Positions of each cluster's members, clusters in the order in which they first appear: the order of a hash map must
/// not reach a sum.
pub(crate) fn members_by_cluster<K: Eq + Hash>(cluster: &[K], n: usize) -> Vec<Vec<usize>> {
    assert_eq!(cluster.len(), n, "one cluster for each value");
    let mut number = HashMap::new();
    let mut members: Vec<Vec<usize>> = Vec::new();
    for (i, key) in cluster.iter().enumerate() {
        let c = *number.entry(key).or_insert(members.len());
        if c == members.len() {
            members.push(Vec::new());
        }
        members[c].push(i);
    }
    members
}
