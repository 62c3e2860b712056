//! Causal attention over ragged rows in prefix trees, in blocks. Reference: `ops/attention.rs`.
//!
//! A row's keys are cut into blocks of 32 by their *position*, so a block means the same in a training
//! batch and in the cache of a decoder, and the two share [`attend`]: scores by one chain over the head's
//! channels, the softmax's denominator as sixteen sums interleaved by position, the weighted values by
//! one chain over the keys, both relative to the largest score so far (`softmax.rs`). A masked key has weight exactly 0 and adds exactly nothing. So a
//! row's bits depend on its own keys alone, not on the rows computed beside it.
//!
//! Scores exist for one chunk of keys at a time, in blocks `[key / 32][row][key % 32]`, which
//! is the pattern that the micro-kernel broadcasts from. Backward computes them again.
//!
//! In bf16 all five products are of pairs: queries and keys, the output's gradient and values along the head's channels, weights and values,
//! scores' gradients and keys along the keys, and what is added to the gradients of keys and values along the query rows. Scores, softmax
//! and sums are f32. Gathering rounds; queries, keys and values are bf16 already (`decoder/layer.rs`), so that the cache, which holds pairs, loses nothing.
//!
//! A head of a row is a line or two of the cache, far from the next row's: whoever reads one asks for the next head's, which the same thread reads next.
//!
//! Letters: `s` key, `d` head size, `dp` head size rounded up to 16, `g` key/value head.

mod backward;
mod cached;
mod softmax;

use std::cell::RefCell;

pub use backward::backward;
pub(crate) use cached::{Feed, forward_cached};
use softmax::{Chunk, Running};

use super::bf16;
use super::tile::{self, A, CUT, Init, STEPS, TILE_ROWS};
use super::vector::vectorized;
use super::{Cpu, Isa, Precision, SharedMut};
use crate::batch::Batch;
use crate::config::{AttentionParams, Heads};
use crate::params::Buffer;

/// Keys in one block.
pub const KEYS: usize = 32;

/// Query tokens of one forward task; each task gathers its keys for itself.
const QUERIES: usize = 512;

/// Blocks of keys whose scores exist at a time; cut by position.
const CHUNK: usize = 4;

/// Pairs of a row in one block of keys.
const KEY_PAIRS: usize = KEYS / 2;

/// A head's size in the scratch and in the cache: whole vectors.
pub fn padded_head(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Words of a head's row: pairs in bf16, in whole blocks of a tile's sums, so that its shape stays.
fn head_words(precision: Precision, d: usize) -> usize {
    match precision {
        Precision::F32 => d,
        Precision::Bf16 => d.next_multiple_of(2 * CUT) / 2,
    }
}

/// Words of a block's keys and of its values.
pub(crate) fn block_words(precision: Precision, d: usize) -> (usize, usize) {
    (head_words(precision, d) * KEYS, KEYS / precision.terms() * padded_head(d))
}

/// One block of keys and values: words, of `w` in a head's row.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// `[w][32]`: channel by channel (or two and two), 32 keys side by side.
    pub(crate) keys_t: *const f32,
    /// `[32][dp]`, or `[16][dp]` of pairs: key by key, padded with zeros.
    pub(crate) values: *const f32,
}

/// Some rows (at most [`TILE_ROWS`]) of one query head, or of several heads at one position.
#[derive(Clone, Copy)]
pub(crate) struct Queries<'a> {
    /// As [`pack`] packs them.
    pub(crate) packed: &'a [f32],
    pub(crate) rows: usize,
    /// Position of the first row.
    pub(crate) position: usize,
    /// 1 if each row is one position later, 0 if all are at the same.
    pub(crate) step: usize,
}

impl Queries<'_> {
    /// The blocks that hold the keys of these rows.
    fn blocks(&self, window: Option<usize>) -> std::ops::Range<usize> {
        let last = self.position + (self.rows - 1) * self.step;
        first_key(self.position, window) / KEYS..last / KEYS + 1
    }

    /// Their chunks, cut by position, wherever the first key is.
    fn chunks(&self, window: Option<usize>) -> impl Iterator<Item = Chunk> {
        let (blocks, &Self { rows, position, step, .. }) = (self.blocks(window), self);
        (blocks.start / CHUNK..blocks.end.div_ceil(CHUNK)).map(move |c| {
            let (start, end) = (blocks.start.max(c * CHUNK), blocks.end.min((c + 1) * CHUNK));
            Chunk { first_key: start * KEYS, blocks: end - start, rows, position, step, window }
        })
    }
}

