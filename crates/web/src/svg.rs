//! Small charts as SVG, drawn here: nothing is fetched, colours come from the style sheet (classes), so they follow light and dark.
//!
//! Each chart has a title and a description for those who do not see it, and stands beside a table with the same numbers.

use maud::{Markup, html};

/// Width of a chart, in its own units; the page scales it.
const WIDTH: f64 = 440.0;
/// Left margin for labels.
const LABELS: f64 = 150.0;
/// Height of a row.
const ROW: f64 = 26.0;
const RIGHT: f64 = 20.0;
const AXIS: f64 = 24.0;

/// A value with its interval.
pub(crate) struct Dot {
    pub(crate) label: String,
    pub(crate) estimate: f64,
    pub(crate) interval: Option<(f64, f64)>,
}

/// Dots with intervals on a line from `low` to `high`; `reference` is a line across.
pub(crate) fn dots(title: &str, rows: &[Dot], low: f64, high: f64, reference: Option<f64>) -> Markup {
    let height = ROW * rows.len() as f64 + AXIS;
    let bottom = height - AXIS;
    let x = |value: f64| LABELS + (value.clamp(low, high) - low) / (high - low) * (WIDTH - LABELS - RIGHT);
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(title) {
            title { (title) }
            @for tick in ticks(low, high) {
                line.grid x1=(num(x(tick))) x2=(num(x(tick))) y1="0" y2=(num(bottom)) {}
                text.tick x=(num(x(tick))) y=(num(height - 6.0)) text-anchor="middle" { (short(tick)) }
            }
            @if let Some(reference) = reference {
                line.reference x1=(num(x(reference))) x2=(num(x(reference))) y1="0" y2=(num(bottom)) {}
            }
            @for (n, row) in rows.iter().enumerate() {
                @let y = ROW * (n as f64 + 0.5);
                text.label x=(num(LABELS - 10.0)) y=(num(y + 4.0)) text-anchor="end" { (clipped(&row.label)) }
                @if let Some((low, high)) = row.interval {
                    line.interval x1=(num(x(low))) x2=(num(x(high))) y1=(num(y)) y2=(num(y)) {}
                }
                circle.dot cx=(num(x(row.estimate))) cy=(num(y)) r="5" { title { (row.label) ": " (format!("{:.3}", row.estimate)) } }
            }
        }
    }
}

/// Bars over equal steps of a quantity: counts, with the step's lower edge as label.
pub(crate) fn bars(title: &str, counts: &[(String, usize)]) -> Markup {
    let most = counts.iter().map(|(_, n)| *n).max().unwrap_or(0).max(1) as f64;
    let height = 150.0;
    let bottom = height - AXIS;
    let step = (WIDTH - 2.0 * RIGHT) / counts.len().max(1) as f64;
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(title) {
            title { (title) }
            line.grid x1=(num(RIGHT)) x2=(num(WIDTH - RIGHT)) y1=(num(bottom)) y2=(num(bottom)) {}
            @for (n, (label, count)) in counts.iter().enumerate() {
                @let tall = (bottom - 16.0) * *count as f64 / most;
                @let x = RIGHT + step * n as f64;
                rect.bar x=(num(x + 2.0)) y=(num(bottom - tall)) width=(num(step - 4.0)) height=(num(tall)) { title { (label) ": " (count) } }
                @if *count > 0 { text.tick x=(num(x + step / 2.0)) y=(num(bottom - tall - 4.0)) text-anchor="middle" { (count) } }
                text.tick x=(num(x + step / 2.0)) y=(num(height - 6.0)) text-anchor="middle" { (label) }
            }
        }
    }
}

/// A line of values from 0 to 1 over a running number; `reference` is a line across.
pub(crate) fn line(title: &str, points: &[(usize, f64)], reference: Option<f64>) -> Markup {
    let height = 170.0;
    let (top, bottom) = (8.0, height - AXIS);
    let (first, last) = (points.first().map_or(0, |p| p.0), points.last().map_or(1, |p| p.0));
    let across = (last - first).max(1) as f64;
    let left = 44.0;
    let x = |n: usize| left + (n - first) as f64 / across * (WIDTH - left - RIGHT);
    let y = |value: f64| bottom - value.clamp(0.0, 1.0) * (bottom - top);
    let path: Vec<String> =
        points.iter().map(|(n, value)| format!("{},{}", num(x(*n)), num(y(*value)))).collect();
    html! {
        svg.chart viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label=(title) {
            title { (title) }
            @for tick in [0.0, 0.5, 1.0] {
                line.grid x1=(num(left)) x2=(num(WIDTH - RIGHT)) y1=(num(y(tick))) y2=(num(y(tick))) {}
                text.tick x=(num(left - 8.0)) y=(num(y(tick) + 4.0)) text-anchor="end" { (short(tick)) }
            }
            @if let Some(reference) = reference {
                line.reference x1=(num(left)) x2=(num(WIDTH - RIGHT)) y1=(num(y(reference))) y2=(num(y(reference))) {}
            }
            polyline.line points=(path.join(" ")) fill="none" {}
            text.tick x=(num(left)) y=(num(height - 6.0)) { (first) }
            text.tick x=(num(WIDTH - RIGHT)) y=(num(height - 6.0)) text-anchor="end" { (last) }
        }
    }
}

/// Round values between two, at most six steps.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 5.0;
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|k| k * unit).find(|step| *step >= rough * 0.999);
    let step = step.unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (0..=10).map(|n| (first + n) as f64 * step).take_while(|tick| *tick <= high + step * 1e-6).collect()
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

/// A coordinate, to a tenth.
fn num(value: f64) -> String {
    format!("{value:.1}")
}

fn clipped(label: &str) -> String {
    match label.chars().count() {
        ..=20 => label.to_owned(),
        _ => label.chars().take(19).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            ticks(0.0, 1.0).iter().map(|t| short(*t)).collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!(
            ticks(-1.0, 1.0).iter().map(|t| short(*t)).collect::<Vec<_>>(),
            ["-1", "-0.5", "0", "0.5", "1"]
        );
    }

    /// A dot stands where its value is: 0.5 on 0..1 is in the middle between the margins.
    #[test]
    fn values_are_where_they_belong_and_labels_are_escaped() {
        let rows = [Dot { label: "<script>".into(), estimate: 0.5, interval: Some((0.0, 1.0)) }];
        let svg = dots("t", &rows, 0.0, 1.0, None).into_string();
        assert!(svg.contains("cx=\"285.0\""), "{svg}");
        assert!(svg.contains("x1=\"150.0\" x2=\"420.0\""), "{svg}");
        assert!(!svg.contains("<script>"), "{svg}");
        let svg = line("t", &[(1, 0.0), (3, 1.0)], None).into_string();
        assert!(svg.contains("points=\"44.0,146.0 420.0,8.0\""), "{svg}");
    }
}
