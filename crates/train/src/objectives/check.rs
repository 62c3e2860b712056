//! Shared by the tests of this module: gradients against central differences.

/// Compares `grad` with `(loss(x + h) - loss(x - h)) / 2h` in every coordinate, relative to the largest gradient,
/// and returns the worst error. `loss` sums in f64, so with f32 inputs the error is `h^2` of curvature plus the
/// f32 rounding of the gradient itself.
#[track_caller]
pub(super) fn central_difference(
    what: &str,
    x: &[f32],
    grad: &[f32],
    h: f32,
    tolerance: f64,
    loss: impl Fn(&[f32]) -> f64,
) -> f64 {
    assert_eq!(x.len(), grad.len(), "{what}: one gradient for each input");
    let largest = grad.iter().fold(0.0_f64, |m, &g| m.max(f64::from(g).abs()));
    assert!(largest > 0.0, "{what}: a gradient that is zero everywhere checks nothing");
    let mut worst = 0.0_f64;
    for k in 0..x.len() {
        let (mut hi, mut lo) = (x.to_vec(), x.to_vec());
        hi[k] += h;
        lo[k] -= h;
        let difference = (loss(&hi) - loss(&lo)) / (f64::from(hi[k]) - f64::from(lo[k]));
        let error = (difference - f64::from(grad[k])).abs() / largest;
        assert!(
            error < tolerance,
            "{what}[{k}]: gradient {} difference {difference} error {error:.1e} (tolerance {tolerance:.0e})",
            grad[k]
        );
        worst = worst.max(error);
    }
    println!("{what}: worst relative error {worst:.1e}");
    worst
}

/// Deterministic values in `[-1, 1)`, unrelated between seeds: SplitMix64 (Steele et al. 2014).
pub(super) fn spread(n: usize, seed: u64) -> Vec<f32> {
    (0..n as u64)
        .map(|k| {
            let mut z = (seed << 32 | k).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
