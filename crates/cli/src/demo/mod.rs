//! `polity demo`: the whole loop on an embedded tiny world.
//!
//! ```text
//! files.rs:  corpus, demonstrations, prompts, suites, labels, loop.toml     what a newcomer has
//! train sft: corpus -> base model,  demonstrations -> supervised model
//! loop:      sample, panel, freeze, reward model, acceptance, PPO, comparison, measures, gate, release
//! train dpo: on the loop's dataset
//! judge.rs:  the gold utility of all of them, on prompts that no training saw
//! ```
//!
//! Everything is done by the functions of the verbs, on files that stay there: `polity loop DIR/loop.toml` goes on with them. The gold utility is
//! asked for by the panel, which sees it through its flaws, by whoever watches PPO, and at the end; no trainer and no measure of the gate
//! sees it.
//!
//! Not here: the world (`world`), the loop (`pipeline`), the trainers (`train`).

mod files;
#[cfg(test)]
mod gate_tests;
mod judge;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use polity_eval::gate::Verdict;
use polity_lm::Model;
use polity_train::ppo::GoldProbe;
use polity_train::report::RunData;
use polity_train::run::names;
use polity_world::{Prompt, Response, Split, World, vocabulary};
use serde::Serialize;
use serde_json::json;

use crate::args::{DemoArgs, Global, TrainArgs, TrainVerb};
use crate::error::{CommandError, CommandResult, Kind};
use crate::init;
use crate::output::{json_to_stdout, to_stdout};
use crate::pipeline::{self, End, Ended, Step};
use crate::project::PROJECT_FILE;
use crate::project_args::InitArgs;
use crate::train;
use crate::ui::{Ui, duration};
use files::{HOLDOUT, LOOP, OVERLAP, VALIDATION};
use judge::{Judged, closing_table, encode};
use report::{DemoReport, StageDone};

/// Confidence of every interval.
const CONFIDENCE: f64 = 0.95;
/// Validation prompts whose responses are judged while PPO runs.
const GOLD_PROMPTS: usize = 200;
/// What `--set` can be about.
const STAGES: [&str; 5] = ["base", "sft", "reward", "ppo", "dpo"];
/// The model that is to be released.
const CANDIDATE: &str = "ppo";

/// Settings of a trainer.
type Sets = Vec<(String, String)>;

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
    /// What to do next, if it does not.
    #[serde(skip)]
    pub hints: Vec<String>,
}

impl Ending {
    fn of(ended: Ended) -> CommandResult<Ending> {
        let verdict = ended.done[&Step::Gate].said.clone();
        let release = ended.done.get(&Step::Release).and_then(|record| record.said["release"].as_str());
        Ok(Ending {
            model: CANDIDATE,
            verdict: serde_json::from_value(verdict).map_err(CommandError::failed)?,
            release: release.map(str::to_owned),
            hints: match ended.end {
                End::Refused(error) => error.hints,
                End::Through | End::Waiting(_) => Vec::new(),
            },
        })
    }

    /// For the terminal.
    fn line(&self) -> String {
        match &self.release {
            Some(release) => format!("gate: pass; {} is released as {release}\n", self.model),
            None => {
                let decision = self.verdict.verdict.name();
                let mut text = format!("gate: {decision}; {} is not released\n", self.model);
                for line in &self.hints {
                    text += &format!("  {line}\n");
                }
                text
            }
        }
    }
}

