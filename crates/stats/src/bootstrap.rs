//! The bootstrap over clusters: percentile and BCa intervals of any statistic.
//!
//! Each resample draws as many clusters as there are, with replacement, and keeps their members together.
//!
//! ```text
//! percentile:  the α/2 and 1 - α/2 quantiles of the resampled statistics θ*
//! BCa:         the same at Φ(z0 + (z0 + z) / (1 - a (z0 + z))), z = Φ⁻¹(α/2), Φ⁻¹(1 - α/2)
//! z0 = Φ⁻¹((#{θ* < θ} + #{θ* <= θ}) / 2B)           how far θ is from the middle of θ*
//! a  = Σ_c (θ̄ - θ_c)³ / (6 (Σ_c (θ̄ - θ_c)²)^1.5)    skewness, θ_c without cluster c (jackknife), θ̄ their mean
//! ```
//!
//! Quantiles interpolate linearly between order statistics (numpy's default). Resample `r` is a function of the seed and
//! `r` alone.
//!
//! Many statistics are functions of sums over clusters (a coincidence matrix, a confusion table). [`bootstrap_sums`] takes
//! those: a resample costs a draw for each cluster and a product for each *distinct* row, and the jackknife is a subtraction.
//!
//! Source: Efron 1987, "Better bootstrap confidence intervals", JASA 82.

use std::collections::HashMap;
use std::hash::Hash;

use serde::Serialize;

use crate::interval::members_by_cluster;
use crate::rng::Stream;
use crate::special::{normal_cdf, normal_quantile};
use crate::{Error, check_confidence, check_count, check_values};

/// How to resample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resampling {
    /// Number of resamples; 10 000 settles the ends of a 95 % interval to about a hundredth of its width.
    pub resamples: usize,
    /// Seed of the draws.
    pub seed: u64,
    /// Coverage of the intervals.
    pub confidence: f64,
}

/// A statistic and its bootstrap distribution.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bootstrap {
    /// The statistic of the data as they are.
    pub estimate: f64,
    /// Standard deviation of the resampled statistics.
    pub se: f64,
    /// Percentile interval.
    pub percentile: (f64, f64),
    /// Bias-corrected and accelerated interval; the percentile one where the resamples do not vary.
    pub bca: (f64, f64),
    /// `z0` above.
    pub bias: f64,
    /// `a` above.
    pub acceleration: f64,
    /// Clusters.
    pub clusters: usize,
}

/// Bootstraps `statistic`, a function of the positions of the items that were drawn, with repeats.
///
/// # Panics
///
/// If there are no resamples or the confidence is not between 0 and 1.
pub fn bootstrap<K: Eq + Hash>(
    cluster: &[K],
    statistic: impl Fn(&[usize]) -> f64,
    how: Resampling,
) -> Result<Bootstrap, Error> {
    let members = members_by_cluster(cluster, cluster.len());
    resample(
        members.len(),
        |drawn| {
            let items: Vec<usize> = drawn.iter().flat_map(|&c| members[c].iter().copied()).collect();
            statistic(&items)
        },
        how,
    )
}

/// Bootstraps the mean of `values`. The same answer as [`bootstrap`] with the mean as its statistic, faster.
///
/// # Panics
///
/// If the lengths differ, there are no resamples or the confidence is not between 0 and 1.
pub fn bootstrap_mean<K: Eq + Hash>(
    values: &[f64],
    cluster: &[K],
    how: Resampling,
) -> Result<Bootstrap, Error> {
    check_values("bootstrap_mean", values, "a finite number", f64::is_finite)?;
    let members = members_by_cluster(cluster, values.len());
    let sums: Vec<(f64, f64)> = members
        .iter()
        .map(|members| (members.iter().map(|&i| values[i]).sum(), members.len() as f64))
        .collect();
    resample(
        members.len(),
        |drawn| {
            let (sum, n) = drawn.iter().fold((0.0, 0.0), |(sum, n), &c| (sum + sums[c].0, n + sums[c].1));
            sum / n
        },
        how,
    )
}

/// Bootstraps the mean of `a - b`, measured on the same items.
///
/// # Panics
///
/// As [`bootstrap_mean`].
pub fn bootstrap_paired<K: Eq + Hash>(
    a: &[f64],
    b: &[f64],
    cluster: &[K],
    how: Resampling,
) -> Result<Bootstrap, Error> {
    assert_eq!(a.len(), b.len(), "bootstrap_paired: both sides on the same items");
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    bootstrap_mean(&differences, cluster, how)
}

