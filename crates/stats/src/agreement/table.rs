//! Items, annotators and the level that each gave to each.

use serde::Serialize;

use crate::Error;

/// One value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which item.
    pub item: usize,
    /// Who gave it.
    pub annotator: usize,
    /// Which level, from 0. For ordinal and interval figures their order is that of the scale, in equal steps.
    pub level: usize,
}

/// What several values of one annotator on one item mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// The last one supersedes the others: a change of mind.
    Last,
    /// The first one counts, the others are repeats to measure consistency by.
    First,
    /// An error: there should be none.
    Refuse,
}

/// How often an annotator who was asked again gave the same level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SelfConsistency {
    /// Values that are the same as the annotator's one before on that item.
    pub same: usize,
    /// Values that had one before.
    pub repeats: usize,
}

/// A table of at most one level for each item and annotator.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    levels: usize,
    annotators: usize,
    /// Item `i` has the values `start[i]..start[i + 1]`.
    start: Vec<usize>,
    /// Annotator and level, by annotator within an item.
    values: Vec<(u32, u32)>,
    consistency: Vec<SelfConsistency>,
}

impl Table {
    /// Collects `entries`.
    ///
    /// # Panics
    ///
    /// If an entry's item, annotator or level is out of range.
    pub fn new(
        items: usize,
        annotators: usize,
        levels: usize,
        entries: impl IntoIterator<Item = Entry>,
        repeats: Repeats,
    ) -> Result<Table, Error> {
        let mut start = vec![0; items + 1];
        let entries: Vec<(u32, u32, u32)> = entries
            .into_iter()
            .map(|Entry { item, annotator, level }| {
                assert!(
                    item < items && annotator < annotators && level < levels,
                    "agreement: item {item}, annotator {annotator}, level {level} of {items}, {annotators}, {levels}"
                );
                start[item + 1] += 1;
                (item as u32, annotator as u32, level as u32)
            })
            .collect();
        (0..items).for_each(|i| start[i + 1] += start[i]);
        // A counting sort keeps the order of arrival within an item.
        let mut at = start.clone();
        let mut sorted = vec![(0, 0); entries.len()];
        for &(item, annotator, level) in &entries {
            sorted[at[item as usize]] = (annotator, level);
            at[item as usize] += 1;
        }

        let mut table = Table {
            levels,
            annotators,
            start: vec![0],
            values: Vec::with_capacity(entries.len()),
            consistency: vec![SelfConsistency::default(); annotators],
        };
        for item in 0..items {
            let row = &mut sorted[start[item]..start[item + 1]];
            row.sort_by_key(|&(annotator, _)| annotator); // Stable.
            for same in row.chunk_by(|a, b| a.0 == b.0) {
                if same.len() > 1 && repeats == Repeats::Refuse {
                    return Err(Error::Repeated { item, annotator: same[0].0 as usize, values: same.len() });
                }
                let consistency = &mut table.consistency[same[0].0 as usize];
                consistency.repeats += same.len() - 1;
                consistency.same += same.windows(2).filter(|two| two[0].1 == two[1].1).count();
                table.values.push(if repeats == Repeats::First { same[0] } else { same[same.len() - 1] });
            }
            table.start.push(table.values.len());
        }
        Ok(table)
    }

    /// Items, those without values included.
    pub fn items(&self) -> usize {
        self.start.len() - 1
    }

    /// Annotators, those without values included.
    pub fn annotators(&self) -> usize {
        self.annotators
    }

    /// Levels.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Values in all.
    pub fn values(&self) -> usize {
        self.values.len()
    }

    /// Annotator and level of each value of an item, by annotator.
    ///
    /// # Panics
    ///
    /// If there is no such item.
    pub fn item(&self, item: usize) -> &[(u32, u32)] {
        &self.values[self.start[item]..self.start[item + 1]]
    }

    /// How many gave the item each level.
    pub(crate) fn counts(&self, item: usize, counts: &mut [f64]) {
        counts.fill(0.0);
        self.item(item).iter().for_each(|&(_, level)| counts[level as usize] += 1.0);
    }

    /// How each annotator answered the second time.
    pub fn self_consistency(&self) -> &[SelfConsistency] {
        &self.consistency
    }

    /// The table of the items for which `keep` holds; annotators and levels stay.
    pub fn filter_items(&self, keep: impl Fn(usize) -> bool) -> Table {
        let entries = (0..self.items()).filter(|&item| keep(item)).enumerate().flat_map(|(new, item)| {
            self.item(item).iter().map(move |&(annotator, level)| Entry {
                item: new,
                annotator: annotator as usize,
                level: level as usize,
            })
        });
        let items = (0..self.items()).filter(|&item| keep(item)).count();
        Table::new(items, self.annotators, self.levels, entries, Repeats::Refuse)
            .expect("a table has one value each")
    }
}
