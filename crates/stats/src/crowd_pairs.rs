//! Crowd-BT for many small comparison graphs: each comparison's difference is integrated out.
//!
//! Prompts do not share responses, so votes come in thousands of comparisons with a handful of votes each. The model is that of
//! `crowd_bt.rs` with one difference `Δ_p` for each comparison,
//!
//! ```text
//! P(w says left) = γ_w σ(±Δ_p) + (1 - γ_w) σ(q_w),     Δ_p ~ N(0, τ²),  + where the first response is on the left
//! ```
//!
//! and what is maximised is the *marginal* posterior of `(g, q, ln τ)`: the number of parameters does not grow with the
//! comparisons, so reliabilities are consistent (fitted together with the differences they would not be: Neyman & Scott).
//!
//! ```text
//! L_p   = ∫ Π_v P_v(Δ) φ(Δ/τ)/τ dΔ ≈ Σ_t ω_t Π_v P_v(τ z_t)      a grid of NODES points, |z| <= REACH
//! ∇ln L = Σ_t ρ_t Σ_v ∇ln P_v(τ z_t)                             ρ_t the posterior weight of node t   (Fisher)
//! info  = Σ_p { -E_ρ[Σ_v ∇² ln P_v] - Cov_ρ(Σ_v ∇ ln P_v) }       exact observed information            (Louis)
//! ```
//!
//! Parameters are estimated from the votes for a side, given that they are for a side: under Davidson's model of ties that
//! leaves the formula above as it is, whereas a tie counted as half a vote for each is no probability and would pull `τ` and
//! `γ` to 0. Labels use ties too, as half a vote for each: two who see no difference and one who does are not one who does.
//!
//! The soft label of a comparison is `E_ρ[σ(Δ)]`: the chance that an annotator who looks prefers the first response. Several
//! comparisons of one prompt are taken as independent, which they are not quite; the errors of reliabilities are then a little
//! too small. `ln τ ~ N(ln strength_sd, scale_sd²)`; the other priors are [`CrowdPrior`]'s.
//!
//! **What is well known and what is not.** Agreement between annotators fixes the products `γ_v γ_w Var(σ(Δ))`: all reliabilities
//! together are known only up to a factor that trades with `τ`, except through the shape of three or more votes on a
//! comparison. So the *order* of annotators is sure long before their level is, the errors say so, and the level leans on the
//! prior. docs/agreement.md has the measured coverage.
//!
//! Source: Louis 1982, J. R. Stat. Soc. B 44; Neyman & Scott 1948, Econometrica 16; the model as in `crowd_bt.rs`.

use crate::bradley_terry::{Outcome, sigmoid};
use crate::crowd_bt::{CrowdPrior, Reliability, ln_vote};
use crate::linalg::Cholesky;
use crate::special::normal_quantile;
use crate::{Error, check_confidence, check_count};

/// A vote on a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairVote {
    /// Which comparison.
    pub pair: u32,
    /// Who voted.
    pub annotator: u32,
    /// Whether the comparison's first response stood on the left.
    pub first_on_left: bool,
    /// Which *side* won.
    pub outcome: Outcome,
}

/// What is known of a comparison.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftLabel {
    /// Probability that an annotator who looks prefers the first response.
    pub first: f64,
    /// Posterior mean of `Δ`.
    pub mean: f64,
    /// Posterior standard deviation of `Δ`.
    pub sd: f64,
}

/// A fitted model.
#[derive(Clone, Debug, PartialEq)]
pub struct CrowdPairs {
    /// One for each annotator. Those without votes have the prior's.
    pub annotators: Vec<Reliability>,
    /// One for each comparison.
    pub labels: Vec<SoftLabel>,
    /// `τ`.
    pub strength_sd: f64,
    /// Log marginal posterior, up to a constant.
    pub log_posterior: f64,
    /// Newton steps made on all comparisons.
    pub iterations: usize,
    prior: CrowdPrior,
    /// `(A, B)` of each annotator's votes: given all else, a vote's probability is `γ A + (1 - γ) B`.
    mixtures: Vec<Vec<(f64, f64)>>,
    /// How much larger the variance of `g` is than if all else were known.
    inflation: Option<Vec<f64>>,
}

