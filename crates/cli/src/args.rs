//! The verbs, their flags and their help.
//!
//! A verb is a path (`train sft`), a doc comment is its help, and every `--help` ends with examples. Settings that a verb
//! takes with `--set` are listed by `--help` from the same tables that read them; the lists are made only when help
//! is asked for, so that a plain start does no work for them.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint};
use polity_train::config::{Config, KeyInfo};
use polity_train::settings::{DpoConfig, PpoConfig, Precision, RewardConfig, SftConfig};

use crate::error::CommandResult;
use crate::eval_args::EvalArgs;
use crate::loop_args::LoopArgs;
use crate::project_args::{
    ExportArgs, FreezeArgs, ImportVerb, InProject, InitArgs, LedgerVerb, PanelVerb, SampleArgs, ServeArgs,
};
use crate::release_args::{
    AccountVerb, ApproveArgs, ChannelArgs, DiffArgs, LineageArgs, ReleaseArgs, ReleasesArgs, RollbackArgs,
};
use crate::settings::{self, Uses};
use crate::ui::ColorChoice;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

/// Columns that help is wrapped to on a wide terminal.
const HELP_COLUMNS: usize = 100;

/// From human preferences to an aligned language model: supervised tuning, reward models, PPO and DPO.
///
/// Models are directories as Hugging Face Transformers saves them; data is JSONL, JSON or Parquet with TRL's keys.
/// Data goes to stdout and talk to stderr.
#[derive(Debug, Parser)]
#[command(name = "polity", version, styles = STYLES, max_term_width = HELP_COLUMNS, arg_required_else_help = true)]
#[command(after_long_help = "\
Exit codes: 0 done, 1 failed, 2 bad input or usage, 3 gate failed, 4 gate inconclusive, 130 interrupted.

Examples:
  polity demo                                    see the whole loop, on this machine, in minutes
  polity train sft --model base --data rows.jsonl --out runs/sft
  polity generate --model runs/sft/model --input prompts.jsonl
  polity doctor                                  check that this machine computes right")]
pub struct Cli {
    /// For every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags that every verb takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Machine-readable output: JSON on stdout, errors as a line of JSON on stderr
    #[arg(long, global = true)]
    pub json: bool,
    /// Threads to compute with; 0 is one for each core. Does not change results
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// No progress and no notes; warnings and errors stay
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// When to use colour: auto, always or never; NO_COLOR counts as never under auto
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = ColorChoice::Auto)]
    #[arg(hide_possible_values = true)]
    pub color: ColorChoice,
}

impl Global {
    /// Threads to compute with.
    pub fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the whole loop on an embedded tiny world: minutes on a laptop CPU
    #[command(long_about = "\
Run the whole loop on an embedded tiny world with a known truth: a base model is made and tuned on demonstrations, \
a simulated panel votes on its answers, a reward model learns from the votes, and PPO and DPO optimise the policy. \
The results are compared by the gold utility, which no training step sees.

Writes DIR/report.html and DIR/summary.json. Takes minutes on two cores and no downloads.")]
    #[command(after_long_help = "\
Examples:
  polity demo
  polity demo --dir /tmp/demo --seed 7
  polity demo --over-optimise          no KL leash: proxy up, gold down, alarms")]
    Demo(DemoArgs),

    /// Take a project from prompts to a release by one file, as far as it goes
    #[command(long_about = "\
Take a project from prompts to a release by one file: sample, panel, freeze, reward model, acceptance, PPO or DPO, evaluation, gate, \
release. A step that is done is skipped; a changed setting makes its step and those behind it again; one that was killed goes on. \
Where people must vote or approve it says who and what, and stops with exit code 0: the same command goes on.

Where the gate says no (exit 3) or cannot say (exit 4), loop/NAME/refine.md in the project says what to refine: categories with low \
agreement, domains where the reward model is near chance, rubric axes in conflict, prompts to collect. docs/loop.md has the format.")]
    #[command(after_long_help = "\
Examples:
  polity loop helpful.toml
  polity loop helpful.toml --status
  polity loop helpful.toml --until freeze
  POLITY_TOKEN=$(polity account token ben) polity loop helpful.toml")]
    Loop(LoopArgs),

