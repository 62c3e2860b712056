//! Everything there is to say about a panel's votes, in one value that can be printed, served or stored.
//!
//! [`panel_report`] is the core of `polity agreement` and of the pages that show the same: votes in, numbers out. Figures
//! on *sides* compare which response was preferred (second, tie, first), figures on *grades* also by how much; both bad counts
//! as a tie. Of several votes of one annotator on one comparison the last one stands, repeats apart. All are in canonical orientation
//! (`vote.rs`). `docs/agreement.md` has each figure's formula under its anchor.
//!
//! Not here: how it looks (the command line, the pages), where votes come from.

mod annotators;
mod ranking;

use serde::{Serialize, Serializer};

use crate::agreement::{Measured, SelfConsistency, Undefined, agreement, cohen};
use crate::bradley_terry::Outcome;
use crate::crowd_bt::CrowdPrior;
use crate::crowd_pairs::{CrowdPairs, PairVote};
use crate::power::{comparisons_for_margin, comparisons_to_detect, votes_for_majority};
use crate::vote::{Vote, Votes};
use crate::{Error, Resampling, wilson};

pub use annotators::{AnnotatorReport, Calibration, Drift, Speed};
pub use ranking::{Ranked, Ranking};

/// Settings of a report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PanelSettings {
    /// Coverage of all intervals.
    pub confidence: f64,
    /// Resamples of each bootstrap.
    pub resamples: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// Priors of the reliability model.
    pub prior: CrowdPrior,
    /// Calibration accuracy that annotators must keep.
    pub calibration_floor: f64,
    /// Votes faster than this are counted as fast.
    pub fast_ms: u64,
    /// Pairs of annotators to show Cohen's kappa of.
    pub pairs_max: usize,
}

impl PanelSettings {
    /// 95 % intervals from 1000 resamples.
    pub fn usual(seed: u64) -> Self {
        Self {
            confidence: 0.95,
            resamples: 1000,
            seed,
            prior: CrowdPrior::usual(),
            calibration_floor: 0.7,
            fast_ms: 2000,
            pairs_max: 50,
        }
    }

    fn resampling(&self) -> Resampling {
        Resampling { resamples: self.resamples, seed: self.seed, confidence: self.confidence }
    }
}

/// How many of what.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    /// Votes that stand.
    pub votes: usize,
    /// Earlier votes of an annotator on the same comparison.
    pub superseded: usize,
    /// Skips and flags.
    pub unanswered: usize,
    /// Votes on calibration comparisons.
    pub calibration: usize,
    /// Second answers to comparisons that were shown again.
    pub repeats: usize,
    /// Prompts.
    pub prompts: usize,
    /// Comparisons.
    pub comparisons: usize,
    /// Comparisons with votes of two annotators or more.
    pub overlapping: usize,
    /// Annotators.
    pub annotators: usize,
    /// Standing votes for neither side.
    pub ties: usize,
    /// Of them, those that called both bad.
    pub both_bad: usize,
    /// The strongest grade that was given.
    pub grade_max: u8,
}

/// A figure of the whole panel.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PanelFigure {
    /// Its name for programs.
    pub name: &'static str,
    /// Its name for people.
    pub label: &'static str,
    /// `sides` or `grades`.
    pub of: &'static str,
    /// Anchor of its formula in docs/agreement.md.
    pub anchor: &'static str,
    /// The figure.
    #[serde(flatten, serialize_with = "measured")]
    pub value: Measured,
}

/// Agreement of two annotators.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairReport {
    /// The two.
    pub annotators: [String; 2],
    /// Comparisons that both judged.
    pub items: usize,
    /// Share with the same side.
    #[serde(serialize_with = "measured")]
    pub raw: Measured,
    /// Cohen's kappa on sides.
    #[serde(serialize_with = "measured")]
    pub kappa: Measured,
    /// Cohen's kappa on grades, quadratic weights.
    #[serde(serialize_with = "measured")]
    pub kappa_quadratic: Measured,
}

/// Agreement on a part of the votes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breakdown {
    /// The category or rubric version; nothing for votes without one.
    pub name: Option<String>,
    /// Standing votes.
    pub votes: usize,
    /// Comparisons.
    pub comparisons: usize,
    /// Share of ties.
    pub tie_share: f64,
    /// Raw agreement on sides.
    #[serde(serialize_with = "measured")]
    pub raw: Measured,
    /// Krippendorff's alpha on grades, ordinal.
    #[serde(serialize_with = "measured")]
    pub alpha_ordinal: Measured,
}

