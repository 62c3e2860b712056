//! A panel's votes as the statistics take them, and their report.
//!
//! Responses are named by their model, so that models can be ranked; where one prompt has several comparisons of the same two models (several
//! samples of each) the names get a number, so that different comparisons stay different. Machines' votes are left out: the panel is people.
//!
//! A report reads every vote, so it is kept until there are other votes, and for a while at least.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use polity_stats::panel::{PanelReport, PanelSettings, panel_report};
use polity_stats::vote::{Answer as Stated, Side as StatedSide, VoteRow, Votes};
use polity_store::{Answer, Judgement, JudgementFilter, Kind, Side};

use crate::app::App;
use crate::error::{Failure, Outcome};

/// How long a report is kept at least.
const REPORT_AGE_MS: i64 = 30_000;
/// Resamples of each interval: a page must not take as long as the command line.
const RESAMPLES: usize = 400;
/// The same votes give the same page.
const SEED: u64 = 0;

/// The report and what it was made of.
pub(crate) struct Figures {
    pub(crate) report: PanelReport,
    pub(crate) votes: Votes,
    pub(crate) judgements: Vec<Judgement>,
    pub(crate) at_ms: i64,
    number: i64,
}

/// The report, made anew if votes have come and the last one is old enough.
pub(crate) async fn figures(app: &App) -> Outcome<Arc<Figures>> {
    let mut kept = app.figures().lock().await;
    let now_ms = app.now_ms();
    let number = app.progress().await?.votes;
    if let Some(figures) = kept.as_ref()
        && (figures.number == number || now_ms - figures.at_ms < REPORT_AGE_MS)
    {
        return Ok(figures.clone());
    }
    let filter = JudgementFilter { machine: Some(false), ..JudgementFilter::default() };
    let judgements = app.store().judgements(filter).await?;
    let known: HashMap<String, Answer> = app
        .store()
        .calibration_items()
        .await?
        .into_iter()
        .map(|item| (item.comparison_id, item.expected))
        .collect();
    let floor = app.store().project().await?.policy.calibration_pass;
    let made = tokio::task::spawn_blocking(move || -> Result<Figures, polity_stats::Error> {
        let votes = votes_of(&judgements, &known)?;
        let settings = PanelSettings {
            resamples: RESAMPLES,
            calibration_floor: floor.clamp(0.01, 0.99),
            ..PanelSettings::usual(SEED)
        };
        let report = panel_report(&votes, &settings);
        Ok(Figures { report, votes, judgements, at_ms: now_ms, number })
    });
    let made = made.await.map_err(|e| Failure::Internal(format!("the panel's figures: {e}")))?;
    let made = Arc::new(made.map_err(|e| Failure::Internal(format!("the panel's figures: {e}")))?);
    *kept = Some(made.clone());
    Ok(made)
}

/// Votes for the statistics, in their order.
pub(crate) fn votes_of(
    judgements: &[Judgement],
    known: &HashMap<String, Answer>,
) -> Result<Votes, polity_stats::Error> {
    let mut contests: BTreeMap<(&str, &str, &str), Vec<&str>> = BTreeMap::new();
    for judgement in judgements {
        let [one, other] = ordered(&judgement.model_a, &judgement.model_b);
        let ids = contests.entry((&judgement.prompt_id, one, other)).or_default();
        if !ids.contains(&judgement.comparison_id.as_str()) {
            ids.push(&judgement.comparison_id);
        }
    }
    let mut votes = Votes::new();
    for judgement in judgements {
        let [one, other] = ordered(&judgement.model_a, &judgement.model_b);
        let ids = &contests[&(judgement.prompt_id.as_str(), one, other)];
        let number = ids.iter().position(|id| *id == judgement.comparison_id).unwrap_or(0);
        let named = |model: &str, place: &str| match (number, one == other) {
            (0, false) => model.to_owned(),
            (n, false) => format!("{model} #{}", n + 1),
            (n, true) => format!("{model} #{}{place}", n + 1),
        };
        let (a, b) = (named(&judgement.model_a, "a"), named(&judgement.model_b, "b"));
        // Where it was not recorded the canonical order stands for it, which is that of hashes and leans to no side.
        let a_was_left = judgement.a_was_left.unwrap_or(true);
        let turned = |answer: Answer| if a_was_left { answer } else { answer.swapped() };
        let Some(answer) = stated(turned(judgement.overall)) else { continue };
        let calibration = judgement.kind == Kind::Calibration;
        let expected = known.get(&judgement.comparison_id).copied().filter(|_| calibration);
        if calibration && expected.is_none() {
            continue;
        }
        let version = judgement.rubric_version.to_string();
        votes.push(&VoteRow {
            prompt: &judgement.prompt_id,
            left: if a_was_left { &a } else { &b },
            right: if a_was_left { &b } else { &a },
            annotator: &judgement.annotator_id,
            answer,
            category: Some(&judgement.category),
            rubric: (judgement.rubric_version > 0).then_some(version.as_str()),
            time_ms: judgement.answered_ms,
            duration_ms: judgement.work_ms.and_then(|ms| u64::try_from(ms).ok()),
            known: expected.map(turned).and_then(stated),
        })?;
    }
    Ok(votes)
}

