//! What each step depends on, and doing it.
//!
//! A step may have been killed anywhere: each looks for its work first (in the store, in the run's directory, in the ledger) and takes or
//! finishes what is there.
//!
//! Not here: when a step is skipped (`mod.rs`); the steps that judge (`judging.rs`); the work (each verb's own file).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use polity_eval::Suite;
use polity_store::{Judgement, JudgementFilter, Kind, Part, document_hash};
use polity_train::run::{Manifest, names};
use serde_json::{Value, json};

use super::file::{Method, Panel, Pipeline, Sets};
use super::judging::accepting;
use super::record::{Output, Plan, Step, hash};
use super::{Loop, Outcome};
use crate::args::{PpoArgs, TrainArgs, TrainVerb};
use crate::error::{CommandError, CommandResult};
use crate::freeze::{self, PROMPTS_FILE};
use crate::project::{self, DATASET_FILE};
use crate::project_args::{ExportArgs, FileFormat, FreezeArgs, InProject, JudgeArgs, SampleArgs};
use crate::{judge as endpoint, panel, sample, train};

/// Seconds to wait for a judge's reply, tries and comparisons at once: as `polity panel judge` has them.
const JUDGE: (u64, u32, usize) = (120, 5, 4);

/// Digits of a hash.
const HASH_DIGITS: usize = 64;

impl Pipeline {
    /// The steps that the file asks for, in order.
    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        let (reward, accept) = (self.reward.is_some(), self.acceptance.is_some());
        let (compare, release) = (self.evaluate.people, self.channel.is_some());
        let all = [
            (Step::Sample, true),
            (Step::Panel, true),
            (Step::Freeze, true),
            (Step::Reward, reward),
            (Step::Accept, accept),
            (Step::Policy, true),
            (Step::Compare, compare),
            (Step::Evaluate, true),
            (Step::Gate, true),
            (Step::Release, release),
        ];
        all.into_iter().filter(|(_, wanted)| *wanted).map(|(step, _)| step)
    }
}

