//! After a verdict that is no pass: what to do next, from the record.
//!
//! `refine.json` has the numbers and `refine.md` the same for people. docs/loop.md says what is listed and why. Everything is computed from
//! what is there: the votes, the evaluations, the verdict.
//!
//! Not here: any judgement of a model.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use polity_eval::gate::{Decision, Verdict};
use polity_eval::{Evaluation, Measure};
use polity_stats::agreement::Measured;
use polity_stats::panel::{Breakdown, PanelReport, PanelSettings, panel_report};
use polity_stats::{Estimate, wilson};
use polity_store::{Answer, Judgement, JudgementFilter, Kind, panel_votes};
use serde::Serialize;

use super::Loop;
use super::record::Step;
use crate::error::{CommandError, CommandResult};

/// Coverage of the intervals.
const CONFIDENCE: f64 = 0.95;
/// What stands for the overall answer among the axes.
const OVERALL: &str = "overall";

/// What to refine.
#[derive(Debug, Serialize)]
struct Refine {
    /// What the gate said.
    verdict: Decision,
    /// Hash of the model that it is on.
    model: String,
    criteria: Vec<Criterion>,
    /// The whole panel's figures, to compare with.
    panel: Option<Agreement>,
    low_agreement: Vec<Agreement>,
    /// `None` if the reward model was not measured by domain.
    reward_near_chance: Option<Vec<Domain>>,
    axes_in_conflict: Vec<Axes>,
    prompts: Vec<Collect>,
}

/// A criterion that does not pass.
#[derive(Debug, PartialEq, Serialize)]
struct Criterion {
    id: String,
    verdict: Decision,
    measure: Option<String>,
    category: Option<String>,
    estimate: Option<f64>,
    reference: Option<f64>,
    reason: String,
}

/// How far the panel agrees on a category.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Agreement {
    category: Option<String>,
    votes: usize,
    comparisons: usize,
    /// Krippendorff's, ordinal.
    alpha: Option<Range>,
    /// Share of pairs of votes that agree.
    raw: Option<Range>,
}

/// An estimate with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Range {
    estimate: f64,
    low: Option<f64>,
    high: Option<f64>,
}

/// A domain that the reward model hardly tells apart.
#[derive(Debug, PartialEq, Serialize)]
struct Domain {
    measure: String,
    domain: Option<String>,
    accuracy: f64,
    low: f64,
    high: f64,
    pairs: u64,
}

/// Two axes that point different ways.
#[derive(Debug, PartialEq, Serialize)]
struct Axes {
    axes: [String; 2],
    /// Share of votes with a side on both that have the same side.
    same: f64,
    low: f64,
    high: f64,
    votes: usize,
}

/// Prompts that would settle a criterion.
#[derive(Debug, PartialEq, Serialize)]
struct Collect {
    category: Option<String>,
    criterion: String,
    there: u64,
    more: u64,
}

/// Writes both files; returns the page.
pub(super) fn write(state: &Loop<'_>, verdict: &Verdict) -> CommandResult<PathBuf> {
    let machine = (!state.pipeline.freeze.machine_votes).then_some(false);
    let filter = JudgementFilter { kind: Some(Kind::Work), machine, ..JudgementFilter::default() };
    let store = state.project.store();
    let judgements = state.project.wait(store.judgements(filter))?;
    let report = match judgements.as_slice() {
        [] => None,
        votes => Some(panel_report(&panel_votes(votes, &[])?, &PanelSettings::usual(state.pipeline.seed))),
    };
    let accuracies = state.reward_measures()?;
    let refine = Refine {
        verdict: verdict.verdict,
        model: verdict.candidate.clone(),
        criteria: criteria(verdict),
        panel: report.as_ref().map(whole),
        low_agreement: report.as_ref().map(low_agreement).unwrap_or_default(),
        reward_near_chance: (!accuracies.is_empty()).then(|| near_chance(&accuracies)),
        axes_in_conflict: in_conflict(&judgements),
        prompts: collect(verdict),
    };
    let text = serde_json::to_string_pretty(&refine).map_err(CommandError::failed)? + "\n";
    let dir = state.records.dir();
    polity_rows::atomic_write(dir.join("refine.json"), |out| out.write_all(text.as_bytes()))?;
    let page = dir.join("refine.md");
    let text = refine.page(&state.pipeline.name);
    polity_rows::atomic_write(&page, |out| out.write_all(text.as_bytes()))?;
    Ok(page)
}

