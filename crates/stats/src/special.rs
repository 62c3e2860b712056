//! Distribution functions and their inverses: normal, Student t, beta, binomial.
//!
//! ```text
//! I_x(a, b) = x^a (1-x)^b / (a B(a, b)) * 1 / (1 + d1 / (1 + d2 / (1 + ...)))     regularised incomplete beta
//! P(T_v <= t) = 1 - I_{v / (v + t^2)}(v/2, 1/2) / 2       for t >= 0
//! P(Bin(n, p) >= k) = I_p(k, n - k + 1)
//! ```
//!
//! `erfc` and `lgamma` are musl's, by way of the `libm` crate. The quantiles start from a closed approximation or a
//! bracket and are finished by Newton steps on the distribution function, so they are as exact as it is.
//!
//! Source: continued fraction, Abramowitz & Stegun 26.5.8, evaluated by Lentz's method (Press et al., Numerical Recipes,
//! 6.4); start of the normal quantile, Abramowitz & Stegun 26.2.23.

use std::f64::consts::{PI, SQRT_2};

/// `P(Z <= z)` of a standard normal.
pub fn normal_cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z / SQRT_2)
}

/// The `z` with `P(Z <= z) = p`; minus and plus infinity at 0 and 1.
///
/// # Panics
///
/// If `p` is not in `[0, 1]`.
pub fn normal_quantile(p: f64) -> f64 {
    assert!((0.0..=1.0).contains(&p), "normal_quantile: p = {p} is not in [0, 1]");
    if p == 0.0 || p == 1.0 {
        return if p == 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    if p == 0.5 {
        return 0.0;
    }
    // The lower tail is the accurate one: 1 - p would lose digits of a tiny p.
    let tail = p.min(1.0 - p);
    let t = (-2.0 * tail.ln()).sqrt();
    let start = t
        - (2.515517 + t * (0.802853 + t * 0.010328)) / (1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308)));
    let mut z = -start;
    for _ in 0..4 {
        // Halley's step: Newton on ln P, which is nearly straight far out in the tail.
        let density = (-0.5 * z * z).exp() / (2.0 * PI).sqrt();
        if density == 0.0 {
            break;
        }
        let error = (normal_cdf(z) - tail) / density;
        z -= error / (1.0 + 0.5 * error * z);
    }
    if p <= 0.5 { z } else { -z }
}

/// Regularised incomplete beta function `I_x(a, b)`, the distribution function of Beta(a, b).
///
/// # Panics
///
/// If `a` or `b` is not positive, or `x` is not in `[0, 1]`.
pub fn beta_cdf(x: f64, a: f64, b: f64) -> f64 {
    assert!(a > 0.0 && b > 0.0, "beta_cdf: a = {a} and b = {b} must be positive");
    assert!((0.0..=1.0).contains(&x), "beta_cdf: x = {x} is not in [0, 1]");
    if x == 0.0 || x == 1.0 {
        return x;
    }
    let ln_front = a * x.ln() + b * libm::log1p(-x) + libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b);
    // The fraction converges fast below the mean; above it, the mirror image does.
    if x < (a + 1.0) / (a + b + 2.0) {
        ln_front.exp() * beta_fraction(x, a, b) / a
    } else {
        1.0 - ln_front.exp() * beta_fraction(1.0 - x, b, a) / b
    }
}

/// The `x` with `I_x(a, b) = p`.
///
/// # Panics
///
/// If `a` or `b` is not positive, or `p` is not in `[0, 1]`.
pub fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    assert!((0.0..=1.0).contains(&p), "beta_quantile: p = {p} is not in [0, 1]");
    let (mut low, mut high) = (0.0, 1.0);
    // Halving exhausts an f64 down to the smallest numbers, so that a tiny quantile keeps its digits.
    for _ in 0..1100 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        *if beta_cdf(middle, a, b) < p { &mut low } else { &mut high } = middle;
    }
    0.5 * (low + high)
}

/// The continued fraction of `I_x(a, b)` by the modified Lentz method.
fn beta_fraction(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    const TERMS_MAX: u32 = 100_000; // About sqrt(max(a, b)) are needed.
    let away_from_zero = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..TERMS_MAX {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / away_from_zero(1.0 + even * d);
        c = away_from_zero(1.0 + even / c);
        fraction *= c * d;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / away_from_zero(1.0 + odd * d);
        c = away_from_zero(1.0 + odd / c);
        let step = c * d;
        fraction *= step;
        if (step - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    fraction
}

/// `P(T <= t)` of Student's t with `df` degrees of freedom.
///
/// # Panics
///
/// If `df` is not positive.
pub fn t_cdf(t: f64, df: f64) -> f64 {
    assert!(df > 0.0, "t_cdf: df = {df} must be positive");
    let upper = 0.5 * t_tails(t, df);
    if t <= 0.0 { upper } else { 1.0 - upper }
}

/// `P(|T| >= |t|)`.
fn t_tails(t: f64, df: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    // The tails are near 1 for a small t, and there 1 minus the small body is exact; further out they are small, and only the
    // direct form keeps their digits.
    let t2 = t * t;
    if t2 < 1.0 {
        1.0 - beta_cdf(t2 / (df + t2), 0.5, 0.5 * df)
    } else {
        beta_cdf(df / (df + t2), 0.5 * df, 0.5)
    }
}

/// The `t` with `P(T <= t) = p`; minus and plus infinity at 0 and 1.
///
/// # Panics
///
/// If `p` is not in `[0, 1]` or `df` is not positive.
pub fn t_quantile(p: f64, df: f64) -> f64 {
    assert!((0.0..=1.0).contains(&p), "t_quantile: p = {p} is not in [0, 1]");
    assert!(df > 0.0, "t_quantile: df = {df} must be positive");
    if p == 0.5 {
        return 0.0;
    }
    let tails = 2.0 * p.min(1.0 - p);
    let sign = if p < 0.5 { -1.0 } else { 1.0 };
    if tails == 0.0 {
        return sign * f64::INFINITY;
    }
    // t_tails falls from 1 at t = 0: bracket by doubling, then bisect in ln t, where 200 halvings exhaust an f64.
    let mut high = 1.0;
    while t_tails(high, df) > tails {
        high *= 2.0;
    }
    let mut low = if high == 1.0 { 0.0 } else { high / 2.0 };
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if t_tails(middle, df) > tails {
            low = middle;
        } else {
            high = middle;
        }
    }
    sign * 0.5 * (low + high)
}

/// `P(X >= k)` for `X` binomial with `n` trials of probability `p`.
///
/// # Panics
///
/// If `p` is not in `[0, 1]`.
pub fn binomial_at_least(k: u64, n: u64, p: f64) -> f64 {
    assert!((0.0..=1.0).contains(&p), "binomial_at_least: p = {p} is not in [0, 1]");
    if k == 0 {
        1.0
    } else if k > n {
        0.0
    } else {
        beta_cdf(p, k as f64, (n - k) as f64 + 1.0)
    }
}
