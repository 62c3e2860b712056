//! Charts as inline SVG: lines over time, bars with intervals, scatter.
//!
//! A chart becomes a `<figure>`: a caption and a legend in HTML, which wrap on a narrow screen, and an SVG that scales
//! with its column. Colours are CSS variables, so [`STYLE`] must be on the page; it has a light and a dark set. Nothing
//! is fetched and no script runs.
//!
//! Large series are drawn as the mean of each bucket of neighbouring points inside a band from its smallest to its
//! largest value, so an outlier is seen however long the run. A value that is not finite is a gap.
//!
//! Not here: the page around the charts ([`crate::report`]), logarithmic axes, interaction.

use std::fmt::Write as _;

/// Colours and sizes that the charts need. Light, or dark if the reader's system is.
pub const STYLE: &str = "\
:root{--ink:#1c2128;--soft:#57606a;--line:#d8dee4;--page:#fff;--card:#f6f8fa;--alarm:#c62828;\
--c0:#1f6feb;--c1:#d9730d;--c2:#1a7f4e;--c3:#8250df;--c4:#b5175e;--c5:#0f7f8f}\
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9aa4af;--line:#30363d;--page:#0d1117;--card:#161b22;\
--alarm:#ff7b72;--c0:#6cb0ff;--c1:#f0a04b;--c2:#5fd08d;--c3:#bc9bff;--c4:#ff8fc0;--c5:#56cfe0}}\
figure.chart{margin:0;padding:.7rem .8rem .4rem;background:var(--card);border:1px solid var(--line);border-radius:8px;\
min-width:0}\
figure.chart figcaption{font-weight:600;font-size:.9rem;overflow-wrap:anywhere}\
figure.chart figcaption small{font-weight:400;color:var(--soft)}\
figure.chart .legend{font-size:.8rem;color:var(--soft);display:flex;flex-wrap:wrap;gap:0 .9rem}\
figure.chart .legend i{display:inline-block;width:.9rem;height:.2rem;border-radius:.1rem;vertical-align:middle;\
margin-right:.35rem}\
figure.chart svg{display:block;width:100%;height:auto;margin-top:.3rem}\
figure.chart text{font:10px system-ui,sans-serif;fill:var(--soft)}\
figure.chart text.value{fill:var(--ink)}\
figure.chart .grid{stroke:var(--line);stroke-width:1}\
figure.chart .zero{stroke:var(--soft);stroke-width:1}\
figure.chart .alarm{stroke:var(--alarm);stroke-width:1;stroke-dasharray:3 3}\
figure.chart .flag{fill:var(--alarm)}";

/// The light set of [`STYLE`], for a file of its own: not every program that draws SVG knows variables.
const FILE_COLOURS: [(&str, &str); 11] = [
    ("var(--ink)", "#1c2128"),
    ("var(--soft)", "#57606a"),
    ("var(--line)", "#d8dee4"),
    ("var(--page)", "#fff"),
    ("var(--alarm)", "#c62828"),
    ("var(--c0)", "#1f6feb"),
    ("var(--c1)", "#d9730d"),
    ("var(--c2)", "#1a7f4e"),
    ("var(--c3)", "#8250df"),
    ("var(--c4)", "#b5175e"),
    ("var(--c5)", "#0f7f8f"),
];

/// The rules of [`STYLE`] that a chart's drawing needs.
const FILE_STYLE: &str = "\
text{font:10px system-ui,sans-serif;fill:var(--soft)}\
text.title{font-weight:600;font-size:12px;fill:var(--ink)}text.title tspan{font-weight:400;fill:var(--soft)}\
.grid{stroke:var(--line);stroke-width:1}.zero{stroke:var(--soft);stroke-width:1}\
.alarm{stroke:var(--alarm);stroke-width:1;stroke-dasharray:3 3}.flag{fill:var(--alarm)}";

/// Number of colours in [`STYLE`]; further series repeat them.
const COLOURS: usize = 6;

/// Size of a line chart or scatter, in SVG units (pixels in a column of this width).
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 210.0;
/// Room for tick labels, and for half a label beyond the last tick.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 32.0;

