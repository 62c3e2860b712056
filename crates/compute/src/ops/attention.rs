//! Causal attention over ragged rows in prefix trees, with grouped heads, window and soft cap.
//!
//! ```text
//! z[t][s]   = scale * q[t]·k[s]
//! score     = z, or cap * tanh(z / cap)
//! p[t][s]   = e^(score[t][s] - max[t]) / sum[t]      over the keys s that t sees
//! out[t]    = sum_s p[t][s] v[s]
//! ```
//!
//! The keys of a token are its ancestors' rows, then its own segment's rows up to itself: at positions
//! `0..=position`. With a window of `w` it sees positions `position - w + 1..=position` of these. Query head
//! `i` reads key/value head `i / (h/g)`.
//!
//! `qkv` is `[n, (h+2g)*d]`, queries, then keys, then values; `out_nq` is `[n, h*d]`; `max_nh`, `sum_nh` are
//! `[n, h]`, the softmax's largest score and denominator, saved by forward for backward. Everything is f64
//! inside and rounded once where it is stored; each row is computed alone, so its bits do not depend on
//! its batch.
//!
//! Source: Vaswani et al. 2017, arXiv:1706.03762; backward without stored weights: Dao et al. 2022,
//! arXiv:2205.14135, appendix B.4. Not here: rotation (`rope`), a key/value cache.

use std::ops::Range;

use crate::batch::Batch;
use crate::config::{AttentionParams, Heads};

/// Overwrites `out_nq`, `max_nh` and `sum_nh`.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn forward(
    out_nq: &mut [f32],
    max_nh: &mut [f32],
    sum_nh: &mut [f32],
    qkv: &[f32],
    batch: &Batch,
    shape: Heads,
    p: AttentionParams,
) {
    check("attention", out_nq, max_nh, sum_nh, qkv, batch, shape);

    let d = shape.head_dim;
    for (row, keys) in keys_of_rows(batch, p.window) {
        for head in 0..shape.heads {
            let at = row * shape.heads + head;
            let q_d = &qkv[query(shape, row, head)];
            let score_s: Vec<f64> =
                keys.iter().map(|&s| score(dot(q_d, &qkv[key(shape, s, head)]), p)).collect();
            let max = score_s.iter().fold(f32::NEG_INFINITY, |max, &score| max.max(score as f32));
            let weight_s: Vec<f64> = score_s.iter().map(|score| (score - f64::from(max)).exp()).collect();
            let sum: f64 = weight_s.iter().sum();
            max_nh[at] = max;
            sum_nh[at] = sum as f32;
            for (i, out) in out_nq[at * d..][..d].iter_mut().enumerate() {
                let value = |s: usize| f64::from(qkv[value(shape, s, head).start + i]);
                let weighted: f64 = keys.iter().zip(&weight_s).map(|(&s, weight)| weight * value(s)).sum();
                *out = (weighted / sum) as f32;
            }
        }
    }
}

/// Adds into `d_qkv`: a prompt's keys and values collect from all its children.
///
/// # Panics
///
/// If the lengths do not fit together.
pub fn backward(
    d_qkv: &mut [f32],
    d_out_nq: &[f32],
    out_nq: &[f32],
    max_nh: &[f32],
    sum_nh: &[f32],
    qkv: &[f32],
    batch: &Batch,
    shape: Heads,
    p: AttentionParams,
) {
    check("attention backward", out_nq, max_nh, sum_nh, qkv, batch, shape);
    assert_eq!(d_qkv.len(), qkv.len(), "attention backward: d_qkv is like qkv");
    assert_eq!(d_out_nq.len(), out_nq.len(), "attention backward: d_out is like out");

    let d = shape.head_dim;
    let mut sums = vec![0.0_f64; qkv.len()];
    for (row, keys) in keys_of_rows(batch, p.window) {
        for head in 0..shape.heads {
            let at = row * shape.heads + head;
            let (q_at, out_at) = (query(shape, row, head), at * d..(at + 1) * d);
            let d_out_d = &d_out_nq[out_at.clone()];
            // forward was: out = sum_s p_s v_s, and p = softmax(score)
            // so now: d_score_s = p_s (d_p_s - sum_r p_r d_p_r), and the sum is d_out·out
            let pull = dot(d_out_d, &out_nq[out_at]);
            for &s in &keys {
                let (k_at, v_at) = (key(shape, s, head), value(shape, s, head));
                let score = score(dot(&qkv[q_at.clone()], &qkv[k_at.clone()]), p);
                let weight = (score - f64::from(max_nh[at])).exp() / f64::from(sum_nh[at]);
                let d_score = weight * (dot(d_out_d, &qkv[v_at.clone()]) - pull);
                // forward was: score = cap tanh(z / cap), z = scale * q·k
                // so now:
                let slope = p.softcap.map_or(1.0, |cap| 1.0 - (score / f64::from(cap)).powi(2));
                let d_dot = d_score * slope * f64::from(p.scale);
                for i in 0..d {
                    let (q_i, k_i, v_i) = (q_at.start + i, k_at.start + i, v_at.start + i);
                    sums[q_i] += d_dot * f64::from(qkv[k_i]);
                    sums[k_i] += d_dot * f64::from(qkv[q_i]);
                    sums[v_i] += weight * f64::from(d_out_d[i]);
                }
            }
        }
    }
    for (d_qkv, sum) in d_qkv.iter_mut().zip(sums) {
        *d_qkv += sum as f32;
    }
}

