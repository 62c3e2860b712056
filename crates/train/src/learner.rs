//! A model that is being trained, and one that is not.
//!
//! The trainers' only way to the arithmetic: a forward pass, an objective in the middle, a backward pass, an
//! update. Gradients add up over the parts of a step, so a step is the same however it is cut. With an adapter the
//! update is the adapter's, and the model's weights are the merged ones.

use polity_compute::optim::{Optimizer, OptimizerConfig, UpdateStats};
use polity_compute::{Batch, Cpu, Decoder, LogProbs, Params, Prediction, Recompute, Tape};
use polity_lm::{Adapter, Model};

/// Weights, gradients, moments and the memory to compute them.
pub struct Learner<'c> {
    cpu: &'c Cpu,
    /// The model; its weights change.
    pub model: Model,
    /// What is trained in place of the weights.
    pub adapter: Option<Adapter>,
    decoder: Decoder,
    grads: Params,
    /// Moments and steps taken.
    pub optimizer: Optimizer,
    recompute: Recompute,
    tape: Tape,
    /// Tokens that went through in training passes.
    pub tokens: u64,
}

impl<'c> Learner<'c> {
    /// A learner of this model.
    pub fn new(cpu: &'c Cpu, model: Model, config: OptimizerConfig, recompute: Recompute) -> Self {
        Self::of(cpu, model, None, config, recompute)
    }

    /// The same, training an adapter of the model.
    pub fn with_adapter(
        cpu: &'c Cpu,
        model: Model,
        adapter: Adapter,
        config: OptimizerConfig,
        recompute: Recompute,
    ) -> Self {
        Self::of(cpu, model, Some(adapter), config, recompute)
    }

    fn of(
        cpu: &'c Cpu,
        mut model: Model,
        adapter: Option<Adapter>,
        config: OptimizerConfig,
        recompute: Recompute,
    ) -> Self {
        let decoder = decoder_of(&model);
        model.params.pack(cpu, &model.layout.specs);
        let grads = Params::zeros(&model.layout);
        let trained = adapter.as_ref().map_or(model.layout.len, |adapter| adapter.params.data.len());
        let (optimizer, tape) = (Optimizer::new(config, trained), Tape::default());
        Self { cpu, model, adapter, decoder, grads, optimizer, recompute, tape, tokens: 0 }
    }

    /// The processor it computes on.
    pub fn cpu(&self) -> &'c Cpu {
        self.cpu
    }

    /// Forward, `objective` on the log-probs, backward: adds to the gradients. The objective returns the gradient
    /// of each log-prob and of each entropy, and whatever the caller wants to know.
    pub fn learn_logprobs<R>(
        &mut self,
        batch: &Batch,
        predictions: &[Prediction],
        temperature: f32,
        objective: impl FnOnce(&LogProbs) -> (Vec<f32>, Vec<f32>, R),
    ) -> R {
        let Self { cpu, model, decoder, grads, recompute, tape, .. } = self;
        decoder.forward_to(cpu, &model.params, batch, rows_of(predictions), *recompute, tape);
        let out = decoder.logprobs(cpu, &model.params, tape, predictions, temperature);
        let (d_logprob_m, d_entropy_m, result) = objective(&out);
        decoder.begin_backward(tape);
        decoder.logprobs_backward(
            cpu,
            &model.params,
            tape,
            predictions,
            temperature,
            &out,
            &d_logprob_m,
            &d_entropy_m,
            grads,
        );
        decoder.backward(cpu, &model.params, batch, tape, grads);
        self.tokens += batch.tokens() as u64;
        result
    }

    /// The same with the scalar head at `rows`.
    pub fn learn_scalars<R>(
        &mut self,
        batch: &Batch,
        rows: &[usize],
        objective: impl FnOnce(&[f32]) -> (Vec<f32>, R),
    ) -> R {
        let scalars = self.read_scalars(batch, rows);
        let (d_scalar, result) = objective(&scalars);
        self.learn_read_scalars(batch, rows, &d_scalar);
        result
    }

    /// Scalars, read so that [`Learner::learn_read_scalars`] can learn from them.
    pub fn read_scalars(&mut self, batch: &Batch, rows: &[usize]) -> Vec<f32> {
        let Self { cpu, model, decoder, recompute, tape, .. } = self;
        decoder.forward_to(cpu, &model.params, batch, rows.iter().copied(), *recompute, tape);
        decoder.scalars(&model.params, tape, rows)
    }

    /// Backward from what [`Learner::read_scalars`] read last, the same batch and rows, with no other pass or update since: adds to the gradients.
    pub fn learn_read_scalars(&mut self, batch: &Batch, rows: &[usize], d_scalar: &[f32]) {
        let Self { cpu, model, decoder, grads, tape, .. } = self;
        decoder.begin_backward(tape);
        decoder.scalars_backward(&model.params, tape, rows, d_scalar, grads);
        decoder.backward(cpu, &model.params, batch, tape, grads);
        self.tokens += batch.tokens() as u64;
    }

    /// Updates the weights by the gradients added up since the last update, and clears them.
    pub fn update(&mut self, lr: f64) -> UpdateStats {
        let Self { cpu, model, adapter, grads, optimizer, .. } = self;
        match adapter {
            None => optimizer.update(cpu, &model.layout.specs, &mut model.params, grads, lr),
            Some(adapter) => {
                let stats = adapter.update(cpu, optimizer, &model.layout, &mut model.params, grads, lr);
                cpu.clear(&mut grads.data);
                stats
            }
        }
    }

    /// Reads what is trained from a directory: the model, or the adapter, which is merged.
    ///
    /// # Errors
    ///
    /// If the directory does not hold a model, or an adapter like this one.
    pub fn load(&mut self, dir: impl AsRef<std::path::Path>) -> polity_lm::Result<()> {
        let Self { cpu, model, adapter, .. } = self;
        match adapter {
            None => {
                model.params = Model::load(dir)?.params;
                model.params.pack(cpu, &model.layout.specs);
            }
            Some(adapter) => {
                adapter.load_numbers(dir)?;
                adapter.merge(cpu, &model.layout, &mut model.params);
            }
        }
        Ok(())
    }

    /// Forgets gradients that are not to be used.
    pub fn discard_gradients(&mut self) {
        self.cpu.clear(&mut self.grads.data);
    }

    /// Log-probs without learning.
    pub fn logprobs(&mut self, batch: &Batch, predictions: &[Prediction], temperature: f32) -> LogProbs {
        logprobs(self.cpu, &self.decoder, &self.model.params, &mut self.tape, batch, predictions, temperature)
    }

    /// `ln sum_v p_v^2` of the distribution that each prediction is made from, without learning.
    pub fn log_sum_sq_probs(&mut self, batch: &Batch, predictions: &[Prediction]) -> Vec<f32> {
        let Self { cpu, model, decoder, tape, .. } = self;
        decoder.forward_to(cpu, &model.params, batch, rows_of(predictions), Recompute::Layer, tape);
        decoder.log_sum_sq_probs(cpu, &model.params, tape, predictions, 1.0)
    }

    /// Scalars without learning.
    pub fn scalars(&mut self, batch: &Batch, rows: &[usize]) -> Vec<f32> {
        let Self { cpu, model, decoder, tape, .. } = self;
        decoder.forward_to(cpu, &model.params, batch, rows.iter().copied(), Recompute::Layer, tape);
        self.decoder.scalars(&self.model.params, &self.tape, rows)
    }

    /// The decoder, its weights and the memory, for the generation engine.
    pub fn engine_parts(&mut self) -> (&'c Cpu, &Decoder, &Params, &mut Tape) {
        (self.cpu, &self.decoder, &self.model.params, &mut self.tape)
    }
}

