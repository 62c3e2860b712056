//! The reward model: a scalar that is larger for the response people prefer (Bradley-Terry).
//!
//! ```text
//! loss = sum over the step's pairs of -log sigmoid(reward(chosen) - reward(rejected) - margin) / pairs
//! ```
//!
//! with soft labels, weights and centring as options. The reward is the scalar head at the last token; the
//! prompt is computed once for both responses.

use polity_lm::Tokenizer;
use polity_stats::{Binning, calibration_error, wilson};

use crate::baseline::{Texts, bag_of_words_accuracy};
use crate::error::TrainError;
use crate::examples::{Comparison, PairRows, parts};
use crate::learner::Learner;
use crate::metrics::{Metrics, Stage};
use crate::objectives::reward::{RewardStats, bradley_terry};
use crate::objectives::{PairColumns, Stats};
use crate::progress::Phases;
use crate::settings::RewardConfig;
use crate::supervised::Task;

/// Confidence of the accuracy's interval.
const CONFIDENCE: f64 = 0.95;
/// Bins of the calibration error, as its declaration says.
const CALIBRATION_BINS: usize = 10;

/// The learner, its data and its settings.
pub struct RewardTask<'c> {
    learner: Learner<'c>,
    train: Vec<Comparison>,
    eval: Vec<Comparison>,
    config: RewardConfig,
    /// The bag of words' accuracy, once it is known; it does not change.
    bag_of_words: Option<Option<f64>>,
}

/// The optional columns of some pairs; absent where no pair has a value.
pub(crate) struct Columns {
    margin: Option<Vec<f32>>,
    weight: Option<Vec<f32>>,
    label: Option<Vec<f32>>,
}

impl Columns {
    pub(crate) fn of(pairs: &[&Comparison]) -> Self {
        let column = |get: fn(&Comparison) -> Option<f32>, absent: f32| {
            let any = pairs.iter().any(|pair| get(pair).is_some());
            any.then(|| pairs.iter().map(|pair| get(pair).unwrap_or(absent)).collect())
        };
        Self {
            margin: column(|pair| pair.margin, 0.0),
            weight: column(|pair| pair.weight, 1.0),
            label: column(|pair| pair.label, 1.0),
        }
    }

    pub(crate) fn view(&self) -> PairColumns<'_> {
        PairColumns {
            margin_p: self.margin.as_deref(),
            weight_p: self.weight.as_deref(),
            label_p: self.label.as_deref(),
        }
    }
}

/// Sum of the pairs' weights: the denominator of a step.
pub(crate) fn total_weight(pairs: &[&Comparison]) -> f64 {
    pairs.iter().map(|pair| f64::from(pair.weight.unwrap_or(1.0))).sum()
}

/// Tokens of a pair in a batch.
pub(crate) fn pair_tokens(pair: &Comparison) -> usize {
    pair.prompt.len() + pair.chosen.len() + pair.rejected.len()
}

impl<'c> RewardTask<'c> {
    /// A task over examples that pre-flight has passed; the learner's model has a scalar head.
    pub fn new(
        learner: Learner<'c>,
        train: Vec<Comparison>,
        eval: Vec<Comparison>,
        config: RewardConfig,
    ) -> Self {
        Self { learner, train, eval, config, bag_of_words: None }
    }

    fn center(&self) -> f64 {
        self.config.center_rewards_coefficient.unwrap_or(0.0)
    }

    /// Rewards of the chosen and rejected response of each pair, in turn.
    pub fn rewards(&mut self, which: Which) -> Vec<f32> {
        let pairs = match which {
            Which::Train => &self.train,
            Which::Eval => &self.eval,
        };
        let mut rewards = Vec::with_capacity(2 * pairs.len());
        for part in pairs.chunks(self.config.common.per_device_eval_batch_size) {
            let rows = PairRows::new(&part.iter().collect::<Vec<_>>());
            rewards.extend(self.learner.scalars(&rows.batch, &rows.last_rows));
        }
        rewards
    }

