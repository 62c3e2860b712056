//! Log-probs and entropies of chosen tokens: the language-model head. Reference: `ops/logprob.rs`.
//!
//! Logits become log-probs by [`Sums`] and nowhere else, at an explicit temperature; the sampler
//! uses the same sums, so a rollout's log-prob is the policy's to the bit.
//!
//! A task has the logits of some rows and of [`CHUNK`] tokens of the vocabulary at a time, in its cache, and is done with them before it turns to the
//! next: forward adds them to the rows' sums; backward computes them again, since the sums are known now, and turns them into their gradient, which goes
//! into `d_hidden` at once and into lines for `d_w`. `[n, vocab]` is never held.

use std::cell::RefCell;
use std::ops::Range;

use super::linear::{self, Channels, Lines, Turned, Write};
use super::vector::{Lanes, exp, vectorized};
use super::{Cpu, Isa, SharedMut};
use crate::params::{Buffer, LANES, Weights};

/// Logits of a row that are summed in f32, and that share a maximum.
const BLOCK: usize = 512;

/// Logits of a row that a task holds at a time: of 96 rows 384 KiB.
const CHUNK: usize = 2 * BLOCK;

/// Words of the gradient's lines held at a time: 16 MiB.
const LINES_MAX: usize = 1 << 22;

/// Logits held at a time (but at least for [`ROWS_MIN`] rows) where they are needed whole: 16 MiB.
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
        Sums::NONE.and(isa, y_v).stats(y_v[token as usize])
    }

    /// Log-probability of another token of the same row, by its logit, nats.
    pub fn logprob_of(&self, y: f32) -> f32 {
        (f64::from(y) - f64::from(self.max) - self.sum.ln()) as f32
    }
}

/// What final logits say of their distribution, as far as they were read: blocks of [`BLOCK`] from the row's first on.
#[derive(Clone, Copy, Debug)]
struct Sums {
    max: f32,
    /// `sum e^(y - max)`.
    sum: f64,
    /// `sum e^(y - max) (y - max)`.
    weighted: f64,
}

impl Sums {
    const NONE: Self = Self { max: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 };

    /// Together with the logits that follow, whole blocks but for the row's last.
    fn and(self, isa: Isa, y_v: &[f32]) -> Self {
        y_v.chunks(BLOCK).fold(self, |sums, y| sums.plus(block_sums(isa, y)))
    }

    /// Whether nothing but forbidden tokens was read: there is no maximum to measure from.
    fn is_nothing(self) -> bool {
        self.max == f32::NEG_INFINITY && self.sum == 0.0
    }

    /// Of one side and then the other, from the larger maximum.
    fn plus(self, other: Self) -> Self {
        if self.is_nothing() || other.is_nothing() {
            return if other.is_nothing() { self } else { other };
        }
        let max = self.max.max(other.max);
        let [a, b] = [self, other].map(|side| {
            if side.max == max {
                return side;
            }
            let gap = f64::from(side.max) - f64::from(max);
            let e = gap.exp();
            Self { max, sum: side.sum * e, weighted: (side.weighted + side.sum * gap) * e }
        });
        Self { max, sum: a.sum + b.sum, weighted: a.weighted + b.weighted }
    }

    /// Of the whole row, and of the token with this logit.
    fn stats(self, y: f32) -> RowStats {
        let Self { max, sum, weighted } = self;
        let entropy = (sum.ln() - weighted / sum) as f32;
        let stats = RowStats { logprob: 0.0, entropy, top: y == max, max, sum };
        RowStats { logprob: stats.logprob_of(y), ..stats }
    }
}

