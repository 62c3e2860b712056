//! Damaged model directories: an error or a model, never a panic, never a huge allocation.
//!
//! `PROPTEST_CASES` says how many; the run of record is in the log of the commit that added this file. A case
//! that failed once is kept in `fuzz.proptest-regressions` by proptest.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use polity_lm::{HfConfig, Model};
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

/// The system's allocator, remembering the largest request.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with its arguments unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The golden files have 120 KB and the decoder's copy as much: far less than this.
const BYTES_MAX: usize = 16 << 20;

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

const MODELS: &[&str] = &[
    "golden/llama/model",
    "golden/llama3_rope/model",
    "golden/mistral/model",
    "golden/qwen2/model",
    "golden/qwen3/reward",
    "golden/phi3/model",
    "golden/gemma2/model",
    "golden/olmo2/model",
    "golden/gpt2/model",
    "golden/gpt_neox/model",
    "golden/gpt_neox/reward",
    "models/stories260k",
];

/// Values that a key should not have.
fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(3),
        json!(7),
        json!(1u64 << 32),
        json!(u64::MAX),
        json!(1e308),
        json!(1e-320),
        json!(0.5),
        json!(""),
        json!("gelu"),
        json!("llama3"),
        json!("\u{0}\u{10ffff}"),
        json!([]),
        json!([1, "full_attention"]),
        json!(["sliding_attention", "full_attention"]),
        json!({}),
        json!({"rope_type": "linear", "factor": 1e-300}),
        json!({"rope_type": "dynamic", "factor": 1e300, "rope_theta": 1e-40}),
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
    ]
}

/// Keys that some family knows, so that an edit may also add one.
const KEYS: &[&str] = &[
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "sliding_window",
    "layer_types",
    "use_sliding_window",
    "max_window_layers",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "hidden_activation",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "id2label",
    "num_labels",
    "n_embd",
    "n_head",
    "n_layer",
    "n_inner",
    "n_positions",
    "activation_function",
    "rotary_pct",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "original_max_position_embeddings",
];

/// Changes a key of a configuration, or of an object in it.
fn edit_config(config: &mut Value, key: &Index, value: &Index, inner: bool) {
    let values = odd_values();
    let value = value.get(&values).clone();
    let key = *key.get(KEYS);
    let inside =
        ["factor", "rope_theta", "rope_type", "low_freq_factor", "high_freq_factor", "mrope_section"];
    if inner && let Some(rope) = config.get_mut("rope_parameters").and_then(Value::as_object_mut) {
        rope.insert(inside[key.len() % inside.len()].into(), value);
    } else {
        config[key] = value;
    }
}

fn edit_bytes(bytes: &mut Vec<u8>, at: &Index, byte: u8, kind: u8, within: usize) {
    if bytes.is_empty() {
        return;
    }
    let at = at.index(bytes.len().min(within));
    match kind {
        0 => bytes[at] ^= 1 << (byte % 8),
        1 => bytes[at] = byte,
        2 => drop(bytes.drain(at..(at + usize::from(byte) % 40).min(bytes.len()))),
        3 => bytes.insert(at, byte),
        _ => bytes.truncate(at),
    }
}

/// A directory in memory, so that a thousand cases a second are no wear on a disk.
fn scratch() -> tempfile::TempDir {
    let fast = Path::new("/dev/shm");
    if fast.is_dir() { tempfile::tempdir_in(fast).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Loads, and saves and loads again what did load.
fn survive(dir: &Path) {
    LARGEST.store(0, Ordering::Relaxed);
    match Model::load(dir) {
        Ok(model) => {
            let out = dir.join("out/m");
            // A bit of a weight may have become an infinity that the file holds but a model must not.
            model.save(&out).unwrap();
            assert_eq!(Model::load(&out).unwrap().hash(), model.hash());
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && text.len() < 2000, "{text}");
        }
    }
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest < BYTES_MAX, "an allocation of {largest} bytes");
}

