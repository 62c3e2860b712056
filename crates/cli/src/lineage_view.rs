//! `polity lineage`: the chain as a tree on 80 columns, as JSON, as a drawing, as a page.
//!
//! What was asked about is the tree's root; what it was made from hangs below, down to the votes. In the drawing time goes from left to
//! right: votes, runs, models, verdict, release. A thing that is used twice is drawn once and printed once, then referred to.
//!
//! Not here: whether it holds (`lineage`).

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use polity_chart::escape;
use polity_train::config::wrap;

use crate::args::Global;
use crate::error::{CommandError, CommandResult};
use crate::lineage::{Lineage, Node, Status, trace};
use crate::output::{json_to_stdout, to_stdout};
use crate::project::Project;
use crate::project_args::InProject;
use crate::record::{Record, short};
use crate::release_args::LineageArgs;
use crate::ui::Ui;

/// Columns of the page.
const COLUMNS: usize = 80;
/// Columns of hash and status at the right.
const RIGHT: usize = 22;

/// Runs the verb.
pub fn run(args: &LineageArgs, global: &Global, ui: &Ui) -> CommandResult {
    let project = Project::open(&args.project)?;
    let record = Record::read(&project)?;
    let target = record.find(&project, &args.what)?;
    let lineage = trace(&project, &record, &project.verify(None, ui)?, &target)?;
    let title = title(&lineage);
    write(args.svg.as_deref(), || svg(&lineage, &title), ui)?;
    write(args.html.as_deref(), || html(&lineage, &title), ui)?;
    match global.json {
        true => json_to_stdout(&lineage)?,
        false => to_stdout(|out| print(out, &lineage))?,
    }
    let faults = lineage.faults();
    let Some(first) = faults.first() else {
        ui.note("every link is what it was");
        return Ok(());
    };
    let error = CommandError::failed(format!("{}: {}", first.record, first.found));
    Err(faults[1..]
        .iter()
        .fold(error, |error, bad| error.hint(format!("also {}: {}", bad.record, bad.found))))
}

/// The drawing of a release's lineage, for a server that shows it: everything is read and verified anew.
pub fn drawing(project: &Path, release: &str) -> CommandResult<String> {
    let project = Project::open(&InProject { project: Some(project.to_owned()) })?;
    let record = Record::read(&project)?;
    let target = record.find(&project, release)?;
    let verification = project.wait(project.store().verify(None))?;
    let lineage = trace(&project, &record, &verification, &target)?;
    Ok(svg(&lineage, &title(&lineage)))
}

fn title(lineage: &Lineage) -> String {
    lineage.nodes.first().map(|root| format!("{} {}", root.kind, root.name)).unwrap_or_default()
}

fn write(file: Option<&Path>, text: impl FnOnce() -> String, ui: &Ui) -> CommandResult {
    let Some(file) = file else { return Ok(()) };
    let text = text();
    polity_rows::atomic_write(file, |out| out.write_all(text.as_bytes()))?;
    ui.note(&format!("wrote {}", file.display()));
    Ok(())
}

// -------------------------------------------------------------------------------------------------------------- tree

fn print(out: &mut impl Write, lineage: &Lineage) -> io::Result<()> {
    print_node(out, lineage, 0, "", "", &mut HashSet::new())
}

