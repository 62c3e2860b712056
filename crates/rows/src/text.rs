//! A text as rows hold it: plain, or a list of messages.
//!
//! Not here: rendering messages to text (the model's chat template does that).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Place, RowsError};
use crate::show::{kind_of, nearest, one_of, quoted};

/// A prompt, a response or a whole conversation. Within one row either every text is plain or every text is
/// messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// Text that is tokenised as it stands.
    Plain(String),
    /// Messages for the model's chat template; never empty.
    Messages(Vec<Message>),
}

/// One message of a conversation. It serialises to the object it was read from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: one of [`Message::ROLES`].
    pub role: String,
    /// What is said; empty for a message that only calls tools.
    pub content: String,
    /// All other keys: tool calls, names, reasoning; nulls left out.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// The roles that a message may have.
    pub const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

    /// A message without extra keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// Whether there is nothing in it to learn from.
    pub fn is_blank(&self) -> bool {
        self.content.trim().is_empty() && !calls_tools(&self.extra)
    }
}

impl Text {
    /// Whether there is nothing in it to learn from: only white space, or a last message that says and does
    /// nothing.
    pub fn is_blank(&self) -> bool {
        match self {
            Text::Plain(text) => text.trim().is_empty(),
            Text::Messages(messages) => messages.last().is_none_or(Message::is_blank),
        }
    }

    pub(crate) fn from_value(place: &Place, key: &str, value: Value) -> Result<Text, RowsError> {
        match value {
            Value::String(text) => Ok(Text::Plain(text)),
            Value::Array(_) => messages(place, key, value).map(Text::Messages),
            other => {
                Err(wrong(place, key, kind_of(&other), "text, or a list of messages `{role, content}`", ""))
            }
        }
    }

    /// "text" or "messages", for messages to people.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Text::Plain(_) => "plain text",
            Text::Messages(_) => "a list of messages",
        }
    }
}

/// Reads a list of messages, which must not be empty.
pub(crate) fn messages(place: &Place, key: &str, value: Value) -> Result<Vec<Message>, RowsError> {
    const EXPECTED: &str = "a list of one or more messages `{role, content}`";
    let list = match value {
        Value::Array(list) if !list.is_empty() => list,
        other => return Err(wrong(place, key, kind_of(&other), EXPECTED, "")),
    };
    list.into_iter().enumerate().map(|(i, value)| message(place, &format!("{key}[{i}]"), value)).collect()
}

fn message(place: &Place, key: &str, value: Value) -> Result<Message, RowsError> {
    let mut extra = match value {
        Value::Object(map) => map,
        other => {
            return Err(wrong(place, key, kind_of(&other), "a message `{role, content}`", ""));
        }
    };
    // A table gives every message every key of any message, null where it has none.
    extra.retain(|_, value| !value.is_null());
    let role = match extra.shift_remove("role") {
        Some(Value::String(role)) => role,
        Some(other) => {
            return Err(wrong(place, &format!("{key}.role"), kind_of(&other), "text", ""));
        }
        None => {
            let share_gpt = extra.contains_key("from") && extra.contains_key("value");
            let hint = if share_gpt { "rename `from` to `role` and `value` to `content`" } else { "" };
            return Err(wrong(
                place,
                key,
                kind_of(&Value::Object(extra)),
                "a message with `role` and `content`",
                hint,
            ));
        }
    };
    if !Message::ROLES.contains(&role.as_str()) {
        let hint =
            meant_role(&role).map(|meant| format!("did you mean {}?", quoted(meant))).unwrap_or_default();
        return Err(wrong(
            place,
            &format!("{key}.role"),
            format!("the text {}", quoted(&role)),
            &one_of(&Message::ROLES),
            &hint,
        ));
    }
    let content = match extra.shift_remove("content") {
        Some(Value::String(content)) => content,
        Some(Value::Array(_)) => {
            return Err(wrong(
                place,
                &format!("{key}.content"),
                "a list of parts".to_owned(),
                "text",
                "images and other parts are not supported: join the text parts",
            ));
        }
        Some(other) => {
            return Err(wrong(place, &format!("{key}.content"), kind_of(&other), "text", ""));
        }
        // Some models' tool calls come with `content: null`, which tables and writers may leave out.
        None if calls_tools(&extra) => String::new(),
        None => {
            let found = format!("a message of role {role} without `content`");
            return Err(wrong(place, key, found, "a message with `role` and `content`", ""));
        }
    };
    Ok(Message { role, content, extra })
}

