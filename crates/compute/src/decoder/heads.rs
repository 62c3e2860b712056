//! What is read from hidden states: log-probs of tokens, logits, scalars, and their gradients.

use super::tape::Tape;
use super::{Decoder, gather_rows};
use crate::batch::Prediction;
use crate::config::Head;
use crate::cpu::logprob::{HeadRef, LogProbs, LogitParams};
use crate::cpu::{Cpu, logprob, vector};
use crate::params::{Buffer, Params};

impl Decoder {
    /// The normalised last hidden states, `[n, c]`, or of the rows that [`Decoder::forward_to`] was asked for, ascending.
    pub fn hidden<'t>(&self, tape: &'t Tape) -> &'t [f32] {
        &tape.hidden[..tape.hidden_rows() * self.config.width]
    }

    /// Zeroes `d_hidden`, before the heads add their gradients to it.
    pub fn begin_backward(&self, tape: &mut Tape) {
        let len = tape.hidden_rows() * self.config.width;
        tape.d_hidden.grow(len);
        tape.d_hidden[..len].fill(0.0);
    }

    /// Log-probs and entropies of the predictions, at this temperature.
    ///
    /// # Panics
    ///
    /// If the head is scalar or a prediction's row is not in the batch.
    pub fn logprobs(
        &self,
        cpu: &Cpu,
        params: &Params,
        tape: &mut Tape,
        predictions: &[Prediction],
        temperature: f32,
    ) -> LogProbs {
        let head = self.head(params, temperature);
        let (tokens, Tape { kept, hidden, work, .. }) = (tokens_of(predictions), tape);
        gather_rows(
            &mut work.rows,
            hidden,
            predictions.iter().map(|p| place(kept, p.row)),
            self.config.width,
        );
        let rows = &work.rows[..predictions.len() * self.config.width];
        logprob::forward(cpu, rows, &tokens, head)
    }

    /// `ln sum_v p_v^2` of the distributions that the predictions are made from, at this temperature.
    ///
    /// # Panics
    ///
    /// As [`Decoder::logprobs`].
    pub fn log_sum_sq_probs(
        &self,
        cpu: &Cpu,
        params: &Params,
        tape: &mut Tape,
        predictions: &[Prediction],
        temperature: f32,
    ) -> Vec<f32> {
        let (head, m, c) = (self.head(params, temperature), predictions.len(), self.config.width);
        let Tape { kept, hidden, work, .. } = tape;
        gather_rows(&mut work.rows, hidden, predictions.iter().map(|p| place(kept, p.row)), c);
        logprob::log_sum_sq(cpu, &work.rows[..m * c], m, head, &mut work.head)
    }

    /// Adds the gradient of the predictions' log-probs and entropies into `d_hidden` and `grads`, from what [`Decoder::logprobs`] said of them.
    ///
    /// # Panics
    ///
    /// If there is not one gradient a prediction, or `begin_backward` was not called.
    pub fn logprobs_backward(
        &self,
        cpu: &Cpu,
        params: &Params,
        tape: &mut Tape,
        predictions: &[Prediction],
        temperature: f32,
        of: &LogProbs,
        d_logprob_m: &[f32],
        d_entropy_m: &[f32],
        grads: &mut Params,
    ) {
        let (m, c, head) = (predictions.len(), self.config.width, self.head(params, temperature));
        let (tokens, Tape { kept, hidden, d_hidden, work, .. }) = (tokens_of(predictions), tape);
        gather_rows(&mut work.rows, hidden, predictions.iter().map(|p| place(kept, p.row)), c);
        work.d_rows.grow(m * c);
        let d_rows = &mut work.d_rows[..m * c];
        d_rows.fill(0.0);
        let d_w = grads.slice_mut(&self.layout, self.layout.head);
        let rows = &work.rows[..m * c];
        logprob::backward(
            cpu,
            d_rows,
            d_w,
            of,
            d_logprob_m,
            d_entropy_m,
            rows,
            &tokens,
            head,
            &mut work.head_backward,
        );
        for (p, d_c) in predictions.iter().zip(d_rows.chunks_exact(c)) {
            let row = place(kept, p.row);
            vector::add(cpu.isa(), &mut d_hidden[row * c..(row + 1) * c], d_c);
        }
    }

    /// Final logits of some rows, `[rows, v]`: for tests and for sampling.
    pub fn logits(
        &self,
        cpu: &Cpu,
        params: &Params,
        tape: &mut Tape,
        rows: &[usize],
        temperature: f32,
    ) -> Vec<f32> {
        let head = self.head(params, temperature);
        let Tape { kept, hidden, work, .. } = tape;
        gather_rows(&mut work.rows, hidden, rows.iter().map(|&row| place(kept, row)), self.config.width);
        let mut y = vec![0.0; rows.len() * self.config.vocab];
        logprob::logits(cpu, &mut y, &work.rows[..rows.len() * self.config.width], head);
        y
    }

    /// The scalar head at some rows: rewards or values.
    ///
    /// # Panics
    ///
    /// If the head is not scalar.
    pub fn scalars(&self, params: &Params, tape: &Tape, rows: &[usize]) -> Vec<f32> {
        let w_c = self.scalar_head(params);
        let c = w_c.len();
        rows.iter()
            .map(|&row| {
                let row = place(&tape.kept, row);
                let x_c = &tape.hidden[row * c..(row + 1) * c];
                x_c.iter().zip(w_c).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() as f32
            })
            .collect()
    }

    /// Adds the gradient of the scalars at `rows` into `d_hidden` and `grads`.
    pub fn scalars_backward(
        &self,
        params: &Params,
        tape: &mut Tape,
        rows: &[usize],
        d_scalar: &[f32],
        grads: &mut Params,
    ) {
        assert_eq!(rows.len(), d_scalar.len(), "scalars: one gradient a row");
        let w_c = self.scalar_head(params);
        let c = w_c.len();
        let d_w = grads.slice_mut(&self.layout, self.layout.head);
        for (&row, &d) in rows.iter().zip(d_scalar) {
            let row = place(&tape.kept, row);
            let x_c = &tape.hidden[row * c..(row + 1) * c];
            let d_x_c = &mut tape.d_hidden[row * c..(row + 1) * c];
            for i in 0..c {
                d_w[i] += d * x_c[i];
                d_x_c[i] += d * w_c[i];
            }
        }
    }

    /// `KL(self || other)` in nats at each prediction's row, over the whole vocabulary.
    pub fn kl_full(
        &self,
        cpu: &Cpu,
        (params, tape): (&Params, &Tape),
        (other, other_params, other_tape): (&Decoder, &Params, &Tape),
        predictions: &[Prediction],
        temperature: f32,
    ) -> Vec<f32> {
        let mut gathered = [Buffer::default(), Buffer::default()];
        for (out, (tape, width)) in
            gathered.iter_mut().zip([(tape, self.config.width), (other_tape, other.config.width)])
        {
            gather_rows(out, &tape.hidden, predictions.iter().map(|p| place(&tape.kept, p.row)), width);
        }
        let [p, q] = &gathered;
        let (head_p, head_q) = (self.head(params, temperature), other.head(other_params, temperature));
        logprob::kl_full(cpu, p, head_p, q, head_q, predictions.len())
    }

    fn head<'p>(&self, params: &'p Params, temperature: f32) -> HeadRef<'p> {
        assert_ne!(self.config.head, Head::Scalar, "a scalar head has no log-probs");
        HeadRef {
            w: params.weights(&self.layout.specs[self.layout.head]),
            vocab: self.config.vocab,
            width: self.config.width,
            logits: LogitParams { softcap: self.config.logit_softcap, temperature },
        }
    }

    fn scalar_head<'p>(&self, params: &'p Params) -> &'p [f32] {
        assert_eq!(self.config.head, Head::Scalar, "only a scalar head has scalars");
        params.slice(&self.layout, self.layout.head)
    }
}

fn tokens_of(predictions: &[Prediction]) -> Vec<u32> {
    predictions.iter().map(|p| p.token).collect()
}

/// Where the hidden state of a row is.
///
/// # Panics
///
/// If the forward pass was not asked for it.
fn place(kept: &Option<Vec<usize>>, row: usize) -> usize {
    kept.as_ref()
        .map_or(row, |kept| kept.binary_search(&row).expect("a row that the forward pass was asked for"))
}
