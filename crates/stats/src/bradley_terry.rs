//! Bradley-Terry: one strength for each response (or model) from comparisons of pairs, with ties and honest intervals.
//!
//! With `Δ = θ_left - θ_right + β` and `β` the pull of the left side (0 unless asked for):
//!
//! ```text
//! half        P(left) = σ(Δ); a tie is half a win for each
//! Rao-Kupper  P(left) = σ(Δ - η),   P(right) = σ(-Δ - η),   P(tie) = 1 - both,   η > 0
//! Davidson    P(left) = e^{Δ/2} / Z,  P(right) = e^{-Δ/2} / Z,  P(tie) = e^{η} / Z,   Z = their sum
//!
//! θ, β, η  maximise  Σ_c w_c ln P(outcome of c) - ridge/2 Σ θ²,    Σ θ = 0
//! ```
//!
//! In each the objective is concave, so Newton's method finds the maximum; that the gradient is 0 there is checked. Without
//! a ridge a maximum exists only if the *win graph* (an edge from each winner to each loser, both ways for a tie) is strongly
//! connected; otherwise some responses would be infinitely better than others, and [`Error::Disconnected`] names them.
//!
//! ```text
//! model covariance     H⁻¹                                          right if all comparisons are independent
//! clustered            H⁻¹ G H⁻¹,  G = C/(C-1) Σ_c g_c g_cᵀ          g_c the gradient of all comparisons of a cluster
//! two-way              G = G_prompt + G_annotator - G_(prompt, annotator)
//! ```
//!
//! Votes on one prompt share its difficulty and votes of one annotator share their taste, so the two-way form is the one to
//! report. A difference of three matrices may leave a negative variance; the larger of the two one-way variances stands then.
//!
//! Source: Bradley & Terry 1952, Biometrika 39; Rao & Kupper 1967, JASA 62; Davidson 1970, JASA 65; Ford 1957, Amer. Math.
//! Monthly 64 (existence); Cameron, Gelbach & Miller 2011, J. Bus. Econ. Stat. 29 (two-way clustering).
//!
//! Not here: annotators of different reliability (`crowd_bt.rs`), covariates such as length.

use serde::Serialize;

use crate::linalg::{Cholesky, ROUNDING, product};
use crate::special::normal_quantile;
use crate::{Error, check_confidence, check_count};

/// What came of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The left one won.
    Left,
    /// The right one won.
    Right,
    /// Neither.
    Tie,
}

/// A comparison of two of the items `0..n`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// The item on the left.
    pub left: usize,
    /// The item on the right.
    pub right: usize,
    /// What came of it.
    pub outcome: Outcome,
    /// How much it counts, 1 usually.
    pub weight: f64,
}

/// What a tie says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// Half a win for each.
    Half,
    /// Rao and Kupper's threshold.
    RaoKupper,
    /// Davidson's weight.
    Davidson,
}

/// Settings of a fit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BradleyTerryConfig {
    /// What a tie says.
    pub ties: Ties,
    /// Whether the left side has a pull of its own.
    pub side: bool,
    /// Penalty on the strengths; 0 needs a strongly connected win graph.
    pub ridge: f64,
    /// Largest element of the gradient, as a share of the total weight, at which to stop.
    pub gradient_tolerance: f64,
    /// Newton steps after which to give up.
    pub iterations_max: usize,
}

impl BradleyTerryConfig {
    /// Maximum likelihood: no ridge, no side, converged to 1e-10.
    pub fn plain(ties: Ties) -> Self {
        Self { ties, side: false, ridge: 0.0, gradient_tolerance: 1e-10, iterations_max: 100 }
    }
}

/// A fitted model. Parameters are the strengths, then the side's pull, then the tie parameter, as far as they are there.
#[derive(Clone, Debug, PartialEq)]
pub struct BradleyTerry {
    /// Strengths in natural logarithms of odds, with mean 0.
    pub strength: Vec<f64>,
    /// `β`.
    pub side: Option<f64>,
    /// `η`.
    pub tie: Option<f64>,
    /// Log-likelihood, without the penalty.
    pub log_likelihood: f64,
    /// Newton steps made.
    pub iterations: usize,
    /// Inverse of the observed information.
    pub covariance: Vec<f64>,
    ties: Ties,
}

