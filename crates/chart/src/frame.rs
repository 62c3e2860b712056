//! The area between two axes.

use std::fmt::Write as _;

use crate::curve::Bucket;
use crate::line::{Mark, Series};
use crate::text::{escape, nice_ticks, short, tick_labels};

/// Size of a line chart or scatter, in SVG units (pixels in a column of this width).
pub(crate) const WIDTH: f64 = 360.0;
pub(crate) const HEIGHT: f64 = 210.0;
/// Room for tick labels, and for half a label beyond the last tick.
const LEFT: f64 = 50.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 36.0;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Range {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Range {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Range> {
        values.fold(None, |range, x| match range {
            None => Some(Range { low: x, high: x }),
            Some(Range { low, high }) => Some(Range { low: low.min(x), high: high.max(x) }),
        })
    }

    /// A little room on both sides.
    pub(crate) fn widened(self) -> Range {
        let Range { low, high } = self.or_around(self.low.abs() * 0.1);
        let room = (high - low) * 0.06;
        Range { low: low - room, high: high + room }
    }

    /// Itself, or something around it if it is a single value.
    pub(crate) fn or_around(self, room: f64) -> Range {
        if self.high - self.low > (self.low.abs() + self.high.abs()) * 1e-12 {
            return self;
        }
        let room = if room > 0.0 { room } else { 1.0 };
        Range { low: self.low - room / 2.0, high: self.high + room / 2.0 }
    }
}

/// The area between the axes, and the scales.
pub(crate) struct Frame {
    x: Range,
    y: Range,
}

impl Frame {
    pub(crate) fn new(x: Range, y: Range) -> Frame {
        Frame { x, y }
    }

    pub(crate) fn px(&self, x: f64) -> f64 {
        LEFT + (x - self.x.low) / (self.x.high - self.x.low) * (WIDTH - LEFT - RIGHT)
    }

    pub(crate) fn py(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - (y - self.y.low) / (self.y.high - self.y.low) * (HEIGHT - TOP - BOTTOM)
    }

    pub(crate) fn axes(&self, x_label: &str) -> String {
        let mut svg = String::new();
        let ticks = nice_ticks(self.y.low, self.y.high, 5);
        for (tick, label) in ticks.iter().zip(tick_labels(&ticks)) {
            let y = self.py(*tick);
            let class = if *tick == 0.0 { "zero" } else { "grid" };
            let _ = write!(
                svg,
                "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                WIDTH - RIGHT,
                LEFT - 5.0,
                y + 3.5
            );
        }
        let ticks = nice_ticks(self.x.low, self.x.high, 6);
        let bottom = HEIGHT - BOTTOM;
        for (tick, label) in ticks.iter().zip(tick_labels(&ticks)) {
            let x = self.px(*tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{bottom:.1}\" y2=\"{:.1}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 4.0,
                bottom + 15.0
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            HEIGHT - 4.0,
            escape(x_label)
        );
        svg
    }

    pub(crate) fn mark(&self, svg: &mut String, mark: &Mark) {
        if !mark.x.is_finite() {
            return;
        }
        let x = self.px(mark.x);
        let _ = write!(
            svg,
            "<g><title>{}</title><line class=\"alarm\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
             <path class=\"flag\" d=\"M{:.1} {:.1}h8l-4 7z\"/></g>",
            escape(&mark.label),
            HEIGHT - BOTTOM,
            x - 4.0,
            TOP - 8.0
        );
    }

    pub(crate) fn line(&self, svg: &mut String, series: &Series, colour: usize) {
        let buckets: Vec<Option<&Bucket>> = series.points.buckets().collect();
        if buckets.iter().flatten().any(|bucket| bucket.low < bucket.high) {
            for run in buckets.split(Option::is_none).filter(|run| run.len() > 1) {
                let run = || run.iter().flatten();
                let there = run().map(|bucket| (bucket.x(), bucket.high));
                let back = run().rev().map(|bucket| (bucket.x(), bucket.low));
                let points: Vec<String> =
                    there.chain(back).map(|(x, y)| format!("{:.1} {:.1}", self.px(x), self.py(y))).collect();
                let _ = write!(
                    svg,
                    "<path d=\"M{}Z\" fill=\"var(--c{colour})\" fill-opacity=\".18\"/>",
                    points.join("L")
                );
            }
        }
        for run in buckets.split(Option::is_none) {
            let run: Vec<(f64, f64)> =
                run.iter().flatten().map(|bucket| (bucket.x(), bucket.mean())).collect();
            self.path(svg, &run, colour);
            // A point with gaps on both sides would be invisible as a line.
            let dots = if series.dots || run.len() == 1 { &run[..] } else { &[] };
            for (x, y) in dots {
                let tip = format!("{}: {} at {}", series.name, short(*y), short(*x));
                let _ = write!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.6\" fill=\"var(--c{colour})\"><title>{}</title></circle>",
                    self.px(*x),
                    self.py(*y),
                    escape(&tip)
                );
            }
        }
    }

    pub(crate) fn path(&self, svg: &mut String, points: &[(f64, f64)], colour: usize) {
        if points.len() < 2 {
            return;
        }
        let points: Vec<String> =
            points.iter().map(|(x, y)| format!("{:.1} {:.1}", self.px(*x), self.py(*y))).collect();
        let _ = write!(
            svg,
            "<path d=\"M{}\" fill=\"none\" stroke=\"var(--c{colour})\" stroke-width=\"1.6\" stroke-linejoin=\"round\"/>",
            points.join("L")
        );
    }
}
