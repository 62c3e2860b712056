//! A series of any length in bounded memory.
//!
//! Neighbouring points share a bucket: their mean, smallest and largest value. When there are too many buckets, neighbours are merged and from
//! then on each takes twice as many points. So a curve can be pushed to for ever, is drawn in the time that its buckets take, and an outlier
//! among a million points is still seen.

/// Buckets at most: about one for each unit of a chart's width.
pub const BUCKETS_MAX: usize = 320;

/// Larger numbers have no place on an axis: their differences overflow.
const DRAWABLE_MAX: f64 = 1e150;

/// Points in the order of their x.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    buckets: Vec<Bucket>,
    /// Points that a bucket takes, as a power of two.
    doublings: u32,
    points: u64,
    last: Option<(f64, f64)>,
}

/// Neighbouring points drawn as one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    taken: u64,
    finite: u64,
    x_sum: f64,
    y_sum: f64,
    /// Smallest y.
    pub low: f64,
    /// Largest y.
    pub high: f64,
}

impl Bucket {
    /// Mean x.
    pub fn x(&self) -> f64 {
        self.x_sum / self.finite as f64
    }

    /// Mean y.
    pub fn mean(&self) -> f64 {
        (self.y_sum / self.finite as f64).clamp(self.low, self.high)
    }

    fn take(&mut self, x: f64, y: f64) {
        self.taken += 1;
        if is_drawable(x) && is_drawable(y) {
            (self.low, self.high) =
                if self.finite == 0 { (y, y) } else { (self.low.min(y), self.high.max(y)) };
            self.finite += 1;
            self.x_sum += x;
            self.y_sum += y;
        }
    }

    fn merged(self, other: Bucket) -> Bucket {
        let (low, high) = match (self.finite, other.finite) {
            (0, _) => (other.low, other.high),
            (_, 0) => (self.low, self.high),
            _ => (self.low.min(other.low), self.high.max(other.high)),
        };
        Bucket {
            taken: self.taken + other.taken,
            finite: self.finite + other.finite,
            x_sum: self.x_sum + other.x_sum,
            y_sum: self.y_sum + other.y_sum,
            low,
            high,
        }
    }
}

/// Whether a number has a place on an axis.
pub(crate) fn is_drawable(value: f64) -> bool {
    value.is_finite() && value.abs() < DRAWABLE_MAX
}

impl Curve {
    /// Adds a point. One that is not finite, or too large to draw, is a gap.
    pub fn push(&mut self, x: f64, y: f64) {
        let full = 1 << self.doublings;
        if self.buckets.last().is_none_or(|bucket| bucket.taken == full) {
            if self.buckets.len() == BUCKETS_MAX {
                let pairs = self.buckets.chunks(2);
                self.buckets = pairs
                    .map(|pair| pair.iter().copied().reduce(Bucket::merged).unwrap_or_default())
                    .collect();
                self.doublings += 1;
            }
            self.buckets.push(Bucket::default());
        }
        self.buckets.last_mut().expect("one was pushed if there was none").take(x, y);
        self.points += 1;
        if is_drawable(x) && is_drawable(y) {
            self.last = Some((x, y));
        }
    }

    /// Points pushed so far, gaps included.
    pub fn points(&self) -> u64 {
        self.points
    }

    /// The last point that is finite.
    pub fn last(&self) -> Option<(f64, f64)> {
        self.last
    }

    /// The buckets in order; `None` is a gap, where nothing in the bucket is finite.
    pub fn buckets(&self) -> impl Iterator<Item = Option<&Bucket>> {
        self.buckets.iter().map(|bucket| (bucket.finite > 0).then_some(bucket))
    }
}

impl FromIterator<(f64, f64)> for Curve {
    fn from_iter<I: IntoIterator<Item = (f64, f64)>>(points: I) -> Curve {
        let mut curve = Curve::default();
        points.into_iter().for_each(|(x, y)| curve.push(x, y));
        curve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is pushed, buckets are few, cover every point once, and have its extremes: compared with a loop over all points.
    #[test]
    fn a_curve_is_bounded_and_forgets_no_extreme() {
        for points in [1_u64, 319, 320, 321, 640, 641, 100_000] {
            let y = |i: u64| ((i * 7919) % 1009) as f64 - 300.0;
            let curve: Curve = (0..points).map(|i| (i as f64, y(i))).collect();
            let buckets: Vec<&Bucket> = curve.buckets().map(Option::unwrap).collect();
            assert!(
                buckets.len() <= BUCKETS_MAX && (points < 320 || buckets.len() >= BUCKETS_MAX / 2),
                "{points}"
            );
            let stride = 1 << curve.doublings;
            let mut first = 0;
            for bucket in buckets {
                let end = (first + stride).min(points);
                let all: Vec<f64> = (first..end).map(y).collect();
                let n = all.len() as f64;
                assert_eq!(bucket.taken, end - first);
                assert_eq!(bucket.low, all.iter().copied().fold(f64::INFINITY, f64::min));
                assert_eq!(bucket.high, all.iter().copied().fold(f64::NEG_INFINITY, f64::max));
                assert!((bucket.mean() - all.iter().sum::<f64>() / n).abs() < 1e-9);
                assert!((bucket.x() - (first + end - 1) as f64 / 2.0).abs() < 1e-9);
                first = end;
            }
            assert_eq!((first, curve.points()), (points, points));
            assert_eq!(curve.last(), Some(((points - 1) as f64, y(points - 1))));
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_a_gap() {
        let curve: Curve =
            [(0.0, 1.0), (1.0, f64::NAN), (2.0, 1e200), (f64::INFINITY, 1.0)].into_iter().collect();
        assert_eq!(
            curve.buckets().map(|bucket| bucket.is_some()).collect::<Vec<_>>(),
            [true, false, false, false]
        );
        assert_eq!(curve.last(), Some((0.0, 1.0)));
        let largest: Curve = (0..1000).map(|i| (i as f64, 9e149)).collect();
        assert!(largest.buckets().flatten().all(|bucket| bucket.mean() == 9e149));
    }
}