    fn bag_of_words(&mut self) -> Result<Option<f64>, TrainError> {
        if let Some(known) = self.bag_of_words {
            return Ok(known);
        }
        // Rows of ids for a model without a tokenizer have no words.
        let Ok(tokenizer) = self.learner.model.tokenizer() else { return Ok(None) };
        let (train, eval) = (texts(&self.train, tokenizer)?, texts(&self.eval, tokenizer)?);
        let accuracy = bag_of_words_accuracy(&views(&train), &views(&eval));
        self.bag_of_words = Some(accuracy);
        Ok(accuracy)
    }

    /// The evaluation pairs.
    pub fn eval_pairs(&self) -> &[Comparison] {
        &self.eval
    }
}

/// Which of a task's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The training pairs.
    Train,
    /// The evaluation pairs.
    Eval,
}

impl<'c> Task<'c> for RewardTask<'c> {
    const STAGE: Stage = Stage::Reward;

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
        let pairs: Vec<&Comparison> = rows.iter().map(|&row| &self.train[row]).collect();
        let (denominator, center) = (total_weight(&pairs), self.center());
        let (mut loss, mut stats) = (0.0, RewardStats::default());
        let limit = self.config.common.tokens_per_micro_batch;
        for part in parts(pairs.iter().map(|pair| pair_tokens(pair)), limit) {
            let (rows, columns) = (PairRows::new(&pairs[part.clone()]), Columns::of(&pairs[part]));
            let objective = self.learner.learn_scalars(&rows.batch, &rows.last_rows, |reward_i| {
                let objective = bradley_terry(reward_i, columns.view(), center, denominator);
                (objective.d_scalar.clone(), objective)
            });
            loss += objective.loss;
            stats.merge(&objective.stats);
        }
        metrics.put_stats(&stats);
        Ok(loss)
    }

    fn evaluate(&mut self, metrics: &mut Metrics) -> Result<(), TrainError> {
        let rewards = self.rewards(Which::Eval);
        let pairs: Vec<&Comparison> = self.eval.iter().collect();
        let columns = Columns::of(&pairs);
        let objective = bradley_terry(&rewards, columns.view(), self.center(), total_weight(&pairs));
        metrics.put_eval("loss", objective.loss);
        metrics.put_eval_stats(&objective.stats);
        put_beside(&rewards, &pairs, metrics);
        if let Some(accuracy) = self.bag_of_words()? {
            metrics.put_eval("bag_of_words", accuracy);
        }
        Ok(())
    }
}

/// Chosen and rejected responses as text.
fn texts(pairs: &[Comparison], tokenizer: &Tokenizer) -> Result<Vec<[String; 2]>, TrainError> {
    let text = |ids: &[u32]| tokenizer.decode(ids, true);
    pairs.iter().map(|pair| Ok([text(&pair.chosen)?, text(&pair.rejected)?])).collect()
}

fn views(texts: &[[String; 2]]) -> Vec<Texts<'_>> {
    texts.iter().map(|[chosen, rejected]| Texts { chosen, rejected }).collect()
}

/// What an accuracy must be read beside: its interval, "the longer one wins", and calibration.
fn put_beside(rewards: &[f32], pairs: &[&Comparison], metrics: &mut Metrics) {
    let margins: Vec<f64> =
        rewards.chunks_exact(2).map(|pair| f64::from(pair[0]) - f64::from(pair[1])).collect();
    let correct = margins.iter().filter(|&&margin| margin > 0.0).count();
    if let Ok(interval) = wilson(correct, margins.len(), CONFIDENCE) {
        metrics.put_eval("accuracy_low", interval.low);
        metrics.put_eval("accuracy_high", interval.high);
    }
    let unequal: Vec<_> = pairs.iter().filter(|pair| pair.chosen.len() != pair.rejected.len()).collect();
    if !unequal.is_empty() {
        let longer = unequal.iter().filter(|pair| pair.chosen.len() > pair.rejected.len()).count();
        metrics.put_eval("longer_wins", longer as f64 / unequal.len() as f64);
    }
    // How sure the model is of its own choice, and whether it is right.
    let sure: Vec<f64> = margins.iter().map(|margin| 1.0 / (1.0 + (-margin.abs()).exp())).collect();
    let right: Vec<f64> = margins.iter().map(|&margin| f64::from(u8::from(margin > 0.0))).collect();
    if let Ok(error) = calibration_error(&sure, &right, Binning::EqualWidth(CALIBRATION_BINS)) {
        metrics.put_eval("calibration_error", error);
    }
}
