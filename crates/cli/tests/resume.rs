//! A run that is killed at some step and resumed ends in the same bits as one that was left alone.
//!
//! A real process is killed with SIGKILL while it trains, for each trainer: weights, moments, critic, controller and
//! the log must not show it.

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

fn polity(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polity"));
    command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn metrics(run: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .map(|mut line: serde_json::Value| {
            line.as_object_mut().unwrap().remove("time_s");
            line
        })
        .collect()
}

/// Trains once in one go and once with a kill after `kill_after` steps.
fn check(stage: &str, data: &Path, extra: &[&str], kill_after: usize, dir: &Path) -> PathBuf {
    let model = shared("models/stories260k");
    let (whole, broken) = (dir.join(format!("{stage}_whole")), dir.join(format!("{stage}_broken")));
    let arguments = |out: &Path| {
        let mut args: Vec<String> = ["train", stage, "--model"].map(str::to_owned).to_vec();
        args.extend([model.display().to_string(), "--data".into(), data.display().to_string()]);
        args.extend(["--out".into(), out.display().to_string()]);
        for set in
            ["max_steps=40", "save_steps=3", "save_total_limit=2", "learning_rate=1e-3", "max_length=64"]
        {
            args.extend(["--set".into(), set.into()]);
        }
        args.extend(extra.iter().map(|&arg| arg.to_owned()));
        args
    };
    let run = |args: &[String]| polity(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(run(&arguments(&whole)).status().unwrap().success(), "{stage}");

    let mut child = run(&arguments(&broken)).spawn().unwrap();
    let started = Instant::now();
    while metrics(&broken).len() < kill_after && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_secs(300), "{stage}: no step in five minutes");
        std::thread::sleep(Duration::from_millis(2));
    }
    // It may have finished on a fast machine; then there is nothing to resume and the bits must be equal anyway.
    if child.try_wait().unwrap().is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
        let mut args = arguments(&broken);
        args.push("--resume".into());
        assert!(run(&args).status().unwrap().success(), "{stage}: resume");
    }
    assert_eq!(metrics(&whole), metrics(&broken), "{stage}: metrics");
    assert_eq!(metrics(&whole).len(), 40, "{stage}");
    for file in ["model/model.safetensors", "model/config.json"] {
        let read = |run: &Path| std::fs::read(run.join(file)).unwrap();
        assert!(read(&whole) == read(&broken), "{stage}: {file} differs");
    }
    let last = |run: &Path, file: &str| std::fs::read(run.join("checkpoints/step-40").join(file)).unwrap();
    let moments = if stage == "ppo" { "critic_optimizer.safetensors" } else { "model_optimizer.safetensors" };
    assert!(last(&whole, moments) == last(&broken, moments), "{stage}: moments differ");
    whole
}

#[test]
fn a_killed_run_ends_in_the_same_bits() {
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
