//! RMS normalisation of queries and keys, inside the rows that hold queries, keys and values.
//!
//! ```text
//! y = x * rstd * w       rstd = 1 / sqrt(mean(x^2) + eps)       over one group of channels
//! ```
//!
//! | `per_head` | groups of a row | weights |
//! |---|---|---|
//! | true (Qwen 3) | each of `h` query heads, then of `g` key heads | `[d]` for queries, `[d]` for keys |
//! | false (OLMo 2) | all queries, then all keys | `[h*d]`, `[g*d]` |
//!
//! `qkv` is `[n, (h+2g)*d]`, values are left alone. `rstd` is `[n, groups]`, saved by forward. Sums in f64,
//! `rstd` rounded to f32, then each element in f32 from the left. Backward is f64 up to one rounding.
//!
//! Source: Henry et al. 2020, arXiv:2010.04245; Transformers' Qwen3 and OLMo 2.

use crate::config::Heads;

/// Normalised groups of one row: each head, or all queries and all keys.
pub fn groups(per_head: bool, shape: Heads) -> usize {
    if per_head { shape.heads + shape.kv_heads } else { 2 }
}

/// Normalises queries and keys in place and overwrites `rstd`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn forward(
    qkv: &mut [f32],
    rstd: &mut [f32],
    per_head: bool,
    w_q: &[f32],
    w_k: &[f32],
    shape: Heads,
    eps: f32,
) {
    check("qk_norm", qkv, rstd, w_q, w_k, per_head, shape);

    let count = groups(per_head, shape);
    for (row, rstd) in qkv.chunks_exact_mut(shape.qkv_width()).zip(rstd.chunks_exact_mut(count)) {
        for (index, rstd) in rstd.iter_mut().enumerate() {
            let (channels, is_key) = group(per_head, shape, index);
            let (x, w) = (&mut row[channels], if is_key { w_k } else { w_q });
            let sum_sq: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
            *rstd = (1.0 / (sum_sq / x.len() as f64 + f64::from(eps)).sqrt()) as f32;
            for (x, w) in x.iter_mut().zip(w) {
                *x = *x * *rstd * w;
            }
        }
    }
}

/// Turns the gradient of the normalised queries and keys in `d_qkv` into that of the raw ones, in
/// place, and adds into `d_w_q` and `d_w_k`.
///
/// `qk_raw` is `[n, (h+g)*d]`: queries and keys from before the normalisation.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn backward(
    d_qkv: &mut [f32],
    d_w_q: &mut [f32],
    d_w_k: &mut [f32],
    qk_raw: &[f32],
    rstd: &[f32],
    w_q: &[f32],
    w_k: &[f32],
    per_head: bool,
    shape: Heads,
) {
    check("qk_norm backward", d_qkv, rstd, w_q, w_k, per_head, shape);
    let (width, qk_width) = (shape.qkv_width(), shape.q_width() + shape.kv_width());
    let n = d_qkv.len() / width;
    assert_eq!(qk_raw.len(), n * qk_width, "qk_norm backward: raw queries and keys are [{n}, {qk_width}]");
    assert_eq!(d_w_q.len(), w_q.len(), "qk_norm backward: d_w_q is like w_q");
    assert_eq!(d_w_k.len(), w_k.len(), "qk_norm backward: d_w_k is like w_k");

    let count = groups(per_head, shape);
    let (mut d_w_q_sum, mut d_w_k_sum) = (vec![0.0_f64; w_q.len()], vec![0.0_f64; w_k.len()]);
    for i in 0..n {
        for index in 0..count {
            let (channels, is_key) = group(per_head, shape, index);
            let x = &qk_raw[i * qk_width..][channels.clone()];
            let d = &mut d_qkv[i * width..][channels];
            let (w, d_w_sum) = if is_key { (w_k, &mut d_w_k_sum) } else { (w_q, &mut d_w_q_sum) };
            let rstd = f64::from(rstd[i * count + index]);
            // forward was: y = unit * w, with unit = x * rstd(x)
            // so now:
            let unit = |j: usize| f64::from(x[j]) * rstd;
            let d_unit = |d: f32, j: usize| f64::from(d) * f64::from(w[j]);
            for (j, d_w) in d_w_sum.iter_mut().enumerate() {
                *d_w += f64::from(d[j]) * unit(j);
            }
            // How much this group's norm moves every channel.
            let pull = (0..d.len()).map(|j| d_unit(d[j], j) * unit(j)).sum::<f64>() / d.len() as f64;
            for (j, d) in d.iter_mut().enumerate() {
                *d = ((d_unit(*d, j) - unit(j) * pull) * rstd) as f32;
            }
        }
    }
    for (d_w, sum) in [(d_w_q, d_w_q_sum), (d_w_k, d_w_k_sum)] {
        for (d_w, sum) in d_w.iter_mut().zip(sum) {
            *d_w += sum as f32;
        }
    }
}