fn criteria(verdict: &Verdict) -> Vec<Criterion> {
    let open = verdict.criteria.iter().filter(|said| said.blocking && said.verdict != Decision::Pass);
    open.map(|said| Criterion {
        id: said.id.clone(),
        verdict: said.verdict,
        measure: said.measure.as_ref().map(|measure| measure.name.clone()),
        category: said.measure.as_ref().and_then(|measure| measure.category.clone()),
        estimate: said.measure.as_ref().map(|measure| measure.estimate),
        reference: said.reference,
        reason: said.reason.clone(),
    })
    .collect()
}

fn collect(verdict: &Verdict) -> Vec<Collect> {
    let open = verdict.criteria.iter().filter(|said| said.blocking && said.verdict == Decision::Inconclusive);
    open.filter_map(|said| {
        let effect = said.effect.as_ref()?;
        let more = effect.prompts_to_settle?.checked_sub(effect.prompts).filter(|more| *more > 0)?;
        let category = said.measure.as_ref().and_then(|measure| measure.category.clone());
        Some(Collect { category, criterion: said.id.clone(), there: effect.prompts, more })
    })
    .collect()
}

fn range(measured: &Measured) -> Option<Range> {
    let figure = measured.as_ref().ok()?;
    Some(Range { estimate: figure.estimate, low: figure.low, high: figure.high })
}

fn whole(report: &PanelReport) -> Agreement {
    let figure = |name: &str| {
        report.figures.iter().find(|figure| figure.name == name).and_then(|figure| range(&figure.value))
    };
    Agreement {
        category: None,
        votes: report.counts.votes,
        comparisons: report.counts.comparisons,
        alpha: figure("alpha_ordinal"),
        raw: figure("raw_agreement"),
    }
}

fn of_category(breakdown: &Breakdown) -> Agreement {
    Agreement {
        category: breakdown.name.clone(),
        votes: breakdown.votes,
        comparisons: breakdown.comparisons,
        alpha: range(&breakdown.alpha_ordinal),
        raw: range(&breakdown.raw),
    }
}

/// Categories whose alpha is not shown to be above 0, or is shown to be below the whole panel's.
fn low_agreement(report: &PanelReport) -> Vec<Agreement> {
    let panel = whole(report).alpha;
    let low = |found: &Agreement| match found.alpha {
        // Nothing was voted on twice, or only one answer given: nothing can be said, and that is not low.
        None => false,
        Some(alpha) => {
            // Votes that all agree have no interval: the estimate stands for it.
            let (low, high) = alpha.low.zip(alpha.high).unwrap_or((alpha.estimate, alpha.estimate));
            low <= 0.0 || panel.is_some_and(|panel| high < panel.estimate)
        }
    };
    report.categories.iter().map(of_category).filter(low).collect()
}

/// Accuracies that are not shown to be above ½.
fn near_chance(measures: &[Measure]) -> Vec<Domain> {
    let near = measures.iter().filter(|measure| measure.low <= 0.5);
    near.map(|measure| Domain {
        measure: measure.name.clone(),
        domain: measure.category.clone(),
        accuracy: measure.estimate,
        low: measure.low,
        high: measure.high,
        pairs: measure.n,
    })
    .collect()
}

/// Whether a measure says how often a reward model is right.
pub(super) fn is_accuracy(measure: &Measure) -> bool {
    measure.name.ends_with("accuracy") && measure.range == Some([0.0, 1.0])
}

/// Pairs of axes, the overall answer among them, that have different sides more often than the same one.
fn in_conflict(judgements: &[Judgement]) -> Vec<Axes> {
    let mut counts: BTreeMap<[&str; 2], [usize; 2]> = BTreeMap::new();
    for judgement in judgements {
        let mut sides: Vec<(&str, i8)> = judgement
            .axes
            .iter()
            .map(|(axis, answer)| (axis.as_str(), side(*answer)))
            .chain([(OVERALL, side(judgement.overall))])
            .filter(|(_, side)| *side != 0)
            .collect();
        sides.sort_unstable();
        for (i, (axis, side)) in sides.iter().enumerate() {
            for (other, other_side) in &sides[i + 1..] {
                let [same, all] = counts.entry([axis, other]).or_default();
                *same += usize::from(side == other_side);
                *all += 1;
            }
        }
    }
    let of = |(axes, [same, all]): ([&str; 2], [usize; 2])| {
        let Estimate { estimate, low, high, .. } = wilson(same, all, CONFIDENCE).ok()?;
        (high < 0.5).then(|| Axes { axes: axes.map(str::to_owned), same: estimate, low, high, votes: all })
    };
    counts.into_iter().filter_map(of).collect()
}