/// Points of a line before neighbours are drawn together.
const POINTS_MAX: usize = 160;

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// `(x, y)`, in the order of x.
    pub points: Vec<(f64, f64)>,
    /// Also draw a dot at each point: for few of them.
    pub dots: bool,
}

/// A place on the x axis that something happened at.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Where.
    pub x: f64,
    /// What.
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

/// Horizontal bars from zero (or from a reference), with intervals.
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
}

/// Points of one colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Cloud {
    /// In the legend.
    pub name: String,
    /// `(x, y, label)`; a label may be empty.
    pub points: Vec<(f64, f64, String)>,
    /// Join the points by a line, in their order: a path over time.
    pub joined: bool,
}

/// One number against another.
#[derive(Clone, Debug, PartialEq)]
pub struct Scatter {
    /// Above the chart.
    pub title: String,
    /// Below the x axis.
    pub x_label: String,
    /// Beside the title: what y is.
    pub y_label: String,
    /// The points.
    pub clouds: Vec<Cloud>,
}

impl LineChart {
    /// As a `<figure>`.
    pub fn to_html(&self) -> String {
        let Some((label, svg)) = self.draw() else { return empty_figure(&self.title, &self.unit) };
        let legend: Vec<(&str, usize)> =
            self.series.iter().enumerate().map(|(i, series)| (series.name.as_str(), i)).collect();
        figure(&self.title, &self.unit, &legend, (WIDTH, HEIGHT), &label, &svg)
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

    /// What it shows in words, and the drawing.
    fn draw(&self) -> Option<(String, String)> {
        let all = || {
            self.series
                .iter()
                .flat_map(|series| &series.points)
                .filter(|(x, y)| x.is_finite() && y.is_finite())
        };
        let marks_x = self.marks.iter().map(|mark| mark.x).filter(|x| x.is_finite());
        let x = Range::of(all().map(|(x, _)| *x).chain(marks_x));
        let zero = self.from_zero.then_some(0.0);
        let y = Range::of(all().map(|(_, y)| *y).chain(zero)).map(Range::widened);
        let (x, y) = (x?, y?);

        let frame = Frame::new(x.or_around(1.0), y);
        let mut svg = frame.axes(&self.x_label);
        for mark in &self.marks {
            frame.mark(&mut svg, mark);
        }
        for (i, series) in self.series.iter().enumerate() {
            frame.line(&mut svg, series, i % COLOURS);
        }
        let summary = self.series.iter().filter_map(|series| {
            let (x, y) = series.points.iter().rev().find(|(_, y)| y.is_finite())?;
            Some(format!("{}: {} at {}", series.name, short(*y), short(*x)))
        });
        Some((summary.collect::<Vec<_>>().join("; "), svg))
    }
}

impl Scatter {
    /// As a `<figure>`.
    pub fn to_html(&self) -> String {
        let all = || {
            let points = self.clouds.iter().flat_map(|cloud| &cloud.points);
            points.filter(|(x, y, _)| x.is_finite() && y.is_finite())
        };
        let x = Range::of(all().map(|(x, _, _)| *x)).map(Range::widened);
        let y = Range::of(all().map(|(_, y, _)| *y)).map(Range::widened);
        let (Some(x), Some(y)) = (x, y) else { return empty_figure(&self.title, &self.y_label) };

        let frame = Frame::new(x, y);
        let mut svg = frame.axes(&self.x_label);
        for (i, cloud) in self.clouds.iter().enumerate() {
            let colour = i % COLOURS;
            let finite: Vec<_> =
                cloud.points.iter().filter(|(x, y, _)| x.is_finite() && y.is_finite()).collect();
            if cloud.joined {
                let path: Vec<(f64, f64)> = finite.iter().map(|(x, y, _)| (*x, *y)).collect();
                frame.path(&mut svg, &path, colour);
            }
            for (x, y, label) in finite {
                let (px, py) = (frame.px(*x), frame.py(*y));
                let tip = format!("{} {label}: {}, {}", cloud.name, short(*x), short(*y));
                let _ = write!(
                    svg,
                    "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"4\" fill=\"var(--c{colour})\"><title>{}</title></circle>",
                    escape(&tip)
                );
                if !label.is_empty() {
                    // To the left of a point in the right half, so that the label stays inside.
                    let left = px > WIDTH / 2.0;
                    let (dx, anchor) = if left { (-7.0, "end") } else { (7.0, "start") };
                    let _ = write!(
                        svg,
                        "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                        px + dx,
                        py + 3.5,
                        escape(label)
                    );
                }
            }
        }
        let legend: Vec<(&str, usize)> =
            self.clouds.iter().enumerate().map(|(i, cloud)| (cloud.name.as_str(), i)).collect();
        let label = format!("{} against {}", self.y_label, self.x_label);
        figure(&self.title, &self.y_label, &legend, (WIDTH, HEIGHT), &label, &svg)
    }
}

/// Height of a bar, and of the gap between categories.
const BAR: f64 = 13.0;
const BAR_GAP: f64 = 12.0;
/// Room for a value after its bar.
const VALUE_ROOM: f64 = 44.0;
/// About the width of a letter of a label; capitals are wider, so there is room for one more.
const LETTER: f64 = 5.8;
/// Labels on the left are cut at this many letters.
const LABEL_LETTERS_MAX: usize = 26;

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
        let base = self.reference.unwrap_or(0.0);
        let ends = self.groups.iter().flat_map(|group| &group.bars).flatten().flat_map(|bar| {
            let (low, high) = bar.interval.unwrap_or((bar.value, bar.value));
            [bar.value, low, high]
        });
        let Some(range) = Range::of(ends.filter(|x| x.is_finite())) else {
            return empty_figure(&self.title, &self.unit);
        };
        let range = Range { low: range.low.min(base), high: range.high.max(base) }.or_around(1.0);
        let ticks = nice_ticks(range.low, range.high, 4);
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
                if let Some(bar) = group.bars[row].filter(|bar| bar.value.is_finite()) {
                    let y = top + BAR * i as f64;
                    draw_bar(
                        &mut svg,
                        &px,
                        base,
                        bar,
                        y,
                        group.colour % COLOURS,
                        &format!("{category}, {}", group.name),
                    );
                }
            }
        }
        let x = px(base);
        let _ = write!(svg, "<line class=\"zero\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{bottom:.1}\"/>");
        let legend: Vec<(&str, usize)> =
            self.groups.iter().map(|group| (group.name.as_str(), group.colour)).collect();
        figure(&self.title, &self.unit, &legend, (WIDTH, bottom + 20.0), &self.categories.join(", "), &svg)
    }
}

