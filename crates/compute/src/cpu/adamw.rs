//! AdamW and the gradient's norm over flat buffers. Reference: `ops/adamw.rs`.
//!
//! Weights that are multiplied in bf16 are packed again in the same pass, while they are in the cache.

use super::bf16::pair_lanes;
use super::vector::vectorized;
use super::{Cpu, SharedMut};
use crate::params::LANES;

/// Whole lines of pairs.
const CHUNK: usize = 256 * 2 * LANES;

/// Coefficients of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub eps: f64,
    /// Decoupled: the weight shrinks by `lr * weight_decay`.
    pub weight_decay: f64,
    /// 1 at the first step.
    pub step: u64,
    /// The gradient is multiplied by this: the clip factor.
    pub grad_scale: f32,
}

/// Updates weights and moments in place, and the pairs that follow from the weights. The gradient is 0 afterwards: it was in the cache.
///
/// # Panics
///
/// If the lengths differ or the step is 0.
pub fn update(
    cpu: &Cpu,
    w: &mut [f32],
    pairs: Option<&mut [u32]>,
    m: &mut [f32],
    v: &mut [f32],
    g: &mut [f32],
    p: AdamW,
) {
    assert!(p.step > 0, "adamw: steps count from 1");
    let len = w.len();
    assert!(pairs.as_ref().is_none_or(|pairs| 2 * pairs.len() == len), "adamw: half as many pairs");
    assert_eq!((m.len(), v.len(), g.len()), (len, len, len), "adamw: buffers of one length");
    // Bias corrections in f64, as PyTorch computes them, rounded once.
    let correction1 = 1.0 - p.beta1.powf(p.step as f64);
    let correction2 = 1.0 - p.beta2.powf(p.step as f64);
    let c = Coefficients {
        grad_scale: p.grad_scale,
        keep: (1.0 - p.lr * p.weight_decay) as f32,
        new1: (1.0 - p.beta1) as f32,
        old2: p.beta2 as f32,
        new2: (1.0 - p.beta2) as f32,
        eps: p.eps as f32,
        step_size: (p.lr / correction1) as f32,
        root2: correction2.sqrt() as f32,
    };
    let [w, m, v, g] = [w, m, v, g].map(SharedMut::new);
    let pairs = pairs.map(SharedMut::new);
    cpu.for_each(len.div_ceil(CHUNK), |task| {
        let range = task * CHUNK..len.min((task + 1) * CHUNK);
        // SAFETY: chunks of different tasks do not overlap.
        let [w, m, v, g] = [&w, &m, &v, &g].map(|all| unsafe { all.slice(range.clone()) });
        update_chunk(cpu.isa(), w, m, v, g, c);
        if let Some(pairs) = &pairs {
            // SAFETY: as above.
            pair_lanes(cpu.isa(), unsafe { pairs.slice(range.start / 2..range.end / 2) }, w);
        }
    });
}

/// What the loop multiplies by: computed in f64, since `1 - beta2` in f32 would be 5e-5 off.
#[derive(Clone, Copy)]
struct Coefficients {
    grad_scale: f32,
    keep: f32,
    new1: f32,
    old2: f32,
    new2: f32,
    eps: f32,
    step_size: f32,
    root2: f32,
}

vectorized! {
    fn update_chunk(w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &mut [f32], c: Coefficients) {
        for (((w, m), v), d_w) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = *d_w * c.grad_scale;
            *d_w = 0.0;
            *m += (g - *m) * c.new1;
            *v = *v * c.old2 + g * g * c.new2;
            *w = *w * c.keep - c.step_size * (*m / (v.sqrt() / c.root2 + c.eps));
        }
    }
}

/// `sum x^2` in f64, over fixed chunks in order.
pub fn norm_sq(cpu: &Cpu, x: &[f32]) -> f64 {
    let mut parts = vec![0.0f64; x.len().div_ceil(CHUNK)];
    let shared = SharedMut::new(&mut parts);
    cpu.for_each(x.len().div_ceil(CHUNK), |task| {
        let chunk = &x[task * CHUNK..x.len().min((task + 1) * CHUNK)];
        // SAFETY: one element a task.
        unsafe { shared.slice(task..task + 1)[0] = norm_sq_chunk(cpu.isa(), chunk) };
    });
    parts.iter().sum()
}

vectorized! {
    fn norm_sq_chunk(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let (x8, tail) = x.as_chunks::<8>();
        for x in x8 {
            for i in 0..8 {
                lanes[i] += f64::from(x[i]) * f64::from(x[i]);
            }
        }
        lanes.iter().sum::<f64>() + tail.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
    }
}
