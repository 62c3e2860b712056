//! Proximal policy optimisation: sample, score, learn, under a KL leash to a frozen reference.
//!
//! ```text
//! loop
//!   roll out   responses from the policy; their log-probs are the policy's to the bit
//!   score      reward model at the last token; critic and reference on the same prefix trees
//!   shape      reward_t = -kl_coef * kl_t, the score at the end; GAE; whitening over the whole batch
//!   learn      num_ppo_epochs passes of clipped policy and value updates
//!   steer      the KL controller
//! ```
//!
//! The formulas are in `objectives/`. Defaults are Polity's; `preset = "trl"` and `"trl_classic"` are the two TRL
//! trainers'. Differences are listed in docs/details.md.

use serde::{Deserialize, Serialize};

use polity_compute::{Batch, Prediction};
use polity_lm::engine::{Engine, Finish, Flow, Limits, Request, Response, SamplerConfig};
use polity_lm::rng::Stream;

use crate::error::TrainError;
use crate::examples::{Order, PromptExample, parts};
use crate::learner::{Frozen, Learner};
use crate::metrics::{Metrics, Stage};
use crate::monitor::{Monitor, Observation, distinct_share, repetition_share};
use crate::objectives::kl::{KlController, KlPenalty, kl_estimates};
use crate::objectives::ppo::{
    PolicyBatch, PolicyConfig, PolicyStats, RolloutStats, ShapedRewards, ValueStats, estimate_advantages,
    policy_loss, shape_rewards, value_loss,
};
use crate::objectives::score::{RunningMoments, shape_scores};
use crate::objectives::whiten::Moments;
use crate::objectives::{Aggregation, Spans, Stats};
use crate::progress::{Event, Host, Meter, Phases};
use crate::run::RunDir;
use crate::samples::{SamplePrompt, draw_samples};
use crate::settings::{PpoConfig, StopToken};
use crate::supervised::{Outcome, RunContext, load_learner, save_learner};

/// The four models, the prompts and the settings.
pub struct PpoTask<'c> {
    /// The policy.
    pub policy: Learner<'c>,
    /// The critic, with a scalar head.
    pub critic: Learner<'c>,
    reference: Frozen<'c>,
    reward_model: Frozen<'c>,
    prompts: Vec<PromptExample>,
    gold: Option<GoldProbe<'c>>,
    config: PpoConfig,
    state: PpoState,
    /// How often the critic has read or learnt: a tape is as old as its number.
    critic_passes: u64,
}

/// Where somebody knows what responses are really worth: held-out prompts, and a judge of the responses to them. Read at
/// each evaluation and logged as `samples/gold`; nothing is ever trained on it.
pub struct GoldProbe<'c> {
    /// The prompts' tokens.
    pub prompts: Vec<Vec<u32>>,
    /// The judge.
    pub judge: Judge<'c>,
}

/// The worth of a response: the prompt's index, the response's tokens, and whether it ended by itself.
pub type Judge<'c> = Box<dyn Fn(usize, &[u32], bool) -> f64 + 'c>;

/// What changes beside weights and moments; part of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PpoState {
    /// Rollout batches done.
    pub step: u64,
    /// Responses rolled out.
    pub episodes: u64,
    /// The KL penalty's coefficient.
    pub controller: KlController,
    /// Of all scores so far.
    pub moments: RunningMoments,
}

/// Some prompts with one response each, as they were sampled.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollout {
    /// `[i]`.
    pub prompts: Vec<Vec<u32>>,
    /// `[i]`, a stop token included.
    pub responses: Vec<Vec<u32>>,
    /// `[i]`: whether the response ended with a stop token.
    pub stopped: Vec<bool>,
    /// `[m]`: log-probs under the policy that sampled, at the sampling temperature, nats.
    pub logprob_m: Vec<f32>,
    /// Width of the window that a padding trainer would use; see `ScorePlacement::AfterLast`.
    pub window_tokens: usize,
}

