//! The softmax of attention on a chunk of keys, which stays in the first cache: forward in one walk over the chunks, backward from what forward saved.
//!
//! Forward does not know a row's largest score before its last chunk. It keeps the largest so far and the weights' sums relative to that, and where
//! a chunk raises it, shrinks what was summed before. Chunks are cut by position, so a row's bits depend on its own keys alone; a chunk of which it
//! sees nothing changes nothing.
//!
//! Scores are counted in powers of two, `score * log2(e)`: then scaling, subtracting and changing the base are one multiply-add.
//!
//! Source: Milakov and Gimelshein 2018, arXiv:1805.02867, algorithm 3; Dao et al. 2022, arXiv:2205.14135, appendix B.4.

use super::super::Isa;
use super::super::tile::TILE_ROWS;
use super::super::vector::Lanes;
use super::super::wide::{Wide, wide};
use super::KEYS;
use crate::config::AttentionParams;

/// Some rows, and the keys of a chunk: products lie as `[key / 32][row][key % 32]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Position of the first key.
    pub(super) first_key: usize,
    pub(super) blocks: usize,
    pub(super) rows: usize,
    /// Position of the first row.
    pub(super) position: usize,
    /// 1 if each row is one position later, 0 if all are at the same.
    pub(super) step: usize,
    pub(super) window: Option<usize>,
}

impl Chunk {
    pub(super) fn len(self) -> usize {
        self.blocks * self.rows * KEYS
    }

    /// The keys of block `at` that row `r` sees, one bit each.
    #[inline(always)]
    fn seen(self, r: usize, at: usize) -> u32 {
        let (position, start) = (self.position + r * self.step, self.first_key + at * KEYS);
        let low = super::first_key(position, self.window).saturating_sub(start).min(KEYS);
        let high = (position + 1).saturating_sub(start).min(KEYS);
        let below = |n: usize| ((1u64 << n) - 1) as u32;
        below(high) & !below(low)
    }

    /// Whether every row sees every key.
    fn is_seen(self) -> bool {
        let last = self.position + (self.rows - 1) * self.step;
        self.first_key + self.blocks * KEYS <= self.position + 1
            && super::first_key(last, self.window) <= self.first_key
    }

    /// Where row `r` of block `at` begins.
    #[inline(always)]
    fn place(self, r: usize, at: usize) -> usize {
        (at * self.rows + r) * KEYS
    }
}

/// A row's softmax over the chunks walked so far.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// The largest score, in powers of two.
    pub(super) max: [f32; TILE_ROWS],
    /// The weights' sums, interleaved by position, relative to `max`.
    sums: [Lanes; TILE_ROWS],
    /// What the last chunk shrank the sums before it by.
    pub(super) shrunk: [f32; TILE_ROWS],
}

impl Running {
    pub(super) const START: Self = Self {
        max: [f32::NEG_INFINITY; TILE_ROWS],
        sums: [Lanes::ZERO; TILE_ROWS],
        shrunk: [1.0; TILE_ROWS],
    };

    pub(super) fn sum(&self, r: usize) -> f32 {
        self.sums[r].total()
    }
}

/// What turns a product `q·k` into a score in powers of two; with a soft cap the cap comes between.
fn factor(p: AttentionParams) -> f32 {
    std::f32::consts::LOG2_E * if p.softcap.is_some() { 1.0 } else { p.scale }
}

/// Products `q·k` become scores, softly capped.
fn cap_scores(z: &mut [f32], p: AttentionParams, cap: f32) {
    for z in z.iter_mut() {
        *z = cap * (*z * p.scale / cap).tanh();
    }
}

/// Vectors of a block.
const HALVES: usize = KEYS / 16;

/// Products of a chunk become weights `2^(score - max)`, 0 where a row does not see: in `z` itself, or rounded to pairs of keys in `weights`, as
/// [`A::pair_panels`](super::A) reads them.
///
/// # Panics
///
/// If the lengths are not the chunk's.
pub(super) fn weigh(
    isa: Isa,
    z: &mut [f32],
    weights: Option<&mut [f32]>,
    chunk: Chunk,
    p: AttentionParams,
    running: &mut Running,
) {
    assert!(chunk.rows <= TILE_ROWS && z.len() >= chunk.len(), "attention: {chunk:?}");
    assert!(
        weights.as_ref().is_none_or(|weights| 2 * weights.len() >= chunk.len()),
        "attention: pairs of {chunk:?}"
    );
    if let Some(cap) = p.softcap {
        cap_scores(&mut z[..chunk.len()], p, cap);
    }
    let weights = weights.map_or(std::ptr::null_mut(), |weights| weights.as_mut_ptr());
    // SAFETY: the lengths are checked above.
    unsafe { weigh_rows(isa, z.as_mut_ptr(), weights, chunk, factor(p), running) }
}

