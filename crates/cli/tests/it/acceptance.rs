//! Reward-model acceptance through the binary: an honest model passes, one that learnt length alone is refused for that reason, too few pairs say
//! nothing, and `train ppo` knows.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use polity_eval::acceptance::ACCEPTANCE_POLICY;
use serde_json::{Value, json};

use crate::gate::{evaluation, polity_hash};
use crate::release::POLICY;
use crate::support::{Run, TEMPLATE, polity, stories, text};

const WORDS: [&str; 20] = [
    "the", "a", "cat", "dog", "ran", "to", "big", "red", "sun", "tree", "little", "girl", "boy", "went",
    "home", "day", "play", "with", "mom", "saw",
];

/// Numbers that look random, the same ones each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn answer(&mut self, mood: &str, words: usize) -> String {
        let mut answer: Vec<&str> = (0..words).map(|_| WORDS[self.below(WORDS.len())]).collect();
        answer.insert(self.below(words + 1), mood);
        format!(" {}.", answer.join(" "))
    }
}

/// People prefer happy answers to sad ones, and the happy one is the longer one in `longer` of 10 pairs. `by_length` are the same answers, the longer
/// one preferred.
fn pairs(seed: u64, n: usize, longer: usize, by_length: bool) -> String {
    let mut dice = Dice(seed);
    (0..n).fold(String::new(), |mut rows, i| {
        let (few, many, is_longer) = (2 + dice.below(4), 9 + dice.below(6), dice.below(10) < longer);
        let happy = dice.answer("happy", if is_longer { many } else { few });
        let sad = dice.answer("sad", if is_longer { few } else { many });
        let [chosen, rejected] = if is_longer || !by_length { [happy, sad] } else { [sad, happy] };
        let prompt = format!("Tell me about the {} {seed}{i}.", WORDS[dice.below(WORDS.len())]);
        writeln!(rows, "{}", json!({"prompt": prompt, "chosen": chosen, "rejected": rejected})).unwrap();
        rows
    })
}

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// A reward model that learnt moods, or lengths, and suites of 300 and 60 pairs.
    fn new(by_length: bool) -> Lab {
        let lab = Lab { dir: tempfile::tempdir().unwrap() };
        lab.write("train.jsonl", &pairs(1, 500, 5, by_length));
        lab.write("test.jsonl", &pairs(2, 300, 6, false));
        lab.write("few.jsonl", &pairs(3, 60, 6, false));
        for (suite, rows) in [("suite", "test"), ("few", "few"), ("seen", "train")] {
            let toml = format!("name = \"{suite}\"\nkind = \"preference\"\nrows = \"{rows}.jsonl\"\n");
            lab.write(&format!("{suite}.toml"), &toml);
        }
        lab.run(
            "train reward --model STORIES --data DIR/train.jsonl --out DIR/reward --set num_train_epochs=2 \
             --set per_device_train_batch_size=16 --set learning_rate=2e-3",
        )
        .ok();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    fn run(&self, words: &str) -> Run {
        self.run_with(words, &[])
    }

    fn run_with(&self, words: &str, more: &[&str]) -> Run {
        let dir = text(self.dir.path());
        let words =
            words.split_whitespace().map(|word| word.replace("DIR", &dir).replace("STORIES", &stories()));
        polity(words.chain(more.iter().map(|&word| word.to_owned())))
    }

    /// What `polity eval` says as JSON.
    fn measured(&self, flags: &str) -> Value {
        let run = self.run(&format!("eval DIR/reward/model --out DIR/measures --json {flags}")).ok();
        serde_json::from_str(&run.stdout).unwrap()
    }

    /// The files beside the reward model.
    fn acceptances(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("reward/model.acceptance")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// One step of PPO against the reward model.
    fn ppo(&self, out: &str, more: &[&str]) -> Run {
        let words = format!(
            "train ppo --model STORIES --reward-model DIR/reward/model --data DIR/few.jsonl --out DIR/{out} --set max_steps=1 \
             --set per_device_train_batch_size=4 --set num_mini_batches=1 --set num_ppo_epochs=1 --set response_length=8"
        );
        self.run_with(&words, more)
    }

    fn manifest(&self, out: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(out).join("manifest.json")).unwrap()).unwrap()
    }
}

