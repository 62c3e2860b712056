//! The figures of a table.

use std::collections::HashMap;

use super::alpha::{Metric, alpha};
use super::{Figure, Measured, Table, Undefined};
use crate::bootstrap::{Resampling, Statistic, Sums, bootstrap_sums};
use crate::interval::wilson_ends;

/// Agreement of a whole table.
#[derive(Clone, Debug, PartialEq)]
pub struct Agreement {
    /// Chance that two annotators of one item gave the same level.
    pub raw: Measured,
    /// Fleiss' kappa.
    pub fleiss: Measured,
    /// Gwet's AC1.
    pub ac1: Measured,
    /// Gwet's AC2 with quadratic weights.
    pub ac2: Measured,
    /// Krippendorff's alpha, nominal.
    pub alpha_nominal: Measured,
    /// Krippendorff's alpha, ordinal.
    pub alpha_ordinal: Measured,
    /// Krippendorff's alpha, interval.
    pub alpha_interval: Measured,
}

/// Where the sums of [`agreement_sums`] stand in a row, for `k` levels.
struct Layout {
    k: usize,
}

impl Layout {
    const ITEMS: usize = 0; // items with n_i >= 2
    const SAME: usize = 1; // Σ P_i
    const NEAR: usize = 2; // Σ P_i with quadratic weights
    const ALL_ITEMS: usize = 3; // items with n_i >= 1
    const HEAD: usize = 4;

    fn width(&self) -> usize {
        Self::HEAD + 2 * self.k + self.k * self.k
    }

    /// Counts `n_ik` over items with `n_i >= 2`.
    fn counts<'a>(&self, sums: &'a [f64]) -> &'a [f64] {
        &sums[Self::HEAD..Self::HEAD + self.k]
    }

    /// Shares `n_ik / n_i` over all items.
    fn shares<'a>(&self, sums: &'a [f64]) -> &'a [f64] {
        &sums[Self::HEAD + self.k..Self::HEAD + 2 * self.k]
    }

    fn coincidences<'a>(&self, sums: &'a [f64]) -> &'a [f64] {
        &sums[Self::HEAD + 2 * self.k..]
    }

    fn defined(&self, sums: &[f64]) -> Option<f64> {
        let items = sums[Self::ITEMS];
        // After a jackknife's subtraction a count of 0 may be a rounding error.
        let labels = self.counts(sums).iter().filter(|&&n| n > 0.5).count();
        (items > 0.5 && labels > 1).then_some(items)
    }

    fn raw(&self, sums: &[f64]) -> Option<f64> {
        (sums[Self::ITEMS] > 0.5).then(|| sums[Self::SAME] / sums[Self::ITEMS])
    }

    fn fleiss(&self, sums: &[f64]) -> Option<f64> {
        let items = self.defined(sums)?;
        let counts = self.counts(sums);
        let n: f64 = counts.iter().sum();
        let chance: f64 = counts.iter().map(|c| (c / n) * (c / n)).sum();
        Some((sums[Self::SAME] / items - chance) / (1.0 - chance))
    }

    fn gwet(&self, sums: &[f64], agree: f64, weight_sum: f64) -> Option<f64> {
        let items = self.defined(sums)?;
        let k = self.k as f64;
        let spread: f64 =
            self.shares(sums).iter().map(|s| s / sums[Self::ALL_ITEMS]).map(|p| p * (1.0 - p)).sum();
        let chance = weight_sum * spread / (k * (k - 1.0));
        Some((agree / items - chance) / (1.0 - chance))
    }

    fn ac1(&self, sums: &[f64]) -> Option<f64> {
        self.gwet(sums, sums[Self::SAME], self.k as f64)
    }

    fn ac2(&self, sums: &[f64]) -> Option<f64> {
        let weights = (0..self.k).flat_map(|a| (0..self.k).map(move |b| (a, b)));
        self.gwet(sums, sums[Self::NEAR], weights.map(|(a, b)| quadratic_weight(a, b, self.k)).sum())
    }

    fn alpha(&self, sums: &[f64], metric: Metric) -> Option<f64> {
        alpha(self.coincidences(sums), self.k, metric)
    }
}

/// `1 - (a - b)² / (k - 1)²`.
fn quadratic_weight(a: usize, b: usize, k: usize) -> f64 {
    let apart = a.abs_diff(b) as f64 / (k - 1) as f64;
    1.0 - apart * apart
}

