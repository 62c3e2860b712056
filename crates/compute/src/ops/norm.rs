//! Normalisation of each row of `c` channels: RMSNorm, Gemma's RMSNorm, LayerNorm.
//!
//! ```text
//! Rms         y = x * rstd * w             rstd = 1 / sqrt(mean_c(x^2) + eps)
//! RmsPlusOne  y = x * rstd * (1 + w)       the same rstd
//! Layer       y = (x - mean) * rstd * w + b   rstd = 1 / sqrt(mean_c((x - mean)^2) + eps)
//! ```
//!
//! `x_nc`, `y_nc` are `[n, c]`, `w_c` and `b_c` are `[c]`; `mean_n` (LayerNorm only) and `rstd_n` are saved
//! by forward for backward. Sums in f64, `mean` and `rstd` rounded to f32; then each element is f32,
//! operation by operation as written above, from the left. Backward is f64 up to its one addition.
//!
//! Source: Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450.

use crate::config::NormKind;

/// Overwrites `y_nc`, `rstd_n` and, for LayerNorm, `mean_n` (else it is empty).
///
/// # Panics
///
/// If the lengths do not fit together or with the kind.
pub fn forward(
    kind: NormKind,
    y_nc: &mut [f32],
    mean_n: &mut [f32],
    rstd_n: &mut [f32],
    x_nc: &[f32],
    w_c: &[f32],
    b_c: Option<&[f32]>,
    eps: f32,
) {
    let (n, c) = (rstd_n.len(), w_c.len());
    assert_eq!(x_nc.len(), n * c, "norm: x is [{n}, {c}]");
    assert_eq!(y_nc.len(), n * c, "norm: y is [{n}, {c}]");
    assert_eq!(mean_n.len(), means(kind, n), "norm: means of {kind:?} for {n} rows");
    assert_eq!(b_c.map(<[f32]>::len), (kind == NormKind::Layer).then_some(c), "norm: bias of {kind:?}");

    for (i, x_c) in x_nc.chunks_exact(c).enumerate() {
        let mean = match kind {
            NormKind::Layer => (x_c.iter().map(|&x| f64::from(x)).sum::<f64>() / c as f64) as f32,
            NormKind::Rms | NormKind::RmsPlusOne => 0.0,
        };
        let sum_sq: f64 = x_c.iter().map(|&x| (f64::from(x) - f64::from(mean)).powi(2)).sum();
        let rstd = (1.0 / (sum_sq / c as f64 + f64::from(eps)).sqrt()) as f32;
        rstd_n[i] = rstd;
        if kind == NormKind::Layer {
            mean_n[i] = mean;
        }
        for (j, y) in y_nc[i * c..][..c].iter_mut().enumerate() {
            *y = match (kind, b_c) {
                (NormKind::RmsPlusOne, _) => x_c[j] * rstd * (1.0 + w_c[j]),
                (NormKind::Layer, Some(b_c)) => (x_c[j] - mean) * rstd * w_c[j] + b_c[j],
                _ => x_c[j] * rstd * w_c[j],
            };
        }
    }
}

/// Adds into `d_x_nc`, `d_w_c` and, for LayerNorm, `d_b_c`.
///
/// # Panics
///
/// If the lengths do not fit together or with the kind.
pub fn backward(
    kind: NormKind,
    d_x_nc: &mut [f32],
    d_w_c: &mut [f32],
    d_b_c: Option<&mut [f32]>,
    d_y_nc: &[f32],
    x_nc: &[f32],
    w_c: &[f32],
    mean_n: &[f32],
    rstd_n: &[f32],
) {
    let (n, c) = (rstd_n.len(), w_c.len());
    assert_eq!(x_nc.len(), n * c, "norm backward: x is [{n}, {c}]");
    assert_eq!(d_x_nc.len(), n * c, "norm backward: d_x is [{n}, {c}]");
    assert_eq!(d_y_nc.len(), n * c, "norm backward: d_y is [{n}, {c}]");
    assert_eq!(d_w_c.len(), c, "norm backward: d_w is [{c}]");
    assert_eq!(mean_n.len(), means(kind, n), "norm backward: means of {kind:?} for {n} rows");
    let bias = (kind == NormKind::Layer).then_some(c);
    assert_eq!(d_b_c.as_ref().map(|d_b| d_b.len()), bias, "norm backward: bias of {kind:?}");

    let unit = |i: usize, j: usize| {
        let mean = mean_n.get(i).copied().unwrap_or(0.0); // the RMS kinds have none
        (f64::from(x_nc[i * c + j]) - f64::from(mean)) * f64::from(rstd_n[i])
    };
    let d_y = |i: usize, j: usize| f64::from(d_y_nc[i * c + j]);
    for i in 0..n {
        // forward was: y = unit * w, with unit = (x - mean(x)) * rstd(x)
        // so now:
        let d_unit = |j: usize| match kind {
            NormKind::RmsPlusOne => d_y(i, j) * (1.0 + f64::from(w_c[j])),
            NormKind::Rms | NormKind::Layer => d_y(i, j) * f64::from(w_c[j]),
        };
        // How much this row's norm, and its mean, move every channel.
        let pull = (0..c).map(|j| d_unit(j) * unit(i, j)).sum::<f64>() / c as f64;
        let shift = match kind {
            NormKind::Layer => (0..c).map(d_unit).sum::<f64>() / c as f64,
            NormKind::Rms | NormKind::RmsPlusOne => 0.0,
        };
        for j in 0..c {
            let d_x = (d_unit(j) - shift - unit(i, j) * pull) * f64::from(rstd_n[i]);
            d_x_nc[i * c + j] += d_x as f32;
        }
    }
    for (j, d_w) in d_w_c.iter_mut().enumerate() {
        *d_w += (0..n).map(|i| d_y(i, j) * unit(i, j)).sum::<f64>() as f32;
    }
    if let Some(d_b_c) = d_b_c {
        for (j, d_b) in d_b_c.iter_mut().enumerate() {
            *d_b += (0..n).map(|i| d_y(i, j)).sum::<f64>() as f32;
        }
    }
}

