//! Statements of the documentation that can be compared with the code: versions, files, links, dependencies, changes, decisions.

use crate::source::{File, Finding, assert_none, file, repository, top};

/// A value of Cargo.toml, by the path to it.
fn cargo(path: &[&str]) -> String {
    let manifest: toml::Table = file("Cargo.toml").text.parse().expect("Cargo.toml is TOML");
    let mut value = &toml::Value::Table(manifest);
    for step in path {
        value = value.get(step).unwrap_or_else(|| panic!("Cargo.toml has no {path:?}"));
    }
    value.as_str().expect("a string").to_owned()
}

fn is_page(file: &&File) -> bool {
    file.path.ends_with(".md")
}

/// Versions in the documentation that differ from Cargo.toml.
fn stale_versions(files: &[File], version: &str, rust: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| is_page(file) && file.path != "CHANGELOG.md") {
        for (at, line) in file.lines() {
            let has_path_only = line.contains("path = ") && !line.contains("version = ");
            if line.starts_with("whizbang") && line.contains('=') && !has_path_only {
                let said = line.split_once("version = ").map_or(line, |(_, rest)| rest).split('"').nth(1);
                if let Some(said) = said.filter(|said| !version.starts_with(said) || said.is_empty()) {
                    findings.push(file.finding(at, format!("says version {said}, Cargo.toml says {version}")));
                }
            }
            let names_rust = line.contains("Rust") || line.contains("rust:");
            for said in line.split(|c: char| !c.is_ascii_digit() && c != '.').filter(|_| names_rust) {
                let said = said.trim_end_matches('.');
                // Versions of the compiler have two digits behind the dot.
                if said.len() == "1.95".len() && said.starts_with("1.") && said != rust {
                    findings.push(file.finding(at, format!("says Rust {said}, Cargo.toml says {rust}")));
                }
            }
        }
    }
    findings
}

/// Features of `whizbang` that a page or the crate's documentation does not list, in the form that it has there.
fn unlisted_features(manifest: &File, places: &[(&File, &str)]) -> Vec<Finding> {
    let table: toml::Table = manifest.text.parse().expect("Cargo.toml is TOML");
    let features = table.get("features").and_then(toml::Value::as_table).expect("the crate has features");
    let mut findings = Vec::new();
    for feature in features.keys().filter(|feature| *feature != "default") {
        for (place, form) in places.iter().filter(|(place, form)| !place.text.contains(&form.replace('…', feature))) {
            findings.push(place.finding_at_top(format!("does not list the feature `{feature}`: `{form}`")));
        }
    }
    findings
}

/// Links to files that do not exist.
fn dead_links(files: &[File], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(is_page) {
        for (at, _) in file.text.match_indices("](") {
            let target = file.text[at + 2..].split([')', '#', ' ', '\n']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
            if !exists(&plain_path(folder, target)) {
                findings.push(file.finding(at, format!("links to `{target}`, which does not exist")));
            }
        }
    }
    findings
}

/// Paths in code spans that do not exist.
fn dead_paths(files: &[File], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    const TOPS: [&str; 6] = ["framework/", "macros/", "samples/", "tests/", "docs/", ".ci/"];
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| is_page(file) && file.path != "CHANGELOG.md") {
        for (at, line) in file.lines() {
            for path in line.split('`').skip(1).step_by(2) {
                let path = path.split([' ', ':']).next().unwrap_or_default();
                let is_pattern = path.contains(['*', '<', '{', '…']);
                if TOPS.iter().any(|top| path.starts_with(top)) && !is_pattern && !exists(path.trim_end_matches('/')) {
                    findings.push(file.finding(at, format!("names `{path}`, which does not exist")));
                }
            }
        }
    }
    findings
}

