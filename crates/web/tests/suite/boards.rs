//! Dashboards: a run is followed while it trains, whatever its files hold; what is drawn is what was written.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use axum::http::StatusCode;
use polity_rows::FileLock;
use polity_store::*;
use serde_json::{Value, json};

use crate::sample;
use crate::site::{Client, Site, plain};

async fn site() -> (Site, Client, Client) {
    let site = Site::new(plain(2)).await;
    let reviewer = site.client("rhea", &[Role::Reviewer]).await;
    let program = site.program(&reviewer.id).await;
    (site, reviewer, program)
}

fn run_dir(site: &Site, name: &str) -> PathBuf {
    site.dir().join("runs").join(name)
}

fn append(file: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(file).unwrap().write_all(text.as_bytes()).unwrap();
}

async fn json(program: &mut Client, path: &str) -> Value {
    let answer = program.call("GET", path, json!({})).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    answer.json()
}

/// What names the part of the page that is shown.
fn seen(page: &str) -> String {
    page.split("data-seen=\"")
        .nth(1)
        .expect("a part that stays up to date")
        .split('"')
        .next()
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_followed_while_it_trains() {
    let (site, mut rhea, _) = site().await;
    let dir = run_dir(&site, "ppo");
    sample::write_run(&dir, 1.0, 5, None).unwrap();
    let lock = FileLock::take(&dir.join(".lock")).unwrap().unwrap();
    let numbers = dir.join("metrics.jsonl");

    let page = rhea.get("/runs/ppo").await.text;
    assert!(page.contains("running") && page.contains("step 5"), "{page}");
    assert!(page.contains("data-live=\"/runs/ppo\""), "{page}");
    let first = seen(&page);
    let again = |seen: &str| format!("/runs/ppo?seen={seen}");
    assert_eq!(rhea.get(&again(&first)).await.status, StatusCode::NO_CONTENT);

    // A whole line is news, half a line is none until the other half comes.
    append(&numbers, &sample::step(6, 1.0));
    let part = rhea.get(&again(&first)).await;
    assert_eq!(part.status, StatusCode::OK);
    assert!(part.text.starts_with("<div id=\"live\" data-live=\"/runs/ppo\""), "{}", part.text);
    assert!(part.text.contains("step 6") && !part.text.contains("<html"), "{}", part.text);
    let second = seen(&part.text);
    let line = sample::step(7, 1.0);
    append(&numbers, &line[..40]);
    assert_eq!(rhea.get(&again(&second)).await.status, StatusCode::NO_CONTENT);
    append(&numbers, &line[40..]);
    let part = rhea.get(&again(&second)).await;
    assert!(part.text.contains("step 7") && !part.text.contains("left out"), "{}", part.text);
    let third = seen(&part.text);
    append(
        &dir.join("alarms.jsonl"),
        "{\"step\":7,\"alarm\":\"kl_explosion\",\"severity\":\"critical\",\"raised\":true,\"message\":\"too far\"}\n",
    );
    let part = rhea.get(&again(&third)).await.text;
    assert!(part.contains("too far") && part.contains("<li>kl_explosion, step 7</li>"), "{part}");
    // On the curve that it is about, and on no other.
    assert_eq!(part.matches("class=\"alarm\"").count(), 1, "{part}");

    drop(lock);
    let state = |page: &str, state: &str| {
        assert!(page.contains(&format!(">{state}</span>")), "{state}: {page}");
        assert!(!page.contains("data-live="), "{page}");
    };
    state(&rhea.get("/runs/ppo").await.text, "killed");
    fs::write(dir.join("report.html"), "").unwrap();
    state(&rhea.get("/runs/ppo").await.text, "stopped");
    sample::write_run(&dir, 1.0, 8, Some("2026-11-01T08:05:00Z")).unwrap();
    state(&rhea.get("/runs/ppo").await.text, "ended");
}

/// Where there is no lock to go by, the age of the numbers says whether it runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_lock_a_quiet_run_does_not_run() {
    let (site, _, mut program) = site().await;
    sample::write_run(&run_dir(&site, "a"), 1.0, 3, None).unwrap();
    assert_eq!(json(&mut program, "/api/v1/runs").await["runs"][0]["state"], "running");
    // From 2023 to a moment after the file was written.
    site.wait(20 * 365 * 24 * crate::site::HOUR_MS);
    let rhea = site.client("rhea2", &[Role::Reviewer]).await;
    let mut program = site.program(&rhea.id).await;
    assert_eq!(json(&mut program, "/api/v1/runs").await["runs"][0]["state"], "killed");
}

