//! Every number a run can log, with its unit and formula, and the numbers of one step.
//!
//! A metric is declared once, beside the code that computes it ([`Stats::METRICS`] of the objectives) or here (what the
//! trainers themselves know), and cannot be logged under another name: [`Metrics::put`] refuses what its stage has not
//! declared. The evaluation's copy of a metric has the prefix `eval_`, as in Transformers. `docs/metrics.md` is written
//! from these tables. Names are TRL's wherever TRL has the metric; where TRL's formula is wrong, ours says so.
//!
//! A line of `metrics.jsonl` depends on nothing but the run's manifest, apart from `time_s` and what begins with `time/`: no
//! rates elsewhere, or a resumed run could not equal an uninterrupted one.

use std::fmt;
use std::str::FromStr;

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::objectives::dpo::DpoStats;
use crate::objectives::ppo::{PolicyStats, RolloutStats, ValueStats};
use crate::objectives::reward::RewardStats;
use crate::objectives::sft::SftStats;
use crate::objectives::{MetricDecl, Stats};

/// Which trainer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Supervised fine-tuning.
    Sft,
    /// Reward model.
    Reward,
    /// Direct preference optimisation and its relatives.
    Dpo,
    /// Proximal policy optimisation.
    Ppo,
}

impl Stage {
    /// Every stage, in the order a team goes through them.
    pub const ALL: [Stage; 4] = [Stage::Sft, Stage::Reward, Stage::Dpo, Stage::Ppo];

