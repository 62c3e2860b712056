//! Rotary frequencies: radians per position of each pair of channels, from the configuration.
//!
//! `r` rotated channels, `i` in `0..r/2`, all in f32 as Transformers computes them:
//!
//! ```text
//! default   inv_freq[i] = 1 / theta^(2i/r)
//! linear    inv_freq[i] / factor
//! dynamic   theta' = theta * (factor * p/p - (factor - 1))^(r/(r-2)), p = max_position_embeddings: no
//!           row is longer than p here, and up to p the scaling is the identity
//! llama3    by wavelength 2 pi / inv_freq: long ones divided by factor, short ones kept, between the
//!           two a linear mix
//! ```
//!
//! Source: `modeling_rope_utils` of Transformers 5.23; Llama 3.1's scaling is Meta's.
//!
//! Not here: the rotation itself (`compute`). Scalings that also change the attention's temperature (yarn,
//! longrope) are refused.

use polity_compute::Position;
use serde_json::{Map, Value};

use crate::error::{LmError, Result};
use crate::hf_config::Family;
use crate::keys::{Keys, quoted};

/// Rotary frequencies from either spelling: `rope_parameters`, or `rope_theta` beside `rope_scaling`.
pub(crate) fn rotary(
    keys: &Keys<'_>,
    family: Family,
    head_dim: usize,
    positions_max: usize,
) -> Result<Position> {
    let nothing = Map::new();
    // As Transformers: an old `rope_scaling` wins over `rope_parameters` unless it is empty.
    let (spelling, map) = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .find_map(|key| match keys.get(key) {
            Some(Value::Object(map)) if map.is_empty() => None,
            Some(Value::Object(map)) => Some(Ok((key, map))),
            Some(_) => Some(Err(keys.bad(key, "an object", ""))),
            None => None,
        })
        .unwrap_or(Ok(("rope_parameters", &nothing)))?;
    let rope = Keys { map, file: keys.file, prefix: spelling };
    const KNOWN: [&str; 9] = [
        "rope_theta",
        "rope_type",
        "type",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "finetuned",
    ];
    let kind = match rope.text("rope_type")? {
        Some(kind) => kind,
        None => rope.text("type")?.unwrap_or("default"),
    };
    let supported = match family {
        Family::Phi3 => "default",
        _ => "default, linear, dynamic, llama3",
    };
    if !supported.split(", ").any(|name| name == kind) {
        let hint = match kind {
            "longrope" | "su" | "yarn" => {
                "this scaling also changes the attention's temperature with the row's length, which is not \
                 implemented: use the short-context release of the model"
            }
            _ => "not implemented: with other frequencies the model would compute something else",
        };
        let key = if map.contains_key("rope_type") { "rope_type" } else { "type" };
        return Err(LmError::key(
            keys.file,
            format!("{spelling}.{key}"),
            quoted(kind),
            format!("one of {supported}"),
            hint,
        ));
    }
    if let Some(key) = map.keys().find(|key| !KNOWN.contains(&key.as_str()) && rope.get(key).is_some()) {
        return Err(rope.bad(key, "no such key for this rope_type", "a rotation that is not understood"));
    }

    let old_theta = if family == Family::GptNeox { "rotary_emb_base" } else { "rope_theta" };
    let theta = match rope.real("rope_theta")? {
        Some(theta) => theta,
        None => keys.real(old_theta)?.unwrap_or(10_000.0),
    };
    if theta <= 0.0 {
        return Err(rope.bad("rope_theta", "a number above 0", ""));
    }
    let (old_fraction, fraction_default) = match family {
        Family::GptNeox => ("rotary_pct", 0.25),
        _ => ("partial_rotary_factor", 1.0),
    };
    let fraction = match rope.real("partial_rotary_factor")? {
        Some(fraction) => fraction,
        None => keys.real(old_fraction)?.unwrap_or(fraction_default),
    };
    let may_be_partial = matches!(family, Family::GptNeox | Family::Phi3);
    if !(0.0..=1.0).contains(&fraction) || (fraction != 1.0 && !may_be_partial) {
        let expected = if may_be_partial { "a number from 0 to 1" } else { "1 in this family" };
        return Err(LmError::key(keys.file, old_fraction, fraction.to_string(), expected, ""));
    }
    let rotated = (head_dim as f64 * fraction) as usize;
    if !rotated.is_multiple_of(2) {
        let found = format!("{rotated} rotated channels of {head_dim}");
        return Err(LmError::key(keys.file, "head_dim", found, "an even number", ""));
    }

    let mut inv_freq = inv_freq(theta, rotated);
    match kind {
        "linear" => {
            let factor = rope.positive("factor")? as f32;
            inv_freq.iter_mut().for_each(|f| *f /= factor);
        }
        "dynamic" => {
            // Up to `positions_max` tokens the formula gives theta itself, but for rounding.
            let (factor, p) = (rope.positive("factor")?, positions_max as f64);
            let r = rotated as f64;
            let stretch = factor * p / p - (factor - 1.0);
            if rotated > 2 {
                inv_freq = self::inv_freq(theta * stretch.powf(r / (r - 2.0)), rotated);
            }
        }
        "llama3" => {
            let context = match keys.real("original_max_position_embeddings")? {
                Some(context) => context,
                None => rope.real("original_max_position_embeddings")?.unwrap_or(positions_max as f64),
            };
            let scaling = Llama3 {
                factor: rope.positive("factor")?,
                low: rope.positive("low_freq_factor")?,
                high: rope.positive("high_freq_factor")?,
                context,
            };
            if scaling.high <= scaling.low {
                return Err(rope.bad("high_freq_factor", "a number above low_freq_factor", ""));
            }
            inv_freq.iter_mut().for_each(|f| *f = scaling.apply(*f));
        }
        _ => {}
    }
    if !inv_freq.iter().all(|f| f.is_finite()) {
        return Err(LmError::key(
            keys.file,
            spelling,
            "frequencies that are not finite",
            "usable numbers",
            "",
        ));
    }
    Ok(Position::Rotary { inv_freq })
}

