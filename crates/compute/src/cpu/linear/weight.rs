//! The weight's gradient, a sum over rows: `d_w_nk += d_y_mn x_mk`.

use std::ops::Range;

use super::{PACKED, SHARED, rows_of};
use crate::cpu::tile::{A, Init, ROWS, STEPS};
use crate::cpu::vector::vectorized;
use crate::cpu::{Cpu, Isa, Precision, SharedMut, bf16};
use crate::params::{Buffer, LANES};

/// Steps that are walked before it turns to other channels.
const ROW_STEPS: usize = 128;

/// Words of packed channels at a time: 4 MiB.
const CHANNELS_MAX: usize = 1 << 20;

/// `d_w_nk += d_y_mn x_mk` in panels, and `d_bias_n += d_y_mn`.
///
/// # Panics
///
/// If the shapes do not agree.
pub fn backward_weight(
    cpu: &Cpu,
    precision: Precision,
    d_w: &mut [f32],
    d_bias_n: Option<&mut [f32]>,
    d_y_mn: &[f32],
    x_mk: &[f32],
    n: usize,
    k: usize,
) {
    rows_of("linear backward_weight", d_y_mn.len(), n, x_mk.len(), k);
    add_panels(cpu, precision, d_w, x_mk, n, k, |panel, rows, steps, packed| {
        let terms = precision.terms();
        let packed = packed.first_mut(steps * LANES);
        slice_lanes(cpu.isa(), precision, packed, &d_y_mn[rows.start * n..rows.end * n], n, panel * LANES);
        packed[rows.len().div_ceil(terms) * LANES..].fill(0.0);
        packed.as_ptr()
    });
    if let Some(d_bias_n) = d_bias_n {
        assert_eq!(d_bias_n.len(), n, "linear backward_weight: one bias an output");
        cpu.for_each_chunk(d_bias_n, 256, |chunk, d_bias| {
            for d_y_n in d_y_mn.chunks_exact(n) {
                for (d_b, &d) in d_bias.iter_mut().zip(&d_y_n[chunk * 256..]) {
                    *d_b += d;
                }
            }
        });
    }
}

/// The same from lines: the bits of [`backward_weight`].
///
/// # Panics
///
/// If the shapes do not agree.
pub fn backward_weight_of_lines(cpu: &Cpu, d_w: &mut [f32], lines: &Lines<'_>, x_mk: &[f32], k: usize) {
    assert_eq!(x_mk.len(), lines.m * k, "linear backward_weight: x is [{}, {k}]", lines.m);
    let terms = lines.precision.terms();
    add_panels(cpu, lines.precision, d_w, x_mk, lines.n, k, |panel, rows, steps, _| {
        let at = (panel * lines.steps + rows.start / terms) * LANES;
        assert!(rows.start / terms + steps <= lines.steps, "linear backward_weight: lines of {rows:?}");
        lines.words.pointer(at).cast_const()
    });
}

/// Adds the products of each panel's lines and the channels of `x`. `lines_of(panel, rows, steps, buffer)` points to so many lines of 32 words,
/// which hold those rows, and zeros after them.
fn add_panels(
    cpu: &Cpu,
    precision: Precision,
    d_w: &mut [f32],
    x_mk: &[f32],
    n: usize,
    k: usize,
    lines_of: impl Fn(usize, Range<usize>, usize, &mut Buffer) -> *const f32 + Sync,
) {
    let (isa, m) = (cpu.isa(), x_mk.len() / k);
    assert_eq!(
        d_w.len(),
        n.next_multiple_of(LANES) * k,
        "linear backward_weight: d_w is [{n}, {k}] in panels"
    );
    let d_w = SharedMut::new(d_w);
    let packing = Channels::of(isa, precision, k);
    let part = packing.steps * precision.terms();
    let block = (CHANNELS_MAX / packing.part()).max(1) * part;
    SHARED.with_borrow_mut(|channels| {
        for m0 in (0..m).step_by(block) {
            let m1 = m.min(m0 + block);
            packing.pack(cpu, channels, &x_mk[m0 * k..m1 * k]);
            let channels = &*channels;
            cpu.for_each(n.div_ceil(LANES), |panel| {
                PACKED.with_borrow_mut(|packed| {
                    for (at, r0) in (m0..m1).step_by(part).enumerate() {
                        let rows = r0..m1.min(r0 + part);
                        let steps = steps_of(isa, precision, rows.len());
                        let b = lines_of(panel, rows, steps, packed);
                        for c in (0..k).step_by(packing.tile) {
                            let tile = packing.tile.min(k - c);
                            let a = packing.tile_at(channels, at, c, steps);
                            let out = d_w.pointer((panel * k + c) * LANES);
                            // SAFETY: the panel belongs to this task; channels and lines hold `steps` steps.
                            unsafe {
                                isa.product(precision, out, LANES, a, b, LANES, tile, LANES, steps, Init::C)
                            };
                        }
                    }
                })
            });
        }
    });
}

