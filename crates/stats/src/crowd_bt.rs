//! Crowd-BT: Bradley-Terry strengths, and how far each annotator can be relied on, estimated together.
//!
//! ```text
//! P(w says left) = γ_w σ(s_left - s_right) + (1 - γ_w) σ(q_w)
//! ```
//!
//! The *reliability* `γ_w` is the share of votes that annotator `w` decides by the responses; the rest is decided by side,
//! left with probability `σ(q_w)`, whatever the responses are. A tie counts half for each side, so that who sees many ties looks
//! a little less reliable; leave ties out where that matters. The fit is the maximum of
//!
//! ```text
//! Σ ln P - Σ_i s_i² / 2τ²  +  Σ_w (a ln γ_w + b ln(1 - γ_w)) - Σ_w q_w² / 2κ²
//! ```
//!
//! which is the posterior mode in the coordinates `(s, g = logit γ, q)` under `s ~ N(0, τ²)`, `γ ~ Beta(a, b)`,
//! `q ~ N(0, κ²)` ([`CrowdPrior`]). The prior on `s` makes any comparison graph do, connected or not.
//!
//! **Sign.** In Chen's form `η σ(Δ) + (1 - η) σ(-Δ)` the likelihood is the same at `(η, s)` and `(1 - η, -s)`: a panel that is
//! always wrong is a panel that is always right about the opposite. Here the second term does not look at the responses,
//! so that symmetry is gone: `-s` explains the votes of no annotator with `γ > 0`. The price is that an annotator who
//! answers the opposite of everyone is not a negative one but one of reliability near 0.
//!
//! **Incidental parameters.** `s` is maximised together with `γ`. That is right where each item has many votes; with a handful
//! each, fitted strengths follow the noise and reliabilities come out too high. There, use `crowd_pairs.rs`, which
//! integrates over the differences.
//!
//! Source: Chen, Bennett, Collins-Thompson & Horvitz 2013, "Pairwise ranking aggregation in a crowdsourced setting", WSDM;
//! the side term is crowd-kit's `NoisyBradleyTerry`.

use crate::bradley_terry::{Match, Outcome, sigmoid};
use crate::linalg::{Cholesky, minimise};
use crate::{Error, check_count};

/// What is believed before the votes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrowdPrior {
    /// `τ`: standard deviation of strengths. `crowd_pairs` estimates its own and starts from here.
    pub strength_sd: f64,
    /// `a` of `γ ~ Beta(a, b)`.
    pub reliable: f64,
    /// `b` of `γ ~ Beta(a, b)`.
    pub unreliable: f64,
    /// `κ`: standard deviation of the side logits.
    pub side_sd: f64,
    /// Standard deviation of `ln τ` in `crowd_pairs`; of no meaning where `τ` is given.
    pub scale_sd: f64,
}

impl CrowdPrior {
    /// Most annotators look: `γ ~ Beta(1, 0.05)` has no peak inside, so it does not hold a good annotator away from 1. `τ` is
    /// about 2: typical differences between responses from 0.7 to 5 in log-odds.
    pub fn usual() -> Self {
        Self { strength_sd: 2.0, reliable: 1.0, unreliable: 0.05, side_sd: 1.0, scale_sd: 0.5 }
    }

    pub(crate) fn check(&self, method: &str) {
        let all = [self.strength_sd, self.reliable, self.unreliable, self.side_sd, self.scale_sd];
        assert!(all.iter().all(|x| *x > 0.0 && x.is_finite()), "{method}: {self:?} must be positive");
    }

    /// Minus the log prior of an annotator, its slopes and its curvatures by `g` and `q`.
    pub(crate) fn annotator(&self, g: f64, q: f64) -> (f64, [f64; 2], [f64; 2]) {
        let (gamma, precision) = (sigmoid(g), 1.0 / (self.side_sd * self.side_sd));
        let (a, b) = (self.reliable, self.unreliable);
        let value = -a * crate::bradley_terry::ln_sigmoid(g) - b * crate::bradley_terry::ln_sigmoid(-g);
        (
            value + 0.5 * precision * q * q,
            [(a + b) * gamma - a, precision * q],
            [(a + b) * gamma * (1.0 - gamma), precision],
        )
    }
}

