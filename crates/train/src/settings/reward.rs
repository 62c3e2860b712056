//! Reward model.

use crate::config::{Config, NOT_NEGATIVE, Objection, choices, settings};
use crate::metrics::Stage;

use super::common::CommonConfig;

choices! {
    /// How a new scalar head starts. A model that is a reward model already keeps its head.
    pub enum HeadInit {
        /// Normal with the configuration's `initializer_range`, as Transformers.
        Transformers = "transformers",
        /// Normal with standard deviation `1 / sqrt(hidden_size + 1)` (arXiv:2403.17031).
        Scaled = "scaled",
        /// Zero: every reward starts equal.
        Zero = "zero",
    }
}

settings! {
    /// Settings of `polity train reward`.
    pub struct RewardConfig {
        flatten common: CommonConfig = CommonConfig { learning_rate: 1e-4, ..CommonConfig::initial() };
        /// Weight of the mean of (reward(chosen) + reward(rejected))^2, which pulls rewards towards 0
        /// (arXiv:2312.09244 has 0.01).
        center_rewards_coefficient: Option<f64> = None, NOT_NEGATIVE, "a negative weight drives rewards to infinity";
        /// How a new scalar head starts.
        head_init: HeadInit = HeadInit::Transformers;
    }
}

impl Config for RewardConfig {
    const STAGE: Stage = Stage::Reward;

    fn check(&self) -> Result<(), Objection> {
        self.common.check(self)
    }
}
