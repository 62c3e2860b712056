//! `polity`: the command line.
//!
//! Reading order: [`args`] (the verbs and their help), [`error`] (exit codes), [`ui`] and [`host`] (talk, Ctrl-C), then one
//! file a verb. A verb reads its files, calls the crate that does the work, and writes; data goes to stdout, talk to
//! stderr.
//!
//! Only this crate reads the environment, the clock and the terminal. Not here: arithmetic, formats, training.

mod acceptance;
mod account;
mod agreement;
mod args;
mod bench;
mod card;
mod chat;
mod clock;
mod demo;
mod diff;
mod doctor;
mod error;
mod eval;
mod eval_args;
mod export;
mod freeze;
mod gate;
mod generate;
mod golden;
mod host;
mod import;
mod init;
mod input;
mod judge;
mod ledger;
mod lineage;
mod lineage_view;
mod loop_args;
mod machine;
mod measure;
mod model;
mod output;
mod panel;
mod pipeline;
mod project;
mod project_args;
mod record;
mod release;
mod release_args;
mod sample;
mod serve;
mod serving;
mod settings;
mod train;
mod ui;
mod votes;

use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::process::ExitCode;

use args::{Cli, Verb};
use error::CommandResult;
use ui::Ui;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(report_bug));
    let cli = args::parse();
    let ui = Ui::new(cli.global.json, cli.global.quiet, cli.global.color);
    // A panic becomes an exit code here, after destructors have removed temporary files.
    match catch_unwind(AssertUnwindSafe(|| run(cli, &ui))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            ui.error(&error);
            ExitCode::from(error.kind.exit_code())
        }
        Err(_) => {
            ui.end_progress();
            ExitCode::from(error::Kind::Failed.exit_code())
        }
    }
}

fn run(cli: Cli, ui: &Ui) -> CommandResult {
    let global = cli.global;
    match cli.verb {
        Verb::Demo(args) => demo::run(&args, &global, ui),
        Verb::Init(args) => init::run(&args, &global, ui),
        Verb::Import(verb) => import::run(&verb, &global, ui),
        Verb::Sample(args) => sample::run(&args, &global, ui),
        Verb::Panel(verb) => panel::run(&verb, &global, ui),
        Verb::Freeze(args) => freeze::run_freeze(&args, &global, ui),
        Verb::Export(args) => freeze::run_export(&args, &global, ui),
        Verb::Loop(args) => pipeline::run(&args, &global, ui),
        Verb::Serve(args) => serve::run(&args, &global, ui),
        Verb::Ledger(verb) => ledger::run(&verb, &global, ui),
        Verb::Train(verb) => train::run(&verb, &global, ui),
        Verb::Generate(args) => generate::run(&args, &global, ui),
        Verb::Logprobs(args) => measure::logprobs(&args, &global, ui),
        Verb::Score(args) => measure::score(&args, &global, ui),
        Verb::Chat(args) => chat::run(&args, &global, ui),
        Verb::Agreement(args) => agreement::run(&args, ui),
        Verb::Eval(args) => eval::run(&args, &global, ui),
        Verb::Gate(args) => gate::run(&args, ui),
        Verb::Release(args) => release::run_release(&args, &global, ui),
        Verb::Approve(args) => release::approve(&args, &global, ui),
        Verb::Rollback(args) => release::rollback(&args, &global, ui),
        Verb::Releases(args) => release::releases(&args, &global),
        Verb::Channel(args) => release::channel(&args, &global, ui),
        Verb::Lineage(args) => lineage_view::run(&args, &global, ui),
        Verb::Diff(args) => diff::run(&args, &global, ui),
        Verb::Account(verb) => account::run(&verb, &global, ui),
        Verb::Bench(verb) => bench::run(&verb, &global, ui),
        Verb::Doctor => doctor::run(&global, ui),
        Verb::Completions { shell } => args::completions(shell),
        Verb::Debug(args::DebugVerb::Panic) => panic!("asked to"),
    }
}

/// Says that a panic is a bug and how to report it, without a backtrace.
fn report_bug(info: &PanicHookInfo<'_>) {
    use std::io::Write;
    let message = info.payload_as_str().unwrap_or("no message");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let version = env!("CARGO_PKG_VERSION");
    let command: Vec<String> =
        std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    // One write, so that messages of two threads do not mix; nobody is left to tell if it fails.
    let _ = std::io::stderr().write_all(
        format!(
            "\nerror: polity has a bug and stopped: {message}\n  at {place}, version {version}, command: polity {}\n  \
             hint: please report these lines to the maintainers, with the input if you can share it\n",
            command.join(" ")
        )
        .as_bytes(),
    );
}
