//! What every stage has: batches, optimiser, schedule, lengths, output.

use polity_compute::Isa;
use polity_compute::optim::{OptimizerConfig, Schedule};
use polity_lm::LoraConfig;
use polity_lm::adapter::ALL_LINEAR;

use crate::config::{
    BELOW_ONE, Config, Domain, NOT_NEGATIVE, Named, Objection, POSITIVE, UNIT, choices, name_of, settings,
};

choices! {
    /// How the learning rate changes over a run: Transformers' `lr_scheduler_type`.
    pub enum Scheduler {
        /// Falls to 0 in a straight line.
        Linear = "linear",
        /// Falls to 0 along half a cosine.
        Cosine = "cosine",
        /// Falls to `min_lr_rate` of the peak along half a cosine.
        CosineWithMinLr = "cosine_with_min_lr",
        /// Stays; has no warm-up.
        Constant = "constant",
        /// Stays after warm-up.
        ConstantWithWarmup = "constant_with_warmup",
    }
}

choices! {
    /// What happens to a row that is longer than `max_length`.
    pub enum Truncation {
        /// The run does not start.
        Refuse = "refuse",
        /// The row is left out.
        Drop = "drop",
        /// Its end is cut off.
        KeepStart = "keep_start",
    }
}

choices! {
    /// The arithmetic of the matrix products.
    pub enum Precision {
        /// bf16 where the processor multiplies it natively and the model has two million parameters, else f32.
        Auto = "auto",
        /// 32 bits throughout.
        F32 = "f32",
        /// Inputs of products rounded to bf16, sums in f32.
        Bf16 = "bf16",
    }
}

impl From<polity_compute::Precision> for Precision {
    fn from(precision: polity_compute::Precision) -> Self {
        match precision {
            polity_compute::Precision::F32 => Precision::F32,
            polity_compute::Precision::Bf16 => Precision::Bf16,
        }
    }
}

impl Precision {
    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        name_of(self)
    }

    /// By its name in a configuration.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, precision)| precision)
    }

    /// What this comes to with these instructions for a model of so many parameters.
    pub fn with(self, isa: Isa, parameters: usize) -> polity_compute::Precision {
        match self {
            Precision::Auto => polity_compute::Precision::best(isa, parameters),
            Precision::F32 => polity_compute::Precision::F32,
            Precision::Bf16 => polity_compute::Precision::Bf16,
        }
    }
}

choices! {
    /// Where metrics go besides `metrics.jsonl`.
    pub enum ReportTo {
        /// Nowhere.
        None = "none",
        /// TensorBoard event files in `RUN/tensorboard`.
        Tensorboard = "tensorboard",
    }
}

const AT_LEAST_ONE: Domain = Domain { holds: |x| x >= 1.0, expected: "at least 1" };
const STEPS_OR_MINUS_ONE: Domain = Domain { holds: |x| x == -1.0 || x >= 1.0, expected: "-1 or at least 1" };
const AT_LEAST_TWO: Domain = Domain { holds: |x| x >= 2.0, expected: "at least 2" };

