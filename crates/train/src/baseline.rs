//! What a reward model must beat: preferences predicted from the words of the responses alone.
//!
//! ```text
//! P(chosen) = sigmoid( sum over words of w_word * (count in chosen - count in rejected) )
//! ```
//!
//! fitted with an L2 penalty of 1 and without an intercept. A reward model that is no better has learnt which words
//! people like, not what they mean.
//!
//! Not here: the fit (`polity_stats::Logistic`), "the longer one wins" (`reward`).

use std::collections::BTreeMap;

use polity_stats::{Logistic, LogisticConfig, SparseRow};

/// Pairs that the fit uses at the most; more change little and take long.
const PAIRS_MAX: usize = 20_000;

const FIT: LogisticConfig =
    LogisticConfig { l2: 1.0, intercept: false, gradient_tolerance: 1e-6, iterations_max: 100 };

/// The words of a chosen and of a rejected response.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// What people preferred.
    pub chosen: &'a str,
    /// What they did not.
    pub rejected: &'a str,
}

/// Share of `eval` that a bag of words fitted to the first [`PAIRS_MAX`] of `train` orders right; a pair that it cannot
/// tell apart counts half. `None` if there is nothing to fit or to predict.
pub fn bag_of_words_accuracy(train: &[Texts<'_>], eval: &[Texts<'_>]) -> Option<f64> {
    let train = &train[..train.len().min(PAIRS_MAX)];
    let mut vocabulary = BTreeMap::new();
    let rows: Vec<SparseRow> = train
        .iter()
        .map(|pair| {
            difference(pair, |word| {
                let next = vocabulary.len();
                Some(*vocabulary.entry(word.to_owned()).or_insert(next))
            })
        })
        .collect();
    if eval.is_empty() {
        return None;
    }
    let ones = vec![1.0; rows.len()];
    let fit = Logistic::fit(&rows, &ones, &ones, vocabulary.len(), FIT).ok()?;
    let credit = |pair: &Texts<'_>| {
        let margin = fit.margin(&difference(pair, |word| vocabulary.get(word).copied()));
        if margin == 0.0 { 0.5 } else { f64::from(u8::from(margin > 0.0)) }
    };
    Some(eval.iter().map(credit).sum::<f64>() / eval.len() as f64)
}

/// Counts of words, chosen minus rejected. Words without a number are left out.
fn difference(pair: &Texts<'_>, mut number: impl FnMut(&str) -> Option<usize>) -> SparseRow {
    let mut counts: BTreeMap<usize, f64> = BTreeMap::new();
    for (text, sign) in [(pair.chosen, 1.0), (pair.rejected, -1.0)] {
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| !word.is_empty());
        for word in words {
            if let Some(word) = number(&word.to_lowercase()) {
                *counts.entry(word).or_default() += sign;
            }
        }
    }
    counts.into_iter().filter(|&(_, count)| count != 0.0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair<'a>(chosen: &'a str, rejected: &'a str) -> Texts<'a> {
        Texts { chosen, rejected }
    }

    #[test]
    fn words_that_people_like_are_found() {
        let train =
            [pair("Please, thank you!", "no"), pair("thank you", "no way"), pair("well, please", "way")];
        let eval =
            [pair("PLEASE do", "no do"), pair("no", "thank"), pair("unseen", "words"), pair("you", "way")];
        assert_eq!(bag_of_words_accuracy(&train, &eval), Some((1.0 + 0.0 + 0.5 + 1.0) / 4.0));
    }

    #[test]
    fn counts_are_differences() {
        let row = difference(&pair("a b a c", "a b"), |word| ["a", "b", "c"].iter().position(|w| *w == word));
        assert_eq!(row, [(0, 1.0), (2, 1.0)]);
    }

    #[test]
    fn nothing_to_go_by_is_said_to_be_nothing() {
        assert_eq!(bag_of_words_accuracy(&[], &[pair("a", "b")]), None);
        assert_eq!(bag_of_words_accuracy(&[pair("a", "b")], &[]), None);
    }
}
