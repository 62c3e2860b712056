//! The API over HTTP.
//!
//! | path | |
//! |---|---|
//! | `POST /v1/chat/completions`, `POST /v1/completions` | OpenAI's, whole or as server-sent events |
//! | `GET /v1/models`, `GET /v1/models/{model}` | channels, and their arms as `CHANNEL:stable`, `CHANNEL:canary` |
//! | `POST /v1/feedback`, `POST /v1/feedback/preference` | thumbs, preferences |
//! | `GET /v1/channels` | what is served where, and how each criterion stands |
//! | `GET /v1/metrics`, `GET /v1/openapi.json` | |
//!
//! Every path but the last asks the host whose key it is. An answer that is streamed is the same answer: its pieces put together are what
//! comes whole. A comment every 15 seconds keeps proxies from closing a stream that waits.
//!
//! Not here: what the paths do beyond answering (`feedback`, `monitor`).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::serve::ListenerExt;
use futures_util::stream;
use polity_lm::engine::Job;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::answer::{Choice, Delta, Echo, Shape, Teller, Usage};
use crate::channel::{Arms, Channel};
use crate::error::ApiError;
use crate::feedback::{self, Answered, Recent};
use crate::host::{Host, Raised};
use crate::metrics::Metrics;
use crate::model::ServedModel;
use crate::monitor::{ArmName, Criterion, Measure, Then};
use crate::openapi::openapi;
use crate::request::{Api, Asked, Prompt};
use crate::scheduler::Place;

/// Largest body.
const BODY_BYTES_MAX: usize = 8 << 20;
/// Longest time for sending a body: who sends slower only wants to hold the connection.
const BODY_TIME: Duration = Duration::from_secs(30);
/// How often a stream that waits says so.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Pieces that are sent in one write, if so many are there.
const PIECES_MAX: usize = 64;

/// The server's state. Clones share it.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
}

struct Inner {
    host: Arc<dyn Host>,
    channels: Vec<Channel>,
    recent: Recent,
    metrics: Metrics,
    closing: AtomicBool,
}

impl Server {
    /// A server of these channels.
    pub fn new(host: Arc<dyn Host>, channels: Vec<Channel>) -> Server {
        let (recent, metrics, closing) = (Recent::default(), Metrics::default(), AtomicBool::new(false));
        Server { inner: Arc::new(Inner { host, channels, recent, metrics, closing }) }
    }

    /// The channels.
    pub fn channels(&self) -> &[Channel] {
        &self.inner.channels
    }

    /// Takes no more requests; those that are open go on to their end.
    pub fn close(&self) {
        self.inner.closing.store(true, Relaxed);
    }

    /// Takes no more requests and cuts off those that are open.
    pub fn abort(&self) {
        self.close();
        for model in self.models() {
            model.scheduler().abort();
        }
    }

    /// Requests that are open.
    pub fn open(&self) -> usize {
        self.models().map(|model| model.scheduler().gauges().open.load(Relaxed)).sum()
    }

    fn models(&self) -> impl Iterator<Item = Arc<ServedModel>> {
        self.channels().iter().flat_map(|channel| {
            let Arms { stable, canary } = channel.arms();
            std::iter::once(stable).chain(canary.map(|(model, _)| model))
        })
    }

    pub(crate) fn host(&self) -> &dyn Host {
        &*self.inner.host
    }

    pub(crate) fn recent(&self) -> &Recent {
        &self.inner.recent
    }

    fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Gives a value to a channel's monitor, and does what its policy says.
    pub(crate) async fn watch(&self, channel: &str, measure: Measure, arm: ArmName, release: &str, x: f64) {
        let Some(channel) = self.channels().iter().find(|known| known.name() == channel) else { return };
        for (release, alarm) in channel.watch(measure, arm, release, x) {
            let Criterion { measure, arm, then, .. } = alarm.criterion;
            self.metrics().alarm(channel.name(), measure.name());
            if (arm, then) == (ArmName::Canary, Then::Rollback) {
                channel.withdraw(&release);
            }
            let channel = channel.name().to_owned();
            if let Err(error) = self.host().alarm(Raised { channel, release, alarm }).await {
                self.host().log(&format!("an alarm could not be recorded: {error}"));
            }
        }
    }
}

