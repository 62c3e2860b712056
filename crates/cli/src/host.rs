//! The world outside a trainer: the clock, Ctrl-C, and what is shown while it runs.
//!
//! The first Ctrl-C (or SIGTERM, SIGHUP) asks the work to stop where it can be taken up again; the second one ends the
//! process at once. Files are written beside their targets and renamed, so ending at once loses work, never a file.
//!
//! Not here: what stopping means to a command (the command's), the exit code of a stopped one (`error`).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use polity_train::metrics::{EVAL_PREFIX, Metrics, Stage};
use polity_train::monitor::{Alarm, Severity};
use polity_train::progress::{Event, Host, Level, Progress};

use crate::error::{CommandError, CommandResult, Kind};
use crate::ui::{Ui, Work, short};

/// Requests to stop; cheap to clone.
#[derive(Clone)]
pub struct Interrupts {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    requests: AtomicUsize,
    idle: AtomicBool,
}

impl Interrupts {
    /// Begins to listen. `first` is said at the first request: what happens now, and that another one stops at once. A process listens
    /// once: whoever asks again, to answer with a second model say, hears of the same requests.
    pub fn install(ui: &Ui, first: &'static str) -> CommandResult<Self> {
        static LISTENING: OnceLock<Arc<State>> = OnceLock::new();
        if let Some(state) = LISTENING.get() {
            return Ok(Self { state: Arc::clone(state) });
        }
        let state = Arc::new(State::default());
        let (heard, ui) = (Arc::clone(&state), ui.clone());
        ctrlc::set_handler(move || {
            let requests = heard.requests.fetch_add(1, SeqCst);
            if requests > 0 || heard.idle.load(SeqCst) {
                ui.end_progress();
                std::process::exit(i32::from(Kind::Interrupted.exit_code()));
            }
            if !first.is_empty() {
                ui.note(first);
            }
        })
        .map_err(|error| CommandError::failed(format!("cannot listen for Ctrl-C: {error}")))?;
        Ok(Self { state: Arc::clone(LISTENING.get_or_init(|| state)) })
    }

    /// Whether to stop.
    pub fn requested(&self) -> bool {
        self.state.requests.load(SeqCst) > 0
    }

    /// Whether to stop, and forgets it.
    pub fn take(&self) -> bool {
        self.state.requests.swap(0, SeqCst) > 0
    }

    /// Runs something that waits for the person: a request during it ends the process.
    pub fn while_idle<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.state.idle.store(true, SeqCst);
        let result = wait();
        self.state.idle.store(false, SeqCst);
        result
    }
}

/// Said at the first Ctrl-C of a training run.
const FIRST_REQUEST: &str =
    "stopping after this step, then saving a checkpoint; press Ctrl-C again to stop at once";

/// The host of a training run on this machine.
pub struct TerminalHost {
    ui: Ui,
    interrupts: Interrupts,
    started: Instant,
    logging_steps: u64,
    /// The last step is always shown; it is known from the progress.
    total: u64,
}

impl TerminalHost {
    /// A host that shows the numbers of every `logging_steps`-th step. Installs the Ctrl-C handler.
    pub fn new(ui: &Ui, logging_steps: u64) -> CommandResult<Self> {
        let interrupts = Interrupts::install(ui, FIRST_REQUEST)?;
        Ok(Self { ui: ui.clone(), interrupts, started: Instant::now(), logging_steps, total: 0 })
    }

    fn metrics(&self, step: u64, metrics: &Metrics) {
        let evaluated = metrics.iter().any(|(name, _)| name.starts_with(EVAL_PREFIX));
        let due = self.logging_steps > 0 && step.is_multiple_of(self.logging_steps);
        if due || step == 1 || step == self.total || evaluated {
            self.ui.note(&metrics_line(step, metrics));
        }
    }

    fn progress(&mut self, progress: &Progress) {
        if progress.phase == "train" {
            self.total = progress.total;
        }
        let label = format!("{} {}", progress.stage, progress.phase);
        self.ui.progress(&Work {
            label: &label,
            done: progress.done,
            total: progress.total,
            unit: progress.unit,
            rate_per_s: progress.rate_per_s,
            remaining_s: progress.remaining_s,
        });
    }

