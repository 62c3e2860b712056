//! The shape of a decoder: one family of models, its differences as typed options.
//!
//! Every architecture that Polity reads is a value of [`DecoderConfig`]. A difference between two
//! architectures is a field here and a branch in one op, never a copy of the decoder. Reading a
//! `config.json` into this type is `lm`'s work; nothing here knows a file format.
//!
//! Letters: `c` width, `h` query heads, `g` key/value heads, `d` head size, `f` feed-forward width,
//! `v` vocabulary, `l` layers.

/// What a decoder is made of. All fields are explicit: there is no default architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// `v`: rows of the embedding table.
    pub vocab: usize,
    /// `c`: channels of the residual stream.
    pub width: usize,
    /// `l`: number of layers.
    pub layers: usize,
    /// `h`: query heads.
    pub heads: usize,
    /// `g`: key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// `d`: channels of one head.
    pub head_dim: usize,
    /// `f`: channels inside the feed-forward block.
    pub ffn: usize,
    /// Positions the model was made for; longer rows are refused.
    pub positions_max: usize,
    /// Which normalisation.
    pub norm: NormKind,
    /// Added to the mean square (or the variance) under the root.
    pub norm_eps: f32,
    /// Where the normalisations stand.
    pub norm_place: NormPlace,
    /// GPT-NeoX: attention and feed-forward read the same residual and are added together.
    pub parallel_residual: bool,
    /// Normalisation of queries and keys before the rotation.
    pub qk_norm: QkNorm,
    /// How a position enters.
    pub position: Position,
    /// A bias on queries, keys and values.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub attn_out_bias: bool,
    /// A bias on both feed-forward projections.
    pub mlp_bias: bool,
    /// The feed-forward block.
    pub mlp: Mlp,
    /// Factor on `q·k`, usually `1/sqrt(d)`.
    pub attn_scale: f32,
    /// Gemma 2: scores become `cap * tanh(score / cap)`.
    pub attn_softcap: Option<f32>,
    /// `[l]`: a token sees itself and the `window - 1` tokens before it; `None` sees all.
    pub window_l: Vec<Option<usize>>,
    /// Gemma: the embedding is multiplied by this (1 elsewhere).
    pub embed_scale: f32,
    /// Gemma 2: logits become `cap * tanh(logit / cap)`.
    pub logit_softcap: Option<f32>,
    /// What reads the last hidden state.
    pub head: Head,
}

/// The normalisation of a row of `c` channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x * rrms(x) * w`.
    Rms,
    /// Gemma: `x * rrms(x) * (1 + w)`.
    RmsPlusOne,
    /// `(x - mean) / std * w + b`.
    Layer,
}

/// Where a layer normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlace {
    /// `x + f(norm(x))`: Llama, GPT-2 and most others.
    Pre,
    /// `x + norm(f(x))`: OLMo 2.
    Post,
    /// `x + norm(f(norm(x)))`: Gemma 2.
    PreAndPost,
}

impl NormPlace {
    /// Whether the block's input is normalised.
    pub fn pre(self) -> bool {
        self != NormPlace::Post
    }

    /// Whether the block's output is normalised.
    pub fn post(self) -> bool {
        self != NormPlace::Pre
    }
}

/// RMS normalisation of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Qwen 3: each head on its own, one weight of `d` for all heads.
    PerHead,
    /// OLMo 2: all heads of a token together, a weight of `h*d` (queries) and `g*d` (keys).
    Whole,
}

/// How a token knows where it stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// GPT-2: a learned vector per position, added to the embedding.
    Learned,
    /// Rotary: channel pairs `(i, i + r/2)` of the first `r` channels of a head turn by
    /// `position * inv_freq[i]`; the rest of the head is left as it is.
    Rotary {
        /// `[r/2]`: radians per position. Scaled variants (Llama 3) differ only in these numbers.
        inv_freq: Vec<f32>,
    },
}

/// The feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mlp {
    /// `down(silu(gate(x)) * up(x))`.
    GatedSilu,
    /// `down(gelu_tanh(gate(x)) * up(x))`.
    GatedGeluTanh,
    /// `down(gelu(up(x)))`, the exact gelu (error function).
    Gelu,
    /// `down(gelu_tanh(up(x)))`.
    GeluTanh,
}

impl Mlp {
    /// Whether there is a gate beside the up projection.
    pub fn gated(self) -> bool {
        matches!(self, Mlp::GatedSilu | Mlp::GatedGeluTanh)
    }
}

/// What reads the last hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Token logits through the embedding table itself.
    Tied,
    /// Token logits through a matrix of its own, `[v, c]`.
    Untied,
    /// One number a row, `[1, c]`: a reward model or a critic.
    Scalar,
}

impl DecoderConfig {
    /// Width of the query, key and value rows together: `(h + 2g) * d`.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Width of the queries of one token: `h * d`.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys (or values) of one token: `g * d`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Rows of the first feed-forward projection: `2f` with a gate (gate rows first), else `f`.
    pub fn up_width(&self) -> usize {
        if self.mlp.gated() { 2 * self.ffn } else { self.ffn }
    }

    /// The same decoder with another head.
    pub fn with_head(&self, head: Head) -> Self {
        Self { head, ..self.clone() }
    }

    /// Says why no decoder can have this shape, or nothing. Values come from a file, so this is an
    /// error for the caller to dress with the file's name, not a panic.
    pub fn validate(&self) -> Result<(), String> {
        let positive = [
            ("vocab", self.vocab),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("ffn", self.ffn),
            ("positions_max", self.positions_max),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(format!("{name} is 0, at least 1 is needed"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!(
                "{} heads are not a multiple of {} key/value heads",
                self.heads, self.kv_heads
            ));
        }
        if self.window_l.len() != self.layers {
            return Err(format!("{} attention windows for {} layers", self.window_l.len(), self.layers));
        }
        if self.window_l.contains(&Some(0)) {
            return Err("an attention window of 0 tokens".into());
        }
        if let Position::Rotary { inv_freq } = &self.position
            && 2 * inv_freq.len() > self.head_dim
        {
            return Err(format!("{} rotary channels in a head of {}", 2 * inv_freq.len(), self.head_dim));
        }
        if self.parallel_residual && self.norm_place != NormPlace::Pre {
            return Err("a parallel residual is only defined with norms before the blocks".into());
        }
        if !(self.norm_eps >= 0.0 && self.norm_eps.is_finite()) {
            return Err(format!("norm epsilon {} is not a number at or above 0", self.norm_eps));
        }
        for (name, cap) in [("attention", self.attn_softcap), ("logit", self.logit_softcap)] {
            if let Some(cap) = cap
                && !(cap > 0.0 && cap.is_finite())
            {
                return Err(format!("{name} soft cap {cap} is not above 0"));
            }
        }
        Ok(())
    }
}

/// How the row of one token's queries, keys and values is cut: `[h*d | g*d | g*d]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// `h`: query heads.
    pub heads: usize,
    /// `g`: key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// `d`: channels of one head.
    pub head_dim: usize,
}

impl Heads {
    /// Queries of one token: `h * d`.
    pub fn q_width(self) -> usize {
        self.heads * self.head_dim
    }

    /// Keys (or values) of one token: `g * d`.
    pub fn kv_width(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Queries, keys and values of one token: `(h + 2g) * d`.
    pub fn qkv_width(self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// The key/value head that a query head reads: neighbours share one.
    pub fn kv_head(self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }
}

/// How `q·k` becomes a score, and which keys are seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Factor on `q·k`.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// A token sees itself and the `window - 1` before it.
    pub window: Option<usize>,
}
