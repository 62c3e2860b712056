//! A language model on suites: what it answers, how far it is from its reference, and who prefers it to its baseline.
//!
//! Each of these is an evaluation of its own, because each depends on other things: answers on the model and the sampler alone (so a candidate and its
//! baseline are compared on them prompt by prompt), distances on the reference, win rates on the baseline and the judge.
//!
//! Rows of the suite that the model has been trained on are left out of every measure and counted in `contaminated`.
//!
//! Not here: measures from answers (`eval`), people's votes (`people`).

use polity_eval::answers::{Likelihood, Table, add_answers, add_distances, add_entropy, add_texts};
use polity_eval::contamination::{Contamination, SEEN_SHARE};
use polity_eval::preferred::{Judge, add_win_rate};
use polity_eval::refusal::Answer;
use polity_eval::refusals::{Call, RefusalMeter};
use polity_eval::{EvalError, Evaluation, Kind, Suite};
use serde::Deserialize;
use serde_json::{Value, json};

use super::judges::{Endpoint, RewardModel};
use super::respond::{Answerer, Responses, lines};
use super::shelf::{Found, Shelf};
use super::{CONFIDENCE, training};
use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::eval_args::EvalArgs;
use crate::input;
use crate::measure::likelihoods;
use crate::model::Loaded;
use crate::settings::Settings;
use crate::ui::{Ui, plural};

/// Measures a language model on suites.
pub fn run(
    args: &EvalArgs,
    loaded: Loaded,
    suites: &[Suite],
    global: &Global,
    ui: &Ui,
) -> CommandResult<Vec<Found>> {
    check(args, suites)?;
    let shelf = Shelf::open(&args.out, args.again)?;
    let mut bench = Bench {
        args,
        shelf,
        candidate: Answerer::with(loaded)?,
        baseline: args.baseline.as_deref().map(|dir| Answerer::open(dir, global)).transpose()?,
        reference: match (&args.reference, &args.baseline) {
            (Some(dir), baseline) if Some(dir) != baseline.as_ref() => Some(Answerer::open(dir, global)?),
            _ => None,
        },
        reward_model: args.reward_model.as_deref().map(|dir| RewardModel::open(dir, global)).transpose()?,
        endpoint: Endpoint::of(args)?,
        refusals: refusal_meter(args)?,
        training: training::texts_of(&args.model, &args.train_data, ui)?,
        ui,
    };
    let mut found = Vec::new();
    for suite in suites {
        bench.measure(suite, &mut found)?;
    }
    Ok(found)
}

fn check(args: &EvalArgs, suites: &[Suite]) -> CommandResult {
    if let Some(suite) = suites.iter().find(|suite| suite.kind == Kind::Preference) {
        return Err(CommandError::bad_input(format!(
            "suite {} has pairs with a better one, which a reward model scores; {} is a language model",
            suite.name,
            args.model.display()
        )));
    }
    if (args.reward_model.is_some() || args.judge.is_some()) && args.baseline.is_none() {
        return Err(CommandError::bad_input("a judge compares two models, and there is one")
            .hint("--baseline DIR names the model that this one is compared with"));
    }
    Ok(())
}

fn refusal_meter(args: &EvalArgs) -> CommandResult<Option<RefusalMeter>> {
    if args.labels.is_empty() {
        return Ok(None);
    }
    let labelled = args.labels.iter().map(|(model, file)| RefusalMeter::read_labels(model, file.as_ref()));
    Ok(Some(RefusalMeter::train(labelled.collect::<Result<_, EvalError>>()?)?))
}

/// What there is to measure with.
struct Bench<'a> {
    args: &'a EvalArgs,
    shelf: Shelf<'a>,
    candidate: Answerer,
    baseline: Option<Answerer>,
    /// If it is not the baseline.
    reference: Option<Answerer>,
    reward_model: Option<RewardModel>,
    endpoint: Option<Endpoint>,
    refusals: Option<RefusalMeter>,
    training: training::Training,
    ui: &'a Ui,
}

