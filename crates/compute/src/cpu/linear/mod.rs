//! Linear maps `y = w x + b`, forward and backward, with the weights in panels (see `params.rs`).
//!
//! Reference: `ops/linear.rs`, which this reproduces to the bit. The three products of a linear map are
//! the micro-kernel of `tile.rs` with its operands turned three ways:
//!
//! | product | lanes | broadcast | written |
//! |---|---|---|---|
//! | `y_mn  = b_n + sum_k x_mk w_nk` | outputs `n`, a panel of `w` | `x`, rows packed in tiles | rows of `y` |
//! | `d_x_mk = sum_n d_y_mn w_nk` | channels `k`, blocks of `w` turned | `d_y`, rows packed in tiles | rows of `d_x` |
//! | `d_w_nk += sum_m d_y_mn x_mk` | outputs `n`, a slice of `d_y` | `x`, packed in tiles of channels | a panel of `d_w` |
//!
//! What is where in the caches, innermost first: a tile of sums in registers; a panel's block of at most [`STEPS`] steps in L1, used by the
//! tiles of a row block one after the other; the row block's packed rows, or all packed channels, in L2 or L3. A sum's blocks follow one
//! another inside a panel, so that its tiles of `y` or `d_w` are still near when they are taken up again.
//!
//! In bf16 the same products are made of pairs (`bf16.rs`): two `k`, two `n`, two `m` a step, rounded where they are packed. The
//! weights come as pairs; activations and gradients come and go in f32, and so do all sums.
//!
//! Not here: what is done with `y` (activations, norms).

mod weight;

pub use weight::{Channels, Lines, backward_bias, backward_weight, backward_weight_packed};

use std::cell::RefCell;
use std::ops::Range;

use super::bf16;
use super::tile::{A, Init, ROWS, STEPS};
use super::vector::vectorized;
use super::{Cpu, Isa, Precision, SharedMut};
use crate::params::{Buffer, LANES, Weights};

/// Rows of one forward task: eight tiles share each panel's block.
const ROW_BLOCK: usize = 8 * ROWS;

/// Blocks of [`STEPS`] that are packed of a row block at a time: 240 KiB.
const BLOCKS: usize = 4;

/// Numbers that are packed by one thread while the others wait: dividing fewer costs more than it gives.
const PACKED_ALONE: usize = 1 << 14;

/// Weights that the input's gradient turns at a time: 4 MiB, so that they are still in the cache when they are used.
const TURNED_MAX: usize = 1 << 20;

thread_local! {
    /// Packed rows, or lanes, of the task that this thread runs.
    static PACKED: RefCell<Buffer> = RefCell::default();
    /// Packed rows of all tasks, of the thread that starts them.
    static ROWS_PACKED: RefCell<Buffer> = RefCell::default();
    /// Turned weights or packed channels, of the thread that starts the loops.
    static SHARED: RefCell<Buffer> = RefCell::default();
}

/// What an output's sums start from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Write<'a> {
    /// `y = …`
    Set,
    /// `y += …`: what is there. Excludes a bias.
    Add,
    /// `y = x + …`: a matrix like `y`, the residual stream. Excludes a bias.
    Onto(&'a [f32]),
}

impl Write<'_> {
    /// For the tile at `at`, in rows of `stride`, and the first block of the sum or a later one.
    fn init(self, first: bool, at: usize, stride: usize) -> Init {
        match self {
            _ if !first => Init::C,
            Write::Set => Init::Zero,
            Write::Add => Init::C,
            Write::Onto(x) => Init::From(x[at..].as_ptr(), stride),
        }
    }

    fn check(self, op: &str, len: usize) {
        if let Write::Onto(x) = self {
            assert_eq!(x.len(), len, "{op}: what the sums start from is like the output");
        }
    }
}

impl Precision {
    /// Terms of a sum that one step adds.
    pub(super) fn terms(self) -> usize {
        match self {
            Precision::F32 => 1,
            Precision::Bf16 => 2,
        }
    }
}

