//! How a reward model fares when it is optimised against: best-of-n over samples of a policy, and the curve of policies that were trained on it.
//!
//! ```text
//! --candidates   a policy's directory, which answers the suites' prompts; gold by --gold-model
//!                {"prompt": …, "completion": …, "gold": 1.3}       several rows to each prompt; gold from the row or by --gold-model
//! --curve        {"step": 40, "kl": 3.2, "gold": 0.8}              one row a policy; kl above 0, in nats per sequence
//! ```
//!
//! Not here: the estimators and the fits (`polity_eval::acceptance`).

use std::collections::HashMap;
use std::iter;
use std::path::Path;

use polity_eval::Suite;
use polity_eval::acceptance::{
    Candidates, Found as Measured, OptimisedPolicy, best_of_n_measures, curve_measures,
};
use polity_rows::{Completion, CompletionRow, FromRow};
use polity_train::settings::Precision;
use serde::Deserialize;

use super::judges::rewards;
use super::respond::{Answerer, chats};
use super::shelf::Shelf;
use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::eval_args::AcceptanceArgs;
use crate::input;
use crate::measure::scores;
use crate::model::Loaded;
use crate::settings::Settings;
use crate::ui::Ui;

/// Samples to a prompt, where no suite says how many.
const SAMPLES: &str = "16";

/// A policy whose samples are the candidates.
pub struct Sampler {
    answerer: Answerer,
    /// The prompts, as they are asked.
    suites: Vec<Suite>,
    settings: Settings,
}

impl Sampler {
    /// The policy that `--candidates` names, if it names one, for prompts of these suites.
    pub fn open(
        args: &AcceptanceArgs,
        suites: impl FnOnce() -> Vec<Suite>,
        global: &Global,
        ui: &Ui,
    ) -> CommandResult<Option<Sampler>> {
        let Some(dir) = args.candidates.as_deref().filter(|path| path.is_dir()) else { return Ok(None) };
        if args.gold_model.is_none() {
            let what = format!(
                "--candidates {} is a policy, and nothing gives its samples' true reward",
                dir.display()
            );
            return Err(CommandError::bad_input(what).hint("name a better reward model with --gold-model"));
        }
        let (mut answerer, suites) = (Answerer::open(dir, global)?, suites());
        let usual = ("n".to_owned(), SAMPLES.to_owned());
        let sets: Vec<_> =
            iter::once(usual).chain(suites.iter().flat_map(|suite| suite.settings.clone())).collect();
        let settings = answerer.settings(&suites[0], &sets, ui)?;
        Ok(Some(Sampler { answerer, suites, settings }))
    }

    /// A hash of all that the samples depend on.
    pub fn key(&self) -> CommandResult<String> {
        let key = |suite: &Suite| Ok(self.answerer.evaluation(suite, &self.settings)?.key());
        let keys = self.suites.iter().map(key).collect::<CommandResult<Vec<_>>>()?;
        Ok(blake3::hash(keys.concat().as_bytes()).to_hex().to_string())
    }

    /// The candidates, by prompt, with both scores.
    fn candidates(
        &self,
        proxy: &Loaded,
        gold: &Loaded,
        shelf: &Shelf<'_>,
        ui: &Ui,
    ) -> CommandResult<Vec<Candidates>> {
        let mut prompts = Vec::new();
        for suite in &self.suites {
            let responses = self.answerer.respond(suite, &self.settings, shelf, ui)?;
            let rewards = |loaded: &Loaded| rewards(loaded, chats(suite, loaded)?, suite, &responses, ui);
            let (proxy, gold) = (rewards(proxy)?, rewards(gold)?);
            let first = prompts.len();
            prompts.extend(suite.rows.iter().map(|row| Candidates {
                prompt: format!("{}/{}", suite.name, row.id),
                proxy: vec![],
                gold: vec![],
            }));
            for ((&row, proxy), gold) in responses.row_of.iter().zip(proxy).zip(gold) {
                prompts[first + row].proxy.push(f64::from(proxy));
                prompts[first + row].gold.push(f64::from(gold));
            }
        }
        Ok(prompts)
    }
}

/// What the flags ask for.
pub fn measures(
    args: &AcceptanceArgs,
    loaded: &Loaded,
    sampler: Option<&Sampler>,
    shelf: &Shelf<'_>,
    global: &Global,
    ui: &Ui,
) -> CommandResult<Measured> {
    let mut found = Measured::default();
    if let Some(file) = &args.candidates {
        let gold = args.gold_model.as_deref().map(|dir| gold_model(dir, global)).transpose()?;
        let candidates = match (sampler, &gold) {
            (Some(sampler), Some(gold)) => sampler.candidates(loaded, gold, shelf, ui)?,
            _ => candidates(file, loaded, gold.as_ref(), ui)?,
        };
        let sweep = best_of_n_measures(&candidates)?;
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
    loaded: &Loaded,
    gold_model: Option<&Loaded>,
    ui: &Ui,
) -> CommandResult<Vec<Candidates>> {
    let mut completions = Vec::new();
    let mut stated = Vec::new();
    for row in polity_rows::open(file)? {
        let row = row?;
        let gold = row.value.get("gold").and_then(serde_json::Value::as_f64);
        if gold.is_none() && gold_model.is_none() {
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
    let proxy = rewards_of_file(file, &completions, loaded, ui)?;
    let gold = match gold_model {
        None => stated.into_iter().flatten().collect(),
        Some(gold) => rewards_of_file(file, &completions, gold, ui)?,
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

fn gold_model(dir: &Path, global: &Global) -> CommandResult<Loaded> {
    let mut gold = Loaded::reward_model(dir, global)?;
    gold.multiply_in(Precision::Auto);
    Ok(gold)
}

fn rewards_of_file(
    file: &Path,
    completions: &[Completion],
    loaded: &Loaded,
    ui: &Ui,
) -> CommandResult<Vec<f64>> {
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
