//! Proximal policy optimisation.
//!
//! TRL has had two PPO trainers with different rules. Each difference is a key of its own here; `preset` changes the
//! defaults of all of them at once, and what is set by name stands over the preset.

use crate::config::{
    BELOW_ONE, Choice, Config, Domain, NOT_NEGATIVE, Objection, POSITIVE, Table, UNIT, choices, settings,
};
use crate::metrics::Stage;
use crate::objectives::ObjectiveError;
use crate::objectives::gae::GaeConfig;
use crate::objectives::kl::{KlController, KlPenalty};
use crate::objectives::ppo::{AdvantageConfig, PolicyConfig, RatioLevel, ScorePlacement, ValueConfig};
use crate::objectives::score::{MissingEos, ScoreConfig, ScoreScaling};
use crate::objectives::whiten::Variance;

use super::common::{CommonConfig, Scheduler};

choices! {
    /// Whose rules are the defaults.
    pub enum PpoPreset {
        /// Our own: TRL's numbers, with the score on the last token, clipped gradients, responses that end at EOS.
        Polity = "polity",
        /// TRL 1.9.2's trainer, for comparisons with it.
        Trl = "trl",
        /// TRL 0.11.4's trainer: adaptive KL controller, one learning rate.
        TrlClassic = "trl_classic",
    }
}

choices! {
    /// Whether the KL penalty's coefficient moves.
    pub enum KlControllerKind {
        /// `kl_coef` throughout.
        Fixed = "fixed",
        /// Starts at `init_kl_coef` and is steered towards `target`.
        Adaptive = "adaptive",
    }
}

choices! {
    /// What happens to the score of a response that never ends.
    pub enum MissingEosRule {
        /// Nothing.
        None = "none",
        /// `missing_eos_penalty` is subtracted from it (TRL).
        Penalty = "penalty",
        /// `missing_eos_score` replaces it (arXiv:2403.17031, detail 23.3).
        Replace = "replace",
    }
}

choices! {
    /// What ends a response.
    pub enum StopToken {
        /// The model's end-of-sequence tokens.
        Eos = "eos",
        /// Nothing: every response has `response_length` tokens.
        None = "none",
    }
}

choices! {
    /// What the critic starts as.
    pub enum CriticInit {
        /// The reward model, head included.
        RewardModel = "reward_model",
        /// The policy's layers with a head of zeros.
        Policy = "policy",
    }
}

const AT_LEAST_ONE: Domain = Domain { holds: |x| x >= 1.0, expected: "at least 1" };
const ABOVE_ONE: Domain = Domain { holds: |x| x > 1.0, expected: "> 1" };
const POSITIVE_UNIT: Domain = Domain { holds: |x| x > 0.0 && x <= 1.0, expected: "in (0, 1]" };