    /// As in `polity train NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Sft => "sft",
            Stage::Reward => "reward",
            Stage::Dpo => "dpo",
            Stage::Ppo => "ppo",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Stage {
    type Err = String;

    fn from_str(name: &str) -> Result<Stage, String> {
        Stage::ALL.into_iter().find(|stage| stage.name() == name).ok_or_else(|| {
            let known = Stage::ALL.map(Stage::name).join(", ");
            format!("unknown stage {name:?}, expected one of {known}")
        })
    }
}

/// What the evaluation's metrics are prefixed with.
pub const EVAL_PREFIX: &str = "eval_";

const fn decl(name: &'static str, unit: &'static str, formula: &'static str) -> MetricDecl {
    MetricDecl { name, unit, formula }
}

/// Every stage.
const COMMON: &[MetricDecl] = &[
    decl("epoch", "passes over the data", "rows consumed / rows of the training data"),
    decl("num_tokens", "tokens", "tokens that went through the policy or reward model since the run began"),
    decl("grad_norm", "loss per parameter unit", "global 2-norm of the step's gradient, before clipping"),
];

/// Every stage whose step is one optimiser update.
const ONE_UPDATE: &[MetricDecl] = &[
    decl("time/update", "seconds", "forward and backward passes, loss and optimiser of this step"),
    decl("time/eval", "seconds", "evaluation and samples after this step, where it has any"),
    decl("loss", "loss", "what the step minimised, over all of its rows"),
    decl("learning_rate", "per step", "learning rate that the step used"),
];

/// Stages that train on given completions.
const TEACHER_FORCED: &[MetricDecl] = &[
    decl("entropy", "nats per token", "sum of the model's entropy over trained tokens / trained tokens"),
    decl(
        "mean_token_accuracy",
        "share of tokens",
        "trained tokens that are the model's most likely token / trained tokens",
    ),
];

const REWARD: &[MetricDecl] = &[
    decl("accuracy_low", "share of pairs", "lower end of the 95 % Wilson interval of accuracy"),
    decl("accuracy_high", "share of pairs", "upper end of the 95 % Wilson interval of accuracy"),
    decl(
        "longer_wins",
        "share of pairs",
        "pairs whose preferred response has more tokens / pairs of unequal length",
    ),
    decl(
        "bag_of_words",
        "share of pairs",
        "pairs that a logistic regression on counts of words (chosen - rejected, L2 penalty 1) orders right, fitted on at \
         most 20000 of the training pairs; half for a pair without a known word",
    ),
    decl(
        "calibration_error",
        "probability",
        "sum over ten equal bins of sigmoid(margin) of |share right - mean sigmoid| * pairs in bin / pairs",
    ),
];

const DPO: &[MetricDecl] = &[decl(
    "time/reference",
    "seconds",
    "passes of the reference model in this step, where they are not stored",
)];

const PPO: &[MetricDecl] = &[
    decl("time/rollout", "seconds", "sampling of this step's responses"),
    decl("time/reward", "seconds", "passes of the reference, the critic and the reward model over them"),
    decl("time/update", "seconds", "inner epochs: passes of the policy and the critic, and their optimisers"),
    decl("time/eval", "seconds", "the judge's prompts and samples after this step, where it has any"),
    decl("episode", "episodes", "responses rolled out since the run began"),
    decl("lr", "per step", "learning rate of the policy during this rollout's updates"),
    decl("lr_critic", "per step", "learning rate of the critic during this rollout's updates"),
    decl(
        "grad_norm_critic",
        "loss per parameter unit",
        "as grad_norm, of the critic; both are means over the step's updates",
    ),
    decl(
        "objective/kl_coef",
        "reward per nat",
        "coefficient of the KL penalty that this rollout's rewards used",
    ),
    decl(
        "ppo/updates",
        "updates",
        "optimiser updates that this step made; fewer than asked for after an early stop",
    ),
    decl("val/num_eos_tokens", "responses", "responses that ended with their stop token"),
    decl("completions/clipped_ratio", "share of responses", "responses cut by response_length / responses"),
    decl("samples/eos_rate", "share of responses", "responses that ended with their stop token / responses"),
    decl("samples/distinct_1", "share of tokens", "different tokens of the rollout / tokens of the rollout"),
    decl(
        "samples/distinct_2",
        "share of bigrams",
        "different pairs of neighbouring tokens of the rollout / pairs",
    ),
    decl(
        "samples/repetition",
        "share of 4-grams",
        "mean over responses of the share of their 4-grams that occurred before in the same response",
    ),
    decl(
        "samples/gold",
        "utility",
        "mean score by people or a known truth, where the caller gives one; never trained on",
    ),
];

/// Metrics declared in one place.
#[derive(Clone, Copy, Debug)]
pub struct MetricTable {
    /// The file that computes them, in `crates/train/src`.
    pub source: &'static str,
    /// They.
    pub metrics: &'static [MetricDecl],
}

/// The tables of a stage, in the order `docs/metrics.md` shows them.
pub fn tables(stage: Stage) -> Vec<MetricTable> {
    let table = |source, metrics| MetricTable { source, metrics };
    match stage {
        Stage::Sft => vec![
            table("supervised.rs", ONE_UPDATE),
            table("supervised.rs", COMMON),
            table("sft.rs", TEACHER_FORCED),
            table("objectives/sft.rs", SftStats::METRICS),
        ],
        Stage::Reward => vec![
            table("supervised.rs", ONE_UPDATE),
            table("supervised.rs", COMMON),
            table("objectives/reward.rs", RewardStats::METRICS),
            table("reward.rs", REWARD),
        ],
        Stage::Dpo => vec![
            table("supervised.rs", ONE_UPDATE),
            table("supervised.rs", COMMON),
            table("sft.rs", TEACHER_FORCED),
            table("dpo.rs", DPO),
            table("objectives/dpo.rs", DpoStats::METRICS),
        ],
        Stage::Ppo => vec![
            table("ppo.rs", COMMON),
            table("ppo.rs", PPO),
            table("objectives/ppo.rs", RolloutStats::METRICS),
            table("objectives/ppo.rs", PolicyStats::METRICS),
            table("objectives/ppo.rs", ValueStats::METRICS),
        ],
    }
}

/// Every metric that a stage can log, without the `eval_` copies.
pub fn declared(stage: Stage) -> impl Iterator<Item = &'static MetricDecl> {
    tables(stage).into_iter().flat_map(|table| table.metrics)
}

