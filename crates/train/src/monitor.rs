//! Stability monitor (types first; rules follow).

use serde::{Deserialize, Serialize};

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlarmKind {
    /// The loss, the gradient or the KL is not a finite number.
    LossNotFinite,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Look at it.
    Warning,
    /// Stop the run, if it was told to stop on alarms.
    Critical,
}

/// An alarm that was raised, or cleared again: a line of `alarms.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// The step at which it happened.
    pub step: u64,
    /// What it is about.
    pub alarm: AlarmKind,
    /// How bad it is.
    pub severity: Severity,
    /// True when it is raised, false when it is over.
    pub raised: bool,
    /// What was seen, and what to do about it.
    pub message: String,
}

impl Alarm {
    /// Whether a run that stops on alarms stops here.
    pub fn is_critical(&self) -> bool {
        self.raised && self.severity == Severity::Critical
    }
}

/// What the monitor sees of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    step: u64,
    not_finite: Vec<String>,
}

impl Observation {
    /// From the numbers of a step as they are logged.
    pub fn of_metrics(step: u64, metrics: &crate::metrics::Metrics) -> Observation {
        let names = ["loss", "grad_norm", "objective/kl", "loss/policy_avg", "loss/value_avg"];
        let bad = names.into_iter().filter(|name| metrics.get(name).is_some_and(|value| !value.is_finite()));
        Observation { step, not_finite: bad.map(str::to_owned).collect() }
    }
}

/// Watches a run. Part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Monitor {
    loss_not_finite: bool,
}

impl Monitor {
    /// Nothing seen yet.
    pub fn new(_stage: crate::metrics::Stage) -> Monitor {
        Monitor { loss_not_finite: false }
    }

    /// Alarms that this step raises or clears.
    pub fn observe(&mut self, seen: &Observation) -> Vec<Alarm> {
        let bad = !seen.not_finite.is_empty();
        if bad == self.loss_not_finite {
            return Vec::new();
        }
        self.loss_not_finite = bad;
        let message = match bad {
            true => format!("not a finite number: {}; lower the learning rate", seen.not_finite.join(", ")),
            false => "finite again".to_owned(),
        };
        let (alarm, severity) = (AlarmKind::LossNotFinite, Severity::Critical);
        vec![Alarm { step: seen.step, alarm, severity, raised: bad, message }]
    }
}

/// Different n-grams over all n-grams of some responses; `None` if there are none.
pub fn distinct_share(responses: &[Vec<u32>], n: usize) -> Option<f64> {
    let all: Vec<&[u32]> = responses.iter().flat_map(|ids| ids.windows(n)).collect();
    let different: std::collections::HashSet<&[u32]> = all.iter().copied().collect();
    (!all.is_empty()).then(|| different.len() as f64 / all.len() as f64)
}

/// Mean over responses of the share of their 4-grams that occurred before in the same response.
pub fn repetition_share(responses: &[Vec<u32>]) -> Option<f64> {
    let shares: Vec<f64> = responses
        .iter()
        .filter(|ids| ids.len() >= 4)
        .map(|ids| {
            let different: std::collections::HashSet<&[u32]> = ids.windows(4).collect();
            1.0 - different.len() as f64 / (ids.len() - 3) as f64
        })
        .collect();
    (!shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64)
}
