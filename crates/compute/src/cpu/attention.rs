//! Causal attention over ragged rows in prefix trees, in blocks. Reference: `ops/attention.rs`.
//!
//! A row's keys are cut into blocks of 32 by their *position*, so a block means the same in a training
//! batch and in the cache of a decoder, and the two share [`attend`]: scores by one chain over the head's
//! channels, the softmax's denominator as sixteen sums interleaved by position, the weighted values by
//! one chain over the keys. A masked key has weight exactly 0 and adds exactly nothing. So a row's bits
//! depend on its own keys alone, not on the rows computed beside it.
//!
//! At most `[64, keys]` scores exist at a time for each thread, in blocks `[key / 32][row][key % 32]`, which
//! is the pattern that the micro-kernel broadcasts from. Backward computes them again.
//!
//! In bf16 all five products are of pairs: queries and keys, the output's gradient and values along the head's channels, weights and values,
//! scores' gradients and keys along the keys, and what is added to the gradients of keys and values along the query rows. Scores, softmax
//! and sums are f32. Gathering rounds; queries, keys and values are bf16 already (`decoder/layer.rs`), so that the cache, which holds pairs, loses nothing.
//!
//! Letters: `s` key, `d` head size, `dp` head size rounded up to 16, `g` key/value head.

use std::cell::RefCell;

use super::bf16;
use super::tile::{A, CUT, Init, STEPS, TILE_ROWS};
use super::vector::{Lanes, exp, vectorized};
use super::{Cpu, Isa, Precision, SharedMut};
use crate::batch::Batch;
use crate::cache::{KvCache, SequenceId};
use crate::config::{AttentionParams, Heads};
use crate::params::Buffer;

/// Keys in one block.
pub const KEYS: usize = 32;

/// Query tokens of one forward task; each task gathers its keys for itself.
const QUERIES: usize = 192;

/// Query rows whose scores backward holds at a time: whole tiles.
fn backward_rows(isa: Isa, precision: Precision) -> usize {
    let tile = isa.tile_rows(precision);
    (BACKWARD_ROWS_MIN).next_multiple_of(tile)
}

/// The least of them.
const BACKWARD_ROWS_MIN: usize = 48;

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
    fn position_of(&self, row: usize) -> usize {
        self.position + row * self.step
    }

    /// The blocks that hold the keys of these rows.
    fn blocks(&self, window: Option<usize>) -> std::ops::Range<usize> {
        let last = self.position_of(self.rows - 1);
        first_key(self.position, window) / KEYS..last / KEYS + 1
    }
}