fn first_key(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Attention of a few rows: writes `out` (`[rows][dp]`), `max` (in powers of two) and `sum` (`[rows]`).
///
/// `scores` and `weights` are scratch; `block` tells where a block of keys lies.
///
/// # Safety
///
/// Every block of the rows' keys must be readable, and zero or finite where it holds no key yet.
unsafe fn attend(
    isa: Isa,
    precision: Precision,
    out: &mut [f32],
    max: &mut [f32],
    sum: &mut [f32],
    queries: Queries<'_>,
    p: AttentionParams,
    head_dim: usize,
    scores: &mut Buffer,
    weights: &mut Buffer,
    block: impl Fn(usize) -> Block,
) {
    let (rows, dp, words) = (queries.rows, padded_head(head_dim), head_words(precision, head_dim));
    let (_, block_values) = block_words(precision, head_dim);
    let stride = rows * KEYS;
    scores.grow(CHUNK * stride);
    weights.grow(CHUNK * stride / 2);
    let a = packed_rows(queries.packed, rows, words);
    let mut running = Running::START;
    for (c, chunk) in queries.chunks(p.window).enumerate() {
        let start = chunk.first_key / KEYS;
        for at in 0..chunk.blocks {
            let keys_t = block(start + at).keys_t;
            let c = scores[at * stride..(at + 1) * stride].as_mut_ptr();
            // SAFETY: `packed` holds `rows` of `w`, the block's keys are `[w][32]`, `c` has `rows` of 32.
            unsafe { isa.product(precision, c, KEYS, a, keys_t, KEYS, rows, KEYS, words, Init::Zero) };
        }
        let pairs = (precision == Precision::Bf16).then_some(&mut weights[..]);
        softmax::weigh(isa, scores, pairs, chunk, p, &mut running);
        if c > 0 {
            for (out_d, &shrunk) in out.chunks_exact_mut(dp).zip(&running.shrunk).filter(|(_, s)| **s != 1.0)
            {
                out_d.iter_mut().for_each(|out| *out *= shrunk);
            }
        }
        // Blocks whose values follow one another are one product: its sums stay in registers.
        let mut at = 0;
        while at < chunk.blocks {
            let values = block(start + at).values;
            let follows =
                |more: usize| block(start + at + more).values == values.wrapping_add(more * block_values);
            let count = (1..chunk.blocks - at).take_while(|&more| follows(more)).count() + 1;
            let (a, k) = score_rows(precision, scores, weights, at, rows, count);
            let init = if c + at == 0 { Init::Zero } else { Init::C };
            // SAFETY: `a` holds `rows` of each block, its values are 32 keys of `dp`, `out` is `[rows][dp]`.
            unsafe { isa.product(precision, out.as_mut_ptr(), dp, a, values, dp, rows, dp, k, init) };
            at += count;
        }
    }
    for (r, out_d) in out.chunks_exact_mut(dp).enumerate() {
        (max[r], sum[r]) = (running.max[r], running.sum(r));
        out_d.iter_mut().for_each(|out| *out /= sum[r]);
    }
}

/// The left operand of `count` blocks' scores from block `at` on, or of their rounded pairs, and its steps.
fn score_rows(
    precision: Precision,
    scores: &[f32],
    pairs: &[f32],
    at: usize,
    rows: usize,
    count: usize,
) -> (A, usize) {
    match precision {
        Precision::F32 => {
            let block = rows * KEYS;
            (A::panels(scores[at * block..].as_ptr(), block), count * KEYS)
        }
        Precision::Bf16 => {
            let block = rows * KEY_PAIRS;
            (A::pair_panels(pairs[at * block..].as_ptr(), block), count * KEY_PAIRS)
        }
    }
}

#[derive(Default)]
struct Scratch {
    packed: Buffer,
    keys_t: Buffer,
    values: Buffer,
    scores: Buffer,
    weights: Buffer,
    out: Buffer,
    turned: Buffer,
    back: backward::Scratch,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// A matrix row by row: floats, which are rounded as they are gathered where products are in bf16, or numbers that were rounded before, as the tape
/// keeps queries, keys and values then.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// As they are.
    Floats(&'a [f32]),
    /// bf16.
    Halves(&'a [u16]),
}

impl Rows<'_> {
    fn len(self) -> usize {
        match self {
            Rows::Floats(x) => x.len(),
            Rows::Halves(x) => x.len(),
        }
    }

    fn number(self, i: usize) -> f32 {
        match self {
            Rows::Floats(x) => x.get(i).copied().unwrap_or(0.0),
            Rows::Halves(x) => x.get(i).map_or(0.0, |&x| bf16::float(x)),
        }
    }
}

/// What is computed in f32 was never rounded.
fn floats(rows: Rows<'_>) -> &[f32] {
    match rows {
        Rows::Floats(x) => x,
        Rows::Halves(_) => unreachable!("attention: products in f32 of numbers kept in bf16"),
    }
}

/// Where the channels of one head lie in a `qkv` row.
#[derive(Clone, Copy)]
struct Columns {
    width: usize,
    start: usize,
    d: usize,
}

impl Columns {
    fn query(shape: Heads, head: usize) -> Self {
        Self { width: shape.qkv_width(), start: head * shape.head_dim, d: shape.head_dim }
    }

    fn key(shape: Heads, g: usize) -> Self {
        Self { start: shape.q_width() + g * shape.head_dim, ..Self::query(shape, 0) }
    }

    fn value(shape: Heads, g: usize) -> Self {
        Self { start: shape.q_width() + shape.kv_width() + g * shape.head_dim, ..Self::query(shape, 0) }
    }

    fn of(self, rows: Rows<'_>, row: usize) -> Rows<'_> {
        match rows {
            Rows::Floats(x) => Rows::Floats(self.slice(x, row)),
            Rows::Halves(x) => Rows::Halves(self.slice(x, row)),
        }
    }

    /// This head of a row. The next one is asked for: the thread reads it next, and a line here and there is nothing that the processor foresees.
    fn slice<T>(self, rows: &[T], row: usize) -> &[T] {
        let at = row * self.width + self.start;
        tile::ask_for(rows.as_ptr().wrapping_add(at + self.d), self.d);
        &rows[at..at + self.d]
    }
}

/// The rows of a segment and its ancestors, by position.
fn path_rows(batch: &Batch, segment: usize) -> Vec<usize> {
    batch.path(segment).into_iter().flat_map(|s| batch.segments[s].rows()).collect()
}

/// Gathers a head's channels of some rows as `[row / 32][w][row % 32]`, zeros at the end.
fn gather_t(
    isa: Isa,
    precision: Precision,
    out: &mut Buffer,
    from: Rows<'_>,
    rows: &[usize],
    columns: Columns,
    line: &mut Buffer,
) {
    let words = head_words(precision, columns.d);
    let blocks = rows.len().div_ceil(KEYS);
    out.grow(blocks * words * KEYS);
    if !rows.len().is_multiple_of(KEYS) {
        out[(blocks - 1) * words * KEYS..blocks * words * KEYS].fill(0.0);
    }
    for (block, rows) in out.chunks_exact_mut(words * KEYS).zip(rows.chunks(KEYS)) {
        match precision {
            Precision::F32 => turn(isa, block, floats(from), rows, columns),
            Precision::Bf16 => {
                line.grow(KEYS * words);
                for (line, &row) in line.chunks_exact_mut(words).zip(rows) {
                    narrow_head(isa, line, columns.of(from, row));
                }
                let lines = bytemuck::cast_slice(&line[..rows.len() * words]);
                bf16::turn_words(isa, bytemuck::cast_slice_mut(block), KEYS, lines, words);
            }
        }
    }
}

/// A head's row, rounded, in its words, zeros in the padding.
fn narrow_head(isa: Isa, words: &mut [f32], x_d: Rows<'_>) {
    let halves: &mut [u16] = bytemuck::cast_slice_mut(words);
    match x_d {
        Rows::Floats(x_d) => bf16::narrow(isa, halves, x_d),
        Rows::Halves(x_d) => halves[..x_d.len()].copy_from_slice(x_d),
    }
    halves[x_d.len()..].fill(0);
}

vectorized! {
    /// Up to 32 rows side by side: `block[d][row]`.
    fn turn(block: &mut [f32], from: &[f32], rows: &[usize], columns: Columns) {
        let block = block.as_chunks_mut::<KEYS>().0;
        let (groups, rest) = rows.as_chunks::<4>();
        for (r, rows) in groups.iter().enumerate() {
            let [x0, x1, x2, x3] = rows.map(|row| columns.slice(from, row));
            for ((((block, &x0), &x1), &x2), &x3) in block.iter_mut().zip(x0).zip(x1).zip(x2).zip(x3) {
                // Four floats are one move.
                block[4 * r..4 * r + 4].copy_from_slice(&[x0, x1, x2, x3]);
            }
        }
        for (r, &row) in rest.iter().enumerate() {
            for (block, &x) in block.iter_mut().zip(columns.slice(from, row)) {
                block[4 * groups.len() + r] = x;
            }
        }
    }
}

/// Gathers a head's channels of some rows as `[row][dp]`, or two rows a line as pairs, zeros in the padding and up to whole blocks.
fn gather(
    isa: Isa,
    precision: Precision,
    out: &mut Buffer,
    from: Rows<'_>,
    rows: &[usize],
    columns: Columns,
) {
    let (d, dp, terms) = (columns.d, padded_head(columns.d), precision.terms());
    let len = rows.len().next_multiple_of(KEYS) / terms * dp;
    out.grow(len);
    out[rows.len().div_ceil(terms) * dp..len].fill(0.0);
    for (out_d, rows) in out.chunks_exact_mut(dp).zip(rows.chunks(terms)) {
        let first = columns.of(from, rows[0]);
        let second = rows.get(1).map(|&row| columns.of(from, row));
        let pairs = bytemuck::cast_slice_mut(&mut out_d[..d]);
        match (precision, first, second) {
            (Precision::F32, first, _) => out_d[..d].copy_from_slice(floats(first)),
            (Precision::Bf16, Rows::Halves(first), Some(Rows::Halves(second))) => {
                bf16::pair_halves(isa, pairs, first, second);
            }
            (Precision::Bf16, Rows::Halves(first), _) => {
                pairs.iter_mut().zip(first).for_each(|(pair, &x)| *pair = u32::from(x));
            }
            (Precision::Bf16, Rows::Floats(first), second) => {
                bf16::pair_rows(isa, pairs, first, second.map(floats));
            }
        }
        out_d[d..].fill(0.0);
    }
}

/// Packs some rows of heads to be multiplied by keys: one after the other, or side by side where they are longer than [`STEPS`].
fn pack<'x>(
    isa: Isa,
    precision: Precision,
    out: &mut Buffer,
    rows: impl ExactSizeIterator<Item = Rows<'x>>,
    d: usize,
) {
    let (count, words) = (rows.len(), head_words(precision, d));
    out.grow(count * words.max(STEPS));
    for (r, x_d) in rows.enumerate() {
        match precision {
            Precision::F32 if words <= STEPS => out[r * STEPS..][..words].copy_from_slice(floats(x_d)),
            Precision::Bf16 if words <= STEPS => narrow_head(isa, &mut out[r * STEPS..][..words], x_d),
            Precision::F32 => (0..words).for_each(|i| out[i * count + r] = x_d.number(i)),
            Precision::Bf16 => {
                for w in 0..words {
                    let pair = bf16::pair(x_d.number(2 * w), x_d.number(2 * w + 1));
                    out[w * count + r] = f32::from_bits(pair);
                }
            }
        }
    }
}

/// What [`pack`] packed.
fn packed_rows(packed: &[f32], count: usize, words: usize) -> A {
    if words <= STEPS { A::rows(packed.as_ptr()) } else { A::columns(packed.as_ptr(), count) }
}

/// Writes `out_nq` (`[n, h*d]`) and the softmax's `max_nh` and `sum_nh`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn forward(
    cpu: &Cpu,
    precision: Precision,
    out_nq: &mut [f32],
    max_nh: &mut [f32],
    sum_nh: &mut [f32],
    qkv: Rows<'_>,
    batch: &Batch,
    shape: Heads,
    p: AttentionParams,
) {
    check(out_nq.len(), max_nh.len(), sum_nh.len(), qkv.len(), batch, shape);
    let (isa, d, dp, h) = (cpu.isa(), shape.head_dim, padded_head(shape.head_dim), shape.heads);
    let (block_keys, block_values) = block_words(precision, d);
    let tile_rows = isa.tile_rows(precision);
    let mut tasks = Vec::new();
    for (index, segment) in batch.segments.iter().enumerate() {
        for t0 in (0..segment.len).step_by(QUERIES) {
            tasks.extend((0..shape.kv_heads).map(|g| (index, g, t0)));
        }
    }
    let (out_nq, max_nh, sum_nh) = (SharedMut::new(out_nq), SharedMut::new(max_nh), SharedMut::new(sum_nh));
    cpu.for_each(tasks.len(), |task| {
        let (index, g, t0) = tasks[task];
        let segment = batch.segments[index];
        let t_end = segment.len.min(t0 + QUERIES);
        let mut rows = path_rows(batch, index);
        rows.truncate(segment.position + t_end);
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { packed, keys_t, values, scores, weights, out, turned, .. } = scratch;
            gather_t(isa, precision, keys_t, qkv, &rows, Columns::key(shape, g), turned);
            gather(isa, precision, values, qkv, &rows, Columns::value(shape, g));
            out.grow(tile_rows * dp);
            for head in (0..h).filter(|&head| shape.kv_head(head) == g) {
                for t in (t0..t_end).step_by(tile_rows) {
                    let count = tile_rows.min(t_end - t);
                    let first_row = segment.start + t;
                    let query = Columns::query(shape, head);
                    let rows = (first_row..first_row + count).map(|row| query.of(qkv, row));
                    pack(isa, precision, packed, rows, d);
                    let queries = Queries { packed, rows: count, position: segment.position + t, step: 1 };
                    let (mut max, mut sum) = ([0.0; TILE_ROWS], [0.0; TILE_ROWS]);
                    let block = |b: usize| Block {
                        keys_t: keys_t[b * block_keys..].as_ptr(),
                        values: values[b * block_values..].as_ptr(),
                    };
                    // SAFETY: the gathered blocks cover every key of these rows, zeros behind the last.
                    unsafe {
                        attend(
                            isa,
                            precision,
                            &mut out[..count * dp],
                            &mut max[..count],
                            &mut sum[..count],
                            queries,
                            p,
                            d,
                            scores,
                            weights,
                            block,
                        );
                    }
                    for r in 0..count {
                        let row = first_row + r;
                        // SAFETY: this head of this row belongs to this task.
                        let (out_d, max_1, sum_1) = unsafe {
                            (
                                out_nq.slice((row * h + head) * d..(row * h + head + 1) * d),
                                max_nh.slice(row * h + head..row * h + head + 1),
                                sum_nh.slice(row * h + head..row * h + head + 1),
                            )
                        };
                        tile::ask_for(out_d.as_ptr().wrapping_add(d), d);
                        out_d.copy_from_slice(&out[r * dp..][..d]);
                        max_1[0] = max[r];
                        sum_1[0] = sum[r];
                    }
                }
            }
        });
    });
}

fn check(out_len: usize, max_len: usize, sum_len: usize, qkv_len: usize, batch: &Batch, shape: Heads) {
    let n = batch.tokens();
    assert_eq!(qkv_len, n * shape.qkv_width(), "attention: qkv is [{n}, {}]", shape.qkv_width());
    assert_eq!(out_len, n * shape.q_width(), "attention: out is [{n}, {}]", shape.q_width());
    assert_eq!((max_len, sum_len), (n * shape.heads, n * shape.heads), "attention: max and sum are [{n}, h]");
}
