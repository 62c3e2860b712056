//! Proximal policy optimisation: rewards per token, advantages, the clipped policy loss and the clipped value loss.
//!
//! ```text
//! reward_t  = -kl_coef * kl_t, plus the score at one place of the response
//! A, R      = GAE(reward, value);  A whitened over the whole batch
//! policy    : sum factor * max(-A r, -A clip(r, 1 - low, 1 + high)) - entropy_coef * H,   r = exp(new - old)
//! value     : vf_coef * sum factor * 1/2 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2)
//! ```
//!
//! Everything is ragged. TRL 1.9.2 ("modern") works on a padded window and puts the score on the first pad; what its
//! padding does is reproduced here without any padding, see [`ScorePlacement::AfterLast`]. TRL 0.11.4 ("classic") and
//! Polity's default put the score on the last response token.
//!
//! Sources: Schulman et al. 2017, arXiv:1707.06347; Ziegler et al. 2019, arXiv:1909.08593 (KL in the reward); Ye et al.
//! 2020, arXiv:1912.09729 (dual clip); TRL 1.9.2 `trl/experimental/ppo` and 0.11.4 `trl/trainer/ppo_trainer.py`.
//!
//! Not here: rollouts, the inner epochs, gradient clipping, group baselines ([`super::grpo`]).

use super::error::{check_value, parse_name};
use super::gae::{GaeConfig, gae};
use super::metric::mean;
use super::whiten::{Moments, Variance, WhitenConfig, whiten};
use super::{Aggregation, MetricDecl, ObjectiveError, ScalarObjective, Spans, Stats};
use std::str::FromStr;

// ---------------------------------------------------------------------------------------------- rewards per token

/// Where in a response its score is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScorePlacement {
    /// On the last response token. A response of `n` tokens has `n` critic readings.
    LastToken,
    /// One place past the last token, as TRL 1.9.2, for parity with it.
    ///
    /// TRL pads every response to a window of `w` tokens, sets its KL to zero from place `n` on, keeps the critic's
    /// reading of place `n` (the value **after** the last token) and zeroes the later ones, and adds the score at
    /// place `n`, or at `n - 1` if the response fills the window. Beyond place `n` rewards and values are all zero, so
    /// GAE over the window equals GAE over the first `min(n + 1, w)` places. Those places are the critic readings
    /// here: one more than the tokens, unless the response fills the window. The value loss is over them all; the
    /// policy loss is over the tokens only.
    AfterLast,
}

impl FromStr for ScorePlacement {
    type Err = ObjectiveError;

    fn from_str(name: &str) -> Result<ScorePlacement, ObjectiveError> {
        let table = [("last_token", ScorePlacement::LastToken), ("after_last", ScorePlacement::AfterLast)];
        parse_name("score_placement", name, &table)
    }
}

impl ScorePlacement {
    /// The critic readings of each response. Reading `t` of a response is the value of the prefix that ends just
    /// before token `t`: the critic's scalar at the row that predicts token `t`. The extra reading of
    /// [`ScorePlacement::AfterLast`] is the scalar at the last token's own row.
    ///
    /// `window_tokens` is the width of TRL's response tensor: the longest generation of the rollout batch, before
    /// any truncation at a stop token. [`ScorePlacement::LastToken`] does not depend on it.
    ///
    /// # Panics
    ///
    /// If a response is longer than the window.
    pub fn value_spans(self, spans: &Spans, window_tokens: usize) -> Spans {
        Spans::from_lengths((0..spans.count()).map(|i| match self {
            ScorePlacement::LastToken => spans.length(i),
            ScorePlacement::AfterLast => {
                let length = spans.length(i);
                assert!(
                    length <= window_tokens,
                    "response {i} has {length} tokens, the window {window_tokens}"
                );
                (length + 1).min(window_tokens)
            }
        }))
    }
}

/// Rewards per critic reading, and the two sums per sequence that the log and the KL controller want.
#[derive(Clone, Debug, PartialEq)]
pub struct ShapedRewards {
    /// `[u]`. The KL penalty of each token, and the score.
    pub reward_u: Vec<f32>,
    /// `[i]`. Divergence of each response from the reference: the sum of its tokens' estimates, nats.
    pub kl_nats_i: Vec<f64>,
    /// `[i]`. Sum of each response's rewards without its score: `-kl_coef * kl_nats`.
    pub non_score_i: Vec<f64>,
}

/// Spreads the score and the KL penalty over the critic readings of each response:
/// `reward_t = -kl_coef * kl_t` on the tokens, plus `score` on the last reading.
///
/// `value_spans` is [`ScorePlacement::value_spans`]; it decides the place of the score. `kl_m` is the estimate (or the
/// full divergence) that is penalised, so the logged KL and the penalised KL are the same numbers.
///
/// # Panics
///
/// If a slice does not match its spans, or a response has no reading to put its score on (a sampled response has at
/// least one token).
pub fn shape_rewards(
    kl_m: &[f32],
    score_i: &[f32],
    kl_coef: f64,
    spans: &Spans,
    value_spans: &Spans,
) -> ShapedRewards {
    spans.expect_tokens("shape_rewards", "kl_m", kl_m.len());
    spans.expect_sequences("shape_rewards", "score_i", score_i.len());
    expect_readings("shape_rewards", spans, value_spans);

    let mut out = ShapedRewards {
        reward_u: vec![0.0; value_spans.total()],
        kl_nats_i: Vec::with_capacity(spans.count()),
        non_score_i: Vec::with_capacity(spans.count()),
    };
    for (i, (tokens, readings)) in spans.iter().zip(value_spans.iter()).enumerate() {
        assert!(!readings.is_empty(), "shape_rewards: response {i} is empty, its score has no place");
        let reward_t = &mut out.reward_u[readings];
        let last = reward_t.len() - 1;
        for (reward, &kl) in reward_t.iter_mut().zip(&kl_m[tokens.clone()]) {
            *reward = (-kl_coef * f64::from(kl)) as f32;
        }
        reward_t[last] = (f64::from(reward_t[last]) + f64::from(score_i[i])) as f32;
        let kl_nats = super::math::sum(&kl_m[tokens]);
        out.kl_nats_i.push(kl_nats);
        out.non_score_i.push(-kl_coef * kl_nats);
    }
    out
}

/// Panics unless each response has as many readings as tokens, or one more.
fn expect_readings(op: &str, spans: &Spans, value_spans: &Spans) {
    assert_eq!(value_spans.count(), spans.count(), "{op}: one span of readings per response");
    for i in 0..spans.count() {
        let (tokens, readings) = (spans.length(i), value_spans.length(i));
        assert!(
            readings == tokens || readings == tokens + 1,
            "{op}: response {i} has {tokens} tokens and {readings} critic readings, expected as many or one more"
        );
    }
}

/// Sums over the responses of a rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RolloutStats {
    /// Responses.
    pub sequences: u64,
    /// Response tokens.
    pub tokens: u64,
    /// Sum of the penalised KL, nats.
    pub kl_nats_sum: f64,
    /// Sum of `-log p` of the sampled tokens, nats.
    pub surprise_nats_sum: f64,
    /// Sum of the rewards without the scores.
    pub non_score_sum: f64,
    /// The shaped scores.
    pub scores: Moments,
}

impl RolloutStats {
    /// Sums over a rollout: the log-probs that the responses were sampled at, the shaped scores, and
    /// [`shape_rewards`]' sums.
    ///
    /// # Panics
    ///
    /// If a slice does not match `spans`.
    pub fn new(logprob_m: &[f32], score_i: &[f32], rewards: &ShapedRewards, spans: &Spans) -> RolloutStats {
        spans.expect_tokens("RolloutStats", "logprob_m", logprob_m.len());
        spans.expect_sequences("RolloutStats", "score_i", score_i.len());
        spans.expect_sequences("RolloutStats", "kl_nats_i", rewards.kl_nats_i.len());
        RolloutStats {
            sequences: spans.count() as u64,
            tokens: spans.total() as u64,
            kl_nats_sum: rewards.kl_nats_i.iter().sum(),
            surprise_nats_sum: -super::math::sum(logprob_m),
            non_score_sum: rewards.non_score_i.iter().sum(),
            scores: Moments::of(score_i),
        }
    }