/// Points of the grid. Its error is about `exp(-2π² / (τ h))` with spacing `h = 2 REACH / (NODES - 1)`, as `σ(τ z)` has its poles
/// at `±iπ/τ`: below 1e-9 for `τ <= 6`.
const NODES: usize = 81;
/// The grid's end in units of τ.
const REACH: f64 = 6.0;
/// A node's posterior weight that no sum would notice.
const NEGLIGIBLE: f64 = 1e-14;
/// Outcome and side together: six kinds of vote.
const KINDS: usize = 6;

type Nodes = [f64; NODES];
/// Slopes and curvatures of `ln P` by `(g, q, ln τ)`.
type Derivatives = ([f64; 3], [[f64; 3]; 3]);

impl CrowdPairs {
    /// Fits `pairs` comparisons and `annotators`.
    ///
    /// # Panics
    ///
    /// If a vote is out of range or the prior is not positive.
    pub fn fit(
        pairs: usize,
        annotators: usize,
        votes: &[PairVote],
        prior: CrowdPrior,
    ) -> Result<CrowdPairs, Error> {
        prior.check("crowd_pairs");
        let decided: Vec<PairVote> =
            votes.iter().copied().filter(|vote| vote.outcome != Outcome::Tie).collect();
        check_count("crowd_pairs", "votes for a side", decided.len(), 1)?;
        let data = Data::new(pairs, annotators, &decided);
        let mut start = vec![0.0; 2 * annotators + 1];
        let guess = (prior.reliable / prior.unreliable).ln();
        (0..annotators).for_each(|w| start[2 * w] = guess);
        start[2 * annotators] = prior.strength_sd.ln();
        let found = maximum(&data, prior, start)?;

        let n = found.x.len();
        let variance = Cholesky::new(&found.information, n).map(|factor| {
            let inverse = factor.inverse();
            (0..n).map(|i| inverse[i * n + i]).collect::<Vec<f64>>()
        });
        let reliability = |w: usize| {
            let variances = variance.as_ref().map(|v| (v[2 * w], v[2 * w + 1]));
            Reliability::new(found.x[2 * w], found.x[2 * w + 1], variances)
        };
        let inflation = variance.as_ref().map(|variance| {
            let own: Vec<f64> =
                (0..annotators).map(|w| variance[2 * w] * found.information[2 * w * (n + 1)]).collect();
            let mut sorted = own.clone();
            sorted.sort_by(f64::total_cmp);
            // At the edge the curvature is the prior's and says nothing about what the votes leave open.
            own.iter().map(|own| own.max(sorted[annotators / 2]).max(1.0)).collect()
        });
        Ok(CrowdPairs {
            mixtures: mixtures(&data, &found.x),
            inflation,
            prior,
            annotators: (0..annotators).map(reliability).collect(),
            labels: labels(&Data::new(pairs, annotators, votes), &found.x),
            strength_sd: found.x[n - 1].exp(),
            log_posterior: -found.loss,
            iterations: found.steps,
        })
    }

    /// Interval of an annotator's reliability: where the likelihood of their votes, given all else and flattened by how much
    /// all else is uncertain, is not too far below its maximum. Unlike `γ ± se` it is right near 1, where good annotators are.
    ///
    /// # Panics
    ///
    /// If there is no such annotator or `confidence` is not between 0 and 1.
    pub fn interval(&self, annotator: usize, confidence: f64) -> Option<(f64, f64)> {
        check_confidence(confidence);
        let inflation = self.inflation.as_ref()?[annotator];
        let z = normal_quantile(0.5 + 0.5 * confidence);
        let height = |g: f64| {
            let (gamma, rest) = (sigmoid(g), sigmoid(-g));
            let votes =
                self.mixtures[annotator].iter().map(|(a, b)| (gamma * a + rest * b).ln()).sum::<f64>();
            votes - self.prior.annotator(g, 0.0).0
        };
        let mode = self.annotators[annotator].logit;
        let least = height(mode) - 0.5 * z * z * inflation;
        // The end between a point that is in and one that is out; the far one if all are in.
        let end = |far: f64| {
            if height(far) >= least {
                return sigmoid(far).round();
            }
            let (mut inside, mut outside) = (mode, far);
            for _ in 0..BISECTIONS {
                let middle = 0.5 * (inside + outside);
                if height(middle) >= least { inside = middle } else { outside = middle }
            }
            sigmoid(inside)
        };
        Some((end(mode.min(0.0) - FAR), end(mode.max(0.0) + FAR)))
    }
}

