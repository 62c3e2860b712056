//! What a forward pass reads: tokens in segments, and what is wanted of them.
//!
//! A [`Batch`] is `n` tokens and a list of segments, never padded. A segment may name a *parent*:
//! its tokens see their own segment causally and the whole chain of ancestors, at positions that
//! continue the parent's. The two responses of a pair, or the k samples of one prompt, are children
//! of one prompt segment, so the prompt is computed once.
//!
//! A [`Prediction`] is `(row, token)`: "at this row, what is the log-prob of this token". The shift by
//! one between a token and the row that predicts it happens in [`Batch::predict`] and nowhere else.
//!
//! Letters: `n` tokens (rows) of the batch, `m` predictions.

/// A run of consecutive tokens of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: usize,
    /// Tokens.
    pub len: usize,
    /// The segment whose tokens (with its own ancestors') come before these; always an earlier one.
    pub parent: Option<usize>,
    /// Position of the first token: the parent's end, or 0.
    pub position: usize,
}

impl Segment {
    /// The rows of this segment.
    pub fn rows(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }

    /// Position after the last token.
    pub fn end_position(&self) -> usize {
        self.position + self.len
    }
}

/// At `row`, the log-prob of `token`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The row that predicts: the token before, in its segment or at the end of an ancestor.
    pub row: usize,
    /// The token predicted.
    pub token: u32,
}

/// Ragged tokens in a forest of segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// `[n]`.
    pub ids: Vec<u32>,
    /// In order of their rows; a parent comes before its children.
    pub segments: Vec<Segment>,
}

impl Batch {
    /// No tokens yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One segment a row, no sharing.
    pub fn from_rows<'a>(rows: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let mut batch = Self::new();
        for ids in rows {
            batch.push(ids, None);
        }
        batch
    }

    /// Appends a segment and returns its index. An empty segment is allowed: it stands for its parent.
    ///
    /// # Panics
    ///
    /// If `parent` is not an earlier segment.
    pub fn push(&mut self, ids: &[u32], parent: Option<usize>) -> usize {
        let position = match parent {
            Some(p) => {
                assert!(p < self.segments.len(), "batch: parent {p} of {} segments", self.segments.len());
                self.segments[p].end_position()
            }
            None => 0,
        };
        self.segments.push(Segment { start: self.ids.len(), len: ids.len(), parent, position });
        self.ids.extend_from_slice(ids);
        self.segments.len() - 1
    }

    /// `n`.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The segment and its ancestors, root first.
    pub fn path(&self, segment: usize) -> Vec<usize> {
        let mut path = vec![segment];
        while let Some(parent) = self.segments[path[path.len() - 1]].parent {
            path.push(parent);
        }
        path.reverse();
        path
    }

    /// The row of the last token of a segment, or of its nearest ancestor that has one.
    pub fn last_row(&self, segment: usize) -> Option<usize> {
        let mut at = Some(segment);
        while let Some(s) = at {
            let segment = &self.segments[s];
            if segment.len > 0 {
                return Some(segment.start + segment.len - 1);
            }
            at = segment.parent;
        }
        None
    }

    /// The predictions of a segment's tokens `from..`, each by the row before it: **the** shift.
    ///
    /// The first token of a segment is predicted by the last row of its parent. The first token of a
    /// segment without one has nothing before it, so it must not be asked for.
    ///
    /// # Panics
    ///
    /// If `from` is 0 and nothing precedes the segment.
    pub fn predict(&self, segment: usize, from: usize) -> Vec<Prediction> {
        let own = self.segments[segment];
        (from..own.len)
            .map(|t| {
                let row = match t {
                    0 => own
                        .parent
                        .and_then(|p| self.last_row(p))
                        .expect("a first token is only predicted where something precedes it"),
                    _ => own.start + t - 1,
                };
                Prediction { row, token: self.ids[own.start + t] }
            })
            .collect()
    }

    /// `[n]`: the position of each token.
    pub fn positions(&self) -> Vec<usize> {
        self.segments.iter().flat_map(|s| s.position..s.end_position()).collect()
    }

    /// Positions of the longest row.
    pub fn positions_max(&self) -> usize {
        self.segments.iter().map(Segment::end_position).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shift_crosses_into_the_parent() {
        let mut batch = Batch::new();
        let prompt = batch.push(&[5, 6, 7], None);
        let chosen = batch.push(&[8, 9], Some(prompt));
        let rejected = batch.push(&[4], Some(prompt));
        let p = |row, token| Prediction { row, token };
        assert_eq!(batch.predict(prompt, 1), [p(0, 6), p(1, 7)]);
        assert_eq!(batch.predict(chosen, 0), [p(2, 8), p(3, 9)]);
        assert_eq!(batch.predict(rejected, 0), [p(2, 4)]);
        assert_eq!(batch.positions(), [0, 1, 2, 3, 4, 3]);
        assert_eq!(batch.path(rejected), [prompt, rejected]);
        assert_eq!(batch.positions_max(), 5);
    }

    #[test]
    fn an_empty_segment_stands_for_its_parent() {
        let mut batch = Batch::new();
        let prompt = batch.push(&[5, 6], None);
        let empty = batch.push(&[], Some(prompt));
        let child = batch.push(&[7], Some(empty));
        assert_eq!(batch.last_row(empty), Some(1));
        assert_eq!(batch.predict(child, 0), [Prediction { row: 1, token: 7 }]);
        assert_eq!(batch.segments[child].position, 2);
    }
}
