//! What comes of a request: deltas from the scheduler's thread, put together as OpenAI's JSON.
//!
//! The [`Teller`] runs on the scheduler's thread: it turns tokens into text as they come, ends a response at a stop string, and sends
//! deltas to whoever answers the request. A delta holds the tokens whose text it holds; those of a stop string are not in it.
//!
//! Not here: HTTP (`http`).

use polity_lm::Tokenizer;
use polity_lm::engine::{Event, Finish, Flow, Scored};
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::UnboundedSender;

use crate::request::{Api, Asked};
use crate::scheduler::Listener;
use crate::text::GrowingText;

/// A piece of an answer.
#[derive(Debug)]
pub(crate) enum Delta {
    /// The scores of a prompt's tokens, all but its first.
    Prompt { prompt: usize, scored: Vec<Scored> },
    /// Text of a response, and the tokens behind it.
    Text { choice: usize, text: String, scored: Vec<At>, ids: Vec<u32>, finish: Option<Finish> },
    /// A prompt's job ended, whole or not.
    End { whole: bool },
}

/// A token, and where in its response's text it begins: in bytes as it is told, in characters as it is shown.
pub(crate) type At = (usize, Scored);

/// Tells one prompt's job.
pub(crate) struct Teller {
    prompt: usize,
    first_choice: usize,
    texts: Vec<Growing>,
    scores: bool,
    to: UnboundedSender<Delta>,
}

/// One response as it grows.
struct Growing {
    text: GrowingText,
    /// Tokens whose text is held back, with the byte of the text at which each begins.
    held: Vec<At>,
}

impl Teller {
    pub(crate) fn new(
        asked: &Asked,
        prompt: usize,
        ids: &[u32],
        stops: &[String],
        tokenizer: &Tokenizer,
        to: UnboundedSender<Delta>,
    ) -> Self {
        let context = if asked.api == Api::Completions { ids } else { &[] };
        let growing = || Growing { text: GrowingText::new(tokenizer, context, stops), held: Vec::new() };
        let texts = (0..asked.samples).map(|_| growing()).collect();
        Self { prompt, first_choice: prompt * asked.samples, texts, scores: asked.logprobs.is_some(), to }
    }
}

impl Listener for Teller {
    fn event(&mut self, event: Event) -> Flow {
        let (sample, scored, finish) = match event {
            Event::Prompt { scored, .. } => {
                let _ = self.to.send(Delta::Prompt { prompt: self.prompt, scored });
                return Flow::Continue;
            }
            Event::Token { sample, scored, finish, .. } => (sample, scored, finish),
        };
        let Growing { text, held } = &mut self.texts[sample];
        let ids = vec![scored.token];
        held.push((text.known_bytes(), scored));
        let token = ids[0];
        // A stop token has no text. A tokenizer that fails on its own ids has nothing to say either: the ids tell.
        let mut shown =
            if finish == Some(Finish::Stop) { String::new() } else { text.push(token).unwrap_or_default() };
        if finish.is_some() && !text.is_stopped() {
            shown += &text.finish().unwrap_or_default();
        }
        let stopped = text.is_stopped();
        let finish = if stopped { Some(Finish::Stop) } else { finish };
        let certain = match finish {
            // Of a token that only began a stop string there is nothing to see.
            Some(_) if stopped => held.partition_point(|(at, _)| *at < text.shown_bytes()),
            Some(_) => held.len(),
            None => held.partition_point(|(at, _)| *at < text.shown_bytes()),
        };
        let scored: Vec<At> = held.drain(..certain).collect();
        let scored = if self.scores { scored } else { Vec::new() };
        let choice = self.first_choice + sample;
        // If nobody listens, the scheduler sees it before its next step.
        let _ = self.to.send(Delta::Text { choice, text: shown, scored, ids, finish });
        if stopped { Flow::Stop } else { Flow::Continue }
    }

    fn is_gone(&self) -> bool {
        self.to.is_closed()
    }

    fn end(self: Box<Self>, whole: bool) {
        let _ = self.to.send(Delta::End { whole });
    }
}

/// What every piece of an answer has.
pub(crate) struct Shape {
    pub(crate) api: Api,
    pub(crate) id: String,
    pub(crate) created_s: i64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    pub(crate) tokenizer: Tokenizer,
    /// Alternatives asked for.
    pub(crate) top: Option<usize>,
    pub(crate) token_ids: bool,
}

/// Tokens used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
}

impl Usage {
    pub(crate) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// A whole choice, as it is put together.
#[derive(Debug, Default)]
pub(crate) struct Choice {
    pub(crate) text: String,
    pub(crate) scored: Vec<At>,
    pub(crate) ids: Vec<u32>,
    pub(crate) finish: Option<Finish>,
}

/// The prompt before an echoed choice.
pub(crate) struct Echo {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
    pub(crate) scored: Vec<Scored>,
}

impl Echo {
    /// Where in the text each token begins, in characters.
    fn begins(&self, tokenizer: &Tokenizer) -> Vec<usize> {
        let mut grown = GrowingText::new(tokenizer, &[], &[]);
        let (mut bytes, mut chars) = (0, 0);
        let begins = self.ids.iter().map(|&id| {
            let at = self.text.floor_char_boundary(grown.known_bytes()).max(bytes);
            chars += self.text[bytes..at].chars().count();
            bytes = at;
            // What cannot be decoded has no place of its own.
            let _ = grown.push(id);
            chars
        });
        begins.collect()
    }
}

impl Shape {
    /// A whole answer.
    pub(crate) fn whole(&self, choices: Vec<Value>, usage: Usage) -> Value {
        let object = match self.api {
            Api::Chat => "chat.completion",
            Api::Completions => "text_completion",
        };
        let mut whole = self.envelope(object, choices);
        whole["usage"] = usage.json();
        whole
    }