settings! {
    /// Settings of every stage.
    pub struct CommonConfig {
        /// Peak learning rate of AdamW.
        learning_rate: f64 = 5e-5, NOT_NEGATIVE, "it scales every step";
        /// Rows (pairs, where rows are pairs) in a part of a step. A step has this many times
        /// gradient_accumulation_steps rows.
        per_device_train_batch_size: usize = 8, AT_LEAST_ONE, "a step needs a row";
        /// Rows evaluated together. Changes speed and memory, not results.
        per_device_eval_batch_size: usize = 8, AT_LEAST_ONE, "a batch needs a row";
        /// Parts of a step. Gradients are sums over the whole step, so 8 times 1 and 1 times 8 rows are the same step.
        gradient_accumulation_steps: usize = 1, AT_LEAST_ONE, "a step needs a part";
        /// Passes over the training data; may be a fraction.
        num_train_epochs: f64 = 3.0, POSITIVE, "it is how often each row is seen";
        /// Number of steps; takes precedence over num_train_epochs. -1: as many as the epochs need.
        max_steps: i64 = -1, STEPS_OR_MINUS_ONE, "-1 means as many as the epochs need";
        /// How the learning rate changes over the run.
        lr_scheduler_type: Scheduler = Scheduler::Linear;
        /// Lowest learning rate, as a share of the peak, of cosine_with_min_lr.
        min_lr_rate: Option<f64> = None, UNIT, "it is a share of the peak";
        /// Steps over which the learning rate rises from 0 to its peak.
        warmup_steps: u64 = 0;
        /// The same as a share of all steps, rounded up.
        warmup_ratio: f64 = 0.0, UNIT, "it is a share of the run";
        /// AdamW's decoupled weight decay. Norms and biases do not decay.
        weight_decay: f64 = 0.0, NOT_NEGATIVE, "a negative decay makes weights grow";
        /// Decay of AdamW's first moment.
        adam_beta1: f64 = 0.9, BELOW_ONE, "it is the weight of the past";
        /// Decay of AdamW's second moment.
        adam_beta2: f64 = 0.999, BELOW_ONE, "it is the weight of the past";
        /// Added to the root of AdamW's second moment.
        adam_epsilon: f64 = 1e-8, POSITIVE, "it keeps the step finite where the gradient is 0";
        /// A step's gradient is scaled down to this global norm where it is longer. 0 or less: never.
        max_grad_norm: f64 = 1.0;
        /// Seed of everything random: order of rows, new heads, sampling.
        seed: u64 = 42;
        /// Steps between lines on the terminal. metrics.jsonl gets every step.
        logging_steps: u64 = 10, AT_LEAST_ONE, "it is a distance in steps";
        /// Steps between evaluations. 0: only at the end.
        eval_steps: u64 = 0;
        /// Share of the training rows held out for evaluation if no evaluation data is given. Rows with the same prompt
        /// stay together.
        eval_fraction: f64 = 0.0, BELOW_ONE, "it is a share of the rows, and some must remain to train on";
        /// Steps between checkpoints; there is one at the end, and one when a run is stopped. 0: only then.
        save_steps: u64 = 500;
        /// Checkpoints kept; older ones are removed once a new one is complete.
        save_total_limit: Option<u64> = None, AT_LEAST_ONE, "the newest checkpoint is never removed";
        /// Longest row in tokens, prompt and response together; "none": as long as the model allows.
        max_length: Option<usize> = Some(1024), AT_LEAST_TWO, "a row needs a token and one before it";
        /// What happens to longer rows. The pre-flight report says how many there are. TRL cuts rows of SFT and DPO, and
        /// drops rows of reward models, without saying so.
        truncation: Truncation = Truncation::Drop;
        /// Visit the rows in a new random order in each epoch, as Transformers' trainer does; false: in the file's order.
        shuffle_dataset: bool = true;
        /// Arithmetic of the matrix products; `auto` is bf16 where the processor multiplies it faster than f32 and the model has 2M parameters. Sums, gradients and moments are f32.
        precision: Precision = Precision::Auto;
        /// Threads; 0: one for each core. Does not change results.
        threads: usize = 0;
        /// Compute a layer's activations again in the backward pass instead of keeping them: less memory, more time, the
        /// same gradients. (True in TRL.)
        gradient_checkpointing: bool = false;
        /// Tokens computed together. Bounds memory; gradients do not depend on it.
        tokens_per_micro_batch: usize = 512, AT_LEAST_ONE, "a part needs a token";
        /// Train a LoRA adapter (of the policy, in PPO) and leave the rest of the model alone. RUN/model is the merged
        /// model, RUN/adapter the adapter as PEFT reads it.
        use_peft: bool = false;
        /// Rank of the adapter.
        lora_r: usize = 16, AT_LEAST_ONE, "it is the rank of a matrix";
        /// The adapter's product is scaled by lora_alpha / lora_r.
        lora_alpha: f64 = 32.0, POSITIVE, "it scales what the adapter adds";
        /// Scale by lora_alpha / sqrt(lora_r) instead (arXiv:2312.03732).
        use_rslora: bool = false;
        /// Linear maps that are adapted, by the last part of their names (q_proj); "all-linear": all of the layers'.
        lora_target_modules: Vec<String> = vec![ALL_LINEAR.into()];
        /// Where metrics go besides metrics.jsonl: tensorboard writes event files to RUN/tensorboard.
        report_to: ReportTo = ReportTo::None;
        /// Stop, with a checkpoint, when the stability monitor raises a critical alarm.
        stop_on_alarm: bool = false;
        /// Fixed prompts whose responses are drawn at each evaluation and shown in the report. 0: none.
        sample_prompts: usize = 4;
    }
}

