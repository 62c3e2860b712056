//! Who prefers the candidate's responses to the baseline's: a reward model, or a model behind an endpoint.
//!
//! The `i`th response of one model is compared with the `i`th of the other to the same prompt.
//!
//! - **A reward model** scores both as text, through its own tokenizer and chat template: 1 if the candidate's reward is higher, ½ if they are
//!   equal. A response without a token counts as its end-of-text token alone.
//! - **An endpoint** is asked in both orders by the rubric (`judge::question`); an answer that changes with the order is a tie. A comparison whose reply
//!   cannot be read is left out and counted. Replies are kept beside the evaluations.
//!
//! Lengths are the responses' characters, which two tokenizers agree on.
//!
//! Not here: people (`people`); what win rates are made of (`eval::preferred`).

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use polity_eval::Suite;
use polity_eval::preferred::Judged;
use polity_store::{Answer, Rubric, Side};
use polity_train::run::Input;
use polity_train::settings::Precision;
use serde_json::json;

use super::respond::{Responses, asked, lines};
use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::eval_args::EvalArgs;
use crate::host::Interrupts;
use crate::input;
use crate::judge::{self, client, question};
use crate::measure::scores;
use crate::model::Loaded;
use crate::project::Project;
use crate::ui::{Ui, Work, plural};

/// Comparisons that an endpoint is asked at once.
const PARALLEL: usize = 4;
/// Tries of a question that fails for a while.
const TRIES: u32 = 5;
/// Seconds to wait for a reply.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Where an endpoint's replies are kept, beside the evaluations.
const REPLIES_FILE: &str = "judge-replies.cache";

/// A reward model that judges.
pub struct RewardModel {
    loaded: Loaded,
    hash: String,
    chats: bool,
}

/// Its judgement.
pub struct Rewarded {
    /// Comparisons.
    pub judged: Vec<Judged>,
    /// The candidate's rewards, by row.
    pub rewards: Vec<(usize, f64)>,
}

impl RewardModel {
    /// Loads it.
    pub fn open(dir: &Path, global: &Global) -> CommandResult<RewardModel> {
        let mut loaded = Loaded::reward_model(dir, global)?;
        loaded.multiply_in(Precision::Auto);
        let hash = Input::hash("reward_model", dir)?.blake3;
        let chats = loaded.template()?.is_some();
        Ok(RewardModel { loaded, hash, chats })
    }

    /// Its hash.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Scores both models' responses.
    pub fn judge(
        &self,
        suite: &Suite,
        ours: &Responses,
        theirs: &Responses,
        ui: &Ui,
    ) -> CommandResult<Rewarded> {
        let our_rewards = rewards(&self.loaded, self.chats, suite, ours, ui)?;
        let their_rewards = rewards(&self.loaded, self.chats, suite, theirs, ui)?;
        let mut judged = Vec::new();
        for (our, their) in pairs(ours, theirs) {
            let (a, b) = (our_rewards[our], their_rewards[their]);
            let score = if a > b { 1.0 } else { f64::from(a == b) / 2.0 };
            judged.push(compared(ours, theirs, our, their, score));
        }
        let rewards = ours.row_of.iter().zip(our_rewards).map(|(&row, reward)| (row, f64::from(reward)));
        Ok(Rewarded { judged, rewards: rewards.collect() })
    }
}

/// Rewards of responses, read as text.
pub fn rewards(
    loaded: &Loaded,
    chats: bool,
    suite: &Suite,
    responses: &Responses,
    ui: &Ui,
) -> CommandResult<Vec<f32>> {
    let rows = responses.rows.iter().zip(&responses.row_of).map(|(response, &row)| {
        let mut map = asked(suite, &suite.rows[row], chats);
        match map.get_mut("messages").and_then(|messages| messages.as_array_mut()) {
            Some(messages) => messages.push(json!({"role": "assistant", "content": response.text})),
            None => drop(map.insert("completion".into(), response.text.clone().into())),
        }
        map
    });
    let completions = input::completions(lines(&suite.name, rows)?, loaded, ui)?;
    scores(loaded, &completions, ui)
}

/// Which response of one model is compared with which of the other: the same sample of the same row.
fn pairs(ours: &Responses, theirs: &Responses) -> Vec<(usize, usize)> {
    let place: std::collections::HashMap<(usize, usize), usize> =
        theirs.rows.iter().enumerate().map(|(i, row)| ((theirs.row_of[i], row.sample), i)).collect();
    let pair =
        |(i, row): (usize, &super::respond::Response)| Some((i, *place.get(&(ours.row_of[i], row.sample))?));
    ours.rows.iter().enumerate().filter_map(pair).collect()
}

fn compared(ours: &Responses, theirs: &Responses, our: usize, their: usize, score: f64) -> Judged {
    Judged {
        row: ours.row_of[our],
        annotator: None,
        score,
        candidate_length: ours.rows[our].text.chars().count(),
        baseline_length: theirs.rows[their].text.chars().count(),
    }
}