/// A rollout with everything that learning needs.
#[derive(Clone, Debug)]
pub struct Experience {
    /// The responses.
    pub rollout: Rollout,
    /// Which tokens are whose.
    pub spans: Spans,
    /// Critic readings of each response.
    pub value_spans: Spans,
    /// `[m]`: under the reference.
    pub ref_logprob_m: Vec<f32>,
    /// `[i]`: as the reward model gave them.
    pub raw_score_i: Vec<f32>,
    /// `[i]`: scaled, clipped, with the missing-EOS rule.
    pub score_i: Vec<f32>,
    /// Rewards per critic reading.
    pub rewards: ShapedRewards,
    /// `[u]`: the critic's values at rollout.
    pub value_u: Vec<f32>,
    /// `[m]`.
    pub advantage_m: Vec<f32>,
    /// `[u]`.
    pub return_u: Vec<f32>,
    /// The critic's pass over all of it, if it was one from which the critic can learn.
    critic_pass: Option<u64>,
}

/// What the updates of one step did.
#[derive(Clone, Debug, Default)]
pub struct LearnStats {
    /// Of the policy.
    pub policy: PolicyStats,
    /// Of the critic.
    pub value: ValueStats,
    /// Losses and norms of each update, to be averaged.
    updates: Vec<Update>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Update {
    policy_loss: f64,
    value_loss: f64,
    grad_norm: f64,
    grad_norm_critic: f64,
}

impl LearnStats {
    fn mean(&self, of: impl Fn(&Update) -> f64) -> f64 {
        self.updates.iter().map(of).sum::<f64>() / self.updates.len().max(1) as f64
    }
}

/// Some responses as prefix trees.
struct Trees {
    batch: Batch,
    predictions: Vec<Prediction>,
    /// The critic's rows, response after response.
    value_rows: Vec<usize>,
    last_rows: Vec<usize>,
}

impl Trees {
    fn new(rollout: &Rollout, which: &[usize], value_spans: &Spans) -> Self {
        let mut out = Self {
            batch: Batch::new(),
            predictions: Vec::new(),
            value_rows: Vec::new(),
            last_rows: Vec::new(),
        };
        for &i in which {
            let prompt = out.batch.push(&rollout.prompts[i], None);
            let response = out.batch.push(&rollout.responses[i], Some(prompt));
            let predictions = out.batch.predict(response, 0);
            let last = out.batch.last_row(response).expect("a prompt has a token");
            out.value_rows.extend(predictions.iter().map(|p| p.row));
            if value_spans.length(i) > predictions.len() {
                out.value_rows.push(last);
            }
            out.predictions.extend(predictions);
            out.last_rows.push(last);
        }
        out
    }
}

const STATE_FILE: &str = "state.json";

impl<'c> PpoTask<'c> {
    /// A task over prompts that pre-flight has passed. The critic and the reward model have scalar heads; all four
    /// share a vocabulary.
    pub fn new(
        policy: Learner<'c>,
        critic: Learner<'c>,
        reference: Frozen<'c>,
        reward_model: Frozen<'c>,
        prompts: Vec<PromptExample>,
        config: PpoConfig,
    ) -> Self {
        let state = PpoState {
            step: 0,
            episodes: 0,
            controller: config.controller(),
            moments: RunningMoments::new(),
        };
        Self { policy, critic, reference, reward_model, prompts, gold: None, config, state, critic_passes: 0 }
    }

    /// The same, watched by a judge.
    pub fn with_gold(self, probe: GoldProbe<'c>) -> Self {
        Self { gold: Some(probe), ..self }
    }

    /// The state beside weights and moments.
    pub fn state(&self) -> &PpoState {
        &self.state
    }

    /// Tokens that end a response.
    fn stop_tokens(&self) -> Vec<u32> {
        match (self.config.stop_token_id, self.config.stop_token) {
            (Some(id), _) => vec![id],
            (None, StopToken::Eos) => self.policy.model.generation.eos.clone(),
            (None, StopToken::None) => Vec::new(),
        }
    }

    /// Samples one response to each prompt. The randomness is keyed by the episode's number.
    pub fn roll_out(&mut self, prompts: &[usize]) -> Rollout {
        let requests: Vec<Request> = prompts
            .iter()
            .enumerate()
            .map(|(i, &prompt)| Request {
                ids: self.prompts[prompt].ids.clone(),
                samples: 1,
                prompt_id: self.state.episodes + i as u64,
            })
            .collect();
        let responses = self.generate(&requests, self.config.common.seed);
        Rollout {
            prompts: requests.into_iter().map(|request| request.ids).collect(),
            stopped: responses.iter().map(|r| r.finish == Finish::Stop).collect(),
            logprob_m: responses.iter().flat_map(|r| r.logprobs.iter().copied()).collect(),
            window_tokens: responses.iter().map(|r| r.ids.len()).max().unwrap_or(0),
            responses: responses.into_iter().map(|r| r.ids).collect(),
        }
    }

