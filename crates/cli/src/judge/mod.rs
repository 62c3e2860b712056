//! `polity panel judge`: a model behind an OpenAI-compatible endpoint as an annotator.
//!
//! Every comparison that this judge has not judged under the current rubric is asked in both orders (`question`), through a client that
//! retries, keeps replies and minds a budget (`client`). A comparison whose reply cannot be read, or whose question the endpoint refuses
//! (too long, say), is left out and counted; a reply is kept either way, so the same command asks only what has no reply yet.
//!
//! Workers take comparisons from one list, ask, and store each vote as soon as it is there: whatever ends the run loses at most
//! what is in hand, and not the replies to it.
//!
//! Not here: what the votes are worth (`polity agreement --machine-votes` shows them beside people's).

pub mod client;
pub mod question;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use polity_rows::Text;
use polity_store::{AnnotatorKind, ComparisonTexts, Content, MachineVote, RubricVersion};
use serde::Serialize;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::host::Interrupts;
use crate::output::json_to_stdout;
use crate::project::Project;
use crate::project_args::JudgeArgs;
use crate::ui::{Ui, Work, plural};
use client::{AskError, Client, Endpoint};
use question::Verdict;

/// Where replies are kept, in the project's directory.
const CACHE_FILE: &str = "judge-replies.jsonl";
/// The environment's name of the endpoint's key.
const KEY_VARIABLE: &str = "POLITY_JUDGE_API_KEY";
/// The first wait before a question is asked again; doubled for each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Questions refused one after another before it is the settings that must be wrong.
const REFUSALS_MAX: u32 = 5;

/// What a run came to.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    judge: String,
    rubric_version: i64,
    /// Comparisons that have a verdict now.
    pub judged: usize,
    /// Verdicts that named the same winner, or none, in both orders.
    consistent: usize,
    /// Verdicts for neither response.
    ties: usize,
    /// Comparisons without a verdict: replies that could not be read, questions refused.
    pub left_out: usize,
    requests: u64,
    tokens: u64,
    /// Why it stopped before the end.
    pub stopped: Option<String>,
}

/// Why a comparison has no verdict.
enum Trouble {
    /// It is this comparison's.
    LeftOut(String),
    /// The endpoint refused the question.
    Refused(AskError),
    /// The budget is used up.
    Budget(String),
    /// Nothing more can be done.
    Fatal(CommandError),
}

impl From<CommandError> for Trouble {
    fn from(error: CommandError) -> Self {
        Trouble::Fatal(error)
    }
}

impl From<AskError> for Trouble {
    fn from(error: AskError) -> Self {
        match error {
            AskError::Budget { .. } => Trouble::Budget(error.to_string()),
            AskError::Refused { status: 400 | 413 | 422, .. } => Trouble::Refused(error),
            _ => Trouble::Fatal(failed(error)),
        }
    }
}

/// An endpoint's failure, and what to do about it.
pub fn failed(error: AskError) -> CommandError {
    let hint = match &error {
        AskError::Refused { status: 401 | 403, .. } => format!("the key is read from {KEY_VARIABLE}"),
        _ => "votes and replies so far are kept: the same command goes on where it stopped".to_owned(),
    };
    CommandError::failed(error).hint(hint)
}

/// Runs the verb.
pub fn run(args: &JudgeArgs, global: &Global, ui: &Ui) -> CommandResult {
    let endpoint = endpoint_of(args)?;
    let project = Project::open(&args.project)?;
    let (mut summary, failed) = ask(&project, endpoint, args, ui)?;
    if !global.json {
        tell(&summary, ui);
        return failed.map_or(Ok(()), Err);
    }
    if let Some(error) = &failed {
        summary.stopped = Some(error.to_string());
    }
    json_to_stdout(&summary)?;
    failed.map_or(Ok(()), Err)
}

/// Has the judge vote on whatever it has not judged, and says what came of it.
pub fn judge(project: &Project, args: &JudgeArgs, ui: &Ui) -> CommandResult<Summary> {
    let (summary, failed) = ask(project, endpoint_of(args)?, args, ui)?;
    tell(&summary, ui);
    failed.map_or(Ok(summary), Err)
}

