//! The votes by comparison, and each comparison's posterior on a grid of differences.

use super::{PairVote, SoftLabel};
use crate::bradley_terry::{Outcome, sigmoid};
use crate::crowd_bt::vote_probability;
use crate::linalg::dot;

/// Points of the grid. Its error is about `exp(-2π² / (τ h))` with spacing `h = 2 REACH / (NODES - 1)`, as `σ(τ z)` has its poles
/// at `±iπ/τ`: below 1e-9 for `τ <= 6`.
pub(super) const NODES: usize = 81;
/// Points that are enough to come near: 1e-6 at `τ = 3`.
pub(super) const FEW_NODES: usize = 27;
/// The grid's end in units of τ.
const REACH: f64 = 6.0;
/// Outcome and side together: six kinds of vote.
pub(super) const KINDS: usize = 6;
/// Votes whose probabilities may be multiplied before a sum over nodes leaves the range of f64: within twice [`super::FAR`] the node in
/// the middle gives each at least 1e-11.
const CHUNK: usize = 16;

/// Votes by comparison; a vote is its annotator and kind in one number, its *code*.
pub(super) struct Data {
    pub annotators: usize,
    start: Vec<usize>,
    code: Vec<u32>,
}

impl Data {
    pub fn new(pairs: usize, annotators: usize, votes: &[PairVote]) -> Data {
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
        Data { annotators, start, code }
    }

    /// Every tenth comparison.
    pub fn tenth(&self) -> Data {
        let mut part = Data { annotators: self.annotators, start: vec![0], code: Vec::new() };
        for pair in (0..self.pairs()).step_by(10) {
            part.code.extend_from_slice(self.votes(pair));
            part.start.push(part.code.len());
        }
        part
    }

    pub fn pairs(&self) -> usize {
        self.start.len() - 1
    }

    pub fn codes(&self) -> usize {
        self.annotators * KINDS
    }

    pub fn votes(&self, pair: usize) -> &[u32] {
        &self.code[self.start[pair]..self.start[pair + 1]]
    }
}

/// Votes, and `N` values of `Δ/τ` with the prior's weights, which sum to 1.
pub(super) struct Grid<'a, const N: usize> {
    pub data: &'a Data,
    pub nodes: [f64; N],
    weight: [f64; N],
}

impl<const N: usize> Grid<'_, N> {
    pub fn new(data: &Data) -> Grid<'_, N> {
        let nodes = std::array::from_fn(|t| REACH * (2.0 * t as f64 / (N - 1) as f64 - 1.0));
        let density = nodes.map(|z| (-0.5 * z * z).exp());
        let sum: f64 = density.iter().sum();
        Grid { data, nodes, weight: density.map(|d| d / sum) }
    }

    /// `τ` of the parameters.
    pub fn spread(&self, x: &[f64]) -> f64 {
        x[2 * self.data.annotators].exp()
    }

    /// The probability of every kind of vote of every annotator at every node.
    pub fn probabilities(&self, x: &[f64]) -> Vec<[f64; N]> {
        let spread = self.spread(x);
        (0..self.data.codes())
            .map(|code| {
                let (w, outcome, sign) = decode(code);
                self.nodes.map(|z| vote_probability(outcome, sign * spread * z, x[2 * w], x[2 * w + 1]))
            })
            .collect()
    }

    /// Leaves the posterior weights of a comparison's nodes in `rho`; returns `ln L_p`.
    pub fn posterior(&self, pair: usize, probability: &[[f64; N]], rho: &mut [f64; N]) -> f64 {
        *rho = self.weight;
        let mut ln_l = 0.0;
        for votes in self.data.votes(pair).chunks(CHUNK) {
            for &code in votes {
                rho.iter_mut().zip(&probability[code as usize]).for_each(|(rho, p)| *rho *= p);
            }
            let sum = dot(rho, &[1.0; N]);
            ln_l += sum.ln();
            rho.iter_mut().for_each(|rho| *rho /= sum);
        }
        ln_l
    }
}

/// Annotator, outcome, and the sign with which `Δ` of the first response enters.
pub(super) fn decode(code: usize) -> (usize, Outcome, f64) {
    let kind = code % KINDS;
    let outcome = [Outcome::Left, Outcome::Right, Outcome::Tie][kind % 3];
    (code / KINDS, outcome, if kind < 3 { 1.0 } else { -1.0 })
}

/// 1 for left, -1 for right: the sign of all there is in a vote for a side. A tie is no such vote.
pub(super) fn won(outcome: Outcome) -> f64 {
    if outcome == Outcome::Left { 1.0 } else { -1.0 }
}

/// For every vote of each annotator the probability of its outcome if they look, over what the *other* votes leave of `Δ`, and
/// if they do not.
pub(super) fn mixtures(data: &Data, x: &[f64]) -> Vec<Vec<(f64, f64)>> {
    let grid = Grid::<NODES>::new(data);
    let probability = grid.probabilities(x);
    let spread = grid.spread(x);
    // Of each code: 1 / P, what looking gives over P, and what the side alone gives.
    let terms: Vec<([f64; NODES], [f64; NODES], f64)> = (0..data.codes())
        .map(|code| {
            let (w, outcome, sign) = decode(code);
            let inverse = probability[code].map(|p| 1.0 / p);
            let looks =
                std::array::from_fn(|t| inverse[t] * sigmoid(won(outcome) * sign * spread * grid.nodes[t]));
            (inverse, looks, sigmoid(won(outcome) * x[2 * w + 1]))
        })
        .collect();
    let mut mixtures = vec![Vec::new(); data.annotators];
    let mut rho = [0.0; NODES];
    for pair in 0..data.pairs() {
        grid.posterior(pair, &probability, &mut rho);
        for &code in data.votes(pair) {
            let (inverse, looks, side) = &terms[code as usize];
            mixtures[code as usize / KINDS].push((dot(&rho, looks) / dot(&rho, inverse), *side));
        }
    }
    mixtures
}

/// Of every comparison `E[σ(Δ)]`, and the mean and standard deviation of `Δ`.
pub(super) fn labels(data: &Data, x: &[f64]) -> Vec<SoftLabel> {
    let grid = Grid::<NODES>::new(data);
    let probability = grid.probabilities(x);
    let delta = grid.nodes.map(|z| grid.spread(x) * z);
    let (first, square) = (delta.map(sigmoid), delta.map(|d| d * d));
    let mut rho = [0.0; NODES];
    (0..data.pairs())
        .map(|pair| {
            grid.posterior(pair, &probability, &mut rho);
            let mean = dot(&rho, &delta);
            let variance = dot(&rho, &square) - mean * mean;
            SoftLabel { first: dot(&rho, &first), mean, sd: variance.max(0.0).sqrt() }
        })
        .collect()
}
