//! A canary: who gets it, what is said of it, and that a bad one is taken back.

use std::sync::Arc;

use axum::http::StatusCode;
use polity_serve::channel::{Arms, Channel};
use polity_serve::host::Said;
use polity_serve::monitor::{ArmName, Measure, Policy};
use polity_serve::{Limits, ServedModel};
use serde_json::{Value, json};

use crate::site::{Site, chatty, served};

fn site(share: f64, policy: &str) -> Site {
    let [stable, canary] = ["stories-1", "stories-2"].map(|name| served(name, chatty(), Limits::usual()));
    let arms = Arms { stable: stable.clone(), canary: Some((canary, share)) };
    Site::of(stable, Channel::new("stories", arms, Policy::read(policy).unwrap()))
}

const WATCHED: &str = r#"
[[criterion]]
measure = "thumbs_up"
worse = "below"
alpha = 0.05
then = "rollback"

[[criterion]]
measure = "preference"
worse = "below"
alpha = 0.05
then = "alarm"
"#;

async fn answer(site: &Site, model: &str, user: &str) -> Value {
    let body = json!({"model": model, "prompt": "Once", "max_tokens": 3, "user": user, "n": 2});
    site.complete(body).await
}

fn is_canary(answer: &Value) -> bool {
    answer["system_fingerprint"].as_str().unwrap().ends_with('2')
}