    /// Mean divergence of a response, nats per sequence: what [`super::kl::KlController::update`] takes.
    pub fn kl_nats_per_sequence(&self) -> Option<f64> {
        mean(self.kl_nats_sum, self.sequences)
    }
}

impl Stats for RolloutStats {
    const METRICS: &'static [MetricDecl] = &[
        MetricDecl {
            name: "objective/kl",
            unit: "nats per sequence",
            formula: "sum over response tokens of the configured KL(policy || reference) estimate / sequences",
        },
        MetricDecl {
            name: "objective/entropy",
            unit: "nats per sequence",
            formula: "sum over response tokens of -log p of the sampled token / sequences (TRL 1.9.2 also subtracts 1 \
                      for each pad)",
        },
        MetricDecl {
            name: "objective/non_score_reward",
            unit: "reward per sequence",
            formula: "sum of -kl_coef * kl / sequences",
        },
        MetricDecl {
            name: "objective/rlhf_reward",
            unit: "reward per sequence",
            formula: "objective/scores + objective/non_score_reward",
        },
        MetricDecl {
            name: "objective/scores",
            unit: "reward per sequence",
            formula: "sum of scores / sequences, after scaling, clipping and the missing-EOS rule",
        },
        MetricDecl {
            name: "objective/scores_std",
            unit: "reward",
            formula: "unbiased standard deviation of the scores",
        },
        MetricDecl {
            name: "tokens/responses_len_mean",
            unit: "tokens per sequence",
            formula: "response tokens / sequences",
        },
    ];

    fn merge(&mut self, other: &RolloutStats) {
        self.sequences += other.sequences;
        self.tokens += other.tokens;
        self.kl_nats_sum += other.kl_nats_sum;
        self.surprise_nats_sum += other.surprise_nats_sum;
        self.non_score_sum += other.non_score_sum;
        self.scores.merge(&other.scores);
    }

    fn values(&self) -> Vec<Option<f64>> {
        let per_sequence = |sum| mean(sum, self.sequences);
        let scores = (self.sequences > 0).then_some(self.scores.mean);
        let non_score = per_sequence(self.non_score_sum);
        vec![
            self.kl_nats_per_sequence(),
            per_sequence(self.surprise_nats_sum),
            non_score,
            scores.zip(non_score).map(|(scores, non_score)| scores + non_score),
            scores,
            self.scores.variance(Variance::Unbiased).map(f64::sqrt),
            per_sequence(self.tokens as f64),
        ]
    }
}

// ----------------------------------------------------------------------------------------------------- advantages

/// How advantages are estimated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdvantageConfig {
    /// Discount and mix.
    pub gae: GaeConfig,
    /// Scale the rewards to unit variance first, keeping their mean.
    pub whiten_rewards: bool,
    /// Whiten the advantages. Both TRL trainers always do.
    pub whiten_advantages: bool,
    /// The variance that whitening divides by.
    pub variance: Variance,
}

/// What the inner epochs train on.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// `[m]`. One a response token; whitened if asked for.
    pub advantage_m: Vec<f32>,
    /// `[u]`. Value targets, from the advantages **before** whitening.
    pub return_u: Vec<f32>,
}

/// Whitens rewards, estimates advantages and returns, and whitens the advantages of the tokens.
///
/// Needs the whole rollout batch. `pool` merges moments over workers, so that all whiten by the same mean and
/// variance; a single worker passes `|moments| moments`. The rewards are whitened over the critic readings and the
/// advantages over the tokens, as TRL does.
///
/// # Panics
///
/// If a slice does not match its spans.
pub fn estimate_advantages(
    reward_u: &[f32],
    value_u: &[f32],
    spans: &Spans,
    value_spans: &Spans,
    config: AdvantageConfig,
    mut pool: impl FnMut(Moments) -> Moments,
) -> Result<Advantages, ObjectiveError> {
    expect_readings("estimate_advantages", spans, value_spans);
    let white_u = if config.whiten_rewards {
        let moments = pool(Moments::of(reward_u));
        let keep_mean = WhitenConfig { variance: config.variance, shift_mean: false };
        Some(whiten("rewards", reward_u, &moments, keep_mean)?)
    } else {
        None
    };
    let gae = gae(white_u.as_deref().unwrap_or(reward_u), value_u, value_spans, config.gae);

    // A reading past the last token has no token to reinforce.
    let mut advantage_m = Vec::with_capacity(spans.total());
    for (tokens, readings) in spans.iter().zip(value_spans.iter()) {
        advantage_m.extend_from_slice(&gae.advantage_u[readings.start..readings.start + tokens.len()]);
    }
    if config.whiten_advantages {
        let moments = pool(Moments::of(&advantage_m));
        let centre = WhitenConfig { variance: config.variance, shift_mean: true };
        advantage_m = whiten("advantages", &advantage_m, &moments, centre)?;
    }
    Ok(Advantages { advantage_m, return_u: gae.return_u })
}

// ---------------------------------------------------------------------------------------------------- policy loss

/// What the importance ratio `r` is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RatioLevel {
    /// Each token has its own: `exp(new_t - old_t)` (PPO, GRPO).
    Token,
    /// One a sequence, from the mean log-ratio of its tokens (GSPO, Zheng et al. 2025, arXiv:2507.18071).
    SequenceMean,
    /// One a sequence, from the sum of log-ratios: the ratio of the whole response's probabilities (TRL's RLOO).
    SequenceSum,
}

/// How the policy loss is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PolicyConfig {
    /// The ratio is not rewarded below `1 - cliprange_low`.
    pub cliprange_low: f64,
    /// The ratio is not rewarded above `1 + cliprange_high`. TRL's `cliprange` sets both.
    pub cliprange_high: f64,
    /// Bound on the loss of a bad action whose ratio explodes: `-A * dual_clip` where `A < 0`. TRL GRPO's `delta`.
    pub dual_clip: Option<f64>,
    /// Weight of the mean entropy in the objective.
    pub entropy_coef: f64,
    /// A call whose mean ratio is above this trains nothing (TRL classic's `ratio_threshold`).
    pub ratio_threshold: Option<f64>,
    /// What the ratio is of.
    pub ratio_level: RatioLevel,
}

impl PolicyConfig {
    /// Checks the fields.
    pub fn validate(&self) -> Result<(), ObjectiveError> {
        let (low, high) = (self.cliprange_low, self.cliprange_high);
        let reason = "it is a distance from ratio 1, and the ratio is positive";
        check_value("cliprange_low", low, low > 0.0 && low < 1.0, "a value in (0, 1)", reason)?;
        check_value("cliprange_high", high, high > 0.0, "> 0", "it is a distance from ratio 1")?;
        if let Some(c) = self.dual_clip {
            check_value(
                "dual_clip",
                c,
                c > 1.0 + high,
                "> 1 + cliprange_high",
                "it bounds what clipping left free",
            )?;
        }
        let entropy_coef = self.entropy_coef;
        check_value("entropy_coef", entropy_coef, entropy_coef >= 0.0, ">= 0", "entropy is a bonus")?;
        if let Some(threshold) = self.ratio_threshold {
            check_value("ratio_threshold", threshold, threshold > 1.0, "> 1", "the ratio starts at 1")?;
        }
        Ok(())
    }
}

