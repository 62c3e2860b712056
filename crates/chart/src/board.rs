//! Which numbers of a log share a chart: the report of a run and the page that shows it while it trains draw the same charts.

use std::collections::BTreeMap;

use crate::curve::Curve;
use crate::line::{LineChart, Mark, Series};

/// A line of at most this many points shows each of them.
const DOTS_MAX: u64 = 40;

/// What a trainer logs and how it is drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Board {
    /// The trainer, as in `polity train NAME`.
    pub stage: String,
    /// What it does, for people.
    pub title: String,
    /// The charts that matter, the most important first.
    pub panels: Vec<Panel>,
    /// Every number that it can log, without the evaluation's copies.
    pub metrics: Vec<Metric>,
    /// The metrics that each alarm looks at: their curves are marked.
    pub alarms: BTreeMap<String, Vec<String>>,
    /// What the evaluation's copy of a metric begins with. It joins the metric's chart.
    pub eval_prefix: String,
}

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Name in the legend, and metric, of each line.
    pub lines: Vec<(String, String)>,
}

/// A number in the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// How it is computed.
    pub formula: String,
}

/// An alarm that was raised.
#[derive(Clone, Debug, PartialEq)]
pub struct Raised {
    /// At which step.
    pub step: u64,
    /// Its name.
    pub alarm: String,
    /// What was seen, and what to do.
    pub message: String,
}

impl Board {
    /// The metric with this name, or of which it is the evaluation's copy.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        let known = |name: &str| self.metrics.iter().find(|metric| metric.name == name);
        known(name).or_else(|| known(name.strip_prefix(self.eval_prefix.as_str())?))
    }

    /// The chosen charts, and those of everything else that was logged.
    pub fn charts(
        &self,
        logged: &BTreeMap<String, Curve>,
        raised: &[Raised],
    ) -> (Vec<LineChart>, Vec<LineChart>) {
        let mut shown: Vec<String> = Vec::new();
        let mut main = Vec::new();
        for panel in &self.panels {
            let lines: Vec<(String, String)> = panel
                .lines
                .iter()
                .flat_map(|(label, name)| {
                    [
                        (label.clone(), name.clone()),
                        (eval_label(label, panel.lines.len()), format!("{}{name}", self.eval_prefix)),
                    ]
                })
                .filter(|(_, name)| logged.contains_key(name))
                .collect();
            if !lines.is_empty() {
                main.push(self.chart(logged, raised, &panel.title, &lines));
                shown.extend(lines.into_iter().map(|(_, name)| name));
            }
        }
        let other = logged.keys().filter(|name| !shown.contains(name));
        let other = other.map(|name| self.chart(logged, raised, name, &[("training".into(), name.clone())]));
        (main, other.collect())
    }

    fn chart(
        &self,
        logged: &BTreeMap<String, Curve>,
        raised: &[Raised],
        title: &str,
        lines: &[(String, String)],
    ) -> LineChart {
        let unit = self.metric(&lines[0].1).map_or("", |metric| metric.unit.as_str());
        let series = lines.iter().map(|(label, name)| {
            let points = logged[name].clone();
            // Sparse points, as of an evaluation, are not a continuous line.
            let dots = points.points() <= DOTS_MAX;
            Series { name: label.clone(), points, dots }
        });
        let watched = |raised: &&Raised| {
            let metrics = self.alarms.get(&raised.alarm);
            metrics.is_some_and(|metrics| lines.iter().any(|(_, name)| metrics.contains(name)))
        };
        let marks = raised.iter().filter(watched).map(|raised| Mark {
            x: raised.step as f64,
            name: format!("{}, step {}", raised.alarm, raised.step),
            label: format!("step {}: {}: {}", raised.step, raised.alarm, raised.message),
        });
        LineChart {
            title: title.into(),
            unit: if unit.eq_ignore_ascii_case(title) { String::new() } else { unit.into() },
            x_label: "step".into(),
            series: series.collect(),
            marks: marks.collect(),
            from_zero: false,
        }
    }
}

fn eval_label(label: &str, lines: usize) -> String {
    if lines == 1 { "evaluation".into() } else { format!("{label}, evaluation") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_join_their_metric_and_alarms_mark_what_they_watch() {
        let metric = |name: &str| Metric { name: name.into(), unit: "nats".into(), formula: "f".into() };
        let board = Board {
            panels: vec![
                Panel { title: "Loss".into(), lines: vec![("training".into(), "loss".into())] },
                Panel { title: "Not logged".into(), lines: vec![("x".into(), "absent".into())] },
            ],
            metrics: vec![metric("loss"), metric("kl")],
            alarms: [("explosion".to_owned(), vec!["kl".to_owned()])].into(),
            eval_prefix: "eval_".into(),
            ..Board::default()
        };
        let curve = || [(1.0, 1.0), (2.0, 3.0)].into_iter().collect::<Curve>();
        let logged = ["loss", "eval_loss", "kl", "unknown"].map(|name| (name.to_owned(), curve())).into();
        let raised = [Raised { step: 2, alarm: "explosion".into(), message: "m".into() }];
        let (main, other) = board.charts(&logged, &raised);
        let names: Vec<_> = main[0].series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!((main.len(), names), (1, vec!["training", "evaluation"]));
        assert!(main[0].marks.is_empty());
        let titles: Vec<_> = other.iter().map(|chart| (chart.title.as_str(), chart.unit.as_str())).collect();
        assert_eq!(titles, [("kl", "nats"), ("unknown", "")]);
        assert_eq!(other[0].marks[0].name, "explosion, step 2");
    }
}