/// Keys that may change when a run is resumed, because the weights and metrics do not depend on them.
pub const RESUME_MAY_CHANGE: &[&str] = &[
    "logging_steps",
    "per_device_eval_batch_size",
    "save_steps",
    "save_total_limit",
    "threads",
    "report_to",
    "stop_on_alarm",
];

impl CommonConfig {
    /// Rows of one step.
    pub fn rows_per_step(&self) -> usize {
        self.per_device_train_batch_size * self.gradient_accumulation_steps
    }

    /// Steps of a run over `rows` training rows, as Transformers counts them: an epoch's last step may be short, and a
    /// fraction of an epoch is rounded up to whole steps.
    pub fn steps_in_all(&self, rows: usize) -> u64 {
        match u64::try_from(self.max_steps) {
            Ok(steps) => steps,
            Err(_) => {
                let steps_per_epoch = rows.div_ceil(self.rows_per_step());
                (self.num_train_epochs * steps_per_epoch as f64).ceil() as u64
            }
        }
    }

    /// Steps of warm-up in a run of `steps`.
    pub fn warmup(&self, steps: u64) -> u64 {
        if self.warmup_steps > 0 {
            self.warmup_steps
        } else {
            (self.warmup_ratio * steps as f64).ceil() as u64
        }
    }

    /// The schedule.
    pub fn schedule(&self) -> Schedule {
        match self.lr_scheduler_type {
            Scheduler::Linear => Schedule::Linear,
            Scheduler::Cosine => Schedule::Cosine,
            Scheduler::CosineWithMinLr => {
                Schedule::CosineWithMinLr { min_ratio: self.min_lr_rate.unwrap_or(0.0) as f32 }
            }
            Scheduler::Constant => Schedule::Constant,
            Scheduler::ConstantWithWarmup => Schedule::ConstantWithWarmup,
        }
    }

    /// The optimiser's coefficients.
    pub fn optimizer(&self) -> OptimizerConfig {
        OptimizerConfig {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
            decay_vectors: false,
            max_grad_norm: self.clip_norm(),
        }
    }

    /// The adapter to train, if one is.
    pub fn lora(&self) -> Option<LoraConfig> {
        self.use_peft.then(|| LoraConfig {
            r: self.lora_r,
            alpha: self.lora_alpha,
            rslora: self.use_rslora,
            target_modules: self.lora_target_modules.clone(),
        })
    }

    /// The bound on the gradient's norm, if there is one.
    pub fn clip_norm(&self) -> Option<f32> {
        (self.max_grad_norm > 0.0).then_some(self.max_grad_norm as f32)
    }

    /// What goes with what in `stage`, whose own check calls it.
    pub(crate) fn check(&self, stage: &impl Config) -> Result<(), Objection> {
        for key in ["lora_r", "lora_alpha", "use_rslora", "lora_target_modules"] {
            stage.idle_unless(self.use_peft, key, "only use_peft = true reads it")?;
        }
        if self.lora_target_modules.is_empty() {
            let found = self.lora_target_modules.clone();
            return Err(Objection::value("lora_target_modules", found, "at least one name", ""));
        }
        if self.warmup_steps > 0 && self.warmup_ratio > 0.0 {
            return Err(Objection::clash(
                "warmup_ratio",
                format!("warmup_ratio = {}", self.warmup_ratio),
                format!("warmup_steps = {}", self.warmup_steps),
                "they set the same thing; keep one",
            ));
        }
        let warms_up = self.warmup_steps > 0 || self.warmup_ratio > 0.0;
        if warms_up && self.lr_scheduler_type == Scheduler::Constant {
            return Err(Objection::clash(
                if self.warmup_steps > 0 { "warmup_steps" } else { "warmup_ratio" },
                "a warm-up",
                "lr_scheduler_type = \"constant\"",
                "that schedule ignores it; use constant_with_warmup",
            ));
        }
        let has_floor = self.lr_scheduler_type == Scheduler::CosineWithMinLr;
        match self.min_lr_rate {
            None if has_floor => Err(Objection::value(
                "min_lr_rate",
                self.min_lr_rate,
                "a share of the peak",
                "lr_scheduler_type = \"cosine_with_min_lr\" needs it",
            )),
            Some(rate) if !has_floor => Err(Objection::clash(
                "min_lr_rate",
                format!("min_lr_rate = {rate}"),
                "this lr_scheduler_type",
                "only cosine_with_min_lr reads it",
            )),
            _ => Ok(()),
        }
    }
}
