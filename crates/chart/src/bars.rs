//! Values by category with their intervals, as bars or as dots.

use std::fmt::Write as _;

use crate::curve::is_drawable;
use crate::frame::{Range, WIDTH};
use crate::text::{cut, escape, nice_ticks, short, tick_labels};
use crate::{COLOURS, empty_figure, figure};

/// A value with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bar {
    /// Length of the bar.
    pub value: f64,
    /// Ends of the interval, if there is one.
    pub interval: Option<(f64, f64)>,
}

/// Bars of one colour, one for each category.
#[derive(Clone, Debug, PartialEq)]
pub struct BarGroup {
    /// In the legend.
    pub name: String,
    /// As many as categories; `None` where there is no value.
    pub bars: Vec<Option<Bar>>,
    /// Which of the colours: the same thing has the same one in every chart of a page.
    pub colour: usize,
}

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Bars from zero, or from the reference: for amounts.
    Bars,
    /// Dots with whiskers, on an axis that need not show zero: for estimates.
    Dots {
        /// Ends of the axis at least.
        axis: Option<(f64, f64)>,
    },
}

/// Values by category, horizontally, with intervals.
#[derive(Clone, Debug, PartialEq)]
pub struct BarChart {
    /// Above the chart.
    pub title: String,
    /// Beside the title: unit of the values.
    pub unit: String,
    /// Labels on the left.
    pub categories: Vec<String>,
    /// Colours.
    pub groups: Vec<BarGroup>,
    /// A vertical line that values are to be compared with, such as 0.5 for a win rate; bars begin there.
    pub reference: Option<f64>,
    /// Bars or dots.
    pub form: Form,
}

/// Height of a bar, and of the gap between categories.
const BAR: f64 = 13.0;
const BAR_GAP: f64 = 12.0;
/// Room for a value after its bar.
const VALUE_ROOM: f64 = 44.0;
/// About the width of a letter of a label; capitals are wider, so there is room for one more.
const LETTER: f64 = 6.2;
/// Labels on the left are cut at this many letters.
const LABEL_LETTERS_MAX: usize = 21;

impl BarChart {
    /// As a `<figure>`.
    ///
    /// # Panics
    ///
    /// If a group has not one bar (or `None`) for each category.
    pub fn to_html(&self) -> String {
        for group in &self.groups {
            assert_eq!(group.bars.len(), self.categories.len(), "bars of group {:?}", group.name);
        }
        let (base, axis) = match self.form {
            Form::Bars => (Some(self.reference.unwrap_or(0.0)), None),
            Form::Dots { axis } => (self.reference, axis),
        };
        let bars = self.groups.iter().flat_map(|group| &group.bars).flatten().filter(|bar| bar.is_drawable());
        let ends = bars.flat_map(|bar| {
            let (low, high) = bar.drawable_interval().unwrap_or((bar.value, bar.value));
            [bar.value, low, high]
        });
        let Some(range) = Range::of(ends) else { return empty_figure(&self.title, &self.unit) };
        let shown = base.into_iter().chain(axis.into_iter().flat_map(|(low, high)| [low, high]));
        let range = shown
            .fold(range, |range, x| Range { low: range.low.min(x), high: range.high.max(x) })
            .or_around(range.low.abs() * 0.1);
        let ticks = self.ticks(range);
        let range = Range { low: range.low.min(ticks[0]), high: range.high.max(ticks[ticks.len() - 1]) };

        let letters = self.categories.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let left = (letters.min(LABEL_LETTERS_MAX) + 1) as f64 * LETTER + 12.0;
        let px = |x: f64| left + (x - range.low) / (range.high - range.low) * (WIDTH - VALUE_ROOM - left);
        let step = BAR * self.groups.len() as f64 + BAR_GAP;
        let bottom = step * self.categories.len() as f64 + 6.0;

        let mut svg = String::new();
        let labels = tick_labels(&ticks);
        for (tick, label) in ticks.iter().zip(labels) {
            let x = px(*tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>\
                 <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                bottom + 13.0
            );
        }
        for (row, category) in self.categories.iter().enumerate() {
            let top = row as f64 * step + BAR_GAP / 2.0;
            let middle = top + BAR * self.groups.len() as f64 / 2.0;
            let _ = write!(
                svg,
                "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\"><title>{}</title>{}</text>",
                left - 7.0,
                middle + 3.5,
                escape(category),
                escape(&cut(category, LABEL_LETTERS_MAX))
            );
            for (i, group) in self.groups.iter().enumerate() {
                if let Some(bar) = group.bars[row].filter(Bar::is_drawable) {
                    let y = top + BAR * i as f64;
                    let what = format!("{category}, {}", group.name);
                    draw(&mut svg, &px, self.form, base, bar, y, group.colour % COLOURS, &what);
                }
            }
        }
        if let Some(base) = base {
            let (x, class) = (px(base), if self.form == Form::Bars { "zero" } else { "limit" });
            let _ = write!(
                svg,
                "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>"
            );
        }
        let legend: Vec<(&str, usize)> = match self.groups.as_slice() {
            [_] => Vec::new(),
            groups => groups.iter().map(|group| (group.name.as_str(), group.colour)).collect(),
        };
        figure(&self.title, &self.unit, &legend, (WIDTH, bottom + 20.0), &self.summary(), &svg, "")
    }

