//! LoRA adapters against PEFT: merged models, gradients, two steps of AdamW; files in and out; what is refused.
//!
//! `golden/make_lora.py` made the numbers (float32 on CPU) on the models of `../shared/golden`, which are read in place.

use std::fs;
use std::path::{Path, PathBuf};

use polity_compute::optim::{Optimizer, OptimizerConfig};
use polity_compute::{Batch, Cpu, Decoder, Head, Params, Recompute, Tape};
use polity_lm::{Adapter, LmError, LoraConfig, Model, adapter};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const ADAPTERS: [&str; 6] = ["llama", "llama_qv_rslora", "gpt2", "gpt_neox", "phi3", "llama_reward"];

fn golden(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora").join(folder)
}

fn base_of(folder: &str) -> PathBuf {
    let family = if folder.starts_with("llama") { "llama" } else { folder };
    let which = if folder.ends_with("reward") { "reward" } else { "model" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden").join(family).join(which)
}

fn f32s(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

fn ids_and_offsets(folder: &str) -> (Vec<u32>, Vec<usize>) {
    let bytes = fs::read(base_of(folder).join("../golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let i64s = |name: &str| -> Vec<i64> {
        let tensor = file.tensor(name).unwrap();
        tensor.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    (i64s("ids").iter().map(|&id| id as u32).collect(), i64s("offsets").iter().map(|&o| o as usize).collect())
}

/// Relative to the largest element expected.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    found.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The adapter's settings, as the golden folder's configuration has them.
fn config_of(folder: &str) -> LoraConfig {
    let text = fs::read_to_string(golden(folder).join(adapter::CONFIG_FILE)).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    let names = config["target_modules"].as_array().unwrap().iter();
    LoraConfig {
        r: 3,
        alpha: 5.0,
        rslora: config["use_rslora"].as_bool().unwrap(),
        target_modules: names.map(|name| name.as_str().unwrap().to_owned()).collect(),
    }
}

/// Logits or scores, and the gradient of the loss, of merged weights.
fn run(model: &Model, cpu: &Cpu, folder: &str) -> (Vec<f32>, Params) {
    let (ids, offsets) = ids_and_offsets(folder);
    let batch = Batch::from_rows(offsets.windows(2).map(|w| &ids[w[0]..w[1]]));
    let decoder = Decoder::new(model.config.clone()).unwrap();
    let (mut tape, mut grads) = (Tape::default(), Params::zeros(&model.layout));
    decoder.forward(cpu, &model.params, &batch, Recompute::None, &mut tape);
    decoder.begin_backward(&mut tape);
    let output = if model.config.head == Head::Scalar {
        let last: Vec<usize> = (0..3).map(|s| batch.last_row(s).unwrap()).collect();
        let score = decoder.scalars(&model.params, &tape, &last);
        // loss = -log sigmoid(s0 - s1)
        let d = (-1.0 / (1.0 + (f64::from(score[0]) - f64::from(score[1])).exp())) as f32;
        decoder.scalars_backward(&model.params, &mut tape, &last, &[d, -d, 0.0], &mut grads);
        score
    } else {
        let all: Vec<usize> = (0..batch.tokens()).collect();
        let logits = decoder.logits(cpu, &model.params, &mut tape, &all, 1.0);
        let predictions: Vec<_> = (0..3).flat_map(|s| batch.predict(s, 1)).collect();
        let m = predictions.len();
        let (d, none) = (vec![-1.0 / m as f32; m], vec![0.0; m]);
        let of = decoder.logprobs(cpu, &model.params, &mut tape, &predictions, 1.0);
        decoder.logprobs_backward(
            cpu,
            &model.params,
            &mut tape,
            &predictions,
            1.0,
            &of,
            &d,
            &none,
            &mut grads,
        );
        logits
    };
    decoder.backward(cpu, &model.params, &batch, &mut tape, &mut grads);
    (output, grads)
}

#[test]
fn adapters_compute_and_learn_as_in_peft() {
    let cpu = Cpu::new(2);
    for folder in ADAPTERS {
        let bytes = fs::read(golden(folder).join("lora_golden.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let merged = Model::load(golden(folder)).unwrap();
        let (output, grads) = run(&merged, &cpu, folder);
        let what = if merged.config.head == Head::Scalar { "score" } else { "logits" };
        let output_error = error(&output, &f32s(&file, what));

        let mut model = Model::load(base_of(folder)).unwrap();
        let mut adapter = Adapter::new(&model, config_of(folder), "base", 1).unwrap();
        adapter.load_numbers(golden(folder)).unwrap();
        adapter.merge(&cpu, &model.layout, &mut model.params);
        assert_eq!(bits(&model.params.data), bits(&merged.params.data), "{folder}: one way to merge");
        adapter.pull(&cpu, &model.layout, &grads);
        let worst = |adapter: &Adapter, params: &Params, prefix: &str| {
            let exported = adapter.export(params);
            let stored = file.names().iter().filter(|name| name.starts_with(prefix)).count();
            assert_eq!(exported.len(), stored, "{folder}: every tensor that PEFT trains");
            let errors = exported.iter().map(|(name, _, values)| {
                let expected = f32s(&file, &format!("{prefix}.{name}"));
                (error(values, &expected), name.clone())
            });
            errors.fold((0.0f32, String::new()), |worst, this| if this.0 > worst.0 { this } else { worst })
        };
        let (grad_error, grad_worst) = worst(&adapter, &adapter.grads, "grad");

        let adamw = OptimizerConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decay_vectors: false,
            max_grad_norm: None,
        };
        let mut optimizer = Optimizer::new(adamw, adapter.params.data.len());
        for _ in 0..2 {
            let (_, grads) = run(&model, &cpu, folder);
            adapter.update(&cpu, &mut optimizer, &model.layout, &mut model.params, &grads, 1e-2);
        }
        let (step_error, step_worst) = worst(&adapter, &adapter.params, "stepped");
        println!(
            "{folder:16} output {output_error:.1e} gradient {grad_error:.1e} two steps {step_error:.1e}"
        );
        // Measured: at most 9.1e-7, 2.2e-6 and 3.4e-6.
        assert!(output_error < 5e-6, "{folder}: {what} {output_error:e}");
        assert!(grad_error < 1e-5, "{folder}: gradient of {grad_worst} {grad_error:e}");
        assert!(step_error < 2e-5, "{folder}: {step_worst} after two steps {step_error:e}");
    }
}

#[test]
fn a_new_adapter_is_the_base_model() {
    let all = |r| LoraConfig {
        r,
        alpha: 32.0,
        rslora: false,
        target_modules: vec![adapter::ALL_LINEAR.to_owned()],
    };
    for folder in ADAPTERS {
        let base = Model::load(base_of(folder)).unwrap();
        let adapter = Adapter::new(&base, all(40), "base", 3).unwrap();
        let mut merged = base.params.clone();
        adapter.merge(&Cpu::new(1), &base.layout, &mut merged);
        assert!(merged.data.iter().zip(&*base.params.data).all(|(a, b)| a == b), "{folder}");
    }
    // Kaiming's bound for fan-in k, as PEFT: uniform within 1 / sqrt(k), so its standard deviation is 1 / sqrt(3 k).
    let base = Model::load(base_of("llama")).unwrap();
    let adapter = Adapter::new(&base, all(64), "base", 3).unwrap();
    let a = adapter.export(&adapter.params).remove(0);
    assert_eq!(
        (a.0.as_str(), &a.1[..]),
        ("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight", &[64, 56][..])
    );
    let (bound, n) = (1.0 / 56f32.sqrt(), a.2.len() as f32);
    assert!(a.2.iter().all(|x| x.abs() <= bound) && a.2.iter().any(|x| x.abs() > 0.99 * bound));
    let std = (a.2.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
    assert!((std * 3f32.sqrt() / bound - 1.0).abs() < 0.05, "{std}");
}

#[test]
fn a_saved_adapter_is_the_same_when_read() {
    for folder in ["gpt2", "llama_reward"] {
        let dir = TempDir::new().unwrap();
        let base = base_of(folder).canonicalize().unwrap();
        let model = Model::load(&base).unwrap();
        let mut adapter = Adapter::new(&model, config_of(folder), &base.to_string_lossy(), 1).unwrap();
        adapter.load_numbers(golden(folder)).unwrap();
        let saved = dir.path().join("adapter");
        adapter.save(&saved).unwrap();
        let again = Model::load(&saved).unwrap();
        assert_eq!(
            bits(&again.params.data),
            bits(&Model::load(golden(folder)).unwrap().params.data),
            "{folder}"
        );
        // A second save replaces the first.
        adapter.save(&saved).unwrap();
    }
}

/// What an adapter's directory says when one thing about it is changed.
fn refused(change: impl FnOnce(&Path, &mut Value)) -> LmError {
    let dir = TempDir::new().unwrap();
    for file in [adapter::CONFIG_FILE, adapter::WEIGHTS_FILE] {
        fs::copy(golden("llama").join(file), dir.path().join(file)).unwrap();
    }
    let file = dir.path().join(adapter::CONFIG_FILE);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    config["base_model_name_or_path"] = json!(base_of("llama"));
    change(dir.path(), &mut config);
    fs::write(&file, config.to_string()).unwrap();
    Model::load(dir.path()).expect_err("it was spoilt")
}

#[test]
fn what_is_not_understood_is_refused() {
    let key = |key: &str, value: Value, expect: &[&str]| {
        let error = refused(|_, config| config[key] = value);
        let said = format!("{error}; {}", error.hint().unwrap_or_default());
        for part in [&["adapter_config.json", key][..], expect].concat() {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
    };
    key("peft_type", json!("LOHA"), &["found \"LOHA\"", "expected \"LORA\"", "merge_and_unload"]);
    key("use_dora", json!(true), &["found true"]);
    key("bias", json!("all"), &["found \"all\""]);
    key("r", json!(0), &["found 0"]);
    key("lora_alpha", json!("x"), &["a number"]);
    key("rank_pattern", json!({"q_proj": 8}), &["found {\"q_proj\":8}"]);
    key("init_lora_weights", json!("pissa_niter_4"), &["leaves the base model as it is"]);
    key("target_modules", json!(".*proj"), &["a list of names"]);
    key("target_modules", json!(["no_proj"]), &["expected linear maps of the base model"]);
    key("some_new_kind", json!(3), &["found 3"]);
    key("base_model_name_or_path", json!("someone/some-model"), &["someone/some-model", "not downloaded"]);

    let tensor = |error: LmError, expect: &[&str]| {
        let said = format!("{error}; {}", error.hint().unwrap_or_default());
        for part in expect {
            assert!(said.contains(part), "no {part:?} in: {said}");
        }
    };
    let rank = refused(|_, config| config["r"] = json!(4));
    tensor(rank, &["adapter_model.safetensors", "lora_A", "shape [3, 56]", "expected shape [4, 56]"]);
    let fewer = refused(|_, config| config["target_modules"] = json!(["q_proj"]));
    tensor(fewer, &["down_proj.lora_A", "found this tensor", "target_modules names"]);
    let other = refused(|dir, _| {
        fs::copy(golden("llama_qv_rslora").join(adapter::WEIGHTS_FILE), dir.join(adapter::WEIGHTS_FILE))
            .unwrap();
    });
    tensor(other, &["down_proj.lora_A.weight", "no such tensor"]);
    let cut = refused(|dir, _| {
        let file = dir.join(adapter::WEIGHTS_FILE);
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    });
    tensor(cut, &["adapter_model.safetensors"]);

    let model = Model::load(base_of("llama")).unwrap();
    let config = LoraConfig { target_modules: vec!["q_proj".into(), "query".into()], ..config_of("llama") };
    let error = Adapter::new(&model, config, "base", 1).unwrap_err();
    tensor(error, &["found \"query\"", "down_proj, gate_proj, k_proj, o_proj, q_proj"]);
}
