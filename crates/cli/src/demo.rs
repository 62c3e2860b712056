//! `polity demo`: the whole loop on an embedded tiny world.
//!
//! Not here: the world (`world`), the trainers (`train`).

use crate::args::{DemoArgs, Global};
use crate::error::{CommandError, CommandResult};
use crate::ui::Ui;

/// Runs the demo.
pub fn run(_args: &DemoArgs, _global: &Global, _ui: &Ui) -> CommandResult {
    Err(CommandError::failed("the demo is not part of this build"))
}
