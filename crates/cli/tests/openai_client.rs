//! The official `openai` client against `polity serve`.
//!
//! The first run installs it from wheels beside the other build outputs. Set `POLITY_TEST_OPENAI_PYTHON` to an interpreter that has it to use
//! that one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

#[path = "../../lm/tests/wheels/mod.rs"]
mod wheels;

#[test]
fn the_official_client_chats_streams_and_is_refused() {
    let python = wheels::python(
        "POLITY_TEST_OPENAI_PYTHON",
        env!("CARGO_TARGET_TMPDIR"),
        "openai",
        &["openai==3.51.0"],
    );
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
