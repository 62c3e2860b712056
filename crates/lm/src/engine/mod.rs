//! Generation: one engine for rollouts, evaluation, candidates and chat.
//!
//! It reads the trainer's own weights (no copy to keep in step), admits new prompts as others finish, runs a
//! prompt once for all its samples and keeps keys and values in counted pages. Every response is a function
//! of (weights, prompt, settings, seed, prompt id, sample): what it was batched with leaves no trace, since
//! the decoder's rows do not know their batch and each token draws from a counter of its own.
//!
//! Not here: which settings a trainer may use (`train`), chat templates (`chat.rs`).

mod sampler;

pub use sampler::{Draw, SamplerConfig, sample};

use polity_compute::cpu::logprob::RowStats;
use polity_compute::{Cpu, Decoder, KvCache, Params, SequenceId, Tape};

use crate::rng::Stream;

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
    /// Prompt tokens computed in one step.
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
}

/// A sequence that is being decoded.
struct Active {
    request: usize,
    sample: usize,
    sequence: SequenceId,
    /// Sampled, not yet in the cache.
    pending: u32,
    response: Response,
    stream: Stream,
}

/// A row of logits, and the sequences that sample from it.
struct Row {
    at: usize,
    of: RowOf,
}

enum RowOf {
    /// The next token of `active[i]`.
    Next(usize),
    /// The first tokens of all samples of a request.
    First { request: usize, sequence: SequenceId },
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
        Self { cpu, decoder, params, limits, tape, cache: KvCache::new(&decoder.config, params.precision()) }
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
        let positions_max = self.decoder.config.positions_max;
        for request in requests {
            assert!(!request.ids.is_empty(), "generate: an empty prompt");
            assert!(request.ids.len() < positions_max, "generate: a prompt of {} tokens", request.ids.len());
        }
        let mut done: Vec<Response> = Vec::new();
        let mut active: Vec<Active> = Vec::new();
        let mut next_request = 0;
        let temperature = config.logit_temperature();
        while next_request < requests.len() || !active.is_empty() {
            // What this step computes: one token of each running sequence, whole prompts of new ones.
            let mut feed: Vec<(SequenceId, &[u32])> = Vec::new();
            let mut rows = Vec::new();
            let mut tokens = 0;
            for (i, active) in active.iter().enumerate() {
                feed.push((active.sequence, std::slice::from_ref(&active.pending)));
                rows.push(Row { at: tokens, of: RowOf::Next(i) });
                tokens += 1;
            }
            let (mut sequences, mut prefill) = (active.len(), 0);
            while let Some(request) = requests.get(next_request) {
                let fits = sequences + request.samples <= self.limits.sequences_max
                    && prefill + request.ids.len() <= self.limits.prefill_tokens_max;
                if !fits && !feed.is_empty() {
                    break;
                }
                if request.samples > 0 {
                    let sequence = self.cache.add();
                    feed.push((sequence, &request.ids));
                    tokens += request.ids.len();
                    rows.push(Row { at: tokens - 1, of: RowOf::First { request: next_request, sequence } });
                    sequences += request.samples;
                    prefill += request.ids.len();
                }
                next_request += 1;
            }
            if feed.is_empty() {
                break;
            }
            self.decoder.extend(self.cpu, self.params, &mut self.cache, &feed, self.tape);
            let row_indices: Vec<usize> = rows.iter().map(|row| row.at).collect();
            let vocab = self.decoder.config.vocab;
            let logits = self.decoder.logits(self.cpu, self.params, self.tape, &row_indices, temperature);

            // Who draws from which row, in a fixed order; then all draws at once.
            let mut draws = Vec::new();
            for (r, row) in rows.iter().enumerate() {
                let y_v = &logits[r * vocab..(r + 1) * vocab];
                match row.of {
                    RowOf::Next(i) => draws.push((y_v, i)),
                    RowOf::First { request, sequence } => {
                        for sample in 0..requests[request].samples {
                            let last = sample + 1 == requests[request].samples;
                            let sequence = if last { sequence } else { self.cache.fork(sequence) };
                            draws.push((y_v, active.len()));
                            let keys = [requests[request].prompt_id, sample as u64];
                            active.push(Active {
                                request,
                                sample,
                                sequence,
                                pending: 0,
                                response: Response {
                                    request,
                                    sample,
                                    ids: Vec::new(),
                                    logprobs: Vec::new(),
                                    sampling_logprobs: Vec::new(),
                                    entropies: Vec::new(),
                                    finish: Finish::Length,
                                },
                                stream: Stream::new(seed, "sample", &keys),
                            });
                        }
                    }
                }
            }
            let mut drawn: Vec<Option<(Draw, RowStats)>> = vec![None; draws.len()];
            {
                let (active, draws) = (&active, &draws);
                self.cpu.for_each_chunk(&mut drawn, 1, |d, out| {
                    let (y_v, i) = draws[d];
                    let Active { request, response, stream, .. } = &active[i];
                    let mut stream = stream.clone();
                    // Two words a position: one draw of an f64.
                    stream.seek(2 * response.ids.len() as u64);
                    let prompt = &requests[*request].ids;
                    let draw = sample(self.cpu.isa(), y_v, config, prompt, &response.ids, stream.f64());
                    out[0] = Some((draw, RowStats::of(self.cpu.isa(), y_v, draw.token)));
                });
            }
            let mut flow = Flow::Continue;
            let mut finished = Vec::new();
            for (&(_, i), drawn) in draws.iter().zip(drawn) {
                let (draw, stats) = drawn.expect("every draw was made");
                let active = &mut active[i];
                let response = &mut active.response;
                response.ids.push(draw.token);
                response.logprobs.push(stats.logprob);
                response.sampling_logprobs.push(draw.logprob);
                response.entropies.push(stats.entropy);
                active.pending = draw.token;
                let positions = requests[active.request].ids.len() + response.ids.len();
                let finish = if config.stop_token_ids.contains(&draw.token)
                    || config.ends_with_stop_string(&response.ids, decode)
                {
                    Some(Finish::Stop)
                } else if response.ids.len() >= config.max_new_tokens || positions >= positions_max {
                    Some(Finish::Length)
                } else {
                    None
                };
                let event =
                    TokenEvent { request: active.request, sample: active.sample, token: draw.token, finish };
                if on_token(event) == Flow::Stop {
                    flow = Flow::Stop;
                }
                if let Some(finish) = finish {
                    response.finish = finish;
                    finished.push(i);
                }
            }
            finished.sort_unstable();
            for i in finished.into_iter().rev() {
                let ended = active.remove(i);
                self.cache.remove(ended.sequence);
                done.push(ended.response);
            }
            if flow == Flow::Stop {
                break;
            }
        }
        for cut in active {
            self.cache.remove(cut.sequence);
            done.push(cut.response);
        }
        done.sort_by_key(|response| (response.request, response.sample));
        done
    }
}
