//! The decoder: layers forward and backward, explicitly, for training and for decoding.
//!
//! ```text
//! x = embed(ids)
//! for each layer:   x = x + attn_out(attention(rope(qk_norm(qkv(norm(x))))))
//!                   x = x + down(act(up(norm(x))))
//! hidden = norm(x)             the heads read chosen rows of it
//! ```
//!
//! with the families' differences as in `config.rs`. Training ([`Decoder::forward`], [`Decoder::backward`]) and
//! decoding ([`Decoder::extend`]) run the same [`Decoder::layer`]; only where attention finds its keys
//! differs. With the kernels' fixed order of sums that makes their hidden states equal to the bit.
//!
//! Usually only some rows are asked for their hidden state (a response's, the last of each reward): then the last layer
//! computes keys and values of all rows, and the rest of those alone ([`Decoder::forward_to`]).
//!
//! What a layer saves for backward is in [`LayerTape`]: norm outputs and activations are computed again,
//! being cheap. With [`Recompute::Layer`] only each layer's input is saved and the rest runs twice.
//!
//! Letters: `n` rows, `c` width, `q` h*d, `u` up width, `f` feed-forward width, `m` predictions.
//! Not here: losses (`train`), sampling (`lm`).

use crate::batch::{Batch, Prediction};
use crate::cache::{KvCache, SequenceId};
use crate::config::{AttentionParams, DecoderConfig, Head, Heads, NormKind, Position, QkNorm};
use crate::cpu::attention::Feed;
use crate::cpu::linear::Write;
use crate::cpu::logprob::{HeadRef, LogProbs, LogitParams};
use crate::cpu::rope::RopeTable;
use crate::cpu::vector;
use crate::cpu::{Cpu, Precision, activation, attention, bf16, embed, linear, logprob, norm, qk_norm, rope};
use crate::params::{Buffer, LayerParams, Layout, LinearParams, NormParams, Params};

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// Everything that is dear to compute again.
    None,
    /// Each layer's input: a third more arithmetic, the memory of one layer.
    Layer,
}

/// One family member: its shape and where its parameters lie. Holds no numbers.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// What it is made of.
    pub config: DecoderConfig,
    /// Where its tensors lie in a flat buffer.
    pub layout: Layout,
}

/// What one layer saves.
#[derive(Debug, Default)]
struct LayerTape {
    x: Buffer,
    attn_norm: NormTape,
    qk_raw: Buffer,
    qk_rstd: Buffer,
    qkv: Kept,
    max: Buffer,
    sum: Buffer,
    attn: Kept,
    attn_proj: Buffer,
    attn_post_norm: NormTape,
    x_mid: Buffer,
    mlp_norm: NormTape,
    up: Kept,
    mlp_proj: Buffer,
    mlp_post_norm: NormTape,
}

/// An activation that backward reads: as it was or, where products are in bf16, rounded, in half the memory.
#[derive(Debug, Default)]
struct Kept {
    floats: Buffer,
    /// Two bf16 in the place of a float.
    halves: Buffer,
}

impl Kept {
    /// Where to compute it: in its place, or in the scratch, to be rounded.
    fn target<'a>(
        precision: Precision,
        floats: &'a mut Buffer,
        scratch: &'a mut Buffer,
        len: usize,
    ) -> &'a mut [f32] {
        let buffer = if precision == Precision::F32 { floats } else { scratch };
        buffer.grow(len);
        &mut buffer[..len]
    }

    /// It, from where it is or widened into the scratch.
    fn read<'a>(&'a self, cpu: &Cpu, precision: Precision, scratch: &'a mut Buffer, len: usize) -> &'a [f32] {
        if precision == Precision::F32 {
            return &self.floats[..len];
        }
        scratch.grow(len);
        bf16::widen(cpu, &mut scratch[..len], &self.halves);
        &scratch[..len]
    }
}

/// Statistics of one normalisation: `[n]` each, means only for LayerNorm.
#[derive(Debug, Default)]
struct NormTape {
    mean: Buffer,
    rstd: Buffer,
}

/// Buffers that live for one operation or one layer.
#[derive(Debug, Default)]
struct Work {
    kept_x: Buffer,
    kept_attn: Buffer,
    qkv: Buffer,
    attn: Buffer,
    up: Buffer,
    y: Buffer,
    act: Buffer,
    head: Buffer,
    rows: Buffer,
    d_rows: Buffer,
    d_x_mid: Buffer,
    d_y: Buffer,
    d_proj: Buffer,
    d_attn: Buffer,
    d_qkv: Buffer,
    d_act: Buffer,
    d_up: Buffer,
}

