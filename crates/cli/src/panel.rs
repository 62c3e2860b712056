//! `polity panel simulate`: annotators with known flaws vote on the project's comparisons.
//!
//! The tiny world's panel of eight (`world/panel.rs` has its model). On the world's own prompts they see the gold utility. On any other text there is no
//! truth to see, and what stands for it is
//!
//! ```text
//! gold = distinct words / words          0 for a response without words
//! ```
//!
//! so that repetition loses: enough to have something to agree on, with each annotator's flaws as they are. Their votes
//! are marked as a machine's, and count in a dataset only with `--machine-votes`.

use std::collections::{HashMap, HashSet};

use polity_stats::Stream;
use polity_store::{AnnotatorKind, Answer, Assignment, NewVote, Next, Side};
use polity_world::{Gold, Panel, Refusal, Vote, World};
use serde::Serialize;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::CommandResult;
use crate::judge;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::project_args::PanelVerb;
use crate::ui::{Ui, Work};

/// The world that `polity demo` uses, so that its prompts are known here too.
const WORLD_SEED: u64 = 42;
/// Votes between two updates of the progress.
const PROGRESS_EVERY: u64 = 50;

/// Runs the verb.
pub fn run(verb: &PanelVerb, global: &Global, ui: &Ui) -> CommandResult {
    match verb {
        PanelVerb::Simulate(args) => {
            let project = Project::open(&args.project)?;
            say(simulate(&project, args.votes, args.seed, ui)?, global)
        }
        PanelVerb::Judge(args) => judge::run(args, global, ui),
    }
}

/// What a simulated panel did.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Simulated {
    /// Votes cast.
    pub votes: u64,
    /// By how many annotators.
    pub annotators: usize,
}

fn say(simulated: Simulated, global: &Global) -> CommandResult {
    if global.json {
        return json_to_stdout(&simulated);
    }
    to_stdout(|out| {
        use std::io::Write;
        writeln!(out, "{} votes by {} simulated annotators", simulated.votes, simulated.annotators)
    })
}

/// Has the panel vote. The n-th vote of a store is the same whenever it is cast: whose turn it is and what they are shown follow from `seed` and
/// the votes before it, so a simulation that was killed goes on as if it had not been.
pub fn simulate(project: &Project, votes_max: u64, seed: u64, ui: &Ui) -> CommandResult<Simulated> {
    let store = project.store();
    let panel = Panel::standard(seed);
    let world = World::new(WORLD_SEED);
    let known: HashMap<&str, &polity_world::Prompt> =
        world.all_prompts().iter().map(|prompt| (prompt.text.as_str(), prompt)).collect();
    let mut ids = Vec::new();
    for annotator in &panel.annotators {
        let id = format!("simulated:{}", annotator.name);
        let name = format!("{} ({})", annotator.name, annotator.flaw);
        project.wait(store.add_annotator(&id, &name, AnnotatorKind::Simulated, unix_ms()))?;
        ids.push(id);
    }
    let wanted = if votes_max == 0 { u64::MAX } else { votes_max };
    let before = project.wait(store.progress())?;
    let total = ((before.wanted - before.served).max(0) as u64).min(wanted);
    let mut votes = 0;
    while votes < wanted {
        let turn = before.votes as u64 + votes;
        let Some((who, given)) = next(project, &ids, seed, turn)? else { break };
        let texts = project.wait(store.comparison(&given.comparison_id))?;
        let left_is_a = texts.a.id == given.left_response;
        let (left, right) = if left_is_a { (&texts.a, &texts.b) } else { (&texts.b, &texts.a) };
        let (left, right) = (left.content.words(), right.content.words());
        let vote = match known.get(texts.prompt.content.words().as_str()) {
            Some(prompt) => panel.vote(who, &given.comparison_id, prompt, &left, &right),
            None => panel.vote_on(who, &given.comparison_id, &gold_of(&left), &gold_of(&right)),
        };
        let new = NewVote {
            annotator_id: ids[who].clone(),
            assignment_id: given.id,
            overall: answer(vote),
            axes: Default::default(),
            reason: String::new(),
            shown_ms: Some(given.served_ms),
            work_ms: None,
        };
        project.wait(store.vote(new, unix_ms()))?;
        votes += 1;
        if votes % PROGRESS_EVERY == 0 {
            ui.progress(&Work {
                label: "vote",
                done: votes,
                total: total.max(votes),
                unit: "vote",
                rate_per_s: None,
                remaining_s: None,
            });
        }
    }
    ui.end_progress();
    Ok(Simulated { votes, annotators: ids.len() })
}

/// The next in turn who has something to do, and what.
fn next(
    project: &Project,
    ids: &[String],
    seed: u64,
    turn: u64,
) -> CommandResult<Option<(usize, Assignment)>> {
    for offset in 0..ids.len() as u64 {
        let who = ((turn + offset) % ids.len() as u64) as usize;
        let random = Stream::new(seed, "turn", turn.wrapping_mul(ids.len() as u64) + offset).next_u64();
        let given = project.wait(project.store().next_seeded(&ids[who], random, unix_ms()))?;
        if let Next::Assignment(given) = given {
            return Ok(Some((who, given)));
        }
    }
    Ok(None)
}

/// What stands for the truth about a text of no world.
fn gold_of(text: &str) -> Gold {
    let words: Vec<String> = text.split_whitespace().map(str::to_lowercase).collect();
    let distinct = words.iter().collect::<HashSet<_>>().len();
    let total = if words.is_empty() { 0.0 } else { distinct as f64 / words.len() as f64 };
    Gold {
        helpful: total,
        harmless: 1.0,
        honest: 1.0,
        form: total,
        total,
        refusal: Refusal::Comply,
        words: words.len(),
        waste: words.len() - distinct,
        fillers: 0,
    }
}

fn answer(vote: Vote) -> Answer {
    match vote {
        Vote::Prefers { side: polity_world::Side::Left, grade } => {
            Answer::Better { side: Side::Left, strength: grade }
        }
        Vote::Prefers { side: polity_world::Side::Right, grade } => {
            Answer::Better { side: Side::Right, strength: grade }
        }
        Vote::Tie => Answer::Tie,
        Vote::BothBad => Answer::BothBad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_is_worth_less() {
        let check = |text: &str, total: f64| assert_eq!(gold_of(text).total, total, "{text}");
        check("a b c d", 1.0);
        check("the The the the", 0.25);
        check("", 0.0);
    }
}