fn calls_tools(extra: &Map<String, Value>) -> bool {
    matches!(extra.get("tool_calls"), Some(Value::Array(calls)) if !calls.is_empty())
}

/// The role that other conventions' names stand for, or the nearest spelling.
fn meant_role(role: &str) -> Option<&'static str> {
    match role.to_lowercase().as_str() {
        "human" | "prompter" | "customer" => Some("user"),
        "gpt" | "bot" | "chatbot" | "model" | "ai" | "chatgpt" => Some("assistant"),
        "function" | "ipython" | "observation" => Some("tool"),
        other => nearest(other, &Message::ROLES),
    }
}

/// The error for a value of the wrong type or outside its range.
pub(crate) fn wrong(place: &Place, key: &str, found: String, expected: &str, hint: &str) -> RowsError {
    RowsError::Value {
        place: Box::new(place.clone()),
        key: key.to_owned(),
        found,
        expected: expected.to_owned(),
        hint: hint.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Text, String> {
        let place = Place::row(Path::new("f"), Some(7), 6);
        Text::from_value(&place, "prompt", value).map_err(|error| error.to_string())
    }

    #[test]
    fn messages_come_back_as_they_were() {
        let value = json!([
            {"role": "user", "content": "2+2?", "name": "ada"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]},
            {"role": "tool", "content": "4"},
        ]);
        let text = read(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&text).unwrap(), value);
        assert_eq!(serde_json::to_value(read(json!("hi")).unwrap()).unwrap(), json!("hi"));

        // Nulls are absent keys, and only a tool call may do without content.
        let call = json!([{"role": "assistant", "content": null, "name": null, "tool_calls": [1]}]);
        let Text::Messages(messages) = read(call).unwrap() else { panic!("a list gives messages") };
        assert_eq!(messages[0].content, "");
        assert_eq!(messages[0].extra.keys().collect::<Vec<_>>(), ["tool_calls"]);
        assert!(!messages[0].is_blank());
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        let check = |value: Value, expect: &str| {
            let error = read(value).unwrap_err();
            assert!(error.starts_with("f, line 7: ") && error.contains(expect), "{error}");
        };
        check(json!(3), "`prompt` is the number 3; expected text, or a list of messages `{role, content}`");
        check(json!([]), "`prompt` is an empty list; expected a list of one or more messages");
        check(json!(["hi"]), "`prompt[0]` is the text \"hi\"; expected a message");
        check(
            json!([{"content": "hi"}]),
            "`prompt[0]` is an object with the key `content`; expected a message with",
        );
        check(json!([{"from": "human", "value": "hi"}]), "rename `from` to `role` and `value` to `content`");
        check(
            json!([{"role": "human", "content": "hi"}]),
            "`prompt[0].role` is the text \"human\"; expected `system`, `developer`, `user`, `assistant` or `tool`; did you mean \"user\"?",
        );
        check(json!([{"role": "asistant", "content": "hi"}]), "did you mean \"assistant\"?");
        check(json!([{"role": 1, "content": "hi"}]), "`prompt[0].role` is the number 1");
        check(json!([{"role": "user"}]), "`prompt[0]` is a message of role user without `content`");
        check(json!([{"role": "user", "content": null}]), "without `content`");
        check(
            json!([{"role": "user", "content": [{"type": "image"}]}]),
            "images and other parts are not supported",
        );
        check(json!([{"role": "user", "content": 5}]), "`prompt[0].content` is the number 5");
    }

    #[test]
    fn blank_means_nothing_to_learn_from() {
        let check = |value: Value, expect: bool| assert_eq!(read(value).unwrap().is_blank(), expect);
        check(json!(""), true);
        check(
            json!(
                " 
"
            ),
            true,
        );
        check(json!("."), false);
        check(json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]), true);
        check(json!([{"role": "user", "content": ""}, {"role": "assistant", "content": "x"}]), false);
    }
}
