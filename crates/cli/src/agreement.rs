//! `polity agreement`: how far a panel agrees, by whom, on what.
//!
//! Reads votes (a project's, or a file's by `votes`), has `stats::panel` compute, and prints: a page of tables that fit 80 columns, or the whole report as
//! JSON. `--labels` writes what the votes say of each comparison, for training on soft labels.
//!
//! Not here: any statistic.

use std::collections::HashMap;
use std::io::{self, Write};

use polity_stats::agreement::{Measured, Undefined};
use polity_stats::panel::{
    AnnotatorReport, Breakdown, PairReport, PanelReport, PanelSettings, Planning, Ranking, panel_report,
    reliability,
};
use polity_stats::vote::Votes;
use polity_store::{JudgementFilter, panel_votes};
use serde::Serialize;

use crate::args::AgreementArgs;
use crate::error::{CommandError, CommandResult};
use crate::output;
use crate::project::Project;
use crate::ui::Ui;
use crate::votes;

/// Rows of a table on the terminal; `--json` has all.
const ROWS_MAX: usize = 40;
/// An adjusted p-value below which something is remarked on.
const REMARKABLE: f64 = 0.05;
/// Share of fast votes from which it is remarked on.
const FAST_SHARE: f64 = 0.2;

/// A row of `--labels`.
#[derive(Serialize)]
struct LabelRow<'v> {
    prompt: &'v str,
    first: &'v str,
    second: &'v str,
    label: f64,
    mean: f64,
    sd: f64,
    votes: usize,
}

/// Runs the verb.
pub fn run(args: &AgreementArgs, ui: &Ui) -> CommandResult {
    let votes = match &args.data {
        Some(file) => votes::read(file, ui)?,
        None => of_project(args, ui)?,
    };
    let settings = PanelSettings {
        confidence: args.confidence,
        resamples: args.resamples,
        calibration_floor: args.calibration_floor,
        ..PanelSettings::usual(args.seed)
    };
    let report = panel_report(&votes, &settings);
    if let Some(path) = &args.labels {
        write_labels(path, &votes, &settings)?;
    }
    if ui.json() {
        return output::json_to_stdout(&report);
    }
    output::to_stdout(|out| print(out, &report))
}

/// The project's votes that stand. Annotators are called by their names, where no two have the same.
fn of_project(args: &AgreementArgs, ui: &Ui) -> CommandResult<Votes> {
    let project = Project::open(&args.project)
        .map_err(|error| error.hint("--data FILE reads votes from a file, without a project"))?;
    let store = project.store();
    let machine = (!args.machine_votes).then_some(false);
    let filter = JudgementFilter { machine, ..JudgementFilter::default() };
    let rows = project.wait(store.progress())?.votes;
    let mut judgements = project.watch(ui, "read votes", rows as u64, store.judgements(filter))?;
    let annotators = project.wait(store.annotators())?;
    let mut named: HashMap<&str, usize> = HashMap::new();
    annotators.iter().for_each(|annotator| *named.entry(&annotator.name).or_default() += 1);
    let names: HashMap<&str, &str> = annotators
        .iter()
        .filter(|annotator| named[annotator.name.as_str()] == 1)
        .map(|annotator| (annotator.id.as_str(), annotator.name.as_str()))
        .collect();
    for judgement in &mut judgements {
        if let Some(name) = names.get(judgement.annotator_id.as_str()) {
            judgement.annotator_id = (*name).to_owned();
        }
    }
    let votes = panel_votes(&judgements, &project.wait(store.calibration_items())?)?;
    if votes.votes.is_empty() {
        let whose = if args.machine_votes { "" } else { " by people" };
        return Err(CommandError::bad_input(format!("{}: no votes{whose} to compare yet", store.location()))
            .hint("votes of machines and simulated annotators count with --machine-votes"));
    }
    Ok(votes)
}

