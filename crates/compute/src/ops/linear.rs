//! Linear map: `y = x w^T + b`.
//!
//! Letters: `m` rows, `k` inputs, `n` outputs. `x_mk`, `y_mn` are row-major; `w` is `[n, k]` in panels
//! ([`crate::params`]); `bias_n` is `[n]`.
//!
//! **Numerics contract.** Every result is one chain of f32 fused multiply-adds in a fixed order, so that
//! a row's bits depend on the model alone: not on the rows beside it, the thread count or the blocking.
//!
//! ```text
//! y[m][n]    acc = bias[n] or 0, then for k ascending   acc = fma(x[m][k],   w[n][k], acc)
//! d_x[m][k]  acc = d_x[m][k],    then for n ascending   acc = fma(d_y[m][n], w[n][k], acc)
//! d_w[n][k]  acc = d_w[n][k],    then for m ascending   acc = fma(d_y[m][n], x[m][k], acc)
//! d_b[n]     acc = d_b[n],       then for m ascending   acc = acc + d_y[m][n]
//! ```
//!
//! The fast versions in `cpu/linear.rs` keep this contract to the bit. Not here: LoRA, bf16.

use crate::params::{LANES, panel_row};

/// Overwrites `y_mn`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn forward(y_mn: &mut [f32], x_mk: &[f32], w: &[f32], bias_n: Option<&[f32]>, n: usize, k: usize) {
    let m = rows("linear", y_mn, x_mk, w, n, k);
    assert!(bias_n.is_none_or(|b| b.len() == n), "linear: bias is [{n}], got {:?}", bias_n.map(<[f32]>::len));

    for i in 0..m {
        for j in 0..n {
            let mut acc = bias_n.map_or(0.0, |b_n| b_n[j]);
            for (x, at) in x_mk[i * k..][..k].iter().zip(panel_row(k, j)) {
                acc = x.mul_add(w[at], acc);
            }
            y_mn[i * n + j] = acc;
        }
    }
}

/// Adds into `d_x_mk`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn backward_input(d_x_mk: &mut [f32], d_y_mn: &[f32], w: &[f32], n: usize, k: usize) {
    let m = rows("linear backward_input", d_y_mn, d_x_mk, w, n, k);

    for i in 0..m {
        for j in 0..n {
            // forward was: y[j] = sum_k x[k] * w[j][k]
            // so now:
            for (d_x, at) in d_x_mk[i * k..][..k].iter_mut().zip(panel_row(k, j)) {
                *d_x = d_y_mn[i * n + j].mul_add(w[at], *d_x);
            }
        }
    }
}

/// Adds into `d_w` (panels; the padding rows are left alone) and `d_bias_n`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn backward_weight(
    d_w: &mut [f32],
    d_bias_n: Option<&mut [f32]>,
    d_y_mn: &[f32],
    x_mk: &[f32],
    n: usize,
    k: usize,
) {
    let m = rows("linear backward_weight", d_y_mn, x_mk, d_w, n, k);

    for i in 0..m {
        for j in 0..n {
            // forward was: y[j] = sum_k x[k] * w[j][k]
            // so now:
            for (x, at) in x_mk[i * k..][..k].iter().zip(panel_row(k, j)) {
                d_w[at] = d_y_mn[i * n + j].mul_add(*x, d_w[at]);
            }
        }
    }
    if let Some(d_bias_n) = d_bias_n {
        assert_eq!(d_bias_n.len(), n, "linear backward_weight: d_bias is [n]");
        for d_y_n in d_y_mn.chunks_exact(n) {
            for (d_b, d_y) in d_bias_n.iter_mut().zip(d_y_n) {
                *d_b += d_y;
            }
        }
    }
}