/// Newton's matrix beyond which dense algebra is the wrong tool.
const ITEMS_MAX: usize = 4000;

impl BradleyTerry {
    /// Fits `items` strengths.
    ///
    /// # Panics
    ///
    /// If a match names an item beyond `items` or one item twice, or a weight or the ridge is negative or not finite.
    pub fn fit(items: usize, matches: &[Match], config: BradleyTerryConfig) -> Result<BradleyTerry, Error> {
        check_count("bradley_terry", "items", items, 2)?;
        check_count("bradley_terry", "comparisons", matches.len(), 1)?;
        assert!(config.ridge >= 0.0 && config.ridge.is_finite(), "bradley_terry: ridge = {}", config.ridge);
        for m in matches {
            assert!(
                m.left < items && m.right < items && m.left != m.right,
                "bradley_terry: {m:?} of {items} items"
            );
            assert!(m.weight >= 0.0 && m.weight.is_finite(), "bradley_terry: weight {}", m.weight);
        }
        if items > ITEMS_MAX {
            return Err(Error::TooMany {
                method: "bradley_terry",
                what: "items",
                limit: ITEMS_MAX,
                found: items,
            });
        }
        if config.ridge == 0.0 {
            check_connected(items, matches)?;
        }
        let ties = matches.iter().filter(|m| m.outcome == Outcome::Tie && m.weight > 0.0).count();
        if config.ties != Ties::Half {
            check_count("bradley_terry with a tie parameter", "ties", ties, 1)?;
            let decided = matches.iter().filter(|m| m.outcome != Outcome::Tie && m.weight > 0.0).count();
            check_count("bradley_terry with a tie parameter", "comparisons without a tie", decided, 1)?;
        }
        Problem { items, matches, config }.maximise()
    }

