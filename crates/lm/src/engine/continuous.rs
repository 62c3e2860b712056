//! Continuous batching: jobs come and go between steps, and a step is one forward pass for all of them.
//!
//! A step feeds the newest token of every running sequence and the next piece of every prompt that is not computed yet, at
//! most [`Limits::prefill_tokens_max`](super::Limits) tokens of those, so a long prompt delays its neighbours by a piece at a time.
//! Rows do not know their batch, so none of this is seen in a response.
//!
//! **Memory.** A job's keys and values take at most
//!
//! ```text
//! shared = prompt / P        own = ceil((prompt + max_new) / P) - shared        pages = shared + samples * own
//! ```
//!
//! pages of `P` positions: whole pages of the prompt are shared by its samples, and the half-full one is copied by each. Whoever admits
//! jobs only while their sum fits a budget has bounded the cache ([`Engine::pages_reserved`]).
//!
//! Not here: who waits and who is refused (`serve`).

use std::sync::Arc;

use polity_compute::cache::PAGE;
use polity_compute::cpu::logprob::RowStats;
use polity_compute::{Isa, SequenceId};

use super::{Engine, Finish, Flow, SamplerConfig, sample};
use crate::rng::Stream;

/// Rows of logits that are computed at once: bounds `[rows, vocab]`.
const LOGIT_ROWS_MAX: usize = 128;

/// One prompt to be answered, and what to report of it.
#[derive(Clone, Debug)]
pub struct Job {
    /// Chosen by the caller; events carry it. No two jobs that run have the same.
    pub id: u64,
    /// The prompt; at least one token.
    pub ids: Vec<u32>,
    /// How many responses; none if only the prompt is to be scored.
    pub samples: usize,
    /// Keys the randomness, with `seed` and the sample's number.
    pub prompt_id: u64,
    /// Of the responses.
    pub seed: u64,
    /// How tokens are chosen; its stop strings are the caller's business.
    pub sampler: Arc<SamplerConfig>,
    /// How many of the most likely tokens to report with each token.
    pub top: usize,
    /// Whether the prompt's own tokens are scored.
    pub score_prompt: bool,
}

/// A token, its log-prob and the likeliest tokens in its place, nats, at the sampler's temperature (at 1 if greedy).
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: u32,
    /// Its log-prob.
    pub logprob: f32,
    /// The likeliest, in falling order; of equals the smaller id first.
    pub top: Vec<(u32, f32)>,
}

/// What a step has to tell.
#[derive(Debug)]
pub enum Event {
    /// A prompt has been computed whose tokens were to be scored: all but its first.
    Prompt {
        /// Which job.
        job: u64,
        /// The tokens from the second on.
        scored: Vec<Scored>,
    },
    /// A token has been sampled. [`Flow::Stop`] in answer ends this response.
    Token {
        /// Which job.
        job: u64,
        /// Which of its responses.
        sample: usize,
        /// The token under the policy.
        scored: Scored,
        /// Log-prob under the distribution that was sampled from, nats.
        sampling_logprob: f32,
        /// Entropy of the policy at this token, nats.
        entropy: f32,
        /// Set with the last token.
        finish: Option<Finish>,
    },
}

/// A prompt that is being computed.
pub(super) struct Prefill {
    job: Arc<Job>,
    sequence: SequenceId,
    done: usize,
    scored: Vec<Scored>,
}

/// A sequence that is being decoded.
pub(super) struct Active {
    job: Arc<Job>,
    sample: usize,
    sequence: SequenceId,
    /// What has been sampled; the last is not in the cache yet.
    ids: Vec<u32>,
    stream: Stream,
    /// Whether its job wants no more of it.
    over: bool,
}

/// Something to read off a row of logits.
enum Want {
    /// The next token of `active[i]`.
    Draw(usize),
    /// The log-prob of a token of the prompt of `prefills[p]`.
    Score { p: usize, token: u32 },
}

/// A row whose logits are wanted.
struct Row {
    at: usize,
    temperature: f32,
    wants: std::ops::Range<usize>,
}

struct Found {
    scored: Scored,
    sampling_logprob: f32,
    entropy: f32,
}

impl Job {
    /// Pages of keys and values that it takes at most, in a model of so many positions.
    pub fn pages_max(&self, positions_max: usize) -> usize {
        self.pages(self.samples, positions_max)
    }

    /// The same while so many of its responses run.
    fn pages(&self, samples: usize, positions_max: usize) -> usize {
        if samples == 0 {
            return self.ids.len().div_ceil(PAGE);
        }
        let shared = self.ids.len() / PAGE;
        let longest = (self.ids.len() + self.sampler.max_new_tokens).min(positions_max);
        shared + samples * (longest.div_ceil(PAGE) - shared)
    }
}