/// Steps that some rows take: whole blocks where the sums have blocks, zeros at the end.
fn steps_of(isa: Isa, precision: Precision, rows: usize) -> usize {
    let steps = rows.div_ceil(precision.terms());
    if isa.multiplies_tiles(precision) { steps.next_multiple_of(isa.cut()) } else { steps }
}

/// The gradient `d_y_mn` as the weight's gradient reads it: panel by panel of 32 outputs, line by line of a row, or of a pair of rows rounded to bf16.
/// Tasks that have some rows of it in their caches put them here, and it is never written as it is.
pub struct Lines<'a> {
    words: SharedMut<'a, f32>,
    precision: Precision,
    m: usize,
    n: usize,
    /// Lines of a panel.
    steps: usize,
}

impl<'a> Lines<'a> {
    /// Room for `m` rows of `n` outputs.
    pub fn new(cpu: &Cpu, precision: Precision, buffer: &'a mut Buffer, m: usize, n: usize) -> Self {
        let steps = steps_of(cpu.isa(), precision, m);
        let words = buffer.first_mut(n.div_ceil(LANES) * steps * LANES);
        let written = m.div_ceil(precision.terms()) * LANES;
        words.chunks_exact_mut(steps * LANES).for_each(|panel| panel[written..].fill(0.0));
        Self { words: SharedMut::new(words), precision, m, n, steps }
    }

    /// Puts rows `first..` of some outputs, which begin at a multiple of 32.
    ///
    /// # Safety
    ///
    /// No two calls at a time may put the same rows of the same outputs.
    ///
    /// # Panics
    ///
    /// If there is no such place, or the rows begin in the middle of a line.
    pub unsafe fn put(&self, cpu: &Cpu, first: usize, outputs: Range<usize>, d_y: &[f32]) {
        let (n, terms) = (outputs.len(), self.precision.terms());
        let rows = d_y.len() / n;
        assert_eq!((outputs.start % LANES, first % terms), (0, 0), "linear lines: whole ones");
        assert!(outputs.end <= self.n && first + rows <= self.m, "linear lines: {outputs:?} of {}", self.n);
        let panel = outputs.start / LANES;
        cpu.for_each(n.div_ceil(LANES), |i| {
            let at = (panel + i) * self.steps + first / terms;
            // SAFETY: lines of these rows and outputs, by the caller's promise.
            let lines = unsafe { self.words.slice(at * LANES..(at + rows.div_ceil(terms)) * LANES) };
            slice_lanes(cpu.isa(), self.precision, lines, d_y, n, i * LANES);
        });
    }
}

/// How the weight's gradient packs channels: `packed[part][tile][step][channel in tile]`, or, for processors that multiply tiles,
/// `packed[part][channel][step]`. A part is some steps of all channels.
#[derive(Clone, Copy)]
struct Channels {
    isa: Isa,
    precision: Precision,
    k: usize,
    /// Steps of a part.
    steps: usize,
    /// Channels of a product.
    tile: usize,
}

impl Channels {
    fn of(isa: Isa, precision: Precision, k: usize) -> Self {
        let tile = isa.tile_rows(precision);
        let steps = if isa.multiplies_tiles(precision) { STEPS } else { ROW_STEPS };
        Self { isa, precision, k, steps, tile }
    }

    /// Words of a part.
    fn part(self) -> usize {
        self.steps * self.k
    }

    fn pack(self, cpu: &Cpu, packed: &mut Buffer, x_rk: &[f32]) {
        let Self { isa, precision, k, .. } = self;
        let part = self.steps * precision.terms() * k;
        let parts = x_rk.len().div_ceil(part);
        packed.grow(parts * self.part());
        if isa.multiplies_tiles(precision) {
            // One part at a time by all threads, since there are few.
            for (x, packed) in x_rk.chunks(part).zip(packed.chunks_exact_mut(self.part())) {
                pack_channel_rows(cpu, packed, x, k, steps_of(isa, precision, x.len() / k));
            }
            return;
        }
        let words = (x_rk.len() / k).div_ceil(precision.terms()) * k;
        cpu.for_each_chunk(&mut packed[..words], self.part(), |at, packed| {
            let x = &x_rk[at * part..x_rk.len().min((at + 1) * part)];
            match precision {
                Precision::F32 => pack_channel_words(isa, packed, x, k),
                Precision::Bf16 => pack_channel_pairs(isa, bytemuck::cast_slice_mut(packed), x, k),
            }
        });
    }

