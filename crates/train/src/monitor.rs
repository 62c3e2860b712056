//! Stability monitor: watches the numbers of each step, and raises alarms with a name, a reason and an advice.
//!
//! The monitor is a pure function of the steps it has seen: it never reads a clock or draws a random number, and its
//! state is part of the checkpoint, so a resumed run raises the same alarms at the same steps.
//!
//! Three things keep it from crying wolf. A noisy number is smoothed, `s <- s + a (x - s)`. What is normal is taken from
//! the run itself: a *baseline* is the mean of its first few steps. And each alarm has hysteresis: it is raised after
//! some steps in a row beyond one limit, and cleared after as many within a milder one. [`AlarmKind::rule`] states each
//! rule with its numbers; `docs/metrics.md` has them in a table.
//!
//! Not here: stopping the run (the trainer's, with `stop_on_alarm`), drawing (the report's).

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::metrics::{Metrics, Stage};

// ----------------------------------------------------------------------------------------------------------- alarms

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// A loss, gradient or KL is not a finite number.
    LossNotFinite,
    /// The policy runs away from the reference.
    KlExplosion,
    /// The KL estimate is below zero by more than chance.
    NegativeKl,
    /// The number that is optimised rises while the one that matters falls.
    RewardWithoutGain,
    /// Responses became much longer or shorter.
    LengthDrift,
    /// The policy became all but deterministic.
    EntropyCollapse,
    /// Different prompts get the same few phrases.
    DiversityCollapse,
    /// Responses no longer end by themselves.
    NoEos,
    /// Responses repeat themselves.
    Repetition,
    /// The critic predicts returns worse than their mean does.
    ValueExplainedVariance,
    /// The policy makes even the chosen responses much less likely.
    ChosenFalls,
    /// The loss on the evaluation data rises.
    EvalLossRises,
}

use AlarmKind::*;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Look at it.
    Warning,
    /// Stop the run, if it was told to stop on alarms.
    Critical,
}

/// An alarm that was raised, or cleared again: a line of `alarms.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// The step at which it happened.
    pub step: u64,
    /// What it is about.
    pub alarm: AlarmKind,
    /// How bad it is.
    pub severity: Severity,
    /// True when it is raised, false when it is over.
    pub raised: bool,
    /// What was seen, and what to do about it.
    pub message: String,
}

impl Alarm {
    /// Whether a run that stops on alarms stops here.
    pub fn is_critical(&self) -> bool {
        self.raised && self.severity == Severity::Critical
    }
}

impl AlarmKind {
    /// All of them, the gravest first.
    pub const ALL: [AlarmKind; 12] = [
        LossNotFinite,
        KlExplosion,
        NegativeKl,
        RewardWithoutGain,
        EntropyCollapse,
        DiversityCollapse,
        NoEos,
        Repetition,
        LengthDrift,
        ValueExplainedVariance,
        ChosenFalls,
        EvalLossRises,
    ];

