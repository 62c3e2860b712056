//! Whatever is wrong with a training run: one clear error before anything is written, or the last good files intact.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::support::{
    ModelCopy, Run, command, interrupt, lines, polity, run_of, shared, stories, text, wait_for,
};

/// A directory with rows of every kind.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.write("sft.jsonl", "{\"prompt\": \"Tom\", \"completion\": \" ran.\"}\n");
        place.write("pairs.jsonl", "{\"prompt\": \"Tom\", \"chosen\": \" ran.\", \"rejected\": \" no.\"}\n");
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.path(name), content).unwrap();
        text(&self.path(name))
    }

    fn args(&self, stage: &str, model: &str, data: &str, more: &[&str]) -> Vec<String> {
        let (data, out) = (text(&self.path(data)), text(&self.path("run")));
        let words = ["train", stage, "--model", model, "--data", &data, "--out", &out];
        words.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }

    /// One error with all of `expect` in it, exit `code`, and no run begun.
    #[track_caller]
    fn refuses(&self, code: i32, stage: &str, model: &str, data: &str, more: &[&str], expect: &[&str]) {
        let run = polity(self.args(stage, model, data, more));
        check(&run, code, expect);
        assert!(!self.path("run").exists(), "nothing was begun: {}", run.stderr);
    }
}

#[track_caller]
fn check(run: &Run, code: i32, expect: &[&str]) {
    assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{}", run.stderr);
    let errors = run.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{}", run.stderr);
    assert!(!run.stderr.contains("bug") && !run.stderr.contains("panicked"), "{}", run.stderr);
    for part in expect {
        assert!(run.stderr.contains(part), "no {part:?} in: {}", run.stderr);
    }
}

#[test]
fn settings() {
    let (place, model) = (Place::new(), stories());
    let check = |stage: &str, set: &str, expect: &[&str]| {
        let data = if stage == "sft" { "sft.jsonl" } else { "pairs.jsonl" };
        place.refuses(2, stage, &model, data, &["--set", set], expect);
    };
    check("sft", "lerning_rate=1", &["unknown setting \"lerning_rate\"", "did you mean learning_rate?"]);
    check("sft", "beta=0.1", &["unknown setting \"beta\"", "sft"]);
    check("dpo", "beta=-0.1", &["beta = -0.1", "expected > 0"]);
    check("dpo", "loss_type=sigmiod", &["sigmiod", "sigmoid"]);
    check("sft", "per_device_train_batch_size=0", &["per_device_train_batch_size = 0", "at least 1"]);
    check("sft", "learning_rate=-1", &["learning_rate = -1", ">= 0"]);
    check("sft", "learning_rate=nan", &["learning_rate"]);
    check("sft", "lr_scheduler_type=cosin", &["cosin", "did you mean \"cosine\"?"]);
    check("sft", "max_length=1", &["max_length = 1", "at least 2"]);
    check("sft", "precision=fp16", &["precision = \"fp16\"", "\"auto\" | \"f32\" | \"bf16\""]);
    check("sft", "report_to=wandb", &["report_to", "wandb", "tensorboard"]);
    check("reward", "eval_fraction=1.0", &["eval_fraction = 1", "[0, 1)"]);
    check("reward", "eval_fraction=0.5", &["eval_fraction leaves"]);
    check("sft", "learning_rate", &["learning_rate", "KEY=VALUE"]);
    check("dpo", "lora_r=8", &["lora_r = 8", "no effect", "only use_peft = true"]);
    check("sft", "lora_dropout=0.1", &["unknown setting \"lora_dropout\"", "no model here has dropout"]);
    let lora = ["--set", "use_peft=true", "--set", "lora_target_modules=query"];
    place.refuses(2, "sft", &model, "sft.jsonl", &lora, &["found \"query\"", "q_proj", "all-linear"]);
    let adapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/golden/lora/llama");
    let lora = ["--set", "use_peft=true"];
    place.refuses(2, "sft", &text(&adapter), "sft.jsonl", &lora, &["found an adapter", "RUN/model"]);
}

#[test]
fn settings_files() {
    let (place, model) = (Place::new(), stories());
    let check = |content: &str, expect: &[&str]| {
        let file = place.write("settings.toml", content);
        place.refuses(2, "sft", &model, "sft.jsonl", &["--config", &file], expect);
    };
    check("seed = 1\nlearning_rate = = 2\n", &["settings.toml, line 2, column", "not valid TOML"]);
    check(
        "seed = 1\nlearning_rate = \"fast\"\n",
        &["settings.toml, line 2", "\"fast\"", "expected a number"],
    );
    check("max_step = 3\n", &["settings.toml, line 1", "unknown setting \"max_step\"", "max_steps"]);
    place.refuses(2, "sft", &model, "sft.jsonl", &["--config", "no.toml"], &["no.toml", "No such file"]);
}

