//! The end of a response is learnt: its end-of-sequence token has a gradient in every trainer that is given responses.
//!
//! A model that never sees it learns never to stop (TRL's padding token being the same as EOS has done that to many).

use std::path::PathBuf;

use polity_compute::{Batch, Cpu, Recompute};
use polity_lm::Model;
use polity_lm::model::ScalarInit;
use polity_rows::{CompletionRow, FromRow, PreferenceRow, Row};
use polity_train::config::Config;
use polity_train::data::Encoder;
use polity_train::dpo::DpoTask;
use polity_train::learner::{Frozen, Learner};
use polity_train::metrics::Metrics;
use polity_train::ppo::{PpoTask, Rollout};
use polity_train::progress::Phases;
use polity_train::reward::RewardTask;
use polity_train::settings::{DpoConfig, PpoConfig, RewardConfig, SftConfig};
use polity_train::sft::SftTask;
use polity_train::supervised::Task;
use serde_json::{Value, json};

const EOS: u32 = 2;

fn stories() -> Model {
    Model::load(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k")).unwrap()
}

fn row<R: FromRow>(value: Value) -> Vec<R> {
    let Value::Object(value) = value else { unreachable!() };
    vec![R::from_row(Row { index: 0, line: Some(1), value }, "rows.jsonl".as_ref()).unwrap()]
}

fn config<C: Config>() -> C {
    C::from_toml_and_sets(None, &[]).unwrap()
}

/// `log p(EOS)` after the tokens before it.
fn logprob_of_eos(task_model: &Model, ids: &[u32]) -> f32 {
    let cpu = Cpu::new(1);
    let mut batch = Batch::new();
    let whole = batch.push(ids, None);
    let predictions = batch.predict(whole, ids.len() - 1);
    Frozen::new(&cpu, task_model.clone()).logprobs(&batch, &predictions, 1.0).logprob_m[0]
}

/// One step; how much likelier the EOS at the end of `ids` became.
fn gain<'c, T: Task<'c>>(mut task: T, ids: &[u32]) -> f32 {
    assert_eq!(ids.last(), Some(&EOS), "the response ends");
    let before = logprob_of_eos(&task.learner().model, ids);
    task.accumulate(&[0], &mut Metrics::new(T::STAGE), &mut Phases::begin(&|| 0.0)).unwrap();
    let update = task.learner().update(1e-4);
    assert!(update.grad_norm > 0.0);
    logprob_of_eos(&task.learner().model, ids) - before
}

#[test]
fn sft_learns_to_stop() {
    let (cpu, model, config) = (Cpu::new(1), stories(), config::<SftConfig>());
    let encoder = Encoder::new(&model, None);
    let rows = row::<CompletionRow>(json!({"prompt": "Lily went to the park", "completion": " with Tom."}));
    let (mut rows, _) = encoder.demonstrations(&rows, &config, "rows").unwrap();
    assert_eq!(rows[0].trained.last(), Some(&true));
    // The EOS alone, so that nothing else can be what was learnt.
    let n = rows[0].ids.len();
    rows[0].trained[..n - 1].fill(false);
    let ids = rows[0].ids.clone();
    let learner = Learner::new(&cpu, model.clone(), config.common.optimizer(), Recompute::None);
    let gain = gain(SftTask::new(learner, rows, Vec::new(), config), &ids);
    assert!(gain > 1e-3, "{gain}");
}

#[test]
fn dpo_learns_to_stop() {
    let (cpu, model, config) = (Cpu::new(1), stories(), config::<DpoConfig>());
    let encoder = Encoder::new(&model, None);
    // The responses differ in nothing but where they end.
    let rows = row::<PreferenceRow>(
        json!({"prompt": "Lily went to the park", "chosen": " with Tom.", "rejected": " with Tom. Tom"}),
    );
    let (pairs, _) = encoder.comparisons(&rows, &config.common, "pairs").unwrap();
    let ids = [pairs[0].prompt.as_slice(), &pairs[0].chosen].concat();
    let learner = Learner::new(&cpu, model.clone(), config.common.optimizer(), Recompute::None);
    let reference = Some(Frozen::new(&cpu, model.clone()));
    let gain = gain(DpoTask::new(learner, reference, pairs, Vec::new(), config).unwrap(), &ids);
    assert!(gain > 1e-3, "{gain}");
}

#[test]
fn a_reward_is_read_at_the_end_of_the_response() {
    let (cpu, model, config) = (Cpu::new(1), stories(), config::<RewardConfig>());
    let model = model.with_scalar_head(0, ScalarInit::InitializerRange).unwrap();
    let encoder = Encoder::new(&model, None);
    let rows = row::<PreferenceRow>(
        json!({"prompt": "Lily went to the park", "chosen": " with Tom.", "rejected": " with Tom. Tom"}),
    );
    let (pairs, _) = encoder.comparisons(&rows, &config.common, "pairs").unwrap();
    let ends = |ids: &[u32]| assert_eq!(ids.last(), Some(&EOS));
    ends(&pairs[0].chosen);
    ends(&pairs[0].rejected);
    let reward_at = |model: &Model, ids: &[u32]| {
        let mut batch = Batch::new();
        batch.push(ids, None);
        Frozen::new(&cpu, model.clone()).scalars(&batch, &[ids.len() - 1])[0]
    };
    let chosen = [pairs[0].prompt.as_slice(), &pairs[0].chosen].concat();
    let rejected = [pairs[0].prompt.as_slice(), &pairs[0].rejected].concat();
    let margin = |model: &Model| reward_at(model, &chosen) - reward_at(model, &rejected);
    let before = margin(&model);
    let learner = Learner::new(&cpu, model, config.common.optimizer(), Recompute::None);
    let mut task = RewardTask::new(learner, pairs, Vec::new(), config);
    let mut metrics = Metrics::new(RewardTask::STAGE);
    task.accumulate(&[0], &mut metrics, &mut Phases::begin(&|| 0.0)).unwrap();
    // The margin that was trained on is that of the rows at EOS.
    assert!((metrics.get("margin").unwrap() - f64::from(before)).abs() < 1e-6);
    task.learner().update(1e-3);
    assert!(margin(&task.into_learner().model) > before + 1e-3);
}

#[test]
fn ppo_learns_to_stop() {
    let (cpu, model) = (Cpu::new(1), stories());
    let config = PpoConfig { num_ppo_epochs: 1, ..config() };
    let encode = |text, add| model.tokenizer().unwrap().encode(text, add).unwrap();
    let prompt = encode("Lily went to the park", true);
    // One response ends by itself, the other was cut.
    let responses = vec![[encode(" with Tom.", false), vec![EOS]].concat(), encode(" with Tom and", false)];
    let mut batch = Batch::new();
    let mut predictions = Vec::new();
    for response in &responses {
        let parent = batch.push(&prompt, None);
        let segment = batch.push(response, Some(parent));
        predictions.extend(batch.predict(segment, 0));
    }
    let logprob_m =
        Frozen::new(&cpu, model.clone()).logprobs(&batch, &predictions, config.temperature as f32).logprob_m;
    let ids = [prompt.as_slice(), &responses[0]].concat();
    let (eos, window_tokens) = (responses[0].len() - 1, responses[0].len().max(responses[1].len()));
    let stopped = vec![true, false];
    let rollout = Rollout { prompts: vec![prompt; 2], responses, stopped, logprob_m, window_tokens };

    let reward_model = model.with_scalar_head(0, ScalarInit::InitializerRange).unwrap();
    let learner =
        |model: &Model| Learner::new(&cpu, model.clone(), config.common.optimizer(), Recompute::None);
    let frozen = |model: &Model| Frozen::new(&cpu, model.clone());
    let (policy, critic) = (learner(&model), learner(&reward_model));
    let (reference, reward_model) = (frozen(&model), frozen(&reward_model));
    let mut task = PpoTask::new(policy, critic, reference, reward_model, Vec::new(), config.clone());
    let mut experience = task.experience(rollout).unwrap();
    assert_ne!(experience.advantage_m[eos], 0.0, "the end has an advantage of its own");
    // The EOS alone is better than expected, so that nothing else can be what was learnt.
    experience.advantage_m.fill(0.0);
    experience.advantage_m[eos] = 1.0;
    let before = logprob_of_eos(&task.policy.model, &ids);
    task.learn(&experience, 1e-4, 0.0).unwrap();
    let gain = logprob_of_eos(&task.policy.model, &ids) - before;
    assert!(gain > 1e-3, "{gain}");
}
