//! Where the marginal posterior is largest: Newton's method on the loss (minus the log posterior).
//!
//! One pass over the comparisons gives the loss and, for each kind of vote of each annotator, how much posterior weight lies on
//! each node; the gradient and the first term of the information are sums over that small table. The second term is one
//! more pass: slopes by `g` and `q` are affine in `1 / P`, so for a comparison with `k` votes the covariance of `k + 1` functions is
//! all it takes, on the nodes that carry weight. Passes run in a few threads; sums are in an order that the data alone decide.
//!
//! **Far from the minimum** the curvature misleads. A likelihood is concave in `γ = σ(g)` (and in `σ(q)`, and where the differences
//! are known, in `τ⁻²`) where it is not in `g` or `ln τ`, so the diagonal has each parameter's curvature in the coordinate in which
//! it is larger. At the minimum all coordinates agree.
//!
//! ```text
//! curvature in σ(g)    γ'² d²L/dγ² = L_gg - (1 - 2γ) L_g           in g's units; Newton's step in γ, to first order
//! curvature in τ⁻²     L_tt + 2 L_t                                t = ln τ
//! ```
//!
//! What is still not positive definite is damped (Levenberg and Marquardt); steps are halved until the loss falls.
//! Reliabilities near 1 make directions that are ten thousand times flatter than others, so *near* is measured in standard errors.

use std::ops::Range;

use super::FAR;
use super::grid::{Data, FEW_NODES, Grid, KINDS, decode, won};
use crate::Error;
use crate::bradley_terry::sigmoid;
use crate::crowd_bt::{CrowdPrior, ln_vote};
use crate::linalg::{Cholesky, ROUNDING, dot};

/// Comparisons from which a fit begins with a tenth of them, and passes are shared among threads.
const MANY: usize = 5_000;
/// Parts of a pass. Not the number of processors: sums are the same on every machine.
const PARTS: usize = 4;
/// Parameters above which a matrix for each part is too much memory.
const WIDE: usize = 3_000;
/// Length of the last step in standard errors. What it leaves is about the square.
const LAST_STEP: f64 = 1e-7;
/// Newton steps after which to give up.
const STEPS_MAX: usize = 200;
/// Halvings of a step after which to give up.
const HALVINGS_MAX: i32 = 40;
/// Damping after which to give up.
const DAMPING_MAX: f64 = 1e9;
/// Longest step of a parameter.
const STEP_MAX: f64 = 3.0;
/// A node's posterior weight that no sum would notice.
const NEGLIGIBLE: f64 = 1e-14;

/// Where the posterior is largest.
pub(super) struct Maximum {
    pub x: Vec<f64>,
    pub loss: f64,
    pub information: Vec<f64>,
    pub steps: usize,
}

/// A place near it. With many comparisons a tenth of them comes near for little, and few nodes for less.
pub(super) fn near(data: &Data, prior: CrowdPrior, x: Vec<f64>) -> Vec<f64> {
    if data.pairs() < MANY {
        return x;
    }
    let part = data.tenth();
    let x = near(&part, prior, x);
    let x = maximum(&Grid::<FEW_NODES>::new(&part), prior, x.clone()).map_or(x, |found| found.x);
    maximum(&Grid::<FEW_NODES>::new(data), prior, x.clone()).map_or(x, |found| found.x)
}

