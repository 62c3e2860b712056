//! Over-optimisation curves: how the true reward rises and falls as a policy moves away from its reference.
//!
//! With `d = √KL(π ‖ reference)`, KL in nats per sequence, and the true reward counted from the reference's,
//!
//! ```text
//! best-of-n:   R(d) = d (α - β d)         peak at d* = α / 2β,            R* = α² / 4β
//! RL:          R(d) = d (α - β ln d)      peak at d* = exp(α/β - 1),      R* = β d*
//! ```
//!
//! Both are linear in `(α, β)`: weighted least squares, with Student's intervals, and the peak's by the delta method on `ln d*`. The RL
//! form has an infinite slope at 0: points with `d` below about ½ say nothing about it. Some summaries print it as `α √KL - β KL`;
//! that is the other one.
//!
//! Source: Gao, Schulman & Hilton 2022, arXiv:2210.10760, equations 1 and 2.

use serde::Serialize;

use crate::interval::Estimate;
use crate::special::t_quantile;
use crate::{Error, check_confidence, check_count, check_values};

/// How the policy was optimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimiser {
    /// Best-of-n sampling.
    BestOfN,
    /// Reinforcement learning.
    Rl,
}

/// A fitted curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct OverOptimisation {
    /// Which form.
    pub optimiser: Optimiser,
    /// `α`, reward per root nat.
    pub alpha: Estimate,
    /// `β`, how fast it is eaten up.
    pub beta: Estimate,
    /// `d*`, where the true reward is highest; nothing if β is not above 0, so that the curve has no peak.
    pub peak: Option<Estimate>,
    /// `R*`, the reward there.
    pub peak_reward: Option<f64>,
    /// Weighted standard deviation of the residuals.
    pub residual_sd: f64,
}

impl OverOptimisation {
    /// The curve at a distance `d >= 0`, in root nats.
    pub fn reward(&self, d: f64) -> f64 {
        d * (self.alpha.estimate - self.beta.estimate * self.optimiser.feature(d))
    }
}

impl Optimiser {
    /// What β is multiplied with.
    fn feature(self, d: f64) -> f64 {
        match self {
            Optimiser::BestOfN => d,
            Optimiser::Rl if d > 0.0 => d.ln(),
            Optimiser::Rl => 0.0, // d ln d -> 0.
        }
    }

    fn ln_peak(self, alpha: f64, beta: f64) -> f64 {
        match self {
            Optimiser::BestOfN => (alpha / (2.0 * beta)).ln(),
            Optimiser::Rl => alpha / beta - 1.0,
        }
    }

    /// Derivatives of `ln d*` by α and β.
    pub fn ln_peak_gradient(self, alpha: f64, beta: f64) -> [f64; 2] {
        match self {
            Optimiser::BestOfN => [1.0 / alpha, -1.0 / beta],
            Optimiser::Rl => [1.0 / beta, -alpha / (beta * beta)],
        }
    }
}

