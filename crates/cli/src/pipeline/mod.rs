//! `polity loop`: from prompts to a release by one file, as far as it goes.
//!
//! Takes the steps in order, skips those whose record still holds, and stops where people must act or a gate says no. Each step calls the
//! function of its verb, so that it leaves what the verb leaves, in the ledger too.
//!
//! Reading order: `file` (what is to be done), `record` (what is done), `steps` (doing it), `refine` (what to do after a no).
//! docs/loop.md has the formats, and what makes a step undone.

mod file;
mod record;
mod refine;
mod steps;

use std::collections::BTreeMap;
use std::io::Write;

use polity_eval::gate::Verdict;
use polity_rows::FileLock;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::Global;
use crate::clock::now_utc;
use crate::error::{CommandError, CommandResult, Kind};
use crate::gate;
use crate::init;
use crate::loop_args::LoopArgs;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::{PROJECT_FILE, Project};
use crate::project_args::{InProject, InitArgs};
use crate::ui::Ui;
use file::Pipeline;
pub use record::Step;
use record::{Plan, Record, Records};

/// A loop at work.
struct Loop<'l> {
    pipeline: &'l Pipeline,
    project: &'l Project,
    records: Records,
    global: &'l Global,
    ui: &'l Ui,
    /// Steps that are done.
    done: BTreeMap<Step, Record>,
}

/// How a step ended.
enum Outcome {
    /// It is done: outputs, and what it came to.
    Done(Vec<record::Output>, Value),
    /// People must act first.
    Waiting(String),
}

/// A step, for `--status`.
#[derive(Debug, Serialize)]
struct State<'l> {
    step: Step,
    /// `done`, `changed` (its settings or inputs, or what it made) or `open`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'l str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    said: Option<&'l Value>,
}

/// Runs the verb.
pub fn run(args: &LoopArgs, global: &Global, ui: &Ui) -> CommandResult {
    let pipeline = Pipeline::read(&args.file)?;
    if let Some(step) = args.until
        && !pipeline.steps().any(|known| known == step)
    {
        let known: Vec<&str> = pipeline.steps().map(Step::name).collect();
        let text = format!("--until {}: {} has no such step", step.name(), args.file.display());
        return Err(CommandError::bad_input(text).hint(format!("its steps are {}", known.join(", "))));
    }
    let dir = &pipeline.project.dir;
    let there = dir.join(PROJECT_FILE).is_file();
    if args.status && !there {
        return Err(CommandError::bad_input(format!("{}: no project yet", dir.display()))
            .hint("polity loop FILE makes it"));
    }
    if !there {
        let name = init::init(&InitArgs {
            dir: dir.clone(),
            name: None,
            store: "store.db".to_owned(),
            validation: pipeline.project.validation,
            holdout: pipeline.project.holdout,
            overlap: pipeline.project.overlap,
            seed: Some(pipeline.seed),
        })?;
        ui.note(&format!("project {name} in {}", dir.display()));
    }
    let project = Project::open(&InProject { project: Some(dir.clone()) })?;
    let records = Records::of(project.dir(), &pipeline.name);
    let mut state =
        Loop { pipeline: &pipeline, project: &project, records, global, ui, done: BTreeMap::new() };
    if args.status { state.status() } else { state.go(args.until) }
}

