//! Direct preference optimisation and its relatives: every TRL `loss_type`, and a few that TRL no longer has.
//!
//! With `r = log policy(y) - log reference(y)` of a whole response (a **sum** over its tokens), `n` its number of
//! tokens, `s = f(r)` by the f-divergence (`s = r` for reverse KL), `d = s_c - s_r` and `S` the logistic function:
//!
//! | `loss_type` | loss of a pair | |
//! |---|---|---|
//! | `sigmoid` | `-log S(b d)` | DPO |
//! | `cdpo` | `-(1 - e) log S(b d) - e log S(-b d)` | `sigmoid` with label smoothing; TRL dropped it |
//! | `robust` | `[-(1 - e) log S(b d) + e log S(-b d)] / (1 - 2e)` | |
//! | `hinge` | `max(0, 1 - b d)` | SLiC |
//! | `ipo` | `(s_c / n_c - s_r / n_r - 1 / 2b)^2` | averaged over tokens, as its authors meant |
//! | `ipo_sum` | `(d - 1 / 2b)^2` | summed over tokens: OpenRLHF's `ipo`, **not** comparable with TRL's |
//! | `exo_pair` | `q_c (log q_c - log(1 - e)) + q_r (log q_r - log e)`, `q = S(+-b d)` | needs e > 0 |
//! | `nca_pair` | `-log S(b r_c) - 1/2 log S(-b r_c) - 1/2 log S(-b r_r)` | |
//! | `bco_pair` | `-log S(b r_c) - log S(-b r_r)` | no running shift, as TRL 1.16 |
//! | `sppo_hard` | `(r_c - 1 / 2b)^2 + (r_r + 1 / 2b)^2` | |
//! | `aot` | smoothed sigmoid of sorted `log policy(c) - log policy(r)` minus sorted reference's | whole batch |
//! | `aot_unpaired` | smoothed sigmoid of sorted `r_c` minus sorted `r_r` | whole batch |
//! | `apo_zero` | `1 - S(b r_c) + S(b r_r)` | |
//! | `apo_down` | `S(b r_c) + 1 - S(b (r_c - r_r))` | |
//! | `discopop` | `-log S(x)(1 - m) + e^-x m`, `x = b d`, `m = S(x / tau)` | |
//! | `sft` | NLL of the chosen response, per chosen token of the step | no reference |
//! | `sigmoid_norm` | `-log S(b (s_c / n_c - s_r / n_r))` | length-normalised |
//! | `simpo` | smoothed sigmoid of `b (log policy(c) / n_c - log policy(r) / n_r) - gamma` | no reference |
//! | `cpo` | smoothed sigmoid of `b (log policy(c) - log policy(r))`, `+ cpo_alpha * sft` | no reference |
//! | `orpo` | `-b log S(log odds_c - log odds_r)`, odds of the mean log-prob, `+ sft` | no reference |
//!
//! A mixture is a list of these with weights. A *soft label* `q` makes the loss `q l(c, r) + (1 - q) l(r, c)`, with
//! the margin negated in the second term; for `sigmoid` that is the likelihood of a vote share. A *margin* is
//! subtracted from the logit `b d`.
//!
//! Sources: TRL 1.16 `dpo_trainer.py` and its experimental `cpo`, `orpo`; Rafailov et al. 2023, arXiv:2305.18290 (DPO);
//! Azar et al. 2023, arXiv:2310.12036 (IPO); Wang et al. 2023, arXiv:2309.16240 (f-divergences); Liu et al. 2024,
//! arXiv:2409.06411 (LD-DPO); Zhou et al. 2024, arXiv:2406.11827 (WPO); Meng et al. 2024, arXiv:2405.14734 (SimPO);
//! Hong et al. 2024, arXiv:2403.07691 (ORPO). cDPO: Mitchell 2023, "A note on DPO with noisy preferences".
//!
//! Not here: unpaired data ([`super::kto`]), where the log-probs come from.

use super::error::{check_value, parse_name};
use super::math::{log_sigmoid, log1mexp, sigmoid};
use super::metric::mean;
use super::{LogprobObjective, MetricDecl, ObjectiveError, PairColumns, Spans, Stats, positive};
use std::str::FromStr;

// --------------------------------------------------------------------------------------------------- configuration

/// One loss of the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the file's header has each one's formula")]
pub enum DpoLoss {
    Sigmoid,
    Cdpo,
    Robust,
    Hinge,
    Ipo,
    IpoSum,
    ExoPair,
    NcaPair,
    BcoPair,
    SppoHard,
    Aot,
    AotUnpaired,
    ApoZero,
    ApoDown,
    Discopop,
    Sft,
    SigmoidNorm,
    Simpo,
    Cpo,
    Orpo,
}

use DpoLoss::*;

