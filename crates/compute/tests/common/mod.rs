//! Decoders of every kind of difference, small, with random weights.

#![allow(dead_code)]

use polity_compute::*;

/// A stream of numbers in [-1, 1).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn ids(&mut self, n: usize, vocab: usize) -> Vec<u32> {
        (0..n).map(|_| ((self.next() + 1.0) / 2.0 * vocab as f32) as u32 % vocab as u32).collect()
    }
}

/// A Llama of this shape, for measurements: heads, heads of keys and values, and a head's width.
pub fn shape(
    width: usize,
    ffn: usize,
    layers: usize,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    vocab: usize,
) -> DecoderConfig {
    DecoderConfig {
        vocab,
        width,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn,
        positions_max: 4096,
        position: Position::Rotary { inv_freq: (0..head_dim / 2).map(|i| 0.9f32.powi(i as i32)).collect() },
        attn_scale: (head_dim as f32).powf(-0.5),
        window_l: vec![None; layers],
        ..llama()
    }
}

pub fn llama() -> DecoderConfig {
    DecoderConfig {
        vocab: 83,
        width: 48,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 12,
        ffn: 70,
        positions_max: 256,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        norm_place: NormPlace::Pre,
        parallel_residual: false,
        qk_norm: QkNorm::None,
        position: Position::Rotary { inv_freq: (0..6).map(|i| 0.3f32.powi(i)).collect() },
        qkv_bias: false,
        attn_out_bias: false,
        mlp_bias: false,
        mlp: Mlp::GatedSilu,
        attn_scale: 12f32.powf(-0.5),
        attn_softcap: None,
        window_l: vec![None; 2],
        embed_scale: 1.0,
        logit_softcap: None,
        head: Head::Tied,
    }
}

/// One decoder for each way in which families differ.
pub fn families() -> Vec<(&'static str, DecoderConfig)> {
    let rotary =
        |half: usize| Position::Rotary { inv_freq: (0..half as i32).map(|i| 0.3f32.powi(i)).collect() };
    vec![
        ("llama", llama()),
        ("mistral", DecoderConfig { window_l: vec![Some(5); 2], head: Head::Untied, ..llama() }),
        ("qwen2", DecoderConfig { qkv_bias: true, kv_heads: 1, ..llama() }),
        ("qwen3", DecoderConfig { qk_norm: QkNorm::PerHead, head_dim: 16, position: rotary(8), ..llama() }),
        (
            "gemma2",
            DecoderConfig {
                norm: NormKind::RmsPlusOne,
                norm_place: NormPlace::PreAndPost,
                mlp: Mlp::GatedGeluTanh,
                attn_softcap: Some(5.0),
                logit_softcap: Some(3.0),
                window_l: vec![Some(4), None],
                embed_scale: 48f32.sqrt(),
                ..llama()
            },
        ),
        (
            "olmo2",
            DecoderConfig {
                norm_place: NormPlace::Post,
                qk_norm: QkNorm::Whole,
                head: Head::Untied,
                ..llama()
            },
        ),
        (
            "gpt2",
            DecoderConfig {
                kv_heads: 4,
                norm: NormKind::Layer,
                position: Position::Learned,
                qkv_bias: true,
                attn_out_bias: true,
                mlp_bias: true,
                mlp: Mlp::GeluTanh,
                ..llama()
            },
        ),
        (
            "gpt_neox",
            DecoderConfig {
                kv_heads: 4,
                norm: NormKind::Layer,
                parallel_residual: true,
                position: rotary(2),
                qkv_bias: true,
                attn_out_bias: true,
                mlp_bias: true,
                mlp: Mlp::Gelu,
                head: Head::Untied,
                ..llama()
            },
        ),
    ]
}

pub fn random_params(decoder: &Decoder, seed: u64) -> Params {
    let mut params = Params::zeros(&decoder.layout);
    let mut numbers = Numbers(seed);
    for spec in &decoder.layout.specs {
        let (rows, cols) = spec.shape.rows_cols();
        let around_one = spec.name.contains("norm") && spec.name.ends_with("weight");
        let center = if around_one && decoder.config.norm != NormKind::RmsPlusOne { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..rows * cols).map(|_| center + 0.3 * numbers.next()).collect();
        params.write_rows(spec, 0, &values);
    }
    params
}
