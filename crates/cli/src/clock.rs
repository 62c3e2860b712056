//! The wall clock and the machine's name, for records.

use std::time::SystemTime;

use polity_compute::Isa;
use polity_train::run::Machine;

/// Now, as `2026-11-23T12:34:56Z`.
pub fn now_utc() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Now, in seconds since 1970 (UTC).
pub fn unix_s() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Now, in milliseconds since 1970 (UTC).
pub fn unix_ms() -> i64 {
    (unix_s() * 1000.0) as i64
}

/// Milliseconds since 1970, as `2026-11-23T12:34:56Z`.
pub fn utc_of(ms: i64) -> String {
    let since = std::time::Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since).to_string()
}

/// This machine, computing with some threads.
pub fn machine(threads: usize) -> Machine {
    Machine { cpu: cpu_name(), isa: format!("{:?}", Isa::detect()).to_lowercase(), threads }
}

/// The processor, as it calls itself.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
