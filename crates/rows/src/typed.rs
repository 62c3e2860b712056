//! Rows by use: what a row's keys mean.
//!
//! A key with the value null counts as absent, because tables give every row every key. Keys that are not
//! used are kept in `extra`. A value that is used and wrong (a number for a text, a margin that is no number,
//! a conversation that does not end with the assistant) is an error; a row that is readable but odd carries
//! [`Flag`]s, and its reader decides.
//!
//! Not here: how many tokens a row has, whether prompts repeat between rows.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Place, RowsError};
use crate::hh;
use crate::keys;
pub use crate::keys::RowKind;
use crate::prefix::{shared_messages, shared_text};
use crate::show::kind_of;
use crate::text::{Message, Text, messages, wrong};

/// A prompt repeated at the start of its responses is remarked on from this length, in bytes: short ones
/// coincide.
const REPEATED_BYTES_MIN: usize = 8;
/// The same for token ids.
const REPEATED_IDS_MIN: usize = 4;

/// One row of a file as it stands there.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Position among the rows of the file, counted from 0.
    pub index: usize,
    /// Line it starts on, counted from 1; `None` for formats without lines.
    pub line: Option<usize>,
    /// The object.
    pub value: Map<String, Value>,
}

/// What every typed row carries beside its texts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowInfo {
    /// Position among the rows of the file, counted from 0.
    pub index: usize,
    /// Line it starts on, counted from 1; `None` for formats without lines.
    pub line: Option<usize>,
    /// What is odd about it; usually empty.
    pub flags: Vec<Flag>,
    /// The keys that were not used, without those that are null.
    pub extra: Map<String, Value>,
}

/// One of the responses of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The only one.
    Completion,
    /// The better one.
    Chosen,
    /// The worse one.
    Rejected,
}

/// Something odd about a readable row. Whether to drop, warn or refuse is for whoever uses the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flag {
    /// The prompt is empty: there is nothing to respond to.
    EmptyPrompt,
    /// A response is empty or only white space: there is nothing to learn but to stop.
    EmptyResponse(Side),
    /// Chosen and rejected are the same: there is nothing to learn.
    IdenticalResponses,
    /// A response goes on after the assistant's turn, with a user's message or, in a transcript, any turn:
    /// training on it teaches to speak for the user.
    SeveralTurns(Side),
    /// Every response begins with the whole prompt, so the model would see the prompt twice.
    PromptRepeated,
    /// The prompt ends with the assistant's turn, which will be continued rather than answered.
    PromptEndsWithAssistant,
    /// A pair of texts has the markers of Anthropic HH transcripts and is read as plain text: a speaker is missing, or
    /// the two do not begin alike.
    BrokenTranscript,
    /// A key that is not used looks like this one that would be.
    LikelyMisspelt(&'static str),
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Completion => "completion",
            Side::Chosen => "chosen",
            Side::Rejected => "rejected",
        })
    }
}

impl fmt::Display for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flag::EmptyPrompt => f.write_str("empty prompt"),
            Flag::EmptyResponse(side) => write!(f, "empty response ({side})"),
            Flag::IdenticalResponses => f.write_str("identical responses"),
            Flag::SeveralTurns(side) => write!(f, "several turns in response ({side})"),
            Flag::PromptRepeated => f.write_str("prompt repeated in every response"),
            Flag::PromptEndsWithAssistant => f.write_str("prompt ends with the assistant's turn"),
            Flag::BrokenTranscript => {
                f.write_str("transcript without a turn of each speaker, or without a common opening")
            }
            Flag::LikelyMisspelt(meant) => write!(f, "unused key that looks like `{meant}`"),
        }
    }
}

/// A typed row that can be read from a [`Row`].
pub trait FromRow: Sized {
    /// Which kind of row it is.
    const KIND: RowKind;

    /// Reads the row; `file` is named in errors.
    fn from_row(row: Row, file: &Path) -> Result<Self, RowsError>;
}

/// Something to respond to.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptRow {
    /// Where it stood, what is odd, what is left.
    pub info: RowInfo,
    /// The prompt.
    pub prompt: Prompt,
}