fn write_labels(path: &std::path::Path, votes: &Votes, settings: &PanelSettings) -> CommandResult {
    let model = reliability(votes, settings.prior).map_err(CommandError::failed)?;
    let mut counts = vec![0; votes.comparisons.len()];
    votes.standing().into_iter().for_each(|i| counts[votes.votes[i].comparison as usize] += 1);
    let rows =
        votes.comparisons.iter().zip(&model.labels).zip(counts).map(|((comparison, label), votes_on)| {
            LabelRow {
                prompt: votes.prompts.name(comparison.prompt),
                first: votes.responses.name(comparison.first),
                second: votes.responses.name(comparison.second),
                label: label.first,
                mean: label.mean,
                sd: label.sd,
                votes: votes_on,
            }
        });
    polity_rows::write_jsonl(path, rows)?;
    Ok(())
}

fn print(out: &mut impl Write, report: &PanelReport) -> io::Result<()> {
    let counts = &report.counts;
    let percent = |part: usize| 100.0 * part as f64 / counts.votes.max(1) as f64;
    writeln!(
        out,
        "{} votes by {} annotators on {} comparisons of {} prompts",
        counts.votes, counts.annotators, counts.comparisons, counts.prompts
    )?;
    writeln!(
        out,
        "{} comparisons have two votes or more; {:.1} % of votes are ties{}",
        counts.overlapping,
        percent(counts.ties),
        match counts.both_bad {
            0 => String::new(),
            bad => format!(" ({:.1} % both bad)", percent(bad)),
        }
    )?;
    let besides: Vec<String> = [
        (counts.superseded, "superseded"),
        (counts.unanswered, "skipped or flagged"),
        (counts.calibration, "on calibration comparisons"),
        (counts.repeats, "on comparisons shown again"),
    ]
    .iter()
    .filter(|(n, _)| *n > 0)
    .map(|(n, what)| format!("{n} {what}"))
    .collect();
    if !besides.is_empty() {
        writeln!(out, "besides: {}", besides.join(", "))?;
    }

    head(out, &format!("Agreement, with {:.0} % intervals over comparisons", 100.0 * report.confidence))?;
    for figure in &report.figures {
        match &figure.value {
            Ok(value) => writeln!(
                out,
                "  {:<32} {:>7}  {:<18} n = {}",
                figure.label,
                number(value.estimate),
                interval(&figure.value),
                value.items
            )?,
            Err(why) => undefined(out, figure.label, why)?,
        }
    }

    annotators(out, report)?;
    pairs(out, &report.pairs, report.pairs_found)?;
    breakdown(out, "Category", &report.categories)?;
    breakdown(out, "Rubric", &report.rubrics)?;
    if let Some(ranking) = &report.ranking {
        print_ranking(out, ranking)?;
    }
    planning(out, &report.planning)?;
    writeln!(out, "\nFormulas and how to read each figure: docs/agreement.md")
}

