//! Arithmetic on tensors for one family of decoders: forward, backward, optimiser.
//!
//! Reading order: [`config`] (what a decoder is), [`params`] (where its numbers lie), [`batch`] (what
//! it reads), `ops` (each operation as plain loops: the reference), `cpu` (the same, fast),
//! `decoder` (the layers), `optim`.
//!
//! Not here: files, tokenizers, sampling (`lm`); losses (`train`). This crate reads no environment,
//! no clock and no file.

pub mod batch;
pub mod cache;
pub mod config;
pub mod cpu;
pub mod decoder;
pub mod ops;
pub mod optim;
pub mod params;

pub use batch::{Batch, Prediction, Segment};
pub use cache::{KvCache, SequenceId};
pub use config::{DecoderConfig, Head, Mlp, NormKind, NormPlace, Position, QkNorm};
pub use cpu::logprob::LogProbs;
pub use cpu::{Cpu, Isa, Order, Precision};
pub use decoder::{Decoder, Recompute, Tape};
pub use optim::{Optimizer, OptimizerConfig, Schedule, UpdateStats};
pub use params::{Layout, ParamSpec, Params, Shape, Weights};