fn print_node(
    out: &mut impl Write,
    lineage: &Lineage,
    position: usize,
    first: &str,
    rest: &str,
    printed: &mut HashSet<usize>,
) -> io::Result<()> {
    let node = &lineage.nodes[position];
    let again = !printed.insert(position);
    let room = COLUMNS - RIGHT - first.chars().count() - 1;
    let name = clipped(&format!("{} {}", node.kind, node.name), room);
    let status = if again { "(above)" } else { node.status.name() };
    writeln!(out, "{first}{name:<room$} {:<12}  {status}", short(&node.hash))?;
    if again {
        return Ok(());
    }
    let bar = if node.from.is_empty() { "   " } else { "│  " };
    let below = format!("{rest}{bar}");
    let room = COLUMNS - below.chars().count();
    for text in node.found.iter().map(String::as_str).chain([node.facts.as_str()]) {
        wrap(text, room).iter().try_for_each(|line| writeln!(out, "{below}{}", clipped(line, room)))?;
    }
    for (i, &from) in node.from.iter().enumerate() {
        let last = i + 1 == node.from.len();
        let (branch, bar) = if last { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        print_node(out, lineage, from, &format!("{rest}{branch}"), &format!("{rest}{bar}"), printed)?;
    }
    Ok(())
}

/// At most so many columns; the end of a path says more than its beginning.
fn clipped(text: &str, columns: usize) -> String {
    let letters = text.chars().count();
    if letters <= columns {
        return text.to_owned();
    }
    let (kind, name) = text.split_once(' ').unwrap_or(("", text));
    let room = columns.saturating_sub(kind.chars().count() + 2);
    let end: String = name.chars().skip(name.chars().count().saturating_sub(room)).collect();
    format!("{kind} …{end}")
}

// ----------------------------------------------------------------------------------------------------------- drawing

const BOX_WIDTH: usize = 190;
const BOX_HEIGHT: usize = 58;
const GAP_X: usize = 46;
const GAP_Y: usize = 16;
const MARGIN: usize = 16;
/// Letters that fit into a box.
const BOX_LETTERS: usize = 27;

const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1c2128}text.small{font-size:10px;fill:#57606a}\
text.kind{font-size:10px;fill:#57606a;letter-spacing:.05em}\
rect{fill:#f6f8fa;stroke:#1a7f4e;stroke-width:1.5}rect.gone{stroke:#9aa4af;stroke-dasharray:4 3}\
rect.changed{stroke:#d9730d;stroke-width:2.5}rect.failed{fill:#fdecea;stroke:#c62828;stroke-width:2.5}\
path{fill:none;stroke:#9aa4af;stroke-width:1.4}";

/// Steps from the root, the longest way.
fn depths(lineage: &Lineage) -> Vec<usize> {
    let mut depths = vec![0; lineage.nodes.len()];
    // As many rounds as a chain may be long.
    for _ in 0..lineage.nodes.len() {
        for (position, node) in lineage.nodes.iter().enumerate() {
            for &from in &node.from {
                depths[from] = depths[from].max(depths[position] + 1);
            }
        }
    }
    depths
}

fn class(status: Status) -> &'static str {
    match status {
        Status::Verified => "verified",
        Status::Gone => "gone",
        Status::Changed => "changed",
        Status::Failed => "failed",
    }
}

fn svg(lineage: &Lineage, title: &str) -> String {
    let depths = depths(lineage);
    let deepest = depths.iter().copied().max().unwrap_or(0);
    let mut rows = vec![0; deepest + 1];
    let mut places = Vec::with_capacity(depths.len());
    for &depth in &depths {
        let x = MARGIN + (deepest - depth) * (BOX_WIDTH + GAP_X);
        let y = MARGIN + rows[depth] * (BOX_HEIGHT + GAP_Y);
        rows[depth] += 1;
        places.push((x, y));
    }
    let width = 2 * MARGIN + (deepest + 1) * BOX_WIDTH + deepest * GAP_X;
    let most = rows.iter().copied().max().unwrap_or(1);
    let height = 2 * MARGIN + most * BOX_HEIGHT + most.saturating_sub(1) * GAP_Y;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">\
         <title>Lineage of {}</title><style>{STYLE}</style>",
        escape(title)
    );
    for (position, node) in lineage.nodes.iter().enumerate() {
        let (to_x, to_y) = (places[position].0, places[position].1 + BOX_HEIGHT / 2);
        for &from in &node.from {
            let (x, y) = (places[from].0 + BOX_WIDTH, places[from].1 + BOX_HEIGHT / 2);
            let middle = (x + to_x) / 2;
            let _ = write!(svg, "<path d=\"M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}\"/>");
        }
    }
    for (node, &(x, y)) in lineage.nodes.iter().zip(&places) {
        draw(&mut svg, node, x, y);
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, node: &Node, x: usize, y: usize) {
    let left = x + 10;
    let known = [node.hash.as_str(), node.facts.as_str()];
    let hint: Vec<&str> = known.into_iter().chain(node.found.iter().map(String::as_str)).collect();
    let name = clipped(&node.name, BOX_LETTERS);
    let _ = write!(
        svg,
        "<g><title>{}</title><rect class=\"{}\" x=\"{x}\" y=\"{y}\" width=\"{BOX_WIDTH}\" height=\"{BOX_HEIGHT}\" rx=\"7\"/>\
         <text class=\"kind\" x=\"{left}\" y=\"{}\">{}</text><text x=\"{left}\" y=\"{}\">{}</text>\
         <text class=\"small\" x=\"{left}\" y=\"{}\">{}  {}</text></g>",
        escape(&hint.join("\n")),
        class(node.status),
        y + 16,
        node.kind,
        y + 33,
        escape(&name),
        y + 49,
        short(&node.hash),
        node.status.name()
    );
}

fn html(lineage: &Lineage, title: &str) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Lineage of {title}</title>\n<style>body{{font:14px/1.5 system-ui,sans-serif;margin:1.5rem;color:#1c2128;background:#fff}}\
         div{{overflow-x:auto}}table{{border-collapse:collapse}}td,th{{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;\
         border-top:1px solid #d8dee4}}code{{font-size:.85em;overflow-wrap:anywhere}}.failed,.changed{{color:#c62828;font-weight:600}}\
         svg{{max-width:100%;min-width:56rem;height:auto}}\
         @media(prefers-color-scheme:dark){{body{{color:#e6edf3;background:#14181d}}td,th{{border-color:#3a424b}}.failed,.changed{{color:#ff8a80}}}}</style>\n\
         <h1>Lineage of {title}</h1><p>{}</p><div>",
        if lineage.verified { "Every link is what it was." } else { "Not every link is what it was." },
        title = escape(title)
    );
    page += &svg(lineage, title);
    page += "</div><table><tr><th>what</th><th>hash</th><th>status</th><th>known of it</th></tr>\n";
    for node in &lineage.nodes {
        let known: Vec<&str> = node.found.iter().map(String::as_str).chain([node.facts.as_str()]).collect();
        let _ = writeln!(
            page,
            "<tr><td>{} {}</td><td><code>{}</code></td><td class=\"{}\">{}</td><td>{}</td></tr>",
            node.kind,
            escape(&node.name),
            node.hash,
            class(node.status),
            node.status.name(),
            escape(&known.join("; "))
        );
    }
    page + "</table></html>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_keeps_its_end() {
        let check = |text: &str, columns: usize, expect: &str| assert_eq!(clipped(text, columns), expect);
        check("model runs/sft/model", 30, "model runs/sft/model");
        check("model a/very/long/way/runs/sft/model", 20, "model …uns/sft/model");
        assert_eq!(clipped("model a/very/long/way/runs/sft/model", 20).chars().count(), 20);
    }
}
