//! What items say about a mean, or about the difference of two: one-sided bounds and p-values, by the method that suits them.
//!
//! | items | method |
//! |---|---|
//! | any, fixed n | Student's interval on errors clustered by prompt (and annotator): `stats::cell_mean`, `cell_difference` |
//! | 0 or 1, fixed n | Clopper-Pearson on `n / deff` values (Korn & Graubard); `deff` is the clustered over the binomial variance |
//! | all equal to `v`, in a range | another value has a share of at most `1 - α^(1/n)`: the mean is that far from `v` at most |
//! | corrected by something uncertain | Student's, with that error added to the spread |
//! | in a range, anytime | betting confidence sequence on each prompt's mean, in the order in which prompts came |
//!
//! The third is the zero-failure bound, for any value: 520 answers without a failure, or a candidate that answers every prompt
//! as its baseline does. The mean that is bet on is the mean over prompts.
//!
//! `alpha` is of one side. The pair of bounds covers with probability `1 - 2 alpha`.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use polity_stats::{
    Alternative, BettingTest, Cell, Error, beta_cdf, cell_difference, cell_mean, clopper_pearson,
    confidence_sequence, normal_quantile, t_cdf, t_quantile, zero_failure_bound,
};
use serde::{Deserialize, Serialize};

use crate::{EvalError, Measure};

/// When the data may be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Once, at a number of prompts that was decided before.
    #[default]
    Fixed,
    /// As often as one likes, while votes come in.
    Anytime,
}

/// Bounds and p-values of one mean.
#[derive(Clone, Debug)]
pub struct Inference {
    estimate: f64,
    /// Prompts.
    n: usize,
    alpha: f64,
    method: Method,
}

#[derive(Clone, Debug)]
enum Method {
    Student {
        se: f64,
        freedom: f64,
    },
    /// A share in `[low, low + width]`, as `successes` of an effective number.
    Exact {
        successes: f64,
        n: f64,
        low: f64,
        width: f64,
    },
    Constant {
        low: f64,
        width: f64,
    },
    Bets {
        values: Vec<f64>,
        low: f64,
        width: f64,
    },
}

impl Inference {
    /// Of a measure's mean.
    pub fn of_mean(measure: &Measure, mode: Mode, alpha: f64) -> Result<Inference, EvalError> {
        let wrap = |source| EvalError::Stats { measure: measure.name.clone(), source };
        let cells = measure.cells();
        match mode {
            Mode::Fixed => fixed(&cells, None, measure.range, measure.correction_se, alpha),
            Mode::Anytime => {
                let means = prompt_means(&cells);
                Inference::anytime(
                    means.into_iter().map(|(_, mean)| mean).collect(),
                    range_of(measure)?,
                    alpha,
                )
            }
        }
        .map_err(wrap)
    }

    /// Of a measure's mean minus another's, on the prompts that both have.
    pub fn of_difference(
        measure: &Measure,
        reference: &Measure,
        mode: Mode,
        alpha: f64,
    ) -> Result<Inference, EvalError> {
        let wrap = |source| EvalError::Stats { measure: measure.name.clone(), source };
        let (ours, theirs) = (measure.cells(), reference.cells());
        let ours_by_prompt: HashMap<&str, f64> = prompt_means(&ours).into_iter().collect();
        let theirs_by_prompt: HashMap<&str, f64> = prompt_means(&theirs).into_iter().collect();
        if mode == Mode::Anytime {
            let [low, high] = range_of(measure)?;
            let means = prompt_means(&ours).into_iter();
            let differences =
                means.filter_map(|(prompt, mean)| theirs_by_prompt.get(prompt).map(|theirs| mean - theirs));
            return Inference::anytime(differences.collect(), [low - high, high - low], alpha).map_err(wrap);
        }
        let (ours, theirs) = (shared(ours, &theirs_by_prompt), shared(theirs, &ours_by_prompt));
        let range = measure.range.map(|[low, high]| [low - high, high - low]);
        // One classifier may have erred on both in the same way; that is not known, so nothing is taken off.
        let correction = measure.correction_se.hypot(reference.correction_se);
        fixed(&ours, Some(&theirs), range, correction, alpha).map_err(wrap)
    }

    /// Of the mean of one value for each prompt, looked at once.
    pub fn of_values(
        values: Vec<f64>,
        range: Option<[f64; 2]>,
        mode: Mode,
        alpha: f64,
    ) -> Result<Inference, Error> {
        match (mode, range) {
            (Mode::Anytime, Some(range)) => Inference::anytime(values, range, alpha),
            _ => {
                let cells: Vec<Cell<usize>> = values
                    .iter()
                    .enumerate()
                    .map(|(prompt, &sum)| Cell { prompt, annotator: None, sum, n: 1.0 })
                    .collect();
                fixed(&cells, None, range, 0.0, alpha)
            }
        }
    }

