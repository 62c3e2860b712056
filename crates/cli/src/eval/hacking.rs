//! How a reward model fares when it is optimised against: best-of-n over samples of a policy, and the curve of policies that were trained on it.
//!
//! ```text
//! --candidates   {"prompt": …, "completion": …, "gold": 1.3}       several rows to each prompt; gold from the row or by --gold-model
//! --curve        {"step": 40, "kl": 3.2, "gold": 0.8}              one row a policy; kl above 0, in nats per sequence
//! ```
//!
//! Not here: the estimators and the fits (`polity_eval::acceptance`).

use std::collections::HashMap;
use std::path::Path;

use polity_eval::acceptance::{
    Candidates, Found as Measured, OptimisedPolicy, best_of_n_measures, curve_measures,
};
use polity_rows::{Completion, CompletionRow, FromRow};
use polity_train::settings::Precision;
use serde::Deserialize;

use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::eval_args::AcceptanceArgs;
use crate::input;
use crate::measure::scores;
use crate::model::Loaded;
use crate::ui::Ui;

/// What the flags ask for.
pub fn measures(args: &AcceptanceArgs, loaded: &Loaded, global: &Global, ui: &Ui) -> CommandResult<Measured> {
    let mut found = Measured::default();
    if let Some(file) = &args.candidates {
        let sweep = best_of_n_measures(&candidates(file, args, loaded, global, ui)?)?;
        found.measures.extend(sweep.found.measures);
        found.missing.extend(sweep.found.missing);
    }
    if let Some(file) = &args.curve {
        let (curve, _) = curve_measures(&policies(file)?)?;
        found.measures.extend(curve.measures);
        found.missing.extend(curve.missing);
    }
    Ok(found)
}

/// The candidates, by prompt, with both scores.
fn candidates(
    file: &Path,
    args: &AcceptanceArgs,
    loaded: &Loaded,
    global: &Global,
    ui: &Ui,
) -> CommandResult<Vec<Candidates>> {
    let mut completions = Vec::new();
    let mut stated = Vec::new();
    for row in polity_rows::open(file)? {
        let row = row?;
        let gold = row.value.get("gold").and_then(serde_json::Value::as_f64);
        if gold.is_none() && args.gold_model.is_none() {
            return Err(CommandError::bad_input(format!(
                "{}, row {} (counted from 0): no number `gold`, the true reward of the response",
                file.display(),
                row.index
            ))
            .hint("write it into the rows, or name a better reward model with --gold-model"));
        }
        stated.push(gold);
        completions.push(CompletionRow::from_row(row, file)?.completion);
    }
    let proxy = rewards(file, &completions, loaded, ui)?;
    let gold = match &args.gold_model {
        None => stated.into_iter().flatten().collect(),
        Some(dir) => {
            let mut gold = Loaded::reward_model(dir, global)?;
            gold.multiply_in(Precision::Auto);
            rewards(file, &completions, &gold, ui)?
        }
    };
    let mut place: HashMap<String, usize> = HashMap::new();
    let mut prompts: Vec<Candidates> = Vec::new();
    for ((completion, proxy), gold) in completions.iter().zip(proxy).zip(gold) {
        let at = *place.entry(prompt_of(completion)).or_insert(prompts.len());
        if at == prompts.len() {
            prompts.push(Candidates { prompt: format!("prompt {at}"), proxy: vec![], gold: vec![] });
        }
        prompts[at].proxy.push(proxy);
        prompts[at].gold.push(gold);
    }
    Ok(prompts)
}

fn rewards(file: &Path, completions: &[Completion], loaded: &Loaded, ui: &Ui) -> CommandResult<Vec<f64>> {
    let encoded = input::encoded(completions.iter(), file, loaded, ui)?;
    if let Some(row) = encoded.iter().position(Option::is_none) {
        return Err(CommandError::bad_input(format!(
            "{}, row {row} (counted from 0): longer than the {} positions of {}, or without a token to score",
            file.display(),
            loaded.positions_max(),
            loaded.dir.display()
        ))
        .hint("leave out all candidates of that prompt"));
    }
    let rows: Vec<_> = encoded.into_iter().flatten().collect();
    Ok(scores(loaded, &rows, ui)?.into_iter().map(f64::from).collect())
}

/// What tells prompts apart.
fn prompt_of(completion: &Completion) -> String {
    match completion {
        Completion::Pair { prompt, .. } => format!("{prompt:?}"),
        Completion::Messages(messages) => format!("{:?}", &messages[..messages.len() - 1]),
        Completion::Ids { prompt_ids, .. } => format!("{prompt_ids:?}"),
        Completion::Text(_) => String::new(),
    }
}

#[derive(Deserialize)]
struct PolicyRow {
    kl: f64,
    gold: f64,
    step: Option<u64>,
    id: Option<String>,
}

fn policies(file: &Path) -> CommandResult<Vec<OptimisedPolicy>> {
    polity_rows::open(file)?
        .map(|row| {
            let row = row?;
            let index = row.index;
            let PolicyRow { kl, gold, step, id } =
                serde_json::from_value(row.value.into()).map_err(|error| {
                    CommandError::bad_input(format!(
                        "{}, row {index} (counted from 0): {error}",
                        file.display()
                    ))
                    .hint("a row has `kl` (nats per sequence, above 0), `gold`, and `step` or `id`")
                })?;
            let id = id.or(step.map(|step| format!("step {step}"))).unwrap_or_else(|| format!("row {index}"));
            Ok(OptimisedPolicy { id, kl, gold })
        })
        .collect()
}