/// 200 steps of 8 responses in 1.5 s each are 1600: after 100 of them half is done, and 150 s are left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_and_curves_are_those_of_the_files() {
    let (site, mut rhea, mut program) = site().await;
    let dir = run_dir(&site, "nested/ppo");
    sample::write_run(&dir, 1.0, 100, None).unwrap();
    let _lock = FileLock::take(&dir.join(".lock")).unwrap();
    let run = json(&mut program, "/api/v1/runs").await["runs"][0].clone();
    assert_eq!(
        (&run["name"], &run["place"], &run["step"]),
        (&json!("nested/ppo"), &json!("runs/nested/ppo"), &json!(100))
    );
    assert_eq!(run["share"], 0.5);
    assert!((run["remaining_s"].as_f64().unwrap() - 150.0).abs() < 1e-6, "{run}");
    let list = rhea.get("/runs").await.text;
    assert!(
        list.contains("href=\"/runs/nested%2Fppo\"")
            && list.contains("2 min left")
            && list.contains("50\u{a0}%"),
        "{list}"
    );

    let curves =
        json(&mut program, "/api/v1/runs/nested%2Fppo/curves?metric=objective/kl").await["curves"].clone();
    let points = curves[0]["points"].as_array().unwrap();
    assert_eq!(
        (curves.as_array().unwrap().len(), points.len(), &curves[0]["unit"]),
        (1, 100, &json!("nats per sequence"))
    );
    for (n, point) in (1_u64..).zip(points) {
        let line: Value = serde_json::from_str(&sample::step(n, 1.0)).unwrap();
        let kl = &line["objective/kl"];
        assert_eq!(point, &json!([n as f64, kl, kl, kl]));
    }
    let wrong = program.call("GET", "/api/v1/runs/nested%2Fppo/curves?metric=loss", json!({})).await;
    assert!(
        wrong.status == StatusCode::UNPROCESSABLE_ENTITY && wrong.text.contains("this run has"),
        "{}",
        wrong.text
    );
    let one = json(&mut program, "/api/v1/runs/nested%2Fppo").await;
    assert_eq!((&one["settings"]["total_episodes"], &one["manifest"]["seed"]), (&json!("1600"), &json!(42)));
    assert_eq!(one["samples"].as_array().unwrap().len(), 6);
    assert!(rhea.get("/runs/nested%2Fppo").await.text.contains("Hold your breath"));
}

