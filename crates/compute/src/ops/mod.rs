//! Each operation of the decoder as plain loops: the reference.
//!
//! One file an operation, forward and backward side by side, so that the backward can quote the
//! forward. The fast versions in `cpu/` share these file names and are tested against them: change
//! the maths here first. Nothing here is meant to be quick.
//!
//! Conventions, for all files:
//! - slices are `f32`, row-major, and named with their dims; weights of a linear map are in panels
//!   ([`crate::params`]);
//! - `forward` overwrites its outputs; `backward` **adds** into every gradient, so gradients are zeroed
//!   once a step, by the caller. The few functions that work in place or overwrite say so;
//! - sums are kept in `f64` and rounded once, except in [`linear`] and [`embed`], whose order of `f32`
//!   operations is a contract that the fast versions keep to the bit;
//! - wrong lengths are bugs of the caller and panic.
//!
//! Letters: `n` tokens (rows), `m` chosen rows (in `linear`: all rows), `c` width,
//! `h` query heads, `g` key/value heads, `d` head size, `f` feed-forward width, `v` vocabulary.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod embed;
pub mod linear;
pub mod logprob;
pub mod norm;
pub mod qk_norm;
pub mod rope;
pub mod scalar_head;

#[cfg(test)]
mod check;
