//! Fresh weights, as Transformers draws them (`_init_weights` of each family, 5.23).
//!
//! Every tensor has a stream of its own, keyed by its place in the layout, so a deeper model with the
//! same seed begins with the same first layers only where its tensors stand in the same places.
//!
//! One thing is left out: Transformers zeroes the embedding row of the padding token. Nothing here is
//! padded, so the row is never read.

use polity_compute::{DecoderConfig, Layout, NormKind, Params, Shape};

use crate::hf_config::Family;
use crate::rng::Stream;

/// Stream key of the scalar head, which has another place in the layout than in the model it is put on.
pub(crate) const SCORE: u64 = u64::MAX;

pub(crate) fn fresh(family: Family, config: &DecoderConfig, layout: &Layout, std: f32, seed: u64) -> Params {
    let mut params = Params::zeros(layout);
    let norm_weight = if config.norm == NormKind::RmsPlusOne { 0.0 } else { 1.0 };
    for (i, spec) in layout.specs.iter().enumerate() {
        let is_score = spec.name == "score.weight";
        if spec.name.ends_with("norm.weight") {
            params.data[spec.range()].fill(norm_weight);
        } else if is_score || spec.is_matrix() {
            let mut stream = Stream::new(seed, "init", &[if is_score { SCORE } else { i as u64 }]);
            // Two of these add to the residual stream in each layer (Radford et al. 2019, section 2.3).
            let into_residual = spec.name.ends_with("attn_out.weight") || spec.name.ends_with("down.weight");
            let std = match family {
                Family::Gpt2 if into_residual => std / (2.0 * config.layers as f32).sqrt(),
                _ => std,
            };
            let (rows, cols) = match spec.shape {
                Shape::Vector { len } => (1, len),
                shape => shape.rows_cols(),
            };
            for row in 0..rows {
                let values: Vec<f32> = (0..cols).map(|_| std * stream.normal() as f32).collect();
                params.write_rows(spec, row, &values);
            }
        }
    }
    params
}
