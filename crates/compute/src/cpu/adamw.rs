//! AdamW and the gradient's norm over flat buffers. Reference: `ops/adamw.rs`.

use super::vector::vectorized;
use super::{Cpu, SharedMut};

const CHUNK: usize = 1 << 14;

/// Coefficients of one AdamW step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the corrected second moment.
    pub eps: f32,
    /// Decoupled: the weight shrinks by `lr * weight_decay`.
    pub weight_decay: f32,
    /// 1 at the first step.
    pub step: u64,
    /// The gradient is multiplied by this: the clip factor.
    pub grad_scale: f32,
}

/// Updates weights and moments in place.
///
/// # Panics
///
/// If the lengths differ or the step is 0.
pub fn update(cpu: &Cpu, w: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], p: AdamW) {
    assert!(p.step > 0, "adamw: steps count from 1");
    let len = w.len();
    assert_eq!((m.len(), v.len(), g.len()), (len, len, len), "adamw: buffers of one length");
    // Bias corrections in f64, as PyTorch computes them, rounded once.
    let correction1 = 1.0 - f64::from(p.beta1).powf(p.step as f64);
    let correction2 = 1.0 - f64::from(p.beta2).powf(p.step as f64);
    let step_size = (f64::from(p.lr) / correction1) as f32;
    let root2 = correction2.sqrt() as f32;
    let keep = (1.0 - f64::from(p.lr) * f64::from(p.weight_decay)) as f32;
    let (w, m, v) = (SharedMut::new(w), SharedMut::new(m), SharedMut::new(v));
    cpu.for_each(len.div_ceil(CHUNK), |task| {
        let range = task * CHUNK..len.min((task + 1) * CHUNK);
        // SAFETY: chunks of different tasks do not overlap.
        let (w, m, v) = unsafe { (w.slice(range.clone()), m.slice(range.clone()), v.slice(range.clone())) };
        update_chunk(cpu.isa(), w, m, v, &g[range], p, keep, step_size, root2);
    });
}

vectorized! {
    fn update_chunk(
        w: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        g: &[f32],
        p: AdamW,
        keep: f32,
        step_size: f32,
        root2: f32,
    ) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * p.grad_scale;
            *m = *m + (g - *m) * (1.0 - p.beta1);
            *v = *v * p.beta2 + g * g * (1.0 - p.beta2);
            *w = *w * keep - step_size * (*m / (v.sqrt() / root2 + p.eps));
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
