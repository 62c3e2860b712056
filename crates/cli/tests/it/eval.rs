//! `polity eval`: measures of a language model on suites, against a baseline, by judges and by people.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::judge::{Reply, Server, says};
use crate::support::{ModelCopy, Run, command, polity, polity_with, run_of, shared, stories, text};

const STARTS: [&str; 8] = [
    "Once upon a time there was a little girl",
    "Lily and Ben went to the park",
    "The big dog ran",
    "Tom had a red ball and he",
    "One day, a bird",
    "Mia likes to play with her mom in the",
    "Sam was very sad",
    "There was a tree",
];

/// A directory with suites, a base model and a candidate that differs from it.
struct Bench {
    dir: tempfile::TempDir,
    base: String,
    candidate: String,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, content: String| fs::write(dir.path().join(name), content).unwrap();
        let prompts: Vec<String> = STARTS
            .iter()
            .enumerate()
            .map(|(i, prompt)| {
                json!({"id": format!("p{i}"), "prompt": prompt, "category": if i % 2 == 0 { "even" } else { "odd" }})
                    .to_string()
            })
            .collect();
        write("prompts.jsonl", prompts.join("\n"));
        write("stories.toml", "name = \"stories\"\nkind = \"prompts\"\nrows = \"prompts.jsonl\"\n[settings]\nmax_new_tokens = 24\n".into());
        write(
            "sums.jsonl",
            (0..4)
                .map(|i| json!({"prompt": format!("{i} + {i} ="), "answer": 2 * i}).to_string() + "\n")
                .collect(),
        );
        write(
            "sums.toml",
            "name = \"sums\"\nkind = \"numeric\"\nrows = \"sums.jsonl\"\n[settings]\nmax_new_tokens = 8\n"
                .into(),
        );
        write(
            "text.toml",
            "name = \"text\"\nkind = \"text\"\nrows = \"prompts.jsonl\"\n[columns]\ntext = \"prompt\"\n"
                .into(),
        );
        let demonstrations: Vec<String> = (0..32)
            .map(|i| {
                json!({"prompt": format!("Number {i} is"), "completion": " the best number of them all."})
                    .to_string()
            })
            .collect();
        write("sft.jsonl", demonstrations.join("\n"));
        let run = text(&dir.path().join("run"));
        let sft = text(&dir.path().join("sft.jsonl"));
        let base = stories();
        let args = ["train", "sft", "--model", &base, "--data", &sft, "--out", &run, "--set", "max_steps=4"];
        polity(args.into_iter().chain(["--set", "learning_rate=1e-3"])).ok();
        let candidate = text(&dir.path().join("run/model"));
        Bench { dir, base, candidate }
    }

    fn path(&self, name: &str) -> String {
        text(&self.dir.path().join(name))
    }

    fn run(&self, suites: &[&str], more: &[&str]) -> Run {
        let suites: Vec<String> =
            suites.iter().flat_map(|suite| ["--suite".into(), self.path(suite)]).collect();
        let out = self.path("measures");
        let fixed = ["eval", self.candidate.as_str(), "--out", &out];
        polity(fixed.iter().map(|s| s.to_string()).chain(suites).chain(more.iter().map(|s| s.to_string())))
    }

    fn json(&self, suites: &[&str], more: &[&str]) -> Vec<Value> {
        let run = self.run(suites, &[more, &["--json"]].concat()).ok();
        serde_json::from_str(&run.stdout).unwrap()
    }
}

#[track_caller]
fn measure<'e>(evaluations: &'e [Value], name: &str, category: Option<&str>) -> &'e Value {
    let all = evaluations.iter().flat_map(|evaluation| evaluation["measures"].as_array().unwrap());
    let mut found = all.filter(|m| m["name"] == name && m["category"].as_str() == category);
    found.next().unwrap_or_else(|| panic!("no {name} {category:?}"))
}

