//! What is wrong with a model directory is said once, clearly, and nothing is half done.
//!
//! Each case copies a good directory, damages it in one way, and names words that the error must have: the
//! file, the key or tensor, what was found, what was expected.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use polity_lm::{HfConfig, LmError, Model, ScalarInit, WeightDtype};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

/// A copy that may be written to.
fn copy_of(path: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(shared(path)).unwrap() {
        let entry = entry.unwrap();
        fs::write(dir.path().join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap();
    }
    dir
}

/// The damaged directory does not load, and the error has all these words.
#[track_caller]
fn check(model: &str, damage: impl FnOnce(&Path), words: &[&str]) {
    let dir = copy_of(model);
    damage(dir.path());
    let error = match Model::load(dir.path()) {
        Ok(_) => panic!("it loaded; expected an error with {words:?}"),
        Err(error) => error,
    };
    let text = format!("{error} | {}", error.hint().unwrap_or_default());
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
    assert!(!text.contains('\n'), "one line: {text}");
}

/// The directory loads, whatever the change.
#[track_caller]
fn accept(model: &str, change: impl FnOnce(&Path)) -> Model {
    let dir = copy_of(model);
    change(dir.path());
    Model::load(dir.path()).unwrap_or_else(|e| panic!("{e}"))
}

fn edit_json(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    edit(&mut value);
    fs::write(file, value.to_string()).unwrap();
}

/// Sets keys of config.json; null removes.
fn config(keys: Value) -> impl FnOnce(&Path) {
    move |dir| {
        edit_json(&dir.join("config.json"), |config| {
            for (key, value) in keys.as_object().unwrap() {
                if value.is_null() {
                    config.as_object_mut().unwrap().remove(key);
                } else {
                    config[key] = value.clone();
                }
            }
        })
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn edit_weights(dir: &Path, edit: impl FnOnce(&mut Tensors)) {
    let file = dir.join("model.safetensors");
    let bytes = fs::read(&file).unwrap();
    let mut tensors: Tensors = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, t)| (name.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    edit(&mut tensors);
    write_weights(&file, &tensors);
}

fn write_weights(file: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn zeros(shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (Dtype::F32, shape.to_vec(), vec![0; 4 * shape.iter().product::<usize>()])
}

/// A weights file with this header over `data` bytes of zeros.
fn header(text: &str, data: usize) -> impl FnOnce(&Path) {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    move |dir| fs::write(dir.join("model.safetensors"), bytes).unwrap()
}

const LLAMA: &str = "golden/llama/model";
const UNTIED: &str = "golden/llama3_rope/model";

#[test]
fn directories() {
    let error = Model::load("/no/such/model").unwrap_err().to_string();
    assert!(error.contains("/no/such/model: found nothing, expected a model directory"), "{error}");
    let error = Model::load(shared("golden/llama/model/config.json")).unwrap_err().to_string();
    assert!(error.contains("found a file"), "{error}");
    check(LLAMA, |d| fs::remove_file(d.join("config.json")).unwrap(), &["config.json", "no such file"]);
    let remove = |d: &Path| fs::remove_file(d.join("model.safetensors")).unwrap();
    check(LLAMA, remove, &["no weights", "model.safetensors or model.safetensors.index.json"]);
    let pickled = |d: &Path| fs::rename(d.join("model.safetensors"), d.join("pytorch_model.bin")).unwrap();
    check(LLAMA, pickled, &["no weights", "pickled", "safe_serialization"]);
    let adapter =
        |d: &Path| fs::rename(d.join("model.safetensors"), d.join("adapter_model.safetensors")).unwrap();
    check(LLAMA, adapter, &["no weights", "LoRA adapter", "adapter_config.json instead"]);
}

#[test]
fn config_that_does_not_parse() {
    let text = |text: &'static str| move |d: &Path| fs::write(d.join("config.json"), text).unwrap();
    check(LLAMA, text("{\"a\": 1,\n  oops}"), &["config.json:2:3: not valid JSON"]);
    check(LLAMA, text(""), &["config.json:1:0: not valid JSON"]);
    check(LLAMA, text("[1]"), &["config.json", "found a list, expected a JSON object"]);
    check(
        LLAMA,
        |d| fs::write(d.join("config.json"), b"{\"\xff\": 1}").unwrap(),
        &["config.json", "cannot read"],
    );
    check(LLAMA, text("{}"), &["`model_type`", "found nothing"]);
}

#[test]
fn config_of_another_model() {
    let families = "llama, mistral, qwen2, qwen3, phi3, gemma2, olmo2, gpt2, gpt_neox";
    check(
        LLAMA,
        config(json!({"model_type": "mamba"})),
        &["config.json: `model_type`: found \"mamba\"", families],
    );
    check(LLAMA, config(json!({"model_type": 7})), &["`model_type`", "found 7, expected a string"]);
    check(LLAMA, config(json!({"hidden_size": null})), &["`hidden_size`: found nothing"]);
    check(LLAMA, config(json!({"hidden_size": "32"})), &["`hidden_size`: found \"32\"", "a whole number"]);
    check(LLAMA, config(json!({"hidden_size": -32})), &["`hidden_size`: found -32"]);
    check(LLAMA, config(json!({"hidden_size": 32.5})), &["`hidden_size`: found 32.5"]);
    check(LLAMA, config(json!({"vocab_size": 1u64 << 60})), &["`vocab_size`", "up to 16777216"]);
    check(LLAMA, config(json!({"num_hidden_layers": 0})), &["config.json", "layers is 0"]);
    check(LLAMA, config(json!({"num_key_value_heads": 3})), &["4 heads are not a multiple of 3"]);
    check(
        LLAMA,
        config(json!({"head_dim": null, "num_attention_heads": 5})),
        &["`hidden_size`", "multiple of 5"],
    );
    check(LLAMA, config(json!({"hidden_act": "relu"})), &["`hidden_act`: found \"relu\"", "silu"]);
    check("golden/gpt2/model", config(json!({"activation_function": "relu"})), &["\"relu\"", "gelu_new"]);
    check(LLAMA, config(json!({"rms_norm_eps": "tiny"})), &["`rms_norm_eps`", "a number"]);
    check(LLAMA, config(json!({"rms_norm_eps": -1})), &["`rms_norm_eps`: found -1"]);
    check(LLAMA, config(json!({"quantization_config": {"bits": 4}})), &["`quantization_config`", "convert"]);
    check(
        LLAMA,
        config(json!({"num_local_experts": 8})),
        &["`num_local_experts`: found 8", "no mixture of experts"],
    );
    check(
        "golden/gpt2/model",
        config(json!({"scale_attn_by_inverse_layer_idx": true})),
        &["inverse_layer_idx`: found true"],
    );
    check("golden/gpt2/model", config(json!({"add_cross_attention": true})), &["`add_cross_attention`"]);
    check("golden/gemma2/model", config(json!({"use_bidirectional_attention": true})), &["bidirectional"]);
    check("golden/mistral/model", config(json!({"attention_bias": true})), &["`attention_bias`: found true"]);
    check(
        LLAMA,
        config(json!({"attn_logit_softcapping": 30.0})),
        &["`attn_logit_softcapping`", "no soft cap"],
    );
    check("golden/gemma2/model", config(json!({"attn_logit_softcapping": 0.0})), &["soft cap 0"]);
    check("golden/gemma2/model", config(json!({"sliding_window": 0})), &["window of 0 tokens"]);
    check(
        "golden/qwen2/model",
        config(json!({"layer_types": ["full_attention"]})),
        &["`layer_types`", "2 layer types"],
    );
    let linear = json!({"layer_types": ["full_attention", "linear_attention"]});
    check("golden/qwen2/model", config(linear), &["linear_attention", "sliding_attention"]);
    let slides = json!({"layer_types": ["full_attention", "sliding_attention"]});
    check("golden/qwen2/model", config(slides.clone()), &["`layer_types`", "sliding_window"]);
    check("golden/mistral/model", config(slides), &["`layer_types`", "all alike"]);
    check(LLAMA, config(json!({"tie_word_embeddings": "yes"})), &["`tie_word_embeddings`", "true or false"]);
    check(LLAMA, config(json!({"eos_token_id": "</s>"})), &["`eos_token_id`", "a token id"]);
}

#[test]
fn rotations_that_are_not_understood() {
    let rope = |value: Value| config(json!({ "rope_parameters": value }));
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4});
    check(
        LLAMA,
        rope(yarn),
        &["`rope_parameters.rope_type`: found \"yarn\"", "default, linear, dynamic, llama3"],
    );
    let long = config(json!({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]}}));
    check("golden/phi3/model", long, &["`rope_scaling.type`: found \"longrope\"", "short-context release"]);
    check(LLAMA, rope(json!({"rope_type": "spiral"})), &["found \"spiral\""]);
    check(LLAMA, rope(json!({"rope_type": "linear"})), &["`rope_parameters.factor`: found nothing"]);
    check(LLAMA, rope(json!({"rope_type": "linear", "factor": 0})), &["`rope_parameters.factor`: found 0"]);
    check(LLAMA, rope(json!({"rope_type": "default", "mrope_section": [2, 2]})), &["mrope_section"]);
    check(LLAMA, rope(json!({"full_attention": {"rope_type": "default"}})), &["full_attention"]);
    check(LLAMA, rope(json!([1])), &["`rope_parameters`: found [1], expected an object"]);
    check(LLAMA, rope(json!({"rope_theta": -1})), &["rope_theta", "above 0"]);
    check(
        LLAMA,
        config(json!({"partial_rotary_factor": 0.5})),
        &["`partial_rotary_factor`: found 0.5", "1 in this family"],
    );
    let low_high =
        json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0});
    check(LLAMA, rope(low_high), &["high_freq_factor", "above low_freq_factor"]);
    check("golden/gpt_neox/model", rope(json!({"partial_rotary_factor": 1.5})), &["found 1.5"]);
}

