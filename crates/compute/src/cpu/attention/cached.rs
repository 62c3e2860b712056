//! Attention over the cache: new rows are put into it, then read it as [`forward`](super::forward) reads what it gathers.

use super::super::tile::TILE_ROWS;
use super::super::{Cpu, Precision, SharedMut};
use super::{
    Block, Columns, KEYS, QUERIES, Queries, Rows, SCRATCH, Scratch, attend, floats, pack, padded_head,
};
use crate::cache::{KvCache, SequenceId, SharedPages};
use crate::config::{AttentionParams, Heads};

/// One sequence's new tokens in a decoding step: rows `start..start + len` at `position..`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feed {
    pub(crate) sequence: SequenceId,
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) position: usize,
}

/// Puts the keys and values of a head of new rows into the cache.
///
/// # Safety
///
/// Nobody else has this head of the sequence's new pages.
unsafe fn store(pages: &SharedPages<'_>, qkv: Rows<'_>, feed: Feed, layer: usize, g: usize, shape: Heads) {
    let dp = padded_head(shape.head_dim);
    for t in 0..feed.len {
        let position = feed.position + t;
        let lane = position % KEYS;
        let head = pages.own_head(feed.sequence, position / KEYS, layer, g);
        // SAFETY: the caller's promise.
        let (keys_t, values) = unsafe { head.parts_mut() };
        let row = feed.start + t;
        match (Columns::key(shape, g).of(qkv, row), Columns::value(shape, g).of(qkv, row)) {
            (Rows::Halves(keys), Rows::Halves(new)) => {
                for (words, pair) in keys_t.chunks_exact_mut(KEYS).zip(keys.chunks(2)) {
                    let second = pair.get(1).map_or(0, |&x| u32::from(x) << 16);
                    words[lane] = f32::from_bits(u32::from(pair[0]) | second);
                }
                for (word, &x) in values[lane / 2 * dp..].iter_mut().zip(new) {
                    let (x, other) = (u32::from(x), word.to_bits());
                    let second = lane % 2 == 1;
                    *word = f32::from_bits(if second {
                        other & 0xffff | x << 16
                    } else {
                        other & 0xffff_0000 | x
                    });
                }
            }
            (keys, new) => {
                let columns = keys_t.chunks_exact_mut(KEYS).zip(floats(keys));
                columns.for_each(|(words, &x)| words[lane] = x);
                values[lane * dp..][..shape.head_dim].copy_from_slice(floats(new));
            }
        }
    }
}

/// Puts the keys and values of new rows into the cache, and attends over their sequences there: the same bits
/// as [`forward`] on the whole sequences.
pub(crate) fn forward_cached(
    cpu: &Cpu,
    out_nq: &mut [f32],
    qkv: Rows<'_>,
    cache: &mut KvCache,
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
        for t0 in (0..feed.len).step_by(QUERIES) {
            tasks.extend((0..shape.kv_heads).map(|g| (*feed, g, t0)));
        }
    }
    assert_eq!(
        matches!(qkv, Rows::Halves(_)),
        precision == Precision::Bf16,
        "attention: a cache of {precision:?} takes numbers kept so"
    );
    let (out_nq, pages) = (SharedMut::new(out_nq), cache.shared());
    // What several tasks read is there before they begin; what one reads it puts there itself.
    let long: Vec<Feed> = feeds.iter().copied().filter(|feed| feed.len > QUERIES).collect();
    cpu.for_each(long.len() * shape.kv_heads, |task| {
        // SAFETY: a task owns a head of a sequence.
        unsafe { store(&pages, qkv, long[task / shape.kv_heads], layer, task % shape.kv_heads, shape) };
    });
    cpu.for_each(tasks.len(), |task| {
        let (feed, g, t0) = tasks[task];
        let t_end = feed.len.min(t0 + QUERIES);
        if feed.len <= QUERIES {
            // SAFETY: this is the only task of this head of the sequence.
            unsafe { store(&pages, qkv, feed, layer, g, shape) };
        }
        let block = |b: usize| {
            let head = pages.head(feed.sequence, b, layer, g);
            Block { keys_t: head.keys(), values: head.values() }
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