impl<'a> Weights<'a> {
    /// The words that the kernel reads, and the steps of a sum over `k` inputs.
    ///
    /// # Panics
    ///
    /// If these are not the weights of `n` outputs.
    fn words(self, op: &str, n: usize, k: usize) -> (&'a [f32], usize) {
        let (words, steps) = match self {
            Weights::F32(w) => (w, k),
            Weights::Bf16(pairs) => (bytemuck::cast_slice(pairs), k / 2),
        };
        assert_eq!(words.len(), n.next_multiple_of(LANES) * steps, "{op}: w is [{n}, {k}] in panels");
        (words, steps)
    }
}

/// `y_mn = bias_n + x_mk w_nk` (or added to what is there).
///
/// # Panics
///
/// If the shapes do not agree, or if a bias is to be added to an existing `y`.
pub fn forward(
    cpu: &Cpu,
    y_mn: &mut [f32],
    x_mk: &[f32],
    w: Weights<'_>,
    bias_n: Option<&[f32]>,
    n: usize,
    k: usize,
    write: Write<'_>,
) {
    let m = rows_of("linear forward", y_mn.len(), n, x_mk.len(), k);
    let (words, steps) = w.words("linear forward", n, k);
    write.check("linear forward", y_mn.len());
    if let Some(bias_n) = bias_n {
        assert_eq!(bias_n.len(), n, "linear forward: one bias an output");
        assert_eq!(write, Write::Set, "linear forward: a bias starts the sum");
    }
    let x = Left { rows: x_mk, stride: k, first: 0, len: k };
    let panels = Panels { words, stride: steps * LANES };
    rows_times_panels(cpu, w.precision(), y_mn, n, x, panels, bias_n, write, m);
}

/// As [`forward`], of some of the `n` outputs, the first a multiple of 32: `y_mn` has these alone.
///
/// # Panics
///
/// If the shapes do not agree.
pub fn forward_outputs(
    cpu: &Cpu,
    y_mn: &mut [f32],
    x_mk: &[f32],
    w: Weights<'_>,
    outputs: Range<usize>,
    n: usize,
    k: usize,
) {
    let m = rows_of("linear forward", y_mn.len(), outputs.len(), x_mk.len(), k);
    let (words, steps) = w.words("linear forward", n, k);
    assert_eq!(outputs.start % LANES, 0, "linear forward: outputs from a whole panel on");
    let stride = steps * LANES;
    let panels = Panels { words: &words[outputs.start / LANES * stride..], stride };
    let x = Left { rows: x_mk, stride: k, first: 0, len: k };
    rows_times_panels(cpu, w.precision(), y_mn, outputs.len(), x, panels, None, Write::Set, m);
}

/// Weights of some outputs as the input's gradient reads them, for several products with parts of the rows.
#[derive(Clone, Copy)]
pub struct Turned<'a> {
    panels: Panels<'a>,
    precision: Precision,
    /// Outputs.
    n: usize,
    k: usize,
}

impl<'a> Turned<'a> {
    /// Turns all of `w`.
    ///
    /// # Panics
    ///
    /// If these are not the weights of `n` outputs.
    pub fn new(cpu: &Cpu, buffer: &'a mut Buffer, w: Weights<'_>, n: usize, k: usize) -> Self {
        Self::of(cpu, buffer, w, 0..n, n, k)
    }

    /// Turns some of the `n` outputs, the first a multiple of 32.
    ///
    /// # Panics
    ///
    /// As [`Turned::new`].
    pub fn of(
        cpu: &Cpu,
        buffer: &'a mut Buffer,
        w: Weights<'_>,
        outputs: Range<usize>,
        n: usize,
        k: usize,
    ) -> Self {
        w.words("linear turned", n, k);
        let len = outputs.len();
        Self { panels: turn_outputs(cpu, buffer, w, outputs, k), precision: w.precision(), n: len, k }
    }

    /// `d_x_mk = d_y_mn w_nk` (or added to what is there): the bits of [`backward_input`].
    ///
    /// # Panics
    ///
    /// If the shapes do not agree.
    pub fn backward_input(self, cpu: &Cpu, d_x_mk: &mut [f32], d_y_mn: &[f32], write: Write<'_>) {
        self.backward_outputs(cpu, d_x_mk, d_y_mn, 0..self.n, write);
    }

