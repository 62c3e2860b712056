//! Tests and intervals that hold however often one looks: the only honest answer to peeking.
//!
//! **Betting** on the mean of values in `[0, 1]`. Someone who holds that the mean is `m` offers fair bets on each next value;
//! the capital of whoever bets against is
//!
//! ```text
//! mean > m:   K⁺_t(m) = Π_{i <= t} (1 + min(λ_i, ½/m) (x_i - m))
//! mean < m:   K⁻_t(m) = Π_{i <= t} (1 - min(λ_i, ½/(1-m)) (x_i - m))
//! λ_i = √(2 ln(1/α) / (σ̂²_{i-1} i ln(1 + i)))
//! μ̂_t = (½ + Σ x) / (t + 1),    σ̂²_t = (¼ + Σ_i (x_i - μ̂_i)²) / (t + 1)
//! ```
//!
//! `λ_i` is fixed before `x_i` is seen, so `K⁺` is a non-negative supermartingale under `E[x_t | past] <= m`, and
//! `P(K⁺_t >= 1/α for any t) <= α` (Ville). Both capitals are monotone in `m`, hence the means that are not rejected are an
//! interval: a confidence sequence. It is intersected over time, which costs nothing; with the same `λ` for all `m` the ends are
//! found by bisection. Values of the same prompt are no fresh bets: give each prompt's mean, once.
//!
//! **Mixture** for wins and losses alone, with Jeffreys' prior on the rate:
//!
//! ```text
//! M_n = B(s + ½, n - s + ½) / (B(½, ½) p0^s (1 - p0)^{n-s})           rejects p = p0 at 1/α
//! ```
//!
//! Source: Waudby-Smith & Ramdas 2024, J. R. Stat. Soc. B 86 (hedged capital, predictable plug-in; truncation ½ and the priors as in
//! their package `confseq`); Ville 1939; Robbins 1970, Ann. Math. Stat. 41 (mixtures).
//!
//! Not here: the one-sided mixture for annotators (`drift.rs`).

use crate::interval::Estimate;
use crate::{Error, check_confidence, check_count, check_values};

/// What a bettor holds against the null.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alternative {
    /// The mean is above the null's.
    Above,
    /// The mean is below.
    Below,
}

/// Share of its capital that a bet may lose at most.
const STAKE_MAX: f64 = 0.5;

/// The predictable bets: a function of the values so far.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bets {
    ln_inverse_alpha: f64,
    seen: f64,
    sum: f64,
    squares: f64,
}

impl Bets {
    fn new(alpha: f64) -> Self {
        check_confidence(alpha);
        Bets { ln_inverse_alpha: -alpha.ln(), seen: 0.0, sum: 0.5, squares: 0.25 }
    }

    /// `λ` for the next value.
    fn next(&self) -> f64 {
        let (t, variance) = (self.seen + 1.0, self.squares / (self.seen + 1.0));
        (2.0 * self.ln_inverse_alpha / (variance * t * libm::log1p(t))).sqrt()
    }

    fn push(&mut self, x: f64) {
        self.seen += 1.0;
        self.sum += x;
        self.squares += (x - self.sum / (self.seen + 1.0)).powi(2);
    }
}

/// `ln` of what one bet makes of a unit.
fn ln_gain(x: f64, m: f64, bet: f64, alternative: Alternative) -> f64 {
    match alternative {
        Alternative::Above => libm::log1p(bet.min(STAKE_MAX / m) * (x - m)),
        Alternative::Below => libm::log1p(-bet.min(STAKE_MAX / (1.0 - m)) * (x - m)),
    }
}

/// A test of a mean that may be looked at after every value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BettingTest {
    mean: f64,
    alternative: Alternative,
    alpha: f64,
    bets: Bets,
    ln_capital: f64,
    ln_largest: f64,
}

impl BettingTest {
    /// Bets against the mean being `mean` or on the other side of it, with bets that suit the level `alpha`.
    ///
    /// # Panics
    ///
    /// If `mean` is not in `[0, 1]` or `alpha` not between 0 and 1.
    pub fn new(mean: f64, alternative: Alternative, alpha: f64) -> Self {
        assert!((0.0..=1.0).contains(&mean), "betting: a mean of {mean} is not in [0, 1]");
        Self { mean, alternative, alpha, bets: Bets::new(alpha), ln_capital: 0.0, ln_largest: 0.0 }
    }

    /// Takes the next value, clamped to `[0, 1]`.
    pub fn push(&mut self, x: f64) {
        let x = x.clamp(0.0, 1.0);
        self.ln_capital += ln_gain(x, self.mean, self.bets.next(), self.alternative);
        self.ln_largest = self.ln_largest.max(self.ln_capital);
        self.bets.push(x);
    }

    /// `ln K_t`: the evidence now.
    pub fn ln_evidence(&self) -> f64 {
        self.ln_capital
    }

    /// A p-value that may be looked at at any time: `min(1, 1 / max_t K_t)`.
    pub fn p_anytime(&self) -> f64 {
        (-self.ln_largest).exp()
    }

    /// Whether the null has been rejected at any time so far. It stays so.
    pub fn rejected(&self) -> bool {
        self.p_anytime() <= self.alpha
    }
}

