//! The memory of this process.

/// Returns the resident memory of this process in MiB.
///
/// # Panics
/// If `/proc` does not contain it.
pub fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the state of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024
}
