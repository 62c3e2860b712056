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

mod backward;
mod heads;
mod layer;
mod tape;

pub use tape::Tape;

use tape::LayerTape;

use crate::batch::Batch;
use crate::cache::{KvCache, SequenceId};
use crate::config::{AttentionParams, DecoderConfig, Heads, Position};
use crate::cpu::attention::Feed;
use crate::cpu::linear::Write;
use crate::cpu::{Cpu, embed, linear, norm};
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

/// Where attention finds the keys of a layer's rows.
enum Keys<'a> {
    Batch(&'a Batch),
    Cache(&'a mut KvCache, &'a [Feed]),
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

    fn finish(&self, cpu: &Cpu, params: &Params, tape: &mut Tape) {
        let (rows, norm) = (tape.hidden_rows(), self.layout.final_norm);
        let len = rows * self.config.width;
        let stats = tape.final_norm.room(self.config.norm, rows);
        self.norm(cpu, params, norm, tape.hidden.first_mut(len), stats, &tape.x[..len]);
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

    fn norm_weights<'p>(&self, params: &'p Params, p: NormParams) -> (&'p [f32], Option<&'p [f32]>) {
        (params.slice(&self.layout, p.weight), p.bias.map(|b| params.slice(&self.layout, b)))
    }

    fn norm(
        &self,
        cpu: &Cpu,
        params: &Params,
        p: NormParams,
        y: &mut [f32],
        [mean, rstd]: [&mut [f32]; 2],
        x: &[f32],
    ) {
        let (w, b) = self.norm_weights(params, p);
        norm::forward(cpu, self.config.norm, y, mean, rstd, x, w, b, self.config.norm_eps);
    }

    fn linear(&self, cpu: &Cpu, params: &Params, p: LinearParams, y: &mut [f32], x: &[f32]) {
        let (n, k) = self.layout.specs[p.weight].shape.rows_cols();
        let bias = p.bias.map(|b| params.slice(&self.layout, b));
        linear::forward(cpu, y, x, params.weights(&self.layout.specs[p.weight]), bias, n, k, Write::Set);
    }
}

fn gather_rows(out: &mut Buffer, x_nc: &[f32], rows: impl ExactSizeIterator<Item = usize>, c: usize) {
    out.grow(rows.len() * c);
    for (out_c, row) in out.chunks_exact_mut(c).zip(rows) {
        out_c.copy_from_slice(&x_nc[row * c..(row + 1) * c]);
    }
}
