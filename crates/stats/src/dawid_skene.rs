//! Dawid and Skene's model: each item has one true level, each annotator a confusion matrix.
//!
//! With `n^w_il = 1` if annotator `w` gave item `i` level `l`, prior `π_k`, confusion `π^w_kl = P(w says l | true k)`:
//!
//! ```text
//! start   T_ik = share of the item's values that are k
//! M       π_k  = Σ_i T_ik / I,     π^w_kl = (s + Σ_i T_ik n^w_il) / (K s + Σ_i T_ik Σ_l n^w_il)
//! E       T_ik ∝ π_k Π_w Π_l (π^w_kl)^{n^w_il}
//! ```
//!
//! The smoothing `s` is the mode under a Dirichlet(1 + s) prior on each row, so EM climbs
//! `ln L + s Σ_wkl ln π^w_kl`, which never falls (a test). It stops when a step gains less than the tolerance per value.
//! Items without values have no posterior and keep the prior.
//!
//! Levels can be swapped without changing the likelihood; starting from the majority picks the labelling in which annotators
//! are more right than wrong. A maximum may be local.
//!
//! Source: Dawid & Skene 1979, Applied Statistics 28.
//!
//! Not here: comparisons whose two sides may pull an annotator (`crowd_pairs.rs`).

use crate::agreement::Table;
use crate::{Error, check_count};

/// Settings of EM.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DawidSkeneConfig {
    /// `s`, at least 0. With 0 an annotator who never said a level has next to no probability of it.
    pub smoothing: f64,
    /// Gain of the objective, per value, at which to stop.
    pub tolerance: f64,
    /// Steps after which to stop; not an error, but [`DawidSkene::converged`] is false.
    pub iterations_max: usize,
}

impl DawidSkeneConfig {
    /// A little smoothing, at most 500 steps.
    pub fn usual() -> Self {
        Self { smoothing: 0.01, tolerance: 1e-9, iterations_max: 500 }
    }
}

/// Least expected count of a level, so that nothing is impossible and two annotators cannot contradict each other for good;
/// crowd-kit's.
const FLOOR: f64 = 1e-10;

/// A fitted model.
#[derive(Clone, Debug, PartialEq)]
pub struct DawidSkene {
    levels: usize,
    /// `T_ik`, item by item.
    posterior: Vec<f64>,
    /// `π_k`.
    pub prior: Vec<f64>,
    /// `π^w_kl`, annotator by annotator, then by true level.
    confusion: Vec<f64>,
    /// The objective after each step.
    pub objective: Vec<f64>,
    /// Whether the last step gained less than the tolerance.
    pub converged: bool,
}

impl DawidSkene {
    /// Fits a table.
    ///
    /// # Panics
    ///
    /// If the smoothing is negative.
    pub fn fit(table: &Table, config: DawidSkeneConfig) -> Result<DawidSkene, Error> {
        assert!(config.smoothing >= 0.0, "dawid_skene: smoothing = {}", config.smoothing);
        check_count("dawid_skene", "values", table.values(), 1)?;
        let k = table.levels();
        let mut model = DawidSkene {
            levels: k,
            posterior: vec![0.0; table.items() * k],
            prior: vec![0.0; k],
            confusion: vec![0.0; table.annotators() * k * k],
            objective: Vec::new(),
            converged: false,
        };
        for (item, shares) in model.posterior.chunks_exact_mut(k).enumerate() {
            table.counts(item, shares);
            let n = table.item(item).len().max(1) as f64;
            shares.iter_mut().for_each(|share| *share /= n);
        }
        let mut before = f64::NEG_INFINITY;
        for _ in 0..config.iterations_max {
            model.maximise(table, config.smoothing);
            let objective = model.expect(table, config.smoothing);
            model.objective.push(objective);
            if objective - before < config.tolerance * table.values() as f64 {
                model.converged = true;
                break;
            }
            before = objective;
        }
        Ok(model)
    }

    /// Probability of each level of an item.
    ///
    /// # Panics
    ///
    /// If there is no such item.
    pub fn posterior(&self, item: usize) -> &[f64] {
        &self.posterior[item * self.levels..(item + 1) * self.levels]
    }

    /// `P(annotator says l | true k)`, true levels row by row.
    ///
    /// # Panics
    ///
    /// If there is no such annotator.
    pub fn confusion(&self, annotator: usize) -> &[f64] {
        let square = self.levels * self.levels;
        &self.confusion[annotator * square..(annotator + 1) * square]
    }

    /// Probability that the annotator says the true level, `Σ_k π_k π^w_kk`.
    pub fn accuracy(&self, annotator: usize) -> f64 {
        let confusion = self.confusion(annotator);
        (0..self.levels).map(|k| self.prior[k] * confusion[k * self.levels + k]).sum()
    }

    fn maximise(&mut self, table: &Table, smoothing: f64) {
        let k = self.levels;
        self.prior.fill(0.0);
        self.confusion.fill(smoothing);
        let mut items = 0.0;
        for item in 0..table.items() {
            let posterior = &self.posterior[item * k..(item + 1) * k];
            if table.item(item).is_empty() {
                continue;
            }
            items += 1.0;
            (0..k).for_each(|t| self.prior[t] += posterior[t]);
            for &(annotator, level) in table.item(item) {
                let at = annotator as usize * k * k + level as usize;
                (0..k).for_each(|t| self.confusion[at + t * k] += posterior[t]);
            }
        }
        self.prior.iter_mut().for_each(|p| *p /= items);
        for row in self.confusion.chunks_exact_mut(k) {
            row.iter_mut().for_each(|count| *count = count.max(FLOOR));
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|p| *p /= sum);
        }
    }

    /// Fills in the posterior and returns the objective.
    fn expect(&mut self, table: &Table, smoothing: f64) -> f64 {
        let k = self.levels;
        let ln_prior: Vec<f64> = self.prior.iter().map(|p| p.ln()).collect();
        let ln_confusion: Vec<f64> = self.confusion.iter().map(|p| p.ln()).collect();
        let mut objective = if smoothing > 0.0 { smoothing * ln_confusion.iter().sum::<f64>() } else { 0.0 };
        for item in 0..table.items() {
            let posterior = &mut self.posterior[item * k..(item + 1) * k];
            posterior.copy_from_slice(&ln_prior);
            for &(annotator, level) in table.item(item) {
                let at = annotator as usize * k * k + level as usize;
                (0..k).for_each(|t| posterior[t] += ln_confusion[at + t * k]);
            }
            let most = posterior.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            posterior.iter_mut().for_each(|x| *x = (*x - most).exp());
            let sum: f64 = posterior.iter().sum();
            posterior.iter_mut().for_each(|x| *x /= sum);
            if !table.item(item).is_empty() {
                objective += most + sum.ln();
            }
        }
        objective
    }
}