impl Loop<'_> {
    /// What a step depends on; the steps before it are done.
    pub(super) fn plan(&self, step: Step) -> CommandResult<Plan> {
        let pipeline = self.pipeline;
        let mut inputs = BTreeMap::new();
        let settings = match step {
            Step::Sample => {
                inputs.insert("model".to_owned(), hash(&pipeline.model)?);
                if let Some(prompts) = &pipeline.sample.prompts {
                    inputs.insert("prompts".to_owned(), hash(prompts)?);
                }
                let sample = &pipeline.sample;
                json!({"per_prompt": sample.per_prompt, "pairs": sample.pairs, "alike": sample.alike, "set": sample.set})
            }
            Step::Panel => {
                inputs.insert("comparisons".to_owned(), self.made(Step::Sample, "comparisons"));
                json!(pipeline.panel)
            }
            Step::Freeze => {
                inputs.insert("votes".to_owned(), self.made(Step::Panel, "votes"));
                let mut settings = json!(pipeline.freeze);
                settings["labels"] = json!(polity_store::LabelRule::from(pipeline.freeze.labels));
                settings
            }
            Step::Reward => {
                inputs.insert("model".to_owned(), hash(&pipeline.model)?);
                inputs.extend(self.data(&["train", "validation"]));
                json!({"set": pipeline.reward})
            }
            Step::Accept => {
                let acceptance = pipeline.acceptance.as_ref().expect("this step is only taken with it");
                inputs.insert("model".to_owned(), self.made(Step::Reward, "model"));
                inputs.insert("policy".to_owned(), document_hash(&accepting(acceptance)?.1));
                inputs.extend(suites(&acceptance.suites)?);
                json!({})
            }
            Step::Policy => {
                inputs.insert("model".to_owned(), hash(&pipeline.model)?);
                match pipeline.method {
                    Method::Dpo => inputs.extend(self.data(&["train", "validation"])),
                    Method::Ppo => {
                        inputs.insert("reward_model".to_owned(), self.made(Step::Reward, "model"));
                        inputs.extend(self.data(&["prompts"]));
                    }
                }
                json!({"method": pipeline.method, "set": pipeline.policy})
            }
            Step::Compare => {
                inputs.insert("model".to_owned(), self.made(Step::Policy, "model"));
                inputs.insert("baseline".to_owned(), hash(&pipeline.evaluate.baseline)?);
                json!({"panel": pipeline.panel, "set": pipeline.sample.set})
            }
            Step::Evaluate => {
                inputs.insert("model".to_owned(), self.made(Step::Policy, "model"));
                inputs.insert("baseline".to_owned(), hash(&pipeline.evaluate.baseline)?);
                inputs.insert("reference".to_owned(), hash(&pipeline.model)?);
                if pipeline.reward.is_some() {
                    inputs.insert("reward_model".to_owned(), self.made(Step::Reward, "model"));
                }
                if pipeline.evaluate.people {
                    inputs.insert("votes".to_owned(), self.made(Step::Compare, "votes"));
                }
                for (model, file) in &pipeline.evaluate.labels {
                    inputs.insert(format!("labels {model}"), hash(file)?);
                }
                inputs.extend(suites(&pipeline.evaluate.suites)?);
                json!({"set": pipeline.evaluate.set})
            }
            Step::Gate => {
                inputs.insert("model".to_owned(), self.made(Step::Policy, "model"));
                inputs.insert("baseline".to_owned(), hash(&pipeline.evaluate.baseline)?);
                inputs.insert("policy".to_owned(), document_hash(&self.policy()?.1));
                for (_, evaluation) in self.measures()? {
                    inputs.insert(evaluation.key(), document_hash(&evaluation.canonical()));
                }
                inputs.extend(self.last_release()?.map(|model| ("last_release".to_owned(), model)));
                json!({})
            }
            Step::Release => {
                inputs.insert("model".to_owned(), self.made(Step::Policy, "model"));
                inputs.insert("verdict".to_owned(), self.made(Step::Gate, "verdict"));
                json!({"channel": pipeline.channel})
            }
        };
        Ok(Plan::new(step, settings, inputs))
    }

    /// Does a step, or what is left of it.
    pub(super) fn do_step(&self, plan: &Plan) -> CommandResult<Outcome> {
        match plan.step {
            Step::Sample => self.sample(),
            Step::Panel => self.panel(),
            Step::Freeze => self.freeze(plan),
            Step::Reward => self.reward(plan),
            Step::Accept => self.accept(),
            Step::Policy => self.optimise(plan),
            Step::Compare => self.compare(),
            Step::Evaluate => self.evaluate(),
            Step::Gate => self.gate(),
            Step::Release => self.release(),
        }
    }

    pub(super) fn made(&self, step: Step, name: &str) -> String {
        self.done[&step].output(name).hash.clone()
    }

    /// Files of the dataset, those of them that there are.
    fn data(&self, names: &[&str]) -> BTreeMap<String, String> {
        let freeze = &self.done[&Step::Freeze];
        let files = names.iter().filter_map(|name| freeze.find(name));
        files.map(|file| (file.name.clone(), file.hash.clone())).collect()
    }

    /// Where an output of a step that is done is.
    pub(super) fn place(&self, step: Step, name: &str) -> Option<PathBuf> {
        let place = self.done[&step].find(name)?.place.as_deref()?;
        Some(self.project.dir().join(place))
    }

    pub(super) fn in_project(&self) -> InProject {
        InProject { project: Some(self.project.dir().to_owned()) }
    }

    fn sample(&self) -> CommandResult<Outcome> {
        let table = &self.pipeline.sample;
        let args = SampleArgs {
            project: self.in_project(),
            models: vec![self.pipeline.model.clone()],
            prompts: table.prompts.clone(),
            // Comparisons on the holdout are of the candidate, later.
            parts: vec![Part::Train, Part::Validation],
            per_prompt: table.per_prompt,
            pairs: table.pairs,
            alike: table.alike,
            sets: table.set.clone(),
        };
        sample::check(&args)?;
        let sampled = sample::sample(self.project, &args, self.global, self.ui)?;
        if sampled.comparisons.is_empty() {
            return Err(CommandError::failed("no prompt has two candidates that differ enough to compare")
                .hint("raise `per_prompt`, `alike` or the sampler's temperature"));
        }
        let mut names = sampled.comparisons;
        names.sort_unstable();
        let said = json!({"comparisons": names.len(), "left_out_alike": sampled.left_out_alike});
        Ok(Outcome::Done(vec![Output::stored("comparisons", document_hash(&names.join("\n")))], said))
    }

    fn panel(&self) -> CommandResult<Outcome> {
        let votes = match &self.pipeline.panel {
            Panel::People { votes } => *votes,
            Panel::Simulate { .. } | Panel::Judge { .. } => None,
        };
        match self.have_voted(votes)? {
            Some(why) => Ok(Outcome::Waiting(why)),
            None => self.votes(|_| true),
        }
    }

    /// Has the panel compare the candidate with the baseline, on prompts that no training saw.
    fn compare(&self) -> CommandResult<Outcome> {
        let candidate = self.place(Step::Policy, "model").expect("a run leaves its model");
        let models = vec![self.pipeline.evaluate.baseline.clone(), candidate];
        let names = models.iter().map(|model| sample::name_of(self.project, model));
        let names: Vec<String> = names.collect::<CommandResult<_>>()?;
        let args = SampleArgs {
            project: self.in_project(),
            models,
            prompts: None,
            parts: vec![Part::Holdout],
            per_prompt: 1,
            pairs: 1,
            alike: self.pipeline.sample.alike,
            sets: self.pipeline.sample.set.clone(),
        };
        sample::sample(self.project, &args, self.global, self.ui)?;
        match self.have_voted(None)? {
            Some(why) => Ok(Outcome::Waiting(why)),
            None => self.votes(|vote| {
                let mut models = [&vote.model_a, &vote.model_b];
                models.sort_unstable();
                models[0] != models[1] && models.iter().all(|model| names.contains(model))
            }),
        }
    }

    /// Has the panel vote on what is queued; the reason if people must first.
    fn have_voted(&self, votes: Option<u64>) -> CommandResult<Option<String>> {
        match &self.pipeline.panel {
            Panel::People { .. } => {
                let dir = self.project.dir().display();
                let left = self.votes_left(votes)?;
                return Ok(left.map(|left| {
                    format!("for {left} votes: polity serve --project {dir}, and this command again")
                }));
            }
            Panel::Simulate { seed } => drop(panel::simulate(self.project, 0, *seed, self.ui)?),
            Panel::Judge { endpoint: url, model, budget, set } => {
                let (timeout, tries, parallel) = JUDGE;
                let args = JudgeArgs {
                    project: self.in_project(),
                    endpoint: url.clone(),
                    model: model.clone(),
                    name: None,
                    comparisons: 0,
                    budget: *budget,
                    parallel,
                    tries,
                    timeout,
                    sets: set.clone(),
                };
                let stopped = endpoint::judge(self.project, &args, self.ui)?.stopped;
                return Ok(stopped.map(|why| format!("the judge stopped: {why}; this command goes on")));
            }
        }
        Ok(None)
    }

    /// The votes that stand, as an output: what was said, without times, so that the same panel says the same.
    fn votes(&self, which: impl Fn(&Judgement) -> bool) -> CommandResult<Outcome> {
        let machine = (!self.pipeline.freeze.machine_votes).then_some(false);
        let filter = JudgementFilter { kind: Some(Kind::Work), machine, ..JudgementFilter::default() };
        let mut judgements = self.project.wait(self.project.store().judgements(filter))?;
        judgements.retain(which);
        let annotators: BTreeSet<&str> = judgements.iter().map(|vote| vote.annotator_id.as_str()).collect();
        let said = json!({"votes": judgements.len(), "annotators": annotators.len()});
        let lines = judgements.iter().map(|vote| {
            let axes = json!(vote.axes);
            format!(
                "{} {} {} {axes} {}",
                vote.comparison_id, vote.annotator_id, vote.overall, vote.rubric_version
            )
        });
        let mut lines: Vec<String> = lines.collect();
        lines.sort_unstable();
        Ok(Outcome::Done(vec![Output::stored("votes", document_hash(&lines.join("\n")))], said))
    }

    /// Judgements of people that are still wanted, if any are.
    fn votes_left(&self, votes: Option<u64>) -> CommandResult<Option<u64>> {
        let store = self.project.store();
        let left = match votes {
            Some(votes) => {
                let people =
                    JudgementFilter { kind: Some(Kind::Work), machine: Some(false), ..Default::default() };
                votes.saturating_sub(self.project.wait(store.judgements(people))?.len() as u64)
            }
            None => {
                let progress = self.project.wait(store.progress())?;
                (progress.wanted - progress.served + progress.live_leases).max(0) as u64
            }
        };
        Ok((left > 0).then_some(left))
    }

    fn freeze(&self, plan: &Plan) -> CommandResult<Outcome> {
        let table = &self.pipeline.freeze;
        let name = format!("{}-{}", self.pipeline.name, plan.short());
        let known = self.project.wait(self.project.store().datasets())?;
        let dataset = match known.into_iter().find(|dataset| dataset.name == name) {
            Some(dataset) => dataset,
            None => {
                let args = FreezeArgs {
                    project: self.in_project(),
                    name: name.clone(),
                    labels: table.labels,
                    votes_min: table.votes_min,
                    machine_votes: table.machine_votes,
                };
                freeze::freeze(self.project, &args, self.ui)?.0
            }
        };
        if dataset.train_rows == 0 {
            return Err(CommandError::failed(format!("dataset {name} has no rows to train on")).hint(
                "more prompts or votes are needed, or a smaller `votes_min`, `validation` or `holdout`",
            ));
        }
        let folder = format!("datasets/{name}");
        let args = ExportArgs {
            project: self.in_project(),
            name: name.clone(),
            out: self.project.dir().join(&folder),
            format: FileFormat::Jsonl,
            labels: None,
            margins: false,
            weights: false,
            with_holdout: false,
            with_prompts: true,
        };
        let exported = freeze::export(self.project, &args, self.ui)?;
        let mut outputs = vec![Output::stored("dataset", &dataset.hash)];
        for file in &exported.files {
            let output = if file.name == PROMPTS_FILE { "prompts" } else { &file.part };
            outputs.push(Output::at(output, self.project.dir(), format!("{folder}/{}", file.name))?);
        }
        outputs.push(Output::at("description", self.project.dir(), format!("{folder}/{DATASET_FILE}"))?);
        let said = json!({"dataset": name, "hash": dataset.hash, "train": dataset.train_rows,
            "validation": dataset.validation_rows, "holdout": dataset.holdout_rows});
        Ok(Outcome::Done(outputs, said))
    }

    fn reward(&self, plan: &Plan) -> CommandResult<Outcome> {
        let sets = self.pipeline.reward.as_ref().expect("this step is only taken with it");
        let data = (self.place(Step::Freeze, "train"), self.place(Step::Freeze, "validation"));
        self.train(plan, "reward", data, sets, |args| {
            train::train(&TrainVerb::Reward(args), self.global, self.ui)
        })
    }

    fn optimise(&self, plan: &Plan) -> CommandResult<Outcome> {
        let name = self.pipeline.method.name();
        match self.pipeline.method {
            Method::Dpo => {
                let data = (self.place(Step::Freeze, "train"), self.place(Step::Freeze, "validation"));
                self.train(plan, name, data, &self.pipeline.policy, |args| {
                    train::train(&TrainVerb::Dpo(args), self.global, self.ui)
                })
            }
            Method::Ppo => {
                let data = (self.place(Step::Freeze, "prompts"), None);
                let reward_model = self.place(Step::Reward, "model").expect("a run leaves its model");
                self.train(plan, name, data, &self.pipeline.policy, |train| {
                    let gold = self.gold.map(|probe| probe()).transpose()?;
                    let args = PpoArgs { train, reward_model, override_acceptance: None };
                    train::ppo(&args, gold, self.global, self.ui)
                })
            }
        }
    }

    /// Trains, goes on with a run, or takes one that is done.
    fn train(
        &self,
        plan: &Plan,
        stage: &str,
        (data, eval_data): (Option<PathBuf>, Option<PathBuf>),
        sets: &Sets,
        work: impl FnOnce(TrainArgs) -> CommandResult<train::Trained>,
    ) -> CommandResult<Outcome> {
        let run = format!("runs/{}-{stage}-{}", self.pipeline.name, plan.short());
        let out = self.project.dir().join(&run);
        let mut said = json!({"run": run});
        if is_whole(&out) {
            self.is_what_the_run_made(&run, &out)?;
        } else {
            let args = TrainArgs {
                model: self.pipeline.model.clone(),
                data: data.expect("a dataset has training rows, and their prompts"),
                eval_data,
                out: out.clone(),
                config: None,
                sets: sets.clone(),
                resume: out.join(names::RESOLVED).is_file(),
            };
            let trained = work(args)?;
            said["last"] =
                json!(trained.last.map(|(step, metrics)| json!({"step": step, "metrics": metrics})));
        }
        let model = Output::at("model", self.project.dir(), format!("{run}/{}", names::MODEL))?;
        Ok(Outcome::Done(vec![model], said))
    }

    /// The ledger says which model the run made. One that it does not know of was killed before it could be noted.
    fn is_what_the_run_made(&self, run: &str, out: &Path) -> CommandResult {
        let runs = self.project.wait(self.project.store().runs())?;
        let Some(recorded) = runs.iter().rev().find(|recorded| recorded.what.run == run) else {
            project::record_run_end(out, &manifest(out).expect("a whole run has one"), self.ui);
            return Ok(());
        };
        let model = hash(&out.join(names::MODEL))?;
        if recorded.what.model.as_deref() == Some(&model) {
            return Ok(());
        }
        Err(CommandError::failed(format!(
            "{}: its model is not the one that the run made by the ledger's event {}",
            out.display(),
            recorded.seq
        ))
        .hint("remove the run's directory to train it again"))
    }
}