fn draw_bar(
    svg: &mut String,
    px: &dyn Fn(f64) -> f64,
    base: f64,
    bar: Bar,
    y: f64,
    colour: usize,
    what: &str,
) {
    let (from, to) = (px(base.min(bar.value)), px(base.max(bar.value)));
    let interval = bar.interval.filter(|(low, high)| low.is_finite() && high.is_finite());
    let said = match interval {
        Some((low, high)) => format!("{what}: {} [{}, {}]", short(bar.value), short(low), short(high)),
        None => format!("{what}: {}", short(bar.value)),
    };
    let _ = write!(
        svg,
        "<g><title>{}</title><rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"1.5\" \
         fill=\"var(--c{colour})\" fill-opacity=\".75\"/>",
        escape(&said),
        y + 1.5,
        (to - from).max(0.5),
        BAR - 3.0
    );
    let mut end = to;
    if let Some((low, high)) = interval {
        let (low, high, middle) = (px(low), px(high), y + BAR / 2.0);
        end = end.max(high);
        let _ = write!(
            svg,
            "<path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v5M{high:.1} {:.1}v5\" fill=\"none\" \
             stroke=\"var(--ink)\"/>",
            middle - 2.5,
            middle - 2.5
        );
    }
    let _ = write!(
        svg,
        "<text class=\"value\" x=\"{:.1}\" y=\"{:.1}\">{}</text></g>",
        end + 5.0,
        y + BAR / 2.0 + 3.5,
        short(bar.value)
    );
}