    /// Mean worth of the policy's responses to the judge's prompts, sampled as for a rollout. The same random numbers every
    /// time, and others than any rollout's.
    fn gold_mean(&mut self) -> Option<f64> {
        let prompts = &self.gold.as_ref()?.prompts;
        let requests: Vec<Request> = (0u64..)
            .zip(prompts)
            .map(|(prompt_id, ids)| Request { ids: ids.clone(), samples: 1, prompt_id })
            .collect();
        let seed = Stream::new(self.config.common.seed, "gold", &[]).next_u64();
        let responses = self.generate(&requests, seed);
        let judge = &self.gold.as_ref()?.judge;
        let worth = responses.iter().map(|r| judge(r.request, &r.ids, r.finish == Finish::Stop));
        (!responses.is_empty()).then(|| worth.sum::<f64>() / responses.len() as f64)
    }

    fn draw_samples(
        &mut self,
        prompts: &[SamplePrompt],
        step: u64,
        run: &mut RunDir,
        host: &mut dyn Host,
    ) -> Result<(), TrainError> {
        let seed = self.config.common.seed;
        draw_samples(&mut self.policy, Some(&mut self.reward_model), prompts, step, seed, run, host)
    }

    /// Responses of the policy, under the run's sampler.
    fn generate(&mut self, requests: &[Request], seed: u64) -> Vec<Response> {
        let config = SamplerConfig {
            temperature: self.config.temperature as f32,
            top_k: self.config.top_k,
            top_p: self.config.top_p as f32,
            min_p: self.config.min_p as f32,
            repetition_penalty: self.config.repetition_penalty as f32,
            max_new_tokens: self.config.response_length,
            min_new_tokens: self.config.min_new_tokens,
            stop_token_ids: self.stop_tokens(),
            stop_strings: Vec::new(),
            vocab: self.policy.model.tokenizer_vocab(),
        };
        let (cpu, decoder, params, tape) = self.policy.engine_parts();
        Engine::new(cpu, decoder, params, Limits::usual(), tape).generate(
            requests,
            &config,
            seed,
            &|_| String::new(),
            &mut |_| Flow::Continue,
        )
    }

    fn parts(&self, rollout: &Rollout, which: &[usize]) -> Vec<Vec<usize>> {
        let lengths = which.iter().map(|&i| rollout.prompts[i].len() + rollout.responses[i].len());
        parts(lengths, self.config.common.tokens_per_micro_batch)
            .into_iter()
            .map(|part| which[part].to_vec())
            .collect()
    }