    /// Covariance of all parameters, clustered by `cluster[m]` of each match.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn clustered<K: Eq + std::hash::Hash>(
        &self,
        matches: &[Match],
        cluster: &[K],
    ) -> Result<Vec<f64>, Error> {
        let meat = self.meat(matches, cluster)?;
        Ok(self.sandwich(&meat))
    }

    /// Covariance of all parameters, clustered by prompt and by annotator.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn clustered_two_way<A: Eq + std::hash::Hash, B: Eq + std::hash::Hash>(
        &self,
        matches: &[Match],
        prompt: &[A],
        annotator: &[B],
    ) -> Result<Vec<f64>, Error> {
        let both: Vec<(&A, &B)> = prompt.iter().zip(annotator).collect();
        let (one, two) = (self.meat(matches, prompt)?, self.meat(matches, annotator)?);
        let shared = self.meat(matches, &both)?;
        let sum: Vec<f64> = (0..one.len()).map(|i| one[i] + two[i] - shared[i]).collect();
        let n = self.parameters();
        let mut covariance = self.sandwich(&sum);
        if (0..n).any(|i| covariance[i * n + i] < 0.0) {
            let (one, two) = (self.sandwich(&one), self.sandwich(&two));
            let trace = |c: &[f64]| (0..n).map(|i| c[i * n + i]).sum::<f64>();
            covariance = if trace(&one) >= trace(&two) { one } else { two };
        }
        Ok(covariance)
    }

    /// Standard errors of the strengths under a covariance of all parameters. They are those of the distance from the mean
    /// strength.
    pub fn strength_se(&self, covariance: &[f64]) -> Vec<f64> {
        let n = self.parameters();
        (0..self.strength.len()).map(|i| covariance[i * n + i].max(0.0).sqrt()).collect()
    }

    /// `θ_a - θ_b` and its standard error.
    pub fn difference(&self, a: usize, b: usize, covariance: &[f64]) -> (f64, f64) {
        let n = self.parameters();
        let c = |i: usize, j: usize| covariance[i * n + j];
        (self.strength[a] - self.strength[b], (c(a, a) + c(b, b) - 2.0 * c(a, b)).max(0.0).sqrt())
    }

    /// Probability that `left` wins, ties and loses against `right`, shown on these sides.
    pub fn probabilities(&self, left: usize, right: usize) -> [f64; 3] {
        let delta = self.strength[left] - self.strength[right] + self.side.unwrap_or(0.0);
        let of = |outcome| log_probability(self.ties, outcome, delta, self.tie.unwrap_or(0.0)).value.exp();
        match self.ties {
            Ties::Half => [sigmoid(delta), 0.0, sigmoid(-delta)],
            _ => [of(Outcome::Left), of(Outcome::Tie), of(Outcome::Right)],
        }
    }

    fn parameters(&self) -> usize {
        self.strength.len() + usize::from(self.side.is_some()) + usize::from(self.tie.is_some())
    }

    fn sandwich(&self, meat: &[f64]) -> Vec<f64> {
        let n = self.parameters();
        product(&product(&self.covariance, meat, n), &self.covariance, n)
    }

    /// `C/(C-1) Σ_c g_c g_cᵀ`.
    fn meat<K: Eq + std::hash::Hash>(&self, matches: &[Match], cluster: &[K]) -> Result<Vec<f64>, Error> {
        let members = crate::interval::members_by_cluster(cluster, matches.len());
        check_count("bradley_terry", "clusters", members.len(), 2)?;
        let n = self.parameters();
        let mut meat = vec![0.0; n * n];
        let mut gradient = vec![0.0; n];
        let mut touched: Vec<usize> = Vec::new();
        for members in &members {
            for m in members.iter().map(|&i| &matches[i]) {
                let delta = self.strength[m.left] - self.strength[m.right] + self.side.unwrap_or(0.0);
                let slope = log_probability(self.ties, m.outcome, delta, self.tie.unwrap_or(0.0));
                let places = Places::of(m, self.strength.len(), self.side.is_some(), self.tie.is_some());
                places.each(|place, sign, is_tie| {
                    gradient[place] += m.weight * sign * if is_tie { slope.d_tie } else { slope.d_delta };
                    touched.push(place);
                });
            }
            touched.sort_unstable();
            touched.dedup();
            for &i in &touched {
                touched.iter().for_each(|&j| meat[i * n + j] += gradient[i] * gradient[j]);
            }
            touched.drain(..).for_each(|i| gradient[i] = 0.0);
        }
        let c = members.len() as f64;
        meat.iter_mut().for_each(|x| *x *= c / (c - 1.0));
        Ok(meat)
    }
}

/// A strength on Elo's scale, where 400 points are a factor of ten in the odds: `400 / ln 10 * θ + 1000`.
pub fn elo(strength: f64) -> f64 {
    ELO_PER_NAT * strength + 1000.0
}

/// Elo points of one natural logarithm of odds.
pub const ELO_PER_NAT: f64 = 400.0 / std::f64::consts::LN_10;

/// `estimate ± z se`.
///
/// # Panics
///
/// If `confidence` is not between 0 and 1.
pub fn normal_interval(estimate: f64, se: f64, confidence: f64) -> (f64, f64) {
    check_confidence(confidence);
    let reach = normal_quantile(0.5 + 0.5 * confidence) * se;
    (estimate - reach, estimate + reach)
}

/// Where a match's parameters stand.
struct Places {
    left: usize,
    right: usize,
    side: Option<usize>,
    tie: Option<usize>,
}

impl Places {
    fn of(m: &Match, items: usize, side: bool, tie: bool) -> Places {
        Places {
            left: m.left,
            right: m.right,
            side: side.then_some(items),
            tie: tie.then_some(items + usize::from(side)),
        }
    }