    /// As in `alarms.jsonl`.
    pub fn name(self) -> &'static str {
        match self {
            LossNotFinite => "loss_not_finite",
            KlExplosion => "kl_explosion",
            NegativeKl => "negative_kl",
            RewardWithoutGain => "reward_without_gain",
            LengthDrift => "length_drift",
            EntropyCollapse => "entropy_collapse",
            DiversityCollapse => "diversity_collapse",
            NoEos => "no_eos",
            Repetition => "repetition",
            ValueExplainedVariance => "value_explained_variance",
            ChosenFalls => "chosen_falls",
            EvalLossRises => "eval_loss_rises",
        }
    }

    /// How bad it is.
    pub fn severity(self) -> Severity {
        match self {
            LossNotFinite | KlExplosion | NegativeKl | RewardWithoutGain | EntropyCollapse => {
                Severity::Critical
            }
            LengthDrift
            | DiversityCollapse
            | NoEos
            | Repetition
            | ValueExplainedVariance
            | ChosenFalls
            | EvalLossRises => Severity::Warning,
        }
    }

    /// The metrics it looks at, whose curves are marked.
    pub fn metrics(self) -> &'static [&'static str] {
        match self {
            LossNotFinite => &VITAL,
            KlExplosion | NegativeKl => &["objective/kl"],
            RewardWithoutGain => {
                &["objective/scores", "samples/gold", "rewards/margins", "eval_rewards/accuracies"]
            }
            LengthDrift => &["tokens/responses_len_mean"],
            EntropyCollapse => &["policy/entropy_avg"],
            DiversityCollapse => &["samples/distinct_2"],
            NoEos => &["samples/eos_rate"],
            Repetition => &["samples/repetition"],
            ValueExplainedVariance => &["val/var_explained"],
            ChosenFalls => &["rewards/chosen"],
            EvalLossRises => &["eval_loss"],
        }
    }

    /// When it is raised and cleared, in one sentence.
    pub fn rule(self) -> String {
        let p = self.patience();
        match self {
            LossNotFinite => {
                "a loss, a gradient norm or a KL is NaN or infinite; cleared when all are finite".to_owned()
            }
            KlExplosion => format!(
                "smoothed KL from the reference above {KL_PER_SEQUENCE_MAX} nats per sequence or \
                 {KL_PER_TOKEN_MAX} per token for {p} steps; cleared below half of both"
            ),
            NegativeKl => format!(
                "mean k1 estimate of the last {KL_WINDOW} steps below -{KL_ERRORS_MAX} standard errors and below \
                 -{KL_NEGATIVE_MIN} nats per sequence; cleared above either"
            ),
            RewardWithoutGain => format!(
                "two evaluations in a row in which the score by people, a known truth or held-out pairs is below its \
                 best by more than {GAIN_ERRORS} standard errors and {GAIN_RANGE_SHARE} of its range so far, while the \
                 optimised number is above its value at that best; cleared when either is no longer so"
            ),
            LengthDrift => format!(
                "smoothed response length above {LENGTH_RATIO_MAX} or below {LENGTH_RATIO_MIN} of the baseline for {p} \
                 steps; cleared between {LENGTH_RATIO_CALM_MIN} and {LENGTH_RATIO_CALM_MAX}"
            ),
            EntropyCollapse => format!(
                "smoothed entropy per token below {ENTROPY_SHARE_MIN} of the baseline for {p} steps; cleared above \
                 {ENTROPY_SHARE_CALM}"
            ),
            DiversityCollapse => format!(
                "smoothed share of different bigrams below {DIVERSITY_SHARE_MIN} of the baseline for {p} steps; cleared \
                 above {DIVERSITY_SHARE_CALM}"
            ),
            NoEos => format!(
                "smoothed share of responses that end by themselves below {EOS_RATE_MIN} for {p} steps; cleared above \
                 {EOS_RATE_CALM}"
            ),
            Repetition => format!(
                "smoothed share of repeated 4-grams above {REPETITION_MAX} and {REPETITION_RISE} above the baseline for \
                 {p} steps; cleared below {REPETITION_CALM}"
            ),
            ValueExplainedVariance => format!(
                "after {VALUE_WARMUP_STEPS} steps, smoothed explained variance of the critic below 0 for {p} steps; \
                 cleared above {VALUE_CALM}"
            ),
            ChosenFalls => format!(
                "smoothed reward of the chosen responses below -{CHOSEN_REWARD_MIN}, that of the rejected ones lower \
                 still, for {p} steps; cleared above -{CHOSEN_REWARD_CALM}"
            ),
            EvalLossRises => format!(
                "loss on the evaluation data more than {EVAL_LOSS_RISE} above its lowest, as a share of it, at {p} \
                 evaluations in a row; cleared within half of that"
            ),
        }
    }

    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            LossNotFinite => {
                "go back to the last checkpoint with a lower learning rate; check the data for absurd rewards or margins"
            }
            KlExplosion => {
                "raise kl_coef (or lower target with kl_controller = \"adaptive\"), or lower the learning rate or \
                 num_ppo_epochs; the reward model is not to be trusted so far from its data"
            }
            NegativeKl => {
                "responses are not sampled from the distribution that is scored: look for top_k, top_p, min_new_tokens \
                 or another temperature in generation, or a reference that is not the starting policy"
            }
            RewardWithoutGain => {
                "the policy has learnt to please the proxy, not people: stop here or earlier, collect votes on these \
                 responses, retrain the reward model, raise kl_coef (or beta)"
            }
            LengthDrift => {
                "read the samples; if length is being rewarded, balance lengths in the votes or penalise length"
            }
            EntropyCollapse => "raise kl_coef or entropy_coef, or lower the learning rate; read the samples",
            DiversityCollapse => {
                "read the samples: a phrase that the reward model overrates will be everywhere"
            }
            NoEos => {
                "set missing_eos = \"penalty\", raise response_length if answers are cut, and check that supervised \
                 training had end tokens in its completions"
            }
            Repetition => {
                "read the samples; raise kl_coef, and show the reward model repetitive answers that lost"
            }
            ValueExplainedVariance => {
                "the critic only adds noise: raise critic_learning_rate, start it from the reward model, or use larger \
                 rollouts"
            }
            ChosenFalls => {
                "usual in small doses, but the policy may be drifting to responses in neither column: raise beta, lower \
                 the learning rate, or mix in loss_type \"sft\""
            }
            EvalLossRises => {
                "the model is fitting the training rows: fewer epochs, or the checkpoint at the lowest"
            }
        }
    }

    /// Steps (or evaluations) in a row before it is raised, or cleared.
    fn patience(self) -> u32 {
        match self {
            LossNotFinite | NegativeKl => 1,
            KlExplosion | RewardWithoutGain | EvalLossRises => 2,
            LengthDrift | EntropyCollapse | DiversityCollapse | NoEos | Repetition | ChosenFalls => 3,
            ValueExplainedVariance => 5,
        }
    }
}

impl fmt::Display for AlarmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// ------------------------------------------------------------------------------------------------------------ limits

/// Steps whose mean is the baseline.
const BASELINE_STEPS: u64 = 5;
/// Weight of a new value in a smoothed one.
const SMOOTHING: f64 = 0.3;

/// Published over-optimised policies were at 50 to 85 nats per sequence of 53 tokens (arXiv:2403.17031, 1B).
const KL_PER_SEQUENCE_MAX: f64 = 50.0;
/// The same per token, for short responses.
const KL_PER_TOKEN_MAX: f64 = 1.0;
const KL_WINDOW: usize = 16;
/// Four, because the test is made at every step, and the error itself is an estimate.
const KL_ERRORS_MAX: f64 = 4.0;
/// Below this, rounding and luck are the better explanation.
const KL_NEGATIVE_MIN: f64 = 0.05;

/// Evaluations that the noise of the score is estimated from.
const GAIN_OBSERVATIONS_MIN: usize = 5;
/// Evaluations remembered.
const GAIN_OBSERVATIONS_MAX: usize = 64;
const GAIN_ERRORS: f64 = 3.0;
const GAIN_RANGE_SHARE: f64 = 0.2;