impl DpoLoss {
    /// Every loss with its `loss_type` name.
    pub const NAMES: &'static [(&'static str, DpoLoss)] = &[
        ("sigmoid", Sigmoid),
        ("cdpo", Cdpo),
        ("robust", Robust),
        ("hinge", Hinge),
        ("ipo", Ipo),
        ("ipo_sum", IpoSum),
        ("exo_pair", ExoPair),
        ("nca_pair", NcaPair),
        ("bco_pair", BcoPair),
        ("sppo_hard", SppoHard),
        ("aot", Aot),
        ("aot_unpaired", AotUnpaired),
        ("apo_zero", ApoZero),
        ("apo_down", ApoDown),
        ("discopop", Discopop),
        ("sft", Sft),
        ("sigmoid_norm", SigmoidNorm),
        ("simpo", Simpo),
        ("cpo", Cpo),
        ("orpo", Orpo),
    ];

    /// Its `loss_type` name.
    pub fn name(self) -> &'static str {
        let (name, _) = Self::NAMES.iter().find(|(_, loss)| *loss == self).expect("every loss has a name");
        name
    }

    /// Whether it reads the reference's log-probs.
    pub fn needs_reference(self) -> bool {
        !matches!(self, Sft | Simpo | Cpo | Orpo)
    }

    /// Whether it sorts over the batch, so that its value depends on which pairs share a call.
    pub fn is_batch_level(self) -> bool {
        matches!(self, Aot | AotUnpaired)
    }

    /// Whether it depends on the f-scores' difference alone. The others have no valid f-divergence form: the
    /// normaliser of the f-divergence's solution cancels only in a difference.
    fn takes_f_divergence(self) -> bool {
        matches!(
            self,
            Sigmoid | Cdpo | Robust | Hinge | Ipo | IpoSum | ExoPair | Discopop | Sft | SigmoidNorm
        )
    }

    fn takes_label_smoothing(self) -> bool {
        matches!(self, Cdpo | Robust | ExoPair | Aot | AotUnpaired | Simpo | Cpo)
    }

    /// Whether the loss has a logit that a margin can be subtracted from.
    fn takes_margin(self) -> bool {
        matches!(self, Sigmoid | Cdpo | Robust | Hinge | ExoPair | Discopop | SigmoidNorm | Simpo)
    }

    /// Whether swapping the responses of a pair is defined for its whole loss.
    fn takes_soft_label(self) -> bool {
        !matches!(self, Sft | Cpo | Orpo | Aot | AotUnpaired)
    }
}

impl FromStr for DpoLoss {
    type Err = ObjectiveError;

    fn from_str(name: &str) -> Result<DpoLoss, ObjectiveError> {
        parse_name("loss_type", name, DpoLoss::NAMES)
    }
}

/// How far the policy is from the reference, response by response: `s = f'(policy / reference)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FDivergence {
    /// `s = r`.
    ReverseKl,
    /// `s = 1 - e^-r`.
    ForwardKl,
    /// `s = log 2 + log sigmoid(r)`.
    JsDivergence,
    /// `s = (e^((alpha - 1) r) - 1) / (alpha - 1)`; `s = r` at `alpha = 1`.
    AlphaDivergence {
        /// TRL's `f_alpha_divergence_coef`.
        alpha: f64,
    },
}

/// The exponent of the alpha-divergence is bounded here, as in TRL for f32: beyond it the score is flat.
const ALPHA_EXPONENT_MAX: f64 = 80.0;

impl FDivergence {
    /// From TRL's `f_divergence_type` and `f_alpha_divergence_coef`.
    pub fn parse(name: &str, f_alpha_divergence_coef: f64) -> Result<FDivergence, ObjectiveError> {
        let table = [
            ("reverse_kl", FDivergence::ReverseKl),
            ("forward_kl", FDivergence::ForwardKl),
            ("js_divergence", FDivergence::JsDivergence),
            ("alpha_divergence", FDivergence::AlphaDivergence { alpha: f_alpha_divergence_coef }),
        ];
        parse_name("f_divergence_type", name, &table)
    }

    /// The score and its derivative with respect to the log-ratio.
    fn score(self, log_ratio: f64) -> (f64, f64) {
        match self {
            FDivergence::ReverseKl => (log_ratio, 1.0),
            FDivergence::ForwardKl => (-(-log_ratio).exp_m1(), (-log_ratio).exp()),
            FDivergence::JsDivergence => {
                (std::f64::consts::LN_2 + log_sigmoid(log_ratio), sigmoid(-log_ratio))
            }
            // TRL's tolerance for "alpha is 1", where the formula is 0 / 0.
            FDivergence::AlphaDivergence { alpha } if (alpha - 1.0).abs() < 1e-6 => (log_ratio, 1.0),
            FDivergence::AlphaDivergence { alpha } => {
                let exponent = (alpha - 1.0) * log_ratio;
                let bounded = if exponent > ALPHA_EXPONENT_MAX { ALPHA_EXPONENT_MAX } else { exponent };
                let slope = if exponent > ALPHA_EXPONENT_MAX { 0.0 } else { exponent.exp() };
                (bounded.exp_m1() / (alpha - 1.0), slope)
            }
        }
    }
}

/// What is minimised. All fields are explicit; TRL's defaults are the configuration layer's.
#[derive(Clone, Debug, PartialEq)]
pub struct DpoConfig {
    /// The mixture: each loss with its weight. [`DpoConfig::mixture`] makes it of TRL's two lists.
    pub losses: Vec<(DpoLoss, f64)>,
    /// Strength of the pull to the reference. `ipo`'s and `sppo_hard`'s regulariser, `orpo`'s weight of the odds ratio.
    pub beta: f64,
    /// Probability that a label is flipped, where the loss has such a parameter.
    pub label_smoothing: f64,
    /// Which divergence.
    pub f_divergence: FDivergence,
    /// LD-DPO: weight of the tokens beyond the shorter response's length; none is weight 1.
    pub ld_alpha: Option<f64>,
    /// WPO: weigh each pair by how likely the present policy is to say it.
    pub use_weighting: bool,
    /// Width of DiscoPOP's mixing.
    pub discopop_tau: f64,
    /// SimPO's target margin of the logit (the `gamma` of `b d - gamma`).
    pub simpo_gamma: f64,
    /// Weight of `cpo`'s NLL term.
    pub cpo_alpha: f64,
}

