//! A panel's votes as the statistics take them, and their report.
//!
//! Machines' votes are left out: the panel is people.
//!
//! A report reads every vote, so it is kept until something has happened that it depends on (a vote, a known answer, the policy; the
//! latter two are events), and for a while at least.

use std::sync::Arc;

use polity_stats::panel::{PanelReport, PanelSettings, panel_report};
use polity_stats::vote::Votes;
use polity_store::{Judgement, JudgementFilter, panel_votes};

use crate::app::App;
use crate::error::{Failure, Outcome};

/// How long a report is kept at least.
const REPORT_AGE_MS: i64 = 30_000;
/// Resamples of each interval: a page must not take as long as the command line.
const RESAMPLES: usize = 400;
/// The same votes give the same page.
const SEED: u64 = 0;

/// The report and what it was made of.
pub(crate) struct Figures {
    pub(crate) report: PanelReport,
    pub(crate) votes: Votes,
    pub(crate) judgements: Vec<Judgement>,
    pub(crate) at_ms: i64,
    made_of: (i64, i64),
}

/// The report, made anew if there is something new and the last one is old enough.
pub(crate) async fn figures(app: &App) -> Outcome<Arc<Figures>> {
    let mut kept = app.figures().lock().await;
    let now_ms = app.now_ms();
    let made_of = (app.progress().await?.votes, app.store().ledger_head().await?.seq);
    if let Some(figures) = kept.as_ref()
        && (figures.made_of == made_of || now_ms - figures.at_ms < REPORT_AGE_MS)
    {
        return Ok(figures.clone());
    }
    let filter = JudgementFilter { machine: Some(false), ..JudgementFilter::default() };
    let judgements = app.store().judgements(filter).await?;
    let known = app.store().calibration_items().await?;
    let floor = app.store().project().await?.policy.calibration_pass;
    let made = tokio::task::spawn_blocking(move || -> polity_store::Result<Figures> {
        let votes = panel_votes(&judgements, &known)?;
        let settings = PanelSettings {
            resamples: RESAMPLES,
            calibration_floor: floor.clamp(0.01, 0.99),
            ..PanelSettings::usual(SEED)
        };
        let report = panel_report(&votes, &settings);
        Ok(Figures { report, votes, judgements, at_ms: now_ms, made_of })
    });
    let made = made.await.map_err(|e| Failure::Internal(format!("the panel's figures: {e}")))?;
    let made = Arc::new(made?);
    *kept = Some(made.clone());
    Ok(made)
}
