//! The server of a project: annotation and dashboards, as pages for people, a JSON API for programs, over a store.
//!
//! ```text
//! request -> route (who asks, rule, form secret, fields) -> a handler of one part of the site -> polity_store -> page or JSON
//! ```
//!
//! Reading order: `route` (the table and what every request goes through), `app`, then one module for each part: `session`, `account`,
//! `compare`, `rubric`, `calibration`, `review`, `panel` (with `figures` and `chart`), `people`, `project`, `boards`, `api`.
//!
//! **What holds.** A route cannot be without a rule, nor read a field that it does not declare: router and OpenAPI document come from one table. What
//! models and people wrote is escaped everywhere; markdown is shown without raw HTML, images or links to anything but the web. Pages
//! work without the script; the script and the style sheet are files of this server, and the content security policy allows nothing else. Nothing is
//! confirmed before the store has it on the disk.
//!
//! The caller gives clock, chance and log ([`Options`]). Not here: the store's rules (`polity-store`), statistics (`polity-stats`),
//! TLS (a proxy before it), anything that computes with a model.

#![forbid(unsafe_code)]

mod app;
mod cookie;
mod error;
mod field;
mod limit;
mod metrics;
mod page;
mod password;
mod route;
mod text;

mod assets;
mod session;

mod account;
mod calibration;
mod chart;
mod compare;
mod export;
mod figures;
mod panel;
mod people;
mod project;
mod review;
mod rubric;

mod boards;

mod api;

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;

pub use api::openapi;
pub use app::{App, Options};
pub use boards::{Boards, Lineage};
pub use error::WebError;
pub use field::{Field, Kind};
pub use route::{Access, Route, router, routes};

/// How often new votes are sealed into the ledger while the server runs.
const SEAL_EVERY: Duration = Duration::from_secs(300);

/// Serves until `stop` is done; then lets running requests end, seals the votes into the ledger, and returns. `beside` has further
/// paths, with rules of its own: what a model says (`polity-serve`), which this crate does not know.
pub async fn serve(
    listener: TcpListener,
    app: App,
    beside: axum::Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), WebError> {
    let sealing = tokio::spawn(seal_now_and_then(app.clone()));
    let service = router(app.clone()).merge(beside).into_make_service_with_connect_info::<SocketAddr>();
    // A streamed answer is many small writes: each must leave at once.
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    let served = axum::serve(listener, service).with_graceful_shutdown(stop).await;
    sealing.abort();
    app.store().seal_votes("server", app.now_ms()).await?;
    Ok(served?)
}

async fn seal_now_and_then(app: App) {
    loop {
        tokio::time::sleep(SEAL_EVERY).await;
        if let Err(error) = app.store().seal_votes("server", app.now_ms()).await {
            app.log(&format!("votes could not be sealed into the ledger: {error}"));
        }
    }
}
