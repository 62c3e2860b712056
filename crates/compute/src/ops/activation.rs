//! The middle of the feed-forward block: an activation, gated or not.
//!
//! ```text
//! gated   y = act(gate) * up        up_nu = [n, 2f], gate first, then up
//! plain   y = act(up)               up_nu = [n, f]
//!
//! silu(x)      = x / (1 + e^-x)
//! gelu(x)      = x Phi(x)                   Phi(x) = (1 + erf(x / sqrt 2)) / 2
//! gelu_tanh(x) = x (1 + tanh t) / 2         t = sqrt(2/pi) (x + 0.044715 x^3)
//! ```
//!
//! Each element is computed in f64 and rounded once.
//!
//! Source: Hendrycks & Gimpel 2016, arXiv:1606.08415; Shazeer 2020, arXiv:2002.05202.
//! Not here: the projections around it (`linear`).

use crate::config::Mlp;

/// Overwrites `y_nf`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn forward(mlp: Mlp, y_nf: &mut [f32], up_nu: &[f32], f: usize) {
    let u = up_width("activation", mlp, y_nf, up_nu, f);

    for (y_f, up_u) in y_nf.chunks_exact_mut(f).zip(up_nu.chunks_exact(u)) {
        for (j, y) in y_f.iter_mut().enumerate() {
            let (act, _) = act(mlp, up_u[j].into());
            *y = if mlp.gated() { act * f64::from(up_u[f + j]) } else { act } as f32;
        }
    }
}

/// **Overwrites** `d_up_nu`, which has one reader: the projection's backward.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn backward(mlp: Mlp, d_up_nu: &mut [f32], d_y_nf: &[f32], up_nu: &[f32], f: usize) {
    let u = up_width("activation backward", mlp, d_y_nf, up_nu, f);
    assert_eq!(d_up_nu.len(), up_nu.len(), "activation backward: d_up is like up");

    for (i, d_up_u) in d_up_nu.chunks_exact_mut(u).enumerate() {
        let up_u = &up_nu[i * u..][..u];
        for j in 0..f {
            let d_y = f64::from(d_y_nf[i * f + j]);
            let (act, slope) = act(mlp, up_u[j].into());
            // forward was: y = act(gate) * up, or act(up)
            // so now:
            if mlp.gated() {
                d_up_u[j] = (d_y * slope * f64::from(up_u[f + j])) as f32;
                d_up_u[f + j] = (d_y * act) as f32;
            } else {
                d_up_u[j] = (d_y * slope) as f32;
            }
        }
    }
}

/// The activation and its derivative.
fn act(mlp: Mlp, x: f64) -> (f64, f64) {
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_PI};
    match mlp {
        Mlp::GatedSilu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
        }
        Mlp::Gelu => {
            let cdf = 0.5 * (1.0 + libm::erf(x * FRAC_1_SQRT_2));
            let density = (FRAC_2_PI / 4.0).sqrt() * (-0.5 * x * x).exp();
            (x * cdf, cdf + x * density)
        }
        Mlp::GatedGeluTanh | Mlp::GeluTanh => {
            const CUBIC: f64 = 0.044715;
            let tanh = (FRAC_2_PI.sqrt() * (x + CUBIC * x * x * x)).tanh();
            let d_inner = FRAC_2_PI.sqrt() * (1.0 + 3.0 * CUBIC * x * x);
            (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * d_inner)
        }
    }
}

fn up_width(op: &str, mlp: Mlp, y_nf: &[f32], up_nu: &[f32], f: usize) -> usize {
    let u = if mlp.gated() { 2 * f } else { f };
    assert!(f > 0, "{op}: no channels");
    let n = y_nf.len() / f;
    assert_eq!(y_nf.len(), n * f, "{op}: y is [n, {f}]");
    assert_eq!(up_nu.len(), n * u, "{op}: up is [{n}, {u}]");
    u
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    const ALL: [Mlp; 4] = [Mlp::GatedSilu, Mlp::GatedGeluTanh, Mlp::Gelu, Mlp::GeluTanh];

    #[track_caller]
    fn check(mlp: Mlp, x: f32, expect: f64) {
        let mut y = unwritten(1);
        let up = if mlp.gated() { vec![x, 2.0] } else { vec![x] };
        forward(mlp, &mut y, &up, 1);
        let y = if mlp.gated() { y[0] / 2.0 } else { y[0] };
        // One rounding of the result: half of 2^-23.
        assert!((f64::from(y) - expect).abs() <= 6e-8 * expect.abs(), "{mlp:?}({x}) = {y}, not {expect}");
    }

    #[test]
    fn worked_by_hand() {
        let e = std::f64::consts::E;
        check(Mlp::GatedSilu, 1.0, e / (1.0 + e));
        check(Mlp::GatedSilu, -1.0, -1.0 / (1.0 + e));
        // Phi(1) from a table of the normal distribution.
        check(Mlp::Gelu, 1.0, 0.841_344_746_068_542_9);
        check(Mlp::Gelu, -1.0, -0.158_655_253_931_457_05);
        // tanh(t) = 1 - 2 / (e^2t + 1), at x = 2: t = sqrt(2/pi) (2 + 0.35772).
        let t = (2.0 / std::f64::consts::PI).sqrt() * 2.35772;
        check(Mlp::GeluTanh, 2.0, 2.0 - 2.0 / ((2.0 * t).exp() + 1.0));
        check(Mlp::GatedGeluTanh, 2.0, 2.0 - 2.0 / ((2.0 * t).exp() + 1.0));
        for mlp in ALL {
            check(mlp, 0.0, 0.0);
        }
    }

    #[test]
    fn far_tails_stay_finite() {
        for mlp in ALL {
            for (x, y_expect, slope_expect) in [(-200.0, 0.0, 0.0), (200.0, 200.0, 1.0)] {
                let (y, slope) = act(mlp, x);
                assert!((y - y_expect).abs() < 1e-12 && (slope - slope_expect).abs() < 1e-12, "{mlp:?}({x})");
            }
        }
    }

    // The gate comes first, each row on its own.
    #[test]
    fn the_gate_is_the_first_half_of_a_row() {
        let mut y = unwritten(4);
        let up_nu = [30.0, 40.0, 2.0, 3.0, 0.0, 50.0, 5.0, 6.0]; // silu(30) is 30 to the last bit
        forward(Mlp::GatedSilu, &mut y, &up_nu, 2);
        assert_eq!(y, [60.0, 120.0, 0.0, 300.0]);
    }

    #[test]
    fn gradients_match_central_differences() {
        let (n, f) = (3, 5);
        for mlp in ALL {
            let u = if mlp.gated() { 2 * f } else { f };
            let up_nu: Vec<f32> = values(1, n * u).iter().map(|x| 3.0 * x).collect();
            let d_y_nf = values(2, n * f);
            let mut d_up_nu = unwritten(n * u);
            backward(mlp, &mut d_up_nu, &d_y_nf, &up_nu, f);
            // Measured worst 4.1e-6.
            check_gradient(&format!("{mlp:?} d_up"), &d_up_nu, &up_nu, 0.02, 2e-5, |up_nu| {
                let mut y_nf = unwritten(n * f);
                forward(mlp, &mut y_nf, up_nu, f);
                weighted(&y_nf, &d_y_nf)
            });
        }
    }
}
