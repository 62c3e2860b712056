//! Counts over the steps of a quantity, as columns.

use std::fmt::Write as _;

use crate::frame::WIDTH;
use crate::text::escape;
use crate::{empty_figure, figure};

const HEIGHT: f64 = 150.0;
/// Room for the counts above and the labels below.
const TOP: f64 = 16.0;
const BOTTOM: f64 = 24.0;
const SIDE: f64 = 8.0;
/// Between two columns.
const GAP: f64 = 4.0;

/// A column for each step.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnChart {
    /// Above the chart.
    pub title: String,
    /// Beside the title: what the labels are.
    pub unit: String,
    /// Label and count of each step, in order.
    pub columns: Vec<(String, usize)>,
}

impl ColumnChart {
    /// As a `<figure>`.
    pub fn to_html(&self) -> String {
        let most = self.columns.iter().map(|(_, count)| *count).max().unwrap_or(0);
        if most == 0 {
            return empty_figure(&self.title, &self.unit);
        }
        let (bottom, step) = (HEIGHT - BOTTOM, (WIDTH - 2.0 * SIDE) / self.columns.len() as f64);
        let mut svg = format!(
            "<line class=\"zero\" x1=\"{SIDE}\" x2=\"{:.1}\" y1=\"{bottom:.1}\" y2=\"{bottom:.1}\"/>",
            WIDTH - SIDE
        );
        for (n, (label, count)) in self.columns.iter().enumerate() {
            let (x, tall) = (SIDE + step * n as f64, (bottom - TOP) * *count as f64 / most as f64);
            let (middle, top, label) = (x + step / 2.0, bottom - tall, escape(label));
            let _ = write!(
                svg,
                "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"var(--c0)\"/>\
                 <text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                x + GAP / 2.0,
                step - GAP,
                HEIGHT - 8.0
            );
            if *count > 0 {
                let _ = write!(
                    svg,
                    "<text class=\"value\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{count}</text>",
                    top - 4.0
                );
            }
        }
        let said: Vec<String> =
            self.columns.iter().map(|(label, count)| format!("{label}: {count}")).collect();
        figure(&self.title, &self.unit, &[], (WIDTH, HEIGHT), &said.join(", "), &svg, "")
    }
}