#[test]
fn rows() {
    let (place, model) = (Place::new(), stories());
    let check = |stage: &str, rows: &str, more: &[&str], expect: &[&str]| {
        place.write("rows.jsonl", rows);
        place.refuses(2, stage, &model, "rows.jsonl", more, expect);
    };
    let pair = r#"{"prompt": "Tom", "chosen": " ran.", "rejected": " no."}"#;
    check(
        "reward",
        &format!("{pair}\n{{\"prompt\": \"x\", \"chosen\"\n"),
        &[],
        &["line 2", "malformed JSON"],
    );
    check(
        "reward",
        &format!("{pair}\n{{\"prompt\": \"x\", \"chosen\": \"y\"}}\n"),
        &[],
        &["line 2", "`rejected` is missing"],
    );
    check(
        "dpo",
        r#"{"prompt": "x", "chosen": 3, "rejected": "y"}"#,
        &[],
        &["line 1", "`chosen` is the number 3"],
    );
    check(
        "dpo",
        r#"{"prompt": "x", "chosen": "a", "rejected": "b", "label": 2}"#,
        &[],
        &["line 1", "`label`", "from 0 to 1"],
    );
    check(
        "dpo",
        r#"{"prompt": "x", "chosen": "a", "rejected": "b", "weight": -1}"#,
        &[],
        &["line 1", "`weight`", "not negative"],
    );
    check("sft", pair, &[], &["line 1", "this is a preference row", "train_on_chosen"]);
    check(
        "reward",
        r#"{"prompt": "x", "completion": "y"}"#,
        &[],
        &["line 1", "`chosen` and `rejected` are missing"],
    );
    check("sft", "", &[], &["rows.jsonl", "no rows found"]);
    check(
        "reward",
        r#"{"prompt": "x", "chosen": "a", "rejected": "a"}"#,
        &[],
        &["training pairs", "the same"],
    );
    let long = json!({"prompt": "Tom", "completion": "ran ".repeat(900)}).to_string();
    check(
        "sft",
        &long,
        &["--set", "truncation=refuse"],
        &["row 1", "longer than 512", "max_length", "truncation"],
    );
    check("sft", &long, &["--set", "truncation=drop"], &["none of 1 rows"]);
    let talk = r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}"#;
    check("sft", talk, &[], &["training rows, row 1", "no chat template", "chat_template.jinja"]);
    check("sft", r#"{"prompt_ids": [1], "completion_ids": [512]}"#, &[], &["row 1", "512"]);
    place.refuses(2, "sft", &model, "nowhere.jsonl", &[], &["nowhere.jsonl", "No such file"]);
    place.write("cut.parquet", b"PAR1....PAR1");
    place.refuses(2, "sft", &model, "cut.parquet", &[], &["cut.parquet"]);
}

#[test]
fn templates() {
    let place = Place::new();
    let talk = r#"{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}"#;
    place.write("talk.jsonl", talk);
    let check = |template: &str, more: &[&str], expect: &[&str]| {
        let model = ModelCopy::stories().write("chat_template.jinja", template);
        place.refuses(2, "sft", &model.path(), "talk.jsonl", more, expect);
    };
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    check(plain, &["--set", "assistant_only_loss=true"], &["generation"]);
    check("{% for m in messages %}{{ m.content }}", &[], &["chat_template.jinja"]);
    place.write("talk.jsonl", format!("{talk}\n{}\n", talk.replace("\"x\"", "\"bad\"")));
    let picky = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('no such words') }}{% endif %}\
                 {{ m.content }}{% endfor %}";
    check(picky, &[], &["training rows, row 2", "chat_template.jinja:1", "no such words"]);
}