wide! {
    fn weigh_rows = weigh_all(z: *mut f32, weights: *mut f32, chunk: Chunk, factor: f32, running: &mut Running)
}

#[inline(always)]
unsafe fn weigh_all<W: Wide>(
    z: *mut f32,
    weights: *mut f32,
    chunk: Chunk,
    factor: f32,
    running: &mut Running,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if chunk.is_seen() {
            weigh_seen::<W, true>(z, weights, chunk, factor, running);
        } else {
            weigh_seen::<W, false>(z, weights, chunk, factor, running);
        }
    }
}

/// With `ALL`, rows see every key of the chunk.
///
/// # Safety
///
/// `z` holds the chunk, `weights` is null or holds half as many words.
#[inline(always)]
unsafe fn weigh_seen<W: Wide, const ALL: bool>(
    z: *mut f32,
    weights: *mut f32,
    chunk: Chunk,
    factor: f32,
    running: &mut Running,
) {
    // SAFETY: places of the chunk, by the caller's promise.
    unsafe {
        // Row by row the weights would wait for the largest score: all of these first.
        for r in 0..chunk.rows {
            let mut largest = [W::splat(f32::NEG_INFINITY); HALVES];
            for at in 0..chunk.blocks {
                let seen = if ALL { u32::MAX } else { chunk.seen(r, at) };
                let z = z.add(chunk.place(r, at));
                for half in 0..HALVES {
                    let mut x = W::load(z.add(16 * half));
                    if !ALL {
                        x = x.where_set((seen >> (16 * half)) as u16, W::splat(f32::NEG_INFINITY));
                    }
                    largest[half] = largest[half].larger(x);
                }
            }
            let before = running.max[r];
            let chunk_max = largest[0].larger(largest[1]).largest() * factor;
            running.shrunk[r] = 1.0;
            if chunk_max > before {
                let shrunk = W::splat(before - chunk_max).exp2();
                let sums = running.sums[r].0.as_mut_ptr();
                W::load(sums).mul(shrunk).store(sums);
                running.shrunk[r] = shrunk.first();
                running.max[r] = chunk_max;
            }
        }
        let factor = W::splat(factor);
        for r in 0..chunk.rows {
            let minus_max = W::splat(-running.max[r]);
            let mut sums = W::load(running.sums[r].0.as_ptr());
            for at in 0..chunk.blocks {
                let seen = if ALL { u32::MAX } else { chunk.seen(r, at) };
                let z = z.add(chunk.place(r, at));
                let mut weight = [W::splat(0.0); HALVES];
                for half in 0..HALVES {
                    weight[half] = W::load(z.add(16 * half)).mul_add(factor, minus_max).exp2();
                    if !ALL {
                        weight[half] = weight[half].where_set((seen >> (16 * half)) as u16, W::splat(0.0));
                    }
                    sums = sums.add(weight[half]);
                }
                if weights.is_null() {
                    weight[0].store(z);
                    weight[1].store(z.add(16));
                } else {
                    weight[0].store_halves(weight[1], weights.add(chunk.place(r, at) / 2).cast());
                }
            }
            sums.store(running.sums[r].0.as_mut_ptr());
        }
    }
}

/// What backward knows of a row beside its scores.
#[derive(Clone, Copy, Default)]
pub(super) struct Row {
    /// The largest score, in powers of two.
    pub(super) max: f32,
    /// 1 over the weights' sum.
    pub(super) inverse_sum: f32,
    /// `d_out·out`.
    pub(super) pull: f32,
}

/// Where a chunk's probabilities and gradients go, rounded to pairs.
#[derive(Clone, Copy)]
pub(super) struct Pairs {
    /// Gradients, pairs of keys: `[block][row][16]`.
    pub(super) d_keys: *mut u32,
    /// Gradients, pairs of rows: `[block][line][32]`.
    pub(super) d_rows: *mut u32,
    /// Probabilities, pairs of rows: `[block][line][32]`.
    pub(super) rows: *mut u32,
    /// Lines of a block; those without rows are cleared.
    pub(super) lines: usize,
}