impl DpoConfig {
    /// The mixture of TRL's `loss_type` and `loss_weights` (all 1 if absent).
    pub fn mixture<S: AsRef<str>>(
        loss_type: &[S],
        loss_weights: Option<&[f64]>,
    ) -> Result<Vec<(DpoLoss, f64)>, ObjectiveError> {
        if let Some(weights) = loss_weights.filter(|weights| weights.len() != loss_type.len()) {
            return Err(ObjectiveError::LengthMismatch {
                field: "loss_weights",
                found: weights.len(),
                expected: loss_type.len(),
                of: "loss_type",
            });
        }
        let weight = |k: usize| loss_weights.map_or(1.0, |weights| weights[k]);
        loss_type.iter().enumerate().map(|(k, name)| Ok((name.as_ref().parse()?, weight(k)))).collect()
    }

    /// Checks every field and what goes with what.
    pub fn validate(&self) -> Result<(), ObjectiveError> {
        let positive = |field, x: f64, reason| check_value(field, x, x > 0.0, "> 0", reason);
        positive("beta", self.beta, "it scales the log-ratios and divides in ipo and sppo_hard")?;
        positive("discopop_tau", self.discopop_tau, "it divides the logit")?;
        check_value(
            "simpo_gamma",
            self.simpo_gamma,
            self.simpo_gamma >= 0.0,
            ">= 0",
            "it is a target margin",
        )?;
        check_value("cpo_alpha", self.cpo_alpha, self.cpo_alpha >= 0.0, ">= 0", "it weighs a loss")?;
        if let Some(alpha) = self.ld_alpha {
            let reason = "it weighs the tokens beyond the shorter response";
            check_value("ld_alpha", alpha, (0.0..=1.0).contains(&alpha), "a value in [0, 1]", reason)?;
        }
        if let FDivergence::AlphaDivergence { alpha } = self.f_divergence {
            check_value("f_alpha_divergence_coef", alpha, true, "a finite number", "it is an exponent")?;
        }
        self.validate_mixture()?;
        self.validate_smoothing()?;
        self.losses.iter().try_for_each(|(loss, _)| self.validate_options_of(*loss))
    }

    fn validate_mixture(&self) -> Result<(), ObjectiveError> {
        for (_, weight) in &self.losses {
            check_value(
                "loss_weights",
                *weight,
                *weight >= 0.0,
                ">= 0",
                "a negative weight maximises its loss",
            )?;
        }
        // A fold from 0, because an empty f64 sum is -0.
        let total = self.losses.iter().fold(0.0, |total, (_, weight)| total + weight);
        check_value("loss_weights (sum)", total, total > 0.0, "> 0", "there must be something to minimise")
    }

    fn validate_smoothing(&self) -> Result<(), ObjectiveError> {
        let e = self.label_smoothing;
        check_value(
            "label_smoothing",
            e,
            (0.0..0.5).contains(&e),
            "a value in [0, 0.5)",
            "it is a flip rate",
        )?;
        if e > 0.0 && !self.losses.iter().any(|(loss, _)| loss.takes_label_smoothing()) {
            return Err(ObjectiveError::Incompatible {
                setting: format!("label_smoothing = {e}"),
                with: format!("loss_type = {}", self.loss_names()),
                reason: "no loss in the list reads it; use cdpo for label-smoothed sigmoid, or robust",
            });
        }
        let exo = self.losses.iter().any(|(loss, _)| *loss == ExoPair);
        let reason = "exo_pair takes its logarithm; the paper recommends 1e-3";
        check_value("label_smoothing", e, !exo || e > 0.0, "> 0 with exo_pair", reason)
    }

    fn validate_options_of(&self, loss: DpoLoss) -> Result<(), ObjectiveError> {
        let refuse = |setting: &str, reason| {
            let with = format!("loss_type = {}", loss.name());
            Err(ObjectiveError::Incompatible { setting: setting.into(), with, reason })
        };
        if self.f_divergence != FDivergence::ReverseKl && !loss.takes_f_divergence() {
            return refuse(
                "f_divergence_type other than reverse_kl",
                "its normaliser cancels only in losses of the chosen-rejected difference",
            );
        }
        if self.use_weighting && loss.is_batch_level() {
            return refuse(
                "use_weighting",
                "the loss sorts over the batch, so a pair has no loss of its own",
            );
        }
        if self.use_weighting && matches!(loss, Cpo | Orpo) {
            return refuse("use_weighting", "it would weigh the NLL term by the rejected response");
        }
        if self.ld_alpha.is_some() && matches!(loss, Simpo | Cpo | Orpo) {
            return refuse("ld_alpha", "it is defined for log-ratios against a reference");
        }
        Ok(())
    }

    /// Checks the data's columns against the losses.
    pub fn validate_columns(&self, columns: PairColumns) -> Result<(), ObjectiveError> {
        for (loss, _) in &self.losses {
            let refuse = |setting: &str, reason| {
                let with = format!("loss_type = {}", loss.name());
                Err(ObjectiveError::Incompatible { setting: setting.into(), with, reason })
            };
            if columns.margin_p.is_some() && !loss.takes_margin() {
                return refuse("the data's margin column", "the loss has no logit to subtract it from");
            }
            if columns.label_p.is_some() && !loss.takes_soft_label() {
                return refuse("the data's label column", "the loss has no form with the responses swapped");
            }
            if columns.weight_p.is_some() && loss.is_batch_level() {
                return refuse("the data's weight column", "the loss sorts over the batch");
            }
        }
        Ok(())
    }