const LENGTH_RATIO_MAX: f64 = 1.5;
const LENGTH_RATIO_CALM_MAX: f64 = 1.35;
const LENGTH_RATIO_MIN: f64 = 0.5;
const LENGTH_RATIO_CALM_MIN: f64 = 0.6;

const ENTROPY_SHARE_MIN: f64 = 0.2;
const ENTROPY_SHARE_CALM: f64 = 0.3;
/// A policy that is this sure from the start has nothing to collapse from.
const ENTROPY_BASELINE_MIN: f64 = 0.05;

const DIVERSITY_SHARE_MIN: f64 = 0.4;
const DIVERSITY_SHARE_CALM: f64 = 0.5;

const EOS_RATE_MIN: f64 = 0.05;
const EOS_RATE_CALM: f64 = 0.1;

const REPETITION_MAX: f64 = 0.3;
const REPETITION_RISE: f64 = 0.1;
const REPETITION_CALM: f64 = 0.2;

const VALUE_WARMUP_STEPS: u64 = 20;
const VALUE_CALM: f64 = 0.1;

/// Rewards are beta times a log-ratio: with TRL's beta of 0.1, this is a factor of e^-10 in probability.
const CHOSEN_REWARD_MIN: f64 = 1.0;
const CHOSEN_REWARD_CALM: f64 = 0.8;

const EVAL_LOSS_RISE: f64 = 0.05;

// ------------------------------------------------------------------------------------------------------ observations

/// What the monitor sees of a step. What a stage does not have is `None`, and its alarms stay silent.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Observation {
    /// The step.
    pub step: u64,
    /// Names of losses, gradients and KLs that are not finite numbers.
    pub not_finite: Vec<String>,
    /// What is optimised: the reward model's score, or the margin of training pairs.
    pub proxy: Option<f64>,
    /// What should rise with it: a score by people or a known truth, or the accuracy on held-out pairs.
    pub gold: Option<f64>,
    /// Mean KL from the reference, nats per sequence.
    pub kl_nats_per_sequence: Option<f64>,
    /// Mean entropy of the policy, nats per token.
    pub entropy_nats_per_token: Option<f64>,
    /// Mean tokens of a response.
    pub response_tokens: Option<f64>,
    /// Share of responses that end by themselves.
    pub eos_rate: Option<f64>,
    /// Share of different bigrams.
    pub distinct_2: Option<f64>,
    /// Share of repeated 4-grams.
    pub repetition: Option<f64>,
    /// Explained variance of the critic.
    pub var_explained: Option<f64>,
    /// Mean reward of chosen and of rejected responses.
    pub pair_rewards: Option<(f64, f64)>,
    /// Loss on the evaluation data.
    pub eval_loss: Option<f64>,
}

/// Metrics that nothing can be learnt without.
const VITAL: [&str; 6] =
    ["loss", "grad_norm", "grad_norm_critic", "objective/kl", "loss/policy_avg", "loss/value_avg"];

impl Observation {
    /// From the numbers of a step as they are logged.
    pub fn of_metrics(step: u64, metrics: &Metrics) -> Observation {
        let bad = VITAL.into_iter().filter(|name| metrics.get(name).is_some_and(|value| !value.is_finite()));
        // A number that is not finite is no observation: it has its own alarm, and must not poison what is smoothed.
        let get = |name: &str| metrics.get(name).filter(|value| value.is_finite());
        let pairs = metrics.stage() == Stage::Dpo;
        Observation {
            step,
            not_finite: bad.map(str::to_owned).collect(),
            proxy: if pairs { get("rewards/margins") } else { get("objective/scores") },
            gold: if pairs { get("eval_rewards/accuracies") } else { get("samples/gold") },
            kl_nats_per_sequence: get("objective/kl"),
            entropy_nats_per_token: get("policy/entropy_avg"),
            response_tokens: get("tokens/responses_len_mean"),
            eos_rate: get("samples/eos_rate"),
            distinct_2: get("samples/distinct_2"),
            repetition: get("samples/repetition"),
            var_explained: get("val/var_explained"),
            pair_rewards: get("rewards/chosen").zip(get("rewards/rejected")),
            eval_loss: get("eval_loss"),
        }
    }
}

/// Different n-grams over all n-grams of some responses; `None` if there are none.
pub fn distinct_share(responses: &[Vec<u32>], n: usize) -> Option<f64> {
    let all: Vec<&[u32]> = responses.iter().flat_map(|ids| ids.windows(n)).collect();
    let different: HashSet<&[u32]> = all.iter().copied().collect();
    (!all.is_empty()).then(|| different.len() as f64 / all.len() as f64)
}

/// Tokens of the n-grams that [`repetition_share`] counts.
const REPETITION_NGRAM: usize = 4;

/// Mean over responses of the share of their 4-grams that occurred before in the same response. `None` if no response
/// has one.
pub fn repetition_share(responses: &[Vec<u32>]) -> Option<f64> {
    let shares: Vec<f64> = responses
        .iter()
        .filter(|ids| ids.len() >= REPETITION_NGRAM)
        .map(|ids| {
            let all = ids.windows(REPETITION_NGRAM);
            let count = all.len() as f64;
            1.0 - all.collect::<HashSet<_>>().len() as f64 / count
        })
        .collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}

