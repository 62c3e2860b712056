//! From votes to a release and back: grounds, refusals that are on record, copies that are whole. (Tampering: `lineage`.)

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use sqlx::Connection;

use crate::gate::{evaluation, polity_hash};
use crate::support::{Run, command, polity, run_of, stories, text, wait_for};

pub const POLICY: &str = "name = \"ours\"\n[[criterion]]\nid = \"preferred\"\nmeasure = \"win_rate\"\nbetter = \"higher\"\n\
                      comparator = \"absolute\"\nlimit = 0.5\nn_min = 50\n";

/// A project with votes, a dataset and nothing trained yet.
pub struct Shop {
    dir: tempfile::TempDir,
}

impl Shop {
    pub fn new() -> Shop {
        let shop = Shop { dir: tempfile::tempdir().unwrap() };
        let mut rows = String::from("prompt,response_a,response_b,winner,annotator,category\n");
        for i in 0..8 {
            for (who, winner) in [("ann", "a"), ("ben", if i % 3 == 0 { "b" } else { "a" })] {
                rows += &format!("Once upon a time {i},a cat,a dog {i},{winner},{who},story\n");
            }
        }
        fs::write(shop.path("votes.csv"), rows).unwrap();
        fs::write(shop.path("policy.toml"), POLICY).unwrap();
        shop.done("init DIR/p --validation 0 --holdout 0");
        shop.done("import votes DIR/votes.csv --project DIR/p");
        shop
    }

    /// With a model by DPO on the votes, judged and passing.
    pub fn trained() -> Shop {
        let shop = Shop::new();
        shop.done("freeze v1 --project DIR/p");
        shop.done("export v1 --project DIR/p --out DIR/p/datasets/v1");
        shop.train("dpo", 1);
        shop.judge(&shop.path("p/runs/dpo/model"), 70, "measures").ok();
        shop
    }

