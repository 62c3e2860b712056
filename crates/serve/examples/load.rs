//! Load: 64 streams at once over loopback for a minute; what comes is checked, and memory is watched.
//!
//! Each client asks for a chat of up to 200 tokens as a stream, reads it to its end, and asks again, on one kept connection. At the end: no
//! error, every stream whole, every answer the one that its seed gave before, keys and values within their limit, resident memory after
//! ten seconds and at the end, tokens a second, times to the first token and between tokens.
//!
//! ```text
//! cargo run --release -p polity-serve --example load -- MODEL [SECONDS] [STREAMS] [KV_TOKENS]
//! ```
//!
//! Without the last ones: 60 s, 64 streams, 16384 tokens of keys and values.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polity_compute::{Cpu, Decoder};
use polity_lm::Model;
use polity_lm::engine::SamplerConfig;
use polity_serve::channel::{Arms, Channel};
use polity_serve::host::{Answering, Feedback, Host, Raised};
use polity_serve::monitor::Policy;
use polity_serve::{Limits, ModelParts, ServedModel, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const TOKENS_MAX: usize = 200;
const PROMPTS: [&str; 4] =
    ["Once upon a time", "Tom and Lily went to the park.", "The big dog", "One day, a little girl named Sue"];

struct World;

impl Host for World {
    fn now_ms(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_millis() as i64
    }
    fn random(&self) -> u64 {
        static DRAWN: AtomicUsize = AtomicUsize::new(0);
        DRAWN.fetch_add(1, Relaxed) as u64
    }
    fn log(&self, line: &str) {
        eprintln!("{line}");
    }
    fn caller(&self, _key: Option<&str>) -> Answering<Option<String>> {
        Box::pin(async { Ok(Some("load".into())) })
    }
    fn refuses(&self, _text: &str) -> bool {
        false
    }
    fn keeps_feedback(&self) -> bool {
        true
    }

    fn keep(&self, _feedback: Feedback) -> Answering<()> {
        Box::pin(async { Ok(()) })
    }
    fn alarm(&self, _raised: Raised) -> Answering<()> {
        Box::pin(async { Ok(()) })
    }
}

/// Resident memory of this process, clients and all, MiB.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

#[derive(Default)]
struct Found {
    tokens: usize,
    streams: usize,
    first_ms: Vec<f64>,
    between_ms: Vec<f64>,
}

/// Streams until the time is over; every token is one event.
async fn client(
    address: SocketAddr,
    n: usize,
    until: Instant,
    seen: Arc<Mutex<HashMap<usize, String>>>,
) -> std::io::Result<Found> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut found = Found::default();
    for round in 0.. {
        if Instant::now() >= until {
            break;
        }
        let seed = (n + 7 * round) % 50;
        let body = json!({
            "model": "load", "prompt": PROMPTS[seed % 4], "max_tokens": TOKENS_MAX, "seed": seed, "stream": true,
            "return_token_ids": true,
        })
        .to_string();
        let head =
            format!("POST /v1/completions HTTP/1.1\r\nhost: load\r\ncontent-length: {}\r\n\r\n", body.len());
        let (began, mut last) = (Instant::now(), None::<Instant>);
        stream.write_all((head + &body).as_bytes()).await?;
        let (mut bytes, mut counted, mut text) = (Vec::new(), 0, String::new());
        loop {
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let now = Instant::now();
            while let Some(end) = bytes[counted..].windows(2).position(|two| two == b"\n\n") {
                let line = String::from_utf8_lossy(&bytes[counted..counted + end]).into_owned();
                counted += end + 2;
                let Some((_, data)) = line.split_once("data: ") else { continue };
                let Ok(event) = serde_json::from_str::<Value>(data) else { continue };
                assert!(event["error"].is_null(), "{event}");
                let choice = &event["choices"][0];
                found.tokens += choice["token_ids"].as_array().map_or(0, Vec::len);
                text += choice["text"].as_str().unwrap_or_default();
                match last {
                    None => found.first_ms.push(1000.0 * (now - began).as_secs_f64()),
                    Some(last) => found.between_ms.push(1000.0 * (now - last).as_secs_f64()),
                }
                last = Some(now);
            }
            // The end of a chunked body.
            if bytes.ends_with(b"0\r\n\r\n") {
                break;
            }
        }
        let all = String::from_utf8_lossy(&bytes);
        assert!(all.starts_with("HTTP/1.1 200") && all.contains("data: [DONE]"), "{all}");
        let mut seen = seen.lock().expect("no holder of this lock can panic");
        let before = seen.entry(seed).or_insert_with(|| text.clone());
        assert_eq!(*before, text, "the same seed, another answer");
        found.streams += 1;
    }
    Ok(found)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("MODEL is missing: a model directory")?;
    let seconds: u64 = args.next().map_or(Ok(60), |text| text.parse())?;
    let streams: usize = args.next().map_or(Ok(64), |text| text.parse())?;
    let kv_tokens_max: usize = args.next().map_or(Ok(16384), |text| text.parse())?;
    let model = Model::load(&dir)?;
    let decoder = Decoder::new(model.config.clone())?;
    let usual = SamplerConfig {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        max_new_tokens: TOKENS_MAX,
        min_new_tokens: 0,
        stop_token_ids: model.generation.eos.clone(),
        stop_strings: Vec::new(),
        vocab: model.tokenizer_vocab(),
    };
    let threads = std::thread::available_parallelism()?.get();
    let limits = Limits { kv_tokens_max, ..Limits::usual() };
    let cpu = Arc::new(Cpu::new(threads));
    let parts = ModelParts { name: "load".into(), hash: "load".into(), model, decoder, cpu, usual, limits };
    let stable = Arc::new(ServedModel::start(parts)?);
    let channel = Channel::new("load", Arms { stable: stable.clone(), canary: None }, Policy::usual());
    let server = Server::new(Arc::new(World), vec![channel]);
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(polity_serve::serve(listener, server.clone(), async {
        let _ = stopped.await;
    }));

    let until = Instant::now() + Duration::from_secs(seconds);
    let seen = Arc::new(Mutex::new(HashMap::new()));
    let clients: Vec<_> =
        (0..streams).map(|n| tokio::spawn(client(address, n, until, seen.clone()))).collect();
    let watched = tokio::spawn({
        let stable = stable.clone();
        async move {
            let (mut early, mut most_kv, mut most_sequences) = (0.0, 0, 0);
            let began = Instant::now();
            while Instant::now() < until {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let gauges = stable.scheduler().gauges();
                most_kv = most_kv.max(gauges.kv_tokens_used.load(Relaxed));
                most_sequences = most_sequences.max(gauges.sequences.load(Relaxed));
                if began.elapsed() < Duration::from_secs(10) {
                    early = resident_mib();
                }
            }
            (early, resident_mib(), most_kv, most_sequences)
        }
    });
    let (mut all, mut errors) = (Found::default(), 0);
    let began = Instant::now();
    for client in clients {
        match client.await {
            Ok(Ok(found)) => {
                all.tokens += found.tokens;
                all.streams += found.streams;
                all.first_ms.extend(found.first_ms);
                all.between_ms.extend(found.between_ms);
            }
            Ok(Err(error)) => {
                eprintln!("{error}");
                errors += 1;
            }
            // Its panic is above.
            Err(_) => errors += 1,
        }
    }
    let took_s = began.elapsed().as_secs_f64();
    let (early, late, most_kv, most_sequences) = watched.await?;
    let _ = stop.send(());
    serving.await??;
    assert!(
        most_kv <= kv_tokens_max && server.open() == 0,
        "{most_kv} of {kv_tokens_max}, {} open",
        server.open()
    );
    let at = |values: &mut Vec<f64>, share: f64| {
        values.sort_unstable_by(f64::total_cmp);
        values.get(((values.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(0.0)
    };
    println!(
        "{streams} streams, {took_s:.1} s, {threads} threads: {} answers, {} tokens, {:.0} tokens/s, {errors} errors; ms to the first token: median \
         {:.0}, p95 {:.0}, most {:.0}; ms between tokens: median {:.1}, p95 {:.1}, most {:.0}; {most_sequences} sequences and {most_kv} of \
         {kv_tokens_max} tokens of keys and values at most; resident {early:.0} MiB after 10 s, {late:.0} MiB at the end",
        all.streams,
        all.tokens,
        all.tokens as f64 / took_s,
        at(&mut all.first_ms, 0.5),
        at(&mut all.first_ms, 0.95),
        at(&mut all.first_ms, 1.0),
        at(&mut all.between_ms, 0.5),
        at(&mut all.between_ms, 0.95),
        at(&mut all.between_ms, 1.0),
    );
    if errors > 0 {
        return Err("streams failed".into());
    }
    Ok(())
}
