//! Direct preference optimisation and its relatives: learn from pairs without a reward model.
//!
//! The loss is any weighted mixture of `objectives::dpo`. The reference's log-probs of every response are
//! either computed beside the policy's or once, before training; they are the same numbers, since a row does
//! not know its batch.

use crate::error::TrainError;
use crate::examples::{Comparison, PairRows, parts};
use crate::learner::{Frozen, Learner};
use crate::metrics::{Metrics, Stage};
use crate::objectives::dpo::{
    DpoConfig as Objective, DpoStats, PairBatch, PairDenominators, dpo, sequence_logps,
};
use crate::objectives::{Spans, Stats};
use crate::progress::Phases;
use crate::reward::{Columns, pair_tokens, total_weight};
use crate::settings::DpoConfig;
use crate::sft::TokenCounts;
use crate::supervised::Task;

/// The learner, the reference, the data and the settings.
pub struct DpoTask<'c> {
    learner: Learner<'c>,
    reference: Reference<'c>,
    train: Vec<Comparison>,
    eval: Vec<Comparison>,
    config: DpoConfig,
    objective: Objective,
}

/// Where the reference's log-probs come from: `[chosen, rejected]` of each pair.
enum Reference<'c> {
    /// No loss needs them.
    None,
    /// Computed when they are needed.
    Model(Box<Frozen<'c>>),
    /// Computed before training.
    Stored { train: Vec<[f64; 2]>, eval: Vec<[f64; 2]> },
}

/// Some pairs with the reference's log-probs.
struct Part<'a> {
    pairs: &'a [&'a Comparison],
    rows: PairRows,
    spans: Spans,
    ref_logp_i: Option<Vec<f64>>,
}

impl<'c> DpoTask<'c> {
    /// A task over examples that pre-flight has passed. `reference` is the frozen model, where a loss needs one.
    ///
    /// # Errors
    ///
    /// If the objective's settings contradict each other or the data's columns.
    pub fn new(
        learner: Learner<'c>,
        reference: Option<Frozen<'c>>,
        train: Vec<Comparison>,
        eval: Vec<Comparison>,
        config: DpoConfig,
    ) -> Result<Self, TrainError> {
        let objective = config.objective()?;
        for pairs in [&train, &eval] {
            let all: Vec<&Comparison> = pairs.iter().collect();
            objective.validate_columns(Columns::of(&all).view())?;
        }
        let mut task = Self { learner, reference: Reference::None, train, eval, config, objective };
        if let Some(mut model) = reference.filter(|_| task.objective.needs_reference()) {
            task.reference = if task.config.precompute_ref_log_probs {
                let train = task.reference_logps(&mut model, &task.train);
                let eval = task.reference_logps(&mut model, &task.eval);
                Reference::Stored { train, eval }
            } else {
                Reference::Model(Box::new(model))
            };
        }
        Ok(task)
    }

    fn reference_logps(&self, model: &mut Frozen<'c>, pairs: &[Comparison]) -> Vec<[f64; 2]> {
        let mut logps = Vec::with_capacity(pairs.len());
        for part in pairs.chunks(self.config.common.per_device_eval_batch_size) {
            let rows = PairRows::new(&part.iter().collect::<Vec<_>>());
            let spans = Spans::from_lengths(rows.lengths.iter().copied());
            let out = model.logprobs(&rows.batch, &rows.predictions, 1.0);
            let logp_i = sequence_logps(&out.logprob_m, &spans, self.objective.ld_alpha);
            logps.extend(logp_i.chunks_exact(2).map(|pair| [pair[0], pair[1]]));
        }
        logps
    }

