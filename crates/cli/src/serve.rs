//! `polity serve`: the pages of a project, and models behind an API.
//!
//! Gives the servers what they may not take themselves: the project's store, models, the clock, randomness, a place for a log, and Ctrl-C.
//!
//! Not here: pages and rules (`polity-web`), the API (`polity-serve`), loading (`serving`).

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use polity_serve::Server;
use polity_serve::monitor::Policy;
use polity_store::{NOBODY, Role, Store};
use polity_train::metrics::Stage;
use polity_train::report;
use polity_web::{App, Boards, Options, WebError};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::args::Global;
use crate::clock::unix_ms;
use crate::error::{CommandError, CommandResult};
use crate::lineage_view;
use crate::output::to_stdout;
use crate::project::{self, Project};
use crate::project_args::ServeArgs;
use crate::serving::{self, Followed, KEY_VARIABLE, Keys, Loader, World};
use crate::ui::Ui;

/// How long the first administrator's invite is good.
const FIRST_INVITE_MS: i64 = 24 * 3600 * 1000;

/// Runs the verb.
pub fn run(args: &ServeArgs, global: &Global, ui: &Ui) -> CommandResult {
    let policy = serving::policy(args)?;
    let loader = Loader::new(args, global);
    match Project::open_if_any(&args.project)? {
        Some(project) => in_project(&project, args, &loader, policy, global, ui),
        None if args.models.is_empty() || !args.channels.is_empty() => {
            Project::open(&args.project).map(|_| ())
        }
        None => alone(args, &loader, policy, global, ui),
    }
}

fn in_project(
    project: &Project,
    args: &ServeArgs,
    loader: &Loader,
    policy: Policy,
    global: &Global,
    ui: &Ui,
) -> CommandResult {
    let options = Options {
        clock: Arc::new(unix_ms),
        seed: project::seed()?,
        behind_proxy: args.behind_proxy,
        log: Arc::new(serving::log),
        boards: boards(project)?,
    };
    let store = project.store().clone();
    let stopped = stop_signal()?;
    project.drive(async {
        let mut channels = serving::plain_models(args, loader, &policy, ui)?;
        let mut followed = Vec::new();
        for name in &args.channels {
            let channel = Followed::new(loader, &store, project.dir(), name);
            channels.push(channel.open(policy.clone(), ui).await?);
            followed.push(channel);
        }
        serving::check_names(&channels)?;
        let server = Server::new(Arc::new(World::new(Keys::Project(store.clone()))?), channels);
        for channel in followed {
            tokio::spawn(channel.follow(server.clone()));
        }
        let name = store.project().await?.name;
        let (listener, address) = listen(args).await?;
        let invite = first_invite(&store).await?.map(|secret| format!("{address}/invite/{secret}"));
        match global.json {
            // One line, since whoever reads it waits for it while the server runs.
            true => to_stdout(|out| {
                writeln!(
                    out,
                    "{}",
                    json!({"address": address, "admin_invite": invite, "models": names(&server)})
                )
            })?,
            false => to_stdout(|out| {
                writeln!(out, "{name} is served at {address}")?;
                if let Some(link) = &invite {
                    writeln!(
                        out,
                        "The first administrator's account is made here, once, within a day:\n  {link}"
                    )?;
                }
                said_of_models(out, &address, &server)
            })?,
        }
        ui.note("Ctrl-C ends it; twice, at once");
        let app = App::new(store.clone(), options).await?;
        let stopping = stopping(stopped, server.clone(), args.grace);
        polity_web::serve(listener, app, polity_serve::router(server), stopping).await.map_err(|error| {
            match error {
                WebError::Store(error) => error.into(),
                other => CommandError::failed(other),
            }
        })
    })
}

