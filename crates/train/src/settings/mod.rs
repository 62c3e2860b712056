//! Which settings there are: one file a stage, and what all stages share.
//!
//! Names and defaults are TRL's and Transformers' wherever they have the setting; a difference is stated in the key's
//! own documentation. Sources: Transformers `TrainingArguments`; TRL 1.16 `SFTConfig`, `RewardConfig`, `DPOConfig`;
//! TRL 1.9.2 and 0.11.4 `PPOConfig`.
//!
//! Not here: how settings are read and checked ([`crate::config`]).

mod advice;
mod common;
mod dpo;
mod ppo;
mod reward;
mod sft;
mod trl;

pub(crate) use advice::advice_for_unknown;
pub use common::{CommonConfig, Precision, RESUME_MAY_CHANGE, ReportTo, Scheduler, Truncation};
pub use dpo::{DpoConfig, FDivergenceType};
pub use ppo::{CriticInit, KlControllerKind, MissingEosRule, PpoConfig, PpoPreset, StopToken};
pub use reward::{HeadInit, RewardConfig};
pub use sft::SftConfig;
pub use trl::trl_default;
