//! Numbers for `/v1/metrics`, in Prometheus' text format 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;

use crate::channel::Channel;
use crate::monitor::ArmName;

/// Upper bounds of the histograms, in milliseconds.
const BOUNDS_MS: [i64; 12] = [10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000];

#[derive(Default)]
pub(crate) struct Metrics {
    series: Mutex<Series>,
}

#[derive(Default)]
struct Series {
    requests: BTreeMap<(&'static str, u16), u64>,
    first_token: Histogram,
    whole: Histogram,
    alarms: BTreeMap<(String, &'static str), u64>,
}

#[derive(Default)]
struct Histogram {
    within: [u64; BOUNDS_MS.len()],
    count: u64,
    sum_ms: i64,
}

impl Histogram {
    fn push(&mut self, took_ms: i64) {
        self.count += 1;
        self.sum_ms += took_ms;
        for (within, bound_ms) in self.within.iter_mut().zip(BOUNDS_MS) {
            *within += u64::from(took_ms <= bound_ms);
        }
    }

    fn render(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound_ms, n) in BOUNDS_MS.iter().zip(self.within) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {n}", *bound_ms as f64 / 1000.0);
        }
        let (count, sum_s) = (self.count, self.sum_ms as f64 / 1000.0);
        let _ =
            writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}\n{name}_sum {sum_s}\n{name}_count {count}");
    }
}

impl Metrics {
    pub(crate) fn request(&self, route: &'static str, status: u16) {
        *self.series().requests.entry((route, status)).or_default() += 1;
    }

    pub(crate) fn first_token(&self, took_ms: i64) {
        self.series().first_token.push(took_ms);
    }

    pub(crate) fn whole(&self, took_ms: i64) {
        self.series().whole.push(took_ms);
    }

    pub(crate) fn alarm(&self, channel: &str, measure: &'static str) {
        *self.series().alarms.entry((channel.to_owned(), measure)).or_default() += 1;
    }

    fn series(&self) -> std::sync::MutexGuard<'_, Series> {
        self.series.lock().expect("no holder of this lock can panic")
    }

    pub(crate) fn render<'c>(&self, channels: impl Iterator<Item = &'c Channel>) -> String {
        let mut out = String::new();
        let series = self.series();
        out += "# HELP polity_serve_requests_total Requests.\n# TYPE polity_serve_requests_total counter\n";
        for ((route, status), n) in &series.requests {
            let _ = writeln!(out, "polity_serve_requests_total{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
        series.first_token.render(&mut out, "polity_serve_first_token_seconds", "Time to the first token.");
        series.whole.render(&mut out, "polity_serve_answer_seconds", "Time to the whole answer.");
        out +=
            "# HELP polity_serve_alarms_total Criteria rejected.\n# TYPE polity_serve_alarms_total counter\n";
        for ((channel, measure), n) in &series.alarms {
            let _ =
                writeln!(out, "polity_serve_alarms_total{{channel=\"{channel}\",measure=\"{measure}\"}} {n}");
        }
        drop(series);
        // Each metric's lines stand together, as the format wants.
        let mut lines: BTreeMap<(&str, &str, &str), Vec<String>> = BTreeMap::new();
        for channel in channels {
            let arms = channel.arms();
            for arm in [ArmName::Stable, ArmName::Canary] {
                let Some(model) = arms.get(arm) else { continue };
                let g = model.scheduler().gauges();
                let labels = format!(
                    "channel=\"{}\",arm=\"{}\",release=\"{}\"",
                    channel.name(),
                    arm.name(),
                    model.name
                );
                let mut add = |name, kind, help, value: u64| {
                    lines
                        .entry((name, kind, help))
                        .or_default()
                        .push(format!("polity_serve_{name}{{{labels}}} {value}"));
                };
                add("open", "gauge", "Requests that are open.", g.open.load(Relaxed) as u64);
                add("waiting", "gauge", "Prompts that wait for room.", g.waiting.load(Relaxed) as u64);
                add("sequences", "gauge", "Responses that are decoded.", g.sequences.load(Relaxed) as u64);
                let (reserved, used) = (g.kv_tokens_reserved.load(Relaxed), g.kv_tokens_used.load(Relaxed));
                add(
                    "kv_tokens_reserved",
                    "gauge",
                    "Tokens of keys and values that running jobs take at most.",
                    reserved as u64,
                );
                add("kv_tokens_used", "gauge", "Tokens of keys and values that are held.", used as u64);
                add(
                    "kv_tokens_max",
                    "gauge",
                    "Tokens of keys and values that may be held.",
                    model.scheduler().limits().kv_tokens_max as u64,
                );
                add("prompt_tokens_total", "counter", "Tokens of prompts.", g.prompt_tokens.load(Relaxed));
                add("sampled_tokens_total", "counter", "Tokens sampled.", g.sampled_tokens.load(Relaxed));
                add("steps_total", "counter", "Forward passes.", g.steps.load(Relaxed));
                add("finished_total", "counter", "Prompts answered whole.", g.finished.load(Relaxed));
                add("cancelled_total", "counter", "Prompts whose client left.", g.cancelled.load(Relaxed));
                add(
                    "refused_total",
                    "counter",
                    "Prompts refused because too many were open.",
                    g.refused.load(Relaxed),
                );
            }
        }
        for ((name, kind, help), lines) in lines {
            let _ = writeln!(
                out,
                "# HELP polity_serve_{name} {help}\n# TYPE polity_serve_{name} {kind}\n{}",
                lines.join("\n")
            );
        }
        out
    }
}
