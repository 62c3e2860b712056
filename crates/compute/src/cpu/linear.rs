//! Linear maps `y = w x + b`, forward and backward, with the weights in panels (see `params.rs`).
//!
//! Reference: `ops/linear.rs`, which this reproduces to the bit. The three products of a linear map are
//! the micro-kernel of `tile.rs` with its operands turned three ways:
//!
//! | product | lanes | broadcast | written |
//! |---|---|---|---|
//! | `y_mn  = b_n + sum_k x_mk w_nk` | outputs `n`, a panel of `w` | `x`, packed in tiles of rows | rows of `y` |
//! | `d_x_mk = sum_n d_y_mn w_nk` | channels `k`, blocks of `w` turned | `d_y`, packed in tiles of rows | rows of `d_x` |
//! | `d_w_nk += sum_m d_y_mn x_mk` | outputs `n`, a slice of `d_y` | `x`, packed in tiles of channels | a panel of `d_w` |
//!
//! In bf16 the same products are made of pairs (`bf16.rs`): two `k`, two `n`, two `m` a step, rounded where they are packed. The
//! weights come as pairs; activations and gradients come and go in f32, and so do all sums.
//!
//! Not here: what is done with `y` (activations, norms).

use std::cell::RefCell;

use super::bf16::pair;
use super::tile::{A, Init, ROWS};
use super::vector::vectorized;
use super::{Cpu, Isa, Precision, SharedMut};
use crate::params::{Buffer, LANES, Weights};

/// Length of the blocks in which a sum is walked, in steps (terms, or pairs of them): a panel's block (16 KiB) and a tile's
/// block (6 KiB) stay in a 32 KiB L1 cache.
const K_BLOCK: usize = 128;

/// Rows of one forward task: eight tiles share each panel's block.
const ROW_BLOCK: usize = 8 * ROWS;

/// Weights that the input's gradient turns at a time: 4 MiB, so that they are still in the cache when they are used.
const TURNED_MAX: usize = 1 << 20;

