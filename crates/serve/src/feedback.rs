//! Feedback: thumbs on an answer, a preference between two, by whoever got them.
//!
//! Answers are remembered for a while, in memory, so that feedback can name them by `id`: the newest [`ANSWERS_MAX`], as long as their texts
//! are within [`BYTES_MAX`]. Whoever asks later, or with another key, is told that there is no such answer.
//!
//! All feedback is kept. The monitor hears each answer's first thumb and each pair's first preference: a second click is no second user.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::host::{Feedback, Given, Said};
use crate::http::Server;
use crate::monitor::{ArmName, Measure};
use crate::request::{Fields, shown};

/// Answers that are remembered.
const ANSWERS_MAX: usize = 20_000;
/// Bytes of their texts, together.
const BYTES_MAX: usize = 64 << 20;
/// Longest reason, bytes.
const REASON_BYTES_MAX: usize = 4000;

/// An answer that can be spoken of.
pub(crate) struct Answered {
    pub(crate) channel: String,
    pub(crate) caller: String,
    pub(crate) arm: ArmName,
    pub(crate) release: String,
    pub(crate) model: String,
    /// Whether the split chose the arm, and not the client.
    pub(crate) split: bool,
    /// Of each choice: the prompt's place among `prompts`, and the text.
    pub(crate) choices: Vec<(usize, String)>,
    pub(crate) prompts: Vec<Value>,
}

impl Answered {
    fn bytes(&self) -> usize {
        let texts = self.choices.iter().map(|(_, text)| text.len()).sum::<usize>();
        texts + self.prompts.iter().map(|prompt| prompt.to_string().len()).sum::<usize>()
    }
}

/// The newest answers.
#[derive(Default)]
pub(crate) struct Recent {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    by_id: HashMap<String, (Arc<Answered>, usize)>,
    order: VecDeque<String>,
    bytes: usize,
    /// What the monitor has heard; goes with the answer.
    heard: HashMap<String, HashSet<String>>,
}

impl Recent {
    pub(crate) fn remember(&self, id: &str, answered: Answered) {
        let bytes = answered.bytes();
        let mut state = self.state.lock().expect("no holder of this lock can panic");
        state.bytes += bytes;
        state.by_id.insert(id.to_owned(), (Arc::new(answered), bytes));
        state.order.push_back(id.to_owned());
        while state.order.len() > ANSWERS_MAX || (state.bytes > BYTES_MAX && state.order.len() > 1) {
            let Some(oldest) = state.order.pop_front() else { break };
            let bytes = state.by_id.remove(&oldest).map_or(0, |(_, bytes)| bytes);
            state.bytes -= bytes;
            state.heard.remove(&oldest);
        }
    }

    fn find(&self, id: &str) -> Option<Arc<Answered>> {
        let state = self.state.lock().expect("no holder of this lock can panic");
        state.by_id.get(id).map(|(answered, _)| answered.clone())
    }

    /// Whether this is the first time that the monitor hears this of an answer.
    fn is_first(&self, id: &str, what: String) -> bool {
        let mut state = self.state.lock().expect("no holder of this lock can panic");
        state.by_id.contains_key(id) && state.heard.entry(id.to_owned()).or_default().insert(what)
    }
}

/// `POST /v1/feedback`: a thumb.
pub(crate) async fn thumb(server: &Server, caller: String, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = object(server, body)?;
    let up = fields.need("thumb", "\"up\" or \"down\"", |value| match value.as_str() {
        Some("up") => Some(true),
        Some("down") => Some(false),
        _ => None,
    })?;
    let reason = reason(&mut fields)?;
    let (answered, of) = given(server, &caller, &mut fields, "")?;
    nothing_else(&fields)?;
    let first = server.recent().is_first(&of.completion, of.choice.to_string());
    let (arm, release, channel) = (of.arm, of.release.clone(), answered.channel.clone());
    keep(server, &channel, caller, reason, Said::Thumb { of: Box::new(of), up }).await?;
    let counted = first && answered.split;
    if counted {
        server.watch(&channel, Measure::ThumbsUp, arm, &release, if up { 1.0 } else { 0.0 }).await;
    }
    Ok(json!({"object": "feedback", "counted": counted}))
}