    /// Make a project: a directory with a store of prompts, votes and datasets
    #[command(long_about = "\
Make a project: DIR/polity.toml, a store (one SQLite file, or a PostgreSQL database), and folders for runs and datasets. \
The split of prompts into training, validation and holdout is fixed here for ever.")]
    #[command(after_long_help = "\
Examples:
  polity init helpful
  polity init helpful --store postgres://polity@db/helpful
  polity init helpful --holdout 0.2 --overlap 5")]
    Init(InitArgs),

    /// Bring prompts, pairs or votes into a project
    #[command(subcommand, arg_required_else_help = true)]
    #[command(long_about = "\
Bring prompts, pairs or votes into a project: all of a file or nothing. Reads TRL rows, Anthropic HH transcripts, OpenAssistant trees, \
exports of Argilla and Label Studio, CSV, and the vote files of PandaLM and MT-Bench. Every row that cannot be read is \
named with its line.")]
    #[command(after_long_help = "\
Examples:
  polity import prompts prompts.jsonl --dry-run
  polity import pairs candidates.csv
  polity import votes pandalm.json")]
    Import(ImportVerb),

    /// Let models answer a project's prompts, and make comparisons of the answers
    #[command(after_long_help = "\
Examples:
  polity sample --model runs/sft/model --per-prompt 4 --pairs 3
  polity sample --model old --model new --prompts new-prompts.jsonl \\
      --set temperature=0.8 --set max_new_tokens=128")]
    Sample(SampleArgs),

    /// A panel without people
    #[command(subcommand, arg_required_else_help = true)]
    Panel(PanelVerb),

    /// Serve a project's pages and API, and models behind an OpenAI-compatible one
    #[command(long_about = "\
Serve a project: pages for annotators, reviewers and administrators, and a JSON API. The first start prints a link that makes the \
administrator's account. It speaks plain HTTP: beyond this machine, put a proxy that speaks TLS before it and say --behind-proxy. \
docs/annotation.md has the whole way from here to a panel.

With --channel or --model, models answer under /v1 as OpenAI's chat and completions API does: streams, n, logprobs, stop, seed. A channel \
serves what is released to it, a share of the users its canary, and takes a canary back that users like less (docs/serving.md). Keys are \
the accounts' API tokens. --model works without a project too; the key is then what POLITY_API_KEY says, or none is needed on this machine.")]
    #[command(after_long_help = "\
Examples:
  polity serve
  polity serve --project helpful --listen 0.0.0.0:8000 --behind-proxy
  polity serve --channel production
  polity serve --model runs/sft/model
  curl http://127.0.0.1:8000/v1/chat/completions -d '{\"model\": \"model\",
      \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}'")]
    Serve(ServeArgs),

    /// Make an immutable dataset of the votes: train, validation and holdout parts
    #[command(after_long_help = "\
Examples:
  polity freeze v1
  polity freeze v1-hard --labels majority --votes-min 3")]
    Freeze(FreezeArgs),

    /// Write a dataset as rows that trainers read
    #[command(after_long_help = "\
Examples:
  polity export v1 --out datasets/v1
  polity export v1 --out datasets/v1 --format parquet --labels majority
  polity train reward --model base --data datasets/v1/train.jsonl \\
      --eval-data datasets/v1/validation.jsonl --out runs/reward")]
    Export(ExportArgs),

    /// Print or verify the chain of events behind the data
    #[command(subcommand, arg_required_else_help = true)]
    Ledger(LedgerVerb),

    /// Train a model: sft, reward, dpo or ppo
    #[command(subcommand, arg_required_else_help = true)]
    Train(TrainVerb),

    /// Answer prompts: JSONL in, JSONL out
    #[command(long_about = "\
Answer prompts. A row in has `prompt` (text), `messages` (a conversation, rendered by the chat template) or `ids`; a \
row out has `index`, `sample`, `text`, `ids`, `logprobs` and `finish_reason` (stop or length), in the order of the input.

All rows are read and checked first. The same seed, row and sample give the same response in any batch and with any \
number of threads.")]
    #[command(after_long_help = "\
Examples:
  polity generate --model M --input prompts.jsonl --output responses.jsonl
  polity generate --model M --input prompts.jsonl --set n=4 --set top_p=0.9
  polity generate --model M --input prompts.jsonl \\
      --set 'stop=[\"\\n\\nHuman:\"]' | jq -r .text
  echo '{\"prompt\": \"Once upon a time\"}' |
      polity generate --model M --input - --set temperature=0")]
    Generate(GenerateArgs),

    /// Log-prob and entropy of each token of given completions
    #[command(long_about = "\
