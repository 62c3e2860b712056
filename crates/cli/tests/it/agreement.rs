//! `polity agreement`: published files as they are, our own rows in every format, and rows that mean nothing.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Run, polity, polity_with, shared, text};

fn report(args: &[&str]) -> Value {
    let run = polity(["agreement", "--json", "--resamples", "100"].iter().chain(args)).ok();
    serde_json::from_str(&run.stdout).unwrap()
}

fn figure<'r>(report: &'r Value, name: &str) -> &'r Value {
    report["figures"].as_array().unwrap().iter().find(|figure| figure["name"] == name).unwrap()
}

#[track_caller]
fn estimate(report: &Value, name: &str, expect: f64) {
    let got = figure(report, name)["estimate"].as_f64().unwrap();
    assert!((got - expect).abs() < 5e-5, "{name}: {got}, expected {expect}");
}

#[test]
fn pandalm_as_published() {
    let file = text(&shared("data/preferences/pandalm_testset_v1.json"));
    let report = report(&["--data", &file]);
    assert_eq!(report["counts"]["votes"], 2997);
    estimate(&report, "alpha_nominal", 0.8642);
    let mut kappas: Vec<String> = report["pairs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| format!("{:.4}", pair["kappa"]["estimate"].as_f64().unwrap()))
        .collect();
    kappas.sort();
    assert_eq!(kappas, ["0.8520", "0.8617", "0.8789"]);
    assert_eq!(report["ranking"]["responses"].as_array().unwrap().len(), 5);
    assert_eq!(figure(&report, "self_consistency")["undefined"], "not_recorded");
}

#[test]
fn mtbench_as_published_on_a_page_of_80_columns() {
    let file = text(&shared("data/annotators/mtbench_human_votes.jsonl"));
    let report = report(&["--data", &file]);
    assert_eq!((&report["counts"]["votes"], &report["counts"]["superseded"]), (&json!(3354), &json!(1)));
    assert_eq!(report["ranking"]["responses"][0]["name"], "gpt-4");

    let page = polity(["agreement", "--data", &file, "--resamples", "100"]).ok();
    for expect in [
        "3354 votes by 65 annotators on 1814 comparisons of 160 prompts",
        "Krippendorff's alpha, ordinal",
        "Annotators, most votes first",
        "… and 25 more",
        "gpt-4",
        "52 %: 3863   55 %: 617   60 %: 153   65 %: 67",
    ] {
        assert!(page.stdout.contains(expect), "no {expect:?} in\n{}", page.stdout);
    }
    let widest = page.stdout.lines().max_by_key(|line| line.chars().count()).unwrap();
    assert!(widest.chars().count() <= 80, "{} columns: {widest}", widest.chars().count());
    assert!(!page.stdout.contains("NaN"));
}

const ROWS: &str = r#"{"prompt":"p1","left":"a","right":"b","annotator":"ann","answer":"left","grade":3,"category":"tone"}
{"prompt":"p1","left":"b","right":"a","annotator":"bob","answer":"right","category":"tone"}
{"prompt":2,"left":"a","right":"b","annotator":"ann","answer":"tie","duration_ms":1500,"rubric":"v1"}
{"prompt":2,"left":"a","right":"b","annotator":"bob","answer":"right","time_ms":1700000000000}
{"prompt":3,"left":"a","right":"b","annotator":"bob","answer":"skip"}
{"prompt":4,"left":"a","right":"b","annotator":"bob","answer":"left","known":"right"}
"#;

#[test]
fn every_format_says_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path)
    };
    let lines = write("votes.jsonl", ROWS);
    let list = write("votes.json", &format!("[{}]", ROWS.trim_end().replace('\n', ",")));
    let csv = write(
        "votes.csv",
        "prompt,left,right,annotator,answer,grade,category,duration_ms,rubric,time_ms,known\n\
         p1,a,b,ann,left,3,tone,,,,\np1,b,a,bob,right,,tone,,,,\n2,a,b,ann,tie,,,1500,v1,,\n\
         2,a,b,bob,right,,,,,1700000000000,\n3,a,b,bob,skip,,,,,,\n4,a,b,bob,left,,,,,,right\n",
    );
    let first = report(&["--data", &lines]);
    assert_eq!(first["counts"]["comparisons"], 2);
    assert_eq!((&first["counts"]["unanswered"], &first["counts"]["calibration"]), (&json!(1), &json!(1)));
    // Both preferred `a` on p1, from different sides.
    assert_eq!(figure(&first, "raw_agreement")["estimate"], 0.5);
    for other in [&list, &csv] {
        assert_eq!(report(&["--data", other]), first, "{other}");
    }
    let piped = polity_with(["agreement", "-d", "-", "--json", "--resamples", "100"], ROWS.as_bytes()).ok();
    assert_eq!(serde_json::from_str::<Value>(&piped.stdout).unwrap(), first);

    // Ann is shown p1 again and changes sides: that is said of her, and the vote stands.
    let again = r#"{"prompt":"p1","left":"b","right":"a","annotator":"ann","answer":"left","repeat":true}"#;
    let repeated = report(&["--data", &write("repeat.jsonl", &format!("{ROWS}{again}\n"))]);
    assert_eq!(figure(&repeated, "self_consistency")["estimate"], 0.0);
    assert_eq!((&repeated["counts"]["repeats"], &repeated["counts"]["superseded"]), (&json!(1), &json!(0)));
    assert_eq!(figure(&repeated, "raw_agreement"), figure(&first, "raw_agreement"));
    let replaced =
        report(&["--data", &write("again.jsonl", &format!("{ROWS}{}\n", again.replace("true", "false")))]);
    assert_eq!(
        (&replaced["counts"]["superseded"], figure(&replaced, "raw_agreement")["estimate"].as_f64()),
        (&json!(1), Some(0.0))
    );

    let labels = text(&dir.path().join("soft.jsonl"));
    report(&["--data", &lines, "--labels", &labels]);
    let rows: Vec<Value> = fs::read_to_string(&labels)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        (&rows[0]["prompt"], &rows[0]["first"], &rows[0]["votes"]),
        (&json!("p1"), &json!("a"), &json!(2))
    );
    assert!(rows[0]["label"].as_f64().unwrap() > 0.5 && rows[1]["label"].as_f64().unwrap() < 0.5, "{rows:?}");
}