/// The hedged confidence sequence after these values: with probability `confidence` the interval holds the mean at every time at
/// once. The low end is above the high one only if the values have no common mean.
///
/// # Panics
///
/// If `confidence` is not between 0 and 1.
pub fn confidence_sequence(values: &[f64], confidence: f64) -> Result<Estimate, Error> {
    check_confidence(confidence);
    check_count("confidence_sequence", "values", values.len(), 1)?;
    check_values("confidence_sequence", values, "a value in [0, 1]", |x| (0.0..=1.0).contains(&x))?;
    let alpha = 0.5 * (1.0 - confidence);
    let mut bets = Bets::new(alpha);
    let staked: Vec<(f64, f64)> = values
        .iter()
        .map(|&x| {
            let bet = bets.next();
            bets.push(x);
            (x, bet)
        })
        .collect();
    let rejects = |m: f64, alternative| {
        let gains = staked.iter().map(|&(x, bet)| ln_gain(x, m, bet, alternative));
        let largest = gains.fold((0.0, 0.0_f64), |(sum, most), gain| (sum + gain, most.max(sum + gain))).1;
        largest >= -alpha.ln()
    };
    Ok(Estimate {
        estimate: values.iter().sum::<f64>() / values.len() as f64,
        low: last_rejected(0.0, |m| rejects(m, Alternative::Above)),
        high: last_rejected(1.0, |m| rejects(m, Alternative::Below)),
        n: values.len(),
    })
}

/// The end of the stretch of rejected means that begins at `from`, 0 or 1.
fn last_rejected(from: f64, rejects: impl Fn(f64) -> bool) -> f64 {
    if !rejects(from) {
        return from;
    }
    let (mut inside, mut outside) = (from, 1.0 - from);
    for _ in 0..50 {
        let middle = 0.5 * (inside + outside);
        *if rejects(middle) { &mut inside } else { &mut outside } = middle;
    }
    inside
}

/// `ln M_n` of `wins` of `n` against a rate of `p0`.
///
/// # Panics
///
/// If `wins > n` or `p0` is not between 0 and 1.
pub fn ln_mixture_evidence(wins: u64, n: u64, p0: f64) -> f64 {
    assert!(wins <= n, "mixture: {wins} wins of {n}");
    check_confidence(p0);
    let (s, f) = (wins as f64, (n - wins) as f64);
    let ln_beta = |a: f64, b: f64| libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    ln_beta(s + 0.5, f + 0.5) - ln_beta(0.5, 0.5) - s * p0.ln() - f * libm::log1p(-p0)
}

/// The least wins of `n` comparisons without ties that reject a rate of ½ at level `alpha` by the mixture; `None` if all are
/// too few.
///
/// # Panics
///
/// If `alpha` is not between 0 and 1.
pub fn wins_to_decide(n: u64, alpha: f64) -> Option<u64> {
    check_confidence(alpha);
    (n.div_ceil(2)..=n).find(|&wins| ln_mixture_evidence(wins, n, 0.5) >= -alpha.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bets_by_hand() {
        // σ̂²_0 = ¼: λ_1 = √(2 ln 20 / (¼ ln 2)), far above the stake of ½/m = 1; the first win makes 1 + ½.
        let mut test = BettingTest::new(0.5, Alternative::Above, 0.05);
        test.push(1.0);
        assert!((test.ln_evidence() - 1.5_f64.ln()).abs() < 1e-15);
        // A loss costs half; the p-value keeps the best.
        test.push(0.0);
        assert!((test.ln_evidence() - 0.75_f64.ln()).abs() < 1e-15);
        assert!((test.p_anytime() - 1.0 / 1.5).abs() < 1e-15 && !test.rejected());
        // After (1): μ̂ = 1.5/2, σ̂² = (¼ + 1/16) / 2.
        let mut bets = Bets::new(0.05);
        bets.push(1.0);
        let expect = (2.0 * 20.0_f64.ln() / (0.15625 * 2.0 * 3.0_f64.ln())).sqrt();
        assert!((bets.next() - expect).abs() < 1e-14);
    }

    #[test]
    fn the_sequence_is_the_tests_inverted() {
        let values: Vec<f64> = (0..150).map(|i| [1.0, 0.5, 1.0, 0.0, 1.0][i % 5]).collect();
        let got = confidence_sequence(&values, 0.9).unwrap();
        for (m, alternative, rejected) in [
            (got.low - 1e-6, Alternative::Above, true),
            (got.low + 1e-6, Alternative::Above, false),
            (got.high - 1e-6, Alternative::Below, false),
            (got.high + 1e-6, Alternative::Below, true),
        ] {
            let mut test = BettingTest::new(m, alternative, 0.05);
            values.iter().for_each(|&x| test.push(x));
            assert_eq!(test.rejected(), rejected, "{m} {alternative:?}");
        }
        assert!(got.low > 0.5 && got.high < 0.85, "{got:?}");
    }

    #[test]
    fn the_table_of_wins() {
        let wins = [100, 200, 400, 1600].map(|n| wins_to_decide(n, 0.05).unwrap());
        assert_eq!(wins, [67, 125, 236, 875]);
        assert_eq!(wins_to_decide(3, 0.05), None);
    }
}
