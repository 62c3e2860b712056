//! Measures of a model's answers to a suite.
//!
//! Every measure is there over everything and for each category with at least two prompts; its items are prompts, with the sum over a prompt's
//! samples.
//!
//! | kind | measure | value of one answer |
//! |---|---|---|
//! | prompts | `response_tokens` | its tokens |
//! | | `share_at_cap` | 1 if it was cut off at the longest length |
//! | | `distinct_2` | different pairs of neighbouring words / pairs |
//! | exact, numeric, regex | `exact_match` | 1 if it is the right one |
//! | text | `nats_per_token` | cross entropy; its exponential is the perplexity |
//! | | `bits_per_byte` | the same in a unit that does not depend on the tokenizer |
//!
//! An exact answer is right if it is the same text, apart from white space at its ends and the kind of white space within; a numeric one if it differs from the
//! right number by at most 1e-6 of it.
//!
//! With the log-probs of a reference: `kl_nats_per_sequence`, the mean over responses of `Σ_t ln π(y_t) - ln π_ref(y_t)`, sampled from
//! the policy, which is an unbiased estimate of `KL(π ‖ π_ref)` (k1; single values may be negative); `kl_nats_per_token`, the same sum over the number of tokens;
//! `entropy_nats_per_token`, of the policy's whole distribution at each token.
//!
//! Not here: sampling; refusals (`refusals.rs`); comparisons with another model (`preferred.rs`).

use std::collections::{BTreeMap, BTreeSet, HashSet};

use regex::Regex;

use crate::suite::number;
use crate::{EvalError, Item, Kind, Measure, Suite, SuiteRow};

/// Values of a suite's rows, on their way to measures.
#[derive(Debug)]
pub struct Table<'s> {
    suite: &'s Suite,
    confidence: f64,
    measures: Vec<Measure>,
}

/// Fewest prompts of a category that is shown.
const PROMPTS_MIN: usize = 2;

impl<'s> Table<'s> {
    /// Without measures yet.
    pub fn new(suite: &'s Suite, confidence: f64) -> Table<'s> {
        Table { suite, confidence, measures: Vec::new() }
    }

    /// The suite.
    pub fn suite(&self) -> &'s Suite {
        self.suite
    }

    /// Coverage of the intervals.
    pub fn confidence(&self) -> f64 {
        self.confidence
    }

    /// Adds a measure and its categories from `(row, sum of values, values)`; a row may come several times. One with fewer than two
    /// prompts has no interval and is left out.
    pub fn add(
        &mut self,
        name: &str,
        unit: &str,
        range: Option<[f64; 2]>,
        values: impl IntoIterator<Item = (usize, f64, u64)>,
    ) -> Result<(), EvalError> {
        let mut by_row: BTreeMap<usize, (f64, u64)> = BTreeMap::new();
        for (row, sum, n) in values {
            let there = by_row.entry(row).or_default();
            (there.0, there.1) = (there.0 + sum, there.1 + n);
        }
        by_row.retain(|_, (_, n)| *n > 0);
        for category in self.categories(by_row.keys().copied()) {
            let rows = by_row.iter().map(|(&row, value)| (&self.suite.rows[row], value));
            let of_category =
                rows.filter(|(row, _)| category.is_none() || row.category.as_deref() == category);
            let items = of_category
                .map(|(row, &(sum, n))| Item { id: row.id.clone(), annotator: None, sum, n })
                .collect::<Vec<_>>();
            if items.len() >= PROMPTS_MIN && (range.is_some() || differ(&items)) {
                self.measures.push(Measure::new(name, category, unit, range, items, self.confidence)?);
            }
        }
        Ok(())
    }

    /// Adds a share of the suite's rows, without categories.
    pub fn add_share_of_rows(&mut self, name: &str, are: &[bool]) -> Result<(), EvalError> {
        let items =
            self.suite.rows.iter().zip(are).map(|(row, &is)| Item::new(row.id.clone(), f64::from(is)));
        let items = items.collect();
        self.measures.push(Measure::new(name, None, "share", Some([0.0, 1.0]), items, self.confidence)?);
        Ok(())
    }

    /// Adds a measure that was made elsewhere.
    pub fn push(&mut self, measure: Measure) {
        self.measures.push(measure);
    }

    /// Everything, then the categories of these rows in the order of their names.
    pub fn categories(&self, rows: impl Iterator<Item = usize>) -> Vec<Option<&'s str>> {
        let named: BTreeSet<&str> = rows.filter_map(|row| self.suite.rows[row].category.as_deref()).collect();
        std::iter::once(None).chain(named.into_iter().map(Some)).collect()
    }

    /// The measures.
    pub fn finish(self) -> Vec<Measure> {
        self.measures
    }
}

