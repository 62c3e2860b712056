//! A site with some material, a clock that tests turn, and clients with cookies.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use polity_store::*;
use polity_web::{App, Boards, Options, router};
use serde_json::Value;
use tower::ServiceExt;

use crate::sample;

/// A moment in 2023.
pub const T0: i64 = 1_700_000_000_000;
pub const HOUR_MS: i64 = 3_600_000;

pub struct Site {
    pub app: App,
    pub store: Store,
    pub router: Router,
    pub clock: Arc<AtomicI64>,
    pub log: Arc<Mutex<Vec<String>>>,
    directory: tempfile::TempDir,
}

/// A policy without calibration and repeats.
pub fn plain(overlap: i64) -> Policy {
    Policy { overlap, calibration_share: 0.0, repeat_share: 0.0, ..Policy::usual() }
}

impl Site {
    pub async fn new(policy: Policy) -> Site {
        Site::with(policy, Rubric::usual(), "Test panel").await
    }

    pub async fn with(policy: Policy, rubric: Rubric, name: &str) -> Site {
        let directory = tempfile::tempdir().unwrap();
        let location = directory.path().join("store.db").to_str().unwrap().to_owned();
        let project =
            NewProject { name: name.into(), validation_share: 0.1, holdout_share: 0.1, policy, rubric };
        let store = Store::create(&location, [7; 32], project, "test", T0).await.unwrap();
        let clock = Arc::new(AtomicI64::new(T0));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (ticking, written) = (clock.clone(), log.clone());
        let options = Options {
            clock: Arc::new(move || ticking.load(Ordering::Relaxed)),
            seed: [9; 32],
            behind_proxy: false,
            log: Arc::new(move |line: &str| written.lock().unwrap().push(line.to_owned())),
            boards: Boards {
                dir: Some(directory.path().to_owned()),
                stages: vec![sample::board()],
                lineage: Some(Arc::new(|release| Ok(format!("<svg>{release}</svg>")))),
            },
        };
        let app = App::new(store.clone(), options).await.unwrap();
        Site { router: router(app.clone()), app, store, clock, log, directory }
    }

    /// The project's directory.
    pub fn dir(&self) -> &Path {
        self.directory.path()
    }

    pub fn now(&self) -> i64 {
        self.clock.load(Ordering::Relaxed)
    }

    pub fn wait(&self, ms: i64) {
        self.clock.fetch_add(ms, Ordering::Relaxed);
    }

    /// Adds `n` comparisons of two models and returns their names.
    pub async fn material(&self, n: usize, wanted: i64) -> Vec<String> {
        let pairs: Vec<_> = (0..n)
            .map(|i| (format!("Question {i}?"), format!("Good answer {i}."), format!("Bad answer {i}.")))
            .collect();
        self.pairs(&pairs, wanted).await
    }

    /// Adds comparisons of given texts.
    pub async fn pairs(&self, pairs: &[(String, String, String)], wanted: i64) -> Vec<String> {
        let mut material = Material::default();
        let mut names = Vec::new();
        for (i, (prompt, good, bad)) in pairs.iter().enumerate() {
            let content = Content::plain(prompt);
            let id = prompt_id(&content);
            let category = if i % 2 == 0 { "even" } else { "odd" };
            material.prompts.push(NewPrompt { content, category: category.into(), origin: "test".into() });
            let responses = [(good, "m1"), (bad, "m2")].map(|(text, model)| NewResponse {
                prompt_id: id.clone(),
                content: Content::plain(text),
                model: model.into(),
                model_hash: None,
                sampler: None,
                sample_index: None,
                origin: "test".into(),
            });
            let ids = [0, 1].map(|i| response_id(&id, &responses[i].content, &responses[i].model));
            names.push(comparison_id(&ids[0], &ids[1]));
            material.responses.extend(responses);
            material.comparisons.push(NewComparison {
                prompt_id: id,
                responses: ids,
                wanted,
                queued: true,
                origin: "test".into(),
            });
        }
        self.store.add_material(material, self.now()).await.unwrap();
        names
    }

    /// Somebody who is signed in, without the cost of a password.
    pub async fn client(&self, name: &str, roles: &[Role]) -> Client {
        let roles: BTreeSet<Role> = roles.iter().copied().collect();
        let account = self.store.add_account(name, None, roles, "test", self.now()).await.unwrap();
        self.session(&account.id).await
    }

    /// A new session of an account.
    pub async fn session(&self, account_id: &str) -> Client {
        let now = self.now();
        let (secret, csrf) = self.store.begin_session(account_id, now + 24 * HOUR_MS, now).await.unwrap();
        let mut client = self.stranger();
        client.cookies.insert("polity".into(), secret);
        client.csrf = csrf;
        client.id = account_id.to_owned();
        client
    }

    /// Somebody without an account.
    pub fn stranger(&self) -> Client {
        Client {
            router: self.router.clone(),
            cookies: BTreeMap::new(),
            csrf: String::new(),
            id: String::new(),
            token: None,
        }
    }

    /// The same account through the API.
    pub async fn program(&self, account_id: &str) -> Client {
        let (_, secret) = self.store.add_token(account_id, "test", None, self.now()).await.unwrap();
        Client { token: Some(secret), id: account_id.to_owned(), ..self.stranger() }
    }
}

#[derive(Clone)]
pub struct Client {
    router: Router,
    pub cookies: BTreeMap<String, String>,
    /// The secret of the forms on the last page.
    pub csrf: String,
    pub id: String,
    pub token: Option<String>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn to(&self) -> &str {
        self.headers.get("location").map_or("", |to| to.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The value of the first field with this name.
    pub fn field(&self, name: &str) -> Option<String> {
        let rest = self.text.split(&format!("name=\"{name}\" value=\"")).nth(1)?;
        rest.split('"').next().map(str::to_owned)
    }
}

impl Client {
    pub async fn get(&mut self, path: &str) -> Answer {
        let answer = self.send(Request::get(path).body(Body::empty()).unwrap()).await;
        if let Some(csrf) = answer.field("csrf") {
            self.csrf = csrf;
        }
        answer
    }

    /// Sends a form with the secret of the last page.
    pub async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let csrf = self.csrf.clone();
        let mut all = vec![("csrf", csrf.as_str())];
        all.extend_from_slice(fields);
        self.post_bare(path, &all).await
    }

    /// Sends a form as it is.
    pub async fn post_bare(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = Request::post(path)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(body))
            .unwrap();
        self.send(request).await
    }

    /// Calls the API.
    pub async fn call(&mut self, method: &str, path: &str, body: Value) -> Answer {
        let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        let body = if method == "GET" { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.body(body).unwrap()).await
    }

    pub async fn send(&mut self, mut request: Request<Body>) -> Answer {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !cookies.is_empty() {
            request.headers_mut().insert("cookie", cookies.join("; ").parse().unwrap());
        }
        if let Some(token) = &self.token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        for cookie in headers.get_all("set-cookie") {
            let (name, rest) = cookie.to_str().unwrap().split_once('=').unwrap();
            let value = rest.split(';').next().unwrap();
            if rest.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        let text =
            String::from_utf8(to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec()).unwrap();
        Answer { status, headers, text }
    }
}
