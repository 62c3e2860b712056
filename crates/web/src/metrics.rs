//! Counters for `/metrics`, in Prometheus' text format 0.0.4.
//!
//! Requests are counted by the route's *pattern*, never by its path: a path may hold an invite's secret, and would make as many series as there are
//! comparisons.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use polity_store::Progress;

/// Upper bounds of the histogram of durations, in milliseconds.
const BOUNDS_MS: [i64; 9] = [1, 2, 5, 10, 25, 50, 100, 250, 1000];

#[derive(Default)]
pub(crate) struct Metrics {
    series: Mutex<Series>,
}

#[derive(Default)]
struct Series {
    requests: BTreeMap<(&'static str, &'static str, u16), u64>,
    durations: BTreeMap<&'static str, Durations>,
    sign_ins: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Durations {
    within: [u64; BOUNDS_MS.len()],
    count: u64,
    sum_ms: i64,
}

impl Metrics {
    pub(crate) fn request(&self, method: &'static str, route: &'static str, status: u16, took_ms: i64) {
        let mut series = self.series.lock().expect("no holder of this lock can panic");
        *series.requests.entry((method, route, status)).or_default() += 1;
        let durations = series.durations.entry(route).or_default();
        durations.count += 1;
        durations.sum_ms += took_ms;
        for (within, bound_ms) in durations.within.iter_mut().zip(BOUNDS_MS) {
            *within += u64::from(took_ms <= bound_ms);
        }
    }

    /// `result` is `ok`, `wrong` or `limited`.
    pub(crate) fn sign_in(&self, result: &'static str) {
        let mut series = self.series.lock().expect("no holder of this lock can panic");
        *series.sign_ins.entry(result).or_default() += 1;
    }

    pub(crate) fn render(&self, progress: &Progress) -> String {
        let mut out = String::new();
        let mut gauge = |name: &str, help: &str, value: i64| {
            let _ = writeln!(
                out,
                "# HELP polity_{name} {help}\n# TYPE polity_{name} gauge\npolity_{name} {value}"
            );
        };
        gauge("prompts", "Prompts.", progress.prompts);
        gauge("responses", "Responses.", progress.responses);
        gauge("votes", "Votes, superseded ones too.", progress.votes);
        gauge("annotators", "Annotators.", progress.annotators);
        gauge("live_leases", "Comparisons in someone's hands.", progress.live_leases);
        gauge("datasets", "Frozen datasets.", progress.datasets);
        gauge("judgements_served", "Judgements and live leases in the queue.", progress.served);
        gauge("judgements_wanted", "Judgements wanted in the queue.", progress.wanted);
        out += "# HELP polity_comparisons Comparisons by state.\n# TYPE polity_comparisons gauge\n";
        for (state, n) in &progress.comparisons {
            let _ = writeln!(out, "polity_comparisons{{state=\"{state}\"}} {n}");
        }
        let series = self.series.lock().expect("no holder of this lock can panic");
        out += "# HELP polity_http_requests_total Requests.\n# TYPE polity_http_requests_total counter\n";
        for ((method, route, status), n) in &series.requests {
            let _ = writeln!(
                out,
                "polity_http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}} {n}"
            );
        }
        out += "# HELP polity_sign_ins_total Attempts to sign in.\n# TYPE polity_sign_ins_total counter\n";
        for (result, n) in &series.sign_ins {
            let _ = writeln!(out, "polity_sign_ins_total{{result=\"{result}\"}} {n}");
        }
        out += "# HELP polity_http_request_seconds Time to answer.\n# TYPE polity_http_request_seconds histogram\n";
        for (route, durations) in &series.durations {
            for (bound_ms, n) in BOUNDS_MS.iter().zip(durations.within) {
                let le = *bound_ms as f64 / 1000.0;
                let _ =
                    writeln!(out, "polity_http_request_seconds_bucket{{route=\"{route}\",le=\"{le}\"}} {n}");
            }
            let (count, sum_s) = (durations.count, durations.sum_ms as f64 / 1000.0);
            let _ = writeln!(
                out,
                "polity_http_request_seconds_bucket{{route=\"{route}\",le=\"+Inf\"}} {count}\n\
                 polity_http_request_seconds_sum{{route=\"{route}\"}} {sum_s}\n\
                 polity_http_request_seconds_count{{route=\"{route}\"}} {count}"
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_at_the_count() {
        let metrics = Metrics::default();
        for took_ms in [0, 3, 7, 5000] {
            metrics.request("GET", "/compare", 200, took_ms);
        }
        let text = metrics.render(&Progress::default());
        for line in [
            "polity_http_request_seconds_bucket{route=\"/compare\",le=\"0.001\"} 1",
            "polity_http_request_seconds_bucket{route=\"/compare\",le=\"0.005\"} 2",
            "polity_http_request_seconds_bucket{route=\"/compare\",le=\"0.01\"} 3",
            "polity_http_request_seconds_bucket{route=\"/compare\",le=\"1\"} 3",
            "polity_http_request_seconds_bucket{route=\"/compare\",le=\"+Inf\"} 4",
            "polity_http_request_seconds_sum{route=\"/compare\"} 5.01",
            "polity_http_requests_total{method=\"GET\",route=\"/compare\",status=\"200\"} 4",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line} in\n{text}");
        }
    }
}
