//! `docs/metrics.md` and `docs/settings.md` are written from the declarations, and `docs/details.md` names keys that exist.
//!
//! ```text
//! UPDATE_DOCS=1 cargo test -p polity-train --test docs
//! ```
//!
//! writes the first two anew; without the variable the test fails where a committed file is stale.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use polity_train::config::{Config, KeyInfo};
use polity_train::metrics::{EVAL_PREFIX, Stage, find, tables};
use polity_train::monitor::{AlarmKind, Severity};
use polity_train::settings::{DpoConfig, PpoConfig, RESUME_MAY_CHANGE, RewardConfig, SftConfig, trl_default};

const COMMAND: &str = "UPDATE_DOCS=1 cargo test -p polity-train --test docs";

fn docs(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(file)
}

/// Writes the file if asked to, else compares.
fn check(file: &str, text: &str) {
    let path = docs(file);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        return fs::write(path, text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    let first = found.lines().zip(text.lines()).position(|(found, expect)| found != expect);
    let line = first.unwrap_or(found.lines().count().min(text.lines().count())) + 1;
    assert!(found == text, "docs/{file} is stale from line {line} on; regenerate it with: {COMMAND}");
}

/// A table cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn row(out: &mut String, cells: &[String]) {
    let _ = writeln!(out, "| {} |", cells.iter().map(|text| cell(text)).collect::<Vec<_>>().join(" | "));
}

