//! Named statistics: each metric is declared once, with its unit and formula, and emitted under that name.

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricDecl {
    /// Name in the log. TRL's wherever TRL has the metric.
    pub name: &'static str,
    /// Unit of the value.
    pub unit: &'static str,
    /// How it is computed, denominators included.
    pub formula: &'static str,
}

/// One value of one metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// What it is.
    pub decl: &'static MetricDecl,
    /// Its value.
    pub value: f64,
}

/// Sums that merge across micro-batches and workers and become metrics once, at the end.
pub trait Stats: Clone {
    /// Every metric this type can emit.
    const METRICS: &'static [MetricDecl];

    /// Adds another part of the same step.
    fn merge(&mut self, other: &Self);

    /// One value for each entry of [`Self::METRICS`], in that order; `None` where nothing was counted.
    fn values(&self) -> Vec<Option<f64>>;

    /// The values that exist, with their declarations.
    fn metrics(&self) -> Vec<Metric> {
        let values = self.values();
        assert_eq!(values.len(), Self::METRICS.len(), "one value for each declared metric");
        Self::METRICS
            .iter()
            .zip(values)
            .filter_map(|(decl, value)| value.map(|value| Metric { decl, value }))
            .collect()
    }

    /// One value by its declared name; `None` if nothing was counted.
    ///
    /// # Panics
    ///
    /// If no metric is declared under that name.
    fn value(&self, name: &str) -> Option<f64> {
        let at = Self::METRICS.iter().position(|decl| decl.name == name);
        self.values()[at.unwrap_or_else(|| panic!("no metric is declared as {name:?}"))]
    }
}

/// `sum / count`, or nothing if nothing was counted.
pub(super) fn mean(sum: f64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum / count as f64)
}
