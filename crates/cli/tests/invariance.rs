//! What must not change a run: being killed and resumed, the number of threads, how a step is cut into parts.
//!
//! A real process is killed with SIGKILL while it trains, for each trainer, and goes on with another number of threads:
//! weights, moments, critic, controller and the log must not show it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn shared(what: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(what)
}

/// Pairs of short real comparisons, as prompts, demonstrations and preferences at once.
fn rows(dir: &Path) -> PathBuf {
    let texts = [
        ("Once upon a time", " there was a little dog.", " the dog dog dog."),
        ("Lily went to", " the park to play with Tom.", " a."),
        ("Tom was sad because", " he lost his red ball.", " ball red."),
        ("One day, a bird", " flew to the big tree.", " tree tree tree tree tree."),
        ("The sun was", " shining and they were happy.", " no."),
        ("Her mom said", " \"Do not run, dear.\"", " said said."),
    ];
    let lines: Vec<String> = (0..24)
        .map(|i| {
            let (prompt, chosen, rejected) = texts[i % texts.len()];
            serde_json::json!({"prompt": format!("{prompt}{}", "!".repeat(i / texts.len())), "completion": chosen,
                "chosen": chosen, "rejected": rejected})
            .to_string()
        })
        .collect();
    let file = dir.join("rows.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    file
}

/// Only the keys that a stage reads.
fn rows_with(dir: &Path, all: &Path, keys: &[&str]) -> PathBuf {
    let text = std::fs::read_to_string(all).unwrap();
    let lines: Vec<String> = text
        .lines()
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let kept: serde_json::Map<_, _> =
                keys.iter().map(|key| ((*key).to_owned(), row[*key].clone())).collect();
            serde_json::Value::Object(kept).to_string()
        })
        .collect();
    let file = dir.join(format!("{}.jsonl", keys.join("_")));
    std::fs::write(&file, lines.join("\n")).unwrap();
    file
}

fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .map(|mut line: serde_json::Value| {
            line.as_object_mut().unwrap().retain(|name, _| name != "time_s" && !name.starts_with("time/"));
            line
        })
        .collect()
}

/// `polity train STAGE` on stories260k.
fn train(stage: &str, data: &Path, out: &Path, sets: &[&str], extra: &[&str]) -> Command {
    let model = shared("models/stories260k");
    let mut command = Command::new(env!("CARGO_BIN_EXE_polity"));
    command.args(["train", stage, "--model"]).arg(model).arg("--data").arg(data).arg("--out").arg(out);
    for set in sets {
        command.args(["--set", set]);
    }
    command.args(extra).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Trains once in one go on one thread and once on three, with a kill after `kill_after` steps.
fn check(stage: &str, data: &Path, extra: &[&str], kill_after: usize, dir: &Path) -> PathBuf {
    let (whole, broken) = (dir.join(format!("{stage}_whole")), dir.join(format!("{stage}_broken")));
    let sets = ["max_steps=40", "save_steps=3", "save_total_limit=2", "learning_rate=1e-3", "max_length=64"];
    let run = |out: &Path, more: &[&str]| train(stage, data, out, &sets, &[extra, more].concat());
    assert!(run(&whole, &["--threads", "1"]).status().unwrap().success(), "{stage}");

    let mut child = run(&broken, &["--threads", "3"]).spawn().unwrap();
    let started = Instant::now();
    while metrics(&broken).len() < kill_after && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(300), "{stage}: no step in five minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    // It may have finished on a fast machine; then there is nothing to resume and the bits must be equal anyway.
    if child.try_wait().unwrap().is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(run(&broken, &["--threads", "2", "--resume"]).status().unwrap().success(), "{stage}: resume");
    }
    assert_eq!(metrics(&whole), metrics(&broken), "{stage}: metrics");
    assert_eq!(metrics(&whole).len(), 40, "{stage}");
    for file in ["model/model.safetensors", "model/config.json", "adapter/adapter_model.safetensors"] {
        let read = |run: &Path| std::fs::read(run.join(file)).ok();
        assert!(read(&whole) == read(&broken), "{stage}: {file} differs");
    }
    assert_eq!(whole.join("adapter").exists(), extra.contains(&"use_peft=true"), "{stage}");
    let last = |run: &Path, file: &str| std::fs::read(run.join("checkpoints/step-40").join(file)).unwrap();
    let moments = if stage == "ppo" { "critic_optimizer.safetensors" } else { "model_optimizer.safetensors" };
    assert!(last(&whole, moments) == last(&broken, moments), "{stage}: moments differ");
    whole
}