/// The memory of a forward and backward pass. Buffers grow to the largest batch seen and are reused.
#[derive(Debug, Default)]
pub struct Tape {
    n: usize,
    /// The rows that have a hidden state, ascending; all, if none.
    kept: Option<Vec<usize>>,
    recompute: Option<Recompute>,
    positions: Vec<usize>,
    rope: RopeTable,
    /// With [`Recompute::Layer`] (and when decoding) only `x` of each is used, and `shared` for the rest.
    layers: Vec<LayerTape>,
    shared: LayerTape,
    x: Buffer,
    final_norm: NormTape,
    hidden: Buffer,
    d_hidden: Buffer,
    d_x: Buffer,
    work: Work,
}

/// Where attention finds the keys of a layer's rows.
enum Keys<'a> {
    Batch(&'a Batch),
    Cache(&'a mut KvCache, &'a [Feed]),
}

impl Tape {
    fn hidden_rows(&self) -> usize {
        self.kept.as_ref().map_or(self.n, Vec::len)
    }
}

impl Decoder {
    /// A decoder of this shape.
    ///
    /// # Errors
    ///
    /// What [`DecoderConfig::validate`] says.
    pub fn new(config: DecoderConfig) -> Result<Self, String> {
        config.validate()?;
        let layout = Layout::new(&config);
        Ok(Self { config, layout })
    }

    /// Runs the layers over a batch and keeps in the tape what [`Decoder::backward`] needs.
    ///
    /// # Panics
    ///
    /// If an id is outside the vocabulary or a row is longer than the model's positions.
    pub fn forward(&self, cpu: &Cpu, params: &Params, batch: &Batch, recompute: Recompute, tape: &mut Tape) {
        tape.kept = None;
        self.run(cpu, params, batch, recompute, tape);
    }

    /// The same for the hidden states of some rows alone, in any order and however often: the same bits, in less time.
    ///
    /// # Panics
    ///
    /// As [`Decoder::forward`], and if a row is not in the batch.
    pub fn forward_to(
        &self,
        cpu: &Cpu,
        params: &Params,
        batch: &Batch,
        rows: impl IntoIterator<Item = usize>,
        recompute: Recompute,
        tape: &mut Tape,
    ) {
        let mut rows: Vec<usize> = rows.into_iter().collect();
        rows.sort_unstable();
        rows.dedup();
        let n = batch.tokens();
        assert!(rows.last().is_none_or(|&row| row < n), "forward: row {:?} of {n}", rows.last());
        // Gathering nearly all rows would cost more than it saves.
        tape.kept = (!rows.is_empty() && rows.len() < n - n / 8).then_some(rows);
        self.run(cpu, params, batch, recompute, tape);
    }

    fn run(&self, cpu: &Cpu, params: &Params, batch: &Batch, recompute: Recompute, tape: &mut Tape) {
        assert!(
            batch.positions_max() <= self.config.positions_max,
            "forward: a row of {} tokens in a model of {} positions",
            batch.positions_max(),
            self.config.positions_max
        );
        tape.positions = batch.positions();
        self.begin(cpu, params, &batch.ids, recompute, tape);
        for l in 0..self.config.layers {
            self.run_layer(cpu, params, l, Keys::Batch(batch), tape);
        }
        self.finish(cpu, params, tape);
    }

    /// Continues sequences in the cache by some tokens each and computes the hidden rows of the new tokens,
    /// in order. A sequence occurs at most once. The bits are those of [`Decoder::forward`] on whole rows.
    ///
    /// # Panics
    ///
    /// As [`Decoder::forward`]; if the cache is of another precision than the weights.
    pub fn extend(
        &self,
        cpu: &Cpu,
        params: &Params,
        cache: &mut KvCache,
        tokens: &[(SequenceId, &[u32])],
        tape: &mut Tape,
    ) {
        assert_eq!(cache.precision(), params.precision(), "extend: the cache is of the weights' precision");
        tape.kept = None;
        let mut feeds = Vec::with_capacity(tokens.len());
        let mut ids = Vec::new();
        tape.positions.clear();
        for &(sequence, new) in tokens {
            let position = cache.reserve(sequence, new.len());
            let end = position + new.len();
            assert!(end <= self.config.positions_max, "extend: {end} tokens in a sequence");
            feeds.push(Feed { sequence, start: ids.len(), len: new.len(), position });
            ids.extend_from_slice(new);
            tape.positions.extend(position..end);
        }
        self.begin(cpu, params, &ids, Recompute::Layer, tape);
        for l in 0..self.config.layers {
            self.run_layer(cpu, params, l, Keys::Cache(cache, &feeds), tape);
        }
        self.finish(cpu, params, tape);
    }