thread_local! {
    /// Packed operands of the task that this thread runs.
    static SCRATCH: RefCell<(Buffer, Buffer)> = RefCell::default();
    /// Turned weights, of the thread that starts the loops.
    static TURNED: RefCell<Buffer> = RefCell::default();
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
    /// For the block of the sum that starts at `j0` and the tile at `at`, in rows of `stride`.
    fn init(self, j0: usize, at: usize, stride: usize) -> Init {
        match self {
            _ if j0 > 0 => Init::C,
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
    fn terms(self) -> usize {
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
    let (isa, precision) = (cpu.isa(), w.precision());
    let panels = k.div_ceil(LANES);
    let block = K_BLOCK * precision.terms();
    let part = (TURNED_MAX * precision.terms() / (panels * LANES) / block * block).max(block);
    TURNED.with_borrow_mut(|turned| {
        for n0 in (0..n).step_by(part) {
            let len = part.min(n - n0);
            let stride = len.next_multiple_of(LANES) / precision.terms() * LANES;
            turned.grow(panels * stride);
            let turned = &mut turned[..panels * stride];
            cpu.for_each_chunk(turned, stride, |panel, turned| match w {
                Weights::F32(w) => turn(isa, turned, w, n0, len, panel * LANES, k),
                Weights::Bf16(w) => {
                    turn_pairs(isa, bytemuck::cast_slice_mut(turned), w, n0, len, panel * LANES, k)
                }
            });
            let d_y = Left { rows: d_y_mn, stride: n, first: n0, len };
            let write = if n0 == 0 { write } else { Write::Add };
            rows_times_panels(
                cpu,
                precision,
                d_x_mk,
                k,
                d_y,
                Panels { words: turned, stride },
                None,
                write,
                m,
            );
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
    let count = outputs.div_ceil(LANES);
    let row_blocks = m.div_ceil(ROW_BLOCK);
    let groups = panel_groups(cpu, count, row_blocks);
    let block = K_BLOCK * precision.terms();
    // One row of floats needs no packing: its numbers are side by side already.
    let direct = m == 1 && precision == Precision::F32;
    let y = SharedMut::new(y);
    cpu.for_each(row_blocks * groups, |task| {
        let (row_block, group) = (task / groups, task % groups);
        let row0 = row_block * ROW_BLOCK;
        let rows = ROW_BLOCK.min(m - row0);
        SCRATCH.with_borrow_mut(|(packed, _)| {
            for j0 in (0..x.len).step_by(block) {
                let len = block.min(x.len - j0);
                let steps = len.div_ceil(precision.terms());
                if !direct {
                    packed.grow(ROW_BLOCK * K_BLOCK);
                    let x_rows = &x.rows[row0 * x.stride..(row0 + rows) * x.stride];
                    match precision {
                        Precision::F32 => pack_rows(isa, packed, x_rows, x.stride, x.first + j0, len),
                        Precision::Bf16 => {
                            let packed = bytemuck::cast_slice_mut(packed);
                            pack_row_pairs(isa, packed, x_rows, x.stride, x.first + j0, len);
                        }
                    }
                }
                for panel in group * count / groups..(group + 1) * count / groups {
                    let o0 = panel * LANES;
                    let lanes = LANES.min(outputs - o0);
                    let b = panels.words[panel * panels.stride + j0 / precision.terms() * LANES..].as_ptr();
                    for i in (0..rows).step_by(ROWS) {
                        let tile_rows = ROWS.min(rows - i);
                        let a = match direct {
                            true => A::columns(x.rows[x.first + j0..].as_ptr(), 1),
                            false => A::columns(packed[i * steps..].as_ptr(), tile_rows),
                        };
                        let at = (row0 + i) * outputs + o0;
                        let init = match bias {
                            Some(bias) if j0 == 0 => Init::Bias(bias[o0..].as_ptr()),
                            _ => write.init(j0, at, outputs),
                        };
                        let c = y.pointer(at);
                        // SAFETY: the tile of `y` belongs to this task; the panel holds `steps` rows
                        // of 32 from `j0`; the packed block holds `steps` columns of this tile's rows.
                        unsafe {
                            isa.product(precision, c, outputs, a, b, LANES, tile_rows, lanes, steps, init)
                        };
                    }
                }
            }
        });
    });
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

vectorized! {
    /// The same of pairs of channels, into pairs of outputs: `turned[n / 2][k]`.
    fn turn_pairs(turned: &mut [u32], w: &[u32], n0: usize, n_len: usize, k0: usize, k: usize) {
        let channels = LANES.min(k - k0);
        let turned = turned.as_chunks_mut::<{ LANES * LANES / 2 }>().0;
        for (i, turned) in turned.iter_mut().enumerate().take(n_len.div_ceil(LANES)) {
            let panel = (n0 / LANES + i) * (k / 2) * LANES + k0 / 2 * LANES;
            let block = &w[panel..panel + channels / 2 * LANES];
            if channels < LANES {
                turned.fill(0);
            }
            for (c, w_n) in block.as_chunks::<LANES>().0.iter().enumerate() {
                for j in 0..LANES / 2 {
                    let (first, second) = (w_n[2 * j], w_n[2 * j + 1]);
                    turned[j * LANES + 2 * c] = (first & 0xffff) | second << 16;
                    turned[j * LANES + 2 * c + 1] = first >> 16 | (second & 0xffff_0000);
                }
            }
        }
    }
}

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
    assert_eq!(
        d_w.len(),
        n.next_multiple_of(LANES) * k,
        "linear backward_weight: d_w is [{n}, {k}] in panels"
    );
    let block = K_BLOCK * precision.terms();
    let isa = cpu.isa();
    let panels = n.div_ceil(LANES);
    let groups = panels.min(2 * cpu.threads());
    let d_w = SharedMut::new(d_w);
    cpu.for_each(groups, |group| {
        let first_panel = group * panels / groups;
        let last_panel = (group + 1) * panels / groups;
        SCRATCH.with_borrow_mut(|(x_packed, d_y_packed)| {
            x_packed.grow(k.next_multiple_of(ROWS) * K_BLOCK);
            d_y_packed.grow(K_BLOCK * LANES);
            for m0 in (0..m).step_by(block) {
                let m_len = block.min(m - m0);
                let steps = m_len.div_ceil(precision.terms());
                let x = &x_mk[m0 * k..(m0 + m_len) * k];
                match precision {
                    Precision::F32 => pack_channels(x_packed, x, k),
                    Precision::Bf16 => pack_channel_pairs(isa, bytemuck::cast_slice_mut(x_packed), x, k),
                }
                for panel in first_panel..last_panel {
                    let n0 = panel * LANES;
                    let lanes = LANES.min(n - n0);
                    let d_y = &d_y_mn[m0 * n..(m0 + m_len) * n];
                    match precision {
                        Precision::F32 => slice_lanes(d_y_packed, d_y, n, n0, lanes),
                        Precision::Bf16 => {
                            slice_lane_pairs(isa, bytemuck::cast_slice_mut(d_y_packed), d_y, n, n0, lanes)
                        }
                    }
                    for c in (0..k).step_by(ROWS) {
                        let tile = ROWS.min(k - c);
                        let a = A::columns(x_packed[c * steps..].as_ptr(), tile);
                        let out = d_w.pointer((panel * k + c) * LANES);
                        let b = d_y_packed.as_ptr();
                        // SAFETY: the panel belongs to this task; the packed blocks hold `steps` rows.
                        unsafe {
                            isa.product(precision, out, LANES, a, b, LANES, tile, LANES, steps, Init::C)
                        };
                    }
                }
            }
        });
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

fn rows_of(op: &str, y_len: usize, n: usize, x_len: usize, k: usize) -> usize {
    let m = y_len / n;
    assert_eq!(y_len, m * n, "{op}: y is [m, {n}]");
    assert_eq!(x_len, m * k, "{op}: x is [{m}, {k}]");
    m
}

/// Into how many parts a forward splits its panels: enough tasks for the threads, but wide parts, since
/// each packs `x` for itself.
fn panel_groups(cpu: &Cpu, panels: usize, row_blocks: usize) -> usize {
    let threads = cpu.threads();
    if threads == 1 || row_blocks >= 4 * threads {
        return 1;
    }
    (4 * threads).div_ceil(row_blocks.max(1)).min(panels.div_ceil(2)).max(1)
}

vectorized! {
    /// Packs columns `k0..k0 + k_len` of rows of `x` into tiles: `packed[tile][k][row in tile]`.
    fn pack_rows(packed: &mut [f32], x_rk: &[f32], k: usize, k0: usize, k_len: usize) {
        /// Four rows of a cache line: rows of a power of two share a cache set, so few are read at a time.
        const STRIP: usize = 16;
        for (tile, x_tile) in x_rk.chunks(ROWS * k).enumerate() {
            let rows = x_tile.len() / k;
            let out = &mut packed[tile * ROWS * k_len..][..rows * k_len];
            let strips = if rows == ROWS { k_len / STRIP } else { 0 };
            let (head, tail) = out.split_at_mut(strips * STRIP * rows);
            for (strip, out) in head.as_chunks_mut::<{ STRIP * ROWS }>().0.iter_mut().enumerate() {
                for r in (0..ROWS).step_by(4) {
                    let x4: [&[f32; STRIP]; 4] = std::array::from_fn(|i| {
                        let at = (r + i) * k + k0 + strip * STRIP;
                        x_tile[at..].first_chunk().expect("a strip of this row is left")
                    });
                    for j in 0..STRIP {
                        for i in 0..4 {
                            out[j * ROWS + r + i] = x4[i][j];
                        }
                    }
                }
            }
            for (j, out_row) in tail.chunks_exact_mut(rows).enumerate() {
                for (r, out) in out_row.iter_mut().enumerate() {
                    *out = x_tile[r * k + k0 + strips * STRIP + j];
                }
            }
        }
    }
}

/// Packs rows of `x` into tiles of channels: `packed[tile][row][channel in tile]`.
fn pack_channels(packed: &mut [f32], x_rk: &[f32], k: usize) {
    let rows = x_rk.len() / k;
    for c in (0..k).step_by(ROWS) {
        let tile = ROWS.min(k - c);
        let out = &mut packed[c * rows..][..rows * tile];
        if tile == ROWS {
            // A length that the compiler knows is two moves, not a call.
            for (out, x_k) in out.as_chunks_mut::<ROWS>().0.iter_mut().zip(x_rk.chunks_exact(k)) {
                *out = *x_k[c..].first_chunk().expect("a tile of channels is left");
            }
        } else {
            for (out, x_k) in out.chunks_exact_mut(tile).zip(x_rk.chunks_exact(k)) {
                out.copy_from_slice(&x_k[c..c + tile]);
            }
        }
    }
}

/// Rows of 32 outputs from `n0`, side by side.
fn slice_lanes(out: &mut [f32], d_y_mn: &[f32], n: usize, n0: usize, lanes: usize) {
    for (row, d_y_n) in out.chunks_exact_mut(LANES).zip(d_y_mn.chunks_exact(n)) {
        row[..lanes].copy_from_slice(&d_y_n[n0..n0 + lanes]);
        row[lanes..].fill(0.0);
    }
}

vectorized! {
    /// [`pack_rows`] for pairs of columns: `packed[tile][k / 2][row in tile]`.
    fn pack_row_pairs(packed: &mut [u32], x_rk: &[f32], k: usize, k0: usize, k_len: usize) {
        /// Pairs of a cache line's half of each row.
        const STRIP: usize = 16;
        let steps = k_len.div_ceil(2);
        for (tile, x_tile) in x_rk.chunks(ROWS * k).enumerate() {
            let rows = x_tile.len() / k;
            let out = &mut packed[tile * ROWS * steps..][..rows * steps];
            let strips = if rows == ROWS { k_len / (2 * STRIP) } else { 0 };
            let (head, tail) = out.split_at_mut(strips * STRIP * rows);
            for (strip, out) in head.as_chunks_mut::<{ STRIP * ROWS }>().0.iter_mut().enumerate() {
                for r in (0..ROWS).step_by(4) {
                    let x4: [[u32; STRIP]; 4] = std::array::from_fn(|i| {
                        let at = (r + i) * k + k0 + strip * 2 * STRIP;
                        let x: &[f32; 2 * STRIP] = x_tile[at..].first_chunk().expect("a strip of this row is left");
                        std::array::from_fn(|j| pair(x[2 * j], x[2 * j + 1]))
                    });
                    for j in 0..STRIP {
                        for i in 0..4 {
                            out[j * ROWS + r + i] = x4[i][j];
                        }
                    }
                }
            }
            for (j, out_row) in tail.chunks_exact_mut(rows).enumerate() {
                let first = strips * 2 * STRIP + 2 * j;
                for (r, out) in out_row.iter_mut().enumerate() {
                    let x = &x_tile[r * k + k0..][..k_len];
                    *out = pair(x[first], x.get(first + 1).copied().unwrap_or(0.0));
                }
            }
        }
    }
}

vectorized! {
    /// [`pack_channels`] for pairs of rows: `packed[tile][row / 2][channel in tile]`.
    fn pack_channel_pairs(packed: &mut [u32], x_rk: &[f32], k: usize) {
        let rows = x_rk.len() / k;
        let steps = rows.div_ceil(2);
        for c in (0..k).step_by(ROWS) {
            let tile = ROWS.min(k - c);
            let out = &mut packed[c * steps..][..steps * tile];
            for (step, out) in out.chunks_exact_mut(tile).enumerate() {
                let first = &x_rk[2 * step * k + c..][..tile];
                let second = (2 * step + 1 < rows).then(|| &x_rk[(2 * step + 1) * k + c..]);
                match (second, first.first_chunk::<ROWS>(), out.first_chunk_mut::<ROWS>()) {
                    (Some(second), Some(first), Some(out)) => {
                        let second: &[f32; ROWS] = second.first_chunk().expect("a tile of channels is left");
                        for i in 0..ROWS {
                            out[i] = pair(first[i], second[i]);
                        }
                    }
                    _ => {
                        for (i, out) in out.iter_mut().enumerate() {
                            *out = pair(first[i], second.map_or(0.0, |second| second[i]));
                        }
                    }
                }
            }
        }
    }
}

vectorized! {
    /// [`slice_lanes`] for pairs of rows.
    fn slice_lane_pairs(out: &mut [u32], d_y_mn: &[f32], n: usize, n0: usize, lanes: usize) {
        let zeros = [0.0; LANES];
        for (out, rows) in out.chunks_exact_mut(LANES).zip(d_y_mn.chunks(2 * n)) {
            let first = &rows[n0..n0 + lanes];
            let second = if rows.len() > n { &rows[n + n0..][..lanes] } else { &zeros[..lanes] };
            for ((out, &first), &second) in out.iter_mut().zip(first).zip(second) {
                *out = pair(first, second);
            }
            out[lanes..].fill(0);
        }
    }
}

impl Isa {
    /// Runs `repeats` tiles whose operands stay in the L1 cache and returns the multiply-adds done: with
    /// the caller's clock, the rate that no product of this machine can exceed.
    pub fn peak_products(self, precision: Precision, repeats: usize) -> f64 {
        let a = [0.5f32; ROWS * K_BLOCK];
        let b = [0.25f32; LANES * K_BLOCK];
        let mut c = [0.0f32; ROWS * LANES];
        for _ in 0..repeats {
            let a = A::columns(a.as_ptr(), ROWS);
            // SAFETY: the arrays have the sizes asked for.
            unsafe {
                let (c, b) = (c.as_mut_ptr(), b.as_ptr());
                self.product(precision, c, LANES, a, b, LANES, ROWS, LANES, K_BLOCK, Init::Zero);
            }
            std::hint::black_box(&mut c);
        }
        (repeats * ROWS * LANES * K_BLOCK * precision.terms()) as f64
    }
}
