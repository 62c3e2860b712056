//! Which tokens belong to which sequence, in a flat ragged array.

use std::ops::Range;

/// Sequence `i` owns `offset_i[i]..offset_i[i + 1]`. There is no padding, so there is no mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spans {
    offsets: Vec<usize>,
}

impl Spans {
    /// From offsets, one more than there are sequences.
    ///
    /// # Panics
    ///
    /// If the offsets do not start at zero or ever decrease.
    pub fn new(offsets: Vec<usize>) -> Spans {
        assert_eq!(offsets.first(), Some(&0), "spans: offsets start at 0");
        assert!(offsets.is_sorted(), "spans: offsets never decrease, got {offsets:?}");
        Spans { offsets }
    }

    /// From the length of each sequence.
    pub fn from_lengths(lengths: impl IntoIterator<Item = usize>) -> Spans {
        let mut offsets = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            offsets.push(end);
        }
        Spans { offsets }
    }

    /// Number of sequences.
    pub fn count(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Number of tokens of all sequences.
    pub fn total(&self) -> usize {
        self.offsets[self.count()]
    }

    /// Where sequence `i` lies.
    pub fn range(&self, i: usize) -> Range<usize> {
        self.offsets[i]..self.offsets[i + 1]
    }

    /// Number of tokens of sequence `i`.
    pub fn length(&self, i: usize) -> usize {
        self.range(i).len()
    }

    /// The ranges of all sequences, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        (0..self.count()).map(|i| self.range(i))
    }

    /// Panics unless `found` values were given, one for each token.
    pub(super) fn expect_tokens(&self, op: &str, name: &str, found: usize) {
        assert_eq!(found, self.total(), "{op}: {name} has one value per token, expected {}", self.total());
    }

    /// Panics unless `found` values were given, one for each sequence.
    pub(super) fn expect_sequences(&self, op: &str, name: &str, found: usize) {
        assert_eq!(found, self.count(), "{op}: {name} has one value per sequence, expected {}", self.count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_lengths() {
        let spans = Spans::from_lengths([2, 0, 3]);
        assert_eq!(spans, Spans::new(vec![0, 2, 2, 5]));
        assert_eq!((spans.count(), spans.total()), (3, 5));
        assert_eq!(spans.iter().collect::<Vec<_>>(), [0..2, 2..2, 2..5]);
        assert_eq!((spans.length(1), spans.length(2)), (0, 3));
        assert_eq!(Spans::from_lengths([]).count(), 0);
    }

    #[test]
    #[should_panic(expected = "never decrease")]
    fn decreasing_offsets_are_a_bug() {
        Spans::new(vec![0, 3, 2]);
    }

    #[test]
    #[should_panic(expected = "start at 0")]
    fn offsets_start_at_zero() {
        Spans::new(vec![1, 3]);
    }
}
