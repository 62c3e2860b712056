//! What a row of preference data may say about its pair besides the two responses.

/// Optional columns, one value a pair. Values were checked when the rows were read.
#[derive(Clone, Copy, Debug)]
pub struct PairColumns<'a> {
    /// `[p]`. How much better the chosen response is said to be, in units of the loss's logit.
    pub margin_p: Option<&'a [f32]>,
    /// `[p]`. How much the pair counts: 2 is the pair twice, 0 is an absent pair.
    pub weight_p: Option<&'a [f32]>,
    /// `[p]`. Soft label: the share of votes, in `[0, 1]`, that preferred the chosen response.
    pub label_p: Option<&'a [f32]>,
}

impl PairColumns<'_> {
    /// Plain pairs.
    pub const NONE: PairColumns<'static> = PairColumns { margin_p: None, weight_p: None, label_p: None };

    pub(super) fn margin(&self, p: usize) -> f64 {
        self.margin_p.map_or(0.0, |margin_p| margin_p[p].into())
    }

    pub(super) fn weight(&self, p: usize) -> f64 {
        self.weight_p.map_or(1.0, |weight_p| weight_p[p].into())
    }

    pub(super) fn label(&self, p: usize) -> f64 {
        self.label_p.map_or(1.0, |label_p| label_p[p].into())
    }

    /// Panics unless each column has one value a pair.
    pub(super) fn expect_pairs(&self, op: &str, pairs: usize) {
        for (name, column) in [("margin", self.margin_p), ("weight", self.weight_p), ("label", self.label_p)]
        {
            if let Some(column) = column {
                assert_eq!(column.len(), pairs, "{op}: {name} has one value per pair, expected {pairs}");
            }
        }
    }
}