Log-prob and entropy (nats) of each token of given completions. A row in has `prompt` and `completion`, `messages` \
(the last one is the completion), `text`, or `prompt_ids` and `completion_ids`; a row out has `index`, `ids` (the \
completion's), `logprobs` and `entropy`.

A plain-text completion gets the tokenizer's EOS appended if it lacks it; ids are taken as they are.")]
    #[command(after_long_help = "\
Examples:
  polity logprobs --model M --input rows.jsonl --output logprobs.jsonl
  echo '{\"prompt\": \"Two and two is\", \"completion\": \" four.\"}' |
      polity logprobs --model M --input -
  echo '{\"prompt_ids\": [1], \"completion_ids\": [403, 407]}' |
      polity logprobs --model M --input -")]
    Logprobs(MeasureArgs),

    /// Rewards of given completions
    #[command(long_about = "\
Rewards of given completions by a reward model, read at the last token. Rows are as for `polity logprobs`; a row out \
has `index` and `score`.")]
    #[command(after_long_help = "\
Examples:
  polity score --model runs/reward/model --input rows.jsonl
  polity score --model runs/reward/model --input rows.jsonl |
      jq -s 'map(.score) | add / length'")]
    Score(MeasureArgs),

    /// Talk with a model
    #[command(long_about = "\
Talk with a model, turn by turn, through its chat template; a model without one continues plain text. Answers are \
streamed to stdout.

/reset begins a new conversation, /exit leaves, Ctrl-C stops an answer. Lines may also come through a pipe: one turn a \
line, one answer each; with --json an answer is a line of JSON.")]
    #[command(after_long_help = "\
Examples:
  polity chat runs/ppo/model
  polity chat runs/ppo/model --system 'Be brief.' --set temperature=0.7
  echo 'What is the capital of France?' | polity chat runs/ppo/model --json")]
    Chat(ChatArgs),

    /// How far annotators agree, by whom and on what, from a file of votes
    #[command(long_about = "\
How far annotators agree: raw agreement, Cohen, Fleiss, Gwet and Krippendorff with intervals, each annotator's \
reliability, side bias, speed and drift, agreement by category and rubric version, and how many votes are needed. What \
the votes do not define is said to be undefined, with the reason.

The votes are the project's that stand, people's only unless told otherwise, or a file's. There, a vote is a row with `prompt`, `left`, `right` (ids of responses), `annotator` and `answer` (left, right, tie, both_bad, \
skip, flag), and optionally `grade` (1 to 3), `category`, `rubric`, `time_ms`, `duration_ms`, `known`. MT-Bench's and \
PandaLM's rows are read as they are. docs/agreement.md has every figure's formula.")]
    #[command(after_long_help = "\
Examples:
  polity agreement
  polity agreement --project helpful --machine-votes
  polity agreement --data votes.jsonl
  polity agreement --data votes.csv --labels soft.jsonl
  polity agreement --data votes.jsonl --json | jq '.figures[].estimate'")]
    Agreement(AgreementArgs),

    /// Measure a model on suites: files of measures come out, for `polity gate`
    #[command(long_about = "\
Measure a model on suites (TOML beside a table of rows): answers, refusals, perplexity, right answers, distance from a reference, and who \
prefers it to a baseline: people, a reward model, or a judge behind an endpoint. What was measured before is found again.

Every measure comes with its interval, by category, and with the value of each prompt, in files that `polity gate` reads. Rows that \
the model was trained on, as far as its run says, are left out. docs/evaluation.md has every measure.")]
    #[command(after_long_help = "\
Examples:
  polity eval runs/reward/model --suite pairs.toml      may PPO use this one?
  polity eval runs/ppo/model --suite xstest.toml --suite gsm8k.toml
  polity eval runs/ppo/model --baseline runs/sft/model --suite prompts.toml \\
      --reward-model runs/reward/model
  polity sample --model runs/sft/model --model runs/ppo/model --part holdout \\
      --per-prompt 1
  polity eval runs/ppo/model --baseline runs/sft/model --people")]
    Eval(Box<EvalArgs>),

    /// Whether a model may be released: a policy and measures in, a verdict out
    #[command(long_about = "\
Whether a model may be released. A policy (TOML) says what must be shown: a measure, what it is compared with, how much \
worse still passes, how sure that must be. Measures are files that evaluations leave, each with the values of every prompt, \
so that two models are compared prompt by prompt. Inside a project the verdict is recorded, for `polity release`.

Exits with 0 (pass), 3 (fail) or 4 (inconclusive: the data do not say, and it does not ship). docs/gate.md has the formats and \
every method.")]
    #[command(after_long_help = "\
Examples:
  polity gate runs/ppo/model --policy policy.toml --measures measures/ \\
      --baseline runs/sft/model
  polity gate 3f9a1c --measures new.json --measures old.json \\
      --baseline 77ab02 --json | jq .verdict
  polity gate --policy policy.toml --simulate --prompts 400
  polity gate --show-policy > policy.toml")]
    Gate(GateArgs),

    /// Release a model to a channel: needs a passing verdict and the approvals that its policy asks for
    #[command(long_about = "\
Release a model to a channel. It needs the newest verdict on this very model, which must pass and not have expired, and as many \
approvals as the verdict's policy asks for, by different people who neither trained the model nor release it (POLITY_TOKEN says \
who that is). Every link behind it is checked, the model is copied to the project's releases/ with a model card made from the \
record, and the release is an event in the ledger. Whatever is refused is one too.

Exits with 3 or 4 if the gate's verdict is fail or inconclusive, or there is none that counts. docs/release.md has the whole way.")]
    #[command(after_long_help = "\
Examples:
  polity release runs/ppo/model --channel production
  polity release runs/ppo/model --channel production --canary-share 0.05
  polity release production-2 --channel production     the canary, to everyone")]
    Release(ReleaseArgs),

    /// Approve the release of a model to a channel, as the person whose token is in POLITY_TOKEN
    #[command(after_long_help = "\
Examples:
  polity approve runs/ppo/model --channel production
  polity approve 3f9a1c --channel production --verdict 77ab02")]
    Approve(ApproveArgs),

    /// Go back to a channel's last good release; its evidence is checked again
    #[command(long_about = "\
Go back to a channel's last good release: the newest before the current one that was not given up before, whose directory has the bytes \
that were released and whose evidence holds. If a canary is out, it ends, and everyone gets what the others had. What was skipped is \
said, with the reason, and recorded.")]
    #[command(after_long_help = "\
Examples:
  polity rollback --channel production
  polity rollback --channel production --to production-3")]
    Rollback(RollbackArgs),

    /// What is released where
    #[command(after_long_help = "\
Examples:
  polity releases
  polity releases --json | jq '.[].stable.dir'")]
    Releases(ReleasesArgs),

    /// Ask for a policy on a channel: no verdict under another one counts there
    #[command(after_long_help = "\
Examples:
  polity channel production --policy policy.toml")]
    Channel(ChannelArgs),

    /// The chain from votes to a release or a model, with every hash checked
    #[command(long_about = "\
The chain from votes to a release or a model: dataset, runs, reward model, evaluations, verdict, approvals, release. Each link is \
checked against its hash; a verdict is judged again. Exits with 1 if one is not what it was, and names it.")]
    #[command(after_long_help = "\
Examples:
  polity lineage production-1
  polity lineage runs/ppo/model --svg lineage.svg
  polity lineage production-1 --html lineage.html --json | jq .verified")]
    Lineage(LineageArgs),

    /// Two releases or models side by side: data, settings, measures, responses
    #[command(after_long_help = "\
Examples:
  polity diff production-1 production-2
  polity diff production-1 runs/ppo/model --prompts prompts.jsonl
  polity diff production-1 production-2 --json | jq .settings")]
    Diff(DiffArgs),

    /// People who act from the command line: make accounts and tokens
    #[command(subcommand, arg_required_else_help = true)]
    Account(AccountVerb),

    /// Measure how fast this machine trains or generates; prints JSON
    #[command(subcommand, arg_required_else_help = true)]
    Bench(BenchVerb),

    /// Check that this machine computes right, and show what hardware is used
    #[command(long_about = "\
Check that this build computes right on this machine: tiny models against numbers stored from PyTorch, cached decoding \
against full passes, thread counts and vector widths against each other. Shows what hardware is used. Takes less than \
a second; exits with 1 if a check fails.")]
    #[command(after_long_help = "\
Examples:
  polity doctor
  polity doctor --json | jq .hardware")]
    Doctor,

    /// Print a completion script for a shell
    #[command(after_long_help = "\
Examples:
  polity completions bash > ~/.local/share/bash-completion/completions/polity
  polity completions zsh > ~/.zfunc/_polity
  polity completions fish > ~/.config/fish/completions/polity.fish")]
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },

    /// For the tests of the command line itself
    #[command(subcommand, hide = true)]
    Debug(DebugVerb),
}