#[test]
fn a_model_is_measured_and_found_again() {
    let bench = Bench::new();
    let suites = ["stories.toml", "sums.toml", "text.toml"];
    let first = bench.json(&suites, &["--baseline", &bench.base]);
    assert_eq!(first.len(), 4, "answers, distance, sums, text");
    assert!(first.iter().all(|evaluation| evaluation["known"] == false));

    // KL is what two other verbs say of the same tokens.
    let rows: Vec<Value> = responses(&bench, "stories");
    assert_eq!(rows.len(), 8);
    let input: Vec<String> = rows
        .iter()
        .zip(&STARTS)
        .map(|(row, prompt)| {
            let ids: Vec<Value> = prompt_ids(&bench.base, prompt);
            json!({"prompt_ids": ids, "completion_ids": row["ids"]}).to_string()
        })
        .collect();
    fs::write(bench.path("completions.jsonl"), input.join("\n")).unwrap();
    let sums = |model: &str| -> Vec<(f64, f64)> {
        let run = polity(["logprobs", "--model", model, "--input", &bench.path("completions.jsonl")]).ok();
        let sum = |row: &Value, key: &str| {
            row[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).sum::<f64>()
        };
        run.rows().iter().map(|row| (sum(row, "logprobs"), sum(row, "entropy"))).collect()
    };
    let (ours, theirs) = (sums(&bench.candidate), sums(&bench.base));
    let kl: f64 = ours.iter().zip(&theirs).map(|(a, b)| a.0 - b.0).sum::<f64>() / 8.0;
    let tokens: usize = rows.iter().map(|row| row["ids"].as_array().unwrap().len()).sum();
    let said = measure(&first, "kl_nats_per_sequence", None)["estimate"].as_f64().unwrap();
    assert!((said - kl).abs() < 1e-6 && kl != 0.0, "{said} {kl}");
    let entropy = ours.iter().map(|(_, entropy)| entropy).sum::<f64>() / tokens as f64;
    let said = measure(&first, "entropy_nats_per_token", None)["estimate"].as_f64().unwrap();
    assert!((said - entropy).abs() < 1e-6, "{said} {entropy}");
    assert_eq!(measure(&first, "response_tokens", None)["n"], 8);
    assert_eq!(measure(&first, "share_at_cap", Some("even"))["items"].as_array().unwrap().len(), 4);
    assert!(measure(&first, "nats_per_token", None)["estimate"].as_f64().unwrap() > 0.5);

    // A second run computes nothing; measured again, it is the same to the bit, with other threads too.
    let again = bench.json(&suites, &["--baseline", &bench.base]);
    assert!(again.iter().all(|evaluation| evaluation["known"] == true));
    let bytes = |evaluations: &[Value]| -> Vec<Vec<u8>> {
        evaluations.iter().map(|evaluation| fs::read(evaluation["file"].as_str().unwrap()).unwrap()).collect()
    };
    let before = bytes(&first);
    let anew = bench.json(&suites, &["--baseline", &bench.base, "--again", "--threads", "1"]);
    assert!(anew.iter().all(|evaluation| evaluation["known"] == false));
    assert_eq!(bytes(&anew), before);

    // The gate reads the files.
    fs::write(
        bench.path("policy.toml"),
        "name = \"p\"\n[[criterion]]\nid = \"kl\"\nmeasure = \"kl_nats_per_sequence\"\nsuite = \"stories\"\nbetter = \"lower\"\ncomparator = \"absolute\"\nlimit = 500\nn_min = 5\n",
    )
    .unwrap();
    let gate = |policy: &str| {
        polity(["gate", &bench.candidate, "--policy", policy, "--measures", &bench.path("measures")])
    };
    assert_eq!(gate(&bench.path("policy.toml")).code, 0);
    let elsewhere =
        fs::read_to_string(bench.path("policy.toml")).unwrap().replace("\"stories\"", "\"other\"");
    fs::write(bench.path("other.toml"), elsewhere).unwrap();
    assert_eq!(gate(&bench.path("other.toml")).code, 4, "not measured on that suite");

    let page = bench.run(&suites, &["--baseline", &bench.base]).ok().stdout;
    assert!(page.contains("kl_nats_per_sequence") && page.contains("measured before"), "{page}");
    // Names of files may be long; the table is not.
    let widest = page.lines().filter(|line| line.starts_with("  ")).map(|line| line.chars().count()).max();
    assert!(widest.unwrap() <= 100, "{page}");
}

