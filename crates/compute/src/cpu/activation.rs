//! The middle of the feed-forward block. Reference: `ops/activation.rs`.

use super::vector::{sigmoid, vectorized};
use super::{Cpu, SharedMut};
use crate::config::Mlp;

const ROWS: usize = 8;

/// `y_nf = act(gate_nf) * up_nf`, or `act(up_nf)` without a gate; `up_nu` holds the gate first.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn forward(cpu: &Cpu, mlp: Mlp, y_nf: &mut [f32], up_nu: &[f32], f: usize) {
    let u = if mlp.gated() { 2 * f } else { f };
    assert_eq!(y_nf.len() / f * u, up_nu.len(), "activation: up is [n, {u}]");
    cpu.for_each_chunk(y_nf, ROWS * f, |task, rows| {
        for (r, y_f) in rows.chunks_exact_mut(f).enumerate() {
            let up_u = &up_nu[(task * ROWS + r) * u..][..u];
            forward_row(cpu.isa(), mlp, y_f, up_u);
        }
    });
}

vectorized! {
    fn forward_row(mlp: Mlp, y_f: &mut [f32], up_u: &[f32]) {
        let f = y_f.len();
        match mlp {
            Mlp::GatedSilu => {
                let (gate, up) = up_u.split_at(f);
                for ((y, &g), &u) in y_f.iter_mut().zip(gate).zip(up) {
                    *y = g * sigmoid(g) * u;
                }
            }
            Mlp::GatedGeluTanh => {
                let (gate, up) = up_u.split_at(f);
                for ((y, &g), &u) in y_f.iter_mut().zip(gate).zip(up) {
                    *y = g * gelu_tanh_gate(g).0 * u;
                }
            }
            Mlp::GeluTanh => {
                for (y, &x) in y_f.iter_mut().zip(up_u) {
                    *y = x * gelu_tanh_gate(x).0;
                }
            }
            Mlp::Gelu => {
                for (y, &x) in y_f.iter_mut().zip(up_u) {
                    *y = x * normal_cdf(x);
                }
            }
        }
    }
}

/// Overwrites `d_up_nu`.
///
/// # Panics
///
/// As [`forward`].
pub fn backward(cpu: &Cpu, mlp: Mlp, d_up_nu: &mut [f32], d_y_nf: &[f32], up_nu: &[f32], f: usize) {
    let u = if mlp.gated() { 2 * f } else { f };
    let n = d_y_nf.len() / f;
    assert_eq!(d_up_nu.len(), n * u, "activation: d_up is [{n}, {u}]");
    assert_eq!(up_nu.len(), n * u, "activation: up is [{n}, {u}]");
    let d_up = SharedMut::new(d_up_nu);
    cpu.for_each(n.div_ceil(ROWS), |task| {
        for i in task * ROWS..n.min((task + 1) * ROWS) {
            // SAFETY: row `i` belongs to this task.
            let d_up_u = unsafe { d_up.slice(i * u..(i + 1) * u) };
            backward_row(cpu.isa(), mlp, d_up_u, &d_y_nf[i * f..][..f], &up_nu[i * u..][..u]);
        }
    });
}

vectorized! {
    fn backward_row(mlp: Mlp, d_up_u: &mut [f32], d_y_f: &[f32], up_u: &[f32]) {
        let f = d_y_f.len();
        match mlp {
            Mlp::GatedSilu => {
                // forward was: y = g * s(g) * u, s the sigmoid
                // so now: d_u = d_y * g * s, d_g = d_y * u * (s + g * s * (1 - s))
                let ((gate, up), (d_gate, d_up)) = (up_u.split_at(f), d_up_u.split_at_mut(f));
                for i in 0..f {
                    let (g, s) = (gate[i], sigmoid(gate[i]));
                    d_up[i] = d_y_f[i] * (g * s);
                    d_gate[i] = d_y_f[i] * up[i] * (s * (1.0 + g * (1.0 - s)));
                }
            }
            Mlp::GatedGeluTanh => {
                let ((gate, up), (d_gate, d_up)) = (up_u.split_at(f), d_up_u.split_at_mut(f));
                for i in 0..f {
                    let (s, slope) = gelu_tanh_gate(gate[i]);
                    d_up[i] = d_y_f[i] * (gate[i] * s);
                    d_gate[i] = d_y_f[i] * up[i] * slope;
                }
            }
            Mlp::GeluTanh => {
                for i in 0..f {
                    d_up_u[i] = d_y_f[i] * gelu_tanh_gate(up_u[i]).1;
                }
            }
            Mlp::Gelu => {
                for i in 0..f {
                    let x = up_u[i];
                    let density = super::vector::exp(-0.5 * x * x) * 0.398_942_3;
                    d_up_u[i] = d_y_f[i] * (normal_cdf(x) + x * density);
                }
            }
        }
    }
}

/// The gate `s` of `gelu_tanh(x) = x * s(x)` and the slope of `x * s(x)`.
///
/// `0.5 (1 + tanh(t)) = sigmoid(2 t)`, with `t = sqrt(2/pi) (x + 0.044715 x^3)`.
#[inline(always)]
fn gelu_tanh_gate(x: f32) -> (f32, f32) {
    const TWO_ROOT: f32 = 1.595_769;
    const CUBIC: f32 = 0.044_715;
    let s = sigmoid(TWO_ROOT * (x + CUBIC * x * x * x));
    let d_inner = TWO_ROOT * (1.0 + 3.0 * CUBIC * x * x);
    (s, s * (1.0 + x * (1.0 - s) * d_inner))
}

/// The standard normal distribution function.
#[inline(always)]
fn normal_cdf(x: f32) -> f32 {
    0.5 * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}