    /// The channels from `c` on, of a part of so many steps.
    fn tile_at(self, packed: &[f32], part: usize, c: usize, steps: usize) -> A {
        let packed = &packed[part * self.part()..];
        match self.isa.multiplies_tiles(self.precision) {
            true => A::rows(packed[c * STEPS..].as_ptr()),
            false => A::columns(packed[c * steps..].as_ptr(), self.tile.min(self.k - c)),
        }
    }
}

/// Channels that a thread turns at a time.
const TURNED_CHANNELS: usize = 64;

/// Channel by channel, pairs of rows one after the other, zeros up to `steps`.
fn pack_channel_rows(cpu: &Cpu, packed: &mut [f32], x_rk: &[f32], k: usize, steps: usize) {
    let rows = x_rk.len() / k;
    cpu.for_each_chunk(packed, TURNED_CHANNELS * STEPS, |task, packed| {
        let packed: &mut [u32] = bytemuck::cast_slice_mut(packed);
        bf16::turn_rows(cpu.isa(), packed, STEPS, x_rk, k, task * TURNED_CHANNELS);
        for packed in packed.chunks_exact_mut(STEPS) {
            packed[rows.div_ceil(2)..steps].fill(0);
        }
    });
}

vectorized! {
    fn pack_channel_words(packed: &mut [f32], x_rk: &[f32], k: usize) {
        let steps = x_rk.len() / k;
        for (step, x_k) in x_rk.chunks_exact(k).enumerate() {
            spread_tiles(packed, x_k, step, steps);
        }
    }
}

fn pack_channel_pairs(isa: Isa, packed: &mut [u32], x_rk: &[f32], k: usize) {
    let steps = (x_rk.len() / k).div_ceil(2);
    let mut pairs = [0u32; 32 * ROWS];
    for (step, rows) in x_rk.chunks(2 * k).enumerate() {
        let (first, second) = rows.split_at(k);
        for c in (0..k).step_by(pairs.len()) {
            let end = k.min(c + pairs.len());
            bf16::pair_rows(isa, &mut pairs, &first[c..end], second.get(c..end));
            spread_tiles(&mut packed[c * steps..], &pairs[..end - c], step, steps);
        }
    }
}

/// Puts one step's words where their tiles of [`ROWS`] channels are.
#[inline(always)]
fn spread_tiles<T: Copy>(packed: &mut [T], words: &[T], step: usize, steps: usize) {
    let (tiles, tail) = words.as_chunks::<ROWS>();
    for (tile, words) in tiles.iter().enumerate() {
        // A length that the compiler knows is two moves, not a call.
        let at = (tile * steps + step) * ROWS;
        *packed[at..].first_chunk_mut().expect("a tile of this step") = *words;
    }
    let at = tiles.len() * steps * ROWS + step * tail.len();
    packed[at..at + tail.len()].copy_from_slice(tail);
}

/// Outputs `n0..n0 + 32` of rows of `d_y`, a step a line; outputs that are not there are zero.
fn slice_lanes(isa: Isa, precision: Precision, out: &mut [f32], d_y_rn: &[f32], n: usize, n0: usize) {
    let lanes = LANES.min(n - n0);
    match precision {
        Precision::F32 => {
            for (row, d_y_n) in out.chunks_exact_mut(LANES).zip(d_y_rn.chunks_exact(n)) {
                row[..lanes].copy_from_slice(&d_y_n[n0..n0 + lanes]);
                row[lanes..].fill(0.0);
            }
        }
        Precision::Bf16 => {
            let out: &mut [u32] = bytemuck::cast_slice_mut(out);
            // Whole pairs of whole lines at once; what is left, row by row.
            let whole = if lanes == LANES { d_y_rn.len() / (2 * n) } else { 0 };
            let (lines, out) = out.split_at_mut(whole * LANES);
            bf16::pair_lines(isa, lines, d_y_rn, n0, n);
            for (row, d_y_n) in out.chunks_exact_mut(LANES).zip(d_y_rn[2 * whole * n..].chunks(2 * n)) {
                let (first, second) = d_y_n.split_at(n);
                bf16::pair_rows(isa, row, &first[n0..n0 + lanes], second.get(n0..n0 + lanes));
                row[lanes..].fill(0);
            }
        }
    }
}