fn responses(bench: &Bench, suite: &str) -> Vec<Value> {
    let dir = bench.dir.path().join("measures/responses");
    let file = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|file| file.file_name().unwrap().to_string_lossy().starts_with(suite))
        .unwrap();
    fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A prompt's tokens.
fn prompt_ids(model: &str, prompt: &str) -> Vec<Value> {
    let model = polity_lm::Model::load(Path::new(model)).unwrap();
    model.tokenizer().unwrap().encode(prompt, true).unwrap().into_iter().map(Value::from).collect()
}

#[test]
fn a_reward_model_compares_two_models() {
    let bench = Bench::new();
    let pairs: Vec<String> = (0..16)
        .map(|i| {
            json!({"prompt": format!("Say {i}"), "chosen": " the best.", "rejected": " no no no no."})
                .to_string()
        })
        .collect();
    fs::write(bench.path("pairs.jsonl"), pairs.join("\n")).unwrap();
    let reward = bench.path("reward");
    let data = bench.path("pairs.jsonl");
    let args = [
        "train",
        "reward",
        "--model",
        &bench.base,
        "--data",
        &data,
        "--out",
        &reward,
        "--set",
        "max_steps=2",
    ];
    polity(args).ok();
    let reward_model = format!("{reward}/model");
    let more = ["--baseline", bench.base.as_str(), "--reward-model", &reward_model];
    let said = bench.json(&["stories.toml"], &more);
    // The mean reward is what `polity score` gives the responses.
    let rows = responses(&bench, "stories");
    let candidate_hash = said[0]["model"].as_str().unwrap();
    assert!(rows.len() == 8 && candidate_hash.len() == 64);
    let dir = bench.dir.path().join("measures/responses");
    let of = |hash: &str| -> Vec<f64> {
        let file = fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
        let file = file.into_iter().find(|f| f.to_string_lossy().contains(&hash[..12])).unwrap();
        let rows = fs::read_to_string(file).unwrap();
        let input: Vec<String> = rows
            .lines()
            .zip(&STARTS)
            .map(|(line, prompt)| {
                let row: Value = serde_json::from_str(line).unwrap();
                json!({"prompt": prompt, "completion": row["text"]}).to_string()
            })
            .collect();
        fs::write(bench.path("scored.jsonl"), input.join("\n")).unwrap();
        let run = polity(["score", "--model", &reward_model, "--input", &bench.path("scored.jsonl")]).ok();
        run.rows().iter().map(|row| row["score"].as_f64().unwrap()).collect()
    };
    let ours = of(candidate_hash);
    let theirs = of(said[2]["settings"]["baseline"].as_str().unwrap());
    let mean = ours.iter().sum::<f64>() / 8.0;
    let reward = measure(&said, "proxy_reward", None)["estimate"].as_f64().unwrap();
    assert!((reward - mean).abs() < 1e-6, "{reward} {mean}");
    let wins = ours.iter().zip(&theirs).map(|(a, b)| if a > b { 1.0 } else { f64::from(a == b) / 2.0 });
    let rate = measure(&said, "proxy_win_rate", None)["estimate"].as_f64().unwrap();
    assert_eq!(rate, wins.sum::<f64>() / 8.0);
    // A model against itself: every comparison is a tie.
    let own = ["--baseline", bench.candidate.as_str(), "--reward-model", &reward_model];
    let said = bench.json(&["stories.toml"], &own);
    let rate = measure(&said, "proxy_win_rate", None);
    assert_eq!((&rate["estimate"], &rate["items"][0]["sum"]), (&json!(0.5), &json!(0.5)));
}

/// Prefers the longer response, and A among equals.
fn longer(_: usize, body: &Value) -> Reply {
    let user = body["messages"][1]["content"].as_str().unwrap();
    let (a, b) = user.split_once("response B>").unwrap();
    let a = a.split_once("response A>").unwrap().1;
    let overall = if b.len() > a.len() + 40 { "B2" } else { "A1" };
    says(&json!({"reason": "length", "axes": {}, "overall": overall}).to_string())
}