/// `m`, after the checks that all three share.
fn rows(op: &str, y_mn: &[f32], x_mk: &[f32], w: &[f32], n: usize, k: usize) -> usize {
    assert!(n > 0 && k > 0, "{op}: {n} outputs and {k} inputs");
    assert_eq!(w.len(), n.next_multiple_of(LANES) * k, "{op}: w is [{n}, {k}] in panels");
    let m = y_mn.len() / n;
    assert_eq!(y_mn.len(), m * n, "{op}: y is [m, {n}]");
    assert_eq!(x_mk.len(), m * k, "{op}: x is [{m}, {k}]");
    m
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    #[test]
    fn worked_by_hand() {
        let x_mk = [1.0, 2.0, 3.0, 4.0];
        let w_nk = [1.0, 10.0, 100.0, 1000.0, 0.5, -1.0];
        let w = to_panels(&w_nk, 2);
        let mut y_mn = unwritten(6);
        forward(&mut y_mn, &x_mk, &w, Some(&[0.25, 0.0, -1.0]), 3, 2);
        assert_eq!(y_mn, [21.25, 2100.0, -2.5, 43.25, 4300.0, -3.5]);
        forward(&mut y_mn, &x_mk, &w, None, 3, 2);
        assert_eq!(y_mn, [21.0, 2100.0, -1.5, 43.0, 4300.0, -2.5]);

        let d_y_mn = [1.0, 0.0, 2.0, 0.0, 1.0, -1.0];
        let mut d_x_mk = [0.5; 4];
        backward_input(&mut d_x_mk, &d_y_mn, &w, 3, 2);
        assert_eq!(d_x_mk, [2.5, 8.5, 100.0, 1001.5]);

        let (mut d_w, mut d_b) = (vec![0.0; w.len()], [1.0; 3]);
        backward_weight(&mut d_w, Some(&mut d_b), &d_y_mn, &x_mk, 3, 2);
        assert_eq!(from_panels(&d_w, 3, 2), [1.0, 2.0, 3.0, 4.0, -1.0, 0.0]);
        assert_eq!(d_b, [2.0, 2.0, 2.0]);
    }

    // 2^24 + 1 is not an f32, so each order of the sum gives another answer; and (1 + 2^-12)^2 - 1
    // shows whether the product was rounded before the sum.
    #[test]
    fn the_order_and_the_fusing_are_a_contract() {
        const BIG: f32 = 16_777_216.0;
        let near_one = 1.0 + 2f32.powi(-12);
        let fused = 2f32.powi(-11) + 2f32.powi(-24);
        let y = |x: &[f32], w_k: &[f32], bias: Option<&[f32]>| {
            let mut y = [f32::NAN];
            forward(&mut y, x, &to_panels(w_k, x.len()), bias, 1, x.len());
            y[0]
        };
        assert_eq!(y(&[BIG, 1.0, -BIG], &[1.0; 3], None), 0.0, "k ascending");
        assert_eq!(y(&[-BIG, 1.0, BIG], &[1.0; 3], None), 1.0, "k ascending");
        assert_eq!(y(&[BIG, -BIG], &[1.0; 2], Some(&[1.0])), 0.0, "bias first");
        assert_eq!(y(&[near_one], &[near_one], Some(&[-1.0])), fused, "fused");

        let d_x = |d_y: &[f32], w_n: &[f32], start: f32| {
            let mut d_x = [start];
            backward_input(&mut d_x, d_y, &to_panels(w_n, 1), d_y.len(), 1);
            d_x[0]
        };
        assert_eq!(d_x(&[BIG, 1.0, -BIG], &[1.0; 3], 0.0), 0.0, "n ascending");
        assert_eq!(d_x(&[-BIG, 1.0, BIG], &[1.0; 3], 0.0), 1.0, "n ascending");
        assert_eq!(d_x(&[BIG, -BIG], &[1.0; 2], 1.0), 0.0, "what was there first");
        assert_eq!(d_x(&[near_one], &[near_one], -1.0), fused, "fused");

        let d_w = |d_y: &[f32], x_m: &[f32], start: f32| {
            let (mut d_w, mut d_b) = (to_panels(&[start], 1), [start]);
            backward_weight(&mut d_w, Some(&mut d_b), d_y, x_m, 1, 1);
            (d_w[0], d_b[0])
        };
        assert_eq!(d_w(&[BIG, 1.0, -BIG], &[1.0; 3], 0.0), (0.0, 0.0), "m ascending");
        assert_eq!(d_w(&[-BIG, 1.0, BIG], &[1.0; 3], 0.0), (1.0, 1.0), "m ascending");
        assert_eq!(d_w(&[BIG, -BIG], &[1.0; 2], 1.0), (0.0, 0.0), "what was there first");
        assert_eq!(d_w(&[near_one], &[near_one], -1.0).0, fused, "fused");
    }

    #[test]
    fn gradients_match_central_differences() {
        let (m, n, k) = (3, 37, 5); // two panels, the second mostly padding
        let (x_mk, w_nk, b_n) = (values(1, m * k), values(2, n * k), values(3, n));
        let (w, d_y_mn) = (to_panels(&w_nk, k), values(4, m * n));
        let loss = |x_mk: &[f32], w: &[f32], b_n: &[f32]| {
            let mut y_mn = unwritten(m * n);
            forward(&mut y_mn, x_mk, w, Some(b_n), n, k);
            weighted(&y_mn, &d_y_mn)
        };

        let (mut d_x_mk, mut d_w, mut d_b_n) = (before(m * k), before(w.len()), before(n));
        backward_input(&mut d_x_mk, &d_y_mn, &w, n, k);
        backward_weight(&mut d_w, Some(&mut d_b_n), &d_y_mn, &x_mk, n, k);

        let padding = w.len() - n * k;
        assert_eq!(d_w.iter().filter(|&&g| g == 0.5).count(), padding, "padding rows get no gradient");
        // A step of 1/4 loses nothing: the map is linear. Measured worst 3.6e-7.
        let d_w_nk = from_panels(&added(&d_w), n, k);
        check_gradient("d_x", &added(&d_x_mk), &x_mk, 0.25, 2e-6, |x| loss(x, &w, &b_n));
        check_gradient("d_w", &d_w_nk, &w_nk, 0.25, 2e-6, |w| loss(&x_mk, &to_panels(w, k), &b_n));
        check_gradient("d_b", &added(&d_b_n), &b_n, 0.25, 2e-6, |b| loss(&x_mk, &w, b));
    }

    #[test]
    #[should_panic(expected = "linear: x is [2, 3]")]
    fn a_wrong_length_names_the_op_and_what_it_expected() {
        forward(&mut [0.0; 2], &[0.0; 5], &[0.0; 96], None, 1, 3);
    }
}
