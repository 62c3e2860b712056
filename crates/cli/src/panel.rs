//! `polity panel simulate`: annotators with known flaws vote on the project's comparisons.
//!
//! The tiny world's panel of eight (`world/panel.rs` has its model), in the world of the panel's seed, as in `polity demo`. On that world's own prompts they
//! see the gold utility. On any other text there is no truth to see, and what stands for it is
//!
//! ```text
//! gold = distinct words / words          0 for a response without words
//! ```
//!
//! so that repetition loses: enough to have something to agree on, with each annotator's flaws as they are. Their votes
//! are marked as a machine's, and count in a dataset only with `--machine-votes`.
//!
//! Not here: who is shown what (`store/simulate.rs`).

use std::collections::{HashMap, HashSet};

use polity_store::{AnnotatorKind, Answer, Shown, Side, Simulation};
use polity_world::{Gold, Panel, Prompt, Refusal, Vote, World};
use serde::Serialize;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::CommandResult;
use crate::judge;
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::project_args::PanelVerb;
use crate::ui::{Ui, Work};

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
    let judge = Judge::new(seed);
    let mut ids = Vec::new();
    for annotator in &judge.panel.annotators {
        let id = format!("simulated:{}", annotator.name);
        let name = format!("{} ({})", annotator.name, annotator.flaw);
        project.wait(store.add_annotator(&id, &name, AnnotatorKind::Simulated, unix_ms()))?;
        ids.push(id);
    }
    let wanted = if votes_max == 0 { u64::MAX } else { votes_max };
    let before = project.wait(store.progress())?;
    let total = ((before.wanted - before.served).max(0) as u64).min(wanted);
    let (annotators, mut votes) = (ids.len(), 0);
    let mut simulation = Simulation::new(ids, seed, move |shown| judge.answer(shown));
    loop {
        let cast = project.wait(store.simulate(&mut simulation, wanted - votes, unix_ms()))?;
        if cast == 0 {
            break;
        }
        votes += cast;
        ui.progress(&Work {
            label: "vote",
            done: votes,
            total: total.max(votes),
            unit: "vote",
            rate_per_s: None,
            remaining_s: None,
        });
    }
    ui.end_progress();
    Ok(Simulated { votes, annotators })
}

/// The panel, and the prompts on which it knows the truth, by their text.
struct Judge {
    panel: Panel,
    known: HashMap<String, Prompt>,
}

impl Judge {
    fn new(seed: u64) -> Judge {
        let world = World::new(seed);
        let known = world.all_prompts().iter().map(|prompt| (prompt.text.clone(), prompt.clone())).collect();
        Judge { panel: Panel::standard(seed), known }
    }

    fn answer(&self, shown: &Shown<'_>) -> Answer {
        let &Shown { annotator, comparison_id, prompt, left, right } = shown;
        answer(match self.known.get(prompt) {
            Some(prompt) => self.panel.vote(annotator, comparison_id, prompt, left, right),
            None => self.panel.vote_on(annotator, comparison_id, &gold_of(left), &gold_of(right)),
        })
    }
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
    use polity_world::{Category, Split};

    use super::*;

    #[test]
    fn repetition_is_worth_less() {
        let check = |text: &str, total: f64| assert_eq!(gold_of(text).total, total, "{text}");
        check("a b c d", 1.0);
        check("the The the the", 0.25);
        check("", 0.0);
    }

    /// Whatever the seed: a careful annotator prefers a question's answer to another question's. Whoever does not know the world tosses a coin.
    #[test]
    fn the_panel_knows_the_world_of_its_seed() {
        for seed in [1, 42] {
            let (world, judge) = (World::new(seed), Judge::new(seed));
            let questions = world.prompts_of(Category::Factuality, Split::Train);
            let (mut asked, mut right) = (0, 0);
            for pair in questions.windows(2) {
                let (left, wrong) = (world.ideal(&pair[0]), world.ideal(&pair[1]));
                if left == wrong {
                    continue;
                }
                let shown = Shown {
                    annotator: 0,
                    comparison_id: &pair[0].id,
                    prompt: &pair[0].text,
                    left: &left,
                    right: &wrong,
                };
                asked += 1;
                right += i32::from(matches!(judge.answer(&shown), Answer::Better { side: Side::Left, .. }));
            }
            assert!(asked > 400 && right > asked * 9 / 10, "seed {seed}: {right} of {asked}");
        }
    }
}