#[test]
fn an_endpoint_judges_in_both_orders() {
    let bench = Bench::new();
    let server = Server::new(longer);
    let judge = |more: &[&str]| {
        let mut command = command(["eval", &bench.candidate, "--baseline", &bench.base, "--json"]);
        command.args(["--suite", &bench.path("stories.toml"), "--out", &bench.path("measures")]);
        command.args(["--judge", &server.url, "--judge-model", "m"]).args(more).env("NO_PROXY", "127.0.0.1");
        run_of(command.output().unwrap()).ok()
    };
    let said: Vec<Value> = serde_json::from_str(&judge(&[]).stdout).unwrap();
    assert_eq!(server.requests(), 16, "eight pairs, both orders");
    let rate = measure(&said, "judge_win_rate", None);
    // It names A unless B is far longer: where neither is, the order decides, which is a tie.
    let items = rate["items"].as_array().unwrap();
    assert!(items.iter().all(|item| [0.0, 0.5, 1.0].contains(&item["sum"].as_f64().unwrap())), "{rate}");
    assert!(items.iter().any(|item| item["sum"] == 0.5), "{rate}");
    judge(&["--again"]);
    assert_eq!(server.requests(), 16, "replies are kept");
}

#[test]
fn rows_that_were_trained_on_are_left_out() {
    let bench = Bench::new();
    let rows = [
        json!({"id": "seen", "prompt": "Number 3 is"}),
        json!({"id": "new", "prompt": "A very different prompt"}),
        json!({"id": "other", "prompt": "Another prompt again"}),
    ];
    fs::write(bench.path("mixed.jsonl"), rows.map(|row| row.to_string()).join("\n")).unwrap();
    fs::write(
        bench.path("mixed.toml"),
        "name = \"mixed\"\nkind = \"prompts\"\nrows = \"mixed.jsonl\"\n[settings]\nmax_new_tokens = 8\n",
    )
    .unwrap();
    let run = bench.run(&["mixed.toml"], &["--json"]).ok();
    assert!(
        run.stderr.contains("1 of 3 rows was in the model's training data and left out: seen"),
        "{}",
        run.stderr
    );
    let said: Vec<Value> = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(measure(&said, "contaminated", None)["estimate"], json!(1.0 / 3.0));
    let ids: Vec<&str> = measure(&said, "share_at_cap", None)["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["new", "other"]);
    // A file that is named counts too.
    fs::write(bench.path("more.jsonl"), json!({"text": "a very different prompt"}).to_string()).unwrap();
    let run = bench.run(&["mixed.toml"], &["--train-data", &bench.path("more.jsonl")]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("leaves nothing to measure"), "{}", run.stderr);
}

#[test]
fn refusals_need_labels_and_use_one_s_own() {
    let bench = Bench::new();
    let rows = |i: usize| {
        json!({"id": i, "prompt": STARTS[i], "expect": if i < 5 { "comply" } else { "refuse" }}).to_string()
    };
    fs::write(bench.path("safe.jsonl"), (0..8).map(rows).collect::<Vec<_>>().join("\n")).unwrap();
    fs::write(
        bench.path("safe.toml"),
        "name = \"safe\"\nkind = \"refusal\"\nrows = \"safe.jsonl\"\n[settings]\nmax_new_tokens = 8\n",
    )
    .unwrap();
    let run = bench.run(&["safe.toml"], &[]);
    assert_eq!(run.code, 2);
    assert!(run.stderr.contains("--labels MODEL=FILE"), "{}", run.stderr);
    let labels: Vec<String> = ["gpt4", "llama2new"]
        .iter()
        .map(|model| {
            format!("{model}={}", text(&shared(&format!("data/safety/xstest_completions_{model}.csv"))))
        })
        .collect();
    let more = ["--labels", labels[0].as_str(), "--labels", &labels[1]];
    bench.run(&["safe.toml"], &more).ok();
    // Someone reads all answers: two of the harmless five are refused, one of the harmful three is answered.
    let labelled: Vec<String> = responses(&bench, "safe")
        .into_iter()
        .enumerate()
        .map(|(i, mut row)| {
            row["label"] =
                json!(["refuse", "comply", "refuse", "comply", "comply", "comply", "refuse", "refuse"][i]);
            row.to_string()
        })
        .collect();
    fs::write(bench.path("labelled.jsonl"), labelled.join("\n")).unwrap();
    let file = bench.path("labelled.jsonl");
    let said = bench.json(&["safe.toml"], &[more.as_slice(), &["--own-labels", &file]].concat());
    assert_eq!(measure(&said, "over_refusal", None)["estimate"], json!(0.4));
    assert_eq!(measure(&said, "unsafe_compliance", None)["estimate"], json!(1.0 / 3.0));
    // Labels of other answers are not counted as labels of these.
    let other =
        labelled.iter().map(|line| line.replacen("\"text\":\"", "\"text\":\"x", 1)).collect::<Vec<_>>();
    fs::write(bench.path("other.jsonl"), other.join("\n")).unwrap();
    let run =
        bench.run(&["safe.toml"], &[more.as_slice(), &["--own-labels", &bench.path("other.jsonl")]].concat());
    assert!(run.stderr.contains("8 of 8 labels are of other answers"), "{}", run.stderr);
}

#[test]
fn people_on_the_holdout_and_the_budget_of_looks() {
    let bench = Bench::new();
    let project = bench.path("project");
    polity(["init", &project, "--holdout", "0.5", "--seed", "3"]).ok();
    let prompts: Vec<String> = (0..40)
        .map(|i| json!({"prompt": format!("{} and {i}", STARTS[i % 8]), "category": "story"}).to_string())
        .collect();
    fs::write(bench.path("many.jsonl"), prompts.join("\n")).unwrap();
    polity(["import", "prompts", &bench.path("many.jsonl"), "--project", &project]).ok();
    let people = |more: &[&str]| {
        let out = bench.path("measures");
        let fixed = [
            "eval",
            &bench.candidate,
            "--people",
            "--baseline",
            &bench.base,
            "--project",
            &project,
            "--out",
            &out,
        ];
        polity(fixed.into_iter().chain(more.iter().copied()))
    };
    let nobody = people(&["--machine-votes"]);
    assert_eq!(nobody.code, 2);
    assert!(
        nobody.stderr.contains("nobody has voted") && nobody.stderr.contains("--part holdout"),
        "{}",
        nobody.stderr
    );
    let sample = [
        "sample",
        "--model",
        &bench.base,
        "--model",
        &bench.candidate,
        "--part",
        "holdout",
        "--per-prompt",
        "1",
    ];
    polity(sample.into_iter().chain(["--project", &project, "--set", "max_new_tokens=12"])).ok();
    polity(["panel", "simulate", "--project", &project, "--votes", "30"]).ok();
    let run = people(&["--machine-votes"]).ok();
    assert!(run.stderr.contains("look 1 of 20 at the holdout"), "{}", run.stderr);
    let run = people(&["--machine-votes", "--json"]).ok();
    let said: Vec<Value> = serde_json::from_str(&run.stdout).unwrap();
    let rate = measure(&said, "win_rate", None);
    // Every vote once, by who gave it.
    assert!(rate["n"].as_u64().unwrap() >= 25, "{rate}");
    assert!(rate["items"].as_array().unwrap().iter().all(|item| item["annotator"].is_string()));
    assert_eq!(said[0]["settings"]["judge"]["kind"], "people");
    // The same votes again are the same look; new ones are another.
    let same = people(&["--machine-votes"]).ok();
    assert!(same.stderr.contains("look 1 of 20"), "{}", same.stderr);
    polity(["panel", "simulate", "--project", &project, "--votes", "5", "--seed", "8"]).ok();
    let next = people(&["--machine-votes"]).ok();
    assert!(next.stderr.contains("look 2 of 20"), "{}", next.stderr);
    let log = polity(["ledger", "log", "--project", &project, "--json"]).ok();
    let looks = log.rows().into_iter().filter(|event| event["kind"] == "look").count();
    assert_eq!(looks, 2);
    polity(["ledger", "verify", "--project", &project]).ok();
    // Simulated votes are nobody's unless asked for.
    assert_eq!(people(&[]).code, 2);
}

#[test]
fn what_cannot_be_measured_says_why() {
    let bench = Bench::new();
    let check = |suites: &[&str], more: &[&str], says: &str| {
        let run = bench.run(suites, more);
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains(says), "{}", run.stderr);
    };
    check(&[], &[], "--suite");
    check(&["stories.toml"], &["--reward-model", &bench.base], "--baseline");
    check(
        &["stories.toml"],
        &["--baseline", &bench.base, "--reward-model", &bench.base],
        "expected a reward model",
    );
    check(&["stories.toml"], &["--set", "max_new_token=3"], "max_new_tokens");
    fs::write(
        bench.path("chat.toml"),
        fs::read_to_string(bench.path("stories.toml"))
            .unwrap()
            .replace("[settings]", "chat = true\n[settings]"),
    )
    .unwrap();
    check(&["chat.toml"], &[], "has no chat template");
    let file = bench.dir.path().join("measures/responses");
    bench.run(&["stories.toml"], &[]).ok();
    let kept = fs::read_dir(file).unwrap().next().unwrap().unwrap().path();
    fs::write(&kept, "{\"id\": \"p0\"}\n").unwrap();
    check(&["stories.toml"], &["--baseline", &bench.base], "line 1");
    bench.run(&["stories.toml"], &["--baseline", &bench.base, "--again"]).ok();
}

