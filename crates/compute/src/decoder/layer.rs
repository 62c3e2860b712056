//! One layer, forward.
//!
//! Everything but attention goes row by row. So a task takes some rows through several operations, one after the other, and what passes between these
//! stays in its cache: `norm, qkv, rope` before attention, and `attn_out, norm, up, act, down` after it ([`Cpu::for_each_rows`]). What
//! backward reads is written on the way.

use std::cell::RefCell;

use super::tape::{LayerTape, RowWork, RowsMut, Work};
use super::{Decoder, Keys, gather_rows};
use crate::config::{Position, QkNorm};
use crate::cpu::linear::Write;
use crate::cpu::rope::RopeTable;
use crate::cpu::vector;
use crate::cpu::{Cpu, Precision, activation, attention, bf16, linear, qk_norm, rope};
use crate::params::{Buffer, LinearParams, NormParams, Params};

thread_local! {
    /// Of the task that this thread runs.
    pub(super) static ROW_WORK: RefCell<RowWork> = RefCell::default();
}

impl Decoder {
    /// One layer: reads `tape.x`, writes `x_out` and the rest of the tape. After attention only the `kept` rows go on, side
    /// by side.
    pub(super) fn layer(
        &self,
        cpu: &Cpu,
        params: &Params,
        l: usize,
        n: usize,
        kept: Option<&[usize]>,
        keys: Keys<'_>,
        rope: &RopeTable,
        tape: &mut LayerTape,
        work: &mut Work,
        x_out: &mut [f32],
    ) {
        let (shape, precision) = (self.heads(), params.precision());
        let (q, w) = (shape.q_width(), shape.qkv_width());
        let Work { attn, .. } = work;
        self.queries_keys_values(cpu, params, l, n, rope, tape);
        let qkv = tape.qkv.rows(precision, n * w);
        let (attn, attn_halves) = tape.attn.split(precision, attn, n * q);
        match keys {
            Keys::Batch(batch) => {
                let max = tape.max.first_mut(n * shape.heads);
                let sum = tape.sum.first_mut(n * shape.heads);
                attention::forward(cpu, precision, attn, max, sum, qkv, batch, shape, self.attention(l));
            }
            Keys::Cache(cache, feeds) => {
                attention::forward_cached(cpu, attn, qkv, cache, feeds, l, shape, self.attention(l));
            }
        }
        if precision == Precision::Bf16 {
            bf16::keep(cpu, attn_halves, attn);
        }
        self.after_attention(cpu, params, l, n, kept, tape, work, x_out);
    }