impl Engine<'_> {
    /// Takes a job; it runs from the next step on. Whether there is room is the caller's to know.
    ///
    /// # Panics
    ///
    /// If the prompt is empty, or leaves no position for a response that is wanted.
    pub fn admit(&mut self, job: Job) {
        let positions_max = self.decoder.config.positions_max;
        assert!(!job.ids.is_empty(), "generate: an empty prompt");
        let longest = positions_max - usize::from(job.samples > 0);
        assert!(job.ids.len() <= longest, "generate: a prompt of {} tokens", job.ids.len());
        let sequence = self.cache.add();
        self.prefills.push(Prefill { job: Arc::new(job), sequence, done: 0, scored: Vec::new() });
    }

    /// Whether nothing runs.
    pub fn is_idle(&self) -> bool {
        self.prefills.is_empty() && self.active.is_empty()
    }

    /// Sequences that run, or will when their prompts are computed.
    pub fn sequences(&self) -> usize {
        self.active.len() + self.prefills.iter().map(|prefill| prefill.job.samples.max(1)).sum::<usize>()
    }

    /// Whether so many sequences more are within the limits.
    pub fn has_sequences(&self, samples: usize) -> bool {
        self.sequences() + samples.max(1) <= self.limits.sequences_max
    }

    /// Pages that the running jobs take at most, together.
    pub fn pages_reserved(&self) -> usize {
        let positions_max = self.decoder.config.positions_max;
        let prefills: usize = self.prefills.iter().map(|prefill| prefill.job.pages_max(positions_max)).sum();
        // The samples of a job stand together.
        let jobs = self.active.chunk_by(|a, b| a.job.id == b.job.id);
        prefills + jobs.map(|samples| samples[0].job.pages(samples.len(), positions_max)).sum::<usize>()
    }

    /// Pages that hold something now.
    pub fn pages_in_use(&self) -> usize {
        self.cache.pages_in_use()
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.cache.page_bytes()
    }

    /// Ends a job, whatever it was doing; nothing more is told of it.
    pub fn cancel(&mut self, job: u64) {
        self.cancel_where(|id| id == job);
    }

    /// Ends all jobs.
    pub(super) fn cancel_all(&mut self) {
        self.cancel_where(|_| true);
    }

    fn cancel_where(&mut self, is: impl Fn(u64) -> bool) {
        let cache = &mut self.cache;
        self.prefills.retain(|prefill| {
            let keep = !is(prefill.job.id);
            if !keep {
                cache.remove(prefill.sequence);
            }
            keep
        });
        self.active.retain(|active| {
            let keep = !is(active.job.id);
            if !keep {
                cache.remove(active.sequence);
            }
            keep
        });
    }

    /// One forward pass: a token of each running response, a piece of each waiting prompt.
    pub fn step(&mut self, on_event: &mut dyn FnMut(Event) -> Flow) {
        let (mut wants, mut rows) = (Vec::new(), Vec::new());
        self.compute(&mut wants, &mut rows);
        let mut found = self.read_off(&wants, &rows);
        for (want, found) in wants.iter().zip(&mut found) {
            if let Want::Score { p, .. } = want {
                self.prefills[*p].scored.push(found.take().expect("every want was read off").scored);
            }
        }
        for prefill in self.prefills.iter_mut().filter(|prefill| prefill.is_done()) {
            if prefill.job.score_prompt {
                let scored = std::mem::take(&mut prefill.scored);
                on_event(Event::Prompt { job: prefill.job.id, scored });
            }
            if prefill.job.samples == 0 {
                self.cache.remove(prefill.sequence);
            }
        }
        self.prefills.retain(|prefill| !prefill.is_done());
        for (want, found) in wants.iter().zip(found) {
            if let (Want::Draw(i), Some(found)) = (want, found) {
                self.active[*i].take(found, self.decoder.config.positions_max, on_event);
            }
        }
        let cache = &mut self.cache;
        self.active.retain(|active| {
            if active.over {
                cache.remove(active.sequence);
            }
            !active.over
        });
    }

    /// Runs the decoder, and says which rows of its output are wanted and what for. Prompts that are computed now have become
    /// active sequences.
    fn compute(&mut self, wants: &mut Vec<Want>, rows: &mut Vec<Row>) {
        let mut feed: Vec<(SequenceId, &[u32])> = Vec::new();
        let mut tokens = 0;
        let mut want = |at: usize, job: &Job, new: &mut dyn Iterator<Item = Want>| {
            let from = wants.len();
            wants.extend(new);
            rows.push(Row { at, temperature: job.sampler.logit_temperature(), wants: from..wants.len() });
        };
        for (i, active) in self.active.iter().enumerate() {
            feed.push((active.sequence, &active.ids[active.ids.len() - 1..]));
            want(tokens, &active.job, &mut [Want::Draw(i)].into_iter());
            tokens += 1;
        }
        let (mut budget, mut next_active) = (self.limits.prefill_tokens_max, self.active.len());
        let mut pieces = Vec::new();
        for (p, prefill) in self.prefills.iter_mut().enumerate() {
            let end = prefill.job.ids.len().min(prefill.done + budget);
            budget -= end - prefill.done;
            pieces.push((p, prefill.done..end));
            prefill.done = end;
        }
        for (p, piece) in pieces.into_iter().filter(|(_, piece)| !piece.is_empty()) {
            let Prefill { job, sequence, .. } = &self.prefills[p];
            feed.push((*sequence, &job.ids[piece.clone()]));
            for at in piece {
                match job.ids.get(at + 1) {
                    Some(&token) if job.score_prompt => {
                        want(tokens, job, &mut [Want::Score { p, token }].into_iter());
                    }
                    None if job.samples > 0 => {
                        want(tokens, job, &mut (next_active..next_active + job.samples).map(Want::Draw));
                        next_active += job.samples;
                    }
                    _ => {}
                }
                tokens += 1;
            }
        }
        self.decoder.extend(self.cpu, self.params, &mut self.cache, &feed, self.tape);
        for prefill in self.prefills.iter().filter(|prefill| prefill.is_done()) {
            for sample in 0..prefill.job.samples {
                let last = sample + 1 == prefill.job.samples;
                let sequence = if last { prefill.sequence } else { self.cache.fork(prefill.sequence) };
                let (job, keys) = (prefill.job.clone(), [prefill.job.prompt_id, sample as u64]);
                let stream = Stream::new(job.seed, "sample", &keys);
                self.active.push(Active { job, sample, sequence, ids: Vec::new(), stream, over: false });
            }
        }
    }

    /// All draws and scores, some rows of one temperature at a time.
    fn read_off(&mut self, wants: &[Want], rows: &[Row]) -> Vec<Option<Found>> {
        let mut found: Vec<Option<Found>> = wants.iter().map(|_| None).collect();
        let mut temperatures: Vec<f32> = rows.iter().map(|row| row.temperature).collect();
        temperatures.sort_unstable_by(f32::total_cmp);
        temperatures.dedup();
        let vocab = self.decoder.config.vocab;
        for temperature in temperatures {
            let same: Vec<&Row> = rows.iter().filter(|row| row.temperature == temperature).collect();
            for some in same.chunks(LOGIT_ROWS_MAX) {
                let at: Vec<usize> = some.iter().map(|row| row.at).collect();
                let logits = self.decoder.logits(self.cpu, self.params, self.tape, &at, temperature);
                let reads: Vec<(usize, &[f32])> = some
                    .iter()
                    .zip(logits.chunks_exact(vocab))
                    .flat_map(|(row, y_v)| row.wants.clone().map(move |want| (want, y_v)))
                    .collect();
                let mut read: Vec<Option<Found>> = reads.iter().map(|_| None).collect();
                let (isa, active, prefills) = (self.cpu.isa(), &self.active, &self.prefills);
                self.cpu.for_each_chunk(&mut read, 1, |r, out| {
                    let (want, y_v) = reads[r];
                    out[0] = Some(match wants[want] {
                        Want::Draw(i) => active[i].draw(isa, y_v),
                        Want::Score { p, token } => Found::of(isa, y_v, token, f32::NAN, prefills[p].job.top),
                    });
                });
                for ((want, _), read) in reads.into_iter().zip(read) {
                    found[want] = read;
                }
            }
        }
        found
    }
}

