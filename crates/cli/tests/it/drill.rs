//! The rollback drill: in the tiny world, a bad canary is taken back by the votes of simulated people, through the running server.
//!
//! Two small models learn the world's ideal answers, one for long, the other hardly. The good one is released to everyone, the other as a
//! canary. Then prompts are answered by both, a panel of simulated annotators says which answer is better, and its votes are sent as
//! feedback, until the server takes the canary back.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use polity_world::{Panel, Response, Split, World, vocabulary};
use serde_json::{Value, json};

use crate::gate::{evaluation, polity_hash};
use crate::serve::{end, post, started};
use crate::support::{command, polity, text};

const TEMPLATE: &str = "{% for m in messages %}person : {{ m['content'] }} helper :{% endfor %}";
const POLICY: &str = "name = \"any\"\n[[criterion]]\nid = \"preferred\"\nmeasure = \"win_rate\"\nbetter = \"higher\"\n\
                      comparator = \"absolute\"\nlimit = 0.5\nn_min = 50\n";

/// A model that knows nothing, whose tokens are the world's words.
fn fresh(dir: &Path) {
    let words: Vec<&str> = ["<pad>", "<unk>", "<end>"].into_iter().chain(vocabulary()).collect();
    let vocab: Value = words.iter().enumerate().map(|(id, word)| ((*word).to_owned(), json!(id))).collect();
    let special: Vec<Value> = (0..3)
        .map(|id| {
            json!({"id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 64,
        "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
        "max_position_embeddings": 128, "vocab_size": words.len(), "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "initializer_range": 0.1, "eos_token_id": 2, "pad_token_id": 0,
    });
    let names = json!({"eos_token": "<end>", "pad_token": "<pad>", "unk_token": "<unk>"});
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.join("tokenizer_config.json"), names.to_string()).unwrap();
    fs::write(dir.join("chat_template.jinja"), TEMPLATE).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let hf = polity_lm::HfConfig::from_value(config).unwrap();
    let model = polity_lm::Model::init(hf, 1).unwrap().with_tokenizer_of(dir).unwrap();
    model.save(dir).unwrap();
}

#[test]
fn a_bad_canary_is_taken_back_by_votes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let world = World::new(1);
    fresh(Path::new(&path("fresh")));
    let rows: String = world
        .prompts(Split::Train, 1200)
        .iter()
        .map(|prompt| {
            let row = json!({"prompt": format!("person : {} helper :", prompt.text), "completion": format!(" {}", world.ideal(prompt))});
            format!("{row}\n")
        })
        .collect();
    fs::write(path("rows.jsonl"), rows).unwrap();
    polity(["init", &path("p")]).ok();
    fs::write(path("policy.toml"), POLICY).unwrap();
    let project = path("p");
    let release = |name: &str, steps: u32, more: &[&str]| {
        let (model, measures) = (path(&format!("{name}/model")), path(&format!("{name}.json")));
        let (out, steps) = (path(name), format!("max_steps={steps}"));
        let sets = [steps.as_str(), "learning_rate=5e-3", "per_device_train_batch_size=16", "save_steps=0"];
        let train = ["train", "sft", "--model", &path("fresh"), "--data", &path("rows.jsonl"), "--out", &out]
            .map(str::to_owned);
        polity(train.into_iter().chain(sets.iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()])))
            .ok();
        fs::write(&measures, evaluation(&polity_hash(Path::new(&model)), 70, 300).to_string()).unwrap();
        polity([
            "gate",
            &model,
            "--project",
            &project,
            "--policy",
            &path("policy.toml"),
            "--measures",
            &measures,
        ])
        .ok();
        let args = ["release", &model, "--project", &project, "--channel", "production"];
        polity(args.iter().chain(more)).ok();
    };
    release("good", 250, &[]);
    release("bad", 25, &["--canary-share", "0.2"]);
    let key = polity(["account", "add", "app", "--role", "annotator", "--project", &project])
        .ok()
        .stdout
        .trim()
        .to_owned();

    let mut server = command([
        "--json",
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--channel",
        "production",
        "--project",
        &project,
    ]);
    let (server, _out, at) = started(&mut server);
    let url = |path: &str| format!("{}/v1/{path}", at["address"].as_str().unwrap());
    let ask = |model: &str, prompt: &str, seed: usize| {
        let messages = json!([{"role": "user", "content": prompt}]);
        let body = json!({"model": model, "messages": messages, "max_tokens": 32, "seed": seed});
        post(&url("chat/completions"), Some(&key), &body)
    };
    let panel = Panel::standard(1);
    let (mut votes, mut canary_better) = (0, 0.0);
    for (n, prompt) in world.prompts(Split::Holdout, 400).iter().enumerate() {
        let [stable, canary] =
            ["production:stable", "production:canary"].map(|arm| ask(arm, &prompt.text, n));
        if canary.0 == 404 {
            break;
        }
        let shown = |answer: &Value| {
            let choice = &answer["choices"][0];
            (choice["message"]["content"].as_str().unwrap().to_owned(), choice["finish_reason"] == "stop")
        };
        let (s, c) = (shown(&stable.1), shown(&canary.1));
        let [left, right] = [&s, &c].map(|(text, ended)| Response { text, ended: *ended });
        let share = panel.vote(n % panel.annotators.len(), &prompt.id, prompt, left, right).left_share();
        let answer = ["second", "tie", "first"][(2.0 * share).round() as usize];
        let body =
            json!({"first": {"id": stable.1["id"]}, "second": {"id": canary.1["id"]}, "answer": answer});
        let (status, said) = post(&url("feedback/preference"), Some(&key), &body);
        assert_eq!((status, &said["counted"]), (200, &json!(true)), "{said}");
        votes += 1;
        canary_better += 1.0 - share;
    }
    println!(
        "taken back after {votes} votes; the canary's share of them: {:.2}",
        canary_better / f64::from(votes)
    );
    assert!((5..300).contains(&votes), "{votes} votes");
    // The ledger has the alarm with its evidence, and the rollback.
    let log = polity(["ledger", "log", "--json", "--project", &project]).ok().rows();
    let event = |kind: &str| {
        log.iter().find(|event| event["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))["body"].clone()
    };
    let alarm = event("alarm");
    assert_eq!(
        (&alarm["release"], &alarm["alarm"]["criterion"]["measure"]),
        (&json!("production-2"), &json!("preference"))
    );
    assert!(alarm["alarm"]["found"]["p_anytime"].as_f64().unwrap() <= 0.02, "{alarm}");
    let rollback = event("rollback");
    assert_eq!((&rollback["from"], &rollback["to"]), (&json!("production-2"), &json!("production-1")));
    polity(["ledger", "verify", "--project", &project]).ok();

    // A release is picked up while the server runs, and one by hand is served.
    let model = path("good/model");
    polity(["release", &model, "--project", &project, "--channel", "production", "--canary-share", "0.5"])
        .ok();
    let prompt = &world.prompts(Split::Holdout, 1)[0].text;
    let served = (0..100).any(|_| {
        sleep(Duration::from_millis(200));
        ask("production:canary", prompt, 1).0 == 200
    });
    assert!(served, "the next canary is served");
    end(server, "-TERM");
}
