//! `polity panel judge` against a server of the same protocol, in this process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Run, command, interrupt, polity, run_of, text, wait_for};

/// A reply: HTTP's status, headers, body.
pub type Reply = (u16, &'static str, String);

/// Serves chat completions by a function of the number of the request and its body; keeps what was asked.
pub struct Server {
    pub url: String,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Server {
    pub fn new(answer: impl Fn(usize, &Value) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &answer, &heard);
            }
        });
        Self { url, asked }
    }

    /// Requests that were answered, or are about to be.
    pub fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn serve(
    mut stream: TcpStream,
    answer: &impl Fn(usize, &Value) -> Reply,
    heard: &Mutex<Vec<(String, Value)>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(bytes) = line.to_lowercase().strip_prefix("content-length:") {
            length = bytes.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert!(head.starts_with("POST /v1/chat/completions "), "{head}");
    let number = heard.lock().unwrap().len();
    heard.lock().unwrap().push((head, body.clone()));
    let (status, headers, text) = answer(number, &body);
    let length = text.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status} x\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{text}"
    );
}

pub fn says(content: &str) -> Reply {
    let body = json!({"choices": [{"message": {"role": "assistant", "content": content}}], "usage": {"total_tokens": 100}});
    (200, "", body.to_string())
}

/// The response that says "good" is better; of two that do not, A, wherever it stands.
fn judge(body: &Value) -> Reply {
    let user = body["messages"][1]["content"].as_str().unwrap();
    let (a, b) = user.split_once("response B>").unwrap();
    let overall = match (a.contains("good"), b.contains("good")) {
        (true, false) => "A2",
        (false, true) => "B3",
        _ => "A1",
    };
    says(&json!({"reason": "it is", "axes": {"helpful": overall}, "overall": overall}).to_string())
}

/// A project with four comparisons to judge, of which the judge is sure of three.
fn project(dir: &Path) -> String {
    let project = text(&dir.join("p"));
    polity(["init", &project]).ok();
    let rows: Vec<String> =
        [("q1", "good", "bad"), ("q2", "poor", "good"), ("q3", "x", "y"), ("q4", "so good", "meh")]
            .iter()
            .map(|(prompt, one, other)| {
                json!({"prompt": prompt, "chosen": one, "rejected": other}).to_string()
            })
            .collect();
    let file = dir.join("pairs.jsonl");
    std::fs::write(&file, rows.join("\n")).unwrap();
    polity(["import", "pairs", &text(&file), "--project", &project]).ok();
    project
}

fn judging(project: &str, server: &Server, extra: &[&str]) -> Command {
    let mut command = command(["panel", "judge", "--json", "--project", project, "--model", "m"]);
    command.args(["--endpoint", &server.url]).args(extra);
    command.env("POLITY_JUDGE_API_KEY", "s3cret-key").env("NO_PROXY", "127.0.0.1");
    command
}

fn run_judge(project: &str, server: &Server, extra: &[&str]) -> Run {
    run_of(judging(project, server, extra).output().unwrap())
}

fn summary(run: &Run) -> Value {
    serde_json::from_str(&run.stdout).unwrap()
}