#[test]
fn heads_that_are_not_understood() {
    let two = config(json!({"id2label": {"0": "good", "1": "bad"}}));
    check("golden/llama/reward", two, &["`id2label`: found 2 labels", "num_labels = 1"]);
    check("golden/llama/reward", config(json!({"id2label": null})), &["found 2 labels"]);
    let tokens = config(json!({"architectures": ["LlamaForTokenClassification"]}));
    check(LLAMA, tokens, &["`architectures`", "LlamaForCausalLM or LlamaForSequenceClassification"]);
    check(LLAMA, config(json!({"architectures": "LlamaForCausalLM"})), &["`architectures`", "a list"]);
    let causal = config(json!({"architectures": ["LlamaForCausalLM"]}));
    check("golden/llama/reward", causal, &["`score.weight`", "reward model"]);
    let reward = config(json!({"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}));
    check(LLAMA, reward, &["`score.weight`: found no such tensor", "language model"]);
}

#[test]
fn weights_that_are_no_weights() {
    let write = |bytes: &'static [u8]| move |d: &Path| fs::write(d.join("model.safetensors"), bytes).unwrap();
    check(LLAMA, write(b""), &["model.safetensors: found 0 bytes", "truncated"]);
    check(LLAMA, write(b"1234567"), &["found 7 bytes"]);
    check(
        LLAMA,
        write(b"version https://git-lfs.github.com/spec/v1\n"),
        &["Git LFS pointer", "git lfs pull"],
    );
    check(
        LLAMA,
        write(b"PK\x03\x04 a zip archive of pickles"),
        &["found a header of", "truncated or is not"],
    );
    check(LLAMA, header("{\"a\":", 0), &["a header that does not parse"]);
    check(LLAMA, header("[]", 0), &["a header that does not parse"]);
    // Every length, from none to all but one byte.
    let bytes = fs::read(shared(LLAMA).join("model.safetensors")).unwrap();
    for cut in [1, 8, 9, 100, 2016, 2030, bytes.len() / 2, bytes.len() - 1] {
        let cut = bytes[..cut].to_vec();
        check(LLAMA, move |d| fs::write(d.join("model.safetensors"), cut).unwrap(), &["model.safetensors"]);
    }
    let mut longer = bytes;
    longer.extend([0; 3]);
    check(
        LLAMA,
        |d| fs::write(d.join("model.safetensors"), longer).unwrap(),
        &["3 bytes that no tensor claims"],
    );
}

#[test]
fn headers_that_lie() {
    let a = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let with = |more: &str| format!("{a}{more}}}");
    let past = with(r#","b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}"#);
    check(LLAMA, header(&past, 12), &["`b`: found data_offsets [8, 24]", "within 12 bytes"]);
    let backwards = with(r#","b":{"dtype":"F32","shape":[4],"data_offsets":[24,8]}"#);
    check(LLAMA, header(&backwards, 24), &["`b`: found data_offsets [24, 8]"]);
    let overlap = with(r#","b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}"#);
    check(LLAMA, header(&overlap, 12), &["`b`", "data that another tensor has too"]);
    let hole = with(r#","b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}"#);
    check(LLAMA, header(&hole, 16), &["`b`", "a hole before it"]);
    let short = with(r#","b":{"dtype":"F32","shape":[3],"data_offsets":[8,16]}"#);
    check(LLAMA, header(&short, 16), &["`b`: found F32 of shape [3] in 8 bytes"]);
    let huge = with(r#","b":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[8,16]}"#);
    check(LLAMA, header(&huge, 16), &["`b`", "as many bytes as the shape needs"]);
    let twice = with(r#","a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}"#);
    check(LLAMA, header(&twice, 16), &["`a`: found the name twice"]);
    let odd = with(r#","b":{"dtype":"F7","shape":[2],"data_offsets":[8,16]}"#);
    check(LLAMA, header(&odd, 16), &["`b`: found dtype F7"]);
    let mut long = (1u64 << 62).to_le_bytes().to_vec();
    long.extend(b"{}");
    check(
        LLAMA,
        |d| fs::write(d.join("model.safetensors"), long).unwrap(),
        &["a header of 4611686018427387904 bytes"],
    );
}

#[test]
fn tensors_that_do_not_fit() {
    let q = "model.layers.0.self_attn.q_proj.weight";
    let rename = |d: &Path| {
        edit_weights(d, |t| {
            let tensor = t.remove(q).unwrap();
            t.insert("model.layers.0.self_attn.query.weight".into(), tensor);
        })
    };
    check(LLAMA, rename, &[q, "no such tensor", "[32, 32]"]);
    let surplus = |d: &Path| {
        edit_weights(d, |t| {
            t.insert("model.layers.0.extra.weight".into(), zeros(&[2]));
        })
    };
    check(LLAMA, surplus, &["`model.layers.0.extra.weight`: found a tensor of shape [2]", "no such tensor"]);
    let shape = |d: &Path| {
        edit_weights(d, |t| {
            t.insert(q.into(), zeros(&[32, 16]));
        })
    };
    check(LLAMA, shape, &[q, "found shape [32, 16], expected shape [32, 32]"]);
    let dtype = |d: &Path| {
        edit_weights(d, |t| {
            t.insert(q.into(), (Dtype::I32, vec![32, 32], vec![0; 4096]));
        })
    };
    check(LLAMA, dtype, &[q, "found I32, expected F32, BF16 or F16"]);
    check(
        UNTIED,
        |d| edit_weights(d, |t| drop(t.remove("lm_head.weight"))),
        &["lm_head.weight", "tie_word_embeddings = true"],
    );
    check(
        LLAMA,
        config(json!({"vocab_size": 200})),
        &["embed_tokens", "[199, 32], expected shape [200, 32]"],
    );
    check(LLAMA, config(json!({"num_hidden_layers": 3})), &["model.layers.2.", "no such tensor"]);
    check(
        LLAMA,
        config(json!({"num_hidden_layers": 1})),
        &["model.layers.1.", "no such tensor in this model"],
    );
    check(
        "golden/qwen2/model",
        config(json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})),
        &["k_proj.bias", "attention_bias"],
    );
    let lora = |d: &Path| {
        edit_weights(d, |t| {
            t.insert("model.layers.0.self_attn.q_proj.lora_A.weight".into(), zeros(&[2, 32]));
        })
    };
    check(LLAMA, lora, &["lora_A", "adapter_model.safetensors", "adapter_config.json"]);
}

#[test]
fn numbers_that_are_none() {
    let q = "model.layers.1.self_attn.q_proj.weight";
    for (bits, name) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let poison = move |d: &Path| {
            edit_weights(d, |t| {
                let data = &mut t.get_mut(q).unwrap().2;
                data[4 * (32 * 3 + 5)..][..4].copy_from_slice(&bits.to_le_bytes());
            })
        };
        check(LLAMA, poison, &[q, &format!("found {name} at [3, 5]"), "earlier checkpoint"]);
    }
    // In bf16 and transposed too.
    let poison = |d: &Path| {
        edit_weights(d, |t| {
            let fc = t.get_mut("transformer.h.0.mlp.c_fc.weight").unwrap();
            let mut half = vec![0; 2 * 32 * 128];
            half[2 * (128 + 2)..][..2].copy_from_slice(&0x7fc0u16.to_le_bytes());
            *fc = (Dtype::BF16, vec![32, 128], half);
        })
    };
    check("golden/gpt2/model", poison, &["c_fc.weight", "NaN at [1, 2]"]);
}

#[test]
fn shards() {
    let split = |dir: &Path| {
        let mut second = Tensors::new();
        edit_weights(dir, |t| {
            second.insert("lm_head.weight".into(), t.remove("lm_head.weight").unwrap());
        });
        let first: Vec<String> = {
            let bytes = fs::read(dir.join("model.safetensors")).unwrap();
            SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect()
        };
        fs::rename(dir.join("model.safetensors"), dir.join("model-00001-of-00002.safetensors")).unwrap();
        write_weights(&dir.join("model-00002-of-00002.safetensors"), &second);
        let mut map: BTreeMap<String, &str> =
            first.into_iter().map(|name| (name, "model-00001-of-00002.safetensors")).collect();
        map.insert("lm_head.weight".into(), "model-00002-of-00002.safetensors");
        let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
        fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    };
    let whole = Model::load(shared(UNTIED)).unwrap();
    assert_eq!(accept(UNTIED, split).hash(), whole.hash());

    let index = "model.safetensors.index.json";
    let second = "model-00002-of-00002.safetensors";
    let missing = |d: &Path| {
        split(d);
        fs::remove_file(d.join(second)).unwrap();
    };
    check(UNTIED, missing, &[second, "no such file", "the shard of 1 tensors", "incomplete"]);
    let lacking = |d: &Path| {
        split(d);
        write_weights(&d.join(second), &Tensors::from([("other".into(), zeros(&[1]))]));
    };
    check(UNTIED, lacking, &[second, "`lm_head.weight`: found no such tensor", index]);
    let both = |d: &Path| {
        split(d);
        let mut tensors = Tensors::from([("lm_head.weight".into(), zeros(&[199, 32]))]);
        tensors.insert("model.norm.weight".into(), zeros(&[32]));
        write_weights(&d.join(second), &tensors);
    };
    check(UNTIED, both, &["`model.norm.weight`", "too", "each tensor in one shard"]);
    let unlisted = |d: &Path| {
        split(d);
        edit_json(&d.join(index), |i| {
            drop(i["weight_map"].as_object_mut().unwrap().remove("lm_head.weight"))
        });
    };
    check(UNTIED, unlisted, &["lm_head.weight", "no such tensor"]);
    let outside = |d: &Path| {
        split(d);
        edit_json(&d.join(index), |i| i["weight_map"]["lm_head.weight"] = json!("../secret.safetensors"));
    };
    check(UNTIED, outside, &["`weight_map.lm_head.weight`", "../secret.safetensors", "beside the index"]);
    let no_map = |d: &Path| {
        split(d);
        fs::write(d.join(index), "{\"metadata\": {}}").unwrap();
    };
    check(UNTIED, no_map, &[index, "weight_map"]);
    let empty = |d: &Path| {
        split(d);
        fs::write(d.join(index), "{\"weight_map\": {}}").unwrap();
    };
    check(UNTIED, empty, &[index, "no tensors"]);
}

/// What others leave in their files, and what it means.
#[test]
fn files_that_are_odd_but_right() {
    let whole = Model::load(shared(LLAMA)).unwrap();
    // A copy of the table under the output matrix's name, and old rotary buffers.
    let with_extras = |d: &Path| {
        edit_weights(d, |t| {
            let table = t["model.embed_tokens.weight"].clone();
            t.insert("lm_head.weight".into(), table);
            t.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), zeros(&[4]));
        })
    };
    assert_eq!(accept(LLAMA, with_extras).hash(), whole.hash());
    // The table only under the output matrix's name, as Transformers may leave it.
    let head_only = |d: &Path| {
        edit_weights(d, |t| {
            let table = t.remove("model.embed_tokens.weight").unwrap();
            t.insert("lm_head.weight".into(), table);
        })
    };
    assert_eq!(accept(LLAMA, head_only).hash(), whole.hash());
    let differs = |d: &Path| {
        edit_weights(d, |t| {
            let mut table = t["model.embed_tokens.weight"].clone();
            table.2[4 * 32 * 7] ^= 1;
            t.insert("lm_head.weight".into(), table);
        })
    };
    check(LLAMA, differs, &["`lm_head.weight`: found other numbers in row 7", "tie_word_embeddings = false"]);

    // A trunk on its own, and GPT-2's masks as its first release had them.
    let bare = |d: &Path| {
        edit_weights(d, |t| {
            let named = std::mem::take(t).into_iter();
            *t = named.map(|(name, x)| (name.trim_start_matches("transformer.").to_owned(), x)).collect();
            t.insert("h.0.attn.bias".into(), zeros(&[1, 1, 64, 64]));
            t.insert("h.0.attn.masked_bias".into(), zeros(&[]));
        })
    };
    let gpt2 = Model::load(shared("golden/gpt2/model")).unwrap();
    assert_eq!(accept("golden/gpt2/model", bare).hash(), gpt2.hash());

    // GPT-NeoX's output matrix under its newer name.
    let newer = |d: &Path| {
        edit_weights(d, |t| {
            let head = t.remove("embed_out.weight").unwrap();
            t.insert("lm_head.weight".into(), head);
        })
    };
    let neox = Model::load(shared("golden/gpt_neox/model")).unwrap();
    assert_eq!(accept("golden/gpt_neox/model", newer).hash(), neox.hash());

    // Half precision: the nearest numbers.
    let halves = |d: &Path| {
        edit_weights(d, |t| {
            for (dtype, _, data) in t.values_mut() {
                let f32s = data.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
                let halves = f32s.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect();
                (*dtype, *data) = (Dtype::F16, halves);
            }
        })
    };
    let half = accept(LLAMA, halves);
    for (&x, &y) in whole.params.data.iter().zip(half.params.data.iter()) {
        assert!((x - y).abs() <= x.abs() / 2048.0 + 3e-8, "{x} became {y}");
    }
    // The old spellings.
    let old = config(
        json!({"dtype": null, "torch_dtype": "float32", "rope_parameters": null, "rope_theta": 10000.0}),
    );
    let old = accept(LLAMA, old);
    assert_eq!(old.config, whole.config);
    let dir = tempfile::tempdir().unwrap();
    old.save_as(dir.path().join("m"), WeightDtype::Bf16).unwrap();
    let saved: Value = serde_json::from_slice(&fs::read(dir.path().join("m/config.json")).unwrap()).unwrap();
    assert_eq!((&saved["torch_dtype"], saved.get("dtype")), (&json!("bfloat16"), None));
}

#[test]
fn tokenizers_that_do_not_fit() {
    let stories = "models/stories260k";
    let grow = |d: &Path| {
        edit_json(&d.join("tokenizer.json"), |t| {
            let token = json!({"id": 512, "content": "<|new|>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true});
            t["added_tokens"].as_array_mut().unwrap().push(token);
        })
    };
    check(stories, grow, &["tokenizer.json: found id 512 (\"<|new|>\")", "below 512", "resizing"]);
    check(
        stories,
        |d| fs::write(d.join("tokenizer.json"), "{}").unwrap(),
        &["tokenizer.json", "not a tokenizer"],
    );
    check(
        stories,
        |d| fs::write(d.join("tokenizer_config.json"), "{").unwrap(),
        &["tokenizer_config.json:1:1"],
    );
    let eos = |d: &Path| {
        edit_json(&d.join("tokenizer_config.json"), |t| t["eos_token"] = json!({"content": "<|none|>"}));
    };
    check(stories, eos, &["eos_token \"<|none|>\" is not in the vocabulary"]);
    let generation =
        |d: &Path| fs::write(d.join("generation_config.json"), "{\"eos_token_id\": 1.5}").unwrap();
    check(stories, generation, &["generation_config.json: `eos_token_id`: found 1.5"]);
    let template = |d: &Path| fs::write(d.join("chat_template.jinja"), "a\n{% if %}").unwrap();
    check(stories, template, &["chat_template.jinja:2", "syntax error"]);

    // A table with more rows than ids is only padded; the rows are known.
    let pad = |d: &Path| {
        config(json!({"vocab_size": 520}))(d);
        edit_weights(d, |t| {
            let table = t.get_mut("model.embed_tokens.weight").unwrap();
            table.1[0] = 520;
            table.2.resize(4 * 520 * 64, 0);
        });
    };
    let padded = accept(stories, pad);
    assert_eq!((padded.config.vocab, padded.tokenizer_vocab()), (520, 512));

    // Lists of ids, objects for tokens, ids that only config.json knows.
    let lists = |d: &Path| {
        fs::write(d.join("generation_config.json"), "{\"eos_token_id\": [2, 5], \"pad_token_id\": -1}")
            .unwrap();
        edit_json(&d.join("tokenizer_config.json"), |t| {
            t["bos_token"] = json!({"content": "<s>", "lstrip": false});
            t.as_object_mut().unwrap().remove("eos_token");
        });
    };
    let model = accept(stories, lists);
    assert_eq!((model.generation.eos, model.generation.pad), (vec![2, 5], Some(0)));
    assert_eq!(model.tokenizer.unwrap().eos_text(), Some("</s>"));

    let none = Model::load(shared(LLAMA)).unwrap();
    let error = none.tokenizer().unwrap_err();
    assert!(error.to_string().contains("no tokenizer.json"), "{error}");
    let error = Model::load(shared(stories)).unwrap().chat_template().unwrap_err().to_string();
    assert!(error.contains("no chat_template.jinja"), "{error}");
}

// --- saving -------------------------------------------------------------------------------------

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn saving_replaces_a_model_and_only_a_model() {
    let root = tempfile::tempdir().unwrap();
    let (out, old, new) = (root.path().join("deep/m"), shared(LLAMA), shared(UNTIED));
    let old = Model::load(old).unwrap();
    let new = Model::load(new).unwrap();
    old.save(&out).unwrap();
    // Shards of an earlier save go with it.
    fs::write(out.join("model-00001-of-00002.safetensors"), "old").unwrap();
    new.save(&out).unwrap();
    assert_eq!(names(&out), ["config.json", "generation_config.json", "model.safetensors"]);
    assert_eq!(Model::load(&out).unwrap().hash(), new.hash());
    assert_eq!(names(root.path().join("deep").as_path()), ["m"], "nothing is left beside it");

    fs::write(out.join("thesis.tex"), "years of work").unwrap();
    let error = old.save(&out).unwrap_err();
    assert!(error.to_string().contains("`thesis.tex` in it"), "{error}");
    assert_eq!(Model::load(&out).unwrap().hash(), new.hash());
    let error = old.save(out.join("config.json")).unwrap_err();
    assert!(matches!(error, LmError::Io { .. }), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn what_killed_processes_left_is_swept_away() {
    let root = tempfile::tempdir().unwrap();
    let model = Model::load(shared(LLAMA)).unwrap();
    // No process has this number; process 1 is always there; the third is somebody's own.
    for name in [".m.saving-999999999-0", ".m.saving-1-0", ".m.saving-notes", ".other.saving-999999999-0"] {
        fs::create_dir(root.path().join(name)).unwrap();
        fs::write(root.path().join(name).join("model.safetensors"), "half").unwrap();
    }
    model.save(root.path().join("m")).unwrap();
    assert_eq!(names(root.path()), [".m.saving-1-0", ".m.saving-notes", ".other.saving-999999999-0", "m"]);
}

#[test]
fn two_threads_may_save_in_one_place() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("m");
    let model = Model::load(shared(LLAMA)).unwrap();
    model.save(&out).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..10).for_each(|_| model.save(&out).unwrap()));
        }
    });
    assert_eq!(Model::load(&out).unwrap().hash(), model.hash());
    assert_eq!(names(root.path()), ["m"]);
}

#[cfg(unix)]
#[test]
fn saving_through_a_link_keeps_the_link() {
    let root = tempfile::tempdir().unwrap();
    let model = Model::load(shared(LLAMA)).unwrap();
    model.save(root.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", root.path().join("link")).unwrap();
    Model::load(shared(UNTIED)).unwrap().save(root.path().join("link")).unwrap();
    assert!(root.path().join("link").is_symlink());
    assert_ne!(Model::load(root.path().join("real")).unwrap().hash(), model.hash());
}

#[test]
fn a_broken_model_is_not_saved() {
    let root = tempfile::tempdir().unwrap();
    let good = Model::load(shared(LLAMA)).unwrap();
    good.save(root.path().join("m")).unwrap();
    let mut broken = good.clone();
    let spec = broken.layout.find("layers.1.qkv.weight").unwrap().clone();
    let mut row = broken.params.read_rows(&spec, 33, 1);
    row[4] = f32::NAN;
    broken.params.write_rows(&spec, 33, &row);
    let error = broken.save(root.path().join("m")).unwrap_err();
    // Row 33 of the fused matrix is row 1 of the keys.
    assert!(
        error.to_string().contains("`model.layers.1.self_attn.k_proj.weight` has NaN at [1, 4]"),
        "{error}"
    );
    assert_eq!(Model::load(root.path().join("m")).unwrap().hash(), good.hash());
    assert_eq!(names(root.path()), ["m"]);
}

/// Readers during a hundred saves see one of the two models, whole, every time.
#[test]
fn a_reader_never_sees_half_a_model() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("m");
    let models = [Model::load(shared(LLAMA)).unwrap(), Model::load(shared(UNTIED)).unwrap()];
    models[0].save(&out).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let hashes = models.each_ref().map(Model::hash);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..100 {
                models[(i + 1) % 2].save(&out).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut seen = [0; 2];
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            // A directory is not a snapshot: the files of one read may be of two saves. What must hold is
            // that the name is always there and each file is whole.
            let config = fs::read_to_string(out.join("config.json")).expect("always there");
            let tied = HfConfig::parse(Path::new("config.json"), &config).unwrap().tied().unwrap();
            seen[usize::from(tied)] += 1;
            match Model::load(&out) {
                Ok(model) => assert!(hashes.contains(&model.hash())),
                Err(LmError::Tensor { tensor, .. }) => {
                    assert_eq!(tensor, "lm_head.weight", "two saves mixed")
                }
                Err(e) => assert!(e.to_string().contains("rope"), "{e}"),
            }
        }
        assert!(seen[0] + seen[1] > 0);
    });
}

#[cfg(target_os = "linux")]
#[test]
fn a_directory_that_cannot_be_written_is_an_error() {
    let model = Model::load(shared(LLAMA)).unwrap();
    let error = model.save("/proc/polity/m").unwrap_err();
    assert!(matches!(error, LmError::Io { .. }), "{error}");
    let error = model.save("/").unwrap_err();
    assert!(error.to_string().contains("a path without a name"), "{error}");
}

/// A full disk leaves the last model and nothing else.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_last_model() {
    let mount = |args: &[&str]| {
        std::process::Command::new(args[0]).args(&args[1..]).status().is_ok_and(|status| status.success())
    };
    let root = tempfile::tempdir().unwrap();
    let place = root.path().to_str().unwrap().to_owned();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", &place]) {
        eprintln!("not tested: a full disk, since this user may not mount one");
        return;
    }
    let small = Model::load(shared(LLAMA)).unwrap();
    let large = Model::load(shared("models/stories260k")).unwrap();
    let out = root.path().join("m");
    let first = small.save(&out);
    let second = large.save(&out);
    let left = (names(root.path()), Model::load(&out).map(|m| m.hash()));
    let third = small.save(&out);
    assert!(mount(&["umount", &place]), "umount");
    first.unwrap();
    let error = second.unwrap_err();
    assert!(error.to_string().contains("cannot write: No space left"), "{error}");
    assert!(error.hint().unwrap().contains("untouched"), "{error}");
    assert_eq!((left.0, left.1.unwrap()), (vec!["m".to_owned()], small.hash()));
    third.unwrap();
}

