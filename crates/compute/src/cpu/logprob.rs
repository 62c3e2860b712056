//! Log-probs and entropies of chosen tokens: the language-model head. Reference: `ops/logprob.rs`.
//!
//! Logits become log-probs in [`RowStats::of`] and nowhere else, at an explicit temperature; the sampler
//! uses the same function, so a rollout's log-prob is the policy's to the bit.
//!
//! Logits exist for some rows at a time, at most [`LOGITS_MAX`] floats, and are computed again for the
//! gradient: `[n, vocab]` is never held.

use super::linear::{self, Write};
use super::vector::{Lanes, exp, vectorized};
use super::{Cpu, Isa, SharedMut};
use crate::params::{Buffer, Weights};

/// Logits held at a time (but at least for [`ROWS_MIN`] rows): 16 MiB.
const LOGITS_MAX: usize = 1 << 22;

/// Rows held at a time at the least, so that each panel of the head is read for many rows.
const ROWS_MIN: usize = 96;

/// How raw head outputs become the logits of a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitParams {
    /// Gemma 2: `cap * tanh(z / cap)`.
    pub softcap: Option<f32>,
    /// The logits are divided by this. 1 is the model's own distribution.
    pub temperature: f32,
}

/// What one row says of one token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowStats {
    /// Log-probability of the token, nats.
    pub logprob: f32,
    /// Entropy of the row's distribution, nats.
    pub entropy: f32,
    /// Whether no other token has a larger logit.
    pub top: bool,
    /// Largest logit.
    pub max: f32,
    /// `sum e^(logit - max)`.
    pub sum: f64,
}

impl RowStats {
    /// From final logits (see [`finish`]): `log p = y_token - max - ln sum_v e^(y_v - max)`.
    pub fn of(isa: Isa, y_v: &[f32], token: u32) -> Self {
        let (max, sum, weighted) = sums(isa, y_v);
        let y = y_v[token as usize];
        let entropy = (sum.ln() - weighted / sum) as f32;
        let mut stats = Self { logprob: 0.0, entropy, top: y == max, max, sum };
        stats.logprob = stats.logprob_of(y);
        stats
    }

    /// Log-probability of another token of the same row, by its logit, nats.
    pub fn logprob_of(&self, y: f32) -> f32 {
        (f64::from(y) - f64::from(self.max) - self.sum.ln()) as f32
    }
}

vectorized! {
    /// `max`, `sum e^(y - max)` and `sum e^(y - max) (y - max)`.
    fn sums(y_v: &[f32]) -> (f32, f64, f64) {
        let mut maxima = [f32::NEG_INFINITY; 16];
        let (y16, tail) = y_v.as_chunks::<16>();
        for y in y16 {
            for i in 0..16 {
                maxima[i] = if y[i] > maxima[i] { y[i] } else { maxima[i] };
            }
        }
        let max = maxima.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &y| max.max(y));
        // Sixteen sums over 512 logits at a time, so that f32 does not lose the small ones.
        let (mut sum, mut weighted) = (0.0f64, 0.0f64);
        for block in y_v.chunks(512) {
            let (mut lanes, mut lanes_weighted) = (Lanes::ZERO, Lanes::ZERO);
            let (y16, tail) = block.as_chunks::<16>();
            for y in y16 {
                for i in 0..16 {
                    let e = exp(y[i] - max);
                    lanes.0[i] += e;
                    // A forbidden token has logit -inf, weight 0 and no part in the entropy.
                    let below = if e > 0.0 { y[i] - max } else { 0.0 };
                    lanes_weighted.0[i] = e.mul_add(below, lanes_weighted.0[i]);
                }
            }
            for (i, &y) in tail.iter().enumerate() {
                let e = exp(y - max);
                lanes.0[i] += e;
                let below = if e > 0.0 { y - max } else { 0.0 };
                lanes_weighted.0[i] = e.mul_add(below, lanes_weighted.0[i]);
            }
            sum += f64::from(lanes.total());
            weighted += f64::from(lanes_weighted.total());
        }
        (max, sum, weighted)
    }
}

/// Raw head outputs become final logits, in place: softly capped, divided by the temperature.
pub fn finish(isa: Isa, z_v: &mut [f32], p: LogitParams) {
    if let Some(cap) = p.softcap {
        for z in z_v.iter_mut() {
            *z = cap * (*z / cap).tanh();
        }
    }
    if p.temperature != 1.0 {
        divide(isa, z_v, p.temperature);
    }
}

vectorized! {
    /// Final logits become weights in proportion to their probabilities, in place: `e^(y - max)`.
    pub fn weights(y_v: &mut [f32], max: f32) {
        for y in y_v {
            *y = exp(*y - max);
        }
    }
}

vectorized! {
    fn divide(z_v: &mut [f32], by: f32) {
        for z in z_v {
            *z /= by;
        }
    }
}