/// For the tests of the command line itself.
#[derive(Debug, Subcommand)]
pub enum DebugVerb {
    /// Panic
    Panic,
}

/// Flags of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Where the models, the runs and the report go
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = "polity-demo")]
    pub dir: PathBuf,
    /// Seed of everything random
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Turn the KL leash off and watch the policy over-optimise the reward model
    #[arg(long)]
    pub over_optimise: bool,
    /// A setting of one stage (base, sft, reward, ppo or dpo); repeat for more
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE", value_parser = parse_set)]
    pub sets: Vec<(String, String)>,
}

/// Flags of `agreement`.
#[derive(Debug, Args)]
pub struct AgreementArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// Votes from a file in place of a project: JSONL, JSON, Parquet or CSV; - is stdin
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["project", "machine_votes"])]
    pub data: Option<PathBuf>,
    /// Count the votes of machines and simulated annotators too
    #[arg(long)]
    pub machine_votes: bool,
    /// Where to write what the votes say of each comparison: soft labels, as JSONL
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub labels: Option<PathBuf>,
    /// Coverage of the intervals
    #[arg(long, value_name = "SHARE", default_value_t = 0.95, value_parser = share)]
    pub confidence: f64,
    /// Resamples of each bootstrap
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = at_least_one)]
    pub resamples: usize,
    /// Seed of the resamples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Accuracy on calibration comparisons that annotators must keep
    #[arg(long, value_name = "SHARE", default_value_t = 0.7, value_parser = share)]
    pub calibration_floor: f64,
}

