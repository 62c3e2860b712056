//! Python programs that tests compare with, installed from wheels beside the other build outputs. Used by the tests of other crates too.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Output {
    let out =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; install python3 with its venv module"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {}: {said}", out.status);
    out
}

/// An interpreter with these wheels: the one that `variable` names, or one of its own in `outputs/name`, made by the first run.
pub fn python(variable: &str, outputs: &str, name: &str, wheels: &[&str]) -> PathBuf {
    if let Some(python) = std::env::var_os(variable) {
        return python.into();
    }
    let venv = Path::new(outputs).join(name);
    let (python, ready) = (venv.join("bin/python"), venv.join("ready"));
    let wanted = wheels.join(" ");
    if std::fs::read_to_string(&ready).is_ok_and(|done| done == wanted) {
        return python;
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv));
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"];
    run(Command::new(&python).args(pip).args(wheels));
    std::fs::write(ready, wanted).unwrap();
    python
}
