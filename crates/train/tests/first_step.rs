//! Before anything is learnt the policy is its reference, exactly: DPO's loss is ln 2, PPO's KL is 0 and its ratio 1 at every
//! temperature.
//!
//! Sampling decodes a token at a time with a cache, the reference reads whole prefix trees, the update reads them again in
//! parts: it takes all three giving the same bits to make these exact.

use std::f64::consts::LN_2;
use std::path::PathBuf;

use polity_compute::{Cpu, Recompute};
use polity_lm::Model;
use polity_lm::model::ScalarInit;
use polity_train::config::Config;
use polity_train::dpo::DpoTask;
use polity_train::examples::{Comparison, ExampleInfo, PromptExample};
use polity_train::learner::{Frozen, Learner};
use polity_train::metrics::{Metrics, Stage};
use polity_train::objectives::Stats;
use polity_train::objectives::ppo::RolloutStats;
use polity_train::ppo::PpoTask;
use polity_train::progress::Phases;
use polity_train::settings::{DpoConfig, PpoConfig};
use polity_train::supervised::Task;

/// Prompts of unequal lengths.
const PROMPTS: [&str; 4] =
    ["Lily", "Tom and his dog went to", "Once upon a time there was a", "The big red ball rolled"];

fn stories() -> Model {
    Model::load(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k")).unwrap()
}

fn config<C: Config>(sets: &[(&str, &str)]) -> C {
    let sets: Vec<_> = sets.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    C::from_toml_and_sets(None, &sets).unwrap()
}

fn encode(model: &Model, text: &str, add_special: bool) -> Vec<u32> {
    model.tokenizer().unwrap().encode(text, add_special).unwrap()
}

#[test]
fn dpo_starts_at_ln_2() {
    let (cpu, model) = (Cpu::new(2), stories());
    let pairs: Vec<_> = PROMPTS
        .iter()
        .map(|prompt| Comparison {
            prompt: encode(&model, prompt, true),
            chosen: encode(&model, " was very happy and ran home.", false),
            rejected: encode(&model, " no.", false),
            margin: None,
            weight: None,
            label: None,
            info: ExampleInfo::default(),
        })
        .collect();
    // At once, and in parts of one pair.
    for tokens in ["100000", "1"] {
        let config: DpoConfig = config(&[("tokens_per_micro_batch", tokens)]);
        let learner = Learner::new(&cpu, model.clone(), config.common.optimizer(), Recompute::None);
        let reference = Some(Frozen::new(&cpu, model.clone()));
        let mut task = DpoTask::new(learner, reference, pairs.clone(), Vec::new(), config).unwrap();
        let mut metrics = Metrics::new(Stage::Dpo);
        let loss = task.accumulate(&[0, 1, 2, 3], &mut metrics, &mut Phases::begin(&|| 0.0)).unwrap();
        // A sum of four quarters of ln 2, in f64.
        assert!((loss - LN_2).abs() < 4.0 * f64::EPSILON, "{tokens}: {loss}");
        assert_eq!(metrics.get("rewards/margins"), Some(0.0), "{tokens}");
        // And it is no dead end.
        assert!(task.learner().update(1e-4).grad_norm > 0.0, "{tokens}");
    }
}

#[test]
fn ppo_starts_at_the_reference() {
    let (cpu, model) = (Cpu::new(2), stories());
    let reward_model = model.with_scalar_head(0, ScalarInit::InitializerRange).unwrap();
    let prompts: Vec<_> = PROMPTS
        .iter()
        .map(|prompt| PromptExample { ids: encode(&model, prompt, true), info: ExampleInfo::default() })
        .collect();
    for temperature in ["0.5", "1.0", "1.7"] {
        let config: PpoConfig = config(&[
            ("temperature", temperature),
            ("response_length", "24"),
            ("num_ppo_epochs", "1"),
            ("tokens_per_micro_batch", "40"),
        ]);
        let learner =
            |model: &Model| Learner::new(&cpu, model.clone(), config.common.optimizer(), Recompute::None);
        let mut task = PpoTask::new(
            learner(&model),
            learner(&reward_model),
            Frozen::new(&cpu, model.clone()),
            Frozen::new(&cpu, reward_model.clone()),
            prompts.clone(),
            config.clone(),
        );
        let rollout = task.roll_out(&[0, 1, 2, 3]);
        assert!(rollout.logprob_m.len() > 40, "more than one part");
        let experience = task.experience(rollout).unwrap();
        let sampled = &experience.rollout.logprob_m;
        assert_eq!(&experience.ref_logprob_m, sampled, "temperature {temperature}");
        let rolled = RolloutStats::new(sampled, &experience.score_i, &experience.rewards, &experience.spans);
        assert_eq!(rolled.kl_nats_per_sequence(), Some(0.0), "temperature {temperature}");

        let before = task.policy.model.params.data.to_vec();
        let policy = task.learn(&experience, 1e-4, 1e-4).unwrap().policy;
        for (name, expect) in
            [("val/ratio", 1.0), ("val/ratio_var_per_token", 0.0), ("policy/approxkl_avg", 0.0)]
        {
            assert_eq!(policy.value(name), Some(expect), "temperature {temperature}: {name}");
        }
        assert_ne!(before, task.policy.model.params.data.to_vec(), "something was learnt");
    }
}
