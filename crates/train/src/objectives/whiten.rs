//! Whitening: subtract the mean, divide by the standard deviation.
//!
//! ```text
//! y = (x - mean) / sqrt(var + 1e-8)        and, without shift_mean, + mean again
//! ```
//!
//! Whitening is over **all** the batch's values: it needs the whole batch, on every worker. Workers merge their
//! [`Moments`] first, so the result does not depend on how many there are. (TRL whitens on each rank alone.)
//!
//! Source: TRL 1.9.2 and 0.11.4 `masked_whiten`; the merge of moments is Chan, Golub & LeVeque 1979.

use super::ObjectiveError;

/// Added to the variance before the root, as in TRL.
const WHITEN_EPS: f64 = 1e-8;

/// Count, mean and sum of squared deviations. Merging is exact up to f64 rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moments {
    /// Number of values.
    pub count: u64,
    /// Their mean; 0 if there are none.
    pub mean: f64,
    /// Sum of squared deviations from the mean.
    pub squared_deviations: f64,
}

/// What the sum of squared deviations is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variance {
    /// By `n - 1`, as `torch.var` and TRL do.
    Unbiased,
    /// By `n`, as OpenAI's 2019 TensorFlow code did.
    Biased,
}

impl Moments {
    /// Moments of some values, in two passes.
    pub fn of(values: &[f32]) -> Moments {
        let count = values.len() as u64;
        if count == 0 {
            return Moments::default();
        }
        let mean = super::math::sum(values) / count as f64;
        let squared_deviations = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
        Moments { count, mean, squared_deviations }
    }

    /// Adds one value.
    pub fn push(&mut self, value: f64) {
        self.merge(&Moments { count: 1, mean: value, squared_deviations: 0.0 });
    }

    /// Adds the values of `other`.
    pub fn merge(&mut self, other: &Moments) {
        if other.count == 0 {
            return;
        }
        let (a, b) = (self.count as f64, other.count as f64);
        let delta = other.mean - self.mean;
        self.squared_deviations += other.squared_deviations + delta * delta * a * b / (a + b);
        self.mean += delta * b / (a + b);
        self.count += other.count;
    }

    /// The variance; `None` with too few values for one.
    pub fn variance(&self, kind: Variance) -> Option<f64> {
        let divisor = match kind {
            Variance::Unbiased => self.count.checked_sub(1)?,
            Variance::Biased => self.count,
        };
        (divisor > 0).then(|| self.squared_deviations / divisor as f64)
    }
}

/// How to whiten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WhitenConfig {
    /// Which variance.
    pub variance: Variance,
    /// Whether the result has mean zero (advantages) or keeps its mean (rewards).
    pub shift_mean: bool,
}

/// Whitens `values` by the `moments` of the whole batch, of which `values` may be a part. `what` names the values in
/// the error.
pub fn whiten(
    what: &'static str,
    values: &[f32],
    moments: &Moments,
    config: WhitenConfig,
) -> Result<Vec<f32>, ObjectiveError> {
    let needed = match config.variance {
        Variance::Unbiased => 2,
        Variance::Biased => 1,
    };
    let Some(variance) = moments.variance(config.variance) else {
        return Err(ObjectiveError::TooFewToWhiten { what, found: moments.count, needed });
    };
    let scale = 1.0 / (variance + WHITEN_EPS).sqrt();
    let back = if config.shift_mean { 0.0 } else { moments.mean };
    Ok(values.iter().map(|&x| ((f64::from(x) - moments.mean) * scale + back) as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::super::check::spread;
    use super::*;

    const ADVANTAGES: WhitenConfig = WhitenConfig { variance: Variance::Unbiased, shift_mean: true };

    #[test]
    fn worked_by_hand() {
        // Mean 3; squared deviations 4 + 0 + 4 = 8; unbiased variance 4, biased 8/3.
        let values = [1.0, 3.0, 5.0];
        let moments = Moments::of(&values);
        assert_eq!(moments, Moments { count: 3, mean: 3.0, squared_deviations: 8.0 });
        let check = |variance, shift_mean, expect: [f32; 3]| {
            let got = whiten("x", &values, &moments, WhitenConfig { variance, shift_mean }).unwrap();
            for (got, expect) in got.iter().zip(expect) {
                assert!((got - expect).abs() < 1e-6, "{variance:?} {shift_mean}: {got} {expect}");
            }
        };
        check(Variance::Unbiased, true, [-1.0, 0.0, 1.0]);
        check(Variance::Unbiased, false, [2.0, 3.0, 4.0]);
        let biased = 2.0 / (8.0_f32 / 3.0).sqrt();
        check(Variance::Biased, true, [-biased, 0.0, biased]);
        check(Variance::Biased, false, [3.0 - biased, 3.0, 3.0 + biased]);
    }

    #[test]
    fn whitened_values_have_mean_zero_and_variance_one() {
        let values: Vec<f32> = spread(1000, 5).iter().map(|x| 40.0 + 3.0 * x).collect();
        let moments = Moments::of(&values);
        for variance in [Variance::Unbiased, Variance::Biased] {
            let config = WhitenConfig { variance, shift_mean: true };
            let white = Moments::of(&whiten("x", &values, &moments, config).unwrap());
            // Measured: mean 5e-10, variance 3e-9 from one.
            assert!(white.mean.abs() < 1e-7, "{white:?}");
            assert!((white.variance(variance).unwrap() - 1.0).abs() < 1e-7, "{white:?}");
        }
        let kept = WhitenConfig { variance: Variance::Unbiased, shift_mean: false };
        let kept = Moments::of(&whiten("x", &values, &moments, kept).unwrap());
        assert!((kept.mean - moments.mean).abs() < 1e-5, "{kept:?}");
    }

    #[test]
    fn one_worker_equals_three() {
        let values = spread(101, 6);
        let whole = whiten("x", &values, &Moments::of(&values), ADVANTAGES).unwrap();
        let parts = [&values[..1], &values[1..40], &values[40..]];
        let mut merged = Moments::default();
        parts.iter().for_each(|part| merged.merge(&Moments::of(part)));
        for (k, part) in parts.iter().enumerate() {
            let got = whiten("x", part, &merged, ADVANTAGES).unwrap();
            let at = [0, 1, 40][k];
            for (j, got) in got.iter().enumerate() {
                assert!((got - whole[at + j]).abs() < 1e-6, "part {k}, value {j}");
            }
        }
        let mut pushed = Moments::default();
        values.iter().for_each(|&x| pushed.push(f64::from(x)));
        assert!((pushed.mean - merged.mean).abs() < 1e-12);
        assert!((pushed.squared_deviations - merged.squared_deviations).abs() < 1e-9);
    }

    #[test]
    fn too_few_values_are_refused_not_turned_into_nan() {
        let one = Moments::of(&[2.0]);
        let error = whiten("advantages", &[2.0], &one, ADVANTAGES).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot whiten advantages: 1 values in the batch, expected at least 2; use a larger batch"
        );
        let biased = WhitenConfig { variance: Variance::Biased, shift_mean: true };
        assert_eq!(whiten("x", &[2.0], &one, biased).unwrap(), [0.0]);
        assert!(whiten("x", &[], &Moments::default(), biased).is_err());
    }

    #[test]
    fn equal_values_whiten_to_zero() {
        let values = [0.1_f32; 7];
        assert_eq!(whiten("x", &values, &Moments::of(&values), ADVANTAGES).unwrap(), [0.0; 7]);
    }
}