    fn begin(&self, cpu: &Cpu, params: &Params, ids: &[u32], recompute: Recompute, tape: &mut Tape) {
        let (config, n) = (&self.config, ids.len());
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab) {
            panic!("forward: token {id} in a vocabulary of {}", config.vocab);
        }
        tape.n = n;
        tape.recompute = Some(recompute);
        tape.layers.resize_with(config.layers, LayerTape::default);
        if let Position::Rotary { inv_freq } = &config.position {
            tape.rope.fill(cpu, &tape.positions, inv_freq);
        }
        tape.x.grow(n * config.width);
        embed::forward(
            cpu,
            &mut tape.x[..n * config.width],
            ids,
            &tape.positions,
            params.slice(&self.layout, self.layout.embed),
            self.layout.position_embed.map(|index| params.slice(&self.layout, index)),
            config.embed_scale,
            config.width,
        );
    }

    fn run_layer(&self, cpu: &Cpu, params: &Params, l: usize, keys: Keys<'_>, tape: &mut Tape) {
        let len = tape.n * self.config.width;
        let Tape { n, kept, recompute, rope, layers, shared, x, work, .. } = tape;
        let layer = match recompute {
            Some(Recompute::Layer) => {
                if matches!(keys, Keys::Batch(_)) {
                    layers[l].x.grow(len);
                    cpu.copy(&mut layers[l].x[..len], &x[..len]);
                }
                shared
            }
            _ => &mut layers[l],
        };
        // The layer reads `x` where it keeps it, and writes its output into a buffer of an earlier pass.
        std::mem::swap(&mut layer.x, x);
        x.grow(len);
        let kept = self.kept_in(l, kept);
        self.layer(cpu, params, l, *n, kept, keys, rope, layer, work, &mut x[..len]);
    }

    /// The rows that layer `l` is computed for, where not for all.
    fn kept_in<'k>(&self, l: usize, kept: &'k Option<Vec<usize>>) -> Option<&'k [usize]> {
        kept.as_deref().filter(|_| l + 1 == self.config.layers)
    }

    /// One layer: reads `tape.x`, writes `x_out` and the rest of the tape. After attention only the `kept` rows go on, side
    /// by side.
    fn layer(
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
        let (config, p) = (&self.config, self.layout.layers[l]);
        let (c, shape) = (config.width, self.heads());
        let (q, w, u, f) = (shape.q_width(), shape.qkv_width(), config.up_width(), config.ffn);

        // Attention.
        work.y.grow(n * c);
        let y = &mut work.y[..n * c];
        self.pre_norm(cpu, params, p.attn_norm, y, &mut tape.attn_norm, &tape.x[..n * c]);
        let precision = params.precision();
        let mut scratch = [&mut work.qkv, &mut work.attn, &mut work.up].map(std::mem::take);
        let [qkv_scratch, attn_scratch, up_scratch] = &mut scratch;
        let qkv = Kept::target(precision, &mut tape.qkv.floats, qkv_scratch, n * w);
        self.linear(cpu, params, p.qkv, qkv, y);
        if config.qk_norm != QkNorm::None {
            let qk = q + shape.kv_width();
            tape.qk_raw.grow(n * qk);
            for (raw, row) in tape.qk_raw.chunks_exact_mut(qk).zip(qkv.chunks_exact(w)) {
                raw.copy_from_slice(&row[..qk]);
            }
            let per_head = config.qk_norm == QkNorm::PerHead;
            let rstd_len = n * qk_norm::groups(per_head, shape);
            tape.qk_rstd.grow(rstd_len);
            let (w_q, w_k) = self.qk_norm_weights(params, &p);
            let rstd = &mut tape.qk_rstd[..rstd_len];
            qk_norm::forward(cpu, qkv, rstd, per_head, w_q, w_k, shape, config.norm_eps);
        }
        if let Position::Rotary { .. } = config.position {
            rope::rotate(cpu, qkv, rope, shape, false);
        }
        if precision == Precision::Bf16 {
            // Factors of attention's products, so they are rounded before they are used.
            bf16::keep(cpu, &mut tape.qkv.halves, qkv, true);
        }
        let attn = Kept::target(precision, &mut tape.attn.floats, attn_scratch, n * q);
        match keys {
            Keys::Batch(batch) => {
                tape.max.grow(n * shape.heads);
                tape.sum.grow(n * shape.heads);
                let max = &mut tape.max[..n * shape.heads];
                let sum = &mut tape.sum[..n * shape.heads];
                attention::forward(cpu, precision, attn, max, sum, qkv, batch, shape, self.attention(l));
            }
            Keys::Cache(cache, feeds) => {
                attention::store(cache, qkv, feeds, l, shape);
                attention::forward_cached(cpu, attn, qkv, cache, feeds, l, shape, self.attention(l));
            }
        }
        if precision == Precision::Bf16 {
            bf16::keep(cpu, &mut tape.attn.halves, attn, false);
        }
        let (mut kept_x, mut kept_attn) =
            (std::mem::take(&mut work.kept_x), std::mem::take(&mut work.kept_attn));
        let n = kept.map_or(n, <[usize]>::len);
        let (x, attn) = match kept {
            None => (&tape.x[..n * c], &attn[..n * q]),
            Some(kept) => {
                gather_rows(&mut kept_x, &tape.x, kept.iter().copied(), c);
                gather_rows(&mut kept_attn, attn, kept.iter().copied(), q);
                (&kept_x[..n * c], &kept_attn[..n * q])
            }
        };
        let x_out = &mut x_out[..n * c];
        let post = (p.attn_post_norm, &mut tape.attn_proj, &mut tape.attn_post_norm);
        let mlp_in = if config.parallel_residual {
            self.add_block(cpu, params, p.attn_out, post, x_out, Some(x), attn, work);
            x
        } else {
            tape.x_mid.grow(n * c);
            let x_mid = &mut tape.x_mid[..n * c];
            self.add_block(cpu, params, p.attn_out, post, x_mid, Some(x), attn, work);
            x_mid
        };

        // Feed-forward.
        let y = &mut work.y[..n * c];
        self.pre_norm(cpu, params, p.mlp_norm, y, &mut tape.mlp_norm, mlp_in);
        let up = Kept::target(precision, &mut tape.up.floats, up_scratch, n * u);
        self.linear(cpu, params, p.up, up, y);
        let mut act = std::mem::take(&mut work.act);
        act.grow(n * f);
        activation::forward(cpu, config.mlp, &mut act[..n * f], up, f);
        if precision == Precision::Bf16 {
            bf16::keep(cpu, &mut tape.up.halves, up, false);
        }
        let post = (p.mlp_post_norm, &mut tape.mlp_proj, &mut tape.mlp_post_norm);
        let onto = (!config.parallel_residual).then_some(mlp_in);
        self.add_block(cpu, params, p.down, post, x_out, onto, &act[..n * f], work);
        let [qkv, attn, up] = scratch;
        *work = Work { act, kept_x, kept_attn, qkv, attn, up, ..std::mem::take(work) };
    }

    /// `x = onto + w y + b`, or `x = onto + norm(w y + b)`; onto what `x` holds where nothing is given.
    fn add_block(
        &self,
        cpu: &Cpu,
        params: &Params,
        w: LinearParams,
        post: (Option<NormParams>, &mut Buffer, &mut NormTape),
        x: &mut [f32],
        onto: Option<&[f32]>,
        y: &[f32],
        work: &mut Work,
    ) {
        let c = self.config.width;
        let (norm_params, proj, norm_tape) = post;
        // `x = onto + b`, row by row.
        let start = |x: &mut [f32], row: usize, b: &[f32]| {
            if let Some(onto) = onto {
                x.copy_from_slice(&onto[row * c..(row + 1) * c]);
            }
            vector::add(cpu.isa(), x, b);
        };
        let Some(norm_params) = norm_params else {
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
        proj.grow(x.len());
        let proj = &mut proj[..x.len()];
        self.linear(cpu, params, w, proj, y);
        work.y.grow(x.len());
        let normed = &mut work.y[..x.len()];
        self.norm(cpu, params, norm_params, normed, norm_tape, proj);
        let normed = &*normed;
        cpu.for_each_chunk(x, c, |row, x_c| start(x_c, row, &normed[row * c..(row + 1) * c]));
    }

    fn finish(&self, cpu: &Cpu, params: &Params, tape: &mut Tape) {
        let len = tape.hidden_rows() * self.config.width;
        tape.hidden.grow(len);
        let hidden = &mut tape.hidden[..len];
        self.norm(cpu, params, self.layout.final_norm, hidden, &mut tape.final_norm, &tape.x[..len]);
    }

    /// Turns `d_hidden` of the tape (see the heads' backward) into parameter gradients, added to `grads`.
    ///
    /// `batch` and `params` are those of the forward pass.
    ///
    /// # Panics
    ///
    /// If no forward pass over this batch came before, or no head's backward.
    pub fn backward(&self, cpu: &Cpu, params: &Params, batch: &Batch, tape: &mut Tape, grads: &mut Params) {
        let (config, layout) = (&self.config, &self.layout);
        let (n, c) = (tape.n, config.width);
        assert_eq!(n, batch.tokens(), "backward: another batch than forward's");
        let hidden_len = tape.hidden_rows() * c;
        assert!(tape.d_hidden.len() >= hidden_len, "backward: no head's backward came before");
        tape.d_x.grow(n * c);
        tape.d_x[..hidden_len].fill(0.0);
        self.norm_backward(
            cpu,
            params,
            grads,
            layout.final_norm,
            &mut tape.d_x[..hidden_len],
            &tape.d_hidden[..hidden_len],
            &tape.x[..hidden_len],
            &tape.final_norm,
        );
        for l in (0..config.layers).rev() {
            let Tape { kept, recompute, rope, layers, shared, x, d_x, work, .. } = &mut *tape;
            let kept = self.kept_in(l, kept);
            let layer = match recompute {
                Some(Recompute::Layer) => {
                    shared.x.grow(n * c);
                    cpu.copy(&mut shared.x[..n * c], &layers[l].x[..n * c]);
                    let keys = Keys::Batch(batch);
                    self.layer(cpu, params, l, n, kept, keys, rope, shared, work, &mut x[..n * c]);
                    &*shared
                }
                _ => &layers[l],
            };
            self.layer_backward(cpu, params, grads, l, batch, kept, rope, layer, work, &mut d_x[..n * c]);
        }
        let (embed, positions) = (layout.embed, layout.position_embed);
        let (d_table, d_positions) = match positions {
            None => (grads.slice_mut(layout, embed), None),
            Some(positions) => {
                let [table, positions] = grads
                    .data
                    .get_disjoint_mut([layout.specs[embed].range(), layout.specs[positions].range()])
                    .expect("tensors of a layout do not overlap");
                (table, Some(positions))
            }
        };
        let d_x = &tape.d_x[..n * c];
        let scale = config.embed_scale;
        embed::backward(cpu, d_table, d_positions, d_x, &batch.ids, &tape.positions, scale, c);
    }

    /// `d_x` comes in as the gradient of the layer's output, `kept` rows side by side, and leaves as that of its input, all rows.
    fn layer_backward(
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
        let (config, p) = (&self.config, self.layout.layers[l]);
        let (n, c, shape) = (batch.tokens(), config.width, self.heads());
        let (q, w, u, f) = (shape.q_width(), shape.qkv_width(), config.up_width(), config.ffn);
        // Rows that went on after attention.
        let m = kept.map_or(n, <[usize]>::len);
        let Work {
            kept_x,
            kept_attn,
            qkv,
            attn,
            up,
            y,
            act,
            d_x_mid,
            d_y,
            d_proj,
            d_attn,
            d_qkv,
            d_act,
            d_up,
            ..
        } = work;
        let precision = params.precision();
        let up = tape.up.read(cpu, precision, up, m * u);
        let all_attn = tape.attn.read(cpu, precision, attn, n * q);
        for (buffer, len) in [
            (&mut *y, n * c),
            (&mut *act, m * f),
            (&mut *d_x_mid, m * c),
            (&mut *d_y, n * c),
            (&mut *d_proj, m * c),
            (&mut *d_attn, n * q),
            (&mut *d_qkv, n * w),
            (&mut *d_act, m * f),
            (&mut *d_up, m * u),
        ] {
            buffer.grow(len);
        }
        let (x, attn) = match kept {
            None => (&tape.x[..n * c], all_attn),
            Some(kept) => {
                gather_rows(kept_x, &tape.x, kept.iter().copied(), c);
                gather_rows(kept_attn, all_attn, kept.iter().copied(), q);
                (&kept_x[..m * c], &kept_attn[..m * q])
            }
        };
        let mlp_in = if config.parallel_residual { x } else { &tape.x_mid[..m * c] };
        let d_out_x = &mut d_x[..m * c];

        // Feed-forward: x_out = x_mid + post(down(act(up(pre(x_mid))))).
        let d_proj = &mut d_proj[..m * c];
        let d_out = match p.mlp_post_norm {
            None => &*d_out_x,
            Some(norm) => {
                d_proj.fill(0.0);
                let proj = &tape.mlp_proj[..m * c];
                self.norm_backward(cpu, params, grads, norm, d_proj, d_out_x, proj, &tape.mlp_post_norm);
                &*d_proj
            }
        };
        let (act, d_act, d_up) = (&mut act[..m * f], &mut d_act[..m * f], &mut d_up[..m * u]);
        activation::forward(cpu, config.mlp, act, up, f);
        self.linear_backward(cpu, params, grads, p.down, d_act, Write::Set, d_out, act);
        activation::backward(cpu, config.mlp, d_up, d_act, up, f);
        // The residual: sequential blocks hand down the sum of what comes through and past them; parallel ones keep
        // what comes through apart, since attention's block reads d_x as it was.
        let d_mlp_in = if config.parallel_residual {
            d_x_mid[..m * c].fill(0.0);
            &mut d_x_mid[..m * c]
        } else {
            &mut *d_out_x
        };
        match p.mlp_norm {
            None => self.linear_backward(cpu, params, grads, p.up, d_mlp_in, Write::Add, d_up, mlp_in),
            Some(norm) => {
                let (y, d_y) = (&mut y[..m * c], &mut d_y[..m * c]);
                self.norm_again(cpu, params, norm, y, mlp_in);
                self.linear_backward(cpu, params, grads, p.up, d_y, Write::Set, d_up, y);
                self.norm_backward(cpu, params, grads, norm, d_mlp_in, d_y, mlp_in, &tape.mlp_norm);
            }
        }

        // Attention: x_mid = x + post(attn_out(attention(pre(x)))).
        let d_out = match p.attn_post_norm {
            None => &*d_out_x,
            Some(norm) => {
                d_proj.fill(0.0);
                let proj = &tape.attn_proj[..m * c];
                self.norm_backward(cpu, params, grads, norm, d_proj, d_out_x, proj, &tape.attn_post_norm);
                &*d_proj
            }
        };
        self.linear_backward(cpu, params, grads, p.attn_out, &mut d_attn[..m * q], Write::Set, d_out, attn);
        if config.parallel_residual {
            let d = &d_x_mid[..m * c];
            cpu.for_each_chunk(d_out_x, c, |row, d_x| {
                vector::add(cpu.isa(), d_x, &d[row * c..(row + 1) * c])
            });
        }
        if let Some(kept) = kept {
            spread_rows(&mut d_attn[..n * q], kept, q);
            spread_rows(d_x, kept, c);
        }
        let (d_attn, d_qkv) = (&mut d_attn[..n * q], &mut d_qkv[..n * w]);
        cpu.clear(d_qkv);
        let (max, sum) = (&tape.max[..n * shape.heads], &tape.sum[..n * shape.heads]);
        let qkv = tape.qkv.read(cpu, precision, qkv, n * w);
        attention::backward(
            cpu,
            precision,
            d_qkv,
            d_attn,
            all_attn,
            max,
            sum,
            qkv,
            batch,
            shape,
            self.attention(l),
        );
        if let Position::Rotary { .. } = config.position {
            rope::rotate(cpu, d_qkv, rope, shape, true);
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
        let (y, d_y) = (&mut y[..n * c], &mut d_y[..n * c]);
        let x = &tape.x[..n * c];
        match p.attn_norm {
            None => self.linear_backward(cpu, params, grads, p.qkv, d_x, Write::Add, d_qkv, x),
            Some(norm) => {
                self.norm_again(cpu, params, norm, y, x);
                self.linear_backward(cpu, params, grads, p.qkv, d_y, Write::Set, d_qkv, y);
                self.norm_backward(cpu, params, grads, norm, d_x, d_y, x, &tape.attn_norm);
            }
        }
    }

    /// The normalised last hidden states, `[n, c]`, or of the rows that [`Decoder::forward_to`] was asked for, ascending.
    pub fn hidden<'t>(&self, tape: &'t Tape) -> &'t [f32] {
        &tape.hidden[..tape.hidden_rows() * self.config.width]
    }

    /// Zeroes `d_hidden`, before the heads add their gradients to it.
    pub fn begin_backward(&self, tape: &mut Tape) {
        let len = tape.hidden_rows() * self.config.width;
        tape.d_hidden.grow(len);
        tape.d_hidden[..len].fill(0.0);
    }

    /// Log-probs and entropies of the predictions, at this temperature.
    ///
    /// # Panics
    ///
    /// If the head is scalar or a prediction's row is not in the batch.
    pub fn logprobs(
        &self,
        cpu: &Cpu,
        params: &Params,
        tape: &mut Tape,
        predictions: &[Prediction],
        temperature: f32,
    ) -> LogProbs {
        let head = self.head(params, temperature);
        let (tokens, Tape { kept, hidden, work, .. }) = (tokens_of(predictions), tape);
        gather_rows(
            &mut work.rows,
            hidden,
            predictions.iter().map(|p| place(kept, p.row)),
            self.config.width,
        );
        let rows = &work.rows[..predictions.len() * self.config.width];
        logprob::forward(cpu, rows, &tokens, head, &mut work.head)
    }

    /// `ln sum_v p_v^2` of the distributions that the predictions are made from, at this temperature.
    ///
    /// # Panics
    ///
    /// As [`Decoder::logprobs`].
    pub fn log_sum_sq_probs(
        &self,
        cpu: &Cpu,
        params: &Params,
        tape: &mut Tape,
        predictions: &[Prediction],
        temperature: f32,
    ) -> Vec<f32> {
        let (head, m, c) = (self.head(params, temperature), predictions.len(), self.config.width);
        let Tape { kept, hidden, work, .. } = tape;
        gather_rows(&mut work.rows, hidden, predictions.iter().map(|p| place(kept, p.row)), c);
        logprob::log_sum_sq(cpu, &work.rows[..m * c], m, head, &mut work.head)
    }

    /// Adds the gradient of the predictions' log-probs and entropies into `d_hidden` and `grads`.
    ///
    /// # Panics
    ///
    /// If there is not one gradient a prediction, or `begin_backward` was not called.
    pub fn logprobs_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        tape: &mut Tape,
        predictions: &[Prediction],
        temperature: f32,
        d_logprob_m: &[f32],
        d_entropy_m: &[f32],
        grads: &mut Params,
    ) {
        let (m, c, head) = (predictions.len(), self.config.width, self.head(params, temperature));
        let (tokens, Tape { kept, hidden, d_hidden, work, .. }) = (tokens_of(predictions), tape);
        gather_rows(&mut work.rows, hidden, predictions.iter().map(|p| place(kept, p.row)), c);
        work.d_rows.grow(m * c);
        let d_rows = &mut work.d_rows[..m * c];
        d_rows.fill(0.0);
        let d_w = grads.slice_mut(&self.layout, self.layout.head);
        let rows = &work.rows[..m * c];
        logprob::backward(cpu, d_rows, d_w, d_logprob_m, d_entropy_m, rows, &tokens, head, &mut work.head);
        for (p, d_c) in predictions.iter().zip(d_rows.chunks_exact(c)) {
            let row = place(kept, p.row);
            vector::add(cpu.isa(), &mut d_hidden[row * c..(row + 1) * c], d_c);
        }
    }

    /// Final logits of some rows, `[rows, v]`: for tests and for sampling.
    pub fn logits(
        &self,
        cpu: &Cpu,
        params: &Params,
        tape: &mut Tape,
        rows: &[usize],
        temperature: f32,
    ) -> Vec<f32> {
        let head = self.head(params, temperature);
        let Tape { kept, hidden, work, .. } = tape;
        gather_rows(&mut work.rows, hidden, rows.iter().map(|&row| place(kept, row)), self.config.width);
        let mut y = vec![0.0; rows.len() * self.config.vocab];
        logprob::logits(cpu, &mut y, &work.rows[..rows.len() * self.config.width], head);
        y
    }

    /// The scalar head at some rows: rewards or values.
    ///
    /// # Panics
    ///
    /// If the head is not scalar.
    pub fn scalars(&self, params: &Params, tape: &Tape, rows: &[usize]) -> Vec<f32> {
        let w_c = self.scalar_head(params);
        let c = w_c.len();
        rows.iter()
            .map(|&row| {
                let row = place(&tape.kept, row);
                let x_c = &tape.hidden[row * c..(row + 1) * c];
                x_c.iter().zip(w_c).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() as f32
            })
            .collect()
    }

    /// Adds the gradient of the scalars at `rows` into `d_hidden` and `grads`.
    pub fn scalars_backward(
        &self,
        params: &Params,
        tape: &mut Tape,
        rows: &[usize],
        d_scalar: &[f32],
        grads: &mut Params,
    ) {
        assert_eq!(rows.len(), d_scalar.len(), "scalars: one gradient a row");
        let w_c = self.scalar_head(params);
        let c = w_c.len();
        let d_w = grads.slice_mut(&self.layout, self.layout.head);
        for (&row, &d) in rows.iter().zip(d_scalar) {
            let row = place(&tape.kept, row);
            let x_c = &tape.hidden[row * c..(row + 1) * c];
            let d_x_c = &mut tape.d_hidden[row * c..(row + 1) * c];
            for i in 0..c {
                d_w[i] += d * x_c[i];
                d_x_c[i] += d * w_c[i];
            }
        }
    }

    /// `KL(self || other)` in nats at each prediction's row, over the whole vocabulary.
    pub fn kl_full(
        &self,
        cpu: &Cpu,
        (params, tape): (&Params, &Tape),
        (other, other_params, other_tape): (&Decoder, &Params, &Tape),
        predictions: &[Prediction],
        temperature: f32,
    ) -> Vec<f32> {
        let mut gathered = [Buffer::default(), Buffer::default()];
        for (out, (tape, width)) in
            gathered.iter_mut().zip([(tape, self.config.width), (other_tape, other.config.width)])
        {
            gather_rows(out, &tape.hidden, predictions.iter().map(|p| place(&tape.kept, p.row)), width);
        }
        let [p, q] = &gathered;
        let (head_p, head_q) = (self.head(params, temperature), other.head(other_params, temperature));
        logprob::kl_full(cpu, p, head_p, q, head_q, predictions.len())
    }

    fn head<'p>(&self, params: &'p Params, temperature: f32) -> HeadRef<'p> {
        assert_ne!(self.config.head, Head::Scalar, "a scalar head has no log-probs");
        HeadRef {
            w: params.weights(&self.layout.specs[self.layout.head]),
            vocab: self.config.vocab,
            width: self.config.width,
            logits: LogitParams { softcap: self.config.logit_softcap, temperature },
        }
    }

    fn scalar_head<'p>(&self, params: &'p Params) -> &'p [f32] {
        assert_eq!(self.config.head, Head::Scalar, "only a scalar head has scalars");
        params.slice(&self.layout, self.layout.head)
    }

    fn heads(&self) -> Heads {
        let DecoderConfig { heads, kv_heads, head_dim, .. } = self.config;
        Heads { heads, kv_heads, head_dim }
    }

    fn attention(&self, l: usize) -> AttentionParams {
        AttentionParams {
            scale: self.config.attn_scale,
            softcap: self.config.attn_softcap,
            window: self.config.window_l[l],
        }
    }

    fn qk_norm_weights<'p>(&self, params: &'p Params, p: &LayerParams) -> (&'p [f32], &'p [f32]) {
        let weight = |index: Option<usize>| index.map_or(&[][..], |index| params.slice(&self.layout, index));
        (weight(p.q_norm), weight(p.k_norm))
    }

    fn pre_norm(
        &self,
        cpu: &Cpu,
        params: &Params,
        p: Option<NormParams>,
        y: &mut [f32],
        tape: &mut NormTape,
        x: &[f32],
    ) {
        match p {
            Some(p) => self.norm(cpu, params, p, y, tape, x),
            None => cpu.copy(y, x),
        }
    }

    fn norm(&self, cpu: &Cpu, params: &Params, p: NormParams, y: &mut [f32], tape: &mut NormTape, x: &[f32]) {
        let n = x.len() / self.config.width;
        let means = if self.config.norm == NormKind::Layer { n } else { 0 };
        tape.mean.grow(means);
        tape.rstd.grow(n);
        let (mean, rstd) = (&mut tape.mean[..means], &mut tape.rstd[..n]);
        let w = params.slice(&self.layout, p.weight);
        let b = p.bias.map(|b| params.slice(&self.layout, b));
        norm::forward(cpu, self.config.norm, y, mean, rstd, x, w, b, self.config.norm_eps);
    }

    /// A normalisation's output once more, for backward.
    fn norm_again(&self, cpu: &Cpu, params: &Params, p: NormParams, y: &mut [f32], x: &[f32]) {
        self.norm(cpu, params, p, y, &mut NormTape::default(), x);
    }

    fn norm_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        p: NormParams,
        d_x: &mut [f32],
        d_y: &[f32],
        x: &[f32],
        tape: &NormTape,
    ) {
        let n = x.len() / self.config.width;
        let means = if self.config.norm == NormKind::Layer { n } else { 0 };
        let w = params.slice(&self.layout, p.weight);
        let specs = &self.layout.specs;
        let (d_w, d_b) = match p.bias {
            None => (grads.slice_mut(&self.layout, p.weight), None),
            Some(bias) => {
                let [d_w, d_b] = grads
                    .data
                    .get_disjoint_mut([specs[p.weight].range(), specs[bias].range()])
                    .expect("tensors of a layout do not overlap");
                (d_w, Some(d_b))
            }
        };
        let (mean, rstd) = (&tape.mean[..means], &tape.rstd[..n]);
        norm::backward(cpu, self.config.norm, d_x, d_w, d_b, d_y, x, w, mean, rstd);
    }

    fn linear(&self, cpu: &Cpu, params: &Params, p: LinearParams, y: &mut [f32], x: &[f32]) {
        let (n, k) = self.layout.specs[p.weight].shape.rows_cols();
        let bias = p.bias.map(|b| params.slice(&self.layout, b));
        linear::forward(cpu, y, x, params.weights(&self.layout.specs[p.weight]), bias, n, k, Write::Set);
    }

    fn linear_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        grads: &mut Params,
        p: LinearParams,
        d_x: &mut [f32],
        write: Write<'_>,
        d_y: &[f32],
        x: &[f32],
    ) {
        let (n, k) = self.layout.specs[p.weight].shape.rows_cols();
        let w = params.weights(&self.layout.specs[p.weight]);
        linear::backward_input(cpu, d_x, d_y, w, n, k, write);
        let specs = &self.layout.specs;
        let (d_w, d_b) = match p.bias {
            None => (grads.slice_mut(&self.layout, p.weight), None),
            Some(bias) => {
                let [d_w, d_b] = grads
                    .data
                    .get_disjoint_mut([specs[p.weight].range(), specs[bias].range()])
                    .expect("tensors of a layout do not overlap");
                (d_w, Some(d_b))
            }
        };
        linear::backward_weight(cpu, w.precision(), d_w, d_b, d_y, x, n, k);
    }
}

fn tokens_of(predictions: &[Prediction]) -> Vec<u32> {
    predictions.iter().map(|p| p.token).collect()
}

fn gather_rows(out: &mut Buffer, x_nc: &[f32], rows: impl ExactSizeIterator<Item = usize>, c: usize) {
    out.grow(rows.len() * c);
    for (out_c, row) in out.chunks_exact_mut(c).zip(rows) {
        out_c.copy_from_slice(&x_nc[row * c..(row + 1) * c]);
    }
}

/// Where the hidden state of a row is.
///
/// # Panics
///
/// If the forward pass was not asked for it.
fn place(kept: &Option<Vec<usize>>, row: usize) -> usize {
    kept.as_ref()
        .map_or(row, |kept| kept.binary_search(&row).expect("a row that the forward pass was asked for"))
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