    pub fn train(&self, name: &str, seed: u32) {
        self.done(&format!(
            "train dpo --model {} --data DIR/p/datasets/v1/train.jsonl --out DIR/p/runs/{name} --set max_steps=1 \
             --set seed={seed} --set learning_rate=1e-3",
            stories()
        ));
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run(&self, args: &str) -> Run {
        self.run_as(args, None)
    }

    pub fn run_as(&self, args: &str, token: Option<&str>) -> Run {
        let dir = text(self.dir.path());
        let mut command = command(args.split_whitespace().map(|word| word.replace("DIR", &dir)));
        token.map(|token| command.env("POLITY_TOKEN", token));
        run_of(command.stdin(Stdio::null()).output().unwrap())
    }

    #[track_caller]
    pub fn done(&self, args: &str) -> String {
        let run = self.run(args);
        assert_eq!(run.code, 0, "{args}: {}{}", run.stdout, run.stderr);
        run.stdout
    }

    #[track_caller]
    pub fn refused(&self, args: &str, code: i32, says: &str) -> String {
        let run = self.run(args);
        assert_eq!(run.code, code, "{args}: {}{}", run.stdout, run.stderr);
        assert!(run.stderr.contains(says), "no {says:?} in: {}", run.stderr);
        run.stderr
    }

    /// A copy of the model with another name in it: another model, for tests that need no training.
    pub fn model(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        for entry in fs::read_dir(stories()).unwrap() {
            let from = entry.unwrap().path();
            fs::write(dir.join(from.file_name().unwrap()), fs::read(&from).unwrap()).unwrap();
        }
        fs::write(dir.join("name.txt"), name).unwrap();
        dir
    }

    /// Judges a model by `wins` of 100.
    pub fn judge(&self, model: &Path, wins: usize, file: &str) -> Run {
        let file = format!("{file}.json");
        fs::write(self.path(&file), evaluation(&polity_hash(model), wins, 300).to_string()).unwrap();
        self.run(&format!(
            "gate {} --project DIR/p --policy DIR/policy.toml --measures DIR/{file}",
            model.display()
        ))
    }

    pub fn events(&self, kind: &str) -> Vec<Value> {
        let log = self.done("ledger log --project DIR/p --json");
        let events = log.lines().map(|line| serde_json::from_str(line).unwrap());
        events.filter(|event: &Value| event["kind"] == kind).collect()
    }

    /// The codes of all refusals.
    pub fn refusals(&self) -> Vec<String> {
        self.events("refusal")
            .iter()
            .map(|event| event["body"]["code"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Changes the database behind the store's back.
    pub fn tamper(&self, table: &str, sql: &str) {
        let url = format!("sqlite://{}", text(&self.path("p/store.db")));
        let sql = format!("DROP TRIGGER IF EXISTS {table}_no_update; {sql}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            sqlx::any::install_default_drivers();
            let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        });
    }

    /// The store as it is now, to put back.
    pub fn saved(&self) -> Vec<u8> {
        fs::read(self.path("p/store.db")).unwrap()
    }

    pub fn put_back(&self, store: &[u8]) {
        for file in ["store.db-wal", "store.db-shm"] {
            let _ = fs::remove_file(self.path("p").join(file));
        }
        fs::write(self.path("p/store.db"), store).unwrap();
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

pub fn flip_a_byte(file: &Path) -> Vec<u8> {
    let before = fs::read(file).unwrap();
    let mut after = before.clone();
    *after.last_mut().unwrap() ^= 1;
    fs::write(file, after).unwrap();
    before
}

#[test]
fn from_votes_to_a_release_with_its_card_and_lineage() {
    let shop = Shop::trained();
    let released =
        json(&shop.done("release DIR/p/runs/dpo/model --project DIR/p --channel production --json"));
    assert_eq!(released["release"], "production-1");
    let hash = polity_hash(&shop.path("p/runs/dpo/model"));
    let dir = shop.path("p/releases/production-1");
    assert_eq!((polity_hash(&dir), &released["model"]), (hash.clone(), &Value::from(hash.clone())));
    // What was released answers like what was trained.
    let answer = |model: &Path| {
        let input = br#"{"prompt": "Once upon a time"}"#;
        let args = ["generate", "--model", &text(model), "--input", "-", "--set", "max_new_tokens=8"]
            .map(String::from);
        crate::support::polity_with(args, input).ok().stdout
    };
    assert_eq!(answer(&dir), answer(&shop.path("p/runs/dpo/model")));

    let card = fs::read_to_string(dir.join("README.md")).unwrap();
    let verdict = released["verdict"].as_str().unwrap();
    for part in [
        "---\nlibrary_name: transformers\n",
        "base_model: \"stories260k\"\n",
        "datasets:\n- \"v1\"\n",
        "- \"dpo\"\n",
        "model-index:\n- name: \"production-1\"\n",
        "      value: 0.7\n",
        "| win\\_rate | all | 0.7000 |",
        "16 votes by 2 annotators on 8 comparisons",
        "16 votes by people, 0 by machines",
        "rubric versions not stated by an import",
        "Krippendorff",
        "8 comparisons to train on",
        "story 8",
        "| dpo runs/dpo |",
        "learning_rate = 0.001",
        "an effect below",
        &verdict[..12],
        &hash,
    ] {
        assert!(card.contains(part), "no {part:?} in: {card}");
    }

    let tree = shop.run("lineage production-1 --project DIR/p --svg DIR/l.svg --html DIR/l.html").ok();
    assert!(tree.stdout.starts_with("release production-1"), "{}", tree.stdout);
    for part in [
        "├─ model runs/dpo/model",
        "run dpo runs/dpo",
        "dataset v1",
        "votes 1 to 16",
        "verdict pass",
        "policy ours",
        "ledger ",
    ] {
        assert!(tree.stdout.contains(part), "no {part:?} in: {}", tree.stdout);
    }
    let widest = tree.stdout.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 80, "{widest} columns:\n{}", tree.stdout);
    let drawn = fs::read_to_string(shop.path("l.svg")).unwrap();
    assert!(
        drawn.starts_with("<svg ") && drawn.contains("production-1") && drawn.contains("1 to 16"),
        "{drawn}"
    );
    let page = fs::read_to_string(shop.path("l.html")).unwrap();
    assert!(page.contains(&hash) && page.contains("Every link is what it was"), "{page}");
    let said = json(&shop.done("lineage DIR/p/runs/dpo/model --project DIR/p --json"));
    assert_eq!((&said["verified"], &said["nodes"][0]["kind"]), (&Value::from(true), &Value::from("model")));

    let verified = json(&shop.done("ledger verify --project DIR/p --json"));
    assert_eq!((&verified["releases"], &verified["models"]), (&Value::from(1), &Value::from(1)));
    // What was trained may be tidied away: its hashes are on record, and the release stands.
    fs::remove_dir_all(shop.path("p/runs/dpo")).unwrap();
    let tree = shop.done("lineage production-1 --project DIR/p");
    assert!(tree.contains("gone"), "{tree}");
    shop.done("ledger verify --project DIR/p");
}

#[test]
fn a_release_without_what_it_needs_is_refused_and_recorded() {
    let shop = Shop::new();
    let good = shop.model("good");
    shop.refused("release DIR/good --project DIR/p --channel production", 4, "there is no verdict on model");
    shop.judge(&good, 70, "good").ok();
    let verdict = shop.events("verdict")[0]["hash"].as_str().unwrap()[..16].to_owned();

    // Another model's verdict; a model that fails; one of which too little is known.
    let bad = shop.model("bad");
    shop.refused(
        &format!("release DIR/bad --project DIR/p --channel production --verdict {verdict}"),
        2,
        "is on model",
    );
    assert_eq!(shop.judge(&bad, 30, "bad").code, 3);
    shop.refused("release DIR/bad --project DIR/p --channel production", 3, "on this model is fail");
    let new = shop.model("new");
    assert_eq!(shop.judge(&new, 55, "new").code, 4);
    shop.refused("release DIR/new --project DIR/p --channel production", 4, "on this model is inconclusive");

    // A verdict that a later one overrode, whether it is named or not.
    assert_eq!(shop.judge(&good, 30, "again").code, 3);
    shop.refused("release DIR/good --project DIR/p --channel production", 3, "was overridden");
    shop.refused(
        &format!("release DIR/good --project DIR/p --channel production --verdict {verdict}"),
        3,
        "was overridden",
    );
    shop.judge(&good, 71, "better").ok();
    shop.refused(
        &format!("release DIR/good --project DIR/p --channel production --verdict {verdict}"),
        2,
        "the newest verdict counts",
    );

    // Evidence of three weeks ago: judging it again today makes it no younger.
    let old = shop.model("old");
    let measured = evaluation(&polity_hash(&old), 70, 300).to_string();
    let measured = polity_eval::Evaluation::parse(Path::new("old.json"), &measured).unwrap().canonical();
    let now_ms =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let store =
            polity_store::Store::open(&text(&shop.path("p/store.db")), [0; 32], now_ms).await.unwrap();
        let then_ms = now_ms - 21 * 24 * 60 * 60 * 1000;
        store.add_evaluation(&polity_hash(&old), measured, "old.json", "cli", then_ms).await.unwrap();
        store.close().await;
    });
    let judged = shop.judge(&old, 70, "old").ok();
    assert!(judged.stdout.contains("does not count: its oldest evaluation expired"), "{}", judged.stdout);
    shop.refused("release DIR/old --project DIR/p --channel production", 4, "expired on");

    // A channel that asks for another policy.
    fs::write(shop.path("strict.toml"), POLICY.replace("0.5", "0.9").replace("ours", "strict")).unwrap();
    shop.done("channel production --policy DIR/strict.toml --project DIR/p");
    shop.refused("release DIR/good --project DIR/p --channel production", 2, "asks for strict");
    shop.done("release DIR/good --project DIR/p --channel staging");

    assert_eq!(
        shop.refusals(),
        [
            "no_verdict",
            "other_model",
            "not_passed",
            "not_passed",
            "overridden",
            "overridden",
            "overridden",
            "expired",
            "other_policy"
        ]
    );
    let why = &shop.events("refusal")[7]["body"];
    assert!(why["why"].as_str().unwrap().contains("expired on") && why["channel"] == "production", "{why}");
    assert!(!shop.path("p/releases/production-1").exists());

    // What is no refusal but a mistake is in no ledger.
    shop.refused("release DIR/nothing --project DIR/p --channel staging", 2, "no directory, no release");
    shop.refused("release DIR/good --project DIR/p --channel a/b", 2, "the channel's name");
    shop.refused("release DIR/good --project DIR/p --channel staging --canary-share 1", 2, "between 0 and 1");
    shop.refused(
        "release DIR/good --project DIR/p --channel other --canary-share 0.1",
        2,
        "release without --canary-share first",
    );
    shop.refused("release DIR/good --project DIR/p --channel staging --verdict ffff", 2, "no verdict");
    let adapter = shop.path("adapter");
    fs::create_dir(&adapter).unwrap();
    fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
    shop.refused("release DIR/adapter --project DIR/p --channel staging", 2, "no config.json");
    assert_eq!(shop.refusals().len(), 9);
    shop.done("ledger verify --project DIR/p");
}

#[test]
fn one_approval_of_two_is_not_enough_and_nobody_approves_twice_or_their_own() {
    let shop = Shop::new();
    let token = |name: &str, role: &str| {
        shop.done(&format!("account add {name} --role {role} --project DIR/p")).trim().to_owned()
    };
    let (ann, ben, cid) = (token("ann", "approver"), token("ben", "approver"), token("cid", "approver"));
    let eve = token("eve", "annotator");
    fs::write(shop.path("policy.toml"), format!("approvals = 2\n{POLICY}")).unwrap();
    let model = shop.model("good");
    shop.judge(&model, 70, "good").ok();
    let release =
        |who: Option<&str>| shop.run_as("release DIR/good --project DIR/p --channel production", who);
    let approve =
        |who: Option<&str>| shop.run_as("approve DIR/good --project DIR/p --channel production", who);
    let check = |run: Run, code: i32, says: &str| {
        assert!(run.code == code && run.stderr.contains(says), "{}: {}{}", run.code, run.stdout, run.stderr);
    };
    check(release(None), 1, "it is not known who releases");
    check(release(Some(&cid)), 1, "0 of 2 approvals");
    check(approve(None), 2, "POLITY_TOKEN");
    check(approve(Some("0123")), 2, "this token is not valid");
    check(approve(Some(&eve)), 1, "eve may not approve");
    check(approve(Some(&ann)), 0, "ann approves");
    check(approve(Some(&ann)), 1, "counts once");
    check(release(Some(&cid)), 1, "1 of 2 approvals");
    check(approve(Some(&ben)), 0, "ben approves");
    check(
        release(Some(&ben)),
        1,
        "the approval by ben does not count: who releases is not the second person",
    );
    check(release(Some(&cid)), 0, "production-1");
    assert_eq!(
        shop.refusals(),
        ["unknown_releaser", "approvals", "approver", "approver", "approvals", "approvals"]
    );
    let card = fs::read_to_string(shop.path("p/releases/production-1/README.md")).unwrap();
    assert!(card.contains("- **Approved** by ann") && card.contains("- **Approved** by ben"), "{card}");
    let tree = shop.done("lineage production-1 --project DIR/p");
    assert!(tree.contains("approval by ann") && tree.contains("by cid,"), "{tree}");
    // A role that was taken by hand is no role.
    shop.tamper("account_role", "UPDATE account_role SET role = 'approver' WHERE role = 'annotator'");
    shop.refused("ledger verify --project DIR/p", 1, "roles of account");
    shop.refused("lineage production-1 --project DIR/p", 1, "approval by ann: roles of account");
}

#[test]
fn canary_promotion_and_going_back_to_the_last_good_one() {
    let shop = Shop::new();
    for (i, name) in ["one", "two", "three", "four"].into_iter().enumerate() {
        let model = shop.model(name);
        shop.judge(&model, 70 + i, name).ok();
    }
    let release =
        |what: &str| json(&shop.done(&format!("release {what} --project DIR/p --channel production --json")));
    let served = || {
        let all = json(&shop.done("releases --project DIR/p --json"));
        let name = |which: &str| all[0][which]["release"].as_str().unwrap_or("none").to_owned();
        (name("stable"), name("canary"))
    };
    let back = |more: &str| shop.run(&format!("rollback --project DIR/p --channel production {more}"));
    shop.refused("rollback --project DIR/p --channel production", 2, "nothing was ever released");
    release("DIR/one");
    let run = back("");
    assert!(run.code == 1 && run.stderr.contains("no earlier release that is good"), "{}", run.stderr);
    assert_eq!(release("DIR/two --canary-share 0.1")["canary_share"], 0.1);
    assert_eq!(served(), ("production-1".into(), "production-2".into()));
    release("production-2");
    assert_eq!(served(), ("production-3".into(), "none".into()));
    release("DIR/three");
    release("DIR/four");

    // The third's weights were changed, the second was a canary only.
    let weights = shop.path("p/releases/production-4/model.safetensors");
    let before = flip_a_byte(&weights);
    let run = back("--to production-4");
    assert!(
        run.code == 1
            && run.stderr.contains("production-4: release production-4: model.safetensors was changed"),
        "{}",
        run.stderr
    );
    let run = back("").ok();
    assert_eq!(run.stdout, "production: back from production-5 to production-3\n");
    assert!(
        run.stderr.contains("skipped production-4: release production-4: model.safetensors was changed"),
        "{}",
        run.stderr
    );
    fs::write(&weights, before).unwrap();
    let event = shop.events("rollback").remove(0);
    assert_eq!(
        (&event["body"]["to"], &event["body"]["skipped"][0]["record"]),
        (&"production-3".into(), &"production-4".into())
    );
    // The next one back is the first: the second was a canary.
    let run = back("").ok();
    assert!(run.stderr.contains("skipped production-2: it was a canary only"), "{}", run.stderr);
    assert_eq!(served(), ("production-1".into(), "none".into()));
    let run = back("");
    assert!(run.code == 1, "{}", run.stderr);
    assert_eq!(shop.refusals(), ["no_good_release"; 3]);
    let page = shop.done("releases --project DIR/p");
    assert!(page.contains("* production-1") && page.contains("rolled back to production-3"), "{page}");
    let widest = page.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 80, "{widest} columns:\n{page}");
    shop.done("ledger verify --project DIR/p");
}

#[test]
fn two_releases_side_by_side() {
    let shop = Shop::trained();
    shop.train("other", 2);
    shop.judge(&shop.path("p/runs/other/model"), 80, "other").ok();
    shop.done("release DIR/p/runs/dpo/model --project DIR/p --channel production");
    shop.done("release DIR/p/runs/other/model --project DIR/p --channel production");
    fs::write(shop.path("prompts.jsonl"), "{\"prompt\": \"Once upon a time\"}\n").unwrap();
    let args =
        "diff production-1 production-2 --project DIR/p --prompts DIR/prompts.jsonl --set max_new_tokens=8";
    let said = json(&shop.done(&format!("{args} --json")));
    let row = |part: &str, what: &str| {
        let rows = said[part].as_array().unwrap();
        let row = rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("{said}"));
        (row["a"].as_str().unwrap().to_owned(), row["b"].as_str().unwrap().to_owned())
    };
    assert_eq!(row("settings", "seed"), ("1".into(), "2".into()));
    assert!(said["settings"].as_array().unwrap().iter().all(|row| row["a"] != row["b"]), "{said}");
    let (a, b) = row("measures", "win_rate");
    assert!(a.starts_with("0.7000") && b.starts_with("0.8000"), "{a} {b}");
    let (a, b) = row("data", "dataset v1");
    assert_eq!(a, b);
    let (a, _) = row("responses", "Once upon a time");
    let input = br#"{"prompt": "Once upon a time"}"#;
    let model = text(&shop.path("p/releases/production-1"));
    let args_of = [
        "generate",
        "--model",
        &model,
        "--input",
        "-",
        "--set",
        "max_new_tokens=8",
        "--set",
        "temperature=0",
    ];
    assert_eq!(json(&crate::support::polity_with(args_of, input).ok().stdout)["text"], a.as_str());
    let page = shop.done(args);
    assert!(
        page.contains("Settings that differ") && page.contains("* win_rate") || page.contains("*win_rate"),
        "{page}"
    );
    let widest = page.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 80, "{widest} columns:\n{page}");
    // Responses that the runs wrote down.
    shop.done("diff DIR/p/runs/dpo/model DIR/p/runs/other/model --project DIR/p");
    shop.refused(
        "diff production-1 production-9 --project DIR/p",
        2,
        "releases are production-1, production-2",
    );
}

