//! Logits become log-probs: here and nowhere else, at an explicit temperature.
//!
//! ```text
//! l        = cap(z) / temperature         cap(z) = z, or cap * tanh(z / cap)
//! lse      = ln sum_v e^l_v
//! logprob  = l_token - lse
//! entropy  = -sum_v p_v ln p_v = lse - sum_v p_v l_v      p = e^(l - lse)
//! KL(p||q) = sum_v p_v (ln p_v - ln q_v)
//! log_sum_sq = ln sum_v p_v^2
//! ```
//!
//! `z_v` is the raw output of the head for one row. Everything is f64 inside; log-probs, entropies and
//! divergences are in nats. A forbidden token may have `z = -inf`: it has probability 0 and adds nothing.
//! A NaN in the row makes every result of the row NaN. The soft cap comes before the temperature, as in
//! Transformers' Gemma 2, whose model caps and whose caller divides.
//!
//! Not here: the head's product, its chunks of rows (`cpu/logprob.rs`); samplers' filters (`lm`).

/// What one row says of one token. Nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// Log-probability of the token.
    pub logprob: f64,
    /// Entropy of the row's distribution.
    pub entropy: f64,
    /// Log of the sum of `e^l`.
    pub lse: f64,
}

/// Log-prob of `token`, and the row's entropy.
///
/// # Panics
///
/// If the token is outside the row or the temperature is not above 0.
pub fn row(z_v: &[f32], softcap: Option<f32>, temperature: f32, token: u32) -> RowStats {
    check("logprob", z_v, temperature);
    assert!((token as usize) < z_v.len(), "logprob: token {token} of {}", z_v.len());

    let lse = log_sum_exp(z_v, softcap, temperature);
    let log_p = |z: f32| logit(z, softcap, temperature) - lse;
    let entropy = z_v.iter().map(|&z| -p_times(log_p(z), log_p(z))).sum();
    RowStats { logprob: log_p(z_v[token as usize]), entropy, lse }
}

/// **Overwrites** `d_z_v`, which has one reader: the head's backward.
///
/// # Panics
///
/// As [`row`], or if `d_z_v` is not as long as `z_v`.
pub fn row_backward(
    d_z_v: &mut [f32],
    z_v: &[f32],
    softcap: Option<f32>,
    temperature: f32,
    token: u32,
    d_logprob: f32,
    d_entropy: f32,
) {
    assert_eq!(d_z_v.len(), z_v.len(), "logprob backward: d_z is like z");
    let RowStats { entropy, lse, .. } = row(z_v, softcap, temperature, token);

    let (d_logprob, d_entropy) = (f64::from(d_logprob), f64::from(d_entropy));
    for (i, d_z) in d_z_v.iter_mut().enumerate() {
        let log_p = logit(z_v[i], softcap, temperature) - lse;
        // forward was: logprob = l_token - lse, entropy = lse - sum_v p_v l_v
        // so now:
        let chosen = if i == token as usize { 1.0 } else { 0.0 };
        let d_l = d_logprob * (chosen - log_p.exp()) - d_entropy * p_times(log_p, log_p + entropy);
        // forward was: l = cap tanh(z / cap) / temperature
        // so now:
        let slope = softcap.map_or(1.0, |cap| 1.0 - (f64::from(z_v[i]) / f64::from(cap)).tanh().powi(2));
        *d_z = (d_l * slope / f64::from(temperature)) as f32;
    }
}

/// `KL(p || q)` of two rows over one vocabulary, both with the same cap and temperature. Infinite where `q`
/// forbids what `p` does not.
///
/// It has no gradient here: a full KL is part of a reward, which is not differentiated.
///
/// # Panics
///
/// If the rows differ in length or the temperature is not above 0.
pub fn kl_full(z_p_v: &[f32], z_q_v: &[f32], softcap: Option<f32>, temperature: f32) -> f64 {
    check("kl", z_p_v, temperature);
    assert_eq!(z_p_v.len(), z_q_v.len(), "kl: two rows of one vocabulary");

    let lse_p = log_sum_exp(z_p_v, softcap, temperature);
    let lse_q = log_sum_exp(z_q_v, softcap, temperature);
    let log_p = |z: f32| logit(z, softcap, temperature) - lse_p;
    let log_q = |z: f32| logit(z, softcap, temperature) - lse_q;
    z_p_v.iter().zip(z_q_v).map(|(&z_p, &z_q)| p_times(log_p(z_p), log_p(z_p) - log_q(z_q))).sum()
}

