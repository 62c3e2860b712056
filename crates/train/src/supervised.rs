//! The loop that SFT, reward and DPO share: step, record, evaluate, save.
//!
//! A step's rows, its learning rate and its gradient are functions of the step's number, so a checkpoint is the
//! weights, the moments, the step, and the monitor: a run that is killed and resumed ends in the same bits.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::examples::Order;
use crate::learner::Learner;
use crate::metrics::{Metrics, Stage};
use crate::monitor::{Monitor, Observation};
use crate::progress::{Event, Host, Meter, Phases};
use crate::run::{Checkpoint, CheckpointWriter, RunDir};
use crate::samples::{SamplePrompt, draw_samples};
use crate::settings::CommonConfig;

/// A trainer without rollouts.
pub trait Task<'c> {
    /// Which trainer.
    const STAGE: Stage;

    /// The model that learns.
    fn learner(&mut self) -> &mut Learner<'c>;

    /// The model when it has learnt.
    fn into_learner(self) -> Learner<'c>;

    /// Rows (or pairs) to train on.
    fn train_rows(&self) -> usize;

    /// Rows (or pairs) to evaluate on.
    fn eval_rows(&self) -> usize;

    /// Adds the gradient of a whole step to the learner; returns its loss and puts its metrics.
    fn accumulate(
        &mut self,
        rows: &[usize],
        metrics: &mut Metrics,
        phases: &mut Phases<'_>,
    ) -> Result<f64, TrainError>;

    /// Puts the evaluation's metrics.
    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<(), TrainError>;
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Done,
    /// It was asked to stop, saved a checkpoint and can be resumed.
    Stopped {
        /// Steps done.
        step: u64,
    },
    /// A critical alarm stopped it, as configured; there is a checkpoint.
    Alarmed {
        /// Steps done.
        step: u64,
    },
}

/// Where a run writes, what it goes on from, and who listens.
pub struct RunContext<'r> {
    /// The run's directory.
    pub run: &'r mut RunDir,
    /// Where to go on.
    pub checkpoint: Option<Checkpoint>,
    /// Clock, interrupts and ears.
    pub host: &'r mut dyn Host,
    /// Fixed prompts to show responses to.
    pub samples: Vec<SamplePrompt>,
}

/// What a checkpoint holds beside weights and moments.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    step: u64,
    updates: u64,
    tokens: u64,
    monitor: Monitor,
}

const STATE_FILE: &str = "state.json";

/// Runs a task to its end, or to where the host or an alarm stops it.
pub fn train<'c, T: Task<'c>>(
    task: &mut T,
    common: &CommonConfig,
    context: RunContext<'_>,
) -> Result<Outcome, TrainError> {
    let RunContext { run, checkpoint, host, samples } = context;
    let order = Order {
        rows: task.train_rows(),
        rows_per_step: common.rows_per_step(),
        seed: common.seed,
        shuffle: common.shuffle_dataset,
    };
    let total = common.steps_in_all(order.rows);
    let (schedule, warmup) = (common.schedule(), common.warmup(total));
    run.keep_checkpoints(common.save_total_limit);

    let mut step = 0;
    let mut monitor = Monitor::new(T::STAGE);
    if let Some(checkpoint) = checkpoint {
        let state: State = checkpoint.json(STATE_FILE)?;
        load_learner(&checkpoint, "model", task.learner())?;
        task.learner().optimizer.step = state.updates;
        task.learner().tokens = state.tokens;
        (step, monitor) = (state.step, state.monitor);
    } else {
        draw_samples(task.learner(), None, &samples, 0, common.seed, run, host)?;
    }

    let meter = Meter::start(T::STAGE, "train", "step", step, total, host.now_s());
    let mut outcome = Outcome::Done;
    while step < total {
        if host.stop_requested() {
            outcome = Outcome::Stopped { step };
            break;
        }
        let mut metrics = Metrics::new(T::STAGE);
        let lr = common.learning_rate * schedule.factor(step, warmup, total);
        let now_s = || host.now_s();
        let mut phases = Phases::begin(&now_s);
        let loss = task.accumulate(&order.step(step), &mut metrics, &mut phases)?;
        let update = task.learner().update(lr);
        phases.end("time/update");
        phases.put(&mut metrics);
        step += 1;
        metrics.put("loss", loss);
        metrics.put("learning_rate", lr);
        metrics.put("grad_norm", update.grad_norm);
        metrics.put("epoch", order.epochs_after(step));
        metrics.put("num_tokens", task.learner().tokens as f64);

        let due = common.eval_steps > 0 && step.is_multiple_of(common.eval_steps);
        if due || step == total {
            let began_s = host.now_s();
            if task.eval_rows() > 0 {
                task.evaluate(&mut metrics)?;
            }
            draw_samples(task.learner(), None, &samples, step, common.seed, run, host)?;
            metrics.put("time/eval", host.now_s() - began_s);
        }
        run.record(host, step, &metrics)?;
        let alarms = monitor.observe(&Observation::of_metrics(step, &metrics));
        let mut critical = false;
        for alarm in &alarms {
            run.log_alarm(alarm)?;
            host.event(Event::Alarm(alarm));
            critical |= alarm.is_critical();
        }
        host.event(Event::Progress(meter.at(step, host.now_s())));

        let stop = critical && common.stop_on_alarm;
        if stop {
            outcome = Outcome::Alarmed { step };
        }
        let save = common.save_steps > 0 && step.is_multiple_of(common.save_steps);
        if save || stop || step == total {
            save_checkpoint(task, run, host, step, &monitor)?;
        }
        if stop {
            break;
        }
    }
    if let Outcome::Stopped { step } = outcome
        && step > 0
    {
        save_checkpoint(task, run, host, step, &monitor)?;
    }
    Ok(outcome)
}

fn save_checkpoint<'c, T: Task<'c>>(
    task: &mut T,
    run: &mut RunDir,
    host: &mut dyn Host,
    step: u64,
    monitor: &Monitor,
) -> Result<(), TrainError> {
    let learner = task.learner();
    let state =
        State { step, updates: learner.optimizer.step, tokens: learner.tokens, monitor: monitor.clone() };
    run.save_checkpoint(step, host.now_s(), |writer| {
        save_learner(writer, "model", learner)?;
        writer.json(STATE_FILE, &state)
    })
}

/// Writes a model directory, so that a checkpoint is usable by itself, and the moments beside it.
pub(crate) fn save_learner(
    writer: &CheckpointWriter,
    name: &str,
    learner: &Learner<'_>,
) -> Result<(), TrainError> {
    let dir = writer.dir().join(name);
    match &learner.adapter {
        None => learner.model.save(dir)?,
        Some(adapter) => adapter.save(dir)?,
    }
    let optimizer = &learner.optimizer;
    writer.buffers(
        &format!("{name}_optimizer.safetensors"),
        &[("m", &optimizer.m.data), ("v", &optimizer.v.data)],
    )
}

pub(crate) fn load_learner(
    checkpoint: &Checkpoint,
    name: &str,
    learner: &mut Learner<'_>,
) -> Result<(), TrainError> {
    let dir = checkpoint.dir().join(name);
    learner.load(dir)?;
    let file = format!("{name}_optimizer.safetensors");
    checkpoint.read_buffer(&file, "m", &mut learner.optimizer.m.data)?;
    checkpoint.read_buffer(&file, "v", &mut learner.optimizer.v.data)
}