#[test]
fn a_killed_or_failed_release_leaves_nothing_half() {
    let shop = Shop::new();
    let model = shop.model("good");
    // Not a part of the model's identity, and large enough to be killed in.
    fs::File::create(model.join("big.bin")).unwrap().set_len(1 << 28).unwrap();
    shop.judge(&model, 70, "good").ok();
    let releases = shop.path("p/releases");
    let names = || -> Vec<String> {
        let entries =
            fs::read_dir(&releases).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        entries.filter(|name| name != ".lock").collect()
    };
    let dir = text(shop.dir.path());
    let args = format!("release {dir}/good --project {dir}/p --channel production");
    let mut child = Command::new(env!("CARGO_BIN_EXE_polity"))
        .args(args.split(' '))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the copy to begin", || names().iter().any(|name| name.starts_with(".partial")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(), [".partial-production-1"], "killed in the middle");
    assert_eq!(shop.events("release").len(), 0);
    shop.done("ledger verify --project DIR/p");

    // A file that cannot be read: what was copied is removed.
    std::os::unix::fs::symlink("/nowhere", model.join("z.json")).unwrap();
    let run = shop.run("release DIR/good --project DIR/p --channel production");
    assert_ne!(run.code, 0);
    assert_eq!(names(), Vec::<String>::new(), "{}", run.stderr);
    fs::remove_file(model.join("z.json")).unwrap();

    // One that was whole and not yet on record is set aside.
    fs::create_dir(releases.join("production-1")).unwrap();
    shop.done("release DIR/good --project DIR/p --channel production");
    let mut left = names();
    left.sort();
    assert_eq!(left, ["production-1", "production-1.unrecorded-1"]);
    shop.done("lineage production-1 --project DIR/p");
}

#[test]
fn outside_a_project_a_verdict_is_recorded_nowhere() {
    let shop = Shop::new();
    let model = shop.model("good");
    fs::write(shop.path("good.json"), evaluation(&polity_hash(&model), 70, 300).to_string()).unwrap();
    let run = shop.run("gate DIR/good --policy DIR/policy.toml --measures DIR/good.json").ok();
    assert!(run.stderr.contains("no project here") && !run.stdout.contains("recorded"), "{}", run.stderr);
    let run = polity(["release", "x", "--channel", "production"]);
    assert!(run.code == 2 && run.stderr.contains("polity.toml"), "{}", run.stderr);
    let judged = json(
        &shop.done("gate DIR/good --project DIR/p --policy DIR/policy.toml --measures DIR/good.json --json"),
    );
    let event = shop.events("verdict").remove(0);
    assert_eq!((&judged["recorded"]["id"], &event["body"]["model"]), (&event["hash"], &judged["candidate"]));
    assert_eq!(event["body"]["policy"], judged["policy_hash"]);
    assert_eq!(shop.events("evaluation").len(), 1);
}