/// `ln sum_v p_v^2`: the log-probability that two tokens drawn from the row are the same.
///
/// It has no gradient here: it is part of a weight, which is not differentiated.
///
/// # Panics
///
/// If the temperature is not above 0.
pub fn log_sum_sq(z_v: &[f32], softcap: Option<f32>, temperature: f32) -> f64 {
    check("log_sum_sq", z_v, temperature);
    let lse = log_sum_exp(z_v, softcap, temperature);
    let log_p = |z: &f32| logit(*z, softcap, temperature) - lse;
    z_v.iter().map(|z| (2.0 * log_p(z)).exp()).sum::<f64>().ln()
}

/// The logit of the distribution from the head's raw output.
fn logit(z: f32, softcap: Option<f32>, temperature: f32) -> f64 {
    let z = f64::from(z);
    let capped = match softcap.map(f64::from) {
        Some(cap) => cap * (z / cap).tanh(),
        None => z,
    };
    capped / f64::from(temperature)
}

fn log_sum_exp(z_v: &[f32], softcap: Option<f32>, temperature: f32) -> f64 {
    let l = |z: f32| logit(z, softcap, temperature);
    let max = z_v.iter().fold(f64::NEG_INFINITY, |max, &z| max.max(l(z)));
    max + z_v.iter().map(|&z| (l(z) - max).exp()).sum::<f64>().ln()
}

/// `e^log_p * x`, which is 0 at probability 0 whatever `x` is.
fn p_times(log_p: f64, x: f64) -> f64 {
    if log_p == f64::NEG_INFINITY { 0.0 } else { log_p.exp() * x }
}