    /// As many as have room for their labels.
    fn ticks(&self, range: Range) -> Vec<f64> {
        const LETTERS: usize = 26;
        let many = nice_ticks(range.low, range.high, 6);
        let letters: usize = tick_labels(&many).iter().map(|label| label.len() + 2).sum();
        if letters > LETTERS { nice_ticks(range.low, range.high, 3) } else { many }
    }

    /// What it shows in words.
    fn summary(&self) -> String {
        let of = |(row, category): (usize, &String)| {
            let values = self.groups.iter().filter_map(|group| group.bars[row].map(|bar| (group, bar)));
            let values: Vec<String> =
                values.map(|(group, bar)| format!("{} {}", group.name, short(bar.value))).collect();
            format!("{category}: {}", values.join(", "))
        };
        self.categories.iter().enumerate().map(of).collect::<Vec<_>>().join("; ")
    }
}

impl Bar {
    fn is_drawable(&self) -> bool {
        is_drawable(self.value)
    }

    fn drawable_interval(&self) -> Option<(f64, f64)> {
        self.interval.filter(|(low, high)| is_drawable(*low) && is_drawable(*high))
    }
}

fn draw(
    svg: &mut String,
    px: &dyn Fn(f64) -> f64,
    form: Form,
    base: Option<f64>,
    bar: Bar,
    y: f64,
    colour: usize,
    what: &str,
) {
    let interval = bar.drawable_interval();
    let said = match interval {
        Some((low, high)) => format!("{what}: {} [{}, {}]", short(bar.value), short(low), short(high)),
        None => format!("{what}: {}", short(bar.value)),
    };
    let (at, middle) = (px(bar.value), y + BAR / 2.0);
    let _ = write!(svg, "<g><title>{}</title>", escape(&said));
    let (mut end, mut stroke) = (at, format!("var(--c{colour})"));
    if form == Form::Bars {
        let from = px(base.unwrap_or(0.0));
        let (from, to) = (from.min(at), from.max(at));
        end = to;
        stroke = "var(--ink)".into();
        let _ = write!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"1.5\" \
             fill=\"var(--c{colour})\" fill-opacity=\".75\"/>",
            y + 1.5,
            (to - from).max(0.5),
            BAR - 3.0
        );
    }
    if let Some((low, high)) = interval {
        let (low, high) = (px(low), px(high));
        end = end.max(high);
        let _ = write!(
            svg,
            "<path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v5M{high:.1} {:.1}v5\" fill=\"none\" \
             stroke=\"{stroke}\"/>",
            middle - 2.5,
            middle - 2.5
        );
    }
    if form != Form::Bars {
        end = end.max(at + 4.0);
        let _ = write!(svg, "<circle cx=\"{at:.1}\" cy=\"{middle:.1}\" r=\"4\" fill=\"var(--c{colour})\"/>");
    }
    let _ = write!(
        svg,
        "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
        end + 5.0,
        middle + 3.5,
        short(bar.value)
    );
}
