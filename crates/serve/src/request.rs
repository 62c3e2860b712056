//! What a client asks, checked: JSON of OpenAI's chat and completions API in, [`Asked`] out.
//!
//! Fields are OpenAI's, and vLLM's where OpenAI has none (`top_k`, `min_p`, `repetition_penalty`, `min_tokens`, `stop_token_ids`,
//! `return_token_ids`, `chat_template_kwargs`). What would change the answer and is not done here is refused unless it has its neutral
//! value; what changes nothing is passed over; any other name is refused. An error names field, found and expected.
//!
//! Not here: tokens (`model`), what is answered (`answer`).

use polity_lm::engine::SamplerConfig;
use serde_json::{Map, Value};

use crate::error::ApiError;

/// Most alternatives that are reported with a token.
const TOP_MAX: u64 = 20;
/// Most stop strings.
const STOPS_MAX: usize = 16;
/// Most prompts in one request.
const PROMPTS_MAX: usize = 256;
/// Most responses to a prompt that may be asked for; the scheduler's limit may be lower.
const SAMPLES_MAX: u64 = 1024;

/// Fields that are known and change nothing here.
const PASSED_OVER: &[&str] = &[
    "metadata",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
];

/// Whether a value has no effect.
type Check = fn(&Value) -> bool;

/// Fields that would change the answer, and the values with which they do not.
const NEUTRAL: &[(&str, Check)] = &[
    ("frequency_penalty", is_zero),
    ("presence_penalty", is_zero),
    ("logit_bias", is_empty),
    ("tools", is_empty),
    ("functions", is_empty),
    ("tool_choice", |value| value == "none" || value == "auto"),
    ("function_call", |value| value == "none" || value == "auto"),
    ("response_format", |value| value["type"] == "text"),
    ("modalities", |value| *value == serde_json::json!(["text"])),
    ("suffix", |value| value == ""),
    ("best_of", |value| *value == 1),
    ("reasoning_effort", |value| value == "none"),
];

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(Map::is_empty)
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completions,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Messages { messages: Vec<Value>, variables: Option<Map<String, Value>> },
    Text(String),
    Ids(Vec<u32>),
}

/// A checked request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Asked {
    pub(crate) api: Api,
    pub(crate) model: String,
    /// One for a chat.
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) samples: usize,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) echo: bool,
    /// Whether log-probs are wanted, and how many alternatives.
    pub(crate) logprobs: Option<usize>,
    pub(crate) token_ids: bool,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) seed: Option<u64>,
    /// Names the user or session, for the canary's share.
    pub(crate) user: Option<String>,
    sampler: SamplerFields,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct SamplerFields {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    min_tokens: Option<usize>,
    stop: Option<Vec<String>>,
    stop_token_ids: Option<Vec<u32>>,
}

