//! `config.json`: what Transformers wrote, read into the decoder's own shape.
//!
//! The file is kept whole ([`HfConfig::raw`]) and written back whole, so nothing that Polity does not
//! use is lost. What it does use is translated by [`HfConfig::decoder`]: nine families, each a set of
//! options of one decoder. A missing optional key has the default of that family's configuration
//! class in Transformers 5.23; a key that would change the numbers in a way that the decoder cannot
//! follow is refused, by name.
//!
//! Source: the modules `models/*/configuration_*` of Transformers 5.23.
//!
//! Not here: rotary frequencies (`rope`), tensor names (`weights`), token ids of generation (`model`).

use std::fmt;
use std::path::{Path, PathBuf};

use polity_compute::{DecoderConfig, Head, Mlp, NormKind, NormPlace, Position, QkNorm};
use serde_json::{Map, Value, json};

use crate::error::{LmError, Result};
use crate::keys::{Keys, kind_of, quoted};
use crate::rope::rotary;

/// Upper bounds on what a file may claim, far above any real model, so that no product of two of
/// them overflows and no shape is believed before the weights confirm it.
const VOCAB_MAX: usize = 1 << 24;
const WIDTH_MAX: usize = 1 << 20;
const FFN_MAX: usize = 1 << 24;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 12;
const HEAD_DIM_MAX: usize = 1 << 14;
const POSITIONS_MAX: usize = 1 << 30;

/// An architecture family, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2, 3, 3.1; SmolLM; TinyLlama.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen 2 and 2.5.
    Qwen2,
    /// Qwen 3.
    Qwen3,
    /// Phi-3.
    Phi3,
    /// Gemma 2.
    Gemma2,
    /// OLMo 2.
    Olmo2,
    /// GPT-2.
    Gpt2,
    /// GPT-NeoX and Pythia.
    GptNeox,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 9] = [
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::Phi3,
        Family::Gemma2,
        Family::Olmo2,
        Family::Gpt2,
        Family::GptNeox,
    ];

    /// The value of `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Phi3 => "phi3",
            Family::Gemma2 => "gemma2",
            Family::Olmo2 => "olmo2",
            Family::Gpt2 => "gpt2",
            Family::GptNeox => "gpt_neox",
        }
    }

    /// The stem of its class names in Transformers.
    fn class_stem(self) -> &'static str {
        match self {
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Qwen2 => "Qwen2",
            Family::Qwen3 => "Qwen3",
            Family::Phi3 => "Phi3",
            Family::Gemma2 => "Gemma2",
            Family::Olmo2 => "Olmo2",
            Family::Gpt2 => "GPT2",
            Family::GptNeox => "GPTNeoX",
        }
    }

    /// The class with a token head, as `architectures` spells it.
    pub fn causal_class(self) -> String {
        match self {
            Family::Gpt2 => "GPT2LMHeadModel".into(),
            _ => format!("{}ForCausalLM", self.class_stem()),
        }
    }

    /// The class with a label head.
    pub fn classifier_class(self) -> String {
        format!("{}ForSequenceClassification", self.class_stem())
    }

    /// `tie_word_embeddings` when the key is absent.
    fn tied_by_default(self) -> bool {
        matches!(self, Family::Gpt2 | Family::Gemma2)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}

/// A `config.json`: the whole file, and the family it names.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    raw: Map<String, Value>,
    family: Family,
    file: PathBuf,
}

