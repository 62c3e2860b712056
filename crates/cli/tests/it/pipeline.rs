//! `polity loop`: from prompts to a release by one file; killed at each step; refused; waiting for people.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Run, command, lines, polity, run_of, stories, wait_for};

/// A directory with a pipeline, its prompts and its gate's policy; the project is made in it.
struct Place {
    dir: tempfile::TempDir,
}

const GATE: &str = "\
name = \"ours\"
[[criterion]]
id = \"moves-towards-the-panel\"
measure = \"preference_accuracy\"
better = \"higher\"
comparator = \"absolute\"
limit = 0.5
n_min = 8
";

const PPO: &str = "\
[reward]
set = { max_steps = 4, save_steps = 1, per_device_train_batch_size = 4, max_length = 64 }
[policy]
method = \"ppo\"
[policy.set]
max_steps = 4
save_steps = 1
per_device_train_batch_size = 8
learning_rate = 1e-3
response_length = 12
max_length = 64
";
const DPO: &str =
    "[policy]\nmethod = \"dpo\"\nset = { max_steps = 2, per_device_train_batch_size = 4, max_length = 64 }\n";

/// What the loop measures itself: the distance from the base model, on a suite; the panel on the holdout beside it.
const LEASH: &str = "\
name = \"leash\"
[[criterion]]
id = \"leash\"
measure = \"kl_nats_per_sequence\"
better = \"lower\"
comparator = \"absolute\"
limit = 50
n_min = 4
[[criterion]]
id = \"preferred\"
measure = \"win_rate\"
better = \"higher\"
comparator = \"absolute\"
limit = 0.5
n_min = 2
blocking = false
";

impl Place {
    /// One whose measures are the loop's own.
    fn measuring(panel: &str, training: &str) -> Place {
        let place = Place::new(panel, training);
        fs::write(place.path("gate.toml"), LEASH).unwrap();
        fs::write(place.path("suite.toml"), "name = \"more\"\nkind = \"prompts\"\nrows = \"more.jsonl\"\n")
            .unwrap();
        let rows: String = (0..6).map(|i| format!("{{\"prompt\": \"The dog saw {i}\"}}\n")).collect();
        fs::write(place.path("more.jsonl"), rows).unwrap();
        place.edit("holdout = 0.0", "holdout = 0.4");
        place.edit(
            "measures = [\"measures\"]",
            "people = true\nsuites = [\"suite.toml\"]\nset = { max_new_tokens = 10 }",
        );
        place
    }