    /// Whether any loss reads the reference's log-probs.
    pub fn needs_reference(&self) -> bool {
        self.losses.iter().any(|(loss, _)| loss.needs_reference())
    }

    /// Whether a step's pairs must come in one call: `aot` and `aot_unpaired` sort over the batch, and under
    /// `use_weighting` TRL scales `sft` by the batch's mean weight. With these, splitting a batch changes the loss.
    pub fn needs_whole_batch(&self) -> bool {
        self.losses.iter().any(|(loss, _)| loss.is_batch_level() || (*loss == Sft && self.use_weighting))
    }

    fn loss_names(&self) -> String {
        self.losses.iter().map(|(loss, _)| loss.name()).collect::<Vec<_>>().join(", ")
    }
}

// -------------------------------------------------------------------------------------------------------- inputs

/// Pairs of responses. Sequence `2p` is pair `p`'s chosen response, `2p + 1` its rejected one.
#[derive(Clone, Copy, Debug)]
pub struct PairBatch<'a> {
    /// Which tokens are whose.
    pub spans: &'a Spans,
    /// `[m]`. Under the policy being trained.
    pub logprob_m: &'a [f32],
    /// `[i]`. The reference's [`sequence_logps`], with the same `ld_alpha`. May be absent if no loss needs it; if it is
    /// given, the logged rewards are relative to it.
    pub ref_logp_i: Option<&'a [f64]>,
    /// `[m]`. `log sum_v p_v^2` under the policy, for `use_weighting` only.
    pub log_sum_sq_prob_m: Option<&'a [f32]>,
    /// What the data says about each pair.
    pub columns: PairColumns<'a>,
}

/// Denominators of the whole optimiser step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairDenominators {
    /// Pairs (or the sum of their weights).
    pub pairs: f64,
    /// Tokens of the chosen responses, for NLL terms.
    pub chosen_tokens: f64,
}

/// The log-prob of each response: the sum over its tokens. With `ld_alpha`, tokens beyond the length of the shorter
/// response of the pair count `ld_alpha` times.
///
/// # Panics
///
/// If `logprob_m` does not match `spans`, or the sequences are not in twos.
pub fn sequence_logps(logprob_m: &[f32], spans: &Spans, ld_alpha: Option<f64>) -> Vec<f64> {
    spans.expect_tokens("sequence_logps", "logprob_m", logprob_m.len());
    assert!(spans.count().is_multiple_of(2), "sequence_logps: two responses a pair, got {}", spans.count());
    (0..spans.count())
        .map(|i| {
            let shared = shared_tokens(spans, i);
            let (head, tail) = logprob_m[spans.range(i)].split_at(shared);
            super::math::sum(head) + ld_alpha.unwrap_or(1.0) * super::math::sum(tail)
        })
        .collect()
}

/// How many tokens of sequence `i` are within the shorter response of its pair.
fn shared_tokens(spans: &Spans, i: usize) -> usize {
    spans.length(i).min(spans.length(i ^ 1))
}

/// WPO's weight of each pair: the product of the two responses' `exp(mean_t (log p_t - log sum_v p_tv^2))`, held
/// constant in the gradient.
fn wpo_weights(logprob_m: &[f32], log_sum_sq_prob_m: &[f32], spans: &Spans) -> Vec<f64> {
    let weight = |i: usize| {
        let range = spans.range(i);
        let tokens = range.len().max(1) as f64;
        let aligned: f64 = range.map(|m| f64::from(logprob_m[m]) - f64::from(log_sum_sq_prob_m[m])).sum();
        (aligned / tokens).exp()
    };
    (0..spans.count() / 2).map(|p| weight(2 * p) * weight(2 * p + 1)).collect()
}

// ---------------------------------------------------------------------------------------------------- statistics

/// Sums over pairs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DpoStats {
    /// Pairs.
    pub pairs: u64,
    /// Sum of the chosen responses' implicit rewards.
    pub chosen_reward_sum: f64,
    /// Sum of the rejected responses' implicit rewards.
    pub rejected_reward_sum: f64,
    /// Pairs whose chosen response has the strictly larger implicit reward.
    pub correct: u64,
    /// Pairs with equal implicit rewards. They count as wrong, as in TRL.
    pub ties: u64,
    /// Sum of the chosen responses' log-probs.
    pub chosen_logp_sum: f64,
    /// Sum of the rejected responses' log-probs.
    pub rejected_logp_sum: f64,
    /// Tokens of the chosen responses.
    pub chosen_tokens: u64,
    /// Sum of `-log p` over them.
    pub chosen_nll_sum: f64,
    /// Pairs with an odds-ratio loss.
    pub odds_pairs: u64,
    /// Sum of log-odds differences.
    pub log_odds_sum: f64,
    /// Sum of their log-sigmoids.
    pub log_odds_log_sigmoid_sum: f64,
}

