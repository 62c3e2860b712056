//! Rows as the trainers want them: token ids, what is trained, and which row of which file they are.
//!
//! Not here: text, templates and files (`data.rs` makes these from rows).

use polity_compute::{Batch, Prediction};

/// Something to imitate.
#[derive(Clone, Debug, PartialEq)]
pub struct Demonstration {
    /// The whole row.
    pub ids: Vec<u32>,
    /// Of each token, whether it is learnt. The first cannot be: nothing precedes it.
    pub trained: Vec<bool>,
    /// What the data says about it.
    pub info: ExampleInfo,
}

/// Two responses to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The prompt; may be empty, then a response's first token is not predicted.
    pub prompt: Vec<u32>,
    /// The better response.
    pub chosen: Vec<u32>,
    /// The worse one.
    pub rejected: Vec<u32>,
    /// By how much the chosen one is said to be better, in logits.
    pub margin: Option<f32>,
    /// How much the pair counts.
    pub weight: Option<f32>,
    /// Share of votes for the chosen one.
    pub label: Option<f32>,
    /// What the data says about it.
    pub info: ExampleInfo,
}

/// Something to respond to.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptExample {
    /// The prompt.
    pub ids: Vec<u32>,
    /// What the data says about it.
    pub info: ExampleInfo,
}

/// Where an example came from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExampleInfo {
    /// Row of the file, from 0.
    pub row: usize,
    /// The row's `category`, where it has one.
    pub category: Option<String>,
    /// Keys what must not be split between training and evaluation: a hash of the prompt.
    pub group: u64,
}

impl Demonstration {
    /// Tokens that are learnt.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|&&t| t).count()
    }
}

/// A batch of demonstrations and the predictions of their trained tokens, row after row.
pub(crate) fn demonstration_batch(rows: &[&Demonstration]) -> (Batch, Vec<Prediction>) {
    let mut batch = Batch::new();
    let mut predictions = Vec::new();
    for row in rows {
        let segment = batch.push(&row.ids, None);
        let all = batch.predict(segment, 1);
        let trained = row.trained.iter().skip(1);
        predictions.extend(all.into_iter().zip(trained).filter(|&(_, &t)| t).map(|(p, _)| p));
    }
    (batch, predictions)
}

/// Pairs as prefix trees: a prompt and its two responses.
#[derive(Debug, Default)]
pub(crate) struct PairRows {
    pub(crate) batch: Batch,
    /// Predictions of the responses' tokens: pair 0's chosen, its rejected, pair 1's chosen, ….
    pub(crate) predictions: Vec<Prediction>,
    /// Tokens of each response.
    pub(crate) lengths: Vec<usize>,
    /// The last row of each response.
    pub(crate) last_rows: Vec<usize>,
}

impl PairRows {
    pub(crate) fn new(pairs: &[&Comparison]) -> Self {
        let mut out = Self::default();
        for pair in pairs {
            let prompt = (!pair.prompt.is_empty()).then(|| out.batch.push(&pair.prompt, None));
            for response in [&pair.chosen, &pair.rejected] {
                let segment = out.batch.push(response, prompt);
                let predictions = out.batch.predict(segment, usize::from(prompt.is_none()));
                out.lengths.push(predictions.len());
                out.predictions.extend(predictions);
                let last = out.batch.last_row(segment).expect("rows without a token were refused");
                out.last_rows.push(last);
            }
        }
        out
    }
}

/// Cuts a step into consecutive parts of at most `limit` tokens (but at least one row).
pub(crate) fn parts(lengths: impl IntoIterator<Item = usize>, limit: usize) -> Vec<std::ops::Range<usize>> {
    let mut parts: Vec<std::ops::Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (i, length) in lengths.into_iter().enumerate() {
        match parts.last_mut() {
            Some(part) if tokens + length <= limit => {
                part.end = i + 1;
                tokens += length;
            }
            _ => {
                parts.push(i..i + 1);
                tokens = length;
            }
        }
    }
    parts
}

/// Which rows each step sees, as a function of the seed alone: nothing to checkpoint but the step.
///
/// An epoch visits every row once; its last step may be short, as in Transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) rows: usize,
    pub(crate) rows_per_step: usize,
    pub(crate) seed: u64,
    pub(crate) shuffle: bool,
}

impl Order {
    fn steps_per_epoch(self) -> u64 {
        self.rows.div_ceil(self.rows_per_step) as u64
    }

    /// The rows of step `step`, counted from 0 over all epochs.
    pub(crate) fn step(self, step: u64) -> Vec<usize> {
        let epoch = step / self.steps_per_epoch();
        let mut order: Vec<usize> = (0..self.rows).collect();
        if self.shuffle {
            polity_lm::rng::Stream::new(self.seed, "order", &[epoch]).shuffle(&mut order);
        }
        let start = (step % self.steps_per_epoch()) as usize * self.rows_per_step;
        order[start..self.rows.min(start + self.rows_per_step)].to_vec()
    }

    /// Passes over the data when `steps` steps are done.
    pub(crate) fn epochs_after(self, steps: u64) -> f64 {
        let (whole, rest) = (steps / self.steps_per_epoch(), steps % self.steps_per_epoch());
        whole as f64 + (rest as usize * self.rows_per_step).min(self.rows) as f64 / self.rows as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_the_order_and_the_limit() {
        assert_eq!(parts([3, 3, 3, 9, 1], 6), [0..2, 2..3, 3..4, 4..5]);
        let long = parts([100, 100], 6);
        assert_eq!(long, [0..1, 1..2]);
        assert!(parts([], 6).is_empty());
    }

    #[test]
    fn an_epoch_sees_every_row_once() {
        let order = Order { rows: 10, rows_per_step: 4, seed: 7, shuffle: true };
        for epoch in 0..3 {
            let mut seen: Vec<usize> = (0..3).flat_map(|s| order.step(3 * epoch + s)).collect();
            assert_ne!(seen, (0..10).collect::<Vec<_>>(), "shuffled");
            seen.sort_unstable();
            assert_eq!(seen, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(order.step(0), order.step(3), "each epoch has an order of its own");
        assert_eq!(Order { shuffle: false, ..order }.step(4), [4, 5, 6, 7]);
        assert_eq!(order.epochs_after(2), 0.8);
        assert_eq!(order.epochs_after(4), 1.4);
    }

    #[test]
    fn only_trained_tokens_are_predicted() {
        let row = Demonstration {
            ids: vec![5, 6, 7, 8],
            trained: vec![true, false, true, true],
            info: ExampleInfo::default(),
        };
        let (batch, predictions) = demonstration_batch(&[&row, &row]);
        assert_eq!(batch.tokens(), 8);
        let rows: Vec<_> = predictions.iter().map(|p| (p.row, p.token)).collect();
        assert_eq!(rows, [(1, 7), (2, 8), (5, 7), (6, 8)]);
        assert_eq!(row.trained_tokens(), 2);
    }
}
