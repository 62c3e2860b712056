//! Attention's gradient. Products of queries and keys are made again; of the softmax forward saved each row's largest score and sum.
//!
//! Some query rows at a time walk over the chunks of their keys. Of a chunk there are probabilities `p` and the scores' gradients `d_z`, and all that
//! they give is added at once: `d_q += d_z k`, `d_k^T += q^T d_z`, `d_v^T += d_out^T p`. The gradients of keys and values are kept turned, `[key / 32][d][key % 32]`:
//! then `p` and `d_z` are right factors, which lie as they are made.
//!
//! Source: Dao et al. 2022, arXiv:2205.14135, algorithm 4.

use std::ops::Range;

use super::super::tile::{self, A, Init, STEPS};
use super::super::{Cpu, Isa, Precision, SharedMut, bf16, vector};
use super::softmax::{self, Pairs, Row};
use super::{
    CHUNK, Columns, KEYS, Queries, Rows, SCRATCH, block_words, check, gather, gather_t, head_words, pack,
    packed_rows, padded_head, path_rows, score_rows,
};
use crate::batch::{Batch, Segment};
use crate::config::{AttentionParams, Heads};
use crate::params::Buffer;

/// Query rows that walk over the keys together, whole tiles of every kind: more where the keys are many, whose gradients are then read and written less
/// often.
fn rows_held(isa: Isa, precision: Precision, keys: usize) -> usize {
    match isa.multiplies_tiles(precision) {
        true if keys < PART => 64,
        true => 128,
        false => 48,
    }
}

/// Rows of a tree from which its query rows are several tasks, and of one of these.
const PART: usize = 1024;

/// Some query rows of a segment. Their part of the gradients of keys and values is summed in a buffer of its own.
struct Part {
    segment: usize,
    rows: Range<usize>,
    /// Where a shared buffer holds the sums until all parts are done; otherwise the task adds them to the gradient at once.
    shared: Option<usize>,
}

/// Adds into `d_qkv`.
///
/// A task owns one key/value head of one tree, so a prompt's gradient is summed over its children in
/// their order; of a large tree it owns some query rows, and the parts' sums are added in their order at the end. Which it is
/// depends on the tree alone.
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
    let isa = cpu.isa();
    let (trees, shared_len) = parts(batch, shape);
    let mut shared = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.back.shared));
    {
        let (d_qkv, shared) = (SharedMut::new(d_qkv), SharedMut::new(shared.first_mut(shared_len)));
        let saved = Saved { d_out_nq, out_nq, max_nh, sum_nh, qkv };
        // The last parts have the most keys: they go first.
        let tasks: Vec<&[Part]> = trees
            .iter()
            .flat_map(|tree| tree.chunk_by(|a, b| a.shared.is_none() && b.shared.is_none()).rev())
            .collect();
        cpu.for_each(tasks.len() * shape.kv_heads, |task| {
            let (parts, g) = (tasks[task / shape.kv_heads], task % shape.kv_heads);
            let task = Task { isa, precision, saved, batch, g, shape, p };
            SCRATCH.with_borrow_mut(|scratch| {
                for part in parts {
                    task.run(&d_qkv, &shared, part, &mut scratch.back);
                }
            });
        });
        let large: Vec<&Vec<Part>> = trees.iter().filter(|tree| tree[0].shared.is_some()).collect();
        cpu.for_each(large.len() * shape.kv_heads, |task| {
            let (tree, g) = (large[task / shape.kv_heads], task % shape.kv_heads);
            SCRATCH.with_borrow_mut(|scratch| {
                for part in tree {
                    let mut path = path_rows(batch, part.segment);
                    path.truncate(batch.segments[part.segment].position + part.rows.end);
                    let sums = sums_of(&shared, part, path.len(), g, shape).expect("a part of a large tree");
                    add_sums(isa, &d_qkv, sums, &path, g, shape, &mut scratch.back.turned);
                }
            });
        });
    }
    SCRATCH.with_borrow_mut(|scratch| scratch.back.shared = shared);
}