/// A group's channels within a row, and whether they are keys.
fn group(per_head: bool, shape: Heads, index: usize) -> (std::ops::Range<usize>, bool) {
    match (per_head, index) {
        (true, head) => (head * shape.head_dim..(head + 1) * shape.head_dim, head >= shape.heads),
        (false, 0) => (0..shape.q_width(), false),
        (false, _) => (shape.q_width()..shape.q_width() + shape.kv_width(), true),
    }
}

fn check(op: &str, qkv: &[f32], rstd: &[f32], w_q: &[f32], w_k: &[f32], per_head: bool, shape: Heads) {
    let (width, count) = (shape.qkv_width(), groups(per_head, shape));
    let n = qkv.len() / width;
    assert_eq!(qkv.len(), n * width, "{op}: qkv is [n, {width}]");
    assert_eq!(rstd.len(), n * count, "{op}: rstd is [{n}, {count}]");
    let (q_len, k_len) =
        if per_head { (shape.head_dim, shape.head_dim) } else { (shape.q_width(), shape.kv_width()) };
    assert_eq!(w_q.len(), q_len, "{op}: w_q is [{q_len}]");
    assert_eq!(w_k.len(), k_len, "{op}: w_k is [{k_len}]");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    // Two query heads, a key and a value of 2 channels. Mean squares: [1, 7] has 25, [3, 9] has 45,
    // both queries together 35, the key [0.6, 0.8] has 0.5.
    #[test]
    fn worked_by_hand() {
        let shape = Heads { heads: 2, kv_heads: 1, head_dim: 2 };
        let row = [1.0, 7.0, 3.0, 9.0, 0.6, 0.8, 5.0, 6.0];
        let run = |per_head, w_q: &[f32], w_k: &[f32]| {
            let (mut qkv, mut rstd) = (row, unwritten(groups(per_head, shape)));
            forward(&mut qkv, &mut rstd, per_head, w_q, w_k, shape, 0.0);
            assert_eq!(qkv[6..], row[6..], "values are left alone");
            (qkv, rstd)
        };
        let near = |got: &[f32], expect: &[f64]| {
            assert_eq!(got.len(), expect.len());
            for (&got, expect) in got.iter().zip(expect) {
                assert!((f64::from(got) / expect - 1.0).abs() < 3e-7, "{got} expected {expect}");
            }
        };
        let (root_35, root_45) = (35f64.sqrt(), 45f64.sqrt());

        let (qkv, rstd) = run(true, &[2.0, 5.0], &[1.0, 10.0]);
        near(&rstd, &[0.2, 1.0 / root_45, 2f64.sqrt()]);
        let (k0, k1) = (0.6 * 2f64.sqrt(), 8.0 * 2f64.sqrt());
        near(&qkv[..6], &[0.4, 7.0, 6.0 / root_45, 45.0 / root_45, k0, k1]);

        let (qkv, rstd) = run(false, &[2.0, 5.0, 1.0, -1.0], &[1.0, 10.0]);
        near(&rstd, &[1.0 / root_35, 2f64.sqrt()]);
        near(&qkv[..6], &[2.0 / root_35, 35.0 / root_35, 3.0 / root_35, -9.0 / root_35, k0, k1]);
    }

    #[test]
    fn gradients_match_central_differences() {
        let shape = Heads { heads: 4, kv_heads: 2, head_dim: 3 };
        let (n, width, eps) = (2, shape.qkv_width(), 1e-5);
        for per_head in [true, false] {
            let (q_len, k_len) = if per_head { (3, 3) } else { (12, 6) };
            let (qkv, w_q, w_k) = (values(1, n * width), values(2, q_len), values(3, k_len));
            let d_out = values(4, n * width);
            let run = |qkv: &[f32], w_q: &[f32], w_k: &[f32]| {
                let (mut out, mut rstd) = (qkv.to_vec(), unwritten(n * groups(per_head, shape)));
                forward(&mut out, &mut rstd, per_head, w_q, w_k, shape, eps);
                (weighted(&out, &d_out), rstd)
            };
            let (_, rstd) = run(&qkv, &w_q, &w_k);
            let qk_raw: Vec<f32> =
                qkv.chunks_exact(width).flat_map(|row| &row[..width - shape.kv_width()]).copied().collect();
            let (mut d_qkv, mut d_w_q, mut d_w_k) = (d_out.clone(), before(q_len), before(k_len));
            backward(&mut d_qkv, &mut d_w_q, &mut d_w_k, &qk_raw, &rstd, &w_q, &w_k, per_head, shape);

            // Measured worst 9.7e-6 (d_qkv) and 1.5e-7 (weights, where forward is linear).
            check_gradient("d_qkv", &d_qkv, &qkv, 0.01, 5e-5, |x| run(x, &w_q, &w_k).0);
            check_gradient("d_w_q", &added(&d_w_q), &w_q, 0.25, 7.5e-7, |w| run(&qkv, w, &w_k).0);
            check_gradient("d_w_k", &added(&d_w_k), &w_k, 0.25, 7.5e-7, |w| run(&qkv, &w_q, w).0);
        }
    }
}
