//! The table of routes, and the one way from a request to a handler.
//!
//! Each row names method, path, who may, what is sent and what comes back. The router and the OpenAPI document are both built from the table, so there
//! is no route without a rule and no field that is read and not described. [`answer`] does for every row, in this order: read the body up to a
//! limit, find out who asks, check the rule, check the form's secret, check the fields, call the handler, count, add the security headers.
//!
//! **Who asks.** Pages take the session cookie; `/api/` takes `Authorization: Bearer TOKEN` and no cookie, so a page on another
//! site can do nothing there. Forms carry the session's secret (before sign-in, that of a cookie of their own), and a `POST` that the browser calls cross-site is refused.
//!
//! Not here: the handlers, one module for each part of the site.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{ConnectInfo, RawPathParams, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{RequestExt, Router};
use polity_store::{Account, Role, StoreError};
use serde_json::{Map, Value, json};

use crate::app::App;
use crate::cookie::{self, Cookies};
use crate::error::{Failure, Outcome};
use crate::field::{self, Field};
use crate::limit::Limit;
use crate::page;

/// Largest body.
pub(crate) const BODY_BYTES_MAX: usize = 1 << 20;

/// Longest time for sending a body: who sends slower only wants to hold the connection.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Who may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Public,
    /// Every account.
    SignedIn,
    /// Accounts with one of these roles, and administrators.
    Roles(&'static [Role]),
}

impl Access {
    /// Whether an account may; `None` is nobody.
    pub fn allows(self, account: Option<&Account>) -> bool {
        match (self, account) {
            (Access::Public, _) => true,
            (_, None) => false,
            (Access::SignedIn, Some(_)) => true,
            (Access::Roles(roles), Some(account)) => {
                account.roles.contains(&Role::Admin) || roles.iter().any(|role| account.roles.contains(role))
            }
        }
    }
}

/// What a handler returns.
pub(crate) type Answering = Pin<Box<dyn Future<Output = Outcome<Response>> + Send>>;

/// One row of the table.
pub struct Route {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// With `{name}` for parts that vary.
    pub path: &'static str,
    /// Who may.
    pub access: Access,
    /// One sentence, for the API's document.
    pub about: &'static str,
    /// What may be sent: in the query of a `GET`, in the body of a `POST`.
    pub fields: &'static [Field],
    /// Keys of the JSON object that comes back; empty for a page.
    pub returns: &'static [Field],
    pub(crate) handler: fn(App, Call) -> Answering,
}

impl Route {
    /// Whether it speaks JSON and takes tokens.
    pub fn is_api(&self) -> bool {
        self.path.starts_with("/api/")
    }
}

/// A row: `route!(GET "/path" Access::SignedIn, "What it does.", [fields], [returns], handler)`.
macro_rules! route {
    ($method:ident $path:literal $access:expr, $about:literal, $fields:expr, $returns:expr, $handler:path) => {
        $crate::route::Route {
            method: stringify!($method),
            path: $path,
            access: $access,
            about: $about,
            fields: &$fields,
            returns: &$returns,
            handler: |app, call| Box::pin($handler(app, call)),
        }
    };
}
pub(crate) use route;

/// Everything that the server answers.
pub fn routes() -> impl Iterator<Item = &'static Route> {
    [
        crate::assets::ROUTES,
        crate::session::ROUTES,
        crate::account::ROUTES,
        crate::compare::ROUTES,
        crate::rubric::ROUTES,
        crate::calibration::ROUTES,
        crate::review::ROUTES,
        crate::panel::ROUTES,
        crate::people::ROUTES,
        crate::project::ROUTES,
        crate::export::ROUTES,
    ]
    .into_iter()
    .chain(crate::boards::ROUTES)
    .chain([crate::api::ROUTES])
    .flatten()
}

/// The router, built from the table.
pub fn router(app: App) -> Router {
    let mut router: Router<App> = Router::new();
    for route in routes() {
        let filter = match route.method {
            "GET" => MethodFilter::GET,
            "POST" => MethodFilter::POST,
            other => unreachable!("{other} {} is in the table", route.path),
        };
        let handler = move |State(app): State<App>, request: Request| answer(app, route, request);
        let method: MethodRouter<App> = on(filter, handler);
        router = router.route(route.path, method);
    }
    let nothing = |State(app): State<App>, request: Request| async move {
        refuse(&app, &Failure::NotFound, request.uri().path().starts_with("/api/"))
    };
    let method = |State(app): State<App>, request: Request| async move {
        let mut response = refuse(&app, &Failure::NotFound, request.uri().path().starts_with("/api/"));
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response
    };
    router.fallback(nothing).method_not_allowed_fallback(method).with_state(app)
}

/// Who asks.
#[derive(Clone)]
pub(crate) struct Who {
    pub(crate) account: Account,
}