/// Three steps of eight rows at once, and of one row at a time: the same rows, losses and gradients. Sums over the parts of a
/// step are rounded where they meet, so not to the bit.
fn check_parts(stage: &str, data: &Path, extra: &[&str], dir: &Path) -> PathBuf {
    let run = |name: &str, batch: &str, parts: &str, tokens: &str| {
        let out = dir.join(format!("{stage}_{name}"));
        let sets = [batch, parts, tokens, "max_steps=3", "learning_rate=1e-4", "max_length=64"];
        assert!(train(stage, data, &out, &sets, extra).status().unwrap().success(), "{stage} {name}");
        out
    };
    let (batch, tokens) = ("per_device_train_batch_size", "tokens_per_micro_batch");
    let at_once =
        run("8x1", &format!("{batch}=8"), "gradient_accumulation_steps=1", &format!("{tokens}=100000"));
    let in_parts = run("1x8", &format!("{batch}=1"), "gradient_accumulation_steps=8", &format!("{tokens}=1"));
    let (at_once_metrics, in_parts_metrics) = (metrics(&at_once), metrics(&in_parts));
    assert_eq!((at_once_metrics.len(), in_parts_metrics.len()), (3, 3), "{stage}");
    for (expect, got) in at_once_metrics.iter().zip(&in_parts_metrics) {
        for (name, expect) in expect.as_object().unwrap() {
            let (expect, got) = (expect.as_f64().unwrap(), got[name].as_f64().unwrap());
            // Measured 3e-6.
            assert!(
                (got - expect).abs() <= 3e-5 * expect.abs().max(1.0),
                "{stage}: {name} {got}, at once {expect}"
            );
        }
    }
    at_once
}

#[test]
fn a_run_killed_and_resumed_on_other_threads_ends_in_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let all = rows(dir.path());
    let pairs = rows_with(dir.path(), &all, &["prompt", "chosen", "rejected"]);
    let demonstrations = rows_with(dir.path(), &all, &["prompt", "completion"]);
    let prompts = rows_with(dir.path(), &all, &["prompt"]);
    check("sft", &demonstrations, &[], 5, dir.path());
    check("dpo", &pairs, &[], 10, dir.path());
    let reward = check("reward", &pairs, &[], 4, dir.path()).join("model");
    let ppo = [
        "--reward-model",
        reward.to_str().unwrap(),
        "--set",
        "response_length=8",
        "--set",
        "kl_controller=adaptive",
        "--set",
        "use_score_scaling=true",
        "--set",
        "num_mini_batches=2",
    ];
    check("ppo", &prompts, &ppo, 7, dir.path());
}

#[test]
fn an_adapter_s_run_killed_and_resumed_ends_in_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let all = rows(dir.path());
    let pairs = rows_with(dir.path(), &all, &["prompt", "chosen", "rejected"]);
    let prompts = rows_with(dir.path(), &all, &["prompt"]);
    let lora = ["--set", "use_peft=true", "--set", "lora_r=4"];
    check("dpo", &pairs, &lora, 9, dir.path());
    let reward = check("reward", &pairs, &lora, 5, dir.path()).join("model");
    let ppo = ["--reward-model", reward.to_str().unwrap(), "--set", "response_length=8"];
    check("ppo", &prompts, &[&ppo[..], &lora].concat(), 6, dir.path());
}

#[test]
fn a_run_in_bf16_killed_and_resumed_ends_in_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let all = rows(dir.path());
    let pairs = rows_with(dir.path(), &all, &["prompt", "chosen", "rejected"]);
    let prompts = rows_with(dir.path(), &all, &["prompt"]);
    let bf16 = ["--set", "precision=bf16"];
    check("dpo", &pairs, &[&bf16[..], &["--set", "use_peft=true"]].concat(), 8, dir.path());
    let reward = check("reward", &pairs, &bf16, 5, dir.path()).join("model");
    let ppo = ["--reward-model", reward.to_str().unwrap(), "--set", "response_length=8"];
    check("ppo", &prompts, &[&ppo[..], &bf16].concat(), 6, dir.path());
}

#[test]
fn a_step_is_the_same_however_it_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let all = rows(dir.path());
    let pairs = rows_with(dir.path(), &all, &["prompt", "chosen", "rejected"]);
    let demonstrations = rows_with(dir.path(), &all, &["prompt", "completion"]);
    let prompts = rows_with(dir.path(), &all, &["prompt"]);
    check_parts("sft", &demonstrations, &[], dir.path());
    check_parts("dpo", &pairs, &[], dir.path());
    let reward = check_parts("reward", &pairs, &[], dir.path()).join("model");
    let ppo = ["--reward-model", reward.to_str().unwrap(), "--set", "response_length=8"];
    check_parts("ppo", &prompts, &ppo, dir.path());
}