/// A prompt as text or as token ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// `prompt` or `messages`.
    Text(Text),
    /// `prompt_ids` or `ids`, used as they are.
    Ids(Vec<u32>),
}

/// Something to imitate or to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRow {
    /// Where it stood, what is odd, what is left.
    pub info: RowInfo,
    /// The texts.
    pub completion: Completion,
}

/// The four ways to give a completion.
#[derive(Clone, Debug, PartialEq)]
pub enum Completion {
    /// `prompt` and `completion`, both plain or both messages; messages end with the assistant's.
    Pair {
        /// What is responded to.
        prompt: Text,
        /// The response.
        completion: Text,
    },
    /// `messages`: a conversation that ends with the assistant's message.
    Messages(Vec<Message>),
    /// `text`: no prompt, all of it is the completion.
    Text(String),
    /// `prompt_ids` and `completion_ids`, used as they are.
    Ids {
        /// What is responded to.
        prompt_ids: Vec<u32>,
        /// The response, with its end-of-sequence token if it is to have one.
        completion_ids: Vec<u32>,
    },
}

/// Two responses to one prompt, the better one known.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceRow {
    /// Where it stood, what is odd, what is left.
    pub info: RowInfo,
    /// The texts.
    pub pair: Pair,
    /// Where the prompt came from.
    pub prompt_from: PromptFrom,
    /// How much better the chosen response is, in units of the reward; finite.
    pub margin: Option<f64>,
    /// How much the pair counts; finite, not negative.
    pub weight: Option<f64>,
    /// The share of judges who agree that the chosen response is the better one, in `[0, 1]`.
    pub label: Option<f64>,
}

/// The texts of a pair.
#[derive(Clone, Debug, PartialEq)]
pub enum Pair {
    /// All three plain or all three messages; responses of messages end with the assistant's.
    Text {
        /// What is responded to.
        prompt: Text,
        /// The better response.
        chosen: Text,
        /// The worse response.
        rejected: Text,
    },
    /// Token ids, used as they are.
    Ids {
        /// What is responded to.
        prompt_ids: Vec<u32>,
        /// The better response.
        chosen_ids: Vec<u32>,
        /// The worse response.
        rejected_ids: Vec<u32>,
    },
}

/// How a pair's prompt was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PromptFrom {
    /// The row has a prompt of its own.
    Key,
    /// What both sides begin with, by characters or by messages.
    CommonPrefix,
    /// The turns that two Anthropic HH transcripts share; see [`hh`].
    Transcript,
}

/// One response, known to be good or bad.
#[derive(Clone, Debug, PartialEq)]
pub struct UnpairedRow {
    /// Where it stood, what is odd, what is left.
    pub info: RowInfo,
    /// What is responded to.
    pub prompt: Text,
    /// The response; of the prompt's kind.
    pub completion: Text,
    /// Whether it is good.
    pub label: bool,
}

impl FromRow for PromptRow {
    const KIND: RowKind = RowKind::Prompt;

    fn from_row(row: Row, file: &Path) -> Result<PromptRow, RowsError> {
        if keys::combination(Self::KIND, &row.value) == Some(keys::COMPARISON) {
            return PreferenceRow::from_row(row, file).map(PreferenceRow::into_prompt);
        }
        let (keys, mut fields) = Fields::new(Self::KIND, row, file)?;
        let prompt = match keys[0] {
            "prompt" => Prompt::Text(fields.text("prompt")?),
            "messages" => Prompt::Text(Text::Messages(fields.messages("messages")?)),
            key => Prompt::Ids(fields.ids(key)?),
        };
        match &prompt {
            Prompt::Text(text) => fields.flag_prompt(text),
            Prompt::Ids(ids) => fields.flag_if(ids.is_empty(), Flag::EmptyPrompt),
        }
        Ok(PromptRow { info: fields.finish(Self::KIND), prompt })
    }
}

impl FromRow for CompletionRow {
    const KIND: RowKind = RowKind::Completion;