/// An annotator's estimated reliability and side bias.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Reliability {
    /// `γ`.
    pub reliability: f64,
    /// Its standard error, `γ (1 - γ)` times that of `g`.
    pub reliability_se: Option<f64>,
    /// `g = logit γ` and its standard error; intervals are made on this scale.
    pub logit: f64,
    /// Standard error of `g`.
    pub logit_se: Option<f64>,
    /// `q`: log-odds of left where the responses do not decide.
    pub side_logit: f64,
    /// Standard error of `q`.
    pub side_logit_se: Option<f64>,
}

impl Reliability {
    pub(crate) fn new(g: f64, q: f64, variances: Option<(f64, f64)>) -> Self {
        let gamma = sigmoid(g);
        let (g_se, q_se) = variances.map(|(g, q)| (g.sqrt(), q.sqrt())).unzip();
        Reliability {
            reliability: gamma,
            reliability_se: g_se.map(|se| gamma * (1.0 - gamma) * se),
            logit: g,
            logit_se: g_se,
            side_logit: q,
            side_logit_se: q_se,
        }
    }

    /// Interval of the reliability: `σ(g ± z se)`.
    ///
    /// # Panics
    ///
    /// If `confidence` is not between 0 and 1.
    pub fn interval(&self, confidence: f64) -> Option<(f64, f64)> {
        let (low, high) = crate::bradley_terry::normal_interval(self.logit, self.logit_se?, confidence);
        Some((sigmoid(low), sigmoid(high)))
    }
}

/// A fitted model.
#[derive(Clone, Debug, PartialEq)]
pub struct CrowdBt {
    /// Strengths.
    pub strength: Vec<f64>,
    /// Their standard errors.
    pub strength_se: Vec<f64>,
    /// One for each annotator.
    pub annotators: Vec<Reliability>,
    /// Log posterior at the mode, up to a constant.
    pub log_posterior: f64,
    /// L-BFGS steps made.
    pub iterations: usize,
}

/// Parameters beyond which dense algebra is the wrong tool; `crowd_pairs` has no such limit on items.
const PARAMETERS_MAX: usize = 4000;

impl CrowdBt {
    /// Fits strengths of `items` and reliabilities of `annotators`, `annotator[m]` being who decided `matches[m]`.
    ///
    /// # Panics
    ///
    /// If a match or annotator is out of range, lengths differ, or the prior is not positive.
    pub fn fit(
        items: usize,
        annotators: usize,
        matches: &[Match],
        annotator: &[usize],
        prior: CrowdPrior,
    ) -> Result<CrowdBt, Error> {
        prior.check("crowd_bt");
        assert_eq!(matches.len(), annotator.len(), "crowd_bt: one annotator for each match");
        check_count("crowd_bt", "comparisons", matches.len(), 1)?;
        for (m, &w) in matches.iter().zip(annotator) {
            assert!(
                m.left < items && m.right < items && m.left != m.right,
                "crowd_bt: {m:?} of {items} items"
            );
            assert!(w < annotators, "crowd_bt: annotator {w} of {annotators}");
        }
        let parameters = items + 2 * annotators;
        if parameters > PARAMETERS_MAX {
            return Err(Error::TooMany {
                method: "crowd_bt",
                what: "items and twice the annotators",
                limit: PARAMETERS_MAX,
                found: parameters,
            });
        }
        let problem = Problem { items, annotators, matches, annotator, prior };
        let mut start = vec![0.0; parameters];
        let guess = (prior.reliable / prior.unreliable).ln();
        (0..annotators).for_each(|w| start[items + 2 * w] = guess);
        let tolerance = 1e-9 * matches.len() as f64;
        let mut found = minimise("crowd_bt", start, tolerance.max(1e-8), 2000, |x| problem.loss(x))?;
        let factor =
            Cholesky::new(&problem.information(&found.x), parameters).ok_or(Error::NotConverged {
                method: "crowd_bt",
                gradient: 0.0,
                iterations: found.iterations,
                tolerance,
            })?;
        // One step of Newton's method squares what distance L-BFGS has left.
        let rest = factor.solve(&problem.loss(&found.x).1);
        found.x.iter_mut().zip(&rest).for_each(|(x, rest)| *x -= rest);
        let variance = factor.inverse_diagonal();
        let of = |w: usize| {
            let at = items + 2 * w;
            Reliability::new(found.x[at], found.x[at + 1], Some((variance[at], variance[at + 1])))
        };
        Ok(CrowdBt {
            annotators: (0..annotators).map(of).collect(),
            strength_se: variance[..items].iter().map(|v| v.sqrt()).collect(),
            strength: found.x[..items].to_vec(),
            log_posterior: -found.value,
            iterations: found.iterations,
        })
    }