impl Bench<'_> {
    fn measure(&mut self, suite: &Suite, found: &mut Vec<Found>) -> CommandResult {
        let settings = self.candidate.settings(suite, &self.args.sets, self.ui)?;
        if let Some(baseline) = &mut self.baseline {
            baseline.settings(suite, &self.args.sets, self.ui)?;
        }
        if let Some(reference) = &mut self.reference {
            reference.settings(suite, &self.args.sets, self.ui)?;
        }
        let seen = self.seen(suite)?;
        found.push(self.alone(suite, &settings, &seen)?);
        if suite.kind != Kind::Prompts {
            return Ok(());
        }
        if self.reference.is_some() || self.baseline.is_some() {
            found.push(self.distances(suite, &settings, &seen)?);
        }
        if let Some(reward_model) = &self.reward_model {
            let judge = json!({"kind": "reward model", "hash": reward_model.hash()});
            found.push(self.against_baseline(suite, &settings, judge, |bench, table, ours, theirs| {
                let judged = reward_model.judge(suite, ours, theirs, bench.ui)?;
                let rewards = judged.rewards.iter().map(|&(row, reward)| (row, reward, 1));
                let kept = rewards.filter(|(row, ..)| !seen.rows[*row]);
                table.add("proxy_reward", "reward", None, kept)?;
                let mut judged = judged.judged;
                judged.retain(|one| !seen.rows[one.row]);
                Ok(add_win_rate(table, Judge::RewardModel, &judged)?)
            })?);
        }
        if let Some(endpoint) = &self.endpoint {
            let judge = json!({"kind": "endpoint", "url": endpoint.url(), "model": endpoint.model(), "rubric": endpoint.rubric_hash()});
            found.push(self.against_baseline(suite, &settings, judge, |bench, table, ours, theirs| {
                let mut judged = endpoint.judge(suite, ours, theirs, bench.ui)?;
                judged.retain(|one| !seen.rows[one.row]);
                Ok(add_win_rate(table, Judge::Endpoint, &judged)?)
            })?);
        }
        Ok(())
    }

    /// Which rows the model has been trained on.
    fn seen(&self, suite: &Suite) -> CommandResult<Seen> {
        if self.training.is_empty() {
            return Ok(Seen { rows: vec![false; suite.rows.len()], known: false });
        }
        let mut contamination = Contamination::of(suite);
        self.training.each(&mut |text| contamination.see(text))?;
        let rows: Vec<bool> = contamination.shares().into_iter().map(|share| share >= SEEN_SHARE).collect();
        let count = rows.iter().filter(|&&seen| seen).count();
        if count > 0 {
            let ids = suite.rows.iter().zip(&rows).filter(|(_, seen)| **seen).map(|(row, _)| row.id.as_str());
            self.ui.warn(&format!(
                "suite {}: {count} of {} {} {} in the model's training data and left out: {}{}",
                suite.name,
                rows.len(),
                plural("row", rows.len() as u64),
                if count == 1 { "was" } else { "were" },
                ids.take(5).collect::<Vec<_>>().join(", "),
                if count > 5 { ", …" } else { "" }
            ));
        }
        if count + 1 >= rows.len() {
            return Err(CommandError::bad_input(format!(
                "suite {}: the model was trained on {count} of its {} rows, which leaves nothing to measure",
                suite.name,
                rows.len()
            )));
        }
        Ok(Seen { rows, known: true })
    }

    /// What the model's answers say without another model.
    fn alone(&self, suite: &Suite, settings: &Settings, seen: &Seen) -> CommandResult<Found> {
        let mut wanted = self.candidate.evaluation(suite, settings)?;
        self.note_training(&mut wanted);
        let labels = match suite.kind {
            Kind::Refusal => own_labels(self.args, suite)?,
            _ => OwnLabels::default(),
        };
        if let (Kind::Refusal, Some(meter)) = (suite.kind, &self.refusals) {
            wanted.settings.insert("refusals".into(), meter.hash().into());
            if let Some(hash) = &labels.hash {
                wanted.inputs.insert("labels".into(), hash.clone().into());
            }
        }
        self.shelf.find_or(suite, wanted, |evaluation| {
            let mut table = Table::new(suite, CONFIDENCE);
            if seen.known {
                table.add_share_of_rows("contaminated", &seen.rows)?;
            }
            if suite.kind == Kind::Text {
                add_texts(&mut table, &self.texts(suite, seen)?)?;
            } else {
                let responses = self.candidate.respond(suite, settings, &self.shelf, self.ui)?;
                let answers: Vec<_> =
                    responses.answered().into_iter().filter(|answer| !seen.rows[answer.row]).collect();
                add_answers(&mut table, &answers, settings.sampler.max_new_tokens)?;
                match suite.kind {
                    Kind::Prompts => {
                        let (likelihoods, _) = self.likelihoods(&responses, settings, seen, None)?;
                        add_entropy(&mut table, &likelihoods)?;
                    }
                    Kind::Refusal => self.refusals(suite, &responses, seen, &labels, &mut table)?,
                    _ => {}
                }
            }
            evaluation.measures = table.finish();
            Ok(())
        })
    }

    fn note_training(&self, evaluation: &mut Evaluation) {
        if let Some(hash) = self.training.hash() {
            evaluation.inputs.insert("training_data".into(), hash.into());
        }
    }

    /// Log-probs of the suite's texts, each after the token that begins a text.
    fn texts(&self, suite: &Suite, seen: &Seen) -> CommandResult<Vec<Likelihood>> {
        let loaded = &self.candidate.loaded;
        let rows: Vec<usize> = (0..suite.rows.len()).filter(|&row| !seen.rows[row]).collect();
        let asked = rows.iter().map(|&row| {
            let mut map = serde_json::Map::new();
            map.insert("prompt".into(), suite.asking.prompt(&suite.rows[row].values["text"]).into());
            map
        });
        let begin = loaded.model.generation.bos.or(loaded.model.generation.eos.first().copied());
        let completions = input::prompts(lines(&suite.name, asked)?, loaded, self.ui)?
            .into_iter()
            .map(|prompt| {
                let mut ids = prompt.ids;
                if let Some(begin) = begin.filter(|begin| ids[0] != *begin) {
                    ids.insert(0, begin);
                }
                input::CompletionIds { index: prompt.index, first: 1, ids }
            })
            .filter(|row| row.ids.len() > 1)
            .collect::<Vec<_>>();
        let sums = likelihoods(loaded, &completions, 1.0, self.ui)?;
        let found = completions.iter().zip(sums).map(|(completion, (logprob, entropy))| {
            let row = rows[completion.index];
            let bytes = suite.rows[row].values["text"].len();
            Likelihood { row, tokens: completion.completion().len(), bytes, logprob, entropy }
        });
        Ok(found.collect())
    }

    /// Log-probs of responses under the candidate, and under a reference if there is one.
    fn likelihoods(
        &self,
        responses: &Responses,
        settings: &Settings,
        seen: &Seen,
        reference: Option<&Answerer>,
    ) -> CommandResult<(Vec<Likelihood>, Vec<f64>)> {
        let kept: Vec<usize> =
            (0..responses.rows.len()).filter(|&i| !seen.rows[responses.row_of[i]]).collect();
        let all = responses.completions();
        let completions: Vec<_> = kept.iter().map(|&i| all[i].clone()).collect();
        // Greedy answers are measured under the model as it is.
        let temperature = match settings.sampler.temperature {
            0.0 => 1.0,
            temperature => temperature,
        };
        let ours = likelihoods(&self.candidate.loaded, &completions, temperature, self.ui)?;
        let ours = kept.iter().zip(ours).map(|(&i, (logprob, entropy))| Likelihood {
            row: responses.row_of[i],
            tokens: responses.rows[i].ids.len(),
            bytes: responses.rows[i].text.len(),
            logprob,
            entropy,
        });
        let theirs = match reference {
            None => Vec::new(),
            Some(reference) => likelihoods(&reference.loaded, &completions, temperature, self.ui)?
                .into_iter()
                .map(|(logprob, _)| logprob)
                .collect(),
        };
        Ok((ours.collect(), theirs))
    }

    fn refusals(
        &self,
        suite: &Suite,
        responses: &Responses,
        seen: &Seen,
        labels: &OwnLabels,
        table: &mut Table<'_>,
    ) -> CommandResult {
        let Some(meter) = &self.refusals else {
            return Err(CommandError::bad_input(format!(
                "suite {}: who says which answers refuse? There are no labelled answers to learn that from",
                suite.name
            ))
            .hint("--labels MODEL=FILE, twice at least: answers of models with people's labels (docs/evaluation.md)"));
        };
        let mut calls = Vec::new();
        let mut used = 0;
        for (response, &row) in responses.rows.iter().zip(&responses.row_of) {
            if seen.rows[row] {
                continue;
            }
            let label = labels.of(&response.id, &response.text);
            used += usize::from(label.is_some());
            calls.push(Call { row, called: meter.call(&response.text), label });
        }
        if used < labels.rows.len() {
            self.ui.warn(&format!(
                "{} of {} labels are of other answers than these and were left out",
                labels.rows.len() - used,
                labels.rows.len()
            ));
        }
        for why in meter.add(table, &calls)? {
            self.ui.warn(&format!("suite {}: not measured: {why}", suite.name));
        }
        Ok(())
    }

    fn distances(&self, suite: &Suite, settings: &Settings, seen: &Seen) -> CommandResult<Found> {
        let reference = self.reference.as_ref().or(self.baseline.as_ref()).expect("asked for");
        same_tokens(&self.candidate, reference)?;
        let s = &settings.sampler;
        if s.temperature == 0.0
            || s.top_k > 0
            || s.top_p < 1.0
            || s.min_p > 0.0
            || s.repetition_penalty != 1.0
        {
            self.ui.warn(&format!(
                "suite {}: KL is estimated on responses that were not drawn from the policy itself (temperature 0, top-k and the like), and \
                 is biased by that",
                suite.name
            ));
        }
        let mut wanted = self.candidate.evaluation(suite, settings)?;
        self.note_training(&mut wanted);
        wanted.settings.insert("reference".into(), reference.hash.clone().into());
        self.shelf.find_or(suite, wanted, |evaluation| {
            let responses = self.candidate.respond(suite, settings, &self.shelf, self.ui)?;
            let (ours, theirs) = self.likelihoods(&responses, settings, seen, Some(reference))?;
            let mut table = Table::new(suite, CONFIDENCE);
            add_distances(&mut table, &ours, &theirs)?;
            evaluation.measures = table.finish();
            Ok(())
        })
    }

    /// An evaluation of both models' responses by a judge.
    fn against_baseline(
        &self,
        suite: &Suite,
        settings: &Settings,
        judge: Value,
        add: impl FnOnce(&Self, &mut Table<'_>, &Responses, &Responses) -> CommandResult,
    ) -> CommandResult<Found> {
        let baseline = self.baseline.as_ref().expect("checked: a judge needs one");
        let mut wanted = self.candidate.evaluation(suite, settings)?;
        self.note_training(&mut wanted);
        wanted.settings.insert("baseline".into(), baseline.hash.clone().into());
        wanted.settings.insert("judge".into(), judge);
        self.shelf.find_or(suite, wanted, |evaluation| {
            let ours = self.candidate.respond(suite, settings, &self.shelf, self.ui)?;
            let theirs = baseline.respond(suite, settings, &self.shelf, self.ui)?;
            let mut table = Table::new(suite, CONFIDENCE);
            add(self, &mut table, &ours, &theirs)?;
            evaluation.measures = table.finish();
            Ok(())
        })
    }
}

