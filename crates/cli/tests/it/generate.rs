//! `polity generate`.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{ModelCopy, command, feed, interrupt, polity, polity_with, run_of, stories, wait_for};

fn generate(rows: &str, more: &[&str]) -> Vec<Value> {
    let model = stories();
    let args = ["generate", "--model", &model, "--input", "-"].into_iter().chain(more.iter().copied());
    polity_with(args, rows.as_bytes()).ok().rows()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The text of the model's PROVENANCE.md, as Transformers and the original C program give it.
#[test]
fn greedy_from_bos_is_the_reference_text() {
    let rows = generate(r#"{"ids": [1]}"#, &["--set", "temperature=0"]);
    let text = rows[0]["text"].as_str().unwrap();
    let expect = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
                  One day, she saw a big, red ball.";
    assert_eq!(&text[..expect.len()], expect);
    assert_eq!(rows[0]["finish_reason"], "length");
    assert_eq!(rows[0]["ids"].as_array().unwrap().len(), 256);
}

#[test]
fn rows_come_out_in_order_with_their_samples() {
    let rows = generate(
        "{\"prompt\": \"Once upon\"}\n\n{\"ids\": [1, 403]}\n{\"prompt\": \"Lily\", \"answer\": 3}",
        &["--set", "n=2", "--set", "max_new_tokens=7", "--set", "temperature=2"],
    );
    let order: Vec<_> =
        rows.iter().map(|row| (row["index"].as_u64().unwrap(), row["sample"].as_u64().unwrap())).collect();
    assert_eq!(order, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]);
    for row in &rows {
        let keys: Vec<_> = row.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["index", "sample", "text", "ids", "logprobs", "finish_reason"]);
        assert_eq!(row["ids"].as_array().unwrap().len(), row["logprobs"].as_array().unwrap().len());
    }
    assert_ne!(rows[0]["ids"], rows[1]["ids"], "two samples of one row differ");
}

/// A response does not know its batch, and its log-probs are a forward pass's: to the bit.
#[test]
fn responses_are_a_function_of_their_row_and_their_logprobs_of_their_ids() {
    let many: String = (0..40)
        .map(|i| format!("{}\n", json!({"prompt": format!("Once upon a time {}", "and ".repeat(i % 7))})))
        .collect();
    let settings = ["--set", "temperature=0.8", "--set", "max_new_tokens=20", "--set", "seed=7"];
    let together = generate(&many, &settings);
    let one_thread = generate(&many, &[&settings[..], &["--threads", "1"]].concat());
    assert_eq!(together, one_thread);
    // The first row's index, and so its randomness, is the same in a file of its own.
    let alone = generate(many.lines().next().unwrap(), &settings);
    assert_eq!(together[0], alone[0]);
    let other_seed =
        generate(many.lines().next().unwrap(), &["--set", "max_new_tokens=20", "--set", "seed=8"]);
    assert_ne!(together[0]["ids"], other_seed[0]["ids"]);

    let given = "{\"ids\": [1, 403, 407]}\n{\"ids\": [1, 50]}\n";
    let responses = generate(given, &settings);
    let completions: String = given
        .lines()
        .zip(&responses)
        .map(|(row, response)| {
            let prompt: Value = serde_json::from_str(row).unwrap();
            format!("{}\n", json!({"prompt_ids": prompt["ids"], "completion_ids": response["ids"]}))
        })
        .collect();
    let args = ["logprobs", "-m", &stories(), "-i", "-", "--set", "temperature=0.8"];
    let measured = polity_with(args, completions.as_bytes()).ok().rows();
    for (response, measured) in responses.iter().zip(&measured) {
        assert_eq!(response["logprobs"], measured["logprobs"]);
    }
}

