//! `polity serve` from outside: it says where it is, answers, makes the first administrator, and ends cleanly on a signal.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::support::{command, polity, polity_with, stories, text};

fn serve(project: &Path) -> (Child, BufReader<ChildStdout>, Value) {
    started(command(["--json", "serve", "--listen", "127.0.0.1:0", "--project"]).arg(project))
}

/// Starts a server and reads the line that says where it is.
pub fn started(server: &mut Command) -> (Child, BufReader<ChildStdout>, Value) {
    let mut server = server.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(server.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    (server, out, serde_json::from_str(&line).unwrap())
}

/// The answer to a request, head and all.
fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(address: &str, path: &str) -> String {
    ask(address, &format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"))
}

/// A JSON answer to JSON, and its status.
pub fn post(url: &str, key: Option<&str>, body: &Value) -> (u16, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut request = agent.post(url);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let mut response = request.send_json(body).unwrap();
    (response.status().as_u16(), response.body_mut().read_json().unwrap())
}

pub fn end(mut server: Child, signal: &str) {
    Command::new("kill").args([signal, &server.id().to_string()]).status().unwrap();
    assert!(server.wait().unwrap().success());
}

#[test]
fn it_serves_invites_the_first_administrator_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("helpful");
    polity(["init", &text(&project)]).ok();

    let (server, _out, started) = serve(&project);
    let address = started["address"].as_str().unwrap();
    assert!(get(address, "/healthz").starts_with("HTTP/1.1 200"));
    let invite = started["admin_invite"].as_str().unwrap().strip_prefix(address).unwrap();
    let page = get(address, invite);
    assert!(page.contains("Welcome to helpful"), "{page}");
    let cookie =
        page.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap().split(';').next().unwrap();
    let csrf = cookie.split_once('=').unwrap().1;
    let form = format!("csrf={csrf}&name=root&password=a+password+for+tests");
    let made = ask(
        address,
        &format!(
            "POST {invite} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncookie: {cookie}\r\n\
             content-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
            form.len()
        ),
    );
    assert!(made.starts_with("HTTP/1.1 303") && made.contains("location: /overview"), "{made}");
    end(server, "-INT");

    let (server, _out, started) = serve(&project);
    assert!(started["admin_invite"].is_null(), "there is an administrator now: {started}");
    end(server, "-TERM");
    polity(["ledger", "verify", "--project", &text(&project)]).ok();
}

#[test]
fn an_address_in_use_is_bad_input() {
    let directory = tempfile::tempdir().unwrap();
    let project = directory.path().join("helpful");
    polity(["init", &text(&project)]).ok();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let run = polity(["serve", "--listen", &listen, "--project", &text(&project)]);
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains(&format!("cannot listen on {listen}")), "{}", run.stderr);
}

#[test]
fn a_model_alone_answers_what_generate_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut server =
        command(["--json", "serve", "--listen", "127.0.0.1:0", "--model", &format!("tales={}", stories())]);
    let (server, _out, at) = started(server.current_dir(&dir));
    assert_eq!(at["models"], json!(["tales"]));
    let url = format!("{}/v1/completions", at["address"].as_str().unwrap());
    let settings = ["seed=7", "n=3", "max_new_tokens=30", "temperature=0.8"];
    let sets: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    let model = stories();
    let args = ["generate", "--model", &model, "--input", "-"].into_iter().chain(sets);
    let rows = polity_with(args, b"{\"prompt\": \"Once upon a time\"}\n").ok().rows();
    let body = json!({
        "model": "tales", "prompt": "Once upon a time", "seed": 7, "n": 3, "max_tokens": 30, "temperature": 0.8, "logprobs": 0,
        "return_token_ids": true,
    });
    let (status, answer) = post(&url, None, &body);
    assert_eq!(status, 200, "{answer}");
    for (row, choice) in rows.iter().zip(answer["choices"].as_array().unwrap()) {
        assert_eq!(choice["token_ids"], row["ids"]);
        assert_eq!(choice["logprobs"]["token_logprobs"], row["logprobs"]);
        assert_eq!(choice["finish_reason"], row["finish_reason"]);
    }
    assert_eq!(rows.len(), answer["choices"].as_array().unwrap().len());
    let (status, refused) = post(&url, None, &json!({"model": "other", "prompt": "a"}));
    assert_eq!((status, &refused["error"]["code"]), (404, &json!("model_not_found")));
    let feedback = format!("{}/v1/feedback", at["address"].as_str().unwrap());
    let (status, refused) = post(&feedback, None, &json!({"id": answer["id"], "thumb": "up"}));
    assert!(status == 404 && refused.to_string().contains("without a project"), "{status} {refused}");

    // An answer that runs when the server is told to stop is told to its end.
    let body =
        json!({"model": "tales", "prompt": "Once", "max_tokens": 450, "stop_token_ids": [], "stream": true})
            .to_string();
    let mut stream =
        TcpStream::connect(at["address"].as_str().unwrap().strip_prefix("http://").unwrap()).unwrap();
    write!(stream, "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut first = [0; 512];
    let n = stream.read(&mut first).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&first[..n]));
    end(server, "-TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
}

#[test]
fn a_key_is_needed_where_others_could_ask() {
    let dir = tempfile::tempdir().unwrap();
    let serve = |listen: &str| command(["--json", "serve", "--listen", listen, "--model", &stories()]);
    let out = serve("0.0.0.0:0").current_dir(&dir).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("POLITY_API_KEY"));
    let (server, _out, at) = started(serve("127.0.0.1:0").current_dir(&dir).env("POLITY_API_KEY", "sesame"));
    let url = format!("{}/v1/completions", at["address"].as_str().unwrap());
    let body = json!({"model": "stories260k", "prompt": "Once", "max_tokens": 2});
    let codes = [None, Some("wrong"), Some("sesame")].map(|key| post(&url, key, &body).0);
    assert_eq!(codes, [401, 401, 200]);
    end(server, "-TERM");
    let run = polity(["serve", "--model", &stories(), "--project", &text(dir.path())]);
    assert_eq!(run.code, 2, "{}", run.stderr);
}