fn endpoint_of(args: &JudgeArgs) -> CommandResult<Endpoint> {
    let timeout = Duration::from_secs(args.timeout);
    endpoint(&args.endpoint, &args.model, &args.sets, args.tries, timeout, args.budget)
}

fn ask(
    project: &Project,
    endpoint: Endpoint,
    args: &JudgeArgs,
    ui: &Ui,
) -> CommandResult<(Summary, Option<CommandError>)> {
    let client = Client::new(endpoint, &project.dir().join(CACHE_FILE))?;
    let store = project.store();
    let judge = format!("judge:{}", args.name.as_ref().unwrap_or(&args.model));
    project.wait(store.add_annotator(&judge, &judge, AnnotatorKind::Machine, unix_ms()))?;
    let rubric = project.wait(store.current_rubric())?;
    let limit = if args.comparisons == 0 { i64::MAX } else { i64::from(args.comparisons) };
    let ids = project.wait(store.unjudged(&judge, rubric.version, limit))?;
    let summary = Summary { judge, rubric_version: rubric.version, ..Summary::default() };
    let interrupts = Interrupts::install(ui, "stopping after the comparisons in hand; again stops at once")?;
    let bench = Bench {
        client: &client,
        project,
        rubric: &rubric,
        origin: format!("judge {}", args.model),
        ids: &ids,
        started: Instant::now(),
        interrupts,
        ui,
        state: Mutex::new(State { summary, ..State::default() }),
    };
    std::thread::scope(|scope| {
        for _ in 0..args.parallel.min(ids.len()) {
            scope.spawn(|| bench.work());
        }
    });
    let State { mut summary, refused, failed: fatal, .. } =
        bench.state.into_inner().expect("no worker panics");
    let failed = fatal.or_else(|| refused.filter(|_| summary.judged == 0).map(failed));
    ui.end_progress();
    project.wait(store.seal_votes(project.actor(), unix_ms()))?;
    (summary.requests, summary.tokens) = (client.requests(), client.spent_tokens());
    Ok((summary, failed))
}

/// Where a judge is asked. Its key is read from the environment.
pub fn endpoint(
    url: &str,
    model: &str,
    sets: &[(String, String)],
    tries: u32,
    timeout: Duration,
    budget: u64,
) -> CommandResult<Endpoint> {
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(CommandError::bad_input(format!(
            "the judge's endpoint {url}: expected http:// or https://, up to and with /v1"
        )));
    }
    let key = std::env::var(KEY_VARIABLE).ok().map(|key| key.trim().to_owned());
    Ok(Endpoint {
        url: url.trim_end_matches('/').to_owned(),
        model: model.to_owned(),
        key: key.filter(|key| !key.is_empty()),
        fields: sets.iter().map(|(key, value)| (key.clone(), field(value))).collect(),
        tries,
        timeout,
        wait: FIRST_WAIT,
        budget_tokens: (budget > 0).then_some(budget),
    })
}

/// A field of the request: JSON, or else a text.
fn field(value: &str) -> serde_json::Value {
    serde_json::from_str(value).unwrap_or_else(|_| value.into())
}

/// What the workers share.
struct Bench<'b> {
    client: &'b Client,
    project: &'b Project,
    rubric: &'b RubricVersion,
    origin: String,
    ids: &'b [String],
    started: Instant,
    interrupts: Interrupts,
    ui: &'b Ui,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    summary: Summary,
    taken: usize,
    /// Questions refused since the last one that was not.
    refusals: u32,
    refused: Option<AskError>,
    failed: Option<CommandError>,
}

