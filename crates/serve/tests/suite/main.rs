//! The API asked through its router, with a small model that tells stories.

mod api;
mod canary;
mod monitor;
mod pressure;
mod site;
mod streams;