#[track_caller]
fn refused(run: &Run, expect: &[&str]) {
    assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{}", run.stderr);
    for part in expect {
        assert!(run.stderr.contains(part), "no {part:?} in: {}", run.stderr);
    }
}

#[test]
fn rows_that_are_no_votes() {
    let check = |rows: &str, expect: &[&str]| {
        refused(&polity_with(["agreement", "-d", "-"], rows.as_bytes()), expect);
    };
    let good = ROWS.lines().next().unwrap();
    check(&good.replace("annotator", "anotator"), &["line 1", "`annotator` is missing", "for `anotator`?"]);
    check(
        &format!("{good}\n{}", good.replace("\"left\",\"g", "\"lft\",\"g")),
        &["line 2", "`answer` is lft", "both_bad"],
    );
    check(&good.replace(":3", ":4"), &["`grade` is 4", "1 to 3"]);
    check(&good.replace("\"b\"", "\"a\""), &["response `a` is compared with itself"]);
    check(&good.replace("\"ann\"", "[1]"), &["`annotator` is a list"]);
    check(r#"{"idx":1,"annotator1":3}"#, &["`annotator1` is 3", "0 (tie), 1 or 2"]);
    check(
        r#"{"question_id":1,"model_a":"x","model_b":"y","judge":"j","winner":"z"}"#,
        &["`winner` is z", "model_a, model_b, tie"],
    );
    check(&good.replace("\"left\",\"g", "\"skip\",\"g"), &["no vote compares anything"]);
    check("", &["no rows found"]);
    refused(&polity(["agreement", "--data", "nowhere.csv"]), &["cannot open nowhere.csv"]);
    refused(&polity(["agreement", "--data", "x", "--confidence", "2"]), &["between 0 and 1"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torn.csv");
    fs::write(&path, "prompt,left,right,annotator,answer\np,a,b\n").unwrap();
    refused(&polity(["agreement", "--data", &text(&path)]), &["torn.csv", "found record with 3 fields"]);
}
