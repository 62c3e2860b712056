//! A panel's votes as the statistics take them, and the labels that their reliability model gives.
//!
//! Not here: the statistics (`polity-stats`), where labels go (`dataset`).

use std::collections::{BTreeMap, HashMap};

use polity_stats::CrowdPrior;
use polity_stats::panel::reliability;
use polity_stats::vote::{Answer as Stated, Side as StatedSide, VoteRow, Votes};
use serde_json::json;

use crate::answer::{Answer, Side};
use crate::assign::Kind;
use crate::calibration::CalibrationItem;
use crate::dataset::ModelLabels;
use crate::db::Store;
use crate::error::{Result, StoreError};
use crate::vote::{Judgement, JudgementFilter};

impl Store {
    /// Fits the reliability model (Crowd-BT, `polity_stats::crowd_pairs`) to all votes that stand, people's only unless `machine_votes`,
    /// for [`Freeze::model`](crate::Freeze::model). Votes that come during the fit are not in it: its description has the number of
    /// the last one that is.
    pub async fn model_labels(&self, machine_votes: bool) -> Result<ModelLabels> {
        let filter = JudgementFilter {
            kind: Some(Kind::Work),
            machine: (!machine_votes).then_some(false),
            ..JudgementFilter::default()
        };
        let judgements = self.judgements(filter).await?;
        tokio::task::spawn_blocking(move || model_labels(&judgements, CrowdPrior::usual()))
            .await
            .expect("the fit returns errors and does not panic")
    }
}

fn model_labels(judgements: &[Judgement], prior: CrowdPrior) -> Result<ModelLabels> {
    // To the model each comparison is one of its own, so it stands for the prompt, and its responses are called a and b.
    let mut votes = Votes::new();
    for judgement in judgements {
        push(&mut votes, judgement, &judgement.comparison_id, "a", "b", None)?;
    }
    let model = reliability(&votes, prior)
        .map_err(|error| StoreError::refused("labels by model", error.to_string()))?;
    let probability_a = votes
        .comparisons
        .iter()
        .zip(&model.labels)
        .map(|(comparison, label)| (votes.prompts.name(comparison.prompt).to_owned(), label.first))
        .collect();
    let description = json!({
        "name": "crowd_bt",
        "prior": {
            "strength_sd": prior.strength_sd, "reliable": prior.reliable, "unreliable": prior.unreliable,
            "side_sd": prior.side_sd, "scale_sd": prior.scale_sd,
        },
        "strength_sd": model.strength_sd,
        "annotators": votes.annotators.list().len(),
        "votes": votes.votes.len(),
        "votes_to": judgements.last().map_or(0, |judgement| judgement.seq),
    });
    Ok(ModelLabels { description, probability_a })
}

/// Votes for the statistics, in the order of the judgements; `known` turns calibration votes into right and wrong ones, and repeats are
/// second answers, which replace none.
///
/// Responses are named by their model, so that models can be ranked; where one prompt has several comparisons of the same two models
/// (several samples of each) the names get a number, so that different comparisons stay different.
pub fn panel_votes(judgements: &[Judgement], known: &[CalibrationItem]) -> Result<Votes> {
    let known: HashMap<&str, Answer> =
        known.iter().map(|item| (item.comparison_id.as_str(), item.expected)).collect();
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
        let calibration = judgement.kind == Kind::Calibration;
        let expected = known.get(judgement.comparison_id.as_str()).copied().filter(|_| calibration);
        if calibration && expected.is_none() {
            continue;
        }
        let (a, b) = (named(&judgement.model_a, "a"), named(&judgement.model_b, "b"));
        push(&mut votes, judgement, &judgement.prompt_id, &a, &b, expected)?;
    }
    Ok(votes)
}