vectorized! {
    /// Sixteen interleaved sums over at most [`BLOCK`] logits, so that f32 does not lose the small ones.
    fn block_sums(y_v: &[f32]) -> Sums {
        let mut maxima = [f32::NEG_INFINITY; 16];
        let (y16, tail) = y_v.as_chunks::<16>();
        for y in y16 {
            for i in 0..16 {
                maxima[i] = if y[i] > maxima[i] { y[i] } else { maxima[i] };
            }
        }
        let max = maxima.iter().chain(tail).fold(f32::NEG_INFINITY, |max, &y| max.max(y));
        // Where all are forbidden there is no distance from the maximum: they weigh nothing from 0 either.
        let from = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let (mut sum, mut weighted) = (Lanes::ZERO, Lanes::ZERO);
        let mut add = |i: usize, y: f32| {
            let e = exp(y - from);
            sum.0[i] += e;
            // A forbidden token has logit -inf, weight 0 and no part in the entropy.
            let below = if e > 0.0 { y - from } else { 0.0 };
            weighted.0[i] = e.mul_add(below, weighted.0[i]);
        };
        for y in y16 {
            for i in 0..16 {
                add(i, y[i]);
            }
        }
        for (i, &y) in tail.iter().enumerate() {
            add(i, y);
        }
        Sums { max, sum: f64::from(sum.total()), weighted: f64::from(weighted.total()) }
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

/// What the gradient of a row's logits is made of.
#[derive(Clone, Copy)]
struct RowGradient {
    /// The row's largest logit and `sum e^(y - max)`.
    max: f32,
    sum: f64,
    entropy: f32,
    d_logprob: f32,
    d_entropy: f32,
    logits: LogitParams,
}

impl RowGradient {
    /// `d y / d z` where the final logit is `y`.
    #[inline(always)]
    fn slope(self, y: f32) -> f32 {
        let t = self.logits.temperature;
        match self.logits.softcap {
            Some(cap) => (1.0 - (y * t / cap) * (y * t / cap)) / t,
            None => 1.0 / t,
        }
    }
}

vectorized! {
    /// Final logits of one row become the gradient with respect to the raw head outputs; `token` is the chosen one, if it is among these.
    fn gradient_row(y_v: &mut [f32], row: RowGradient, token: Option<usize>) {
        // forward was: logprob = y_t - lse(y), entropy = lse(y) - sum_v p_v y_v, y = cap tanh(z / cap) / T
        // so now: d_y_v = d_logprob ([v = t] - p_v) - d_entropy p_v (log p_v + entropy)
        let RowGradient { max, entropy, d_logprob, d_entropy, .. } = row;
        let scale = (1.0 / row.sum) as f32;
        let chosen = token.map(|token| d_logprob * row.slope(y_v[token]));
        match (row.logits.softcap, d_entropy != 0.0) {
            (None, false) => {
                let factor = -d_logprob * scale / row.logits.temperature;
                for y in y_v.iter_mut() {
                    *y = exp(*y - max) * factor;
                }
            }
            _ => {
                let log_sum = row.sum.ln() as f32;
                for y in y_v.iter_mut() {
                    let log_p = *y - max - log_sum;
                    let probability = exp(*y - max) * scale;
                    let pull = if probability > 0.0 { d_entropy * (log_p + entropy) } else { 0.0 };
                    *y = -probability * (d_logprob + pull) * row.slope(*y);
                }
            }
        }
        if let (Some(token), Some(chosen)) = (token, chosen) {
            y_v[token] += chosen;
        }
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
    /// `[m]`: the largest final logit.
    pub max_m: Vec<f32>,
    /// `[m]`: `sum e^(logit - max)`.
    pub sum_m: Vec<f64>,
}

/// Rows of the head computed at a time.
pub fn rows_at_a_time(vocab: usize) -> usize {
    (LOGITS_MAX / vocab / ROWS_MIN * ROWS_MIN).clamp(ROWS_MIN, 1024)
}

/// Final logits of some rows: `y_mv`.
pub fn logits(cpu: &Cpu, y_mv: &mut [f32], hidden_mc: &[f32], head: HeadRef<'_>) {
    logits_of(cpu, y_mv, hidden_mc, head, 0..head.vocab);
}

/// Final logits of some rows and some tokens, the first a multiple of 32.
fn logits_of(cpu: &Cpu, y_mv: &mut [f32], hidden_mc: &[f32], head: HeadRef<'_>, tokens: Range<usize>) {
    let v = tokens.len();
    linear::forward_outputs(cpu, y_mv, hidden_mc, head.w, tokens, head.vocab, head.width);
    if head.logits.softcap.is_some() || head.logits.temperature != 1.0 {
        cpu.for_each_chunk(y_mv, v, |_, y_v| finish(cpu.isa(), y_v, head.logits));
    }
}

thread_local! {
    /// Logits of the task that this thread runs.
    static LOGITS: RefCell<Buffer> = RefCell::default();
}

/// Runs `body` on the final logits of some rows, some of these tokens at a time, in order.
fn for_each_chunk_of_logits(
    cpu: &Cpu,
    hidden_mc: &[f32],
    head: HeadRef<'_>,
    tokens: Range<usize>,
    mut body: impl FnMut(Range<usize>, &mut [f32]),
) {
    let rows = hidden_mc.len() / head.width;
    // Few rows have as many logits in longer chunks.
    let chunk = (CHUNK * ROWS_MIN / rows / CHUNK * CHUNK).max(CHUNK);
    LOGITS.with_borrow_mut(|logits| {
        for start in tokens.clone().step_by(chunk) {
            let part = start..tokens.end.min(start + chunk);
            let y_mv = logits.first_mut(rows * part.len());
            logits_of(cpu, y_mv, hidden_mc, head, part.clone());
            body(part, y_mv);
        }
    });
}

/// Log-prob and entropy of `token_m` at the rows `hidden_mc`.
///
/// # Panics
///
/// If there is not one row a token, or a token is outside the vocabulary.
pub fn forward(cpu: &Cpu, hidden_mc: &[f32], token_m: &[u32], head: HeadRef<'_>) -> LogProbs {
    let (m, c, v) = (token_m.len(), head.width, head.vocab);
    assert_eq!(hidden_mc.len(), m * c, "logprob: one row of {c} a token");
    assert!(token_m.iter().all(|&token| (token as usize) < v), "logprob: a token of {v}");
    let mut of_rows = vec![(Sums::NONE, 0.0); m];
    let shared = SharedMut::new(&mut of_rows);
    cpu.for_each_rows(head.w.precision(), m, |rows| {
        // SAFETY: these rows belong to this task.
        let (of_rows, token_m) = (unsafe { shared.slice(rows.clone()) }, &token_m[rows.clone()]);
        let hidden = &hidden_mc[rows.start * c..rows.end * c];
        for_each_chunk_of_logits(cpu, hidden, head, 0..v, |part, y_mv| {
            let y_mv = &*y_mv;
            cpu.for_each_chunk(of_rows, 1, |r, of_row| {
                let y_v = &y_mv[r * part.len()..][..part.len()];
                let (sums, y) = of_row[0];
                let chosen = place_in(&part, token_m[r]).map_or(y, |token| y_v[token]);
                of_row[0] = (sums.and(cpu.isa(), y_v), chosen);
            });
        });
    });
    let stats: Vec<RowStats> = of_rows.iter().map(|(sums, y)| sums.stats(*y)).collect();
    LogProbs {
        logprob_m: stats.iter().map(|s| s.logprob).collect(),
        entropy_m: stats.iter().map(|s| s.entropy).collect(),
        top_m: stats.iter().map(|s| s.top).collect(),
        max_m: stats.iter().map(|s| s.max).collect(),
        sum_m: stats.iter().map(|s| s.sum).collect(),
    }
}

/// Where a token is among these.
fn place_in(tokens: &Range<usize>, token: u32) -> Option<usize> {
    tokens.contains(&(token as usize)).then(|| token as usize - tokens.start)
}

/// Buffers of [`backward`].
#[derive(Debug, Default)]
pub struct Work {
    turned: Buffer,
    lines: Buffer,
    channels: Buffer,
}

/// Adds into `d_hidden_mc` and `d_w` (panels), from what [`forward`] said of the same rows.
///
/// # Panics
///
/// If there is not one row and one gradient a token.
pub fn backward(
    cpu: &Cpu,
    d_hidden_mc: &mut [f32],
    d_w: &mut [f32],
    of: &LogProbs,
    d_logprob_m: &[f32],
    d_entropy_m: &[f32],
    hidden_mc: &[f32],
    token_m: &[u32],
    head: HeadRef<'_>,
    work: &mut Work,
) {
    let (m, c, v, precision) = (token_m.len(), head.width, head.vocab, head.w.precision());
    assert_eq!(hidden_mc.len(), m * c, "logprob: one row of {c} a token");
    assert_eq!(d_hidden_mc.len(), m * c, "logprob: d_hidden is like hidden");
    assert_eq!((d_logprob_m.len(), d_entropy_m.len()), (m, m), "logprob: one gradient a token");
    assert_eq!(of.max_m.len(), m, "logprob: what forward said of these rows");
    let d_hidden = SharedMut::new(d_hidden_mc);
    let channels = Channels::new(cpu, precision, &mut work.channels, m, c);
    // SAFETY: nobody else has the channels.
    unsafe { channels.put(cpu, 0, hidden_mc) };
    // As many tokens at a time as there is room for: their lines for all rows, and their weights turned.
    let segment = (LINES_MAX / m.max(2 * c) / CHUNK * CHUNK).max(CHUNK);
    for start in (0..v).step_by(segment) {
        let tokens = start..v.min(start + segment);
        let by = Turned::of(cpu, &mut work.turned, head.w, tokens.clone(), v, c);
        let lines = Lines::new(cpu, precision, &mut work.lines, m, tokens.len());
        cpu.for_each_rows(precision, m, |rows| {
            let floats = rows.start * c..rows.end * c;
            // SAFETY: these rows belong to this task.
            let d_hidden = unsafe { d_hidden.slice(floats.clone()) };
            for_each_chunk_of_logits(cpu, &hidden_mc[floats], head, tokens.clone(), |part, y_mv| {
                cpu.for_each_chunk(y_mv, part.len(), |r, y_v| {
                    let at = rows.start + r;
                    let row = RowGradient {
                        max: of.max_m[at],
                        sum: of.sum_m[at],
                        entropy: of.entropy_m[at],
                        d_logprob: d_logprob_m[at],
                        d_entropy: d_entropy_m[at],
                        logits: head.logits,
                    };
                    gradient_row(cpu.isa(), y_v, row, place_in(&part, token_m[at]));
                });
                let part = part.start - start..part.end - start;
                by.backward_outputs(cpu, d_hidden, y_mv, part.clone(), Write::Add);
                // SAFETY: as above.
                unsafe { lines.put(cpu, rows.start, part, y_mv) };
            });
        });
        let d_w = &mut d_w[start * c..tokens.end.next_multiple_of(LANES) * c];
        linear::backward_weight_packed(cpu, d_w, &lines, &channels);
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