/// Whether means differ at all; equal values without a range have no interval.
pub(crate) fn differ(items: &[Item]) -> bool {
    let mean = |item: &Item| item.sum / item.n as f64;
    items.iter().any(|item| mean(item) != mean(&items[0]))
}

/// One answer of a model to a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// The row, counted from 0.
    pub row: usize,
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// Whether it ended by itself.
    pub stopped: bool,
}

/// What can be said of answers alone, which have at most `tokens_max` tokens.
pub fn add_answers(table: &mut Table<'_>, answers: &[Answered], tokens_max: usize) -> Result<(), EvalError> {
    const SHARE: Option<[f64; 2]> = Some([0.0, 1.0]);
    let suite = table.suite;
    match suite.kind {
        Kind::Prompts => {
            let tokens = answers.iter().map(|answer| (answer.row, answer.tokens as f64, 1));
            table.add("response_tokens", "tokens", Some([0.0, tokens_max as f64]), tokens)?;
            let cut = answers.iter().map(|answer| (answer.row, f64::from(!answer.stopped), 1));
            table.add("share_at_cap", "share", SHARE, cut)?;
            let distinct = answers.iter().filter_map(|a| Some((a.row, distinct_pairs(&a.text)?, 1)));
            table.add("distinct_2", "share of word pairs", SHARE, distinct)
        }
        Kind::Exact | Kind::Numeric | Kind::Regex => {
            let reader = suite.asking.reader();
            let right = answers.iter().map(|answer| {
                let row = &suite.rows[answer.row];
                let right = match suite.kind {
                    Kind::Numeric => {
                        let expected =
                            number(&row.values["answer"]).expect("checked when the suite was read");
                        let found = reader.number(&answer.text);
                        found.is_some_and(|found| (found - expected).abs() <= 1e-6 * expected.abs())
                    }
                    Kind::Regex => reader.read(&answer.text).is_some_and(|text| pattern(row).is_match(text)),
                    _ => reader
                        .read(&answer.text)
                        .is_some_and(|text| plain(text) == plain(&row.values["answer"])),
                };
                (answer.row, f64::from(right), 1)
            });
            table.add("exact_match", "share", SHARE, right)
        }
        Kind::Refusal | Kind::Text | Kind::Preference => Ok(()),
    }
}

fn pattern(row: &SuiteRow) -> Regex {
    Regex::new(&row.values["pattern"]).expect("checked when the suite was read")
}

/// With one blank for any white space, and none at the ends.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Different pairs of neighbouring words over all pairs; none for fewer than two words.
fn distinct_pairs(text: &str) -> Option<f64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let different: HashSet<&[&str]> = words.windows(2).collect();
    (words.len() > 1).then(|| different.len() as f64 / (words.len() - 1) as f64)
}

/// Log-probs of one response, or of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// The row, counted from 0.
    pub row: usize,
    /// Its tokens.
    pub tokens: usize,
    /// Its bytes.
    pub bytes: usize,
    /// `Σ_t ln π(y_t)`.
    pub logprob: f64,
    /// Sum of the policy's entropies, nats.
    pub entropy: f64,
}

/// Cross entropy of a suite of texts.
pub fn add_texts(table: &mut Table<'_>, texts: &[Likelihood]) -> Result<(), EvalError> {
    let per_token = texts.iter().map(|text| (text.row, -text.logprob, text.tokens as u64));
    table.add("nats_per_token", "nats", None, per_token)?;
    let per_byte =
        texts.iter().map(|text| (text.row, -text.logprob / std::f64::consts::LN_2, text.bytes as u64));
    table.add("bits_per_byte", "bits", None, per_byte)
}

/// Distance of the policy's responses from a reference's: `(policy, reference)` log-probs of each.
pub fn add_distances(
    table: &mut Table<'_>,
    responses: &[Likelihood],
    reference_logprobs: &[f64],
) -> Result<(), EvalError> {
    assert_eq!(responses.len(), reference_logprobs.len(), "one reference log-prob for each response");
    let both = || responses.iter().zip(reference_logprobs);
    let log_ratio = |(response, reference): (&Likelihood, &f64)| response.logprob - reference;
    table.add(
        "kl_nats_per_sequence",
        "nats per sequence",
        None,
        both().map(|pair| (pair.0.row, log_ratio(pair), 1)),
    )?;
    table.add(
        "kl_nats_per_token",
        "nats per token",
        None,
        both().map(|pair| (pair.0.row, log_ratio(pair), pair.0.tokens as u64)),
    )
}

/// Entropy of the policy along its responses.
pub fn add_entropy(table: &mut Table<'_>, responses: &[Likelihood]) -> Result<(), EvalError> {
    let per_token = responses.iter().map(|response| (response.row, response.entropy, response.tokens as u64));
    table.add("entropy_nats_per_token", "nats per token", None, per_token)
}
