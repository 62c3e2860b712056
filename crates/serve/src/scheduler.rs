//! One thread that owns a model's decoding: it admits what fits, steps, and tells listeners what was sampled.
//!
//! ```text
//! submit ──refused beyond sequences_max + waiting_max open requests──▶ 429
//!    └──▶ waiting, first come first served ──when sequences and pages suffice──▶ running ──▶ told, ended
//! ```
//!
//! **Memory is bounded.** A job is admitted only if the pages that it takes at most fit beside what the running ones take at most
//! (`lm`'s `engine/continuous.rs` has the bound), so nothing that runs is ever thrown out for another. A job that could never fit is
//! refused at once. What was told and not read yet is bounded by the number of open requests: each holds its [`Place`] until it
//! is answered.
//!
//! **Nobody waits for whoever has gone.** Between two steps, jobs whose listener has gone are cancelled.
//!
//! Not here: HTTP, text, the clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;

use polity_compute::cache::PAGE;
use polity_compute::{Cpu, Decoder, Params, Tape};
use polity_lm::engine::{Engine, Event, Flow, Job};

/// What may run and wait at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Responses decoded together.
    pub sequences_max: usize,
    /// Prompt tokens computed between two tokens of the running responses.
    pub prefill_tokens_max: usize,
    /// Tokens whose keys and values are kept, of all running responses together.
    pub kv_tokens_max: usize,
    /// Requests that wait beyond those that run.
    pub waiting_max: usize,
}

impl Limits {
    /// 64 responses at once, 512 prompt tokens a step, 64 Ki tokens of keys and values, 256 waiting.
    pub fn usual() -> Self {
        Self { sequences_max: 64, prefill_tokens_max: 512, kv_tokens_max: 1 << 16, waiting_max: 256 }
    }
}

/// What a scheduler decodes with.
pub struct Weights {
    /// The processor, which several models may share.
    pub cpu: Arc<Cpu>,
    /// The model's shape.
    pub decoder: Decoder,
    /// The model's weights.
    pub params: Params,
}

/// Who is told what comes of a job. Called from the scheduler's thread: it must not wait.
pub trait Listener: Send {
    /// Something was sampled or scored; [`Flow::Stop`] ends that response.
    fn event(&mut self, event: Event) -> Flow;
    /// Whether nobody listens any more.
    fn is_gone(&self) -> bool;
    /// Nothing more comes. `whole` is false if the job was cut off.
    fn end(self: Box<Self>, whole: bool);
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many requests are open as may be.
    #[error("the server is busy; try again in {retry_after_s} s")]
    Busy {
        /// Seconds to wait.
        retry_after_s: u64,
    },
    /// It would not fit if it were alone.
    #[error("prompt and responses take {needed} tokens of memory; the server has {limit}")]
    TooLarge {
        /// Tokens of keys and values, whole pages.
        needed: usize,
        /// Tokens that there are.
        limit: usize,
    },
    /// More responses than are ever decoded together.
    #[error("{samples} responses to one prompt; the server decodes {limit} at once")]
    TooMany {
        /// Found.
        samples: usize,
        /// Expected at most.
        limit: usize,
    },
    /// The scheduler has been closed.
    #[error("the server is shutting down")]
    Closed,
}

/// What a scheduler has done and is doing; read by `/v1/metrics`.
#[derive(Debug, Default)]
pub struct Gauges {
    /// Requests that are open: waiting, running, or not yet read to their end.
    pub open: AtomicUsize,
    /// Jobs that wait.
    pub waiting: AtomicUsize,
    /// Responses that run, or whose prompt is being computed.
    pub sequences: AtomicUsize,
    /// Tokens of keys and values that running jobs take at most.
    pub kv_tokens_reserved: AtomicUsize,
    /// Tokens of keys and values that are held, whole pages.
    pub kv_tokens_used: AtomicUsize,
    /// Forward passes.
    pub steps: AtomicU64,
    /// Tokens of prompts that have been admitted.
    pub prompt_tokens: AtomicU64,
    /// Tokens that have been sampled.
    pub sampled_tokens: AtomicU64,
    /// Jobs that ended whole.
    pub finished: AtomicU64,
    /// Jobs whose listener left.
    pub cancelled: AtomicU64,
    /// Jobs that were refused because too many were open.
    pub refused: AtomicU64,
    closing: AtomicBool,
    aborting: AtomicBool,
}

