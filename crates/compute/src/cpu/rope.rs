//! Rotary positions. Reference: `ops/rope.rs`, reproduced to the bit.
//!
//! Angles depend on the position alone, so cosines and sines are computed once a batch and serve all
//! heads and layers.

use std::ops::Range;

use super::Cpu;
use super::vector::vectorized;
use crate::config::Heads;

const ROWS: usize = 16;

/// Cosines and sines of each row's position: `[n][cos of r/2 | sin of r/2]`.
#[derive(Clone, Debug, Default)]
pub struct RopeTable {
    cos_sin: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Fills the table for these positions.
    pub fn fill(&mut self, cpu: &Cpu, position_n: &[usize], inv_freq: &[f32]) {
        let half = inv_freq.len();
        self.half = half;
        self.cos_sin.resize(position_n.len() * 2 * half, 0.0);
        if half == 0 {
            return;
        }
        cpu.for_each_chunk(&mut self.cos_sin, ROWS * 2 * half, |task, rows| {
            for (r, row) in rows.chunks_exact_mut(2 * half).enumerate() {
                let position = position_n[task * ROWS + r] as f32;
                for i in 0..half {
                    let angle = f64::from(position * inv_freq[i]);
                    row[i] = angle.cos() as f32;
                    row[half + i] = angle.sin() as f32;
                }
            }
        });
    }

    /// The angles of some rows.
    ///
    /// # Panics
    ///
    /// If the table was not filled for them.
    pub fn rows(&self, rows: Range<usize>) -> Angles<'_> {
        let width = 2 * self.half;
        Angles { cos_sin: &self.cos_sin[rows.start * width..rows.end * width], half: self.half }
    }
}

/// Some rows of a [`RopeTable`].
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    cos_sin: &'a [f32],
    half: usize,
}

/// Rotates the queries and keys of `qkv` (`[n, (h+2g)*d]`) in place; values are left alone.
///
/// # Panics
///
/// If the angles are not of as many rows.
pub fn rotate(cpu: &Cpu, qkv: &mut [f32], angles: Angles<'_>, shape: Heads, inverse: bool) {
    let (d, width, half) = (shape.head_dim, shape.qkv_width(), angles.half);
    assert_eq!(qkv.len() / width * 2 * half, angles.cos_sin.len(), "rope: angles of other rows");
    assert!(2 * half <= d, "rope: {} rotary channels in a head of {d}", 2 * half);
    if half == 0 {
        return;
    }
    cpu.for_each_chunk(qkv, ROWS * width, |task, rows| {
        for (r, row) in rows.chunks_exact_mut(width).enumerate() {
            let cos_sin = &angles.cos_sin[(task * ROWS + r) * 2 * half..][..2 * half];
            let qk = &mut row[..shape.q_width() + shape.kv_width()];
            rotate_row(cpu.isa(), qk, cos_sin, d, inverse);
        }
    });
}

vectorized! {
    fn rotate_row(qk: &mut [f32], cos_sin: &[f32], d: usize, inverse: bool) {
        let half = cos_sin.len() / 2;
        let (cos, sin) = cos_sin.split_at(half);
        for head in qk.chunks_exact_mut(d) {
            let (a, rest) = head.split_at_mut(half);
            let b = &mut rest[..half];
            let sign = if inverse { -1.0 } else { 1.0 };
            let turn = |a: &mut f32, b: &mut f32, cos: f32, sin: f32| {
                let (x, y, sin) = (*a, *b, sign * sin);
                *a = x * cos - y * sin;
                *b = y * cos + x * sin;
            };
            // Sixteen at a time through copies, which cannot overlap, as slices might for all the compiler knows.
            let (a16, a_tail) = a.as_chunks_mut::<16>();
            let (b16, b_tail) = b.as_chunks_mut::<16>();
            let (cos16, cos_tail) = cos.as_chunks::<16>();
            let (sin16, sin_tail) = sin.as_chunks::<16>();
            for (((a16, b16), cos16), sin16) in a16.iter_mut().zip(b16).zip(cos16).zip(sin16) {
                let (mut a, mut b) = (*a16, *b16);
                for i in 0..16 {
                    turn(&mut a[i], &mut b[i], cos16[i], sin16[i]);
                }
                (*a16, *b16) = (a, b);
            }
            for i in 0..a_tail.len() {
                turn(&mut a_tail[i], &mut b_tail[i], cos_tail[i], sin_tail[i]);
            }
        }
    }
}