    /// Probability that an annotator who looks prefers `a` to `b`: a soft label.
    pub fn probability(&self, a: usize, b: usize) -> f64 {
        sigmoid(self.strength[a] - self.strength[b])
    }
}

/// `P` of one vote: for left `γ σ(Δ) + (1 - γ) σ(q)`, its mirror image for right, the root of their product for a tie.
pub(crate) fn vote_probability(outcome: Outcome, delta: f64, g: f64, q: f64) -> f64 {
    match outcome {
        Outcome::Left => sigmoid(g) * sigmoid(delta) + sigmoid(-g) * sigmoid(q),
        Outcome::Right => vote_probability(Outcome::Left, -delta, g, -q),
        Outcome::Tie => {
            let side = |outcome| vote_probability(outcome, delta, g, q);
            (side(Outcome::Left) * side(Outcome::Right)).sqrt()
        }
    }
}

/// `ln P` of one vote and its derivatives by `(Δ, g, q)`.
pub(crate) struct LnVote {
    pub value: f64,
    pub slope: [f64; 3],
    pub curvature: [[f64; 3]; 3],
}

/// The logarithm of [`vote_probability`].
pub(crate) fn ln_vote(outcome: Outcome, delta: f64, g: f64, q: f64) -> LnVote {
    match outcome {
        Outcome::Left => ln_left(delta, g, q),
        Outcome::Right => {
            let mut p = ln_left(-delta, g, -q);
            p.slope = [-p.slope[0], p.slope[1], -p.slope[2]];
            for (i, j) in [(0, 1), (1, 2)] {
                (p.curvature[i][j], p.curvature[j][i]) = (-p.curvature[i][j], -p.curvature[j][i]);
            }
            p
        }
        Outcome::Tie => {
            let (left, right) = (ln_vote(Outcome::Left, delta, g, q), ln_vote(Outcome::Right, delta, g, q));
            let half = |a: f64, b: f64| 0.5 * (a + b);
            LnVote {
                value: half(left.value, right.value),
                slope: std::array::from_fn(|i| half(left.slope[i], right.slope[i])),
                curvature: std::array::from_fn(|i| {
                    std::array::from_fn(|j| half(left.curvature[i][j], right.curvature[i][j]))
                }),
            }
        }
    }
}

fn ln_left(delta: f64, g: f64, q: f64) -> LnVote {
    let (gamma, looks, side) = (sigmoid(g), sigmoid(delta), sigmoid(q));
    let rest = sigmoid(-g);
    let p = gamma * looks + rest * side;
    let (bend_g, bend_d, bend_q) = (gamma * rest, looks * sigmoid(-delta), side * sigmoid(-q));
    // First and second derivatives of P itself.
    let first = [gamma * bend_d, bend_g * (looks - side), rest * bend_q];
    let second = [
        [gamma * bend_d * (1.0 - 2.0 * looks), bend_g * bend_d, 0.0],
        [bend_g * bend_d, bend_g * (1.0 - 2.0 * gamma) * (looks - side), -bend_g * bend_q],
        [0.0, -bend_g * bend_q, rest * bend_q * (1.0 - 2.0 * side)],
    ];
    let slope = first.map(|d| d / p);
    LnVote {
        value: p.ln(),
        slope,
        curvature: std::array::from_fn(|i| std::array::from_fn(|j| second[i][j] / p - slope[i] * slope[j])),
    }
}

/// Parameters are the strengths, then `g` and `q` of each annotator in turn.
struct Problem<'a> {
    items: usize,
    annotators: usize,
    matches: &'a [Match],
    annotator: &'a [usize],
    prior: CrowdPrior,
}