/// Prompts in messages are what `polity generate` makes of the same messages, and one user's message is the text asked in chat.
#[test]
fn prompts_in_messages_go_through_the_chat_template() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| fs::write(dir.path().join(name), content).unwrap();
    let texts = ["Once upon a time", "Lily and Ben"];
    let user = |text: &str| json!({"role": "user", "content": text});
    let turns = |text: &str| json!([user("Hi."), {"role": "assistant", "content": "Hello."}, user(text)]);
    for (name, row) in [
        ("texts", &(|text: &str| json!({"prompt": text})) as &dyn Fn(&str) -> Value),
        ("single", &|text| json!({"prompt": [user(text)]})),
        ("turns", &|text| json!({"prompt": turns(text)})),
    ] {
        write(&format!("{name}.jsonl"), &texts.map(|text| row(text).to_string()).join("\n"));
        let toml = format!(
            "name = \"{name}\"\nkind = \"prompts\"\nrows = \"{name}.jsonl\"\n[settings]\nmax_new_tokens = 8\ntemperature = 0\n"
        );
        write(&format!("{name}.toml"), &toml);
    }
    let model = ModelCopy::stories().with_template();
    let out = text(&dir.path().join("measures"));
    let responses = |name: &str| -> Vec<Value> {
        let suite = text(&dir.path().join(format!("{name}.toml")));
        polity(["eval", &model.path(), "--suite", &suite, "--out", &out]).ok();
        let files = fs::read_dir(dir.path().join("measures/responses")).unwrap();
        let file =
            files.map(|entry| entry.unwrap().path()).find(|path| text(path).contains(&format!("/{name}-")));
        let rows = fs::read_to_string(file.unwrap()).unwrap();
        rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["ids"].clone()).collect()
    };
    let single = responses("single");
    assert_eq!(single, responses("texts"));
    let input = texts.map(|text| json!({"messages": turns(text)}).to_string()).join("\n");
    let args = [
        "generate",
        "--model",
        &model.path(),
        "--input",
        "-",
        "--set",
        "max_new_tokens=8",
        "--set",
        "temperature=0",
    ];
    let generated = polity_with(args.map(String::from), input.as_bytes()).ok().rows();
    let turned = responses("turns");
    assert_eq!(turned, generated.iter().map(|row| row["ids"].clone()).collect::<Vec<_>>());
    assert_ne!(turned, single, "earlier turns are seen");

    let run = polity(["eval", &stories(), "--suite", &text(&dir.path().join("turns.toml")), "--out", &out]);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("suite turns has prompts in messages, and ")
            && run.stderr.contains("no chat template"),
        "{}",
        run.stderr
    );
}