/// Adds a judgement under these names of its prompt and its responses.
fn push(
    votes: &mut Votes,
    judgement: &Judgement,
    prompt: &str,
    a: &str,
    b: &str,
    expected: Option<Answer>,
) -> Result<()> {
    // Where it was not recorded the canonical order stands for it, which is that of hashes and leans to no side.
    let a_was_left = judgement.a_was_left.unwrap_or(true);
    let turned = |answer: Answer| if a_was_left { answer } else { answer.swapped() };
    let Some(answer) = stated(turned(judgement.overall)) else { return Ok(()) };
    let version = judgement.rubric_version.to_string();
    let row = VoteRow {
        prompt,
        left: if a_was_left { a } else { b },
        right: if a_was_left { b } else { a },
        annotator: &judgement.annotator_id,
        answer,
        category: Some(&judgement.category),
        rubric: (judgement.rubric_version > 0).then_some(version.as_str()),
        time_ms: judgement.answered_ms,
        duration_ms: judgement.work_ms.and_then(|ms| u64::try_from(ms).ok()),
        known: expected.map(turned).and_then(stated),
    };
    let pushed = match judgement.kind {
        Kind::Repeat => votes.push_repeat(&row),
        Kind::Work | Kind::Calibration => votes.push(&row),
    };
    pushed.map_err(|error| StoreError::Damaged {
        place: format!("vote {}", judgement.seq),
        found: error.to_string(),
    })
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
    use polity_stats::panel::{PanelSettings, panel_report};

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
        let votes = panel_votes(&judgements, &[]).unwrap();
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
        let known = [CalibrationItem {
            comparison_id: "x".into(),
            expected: "right3".parse().unwrap(),
            explanation: String::new(),
            active: true,
        }];
        let votes = panel_votes(&[wrong.clone()], &known).unwrap();
        assert_eq!(votes.calibration.iter().map(|vote| vote.right).collect::<Vec<_>>(), [false]);
        wrong.overall = "right2".parse().unwrap();
        let votes = panel_votes(&[wrong], &known).unwrap();
        assert_eq!(votes.calibration.iter().map(|vote| vote.right).collect::<Vec<_>>(), [true]);
    }

    /// A repeat is beside the first answer, with its sides swapped, and never instead of it; without a first answer it says nothing.
    #[test]
    fn a_repeat_measures_consistency_and_replaces_nothing() {
        let again = |judgement| Judgement { kind: Kind::Repeat, ..judgement };
        let judgements = [
            judgement(1, "x", "ann", "left2", true),
            judgement(2, "y", "ann", "right1", true),
            judgement(3, "z", "ann", "withdrawn", true),
            judgement(4, "x", "ben", "left1", false),
            again(judgement(5, "x", "ann", "right3", false)),
            again(judgement(6, "y", "ann", "right3", false)),
            again(judgement(7, "z", "ann", "left1", false)),
        ];
        let votes = panel_votes(&judgements, &[]).unwrap();
        assert_eq!(votes.votes.iter().map(|vote| vote.strength).collect::<Vec<_>>(), [2, -1, 1]);
        let report = panel_report(&votes, &PanelSettings::usual(0));
        let counts = &report.counts;
        assert_eq!((counts.votes, counts.superseded, counts.repeats, counts.comparisons), (3, 0, 2, 2));
        let ann = &report.annotators[0];
        assert_eq!((ann.votes, ann.self_consistency.same, ann.self_consistency.repeats), (2, 1, 2));
        // Of x, which both judged, ann's first answer is compared with ben's.
        let raw = report.figures.iter().find(|figure| figure.name == "raw_agreement").unwrap();
        assert_eq!(raw.value.as_ref().unwrap().estimate, 1.0);
    }

    /// Three annotators who look and one who always takes the left side: the model believes the three, whatever side was shown.
    #[test]
    fn labels_go_by_comparison_and_believe_who_looks() {
        let mut judgements = Vec::new();
        let mut seq = 0;
        for pair in 0..40 {
            // The good response is `a` in every other comparison.
            let a_is_good = pair % 2 == 0;
            for (who, a_was_left) in
                [("ann", true), ("ben", false), ("eve", pair % 4 < 2), ("cid", pair % 3 == 0)]
            {
                seq += 1;
                let good_on_left = a_is_good == a_was_left;
                let shown = if who == "eve" || good_on_left { "left1" } else { "right1" };
                let answer: Answer = shown.parse().unwrap();
                let overall = if a_was_left { answer } else { answer.swapped() };
                judgements.push(judgement(seq, &format!("{pair}"), who, &overall.to_string(), a_was_left));
            }
        }
        let labels = model_labels(&judgements, CrowdPrior::usual()).unwrap();
        assert_eq!(labels.probability_a.len(), 40);
        for (pair, p) in &labels.probability_a {
            let p_good = if pair.parse::<u32>().unwrap() % 2 == 0 { *p } else { 1.0 - p };
            assert!(p_good > 0.9, "comparison {pair}: {p_good}");
        }
        assert_eq!(
            (&labels.description["votes_to"], &labels.description["annotators"]),
            (&json!(160), &json!(4))
        );
        let none = model_labels(&[], CrowdPrior::usual()).unwrap_err().to_string();
        assert!(none.starts_with("labels by model: "), "{none}");
    }
}
