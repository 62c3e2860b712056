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

use polity_store::{AnnotatorKind, Answer, NewVote, Next, Side};
use polity_world::{Gold, Panel, Refusal, Vote, World};
use serde_json::json;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::CommandResult;
use crate::judge;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::project_args::{PanelVerb, SimulateArgs};
use crate::ui::{Ui, Work};

/// The world that `polity demo` uses, so that its prompts are known here too.
const WORLD_SEED: u64 = 42;
/// Votes between two updates of the progress.
const PROGRESS_EVERY: u64 = 50;

/// Runs the verb.
pub fn run(verb: &PanelVerb, global: &Global, ui: &Ui) -> CommandResult {
    match verb {
        PanelVerb::Simulate(args) => simulate(args, global, ui),
        PanelVerb::Judge(args) => judge::run(args, global, ui),
    }
}

fn simulate(args: &SimulateArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    let store = project.store();
    let panel = Panel::standard(args.seed);
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
    let wanted = if args.votes == 0 { u64::MAX } else { args.votes };
    let progress = project.wait(store.progress())?;
    let total = ((progress.wanted - progress.served).max(0) as u64).min(wanted);
    let mut votes = 0;
    let mut idle = HashSet::new();
    let mut turn = 0;
    while votes < wanted && idle.len() < ids.len() {
        let who = turn % ids.len();
        turn += 1;
        if idle.contains(&who) {
            continue;
        }
        let now_ms = unix_ms();
        let Next::Assignment(given) = project.wait(store.next(&ids[who], now_ms))? else {
            idle.insert(who);
            continue;
        };
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
            shown_ms: Some(now_ms),
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
    if global.json {
        return json_to_stdout(&json!({"votes": votes, "annotators": ids.len()}));
    }
    to_stdout(|out| {
        use std::io::Write;
        writeln!(out, "{votes} votes by {} simulated annotators", ids.len())
    })
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