#[test]
fn a_judge_votes_once_on_each_comparison_in_both_orders() {
    let dir = tempfile::tempdir().unwrap();
    let project = project(dir.path());
    let server = Server::new(|number, body| match number {
        // Too many requests, then a failure: tried again.
        0 => (429, "retry-after: 0\r\n", "slow down".into()),
        1 => (503, "retry-after: 0\r\n", "busy".into()),
        _ => judge(body),
    });
    let run = run_judge(&project, &server, &["--parallel", "2"]).ok();
    let found = summary(&run);
    assert_eq!(
        (&found["judged"], &found["consistent"], &found["ties"]),
        (&json!(4), &json!(3), &json!(1)),
        "{found}"
    );
    assert_eq!((&found["requests"], &found["tokens"]), (&json!(10), &json!(800)), "{found}");
    for (head, body) in server.asked.lock().unwrap().iter() {
        assert!(head.to_lowercase().contains("authorization: bearer s3cret-key"), "{head}");
        assert_eq!((&body["model"], &body["temperature"]), (&json!("m"), &json!(0)));
    }
    assert!(!(run.stdout + &run.stderr).contains("s3cret"), "the key is nobody's business");

    // Nothing is left to judge, so nothing is asked.
    let again = summary(&run_judge(&project, &server, &[]).ok());
    assert_eq!((&again["judged"], &again["requests"]), (&json!(0), &json!(0)));
    // Another judge of the same model and rubric asks nothing new either: replies are kept.
    let other = summary(&run_judge(&project, &server, &["--name", "other"]).ok());
    assert_eq!((&other["judged"], &other["requests"]), (&json!(4), &json!(0)));
    assert_eq!(server.requests(), 10);

    polity(["ledger", "verify", "--project", &project]).ok();
    // A dataset of people's votes is empty, and the judges' eight votes took nobody's place.
    let rows = |name: &str, more: &[&str]| {
        let run = polity(["freeze", name, "--json", "--project", &project].iter().chain(more)).ok();
        let frozen: Value = serde_json::from_str(&run.stdout).unwrap();
        ["train_rows", "validation_rows", "holdout_rows"]
            .map(|part| frozen["dataset"][part].as_i64().unwrap())
            .iter()
            .sum::<i64>()
    };
    assert_eq!(rows("people", &[]), 0);
    assert_eq!(rows("all", &["--machine-votes"]), 4);
    let votes = polity(["panel", "simulate", "--json", "--project", &project]).ok();
    assert_eq!(summary(&votes)["votes"], 4 * 3, "three each are wanted");
}

#[test]
fn a_budget_stops_a_judge_and_a_later_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let project = project(dir.path());
    let server = Server::new(|_, body| judge(body));
    let found = summary(&run_judge(&project, &server, &["--budget", "350", "--parallel", "1"]).ok());
    assert_eq!((&found["judged"], &found["tokens"]), (&json!(2), &json!(400)), "{found}");
    assert!(found["stopped"].as_str().unwrap().contains("budget of 350 tokens"), "{found}");
    let found = summary(&run_judge(&project, &server, &[]).ok());
    assert_eq!((&found["judged"], &found["requests"]), (&json!(2), &json!(4)), "{found}");

    let uncounted = Server::new(|_, body| {
        let (status, headers, text) = judge(body);
        (status, headers, text.replace("total_tokens", "tokens"))
    });
    let run = run_judge(&project, &uncounted, &["--budget", "350", "--name", "uncounted", "--parallel", "1"]);
    assert_eq!((run.code, uncounted.requests()), (1, 1), "{}", run.stderr);
    assert!(run.stderr.contains("usage.total_tokens"), "{}", run.stderr);
}

/// Killed while a question is open: no reply that came is paid for again, and no comparison is voted on twice.
#[test]
fn a_killed_judge_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let project = project(dir.path());
    let killed = Arc::new(AtomicBool::new(false));
    let wait = Arc::clone(&killed);
    let server = Server::new(move |number, body| {
        while number == 5 && !wait.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        judge(body)
    });
    let mut command = judging(&project, &server, &["--parallel", "1"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // The sixth question is the second order of the third comparison.
    wait_for("the sixth question", || server.requests() == 6);
    child.kill().unwrap();
    child.wait().unwrap();
    killed.store(true, Ordering::SeqCst);
    let found = summary(&run_judge(&project, &server, &[]).ok());
    assert_eq!((&found["judged"], &found["requests"]), (&json!(2), &json!(3)), "{found}");
    let log = polity(["ledger", "log", "--json", "--project", &project]).ok();
    let seal: Value = serde_json::from_str(log.stdout.lines().last().unwrap()).unwrap();
    assert_eq!((&seal["kind"], &seal["body"]["to"]), (&json!("votes"), &json!(4)), "{seal}");
}

/// Ctrl-C: the comparison in hand is finished and its vote stored.
#[test]
fn an_interrupted_judge_finishes_what_is_in_hand() {
    let dir = tempfile::tempdir().unwrap();
    let project = project(dir.path());
    let pressed = Arc::new(AtomicBool::new(false));
    let wait = Arc::clone(&pressed);
    let server = Server::new(move |_, body| {
        while !wait.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(2));
        }
        judge(body)
    });
    let mut command = judging(&project, &server, &["--parallel", "1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the first question", || server.requests() == 1);
    interrupt(&child);
    // The handler runs on a thread of its own; the reply that it should come before takes another moment.
    std::thread::sleep(Duration::from_millis(300));
    pressed.store(true, Ordering::SeqCst);
    let run = run_of(child.wait_with_output().unwrap());
    assert_eq!((run.code, server.requests()), (130, 2), "{}", run.stderr);
    let found = summary(&run);
    assert_eq!(
        (&found["judged"], &found["stopped"]),
        (&json!(1), &json!("stopped before the end")),
        "{found}"
    );
    assert!(run.stderr.contains("the same command goes on"), "{}", run.stderr);
}