fn annotators(out: &mut impl Write, report: &PanelReport) -> io::Result<()> {
    head(out, "Annotators, most votes first")?;
    writeln!(
        out,
        "  {:<14}{:>6}{:>9}{:>16}{:>6}{:>7}{:>7}  remarks",
        "", "votes", "majority", "reliability", "left", "p adj.", "time"
    )?;
    let mut order: Vec<&AnnotatorReport> = report.annotators.iter().collect();
    order.sort_by_key(|annotator| std::cmp::Reverse(annotator.votes));
    for annotator in order.iter().take(ROWS_MAX) {
        // The interval, not the error: near 0 and 1 it is lopsided.
        let reliability = match (annotator.reliability, annotator.reliability_interval) {
            (Some(r), Some((low, high))) => format!("{:.2} {low:.2}-{high:.2}", r.reliability),
            (Some(r), None) => format!("{:.2}", r.reliability),
            (None, _) => "-".to_owned(),
        };
        let bias = &annotator.side_bias;
        let (left, p) = match bias.decided {
            0 => ("-".to_owned(), "-".to_owned()),
            n => (format!("{:.2}", bias.left as f64 / n as f64), p_value(bias.p_adjusted)),
        };
        let time = annotator.speed.map_or("-".to_owned(), |s| seconds(s.median_ms));
        let line = format!(
            "  {:<14}{:>6}{:>9}{:>16}{:>6}{:>7}{:>7}  {}",
            cut(&annotator.name, 13),
            annotator.votes,
            annotator.majority.as_ref().map_or("-".to_owned(), |figure| format!("{:.2}", figure.estimate)),
            reliability,
            left,
            p,
            time,
            remarks(annotator)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    more(out, order.len())?;
    match &report.no_reliability {
        Some(why) => undefined(out, "Reliability", why),
        None => Ok(()),
    }
}

/// What stands out about an annotator: words that fit beside each other, or their number.
fn remarks(annotator: &AnnotatorReport) -> String {
    let mut remarks: Vec<&str> = Vec::new();
    let bias = &annotator.side_bias;
    if bias.p_adjusted < REMARKABLE {
        remarks.push(if 2 * bias.left > bias.decided { "left" } else { "right" });
    }
    if annotator.calibration.is_some_and(|calibration| calibration.p_anytime < REMARKABLE) {
        remarks.push("wrong");
    }
    if annotator.drift.is_some_and(|drift| drift.p_adjusted < REMARKABLE) {
        remarks.push("drift");
    }
    if annotator.speed.is_some_and(|speed| speed.fast_share > FAST_SHARE) {
        remarks.push("fast");
    }
    let words = remarks.join(" ");
    if words.len() <= 11 { words } else { format!("{} remarks", remarks.len()) }
}

/// `850 ms`, `12 s`, `3 min`.
fn seconds(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{} s", (ms + 500) / 1000),
        _ => format!("{} min", (ms + 30_000) / 60_000),
    }
}

fn pairs(out: &mut impl Write, pairs: &[PairReport], found: usize) -> io::Result<()> {
    const SHOWN: usize = 10;
    if pairs.is_empty() {
        return Ok(());
    }
    head(out, "Cohen's kappa, pairs with the most comparisons in common")?;
    writeln!(out, "  {:<32}{:>5}{:>8}{:>8}{:>17}{:>8}", "", "n", "same", "kappa", "interval", "quadr.")?;
    for pair in pairs.iter().take(SHOWN) {
        let short = |value: &Measured| value.as_ref().map_or("undef.".to_owned(), |f| number(f.estimate));
        writeln!(
            out,
            "  {:<32}{:>5}{:>8}{:>8}{:>17}{:>8}",
            format!("{} + {}", cut(&pair.annotators[0], 14), cut(&pair.annotators[1], 14)),
            pair.items,
            short(&pair.raw),
            short(&pair.kappa),
            interval(&pair.kappa),
            short(&pair.kappa_quadratic)
        )?;
    }
    if found > SHOWN {
        writeln!(out, "  … of {found} pairs; --json has the first {}", pairs.len())?;
    }
    Ok(())
}

fn breakdown(out: &mut impl Write, what: &str, parts: &[Breakdown]) -> io::Result<()> {
    if parts.is_empty() {
        return Ok(());
    }
    head(out, &format!("By {}", what.to_lowercase()))?;
    writeln!(
        out,
        "  {:<20}{:>7}{:>7}{:>8}{:>16}{:>7}{:>14}",
        "", "votes", "ties", "same", "interval", "alpha", "interval"
    )?;
    for part in parts.iter().take(ROWS_MAX) {
        let short =
            |value: &Measured| value.as_ref().map_or("undef.".to_owned(), |f| format!("{:.2}", f.estimate));
        let line = format!(
            "  {:<20}{:>7}{:>6.0}%{:>8}{:>16}{:>7}{:>14}",
            cut(part.name.as_deref().unwrap_or("(none)"), 19),
            part.votes,
            100.0 * part.tie_share,
            short(&part.raw),
            interval2(&part.raw),
            short(&part.alpha_ordinal),
            interval2(&part.alpha_ordinal)
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    more(out, parts.len())
}

fn print_ranking(out: &mut impl Write, ranking: &Ranking) -> io::Result<()> {
    head(out, "Responses by Bradley-Terry, ties as half, errors by prompt and annotator")?;
    if let Some(why) = &ranking.undefined {
        return undefined(out, "Strengths", why);
    }
    writeln!(out, "  {:<30}{:>7}{:>10}{:>7}{:>7}{:>15}", "", "votes", "strength", "se", "Elo", "interval")?;
    for response in ranking.responses.iter().take(ROWS_MAX) {
        let (low, high) = response.elo_interval;
        writeln!(
            out,
            "  {:<30}{:>7}{:>10.3}{:>7.3}{:>7.0}{:>15}",
            cut(&response.name, 29),
            response.votes,
            response.strength,
            response.se,
            response.elo,
            format!("{low:.0} to {high:.0}")
        )?;
    }
    more(out, ranking.responses.len())?;
    match ranking.left_side {
        Some((pull, se)) => writeln!(out, "  pull of the left side: {pull:.3} ± {se:.3} (log-odds)"),
        None => {
            writeln!(out, "  pull of the left side: undefined, the same responses are always on the left")
        }
    }
}

fn planning(out: &mut impl Write, planning: &Planning) -> io::Result<()> {
    head(
        out,
        &format!(
            "Comparisons needed (one-sided {:.0} %, power {:.0} %)",
            100.0 * planning.alpha,
            100.0 * planning.power
        ),
    )?;
    let list = |pairs: &[(f64, u64)], unit: &str| {
        pairs.iter().map(|(x, n)| format!("{:.0}{unit}: {n}", 100.0 * x)).collect::<Vec<_>>().join("   ")
    };
    writeln!(out, "  to show a win rate of         {}", list(&planning.to_detect, " %"))?;
    writeln!(out, "  to show no loss beyond        {}", list(&planning.for_margin, " points"))?;
    if let Some(accuracy) = planning.accuracy {
        let each: Vec<String> = planning
            .for_majority
            .iter()
            .map(|(wanted, votes)| {
                let votes = votes.map_or("no number".to_owned(), |votes| votes.to_string());
                format!("{:.0} %: {votes}", 100.0 * wanted)
            })
            .collect();
        writeln!(out, "  votes each for right majority {}", each.join("   "))?;
        writeln!(out, "    (at an accuracy of {accuracy:.2}, the agreement with the others' majority)")?;
    }
    Ok(())
}

fn head(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "\n{}", text)
}

fn more(out: &mut impl Write, rows: usize) -> io::Result<()> {
    if rows > ROWS_MAX { writeln!(out, "  … and {} more; --json has all", rows - ROWS_MAX) } else { Ok(()) }
}

fn undefined(out: &mut impl Write, label: &str, why: &Undefined) -> io::Result<()> {
    writeln!(out, "  {label:<32} undefined: {why}")
}

fn number(x: f64) -> String {
    format!("{x:.3}")
}

fn interval(value: &Measured) -> String {
    ends(value, 3)
}

fn interval2(value: &Measured) -> String {
    ends(value, 2)
}

fn ends(value: &Measured, digits: usize) -> String {
    match value.as_ref().ok().and_then(|figure| figure.low.zip(figure.high)) {
        Some((low, high)) => format!("{low:.digits$} to {high:.digits$}"),
        None => "no interval".to_owned(),
    }
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "<.001".to_owned() } else { format!("{p:.3}") }
}

/// At most `width` characters.
fn cut(text: &str, width: usize) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= width {
        return clean;
    }
    clean.chars().take(width - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_and_cannot_move_the_cursor() {
        assert_eq!(cut("short", 9), "short");
        assert_eq!(cut("a long name", 6), "a lon…");
        assert_eq!(cut("a\u{1b}[2Jb", 9), "a [2Jb");
        assert_eq!(cut("ééééé", 5), "ééééé");
    }

    #[test]
    fn small_p_values_do_not_look_like_nothing() {
        assert_eq!(p_value(0.0004), "<.001");
        assert_eq!(p_value(0.04), "0.040");
    }
}