// ------------------------------------------------------------------------------------------------------------ frame

#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    low: f64,
    high: f64,
}

impl Range {
    fn of(values: impl Iterator<Item = f64>) -> Option<Range> {
        values.fold(None, |range, x| match range {
            None => Some(Range { low: x, high: x }),
            Some(Range { low, high }) => Some(Range { low: low.min(x), high: high.max(x) }),
        })
    }

    /// A little room on both sides.
    fn widened(self) -> Range {
        let Range { low, high } = self.or_around(self.low.abs() * 0.1);
        let room = (high - low) * 0.06;
        Range { low: low - room, high: high + room }
    }

    /// Itself, or something around it if it is a single value.
    fn or_around(self, room: f64) -> Range {
        if self.high - self.low > (self.low.abs() + self.high.abs()) * 1e-12 {
            return self;
        }
        let room = if room > 0.0 { room } else { 1.0 };
        Range { low: self.low - room / 2.0, high: self.high + room / 2.0 }
    }
}

/// The area between the axes, and the scales.
struct Frame {
    x: Range,
    y: Range,
}

impl Frame {
    fn new(x: Range, y: Range) -> Frame {
        Frame { x, y }
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + (x - self.x.low) / (self.x.high - self.x.low) * (WIDTH - LEFT - RIGHT)
    }

    fn py(&self, y: f64) -> f64 {
        HEIGHT - BOTTOM - (y - self.y.low) / (self.y.high - self.y.low) * (HEIGHT - TOP - BOTTOM)
    }