    fn new(panel: &str, training: &str) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let prompts: String = (0..20)
            .map(|i| format!("{{\"prompt\": \"Once upon a time {i}\", \"category\": \"story\"}}\n"))
            .collect();
        fs::write(place.path("prompts.jsonl"), prompts).unwrap();
        fs::write(place.path("gate.toml"), GATE).unwrap();
        fs::create_dir(place.path("measures")).unwrap();
        let text = format!(
            "name = \"tiny\"\nmodel = {:?}\nseed = 7\n\
             [project]\ndir = \"p\"\nvalidation = 0.0\nholdout = 0.0\noverlap = 3\n\
             [sample]\nprompts = \"prompts.jsonl\"\nper_prompt = 3\npairs = 2\nset = {{ max_new_tokens = 10 }}\n\
             [panel]\n{panel}\n{training}\
             [evaluate]\nmeasures = [\"measures\"]\n[gate]\npolicy = \"gate.toml\"\n[release]\nchannel = \"production\"\n",
            stories()
        );
        fs::write(place.path("loop.toml"), text).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, more: &[&str]) -> Run {
        polity(self.args(more))
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let file = self.path("loop.toml").to_str().unwrap().to_owned();
        ["loop", &file].iter().chain(more).map(|word| (*word).to_owned()).collect()
    }

    fn edit(&self, from: &str, to: &str) {
        let file = self.path("loop.toml");
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(file, text.replacen(from, to, 1)).unwrap();
    }

    fn record(&self, step: &str) -> Value {
        json_of(&self.path(&format!("p/loop/tiny/{step}.json")))
    }

    fn output(&self, step: &str, name: &str) -> Value {
        let record = self.record(step);
        let outputs = record["outputs"].as_array().unwrap();
        outputs.iter().find(|output| output["name"] == name).unwrap().clone()
    }

    /// Measures of the candidate, who is right on so many of `n` prompts.
    fn measured(&self, right: usize, n: usize) {
        let items: Vec<Value> =
            (0..n).map(|i| json!({"id": format!("p{i}"), "sum": u8::from(i < right)})).collect();
        let evaluation = json!({"model": self.output("policy", "model")["hash"], "suite": "s", "measures": [{
            "name": "preference_accuracy", "unit": "share", "estimate": right as f64 / n as f64, "low": 0, "high": 1,
            "n": n, "confidence": 0.9, "range": [0, 1], "items": items}]});
        fs::write(self.path("measures/m.json"), evaluation.to_string()).unwrap();
    }

    fn states(&self) -> Vec<(String, String)> {
        let said: Value = serde_json::from_str(&self.run(&["--status", "--json"]).ok().stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        said["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| (text(&step["step"]), text(&step["state"])))
            .collect()
    }

    /// Kills the loop as soon as something holds; whether it was still there to be killed.
    fn kill_when(&self, what: &str, holds: impl Fn() -> bool) -> bool {
        let mut child = command(self.args(&[])).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut ended = false;
        wait_for(what, || {
            ended = child.try_wait().unwrap().is_some();
            ended || holds()
        });
        child.kill().unwrap();
        child.wait().unwrap();
        !ended
    }
}

fn json_of(file: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

/// What two loops must share: the models, the rows, what was compared and voted, and the verdict.
fn result(place: &Place) -> Value {
    let verdict = place.record("gate")["said"].clone();
    let places = [
        ("sample", "comparisons"),
        ("panel", "votes"),
        ("freeze", "train"),
        ("freeze", "prompts"),
        ("reward", "model"),
        ("policy", "model"),
    ];
    json!({"verdict": verdict, "made": places.map(|(step, name)| place.output(step, name)["hash"].clone())})
}

#[test]
fn killed_at_each_step_it_ends_the_same() {
    let panel = "kind = \"simulate\"";
    let (whole, broken) = (Place::measuring(panel, PPO), Place::measuring(panel, PPO));
    let run = whole.run(&[]).ok();
    assert_eq!(run.stdout, "production-1 is released to production\n");
    let verdict = &whole.record("gate")["said"]["criteria"];
    assert_eq!(verdict[0]["measure"]["n"], 6, "{verdict}");
    assert!(
        verdict[1]["measure"]["n"].as_u64().unwrap() >= 6,
        "three votes on each held-out prompt: {verdict}"
    );
    assert_ne!(whole.record("compare")["said"]["votes"], 0);

    let there = |path: &str| broken.path("p").join(path).exists();
    let step = |run: &str| {
        let runs = fs::read_dir(broken.path("p/runs")).ok().into_iter().flatten();
        let mut of = runs.map(|dir| dir.unwrap().path()).filter(|dir| dir.to_string_lossy().contains(run));
        of.next().map_or(0, |dir| lines(&dir.join("metrics.jsonl")))
    };
    let mut killed = 0;
    let mut kill =
        |what: &str, holds: &dyn Fn() -> bool| killed += usize::from(broken.kill_when(what, holds));
    kill("a store", &|| there("polity.toml"));
    for done in ["sample", "panel", "freeze"] {
        kill(done, &|| there(&format!("loop/tiny/{done}.json")));
    }
    kill("two steps of the reward model", &|| step("reward") >= 2);
    kill("the reward model", &|| there("loop/tiny/reward.json"));
    kill("two steps of the policy", &|| step("ppo") >= 2);
    for done in ["policy", "compare", "evaluate", "gate"] {
        kill(done, &|| there(&format!("loop/tiny/{done}.json")));
    }
    // On a busy machine a short step may be over before it is hit.
    assert!(killed >= 5, "killed only {killed} times");
    broken.run(&[]).ok();
    assert_eq!(result(&broken), result(&whole));
    let of = |place: &Place| place.path("p").to_str().unwrap().to_owned();
    for place in [&whole, &broken] {
        polity(["ledger", "verify", "--project", &of(place)]).ok();
        let lineage = polity(["lineage", "production-1", "--project", &of(place), "--json"]).ok();
        let lineage: Value = serde_json::from_str(&lineage.stdout).unwrap();
        assert_eq!(lineage["verified"], true, "{lineage}");
        // From the release to the votes.
        let kinds: Vec<&str> =
            lineage["nodes"].as_array().unwrap().iter().map(|node| node["kind"].as_str().unwrap()).collect();
        for kind in ["release", "verdict", "reward model", "dataset", "votes"] {
            assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
        }
    }

    // Run again it does nothing, and a record that is lost is found again without doing anything twice.
    let events = || polity(["ledger", "log", "--project", &of(&broken)]).ok().stdout;
    let before = events();
    assert_eq!(broken.run(&[]).ok().stdout, "production-1 is released to production\n");
    assert_eq!(events(), before);
    for step in ["reward", "policy", "gate", "release"] {
        fs::remove_file(broken.path(&format!("p/loop/tiny/{step}.json"))).unwrap();
    }
    assert_eq!(broken.run(&[]).ok().stdout, "production-1 is released to production\n");
    assert_eq!((events(), result(&broken)), (before, result(&whole)));

    // A model that was changed is never taken.
    let model = broken.path("p").join(broken.output("policy", "model")["place"].as_str().unwrap());
    crate::release::flip_a_byte(&model.join("model.safetensors"));
    let run = broken.run(&[]);
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(run.stderr.contains("not the one that the run made"), "{}", run.stderr);
}

#[test]
fn a_changed_setting_runs_again_from_there_on_and_back_again_nothing() {
    let place = Place::new("kind = \"simulate\"", DPO);
    place.run(&["--until", "policy"]).ok();
    let done = |states: &[(String, String)], state: &str| -> Vec<String> {
        states.iter().filter(|(_, found)| found == state).map(|(step, _)| step.clone()).collect()
    };
    let first = place.states();
    assert_eq!(done(&first, "done"), ["sample", "panel", "freeze", "policy"]);
    assert_eq!(done(&first, "open"), ["evaluate", "gate", "release"]);
    let (model, dataset) = (place.output("policy", "model"), place.output("freeze", "dataset"));

    place.edit("[policy]", "[freeze]\nlabels = \"majority\"\n[policy]");
    let changed = place.states();
    assert_eq!(done(&changed, "done"), ["sample", "panel"]);
    assert_eq!(done(&changed, "changed"), ["freeze", "policy"]);
    let run = place.run(&["--until", "policy"]).ok();
    assert!(run.stderr.contains(" 2/7 panel: done before\n 3/7 freeze\n"), "{}", run.stderr);
    assert!(run.stderr.contains("\n      dataset tiny-"), "{}", run.stderr);
    assert_ne!(place.output("freeze", "dataset")["hash"], dataset["hash"]);
    assert_ne!(place.output("policy", "model")["place"], model["place"]);

    place.edit("[freeze]\nlabels = \"majority\"\n", "");
    let trained = |place: &Place| fs::read_dir(place.path("p/runs")).unwrap().count();
    assert_eq!(trained(&place), 2);
    place.run(&["--until", "policy"]).ok();
    assert_eq!((place.output("policy", "model"), trained(&place)), (model, 2));
    assert_eq!(place.output("freeze", "dataset"), dataset);

    // A file of the dataset that was changed is written again.
    let train = place.path("p").join(place.output("freeze", "train")["place"].as_str().unwrap());
    let rows = fs::read(&train).unwrap();
    fs::write(&train, "{}").unwrap();
    let run = place.run(&["--until", "policy"]).ok();
    assert!(run.stderr.contains("gone or not what it was"), "{}", run.stderr);
    assert_eq!(fs::read(&train).unwrap(), rows);
}

#[test]
fn a_no_ends_with_its_exit_code_and_what_to_refine() {
    let place = Place::new("kind = \"simulate\"", DPO);
    place.run(&["--until", "policy"]).ok();
    let check = |right: usize, n: usize, code: i32, says: &str| {
        place.measured(right, n);
        for _ in 0..2 {
            let run = place.run(&[]);
            assert_eq!(run.code, code, "{}", run.stderr);
            assert!(
                run.stderr.contains("refine.md") && run.stderr.contains("the candidate is not passed"),
                "{}",
                run.stderr
            );
        }
        let refine = json_of(&place.path("p/loop/tiny/refine.json"));
        let page = fs::read_to_string(place.path("p/loop/tiny/refine.md")).unwrap();
        assert!(page.contains(says), "{page}");
        refine
    };
    let refine = check(4, 32, 3, "**moves-towards-the-panel** (fail)");
    assert_eq!((&refine["verdict"], &refine["criteria"][0]["estimate"]), (&"fail".into(), &0.125.into()));
    assert_eq!(refine["prompts"], json!([]), "more of them would not help");
    assert_eq!(refine["panel"]["votes"].as_u64(), place.record("panel")["said"]["votes"].as_u64());

    // 60 % of 20: the gate says how many would settle it, and that is what is to be collected.
    let refine =
        check(12, 20, 4, "more prompts** of any category for moves-towards-the-panel (20 are there)");
    let needed = place.record("gate")["said"]["criteria"][0]["effect"]["prompts_to_settle"].as_u64().unwrap();
    assert_eq!(refine["prompts"][0]["more"], needed - 20);
    assert!(!place.path("p/releases/production-1").exists());

    place.measured(30, 32);
    place.run(&[]).ok();
    assert!(place.path("p/releases/production-1/README.md").exists());
}

#[test]
fn people_are_waited_for() {
    let place = Place::new("kind = \"people\"\nvotes = 24", DPO);
    place.edit("[policy]", "[freeze]\nmachine_votes = true\n[policy]");
    let run = place.run(&[]).ok();
    assert!(run.stdout.starts_with("waiting: for 24 votes: polity serve --project"), "{}", run.stdout);
    let project = place.path("p").to_str().unwrap().to_owned();
    // Simulated annotators are no machines to the store: they stand in for people.
    polity(["panel", "simulate", "--project", &project, "--votes", "10"]).ok();
    let run = place.run(&["--json"]).ok();
    let said: Value = serde_json::from_str(&run.stdout).unwrap();
    assert!(said["waiting"].as_str().unwrap().starts_with("for "), "{said}");
}

#[test]
fn approvals_are_waited_for_by_name() {
    let place = Place::new("kind = \"simulate\"", DPO);
    fs::write(place.path("gate.toml"), format!("approvals = 1\n{GATE}")).unwrap();
    place.run(&["--until", "policy"]).ok();
    place.measured(30, 32);
    let project = place.path("p").to_str().unwrap().to_owned();
    let token = |name: &str, role: &str| {
        let run = polity(["--quiet", "account", "add", name, "--role", role, "--project", &project]).ok();
        run.stdout.trim().to_owned()
    };
    let (ben, ann) = (token("ben", "admin"), token("ann", "approver"));
    let as_who = |token: &str, args: Vec<String>| {
        run_of(command(args).env("POLITY_TOKEN", token).output().unwrap()).ok().stdout
    };
    let said = as_who(&ben, place.args(&[]));
    assert!(said.contains("0 of 1 given (by ann)") && said.contains("--channel production"), "{said}");
    let model = place.path("p").join(place.output("policy", "model")["place"].as_str().unwrap());
    let approve = ["approve", model.to_str().unwrap(), "--channel", "production", "--project", &project];
    as_who(&ann, approve.map(str::to_owned).to_vec());
    assert_eq!(as_who(&ben, place.args(&[])), "production-1 is released to production\n");
}

#[test]
fn a_reward_model_that_is_not_accepted_ends_the_loop_before_a_policy_is_trained() {
    let training = format!("[acceptance]\nsuites = [\"pairs.toml\"]\npolicy = \"accept.toml\"\n{PPO}");
    let place = Place::new("kind = \"simulate\"", &training);
    fs::write(place.path("pairs.toml"), "name = \"pairs\"\nkind = \"preference\"\nrows = \"pairs.jsonl\"\n")
        .unwrap();
    // Which one is better is a coin's word: no model is right about it.
    let rows = (0..40).map(|i| {
        let better = [1, 2, 2, 1, 2, 1, 1, 2, 1, 1][i % 10];
        let (first, second) = (format!("ran {}", i * 7 % 11), format!("sat {}", i * 5 % 13));
        let row = json!({"prompt": format!("The dog {i}"), "first": first, "second": second, "better": better, "category": "coin"});
        format!("{row}\n")
    });
    fs::write(place.path("pairs.jsonl"), rows.collect::<String>()).unwrap();
    fs::write(
        place.path("accept.toml"),
        "name = \"right\"\n[[criterion]]\nid = \"right\"\nmeasure = \"accuracy\"\nbetter = \"higher\"\ncomparator = \"absolute\"\n\
         limit = 0.9\nn_min = 20\n",
    )
    .unwrap();
    let run = place.run(&[]);
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(run.stderr.contains("the reward model is not passed"), "{}", run.stderr);
    assert!(!place.path("p/loop/tiny/policy.json").exists());
    let refine = json_of(&place.path("p/loop/tiny/refine.json"));
    let near = refine["reward_near_chance"].as_array().unwrap();
    assert!(near.iter().any(|domain| domain["domain"] == "coin"), "{refine}");
}
