//! RMSNorm, Gemma's RMSNorm and LayerNorm. Reference: `ops/norm.rs`.
//!
//! Forward and `d_x` go row by row, `d_w` and `d_b` channel by channel over all rows, so no sum is split: they are two functions.

use super::vector::{sum2, vectorized};
use super::{Cpu, SharedMut};
use crate::config::NormKind;

const ROWS: usize = 16;
const CHANNELS: usize = 64;

/// Overwrites `y_nc`, `rstd_n` and, for LayerNorm, `mean_n` (else it is empty).
///
/// # Panics
///
/// If the lengths do not fit together or with the kind.
pub fn forward(
    cpu: &Cpu,
    kind: NormKind,
    y_nc: &mut [f32],
    mean_n: &mut [f32],
    rstd_n: &mut [f32],
    x_nc: &[f32],
    w_c: &[f32],
    b_c: Option<&[f32]>,
    eps: f32,
) {
    let (n, c) = (rstd_n.len(), w_c.len());
    assert_eq!(x_nc.len(), n * c, "norm: x is [{n}, {c}]");
    assert_eq!(y_nc.len(), n * c, "norm: y is [{n}, {c}]");
    let layer = kind == NormKind::Layer;
    assert_eq!(mean_n.len(), if layer { n } else { 0 }, "norm: means of {kind:?} for {n} rows");
    assert_eq!(b_c.map(<[f32]>::len), layer.then_some(c), "norm: bias of {kind:?}");
    let (y, mean, rstd) = (SharedMut::new(y_nc), SharedMut::new(mean_n), SharedMut::new(rstd_n));
    cpu.for_each(n.div_ceil(ROWS), |task| {
        for i in task * ROWS..n.min((task + 1) * ROWS) {
            // SAFETY: row `i` belongs to this task.
            let (y_c, rstd, mean) = unsafe {
                let mean = if layer { mean.slice(i..i + 1) } else { &mut [] };
                (y.slice(i * c..(i + 1) * c), rstd.slice(i..i + 1), mean)
            };
            let (row_mean, row_rstd) = forward_row(cpu.isa(), kind, y_c, &x_nc[i * c..][..c], w_c, b_c, eps);
            rstd[0] = row_rstd;
            if layer {
                mean[0] = row_mean;
            }
        }
    });
}

/// The output once more, from the statistics of [`forward`].
///
/// # Panics
///
/// As [`forward`].
pub fn again(
    cpu: &Cpu,
    kind: NormKind,
    y_nc: &mut [f32],
    mean_n: &[f32],
    rstd_n: &[f32],
    x_nc: &[f32],
    w_c: &[f32],
    b_c: Option<&[f32]>,
) {
    let (n, c) = (rstd_n.len(), w_c.len());
    assert_eq!(x_nc.len(), n * c, "norm: x is [{n}, {c}]");
    assert_eq!(y_nc.len(), n * c, "norm: y is [{n}, {c}]");
    cpu.for_each_chunk(y_nc, ROWS * c, |task, y| {
        for (r, y_c) in y.chunks_exact_mut(c).enumerate() {
            let i = task * ROWS + r;
            again_row(cpu.isa(), kind, y_c, &x_nc[i * c..][..c], w_c, b_c, mean_of(mean_n, i), rstd_n[i]);
        }
    });
}

vectorized! {
    fn forward_row(kind: NormKind, y_c: &mut [f32], x_c: &[f32], w_c: &[f32], b_c: Option<&[f32]>, eps: f32) -> (f32, f32) {
        let c = x_c.len() as f32;
        let mean = match kind {
            NormKind::Layer => sum2(x_c, x_c, |acc, x, _| acc + x) / c,
            NormKind::Rms | NormKind::RmsPlusOne => 0.0,
        };
        let sum_sq = sum2(x_c, x_c, |acc, x, _| (x - mean).mul_add(x - mean, acc));
        let rstd = 1.0 / (sum_sq / c + eps).sqrt();
        scale_row(kind, y_c, x_c, w_c, b_c, mean, rstd);
        (mean, rstd)
    }
}

vectorized! {
    fn again_row(kind: NormKind, y_c: &mut [f32], x_c: &[f32], w_c: &[f32], b_c: Option<&[f32]>, mean: f32, rstd: f32) {
        scale_row(kind, y_c, x_c, w_c, b_c, mean, rstd);
    }
}

#[inline(always)]
fn scale_row(
    kind: NormKind,
    y_c: &mut [f32],
    x_c: &[f32],
    w_c: &[f32],
    b_c: Option<&[f32]>,
    mean: f32,
    rstd: f32,
) {
    match (kind, b_c) {
        (NormKind::Rms, _) => {
            for ((y, &x), &w) in y_c.iter_mut().zip(x_c).zip(w_c) {
                *y = x * rstd * w;
            }
        }
        (NormKind::RmsPlusOne, _) => {
            for ((y, &x), &w) in y_c.iter_mut().zip(x_c).zip(w_c) {
                *y = x * rstd * (1.0 + w);
            }
        }
        (NormKind::Layer, b_c) => {
            let b_c = b_c.unwrap_or(&[]);
            for (((y, &x), &w), &b) in y_c.iter_mut().zip(x_c).zip(w_c).zip(b_c) {
                *y = (x - mean) * rstd * w + b;
            }
        }
    }
}

