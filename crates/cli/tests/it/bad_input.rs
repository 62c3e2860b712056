//! Whatever is wrong with the input: one clear error, exit 2 (or 1 where the machine is at fault), nothing on stdout, and
//! files as they were.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{ModelCopy, Run, polity, polity_with, shared, stories, text};

/// One `error:` with all of `expect` in it, and nothing else done.
#[track_caller]
fn check_run(run: &Run, code: i32, expect: &[&str]) {
    assert_eq!((run.code, run.stdout.as_str()), (code, ""), "{}", run.stderr);
    assert_eq!(run.stderr.matches("error: ").count(), 1, "{}", run.stderr);
    assert!(!run.stderr.contains("bug"), "{}", run.stderr);
    for part in expect {
        assert!(run.stderr.contains(part), "no {part:?} in: {}", run.stderr);
    }
}

#[track_caller]
fn check_rows(verb: &str, model: &str, rows: &str, expect: &[&str]) {
    let run = polity_with([verb, "-m", model, "-i", "-"], rows.as_bytes());
    check_run(&run, 2, expect);
}

#[track_caller]
fn check_model(model: &ModelCopy, expect: &[&str]) {
    let run = polity_with(["generate", "-m", &model.path(), "-i", "-"], br#"{"ids": [1]}"#);
    check_run(&run, 2, expect);
}

#[test]
fn inputs_that_cannot_be_read() {
    let model = stories();
    let check = |input: &str, expect: &[&str]| {
        check_run(&polity(["generate", "-m", &model, "-i", input]), 2, expect);
    };
    check("nowhere.jsonl", &["cannot open nowhere.jsonl", "No such file"]);
    let dir = tempfile::tempdir().unwrap();
    check(&text(dir.path()), &["is a directory"]);
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path)
    };
    check(&file("empty.jsonl", b""), &["empty.jsonl", "no rows found"]);
    check(&file("blank.jsonl", b"\n\n"), &["no rows found"]);
    check(&file("table.csv", b"prompt\nhello\n"), &["table.csv", "CSV"]);
    check(&file("latin1.jsonl", b"{\"prompt\": \"caf\xe9\"}\n"), &["latin1.jsonl, line 1", "not UTF-8"]);
    check(&file("cut.jsonl.gz", b"\x1f\x8b\x08\x00\x00"), &["cut.jsonl.gz", "gzip"]);
    // Real files that were cut or changed; `rows` has the whole corpus.
    let corpus =
        |name: &str| text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../rows/tests/corpus").join(name));
    check(&corpus("truncated.parquet"), &["truncated.parquet", "the file was cut short"]);
    check(&corpus("damaged_page.parquet"), &["damaged_page.parquet", "unreadable Parquet"]);
    check(&corpus("no_rows.parquet"), &["no_rows.parquet", "no rows found"]);
    check(&corpus("utf16.jsonl"), &["utf16.jsonl", "UTF-16"]);
}

