//! docs/dependencies.md has a row for each direct dependency, and the row says where the dependency is used.

use std::collections::BTreeMap;

use crate::source::{File, Finding, assert_none, file, places, repository};

/// The last cell of a dependency that every module may use.
const ANYWHERE: &str = "any module";

/// The last cell of a dependency that no code uses yet.
const UNUSED: &str = "not used yet";

/// The rows: from each crate to the byte at which its row begins and its last cell.
fn rows(page: &File) -> BTreeMap<&str, (usize, &str)> {
    let rows = page.lines().filter(|(_, line)| line.starts_with("| `"));
    rows.map(|(at, line)| {
        let name = line.split('`').nth(1).unwrap_or_default();
        (name, (at, line.trim_end_matches([' ', '|']).rsplit("| ").next().unwrap_or_default()))
    })
    .collect()
}

/// Direct dependencies without a row, and rows without a dependency.
fn unexplained(manifest: &toml::Table, page: &File) -> Vec<Finding> {
    let direct = manifest["workspace"]["dependencies"].as_table().expect("a table").keys();
    let direct: Vec<&str> = direct.map(String::as_str).filter(|name| !name.starts_with("whizbang")).collect();
    let rows = rows(page);
    let stale = rows.iter().filter(|(name, _)| !direct.contains(name));
    let mut findings: Vec<Finding> =
        stale.map(|(name, (at, _))| page.finding(*at, format!("`{name}` is not a direct dependency"))).collect();
    for name in direct.iter().filter(|name| !rows.contains_key(*name)) {
        findings.push(page.finding_at_top(format!("`{name}` is a direct dependency without a row that explains it")));
    }
    findings
}

/// True if a file may use a dependency with this last cell. Tests may use all of them.
fn may_use(file: &File, used_in: &str) -> bool {
    let path = file.inside().unwrap_or_else(|| file.path.clone());
    let is_test = path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs");
    is_test || used_in == ANYWHERE || used_in.split('`').skip(1).step_by(2).any(|allowed| path.starts_with(allowed))
}

/// Uses of a dependency outside of the places in its row, and dependencies that are not used at all.
fn misplaced(page: &File, files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let code: Vec<(&File, String, String)> =
        files.iter().filter(|file| file.is_rust()).map(|file| (file, file.code(), file.product_code())).collect();
    for (name, (row, used_in)) in rows(page) {
        let path = format!("{}::", name.replace('-', "_"));
        let is_used = code.iter().any(|(_, all, _)| !places(all, &path).is_empty());
        if is_used == (used_in == UNUSED) {
            findings.push(page.finding(row, format!("`{name}` is {}", if is_used { "used" } else { "not used" })));
        }
        for (file, _, product) in code.iter().filter(|(file, ..)| used_in != UNUSED && !may_use(file, used_in)) {
            for at in places(product, &path) {
                findings.push(file.finding(at, format!("`{name}` is used outside of {used_in}")));
            }
        }
    }
    findings
}

/// Dependencies that no code of the package names, by manifest, with reasons.
const UNNAMED: [(&str, &str, &str); 1] =
    [("tests/mutate/Cargo.toml", "proc-macro2", "its feature gives the tokens of `syn` their places")];

/// The dependencies of a package that its code does not name: those for the library must be named outside of its tests.
fn unused_in(manifest: &File, files: &[File]) -> Vec<Finding> {
    let table: toml::Table = manifest.text.parse().expect("a manifest is TOML");
    let folder = manifest.path.trim_end_matches("Cargo.toml");
    let code = |start: &str, read: fn(&File) -> String| -> Vec<String> {
        let inside = |file: &&File| file.is_rust() && file.path.starts_with(&format!("{folder}{start}"));
        files.iter().filter(inside).map(read).collect()
    };
    // Examples in comments are tests as well.
    let (mut product, all) = (code("src/", File::product_code), code("", |file| file.text.clone()));
    if product.is_empty() {
        product = code("", File::code);
    }
    let mut findings = Vec::new();
    for (kind, code) in [("dependencies", &product), ("dev-dependencies", &all)] {
        let names = table.get(kind).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys);
        for name in names {
            let word = name.replace('-', "_");
            let is_excused = UNNAMED.iter().any(|(path, known, _)| *path == manifest.path && known == name);
            if is_excused == code.iter().all(|code| places(code, &word).is_empty()) {
                continue;
            }
            if is_excused {
                findings.push(manifest.finding_at_top(format!("`{name}` is named now: remove its exception")));
            } else {
                findings.push(manifest.finding_at_top(format!("`{name}` is in [{kind}], and no code names it")));
            }
        }
    }
    findings
}

