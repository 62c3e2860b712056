//! Lines over a common axis, with marks where something happened.

use std::fmt::Write as _;

use crate::curve::Curve;
use crate::frame::{Frame, HEIGHT, Range, WIDTH};
use crate::text::{escape, short};
use crate::{COLOURS, FILE_COLOURS, FILE_STYLE, empty_figure, figure, legend_of};

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// In the order of x.
    pub points: Curve,
    /// Also draw a dot at each point: for few of them.
    pub dots: bool,
}

/// A place on the x axis that something happened at.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// What and where, in a few words: stands below the chart.
    pub name: String,
    /// All that is known of it: shown when it is pointed at.
    pub label: String,
}

/// Lines over a common axis.
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    /// Above the chart.
    pub title: String,
    /// Beside the title: unit of y.
    pub unit: String,
    /// Below the x axis.
    pub x_label: String,
    /// The lines.
    pub series: Vec<Series>,
    /// Vertical marks.
    pub marks: Vec<Mark>,
    /// Whether the y axis shows zero: for amounts that are compared.
    pub from_zero: bool,
}

impl LineChart {
    /// As a `<figure>`.
    pub fn to_html(&self) -> String {
        let Some((label, svg)) = self.draw() else { return empty_figure(&self.title, &self.unit) };
        let named = self.series.iter().map(|series| (series.name.as_str(), series.points.points() > 0));
        let legend = legend_of(named);
        figure(&self.title, &self.unit, &legend, (WIDTH, HEIGHT), &label, &svg, &self.marks_below())
    }

    /// As an SVG file of its own, with title and legend, in light colours; `None` if there is nothing to draw.
    pub fn to_svg(&self) -> Option<String> {
        /// Room for the title and the legend.
        const HEAD: f64 = 34.0;
        let (label, drawn) = self.draw()?;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" viewBox=\"0 {:.0} {WIDTH} {:.0}\" role=\"img\" \
             aria-label=\"{}\"><style>{FILE_STYLE}</style><rect y=\"{:.0}\" width=\"{WIDTH}\" height=\"{:.0}\" \
             fill=\"var(--page)\"/><text class=\"title\" x=\"8\" y=\"{:.0}\">{} <tspan>{}</tspan></text>",
            2.0 * WIDTH,
            -HEAD,
            HEIGHT + HEAD,
            escape(&format!("{}. {label}", self.title)),
            -HEAD,
            HEIGHT + HEAD,
            16.0 - HEAD,
            escape(&self.title),
            escape(&self.unit),
        );
        let mut x = 8.0;
        for (i, series) in self.series.iter().enumerate() {
            let _ = write!(
                svg,
                "<rect x=\"{x:.0}\" y=\"{:.0}\" width=\"12\" height=\"3\" fill=\"var(--c{})\"/><text x=\"{:.0}\" \
                 y=\"{:.0}\">{}</text>",
                26.0 - HEAD,
                i % COLOURS,
                x + 16.0,
                30.0 - HEAD,
                escape(&series.name)
            );
            // About the width of a letter.
            x += 32.0 + 5.5 * series.name.chars().count() as f64;
        }
        svg.push_str(&drawn);
        svg.push_str("</svg>\n");
        Some(FILE_COLOURS.iter().fold(svg, |svg, (name, colour)| svg.replace(name, colour)))
    }

    /// The marks in words: a finger cannot point without clicking.
    fn marks_below(&self) -> String {
        if self.marks.is_empty() {
            return String::new();
        }
        let item = |mark: &Mark| format!("<li>{}</li>", escape(&mark.name));
        format!("<ul class=\"marks\">{}</ul>", self.marks.iter().map(item).collect::<String>())
    }

    /// What it shows in words, and the drawing.
    fn draw(&self) -> Option<(String, String)> {
        let all = || self.series.iter().flat_map(|series| series.points.buckets()).flatten();
        let marks_x = self.marks.iter().map(|mark| mark.x).filter(|x| x.is_finite());
        let ends = self.series.iter().filter_map(|series| series.points.last()).map(|(x, _)| x);
        let x = Range::of(all().map(|bucket| bucket.x()).chain(ends).chain(marks_x))?;
        let zero = self.from_zero.then_some(0.0);
        // Marks alone are nothing to draw.
        all().next()?;
        let y =
            Range::of(all().flat_map(|bucket| [bucket.low, bucket.high]).chain(zero)).map(Range::widened)?;

        let frame = Frame::new(x.or_around(1.0), y);
        let mut svg = frame.axes(&self.x_label);
        for mark in &self.marks {
            frame.mark(&mut svg, mark);
        }
        for (i, series) in self.series.iter().enumerate() {
            frame.line(&mut svg, series, i % COLOURS);
        }
        let summary = self.series.iter().filter_map(|series| {
            let (x, y) = series.points.last()?;
            Some(format!("{}: {} at {}", series.name, short(y), short(x)))
        });
        Some((summary.collect::<Vec<_>>().join("; "), svg))
    }
}