    /// `rope(qk_norm(qkv(norm(x))))`, into the tape: rounded where products are in bf16, since they are factors of attention's.
    fn queries_keys_values(
        &self,
        cpu: &Cpu,
        params: &Params,
        l: usize,
        n: usize,
        rope: &RopeTable,
        tape: &mut LayerTape,
    ) {
        let (config, p) = (&self.config, self.layout.layers[l]);
        let (c, shape, precision) = (config.width, self.heads(), params.precision());
        let (w, qk) = (shape.qkv_width(), shape.q_width() + shape.kv_width());
        let per_head = config.qk_norm == QkNorm::PerHead;
        let normed = config.qk_norm != QkNorm::None;
        let groups = if normed { qk_norm::groups(per_head, shape) } else { 0 };
        let raw = if normed { qk } else { 0 };
        let x_nc = &tape.x[..n * c];
        let norm = tape.attn_norm.rows(config.norm, n);
        let in_floats = precision == Precision::F32;
        let (floats, halves) = tape.qkv.places(precision, n * w);
        let floats = RowsMut::new(floats, if in_floats { w } else { 0 });
        let halves = RowsMut::new(halves, if in_floats { 0 } else { w });
        let qk_raw = RowsMut::new(tape.qk_raw.first_mut(n * raw), raw);
        let qk_rstd = RowsMut::new(tape.qk_rstd.first_mut(n * groups), groups);
        cpu.for_each_rows(precision, n, |rows| {
            // SAFETY: these rows belong to this task.
            let (floats, halves, norm, qk_raw, rstd) = unsafe {
                (floats.of(&rows), halves.of(&rows), norm.of(&rows), qk_raw.of(&rows), qk_rstd.of(&rows))
            };
            let x = &x_nc[rows.start * c..rows.end * c];
            ROW_WORK.with_borrow_mut(|RowWork { y, qkv, .. }| {
                let y = match p.attn_norm {
                    None => x,
                    Some(p) => {
                        let y = y.first_mut(x.len());
                        self.norm(cpu, params, p, y, norm, x);
                        &*y
                    }
                };
                let qkv = if in_floats { floats } else { qkv.first_mut(rows.len() * w) };
                self.linear(cpu, params, p.qkv, qkv, y);
                if normed {
                    for (raw, row) in qk_raw.chunks_exact_mut(qk).zip(qkv.chunks_exact(w)) {
                        raw.copy_from_slice(&row[..qk]);
                    }
                    let (w_q, w_k) = self.qk_norm_weights(params, &p);
                    qk_norm::forward(cpu, qkv, rstd, per_head, w_q, w_k, shape, config.norm_eps);
                }
                if let Position::Rotary { .. } = config.position {
                    rope::rotate(cpu, qkv, rope.rows(rows), shape, false);
                }
                if !in_floats {
                    bf16::keep(cpu, halves, qkv);
                }
            });
        });
    }

    /// `x_mid = x + attn_out(attention)`, `x_out = x_mid + down(act(up(norm(x_mid))))`.
    fn after_attention(
        &self,
        cpu: &Cpu,
        params: &Params,
        l: usize,
        n: usize,
        kept: Option<&[usize]>,
        tape: &mut LayerTape,
        work: &Work,
        x_out: &mut [f32],
    ) {
        let (config, p) = (&self.config, self.layout.layers[l]);
        let (c, q, precision) = (config.width, self.heads().q_width(), params.precision());
        let (u, f) = (config.up_width(), config.ffn);
        let m = kept.map_or(n, <[usize]>::len);
        let attn_nq = tape.attn.floats(precision, &work.attn, n * q);
        let x_nc = &tape.x[..n * c];
        let width_of = |there: bool, width: usize| if there { width } else { 0 };
        let mid_width = width_of(!config.parallel_residual, c);
        let (attn_width, mlp_width) =
            (width_of(p.attn_post_norm.is_some(), c), width_of(p.mlp_post_norm.is_some(), c));
        let x_mid = RowsMut::new(tape.x_mid.first_mut(m * mid_width), mid_width);
        let attn_proj = RowsMut::new(tape.attn_proj.first_mut(m * attn_width), attn_width);
        let mlp_proj = RowsMut::new(tape.mlp_proj.first_mut(m * mlp_width), mlp_width);
        let [attn_post, mlp_norm, mlp_post] =
            [&mut tape.attn_post_norm, &mut tape.mlp_norm, &mut tape.mlp_post_norm]
                .map(|tape| tape.rows(config.norm, m));
        let (floats, halves) = tape.up.places(precision, m * u);
        let in_floats = precision == Precision::F32;
        let up_floats = RowsMut::new(floats, width_of(in_floats, u));
        let up_halves = RowsMut::new(halves, width_of(!in_floats, u));
        let x_out = RowsMut::new(&mut x_out[..m * c], c);
        cpu.for_each_rows(precision, m, |rows| {
            // SAFETY: these rows belong to this task.
            let (x_out, x_mid, attn_proj, mlp_proj, up_floats, up_halves) = unsafe {
                (
                    x_out.of(&rows),
                    x_mid.of(&rows),
                    attn_proj.of(&rows),
                    mlp_proj.of(&rows),
                    up_floats.of(&rows),
                    up_halves.of(&rows),
                )
            };
            // SAFETY: as above.
            let [attn_post, mlp_norm, mlp_post] =
                [&attn_post, &mlp_norm, &mlp_post].map(|norm| unsafe { norm.of(&rows) });
            ROW_WORK.with_borrow_mut(|work| {
                let RowWork { x, attn, y, proj, up, act, .. } = work;
                let (x, attn) = match kept {
                    None => (&x_nc[rows.start * c..rows.end * c], &attn_nq[rows.start * q..rows.end * q]),
                    Some(kept) => {
                        let kept = &kept[rows.clone()];
                        gather_rows(x, x_nc, kept.iter().copied(), c);
                        gather_rows(attn, attn_nq, kept.iter().copied(), q);
                        (&x[..kept.len() * c], &attn[..kept.len() * q])
                    }
                };
                let post = Post { norm: p.attn_post_norm, proj: attn_proj, stats: attn_post };
                let mlp_in = if config.parallel_residual {
                    self.add_block(cpu, params, p.attn_out, post, x_out, Some(x), attn, proj);
                    x
                } else {
                    self.add_block(cpu, params, p.attn_out, post, x_mid, Some(x), attn, proj);
                    &*x_mid
                };
                let y = match p.mlp_norm {
                    None => mlp_in,
                    Some(p) => {
                        let y = y.first_mut(mlp_in.len());
                        self.norm(cpu, params, p, y, mlp_norm, mlp_in);
                        &*y
                    }
                };
                let up = if in_floats { up_floats } else { up.first_mut(rows.len() * u) };
                self.linear(cpu, params, p.up, up, y);
                let act = act.first_mut(rows.len() * f);
                activation::forward(cpu, config.mlp, act, up, f);
                if !in_floats {
                    bf16::keep(cpu, up_halves, up);
                }
                let post = Post { norm: p.mlp_post_norm, proj: mlp_proj, stats: mlp_post };
                let onto = (!config.parallel_residual).then_some(mlp_in);
                self.add_block(cpu, params, p.down, post, x_out, onto, act, proj);
            });
        });
    }

