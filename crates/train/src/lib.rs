//! Training: objectives and one file per trainer.
//!
//! [`objectives`] are pure functions from per-token numbers to a loss and its gradient. A trainer reads top to bottom:
//! load, loop { roll out, score, learn, record }, save.
//!
//! Not here: where a dataset comes from and where a run goes (the command line moves them), evaluation, the store.

pub mod objectives;
