//! Generation: one engine for rollouts, evaluation, candidates and chat.
//!
//! It reads the trainer's own weights (no copy to keep in step), admits new prompts as others finish, runs a
//! prompt once for all its samples and keeps keys and values in counted pages. Every response is a function
//! of (weights, prompt, settings, seed, prompt id, sample): what it was batched with leaves no trace, since
//! the decoder's rows do not know their batch and each token draws from a counter of its own.
//!
//! Two ways in: [`Engine::generate`] answers a list of prompts; a server admits jobs while others run
//! ([`Engine::admit`], [`Engine::step`], in `continuous.rs`). The first is a loop around the second.
//!
//! Not here: which settings a trainer may use (`train`), chat templates (`chat.rs`).

mod continuous;
mod sampler;

pub use continuous::{Event, Job, Scored};
pub use sampler::{Draw, SamplerConfig, sample};

use std::collections::BTreeMap;
use std::sync::Arc;

use polity_compute::{Cpu, Decoder, KvCache, Params, Tape};

/// One prompt to be answered some times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The prompt; at least one token.
    pub ids: Vec<u32>,
    /// How many responses.
    pub samples: usize,
    /// Keys the randomness: the same id, seed and settings give the same responses in any batch.
    pub prompt_id: u64,
}

/// Why a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token (the last of `ids`) or a stop string.
    Stop,
    /// The length limit, or the model's positions.
    Length,
}

impl Finish {
    /// `"stop"` or `"length"`.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// One response, with what it was sampled at.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Index of the request.
    pub request: usize,
    /// Which of its samples, from 0.
    pub sample: usize,
    /// The tokens, a stop token included.
    pub ids: Vec<u32>,
    /// Log-prob of each under the policy at the sampler's temperature (at 1 if greedy), nats: to the bit what
    /// a training forward pass computes.
    pub logprobs: Vec<f32>,
    /// Log-prob of each under the distribution that was sampled from, after top-k and the like, nats.
    pub sampling_logprobs: Vec<f32>,
    /// Entropy of the policy at each token, nats.
    pub entropies: Vec<f32>,
    /// Why it ended.
    pub finish: Finish,
}

/// A token as it is sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenEvent {
    /// Index of the request.
    pub request: usize,
    /// Which of its samples.
    pub sample: usize,
    /// The token.
    pub token: u32,
    /// Set with the last token.
    pub finish: Option<Finish>,
}

/// Whether generation goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Go on.
    Continue,
    /// Return what is there; unfinished responses are cut with [`Finish::Length`].
    Stop,
}

/// How much runs at once. Changes speed and memory, never a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences decoded together.
    pub sequences_max: usize,
    /// Prompt tokens computed in one step; a longer prompt takes several.
    pub prefill_tokens_max: usize,
}

impl Limits {
    /// 64 sequences, 2048 prompt tokens a step.
    pub fn usual() -> Self {
        Self { sequences_max: 64, prefill_tokens_max: 2048 }
    }
}

/// The decoder that generates, its settings, and the memory that is reused between calls.
pub struct Engine<'a> {
    cpu: &'a Cpu,
    decoder: &'a Decoder,
    params: &'a Params,
    limits: Limits,
    tape: &'a mut Tape,
    cache: KvCache,
    prefills: Vec<continuous::Prefill>,
    active: Vec<continuous::Active>,
}

impl<'a> Engine<'a> {
    /// An engine over these weights; `tape` lends its memory.
    pub fn new(
        cpu: &'a Cpu,
        decoder: &'a Decoder,
        params: &'a Params,
        limits: Limits,
        tape: &'a mut Tape,
    ) -> Self {
        let cache = KvCache::new(&decoder.config, params.precision());
        Self { cpu, decoder, params, limits, tape, cache, prefills: Vec::new(), active: Vec::new() }
    }

    /// Answers all requests and returns the responses in the order of (request, sample).
    ///
    /// `decode` turns response tokens into text, for stop strings only. `on_token` sees every token when it is
    /// sampled.
    ///
    /// # Panics
    ///
    /// If a prompt is empty or leaves no position for a response: callers check their rows first.
    pub fn generate(
        &mut self,
        requests: &[Request],
        config: &SamplerConfig,
        seed: u64,
        decode: &dyn Fn(&[u32]) -> String,
        on_token: &mut dyn FnMut(TokenEvent) -> Flow,
    ) -> Vec<Response> {
        let sampler = Arc::new(config.clone());
        let mut waiting = requests.iter().enumerate().filter(|(_, request)| request.samples > 0).peekable();
        let mut responses: BTreeMap<(usize, usize), Response> = BTreeMap::new();
        let mut flow = Flow::Continue;
        while flow == Flow::Continue {
            while let Some((index, request)) =
                waiting.next_if(|(_, request)| self.is_idle() || self.has_sequences(request.samples))
            {
                let Request { ids, samples, prompt_id } = request.clone();
                let sampler = sampler.clone();
                let id = index as u64;
                self.admit(Job { id, ids, samples, prompt_id, seed, sampler, top: 0, score_prompt: false });
            }
            if self.is_idle() {
                break;
            }
            self.step(&mut |event| {
                let Event::Token { job, sample, scored, sampling_logprob, entropy, finish } = event else {
                    return Flow::Continue;
                };
                let request = job as usize;
                let response =
                    responses.entry((request, sample)).or_insert_with(|| Response::new(request, sample));
                response.ids.push(scored.token);
                response.logprobs.push(scored.logprob);
                response.sampling_logprobs.push(sampling_logprob);
                response.entropies.push(entropy);
                let stopped = config.ends_with_stop_string(&response.ids, decode);
                let finish = if stopped { Some(Finish::Stop) } else { finish };
                response.finish = finish.unwrap_or(Finish::Length);
                if on_token(TokenEvent { request, sample, token: scored.token, finish }) == Flow::Stop {
                    flow = Flow::Stop;
                }
                if stopped { Flow::Stop } else { Flow::Continue }
            });
        }
        self.cancel_all();
        responses.into_values().collect()
    }
}

impl Response {
    fn new(request: usize, sample: usize) -> Self {
        Self {
            request,
            sample,
            ids: Vec::new(),
            logprobs: Vec::new(),
            sampling_logprobs: Vec::new(),
            entropies: Vec::new(),
            finish: Finish::Length,
        }
    }
}