fn check(op: &str, z_v: &[f32], temperature: f32) {
    assert!(!z_v.is_empty(), "{op}: an empty row");
    assert!(temperature > 0.0, "{op}: temperature {temperature} is not above 0");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    const LN_2: f32 = std::f32::consts::LN_2;

    #[track_caller]
    fn near(got: f64, expect: f64) {
        assert!((got - expect).abs() < 1e-7, "{got} expected {expect}");
    }

    // Logits ln 1, ln 2, ln 1 are probabilities 1/4, 1/2, 1/4: entropy 3/2 ln 2.
    #[test]
    fn worked_by_hand() {
        let ln_2 = 2f64.ln();
        let z_v = [0.0, LN_2, 0.0];
        let stats = row(&z_v, None, 1.0, 1);
        near(stats.logprob, -ln_2);
        near(stats.entropy, 1.5 * ln_2);
        near(stats.lse, 2.0 * ln_2);
        near(row(&z_v, None, 1.0, 2).logprob, -2.0 * ln_2);
        // At temperature 1/2 the middle one has weight 4 of 6.
        near(row(&z_v, None, 0.5, 1).logprob, (4f64 / 6.0).ln());
        // A cap of 1/2: 0.5 tanh(2 ln 2) = 0.5 * 15/17. The temperature divides what is capped.
        let capped = 7.5f64 / 17.0;
        near(row(&z_v, Some(0.5), 1.0, 1).logprob, capped - (2.0 + capped.exp()).ln());
        near(row(&z_v, Some(0.5), 0.5, 1).logprob, 2.0 * capped - (2.0 + (2.0 * capped).exp()).ln());

        let mut d_z_v = unwritten(3);
        row_backward(&mut d_z_v, &z_v, None, 1.0, 1, 8.0, 0.0);
        for (got, expect) in d_z_v.iter().zip([-2.0, 4.0, -2.0]) {
            near((*got).into(), expect);
        }
        // -p (ln p + H): the middle one -1/2 (-1 + 3/2) ln 2, the others -1/4 (-2 + 3/2) ln 2.
        row_backward(&mut d_z_v, &z_v, None, 1.0, 1, 0.0, 8.0);
        for (got, expect) in d_z_v.iter().zip([ln_2, -2.0 * ln_2, ln_2]) {
            assert!((f64::from(*got) - expect).abs() < 5e-7, "{got} expected {expect}");
        }
        // 1/16 + 1/4 + 1/16 = 3/8; of a uniform row 1/3; of a certain one 1.
        near(log_sum_sq(&z_v, None, 1.0), 0.375f64.ln());
        near(log_sum_sq(&[7.0; 3], Some(0.5), 0.7), -3f64.ln());
        near(log_sum_sq(&[0.0, f32::NEG_INFINITY], None, 1.0), 0.0);
        // Against the uniform distribution the KL is ln 3 - H; against itself 0.
        near(kl_full(&z_v, &[7.0; 3], None, 1.0), 3f64.ln() - 1.5 * ln_2);
        near(kl_full(&z_v, &z_v, Some(0.5), 0.7), 0.0);
        near(kl_full(&[7.0; 3], &z_v, None, 1.0), (0.75f64 * 4.0 / 3.0).ln() + 5.0 / 3.0 * ln_2 - 3f64.ln());
    }

    #[test]
    fn gradients_match_central_differences() {
        let z_v: Vec<f32> = values(1, 11).iter().map(|x| 3.0 * x).collect();
        for (softcap, temperature) in [(None, 1.0), (None, 0.7), (Some(2.5), 1.0), (Some(2.5), 1.6)] {
            for (d_logprob, d_entropy) in [(1.0, 0.0), (0.0, 1.0), (-0.7, 0.4)] {
                let mut d_z_v = unwritten(11);
                row_backward(&mut d_z_v, &z_v, softcap, temperature, 4, d_logprob, d_entropy);
                // Measured worst 4.6e-7.
                let name = format!("cap {softcap:?} temperature {temperature} {d_logprob} {d_entropy}");
                check_gradient(&name, &d_z_v, &z_v, 0.02, 2.5e-6, |z_v| {
                    let stats = row(z_v, softcap, temperature, 4);
                    f64::from(d_logprob) * stats.logprob + f64::from(d_entropy) * stats.entropy
                });
            }
        }
    }

    #[test]
    fn far_apart_logits_lose_nothing() {
        let stats = row(&[1000.0, 0.0, 990.0], None, 1.0, 1);
        near(stats.logprob, -1000.0 - (1.0 + (-10f64).exp()).ln());
        let stats = row(&[-3e38, 3e38], None, 1.0, 1);
        assert_eq!((stats.logprob, stats.entropy), (0.0, 0.0));
    }

    #[test]
    fn a_forbidden_token_adds_nothing() {
        let (z_v, without) = ([0.3, f32::NEG_INFINITY, -0.4], [0.3, -0.4]);
        let (stats, expect) = (row(&z_v, None, 0.8, 2), row(&without, None, 0.8, 1));
        assert_eq!(stats, expect);
        assert_eq!(row(&z_v, None, 0.8, 1).logprob, f64::NEG_INFINITY);
        let mut d_z_v = unwritten(3);
        row_backward(&mut d_z_v, &z_v, None, 0.8, 2, 1.0, 1.0);
        assert!(d_z_v[1] == 0.0 && d_z_v.iter().all(|d| d.is_finite()), "{d_z_v:?}");
        assert_eq!(kl_full(&z_v, &z_v, None, 1.0), 0.0);
        assert_eq!(kl_full(&[0.0; 3], &z_v, None, 1.0), f64::INFINITY);
    }

    #[test]
    fn a_nan_is_not_hidden() {
        let z_v = [0.3, f32::NAN, -0.4];
        let stats = row(&z_v, None, 1.0, 0);
        assert!(stats.logprob.is_nan() && stats.entropy.is_nan() && stats.lse.is_nan(), "{stats:?}");
        assert!(kl_full(&z_v, &[0.0; 3], None, 1.0).is_nan());
    }

    #[test]
    #[should_panic(expected = "temperature 0 is not above 0")]
    fn a_temperature_of_zero_is_not_a_distribution() {
        row(&[0.0], None, 0.0, 0);
    }
}