/// The tokens of some responses, for the policy loss.
#[derive(Clone, Copy, Debug)]
pub struct PolicyBatch<'a> {
    /// Which tokens are whose.
    pub spans: &'a Spans,
    /// `[m]`. Under the policy being trained, at the sampling temperature.
    pub logprob_m: &'a [f32],
    /// `[m]`. Entropy of the distribution that each token was drawn from, nats.
    pub entropy_m: &'a [f32],
    /// `[m]`. Under the policy that sampled.
    pub old_logprob_m: &'a [f32],
    /// `[m]`.
    pub advantage_m: &'a [f32],
}

/// The policy loss and its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyObjective {
    /// This call's share of the step's loss, entropy bonus included.
    pub loss: f64,
    /// `[m]`. Gradient with respect to each log-prob.
    pub d_logprob_m: Vec<f32>,
    /// `[m]`. Gradient with respect to each entropy.
    pub d_entropy_m: Vec<f32>,
    /// Sums for the log.
    pub stats: PolicyStats,
}

/// Sums over the tokens of one optimiser step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyStats {
    /// Tokens.
    pub tokens: u64,
    /// Share of the loss without the entropy bonus; already divided by the step's denominator.
    pub policy_loss: f64,
    /// Sum of entropies, nats.
    pub entropy_sum: f64,
    /// Sum of `old - new`: k1 estimates of `KL(old || new)`, nats.
    pub kl_old_new_k1_sum: f64,
    /// Sum of `(old - new)^2 / 2`: k2 estimates of `KL(old || new)`, nats.
    pub kl_old_new_k2_sum: f64,
    /// Tokens with a negative advantage and a ratio clipped from below.
    pub clipped_low: u64,
    /// Tokens with a positive advantage and a ratio clipped from above.
    pub clipped_high: u64,
    /// Tokens whose loss the dual clip bounded.
    pub clipped_dual: u64,
    /// The ratios.
    pub ratios: Moments,
    /// Sum of advantages.
    pub advantage_sum: f64,
    /// Calls that the ratio guard silenced. TRL still steps the optimiser then, with a zero gradient.
    pub guarded_calls: u64,
}

impl Stats for PolicyStats {
    const METRICS: &'static [MetricDecl] = &[
        MetricDecl {
            name: "loss/policy_avg",
            unit: "loss",
            formula: "clipped policy loss of the step, entropy bonus not included",
        },
        MetricDecl {
            name: "policy/approxkl_avg",
            unit: "nats per token",
            formula: "k2 estimate of KL(old || new): sum of (new - old)^2 / 2 / tokens (TRL 1.9.2 divides by padded \
                      positions)",
        },
        MetricDecl {
            name: "policy/policykl",
            unit: "nats per token",
            formula: "k1 estimate of KL(old || new): sum of (old - new) / tokens; early stopping compares this",
        },
        MetricDecl {
            name: "policy/clipfrac_avg",
            unit: "share of tokens",
            formula: "tokens whose clipped loss exceeds the unclipped one / tokens",
        },
        MetricDecl {
            name: "clip_ratio/low_mean",
            unit: "share of tokens",
            formula: "tokens with ratio < 1 - cliprange_low and A < 0 / tokens",
        },
        MetricDecl {
            name: "clip_ratio/high_mean",
            unit: "share of tokens",
            formula: "tokens with ratio > 1 + cliprange_high and A > 0 / tokens",
        },
        MetricDecl {
            name: "policy/dual_clipfrac",
            unit: "share of tokens",
            formula: "tokens whose loss the dual clip bounded / tokens",
        },
        MetricDecl {
            name: "policy/entropy_avg",
            unit: "nats per token",
            formula: "sum of entropies of the policy / tokens",
        },
        MetricDecl {
            name: "val/ratio",
            unit: "ratio",
            formula: "sum of importance ratios / tokens (TRL 1.9.2 divides by padded positions, a pad counting 1)",
        },
        MetricDecl {
            name: "val/ratio_var_per_token",
            unit: "ratio squared",
            formula: "unbiased variance of the importance ratio over tokens (TRL's val/ratio_var is the variance of \
                      micro-batch means)",
        },
        MetricDecl {
            name: "policy/advantages_mean",
            unit: "advantage",
            formula: "sum of advantages / tokens",
        },
        MetricDecl {
            name: "policy/guarded_calls",
            unit: "calls",
            formula: "mini-batches silenced because their mean ratio exceeded ratio_threshold",
        },
    ];

    fn merge(&mut self, other: &PolicyStats) {
        self.tokens += other.tokens;
        self.policy_loss += other.policy_loss;
        self.entropy_sum += other.entropy_sum;
        self.kl_old_new_k1_sum += other.kl_old_new_k1_sum;
        self.kl_old_new_k2_sum += other.kl_old_new_k2_sum;
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        self.clipped_dual += other.clipped_dual;
        self.ratios.merge(&other.ratios);
        self.advantage_sum += other.advantage_sum;
        self.guarded_calls += other.guarded_calls;
    }

    fn values(&self) -> Vec<Option<f64>> {
        let per_token = |sum| mean(sum, self.tokens);
        let share = |count: u64| mean(count as f64, self.tokens);
        vec![
            Some(self.policy_loss),
            per_token(self.kl_old_new_k2_sum),
            self.policykl(),
            share(self.clipped_low + self.clipped_high),
            share(self.clipped_low),
            share(self.clipped_high),
            share(self.clipped_dual),
            per_token(self.entropy_sum),
            (self.ratios.count > 0).then_some(self.ratios.mean),
            self.ratios.variance(Variance::Unbiased),
            per_token(self.advantage_sum),
            Some(self.guarded_calls as f64),
        ]
    }
}

/// Inner epochs stop where the policy's divergence exceeds this multiple of `target_kl` (TRL classic).
const EARLY_STOP_FACTOR: f64 = 1.5;

impl PolicyStats {
    /// k1 estimate of `KL(old || new)`, nats per token: how far the inner epochs have moved the policy.
    pub fn policykl(&self) -> Option<f64> {
        mean(self.kl_old_new_k1_sum, self.tokens)
    }

    /// Whether the inner epochs should stop: `policykl > 1.5 * target_kl`. `target_kl` is about the policy that
    /// sampled, not the reference, and has nothing to do with the adaptive controller's target.
    pub fn should_stop_early(&self, target_kl: f64) -> bool {
        self.policykl().is_some_and(|kl| kl > EARLY_STOP_FACTOR * target_kl)
    }
}

