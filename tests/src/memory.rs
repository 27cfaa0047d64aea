//! How much memory this process has.

/// The resident memory of this process, in MiB.
///
/// # Panics
/// If the kernel does not say.
pub fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("the state of this process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its resident memory");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024
}