/// What each item adds to the sums that all figures of [`agreement`] are functions of; items without values add nothing and
/// are left out.
pub fn agreement_sums(table: &Table) -> Sums {
    let k = table.levels();
    let layout = Layout { k };
    let mut sums = Sums::new(layout.width());
    let mut counts = vec![0.0; k];
    let mut row = vec![0.0; layout.width()];
    for item in 0..table.items() {
        let n = table.item(item).len() as f64;
        if n == 0.0 {
            continue;
        }
        table.counts(item, &mut counts);
        row.fill(0.0);
        row[Layout::ALL_ITEMS] = 1.0;
        for a in 0..k {
            row[Layout::HEAD + k + a] = counts[a] / n;
        }
        if n >= 2.0 {
            row[Layout::ITEMS] = 1.0;
            for a in 0..k {
                row[Layout::HEAD + a] = counts[a];
                for b in 0..k {
                    let pairs = counts[a] * (counts[b] - f64::from(a == b));
                    row[Layout::HEAD + 2 * k + a * k + b] = pairs / (n - 1.0);
                    row[Layout::SAME] += if a == b { pairs / (n * (n - 1.0)) } else { 0.0 };
                    row[Layout::NEAR] += quadratic_weight(a, b, k) * pairs / (n * (n - 1.0));
                }
            }
        }
        sums.push(&row);
    }
    sums
}

