//! AdamW over flat buffers, gradient clipping, learning-rate schedules: PyTorch's and Transformers' rules.
//!
//! The update, the clip factor and the decay mask are one pass over each tensor. Reference of the
//! update: `ops/adamw.rs`. Sources: Loshchilov & Hutter 2019, arXiv:1711.05101; `torch.optim.AdamW`;
//! `torch.nn.utils.clip_grad_norm_`; `transformers.optimization`.

use crate::cpu::Cpu;
use crate::cpu::adamw::{self, AdamW};
use crate::params::{Buffer, ParamSpec, Params};

/// Coefficients that stay the same for a whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OptimizerConfig {
    /// Decay of the first moment, in `[0, 1)`.
    pub beta1: f64,
    /// Decay of the second moment, in `[0, 1)`.
    pub beta2: f64,
    /// Added to the root of the corrected second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Whether norms and biases decay too; Transformers' trainers leave them alone.
    pub decay_vectors: bool,
    /// The gradient is scaled down to this global norm where it is longer; `None` never clips.
    pub max_grad_norm: Option<f32>,
}

/// The moments of every parameter and the number of steps taken.
#[derive(Clone, Debug)]
pub struct Optimizer {
    /// Coefficients.
    pub config: OptimizerConfig,
    /// First moments.
    pub m: Params,
    /// Second moments.
    pub v: Params,
    /// Steps taken.
    pub step: u64,
}

/// What one update did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateStats {
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// What the gradient was multiplied by.
    pub clip_factor: f32,
}

impl Optimizer {
    /// Zero moments for a flat buffer of `len` numbers, no steps.
    pub fn new(config: OptimizerConfig, len: usize) -> Self {
        let zeros = || Params::of(Buffer::zeros(len));
        Self { config, m: zeros(), v: zeros(), step: 0 }
    }

    /// Clips, updates the weights and the moments of the tensors `specs`, and leaves a gradient of 0. One that is not finite changes
    /// nothing and is returned in `grad_norm` for the caller to report.
    pub fn update(
        &mut self,
        cpu: &Cpu,
        specs: &[ParamSpec],
        params: &mut Params,
        grads: &mut Params,
        lr: f64,
    ) -> UpdateStats {
        let grad_norm = adamw::norm_sq(cpu, &grads.data).sqrt();
        if !grad_norm.is_finite() {
            cpu.clear(&mut grads.data);
            return UpdateStats { grad_norm, clip_factor: 0.0 };
        }
        let clip_factor = match self.config.max_grad_norm {
            // PyTorch adds 1e-6 to the norm.
            Some(max) => (f64::from(max) / (grad_norm + 1e-6)).min(1.0) as f32,
            None => 1.0,
        };
        self.step += 1;
        let OptimizerConfig { beta1, beta2, eps, weight_decay, decay_vectors, .. } = self.config;
        for spec in specs {
            let decays = spec.is_matrix() || decay_vectors;
            let p = AdamW {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay: if decays { weight_decay } else { 0.0 },
                step: self.step,
                grad_scale: clip_factor,
            };
            let range = spec.range();
            let (w, pairs) = params.masters_and_pairs(spec);
            adamw::update(
                cpu,
                w,
                pairs,
                &mut self.m.data[range.clone()],
                &mut self.v.data[range.clone()],
                &mut grads.data[range],
                p,
            );
        }
        UpdateStats { grad_norm, clip_factor }
    }
}

/// How the learning rate changes: Transformers' `lr_scheduler_type`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// Always the base rate; ignores warm-up, as Transformers does.
    Constant,
    /// Rises to the base rate, then stays.
    ConstantWithWarmup,
    /// Rises, then falls to 0 in a straight line.
    Linear,
    /// Rises, then falls to 0 along half a cosine.
    Cosine,
    /// Rises, then falls to `min_ratio` of the base rate along half a cosine.
    CosineWithMinLr {
        /// Lowest rate over base rate.
        min_ratio: f32,
    },
}

impl Schedule {
    /// The learning rate over the base rate at update `step` (from 0) of `total`.
    pub fn factor(self, step: u64, warmup: u64, total: u64) -> f64 {
        if self == Schedule::Constant {
            return 1.0;
        }
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let after = (total.saturating_sub(warmup)).max(1) as f64;
        let progress = (step - warmup) as f64 / after;
        let half_cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        match self {
            Schedule::Constant | Schedule::ConstantWithWarmup => 1.0,
            Schedule::Linear => (total.saturating_sub(step) as f64 / after).max(0.0),
            Schedule::Cosine => half_cosine.max(0.0),
            Schedule::CosineWithMinLr { min_ratio } => {
                let min = f64::from(min_ratio);
                (half_cosine * (1.0 - min) + min).max(0.0)
            }
        }
    }
}