    /// Calls with the parameter's place, the sign of its share in `Δ`, and whether it is the tie parameter.
    fn each(&self, mut call: impl FnMut(usize, f64, bool)) {
        call(self.left, 1.0, false);
        call(self.right, -1.0, false);
        self.side.into_iter().for_each(|place| call(place, 1.0, false));
        self.tie.into_iter().for_each(|place| call(place, 1.0, true));
    }
}

/// `ln P` and its derivatives by `Δ` and `η`.
struct LogProbability {
    value: f64,
    d_delta: f64,
    d_tie: f64,
    dd_delta: f64,
    dd_tie: f64,
    dd_both: f64,
}

fn log_probability(ties: Ties, outcome: Outcome, delta: f64, eta: f64) -> LogProbability {
    // The right side's win is the left side's with Δ mirrored.
    if outcome == Outcome::Right {
        let p = log_probability(ties, Outcome::Left, -delta, eta);
        return LogProbability { d_delta: -p.d_delta, dd_both: -p.dd_both, ..p };
    }
    match (ties, outcome) {
        (Ties::Half, Outcome::Tie) => {
            let s = sigmoid(delta);
            LogProbability {
                value: 0.5 * (ln_sigmoid(delta) + ln_sigmoid(-delta)),
                d_delta: 0.5 - s,
                d_tie: 0.0,
                dd_delta: -s * (1.0 - s),
                dd_tie: 0.0,
                dd_both: 0.0,
            }
        }
        (Ties::Half, _) => {
            let s = sigmoid(delta);
            LogProbability {
                value: ln_sigmoid(delta),
                d_delta: 1.0 - s,
                d_tie: 0.0,
                dd_delta: -s * (1.0 - s),
                dd_tie: 0.0,
                dd_both: 0.0,
            }
        }
        (Ties::RaoKupper, Outcome::Tie) => {
            // P = σ(Δ + η) - σ(Δ - η) = σ(Δ + η) σ(η - Δ) (1 - e^{-2η}).
            let (up, down) = (sigmoid(delta + eta), sigmoid(eta - delta));
            let (bend_up, bend_down) = (up * (1.0 - up), down * (1.0 - down));
            let gap = -libm::expm1(-2.0 * eta);
            let value = if eta > 0.0 {
                ln_sigmoid(delta + eta) + ln_sigmoid(eta - delta) + gap.ln()
            } else {
                f64::NEG_INFINITY
            };
            let decay = (-2.0 * eta).exp();
            LogProbability {
                value,
                d_delta: (1.0 - up) - (1.0 - down),
                d_tie: (1.0 - up) + (1.0 - down) + 2.0 * decay / gap,
                dd_delta: -bend_up - bend_down,
                dd_tie: -bend_up - bend_down - 4.0 * decay / (gap * gap),
                dd_both: -bend_up + bend_down,
            }
        }
        (Ties::RaoKupper, _) => {
            let s = sigmoid(delta - eta);
            let bend = s * (1.0 - s);
            LogProbability {
                value: ln_sigmoid(delta - eta),
                d_delta: 1.0 - s,
                d_tie: s - 1.0,
                dd_delta: -bend,
                dd_tie: -bend,
                dd_both: bend,
            }
        }
        (Ties::Davidson, _) => {
            // A softmax over (Δ/2, -Δ/2, η).
            let most = (0.5 * delta.abs()).max(eta);
            let [left, right, tie] = [0.5 * delta, -0.5 * delta, eta].map(|x| (x - most).exp());
            let sum = left + right + tie;
            let ln_z = most + sum.ln();
            let (p_left, p_right, p_tie) = (left / sum, right / sum, tie / sum);
            let pull = 0.5 * (p_left - p_right);
            let is_tie = outcome == Outcome::Tie;
            LogProbability {
                value: if is_tie { eta } else { 0.5 * delta } - ln_z,
                d_delta: if is_tie { 0.0 } else { 0.5 } - pull,
                d_tie: f64::from(is_tie) - p_tie,
                dd_delta: -(0.25 * (p_left + p_right) - pull * pull),
                dd_tie: -p_tie * (1.0 - p_tie),
                dd_both: pull * p_tie,
            }
        }
    }
}

