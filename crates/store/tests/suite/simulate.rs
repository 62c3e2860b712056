//! A simulated panel's votes, against what is true of votes that are cast one by one.

use std::collections::{BTreeMap, BTreeSet};

use polity_store::*;

use crate::backends::*;
use crate::on_each;

/// Prefers `m1`, wherever it is shown.
fn honest(shown: &Shown<'_>) -> Answer {
    let side = if shown.left.contains(" m1 ") { Side::Left } else { Side::Right };
    assert!(shown.prompt.starts_with("prompt ") && shown.left != shown.right);
    Answer::Better { side, strength: 1 + (shown.annotator % 3) as u8 }
}

/// All that is left, `at_most` votes at a time.
async fn all(store: &Store, who: &[String], at_most: u64, now_ms: i64) -> u64 {
    let mut simulation = Simulation::new(who.to_vec(), 7, honest);
    let mut votes = 0;
    loop {
        match store.simulate(&mut simulation, at_most, now_ms).await.unwrap() {
            0 => return votes,
            cast => votes += cast,
        }
    }
}

async fn known(store: &Store, n: usize) {
    for comparison in &store.comparisons(None, "", 100).await.unwrap()[..n] {
        let m1 = store.response(&comparison.response_a).await.unwrap().model == "m1";
        let item = CalibrationItem {
            comparison_id: comparison.id.clone(),
            expected: if m1 { "left2" } else { "right2" }.parse().unwrap(),
            explanation: "m1 is right".into(),
            active: true,
        };
        store.set_calibration(item, "cli", T0).await.unwrap();
    }
}