#[test]
fn a_token_head_that_is_not_there() {
    let reward = Model::load(shared("golden/mistral/reward")).unwrap();
    let error = reward.with_token_head().unwrap_err();
    assert!(error.hint().unwrap().contains("language model it was made of"), "{error}");
    let again = reward.with_scalar_head(1, ScalarInit::InverseSqrtWidth).unwrap();
    let score = again.params.slice(&again.layout, again.layout.head);
    let rms = (score.iter().map(|x| x * x).sum::<f32>() / 32.0).sqrt();
    // 1/sqrt(33) = 0.174; 32 draws.
    assert!((0.1..0.3).contains(&rms), "{rms}");
}

#[test]
fn fresh_models_have_the_families_statistics() {
    for (name, shape) in [
        (
            "llama",
            json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}),
        ),
        (
            "gemma2",
            json!({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "head_dim": 16}),
        ),
        ("gpt2", json!({"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32})),
    ] {
        let mut raw = shape;
        raw["model_type"] = json!(name);
        raw["vocab_size"] = json!(500);
        raw["initializer_range"] = json!(0.05);
        let hf = HfConfig::from_value(raw).unwrap();
        let model = Model::init(hf.clone(), 3).unwrap();
        for spec in &model.layout.specs {
            let (rows, cols) = spec.shape.rows_cols();
            let values = model.params.read_rows(spec, 0, rows);
            let n = (rows * cols) as f32;
            let mean = values.iter().sum::<f32>() / n;
            let std = (values.iter().map(|x| x * x).sum::<f32>() / n - mean * mean).sqrt();
            let residual = spec.name.ends_with("attn_out.weight") || spec.name.ends_with("down.weight");
            let (mean_is, std_is) = match (spec.is_matrix(), spec.name.ends_with(".bias")) {
                (true, _) if name == "gpt2" && residual => (0.0, 0.05 / 2.0), // sqrt(2 * 2 layers) = 2
                (true, _) => (0.0, 0.05),
                (false, true) => (0.0, 0.0),
                (false, false) => (if name == "gemma2" { 0.0 } else { 1.0 }, 0.0),
            };
            // At least 2048 draws: four standard errors.
            let slack = 4.0 * std_is / n.sqrt() + 1e-7;
            assert!((mean - mean_is).abs() <= slack, "{name} {}: mean {mean}", spec.name);
            assert!((std - std_is).abs() <= slack, "{name} {}: std {std}", spec.name);
        }
        assert_eq!(Model::init(hf.clone(), 3).unwrap().hash(), model.hash());
        assert_ne!(Model::init(hf, 4).unwrap().hash(), model.hash());
    }
}