    fn from_row(row: Row, file: &Path) -> Result<CompletionRow, RowsError> {
        let (keys, mut fields) = Fields::new(Self::KIND, row, file)?;
        let completion = match keys[0] {
            "prompt_ids" => {
                let (prompt_ids, completion_ids) = (fields.ids("prompt_ids")?, fields.ids("completion_ids")?);
                fields.flag_ids(&prompt_ids, &[(Side::Completion, &completion_ids)]);
                Completion::Ids { prompt_ids, completion_ids }
            }
            "prompt" => {
                let (prompt, completion) = fields.prompt_and_completion()?;
                Completion::Pair { prompt, completion }
            }
            "messages" => {
                let messages = fields.messages("messages")?;
                fields.check_ends_with_assistant("messages", &messages)?;
                let blank = messages.last().is_none_or(Message::is_blank);
                fields.flag_if(blank, Flag::EmptyResponse(Side::Completion));
                Completion::Messages(messages)
            }
            _ => {
                let text = fields.plain("text")?;
                fields.flag_if(text.trim().is_empty(), Flag::EmptyResponse(Side::Completion));
                Completion::Text(text)
            }
        };
        Ok(CompletionRow { info: fields.finish(Self::KIND), completion })
    }
}

impl FromRow for PreferenceRow {
    const KIND: RowKind = RowKind::Preference;

    fn from_row(row: Row, file: &Path) -> Result<PreferenceRow, RowsError> {
        let (keys, mut fields) = Fields::new(Self::KIND, row, file)?;
        let (pair, prompt_from) = match keys[0] {
            "prompt_ids" => {
                let prompt_ids = fields.ids("prompt_ids")?;
                let (chosen_ids, rejected_ids) = (fields.ids("chosen_ids")?, fields.ids("rejected_ids")?);
                fields.flag_ids(&prompt_ids, &[(Side::Chosen, &chosen_ids), (Side::Rejected, &rejected_ids)]);
                fields.flag_if(chosen_ids == rejected_ids, Flag::IdenticalResponses);
                (Pair::Ids { prompt_ids, chosen_ids, rejected_ids }, PromptFrom::Key)
            }
            _ => {
                let prompt = if keys[0] == "prompt" { Some(fields.text("prompt")?) } else { None };
                let (chosen, rejected) = (fields.text("chosen")?, fields.text("rejected")?);
                // Before any choice is made between them, so that each later match has two of a kind.
                fields.check_same_kind(("chosen", &chosen), ("rejected", &rejected))?;
                let (prompt, chosen, rejected, from) = match prompt {
                    Some(prompt) => fields.with_prompt(prompt, chosen, rejected)?,
                    None => fields.split(chosen, rejected)?,
                };
                fields.check_response("chosen", &chosen)?;
                fields.check_response("rejected", &rejected)?;
                fields.flag_prompt(&prompt);
                fields.flag_responses(&prompt, &[(Side::Chosen, &chosen), (Side::Rejected, &rejected)]);
                fields.flag_if(chosen == rejected, Flag::IdenticalResponses);
                (Pair::Text { prompt, chosen, rejected }, from)
            }
        };
        let margin = fields.number("margin", "a finite number", |_| true)?;
        let weight = fields.number("weight", "a number that is not negative", |weight| weight >= 0.0)?;
        let label =
            fields.number("label", "a number from 0 to 1, the share of judges who agree", |label| {
                (0.0..=1.0).contains(&label)
            })?;
        Ok(PreferenceRow { info: fields.finish(Self::KIND), pair, prompt_from, margin, weight, label })
    }
}

impl FromRow for UnpairedRow {
    const KIND: RowKind = RowKind::Unpaired;

    fn from_row(row: Row, file: &Path) -> Result<UnpairedRow, RowsError> {
        let (_, mut fields) = Fields::new(Self::KIND, row, file)?;
        let (prompt, completion) = fields.prompt_and_completion()?;
        let label = fields.yes_or_no("label")?;
        Ok(UnpairedRow { info: fields.finish(Self::KIND), prompt, completion, label })
    }
}