impl Stats for DpoStats {
    const METRICS: &'static [MetricDecl] = &[
        MetricDecl {
            name: "rewards/chosen",
            unit: "nats",
            formula: "sum over chosen responses of beta * (log policy - log reference) / pairs; without the reference \
                      term if none was given, and then per token for simpo and orpo",
        },
        MetricDecl {
            name: "rewards/rejected",
            unit: "nats",
            formula: "as rewards/chosen, over rejected responses",
        },
        MetricDecl {
            name: "rewards/accuracies",
            unit: "share of pairs",
            formula: "pairs with reward(chosen) > reward(rejected) / pairs; a tie is wrong",
        },
        MetricDecl {
            name: "rewards/ties",
            unit: "share of pairs",
            formula: "pairs with reward(chosen) = reward(rejected) / pairs",
        },
        MetricDecl { name: "rewards/margins", unit: "nats", formula: "rewards/chosen - rewards/rejected" },
        MetricDecl {
            name: "logps/chosen",
            unit: "nats per sequence",
            formula: "sum over chosen responses of log policy / pairs; with ld_alpha, its weights included",
        },
        MetricDecl {
            name: "logps/rejected",
            unit: "nats per sequence",
            formula: "as logps/chosen, over rejected responses",
        },
        MetricDecl {
            name: "nll_loss",
            unit: "nats per token",
            formula: "sum of -log policy over chosen tokens / chosen tokens",
        },
        MetricDecl {
            name: "log_odds_chosen",
            unit: "nats",
            formula: "orpo: sum of log odds(chosen) - log odds(rejected) / pairs",
        },
        MetricDecl {
            name: "log_odds_ratio",
            unit: "nats",
            formula: "orpo: sum of log sigmoid(log odds(chosen) - log odds(rejected)) / pairs",
        },
    ];

    fn merge(&mut self, other: &DpoStats) {
        self.pairs += other.pairs;
        self.chosen_reward_sum += other.chosen_reward_sum;
        self.rejected_reward_sum += other.rejected_reward_sum;
        self.correct += other.correct;
        self.ties += other.ties;
        self.chosen_logp_sum += other.chosen_logp_sum;
        self.rejected_logp_sum += other.rejected_logp_sum;
        self.chosen_tokens += other.chosen_tokens;
        self.chosen_nll_sum += other.chosen_nll_sum;
        self.odds_pairs += other.odds_pairs;
        self.log_odds_sum += other.log_odds_sum;
        self.log_odds_log_sigmoid_sum += other.log_odds_log_sigmoid_sum;
    }

    fn values(&self) -> Vec<Option<f64>> {
        let per_pair = |sum| mean(sum, self.pairs);
        vec![
            per_pair(self.chosen_reward_sum),
            per_pair(self.rejected_reward_sum),
            per_pair(self.correct as f64),
            per_pair(self.ties as f64),
            per_pair(self.chosen_reward_sum - self.rejected_reward_sum),
            per_pair(self.chosen_logp_sum),
            per_pair(self.rejected_logp_sum),
            mean(self.chosen_nll_sum, self.chosen_tokens),
            mean(self.log_odds_sum, self.odds_pairs),
            mean(self.log_odds_log_sigmoid_sum, self.odds_pairs),
        ]
    }
}

// ------------------------------------------------------------------------------------------------------ the loss

/// The mixture's loss of some pairs, and its gradient with respect to every token's log-prob.
///
/// A call may be a part of a step unless [`DpoConfig::needs_whole_batch`].
///
/// # Panics
///
/// If a slice does not match `spans`, a denominator is not positive, or the reference's (or WPO's) numbers are absent
/// although the configuration needs them.
pub fn dpo(
    batch: PairBatch,
    config: &DpoConfig,
    denominators: PairDenominators,
) -> LogprobObjective<DpoStats> {
    let PairBatch { spans, logprob_m, ref_logp_i, log_sum_sq_prob_m, columns } = batch;
    let logp_i = sequence_logps(logprob_m, spans, config.ld_alpha);
    let pair_count = spans.count() / 2;
    columns.expect_pairs("dpo", pair_count);
    let has_reference = ref_logp_i.is_some();
    let ref_logp_i = match ref_logp_i {
        Some(ref_logp_i) => {
            spans.expect_sequences("dpo", "ref_logp_i", ref_logp_i.len());
            ref_logp_i.to_vec()
        }
        None => {
            assert!(!config.needs_reference(), "dpo: {} needs the reference", config.loss_names());
            vec![0.0; spans.count()]
        }
    };
    let wpo_weight_p = config.use_weighting.then(|| {
        let log_sum_sq_prob_m = log_sum_sq_prob_m.expect("dpo: use_weighting needs log_sum_sq_prob_m");
        spans.expect_tokens("dpo", "log_sum_sq_prob_m", log_sum_sq_prob_m.len());
        wpo_weights(logprob_m, log_sum_sq_prob_m, spans)
    });
    let pairs = Pairs { spans, logp_i: &logp_i, ref_logp_i: &ref_logp_i, has_reference, columns, config };

    let mut total =
        Total { loss: 0.0, d_logp_i: vec![0.0; spans.count()], d_chosen_p: vec![0.0; pair_count] };
    for &(loss, loss_weight) in &config.losses {
        let factor = loss_weight / positive("pairs", denominators.pairs);
        let nll_factor = loss_weight / positive("chosen_tokens", denominators.chosen_tokens);
        match loss {
            Aot => pairs.add_aot(factor, &mut total),
            AotUnpaired => pairs.add_aot_unpaired(factor, &mut total),
            Sft => {
                let mean_wpo =
                    wpo_weight_p.as_ref().map_or(1.0, |w| w.iter().sum::<f64>() / w.len().max(1) as f64);
                pairs.add_nll(nll_factor * mean_wpo, logprob_m, &mut total);
            }
            _ => {
                for p in 0..pair_count {
                    let wpo_weight = wpo_weight_p.as_ref().map_or(1.0, |w| w[p]);
                    pairs.add_pair(loss, p, factor * wpo_weight, &mut total);
                }
                match loss {
                    Cpo => pairs.add_nll(nll_factor * config.cpo_alpha, logprob_m, &mut total),
                    Orpo => pairs.add_nll(nll_factor, logprob_m, &mut total),
                    _ => {}
                }
            }
        }
    }

    LogprobObjective { loss: total.loss, d_logprob_m: pairs.to_tokens(&total), stats: pairs.stats(logprob_m) }
}