/// `[r/2]`: `1 / theta^(2i/r)`.
///
/// f32 throughout, as PyTorch. Its vectorised power is a little less exact than the system's: of 3008
/// frequencies (8 bases, 11 head sizes) 23 differed, by at most 2 units in the last place.
fn inv_freq(theta: f64, rotated: usize) -> Vec<f32> {
    (0..rotated).step_by(2).map(|i| 1.0 / (theta as f32).powf(i as f32 / rotated as f32)).collect()
}

/// Llama 3.1's scaling.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    /// Positions of the pre-training.
    context: f64,
}

impl Llama3 {
    /// In the order of operations of PyTorch, where `number / tensor` is `reciprocal * number`.
    fn apply(&self, inv_freq: f32) -> f32 {
        let factor = self.factor as f32;
        let wavelength = (1.0 / inv_freq) * (2.0 * std::f64::consts::PI) as f32;
        let long = (self.context / self.low) as f32;
        let short = (self.context / self.high) as f32;
        if wavelength > long {
            return inv_freq / factor;
        }
        if wavelength < short {
            return inv_freq;
        }
        let smooth =
            ((1.0 / wavelength) * self.context as f32 - self.low as f32) / (self.high - self.low) as f32;
        (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `1, 1/10, 1/100, 1/1000` for theta 10 000 and 8 channels.
    #[test]
    fn by_hand() {
        assert_eq!(inv_freq(1e4, 8), [1.0, 0.1, 0.01, 0.001]);
        assert_eq!(inv_freq(1e4, 2), [1.0]);
    }

    /// A context of 64 with factors 1 and 4: wavelengths over 64 are stretched 8 times, under 16 kept, and at
    /// 25.6, where the mix is (64/25.6 - 1) / (4 - 1) = 1/2, it is the mean of both.
    #[test]
    fn llama3_by_hand() {
        let scaling = Llama3 { factor: 8.0, low: 1.0, high: 4.0, context: 64.0 };
        let of = |wavelength: f32| scaling.apply(2.0 * std::f32::consts::PI / wavelength) * wavelength;
        let turn = 2.0 * std::f32::consts::PI;
        for (wavelength, expect) in [(100.0, turn / 8.0), (10.0, turn), (25.6, turn * (0.5 / 8.0 + 0.5))] {
            let is = of(wavelength);
            assert!((is - expect).abs() < 1e-5, "wavelength {wavelength}: {is}, expected {expect}");
        }
    }
}
