//! The demo's end: measures of its models, the gate's verdict on PPO's, and its release or the refusal, all in the demo's own project.
//!
//! The panel votes once more, on each model's response beside the supervised model's, to prompts that nobody has voted on. The gold utility is in no
//! measure here: the gate has what a gate would have.
//!
//! Not here: judging (`eval::gate`), the rules of a release (`store`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use polity_eval::answers::Table;
use polity_eval::gate::{Decision, Models, Policy, Verdict, judge};
use polity_eval::preferred::{Judge, Judged as Vote, add_win_rate};
use polity_eval::{Asking, EvalError, Evaluation, Kind, Suite, SuiteRow};
use polity_lm::rng::Stream;
use polity_train::run::{Input, names};
use polity_world::{Category, Panel, Prompt, Refusal};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::demo::{ANSWER_TOKENS, CONFIDENCE};
use crate::demo_report::Judged;
use crate::error::{CommandError, CommandResult};
use crate::gate;
use crate::project::Project;
use crate::project_args::InProject;
use crate::release;
use crate::release_args::ReleaseArgs;
use crate::ui::Ui;

/// What a candidate must show.
const POLICY: &str = include_str!("demo_gate.toml");
/// Where it is released to.
const CHANNEL: &str = "demo";
/// The model that is to be released, and the one that it is compared with.
const CANDIDATE: &str = "ppo";
const BASELINE: &str = "sft";

/// What came of the candidate.
#[derive(Debug, Serialize)]
pub struct Ending {
    /// Which model.
    pub model: &'static str,
    /// What the gate says.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The release, if it passes.
    pub release: Option<String>,
}

impl Ending {
    /// For the terminal.
    pub fn line(&self) -> String {
        match (&self.release, self.verdict.verdict) {
            (Some(release), _) => format!("gate: pass; {} is released as {release}\n", self.model),
            (None, decision) => {
                let reasons = self.verdict.reasons.iter().map(|reason| format!("  {reason}\n"));
                format!(
                    "gate: {}; {} is not released\n{}",
                    decision.name(),
                    self.model,
                    reasons.collect::<String>()
                )
            }
        }
    }
}

/// Measures, judges and releases.
pub fn end(dir: &Path, seed: u64, prompts: &[Prompt], judged: &[Judged], ui: &Ui) -> CommandResult<Ending> {
    let names = judged.iter().map(|model| model.name).chain(["reward"]);
    let hash = |name| Ok((name, Input::hash("model", &model_of(dir, name))?.blake3));
    let hashes = names.map(hash).collect::<CommandResult<_>>()?;
    let (found, verdict) = Bench::new(hashes, seed, prompts, judged).judge(judged)?;
    let folder = dir.join("measures");
    std::fs::create_dir_all(&folder)
        .map_err(|error| CommandError::failed(format!("cannot make {}: {error}", folder.display())))?;
    let (files, evaluations): (Vec<PathBuf>, Vec<Evaluation>) =
        found.into_iter().map(|(name, evaluation)| (folder.join(name), evaluation)).unzip();
    for (file, evaluation) in files.iter().zip(&evaluations) {
        evaluation.write(file)?;
    }
    let project = Project::open(&InProject { project: Some(dir.to_owned()) })?;
    let id = gate::record(&project, &verdict, POLICY.to_owned(), &files, &evaluations)?.id;
    let release = match verdict.verdict {
        Decision::Pass => {
            let args = ReleaseArgs {
                project: InProject { project: Some(dir.to_owned()) },
                model: model_of(dir, CANDIDATE).to_string_lossy().into_owned(),
                channel: CHANNEL.to_owned(),
                verdict: Some(id),
                canary_share: None,
            };
            match release::release(&project, &args, ui)? {
                Ok(release) => Some(release.what.release),
                Err(refusal) => return Err(release::refused("release", &refusal)),
            }
        }
        Decision::Fail | Decision::Inconclusive => None,
    };
    Ok(Ending { model: CANDIDATE, verdict, release })
}

fn model_of(dir: &Path, name: &str) -> PathBuf {
    dir.join("runs").join(name).join(names::MODEL)
}

/// What the measures are made from.
struct Bench<'a> {
    /// Hash of each model.
    hashes: BTreeMap<&'static str, String>,
    seed: u64,
    prompts: &'a [Prompt],
    baseline: &'a Judged,
    suite: Suite,
}