impl Loop<'_> {
    /// Takes the steps.
    fn go(&mut self, until: Option<Step>) -> CommandResult {
        let _lock = self.lock()?;
        for step in self.pipeline.steps() {
            let plan = self.plan(step)?;
            if let Some(record) = self.known(&plan)? {
                self.ui.note(&format!("{}: done", step.name()));
                self.done.insert(step, record);
            } else if let Some(why) = self.take(plan)? {
                return self.say(Some(&why));
            }
            if matches!(step, Step::Accept | Step::Gate) {
                self.judged(step)?;
            }
            if until == Some(step) {
                break;
            }
        }
        self.say(None)
    }

    /// Does a step and records it; the reason if it must wait.
    fn take(&mut self, plan: Plan) -> CommandResult<Option<String>> {
        let name = plan.step.name();
        self.ui.note(&format!("{name}: begins"));
        let outcome = self.do_step(&plan).map_err(|mut error| {
            if error.kind == Kind::Interrupted {
                error.hints = vec!["the same command goes on".to_owned()];
            }
            error
        })?;
        match outcome {
            Outcome::Waiting(why) => Ok(Some(why)),
            Outcome::Done(outputs, said) => {
                let Plan { step, settings, inputs, key } = plan;
                let record = Record { step, key, settings, inputs, outputs, said, finished: now_utc() };
                self.records.write(&record)?;
                self.done.insert(step, record);
                Ok(None)
            }
        }
    }

    /// The record of a plan that is done, if what it made is still that.
    fn known(&self, plan: &Plan) -> CommandResult<Option<Record>> {
        let record = self.records.read(plan.step)?.filter(|record| record.key == plan.key);
        let Some(record) = record else { return Ok(None) };
        if let Some(broken) = record.broken(self.project.dir())? {
            let place = broken.place.as_deref().unwrap_or_default();
            self.ui.warn(&format!("{}: {place} is gone or not what it was", plan.step.name()));
            return Ok(None);
        }
        Ok(Some(record))
    }

    /// The end, if a verdict is no pass: with what to refine.
    fn judged(&self, step: Step) -> CommandResult {
        let said = self.done[&step].said.clone();
        let verdict: Verdict = serde_json::from_value(said).map_err(CommandError::failed)?;
        let Err(error) = gate::exit(&verdict) else { return Ok(()) };
        let page = refine::write(self, &verdict)?;
        let CommandError { kind, hints, .. } = error;
        let of = if step == Step::Accept { "the reward model" } else { "the candidate" };
        let text = format!("{of} is not passed: the gate's verdict is {}", verdict.verdict.name());
        let error = hints.into_iter().fold(CommandError::verdict(kind, &text), CommandError::hint);
        Err(error.hint(format!("what to refine is in {}", page.display())))
    }

    /// One process at a time: the lock is the operating system's, so it dies with its process.
    fn lock(&self) -> CommandResult<FileLock> {
        let dir = self.records.dir();
        std::fs::create_dir_all(dir)
            .map_err(|error| CommandError::failed(format!("cannot make {}: {error}", dir.display())))?;
        let path = dir.join(".lock");
        let lock = FileLock::take(&path)
            .map_err(|error| CommandError::failed(format!("cannot create {}: {error}", path.display())))?;
        lock.ok_or_else(|| {
            CommandError::failed(format!("{}: another process works on this loop", dir.display()))
                .hint("wait until it has ended")
        })
    }

    /// Says how far it is.
    fn say(&self, waiting: Option<&str>) -> CommandResult {
        let release = self.done.get(&Step::Release).map(|record| &record.said);
        if self.global.json {
            let steps: Vec<State<'_>> = self.done.values().map(|record| State::of(record, "done")).collect();
            return json_to_stdout(&json!({
                "loop": self.pipeline.name, "steps": steps, "waiting": waiting, "release": release,
            }));
        }
        let text = match (waiting, release) {
            (Some(why), _) => format!("waiting: {why}"),
            (None, Some(said)) => {
                let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
                format!("{} is released to {}", text("release"), text("channel"))
            }
            (None, None) => match self.done.keys().next_back() {
                Some(last) => format!("done up to {}", last.name()),
                None => "nothing is done".to_owned(),
            },
        };
        to_stdout(|out| writeln!(out, "{text}"))
    }

    /// Says which steps are done.
    fn status(&mut self) -> CommandResult {
        let mut records: BTreeMap<Step, (Option<Record>, &'static str)> = BTreeMap::new();
        let mut open = false;
        for step in self.pipeline.steps() {
            let record = self.records.read(step)?;
            // What a step behind an open one would read is not known yet.
            let done = !open && {
                let plan = self.plan(step)?;
                self.known(&plan)?.map(|record| self.done.insert(step, record)).is_some()
            };
            open |= !done;
            let state = match (&record, done) {
                (_, true) => "done",
                (Some(_), false) => "changed",
                (None, false) => "open",
            };
            records.insert(step, (record, state));
        }
        let states = records.iter().map(|(step, (record, state))| match record {
            Some(record) => State::of(record, state),
            None => State { step: *step, state, key: None, said: None },
        });
        let states: Vec<State<'_>> = states.collect();
        if self.global.json {
            return json_to_stdout(&json!({"loop": self.pipeline.name, "steps": states}));
        }
        to_stdout(|out| {
            states.iter().try_for_each(|state| {
                let said = state.said.map(steps::in_short).unwrap_or_default();
                writeln!(out, "{}", format!("{:9} {:8} {said}", state.step.name(), state.state).trim_end())
            })
        })
    }
}

impl<'l> State<'l> {
    fn of(record: &'l Record, state: &'static str) -> Self {
        State { step: record.step, state, key: Some(&record.key), said: Some(&record.said) }
    }
}