#[tokio::test]
async fn users_stay_with_their_arm_and_arms_can_be_asked_by_name() {
    let site = site(0.3, WATCHED);
    let mut canaries = 0;
    for n in 0..60 {
        let user = format!("user {n}");
        let (once, twice) = (answer(&site, "stories", &user).await, answer(&site, "stories", &user).await);
        assert_eq!(once["system_fingerprint"], twice["system_fingerprint"]);
        canaries += usize::from(is_canary(&once));
    }
    // 18 expected, standard deviation 3.5; the split is fixed for ever.
    assert!((8..30).contains(&canaries), "{canaries}");
    assert!(
        is_canary(&answer(&site, "stories:canary", "x").await)
            && !is_canary(&answer(&site, "stories:stable", "x").await)
    );
    let names: Vec<Value> = site.get("/v1/models").await.ok()["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].clone())
        .collect();
    assert_eq!(names, ["stories", "stories:canary", "stories:stable"]);
}

#[tokio::test]
async fn feedback_is_kept_counted_once_and_only_its_owners() {
    let site = site(0.5, WATCHED);
    let given = answer(&site, "stories", "ann").await;
    let id = given["id"].as_str().unwrap();
    let thumb = |choice: u64, thumb: &str| {
        site.post("/v1/feedback", json!({"id": id, "choice": choice, "thumb": thumb, "reason": "so"}))
    };
    assert_eq!(thumb(1, "up").await.ok()["counted"], true);
    assert_eq!(thumb(1, "down").await.ok()["counted"], false, "a second click");
    assert_eq!(thumb(0, "down").await.ok()["counted"], true, "another choice");
    assert_eq!(thumb(2, "up").await.status, StatusCode::BAD_REQUEST);
    assert_eq!(thumb(0, "sideways").await.json()["error"]["param"], "thumb");
    let kept = site.host.kept.lock().unwrap().clone();
    assert_eq!(kept.len(), 3);
    let Said::Thumb { of, up } = &kept[0].said else { panic!("{kept:?}") };
    assert_eq!((of.choice, *up, &of.prompt, kept[0].caller.as_str()), (1, true, &json!("Once"), "ann"));
    assert_eq!(json!(of.text), given["choices"][1]["text"]);
    assert_eq!(of.arm == ArmName::Canary, is_canary(&given));
    assert_eq!(kept[0].reason, "so");

    let body = json!({"id": id, "thumb": "up"}).to_string();
    let got = site.send("POST", "/v1/feedback", Some("key of ben"), body).await;
    assert_eq!(got.status, StatusCode::NOT_FOUND, "another's answer");
    let by_name = answer(&site, "stories:canary", "ann").await;
    let got = site.post("/v1/feedback", json!({"id": by_name["id"], "thumb": "up"})).await.ok();
    assert_eq!(got["counted"], false, "whoever chose the arm knows it");
}

#[tokio::test]
async fn preferences_are_of_two_answers_to_one_prompt() {
    let site = site(0.5, WATCHED);
    let (s, c) = (answer(&site, "stories:stable", "ann").await, answer(&site, "stories:canary", "ann").await);
    let say = |first: Value, second: Value, answer: &str| {
        site.post("/v1/feedback/preference", json!({"first": first, "second": second, "answer": answer}))
    };
    let of = |answer: &Value, choice: u64| json!({"id": answer["id"], "choice": choice});
    assert_eq!(say(of(&s, 0), of(&c, 0), "first").await.ok()["counted"], true);
    assert_eq!(say(of(&c, 0), of(&s, 0), "first").await.ok()["counted"], false, "the same pair");
    assert_eq!(say(of(&s, 0), of(&s, 1), "tie").await.ok()["counted"], false, "one arm");
    assert_eq!(say(of(&s, 0), of(&s, 0), "tie").await.status, StatusCode::BAD_REQUEST);
    let other = site.complete(json!({"model": "stories:canary", "prompt": "The", "max_tokens": 3})).await;
    assert_eq!(say(of(&s, 0), of(&other, 0), "first").await.json()["error"]["param"], "second");
    assert_eq!(site.host.kept.lock().unwrap().len(), 3);
    let monitor = site.server.channels()[0].monitor();
    let standing =
        monitor.standings().find(|(criterion, _)| criterion.measure == Measure::Preference).unwrap().1;
    assert_eq!((standing.n, standing.mean), (1, 0.0), "the canary lost");
}

/// Users who give the canary's answers a thumb down 7 times of 10, and everyone else's up.
#[tokio::test]
async fn a_bad_canary_is_taken_back() {
    let site = site(0.5, WATCHED);
    let mut votes = 0;
    for n in 0.. {
        assert!(n < 400, "it is still there");
        let given = answer(&site, "stories", &format!("user {n}")).await;
        let up = if is_canary(&given) { n % 10 < 3 } else { n % 10 < 9 };
        let thumb = if up { "up" } else { "down" };
        site.post("/v1/feedback", json!({"id": given["id"], "thumb": thumb})).await.ok();
        votes += 1;
        if !site.host.raised.lock().unwrap().is_empty() {
            break;
        }
    }
    let raised = site.host.raised.lock().unwrap().clone();
    assert_eq!((raised.len(), raised[0].release.as_str()), (1, "stories-2"));
    assert!(
        raised[0].alarm.found.mean < raised[0].alarm.found.null && votes < 200,
        "{votes} votes: {raised:?}"
    );
    for n in 0..20 {
        assert!(
            !is_canary(&answer(&site, "stories", &format!("user {n}")).await),
            "everyone gets the stable one"
        );
    }
    assert_eq!(
        site.post("/v1/completions", json!({"model": "stories:canary", "prompt": "a"})).await.status,
        StatusCode::NOT_FOUND
    );
    let metrics = site.get("/v1/metrics").await.text;
    assert!(
        metrics.contains("polity_serve_alarms_total{channel=\"stories\",measure=\"thumbs_up\"} 1"),
        "{metrics}"
    );
}

#[tokio::test]
async fn another_canary_begins_with_no_evidence() {
    let site = site(0.5, WATCHED);
    let channel = &site.server.channels()[0];
    let n = || channel.monitor().standings().map(|(_, standing)| standing.n).sum::<u64>();
    let (s, c) = (answer(&site, "stories:stable", "a").await, answer(&site, "stories:canary", "a").await);
    let body = json!({"first": {"id": s["id"]}, "second": {"id": c["id"]}, "answer": "tie"});
    site.post("/v1/feedback/preference", body).await.ok();
    assert_eq!(n(), 1);
    let arms = channel.arms();
    channel.serve(Arms { canary: arms.canary.clone().map(|(model, _)| (model, 0.9)), ..arms.clone() });
    assert_eq!(n(), 1, "a larger share of the same canary goes on");
    let next: Arc<ServedModel> = served("stories-3", chatty(), Limits::usual());
    channel.serve(Arms { canary: Some((next, 0.5)), ..arms });
    assert_eq!(n(), 0);
    assert!(!channel.withdraw("stories-2"), "that one is gone already");
}
