//! A server over the stories model, with a host that tests look into.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use polity_compute::{Cpu, Decoder, Tape};
use polity_lm::engine::{Engine, Flow, Response, SamplerConfig};
use polity_lm::{ChatTemplate, Model, Tokenizer};
use polity_serve::channel::{Arms, Channel};
use polity_serve::host::{Answering, Feedback, Host, Raised};
use polity_serve::monitor::Policy;
use polity_serve::scheduler::Limits;
use polity_serve::{ModelParts, ServedModel, Server, router};
use serde_json::Value;
use tower::ServiceExt;

pub const KEY: &str = "key of ann";

#[derive(Default)]
pub struct TestHost {
    random: AtomicU64,
    pub kept: Mutex<Vec<Feedback>>,
    pub raised: Mutex<Vec<Raised>>,
    pub log: Mutex<Vec<String>>,
}

impl Host for TestHost {
    fn now_ms(&self) -> i64 {
        1_700_000_000_000
    }

    fn random(&self) -> u64 {
        self.random.fetch_add(1, Relaxed)
    }

    fn log(&self, line: &str) {
        self.log.lock().unwrap().push(line.to_owned());
    }

    fn caller(&self, key: Option<&str>) -> Answering<Option<String>> {
        let caller = key.and_then(|key| key.strip_prefix("key of ")).map(str::to_owned);
        Box::pin(async { Ok(caller) })
    }

    fn refuses(&self, text: &str) -> bool {
        text.contains("cannot")
    }

    fn keeps_feedback(&self) -> bool {
        true
    }

    fn keep(&self, feedback: Feedback) -> Answering<()> {
        self.kept.lock().unwrap().push(feedback);
        Box::pin(async { Ok(()) })
    }

    fn alarm(&self, raised: Raised) -> Answering<()> {
        self.raised.lock().unwrap().push(raised);
        Box::pin(async { Ok(()) })
    }
}

pub fn stories() -> Model {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k");
    Model::load(dir).unwrap()
}

/// With a chat template that says what was said.
pub fn chatty() -> Model {
    let mut model = stories();
    let source = "{% for message in messages %}{{ message.content }}{% endfor %}";
    let template =
        ChatTemplate::new(Path::new("test"), &[("default".into(), source.into())], &Default::default());
    model.chat = Some(template.unwrap());
    model
}

pub fn usual(model: &Model) -> SamplerConfig {
    SamplerConfig {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        max_new_tokens: 40,
        min_new_tokens: 0,
        stop_token_ids: model.generation.eos.clone(),
        stop_strings: vec![],
        vocab: model.tokenizer_vocab(),
    }
}

pub fn served(name: &str, model: Model, limits: Limits) -> Arc<ServedModel> {
    let decoder = Decoder::new(model.config.clone()).unwrap();
    let usual = usual(&model);
    let (cpu, hash) = (Arc::new(Cpu::new(1)), name.to_owned());
    let parts = ModelParts { name: name.into(), hash, model, decoder, cpu, usual, limits };
    Arc::new(ServedModel::start(parts).unwrap())
}

pub struct Site {
    pub server: Server,
    pub router: Router,
    pub host: Arc<TestHost>,
    pub model: Arc<ServedModel>,
}

impl Site {
    pub fn new(limits: Limits) -> Site {
        let model = served("stories", chatty(), limits);
        Site::of(
            model.clone(),
            Channel::new("stories", Arms { stable: model, canary: None }, Policy::usual()),
        )
    }

    pub fn of(model: Arc<ServedModel>, channel: Channel) -> Site {
        let host = Arc::new(TestHost::default());
        let server = Server::new(host.clone(), vec![channel]);
        Site { router: router(server.clone()), server, host, model }
    }

    pub async fn send(&self, method: &str, path: &str, key: Option<&str>, body: String) -> Got {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = self.router.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
        Got { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    pub async fn post(&self, path: &str, body: Value) -> Got {
        self.send("POST", path, Some(KEY), body.to_string()).await
    }

    pub async fn get(&self, path: &str) -> Got {
        self.send("GET", path, Some(KEY), String::new()).await
    }

    /// A completion that must succeed.
    pub async fn complete(&self, body: Value) -> Value {
        self.post("/v1/completions", body).await.ok()
    }

    /// The response's body, not read yet.
    pub async fn open(&self, path: &str, body: Value) -> Body {
        let request =
            Request::builder().method("POST").uri(path).header("authorization", format!("Bearer {KEY}"));
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body()
    }
}

pub struct Got {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Got {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }

    /// The pieces of a stream that ended as it should.
    #[track_caller]
    pub fn pieces(&self) -> Vec<Value> {
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let events: Vec<&str> =
            self.text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
        let (end, pieces) = events.split_last().unwrap();
        assert_eq!(*end, "[DONE]");
        pieces.iter().map(|piece| serde_json::from_str(piece).unwrap()).collect()
    }
}

/// What `polity generate` gives for one prompt.
pub fn generated(
    model: &Model,
    ids: &[u32],
    sampler: &SamplerConfig,
    seed: u64,
    samples: usize,
) -> Vec<Response> {
    let decoder = Decoder::new(model.config.clone()).unwrap();
    let (cpu, mut tape) = (Cpu::new(1), Tape::default());
    let limits = polity_lm::engine::Limits::usual();
    let mut engine = Engine::new(&cpu, &decoder, &model.params, limits, &mut tape);
    let request = polity_lm::engine::Request { ids: ids.to_vec(), samples, prompt_id: 0 };
    let tokenizer = model.tokenizer().unwrap();
    let decode = |ids: &[u32]| tokenizer.decode(ids, true).unwrap();
    engine.generate(&[request], sampler, seed, &decode, &mut |_| Flow::Continue)
}

pub fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = tokenizer.encode(text, true).unwrap();
    ids.truncate(ids.len() - tokenizer.suffix().len());
    ids
}