/// One of the requests that may be open; dropped when it is answered.
pub struct Place(Arc<Gauges>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// A handle on the thread. Dropping it lets running jobs end, and waits for them.
pub struct Scheduler {
    limits: Limits,
    positions_max: usize,
    gauges: Arc<Gauges>,
    submitted: AtomicU64,
    inbox: Option<Sender<(Job, Box<dyn Listener>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts the thread.
    pub fn start(weights: Weights, limits: Limits) -> std::io::Result<Scheduler> {
        let (inbox, jobs) = channel();
        let gauges = Arc::new(Gauges::default());
        let positions_max = weights.decoder.config.positions_max;
        let told = gauges.clone();
        let thread = std::thread::Builder::new()
            .name("scheduler".into())
            .spawn(move || Run::new(&weights, limits, &told, &mut Tape::default()).run(&jobs))?;
        let (submitted, inbox, thread) = (AtomicU64::new(0), Some(inbox), Some(thread));
        Ok(Scheduler { limits, positions_max, gauges, submitted, inbox, thread })
    }

    /// The limits it was started with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Most tokens of prompt and response.
    pub fn positions_max(&self) -> usize {
        self.positions_max
    }

    /// What it does.
    pub fn gauges(&self) -> &Gauges {
        &self.gauges
    }

    /// Hands in a job; its `id` is chosen here. `Ok` means that the listener is going to be told its end.
    pub fn submit(&self, mut job: Job, listener: Box<dyn Listener>) -> Result<Place, Refused> {
        let Limits { sequences_max, kv_tokens_max, waiting_max, .. } = self.limits;
        if self.gauges.closing.load(Relaxed) {
            return Err(Refused::Closed);
        }
        if job.samples > sequences_max {
            return Err(Refused::TooMany { samples: job.samples, limit: sequences_max });
        }
        let needed = PAGE * job.pages_max(self.positions_max);
        if needed > kv_tokens_max / PAGE * PAGE {
            return Err(Refused::TooLarge { needed, limit: kv_tokens_max / PAGE * PAGE });
        }
        let place = Place(self.gauges.clone());
        if self.gauges.open.fetch_add(1, Relaxed) >= sequences_max + waiting_max {
            self.gauges.refused.fetch_add(1, Relaxed);
            // Every second or so some of those that run are done; whoever comes later finds more before it.
            let waiting = self.gauges.waiting.load(Relaxed);
            return Err(Refused::Busy { retry_after_s: 1 + (waiting / sequences_max) as u64 });
        }
        job.id = self.submitted.fetch_add(1, Relaxed);
        let inbox = self.inbox.as_ref().expect("there is an inbox until this is dropped");
        inbox.send((job, listener)).map_err(|_| Refused::Closed)?;
        Ok(place)
    }

    /// Takes no more jobs. What runs or waits goes on to its end.
    pub fn close(&self) {
        self.gauges.closing.store(true, Relaxed);
    }

    /// Takes no more jobs and cuts off what runs or waits.
    pub fn abort(&self) {
        self.close();
        self.gauges.aborting.store(true, Relaxed);
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        self.close();
        self.inbox = None;
        if let Some(thread) = self.thread.take() {
            // If it panicked, its message is in the log and every listener was dropped, which its client saw.
            let _ = thread.join();
        }
    }
}

/// The thread's state.
struct Run<'r> {
    engine: Engine<'r>,
    gauges: &'r Gauges,
    positions_max: usize,
    pages_max: usize,
    waiting: VecDeque<(Job, Box<dyn Listener>)>,
    running: BTreeMap<u64, Running>,
}

struct Running {
    listener: Box<dyn Listener>,
    /// Responses that have not ended.
    left: usize,
    /// Whether there are none, and the scores of the prompt are all there is to tell.
    prompt_only: bool,
}

impl<'r> Run<'r> {
    fn new(weights: &'r Weights, limits: Limits, gauges: &'r Gauges, tape: &'r mut Tape) -> Self {
        let Limits { sequences_max, prefill_tokens_max, kv_tokens_max, .. } = limits;
        let limits = polity_lm::engine::Limits { sequences_max, prefill_tokens_max };
        let Weights { cpu, decoder, params } = weights;
        Run {
            engine: Engine::new(cpu, decoder, params, limits, tape),
            gauges,
            positions_max: decoder.config.positions_max,
            pages_max: kv_tokens_max / PAGE,
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
        }
    }

    fn run(mut self, jobs: &Receiver<(Job, Box<dyn Listener>)>) {
        let mut open = true;
        while open || !self.waiting.is_empty() || !self.engine.is_idle() {
            if self.waiting.is_empty() && self.engine.is_idle() {
                match jobs.recv() {
                    Ok(job) => self.waiting.push_back(job),
                    Err(_) => open = false,
                }
            }
            loop {
                match jobs.try_recv() {
                    Ok(job) => self.waiting.push_back(job),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        open = false;
                        break;
                    }
                }
            }
            if self.gauges.aborting.load(Relaxed) {
                self.cut();
            }
            self.drop_those_gone();
            self.admit();
            if !self.engine.is_idle() {
                self.step();
            }
            self.tell_gauges();
        }
    }

    fn drop_those_gone(&mut self) {
        let cancelled = &self.gauges.cancelled;
        self.waiting.retain(|(_, listener)| {
            let gone = listener.is_gone();
            cancelled.fetch_add(u64::from(gone), Relaxed);
            !gone
        });
        let engine = &mut self.engine;
        self.running.retain(|&id, running| {
            let gone = running.listener.is_gone();
            if gone {
                engine.cancel(id);
                cancelled.fetch_add(1, Relaxed);
            }
            !gone
        });
    }

    /// First come, first served: a large job that does not fit yet is not overtaken for ever.
    fn admit(&mut self) {
        while let Some((job, _)) = self.waiting.front() {
            let pages = self.engine.pages_reserved() + job.pages_max(self.positions_max);
            if pages > self.pages_max || !self.engine.has_sequences(job.samples) {
                return;
            }
            let (job, listener) = self.waiting.pop_front().expect("just looked at");
            self.gauges.prompt_tokens.fetch_add(job.ids.len() as u64, Relaxed);
            let (left, prompt_only) = (job.samples.max(1), job.samples == 0);
            self.running.insert(job.id, Running { listener, left, prompt_only });
            self.engine.admit(job);
        }
    }

    fn step(&mut self) {
        let (running, gauges) = (&mut self.running, self.gauges);
        let mut ended = Vec::new();
        self.engine.step(&mut |event| {
            let (id, is_token, finished) = match &event {
                Event::Prompt { job, .. } => (*job, false, false),
                Event::Token { job, finish, .. } => (*job, true, finish.is_some()),
            };
            gauges.sampled_tokens.fetch_add(u64::from(is_token), Relaxed);
            let Some(job) = running.get_mut(&id) else { return Flow::Stop };
            let flow = job.listener.event(event);
            let over = if is_token { finished || flow == Flow::Stop } else { job.prompt_only };
            job.left -= usize::from(over);
            if job.left == 0 {
                ended.push(id);
            }
            flow
        });
        gauges.steps.fetch_add(1, Relaxed);
        for id in ended {
            if let Some(job) = running.remove(&id) {
                job.listener.end(true);
                gauges.finished.fetch_add(1, Relaxed);
            }
        }
    }

    fn cut(&mut self) {
        for (id, running) in std::mem::take(&mut self.running) {
            self.engine.cancel(id);
            running.listener.end(false);
        }
        for (_, listener) in self.waiting.drain(..) {
            listener.end(false);
        }
    }

    fn tell_gauges(&self) {
        let Gauges { waiting, sequences, kv_tokens_reserved, kv_tokens_used, .. } = self.gauges;
        waiting.store(self.waiting.len(), Relaxed);
        sequences.store(self.engine.sequences(), Relaxed);
        kv_tokens_reserved.store(PAGE * self.engine.pages_reserved(), Relaxed);
        kv_tokens_used.store(PAGE * self.engine.pages_in_use(), Relaxed);
    }
}
