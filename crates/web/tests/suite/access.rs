//! Who may what: every route of the table, asked by everybody.

use axum::http::StatusCode;
use polity_store::Role;
use polity_web::{Access, Route, routes};
use serde_json::{Map, Value, json};

use crate::site::{Answer, Client, Site, plain};

/// What each route asks for, written a second time: a route that is added, or whose rule is changed, must be thought about twice.
const RULES: &str = include_str!("rules.txt");

fn rule(access: Access) -> String {
    match access {
        Access::Public => "everybody".into(),
        Access::SignedIn => "every account".into(),
        Access::Roles([]) => "admin".into(),
        Access::Roles(roles) => {
            let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
            format!("{} or admin", names.join(" or "))
        }
    }
}

#[test]
fn every_route_has_the_rule_that_was_meant() {
    let found: Vec<String> =
        routes().map(|route| format!("{} {}: {}", route.method, route.path, rule(route.access))).collect();
    let expected: Vec<&str> = RULES.lines().collect();
    assert_eq!(found, expected, "in rules.txt:\n{}", found.join("\n"));
}

/// Real names where a path needs them, so that a refusal is about the person and not about the path.
struct Names {
    comparison: String,
    victim: String,
}

fn path(route: &Route, names: &Names) -> String {
    route
        .path
        .replace("{comparison}", &names.comparison)
        .replace("{annotator}", &names.victim)
        .replace("{version}", "1")
        .replace("{assignment}", "1")
        .replace("{name}", if route.path.starts_with("/static") { "style.css" } else { "frozen" })
        .replace("{secret}", "0123456789abcdef")
        .replace("{id}", if route.path.contains("assignments") { "1" } else { &names.victim })
}

/// A value for each field that must be there.
fn filled(route: &Route) -> Map<String, Value> {
    use polity_web::Kind;
    let fields = route.fields.iter().filter(|field| field.required);
    fields
        .map(|field| {
            let value = match field.kind {
                Kind::OneOf(names) => json!(names[0]),
                Kind::Int => json!(1),
                Kind::Number => json!(0.0),
                Kind::Yes => json!(true),
                Kind::List => json!(["annotator"]),
                Kind::Map | Kind::Object => json!({}),
                Kind::Objects => json!([]),
                Kind::Text | Kind::Long => json!("some text"),
            };
            (field.name.to_owned(), value)
        })
        .collect()
}

