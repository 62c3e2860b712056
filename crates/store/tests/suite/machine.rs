//! Votes of judges that are programs.

use std::collections::BTreeMap;

use polity_store::*;

use crate::backends::*;
use crate::on_each;

fn verdict(comparison: &str, overall: &str) -> MachineVote {
    MachineVote {
        annotator_id: "judge:m".into(),
        comparison_id: comparison.into(),
        overall: overall.parse().unwrap(),
        axes: BTreeMap::from([("helpful".to_owned(), overall.parse().unwrap())]),
        reason: "because".into(),
        rubric_version: 1,
        origin: "judge m".into(),
    }
}

on_each! {
    async fn a_judge_takes_nobodys_place_and_its_vote_has_no_side(fixture: Fixture) {
        let store = fixture.store(plain_policy(2)).await;
        store.add_material(material(3, 1, 2), T0).await.unwrap();
        store.add_annotator("judge:m", "m", AnnotatorKind::Machine, T0).await.unwrap();
        let ids = store.unjudged("judge:m", 1, i64::MAX).await.unwrap();
        assert_eq!((ids.len(), store.unjudged("judge:m", 1, 2).await.unwrap()), (3, ids[..2].to_vec()));
        for id in &ids {
            store.machine_vote(verdict(id, "right2"), T0).await.unwrap();
        }
        assert_eq!(store.unjudged("judge:m", 1, i64::MAX).await.unwrap(), Vec::<String>::new());
        let progress = store.progress().await.unwrap();
        assert_eq!((progress.votes, progress.served, progress.wanted), (3, 0, 6));
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        assert!(judgements.iter().all(|j| j.machine && j.a_was_left.is_none() && j.overall.to_string() == "right2"));

        // A new rubric asks again, and the new vote stands for the old one.
        store.add_rubric(Rubric { title: "Another".into(), ..Rubric::usual() }, "cli", "", false, T0).await.unwrap();
        assert_eq!(store.unjudged("judge:m", 2, i64::MAX).await.unwrap(), ids);
        store.machine_vote(MachineVote { rubric_version: 2, ..verdict(&ids[0], "tie") }, T0 + 1).await.unwrap();
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        assert_eq!(judgements.len(), 3);
        assert_eq!(store.unjudged("judge:m", 2, i64::MAX).await.unwrap(), ids[1..]);
        assert!(store.verify(None).await.unwrap().bad.is_empty());
    }

    async fn what_no_judge_may_say_is_refused(fixture: Fixture) {
        let store = fixture.store(plain_policy(2)).await;
        store.add_material(material(3, 1, 2), T0).await.unwrap();
        store.add_annotator("judge:m", "m", AnnotatorKind::Machine, T0).await.unwrap();
        store.add_annotator("ann", "ann", AnnotatorKind::Human, T0).await.unwrap();
        let ids = store.unjudged("judge:m", 1, i64::MAX).await.unwrap();
        let good = verdict(&ids[0], "left1");
        let axis = |key: &str, answer: &str| BTreeMap::from([(key.to_owned(), answer.parse().unwrap())]);
        for (why, bad) in [
            ("human annotator", MachineVote { annotator_id: "ann".into(), ..good.clone() }),
            ("no annotator", MachineVote { annotator_id: "nobody".into(), ..good.clone() }),
            ("no comparison", MachineVote { comparison_id: "x".into(), ..good.clone() }),
            ("a judgement", MachineVote { overall: Answer::Skip, ..good.clone() }),
            ("an axis", MachineVote { axes: axis("witty", "tie"), ..good.clone() }),
            ("a judgement", MachineVote { axes: axis("helpful", "flag"), ..good.clone() }),
            ("no rubric version", MachineVote { rubric_version: 9, ..good.clone() }),
            ("at most", MachineVote { reason: "x".repeat(REASON_BYTES_MAX + 1), ..good.clone() }),
        ] {
            let refused = store.machine_vote(bad, T0).await.unwrap_err().to_string();
            assert!(refused.contains(why), "{why}: {refused}");
        }
        assert_eq!(store.progress().await.unwrap().votes, 0);

        // Known answers, what is held back and what has no text are not for judges.
        let item = CalibrationItem {
            comparison_id: ids[0].clone(), expected: Answer::Tie, explanation: String::new(), active: true,
        };
        store.set_calibration(item, "cli", T0).await.unwrap();
        fixture.tamper("comparison", &format!("UPDATE comparison SET state = 'held' WHERE id = '{}'", ids[1])).await;
        fixture.tamper("response", &format!(
            "UPDATE response SET content = '{{\"reference\":\"x\"}}' WHERE id = (SELECT response_b FROM comparison WHERE id = '{}')", ids[2]
        )).await;
        assert_eq!(store.unjudged("judge:m", 1, i64::MAX).await.unwrap(), Vec::<String>::new());
    }
}