#[test]
fn packages_use_their_dependencies() {
    let files = repository();
    let manifests: Vec<&File> = files.iter().filter(|file| file.path.ends_with("/Cargo.toml")).collect();
    assert!(manifests.len() > 15, "{} manifests", manifests.len());
    let findings: Vec<Finding> = manifests.iter().flat_map(|manifest| unused_in(manifest, &files)).collect();
    assert_none(&findings);
}

#[test]
fn unused_dependency_of_a_package_is_found() {
    let manifest = File::new(
        "framework/a/Cargo.toml",
        "[dependencies]\nleft-pad = \"1\"\n[dev-dependencies]\nright-pad = \"1\"\n",
    );
    let found = |path: &str, text: &str| unused_in(&manifest, &[File::new(path, text)]).len();
    assert_eq!(found("framework/a/src/lib.rs", "use left_pad::Pad; use right_pad;"), 0);
    assert_eq!(found("framework/a/src/lib.rs", "// left_pad::Pad"), 2);
    assert_eq!(
        found("framework/a/src/lib.rs", "#[cfg(test)]\nmod tests { use left_pad::Pad; use right_pad::X; }"),
        1,
        "only tests"
    );
    assert_eq!(found("framework/a/tests/b.rs", "use right_pad::X;"), 1);
    assert_eq!(found("framework/b/src/lib.rs", "use left_pad::Pad; use right_pad::X;"), 2, "another package");
}

#[test]
fn every_direct_dependency_has_a_row() {
    let manifest = file("Cargo.toml").text.parse().expect("Cargo.toml is TOML");
    assert_none(&unexplained(&manifest, &file("docs/dependencies.md")));
}

#[test]
fn dependencies_are_used_where_their_row_says() {
    assert_none(&misplaced(&file("docs/dependencies.md"), &repository()));
}

#[test]
fn missing_row_and_stale_row_are_found() {
    let manifest = "[workspace.dependencies]\nserde = \"1\"\nwhizbang = \"1\"".parse().expect("TOML");
    let found = |page: &str| unexplained(&manifest, &File::new("docs/dependencies.md", page)).len();
    assert_eq!(found("| `serde` | reads and writes | any module |"), 0);
    assert_eq!(found("nothing"), 1);
    assert_eq!(found("| `serde` | x | any module |\n| `left-pad` | y | `actor` |"), 1);
}

#[test]
fn misplaced_and_unused_dependency_are_found() {
    let found = |row: &str, path: &str, text: &str| {
        misplaced(&File::new("docs/dependencies.md", row), &[File::new(path, text)]).len()
    };
    let (row, text) = ("| `left-pad` | x | `actor`, `macros` |", "use left_pad::Pad;");
    assert_eq!(found(row, "framework/runtime/src/actor/a.rs", text), 0);
    assert_eq!(found(row, "macros/src/a.rs", text), 0);
    assert_eq!(found(row, "tests/tests/a.rs", text), 0);
    assert_eq!(found(row, "framework/core/src/store/a.rs", text), 1);
    assert_eq!(found(row, "framework/runtime/src/actor/a.rs", "// left_pad::Pad"), 1, "not used");
    assert_eq!(found("| `left-pad` | x | any module |", "framework/core/src/store/a.rs", text), 0);
    assert_eq!(found("| `left-pad` | x | not used yet |", "framework/core/src/store/a.rs", text), 1, "used");
    assert_eq!(found("| `left-pad` | x | not used yet |", "framework/core/src/store/a.rs", ""), 0);
}