fn first_key(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Attention of a few rows: writes `out` (`[rows][dp]`), `max` and `sum` (`[rows]`).
///
/// `scores` is scratch; `block` tells where a block of keys lies.
///
/// # Safety
///
/// Every block of the rows' keys must be readable, and zero or finite where it holds no key yet.
pub(crate) unsafe fn attend(
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
    let blocks = queries.blocks(p.window);
    scores.grow(blocks.len() * rows * KEYS);
    let stride = rows * KEYS;
    for (at, b) in blocks.clone().enumerate() {
        let c = scores[at * stride..(at + 1) * stride].as_mut_ptr();
        let a = packed_rows(queries.packed, rows, words);
        // SAFETY: `packed` holds `rows` of `w`, the block's keys are `[w][32]`, `c` has `rows` of 32.
        unsafe { isa.product(precision, c, KEYS, a, block(b).keys_t, KEYS, rows, KEYS, words, Init::Zero) };
    }
    for r in 0..rows {
        let position = queries.position_of(r);
        let row = Row {
            stride,
            offset: r * KEYS,
            first_block: blocks.start,
            blocks: blocks.len(),
            keys: first_key(position, p.window)..position + 1,
        };
        (max[r], sum[r]) = softmax_row(isa, scores, row, p);
    }
    if precision == Precision::Bf16 {
        weights.grow(blocks.len() * rows * KEY_PAIRS);
        bf16::narrow(isa, bytemuck::cast_slice_mut(weights), &scores[..blocks.len() * stride]);
    }
    let (_, block_values) = block_words(precision, head_dim);
    // Blocks whose values follow one another are one product: its sums stay in registers.
    let mut at = 0;
    while at < blocks.len() {
        let values = block(blocks.start + at).values;
        let follows =
            |more: usize| block(blocks.start + at + more).values == values.wrapping_add(more * block_values);
        let count = (1..blocks.len() - at).take_while(|&more| follows(more)).count() + 1;
        let (a, k) = score_rows(precision, scores, weights, at, rows, count);
        let init = if at == 0 { Init::Zero } else { Init::C };
        // SAFETY: `a` holds `rows` of each block, its values are 32 keys of `dp`, `out` is `[rows][dp]`.
        unsafe { isa.product(precision, out.as_mut_ptr(), dp, a, values, dp, rows, dp, k, init) };
        at += count;
    }
    for (out_d, &sum) in out.chunks_exact_mut(dp).zip(&*sum) {
        for out in out_d {
            *out /= sum;
        }
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
        Precision::F32 => (A::panels(scores[at * rows * KEYS..].as_ptr(), rows * KEYS), count * KEYS),
        Precision::Bf16 => {
            let block = rows * KEY_PAIRS;
            (A::pair_panels(pairs[at * block..].as_ptr(), block), count * KEY_PAIRS)
        }
    }
}

/// Where a row's scores lie, and which keys it sees.
#[derive(Clone)]
struct Row {
    stride: usize,
    offset: usize,
    first_block: usize,
    blocks: usize,
    keys: std::ops::Range<usize>,
}

impl Row {
    /// The lanes of block `at` that the row sees.
    #[inline(always)]
    fn seen(&self, at: usize) -> std::ops::Range<usize> {
        let start = (self.first_block + at) * KEYS;
        let low = self.keys.start.saturating_sub(start).min(KEYS);
        let high = self.keys.end.saturating_sub(start).min(KEYS);
        low..high.max(low)
    }
}

vectorized! {
    /// Raw products become `e^(score - max)`, 0 where the row does not see; returns `max` and the sum.
    fn softmax_row(scores: &mut [f32], row: Row, p: AttentionParams) -> (f32, f32) {
        let mut max = f32::NEG_INFINITY;
        for at in 0..row.blocks {
            let block = block_mut(scores, &row, at);
            score_block(block, p);
            for s in row.seen(at) {
                max = max.max(block[s]);
            }
        }
        let mut lanes = Lanes::ZERO;
        for at in 0..row.blocks {
            let seen = row.seen(at);
            let block = block_mut(scores, &row, at);
            for s in block.iter_mut() {
                *s = exp(*s - max);
            }
            block[..seen.start].fill(0.0);
            block[seen.end..].fill(0.0);
            for half in 0..2 {
                for i in 0..16 {
                    lanes.0[i] += block[half * 16 + i];
                }
            }
        }
        (max, lanes.total())
    }
}

#[inline(always)]
fn block_mut<'a>(scores: &'a mut [f32], row: &Row, at: usize) -> &'a mut [f32; KEYS] {
    let start = at * row.stride + row.offset;
    scores[start..start + KEYS].first_chunk_mut().expect("a block is 32 scores")
}

/// `q·k` becomes a score: scaled and softly capped.
#[inline(always)]
fn score_block(block: &mut [f32; KEYS], p: AttentionParams) {
    for s in block.iter_mut() {
        *s *= p.scale;
    }
    if let Some(cap) = p.softcap {
        for s in block.iter_mut() {
            *s = cap * (*s / cap).tanh();
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
    keys: Buffer,
    values_t: Buffer,
    d_scores: Buffer,
    d_keys: Buffer,
    d_values: Buffer,
    rows: Buffer,
    d_rows: Buffer,
    turned: Buffer,
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
        let at = row * self.width + self.start;
        match rows {
            Rows::Floats(x) => Rows::Floats(&x[at..at + self.d]),
            Rows::Halves(x) => Rows::Halves(&x[at..at + self.d]),
        }
    }

    fn of_floats(self, rows: &[f32], row: usize) -> &[f32] {
        &rows[row * self.width + self.start..][..self.d]
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
            let [x0, x1, x2, x3] = rows.map(|row| columns.of_floats(from, row));
            for ((((block, &x0), &x1), &x2), &x3) in block.iter_mut().zip(x0).zip(x1).zip(x2).zip(x3) {
                // Four floats are one move.
                block[4 * r..4 * r + 4].copy_from_slice(&[x0, x1, x2, x3]);
            }
        }
        for (r, &row) in rest.iter().enumerate() {
            for (block, &x) in block.iter_mut().zip(columns.of_floats(from, row)) {
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
        for g in 0..shape.kv_heads {
            tasks.extend((0..segment.len).step_by(QUERIES).map(|t0| (index, g, t0)));
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
                        out_d.copy_from_slice(&out[r * dp..][..d]);
                        max_1[0] = max[r];
                        sum_1[0] = sum[r];
                    }
                }
            }
        });
    });
}

