//! Stopping and going on: what Ctrl-C does to a training run.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Run, command, interrupt, lines, polity, run_of, stories, text, wait_for};

/// Rows in a file.
fn write_rows(file: &Path, rows: usize, words: usize) {
    let row = |i: usize| {
        let completion = " and they played".repeat(words);
        format!("{}\n", json!({"prompt": format!("Day {i}: Lily and Tom"), "completion": completion}))
    };
    fs::write(file, (0..rows).map(row).collect::<String>()).unwrap();
}

fn sft(data: &Path, out: &Path, more: &[&str]) -> Vec<String> {
    let (model, data, out) = (stories(), text(data), text(out));
    let args = ["train", "sft", "--model", &model, "--data", &data, "--out", &out];
    args.iter().chain(more).map(|word| (*word).to_owned()).collect()
}

fn start(args: &[String]) -> Child {
    command(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Lines of the log without the times.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut step: Value = serde_json::from_str(line).unwrap();
            let numbers = step.as_object_mut().unwrap();
            numbers.remove("time_s").unwrap();
            numbers.retain(|name, _| !name.starts_with("time/"));
            step
        })
        .collect()
}

fn report(run: &Path) -> String {
    fs::read_to_string(run.join("report.html")).unwrap()
}

#[test]
#[cfg(unix)]
fn a_stopped_run_goes_on_to_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let (data, whole, stopped) =
        (dir.path().join("rows.jsonl"), dir.path().join("whole"), dir.path().join("stopped"));
    write_rows(&data, 40, 3);
    let more = ["--set", "max_steps=120", "--set", "save_steps=0", "--set", "sample_prompts=0"];
    polity(sft(&data, &whole, &more)).ok();

    let child = start(&sft(&data, &stopped, &more));
    wait_for("some steps", || lines(&stopped.join("metrics.jsonl")) >= 5);
    interrupt(&child);
    let Run { code, stdout, stderr } = run_of(child.wait_with_output().unwrap());
    assert_eq!((code, stdout.as_str()), (130, ""), "{stderr}");
    assert!(stderr.contains("press Ctrl-C again to stop at once"), "{stderr}");
    assert!(stderr.contains("a checkpoint was saved") && stderr.contains("--resume"), "{stderr}");
    let done = metrics(&stopped).len();
    assert!((5..120).contains(&done) && !stopped.join("model").exists(), "{done} steps");
    assert!(
        report(&stopped).contains(&format!("{done} steps in")) && report(&stopped).contains("not finished")
    );
    assert!(stopped.join(format!("checkpoints/step-{done}")).is_dir());

    polity(sft(&data, &stopped, &[&more[..], &["--resume"]].concat())).ok();
    let weights = |run: &Path| fs::read(run.join("model/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&stopped), "weights differ");
    assert_eq!(metrics(&whole), metrics(&stopped));
    for run in [&whole, &stopped] {
        let html = report(run);
        for expect in ["120 steps in", ", finished 20", "40 training rows", "max_steps</td><td>120", "Loss"] {
            assert!(html.contains(expect), "{expect:?} is missing");
        }
    }
}

#[test]
#[cfg(unix)]
fn a_second_ctrl_c_stops_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("rows.jsonl"), dir.path().join("run"));
    // One step takes far longer than the test.
    write_rows(&data, 2000, 60);
    let more = ["--set", "per_device_train_batch_size=2000", "--set", "sample_prompts=0"];
    let child = start(&sft(&data, &out, &more));
    wait_for("the run", || out.join("resolved.toml").exists());
    std::thread::sleep(Duration::from_millis(300));
    interrupt(&child);
    std::thread::sleep(Duration::from_millis(100));
    interrupt(&child);
    let Run { code, stderr, .. } = run_of(child.wait_with_output().unwrap());
    assert_eq!(code, 130, "{stderr}");
    assert!(stderr.contains("press Ctrl-C again") && !stderr.contains("was saved"), "{stderr}");
    assert_eq!(lines(&out.join("metrics.jsonl")), 0, "it did not wait for the step");
}

#[test]
fn a_run_with_an_adapter_leaves_the_adapter_and_the_merged_model() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("pairs.jsonl"), dir.path().join("run"));
    let row = |i: usize| json!({"prompt": format!("Tom saw {i} birds"), "chosen": " and was happy.", "rejected": " no no."});
    fs::write(&data, (0..16).map(|i| row(i).to_string() + "\n").collect::<String>()).unwrap();
    let (data, run) = (text(&data), text(&out));
    let args = ["train", "reward", "--model", &stories(), "--data", &data, "--out", &run];
    let sets = [
        "use_peft=true",
        "lora_r=2",
        "lora_target_modules=q_proj,v_proj",
        "learning_rate=1e-2",
        "max_steps=4",
    ];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    polity([&args[..], &sets].concat()).ok();

    let rows = dir.path().join("rows.jsonl");
    fs::write(&rows, "{\"prompt\": \"Tom saw a cat\", \"completion\": \" and ran.\"}\n").unwrap();
    let score = |model: &str| polity(["score", "--model", model, "--input", &text(&rows)]).ok().stdout;
    let merged = score(&text(&out.join("model")));
    assert_eq!(
        score(&text(&out.join("adapter"))),
        merged,
        "the adapter on its base model is the merged model"
    );

    // Only what was asked for has changed, and the head.
    let tensors = |dir: &Path| fs::read(dir.join("model.safetensors")).unwrap();
    let (base, trained) = (tensors(Path::new(&stories())), tensors(&out.join("model")));
    let header = |bytes: &[u8]| -> (Value, usize) {
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), 8 + length)
    };
    let ((base_header, base_at), (trained_header, trained_at)) = (header(&base), header(&trained));
    let mut changed = Vec::new();
    for (name, info) in base_header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
        let range = |info: &Value, at: usize| {
            let offsets = info["data_offsets"].as_array().unwrap();
            at + offsets[0].as_u64().unwrap() as usize..at + offsets[1].as_u64().unwrap() as usize
        };
        let (old, new) = (range(info, base_at), range(&trained_header[name], trained_at));
        if base[old] != trained[new] {
            changed.push(name.clone());
        }
    }
    assert_eq!(changed.len(), 10, "{changed:?}");
    assert!(changed.iter().all(|name| name.contains("q_proj") || name.contains("v_proj")), "{changed:?}");
}