    fn alarm(&self, alarm: &Alarm) {
        let text = alarm_line(alarm);
        if alarm.raised { self.ui.warn(&text) } else { self.ui.note(&text) }
    }
}

impl Host for TerminalHost {
    fn now_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    fn stop_requested(&self) -> bool {
        self.interrupts.requested()
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Progress(progress) => self.progress(&progress),
            Event::Metrics { step, metrics } => self.metrics(step, metrics),
            Event::Note { level: Level::Info, text } => self.ui.note(text),
            Event::Note { level: Level::Warning, text } => self.ui.warn(text),
            Event::Alarm(alarm) => self.alarm(alarm),
            // The report shows them; here they would bury the numbers.
            Event::Sample(_) => {}
        }
    }
}

/// A stopped run, as an error with the way to go on.
pub fn stopped(step: u64, command: &str) -> CommandError {
    CommandError::interrupted(format!("stopped after step {step}; a checkpoint was saved"))
        .hint(format!("go on with: {command} --resume"))
}

/// The few numbers of each stage that fit on a line of 80 columns: name in the log, name on the line.
fn headline(stage: Stage) -> &'static [(&'static str, &'static str)] {
    match stage {
        Stage::Sft => &[
            ("loss", "loss"),
            ("mean_token_accuracy", "token accuracy"),
            ("grad_norm", "grad norm"),
            ("eval_loss", "eval loss"),
        ],
        Stage::Reward => &[
            ("loss", "loss"),
            ("accuracy", "accuracy"),
            ("margin", "margin"),
            ("eval_accuracy", "eval accuracy"),
        ],
        Stage::Dpo => &[
            ("loss", "loss"),
            ("rewards/accuracies", "accuracy"),
            ("rewards/margins", "margin"),
            ("eval_rewards/accuracies", "eval accuracy"),
        ],
        Stage::Ppo => &[
            ("objective/scores", "score"),
            ("objective/kl", "KL"),
            ("policy/entropy_avg", "entropy"),
            ("tokens/responses_len_mean", "tokens"),
            ("loss/value_avg", "value loss"),
        ],
    }
}

fn metrics_line(step: u64, metrics: &Metrics) -> String {
    let mut line = format!("step {step}");
    for (name, label) in headline(metrics.stage()) {
        if let Some(value) = metrics.get(name) {
            line += &format!("  {label} {}", short(value));
        }
    }
    line
}

fn alarm_line(alarm: &Alarm) -> String {
    let Alarm { step, message, .. } = alarm;
    // The name in the log is the one to search for.
    let name = serde_json::to_value(alarm.alarm).ok();
    let name = name.as_ref().and_then(serde_json::Value::as_str).unwrap_or("alarm");
    match (alarm.raised, alarm.severity) {
        (true, Severity::Critical) => format!("step {step}: {name} (critical): {message}"),
        (true, Severity::Warning) => format!("step {step}: {name}: {message}"),
        (false, _) => format!("step {step}: {name} is over: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headlines_are_declared_metrics() {
        for stage in Stage::ALL {
            for (name, _) in headline(stage) {
                assert!(polity_train::metrics::find(stage, name).is_some(), "{stage}: {name}");
            }
        }
    }

    #[test]
    fn a_line_has_what_the_step_has_and_fits() {
        let mut metrics = Metrics::new(Stage::Sft);
        metrics.put("loss", 2.34567);
        metrics.put("grad_norm", 0.5);
        assert_eq!(metrics_line(7, &metrics), "step 7  loss 2.35  grad norm 0.5");
        for stage in Stage::ALL {
            let mut metrics = Metrics::new(stage);
            headline(stage).iter().for_each(|(name, _)| metrics.put(name, -0.001234));
            assert!(metrics_line(100_000, &metrics).len() <= 96, "{}", metrics_line(100_000, &metrics));
        }
    }
}