fn head(out: &mut String, names: &[&str]) {
    row(out, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let _ = writeln!(out, "|{}", "---|".repeat(names.len()));
}

fn code(text: &str) -> String {
    format!("`{text}`")
}

fn title(stage: Stage) -> String {
    format!("`polity train {stage}`")
}

// ---------------------------------------------------------------------------------------------------------- metrics

fn metrics_md() -> String {
    let mut out = format!(
        "# Metrics\n\n\
         Every number that a run can log to `RUN/metrics.jsonl`, one object a step. Written from the declarations beside the \
         code; after a change there run `{COMMAND}`.\n\n\
         Names are TRL's wherever TRL has the metric. The evaluation's copy of a metric has the prefix `{EVAL_PREFIX}`. A number \
         that is not finite is `null`, and the run warns. `step` counts from 1, `time_s` is the time since the run began; nothing \
         else depends on the clock, so a resumed run logs what an uninterrupted one would have logged. The source is a file in \
         `crates/train/src`.\n"
    );
    for stage in Stage::ALL {
        let _ = write!(out, "\n## {}\n\n", title(stage));
        head(&mut out, &["metric", "unit", "formula", "source"]);
        for table in tables(stage) {
            for decl in table.metrics {
                let cells = [code(decl.name), decl.unit.into(), decl.formula.into(), code(table.source)];
                row(&mut out, &cells);
            }
        }
    }
    out.push_str(
        "\n## Alarms\n\n\
         The stability monitor watches these numbers in every run. An alarm goes to `RUN/alarms.jsonl`, the terminal and the \
         report; a critical one stops the run if `stop_on_alarm = true`. \"Smoothed\" is an exponential mean; the baseline is the \
         mean of the run's first steps.\n\n",
    );
    head(&mut out, &["alarm", "severity", "raised when", "what to do", "watches"]);
    for kind in AlarmKind::ALL {
        let severity = match kind.severity() {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
        };
        let watched = kind.metrics().iter().map(|name| code(name)).collect::<Vec<_>>().join(", ");
        row(&mut out, &[code(kind.name()), severity.into(), kind.rule(), kind.advice().into(), watched]);
    }
    out
}

// --------------------------------------------------------------------------------------------------------- settings

/// A stage's keys, and PPO's defaults under its presets.
struct Keys {
    stage: Stage,
    keys: Vec<KeyInfo>,
}

fn keys<C: Config>() -> Keys {
    Keys { stage: C::STAGE, keys: C::keys() }
}

fn stages() -> [Keys; 4] {
    [keys::<SftConfig>(), keys::<RewardConfig>(), keys::<DpoConfig>(), keys::<PpoConfig>()]
}

/// A default for each stage, told apart only where they differ.
fn by_stage(values: &[(Stage, Option<String>)]) -> String {
    let first = &values[0].1;
    if values.iter().all(|(_, value)| value == first) {
        return first.as_deref().map_or_else(String::new, code);
    }
    let told = values.iter().filter_map(|(stage, value)| Some(format!("{stage} {}", code(value.as_ref()?))));
    told.collect::<Vec<_>>().join(", ")
}

/// The values of a preset that differ from the defaults.
fn preset(name: &str) -> Vec<(&'static str, String)> {
    let sets = [("preset".to_owned(), name.to_owned())];
    let values = PpoConfig::from_toml_and_sets(None, &sets).unwrap().values();
    let unset = PpoConfig::keys();
    let pairs = values.into_iter().zip(unset).filter(|(value, info)| value.value != info.default);
    pairs.filter(|(value, _)| value.key != "preset").map(|(value, _)| (value.key, value.value)).collect()
}

fn settings_md() -> String {
    let stages = stages();
    let is_common = |name: &str| stages.iter().all(|stage| stage.keys.iter().any(|info| info.name == name));
    let mut out = format!(
        "# Settings\n\n\
         Every key of `polity train`, as `--set key=value` or a line of a TOML file (`--config`). Written from the declarations in \
         `crates/train/src/settings`; after a change there run `{COMMAND}`.\n\n\
         Names and defaults are TRL's and Transformers'; a default that is not is told in its own column. An unknown key is an \
         error that names the nearest, and so is a value that would have no effect. `\"none\"` is the absence of a value. Every \
         run writes all of its settings to `RUN/resolved.toml`, which reads back to the same settings.\n\n\
         ## Every stage\n\n"
    );
    head(&mut out, &["key", "type", "default", "in TRL", "meaning"]);
    for info in stages[0].keys.iter().filter(|info| is_common(info.name)) {
        let find = |stage: &Keys| {
            stage.keys.iter().find(|other| other.name == info.name).map(|other| other.default.clone())
        };
        let ours: Vec<_> = stages.iter().map(|stage| (stage.stage, find(stage))).collect();
        let theirs: Vec<_> = stages
            .iter()
            .map(|stage| (stage.stage, trl_default(stage.stage, info.name).map(str::to_owned)))
            .collect();
        row(
            &mut out,
            &[code(info.name), info.domain(), by_stage(&ours), by_stage(&theirs), info.doc.clone()],
        );
    }
    let _ = writeln!(
        out,
        "\nThese may change when a run is resumed, because nothing that it makes depends on them: {}.",
        RESUME_MAY_CHANGE.iter().map(|name| code(name)).collect::<Vec<_>>().join(", ")
    );
    for stage in &stages {
        let _ = write!(out, "\n## {}\n\n", title(stage.stage));
        head(&mut out, &["key", "type", "default", "meaning"]);
        for info in stage.keys.iter().filter(|info| !is_common(info.name)) {
            row(&mut out, &[code(info.name), info.domain(), code(&info.default), info.doc.clone()]);
        }
    }
    out.push_str("\nTRL has had two PPO trainers. `preset` sets what they do otherwise:\n\n");
    head(&mut out, &["preset", "sets"]);
    for name in ["trl", "trl_classic"] {
        let sets = preset(name).into_iter().map(|(key, value)| code(&format!("{key} = {value}")));
        row(&mut out, &[code(name), sets.collect::<Vec<_>>().join(", ")]);
    }
    out
}

// ------------------------------------------------------------------------------------------------------------ tests

#[test]
fn metrics_md_is_what_is_declared() {
    check("metrics.md", &metrics_md());
}

#[test]
fn settings_md_is_what_is_declared() {
    check("settings.md", &settings_md());
}

/// Whatever stands between backticks in `docs/details.md` and looks like a name is a key or a metric.
#[test]
fn details_md_names_what_exists() {
    let text = fs::read_to_string(docs("details.md")).unwrap();
    let stages = stages();
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_/".contains(c);
    for quoted in text.split('`').skip(1).step_by(2) {
        let (name, value) = quoted.split_once(" = ").unwrap_or((quoted, ""));
        // Formulas, paths and names of files have other letters; a word without an underscore may be anything.
        if !name.contains(['_', '/']) && value.is_empty()
            || !name.chars().all(is_name)
            || name.starts_with('/')
        {
            continue;
        }
        let keys: Vec<&KeyInfo> =
            stages.iter().flat_map(|stage| &stage.keys).filter(|info| info.name == name).collect();
        assert!(
            !keys.is_empty() || Stage::ALL.into_iter().any(|stage| find(stage, name).is_some()),
            "docs/details.md: {quoted:?} is neither a key nor a metric"
        );
        let named = keys.is_empty()
            || !value.starts_with('"')
            || keys.iter().any(|info| info.type_name.contains(value));
        assert!(named, "docs/details.md: {quoted:?}: {name} has no such value");
    }
}
