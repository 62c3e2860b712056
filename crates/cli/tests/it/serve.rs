//! `polity serve` from outside: it says where it is, answers, makes the first administrator, and ends cleanly on a signal.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::support::{command, polity, text};

fn serve(project: &Path) -> (Child, BufReader<ChildStdout>, serde_json::Value) {
    let mut server = command(["--json", "serve", "--listen", "127.0.0.1:0", "--project"])
        .arg(project)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
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

fn end(mut server: Child, signal: &str) {
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