/// Comparisons from which a fit begins with a tenth of them.
const MANY: usize = 5_000;
/// Largest element of the gradient, per vote, at which to stop: about a thousandth of a standard error, and the last step squares it.
const GRADIENT_PER_VOTE: f64 = 1e-7;
/// Newton steps, refused ones included, after which to give up.
const STEPS_MAX: usize = 200;

/// Where the posterior is largest.
struct Maximum {
    x: Vec<f64>,
    loss: f64,
    information: Vec<f64>,
    steps: usize,
}

/// Newton's method, damped where the posterior is not concave or the step leads too far (Levenberg and Marquardt). Reliabilities
/// near 1 make directions that are ten thousand times flatter than others, which defeats methods without the curvature. With
/// many comparisons a tenth of them comes close for little.
fn maximum(data: &Data, prior: CrowdPrior, mut x: Vec<f64>) -> Result<Maximum, Error> {
    if data.pairs() >= MANY {
        x = maximum(&data.tenth(), prior, x)?.x;
    }
    let n = x.len();
    let tolerance = (GRADIENT_PER_VOTE * data.code.len() as f64).max(1e-7);
    let (mut value, mut gradient) = loss(data, prior, &x);
    let mut curvature = information(data, prior, &x);
    let mut damping = 0.0;
    for steps in 0..STEPS_MAX {
        let steepest = gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
        if steepest <= tolerance {
            return Ok(Maximum { x, loss: value, information: curvature, steps });
        }
        let mut damped = curvature.clone();
        (0..n).for_each(|i| damped[i * (n + 1)] += damping * (1.0 + curvature[i * (n + 1)].abs()));
        let next = Cholesky::new(&damped, n).map(|factor| {
            let step = factor.solve(&gradient);
            x.iter().zip(step).map(|(x, step)| x - step).collect::<Vec<f64>>()
        });
        if let Some(next) = next.filter(|next| next.iter().all(|x| x.abs() < 2.0 * FAR)) {
            let (next_value, next_gradient) = loss(data, prior, &next);
            let rounding = 64.0 * f64::EPSILON * value.abs();
            if next_value <= value + rounding {
                (x, value, gradient) = (next, next_value, next_gradient);
                curvature = information(data, prior, &x);
                damping = if damping < 1e-4 { 0.0 } else { 0.1 * damping };
                continue;
            }
        }
        damping = (10.0 * damping).max(1e-3);
    }
    let steepest = gradient.iter().fold(0.0_f64, |max, g| max.max(g.abs()));
    Err(Error::NotConverged { method: "crowd_pairs", gradient: steepest, iterations: STEPS_MAX, tolerance })
}

/// Logits beyond which a reliability is 0 or 1.
const FAR: f64 = 12.0;
/// Halvings of the search for an interval's end: to about 1e-6 in the logit.
const BISECTIONS: usize = 24;

/// Votes by comparison; a vote is its annotator and kind in one number.
struct Data {
    annotators: usize,
    start: Vec<usize>,
    code: Vec<u32>,
    nodes: Nodes,
    ln_weight: Nodes,
}