/// Flags of `gate`.
#[derive(Debug, Args)]
pub struct GateArgs {
    /// Which project.
    #[command(flatten)]
    pub project: InProject,
    /// The candidate: a model directory, or the beginning of its hash
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath, required_unless_present_any = ["simulate", "show_policy"])]
    pub model: Option<String>,
    /// What must be shown, as TOML; or `default` or `reward-model`, which ship. If left out: `reward-model` for a reward model's measures, else `default`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub policy: Option<PathBuf>,
    /// A file of measures, or a directory with some; repeat for more
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    #[arg(required_unless_present_any = ["simulate", "show_policy"])]
    pub measures: Vec<PathBuf>,
    /// The model it started from: a directory, or the beginning of its hash
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub baseline: Option<String>,
    /// The model that is released now
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub last_release: Option<String>,
    /// Show how likely the policy is to pass what; measures, if given, say how values spread
    #[arg(long)]
    pub simulate: bool,
    /// Print the policy (`default`, unless --policy names another), with the reason for each number
    #[arg(long, conflicts_with = "simulate")]
    pub show_policy: bool,
    /// Prompts to simulate for each criterion; its n_min if left out
    #[arg(long, value_name = "N", requires = "simulate", value_parser = prompts)]
    pub prompts: Option<u64>,
    /// Share of ties to simulate
    #[arg(long, value_name = "SHARE", requires = "simulate", default_value_t = 0.2, value_parser = share)]
    pub ties: f64,
    /// Share of prompts on which two models differ, to simulate
    #[arg(long, value_name = "SHARE", requires = "simulate", default_value_t = 0.2, value_parser = share)]
    pub discordance: f64,
    /// Simulated candidates at each point
    #[arg(long, value_name = "N", requires = "simulate", default_value_t = 1000, value_parser = at_least_one)]
    pub simulations: usize,
    /// Seed of the simulation
    #[arg(long, value_name = "N", requires = "simulate", default_value_t = 0)]
    pub seed: u64,
}

/// Flags of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The language model: a directory
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// Rows: JSONL, JSON or Parquet, also gzip'd; - is stdin
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub input: PathBuf,
    /// Where the rows go, whole or not at all; stdout if absent or -
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// A setting; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_set)]
    pub sets: Vec<(String, String)>,
}

/// Flags of `logprobs` and `score`.
#[derive(Debug, Args)]
pub struct MeasureArgs {
    /// The model: a directory
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// Rows: JSONL, JSON or Parquet, also gzip'd; - is stdin
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub input: PathBuf,
    /// Where the rows go, whole or not at all; stdout if absent or -
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// A setting; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_set)]
    pub sets: Vec<(String, String)>,
}

