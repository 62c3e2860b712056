//! `polity train`: settings, data and a model go in, a run directory comes out.
//!
//! Not here: the trainers (`train`).

use crate::args::{Global, TrainVerb};
use crate::error::{CommandError, CommandResult};
use crate::ui::Ui;

/// Runs a trainer.
pub fn run(_verb: &TrainVerb, _global: &Global, _ui: &Ui) -> CommandResult {
    Err(CommandError::failed("training is not part of this build"))
}
