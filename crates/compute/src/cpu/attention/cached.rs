//! Attention over the cache: new rows are put into it, then read it as [`forward`](super::forward) reads what it gathers.

use super::super::tile::TILE_ROWS;
use super::super::{Cpu, Precision, SharedMut};
use super::{
    Block, Columns, KEYS, QUERIES, Queries, Rows, SCRATCH, Scratch, attend, floats, pack, padded_head,
};
use crate::cache::{KvCache, SequenceId};
use crate::config::{AttentionParams, Heads};

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
        for t0 in (0..feed.len).step_by(QUERIES) {
            tasks.extend((0..shape.kv_heads).map(|g| (*feed, g, t0)));
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