    /// Reads a rollout with the reference, the critic and the reward model, and shapes its rewards and advantages.
    ///
    /// Updates the running moments of the scores.
    pub fn experience(&mut self, rollout: Rollout) -> Result<Experience, TrainError> {
        let spans = Spans::from_lengths(rollout.responses.iter().map(Vec::len));
        let value_spans = self.config.score_placement.value.value_spans(&spans, rollout.window_tokens);
        let temperature = self.config.temperature as f32;
        let all: Vec<usize> = (0..spans.count()).collect();
        let full_kl = self.config.kl_estimator.value == KlPenalty::Full;
        let (mut ref_logprob_m, mut full_kl_m) = (Vec::new(), Vec::new());
        let (mut value_u, mut raw_score_i) = (Vec::new(), Vec::new());
        let parts = self.parts(&rollout, &all);
        // The first update is of all responses, by the critic as it is now: it learns from this very pass.
        let learns_from_this = parts.len() == 1 && self.config.num_mini_batches == 1;
        self.critic_passes += 1;
        for part in parts {
            let trees = Trees::new(&rollout, &part, &value_spans);
            let out = self.reference.logprobs(&trees.batch, &trees.predictions, temperature);
            ref_logprob_m.extend(out.logprob_m);
            if full_kl {
                full_kl_m.extend(self.reference.kl_full_from(
                    &mut self.policy,
                    &trees.batch,
                    &trees.predictions,
                    temperature,
                ));
            }
            value_u.extend(if learns_from_this {
                self.critic.read_scalars(&trees.batch, &trees.value_rows)
            } else {
                self.critic.scalars(&trees.batch, &trees.value_rows)
            });
            raw_score_i.extend(self.reward_model.scalars(&trees.batch, &trees.last_rows));
        }
        let kl_m = match self.config.kl_estimator.value {
            KlPenalty::Full => full_kl_m,
            KlPenalty::Sampled(estimator) => kl_estimates(estimator, &rollout.logprob_m, &ref_logprob_m),
        };
        self.state.moments.update(&Moments::of(&raw_score_i));
        let score_i =
            shape_scores(&raw_score_i, &rollout.stopped, &self.config.scores()?, &self.state.moments);
        let rewards = shape_rewards(&kl_m, &score_i, self.state.controller.coef(), &spans, &value_spans);
        let advantages = estimate_advantages(
            &rewards.reward_u,
            &value_u,
            &spans,
            &value_spans,
            self.config.advantages()?,
            |moments| moments,
        )?;
        Ok(Experience {
            rollout,
            spans,
            value_spans,
            ref_logprob_m,
            raw_score_i,
            score_i,
            rewards,
            value_u,
            advantage_m: advantages.advantage_m,
            return_u: advantages.return_u,
            critic_pass: learns_from_this.then_some(self.critic_passes),
        })
    }

    /// The inner epochs: policy and critic updates over the experience.
    pub fn learn(
        &mut self,
        experience: &Experience,
        lr: f64,
        lr_critic: f64,
    ) -> Result<LearnStats, TrainError> {
        let mut stats = LearnStats::default();
        let responses = experience.spans.count();
        let mini_batches = self.config.num_mini_batches.min(responses);
        for epoch in 0..self.config.num_ppo_epochs {
            let mut order: Vec<usize> = (0..responses).collect();
            if mini_batches > 1 {
                let keys = [self.state.step, epoch as u64];
                Stream::new(self.config.common.seed, "minibatch", &keys).shuffle(&mut order);
            }
            let mut epoch_policy = PolicyStats::default();
            for b in 0..mini_batches {
                let which = &order[b * responses / mini_batches..(b + 1) * responses / mini_batches];
                let (policy, value, update) = self.update(experience, which, lr, lr_critic)?;
                epoch_policy.merge(&policy);
                stats.policy.merge(&policy);
                stats.value.merge(&value);
                stats.updates.push(update);
            }
            if self.config.early_stopping && epoch_policy.should_stop_early(self.config.target_kl) {
                break;
            }
        }
        Ok(stats)
    }