impl HfConfig {
    /// Reads the text of `file` (named in errors only).
    pub fn parse(file: &Path, text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).map_err(|e| LmError::json(file, &e))?;
        let Value::Object(raw) = value else {
            return Err(LmError::file(file, kind_of(&value), "a JSON object", ""));
        };
        let keys = Keys { map: &raw, file, prefix: "" };
        let Some(model_type) = keys.text("model_type")? else {
            return Err(keys.missing("model_type"));
        };
        let Some(family) = Family::ALL.into_iter().find(|f| f.model_type() == model_type) else {
            return Err(LmError::key(
                file,
                "model_type",
                quoted(model_type),
                format!("one of {}", list(Family::ALL.iter())),
                "this architecture is not implemented",
            ));
        };
        let config = Self { raw, family, file: file.to_owned() };
        // A file that cannot become a decoder is refused now, not when it is first used.
        config.decoder()?;
        Ok(config)
    }

    /// A configuration written in code, for a model made from nothing.
    pub fn from_value(value: Value) -> Result<Self> {
        Self::parse(Path::new("config.json"), &value.to_string())
    }

    /// Every key of the file.
    pub fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// The architecture family.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Where it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The text to write, formatted as Transformers does: two spaces, a newline at the end.
    pub fn to_text(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.raw).expect("JSON values always serialise");
        text.push('\n');
        text
    }

    /// Standard deviation of a fresh weight.
    pub fn initializer_range(&self) -> Result<f32> {
        let std = self.keys().real("initializer_range")?.unwrap_or(0.02);
        if !(0.0..=1.0).contains(&std) {
            return Err(self.keys().bad("initializer_range", "a number from 0 to 1", ""));
        }
        Ok(std as f32)
    }

    /// A token id, or a list of them, under `key`.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        token_ids(&self.raw, key, &self.file)
    }

    /// Whether the token head is the embedding table, when there is a token head.
    pub fn tied(&self) -> Result<bool> {
        Ok(self.keys().flag("tie_word_embeddings")?.unwrap_or(self.family.tied_by_default()))
    }

    /// The same model with one label instead of a vocabulary: what Transformers saves for a
    /// `…ForSequenceClassification` with `num_labels = 1` (which it spells as one entry of `id2label`).
    ///
    /// `pad` is the tokenizer's padding token. Transformers finds the last token of a padded row by it
    /// and refuses to score a batch without one.
    pub fn with_scalar_head(&self, pad: Option<u32>) -> Self {
        let mut config = self.clone();
        let raw = &mut config.raw;
        raw.insert("architectures".into(), json!([self.family.classifier_class()]));
        raw.insert("id2label".into(), json!({"0": "LABEL_0"}));
        raw.insert("label2id".into(), json!({"LABEL_0": 0}));
        raw.shift_remove("num_labels");
        if let Some(pad) = pad
            && raw.get("pad_token_id").is_none_or(Value::is_null)
        {
            raw.insert("pad_token_id".into(), json!(pad));
        }
        config
    }

    /// The same model with a token head.
    pub fn with_token_head(&self) -> Self {
        let mut config = self.clone();
        for key in ["id2label", "label2id", "num_labels", "problem_type"] {
            config.raw.shift_remove(key);
        }
        config.raw.insert("architectures".into(), json!([self.family.causal_class()]));
        config
    }

    /// The same configuration, saying that the weights beside it are stored as `dtype` (`float32`,
    /// `bfloat16`), under the name that the file already uses for it.
    pub fn with_dtype(&self, dtype: &str) -> Self {
        let mut config = self.clone();
        let old = config.raw.contains_key("torch_dtype") && !config.raw.contains_key("dtype");
        config.raw.insert(if old { "torch_dtype" } else { "dtype" }.into(), json!(dtype));
        config
    }

    /// The keys that make the numbers, as text in a fixed order: what a hash of the model covers.
    pub fn canonical_text(&self) -> String {
        const NOT_NUMBERS: [&str; 6] =
            ["dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "auto_map"];
        let mut keys: Vec<_> =
            self.raw.iter().filter(|(key, _)| !NOT_NUMBERS.contains(&key.as_str())).collect();
        keys.sort_by_key(|(key, _)| *key);
        keys.into_iter().map(|(key, value)| format!("{key}={}\n", sorted(value))).collect()
    }

    /// The decoder that this file describes.
    pub fn decoder(&self) -> Result<DecoderConfig> {
        let keys = self.keys();
        refuse_what_changes_the_numbers(&keys)?;
        let config = match self.family {
            Family::Gpt2 => gpt2(&keys)?,
            Family::GptNeox => gpt_neox(&keys)?,
            family => llama_like(&keys, family)?,
        };
        let config = config.with_head(self.head()?);
        config.validate().map_err(|why| {
            LmError::file(
                &self.file,
                why,
                "a shape that a decoder can have",
                "the file is damaged or hand-edited",
            )
        })?;
        Ok(config)
    }

    fn head(&self) -> Result<Head> {
        let keys = self.keys();
        let token_head = if self.tied()? { Head::Tied } else { Head::Untied };
        let architectures = match keys.get("architectures") {
            None => return Ok(token_head),
            Some(Value::Array(names)) if names.is_empty() => return Ok(token_head),
            Some(Value::Array(names)) => names,
            Some(_) => return Err(keys.bad("architectures", "a list of class names", "")),
        };
        let name = architectures[0].as_str().unwrap_or_default();
        let bare = format!("{}Model", self.family.class_stem());
        if name == self.family.causal_class() || name == bare {
            return Ok(token_head);
        }
        if name != self.family.classifier_class() {
            return Err(keys.bad(
                "architectures",
                format!("{} or {}", self.family.causal_class(), self.family.classifier_class()),
                "other heads are not implemented",
            ));
        }
        let labels = match keys.get("id2label") {
            Some(Value::Object(labels)) => labels.len(),
            Some(_) => return Err(keys.bad("id2label", "an object with one entry", "")),
            None => keys.count("num_labels", usize::MAX)?.unwrap_or(2),
        };
        if labels != 1 {
            return Err(LmError::key(
                &self.file,
                "id2label",
                format!("{labels} labels"),
                "num_labels = 1",
                "a reward model has one output; a classifier with more is not one",
            ));
        }
        Ok(Head::Scalar)
    }

    fn keys(&self) -> Keys<'_> {
        Keys { map: &self.raw, file: &self.file, prefix: "" }
    }
}

