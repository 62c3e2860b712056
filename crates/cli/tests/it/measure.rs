//! `polity logprobs` and `polity score`.

use std::fs;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::support::{ModelCopy, polity_with, shared, stories, text};

fn run(verb: &str, model: &str, rows: &[Value], more: &[&str]) -> Vec<Value> {
    let input: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let args = [verb, "--model", model, "--input", "-"].into_iter().chain(more.iter().copied());
    polity_with(args, input.as_bytes()).ok().rows()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn mean_loss(logprobs: &[f64]) -> f64 {
    -logprobs.iter().sum::<f64>() / logprobs.len() as f64
}

/// "Once upon a time, there was a little girl named Lily." with BOS first: 16 ids, 15 predicted.
const SENTENCE: &str = "Once upon a time, there was a little girl named Lily.";
const SENTENCE_IDS: [u32; 15] = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426];

/// The mean token loss of the model's PROVENANCE.md, from Transformers and from the original C program.
#[test]
fn the_reference_sentence_has_the_reference_loss() {
    let row = json!({"prompt_ids": [1], "completion_ids": SENTENCE_IDS});
    let out = run("logprobs", &stories(), &[row], &[]);
    let loss = mean_loss(&floats(&out[0]["logprobs"]));
    // Measured 0.1001374.
    assert!((loss - 0.100137).abs() < 1e-6, "{loss}");
}

#[test]
fn text_gets_bos_and_eos() {
    let with_eos = [&SENTENCE_IDS[..], &[2]].concat();
    let rows = [
        json!({"prompt": "", "completion": SENTENCE}),
        json!({"text": SENTENCE}),
        json!({"prompt": "Once upon", "completion": SENTENCE.strip_prefix("Once upon").unwrap()}),
        json!({"prompt_ids": [1], "completion_ids": with_eos}),
    ];
    let out = run("logprobs", &stories(), &rows, &[]);
    assert_eq!(out[0]["ids"], json!(with_eos), "all of it, and EOS");
    for same in [&out[1], &out[3]] {
        assert_eq!((&same["ids"], &same["logprobs"]), (&out[0]["ids"], &out[0]["logprobs"]));
    }
    assert_eq!(out[2]["ids"], json!(with_eos[2..]));
    assert_eq!(floats(&out[2]["logprobs"]), floats(&out[0]["logprobs"])[2..]);
    assert_eq!(floats(&out[2]["entropy"]), floats(&out[0]["entropy"])[2..]);
    assert!(
        out.iter().all(|row| floats(&row["entropy"]).iter().all(|&nats| (0.0..=512f64.ln()).contains(&nats)))
    );
}

#[test]
fn rows_do_not_know_their_batch() {
    let row =
        |prompt: &[u32], completion: &[u32]| json!({"prompt_ids": prompt, "completion_ids": completion});
    // Neighbours that share a prompt, prompts that are prefixes of each other, and enough tokens for several batches.
    let mut rows = vec![row(&[1, 403], &[407, 261]), row(&[1, 403], &[50]), row(&[1], &[403, 407])];
    rows.extend((0..30).map(|i| row(&[1, 403 + i], &vec![261 + i; 200 + i as usize])));
    let together = run("logprobs", &stories(), &rows, &[]);
    let one_thread = run("logprobs", &stories(), &rows, &["--threads", "1"]);
    assert_eq!(together, one_thread);
    for i in [0, 1, 2, 17, 32] {
        let alone = run("logprobs", &stories(), &rows[i..=i], &[]);
        assert_eq!(together[i]["logprobs"], alone[0]["logprobs"], "row {i}");
        assert_eq!(together[i]["entropy"], alone[0]["entropy"], "row {i}");
        assert_eq!(together[i]["index"], i);
    }
}

#[test]
fn temperature_flattens() {
    let row = json!({"prompt_ids": [1], "completion_ids": SENTENCE_IDS});
    let entropy = |more: &[&str]| {
        floats(&run("logprobs", &stories(), std::slice::from_ref(&row), more)[0]["entropy"])
            .iter()
            .sum::<f64>()
    };
    assert!(entropy(&["--set", "temperature=2"]) > entropy(&[]));
    assert_eq!(entropy(&["--set", "temperature=1"]), entropy(&[]));
}

#[test]
fn a_conversations_last_message_is_the_completion() {
    let model = ModelCopy::stories().with_template();
    let user = json!({"role": "user", "content": "Hi"});
    let assistant = json!({"role": "assistant", "content": "Once upon a time"});
    let rows = [
        json!({"messages": [user, assistant]}),
        json!({"prompt": [user], "completion": [assistant]}),
        json!({"prompt": "user: Hi\nassistant: ", "completion": "Once upon a time</s>\n"}),
    ];
    let out = run("logprobs", &model.path(), &rows, &[]);
    assert_eq!(out[0]["ids"], out[1]["ids"]);
    assert_eq!(out[0]["logprobs"], out[1]["logprobs"]);
    // The plain row has one more EOS, after the template's line break.
    let (chat, plain) = (floats(&out[0]["logprobs"]), floats(&out[2]["logprobs"]));
    assert_eq!(chat[..], plain[..chat.len()]);
    assert_eq!(plain.len(), chat.len() + 1);
}

/// Scores of Transformers' sequence classifiers, from the stored golden files.
#[test]
fn scores_are_transformers() {
    for family in ["llama", "qwen2", "gpt2", "gemma2"] {
        let bytes = fs::read(shared(&format!("golden/{family}/golden.safetensors"))).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let integers = |name: &str| -> Vec<u32> {
            let data = golden.tensor(name).unwrap().data().to_vec();
            data.chunks_exact(8).map(|x| i64::from_le_bytes(x.try_into().unwrap()) as u32).collect()
        };
        let (ids, offsets) = (integers("ids"), integers("offsets"));
        let bytes = fs::read(shared(&format!("golden/{family}/reward_golden.safetensors"))).unwrap();
        let reward = SafeTensors::deserialize(&bytes).unwrap();
        let expect: Vec<f32> = reward
            .tensor("score")
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|x| f32::from_le_bytes(x.try_into().unwrap()))
            .collect();
        let rows: Vec<Value> = offsets
            .windows(2)
            .map(|span| {
                let ids = &ids[span[0] as usize..span[1] as usize];
                json!({"prompt_ids": ids[..2], "completion_ids": ids[2..]})
            })
            .collect();
        let model = text(&shared(&format!("golden/{family}/reward")));
        let out = run("score", &model, &rows, &[]);
        let largest = expect.iter().fold(0.0f64, |m, &x| m.max(f64::from(x).abs()));
        for (row, expect) in out.iter().zip(&expect) {
            let error = (row["score"].as_f64().unwrap() - f64::from(*expect)).abs() / largest;
            // Measured worst 4e-7.
            assert!(error < 2e-6, "{family}: {row} expected {expect}, error {error:.1e}");
        }
    }
}
