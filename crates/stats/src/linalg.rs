//! Small dense linear algebra: a Cholesky factor, what is solved with it, and L-BFGS.
//!
//! Matrices are row by row in one vector. Sizes are numbers of models or annotators, a few thousand at most.
//!
//! Source: Nocedal & Wright, Numerical Optimization, algorithms 7.4 and 7.5 (L-BFGS) and 3.1 (backtracking, here started
//! from a step of 1).

use crate::Error;

/// Relative error of an objective that is a sum of up to a million terms, not compensated: a change by less is not seen in it.
pub(crate) const ROUNDING: f64 = 1e-12;

/// `L` with `L Lᵀ = A`.
pub(crate) struct Cholesky {
    n: usize,
    l: Vec<f64>,
}

/// Rows that are factored together: they stay in the cache while those before them pass by.
const BLOCK: usize = 16;

impl Cholesky {
    /// Factors a symmetric matrix; `None` if it is not positive definite to rounding.
    pub fn new(a: &[f64], n: usize) -> Option<Cholesky> {
        assert_eq!(a.len(), n * n, "cholesky: {n} rows of {n}");
        let mut l = a.to_vec();
        for block in (0..n).step_by(BLOCK) {
            let (done, rest) = l.split_at_mut(block * n);
            // Rows of the block against each row before it, which is read once for all of them.
            for (k, row) in done.chunks_exact(n).enumerate() {
                for rest in rest.chunks_exact_mut(n).take(BLOCK) {
                    rest[k] = (rest[k] - dot(&rest[..k], &row[..k])) / row[k];
                }
            }
            for j in block..n.min(block + BLOCK) {
                let (done, rest) = rest.split_at_mut((j - block) * n);
                for (k, row) in (block..).zip(done.chunks_exact(n)) {
                    rest[k] = (rest[k] - dot(&rest[..k], &row[..k])) / row[k];
                }
                let pivot = rest[j] - dot(&rest[..j], &rest[..j]);
                if pivot <= 1e-13 * a[j * n + j].abs() || !pivot.is_finite() {
                    return None;
                }
                rest[j] = pivot.sqrt();
                rest[j + 1..n].fill(0.0);
            }
        }
        Some(Cholesky { n, l })
    }

    /// Solves `A x = b`.
    pub fn solve(&self, b: &[f64]) -> Vec<f64> {
        let n = self.n;
        let mut x = b.to_vec();
        for i in 0..n {
            x[i] = (x[i] - dot(&self.l[i * n..i * n + i], &x[..i])) / self.l[i * n + i];
        }
        for i in (0..n).rev() {
            x[i] /= self.l[i * n + i];
            let xi = x[i];
            (0..i).for_each(|j| x[j] -= self.l[i * n + j] * xi);
        }
        x
    }

    /// The diagonal of `A⁻¹`: the squares of each column of `L⁻¹`, which is a triangle and so a sixth of the work.
    pub fn inverse_diagonal(&self) -> Vec<f64> {
        let n = self.n;
        let mut column = vec![0.0; n];
        (0..n)
            .map(|j| {
                column[j] = 1.0 / self.l[j * (n + 1)];
                for i in j + 1..n {
                    let row = &self.l[i * n..][..=i];
                    column[i] = -dot(&row[j..i], &column[j..i]) / row[i];
                }
                dot(&column[j..], &column[j..])
            })
            .collect()
    }

    /// `A⁻¹`.
    pub fn inverse(&self) -> Vec<f64> {
        let n = self.n;
        let mut inverse = vec![0.0; n * n];
        let mut unit = vec![0.0; n];
        for j in 0..n {
            unit[j] = 1.0;
            let column = self.solve(&unit);
            (0..n).for_each(|i| inverse[i * n + j] = column[i]);
            unit[j] = 0.0;
        }
        inverse
    }
}

/// `A B` of two square matrices.
pub(crate) fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        for k in 0..n {
            let x = a[i * n + k];
            if x != 0.0 {
                (0..n).for_each(|j| out[i * n + j] += x * b[k * n + j]);
            }
        }
    }
    out
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Several sums at a time: one would wait for each addition.
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        (0..LANES).for_each(|i| sums[i] += a[i] * b[i]);
    }
    sums.iter().sum::<f64>() + rest
}

/// Where a minimum was found.
pub(crate) struct Minimum {
    pub x: Vec<f64>,
    pub value: f64,
    pub iterations: usize,
}

/// Steps whose curvature L-BFGS remembers.
const MEMORY: usize = 12;
/// Share of the promised fall that a step must deliver.
const ARMIJO: f64 = 1e-4;

