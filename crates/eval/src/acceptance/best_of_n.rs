//! Best-of-n and over-optimisation: what happens to the true reward when more and more is asked of the proxy.
//!
//! From `N` responses to each prompt, each with the reward model's score (*proxy*) and the true one (*gold*), `stats::best_of_n` gives the
//! expected gold of the best of `n` by proxy over all subsets of size `n`; minus the prompt's mean it is the *gain* `R_n`, at the distance
//! `d_n = √(ln n - (n-1)/n)` (root nats). Gao's form `R = d (α - β d)` is linear in `α, β`, so least squares on the mean gains is the mean of
//! least squares on each prompt's: prompts are the items of `α` and `β`, and no error of the points among one another is ignored. The peak
//! `d* = α / 2β` is by the delta method.
//!
//! A curve of policies (checkpoints of a PPO run) has no prompts in common with itself to resample; its items are the points, with the
//! influence values of least squares scaled so that their spread is the HC1 error.
//!
//! ```text
//! RL:     R = d (α - β ln d),   d* = exp(α/β - 1)
//! HC1:    n (XᵀX)⁻¹ x_i e_i √((n-1)/(n-2))
//! ```
//!
//! Source: Gao, Schulman & Hilton 2022, arXiv:2210.10760; MacKinnon & White 1985, J. Econometrics 29, for HC1.
//!
//! Not here: the estimator and the fits (`stats`).

use polity_stats::{Error, Optimiser, OverOptimisation, best_of_n, best_of_n_kl, over_optimisation};

use super::{CONFIDENCE, Found, Name};
use crate::EvalError;

/// Sizes of the sweep; those above the number of responses are left out.
const SIZES: [usize; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
/// Responses to a prompt, below which nothing can be fitted: three sizes above 1.
const RESPONSES_MIN: usize = 4;

/// Responses to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    /// The prompt.
    pub prompt: String,
    /// The reward model's scores.
    pub proxy: Vec<f64>,
    /// The true ones.
    pub gold: Vec<f64>,
}

/// A sweep.
#[derive(Clone, Debug, PartialEq)]
pub struct BestOfN {
    /// `best_of_n_gold` and `best_of_n_proxy` by size, and the curve's.
    pub found: Found,
    /// Distances and gains, beginning with the best of 1.
    pub points: Vec<Point>,
    /// Gao's form through the gold gains.
    pub fit: OverOptimisation,
}

/// One size of a sweep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Responses of which the best is taken.
    pub n: usize,
    /// KL to the policy that was sampled, nats per sequence.
    pub kl: f64,
    /// Gain in proxy.
    pub proxy: f64,
    /// Gain in gold.
    pub gold: f64,
}

/// A policy that was optimised against the reward model.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimisedPolicy {
    /// What it is called, such as `step 40`.
    pub id: String,
    /// KL to the policy it began as, nats per sequence; above 0.
    pub kl: f64,
    /// The true reward, counted from the one it began with.
    pub gold: f64,
}