settings! {
    /// Settings of `polity train ppo`. A step is one rollout batch and all its updates.
    pub struct PpoConfig {
        flatten common: CommonConfig = CommonConfig { learning_rate: 3e-6, ..CommonConfig::initial() };
        /// Whose rules are the defaults of the other keys: ours, TRL 1.9.2's or TRL 0.11.4's.
        preset: PpoPreset = PpoPreset::Polity;
        /// Responses rolled out in all; "none": num_train_epochs times the prompts.
        total_episodes: Option<u64> = None, AT_LEAST_ONE, "there must be something to learn from";
        /// Longest response, in tokens.
        response_length: usize = 53, AT_LEAST_ONE, "a response needs a token";
        /// Sampling temperature. The policy and the reference are read at the same one.
        temperature: f64 = 0.7, POSITIVE, "at 0 nothing is explored and the ratio has no meaning";
        /// What ends a response. (TRL's default is none.)
        stop_token: StopToken = StopToken::Eos;
        /// Ends a response at this token instead.
        stop_token_id: Option<u32> = None;
        /// Accept the samplers below although rewards and ratios are then of another distribution than the one that
        /// was sampled from.
        allow_warped_sampling: bool = false;
        /// Sample from the most likely tokens only; 0: from all.
        top_k: usize = 0;
        /// Sample from the most likely tokens that hold this share of probability.
        top_p: f64 = 1.0, POSITIVE_UNIT, "it is a share of probability";
        /// Leave out tokens less likely than this share of the most likely one.
        min_p: f64 = 0.0, BELOW_ONE, "it is a share of the largest probability";
        /// Divide the logits of tokens already said by this.
        repetition_penalty: f64 = 1.0, POSITIVE, "it divides logits";
        /// Keep a response from ending earlier, in tokens.
        min_new_tokens: usize = 0;
        /// Whether the coefficient of the KL penalty is fixed or steered.
        kl_controller: KlControllerKind = KlControllerKind::Fixed;
        /// Coefficient of the KL penalty in the reward, with kl_controller = "fixed".
        kl_coef: f64 = 0.05, NOT_NEGATIVE, "a negative penalty rewards leaving the reference";
        /// Its first value, with kl_controller = "adaptive".
        init_kl_coef: f64 = 0.2, POSITIVE, "the controller multiplies it, so 0 would stay 0";
        /// KL from the reference that the adaptive controller aims at, in nats per SEQUENCE. (OpenRLHF and verl have
        /// targets of similar names in nats per token: multiply theirs by the response length. Not to be confused with
        /// target_kl.)
        target: f64 = 6.0, POSITIVE, "the controller's error is relative to it";
        /// How slowly the adaptive controller moves, in episodes.
        horizon: f64 = 10000.0, POSITIVE, "it divides the controller's step";
        /// How the KL from the reference is estimated, token by token: k1 = log-ratio, k2 = its square / 2,
        /// k3 = exp(-k1) - 1 + k1, abs = its absolute value, full = exactly, over the vocabulary. kl and mse are k1's and
        /// k2's names in TRL 0.11.
        kl_estimator: Choice<KlPenalty> = Choice::of("k1");
        /// Passes over a rollout batch.
        num_ppo_epochs: usize = 4, AT_LEAST_ONE, "a rollout must be learnt from";
        /// Updates in a pass. Must divide the rows of a step.
        num_mini_batches: usize = 1, AT_LEAST_ONE, "a pass needs an update";
        /// How far a token's probability ratio may move from 1 and still be rewarded.
        cliprange: f64 = 0.2, Domain { holds: |x| x > 0.0 && x < 1.0, expected: "in (0, 1)" },
            "it is a distance from ratio 1, and the ratio is positive";
        /// The same upwards, if it is to be different (DAPO, arXiv:2503.14476); "none": as cliprange.
        cliprange_high: Option<f64> = None, POSITIVE, "it is a distance from ratio 1";
        /// Bound on the ratio of bad actions (arXiv:1912.09729); "none": no bound.
        dual_clip: Option<f64> = None, ABOVE_ONE, "it bounds what clipping left free";
        /// A mini-batch whose mean ratio is above this trains nothing; "none": no guard.
        ratio_threshold: Option<f64> = Some(10.0), ABOVE_ONE, "the ratio starts at 1";
        /// Weight of the policy's mean entropy as a bonus.
        entropy_coef: f64 = 0.0, NOT_NEGATIVE, "entropy is a bonus";
        /// Weight of the value loss, as TRL has it. The critic is a model of its own, so it scales the critic's
        /// gradient, which clipping and AdamW largely undo: to train the critic faster, raise critic_learning_rate.
        vf_coef: f64 = 0.1, NOT_NEGATIVE, "it weighs a loss";
        /// How far a value may move from the one at rollout before its loss stops improving; "none": no bound.
        cliprange_value: Option<f64> = Some(0.2), POSITIVE, "it is a distance from the value at rollout";
        /// Learning rate of the critic; "none": that of the policy.
        critic_learning_rate: Option<f64> = None, NOT_NEGATIVE, "it scales every step";
        /// What the critic starts as.
        critic_init: CriticInit = CriticInit::RewardModel;
        /// Discount per token.
        gamma: f64 = 1.0, UNIT, "it discounts the future";
        /// GAE's mix of one-step (0) and whole-response (1) estimates.
        lam: f64 = 0.95, UNIT, "it is a mix";
        /// Scale rewards to unit variance over the rollout batch.
        whiten_rewards: bool = false;
        /// Shift and scale advantages to mean 0 and variance 1 over the rollout batch.
        whiten_advantages: bool = true;
        /// Where the score is added: on the last token, or one place past it (as TRL 1.9.2).
        score_placement: Choice<ScorePlacement> = Choice::of("last_token");
        /// Bound on the absolute score; "none": no bound.
        score_clip: Option<f64> = None, POSITIVE, "it bounds the absolute score";
        /// Divide scores by the standard deviation of all scores of the run so far.
        use_score_scaling: bool = false;
        /// Also subtract their mean.
        use_score_norm: bool = false;
        /// What happens to the score of a response that never ends. TRL subtracts a penalty, the published details of
        /// the original replace the score: not the same.
        missing_eos: MissingEosRule = MissingEosRule::None;
        /// Subtracted from the score of a response that never ends. Setting it sets missing_eos = "penalty".
        missing_eos_penalty: Option<f64> = None, NOT_NEGATIVE, "a negative one rewards responses that never end";
        /// Score of a response that never ends, with missing_eos = "replace".
        missing_eos_score: f64 = -1.0;
        /// End a rollout's updates once the policy has moved too far from the one that sampled: mean log-ratio above
        /// 1.5 times target_kl.
        early_stopping: bool = false;
        /// For early_stopping: KL between the policy that sampled and the present one, in nats per TOKEN. Has nothing to
        /// do with the reference, nor with target.
        target_kl: f64 = 1.0, POSITIVE, "the ratio starts at 1, where it is 0";
    }
}

