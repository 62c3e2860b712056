//! `polity gate`: exit codes, the page and its JSON, models by directory and by hash, and what is refused.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Run, polity, shared, text};

const POLICY: &str = r#"name = "ours"
[[criterion]]
id = "preferred"
measure = "win_rate"
better = "higher"
comparator = "absolute"
limit = 0.5
n_min = 50

[[criterion]]
id = "still-capable"
measure = "exact_match"
better = "higher"
comparator = "baseline"
margin = 0.05
n_min = 50
"#;

/// An evaluation of `model`: `wins` of 100, and `right` of 400.
pub fn evaluation(model: &str, wins: usize, right: usize) -> Value {
    let measure = |name: &str, ones: usize, n: usize| {
        let items: Vec<Value> =
            (0..n).map(|i| json!({"id": format!("p{i}"), "sum": u8::from(i < ones)})).collect();
        let share = ones as f64 / n as f64;
        json!({"name": name, "category": null, "unit": "share", "estimate": share, "low": share, "high": share, "n": n,
               "confidence": 0.9, "range": [0, 1], "items": items})
    };
    json!({"model": model, "suite": "s", "settings": {},
           "measures": [measure("win_rate", wins, 100), measure("exact_match", right, 400)]})
}

struct Gate {
    dir: tempfile::TempDir,
}

