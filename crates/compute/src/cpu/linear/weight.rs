//! The weight's gradient, a sum over rows: `d_w_nk += d_y_mn x_mk`.
//!
//! The product reads both factors along the rows, so both are packed first: the gradient as [`Lines`], the input as [`Channels`]. A task that has some
//! rows of them in its cache puts them there, rounded where products are in bf16, and they are never written as they are.

use std::ops::Range;

use super::{PACKED, SHARED, rows_of};
use crate::cpu::tile::{A, Init, ROWS, STEPS};
use crate::cpu::{Cpu, Isa, Precision, SharedMut, bf16};
use crate::params::{Buffer, LANES};

/// Steps that are walked before the product turns to other channels.
const ROW_STEPS: usize = 128;

/// Words of packed channels that are multiplied at a time: 4 MiB.
const CHANNELS_MAX: usize = 1 << 20;

/// Rows that a thread packs at a time: whole squares of bf16 pairs.
const PACKED_ROWS: usize = 32;

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
    let m = rows_of("linear backward_weight", d_y_mn.len(), n, x_mk.len(), k);
    let block = Channels::block_rows(cpu.isa(), precision, k);
    SHARED.with_borrow_mut(|buffer| {
        for m0 in (0..m).step_by(block) {
            let m1 = m.min(m0 + block);
            let channels = Channels::new(cpu, precision, buffer, m1 - m0, k);
            // SAFETY: nobody else has the channels.
            unsafe { channels.put(cpu, 0, &x_mk[m0 * k..m1 * k]) };
            add_panels(cpu, d_w, &channels, 0..m1 - m0, n, |panel, rows, steps, packed| {
                let d_y = &d_y_mn[(m0 + rows.start) * n..(m0 + rows.end) * n];
                let packed = packed.first_mut(steps * LANES);
                slice_lanes(cpu.isa(), precision, packed, d_y, n, panel * LANES);
                packed[rows.len().div_ceil(precision.terms()) * LANES..].fill(0.0);
                packed.as_ptr()
            });
        }
    });
    if let Some(d_bias_n) = d_bias_n {
        assert_eq!(d_bias_n.len(), n, "linear backward_weight: one bias an output");
        backward_bias(cpu, d_bias_n, d_y_mn);
    }
}

/// `d_bias_n += d_y_mn`.
///
/// # Panics
///
/// If `d_y_mn` is not whole rows of one number a bias.
pub fn backward_bias(cpu: &Cpu, d_bias_n: &mut [f32], d_y_mn: &[f32]) {
    let n = d_bias_n.len();
    assert!(d_y_mn.len().is_multiple_of(n), "linear backward_bias: {} numbers of rows of {n}", d_y_mn.len());
    cpu.for_each_chunk(d_bias_n, 256, |chunk, d_bias| {
        for d_y_n in d_y_mn.chunks_exact(n) {
            for (d_b, &d) in d_bias.iter_mut().zip(&d_y_n[chunk * 256..]) {
                *d_b += d;
            }
        }
    });
}

/// `d_w_nk += d_y_mn x_mk` from packed factors: the bits of [`backward_weight`].
///
/// # Panics
///
/// If the shapes do not agree.
pub fn backward_weight_packed(cpu: &Cpu, d_w: &mut [f32], lines: &Lines<'_>, channels: &Channels<'_>) {
    let (m, terms) = (lines.m, lines.precision.terms());
    assert_eq!((channels.m, channels.precision), (m, lines.precision), "linear backward_weight: one m");
    let block = Channels::block_rows(cpu.isa(), lines.precision, channels.k);
    for m0 in (0..m).step_by(block) {
        add_panels(cpu, d_w, channels, m0..m.min(m0 + block), lines.n, |panel, rows, steps, _| {
            assert!(rows.start / terms + steps <= lines.steps, "linear backward_weight: lines of {rows:?}");
            lines.words.pointer((panel * lines.steps + rows.start / terms) * LANES).cast_const()
        });
    }
}