impl PpoConfig {
    /// The KL controller as it is before the first rollout.
    pub fn controller(&self) -> KlController {
        match self.kl_controller {
            KlControllerKind::Fixed => KlController::Fixed { coef: self.kl_coef },
            KlControllerKind::Adaptive => KlController::Adaptive {
                coef: self.init_kl_coef,
                target_nats_per_sequence: self.target,
                horizon_episodes: self.horizon,
            },
        }
    }

    /// How scores are shaped.
    pub fn scores(&self) -> Result<ScoreConfig, ObjectiveError> {
        let config = ScoreConfig {
            scaling: ScoreScaling::from_switches(self.use_score_scaling, self.use_score_norm)?,
            clip: self.score_clip.map(|clip| clip as f32),
            missing_eos: match self.missing_eos {
                MissingEosRule::None => MissingEos::None,
                MissingEosRule::Penalty => {
                    MissingEos::Penalty(self.missing_eos_penalty.unwrap_or(0.0) as f32)
                }
                MissingEosRule::Replace => MissingEos::Replace(self.missing_eos_score as f32),
            },
        };
        config.validate()?;
        Ok(config)
    }

    /// How advantages are estimated.
    pub fn advantages(&self) -> Result<AdvantageConfig, ObjectiveError> {
        let gae = GaeConfig { gamma: self.gamma, lambda: self.lam };
        gae.validate()?;
        Ok(AdvantageConfig {
            gae,
            whiten_rewards: self.whiten_rewards,
            whiten_advantages: self.whiten_advantages,
            variance: Variance::Unbiased,
        })
    }

    /// How the policy loss is built.
    pub fn policy(&self) -> Result<PolicyConfig, ObjectiveError> {
        let config = PolicyConfig {
            cliprange_low: self.cliprange,
            cliprange_high: self.cliprange_high.unwrap_or(self.cliprange),
            dual_clip: self.dual_clip,
            entropy_coef: self.entropy_coef,
            ratio_threshold: self.ratio_threshold,
            ratio_level: RatioLevel::Token,
        };
        config.validate()?;
        Ok(config)
    }

    /// How the value loss is built.
    pub fn value(&self) -> Result<ValueConfig, ObjectiveError> {
        let config = ValueConfig { cliprange_value: self.cliprange_value, vf_coef: self.vf_coef };
        config.validate()?;
        Ok(config)
    }

    /// The critic's learning rate at its peak.
    pub fn critic_learning_rate(&self) -> f64 {
        self.critic_learning_rate.unwrap_or(self.common.learning_rate)
    }

    /// Rollout batches of a run over `prompts` prompts.
    pub fn steps_in_all(&self, prompts: usize) -> u64 {
        match self.total_episodes {
            Some(episodes) => episodes.div_ceil(self.common.rows_per_step() as u64),
            None => self.common.steps_in_all(prompts),
        }
    }

    fn check_sampling(&self) -> Result<(), Objection> {
        let warped = [
            ("top_k", self.top_k != 0, self.top_k.to_string()),
            ("top_p", self.top_p != 1.0, self.top_p.to_string()),
            ("min_p", self.min_p != 0.0, self.min_p.to_string()),
            ("repetition_penalty", self.repetition_penalty != 1.0, self.repetition_penalty.to_string()),
            ("min_new_tokens", self.min_new_tokens != 0, self.min_new_tokens.to_string()),
        ];
        for (key, changed, value) in warped {
            if changed && !self.allow_warped_sampling {
                return Err(Objection::clash(
                    key,
                    format!("{key} = {value}"),
                    "PPO",
                    "responses would come from another distribution than the one whose ratio and KL are computed, which \
                     shows as negative KL; sample without it, or set allow_warped_sampling = true",
                ));
            }
        }
        if self.stop_token_id.is_some() && self.stop_token == StopToken::None {
            return Err(Objection::clash(
                "stop_token_id",
                "stop_token_id",
                "stop_token = \"none\"",
                "a response cannot end at a token and not end; leave stop_token out",
            ));
        }
        let never_ends = self.stop_token == StopToken::None && self.stop_token_id.is_none();
        if never_ends && self.missing_eos != MissingEosRule::None {
            return Err(Objection::clash(
                "missing_eos",
                "missing_eos",
                "stop_token = \"none\"",
                "no response would ever end, so all would be treated alike; set stop_token = \"eos\"",
            ));
        }
        Ok(())
    }

