//! A chat model behind an OpenAI-compatible endpoint: one question, one reply; with retries, a budget and a cache.
//!
//! `POST URL/chat/completions` with `model`, `messages`, `temperature` 0 and `seed` 0 (unless told otherwise); of the answer,
//! `choices[0].message.content` and `usage.total_tokens` are read. Replies are kept in a file, one JSON line each, by the BLAKE3 of where and
//! what was asked, so that a run that was stopped goes on without paying twice. A line that was cut off by a crash is passed over.
//!
//! Too many requests (429), a server's failure (5xx), a timeout (408) and a broken connection are tried again, after the seconds that
//! `Retry-After` says, or else after 1, 2, 4, …; anything else is an error at once, since it would be the same again.
//!
//! The key goes into one header and nowhere else: redirects are not followed, and what a server says of it is blotted out.
//!
//! Not here: what is asked (`question`), votes (`mod`).

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{CommandError, CommandResult};

/// Longest wait between two tries, unless the endpoint asks for another.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest wait that an endpoint may ask for; beyond it the run ends, and can be taken up later.
const WAIT_ASKED_MAX: Duration = Duration::from_secs(300);

/// Longest part of an error's body that is shown, characters.
const SHOWN_CHARS_MAX: usize = 200;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What it says.
    pub content: String,
}

/// Where a model is asked, and how patiently.
#[derive(Clone)]
pub struct Endpoint {
    /// Up to and with `/v1`, without a slash at the end.
    pub url: String,
    /// The model's name there.
    pub model: String,
    /// Sent as a bearer token.
    pub key: Option<String>,
    /// Further fields of each request; one that is null is left out of it, even if it is usual.
    pub fields: Map<String, Value>,
    /// Tries of one question.
    pub tries: u32,
    /// For one reply.
    pub timeout: Duration,
    /// The first wait before another try.
    pub wait: Duration,
    /// Tokens at most, as the endpoint counts them; none for no limit.
    pub budget_tokens: Option<u64>,
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The budget is used up.
    #[error("the budget of {budget} tokens is used up ({spent} spent)")]
    Budget {
        /// What was allowed.
        budget: u64,
        /// What was used.
        spent: u64,
    },
    /// The endpoint said no.
    #[error("{url} answered {status}: {body}")]
    Refused {
        /// Who.
        url: String,
        /// HTTP's code.
        status: u16,
        /// The beginning of what it said.
        body: String,
    },
    /// Nobody answered.
    #[error("{url}: {error} (tried {tries} times)")]
    Unreachable {
        /// Who.
        url: String,
        /// The last error.
        error: String,
        /// How often.
        tries: u32,
    },
    /// The answer was no chat completion.
    #[error("{url} answered what is no chat completion: {found}")]
    NotUnderstood {
        /// Who.
        url: String,
        /// The beginning of what it said.
        found: String,
    },
    /// There is a budget, and the endpoint does not count.
    #[error("{url} does not say how many tokens it used (`usage.total_tokens`), so a budget cannot be kept")]
    NotCounted {
        /// Who.
        url: String,
    },
    /// The cache could not be written.
    #[error("cannot write {path}: {source}")]
    Cache {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

#[derive(Deserialize, Serialize)]
struct Kept {
    key: String,
    text: String,
    tokens: Option<u64>,
}

/// Asks one endpoint, from any number of threads.
pub struct Client {
    endpoint: Endpoint,
    agent: ureq::Agent,
    path: PathBuf,
    kept: Mutex<(HashMap<String, String>, File)>,
    spent: AtomicU64,
    asked: AtomicU64,
}

impl Client {
    /// With the cache at `path`, which is made if it is not there.
    pub fn new(endpoint: Endpoint, path: &Path) -> CommandResult<Self> {
        let cannot = |what: &str, error: std::io::Error| {
            CommandError::failed(format!("cannot {what} {}: {error}", path.display()))
        };
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)
            .map_err(|error| cannot("open", error))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|error| cannot("read", error))?;
        if bytes.last().is_some_and(|last| *last != b'\n') {
            // What comes next must not be glued to a line that was cut off.
            file.write_all(b"\n").map_err(|error| cannot("write", error))?;
        }
        let lines = bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let kept = lines.map(|Kept { key, text, .. }| (key, text)).collect();
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(endpoint.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .build()
            .into();
        let path = path.to_owned();
        let (spent, asked) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { endpoint, agent, path, kept: Mutex::new((kept, file)), spent, asked })
    }

    /// Tokens that this run has used.
    pub fn spent_tokens(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }

    /// Requests that this run has made.
    pub fn requests(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// The reply to a conversation: the kept one, or a new one.
    pub fn ask(&self, messages: &[Message]) -> Result<String, AskError> {
        let body = self.body(messages);
        let key = blake3::hash(format!("{}\n{body}", self.endpoint.url).as_bytes()).to_hex().to_string();
        let kept = self.kept.lock().expect("no thread panics with the lock").0.get(&key).cloned();
        if let Some(text) = kept {
            return Ok(text);
        }
        if let Some(budget) = self.endpoint.budget_tokens
            && self.spent_tokens() >= budget
        {
            return Err(AskError::Budget { budget, spent: self.spent_tokens() });
        }
        let (text, tokens) = self.ask_anew(&body)?;
        self.spent.fetch_add(tokens.unwrap_or(0), Ordering::Relaxed);
        self.keep(Kept { key, text: text.clone(), tokens })?;
        match (self.endpoint.budget_tokens, tokens) {
            (Some(_), None) => Err(AskError::NotCounted { url: self.endpoint.url.clone() }),
            _ => Ok(text),
        }
    }

    fn body(&self, messages: &[Message]) -> Value {
        let mut body = Map::from_iter([("temperature".to_owned(), json!(0)), ("seed".to_owned(), json!(0))]);
        body.extend(self.endpoint.fields.clone());
        body.retain(|_, value| !value.is_null());
        body.insert("model".to_owned(), json!(self.endpoint.model));
        body.insert("messages".to_owned(), json!(messages));
        body.into()
    }

    fn keep(&self, reply: Kept) -> Result<(), AskError> {
        let mut line = serde_json::to_vec(&reply).expect("strings and a number are JSON");
        line.push(b'\n');
        let mut kept = self.kept.lock().expect("no thread panics with the lock");
        kept.1.write_all(&line).map_err(|source| AskError::Cache { path: self.path.clone(), source })?;
        kept.0.insert(reply.key, reply.text);
        Ok(())
    }

    /// The text of a new reply, and its tokens where they are counted.
    fn ask_anew(&self, body: &Value) -> Result<(String, Option<u64>), AskError> {
        let mut wait = self.endpoint.wait;
        for tried in 1.. {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let (error, asked_for) = match self.post(body) {
                Ok((status @ 200..=299, text, _)) => return self.completion(status, &text),
                Ok((status, text, asked_for)) => {
                    let error =
                        AskError::Refused { url: self.endpoint.url.clone(), status, body: self.shown(&text) };
                    if !matches!(status, 408 | 429 | 500..=599) {
                        return Err(error);
                    }
                    (error, asked_for)
                }
                Err(error) => {
                    let error = self.shown(&error.to_string());
                    (AskError::Unreachable { url: self.endpoint.url.clone(), error, tries: tried }, None)
                }
            };
            if tried >= self.endpoint.tries || asked_for.is_some_and(|asked_for| asked_for > WAIT_ASKED_MAX) {
                return Err(error);
            }
            std::thread::sleep(asked_for.unwrap_or(wait));
            wait = (2 * wait).min(WAIT_MAX);
        }
        unreachable!("the last try returns")
    }

    /// HTTP's status, the body, and how long the endpoint asks to wait.
    fn post(&self, body: &Value) -> Result<(u16, String, Option<Duration>), ureq::Error> {
        let mut request = self.agent.post(format!("{}/chat/completions", self.endpoint.url));
        if let Some(key) = &self.endpoint.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send_json(body)?;
        let after = response.headers().get("retry-after").and_then(|after| after.to_str().ok());
        let asked_for = after.and_then(|after| after.trim().parse().ok()).map(Duration::from_secs);
        Ok((response.status().as_u16(), response.body_mut().read_to_string()?, asked_for))
    }

    /// The text and the tokens of a chat completion. A message without text (a refusal, a tool call) is an empty one.
    fn completion(&self, status: u16, text: &str) -> Result<(String, Option<u64>), AskError> {
        let found: Value = serde_json::from_str(text).unwrap_or_default();
        let message = &found["choices"][0]["message"];
        if !message.is_object() {
            let found = format!("{status} {}", self.shown(text));
            return Err(AskError::NotUnderstood { url: self.endpoint.url.clone(), found });
        }
        let content = message["content"].as_str().unwrap_or_default();
        Ok((content.to_owned(), found["usage"]["total_tokens"].as_u64()))
    }

    /// The beginning of a text, on one line, without the key.
    fn shown(&self, text: &str) -> String {
        let text = match &self.endpoint.key {
            Some(key) => text.replace(key, "[key]"),
            None => text.to_owned(),
        };
        let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(key: Option<&str>) -> Endpoint {
        Endpoint {
            url: "http://127.0.0.1:9/v1".into(),
            model: "m".into(),
            key: key.map(str::to_owned),
            fields: Map::new(),
            tries: 1,
            timeout: Duration::from_secs(1),
            wait: Duration::ZERO,
            budget_tokens: None,
        }
    }

    #[test]
    fn a_key_is_blotted_out_and_control_characters_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let client = Client::new(endpoint(Some("sk-1")), &dir.path().join("c")).unwrap();
        assert_eq!(client.shown("no such key:\n\tsk-1!"), "no such key: [key]!");
        assert_eq!(client.shown(&"x".repeat(300)).chars().count(), SHOWN_CHARS_MAX + 1);
    }

    #[test]
    fn fields_are_added_and_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut endpoint = endpoint(None);
        endpoint.fields =
            Map::from_iter([("seed".to_owned(), Value::Null), ("max_tokens".to_owned(), json!(9))]);
        let client = Client::new(endpoint, &dir.path().join("c")).unwrap();
        assert_eq!(
            client.body(&[]),
            json!({"model": "m", "messages": [], "temperature": 0, "max_tokens": 9})
        );
    }

    /// A kill leaves a line without its end, perhaps in the middle of a character; what is kept after it must be readable.
    #[test]
    fn a_line_that_was_cut_off_costs_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let whole = "{\"key\": \"a\", \"text\": \"é\", \"tokens\": 1}";
        for cut in 1..=whole.len() {
            std::fs::write(
                &path,
                [whole.as_bytes(), b"\n", &whole.replace('a', "b").as_bytes()[..cut]].concat(),
            )
            .unwrap();
            let client = Client::new(endpoint(None), &path).unwrap();
            client.keep(Kept { key: "c".into(), text: "new".into(), tokens: None }).unwrap();
            let again = Client::new(endpoint(None), &path).unwrap();
            let kept = &again.kept.lock().unwrap().0;
            assert_eq!(kept.len(), if cut == whole.len() { 3 } else { 2 }, "cut after {cut} bytes");
            assert_eq!(kept["c"], "new");
        }
    }
}