/// The parts of each tree, and the length of the buffer that they share.
fn parts(batch: &Batch, shape: Heads) -> (Vec<Vec<Part>>, usize) {
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
        if segment.len > 0 {
            trees[tree].push(index);
        }
        tree_of.push(tree);
    }
    let mut shared_len = 0;
    let cut = |tree: Vec<usize>| {
        let large = tree.iter().map(|&index| batch.segments[index].len).sum::<usize>() > PART;
        let mut parts = Vec::new();
        for segment in tree {
            let Segment { len, position, .. } = batch.segments[segment];
            for t in (0..len).step_by(if large { PART } else { len }) {
                let rows = t..len.min(if large { t + PART } else { len });
                let end = shared_len + shape.kv_heads * sums_len(position + rows.end, shape);
                parts.push(Part { segment, rows, shared: large.then_some(shared_len) });
                shared_len = if large { end } else { shared_len };
            }
        }
        parts
    };
    let trees = trees.into_iter().filter(|tree| !tree.is_empty()).map(cut).collect();
    (trees, shared_len)
}

/// Floats of the gradients of a head's keys and values.
fn sums_len(keys: usize, shape: Heads) -> usize {
    2 * keys.next_multiple_of(KEYS) * shape.head_dim
}

/// Where a head of a part keeps its sums, if it shares them.
fn sums_of<'a>(
    shared: &SharedMut<'a, f32>,
    part: &Part,
    keys: usize,
    g: usize,
    shape: Heads,
) -> Option<&'a mut [f32]> {
    let len = sums_len(keys, shape);
    // SAFETY: this head of this part belongs to the task.
    part.shared.map(|at| unsafe { shared.slice(at + g * len..at + (g + 1) * len) })
}

/// Adds the gradients of a head's keys, then of its values, `[key / 32][d][key % 32]` both.
fn add_sums(
    isa: Isa,
    d_qkv: &SharedMut<'_, f32>,
    sums: &[f32],
    path: &[usize],
    g: usize,
    shape: Heads,
    turned: &mut Buffer,
) {
    let d = shape.head_dim;
    let turned = turned.first_mut(KEYS * d);
    let (d_keys_t, d_values_t) = sums.split_at(sums.len() / 2);
    for (from, columns) in [(d_keys_t, Columns::key(shape, g)), (d_values_t, Columns::value(shape, g))] {
        for (block, rows) in from.chunks_exact(d * KEYS).zip(path.chunks(KEYS)) {
            bf16::turn_words(isa, bytemuck::cast_slice_mut(turned), d, bytemuck::cast_slice(block), KEYS);
            for (&row, from_d) in rows.iter().zip(turned.chunks_exact(d)) {
                // SAFETY: this head of every row of the tree belongs to this task.
                unsafe { add_row(isa, d_qkv, columns, row, from_d) };
            }
        }
    }
}

/// Adds a head's gradient to a row.
///
/// # Safety
///
/// Nobody else has this head of the row.
unsafe fn add_row(isa: Isa, d_qkv: &SharedMut<'_, f32>, columns: Columns, row: usize, from_d: &[f32]) {
    let at = row * columns.width + columns.start;
    // The thread's next task adds to the next head.
    tile::ask_for(d_qkv.pointer(at).wrapping_add(columns.d), columns.d);
    // SAFETY: the caller's promise.
    vector::add(isa, unsafe { d_qkv.slice(at..at + columns.d) }, from_d);
}

#[derive(Clone, Copy)]
struct Saved<'a> {
    d_out_nq: &'a [f32],
    out_nq: &'a [f32],
    max_nh: &'a [f32],
    sum_nh: &'a [f32],
    qkv: Rows<'a>,
}

/// One thread's buffers.
#[derive(Default)]
pub(super) struct Scratch {
    keys_t: Buffer,
    keys: Buffer,
    values_t: Buffer,
    sums: Buffer,
    queries: Turnable,
    d_out: Turnable,
    rows: Vec<usize>,
    stats: Vec<Row>,
    z: Buffer,
    d_z: Buffer,
    d_z_keys: Buffer,
    d_z_rows: Buffer,
    p_rows: Buffer,
    d_q: Buffer,
    turned: Buffer,
    /// The sums of all parts of large trees, of the thread that calls.
    shared: Buffer,
}

/// One head's channels of some rows, as left factors of two products.
#[derive(Default)]
struct Turnable {
    /// Row by row: [`packed_rows`].
    packed: Buffer,
    gathered: Buffer,
    turned: Buffer,
}

