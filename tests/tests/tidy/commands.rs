//! The command lines in the documentation name programs that exist, and each is on a list with the test that runs it.

use std::collections::BTreeSet;

use crate::source::{File, Finding, assert_none, file, repository};

/// The test that runs the commands of the documentation, or the `--help` of long ones.
const HERE: &str = "tests/tests/commands.rs";

/// The command lines of the `sh` blocks, each with the test that runs it. `…` at the end stands for any arguments.
const TESTED: [(&str, &str); 25] = [
    ("cargo new bank", HERE),
    ("cd bank", HERE),
    ("cargo add …", HERE),
    ("cargo run --release -p shop", "tests/tests/shop/runs.rs"),
    ("cargo run --release -p shop -- …", HERE),
    ("cargo run -p hello", "tests/tests/samples.rs"),
    ("cargo run -p bank", "tests/tests/samples.rs"),
    ("cargo run -p order-table -- …", "tests/tests/samples.rs"),
    ("psql …", "tests/tests/samples.rs"),
    ("cargo run --release -p whizbang --example move_store …", "tests/tests/moves/interrupted.rs"),
    ("cargo run -p two-services", "tests/tests/samples.rs"),
    ("cargo run -p two-services -- …", "tests/tests/nats_sample.rs"),
    ("cargo run -p gateway", "tests/tests/http_sample.rs"),
    ("cargo run -p gateway -- …", "tests/tests/http_sample.rs"),
    ("curl …", "tests/tests/http_sample.rs"),
    ("nats-server -js …", "tests/tests/nats_sample.rs"),
    ("WHIZBANG_SIM_REPORT=reports cargo test --test testing_sagas …", "framework/whizbang/tests/testing_sagas.rs"),
    ("tests/run", HERE),
    ("tests/run …", HERE),
    ("tests/mutants …", HERE),
    ("tests/package", HERE),
    ("tests/compile-cost", HERE),
    ("tests/compile-cost …", HERE),
    ("cargo test -p whizbang --lib …", "framework/whizbang/src/lib.rs"),
    ("cargo run --release -p whizbang-bench -- …", "tests/bench/src/main.rs"),
];

/// Command lines that no test runs, with the reason. Their packages and programs must exist.
const NOT_RUN: [(&str, &str); 3] = [
    ("cd tests && cargo +nightly fuzz run …", "needs a nightly compiler; `tests/tests/fuzz` runs the same decoders"),
    (
        "cargo run --release --manifest-path tests/mutate/Cargo.toml -- …",
        "a workspace of its own; `tests/run --long` runs it",
    ),
    (
        "cargo run --release --manifest-path tests/peers/Cargo.toml",
        "a workspace of its own, whose dependencies are fetched",
    ),
];

/// A line of an `sh` block.
struct Line<'a> {
    page: &'a File,
    at: usize,
    command: &'a str,
}

/// The command lines of the pages, without comments.
fn lines(files: &[File]) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    for page in files.iter().filter(|file| file.path.ends_with(".md")) {
        let mut is_shell = false;
        for (at, line) in page.lines() {
            match line.trim_start().strip_prefix("```") {
                Some(words) => is_shell = matches!(words, "sh" | "bash" | "console"),
                None if is_shell => {
                    let command = line.split(" #").next().unwrap_or_default().trim();
                    if !command.is_empty() && !command.starts_with('#') {
                        lines.push(Line { page, at, command });
                    }
                }
                None => {}
            }
        }
    }
    lines
}

/// The code spans that are commands of cargo, with the variables before them. The pages about decisions keep those of their time.
fn spans(files: &[File]) -> Vec<Line<'_>> {
    let mut spans = Vec::new();
    let pages = files.iter().filter(|file| file.path.ends_with(".md") && !file.path.starts_with("docs/decisions/"));
    for page in pages {
        let mut is_block = false;
        for (at, line) in page.lines() {
            is_block ^= line.trim_start().starts_with("```");
            for command in line.split('`').skip(1).step_by(2).filter(|_| !is_block) {
                let mut words = command.split(' ').skip_while(|word| word.contains('='));
                let is_cargo = words.next() == Some("cargo");
                if is_cargo && words.next().is_some_and(|verb| ["run", "test", "nextest", "build"].contains(&verb)) {
                    spans.push(Line { page, at, command });
                }
            }
        }
    }
    spans
}

/// The name of a test that a command selects, and that the test it names does not contain.
fn unknown_filter<'a>(command: &'a str, files: &[File]) -> Option<&'a str> {
    let inside = |start: &str| Some(command.split_once(start)?.1.split(')').next().unwrap_or_default());
    let (test, filter) = match (inside("binary("), inside("test(")) {
        (Some(test), Some(filter)) => (test, filter),
        _ => (option(command, "--test")?, command.split_whitespace().last().filter(|word| !word.starts_with('-'))?),
    };
    let of_test = |file: &&File| {
        let path = file.path.split_once("tests/tests/").map_or("", |(_, path)| path);
        path.strip_prefix(test).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
    };
    let knows = |part: &str| {
        let file = format!("/{part}.rs");
        let is_named = |of: &File| of.text.contains(&format!("fn {part}")) || of.path.ends_with(&file);
        files.iter().filter(of_test).any(is_named)
    };
    (filter != test && !filter.split("::").all(knows)).then_some(filter)
}