vectorized! {
    /// Final logits become the gradient with respect to the raw head outputs.
    fn gradient_row(y_v: &mut [f32], stats: RowStats, token: u32, p: LogitParams, d_logprob: f32, d_entropy: f32) {
        // forward was: logprob = y_t - lse(y), entropy = lse(y) - sum_v p_v y_v, y = cap tanh(z / cap) / T
        // so now: d_y_v = d_logprob ([v = t] - p_v) - d_entropy p_v (log p_v + entropy)
        let log_sum = stats.sum.ln() as f32;
        let scale = (1.0 / stats.sum) as f32;
        let token = token as usize;
        let y_token = y_v[token];
        let t = p.temperature;
        let slope_at = |y: f32| match p.softcap {
            Some(cap) => (1.0 - (y * t / cap) * (y * t / cap)) / t,
            None => 1.0 / t,
        };
        match (p.softcap, d_entropy != 0.0) {
            (None, false) => {
                let factor = -d_logprob * scale / t;
                for y in y_v.iter_mut() {
                    *y = exp(*y - stats.max) * factor;
                }
            }
            _ => {
                for y in y_v.iter_mut() {
                    let log_p = *y - stats.max - log_sum;
                    let probability = exp(*y - stats.max) * scale;
                    let pull = if probability > 0.0 { d_entropy * (log_p + stats.entropy) } else { 0.0 };
                    *y = -probability * (d_logprob + pull) * slope_at(*y);
                }
            }
        }
        y_v[token] += d_logprob * slope_at(y_token);
    }
}

/// The head's weights and how its outputs are read.
#[derive(Clone, Copy)]
pub struct HeadRef<'a> {
    /// `[v, c]`.
    pub w: Weights<'a>,
    /// `v`.
    pub vocab: usize,
    /// `c`.
    pub width: usize,
    /// Soft cap and temperature.
    pub logits: LogitParams,
}

/// One number a prediction.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogProbs {
    /// `[m]`: nats.
    pub logprob_m: Vec<f32>,
    /// `[m]`: nats.
    pub entropy_m: Vec<f32>,
    /// `[m]`: whether the token was the most likely one.
    pub top_m: Vec<bool>,
}

/// Rows of the head computed at a time.
pub fn rows_at_a_time(vocab: usize) -> usize {
    (LOGITS_MAX / vocab / ROWS_MIN * ROWS_MIN).clamp(ROWS_MIN, 1024)
}

/// Final logits of some rows: `y_mv`.
pub fn logits(cpu: &Cpu, y_mv: &mut [f32], hidden_mc: &[f32], head: HeadRef<'_>) {
    linear::forward(cpu, y_mv, hidden_mc, head.w, None, head.vocab, head.width, Write::Set);
    if head.logits.softcap.is_some() || head.logits.temperature != 1.0 {
        cpu.for_each_chunk(y_mv, head.vocab, |_, y_v| finish(cpu.isa(), y_v, head.logits));
    }
}

/// Log-prob and entropy of `token_m` at the rows `hidden_mc`.
///
/// # Panics
///
/// If there is not one row a token.
pub fn forward(
    cpu: &Cpu,
    hidden_mc: &[f32],
    token_m: &[u32],
    head: HeadRef<'_>,
    scratch: &mut Buffer,
) -> LogProbs {
    let (m, c, v) = (token_m.len(), head.width, head.vocab);
    assert_eq!(hidden_mc.len(), m * c, "logprob: one row of {c} a token");
    let mut out = LogProbs { logprob_m: vec![0.0; m], entropy_m: vec![0.0; m], top_m: vec![false; m] };
    let (logprob, entropy, top) = (
        SharedMut::new(&mut out.logprob_m),
        SharedMut::new(&mut out.entropy_m),
        SharedMut::new(&mut out.top_m),
    );
    let step = rows_at_a_time(v);
    scratch.grow(step.min(m) * v);
    for m0 in (0..m).step_by(step) {
        let rows = step.min(m - m0);
        let y_mv = &mut scratch[..rows * v];
        logits(cpu, y_mv, &hidden_mc[m0 * c..(m0 + rows) * c], head);
        let y_mv = &*y_mv;
        cpu.for_each(rows, |r| {
            let at = m0 + r;
            let stats = RowStats::of(cpu.isa(), &y_mv[r * v..(r + 1) * v], token_m[at]);
            // SAFETY: one element a task.
            unsafe {
                logprob.slice(at..at + 1)[0] = stats.logprob;
                entropy.slice(at..at + 1)[0] = stats.entropy;
                top.slice(at..at + 1)[0] = stats.top;
            }
        });
    }
    out
}