/// For each row of the batch, the rows whose keys it sees, by ascending position.
fn keys_of_rows(batch: &Batch, window: Option<usize>) -> Vec<(usize, Vec<usize>)> {
    let mut keys_of_rows = Vec::with_capacity(batch.tokens());
    for (index, segment) in batch.segments.iter().enumerate() {
        // The row at each position: a tree's root starts at position 0.
        let path: Vec<usize> = batch.path(index).iter().flat_map(|&s| batch.segments[s].rows()).collect();
        for position in segment.position..segment.end_position() {
            let first = window.map_or(0, |window| (position + 1).saturating_sub(window));
            keys_of_rows.push((path[position], path[first..=position].to_vec()));
        }
    }
    keys_of_rows
}

/// The score of a query and a key from their product.
fn score(dot: f64, p: AttentionParams) -> f64 {
    let z = dot * f64::from(p.scale);
    match p.softcap.map(f64::from) {
        Some(cap) => cap * (z / cap).tanh(),
        None => z,
    }
}

fn dot(a_d: &[f32], b_d: &[f32]) -> f64 {
    a_d.iter().zip(b_d).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// Where a row's query of query head `head` lies in `qkv`.
fn query(shape: Heads, row: usize, head: usize) -> Range<usize> {
    let start = row * shape.qkv_width() + head * shape.head_dim;
    start..start + shape.head_dim
}

/// Where the key that query head `head` reads in a row lies.
fn key(shape: Heads, row: usize, head: usize) -> Range<usize> {
    let start = row * shape.qkv_width() + shape.q_width() + shape.kv_head(head) * shape.head_dim;
    start..start + shape.head_dim
}

/// Where the value that query head `head` reads in a row lies.
fn value(shape: Heads, row: usize, head: usize) -> Range<usize> {
    let key = key(shape, row, head);
    key.start + shape.kv_width()..key.end + shape.kv_width()
}

fn check(op: &str, out_nq: &[f32], max_nh: &[f32], sum_nh: &[f32], qkv: &[f32], batch: &Batch, shape: Heads) {
    let (n, h, width) = (batch.tokens(), shape.heads, shape.qkv_width());
    assert_eq!(h % shape.kv_heads, 0, "{op}: {h} heads share {} key/value heads", shape.kv_heads);
    assert_eq!(qkv.len(), n * width, "{op}: qkv is [{n}, {width}]");
    assert_eq!(out_nq.len(), n * shape.q_width(), "{op}: out is [{n}, {}]", shape.q_width());
    assert_eq!(max_nh.len(), n * h, "{op}: max is [{n}, {h}]");
    assert_eq!(sum_nh.len(), n * h, "{op}: sum is [{n}, {h}]");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::check::*;

    const PLAIN: AttentionParams = AttentionParams { scale: 1.0, softcap: None, window: None };

    struct Out {
        out_nq: Vec<f32>,
        max_nh: Vec<f32>,
        sum_nh: Vec<f32>,
    }

    fn run(qkv: &[f32], batch: &Batch, shape: Heads, p: AttentionParams) -> Out {
        let n = batch.tokens();
        let mut out = Out {
            out_nq: unwritten(n * shape.q_width()),
            max_nh: unwritten(n * shape.heads),
            sum_nh: unwritten(n * shape.heads),
        };
        forward(&mut out.out_nq, &mut out.max_nh, &mut out.sum_nh, qkv, batch, shape, p);
        out
    }

    fn run_backward(
        qkv: &[f32],
        d_out_nq: &[f32],
        batch: &Batch,
        shape: Heads,
        p: AttentionParams,
    ) -> Vec<f32> {
        let out = run(qkv, batch, shape, p);
        let mut d_qkv = before(qkv.len());
        backward(&mut d_qkv, d_out_nq, &out.out_nq, &out.max_nh, &out.sum_nh, qkv, batch, shape, p);
        added(&d_qkv)
    }

    // A prompt of three tokens, a branch of two that itself branches into two and one, and a branch of
    // one; beside them a row on its own, and an empty segment.
    fn tree() -> Batch {
        let mut batch = Batch::new();
        let prompt = batch.push(&[0; 3], None);
        let branch = batch.push(&[0; 2], Some(prompt));
        batch.push(&[0; 2], Some(branch));
        batch.push(&[], Some(branch));
        batch.push(&[0; 1], Some(branch));
        batch.push(&[0; 4], None);
        batch.push(&[0; 1], Some(prompt));
        batch
    }

    // One channel, two heads that share a key: e^score is 1, 2 or 4 by choice of ln 2 in the keys.
    #[test]
    fn worked_by_hand() {
        let shape = Heads { heads: 2, kv_heads: 1, head_dim: 1 };
        let ln_2 = std::f32::consts::LN_2;
        // q of head 0, q of head 1, k, v. Head 0 weighs by e^k, head 1 by e^(2k).
        let qkv = [1.0, 2.0, 0.0, 6.0, 1.0, 2.0, ln_2, 12.0, 1.0, 2.0, ln_2, 60.0, 1.0, 2.0, 0.0, -6.0];
        let mut batch = Batch::new();
        let prompt = batch.push(&[0, 0], None);
        batch.push(&[0], Some(prompt));
        batch.push(&[0], Some(prompt));
        #[track_caller]
        fn near(got: &[f32], expect: &[f32]) {
            assert_eq!(got.len(), expect.len());
            for (got, expect) in got.iter().zip(expect) {
                assert!((got - expect).abs() <= 2e-7 * expect.abs(), "{got} expected {expect}");
            }
        }

        let out = run(&qkv, &batch, shape, PLAIN);
        // Row 3 sees rows 0 and 1 and itself, not row 2, which is another branch.
        near(&out.out_nq, &[6.0, 6.0, 10.0, 10.8, 30.0, 294.0 / 9.0, 6.0, 8.0]);
        near(&out.max_nh, &[0.0, 0.0, ln_2, 2.0 * ln_2, ln_2, 2.0 * ln_2, ln_2, 2.0 * ln_2]);
        near(&out.sum_nh, &[1.0, 1.0, 1.5, 1.25, 2.5, 2.25, 2.0, 1.5]);

        // A window of two positions: rows 2 and 3 see row 1, not row 0.
        let out = run(&qkv, &batch, shape, AttentionParams { window: Some(2), ..PLAIN });
        near(&out.out_nq, &[6.0, 6.0, 10.0, 10.8, 36.0, 36.0, 6.0, 8.4]);
        let out = run(&qkv, &batch, shape, AttentionParams { window: Some(1), ..PLAIN });
        near(&out.out_nq, &[6.0, 6.0, 12.0, 12.0, 60.0, 60.0, -6.0, -6.0]);

        // The scale: twice the score for head 0 is what head 1 was.
        let out = run(&qkv, &batch, shape, AttentionParams { scale: 2.0, ..PLAIN });
        near(&[out.out_nq[2], out.out_nq[6]], &[10.8, 8.0]);
        // The cap: 0.5 tanh(ln 2 / 0.5) is 0.5 (16 - 1) / (16 + 1).
        let out = run(&qkv, &batch, shape, AttentionParams { softcap: Some(0.5), ..PLAIN });
        near(&[out.max_nh[0], out.max_nh[2]], &[0.0, 7.5 / 17.0]);

        // Row 1 of head 0 has weights 1/3 and 2/3 on values 6 and 12, out 10: with d_out = 9 there, the
        // scores get 9 * (1/3 (6 - 10), 2/3 (12 - 10)) = (-12, 12).
        let mut d_out_nq = [0.0; 8];
        d_out_nq[2] = 9.0;
        let d_qkv = run_backward(&qkv, &d_out_nq, &batch, shape, PLAIN);
        let expect = [0.0, 0.0, -12.0, 3.0, 12.0 * ln_2, 0.0, 12.0, 6.0];
        for (got, expect) in d_qkv.iter().zip(expect.iter().chain(&[0.0; 8])) {
            assert!((got - expect).abs() < 5e-6, "{d_qkv:?} expected {expect:?}");
        }
    }

    #[test]
    fn gradients_match_central_differences() {
        let batch = tree();
        let cases = [
            (4, 2, PLAIN),
            (3, 1, AttentionParams { scale: 0.7, softcap: Some(0.8), window: None }),
            (2, 2, AttentionParams { scale: 1.3, softcap: None, window: Some(3) }),
            (2, 1, AttentionParams { scale: 1.5, softcap: Some(2.0), window: Some(2) }),
        ];
        for (heads, kv_heads, p) in cases {
            let shape = Heads { heads, kv_heads, head_dim: 3 };
            let qkv = values(1, batch.tokens() * shape.qkv_width());
            let d_out_nq = values(2, batch.tokens() * shape.q_width());
            let d_qkv = run_backward(&qkv, &d_out_nq, &batch, shape, p);
            // Measured worst 2.1e-6.
            check_gradient(&format!("{p:?} d_qkv"), &d_qkv, &qkv, 0.02, 1e-5, |qkv| {
                weighted(&run(qkv, &batch, shape, p).out_nq, &d_out_nq)
            });
        }
    }

    // The law: computing a prompt once for all its children is computing each row alone, to the bit.
    #[test]
    fn a_prefix_tree_is_its_separate_rows() {
        let shape = Heads { heads: 4, kv_heads: 2, head_dim: 3 };
        let p = AttentionParams { scale: 0.9, softcap: Some(3.0), window: Some(4) };
        let batch = tree();
        let qkv = values(1, batch.tokens() * shape.qkv_width());
        let d_out_nq = values(2, batch.tokens() * shape.q_width());
        let out = run(&qkv, &batch, shape, p);
        let d_qkv = run_backward(&qkv, &d_out_nq, &batch, shape, p);

        let mut d_sum = vec![0.0_f32; qkv.len()];
        for (index, segment) in batch.segments.iter().enumerate() {
            let rows: Vec<usize> = batch.path(index).iter().flat_map(|&s| batch.segments[s].rows()).collect();
            let cut = |all: &[f32], width: usize| -> Vec<f32> {
                rows.iter().flat_map(|row| &all[row * width..(row + 1) * width]).copied().collect()
            };
            let alone = Batch::from_rows([&vec![0; rows.len()][..]]);
            let row_qkv = cut(&qkv, shape.qkv_width());
            let row_out = run(&row_qkv, &alone, shape, p);
            assert_eq!(row_out.out_nq, cut(&out.out_nq, shape.q_width()), "segment {index}");
            assert_eq!(row_out.max_nh, cut(&out.max_nh, shape.heads), "segment {index}");
            assert_eq!(row_out.sum_nh, cut(&out.sum_nh, shape.heads), "segment {index}");

            // Each row's output is wanted once, so only the segment's own rows bring a gradient.
            let mut row_d_out = cut(&d_out_nq, shape.q_width());
            row_d_out[..segment.position * shape.q_width()].fill(0.0);
            let row_d_qkv = run_backward(&row_qkv, &row_d_out, &alone, shape, p);
            for (&row, d) in rows.iter().zip(row_d_qkv.chunks_exact(shape.qkv_width())) {
                for (sum, d) in d_sum[row * shape.qkv_width()..].iter_mut().zip(d) {
                    *sum += d;
                }
            }
        }
        let largest = d_qkv.iter().fold(0.0_f32, |m, d| m.max(d.abs()));
        let error = d_qkv.iter().zip(&d_sum).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        // Measured 2.6e-8.
        println!("tree against rows: {error:.1e}");
        assert!(error < 1.3e-7, "error {error:.1e}");
    }

    // Scores of a few hundred overflow e^x in f32 and f64 unless the largest is taken off first.
    #[test]
    fn large_scores_stay_finite() {
        let shape = Heads { heads: 1, kv_heads: 1, head_dim: 1 };
        let batch = Batch::from_rows([&[0, 0][..]]);
        let out = run(&[30.0, 30.0, 1.0, 30.0, 29.0, 2.0], &batch, shape, PLAIN);
        assert_eq!((out.out_nq[1], out.max_nh[1], out.sum_nh[1]), (1.0, 900.0, 1.0));
    }
}