/// The clipped policy loss of some responses, with the entropy bonus.
///
/// ```text
/// L = sum_m factor_m * (l(r_m, A_m) - entropy_coef * H_m)
/// l(r, A) = max(-A r, -A clip(r, 1 - low, 1 + high));   with dual clip and A < 0: min(l, -A dual_clip)
/// ```
///
/// `factor_m` is [`Aggregation::token_factor`]. A call may be a part of a step, with two exceptions that need a whole
/// one: the ratio guard averages over the call, and sequence-level ratios need whole sequences.
///
/// # Panics
///
/// If a slice does not match `spans`.
pub fn policy_loss(batch: PolicyBatch, config: &PolicyConfig, aggregation: Aggregation) -> PolicyObjective {
    let PolicyBatch { spans, logprob_m, entropy_m, old_logprob_m, advantage_m } = batch;
    spans.expect_tokens("policy_loss", "logprob_m", logprob_m.len());
    spans.expect_tokens("policy_loss", "entropy_m", entropy_m.len());
    spans.expect_tokens("policy_loss", "old_logprob_m", old_logprob_m.len());
    spans.expect_tokens("policy_loss", "advantage_m", advantage_m.len());

    let mut out = PolicyObjective {
        loss: 0.0,
        d_logprob_m: vec![0.0; logprob_m.len()],
        d_entropy_m: vec![0.0; logprob_m.len()],
        stats: PolicyStats::default(),
    };
    let stats = &mut out.stats;
    let mut entropy_bonus = 0.0;
    for range in spans.iter() {
        let factor = aggregation.token_factor(range.len());
        let log_ratio = |m: usize| f64::from(logprob_m[m]) - f64::from(old_logprob_m[m]);
        let shared_log_ratio = match config.ratio_level {
            RatioLevel::Token => None,
            RatioLevel::SequenceMean => {
                Some(range.clone().map(log_ratio).sum::<f64>() / range.len().max(1) as f64)
            }
            RatioLevel::SequenceSum => Some(range.clone().map(log_ratio).sum::<f64>()),
        };
        let mut d_shared_log_ratio = 0.0;
        for m in range.clone() {
            let advantage = f64::from(advantage_m[m]);
            let ratio = shared_log_ratio.unwrap_or_else(|| log_ratio(m)).exp();
            let token = Surrogate::new(ratio, advantage, config);
            stats.policy_loss += factor * token.loss;
            // forward was: loss(exp(log_ratio))
            // so now:
            let d_log_ratio = factor * token.d_ratio * ratio;
            if shared_log_ratio.is_none() {
                out.d_logprob_m[m] = d_log_ratio as f32;
            } else {
                d_shared_log_ratio += d_log_ratio;
            }

            let entropy = f64::from(entropy_m[m]);
            entropy_bonus += factor * config.entropy_coef * entropy;
            out.d_entropy_m[m] = (-factor * config.entropy_coef) as f32;

            stats.tokens += 1;
            stats.entropy_sum += entropy;
            stats.kl_old_new_k1_sum -= log_ratio(m);
            stats.kl_old_new_k2_sum += 0.5 * log_ratio(m).powi(2);
            stats.clipped_low += u64::from(token.clipped && advantage < 0.0);
            stats.clipped_high += u64::from(token.clipped && advantage > 0.0);
            stats.clipped_dual += u64::from(token.clipped_dual);
            stats.ratios.push(ratio);
            stats.advantage_sum += advantage;
        }
        // forward was: log_ratio = share * sum_t (new_t - old_t)
        // so now:
        let share = match config.ratio_level {
            RatioLevel::Token => continue,
            RatioLevel::SequenceMean => 1.0 / range.len().max(1) as f64,
            RatioLevel::SequenceSum => 1.0,
        };
        out.d_logprob_m[range].fill((share * d_shared_log_ratio) as f32);
    }
    out.loss = stats.policy_loss - entropy_bonus;

    if config.ratio_threshold.is_some_and(|threshold| stats.ratios.mean > threshold) {
        stats.guarded_calls = 1;
        stats.policy_loss = 0.0;
        out.loss = 0.0;
        out.d_logprob_m.fill(0.0);
        out.d_entropy_m.fill(0.0);
    }
    out
}

/// The loss of one token as a function of its ratio.
struct Surrogate {
    loss: f64,
    d_ratio: f64,
    /// The ratio is outside the clip range on the side that the advantage pushes to.
    clipped: bool,
    clipped_dual: bool,
}

impl Surrogate {
    fn new(ratio: f64, advantage: f64, config: &PolicyConfig) -> Surrogate {
        let bounded = ratio.clamp(1.0 - config.cliprange_low, 1.0 + config.cliprange_high);
        let (free, clipped) = (-advantage * ratio, -advantage * bounded);
        // A comparison, not f64::max, which would drop a NaN.
        let token = if clipped > free {
            Surrogate { loss: clipped, d_ratio: 0.0, clipped: true, clipped_dual: false }
        } else {
            Surrogate { loss: free, d_ratio: -advantage, clipped: false, clipped_dual: false }
        };
        match config.dual_clip {
            Some(c) if advantage < 0.0 && token.loss > -advantage * c => {
                Surrogate { loss: -advantage * c, d_ratio: 0.0, clipped_dual: true, ..token }
            }
            _ => token,
        }
    }
}

// ----------------------------------------------------------------------------------------------------- value loss

/// How the value loss is built.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueConfig {
    /// How far a value may move from the one at rollout before its loss stops improving; no bound if absent.
    pub cliprange_value: Option<f64>,
    /// Weight of the value loss.
    pub vf_coef: f64,
}

impl ValueConfig {
    /// Checks the fields.
    pub fn validate(&self) -> Result<(), ObjectiveError> {
        if let Some(c) = self.cliprange_value {
            check_value("cliprange_value", c, c > 0.0, "> 0", "it is a distance from the value at rollout")?;
        }
        check_value("vf_coef", self.vf_coef, self.vf_coef >= 0.0, ">= 0", "it weighs a loss")
    }
}

/// Sums over the critic readings of one optimiser step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValueStats {
    /// Critic readings.
    pub readings: u64,
    /// Share of the loss without `vf_coef`; already divided by the step's denominator.
    pub value_loss: f64,
    /// Readings whose clipped loss exceeds the unclipped one.
    pub clipped: u64,
    /// Sum of the critic's present values.
    pub prediction_sum: f64,
    /// Sum of squared errors of the present values.
    pub squared_error_sum: f64,
    /// The values at rollout.
    pub old_values: Moments,
    /// The returns.
    pub returns: Moments,
}

impl Stats for ValueStats {
    const METRICS: &'static [MetricDecl] = &[
        MetricDecl {
            name: "loss/value_avg",
            unit: "loss",
            formula: "clipped value loss of the step, without vf_coef",
        },
        MetricDecl {
            name: "val/clipfrac_avg",
            unit: "share of readings",
            formula: "readings whose clipped loss exceeds the unclipped one / readings",
        },
        MetricDecl {
            name: "val/vpred",
            unit: "reward",
            formula: "sum of the critic's present values / readings",
        },
        MetricDecl {
            name: "val/error",
            unit: "reward squared",
            formula: "sum of (present value - return)^2 / readings",
        },
        MetricDecl { name: "val/mean", unit: "reward", formula: "sum of the values at rollout / readings" },
        MetricDecl {
            name: "val/var",
            unit: "reward squared",
            formula: "unbiased variance of the values at rollout",
        },
        MetricDecl { name: "returns/mean", unit: "reward", formula: "sum of returns / readings" },
        MetricDecl {
            name: "returns/var",
            unit: "reward squared",
            formula: "unbiased variance of the returns",
        },
        MetricDecl {
            name: "val/var_explained",
            unit: "share",
            formula: "1 - val/error / returns/var; negative where the critic is worse than a constant",
        },
    ];

    fn merge(&mut self, other: &ValueStats) {
        self.readings += other.readings;
        self.value_loss += other.value_loss;
        self.clipped += other.clipped;
        self.prediction_sum += other.prediction_sum;
        self.squared_error_sum += other.squared_error_sum;
        self.old_values.merge(&other.old_values);
        self.returns.merge(&other.returns);
    }

    fn values(&self) -> Vec<Option<f64>> {
        let per_reading = |sum| mean(sum, self.readings);
        let error = per_reading(self.squared_error_sum);
        let returns_var = self.returns.variance(Variance::Unbiased);
        let any = self.readings > 0;
        vec![
            Some(self.value_loss),
            per_reading(self.clipped as f64),
            per_reading(self.prediction_sum),
            error,
            any.then_some(self.old_values.mean),
            self.old_values.variance(Variance::Unbiased),
            any.then_some(self.returns.mean),
            returns_var,
            error.zip(returns_var).filter(|(_, var)| *var > 0.0).map(|(error, var)| 1.0 - error / var),
        ]
    }
}