impl Gate {
    fn new(evaluations: &[Value]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("policy.toml"), POLICY).unwrap();
        fs::create_dir(dir.path().join("measures")).unwrap();
        for (i, evaluation) in evaluations.iter().enumerate() {
            fs::write(dir.path().join(format!("measures/{i}.json")), evaluation.to_string()).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> String {
        text(&self.dir.path().join(name))
    }

    fn run(&self, model: &str, more: &[&str]) -> Run {
        let (policy, measures) = (self.path("policy.toml"), self.path("measures"));
        let args = ["gate", model, "--policy", &policy, "--measures", &measures];
        polity(args.iter().chain(more))
    }
}

#[test]
fn three_exit_codes() {
    let gate = Gate::new(&[
        evaluation("good-model", 70, 300),
        evaluation("bad-model", 30, 300),
        evaluation("new-model", 55, 300),
        evaluation("old-model", 50, 300),
    ]);
    let check = |model: &str, code: i32, verdict: &str, says: &[&str]| {
        let page = gate.run(model, &["--baseline", "old-model"]);
        assert_eq!(page.code, code, "{}{}", page.stdout, page.stderr);
        assert!(page.stdout.starts_with(&format!("{}: {model}", verdict.to_uppercase())), "{}", page.stdout);
        for part in says {
            let whole = format!("{}{}", page.stdout, page.stderr);
            let flat = whole.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(flat.contains(part), "no {part:?} in: {whole}");
        }
        let widest = page.stdout.lines().map(|line| line.chars().count()).max().unwrap();
        assert!(widest <= 80, "{widest} columns:\n{}", page.stdout);

        let run = gate.run(model, &["--baseline", "old-model", "--json"]);
        let said: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!((run.code, &said["verdict"], &said["candidate"]), (code, &json!(verdict), &json!(model)));
        said
    };
    let said = check("good-model", 0, "pass", &["at least 0.6", "with 95 % confidence, needed 0.5"]);
    let measure = &said["criteria"][0]["measure"];
    assert_eq!(
        (&measure["name"], &measure["category"], &measure["unit"]),
        (&json!("win_rate"), &json!(null), &json!("share"))
    );
    assert_eq!((&measure["estimate"], &measure["n"]), (&json!(0.7), &json!(100)));
    assert!(measure["low"].as_f64().unwrap() > 0.6 && measure["high"].as_f64().unwrap() < 0.8, "{measure}");
    assert_eq!(said["criteria"][1]["reference"], json!(0.75));
    assert_eq!(said["evaluations"].as_array().unwrap().len(), 2);

    check("bad-model", 3, "fail", &["the gate's verdict is fail", "preferred: at most 0.3"]);
    let said =
        check("new-model", 4, "inconclusive", &["may not be released", "more prompts would settle it"]);
    assert_eq!(said["criteria"][1]["verdict"], "pass");
    // Without a baseline to compare with nothing is known, and nothing ships.
    let run = gate.run("good-model", &[]);
    assert_eq!(run.code, 4, "{}", run.stdout);
    assert!(run.stderr.contains("there is no baseline to compare with"), "{}", run.stderr);
    // Errors of `--json` are a line of JSON.
    let run = gate.run("bad-model", &["--json", "--baseline", "old-model"]);
    let error: Value = serde_json::from_str(run.stderr.trim()).unwrap();
    assert!(error.to_string().contains("gate_failed"), "{error}");
}

#[test]
fn a_model_is_its_directory_or_the_beginning_of_its_hash() {
    let stories = shared("models/stories260k");
    let hash = polity_hash(&stories);
    let gate = Gate::new(&[evaluation(&hash, 70, 300), evaluation("old-model", 50, 300)]);
    for model in [text(&stories), hash[..10].to_owned(), hash.clone()] {
        gate.run(&model, &["--baseline", "old"]).ok();
    }
    let run = gate.run("nobody", &[]);
    assert_eq!(run.code, 2);
    assert!(
        run.stderr.contains("no measures of model nobody") && run.stderr.contains("old-model"),
        "{}",
        run.stderr
    );
    let gate = Gate::new(&[evaluation("m-1", 70, 300), evaluation("m-2", 50, 300)]);
    assert!(gate.run("m-", &[]).stderr.contains("the beginning of 2 models"));
}

/// The hash of a directory as manifests have it.
pub fn polity_hash(dir: &Path) -> String {
    polity_train::run::Input::hash("model", dir).unwrap().blake3
}

#[test]
fn what_is_wrong_says_where() {
    let gate = Gate::new(&[evaluation("new-model", 55, 300)]);
    let refused = |run: Run, expect: &[&str]| {
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{}", run.stderr);
        expect.iter().for_each(|part| assert!(run.stderr.contains(part), "no {part:?} in: {}", run.stderr));
    };
    let policy = gate.dir.path().join("policy.toml");
    fs::write(&policy, POLICY.replace("n_min = 50\n\n", "nmin = 50\n\n")).unwrap();
    refused(
        gate.run("new-model", &[]),
        &["policy.toml, line 8", "unknown key `nmin`", "did you mean `n_min`?"],
    );
    fs::remove_file(&policy).unwrap();
    refused(gate.run("new-model", &[]), &["cannot read", "policy.toml"]);
    fs::write(&policy, POLICY).unwrap();

    let file = gate.dir.path().join("measures/0.json");
    let changed = fs::read_to_string(&file).unwrap().replacen("\"estimate\":0.55", "\"estimate\":0.65", 1);
    fs::write(&file, changed).unwrap();
    refused(gate.run("new-model", &[]), &["0.json", "measure `win_rate`", "one of them was changed"]);
    fs::remove_file(&file).unwrap();
    refused(gate.run("new-model", &[]), &["no .json file in this directory"]);
    refused(polity(["gate", "new-model"]), &["--measures"]);
    refused(polity(["gate", "--prompts", "100", "m", "--measures", "x"]), &["--simulate"]);
}

#[test]
fn the_default_policy_and_its_power() {
    let shown = polity(["gate", "--show-policy"]).ok();
    assert!(shown.stdout.contains("name = \"default\"") && shown.stdout.contains("[[criterion]]"));
    let args = ["gate", "--simulate", "--simulations", "60", "--discordance", "0.1"];
    let page = polity(args).ok();
    assert!(
        page.stdout.contains("preferred-by-people") && page.stdout.contains("all that are needed"),
        "{}",
        page.stdout
    );
    let widest = page.stdout.lines().map(|line| line.chars().count()).max().unwrap();
    assert!(widest <= 80, "{widest} columns:\n{}", page.stdout);

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    fs::write(&file, POLICY).unwrap();
    let file = text(&file);
    let json = |seed: &str| -> Value {
        let args = ["gate", "--simulate", "--policy", &file, "--prompts", "619", "--json", "--seed", seed];
        serde_json::from_str(&polity(args).ok().stdout).unwrap()
    };
    let power = json("1");
    // 619 prompts: 5 points of win rate without ties, four times in five.
    let preferred = &power["criteria"][0];
    let (detectable, at_one) = (&preferred["detectable"], &preferred["curve"][3]["shares"]["pass"]);
    assert!((detectable.as_f64().unwrap() - 0.05 * 0.8_f64.sqrt()).abs() < 1e-3, "{preferred}");
    assert!((at_one.as_f64().unwrap() - 0.8).abs() < 0.06, "{preferred}");
    assert_eq!(power, json("1"));
    assert_ne!(power, json("2"));
}
