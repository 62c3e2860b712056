//! A language model's half of `polity eval`.

use polity_eval::Suite;

use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::eval_args::EvalArgs;
use crate::model::Loaded;
use crate::ui::Ui;

/// Measures a language model on suites.
pub fn run(_args: &EvalArgs, loaded: Loaded, _suites: &[Suite], _global: &Global, _ui: &Ui) -> CommandResult {
    Err(CommandError::bad_input(format!(
        "{}: a language model cannot be measured in this version",
        loaded.dir.display()
    )))
}
