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
    #[arg(long = "suite", short, value_name = "FILE", value_hint = ValueHint::FilePath, required_unless_present = "people")]
    pub suites: Vec<PathBuf>,
    /// The model that this one is compared with: win rates, and KL unless --reference says otherwise
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub baseline: Option<PathBuf>,
    /// The model that the KL is measured against
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub reference: Option<PathBuf>,
    /// What people said of this model's and the baseline's responses on the project's holdout: `win_rate`. A look, which the ledger counts
    #[arg(long, requires = "baseline", help_heading = "Judges")]
    pub people: bool,
    /// With --people: count simulated annotators and machines too
    #[arg(long, requires = "people", help_heading = "Judges")]
    pub machine_votes: bool,
    /// A reward model that says whose response is better: `proxy_win_rate`, `proxy_reward`
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Judges")]
    pub reward_model: Option<PathBuf>,
    /// An OpenAI-compatible endpoint that says whose response is better, up to and with /v1: `judge_win_rate`
    #[arg(long, value_name = "URL", requires = "judge_model", value_hint = ValueHint::Url, help_heading = "Judges")]
    pub judge: Option<String>,
    /// The judge's name there
    #[arg(long, value_name = "NAME", requires = "judge", help_heading = "Judges")]
    pub judge_model: Option<String>,
    /// A field of each request to the judge, as for `polity panel judge`; repeat for more
    #[arg(long = "judge-set", value_name = "KEY=VALUE", value_parser = crate::args::parse_set, help_heading = "Judges")]
    pub judge_sets: Vec<(String, String)>,
    /// Tokens after which the judge is asked no more; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Judges")]
    pub judge_budget: u64,
    /// Answers of a model with people's labels, which the refusal classifier learns from: XSTest's CSV, or rows; repeat for more models
    #[arg(long = "labels", value_name = "MODEL=FILE", value_parser = crate::args::parse_set, help_heading = "Refusals")]
    pub labels: Vec<(String, String)>,
    /// This model's responses (of --out's `responses`) with a `label` in those that people have read: comply, partial or refuse
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Refusals")]
    pub own_labels: Option<PathBuf>,
    /// A file that the model was trained on, beside those that its run names; rows of a suite that are in it are left out
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub train_data: Vec<PathBuf>,
    /// What a reward model is accepted by: its own flags.
    #[command(flatten)]
    pub acceptance: AcceptanceArgs,
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

/// Flags that only a reward model's evaluation has.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reward models")]
pub struct AcceptanceArgs {
    /// What the reward model must show, as TOML; the `reward-model` policy that ships if left out
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: Option<PathBuf>,
    /// Another reward model of the same ensemble: how far they agree; repeat for more
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub beside: Vec<PathBuf>,
    /// Samples of one policy, several to each prompt, for best-of-n: rows as for `polity score`, with the true reward in `gold`; or
    /// the policy's directory, to sample them to the suites' prompts (`n` in a suite's [settings], 16 if left out)
    #[arg(long, value_name = "FILE|DIR", value_hint = ValueHint::AnyPath)]
    pub candidates: Option<PathBuf>,
    /// A better reward model that gives the true reward of the candidates
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "candidates")]
    pub gold_model: Option<PathBuf>,
    /// Policies that were optimised against the reward model, a row each: `kl` (nats per sequence), `gold`, and `step` or `id`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub curve: Option<PathBuf>,
}

impl AcceptanceArgs {
    /// The first flag that was given.
    pub fn given(&self) -> Option<&'static str> {
        let flags = [
            (self.policy.is_some(), "--policy"),
            (!self.beside.is_empty(), "--beside"),
            (self.candidates.is_some(), "--candidates"),
            (self.curve.is_some(), "--curve"),
        ];
        flags.into_iter().find_map(|(given, flag)| given.then_some(flag))
    }
}