fn matches_row(row: &str, command: &str) -> bool {
    match row.strip_suffix('…') {
        Some(start) => command.len() > start.len() && command.starts_with(start),
        None => row == command,
    }
}

/// Command lines that are in neither list, and rows of the lists that match no command line.
fn unlisted(lines: &[Line<'_>], rows: &[&str]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for line in lines.iter().filter(|line| !rows.iter().any(|row| matches_row(row, line.command))) {
        findings.push(line.page.finding(line.at, format!("no test runs `{}`: list it here with one", line.command)));
    }
    for row in rows.iter().filter(|row| !lines.iter().any(|line| matches_row(row, line.command))) {
        findings.push(File::new("tests/tests/tidy/commands.rs", "").finding_at_top(format!("no page shows `{row}`")));
    }
    findings
}

/// Tests that name neither the program of a command line nor its package, so that they cannot run it.
fn unnamed(rows: &[(&str, &str)], files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (row, test) in rows {
        let package = option(row, "--example").or_else(|| option(row, "-p"));
        let program = row.split_whitespace().next().unwrap_or_default();
        let word = package.unwrap_or(program);
        let is_named = |file: &File| file.text.contains(word) || file.text.contains(&word.replace('_', "-"));
        // Filters of tests and rows of the benchmark have checks of their own, and `cd` is not a program.
        let is_checked_otherwise = row.contains("cargo test") || word == "whizbang-bench" || word == "cd";
        if !is_checked_otherwise && !files.iter().any(|file| file.path == *test && is_named(file)) {
            findings.push(File::new(test, "").finding_at_top(format!("does not name `{word}` of `{row}`")));
        }
    }
    findings
}

/// The word after an option of a command line.
fn option<'a>(command: &'a str, name: &str) -> Option<&'a str> {
    let mut words = command.split_whitespace();
    words.find(|word| *word == name)?;
    words.next()
}

/// The manifest of a package, and its table.
fn manifest(files: &[File], is_it: impl Fn(&File, &toml::Table) -> bool) -> Option<(&str, toml::Table)> {
    let manifests = files.iter().filter(|file| file.path.ends_with("Cargo.toml"));
    manifests.filter_map(|file| Some((file, file.text.parse::<toml::Table>().ok()?))).find_map(|(file, table)| {
        let folder = file.path.trim_end_matches("Cargo.toml");
        is_it(file, &table).then_some((folder, table))
    })
}

/// The fault of a command line that can be seen without running it.
fn fault(command: &str, files: &[File]) -> Option<String> {
    let exists = |path: &str| files.iter().any(|file| file.path == path);
    let command = command.split(" -- ").next().unwrap_or_default();
    let program = command.split_whitespace().next().unwrap_or_default();
    if program.contains('/') && !exists(program) {
        return Some(format!("there is no {program}"));
    }
    // `-p` is a package to cargo alone.
    if !command.split_whitespace().any(|word| word == "cargo") {
        return None;
    }
    let named = |package: &str| {
        manifest(files, |_, table| {
            table.get("package").and_then(|found| found.get("name")).and_then(toml::Value::as_str) == Some(package)
        })
    };
    let (folder, table) = match (option(command, "-p"), option(command, "--manifest-path")) {
        (Some(package), _) => match named(package) {
            Some(found) => found,
            None => return Some(format!("there is no package {package}")),
        },
        (None, Some(path)) => match manifest(files, |file, _| file.path == path) {
            Some(found) => found,
            None => return Some(format!("there is no {path}")),
        },
        (None, None) => return None,
    };
    if let Some(example) = option(command, "--example") {
        let is_missing = !exists(&format!("{folder}examples/{example}.rs"));
        return is_missing.then(|| format!("there is no example {example}"));
    }
    if command.starts_with("cargo run") && option(command, "--bin").is_none() {
        let others = files.iter().filter(|file| file.path.starts_with(&format!("{folder}src/bin/"))).count();
        let programs = others + usize::from(exists(&format!("{folder}src/main.rs")));
        let has_default = table["package"].get("default-run").is_some();
        if programs == 0 || programs > 1 && !has_default {
            return Some(format!("{folder} has {programs} programs and none by default"));
        }
    }
    if let Some(test) = option(command, "--test").filter(|test| {
        !exists(&format!("{folder}tests/{test}.rs")) && !exists(&format!("{folder}tests/{test}/main.rs"))
    }) {
        return Some(format!("there is no test {test}"));
    }
    None
}

