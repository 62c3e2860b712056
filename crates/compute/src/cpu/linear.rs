//! Linear maps `y = w x + b`, forward and backward, with the weights in panels (see `params.rs`).
//!
//! Reference: `ops/linear.rs`, which this reproduces to the bit. The three products of a linear map are
//! the micro-kernel of `tile.rs` with its operands turned three ways, so that no weight is ever packed:
//!
//! | product | lanes | broadcast | written |
//! |---|---|---|---|
//! | `y_mn  = b_n + sum_k x_mk w_nk` | outputs `n`, a panel of `w` | `x`, packed in tiles of rows | rows of `y` |
//! | `d_x_mk += sum_n d_y_mn w_nk` | rows `m`, `d_y` transposed | `w`, its panels read sideways | `d_x` transposed, then rows |
//! | `d_w_nk += sum_m d_y_mn x_mk` | outputs `n`, a slice of `d_y` | `x`, packed in tiles of channels | a panel of `d_w` |
//!
//! Not here: what is done with `y` (activations, norms), bf16.

use std::cell::RefCell;

use super::tile::{A, Init, ROWS};
use super::{Cpu, Isa, SharedMut};
use crate::params::{Buffer, LANES};

/// Length of the blocks in which a sum is walked: a panel's block (16 KiB) and a tile's block (6 KiB)
/// stay in a 32 KiB L1 cache.
const K_BLOCK: usize = 128;

/// Rows of one forward task: eight tiles share each panel's block.
const ROW_BLOCK: usize = 8 * ROWS;

/// Below this many rows the tiles broadcast straight from `x`, without packing.
const DIRECT_ROWS_MAX: usize = 1;

thread_local! {
    /// Packed operands of the task that this thread runs.
    static SCRATCH: RefCell<(Buffer, Buffer)> = RefCell::default();
}

/// Whether an output is overwritten or added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// `y = …`
    Set,
    /// `y += …`: the sum starts from what is there. Excludes a bias.
    Add,
}

/// `y_mn = bias_n + x_mk w_nk` (or added to what is there), `w` in panels.
///
/// # Panics
///
/// If the shapes do not agree, or if a bias is to be added to an existing `y`.
pub fn forward(
    cpu: &Cpu,
    y_mn: &mut [f32],
    x_mk: &[f32],
    w: &[f32],
    bias_n: Option<&[f32]>,
    n: usize,
    k: usize,
    write: Write,
) {
    let m = rows_of("linear forward", y_mn.len(), n, x_mk.len(), k, w.len());
    if let Some(bias_n) = bias_n {
        assert_eq!(bias_n.len(), n, "linear forward: one bias an output");
        assert_eq!(write, Write::Set, "linear forward: a bias starts the sum");
    }
    let isa = cpu.isa();
    let panels = n.div_ceil(LANES);
    let row_blocks = m.div_ceil(ROW_BLOCK);
    let groups = panel_groups(cpu, panels, row_blocks);
    let y = SharedMut::new(y_mn);
    cpu.for_each(row_blocks * groups, |task| {
        let (row_block, group) = (task / groups, task % groups);
        let row0 = row_block * ROW_BLOCK;
        let rows = ROW_BLOCK.min(m - row0);
        let first_panel = group * panels / groups;
        let last_panel = (group + 1) * panels / groups;
        SCRATCH.with_borrow_mut(|(packed, _)| {
            for k0 in (0..k).step_by(K_BLOCK) {
                let k_len = K_BLOCK.min(k - k0);
                if rows > DIRECT_ROWS_MAX {
                    packed.grow(ROW_BLOCK * K_BLOCK);
                    pack_rows(packed, &x_mk[row0 * k..(row0 + rows) * k], k, k0, k_len);
                }
                for panel in first_panel..last_panel {
                    let n0 = panel * LANES;
                    let lanes = LANES.min(n - n0);
                    let init = match (k0, write, bias_n) {
                        (1.., _, _) | (0, Write::Add, _) => Init::C,
                        (0, Write::Set, Some(bias_n)) => Init::Bias(bias_n[n0..].as_ptr()),
                        (0, Write::Set, None) => Init::Zero,
                    };
                    let b = w[(panel * k + k0) * LANES..].as_ptr();
                    for i in (0..rows).step_by(ROWS) {
                        let tile_rows = ROWS.min(rows - i);
                        let a = if rows > DIRECT_ROWS_MAX {
                            A::columns(packed[i * k_len..].as_ptr(), tile_rows)
                        } else {
                            A::columns(x_mk[(row0 + i) * k + k0..].as_ptr(), 1)
                        };
                        let c = y.pointer((row0 + i) * n + n0);
                        // SAFETY: the tile of `y` belongs to this task; the panel holds `k_len` rows
                        // of 32 from `k0`; the packed block holds `k_len` columns of this tile's rows.
                        unsafe { isa.product(c, n, a, b, LANES, tile_rows, lanes, k_len, init) };
                    }
                }
            }
        });
    });
}