/// The loss and its gradients before they are spread over tokens.
struct Total {
    loss: f64,
    /// `[i]`. With respect to [`sequence_logps`].
    d_logp_i: Vec<f64>,
    /// `[p]`. With respect to each token of the chosen response, directly (NLL terms know no `ld_alpha`).
    d_chosen_p: Vec<f64>,
}

/// One pair as the losses see it.
#[derive(Clone, Copy)]
struct Pair {
    /// Chosen, rejected.
    logp: [f64; 2],
    ref_logp: [f64; 2],
    tokens: [f64; 2],
    margin: f64,
}

impl Pair {
    fn swapped(self) -> Pair {
        let swap = |[a, b]: [f64; 2]| [b, a];
        Pair {
            logp: swap(self.logp),
            ref_logp: swap(self.ref_logp),
            tokens: swap(self.tokens),
            margin: -self.margin,
        }
    }

    fn log_ratio(&self) -> [f64; 2] {
        [self.logp[0] - self.ref_logp[0], self.logp[1] - self.ref_logp[1]]
    }
}

/// A pair's loss and its gradient with respect to the two responses' log-probs.
struct Terms {
    loss: f64,
    d_logp: [f64; 2],
}

struct Pairs<'a> {
    spans: &'a Spans,
    logp_i: &'a [f64],
    ref_logp_i: &'a [f64],
    /// Otherwise `ref_logp_i` is zero.
    has_reference: bool,
    columns: PairColumns<'a>,
    config: &'a DpoConfig,
}

impl Pairs<'_> {
    fn count(&self) -> usize {
        self.spans.count() / 2
    }

    fn pair(&self, p: usize) -> Pair {
        let (c, r) = (2 * p, 2 * p + 1);
        Pair {
            logp: [self.logp_i[c], self.logp_i[r]],
            ref_logp: [self.ref_logp_i[c], self.ref_logp_i[r]],
            // As TRL: an empty response divides by one.
            tokens: [self.spans.length(c).max(1) as f64, self.spans.length(r).max(1) as f64],
            margin: self.columns.margin(p),
        }
    }

    fn add_pair(&self, loss: DpoLoss, p: usize, factor: f64, total: &mut Total) {
        let pair = self.pair(p);
        let factor = factor * self.columns.weight(p);
        let label = self.columns.label(p);
        let as_said = pair_terms(loss, pair, self.config);
        total.loss += factor * label * as_said.loss;
        total.d_logp_i[2 * p] += factor * label * as_said.d_logp[0];
        total.d_logp_i[2 * p + 1] += factor * label * as_said.d_logp[1];
        if label != 1.0 {
            let other_way = pair_terms(loss, pair.swapped(), self.config);
            total.loss += factor * (1.0 - label) * other_way.loss;
            total.d_logp_i[2 * p] += factor * (1.0 - label) * other_way.d_logp[1];
            total.d_logp_i[2 * p + 1] += factor * (1.0 - label) * other_way.d_logp[0];
        }
    }

    /// `factor * sum_p w_p sum_t -log p_t` over chosen tokens.
    fn add_nll(&self, factor: f64, logprob_m: &[f32], total: &mut Total) {
        for p in 0..self.count() {
            let factor = factor * self.columns.weight(p);
            total.loss -= factor * super::math::sum(&logprob_m[self.spans.range(2 * p)]);
            total.d_chosen_p[p] -= factor;
        }
    }

    /// Alignment by optimal transport, paired: the policy's chosen-rejected differences, sorted, against the
    /// reference's, sorted.
    fn add_aot(&self, factor: f64, total: &mut Total) {
        let difference = |x: &[f64]| x.chunks_exact(2).map(|pair| pair[0] - pair[1]).collect::<Vec<f64>>();
        let (policy, reference) = (difference(self.logp_i), difference(self.ref_logp_i));
        for (p, q) in sorted(&policy).into_iter().zip(sorted(&reference)) {
            let (loss, d) = self.smoothed_of_beta(policy[p] - reference[q]);
            total.loss += factor * loss;
            total.d_logp_i[2 * p] += factor * d;
            total.d_logp_i[2 * p + 1] -= factor * d;
        }
    }

    /// Alignment by optimal transport, unpaired: chosen log-ratios, sorted, against rejected ones, sorted.
    fn add_aot_unpaired(&self, factor: f64, total: &mut Total) {
        let log_ratios =
            |side| (0..self.count()).map(|p| self.pair(p).log_ratio()[side]).collect::<Vec<f64>>();
        let (chosen, rejected) = (log_ratios(0), log_ratios(1));
        for (p, q) in sorted(&chosen).into_iter().zip(sorted(&rejected)) {
            let (loss, d) = self.smoothed_of_beta(chosen[p] - rejected[q]);
            total.loss += factor * loss;
            total.d_logp_i[2 * p] += factor * d;
            total.d_logp_i[2 * q + 1] -= factor * d;
        }
    }

    fn smoothed_of_beta(&self, delta: f64) -> (f64, f64) {
        let (loss, d_x) = smoothed(self.config.beta * delta, self.config.label_smoothing);
        (loss, self.config.beta * d_x)
    }

    fn to_tokens(&self, total: &Total) -> Vec<f32> {
        let mut d_logprob_m = Vec::with_capacity(self.spans.total());
        for i in 0..self.spans.count() {
            let direct = if i % 2 == 0 { total.d_chosen_p[i / 2] } else { 0.0 };
            let shared = shared_tokens(self.spans, i);
            for t in 0..self.spans.length(i) {
                let weight = if t < shared { 1.0 } else { self.config.ld_alpha.unwrap_or(1.0) };
                d_logprob_m.push((weight * total.d_logp_i[i] + direct) as f32);
            }
        }
        d_logprob_m
    }

    fn stats(&self, logprob_m: &[f32]) -> DpoStats {
        let mut stats = DpoStats::default();
        // As TRL's trainers of the reference-free losses report them.
        let per_token =
            !self.has_reference && self.config.losses.iter().any(|(loss, _)| matches!(loss, Simpo | Orpo));
        let odds = self.config.losses.iter().any(|(loss, _)| *loss == Orpo);
        for p in 0..self.count() {
            let pair = self.pair(p);
            let tokens = if per_token { pair.tokens } else { [1.0; 2] };
            let [chosen, rejected] =
                [0, 1].map(|side| self.config.beta * pair.log_ratio()[side] / tokens[side]);
            stats.pairs += 1;
            stats.chosen_reward_sum += chosen;
            stats.rejected_reward_sum += rejected;
            stats.correct += u64::from(chosen > rejected);
            stats.ties += u64::from(chosen == rejected);
            stats.chosen_logp_sum += pair.logp[0];
            stats.rejected_logp_sum += pair.logp[1];
            stats.chosen_tokens += self.spans.length(2 * p) as u64;
            stats.chosen_nll_sum -= super::math::sum(&logprob_m[self.spans.range(2 * p)]);
            if odds {
                let log_odds = log_odds_difference(&pair).0;
                stats.odds_pairs += 1;
                stats.log_odds_sum += log_odds;
                stats.log_odds_log_sigmoid_sum += log_sigmoid(log_odds);
            }
        }
        stats
    }
}