/// Finds it from `x`.
pub(super) fn maximum<const N: usize>(
    grid: &Grid<N>,
    prior: CrowdPrior,
    mut x: Vec<f64>,
) -> Result<Maximum, Error> {
    let mut here = Slopes::new(grid, prior, &x);
    let (mut length, mut steps) = (f64::INFINITY, 0);
    while steps < STEPS_MAX {
        steps += 1;
        let information = information(grid, prior, &x, &here.mass);
        let Some(factor) = convex(&information, &x, &here.gradient) else { break };
        let step = factor.solve(&here.gradient);
        length = dot(&step, &here.gradient).sqrt();
        let at = |scale: f64| -> Vec<f64> {
            x.iter().zip(&step).map(|(x, step)| (x - scale * step).clamp(-2.0 * FAR, 2.0 * FAR)).collect()
        };
        if length < LAST_STEP {
            return Ok(Maximum { x: at(1.0), loss: here.loss, information, steps });
        }
        let longest = step.iter().fold(0.0_f64, |max, step| max.max(step.abs()));
        let most = (STEP_MAX / longest).min(1.0);
        // A fall of half the square of the length that is lost in the rounding of the loss is not looked for.
        let unseen = 0.5 * length * length < ROUNDING * here.loss.abs();
        let bound = if unseen { f64::INFINITY } else { here.loss };
        let next = (0..HALVINGS_MAX).find_map(|halvings| {
            let there = at(most * 0.5_f64.powi(halvings));
            let slopes = Slopes::new(grid, prior, &there);
            (slopes.loss <= bound).then_some((there, slopes))
        });
        let Some(next) = next else { break };
        (x, here) = next;
    }
    Err(Error::NotConverged {
        method: "crowd_pairs, in standard errors",
        gradient: length,
        iterations: steps,
        tolerance: LAST_STEP,
    })
}

/// The factor of a positive definite matrix that is the information at the minimum; none if there are no numbers to damp.
fn convex(information: &[f64], x: &[f64], gradient: &[f64]) -> Option<Cholesky> {
    let (n, last) = (x.len(), x.len() - 1);
    let mut curvature = information.to_vec();
    for i in 0..last {
        curvature[i * (n + 1)] += ((2.0 * sigmoid(x[i]) - 1.0) * gradient[i]).max(0.0);
    }
    curvature[last * (n + 1)] += (2.0 * gradient[last]).max(0.0);
    let mut damping = 0.0;
    while damping < DAMPING_MAX {
        let mut damped = curvature.clone();
        (0..n).for_each(|i| damped[i * (n + 1)] += damping * (1.0 + curvature[i * (n + 1)].abs()));
        if let Some(factor) = Cholesky::new(&damped, n) {
            return Some(factor);
        }
        damping = (4.0 * damping).max(0.01);
    }
    None
}

/// `work` on parts of the comparisons, in their order.
fn in_parts<T: Send>(data: &Data, work: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    let (pairs, wide) = (data.pairs(), 2 * data.annotators > WIDE);
    if pairs < MANY || wide {
        return vec![work(0..pairs)];
    }
    let end = |part: usize| part * pairs / PARTS;
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..PARTS).map(|part| scope.spawn(move || work(end(part)..end(part + 1)))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a part of a sum does not panic")).collect()
    })
}