/// A path from the root of the repository, without `.` and `..`.
pub(crate) fn plain_path(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Notes on changes that are not one line, which begins with its kind.
fn shapeless_changes(files: &[File]) -> Vec<Finding> {
    const KINDS: [&str; 4] = ["added: ", "changed: ", "fixed: ", "**breaking**: "];
    let is_change = |file: &&File| file.path.starts_with("changes/unreleased/") && is_page(file);
    let has_shape = |file: &File| {
        let kinds: usize = KINDS.iter().map(|kind| file.text.matches(kind).count()).sum();
        KINDS.iter().any(|kind| file.text.starts_with(kind)) && kinds == 1 && file.text.lines().count() == 1
    };
    files
        .iter()
        .filter(is_change)
        .filter(|file| !has_shape(file))
        .map(|file| file.finding_at_top(format!("is not one line that begins with one of {KINDS:?}")))
        .collect()
}

/// Decision records whose numbers do not run 0001, 0002, …
fn gaps_in_decisions(files: &[File]) -> Vec<Finding> {
    let records: Vec<&File> =
        files.iter().filter(|file| file.path.starts_with("docs/decisions/0") && is_page(file)).collect();
    let wrong = |(index, file): &(usize, &&File)| !file.path.starts_with(&format!("docs/decisions/{:04}-", index + 1));
    records
        .iter()
        .enumerate()
        .filter(wrong)
        .map(|(index, file)| file.finding_at_top(format!("decision {:04} is missing before it", index + 1)))
        .collect()
}

fn exists(path: &str) -> bool {
    top().join(path).exists()
}

#[test]
fn documented_versions_match_the_code() {
    let version = cargo(&["workspace", "package", "version"]);
    assert_eq!(version, cargo(&["workspace", "dependencies", "whizbang", "version"]));
    assert_eq!(format!("={version}"), cargo(&["workspace", "dependencies", "whizbang-macros", "version"]));
    assert_none(&stale_versions(&repository(), &version, &cargo(&["workspace", "package", "rust-version"])));
}

#[test]
fn every_feature_is_documented() {
    let (page, root) = (file("framework/whizbang/README.md"), file("framework/whizbang/src/lib.rs"));
    let places = [(&page, "| `…`"), (&root, "//! - `…`")];
    assert_none(&unlisted_features(&file("framework/whizbang/Cargo.toml"), &places));
}

#[test]
fn documented_links_and_paths_exist() {
    let files = repository();
    assert_none(&dead_links(&files, exists));
    assert_none(&dead_paths(&files, exists));
}

#[test]
fn every_note_on_a_change_begins_with_its_kind() {
    assert_none(&shapeless_changes(&repository()));
}

#[test]
fn decision_records_are_numbered_without_gaps() {
    assert_none(&gaps_in_decisions(&repository()));
}

#[test]
fn a_stale_version_is_found() {
    let found = |text: &str| stale_versions(&[File::new("README.md", text)], "0.3.1", "1.95").len();
    assert_eq!(found("whizbang = \"0.2\"\n"), 1);
    assert_eq!(found("whizbang = { version = \"0.3.0\", features = [\"nats\"] }\n"), 1);
    assert_eq!(found("needs Rust 1.94.\n"), 1);
    assert_eq!(found("| minimum supported Rust version | 1.94; it may rise |\nFROM rust:1.96-slim AS build\n"), 2);
    assert_eq!(found("whizbang = \"0.3\"\nwhizbang = { features = [], version = \"0.3.1\" }\nneeds Rust 1.95.\n"), 0);
}

#[test]
fn an_unlisted_feature_is_found() {
    let manifest = File::new("Cargo.toml", "[features]\ndefault = [\"a\"]\na = []\nb = []\n");
    let page = File::new("README.md", "| `a` (default) | x |\n");
    assert_eq!(unlisted_features(&manifest, &[(&page, "| `…`")]).len(), 1);
}

#[test]
fn a_dead_link_and_a_dead_path_are_found() {
    let exists = |path: &str| path == "docs/a.md" || path == "README.md" || path == "tests/run";
    let found = |text: &str| {
        let files = [File::new("docs/a.md", text)];
        (dead_links(&files, exists).len(), dead_paths(&files, exists).len())
    };
    assert_eq!(found("[x](b.md) [y](../docs/c.md#part) `docs/c.md` `tests/runs --long`"), (2, 2));
    assert_eq!(
        found("[x](a.md#p) [y](../README.md) [z](https://a.b) `docs/a.md` `tests/run --long` `docs/*.md`"),
        (0, 0)
    );
}

#[test]
fn a_shapeless_change_is_found() {
    let found = |text: &str| shapeless_changes(&[File::new("changes/unreleased/a.md", text)]).len();
    assert_eq!(found("added: a thing\n"), 0);
    assert_eq!(found("Some thing\n"), 1);
    assert_eq!(found("added: a thing\nwith more\n"), 1);
    assert_eq!(found("added: a thing. fixed: another\n"), 1);
}

#[test]
fn a_gap_in_the_decisions_is_found() {
    let record = |path: &str| File::new(path, "");
    assert_eq!(gaps_in_decisions(&[record("docs/decisions/0001-a.md"), record("docs/decisions/0002-b.md")]).len(), 0);
    assert_eq!(gaps_in_decisions(&[record("docs/decisions/0001-a.md"), record("docs/decisions/0003-b.md")]).len(), 1);
}
