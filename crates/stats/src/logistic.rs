//! Logistic regression on sparse features, for baselines such as a bag of words.
//!
//! ```text
//! m_i = w · x_i + w0
//! F   = Σ_i weight_i (softplus(m_i) - y_i m_i) + l2/2 |w|²          (w0 is not penalised)
//! g   = Σ_i weight_i (σ(m_i) - y_i) x_i + l2 w
//! H v = Σ_i weight_i σ(m_i) (1 - σ(m_i)) (x_i · v) x_i + l2 v
//! ```
//!
//! F is convex, so Newton's method with the step solved by conjugate gradients and halved until F falls enough finds
//! the minimum. `y` may be a share of votes. `l2` is one over scikit-learn's `C`.
//!
//! A pairwise preference is a row of differences, chosen minus rejected, without an intercept.
//!
//! Source: Nocedal & Wright, Numerical Optimization, algorithm 7.1 (line search Newton-CG).

use crate::{Error, check_count, check_values};

/// The features of one row that are not 0: number and value. A number that occurs twice counts as the sum.
pub type SparseRow = Vec<(usize, f64)>;

/// Settings of a fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogisticConfig {
    /// Penalty, at least 0. With 0, separable data have no minimum and the fit fails.
    pub l2: f64,
    /// Whether there is a `w0`.
    pub intercept: bool,
    /// Largest element of the gradient at which to stop.
    pub gradient_tolerance: f64,
    /// Newton steps after which to give up.
    pub iterations_max: usize,
}

/// A fitted model.
#[derive(Clone, Debug, PartialEq)]
pub struct Logistic {
    /// One weight for each feature.
    pub weights: Vec<f64>,
    /// `w0`, 0 if there is none.
    pub intercept: f64,
    /// F at the minimum.
    pub loss: f64,
    /// Newton steps made.
    pub iterations: usize,
}

impl Logistic {
    /// Fits `labels` in `[0, 1]` with a `weight` of at least 0 for each row.
    ///
    /// # Panics
    ///
    /// If lengths differ, a feature number is not below `features`, or `l2` is negative.
    pub fn fit(
        rows: &[SparseRow],
        labels: &[f64],
        weight: &[f64],
        features: usize,
        config: LogisticConfig,
    ) -> Result<Logistic, Error> {
        assert_eq!(rows.len(), labels.len(), "logistic: one label for each row");
        assert_eq!(rows.len(), weight.len(), "logistic: one weight for each row");
        assert!(config.l2 >= 0.0, "logistic: l2 = {} is negative", config.l2);
        check_count("logistic", "rows", rows.len(), 1)?;
        check_values("logistic", labels, "a label in [0, 1]", |y| (0.0..=1.0).contains(&y))?;
        check_values("logistic", weight, "a weight of at least 0", |w| w >= 0.0 && w.is_finite())?;
        for row in rows {
            assert!(
                row.iter().all(|&(j, _)| j < features),
                "logistic: a feature number is not below {features}"
            );
            let values: Vec<f64> = row.iter().map(|&(_, x)| x).collect();
            check_values("logistic", &values, "a finite feature", f64::is_finite)?;
        }
        Problem { rows, labels, weight, features, config }.minimise()
    }

    /// `w · x + w0`; features that the fit did not have count nothing.
    pub fn margin(&self, row: &SparseRow) -> f64 {
        self.intercept + row.iter().map(|&(j, x)| self.weights.get(j).map_or(0.0, |w| w * x)).sum::<f64>()
    }

    /// `σ(w · x + w0)`.
    pub fn probability(&self, row: &SparseRow) -> f64 {
        sigmoid(self.margin(row))
    }
}

/// The function to minimise. Parameters are the weights and then, if there is one, the intercept.
struct Problem<'a> {
    rows: &'a [SparseRow],
    labels: &'a [f64],
    weight: &'a [f64],
    features: usize,
    config: LogisticConfig,
}

