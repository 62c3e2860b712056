//! Flags of `loop`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::pipeline::Step;

/// Flags of `loop`.
#[derive(Debug, Args)]
pub struct LoopArgs {
    /// The pipeline, as TOML: docs/loop.md has the format
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Stop when this step is done: sample, panel, freeze, reward, accept, policy, compare, evaluate, gate or release
    #[arg(long, value_enum, value_name = "STEP", hide_possible_values = true)]
    pub until: Option<Step>,
    /// Do nothing; show which steps are done
    #[arg(long, conflicts_with = "until")]
    pub status: bool,
}
