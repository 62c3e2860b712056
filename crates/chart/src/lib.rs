//! Charts as inline SVG: lines over time, bars or dots with intervals, columns, scatter.
//!
//! A chart becomes a `<figure>`: a caption and a legend in HTML, which wrap on a narrow screen, and an SVG that scales
//! with its column. Colours are CSS variables, so [`STYLE`] must be on the page; it has a light and a dark set. Nothing
//! is fetched, no script runs, and there is no `style` attribute, so a content security policy may forbid both. All text is escaped.
//!
//! A series may be of any length ([`Curve`]): it is drawn as the mean of each bucket of neighbouring points inside a band from its smallest
//! to its largest value, so an outlier is seen however long the run. A value that is not finite is a gap.
//!
//! Not here: the page around the charts, logarithmic axes, interaction.

#![forbid(unsafe_code)]

mod bars;
mod board;
mod columns;
mod curve;
mod frame;
mod line;
mod scatter;
mod text;

use std::fmt::Write as _;

pub use bars::{Bar, BarChart, BarGroup, Form};
pub use board::{Board, Metric, Panel, Raised};
pub use columns::ColumnChart;
pub use curve::{BUCKETS_MAX, Bucket, Curve};
pub use line::{LineChart, Mark, Series};
pub use scatter::{Cloud, Scatter};
pub use text::{escape, nice_ticks, short};

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
i.c0{background:var(--c0)}i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}\
i.c4{background:var(--c4)}i.c5{background:var(--c5)}\
figure.chart .marks{list-style:none;margin:.2rem 0 .3rem;padding:0;font-size:.8rem}\
figure.chart .marks li::before{content:\"▼ \";color:var(--alarm)}\
figure.chart svg{display:block;width:100%;height:auto;margin-top:.3rem}\
figure.chart text{font:11px system-ui,sans-serif;fill:var(--soft)}\
figure.chart text.value{fill:var(--ink)}\
figure.chart .grid{stroke:var(--line);stroke-width:1}\
figure.chart .zero{stroke:var(--soft);stroke-width:1}\
figure.chart .limit{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:4 3}\
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
text{font:11px system-ui,sans-serif;fill:var(--soft)}\
text.title{font-weight:600;font-size:12px;fill:var(--ink)}text.title tspan{font-weight:400;fill:var(--soft)}\
.grid{stroke:var(--line);stroke-width:1}.zero{stroke:var(--soft);stroke-width:1}\
.alarm{stroke:var(--alarm);stroke-width:1;stroke-dasharray:3 3}.flag{fill:var(--alarm)}";

/// Number of colours in [`STYLE`]; further series repeat them.
const COLOURS: usize = 6;

fn caption(title: &str, unit: &str) -> String {
    match unit {
        "" => format!("<figcaption>{}</figcaption>", escape(title)),
        _ => format!("<figcaption>{} <small>{}</small></figcaption>", escape(title), escape(unit)),
    }
}

/// Names and colours of those that are drawn. One alone needs no legend: the title says what it is.
fn legend_of<'a>(named: impl Iterator<Item = (&'a str, bool)>) -> Vec<(&'a str, usize)> {
    let all: Vec<(&str, bool)> = named.collect();
    if all.len() < 2 {
        return Vec::new();
    }
    all.into_iter().enumerate().filter(|(_, (_, drawn))| *drawn).map(|(i, (name, _))| (name, i)).collect()
}