/// Adds into `d_hidden_mc` and `d_w` (panels). A prediction with zero gradient costs nothing if all of its
/// block have none.
///
/// # Panics
///
/// If there is not one row and one gradient a token.
pub fn backward(
    cpu: &Cpu,
    d_hidden_mc: &mut [f32],
    d_w: &mut [f32],
    d_logprob_m: &[f32],
    d_entropy_m: &[f32],
    hidden_mc: &[f32],
    token_m: &[u32],
    head: HeadRef<'_>,
    scratch: &mut Buffer,
) {
    let (m, c, v) = (token_m.len(), head.width, head.vocab);
    assert_eq!(hidden_mc.len(), m * c, "logprob: one row of {c} a token");
    assert_eq!(d_hidden_mc.len(), m * c, "logprob: d_hidden is like hidden");
    assert_eq!((d_logprob_m.len(), d_entropy_m.len()), (m, m), "logprob: one gradient a token");
    let step = rows_at_a_time(v);
    scratch.grow(step.min(m) * v);
    for m0 in (0..m).step_by(step) {
        let rows = step.min(m - m0);
        let hidden = &hidden_mc[m0 * c..(m0 + rows) * c];
        let y_mv = &mut scratch[..rows * v];
        logits(cpu, y_mv, hidden, head);
        cpu.for_each_chunk(y_mv, v, |r, y_v| {
            let at = m0 + r;
            let stats = RowStats::of(cpu.isa(), y_v, token_m[at]);
            gradient_row(cpu.isa(), y_v, stats, token_m[at], head.logits, d_logprob_m[at], d_entropy_m[at]);
        });
        linear::backward_input(
            cpu,
            &mut d_hidden_mc[m0 * c..(m0 + rows) * c],
            y_mv,
            head.w,
            v,
            c,
            Write::Add,
        );
        linear::backward_weight(cpu, head.w.precision(), d_w, None, y_mv, hidden, v, c);
    }
}

/// `KL(p || q) = sum_v p_v (log p_v - log q_v)` in nats at each row, from two models' hidden rows.
pub fn kl_full(
    cpu: &Cpu,
    hidden_p: &[f32],
    head_p: HeadRef<'_>,
    hidden_q: &[f32],
    head_q: HeadRef<'_>,
    rows: usize,
) -> Vec<f32> {
    let v = head_p.vocab;
    assert_eq!(v, head_q.vocab, "kl: two models of one vocabulary");
    let step = rows_at_a_time(v);
    let (mut y_p, mut y_q) = (Buffer::zeros(step.min(rows) * v), Buffer::zeros(step.min(rows) * v));
    let mut out = vec![0.0; rows];
    for m0 in (0..rows).step_by(step) {
        let count = step.min(rows - m0);
        for (y, hidden, head) in [(&mut y_p, hidden_p, head_p), (&mut y_q, hidden_q, head_q)] {
            logits(cpu, &mut y[..count * v], &hidden[m0 * head.width..(m0 + count) * head.width], head);
        }
        let (y_p, y_q) = (&y_p, &y_q);
        cpu.for_each_chunk(&mut out[m0..m0 + count], 1, |r, out| {
            let (p_v, q_v) = (&y_p[r * v..(r + 1) * v], &y_q[r * v..(r + 1) * v]);
            let (p, q) = (RowStats::of(cpu.isa(), p_v, 0), RowStats::of(cpu.isa(), q_v, 0));
            let shift = f64::from(q.max) + q.sum.ln() - f64::from(p.max) - p.sum.ln();
            let kl: f64 = p_v
                .iter()
                .zip(q_v)
                .map(|(&y_p, &y_q)| {
                    let probability = f64::from(y_p - p.max).exp() / p.sum;
                    probability * (f64::from(y_p) - f64::from(y_q) + shift)
                })
                .sum();
            out[0] = kl as f32;
        });
    }
    out
}

/// `ln sum_v p_v^2` at each row: see `ops::logprob::log_sum_sq`.
pub fn log_sum_sq(
    cpu: &Cpu,
    hidden_mc: &[f32],
    rows: usize,
    head: HeadRef<'_>,
    scratch: &mut Buffer,
) -> Vec<f32> {
    let (v, c) = (head.vocab, head.width);
    let step = rows_at_a_time(v);
    scratch.grow(step.min(rows) * v);
    let mut out = vec![0.0; rows];
    for m0 in (0..rows).step_by(step) {
        let count = step.min(rows - m0);
        let y_mv = &mut scratch[..count * v];
        logits(cpu, y_mv, &hidden_mc[m0 * c..(m0 + count) * c], head);
        let y_mv = &*y_mv;
        cpu.for_each_chunk(&mut out[m0..m0 + count], 1, |r, out| {
            let y_v = &y_mv[r * v..(r + 1) * v];
            let stats = RowStats::of(cpu.isa(), y_v, 0);
            let squares: f64 = y_v.iter().map(|&y| (2.0 * f64::from(y - stats.max)).exp()).sum();
            out[0] = (squares.ln() - 2.0 * stats.sum.ln()) as f32;
        });
    }
    out
}