fn flat(run: &Run) -> String {
    format!("{} {}", run.stdout, run.stderr).split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn says(run: &Run, code: i32, parts: &[&str]) {
    let said = flat(run);
    assert_eq!(run.code, code, "{said}");
    parts.iter().for_each(|part| assert!(said.contains(part), "no {part:?} in: {said}"));
}

fn estimate(said: &Value, name: &str, category: Option<&str>) -> f64 {
    let measures = said["measures"].as_array().unwrap().iter();
    let mut found =
        measures.filter(|measure| measure["name"] == name && measure["category"] == json!(category));
    found.next().unwrap_or_else(|| panic!("no {name} {category:?}"))["estimate"].as_f64().unwrap()
}

#[test]
fn an_honest_model_passes_and_too_few_pairs_say_nothing() {
    let lab = Lab::new(false);
    says(&lab.ppo("unknown", &[]), 0, &["nothing is known of the reward model"]);
    assert_eq!(lab.manifest("unknown")["acceptance"], Value::Null);

    let few = lab.measured("--suite DIR/few.toml");
    assert_eq!(few["acceptance"]["verdict"]["verdict"], "inconclusive");
    says(&lab.ppo("few", &[]), 0, &["is inconclusive", "60 prompts, and the policy asks for 149"]);

    let said = lab.measured("--suite DIR/suite.toml");
    assert_eq!(said["acceptance"]["verdict"]["verdict"], "pass", "{}", said["acceptance"]);
    assert!(estimate(&said, "accuracy", None) > 0.95);
    assert_eq!((estimate(&said, "identical_tie", None), estimate(&said, "swap_negates", None)), (1.0, 1.0));
    let file = said["file"].as_str().unwrap();
    lab.run_with("gate DIR/reward/model --policy reward-model --measures", &[file]).ok();
    let run = lab.ppo("ppo", &["--override-acceptance", "to be sure"]);
    says(&run, 0, &["--override-acceptance overrides nothing: the verdict is pass"]);
    let acceptance = &lab.manifest("ppo")["acceptance"];
    assert_eq!((&acceptance["verdict"], &acceptance["overridden"]), (&json!("pass"), &Value::Null));

    // Another suite or policy leaves the others' files as they are, and the newest of them counts.
    let failing = ACCEPTANCE_POLICY.replace("limit = 0.10", "limit = -0.5");
    lab.write("strict.toml", &failing.replace("reward-model", "strict"));
    let strict = lab.measured("--suite DIR/suite.toml --policy DIR/strict.toml");
    let files: Vec<&str> =
        [&few, &said, &strict].map(|said| said["acceptance"]["file"].as_str().unwrap()).to_vec();
    assert_eq!(lab.acceptances().iter().map(|file| text(file)).collect::<BTreeSet<_>>().len(), 3);
    let verdicts = files.iter().map(|file| {
        let said: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        said["verdict"]["verdict"].as_str().unwrap().to_owned()
    });
    assert_eq!(verdicts.collect::<Vec<_>>(), ["inconclusive", "pass", "fail"]);
    says(&lab.ppo("strict", &[]), 3, &["failed its acceptance under policy strict"]);
    fs::remove_file(files[2]).unwrap();

    // The same again is found; another member, candidates and a curve are another evaluation.
    assert_eq!(lab.measured("--suite DIR/suite.toml")["known"], true);
    let candidates = (0..40).fold(String::new(), |mut rows, i| {
        let mut dice = Dice(i);
        for n in 0..8 {
            let answer = dice.answer(if n % 2 == 0 { "happy" } else { "sad" }, 4 + n);
            let gold = f64::from(u8::from(n % 2 == 0)) + 0.01 * dice.below(10) as f64;
            writeln!(rows, "{}", json!({"prompt": format!("Say {i}."), "completion": answer, "gold": gold}))
                .unwrap();
        }
        rows
    });
    lab.write("candidates.jsonl", &candidates);
    let curve = [(1, 0.3), (4, 0.5), (9, 0.55), (16, 0.4)]
        .map(|(step, gold)| json!({"step": step, "kl": step, "gold": gold}).to_string());
    lab.write("curve.jsonl", &curve.join("\n"));
    let said = lab.measured(
        "--suite DIR/suite.toml --suite DIR/few.toml --beside DIR/reward/model --candidates DIR/candidates.jsonl --curve DIR/curve.jsonl",
    );
    assert_eq!((&said["known"], &said["suite_name"]), (&json!(false), &json!("suite+few")));
    assert_eq!(estimate(&said, "ensemble_agreement", None), 1.0);
    assert!(estimate(&said, "accuracy", Some("few")) > 0.9);
    // Half are happy: the best of 8 gains ½ if the model finds them.
    assert!(estimate(&said, "best_of_n_gold", Some("n = 8")) > 0.45);
    assert!(estimate(&said, "rl_beta", None) > 0.0);
    // With itself as gold the gains are the same.
    let itself = lab
        .measured("--suite DIR/suite.toml --candidates DIR/candidates.jsonl --gold-model DIR/reward/model");
    for n in ["n = 2", "n = 8"] {
        let gain = |name| estimate(&itself, name, Some(n));
        assert_eq!(gain("best_of_n_gold"), gain("best_of_n_proxy"));
    }

    // A policy samples them itself, the same ones each time: 8 to each of the 60 prompts, for the n that the suite names.
    lab.write("asked.toml", "name = \"asked\"\nkind = \"preference\"\nrows = \"few.jsonl\"\n[settings]\nn = 8\nmax_new_tokens = 6\n");
    let flags = "--suite DIR/asked.toml --candidates STORIES --gold-model DIR/reward/model";
    let sampled = lab.measured(flags);
    let gain = |name| estimate(&sampled, name, Some("n = 8"));
    assert_eq!(gain("best_of_n_gold"), gain("best_of_n_proxy"));
    assert!(gain("best_of_n_gold") > 0.0);
    assert_eq!(lab.measured(flags)["known"], true);
    let responses = fs::read_dir(lab.path("measures/responses")).unwrap().next().unwrap().unwrap().path();
    let rows: Vec<Value> = fs::read_to_string(responses)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 60 * 8);
    // From a file they are worth the same.
    let prompts: Vec<Value> = fs::read_to_string(lab.path("few.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["prompt"].clone())
        .collect();
    let in_file = rows.iter().fold(String::new(), |mut lines, row| {
        let prompt = &prompts[row["id"].as_str().unwrap().parse::<usize>().unwrap()];
        writeln!(lines, "{}", json!({"prompt": prompt, "completion": row["text"]})).unwrap();
        lines
    });
    lab.write("sampled.jsonl", &in_file);
    let read =
        lab.measured("--suite DIR/asked.toml --candidates DIR/sampled.jsonl --gold-model DIR/reward/model");
    assert_eq!(estimate(&read, "best_of_n_gold", Some("n = 8")), gain("best_of_n_gold"));

    // A prompt and responses in messages are the same pair as the texts asked in chat, and nothing to a model without a template.
    let in_messages = fs::read_to_string(lab.path("few.jsonl")).unwrap().lines().fold(String::new(), |mut rows, row| {
        let row: Value = serde_json::from_str(row).unwrap();
        let said = |role: &str, key: &str| json!([{"role": role, "content": row[key]}]);
        let row = json!({
            "prompt": said("user", "prompt"), "chosen": said("assistant", "chosen"), "rejected": said("assistant", "rejected"),
        });
        writeln!(rows, "{row}").unwrap();
        rows
    });
    lab.write("talk.jsonl", &in_messages);
    lab.write("talk.toml", "name = \"talk\"\nkind = \"preference\"\nrows = \"talk.jsonl\"\n");
    fs::create_dir_all(lab.path("chat/model")).unwrap();
    for entry in fs::read_dir(lab.path("reward/model")).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, lab.path("chat/model").join(from.file_name().unwrap())).unwrap();
    }
    lab.write("chat/model/chat_template.jinja", TEMPLATE);
    let in_chat = |suite: &str| -> Value {
        let run =
            lab.run(&format!("eval DIR/chat/model --out DIR/measures --json --suite DIR/{suite}.toml")).ok();
        serde_json::from_str::<Value>(&run.stdout).unwrap()["measures"].take()
    };
    assert_eq!(in_chat("talk"), in_chat("few"));
    says(
        &lab.run("eval DIR/reward/model --out DIR/measures --suite DIR/talk.toml"),
        2,
        &["suite talk has prompts in messages", "no chat template"],
    );

    let refused = |words: &str, parts: &[&str]| says(&lab.run(words), 2, parts);
    refused(
        "eval DIR/reward/model --out DIR/measures --suite DIR/few.toml --candidates STORIES",
        &["is a policy, and nothing gives its samples' true reward", "--gold-model"],
    );
    refused(
        "eval DIR/reward/model --out DIR/measures --suite DIR/seen.toml",
        &["was trained on all 500 pairs", "another file"],
    );
    refused(
        "eval DIR/reward/model --out DIR/measures --suite DIR/suite.toml --baseline STORIES",
        &["--baseline is for language models"],
    );
    refused(
        "eval STORIES --out DIR/measures --suite DIR/suite.toml --beside STORIES",
        &["--beside is for reward models"],
    );
    refused(
        "eval DIR/reward/model --out DIR/measures --suite DIR/suite.toml --candidates DIR/test.jsonl",
        &["no number `gold`"],
    );
}