/// `d_x_mk += d_y_mn w_nk`, `w` in panels.
///
/// # Panics
///
/// If the shapes do not agree.
pub fn backward_input(cpu: &Cpu, d_x_mk: &mut [f32], d_y_mn: &[f32], w: &[f32], n: usize, k: usize) {
    let m = rows_of("linear backward_input", d_y_mn.len(), n, d_x_mk.len(), k, w.len());
    let isa = cpu.isa();
    let row_blocks = m.div_ceil(LANES);
    // Few rows: the channels are split too, each part of its own transposed rows of `d_y`.
    let splits = (2 * cpu.threads()).div_ceil(row_blocks.max(1)).clamp(1, k.div_ceil(4 * ROWS).max(1));
    let d_x = SharedMut::new(d_x_mk);
    cpu.for_each(row_blocks * splits, |task| {
        let (row_block, split) = (task / splits, task % splits);
        let row0 = row_block * LANES;
        let rows = LANES.min(m - row0);
        let c0 = split * k / splits;
        let c_end = (split + 1) * k / splits;
        SCRATCH.with_borrow_mut(|(d_y_t, d_x_t)| {
            d_y_t.grow(K_BLOCK * LANES);
            d_x_t.grow(k * LANES);
            for r in 0..rows {
                // SAFETY: these rows and channels of `d_x` belong to this task.
                let d_x_k = unsafe { d_x.slice((row0 + r) * k + c0..(row0 + r) * k + c_end) };
                for (c, &d) in (c0..c_end).zip(&*d_x_k) {
                    d_x_t[c * LANES + r] = d;
                }
            }
            for n0 in (0..n).step_by(K_BLOCK) {
                let n_len = K_BLOCK.min(n - n0);
                for j in 0..n_len {
                    let lanes = &mut d_y_t[j * LANES..(j + 1) * LANES];
                    for r in 0..rows {
                        lanes[r] = d_y_mn[(row0 + r) * n + n0 + j];
                    }
                    lanes[rows..].fill(0.0);
                }
                for c in (c0..c_end).step_by(ROWS) {
                    let tile = ROWS.min(c_end - c);
                    let a = A::panels(w[(n0 / LANES * k + c) * LANES..].as_ptr(), k * LANES);
                    let out = d_x_t[c * LANES..].as_mut_ptr();
                    let b = d_y_t.as_ptr();
                    // SAFETY: both scratch blocks are this thread's; the panels hold outputs
                    // `n0..n0 + n_len` (K_BLOCK is a multiple of 32) of channels `c..c + tile`.
                    unsafe { isa.product(out, LANES, a, b, LANES, tile, LANES, n_len, Init::C) };
                }
            }
            for r in 0..rows {
                // SAFETY: as above.
                let d_x_k = unsafe { d_x.slice((row0 + r) * k + c0..(row0 + r) * k + c_end) };
                for (c, d) in (c0..c_end).zip(d_x_k) {
                    *d = d_x_t[c * LANES + r];
                }
            }
        });
    });
}

