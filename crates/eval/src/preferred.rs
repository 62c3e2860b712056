//! How often a candidate is preferred to a baseline, by whoever judges.
//!
//! A comparison's score is 1 if the candidate is preferred, 0 if the baseline is, ½ for a tie, or any share between (votes). Who judged is part of
//! the measure's name, so that a reward model's opinion cannot be taken for people's:
//!
//! | judge | measures |
//! |---|---|
//! | people | `win_rate`, `win_rate_length_controlled` |
//! | a reward model | `proxy_win_rate`, `proxy_win_rate_length_controlled`; `proxy_reward` is its mean reward |
//! | a judge behind an endpoint, asked in both orders | `judge_win_rate`, `judge_win_rate_length_controlled` |
//!
//! The length-controlled rate (`stats::length_controlled`) is what the rate would be if both answers were equally long; its items are influence values.
//! It is left out where lengths do not differ, or separate wins from losses.
//!
//! Not here: asking.

use crate::answers::{Table, differ};
use crate::{EvalError, Item, Measure};

/// Who judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// People.
    People,
    /// A reward model.
    RewardModel,
    /// A model that is asked.
    Endpoint,
}

impl Judge {
    /// Name of the win rate.
    pub fn win_rate(self) -> &'static str {
        match self {
            Judge::People => "win_rate",
            Judge::RewardModel => "proxy_win_rate",
            Judge::Endpoint => "judge_win_rate",
        }
    }
}

/// One judged comparison of the candidate's answer with the baseline's.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The suite's row, counted from 0.
    pub row: usize,
    /// Who, where errors are to be clustered by that too.
    pub annotator: Option<String>,
    /// From 0 (the baseline) to 1 (the candidate).
    pub score: f64,
    /// Length of the candidate's answer, in any unit.
    pub candidate_length: usize,
    /// Length of the baseline's.
    pub baseline_length: usize,
}

/// Adds the win rate, raw and at equal length, over everything and by category.
pub fn add_win_rate(table: &mut Table<'_>, judge: Judge, judged: &[Judged]) -> Result<(), EvalError> {
    let suite = table.suite();
    let name = judge.win_rate();
    let (mut raw, mut controlled) = (Vec::new(), Vec::new());
    for category in table.categories(judged.iter().map(|one| one.row)) {
        let wanted =
            |one: &&Judged| category.is_none() || suite.rows[one.row].category.as_deref() == category;
        let of_category: Vec<&Judged> = judged.iter().filter(wanted).collect();
        if let Some(items) = enough(items(&of_category, table, |one, _| one.score)) {
            let range = Some([0.0, 1.0]);
            raw.push(Measure::new(name, category, "share", range, items, table.confidence())?);
        }
        if let Some((rate, influence)) = at_equal_length(&of_category, table.confidence())
            && let Some(items) = enough(items(&of_category, table, |_, i| rate + influence[i]))
            && differ(&items)
        {
            let name = format!("{name}_length_controlled");
            match Measure::new(&name, category, "share", None, items, table.confidence()) {
                Ok(measure) => controlled.push(measure),
                // Once length is taken out nothing may be left that differs, as where everybody prefers the same model.
                Err(EvalError::Stats { source: polity_stats::Error::TooFew { .. }, .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    raw.into_iter().chain(controlled).for_each(|measure| table.push(measure));
    Ok(())
}

fn enough(items: Vec<Item>) -> Option<Vec<Item>> {
    let prompts: std::collections::HashSet<&str> = items.iter().map(|item| item.id.as_str()).collect();
    (prompts.len() > 1).then_some(items)
}

/// One item for each prompt, or each annotator on each prompt, in the order in which they first came.
fn items(judged: &[&Judged], table: &Table<'_>, value: impl Fn(&Judged, usize) -> f64) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    let mut place = std::collections::HashMap::new();
    for (i, one) in judged.iter().enumerate() {
        let at = *place.entry((one.row, &one.annotator)).or_insert(items.len());
        if at == items.len() {
            let id = table.suite().rows[one.row].id.clone();
            items.push(Item { id, annotator: one.annotator.clone(), sum: 0.0, n: 0 });
        }
        items[at].sum += value(one, i);
        items[at].n += 1;
    }
    items
}

/// The rate, and each score's influence on it.
fn at_equal_length(judged: &[&Judged], confidence: f64) -> Option<(f64, Vec<f64>)> {
    let of = |value: fn(&Judged) -> f64| judged.iter().map(|one| value(one)).collect::<Vec<f64>>();
    let (ours, theirs) = (of(|one| one.candidate_length as f64), of(|one| one.baseline_length as f64));
    let prompts: Vec<usize> = judged.iter().map(|one| one.row).collect();
    let got =
        polity_stats::length_controlled(&of(|one| one.score), &ours, &theirs, &prompts, confidence).ok()?;
    Some((got.rate.estimate, got.influence))
}