impl Data {
    fn new(pairs: usize, annotators: usize, votes: &[PairVote]) -> Data {
        let mut start = vec![0; pairs + 1];
        for vote in votes {
            let (pair, annotator) = (vote.pair as usize, vote.annotator as usize);
            assert!(pair < pairs && annotator < annotators, "crowd_pairs: {vote:?} of {pairs}, {annotators}");
            start[pair + 1] += 1;
        }
        (0..pairs).for_each(|p| start[p + 1] += start[p]);
        let mut at = start.clone();
        let mut code = vec![0; votes.len()];
        for vote in votes {
            let kind = match vote.outcome {
                Outcome::Left => 0,
                Outcome::Right => 1,
                Outcome::Tie => 2,
            } + 3 * u32::from(!vote.first_on_left);
            code[at[vote.pair as usize]] = vote.annotator * KINDS as u32 + kind;
            at[vote.pair as usize] += 1;
        }
        let nodes: Nodes = std::array::from_fn(|t| REACH * (2.0 * t as f64 / (NODES - 1) as f64 - 1.0));
        let sum: f64 = nodes.iter().map(|z| (-0.5 * z * z).exp()).sum();
        Data { annotators, start, code, nodes, ln_weight: nodes.map(|z| -0.5 * z * z - sum.ln()) }
    }

    /// Every tenth comparison.
    fn tenth(&self) -> Data {
        let mut part = Data { start: vec![0], code: Vec::new(), ..*self };
        for pair in (0..self.pairs()).step_by(10) {
            part.code.extend_from_slice(self.votes(pair));
            part.start.push(part.code.len());
        }
        part
    }

    fn pairs(&self) -> usize {
        self.start.len() - 1
    }

    fn votes(&self, pair: usize) -> &[u32] {
        &self.code[self.start[pair]..self.start[pair + 1]]
    }

    /// `ln P` of every kind of vote of every annotator at every node.
    fn ln_table(&self, x: &[f64]) -> Vec<Nodes> {
        let spread = x[2 * self.annotators].exp();
        (0..self.annotators * KINDS)
            .map(|code| {
                let (w, outcome, sign) = decode(code);
                self.nodes.map(|z| ln_vote(outcome, sign * spread * z, x[2 * w], x[2 * w + 1]).value)
            })
            .collect()
    }

    /// The posterior weights of a comparison's nodes, and `ln L_p`.
    fn posterior(&self, pair: usize, ln_table: &[Nodes]) -> (Nodes, f64) {
        let mut rho = self.ln_weight;
        for &code in self.votes(pair) {
            let row = &ln_table[code as usize];
            (0..NODES).for_each(|t| rho[t] += row[t]);
        }
        let most = rho.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        rho.iter_mut().for_each(|x| *x = (*x - most).exp());
        let sum: f64 = rho.iter().sum();
        rho.iter_mut().for_each(|x| *x /= sum);
        (rho, most + sum.ln())
    }
}

/// Annotator, outcome, and the sign with which `Δ` of the first response enters.
fn decode(code: usize) -> (usize, Outcome, f64) {
    let kind = code % KINDS;
    let outcome = [Outcome::Left, Outcome::Right, Outcome::Tie][kind % 3];
    (code / KINDS, outcome, if kind < 3 { 1.0 } else { -1.0 })
}

/// Minus the log posterior and its gradient by `(g, q)` of each annotator and `ln τ`.
fn loss(data: &Data, prior: CrowdPrior, x: &[f64]) -> (f64, Vec<f64>) {
    let ln_table = data.ln_table(x);
    let mut loss = 0.0;
    // How much posterior weight lies on each node for each kind of vote: the gradient needs no more.
    let mut mass = vec![[0.0; NODES]; ln_table.len()];
    for pair in 0..data.pairs() {
        let (rho, ln_l) = data.posterior(pair, &ln_table);
        loss -= ln_l;
        for &code in data.votes(pair) {
            let row = &mut mass[code as usize];
            (0..NODES).for_each(|t| row[t] += rho[t]);
        }
    }
    let last = 2 * data.annotators;
    let spread = x[last].exp();
    let mut gradient = vec![0.0; x.len()];
    for (code, mass) in mass.iter().enumerate() {
        let (w, outcome, sign) = decode(code);
        for (t, &mass) in mass.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
            let delta = sign * spread * data.nodes[t];
            let slope = ln_vote(outcome, delta, x[2 * w], x[2 * w + 1]).slope;
            gradient[2 * w] -= mass * slope[1];
            gradient[2 * w + 1] -= mass * slope[2];
            gradient[last] -= mass * slope[0] * delta;
        }
    }
    for w in 0..data.annotators {
        let (value, slope, _) = prior.annotator(x[2 * w], x[2 * w + 1]);
        loss += value;
        gradient[2 * w] += slope[0];
        gradient[2 * w + 1] += slope[1];
    }
    let away = (x[last] - prior.strength_sd.ln()) / prior.scale_sd;
    gradient[last] += away / prior.scale_sd;
    (loss + 0.5 * away * away, gradient)
}

