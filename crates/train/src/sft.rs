//! Supervised fine-tuning: imitate the trained tokens of demonstrations.
//!
//! ```text
//! loss = sum over the step's trained tokens of -log p / number of the step's trained tokens
//! ```
//!
//! The denominator is the whole step's, so 1 x 8 and 8 x 1 rows are the same step.

use crate::error::TrainError;
use crate::examples::{Demonstration, demonstration_batch, parts};
use crate::learner::Learner;
use crate::metrics::{Metrics, Stage};
use crate::objectives::Stats;
use crate::objectives::sft::{SftStats, sft};
use crate::progress::Phases;
use crate::settings::SftConfig;
use crate::supervised::Task;

/// The learner, its data and its settings.
pub struct SftTask<'c> {
    learner: Learner<'c>,
    train: Vec<Demonstration>,
    eval: Vec<Demonstration>,
    config: SftConfig,
}

/// What teacher-forced passes count beside the loss.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TokenCounts {
    pub(crate) tokens: u64,
    pub(crate) entropy_sum: f64,
    pub(crate) top: u64,
}

impl TokenCounts {
    pub(crate) fn add(&mut self, out: &polity_compute::LogProbs) {
        self.tokens += out.logprob_m.len() as u64;
        self.entropy_sum += out.entropy_m.iter().map(|&e| f64::from(e)).sum::<f64>();
        self.top += out.top_m.iter().filter(|&&top| top).count() as u64;
    }

    /// `entropy` and `mean_token_accuracy`.
    pub(crate) fn named(&self) -> [(&'static str, f64); 2] {
        let tokens = self.tokens.max(1) as f64;
        [("entropy", self.entropy_sum / tokens), ("mean_token_accuracy", self.top as f64 / tokens)]
    }
}

impl<'c> SftTask<'c> {
    /// A task over examples that pre-flight has passed.
    pub fn new(
        learner: Learner<'c>,
        train: Vec<Demonstration>,
        eval: Vec<Demonstration>,
        config: SftConfig,
    ) -> Self {
        Self { learner, train, eval, config }
    }
}

impl<'c> Task<'c> for SftTask<'c> {
    const STAGE: Stage = Stage::Sft;

    fn learner(&mut self) -> &mut Learner<'c> {
        &mut self.learner
    }

    fn into_learner(self) -> Learner<'c> {
        self.learner
    }

    fn train_rows(&self) -> usize {
        self.train.len()
    }

    fn eval_rows(&self) -> usize {
        self.eval.len()
    }

    fn accumulate(
        &mut self,
        rows: &[usize],
        metrics: &mut Metrics,
        _: &mut Phases<'_>,
    ) -> Result<f64, TrainError> {
        let rows: Vec<&Demonstration> = rows.iter().map(|&row| &self.train[row]).collect();
        let tokens: usize = rows.iter().map(|row| row.trained_tokens()).sum();
        let (mut loss, mut stats, mut counts) = (0.0, SftStats::default(), TokenCounts::default());
        for part in parts(rows.iter().map(|row| row.ids.len()), self.config.common.tokens_per_micro_batch) {
            let (batch, predictions) = demonstration_batch(&rows[part]);
            let objective = self.learner.learn_logprobs(&batch, &predictions, 1.0, |out| {
                counts.add(out);
                let objective = sft(&out.logprob_m, None, self.config.loss_type.value, tokens as f64);
                (objective.d_logprob_m.clone(), vec![0.0; out.logprob_m.len()], objective)
            });
            loss += objective.loss;
            stats.merge(&objective.stats);
        }
        counts.named().iter().for_each(|&(name, value)| metrics.put(name, value));
        metrics.put_stats(&stats);
        Ok(loss)
    }

    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<(), TrainError> {
        let tokens: usize = self.eval.iter().map(Demonstration::trained_tokens).sum();
        let (mut loss, mut stats, mut counts) = (0.0, SftStats::default(), TokenCounts::default());
        for rows in self.eval.chunks(self.config.common.per_device_eval_batch_size) {
            let (batch, predictions) = demonstration_batch(&rows.iter().collect::<Vec<_>>());
            let out = self.learner.logprobs(&batch, &predictions, 1.0);
            counts.add(&out);
            let objective = sft(&out.logprob_m, None, self.config.loss_type.value, tokens as f64);
            loss += objective.loss;
            stats.merge(&objective.stats);
        }
        metrics.put_eval("loss", loss);
        counts.named().iter().for_each(|&(name, value)| metrics.put_eval(name, value));
        metrics.put_eval_stats(&stats);
        Ok(())
    }
}