/// Adds into `d_qkv`.
///
/// A task owns one key/value head of one tree, so a prompt's gradient is summed over its children in
/// their order.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn backward(
    cpu: &Cpu,
    precision: Precision,
    d_qkv: &mut [f32],
    d_out_nq: &[f32],
    out_nq: &[f32],
    max_nh: &[f32],
    sum_nh: &[f32],
    qkv: Rows<'_>,
    batch: &Batch,
    shape: Heads,
    p: AttentionParams,
) {
    check(out_nq.len(), max_nh.len(), sum_nh.len(), qkv.len(), batch, shape);
    assert_eq!(d_qkv.len(), qkv.len(), "attention: d_qkv is like qkv");
    assert_eq!(d_out_nq.len(), out_nq.len(), "attention: d_out is like out");
    let mut trees: Vec<Vec<usize>> = Vec::new();
    let mut tree_of = Vec::with_capacity(batch.segments.len());
    for (index, segment) in batch.segments.iter().enumerate() {
        let tree = match segment.parent {
            Some(parent) => tree_of[parent],
            None => {
                trees.push(Vec::new());
                trees.len() - 1
            }
        };
        trees[tree].push(index);
        tree_of.push(tree);
    }
    let d_qkv_shared = SharedMut::new(d_qkv);
    cpu.for_each(trees.len() * shape.kv_heads, |task| {
        let (tree, g) = (&trees[task / shape.kv_heads], task % shape.kv_heads);
        SCRATCH.with_borrow_mut(|scratch| {
            for &index in tree.iter().filter(|&&index| batch.segments[index].len > 0) {
                let saved = Saved { d_out_nq, out_nq, max_nh, sum_nh, qkv };
                backward_segment(
                    cpu.isa(),
                    precision,
                    &d_qkv_shared,
                    saved,
                    batch,
                    index,
                    g,
                    shape,
                    p,
                    scratch,
                );
            }
        });
    });
}

#[derive(Clone, Copy)]
struct Saved<'a> {
    d_out_nq: &'a [f32],
    out_nq: &'a [f32],
    max_nh: &'a [f32],
    sum_nh: &'a [f32],
    qkv: Rows<'a>,
}

