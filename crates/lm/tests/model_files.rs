//! The ten golden models and their reward models: every tensor in, every byte out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polity_compute::{Head, Mlp, NormKind, NormPlace, Position, QkNorm};
use polity_lm::{Family, Model, ScalarInit, WeightDtype};
use safetensors::SafeTensors;

const ALL: [&str; 10] =
    ["llama", "llama3_rope", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "olmo2", "gpt2", "gpt_neox"];

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

/// Both directories of every family.
fn every_model() -> impl Iterator<Item = (String, PathBuf)> {
    ALL.iter().flat_map(|name| {
        ["model", "reward"].map(|kind| {
            let label = format!("{name}/{kind}");
            let dir = shared(&format!("golden/{label}"));
            (label, dir)
        })
    })
}

/// A weights file as another reader sees it: name, shape, bits.
fn read_independently(file: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u32>)> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let bits = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|&b| u32::from_le_bytes(b)).collect();
    tensors.iter().map(|(name, t)| (name.to_owned(), (t.shape().to_vec(), bits(t.data())))).collect()
}

#[test]
fn every_tensor_arrives_bit_for_bit() {
    for (label, dir) in every_model() {
        let model = Model::load(&dir).unwrap_or_else(|e| panic!("{label}: {e}"));
        let exported: BTreeMap<_, _> = model
            .export_by_hf_name(&model.params)
            .into_iter()
            .map(|(name, shape, values)| (name, (shape, values.iter().map(|x| x.to_bits()).collect())))
            .collect();
        assert_eq!(exported, read_independently(&dir.join("model.safetensors")), "{label}");
        let in_file: usize = exported.values().map(|(shape, _)| shape.iter().product::<usize>()).sum();
        assert_eq!(model.layout.parameter_count(), in_file, "{label}: no parameter is left out");
        assert_eq!(model.config.head == Head::Scalar, label.ends_with("reward"), "{label}");
    }
}

#[test]
fn saving_writes_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (label, golden) in every_model() {
        let model = Model::load(&golden).unwrap();
        let out = dir.path().join(&label);
        model.save(&out).unwrap();
        for name in ["model.safetensors", "generation_config.json"] {
            let (ours, theirs) = (std::fs::read(out.join(name)), std::fs::read(golden.join(name)));
            assert_eq!(ours.ok(), theirs.ok(), "{label}/{name}");
        }
        let json = |dir: &Path| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap()
        };
        assert_eq!(json(&out), json(&golden), "{label}/config.json");
        let again = Model::load(&out).unwrap();
        assert_eq!(again.hash(), model.hash(), "{label}");
        assert_eq!(again.config, model.config, "{label}");
    }
}

#[test]
fn a_hash_sees_one_bit() {
    let mut model = Model::load(shared("golden/phi3/model")).unwrap();
    let before = model.hash();
    let at = model.layout.specs[model.layout.head].offset;
    model.params.data[at] = f32::from_bits(model.params.data[at].to_bits() ^ 1);
    assert_ne!(model.hash(), before);
}

#[test]
fn bf16_keeps_eight_bits_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::load(shared("golden/qwen2/model")).unwrap();
    model.save_as(dir.path().join("m"), WeightDtype::Bf16).unwrap();
    let again = Model::load(dir.path().join("m")).unwrap();
    assert_eq!(again.hf.raw()["dtype"], "bfloat16");
    // Round to nearest even in 8 bits of significand: at most 2^-8 of the number.
    for (&x, &y) in model.params.data.iter().zip(again.params.data.iter()) {
        assert!((x - y).abs() <= x.abs() / 256.0, "{x} became {y}");
        assert_eq!(y.to_bits() & 0xffff, 0, "{y} has 16 bits");
    }
}