/// Adds into `d_w_c` and, for LayerNorm, `d_b_c`.
///
/// # Panics
///
/// As [`forward`].
pub fn backward_weight(
    cpu: &Cpu,
    d_w_c: &mut [f32],
    d_b_c: Option<&mut [f32]>,
    d_y_nc: &[f32],
    x_nc: &[f32],
    mean_n: &[f32],
    rstd_n: &[f32],
) {
    let (n, c) = (rstd_n.len(), d_w_c.len());
    assert_eq!(d_y_nc.len(), n * c, "norm: d_y is [{n}, {c}]");
    assert_eq!(x_nc.len(), n * c, "norm: x is [{n}, {c}]");
    let d_w = SharedMut::new(d_w_c);
    let d_b = d_b_c.map(SharedMut::new);
    cpu.for_each(c.div_ceil(CHANNELS), |task| {
        let channels = task * CHANNELS..c.min((task + 1) * CHANNELS);
        // SAFETY: these channels belong to this task.
        let d_w = unsafe { d_w.slice(channels.clone()) };
        // SAFETY: as above.
        let mut d_b = d_b.as_ref().map(|d_b| unsafe { d_b.slice(channels.clone()) });
        for i in 0..n {
            let row = i * c + channels.start..i * c + channels.end;
            weight_row(
                cpu.isa(),
                d_w,
                &d_y_nc[row.clone()],
                &x_nc[row.clone()],
                mean_of(mean_n, i),
                rstd_n[i],
            );
            if let Some(d_b) = &mut d_b {
                super::vector::add(cpu.isa(), d_b, &d_y_nc[row]);
            }
        }
    });
}

/// Adds into `d_x_nc`.
///
/// # Panics
///
/// As [`forward`].
pub fn backward_input(
    cpu: &Cpu,
    kind: NormKind,
    d_x_nc: &mut [f32],
    d_y_nc: &[f32],
    x_nc: &[f32],
    w_c: &[f32],
    mean_n: &[f32],
    rstd_n: &[f32],
) {
    let (n, c) = (rstd_n.len(), w_c.len());
    assert_eq!(d_x_nc.len(), n * c, "norm: d_x is [{n}, {c}]");
    assert_eq!(d_y_nc.len(), n * c, "norm: d_y is [{n}, {c}]");
    assert_eq!(x_nc.len(), n * c, "norm: x is [{n}, {c}]");
    cpu.for_each_chunk(d_x_nc, ROWS * c, |task, d_x| {
        for (r, d_x_c) in d_x.chunks_exact_mut(c).enumerate() {
            let i = task * ROWS + r;
            let row = i * c..(i + 1) * c;
            let (d_y_c, x_c, mean) = (&d_y_nc[row.clone()], &x_nc[row], mean_of(mean_n, i));
            input_row(cpu.isa(), kind, d_x_c, d_y_c, x_c, w_c, mean, rstd_n[i]);
        }
    });
}

/// The mean of a row; without means, of an RMS norm, 0.
fn mean_of(mean_n: &[f32], row: usize) -> f32 {
    mean_n.get(row).copied().unwrap_or(0.0)
}

vectorized! {
    fn weight_row(d_w: &mut [f32], d_y: &[f32], x: &[f32], mean: f32, rstd: f32) {
        for ((d_w, &d_y), &x) in d_w.iter_mut().zip(d_y).zip(x) {
            *d_w += d_y * ((x - mean) * rstd);
        }
    }
}

vectorized! {
    fn input_row(kind: NormKind, d_x_c: &mut [f32], d_y_c: &[f32], x_c: &[f32], w_c: &[f32], mean: f32, rstd: f32) {
        // forward was: y = x_hat * w (+ b), x_hat = (x - mean) * rstd
        // so now, with g = d_y * w: d_x = rstd * (g - mean(g) - x_hat * mean(g * x_hat)), mean(g) for LayerNorm only
        let shift = if kind == NormKind::RmsPlusOne { 1.0 } else { 0.0 };
        let c = x_c.len();
        let mut dot = super::vector::Lanes::ZERO;
        let mut sum = super::vector::Lanes::ZERO;
        let mut i = 0;
        while i + 16 <= c {
            for j in 0..16 {
                let g = d_y_c[i + j] * (w_c[i + j] + shift);
                dot.0[j] = g.mul_add((x_c[i + j] - mean) * rstd, dot.0[j]);
                sum.0[j] += g;
            }
            i += 16;
        }
        for j in 0..c - i {
            let g = d_y_c[i + j] * (w_c[i + j] + shift);
            dot.0[j] = g.mul_add((x_c[i + j] - mean) * rstd, dot.0[j]);
            sum.0[j] += g;
        }
        let dot = dot.total() / c as f32;
        let sum = if kind == NormKind::Layer { sum.total() / c as f32 } else { 0.0 };
        for (((d_x, &d_y), &x), &w) in d_x_c.iter_mut().zip(d_y_c).zip(x_c).zip(w_c) {
            *d_x += rstd * (d_y * (w + shift) - sum - (x - mean) * rstd * dot);
        }
    }
}