    /// `x = onto + w y + b`, or `x = onto + norm(w y + b)`; onto what `x` holds where nothing is given.
    fn add_block(
        &self,
        cpu: &Cpu,
        params: &Params,
        w: LinearParams,
        post: Post<'_>,
        x: &mut [f32],
        onto: Option<&[f32]>,
        y: &[f32],
        normed: &mut Buffer,
    ) {
        let c = self.config.width;
        // `x = onto + b`, row by row.
        let start = |x: &mut [f32], row: usize, b: &[f32]| {
            if let Some(onto) = onto {
                x.copy_from_slice(&onto[row * c..(row + 1) * c]);
            }
            vector::add(cpu.isa(), x, b);
        };
        let Some(norm) = post.norm else {
            let write = match (w.bias, onto) {
                (None, Some(onto)) => Write::Onto(onto),
                _ => Write::Add,
            };
            if let Some(bias) = w.bias {
                let bias_c = params.slice(&self.layout, bias);
                cpu.for_each_chunk(x, c, |row, x_c| start(x_c, row, bias_c));
            }
            let k = self.layout.specs[w.weight].shape.rows_cols().1;
            linear::forward(cpu, x, y, params.weights(&self.layout.specs[w.weight]), None, c, k, write);
            return;
        };
        self.linear(cpu, params, w, post.proj, y);
        let normed = normed.first_mut(x.len());
        self.norm(cpu, params, norm, normed, post.stats, post.proj);
        let normed = &*normed;
        cpu.for_each_chunk(x, c, |row, x_c| start(x_c, row, &normed[row * c..(row + 1) * c]));
    }
}

/// A normalisation after a block: what it reads and its statistics, for backward.
struct Post<'a> {
    norm: Option<NormParams>,
    proj: &'a mut [f32],
    stats: [&'a mut [f32]; 2],
}