/// Adds the products of each panel's lines and the channels of some rows, whole parts. `lines_of(panel, rows, steps, buffer)` points to so many lines
/// of 32 words, which hold those rows, and zeros after them.
fn add_panels(
    cpu: &Cpu,
    d_w: &mut [f32],
    channels: &Channels<'_>,
    rows: Range<usize>,
    n: usize,
    lines_of: impl Fn(usize, Range<usize>, usize, &mut Buffer) -> *const f32 + Sync,
) {
    let (k, tile_rows) = (channels.k, channels.tile);
    assert_eq!(
        d_w.len(),
        n.next_multiple_of(LANES) * k,
        "linear backward_weight: d_w is [{n}, {k}] in panels"
    );
    let d_w = SharedMut::new(d_w);
    cpu.for_each(n.div_ceil(LANES), |panel| {
        PACKED.with_borrow_mut(|packed| {
            for part in channels.parts(rows.clone()) {
                let (rows, steps) = (channels.rows_of(part), channels.steps_of(part));
                let b = lines_of(panel, rows, steps, packed);
                for c in (0..k).step_by(tile_rows) {
                    let tile = tile_rows.min(k - c);
                    let (out, a) = (d_w.pointer((panel * k + c) * LANES), channels.tile_at(part, c));
                    let precision = channels.precision;
                    // SAFETY: the panel belongs to this task; channels and lines hold `steps` steps.
                    unsafe {
                        cpu.isa().product(precision, out, LANES, a, b, LANES, tile, LANES, steps, Init::C)
                    };
                }
            }
        })
    });
}

/// Steps that some rows take: whole blocks where the sums have blocks, zeros at the end.
fn steps_of(isa: Isa, precision: Precision, rows: usize) -> usize {
    let steps = rows.div_ceil(precision.terms());
    if isa.multiplies_tiles(precision) { steps.next_multiple_of(isa.cut()) } else { steps }
}

/// The gradient `d_y_mn` as the weight's gradient reads it: panel by panel of 32 outputs, line by line of a row, or of a pair of rows rounded to bf16.
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
        words.chunks_exact_mut((steps * LANES).max(1)).for_each(|panel| panel[written..].fill(0.0));
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

/// The input `x_mk` as the weight's gradient reads it: `[part][tile][step][channel in tile]` or, for processors that multiply tiles,
/// `[part][channel][step]`. A part is some rows, a step one of them, or a pair rounded to bf16.
pub struct Channels<'a> {
    words: SharedMut<'a, f32>,
    isa: Isa,
    precision: Precision,
    m: usize,
    k: usize,
    /// Steps of a part; the last one may have fewer.
    steps: usize,
    /// Channels of a product.
    tile: usize,
}

impl<'a> Channels<'a> {
    /// Room for `m` rows of `k` channels.
    pub fn new(cpu: &Cpu, precision: Precision, buffer: &'a mut Buffer, m: usize, k: usize) -> Self {
        let isa = cpu.isa();
        let steps = Self::part_steps(isa, precision);
        let parts = m.div_ceil(steps * precision.terms());
        let words = SharedMut::new(buffer.first_mut(parts * steps * k));
        Self { words, isa, precision, m, k, steps, tile: isa.tile_rows(precision) }
    }

    fn part_steps(isa: Isa, precision: Precision) -> usize {
        if isa.multiplies_tiles(precision) { STEPS } else { ROW_STEPS }
    }

    /// Rows that are multiplied at a time: whole parts.
    fn block_rows(isa: Isa, precision: Precision, k: usize) -> usize {
        let steps = Self::part_steps(isa, precision);
        (CHANNELS_MAX / (steps * k)).max(1) * steps * precision.terms()
    }

    fn part_rows(&self) -> usize {
        self.steps * self.precision.terms()
    }

    /// The parts of some rows.
    fn parts(&self, rows: Range<usize>) -> Range<usize> {
        rows.start / self.part_rows()..rows.end.div_ceil(self.part_rows())
    }

    fn rows_of(&self, part: usize) -> Range<usize> {
        part * self.part_rows()..self.m.min((part + 1) * self.part_rows())
    }

    fn steps_of(&self, part: usize) -> usize {
        steps_of(self.isa, self.precision, self.rows_of(part).len())
    }

