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
//! In bf16 the factors are rounded first and a chain's terms go in pairs, the second of each first, since that is what
//! processors do (Intel's manual on `VDPBF16PS`; AMD's agree, as `cpu/tile.rs` tests). An odd last term is paired with zero; a
//! subnormal number counts as zero.
//!
//! ```text
//! acc = fma(a[0], b[0], fma(a[1], b[1], acc)), then the same for 2 and 3, …
//! ```
//!
//! Processors that multiply tiles (`cpu/amx.rs`) go by blocks of 16 pairs, each of them two sums from zero:
//!
//! ```text
//! even = fma(a[0], b[0], 0), fma(a[2], b[2], even), … a[30];  odd = fma(a[1], b[1], 0), … a[31];  acc = acc + (even + odd)
//! ```
//!
//! The fast versions in `cpu/linear/` keep this contract to the bit. Not here: LoRA (`lm`).

use crate::cpu::{Order, bf16};
use crate::params::{LANES, panel_row};

/// `acc` and the products of the terms, in the order of the contract.
fn chain(order: Order, acc: f32, terms: impl Iterator<Item = (f32, f32)>) -> f32 {
    if order == Order::Terms {
        return terms.fold(acc, |acc, (a, b)| a.mul_add(b, acc));
    }
    let rounded = |x: f32| flush(bf16::round(x));
    let mut terms: Vec<_> = terms.map(|(a, b)| (rounded(a), rounded(b))).collect();
    terms.resize(terms.len().next_multiple_of(2), (0.0, 0.0));
    let (pairs, _) = terms.as_chunks::<2>();
    match order {
        Order::Blocks => pairs.chunks(16).fold(acc, |acc, block| {
            let sum = |i: usize| block.iter().fold(0.0, |sum, pair| flush(pair[i].0.mul_add(pair[i].1, sum)));
            flush(flush(acc) + flush(sum(0) + sum(1)))
        }),
        _ => pairs
            .iter()
            .fold(acc, |acc, &[(a0, b0), (a1, b1)]| flush(a0.mul_add(b0, flush(a1.mul_add(b1, flush(acc)))))),
    }
}

/// A subnormal number counts as zero.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// Overwrites `y_mn`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn forward(
    order: Order,
    y_mn: &mut [f32],
    x_mk: &[f32],
    w: &[f32],
    bias_n: Option<&[f32]>,
    n: usize,
    k: usize,
) {
    let m = rows("linear", y_mn, x_mk, w, n, k);
    assert!(bias_n.is_none_or(|b| b.len() == n), "linear: bias is [{n}], got {:?}", bias_n.map(<[f32]>::len));

    for i in 0..m {
        for j in 0..n {
            let start = bias_n.map_or(0.0, |b_n| b_n[j]);
            let terms = x_mk[i * k..][..k].iter().zip(panel_row(k, j)).map(|(&x, at)| (x, w[at]));
            y_mn[i * n + j] = chain(order, start, terms);
        }
    }
}

/// Adds into `d_x_mk`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn backward_input(order: Order, d_x_mk: &mut [f32], d_y_mn: &[f32], w: &[f32], n: usize, k: usize) {
    let m = rows("linear backward_input", d_y_mn, d_x_mk, w, n, k);

    for i in 0..m {
        for c in 0..k {
            // forward was: y[j] = sum_k x[k] * w[j][k]
            // so now:
            let terms = (0..n).map(|j| (d_y_mn[i * n + j], w[j / LANES * LANES * k + c * LANES + j % LANES]));
            let d_x = &mut d_x_mk[i * k + c];
            *d_x = chain(order, *d_x, terms);
        }
    }
}

