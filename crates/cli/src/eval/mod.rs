//! `polity eval`: a model and suites in, files of measures out, which `polity gate` judges.
//!
//! A language model answers prompts (`language_model`), a reward model scores pairs (`reward_model`).
//!
//! Not here: what a measure is and how it comes from answers (`eval`), and whether it is enough (`gate`).

mod hacking;
mod judges;
mod language_model;
mod people;
mod respond;
mod reward_model;
mod shelf;
mod training;

use std::io::{self, Write};
use std::path::Path;

use polity_compute::Head;
use polity_eval::{Evaluation, Measure, Suite};
use serde::Serialize;

use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::eval_args::EvalArgs;
use crate::model::Loaded;
use crate::output::{json_to_stdout, to_stdout};
use crate::ui::Ui;
pub use shelf::Found;

/// Coverage of the intervals that are shown. The gate computes its own from the items.
const CONFIDENCE: f64 = 0.95;

/// Runs the verb.
pub fn run(args: &EvalArgs, global: &Global, ui: &Ui) -> CommandResult {
    tell(&measure(args, global, ui)?, global)
}

/// Measures, or finds what was measured before.
pub fn measure(args: &EvalArgs, global: &Global, ui: &Ui) -> CommandResult<Vec<Found>> {
    let mut found = Vec::new();
    if args.people {
        found.push(people::run(args, ui)?);
    }
    if !args.suites.is_empty() {
        found.extend(on_suites(args, global, ui)?);
    }
    Ok(found)
}

/// Measures a reward model, or finds what was measured before; says nothing of it.
pub fn of_reward_model(args: &EvalArgs, global: &Global, ui: &Ui) -> CommandResult<Found> {
    let suites = args.suites.iter().map(|file| Suite::read(file)).collect::<Result<Vec<_>, _>>()?;
    Ok(reward_model::accept(args, Loaded::open(&args.model, global)?, &suites, global, ui)?.found)
}

fn on_suites(args: &EvalArgs, global: &Global, ui: &Ui) -> CommandResult<Vec<Found>> {
    let suites = args.suites.iter().map(|file| Suite::read(file)).collect::<Result<Vec<_>, _>>()?;
    let loaded = Loaded::open(&args.model, global)?;
    let language_model = loaded.model.config.head != Head::Scalar;
    if let Some(flag) = args.acceptance.given().filter(|_| language_model) {
        return Err(CommandError::bad_input(format!(
            "{flag} is for reward models, and {} is a language model",
            args.model.display()
        )));
    }
    match loaded.model.config.head {
        Head::Scalar => reward_model::run(args, loaded, &suites, global, ui).map(|()| Vec::new()),
        Head::Tied | Head::Untied => language_model::run(args, loaded, &suites, global, ui),
    }
}

fn tell(found: &[Found], global: &Global) -> CommandResult {
    if found.is_empty() {
        return Ok(());
    }
    if global.json {
        let said = found.iter().map(|found| Said {
            file: &found.file,
            key: found.evaluation.key(),
            known: found.known,
            evaluation: &found.evaluation,
        });
        return json_to_stdout(&said.collect::<Vec<_>>());
    }
    to_stdout(|out| found.iter().try_for_each(|found| print(out, found)))
}

/// An evaluation as `--json` prints it.
#[derive(Serialize)]
struct Said<'f> {
    file: &'f Path,
    key: String,
    known: bool,
    #[serde(flatten)]
    evaluation: &'f Evaluation,
}

fn print(out: &mut impl Write, found: &Found) -> io::Result<()> {
    let Found { evaluation, file, known } = found;
    writeln!(
        out,
        "{}{}: {}",
        evaluation.suite_name.as_deref().unwrap_or("suite"),
        if *known { ", measured before" } else { "" },
        file.display()
    )?;
    let mut last = "";
    for measure in &evaluation.measures {
        // Measured by category alone.
        if measure.category.is_some() && measure.name != last {
            writeln!(out, "  {}", measure.name)?;
        }
        last = &measure.name;
        print_measure(out, measure)?;
    }
    writeln!(out)
}

fn print_measure(out: &mut impl Write, measure: &Measure) -> io::Result<()> {
    let name = match &measure.category {
        None => measure.name.clone(),
        Some(category) => format!("  {category}"),
    };
    let Measure { estimate, low, high, unit, items, .. } = measure;
    // No "-0.0000".
    let shown = |x: f64| if x.abs() < 5e-5 { 0.0 } else { x };
    let interval = format!("[{:.4}, {:.4}]", shown(*low), shown(*high));
    let estimate = shown(*estimate);
    writeln!(out, "  {name:<32} {estimate:>9.4} {interval:<20} {:>5}  {unit}", items.len())
}
