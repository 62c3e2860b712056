//! One number against another.

use std::fmt::Write as _;

use crate::curve::is_drawable;
use crate::frame::{Frame, HEIGHT, Range, WIDTH};
use crate::text::{escape, short};
use crate::{COLOURS, empty_figure, figure, legend_of};

/// A path of at most this many points shows each of them.
const DOTS_MAX: usize = 40;

/// Points of one colour.
#[derive(Clone, Debug, PartialEq)]
pub struct Cloud {
    /// In the legend.
    pub name: String,
    /// `(x, y, label)`; a label may be empty. On a path a labelled point is large, and its label is shown when it is pointed at.
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

impl Scatter {
    /// As a `<figure>`.
    pub fn to_html(&self) -> String {
        let all = || {
            let points = self.clouds.iter().flat_map(|cloud| &cloud.points);
            points.filter(|(x, y, _)| is_drawable(*x) && is_drawable(*y))
        };
        let x = Range::of(all().map(|(x, _, _)| *x)).map(Range::widened);
        let y = Range::of(all().map(|(_, y, _)| *y)).map(Range::widened);
        let (Some(x), Some(y)) = (x, y) else { return empty_figure(&self.title, &self.y_label) };

        let frame = Frame::new(x, y);
        let mut svg = frame.axes(&self.x_label);
        for (i, cloud) in self.clouds.iter().enumerate() {
            let colour = i % COLOURS;
            let finite: Vec<_> =
                cloud.points.iter().filter(|(x, y, _)| is_drawable(*x) && is_drawable(*y)).collect();
            if cloud.joined {
                let path: Vec<(f64, f64)> = finite.iter().map(|(x, y, _)| (*x, *y)).collect();
                frame.path(&mut svg, &path, colour);
            }
            // On a long path the dots would be a second, thicker one.
            let bare = cloud.joined && finite.len() > DOTS_MAX;
            for (x, y, label) in finite.into_iter().filter(|(_, _, label)| !bare || !label.is_empty()) {
                let (px, py) = (frame.px(*x), frame.py(*y));
                // On a path the labelled points are the ones to look at.
                let radius = if cloud.joined && label.is_empty() { 1.8 } else { 4.0 };
                let tip = format!("{} {label}: {}, {}", cloud.name, short(*x), short(*y));
                let _ = write!(
                    svg,
                    "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"{radius}\" fill=\"var(--c{colour})\"><title>{}</title></circle>",
                    escape(&tip)
                );
                if !label.is_empty() && !cloud.joined {
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
        let named = self.clouds.iter().map(|cloud| (cloud.name.as_str(), !cloud.points.is_empty()));
        let legend = legend_of(named);
        let label = format!("{} against {}", self.y_label, self.x_label);
        figure(&self.title, &self.y_label, &legend, (WIDTH, HEIGHT), &label, &svg, "")
    }
}