/// How many votes are needed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Planning {
    /// Level of the tests, one-sided.
    pub alpha: f64,
    /// Their power.
    pub power: f64,
    /// Win rates, and the comparisons without ties that show them.
    pub to_detect: Vec<(f64, u64)>,
    /// Margins, and the comparisons that show no loss beyond them.
    pub for_margin: Vec<(f64, u64)>,
    /// Mean agreement with the majority of the others, taken as accuracy below.
    pub accuracy: Option<f64>,
    /// Accuracies of a majority, and the votes on each comparison that give them.
    pub for_majority: Vec<(f64, Option<u64>)>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PanelReport {
    /// Coverage of all intervals.
    pub confidence: f64,
    /// Resamples of each bootstrap.
    pub resamples: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// How many of what.
    pub counts: Counts,
    /// Agreement of the whole panel.
    pub figures: Vec<PanelFigure>,
    /// Each annotator.
    pub annotators: Vec<AnnotatorReport>,
    /// Why the annotators have no reliability, if they have none.
    pub no_reliability: Option<Undefined>,
    /// Standard deviation of differences between responses that the reliability model found, in log-odds.
    pub strength_sd: Option<f64>,
    /// Pairs of annotators with the most comparisons in common.
    pub pairs: Vec<PairReport>,
    /// Pairs of annotators with any.
    pub pairs_found: usize,
    /// By the prompt's category, if votes have any.
    pub categories: Vec<Breakdown>,
    /// By the rubric's version, if votes have any.
    pub rubrics: Vec<Breakdown>,
    /// A ranking of responses, where the same ones are compared on many prompts (models, say).
    pub ranking: Option<Ranking>,
    /// How many votes are needed.
    pub planning: Planning,
}

/// Serialises a figure as its fields, or as `undefined` and `reason`.
pub(crate) fn measured<S: Serializer>(value: &Measured, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Ok(figure) => figure.serialize(serializer),
        Err(undefined) => undefined.serialize(serializer),
    }
}

/// The reliability model on the votes that stand: soft labels for all comparisons, in the order of
/// [`Votes::comparisons`], and the annotators' reliabilities.
pub fn reliability(votes: &Votes, prior: CrowdPrior) -> Result<CrowdPairs, Error> {
    let standing: Vec<PairVote> = votes
        .standing()
        .into_iter()
        .map(|i| {
            let vote = &votes.votes[i];
            PairVote {
                pair: vote.comparison,
                annotator: vote.annotator,
                first_on_left: vote.first_on_left,
                outcome: side_won(vote),
            }
        })
        .collect();
    CrowdPairs::fit(votes.comparisons.len(), votes.annotators.list().len(), &standing, prior)
}

/// Which side a vote is for.
pub(crate) fn side_won(vote: &Vote) -> Outcome {
    match vote.left_strength().signum() {
        1 => Outcome::Left,
        -1 => Outcome::Right,
        _ => Outcome::Tie,
    }
}

/// The report.
///
/// # Panics
///
/// If the settings are out of range (a confidence of 2, no resamples).
pub fn panel_report(votes: &Votes, settings: &PanelSettings) -> PanelReport {
    let how = settings.resampling();
    let (sides, grades) = (votes.sides(), votes.grades());
    let standing = votes.standing();
    let consistency = votes.self_consistency(&sides);
    let of_sides = agreement(&sides, how);
    let of_grades = agreement(&grades, how);
    let figure = |name, label, of, anchor, value| PanelFigure { name, label, of, anchor, value };
    let figures = vec![
        figure("raw_agreement", "Raw agreement", "sides", "raw-agreement", of_sides.raw),
        figure("fleiss_kappa", "Fleiss' kappa", "sides", "fleiss-kappa", of_sides.fleiss),
        figure("ac1", "Gwet's AC1", "sides", "gwet-ac", of_sides.ac1),
        figure(
            "alpha_nominal",
            "Krippendorff's alpha, nominal",
            "sides",
            "krippendorff-alpha",
            of_sides.alpha_nominal,
        ),
        figure(
            "alpha_ordinal",
            "Krippendorff's alpha, ordinal",
            "grades",
            "krippendorff-alpha",
            of_grades.alpha_ordinal,
        ),
        figure(
            "alpha_interval",
            "Krippendorff's alpha, interval",
            "grades",
            "krippendorff-alpha",
            of_grades.alpha_interval,
        ),
        figure("ac2", "Gwet's AC2, quadratic", "grades", "gwet-ac", of_grades.ac2),
        figure(
            "self_consistency",
            "Self-consistency",
            "sides",
            "self-consistency",
            self_consistency(&consistency, settings),
        ),
    ];

    let crowd = reliability(votes, settings.prior);
    let annotators =
        annotators::reports(votes, &sides, &standing, &consistency, crowd.as_ref().ok(), settings);
    let (pairs, pairs_found) = pairs(votes, &sides, &grades, settings);
    let ties = standing.iter().filter(|&&i| votes.votes[i].strength == 0).count();
    PanelReport {
        confidence: settings.confidence,
        resamples: settings.resamples,
        seed: settings.seed,
        counts: Counts {
            votes: standing.len(),
            superseded: votes.votes.len() - standing.len(),
            unanswered: votes.unanswered.iter().sum(),
            calibration: votes.calibration.len(),
            repeats: votes.repeats.len(),
            prompts: votes.prompts.list().len(),
            comparisons: votes.comparisons.len(),
            overlapping: (0..sides.items()).filter(|&item| sides.item(item).len() >= 2).count(),
            annotators: votes.annotators.list().len(),
            ties,
            both_bad: standing.iter().filter(|&&i| votes.votes[i].both_bad).count(),
            grade_max: votes.grade_max(),
        },
        figures,
        planning: planning(&annotators),
        annotators,
        no_reliability: crowd.as_ref().err().map(|error| Undefined::NoFit { why: error.to_string() }),
        strength_sd: crowd.as_ref().ok().map(|crowd| crowd.strength_sd),
        pairs,
        pairs_found,
        categories: breakdown(
            votes,
            &standing,
            votes.categories.list(),
            |vote| votes.category[vote.comparison as usize],
            settings,
        ),
        rubrics: breakdown(votes, &standing, votes.rubrics.list(), |vote| vote.rubric, settings),
        ranking: ranking::ranking(votes, &standing, settings),
    }
}

