//! Serving: an OpenAI-compatible API over models that are decoded together, with canaries, feedback and a watch over both.
//!
//! ```text
//! request ─▶ http (key, back-pressure) ─▶ request (checked) ─▶ channel (stable or canary) ─▶ model (tokens)
//!                                                                                              │
//! answer ◀─ http (JSON or events) ◀─ answer (text, log-probs) ◀──deltas── scheduler (one thread a model) ◀┘
//! feedback ─▶ kept by the host; first votes ─▶ monitor ─▶ alarm, or the canary is taken back
//! ```
//!
//! Reading order: [`scheduler`] (who runs when), `text` and `answer` (tokens to JSON), `request`, `model`, [`channel`], [`monitor`],
//! `feedback`, `http`, [`host`] (what the caller gives).
//!
//! **What holds.** A response is a function of weights, prompt, settings and seed: what it was batched with leaves no trace, and it is the
//! one that `polity generate` gives. Memory is bounded. A client that leaves is not decoded for.
//!
//! The caller gives clock, chance, keys and a place for feedback ([`host::Host`]). Not here: the store, files, TLS (a proxy before it).

#![forbid(unsafe_code)]

mod answer;
pub mod channel;
mod error;
mod feedback;
pub mod host;
mod http;
mod metrics;
pub mod model;
pub mod monitor;
mod openapi;
mod request;
pub mod scheduler;
pub mod text;

pub use channel::{Arms, Channel};
pub use host::Host;
pub use http::{Server, router, serve};
pub use model::{ModelParts, ServedModel};
pub use openapi::openapi;
pub use scheduler::Limits;