/// The observed information of the log posterior.
fn information(data: &Data, prior: CrowdPrior, x: &[f64]) -> Vec<f64> {
    let n = x.len();
    let last = n - 1;
    let spread = x[last].exp();
    let ln_table = data.ln_table(x);
    // Slopes by (g, q, ln τ) and their curvatures, for every kind of vote at every node.
    let table: Vec<[Derivatives; NODES]> = (0..ln_table.len())
        .map(|code| {
            let (w, outcome, sign) = decode(code);
            std::array::from_fn(|t| {
                let delta = sign * spread * data.nodes[t];
                let p = ln_vote(outcome, delta, x[2 * w], x[2 * w + 1]);
                // By ln τ: Δ itself is Δ's slope and curvature.
                let [d, g, q] = p.slope;
                let c = p.curvature;
                let by_tau = c[0][0] * delta * delta + d * delta;
                let (g_tau, q_tau) = (c[0][1] * delta, c[0][2] * delta);
                (
                    [g, q, d * delta],
                    [[c[1][1], c[1][2], g_tau], [c[1][2], c[2][2], q_tau], [g_tau, q_tau, by_tau]],
                )
            })
        })
        .collect();

    let mut information = vec![0.0; n * n];
    let mut places: Vec<usize> = Vec::new();
    let mut slopes: Vec<f64> = Vec::new(); // Of each place, node after node.
    for pair in 0..data.pairs() {
        let votes = data.votes(pair);
        if votes.is_empty() {
            continue;
        }
        let (rho, _) = data.posterior(pair, &ln_table);
        places.clear();
        for &code in votes {
            let w = code as usize / KINDS;
            if !places.contains(&(2 * w)) {
                places.extend([2 * w, 2 * w + 1]);
            }
        }
        places.push(last);
        let width = places.len();
        slopes.clear();
        slopes.resize(NODES * width, 0.0);
        for &code in votes {
            let w = code as usize / KINDS;
            let own = places.iter().position(|&place| place == 2 * w).expect("put there above");
            let at = [own, own + 1, width - 1];
            let mut bend = [[0.0; 3]; 3];
            for (t, (slope, curvature)) in table[code as usize].iter().enumerate() {
                for i in 0..3 {
                    slopes[t * width + at[i]] += slope[i];
                    (0..3).for_each(|j| bend[i][j] += rho[t] * curvature[i][j]);
                }
            }
            for i in 0..3 {
                (0..3).for_each(|j| information[places[at[i]] * n + places[at[j]]] -= bend[i][j]);
            }
        }
        let mut mean = vec![0.0; width];
        for (row, rho) in slopes.chunks_exact(width).zip(rho) {
            mean.iter_mut().zip(row).for_each(|(mean, slope)| *mean += rho * slope);
        }
        let mut spread = vec![0.0; width * width];
        for (row, rho) in slopes.chunks_exact_mut(width).zip(rho).filter(|(_, rho)| *rho > NEGLIGIBLE) {
            row.iter_mut().zip(&mean).for_each(|(slope, mean)| *slope -= mean);
            for (to, slope) in spread.chunks_exact_mut(width).zip(row.iter()) {
                let pull = rho * slope;
                to.iter_mut().zip(row.iter()).for_each(|(to, other)| *to += pull * other);
            }
        }
        for (row, &i) in spread.chunks_exact(width).zip(&places) {
            row.iter().zip(&places).for_each(|(x, &j)| information[i * n + j] -= x);
        }
    }
    for w in 0..data.annotators {
        let (_, _, curvature) = prior.annotator(x[2 * w], x[2 * w + 1]);
        information[2 * w * n + 2 * w] += curvature[0];
        information[(2 * w + 1) * n + 2 * w + 1] += curvature[1];
    }
    information[last * n + last] += 1.0 / (prior.scale_sd * prior.scale_sd);
    information
}

