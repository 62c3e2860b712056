//! The built binary, as a person or a script sees it: arguments in, streams and exit code out.
//!
//! Models and data are read in place from `../shared` beside the workspace; bad ones are made in temporary
//! directories.

mod acceptance;
mod agreement;
mod bad_input;
mod bad_training;
mod boards;
mod chat;
mod drill;
mod eval;
mod gate;
mod generate;
mod judge;
mod lineage;
mod measure;
mod pipeline;
mod project;
mod release;
mod serve;
mod support;
mod talk;
mod train;