/// Minimises a smooth function that returns its value and gradient.
///
/// Stops when the largest element of the gradient is at most `gradient_tolerance`; anything else is
/// [`Error::NotConverged`].
pub(crate) fn minimise(
    method: &'static str,
    start: Vec<f64>,
    gradient_tolerance: f64,
    iterations_max: usize,
    mut function: impl FnMut(&[f64]) -> (f64, Vec<f64>),
) -> Result<Minimum, Error> {
    let mut x = start;
    let (mut value, mut gradient) = function(&x);
    let mut history: Vec<(Vec<f64>, Vec<f64>, f64)> = Vec::new();
    for iterations in 0.. {
        let steepest = gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
        if steepest <= gradient_tolerance {
            return Ok(Minimum { x, value, iterations });
        }
        let stuck =
            Error::NotConverged { method, gradient: steepest, iterations, tolerance: gradient_tolerance };
        if iterations == iterations_max || !value.is_finite() {
            return Err(stuck);
        }
        let mut step = direction(&gradient, &history);
        let mut slope = dot(&step, &gradient);
        if slope >= 0.0 {
            history.clear();
            step = direction(&gradient, &history);
            slope = dot(&step, &gradient);
        }
        let mut scale = 1.0;
        let (next, next_value, next_gradient) = loop {
            let trial: Vec<f64> = x.iter().zip(&step).map(|(x, s)| x + scale * s).collect();
            let (trial_value, trial_gradient) = function(&trial);
            // Near the minimum the fall is lost in the rounding of the value.
            let rounding = 64.0 * f64::EPSILON * value.abs();
            if trial_value <= value + ARMIJO * scale * slope + rounding {
                break (trial, trial_value, trial_gradient);
            }
            scale *= 0.5;
            if scale < 1e-14 {
                return Err(stuck);
            }
        };
        let moved: Vec<f64> = next.iter().zip(&x).map(|(a, b)| a - b).collect();
        let turned: Vec<f64> = next_gradient.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&moved, &turned);
        if curvature > 1e-12 * dot(&turned, &turned) {
            if history.len() == MEMORY {
                history.remove(0);
            }
            history.push((moved, turned, curvature));
        }
        (x, value, gradient) = (next, next_value, next_gradient);
    }
    unreachable!("the loop ends by returning")
}

/// Minus the gradient, times the inverse Hessian as far as the last steps show it.
fn direction(gradient: &[f64], history: &[(Vec<f64>, Vec<f64>, f64)]) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut pulls = Vec::with_capacity(history.len());
    for (moved, turned, curvature) in history.iter().rev() {
        let pull = dot(moved, &q) / curvature;
        q.iter_mut().zip(turned).for_each(|(q, t)| *q -= pull * t);
        pulls.push(pull);
    }
    let scale = match history.last() {
        Some((_, turned, curvature)) => curvature / dot(turned, turned),
        // The first step: no longer than 1.
        None => 1.0 / dot(gradient, gradient).sqrt().max(1.0),
    };
    q.iter_mut().for_each(|q| *q *= scale);
    for ((moved, turned, curvature), pull) in history.iter().zip(pulls.into_iter().rev()) {
        let back = dot(turned, &q) / curvature;
        q.iter_mut().zip(moved).for_each(|(q, m)| *q += (pull - back) * m);
    }
    q
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cholesky_by_hand() {
        // L = [[2, 0], [1, 3]].
        let factor = Cholesky::new(&[4.0, 2.0, 2.0, 10.0], 2).unwrap();
        assert_eq!(factor.l, [2.0, 0.0, 1.0, 3.0]);
        // A x = (8, 22) has x = (1, 2).
        assert_eq!(factor.solve(&[8.0, 22.0]), [1.0, 2.0]);
        let inverse = factor.inverse();
        let unit = product(&[4.0, 2.0, 2.0, 10.0], &inverse, 2);
        assert!(unit.iter().zip([1.0, 0.0, 0.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-15), "{unit:?}");
        // A⁻¹ = [[10, -2], [-2, 4]] / 36.
        let diagonal = factor.inverse_diagonal();
        assert!((diagonal[0] - 10.0 / 36.0).abs() < 1e-15 && (diagonal[1] - 4.0 / 36.0).abs() < 1e-15);
        assert!(Cholesky::new(&[1.0, 1.0, 1.0, 1.0], 2).is_none());
        assert!(Cholesky::new(&[1.0, 2.0, 2.0, 1.0], 2).is_none());
    }

    #[test]
    fn cholesky_of_several_blocks() {
        // A = B Bᵀ + 1 with B from a stream, 50 rows: blocks of 16, 16, 16, 2.
        let n = 50;
        let mut stream = crate::rng::Stream::new(1, "cholesky", 0);
        let b: Vec<f64> = (0..n * n).map(|_| stream.unit() - 0.5).collect();
        let a: Vec<f64> = (0..n * n)
            .map(|at| {
                let (i, j) = (at / n, at % n);
                f64::from(i == j) + (0..n).map(|k| b[i * n + k] * b[j * n + k]).sum::<f64>()
            })
            .collect();
        let factor = Cholesky::new(&a, n).unwrap();
        let inverse = factor.inverse();
        let unit = product(&a, &inverse, n);
        let diagonal = factor.inverse_diagonal();
        for i in 0..n {
            for j in 0..n {
                // Measured worst 2e-15.
                assert!((unit[i * n + j] - f64::from(i == j)).abs() < 1e-14, "{i} {j}: {}", unit[i * n + j]);
            }
            assert!((diagonal[i] - inverse[i * (n + 1)]).abs() < 1e-14, "{i}");
        }
    }

    #[test]
    fn the_banana_has_its_minimum_at_one_one() {
        // Rosenbrock's function.
        let banana = |x: &[f64]| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            (a * a + 100.0 * b * b, vec![-2.0 * a - 400.0 * x[0] * b, 200.0 * b])
        };
        let found = minimise("test", vec![-1.2, 1.0], 1e-9, 200, banana).unwrap();
        assert!((found.x[0] - 1.0).abs() < 1e-8 && (found.x[1] - 1.0).abs() < 1e-8, "{:?}", found.x);
        let stopped = minimise("test", vec![-1.2, 1.0], 1e-9, 3, banana);
        assert!(matches!(stopped, Err(Error::NotConverged { iterations: 3, .. })));
    }
}
