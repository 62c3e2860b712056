//! Generalised advantage estimation (GAE) over the critic readings of each response.
//!
//! Legend: `u` = critic reading (see the module's legend); `t` = reading of one response, 0-based. `value_t[t]` is the
//! value of the prefix that ends just before token `t`. Sequences are ragged, so nothing is masked.
//!
//! Not here: KL-shaped rewards ([`super::ppo`]), whitening ([`super::whiten`]).

use super::error::check_value;
use super::{ObjectiveError, Spans};

/// Advantages and value targets, in units of the reward.
#[derive(Clone, Debug, PartialEq)]
pub struct Gae {
    /// `[u]`. Not whitened.
    pub advantage_u: Vec<f32>,
    /// `[u]`. Targets of the value loss, `advantage_u + value_u`.
    pub return_u: Vec<f32>,
}

/// All fields are explicit: there is no `Default`, because the caller has the context.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GaeConfig {
    /// Discount per response token, in `[0, 1]`.
    pub gamma: f64,
    /// Bias-variance mix (TRL's `lam`), in `[0, 1]`: 0 is one-step TD, 1 is Monte Carlo.
    pub lambda: f64,
}

impl GaeConfig {
    /// Checks both coefficients.
    pub fn validate(&self) -> Result<(), ObjectiveError> {
        let unit = |x: f64| (0.0..=1.0).contains(&x);
        check_value(
            "gamma",
            self.gamma,
            unit(self.gamma),
            "a value in [0, 1]",
            "it is a discount per token",
        )?;
        check_value("lam", self.lambda, unit(self.lambda), "a value in [0, 1]", "it mixes TD and Monte Carlo")
    }
}

/// Estimates advantages of each sequence by the backward recursion
///
/// ```text
/// delta_t = r_t + gamma * v_{t+1} - v_t
/// A_t     = delta_t + gamma * lambda * A_{t+1}
/// ```
///
/// with `v_{T} = A_{T} = 0`: the episode ends after the last reading, even if the response was cut by the length
/// limit, as in OpenAI's 2019 code and in TRL. The recursion runs in f64.
///
/// Source: Schulman et al. 2016, arXiv:1506.02438.
///
/// # Panics
///
/// If `reward_u` or `value_u` does not match `spans`, or a coefficient is out of range (user input was validated
/// long before this point): both are bugs in the caller, not bad data.
pub fn gae(reward_u: &[f32], value_u: &[f32], spans: &Spans, config: GaeConfig) -> Gae {
    spans.expect_tokens("gae", "reward_u", reward_u.len());
    spans.expect_tokens("gae", "value_u", value_u.len());
    config.validate().expect("the configuration was validated when it was read");

    let mut advantage_u = vec![0.0; reward_u.len()];
    let mut return_u = vec![0.0; reward_u.len()];
    for range in spans.iter() {
        let mut value_next = 0.0; // v_{t+1}
        let mut advantage_next = 0.0; // A_{t+1}
        for u in range.rev() {
            let value = f64::from(value_u[u]);
            let delta = f64::from(reward_u[u]) + config.gamma * value_next - value;
            advantage_next = delta + config.gamma * config.lambda * advantage_next;
            advantage_u[u] = advantage_next as f32;
            return_u[u] = (advantage_next + value) as f32;
            value_next = value;
        }
    }
    Gae { advantage_u, return_u }
}

#[cfg(test)]
mod tests {
    use super::super::check::spread;
    use super::*;

    // Three tokens, a reward of 1 at the end, a critic that says 1/2 everywhere.
    #[track_caller]
    fn check(gamma: f64, lambda: f64, expect_t: [f32; 3]) {
        let spans = Spans::from_lengths([3]);
        let out = gae(&[0.0, 0.0, 1.0], &[0.5, 0.5, 0.5], &spans, GaeConfig { gamma, lambda });
        assert_eq!(out.advantage_u, expect_t, "gamma = {gamma}, lambda = {lambda}");
        assert_eq!(out.return_u, expect_t.map(|a| a + 0.5), "gamma = {gamma}, lambda = {lambda}");
    }

    #[test]
    fn worked_by_hand() {
        check(1.0, 1.0, [0.5, 0.5, 0.5]); // Monte Carlo: G_t - v_t = 1 - 1/2.
        check(1.0, 0.0, [0.0, 0.0, 0.5]); // TD: only the last step is surprising.
        check(0.0, 1.0, [-0.5, -0.5, 0.5]); // No future: r_t - v_t.
        check(1.0, 0.5, [0.125, 0.25, 0.5]); // Each step back halves the surprise.
        check(0.5, 1.0, [-0.25, 0.0, 0.5]); // delta = [-.25, -.25, .5], A = delta + A_next / 2.
    }

    /// The recursion against the definition `A_t = sum_k (gamma lambda)^k delta_{t+k}`, and no leak between
    /// sequences: each alone gives the same numbers.
    #[test]
    fn equals_the_sum_of_discounted_deltas_in_every_sequence() {
        let (gamma, lambda) = (0.9, 0.7);
        let spans = Spans::from_lengths([4, 0, 1, 6]);
        let (reward_u, value_u) = (spread(11, 1), spread(11, 2));
        let out = gae(&reward_u, &value_u, &spans, GaeConfig { gamma, lambda });
        for range in spans.iter() {
            let delta = |u: usize| {
                let next = if u + 1 < range.end { f64::from(value_u[u + 1]) } else { 0.0 };
                f64::from(reward_u[u]) + gamma * next - f64::from(value_u[u])
            };
            for u in range.clone() {
                let expect: f64 =
                    (u..range.end).map(|k| (gamma * lambda).powi((k - u) as i32) * delta(k)).sum();
                assert!((f64::from(out.advantage_u[u]) - expect).abs() < 1e-6, "u = {u}");
            }
        }
    }

    #[test]
    fn an_empty_response_is_not_an_error() {
        let out = gae(&[], &[], &Spans::from_lengths([0]), GaeConfig { gamma: 1.0, lambda: 0.95 });
        assert_eq!(out, Gae { advantage_u: vec![], return_u: vec![] });
    }

    #[test]
    fn coefficients_outside_the_unit_interval_are_named() {
        let config = GaeConfig { gamma: 1.5, lambda: 0.95 };
        assert!(
            config.validate().unwrap_err().to_string().starts_with("gamma = 1.5, expected a value in [0, 1]")
        );
        let config = GaeConfig { gamma: 1.0, lambda: -0.1 };
        assert!(config.validate().unwrap_err().to_string().starts_with("lam = -0.1, expected"));
        assert!(GaeConfig { gamma: 1.0, lambda: 0.95 }.validate().is_ok());
    }
}
