//! Flags of the verbs that work on a project: init, import, sample, serve, panel, freeze, export, ledger.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use polity_store::{ImportFormat, LabelRule, Part};

/// Which project.
#[derive(Clone, Debug, Args)]
pub struct InProject {
    /// The project's directory; the nearest one above the working directory that has a polity.toml if absent
    #[arg(long, alias = "dir", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub project: Option<PathBuf>,
}

/// Flags of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// Where to listen
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8000")]
    pub listen: std::net::SocketAddr,
    /// A proxy that speaks TLS stands before it: cookies are Secure, and the client's address is the proxy's word (X-Forwarded-For)
    #[arg(long)]
    pub behind_proxy: bool,
    /// A channel of the project whose releases answer under /v1; repeat for more
    #[arg(long = "channel", value_name = "NAME", help_heading = "Models")]
    pub channels: Vec<String>,
    /// A model that answers under /v1 by its directory's name, or by a given one; repeat for more
    #[arg(long = "model", short, value_name = "[NAME=]DIR", value_hint = ValueHint::DirPath, help_heading = "Models")]
    pub models: Vec<String>,
    /// What is watched in the channels, and what follows; docs/serving.md has the default
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Models")]
    pub policy: Option<PathBuf>,
    /// A setting of the sampler for requests that say nothing else, as for `polity chat`; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::args::parse_set, help_heading = "Models")]
    pub sets: Vec<(String, String)>,
    /// Responses of one model that are decoded together
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = crate::args::at_least_one, help_heading = "Models")]
    pub sequences: usize,
    /// Tokens of one model whose keys and values are kept, of all running responses together
    #[arg(long, value_name = "N", default_value_t = 65536, value_parser = crate::args::at_least_one, help_heading = "Models")]
    pub kv_tokens: usize,
    /// Requests to one model that wait beyond those that run; more are refused (429)
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Models")]
    pub waiting: usize,
    /// Seconds that running answers have to end when the server is stopped
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Models")]
    pub grace: u64,
}

/// Flags of `init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The project's directory; made if it is not there
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dir: PathBuf,
    /// Its name; the directory's if absent
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where the store lives: a path below DIR, or postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "PLACE", default_value = "store.db")]
    pub store: String,
    /// Share of prompts for validation; fixed for ever
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub validation: f64,
    /// Share of prompts held out; fixed for ever
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    pub holdout: f64,
    /// Judgements wanted for each comparison
    #[arg(long, value_name = "K", default_value_t = 3)]
    pub overlap: i64,
    /// Seed of what is drawn at random, for runs that repeat; from the system if absent
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// What to import.
#[derive(Debug, Subcommand)]
pub enum ImportVerb {
    /// Prompts alone
    #[command(after_long_help = "\
Examples:
  polity import prompts prompts.jsonl --category cooking")]
    Prompts(ImportArgs),
    /// Comparisons to be annotated here; what the file says of them is left out
    #[command(after_long_help = "\
Examples:
  polity import pairs pairs.jsonl
  polity import pairs hh.jsonl.gz --dry-run")]
    Pairs(ImportArgs),
    /// Comparisons and the votes on them
    #[command(after_long_help = "\
Examples:
  polity import votes labels.csv
  polity import votes judgements.jsonl --format mt-bench")]
    Votes(ImportArgs),
}

/// Flags of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// JSONL, JSON, Parquet (also gzip'd), CSV or TSV
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The format, if the first row does not tell it: trl, hh, oasst, argilla, label-studio, pairwise, pandalm, mt-bench
    #[arg(long, value_name = "NAME", value_parser = import_format)]
    pub format: Option<ImportFormat>,
    /// Category of prompts that have none of their own
    #[arg(long, value_name = "NAME", default_value = "")]
    pub category: String,
    /// Read and check everything, store nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Errors to show; all are counted
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub errors: usize,
}

fn part(name: &str) -> Result<Part, String> {
    Part::ALL
        .into_iter()
        .find(|part| part.name() == name)
        .ok_or_else(|| "expected train, validation or holdout".to_owned())
}

