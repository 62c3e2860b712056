//! What this machine is, and how much memory the process has used: from `/proc`, where there is one.
//!
//! Not here: how fast it is (`bench`).

use polity_compute::Isa;
use serde::Serialize;

use crate::clock::cpu_name;

/// The hardware and how it is used.
#[derive(Clone, Debug, Serialize)]
pub struct Hardware {
    /// The processor, as it calls itself.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Threads that it computes with.
    pub threads: usize,
    /// Vector instructions in use.
    pub isa: &'static str,
    /// Whether the processor multiplies bf16 natively.
    pub bf16: bool,
    /// Memory of the machine, bytes.
    pub memory_bytes: Option<u64>,
    /// Memory that is free to use, bytes.
    pub memory_available_bytes: Option<u64>,
    /// Operating system and architecture.
    pub platform: String,
}

impl Hardware {
    /// Looks.
    pub fn detect(threads: usize) -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cpu: cpu_name(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            threads,
            isa: isa_name(Isa::detect()),
            bf16: Isa::detect() >= Isa::Avx512Bf16,
            memory_bytes: kib_of(&meminfo, "MemTotal"),
            memory_available_bytes: kib_of(&meminfo, "MemAvailable"),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// Most memory that the process has had at once, bytes.
pub fn peak_memory_bytes() -> Option<u64> {
    kib_of(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// As a word.
pub fn isa_name(isa: Isa) -> &'static str {
    match isa {
        Isa::Amx => "amx_bf16",
        Isa::Avx512Bf16 => "avx512_bf16",
        Isa::Avx512 => "avx512",
        Isa::Avx2 => "avx2",
        Isa::Portable => "portable",
    }
}

/// `3.4 GiB`.
pub fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// The value of a line `KEY:   123 kB`, in bytes.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_by_hand() {
        let text = "VmPeak:\t  200 kB\nVmHWM:\t   1024 kB\nThreads:\t2\n";
        assert_eq!(kib_of(text, "VmHWM"), Some(1 << 20));
        assert_eq!(kib_of(text, "Threads"), None);
        assert_eq!(kib_of(text, "Vm"), None);
    }

    #[test]
    fn memory_is_formatted() {
        assert_eq!(gib(3 << 29), "1.5 GiB");
    }
}