/// A model that does not change: a reference, a reward model, an evaluation.
pub struct Frozen<'c> {
    cpu: &'c Cpu,
    /// The model.
    pub model: Model,
    decoder: Decoder,
    tape: Tape,
}

impl<'c> Frozen<'c> {
    /// A model to read only.
    pub fn new(cpu: &'c Cpu, mut model: Model) -> Self {
        let decoder = decoder_of(&model);
        model.params.pack(cpu, &model.layout.specs);
        Self { cpu, model, decoder, tape: Tape::default() }
    }

    /// Log-probs of the predictions.
    pub fn logprobs(&mut self, batch: &Batch, predictions: &[Prediction], temperature: f32) -> LogProbs {
        logprobs(self.cpu, &self.decoder, &self.model.params, &mut self.tape, batch, predictions, temperature)
    }

    /// The scalar head at some rows.
    pub fn scalars(&mut self, batch: &Batch, rows: &[usize]) -> Vec<f32> {
        let Self { cpu, model, decoder, tape, .. } = self;
        decoder.forward_to(cpu, &model.params, batch, rows.iter().copied(), Recompute::Layer, tape);
        self.decoder.scalars(&self.model.params, &self.tape, rows)
    }

    /// The decoder, its weights and the memory, for the generation engine.
    pub fn engine_parts(&mut self) -> (&'c Cpu, &Decoder, &Params, &mut Tape) {
        (self.cpu, &self.decoder, &self.model.params, &mut self.tape)
    }

    /// `KL(policy || self)` at each prediction, nats, over the whole vocabulary; both models run over the batch.
    pub fn kl_full_from(
        &mut self,
        policy: &mut Learner<'_>,
        batch: &Batch,
        predictions: &[Prediction],
        temperature: f32,
    ) -> Vec<f32> {
        let params = &policy.model.params;
        for (decoder, params, tape) in
            [(&policy.decoder, params, &mut policy.tape), (&self.decoder, &self.model.params, &mut self.tape)]
        {
            decoder.forward_to(self.cpu, params, batch, rows_of(predictions), Recompute::Layer, tape);
        }
        policy.decoder.kl_full(
            self.cpu,
            (params, &policy.tape),
            (&self.decoder, &self.model.params, &self.tape),
            predictions,
            temperature,
        )
    }
}

fn decoder_of(model: &Model) -> Decoder {
    Decoder::new(model.config.clone()).expect("a model that loaded has a valid shape")
}

fn logprobs(
    cpu: &Cpu,
    decoder: &Decoder,
    params: &Params,
    tape: &mut Tape,
    batch: &Batch,
    predictions: &[Prediction],
    temperature: f32,
) -> LogProbs {
    decoder.forward_to(cpu, params, batch, rows_of(predictions), Recompute::Layer, tape);
    decoder.logprobs(cpu, params, tape, predictions, temperature)
}

/// The rows that tokens are predicted from.
fn rows_of(predictions: &[Prediction]) -> impl Iterator<Item = usize> + '_ {
    predictions.iter().map(|prediction| prediction.row)
}