fn backward_segment(
    isa: Isa,
    precision: Precision,
    d_qkv: &SharedMut<'_, f32>,
    saved: Saved<'_>,
    batch: &Batch,
    index: usize,
    g: usize,
    shape: Heads,
    p: AttentionParams,
    scratch: &mut Scratch,
) {
    let (d, dp, h) = (shape.head_dim, padded_head(shape.head_dim), shape.heads);
    let words = head_words(precision, d);
    let (block_keys, block_values) = block_words(precision, d);
    let tile_rows = isa.tile_rows(precision);
    let segment = batch.segments[index];
    let path = path_rows(batch, index);
    let Scratch {
        packed,
        keys_t,
        values: _,
        scores,
        weights: pairs,
        out: d_q,
        keys,
        values_t,
        d_scores,
        d_keys,
        d_values,
        rows,
        d_rows,
        turned,
    } = scratch;
    let (key, value) = (Columns::key(shape, g), Columns::value(shape, g));
    gather_t(isa, precision, keys_t, saved.qkv, &path, key, turned);
    gather(isa, precision, keys, saved.qkv, &path, key);
    gather_t(isa, precision, values_t, saved.qkv, &path, value, turned);
    let padded = path.len().next_multiple_of(KEYS);
    d_keys.grow(padded * dp);
    d_values.grow(padded * dp);
    d_keys[..padded * dp].fill(0.0);
    d_values[..padded * dp].fill(0.0);
    d_q.grow(tile_rows * dp);
    let rows_held = backward_rows(isa, precision);

    for head in (0..h).filter(|&head| shape.kv_head(head) == g) {
        let query = Columns::query(shape, head);
        let out_columns = Columns { width: shape.q_width(), start: head * d, d };
        for t in (0..segment.len).step_by(rows_held) {
            let count = rows_held.min(segment.len - t);
            let (first_row, position) = (segment.start + t, segment.position + t);
            let all = Queries { packed: &[], rows: count, position, step: 1 };
            let blocks = all.blocks(p.window);
            let stride = count * KEYS;
            scores.grow(blocks.len() * stride);
            d_scores.grow(blocks.len() * stride);
            for i in (0..count).step_by(tile_rows) {
                let tile = tile_rows.min(count - i);
                for (at, b) in blocks.clone().enumerate() {
                    let seen = b * KEYS < position + i + tile;
                    let c = at * stride + i * KEYS;
                    if !seen {
                        scores[c..c + tile * KEYS].fill(0.0);
                        d_scores[c..c + tile * KEYS].fill(0.0);
                    }
                }
                let seen_blocks = blocks.start..(position + i + tile - 1) / KEYS + 1;
                for (from, columns, to, other) in [
                    (saved.qkv, query, &mut *scores, &*keys_t),
                    (Rows::Floats(saved.d_out_nq), out_columns, &mut *d_scores, &*values_t),
                ] {
                    let first = first_row + i;
                    pack(isa, precision, packed, (first..first + tile).map(|row| columns.of(from, row)), d);
                    for (at, b) in seen_blocks.clone().enumerate() {
                        let c = to[at * stride + i * KEYS..][..tile * KEYS].as_mut_ptr();
                        let a = packed_rows(packed, tile, words);
                        let block = other[b * block_keys..][..block_keys].as_ptr();
                        // SAFETY: as in `attend`.
                        unsafe {
                            isa.product(precision, c, KEYS, a, block, KEYS, tile, KEYS, words, Init::Zero)
                        };
                    }
                }
                for r in i..i + tile {
                    let (row, position) = (first_row + r, position + r);
                    let place = Row {
                        stride,
                        offset: r * KEYS,
                        first_block: blocks.start,
                        blocks: seen_blocks.len(),
                        keys: first_key(position, p.window)..position + 1,
                    };
                    let (d_out_d, out_d) = (
                        out_columns.of_floats(saved.d_out_nq, row),
                        out_columns.of_floats(saved.out_nq, row),
                    );
                    let softmax = (saved.max_nh[row * h + head], saved.sum_nh[row * h + head]);
                    d_scores_row(isa, scores, d_scores, place, p, softmax, d_out_d, out_d);
                }
                // forward was: z = q·k, out = softmax(score(z)) v
                // so now: d_q += d_z k
                let b = keys[blocks.start * block_values..].as_ptr();
                let (a, k) = match precision {
                    Precision::F32 => {
                        (A::panels(d_scores[i * KEYS..].as_ptr(), stride), seen_blocks.len() * KEYS)
                    }
                    Precision::Bf16 => {
                        pairs.grow(seen_blocks.len() * tile * KEY_PAIRS);
                        for at in 0..seen_blocks.len() {
                            let pairs = &mut pairs[at * tile * KEY_PAIRS..][..tile * KEY_PAIRS];
                            let d_scores = &d_scores[at * stride + i * KEYS..][..tile * KEYS];
                            bf16::narrow(isa, bytemuck::cast_slice_mut(pairs), d_scores);
                        }
                        score_rows(precision, d_scores, pairs, 0, tile, seen_blocks.len())
                    }
                };
                // SAFETY: the scores of these rows cover `seen_blocks`, the keys are `[s][dp]`.
                unsafe { isa.product(precision, d_q.as_mut_ptr(), dp, a, b, dp, tile, dp, k, Init::Zero) };
                for r in 0..tile {
                    let at = (first_row + i + r) * query.width + query.start;
                    // SAFETY: this head of this row belongs to this task.
                    let d_q_row = unsafe { d_qkv.slice(at..at + d) };
                    for (d_q_row, &d_q) in d_q_row.iter_mut().zip(&d_q[r * dp..]) {
                        *d_q_row += d_q;
                    }
                }
            }
            // d_k += d_z^T q, d_v += p^T d_out
            let own: Vec<usize> = (first_row..first_row + count).collect();
            gather(isa, precision, rows, saved.qkv, &own, query);
            gather(isa, precision, d_rows, Rows::Floats(saved.d_out_nq), &own, out_columns);
            for (at, b) in blocks.enumerate() {
                for (left, right, to) in
                    [(&*d_scores, &*rows, &mut *d_keys), (&*scores, &*d_rows, &mut *d_values)]
                {
                    let c = to[b * KEYS * dp..][..KEYS * dp].as_mut_ptr();
                    let left = &left[at * stride..][..stride];
                    let (a, k) = match precision {
                        Precision::F32 => (A::columns(left.as_ptr(), KEYS), count),
                        Precision::Bf16 => turn_scores(isa, turned, left),
                    };
                    // SAFETY: the block's scores are `[count][32]`, the rows `[count][dp]` and zeros up to whole blocks.
                    unsafe { isa.product(precision, c, dp, a, right.as_ptr(), dp, KEYS, dp, k, Init::C) };
                }
            }
        }
    }
    for (from, columns) in [(&*d_keys, key), (&*d_values, value)] {
        for (&row, from_d) in path.iter().zip(from.chunks_exact(dp)) {
            let at = row * columns.width + columns.start;
            // SAFETY: this head of every row of the tree belongs to this task.
            let d = unsafe { d_qkv.slice(at..at + d) };
            for (d, &from) in d.iter_mut().zip(from_d) {
                *d += from;
            }
        }
    }
}