/// The clipped value loss over critic readings:
///
/// ```text
/// L = vf_coef * sum_u factor_u * 1/2 max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2)
/// ```
///
/// `aggregation` counts readings, not tokens (they differ under [`ScorePlacement::AfterLast`]). Where the ratio guard
/// silenced the policy loss, TRL silences this one too: the caller skips the call.
///
/// # Panics
///
/// If a slice does not match `value_spans`.
pub fn value_loss(
    value_u: &[f32],
    old_value_u: &[f32],
    return_u: &[f32],
    value_spans: &Spans,
    config: &ValueConfig,
    aggregation: Aggregation,
) -> ScalarObjective<ValueStats> {
    value_spans.expect_tokens("value_loss", "value_u", value_u.len());
    value_spans.expect_tokens("value_loss", "old_value_u", old_value_u.len());
    value_spans.expect_tokens("value_loss", "return_u", return_u.len());

    let mut stats = ValueStats::default();
    let mut d_scalar = vec![0.0; value_u.len()];
    for range in value_spans.iter() {
        let factor = aggregation.token_factor(range.len());
        for u in range {
            let (value, old, target) =
                (f64::from(value_u[u]), f64::from(old_value_u[u]), f64::from(return_u[u]));
            let bounded = config.cliprange_value.map_or(value, |c| value.clamp(old - c, old + c));
            let (free_error, bounded_error) = (value - target, bounded - target);
            let clipped = bounded_error.powi(2) > free_error.powi(2);
            // forward was: 1/2 error^2, with error = value - target unless clipped (then it does not depend on value)
            // so now:
            let (error, d_value) = if clipped { (bounded_error, 0.0) } else { (free_error, free_error) };
            stats.value_loss += factor * 0.5 * error.powi(2);
            d_scalar[u] = (config.vf_coef * factor * d_value) as f32;

            stats.readings += 1;
            stats.clipped += u64::from(clipped);
            stats.prediction_sum += value;
            stats.squared_error_sum += free_error.powi(2);
        }
    }
    stats.old_values = Moments::of(old_value_u);
    stats.returns = Moments::of(return_u);
    ScalarObjective { loss: config.vf_coef * stats.value_loss, d_scalar, stats }
}

#[cfg(test)]
mod tests {
    use super::super::check::{central_difference, spread};
    use super::*;

    const PLAIN: PolicyConfig = PolicyConfig {
        cliprange_low: 0.2,
        cliprange_high: 0.2,
        dual_clip: None,
        entropy_coef: 0.0,
        ratio_threshold: None,
        ratio_level: RatioLevel::Token,
    };

    // ------------------------------------------------------------------------------------------------- rewards

    #[test]
    fn score_on_the_last_token() {
        let spans = Spans::from_lengths([3, 1]);
        let value_spans = ScorePlacement::LastToken.value_spans(&spans, 0);
        assert_eq!(value_spans, spans);
        let out = shape_rewards(&[0.5, -1.0, 2.0, 4.0], &[10.0, 20.0], 0.5, &spans, &value_spans);
        assert_eq!(out.reward_u, [-0.25, 0.5, 9.0, 18.0]);
        assert_eq!(out.kl_nats_i, [1.5, 4.0]);
        assert_eq!(out.non_score_i, [-0.75, -2.0]);
    }

    #[test]
    fn score_after_the_last_token_unless_the_window_is_full() {
        let spans = Spans::from_lengths([3, 1]);
        let value_spans = ScorePlacement::AfterLast.value_spans(&spans, 3);
        assert_eq!(value_spans, Spans::from_lengths([3, 2]));
        let out = shape_rewards(&[0.5, -1.0, 2.0, 4.0], &[10.0, 20.0], 0.5, &spans, &value_spans);
        assert_eq!(out.reward_u, [-0.25, 0.5, 9.0, -2.0, 20.0]);
        // An empty response has one reading, and its score goes there.
        let empty = Spans::from_lengths([0]);
        let value_spans = ScorePlacement::AfterLast.value_spans(&empty, 3);
        assert_eq!(shape_rewards(&[], &[7.0], 0.5, &empty, &value_spans).reward_u, [7.0]);
    }

    #[test]
    #[should_panic(expected = "response 0 is empty")]
    fn an_empty_response_has_no_last_token() {
        let empty = Spans::from_lengths([0]);
        shape_rewards(&[], &[1.0], 0.1, &empty, &empty);
    }

    #[test]
    #[should_panic(expected = "has 4 tokens, the window 3")]
    fn a_response_longer_than_its_window_is_a_bug() {
        ScorePlacement::AfterLast.value_spans(&Spans::from_lengths([4]), 3);
    }