/// All figures of a table, with BCa intervals over its items.
///
/// # Panics
///
/// If the table has fewer than two levels, there are no resamples or the confidence is not between 0 and 1.
pub fn agreement(table: &Table, how: Resampling) -> Agreement {
    assert!(table.levels() >= 2, "agreement: {} levels have nothing to agree on", table.levels());
    let layout = Layout { k: table.levels() };
    let sums = agreement_sums(table);
    let total = sums.total();
    let items = total.get(Layout::ITEMS).map_or(0, |&items| items as usize);
    let alpha = |metric| move |sums: &[f64]| Layout { k: table.levels() }.alpha(sums, metric);
    let (nominal, ordinal, interval) =
        (alpha(Metric::Nominal), alpha(Metric::Ordinal), alpha(Metric::Interval));
    let raw = |sums: &[f64]| layout.raw(sums);
    let fleiss = |sums: &[f64]| layout.fleiss(sums);
    let ac1 = |sums: &[f64]| layout.ac1(sums);
    let ac2 = |sums: &[f64]| layout.ac2(sums);
    let chance_corrected: [Statistic<'_>; 6] = [&fleiss, &ac1, &ac2, &nominal, &ordinal, &interval];

    if items == 0 {
        let none = || Err(Undefined::NoOverlap);
        return Agreement {
            raw: none(),
            fleiss: none(),
            ac1: none(),
            ac2: none(),
            alpha_nominal: none(),
            alpha_ordinal: none(),
            alpha_interval: none(),
        };
    }
    let [raw_measured] = measured(&sums, &total, [&raw], items, how);
    let [fleiss, ac1, ac2, alpha_nominal, alpha_ordinal, alpha_interval] =
        measured(&sums, &total, chance_corrected, items, how);
    Agreement { raw: raw_measured, fleiss, ac1, ac2, alpha_nominal, alpha_ordinal, alpha_interval }
}

/// Functions of the sums with their intervals; all are defined or none is.
fn measured<const S: usize>(
    sums: &Sums,
    total: &[f64],
    statistics: [Statistic<'_>; S],
    items: usize,
    how: Resampling,
) -> [Measured; S] {
    let estimates = statistics.map(|statistic| statistic(total));
    if estimates.iter().any(Option::is_none) {
        return estimates.map(|_| Err(Undefined::OneLabel));
    }
    let mut bootstraps = match bootstrap_sums(sums, statistics, how) {
        Ok(all) => all.map(Some),
        Err(_) => std::array::from_fn(|_| None),
    };
    let mut position = 0;
    estimates.map(|estimate| {
        let bootstrap = bootstraps[position].take();
        position += 1;
        let too_few = crate::Error::TooFew { method: "bootstrap", what: "clusters", needed: 2, found: 1 };
        let estimate = estimate.expect("checked above");
        Ok(Figure::new(bootstrap.unwrap_or(Err(too_few)), estimate, items))
    })
}

/// Cohen's kappa of two annotators.
#[derive(Clone, Debug, PartialEq)]
pub struct CohenPair {
    /// The two, the lower number first.
    pub annotators: (usize, usize),
    /// Items that both judged.
    pub items: usize,
    /// Share of them with the same level.
    pub raw: Measured,
    /// Kappa.
    pub kappa: Measured,
    /// Kappa with quadratic weights.
    pub kappa_quadratic: Measured,
}

/// Cohen's kappa of the `pairs_max` pairs of annotators with the most items in common (then the lower numbers first), and
/// how many pairs there are with any.
///
/// # Panics
///
/// As [`agreement`].
pub fn cohen(table: &Table, pairs_max: usize, how: Resampling) -> (Vec<CohenPair>, usize) {
    let k = table.levels();
    let mut tables: HashMap<(u32, u32), Vec<u32>> = HashMap::new();
    for item in 0..table.items() {
        let values = table.item(item);
        for (i, &(a, level_a)) in values.iter().enumerate() {
            for &(b, level_b) in &values[i + 1..] {
                let counts = tables.entry((a, b)).or_insert_with(|| vec![0; k * k]);
                counts[level_a as usize * k + level_b as usize] += 1;
            }
        }
    }
    let found = tables.len();
    let mut pairs: Vec<((u32, u32), Vec<u32>)> = tables.into_iter().collect();
    pairs.sort_by_key(|(pair, counts)| (std::cmp::Reverse(counts.iter().sum::<u32>()), *pair));
    pairs.truncate(pairs_max);
    (pairs.into_iter().map(|(pair, counts)| cohen_pair(pair, &counts, k, how)).collect(), found)
}

fn cohen_pair((a, b): (u32, u32), counts: &[u32], k: usize, how: Resampling) -> CohenPair {
    let mut sums = Sums::new(k * k);
    let mut row = vec![0.0; k * k];
    for (cell, &count) in counts.iter().enumerate() {
        row[cell] = 1.0;
        (0..count).for_each(|_| sums.push(&row));
        row[cell] = 0.0;
    }
    let total = sums.total();
    let items = sums.clusters();
    let raw = |p: &[f64]| Some((0..k).map(|c| p[c * k + c]).sum::<f64>() / p.iter().sum::<f64>());
    let kappa = |p: &[f64]| cohen_kappa(p, k, |a, b| f64::from(a != b));
    let quadratic = |p: &[f64]| cohen_kappa(p, k, |a, b| (a.abs_diff(b) as f64).powi(2));
    let [mut agreed, kappa, kappa_quadratic] =
        measured(&sums, &total, [&raw, &kappa, &quadratic], items, how);
    if kappa.is_err() {
        // Raw agreement is defined where kappa is not.
        [agreed] = measured(&sums, &total, [&raw], items, how);
    }
    CohenPair { annotators: (a as usize, b as usize), items, raw: agreed, kappa, kappa_quadratic }
}

/// `1 - Σ v_kl p_kl / Σ v_kl p_k. p_.l`; `None` if chance leaves nothing to disagree on.
fn cohen_kappa(counts: &[f64], k: usize, apart: impl Fn(usize, usize) -> f64) -> Option<f64> {
    let n: f64 = counts.iter().sum();
    let rows: Vec<f64> = counts.chunks_exact(k).map(|row| row.iter().sum()).collect();
    let columns: Vec<f64> = (0..k).map(|b| (0..k).map(|a| counts[a * k + b]).sum()).collect();
    let (mut observed, mut chance) = (0.0, 0.0);
    for a in 0..k {
        for b in 0..k {
            observed += apart(a, b) * counts[a * k + b] / n;
            chance += apart(a, b) * rows[a] * columns[b] / (n * n);
        }
    }
    (n > 0.5 && chance > 1e-12).then(|| 1.0 - observed / chance)
}

/// How often one annotator was with the majority of the others.
#[derive(Clone, Debug, PartialEq)]
pub struct MajorityAgreement {
    /// Items where the others have one most frequent level and the annotator gave a level.
    pub items: usize,
    /// Of those, where it is the annotator's.
    pub agreed: usize,
    /// The share, with Wilson's interval.
    pub share: Measured,
    /// The items in order and whether the annotator agreed, for a look at drift.
    pub history: Vec<(usize, bool)>,
}

/// Compares each annotator with the most frequent level of the *others* on each item; where the others are split, or there
/// is nobody else, the item says nothing about the annotator.
///
/// # Panics
///
/// If `confidence` is not between 0 and 1.
pub fn with_majority(table: &Table, confidence: f64) -> Vec<MajorityAgreement> {
    let mut histories = vec![Vec::new(); table.annotators()];
    let mut counts = vec![0.0; table.levels()];
    for item in 0..table.items() {
        table.counts(item, &mut counts);
        for &(annotator, level) in table.item(item) {
            counts[level as usize] -= 1.0;
            if let Some(majority) = only_maximum(&counts) {
                histories[annotator as usize].push((item, majority == level as usize));
            }
            counts[level as usize] += 1.0;
        }
    }
    histories
        .into_iter()
        .map(|history| {
            let items = history.len();
            let agreed = history.iter().filter(|(_, agreed)| *agreed).count();
            let share = if items == 0 {
                Err(Undefined::NoOverlap)
            } else {
                let estimate = agreed as f64 / items as f64;
                let (low, high) = wilson_ends(estimate, items as f64, confidence);
                Ok(Figure::of(crate::Estimate { estimate, low, high, n: items }))
            };
            MajorityAgreement { items, agreed, share, history }
        })
        .collect()
}

/// The position of the largest count, if it is above 0 and the only one.
pub(crate) fn only_maximum(counts: &[f64]) -> Option<usize> {
    let most = counts.iter().copied().fold(0.0, f64::max);
    let mut at = counts.iter().enumerate().filter(|&(_, &n)| n == most);
    let (first, rest) = (at.next()?, at.next());
    (most > 0.0 && rest.is_none()).then_some(first.0)
}