/// Flags of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// The language model: a directory
    #[arg(value_name = "MODEL", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// What the system says before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// A setting; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_set)]
    pub sets: Vec<(String, String)>,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchVerb {
    /// Steps of supervised fine-tuning: forward, backward, clipping, AdamW
    #[command(after_long_help = "\
Examples:
  polity bench train
  polity bench train --shape smol135m --steps 3
  polity bench train --model M --rows 4 --length 128 | jq .share_of_matmul")]
    Train(BenchTrainArgs),
    /// Generation, for several numbers of responses decoded together
    #[command(after_long_help = "\
Examples:
  polity bench generate
  polity bench generate --shape smol135m --batches 1,8 --new-tokens 64
  polity bench generate --model M |
      jq '.batches[] | [.responses, .tokens_per_s]'")]
    Generate(BenchGenerateArgs),
    /// Training steps over a range of row lengths, batch sizes, threads or model sizes, with a plot
    #[command(after_long_help = "\
Examples:
  polity bench sweep --over length --plot lengths.svg
  polity bench sweep --over rows --shape smol135m --values 1,2,4,8
  polity bench sweep --over threads | jq '.points[] | [.value, .tokens_per_s]'
  polity bench sweep --over shape --precisions f32")]
    Sweep(BenchSweepArgs),
}

/// Flags of `bench sweep`.
#[derive(Debug, Args)]
pub struct BenchSweepArgs {
    /// What is varied
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Over::Length)]
    pub over: Over,
    /// Its values; as usual for each if left out. Not for shapes, of which all are measured
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = at_least_one)]
    pub values: Vec<usize>,
    /// A shape with random weights
    #[arg(long, value_enum, value_name = "NAME", default_value_t = NamedShape::Tiny)]
    pub shape: NamedShape,
    /// One line of the plot for each; f32 and, where the processor has it, bf16 if left out
    #[arg(long, value_name = "NAME,NAME", value_delimiter = ',', value_parser = precision)]
    pub precisions: Vec<Precision>,
    /// Tokens of a step where lengths are varied: longer rows are fewer
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least_one)]
    pub tokens: usize,
    /// Rows of a step otherwise
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub rows: usize,
    /// Tokens of a row otherwise
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_two)]
    pub length: usize,
    /// Steps that are timed, after one that is not
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub steps: usize,
    /// Where to draw tokens a second, as SVG
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub plot: Option<PathBuf>,
}

/// What a sweep varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Over {
    /// Tokens of a row: 128 to 4096
    Length,
    /// Rows of a step: 1 to 32
    Rows,
    /// Threads: 1 to the cores
    Threads,
    /// Model sizes: every named shape
    Shape,
}

/// Which model to measure.
#[derive(Debug, Args)]
pub struct BenchModel {
    /// A model directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "shape")]
    pub model: Option<PathBuf>,
    /// A shape with random weights
    #[arg(long, value_enum, value_name = "NAME", default_value_t = NamedShape::Tiny)]
    pub shape: NamedShape,
    /// What the matrix products are computed in: auto, f32 or bf16
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = precision)]
    pub precision: Precision,
}

fn precision(name: &str) -> Result<Precision, String> {
    Precision::parse(name).ok_or_else(|| "expected auto, f32 or bf16".into())
}

/// A shape to measure without a model on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NamedShape {
    /// 6.5M parameters: 6 layers, 256 wide, vocabulary 8192
    Tiny,
    /// 134.5M parameters, as SmolLM2-135M: 30 layers, 576 wide, vocabulary 49152
    Smol135m,
}

/// Flags of `bench train`.
#[derive(Debug, Args)]
pub struct BenchTrainArgs {
    /// Which model.
    #[command(flatten)]
    pub which: BenchModel,
    /// Rows of a step
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one)]
    pub rows: usize,
    /// Tokens of a row
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub length: usize,
    /// Steps that are timed, after one that is not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    pub steps: usize,
    /// Compute activations again in the backward pass instead of keeping them
    #[arg(long)]
    pub recompute: bool,
}