/// Serves these paths alone until `stop` is done; then lets open requests end, and returns.
pub async fn serve(
    listener: TcpListener,
    server: Server,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    // A streamed answer is many small writes: each must leave at once.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let healthy = get(|| async { "ok\n" });
    axum::serve(listener, router(server).route("/healthz", healthy)).with_graceful_shutdown(stop).await
}

/// The router.
pub fn router(server: Server) -> Router {
    let nothing = |request: Request| async move {
        ApiError::not_found(format!("there is no {} {}", request.method(), request.uri().path()))
            .into_response()
    };
    Router::new()
        .route("/v1/chat/completions", post(|state, request| generate(state, request, Api::Chat)))
        .route("/v1/completions", post(|state, request| generate(state, request, Api::Completions)))
        .route("/v1/models", get(models))
        .route("/v1/models/{model}", get(model))
        .route("/v1/feedback", post(thumb))
        .route("/v1/feedback/preference", post(preference))
        .route("/v1/channels", get(channels))
        .route("/v1/metrics", get(metrics))
        .route("/v1/openapi.json", get(|| async { json_response(&openapi()) }))
        .route("/v1/{*rest}", any(nothing))
        .with_state(server)
}

fn json_response(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// Answers, and counts how.
fn counted(server: &Server, route: &'static str, answer: Result<Response, ApiError>) -> Response {
    let response = answer.unwrap_or_else(IntoResponse::into_response);
    server.metrics().request(route, response.status().as_u16());
    response
}

async fn caller(server: &Server, headers: &HeaderMap) -> Result<String, ApiError> {
    let key = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = key.and_then(|value| value.split_once(' '));
    let key = key.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key.trim());
    match server.host().caller(key).await {
        Ok(Some(caller)) => Ok(caller),
        Ok(None) => Err(ApiError::unauthorized()),
        Err(error) => {
            server.host().log(&format!("a key could not be looked up: {error}"));
            Err(ApiError::internal())
        }
    }
}

/// Whose request it is, and its body.
async fn received(server: &Server, request: Request) -> Result<(String, Bytes), ApiError> {
    let (head, body) = request.into_parts();
    let caller = caller(server, &head.headers).await?;
    let read = tokio::time::timeout(BODY_TIME, to_bytes(body, BODY_BYTES_MAX)).await;
    let late = |_| ApiError {
        status: StatusCode::REQUEST_TIMEOUT,
        ..ApiError::body("the body did not come in time")
    };
    let large = |_| {
        let message = format!("the body is larger than {} MiB", BODY_BYTES_MAX >> 20);
        ApiError { status: StatusCode::PAYLOAD_TOO_LARGE, ..ApiError::body(message) }
    };
    Ok((caller, read.map_err(late)?.map_err(large)?))
}

async fn thumb(State(server): State<Server>, request: Request) -> Response {
    let answer = async {
        let (caller, body) = received(&server, request).await?;
        Ok(json_response(&feedback::thumb(&server, caller, &body).await?))
    };
    let answer = answer.await;
    counted(&server, "/v1/feedback", answer)
}

async fn preference(State(server): State<Server>, request: Request) -> Response {
    let answer = async {
        let (caller, body) = received(&server, request).await?;
        Ok(json_response(&feedback::preference(&server, caller, &body).await?))
    };
    let answer = answer.await;
    counted(&server, "/v1/feedback/preference", answer)
}

async fn models(State(server): State<Server>, headers: HeaderMap) -> Result<Response, ApiError> {
    caller(&server, &headers).await?;
    let data: Vec<Value> = names(&server).into_keys().map(|name| described(&name)).collect();
    Ok(json_response(&json!({"object": "list", "data": data})))
}

async fn model(
    State(server): State<Server>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller(&server, &headers).await?;
    find(&server, &name)?;
    Ok(json_response(&described(&name)))
}

fn described(name: &str) -> Value {
    json!({"id": name, "object": "model", "created": 0, "owned_by": "polity"})
}

/// What `model` may be: a channel, or an arm of it.
fn names(server: &Server) -> BTreeMap<String, (&Channel, Option<ArmName>)> {
    let mut names = BTreeMap::new();
    for channel in server.channels() {
        names.insert(channel.name().to_owned(), (channel, None));
        if channel.arms().canary.is_some() {
            for arm in [ArmName::Stable, ArmName::Canary] {
                names.insert(format!("{}:{}", channel.name(), arm.name()), (channel, Some(arm)));
            }
        }
    }
    names
}

