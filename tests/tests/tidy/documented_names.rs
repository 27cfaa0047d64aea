//! Names of types, members and tests in code spans of the documentation exist in the code, so a rename cannot leave them behind.

use std::collections::BTreeSet;

use crate::habits::test_functions;
use crate::source::{File, Finding, assert_none, repository};

/// The names that a code span promises: the parts of `Type::member`, or a type whose name has several words.
fn names(span: &str) -> Vec<&str> {
    let path = span.split(['<', '(', ' ']).next().unwrap_or_default();
    let parts: Vec<&str> = path.split("::").collect();
    let is_name = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_type = |part: &str| {
        let humps =
            part.chars().zip(part.chars().skip(1)).filter(|(a, b)| a.is_ascii_lowercase() && b.is_ascii_uppercase());
        part.starts_with(|c: char| c.is_ascii_uppercase()) && humps.count() > 0
    };
    match parts[..] {
        [name] if is_type(name) && is_name(name) => parts,
        [first, _, ..]
            if first.starts_with(|c: char| c.is_ascii_uppercase()) && parts.iter().all(|part| is_name(part)) =>
        {
            parts
        }
        _ => Vec::new(),
    }
}

fn unknown_names(files: &[File]) -> Vec<Finding> {
    let rust = files.iter().filter(|file| file.is_rust());
    let known: BTreeSet<&str> =
        rust.flat_map(|file| file.text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')).collect();
    let mut findings = Vec::new();
    // Notes on changes keep the names of their time.
    let is_history = |file: &File| file.path == "CHANGELOG.md" || file.path.starts_with("changes/");
    for page in files.iter().filter(|file| file.path.ends_with(".md") && !is_history(file)) {
        let mut is_block = false;
        for (at, line) in page.lines() {
            is_block ^= line.trim_start().starts_with("```");
            for span in line.split('`').skip(1).step_by(2).filter(|_| !is_block) {
                for name in names(span).into_iter().filter(|name| !known.contains(name)) {
                    findings.push(page.finding(at, format!("`{name}` does not occur in the code")));
                }
            }
        }
    }
    findings
}

/// The filters of tests in a command line: behind `--test TARGET`, and in `test(…)`.
fn filters(command: &str) -> Vec<&str> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let behind =
        words.windows(3).filter(|words| words[0] == "--test" && !words[2].starts_with('-')).map(|words| words[2]);
    let inside = command.split("test(").skip(1).map(|rest| rest.split(')').next().unwrap_or_default());
    behind.chain(inside).map(|filter| filter.rsplit("::").next().unwrap_or(filter)).collect()
}

/// Command lines in code spans whose filter selects no test.
fn stale_filters(files: &[File]) -> Vec<Finding> {
    let code: Vec<String> = files.iter().filter(|file| file.is_rust()).map(File::code).collect();
    let tests: Vec<&str> = code.iter().flat_map(|code| test_functions(code)).map(|(_, name)| name).collect();
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.path.starts_with("docs/") && file.path.ends_with(".md")) {
        for (at, line) in page.lines() {
            for filter in line.split('`').skip(1).step_by(2).flat_map(filters) {
                let is_named = filter.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                if is_named && !tests.iter().any(|test| test.contains(filter)) {
                    findings.push(page.finding(at, format!("no test has `{filter}` in its name")));
                }
            }
        }
    }
    findings
}

#[test]
fn documented_filters_select_tests() {
    assert_none(&stale_filters(&repository()));
}

#[test]
fn stale_filter_is_found() {
    let found = |text: &str| {
        let code = File::new("tests/tests/a.rs", "#[test]\nfn money_is_conserved() {}");
        stale_filters(&[code, File::new("docs/a.md", text)]).len()
    };
    assert_eq!(found("`cargo test --test a long::money_is` and `nextest -E 'test(money_is) and binary(a)'`"), 0);
    assert_eq!(found("`cargo test --test a long::stock_is` and `nextest -E 'test(stock_is) and binary(a)'`"), 2);
    assert_eq!(found("`cargo test --test a --release` and `# detect: --test TARGET FILTER`"), 0);
}

#[test]
fn documented_names_exist() {
    assert_none(&unknown_names(&repository()));
}

#[test]
fn unknown_name_is_found() {
    let found = |text: &str| {
        let code = File::new("framework/core/src/a.rs", "pub enum SendError { Busy } impl Node { fn run() {} }");
        unknown_names(&[code, File::new("docs/a.md", text)]).len()
    };
    assert_eq!(found("`SendError::Busy`, `SendError`, `Node::run(&self)`, `NS.ask.D`, `tests/run`, `Lane`"), 0);
    assert_eq!(found("`SendError::Lazy`, `PostError`, `Node::walk`"), 3);
    assert_eq!(found("```text\n`PostError`\n```\n"), 0);
}