impl Turnable {
    fn fill(&mut self, isa: Isa, precision: Precision, from: Rows<'_>, rows: &[usize], columns: Columns) {
        let d = columns.d;
        pack(isa, precision, &mut self.packed, rows.iter().map(|&row| columns.of(from, row)), d);
        gather(isa, precision, &mut self.gathered, from, rows, columns);
        if isa.multiplies_tiles(precision) {
            let dp = padded_head(d);
            self.turned.grow(dp * STEPS);
            let words = &self.gathered[..steps(isa, precision, rows.len()) * dp];
            let turned = bytemuck::cast_slice_mut(&mut self.turned[..dp * STEPS]);
            bf16::turn_words(isa, turned, STEPS, bytemuck::cast_slice(words), dp);
        }
    }

    /// Channel by channel.
    fn turned(&self, isa: Isa, precision: Precision, d: usize) -> A {
        if isa.multiplies_tiles(precision) {
            A::rows(self.turned.as_ptr())
        } else {
            A::columns(self.gathered.as_ptr(), padded_head(d))
        }
    }
}

/// Steps of a sum over so many query rows; in bf16 whole blocks, zeros at the end.
fn steps(isa: Isa, precision: Precision, rows: usize) -> usize {
    match precision {
        Precision::F32 => rows,
        Precision::Bf16 => rows.div_ceil(2).next_multiple_of(isa.cut()),
    }
}

/// One key/value head.
struct Task<'a> {
    isa: Isa,
    precision: Precision,
    saved: Saved<'a>,
    batch: &'a Batch,
    g: usize,
    shape: Heads,
    p: AttentionParams,
}