fn import_format(name: &str) -> Result<ImportFormat, String> {
    ImportFormat::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
        let names: Vec<&str> = ImportFormat::ALL.iter().map(|format| format.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Flags of `sample`.
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// A language model: a directory; repeat to compare several
    #[arg(long = "model", short, value_name = "DIR", value_hint = ValueHint::DirPath, required = true)]
    pub models: Vec<PathBuf>,
    /// Prompts to import and answer; all of the project's if absent
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub prompts: Option<PathBuf>,
    /// Only prompts of this part: train, validation or holdout; repeat for more
    #[arg(long = "part", value_name = "PART", value_parser = part)]
    pub parts: Vec<Part>,
    /// Candidates of each model for each prompt
    #[arg(long, value_name = "K", default_value_t = 2)]
    pub per_prompt: usize,
    /// Comparisons for each prompt, drawn among its candidates
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pairs: usize,
    /// Candidates at least this much alike are one: the share of common word triples, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.9)]
    pub alike: f64,
    /// A setting of the sampler, as for `polity generate`; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::args::parse_set)]
    pub sets: Vec<(String, String)>,
}

/// A panel without people.
#[derive(Debug, Subcommand)]
pub enum PanelVerb {
    /// Simulated annotators with known flaws vote until nothing is left
    #[command(after_long_help = "\
Examples:
  polity panel simulate
  polity panel simulate --votes 500 --seed 7")]
    Simulate(SimulateArgs),
    /// A model behind an OpenAI-compatible endpoint judges every comparison, in both orders
    #[command(long_about = "\
A model behind an OpenAI-compatible endpoint judges every comparison by the project's rubric, in both orders; a verdict that \
changes with the order is a tie. Its votes are marked as a machine's: they take no person's place, and a dataset counts \
them only with --machine-votes. Replies are kept in the project's judge-replies.jsonl, so a run that was stopped goes on \
without paying twice.

The endpoint's key is read from the environment's POLITY_JUDGE_API_KEY.")]
    #[command(after_long_help = "\
Examples:
  polity panel judge --endpoint http://127.0.0.1:8080/v1 --model judge
  polity panel judge --endpoint URL --model M --budget 200000 --parallel 8
  polity panel judge --endpoint URL --model M --set temperature=null
  polity agreement --machine-votes         how far it agrees with people")]
    Judge(JudgeArgs),
}

/// Flags of `panel judge`.
#[derive(Debug, Args)]
pub struct JudgeArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The endpoint, up to and with /v1
    #[arg(long, value_name = "URL", value_hint = ValueHint::Url)]
    pub endpoint: String,
    /// The model's name there
    #[arg(long, short, value_name = "NAME")]
    pub model: String,
    /// The judge's name in the project; the model's if absent
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Comparisons at most; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub comparisons: u32,
    /// Tokens after which this run asks no more, as the endpoint counts them; 0 for no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub budget: u64,
    /// Comparisons judged at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = crate::args::at_least_one)]
    pub parallel: usize,
    /// Tries of a question that fails for a while: too many requests, a server's error, no connection
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub tries: u32,
    /// Seconds to wait for a reply
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
    /// A field of each request, such as max_tokens=500; null leaves out what is usual (temperature=0, seed=0); repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = crate::args::parse_set)]
    pub sets: Vec<(String, String)>,
}

/// Flags of `panel simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// Votes at most; 0 for as many as are wanted
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub votes: u64,
    /// Seed of the panel, and of the tiny world whose truth it knows
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
}

/// How counts become labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Labels {
    /// The response with more votes is chosen; comparisons without a winner are left out
    Majority,
    /// `label` is the share of the votes
    Soft,
    /// `label` is the probability by a reliability model, fitted when the dataset is frozen
    Model,
}

impl From<Labels> for LabelRule {
    fn from(labels: Labels) -> LabelRule {
        match labels {
            Labels::Majority => LabelRule::Majority,
            Labels::Soft => LabelRule::Soft,
            Labels::Model => LabelRule::Model,
        }
    }
}

/// Flags of `freeze`.
#[derive(Debug, Args)]
pub struct FreezeArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The dataset's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Labels that exports have unless told otherwise: majority, soft or model
    #[arg(long, value_enum, value_name = "RULE", default_value_t = Labels::Soft, hide_possible_values = true)]
    pub labels: Labels,
    /// Comparisons with fewer judgements are left out
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub votes_min: i64,
    /// Count the votes of machines and simulated annotators too
    #[arg(long)]
    pub machine_votes: bool,
}

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// One JSON object a line
    Jsonl,
    /// Apache Parquet
    Parquet,
}

/// Flags of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The dataset's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Where train, validation and (if asked for) holdout go, with dataset.json beside them
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,
    /// Kind of files: jsonl or parquet
    #[arg(long, value_enum, value_name = "KIND", default_value_t = FileFormat::Jsonl, hide_possible_values = true)]
    pub format: FileFormat,
    /// Labels: majority, soft or model; the dataset's own rule if absent
    #[arg(long, value_enum, value_name = "RULE", hide_possible_values = true)]
    pub labels: Option<Labels>,
    /// Write `margin`, the mean strength of the judgements (0 to 3), which `train reward` then asks for
    #[arg(long)]
    pub margins: bool,
    /// Write `weight`, the number of judgements
    #[arg(long)]
    pub weights: bool,
    /// Write the holdout part too: it is for the last word, and no longer one once it was trained on
    #[arg(long)]
    pub with_holdout: bool,
    /// Write the prompts of the training part too, each once, as prompts.jsonl: what PPO answers
    #[arg(long)]
    pub with_prompts: bool,
}

impl ExportArgs {
    /// The parts to write.
    pub fn parts(&self) -> &'static [Part] {
        if self.with_holdout { &Part::ALL } else { &[Part::Train, Part::Validation] }
    }
}

/// The ledger.
#[derive(Debug, Subcommand)]
pub enum LedgerVerb {
    /// Print the events, oldest first
    #[command(after_long_help = "\
Examples:
  polity ledger log
  polity ledger log --json | jq 'select(.kind == \"freeze\").body'")]
    Log {
        /// Which project.
        #[command(flatten)]
        project: InProject,
    },
    /// Recompute the chain and everything it vouches for; names the first bad record and exits with 1
    #[command(after_long_help = "\
Examples:
  polity ledger verify
  polity ledger verify --head $(cat head-of-last-week)")]
    Verify {
        /// Which project.
        #[command(flatten)]
        project: InProject,
        /// A hash that an event must have, kept elsewhere: finds a ledger whose end was cut off
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
    },
}