/// Rows that the model was trained on.
struct Seen {
    rows: Vec<bool>,
    /// Whether training data were looked through.
    known: bool,
}

/// KL is between distributions over the same tokens.
fn same_tokens(one: &Answerer, other: &Answerer) -> CommandResult {
    let tokens = |answerer: &Answerer| std::fs::read(answerer.loaded.dir.join("tokenizer.json")).ok();
    let vocab = |answerer: &Answerer| answerer.loaded.model.config.vocab;
    if tokens(one) == tokens(other) && vocab(one) == vocab(other) {
        return Ok(());
    }
    Err(CommandError::bad_input(format!(
        "{} and {} have different tokenizers, so there is no KL between them",
        one.loaded.dir.display(),
        other.loaded.dir.display()
    ))
    .hint("--reference names the model that the candidate was trained from"))
}

/// People's labels of the model's own answers.
#[derive(Default)]
struct OwnLabels {
    rows: Vec<OwnLabel>,
    hash: Option<String>,
}

#[derive(Deserialize)]
struct OwnLabel {
    id: String,
    text: String,
    label: Answer,
}

impl OwnLabels {
    /// The label of this answer to this row.
    fn of(&self, id: &str, text: &str) -> Option<Answer> {
        self.rows.iter().find(|row| row.id == id && row.text == text).map(|row| row.label)
    }
}

/// Reads them: the responses' file, with a `label` in the rows that someone has read.
fn own_labels(args: &EvalArgs, suite: &Suite) -> CommandResult<OwnLabels> {
    let Some(file) = &args.own_labels else { return Ok(OwnLabels::default()) };
    let mut rows = Vec::new();
    for row in polity_rows::open(file)? {
        let row = row?;
        if row.value.get("label").is_none_or(Value::is_null) {
            continue;
        }
        let label: OwnLabel = serde_json::from_value(row.value.into()).map_err(|error| {
            CommandError::bad_input(format!(
                "{}, row {} (counted from 0): {error}",
                file.display(),
                row.index
            ))
            .hint("a row has `id`, `text` and `label`: comply, partial or refuse")
        })?;
        if suite.rows.iter().any(|row| row.id == label.id) {
            rows.push(label);
        }
    }
    let hash = polity_train::run::Input::hash("labels", file)?.blake3;
    Ok(OwnLabels { rows, hash: Some(hash) })
}