/// Runs the demo.
pub fn run(args: &DemoArgs, global: &Global, ui: &Ui) -> CommandResult {
    if ["summary.json", "runs", PROJECT_FILE].iter().any(|name| args.dir.join(name).exists()) {
        let found = args.dir.display();
        let error = CommandError::bad_input(format!("{found} already holds a demo"))
            .hint("remove it, or choose another --dir");
        return Err(match args.dir.join("runs/sft").join(names::MODEL).exists() {
            true => error.hint(format!("polity loop {found}/{LOOP} goes on with it")),
            false => error,
        });
    }
    check_sets(&args.sets)?;
    init::init(&InitArgs {
        dir: args.dir.clone(),
        name: Some("tiny-world".to_owned()),
        store: "store.db".to_owned(),
        validation: VALIDATION,
        holdout: HOLDOUT,
        overlap: OVERLAP,
        seed: Some(args.seed),
    })?;
    let world = World::new(args.seed).split_by(files::split);
    let held_out = files::held_out(&world);
    ui.note(&format!(
        "A tiny world with a known truth, seed {}: {} words, {} prompts, {} held out.",
        args.seed,
        vocabulary().len(),
        world.all_prompts().len(),
        held_out.len()
    ));
    let mut demo = Demo {
        dir: &args.dir,
        world,
        held_out,
        seed: args.seed,
        sets: &args.sets,
        global,
        ui,
        stages: Vec::new(),
    };
    demo.run(args.over_optimise)
}

/// Every `--set` names a stage.
fn check_sets(sets: &[(String, String)]) -> CommandResult {
    for (key, _) in sets {
        let stage = key.split_once('.').map_or("", |(stage, _)| stage);
        if !STAGES.contains(&stage) {
            return Err(CommandError::bad_input(format!(
                "--set {key}: found no stage, expected STAGE.KEY=VALUE"
            ))
            .hint("stages are base, sft, reward, ppo and dpo: --set ppo.kl_coef=0.1"));
        }
    }
    Ok(())
}

/// What every stage needs.
struct Demo<'a> {
    dir: &'a Path,
    world: World,
    /// Prompts that no training sees.
    held_out: Vec<Prompt>,
    seed: u64,
    sets: &'a [(String, String)],
    global: &'a Global,
    ui: &'a Ui,
    stages: Vec<StageDone>,
}