impl Problem<'_> {
    /// Minus the log posterior and its gradient.
    fn loss(&self, x: &[f64]) -> (f64, Vec<f64>) {
        let mut gradient = vec![0.0; x.len()];
        let mut loss = 0.0;
        for (m, &w) in self.matches.iter().zip(self.annotator) {
            let at = self.items + 2 * w;
            let p = ln_vote(m.outcome, x[m.left] - x[m.right], x[at], x[at + 1]);
            loss -= m.weight * p.value;
            gradient[m.left] -= m.weight * p.slope[0];
            gradient[m.right] += m.weight * p.slope[0];
            gradient[at] -= m.weight * p.slope[1];
            gradient[at + 1] -= m.weight * p.slope[2];
        }
        let precision = 1.0 / (self.prior.strength_sd * self.prior.strength_sd);
        for i in 0..self.items {
            loss += 0.5 * precision * x[i] * x[i];
            gradient[i] += precision * x[i];
        }
        for w in 0..self.annotators {
            let at = self.items + 2 * w;
            let (value, slope, _) = self.prior.annotator(x[at], x[at + 1]);
            loss += value;
            gradient[at] += slope[0];
            gradient[at + 1] += slope[1];
        }
        (loss, gradient)
    }

    /// The observed information: second derivatives of the loss.
    fn information(&self, x: &[f64]) -> Vec<f64> {
        let n = x.len();
        let mut information = vec![0.0; n * n];
        for (m, &w) in self.matches.iter().zip(self.annotator) {
            let at = self.items + 2 * w;
            let p = ln_vote(m.outcome, x[m.left] - x[m.right], x[at], x[at + 1]);
            let places = [(m.left, 0, 1.0), (m.right, 0, -1.0), (at, 1, 1.0), (at + 1, 2, 1.0)];
            for (i, of_i, sign_i) in places {
                for (j, of_j, sign_j) in places {
                    information[i * n + j] -= m.weight * sign_i * sign_j * p.curvature[of_i][of_j];
                }
            }
        }
        for i in 0..self.items {
            information[i * n + i] += 1.0 / (self.prior.strength_sd * self.prior.strength_sd);
        }
        for w in 0..self.annotators {
            let at = self.items + 2 * w;
            let (_, _, curvature) = self.prior.annotator(x[at], x[at + 1]);
            information[at * n + at] += curvature[0];
            information[(at + 1) * n + at + 1] += curvature[1];
        }
        information
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn vote_derivatives_are_central_differences() {
        let h = 1e-5;
        for outcome in [Outcome::Left, Outcome::Right, Outcome::Tie] {
            for x in [[0.4, 1.0, -0.3], [-3.0, -0.5, 2.0], [5.0, 3.0, 0.0]] {
                let at = |x: [f64; 3]| ln_vote(outcome, x[0], x[1], x[2]);
                let moved = |i: usize, by: f64| {
                    let mut y = x;
                    y[i] += by;
                    at(y)
                };
                for i in 0..3 {
                    let (up, down) = (moved(i, h), moved(i, -h));
                    let slope = (up.value - down.value) / (2.0 * h);
                    // Measured worst 3e-11.
                    assert!((slope - at(x).slope[i]).abs() < 2e-10, "{outcome:?} {x:?} {i}");
                    for j in 0..3 {
                        let bend = (up.slope[j] - down.slope[j]) / (2.0 * h);
                        assert!((bend - at(x).curvature[i][j]).abs() < 2e-10, "{outcome:?} {x:?} {i} {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_gradient_of_the_whole_fit_is_a_central_difference() {
        let mut stream = Stream::new(3, "crowd", 0);
        let (items, annotators) = (6, 3);
        let mut matches = Vec::new();
        let mut annotator = Vec::new();
        for _ in 0..60 {
            let left = stream.below(items);
            let right = (left + 1 + stream.below(items - 1)) % items;
            let outcome = [Outcome::Left, Outcome::Right, Outcome::Tie][stream.below(3)];
            matches.push(Match { left, right, outcome, weight: 0.5 + stream.unit() });
            annotator.push(stream.below(annotators));
        }
        let prior =
            CrowdPrior { strength_sd: 1.5, reliable: 3.0, unreliable: 1.2, side_sd: 0.7, scale_sd: 1.0 };
        let problem = Problem { items, annotators, matches: &matches, annotator: &annotator, prior };
        let x: Vec<f64> = (0..items + 2 * annotators).map(|_| 2.0 * stream.unit() - 1.0).collect();
        let (_, gradient) = problem.loss(&x);
        let information = problem.information(&x);
        let h = 1e-5;
        for i in 0..x.len() {
            let moved = |by: f64| {
                let mut y = x.clone();
                y[i] += by;
                problem.loss(&y)
            };
            let (up, down) = (moved(h), moved(-h));
            let slope = (up.0 - down.0) / (2.0 * h);
            // Measured worst 8e-10.
            assert!((slope - gradient[i]).abs() < 5e-9, "{i}: {slope} against {}", gradient[i]);
            for j in 0..x.len() {
                let bend = (up.1[j] - down.1[j]) / (2.0 * h);
                assert!((bend - information[i * x.len() + j]).abs() < 5e-9, "{i} {j}");
            }
        }
    }
}