    /// What some of the outputs have in it, counted from the first that was turned. Parts that follow one another from a multiple of 32 to the next give
    /// the bits of the whole.
    ///
    /// # Panics
    ///
    /// If the shapes do not agree.
    pub fn backward_outputs(
        self,
        cpu: &Cpu,
        d_x_mk: &mut [f32],
        d_y_mn: &[f32],
        outputs: Range<usize>,
        write: Write<'_>,
    ) {
        let Self { panels: Panels { words, stride }, precision, n, k } = self;
        let len = outputs.len();
        let m = rows_of("linear backward_input", d_y_mn.len(), len, d_x_mk.len(), k);
        write.check("linear backward_input", d_x_mk.len());
        assert!(
            outputs.start.is_multiple_of(LANES) && outputs.end <= n,
            "linear backward_input: {outputs:?} of {n}"
        );
        let panels = Panels { words: &words[outputs.start / precision.terms() * LANES..], stride };
        let d_y = Left { rows: d_y_mn, stride: len, first: 0, len };
        rows_times_panels(cpu, precision, d_x_mk, k, d_y, panels, None, write, m);
    }
}

/// Turns the weights of some outputs, the first a multiple of 32.
fn turn_outputs<'a>(
    cpu: &Cpu,
    buffer: &'a mut Buffer,
    w: Weights<'_>,
    outputs: Range<usize>,
    k: usize,
) -> Panels<'a> {
    let (isa, n0, len) = (cpu.isa(), outputs.start, outputs.len());
    let stride = len.next_multiple_of(LANES) / w.precision().terms() * LANES;
    let turned = buffer.first_mut(k.div_ceil(LANES) * stride);
    cpu.for_each_chunk(turned, stride, |panel, turned| match w {
        Weights::F32(w) => turn(isa, turned, w, n0, len, panel * LANES, k),
        Weights::Bf16(w) => turn_pairs(isa, bytemuck::cast_slice_mut(turned), w, n0, len, panel * LANES, k),
    });
    Panels { words: turned, stride }
}

/// `d_x_mk = d_y_mn w_nk` (or added to what is there).
///
/// # Panics
///
/// If the shapes do not agree.
pub fn backward_input(
    cpu: &Cpu,
    d_x_mk: &mut [f32],
    d_y_mn: &[f32],
    w: Weights<'_>,
    n: usize,
    k: usize,
    write: Write<'_>,
) {
    let m = rows_of("linear backward_input", d_y_mn.len(), n, d_x_mk.len(), k);
    w.words("linear backward_input", n, k);
    write.check("linear backward_input", d_x_mk.len());
    let precision = w.precision();
    let block = BLOCKS * STEPS * precision.terms();
    let part = (TURNED_MAX * precision.terms() / k.next_multiple_of(LANES) / block * block).max(block);
    SHARED.with_borrow_mut(|buffer| {
        for n0 in (0..n).step_by(part) {
            let len = part.min(n - n0);
            let panels = turn_outputs(cpu, buffer, w, n0..n0 + len, k);
            let d_y = Left { rows: d_y_mn, stride: n, first: n0, len };
            let write = if n0 == 0 { write } else { Write::Add };
            rows_times_panels(cpu, precision, d_x_mk, k, d_y, panels, None, write, m);
        }
    });
}

/// Some columns of a matrix, row by row.
#[derive(Clone, Copy)]
struct Left<'a> {
    rows: &'a [f32],
    stride: usize,
    first: usize,
    len: usize,
}

/// 32 outputs of a matrix in each panel.
#[derive(Clone, Copy)]
struct Panels<'a> {
    words: &'a [f32],
    /// Words from one panel to the next.
    stride: usize,
}