/// What each cluster adds to a statistic's sums. Equal rows are kept once.
#[derive(Clone, Debug)]
pub struct Sums {
    width: usize,
    /// Distinct rows, one after the other.
    rows: Vec<f64>,
    /// Which row each cluster has.
    row_of: Vec<u32>,
    number: HashMap<Vec<u64>, u32>,
}

impl Sums {
    /// No clusters yet; each will add `width` numbers.
    pub fn new(width: usize) -> Self {
        Sums { width, rows: Vec::new(), row_of: Vec::new(), number: HashMap::new() }
    }

    /// Adds a cluster.
    ///
    /// # Panics
    ///
    /// If the row has another width.
    pub fn push(&mut self, row: &[f64]) {
        assert_eq!(row.len(), self.width, "bootstrap: a row of sums has another width");
        let bits: Vec<u64> = row.iter().map(|x| x.to_bits()).collect();
        let next = self.number.len() as u32;
        let number = *self.number.entry(bits).or_insert(next);
        if number == next {
            self.rows.extend_from_slice(row);
        }
        self.row_of.push(number);
    }

    /// Clusters.
    pub fn clusters(&self) -> usize {
        self.row_of.len()
    }

    /// The sums over all clusters.
    pub fn total(&self) -> Vec<f64> {
        let mut counts = vec![0.0; self.number.len()];
        self.row_of.iter().for_each(|&row| counts[row as usize] += 1.0);
        self.weighted(&counts)
    }

    /// `Σ_row counts[row] * row`.
    fn weighted(&self, counts: &[f64]) -> Vec<f64> {
        let mut sums = vec![0.0; self.width];
        for (row, &count) in self.rows.chunks_exact(self.width).zip(counts) {
            if count != 0.0 {
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += count * x);
            }
        }
        sums
    }
}

/// A function of sums over clusters; `None` where these sums do not define it.
pub type Statistic<'f> = &'f dyn Fn(&[f64]) -> Option<f64>;

/// Share of resamples in which a statistic may be undefined before its interval is.
const UNDEFINED_SHARE_MAX: f64 = 0.05;