// ----------------------------------------------------------------------------------------------------------- monitor

/// Watches a run. Part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Monitor {
    silent: Vec<AlarmKind>,
    latches: BTreeMap<AlarmKind, Latch>,
    proxy: Track,
    kl: Track,
    entropy: Track,
    length: Track,
    eos_rate: Track,
    distinct_2: Track,
    repetition: Track,
    var_explained: Track,
    chosen: Track,
    rejected: Track,
    /// The last KLs, not smoothed.
    recent_kl: VecDeque<f64>,
    /// Smoothed proxy and gold at each evaluation.
    gains: VecDeque<(f64, f64)>,
    eval_loss_min: Option<f64>,
}

impl Monitor {
    /// Nothing seen yet. Which alarms can be raised depends on what a stage logs, so the stage itself is not needed.
    pub fn new(_stage: Stage) -> Monitor {
        Monitor {
            silent: Vec::new(),
            latches: BTreeMap::new(),
            proxy: Track::default(),
            kl: Track::default(),
            entropy: Track::default(),
            length: Track::default(),
            eos_rate: Track::default(),
            distinct_2: Track::default(),
            repetition: Track::default(),
            var_explained: Track::default(),
            chosen: Track::default(),
            rejected: Track::default(),
            recent_kl: VecDeque::new(),
            gains: VecDeque::new(),
            eval_loss_min: None,
        }
    }

    /// Never raises this alarm, because its cause is wanted: [`AlarmKind::NoEos`] where responses have a fixed length.
    pub fn silence(&mut self, alarm: AlarmKind) {
        if !self.silent.contains(&alarm) {
            self.silent.push(alarm);
        }
    }

    /// Alarms that this step raises or clears.
    pub fn observe(&mut self, seen: &Observation) -> Vec<Alarm> {
        self.remember(seen);
        let mut alarms = Vec::new();
        for kind in AlarmKind::ALL {
            if self.silent.contains(&kind) {
                continue;
            }
            let Some(judgement) = self.judge(kind, seen) else { continue };
            let latch = self.latches.entry(kind).or_default();
            let Some(raised) = latch.turn(&judgement, kind.patience()) else { continue };
            let message = match judgement {
                Judgement::Bad(what) => format!("{what}; {}", kind.advice()),
                _ => "within its limits again".to_owned(),
            };
            alarms.push(Alarm { step: seen.step, alarm: kind, severity: kind.severity(), raised, message });
        }
        alarms
    }

    /// Alarms that are raised now.
    pub fn active(&self) -> impl Iterator<Item = AlarmKind> {
        self.latches.iter().filter(|(_, latch)| latch.raised).map(|(kind, _)| *kind)
    }

    fn remember(&mut self, seen: &Observation) {
        self.proxy.push(seen.proxy);
        self.kl.push(seen.kl_nats_per_sequence);
        self.entropy.push(seen.entropy_nats_per_token);
        self.length.push(seen.response_tokens);
        self.eos_rate.push(seen.eos_rate);
        self.distinct_2.push(seen.distinct_2);
        self.repetition.push(seen.repetition);
        self.var_explained.push(seen.var_explained);
        self.chosen.push(seen.pair_rewards.map(|(chosen, _)| chosen));
        self.rejected.push(seen.pair_rewards.map(|(_, rejected)| rejected));
        if let Some(kl) = seen.kl_nats_per_sequence {
            push_bounded(&mut self.recent_kl, kl, KL_WINDOW);
        }
        if let (Some(gold), Some(proxy)) = (seen.gold, self.proxy.smooth()) {
            push_bounded(&mut self.gains, (proxy, gold), GAIN_OBSERVATIONS_MAX);
        }
        if let Some(loss) = seen.eval_loss {
            self.eval_loss_min = Some(self.eval_loss_min.map_or(loss, |lowest| lowest.min(loss)));
        }
    }

