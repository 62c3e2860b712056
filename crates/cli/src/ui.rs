//! Talk to the person: notes, warnings, errors and progress, all on stderr. Data goes to stdout (`output`).
//!
//! On a terminal there is one progress bar at the bottom and everything else scrolls above it; elsewhere progress is a
//! plain line every few seconds. Nothing is said in colour alone. Writing to stderr never fails a command: whoever closed
//! it does not want to know. With `--json`, warnings and errors are lines of JSON and nothing else is said.
//!
//! Not here: what is worth saying.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::CommandError;

/// Time between two plain progress lines.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl ColorChoice {
    /// Whether a stream that is or is not a terminal gets colour, under these values of `NO_COLOR` and `TERM`.
    pub fn resolve(self, terminal: bool, no_color: Option<&str>, term: Option<&str>) -> bool {
        match self {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            // no-color.org: any value but the empty one.
            ColorChoice::Auto => terminal && no_color.is_none_or(str::is_empty) && term != Some("dumb"),
        }
    }
}

/// How far along a piece of work is.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// What is being done; a new label begins a new bar.
    pub label: &'a str,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
    /// What a unit is, in the singular.
    pub unit: &'a str,
    /// Units a second.
    pub rate_per_s: Option<f64>,
    /// Seconds until the end.
    pub remaining_s: Option<f64>,
}

/// The person's side of a command; cheap to clone.
#[derive(Clone)]
pub struct Ui {
    inner: Arc<Inner>,
}

struct Inner {
    json: bool,
    quiet: bool,
    color: bool,
    terminal: bool,
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    bar: Option<(String, ProgressBar)>,
    plain: Option<(String, Instant)>,
}

