//! How a trainer talks to whoever started it: it asks for the time and whether to stop, and tells what happens.
//!
//! A trainer has no clock and no terminal. The command line implements [`Host`]; tests use [`SilentHost`], or a host of
//! their own that records the events or stops the run at a given step.

use crate::metrics::{Metrics, Stage};
use crate::monitor::Alarm;

/// The world outside a trainer.
pub trait Host {
    /// Seconds since some fixed moment; never goes back.
    fn now_s(&self) -> f64;

    /// Whether to save a checkpoint and return at the next step. Once true, it stays true.
    fn stop_requested(&self) -> bool;

    /// Something happened.
    fn event(&mut self, event: Event<'_>);
}

/// How long each phase of a step took.
pub struct Phases<'c> {
    now_s: &'c dyn Fn() -> f64,
    mark_s: f64,
    spent: Vec<(&'static str, f64)>,
}

impl<'c> Phases<'c> {
    /// The first phase begins now.
    pub fn begin(now_s: &'c dyn Fn() -> f64) -> Self {
        Self { now_s, mark_s: now_s(), spent: Vec::new() }
    }

    /// What was done since the last phase's end was this one; phases may come back.
    pub fn end(&mut self, name: &'static str) {
        let now_s = (self.now_s)();
        let seconds = now_s - std::mem::replace(&mut self.mark_s, now_s);
        match self.spent.iter_mut().find(|(known, _)| *known == name) {
            Some((_, spent)) => *spent += seconds,
            None => self.spent.push((name, seconds)),
        }
    }

    /// Puts the seconds of each phase under its name, which is a metric's.
    pub fn put(self, metrics: &mut Metrics) {
        self.spent.into_iter().for_each(|(name, seconds)| metrics.put(name, seconds));
    }
}

/// What a trainer tells.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// How far along it is.
    Progress(Progress),
    /// The numbers of a step, as they went to `metrics.jsonl`.
    Metrics {
        /// The step, counted from 1.
        step: u64,
        /// Its numbers.
        metrics: &'a Metrics,
    },
    /// Something a person should read, in one sentence.
    Note {
        /// How much it matters.
        level: Level,
        /// The sentence.
        text: &'a str,
    },
    /// The monitor raised, or cleared, an alarm.
    Alarm(&'a Alarm),
    /// A response to one of the fixed prompts.
    Sample(&'a Sample),
}

/// How much a note matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Good to know.
    Info,
    /// Something is probably not as wanted.
    Warning,
}

/// How far along a phase is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Which trainer.
    pub stage: Stage,
    /// Which part of it: "train", "evaluate", "reference log-probs", "roll out".
    pub phase: &'static str,
    /// Units done, earlier parts of a resumed run included.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// What a unit is: "step", "row".
    pub unit: &'static str,
    /// Units a second since this process began the phase; `None` before the first is done.
    pub rate_per_s: Option<f64>,
    /// Seconds until the end at that rate.
    pub remaining_s: Option<f64>,
}

/// Works out rates and remaining times. One for each phase.
#[derive(Clone, Copy, Debug)]
pub struct Meter {
    stage: Stage,
    phase: &'static str,
    unit: &'static str,
    total: u64,
    done_at_start: u64,
    started_s: f64,
}

impl Meter {
    /// Starts at `now_s` with `done` units behind it (more than 0 in a resumed run, whose rate counts only new ones).
    pub fn start(
        stage: Stage,
        phase: &'static str,
        unit: &'static str,
        done: u64,
        total: u64,
        now_s: f64,
    ) -> Meter {
        Meter { stage, phase, unit, total, done_at_start: done, started_s: now_s }
    }

    /// Progress when `done` units are behind it.
    pub fn at(&self, done: u64, now_s: f64) -> Progress {
        let (units, elapsed_s) = (done.saturating_sub(self.done_at_start) as f64, now_s - self.started_s);
        let rate_per_s = (units > 0.0 && elapsed_s > 0.0).then(|| units / elapsed_s);
        Progress {
            stage: self.stage,
            phase: self.phase,
            done,
            total: self.total,
            unit: self.unit,
            rate_per_s,
            remaining_s: rate_per_s.map(|rate| self.total.saturating_sub(done) as f64 / rate),
        }
    }
}

/// A response to a fixed prompt at some point of a run: a line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Sample {
    /// The step after which it was drawn; 0 is the untrained model.
    pub step: u64,
    /// Which of the fixed prompts.
    pub prompt_index: usize,
    /// The prompt, as text.
    pub prompt: String,
    /// The response, as text.
    pub response: String,
    /// Tokens of the response.
    pub response_tokens: u64,
    /// Whether it ended by itself.
    pub stopped: bool,
    /// The reward model's score, where there is one.
    pub score: Option<f64>,
}

/// A host that never stops a run, hears nothing and whose clock stands still, so that a run in it is a pure function.
#[derive(Clone, Copy, Debug)]
pub struct SilentHost;

impl Host for SilentHost {
    fn now_s(&self) -> f64 {
        0.0
    }

    fn stop_requested(&self) -> bool {
        false
    }

    fn event(&mut self, _event: Event<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_remaining_time_by_hand() {
        let meter = Meter::start(Stage::Sft, "train", "step", 0, 100, 10.0);
        let start = meter.at(0, 10.0);
        assert_eq!((start.done, start.rate_per_s, start.remaining_s), (0, None, None));
        let later = meter.at(20, 20.0); // 20 steps in 10 s; 80 remain.
        assert_eq!((later.rate_per_s, later.remaining_s), (Some(2.0), Some(40.0)));
    }

    #[test]
    fn a_resumed_run_does_not_count_old_steps_as_speed() {
        let meter = Meter::start(Stage::Ppo, "train", "step", 90, 100, 0.0);
        let progress = meter.at(92, 4.0);
        assert_eq!((progress.done, progress.rate_per_s, progress.remaining_s), (92, Some(0.5), Some(16.0)));
    }

    #[test]
    fn a_clock_that_stands_still_gives_no_rate() {
        let meter = Meter::start(Stage::Dpo, "train", "step", 0, 4, 0.0);
        assert_eq!(meter.at(2, 0.0).rate_per_s, None);
    }
}
