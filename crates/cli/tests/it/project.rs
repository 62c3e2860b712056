//! A project from the command line: from prompts to a model, and what is refused on the way.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{ModelCopy, command, polity, run_of, stories};

fn words<'a>(args: &'a str, dir: &'a str) -> Vec<String> {
    args.split(' ').map(|word| word.replace("DIR", dir)).collect()
}

/// Runs a verb that must succeed; `DIR` in it is the directory.
#[track_caller]
fn done(dir: &Path, args: &str) -> String {
    let run = polity(words(args, dir.to_str().unwrap()));
    assert_eq!(run.code, 0, "{args}: {}", run.stderr);
    run.stdout
}

#[track_caller]
fn refused(dir: &Path, args: &str, code: i32) -> String {
    let run = polity(words(args, dir.to_str().unwrap()));
    assert_eq!(run.code, code, "{args}: {}{}", run.stdout, run.stderr);
    run.stderr
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_killed_init_is_finished_by_the_same_command_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let killed = || fs::remove_file(dir.join("p/polity.toml")).unwrap();
    done(dir, "init DIR/p --seed 1 --holdout 0.2");
    killed();
    let said = refused(dir, "init DIR/p --seed 1 --holdout 0.3", 2);
    assert!(said.contains("is a store already"), "{said}");
    done(dir, "init DIR/p --seed 1 --holdout 0.2");
    done(dir, "ledger verify --project DIR/p");

    // Nor one that somebody has worked in.
    fs::write(dir.join("prompts.jsonl"), "{\"prompt\": \"Once\"}\n").unwrap();
    done(dir, "import prompts DIR/prompts.jsonl --project DIR/p");
    killed();
    refused(dir, "init DIR/p --seed 1 --holdout 0.2", 2);
}

#[test]
fn from_prompts_to_a_reward_model_with_its_dataset_in_the_manifest_and_the_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let prompts: String =
        ["Once upon a time", "The dog", "A girl named Lily", "One day, Tom", "In the park", "Mom said"]
            .iter()
            .map(|prompt| format!("{{\"prompt\": \"{prompt}\", \"category\": \"story\"}}\n"))
            .collect();
    fs::write(dir.join("prompts.jsonl"), prompts).unwrap();
    done(dir, "init DIR/p --seed 1 --validation 0 --holdout 0 --overlap 2");
    done(dir, "import prompts DIR/prompts.jsonl --project DIR/p");
    let model = stories();
    let sampled = done(
        dir,
        &format!(
            "sample --project DIR/p --model {model} --per-prompt 3 --pairs 2 --set max_new_tokens=12 --json"
        ),
    );
    // Two for each prompt, unless candidates were nearly the same.
    let comparisons = json(&sampled)["added"]["comparisons"].as_i64().unwrap();
    assert!((8..=12).contains(&comparisons), "{sampled}");
    let votes = done(dir, "panel simulate --project DIR/p --json");
    assert_eq!(json(&votes)["votes"], 2 * comparisons);
    let agreement = done(dir, "agreement --project DIR/p --machine-votes --resamples 50 --json");
    assert_eq!(json(&agreement)["counts"]["votes"], 2 * comparisons);
    let none = refused(dir, "agreement --project DIR/p", 2);
    assert!(none.contains("no votes by people") && none.contains("--machine-votes"), "{none}");
    done(dir, "freeze v1 --project DIR/p --machine-votes");
    let exported = json(&done(dir, "export v1 --project DIR/p --out DIR/p/datasets/v1 --json"));
    let hash = exported["hash"].as_str().unwrap().to_owned();
    assert_eq!(exported["files"][0]["rows"], comparisons);
    done(
        dir,
        "export v1 --project DIR/p --out DIR/p/datasets/pq --format parquet --labels majority --margins",
    );

    done(
        dir,
        &format!(
            "train reward --model {model} --data DIR/p/datasets/v1/train.jsonl --out DIR/p/runs/reward --set max_steps=2"
        ),
    );
    let manifest = json(&fs::read_to_string(dir.join("p/runs/reward/manifest.json")).unwrap());
    let data = manifest["inputs"].as_array().unwrap().iter().find(|input| input["role"] == "data").unwrap();
    assert_eq!(data["dataset"]["hash"], hash.as_str());
    done(
        dir,
        &format!(
            "train reward --model {model} --data DIR/p/datasets/pq/train.parquet --out DIR/p/runs/pq --set max_steps=1"
        ),
    );

    let log = done(dir, "ledger log --project DIR/p --json");
    let events: Vec<Value> = log.lines().map(json).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["kind"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "init", "rubric", "import", "sample", "votes", "freeze", "export", "export", "run", "run", "run",
            "run"
        ]
    );
    let run = &events[8]["body"]["inputs"].as_array().unwrap().iter().find(|i| i["role"] == "data").unwrap()
        ["dataset"];
    assert_eq!(run["hash"], hash.as_str());
    let verified = json(&done(dir, "ledger verify --project DIR/p --json"));
    assert_eq!(
        (&verified["votes_sealed"], &verified["bad"]),
        (&(2 * comparisons).into(), &Value::Array(vec![]))
    );
    let cut = refused(dir, "ledger verify --project DIR/p --head 00", 1);
    assert!(cut.contains("ledger event 13"), "{cut}");
}

