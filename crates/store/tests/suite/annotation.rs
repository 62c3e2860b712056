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
        let judgements = store.judgements(JudgementFilter::default()).await.unwrap();
        assert_eq!(judgements.len(), 24);
        store.close().await;
    }
}