/// Length of `mean_n`.
fn means(kind: NormKind, n: usize) -> usize {
    match kind {
        NormKind::Layer => n,
        NormKind::Rms | NormKind::RmsPlusOne => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    // Row [1, 7]: mean square 25, so rstd is 1/5; mean 4 and variance 9, so LayerNorm's is 1/3.
    #[track_caller]
    fn check(kind: NormKind, w_c: [f32; 2], b_c: Option<&[f32]>, rstd: f32, expect_c: [f32; 2]) {
        let mut mean_n = unwritten(means(kind, 1));
        let (mut y_c, mut rstd_n) = (unwritten(2), unwritten(1));
        forward(kind, &mut y_c, &mut mean_n, &mut rstd_n, &[1.0, 7.0], &w_c, b_c, 0.0);
        assert_eq!((rstd_n[0], &y_c[..]), (rstd, &expect_c[..]));
        assert!(mean_n.iter().all(|&mean| mean == 4.0));
    }

    #[test]
    fn worked_by_hand() {
        check(NormKind::Rms, [2.0, 5.0], None, 0.2, [0.4, 7.0]);
        check(NormKind::RmsPlusOne, [1.0, 4.0], None, 0.2, [0.4, 7.0]);
        check(NormKind::Layer, [2.0, 6.0], Some(&[0.5, -1.0]), 1.0 / 3.0, [-1.5, 5.0]);
    }

    #[test]
    fn epsilon_is_under_the_root() {
        let (mut y_c, mut rstd_n) = (unwritten(2), unwritten(1));
        forward(NormKind::Rms, &mut y_c, &mut [], &mut rstd_n, &[0.0, 0.0], &[1.0, 1.0], None, 0.25);
        assert_eq!((y_c, rstd_n), (vec![0.0; 2], vec![2.0]));
    }

    // A channel mean far above the spread is where a one-pass variance fails.
    #[test]
    fn layer_norm_survives_a_large_mean() {
        let (mut y_c, mut mean_n, mut rstd_n) = (unwritten(2), unwritten(1), unwritten(1));
        let x_c = [65536.0, 65538.0];
        forward(NormKind::Layer, &mut y_c, &mut mean_n, &mut rstd_n, &x_c, &[1.0; 2], Some(&[0.0; 2]), 0.0);
        assert_eq!((y_c, rstd_n), (vec![-1.0, 1.0], vec![1.0]));
    }

    #[test]
    fn gradients_match_central_differences() {
        let (n, c, eps) = (3, 7, 1e-5);
        for kind in [NormKind::Rms, NormKind::RmsPlusOne, NormKind::Layer] {
            let (x_nc, w_c, d_y_nc) = (values(1, n * c), values(2, c), values(3, n * c));
            let b_c = (kind == NormKind::Layer).then(|| values(4, c));
            let run = |x_nc: &[f32], w_c: &[f32], b_c: Option<&[f32]>| {
                let (mut y_nc, mut mean_n, mut rstd_n) =
                    (unwritten(n * c), unwritten(means(kind, n)), unwritten(n));
                forward(kind, &mut y_nc, &mut mean_n, &mut rstd_n, x_nc, w_c, b_c, eps);
                (weighted(&y_nc, &d_y_nc), mean_n, rstd_n)
            };
            let (_, mean_n, rstd_n) = run(&x_nc, &w_c, b_c.as_deref());
            let (mut d_x_nc, mut d_w_c) = (before(n * c), before(c));
            let mut d_b_c = b_c.as_ref().map(|_| before(c));
            backward(
                kind,
                &mut d_x_nc,
                &mut d_w_c,
                d_b_c.as_deref_mut(),
                &d_y_nc,
                &x_nc,
                &w_c,
                &mean_n,
                &rstd_n,
            );

            // Measured worst 8.9e-6 (d_x) and 1.4e-7 (weights, where forward is linear).
            let (d_x_nc, d_w_c) = (added(&d_x_nc), added(&d_w_c));
            let b = b_c.as_deref();
            check_gradient(&format!("{kind:?} d_x"), &d_x_nc, &x_nc, 0.01, 4.5e-5, |x| run(x, &w_c, b).0);
            check_gradient(&format!("{kind:?} d_w"), &d_w_c, &w_c, 0.25, 7e-7, |w| run(&x_nc, w, b).0);
            if let (Some(d_b_c), Some(b_c)) = (d_b_c, &b_c) {
                let loss = |b: &[f32]| run(&x_nc, &w_c, Some(b)).0;
                check_gradient("Layer d_b", &added(&d_b_c), b_c, 0.25, 7e-7, loss);
            }
        }
    }

    #[test]
    #[should_panic(expected = "norm: bias of Rms")]
    fn a_bias_needs_a_layer_norm() {
        forward(NormKind::Rms, &mut [0.0], &mut [], &mut [0.0], &[0.0], &[0.0], Some(&[0.0]), 0.0);
    }
}