/// Two models' candidates for one prompt: the second model once found that the process was listening for Ctrl-C already.
#[test]
fn two_models_answer_the_same_prompts() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    fs::write(dir.join("prompts.jsonl"), "{\"prompt\": \"Once upon a time\"}\n").unwrap();
    done(dir, "init DIR/p");
    let (one, other) = (stories(), ModelCopy::stories());
    let sampled = done(
        dir,
        &format!(
            "sample --project DIR/p --model {one} --model {} --prompts DIR/prompts.jsonl --per-prompt 2 --set max_new_tokens=12 --json",
            other.path()
        ),
    );
    assert_eq!(json(&sampled)["added"]["comparisons"], 1, "{sampled}");
}

/// The documented scripts, as they are written: to a model, and on to a release and back.
#[test]
fn from_votes_to_a_model_and_a_release_by_the_scripts_of_the_documents() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let prompts: String = (0..8).map(|i| format!("{{\"prompt\": \"Once upon a time {i}\"}}\n")).collect();
    fs::write(dir.join("prompts.jsonl"), prompts).unwrap();
    let script = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    let polity = Path::new(env!("CARGO_BIN_EXE_polity")).parent().unwrap().to_owned();
    let path: Vec<_> =
        [polity].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())).collect();
    let path = std::env::join_paths(path).unwrap();
    let mut bash = Command::new("bash");
    bash.arg(script("votes_to_model.sh")).arg(stories()).arg(dir.join("prompts.jsonl")).arg(dir.join("p"));
    let run = run_of(bash.env("PATH", &path).output().unwrap()).ok();
    let said = &run.stdout;
    assert!(said.contains("simulated annotators") && said.contains("Krippendorff's alpha"), "{said}");
    assert!(said.trim_end().ends_with("is in both manifests and in the ledger"), "{said}");

    let mut bash = Command::new("bash");
    bash.arg(script("release.sh")).arg(stories()).arg(dir.join("p"));
    let run = run_of(bash.env("PATH", &path).env("COLUMNS", "80").output().unwrap()).ok();
    assert!(run.stderr.contains("0 of 1 approvals"), "{}", run.stderr);
    let said = &run.stdout;
    assert!(said.contains("production: back from production-3 to production-1"), "{said}");
    assert!(said.trim_end().ends_with("production serves production-1 again"), "{said}");
}

/// Three who look, and `eve`, who says `a` whatever is there.
fn a_panel(dir: &Path) {
    let mut rows = String::from("prompt,response_a,response_b,winner,annotator\n");
    for i in 0..30 {
        let winner = if i % 2 == 0 { "a" } else { "b" };
        for (who, winner) in [("ann", winner), ("ben", winner), ("cid", winner), ("eve", "a")] {
            rows += &format!("question {i},one {i},other {i},{winner},{who}\n");
        }
    }
    fs::write(dir.join("panel.csv"), rows).unwrap();
    done(dir, "init DIR/p --validation 0 --holdout 0");
    done(dir, "import votes DIR/panel.csv --project DIR/p");
}

#[test]
fn a_project_knows_its_panel_and_labels_by_it() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    a_panel(dir);
    // In the project's directory nothing else need be said.
    let mut here = command(["agreement", "--json", "--resamples", "50"]);
    let here = run_of(here.current_dir(dir.join("p")).output().unwrap()).ok();
    assert_eq!(here.stdout, done(dir, "agreement --project DIR/p --json --resamples 50"));
    let report = json(&here.stdout);
    let reliability = |who: &str| {
        let mut all = report["annotators"].as_array().unwrap().iter();
        all.find(|annotator| annotator["name"] == who).unwrap()["reliability"]["reliability"]
            .as_f64()
            .unwrap()
    };
    assert_eq!((&report["counts"]["votes"], &report["counts"]["comparisons"]), (&120.into(), &30.into()));
    assert!(reliability("panel.csv:ann") > 0.9 && reliability("panel.csv:eve") < 0.2, "{report}");
    refused(dir, "agreement --project DIR/p --data DIR/panel.csv", 2);

    done(dir, "freeze soft --project DIR/p");
    done(dir, "freeze model --project DIR/p --labels model");
    done(dir, "export model --project DIR/p --out DIR/model");
    done(dir, "export model --project DIR/p --out DIR/share --labels soft");
    let labels = |part: &str| -> Vec<(String, f64)> {
        let rows = fs::read_to_string(dir.join(part).join("train.jsonl")).unwrap();
        let row = |row: Value| (row["chosen"].as_str().unwrap().to_owned(), row["label"].as_f64().unwrap());
        rows.lines().map(|line| row(json(line))).collect()
    };
    let (model, share) = (labels("model"), labels("share"));
    assert_eq!(model.len(), 30);
    for ((chosen, p), (same, votes)) in model.iter().zip(&share) {
        assert_eq!(chosen, same, "the three are right about each");
        // Half the shares are 3 of 4, because of eve; the model does not believe her.
        assert!(*p > 0.9 && [0.75, 1.0].contains(votes), "{chosen}: {p}, {votes}");
    }
    let log = done(dir, "ledger verify --project DIR/p --json");
    assert_eq!(json(&log)["bad"], Value::Array(vec![]));
    let refused = refused(dir, "export soft --project DIR/p --out DIR/none --labels model", 2);
    assert!(refused.contains("frozen without a reliability model"), "{refused}");
}