    /// One update of the policy and of the critic on some responses.
    fn update(
        &mut self,
        experience: &Experience,
        which: &[usize],
        lr: f64,
        lr_critic: f64,
    ) -> Result<(PolicyStats, ValueStats, Update), TrainError> {
        let Experience { rollout, spans, value_spans, .. } = experience;
        let tokens: usize = which.iter().map(|&i| spans.length(i)).sum();
        let readings: usize = which.iter().map(|&i| value_spans.length(i)).sum();
        // The ratio guard is about the mean over the whole mini-batch, so it is applied after the parts.
        let guard = self.config.policy()?.ratio_threshold;
        let policy_config = PolicyConfig { ratio_threshold: None, ..self.config.policy()? };
        let value_config = self.config.value()?;
        let temperature = self.config.temperature as f32;
        let (mut policy, mut value) = (PolicyStats::default(), ValueStats::default());
        let critic_has_read = experience.critic_pass == Some(self.critic_passes);
        self.critic_passes += 1;
        for part in self.parts(rollout, which) {
            let trees = Trees::new(rollout, &part, value_spans);
            let part_spans = Spans::from_lengths(part.iter().map(|&i| spans.length(i)));
            let old_logprob_m = gather(&rollout.logprob_m, spans, &part);
            let advantage_m = gather(&experience.advantage_m, spans, &part);
            let policy_stats =
                self.policy.learn_logprobs(&trees.batch, &trees.predictions, temperature, |out| {
                    let batch = PolicyBatch {
                        spans: &part_spans,
                        logprob_m: &out.logprob_m,
                        entropy_m: &out.entropy_m,
                        old_logprob_m: &old_logprob_m,
                        advantage_m: &advantage_m,
                    };
                    let tokens = Aggregation::TokenMean { tokens: tokens as f64 };
                    let result = policy_loss(batch, &policy_config, tokens);
                    (result.d_logprob_m, result.d_entropy_m, result.stats)
                });
            policy.merge(&policy_stats);
            let value_part_spans = Spans::from_lengths(part.iter().map(|&i| value_spans.length(i)));
            let old_value_u = gather(&experience.value_u, value_spans, &part);
            let return_u = gather(&experience.return_u, value_spans, &part);
            let value_u = match critic_has_read {
                true => old_value_u.clone(),
                false => self.critic.read_scalars(&trees.batch, &trees.value_rows),
            };
            let readings = Aggregation::TokenMean { tokens: readings as f64 };
            let result =
                value_loss(&value_u, &old_value_u, &return_u, &value_part_spans, &value_config, readings);
            self.critic.learn_read_scalars(&trees.batch, &trees.value_rows, &result.d_scalar);
            value.merge(&result.stats);
        }
        if guard.is_some_and(|guard| policy.ratios.mean > guard) {
            // As TRL classic: the update is made, of a zero gradient.
            policy.guarded_calls += 1;
            self.policy.discard_gradients();
            self.critic.discard_gradients();
        }
        let update = Update {
            policy_loss: policy.policy_loss,
            value_loss: value.value_loss,
            grad_norm: self.policy.update(lr).grad_norm,
            grad_norm_critic: self.critic.update(lr_critic).grad_norm,
        };
        Ok((policy, value, update))
    }