impl PreferenceRow {
    /// Turns Anthropic HH transcripts into messages (`user`, `assistant`), white space around the words
    /// removed. A row of anything else is returned as it is.
    pub fn transcript_to_messages(mut self) -> PreferenceRow {
        if let Pair::Text { prompt: Text::Plain(p), chosen: Text::Plain(c), rejected: Text::Plain(r) } =
            &self.pair
            && let (Some((prompt, chosen)), Some((_, rejected))) = (hh::exchange(p, c), hh::exchange(p, r))
        {
            self.pair = Pair::Text {
                prompt: Text::Messages(prompt),
                chosen: Text::Messages(chosen),
                rejected: Text::Messages(rejected),
            };
        }
        self
    }

    /// The prompt alone, as for PPO.
    pub fn into_prompt(self) -> PromptRow {
        let prompt = match self.pair {
            Pair::Text { prompt, .. } => Prompt::Text(prompt),
            Pair::Ids { prompt_ids, .. } => Prompt::Ids(prompt_ids),
        };
        let keep = |flag: &Flag| {
            matches!(flag, Flag::EmptyPrompt | Flag::PromptEndsWithAssistant | Flag::BrokenTranscript)
        };
        PromptRow { info: RowInfo { flags: filtered(self.info.flags, keep), ..self.info }, prompt }
    }

    /// The prompt and the chosen response, as for supervised training.
    pub fn into_chosen(self) -> CompletionRow {
        let completion = match self.pair {
            Pair::Text { prompt, chosen, .. } => Completion::Pair { prompt, completion: chosen },
            Pair::Ids { prompt_ids, chosen_ids, .. } => {
                Completion::Ids { prompt_ids, completion_ids: chosen_ids }
            }
        };
        let flags = self.info.flags.iter().filter_map(|flag| match *flag {
            Flag::EmptyResponse(Side::Chosen) => Some(Flag::EmptyResponse(Side::Completion)),
            Flag::SeveralTurns(Side::Chosen) => Some(Flag::SeveralTurns(Side::Completion)),
            Flag::EmptyPrompt
            | Flag::PromptEndsWithAssistant
            | Flag::PromptRepeated
            | Flag::BrokenTranscript => Some(*flag),
            Flag::EmptyResponse(_)
            | Flag::SeveralTurns(_)
            | Flag::IdenticalResponses
            | Flag::LikelyMisspelt(_) => None,
        });
        CompletionRow { info: RowInfo { flags: flags.collect(), ..self.info }, completion }
    }
}

fn filtered(flags: Vec<Flag>, keep: impl Fn(&Flag) -> bool) -> Vec<Flag> {
    flags.into_iter().filter(keep).collect()
}

/// A row while its fields are taken out one by one.
struct Fields {
    place: Place,
    info: RowInfo,
}