/// A block's scores key by key, pairs of query rows, zeros up to whole blocks of sums; and their number.
fn turn_scores(isa: Isa, turned: &mut Buffer, scores: &[f32]) -> (A, usize) {
    let (rows, pairs) = (scores.len() / KEYS, scores.len().div_ceil(2 * KEYS));
    let steps = pairs.next_multiple_of(isa.cut());
    turned.grow(KEYS * STEPS);
    assert!(steps <= STEPS, "attention: {rows} query rows at a time");
    let words: &mut [u32] = bytemuck::cast_slice_mut(&mut turned[..KEYS * STEPS]);
    // SAFETY: 32 keys of `STEPS` words, a multiple of sixteen.
    unsafe { bf16::turn_rows(isa, words.as_mut_ptr(), STEPS, KEYS, scores, KEYS, 0) };
    (A::rows(turned.as_ptr()), steps)
}

vectorized! {
    /// Raw products `z` become probabilities, and `d_out·v` becomes `d_z`.
    fn d_scores_row(
        scores: &mut [f32],
        d_scores: &mut [f32],
        row: Row,
        p: AttentionParams,
        softmax: (f32, f32),
        d_out_d: &[f32],
        out_d: &[f32],
    ) {
        let (max, sum) = softmax;
        let dot = super::vector::sum2(d_out_d, out_d, |acc, a, b| a.mul_add(b, acc));
        for at in 0..row.blocks {
            let seen = row.seen(at);
            let z = block_mut(scores, &row, at);
            let d = block_mut(d_scores, &row, at);
            score_block(z, p);
            for s in 0..KEYS {
                let probability = exp(z[s] - max) / sum;
                // forward was: out = sum_s p_s v_s, p = softmax(score), score = cap tanh(scale z / cap)
                // so now: d_score = p (d_out·v - d_out·out), d_z = scale (1 - (score / cap)^2) d_score
                let slope = p.softcap.map_or(1.0, |cap| 1.0 - (z[s] / cap) * (z[s] / cap));
                d[s] = probability * (d[s] - dot) * slope * p.scale;
                z[s] = probability;
            }
            for block in [z, d] {
                block[..seen.start].fill(0.0);
                block[seen.end..].fill(0.0);
            }
        }
    }
}

/// One sequence's new tokens in a decoding step: rows `start..start + len` at `position..`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed {
    pub(crate) sequence: SequenceId,
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) position: usize,
}