fn find<'s>(server: &'s Server, name: &str) -> Result<(&'s Channel, Option<ArmName>), ApiError> {
    let mut names = names(server);
    names.remove(name).ok_or_else(|| {
        let known: Vec<String> = names.into_keys().map(|name| format!("`{name}`")).collect();
        ApiError::no_model(name, &known.join(", "))
    })
}

async fn channels(State(server): State<Server>, headers: HeaderMap) -> Result<Response, ApiError> {
    caller(&server, &headers).await?;
    let channels = server.channels().iter().map(|channel| {
        let arms = channel.arms();
        let arm = |model: &ServedModel| json!({"release": model.name, "model": model.hash});
        let criteria: Vec<Value> = {
            let monitor = channel.monitor();
            let standings = monitor.standings();
            standings
                .map(|(criterion, standing)| json!({"criterion": criterion, "standing": standing}))
                .collect()
        };
        json!({
            "channel": channel.name(),
            "stable": arm(&arms.stable),
            "canary": arms.canary.as_ref().map(|(model, _)| arm(model)),
            "canary_share": arms.canary.as_ref().map(|(_, share)| share),
            "false_rollbacks_max": channel.policy().false_rollbacks_max(),
            "criteria": criteria,
        })
    });
    Ok(json_response(&json!({"object": "list", "data": channels.collect::<Vec<_>>()})))
}