/// Fits the curve to rewards at distances `d > 0`, each with a `weight` (one over its variance; all 1 if unknown).
///
/// # Panics
///
/// If the lengths differ or `confidence` is not between 0 and 1.
pub fn over_optimisation(
    optimiser: Optimiser,
    d: &[f64],
    reward: &[f64],
    weight: &[f64],
    confidence: f64,
) -> Result<OverOptimisation, Error> {
    const METHOD: &str = "over_optimisation";
    check_confidence(confidence);
    assert!(
        d.len() == reward.len() && d.len() == weight.len(),
        "{METHOD}: a reward and a weight for each distance"
    );
    check_count(METHOD, "points", d.len(), 3)?;
    check_values(METHOD, d, "a distance above 0", |d| d > 0.0 && d.is_finite())?;
    check_values(METHOD, reward, "a finite reward", f64::is_finite)?;
    check_values(METHOD, weight, "a weight above 0", |w| w > 0.0 && w.is_finite())?;

    // R = α x - β y with x = d, y = d f(d): normal equations of two unknowns.
    let rows: Vec<[f64; 2]> = d.iter().map(|&d| [d, -d * optimiser.feature(d)]).collect();
    let sum = |term: &dyn Fn(usize) -> f64| (0..d.len()).map(|i| weight[i] * term(i)).sum::<f64>();
    let [xx, xy, yy] = [(0, 0), (0, 1), (1, 1)].map(|(j, k)| sum(&|i| rows[i][j] * rows[i][k]));
    let [xr, yr] = [0, 1].map(|j| sum(&|i| rows[i][j] * reward[i]));
    let determinant = xx * yy - xy * xy;
    if determinant <= 1e-12 * xx * yy {
        return Err(Error::TooFew { method: METHOD, what: "different distances", needed: 2, found: 1 });
    }
    let alpha = (yy * xr - xy * yr) / determinant;
    let beta = (xx * yr - xy * xr) / determinant;

    let freedom = d.len() as f64 - 2.0;
    let squares = sum(&|i| (reward[i] - alpha * rows[i][0] - beta * rows[i][1]).powi(2));
    let variance = squares / freedom;
    let [v_alpha, v_cross, v_beta] = [yy, -xy, xx].map(|x| variance * x / determinant);
    let t = t_quantile(0.5 + 0.5 * confidence, freedom);
    let n = d.len();
    let with = |x: f64, v: f64| Estimate { estimate: x, low: x - t * v.sqrt(), high: x + t * v.sqrt(), n };

    let peaked = beta > 0.0 && (optimiser == Optimiser::Rl || alpha > 0.0);
    let peak = peaked.then(|| {
        let (ln_peak, [a, b]) = (optimiser.ln_peak(alpha, beta), optimiser.ln_peak_gradient(alpha, beta));
        let se = (a * a * v_alpha + 2.0 * a * b * v_cross + b * b * v_beta).max(0.0).sqrt();
        Estimate { estimate: ln_peak.exp(), low: (ln_peak - t * se).exp(), high: (ln_peak + t * se).exp(), n }
    });
    let mut fit = OverOptimisation {
        optimiser,
        alpha: with(alpha, v_alpha),
        beta: with(beta, v_beta),
        peak,
        peak_reward: None,
        residual_sd: variance.sqrt(),
    };
    fit.peak_reward = peak.map(|peak| fit.reward(peak.estimate));
    Ok(fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_curves_come_back() {
        // Constants read from the figures for a 1.2B reward model.
        let d: Vec<f64> = (1..=12).map(f64::from).collect();
        let ones = vec![1.0; 12];
        let (a, b) = (0.653, 0.0965);
        let rewards: Vec<f64> = d.iter().map(|d| d * (a - b * d)).collect();
        let fit = over_optimisation(Optimiser::BestOfN, &d, &rewards, &ones, 0.95).unwrap();
        assert!((fit.alpha.estimate - a).abs() < 1e-12 && (fit.beta.estimate - b).abs() < 1e-12, "{fit:?}");
        assert!((fit.peak.unwrap().estimate - a / (2.0 * b)).abs() < 1e-9);
        assert!((fit.peak_reward.unwrap() - a * a / (4.0 * b)).abs() < 1e-9);

        let (a, b) = (0.35, 0.122);
        let rewards: Vec<f64> = d.iter().map(|d| d * (a - b * d.ln())).collect();
        let fit = over_optimisation(Optimiser::Rl, &d, &rewards, &ones, 0.95).unwrap();
        let peak = (a / b - 1.0).exp();
        assert!((fit.alpha.estimate - a).abs() < 1e-12 && (fit.peak.unwrap().estimate - peak).abs() < 1e-8);
        assert!((fit.peak_reward.unwrap() - b * peak).abs() < 1e-9);
        // It crosses 0 at exp(α/β).
        assert!(fit.reward((a / b).exp()).abs() < 1e-9);
    }

    #[test]
    fn a_curve_that_only_rises_has_no_peak() {
        let d = [1.0, 2.0, 3.0, 4.0];
        let fit = over_optimisation(Optimiser::BestOfN, &d, &[1.0, 2.1, 3.3, 4.6], &[1.0; 4], 0.95).unwrap();
        assert_eq!((fit.peak, fit.peak_reward), (None, None));
        assert!(over_optimisation(Optimiser::Rl, &[2.0; 4], &[1.0; 4], &[1.0; 4], 0.95).is_err());
        assert!(over_optimisation(Optimiser::Rl, &[0.0, 1.0, 2.0], &[0.0; 3], &[1.0; 3], 0.95).is_err());
    }
}