async fn ask(client: &mut Client, route: &Route, names: &Names) -> Answer {
    let path = path(route, names);
    let sent = filled(route);
    match (route.is_api(), route.method) {
        (true, method) => client.call(method, &path, Value::Object(sent)).await,
        (false, "GET") => client.get(&path).await,
        (false, _) => {
            let flat: Vec<(String, String)> = sent
                .into_iter()
                .map(|(name, value)| (name, value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
                .collect();
            let flat: Vec<(&str, &str)> =
                flat.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            client.post(&path, &flat).await
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_route_is_refused_to_whoever_may_not() {
    let site = Site::new(plain(2)).await;
    let comparison = site.material(3, 2).await.remove(0);
    let victim = site.client("victim", &[Role::Annotator]).await;
    let names = Names { comparison, victim: victim.id };
    let people: Vec<(&str, Vec<Role>)> = vec![
        ("nobody in particular", vec![]),
        ("annotator", vec![Role::Annotator]),
        ("reviewer", vec![Role::Reviewer]),
        ("approver", vec![Role::Approver]),
        ("admin", vec![Role::Admin]),
    ];
    let mut accounts = Vec::new();
    for (name, roles) in &people {
        accounts.push((*name, roles.clone(), site.client(name, roles).await.id));
    }
    let mut asked = 0;
    for route in routes() {
        let what = format!("{} {}", route.method, route.path);
        let mut stranger = site.stranger();
        let answer = ask(&mut stranger, route, &names).await;
        match route.access {
            Access::Public => assert_ne!(answer.status, StatusCode::UNAUTHORIZED, "{what}"),
            _ if !route.is_api() && route.method == "GET" => {
                assert_eq!(answer.status, StatusCode::SEE_OTHER, "{what}, a stranger");
                assert!(answer.to().starts_with("/signin?next=%2F"), "{what}: {}", answer.to());
            }
            _ => assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}, a stranger"),
        }
        for (name, roles, id) in &accounts {
            // A session each time, since some routes end it.
            let mut client = if route.is_api() { site.program(id).await } else { site.session(id).await };
            let answer = ask(&mut client, route, &names).await;
            let may = match route.access {
                Access::Public | Access::SignedIn => true,
                Access::Roles(needed) => {
                    roles.contains(&Role::Admin) || needed.iter().any(|role| roles.contains(role))
                }
            };
            assert_eq!(answer.status == StatusCode::FORBIDDEN, !may, "{what}, {name}: {answer:?}");
            assert!(!answer.status.is_server_error(), "{what}, {name}: {answer:?}");
            asked += 1;
        }
        // A session's cookie opens nothing in the API, and a token no page that changes something.
        if route.access != Access::Public {
            let (_, _, admin) = accounts.last().unwrap();
            if route.is_api() {
                let mut client = site.session(admin).await;
                assert_eq!(
                    ask(&mut client, route, &names).await.status,
                    StatusCode::UNAUTHORIZED,
                    "{what}, by cookie"
                );
            } else if route.method == "POST" {
                let mut client = site.program(admin).await;
                assert_eq!(
                    ask(&mut client, route, &names).await.status,
                    StatusCode::FORBIDDEN,
                    "{what}, by token"
                );
            }
        }
        site.wait(1000);
    }
    assert!(asked > 300, "{asked}");
    let failures = site.log.lock().unwrap().clone();
    assert!(failures.iter().all(|line| !line.starts_with("failure")), "{failures:?}");
}

/// What belongs to somebody else looks like what is not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_peoples_things_are_not_there() {
    let site = Site::new(plain(2)).await;
    site.material(3, 2).await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let mut ben = site.client("ben", &[Role::Annotator]).await;
    let mut ben_program = site.program(&ben.id).await;
    let given = ann.get("/compare").await.field("assignment").unwrap();

    let answer = ben.post("/compare", &[("assignment", &given), ("answer", "left1")]).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    let vote = json!({"assignment": given.parse::<i64>().unwrap(), "answer": "left1"});
    assert_eq!(ben_program.call("POST", "/api/v1/votes", vote).await.status, StatusCode::NOT_FOUND);
    let release = format!("/api/v1/assignments/{given}/release");
    assert_eq!(ben_program.call("POST", &release, json!({})).await.status, StatusCode::NOT_FOUND);
    assert_eq!(ben.get(&format!("/compare/feedback/{given}")).await.status, StatusCode::NOT_FOUND);
    let (token, _) = site.store.add_token(&ann.id, "ann's", None, site.now()).await.unwrap();
    assert_eq!(
        ben.post(&format!("/account/tokens/{}/revoke", token.id), &[]).await.status,
        StatusCode::NOT_FOUND
    );
    let revoke = format!("/api/v1/tokens/{}/revoke", token.id);
    assert_eq!(ben_program.call("POST", &revoke, json!({})).await.status, StatusCode::NOT_FOUND);
    assert!(site.store.tokens(&ann.id).await.unwrap()[0].revoked_ms.is_none());

    // And ann can still answer.
    assert_eq!(ann.post("/compare", &[("assignment", &given), ("answer", "left1")]).await.to(), "/compare");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_account_and_a_revoked_token_open_nothing() {
    let site = Site::new(plain(2)).await;
    site.client("root", &[Role::Admin]).await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let mut program = site.program(&ann.id).await;
    assert_eq!(program.call("GET", "/api/v1/me", json!({})).await.json()["name"], "ann");
    let token = site.store.tokens(&ann.id).await.unwrap().remove(0);
    site.store.revoke_token(&ann.id, &token.id, site.now()).await.unwrap();
    assert_eq!(program.call("GET", "/api/v1/me", json!({})).await.status, StatusCode::UNAUTHORIZED);
    let mut program = site.program(&ann.id).await;
    site.store.set_disabled(&ann.id, true, "test", site.now()).await.unwrap();
    assert_eq!(program.call("GET", "/api/v1/me", json!({})).await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(ann.get("/compare").await.status, StatusCode::SEE_OTHER);
}