/// `POST /v1/feedback/preference`: which of two answers to one prompt is better.
pub(crate) async fn preference(server: &Server, caller: String, body: &[u8]) -> Result<Value, ApiError> {
    let mut fields = object(server, body)?;
    let answer = fields.need("answer", "\"first\", \"second\" or \"tie\"", |value| match value.as_str() {
        Some("first") => Some(1.0),
        Some("tie") => Some(0.5),
        Some("second") => Some(0.0),
        _ => None,
    })?;
    let reason = reason(&mut fields)?;
    let mut side = |name: &str| {
        let expected = "{\"id\": …, \"choice\": …}";
        let mut fields = Fields(fields.need(name, expected, |value| value.as_object().cloned())?);
        let found = given(server, &caller, &mut fields, name)?;
        nothing_else(&fields)?;
        Ok::<_, ApiError>(found)
    };
    let ((one, first), (other, second)) = (side("first")?, side("second")?);
    nothing_else(&fields)?;
    if one.channel != other.channel || first.prompt != second.prompt {
        return Err(ApiError::field("second", "the two answers are not to one prompt of one channel"));
    }
    if (&first.completion, first.choice) == (&second.completion, second.choice) {
        return Err(ApiError::field("second", "this is the first answer once more; expected another one"));
    }
    let arms = (first.arm, second.arm);
    let canary = if first.arm == ArmName::Canary { first.release.clone() } else { second.release.clone() };
    // A pair is one pair in either order.
    let mut ends = [
        format!("{}/{}", first.completion, first.choice),
        format!("{}/{}", second.completion, second.choice),
    ];
    ends.sort();
    let fresh =
        server.recent().is_first(&first.completion.clone().min(second.completion.clone()), ends.join(" "));
    let (channel, better) = (one.channel.clone(), answer);
    let said = Said::Preference { first: Box::new(first), second: Box::new(second), first_is_better: better };
    keep(server, &channel, caller, reason, said).await?;
    let value = match arms {
        (ArmName::Canary, ArmName::Stable) => Some(better),
        (ArmName::Stable, ArmName::Canary) => Some(1.0 - better),
        _ => None,
    };
    let value = value.filter(|_| fresh);
    if let Some(value) = value {
        server.watch(&channel, Measure::Preference, ArmName::Canary, &canary, value).await;
    }
    Ok(json!({"object": "feedback", "counted": value.is_some()}))
}

async fn keep(
    server: &Server,
    channel: &str,
    caller: String,
    reason: String,
    said: Said,
) -> Result<(), ApiError> {
    let (channel, at_ms) = (channel.to_owned(), server.host().now_ms());
    let kept = server.host().keep(Feedback { channel, caller, at_ms, reason, said }).await;
    kept.map_err(|error| {
        server.host().log(&format!("feedback could not be kept: {error}"));
        ApiError::internal()
    })
}

/// The fields of feedback, where there is a place for it.
fn object(server: &Server, body: &[u8]) -> Result<Fields, ApiError> {
    if !server.host().keeps_feedback() {
        return Err(ApiError::not_found(
            "this server keeps no feedback: it runs without a project (polity serve --project DIR --channel NAME)",
        ));
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(Fields(map)),
        Ok(other) => Err(ApiError::body(format!("the body is {}; expected a JSON object", shown(&other)))),
        Err(error) => Err(ApiError::body(format!("the body is not JSON: {error}"))),
    }
}

fn reason(fields: &mut Fields) -> Result<String, ApiError> {
    let expected = "a text of at most 4000 bytes";
    let reason = fields.may("reason", expected, |value| {
        value.as_str().filter(|text| text.len() <= REASON_BYTES_MAX).map(str::to_owned)
    })?;
    Ok(reason.unwrap_or_default())
}

/// The answer that `id` and `choice` name, if this caller got it.
fn given(
    server: &Server,
    caller: &str,
    fields: &mut Fields,
    side: &str,
) -> Result<(Arc<Answered>, Given), ApiError> {
    let id = fields.need("id", "an answer's id", |value| value.as_str().map(str::to_owned))?;
    let choice =
        fields.may("choice", "an integer, at least 0", |value| value.as_u64().map(|n| n as usize))?;
    let choice = choice.unwrap_or(0);
    let answered =
        server.recent().find(&id).filter(|answered| answered.caller == caller).ok_or_else(|| {
            let what = format!("there is no answer `{id}` of yours, or it is too long ago");
            ApiError {
                param: Some(format!("{side}{}id", if side.is_empty() { "" } else { "." })),
                ..ApiError::not_found(what)
            }
        })?;
    let Some((prompt, text)) = answered.choices.get(choice) else {
        let n = answered.choices.len();
        return Err(ApiError::field("choice", format!("choice {choice} of an answer with {n}")));
    };
    let given = Given {
        completion: id,
        choice,
        arm: answered.arm,
        release: answered.release.clone(),
        model: answered.model.clone(),
        prompt: answered.prompts[*prompt].clone(),
        text: text.clone(),
    };
    Ok((answered, given))
}

fn nothing_else(fields: &Fields) -> Result<(), ApiError> {
    match fields.0.keys().next() {
        Some(name) => Err(ApiError::field(name, format!("unrecognized request argument: `{name}`"))),
        None => Ok(()),
    }
}