/// The figure around a drawing; `below` is HTML under it.
fn figure(
    title: &str,
    unit: &str,
    legend: &[(&str, usize)],
    size: (f64, f64),
    label: &str,
    svg: &str,
    below: &str,
) -> String {
    let mut html = format!("<figure class=\"chart\">{}", caption(title, unit));
    if !legend.is_empty() {
        html.push_str("<div class=\"legend\">");
        for (name, colour) in legend {
            let _ = write!(html, "<span><i class=\"c{}\"></i>{}</span>", colour % COLOURS, escape(name));
        }
        html.push_str("</div>");
    }
    let (width, height) = size;
    let _ = writeln!(
        html,
        "<svg viewBox=\"0 0 {width} {height:.0}\" role=\"img\" aria-label=\"{}\">{svg}</svg>{below}</figure>",
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
    use crate::frame::WIDTH;

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
            marks: vec![Mark { x: 0.5, name: evil.into(), label: evil.into() }],
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
            form: Form::Dots { axis: None },
        };
        let columns = ColumnChart {
            title: evil.into(),
            unit: evil.into(),
            columns: vec![(evil.into(), 1), (evil.into(), 0)],
        };
        let scatter = Scatter {
            title: evil.into(),
            x_label: evil.into(),
            y_label: evil.into(),
            clouds: vec![Cloud { name: evil.into(), points: vec![(1.0, 2.0, evil.into())], joined: true }],
        };
        for html in [chart.to_html(), bars.to_html(), scatter.to_html(), columns.to_html()] {
            assert!(!html.contains("<script") && !html.contains('\u{1b}'), "{html}");
        }
    }

    fn series(name: &str, points: &[(f64, f64)]) -> Series {
        Series { name: name.into(), points: points.iter().copied().collect(), dots: false }
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
            form: Form::Bars,
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

    /// A dot stands where its value is: between the ends of the axis as the value between their numbers.
    #[test]
    fn dots_are_where_their_values_are() {
        let dots = |value: f64| {
            let bar = Bar { value, interval: Some((value - 0.25, value + 0.25)) };
            let chart = BarChart {
                title: "agreement".into(),
                unit: "share".into(),
                categories: vec!["all".into()],
                groups: vec![BarGroup { name: "panel".into(), bars: vec![Some(bar)], colour: 0 }],
                reference: Some(0.5),
                form: Form::Dots { axis: Some((0.0, 1.0)) },
            };
            let html = chart.to_html();
            let number = |before: &str| -> f64 {
                html.split(before).nth(1).unwrap().split(['"', ' ']).next().unwrap().parse().unwrap()
            };
            (number("cx=\""), number("class=\"limit\" x1=\""), number("<path d=\"M"))
        };
        let (low, limit, _) = dots(0.25);
        let (high, same, whisker) = dots(0.75);
        assert_eq!(limit, same);
        assert!(
            ((low + high) / 2.0 - limit).abs() < 0.11 && (whisker - limit).abs() < 0.11,
            "{low} {high} {whisker}"
        );
    }

    #[test]
    fn columns_are_as_tall_as_their_counts() {
        let chart = ColumnChart {
            title: "t".into(),
            unit: "s".into(),
            columns: vec![("1".into(), 2), ("2".into(), 4), ("more".into(), 0)],
        };
        let html = chart.to_html();
        let tall: Vec<f64> = html
            .split("height=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!((tall[0] * 2.0, tall[2]), (tall[1], 0.0));
        assert!(html.contains("aria-label=\"t. 1: 2, 2: 4, more: 0\""), "{html}");
        assert!(ColumnChart { columns: vec![("1".into(), 0)], ..chart }.to_html().contains("no values"));
    }

    #[test]
    fn marks_are_said_below_and_absent_series_have_no_legend() {
        let mut chart =
            chart(vec![series("a", &[(1.0, 1.0), (9.0, 2.0)]), series("b", &[]), series("c", &[(1.0, 2.0)])]);
        chart.marks = vec![Mark { x: 4.0, name: "kl_explosion, step 4".into(), label: "why".into() }];
        let html = chart.to_html();
        assert!(
            html.contains("<li>kl_explosion, step 4</li>") && html.contains("<title>why</title>"),
            "{html}"
        );
        assert!(
            html.contains("c0\"></i>a") && html.contains("c2\"></i>c") && !html.contains("</i>b"),
            "{html}"
        );
        assert!(!html.contains("style="), "{html}");
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
            form: Form::Bars,
        };
        chart.to_html();
    }
}
