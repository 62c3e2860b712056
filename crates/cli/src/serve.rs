//! `polity serve`: the annotation server of a project.
//!
//! Gives the server what it may not take itself: the project's store, the clock, randomness, a place for its log, and Ctrl-C.
//!
//! Not here: pages and rules (`polity-web`).

use std::io::Write;
use std::sync::{Arc, Mutex};

use polity_store::{NOBODY, Role, Store};
use polity_web::{App, Options, WebError};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::args::Global;
use crate::clock::{now_utc, unix_ms};
use crate::error::{CommandError, CommandResult};
use crate::output::to_stdout;
use crate::project::{self, Project};
use crate::project_args::ServeArgs;
use crate::ui::Ui;

/// How long the first administrator's invite is good.
const FIRST_INVITE_MS: i64 = 24 * 3600 * 1000;

/// Runs the verb.
pub fn run(args: &ServeArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    let options = Options {
        clock: Arc::new(unix_ms),
        seed: project::seed()?,
        behind_proxy: args.behind_proxy,
        log: Arc::new(|line| {
            // Nobody is left to tell if this fails.
            let _ = writeln!(std::io::stderr(), "{} {line}", now_utc());
        }),
    };
    let store = project.store().clone();
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
    project.drive(async {
        let name = store.project().await?.name;
        let listener = TcpListener::bind(args.listen)
            .await
            .map_err(|error| CommandError::bad_input(format!("cannot listen on {}: {error}", args.listen)))?;
        let address = format!("http://{}", listener.local_addr().map_err(CommandError::failed)?);
        let invite = first_invite(&store).await?.map(|secret| format!("{address}/invite/{secret}"));
        match global.json {
            // One line, since whoever reads it waits for it while the server runs.
            true => {
                to_stdout(|out| writeln!(out, "{}", json!({"address": address, "admin_invite": invite})))?
            }
            false => to_stdout(|out| {
                writeln!(out, "{name} is served at {address}")?;
                match &invite {
                    Some(link) => writeln!(
                        out,
                        "The first administrator's account is made here, once, within a day:\n  {link}"
                    ),
                    None => Ok(()),
                }
            })?,
        }
        ui.note("Ctrl-C ends it; twice, at once");
        let app = App::new(store.clone(), options).await?;
        let stopping = async {
            let _ = stopped.await;
        };
        polity_web::serve(listener, app, stopping).await.map_err(|error| match error {
            WebError::Store(error) => error.into(),
            other => CommandError::failed(other),
        })
    })
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
