//! One layer, backward.
//!
//! As forward, what goes row by row is done by tasks that take some rows through several operations. Weights' gradients are sums over all rows, so
//! they come after, from what the tasks left: each weight's input and the gradient of its output, packed ([`Factors`]).

use std::ops::Range;

use super::layer::ROW_WORK;
use super::tape::{Factors, LayerTape, NormTape, RowWork, RowsMut, Work};
use super::{Decoder, gather_rows};
use crate::batch::Batch;
use crate::config::{Position, QkNorm};
use crate::cpu::linear::{Turned, Write};
use crate::cpu::rope::RopeTable;
use crate::cpu::vector;
use crate::cpu::{Cpu, activation, attention, linear, norm, qk_norm, rope};
use crate::params::{Buffer, LinearParams, NormParams, Params};

/// What a block reads: `x`, normalised where it has a norm.
#[derive(Clone, Copy)]
struct Input<'a> {
    norm: Option<NormParams>,
    x: &'a [f32],
    stats: &'a NormTape,
}

impl Decoder {
    /// `d_x` comes in as the gradient of the layer's output, `kept` rows side by side, and leaves as that of its input, all rows.
    pub(super) fn layer_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        l: usize,
        batch: &Batch,
        kept: Option<&[usize]>,
        rope: &RopeTable,
        tape: &LayerTape,
        work: &mut Work,
        d_x: &mut [f32],
    ) {
        let (n, c) = (batch.tokens(), self.config.width);
        // Rows that went on after attention.
        let m = kept.map_or(n, <[usize]>::len);
        self.feed_forward_backward(cpu, params, grads, l, kept, tape, work, &d_x[..m * c]);
        self.attention_out_backward(cpu, params, grads, l, n, kept, tape, work, &d_x[..m * c]);
        let (d_x_mid, passed) = (&work.d_x_mid[..m * c], &mut d_x[..m * c]);
        if self.config.parallel_residual {
            cpu.for_each_chunk(passed, c, |row, d_x| {
                vector::add(cpu.isa(), d_x, &d_x_mid[row * c..(row + 1) * c])
            });
        } else {
            cpu.copy(passed, d_x_mid);
        }
        if let Some(kept) = kept {
            spread_rows(d_x, kept, c);
        }
        self.attention_backward(cpu, params, grads, l, batch, rope, tape, work, d_x);
    }

    /// `x_out = x_mid + post(down(act(up(norm(x_mid)))))`: leaves in `work.d_x_mid` the gradient of `x_mid` or, where blocks
    /// are parallel, the part of it that comes through this one.
    fn feed_forward_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        l: usize,
        kept: Option<&[usize]>,
        tape: &LayerTape,
        work: &mut Work,
        d_x: &[f32],
    ) {
        let (config, p, precision) = (&self.config, self.layout.layers[l], params.precision());
        let (c, u, f) = (config.width, config.up_width(), config.ffn);
        let m = d_x.len() / c;
        let Work { kept_x, d_x_mid, d_y, d_proj, d_up, turned, factors, .. } = work;
        let x = match (config.parallel_residual, kept) {
            (false, _) => &tape.x_mid[..m * c],
            (true, None) => &tape.x[..m * c],
            (true, Some(kept)) => {
                gather_rows(kept_x, &tape.x, kept.iter().copied(), c);
                &kept_x[..m * c]
            }
        };
        let input = Input { norm: p.mlp_norm, x, stats: &tape.mlp_norm };
        let d_out = match p.mlp_post_norm {
            None => d_x,
            Some(norm) => {
                let proj = Input { norm: Some(norm), x: &tape.mlp_proj[..m * c], stats: &tape.mlp_post_norm };
                self.post_norm_backward(cpu, params, grads, proj, d_proj.first_mut(m * c), d_x)
            }
        };
        let [turned_down, turned_up] = turned;
        let by_down = self.turned(cpu, params, turned_down, p.down);
        let by_up = self.turned(cpu, params, turned_up, p.up);
        // Kept where a bias adds it up.
        let kept_width = if p.up.bias.is_some() { u } else { 0 };
        let d_up = d_up.first_mut(m * kept_width);
        let [d_y, d_x_mid] = [d_y, d_x_mid].map(|buffer| buffer.first_mut(m * c));
        let [d_y_rows, d_mid_rows] = [&mut *d_y, d_x_mid].map(|buffer| RowsMut::new(buffer, c));
        let d_up_rows = RowsMut::new(d_up, kept_width);
        let [of_down, of_up] = factors;
        let of_down = of_down.of(cpu, precision, m, c, f);
        let of_up = of_up.of(cpu, precision, m, u, c);
        cpu.for_each_rows(precision, m, |rows| {
            // SAFETY: these rows belong to this task.
            let (d_up_kept, d_y, d_mid) =
                unsafe { (d_up_rows.of(&rows), d_y_rows.of(&rows), d_mid_rows.of(&rows)) };
            let through = rows.start * c..rows.end * c;
            let d_out = &d_out[through.clone()];
            ROW_WORK.with_borrow_mut(|RowWork { up, act, d_act, d_up, y, .. }| {
                let up = tape.up.read_rows(cpu, precision, up, &rows, u);
                let [act, d_act] = [act, d_act].map(|buffer| buffer.first_mut(rows.len() * f));
                let d_up = d_up.first_mut(rows.len() * u);
                activation::forward(cpu, config.mlp, act, up, f);
                // SAFETY: as above.
                unsafe { of_down.put(cpu, &rows, d_out, act) };
                by_down.backward_input(cpu, d_act, d_out, Write::Set);
                activation::backward(cpu, config.mlp, d_up, d_act, up, f);
                if !d_up_kept.is_empty() {
                    d_up_kept.copy_from_slice(d_up);
                }
                // Sequential blocks hand down the sum of what comes through and past them; parallel ones keep what comes through
                // apart, since attention's block reads `d_x` as it was.
                if config.parallel_residual {
                    d_mid.fill(0.0);
                } else {
                    d_mid.copy_from_slice(&d_x[through]);
                }
                self.input_backward(cpu, params, input, &rows, by_up, y, [d_y, d_mid], d_up, &of_up);
            });
        });
        self.packed_weight_backward(cpu, grads, p.down, &of_down, d_out);
        self.packed_weight_backward(cpu, grads, p.up, &of_up, d_up);
        self.input_norm_backward(cpu, grads, input, d_y);
    }

    /// `x_mid = x + post(attn_out(attention))`: leaves in `work.d_attn` the gradient of attention's output, of all rows.
    fn attention_out_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        l: usize,
        n: usize,
        kept: Option<&[usize]>,
        tape: &LayerTape,
        work: &mut Work,
        d_x: &[f32],
    ) {
        let (p, q) = (self.layout.layers[l], self.heads().q_width());
        let Work { attn, kept_attn, d_x_mid, d_proj, d_attn, turned, .. } = work;
        let attn = tape.attn.read(cpu, params.precision(), attn, n * q);
        let attn = match kept {
            None => attn,
            Some(kept) => {
                gather_rows(kept_attn, attn, kept.iter().copied(), q);
                &kept_attn[..kept.len() * q]
            }
        };
        let d_out = if self.config.parallel_residual { d_x } else { &d_x_mid[..d_x.len()] };
        let d_out = match p.attn_post_norm {
            None => d_out,
            Some(norm) => {
                let x = &tape.attn_proj[..d_x.len()];
                let proj = Input { norm: Some(norm), x, stats: &tape.attn_post_norm };
                self.post_norm_backward(cpu, params, grads, proj, d_proj.first_mut(d_x.len()), d_out)
            }
        };
        let d_attn = d_attn.first_mut(n * q);
        let by = self.turned(cpu, params, &mut turned[0], p.attn_out);
        by.backward_input(cpu, &mut d_attn[..attn.len()], d_out, Write::Set);
        self.weight_backward(cpu, params, grads, p.attn_out, d_out, attn);
        if let Some(kept) = kept {
            spread_rows(d_attn, kept, q);
        }
    }

    /// `attention(rope(qk_norm(qkv(norm(x)))))`: adds to `d_x` what comes through it.
    fn attention_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        l: usize,
        batch: &Batch,
        rope: &RopeTable,
        tape: &LayerTape,
        work: &mut Work,
        d_x: &mut [f32],
    ) {
        let (config, p, precision) = (&self.config, self.layout.layers[l], params.precision());
        let (n, c, shape) = (batch.tokens(), config.width, self.heads());
        let (q, w) = (shape.q_width(), shape.qkv_width());
        let Work { attn, d_y, d_attn, d_qkv, turned, factors, .. } = work;
        let attn = tape.attn.floats(precision, attn, n * q);
        let qkv = tape.qkv.rows(precision, n * w);
        let (d_attn, d_qkv) = (&d_attn[..n * q], d_qkv.first_mut(n * w));
        cpu.clear(d_qkv);
        let (max, sum) = (&tape.max[..n * shape.heads], &tape.sum[..n * shape.heads]);
        let how = self.attention(l);
        attention::backward(cpu, precision, d_qkv, d_attn, attn, max, sum, qkv, batch, shape, how);
        if let Position::Rotary { .. } = config.position {
            rope::rotate(cpu, d_qkv, rope.rows(0..n), shape, true);
        }
        if let (Some(q_norm), Some(k_norm)) = (p.q_norm, p.k_norm) {
            let per_head = config.qk_norm == QkNorm::PerHead;
            let (w_q, w_k) = self.qk_norm_weights(params, &p);
            let raw = &tape.qk_raw[..n * (q + shape.kv_width())];
            let rstd = &tape.qk_rstd[..n * qk_norm::groups(per_head, shape)];
            let specs = &self.layout.specs;
            let [d_w_q, d_w_k] = grads
                .data
                .get_disjoint_mut([specs[q_norm].range(), specs[k_norm].range()])
                .expect("tensors of a layout do not overlap");
            qk_norm::backward(cpu, d_qkv, d_w_q, d_w_k, raw, rstd, w_q, w_k, per_head, shape);
        }
        let d_qkv = &*d_qkv;
        let by = self.turned(cpu, params, &mut turned[0], p.qkv);
        let input = Input { norm: p.attn_norm, x: &tape.x[..n * c], stats: &tape.attn_norm };
        let d_y = d_y.first_mut(n * c);
        let [d_y_rows, d_x_rows] = [&mut *d_y, d_x].map(|buffer| RowsMut::new(buffer, c));
        let of_qkv = factors[0].of(cpu, precision, n, w, c);
        cpu.for_each_rows(precision, n, |rows| {
            // SAFETY: these rows belong to this task.
            let own = unsafe { [d_y_rows.of(&rows), d_x_rows.of(&rows)] };
            let d_qkv = &d_qkv[rows.start * w..rows.end * w];
            ROW_WORK.with_borrow_mut(|RowWork { y, .. }| {
                self.input_backward(cpu, params, input, &rows, by, y, own, d_qkv, &of_qkv);
            });
        });
        self.packed_weight_backward(cpu, grads, p.qkv, &of_qkv, d_qkv);
        self.input_norm_backward(cpu, grads, input, d_y);
    }

    /// Of some rows: the block's input again, packed with the gradient of its first weights' output for the gradient of these; the input's gradient
    /// (`d_y`); and, added to `d_x`, the gradient of what is normalised.
    fn input_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        input: Input<'_>,
        rows: &Range<usize>,
        by: Turned<'_>,
        y: &mut Buffer,
        [d_y, d_x]: [&mut [f32]; 2],
        d_out: &[f32],
        factors: &Factors<'_>,
    ) {
        let (c, kind) = (self.config.width, self.config.norm);
        let x = &input.x[rows.start * c..rows.end * c];
        let Some(p) = input.norm else {
            // SAFETY: the rows of the caller's task.
            unsafe { factors.put(cpu, rows, d_out, x) };
            return by.backward_input(cpu, d_x, d_out, Write::Add);
        };
        let [mean, rstd] = input.stats.of(kind, rows);
        let (w_c, b_c) = self.norm_weights(params, p);
        let y = y.first_mut(x.len());
        norm::again(cpu, kind, y, mean, rstd, x, w_c, b_c);
        // SAFETY: as above.
        unsafe { factors.put(cpu, rows, d_out, y) };
        by.backward_input(cpu, d_y, d_out, Write::Set);
        norm::backward_input(cpu, kind, d_x, d_y, x, w_c, mean, rstd);
    }

    /// Of all rows: gradients of the block's norm, from what [`Decoder::input_backward`] left.
    fn input_norm_backward(&self, cpu: &Cpu, grads: &mut Params, input: Input<'_>, d_y: &[f32]) {
        if let Some(p) = input.norm {
            self.norm_weight_backward(cpu, grads, p, d_y, input.x, input.stats);
        }
    }

    /// The gradient of what a norm after a block reads, from that of its output.
    fn post_norm_backward<'d>(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        proj: Input<'_>,
        d_proj: &'d mut [f32],
        d_out: &[f32],
    ) -> &'d [f32] {
        let p = proj.norm.expect("a norm after a block");
        d_proj.fill(0.0);
        self.norm_backward(cpu, params, grads, p, d_proj, d_out, proj.x, proj.stats);
        d_proj
    }

    /// Adds into `d_x` and the norm's gradients.
    pub(super) fn norm_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        p: NormParams,
        d_x: &mut [f32],
        d_y: &[f32],
        x: &[f32],
        stats: &NormTape,
    ) {
        self.norm_weight_backward(cpu, grads, p, d_y, x, stats);
        let kind = self.config.norm;
        let [mean, rstd] = stats.of(kind, &(0..x.len() / self.config.width));
        norm::backward_input(cpu, kind, d_x, d_y, x, self.norm_weights(params, p).0, mean, rstd);
    }

    fn norm_weight_backward(
        &self,
        cpu: &Cpu,
        grads: &mut Params,
        p: NormParams,
        d_y: &[f32],
        x: &[f32],
        stats: &NormTape,
    ) {
        let [mean, rstd] = stats.of(self.config.norm, &(0..x.len() / self.config.width));
        let (d_w, d_b) = self.with_bias(grads, p.weight, p.bias);
        norm::backward_weight(cpu, d_w, d_b, d_y, x, mean, rstd);
    }

    fn turned<'t>(&self, cpu: &Cpu, params: &Params, buffer: &'t mut Buffer, p: LinearParams) -> Turned<'t> {
        let spec = &self.layout.specs[p.weight];
        let (n, k) = spec.shape.rows_cols();
        Turned::new(cpu, buffer, params.weights(spec), n, k)
    }

    fn weight_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        p: LinearParams,
        d_y: &[f32],
        x: &[f32],
    ) {
        let (n, k) = self.layout.specs[p.weight].shape.rows_cols();
        let (d_w, d_b) = self.with_bias(grads, p.weight, p.bias);
        linear::backward_weight(cpu, params.precision(), d_w, d_b, d_y, x, n, k);
    }

    /// From packed factors; `d_y` is read for the bias alone, where there is one.
    fn packed_weight_backward(
        &self,
        cpu: &Cpu,
        grads: &mut Params,
        p: LinearParams,
        factors: &Factors<'_>,
        d_y: &[f32],
    ) {
        let (d_w, d_b) = self.with_bias(grads, p.weight, p.bias);
        linear::backward_weight_packed(cpu, d_w, &factors.gradient, &factors.input);
        if let Some(d_b) = d_b {
            linear::backward_bias(cpu, d_b, d_y);
        }
    }

    /// Gradients of a weight and of its bias.
    fn with_bias<'g>(
        &self,
        grads: &'g mut Params,
        weight: usize,
        bias: Option<usize>,
    ) -> (&'g mut [f32], Option<&'g mut [f32]>) {
        let Some(bias) = bias else {
            return (grads.slice_mut(&self.layout, weight), None);
        };
        let specs = &self.layout.specs;
        let [d_w, d_b] = grads
            .data
            .get_disjoint_mut([specs[weight].range(), specs[bias].range()])
            .expect("tensors of a layout do not overlap");
        (d_w, Some(d_b))
    }
}

/// Moves row `i` to row `rows[i]` (ascending) and zeroes the others.
fn spread_rows(x_nc: &mut [f32], rows: &[usize], c: usize) {
    let mut end = x_nc.len() / c;
    for (i, &row) in rows.iter().enumerate().rev() {
        x_nc.copy_within(i * c..(i + 1) * c, row * c);
        x_nc[(row + 1) * c..end * c].fill(0.0);
        end = row;
    }
    x_nc[..end * c].fill(0.0);
}
