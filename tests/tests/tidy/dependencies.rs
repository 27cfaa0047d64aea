//! Every compiled crate comes from the registry, with an allowed license and for the compiler of this project.
//!
//! deny.toml is the policy, in the format of cargo-deny; this test reads the same file and needs no installed tool.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use crate::source::{file, top};

/// The only allowed source of dependencies, as Cargo.lock writes it.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The policy in deny.toml.
struct Policy {
    licenses: Vec<String>,
    banned: Vec<String>,
    rust: (u64, u64),
}

impl Policy {
    fn new(deny: &str, rust: &str) -> Self {
        let deny: toml::Table = deny.parse().expect("deny.toml is TOML");
        let words = |value: &toml::Value| {
            let names = value.as_array().expect("a list").iter();
            names.map(|name| name.get("crate").unwrap_or(name).as_str().expect("a name").to_owned()).collect()
        };
        Self {
            licenses: words(&deny["licenses"]["allow"]),
            banned: words(&deny["bans"]["deny"]),
            rust: minor(rust).expect("a version"),
        }
    }

    /// The violations of a package of `cargo metadata`.
    fn objections(&self, package: &Value) -> Vec<String> {
        let name = package["name"].as_str().unwrap_or("?");
        let mut objections = Vec::new();
        let Some(source) = package["source"].as_str() else { return objections };
        if source != REGISTRY {
            objections.push(format!("{name} comes from {source}"));
        }
        if self.banned.iter().any(|banned| banned == name) {
            objections.push(format!("{name} is banned in deny.toml"));
        }
        match package["license"].as_str() {
            None => objections.push(format!("{name} states no license")),
            Some(license) if !self.allows(license) => objections.push(format!("{name} is under {license}")),
            Some(_) => {}
        }
        if let Some(rust) = package["rust_version"].as_str().and_then(minor).filter(|rust| *rust > self.rust) {
            objections.push(format!("{name} needs Rust {}.{}", rust.0, rust.1));
        }
        objections
    }

    /// Returns true if the policy satisfies an SPDX expression. `/` is an old form of OR.
    fn allows(&self, expression: &str) -> bool {
        let expression = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let words: Vec<&str> = expression.split_whitespace().collect();
        let (allowed, rest) = self.either(&words);
        allowed && rest.is_empty()
    }

    fn either<'a>(&self, words: &'a [&'a str]) -> (bool, &'a [&'a str]) {
        let (mut allowed, mut rest) = self.both(words);
        while let ["OR", after @ ..] = rest {
            let (other, after) = self.both(after);
            (allowed, rest) = (allowed || other, after);
        }
        (allowed, rest)
    }

    fn both<'a>(&self, words: &'a [&'a str]) -> (bool, &'a [&'a str]) {
        let (mut allowed, mut rest) = self.one(words);
        while let ["AND", after @ ..] = rest {
            let (other, after) = self.one(after);
            (allowed, rest) = (allowed && other, after);
        }
        (allowed, rest)
    }

    fn one<'a>(&self, words: &'a [&'a str]) -> (bool, &'a [&'a str]) {
        let lists = |name: &str| self.licenses.iter().any(|license| license == name);
        match words {
            ["(", inside @ ..] => {
                let (allowed, rest) = self.either(inside);
                (allowed, rest.strip_prefix(&[")"]).unwrap_or(rest))
            }
            [name, "WITH", exception, rest @ ..] => (lists(&format!("{name} WITH {exception}")) || lists(name), rest),
            [name, rest @ ..] => (lists(name), rest),
            [] => (false, words),
        }
    }
}

/// Major and minor number of a version.
fn minor(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[test]
fn every_dependency_is_allowed() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--all-features", "--locked", "--offline"])
        .current_dir(top())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo writes JSON");
    let manifest: toml::Table = file("Cargo.toml").text.parse().expect("Cargo.toml is TOML");
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().expect("a version");
    let policy = Policy::new(&file("deny.toml").text, rust);
    let packages = metadata["packages"].as_array().expect("packages");
    assert!(packages.len() > 50, "only {} packages", packages.len());
    let objections: Vec<String> = packages.iter().flat_map(|package| policy.objections(package)).collect();
    assert!(objections.is_empty(), "{objections:#?}");
}

/// The crates of others that the framework had without its features when it was one crate, on commit 4feaf7b.
const FORMER_DEPENDENCIES: usize = 59;

#[test]
fn framework_without_features_has_few_dependencies() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["tree", "-p", "whizbang", "--no-default-features", "-e", "normal,build"])
        .args(["--prefix", "none", "--format", "{p}", "--locked", "--offline"])
        .current_dir(top())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    let crates = text.lines().filter_map(|line| line.split(" (").next()).filter(|name| !name.starts_with("whizbang"));
    let crates = crates.collect::<BTreeSet<_>>();
    assert!(crates.len() > 20, "{crates:?}");
    assert!(crates.len() < FORMER_DEPENDENCIES, "{} crates: {crates:?}", crates.len());
}

#[test]
fn forbidden_dependency_is_found() {
    let policy = Policy::new(
        "[licenses]\nallow = [\"MIT\", \"Apache-2.0\", \"BSD-3-Clause\"]\n[bans]\ndeny = [{ crate = \"openssl\", reason = \"x\" }]",
        "1.95",
    );
    let found = |name: &str, source: &str, license: Option<&str>, rust: &str| {
        policy
            .objections(
                &serde_json::json!({ "name": name, "source": source, "license": license, "rust_version": rust }),
            )
            .len()
    };
    assert_eq!(found("a", REGISTRY, Some("MIT OR GPL-3.0"), "1.95.1"), 0);
    assert_eq!(found("a", REGISTRY, Some("MIT"), "1.96"), 1);
    assert_eq!(found("a", REGISTRY, Some("GPL-3.0-only"), "1.56"), 1);
    assert_eq!(found("a", REGISTRY, None, "1.56"), 1);
    assert_eq!(found("a", "git+https://example.org/a", Some("MIT"), "1.56"), 1);
    assert_eq!(found("openssl", REGISTRY, Some("MIT"), "1.56"), 1);
}

#[test]
fn license_expressions_are_evaluated() {
    let policy = Policy::new("[licenses]\nallow = [\"MIT\", \"Apache-2.0\"]\n[bans]\ndeny = []", "1.95");
    for allowed in
        ["MIT", "MIT/Apache-2.0", "GPL-2.0 OR MIT", "(MIT OR X) AND Apache-2.0", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(policy.allows(allowed), "{allowed}");
    }
    for refused in ["GPL-2.0", "MIT AND GPL-2.0", "(MIT OR X) AND Y", "X OR Y", "MIT X", ""] {
        assert!(!policy.allows(refused), "{refused}");
    }
}
