//! What the server asks of whoever runs it: clock, chance, keys, a place for feedback and alarms.

use std::future::Future;
use std::pin::Pin;

use serde::Serialize;
use serde_json::Value;

use crate::monitor::{Alarm, ArmName};

/// What is waited for; an error is a sentence for the log.
pub type Answering<T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send>>;

/// The world outside.
pub trait Host: Send + Sync {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> i64;
    /// Bits that nobody can foresee.
    fn random(&self) -> u64;
    /// A line about a failure. It never holds a key or a text of a user.
    fn log(&self, line: &str);
    /// Whose key this is; `None` is nobody's.
    fn caller(&self, key: Option<&str>) -> Answering<Option<String>>;
    /// Whether an answer refuses.
    fn refuses(&self, text: &str) -> bool;
    /// Whether there is a place for feedback.
    fn keeps_feedback(&self) -> bool;
    /// Keeps feedback; done when it is on the disk.
    fn keep(&self, feedback: Feedback) -> Answering<()>;
    /// Is told of an alarm. A canary that a policy takes back has been taken back here already; what everyone gets is the host's to change.
    fn alarm(&self, raised: Raised) -> Answering<()>;
}

/// An answer that was given, as feedback names it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Given {
    /// The answer's `id`.
    pub completion: String,
    /// Which of its choices.
    pub choice: usize,
    /// Which arm gave it.
    pub arm: ArmName,
    /// The release, or the model's name.
    pub release: String,
    /// The model's hash.
    pub model: String,
    /// The prompt: a text, or a list of messages.
    pub prompt: Value,
    /// The answer.
    pub text: String,
}

/// What a user said of answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Feedback {
    /// The channel.
    pub channel: String,
    /// The account whose key was used.
    pub caller: String,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// Why, in the user's words.
    pub reason: String,
    /// What.
    pub said: Said,
}

/// Thumbs or a preference.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Said {
    /// Of one answer.
    Thumb {
        /// Which.
        of: Box<Given>,
        /// Up, or down.
        up: bool,
    },
    /// Of two answers to one prompt.
    Preference {
        /// One.
        first: Box<Given>,
        /// The other.
        second: Box<Given>,
        /// How much the first is better: 1, ½ for a tie, or 0.
        first_is_better: f64,
    },
}

/// An alarm, and where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Raised {
    /// The channel.
    pub channel: String,
    /// The release that is worse than it should be.
    pub release: String,
    /// What was rejected, on which evidence.
    pub alarm: Alarm,
}