    /// TRL's computation on its padded window, written out as it is there: KL zero and value zero past the end, the
    /// score on the first pad, GAE over every place.
    fn padded_reference(
        kl_m: &[f32],
        score_i: &[f32],
        value_u: &[f32],
        spans: &Spans,
        value_spans: &Spans,
        window: usize,
    ) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let (kl_coef, gamma, lambda) = (0.3, 0.97, 0.9);
        let (mut advantage_it, mut return_it) = (vec![], vec![]);
        for i in 0..spans.count() {
            let length = spans.length(i);
            let (mut reward_t, mut value_t) = (vec![0.0; window], vec![0.0; window]);
            for t in 0..length {
                reward_t[t] = -kl_coef * f64::from(kl_m[spans.range(i)][t]);
            }
            for t in 0..=length.min(window - 1) {
                value_t[t] = f64::from(value_u[value_spans.range(i)][t]);
            }
            reward_t[length.min(window - 1)] += f64::from(score_i[i]);
            let mut advantage_t = vec![0.0; window];
            let mut last = 0.0;
            for t in (0..window).rev() {
                let next = if t + 1 < window { value_t[t + 1] } else { 0.0 };
                last = reward_t[t] + gamma * next - value_t[t] + gamma * lambda * last;
                advantage_t[t] = last;
            }
            return_it.push((0..window).map(|t| advantage_t[t] + value_t[t]).collect());
            advantage_it.push(advantage_t);
        }
        (advantage_it, return_it)
    }

    #[test]
    fn ragged_readings_equal_the_padded_window() {
        let (window, spans) = (6, Spans::from_lengths([2, 6, 5, 1]));
        let value_spans = ScorePlacement::AfterLast.value_spans(&spans, window);
        let (kl_m, score_i, value_u) = (spread(14, 1), spread(4, 2), spread(17, 3));
        let rewards = shape_rewards(&kl_m, &score_i, 0.3, &spans, &value_spans);
        let config = AdvantageConfig {
            gae: GaeConfig { gamma: 0.97, lambda: 0.9 },
            whiten_rewards: false,
            whiten_advantages: false,
            variance: Variance::Unbiased,
        };
        let got =
            estimate_advantages(&rewards.reward_u, &value_u, &spans, &value_spans, config, |m| m).unwrap();
        let (advantage_it, return_it) =
            padded_reference(&kl_m, &score_i, &value_u, &spans, &value_spans, window);
        // Measured worst 1e-7 (f32 rewards and outputs).
        for i in 0..spans.count() {
            for (t, m) in spans.range(i).enumerate() {
                assert!((f64::from(got.advantage_m[m]) - advantage_it[i][t]).abs() < 5e-7, "A {i} {t}");
            }
            for (t, u) in value_spans.range(i).enumerate() {
                assert!((f64::from(got.return_u[u]) - return_it[i][t]).abs() < 5e-7, "R {i} {t}");
            }
        }
    }

    #[test]
    fn whitening_of_rewards_and_advantages() {
        let spans = Spans::from_lengths([2, 3]);
        let value_spans = ScorePlacement::AfterLast.value_spans(&spans, 4);
        let (reward_u, value_u) = (spread(7, 1), vec![0.0; 7]);
        let config = AdvantageConfig {
            gae: GaeConfig { gamma: 0.0, lambda: 0.0 },
            whiten_rewards: true,
            whiten_advantages: false,
            variance: Variance::Unbiased,
        };
        // No future and no critic: the returns are the whitened rewards.
        let out = estimate_advantages(&reward_u, &value_u, &spans, &value_spans, config, |m| m).unwrap();
        let (before, after) = (Moments::of(&reward_u), Moments::of(&out.return_u));
        assert!((after.variance(Variance::Unbiased).unwrap() - 1.0).abs() < 1e-6);
        assert!((after.mean - before.mean).abs() < 1e-6);

        let config = AdvantageConfig { whiten_rewards: false, whiten_advantages: true, ..config };
        let out = estimate_advantages(&reward_u, &value_u, &spans, &value_spans, config, |m| m).unwrap();
        assert_eq!(out.return_u, reward_u);
        // Over the 5 tokens, not the 7 readings.
        let white = Moments::of(&out.advantage_m);
        assert_eq!(white.count, 5);
        assert!(white.mean.abs() < 1e-6, "{white:?}");
        assert!((white.variance(Variance::Unbiased).unwrap() - 1.0).abs() < 1e-6, "{white:?}");
    }

    #[test]
    fn two_workers_whiten_like_one() {
        let config = AdvantageConfig {
            gae: GaeConfig { gamma: 1.0, lambda: 0.95 },
            whiten_rewards: true,
            whiten_advantages: true,
            variance: Variance::Unbiased,
        };
        let (reward_u, value_u) = (spread(9, 1), spread(9, 2));
        let both = Spans::from_lengths([4, 2, 3]);
        let mut seen = vec![];
        let whole = estimate_advantages(&reward_u, &value_u, &both, &both, config, |m| {
            seen.push(m);
            m
        })
        .unwrap();
        // Each worker is given the moments that the two would have merged.
        let mut advantage_m = vec![];
        for (spans, range) in [(Spans::from_lengths([4]), 0..4), (Spans::from_lengths([2, 3]), 4..9)] {
            let mut pooled = seen.iter().copied();
            let part = estimate_advantages(
                &reward_u[range.clone()],
                &value_u[range],
                &spans,
                &spans,
                config,
                |_| pooled.next().unwrap(),
            );
            advantage_m.extend(part.unwrap().advantage_m);
        }
        for (got, expect) in advantage_m.iter().zip(&whole.advantage_m) {
            assert!((got - expect).abs() < 1e-6, "{got} {expect}");
        }
    }

    #[test]
    fn rollout_stats_by_hand() {
        let spans = Spans::from_lengths([2, 1]);
        let rewards = shape_rewards(&[1.0, 2.0, 3.0], &[5.0, 9.0], 0.1, &spans, &spans);
        let stats = RolloutStats::new(&[-1.0, -2.0, -4.0], &[5.0, 9.0], &rewards, &spans);
        let check = |name, expect: f64| {
            let got = stats.value(name).unwrap();
            assert!((got - expect).abs() < 1e-12, "{name}: {got} expected {expect}");
        };
        check("objective/kl", 3.0);
        check("objective/entropy", 3.5);
        check("objective/non_score_reward", -0.3);
        check("objective/scores", 7.0);
        check("objective/rlhf_reward", 6.7);
        check("objective/scores_std", 8.0_f64.sqrt());
        check("tokens/responses_len_mean", 1.5);

        let part = |range: std::ops::Range<usize>, score: f32, kl_m: &[f32], logprob_m: &[f32]| {
            let spans = Spans::from_lengths([range.len()]);
            let rewards = shape_rewards(kl_m, &[score], 0.1, &spans, &spans);
            RolloutStats::new(logprob_m, &[score], &rewards, &spans)
        };
        let mut merged = part(0..2, 5.0, &[1.0, 2.0], &[-1.0, -2.0]);
        merged.merge(&part(2..3, 9.0, &[3.0], &[-4.0]));
        assert_eq!(merged, stats);
    }

    // -------------------------------------------------------------------------------------------------- policy

    /// One token: loss, gradient and whether it was clipped.
    #[track_caller]
    fn check_token(
        config: PolicyConfig,
        ratio: f64,
        advantage: f32,
        loss: f64,
        d_logprob: f64,
        share: [f64; 3],
    ) {
        let spans = Spans::from_lengths([1]);
        let batch = PolicyBatch {
            spans: &spans,
            logprob_m: &[ratio.ln() as f32],
            entropy_m: &[0.0],
            old_logprob_m: &[0.0],
            advantage_m: &[advantage],
        };
        let out = policy_loss(batch, &config, Aggregation::TokenMean { tokens: 1.0 });
        let what = format!("ratio {ratio}, advantage {advantage}");
        assert!((out.loss - loss).abs() < 1e-6, "{what}: loss {} expected {loss}", out.loss);
        let got = f64::from(out.d_logprob_m[0]);
        assert!((got - d_logprob).abs() < 1e-6, "{what}: gradient {got} expected {d_logprob}");
        let names = ["clip_ratio/low_mean", "clip_ratio/high_mean", "policy/dual_clipfrac"];
        assert_eq!(names.map(|name| out.stats.value(name).unwrap()), share, "{what}");
    }

    #[test]
    fn clipping_by_hand() {
        let (no, low, high, dual) = ([0.0; 3], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]);
        // Inside the range: -A r.
        check_token(PLAIN, 1.1, 2.0, -2.2, -2.2, no);
        check_token(PLAIN, 0.9, -2.0, 1.8, 1.8, no);
        // Outside, on the side that the advantage pushes to: no gradient.
        check_token(PLAIN, 1.5, 2.0, -2.4, 0.0, high);
        check_token(PLAIN, 0.5, -2.0, 1.6, 0.0, low);
        // Outside, on the other side: the gradient pulls back.
        check_token(PLAIN, 0.5, 2.0, -1.0, -1.0, no);
        check_token(PLAIN, 4.0, -2.0, 8.0, 8.0, no);
        // Asymmetric range.
        let wide = PolicyConfig { cliprange_low: 0.1, cliprange_high: 0.6, ..PLAIN };
        check_token(wide, 1.5, 2.0, -3.0, -3.0, no);
        check_token(wide, 0.85, -2.0, 1.8, 0.0, low);
        // Dual clip: a bad action's loss stops at -A * 3; nothing changes below it or for good actions.
        let bounded = PolicyConfig { dual_clip: Some(3.0), ..PLAIN };
        check_token(bounded, 4.0, -2.0, 6.0, 0.0, dual);
        check_token(bounded, 2.0, -2.0, 4.0, 4.0, no);
        check_token(bounded, 4.0, 2.0, -2.4, 0.0, high);
    }

    struct Example {
        spans: Spans,
        logprob_m: Vec<f32>,
        entropy_m: Vec<f32>,
        old_logprob_m: Vec<f32>,
        advantage_m: Vec<f32>,
    }

    /// Ratios from 0.56 to 1.77: inside and outside the clip range on both sides, for both signs of advantage.
    fn example() -> Example {
        let spans = Spans::from_lengths([3, 5, 1, 4]);
        let old_logprob_m: Vec<f32> = spread(13, 1).iter().map(|x| x - 1.5).collect();
        let logprob_m = old_logprob_m.iter().zip(spread(13, 6)).map(|(old, x)| old + 0.6 * x).collect();
        let entropy_m = spread(13, 4).iter().map(|x| x + 1.5).collect();
        Example { spans, logprob_m, entropy_m, old_logprob_m, advantage_m: spread(13, 3) }
    }

    impl Example {
        fn batch(&self) -> PolicyBatch<'_> {
            PolicyBatch {
                spans: &self.spans,
                logprob_m: &self.logprob_m,
                entropy_m: &self.entropy_m,
                old_logprob_m: &self.old_logprob_m,
                advantage_m: &self.advantage_m,
            }
        }
    }

    const TOKENS: Aggregation = Aggregation::TokenMean { tokens: 20.0 };
    const SEQUENCES: Aggregation = Aggregation::SequenceMean { sequences: 7.0 };

    #[test]
    fn policy_gradients_are_central_differences() {
        let example = example();
        let configs = [
            PLAIN,
            PolicyConfig { entropy_coef: 0.05, ..PLAIN },
            PolicyConfig { cliprange_low: 0.1, cliprange_high: 0.3, ..PLAIN },
            PolicyConfig { dual_clip: Some(1.25), ..PLAIN },
            PolicyConfig { ratio_level: RatioLevel::SequenceMean, ..PLAIN },
            PolicyConfig { ratio_level: RatioLevel::SequenceSum, cliprange_high: 2.0, ..PLAIN },
            PolicyConfig { ratio_threshold: Some(10.0), ..PLAIN },
        ];
        for config in configs {
            for aggregation in [TOKENS, SEQUENCES] {
                let out = policy_loss(example.batch(), &config, aggregation);
                assert_eq!(out.stats.guarded_calls, 0);
                let what = format!("policy_loss {config:?} {aggregation:?}");
                // Measured worst 1.8e-7.
                central_difference(&what, &example.logprob_m, &out.d_logprob_m, 1e-3, 1e-6, |x| {
                    policy_loss(PolicyBatch { logprob_m: x, ..example.batch() }, &config, aggregation).loss
                });
                if config.entropy_coef != 0.0 {
                    central_difference(&what, &example.entropy_m, &out.d_entropy_m, 1e-2, 2e-7, |x| {
                        policy_loss(PolicyBatch { entropy_m: x, ..example.batch() }, &config, aggregation)
                            .loss
                    });
                } else {
                    assert!(out.d_entropy_m.iter().all(|&d| d == 0.0));
                }
            }
        }
    }

    /// The example has every case, so the differences above cannot miss a branch.
    #[test]
    fn the_example_reaches_every_branch() {
        let out = policy_loss(example().batch(), &PolicyConfig { dual_clip: Some(1.25), ..PLAIN }, TOKENS);
        let stats = out.stats;
        assert!(stats.clipped_low > 0 && stats.clipped_high > 0 && stats.clipped_dual > 0, "{stats:?}");
        assert!(stats.clipped_low + stats.clipped_high + stats.clipped_dual < stats.tokens);
    }

    #[test]
    fn ratio_is_exactly_one_where_new_is_old() {
        let mut example = example();
        example.logprob_m = example.old_logprob_m.clone();
        for ratio_level in [RatioLevel::Token, RatioLevel::SequenceMean, RatioLevel::SequenceSum] {
            let out = policy_loss(example.batch(), &PolicyConfig { ratio_level, ..PLAIN }, TOKENS);
            assert_eq!(out.stats.value("val/ratio"), Some(1.0));
            assert_eq!(out.stats.value("val/ratio_var_per_token"), Some(0.0));
            assert_eq!(out.stats.value("policy/approxkl_avg"), Some(0.0));
            assert_eq!(out.stats.policykl(), Some(0.0));
            assert_eq!(out.stats.value("policy/clipfrac_avg"), Some(0.0));
            // At ratio 1 the loss is minus the advantage and so is the gradient of each token.
            let expect = -super::super::math::sum(&example.advantage_m) / 20.0;
            assert!((out.loss - expect).abs() < 1e-15);
        }
        let out = policy_loss(example.batch(), &PLAIN, TOKENS);
        for (d, a) in out.d_logprob_m.iter().zip(&example.advantage_m) {
            assert_eq!(*d, (-f64::from(*a) / 20.0) as f32);
        }
    }

    #[test]
    fn sequence_level_ratios_by_hand() {
        let spans = Spans::from_lengths([2]);
        let batch = PolicyBatch {
            spans: &spans,
            logprob_m: &[0.3_f32 - 1.0, 0.1 - 1.0],
            entropy_m: &[0.0; 2],
            old_logprob_m: &[-1.0; 2],
            advantage_m: &[-1.0; 2],
        };
        let loss =
            |ratio_level| policy_loss(batch, &PolicyConfig { ratio_level, ..PLAIN }, SEQUENCES).loss * 7.0;
        assert!((loss(RatioLevel::Token) - (0.3_f64.exp() + 0.1_f64.exp()) / 2.0).abs() < 1e-6);
        assert!((loss(RatioLevel::SequenceMean) - 0.2_f64.exp()).abs() < 1e-6);
        assert!((loss(RatioLevel::SequenceSum) - 0.4_f64.exp()).abs() < 1e-6);
    }

    #[test]
    fn policy_stats_by_hand() {
        let spans = Spans::from_lengths([2]);
        let batch = PolicyBatch {
            spans: &spans,
            logprob_m: &[-1.0, -2.0],
            entropy_m: &[0.5, 1.5],
            old_logprob_m: &[-1.5, -1.75],
            advantage_m: &[2.0, -1.0],
        };
        let stats = policy_loss(batch, &PLAIN, Aggregation::TokenMean { tokens: 2.0 }).stats;
        let check = |name, expect: f64| {
            let got = stats.value(name).unwrap();
            assert!((got - expect).abs() < 1e-12, "{name}: {got} expected {expect}");
        };
        let ratio = [0.5_f64.exp(), (-0.25_f64).exp()];
        check("policy/approxkl_avg", (0.125 + 0.03125) / 2.0);
        check("policy/policykl", (-0.5 + 0.25) / 2.0);
        check("policy/clipfrac_avg", 1.0);
        check("clip_ratio/low_mean", 0.5);
        check("clip_ratio/high_mean", 0.5);
        check("policy/entropy_avg", 1.0);
        check("val/ratio", (ratio[0] + ratio[1]) / 2.0);
        check("val/ratio_var_per_token", (ratio[0] - ratio[1]).powi(2) / 2.0);
        check("policy/advantages_mean", 0.5);
        check("loss/policy_avg", (-2.0 * 1.2 + 0.8) / 2.0);
    }

    #[test]
    fn micro_batches_add_up() {
        let example = example();
        let config = PolicyConfig { entropy_coef: 0.01, ..PLAIN };
        for aggregation in [TOKENS, SEQUENCES] {
            let whole = policy_loss(example.batch(), &config, aggregation);
            let part = |range: std::ops::Range<usize>, lengths: &[usize]| {
                let spans = Spans::from_lengths(lengths.iter().copied());
                let batch = PolicyBatch {
                    spans: &spans,
                    logprob_m: &example.logprob_m[range.clone()],
                    entropy_m: &example.entropy_m[range.clone()],
                    old_logprob_m: &example.old_logprob_m[range.clone()],
                    advantage_m: &example.advantage_m[range],
                };
                policy_loss(batch, &config, aggregation)
            };
            let (a, b) = (part(0..3, &[3]), part(3..13, &[5, 1, 4]));
            assert!((whole.loss - a.loss - b.loss).abs() < 1e-14);
            assert_eq!(whole.d_logprob_m, [a.d_logprob_m, b.d_logprob_m].concat());
            assert_eq!(whole.d_entropy_m, [a.d_entropy_m, b.d_entropy_m].concat());
            let mut stats = a.stats;
            stats.merge(&b.stats);
            for (got, expect) in stats.metrics().iter().zip(whole.stats.metrics()) {
                assert!((got.value - expect.value).abs() < 1e-12, "{got:?} {expect:?}");
            }
        }
    }

    #[test]
    fn ratio_guard_silences_the_whole_call() {
        let example = example();
        let mean = policy_loss(example.batch(), &PLAIN, TOKENS).stats.ratios.mean;
        let config =
            |threshold| PolicyConfig { ratio_threshold: Some(threshold), entropy_coef: 0.1, ..PLAIN };
        let quiet = policy_loss(example.batch(), &config(mean - 1e-6), TOKENS);
        assert_eq!((quiet.loss, quiet.stats.guarded_calls), (0.0, 1));
        assert!(quiet.d_logprob_m.iter().chain(&quiet.d_entropy_m).all(|&d| d == 0.0));
        let mut two = quiet.stats.clone();
        two.merge(&quiet.stats);
        assert_eq!(two.value("policy/guarded_calls"), Some(2.0));
        // At the threshold itself nothing happens.
        let loud = policy_loss(example.batch(), &config(mean), TOKENS);
        assert_eq!(loud.stats.guarded_calls, 0);
        assert!(loud.d_logprob_m.iter().any(|&d| d != 0.0));
    }

    #[test]
    fn early_stop_is_at_one_and_a_half_targets() {
        let stats = |policykl: f64| PolicyStats {
            tokens: 4,
            kl_old_new_k1_sum: 4.0 * policykl,
            ..Default::default()
        };
        assert!(!stats(1.5).should_stop_early(1.0));
        assert!(stats(1.5001).should_stop_early(1.0));
        assert!(!stats(-2.0).should_stop_early(1.0));
        assert!(!PolicyStats::default().should_stop_early(1.0));
    }

    #[test]
    fn nothing_counted_is_no_metric() {
        let names =
            |metrics: Vec<super::super::Metric>| metrics.iter().map(|m| m.decl.name).collect::<Vec<_>>();
        assert_eq!(names(PolicyStats::default().metrics()), ["loss/policy_avg", "policy/guarded_calls"]);
        assert_eq!(names(ValueStats::default().metrics()), ["loss/value_avg"]);
        assert!(RolloutStats::default().metrics().is_empty());
    }

    #[test]
    fn nan_is_not_hidden_by_clipping() {
        let spans = Spans::from_lengths([1]);
        for logprob in [f32::NAN, f32::INFINITY] {
            let batch = PolicyBatch {
                spans: &spans,
                logprob_m: &[logprob],
                entropy_m: &[0.0],
                old_logprob_m: &[0.0],
                advantage_m: &[-1.0],
            };
            assert!(!policy_loss(batch, &PLAIN, TOKENS).loss.is_finite());
        }
    }

    #[test]
    fn policy_settings_are_checked() {
        assert!(PLAIN.validate().is_ok());
        let all =
            PolicyConfig { dual_clip: Some(1.3), entropy_coef: 0.01, ratio_threshold: Some(1.5), ..PLAIN };
        assert!(all.validate().is_ok());
        for (config, field) in [
            (PolicyConfig { cliprange_low: 0.0, ..PLAIN }, "cliprange_low"),
            (PolicyConfig { cliprange_low: 1.0, ..PLAIN }, "cliprange_low"),
            (PolicyConfig { cliprange_high: 0.0, ..PLAIN }, "cliprange_high"),
            (PolicyConfig { dual_clip: Some(1.2), ..PLAIN }, "dual_clip"),
            (PolicyConfig { entropy_coef: -0.1, ..PLAIN }, "entropy_coef"),
            (PolicyConfig { ratio_threshold: Some(1.0), ..PLAIN }, "ratio_threshold"),
            (PolicyConfig { entropy_coef: f64::NAN, ..PLAIN }, "entropy_coef"),
        ] {
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(field), "{message}");
        }
        assert_eq!("after_last".parse(), Ok(ScorePlacement::AfterLast));
        assert_eq!("last_token".parse(), Ok(ScorePlacement::LastToken));
        assert!("last".parse::<ScorePlacement>().is_err());
    }

    // --------------------------------------------------------------------------------------------------- value

    const VALUE: ValueConfig = ValueConfig { cliprange_value: Some(0.2), vf_coef: 0.1 };

    #[test]
    fn value_clipping_by_hand() {
        let check = |value: f32, old: f32, target: f32, loss: f64, d_value: f64, clipped: f64| {
            let spans = Spans::from_lengths([1]);
            let config = ValueConfig { vf_coef: 2.0, ..VALUE };
            let one = Aggregation::TokenMean { tokens: 1.0 };
            let out = value_loss(&[value], &[old], &[target], &spans, &config, one);
            let what = format!("{value} {old} {target}");
            assert!((out.loss - 2.0 * loss).abs() < 1e-6, "{what}: {}", out.loss);
            assert!((f64::from(out.d_scalar[0]) - 2.0 * d_value).abs() < 1e-6, "{what}: {}", out.d_scalar[0]);
            assert_eq!(out.stats.value("val/clipfrac_avg"), Some(clipped), "{what}");
            assert!((out.stats.value("loss/value_avg").unwrap() - loss).abs() < 1e-6, "{what}");
        };
        // Within the range.
        check(1.1, 1.0, 3.0, 0.5 * 1.9 * 1.9, -1.9, 0.0);
        // Moved too far towards the target: the clipped loss is larger, no gradient.
        check(1.5, 1.0, 3.0, 0.5 * 1.8 * 1.8, 0.0, 1.0);
        // Moved too far away from it: the free loss is larger, the gradient pulls back.
        check(0.5, 1.0, 3.0, 0.5 * 2.5 * 2.5, -2.5, 0.0);
        // The same below.
        check(0.9, 1.0, -1.0, 0.5 * 1.9 * 1.9, 1.9, 0.0);
        check(0.5, 1.0, -1.0, 0.5 * 1.8 * 1.8, 0.0, 1.0);
    }

    #[test]
    fn value_gradients_are_central_differences() {
        let spans = Spans::from_lengths([2, 6, 1]);
        let (value_u, old_value_u, return_u) = (spread(9, 1), spread(9, 2), spread(9, 3));
        for cliprange_value in [None, Some(0.2), Some(0.5)] {
            for aggregation in [TOKENS, SEQUENCES] {
                let config = ValueConfig { cliprange_value, ..VALUE };
                let loss = |x: &[f32]| value_loss(x, &old_value_u, &return_u, &spans, &config, aggregation);
                let out = loss(&value_u);
                assert_eq!(out.stats.clipped > 0, cliprange_value.is_some());
                // Measured worst 3e-8: the loss is quadratic.
                let what = format!("value_loss {config:?} {aggregation:?}");
                central_difference(&what, &value_u, &out.d_scalar, 1e-3, 2e-7, |x| loss(x).loss);
            }
        }
    }

    #[test]
    fn value_stats_by_hand() {
        let spans = Spans::from_lengths([1, 2]);
        let config = ValueConfig { cliprange_value: None, vf_coef: 0.1 };
        let aggregation = Aggregation::TokenMean { tokens: 3.0 };
        let (value, old, target) = ([1.0, 2.0, 3.0], [0.0, 2.0, 4.0], [1.0, 3.0, 5.0]);
        let stats = value_loss(&value, &old, &target, &spans, &config, aggregation).stats;
        let check = |name, expect: f64| {
            let got = stats.value(name).unwrap();
            assert!((got - expect).abs() < 1e-12, "{name}: {got} expected {expect}");
        };
        check("loss/value_avg", 0.5 * 5.0 / 3.0);
        check("val/vpred", 2.0);
        check("val/error", 5.0 / 3.0);
        check("val/mean", 2.0);
        check("val/var", 4.0);
        check("returns/mean", 3.0);
        check("returns/var", 4.0);
        check("val/var_explained", 1.0 - 5.0 / 12.0);

        // Clipped within 1/2 of the old values, towards the targets: all but the middle one.
        let config = ValueConfig { cliprange_value: Some(0.5), vf_coef: 0.1 };
        let target = [3.0, 3.0, 1.0];
        let stats = value_loss(&value, &old, &target, &spans, &config, aggregation).stats;
        assert_eq!(stats.clipped, 2);
        let (a, b) = (Spans::from_lengths([1]), Spans::from_lengths([2]));
        let mut merged = value_loss(&value[..1], &old[..1], &target[..1], &a, &config, aggregation).stats;
        merged.merge(&value_loss(&value[1..], &old[1..], &target[1..], &b, &config, aggregation).stats);
        for (got, expect) in merged.metrics().iter().zip(stats.metrics()) {
            assert!((got.value - expect.value).abs() < 1e-12, "{got:?} {expect:?}");
        }
    }

    #[test]
    fn value_settings_are_checked() {
        assert!(VALUE.validate().is_ok());
        assert!(ValueConfig { cliprange_value: Some(0.0), ..VALUE }.validate().is_err());
        assert!(ValueConfig { cliprange_value: None, ..VALUE }.validate().is_ok());
        assert!(ValueConfig { vf_coef: -1.0, ..VALUE }.validate().is_err());
    }
}