/// Bootstraps functions of sums over clusters, all on the same resamples; `None` is a statistic that these sums do not
/// define. The same answer as [`bootstrap`] up to rounding.
///
/// A statistic is [`Error::Unstable`] if it is undefined without one of the clusters or in more than a twentieth of the
/// resamples; rarer ones are left out.
///
/// # Panics
///
/// If there are no resamples, the confidence is not between 0 and 1, or a statistic of all clusters is `None`.
pub fn bootstrap_sums<const S: usize>(
    sums: &Sums,
    statistics: [Statistic<'_>; S],
    how: Resampling,
) -> Result<[Result<Bootstrap, Error>; S], Error> {
    check_confidence(how.confidence);
    assert!(how.resamples > 0, "bootstrap: no resamples");
    let clusters = sums.clusters();
    check_count("bootstrap", "clusters", clusters, 2)?;
    let total = sums.total();

    let mut draws: [Vec<f64>; S] = std::array::from_fn(|_| Vec::with_capacity(how.resamples));
    let mut counts = vec![0.0; sums.number.len()];
    for r in 0..how.resamples {
        let mut stream = Stream::new(how.seed, "bootstrap", r as u64);
        counts.fill(0.0);
        (0..clusters).for_each(|_| counts[sums.row_of[stream.below(clusters)] as usize] += 1.0);
        let drawn = sums.weighted(&counts);
        for (draws, statistic) in draws.iter_mut().zip(statistics) {
            draws.extend(statistic(&drawn).filter(|x| x.is_finite()));
        }
    }

    let mut draws = draws.into_iter();
    Ok(statistics.map(|statistic| {
        let draws = draws.next().expect("as many as statistics");
        let estimate = statistic(&total).expect("the caller has checked that the statistic is defined");
        let undefined = how.resamples - draws.len();
        let unstable = || Error::Unstable { undefined, resamples: how.resamples };
        if undefined as f64 > UNDEFINED_SHARE_MAX * how.resamples as f64 {
            return Err(unstable());
        }
        let without: Option<Vec<f64>> = sums
            .rows
            .chunks_exact(sums.width)
            .map(|row| statistic(&total.iter().zip(row).map(|(t, x)| t - x).collect::<Vec<_>>()))
            .collect();
        let without = without.ok_or_else(unstable)?;
        let left_out: Vec<f64> = sums.row_of.iter().map(|&row| without[row as usize]).collect();
        Ok(intervals(estimate, draws, &left_out, how.confidence))
    }))
}

/// The bootstrap of a statistic of cluster numbers `0..clusters`.
fn resample(
    clusters: usize,
    statistic: impl Fn(&[usize]) -> f64,
    how: Resampling,
) -> Result<Bootstrap, Error> {
    check_confidence(how.confidence);
    assert!(how.resamples > 0, "bootstrap: no resamples");
    check_count("bootstrap", "clusters", clusters, 2)?;
    let all: Vec<usize> = (0..clusters).collect();
    let estimate = statistic(&all);

    let mut drawn = vec![0; clusters];
    let draws: Vec<f64> = (0..how.resamples)
        .map(|r| {
            let mut stream = Stream::new(how.seed, "bootstrap", r as u64);
            drawn.iter_mut().for_each(|c| *c = stream.below(clusters));
            statistic(&drawn)
        })
        .collect();
    check_values("bootstrap", &draws, "a finite statistic of every resample", f64::is_finite)?;
    let left_out: Vec<f64> = (0..clusters)
        .map(|out| statistic(&all.iter().copied().filter(|&c| c != out).collect::<Vec<_>>()))
        .collect();
    check_values("bootstrap", &left_out, "a finite statistic without one cluster", f64::is_finite)?;
    Ok(intervals(estimate, draws, &left_out, how.confidence))
}

/// The summary of a bootstrap distribution and a jackknife.
fn intervals(estimate: f64, mut draws: Vec<f64>, left_out: &[f64], confidence: f64) -> Bootstrap {
    draws.sort_by(f64::total_cmp);
    let acceleration = acceleration(left_out);
    let b = draws.len() as f64;
    let below = draws.partition_point(|&x| x < estimate) + draws.partition_point(|&x| x <= estimate);
    let bias = normal_quantile(below as f64 / (2.0 * b));

    let tails = [0.5 - 0.5 * confidence, 0.5 + 0.5 * confidence];
    let [low, high] = tails.map(|p| quantile(&draws, p));
    let varies = draws[0] < draws[draws.len() - 1] && bias.is_finite();
    let [bca_low, bca_high] = tails.map(|p| {
        let level = if varies { bca_level(p, bias, acceleration) } else { p };
        quantile(&draws, level)
    });
    let mean = draws.iter().sum::<f64>() / b;
    let variance = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (b - 1.0).max(1.0);
    Bootstrap {
        estimate,
        se: variance.sqrt(),
        percentile: (low, high),
        bca: (bca_low, bca_high),
        bias,
        acceleration,
        clusters: left_out.len(),
    }
}

/// The level at which BCa reads the resampled statistics, in place of `p`.
fn bca_level(p: f64, bias: f64, acceleration: f64) -> f64 {
    let z = bias + normal_quantile(p);
    normal_cdf(bias + z / (1.0 - acceleration * z))
}

fn acceleration(left_out: &[f64]) -> f64 {
    let mean = left_out.iter().sum::<f64>() / left_out.len() as f64;
    let moment = |k: i32| left_out.iter().map(|x| (mean - x).powi(k)).sum::<f64>();
    let square = moment(2);
    if square == 0.0 { 0.0 } else { moment(3) / (6.0 * square.powf(1.5)) }
}

/// Linear interpolation between order statistics.
fn quantile(sorted: &[f64], p: f64) -> f64 {
    let at = p.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acceleration_by_hand() {
        // Mean of (0, 0, 3) without each: 1.5, 1.5, 0, mean 1. Cubes of (-.5, -.5, 1): 0.75; squares: 1.5.
        assert!((acceleration(&[1.5, 1.5, 0.0]) - 0.75 / (6.0 * 1.5_f64.powf(1.5))).abs() < 1e-15);
        assert_eq!(acceleration(&[2.0, 2.0]), 0.0);
    }

    #[test]
    fn quantile_by_hand() {
        let check = |p, expect| assert_eq!(quantile(&[1.0, 2.0, 4.0], p), expect);
        check(0.0, 1.0);
        check(0.25, 1.5);
        check(0.75, 3.0);
        check(1.0, 4.0);
    }

    #[test]
    fn bca_without_bias_and_skew_is_the_percentile() {
        assert!((bca_level(0.025, 0.0, 0.0) - 0.025).abs() < 1e-15);
        // A positive bias moves both levels up.
        assert!(bca_level(0.025, 0.1, 0.0) > 0.025 && bca_level(0.975, 0.1, 0.0) > 0.975);
    }
}
