//! Flags of the verbs around a release: release, approve, rollback, releases, channel, lineage, diff, account.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};
use polity_store::Role;

use crate::project_args::InProject;

/// Flags of `release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The model: a directory, an earlier release's name, or the beginning of a hash
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub model: String,
    /// Where to: a name such as production
    #[arg(long, value_name = "NAME")]
    pub channel: String,
    /// The verdict it rests on, by the beginning of its id; the newest on this model if absent
    #[arg(long, value_name = "ID")]
    pub verdict: Option<String>,
    /// A canary: this share of requests gets it, between 0 and 1; the others keep what they have
    #[arg(long, value_name = "SHARE", value_parser = canary_share)]
    pub canary_share: Option<f64>,
}

fn canary_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if 0.0 < share && share < 1.0 => Ok(share),
        _ => Err("expected a number between 0 and 1, such as 0.05; leave it out for everyone".into()),
    }
}

/// Flags of `approve`.
#[derive(Debug, Args)]
pub struct ApproveArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The model: a directory, or the beginning of its hash
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub model: String,
    /// Where it may be released
    #[arg(long, value_name = "NAME")]
    pub channel: String,
    /// The verdict, by the beginning of its id; the newest on this model if absent
    #[arg(long, value_name = "ID")]
    pub verdict: Option<String>,
}

/// Flags of `rollback`.
#[derive(Debug, Args)]
pub struct RollbackArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The channel
    #[arg(long, value_name = "NAME")]
    pub channel: String,
    /// The release to go back to; the last good one if absent
    #[arg(long, value_name = "RELEASE")]
    pub to: Option<String>,
}

/// Flags of `releases`.
#[derive(Debug, Args)]
pub struct ReleasesArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// This channel alone
    #[arg(long, value_name = "NAME")]
    pub channel: Option<String>,
}

/// Flags of `channel`.
#[derive(Debug, Args)]
pub struct ChannelArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The channel
    #[arg(value_name = "NAME")]
    pub channel: String,
    /// The policy that every release to it must pass, as TOML
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: PathBuf,
}

/// Flags of `lineage`.
#[derive(Debug, Args)]
pub struct LineageArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// A release's name, a model's directory, or the beginning of a hash
    #[arg(value_name = "MODEL|RELEASE")]
    pub what: String,
    /// Draw it as SVG
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub svg: Option<PathBuf>,
    /// Write it as one page: the drawing, and every hash in a table
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub html: Option<PathBuf>,
}

/// Flags of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The one: a release's name, a model's directory, or the beginning of a hash
    #[arg(value_name = "A")]
    pub a: String,
    /// The other
    #[arg(value_name = "B")]
    pub b: String,
    /// Prompts to answer with both, as for `polity generate`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub prompts: Option<PathBuf>,
    /// A setting of the answers, as for `polity generate`; greedy unless told otherwise; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "prompts", value_parser = crate::args::parse_set)]
    pub sets: Vec<(String, String)>,
}

/// People's accounts.
#[derive(Debug, Subcommand)]
pub enum AccountVerb {
    /// Make an account and print an API token of it, which is shown this once
    #[command(after_long_help = "\
Examples:
  polity account add ann --role approver
  POLITY_TOKEN=$(polity account add ben --role approver) \\
      polity approve runs/ppo/model --channel production")]
    Add {
        /// Which project.
        #[command(flatten)]
        project: InProject,
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may do: admin, annotator, reviewer or approver; repeat for more
        #[arg(long = "role", value_name = "ROLE", required = true, value_parser = role)]
        roles: Vec<Role>,
    },
    /// Print a new API token of an account, which is shown this once
    #[command(after_long_help = "\
Examples:
  polity account token ann
  POLITY_TOKEN=$(polity account token ann) polity rollback --channel production")]
    Token {
        /// Which project.
        #[command(flatten)]
        project: InProject,
        /// The account's name
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List the accounts
    #[command(after_long_help = "\
Examples:
  polity account list
  polity account list --json | jq -r '.[].name'")]
    List {
        /// Which project.
        #[command(flatten)]
        project: InProject,
    },
}

fn role(name: &str) -> Result<Role, String> {
    Role::parse(name).map_err(|error| error.to_string())
}