async fn metrics(State(server): State<Server>, headers: HeaderMap) -> Result<Response, ApiError> {
    caller(&server, &headers).await?;
    let text = server.metrics().render(server.channels().iter());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn generate(State(server): State<Server>, request: Request, api: Api) -> Response {
    let route = match api {
        Api::Chat => "/v1/chat/completions",
        Api::Completions => "/v1/completions",
    };
    let answer = async {
        let (caller, body) = received(&server, request).await?;
        let began = Answer::begin(&server, caller, api, &body)?;
        if began.asked.stream { Ok(began.stream()) } else { Ok(json_response(&began.whole().await?)) }
    };
    let answer = answer.await;
    counted(&server, route, answer)
}

/// An answer that is being given.
struct Answer {
    server: Server,
    asked: Asked,
    caller: String,
    channel: String,
    arm: ArmName,
    /// Whether the split chose the arm, and not the client.
    split: bool,
    model: Arc<ServedModel>,
    shape: Shape,
    prompts: Vec<Prompted>,
    choices: Vec<Choice>,
    usage: Usage,
    deltas: UnboundedReceiver<Delta>,
    /// Of those prompts that have not ended.
    places: Vec<Place>,
    left: usize,
    began_ms: i64,
}

/// A prompt of an answer.
struct Prompted {
    max_new_tokens: usize,
    echo: Option<Echo>,
}

impl Answer {
    /// Checks everything and hands the prompts to the scheduler.
    fn begin(server: &Server, caller: String, api: Api, body: &[u8]) -> Result<Answer, ApiError> {
        if server.inner.closing.load(Relaxed) {
            return Err(ApiError::closing());
        }
        let began_ms = server.host().now_ms();
        let asked = Asked::read(api, body)?;
        let (channel, arm) = find(server, &asked.model)?;
        let user = format!("{caller}\n{}", asked.user.as_deref().unwrap_or_default());
        let (split, (arm, model)) = match arm {
            None => (true, channel.arm_of(&user)),
            Some(arm) => {
                let model = channel.arms().get(arm).cloned();
                (false, (arm, model.ok_or_else(|| ApiError::no_model(&asked.model, channel.name()))?))
            }
        };
        let encoded = asked.prompts.iter().map(|prompt| model.encode(&asked, prompt, began_ms / 1000));
        let encoded = encoded.collect::<Result<Vec<_>, _>>()?;
        let seed = asked.seed.unwrap_or_else(|| server.host().random());
        let (to, deltas) = unbounded_channel();
        let (mut places, mut prompts, mut usage) = (Vec::new(), Vec::new(), Usage::default());
        for (index, prompt) in encoded.into_iter().enumerate() {
            let sampler = asked.sampler(&model.usual, prompt.max_new_tokens)?;
            let samples = if prompt.max_new_tokens == 0 { 0 } else { asked.samples };
            let teller =
                Teller::new(&asked, index, &prompt.ids, &sampler.stop_strings, &model.tokenizer, to.clone());
            usage.prompt += prompt.ids.len();
            let echo =
                asked.echo.then(|| Echo { ids: prompt.ids.clone(), text: prompt.text, scored: Vec::new() });
            let job = Job {
                id: 0,
                ids: prompt.ids,
                samples,
                prompt_id: index as u64,
                seed,
                sampler: Arc::new(sampler),
                top: asked.logprobs.unwrap_or(0),
                score_prompt: asked.echo && (asked.logprobs.is_some() || samples == 0),
            };
            places.push(model.scheduler().submit(job, Box::new(teller))?);
            prompts.push(Prompted { max_new_tokens: prompt.max_new_tokens, echo });
        }
        let kind = if api == Api::Chat { "chatcmpl" } else { "cmpl" };
        let shape = Shape {
            api,
            id: format!("{kind}-{:016x}{:016x}", server.host().random(), server.host().random()),
            created_s: began_ms / 1000,
            model: asked.model.clone(),
            fingerprint: model.fingerprint(),
            tokenizer: model.tokenizer.clone(),
            top: asked.logprobs,
            token_ids: asked.token_ids,
        };
        let choices = (0..prompts.len() * asked.samples).map(|_| Choice::default()).collect();
        let (left, channel) = (prompts.len(), channel.name().to_owned());
        let server = server.clone();
        Ok(Answer {
            server,
            asked,
            caller,
            channel,
            arm,
            split,
            model,
            shape,
            prompts,
            choices,
            usage,
            deltas,
            places,
            left,
            began_ms,
        })
    }

    /// The whole answer, when it is there.
    async fn whole(mut self) -> Result<Value, ApiError> {
        while self.left > 0 {
            // The senders are the listeners: without any left, the scheduler's thread is gone.
            let delta = self.deltas.recv().await.unwrap_or(Delta::End { whole: false });
            if matches!(delta, Delta::End { whole: false }) {
                self.failed().await;
                return Err(ApiError::cut());
            }
            self.take(delta);
        }
        let choices = self.choices.iter().enumerate().map(|(index, choice)| {
            self.shape.choice(index, choice, self.prompts[index / self.asked.samples].echo.as_ref())
        });
        let answer = self.shape.whole(choices.collect(), self.usage);
        self.done().await;
        Ok(answer)
    }

    /// Adds a delta; gives its piece of a streamed answer.
    fn take(&mut self, delta: Delta) -> Vec<Value> {
        match delta {
            Delta::Prompt { prompt, scored } => {
                let Some(echo) = &mut self.prompts[prompt].echo else { return Vec::new() };
                echo.scored = scored;
                self.echoed(prompt)
            }
            Delta::Text { choice, text, scored, ids, finish } => {
                if self.usage.completion == 0 {
                    self.server.metrics().first_token(self.server.host().now_ms() - self.began_ms);
                }
                self.usage.completion += ids.len();
                let echo = &self.prompts[choice / self.asked.samples].echo;
                let before = echo.as_ref().map_or(0, |echo| echo.text.chars().count());
                let whole = &mut self.choices[choice];
                whole.text += &text;
                let scored = self.shape.placed(&whole.text, before, scored);
                let piece = Choice { text, scored, ids, finish };
                whole.finish = finish;
                let silent = piece.text.is_empty() && piece.scored.is_empty() && finish.is_none();
                let pieces = match self.asked.stream && (!silent || self.asked.token_ids) {
                    true => vec![self.shape.piece(choice, &piece)],
                    false => Vec::new(),
                };
                whole.scored.extend(piece.scored);
                whole.ids.extend(piece.ids);
                pieces
            }
            Delta::End { .. } => {
                self.left -= 1;
                self.places.pop();
                Vec::new()
            }
        }
    }

    /// The echo of a prompt for each of its choices, as pieces.
    fn echoed(&self, prompt: usize) -> Vec<Value> {
        let Some(echo) = &self.prompts[prompt].echo else { return Vec::new() };
        let choices = prompt * self.asked.samples..(prompt + 1) * self.asked.samples;
        choices.map(|choice| self.shape.echoed(choice, echo)).collect()
    }

    /// Server-sent events.
    fn stream(self) -> Response {
        let first = match self.asked.api {
            Api::Chat => (0..self.choices.len()).map(|choice| self.shape.role(choice)).collect(),
            // With log-probs the echo waits for them.
            Api::Completions if self.asked.logprobs.is_none() => {
                (0..self.prompts.len()).flat_map(|prompt| self.echoed(prompt)).collect()
            }
            Api::Completions => Vec::new(),
        };
        let first = self.events(first);
        let events = stream::unfold((Some(self), first), |(answer, ready)| async move {
            let mut answer = answer?;
            if !ready.is_empty() {
                return Some((Ok::<_, std::convert::Infallible>(ready), (Some(answer), String::new())));
            }
            let (events, going_on) = answer.next_events().await;
            Some((Ok(events), (going_on.then_some(answer), String::new())))
        });
        let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        // Proxies that gather answers would make a stream of it no stream.
        (headers, [("x-accel-buffering", "no")], Body::from_stream(events)).into_response()
    }

    fn events(&self, choices: Vec<Value>) -> String {
        choices.into_iter().map(|choice| event(&self.usage_of(self.shape.chunk(vec![choice])))).collect()
    }

    /// Clients that ask for the usage find the key in every piece.
    fn usage_of(&self, mut chunk: Value) -> Value {
        if self.asked.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// Waits for something to send; the second is whether there will be more.
    async fn next_events(&mut self) -> (String, bool) {
        let mut events = String::new();
        let first = match tokio::time::timeout(COMMENT_EVERY, self.deltas.recv()).await {
            Err(_) => return (": waiting\n\n".to_owned(), true),
            Ok(delta) => delta.unwrap_or(Delta::End { whole: false }),
        };
        let mut delta = first;
        for more in (0..PIECES_MAX).rev() {
            if matches!(delta, Delta::End { whole: false }) {
                self.failed().await;
                return (events + &event(&ApiError::cut().json()), false);
            }
            let pieces = self.take(delta);
            events += &self.events(pieces);
            if self.left == 0 {
                if self.asked.include_usage {
                    let mut chunk = self.shape.chunk(Vec::new());
                    chunk["usage"] = self.usage.json();
                    events += &event(&chunk);
                }
                self.done().await;
                return (events + "data: [DONE]\n\n", false);
            }
            // What is received is sent: the last of these waits in the channel.
            if more == 0 {
                break;
            }
            match self.deltas.try_recv() {
                Ok(next) => delta = next,
                Err(_) => break,
            }
        }
        (events, true)
    }

    /// The answer is whole: it can be spoken of, and is watched.
    async fn done(&mut self) {
        let server = self.server.clone();
        server.metrics().whole(server.host().now_ms() - self.began_ms);
        let samples = self.asked.samples;
        let text_of = |prompt: &Prompt| match prompt {
            Prompt::Messages { messages, .. } => Value::from(messages.clone()),
            Prompt::Text(text) => Value::from(text.as_str()),
            Prompt::Ids(ids) => Value::from(self.model.tokenizer.decode(ids, true).unwrap_or_default()),
        };
        let texts = self.choices.iter().enumerate().map(|(at, choice)| (at / samples, choice.text.clone()));
        let answered = Answered {
            channel: self.channel.clone(),
            caller: self.caller.clone(),
            arm: self.arm,
            release: self.model.name.clone(),
            model: self.model.hash.clone(),
            split: self.split,
            choices: texts.collect(),
            prompts: self.asked.prompts.iter().map(text_of).collect(),
        };
        server.recent().remember(&self.shape.id, answered);
        self.watch(Measure::Error, 0.0).await;
        for at in 0..self.choices.len() {
            let choice = &self.choices[at];
            let max = self.prompts[at / samples].max_new_tokens;
            if max == 0 {
                continue;
            }
            let length = choice.ids.len() as f64 / max as f64;
            let refuses = server.host().refuses(&choice.text);
            self.watch(Measure::Length, length).await;
            self.watch(Measure::Refusal, if refuses { 1.0 } else { 0.0 }).await;
        }
    }

    /// The answer was cut off. At the end of the server that is nobody's fault.
    async fn failed(&self) {
        if !self.server.inner.closing.load(Relaxed) {
            self.watch(Measure::Error, 1.0).await;
        }
    }

    async fn watch(&self, measure: Measure, x: f64) {
        if self.split {
            self.server.watch(&self.channel, measure, self.arm, &self.model.name, x).await;
        }
    }
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}
