//! A mean, and a difference of two means, of observations that share prompts and annotators.
//!
//! Votes on one prompt share its difficulty, votes of one annotator share a taste. With `r_i` the observation's pull on the
//! estimate,
//!
//! ```text
//! mean x̄:               r_i = (x_i - x̄) / n
//! difference x̄ - ȳ:     r_i = (x_i - x̄) / n_x  of the first,    -(y_j - ȳ) / n_y  of the second
//! by prompt:            V = C/(C-1) Σ_c (Σ_{i in c} r_i)²
//! by both:              V = V_prompt + V_annotator - V_{prompt and annotator}       the larger of the first two if that is below 0
//! ```
//!
//! with Student's interval on one degree of freedom less than the smaller number of clusters. A difference is paired where
//! prompts are shared, also where the two sides have different numbers of votes on them: what a prompt does to both cancels.
//!
//! Observations with the same prompt and annotator are needed only as their sum and number, a [`Cell`].
//!
//! Source: Liang & Zeger 1986, Biometrika 73; Cameron, Gelbach & Miller 2011, J. Bus. Econ. Stat. 29, for two ways; Miller
//! 2024, arXiv:2411.00640, for evaluations.

use std::hash::Hash;

use crate::interval::{ClusteredMean, Estimate, members_by_cluster};
use crate::special::t_quantile;
use crate::{Error, check_confidence, check_count, check_values};

/// Observations of one annotator (or of nobody) on one prompt: their sum and number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cell<K> {
    /// The prompt.
    pub prompt: K,
    /// The annotator; `None` where nobody judged. Errors are clustered by annotator if every cell has one.
    pub annotator: Option<K>,
    /// Sum of the observations.
    pub sum: f64,
    /// How many they are.
    pub n: f64,
}

/// Mean over observations.
///
/// # Panics
///
/// If a cell holds no observation or `confidence` is not between 0 and 1.
pub fn cell_mean<K: Eq + Hash + Copy>(cells: &[Cell<K>], confidence: f64) -> Result<ClusteredMean, Error> {
    let side = Side::of(cells)?;
    let pulls = side.pulls(cells, 1.0);
    estimate(side.mean, side.n as usize, &pulls, &clusters_of(cells), confidence)
}

/// Mean of `first` minus mean of `second`, paired by prompt; `n` is the observations of both.
///
/// # Panics
///
/// As [`cell_mean`].
pub fn cell_difference<K: Eq + Hash + Copy>(
    first: &[Cell<K>],
    second: &[Cell<K>],
    confidence: f64,
) -> Result<ClusteredMean, Error> {
    let (a, b) = (Side::of(first)?, Side::of(second)?);
    let pulls = [a.pulls(first, 1.0), b.pulls(second, -1.0)].concat();
    let cells = [first, second].concat();
    estimate(a.mean - b.mean, (a.n + b.n) as usize, &pulls, &clusters_of(&cells), confidence)
}

struct Side {
    mean: f64,
    n: f64,
}

impl Side {
    fn of<K>(cells: &[Cell<K>]) -> Result<Side, Error> {
        assert!(cells.iter().all(|cell| cell.n > 0.0), "clustered: a cell without observations");
        let sums: Vec<f64> = cells.iter().map(|cell| cell.sum).collect();
        check_values("cell_mean", &sums, "a finite number", f64::is_finite)?;
        check_count("cell_mean", "cells", cells.len(), 1)?;
        let n = cells.iter().map(|cell| cell.n).sum::<f64>();
        Ok(Side { mean: sums.iter().sum::<f64>() / n, n })
    }

    fn pulls<K>(&self, cells: &[Cell<K>], sign: f64) -> Vec<f64> {
        cells.iter().map(|cell| sign * (cell.sum - self.mean * cell.n) / self.n).collect()
    }
}

/// Cluster numbers of each cell by prompt, and by annotator if all have one.
type Clusters<K> = (Vec<K>, Option<Vec<K>>);

fn clusters_of<K: Copy>(cells: &[Cell<K>]) -> Clusters<K> {
    (cells.iter().map(|cell| cell.prompt).collect(), cells.iter().map(|cell| cell.annotator).collect())
}

fn estimate<K: Eq + Hash + Copy>(
    value: f64,
    n: usize,
    pulls: &[f64],
    (prompts, annotators): &Clusters<K>,
    confidence: f64,
) -> Result<ClusteredMean, Error> {
    check_confidence(confidence);
    let (by_prompt, mut clusters) = variance(pulls, prompts)?;
    let mut total = by_prompt;
    if let Some(annotators) = annotators {
        let (by_annotator, people) = variance(pulls, annotators)?;
        let both: Vec<(K, K)> = prompts.iter().copied().zip(annotators.iter().copied()).collect();
        total = by_prompt + by_annotator - variance(pulls, &both)?.0;
        if total < 0.0 {
            total = by_prompt.max(by_annotator);
        }
        clusters = clusters.min(people);
    }
    let se = total.sqrt();
    let reach = t_quantile(0.5 + 0.5 * confidence, clusters as f64 - 1.0) * se;
    let mean = Estimate { estimate: value, low: value - reach, high: value + reach, n };
    Ok(ClusteredMean { mean, se, clusters })
}

/// The variance clustered one way, and the number of clusters.
fn variance<K: Eq + Hash>(pulls: &[f64], cluster: &[K]) -> Result<(f64, usize), Error> {
    let members = members_by_cluster(cluster, pulls.len());
    check_count("cell_mean", "clusters", members.len(), 2)?;
    let c = members.len() as f64;
    let square = |members: &Vec<usize>| members.iter().map(|&i| pulls[i]).sum::<f64>().powi(2);
    Ok((c / (c - 1.0) * members.iter().map(square).sum::<f64>(), members.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(rows: &[(u32, u32, f64, f64)]) -> Vec<Cell<u32>> {
        rows.iter().map(|&(prompt, who, sum, n)| Cell { prompt, annotator: Some(who), sum, n }).collect()
    }

    #[test]
    fn what_a_prompt_does_to_both_sides_cancels() {
        // Every prompt moves both by the same: no error of the difference, and one of each mean.
        let a: Vec<Cell<u32>> =
            (0..6).map(|p| Cell { prompt: p, annotator: None, sum: f64::from(p) + 1.0, n: 1.0 }).collect();
        let b: Vec<Cell<u32>> = a.iter().map(|cell| Cell { sum: cell.sum - 1.0, ..*cell }).collect();
        let difference = cell_difference(&a, &b, 0.95).unwrap();
        assert_eq!((difference.mean.estimate, difference.clusters), (1.0, 6));
        assert!(difference.se < 1e-15, "{difference:?}");
        assert!(cell_mean(&a, 0.95).unwrap().se > 0.5);
    }

    #[test]
    fn two_ways_by_hand() {
        // Four cells, two prompts by two annotators, x̄ = ½, pulls (x - ½)/4 = ⅛ (1, 1, 1, -3) for (.. 1, 1, 1, -1).
        let got = cell_mean(
            &cells(&[(0, 0, 1.0, 1.0), (0, 1, 1.0, 1.0), (1, 0, 1.0, 1.0), (1, 1, -1.0, 1.0)]),
            0.9,
        )
        .unwrap();
        // Sums by prompt: ±¼, 2 (1/16 + 1/16) = ¼, and the same by annotator; by cell 4/3 * 12/64 = ¼.
        assert!((got.se - 0.5).abs() < 1e-15, "{got:?}");
        assert_eq!(got.clusters, 2);
    }
}