/// A token id, or a list of them, under `key` of a JSON object; absent and null are an empty list.
pub(crate) fn token_ids(map: &Map<String, Value>, key: &str, file: &Path) -> Result<Vec<u32>> {
    let keys = Keys { map, file, prefix: "" };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let bad = || keys.bad(key, "a token id or a list of them", "");
    match keys.get(key) {
        None => Ok(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(|value| id(value).ok_or_else(bad)).collect(),
        // Some old files say -1 for "none".
        Some(value) if value.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(value) => Ok(vec![id(value).ok_or_else(bad)?]),
    }
}

/// Llama and the families that differ from it by options: biases, norms, windows, caps.
fn llama_like(keys: &Keys<'_>, family: Family) -> Result<DecoderConfig> {
    use Family::*;
    let width = keys.required("hidden_size", WIDTH_MAX)?;
    let layers = keys.required("num_hidden_layers", LAYERS_MAX)?;
    let heads = keys.required("num_attention_heads", HEADS_MAX)?;
    let kv_default = match family {
        Mistral => 8,
        Qwen2 | Qwen3 => 32,
        Gemma2 => 4,
        _ => heads,
    };
    let kv_heads = match keys.map.get("num_key_value_heads") {
        Some(Value::Null) => heads,
        _ => keys.count("num_key_value_heads", HEADS_MAX)?.unwrap_or(kv_default),
    };
    let head_dim = match (keys.count("head_dim", HEAD_DIM_MAX)?, family) {
        (Some(d), _) => d,
        (None, Qwen3) => 128,
        (None, Gemma2) => 256,
        (None, _) => keys.divided("hidden_size", width, heads)?,
    };
    let positions_default = match family {
        Mistral => 4096 * 32,
        Qwen2 | Qwen3 => 32768,
        Gemma2 => 8192,
        Phi3 => 4096,
        _ => 2048,
    };
    let positions_max = keys.count("max_position_embeddings", POSITIONS_MAX)?.unwrap_or(positions_default);
    let attention_bias = match family {
        Llama | Qwen3 | Gemma2 | Olmo2 => keys.flag("attention_bias")?.unwrap_or(false),
        Qwen2 => true,
        _ => keys.refuse_true("attention_bias")?,
    };
    let mlp_bias = match family {
        Llama => keys.flag("mlp_bias")?.unwrap_or(false),
        _ => keys.refuse_true("mlp_bias")?,
    };
    let activation = if family == Gemma2 { "hidden_activation" } else { "hidden_act" };
    let rotary = rotary(keys, family, head_dim, positions_max)?;
    let scale_by = match family {
        Gemma2 => keys.real("query_pre_attn_scalar")?.unwrap_or(256.0),
        _ => head_dim as f64,
    };
    if scale_by <= 0.0 {
        return Err(keys.bad("query_pre_attn_scalar", "a number above 0", ""));
    }
    let cap = |key, default| match (family, keys.map.get(key)) {
        (Gemma2, None) => Ok(Some(default)),
        (Gemma2, Some(_)) => Ok(keys.real(key)?.map(|cap| cap as f32)),
        _ => keys.refuse(key, "no soft cap in this family").map(|()| None),
    };
    Ok(DecoderConfig {
        vocab: keys.required("vocab_size", VOCAB_MAX)?,
        width,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn: keys.required("intermediate_size", FFN_MAX)?,
        positions_max,
        norm: if family == Gemma2 { NormKind::RmsPlusOne } else { NormKind::Rms },
        norm_eps: keys.epsilon("rms_norm_eps", if matches!(family, Phi3 | Olmo2) { 1e-5 } else { 1e-6 })?,
        norm_place: match family {
            Gemma2 => NormPlace::PreAndPost,
            Olmo2 => NormPlace::Post,
            _ => NormPlace::Pre,
        },
        parallel_residual: false,
        qk_norm: match family {
            Qwen3 => QkNorm::PerHead,
            Olmo2 => QkNorm::Whole,
            _ => QkNorm::None,
        },
        position: rotary,
        qkv_bias: attention_bias,
        attn_out_bias: attention_bias && family != Qwen2,
        mlp_bias,
        mlp: gated_activation(keys, activation, if family == Gemma2 { "gelu_pytorch_tanh" } else { "silu" })?,
        attn_scale: scale_by.powf(-0.5) as f32,
        attn_softcap: cap("attn_logit_softcapping", 50.0)?,
        window_l: windows(keys, family, layers)?,
        // Transformers keeps the scale as a f32 tensor.
        embed_scale: if family == Gemma2 { (width as f64).sqrt() as f32 } else { 1.0 },
        logit_softcap: cap("final_logit_softcapping", 30.0)?,
        head: Head::Untied,
    })
}

fn gpt2(keys: &Keys<'_>) -> Result<DecoderConfig> {
    // The class answers to both spellings.
    let either = |key, other, max| match keys.count(key, max)? {
        Some(value) => Ok(value),
        None => keys.count(other, max)?.ok_or_else(|| keys.missing(key)),
    };
    let width = either("n_embd", "hidden_size", WIDTH_MAX)?;
    let layers = either("n_layer", "num_hidden_layers", LAYERS_MAX)?;
    let heads = either("n_head", "num_attention_heads", HEADS_MAX)?;
    let head_dim = keys.divided("n_embd", width, heads)?;
    keys.refuse_true("scale_attn_by_inverse_layer_idx")?;
    let scaled = keys.flag("scale_attn_weights")?.unwrap_or(true);
    Ok(DecoderConfig {
        vocab: keys.required("vocab_size", VOCAB_MAX)?,
        width,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        ffn: keys.count("n_inner", FFN_MAX)?.unwrap_or(4 * width),
        positions_max: either("n_positions", "max_position_embeddings", VOCAB_MAX)?,
        norm: NormKind::Layer,
        norm_eps: keys.epsilon("layer_norm_epsilon", 1e-5)?,
        norm_place: NormPlace::Pre,
        parallel_residual: false,
        qk_norm: QkNorm::None,
        position: Position::Learned,
        qkv_bias: true,
        attn_out_bias: true,
        mlp_bias: true,
        mlp: plain_activation(keys, "activation_function", "gelu_new")?,
        attn_scale: if scaled { (head_dim as f64).powf(-0.5) as f32 } else { 1.0 },
        attn_softcap: None,
        window_l: vec![None; layers],
        embed_scale: 1.0,
        logit_softcap: None,
        head: Head::Tied,
    })
}

fn gpt_neox(keys: &Keys<'_>) -> Result<DecoderConfig> {
    let width = keys.required("hidden_size", WIDTH_MAX)?;
    let layers = keys.required("num_hidden_layers", LAYERS_MAX)?;
    let heads = keys.required("num_attention_heads", HEADS_MAX)?;
    let head_dim = keys.divided("hidden_size", width, heads)?;
    if keys.count("head_dim", HEAD_DIM_MAX)?.is_some_and(|d| d != head_dim) {
        return Err(keys.bad("head_dim", format!("{head_dim}, or no such key"), ""));
    }
    let positions_max = keys.count("max_position_embeddings", POSITIONS_MAX)?.unwrap_or(2048);
    let attention_bias = keys.flag("attention_bias")?.unwrap_or(true);
    Ok(DecoderConfig {
        vocab: keys.required("vocab_size", VOCAB_MAX)?,
        width,
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        ffn: keys.required("intermediate_size", FFN_MAX)?,
        positions_max,
        norm: NormKind::Layer,
        norm_eps: keys.epsilon("layer_norm_eps", 1e-5)?,
        norm_place: NormPlace::Pre,
        parallel_residual: keys.flag("use_parallel_residual")?.unwrap_or(true),
        qk_norm: QkNorm::None,
        position: rotary(keys, Family::GptNeox, head_dim, positions_max)?,
        qkv_bias: attention_bias,
        attn_out_bias: attention_bias,
        mlp_bias: true,
        mlp: plain_activation(keys, "hidden_act", "gelu")?,
        attn_scale: (head_dim as f64).powf(-0.5) as f32,
        attn_softcap: None,
        window_l: vec![None; layers],
        embed_scale: 1.0,
        logit_softcap: None,
        head: Head::Untied,
    })
}

/// Keys of other architectures and of wrapped weights. Ignoring them would load the file and
/// compute something else.
fn refuse_what_changes_the_numbers(keys: &Keys<'_>) -> Result<()> {
    for key in ["quantization_config", "compression_config"] {
        keys.refuse(key, "weights in f32, bf16 or f16: convert the model back first")?;
    }
    for key in ["num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size"] {
        keys.refuse(key, "no mixture of experts")?;
    }
    for key in ["use_bidirectional_attention", "add_cross_attention", "is_encoder_decoder", "use_mrope"] {
        keys.refuse_true(key)?;
    }
    Ok(())
}

/// `[l]`: the attention window of each layer, counting the token itself.
fn windows(keys: &Keys<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match (family, keys.map.contains_key("sliding_window")) {
        (Family::Llama | Family::Olmo2, _) => None,
        // The class's default, where the file does not say.
        (Family::Mistral | Family::Gemma2 | Family::Qwen2 | Family::Qwen3, false) => Some(4096),
        _ => keys.count("sliding_window", usize::MAX)?,
    };
    let window = match family {
        Family::Qwen2 | Family::Qwen3 if !keys.flag("use_sliding_window")?.unwrap_or(false) => None,
        _ => window,
    };
    let by_default: Vec<Option<usize>> = match family {
        Family::Gemma2 => (0..layers).map(|l| window.filter(|_| l % 2 == 0)).collect(),
        Family::Qwen2 | Family::Qwen3 => {
            let first = keys.count("max_window_layers", usize::MAX)?.unwrap_or(28);
            (0..layers).map(|l| window.filter(|_| l >= first)).collect()
        }
        _ => vec![window; layers],
    };
    let windows = match keys.get("layer_types") {
        None => by_default,
        Some(Value::Array(types)) if types.len() == layers => {
            let bad = || {
                let hint = "a layer is either, and the window is in `sliding_window`";
                keys.bad("layer_types", "\"full_attention\" or \"sliding_attention\" for each layer", hint)
            };
            let types: Vec<Option<usize>> = types
                .iter()
                .map(|kind| match kind.as_str() {
                    Some("full_attention") => Ok(None),
                    Some("sliding_attention") => window.map(Some).ok_or_else(bad),
                    _ => Err(bad()),
                })
                .collect::<Result<_>>()?;
            // Transformers reads the list in these families only. Where it does not, a list that says
            // something else than what is computed would be silently ignored.
            if !matches!(family, Family::Gemma2 | Family::Qwen2 | Family::Qwen3) && types != by_default {
                return Err(keys.bad("layer_types", "layers that are all alike in this family", ""));
            }
            types
        }
        Some(_) => {
            return Err(keys.bad("layer_types", format!("a list of {layers} layer types"), ""));
        }
    };
    let sliding_gemma = family == Family::Gemma2 && window.is_none();
    if sliding_gemma && keys.get("layer_types").is_none() {
        return Err(keys.bad("sliding_window", "a number: every second layer of Gemma 2 slides", ""));
    }
    Ok(windows)
}

fn gated_activation(keys: &Keys<'_>, key: &str, default: &str) -> Result<Mlp> {
    match keys.text(key)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Mlp::GatedSilu),
        name if is_gelu_tanh(name) => Ok(Mlp::GatedGeluTanh),
        _ => Err(keys.bad(key, "silu or gelu_pytorch_tanh", "other gated activations are not implemented")),
    }
}

fn plain_activation(keys: &Keys<'_>, key: &str, default: &str) -> Result<Mlp> {
    match keys.text(key)?.unwrap_or(default) {
        "gelu" | "gelu_python" => Ok(Mlp::Gelu),
        name if is_gelu_tanh(name) => Ok(Mlp::GeluTanh),
        _ => Err(keys.bad(key, "gelu or gelu_new", "other activations are not implemented")),
    }
}

/// Five names for `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
fn is_gelu_tanh(name: &str) -> bool {
    matches!(name, "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate")
}

fn list(items: impl Iterator<Item = impl fmt::Display>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// Compact JSON with sorted keys at every depth.
fn sorted(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            let inner: Vec<_> = entries
                .into_iter()
                .map(|(key, value)| format!("{}:{}", quoted_whole(key), sorted(value)))
                .collect();
            format!("{{{}}}", inner.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(sorted).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

fn quoted_whole(text: &str) -> String {
    Value::from(text).to_string()
}
