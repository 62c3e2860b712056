//! The win rate at equal length.
//!
//! People and judges prefer longer answers, so a policy gains wins by length alone. A logistic model takes that part out:
//!
//! ```text
//! logit E x_i = θ + φ tanh(Δ_i / s),       Δ_i = length of ours - length of theirs,  s = sd Δ
//! rate        = σ(θ)                        the win rate where Δ = 0
//! V           = H⁻¹ (C/(C-1) Σ_c g_c g_cᵀ) H⁻¹,   H = Σ_i p_i (1 - p_i) z_i z_iᵀ,   g_c = Σ_{i in c} (x_i - p_i) z_i,   z = (1, tanh)
//! ```
//!
//! Scores are 1, ½, 0 or shares; the sandwich needs no binomial variance of them. The interval is Student's on `C - 1` degrees of
//! freedom on the logit scale. `φ` is a result of its own: how much length buys.
//!
//! Source: Dubois et al. 2024, arXiv:2404.04475 (AlpacaEval 2). Not here: their term for the difficulty of an instruction, which
//! needs many policies on the same prompts, and their ridge towards the raw rate.

use std::hash::Hash;

use serde::Serialize;

use crate::interval::{Estimate, members_by_cluster};
use crate::linalg::{Cholesky, product};
use crate::logistic::{Logistic, LogisticConfig, SparseRow, sigmoid};
use crate::special::t_quantile;
use crate::{Error, check_confidence, check_count, check_values};

/// A win rate without what length bought.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LengthControlled {
    /// Win rate at equal length.
    pub rate: Estimate,
    /// `φ`: change of the log-odds between two answers of equal length and a much longer one of ours.
    pub length: Estimate,
    /// Standard error of `θ`, on the logit scale.
    pub se_logit: f64,
    /// Prompts.
    pub clusters: usize,
    /// What each score adds to the rate: `σ'(θ) n (H⁻¹ z_i (x_i - p_i))_θ`. Their mean is 0; the spread of their mean, clustered by prompt, is
    /// the rate's standard error.
    pub influence: Vec<f64>,
}

/// Fits `scores` in `[0, 1]` given the two lengths (any unit, the same for both), clustered by prompt.
///
/// Scores that the lengths separate are [`Error::NotConverged`]; lengths that never differ, too few.
///
/// # Panics
///
/// If the lengths of the slices differ or `confidence` is not between 0 and 1.
pub fn length_controlled<K: Eq + Hash>(
    scores: &[f64],
    ours: &[f64],
    theirs: &[f64],
    prompt: &[K],
    confidence: f64,
) -> Result<LengthControlled, Error> {
    const METHOD: &str = "length_controlled";
    check_confidence(confidence);
    assert!(
        scores.len() == ours.len() && scores.len() == theirs.len(),
        "{METHOD}: two lengths for each score"
    );
    check_values(METHOD, scores, "a score in [0, 1]", |x| (0.0..=1.0).contains(&x))?;
    let members = members_by_cluster(prompt, scores.len());
    check_count(METHOD, "clusters", members.len(), 3)?;
    let feature = length_feature(ours, theirs)?;

    let rows: Vec<SparseRow> = feature.iter().map(|&f| vec![(0, f)]).collect();
    let config = LogisticConfig { l2: 0.0, intercept: true, gradient_tolerance: 1e-9, iterations_max: 50 };
    let fit = Logistic::fit(&rows, scores, &vec![1.0; scores.len()], 1, config)?;
    let theta = [fit.intercept, fit.weights[0]];

    let (mut bend, mut meat) = ([0.0; 4], [0.0; 4]);
    for members in &members {
        let mut pull = [0.0; 2];
        for &i in members {
            let z = [1.0, feature[i]];
            let p = sigmoid(theta[0] + theta[1] * feature[i]);
            add_outer(&mut bend, p * (1.0 - p), &z);
            (0..2).for_each(|k| pull[k] += (scores[i] - p) * z[k]);
        }
        add_outer(&mut meat, 1.0, &pull);
    }
    let c = members.len() as f64;
    let inverse = Cholesky::new(&bend, 2)
        .ok_or(Error::NotConverged {
            method: METHOD,
            gradient: 0.0,
            iterations: fit.iterations,
            tolerance: 1e-9,
        })?
        .inverse();
    let covariance = product(&product(&inverse, &meat, 2), &inverse, 2);
    let se = |k: usize| (c / (c - 1.0) * covariance[3 * k]).max(0.0).sqrt();
    let t = t_quantile(0.5 + 0.5 * confidence, c - 1.0);
    let ends = |k: usize| (theta[k] - t * se(k), theta[k] + t * se(k));
    let ((low, high), n) = (ends(0), scores.len());
    let length = ends(1);
    let rate = sigmoid(theta[0]);
    let influence = scores.iter().zip(&feature).map(|(x, f)| {
        let pull = x - sigmoid(theta[0] + theta[1] * f);
        rate * (1.0 - rate) * n as f64 * pull * (inverse[0] + inverse[1] * f)
    });
    let influence = influence.collect();
    Ok(LengthControlled {
        rate: Estimate { estimate: rate, low: sigmoid(low), high: sigmoid(high), n },
        length: Estimate { estimate: theta[1], low: length.0, high: length.1, n },
        se_logit: se(0),
        clusters: members.len(),
        influence,
    })
}

/// `tanh(Δ / sd Δ)`.
fn length_feature(ours: &[f64], theirs: &[f64]) -> Result<Vec<f64>, Error> {
    let delta: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
    check_values("length_controlled", &delta, "a finite difference of lengths", f64::is_finite)?;
    let n = delta.len() as f64;
    let mean = delta.iter().sum::<f64>() / n;
    let sd = (delta.iter().map(|d| (d - mean) * (d - mean)).sum::<f64>() / (n - 1.0)).sqrt();
    if sd == 0.0 {
        return Err(Error::TooFew {
            method: "length_controlled",
            what: "different differences of length",
            needed: 2,
            found: 1,
        });
    }
    Ok(delta.into_iter().map(|d| libm::tanh(d / sd)).collect())
}

fn add_outer(sum: &mut [f64; 4], weight: f64, z: &[f64; 2]) {
    for (k, sum) in sum.iter_mut().enumerate() {
        *sum += weight * z[k / 2] * z[k % 2];
    }
}