impl Bench<'_> {
    /// Judges until nothing is left or there is a reason to stop.
    fn work(&self) {
        while let Some(id) = self.take() {
            let found = self.judge(id);
            self.note(id, found);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no worker panics with the lock")
    }

    fn take(&self) -> Option<&str> {
        let mut state = self.state();
        if self.interrupts.requested() && state.failed.is_none() {
            let error = CommandError::interrupted("stopped before the end");
            state.failed = Some(error.hint("votes and replies so far are kept: the same command goes on"));
        }
        if state.summary.stopped.is_some() || state.failed.is_some() {
            return None;
        }
        let id = self.ids.get(state.taken)?;
        state.taken += 1;
        Some(id)
    }

    /// Asks in both orders and stores the vote. Returns the verdict, and whether both orders named the same winner.
    fn judge(&self, id: &str) -> Result<(Verdict, bool), Trouble> {
        let store = self.project.store();
        let ComparisonTexts { prompt, a, b, .. } = self.project.wait(store.comparison(id))?;
        let [prompt, a, b] = [prompt.content, a.content, b.content].map(|content| spoken(&content));
        let ask = |first: &str, second: &str| {
            let reply = self.client.ask(&question::messages(&self.rubric.rubric, &prompt, first, second))?;
            question::parse(&reply, &self.rubric.rubric)
                .map_err(|found| Trouble::LeftOut(format!("the judge's reply has {found}")))
        };
        let (verdict, consistent) = question::combine(&ask(&a, &b)?, &ask(&b, &a)?);
        let vote = MachineVote {
            annotator_id: self.state().summary.judge.clone(),
            comparison_id: id.to_owned(),
            overall: verdict.overall,
            axes: verdict.axes.clone(),
            reason: verdict.reason.clone(),
            rubric_version: self.rubric.version,
            origin: self.origin.clone(),
        };
        self.project.wait(store.machine_vote(vote, unix_ms()))?;
        Ok((verdict, consistent))
    }

    fn note(&self, id: &str, found: Result<(Verdict, bool), Trouble>) {
        let mut state = self.state();
        match found {
            Ok((verdict, consistent)) => {
                state.refusals = 0;
                state.summary.judged += 1;
                state.summary.consistent += usize::from(consistent);
                state.summary.ties += usize::from(verdict.overall.grade() == Some(0));
            }
            Err(Trouble::LeftOut(why)) => {
                state.refusals = 0;
                state.summary.left_out += 1;
                self.ui.warn(&format!("comparison {id}: {why}"));
            }
            Err(Trouble::Refused(error)) => {
                state.refusals += 1;
                state.summary.left_out += 1;
                self.ui.warn(&format!("comparison {id}: {error}"));
                if state.refusals >= REFUSALS_MAX {
                    state.failed.get_or_insert_with(|| failed(error));
                } else {
                    state.refused = Some(error);
                }
            }
            Err(Trouble::Budget(why)) => drop(state.summary.stopped.get_or_insert(why)),
            Err(Trouble::Fatal(error)) => drop(state.failed.get_or_insert(error)),
        }
        let done = state.summary.judged + state.summary.left_out;
        drop(state);
        self.show(done);
    }

    fn show(&self, done: usize) {
        let rate = (done > 0).then(|| done as f64 / self.started.elapsed().as_secs_f64());
        self.ui.progress(&Work {
            label: "judging",
            done: done as u64,
            total: self.ids.len() as u64,
            unit: "comparison",
            rate_per_s: rate,
            remaining_s: rate.map(|rate| (self.ids.len() - done) as f64 / rate),
        });
    }
}

fn tell(summary: &Summary, ui: &Ui) {
    let Summary { judge, judged, consistent, ties, left_out, requests, tokens, stopped, rubric_version } =
        summary;
    ui.note(&format!(
        "{judge}, rubric {rubric_version}: {} judged, {consistent} the same in both orders, {ties} ties; {}, {tokens} tokens",
        counted(*judged as u64, "comparison"),
        counted(*requests, "request"),
    ));
    if *left_out > 0 {
        ui.warn(&format!("{} left out", counted(*left_out as u64, "comparison")));
    }
    if let Some(why) = stopped {
        ui.warn(&format!("stopped: {why}"));
    }
}

/// `3 requests`.
fn counted(count: u64, unit: &str) -> String {
    format!("{count} {}", plural(unit, count))
}

/// A text as a judge reads it: messages with who speaks.
fn spoken(content: &Content) -> String {
    match content {
        Content::Text(Text::Plain(text)) => text.clone(),
        Content::Text(Text::Messages(messages)) => {
            let lines = messages.iter().map(|message| format!("[{}] {}", message.role, message.content));
            lines.collect::<Vec<_>>().join("\n\n")
        }
        Content::Reference { .. } => unreachable!("comparisons without texts are not handed to judges"),
    }
}