#[test]
fn an_exported_file_that_was_changed_or_moved_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    a_panel(dir);
    done(dir, "freeze v1 --project DIR/p");
    done(dir, "export v1 --project DIR/p --out DIR/p/datasets/v1");
    done(dir, "export v1 --project DIR/p --out DIR/elsewhere");
    let verified = |dir: &Path| json(&done(dir, "ledger verify --project DIR/p --json"));
    let gone = |found: &Value| found["exported_files_gone"].as_array().unwrap().len();
    let whole = verified(dir);
    assert_eq!((&whole["exported_files"], gone(&whole)), (&4.into(), 0), "{whole}");

    // A project that is moved takes what is below it along.
    fs::rename(dir.join("p"), dir.join("q")).unwrap();
    fs::remove_file(dir.join("elsewhere/train.jsonl")).unwrap();
    let moved = polity(words("ledger verify --project DIR/q", dir.to_str().unwrap())).ok();
    assert!(moved.stdout.contains("exports       3 files (1 gone)"), "{}", moved.stdout);
    assert!(
        moved.stderr.contains("elsewhere/train.jsonl is not there: moved or removed"),
        "{}",
        moved.stderr
    );
    fs::rename(dir.join("q"), dir.join("p")).unwrap();

    for file in ["train.jsonl", "dataset.json"] {
        let path = dir.join("p/datasets/v1").join(file);
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, before.replacen("question", "Question", 1).replacen("\"v1\"", "\"v2\"", 1)).unwrap();
        let changed = refused(dir, "ledger verify --project DIR/p", 1);
        assert!(changed.contains(file) && changed.contains("is not what ledger event"), "{changed}");
        fs::write(&path, before).unwrap();
    }
    // What is exported again into the same place is the last export's.
    done(dir, "freeze v2 --project DIR/p --labels majority");
    done(dir, "export v2 --project DIR/p --out DIR/p/datasets/v1");
    assert_eq!(verified(dir)["bad"], Value::Array(vec![]));
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_stored() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let none = refused(dir, "ledger log --project DIR", 2);
    assert!(none.contains("polity.toml") && none.contains("polity init"), "{none}");
    done(dir, "init DIR/p");
    assert!(refused(dir, "init DIR/p", 2).contains("is a project already"));
    refused(dir, "init DIR/q --holdout 1.5", 2);
    assert!(!dir.join("q/polity.toml").exists());

    fs::write(dir.join("bad.csv"), "prompt,response_a,response_b,winner\np,x,y,a\np,x,y,c\np,x,z,b\n")
        .unwrap();
    let bad = refused(dir, "import votes DIR/bad.csv --project DIR/p", 2);
    assert!(bad.contains("1 of 3 rows") && bad.contains("bad.csv, line 3: `winner` is `c`"), "{bad}");
    fs::write(dir.join("good.csv"), "prompt,response_a,response_b,winner\np,x,y,a\nq,x,z,b\n").unwrap();
    let dry = done(dir, "import votes DIR/good.csv --project DIR/p --dry-run");
    assert!(dry.contains("nothing stored"), "{dry}");
    assert_eq!(done(dir, "ledger log --project DIR/p").lines().count(), 2);
    done(dir, "import votes DIR/good.csv --project DIR/p");
    let frozen = json(&done(dir, "freeze v1 --project DIR/p --labels majority --json"));
    let rows = ["train_rows", "validation_rows", "holdout_rows"]
        .map(|part| frozen["dataset"][part].as_i64().unwrap());
    assert_eq!(rows.iter().sum::<i64>(), 2);
    assert!(refused(dir, "freeze v1 --project DIR/p", 2).contains("datasets never change"));
    assert!(refused(dir, "export v2 --project DIR/p --out DIR/out", 2).contains("no dataset `v2`"));
    refused(dir, "freeze ../v1 --project DIR/p", 2);
}