/// What the dashboards show beside the store.
fn boards(project: &Project) -> CommandResult<Boards> {
    let dir = project.dir().canonicalize().map_err(CommandError::failed)?;
    let of = dir.clone();
    Ok(Boards {
        stages: Stage::ALL.map(report::board).into(),
        lineage: Some(Arc::new(move |release| {
            lineage_view::drawing(&of, release).map_err(|error| error.to_string())
        })),
        dir: Some(dir),
    })
}

/// Models without a project.
fn alone(args: &ServeArgs, loader: &Loader, policy: Policy, global: &Global, ui: &Ui) -> CommandResult {
    let key = std::env::var(KEY_VARIABLE).ok().filter(|key| !key.trim().is_empty());
    let keys = match key {
        Some(key) => Keys::Key(key.trim().to_owned()),
        None if args.listen.ip().is_loopback() => Keys::Open,
        None => {
            return Err(CommandError::bad_input(format!("{} is not this machine alone, and no key is set", args.listen))
                .hint(format!("put the key that clients must send into {KEY_VARIABLE}, or serve from a project, whose tokens are keys")));
        }
    };
    let channels = serving::plain_models(args, loader, &policy, ui)?;
    serving::check_names(&channels)?;
    let server = Server::new(Arc::new(World::new(keys)?), channels);
    let stopped = stop_signal()?;
    project::runtime()?.block_on(async {
        let (listener, address) = listen(args).await?;
        match global.json {
            true => {
                to_stdout(|out| writeln!(out, "{}", json!({"address": address, "models": names(&server)})))?
            }
            false => to_stdout(|out| said_of_models(out, &address, &server))?,
        }
        ui.note("Ctrl-C ends it; twice, at once");
        let stopping = stopping(stopped, server.clone(), args.grace);
        polity_serve::serve(listener, server, stopping).await.map_err(CommandError::failed)
    })
}

fn names(server: &Server) -> Vec<&str> {
    server.channels().iter().map(|channel| channel.name()).collect()
}

fn said_of_models(out: &mut dyn Write, address: &str, server: &Server) -> std::io::Result<()> {
    if server.channels().is_empty() {
        return Ok(());
    }
    writeln!(out, "{address}/v1 answers as {}", names(server).join(", "))
}

async fn listen(args: &ServeArgs) -> CommandResult<(TcpListener, String)> {
    let listener = TcpListener::bind(args.listen)
        .await
        .map_err(|error| CommandError::bad_input(format!("cannot listen on {}: {error}", args.listen)))?;
    let address = format!("http://{}", listener.local_addr().map_err(CommandError::failed)?);
    Ok((listener, address))
}

/// Is told of the first Ctrl-C; the second ends the process.
fn stop_signal() -> CommandResult<oneshot::Receiver<()>> {
    let (stop, stopped) = oneshot::channel();
    let stop = Mutex::new(Some(stop));
    ctrlc::set_handler(move || {
        let stop = stop.lock().ok().and_then(|mut stop| stop.take());
        match stop {
            Some(stop) => drop(stop.send(())),
            None => std::process::exit(130),
        }
    })
    .map_err(CommandError::failed)?;
    Ok(stopped)
}

/// Done when the server is to stop: new requests for answers are refused from then on, and running ones are cut off after the grace.
async fn stopping(stopped: oneshot::Receiver<()>, server: Server, grace_s: u64) {
    let _ = stopped.await;
    server.close();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(grace_s)).await;
        if server.open() > 0 {
            serving::log(&format!("{} answers are cut off after {grace_s} s", server.open()));
        }
        server.abort();
    });
}

/// An invite for an administrator, if there is none yet who could make one.
async fn first_invite(store: &Store) -> CommandResult<Option<String>> {
    let accounts = store.accounts().await?;
    if accounts.iter().any(|account| account.roles.contains(&Role::Admin) && account.disabled_ms.is_none()) {
        return Ok(None);
    }
    let now_ms = unix_ms();
    let roles = [Role::Admin].into();
    Ok(Some(store.add_invite(roles, "first administrator", NOBODY, now_ms + FIRST_INVITE_MS, now_ms).await?))
}