/// 1 for the first response, -1 for the second, 0 for neither.
fn side(answer: Answer) -> i8 {
    answer.grade().unwrap_or(0).signum()
}

impl Loop<'_> {
    /// How often the reward model is right, by domain, where it was measured.
    fn reward_measures(&self) -> CommandResult<Vec<Measure>> {
        if !self.done.contains_key(&Step::Accept) {
            return Ok(Vec::new());
        }
        let found = self.evaluations_of(Step::Accept)?;
        let measures = found.into_iter().flat_map(|(_, Evaluation { measures, .. })| measures);
        Ok(measures.filter(is_accuracy).collect())
    }
}

impl Refine {
    /// The page for people.
    fn page(&self, name: &str) -> String {
        let mut page = format!(
            "# What to refine: {name}\n\nThe gate's verdict on model {} is {}.\n",
            crate::record::short(&self.model),
            self.verdict.name()
        );
        let mut part = |title: &str, why: &str, lines: Vec<String>, none: &str| {
            let _ = write!(page, "\n## {title}\n\n");
            if lines.is_empty() {
                let _ = writeln!(page, "{none}");
                return;
            }
            let _ = writeln!(page, "{why}\n");
            for line in lines {
                let _ = writeln!(page, "- {line}");
            }
        };
        part(
            "Criteria",
            "What a release needs and was not shown.",
            self.criteria
                .iter()
                .map(|said| format!("**{}** ({}): {}", said.id, said.verdict.name(), said.reason))
                .collect(),
            "None is open.",
        );
        let panel = self.panel.as_ref().and_then(|panel| panel.alpha);
        part(
            "Categories with low agreement",
            "The panel does not agree on them: say in the rubric what is better there, with examples, and calibrate again.",
            self.low_agreement.iter().map(|found| found.line(panel)).collect(),
            if self.panel.is_some() { "None." } else { "There are no votes." },
        );
        part(
            "Domains where the reward model is near chance",
            "Collect comparisons there before a policy is optimised against it.",
            self.reward_near_chance.iter().flatten().map(Domain::line).collect(),
            match self.reward_near_chance {
                Some(_) => "None.",
                None => "Not measured: a table [acceptance] with a suite of pairs measures it.",
            },
        );
        part(
            "Rubric axes in conflict",
            "They point to different responses more often than to the same: say in the rubric which one goes first.",
            self.axes_in_conflict.iter().map(Axes::line).collect(),
            "None.",
        );
        part(
            "Prompts to collect",
            "So many more would settle what is inconclusive, if the estimates are right.",
            self.prompts.iter().map(Collect::line).collect(),
            "None: more prompts would settle nothing that is open.",
        );
        page
    }
}

impl Agreement {
    fn line(&self, panel: Option<Range>) -> String {
        let name = self.category.as_deref().unwrap_or("without a category");
        let show = |range: Option<Range>| range.map_or("undefined".to_owned(), Range::show);
        let whole = panel.map(|panel| format!("; the whole panel's alpha is {:.2}", panel.estimate));
        format!(
            "**{name}**: alpha {}, raw agreement {}, {} votes on {} comparisons{}",
            show(self.alpha),
            show(self.raw),
            self.votes,
            self.comparisons,
            whole.unwrap_or_default()
        )
    }
}

impl Range {
    fn show(self) -> String {
        match self.low.zip(self.high) {
            Some((low, high)) => format!("{:.2} [{low:.2}, {high:.2}]", self.estimate),
            None => format!("{:.2}", self.estimate),
        }
    }
}

impl Domain {
    fn line(&self) -> String {
        let name = self.domain.as_deref().unwrap_or("all");
        let Domain { measure, accuracy, low, high, pairs, .. } = self;
        format!("**{name}**: {measure} {accuracy:.2} [{low:.2}, {high:.2}] of {pairs} pairs")
    }
}

impl Axes {
    fn line(&self) -> String {
        let Axes { axes: [one, other], same, low, high, votes } = self;
        format!(
            "**{one}** and **{other}**: the same side in {:.0} % [{:.0}, {:.0}] of {votes} votes",
            100.0 * same,
            100.0 * low,
            100.0 * high
        )
    }
}

