//! Running the binary, and models to run it on.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What a command left.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The binary, in a plain environment.
pub fn command<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polity"));
    command
        .args(args)
        .env_remove("NO_COLOR")
        .env_remove("POLITY_TOKEN")
        .env("TERM", "xterm")
        .env("COLUMNS", "80");
    command
}

/// Runs the binary with this stdin.
pub fn polity_with<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>, stdin: &[u8]) -> Run {
    let mut command = command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    feed(&mut child, stdin);
    run_of(child.wait_with_output().unwrap())
}

/// Runs the binary with an empty stdin.
pub fn polity<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    polity_with(args, b"")
}

/// Writes a child's stdin; a child that stopped reading is no concern of the writer.
pub fn feed(child: &mut Child, stdin: &[u8]) {
    let _ = child.stdin.take().unwrap().write_all(stdin);
}

/// Presses Ctrl-C.
pub fn interrupt(child: &Child) {
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success(), "the process is still there");
}

/// Waits until something holds, two minutes at most.
#[track_caller]
pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(120), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Lines in a file; none if it is not there.
pub fn lines(file: &Path) -> usize {
    fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

pub fn run_of(output: Output) -> Run {
    Run {
        code: output.status.code().expect("polity is not killed by a signal"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Run {
    /// The run, which must have gone well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self
    }

    /// stdout as JSONL.
    #[track_caller]
    pub fn rows(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

pub fn shared(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

/// The model of most tests.
pub fn stories() -> String {
    text(&shared("models/stories260k"))
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A copy of a model directory that may be changed.
pub struct ModelCopy {
    pub dir: tempfile::TempDir,
}

impl ModelCopy {
    pub fn new(of: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(of).unwrap() {
            let from = entry.unwrap().path();
            // Not `fs::copy`, which would keep the read-only permission.
            fs::write(dir.path().join(from.file_name().unwrap()), fs::read(&from).unwrap()).unwrap();
        }
        Self { dir }
    }

    pub fn stories() -> Self {
        Self::new(&shared("models/stories260k"))
    }

    pub fn path(&self) -> String {
        text(self.dir.path())
    }

    /// Changes a JSON file.
    pub fn edit(self, file: &str, change: impl FnOnce(&mut Value)) -> Self {
        let path = self.dir.path().join(file);
        let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, serde_json::to_vec(&value).unwrap()).unwrap();
        self
    }

    /// Changes what the header of the weights says; the data stays.
    pub fn edit_header(self, change: impl FnOnce(&mut Value)) -> Self {
        self.edit_bytes("model.safetensors", |bytes| {
            let (length, rest) = bytes.split_first_chunk().unwrap();
            let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let mut value = serde_json::from_slice(header).unwrap();
            change(&mut value);
            let header = serde_json::to_vec(&value).unwrap();
            *bytes = [&(header.len() as u64).to_le_bytes()[..], &header, data].concat();
        })
    }

    /// Changes a file's bytes.
    pub fn edit_bytes(self, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let path = self.dir.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
        self
    }

    pub fn write(self, file: &str, content: &str) -> Self {
        fs::write(self.dir.path().join(file), content).unwrap();
        self
    }

    pub fn remove(self, file: &str) -> Self {
        fs::remove_file(self.dir.path().join(file)).unwrap();
        self
    }

    /// With a small chat template.
    pub fn with_template(self) -> Self {
        self.write("chat_template.jinja", TEMPLATE)
    }
}

/// A small chat template.
pub const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}\
{% if m.role == 'tool' %}{{ raise_exception('this model has no tools') }}{% endif %}\
{{ m.role }}: {{ m.content }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}\
{% if add_generation_prompt %}assistant: {% endif %}";