/// How often annotators who saw a comparison again took the same side.
fn self_consistency(consistency: &[SelfConsistency], settings: &PanelSettings) -> Measured {
    let (same, repeats) =
        consistency.iter().fold((0, 0), |(same, repeats), c| (same + c.same, repeats + c.repeats));
    wilson(same, repeats, settings.confidence).map(crate::agreement::Figure::of).map_err(|_| {
        Undefined::NotRecorded { what: "an earlier one by the same annotator on the same comparison" }
    })
}

fn pairs(
    votes: &Votes,
    sides: &crate::agreement::Table,
    grades: &crate::agreement::Table,
    settings: &PanelSettings,
) -> (Vec<PairReport>, usize) {
    let how = settings.resampling();
    let (on_sides, found) = cohen(sides, settings.pairs_max, how);
    // The same pairs in the same order: both tables have the same votes.
    let (on_grades, _) = cohen(grades, settings.pairs_max, how);
    let name = |w: usize| votes.annotators.name(w as u32).to_owned();
    let pairs = on_sides
        .into_iter()
        .zip(on_grades)
        .map(|(side, grade)| PairReport {
            annotators: [name(side.annotators.0), name(side.annotators.1)],
            items: side.items,
            raw: side.raw,
            kappa: side.kappa,
            kappa_quadratic: grade.kappa_quadratic,
        })
        .collect();
    (pairs, found)
}

/// Agreement within each group, groups in the order of their names and votes without one last; none if no vote has one.
fn breakdown(
    votes: &Votes,
    standing: &[usize],
    names: &[String],
    group: impl Fn(&Vote) -> Option<u32>,
    settings: &PanelSettings,
) -> Vec<Breakdown> {
    if names.is_empty() {
        return Vec::new();
    }
    let mut order: Vec<Option<u32>> = (0..names.len() as u32).map(Some).collect();
    order.sort_by_key(|number| number.map(|number| &names[number as usize]));
    order.push(None);
    order
        .into_iter()
        .filter_map(|number| {
            let own: Vec<&Vote> =
                standing.iter().map(|&i| &votes.votes[i]).filter(|vote| group(vote) == number).collect();
            let ties = own.iter().filter(|vote| vote.strength == 0).count();
            let mut comparisons: Vec<u32> = own.iter().map(|vote| vote.comparison).collect();
            comparisons.sort_unstable();
            comparisons.dedup();
            (!own.is_empty()).then(|| Breakdown {
                name: number.map(|number| names[number as usize].clone()),
                votes: own.len(),
                comparisons: comparisons.len(),
                tie_share: ties as f64 / own.len() as f64,
                raw: agreement(&votes.sides_where(|vote| group(vote) == number), settings.resampling()).raw,
                alpha_ordinal: agreement(
                    &votes.grades_where(|vote| group(vote) == number),
                    settings.resampling(),
                )
                .alpha_ordinal,
            })
        })
        .collect()
}

fn planning(annotators: &[AnnotatorReport]) -> Planning {
    const ALPHA: f64 = 0.05;
    const POWER: f64 = 0.8;
    let (agreed, items) = annotators
        .iter()
        .fold((0, 0), |(agreed, items), a| (agreed + a.majority_agreed, items + a.majority_items));
    let accuracy = (items > 0).then(|| agreed as f64 / items as f64);
    let for_majority = |wanted| (wanted, accuracy.and_then(|accuracy| votes_for_majority(accuracy, wanted)));
    Planning {
        alpha: ALPHA,
        power: POWER,
        to_detect: [0.52, 0.55, 0.60, 0.65]
            .map(|rate| (rate, comparisons_to_detect(rate, ALPHA, POWER)))
            .to_vec(),
        for_margin: [0.02, 0.05, 0.10]
            .map(|margin| (margin, comparisons_for_margin(margin, ALPHA, POWER)))
            .to_vec(),
        accuracy,
        for_majority: [0.90, 0.95].map(for_majority).to_vec(),
    }
}