#[test]
fn rows_that_mean_nothing() {
    let model = stories();
    let check = |rows: &str, expect: &[&str]| check_rows("generate", &model, rows, expect);
    let good = "{\"ids\": [1]}\n";
    check(&format!("{good}{good}{{\"ids\": [1}}\n"), &["stdin, line 3", "malformed JSON"]);
    check("{\"prmpt\": \"x\"}", &["line 1", "`prmpt`", "did you mean `prompt`"]);
    check("{\"prompt\": 3}", &["line 1", "`prompt` is the number 3"]);
    check("{\"ids\": [1, -2]}", &["line 1", "`ids[1]`", "token id"]);
    check("{\"ids\": [1, 512]}", &["line 1", "token 1 is id 512", "below 512"]);
    check(&format!("{good}{{\"prompt\": \"\"}}"), &["line 2", "the prompt is empty", "{\"ids\": [1]}"]);
    check("{\"ids\": []}", &["line 1", "the prompt is empty"]);
    let long = json!({"ids": vec![5; 512]}).to_string();
    check(&format!("{good}{long}"), &["line 2", "a prompt of 512 tokens", "at most 511", "512 positions"]);
    let messages = r#"{"messages": [{"role": "user", "content": "hi"}]}"#;
    check(messages, &["line 1", "need a chat template"]);
    check(r#"{"messages": [{"role": "human", "content": "hi"}]}"#, &["did you mean", "user"]);
    let tool = r#"{"messages": [{"role": "tool", "content": "hi"}]}"#;
    check_rows(
        "generate",
        &ModelCopy::stories().with_template().path(),
        &format!("{good}{tool}"),
        &["line 2", "this model has no tools"],
    );
    let bare = text(&shared("golden/llama/model"));
    check_rows("generate", &bare, "{\"prompt\": \"hi\"}", &["no tokenizer.json", "rows of ids"]);
}

#[test]
fn completions_that_mean_nothing() {
    let model = stories();
    let check = |rows: &str, expect: &[&str]| check_rows("logprobs", &model, rows, expect);
    check("{\"prompt\": \"x\"}", &["line 1", "`completion` is missing"]);
    check("{\"prompt_ids\": [], \"completion_ids\": [5]}", &["line 1", "nothing precedes"]);
    check("{\"prompt_ids\": [1], \"completion_ids\": []}", &["line 1", "the completion is empty"]);
    check("{\"prompt_ids\": [1], \"completion_ids\": [700]}", &["token 1 is id 700"]);
    let long = json!({"prompt_ids": [1], "completion_ids": vec![5; 512]}).to_string();
    check(&long, &["a row of 513 tokens", "at most 512"]);
    check(r#"{"messages": [{"role": "user", "content": "hi"}]}"#, &["ends with"]);
    check(r#"{"messages": [{"role": "assistant", "content": "hi"}]}"#, &["nothing before the assistant's"]);
    let mixed = r#"{"prompt": "hi", "completion": [{"role": "assistant", "content": "hi"}]}"#;
    check(mixed, &["`completion` is a list of messages"]);
}

#[test]
fn models_of_the_wrong_kind() {
    let (language, reward) = (stories(), text(&shared("golden/llama/reward")));
    let completion = "{\"prompt_ids\": [1], \"completion_ids\": [5]}";
    check_rows("score", &language, completion, &["found a language model", "polity train reward"]);
    check_rows("logprobs", &reward, completion, &["found a reward model", "polity score"]);
    check_rows("generate", &reward, "{\"ids\": [1]}", &["found a reward model"]);
    check_run(&polity(["chat", &reward]), 2, &["found a reward model"]);
    check_run(&polity(["bench", "train", "--model", &reward]), 2, &["found a reward model"]);
}

#[test]
fn model_directories_that_are_none() {
    check_run(
        &polity_with(["generate", "-m", "nowhere", "-i", "-"], b"{\"ids\": [1]}"),
        2,
        &["nowhere", "nothing"],
    );
    let file = text(&shared("models/PROVENANCE.md"));
    check_run(&polity_with(["generate", "-m", &file, "-i", "-"], b"{\"ids\": [1]}"), 2, &["a file"]);
    check_model(&ModelCopy::stories().remove("config.json"), &["config.json", "no such file"]);
    check_model(&ModelCopy::stories().remove("model.safetensors"), &["model.safetensors"]);
    check_model(
        &ModelCopy::stories().write("config.json", "{\"model_type\": "),
        &["config.json:1:", "not valid JSON"],
    );
}

#[test]
fn models_that_are_not_understood() {
    let edit =
        |key: &str, value: Value| ModelCopy::stories().edit("config.json", |config| config[key] = value);
    check_model(&edit("model_type", json!("mamba")), &["config.json", "`model_type`", "mamba", "llama"]);
    let rope = json!({"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0});
    check_model(&edit("rope_parameters", rope), &["config.json", "rope_type", "yarn"]);
    check_model(&edit("hidden_act", json!("relu6")), &["config.json", "relu6"]);
    check_model(&edit("hidden_size", json!(128)), &["expected"]);
    check_model(&edit("num_hidden_layers", json!(6)), &["layers.5"]);
    check_model(&edit("num_hidden_layers", json!(4)), &["layers.4"]);
    check_model(&edit("num_attention_heads", json!("eight")), &["`num_attention_heads`"]);
}

#[test]
fn damaged_weights() {
    let weights = |change: fn(&mut Vec<u8>)| ModelCopy::stories().edit_bytes("model.safetensors", change);
    check_model(&weights(|bytes| bytes.truncate(bytes.len() / 2)), &["model.safetensors"]);
    check_model(&weights(|bytes| bytes.truncate(4)), &["model.safetensors"]);
    check_model(&weights(|bytes| bytes[..8].fill(0xff)), &["model.safetensors"]);
    check_model(&weights(|bytes| bytes[9] = b'x'), &["model.safetensors"]);
    let nan = weights(|bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    check_model(&nan, &["model.safetensors", "NaN"]);
    let infinite = weights(|bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    });
    check_model(&infinite, &["model.safetensors", "model.norm.weight", "found inf at [63]"]);
    check_model(&weights(|bytes| bytes.clear()), &["model.safetensors", "found 0 bytes"]);
    check_model(&weights(|bytes| bytes.push(0)), &["model.safetensors", "1 bytes that no tensor claims"]);
    let pointer =
        ModelCopy::stories().write("model.safetensors", "version https://git-lfs.github.com/spec/v1\n");
    check_model(&pointer, &["model.safetensors", "Git LFS pointer", "git lfs pull"]);
    let index = json!({"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}).to_string();
    let missing_shard =
        ModelCopy::stories().remove("model.safetensors").write("model.safetensors.index.json", &index);
    check_model(&missing_shard, &["model-00002-of-00002.safetensors"]);
}

#[test]
fn weights_whose_header_lies() {
    let q = "model.layers.0.self_attn.q_proj.weight";
    let o = "model.layers.0.self_attn.o_proj.weight";
    let header = |change: &dyn Fn(&mut Value)| ModelCopy::stories().edit_header(change);
    let past = header(&|header| header[q]["data_offsets"] = json!([288256, 99304640]));
    check_model(&past, &["model.safetensors", q, "found data_offsets [288256, 99304640]"]);
    let overlap = header(&|header| header[q]["data_offsets"] = header[o]["data_offsets"].clone());
    check_model(&overlap, &["model.safetensors", "data that another tensor has too"]);
    let backwards = header(&|header| header[q]["data_offsets"] = json!([304640, 288256]));
    check_model(&backwards, &[q, "found data_offsets [304640, 288256]"]);
    let shape = header(&|header| header[q]["shape"] = json!([128, 32]));
    check_model(&shape, &[q, "found shape [128, 32], expected shape [64, 64]"]);
    let smaller = header(&|header| header[q]["shape"] = json!([64, 32]));
    check_model(&smaller, &[q, "found F32 of shape [64, 32] in 16384 bytes"]);
    let dtype = header(&|header| header[q]["dtype"] = json!("I32"));
    check_model(&dtype, &[q, "found I32, expected F32, BF16 or F16"]);
    let missing = header(&|header| {
        let tensor = header.as_object_mut().unwrap().remove(q).unwrap();
        header["model.layers.0.self_attn.query.weight"] = tensor;
    });
    check_model(&missing, &["model.safetensors", q, "no such tensor"]);
    let surplus = header(&|header| {
        let end = 1_044_992 - 8 - 4856;
        header["model.extra"] = json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]});
    });
    check_model(&surplus, &["model.safetensors", "`model.extra`", "no such tensor in this model"]);
}

#[test]
fn tokenizers_of_another_model() {
    let beyond = ModelCopy::stories().edit("tokenizer.json", |tokenizer| {
        let mut token = tokenizer["added_tokens"][0].clone();
        token["id"] = json!(512);
        token["content"] = json!("<|more|>");
        tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    });
    check_model(&beyond, &["tokenizer.json", "id 512", "<|more|>", "below 512"]);
    check_model(&ModelCopy::stories().write("tokenizer.json", "{}"), &["tokenizer.json"]);
    check_model(
        &ModelCopy::stories().edit("generation_config.json", |config| config["top_p"] = json!(7)),
        &["generation_config.json", "`top_p`", "at most 1"],
    );
}

#[test]
fn settings_that_do_not_exist_or_fit() {
    let model = stories();
    let check = |verb: &str, set: &str, expect: &[&str]| {
        let run = polity_with([verb, "-m", &model, "-i", "-", "--set", set], b"{\"ids\": [1]}");
        check_run(&run, 2, expect);
    };
    check("generate", "temprature=1", &["unknown setting \"temprature\"", "did you mean temperature?"]);
    check("generate", "max_tokens=1", &["write max_new_tokens"]);
    check("generate", "temperature=-1", &["temperature = -1", "at least 0"]);
    check("generate", "top_p=0", &["top_p = 0", "above 0, at most 1"]);
    check("generate", "n=two", &["n = two", "an integer, at least 1"]);
    check("generate", "min_new_tokens=300", &["min_new_tokens = 300", "max_new_tokens = 256"]);
    check("generate", "stop_token_ids=600", &["stop_token_ids has 600", "below 512"]);
    check("generate", "precision=fp16", &["precision = fp16", "auto, f32 or bf16"]);
    check("logprobs", "temperature=0", &["temperature = 0", "above 0"]);
    check("logprobs", "top_k=3", &["unknown setting \"top_k\"", "only generate and chat"]);
    let bare = text(&shared("golden/llama/model"));
    let run = polity_with(["generate", "-m", &bare, "-i", "-", "--set", "stop=x"], b"{\"ids\": [1]}");
    check_run(&run, 2, &["no tokenizer.json"]);
}

#[test]
#[cfg(target_os = "linux")]
fn places_that_cannot_be_written() {
    let model = stories();
    let check = |output: &str, expect: &[&str]| {
        let args = ["generate", "-m", &model, "-i", "-", "-o", output, "--quiet"];
        check_run(&polity_with(args, b"{\"ids\": [1]}"), 1, expect);
    };
    // Root may write to a directory without permission, but nobody creates files in /proc.
    check("/proc/polity.jsonl", &["cannot write /proc/polity.jsonl"]);
    check("/dev/full", &["cannot write /dev/full", "No space left", "free some space"]);
    let dir = tempfile::tempdir().unwrap();
    check(&text(dir.path()), &["directory", "name of a file"]);
    check(&text(&dir.path().join("no/such/out.jsonl")), &["cannot write", "create the directory first"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// A row that turns out wrong does not touch what was there.
#[test]
fn a_failure_leaves_the_old_output() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.jsonl");
    fs::write(&output, "old").unwrap();
    let rows = format!("{}{{\"ids\": [999]}}\n", "{\"ids\": [1]}\n".repeat(50));
    let run = polity_with(["generate", "-m", &stories(), "-i", "-", "-o", &text(&output)], rows.as_bytes());
    check_run(&run, 2, &["line 51", "id 999"]);
    assert_eq!(fs::read_to_string(&output).unwrap(), "old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