/// Rows of the benchmark, and steps of the test runner, that a command line names and that do not exist.
fn unknown_arguments(lines: &[Line<'_>], bench: &File, run: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut check = |line: &Line<'_>, word: &str, is_known: bool| {
        if !is_known && !word.starts_with('-') {
            findings.push(line.page.finding(line.at, format!("`{word}` of `{}` does not exist", line.command)));
        }
    };
    for line in lines {
        if let Some(rows) = line.command.strip_prefix("cargo run --release -p whizbang-bench -- ") {
            rows.split_whitespace().for_each(|row| check(line, row, bench.text.contains(&format!("(\"{row}\","))));
        }
        if let Some(steps) = line.command.strip_prefix("tests/run ") {
            steps.split_whitespace().for_each(|step| check(line, step, run.text.contains(&format!("\"{step}|"))));
        }
    }
    findings
}

#[test]
fn every_command_line_of_a_page_is_run_by_a_test() {
    let files = repository();
    let rows: Vec<&str> = TESTED.iter().chain(&NOT_RUN).map(|(row, _)| *row).collect();
    assert_none(&unlisted(&lines(&files), &rows));
    let tests: BTreeSet<&str> = TESTED.iter().map(|(_, test)| *test).collect();
    let missing: Vec<_> = tests.iter().filter(|test| !files.iter().any(|file| file.path == **test)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert_none(&unnamed(&TESTED, &files));
}

#[test]
fn every_command_line_of_a_page_names_what_exists() {
    let files = repository();
    let lines = lines(&files);
    let faulty = lines.iter().filter_map(|line| Some(line.page.finding(line.at, fault(line.command, &files)?)));
    assert_none(&faulty.collect::<Vec<_>>());
    let spans = spans(&files);
    assert!(spans.len() >= 5, "the spans were not found");
    let mut findings = Vec::new();
    for span in &spans {
        findings.extend(fault(span.command, &files).map(|fault| span.page.finding(span.at, fault)));
        let unknown = unknown_filter(span.command, &files);
        findings.extend(unknown.map(|name| span.page.finding(span.at, format!("there is no test `{name}`"))));
    }
    assert_none(&findings);
    assert_none(&unknown_arguments(&lines, &file("tests/bench/src/main.rs"), &file("tests/run")));
}

#[test]
fn command_that_is_not_listed_is_found() {
    let files = [File::new("docs/a.md", "```sh\ntests/run fmt   # a step\n# a remark\n```\n```text\nrm -r x\n```\n")];
    let found = |rows: &[&str]| unlisted(&lines(&files), rows).len();
    assert_eq!(found(&["tests/run fmt"]), 0);
    assert_eq!(found(&["tests/run …"]), 0);
    assert_eq!(found(&["tests/run"]), 2);
    assert_eq!(found(&[]), 1);
}

#[test]
fn command_without_its_program_is_found() {
    let files = [
        File::new("a/Cargo.toml", "[package]\nname = \"one\"\n"),
        File::new("a/src/main.rs", ""),
        File::new("a/tests/it.rs", ""),
        File::new("b/Cargo.toml", "[package]\nname = \"two\"\n"),
        File::new("b/src/bin/x.rs", ""),
        File::new("b/src/bin/y.rs", ""),
        File::new("run", ""),
    ];
    for good in [
        "nats-server -p 4333",
        "cargo run -p one -- -p two",
        "cargo run -p two --bin x",
        "cargo test -p one --test it",
        "ls",
        "cargo fmt",
    ] {
        assert_eq!(fault(good, &files), None, "{good}");
    }
    for bad in [
        "cargo run -p two",
        "cargo run -p three",
        "cargo run --manifest-path c/Cargo.toml",
        "cargo run --manifest-path b/Cargo.toml -- x",
        "cargo test -p one --test that",
        "tests/run",
    ] {
        assert!(fault(bad, &files).is_some(), "{bad}");
    }
}

#[test]
fn command_in_a_sentence_is_found() {
    let pages = [
        File::new(
            "docs/a.md",
            "Run `A=1 cargo test --test flows one` or `cargo run`, with `cargo` or `x = cargo run`.\n",
        ),
        File::new("docs/decisions/0001-b.md", "`cargo test`\n"),
        File::new("docs/c.md", "```text\n`cargo run`\n```\n"),
    ];
    assert_eq!(
        spans(&pages).iter().map(|span| span.command).collect::<Vec<_>>(),
        ["A=1 cargo test --test flows one", "cargo run"]
    );
    let tests = [File::new("tests/tests/flows/long.rs", "fn orders_hold() {}"), File::new("tests/tests/kill.rs", "")];
    for good in ["cargo test --test flows long::orders", "cargo test --test flows", "cargo test --test kill --locked"] {
        assert_eq!(unknown_filter(good, &tests), None, "{good}");
    }
    for bad in ["cargo test --test flows short::orders", "cargo nextest run -E 'binary(kill) and test(orders)'"] {
        assert!(unknown_filter(bad, &tests).is_some(), "{bad}");
    }
}

#[test]
fn unknown_row_and_step_are_found() {
    let page = "```sh\ncargo run --release -p whizbang-bench -- one two\ntests/run --list fmt\n```\n";
    let files = [File::new("docs/a.md", page)];
    let found = |bench: &str, run: &str| {
        unknown_arguments(&lines(&files), &File::new("bench.rs", bench), &File::new("run", run)).len()
    };
    assert_eq!(found("(\"one\", a), (\"two\", b)", "\"fmt|the formatting\""), 0);
    assert_eq!(found("(\"one\", a)", ""), 2);
}
