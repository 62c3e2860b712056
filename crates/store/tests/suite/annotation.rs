//! Handing out, voting, undoing.

use std::collections::{BTreeMap, BTreeSet};

use polity_store::*;

use crate::backends::*;
use crate::on_each;

on_each! {
    async fn everyone_votes_until_nothing_is_left(fixture: Fixture) {
        let store = fixture.store(plain_policy(2)).await;
        let added = store.add_material(material(12, 3, 2), T0).await.unwrap();
        assert_eq!((added.prompts, added.responses, added.comparisons), (12, 24, 12));
        let again = store.add_material(material(12, 3, 2), T0).await.unwrap();
        assert_eq!((again.prompts, again.comparisons, again.comparisons_known), (0, 0, 12));
        let who = annotators(&store, 3).await;
        let mut by_comparison: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut votes = 0;
        let mut working = true;
        while working {
            working = false;
            for annotator in &who {
                if let Some(given) = next(&store, annotator, T0).await {
                    assert_eq!(next(&store, annotator, T0 + 1).await.unwrap().id, given.id, "asked again");
                    assert!(by_comparison.entry(given.comparison_id.clone()).or_default().insert(annotator.clone()));
                    votes += 1;
                    assert_eq!(store.vote(vote(&given, "left2"), T0 + 2).await.unwrap().seq, votes);
                    working = true;
                }
            }
        }
        assert_eq!(votes, 24);
        assert!(by_comparison.values().all(|who| who.len() == 2));
        let progress = store.progress().await.unwrap();
        assert_eq!((progress.votes, progress.served, progress.wanted), (24, 24, 24));
        assert_eq!(progress.comparisons, BTreeMap::from([("full".to_owned(), 12)]));
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        assert_eq!(judgements.len(), 24);
        let nothing = store.next(&who[0], T0).await.unwrap();
        assert_eq!(nothing, Next::Nothing(Nothing::NothingLeft { open: 0, next_lease_ends_ms: None }));
        store.close().await;
    }

    async fn categories_and_sides_are_balanced(fixture: Fixture) {
        let store = fixture.store(plain_policy(2)).await;
        store.add_material(material(60, 3, 2), T0).await.unwrap();
        let who = annotators(&store, 2).await;
        for annotator in &who {
            let mut by_category: BTreeMap<String, i32> = BTreeMap::new();
            let mut m1_left = 0_i32;
            for turn in 1..=60 {
                let given = next(&store, annotator, T0).await.unwrap();
                let texts = store.comparison(&given.comparison_id).await.unwrap();
                *by_category.entry(texts.comparison.category.clone()).or_default() += 1;
                let counts: Vec<i32> = by_category.values().copied().collect();
                let spread = counts.iter().max().unwrap() - counts.iter().min().unwrap();
                assert!(turn < 3 || spread <= 1, "{by_category:?} after {turn}");
                let left = if texts.a.id == given.left_response { &texts.a } else { &texts.b };
                m1_left += if left.model == "m1" { 1 } else { -1 };
                assert!(m1_left.abs() <= 3, "m1 is {m1_left} times more often on the left after {turn}");
                store.vote(vote(&given, "tie"), T0).await.unwrap();
            }
        }
        // Each comparison was shown both ways, or nearly so: the second annotator's sides correct the first's.
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        let mut ways: BTreeMap<String, BTreeSet<bool>> = BTreeMap::new();
        for judgement in &judgements {
            ways.entry(judgement.comparison_id.clone()).or_default().insert(judgement.a_was_left.unwrap());
        }
        let both = ways.values().filter(|ways| ways.len() == 2).count();
        assert!(both >= 40, "{both} of 60 were shown both ways");
    }

    async fn answers_are_turned_to_the_canonical_order(fixture: Fixture) {
        let store = fixture.store(plain_policy(4)).await;
        store.add_material(material(1, 1, 4), T0).await.unwrap();
        // Everybody prefers m1, wherever it is shown.
        for annotator in annotators(&store, 4).await {
            let given = next(&store, &annotator, T0).await.unwrap();
            let texts = store.comparison(&given.comparison_id).await.unwrap();
            let m1 = if texts.a.model == "m1" { &texts.a.id } else { &texts.b.id };
            let answer = if *m1 == given.left_response { "left2" } else { "right2" };
            let mut new = vote(&given, answer);
            new.axes.insert("helpful".into(), answer.parse().unwrap());
            store.vote(new, T0).await.unwrap();
        }
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        let first = &judgements[0];
        let expected = if first.model_a == "m1" { 2 } else { -2 };
        assert!(judgements.iter().any(|j| j.a_was_left == Some(true)) && judgements.iter().any(|j| j.a_was_left == Some(false)));
        for judgement in &judgements {
            assert_eq!(judgement.overall.grade(), Some(expected));
            assert_eq!(judgement.axes["helpful"].grade(), Some(expected));
        }
    }

    async fn a_skip_gives_the_place_to_someone_else(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        store.add_material(material(1, 1, 1), T0).await.unwrap();
        let who = annotators(&store, 2).await;
        let given = next(&store, &who[0], T0).await.unwrap();
        assert!(next(&store, &who[1], T0).await.is_none(), "one place, and it is taken");
        store.vote(vote(&given, "skip"), T0).await.unwrap();
        assert!(next(&store, &who[0], T0).await.is_none(), "not to who skipped it");
        let second = next(&store, &who[1], T0).await.unwrap();
        // Who skipped thinks again, too late.
        assert!(matches!(store.vote(vote(&given, "left1"), T0).await, Err(StoreError::LeaseLost)));
        store.vote(vote(&second, "left1"), T0).await.unwrap();
        assert!(next(&store, &who[1], T0).await.is_none());
    }

    async fn a_lease_that_runs_out_goes_to_someone_else(fixture: Fixture) {
        let store = fixture.store(Policy { lease_ms: 1000, ..plain_policy(1) }).await;
        store.add_material(material(1, 1, 1), T0).await.unwrap();
        let who = annotators(&store, 2).await;
        let given = next(&store, &who[0], T0).await.unwrap();
        let waiting = store.next(&who[1], T0 + 999).await.unwrap();
        assert_eq!(waiting, Next::Nothing(Nothing::NothingLeft { open: 0, next_lease_ends_ms: Some(T0 + 1000) }));
        let second = next(&store, &who[1], T0 + 1000).await.unwrap();
        assert!(matches!(store.vote(vote(&given, "left1"), T0 + 1001).await, Err(StoreError::LeaseLost)));
        store.release(&who[1], second.id).await.unwrap();
        // The place is free again, so the late answer is welcome.
        store.vote(vote(&given, "left1"), T0 + 1002).await.unwrap();
        assert!(next(&store, &who[1], T0 + 1003).await.is_none());
    }

    async fn an_undo_is_a_vote_and_hands_the_comparison_out_again(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        store.add_material(material(3, 1, 1), T0).await.unwrap();
        let who = annotators(&store, 1).await;
        let first = next(&store, &who[0], T0).await.unwrap();
        store.vote(vote(&first, "left3"), T0).await.unwrap();
        let second = next(&store, &who[0], T0 + 1).await.unwrap();
        let again = store.undo(&who[0], T0 + 2).await.unwrap();
        assert_eq!((again.id, &again.left_response), (first.id, &first.left_response));
        assert_eq!(again.state, "live");
        assert_eq!(store.judgements(JudgementFilter::default()).await.unwrap().len(), 0);
        store.vote(vote(&again, "right1"), T0 + 3).await.unwrap();
        let history = store.votes_on(&first.comparison_id).await.unwrap();
        let told: Vec<(i64, String, Option<i64>)> =
            history.iter().map(|v| (v.seq, v.overall.to_string(), v.supersedes)).collect();
        assert_eq!(
            told,
            [(1, "left3".into(), None), (2, "withdrawn".into(), Some(1)), (3, "right1".into(), Some(2))]
        );
        assert_eq!(store.judgements(JudgementFilter::default()).await.unwrap().len(), 1);
        // The second comparison went back to the queue and comes again.
        let mut left = BTreeSet::new();
        while let Some(given) = next(&store, &who[0], T0 + 4).await {
            left.insert(given.comparison_id.clone());
            store.vote(vote(&given, "tie"), T0 + 4).await.unwrap();
        }
        assert!(left.contains(&second.comparison_id) && left.len() == 2);
        assert!(store.verify(None).await.unwrap().bad.is_empty());
    }

    async fn the_same_answer_twice_is_one_vote_and_another_supersedes(fixture: Fixture) {
        let store = fixture.store(plain_policy(1)).await;
        store.add_material(material(1, 1, 1), T0).await.unwrap();
        let who = annotators(&store, 2).await;
        let given = next(&store, &who[0], T0).await.unwrap();
        assert_eq!(store.vote(vote(&given, "left1"), T0).await.unwrap().seq, 1);
        assert_eq!(store.vote(vote(&given, "left1"), T0 + 5).await.unwrap().seq, 1);
        assert_eq!(store.vote(vote(&given, "right1"), T0 + 9).await.unwrap().seq, 2);
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        assert_eq!(judgements.iter().map(|j| j.seq).collect::<Vec<_>>(), [2]);
        // Another annotator cannot answer it, nor learn that it exists.
        let mut stolen = vote(&given, "left1");
        stolen.annotator_id = who[1].clone();
        assert!(matches!(store.vote(stolen, T0).await, Err(StoreError::NotFound { what: "assignment", .. })));
    }

    async fn flags_hold_a_comparison_back(fixture: Fixture) {
        let store = fixture.store(Policy { flags_hold: 2, ..plain_policy(3) }).await;
        store.add_material(material(1, 1, 3), T0).await.unwrap();
        let who = annotators(&store, 4).await;
        for (annotator, left) in [(&who[0], true), (&who[1], true), (&who[2], false)] {
            let given = next(&store, annotator, T0).await;
            assert_eq!(given.is_some(), left, "{annotator}");
            if let Some(given) = given {
                store.vote(vote(&given, "flag"), T0).await.unwrap();
            }
        }
        let queue = store.review_queue(10).await.unwrap();
        assert_eq!((queue.len(), queue[0].flags), (1, 2));
        let id = queue[0].comparison_id.clone();
        store.adjudicate(&id, Answer::Tie, "both copy the prompt", "rev", T0 + 1).await.unwrap();
        assert!(store.review_queue(10).await.unwrap().is_empty());
        store.set_queued(&id, true, "rev", T0).await.unwrap();
        assert!(store.verify(None).await.unwrap().bad.is_empty(), "queueing is no decision");
        assert!(next(&store, &who[2], T0 + 2).await.is_some());
    }

    async fn known_answers_come_first_and_must_be_right(fixture: Fixture) {
        let policy = Policy { calibration_first: 4, calibration_pass: 0.75, ..plain_policy(1) };
        let store = fixture.store(policy).await;
        store.add_material(material(10, 1, 1), T0).await.unwrap();
        let all = store.comparisons(None, "", 100).await.unwrap();
        for comparison in &all[..5] {
            let item = CalibrationItem {
                comparison_id: comparison.id.clone(),
                expected: "left2".parse().unwrap(),
                explanation: "a is right".into(),
                active: true,
            };
            store.set_calibration(item, "cli", T0).await.unwrap();
        }
        let who = annotators(&store, 2).await;
        // `right` says how many of the first four each annotator gets right.
        for (annotator, right) in [(&who[0], 3), (&who[1], 1)] {
            for turn in 0..4 {
                let given = next(&store, annotator, T0).await.unwrap();
                assert_eq!(given.kind, Kind::Calibration);
                let a_left = all.iter().find(|c| c.id == given.comparison_id).unwrap().response_a == given.left_response;
                let answer = if a_left == (turn < right) { "left1" } else { "right1" };
                let feedback = store.vote(vote(&given, answer), T0).await.unwrap().feedback.unwrap();
                assert_eq!(feedback.right, turn < right);
                assert!(store.vote(vote(&given, "tie"), T0).await.is_err(), "the answer has been shown");
                assert!(store.undo(annotator, T0).await.is_err());
            }
        }
        assert_eq!(next(&store, &who[0], T0).await.unwrap().kind, Kind::Work);
        // The other gets the one that is left, and then no more.
        let given = next(&store, &who[1], T0).await.unwrap();
        assert_eq!(given.kind, Kind::Calibration);
        store.vote(vote(&given, "tie"), T0).await.unwrap();
        let told = store.next(&who[1], T0).await.unwrap();
        assert_eq!(told, Next::Nothing(Nothing::NotQualified { answered: 5, right: 1 }));
        // A changed rubric asks everybody again, from the start.
        store.add_rubric(Rubric::usual(), "cli", "clearer", true, T0 + 1).await.unwrap();
        let held = next(&store, &who[0], T0 + 1).await.unwrap();
        store.vote(vote(&held, "left1"), T0 + 1).await.unwrap();
        for annotator in &who {
            let given = next(&store, annotator, T0 + 2).await.unwrap();
            assert_eq!((given.kind, given.rubric_version), (Kind::Calibration, 2));
        }
        // Known comparisons never count as work.
        assert_eq!(store.judgements(JudgementFilter { kind: Some(Kind::Work), ..Default::default() }).await.unwrap().len(), 1);
        assert!(store.verify(None).await.unwrap().bad.is_empty());
    }

    async fn repeats_come_back_with_their_sides_swapped(fixture: Fixture) {
        let store = fixture.store(Policy { repeat_share: 1.0, repeat_gap: 3, ..plain_policy(1) }).await;
        store.add_material(material(10, 1, 1), T0).await.unwrap();
        let who = annotators(&store, 1).await;
        let mut shown: BTreeMap<String, String> = BTreeMap::new();
        let mut kinds = Vec::new();
        for _ in 0..8 {
            let given = next(&store, &who[0], T0).await.unwrap();
            kinds.push(given.kind);
            match given.kind {
                Kind::Repeat => assert_ne!(shown[&given.comparison_id], given.left_response),
                _ => drop(shown.insert(given.comparison_id.clone(), given.left_response.clone())),
            }
            store.vote(vote(&given, "left1"), T0).await.unwrap();
        }
        let is_repeat: Vec<bool> = kinds.iter().map(|kind| *kind == Kind::Repeat).collect();
        // Four votes, so that three lie after the first; from then on an own vote is always far enough back.
        assert_eq!(is_repeat, [false, false, false, false, true, true, true, true]);
        // Left twice with the sides swapped is another answer each time. The first ones stand, here and in a dataset.
        let votes = panel_votes(&store.judgements(JudgementFilter::default()).await.unwrap(), &[]).unwrap();
        assert_eq!((votes.votes.len(), votes.standing().len(), votes.repeats.len()), (4, 4, 4));
        assert!(votes.self_consistency(&votes.sides()).iter().all(|own| (own.same, own.repeats) == (0, 4)));
        store.freeze(crate::dataset::freeze("once"), "cli", T0).await.unwrap();
        let rows = store.dataset_rows("once", 0, 100).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.row.a_votes + row.row.b_votes).collect::<Vec<_>>(), [1; 4]);
    }

    async fn scores_are_followed_with_a_random_share(fixture: Fixture) {
        let store = fixture.store(Policy { random_share: 0.25, score_pool: 2, ..plain_policy(1) }).await;
        store.add_material(material(200, 1, 1), T0).await.unwrap();
        let all = store.comparisons(None, "", 1000).await.unwrap();
        let scores = all.iter().enumerate().map(|(i, c)| (c.id.clone(), i as f64)).collect();
        store.set_scores(scores).await.unwrap();
        let who = annotators(&store, 1).await;
        let mut left: Vec<String> = all.iter().map(|c| c.id.clone()).collect();
        let mut by_score = 0;
        for _ in 0..100 {
            let given = next(&store, &who[0], T0).await.unwrap();
            store.vote(vote(&given, "left1"), T0).await.unwrap();
            let stored = store.votes_by(&who[0], 1).await.unwrap().remove(0);
            let in_pool = left[left.len() - 2..].contains(&given.comparison_id);
            let expected = 0.25 / left.len() as f64 + if in_pool { 0.75 / 2.0 } else { 0.0 };
            assert!((stored.propensity.unwrap() - expected).abs() < 1e-12);
            if stored.chosen_by.as_deref() == Some("score") {
                by_score += 1;
                assert!(in_pool);
            }
            left.retain(|id| *id != given.comparison_id);
        }
        // 75 expected, standard deviation 4.3.
        assert!((58..=92).contains(&by_score), "{by_score}");
    }

    async fn fifty_at_once_never_exceed_what_is_wanted(fixture: Fixture) {
        let store = fixture.store(plain_policy(3)).await;
        store.add_material(material(40, 4, 3), T0).await.unwrap();
        let who = annotators(&store, 50).await;
        let tasks: Vec<_> = who.into_iter().map(|annotator| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for turn in 0.. {
                    let Some(given) = next(&store, &annotator, T0 + turn).await else { break };
                    let answer = if turn % 7 == 3 { "skip" } else { "right2" };
                    acknowledged.push((store.vote(vote(&given, answer), T0 + turn).await.unwrap().seq, given, answer));
                }
                acknowledged
            })
        }).collect();
        let mut judged: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut seqs = BTreeSet::new();
        for task in tasks {
            for (seq, given, answer) in task.await.unwrap() {
                assert!(seqs.insert(seq), "vote {seq} was acknowledged twice");
                if answer != "skip" {
                    let new = judged.entry(given.comparison_id).or_default().insert(given.annotator_id);
                    assert!(new, "handed twice to the same annotator");
                }
            }
        }
        assert_eq!(judged.len(), 40);
        assert!(judged.values().all(|who| who.len() == 3), "{:?}", judged.values().map(BTreeSet::len).collect::<Vec<_>>());
        assert_eq!(seqs.last().copied(), Some(seqs.len() as i64), "numbered without gaps");
        assert_eq!(store.progress().await.unwrap().votes, seqs.len() as i64);
        assert!(store.verify(None).await.unwrap().bad.is_empty());
    }
}