impl Prefill {
    fn is_done(&self) -> bool {
        self.done == self.job.ids.len()
    }
}

impl Active {
    fn draw(&self, isa: Isa, y_v: &[f32]) -> Found {
        let mut stream = self.stream.clone();
        // Two words a position: one draw of an f64.
        stream.seek(2 * self.ids.len() as u64);
        let draw = sample(isa, y_v, &self.job.sampler, &self.job.ids, &self.ids, stream.f64());
        Found::of(isa, y_v, draw.token, draw.logprob, self.job.top)
    }

    fn take(&mut self, found: Found, positions_max: usize, on_event: &mut dyn FnMut(Event) -> Flow) {
        let Found { scored, sampling_logprob, entropy } = found;
        self.ids.push(scored.token);
        let sampler = &self.job.sampler;
        let finish = if sampler.stop_token_ids.contains(&scored.token) {
            Some(Finish::Stop)
        } else if self.ids.len() >= sampler.max_new_tokens
            || self.job.ids.len() + self.ids.len() >= positions_max
        {
            Some(Finish::Length)
        } else {
            None
        };
        let (job, sample) = (self.job.id, self.sample);
        let flow = on_event(Event::Token { job, sample, scored, sampling_logprob, entropy, finish });
        self.over = finish.is_some() || flow == Flow::Stop;
    }
}

impl Found {
    fn of(isa: Isa, y_v: &[f32], token: u32, sampling_logprob: f32, top: usize) -> Found {
        let stats = RowStats::of(isa, y_v, token);
        let top = likeliest(y_v, top).into_iter().map(|v| (v, stats.logprob_of(y_v[v as usize]))).collect();
        Found {
            scored: Scored { token, logprob: stats.logprob, top },
            sampling_logprob,
            entropy: stats.entropy,
        }
    }
}

/// The `k` largest logits, in falling order; of equals the smaller id first.
fn likeliest(y_v: &[f32], k: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(k + 1);
    if k == 0 {
        return best;
    }
    for (v, &y) in y_v.iter().enumerate() {
        if best.len() == k && y <= y_v[best[k - 1] as usize] {
            continue;
        }
        let place = best.partition_point(|&b| y_v[b as usize] >= y);
        best.insert(place, v as u32);
        best.truncate(k);
    }
    best
}
