//! The API is what its document says.

use std::collections::BTreeSet;

use axum::http::StatusCode;
use polity_store::Role;
use polity_web::{Access, openapi, routes};
use serde_json::{Value, json};

use crate::sample;
use crate::site::{Client, Site, plain};

/// Calls the API and checks that the answer has the keys that the table declares.
async fn call(client: &mut Client, method: &str, path: &str, pattern: &str, body: Value) -> Value {
    let answer = client.call(method, path, body).await;
    assert_eq!(answer.status, StatusCode::OK, "{method} {path}: {}", answer.text);
    let route = routes().find(|route| route.method == method && route.path == pattern).unwrap();
    let value = answer.json();
    let keys: BTreeSet<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    for field in route.returns {
        assert!(!field.required || keys.contains(field.name), "{pattern}: no `{}` in {value}", field.name);
    }
    for key in keys {
        assert!(route.returns.iter().any(|field| field.name == key), "{pattern}: `{key}` is not declared");
    }
    value
}

/// A panel run by a program alone: everything that the pages do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_can_do_what_the_pages_do() {
    let site = Site::new(plain(2)).await;
    let names = site.material(5, 2).await;
    let admin = site.client("admin", &[Role::Admin]).await;
    let ann = site.client("ann", &[Role::Annotator]).await;
    let mut root = site.program(&admin.id).await;
    let mut worker = site.program(&ann.id).await;
    let mut called = BTreeSet::new();
    macro_rules! ask {
        ($client:expr, $method:literal, $pattern:literal, $path:expr, $body:expr) => {{
            called.insert(format!("{} {}", $method, $pattern));
            call(&mut $client, $method, AsRef::<str>::as_ref(&$path), $pattern, $body).await
        }};
        ($client:expr, $method:literal, $pattern:literal, $body:expr) => {
            ask!($client, $method, $pattern, $pattern, $body)
        };
    }
    ask!(worker, "GET", "/api/v1/me", json!({}));
    ask!(worker, "GET", "/api/v1/project", json!({}));
    let rubrics = ask!(worker, "GET", "/api/v1/rubrics", json!({}));
    let mut rubric = rubrics["rubrics"][0]["rubric"].clone();
    rubric["title"] = json!("Another title");
    let version = ask!(root, "POST", "/api/v1/rubrics", json!({"rubric": rubric, "note": "title"}));
    assert_eq!(version["version"], 2);
    ask!(
        root,
        "POST",
        "/api/v1/calibration",
        json!({"comparison": names[0], "expected": "left1", "explanation": "so"})
    );

    let given = ask!(worker, "POST", "/api/v1/next", json!({}));
    let id = given["assignment"]["id"].as_i64().unwrap();
    assert!(given["assignment"]["left"].is_string() && given.to_string().find("m1").is_none(), "{given}");
    ask!(
        worker,
        "POST",
        "/api/v1/assignments/{id}/release",
        format!("/api/v1/assignments/{id}/release"),
        json!({})
    );
    for n in 0..4 {
        let given = ask!(worker, "POST", "/api/v1/next", json!({}));
        let id = given["assignment"]["id"].as_i64().unwrap();
        let vote = json!({"assignment": id, "answer": "left2", "axes": {"helpful": "tie"}, "reason": "r", "work_ms": 0});
        let voted = ask!(worker, "POST", "/api/v1/votes", vote);
        assert_eq!(voted["vote"], n + 1);
    }
    let undone = ask!(worker, "POST", "/api/v1/undo", json!({}));
    let again = ask!(worker, "POST", "/api/v1/next", json!({}));
    assert_eq!(undone["assignment"], again["assignment"]["id"]);
    ask!(worker, "POST", "/api/v1/votes", json!({"assignment": undone["assignment"], "answer": "tie"}));
    let nothing = ask!(worker, "POST", "/api/v1/next", json!({}));
    assert_eq!(nothing["nothing"]["reason"], "nothing_left");

    ask!(root, "GET", "/api/v1/review", json!({}));
    let list = ask!(root, "GET", "/api/v1/comparisons", "/api/v1/comparisons?limit=2", json!({}));
    assert_eq!(list["comparisons"].as_array().unwrap().len(), 2);
    let one = &names[1];
    let seen = ask!(
        root,
        "GET",
        "/api/v1/comparisons/{comparison}",
        format!("/api/v1/comparisons/{one}"),
        json!({})
    );
    assert!(!seen["votes"].as_array().unwrap().is_empty());
    let path = format!("/api/v1/comparisons/{one}/adjudication");
    ask!(root, "POST", "/api/v1/comparisons/{comparison}/adjudication", path, json!({"answer": "tie"}));
    let path = format!("/api/v1/comparisons/{one}/queue");
    ask!(root, "POST", "/api/v1/comparisons/{comparison}/queue", path, json!({"queued": "no"}));
    ask!(root, "GET", "/api/v1/calibration", json!({}));
    let report = ask!(root, "GET", "/api/v1/panel", json!({}));
    assert_eq!(report["report"]["counts"]["votes"], 4);
    let judgements = ask!(
        root,
        "GET",
        "/api/v1/judgements",
        format!("/api/v1/judgements?annotator={}", ann.id),
        json!({})
    );
    assert_eq!(judgements["judgements"].as_array().unwrap().len(), 4);

    ask!(root, "GET", "/api/v1/accounts", json!({}));
    ask!(root, "GET", "/api/v1/invites", json!({}));
    let invite = ask!(root, "POST", "/api/v1/invites", json!({"roles": ["reviewer"], "days": 2}));
    assert!(invite["path"].as_str().unwrap().starts_with("/invite/"));
    let id = site.store.invites().await.unwrap()[0].id.clone();
    ask!(root, "POST", "/api/v1/invites/{id}/revoke", format!("/api/v1/invites/{id}/revoke"), json!({}));
    let path = |what: &str| format!("/api/v1/accounts/{}/{what}", ann.id);
    ask!(
        root,
        "POST",
        "/api/v1/accounts/{id}/roles",
        path("roles"),
        json!({"roles": ["annotator", "reviewer"]})
    );
    ask!(root, "POST", "/api/v1/accounts/{id}/disabled", path("disabled"), json!({"disabled": "no"}));
    ask!(root, "POST", "/api/v1/accounts/{id}/password", path("password"), json!({}));

    let made = ask!(root, "POST", "/api/v1/tokens", json!({"name": "second", "days": 1}));
    ask!(root, "GET", "/api/v1/tokens", json!({}));
    let id = made["token"]["id"].as_str().unwrap();
    ask!(root, "POST", "/api/v1/tokens/{id}/revoke", format!("/api/v1/tokens/{id}/revoke"), json!({}));

    ask!(root, "GET", "/api/v1/progress", json!({}));
    let mut policy = ask!(root, "GET", "/api/v1/project", json!({}))["policy"].clone();
    policy["overlap"] = json!(4);
    let set = ask!(root, "POST", "/api/v1/policy", policy);
    assert_eq!(set["policy"]["overlap"], 4);
    let frozen = ask!(root, "POST", "/api/v1/datasets", json!({"name": "first", "labels": "majority"}));
    assert_eq!(frozen["dataset"]["name"], "first");
    ask!(root, "GET", "/api/v1/datasets", json!({}));
    let rows = ask!(
        root,
        "GET",
        "/api/v1/datasets/{name}/rows",
        "/api/v1/datasets/first/rows?from=0&limit=10",
        json!({})
    );
    let row = &rows["rows"][0];
    assert!(
        row["prompt"].is_string()
            && row["a"].is_string()
            && (row["label"].is_null() || row["label"]["chosen"].is_string()),
        "{row}"
    );
    let asked = json!({"name": "first", "part": "train", "labels": "soft"});
    let exported = ask!(root, "POST", "/api/v1/datasets/export", asked);
    let (file, rows) = (&exported["export"]["files"][0], exported["rows"].as_array().unwrap());
    assert_eq!((&file["rows"], &file["name"]), (&json!(rows.len()), &json!("first-train.jsonl")));
    assert_eq!(frozen["dataset"]["train_rows"], rows.len());
    assert!(rows.iter().all(|row| row["chosen"].is_string() && row["label"].is_number()), "{rows:?}");
    let ledger = ask!(root, "GET", "/api/v1/ledger", "/api/v1/ledger?from=2&limit=3", json!({}));
    assert_eq!(ledger["events"][0]["seq"], 2);

    sample::write_run(&site.dir().join("runs/ppo"), 1.0, 3, None).unwrap();
    ask!(root, "GET", "/api/v1/runs", json!({}));
    ask!(root, "GET", "/api/v1/runs/{name}", "/api/v1/runs/ppo", json!({}));
    ask!(root, "GET", "/api/v1/runs/{name}/curves", "/api/v1/runs/ppo/curves", json!({}));
    ask!(root, "GET", "/api/v1/compare", "/api/v1/compare?run=ppo", json!({}));
    let verdict = sample::judged(&site.store, "m", "b", true, 0, site.now()).await.unwrap();
    ask!(root, "GET", "/api/v1/evaluations", json!({}));
    ask!(root, "GET", "/api/v1/verdicts", json!({}));
    ask!(root, "GET", "/api/v1/verdicts/{id}", format!("/api/v1/verdicts/{}", verdict.id), json!({}));
    ask!(root, "GET", "/api/v1/releases", json!({}));

    let all: BTreeSet<String> = routes()
        .filter(|route| route.is_api() && route.path != "/api/v1/openapi.json")
        .map(|route| format!("{} {}", route.method, route.path))
        .collect();
    assert_eq!(called, all, "every route of the API is called here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_objects_with_a_code() {
    let site = Site::new(plain(2)).await;
    let ann = site.client("ann", &[Role::Annotator]).await;
    let mut program = site.program(&ann.id).await;
    for (method, path, body, status, code) in [
        ("GET", "/api/v1/nothing", json!({}), 404, "not_found"),
        ("GET", "/api/v1/votes", json!({}), 405, "not_found"),
        ("GET", "/api/v1/ledger", json!({}), 403, "forbidden"),
        ("POST", "/api/v1/votes", json!({}), 422, "input"),
        ("POST", "/api/v1/votes", json!([1]), 422, "input"),
        ("POST", "/api/v1/next", json!({"surprise": 1}), 422, "input"),
        ("POST", "/api/v1/undo", json!({}), 409, "conflict"),
    ] {
        let answer = program.call(method, path, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.json()["error"]["code"].as_str().unwrap()),
            (status, code),
            "{path}"
        );
    }
    program.token = Some("wrong".into());
    let answer = program.call("GET", "/api/v1/me", json!({})).await;
    assert_eq!(
        (answer.status.as_u16(), answer.headers["www-authenticate"].to_str().unwrap()),
        (401, "Bearer")
    );
}

#[test]
fn the_document_has_every_route_once() {
    let document = openapi();
    let mut ids = BTreeSet::new();
    for route in routes().filter(|route| route.is_api()) {
        let operation = &document["paths"][route.path][route.method.to_lowercase()];
        assert!(ids.insert(operation["operationId"].to_string()), "{operation}");
        assert_eq!(operation["security"].is_null(), route.access == Access::Public, "{}", route.path);
        let parts = route.path.matches('{').count();
        let query = if route.method == "GET" { route.fields.len() } else { 0 };
        assert_eq!(operation["parameters"].as_array().unwrap().len(), parts + query, "{}", route.path);
        let body = &operation["requestBody"]["content"]["application/json"]["schema"]["properties"];
        assert_eq!(
            body.as_object().map_or(0, |body| body.len()),
            route.fields.len() - query,
            "{}",
            route.path
        );
    }
}