/// Puts the keys and values of new rows into the cache.
pub(crate) fn store(cache: &mut KvCache, qkv: Rows<'_>, feeds: &[Feed], layer: usize, shape: Heads) {
    let (dp, precision) = (padded_head(shape.head_dim), cache.precision());
    for feed in feeds {
        for g in 0..shape.kv_heads {
            for t in 0..feed.len {
                let position = feed.position + t;
                let lane = position % KEYS;
                let (page, keys_at, values_at) = cache.place(feed.sequence, position / KEYS, layer, g);
                let page = cache.page_mut(page);
                let row = feed.start + t;
                let keys = Columns::key(shape, g).of(qkv, row);
                let values = Columns::value(shape, g).of(qkv, row);
                match (precision, keys, values) {
                    (Precision::Bf16, Rows::Halves(keys), Rows::Halves(values)) => {
                        let halves: &mut [u16] = bytemuck::cast_slice_mut(page);
                        for (i, &x) in keys.iter().enumerate() {
                            halves[2 * (keys_at + i / 2 * KEYS + lane) + i % 2] = x;
                        }
                        let lane_of = |i: usize| 2 * (values_at + lane / 2 * dp + i) + lane % 2;
                        values.iter().enumerate().for_each(|(i, &x)| halves[lane_of(i)] = x);
                    }
                    _ => {
                        assert_eq!(
                            precision,
                            Precision::F32,
                            "attention: a cache of bf16 takes numbers kept so"
                        );
                        let keys = floats(keys).iter().enumerate();
                        keys.for_each(|(i, &x)| page[keys_at + i * KEYS + lane] = x);
                        page[values_at + lane * dp..][..shape.head_dim].copy_from_slice(floats(values));
                    }
                }
            }
        }
    }
}

/// Attention of new rows over their sequences in the cache (their own keys already stored): the same bits
/// as [`forward`] on the whole sequences.
pub(crate) fn forward_cached(
    cpu: &Cpu,
    out_nq: &mut [f32],
    qkv: Rows<'_>,
    cache: &KvCache,
    feeds: &[Feed],
    layer: usize,
    shape: Heads,
    p: AttentionParams,
) {
    let (isa, precision) = (cpu.isa(), cache.precision());
    let (d, dp, h) = (shape.head_dim, padded_head(shape.head_dim), shape.heads);
    let tile_rows = isa.tile_rows(precision);
    let group = h / shape.kv_heads;
    let mut tasks = Vec::new();
    for feed in feeds {
        for g in 0..shape.kv_heads {
            tasks.extend((0..feed.len).step_by(QUERIES).map(|t0| (*feed, g, t0)));
        }
    }
    let out_nq = SharedMut::new(out_nq);
    cpu.for_each(tasks.len(), |task| {
        let (feed, g, t0) = tasks[task];
        let t_end = feed.len.min(t0 + QUERIES);
        let block = |b: usize| {
            let (page, keys_at, values_at) = cache.place(feed.sequence, b, layer, g);
            let page = cache.page(page);
            Block { keys_t: page[keys_at..].as_ptr(), values: page[values_at..].as_ptr() }
        };
        SCRATCH.with_borrow_mut(|scratch| {
            let Scratch { packed, scores, weights, out, .. } = scratch;
            out.grow(tile_rows * dp);
            let (mut max, mut sum) = ([0.0; TILE_ROWS], [0.0; TILE_ROWS]);
            // One token: its query heads side by side. Several: the tokens of one head side by side.
            let single = feed.len == 1;
            let outer = if single { 0..1 } else { g * group..(g + 1) * group };
            let (first, last) = if single { (0, group) } else { (t0, t_end) };
            for head in outer {
                for i in (first..last).step_by(tile_rows) {
                    let count = tile_rows.min(last - i);
                    let place = |r: usize| match single {
                        true => (feed.start, g * group + i + r),
                        false => (feed.start + i + r, head),
                    };
                    let query = |(row, head)| Columns::query(shape, head).of(qkv, row);
                    pack(isa, precision, packed, (0..count).map(|r| query(place(r))), d);
                    let (position, step) = if single { (feed.position, 0) } else { (feed.position + i, 1) };
                    let queries = Queries { packed, rows: count, position, step };
                    // SAFETY: the cache holds every key of these rows, finite numbers elsewhere.
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
                        let (row, head) = place(r);
                        // SAFETY: this head of this row belongs to this task.
                        let out_d = unsafe { out_nq.slice((row * h + head) * d..(row * h + head + 1) * d) };
                        out_d.copy_from_slice(&out[r * dp..][..d]);
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