impl Collect {
    fn line(&self) -> String {
        let category = self.category.as_deref().unwrap_or("any category");
        format!(
            "**{} more prompts** of {category} for {} ({} are there)",
            self.more, self.criterion, self.there
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polity_stats::agreement::Undefined;
    use polity_store::Side;

    fn judgement(overall: Answer, axes: &[(&str, Answer)]) -> Judgement {
        Judgement {
            seq: 1,
            comparison_id: "c".into(),
            prompt_id: "p".into(),
            category: "k".into(),
            annotator_id: "a".into(),
            kind: Kind::Work,
            model_a: "m".into(),
            model_b: "m".into(),
            a_was_left: None,
            overall,
            axes: axes.iter().map(|(axis, answer)| ((*axis).to_owned(), *answer)).collect(),
            rubric_version: 1,
            answered_ms: None,
            work_ms: None,
            machine: false,
            propensity: None,
        }
    }

    #[test]
    fn axes_that_pull_apart_are_found() {
        let left = Answer::Better { side: Side::Left, strength: 1 };
        let right = Answer::Better { side: Side::Right, strength: 2 };
        // Helpful goes with the whole, harmless against both in nine of ten; honest says nothing.
        let votes: Vec<Judgement> = (0..20)
            .map(|i| {
                let harmless = if i % 10 == 0 { left } else { right };
                judgement(left, &[("helpful", left), ("harmless", harmless), ("honest", Answer::Tie)])
            })
            .collect();
        let found = in_conflict(&votes);
        let axes: Vec<[&str; 2]> = found.iter().map(|pair| [pair.axes[0].as_str(), &pair.axes[1]]).collect();
        assert_eq!(axes, [["harmless", "helpful"], ["harmless", "overall"]]);
        assert_eq!((found[0].same, found[0].votes), (0.1, 20));
        // Wilson's interval of 2 in 20, from R's binom.confint(2, 20, methods = "wilson").
        assert!(
            (found[0].low - 0.02786648).abs() < 1e-7 && (found[0].high - 0.3010336).abs() < 1e-7,
            "{found:?}"
        );
        assert_eq!(in_conflict(&votes[..3]), [], "three votes show nothing");
    }

    #[test]
    fn agreement_is_low_where_it_is_not_above_chance_or_below_the_panels() {
        use polity_stats::vote::{Answer as Stated, Side as StatedSide, VoteRow, Votes};
        let mut votes = Votes::new();
        let mut vote = |prompt: usize, annotator: &str, left: bool, category: &str| {
            let side = if left { StatedSide::Left } else { StatedSide::Right };
            votes
                .push(&VoteRow {
                    prompt: &format!("{category} {prompt}"),
                    left: "a",
                    right: "b",
                    annotator,
                    answer: Stated::Better { side, grade: 1 },
                    category: Some(category),
                    rubric: None,
                    time_ms: None,
                    duration_ms: None,
                    known: None,
                })
                .unwrap();
        };
        for i in 0..40 {
            // On facts all three agree; on tone each goes its own way.
            for (k, annotator) in ["ann", "ben", "cid"].into_iter().enumerate() {
                vote(i, annotator, i % 2 == 0, "facts");
                vote(i, annotator, (i >> k) % 2 == 0, "tone");
            }
        }
        let report = panel_report(&votes, &PanelSettings { resamples: 200, ..PanelSettings::usual(1) });
        assert!(
            whole(&report).alpha.is_some() && whole(&report).raw.is_some(),
            "the figures have these names"
        );
        let found = low_agreement(&report);
        let names: Vec<_> = found.iter().map(|found| found.category.as_deref().unwrap()).collect();
        assert_eq!(names, ["tone"]);
        assert!(found[0].line(None).starts_with("**tone**: alpha"), "{}", found[0].line(None));
        assert_eq!(range(&Err(Undefined::NoOverlap)), None);
    }

    #[test]
    fn accuracies_near_chance() {
        let measure = |low: f64, category: &str| Measure {
            name: "accuracy".into(),
            category: Some(category.into()),
            unit: "share".into(),
            estimate: low + 0.1,
            low,
            high: low + 0.2,
            n: 50,
            confidence: 0.9,
            range: Some([0.0, 1.0]),
            correction_se: 0.0,
            items: Vec::new(),
        };
        let measures = [measure(0.45, "tone"), measure(0.7, "facts")];
        assert!(measures.iter().all(is_accuracy));
        let found = near_chance(&measures);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].line(), "**tone**: accuracy 0.55 [0.45, 0.65] of 50 pairs");
    }
}
