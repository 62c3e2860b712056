//! Training: objectives and one file per trainer.
//!
//! [`objectives`] are pure functions from per-token numbers to a loss and its gradient. A trainer reads top to bottom:
//! load, loop { roll out, score, learn, record }, save.
//!
//! Not here: where a dataset comes from and where a run goes (the command line moves them), evaluation, the store.

pub mod baseline;
pub mod config;
pub mod data;
pub mod dpo;
pub mod error;
pub mod examples;
pub mod learner;
pub mod metrics;
pub mod monitor;
pub mod objectives;
pub mod ppo;
pub mod progress;
pub mod report;
pub mod reward;
pub mod run;
pub mod samples;
pub mod settings;
pub mod sft;
pub mod supervised;
mod tensorboard;

pub use error::TrainError;