/// Flags of `bench generate`.
#[derive(Debug, Args)]
pub struct BenchGenerateArgs {
    /// Which model.
    #[command(flatten)]
    pub which: BenchModel,
    /// Numbers of responses decoded together
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', default_value = "1,8,32", value_parser = at_least_one)]
    pub batches: Vec<usize>,
    /// Tokens of a prompt
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub prompt_length: usize,
    /// Tokens of a response
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_two)]
    pub new_tokens: usize,
    /// How often each is timed
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub repeats: usize,
}

/// A trainer.
#[derive(Debug, Subcommand)]
pub enum TrainVerb {
    /// Supervised fine-tuning on completions, conversations or text
    #[command(after_long_help = "\
Examples:
  polity train sft --model base --data rows.jsonl --out runs/sft
  polity train sft --model base --data rows.parquet --out runs/sft \\
      --set learning_rate=1e-4 --set num_train_epochs=1")]
    Sft(TrainArgs),

    /// A reward model from comparisons (Bradley-Terry)
    #[command(after_long_help = "\
Examples:
  polity train reward --model runs/sft/model --data pairs.jsonl \\
      --out runs/reward
  polity train reward --model runs/sft/model --data pairs.jsonl \\
      --eval-data held_out.jsonl --out runs/reward \\
      --set center_rewards_coefficient=0.01")]
    Reward(TrainArgs),

    /// Direct preference optimisation and its relatives
    #[command(after_long_help = "\
Examples:
  polity train dpo --model runs/sft/model --data pairs.jsonl --out runs/dpo
  polity train dpo --model runs/sft/model --data pairs.jsonl --out runs/ipo \\
      --set loss_type=ipo --set beta=0.1")]
    Dpo(TrainArgs),

    /// Proximal policy optimisation against a reward model, under a KL leash
    #[command(override_usage = "\
polity train ppo [OPTIONS] --model <DIR> --reward-model <DIR>
                        --data <FILE> --out <DIR>")]
    #[command(after_long_help = "\
Examples:
  polity train ppo --model runs/sft/model --reward-model runs/reward/model \\
      --data prompts.jsonl --out runs/ppo
  polity train ppo --model runs/sft/model --reward-model runs/reward/model \\
      --data prompts.jsonl --out runs/ppo \\
      --set kl_coef=0.1 --set total_episodes=4096")]
    Ppo(PpoArgs),
}

impl TrainVerb {
    /// As typed.
    pub fn name(&self) -> &'static str {
        match self {
            TrainVerb::Sft(_) => "sft",
            TrainVerb::Reward(_) => "reward",
            TrainVerb::Dpo(_) => "dpo",
            TrainVerb::Ppo(_) => "ppo",
        }
    }

    /// What every trainer takes.
    pub fn args(&self) -> &TrainArgs {
        match self {
            TrainVerb::Sft(args) | TrainVerb::Reward(args) | TrainVerb::Dpo(args) => args,
            TrainVerb::Ppo(args) => &args.train,
        }
    }
}

/// Flags of every trainer.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The model to start from: a directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub model: PathBuf,
    /// Rows to train on: JSONL, JSON or Parquet, also gzip'd
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub data: PathBuf,
    /// Rows to evaluate on
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub eval_data: Option<PathBuf>,
    /// Where the run goes: settings, metrics, checkpoints, model and report
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: PathBuf,
    /// Settings, as TOML
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// A setting; repeat for more. Takes precedence over the file
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_set)]
    pub sets: Vec<(String, String)>,
    /// Go on where a stopped or killed run left off
    #[arg(long)]
    pub resume: bool,
}

/// Flags of PPO.
#[derive(Debug, Args)]
pub struct PpoArgs {
    /// What every trainer takes.
    #[command(flatten)]
    pub train: TrainArgs,
    /// The reward model: a directory with a scalar head
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub reward_model: PathBuf,
    /// Go on although the reward model failed its acceptance; the reason goes on record
    #[arg(long, value_name = "REASON", value_parser = NonEmptyStringValueParser::new())]
    pub override_acceptance: Option<String>,
}

