//! `polity loop`: from prompts to a release by one file, as far as it goes.
//!
//! Takes the steps in order, skips those whose record still holds, and stops where people must act or a gate says no. Each step calls the
//! function of its verb, so that it leaves what the verb leaves, in the ledger too.
//!
//! Reading order: `file` (what is to be done), `record` (what is done), `steps` and `judging` (doing it), `refine` (what to do after a no).
//! docs/loop.md has the formats, and what makes a step undone.

mod file;
mod judging;
mod record;
mod refine;
mod steps;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use polity_eval::gate::Verdict;
use polity_rows::FileLock;
use polity_train::ppo::GoldProbe;
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
use crate::ui::{Ui, duration};
pub use file::Pipeline;
use record::{Plan, Records};
pub use record::{Record, Step};
pub use steps::in_short;

/// Makes what watches PPO with the worth of its responses, where somebody knows it; no step reads what it sees.
pub type Gold<'g> = &'g dyn Fn() -> CommandResult<GoldProbe<'static>>;

/// A loop at work.
struct Loop<'l> {
    pipeline: &'l Pipeline,
    project: &'l Project,
    records: Records,
    gold: Option<Gold<'l>>,
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

/// How far a loop came.
pub struct Ended {
    dir: PathBuf,
    /// Steps that are done.
    pub done: BTreeMap<Step, Record>,
    /// Why it ended there.
    pub end: End,
}

/// Why a loop ended.
pub enum End {
    /// There was nothing more to do.
    Through,
    /// People must act first: who, and how.
    Waiting(String),
    /// A gate does not let it pass.
    Refused(CommandError),
}

impl Ended {
    /// Where a step's output is, if it was made and has a place.
    pub fn place(&self, step: Step, output: &str) -> Option<PathBuf> {
        let place = self.done.get(&step)?.find(output)?.place.as_deref()?;
        Some(self.dir.join(place))
    }
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
    if args.status && !pipeline.project.dir.join(PROJECT_FILE).is_file() {
        return Err(CommandError::bad_input(format!("{}: no project yet", pipeline.project.dir.display()))
            .hint("polity loop FILE makes it"));
    }
    let project = project_of(&pipeline, ui)?;
    let mut state = Loop::of(&pipeline, &project, None, global, ui);
    if args.status {
        return state.status();
    }
    let end = state.go(args.until)?;
    if let End::Refused(error) = end {
        return Err(error);
    }
    state.say(&end)
}

/// Takes the steps of a pipeline's file, and says nothing on stdout.
pub fn take(file: &Path, gold: Gold<'_>, global: &Global, ui: &Ui) -> CommandResult<Ended> {
    let pipeline = Pipeline::read(file)?;
    let project = project_of(&pipeline, ui)?;
    let mut state = Loop::of(&pipeline, &project, Some(gold), global, ui);
    let end = state.go(None)?;
    Ok(Ended { done: state.done, end, dir: project.dir().to_owned() })
}

/// The project, made if it is not there.
fn project_of(pipeline: &Pipeline, ui: &Ui) -> CommandResult<Project> {
    let dir = &pipeline.project.dir;
    if !dir.join(PROJECT_FILE).is_file() {
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
    Project::open(&InProject { project: Some(dir.clone()) })
}

impl<'l> Loop<'l> {
    fn of(
        pipeline: &'l Pipeline,
        project: &'l Project,
        gold: Option<Gold<'l>>,
        global: &'l Global,
        ui: &'l Ui,
    ) -> Loop<'l> {
        let records = Records::of(project.dir(), &pipeline.name);
        Loop { pipeline, project, records, gold, global, ui, done: BTreeMap::new() }
    }
}

impl Loop<'_> {
    /// Takes the steps.
    fn go(&mut self, until: Option<Step>) -> CommandResult<End> {
        let _lock = self.lock()?;
        let steps: Vec<Step> = self.pipeline.steps().collect();
        for (i, &step) in steps.iter().enumerate() {
            let place = format!("{:>2}/{} {}", i + 1, steps.len(), step.name());
            let plan = self.plan(step)?;
            if let Some(record) = self.known(&plan)? {
                self.ui.note(&format!("{place}: done before"));
                self.done.insert(step, record);
            } else {
                self.ui.note(&self.ui.bold(&place));
                if let Some(why) = self.take(plan)? {
                    return Ok(End::Waiting(why));
                }
                let Record { said, seconds, .. } = &self.done[&step];
                self.ui.note(&format!("      {} ({})", steps::in_short(said), duration(*seconds)));
            }
            if matches!(step, Step::Accept | Step::Gate)
                && let Some(refused) = self.refused(step)?
            {
                return Ok(End::Refused(refused));
            }
            if until == Some(step) {
                break;
            }
        }
        Ok(End::Through)
    }

    /// Does a step and records it; the reason if it must wait.
    fn take(&mut self, plan: Plan) -> CommandResult<Option<String>> {
        let began = Instant::now();
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
                let seconds = began.elapsed().as_secs_f64();
                let record =
                    Record { step, key, settings, inputs, outputs, said, finished: now_utc(), seconds };
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
    fn refused(&self, step: Step) -> CommandResult<Option<CommandError>> {
        let said = self.done[&step].said.clone();
        let verdict: Verdict = serde_json::from_value(said).map_err(CommandError::failed)?;
        let Err(error) = gate::exit(&verdict) else { return Ok(None) };
        let page = refine::write(self, &verdict)?;
        let CommandError { kind, hints, .. } = error;
        let of = if step == Step::Accept { "the reward model" } else { "the candidate" };
        let text = format!("{of} is not passed: the gate's verdict is {}", verdict.verdict.name());
        let error = hints.into_iter().fold(CommandError::verdict(kind, &text), CommandError::hint);
        Ok(Some(error.hint(format!("what to refine is in {}", page.display()))))
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
    fn say(&self, end: &End) -> CommandResult {
        let waiting = match end {
            End::Waiting(why) => Some(why),
            End::Through | End::Refused(_) => None,
        };
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
