//! The programs of the samples.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Builds a sample, and says where its program is.
///
/// # Panics
/// If it cannot be built.
pub fn sample(name: &str) -> PathBuf {
    build(name, None)
}

/// The same, made for speed: for tests that have very much to do.
///
/// # Panics
/// If it cannot be built.
pub fn fast_sample(name: &str) -> PathBuf {
    build(name, Some("--release"))
}

fn build(name: &str, how: Option<&str>) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        // With the features that all tests are built with: what is built already is built once.
        .args(["build", "--quiet", "--locked", "--workspace", "--all-features", "--bin", name])
        .args(how)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // The folder of the programs may be set from outside, so cargo says where it has put this one.
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|line| line["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program")
}