    /// A piece of a streamed answer.
    pub(crate) fn chunk(&self, choices: Vec<Value>) -> Value {
        self.envelope(
            if self.api == Api::Chat { "chat.completion.chunk" } else { "text_completion" },
            choices,
        )
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        let Self { id, created_s, model, fingerprint, .. } = self;
        json!({
            "id": id, "object": object, "created": created_s, "model": model, "system_fingerprint": fingerprint, "choices": choices,
        })
    }

    /// One choice of a whole answer; `echo` puts its prompt before it.
    pub(crate) fn choice(&self, index: usize, choice: &Choice, echo: Option<&Echo>) -> Value {
        let Choice { text, scored, ids, finish } = choice;
        let finish = finish.map_or("length", Finish::name);
        let mut value = match self.api {
            Api::Chat => json!({
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": null},
                "logprobs": self.chat_logprobs(scored),
                "finish_reason": finish,
            }),
            Api::Completions => {
                let before = echo.map_or("", |echo| echo.text.as_str());
                json!({
                    "index": index,
                    "text": format!("{before}{text}"),
                    "logprobs": self.text_logprobs(echo, scored),
                    "finish_reason": finish,
                })
            }
        };
        if self.token_ids {
            value["token_ids"] = json!(ids);
        }
        value
    }

    /// One choice of a piece.
    pub(crate) fn piece(&self, index: usize, piece: &Choice) -> Value {
        let Choice { text, scored, ids, finish } = piece;
        let finish = finish.map(Finish::name);
        let mut value = match self.api {
            Api::Chat => {
                let delta = if text.is_empty() { json!({}) } else { json!({"content": text}) };
                let logprobs = self.chat_logprobs(scored);
                json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish})
            }
            Api::Completions => {
                let logprobs = self.text_logprobs(None, scored);
                json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish})
            }
        };
        if self.token_ids {
            value["token_ids"] = json!(ids);
        }
        value
    }

    /// The piece before all others of a chat's choice.
    pub(crate) fn role(&self, index: usize) -> Value {
        let delta = json!({"role": "assistant", "content": "", "refusal": null});
        json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null})
    }

    /// The echoed prompt as a piece.
    pub(crate) fn echoed(&self, index: usize, echo: &Echo) -> Value {
        let logprobs = self.text_logprobs(Some(echo), &[]);
        json!({"index": index, "text": echo.text, "logprobs": logprobs, "finish_reason": null})
    }

    /// Places in bytes of a response's text as places in characters of the shown one, which has some characters before it.
    pub(crate) fn placed(&self, text: &str, before: usize, scored: Vec<At>) -> Vec<At> {
        match self.api {
            // Only completions say where a token is.
            Api::Chat => scored,
            Api::Completions => {
                let chars = |at: usize| before + text[..text.floor_char_boundary(at)].chars().count();
                scored.into_iter().map(|(at, scored)| (chars(at), scored)).collect()
            }
        }
    }

    fn chat_logprobs(&self, scored: &[At]) -> Value {
        if self.top.is_none() {
            return Value::Null;
        }
        let entry = |token: u32, logprob: f32| {
            let bytes = self.tokenizer.token_bytes(token);
            let text = String::from_utf8_lossy(&bytes);
            json!({"token": text, "logprob": finite(logprob), "bytes": bytes})
        };
        let content = scored.iter().map(|(_, scored)| {
            let mut value = entry(scored.token, scored.logprob);
            value["top_logprobs"] =
                scored.top.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
            value
        });
        json!({"content": content.collect::<Vec<_>>(), "refusal": null})
    }

    fn text_logprobs(&self, echo: Option<&Echo>, scored: &[At]) -> Value {
        let Some(top) = self.top else { return Value::Null };
        let (mut tokens, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        let mut add = |at: usize, token: u32, scored: Option<&Scored>| {
            logprobs.push(scored.map(|scored| finite(scored.logprob)));
            tops.push(scored.filter(|_| top > 0).map(|scored| {
                let mut by_text = Map::new();
                let found = scored.top.iter().copied().chain([(token, scored.logprob)]);
                for (token, logprob) in found {
                    // Two tokens may have the same text; the likelier one came first.
                    by_text.entry(self.token_text(token)).or_insert_with(|| json!(finite(logprob)));
                }
                by_text
            }));
            tokens.push(self.token_text(token));
            offsets.push(at);
        };
        if let Some(echo) = echo {
            // Nothing precedes the first token.
            let scored = std::iter::once(None).chain(echo.scored.iter().map(Some));
            let at = echo.begins(&self.tokenizer);
            at.into_iter()
                .zip(&echo.ids)
                .zip(scored)
                .for_each(|((at, &token), scored)| add(at, token, scored));
        }
        scored.iter().for_each(|(at, scored)| add(*at, scored.token, Some(scored)));
        json!({"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets})
    }

    /// A token as completions name it: its text, or its bytes where they are no text.
    fn token_text(&self, token: u32) -> String {
        match String::from_utf8(self.tokenizer.token_bytes(token)) {
            Ok(text) => text,
            Err(error) => {
                let hex: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
                format!("bytes:{hex}")
            }
        }
    }
}

/// A log-prob as JSON: with the digits that give it back in f32, as `polity generate` writes it. JSON has no infinity; OpenAI writes -9999
/// for what is as good as impossible.
fn finite(logprob: f32) -> f64 {
    logprob.max(-9999.0).to_string().parse().expect("a float's text is a float")
}