/// `d_w_nk += d_y_mn x_mk` in panels, and `d_bias_n += d_y_mn`.
///
/// # Panics
///
/// If the shapes do not agree.
pub fn backward_weight(
    cpu: &Cpu,
    d_w: &mut [f32],
    d_bias_n: Option<&mut [f32]>,
    d_y_mn: &[f32],
    x_mk: &[f32],
    n: usize,
    k: usize,
) {
    let m = rows_of("linear backward_weight", d_y_mn.len(), n, x_mk.len(), k, d_w.len());
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
            for m0 in (0..m).step_by(K_BLOCK) {
                let m_len = K_BLOCK.min(m - m0);
                pack_channels(x_packed, &x_mk[m0 * k..(m0 + m_len) * k], k);
                for panel in first_panel..last_panel {
                    let n0 = panel * LANES;
                    let lanes = LANES.min(n - n0);
                    for j in 0..m_len {
                        let row = &mut d_y_packed[j * LANES..(j + 1) * LANES];
                        row[..lanes].copy_from_slice(&d_y_mn[(m0 + j) * n + n0..][..lanes]);
                        row[lanes..].fill(0.0);
                    }
                    for c in (0..k).step_by(ROWS) {
                        let tile = ROWS.min(k - c);
                        let a = A::columns(x_packed[c * m_len..].as_ptr(), tile);
                        let out = d_w.pointer((panel * k + c) * LANES);
                        let b = d_y_packed.as_ptr();
                        // SAFETY: the panel belongs to this task; the packed blocks hold `m_len` rows.
                        unsafe { isa.product(out, LANES, a, b, LANES, tile, LANES, m_len, Init::C) };
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

fn rows_of(op: &str, y_len: usize, n: usize, x_len: usize, k: usize, w_len: usize) -> usize {
    let m = y_len / n;
    assert_eq!(y_len, m * n, "{op}: y is [m, {n}]");
    assert_eq!(x_len, m * k, "{op}: x is [{m}, {k}]");
    assert_eq!(w_len, n.next_multiple_of(LANES) * k, "{op}: w is [{n}, {k}] in panels");
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

/// Packs columns `k0..k0 + k_len` of rows of `x` into tiles: `packed[tile][k][row in tile]`.
fn pack_rows(packed: &mut [f32], x_rk: &[f32], k: usize, k0: usize, k_len: usize) {
    for (tile, x_tile) in x_rk.chunks(ROWS * k).enumerate() {
        let rows = x_tile.len() / k;
        let out = &mut packed[tile * ROWS * k_len..][..rows * k_len];
        if rows == ROWS {
            for (j, out_row) in out.chunks_exact_mut(ROWS).enumerate() {
                for r in 0..ROWS {
                    out_row[r] = x_tile[r * k + k0 + j];
                }
            }
        } else {
            for (j, out_row) in out.chunks_exact_mut(rows).enumerate() {
                for (r, out) in out_row.iter_mut().enumerate() {
                    *out = x_tile[r * k + k0 + j];
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
        for (out, x_k) in out.chunks_exact_mut(tile).zip(x_rk.chunks_exact(k)) {
            out.copy_from_slice(&x_k[c..c + tile]);
        }
    }
}

impl Isa {
    /// Runs `repeats` tiles whose operands stay in the L1 cache and returns the multiply-adds done: with
    /// the caller's clock, the rate that no product of this machine can exceed.
    pub fn peak_products(self, repeats: usize) -> f64 {
        let a = [0.5f32; ROWS * K_BLOCK];
        let b = [0.25f32; LANES * K_BLOCK];
        let mut c = [0.0f32; ROWS * LANES];
        for _ in 0..repeats {
            let a = A::columns(a.as_ptr(), ROWS);
            // SAFETY: the arrays have the sizes asked for.
            unsafe {
                self.product(c.as_mut_ptr(), LANES, a, b.as_ptr(), LANES, ROWS, LANES, K_BLOCK, Init::Zero);
            }
            std::hint::black_box(&mut c);
        }
        (repeats * ROWS * LANES * K_BLOCK) as f64
    }
}