    fn anytime(values: Vec<f64>, [low, high]: [f64; 2], alpha: f64) -> Result<Inference, Error> {
        if values.is_empty() {
            return Err(Error::TooFew { method: "betting", what: "prompts", needed: 1, found: 0 });
        }
        let (n, width) = (values.len(), high - low);
        let estimate = values.iter().sum::<f64>() / n as f64;
        let values = values.into_iter().map(|x| ((x - low) / width).clamp(0.0, 1.0)).collect();
        Ok(Inference { estimate, n, alpha, method: Method::Bets { values, low, width } })
    }

    /// The estimate.
    pub fn estimate(&self) -> f64 {
        self.estimate
    }

    /// Prompts behind it.
    pub fn prompts(&self) -> usize {
        self.n
    }

    /// Lower and upper bound, each at level `alpha`.
    pub fn bounds(&self) -> (f64, f64) {
        let both = 1.0 - 2.0 * self.alpha;
        match &self.method {
            Method::Student { se, freedom } => {
                let reach = t_quantile(1.0 - self.alpha, *freedom) * se;
                (self.estimate - reach, self.estimate + reach)
            }
            Method::Exact { successes, n, low, width } => {
                let share = clopper_pearson(*successes, *n, both).expect("there is a value");
                (low + width * share.low, low + width * share.high)
            }
            Method::Constant { low, width } => {
                let other = zero_failure_bound(self.n as u64, 1.0 - self.alpha);
                let (down, up) = (self.estimate - low, low + width - self.estimate);
                (self.estimate - other * down, self.estimate + other * up)
            }
            Method::Bets { values, low, width } => {
                let sequence = confidence_sequence(values, both).expect("values are in [0, 1]");
                (low + width * sequence.low, low + width * sequence.high)
            }
        }
    }

    /// Probability of data like these, or further above, if the mean is at most `x`.
    pub fn p_above(&self, x: f64) -> f64 {
        match &self.method {
            Method::Student { se, freedom } => t_cdf((x - self.estimate) / se, *freedom),
            &Method::Exact { successes, n, low, width } => {
                let rate = ((x - low) / width).clamp(0.0, 1.0);
                if successes > 0.0 { beta_cdf(rate, successes, n - successes + 1.0) } else { 1.0 }
            }
            Method::Constant { low, .. } => self.p_constant(self.estimate - x, self.estimate - low),
            Method::Bets { values, low, width } => self.p_bets(values, (x - low) / width, Alternative::Above),
        }
    }

    /// The same for a mean of at least `x` and data further below.
    pub fn p_below(&self, x: f64) -> f64 {
        match &self.method {
            Method::Student { se, freedom } => t_cdf((self.estimate - x) / se, *freedom),
            &Method::Exact { successes, n, low, width } => {
                let rate = ((x - low) / width).clamp(0.0, 1.0);
                if successes < n { 1.0 - beta_cdf(rate, successes + 1.0, n - successes) } else { 1.0 }
            }
            Method::Constant { low, width } => {
                self.p_constant(x - self.estimate, low + width - self.estimate)
            }
            Method::Bets { values, low, width } => self.p_bets(values, (x - low) / width, Alternative::Below),
        }
    }

    /// All `n` values equal, although others, `room` away at most, have so large a share that the mean is `gap` away.
    fn p_constant(&self, gap: f64, room: f64) -> f64 {
        if gap <= 0.0 { 1.0 } else { (1.0 - gap / room).max(0.0).powf(self.n as f64) }
    }

    fn p_bets(&self, values: &[f64], m: f64, alternative: Alternative) -> f64 {
        let inside = (0.0..=1.0).contains(&m);
        if !inside {
            let impossible = (m < 0.0) == (alternative == Alternative::Above);
            return if impossible { 0.0 } else { 1.0 };
        }
        let mut test = BettingTest::new(m, alternative, self.alpha);
        values.iter().for_each(|&x| test.push(x));
        test.p_anytime()
    }

    /// Standard error, with a count of half a value added where all are equal.
    pub fn se(&self) -> f64 {
        let binomial = |share: f64, n: f64, width: f64| {
            let share = (share * n + 0.5) / (n + 1.0);
            width * (share * (1.0 - share) / n).sqrt()
        };
        match &self.method {
            Method::Student { se, .. } => *se,
            Method::Exact { successes, n, width, .. } => binomial(successes / n, *n, *width),
            Method::Constant { low, width } => binomial((self.estimate - low) / width, self.n as f64, *width),
            Method::Bets { values, width, .. } => {
                let n = values.len() as f64;
                let mean = values.iter().sum::<f64>() / n;
                let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                width * ((squares + 0.25) / n / n).sqrt()
            }
        }
    }

