//! The whole site over a store in a temporary file, asked through its router (or, for load, over loopback).

mod access;
mod api;
mod boards;
mod flow;
mod forms;
mod hostile;
mod load;
mod site;

#[path = "../../examples/site/sample.rs"]
mod sample;