impl Fields {
    /// Picks the combination of keys to read the row by.
    fn new(kind: RowKind, row: Row, file: &Path) -> Result<(&'static [&'static str], Fields), RowsError> {
        let place = *Place::row(file, row.line, row.index);
        let keys = keys::combination(kind, &row.value)
            .ok_or_else(|| keys::no_combination(kind, &row.value, &place))?;
        let info = RowInfo { index: row.index, line: row.line, flags: Vec::new(), extra: row.value };
        Ok((keys, Fields { place, info }))
    }

    /// What is left after all fields were taken.
    fn finish(mut self, kind: RowKind) -> RowInfo {
        self.info.extra.retain(|_, value| !value.is_null());
        for key in self.info.extra.keys() {
            if let Some(meant) = keys::misspelt(kind, key) {
                self.info.flags.push(Flag::LikelyMisspelt(meant));
            }
        }
        self.info
    }

    /// The value of a key, null if it is absent; the order of the others is kept.
    fn take(&mut self, key: &str) -> Value {
        self.info.extra.shift_remove(key).unwrap_or(Value::Null)
    }

    fn text(&mut self, key: &str) -> Result<Text, RowsError> {
        let value = self.take(key);
        Text::from_value(&self.place, key, value)
    }

    fn plain(&mut self, key: &str) -> Result<String, RowsError> {
        match self.take(key) {
            Value::String(text) => Ok(text),
            other => Err(wrong(&self.place, key, kind_of(&other), "text", "")),
        }
    }

    fn messages(&mut self, key: &str) -> Result<Vec<Message>, RowsError> {
        let value = self.take(key);
        messages(&self.place, key, value)
    }

    fn ids(&mut self, key: &str) -> Result<Vec<u32>, RowsError> {
        const EXPECTED: &str = "a token id: an integer from 0 to 4294967295";
        let list = match self.take(key) {
            Value::Array(list) => list,
            other => return Err(wrong(&self.place, key, kind_of(&other), "a list of token ids", "")),
        };
        let id = |(i, value): (usize, Value)| {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| wrong(&self.place, &format!("{key}[{i}]"), kind_of(&value), EXPECTED, ""))
        };
        list.into_iter().enumerate().map(id).collect()
    }

    /// An optional number; JSON numbers are finite, and what Parquet spells as "NaN" is text by now.
    fn number(
        &mut self,
        key: &str,
        expected: &str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, RowsError> {
        let value = self.take(key);
        match (&value, value.as_f64()) {
            (Value::Null, _) => Ok(None),
            (_, Some(number)) if number.is_finite() && accept(number) => Ok(Some(number)),
            _ => {
                let hint = if key == "label" && value.is_boolean() {
                    "a true or false label belongs to an unpaired row, for train kto"
                } else {
                    ""
                };
                Err(wrong(&self.place, key, kind_of(&value), expected, hint))
            }
        }
    }

    /// True or false, also spelt 1 or 0 as in tables without booleans.
    fn yes_or_no(&mut self, key: &str) -> Result<bool, RowsError> {
        let value = self.take(key);
        match (&value, value.as_u64()) {
            (Value::Bool(label), _) => Ok(*label),
            (_, Some(label @ (0 | 1))) => Ok(label == 1),
            _ => Err(wrong(&self.place, key, kind_of(&value), "true or false (or 1 or 0)", "")),
        }
    }

    fn prompt_and_completion(&mut self) -> Result<(Text, Text), RowsError> {
        let (prompt, completion) = (self.text("prompt")?, self.text("completion")?);
        self.check_same_kind(("prompt", &prompt), ("completion", &completion))?;
        self.check_response("completion", &completion)?;
        self.flag_prompt(&prompt);
        self.flag_responses(&prompt, &[(Side::Completion, &completion)]);
        Ok((prompt, completion))
    }

    /// A pair with a prompt of its own.
    ///
    /// Some data sets (UltraFeedback binarised among them) give the prompt as text beside two whole
    /// conversations that begin with it. There the conversations' common messages are the prompt, as TRL has
    /// it; the text only repeats one.
    fn with_prompt(
        &mut self,
        prompt: Text,
        chosen: Text,
        rejected: Text,
    ) -> Result<(Text, Text, Text, PromptFrom), RowsError> {
        if let (Text::Plain(text), Text::Messages(a), Text::Messages(b)) = (&prompt, &chosen, &rejected) {
            let shared = &a[..shared_messages(a, b)];
            if shared.iter().any(|message| message.content.trim() == text.trim()) {
                return self.split(chosen, rejected);
            }
        }
        self.check_same_kind(("prompt", &prompt), ("chosen", &chosen))?;
        Ok((prompt, chosen, rejected, PromptFrom::Key))
    }

    /// A pair whose prompt is what both sides begin with. Both are of one kind.
    fn split(&mut self, chosen: Text, rejected: Text) -> Result<(Text, Text, Text, PromptFrom), RowsError> {
        match (chosen, rejected) {
            (Text::Plain(mut prompt), Text::Plain(mut rejected)) => {
                let (end, from) = match hh::split(&prompt, &rejected) {
                    Some(end) => (end, PromptFrom::Transcript),
                    None => (shared_text(&prompt, &rejected), PromptFrom::CommonPrefix),
                };
                let marked = [&prompt, &rejected].into_iter().any(|text| hh::has_further_turns(text));
                self.flag_if(marked && from == PromptFrom::CommonPrefix, Flag::BrokenTranscript);
                let chosen = prompt.split_off(end);
                let rejected = rejected.split_off(end);
                Ok((Text::Plain(prompt), Text::Plain(chosen), Text::Plain(rejected), from))
            }
            (Text::Messages(mut prompt), Text::Messages(mut rejected)) => {
                let end = shared_messages(&prompt, &rejected);
                if end == 0 {
                    return Err(wrong(
                        &self.place,
                        "chosen",
                        "a conversation whose first message is not that of `rejected`, or that has only one"
                            .to_owned(),
                        "conversations that begin with the same prompt, or a `prompt` of its own",
                        "",
                    ));
                }
                let chosen = prompt.split_off(end);
                let rejected = rejected.split_off(end);
                let from = PromptFrom::CommonPrefix;
                Ok((Text::Messages(prompt), Text::Messages(chosen), Text::Messages(rejected), from))
            }
            (chosen, rejected) => Err(self.kinds_differ(("chosen", &chosen), ("rejected", &rejected))),
        }
    }

    fn check_same_kind(&self, a: (&str, &Text), b: (&str, &Text)) -> Result<(), RowsError> {
        if a.1.kind() == b.1.kind() { Ok(()) } else { Err(self.kinds_differ(a, b)) }
    }

    fn kinds_differ(&self, (key_a, a): (&str, &Text), (key_b, b): (&str, &Text)) -> RowsError {
        let expected = format!("{}, as `{key_a}` is", a.kind());
        let hint = "write text as messages: `[{\"role\": \"user\", \"content\": \"…\"}]`";
        wrong(&self.place, key_b, b.kind().to_owned(), &expected, hint)
    }

    fn check_response(&self, key: &str, response: &Text) -> Result<(), RowsError> {
        match response {
            Text::Plain(_) => Ok(()),
            Text::Messages(messages) => self.check_ends_with_assistant(key, messages),
        }
    }

    fn check_ends_with_assistant(&self, key: &str, messages: &[Message]) -> Result<(), RowsError> {
        match messages.last() {
            Some(last) if last.role != "assistant" => {
                let found = format!("a conversation that ends with a message of role {}", last.role);
                Err(wrong(&self.place, key, found, "one that ends with the assistant's message", ""))
            }
            _ => Ok(()),
        }
    }

    fn flag_if(&mut self, odd: bool, flag: Flag) {
        if odd {
            self.info.flags.push(flag);
        }
    }

    fn flag_prompt(&mut self, prompt: &Text) {
        match prompt {
            Text::Plain(text) => self.flag_if(text.is_empty(), Flag::EmptyPrompt),
            Text::Messages(messages) => {
                let last = messages.last().map(|message| message.role.as_str());
                self.flag_if(last == Some("assistant"), Flag::PromptEndsWithAssistant);
            }
        }
    }

    fn flag_responses(&mut self, prompt: &Text, responses: &[(Side, &Text)]) {
        for &(side, response) in responses {
            self.flag_if(response.is_blank(), Flag::EmptyResponse(side));
            let several = match response {
                Text::Plain(text) => hh::has_further_turns(text),
                Text::Messages(messages) => messages.iter().any(|message| message.role == "user"),
            };
            self.flag_if(several, Flag::SeveralTurns(side));
        }
        let repeats = |response: &Text| match (prompt, response) {
            (Text::Plain(prompt), Text::Plain(text)) => {
                prompt.len() >= REPEATED_BYTES_MIN && text.starts_with(prompt.as_str())
            }
            (Text::Messages(prompt), Text::Messages(messages)) => messages.starts_with(prompt),
            _ => false,
        };
        self.flag_if(responses.iter().all(|(_, response)| repeats(response)), Flag::PromptRepeated);
    }

    fn flag_ids(&mut self, prompt_ids: &[u32], responses: &[(Side, &[u32])]) {
        self.flag_if(prompt_ids.is_empty(), Flag::EmptyPrompt);
        for &(side, ids) in responses {
            self.flag_if(ids.is_empty(), Flag::EmptyResponse(side));
        }
        let repeated = prompt_ids.len() >= REPEATED_IDS_MIN
            && responses.iter().all(|(_, ids)| ids.starts_with(prompt_ids));
        self.flag_if(repeated, Flag::PromptRepeated);
    }
}
