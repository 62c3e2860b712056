//! AdamW on flat buffers, and the squared norm that clipping needs.
//!
//! ```text
//! g <- g * grad_scale
//! w <- w * (1 - lr * weight_decay)
//! m <- m + (1 - beta1) (g - m)
//! v <- beta2 v + (1 - beta2) g^2
//! w <- w - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
//! ```
//!
//! As PyTorch's `AdamW`: decoupled decay, bias correction, epsilon outside the root. Coefficients are f64, as
//! Python's are; what multiplies a buffer is combined in f64 and rounded to f32 once, and then each
//! element is f32 in the order above. `grad_scale` is the factor that clipping found; it is applied here so
//! that the gradient is read once.
//!
//! Source: Loshchilov & Hutter 2019, arXiv:1711.05101; PyTorch's `torch.optim.AdamW`.
//! Not here: which tensors decay, schedules, the clip factor (`optim`).

/// Updates the weights `w` and the moments `m`, `v` in place from the gradient `g`. `step` counts from 1.
///
/// # Panics
///
/// If the lengths differ or `step` is 0.
pub fn update(
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    g: &[f32],
    grad_scale: f32,
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    step: u64,
) {
    assert_eq!(
        (m.len(), v.len(), g.len()),
        (w.len(), w.len(), w.len()),
        "adamw: moments and gradient are like w"
    );
    assert!(step > 0, "adamw: steps count from 1");

    let keep = (1.0 - lr * weight_decay) as f32;
    let (take1, keep2, take2) = ((1.0 - beta1) as f32, beta2 as f32, (1.0 - beta2) as f32);
    let step_size = (lr / (1.0 - beta1.powf(step as f64))) as f32;
    let root_correction = (1.0 - beta2.powf(step as f64)).sqrt() as f32;
    let eps = eps as f32;
    for i in 0..w.len() {
        let g = g[i] * grad_scale;
        m[i] += take1 * (g - m[i]);
        v[i] = keep2 * v[i] + take2 * g * g;
        w[i] = w[i] * keep - step_size * m[i] / (v[i].sqrt() / root_correction + eps);
    }
}

/// `sum_i x_i^2`, in f64.
pub fn norm_sq(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    // The first step: both corrections cancel, so the weight moves by lr * g / (|g| + eps) after decay.
    #[test]
    fn the_first_step_worked_by_hand() {
        let (mut w, mut m, mut v) = ([1.0, -2.0, 3.0], [0.0; 3], [0.0; 3]);
        update(&mut w, &mut m, &mut v, &[4.0, -8.0, 0.0], 0.5, 0.125, 0.75, 0.9375, 2.0, 0.5, 1);
        // 1 - lr * decay = 0.9375; moves 0.125 * 2 / (2 + 2) and 0.125 * 4 / (4 + 2).
        assert_eq!(w[0], 0.9375 - 0.0625);
        assert!((f64::from(w[1]) - (-1.875 + 0.5 / 6.0)).abs() < 2e-7, "{}", w[1]);
        assert_eq!(w[2], 2.8125);
        assert_eq!((m, v), ([0.5, -1.0, 0.0], [0.25, 1.0, 0.0]));
    }

    // The second: m = 0.75 * 0.5 + 0.25 * 1 = 0.625, v = 0.9375 * 0.25 + 0.0625 * 1 = 0.296875,
    // corrections 1 - 0.75^2 = 0.4375 and 1 - 0.9375^2 = 0.12109375.
    #[test]
    fn the_second_step_worked_by_hand() {
        let (mut w, mut m, mut v) = ([1.0], [0.5], [0.25]);
        update(&mut w, &mut m, &mut v, &[1.0], 1.0, 0.125, 0.75, 0.9375, 2.0, 0.0, 2);
        assert_eq!((m, v), ([0.625], [0.296_875]));
        let move_by = 0.125 / 0.4375 * 0.625 / ((0.296_875f64 / 0.121_093_75).sqrt() + 2.0);
        assert!((f64::from(w[0]) - (1.0 - move_by)).abs() < 1e-7, "{} expected {}", w[0], 1.0 - move_by);
    }

    // AdamW with beta 0 and a huge epsilon is descent: w -= lr / eps * g; so the direction is downhill.
    #[test]
    fn it_goes_downhill() {
        let (mut w, mut m, mut v) = ([5.0_f32, -3.0], [0.0; 2], [0.0; 2]);
        let loss = |w: &[f32]| norm_sq(w);
        let start = loss(&w);
        for step in 1..=50 {
            let g = w.map(|w| 2.0 * w);
            update(&mut w, &mut m, &mut v, &g, 1.0, 0.1, 0.9, 0.999, 1e-8, 0.0, step);
        }
        assert!(loss(&w) < 0.1 * start, "{start} became {}", loss(&w));
    }

    #[test]
    fn the_squared_norm_is_summed_in_f64() {
        assert_eq!(norm_sq(&[3.0, 4.0]), 25.0);
        assert_eq!(norm_sq(&[]), 0.0);
        // In f32 the ones would be lost beside 2^24 squared.
        assert_eq!(norm_sq(&[16_777_216.0, 1.0, 1.0]), 2f64.powi(48) + 2.0);
    }

    #[test]
    #[should_panic(expected = "adamw: steps count from 1")]
    fn step_zero_has_no_correction() {
        update(&mut [0.0], &mut [0.0], &mut [0.0], &[0.0], 1.0, 0.1, 0.9, 0.999, 1e-8, 0.0, 0);
    }
}