    /// What a rule says of this step; `None` where the step says nothing about it.
    fn judge(&self, kind: AlarmKind, seen: &Observation) -> Option<Judgement> {
        match kind {
            LossNotFinite => Some(match seen.not_finite.is_empty() {
                true => Judgement::Good,
                false => Judgement::Bad(format!("not a finite number: {}", seen.not_finite.join(", "))),
            }),
            KlExplosion => self.judge_kl(seen),
            NegativeKl => self.judge_negative_kl(seen),
            RewardWithoutGain => self.judge_gain(seen),
            LengthDrift => {
                let (tokens, usual) = self.length.against_baseline(seen.response_tokens)?;
                let ratio = tokens / usual;
                let bad = !(LENGTH_RATIO_MIN..=LENGTH_RATIO_MAX).contains(&ratio);
                let good = (LENGTH_RATIO_CALM_MIN..=LENGTH_RATIO_CALM_MAX).contains(&ratio);
                Some(judgement(bad, good, || {
                    format!("responses have {tokens:.0} tokens, {usual:.0} at the start")
                }))
            }
            EntropyCollapse => {
                let (entropy, usual) = self.entropy.against_baseline(seen.entropy_nats_per_token)?;
                let bad = entropy < ENTROPY_SHARE_MIN * usual && usual >= ENTROPY_BASELINE_MIN;
                Some(judgement(bad, entropy > ENTROPY_SHARE_CALM * usual, || {
                    format!("entropy is {entropy:.3} nats per token, {usual:.3} at the start")
                }))
            }
            DiversityCollapse => {
                let (share, usual) = self.distinct_2.against_baseline(seen.distinct_2)?;
                Some(judgement(
                    share < DIVERSITY_SHARE_MIN * usual,
                    share > DIVERSITY_SHARE_CALM * usual,
                    || {
                        format!(
                            "{:.0} % of bigrams are different, {:.0} % at the start",
                            100.0 * share,
                            100.0 * usual
                        )
                    },
                ))
            }
            NoEos => {
                seen.eos_rate?;
                let rate = self.eos_rate.smooth()?;
                Some(judgement(rate < EOS_RATE_MIN, rate > EOS_RATE_CALM, || {
                    format!("{:.1} % of responses end by themselves", 100.0 * rate)
                }))
            }
            Repetition => {
                let (share, usual) = self.repetition.against_baseline(seen.repetition)?;
                let bad = share > REPETITION_MAX && share > usual + REPETITION_RISE;
                Some(judgement(bad, share < REPETITION_CALM, || {
                    format!(
                        "{:.0} % of 4-grams are repeated, {:.0} % at the start",
                        100.0 * share,
                        100.0 * usual
                    )
                }))
            }
            ValueExplainedVariance => {
                seen.var_explained?;
                if self.var_explained.count <= VALUE_WARMUP_STEPS {
                    return None;
                }
                let explained = self.var_explained.smooth()?;
                Some(judgement(explained < 0.0, explained > VALUE_CALM, || {
                    format!(
                        "the critic explains {explained:.2} of the returns' variance, less than a constant would"
                    )
                }))
            }
            ChosenFalls => {
                seen.pair_rewards?;
                let (chosen, rejected) = (self.chosen.smooth()?, self.rejected.smooth()?);
                let bad = chosen < -CHOSEN_REWARD_MIN && rejected < chosen;
                Some(judgement(bad, chosen > -CHOSEN_REWARD_CALM, || {
                    format!("chosen responses have a mean reward of {chosen:.2}, rejected ones {rejected:.2}")
                }))
            }
            EvalLossRises => self.judge_eval_loss(seen),
        }
    }

    fn judge_kl(&self, seen: &Observation) -> Option<Judgement> {
        seen.kl_nats_per_sequence?;
        let kl = self.kl.smooth()?;
        let kl_per_token = self.length.smooth().map_or(0.0, |tokens| kl / tokens.max(1.0));
        let bad = kl > KL_PER_SEQUENCE_MAX || kl_per_token > KL_PER_TOKEN_MAX;
        let good = kl < KL_PER_SEQUENCE_MAX / 2.0 && kl_per_token < KL_PER_TOKEN_MAX / 2.0;
        Some(judgement(bad, good, || {
            format!("KL from the reference is {kl:.1} nats per sequence, {kl_per_token:.2} per token")
        }))
    }

    fn judge_negative_kl(&self, seen: &Observation) -> Option<Judgement> {
        seen.kl_nats_per_sequence?;
        if self.recent_kl.len() < KL_WINDOW {
            return None;
        }
        let (mean, error) = mean_and_standard_error(&self.recent_kl);
        let bad = mean < -KL_ERRORS_MAX * error && mean < -KL_NEGATIVE_MIN;
        Some(judgement(bad, !bad, || {
            format!(
                "KL from the reference is {mean:.2} +- {error:.2} nats per sequence, and a KL cannot be negative"
            )
        }))
    }

    /// The best is a mean of two neighbours, so that a lucky draw is not what the present is held against. The noise
    /// comes from second differences, which a trend does not enter: their variance is 6 times that of the noise.
    fn judge_gain(&self, seen: &Observation) -> Option<Judgement> {
        seen.gold?;
        if self.gains.len() < GAIN_OBSERVATIONS_MIN {
            return None;
        }
        let gold = |i: usize| self.gains[i].1;
        let now = self.gains.len() - 1;
        let mut second: Vec<f64> =
            (2..=now).map(|i| (gold(i) - 2.0 * gold(i - 1) + gold(i - 2)).abs()).collect();
        second.sort_by(f64::total_cmp);
        // The median of the absolute value of a normal number is 0.6745 of its deviation.
        let noise = second[second.len() / 2] / (0.6745 * 6.0_f64.sqrt());

        let pairs = (1..now).map(|i| (0.5 * (gold(i) + gold(i - 1)), i));
        let (best, at) = pairs.max_by(|a, b| a.0.total_cmp(&b.0))?;
        let lowest = (0..=now).map(gold).fold(f64::INFINITY, f64::min);
        let highest = (0..=now).map(gold).fold(f64::NEG_INFINITY, f64::max);
        let margin = (GAIN_ERRORS * noise).max(GAIN_RANGE_SHARE * (highest - lowest));
        let proxy_at_best = 0.5 * (self.gains[at].0 + self.gains[at - 1].0);
        let proxy_rose = self.gains[now].0 > proxy_at_best;
        let bad = gold(now) < best - margin && proxy_rose;
        Some(judgement(bad, !bad, || {
            format!(
                "the optimised number rose from {proxy_at_best:.3} to {:.3} while the one that matters fell from {best:.3} \
                 to {:.3}",
                self.gains[now].0,
                gold(now)
            )
        }))
    }

    fn judge_eval_loss(&self, seen: &Observation) -> Option<Judgement> {
        let loss = seen.eval_loss?;
        let lowest = self.eval_loss_min?;
        let rise = (loss - lowest) / lowest.abs().max(f64::MIN_POSITIVE);
        Some(judgement(rise > EVAL_LOSS_RISE, rise < EVAL_LOSS_RISE / 2.0, || {
            format!("evaluation loss is {loss:.4}, its lowest was {lowest:.4}")
        }))
    }
}