#[test]
fn a_model_that_learnt_length_is_refused_for_that_reason() {
    let lab = Lab::new(true);
    let run = lab.run("eval DIR/reward/model --out DIR/measures --suite DIR/suite.toml").ok();
    says(&run, 0, &["FAIL", "fail beats-longer-wins at most 0.0", "needed 0.02"]);
    let widest = run.stdout.lines().filter(|line| !line.contains('/')).map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{widest:?} columns:\n{}", run.stdout);
    says(
        &lab.run("gate DIR/reward/model --measures DIR/measures"),
        3,
        &["under policy reward-model", "the gate's verdict is fail", "beats-longer-wins"],
    );
    says(
        &lab.run("gate DIR/reward/model --policy default --measures DIR/measures"),
        4,
        &["under policy default"],
    );

    let why = [
        "failed its acceptance under policy reward-model",
        "beats-longer-wins: at most 0.0",
        "--override-acceptance",
    ];
    says(&lab.ppo("ppo", &[]), 3, &why);
    assert!(!lab.path("ppo").exists(), "a refused run leaves nothing behind");
    says(&lab.ppo("ppo", &["--override-acceptance", ""]), 2, &["override-acceptance"]);
    says(
        &lab.ppo("ppo", &["--override-acceptance", "a test of hacking"]),
        0,
        &["overridden: a test of hacking"],
    );
    let acceptance = lab.manifest("ppo")["acceptance"].clone();
    assert_eq!(
        (&acceptance["verdict"], &acceptance["overridden"]),
        (&json!("fail"), &json!("a test of hacking"))
    );
    assert!(acceptance["reasons"][0].as_str().unwrap().starts_with("beats-longer-wins"), "{acceptance}");

    // A verdict that was edited is found out, and one of other weights counts for nothing.
    let files = lab.acceptances();
    let [file] = files.as_slice() else { panic!("one file, not {files:?}") };
    let whole = fs::read_to_string(file).unwrap();
    let edited = whole.replace("\"verdict\":{\"verdict\":\"fail\"", "\"verdict\":{\"verdict\":\"pass\"");
    assert_ne!(edited, whole);
    fs::write(file, edited).unwrap();
    says(&lab.ppo("edited", &[]), 2, &["judged again it is fail", "polity eval"]);
    fs::write(file, &whole).unwrap();
    let config = lab.path("reward/model/config.json");
    let before = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{before}\n")).unwrap();
    says(&lab.ppo("other", &[]), 0, &["nothing is known of the reward model", "is of model"]);
    fs::write(&config, before).unwrap();

    // Inside a project the ledger knows it too, without the file.
    fs::remove_file(file).unwrap();
    lab.run("init DIR/p").ok();
    says(
        &lab.run("gate DIR/reward/model --policy reward-model --measures DIR/measures --project DIR/p"),
        3,
        &["recorded as verdict"],
    );
    says(&lab.ppo("p/runs/ppo", &[]), 3, &why);
    says(&lab.ppo("p/runs/ppo", &["--override-acceptance", "we need a bad one"]), 0, &["we need a bad one"]);
    says(
        &lab.run("lineage DIR/p/runs/ppo/model --project DIR/p"),
        0,
        &["overridden: we need a bad one", "verdict fail", "policy reward-model"],
    );

    // And so does the card of what came out of it.
    lab.write("release.toml", POLICY);
    let won = evaluation(&polity_hash(&lab.path("p/runs/ppo/model")), 70, 300);
    lab.write("won.json", &won.to_string());
    lab.run("gate DIR/p/runs/ppo/model --project DIR/p --policy DIR/release.toml --measures DIR/won.json")
        .ok();
    lab.run("release DIR/p/runs/ppo/model --project DIR/p --channel production").ok();
    let card = fs::read_to_string(lab.path("p/releases/production-1/README.md")).unwrap();
    let line = card.lines().find(|line| line.starts_with("The reward model of runs/ppo: ")).unwrap();
    for part in [
        "acceptance **fail** under the policy reward-model",
        "beats-longer-wins",
        "**Overridden**: we need a bad one",
    ] {
        assert!(line.contains(part), "no {part:?} in: {line}");
    }
}