#[test]
fn families_have_their_options() {
    let config = |name: &str| Model::load(shared(&format!("golden/{name}/model"))).unwrap().config;
    let llama = config("llama");
    assert_eq!((llama.head, llama.norm, llama.norm_place), (Head::Tied, NormKind::Rms, NormPlace::Pre));
    assert_eq!((llama.heads, llama.kv_heads, llama.head_dim, llama.mlp), (4, 2, 8, Mlp::GatedSilu));
    assert_eq!(config("mistral").window_l, [Some(4), Some(4)]);
    assert_eq!(config("mistral").head, Head::Untied);
    let qwen2 = config("qwen2");
    assert!(qwen2.qkv_bias && !qwen2.attn_out_bias && !qwen2.mlp_bias);
    assert_eq!((config("qwen3").qk_norm, config("qwen3").head_dim), (QkNorm::PerHead, 16));
    let gemma = config("gemma2");
    assert_eq!((gemma.norm, gemma.norm_place), (NormKind::RmsPlusOne, NormPlace::PreAndPost));
    assert_eq!((gemma.attn_softcap, gemma.logit_softcap), (Some(50.0), Some(30.0)));
    assert_eq!((gemma.embed_scale, gemma.mlp), (32f64.sqrt() as f32, Mlp::GatedGeluTanh));
    assert_eq!(gemma.window_l, [Some(4), None]);
    let olmo = config("olmo2");
    assert_eq!((olmo.norm_place, olmo.qk_norm, olmo.norm_eps), (NormPlace::Post, QkNorm::Whole, 1e-5));
    let gpt2 = config("gpt2");
    assert_eq!((gpt2.position.clone(), gpt2.mlp, gpt2.ffn), (Position::Learned, Mlp::GeluTanh, 128));
    assert!(gpt2.qkv_bias && gpt2.attn_out_bias && gpt2.mlp_bias && gpt2.norm == NormKind::Layer);
    let neox = config("gpt_neox");
    assert!(neox.parallel_residual && neox.mlp == Mlp::Gelu && neox.qkv_bias);
    // A quarter of 8 channels: one frequency.
    assert_eq!(neox.position, Position::Rotary { inv_freq: vec![1.0] });
}

/// A reward model from a language model, as Transformers writes it: same trunk, same keys.
#[test]
fn a_scalar_head_on_every_family() {
    let dir = tempfile::tempdir().unwrap();
    for name in ALL {
        let model = Model::load(shared(&format!("golden/{name}/model"))).unwrap();
        let golden = Model::load(shared(&format!("golden/{name}/reward"))).unwrap();
        let reward = model.with_scalar_head(7, ScalarInit::InitializerRange).unwrap();
        assert_eq!(reward.hf.raw(), golden.hf.raw(), "{name}");
        assert_eq!(reward.config, golden.config, "{name}");

        let score = reward.params.slice(&reward.layout, reward.layout.head);
        let mean_square = score.iter().map(|x| x * x).sum::<f32>() / score.len() as f32;
        // 32 draws at standard deviation 0.02: within a factor of two.
        assert!((0.01..0.04).contains(&mean_square.sqrt()), "{name}: {mean_square}");
        let same = model.with_scalar_head(7, ScalarInit::InitializerRange).unwrap();
        assert_eq!(reward.hash(), same.hash(), "{name}: the seed decides");
        let other = model.with_scalar_head(8, ScalarInit::InitializerRange).unwrap();
        assert_ne!(reward.hash(), other.hash(), "{name}: the seed decides");

        let trunk = |model: &Model| -> BTreeMap<String, Vec<f32>> {
            let all = model.export_by_hf_name(&model.params).into_iter();
            let head = ["score.weight", "lm_head.weight", "embed_out.weight"];
            all.filter(|(name, ..)| !head.contains(&name.as_str())).map(|(name, _, x)| (name, x)).collect()
        };
        assert_eq!(trunk(&reward), trunk(&model), "{name}");

        reward.save(dir.path().join(name)).unwrap();
        assert_eq!(Model::load(dir.path().join(name)).unwrap().hash(), reward.hash(), "{name}");

        match reward.with_token_head() {
            Ok(back) => assert_eq!(back.hash(), model.hash(), "{name}: there and back"),
            Err(e) => {
                assert!(model.config.head == Head::Untied && e.to_string().contains("no output matrix"))
            }
        }
    }
}

/// Transformers scores a padded batch only if it knows the padding, and reads a token early if that is also
/// the end.
#[test]
fn a_reward_model_knows_its_padding() {
    let model = Model::load(shared("models/stories260k")).unwrap();
    assert!(model.hf.raw()["pad_token_id"].is_null());
    let reward = model.with_scalar_head(1, ScalarInit::InitializerRange).unwrap();
    assert_eq!(reward.hf.raw()["pad_token_id"], 0);

    let mut model = model;
    model.generation.eos = vec![2, 0];
    let reward = model.with_scalar_head(1, ScalarInit::InitializerRange).unwrap();
    assert!(reward.hf.raw()["pad_token_id"].is_null());
}

#[test]
fn stories260k_has_its_tokenizer() {
    let model = Model::load(shared("models/stories260k")).unwrap();
    assert_eq!(model.generation.eos, [2]);
    assert_eq!((model.generation.bos, model.generation.pad), (Some(1), Some(0)));
    assert_eq!(model.tokenizer_vocab(), 512);
    assert_eq!(model.hf.family(), Family::Llama);
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path().join("m")).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"] {
        let there = std::fs::read(shared("models/stories260k").join(name)).unwrap();
        assert_eq!(std::fs::read(dir.path().join("m").join(name)).unwrap(), there, "{name}");
    }
}
