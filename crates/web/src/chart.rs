//! Charts on a page. They are drawn by `polity_chart`, which escapes whatever it is given, and coloured by the style sheet.

use maud::{Markup, PreEscaped};
use polity_chart::{Bar, BarChart, BarGroup, ColumnChart, Curve, Form, LineChart, Scatter, Series};

/// A value with its interval.
pub(crate) struct Dot {
    pub(crate) label: String,
    pub(crate) estimate: f64,
    pub(crate) interval: Option<(f64, f64)>,
}

/// Dots with intervals on a line from `low` to `high`; `reference` is a line across.
pub(crate) fn dots(title: &str, rows: &[Dot], low: f64, high: f64, reference: Option<f64>) -> Markup {
    let bar = |row: &Dot| Some(Bar { value: row.estimate, interval: row.interval });
    bars(&BarChart {
        title: title.into(),
        unit: String::new(),
        categories: rows.iter().map(|row| row.label.clone()).collect(),
        groups: vec![BarGroup { name: title.into(), bars: rows.iter().map(bar).collect(), colour: 0 }],
        reference,
        form: Form::Dots { axis: Some((low, high)) },
    })
}

/// Counts over the steps of a quantity, with the step's upper edge as label.
pub(crate) fn columns(title: &str, unit: &str, columns: Vec<(String, usize)>) -> Markup {
    PreEscaped(ColumnChart { title: title.into(), unit: unit.into(), columns }.to_html())
}

/// A line over a running number.
pub(crate) fn line(title: &str, x_label: &str, points: &[(usize, f64)]) -> Markup {
    let points: Curve = points.iter().map(|(x, y)| (*x as f64, *y)).collect();
    lines(&LineChart {
        title: title.into(),
        unit: String::new(),
        x_label: x_label.into(),
        series: vec![Series { name: title.into(), points, dots: false }],
        marks: Vec::new(),
        from_zero: true,
    })
}

/// Values by category.
pub(crate) fn bars(chart: &BarChart) -> Markup {
    PreEscaped(chart.to_html())
}

/// Lines.
pub(crate) fn lines(chart: &LineChart) -> Markup {
    PreEscaped(chart.to_html())
}

/// One number against another.
pub(crate) fn scatter(chart: &Scatter) -> Markup {
    PreEscaped(chart.to_html())
}
