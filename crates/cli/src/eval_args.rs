//! Flags of `eval`.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::project_args::InProject;

/// Flags of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The model: a directory
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// A suite: its TOML file; repeat for more
    #[arg(long = "suite", short, value_name = "FILE", value_hint = ValueHint::FilePath, required = true)]
    pub suites: Vec<PathBuf>,
    /// Where evaluations go, and where those that are there already are found again
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = "measures")]
    pub out: PathBuf,
    /// Measure again what is there already
    #[arg(long)]
    pub again: bool,
    /// A setting, as for `polity generate` (a language model) or `polity score` (a reward model); repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::args::parse_set)]
    pub sets: Vec<(String, String)>,
}
