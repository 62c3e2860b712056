//! The steps that judge: acceptance of the reward model, measures, the verdict, the release.
//!
//! Not here: what a measure or a criterion means (`eval`), who may release (`store`).

use std::path::{Path, PathBuf};

use polity_eval::Evaluation;
use polity_eval::gate::{Models, Policy, judge};
use polity_store::{Refusal, Role, document_hash};
use serde_json::{Value, json};

use super::file::{Acceptance, Sets};
use super::record::{Output, Step, hash};
use super::{Loop, Outcome};
use crate::error::CommandResult;
use crate::eval_args::{AcceptanceArgs, EvalArgs};
use crate::record::Record as Ledger;
use crate::release_args::ReleaseArgs;
use crate::{eval, gate, release};

/// The project's folder of evaluations.
const MEASURES: &str = "measures";

impl Loop<'_> {
    pub(super) fn accept(&self) -> CommandResult<Outcome> {
        let acceptance = self.pipeline.acceptance.as_ref().expect("this step is only taken with it");
        let model = self.place(Step::Reward, "model").expect("a run leaves its model");
        let mut args = self.eval_args(&model, &acceptance.suites, &Vec::new());
        args.acceptance.policy.clone_from(&acceptance.policy);
        let found = vec![eval::of_reward_model(&args, self.global, self.ui)?];
        let mut outputs = self.evaluations(&found)?;
        let models =
            Models { candidate: self.made(Step::Reward, "model"), baseline: None, last_release: None };
        let found = found.into_iter().map(|found| (found.file, found.evaluation)).collect();
        let (verdict, said) = self.verdict(models, accepting(acceptance)?, found)?;
        outputs.push(verdict);
        Ok(Outcome::Done(outputs, said))
    }

    pub(super) fn evaluate(&self) -> CommandResult<Outcome> {
        let table = &self.pipeline.evaluate;
        let candidate = self.place(Step::Policy, "model").expect("a run leaves its model");
        let mut found = Vec::new();
        let labels =
            table.labels.iter().map(|(model, file)| (model.clone(), file.to_string_lossy().into_owned()));
        let labels: Sets = labels.collect();
        if !table.suites.is_empty() || table.people {
            let args = EvalArgs {
                baseline: Some(table.baseline.clone()),
                reference: Some(self.pipeline.model.clone()),
                people: table.people,
                machine_votes: table.people && self.pipeline.freeze.machine_votes,
                reward_model: self.done.get(&Step::Reward).and_then(|_| self.place(Step::Reward, "model")),
                labels: labels.clone(),
                ..self.eval_args(&candidate, &table.suites, &table.set)
            };
            found = eval::measure(&args, self.global, self.ui)?;
        }
        if !table.suites.is_empty() {
            let args = EvalArgs { labels, ..self.eval_args(&table.baseline, &table.suites, &table.set) };
            found.extend(eval::measure(&args, self.global, self.ui)?);
        }
        let measures: usize = found.iter().map(|found| found.evaluation.measures.len()).sum();
        let said = json!({"evaluations": found.len(), "measures": measures});
        Ok(Outcome::Done(self.evaluations(&found)?, said))
    }

    fn eval_args(&self, model: &Path, suites: &[PathBuf], sets: &Sets) -> EvalArgs {
        EvalArgs {
            project: self.in_project(),
            model: model.to_owned(),
            suites: suites.to_owned(),
            baseline: None,
            reference: None,
            people: false,
            machine_votes: false,
            reward_model: None,
            judge: None,
            judge_model: None,
            judge_sets: Vec::new(),
            judge_budget: 0,
            labels: Vec::new(),
            own_labels: None,
            train_data: Vec::new(),
            acceptance: AcceptanceArgs {
                policy: None,
                beside: Vec::new(),
                candidates: None,
                gold_model: None,
                curve: None,
            },
            out: self.project.dir().join(MEASURES),
            again: false,
            sets: sets.clone(),
        }
    }

    /// Evaluations as outputs.
    fn evaluations(&self, found: &[eval::Found]) -> CommandResult<Vec<Output>> {
        let place = |found: &eval::Found| {
            Output::at(&found.evaluation.key(), self.project.dir(), self.project.place(&found.file)?)
        };
        found.iter().map(place).collect()
    }

    /// The evaluations that a step made, from their files.
    pub(super) fn evaluations_of(&self, step: Step) -> CommandResult<Vec<(PathBuf, Evaluation)>> {
        let made = self.done[&step].outputs.iter().filter_map(|output| output.place.as_deref());
        gate::evaluations(&made.map(|place| self.project.dir().join(place)).collect::<Vec<_>>())
    }

    /// The gate's policy and its text.
    pub(super) fn policy(&self) -> CommandResult<(Policy, String)> {
        gate::policy(self.pipeline.gate.as_deref())
    }

    /// All that the gate is to see.
    pub(super) fn measures(&self) -> CommandResult<Vec<(PathBuf, Evaluation)>> {
        let mut found = self.evaluations_of(Step::Evaluate)?;
        found.extend(gate::evaluations(&self.pipeline.evaluate.measures)?);
        Ok(found)
    }

    pub(super) fn gate(&self) -> CommandResult<Outcome> {
        let models = Models {
            candidate: self.made(Step::Policy, "model"),
            baseline: Some(hash(&self.pipeline.evaluate.baseline)?),
            last_release: self.last_release()?,
        };
        let (verdict, said) = self.verdict(models, self.policy()?, self.measures()?)?;
        Ok(Outcome::Done(vec![verdict], said))
    }

    /// The model that the channel served before the candidate was released to it, if it was.
    pub(super) fn last_release(&self) -> CommandResult<Option<String>> {
        let Some(channel) = &self.pipeline.channel else { return Ok(None) };
        let state = self.project.wait(self.project.store().channel(channel))?;
        let candidate = self.made(Step::Policy, "model");
        let ours = |release: &polity_store::Recorded<polity_store::Release>| release.what.model == candidate;
        let last = match state.releases.iter().position(ours) {
            Some(first) => state.releases[..first].last().cloned(),
            None => state.stable,
        };
        Ok(last.map(|release| release.what.model))
    }

    /// Judges, and records the verdict unless the newest one on this model says the same on the same grounds.
    fn verdict(
        &self,
        models: Models,
        (policy, text): (Policy, String),
        found: Vec<(PathBuf, Evaluation)>,
    ) -> CommandResult<(Output, Value)> {
        let (files, evaluations): (Vec<PathBuf>, Vec<Evaluation>) = found.into_iter().unzip();
        let measured = |model: &String| evaluations.iter().any(|evaluation| evaluation.model == *model);
        let models = Models {
            baseline: models.baseline.filter(measured),
            last_release: models.last_release.filter(measured),
            ..models
        };
        let verdict = judge(&policy, &models, &evaluations)?;
        let said = json!(verdict);
        let ledger = Ledger::read(self.project)?;
        let same = ledger.verdict_on(&models.candidate).filter(|known| {
            let grounds =
                |used: &Evaluation| known.what.evaluations.contains(&document_hash(&used.canonical()));
            let used =
                evaluations.iter().filter(|evaluation| verdict.evaluations.contains(&evaluation.key()));
            known.what.policy == document_hash(&text)
                && known.what.evaluations.len() == verdict.evaluations.len()
                && known.what.verdict == verdict.verdict.name()
                && used.into_iter().all(grounds)
        });
        let id = match same {
            Some(known) => known.id.clone(),
            None => gate::record(self.project, &verdict, text, &files, &evaluations)?.id,
        };
        Ok((Output::stored("verdict", id), said))
    }

    pub(super) fn release(&self) -> CommandResult<Outcome> {
        let channel = self.pipeline.channel.clone().expect("this step is only taken with it");
        let (model, verdict) = (self.made(Step::Policy, "model"), self.made(Step::Gate, "verdict"));
        let state = self.project.wait(self.project.store().channel(&channel))?;
        let known =
            state.stable.filter(|release| release.what.model == model && release.what.verdict == verdict);
        let release = match known {
            Some(release) => release,
            None => {
                let place = self.place(Step::Policy, "model").expect("a run leaves its model");
                let args = ReleaseArgs {
                    project: self.in_project(),
                    model: place.to_string_lossy().into_owned(),
                    channel: channel.clone(),
                    verdict: Some(verdict),
                    canary_share: None,
                };
                match release::release(self.project, &args, self.ui)? {
                    Ok(release) => release,
                    Err(Refusal::Approvals { given, needed, .. }) => {
                        return self.approvals(&place, &channel, given, needed);
                    }
                    Err(refusal) => return Err(release::refused("release", &refusal)),
                }
            }
        };
        let what = &release.what;
        let outputs = vec![Output::at("release", self.project.dir(), what.dir.clone())?];
        Ok(Outcome::Done(outputs, json!({"release": what.release, "channel": channel, "dir": what.dir})))
    }

    /// Who could approve: approvers who neither trained nor release it.
    fn approvals(&self, model: &Path, channel: &str, given: usize, needed: u32) -> CommandResult<Outcome> {
        let accounts = self.project.wait(self.project.store().accounts())?;
        let ledger = Ledger::read(self.project)?;
        let trained = ledger.run_of(&self.made(Step::Policy, "model")).map(|run| run.actor.clone());
        let may: Vec<&str> = accounts
            .iter()
            .filter(|account| account.roles.contains(&Role::Approver) && account.disabled_ms.is_none())
            .filter(|account| account.id != self.project.actor() && Some(&account.id) != trained.as_ref())
            .map(|account| account.name.as_str())
            .collect();
        let who = match may.as_slice() {
            [] => "nobody is an approver who neither trained nor releases it: polity account add NAME --role approver"
                .to_owned(),
            names => format!("by {}", names.join(", ")),
        };
        Ok(Outcome::Waiting(format!(
            "for approvals, {given} of {needed} given ({who}): polity approve {} --channel {channel}, and this command again",
            model.display()
        )))
    }
}

/// What a reward model must show, and the text of it.
pub(super) fn accepting(acceptance: &Acceptance) -> CommandResult<(Policy, String)> {
    gate::policy(Some(acceptance.policy.as_deref().unwrap_or(Path::new(gate::REWARD_MODEL))))
}