impl Task<'_> {
    fn run(
        &self,
        d_qkv: &SharedMut<'_, f32>,
        shared: &SharedMut<'_, f32>,
        part: &Part,
        scratch: &mut Scratch,
    ) {
        let &Task { isa, precision, saved, shape, g, .. } = self;
        let (key, value) = (Columns::key(shape, g), Columns::value(shape, g));
        let segment = self.batch.segments[part.segment];
        let mut path = path_rows(self.batch, part.segment);
        path.truncate(segment.position + part.rows.end);
        gather_t(isa, precision, &mut scratch.keys_t, saved.qkv, &path, key, &mut scratch.turned);
        gather(isa, precision, &mut scratch.keys, saved.qkv, &path, key);
        gather_t(isa, precision, &mut scratch.values_t, saved.qkv, &path, value, &mut scratch.turned);
        let mut own = std::mem::take(&mut scratch.sums);
        let sums = sums_of(shared, part, path.len(), g, shape);
        let sums = sums.unwrap_or_else(|| own.first_mut(sums_len(path.len(), shape)));
        sums.fill(0.0);

        for head in (0..shape.heads).filter(|&head| shape.kv_head(head) == g) {
            let held = rows_held(isa, precision, path.len());
            for t in part.rows.clone().step_by(held) {
                self.rows(d_qkv, sums, scratch, head, segment, t..part.rows.end.min(t + held));
            }
        }
        if part.shared.is_none() {
            add_sums(isa, d_qkv, sums, &path, g, shape, &mut scratch.turned);
        }
        scratch.sums = own;
    }

    /// Some query rows of a head; adds to `sums` what [`add_sums`] reads.
    fn rows(
        &self,
        d_qkv: &SharedMut<'_, f32>,
        sums: &mut [f32],
        scratch: &mut Scratch,
        head: usize,
        segment: Segment,
        rows: Range<usize>,
    ) {
        let &Task { isa, precision, saved, shape, p, .. } = self;
        let (d, dp, h) = (shape.head_dim, padded_head(shape.head_dim), shape.heads);
        let words = head_words(precision, d);
        let (block_keys, block_values) = block_words(precision, d);
        let (count, position) = (rows.len(), segment.position + rows.start);
        let steps = steps(isa, precision, count);
        let Scratch {
            keys_t,
            keys,
            values_t,
            queries,
            d_out,
            rows: own,
            stats,
            z,
            d_z,
            d_z_keys,
            d_z_rows,
            p_rows,
            d_q,
            ..
        } = scratch;
        let (d_keys_t, d_values_t) = sums.split_at_mut(sums.len() / 2);
        own.clear();
        own.extend(rows.map(|t| segment.start + t));
        let query = Columns::query(shape, head);
        let out = Columns { width: shape.q_width(), start: head * d, d };
        queries.fill(isa, precision, saved.qkv, own, query);
        d_out.fill(isa, precision, Rows::Floats(saved.d_out_nq), own, out);
        stats.clear();
        stats.extend(own.iter().map(|&row| Row {
            max: saved.max_nh[row * h + head],
            inverse_sum: 1.0 / saved.sum_nh[row * h + head],
            pull: dot(isa, out.slice(saved.d_out_nq, row), out.slice(saved.out_nq, row)),
        }));

        let (stride, lines_stride) = (count * KEYS, steps * KEYS);
        z.grow(CHUNK * stride);
        d_z.grow(CHUNK * stride);
        d_z_keys.grow(CHUNK * stride / 2);
        d_z_rows.grow(CHUNK * lines_stride);
        p_rows.grow(CHUNK * lines_stride);
        d_q.grow(count * dp);
        let own_queries = Queries { packed: &[], rows: count, position, step: 1 };
        for (c, chunk) in own_queries.chunks(p.window).enumerate() {
            let start = chunk.first_key / KEYS;
            let blocks = start..start + chunk.blocks;
            for (at, b) in blocks.clone().enumerate() {
                // Tiles of rows that are all before the block's keys see nothing of it.
                let tile = isa.tile_rows(precision);
                let first = (b * KEYS).saturating_sub(position) / tile * tile;
                for (to, left, right) in [(&mut *z, &*queries, &*keys_t), (&mut *d_z, &*d_out, &*values_t)] {
                    let c = to[at * stride + first * KEYS..(at + 1) * stride].as_mut_ptr();
                    let right = right[b * block_keys..][..block_keys].as_ptr();
                    // SAFETY: `packed` holds `count` rows of `w`, the block is `[w][32]`, `c` has `count - first` rows of 32.
                    unsafe {
                        let a = packed_rows(&left.packed, count, words).starting_at(first);
                        isa.product(
                            precision,
                            c,
                            KEYS,
                            a,
                            right,
                            KEYS,
                            count - first,
                            KEYS,
                            words,
                            Init::Zero,
                        );
                    }
                }
            }
            let pairs = Pairs {
                d_keys: d_z_keys.as_mut_ptr().cast(),
                d_rows: d_z_rows.as_mut_ptr().cast(),
                rows: p_rows.as_mut_ptr().cast(),
                lines: steps,
            };
            let rounded = precision == Precision::Bf16;
            // SAFETY: the buffers hold a chunk of so many rows and lines.
            unsafe { softmax::gradients(isa, z, d_z, rounded.then_some(pairs), chunk, p, stats) };

            let (a, k) = score_rows(precision, d_z, d_z_keys, 0, count, chunk.blocks);
            let (d_z_lines, p_lines) = if rounded { (&*d_z_rows, &*p_rows) } else { (&*d_z, &*z) };
            let right = keys[start * block_values..blocks.end * block_values].as_ptr();
            let init = if c == 0 { Init::Zero } else { Init::C };
            // SAFETY: `a` holds `count` rows of the chunk's scores, its keys are `[s][dp]`, `d_q` is `[count][dp]`.
            unsafe { isa.product(precision, d_q.as_mut_ptr(), dp, a, right, dp, count, dp, k, init) };

            for (lines, left, to) in
                [(d_z_lines, &*queries, &mut *d_keys_t), (p_lines, &*d_out, &mut *d_values_t)]
            {
                let a = left.turned(isa, precision, d);
                for (at, b) in blocks.clone().enumerate() {
                    let c = to[b * d * KEYS..][..d * KEYS].as_mut_ptr();
                    let right = lines[at * lines_stride..][..lines_stride].as_ptr();
                    // SAFETY: `a` holds `d` channels of `steps`, the scores `steps` lines of 32, `c` is `[d][32]`.
                    unsafe { isa.product(precision, c, KEYS, a, right, KEYS, d, KEYS, steps, Init::C) };
                }
            }
        }
        for (&row, d_q) in own.iter().zip(d_q.chunks_exact(dp)) {
            // SAFETY: this head of this row belongs to this task.
            unsafe { add_row(isa, d_qkv, query, row, &d_q[..d]) };
        }
    }
}

vector::vectorized! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        vector::sum2(a, b, |acc, a, b| a.mul_add(b, acc))
    }
}