    /// A part's channels from `c` on.
    fn tile_at(&self, part: usize, c: usize) -> A {
        let at = part * self.steps * self.k;
        match self.isa.multiplies_tiles(self.precision) {
            true => A::rows(self.words.pointer(at + c * STEPS)),
            false => A::columns(self.words.pointer(at + c * self.steps_of(part)), self.tile.min(self.k - c)),
        }
    }

    /// Puts rows `first..`.
    ///
    /// # Safety
    ///
    /// No two calls at a time may put the same rows.
    ///
    /// # Panics
    ///
    /// If there is no such place, or the rows begin in the middle of a step or, for processors that multiply tiles, of a block of 16.
    pub unsafe fn put(&self, cpu: &Cpu, first: usize, x_rk: &[f32]) {
        let (k, rows) = (self.k, x_rk.len() / self.k);
        assert!(first + rows <= self.m, "linear channels: rows {first} + {rows} of {}", self.m);
        let whole =
            if self.isa.multiplies_tiles(self.precision) { PACKED_ROWS } else { self.precision.terms() };
        assert_eq!(first % whole, 0, "linear channels: whole steps");
        cpu.for_each(rows.div_ceil(PACKED_ROWS), |task| {
            let mut r = task * PACKED_ROWS;
            let end = rows.min(r + PACKED_ROWS);
            while r < end {
                let part = (first + r) / self.part_rows();
                let there = end.min(self.rows_of(part).end - first);
                // SAFETY: these rows belong to this task, by the caller's promise.
                unsafe { self.put_into(part, first + r - self.rows_of(part).start, &x_rk[r * k..there * k]) };
                r = there;
            }
        });
    }

    /// Puts rows of one part, from its row `first` on.
    ///
    /// # Safety
    ///
    /// As [`Channels::put`].
    unsafe fn put_into(&self, part: usize, first: usize, x_rk: &[f32]) {
        let Self { isa, precision, k, .. } = *self;
        let (step, steps) = (first / precision.terms(), self.steps_of(part));
        let start = self.words.pointer(part * self.steps * k);
        if isa.multiplies_tiles(precision) {
            // SAFETY: the part has these steps, rounded up to sixteen, of each channel, `STEPS` apart.
            unsafe { bf16::turn_rows(isa, start.add(step).cast(), STEPS, k, x_rk, k, 0) };
            return;
        }
        let mut pairs = [0u32; 32 * ROWS];
        for (step, rows) in (step..).zip(x_rk.chunks(precision.terms() * k)) {
            assert!(step < steps, "linear channels: step {step} of {steps}");
            let (even, odd) = rows.split_at(k);
            for c in (0..k).step_by(pairs.len()) {
                let end = k.min(c + pairs.len());
                let words = match precision {
                    Precision::F32 => &even[c..end],
                    Precision::Bf16 => {
                        bf16::pair_rows(isa, &mut pairs, &even[c..end], odd.get(c..end));
                        bytemuck::cast_slice(&pairs[..end - c])
                    }
                };
                // SAFETY: this step of these channels' tiles, which belongs to the caller.
                unsafe { spread_tiles(start.add(c * steps), words, step, steps) };
            }
        }
    }
}

/// Puts one step's words where their tiles of [`ROWS`] channels are.
///
/// # Safety
///
/// `start` has room for `steps` steps of as many channels, and nobody else has this one.
#[inline(always)]
unsafe fn spread_tiles(start: *mut f32, words: &[f32], step: usize, steps: usize) {
    let (tiles, tail) = words.as_chunks::<ROWS>();
    // SAFETY: inside the tiles, by the caller's promise.
    unsafe {
        for (tile, words) in tiles.iter().enumerate() {
            // A length that the compiler knows is two moves, not a call.
            *start.add((tile * steps + step) * ROWS).cast::<[f32; ROWS]>() = *words;
        }
        let at = start.add(tiles.len() * steps * ROWS + step * tail.len());
        std::ptr::copy_nonoverlapping(tail.as_ptr(), at, tail.len());
    }
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
