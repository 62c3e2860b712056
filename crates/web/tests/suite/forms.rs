//! Signing in and what attacks it: forged forms, planted sessions, redirects elsewhere, guessing, paths that climb.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use polity_store::Role;
use polity_web::routes;

use crate::site::{Client, HOUR_MS, Site, plain};

const PASSWORD: &str = "correct horse battery";

/// An account made by invite, signed in.
async fn joined(site: &Site, name: &str, roles: &[Role]) -> Client {
    let secret = site
        .store
        .add_invite(roles.iter().copied().collect(), "", "test", site.now() + HOUR_MS, site.now())
        .await
        .unwrap();
    let mut client = site.stranger();
    assert_eq!(client.get(&format!("/invite/{secret}")).await.status, StatusCode::OK);
    let answer = client.post(&format!("/invite/{secret}"), &[("name", name), ("password", PASSWORD)]).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_works_once_and_the_password_after() {
    let site = Site::new(plain(2)).await;
    let now = site.now();
    let secret =
        site.store.add_invite([Role::Annotator].into(), "", "test", now + HOUR_MS, now).await.unwrap();
    let path = format!("/invite/{secret}");
    let mut ann = site.stranger();
    ann.get(&path).await;
    let short = ann.post(&path, &[("name", "ann"), ("password", "short")]).await;
    assert_eq!(short.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(short.text.contains("The password has 5 characters"), "{}", short.text);
    let made = ann.post(&path, &[("name", "ann"), ("password", PASSWORD)]).await;
    assert_eq!((made.status, made.to()), (StatusCode::SEE_OTHER, "/compare"));
    assert_eq!(site.stranger().get(&path).await.status, StatusCode::CONFLICT, "used up");

    let mut again = site.stranger();
    again.get("/signin?next=/rubric").await;
    let wrong = again.post("/signin", &[("name", "ann"), ("password", "wrong horse battery")]).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    let unknown = again.post("/signin", &[("name", "nobody"), ("password", PASSWORD)]).await;
    assert_eq!(unknown.status, StatusCode::UNAUTHORIZED);
    let right = again.post("/signin", &[("name", "ann"), ("password", PASSWORD), ("next", "/rubric")]).await;
    assert_eq!((right.status, right.to()), (StatusCode::SEE_OTHER, "/rubric"));
    assert_eq!(again.get("/rubric").await.status, StatusCode::OK);
    again.get("/rubric").await;
    assert_eq!(again.post("/signout", &[]).await.to(), "/signin");
    assert_eq!(again.get("/rubric").await.status, StatusCode::SEE_OTHER);

    let old = ann.cookies.clone();
    ann.get("/account").await;
    let changed =
        ann.post("/account/password", &[("password", PASSWORD), ("new_password", "another long one")]).await;
    assert_eq!(changed.to(), "/account", "{}", changed.text);
    assert_eq!(ann.get("/account").await.status, StatusCode::OK, "the session that changed it goes on");
    let mut stale = site.stranger();
    stale.cookies = old;
    assert_eq!(stale.get("/account").await.status, StatusCode::SEE_OTHER, "older ones do not");
}

/// A cookie that was planted before signing in is worth nothing after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_in_begins_a_new_session() {
    let site = Site::new(plain(2)).await;
    let ann = joined(&site, "ann", &[Role::Annotator]).await;
    let mallory = joined(&site, "mallory", &[Role::Annotator]).await;

    let mut planted = site.stranger();
    planted.cookies.insert("polity".into(), "0".repeat(64));
    planted.get("/signin").await;
    planted.post("/signin", &[("name", "ann"), ("password", PASSWORD)]).await;
    assert_ne!(planted.cookies["polity"], "0".repeat(64));

    // Ann's browser holds mallory's session; signing in as ann ends it and begins another.
    let mut browser = site.stranger();
    browser.cookies = mallory.cookies.clone();
    browser.get("/account").await;
    browser.post("/signin", &[("name", "ann"), ("password", PASSWORD)]).await;
    assert_ne!(browser.cookies["polity"], mallory.cookies["polity"]);
    assert_ne!(browser.cookies["polity"], ann.cookies["polity"]);
    assert!(browser.get("/account").await.text.contains("<h1>ann</h1>"));
    let mut old = mallory.clone();
    assert_eq!(old.get("/account").await.status, StatusCode::SEE_OTHER);
}

/// Every form of the site, without its secret, with another session's, and from another site.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_forms_are_refused() {
    let site = Site::new(plain(2)).await;
    let mut admin = site.client("admin", &[Role::Admin]).await;
    let other = site.client("other", &[Role::Admin]).await;
    let before = site.store.ledger_head().await.unwrap();
    let mut forms = 0;
    for route in routes().filter(|route| route.method == "POST" && !route.is_api()) {
        let path = route.path.replace("{secret}", "x").replace("{id}", "x").replace("{comparison}", "x");
        let none = admin.post_bare(&path, &[]).await;
        assert_eq!(none.status, StatusCode::FORBIDDEN, "{path}");
        let others = admin.post_bare(&path, &[("csrf", &other.csrf)]).await;
        assert_eq!(others.status, StatusCode::FORBIDDEN, "{path}");
        let empty = admin.post_bare(&path, &[("csrf", "")]).await;
        assert_eq!(empty.status, StatusCode::FORBIDDEN, "{path}");
        let request = Request::post(&path)
            .header("sec-fetch-site", "cross-site")
            .body(Body::from(format!("csrf={}", admin.csrf)))
            .unwrap();
        assert_eq!(admin.send(request).await.status, StatusCode::FORBIDDEN, "{path}");
        // Before sign-in there is a secret too, and it is the browser's own.
        let mut stranger = site.stranger();
        let forged = stranger.post_bare(&path, &[("csrf", &"a".repeat(64))]).await;
        assert!(matches!(forged.status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED), "{path}");
        forms += 1;
        site.wait(1000);
    }
    assert!(forms > 15, "{forms}");
    assert_eq!(site.store.ledger_head().await.unwrap(), before, "nothing was changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signing_in_leads_to_this_server_only() {
    let site = Site::new(plain(2)).await;
    joined(&site, "ann", &[Role::Annotator]).await;
    for (next, to) in [
        ("/rubric", "/rubric"),
        ("//evil.org/x", "/compare"),
        ("/\\evil.org", "/compare"),
        ("https://evil.org", "/compare"),
        ("javascript:alert(1)", "/compare"),
        ("/x\r\nSet-Cookie: a=b", "/compare"),
        ("\t//evil.org", "/compare"),
    ] {
        let mut client = site.stranger();
        let shown = client
            .get(&format!(
                "/signin?next={}",
                form_urlencoded::byte_serialize(next.as_bytes()).collect::<String>()
            ))
            .await;
        assert!(!shown.text.contains("evil.org"), "{}", shown.text);
        let answer = client.post("/signin", &[("name", "ann"), ("password", PASSWORD), ("next", next)]).await;
        assert_eq!((answer.status, answer.to()), (StatusCode::SEE_OTHER, to), "{next:?}");
        let signed_in = client
            .get(&format!(
                "/signin?next={}",
                form_urlencoded::byte_serialize(next.as_bytes()).collect::<String>()
            ))
            .await;
        assert_eq!(signed_in.to(), to, "{next:?}");
        site.wait(20_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessing_is_slowed_down_by_name() {
    let site = Site::new(plain(2)).await;
    joined(&site, "ann", &[Role::Annotator]).await;
    let mut client = site.stranger();
    client.get("/signin").await;
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.push(
            client
                .post("/signin", &[("name", "ann"), ("password", "guess guess guess")])
                .await
                .status
                .as_u16(),
        );
    }
    assert_eq!(seen, [401, 401, 401, 401, 401, 401, 401, 401, 429, 429]);
    // Even the right one has to wait now, so that an answer tells nothing.
    let right = client.post("/signin", &[("name", "ann"), ("password", PASSWORD)]).await;
    assert_eq!(right.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(right.headers["retry-after"], "15");
    site.wait(15_000);
    assert_eq!(
        client.post("/signin", &[("name", "ann"), ("password", PASSWORD)]).await.status,
        StatusCode::SEE_OTHER
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_climb_and_bodies_that_swell_lead_nowhere() {
    let site = Site::new(plain(2)).await;
    for path in [
        "/static/..%2f..%2fCargo.toml",
        "/static/../../etc/passwd",
        "/static/%2e%2e%2fstore.db",
        "/static/..%5c..%5cx",
        "/static/style.css%00.png",
        "/static//etc/passwd",
        "/static/%ff",
        "/../etc/passwd",
        "/static/",
    ] {
        let answer = site.stranger().get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {}", answer.text);
        assert!(answer.headers.contains_key("content-security-policy"), "{path}");
    }
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    let huge = "x".repeat(2 << 20);
    let answer = ann.post("/compare", &[("reason", &huge)]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let answer = ann.send(Request::delete("/compare").body(Body::empty()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_has_the_headers() {
    let site = Site::new(plain(2)).await;
    let mut ann = site.client("ann", &[Role::Annotator]).await;
    for path in ["/compare", "/static/app.js", "/nothing", "/healthz", "/api/v1/me"] {
        let answer = ann.get(path).await;
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(answer.headers["cache-control"] == "no-store", path != "/static/app.js", "{path}");
        assert!(
            !answer.text.contains(" style=\"") && !answer.text.contains(" onclick="),
            "{path} needs what the policy forbids"
        );
    }
    let cookie = site.stranger().get("/signin").await.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{cookie}");
}

/// What must stay between the server and one browser is in no log, no counter and no event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_written_nowhere() {
    let site = Site::new(plain(2)).await;
    let mut admin = joined(&site, "root", &[Role::Admin]).await;
    admin.get("/people").await;
    let page = admin.post("/people/invites", &[("roles", "annotator"), ("note", "for ann")]).await;
    let invite = page.text.split("/invite/").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let mut ann = site.stranger();
    ann.get(&format!("/invite/{invite}")).await;
    ann.post(&format!("/invite/{invite}"), &[("name", "ann"), ("password", PASSWORD)]).await;
    site.stranger().get(&format!("/invite/{invite}")).await;
    let mut guess = site.stranger();
    guess.get("/signin").await;
    guess.post("/signin", &[("name", "ann"), ("password", "a secret that is wrong")]).await;
    admin.get("/account").await;
    let page = admin.post("/account/tokens", &[("name", "script"), ("days", "3")]).await;
    let token =
        page.text.split("<code class=\"secret\">").nth(1).unwrap().split('<').next().unwrap().to_owned();
    let page = admin.post(&format!("/people/{}/password", ann_id(&site).await), &[]).await;
    let given =
        page.text.split("<code class=\"secret\">").nth(1).unwrap().split('<').next().unwrap().to_owned();
    assert!(invite.len() == 64 && token.len() == 64 && given.len() == 16, "{invite} {token} {given}");

    let mut program = site.stranger();
    program.token = Some(token.clone());
    let metrics = program.get("/metrics").await;
    assert_eq!(metrics.status, StatusCode::OK);
    let events = format!("{:?}", site.store.events(1, 1000).await.unwrap());
    let log = site.log.lock().unwrap().join("\n");
    assert!(log.contains("a sign-in failed"), "the log is looked at: {log}");
    let secrets = [
        invite.as_str(),
        PASSWORD,
        "a secret that is wrong",
        &token,
        &given,
        &admin.cookies["polity"],
        &admin.csrf,
    ];
    for secret in secrets {
        for (place, text) in [("metrics", &metrics.text), ("ledger", &events), ("log", &log)] {
            assert!(!text.contains(secret), "{secret} is in the {place}");
        }
    }
}

async fn ann_id(site: &Site) -> String {
    site.store.account_by_name("ann").await.unwrap().0.id
}