/// The positions of the values in ascending order.
fn sorted(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    order
}

/// `-(1 - e) log S(x) - e log S(-x)`, and its derivative.
fn smoothed(x: f64, e: f64) -> (f64, f64) {
    (-(1.0 - e) * log_sigmoid(x) - e * log_sigmoid(-x), sigmoid(x) - (1.0 - e))
}

/// The loss of one pair: the rows of the file's table that a pair has on its own.
fn pair_terms(loss: DpoLoss, pair: Pair, config: &DpoConfig) -> Terms {
    let beta = config.beta;
    match loss {
        Sigmoid | Cdpo | Robust | Hinge | ExoPair | Discopop => {
            score_difference(pair, config, [1.0; 2], |delta| {
                let (loss, d_x) = of_logit(loss, beta * delta - pair.margin, config);
                (loss, beta * d_x)
            })
        }
        SigmoidNorm => score_difference(pair, config, pair.tokens, |delta| {
            let (loss, d_x) = smoothed(beta * delta - pair.margin, 0.0);
            (loss, beta * d_x)
        }),
        Ipo => score_difference(pair, config, pair.tokens, |delta| squared(delta - 0.5 / beta)),
        IpoSum => score_difference(pair, config, [1.0; 2], |delta| squared(delta - 0.5 / beta)),
        NcaPair | BcoPair | SppoHard | ApoZero | ApoDown => of_log_ratios(loss, pair.log_ratio(), beta),
        Simpo => {
            let delta = pair.logp[0] / pair.tokens[0] - pair.logp[1] / pair.tokens[1];
            let x = beta * delta - config.simpo_gamma - pair.margin;
            let (loss, d_x) = smoothed(x, config.label_smoothing);
            Terms { loss, d_logp: [beta * d_x / pair.tokens[0], -beta * d_x / pair.tokens[1]] }
        }
        Cpo => {
            let (loss, d_x) = smoothed(beta * (pair.logp[0] - pair.logp[1]), config.label_smoothing);
            Terms { loss, d_logp: [beta * d_x, -beta * d_x] }
        }
        Orpo => {
            let (log_odds, d_logp) = log_odds_difference(&pair);
            // forward was: -beta log S(log_odds)
            // so now:
            let d = -beta * sigmoid(-log_odds);
            Terms { loss: -beta * log_sigmoid(log_odds), d_logp: [d * d_logp[0], -d * d_logp[1]] }
        }
        Aot | AotUnpaired | Sft => unreachable!("{} is not a loss of one pair", loss.name()),
    }
}

