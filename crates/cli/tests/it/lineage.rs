//! What is not what it was is named: a vote, a row, a weight, a measure, a record, a verdict that no gate gave, rows that no export wrote.

use std::fs;

use polity_store::{NewVerdict, Store};

use crate::gate::{evaluation, polity_hash};
use crate::release::{POLICY, Shop, flip_a_byte};
use crate::support::text;

#[test]
fn one_changed_vote_weight_measure_or_record_is_named_by_verify_and_lineage() {
    let shop = Shop::trained();
    shop.done("release DIR/p/runs/dpo/model --project DIR/p --channel production");
    let store = shop.saved();
    let named = |verify: &str, lineage: &str| {
        shop.refused("ledger verify --project DIR/p", 1, verify);
        let run = shop.run("lineage production-1 --project DIR/p");
        let said = format!("{}{}", run.stdout, run.stderr);
        let flat = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(run.code == 1 && flat.contains(lineage), "{}: no {lineage:?} in: {said}", run.code);
        assert!(["FAILED", "CHANGED"].iter().any(|status| run.stdout.contains(status)), "{}", run.stdout);
    };
    let tampered = |table: &str, sql: &str, verify: &str, lineage: &str| {
        shop.tamper(table, sql);
        named(verify, lineage);
        shop.put_back(&store);
        shop.done("ledger verify --project DIR/p");
    };
    tampered(
        "vote",
        "UPDATE vote SET overall = 'tie' WHERE seq = 5",
        "vote 5: its content does not give its chain hash",
        "votes 1 to 16: vote 5",
    );
    tampered(
        "dataset_row",
        "UPDATE dataset_row SET a_votes = 0, b_votes = 2 WHERE idx = 3",
        "dataset v1, row 3",
        "dataset v1: dataset v1, row 3",
    );
    tampered(
        "ledger",
        "UPDATE ledger SET actor = 'eve' WHERE seq = 2",
        "ledger event 2: its content does not give its hash",
        "ledger event 2",
    );
    // A verdict that was made to pass, its document too: neither gives its hash.
    tampered(
        "document",
        "UPDATE document SET content = replace(content, '0.7', '0.9') WHERE kind = 'evaluation'",
        "its content does not give its hash",
        "evaluation",
    );

    let weights = shop.path("p/releases/production-1/model.safetensors");
    let before = flip_a_byte(&weights);
    named(
        "release production-1: model.safetensors was changed",
        "release production-1: model.safetensors was changed",
    );
    fs::write(&weights, before).unwrap();
    let weights = shop.path("p/runs/dpo/model/model.safetensors");
    let before = flip_a_byte(&weights);
    named("model runs/dpo/model: it was changed", "model runs/dpo/model: the files in runs/dpo/model give");
    shop.refused("lineage DIR/p/runs/dpo/model --project DIR/p", 1, "model runs/dpo/model");
    shop.refused("release DIR/p/runs/dpo/model --project DIR/p --channel production", 1, "on record it is");
    assert_eq!(shop.refusals(), ["evidence"]);
    fs::write(&weights, before).unwrap();
    let card = shop.path("p/releases/production-1/README.md");
    let before = flip_a_byte(&card);
    named("README.md was changed", "README.md was changed");
    fs::write(&card, before).unwrap();
    let extra = shop.path("p/releases/production-1/extra.json");
    fs::write(&extra, "{}").unwrap();
    named("extra.json was added", "extra.json was added");
    fs::remove_file(&extra).unwrap();

    let measures = shop.path("measures.json");
    let before = fs::read_to_string(&measures).unwrap();
    for (from, to, says) in [
        ("\"estimate\":0.7,", "\"estimate\":0.8,", "one of them was changed"),
        ("\"confidence\":0.9", "\"confidence\":0.8", "does not say what was judged"),
    ] {
        fs::write(&measures, before.replacen(from, to, 1)).unwrap();
        named("measures.json", says);
    }
    fs::write(&measures, before).unwrap();
    shop.done("lineage production-1 --project DIR/p");
}

/// Rows that no export wrote, with a `dataset.json` beside them that says one did.
#[test]
fn data_that_only_says_it_is_of_a_dataset_is_named() {
    let shop = Shop::new();
    shop.done("freeze v1 --project DIR/p");
    shop.done("export v1 --project DIR/p --out DIR/p/datasets/v1");
    let rows = shop.path("p/datasets/v1/train.jsonl");
    let hash = || polity_train::run::Input::hash("data", &rows).unwrap().blake3;
    let before = hash();
    let text = fs::read_to_string(&rows).unwrap();
    fs::write(&rows, text.replacen("a cat", "a bomb", 1)).unwrap();
    let about = shop.path("p/datasets/v1/dataset.json");
    fs::write(&about, fs::read_to_string(&about).unwrap().replace(&before, &hash())).unwrap();
    shop.train("dpo", 1);
    shop.judge(&shop.path("p/runs/dpo/model"), 70, "measures").ok();
    let says = "no export of dataset v1 wrote this file";
    shop.refused("lineage DIR/p/runs/dpo/model --project DIR/p", 1, says);
    shop.refused("release DIR/p/runs/dpo/model --project DIR/p --channel production", 1, says);
    assert_eq!(shop.refusals(), ["evidence"]);
}

/// Whoever can write to the store can record a verdict that passes; judged again, it does not.
#[test]
fn a_verdict_that_the_gate_did_not_give_is_named() {
    let shop = Shop::new();
    let model = shop.model("bad");
    assert_eq!(shop.judge(&model, 30, "bad").code, 3);
    let (hash, now_ms) = (polity_hash(&model), shop.events("verdict")[0]["at_ms"].as_i64().unwrap() + 1);
    let judged = shop.events("verdict")[0]["body"]["said"].as_str().unwrap().to_owned();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(&text(&shop.path("p/store.db")), [0; 32], now_ms).await.unwrap();
        let said = store.document(&judged).await.unwrap().replace("\"fail\"", "\"pass\"");
        let measured = evaluation(&hash, 30, 300).to_string();
        let measured = polity_eval::Evaluation::parse("bad.json".as_ref(), &measured).unwrap().canonical();
        let forged = NewVerdict {
            model: hash.clone(),
            verdict: "pass".into(),
            policy_name: "ours".into(),
            policy: POLICY.into(),
            approvals: 0,
            valid_days: 14,
            evaluations: vec![(hash.clone(), measured, "bad.json".into())],
            said,
            code_version: "0".into(),
        };
        store.add_verdict(forged, "cli", now_ms).await.unwrap();
        store.close().await;
    });
    shop.done("ledger verify --project DIR/p");
    shop.refused(
        "release DIR/bad --project DIR/p --channel production",
        1,
        "verdict pass: judged again it is fail",
    );
    shop.refused("lineage DIR/bad --project DIR/p", 1, "judged again it is fail");
}
