//! Each mutation in `tests/mutations` applies to the present code, changes only product code, and names an existing test.
//!
//! `tests/mutants` runs them.

use std::process::Command;

use super::source::{File, Finding, assert_none, repository, top};

const FOLDER: &str = "tests/mutations/";
const PRODUCT: [&str; 3] = ["framework/", "macros/src/", "samples/"];

/// Mutations whose head or diff is invalid for `tests/mutants`.
fn invalid_mutations(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for patch in files.iter().filter(|file| file.path.starts_with(FOLDER)) {
        let name = patch.path.strip_prefix(FOLDER).and_then(|name| name.strip_suffix(".patch"));
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !name.is_some_and(|name| name.chars().all(is_word)) {
            findings.push(patch.finding_at_top("is not named subject-fault.patch in lower case"));
            continue;
        }
        let first = patch.text.lines().next().unwrap_or_default();
        match first.strip_prefix("# detect: ").map(|arguments| arguments.split_whitespace().collect::<Vec<_>>()) {
            Some(arguments) => match arguments[..] {
                ["--test", target, filter] if !is_in_target(files, target, filter) => {
                    findings.push(
                        patch.finding_at_top(format!("no test of the target `{target}` has `{filter}` in its name")),
                    );
                }
                ["--lib", filter] if !is_in_library(files, filter) => {
                    findings.push(patch.finding_at_top(format!("no test of a library has `{filter}` in its name")));
                }
                ["--test", _, _] | ["--lib", _] => {}
                _ => findings.push(patch.finding_at_top("expected `# detect: --test TARGET FILTER` or `--lib FILTER`")),
            },
            None => findings.push(patch.finding_at_top("the first line is not `# detect: --test TARGET FILTER`")),
        }
        for line in patch.text.lines().filter_map(|line| line.strip_prefix("+++ b/")) {
            let is_test = line.contains("/tests/") || line.ends_with("/tests.rs");
            if is_test || !PRODUCT.iter().any(|folder| line.starts_with(folder)) {
                findings.push(patch.finding_at_top(format!("changes `{line}`, which is not product code")));
            }
        }
    }
    findings
}

fn is_in_target(files: &[File], target: &str, filter: &str) -> bool {
    let (one, folder) = (format!("/tests/{target}.rs"), format!("/tests/{target}/"));
    let is_part = |file: &&File| file.path.ends_with(&one) || file.path.contains(&folder);
    // The tests of a conformance suite have the names of its cases.
    let has_suite =
        |suite: &str| files.iter().filter(is_part).any(|file| file.text.contains(&format!("{suite}_suite!(")));
    let is_case = |suite: &&str| {
        let cases = format!("framework/conformance/src/{suite}/cases");
        files.iter().filter(|file| file.path.starts_with(&cases)).any(|file| names(file, filter))
    };
    files.iter().filter(is_part).any(|file| names(file, filter))
        || ["bridge", "broker", "store"].iter().filter(|suite| has_suite(suite)).any(is_case)
}

fn is_in_library(files: &[File], filter: &str) -> bool {
    files.iter().filter(|file| file.is_rust() && file.path.contains("src/")).any(|file| names(file, filter))
}

/// Returns true if the name of a function contains the filter, without its modules.
fn names(file: &File, filter: &str) -> bool {
    let filter = filter.rsplit("::").next().unwrap_or(filter);
    let is_named = |rest: &str| rest.split('(').next().is_some_and(|name| name.contains(filter));
    filter.is_empty() || file.text.split("fn ").skip(1).any(is_named)
}

/// Deliberate bugs in product code instead of in a patch.
fn deliberate_bugs(files: &[File]) -> Vec<Finding> {
    let product =
        files.iter().filter(|file| file.is_rust() && PRODUCT.iter().any(|folder| file.path.starts_with(folder)));
    product
        .flat_map(|file| {
            let code = file.code();
            let found = code.match_indices("cfg!(plant").chain(code.match_indices("cfg(plant")).map(|(at, _)| at);
            found
                .map(|at| file.finding(at, "is a deliberate bug: make it a patch in tests/mutations"))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn mutations_change_product_code_and_name_tests() {
    let files = repository();
    assert!(files.iter().any(|file| file.path.starts_with(FOLDER)), "there are no mutations");
    assert_none(&invalid_mutations(&files));
}

#[test]
fn mutations_apply_to_the_code() {
    let mut stale = Vec::new();
    for patch in repository().iter().filter(|file| file.path.starts_with(FOLDER)) {
        let checked = Command::new("git")
            .args(["apply", "--check", &patch.path])
            .current_dir(top())
            .output()
            .expect("git is installed");
        if !checked.status.success() {
            let why = String::from_utf8_lossy(&checked.stderr);
            stale.push(patch.finding_at_top(format!("does not apply: {}", why.trim())));
        }
    }
    assert_none(&stale);
}

#[test]
fn product_code_contains_no_deliberate_bugs() {
    assert_none(&deliberate_bugs(&repository()));
    let bad = File::new("framework/core/src/a.rs", "fn f() { if cfg!(plant = \"x\") { g() } }");
    assert_eq!(deliberate_bugs(&[bad]).len(), 1);
}

#[test]
fn invalid_mutation_is_found() {
    let code = File::new("framework/whizbang/tests/a.rs", "#[test]\nfn money_is_conserved() {}");
    let product = "+++ b/framework/core/src/a.rs";
    let found = |head: &str, changed: &str| {
        let code = File::new(&code.path, &code.text);
        invalid_mutations(&[code, File::new("tests/mutations/x.patch", &format!("{head}\n{changed}\n"))]).len()
    };
    assert_eq!(found("# detect: --test a money_is", product), 0);
    assert_eq!(found("# detect: --test b money_is", product), 1, "another target");
    assert_eq!(found("# detect: --test a nothing_is", product), 1, "another name");
    assert_eq!(found("diff --git", product), 1, "no head");
    assert_eq!(found("# detect: money_is", product), 1, "no target");
    assert_eq!(found("# detect: --test a money_is", "+++ b/framework/whizbang/tests/a.rs"), 1, "changes a test");
    for name in ["x.txt", "epochs_not_checked.patch", "Epochs.patch"] {
        assert_eq!(invalid_mutations(&[File::new(&format!("{FOLDER}{name}"), "")]).len(), 1, "{name}");
    }
}