/// What a rule says of a step.
enum Judgement {
    /// Beyond the limit, and what was seen.
    Bad(String),
    /// Within the milder limit.
    Good,
    /// In between: nothing changes.
    Between,
}

fn judgement(bad: bool, good: bool, what: impl FnOnce() -> String) -> Judgement {
    match (bad, good) {
        (true, _) => Judgement::Bad(what()),
        (false, true) => Judgement::Good,
        (false, false) => Judgement::Between,
    }
}

/// Whether an alarm is raised, and for how many steps in a row the opposite has been so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Latch {
    raised: bool,
    streak: u32,
}

impl Latch {
    /// The new state, if it changes.
    fn turn(&mut self, judgement: &Judgement, patience: u32) -> Option<bool> {
        let contradicts = match judgement {
            Judgement::Bad(_) => !self.raised,
            Judgement::Good => self.raised,
            Judgement::Between => false,
        };
        self.streak = if contradicts { self.streak + 1 } else { 0 };
        if self.streak < patience {
            return None;
        }
        *self = Latch { raised: !self.raised, streak: 0 };
        Some(self.raised)
    }
}

/// A number over time: its baseline and its smoothed value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Track {
    count: u64,
    baseline_sum: f64,
    smoothed: f64,
}

impl Track {
    fn push(&mut self, value: Option<f64>) {
        let Some(value) = value else { return };
        if self.count < BASELINE_STEPS {
            self.baseline_sum += value;
        }
        self.smoothed =
            if self.count == 0 { value } else { self.smoothed + SMOOTHING * (value - self.smoothed) };
        self.count += 1;
    }

    fn smooth(&self) -> Option<f64> {
        (self.count > 0).then_some(self.smoothed)
    }

    /// Smoothed value and baseline, if the step has a value and the baseline is complete.
    fn against_baseline(&self, value: Option<f64>) -> Option<(f64, f64)> {
        let complete = value.is_some() && self.count > BASELINE_STEPS;
        complete.then(|| (self.smoothed, self.baseline_sum / BASELINE_STEPS as f64))
    }
}

fn push_bounded<T>(queue: &mut VecDeque<T>, value: T, bound: usize) {
    if queue.len() == bound {
        queue.pop_front();
    }
    queue.push_back(value);
}