    /// The reference's log-probs of a part.
    fn with_reference<'a>(
        &mut self,
        pairs: &'a [&'a Comparison],
        stored: impl Fn(&Reference<'c>) -> Vec<[f64; 2]>,
    ) -> Part<'a> {
        let rows = PairRows::new(pairs);
        let spans = Spans::from_lengths(rows.lengths.iter().copied());
        let ref_logp_i = match &mut self.reference {
            Reference::None => None,
            Reference::Model(model) => {
                let out = model.logprobs(&rows.batch, &rows.predictions, 1.0);
                Some(sequence_logps(&out.logprob_m, &spans, self.objective.ld_alpha))
            }
            Reference::Stored { .. } => Some(stored(&self.reference).into_iter().flatten().collect()),
        };
        Part { pairs, rows, spans, ref_logp_i }
    }

    /// What `use_weighting` weighs by. A forward pass of its own: the weights are constants to the gradient.
    fn log_sum_sq_probs(&mut self, rows: &PairRows) -> Option<Vec<f32>> {
        self.objective.use_weighting.then(|| self.learner.log_sum_sq_probs(&rows.batch, &rows.predictions))
    }

    fn denominators(pairs: &[&Comparison]) -> PairDenominators {
        let chosen_tokens: usize =
            pairs.iter().map(|pair| pair.chosen.len() - usize::from(pair.prompt.is_empty())).sum();
        PairDenominators { pairs: total_weight(pairs), chosen_tokens: chosen_tokens as f64 }
    }
}

impl<'c> Task<'c> for DpoTask<'c> {
    const STAGE: Stage = Stage::Dpo;

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
        phases: &mut Phases<'_>,
    ) -> Result<f64, TrainError> {
        let train = std::mem::take(&mut self.train);
        let pairs: Vec<&Comparison> = rows.iter().map(|&row| &train[row]).collect();
        let denominators = Self::denominators(&pairs);
        let limit = match self.objective.needs_whole_batch() {
            true => usize::MAX,
            false => self.config.common.tokens_per_micro_batch,
        };
        let (mut loss, mut stats, mut counts) = (0.0, DpoStats::default(), TokenCounts::default());
        for part in parts(pairs.iter().map(|pair| pair_tokens(pair)), limit) {
            let at = &rows[part.clone()];
            let part = self.with_reference(&pairs[part], |reference| match reference {
                Reference::Stored { train, .. } => at.iter().map(|&row| train[row]).collect(),
                _ => Vec::new(),
            });
            if part.ref_logp_i.is_some() {
                phases.end("time/reference");
            }
            let columns = Columns::of(part.pairs);
            let log_sum_sq = self.log_sum_sq_probs(&part.rows);
            let objective = &self.objective;
            let result = self.learner.learn_logprobs(&part.rows.batch, &part.rows.predictions, 1.0, |out| {
                counts.add(out);
                let batch = PairBatch {
                    spans: &part.spans,
                    logprob_m: &out.logprob_m,
                    ref_logp_i: part.ref_logp_i.as_deref(),
                    log_sum_sq_prob_m: log_sum_sq.as_deref(),
                    columns: columns.view(),
                };
                let result = dpo(batch, objective, denominators);
                (result.d_logprob_m.clone(), vec![0.0; out.logprob_m.len()], result)
            });
            loss += result.loss;
            stats.merge(&result.stats);
            phases.end("time/update");
        }
        self.train = train;
        counts.named().iter().for_each(|&(name, value)| metrics.put(name, value));
        metrics.put_stats(&stats);
        Ok(loss)
    }

    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<(), TrainError> {
        let eval = std::mem::take(&mut self.eval);
        let all: Vec<&Comparison> = eval.iter().collect();
        let denominators = Self::denominators(&all);
        let (mut loss, mut stats, mut counts) = (0.0, DpoStats::default(), TokenCounts::default());
        let step = self.config.common.per_device_eval_batch_size;
        for (i, pairs) in all.chunks(step).enumerate() {
            let first = i * step;
            let part = self.with_reference(pairs, |reference| match reference {
                Reference::Stored { eval, .. } => eval[first..first + pairs.len()].to_vec(),
                _ => Vec::new(),
            });
            let out = self.learner.logprobs(&part.rows.batch, &part.rows.predictions, 1.0);
            counts.add(&out);
            let columns = Columns::of(part.pairs);
            let log_sum_sq = self.log_sum_sq_probs(&part.rows);
            let batch = PairBatch {
                spans: &part.spans,
                logprob_m: &out.logprob_m,
                ref_logp_i: part.ref_logp_i.as_deref(),
                log_sum_sq_prob_m: log_sum_sq.as_deref(),
                columns: columns.view(),
            };
            let result = dpo(batch, &self.objective, denominators);
            loss += result.loss;
            stats.merge(&result.stats);
        }
        drop(all);
        self.eval = eval;
        metrics.put_eval("loss", loss);
        counts.named().iter().for_each(|&(name, value)| metrics.put_eval(name, value));
        metrics.put_eval_stats(&stats);
        Ok(())
    }
}