/// `y[i][o] = init + sum_j x[i][j] panel[j][o]`: both products whose sums run along a row.
///
/// Many rows: a task has a row block, or half of its panels, and packs it for itself. Few rows: many tasks share a row block, which is packed
/// before.
fn rows_times_panels(
    cpu: &Cpu,
    precision: Precision,
    y: &mut [f32],
    outputs: usize,
    x: Left<'_>,
    panels: Panels<'_>,
    bias: Option<&[f32]>,
    write: Write<'_>,
    m: usize,
) {
    let isa = cpu.isa();
    let tile_rows = isa.tile_rows(precision);
    let count = outputs.div_ceil(LANES);
    let row_blocks = m.div_ceil(ROW_BLOCK);
    let groups = panel_groups(cpu, count, row_blocks);
    let packing = RowPacking::of(isa, precision, x);
    let y = SharedMut::new(y);
    // The tiles of a row block and of some of its packed blocks, in panels `of`.
    let multiply = |row_block: usize, of: Range<usize>, blocks: Range<usize>, packed: &[f32]| {
        let row0 = row_block * ROW_BLOCK;
        let rows = ROW_BLOCK.min(m - row0);
        for panel in of {
            let o0 = panel * LANES;
            let lanes = LANES.min(outputs - o0);
            for (block, packed) in blocks.clone().zip(packed.chunks_exact(ROW_BLOCK * STEPS)) {
                let (s0, k) = packing.steps_of(block);
                let b = panels.words[panel * panels.stride + s0 * LANES..].as_ptr();
                for i in (0..rows).step_by(tile_rows) {
                    let a = A::rows(packed[i * STEPS..].as_ptr());
                    let at = (row0 + i) * outputs + o0;
                    let init = match bias {
                        Some(bias) if s0 == 0 => Init::Bias(bias[o0..].as_ptr()),
                        _ => write.init(s0 == 0, at, outputs),
                    };
                    let (c, tile) = (y.pointer(at), tile_rows.min(rows - i));
                    // SAFETY: the tile of `y` belongs to this task; the panel holds `k` rows of 32 from `s0`;
                    // the packed block holds `k` words of each of this tile's rows.
                    unsafe { isa.product(precision, c, outputs, a, b, LANES, tile, lanes, k, init) };
                }
            }
        }
    };
    let task_of = |task: usize| {
        let (row_block, group) = (task / groups, task % groups);
        (row_block, group * count / groups..(group + 1) * count / groups)
    };
    if groups <= 2 {
        cpu.for_each(row_blocks * groups, |task| {
            let (row_block, of) = task_of(task);
            PACKED.with_borrow_mut(|packed| {
                packed.grow(BLOCKS * ROW_BLOCK * STEPS);
                for blocks in packing.parts() {
                    for (block, packed) in blocks.clone().zip(packed.chunks_exact_mut(ROW_BLOCK * STEPS)) {
                        packing.pack(packed, row_block, block);
                    }
                    multiply(row_block, of.clone(), blocks, packed);
                }
            });
        });
        return;
    }
    ROWS_PACKED.with_borrow_mut(|packed| {
        let len = packing.blocks * ROW_BLOCK * STEPS;
        packed.grow(row_blocks * len);
        let packed = &mut packed[..row_blocks * len];
        let pack = |task: usize, packed: &mut [f32]| {
            packing.pack(packed, task / packing.blocks, task % packing.blocks)
        };
        if m * x.len < PACKED_ALONE {
            packed
                .chunks_exact_mut(ROW_BLOCK * STEPS)
                .enumerate()
                .for_each(|(task, packed)| pack(task, packed));
        } else {
            cpu.for_each_chunk(packed, ROW_BLOCK * STEPS, pack);
        }
        let packed = &*packed;
        cpu.for_each(row_blocks * groups, |task| {
            let (row_block, of) = task_of(task);
            for blocks in packing.parts() {
                let at = row_block * len + blocks.start * ROW_BLOCK * STEPS;
                multiply(row_block, of.clone(), blocks, &packed[at..]);
            }
        });
    });
}

/// How the rows of a left operand are packed: in blocks of steps of one length, as far as that goes.
#[derive(Clone, Copy)]
struct RowPacking<'a> {
    isa: Isa,
    precision: Precision,
    x: Left<'a>,
    /// Of a row.
    steps: usize,
    /// Of a block.
    block: usize,
    blocks: usize,
}

impl<'a> RowPacking<'a> {
    fn of(isa: Isa, precision: Precision, x: Left<'a>) -> Self {
        let steps = x.len.div_ceil(precision.terms());
        let block = steps.div_ceil(steps.div_ceil(STEPS).max(1)).next_multiple_of(isa.cut());
        Self { isa, precision, x, steps, block, blocks: steps.div_ceil(block.max(1)) }
    }

    /// Blocks that are in the cache together.
    fn parts(self) -> impl Iterator<Item = Range<usize>> {
        (0..self.blocks).step_by(BLOCKS).map(move |first| first..self.blocks.min(first + BLOCKS))
    }