impl Who {
    pub(crate) fn may(&self, access: Access) -> bool {
        access.allows(Some(&self.account))
    }
}

/// A request whose rule and fields have been checked.
pub(crate) struct Call {
    pub(crate) now_ms: i64,
    who: Option<Who>,
    /// The secret that forms on the answer must carry.
    pub(crate) form_secret: String,
    /// The session cookie's secret, if it came with a good one.
    pub(crate) session: Option<String>,
    /// The client's address, for limits.
    pub(crate) address: String,
    /// Path and query, for coming back after sign-in.
    pub(crate) place: String,
    parts: Vec<(String, String)>,
    input: Map<String, Value>,
}

impl Call {
    /// Who asks; only for handlers whose rule is not public.
    pub(crate) fn who(&self) -> &Who {
        self.who.as_ref().expect("the rule of this route asks for an account")
    }

    pub(crate) fn anyone(&self) -> Option<&Who> {
        self.who.as_ref()
    }

    /// The account's id.
    pub(crate) fn id(&self) -> &str {
        &self.who().account.id
    }

    /// A part of the path.
    pub(crate) fn part(&self, name: &str) -> &str {
        let found = self.parts.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).expect("the path has this part")
    }

    /// A part of the path that is a number; nothing else can be there.
    pub(crate) fn part_int(&self, name: &str) -> Outcome<i64> {
        self.part(name).parse().map_err(|_| Failure::NotFound)
    }

    /// What was sent, by the field's name.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.input.get(name)
    }

    /// A text; empty if absent.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).and_then(Value::as_str).unwrap_or("")
    }

    pub(crate) fn int(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(Value::as_i64)
    }

    pub(crate) fn yes(&self, name: &str) -> bool {
        self.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A list of texts; empty if absent.
    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        let list = self.get(name).and_then(Value::as_array);
        list.map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
    }

    /// An object; empty if absent.
    pub(crate) fn map(&self, name: &str) -> Map<String, Value> {
        self.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
    }
}

async fn answer(app: App, route: &'static Route, request: Request) -> Response {
    let began_ms = app.now_ms();
    let mut response = match checked(&app, route, request, began_ms).await {
        Ok((call, cookie)) => {
            let place = call.place.clone();
            let anonymous = call.who.is_none();
            let mut response = match (route.handler)(app.clone(), call).await {
                Ok(response) => response,
                Err(failure) => failed(&app, &failure, route, anonymous, &place),
            };
            if let Some(cookie) = cookie {
                response.headers_mut().append(header::SET_COOKIE, cookie);
            }
            response
        }
        Err((failure, place)) => failed(&app, &failure, route, true, &place),
    };
    let took_ms = app.now_ms() - began_ms;
    app.metrics().request(route.method, route.path, response.status().as_u16(), took_ms);
    secure(&app, &mut response);
    response
}

/// A failed request's answer: a browser that is not signed in is sent to sign in, and back afterwards.
fn failed(app: &App, failure: &Failure, route: &Route, anonymous: bool, place: &str) -> Response {
    if matches!(failure, Failure::SignIn) && anonymous && !route.is_api() && route.method == "GET" {
        let next = form_urlencoded::byte_serialize(place.as_bytes()).collect::<String>();
        return page::redirect(&format!("/signin?next={next}"));
    }
    refuse(app, failure, route.is_api())
}

/// An error's page or object.
pub(crate) fn refuse(app: &App, failure: &Failure, api: bool) -> Response {
    let incident = match failure {
        Failure::Internal(what) => {
            let incident: String = app.random()[..4].iter().map(|byte| format!("{byte:02x}")).collect();
            app.log(&format!("failure {incident}: {what}"));
            incident
        }
        _ => String::new(),
    };
    let message = failure.message(&incident);
    let mut response = match api {
        true => json_response(&json!({"error": {"code": failure.code(), "message": message}})),
        false => page::error(app, failure.title(), &message).into_response(),
    };
    *response.status_mut() = failure.status();
    if let Failure::TooMany(wait_s) = failure {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(*wait_s));
    }
    if api && matches!(failure, Failure::SignIn) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    secure(app, &mut response);
    response
}

type Refused = (Failure, String);