    fn axes(&self, x_label: &str) -> String {
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

    fn mark(&self, svg: &mut String, mark: &Mark) {
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

    fn line(&self, svg: &mut String, series: &Series, colour: usize) {
        let buckets = buckets(&series.points);
        let has_band = buckets.iter().flatten().any(|bucket| bucket.low < bucket.high);
        if has_band {
            for run in buckets.split(Option::is_none) {
                let run: Vec<Bucket> = run.iter().flatten().copied().collect();
                if run.len() < 2 {
                    continue;
                }
                let there = run.iter().map(|bucket| (bucket.x, bucket.high));
                let back = run.iter().rev().map(|bucket| (bucket.x, bucket.low));
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
            let run: Vec<(f64, f64)> = run.iter().flatten().map(|bucket| (bucket.x, bucket.mean)).collect();
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

    fn path(&self, svg: &mut String, points: &[(f64, f64)], colour: usize) {
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

/// Neighbouring points drawn as one.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bucket {
    x: f64,
    mean: f64,
    low: f64,
    high: f64,
}

/// Points as buckets of equally many; `None` is a gap, where nothing in the bucket is finite.
fn buckets(points: &[(f64, f64)]) -> Vec<Option<Bucket>> {
    let size = points.len().div_ceil(POINTS_MAX).max(1);
    let bucket = |chunk: &[(f64, f64)]| {
        let finite = || chunk.iter().filter(|(x, y)| x.is_finite() && y.is_finite());
        let range = Range::of(finite().map(|(_, y)| *y))?;
        let n = finite().count() as f64;
        let mean = |f: fn(&(f64, f64)) -> f64| finite().map(f).sum::<f64>() / n;
        Some(Bucket { x: mean(|p| p.0), mean: mean(|p| p.1), low: range.low, high: range.high })
    };
    points.chunks(size).map(bucket).collect()
}

// ---------------------------------------------------------------------------------------------------- ticks and text

/// Round numbers inside `[low, high]`, about `count` of them, 1, 2 or 5 times a power of ten apart. At least two.
pub fn nice_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let raw = (high - low) / count.max(1) as f64;
    let power = 10.0_f64.powf(raw.log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= raw * 0.999).unwrap_or(raw);
    let ticks_at = |step: f64| {
        let (first, last) = ((low / step - 1e-9).ceil(), (high / step + 1e-9).floor());
        // `+ 0.0` turns -0 into 0.
        (0..=(last - first).max(-1.0) as i64).map(|i| (first + i as f64) * step + 0.0).collect::<Vec<_>>()
    };
    let ticks = ticks_at(step);
    if ticks.len() >= 2 { ticks } else { ticks_at(step / 5.0) }
}

/// Labels with as many decimals as the distance between ticks needs, in thousands or millions if they are large.
fn tick_labels(ticks: &[f64]) -> Vec<String> {
    let largest = ticks.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    let step = if ticks.len() > 1 { (ticks[1] - ticks[0]).abs() } else { largest };
    if largest > 0.0 && largest < 1e-3 {
        return ticks.iter().map(|x| if *x == 0.0 { "0".into() } else { scientific(*x) }).collect();
    }
    let (unit, suffix) = match largest {
        x if x >= 1e6 => (1e6, "M"),
        x if x >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let decimals = (-(step / unit).log10().floor()).clamp(0.0, 6.0) as usize;
    let label = |x: &f64| if *x == 0.0 { "0".into() } else { format!("{:.decimals$}{suffix}", x / unit) };
    ticks.iter().map(label).collect()
}

fn scientific(x: f64) -> String {
    let text = format!("{x:.1e}");
    text.replace(".0e", "e")
}

/// A number for people: about four significant digits.
pub fn short(x: f64) -> String {
    let size = x.abs();
    if !x.is_finite() {
        return x.to_string();
    }
    let text = match size {
        0.0 => return "0".into(),
        _ if size < 1e-3 => return format!("{x:.2e}"),
        _ if size < 1.0 => format!("{x:.4}"),
        _ if size < 100.0 => format!("{x:.3}"),
        _ if size < 1e4 => format!("{x:.1}"),
        _ if size < 1e6 => format!("{:.1}k", x / 1e3),
        _ if size < 1e9 => format!("{:.2}M", x / 1e6),
        _ => return format!("{x:.2e}"),
    };
    let (digits, suffix) = text.split_at(text.trim_end_matches(['k', 'M']).len());
    match digits.contains('.') {
        true => format!("{}{suffix}", digits.trim_end_matches('0').trim_end_matches('.')),
        false => text,
    }
}

/// Text that is safe between tags and in quoted attributes of HTML and SVG. Control characters, which neither allows,
/// become the replacement character.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            _ if c.is_control() => out.push('\u{fffd}'),
            _ => out.push(c),
        }
    }
    out
}

fn cut(text: &str, letters: usize) -> String {
    match text.chars().count() > letters {
        true => text.chars().take(letters - 1).chain("…".chars()).collect(),
        false => text.to_owned(),
    }
}

fn caption(title: &str, unit: &str) -> String {
    match unit {
        "" => format!("<figcaption>{}</figcaption>", escape(title)),
        _ => format!("<figcaption>{} <small>{}</small></figcaption>", escape(title), escape(unit)),
    }
}

fn figure(
    title: &str,
    unit: &str,
    legend: &[(&str, usize)],
    size: (f64, f64),
    label: &str,
    svg: &str,
) -> String {
    let mut html = format!("<figure class=\"chart\">{}", caption(title, unit));
    // One series needs no legend: the title says what it is.
    if legend.len() > 1 {
        html.push_str("<div class=\"legend\">");
        for (name, colour) in legend {
            let _ = write!(
                html,
                "<span><i style=\"background:var(--c{})\"></i>{}</span>",
                colour % COLOURS,
                escape(name)
            );
        }
        html.push_str("</div>");
    }
    let (width, height) = size;
    let _ = writeln!(
        html,
        "<svg viewBox=\"0 0 {width} {height:.0}\" role=\"img\" aria-label=\"{}\">{svg}</svg></figure>",
        escape(&format!("{title}. {label}"))
    );
    html
}

fn empty_figure(title: &str, unit: &str) -> String {
    format!("<figure class=\"chart\">{}<p>no values</p></figure>\n", caption(title, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        #[track_caller]
        fn check(low: f64, high: f64, expect: &[&str]) {
            let ticks = nice_ticks(low, high, 5);
            let room = (high - low) * 1e-6;
            assert!(ticks.iter().all(|x| (low - room..=high + room).contains(x)), "{ticks:?}");
            assert_eq!(tick_labels(&ticks), expect, "[{low}, {high}]");
        }
        check(0.0, 10.0, &["0", "2", "4", "6", "8", "10"]);
        check(0.0, 1.0, &["0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        check(-1.3, 2.1, &["-1", "0", "1", "2"]);
        check(0.0, 100_000.0, &["0", "20k", "40k", "60k", "80k", "100k"]);
        check(1.0, 3_000_000.0, &["1M", "2M", "3M"]);
        check(0.0, 2e-5, &["0", "5e-6", "1e-5", "1.5e-5", "2e-5"]);
        check(0.69, 0.70, &["0.690", "0.692", "0.694", "0.696", "0.698", "0.700"]);
        check(7.1, 7.9, &["7.2", "7.4", "7.6", "7.8"]);
    }

    #[test]
    fn there_are_always_two_ticks() {
        for i in 0..2000 {
            let low = (i as f64 * 0.37).sin() * 10.0_f64.powi(i % 13 - 6);
            let high = low + 10.0_f64.powi(i % 7 - 3) * (1.0 + (i as f64).cos().abs());
            assert!(nice_ticks(low, high, 5).len() >= 2, "[{low}, {high}]");
            assert!(nice_ticks(low, high, 5).len() <= 12, "[{low}, {high}]");
        }
    }

    #[test]
    fn numbers_for_people() {
        for (x, expect) in [
            (0.0, "0"),
            (1.0, "1"),
            (-0.5, "-0.5"),
            (0.123_456, "0.1235"),
            (12.0, "12"),
            (123.456, "123.5"),
            (12_345.0, "12.3k"),
            (10_000.0, "10k"),
            (2_000_000.0, "2M"),
            (2e-5, "2.00e-5"),
            (1e12, "1.00e12"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(short(x), expect);
        }
    }

    #[test]
    fn nothing_escapes_the_escaping() {
        let evil = "<script>alert(\"1\")</script> & 'x' \u{0}\u{1b}[31m\n";
        assert_eq!(
            escape(evil),
            "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#39;x&#39; \u{fffd}\u{fffd}[31m\n"
        );
        let chart = LineChart {
            title: evil.into(),
            unit: evil.into(),
            x_label: evil.into(),
            series: vec![series(evil, &[(0.0, 1.0), (1.0, 2.0)]), series(evil, &[(0.5, f64::NAN)])],
            marks: vec![Mark { x: 0.5, label: evil.into() }],
            from_zero: true,
        };
        let bars = BarChart {
            title: evil.into(),
            unit: evil.into(),
            categories: vec![evil.into()],
            groups: vec![BarGroup {
                name: evil.into(),
                bars: vec![Some(Bar { value: 1.0, interval: Some((0.5, 2.0)) })],
                colour: 0,
            }],
            reference: None,
        };
        let scatter = Scatter {
            title: evil.into(),
            x_label: evil.into(),
            y_label: evil.into(),
            clouds: vec![Cloud { name: evil.into(), points: vec![(1.0, 2.0, evil.into())], joined: true }],
        };
        for html in [chart.to_html(), bars.to_html(), scatter.to_html()] {
            assert!(!html.contains("<script") && !html.contains('\u{1b}'), "{html}");
        }
    }

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        Series { name: name.into(), points: points.to_vec(), dots: false }
    }

    fn chart(series: Vec<Series>) -> LineChart {
        LineChart {
            title: "loss".into(),
            unit: "nats".into(),
            x_label: "step".into(),
            series,
            marks: vec![],
            from_zero: false,
        }
    }

    /// Every coordinate of a path, to check that it is on the canvas.
    fn coordinates(html: &str) -> Vec<f64> {
        let paths = html.split(" d=\"M").skip(1).map(|rest| rest.split('"').next().unwrap());
        let numbers = paths.flat_map(|path| path.split(['L', ' ', 'Z', 'h', 'l', 'z', 'v', 'H', 'M']));
        numbers.filter(|text| !text.is_empty()).map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_line_stays_on_the_canvas() {
        let points: Vec<(f64, f64)> =
            (0..50).map(|i| (i as f64, (i as f64 * 0.3).sin() * 7.0 - 3.0)).collect();
        let html = chart(vec![series("train", &points)]).to_html();
        let all = coordinates(&html);
        assert_eq!(all.len(), 100);
        assert!(all.iter().all(|x| (0.0..=WIDTH).contains(x)), "{all:?}");
        assert!(html.contains("aria-label=\"loss. train: ") && !html.contains("class=\"legend\""));
    }

    #[test]
    fn a_value_that_is_not_finite_is_a_gap() {
        let points = [
            (0.0, 1.0),
            (1.0, 2.0),
            (2.0, f64::NAN),
            (3.0, 2.0),
            (4.0, 1.0),
            (5.0, f64::INFINITY),
            (6.0, 1.5),
        ];
        let html = chart(vec![series("train", &points)]).to_html();
        assert_eq!(html.matches("stroke-width=\"1.6\"").count(), 2, "two lines");
        assert_eq!(html.matches("<circle").count(), 1, "and a lone point");
        assert!(!html.contains("NaN") && !html.contains("inf"));
    }

    #[test]
    fn a_long_series_keeps_its_outliers_in_a_band() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (i as f64, 1.0)).collect();
        points[50_000].1 = 9.0;
        let buckets = buckets(&points);
        assert!(buckets.len() <= POINTS_MAX);
        assert_eq!(buckets.iter().flatten().map(|bucket| bucket.high).fold(0.0, f64::max), 9.0);
        let html = chart(vec![series("train", &points)]).to_html();
        assert!(html.contains("fill-opacity=\".18\"") && html.len() < 20_000, "{}", html.len());
    }

    #[test]
    fn what_cannot_be_drawn_says_so() {
        for points in [&[][..], &[(0.0, f64::NAN)]] {
            assert!(chart(vec![series("train", points)]).to_html().contains("no values"));
        }
        // A single value and a constant are drawn.
        for points in [&[(3.0, 5.0)][..], &[(1.0, 0.0), (2.0, 0.0)], &[(1.0, 1e-300), (2.0, 1e-300)]] {
            let html = chart(vec![series("train", points)]).to_html();
            assert!(html.contains("<svg") && !html.contains("NaN") && !html.contains("inf"), "{html}");
        }
    }

    #[test]
    fn bars_begin_at_the_reference() {
        let bars = |value: f64| BarChart {
            title: "win rate".into(),
            unit: "share".into(),
            categories: vec!["all".into()],
            groups: vec![BarGroup {
                name: "ppo".into(),
                bars: vec![Some(Bar { value, interval: Some((value - 0.1, value + 0.1)) })],
                colour: 1,
            }],
            reference: Some(0.5),
        };
        let rect = |html: &str, name: &str| -> f64 {
            let rect = html.split("<rect ").nth(1).unwrap();
            rect.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
        };
        let zero = |html: &str| -> f64 {
            let line = html.split("class=\"zero\" x1=\"").nth(1).unwrap();
            line.split('"').next().unwrap().parse().unwrap()
        };
        let above = bars(0.7).to_html();
        assert!((rect(&above, "x") - zero(&above)).abs() < 0.11);
        let below = bars(0.3).to_html();
        assert!((rect(&below, "x") + rect(&below, "width") - zero(&below)).abs() < 0.21);
        assert!(
            above.contains("all, ppo: 0.7 [0.6, 0.8]") && above.contains("fill=\"var(--c1)\""),
            "{above}"
        );
    }

    #[test]
    #[should_panic(expected = "bars of group \"a\"")]
    fn a_group_needs_a_bar_for_each_category() {
        let groups = vec![BarGroup { name: "a".into(), bars: vec![], colour: 0 }];
        let chart = BarChart {
            title: "".into(),
            unit: "".into(),
            categories: vec!["x".into()],
            groups,
            reference: None,
        };
        chart.to_html();
    }
}