impl Asked {
    /// Reads a body.
    pub(crate) fn read(api: Api, body: &[u8]) -> Result<Asked, ApiError> {
        let map = match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => map,
            Ok(_) => return Err(ApiError::body("the body is no JSON object")),
            Err(error) => return Err(ApiError::body(format!("the body is not JSON: {error}"))),
        };
        let mut fields = Fields(map);
        let asked = Asked::take(api, &mut fields)?;
        for (name, is_neutral) in NEUTRAL {
            if let Some(value) = fields.0.remove(*name)
                && !value.is_null()
                && !is_neutral(&value)
            {
                return Err(ApiError::field(name, format!("`{name}` is not supported here; leave it out")));
            }
        }
        let unknown = fields.0.keys().find(|name| !PASSED_OVER.contains(&name.as_str()));
        match unknown {
            Some(name) => Err(ApiError::field(name, format!("unrecognized request argument: `{name}`"))),
            None => Ok(asked),
        }
    }

    fn take(api: Api, fields: &mut Fields) -> Result<Asked, ApiError> {
        let user = fields.0.get("user").or(fields.0.get("safety_identifier"));
        let user = user.or(fields.0.get("prompt_cache_key")).and_then(Value::as_str).map(str::to_owned);
        let number = |low: f64, high: f64| {
            move |value: &Value| value.as_f64().filter(|x| (low..=high).contains(x)).map(|x| x as f32)
        };
        let count = |value: &Value| value.as_u64().map(|n| n as usize);
        let model = fields.need("model", "a model's name", |value| value.as_str().map(str::to_owned))?;
        let prompts = match api {
            Api::Chat => vec![fields.messages()?],
            Api::Completions => {
                let expected = "a text, token ids, or a list of either";
                let prompts = fields.need("prompt", expected, prompts)?;
                if prompts.is_empty() || prompts.len() > PROMPTS_MAX {
                    let message = format!("{} prompts; expected 1 to {PROMPTS_MAX}", prompts.len());
                    return Err(ApiError::field("prompt", message));
                }
                prompts
            }
        };
        let logprobs = match api {
            Api::Chat => {
                let wanted = fields.yes("logprobs")?;
                let top = fields.may("top_logprobs", "an integer from 0 to 20", |value| {
                    value.as_u64().filter(|&n| n <= TOP_MAX).map(|n| n as usize)
                })?;
                if top.is_some() && !wanted {
                    return Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs` = true"));
                }
                wanted.then(|| top.unwrap_or(0))
            }
            Api::Completions => fields.may("logprobs", "an integer from 0 to 20", |value| {
                value.as_u64().filter(|&n| n <= TOP_MAX).map(|n| n as usize)
            })?,
        };
        let echo = api == Api::Completions && fields.yes("echo")?;
        let stream = fields.yes("stream")?;
        let include_usage =
            match fields.may("stream_options", "an object", |value| value.as_object().cloned())? {
                Some(_) if !stream => {
                    return Err(ApiError::field("stream_options", "`stream_options` needs `stream` = true"));
                }
                Some(options) => Fields(options).yes("include_usage")?,
                None => false,
            };
        // The first is OpenAI's newer name; whoever sends both means the same.
        let newer = fields.may("max_completion_tokens", "an integer, at least 1", count)?;
        let max_tokens = newer.or(fields.may("max_tokens", "an integer, at least 0", count)?);
        if max_tokens == Some(0) && !(echo && api == Api::Completions) {
            return Err(ApiError::field("max_tokens", "`max_tokens` is 0; expected at least 1, or `echo`"));
        }
        let samples = fields.may("n", "an integer from 1 to 1024", |value| {
            value.as_u64().filter(|n| (1..=SAMPLES_MAX).contains(n)).map(|n| n as usize)
        })?;
        let samples = samples.unwrap_or(1);
        if fields.0.get("best_of").and_then(Value::as_u64) == Some(samples as u64) {
            fields.0.remove("best_of");
        }
        Ok(Asked {
            api,
            model,
            prompts,
            samples,
            stream,
            include_usage,
            echo,
            logprobs,
            token_ids: fields.yes("return_token_ids")?,
            max_tokens,
            // Negative seeds are as good as others.
            seed: fields.may("seed", "an integer", |value| {
                value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64))
            })?,
            user,
            sampler: SamplerFields {
                temperature: fields.may("temperature", "a number from 0 to 2", number(0.0, 2.0))?,
                top_p: fields.may("top_p", "a number above 0, at most 1", number(f64::MIN_POSITIVE, 1.0))?,
                // vLLM's way to say "all" is -1.
                top_k: fields.may("top_k", "an integer, at least -1", |value| {
                    value.as_i64().filter(|&k| k >= -1).map(|k| k.max(0) as usize)
                })?,
                min_p: fields.may("min_p", "a number from 0 to 1", number(0.0, 1.0))?,
                repetition_penalty: fields.may(
                    "repetition_penalty",
                    "a number above 0, at most 100",
                    number(f64::from(f32::MIN_POSITIVE), 100.0),
                )?,
                min_tokens: fields.may("min_tokens", "an integer, at least 0", count)?,
                stop: fields.may("stop", "a text, or a list of at most 16 texts, none empty", stops)?,
                stop_token_ids: fields.may("stop_token_ids", "a list of token ids", ids)?,
            },
        })
    }

    /// The model's usual settings with what was asked for; its stop strings are to be looked for in the text.
    pub(crate) fn sampler(
        &self,
        usual: &SamplerConfig,
        max_new_tokens: usize,
    ) -> Result<SamplerConfig, ApiError> {
        let asked = &self.sampler;
        let sampler = SamplerConfig {
            temperature: asked.temperature.unwrap_or(usual.temperature),
            top_p: asked.top_p.unwrap_or(usual.top_p),
            top_k: asked.top_k.unwrap_or(usual.top_k),
            min_p: asked.min_p.unwrap_or(usual.min_p),
            repetition_penalty: asked.repetition_penalty.unwrap_or(usual.repetition_penalty),
            min_new_tokens: asked.min_tokens.unwrap_or(usual.min_new_tokens).min(max_new_tokens),
            stop_strings: asked.stop.clone().unwrap_or_else(|| usual.stop_strings.clone()),
            stop_token_ids: asked.stop_token_ids.clone().unwrap_or_else(|| usual.stop_token_ids.clone()),
            max_new_tokens,
            vocab: usual.vocab,
        };
        // The prompt's scores alone are no response, and have no length to check.
        if max_new_tokens > 0 {
            sampler.validate().map_err(ApiError::body)?;
        }
        Ok(sampler)
    }
}

/// A JSON object that is taken apart field by field; null is absent.
pub(crate) struct Fields(pub(crate) Map<String, Value>);

impl Fields {
    pub(crate) fn may<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(&value) {
                Some(read) => Ok(Some(read)),
                None => {
                    Err(ApiError::field(name, format!("`{name}` is {}; expected {expected}", shown(&value))))
                }
            },
        }
    }

    pub(crate) fn need<T>(
        &mut self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, ApiError> {
        let missing = || ApiError::field(name, format!("`{name}` is missing; expected {expected}"));
        self.may(name, expected, read)?.ok_or_else(missing)
    }

    fn yes(&mut self, name: &str) -> Result<bool, ApiError> {
        Ok(self.may(name, "true or false", Value::as_bool)?.unwrap_or(false))
    }

    fn messages(&mut self) -> Result<Prompt, ApiError> {
        let messages = self.need("messages", "a list of messages", |value| value.as_array().cloned())?;
        if messages.is_empty() {
            return Err(ApiError::field("messages", "`messages` is empty; expected at least one message"));
        }
        let messages = messages.into_iter().enumerate().map(|(at, message)| plain_message(at, message));
        let messages = messages.collect::<Result<_, _>>()?;
        let variables = self.may("chat_template_kwargs", "an object", |value| value.as_object().cloned())?;
        Ok(Prompt::Messages { messages, variables })
    }
}

/// A message whose content is one text: parts are put together, and `developer` is what templates call `system`.
fn plain_message(at: usize, message: Value) -> Result<Value, ApiError> {
    let wrong = |what: &str| ApiError::field(&format!("messages[{at}]"), format!("message {at}: {what}"));
    let Value::Object(mut message) = message else {
        return Err(wrong("expected {\"role\": …, \"content\": …}"));
    };
    let role = message.get("role").and_then(Value::as_str).ok_or_else(|| wrong("`role` is no text"))?;
    if role == "developer" {
        message.insert("role".into(), "system".into());
    }
    let content = match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        None | Some(Value::Null) => String::new(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| part["text"].as_str());
            texts.collect::<Option<String>>().ok_or_else(|| wrong("`content` has parts that are no text"))?
        }
        Some(_) => return Err(wrong("`content` is no text")),
    };
    message.insert("content".into(), content.into());
    Ok(message.into())
}

fn prompts(value: &Value) -> Option<Vec<Prompt>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(Prompt::Text(text.clone())),
        other => ids(other).map(Prompt::Ids),
    };
    match value {
        Value::Array(list) if !list.iter().all(Value::is_number) => list.iter().map(one).collect(),
        other => Some(vec![one(other)?]),
    }
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    value.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok())).collect()
}

fn stops(value: &Value) -> Option<Vec<String>> {
    let list = match value {
        Value::String(text) => vec![text.clone()],
        other => {
            other.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
    };
    // An empty text is in every response: it would end all of them at once.
    (list.len() <= STOPS_MAX && list.iter().all(|text| !text.is_empty())).then_some(list)
}

/// A value short enough for an error.
pub(crate) fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