/// Of at least two values; the standard error from their unbiased variance.
fn mean_and_standard_error(values: &VecDeque<f64>) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repeatable noise in [-1, 1].
    fn noise(i: u64) -> f64 {
        let mut x = i.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678;
        x ^= x >> 29;
        x = x.wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x ^= x >> 32;
        (x % 20_001) as f64 / 10_000.0 - 1.0
    }

    fn at(step: u64) -> Observation {
        Observation { step, ..Observation::default() }
    }

    /// Steps at which the alarm was raised (+) and cleared (-) over a series. No other alarm may be raised.
    fn turns(kind: AlarmKind, steps: u64, series: impl Fn(u64) -> Observation) -> Vec<i64> {
        let mut monitor = Monitor::new(Stage::Ppo);
        let mut turns = Vec::new();
        for step in 1..=steps {
            for alarm in monitor.observe(&series(step)) {
                assert_eq!(alarm.alarm, kind, "step {step}: {}", alarm.message);
                assert_eq!((alarm.step, alarm.severity), (step, kind.severity()));
                turns.push(if alarm.raised { step as i64 } else { -(step as i64) });
            }
        }
        let raised = turns.last().is_some_and(|step| *step > 0);
        assert_eq!(monitor.active().collect::<Vec<_>>(), if raised { vec![kind] } else { vec![] });
        turns
    }

    #[track_caller]
    fn silent(kind: AlarmKind, series: impl Fn(u64) -> Observation) {
        assert_eq!(turns(kind, 300, series), [] as [i64; 0]);
    }

    #[test]
    fn loss_not_finite() {
        let series = |step| Observation {
            not_finite: if step == 4 { vec!["loss".into()] } else { vec![] },
            ..at(step)
        };
        assert_eq!(turns(LossNotFinite, 10, series), [4, -5]);
    }

    #[test]
    fn kl_explosion() {
        let kl = |kl: f64| {
            move |step: u64| Observation {
                kl_nats_per_sequence: Some(kl * step as f64),
                response_tokens: Some(60.0),
                ..at(step)
            }
        };
        // 2 nats more a step: the smoothed KL lags by about 4.7 nats and passes 50 at step 28, again at 29.
        assert_eq!(turns(KlExplosion, 40, kl(2.0)), [29]);
        silent(KlExplosion, |step| Observation {
            kl_nats_per_sequence: Some(20.0 + 15.0 * noise(step)),
            ..at(step)
        });
        // One wild batch is not an explosion.
        silent(KlExplosion, |step| Observation {
            kl_nats_per_sequence: Some(if step == 50 { 150.0 } else { 6.0 }),
            ..at(step)
        });
        // Short responses: 12 nats in 10 tokens.
        let short =
            |step| Observation { kl_nats_per_sequence: Some(12.0), response_tokens: Some(10.0), ..at(step) };
        assert_eq!(turns(KlExplosion, 20, short), [2]);
        // It comes back: raised, then cleared below half, not at the limit.
        let back = |step: u64| Observation {
            kl_nats_per_sequence: Some(if step < 10 {
                100.0
            } else if step < 30 {
                40.0
            } else {
                10.0
            }),
            ..at(step)
        };
        assert_eq!(turns(KlExplosion, 60, back), [2, -32]);
    }

    #[test]
    fn negative_kl() {
        let kl = |kl: Option<f64>, step| Observation { kl_nats_per_sequence: kl, ..at(step) };
        assert_eq!(turns(NegativeKl, 30, |step| kl(Some(-0.5 + 0.2 * noise(step)), step)), [16]);
        // Near zero the estimate is as often below as above; only the window's mean counts.
        silent(NegativeKl, |step| kl(Some(0.02 + 0.8 * noise(step)), step));
        // Exactly zero, up to rounding, at the start of a run.
        silent(NegativeKl, |step| kl(Some(-1e-6), step));
        // At step 32, one of sixteen is positive: mean -0.41, error 0.09. At step 33, two: -0.31, 0.13.
        let mended = |step| kl(Some(if step < 32 { -0.5 } else { 1.0 }), step);
        assert_eq!(turns(NegativeKl, 60, mended), [16, -33]);
    }

    fn gain(step: u64, proxy: f64, gold: Option<f64>) -> Observation {
        Observation { proxy: Some(proxy), gold, ..at(step) }
    }

    /// An evaluation every tenth step.
    fn every_tenth(step: u64, gold: f64) -> Option<f64> {
        step.is_multiple_of(10).then_some(gold)
    }

    #[test]
    fn reward_without_gain() {
        let up = |step: u64| step as f64 / 100.0 + 0.02 * noise(step);
        // Gold rises to step 100 and falls after.
        let tent = |step: u64| 1.0 - (step as f64 - 100.0).abs() / 100.0 + 0.02 * noise(step + 7);
        let over_optimised =
            turns(RewardWithoutGain, 300, |step| gain(step, up(step), every_tenth(step, tent(step))));
        assert!(matches!(over_optimised[..], [step] if (110..=150).contains(&step)), "{over_optimised:?}");
        // Both rise.
        silent(RewardWithoutGain, |step| gain(step, up(step), every_tenth(step, up(step + 1000))));
        // Gold is flat and noisy.
        silent(RewardWithoutGain, |step| {
            gain(step, up(step), every_tenth(step, 0.5 + 0.1 * noise(step + 3)))
        });
        // Both fall: something is wrong, but it is not this.
        silent(RewardWithoutGain, |step| gain(step, -up(step), every_tenth(step, tent(step))));
        // Nobody measures gold.
        silent(RewardWithoutGain, |step| gain(step, up(step), None));
    }

    #[test]
    fn length_drift() {
        let length = |tokens: f64, step| Observation { response_tokens: Some(tokens), ..at(step) };
        // 20 tokens, then 40: the smoothed length passes 30 two steps later, and three in a row make an alarm.
        assert_eq!(turns(LengthDrift, 40, |step| length(if step <= 10 { 20.0 } else { 40.0 }, step)), [14]);
        assert_eq!(turns(LengthDrift, 40, |step| length(if step <= 10 { 20.0 } else { 4.0 }, step)).len(), 1);
        silent(LengthDrift, |step| length(20.0 + 8.0 * noise(step), step));
        silent(LengthDrift, |step| length(20.0 + 0.02 * step as f64, step));
        let there_and_back = |step| length(if (11..40).contains(&step) { 40.0 } else { 20.0 }, step);
        assert_eq!(turns(LengthDrift, 80, there_and_back).len(), 2);
    }

    #[test]
    fn entropy_collapse() {
        let entropy = |nats: f64, step| Observation { entropy_nats_per_token: Some(nats), ..at(step) };
        let fades = |step: u64| entropy(2.0 * 0.9_f64.powi(step as i32), step);
        let raised = turns(EntropyCollapse, 60, fades);
        assert!(matches!(raised[..], [step] if (15..30).contains(&step)), "{raised:?}");
        silent(EntropyCollapse, |step| entropy(2.0 / (1.0 + 0.01 * step as f64), step));
        silent(EntropyCollapse, |step| entropy(2.0 + noise(step), step));
        // A sure policy stays sure.
        silent(EntropyCollapse, |step| entropy(if step < 10 { 0.04 } else { 0.001 }, step));
    }

    #[test]
    fn diversity_collapse() {
        let distinct = |share: f64, step| Observation { distinct_2: Some(share), ..at(step) };
        assert_eq!(
            turns(DiversityCollapse, 40, |step| distinct(if step <= 10 { 0.8 } else { 0.1 }, step)),
            [16]
        );
        silent(DiversityCollapse, |step| distinct(0.6 + 0.2 * noise(step), step));
    }

    #[test]
    fn no_eos() {
        let eos = |rate: f64, step| Observation { eos_rate: Some(rate), ..at(step) };
        assert_eq!(turns(NoEos, 20, |step| eos(0.0, step)), [3]);
        silent(NoEos, |step| eos(0.2 + 0.1 * noise(step), step));
        assert_eq!(turns(NoEos, 60, |step| eos(if step < 20 { 0.0 } else { 0.9 }, step)), [3, -22]);
        let mut monitor = Monitor::new(Stage::Ppo);
        monitor.silence(NoEos);
        assert!((1..50).all(|step| monitor.observe(&eos(0.0, step)).is_empty()));
    }

    #[test]
    fn repetition() {
        let repeated = |share: f64, step| Observation { repetition: Some(share), ..at(step) };
        assert_eq!(turns(Repetition, 40, |step| repeated(if step <= 10 { 0.1 } else { 0.6 }, step)), [14]);
        // Repetitive from the start: the policy did not get worse.
        silent(Repetition, |step| repeated(0.5 + 0.05 * noise(step), step));
        silent(Repetition, |step| repeated(0.1 + 0.1 * noise(step), step));
    }

    #[test]
    fn value_explained_variance() {
        let explained = |share: f64, step| Observation { var_explained: Some(share), ..at(step) };
        assert_eq!(turns(ValueExplainedVariance, 60, |step| explained(-0.5, step)), [25]);
        silent(ValueExplainedVariance, |step| explained(if step < 15 { -0.5 } else { 0.3 }, step));
    }

    #[test]
    fn chosen_falls() {
        let rewards = |chosen: f64, rejected: f64, step| Observation {
            pair_rewards: Some((chosen, rejected)),
            ..at(step)
        };
        let falls = |step: u64| rewards(-0.05 * step as f64, -0.1 * step as f64, step);
        let raised = turns(ChosenFalls, 60, falls);
        assert!(matches!(raised[..], [step] if (22..30).contains(&step)), "{raised:?}");
        silent(ChosenFalls, |step| rewards(-0.3 + 0.2 * noise(step), -1.0, step));
    }

    #[test]
    fn eval_loss_rises() {
        let loss = |loss: f64, step: u64| Observation { eval_loss: every_tenth(step, loss), ..at(step) };
        let valley = |step: u64| loss(1.0 + (step as f64 - 100.0).abs() / 500.0, step);
        assert_eq!(turns(EvalLossRises, 300, valley), [140]); // 1.04 at 120, 1.06 at 130, 1.08 at 140.
        silent(EvalLossRises, |step| loss(1.0 + 0.02 * noise(step), step));
    }

    #[test]
    fn a_resumed_monitor_goes_on_to_the_bit() {
        let series = |step: u64| Observation {
            kl_nats_per_sequence: Some(3.0 * step as f64 + noise(step)),
            entropy_nats_per_token: Some(2.0 * 0.9_f64.powi(step as i32) + 0.01 * noise(step)),
            response_tokens: Some(20.0 + step as f64),
            ..gain(step, step as f64, every_tenth(step, noise(step)))
        };
        let mut whole = Monitor::new(Stage::Ppo);
        let alarms: Vec<Alarm> = (1..=60).flat_map(|step| whole.observe(&series(step))).collect();
        assert!(alarms.len() >= 3);
        for killed_after in [1, 7, 19, 33] {
            let mut first = Monitor::new(Stage::Ppo);
            let mut seen: Vec<Alarm> =
                (1..=killed_after).flat_map(|step| first.observe(&series(step))).collect();
            let text = serde_json::to_string(&first).unwrap();
            let mut second: Monitor = serde_json::from_str(&text).unwrap();
            assert_eq!(second, first);
            seen.extend((killed_after + 1..=60).flat_map(|step| second.observe(&series(step))));
            assert_eq!((&seen, &second), (&alarms, &whole), "killed after {killed_after}");
        }
    }

    #[test]
    fn observations_come_from_the_log() {
        let mut metrics = Metrics::new(Stage::Ppo);
        metrics.put("objective/kl", f64::INFINITY);
        metrics.put("objective/scores", 1.5);
        metrics.put("samples/gold", 0.5);
        metrics.put("grad_norm_critic", f64::NAN);
        let seen = Observation::of_metrics(3, &metrics);
        assert_eq!(seen.not_finite, ["grad_norm_critic", "objective/kl"]);
        assert_eq!((seen.proxy, seen.gold, seen.kl_nats_per_sequence), (Some(1.5), Some(0.5), None));

        let mut metrics = Metrics::new(Stage::Dpo);
        metrics.put("rewards/margins", 0.25);
        metrics.put("rewards/chosen", 0.2);
        metrics.put("rewards/rejected", -0.05);
        metrics.put_eval("rewards/accuracies", 0.75);
        let seen = Observation::of_metrics(3, &metrics);
        assert_eq!((seen.proxy, seen.gold, seen.pair_rewards), (Some(0.25), Some(0.75), Some((0.2, -0.05))));
    }

    #[test]
    fn every_name_that_is_read_is_declared() {
        use crate::metrics::find;
        for kind in AlarmKind::ALL {
            for name in kind.metrics() {
                assert!(Stage::ALL.into_iter().any(|stage| find(stage, name).is_some()), "{kind}: {name}");
            }
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.name()));
            assert!(!kind.advice().is_empty() && kind.rule().len() > 20);
        }
    }

    #[test]
    fn shares_by_hand() {
        // a b a b: bigrams ab ba ab; two of three differ.
        assert_eq!(distinct_share(&[vec![1, 2, 1, 2]], 2), Some(2.0 / 3.0));
        assert_eq!(distinct_share(&[vec![1, 2], vec![1, 2]], 1), Some(0.5));
        assert_eq!(distinct_share(&[vec![1]], 2), None);
        assert_eq!(distinct_share(&[], 1), None);
        // 1 1 1 1 1: 4-grams 1111 1111; one of two is a repeat. 1 2 3 4: none. Too short: not counted.
        assert_eq!(repetition_share(&[vec![1; 5], vec![1, 2, 3, 4], vec![7]]), Some(0.25));
        assert_eq!(repetition_share(&[vec![1, 2, 3]]), None);
    }
}