/// A judge behind an endpoint.
pub struct Endpoint {
    client: client::Client,
    url: String,
    model: String,
    rubric: Rubric,
}

impl Endpoint {
    /// The one that the flags name.
    pub fn of(args: &EvalArgs) -> CommandResult<Option<Endpoint>> {
        let Some(url) = &args.judge else { return Ok(None) };
        let model = args.judge_model.clone().expect("clap asks for it");
        let rubric = match Project::open_if_any(&args.project)? {
            Some(project) => project.wait(project.store().current_rubric())?.rubric,
            None => Rubric::usual(),
        };
        let endpoint = judge::endpoint(url, &model, &args.judge_sets, TRIES, TIMEOUT, args.judge_budget)?;
        let replies: PathBuf = args.out.join(REPLIES_FILE);
        let url = endpoint.url.clone();
        Ok(Some(Endpoint { client: client::Client::new(endpoint, &replies)?, url, model, rubric }))
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its model's name there.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Hash of what it judges by.
    pub fn rubric_hash(&self) -> String {
        let rubric = serde_json::to_vec(&self.rubric).expect("texts are JSON");
        blake3::hash(&rubric).to_hex().to_string()
    }

    /// Asks about every pair of responses, in both orders.
    pub fn judge(
        &self,
        suite: &Suite,
        ours: &Responses,
        theirs: &Responses,
        ui: &Ui,
    ) -> CommandResult<Vec<Judged>> {
        let pairs = pairs(ours, theirs);
        let interrupts =
            Interrupts::install(ui, "stopping after the comparisons in hand; again stops at once")?;
        let state =
            Mutex::new(State { taken: 0, scores: vec![None; pairs.len()], left_out: 0, failed: None });
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(pairs.len()) {
                scope.spawn(|| {
                    while let Some(i) = take(&state, pairs.len(), &interrupts) {
                        let (our, their) = pairs[i];
                        let prompt = suite.asking.prompt(&suite.rows[ours.row_of[our]].values["prompt"]);
                        let verdict = self.ask(&prompt, &ours.rows[our].text, &theirs.rows[their].text);
                        note(&state, i, verdict, started, ui);
                    }
                });
            }
        });
        ui.end_progress();
        let state = state.into_inner().expect("no worker panics");
        if let Some(error) = state.failed {
            return Err(error.hint("replies so far are kept: the same command goes on where it stopped"));
        }
        if state.left_out > 0 {
            ui.warn(&format!(
                "{} {} left out: the judge's reply could not be read",
                state.left_out,
                plural("comparison", state.left_out)
            ));
        }
        let judged = pairs
            .iter()
            .zip(state.scores)
            .filter_map(|(&(our, their), score)| Some(compared(ours, theirs, our, their, score?)));
        Ok(judged.collect())
    }

    /// Score of the first response; none if a reply cannot be read.
    fn ask(&self, prompt: &str, first: &str, second: &str) -> CommandResult<Option<f64>> {
        let ask = |one: &str, other: &str| {
            let reply = self.client.ask(&question::messages(&self.rubric, prompt, one, other));
            Ok::<_, CommandError>(question::parse(&reply.map_err(judge::failed)?, &self.rubric).ok())
        };
        let (Some(one), Some(other)) = (ask(first, second)?, ask(second, first)?) else { return Ok(None) };
        Ok(Some(match question::combine(&one, &other).0.overall {
            Answer::Better { side: Side::Left, .. } => 1.0,
            Answer::Better { side: Side::Right, .. } => 0.0,
            _ => 0.5,
        }))
    }
}

struct State {
    taken: usize,
    scores: Vec<Option<f64>>,
    left_out: u64,
    failed: Option<CommandError>,
}

fn take(state: &Mutex<State>, total: usize, interrupts: &Interrupts) -> Option<usize> {
    let mut state = state.lock().expect("no worker panics with the lock");
    if interrupts.requested() {
        state.failed.get_or_insert_with(|| CommandError::interrupted("stopped before the end"));
    }
    if state.failed.is_some() || state.taken == total {
        return None;
    }
    state.taken += 1;
    Some(state.taken - 1)
}

fn note(state: &Mutex<State>, i: usize, verdict: CommandResult<Option<f64>>, started: Instant, ui: &Ui) {
    let mut state = state.lock().expect("no worker panics with the lock");
    match verdict {
        Ok(score) => {
            state.scores[i] = score;
            state.left_out += u64::from(score.is_none());
        }
        Err(error) => drop(state.failed.get_or_insert(error)),
    }
    let (done, total) = (state.taken as u64, state.scores.len() as u64);
    drop(state);
    let rate = done as f64 / started.elapsed().as_secs_f64();
    ui.progress(&Work {
        label: "judging",
        done,
        total,
        unit: "comparison",
        rate_per_s: Some(rate),
        remaining_s: Some((total - done) as f64 / rate),
    });
}