/// The sweep over `n`, of a reward model on samples of one policy.
///
/// # Panics
///
/// If a prompt has not one proxy and one gold score for each response.
pub fn best_of_n_measures(candidates: &[Candidates]) -> Result<BestOfN, EvalError> {
    let wrap = |source| EvalError::Stats { measure: "best_of_n".into(), source };
    let fewest = candidates.iter().map(|prompt| prompt.proxy.len()).min().unwrap_or(0);
    if fewest < RESPONSES_MIN {
        return Err(wrap(Error::TooFew {
            method: "best-of-n",
            what: "responses to each prompt",
            needed: RESPONSES_MIN,
            found: fewest,
        }));
    }
    let sizes: Vec<usize> = SIZES.into_iter().filter(|&n| n <= fewest).collect();
    let gains = |prompt: &Candidates, value: &[f64]| -> Result<Vec<f64>, Error> {
        let mean = value.iter().sum::<f64>() / value.len() as f64;
        sizes.iter().map(|&n| Ok(best_of_n(&prompt.proxy, value, n)? - mean)).collect()
    };
    let of = |value: fn(&Candidates) -> &Vec<f64>| -> Result<Vec<Vec<f64>>, EvalError> {
        candidates.iter().map(|prompt| gains(prompt, value(prompt)).map_err(wrap)).collect()
    };
    let (gold, proxy) = (of(|prompt| &prompt.gold)?, of(|prompt| &prompt.proxy)?);

    let mut found = Found::default();
    let ids = || candidates.iter().map(|prompt| prompt.prompt.as_str());
    for (k, n) in sizes.iter().enumerate().skip(1) {
        let category = format!("n = {n}");
        for (name, unit, gains) in
            [("best_of_n_gold", "gold reward", &gold), ("best_of_n_proxy", "reward", &proxy)]
        {
            let values = ids().zip(gains).map(|(id, gains)| (id, gains[k]));
            found.put(Name::of(name, unit).within(&category), values);
        }
    }
    let mean =
        |gains: &[Vec<f64>], k: usize| gains.iter().map(|gains| gains[k]).sum::<f64>() / gains.len() as f64;
    let points: Vec<Point> = (sizes.iter().enumerate())
        .map(|(k, &n)| Point { n, kl: best_of_n_kl(n), proxy: mean(&proxy, k), gold: mean(&gold, k) })
        .collect();

    // The best of 1 is at distance 0, where every curve is 0.
    let d: Vec<f64> = points[1..].iter().map(|point| point.kl.sqrt()).collect();
    let fit = |gains: &[f64]| {
        over_optimisation(Optimiser::BestOfN, &d, gains, &vec![1.0; d.len()], CONFIDENCE).map_err(wrap)
    };
    let by_prompt = gold.iter().map(|gains| fit(&gains[1..])).collect::<Result<Vec<_>, _>>()?;
    let whole = fit(&points[1..].iter().map(|point| point.gold).collect::<Vec<_>>())?;
    let influence: Vec<[f64; 2]> =
        by_prompt.iter().map(|fit| [fit.alpha.estimate, fit.beta.estimate]).collect();
    put_curve(&mut found, "best_of_n", &whole, ids().zip(influence));
    Ok(BestOfN { found, points, fit: whole })
}

/// The form of reinforcement learning through policies that were optimised further and further.
pub fn curve_measures(policies: &[OptimisedPolicy]) -> Result<(Found, OverOptimisation), EvalError> {
    let wrap = |source| EvalError::Stats { measure: "rl_curve".into(), source };
    let d: Vec<f64> = policies.iter().map(|policy| policy.kl.sqrt()).collect();
    let gold: Vec<f64> = policies.iter().map(|policy| policy.gold).collect();
    let fit = over_optimisation(Optimiser::Rl, &d, &gold, &vec![1.0; d.len()], CONFIDENCE).map_err(wrap)?;

    let row = |i: usize| [d[i], -d[i] * d[i].ln()];
    let sum = |j: usize, k: usize| (0..d.len()).map(|i| row(i)[j] * row(i)[k]).sum::<f64>();
    let (xx, xy, yy) = (sum(0, 0), sum(0, 1), sum(1, 1));
    let (n, determinant) = (d.len() as f64, xx * yy - xy * xy);
    let scale = n * ((n - 1.0) / (n - 2.0)).sqrt() / determinant;
    let influence = (0..d.len()).map(|i| {
        let ([x, y], residual) = (row(i), gold[i] - fit.reward(d[i]));
        let pull = scale * residual;
        [fit.alpha.estimate + pull * (yy * x - xy * y), fit.beta.estimate + pull * (xx * y - xy * x)]
    });
    let mut found = Found::default();
    put_curve(&mut found, "rl", &fit, policies.iter().map(|policy| policy.id.as_str()).zip(influence));
    Ok((found, fit))
}

/// α, β and the peak, from influence values on α and β.
fn put_curve<'i>(
    found: &mut Found,
    prefix: &str,
    fit: &OverOptimisation,
    influence: impl Iterator<Item = (&'i str, [f64; 2])>,
) {
    let influence: Vec<(&str, [f64; 2])> = influence.collect();
    let [alpha, beta, peak] = ["alpha", "beta", "peak"].map(|what| format!("{prefix}_{what}"));
    found.put(Name::of(&alpha, "gold reward per root nat"), influence.iter().map(|(id, [a, _])| (*id, *a)));
    found.put(Name::of(&beta, "gold reward per nat"), influence.iter().map(|(id, [_, b])| (*id, *b)));
    let name = Name::of(&peak, "root nats");
    let Some(top) = fit.peak else {
        return found.miss(name, "β is not above 0: the curve has no peak".into());
    };
    let (a0, b0) = (fit.alpha.estimate, fit.beta.estimate);
    let [by_alpha, by_beta] = fit.optimiser.ln_peak_gradient(a0, b0).map(|slope| top.estimate * slope);
    found.put(
        name,
        influence.iter().map(|(id, [a, b])| (*id, top.estimate + by_alpha * (a - a0) + by_beta * (b - b0))),
    );
}
