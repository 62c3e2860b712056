//! The official `openai` client against `polity serve`.
//!
//! The first run installs it from wheels beside the other build outputs. Set `POLITY_TEST_OPENAI_PYTHON` to an interpreter that has it to use
//! that one.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const WHEELS: [&str; 1] = ["openai==3.51.0"];

fn run(command: &mut Command) -> Output {
    let out =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; install python3 with its venv module"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {}: {said}", out.status);
    out
}

/// An interpreter with the client.
fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("POLITY_TEST_OPENAI_PYTHON") {
        return python.into();
    }
    let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai");
    let (python, ready) = (venv.join("bin/python"), venv.join("ready"));
    let wheels = WHEELS.join(" ");
    if std::fs::read_to_string(&ready).is_ok_and(|done| done == wheels) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"];
    run(Command::new(&python).args(pip).args(WHEELS));
    std::fs::write(ready, wheels).unwrap();
    python
}

#[test]
fn the_official_client_chats_streams_and_is_refused() {
    let python = python();
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("tales");
    std::fs::create_dir(&model).unwrap();
    let stories = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k");
    for entry in std::fs::read_dir(stories).unwrap() {
        let from = entry.unwrap().path();
        std::fs::write(model.join(from.file_name().unwrap()), std::fs::read(&from).unwrap()).unwrap();
    }
    std::fs::write(
        model.join("chat_template.jinja"),
        "{% for message in messages %}{{ message.content }}{% endfor %}",
    )
    .unwrap();
    let mut server = Command::new(env!("CARGO_BIN_EXE_polity"))
        .args(["--json", "serve", "--listen", "127.0.0.1:0", "--sequences", "8", "--model"])
        .arg(&model)
        .current_dir(&dir)
        .env("POLITY_API_KEY", "sesame")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let at: serde_json::Value = serde_json::from_str(&line).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/openai_client.py");
    let out =
        Command::new(python).arg(script).arg(format!("{}/v1", at["address"].as_str().unwrap())).output();
    server.kill().unwrap();
    server.wait().unwrap();
    let out = out.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(String::from_utf8_lossy(&out.stdout), "14 checks\n");
}