#[test]
fn the_endpoint_says_how_long_to_wait() {
    let dir = tempfile::tempdir().unwrap();
    let project = project(dir.path());
    let server = Server::new(|number, body| match number {
        0 => (429, "retry-after: 2\r\n", "slow down".into()),
        _ => judge(body),
    });
    let began = Instant::now();
    run_judge(&project, &server, &["--parallel", "1"]).ok();
    assert!(began.elapsed() >= Duration::from_secs(2), "the first wait would be one second");

    let server = Server::new(|_, _| (429, "retry-after: 3600\r\n", "come back in an hour".into()));
    let run = run_judge(&project, &server, &["--name", "later", "--parallel", "1"]);
    assert_eq!((run.code, server.requests()), (1, 1), "{}", run.stderr);
    assert!(run.stderr.contains("429") && run.stderr.contains("in an hour"), "{}", run.stderr);

    let server = Server::new(|_, _| (500, "retry-after: 0\r\n", "broken".into()));
    let run = run_judge(&project, &server, &["--name", "broken", "--parallel", "1", "--tries", "3"]);
    assert_eq!((run.code, server.requests()), (1, 3), "{}", run.stderr);
}

#[test]
fn what_cannot_be_judged_is_left_out_and_what_is_always_refused_stops() {
    let dir = tempfile::tempdir().unwrap();
    let project = project(dir.path());
    let asks = |body: &Value, what: &str| body["messages"][1]["content"].as_str().unwrap().contains(what);
    let server = Server::new(move |_, body| match body {
        body if asks(body, "q1") => (400, "", "{\"error\": \"too long\"}".into()),
        body if asks(body, "q3") => says("I would rather not say."),
        body => judge(body),
    });
    let run = run_judge(&project, &server, &["--set", "max_tokens=50", "--set", "temperature=null"]).ok();
    let found = summary(&run);
    assert_eq!((&found["judged"], &found["left_out"]), (&json!(2), &json!(2)), "{found}");
    assert!(run.stderr.contains("no JSON object") && run.stderr.contains("too long"), "{}", run.stderr);
    let (_, body) = &server.asked.lock().unwrap()[0];
    assert_eq!((&body["max_tokens"], body.get("temperature")), (&json!(50), None));

    let server = Server::new(|_, _| (401, "", "{\"error\": \"no such key: s3cret-key\"}".into()));
    let run = run_judge(&project, &server, &["--name", "second", "--parallel", "1"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("answered 401") && run.stderr.contains("no such key"), "{}", run.stderr);
    assert!(run.stderr.contains("POLITY_JUDGE_API_KEY") && !run.stderr.contains("s3cret"), "{}", run.stderr);
    assert_eq!(server.requests(), 1, "a refusal is not tried again");

    let server = Server::new(|_, _| (400, "", "no such field: seed".into()));
    let run = run_judge(&project, &server, &["--name", "third"]);
    assert_eq!(run.code, 1, "every question was refused");
    let server = Server::new(|_, _| (200, "", "<html>".into()));
    let run = run_judge(&project, &server, &["--name", "fourth", "--parallel", "1"]);
    assert_eq!((run.code, server.requests()), (1, 1));
    assert!(run.stderr.contains("no chat completion: 200 <html>"), "{}", run.stderr);
    assert_eq!(
        polity(["panel", "judge", "--endpoint", "localhost", "--model", "m", "--project", &project]).code,
        2
    );
}