/// Products `z = q·k` become probabilities, and `d = d_out·v` becomes the gradient of `z`; both 0 where a row does not see. With `pairs` they are
/// written there alone.
///
/// # Safety
///
/// `pairs` have room for the chunk.
///
/// # Panics
///
/// If the other lengths are not the chunk's.
pub(super) unsafe fn gradients(
    isa: Isa,
    z: &mut [f32],
    d: &mut [f32],
    pairs: Option<Pairs>,
    chunk: Chunk,
    p: AttentionParams,
    rows: &[Row],
) {
    assert!(
        rows.len() == chunk.rows && z.len() >= chunk.len() && d.len() >= chunk.len(),
        "attention: {chunk:?}"
    );
    if let Some(cap) = p.softcap {
        cap_scores(&mut z[..chunk.len()], p, cap);
    }
    // SAFETY: the lengths are checked above, the pairs are the caller's promise.
    unsafe { gradient_rows(isa, z.as_mut_ptr(), d.as_mut_ptr(), pairs, chunk, p, factor(p), rows) }
}

wide! {
    fn gradient_rows = gradients_all(
        z: *mut f32, d: *mut f32, pairs: Option<Pairs>, chunk: Chunk, p: AttentionParams, factor: f32, rows: &[Row],
    )
}

#[inline(always)]
unsafe fn gradients_all<W: Wide>(
    z: *mut f32,
    d: *mut f32,
    pairs: Option<Pairs>,
    chunk: Chunk,
    p: AttentionParams,
    factor: f32,
    rows: &[Row],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let all = chunk.is_seen() && p.softcap.is_none();
        for at in 0..chunk.blocks {
            for (line, two) in rows.chunks(2).enumerate() {
                let mut made = [[W::splat(0.0); 2 * HALVES]; 2];
                for (i, row) in two.iter().enumerate() {
                    let r = 2 * line + i;
                    let (z, d) = (z.add(chunk.place(r, at)), d.add(chunk.place(r, at)));
                    made[i] = if all {
                        gradient_row::<W, true>(z, d, u32::MAX, p, factor, row)
                    } else {
                        gradient_row::<W, false>(z, d, chunk.seen(r, at), p, factor, row)
                    };
                    let [p0, p1, d0, d1] = made[i];
                    match pairs {
                        None => {
                            p0.store(z);
                            p1.store(z.add(16));
                            d0.store(d);
                            d1.store(d.add(16));
                        }
                        Some(pairs) => d0.store_halves(d1, pairs.d_keys.add(chunk.place(r, at) / 2)),
                    }
                }
                if let Some(pairs) = pairs {
                    let line = (at * pairs.lines + line) * KEYS;
                    let [[p0, p1, d0, d1], [q0, q1, e0, e1]] = made;
                    p0.store_pairs(q0, pairs.rows.add(line));
                    p1.store_pairs(q1, pairs.rows.add(line + 16));
                    d0.store_pairs(e0, pairs.d_rows.add(line));
                    d1.store_pairs(e1, pairs.d_rows.add(line + 16));
                }
            }
            if let Some(pairs) = pairs {
                let filled = rows.len().div_ceil(2);
                for to in [pairs.rows, pairs.d_rows] {
                    to.add((at * pairs.lines + filled) * KEYS).write_bytes(0, (pairs.lines - filled) * KEYS);
                }
            }
        }
    }
}

/// A row's 32 probabilities, then its 32 gradients.
///
/// # Safety
///
/// A block of 32 at `z` and at `d`.
#[inline(always)]
unsafe fn gradient_row<W: Wide, const ALL: bool>(
    z: *const f32,
    d: *const f32,
    seen: u32,
    p: AttentionParams,
    factor: f32,
    row: &Row,
) -> [W; 2 * HALVES] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut made = [W::splat(0.0); 2 * HALVES];
        for half in 0..HALVES {
            // forward was: out = sum_s p_s v_s, p = softmax(score), score = cap tanh(scale z / cap)
            // so now: d_score = p (d_out·v - d_out·out), d_z = scale (1 - (score / cap)^2) d_score
            let z = W::load(z.add(16 * half));
            let mut probability =
                z.mul_add(W::splat(factor), W::splat(-row.max)).exp2().mul(W::splat(row.inverse_sum));
            if !ALL {
                probability = probability.where_set((seen >> (16 * half)) as u16, W::splat(0.0));
            }
            let d = W::load(d.add(16 * half));
            let mut d_z = probability.mul(d.mul_add(W::splat(p.scale), W::splat(-row.pull * p.scale)));
            if !ALL {
                if let Some(cap) = p.softcap {
                    let part = z.mul(W::splat(1.0 / cap));
                    d_z = d_z.mul(W::splat(1.0).sub(part.mul(part)));
                }
                // What is not seen was never multiplied.
                d_z = d_z.where_set((seen >> (16 * half)) as u16, W::splat(0.0));
            }
            (made[half], made[HALVES + half]) = (probability, d_z);
        }
        made
    }
}