/// Adds `from` to `to`.
fn add(to: &mut [f64], from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

/// The nodes from the first to the last that carries weight.
fn carrying(rho: &[f64]) -> Range<usize> {
    let weighty = |weight: &f64| *weight > NEGLIGIBLE;
    let first = rho.iter().position(weighty).expect("weights sum to 1");
    first..rho.iter().rposition(weighty).expect("as above") + 1
}

/// Minus the log posterior, its gradient by `(g, q)` of each annotator and `ln τ`, and how much posterior weight lies on each
/// node for each kind of vote.
struct Slopes<const N: usize> {
    loss: f64,
    gradient: Vec<f64>,
    mass: Vec<[f64; N]>,
}

impl<const N: usize> Slopes<N> {
    fn new(grid: &Grid<N>, prior: CrowdPrior, x: &[f64]) -> Self {
        let data = grid.data;
        let probability = grid.probabilities(x);
        let parts = in_parts(data, |pairs| {
            let mut loss = 0.0;
            let mut mass = vec![[0.0; N]; data.codes()];
            let mut rho = [0.0; N];
            for pair in pairs {
                loss -= grid.posterior(pair, &probability, &mut rho);
                data.votes(pair).iter().for_each(|&code| add(&mut mass[code as usize], &rho));
            }
            (loss, mass)
        });
        let (mut loss, mut mass) = (0.0, vec![[0.0; N]; data.codes()]);
        for (part_loss, part) in parts {
            loss += part_loss;
            add(mass.as_flattened_mut(), part.as_flattened());
        }
        let last = 2 * data.annotators;
        let spread = grid.spread(x);
        let mut gradient = vec![0.0; x.len()];
        for (code, mass) in mass.iter().enumerate() {
            if mass.iter().all(|mass| *mass == 0.0) {
                continue;
            }
            let (w, outcome, sign) = decode(code);
            for (t, &mass) in mass.iter().enumerate() {
                let delta = sign * spread * grid.nodes[t];
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
        Slopes { loss: loss + 0.5 * away * away, gradient, mass }
    }
}

/// The observed information of the log posterior of votes for a side. `mass` is that of [`Slopes`] at `x`.
fn information<const N: usize>(grid: &Grid<N>, prior: CrowdPrior, x: &[f64], mass: &[[f64; N]]) -> Vec<f64> {
    let data = grid.data;
    let n = x.len();
    let last = n - 1;
    let spread = grid.spread(x);
    let probability = grid.probabilities(x);
    let mut information = vec![0.0; n * n];
    let mut terms = Vec::with_capacity(data.codes());
    for (code, mass) in mass.iter().enumerate() {
        let (w, outcome, sign) = decode(code);
        let mut by_tau = [0.0; N];
        let mut bend = [[0.0; 3]; 3];
        for t in 0..N {
            let delta = sign * spread * grid.nodes[t];
            let p = ln_vote(outcome, delta, x[2 * w], x[2 * w + 1]);
            by_tau[t] = p.slope[0] * delta;
            // By ln τ: Δ itself is Δ's slope and curvature.
            let c = p.curvature;
            let (g_tau, q_tau) = (c[0][1] * delta, c[0][2] * delta);
            let curvature = [
                [c[1][1], c[1][2], g_tau],
                [c[1][2], c[2][2], q_tau],
                [g_tau, q_tau, c[0][0] * delta * delta + by_tau[t]],
            ];
            for i in 0..3 {
                (0..3).for_each(|j| bend[i][j] += mass[t] * curvature[i][j]);
            }
        }
        let places = [2 * w, 2 * w + 1, last];
        for i in 0..3 {
            (0..3).for_each(|j| information[places[i] * n + places[j]] -= bend[i][j]);
        }
        let (rest, side) = (sigmoid(-x[2 * w]), sigmoid(won(outcome) * x[2 * w + 1]));
        let change = [-rest * side, won(outcome) * rest * side * (1.0 - side)];
        terms.push(Term { inverse: probability[code].map(|p| 1.0 / p), by_tau, change });
    }

    for part in in_parts(data, |pairs| covariances(grid, &probability, &terms, pairs)) {
        for i in 0..n {
            (0..n).for_each(|j| information[i * n + j] -= part[i * n + j] + part[j * n + i]);
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

/// What the slopes of a kind of vote are made of.
struct Term<const N: usize> {
    /// `1 / P`.
    inverse: [f64; N],
    /// The slope by `ln τ`.
    by_tau: [f64; N],
    /// By how much the slopes by `g` and `q` change with `1 / P`.
    change: [f64; 2],
}

/// A matrix that gives `Σ_p Cov_ρ(Σ_v ∇ ln P_v)` over some comparisons together with its transpose.
fn covariances<const N: usize>(
    grid: &Grid<N>,
    probability: &[[f64; N]],
    terms: &[Term<N>],
    pairs: Range<usize>,
) -> Vec<f64> {
    let data = grid.data;
    let n = 2 * data.annotators + 1;
    let last = n - 1;
    let mut half = vec![0.0; n * n];
    let mut rho = [0.0; N];
    // Of each vote 1 / P, then the whole slope by ln τ; less its mean, times √ρ.
    let mut rows: Vec<[f64; N]> = Vec::new();
    for pair in pairs {
        let votes = data.votes(pair);
        if votes.is_empty() {
            continue;
        }
        grid.posterior(pair, probability, &mut rho);
        rows.clear();
        rows.extend(votes.iter().map(|&code| terms[code as usize].inverse));
        let mut by_tau = [0.0; N];
        votes.iter().for_each(|&code| add(&mut by_tau, &terms[code as usize].by_tau));
        rows.push(by_tau);
        let nodes = carrying(&rho);
        let (rho, root) = (&rho[nodes.clone()], rho.map(f64::sqrt));
        for row in &mut rows {
            let row = &mut row[nodes.clone()];
            let mean = dot(rho, row);
            row.iter_mut().zip(&root[nodes.clone()]).for_each(|(x, root)| *x = root * (*x - mean));
        }
        let covariance = |i: usize, j: usize| dot(&rows[i][nodes.clone()], &rows[j][nodes.clone()]);
        for (i, &code) in votes.iter().enumerate() {
            let (at, change) = (2 * (code as usize / KINDS), terms[code as usize].change);
            for (j, &other) in votes[..=i].iter().enumerate() {
                let (at_other, change_other) = (2 * (other as usize / KINDS), terms[other as usize].change);
                let covariance = if i == j { 0.5 } else { 1.0 } * covariance(i, j);
                for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    half[(at + a) * n + at_other + b] += covariance * change[a] * change_other[b];
                }
            }
            let covariance = covariance(i, votes.len());
            (0..2).for_each(|a| half[last * n + at + a] += covariance * change[a]);
        }
        half[last * n + last] += 0.5 * covariance(votes.len(), votes.len());
    }
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bradley_terry::Outcome;
    use crate::crowd_pairs::{CrowdPairs, PairVote};
    use crate::rng::Stream;

    #[test]
    fn gradient_and_information_are_central_differences() {
        let mut stream = Stream::new(5, "pairs", 0);
        // Few annotators: some vote twice on a comparison.
        let votes: Vec<PairVote> = (0..200)
            .map(|_| PairVote {
                pair: stream.below(40) as u32,
                annotator: stream.below(4) as u32,
                first_on_left: stream.unit() < 0.5,
                outcome: [Outcome::Left, Outcome::Right][stream.below(2)],
            })
            .collect();
        let data = Data::new(40, 4, &votes);
        let grid = Grid::<81>::new(&data);
        let prior = CrowdPrior::usual();
        let x: Vec<f64> = (0..9).map(|_| 2.0 * stream.unit() - 1.0).collect();
        let here = Slopes::new(&grid, prior, &x);
        let information = information(&grid, prior, &x, &here.mass);
        let h = 1e-5;
        for i in 0..x.len() {
            let moved = |by: f64| {
                let mut y = x.clone();
                y[i] += by;
                Slopes::new(&grid, prior, &y)
            };
            let (up, down) = (moved(h), moved(-h));
            let slope = (up.loss - down.loss) / (2.0 * h);
            assert!((slope - here.gradient[i]).abs() < 1e-7, "{i}: {slope} against {}", here.gradient[i]);
            for j in 0..x.len() {
                let bend = (up.gradient[j] - down.gradient[j]) / (2.0 * h);
                let got = information[i * x.len() + j];
                assert!((bend - got).abs() < 1e-7, "{i} {j}: {bend} against {got}");
            }
        }
    }

    /// One vote for each side of every comparison: little but rounding decides how far a step goes.
    #[test]
    fn votes_that_always_contradict_have_a_maximum() {
        let outcomes = [Outcome::Left, Outcome::Right, Outcome::Tie];
        let vote = |v: u32| {
            let outcome = outcomes[((v + v / 3) % 3) as usize];
            PairVote { pair: v / 3, annotator: v % 50, first_on_left: true, outcome }
        };
        let votes: Vec<PairVote> = (0..30_000).map(vote).collect();
        let fit = CrowdPairs::fit(10_000, 50, &votes, CrowdPrior::usual()).unwrap();
        assert!(fit.strength_sd < 0.5 && fit.iterations < 20, "{} {}", fit.strength_sd, fit.iterations);
    }
}
