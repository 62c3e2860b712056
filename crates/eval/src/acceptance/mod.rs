//! Reward-model acceptance: what a reward model must show before a policy is optimised against it.
//!
//! A policy finds whatever its reward model is wrong about, so accuracy is not enough. Scored pairs, probes (a pair beside itself, an answer
//! beside its half, twice itself, nothing), other members of an ensemble and best-of-n samples go in; [`Measure`]s with their items come out,
//! which the gate judges by [`ACCEPTANCE_POLICY`]. docs/acceptance.md has the table of measures.
//!
//! Values of one prompt are one item, so intervals are clustered by prompt. What is no mean of values (a calibration error, a temperature, a share
//! of the ceiling, a peak) is written as influence values:
//!
//! ```text
//! f(x̄) + ∇f(x̄) · (x_i - x̄)        their mean is f(x̄), their spread its standard error (the delta method)
//! ```
//!
//! Source: Lambert et al. 2024, arXiv:2403.13787, and Liu et al. 2025, arXiv:2410.16184, for length; Guo et al. 2017, arXiv:1706.04599, for calibration;
//! Coste et al. 2024, arXiv:2310.02743, for ensembles; Gao, Schulman & Hilton 2022, arXiv:2210.10760, for best-of-n.
//!
//! Not here: scoring (`cli`), judging (`gate`), statistics (`stats`).

mod best_of_n;
mod pairs;
mod probes;
mod record;

use std::collections::HashMap;

pub use best_of_n::{BestOfN, Candidates, OptimisedPolicy, Point, best_of_n_measures, curve_measures};
pub use pairs::{ScoredPair, ensemble_measures, pair_measures};
pub use probes::{OPENINGS_WORDS, ProbedPair, first_half, opening, probe_measures, twice};
pub use record::Acceptance;

use crate::{EvalError, Evaluation, Item, Measure};

/// The policy that ships for reward models: `polity gate R --policy reward-model`.
pub const ACCEPTANCE_POLICY: &str = include_str!("policy.toml");

/// Whether an evaluation is a reward model's acceptance: every one has its pairs swapped, and no other evaluation has.
pub fn is_acceptance(evaluation: &Evaluation) -> bool {
    evaluation.measures.iter().any(|measure| measure.name == SWAP_NEGATES)
}

/// The measure that every acceptance has.
const SWAP_NEGATES: &str = "swap_negates";
/// Coverage of the measures' intervals.
const CONFIDENCE: f64 = 0.95;
const SHARE: Option<[f64; 2]> = Some([0.0, 1.0]);

/// Measures, and those that the data do not support.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// In the order in which they were made.
    pub measures: Vec<Measure>,
    /// What could not be measured.
    pub missing: Vec<Missing>,
}

/// A measure that there is no number for.
#[derive(Clone, Debug, PartialEq)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// Its category.
    pub category: Option<String>,
    /// Why.
    pub why: String,
}

/// What a measure is called and measured in.
#[derive(Clone, Copy)]
struct Name<'n> {
    name: &'n str,
    category: Option<&'n str>,
    unit: &'n str,
    range: Option<[f64; 2]>,
}

impl<'n> Name<'n> {
    /// A share of pairs.
    fn share(name: &'n str) -> Name<'n> {
        Name { name, category: None, unit: "share", range: SHARE }
    }

    /// Unbounded.
    fn of(name: &'n str, unit: &'n str) -> Name<'n> {
        Name { name, category: None, unit, range: None }
    }

    fn within(self, category: &'n str) -> Name<'n> {
        Name { category: Some(category), ..self }
    }
}

impl Found {
    /// Adds a measure of one value for each pair, given with its prompt.
    fn put<'i>(&mut self, name: Name<'_>, values: impl IntoIterator<Item = (&'i str, f64)>) {
        self.put_sums(name, values.into_iter().map(|(id, value)| (id, value, 1)));
    }

    /// The same of several values, given as their sum and number.
    fn put_sums<'i>(&mut self, name: Name<'_>, values: impl IntoIterator<Item = (&'i str, f64, u64)>) {
        let items = by_prompt(values);
        match Measure::new(name.name, name.category, name.unit, name.range, items, CONFIDENCE) {
            Ok(measure) => self.measures.push(measure),
            Err(EvalError::Stats { source, .. }) => self.miss(name, source.to_string()),
            Err(other) => self.miss(name, other.to_string()),
        }
    }

    fn miss(&mut self, name: Name<'_>, why: String) {
        let category = name.category.map(str::to_owned);
        self.missing.push(Missing { name: name.name.to_owned(), category, why });
    }

    /// The measure with this name and category.
    pub fn measure(&self, name: &str, category: Option<&str>) -> Option<&Measure> {
        self.measures.iter().find(|measure| measure.name == name && measure.category.as_deref() == category)
    }
}

/// One item a prompt, prompts in the order in which they came.
fn by_prompt<'i>(values: impl IntoIterator<Item = (&'i str, f64, u64)>) -> Vec<Item> {
    let mut place: HashMap<&str, usize> = HashMap::new();
    let mut items: Vec<Item> = Vec::new();
    for (id, sum, n) in values {
        let at = *place.entry(id).or_insert(items.len());
        if at == items.len() {
            items.push(Item { id: id.to_owned(), annotator: None, sum: 0.0, n: 0 });
        }
        items[at].sum += sum;
        items[at].n += n;
    }
    items
}

/// 1 for the right side, ½ for neither: a model that cannot tell is at chance, not below it.
fn credit(margin: f64) -> f64 {
    match margin.partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => 1.0,
        Some(std::cmp::Ordering::Less) => 0.0,
        _ => 0.5,
    }
}
