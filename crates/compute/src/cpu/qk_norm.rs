//! RMS normalisation of queries and keys inside `qkv` rows. Reference: `ops/qk_norm.rs`.

use super::vector::{sum2, vectorized};
use super::{Cpu, SharedMut};
use crate::config::Heads;

const ROWS: usize = 16;

/// Normalised groups of one row: each head, or all queries and all keys.
pub fn groups(per_head: bool, shape: Heads) -> usize {
    if per_head { shape.heads + shape.kv_heads } else { 2 }
}

/// The group's channels within a `q|k` row, and whether it is a key's.
fn group(per_head: bool, shape: Heads, index: usize) -> (std::ops::Range<usize>, bool) {
    if per_head {
        (index * shape.head_dim..(index + 1) * shape.head_dim, index >= shape.heads)
    } else if index == 0 {
        (0..shape.q_width(), false)
    } else {
        (shape.q_width()..shape.q_width() + shape.kv_width(), true)
    }
}

/// Normalises in place; `rstd` is `[n, groups]`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn forward(
    cpu: &Cpu,
    qkv: &mut [f32],
    rstd: &mut [f32],
    per_head: bool,
    w_q: &[f32],
    w_k: &[f32],
    shape: Heads,
    eps: f32,
) {
    let (width, count) = (shape.qkv_width(), groups(per_head, shape));
    let n = qkv.len() / width;
    assert_eq!(rstd.len(), n * count, "qk_norm: rstd is [{n}, {count}]");
    let (qkv, rstd) = (SharedMut::new(qkv), SharedMut::new(rstd));
    cpu.for_each(n.div_ceil(ROWS), |task| {
        for i in task * ROWS..n.min((task + 1) * ROWS) {
            // SAFETY: row `i` belongs to this task.
            let (row, rstd) =
                unsafe { (qkv.slice(i * width..(i + 1) * width), rstd.slice(i * count..(i + 1) * count)) };
            for (index, rstd) in rstd.iter_mut().enumerate() {
                let (channels, is_key) = group(per_head, shape, index);
                *rstd = forward_group(cpu.isa(), &mut row[channels], if is_key { w_k } else { w_q }, eps);
            }
        }
    });
}

vectorized! {
    fn forward_group(x: &mut [f32], w: &[f32], eps: f32) -> f32 {
        let sum_sq = sum2(x, x, |acc, x, _| x.mul_add(x, acc));
        let rstd = 1.0 / (sum_sq / x.len() as f32 + eps).sqrt();
        for (x, &w) in x.iter_mut().zip(w) {
            *x = *x * rstd * w;
        }
        rstd
    }
}

/// Turns `d_qkv` with respect to the normalised values into that of the raw ones, in place, and adds into
/// `d_w_q`, `d_w_k`. `qk_raw` is `[n, (h+g)*d]`, from before the normalisation.
///
/// # Panics
///
/// As [`forward`].
pub fn backward(
    cpu: &Cpu,
    d_qkv: &mut [f32],
    d_w_q: &mut [f32],
    d_w_k: &mut [f32],
    qk_raw: &[f32],
    rstd: &[f32],
    w_q: &[f32],
    w_k: &[f32],
    per_head: bool,
    shape: Heads,
) {
    let (width, qk_width) = (shape.qkv_width(), shape.q_width() + shape.kv_width());
    let count = groups(per_head, shape);
    let n = d_qkv.len() / width;
    assert_eq!(rstd.len(), n * count, "qk_norm: rstd is [{n}, {count}]");
    assert_eq!(qk_raw.len(), n * qk_width, "qk_norm: raw queries and keys are [{n}, {qk_width}]");

    // Weights: the sum over rows and heads, in order; small, so by one thread each.
    for (is_key, d_w) in [(false, &mut *d_w_q), (true, &mut *d_w_k)] {
        for i in 0..n {
            for index in 0..count {
                let (channels, key) = group(per_head, shape, index);
                if key != is_key {
                    continue;
                }
                let d_y = &d_qkv[i * width..][channels.clone()];
                let x = &qk_raw[i * qk_width..][channels];
                weight_group(cpu.isa(), d_w, d_y, x, rstd[i * count + index]);
            }
        }
    }
    cpu.for_each_chunk(d_qkv, ROWS * width, |task, rows| {
        for (r, row) in rows.chunks_exact_mut(width).enumerate() {
            let i = task * ROWS + r;
            for index in 0..count {
                let (channels, is_key) = group(per_head, shape, index);
                let x = &qk_raw[i * qk_width..][channels.clone()];
                let w = if is_key { w_k } else { w_q };
                input_group(cpu.isa(), &mut row[channels], x, w, rstd[i * count + index]);
            }
        }
    });
}

vectorized! {
    fn weight_group(d_w: &mut [f32], d_y: &[f32], x: &[f32], rstd: f32) {
        for ((d_w, &d_y), &x) in d_w.iter_mut().zip(d_y).zip(x) {
            *d_w += d_y * (x * rstd);
        }
    }
}

vectorized! {
    fn input_group(d: &mut [f32], x: &[f32], w: &[f32], rstd: f32) {
        // forward was: y = x * rstd * w
        // so now, with g = d_y * w: d_x = rstd * (g - x_hat * mean(g * x_hat)), x_hat = x * rstd
        for (d, &w) in d.iter_mut().zip(w) {
            *d *= w;
        }
        let dot = sum2(d, x, |acc, g, x| g.mul_add(x * rstd, acc)) / x.len() as f32;
        for (d, &x) in d.iter_mut().zip(x) {
            *d = rstd * (*d - x * rstd * dot);
        }
    }
}
