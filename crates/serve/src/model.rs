//! A model that is served: tokenizer, template and usual settings beside the scheduler that decodes it.

use std::sync::Arc;

use polity_compute::Cpu;
use polity_lm::engine::SamplerConfig;
use polity_lm::{ChatOptions, ChatTemplate, Tokenizer};

use crate::error::ApiError;
use crate::request::{Asked, Prompt};
use crate::scheduler::{Limits, Scheduler, Weights};

/// Default length of a completion, as OpenAI's.
const COMPLETION_TOKENS: usize = 16;

/// What a model is served with.
pub struct ModelParts {
    /// What it is called in logs and feedback: a hash, or its directory's name.
    pub name: String,
    /// Tells weights apart: the beginning of it is every answer's `system_fingerprint`.
    pub hash: String,
    /// The model.
    pub model: polity_lm::Model,
    /// Its shape.
    pub decoder: polity_compute::Decoder,
    /// The processor, which models may share.
    pub cpu: Arc<Cpu>,
    /// Settings of requests that say nothing else; `max_new_tokens` is for chats.
    pub usual: SamplerConfig,
    /// What may run and wait at once.
    pub limits: Limits,
}

/// A model that is ready to answer.
pub struct ServedModel {
    pub(crate) name: String,
    pub(crate) hash: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) usual: SamplerConfig,
    pub(crate) scheduler: Scheduler,
}

/// A prompt in tokens.
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// Most tokens of a response; 0 if only the prompt is wanted.
    pub(crate) max_new_tokens: usize,
    /// The text that `echo` gives.
    pub(crate) text: String,
}

impl ServedModel {
    /// Starts decoding; the error is the tokenizer's absence or the system's refusal of a thread.
    pub fn start(parts: ModelParts) -> Result<ServedModel, Box<dyn std::error::Error + Send + Sync>> {
        let ModelParts { name, hash, model, decoder, cpu, usual, limits } = parts;
        let tokenizer = model.tokenizer()?.clone();
        let template = model.chat;
        let scheduler = Scheduler::start(Weights { cpu, decoder, params: model.params }, limits)?;
        Ok(ServedModel { name, hash, tokenizer, template, usual, scheduler })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The scheduler.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Tells answers of this model's weights apart from others'.
    pub(crate) fn fingerprint(&self) -> String {
        format!("fp_{}", self.hash.chars().take(12).collect::<String>())
    }

    /// A prompt's tokens, checked to leave room for what is asked.
    pub(crate) fn encode(&self, asked: &Asked, prompt: &Prompt, now_s: i64) -> Result<Encoded, ApiError> {
        let param = if matches!(prompt, Prompt::Messages { .. }) { "messages" } else { "prompt" };
        let refused = |error: polity_lm::LmError| ApiError::field(param, error.to_string());
        let (ids, text) = match prompt {
            Prompt::Messages { messages, variables } => {
                let template = self.template.as_ref().ok_or_else(|| {
                    ApiError::field(
                        param,
                        "this model has no chat template; /v1/completions continues plain text",
                    )
                })?;
                let options =
                    ChatOptions { variables: variables.as_ref(), now: Some(now_s), ..ChatOptions::PROMPT };
                let text = template.render(messages, &options).map_err(refused)?.text;
                (self.tokenizer.encode(&text, false).map_err(refused)?, text)
            }
            Prompt::Text(text) => {
                let mut ids = self.tokenizer.encode(text, true).map_err(refused)?;
                // The response goes where the post-processor would put an end.
                ids.truncate(ids.len() - self.tokenizer.suffix().len());
                (ids, text.clone())
            }
            Prompt::Ids(ids) => {
                if let Some(id) = ids.iter().find(|&&id| id as usize >= self.usual.vocab) {
                    let message = format!("token id {id}; expected ids below {}", self.usual.vocab);
                    return Err(ApiError::field(param, message));
                }
                let text = if asked.echo {
                    self.tokenizer.decode(ids, true).map_err(refused)?
                } else {
                    String::new()
                };
                (ids.clone(), text)
            }
        };
        if ids.is_empty() {
            return Err(ApiError::field(
                param,
                "the prompt is empty; expected at least one token to continue",
            ));
        }
        let positions = self.scheduler.positions_max();
        let room = positions.saturating_sub(ids.len());
        let usual = match prompt {
            Prompt::Messages { .. } => self.usual.max_new_tokens,
            _ => COMPLETION_TOKENS,
        };
        let max_new_tokens = asked.max_tokens.unwrap_or(usual.min(room.max(1)));
        if ids.len() + max_new_tokens > positions {
            return Err(ApiError::too_long(
                param,
                format!(
                    "this model's maximum context length is {positions} tokens; found {} of the prompt and {max_new_tokens} \
                     to be generated",
                    ids.len()
                ),
            ));
        }
        Ok(Encoded { ids, max_new_tokens, text })
    }
}