    /// A block's first step, and how many it has.
    fn steps_of(self, block: usize) -> (usize, usize) {
        let first = block * self.block;
        (first, self.block.min(self.steps - first))
    }

    /// Packs a block of a row block: words of [`A::rows`].
    fn pack(self, packed: &mut [f32], row_block: usize, block: usize) {
        let Left { rows, stride, first, len } = self.x;
        let from = block * self.block * self.precision.terms();
        let to = len.min(from + self.block * self.precision.terms());
        let rows = rows.chunks(ROW_BLOCK * stride).nth(row_block).expect("a row block of the matrix");
        for (out, x) in packed.chunks_exact_mut(STEPS).zip(rows.chunks_exact(stride)) {
            let x = &x[first + from..first + to];
            match self.precision {
                Precision::F32 => out[..x.len()].copy_from_slice(x),
                Precision::Bf16 => bf16::narrow(self.isa, bytemuck::cast_slice_mut(out), x),
            }
        }
    }
}

vectorized! {
    /// Outputs `n0..n0 + n_len` of channels `k0..k0 + 32`, channels side by side: `turned[n][k]`. `n0` is a
    /// multiple of 32; channels that are not there are zero.
    fn turn(turned: &mut [f32], w: &[f32], n0: usize, n_len: usize, k0: usize, k: usize) {
        let channels = LANES.min(k - k0);
        for (i, turned) in turned.chunks_exact_mut(LANES * LANES).enumerate().take(n_len.div_ceil(LANES)) {
            let panel = (n0 / LANES + i) * k * LANES + k0 * LANES;
            let block = &w[panel..panel + channels * LANES];
            if channels < LANES {
                turned.fill(0.0);
            }
            for (c, w_n) in block.as_chunks::<LANES>().0.iter().enumerate() {
                for j in 0..LANES {
                    turned[j * LANES + c] = w_n[j];
                }
            }
        }
    }
}

/// The same of pairs of channels, into pairs of outputs: `turned[n / 2][k]`.
fn turn_pairs(isa: Isa, turned: &mut [u32], w: &[u32], n0: usize, n_len: usize, k0: usize, k: usize) {
    let channels = LANES.min(k - k0);
    let turned = turned.as_chunks_mut::<{ LANES * LANES / 2 }>().0;
    for (i, turned) in turned.iter_mut().enumerate().take(n_len.div_ceil(LANES)) {
        let panel = (n0 / LANES + i) * (k / 2) * LANES + k0 / 2 * LANES;
        bf16::turn_block(isa, turned, &w[panel..panel + channels / 2 * LANES]);
    }
}

fn rows_of(op: &str, y_len: usize, n: usize, x_len: usize, k: usize) -> usize {
    let m = y_len / n;
    assert_eq!(y_len, m * n, "{op}: y is [m, {n}]");
    assert_eq!(x_len, m * k, "{op}: x is [{m}, {k}]");
    m
}

/// Into how many parts a product splits its panels: enough tasks for the threads.
fn panel_groups(cpu: &Cpu, panels: usize, row_blocks: usize) -> usize {
    let threads = cpu.threads();
    // So many that the last one does not keep the other threads waiting for long.
    let tasks = 12 * threads;
    if threads == 1 || row_blocks >= tasks {
        return 1;
    }
    tasks.div_ceil(row_blocks.max(1)).min(panels.div_ceil(2)).max(1)
}

impl Isa {
    /// Runs `repeats` tiles whose operands stay in the L1 cache and returns the multiply-adds done: with
    /// the caller's clock, the rate that no product of this machine can exceed.
    pub fn peak_products(self, precision: Precision, repeats: usize) -> f64 {
        let rows = self.tile_rows(precision);
        let [mut a, mut b, mut c] = [rows * STEPS, LANES * STEPS, rows * LANES].map(Buffer::zeros);
        a.fill(0.5);
        b.fill(0.25);
        for _ in 0..repeats {
            let a = A::rows(a.as_ptr());
            // SAFETY: the arrays have the sizes asked for.
            unsafe {
                let (c, b) = (c.as_mut_ptr(), b.as_ptr());
                self.product(precision, c, LANES, a, b, LANES, rows, LANES, STEPS, Init::Zero);
            }
            std::hint::black_box(&mut c);
        }
        (repeats * rows * LANES * STEPS * precision.terms()) as f64
    }
}