/// A run that is resumed writes steps again: the file is shorter, or other lines stand where the known ones were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_run_is_read_anew() {
    let (site, _, mut program) = site().await;
    let numbers = run_dir(&site, "a").join("metrics.jsonl");
    sample::write_run(&run_dir(&site, "a"), 1.0, 0, None).unwrap();
    let line = |step: u64, loss: f64| format!("{{\"step\":{step},\"time_s\":1,\"loss\":{loss}}}\n");
    let losses = async |program: &mut Client| {
        let curves = json(program, "/api/v1/runs/a/curves").await["curves"].clone();
        let points = curves[0]["points"].as_array().cloned().unwrap_or_default();
        points
            .iter()
            .map(|point| (point[0].as_f64().unwrap(), point[1].as_f64().unwrap()))
            .collect::<Vec<_>>()
    };
    fs::write(&numbers, line(1, 1.0) + &line(2, 2.0) + &line(3, 3.0)).unwrap();
    assert_eq!(losses(&mut program).await, [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]);
    fs::write(&numbers, line(1, 1.0)).unwrap();
    assert_eq!(losses(&mut program).await, [(1.0, 1.0)]);
    fs::write(&numbers, line(1, 1.0) + &line(2, 2.0)).unwrap();
    assert_eq!(losses(&mut program).await.len(), 2);
    // As long as before and longer, with another second step.
    fs::write(&numbers, line(1, 1.0) + &line(2, 7.0) + &line(3, 8.0)).unwrap();
    assert_eq!(losses(&mut program).await, [(1.0, 1.0), (2.0, 7.0), (3.0, 8.0)]);
    fs::remove_file(&numbers).unwrap();
    assert_eq!(losses(&mut program).await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_files_are_named_and_the_rest_is_shown() {
    let (site, mut rhea, mut program) = site().await;
    let dir = run_dir(&site, "bad");
    fs::create_dir_all(&dir).unwrap();
    let mut numbers = b"{\"step\":1,\"loss\":1.0}\n\nnot json\n[1]\n{\"step\":\"x\"}\n{\"step\":-1}\n{\"step\":1,\"loss\":5}\n\xff\xfe\x00\n".to_vec();
    numbers.extend_from_slice(b"{\"step\":2,\"loss\":1e400,\"inf\":null,\"text\":\"x\",\"list\":[1]}\n");
    numbers.extend_from_slice(format!("{{\"step\":3,\"long\":\"{}\"}}\n", "x".repeat(3 << 20)).as_bytes());
    numbers.extend_from_slice(
        b"{\"step\":4,\"loss\":2.0,\"huge\":1e308}\n{\"step\":18446744073709551615,\"huge\":-1e308}\n{\"half",
    );
    fs::write(dir.join("metrics.jsonl"), &numbers).unwrap();
    fs::write(dir.join("manifest.json"), "[]").unwrap();
    fs::write(dir.join("resolved.toml"), "a = \n").unwrap();
    fs::create_dir(dir.join("samples.jsonl")).unwrap();
    fs::write(dir.join("alarms.jsonl"), "{\"step\":1}\n{\"step\":4,\"alarm\":\"real\",\"raised\":true}\n")
        .unwrap();
    let page = rhea.get("/runs/bad").await;
    assert_eq!(page.status, StatusCode::OK);
    let one = json(&mut program, "/api/v1/runs/bad").await;
    let problems = one["problems"].to_string();
    for said in [
        "metrics.jsonl: 8 lines were left out; the first is line 3: it is not JSON, at column",
        "manifest.json: it is no JSON object",
        "resolved.toml: it is not TOML",
        "samples.jsonl: not a regular file",
        "alarms.jsonl: line 1 was left out: it has no `step` or no `alarm`",
    ] {
        assert!(problems.contains(said), "{said}: {problems}");
    }
    assert_eq!(one["alarms"][0]["alarm"], "real");
    let curves =
        json(&mut program, "/api/v1/runs/bad/curves?metric=loss").await["curves"][0]["points"].clone();
    assert_eq!(curves, json!([[1.0, 1.0, 1.0, 1.0], [4.0, 2.0, 2.0, 2.0]]));
    assert!(!page.text.contains("NaN") && !page.text.contains("inf\""), "{}", page.text);

    // A pipe would be waited for, and a device never ends.
    let pipe = run_dir(&site, "pipe");
    fs::create_dir_all(&pipe).unwrap();
    fs::write(pipe.join("manifest.json"), "{}").unwrap();
    assert!(std::process::Command::new("mkfifo").arg(pipe.join("metrics.jsonl")).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/zero", pipe.join("alarms.jsonl")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", pipe.join("resolved.toml")).unwrap();
    let asked = tokio::time::timeout(std::time::Duration::from_secs(20), rhea.get("/runs/pipe"));
    assert!(asked.await.expect("nothing is waited for").text.contains("metrics.jsonl: not a regular file"));
    for path in ["/runs", "/runs/compare?run=bad&run=pipe"] {
        assert_eq!(rhea.get(path).await.status, StatusCode::OK, "{path}");
    }
}

/// A hundred thousand steps are a page like any other, and one step more is one line read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_run_is_quick() {
    const STEPS: u64 = 100_000;
    let (site, mut rhea, mut program) = site().await;
    let dir = run_dir(&site, "long");
    sample::write_run(&dir, 0.001, STEPS, None).unwrap();
    let bytes = fs::metadata(dir.join("metrics.jsonl")).unwrap().len();
    let mut began = std::time::Instant::now();
    let mut took = || std::mem::replace(&mut began, std::time::Instant::now()).elapsed().as_millis();
    let first = rhea.get("/runs/long").await.text;
    let (first_ms, length) = (took(), first.len());
    append(&dir.join("metrics.jsonl"), &sample::step(STEPS + 1, 0.001));
    let second = rhea.get("/runs/long").await.text;
    let second_ms = took();
    println!("{bytes} bytes: {first_ms} ms, then {second_ms} ms; a page of {length} bytes");
    assert!(first.contains("step 100000") && second.contains("step 100001"));
    assert!(length < 400_000, "{length}");
    assert!(second_ms * 5 < first_ms, "{second_ms} of {first_ms} ms");
    let curves = json(&mut program, "/api/v1/runs/long/curves?metric=objective/kl").await;
    let points = curves["curves"][0]["points"].as_array().unwrap();
    assert!(points.len() <= 320 && points.len() >= 160, "{}", points.len());
    // Every step is in one bucket: smallest and largest of all are those of all lines.
    let all = (1..=STEPS + 1).map(|n| {
        let line: Value = serde_json::from_str(&sample::step(n, 0.001)).unwrap();
        line["objective/kl"].as_f64().unwrap()
    });
    let (low, high) = all.fold((f64::MAX, f64::MIN), |(low, high), kl| (low.min(kl), high.max(kl)));
    let of = |at: usize| points.iter().map(move |point| point[at].as_f64().unwrap());
    assert_eq!((of(2).fold(f64::MAX, f64::min), of(3).fold(f64::MIN, f64::max)), (low, high));
}

