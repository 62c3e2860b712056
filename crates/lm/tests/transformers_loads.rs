//! What Polity saves loads in Hugging Face Transformers and PEFT and computes the same: ten architectures, as language models
//! and as reward models, after one step of training; adapters of each way in which a family stores its linear maps; a model with a
//! tokenizer.
//!
//! The first run installs Transformers, PEFT and PyTorch from wheels beside the other build outputs (some gigabytes, a minute or
//! two). Set `POLITY_TEST_PYTHON` to an interpreter that has them to use that one.

mod wheels;

use std::path::{Path, PathBuf};
use std::process::Command;

use polity_compute::optim::{Optimizer, OptimizerConfig};
use polity_compute::{Batch, Cpu, Decoder, Params, Recompute, Tape};
use polity_lm::{Adapter, LoraConfig, Model};
use serde_json::{Value, json};

const FAMILIES: [&str; 10] =
    ["llama", "llama3_rope", "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma2", "phi3", "olmo2"];

/// The versions that the golden values were made with.
const WHEELS: [&str; 4] = ["torch==2.15.0", "transformers==5.23.0", "peft==0.21.2", "numpy"];

const ROWS: [&[u32]; 3] = [&[1, 17, 5, 9, 100, 3, 44], &[1, 8, 8, 120, 6], &[1, 77, 30, 2]];

fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

/// An interpreter with Transformers.
fn python() -> PathBuf {
    wheels::python("POLITY_TEST_PYTHON", env!("CARGO_TARGET_TMPDIR"), "transformers", &WHEELS)
}

fn decoder_of(model: &Model) -> Decoder {
    Decoder::new(model.config.clone()).unwrap()
}

const ADAMW: OptimizerConfig = OptimizerConfig {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
    decay_vectors: false,
    max_grad_norm: None,
};

/// The gradient of a sum of the heads' outputs.
fn gradient(cpu: &Cpu, model: &Model) -> Params {
    let (decoder, batch) = (decoder_of(model), Batch::from_rows(ROWS));
    let (mut tape, mut grads) = (Tape::default(), Params::zeros(&model.layout));
    decoder.forward(cpu, &model.params, &batch, Recompute::None, &mut tape);
    decoder.begin_backward(&mut tape);
    if model.config.head == polity_compute::Head::Scalar {
        let last = [0, 1, 2].map(|s| batch.last_row(s).unwrap());
        decoder.scalars_backward(&model.params, &mut tape, &last, &[1.0, -1.0, 0.5], &mut grads);
    } else {
        let predictions: Vec<_> = (0..ROWS.len()).flat_map(|s| batch.predict(s, 1)).collect();
        let (d, none) = (vec![-1.0; predictions.len()], vec![0.0; predictions.len()]);
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
    }
    decoder.backward(cpu, &model.params, &batch, &mut tape, &mut grads);
    grads
}

/// One step of AdamW, so that no weight is what was loaded.
fn train_a_step(cpu: &Cpu, model: &mut Model) {
    let mut grads = gradient(cpu, model);
    let mut optimizer = Optimizer::new(ADAMW, model.layout.len);
    optimizer.update(cpu, &model.layout.specs, &mut model.params, &mut grads, 1e-3);
}

/// A new adapter of the model at `base` after two steps (in the first, only `b` moves), and the merged model.
fn train_an_adapter(cpu: &Cpu, base: &Path) -> (Adapter, Model) {
    let mut model = Model::load(base).unwrap();
    let lora = LoraConfig {
        r: 4,
        alpha: 6.0,
        rslora: true,
        target_modules: vec![polity_lm::adapter::ALL_LINEAR.into()],
    };
    let mut adapter = Adapter::new(&model, lora, &base.to_string_lossy(), 5).unwrap();
    let mut optimizer = Optimizer::new(ADAMW, adapter.params.data.len());
    for _ in 0..2 {
        let grads = gradient(cpu, &model);
        adapter.update(cpu, &mut optimizer, &model.layout, &mut model.params, &grads, 1e-2);
    }
    (adapter, model)
}

/// What Polity computes for each row: all logits, or the reward at the last token.
fn outputs(cpu: &Cpu, model: &Model) -> Vec<Vec<f32>> {
    let (decoder, mut tape) = (decoder_of(model), Tape::default());
    let one = |ids: &&[u32]| {
        decoder.forward(cpu, &model.params, &Batch::from_rows([*ids]), Recompute::None, &mut tape);
        if model.config.head == polity_compute::Head::Scalar {
            return decoder.scalars(&model.params, &tape, &[ids.len() - 1]);
        }
        decoder.logits(cpu, &model.params, &mut tape, &(0..ids.len()).collect::<Vec<_>>(), 1.0)
    };
    ROWS.iter().map(one).collect()
}

#[test]
fn saved_models_load_in_transformers_and_compute_the_same() {
    let (cpu, dir) = (Cpu::new(2), tempfile::tempdir().unwrap());
    let mut cases: Vec<Value> = Vec::new();
    let mut case = |from: PathBuf, name: String, kind: &str| -> usize {
        let mut model = Model::load(&from).unwrap();
        let loaded = outputs(&cpu, &model);
        train_a_step(&cpu, &mut model);
        let expect = outputs(&cpu, &model);
        assert_ne!(loaded, expect, "{name} has learnt");
        let saved = dir.path().join(name);
        model.save(&saved).unwrap();
        cases.push(json!({"dir": saved, "kind": kind, "rows": ROWS, "expect": expect}));
        cases.len() - 1
    };
    for family in FAMILIES {
        case(shared("golden").join(family).join("model"), family.into(), "lm");
        case(shared("golden").join(family).join("reward"), format!("{family}-reward"), "reward");
    }
    let stories = case(shared("models/stories260k"), "stories260k".into(), "lm");
    let text = "Lily and Tom went to the park. \u{e9}\u{1f600}";
    let tokenizer = Model::load(shared("models/stories260k")).unwrap().tokenizer.unwrap();
    cases[stories]["text"] = text.into();
    cases[stories]["ids"] = tokenizer.encode(text, true).unwrap().into();

    for family in ["llama", "gpt2", "gpt_neox", "phi3"] {
        for (which, kind) in [("model", "lm"), ("reward", "reward")] {
            let base = shared("golden").join(family).join(which).canonicalize().unwrap();
            let (adapter, merged) = train_an_adapter(&cpu, &base);
            let expect = outputs(&cpu, &merged);
            assert_ne!(outputs(&cpu, &Model::load(&base).unwrap()), expect, "{family} has learnt");
            let saved = dir.path().join(format!("{family}-{kind}-adapter"));
            adapter.save(&saved).unwrap();
            cases.push(json!({"dir": saved, "base": base, "kind": kind, "rows": ROWS, "expect": expect}));
        }
    }

    let file = dir.path().join("cases.json");
    std::fs::write(&file, serde_json::to_vec(&cases).unwrap()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/load_saved.py");
    let offline = [("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")];
    let out = wheels::run(Command::new(python()).arg(script).arg(&file).envs(offline));
    let out = String::from_utf8(out.stdout).unwrap();
    let reports: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reports.len(), cases.len());
    for report in &reports {
        let (dir, error) = (&report["dir"], report["error"].as_f64().unwrap());
        println!("{dir}: {error:.1e}");
        assert_eq!((&report["missing"], &report["unexpected"]), (&json!([]), &json!([])), "{dir}");
        // Required: 1e-4.
        assert!(error < 1e-5, "{dir}: {error:e} of the largest");
    }
    assert_eq!(reports[stories]["ids_equal"], true, "the saved tokenizer");
}