impl<'a> Bench<'a> {
    fn new(
        hashes: BTreeMap<&'static str, String>,
        seed: u64,
        prompts: &'a [Prompt],
        judged: &'a [Judged],
    ) -> Self {
        let rows = prompts.iter().map(|prompt| SuiteRow {
            id: prompt.id.clone(),
            category: Some(prompt.category.name().to_owned()),
            values: [("prompt", prompt.text.clone())].into(),
        });
        let rows: Vec<SuiteRow> = rows.collect();
        let hash = blake3::hash(json!(rows).to_string().as_bytes()).to_hex().to_string();
        let suite = Suite {
            name: "tiny world".to_owned(),
            kind: Kind::Prompts,
            source: None,
            licence: None,
            asking: Asking::default(),
            settings: Vec::new(),
            hash,
            rows,
        };
        let baseline = judged.iter().find(|model| model.name == BASELINE);
        Bench { hashes, seed, prompts, baseline: baseline.expect("it is judged first"), suite }
    }

    /// All evaluations, by the names of their files, and what the gate says of the candidate.
    fn judge(&self, judged: &[Judged]) -> CommandResult<(Vec<(String, Evaluation)>, Verdict)> {
        let mut found = Vec::new();
        for model in judged {
            found.extend(self.evaluations(model)?);
        }
        let policy = Policy::parse(Path::new("the demo's policy"), POLICY)?;
        let models = Models {
            candidate: self.hashes[CANDIDATE].clone(),
            baseline: Some(self.hashes[BASELINE].clone()),
            last_release: None,
        };
        let evaluations: Vec<Evaluation> = found.iter().map(|(_, evaluation)| evaluation.clone()).collect();
        let verdict = judge(&policy, &models, &evaluations)?;
        Ok((found, verdict))
    }

    /// A model's: what its answers say alone, and, beside the baseline, its distance and the panel's votes.
    fn evaluations(&self, model: &Judged) -> CommandResult<Vec<(String, Evaluation)>> {
        let reward_model = self.hashes["reward"].clone();
        let alone = self.evaluation(model, "alone", json!({"reward_model": reward_model}), |table| {
            let all = |values: &[f64]| {
                values.iter().copied().enumerate().map(|(i, x)| (i, x, 1)).collect::<Vec<_>>()
            };
            let range = Some([0.0, ANSWER_TOKENS as f64]);
            table.add("response_tokens", "tokens", range, all(&model.tokens))?;
            table.add("proxy_reward", "reward", None, all(&model.proxy))?;
            table.add(
                "unsafe_compliance",
                "share",
                SHARE,
                self.of(Category::Safety, |i| !refuses(model, i)),
            )?;
            table.add("over_refusal", "share", SHARE, self.of(Category::OverRefusal, |i| refuses(model, i)))
        })?;
        if model.name == BASELINE {
            return Ok(vec![alone]);
        }
        let baseline = self.hashes[BASELINE].clone();
        let beside =
            self.evaluation(model, "beside", json!({"baseline": baseline, "judge": "panel"}), |table| {
                table.add(
                    "kl_nats_per_sequence",
                    "nats per sequence",
                    None,
                    model.kl.iter().copied().enumerate().map(|(i, kl)| (i, kl, 1)),
                )?;
                add_win_rate(table, Judge::People, &self.votes(model))
            })?;
        Ok(vec![alone, beside])
    }

    fn evaluation(
        &self,
        model: &Judged,
        what: &str,
        settings: Value,
        fill: impl FnOnce(&mut Table<'_>) -> Result<(), EvalError>,
    ) -> CommandResult<(String, Evaluation)> {
        let mut table = Table::new(&self.suite, CONFIDENCE);
        fill(&mut table)?;
        let mut settings: Map<String, Value> = settings.as_object().cloned().unwrap_or_default();
        settings.insert("temperature".to_owned(), 1.0.into());
        settings.insert("seed".to_owned(), self.seed.into());
        let evaluation = Evaluation {
            model: self.hashes[model.name].clone(),
            suite: self.suite.hash.clone(),
            suite_name: Some(self.suite.name.clone()),
            settings,
            inputs: Map::new(),
            measures: table.finish(),
        };
        Ok((format!("{}-{what}.json", model.name), evaluation))
    }

    /// Of each prompt of a category: whether it holds.
    fn of(&self, category: Category, holds: impl Fn(usize) -> bool) -> Vec<(usize, f64, u64)> {
        let rows = (0..self.prompts.len()).filter(|&i| self.prompts[i].category == category);
        rows.map(|i| (i, f64::from(holds(i)), 1)).collect()
    }

    /// Each annotator's vote on each prompt, the sides drawn anew.
    fn votes(&self, model: &Judged) -> Vec<Vote> {
        let panel = Panel::standard(self.seed);
        let mut votes = Vec::new();
        for (row, prompt) in self.prompts.iter().enumerate() {
            let comparison = format!("gate/{}/{}", model.name, prompt.id);
            let on_left = Stream::new(self.seed, "gate side", &[row as u64]).f64() < 0.5;
            let (ours, theirs) = (&model.gold[row], &self.baseline.gold[row]);
            let (left, right) = if on_left { (ours, theirs) } else { (theirs, ours) };
            for (who, annotator) in panel.annotators.iter().enumerate() {
                let share = panel.vote_on(who, &comparison, left, right).left_share();
                votes.push(Vote {
                    row,
                    annotator: Some(annotator.name.clone()),
                    score: if on_left { share } else { 1.0 - share },
                    candidate_length: ours.words,
                    baseline_length: theirs.words,
                });
            }
        }
        votes
    }
}

/// What a share can be.
const SHARE: Option<[f64; 2]> = Some([0.0, 1.0]);

fn refuses(model: &Judged, row: usize) -> bool {
    model.gold[row].refusal == Refusal::Refuse
}

#[cfg(test)]
mod tests {
    use super::*;
    use polity_world::{Response, Split, World};

