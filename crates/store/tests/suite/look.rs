//! Looks at what people said on the holdout: whose votes, in which order, and what a look costs.

use polity_store::*;

use crate::backends::*;
use crate::on_each;

const PROMPTS: usize = 60;

/// Comparisons of two models on many prompts, of which some are in the holdout.
fn two_models() -> Material {
    let mut material = material(PROMPTS, 2, 2);
    for (i, response) in material.responses.iter_mut().enumerate() {
        response.model_hash = Some(if i % 2 == 0 { "base" } else { "new" }.to_owned());
    }
    material
}

/// An annotator answers everything: the better response is the one of `new`, unless its comparison's id says otherwise.
async fn answer_all(store: &Store, annotator: &str, now_ms: i64, part: Option<Part>) -> usize {
    let mut given = 0;
    while let Some(assignment) = next(store, annotator, now_ms).await {
        let texts = store.comparison(&assignment.comparison_id).await.unwrap();
        let wanted = part.is_none_or(|part| texts.prompt.part == part);
        let new_is_a = texts.a.model_hash.as_deref() == Some("new");
        let new_left = (assignment.left_response == texts.comparison.response_a) == new_is_a;
        let overall = if !wanted {
            "skip"
        } else if new_left {
            "left2"
        } else {
            "right2"
        };
        store.vote(vote(&assignment, overall), now_ms).await.unwrap();
        given += usize::from(wanted);
    }
    given
}

on_each! {
    async fn votes_on_the_holdout_are_read_in_order_and_paid_for_once(fixture: Fixture) {
        let store = fixture.store(Policy { holdout_looks: 2, ..plain_policy(2) }).await;
        store.add_material(two_models(), T0).await.unwrap();
        let annotators = annotators(&store, 2).await;
        let (none, looks) = store.look("new", "base", false, "cli", T0).await.unwrap();
        assert_eq!((none.len(), looks), (0, Looks { used: 0, budget: 2 }), "nothing to see costs nothing");

        // One answers everything, the other the holdout alone.
        let all = answer_all(&store, &annotators[0], T0, None).await;
        assert_eq!(all, PROMPTS);
        let (votes, looks) = store.look("new", "base", false, "cli", T0 + 1).await.unwrap();
        assert_eq!(looks, Looks { used: 1, budget: 2 });
        assert!(votes.len() > 2 && votes.len() < PROMPTS / 2, "{}", votes.len());
        assert!(votes.iter().all(|vote| vote.score == 1.0 && vote.trained));
        assert!(votes.is_sorted_by_key(|vote| vote.seq));
        for vote in &votes {
            assert_eq!(store.prompt(&vote.prompt_id).await.unwrap().part, Part::Holdout);
        }
        // The same votes again are the same look; from the baseline's side they are another.
        assert_eq!(store.look("new", "base", false, "cli", T0 + 2).await.unwrap(), (votes.clone(), looks));
        let held = answer_all(&store, &annotators[1], T0, Some(Part::Holdout)).await;
        assert_eq!(held, votes.len());
        let (more, looks) = store.look("new", "base", false, "cli", T0 + 3).await.unwrap();
        assert_eq!((more.len(), looks.used), (2 * votes.len(), 2));
        assert_eq!(more.iter().filter(|vote| vote.trained).count(), votes.len(), "the second saw no training prompt");

        // The budget is spent: what was paid for may be seen again, and nothing else.
        assert_eq!(store.look("new", "base", false, "cli", T0 + 4).await.unwrap().0, more);
        let refused = store.look("base", "new", false, "cli", T0 + 5).await.unwrap_err().to_string();
        assert!(refused.contains("budget of 2 looks is used up"), "{refused}");
        let raised = Policy { holdout_looks: 3, ..store.project().await.unwrap().policy };
        store.set_policy(raised, "cli", T0 + 6).await.unwrap();
        let (turned, _) = store.look("base", "new", false, "cli", T0 + 7).await.unwrap();
        assert!(turned.iter().all(|vote| vote.score == 0.0));
        assert_eq!(turned[0].candidate_chars, more[0].baseline_chars);

        let events = store.events_of("look").await.unwrap();
        let first: Look = serde_json::from_str(&events[0].body).unwrap();
        assert_eq!((events.len(), first.votes, first.votes_to), (3, votes.len(), votes.last().unwrap().seq));
        assert!(store.verify(None).await.unwrap().bad.is_empty());
    }
}