#[test]
fn models() {
    let (place, reward) = (Place::new(), text(&shared("golden/llama/reward")));
    place.refuses(
        2,
        "sft",
        &reward,
        "sft.jsonl",
        &[],
        &["found a reward model", "expected a language model"],
    );
    place.refuses(
        2,
        "ppo",
        &stories(),
        "sft.jsonl",
        &["--reward-model", &stories()],
        &["found a language model"],
    );
    place.refuses(2, "ppo", &stories(), "sft.jsonl", &["--reward-model", &reward], &["vocabulary"]);
    // As many tokens, and other ones.
    let trained = text(&place.path("reward"));
    let data = text(&place.path("pairs.jsonl"));
    let sets = ["--set", "max_steps=1", "--set", "sample_prompts=0"];
    let args = ["train", "reward", "--model", &stories(), "--data", &data, "--out", &trained];
    polity([&args[..], &sets].concat()).ok();
    let model = place.path("reward/model");
    let other = ModelCopy::new(&model).edit("tokenizer.json", |tokenizer| {
        let vocab = &mut tokenizer["model"]["vocab"];
        (vocab["\u{2581}S"], vocab["\u{2581}L"]) = (vocab["\u{2581}L"].clone(), vocab["\u{2581}S"].clone());
    });
    let ppo = |reward_model: &str, more: &[&str], expect: &[&str]| {
        let more = [&["--reward-model", reward_model], more].concat();
        place.refuses(2, "ppo", &stories(), "sft.jsonl", &more, expect);
    };
    ppo(
        &other.path(),
        &[],
        &["found token 301", "\u{2581}L", "\u{2581}S", "expected one tokenizer", "same base model"],
    );
    let long = ["--set", "response_length=600"];
    ppo(&text(&model), &long, &["none of 1 rows", "512 less response_length = 600", "lower response_length"]);
    place.refuses(2, "sft", "no/model", "sft.jsonl", &[], &["no/model", "found nothing"]);
    let nan = ModelCopy::stories().edit_bytes("model.safetensors", |bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    place.refuses(2, "sft", &nan.path(), "sft.jsonl", &[], &["model.safetensors", "NaN"]);
}

/// Rows that can be trained on are, and what is odd about them is said with their numbers.
#[test]
fn what_is_odd_is_said() {
    let quick = ["--set", "max_steps=1", "--set", "sample_prompts=0"];
    let check = |stage: &str, model: &str, rows: &str, expect: &[&str]| {
        let place = Place::new();
        place.write("rows.jsonl", rows);
        let run = polity(place.args(stage, model, "rows.jsonl", &quick)).ok();
        for part in expect {
            let said = run.stderr.lines().any(|line| line.starts_with("warning: ") && line.contains(part));
            assert!(said, "no {part:?} in: {}", run.stderr);
        }
    };
    let model = stories();
    let row = r#"{"prompt": "Tom", "completion": " ran."}"#;
    let pair = r#"{"prompt": "Tom", "chosen": " ran.", "rejected": " no."}"#;
    let bos = r#"{"prompt": "<s>Tom", "completion": " ran."}"#;
    check("sft", &model, &format!("{row}\n{bos}"), &["two BOS tokens", "row 2"]);
    let bare = r#"{"prompt_ids": [5, 6], "completion_ids": [7, 8]}"#;
    check("sft", &model, &format!("{row}\n{bare}"), &["without the BOS", "stopping is not learnt", "row 2"]);
    let empty = r#"{"prompt": "Tom", "completion": ""}"#;
    check("sft", &model, &format!("{row}\n{empty}"), &["empty response (completion): row 2"]);
    let long = json!({"prompt": "Tom", "completion": "ran ".repeat(900)}).to_string();
    check("sft", &model, &format!("{row}\n{long}"), &["cut to max_length: row 2"]);
    let same = r#"{"prompt": "Tom", "chosen": " ran.", "rejected": " ran."}"#;
    check("dpo", &model, &format!("{pair}\n{same}"), &["nothing in them would be learnt: row 2"]);
    let misspelt = r#"{"prompt": "Tom", "chosen": " ran.", "rejected": " no.", "margn": 2}"#;
    check("reward", &model, &format!("{pair}\n{misspelt}"), &["looks like `margin`: row 2"]);
    let broken = json!({"chosen": "\n\nHuman: Hi.", "rejected": "\n\nHuman: Ho."}).to_string();
    check(
        "reward",
        &model,
        &format!("{pair}\n{broken}"),
        &["transcript without a turn of each speaker", "row 2"],
    );
    let pad =
        ModelCopy::stories().edit("tokenizer_config.json", |config| config["pad_token"] = json!("</s>"));
    check("sft", &pad.path(), row, &["the pad token is the EOS token"]);
}

#[test]
fn places() {
    let place = Place::new();
    let data = text(&place.path("sft.jsonl"));
    let at = |out: &str| polity(["train", "sft", "--model", &stories(), "--data", &data, "--out", out]);
    check(&at("/proc/run"), 1, &["cannot create the directory /proc/run"]);
    check(&at(&data), 1, &["sft.jsonl"]);
    let none = polity(place.args("sft", &stories(), "sft.jsonl", &["--resume"]));
    check(&none, 2, &["holds no run to resume", "without --resume"]);
}

#[test]
fn runs_that_are_there_already() {
    let (place, model) = (Place::new(), stories());
    let quick = ["--set", "max_steps=2", "--set", "sample_prompts=0", "--set", "save_steps=1"];
    let again = |more: &[&str]| polity(place.args("sft", &model, "sft.jsonl", &[&quick[..], more].concat()));
    again(&[]).ok();
    let weights = || fs::read(place.path("run/model/model.safetensors")).unwrap();
    let before = weights();
    check(&again(&[]), 2, &["already holds a run", "--resume"]);
    check(&again(&["--resume", "--set", "learning_rate=1"]), 2, &["learning_rate"]);
    assert!(before == weights(), "the run is as it was");

    // A checkpoint that is damaged is set aside, and the one before it leads to the same bits.
    let state = place.path("run/checkpoints/step-2/state.json");
    fs::write(&state, "{\"step\": ").unwrap();
    let run = again(&["--resume"]).ok();
    for part in ["step-2 is damaged and was set aside", "state.json", "resuming after step 1"] {
        assert!(run.stderr.contains(part), "no {part:?} in {}", run.stderr);
    }
    assert!(before == weights(), "the same bits");

    // Without any that is whole it starts over, says so, and ends in the same bits.
    for step in ["step-1", "step-2"] {
        fs::remove_file(place.path("run/checkpoints").join(step).join("state.json")).unwrap();
    }
    assert!(again(&["--resume"]).ok().stderr.contains("no complete checkpoint: starting over"));
    assert!(before == weights(), "the same bits");
}

/// Mounts a file system of a few hundred kilobytes; `None`, said on stderr, where that is not permitted.
fn small_disk(at: &Path, kib: usize) -> Option<()> {
    fs::create_dir_all(at).unwrap();
    let size = format!("size={kib}k");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).status();
    let mounted = mount.is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("not tested: a full disk, since this user may not mount one");
    }
    mounted.then_some(())
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_fills_up_at_a_checkpoint() {
    let place = Place::new();
    let disk = place.path("disk");
    // A checkpoint is three times the 1 MB of the weights: one fits, a second does not.
    let Some(()) = small_disk(&disk, 5000) else { return };
    let (out, data) = (text(&disk.join("run")), text(&place.path("sft.jsonl")));
    let sets = ["--set", "max_steps=4", "--set", "save_steps=1", "--set", "sample_prompts=0"];
    let run = polity(
        [&["train", "sft", "--model", &stories(), "--data", &data, "--out", &out][..], &sets].concat(),
    );
    let left: Vec<_> =
        fs::read_dir(disk.join("run/checkpoints")).unwrap().map(|e| e.unwrap().path()).collect();
    let whole = left.iter().filter(|path| path.join("state.json").exists()).count();
    let model = polity(["logprobs", "-m", &text(&disk.join("run/checkpoints/step-1/model")), "-i", &data]);
    let unmounted = Command::new("umount").arg(&disk).status().unwrap().success();
    check(&run, 1, &["No space left", "step-2", "free some space"]);
    assert_eq!((whole, left.len()), (1, 1), "the first checkpoint alone: {left:?}");
    model.ok();
    assert!(unmounted);
}

