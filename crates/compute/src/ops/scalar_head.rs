//! One number for each of some rows: a reward or a value.
//!
//! ```text
//! out[m] = sum_c x[row[m]][c] * w[c]
//! ```
//!
//! `x_nc` is `[n, c]`, `row_m` picks rows of it and may name one twice, `w_c` is `[c]`; there is no bias.
//! Sums in f64, rounded once. Not here: what the number means (`train`).

/// Overwrites `out_m`.
///
/// # Panics
///
/// If the lengths do not fit together or a row is not there.
pub fn forward(out_m: &mut [f32], x_nc: &[f32], row_m: &[usize], w_c: &[f32]) {
    check("scalar_head", out_m, x_nc, row_m, w_c);

    let c = w_c.len();
    for (out, &row) in out_m.iter_mut().zip(row_m) {
        let x_c = &x_nc[row * c..][..c];
        *out = x_c.iter().zip(w_c).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() as f32;
    }
}

/// Adds into `d_x_nc` and `d_w_c`.
///
/// # Panics
///
/// If the lengths do not fit together or a row is not there.
pub fn backward(
    d_x_nc: &mut [f32],
    d_w_c: &mut [f32],
    d_out_m: &[f32],
    x_nc: &[f32],
    row_m: &[usize],
    w_c: &[f32],
) {
    check("scalar_head backward", d_out_m, x_nc, row_m, w_c);
    assert_eq!(d_x_nc.len(), x_nc.len(), "scalar_head backward: d_x is like x");
    assert_eq!(d_w_c.len(), w_c.len(), "scalar_head backward: d_w is like w");

    // forward was: out = sum_c x * w
    // so now:
    let c = w_c.len();
    for (&d_out, &row) in d_out_m.iter().zip(row_m) {
        for (d_x, w) in d_x_nc[row * c..][..c].iter_mut().zip(w_c) {
            *d_x += d_out * w;
        }
    }
    for (i, d_w) in d_w_c.iter_mut().enumerate() {
        let x = |row: usize| f64::from(x_nc[row * c + i]);
        *d_w += d_out_m.iter().zip(row_m).map(|(&d_out, &row)| f64::from(d_out) * x(row)).sum::<f64>() as f32;
    }
}

fn check(op: &str, out_m: &[f32], x_nc: &[f32], row_m: &[usize], w_c: &[f32]) {
    let c = w_c.len();
    assert!(c > 0, "{op}: no channels");
    assert_eq!(x_nc.len() % c, 0, "{op}: x is [n, {c}]");
    assert_eq!(out_m.len(), row_m.len(), "{op}: one number a row");
    let n = x_nc.len() / c;
    assert!(row_m.iter().all(|&row| row < n), "{op}: a row outside {n}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    #[test]
    fn worked_by_hand() {
        let (x_nc, w_c, row_m) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [10.0, -1.0], [2, 0, 2]);
        let mut out_m = unwritten(3);
        forward(&mut out_m, &x_nc, &row_m, &w_c);
        assert_eq!(out_m, [44.0, 8.0, 44.0]);
        let (mut d_x_nc, mut d_w_c) = (before(6), before(2));
        backward(&mut d_x_nc, &mut d_w_c, &[1.0, 2.0, 0.5], &x_nc, &row_m, &w_c);
        assert_eq!(added(&d_x_nc), [20.0, -2.0, 0.0, 0.0, 15.0, -1.5]);
        assert_eq!(added(&d_w_c), [9.5, 13.0]);
    }

    #[test]
    fn gradients_match_central_differences() {
        let (x_nc, w_c, row_m, d_out_m) = (values(1, 4 * 7), values(2, 7), [3, 0, 3], values(3, 3));
        let loss = |x_nc: &[f32], w_c: &[f32]| {
            let mut out_m = unwritten(3);
            forward(&mut out_m, x_nc, &row_m, w_c);
            weighted(&out_m, &d_out_m)
        };
        let (mut d_x_nc, mut d_w_c) = (before(4 * 7), before(7));
        backward(&mut d_x_nc, &mut d_w_c, &d_out_m, &x_nc, &row_m, &w_c);
        // Linear in each, so a large step loses nothing. Measured worst 1.7e-7.
        check_gradient("d_x", &added(&d_x_nc), &x_nc, 0.25, 9e-7, |x| loss(x, &w_c));
        check_gradient("d_w", &added(&d_w_c), &w_c, 0.25, 9e-7, |w| loss(&x_nc, w));
    }

    #[test]
    #[should_panic(expected = "scalar_head: a row outside 2")]
    fn a_row_that_is_not_there_panics() {
        forward(&mut [0.0], &[0.0; 4], &[2], &[0.0; 2]);
    }
}