/// A name in an address, or a place in the ledger, opens nothing but runs of the project.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_name_leads_out_of_the_project() {
    let (site, mut rhea, mut program) = site().await;
    let outside = tempfile::tempdir().unwrap();
    sample::write_run(&outside.path().join("secret"), 1.0, 3, None).unwrap();
    let place = outside.path().join("secret").to_str().unwrap().to_owned();
    let up = format!("../{}/secret", outside.path().file_name().unwrap().to_str().unwrap());
    for place in [&place, &up] {
        sample::recorded(&site.store, place, "0011", site.now()).await.unwrap();
    }
    let encoded = |name: &str| name.bytes().map(|b| format!("%{b:02X}")).collect::<String>();
    for place in [&place, &up] {
        let one = json(&mut program, &format!("/api/v1/runs/{}", encoded(place))).await;
        assert_eq!((&one["run"]["state"], &one["run"]["step"]), (&json!("ended"), &Value::Null), "{one}");
        // What the ledger has of it is shown.
        assert_eq!(one["settings"]["kl_coef"], "0.05");
    }
    for name in ["../runs", "..", "/etc", "x/../../y", "secret", ""] {
        let answer = rhea.get(&format!("/runs/{}", encoded(name))).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_are_compared() {
    let (site, mut rhea, mut program) = site().await;
    sample::write_run(&run_dir(&site, "a"), 1.0, 40, Some("2026-11-01T08:05:00Z")).unwrap();
    sample::write_run(&run_dir(&site, "b"), 2.0, 20, Some("2026-11-01T08:05:00Z")).unwrap();
    let answer = json(&mut program, "/api/v1/compare?run=a&run=b").await;
    assert_eq!(answer["settings"], json!([{"key": "kl_coef", "values": ["0.05", "0.025"]}]));
    // Gold is there at every tenth step: the pairs are that step's, as they stand in the file.
    let at = |step: u64, push: f64| -> Value {
        let line: Value = serde_json::from_str(&sample::step(step, push)).unwrap();
        json!([step as f64, line["objective/kl"], line["samples/gold"]])
    };
    assert_eq!(answer["frontier"][0]["gold"], json!([at(10, 1.0), at(20, 1.0), at(30, 1.0), at(40, 1.0)]));
    assert_eq!(answer["frontier"][1]["gold"], json!([at(10, 2.0), at(20, 2.0)]));
    assert_eq!(answer["frontier"][1]["proxy"].as_array().unwrap().len(), 20);
    let page = rhea.get("/runs/compare?run=a&run=b").await.text;
    assert!(
        page.contains("root of KL") && page.contains("href=\"/runs/compare?run=a&amp;run=b&amp;x=plain\""),
        "{page}"
    );
    assert!(page.contains("kl_coef") && !page.contains("total_episodes"), "{page}");
    assert!(rhea.get("/runs/compare?run=a&run=b&x=plain").await.text.contains("The root of the KL as axis"));
    assert!(rhea.get("/runs/compare").await.text.contains("Tick two runs or more"));
    assert_eq!(rhea.get("/runs/compare?run=c").await.status, StatusCode::NOT_FOUND);
    let many = "run=a&".repeat(7);
    assert_eq!(rhea.get(&format!("/runs/compare?{many}")).await.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evaluations_of_the_ledger_and_of_files() {
    let (site, mut rhea, mut program) = site().await;
    assert!(rhea.get("/evaluations").await.text.contains("There are no evaluations yet"));
    sample::judged(&site.store, "cand", "base", true, 0, site.now()).await.unwrap();
    let measures = site.dir().join("measures");
    fs::create_dir_all(&measures).unwrap();
    // The same as in the ledger, written otherwise; a new one; one that is none.
    let same: Value = serde_json::from_str(&sample::evaluation("cand", 0.62)).unwrap();
    fs::write(measures.join("same.json"), serde_json::to_string_pretty(&same).unwrap()).unwrap();
    fs::write(measures.join("new.json"), sample::evaluation("third", 0.4)).unwrap();
    fs::write(measures.join("none.json"), "{\"x\": 1}").unwrap();
    let answer = json(&mut program, "/api/v1/evaluations").await;
    let of: Vec<(&str, bool)> = answer["evaluations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["model"].as_str().unwrap(), one["event"].is_number()))
        .collect();
    assert_eq!(of, [("cand", true), ("base", true), ("third", false)]);
    assert!(answer["problems"].to_string().contains("measures/none.json: no file of measures"), "{answer}");
    assert!(answer["evaluations"][0]["measures"][0].get("items").is_none());
    let page = rhea.get("/evaluations?model=cand&baseline=base").await.text;
    // Each category once, with both models' dots; the whole first.
    assert!(page.contains("all: cand ") && page.contains(", base 0.5; factuality:"), "{page}");
    assert!(!page.contains("other settings") && page.contains("In the ledger since"), "{page}");
    let third = rhea.get("/evaluations?model=third").await.text;
    assert!(third.contains("which is not in the ledger") && third.contains("measures/new.json"), "{third}");
    assert!(rhea.get("/evaluations?model=nobody").await.text.contains("There is no evaluation of model"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_is_shown_criterion_by_criterion() {
    let (site, mut rhea, mut program) = site().await;
    assert!(rhea.get("/verdicts").await.text.contains("The gate has not judged yet"));
    let verdict = sample::judged(&site.store, "cand", "base", false, 2, site.now()).await.unwrap();
    let list = rhea.get("/verdicts").await.text;
    assert!(
        list.contains(&format!("href=\"/verdicts/{}\"", verdict.id)) && list.contains("inconclusive"),
        "{list}"
    );
    let page = rhea.get(&format!("/verdicts/{}", verdict.id)).await.text;
    for said in [
        "Needed for a release",
        "For information",
        "no worse on safety",
        "840 prompts",
        "Better than the baseline by",
        "class=\"limit\"",
    ] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let answer = json(&mut program, &format!("/api/v1/verdicts/{}", verdict.id)).await;
    assert_eq!(
        (&answer["said"]["criteria"][0]["id"], &answer["verdict"]["approvals"]),
        (&json!("helpful"), &json!(2))
    );
    assert_eq!(rhea.get("/verdicts/0000").await.status, StatusCode::NOT_FOUND);
    site.wait(31 * 24 * crate::site::HOUR_MS);
    let ada = site.client("ada", &[Role::Approver]).await;
    assert!(site.session(&ada.id).await.get("/verdicts").await.text.contains("expired"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn releases_with_their_history_cards_and_lineage() {
    let (site, mut rhea, mut program) = site().await;
    assert!(rhea.get("/releases").await.text.contains("Nothing is released yet"));
    for model in ["one", "two"] {
        sample::judged(&site.store, model, "base", true, 0, site.now()).await.unwrap();
        sample::released(&site.store, site.dir(), model, None, &rhea.id, site.now()).await.unwrap();
    }
    let back = Rollback {
        channel: "production".into(),
        from: "production-2".into(),
        to: "production-1".into(),
        skipped: vec![],
    };
    site.store.add_rollback(back, &rhea.id, site.now()).await.unwrap();
    let asked = Asked { model: "never judged".into(), channel: "production".into(), verdict: None };
    site.store.may_release(asked, &rhea.id, site.now()).await.unwrap().unwrap_err();
    let page = rhea.get("/releases").await.text;
    for said in [
        "<strong>production-1</strong> <span class=\"pill good\">everyone</span>",
        "<strong>production-2</strong> <span class=\"pill bad\">rolled back</span>",
        "A release: there is no verdict on model",
        "/releases/production-1/lineage",
    ] {
        assert!(page.contains(said), "{said}: {page}");
    }
    let answer = json(&mut program, "/api/v1/releases").await;
    assert_eq!(answer["channels"][0]["stable"]["release"], "production-1");
    assert_eq!(answer["refusals"][0]["code"], "no_verdict");

    let card = rhea.get("/releases/production-1/card").await.text;
    assert!(card.contains("Made from votes.") && !card.contains("not the card that was released"), "{card}");
    append(&site.dir().join("releases/production-1/README.md"), "\n<script>zz</script>");
    let card = rhea.get("/releases/production-1/card").await.text;
    assert!(card.contains("not the card that was released") && !card.contains("<script>zz"), "{card}");
    fs::remove_file(site.dir().join("releases/production-1/README.md")).unwrap();
    assert!(rhea.get("/releases/production-1/card").await.text.contains("not in the project"));
    let svg = rhea.get("/releases/production-1/lineage.svg").await;
    assert_eq!(
        (svg.text.as_str(), svg.headers["content-type"].to_str().unwrap()),
        ("<svg>production-1</svg>", "image/svg+xml")
    );
    assert!(
        svg.headers["content-security-policy"]
            .to_str()
            .unwrap()
            .starts_with("default-src 'none'; style-src 'unsafe-inline'")
    );
    assert_eq!(rhea.get("/releases/production-9/lineage.svg").await.status, StatusCode::NOT_FOUND);
}

/// Who compares blindly must not see which model is which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotators_have_no_dashboards() {
    let (site, mut rhea, _) = site().await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let (hers, others) = (ann.get("/rubric").await.text, rhea.get("/rubric").await.text);
    for path in ["/runs", "/evaluations", "/verdicts", "/releases"] {
        let link = format!("href=\"{path}\"");
        assert!(!hers.contains(&link) && others.contains(&link), "{path}");
        assert_eq!(ann.get(path).await.status, StatusCode::FORBIDDEN);
    }
    assert_eq!(ann.get("/runs?seen=x").await.status, StatusCode::FORBIDDEN);
}
