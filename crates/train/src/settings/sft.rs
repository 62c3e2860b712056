//! Supervised fine-tuning.

use crate::config::{Choice, Config, Objection, settings};
use crate::metrics::Stage;
use crate::objectives::sft::SftLoss;

use super::common::{CommonConfig, Truncation};

settings! {
    /// Settings of `polity train sft`.
    pub struct SftConfig {
        flatten common: CommonConfig = CommonConfig {
            learning_rate: 2e-5,
            truncation: Truncation::KeepStart,
            ..CommonConfig::initial()
        };
        /// Train on the completion only; "none": yes for rows with a prompt and a completion, no for rows of text.
        completion_only_loss: Option<bool> = None;
        /// Train on the assistant's turns only; needs a chat template with generation marks.
        assistant_only_loss: bool = false;
        /// The rows are comparisons: imitate their chosen responses.
        train_on_chosen: bool = false;
        /// What a token costs: nll is -log p; dft is -p log p with p held constant (arXiv:2508.05629).
        loss_type: Choice<SftLoss> = Choice::of("nll");
    }
}

impl Config for SftConfig {
    const STAGE: Stage = Stage::Sft;

    fn check(&self) -> Result<(), Objection> {
        self.common.check(self)
    }
}