struct Problem<'a> {
    items: usize,
    matches: &'a [Match],
    config: BradleyTerryConfig,
}

impl Problem<'_> {
    fn has_tie(&self) -> bool {
        self.config.ties != Ties::Half
    }

    fn parameters(&self) -> usize {
        self.items + usize::from(self.config.side) + usize::from(self.has_tie())
    }

    fn split(&self, x: &[f64]) -> (f64, f64) {
        let side = if self.config.side { x[self.items] } else { 0.0 };
        let tie = if self.has_tie() { x[self.parameters() - 1] } else { 0.0 };
        (side, tie)
    }

    fn log_likelihood(&self, x: &[f64]) -> f64 {
        let (side, tie) = self.split(x);
        let of = |m: &Match| {
            let delta = x[m.left] - x[m.right] + side;
            m.weight * log_probability(self.config.ties, m.outcome, delta, tie).value
        };
        self.matches.iter().filter(|m| m.weight > 0.0).map(of).sum()
    }

    fn objective(&self, x: &[f64]) -> f64 {
        let square: f64 = x[..self.items].iter().map(|t| t * t).sum();
        self.log_likelihood(x) - 0.5 * self.config.ridge * square
    }

    /// Gradient, and the observed information with the mean of the strengths pinned.
    fn derivatives(&self, x: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n = self.parameters();
        let (side, tie) = self.split(x);
        let mut gradient = vec![0.0; n];
        let mut information = vec![0.0; n * n];
        for m in self.matches {
            let p = log_probability(self.config.ties, m.outcome, x[m.left] - x[m.right] + side, tie);
            let places = Places::of(m, self.items, self.config.side, self.has_tie());
            places.each(|i, sign_i, tie_i| {
                gradient[i] += m.weight * sign_i * if tie_i { p.d_tie } else { p.d_delta };
                places.each(|j, sign_j, tie_j| {
                    let bend = match (tie_i, tie_j) {
                        (false, false) => p.dd_delta,
                        (true, true) => p.dd_tie,
                        _ => p.dd_both,
                    };
                    information[i * n + j] -= m.weight * sign_i * sign_j * bend;
                });
            });
        }
        for i in 0..self.items {
            gradient[i] -= self.config.ridge * x[i];
            information[i * n + i] += self.config.ridge;
        }
        (gradient, information)
    }

    fn maximise(&self) -> Result<BradleyTerry, Error> {
        let n = self.parameters();
        let total: f64 = self.matches.iter().map(|m| m.weight).sum();
        let tolerance = self.config.gradient_tolerance * total.max(1.0);
        let mut x = vec![0.0; n];
        if self.has_tie() {
            x[n - 1] = if self.config.ties == Ties::RaoKupper { 0.5 } else { 0.0 };
        }
        let mut objective = self.objective(&x);
        for iterations in 0.. {
            let (gradient, information) = self.derivatives(&x);
            let steepest = gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
            let stuck =
                Error::NotConverged { method: "bradley_terry", gradient: steepest, iterations, tolerance };
            let factor = Cholesky::new(&self.pinned(&information), n).ok_or_else(|| {
                // The graph is connected, so at the start nothing but the side can be without information of its own.
                if iterations == 0 && self.config.side { Error::SideConfounded } else { stuck.clone() }
            })?;
            if steepest <= tolerance {
                let strength = x[..self.items].to_vec();
                return Ok(BradleyTerry {
                    strength,
                    side: self.config.side.then(|| x[self.items]),
                    tie: self.has_tie().then(|| x[n - 1]),
                    log_likelihood: self.log_likelihood(&x),
                    iterations,
                    covariance: self.unpinned(factor.inverse()),
                    ties: self.config.ties,
                });
            }
            if iterations == self.config.iterations_max {
                return Err(stuck);
            }
            let step = factor.solve(&gradient);
            let slope: f64 = step.iter().zip(&gradient).map(|(s, g)| s * g).sum();
            // A rise that is lost in the rounding of the objective is not looked for.
            let rounding = ROUNDING * objective.abs();
            let least = if slope < rounding { f64::NEG_INFINITY } else { objective - rounding };
            let mut scale = 1.0;
            loop {
                let mut trial: Vec<f64> = x.iter().zip(&step).map(|(x, s)| x + scale * s).collect();
                // Rounding must not add up along the direction that the data do not see.
                let mean = trial[..self.items].iter().sum::<f64>() / self.items as f64;
                trial[..self.items].iter_mut().for_each(|t| *t -= mean);
                let trial_objective = self.objective(&trial);
                if trial_objective >= least + 1e-4 * scale * slope {
                    (x, objective) = (trial, trial_objective);
                    break;
                }
                scale *= 0.5;
                if scale < 1e-12 {
                    return Err(stuck);
                }
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Adds `s 11ᵀ` over the strengths: their common level has no information, and a step along it none either.
    fn pinned(&self, information: &[f64]) -> Vec<f64> {
        let n = self.parameters();
        let scale = self.pin(information);
        let mut pinned = information.to_vec();
        for i in 0..self.items {
            (0..self.items).for_each(|j| pinned[i * n + j] += scale);
        }
        pinned
    }

    fn pin(&self, information: &[f64]) -> f64 {
        let n = self.parameters();
        (0..self.items).map(|i| information[i * n + i]).sum::<f64>() / (self.items * self.items) as f64
    }

    /// Projects the inverse on strengths with mean 0, which removes what the pin put in.
    fn unpinned(&self, mut inverse: Vec<f64>) -> Vec<f64> {
        let (n, k) = (self.parameters(), self.items);
        for row in inverse.chunks_exact_mut(n) {
            let mean = row[..k].iter().sum::<f64>() / k as f64;
            row[..k].iter_mut().for_each(|x| *x -= mean);
        }
        for j in 0..n {
            let mean = (0..k).map(|i| inverse[i * n + j]).sum::<f64>() / k as f64;
            (0..k).for_each(|i| inverse[i * n + j] -= mean);
        }
        inverse
    }
}

/// Fails unless every item has, along wins and ties, beaten every other.
fn check_connected(items: usize, matches: &[Match]) -> Result<(), Error> {
    let mut beats = vec![Vec::new(); items];
    let mut loses_to = vec![Vec::new(); items];
    let mut edge = |winner: usize, loser: usize| {
        beats[winner].push(loser);
        loses_to[loser].push(winner);
    };
    for m in matches.iter().filter(|m| m.weight > 0.0) {
        if m.outcome != Outcome::Right {
            edge(m.left, m.right);
        }
        if m.outcome != Outcome::Left {
            edge(m.right, m.left);
        }
    }
    let reached = |edges: &[Vec<usize>]| {
        let mut seen = vec![false; items];
        let mut open = vec![0];
        seen[0] = true;
        while let Some(i) = open.pop() {
            for &j in &edges[i] {
                if !seen[j] {
                    seen[j] = true;
                    open.push(j);
                }
            }
        }
        seen
    };
    // Those that item 0 has beaten, and those that have beaten item 0. Whoever is missing from the first never lost to
    // the rest; the complement of the second never beat it.
    let (below, above) = (reached(&beats), reached(&loses_to));
    let not = |seen: &[bool]| (0..items).filter(|&i| !seen[i]).collect::<Vec<_>>();
    let (unbeaten, winless) = (not(&below), not(&above));
    if unbeaten.is_empty() && winless.is_empty() {
        return Ok(());
    }
    // What item 0 never reached has no loss against anything reached.
    Err(Error::Disconnected { unbeaten, winless })
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

pub(crate) fn ln_sigmoid(x: f64) -> f64 {
    x.min(0.0) - libm::log1p((-x.abs()).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_are_central_differences() {
        let h = 1e-5;
        for ties in [Ties::Half, Ties::RaoKupper, Ties::Davidson] {
            for outcome in [Outcome::Left, Outcome::Right, Outcome::Tie] {
                for (delta, eta) in [(0.3, 0.4), (-2.0, 0.7), (1.1, 0.05), (4.0, 1.5)] {
                    let at = |d, e| log_probability(ties, outcome, d, e);
                    let p = at(delta, eta);
                    let close = |what: &str, got: f64, expect: f64| {
                        let error = (got - expect).abs() / (1.0 + expect.abs());
                        assert!(error < 1e-7, "{ties:?} {outcome:?} {what}: {got} against {expect}");
                    };
                    let slope = |f: fn(&LogProbability) -> f64, d: f64, e: f64| {
                        (f(&at(delta + d, eta + e)) - f(&at(delta - d, eta - e))) / (2.0 * h)
                    };
                    close("Δ", p.d_delta, slope(|p| p.value, h, 0.0));
                    close("η", p.d_tie, slope(|p| p.value, 0.0, h));
                    close("ΔΔ", p.dd_delta, slope(|p| p.d_delta, h, 0.0));
                    close("ηη", p.dd_tie, slope(|p| p.d_tie, 0.0, h));
                    close("Δη", p.dd_both, slope(|p| p.d_delta, 0.0, h));
                    close("ηΔ", p.dd_both, slope(|p| p.d_tie, h, 0.0));
                }
            }
        }
    }

    #[test]
    fn the_three_outcomes_add_up_to_one() {
        for ties in [Ties::RaoKupper, Ties::Davidson] {
            for (delta, eta) in [(0.0, 0.3), (2.5, 1.0), (-7.0, 0.2)] {
                let sum: f64 = [Outcome::Left, Outcome::Right, Outcome::Tie]
                    .map(|outcome| log_probability(ties, outcome, delta, eta).value.exp())
                    .iter()
                    .sum();
                assert!((sum - 1.0).abs() < 1e-14, "{ties:?}: {sum}");
            }
        }
    }

    #[test]
    fn a_side_that_is_always_the_same_items_is_confounded() {
        let vote = |v: usize| Match {
            left: 0,
            right: 1 + v % 2,
            outcome: [Outcome::Left, Outcome::Right][v / 2 % 2],
            weight: 1.0,
        };
        let matches: Vec<Match> = (0..8).map(vote).collect();
        let plain = BradleyTerryConfig::plain(Ties::Half);
        let config = BradleyTerryConfig { side: true, ..plain };
        // Items 1 and 2 are both always on the right: adding to 0 is the same as adding to the side.
        assert_eq!(BradleyTerry::fit(3, &matches, config), Err(Error::SideConfounded));
        assert!(BradleyTerry::fit(3, &matches, plain).is_ok());
        // One pair the other way round tells them apart.
        let turned =
            matches.iter().chain(&[Match { left: 1, right: 0, ..matches[0] }]).copied().collect::<Vec<_>>();
        assert!(BradleyTerry::fit(3, &turned, config).is_ok());
    }

    /// Near the maximum the rounding of a sum of 300 000 terms is larger than what a step gains.
    #[test]
    fn many_votes_that_nearly_balance_have_a_maximum() {
        let vote = |v: usize| Match {
            left: 0,
            right: 1,
            outcome: if v < 150_361 { Outcome::Right } else { Outcome::Left },
            weight: 1.0,
        };
        let matches: Vec<Match> = (0..300_000).map(|v| vote(v * 7919 % 300_000)).collect();
        let fit = BradleyTerry::fit(2, &matches, BradleyTerryConfig::plain(Ties::Half)).unwrap();
        let expected = 0.5 * (149_639.0_f64 / 150_361.0).ln();
        assert!((fit.strength[0] - expected).abs() < 1e-9 && fit.iterations < 5, "{fit:?}");
    }
}
