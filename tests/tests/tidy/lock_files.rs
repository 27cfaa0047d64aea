//! The lock files of the programs outside the workspace fit the manifests of the framework, so that they build with `--locked`.
//!
//! Cargo checks them only when such a program is built, which no step does.

use std::collections::BTreeSet;

use crate::source::{File, Finding, assert_none, file, repository};

/// The lock files of `tests/fuzz` and `tests/peers`; `tests/mutate` does not depend on the framework.
const LOCK_FILES: [&str; 2] = ["tests/fuzz/Cargo.lock", "tests/peers/Cargo.lock"];

/// The packages of the framework whose dependencies differ between a lock file and their manifests.
fn stale(lock: &File, manifests: &[toml::Table]) -> Vec<Finding> {
    let locked: toml::Table = lock.text.parse().expect("a lock file is TOML");
    let packages = locked["package"].as_array().expect("packages");
    let mut findings = Vec::new();
    for manifest in manifests {
        let name = manifest["package"]["name"].as_str().expect("a name");
        let Some(package) = packages.iter().find(|package| package["name"].as_str() == Some(name)) else { continue };
        let listed = package.get("dependencies").and_then(toml::Value::as_array).into_iter().flatten();
        let listed: BTreeSet<&str> = listed.filter_map(|dependency| dependency.as_str()?.split(' ').next()).collect();
        let declared = manifest.get("dependencies").and_then(toml::Value::as_table).into_iter().flatten();
        let (mut known, mut missing) = (BTreeSet::new(), Vec::new());
        for (dependency, settings) in declared {
            let is_optional = settings.get("optional").and_then(toml::Value::as_bool).unwrap_or(false);
            known.insert(dependency.as_str());
            if !is_optional && !listed.contains(dependency.as_str()) {
                missing.push(dependency.as_str());
            }
        }
        let removed: Vec<&str> = listed.difference(&known).copied().collect();
        if !missing.is_empty() || !removed.is_empty() {
            findings.push(lock.finding_at_top(format!("`{name}`: lacks {missing:?}, and has {removed:?} too many")));
        }
    }
    findings
}

#[test]
fn lock_files_outside_the_workspace_fit_the_manifests() {
    let is_manifest = |file: &&File| {
        (file.path.starts_with("framework/") || file.path.starts_with("macros/")) && file.path.ends_with("/Cargo.toml")
    };
    let parse = |file: &File| file.text.parse::<toml::Table>().expect("a manifest is TOML");
    let manifests: Vec<toml::Table> = repository().iter().filter(is_manifest).map(parse).collect();
    assert!(manifests.len() > 10, "{} manifests", manifests.len());
    for path in LOCK_FILES {
        assert_none(&stale(&file(path), &manifests));
    }
}

#[test]
fn stale_lock_file_is_found() {
    let manifest = "[package]\nname = \"a\"\n[dependencies]\nb = \"1\"\nc = { version = \"1\", optional = true }\n";
    let manifests = [manifest.parse::<toml::Table>().expect("TOML")];
    let found = |dependencies: &str| {
        let text = format!("[[package]]\nname = \"a\"\nversion = \"1.0.0\"\ndependencies = [{dependencies}]\n");
        stale(&File::new("Cargo.lock", &text), &manifests).len()
    };
    assert_eq!(found("\"b 1.0.0\""), 0);
    assert_eq!(found("\"b\", \"c\""), 0);
    assert_eq!(found("\"c\""), 1);
    assert_eq!(found("\"b\", \"d\""), 1);
}
