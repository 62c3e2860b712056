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

mod grid;
mod maximum;

use self::grid::{Data, Grid, NODES, labels, mixtures};
use self::maximum::{maximum, near};
use crate::bradley_terry::{Outcome, sigmoid};
use crate::crowd_bt::{CrowdPrior, Reliability};
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
    /// Newton steps made on all comparisons and nodes.
    pub iterations: usize,
    prior: CrowdPrior,
    /// `(A, B)` of each annotator's votes: given all else, a vote's probability is `γ A + (1 - γ) B`.
    mixtures: Vec<Vec<(f64, f64)>>,
    /// How much larger the variance of `g` is than if all else were known.
    inflation: Option<Vec<f64>>,
}

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
        let found = maximum(&Grid::<NODES>::new(&data), prior, near(&data, prior, start))?;

        let n = found.x.len();
        let variance = Cholesky::new(&found.information, n).map(|factor| factor.inverse_diagonal());
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

/// Logits beyond which a reliability is 0 or 1.
const FAR: f64 = 12.0;
/// Halvings of the search for an interval's end: to about 1e-6 in the logit.
const BISECTIONS: usize = 24;
