//! `polity eval`: a model and suites in, files of measures out, which `polity gate` judges.
//!
//! A language model answers prompts (`language_model`), a reward model scores pairs (`reward_model`).
//!
//! Not here: what a measure is and how it comes from answers (`eval`), and whether it is enough (`gate`).

mod language_model;
mod reward_model;

use polity_compute::Head;
use polity_eval::Suite;

use crate::args::Global;
use crate::error::CommandResult;
use crate::eval_args::EvalArgs;
use crate::model::Loaded;
use crate::ui::Ui;

/// Runs the verb.
pub fn run(args: &EvalArgs, global: &Global, ui: &Ui) -> CommandResult {
    let suites = args.suites.iter().map(|file| Suite::read(file)).collect::<Result<Vec<_>, _>>()?;
    let loaded = Loaded::open(&args.model, global)?;
    match loaded.model.config.head {
        Head::Scalar => reward_model::run(args, loaded, &suites, global, ui),
        Head::Tied | Head::Untied => language_model::run(args, loaded, &suites, global, ui),
    }
}