/// Suites by their place in the list: another order is another input, which costs nothing but a look.
fn suites(files: &[PathBuf]) -> CommandResult<BTreeMap<String, String>> {
    let hash = |(i, file): (usize, &PathBuf)| Ok((format!("suite {}", i + 1), Suite::read(file)?.hash));
    files.iter().enumerate().map(hash).collect()
}

fn manifest(out: &Path) -> Option<Manifest> {
    serde_json::from_str(&fs::read_to_string(out.join(names::MANIFEST)).ok()?).ok()
}

/// Whether a run has ended, with all that it leaves: its page is written last.
fn is_whole(out: &Path) -> bool {
    let finished = manifest(out).is_some_and(|manifest| manifest.finished.is_some());
    finished && out.join(names::MODEL).is_dir() && out.join(names::REPORT).is_file()
}

/// A step's result on a line.
pub fn in_short(said: &Value) -> String {
    if let Some(verdict) = said.get("verdict").and_then(Value::as_str) {
        return verdict.to_owned();
    }
    let words = said.as_object().into_iter().flatten().filter_map(|(key, value)| {
        let key = key.replace('_', " ");
        match value {
            // Hashes are for the record.
            Value::String(text) => (text.len() != HASH_DIGITS).then(|| format!("{key} {text}")),
            Value::Number(number) => Some(format!("{number} {key}")),
            _ => None,
        }
    });
    words.collect::<Vec<_>>().join(", ")
}
