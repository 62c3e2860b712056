//! What the tests of the operations share: numbers that look random, panels, central differences.

use crate::params::{LANES, panel_row};

/// What gradients hold before a backward: a test that subtracts it again sees whether backward adds.
const BEFORE: f32 = 0.5;

/// `len` values in `[-1, 1)`, the same for the same `seed` (SplitMix64).
pub fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// A gradient that already holds something.
pub fn before(len: usize) -> Vec<f32> {
    vec![BEFORE; len]
}

/// What a backward added to [`before`].
pub fn added(gradient: &[f32]) -> Vec<f32> {
    gradient.iter().map(|g| g - BEFORE).collect()
}

/// An output nobody has written: whatever stays unwritten poisons the test.
pub fn unwritten(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

/// `[rows, cols]` row by row, into panels.
pub fn to_panels(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    let mut panels = vec![0.0; rows.next_multiple_of(LANES) * cols];
    for row in 0..rows {
        for (col, at) in panel_row(cols, row).enumerate() {
            panels[at] = values[row * cols + col];
        }
    }
    panels
}

/// The first `rows` rows of panels, row by row.
pub fn from_panels(panels: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows).flat_map(|row| panel_row(cols, row).map(|at| panels[at])).collect()
}

/// `sum_i y_i * weight_i`: a scalar whose gradient with respect to `y` is `weight`.
pub fn weighted(y: &[f32], weight: &[f32]) -> f64 {
    assert_eq!(y.len(), weight.len());
    y.iter().zip(weight).map(|(&y, &w)| f64::from(y) * f64::from(w)).sum()
}

/// Compares `gradient` with central differences of `loss` at `x`, by the five-point stencil
///
/// ```text
/// (8 (f(x+s) - f(x-s)) - (f(x+2s) - f(x-2s))) / 12s      error of order s^4
/// ```
///
/// The step can then be large, and the rounding of an f32 forward matters little. The error is
/// relative to the largest element of the gradient.
#[track_caller]
pub fn check_gradient(
    name: &str,
    gradient: &[f32],
    x: &[f32],
    step: f32,
    tolerance: f64,
    loss: impl Fn(&[f32]) -> f64,
) {
    assert_eq!(gradient.len(), x.len(), "{name}");
    let largest = gradient.iter().fold(0.0, |m: f64, &g| m.max(f64::from(g).abs()));
    assert!(largest > 0.0, "{name}: a gradient of zeros checks nothing");
    let mut worst = (0.0, 0, 0.0);
    let mut moved = x.to_vec();
    for i in 0..x.len() {
        let mut at = |offset: f32| {
            moved[i] = x[i] + offset;
            let f = (loss(&moved), f64::from(moved[i]));
            moved[i] = x[i];
            f
        };
        let [(f2, _), (f1, x1), (f_1, x_1), (f_2, _)] = [2.0, 1.0, -1.0, -2.0].map(|k| at(k * step));
        let differences = (8.0 * (f1 - f_1) - (f2 - f_2)) / (6.0 * (x1 - x_1));
        let error = (differences - f64::from(gradient[i])).abs() / largest;
        assert!(error.is_finite(), "{name}[{i}]: backward {} differences {differences}", gradient[i]);
        if error > worst.0 {
            worst = (error, i, differences);
        }
    }
    let (error, i, differences) = worst;
    println!("{name}: worst error {error:.1e} of {largest:.2e}");
    assert!(
        error < tolerance,
        "{name}[{i}]: backward {} differences {differences} error {error:.1e}",
        gradient[i]
    );
}

#[test]
fn differences_find_a_wrong_gradient() {
    let cube = |x: &[f32]| f64::from(x[0]).powi(3);
    check_gradient("right", &[12.0], &[2.0], 0.0625, 1e-9, cube);
    let wrong = std::panic::catch_unwind(|| check_gradient("wrong", &[12.1], &[2.0], 0.0625, 1e-3, cube));
    assert!(wrong.is_err());
}