#[test]
fn responses_end_where_they_are_told_to() {
    let row = r#"{"ids": [1]}"#;
    let text = |more: &[&str]| generate(row, &[&["--set", "temperature=0"], more].concat()).remove(0);
    let stopped = text(&["--set", "stop= girl"]);
    assert_eq!(stopped["text"], "Once upon a time, there was a little");
    assert_eq!(stopped["finish_reason"], "stop");
    let list = text(&["--set", r#"stop=["never", " time"]"#]);
    assert_eq!(list["text"], "Once upon a");
    // 432 is the first comma; the stop token belongs to the response.
    let token = text(&["--set", "stop_token_ids=432"]);
    assert_eq!(
        (token["ids"].clone(), token["finish_reason"].clone()),
        (json!([403, 407, 261, 378, 432]), json!("stop"))
    );
    let later = text(&["--set", "stop_token_ids=432", "--set", "min_new_tokens=6"]);
    assert!(later["ids"].as_array().unwrap().len() >= 6);
    let short = text(&["--set", "max_new_tokens=3"]);
    assert_eq!(
        (short["ids"].clone(), short["finish_reason"].clone()),
        (json!([403, 407, 261]), json!("length"))
    );
}

#[test]
fn samplers_change_what_they_should() {
    let row = r#"{"ids": [1]}"#;
    let ids = |more: &[&str]| {
        generate(row, &[&["--set", "max_new_tokens=30"], more].concat()).remove(0)["ids"].clone()
    };
    let greedy = ids(&["--set", "temperature=0"]);
    assert_eq!(ids(&["--set", "top_k=1"]), greedy);
    assert_eq!(ids(&["--set", "top_p=0.000001"]), greedy);
    assert_eq!(ids(&["--set", "min_p=1"]), greedy);
    assert_ne!(ids(&["--set", "temperature=3"]), greedy);
    assert_ne!(ids(&["--set", "temperature=0", "--set", "repetition_penalty=2"]), greedy);
}

#[test]
fn the_models_generation_config_gives_the_defaults() {
    let model = ModelCopy::stories().edit("generation_config.json", |config| {
        config["do_sample"] = json!(false);
        config["max_new_tokens"] = json!(5);
    });
    let run = |more: &[&str]| {
        let path = model.path();
        let args = ["generate", "-m", &path, "-i", "-"].into_iter().chain(more.iter().copied());
        polity_with(args, br#"{"ids": [1]}"#).ok().rows().remove(0)["ids"].clone()
    };
    assert_eq!(run(&[]), json!([403, 407, 261, 378, 432]));
    assert_eq!(run(&["--set", "max_new_tokens=2"]), json!([403, 407]));
}

#[test]
fn messages_go_through_the_chat_template() {
    let model = ModelCopy::stories().with_template();
    let run = |row: Value| {
        let args = [
            "generate",
            "-m",
            &model.path(),
            "-i",
            "-",
            "--set",
            "temperature=0",
            "--set",
            "max_new_tokens=9",
        ];
        polity_with(args, row.to_string().as_bytes()).ok().rows().remove(0)["ids"].clone()
    };
    let user = json!({"role": "user", "content": "Once upon"});
    let rendered = json!({"prompt": "user: Once upon\nassistant: "});
    assert_eq!(run(json!({"messages": [user]})), run(rendered), "BOS comes from the template, or is added");
    // A conversation that ends with the assistant is continued.
    let begun = json!({"role": "assistant", "content": "Once upon"});
    assert_eq!(
        run(json!({"messages": [user, begun]})),
        run(json!({"prompt": "user: Once upon\nassistant: Once upon"}))
    );
}

#[test]
fn a_file_gets_what_stdout_gets() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    std::fs::write(&input, "{\"ids\": [1]}\n{\"prompt\": \"Tom\"}\n").unwrap();
    std::fs::write(&output, "old").unwrap();
    let model = stories();
    let args = ["generate", "-m", &model, "--set", "max_new_tokens=8", "-i", input.to_str().unwrap()];
    let printed = polity(args).ok().stdout;
    let run = polity(args.into_iter().chain(["-o", output.to_str().unwrap()])).ok();
    assert_eq!(run.stdout, "");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), printed);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
}

#[test]
fn models_without_a_tokenizer_take_ids() {
    let model = crate::support::text(&crate::support::shared("golden/llama/model"));
    let args = ["generate", "-m", &model, "-i", "-", "--set", "max_new_tokens=4"];
    let rows = polity_with(args, br#"{"ids": [5, 6]}"#).ok().rows();
    assert_eq!(rows[0]["text"], Value::Null);
    assert_eq!(floats(&rows[0]["logprobs"]).len(), 4);
}

#[test]
fn a_reader_that_has_had_enough_is_no_error() {
    let rows = "{\"ids\": [1]}\n".repeat(2000);
    let model = stories();
    let mut child = command(["generate", "-m", &model, "-i", "-", "--set", "max_new_tokens=4", "--quiet"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    feed(&mut child, rows.as_bytes());
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert!(line.starts_with("{\"index\":0,"));
    drop(stdout);
    let run = run_of(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
}

#[test]
#[cfg(unix)]
fn ctrl_c_leaves_no_half_written_file() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out.jsonl");
    std::fs::write(&output, "old").unwrap();
    let model = stories();
    let mut child = command(["generate", "-m", &model, "-i", "-", "-o", output.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    feed(&mut child, "{\"ids\": [1]}\n".repeat(100_000).as_bytes());
    // The temporary file appears when generation begins.
    wait_for("the temporary file", || std::fs::read_dir(dir.path()).unwrap().count() == 2);
    std::thread::sleep(Duration::from_millis(200));
    interrupt(&child);
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
    assert!(stderr.contains("error: stopped; no output was written"), "{stderr}");
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "old");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
}