/// The declaration of a name as it appears in the log.
pub fn find(stage: Stage, name: &str) -> Option<&'static MetricDecl> {
    let base = name.strip_prefix(EVAL_PREFIX).unwrap_or(name);
    declared(stage).find(|decl| decl.name == base)
}

/// The numbers of one step, in the order they were put in.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    stage: Stage,
    values: Vec<(String, f64)>,
}

impl Metrics {
    /// No numbers yet.
    pub fn new(stage: Stage) -> Metrics {
        Metrics { stage, values: Vec::new() }
    }

    /// Adds a number under a declared name.
    ///
    /// # Panics
    ///
    /// In debug builds, if the stage has not declared the name or the step already has a number under it.
    pub fn put(&mut self, name: &str, value: f64) {
        debug_assert!(
            find(self.stage, name).is_some(),
            "no metric of stage {} is declared as {name:?}",
            self.stage
        );
        debug_assert!(self.get(name).is_none(), "metric {name:?} was put twice in one step");
        self.values.push((name.to_owned(), value));
    }

    /// Adds the evaluation's number of a declared metric.
    ///
    /// # Panics
    ///
    /// As [`Metrics::put`].
    pub fn put_eval(&mut self, name: &str, value: f64) {
        self.put(&format!("{EVAL_PREFIX}{name}"), value);
    }

    /// Adds what an objective counted.
    pub fn put_stats(&mut self, stats: &impl Stats) {
        stats.metrics().iter().for_each(|metric| self.put(metric.decl.name, metric.value));
    }

    /// Adds what an objective counted on the evaluation data.
    pub fn put_eval_stats(&mut self, stats: &impl Stats) {
        stats.metrics().iter().for_each(|metric| self.put_eval(metric.decl.name, metric.value));
    }

    /// The number under a name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    /// All names and numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Which trainer they are from.
    pub fn stage(&self) -> Stage {
        self.stage
    }
}

impl Serialize for Metrics {
    /// A JSON object. JSON has no NaN and no infinity: such a number is `null`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.values.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, &value.is_finite().then_some(value))?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_declared_once_with_unit_and_formula() {
        for stage in Stage::ALL {
            let mut seen = Vec::new();
            for decl in declared(stage) {
                assert!(!seen.contains(&decl.name), "{stage}: {} is declared twice", decl.name);
                assert!(
                    !decl.unit.is_empty() && decl.formula.len() > 5,
                    "{stage}: {} says nothing",
                    decl.name
                );
                assert!(!decl.name.starts_with(EVAL_PREFIX), "{stage}: {} would be ambiguous", decl.name);
                seen.push(decl.name);
            }
            assert!(seen.len() > 5);
        }
    }

    #[test]
    fn a_step_is_a_json_object_in_order() {
        let mut metrics = Metrics::new(Stage::Sft);
        metrics.put("loss", 0.5);
        metrics.put("grad_norm", f64::NAN);
        metrics.put_eval("loss", 0.1 + 0.2);
        metrics.put_stats(&SftStats { tokens: 4, nll_sum: 2.0 });
        let json = serde_json::to_string(&metrics).unwrap();
        let expect = r#"{"loss":0.5,"grad_norm":null,"eval_loss":0.30000000000000004,"nll_per_token":0.5}"#;
        assert_eq!(json, expect);
        assert_eq!(metrics.get("eval_loss"), Some(0.1 + 0.2));
        assert_eq!(metrics.get("epoch"), None);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "no metric of stage sft is declared as \"rewards/margins\"")]
    fn an_undeclared_name_is_a_bug() {
        Metrics::new(Stage::Sft).put("rewards/margins", 1.0);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "put twice")]
    fn a_name_put_twice_is_a_bug() {
        let mut metrics = Metrics::new(Stage::Sft);
        metrics.put("loss", 1.0);
        metrics.put("loss", 2.0);
    }

    #[test]
    fn stages_by_name() {
        for stage in Stage::ALL {
            assert_eq!(stage.name().parse(), Ok(stage));
        }
        assert!("pppo".parse::<Stage>().unwrap_err().contains("sft, reward, dpo, ppo"));
    }
}