    fn check_batches(&self) -> Result<(), Objection> {
        let rows = self.common.rows_per_step();
        if !rows.is_multiple_of(self.num_mini_batches) {
            return Err(Objection::value(
                "num_mini_batches",
                self.num_mini_batches,
                &format!("a divisor of {rows}"),
                "a step has per_device_train_batch_size * gradient_accumulation_steps rows, and its updates equal shares",
            ));
        }
        if let (Some(episodes), true) = (self.total_episodes, self.common.max_steps > 0) {
            return Err(Objection::clash(
                "total_episodes",
                format!("total_episodes = {episodes}"),
                format!("max_steps = {}", self.common.max_steps),
                "they set the same thing; keep one",
            ));
        }
        Ok(())
    }

    fn check_idle(&self) -> Result<(), Objection> {
        let adaptive = self.kl_controller == KlControllerKind::Adaptive;
        self.idle_unless(!adaptive, "kl_coef", "the adaptive controller starts at init_kl_coef")?;
        for key in ["init_kl_coef", "target", "horizon"] {
            self.idle_unless(adaptive, key, "only kl_controller = \"adaptive\" reads it")?;
        }
        self.idle_unless(
            self.early_stopping,
            "target_kl",
            "only early_stopping = true reads it (target is the KL controller's)",
        )?;
        let replaces = self.missing_eos == MissingEosRule::Replace;
        self.idle_unless(replaces, "missing_eos_score", "only missing_eos = \"replace\" reads it")?;
        let subtracts = self.missing_eos == MissingEosRule::Penalty;
        self.idle_unless(subtracts, "missing_eos_penalty", "missing_eos = \"replace\" gives the score itself")
    }
}

impl Config for PpoConfig {
    const STAGE: Stage = Stage::Ppo;

    fn only_preset(&self) -> PpoConfig {
        let mut config = PpoConfig { preset: self.preset, ..PpoConfig::initial() };
        match config.preset {
            PpoPreset::Polity => {}
            PpoPreset::Trl => {
                config.common.max_grad_norm = 0.0;
                config.stop_token = StopToken::None;
                config.score_placement = Choice::of("after_last");
                config.ratio_threshold = None;
            }
            PpoPreset::TrlClassic => {
                config.common.learning_rate = 1.41e-5;
                config.common.lr_scheduler_type = Scheduler::Constant;
                config.common.max_grad_norm = 0.0;
                config.kl_controller = KlControllerKind::Adaptive;
                config.temperature = 1.0;
            }
        }
        config
    }

    fn resolve(&mut self) {
        if self.missing_eos == MissingEosRule::None && self.missing_eos_penalty.is_some() {
            self.missing_eos = MissingEosRule::Penalty;
        }
    }

    fn check(&self) -> Result<(), Objection> {
        self.common.check(self)?;
        self.check_sampling()?;
        self.check_batches()?;
        if self.missing_eos == MissingEosRule::Penalty && self.missing_eos_penalty.is_none() {
            return Err(Objection::value(
                "missing_eos_penalty",
                self.missing_eos_penalty,
                "a number",
                "missing_eos = \"penalty\" subtracts it",
            ));
        }
        self.controller().validate()?;
        self.scores()?;
        self.advantages()?;
        self.policy()?;
        self.value()?;
        self.check_idle()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        // 6 nats per sequence is the usual target; below this it is more likely somebody's per-token one.
        const TARGET_SUSPICIOUS: f64 = 0.5;
        if self.kl_controller == KlControllerKind::Adaptive && self.target < TARGET_SUSPICIOUS {
            warnings.push(format!(
                "target = {} nats per sequence is very small; if it is a target per token, multiply it by the response length",
                self.target
            ));
        }
        if self.allow_warped_sampling {
            warnings.push(
                "allow_warped_sampling: KL and ratios are not those of the sampled distribution".into(),
            );
        }
        if self.kl_controller == KlControllerKind::Fixed && self.kl_coef == 0.0 {
            warnings.push("kl_coef = 0: nothing holds the policy near the reference".into());
        }
        warnings
    }
}