/// A loss of `s_c / n_c - s_r / n_r`, with the f-divergence's scores `s`; `of_delta` gives the loss and its derivative.
fn score_difference(
    pair: Pair,
    config: &DpoConfig,
    tokens: [f64; 2],
    of_delta: impl Fn(f64) -> (f64, f64),
) -> Terms {
    let [(chosen, d_chosen), (rejected, d_rejected)] = pair.log_ratio().map(|r| config.f_divergence.score(r));
    let (loss, d) = of_delta(chosen / tokens[0] - rejected / tokens[1]);
    Terms { loss, d_logp: [d * d_chosen / tokens[0], -d * d_rejected / tokens[1]] }
}

fn squared(x: f64) -> (f64, f64) {
    (x * x, 2.0 * x)
}

/// Losses of the logit `x = b d - margin`, and their derivatives.
fn of_logit(loss: DpoLoss, x: f64, config: &DpoConfig) -> (f64, f64) {
    let e = config.label_smoothing;
    match loss {
        Sigmoid => smoothed(x, 0.0),
        Cdpo => smoothed(x, e),
        Robust => {
            let loss = -(1.0 - e) * log_sigmoid(x) + e * log_sigmoid(-x);
            let d_x = -(1.0 - e) * sigmoid(-x) - e * sigmoid(x);
            (loss / (1.0 - 2.0 * e), d_x / (1.0 - 2.0 * e))
        }
        // A comparison, not f64::max, which would drop a NaN.
        Hinge if x >= 1.0 => (0.0, 0.0),
        Hinge => (1.0 - x, -1.0),
        ExoPair => {
            let (q_c, q_r) = (sigmoid(x), sigmoid(-x));
            let (excess_c, excess_r) = (log_sigmoid(x) - (-e).ln_1p(), log_sigmoid(-x) - e.ln());
            // forward was: q_c excess_c + q_r excess_r, with q_c' = q_c q_r = -q_r'; the log q terms cancel
            // so now:
            (q_c * excess_c + q_r * excess_r, q_c * q_r * (excess_c - excess_r))
        }
        Discopop => {
            let tau = config.discopop_tau;
            let m = sigmoid(x / tau);
            let d_m = m * sigmoid(-x / tau) / tau;
            let logistic = -log_sigmoid(x);
            // e^-x m in one exponential: alone e^-x overflows where m has long been zero.
            let exponential = (log_sigmoid(x / tau) - x).exp();
            // forward was: logistic (1 - m) + e^-x m
            // so now:
            let d_x = -sigmoid(-x) * (1.0 - m) - logistic * d_m - exponential
                + exponential * sigmoid(-x / tau) / tau;
            (logistic * (1.0 - m) + exponential, d_x)
        }
        _ => unreachable!("{} is not a loss of the logit", loss.name()),
    }
}

/// Losses that read the two log-ratios apart.
fn of_log_ratios(loss: DpoLoss, [r_c, r_r]: [f64; 2], beta: f64) -> Terms {
    let (x_c, x_r) = (beta * r_c, beta * r_r);
    // The derivative of S.
    let slope = |x: f64| sigmoid(x) * sigmoid(-x);
    let (loss, [d_c, d_r]) = match loss {
        NcaPair => (
            -log_sigmoid(x_c) - 0.5 * log_sigmoid(-x_c) - 0.5 * log_sigmoid(-x_r),
            [-sigmoid(-x_c) + 0.5 * sigmoid(x_c), 0.5 * sigmoid(x_r)],
        ),
        BcoPair => (-log_sigmoid(x_c) - log_sigmoid(-x_r), [-sigmoid(-x_c), sigmoid(x_r)]),
        ApoZero => (sigmoid(-x_c) + sigmoid(x_r), [-slope(x_c), slope(x_r)]),
        ApoDown => (sigmoid(x_c) + sigmoid(x_r - x_c), [slope(x_c) - slope(x_r - x_c), slope(x_r - x_c)]),
        SppoHard => {
            // Not a function of beta r: the derivative is with respect to r, so beta is divided out here.
            let (win, lose) = (r_c - 0.5 / beta, r_r + 0.5 / beta);
            (win * win + lose * lose, [2.0 * win / beta, 2.0 * lose / beta])
        }
        _ => unreachable!("{} is not a loss of the log-ratios", loss.name()),
    };
    Terms { loss, d_logp: [beta * d_c, beta * d_r] }
}

/// A response that the policy is this sure of, per token, has odds as good as infinite: beyond it they are held
/// constant. One step of f32 below probability 1.
const ORPO_LOGP_MAX: f64 = -(f32::EPSILON as f64);

/// `log odds(chosen) - log odds(rejected)` with `odds = p / (1 - p)` of the mean token log-prob, and the derivatives of
/// the two log-odds with respect to the responses' summed log-probs.
fn log_odds_difference(pair: &Pair) -> (f64, [f64; 2]) {
    let log_odds = |side: usize| {
        let mean_logp = pair.logp[side] / pair.tokens[side];
        if mean_logp > ORPO_LOGP_MAX {
            return (ORPO_LOGP_MAX - log1mexp(ORPO_LOGP_MAX), 0.0);
        }
        // forward was: a - log(1 - e^a)
        // so now: 1 + e^a / (1 - e^a) = 1 / (1 - e^a)
        (mean_logp - log1mexp(mean_logp), 1.0 / (-mean_logp.exp_m1() * pair.tokens[side]))
    };
    let ((chosen, d_chosen), (rejected, d_rejected)) = (log_odds(0), log_odds(1));
    (chosen - rejected, [d_chosen, d_rejected])
}

#[cfg(test)]
mod tests;