#[test]
#[cfg(unix)]
fn ctrl_c_during_saves_loses_nothing() {
    let place = Place::new();
    // Nearly all of the time goes into checkpoints.
    let sets = [
        "--set",
        "max_steps=60",
        "--set",
        "save_steps=1",
        "--set",
        "save_total_limit=2",
        "--set",
        "sample_prompts=0",
    ];
    let args = |more: &[&str]| place.args("sft", &stories(), "sft.jsonl", &[&sets[..], more].concat());
    let metrics = place.path("run/metrics.jsonl");
    let mut resume: &[&str] = &[];
    // How far into a step the signal arrives.
    for delay_us in [0, 900, 2100, 3300, 4700, 6100] {
        let child = command(args(resume))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let done = lines(&metrics);
        wait_for("two more steps", || lines(&metrics) >= done + 2);
        std::thread::sleep(Duration::from_micros(delay_us));
        interrupt(&child);
        let run = run_of(child.wait_with_output().unwrap());
        assert_eq!(run.code, 130, "{}", run.stderr);
        assert!(run.stderr.contains("a checkpoint was saved"), "{}", run.stderr);
        // What is there is whole: the model of each checkpoint can be used.
        for checkpoint in fs::read_dir(place.path("run/checkpoints")).unwrap() {
            let model = text(&checkpoint.unwrap().path().join("model"));
            polity(["logprobs", "-m", &model, "-i", &text(&place.path("sft.jsonl"))]).ok();
        }
        resume = &["--resume"];
    }
    polity(args(resume)).ok();
    let whole = Place::new();
    polity(whole.args("sft", &stories(), "sft.jsonl", &sets)).ok();
    let weights = |place: &Place| fs::read(place.path("run/model/model.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&place), "the same bits as without a stop");
}