/// Everything before the handler; also a cookie to set on the answer.
async fn checked(
    app: &App,
    route: &'static Route,
    mut request: Request,
    now_ms: i64,
) -> Result<(Call, Option<HeaderValue>), Refused> {
    let place = request.uri().path_and_query().map_or("/", |place| place.as_str()).to_owned();
    let refused = |failure: Failure| (failure, place.clone());

    let parts = match request.extract_parts::<RawPathParams>().await {
        Ok(parts) => parts.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        // A path that is no UTF-8 names nothing.
        Err(_) => return Err(refused(Failure::NotFound)),
    };
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip().to_string());
    let (head, body) = request.into_parts();
    let address = address(app, &head.headers, peer);
    let cookies = Cookies::read(&head.headers);

    let (who, session, csrf) = if route.is_api() || bearer(&head.headers).is_some() {
        (by_token(app, &head.headers, now_ms).await.map_err(refused)?, None, None)
    } else {
        match cookies.get(cookie::session_name(app)) {
            None => (None, None, None),
            Some(secret) => match app.store().session(secret, now_ms).await {
                Ok(found) => {
                    (Some(Who { account: found.account }), Some(secret.to_owned()), Some(found.csrf))
                }
                Err(StoreError::Credential { .. }) => (None, None, None),
                Err(error) => return Err(refused(error.into())),
            },
        }
    };
    if !route.access.allows(who.as_ref().map(|who| &who.account)) {
        return Err(refused(if who.is_some() { Failure::Forbidden } else { Failure::SignIn }));
    }
    if let Some(who) = &who {
        app.limits()
            .take(Limit::Account, &who.account.id, now_ms)
            .map_err(|wait_s| refused(Failure::TooMany(wait_s)))?;
    }

    let (form_secret, set_cookie) = match (csrf, cookies.get(cookie::form_name(app))) {
        (Some(csrf), _) => (csrf, None),
        (None, Some(secret)) if cookie::is_secret(secret) => (secret.to_owned(), None),
        (None, _) => {
            let secret: String = app.random().iter().map(|byte| format!("{byte:02x}")).collect();
            let set = cookie::set(app, cookie::form_name(app), &secret, None);
            (secret, Some(set))
        }
    };
    let pairs = match route.method {
        "GET" => field::Sent::form(head.uri.query().unwrap_or("").as_bytes()),
        _ => body_of(&head.headers, body, route.is_api()).await.map_err(refused)?,
    };
    if head.method == Method::POST && !route.is_api() {
        let cross_site = head.headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site");
        // Comparing hashes takes the same time wherever two secrets differ.
        let sent = blake3::hash(pairs.first("csrf").unwrap_or("").as_bytes());
        if cross_site || set_cookie.is_some() || sent != blake3::hash(form_secret.as_bytes()) {
            return Err(refused(Failure::Csrf));
        }
    }
    let strict = route.is_api();
    let input = field::check(route.fields, pairs, strict).map_err(|what| refused(Failure::Input(what)))?;
    let set_cookie = set_cookie.filter(|_| !route.is_api() && route.access == Access::Public);
    let call = Call { now_ms, who, form_secret, session, address, place, parts, input };
    Ok((call, set_cookie))
}

async fn body_of(headers: &HeaderMap, body: Body, api: bool) -> Outcome<field::Sent> {
    let read = tokio::time::timeout(BODY_TIME, to_bytes(body, BODY_BYTES_MAX)).await;
    let bytes = read.map_err(|_| Failure::TooSlow)?.map_err(|_| Failure::TooLarge)?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match (api, kind.as_str()) {
        (true, _) if bytes.is_empty() => Ok(field::Sent::json(Map::new())),
        (true, "application/json") => match serde_json::from_slice(&bytes) {
            Ok(Value::Object(object)) => Ok(field::Sent::json(object)),
            Ok(_) => Err(Failure::Input("the body is no JSON object".into())),
            Err(e) => Err(Failure::Input(format!("the body is not JSON: {e}"))),
        },
        (true, other) => {
            Err(Failure::Input(format!("the body's content type is `{other}`; expected application/json")))
        }
        (false, _) => Ok(field::Sent::form(&bytes)),
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

async fn by_token(app: &App, headers: &HeaderMap, now_ms: i64) -> Outcome<Option<Who>> {
    let Some(token) = bearer(headers) else { return Ok(None) };
    match app.store().token_account(token, now_ms).await {
        Ok(account) => Ok(Some(Who { account })),
        Err(StoreError::Credential { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The peer's address; behind a proxy, what the proxy says last.
fn address(app: &App, headers: &HeaderMap, peer: Option<String>) -> String {
    let forwarded =
        headers.get_all("x-forwarded-for").iter().next_back().and_then(|value| value.to_str().ok());
    match (app.behind_proxy(), forwarded) {
        (true, Some(list)) => list.rsplit(',').next().unwrap_or("").trim().chars().take(64).collect(),
        _ => peer.unwrap_or_default(),
    }
}

/// Headers that every answer has. Nothing is fetched from elsewhere, nothing runs that is not a file of ours.
fn secure(app: &App, response: &mut Response) {
    const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; \
                          frame-ancestors 'none'; base-uri 'none'";
    let headers = response.headers_mut();
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        // Not `no-referrer`: browsers would then say `Origin: null` of our own forms.
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
        ("permissions-policy", "camera=(), microphone=(), geolocation=()"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    if app.behind_proxy() {
        let value = HeaderValue::from_static("max-age=31536000");
        headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// A JSON answer.
pub(crate) fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
