//! Load: 50 annotators at once over loopback, for a minute; what was confirmed is compared with what is stored.
//!
//! Each annotator asks for the page, thinks, votes, and asks again, on one kept connection. Half a second to think is ten times as fast as people are; with
//! none, the load is whatever the machine can take, and the times are those of a full queue. A quarter of the votes is sent twice. At the
//! end: no confirmed vote is missing, none is there twice, no comparison has more judgements than it wants, and the times to answer.
//!
//! ```text
//! cargo run --release -p polity-web --example load -- [SECONDS] [THINK_MS] [STORE]
//! ```
//!
//! `STORE` is a path or a postgres:// URL without a store in it; a temporary file if left out. Without arguments: 60 s, 500 ms.
//!
//! ```text
//! .ci/postgres sh -c 'cargo run --release -p polity-web --example load -- 60 500 $POLITY_TEST_POSTGRES'
//! ```

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polity_store::*;
use polity_web::{App, Boards, Options};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const ANNOTATORS: usize = 50;
const OVERLAP: i64 = 3;
/// More than anybody can judge in the time.
const COMPARISONS: usize = 60_000;

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970").as_millis() as i64
}

/// A connection that is kept.
struct Browser {
    stream: TcpStream,
    cookie: String,
    csrf: String,
    took: Vec<Duration>,
}

impl Browser {
    /// Sends a request and reads the whole answer.
    async fn ask(&mut self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let began = Instant::now();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: load\r\ncookie: polity={}\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{body}",
            self.cookie,
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::with_capacity(16 << 10);
        let (head, length) = loop {
            if self.stream.read_buf(&mut bytes).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
                let length =
                    head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
                break (end + 4, length.unwrap_or(0));
            }
        };
        while bytes.len() < head + length {
            self.stream.read_buf(&mut bytes).await?;
        }
        self.took.push(began.elapsed());
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Ok((text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0), text))
    }
}

async fn fill(store: &Store) -> Result<()> {
    for chunk in 0..COMPARISONS / 1000 {
        let mut material = Material::default();
        for n in chunk * 1000..(chunk + 1) * 1000 {
            let content = Content::plain(format!(
                "Question number {n}: what is there to say about it, in a few sentences?"
            ));
            let id = prompt_id(&content);
            material.prompts.push(NewPrompt {
                content,
                category: format!("category {}", n % 5),
                origin: "load".into(),
            });
            let responses = ["one", "two"].map(|model| NewResponse {
                prompt_id: id.clone(),
                content: Content::plain(format!("Answer of {model} to {n}. ").repeat(20)),
                model: model.into(),
                model_hash: None,
                sampler: None,
                sample_index: None,
                origin: "load".into(),
            });
            let ids = [0, 1].map(|i| response_id(&id, &responses[i].content, &responses[i].model));
            material.responses.extend(responses);
            material.comparisons.push(NewComparison {
                prompt_id: id,
                responses: ids,
                wanted: OVERLAP,
                queued: true,
                origin: "load".into(),
            });
        }
        store.add_material(material, now_ms()).await?;
    }
    Ok(())
}

async fn annotate(
    address: SocketAddr,
    cookie: String,
    csrf: String,
    until: Instant,
    think: Duration,
) -> std::io::Result<(Vec<i64>, Vec<Duration>)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut browser = Browser { stream, cookie, csrf, took: Vec::new() };
    let mut confirmed = Vec::new();
    while Instant::now() < until {
        let (status, page) = browser.ask("GET", "/compare", "").await?;
        assert_eq!(status, 200, "{page}");
        let Some(rest) = page.split("name=\"assignment\" value=\"").nth(1) else { break };
        let assignment: i64 =
            rest.split('"').next().and_then(|id| id.parse().ok()).expect("an assignment is a number");
        let answer = ["left2", "right1", "tie", "left3"][confirmed.len() % 4];
        let body = format!(
            "csrf={}&assignment={assignment}&answer={answer}&axes.helpful=left1&work_ms=0",
            browser.csrf
        );
        tokio::time::sleep(think).await;
        for _ in 0..if confirmed.len().is_multiple_of(4) { 2 } else { 1 } {
            let (status, page) = browser.ask("POST", "/compare", &body).await?;
            assert_eq!(status, 303, "{page}");
        }
        confirmed.push(assignment);
    }
    Ok((confirmed, browser.took))
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let seconds: u64 = args.next().map_or(Ok(60), |text| text.parse())?;
    let think_ms: u64 = args.next().map_or(Ok(500), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let location =
        args.next().unwrap_or_else(|| directory.path().join("store.db").to_string_lossy().into_owned());
    let policy = Policy { overlap: OVERLAP, calibration_share: 0.0, repeat_share: 0.0, ..Policy::usual() };
    let project = NewProject {
        name: "load".into(),
        validation_share: 0.1,
        holdout_share: 0.1,
        policy,
        rubric: Rubric::usual(),
    };
    let store = Store::create(&location, [3; 32], project, "load", now_ms()).await?;
    eprintln!("adding {COMPARISONS} comparisons");
    fill(&store).await?;
    let options = Options {
        clock: Arc::new(now_ms),
        seed: [5; 32],
        behind_proxy: false,
        log: Arc::new(|line| eprintln!("{line}")),
        boards: Boards::default(),
    };
    let app = App::new(store.clone(), options).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(polity_web::serve(listener, app, axum::Router::new(), async {
        let _ = stopped.await;
    }));
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut tasks = Vec::new();
    for n in 0..ANNOTATORS {
        let account = store
            .add_account(&format!("annotator {n}"), None, [Role::Annotator].into(), "load", now_ms())
            .await?;
        let (cookie, csrf) = store.begin_session(&account.id, now_ms() + 86_400_000, now_ms()).await?;
        tasks.push((
            account.id,
            tokio::spawn(annotate(address, cookie, csrf, until, Duration::from_millis(think_ms))),
        ));
    }
    let (mut confirmed, mut took) = (HashMap::new(), Vec::new());
    for (id, task) in tasks {
        let (votes, times) = task.await??;
        took.extend(times);
        confirmed.insert(id, votes);
    }
    let _ = stop.send(());
    server.await??;

    let mut stored: HashMap<i64, usize> = HashMap::new();
    let mut judged: HashMap<String, HashSet<String>> = HashMap::new();
    for id in confirmed.keys() {
        for vote in store.votes_by(id, i64::MAX).await? {
            *stored.entry(vote.assignment_id.expect("the page's votes have one")).or_default() += 1;
            assert!(
                judged.entry(vote.comparison_id).or_default().insert(vote.annotator_id),
                "the same comparison twice"
            );
        }
    }
    let all: Vec<i64> = confirmed.into_values().flatten().collect();
    let lost = all.iter().filter(|id| !stored.contains_key(id)).count();
    let double = stored.values().filter(|n| **n != 1).count();
    let over = judged.values().filter(|by| by.len() > OVERLAP as usize).count();
    let full = judged.values().filter(|by| by.len() == OVERLAP as usize).count();
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    println!(
        "{:?}: {} votes by {ANNOTATORS} annotators in {seconds} s, {think_ms} ms to think ({:.0} requests/s); lost {lost}, double {double}, over-served {over}, \
         full {full} of {} begun; ms to answer: median {:.1}, p95 {:.1}, p99 {:.1}, most {:.1}",
        store.backend(),
        all.len(),
        took.len() as f64 / seconds as f64,
        judged.len(),
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0)
    );
    store.close().await;
    if lost + double + over > 0 {
        return Err("votes were lost, doubled or over-served".into());
    }
    Ok(())
}