    /// A model that answers by a rule, as far from the reference and as well scored as the demo's measured (docs/results.md).
    fn model(
        name: &'static str,
        world: &World,
        prompts: &[Prompt],
        (kl, proxy): (f64, f64),
        answer: impl Fn(usize) -> String,
    ) -> Judged {
        let texts: Vec<String> = (0..prompts.len()).map(answer).collect();
        let gold = |(prompt, text): (&Prompt, &String)| world.gold(prompt, Response { text, ended: true });
        // A little different on each prompt: equal values, and equal differences, have no interval.
        let around = |x: f64| -> Vec<f64> {
            (0..prompts.len() as u64).map(|i| x + 0.1 * Stream::new(3, name, &[i]).f64()).collect()
        };
        Judged {
            name,
            measures: Vec::new(),
            alarms: Vec::new(),
            gold: prompts.iter().zip(&texts).map(gold).collect(),
            proxy: around(proxy),
            kl: around(kl),
            tokens: texts.iter().map(|text| text.split(' ').count() as f64).collect(),
            texts,
        }
    }

    /// The verdict on a candidate that is right on so many of ten prompts, or begs pardon without end, from so many prompts.
    fn verdict(n: usize, right: Option<usize>) -> Verdict {
        let world = World::new(3);
        let prompts = world.prompts(Split::Holdout, n);
        let answers = |right: usize| {
            let (world, prompts) = (&world, &prompts);
            move |i: usize| match Stream::new(3, "right", &[i as u64]).f64() * 10.0 < right as f64 {
                true => world.ideal(&prompts[i]),
                false => "i do not know".to_owned(),
            }
        };
        let sft = model(BASELINE, &world, &prompts, (0.0, 0.1), answers(5));
        let ppo = match right {
            Some(right) => model(CANDIDATE, &world, &prompts, (1.4, 0.7), answers(right)),
            None => model(CANDIDATE, &world, &prompts, (179.0, 2.4), |_| {
                "i am sorry . ".repeat(8).trim().to_owned()
            }),
        };
        let judged = [sft, ppo];
        let hashes = [BASELINE, CANDIDATE, "reward"]
            .map(|name| (name, blake3::hash(name.as_bytes()).to_hex().to_string()))
            .into();
        Bench::new(hashes, 3, &prompts, &judged).judge(&judged).unwrap().1
    }

    #[test]
    fn a_good_policy_passes_an_over_optimised_one_fails_and_few_votes_are_inconclusive() {
        let good = verdict(750, Some(8));
        assert_eq!(good.verdict, Decision::Pass, "{:?}", good.reasons);

        let twin = verdict(750, None);
        assert_eq!(twin.verdict, Decision::Fail);
        let said: BTreeMap<&str, Decision> =
            twin.criteria.iter().map(|said| (said.id.as_str(), said.verdict)).collect();
        for fails in ["preferred-by-people", "length", "kl"] {
            assert_eq!(said[fails], Decision::Fail, "{fails}");
        }
        assert_eq!(said["proxy-reward"], Decision::Pass, "the reward model likes it better all the same");

        let few = verdict(40, Some(8));
        assert_eq!(few.verdict, Decision::Inconclusive, "{:?}", few.reasons);
    }

    /// Identical responses win half, whatever side the panel is drawn to: within four standard errors over ten worlds' votes.
    #[test]
    fn the_panel_prefers_neither_of_two_models_that_answer_alike() {
        let mut scores = Vec::new();
        for seed in 0..10 {
            let world = World::new(seed);
            let prompts = world.prompts(Split::Holdout, 400);
            let same = |name| model(name, &world, &prompts, (0.0, 0.1), |i| world.ideal(&prompts[i]));
            let judged = [same(BASELINE), same(CANDIDATE)];
            let bench = Bench::new(BTreeMap::new(), seed, &prompts, &judged);
            scores.extend(bench.votes(&judged[1]).iter().map(|vote| vote.score));
        }
        let n = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / n;
        let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / n;
        assert!((mean - 0.5).abs() < 4.0 * (variance / n).sqrt(), "{mean} of {n}");
    }
}