/// Reads the arguments, or prints help, version or a usage error (exit 2) and ends.
pub fn parse() -> Cli {
    let words: Vec<_> = std::env::args_os().collect();
    let help = words.iter().any(|word| word == "--help" || word == "help");
    let command = command(help).color(color_of(&words));
    let matches = command.get_matches_from(words);
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The command; with the lists of settings in its help if they will be shown.
fn command(with_settings: bool) -> clap::Command {
    let command = Cli::command();
    if !with_settings {
        return command;
    }
    let command = [("generate", Uses::Generate), ("logprobs", Uses::Logprobs), ("score", Uses::Score)]
        .into_iter()
        .fold(command, |command, (verb, uses)| {
            command.mut_subcommand(verb, |verb| before_examples(verb, &settings::help(uses)))
        });
    command.mut_subcommand("train", |train| {
        train
            .mut_subcommand("sft", |stage| with_keys(stage, &SftConfig::keys()))
            .mut_subcommand("reward", |stage| with_keys(stage, &RewardConfig::keys()))
            .mut_subcommand("dpo", |stage| with_keys(stage, &DpoConfig::keys()))
            .mut_subcommand("ppo", |stage| with_keys(stage, &PpoConfig::keys()))
    })
}

/// Puts the list of settings before the examples.
fn with_keys(command: clap::Command, keys: &[KeyInfo]) -> clap::Command {
    let mut text = String::from("Settings (in the --config file, or with --set):\n");
    for key in keys {
        let _ = writeln!(text, "  {} = {}   [{}]", key.name, key.default, key.domain());
        let _ = writeln!(text, "      {}", key.doc);
    }
    before_examples(command, &text)
}

fn before_examples(command: clap::Command, text: &str) -> clap::Command {
    let examples = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    command.after_long_help(format!("{text}\n{examples}"))
}

/// Colour is decided before the arguments are parsed, since parsing may print.
fn color_of(words: &[std::ffi::OsString]) -> clap::ColorChoice {
    let mut words = words.iter().map(|word| word.to_string_lossy());
    let mut choice = None;
    while let Some(word) = words.next() {
        if word == "--color" {
            choice = words.next().map(|value| value.into_owned());
        } else if let Some(value) = word.strip_prefix("--color=") {
            choice = Some(value.to_owned());
        }
    }
    match choice.as_deref() {
        Some("always") => clap::ColorChoice::Always,
        Some("never") => clap::ColorChoice::Never,
        _ => clap::ColorChoice::Auto,
    }
}

/// `key=value`.
pub fn parse_set(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE, such as temperature=0.7".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|&x| x > 0.0 && x < 1.0)
        .ok_or_else(|| "expected a number between 0 and 1".into())
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    at_least(text, 1)
}

/// The first token is the prompt's work; decoding begins with the second.
fn at_least_two(text: &str) -> Result<usize, String> {
    at_least(text, 2)
}

/// Fewer have no spread.
fn prompts(text: &str) -> Result<u64, String> {
    at_least(text, 2).map(|n| n as u64)
}

fn at_least(text: &str, limit: usize) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n >= limit).ok_or_else(|| format!("expected an integer, at least {limit}"))
}

/// Prints a completion script.
pub fn completions(shell: clap_complete::Shell) -> CommandResult {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "polity", &mut script);
    crate::output::to_stdout(|out| io::Write::write_all(out, &script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_consistent() {
        command(true).debug_assert();
    }

    #[test]
    fn every_verb_has_help_with_examples() {
        fn check(command: &clap::Command) {
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                assert!(verb.get_about().is_some(), "{} has no help", verb.get_name());
                match verb.has_subcommands() {
                    true => check(verb),
                    false => {
                        let help = verb.get_after_long_help().map(ToString::to_string).unwrap_or_default();
                        assert!(help.contains("Examples:\n  polity "), "{} has no examples", verb.get_name());
                        let examples = &help[help.find("Examples:").expect("just found")..];
                        let long = examples.lines().find(|line| line.chars().count() > 80);
                        assert_eq!(long, None, "would be wrapped");
                    }
                }
            }
        }
        check(&command(true));
    }

    #[test]
    fn settings_split_at_the_first_equals_sign() {
        assert_eq!(parse_set("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse_set(" a = b"), Ok(("a".into(), " b".into())));
        assert!(parse_set("a").is_err());
        assert!(parse_set("=a").is_err());
    }

    #[test]
    fn colour_is_found_in_either_spelling() {
        let color = |words: &[&str]| color_of(&words.iter().map(Into::into).collect::<Vec<_>>());
        assert_eq!(color(&["polity", "--color", "never"]), clap::ColorChoice::Never);
        assert_eq!(color(&["polity", "x", "--color=always"]), clap::ColorChoice::Always);
        assert_eq!(color(&["polity"]), clap::ColorChoice::Auto);
    }
}