fn ordered<'m>(one: &'m str, other: &'m str) -> [&'m str; 2] {
    if one <= other { [one, other] } else { [other, one] }
}

/// The same answer in the words of the statistics.
fn stated(answer: Answer) -> Option<Stated> {
    Some(match answer {
        Answer::Better { side: Side::Left, strength } => {
            Stated::Better { side: StatedSide::Left, grade: strength }
        }
        Answer::Better { side: Side::Right, strength } => {
            Stated::Better { side: StatedSide::Right, grade: strength }
        }
        Answer::Tie => Stated::Tie,
        Answer::BothBad => Stated::BothBad,
        Answer::Skip => Stated::Skip,
        Answer::Flag => Stated::Flag,
        Answer::Withdrawn => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judgement(seq: i64, comparison: &str, annotator: &str, overall: &str, a_was_left: bool) -> Judgement {
        Judgement {
            seq,
            comparison_id: comparison.into(),
            prompt_id: "p".into(),
            category: "c".into(),
            annotator_id: annotator.into(),
            kind: Kind::Work,
            model_a: "m".into(),
            model_b: "n".into(),
            a_was_left: Some(a_was_left),
            overall: overall.parse().unwrap(),
            axes: BTreeMap::new(),
            rubric_version: 1,
            answered_ms: Some(seq),
            work_ms: Some(1000),
            machine: false,
            propensity: None,
        }
    }

    /// Whatever the sides shown, judgements for the same response agree, and two comparisons of the same models stay two.
    #[test]
    fn sides_do_not_fake_disagreement_and_comparisons_stay_apart() {
        let judgements = [
            judgement(1, "x", "ann", "left2", true),
            judgement(2, "x", "ben", "left2", false),
            judgement(3, "y", "ann", "right1", true),
            judgement(4, "y", "ben", "skip", true),
        ];
        let votes = votes_of(&judgements, &HashMap::new()).unwrap();
        assert_eq!(votes.comparisons.len(), 2);
        assert_eq!(votes.votes.iter().map(|vote| vote.strength).collect::<Vec<_>>(), [2, 2, -1]);
        assert_eq!(
            votes.votes.iter().map(|vote| vote.first_on_left).collect::<Vec<_>>(),
            [true, false, true]
        );
        assert_eq!(votes.unanswered, [0, 1]);
    }

    #[test]
    fn a_known_answer_is_turned_with_the_vote() {
        let mut wrong = judgement(1, "x", "ann", "left1", false);
        wrong.kind = Kind::Calibration;
        let known = HashMap::from([("x".to_owned(), "right3".parse().unwrap())]);
        let votes = votes_of(&[wrong.clone()], &known).unwrap();
        assert_eq!(votes.calibration.iter().map(|vote| vote.right).collect::<Vec<_>>(), [false]);
        wrong.overall = "right2".parse().unwrap();
        let votes = votes_of(&[wrong], &known).unwrap();
        assert_eq!(votes.calibration.iter().map(|vote| vote.right).collect::<Vec<_>>(), [true]);
    }
}
