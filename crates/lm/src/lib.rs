//! A language model on disk and in use: Hugging Face files, tokenizer, chat template, generation.
//!
//! Reading order: [`hf_config`] (`config.json`), [`weights`] (which tensor is which), [`model`] (the directory),
//! [`adapter`] (LoRA), [`tokenizer`], [`chat`] (templates and masks), [`engine`] (generation), [`rng`], [`error`].
//!
//! Not here: arithmetic (`compute`), losses and training (`train`). This crate reads no environment, no
//! clock and no terminal; every file it opens is in a directory that it was given.

pub mod adapter;
pub mod chat;
pub mod engine;
pub mod error;
pub mod hf_config;
mod init;
mod keys;
pub mod model;
pub mod rng;
mod rope;
mod tensor_file;
pub mod tokenizer;
pub mod weights;

pub use adapter::{Adapter, LoraConfig};
pub use chat::{ChatOptions, ChatTemplate, EncodedChat, EncodedPair, Rendered};
pub use error::{LmError, Mismatch, Result};
pub use hf_config::{Family, HfConfig};
pub use model::{GenerationDefaults, Model, ScalarInit};
pub use tensor_file::WeightDtype;
pub use tokenizer::{Encoded, SpecialTokens, StreamDecoder, Tokenizer};