on_each! {
    async fn they_leave_what_votes_one_by_one_leave(fixture: Fixture) {
        let store = fixture.store(plain_policy(3)).await;
        store.add_material(material(60, 3, 3), T0).await.unwrap();
        let who = simulated(&store, 5).await;
        assert_eq!(all(&store, &who, u64::MAX, T0 + 5).await, 180);

        let progress = store.progress().await.unwrap();
        assert_eq!((progress.votes, progress.served, progress.wanted, progress.live_leases), (180, 180, 180, 0));
        assert_eq!(progress.comparisons, BTreeMap::from([("full".to_owned(), 60)]));
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        assert_eq!(judgements.len(), 180);
        let mut by: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let mut propensities: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for judgement in &judgements {
            let m1_wins = if judgement.model_a == "m1" { 1 } else { -1 };
            assert_eq!(judgement.overall.grade().unwrap().signum(), m1_wins);
            assert!(judgement.machine && judgement.kind == Kind::Work && judgement.rubric_version == 1);
            by.entry(&judgement.comparison_id).or_default().insert(&judgement.annotator_id);
            propensities.entry(&judgement.category).or_default().push(judgement.propensity.unwrap());
        }
        assert!(by.values().all(|who| who.len() == 3), "nobody judges a comparison twice");
        for drawn in propensities.values() {
            // The first is one of 20 fresh ones, the last the only one; three judgements each.
            let expected: Vec<f64> = (0..60).map(|n| 1.0 / (20 - n / 3) as f64).collect();
            assert_eq!(*drawn, expected);
        }
        for annotator in &who {
            let own: Vec<_> = judgements.iter().filter(|j| j.annotator_id == *annotator).collect();
            assert!((20..=52).contains(&own.len()), "{annotator} has {} of 180", own.len());
            let m1_left = own.iter().filter(|j| j.a_was_left == Some(j.model_a == "m1")).count() as i64;
            assert!((2 * m1_left - own.len() as i64).abs() <= 2, "{annotator}: {m1_left} of {}", own.len());
        }
        for (sql, expected) in [
            ("SELECT COUNT(*) FROM vote v JOIN assignment a ON a.id = v.assignment_id WHERE a.state = 'voted' \
              AND a.annotator_id = v.annotator_id AND a.comparison_id = v.comparison_id AND a.kind = v.kind \
              AND a.left_response = v.left_response AND v.chosen_by = 'random'", 180),
            ("SELECT CAST(SUM(served) AS BIGINT) FROM category_tally", 180),
            ("SELECT CAST(SUM(fresh + open) AS BIGINT) FROM category_queue", 0),
            ("SELECT COUNT(*) FROM (SELECT SUM(CASE WHEN left_response = response_a THEN a_is_first * 2 - 1 ELSE 1 - a_is_first * 2 END) AS n, annotator_id \
              FROM assignment a JOIN comparison c ON c.id = a.comparison_id GROUP BY annotator_id) x \
              JOIN side_balance b ON b.annotator_id = x.annotator_id AND b.first_left = x.n", 5),
        ] {
            assert_eq!(fixture.count(sql).await, expected, "{sql}");
        }
        assert_eq!(store.seal_votes("cli", T0 + 6).await.unwrap(), Some(180));
        assert_eq!(store.verify(None).await.unwrap().bad, []);
        let person = annotators(&store, 1).await;
        let nothing = Next::Nothing(Nothing::NothingLeft { open: 0, next_lease_ends_ms: None });
        assert_eq!(store.next(&person[0], T0 + 7).await.unwrap(), nothing);
    }

    /// The votes are the same, to the chain hash, wherever one transaction ends and the next begins.
    async fn the_nth_vote_does_not_depend_on_when_it_is_cast(fixture: Fixture) {
        let policy = || Policy { calibration_first: 2, calibration_share: 0.1, repeat_share: 0.2, repeat_gap: 3, ..plain_policy(3) };
        let mut histories = Vec::new();
        for at_most in [1, 7, u64::MAX] {
            let beside = crate::backends::sqlite();
            // Once on the back end under test, and otherwise beside it.
            let place = if at_most == 7 { fixture } else { &beside };
            let store = place.store(policy()).await;
            store.add_material(material(40, 2, 3), T0).await.unwrap();
            known(&store, 5).await;
            let who = simulated(&store, 4).await;
            let votes = all(&store, &who, at_most, T0).await;
            let mut history = Vec::new();
            for annotator in &who {
                history.extend(store.votes_by(annotator, 1000).await.unwrap());
            }
            assert_eq!(history.len() as u64, votes);
            for (kind, n) in [(Kind::Work, 105..=105), (Kind::Calibration, 12..=20), (Kind::Repeat, 10..=50)] {
                let found = history.iter().filter(|vote| vote.kind == kind).count();
                assert!(n.contains(&found), "{found} of {kind:?}");
            }
            for repeat in history.iter().filter(|vote| vote.kind == Kind::Repeat) {
                let first = history.iter().find(|vote| vote.kind == Kind::Work
                    && (&vote.annotator_id, &vote.comparison_id) == (&repeat.annotator_id, &repeat.comparison_id)).unwrap();
                assert_ne!(first.left_response, repeat.left_response);
                let between = history.iter().filter(|vote| vote.annotator_id == repeat.annotator_id
                    && vote.seq > first.seq && vote.seq < repeat.seq).count();
                assert!(between >= 3, "{between} votes between {} and {}", first.seq, repeat.seq);
            }
            assert_eq!(store.verify(None).await.unwrap().bad, []);
            histories.push(history);
        }
        for history in &histories[1..] {
            assert_eq!(history.len(), histories[0].len());
            for (vote, expected) in history.iter().zip(&histories[0]) {
                assert_eq!(vote, expected);
            }
        }
    }

    /// What people hold or have judged is theirs, and comparisons out of the queue are left alone.
    async fn people_keep_their_places(fixture: Fixture) {
        let store = fixture.store(Policy { lease_ms: 1000, flags_hold: 1, ..plain_policy(2) }).await;
        store.add_material(material(8, 1, 2), T0).await.unwrap();
        known(&store, 1).await;
        let people = annotators(&store, 2).await;
        let given = next(&store, &people[0], T0).await.unwrap();
        store.vote(vote(&given, "flag"), T0).await.unwrap();
        let held = given.comparison_id;
        let given = next(&store, &people[0], T0).await.unwrap();
        store.vote(vote(&given, "tie"), T0).await.unwrap();
        let judged = given.comparison_id;
        let leased = next(&store, &people[0], T0).await.unwrap().comparison_id;
        let all_ids = store.comparisons(Some("fresh"), "", 100).await.unwrap();
        let closed = all_ids[0].id.clone();
        store.set_queued(&closed, false, "rev", T0).await.unwrap();

        let who = simulated(&store, 4).await;
        let mut simulation = Simulation::new(who.clone(), 7, honest);
        // Two for each of three that are fresh, one for what a person has judged, and one for what a person holds; none is known.
        assert_eq!(store.simulate(&mut simulation, 100, T0 + 1).await.unwrap(), 8);
        assert_eq!(store.simulate(&mut simulation, 100, T0 + 2).await.unwrap(), 0);
        for (id, votes) in [(&held, 1), (&judged, 2), (&leased, 1), (&closed, 0)] {
            assert_eq!(store.votes_on(id).await.unwrap().len(), votes);
        }
        // The person has gone away: the same simulation goes back for the place.
        assert_eq!(store.simulate(&mut simulation, 100, T0 + 1000).await.unwrap(), 1);
        let both: BTreeSet<String> =
            store.votes_on(&leased).await.unwrap().into_iter().map(|vote| vote.annotator_id).collect();
        assert!(both.len() == 2 && both.iter().all(|id| who.contains(id)), "{both:?}");
        assert_eq!(store.progress().await.unwrap().comparisons["full"], 5);
        assert_eq!(fixture.count("SELECT CAST(SUM(fresh + open) AS BIGINT) FROM category_queue").await, 0);
        assert_eq!(store.verify(None).await.unwrap().bad, []);
    }

    /// Who gets the known answers wrong does no work; a lease that a simulated annotator was left with is given back.
    async fn the_unqualified_do_not_work(fixture: Fixture) {
        let store = fixture.store(Policy { calibration_first: 2, ..plain_policy(2) }).await;
        store.add_material(material(20, 1, 2), T0).await.unwrap();
        known(&store, 3).await;
        let who = simulated(&store, 3).await;
        assert!(next(&store, &who[1], T0).await.is_some());
        let contrary = |shown: &Shown<'_>| if shown.annotator == 0 { honest(shown).swapped() } else { honest(shown) };
        let mut simulation = Simulation::new(who.clone(), 7, contrary);
        // Three wrong answers, twice two right ones, and 17 comparisons.
        assert_eq!(store.simulate(&mut simulation, 100, T0).await.unwrap(), 3 + 4 + 34);
        assert_eq!(store.judgements_made(&who[0]).await.unwrap(), 0);
        let standing = store.standing(&who[0]).await.unwrap();
        assert_eq!((standing.answered, standing.right), (3, 0));
        assert_eq!(store.standing(&who[1]).await.unwrap().right, 2);
        assert_eq!(store.progress().await.unwrap().live_leases, 0);
    }

    async fn people_are_not_simulated_and_no_answer_is_none(fixture: Fixture) {
        let store = fixture.store(plain_policy(2)).await;
        store.add_material(material(3, 1, 2), T0).await.unwrap();
        let people = annotators(&store, 1).await;
        let refused = store.simulate(&mut Simulation::new(people, 7, honest), 9, T0).await.unwrap_err();
        assert_eq!(refused.to_string(), "simulating `ann0`: it is a human annotator");
        let who = simulated(&store, 2).await;
        let skips = |_: &Shown<'_>| Answer::Skip;
        let refused = store.simulate(&mut Simulation::new(who.clone(), 7, skips), 9, T0).await.unwrap_err();
        assert_eq!(refused.to_string(), "a simulated answer is `skip`; expected a judgement");
        assert_eq!(store.progress().await.unwrap().votes, 0);
        assert_eq!(store.simulate(&mut Simulation::new(who, 7, honest), 0, T0).await.unwrap(), 0);
    }
}