/// For every vote the probability of its outcome if the annotator looks, over what the *other* votes leave of `Δ`, and if not.
fn mixtures(data: &Data, x: &[f64]) -> Vec<Vec<(f64, f64)>> {
    let ln_table = data.ln_table(x);
    let inverse: Vec<Nodes> = ln_table.iter().map(|row| row.map(|ln_p| (-ln_p).exp())).collect();
    let spread = x[2 * data.annotators].exp();
    let looks: Vec<(Nodes, f64)> = (0..ln_table.len())
        .map(|code| {
            let (w, outcome, sign) = decode(code);
            let won = if outcome == Outcome::Left { 1.0 } else { -1.0 };
            (data.nodes.map(|z| sigmoid(won * sign * spread * z)), sigmoid(won * x[2 * w + 1]))
        })
        .collect();
    let mut mixtures = vec![Vec::new(); data.annotators];
    for pair in 0..data.pairs() {
        let (rho, _) = data.posterior(pair, &ln_table);
        for &code in data.votes(pair) {
            let (inverse, (looks, side)) = (&inverse[code as usize], &looks[code as usize]);
            let (mut mass, mut won) = (0.0, 0.0);
            for t in 0..NODES {
                let without = rho[t] * inverse[t];
                mass += without;
                won += without * looks[t];
            }
            mixtures[code as usize / KINDS].push((won / mass, *side));
        }
    }
    mixtures
}

fn labels(data: &Data, x: &[f64]) -> Vec<SoftLabel> {
    let spread = x[2 * data.annotators].exp();
    let ln_table = data.ln_table(x);
    let delta = data.nodes.map(|z| spread * z);
    (0..data.pairs())
        .map(|pair| {
            let (rho, _) = data.posterior(pair, &ln_table);
            let expect =
                |f: &dyn Fn(f64) -> f64| rho.iter().zip(delta).map(|(rho, d)| rho * f(d)).sum::<f64>();
            let mean = expect(&|d| d);
            let variance = expect(&|d| (d - mean) * (d - mean));
            SoftLabel { first: expect(&sigmoid), mean, sd: variance.sqrt() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn gradient_and_information_are_central_differences() {
        let mut stream = Stream::new(5, "pairs", 0);
        let votes: Vec<PairVote> = (0..200)
            .map(|_| PairVote {
                pair: stream.below(40) as u32,
                annotator: stream.below(4) as u32,
                first_on_left: stream.unit() < 0.5,
                outcome: [Outcome::Left, Outcome::Right, Outcome::Tie][stream.below(3)],
            })
            .collect();
        let data = Data::new(40, 4, &votes);
        let prior = CrowdPrior::usual();
        let x: Vec<f64> = (0..9).map(|_| 2.0 * stream.unit() - 1.0).collect();
        let (_, gradient) = loss(&data, prior, &x);
        let information = information(&data, prior, &x);
        let h = 1e-5;
        for i in 0..x.len() {
            let moved = |by: f64| {
                let mut y = x.clone();
                y[i] += by;
                loss(&data, prior, &y)
            };
            let (up, down) = (moved(h), moved(-h));
            let slope = (up.0 - down.0) / (2.0 * h);
            assert!((slope - gradient[i]).abs() < 1e-7, "{i}: {slope} against {}", gradient[i]);
            for j in 0..x.len() {
                let bend = (up.1[j] - down.1[j]) / (2.0 * h);
                let got = information[i * x.len() + j];
                assert!((bend - got).abs() < 1e-7, "{i} {j}: {bend} against {got}");
            }
        }
    }
}