    /// One step: roll out, score, learn, steer.
    fn step(
        &mut self,
        prompts: &[usize],
        lr: f64,
        lr_critic: f64,
        mut phases: Phases<'_>,
    ) -> Result<Metrics, TrainError> {
        let rollout = self.roll_out(prompts);
        phases.end("time/rollout");
        let coef = self.state.controller.coef();
        let experience = self.experience(rollout)?;
        phases.end("time/reward");
        let stats = self.learn(&experience, lr, lr_critic)?;
        phases.end("time/update");
        let rolled = RolloutStats::new(
            &experience.rollout.logprob_m,
            &experience.score_i,
            &experience.rewards,
            &experience.spans,
        );
        let episodes = experience.spans.count() as u64;
        if let Some(kl) = rolled.kl_nats_per_sequence() {
            self.state.controller.update(kl, episodes);
        }
        self.state.episodes += episodes;
        self.state.step += 1;

        let mut metrics = Metrics::new(Stage::Ppo);
        phases.put(&mut metrics);
        metrics.put_stats(&rolled);
        let mut policy = stats.policy.clone();
        let mut value = stats.value.clone();
        (policy.policy_loss, value.value_loss) =
            (stats.mean(|u| u.policy_loss), stats.mean(|u| u.value_loss));
        metrics.put_stats(&policy);
        metrics.put_stats(&value);
        metrics.put("grad_norm", stats.mean(|u| u.grad_norm));
        metrics.put("grad_norm_critic", stats.mean(|u| u.grad_norm_critic));
        metrics.put("lr", lr);
        metrics.put("lr_critic", lr_critic);
        metrics.put("episode", self.state.episodes as f64);
        metrics.put("num_tokens", self.policy.tokens as f64);
        metrics.put("objective/kl_coef", coef);
        metrics.put("ppo/updates", stats.updates.len() as f64);
        let stopped = experience.rollout.stopped.iter().filter(|&&s| s).count() as f64;
        metrics.put("val/num_eos_tokens", stopped);
        metrics.put("samples/eos_rate", stopped / episodes as f64);
        metrics.put("completions/clipped_ratio", 1.0 - stopped / episodes as f64);
        let responses = &experience.rollout.responses;
        for (name, value) in [
            ("samples/distinct_1", distinct_share(responses, 1)),
            ("samples/distinct_2", distinct_share(responses, 2)),
            ("samples/repetition", repetition_share(responses)),
        ] {
            if let Some(value) = value {
                metrics.put(name, value);
            }
        }
        Ok(metrics)
    }
}

/// The values of some sequences, one after another.
fn gather(values: &[f32], spans: &Spans, which: &[usize]) -> Vec<f32> {
    which.iter().flat_map(|&i| values[spans.range(i)].iter().copied()).collect()
}

/// Runs PPO to its end, or to where the host or an alarm stops it.
pub fn train(task: &mut PpoTask<'_>, context: RunContext<'_>) -> Result<Outcome, TrainError> {
    let RunContext { run, checkpoint, host, samples } = context;
    let config = task.config.clone();
    let common = &config.common;
    let order = Order {
        rows: task.prompts.len(),
        rows_per_step: common.rows_per_step().min(task.prompts.len()),
        seed: common.seed,
        shuffle: common.shuffle_dataset,
    };
    let total = config.steps_in_all(order.rows);
    let (schedule, warmup) = (common.schedule(), common.warmup(total));
    run.keep_checkpoints(common.save_total_limit);

    let mut monitor = Monitor::new(Stage::Ppo);
    if let Some(checkpoint) = checkpoint {
        let state: Checkpointed = checkpoint.json(STATE_FILE)?;
        load_learner(&checkpoint, "policy", &mut task.policy)?;
        load_learner(&checkpoint, "critic", &mut task.critic)?;
        (task.policy.optimizer.step, task.critic.optimizer.step) = state.updates;
        task.policy.tokens = state.tokens;
        task.state = state.ppo;
        monitor = state.monitor;
    } else {
        task.draw_samples(&samples, 0, run, host)?;
    }

    let meter = Meter::start(Stage::Ppo, "train", "step", task.state.step, total, host.now_s());
    let mut outcome = Outcome::Done;
    while task.state.step < total {
        let done = task.state.step;
        if host.stop_requested() {
            outcome = Outcome::Stopped { step: done };
            break;
        }
        let factor = schedule.factor(done, warmup, total);
        let (lr, lr_critic) = (common.learning_rate * factor, config.critic_learning_rate() * factor);
        let now_s = || host.now_s();
        let mut metrics = task.step(&order.step(done), lr, lr_critic, Phases::begin(&now_s))?;
        let step = task.state.step;
        metrics.put("epoch", order.epochs_after(step));
        let due = common.eval_steps > 0 && step.is_multiple_of(common.eval_steps);
        if due || step == total {
            let began_s = host.now_s();
            if let Some(gold) = task.gold_mean() {
                metrics.put("samples/gold", gold);
            }
            task.draw_samples(&samples, step, run, host)?;
            metrics.put("time/eval", host.now_s() - began_s);
        }
        run.record(host, step, &metrics)?;
        let alarms = monitor.observe(&Observation::of_metrics(step, &metrics));
        let mut critical = false;
        for alarm in &alarms {
            run.log_alarm(alarm)?;
            host.event(Event::Alarm(alarm));
            critical |= alarm.is_critical();
        }
        host.event(Event::Progress(meter.at(step, host.now_s())));
        let stop = critical && common.stop_on_alarm;
        let save = common.save_steps > 0 && step.is_multiple_of(common.save_steps);
        if save || stop || step == total {
            save_checkpoint(task, run, host.now_s(), &monitor)?;
        }
        if stop {
            outcome = Outcome::Alarmed { step };
            break;
        }
    }
    if let Outcome::Stopped { step } = outcome
        && step > 0
    {
        save_checkpoint(task, run, host.now_s(), &monitor)?;
    }
    Ok(outcome)
}

#[derive(Serialize, Deserialize)]
struct Checkpointed {
    ppo: PpoState,
    updates: (u64, u64),
    tokens: u64,
    monitor: Monitor,
}

fn save_checkpoint(
    task: &PpoTask<'_>,
    run: &mut RunDir,
    now_s: f64,
    monitor: &Monitor,
) -> Result<(), TrainError> {
    let state = Checkpointed {
        ppo: task.state.clone(),
        updates: (task.policy.optimizer.step, task.critic.optimizer.step),
        tokens: task.policy.tokens,
        monitor: monitor.clone(),
    };
    run.save_checkpoint(task.state.step, now_s, |writer| {
        save_learner(writer, "policy", &task.policy)?;
        save_learner(writer, "critic", &task.critic)?;
        writer.json(STATE_FILE, &state)
    })
}