impl Ui {
    /// Reads the terminal and the environment once.
    pub fn new(json: bool, quiet: bool, color: ColorChoice) -> Self {
        let terminal = io::stderr().is_terminal();
        let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let color = color.resolve(terminal, variable("NO_COLOR").as_deref(), variable("TERM").as_deref());
        let inner = Inner { json, quiet, color, terminal, shown: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// Whether stdout is to be machine-readable.
    pub fn json(&self) -> bool {
        self.inner.json
    }

    /// Says something that is good to know.
    pub fn note(&self, text: &str) {
        if !self.silent() {
            self.line(text);
        }
    }

    /// Says that something is probably not as wanted. Not silenced by `--quiet`.
    pub fn warn(&self, text: &str) {
        if self.inner.json {
            return self.line(&serde_json::json!({ "warning": text }).to_string());
        }
        self.line(&format!("{} {text}", self.paint("33;1", "warning:")));
    }

    /// Says why the command stops.
    pub fn error(&self, error: &CommandError) {
        self.end_progress();
        if self.inner.json {
            let object = serde_json::json!({
                "error": {
                    "kind": error.kind.name(),
                    "message": error.to_string(),
                    "hints": error.hints,
                    "exit_code": error.kind.exit_code(),
                }
            });
            return self.line(&object.to_string());
        }
        self.line(&format!("{} {error}", self.paint("31;1", "error:")));
        for hint in &error.hints {
            self.line(&format!("  {} {hint}", self.paint("36;1", "hint:")));
        }
    }

    /// Shows how far along the work is.
    pub fn progress(&self, work: &Work<'_>) {
        if self.silent() {
            return;
        }
        if self.inner.terminal { self.progress_bar(work) } else { self.progress_line(work) }
    }

    /// Removes the bar.
    pub fn end_progress(&self) {
        let mut shown = self.shown();
        if let Some((_, bar)) = shown.bar.take() {
            bar.finish_and_clear();
        }
        shown.plain = None;
    }

    /// A word in bold.
    pub fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    /// With `--json`, stderr has nothing but lines of JSON.
    fn silent(&self) -> bool {
        self.inner.quiet || self.inner.json
    }

    fn progress_bar(&self, work: &Work<'_>) {
        let mut shown = self.shown();
        if shown.bar.as_ref().is_none_or(|(label, _)| label != work.label) {
            if let Some((_, bar)) = shown.bar.take() {
                bar.finish_and_clear();
            }
            let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> ");
            let bar = ProgressBar::with_draw_target(Some(work.total), ProgressDrawTarget::stderr())
                .with_style(style)
                .with_prefix(work.label.to_owned())
                .with_message(status(work));
            shown.bar = Some((work.label.to_owned(), bar));
        }
        if let Some((_, bar)) = &shown.bar {
            bar.set_length(work.total);
            bar.set_message(status(work));
            bar.set_position(work.done);
        }
    }

    fn progress_line(&self, work: &Work<'_>) {
        let due = {
            let mut shown = self.shown();
            let now = Instant::now();
            match &mut shown.plain {
                Some((label, last)) if label == work.label => {
                    let due = now.duration_since(*last) >= PLAIN_EVERY;
                    if due {
                        *last = now;
                    }
                    due
                }
                // Short work needs no lines.
                plain => {
                    *plain = Some((work.label.to_owned(), now));
                    false
                }
            }
        };
        if due {
            self.line(&format!("{}: {}", work.label, status(work)));
        }
    }

    /// One line above the bar.
    fn line(&self, text: &str) {
        let print = || {
            let _ = writeln!(io::stderr(), "{text}");
        };
        match &self.shown().bar {
            Some((_, bar)) => bar.suspend(print),
            None => print(),
        }
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        // Only this file's few lines run under the lock; a panic in them must not silence the error message.
        self.inner.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.inner.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// `12/100 steps, 1.3 steps/s, 1 min 08 s left`.
fn status(work: &Work<'_>) -> String {
    let mut text = format!("{}/{} {}", work.done, work.total, plural(work.unit, work.total));
    if let Some(rate) = work.rate_per_s {
        text += &match rate {
            0.1.. => format!(", {}/s", short(rate)),
            _ => format!(", {} s each", short(1.0 / rate)),
        };
    }
    if let Some(remaining) = work.remaining_s
        && work.done < work.total
    {
        text += &format!(", {} left", duration(remaining));
    }
    text
}

/// "step", "steps".
pub fn plural(unit: &str, count: u64) -> String {
    if count == 1 { unit.to_owned() } else { format!("{unit}s") }
}

/// Three significant digits, without an exponent where it can be avoided.
pub fn short(x: f64) -> String {
    if x == 0.0 || !x.is_finite() {
        return format!("{x}");
    }
    let digits = x.abs().log10().floor() as i32;
    match digits {
        -4..=2 => {
            let text = format!("{:.*}", (2 - digits) as usize, x);
            if text.contains('.') {
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            } else {
                text
            }
        }
        3..=6 => format!("{x:.0}"),
        _ => format!("{x:.2e}"),
    }
}

/// `0.25 s`, `45 s`, `1 min 08 s`, `2 h 03 min`.
pub fn duration(seconds: f64) -> String {
    if (0.0..10.0).contains(&seconds) {
        return format!("{} s", short(seconds));
    }
    let whole = seconds.max(0.0).ceil() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, min, s) => format!("{min} min {s:02} s"),
        (h, min, _) => format!("{h} h {min:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_needs_a_terminal_that_wants_it() {
        let auto = ColorChoice::Auto;
        assert!(auto.resolve(true, None, Some("xterm")));
        assert!(auto.resolve(true, Some(""), None));
        assert!(!auto.resolve(true, Some("1"), None));
        assert!(!auto.resolve(true, None, Some("dumb")));
        assert!(!auto.resolve(false, None, None));
        assert!(ColorChoice::Always.resolve(false, Some("1"), Some("dumb")));
        assert!(!ColorChoice::Never.resolve(true, None, None));
    }

    #[test]
    fn status_by_hand() {
        let work =
            Work { label: "x", done: 12, total: 100, unit: "step", rate_per_s: None, remaining_s: None };
        assert_eq!(status(&work), "12/100 steps");
        let work = Work { rate_per_s: Some(1.294), remaining_s: Some(67.1), ..work };
        assert_eq!(status(&work), "12/100 steps, 1.29/s, 1 min 08 s left");
        assert_eq!(status(&Work { done: 100, ..work }), "100/100 steps, 1.29/s");
        let slow = Work { rate_per_s: Some(0.05), remaining_s: Some(7261.0), total: 1, done: 0, ..work };
        assert_eq!(status(&slow), "0/1 step, 20 s each, 2 h 01 min left");
    }

    #[test]
    fn durations() {
        let check = |seconds: f64, expect: &str| assert_eq!(duration(seconds), expect);
        check(0.01234, "0.0123 s");
        check(9.5, "9.5 s");
        check(59.5, "1 min 00 s");
        check(7261.0, "2 h 01 min");
    }

    #[test]
    fn short_numbers() {
        let check = |x: f64, expect: &str| assert_eq!(short(x), expect);
        check(0.0, "0");
        check(0.123456, "0.123");
        check(12.0, "12");
        check(100.0, "100");
        check(999.6, "1000");
        check(-2.34567, "-2.35");
        check(123456.7, "123457");
        check(2e-5, "2.00e-5");
        check(0.00052, "0.00052");
        check(3.2e8, "3.20e8");
        check(f64::NAN, "NaN");
    }
}
