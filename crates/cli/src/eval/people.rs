//! What people said of a candidate and its baseline on the project's holdout: the win rate that a release rests on.
//!
//! The comparisons are made by `polity sample --model BASELINE --model CANDIDATE --part holdout` and shown blind like any others. Votes of annotators who
//! have not voted on the training part are used alone where there are enough of them (half of the votes at least): a reward model learns from the
//! others, and their taste is what the candidate was made for. Each look at new votes is in the ledger and costs one of the budget (`store::Look`).
//!
//! Values are in the order in which votes came, so the measure may be judged at any time.

use std::collections::BTreeMap;

use polity_eval::answers::Table;
use polity_eval::preferred::{Judge, Judged, add_win_rate};
use polity_eval::{Asking, Evaluation, Kind, Suite, SuiteRow};
use polity_store::HoldoutVote;
use polity_train::run::{CODE_VERSION, Input};
use serde_json::{Map, json};

use super::CONFIDENCE;
use super::shelf::{Found, Shelf};
use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::eval_args::EvalArgs;
use crate::project::Project;
use crate::ui::Ui;

/// Name of the suite that the holdout is.
const SUITE: &str = "holdout";
/// Share of the votes from which on those of annotators without training votes are enough.
const OUTSIDERS_MIN: f64 = 0.5;

/// The win rate by people.
pub fn run(args: &EvalArgs, ui: &Ui) -> CommandResult<Found> {
    let project = Project::open(&args.project)?;
    let baseline_dir = args.baseline.as_deref().expect("clap asks for it");
    let model = Input::hash("model", &args.model)?.blake3;
    let baseline = Input::hash("model", baseline_dir)?.blake3;
    if model == baseline {
        return Err(CommandError::bad_input("the model and its baseline are the same"));
    }
    let look = project.store().look(&model, &baseline, args.machine_votes, project.actor(), unix_ms());
    let (votes, looks) = project.wait(look)?;
    if votes.is_empty() {
        return Err(CommandError::bad_input(
            "nobody has voted on these two models' responses to the holdout's prompts",
        )
        .hint(format!(
            "polity sample --model {} --model {} --part holdout --per-prompt 1 makes comparisons, and polity serve shows them",
            baseline_dir.display(),
            args.model.display()
        )));
    }
    ui.note(&format!("look {} of {} at the holdout, {} votes", looks.used, looks.budget, votes.len()));
    let (votes, outsiders) = disjoint(votes, ui);
    let (suite, judged) = rows(&votes);
    let last = votes.last().map_or(0, |vote| vote.seq);
    let mut settings = Map::new();
    settings.insert("baseline".into(), baseline.into());
    settings.insert("judge".into(), json!({"kind": "people", "machine_votes": args.machine_votes}));
    settings.insert("polity".into(), CODE_VERSION.into());
    let mut inputs = Map::new();
    inputs.insert("votes_to".into(), last.into());
    inputs.insert("annotators".into(), if outsiders { "without training votes" } else { "all" }.into());
    let wanted = Evaluation {
        model,
        suite: suite.hash.clone(),
        suite_name: Some(suite.name.clone()),
        settings,
        inputs,
        measures: Vec::new(),
    };
    Shelf::open(&args.out, args.again)?.find_or(&suite, wanted, |evaluation| {
        let mut table = Table::new(&suite, CONFIDENCE);
        add_win_rate(&mut table, Judge::People, &judged)?;
        evaluation.measures = table.finish();
        Ok(())
    })
}

/// The votes of annotators who did not vote on training prompts, if they are enough; and whether they were.
fn disjoint(votes: Vec<HoldoutVote>, ui: &Ui) -> (Vec<HoldoutVote>, bool) {
    let outside = votes.iter().filter(|vote| !vote.trained).count();
    if outside == votes.len() {
        return (votes, true);
    }
    if outside as f64 >= OUTSIDERS_MIN * votes.len() as f64 {
        ui.note(&format!(
            "{} votes are by annotators who also voted on training prompts and were left out",
            votes.len() - outside
        ));
        return (votes.into_iter().filter(|vote| !vote.trained).collect(), true);
    }
    ui.warn(&format!(
        "{} of {} votes are by annotators who also voted on training prompts: the reward model learned from the people who judge it",
        votes.len() - outside,
        votes.len()
    ));
    (votes, false)
}

/// The prompts as a suite, and the votes as comparisons of it.
fn rows(votes: &[HoldoutVote]) -> (Suite, Vec<Judged>) {
    let mut place = BTreeMap::new();
    for vote in votes {
        place.entry(vote.prompt_id.as_str()).or_insert(vote.category.as_str());
    }
    let rows: Vec<SuiteRow> = place
        .iter()
        .map(|(id, category)| SuiteRow {
            id: (*id).to_owned(),
            category: (!category.is_empty()).then(|| (*category).to_owned()),
            values: BTreeMap::new(),
        })
        .collect();
    let judged = votes.iter().map(|vote| Judged {
        row: rows.partition_point(|row| row.id < vote.prompt_id),
        annotator: Some(vote.annotator_id.clone()),
        score: vote.score,
        candidate_length: vote.candidate_chars,
        baseline_length: vote.baseline_chars,
    });
    let judged = judged.collect();
    // All looks at the holdout are on the same suite, however many of its prompts have votes by then.
    let hash = blake3::hash(b"polity holdout 1").to_hex().to_string();
    let suite = Suite {
        name: SUITE.to_owned(),
        kind: Kind::Prompts,
        source: None,
        licence: None,
        asking: Asking::default(),
        settings: Vec::new(),
        hash,
        rows,
    };
    (suite, judged)
}
