//! The logistic function and its logarithm, without overflow.

/// `1 / (1 + e^-x)`.
pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// `log sigmoid(x)`. Finite wherever `x` is; NaN in, NaN out.
pub(super) fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// `log(1 - e^x)` for `x < 0`. The branch at `-ln 2` keeps the subtraction away from cancellation.
///
/// Source: Maechler 2012, "Accurately computing log(1 - exp(-|a|))".
pub(super) fn log1mexp(x: f64) -> f64 {
    if x < -std::f64::consts::LN_2 { (-x.exp()).ln_1p() } else { (-x.exp_m1()).ln() }
}

/// Sum of f32 values in f64.
pub(super) fn sum(values: &[f32]) -> f64 {
    values.iter().map(|&x| f64::from(x)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logistic_by_hand_and_at_the_ends() {
        assert_eq!(sigmoid(0.0), 0.5);
        assert!((sigmoid(3.0_f64.ln()) - 0.75).abs() < 1e-15);
        assert!((sigmoid(-(3.0_f64.ln())) - 0.25).abs() < 1e-15);
        assert_eq!(sigmoid(-1e6), 0.0);
        assert_eq!(sigmoid(1e6), 1.0);
        assert!((log_sigmoid(3.0_f64.ln()) - 0.75_f64.ln()).abs() < 1e-15);
        assert_eq!(log_sigmoid(-1e6), -1e6);
        assert_eq!(log_sigmoid(1e6), 0.0);
        assert!(log_sigmoid(f64::NAN).is_nan());
        assert!(sigmoid(f64::NAN).is_nan());
    }

    #[test]
    fn log1mexp_on_both_sides_of_its_branch() {
        for x in [-1e-12_f64, -1e-3, -0.5, -0.7, -3.0, -40.0] {
            // 1 - e^x by its series near zero, directly elsewhere.
            let direct = if x > -1e-6 { (-x - x * x / 2.0).ln() } else { (1.0 - x.exp()).ln() };
            assert!((log1mexp(x) - direct).abs() <= 1e-12 * direct.abs().max(1e-3), "x = {x}");
        }
    }

    #[test]
    fn sums_accumulate_in_f64() {
        // In f32 the sum would stop growing at 2^24.
        let ones = vec![1.0_f32; (1 << 24) + 1];
        assert_eq!(sum(&ones), f64::from(1 << 24) + 1.0);
    }
}