impl Problem<'_> {
    fn minimise(&self) -> Result<Logistic, Error> {
        let mut w = vec![0.0; self.features + usize::from(self.config.intercept)];
        let mut margins = self.margins(&w);
        let mut loss = self.loss(&w, &margins);
        for iterations in 0.. {
            let gradient = self.gradient(&w, &margins);
            let steepest = gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
            if steepest <= self.config.gradient_tolerance {
                let intercept = if self.config.intercept { w.pop().unwrap_or(0.0) } else { 0.0 };
                return Ok(Logistic { weights: w, intercept, loss, iterations });
            }
            let stuck = Error::NotConverged {
                method: "logistic",
                gradient: steepest,
                iterations,
                tolerance: self.config.gradient_tolerance,
            };
            if iterations == self.config.iterations_max {
                return Err(stuck);
            }

            let step = self.newton_step(&gradient, &margins);
            let slope = dot(&gradient, &step);
            let step_margins = self.margins(&step);
            let mut scale = 1.0;
            loop {
                let trial: Vec<f64> = w.iter().zip(&step).map(|(w, s)| w + scale * s).collect();
                let trial_margins: Vec<f64> =
                    margins.iter().zip(&step_margins).map(|(m, s)| m + scale * s).collect();
                let trial_loss = self.loss(&trial, &trial_margins);
                // Near the minimum the fall is lost in the rounding of F; a full Newton step is right there.
                let rounding = 16.0 * f64::EPSILON * loss.abs();
                if trial_loss <= loss + ARMIJO * scale * slope + rounding {
                    (w, margins, loss) = (trial, trial_margins, trial_loss);
                    break;
                }
                scale *= 0.5;
                if scale < 1e-12 {
                    return Err(stuck);
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Solves `H s = -g` well enough for superlinear convergence.
    fn newton_step(&self, gradient: &[f64], margins: &[f64]) -> Vec<f64> {
        let curvature: Vec<f64> = margins
            .iter()
            .zip(self.weight)
            .map(|(&m, &weight)| {
                let p = sigmoid(m);
                weight * p * (1.0 - p)
            })
            .collect();
        let norm = dot(gradient, gradient).sqrt();
        let tolerance = norm * norm.sqrt().min(0.1);
        let mut step = vec![0.0; gradient.len()];
        let mut residual: Vec<f64> = gradient.iter().map(|g| -g).collect();
        let mut direction = residual.clone();
        let mut square = dot(&residual, &residual);
        for _ in 0..2 * gradient.len() + 10 {
            let curved = self.hessian_times(&direction, &curvature);
            let bend = dot(&direction, &curved);
            if bend <= 0.0 {
                break; // Flat to rounding: what is not seen by the data cannot be solved for.
            }
            let along = square / bend;
            add_scaled(&mut step, along, &direction);
            add_scaled(&mut residual, -along, &curved);
            let next = dot(&residual, &residual);
            if next.sqrt() <= tolerance {
                break;
            }
            let keep = next / square;
            square = next;
            direction = residual.iter().zip(&direction).map(|(r, d)| r + keep * d).collect();
        }
        if step.iter().all(|&s| s == 0.0) { gradient.iter().map(|g| -g).collect() } else { step }
    }

    fn margins(&self, w: &[f64]) -> Vec<f64> {
        let intercept = if self.config.intercept { w[self.features] } else { 0.0 };
        self.rows.iter().map(|row| intercept + row.iter().map(|&(j, x)| w[j] * x).sum::<f64>()).collect()
    }

    fn loss(&self, w: &[f64], margins: &[f64]) -> f64 {
        let fit: f64 = (0..margins.len())
            .map(|i| self.weight[i] * (softplus(margins[i]) - self.labels[i] * margins[i]))
            .sum();
        fit + 0.5 * self.config.l2 * dot(&w[..self.features], &w[..self.features])
    }

    fn gradient(&self, w: &[f64], margins: &[f64]) -> Vec<f64> {
        let pull: Vec<f64> =
            (0..margins.len()).map(|i| self.weight[i] * (sigmoid(margins[i]) - self.labels[i])).collect();
        self.transposed_times(&pull, w)
    }

    fn hessian_times(&self, v: &[f64], curvature: &[f64]) -> Vec<f64> {
        let bent: Vec<f64> = self.margins(v).iter().zip(curvature).map(|(m, c)| m * c).collect();
        self.transposed_times(&bent, v)
    }

    /// `Σ_i pull_i x_i + l2 w`.
    fn transposed_times(&self, pull: &[f64], w: &[f64]) -> Vec<f64> {
        let mut out: Vec<f64> = w.iter().map(|w| self.config.l2 * w).collect();
        if self.config.intercept {
            out[self.features] = pull.iter().sum();
        }
        for (row, pull) in self.rows.iter().zip(pull) {
            for &(j, x) in row {
                out[j] += pull * x;
            }
        }
        out
    }
}

/// Share of the promised fall that a step must deliver.
const ARMIJO: f64 = 1e-4;

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p((-x.abs()).exp())
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(out: &mut [f64], scale: f64, x: &[f64]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out += scale * x);
}