/// Adds into `d_w` (panels; the padding rows are left alone) and `d_bias_n`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn backward_weight(
    order: Order,
    d_w: &mut [f32],
    d_bias_n: Option<&mut [f32]>,
    d_y_mn: &[f32],
    x_mk: &[f32],
    n: usize,
    k: usize,
) {
    let m = rows("linear backward_weight", d_y_mn, x_mk, d_w, n, k);

    for j in 0..n {
        for (c, at) in panel_row(k, j).enumerate() {
            // forward was: y[j] = sum_k x[k] * w[j][k]
            // so now:
            let terms = (0..m).map(|i| (d_y_mn[i * n + j], x_mk[i * k + c]));
            d_w[at] = chain(order, d_w[at], terms);
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
    use super::Order::{Blocks, Pairs, Terms};
    use super::*;
    use crate::ops::check::*;

    #[test]
    fn worked_by_hand() {
        let x_mk = [1.0, 2.0, 3.0, 4.0];
        let w_nk = [1.0, 10.0, 100.0, 1000.0, 0.5, -1.0];
        let w = to_panels(&w_nk, 2);
        let mut y_mn = unwritten(6);
        forward(Terms, &mut y_mn, &x_mk, &w, Some(&[0.25, 0.0, -1.0]), 3, 2);
        assert_eq!(y_mn, [21.25, 2100.0, -2.5, 43.25, 4300.0, -3.5]);
        forward(Terms, &mut y_mn, &x_mk, &w, None, 3, 2);
        assert_eq!(y_mn, [21.0, 2100.0, -1.5, 43.0, 4300.0, -2.5]);

        let d_y_mn = [1.0, 0.0, 2.0, 0.0, 1.0, -1.0];
        let mut d_x_mk = [0.5; 4];
        backward_input(Terms, &mut d_x_mk, &d_y_mn, &w, 3, 2);
        assert_eq!(d_x_mk, [2.5, 8.5, 100.0, 1001.5]);

        let (mut d_w, mut d_b) = (vec![0.0; w.len()], [1.0; 3]);
        backward_weight(Terms, &mut d_w, Some(&mut d_b), &d_y_mn, &x_mk, 3, 2);
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
            forward(Terms, &mut y, x, &to_panels(w_k, x.len()), bias, 1, x.len());
            y[0]
        };
        assert_eq!(y(&[BIG, 1.0, -BIG], &[1.0; 3], None), 0.0, "k ascending");
        assert_eq!(y(&[-BIG, 1.0, BIG], &[1.0; 3], None), 1.0, "k ascending");
        assert_eq!(y(&[BIG, -BIG], &[1.0; 2], Some(&[1.0])), 0.0, "bias first");
        assert_eq!(y(&[near_one], &[near_one], Some(&[-1.0])), fused, "fused");

        let d_x = |d_y: &[f32], w_n: &[f32], start: f32| {
            let mut d_x = [start];
            backward_input(Terms, &mut d_x, d_y, &to_panels(w_n, 1), d_y.len(), 1);
            d_x[0]
        };
        assert_eq!(d_x(&[BIG, 1.0, -BIG], &[1.0; 3], 0.0), 0.0, "n ascending");
        assert_eq!(d_x(&[-BIG, 1.0, BIG], &[1.0; 3], 0.0), 1.0, "n ascending");
        assert_eq!(d_x(&[BIG, -BIG], &[1.0; 2], 1.0), 0.0, "what was there first");
        assert_eq!(d_x(&[near_one], &[near_one], -1.0), fused, "fused");

        let d_w = |d_y: &[f32], x_m: &[f32], start: f32| {
            let (mut d_w, mut d_b) = (to_panels(&[start], 1), [start]);
            backward_weight(Terms, &mut d_w, Some(&mut d_b), d_y, x_m, 1, 1);
            (d_w[0], d_b[0])
        };
        assert_eq!(d_w(&[BIG, 1.0, -BIG], &[1.0; 3], 0.0), (0.0, 0.0), "m ascending");
        assert_eq!(d_w(&[-BIG, 1.0, BIG], &[1.0; 3], 0.0), (1.0, 1.0), "m ascending");
        assert_eq!(d_w(&[BIG, -BIG], &[1.0; 2], 1.0), (0.0, 0.0), "what was there first");
        assert_eq!(d_w(&[near_one], &[near_one], -1.0).0, fused, "fused");
    }

    // By hand: 1 is lost beside 2^24, 4 is not; terms 32 and on are another block; even and odd terms meet at the end.
    #[test]
    fn blocks_are_summed_by_themselves() {
        const BIG: f32 = 16_777_216.0;
        let y = |order: Order, x: &[f32]| {
            let mut y = [f32::NAN];
            forward(order, &mut y, x, &to_panels(&vec![1.0; x.len()], x.len()), Some(&[BIG]), 1, x.len());
            y[0] - BIG
        };
        assert_eq!(y(Blocks, &[1.0; 4]), 4.0);
        assert_eq!(y(Pairs, &[1.0; 4]), 0.0);
        let mut apart = [0.0; 64];
        [apart[0], apart[2], apart[32], apart[34]] = [1.0; 4];
        assert_eq!(y(Blocks, &apart), 4.0, "two blocks of 2");
        [apart[0], apart[2], apart[32], apart[34]] = [1.0, 0.0, 1.0, 0.0];
        assert_eq!(y(Blocks, &apart), 0.0, "two blocks of 1");
        assert_eq!(y(Blocks, &[BIG, 4.0, -BIG]), 4.0, "even terms, then odd ones");
        assert_eq!(y(Blocks, &[BIG, 0.0, 1.0, 0.0, -BIG]), 0.0, "a chain in each");
    }

    // By hand: 1 + 2^-9 rounds to 1; 1 is lost beside 2^24.
    #[test]
    fn in_bf16_factors_are_rounded_and_pairs_go_second_first() {
        const BIG: f32 = 16_777_216.0;
        let y = |bias: f32, x: &[f32], w_k: &[f32]| {
            let mut y = [f32::NAN];
            forward(Pairs, &mut y, x, &to_panels(w_k, x.len()), Some(&[bias]), 1, x.len());
            y[0]
        };
        assert_eq!(y(0.0, &[1.0 + 2f32.powi(-9)], &[1.0 + 2f32.powi(-9)]), 1.0, "rounded");
        assert_eq!(y(BIG, &[1.0, -BIG], &[1.0; 2]), 1.0, "2^24 is gone before 1 comes");
        assert_eq!(y(BIG, &[-BIG, 1.0], &[1.0; 2]), 0.0, "1 comes first and is lost");
        assert_eq!(y(BIG, &[0.0, 0.0, 1.0, -BIG], &[1.0; 4]), 1.0, "pair after pair");
        assert_eq!(y(0.0, &[1e-39], &[1.0]), 0.0, "subnormal");
    }

    #[test]
    fn gradients_match_central_differences() {
        let (m, n, k) = (3, 37, 5); // two panels, the second mostly padding
        let (x_mk, w_nk, b_n) = (values(1, m * k), values(2, n * k), values(3, n));
        let (w, d_y_mn) = (to_panels(&w_nk, k), values(4, m * n));
        let loss = |x_mk: &[f32], w: &[f32], b_n: &[f32]| {
            let mut y_mn = unwritten(m * n);
            forward(Terms, &mut y_mn, x_mk, w, Some(b_n), n, k);
            weighted(&y_mn, &d_y_mn)
        };

        let (mut d_x_mk, mut d_w, mut d_b_n) = (before(m * k), before(w.len()), before(n));
        backward_input(Terms, &mut d_x_mk, &d_y_mn, &w, n, k);
        backward_weight(Terms, &mut d_w, Some(&mut d_b_n), &d_y_mn, &x_mk, n, k);

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
        forward(Terms, &mut [0.0; 2], &[0.0; 5], &[0.0; 96], None, 1, 3);
    }
}