impl Demo<'_> {
    fn run(&mut self, over_optimise: bool) -> CommandResult {
        let reward = self.with_own_sets("reward", REWARD);
        let ppo = [PPO, if over_optimise { WITHOUT_LEASH } else { LEASH }].concat();
        let ppo = self.with_own_sets("ppo", &ppo);
        files::write_all(self.dir, &self.world, &self.held_out, self.seed, &reward, &ppo)?;
        self.train("base", files::CORPUS, "fresh", BASE, TrainVerb::Sft)?;
        let sft = self.train("sft", files::DEMONSTRATIONS, "runs/base/model", SFT, TrainVerb::Sft)?;

        let file = self.dir.join(LOOP);
        self.ui.note(&self.ui.bold(&format!("polity loop {}", file.display())));
        let ended = pipeline::take(&file, &|| self.gold_probe(&sft), self.global, self.ui)?;
        self.note_steps(&ended);
        let (Some(reward), Some(ppo)) =
            (ended.place(Step::Reward, "model"), ended.place(Step::Policy, "model"))
        else {
            // The reward model is not accepted: there is no policy to show.
            return match ended.end {
                End::Refused(error) => Err(error),
                End::Through | End::Waiting(_) => unreachable!("a simulated panel waits for nobody"),
            };
        };
        let data = ended.place(Step::Freeze, "train").expect("a dataset has training rows");
        let mut models = vec![("sft", sft.clone()), (CANDIDATE, ppo)];
        if !over_optimise {
            let data = data.strip_prefix(self.dir).unwrap_or(&data).to_string_lossy().into_owned();
            models.push(("dpo", self.train("dpo", &data, "runs/sft/model", DPO, TrainVerb::Dpo)?));
        }
        self.compare(&models, &reward, ended, over_optimise)
    }

    /// A trainer's settings, those of `--set` last.
    fn with_own_sets(&self, stage: &str, sets: &[(&str, &str)]) -> Sets {
        let mut all =
            vec![("seed".to_owned(), self.seed.to_string()), ("save_steps".to_owned(), "0".to_owned())];
        let own = self
            .sets
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(stage)?.strip_prefix('.')?, value.as_str())));
        for (key, value) in sets.iter().copied().chain(own) {
            all.retain(|(known, _)| known != key);
            all.push((key.to_owned(), value.to_owned()));
        }
        all
    }

    /// Trains as the verb does, into `runs/NAME`; returns the model's place.
    fn train(
        &mut self,
        name: &'static str,
        data: &str,
        model: &str,
        sets: &[(&str, &str)],
        verb: fn(TrainArgs) -> TrainVerb,
    ) -> CommandResult<PathBuf> {
        let run = format!("runs/{name}");
        let args = TrainArgs {
            model: self.dir.join(model),
            data: self.dir.join(data),
            eval_data: None,
            out: self.dir.join(&run),
            config: None,
            sets: self.with_own_sets(name, sets),
            resume: false,
        };
        let verb = verb(args);
        let what = format!("polity train {} on {data}", verb.name());
        self.ui.note(&self.ui.bold(&format!("{name}: {what}")));
        let began = Instant::now();
        let trained = train::train(&verb, self.global, self.ui).map_err(|mut error| {
            if error.kind == Kind::Interrupted {
                error.hints = vec!["remove the directory and run the demo again".to_owned()];
            }
            error
        })?;
        self.stage(name, what, began.elapsed().as_secs_f64(), Some(run));
        Ok(trained.model)
    }

    fn stage(&mut self, name: &str, what: String, time_s: f64, run: Option<String>) {
        self.ui.note(&format!("      done ({})", duration(time_s)));
        self.stages.push(StageDone { name: name.to_owned(), what, time_s, run });
    }

    /// The loop's steps among the stages.
    fn note_steps(&mut self, ended: &Ended) {
        self.stages.extend(ended.done.values().map(|record| StageDone {
            name: record.step.name().to_owned(),
            what: pipeline::in_short(&record.said),
            time_s: record.seconds,
            run: record.said["run"].as_str().map(str::to_owned),
        }));
    }

    /// Validation prompts, judged by the world while PPO runs: for the curves and the alarm, not for the trainer.
    fn gold_probe(&self, sft: &Path) -> CommandResult<GoldProbe<'static>> {
        let model = Model::load(sft)?;
        let prompts = self.world.prompts(Split::Validation, GOLD_PROMPTS);
        let ids = prompts.iter().map(|prompt| encode(&model, prompt)).collect::<CommandResult<_>>()?;
        let (world, tokenizer) = (self.world.clone(), model.tokenizer()?.clone());
        let judge = move |prompt: usize, response: &[u32], ended: bool| {
            let text = tokenizer.decode(response, true).unwrap_or_default();
            world.gold(&prompts[prompt], Response { text: &text, ended }).total
        };
        Ok(GoldProbe { prompts: ids, judge: Box::new(judge) })
    }

    /// Judges all models on held-out prompts, writes the summary and the report, and prints the table.
    fn compare(
        &mut self,
        models: &[(&'static str, PathBuf)],
        reward: &Path,
        ended: Ended,
        over_optimise: bool,
    ) -> CommandResult {
        self.ui.note(&self.ui.bold("the truth: gold utility on held-out prompts"));
        let began = Instant::now();
        let prompts: Vec<Prompt> = self.held_out.iter().take(files::MEASURED).cloned().collect();
        let threads = self.global.threads();
        let mut judged = judge::judge_all(&self.world, &prompts, self.seed, models, reward, threads)?;
        for (model, (_, place)) in judged.iter_mut().zip(models) {
            model.alarms = alarms(run_of(place))?;
        }
        let what = format!("{} models answer {} held-out prompts", judged.len(), prompts.len());
        self.stage("comparison", what, began.elapsed().as_secs_f64(), None);

        let page = DemoReport {
            dir: self.dir,
            world: &self.world,
            over_optimise,
            stages: &self.stages,
            panel: report::tallies(self.dir, &self.world, &ended)?,
            prompts: &prompts,
            judged: &judged,
            reward: run_of(reward),
            pairs: ended.place(Step::Freeze, "validation"),
            ppo: run_of(&models[1].1),
            ending: &Ending::of(ended)?,
        };
        let of = |model: &Judged| json!({"measures": model.measures, "alarms": model.alarms});
        let said: serde_json::Map<String, serde_json::Value> =
            judged.iter().map(|model| (model.name.into(), of(model))).collect();
        let summary = json!({"seed": self.seed, "models": said, "gate": page.ending});
        let text = serde_json::to_string_pretty(&summary).expect("numbers and names");
        files::write(self.dir, "summary.json", &text)?;
        files::write(self.dir, names::REPORT, &page.html()?)?;
        if self.ui.json() {
            return json_to_stdout(&summary);
        }
        to_stdout(|out| {
            use std::io::Write;
            writeln!(out)?;
            out.write_all(closing_table(&judged).as_bytes())?;
            out.write_all(page.ending.line().as_bytes())
        })?;
        self.ui.note(&self.more(page.ending));
        Ok(())
    }

    /// Where to look next.
    fn more(&self, ending: &Ending) -> String {
        let dir = self.dir.display();
        let mut text = format!("\ncurves, panel and responses: {dir}/{}\n", names::REPORT);
        if let Some(release) = &ending.release {
            text += &format!("from the release to the votes: polity lineage {release} --project {dir}\n");
        }
        text + &format!("with other settings: edit {dir}/{LOOP}, polity loop {dir}/{LOOP}")
    }
}

/// The run that a model is in.
fn run_of(model: &Path) -> &Path {
    model.parent().expect("a run's model is in it")
}

/// Names of the alarms that a run raised, in order.
fn alarms(run: &Path) -> CommandResult<Vec<String>> {
    let run = RunData::read(run)?;
    Ok(run.alarms.iter().filter(|alarm| alarm.raised).map(|alarm| alarm.alarm.to_string()).collect())
}

/// Pretraining.
const BASE: &[(&str, &str)] = &[
    ("learning_rate", "3e-3"),
    ("adam_beta2", "0.98"),
    ("lr_scheduler_type", "cosine"),
    ("warmup_steps", "20"),
    ("per_device_train_batch_size", "16"),
    ("num_train_epochs", "2"),
    ("max_length", "128"),
    ("logging_steps", "500"),
];

/// Supervised fine-tuning.
const SFT: &[(&str, &str)] = &[
    ("assistant_only_loss", "true"),
    ("learning_rate", "2e-3"),
    ("adam_beta2", "0.98"),
    ("lr_scheduler_type", "cosine"),
    ("warmup_steps", "10"),
    ("per_device_train_batch_size", "16"),
    ("num_train_epochs", "2"),
    ("max_length", "128"),
    ("logging_steps", "200"),
];

/// The reward model.
const REWARD: &[(&str, &str)] = &[
    ("learning_rate", "1e-3"),
    ("lr_scheduler_type", "cosine"),
    ("per_device_train_batch_size", "32"),
    ("num_train_epochs", "2"),
    ("max_length", "128"),
    ("center_rewards_coefficient", "0.01"),
    ("logging_steps", "100"),
];

/// The policy.
const PPO: &[(&str, &str)] = &[
    ("critic_learning_rate", "1e-3"),
    ("response_length", "32"),
    ("temperature", "1.0"),
    ("num_ppo_epochs", "2"),
    ("num_mini_batches", "2"),
    ("max_length", "128"),
    ("eval_steps", "10"),
    ("logging_steps", "20"),
];

/// Under a KL leash.
const LEASH: &[(&str, &str)] = &[
    ("kl_coef", "0.12"),
    ("missing_eos_penalty", "1.0"),
    ("learning_rate", "4e-4"),
    ("lr_scheduler_type", "linear"),
    ("per_device_train_batch_size", "96"),
    ("max_steps", "110"),
];

/// Without one: it goes where the reward model errs.
const WITHOUT_LEASH: &[(&str, &str)] = &[
    ("kl_coef", "0.0"),
    ("missing_eos", "none"),
    ("learning_rate", "1e-3"),
    ("lr_scheduler_type", "constant"),
    ("per_device_train_batch_size", "64"),
    ("max_steps", "120"),
];

/// On the pairs, without a reward model.
const DPO: &[(&str, &str)] = &[
    ("learning_rate", "2e-4"),
    ("lr_scheduler_type", "cosine"),
    ("per_device_train_batch_size", "32"),
    ("num_train_epochs", "1"),
    ("max_length", "128"),
    ("loss_type", "cdpo"),
    ("beta", "0.5"),
    ("logging_steps", "100"),
];