    /// Prompts after which a bound would be as near as `distance` with probability `power`, if the estimate is right.
    pub fn prompts_for(&self, distance: f64, power: f64) -> Option<u64> {
        if distance <= 0.0 {
            return None;
        }
        let (low, high) = self.bounds();
        let reach = (high - self.estimate).max(self.estimate - low);
        let z = normal_quantile(power);
        let room = reach / zero_failure_bound(self.n as u64, 1.0 - self.alpha);
        let bound_after = |n: u64| match &self.method {
            // All values being equal again is what is expected.
            Method::Constant { .. } => room * zero_failure_bound(n, 1.0 - self.alpha),
            // An anytime-valid bound is wider by about √ln n.
            Method::Bets { .. } => {
                let slow = ((1.0 + n as f64).ln() / (1.0 + self.n as f64).ln()).sqrt();
                (reach * slow + z * self.se()) * (self.n as f64 / n as f64).sqrt()
            }
            _ => (reach + z * self.se()) * (self.n as f64 / n as f64).sqrt(),
        };
        let (mut low, mut high) = (self.n as u64, self.n as u64);
        while bound_after(high) > distance {
            if high >= PROMPTS_MAX {
                return None;
            }
            (low, high) = (high, 2 * high);
        }
        while low + 1 < high {
            let middle = low.midpoint(high);
            *if bound_after(middle) > distance { &mut low } else { &mut high } = middle;
        }
        Some(high)
    }
}

/// Nobody asks for more.
const PROMPTS_MAX: u64 = 10_000_000;

/// By cells, looked at once. `correction_se` is the standard error of what the values were corrected by.
fn fixed<K: Eq + Hash + Copy>(
    cells: &[Cell<K>],
    against: Option<&[Cell<K>]>,
    range: Option<[f64; 2]>,
    correction_se: f64,
    alpha: f64,
) -> Result<Inference, Error> {
    let both = 1.0 - 2.0 * alpha;
    let got = match against {
        None => cell_mean(cells, both)?,
        Some(against) => cell_difference(cells, against, both)?,
    };
    let prompts = cells.iter().map(|cell| cell.prompt).collect::<HashSet<_>>().len();
    let (estimate, se, clusters) = (got.mean.estimate, got.se, got.clusters as f64);
    let method = match range {
        _ if correction_se > 0.0 => Method::Student { se: se.hypot(correction_se), freedom: clusters - 1.0 },
        // Sums of equal values differ by rounding.
        Some([low, high]) if se < 1e-12 * (high - low) => Method::Constant { low, width: high - low },
        Some([low, high]) if against.is_none() && all_at_the_ends(cells, low, high) => {
            let (share, n) = ((estimate - low) / (high - low), got.mean.n as f64);
            let variance = (se / (high - low)).powi(2) * (clusters - 1.0) / clusters;
            let effect = (variance * n / (share * (1.0 - share))).max(1.0);
            Method::Exact { successes: share * n / effect, n: n / effect, low, width: high - low }
        }
        _ if se > 0.0 => Method::Student { se, freedom: clusters - 1.0 },
        _ => {
            return Err(Error::TooFew {
                method: "clustered errors",
                what: "different values",
                needed: 2,
                found: 1,
            });
        }
    };
    Ok(Inference { estimate, n: prompts, alpha, method })
}

/// Whether every value is the least or the largest, as far as sums show it.
fn all_at_the_ends<K>(cells: &[Cell<K>], low: f64, high: f64) -> bool {
    cells.iter().all(|cell| {
        let at_high = (cell.sum - low * cell.n) / (high - low);
        (at_high - at_high.round()).abs() < 1e-9
    })
}

/// The cells on prompts that the other side has too.
fn shared<'k>(cells: Vec<Cell<&'k str>>, other: &HashMap<&str, f64>) -> Vec<Cell<&'k str>> {
    cells.into_iter().filter(|cell| other.contains_key(cell.prompt)).collect()
}

fn range_of(measure: &Measure) -> Result<[f64; 2], EvalError> {
    measure.range.ok_or_else(|| EvalError::Measures {
        file: measure.name.clone().into(),
        message:
            "has no `range`: only means of bounded values can be looked at at any time; use mode = \"fixed\""
                .into(),
    })
}

/// Means by prompt, in the order in which prompts first appear.
fn prompt_means<'k>(cells: &[Cell<&'k str>]) -> Vec<(&'k str, f64)> {
    let mut place: HashMap<&str, usize> = HashMap::new();
    let mut sums: Vec<(&str, f64, f64)> = Vec::new();
    for cell in cells {
        let at = *place.entry(cell.prompt).or_insert(sums.len());
        if at == sums.len() {
            sums.push((cell.prompt, 0.0, 0.0));
        }
        sums[at].1 += cell.sum;
        sums[at].2 += cell.n;
    }
    sums.into_iter().map(|(prompt, sum, n)| (prompt, sum / n)).collect()
}
