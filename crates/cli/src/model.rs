//! A model that is ready to compute.
//!
//! Not here: files (`lm`), arithmetic (`compute`).

use std::path::{Path, PathBuf};

use polity_compute::{Cpu, Decoder, Head};
use polity_lm::{ChatTemplate, Model};
use polity_train::settings::Precision;

use crate::args::Global;
use crate::error::{CommandError, CommandResult};

/// A model, its decoder and the processor to run it on.
pub struct Loaded {
    /// Where it was read from, for messages.
    pub dir: PathBuf,
    /// The model.
    pub model: Model,
    /// Its shape.
    pub decoder: Decoder,
    /// The processor.
    pub cpu: Cpu,
}

impl Loaded {
    /// A language model, for `what` ("generate text").
    pub fn language_model(dir: &Path, what: &str, global: &Global) -> CommandResult<Self> {
        let loaded = Self::open(dir, global)?;
        if loaded.model.config.head == Head::Scalar {
            return Err(CommandError::bad_input(format!(
                "{}: found a reward model (a scalar head), expected a language model to {what}",
                dir.display()
            ))
            .hint(format!("polity score --model {} gives its rewards", dir.display())));
        }
        Ok(loaded)
    }

    /// A reward model.
    pub fn reward_model(dir: &Path, global: &Global) -> CommandResult<Self> {
        let loaded = Self::open(dir, global)?;
        if loaded.model.config.head != Head::Scalar {
            return Err(CommandError::bad_input(format!(
                "{}: found a language model, expected a reward model (a scalar head, num_labels = 1)",
                dir.display()
            ))
            .hint(format!("polity train reward --model {} makes one from comparisons", dir.display())));
        }
        Ok(loaded)
    }

    /// A model of either kind.
    pub fn open(dir: &Path, global: &Global) -> CommandResult<Self> {
        let model = Model::load(dir)?;
        let decoder = Decoder::new(model.config.clone())
            .map_err(|problem| CommandError::bad_input(format!("{}: {problem}", dir.display())))?;
        Ok(Self { dir: dir.to_owned(), model, decoder, cpu: Cpu::new(global.threads()) })
    }

    /// Chooses what the products are computed in.
    pub fn multiply_in(&mut self, precision: Precision) {
        let layout = &self.decoder.layout;
        let precision = precision.with(self.cpu.isa(), layout.parameter_count());
        self.cpu.set_precision(precision);
        self.model.params.pack(&self.cpu, &layout.specs);
    }

    /// The chat template, if the directory has one.
    pub fn template(&self) -> CommandResult<Option<ChatTemplate>> {
        let Some(tokenizer) = &self.model.tokenizer else { return Ok(None) };
        Ok(ChatTemplate::load(&self.dir, tokenizer.special_texts())?)
    }

    /// Most tokens of a row.
    pub fn positions_max(&self) -> usize {
        self.model.config.positions_max
    }
}