fn copy(from: &str, to: &Path) {
    for entry in fs::read_dir(shared(from)).unwrap() {
        let entry = entry.unwrap();
        fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn damaged_configs(
        model in any::<Index>(),
        edits in prop::collection::vec((any::<Index>(), any::<Index>(), any::<bool>()), 1..4),
    ) {
        let dir = scratch();
        copy(model.get::<&str>(MODELS), dir.path());
        let file = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        for (key, value, inner) in &edits {
            edit_config(&mut config, key, value, *inner);
        }
        fs::write(&file, config.to_string()).unwrap();
        survive(dir.path());
    }

    #[test]
    fn damaged_config_bytes(
        model in any::<Index>(),
        edits in prop::collection::vec((any::<Index>(), any::<u8>(), 0..5u8), 1..4),
    ) {
        let mut text = fs::read(shared(model.get::<&str>(MODELS)).join("config.json")).unwrap();
        for (at, byte, kind) in &edits {
            edit_bytes(&mut text, at, *byte, *kind, usize::MAX);
        }
        LARGEST.store(0, Ordering::Relaxed);
        if let Ok(text) = std::str::from_utf8(&text)
            && let Ok(config) = HfConfig::parse(Path::new("config.json"), text)
        {
            // What is accepted is a shape that the decoder can lay out, and comes back the same.
            let again = HfConfig::parse(Path::new("config.json"), &config.to_text()).unwrap();
            prop_assert_eq!(again.decoder().unwrap(), config.decoder().unwrap());
        }
        prop_assert!(LARGEST.load(Ordering::Relaxed) < BYTES_MAX);
    }

    #[test]
    fn damaged_weights(
        model in any::<Index>(),
        edits in prop::collection::vec((any::<Index>(), any::<u8>(), 0..5u8), 1..4),
        anywhere in any::<bool>(),
    ) {
        let dir = scratch();
        copy(model.get::<&str>(MODELS), dir.path());
        let file = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&file).unwrap();
        // The header is the interesting part: eight bytes and what they count.
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte, kind) in &edits {
            edit_bytes(&mut bytes, at, *byte, *kind, if anywhere { usize::MAX } else { header });
        }
        fs::write(&file, bytes).unwrap();
        survive(dir.path());
    }

    #[test]
    fn damaged_companions(
        which in 0..3usize,
        edits in prop::collection::vec((any::<Index>(), any::<u8>(), 0..5u8), 1..4),
    ) {
        let dir = scratch();
        copy("models/stories260k", dir.path());
        let file = dir.path().join(["tokenizer.json", "tokenizer_config.json", "generation_config.json"][which]);
        let mut bytes = fs::read(&file).unwrap();
        for (at, byte, kind) in &edits {
            edit_bytes(&mut bytes, at, *byte, *kind, usize::MAX);
        }
        fs::write(&file, bytes).unwrap();
        survive(dir.path());
    }

    #[test]
    fn damaged_indexes(edits in prop::collection::vec((any::<Index>(), any::<u8>(), 0..5u8), 1..4)) {
        let dir = scratch();
        copy("golden/phi3/model", dir.path());
        let model = Model::load(dir.path()).unwrap();
        let shard = "model-00001-of-00001.safetensors";
        fs::rename(dir.path().join("model.safetensors"), dir.path().join(shard)).unwrap();
        let map: serde_json::Map<String, Value> =
            model.table().entries().iter().map(|e| (e.name.clone(), json!(shard))).collect();
        let mut bytes = json!({"metadata": {}, "weight_map": map}).to_string().into_bytes();
        for (at, byte, kind) in &edits {
            edit_bytes(&mut bytes, at, *byte, *kind, usize::MAX);
        }
        fs::write(dir.path().join("model.safetensors.index.json"), bytes).unwrap();
        survive(dir.path());
    }
}
