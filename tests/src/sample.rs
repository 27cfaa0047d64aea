//! The programs of the samples.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Builds a sample and returns the path of its program.
///
/// # Panics
/// If the build fails.
pub fn sample(name: &str) -> PathBuf {
    build(name, None)
}

/// Builds a sample in release mode, for tests with a high load, and returns the path of its program.
///
/// # Panics
/// If the build fails.
pub fn fast_sample(name: &str) -> PathBuf {
    build(name, Some("--release"))
}

fn build(name: &str, how: Option<&str>) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        // The features are those of the test build, so that existing artifacts are reused.
        .args(["build", "--quiet", "--locked", "--workspace", "--all-features", "--bin", name])
        .args(how)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // The target folder may be set from outside, so cargo reports the path of the program.
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| line["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program")
}
