//! Rules for files and tests: names, sizes, comments, tests that run and wait for conditions.

use crate::source::{File, Finding, assert_none, name_at, places, repository};

/// Names of files that do not describe a concept.
const EMPTY_NAMES: [&str; 12] = [
    "util",
    "utils",
    "utilities",
    "helper",
    "helpers",
    "common",
    "misc",
    "types",
    "shared",
    "stuff",
    "base",
    "generic",
];

/// Limit of lines. Longer files need a reason in [`LONG_FILES`].
const LINES: usize = 500;

/// Files above the limit, with reasons.
const LONG_FILES: [(&str, &str); 0] = [];

/// Files in which a thread may sleep, with reasons.
const SLEEPERS: [(&str, &str); 6] = [
    ("tests/src/eventually.rs", "polls other processes, their files and ports, which cannot wake it"),
    ("tests/tests/cluster/faults.rs", "the length of an outage is part of the fault"),
    ("tests/bench/src/idle.rs", "measures a node that does nothing for a while"),
    ("tests/bench/src/nats/ours.rs", "the interval of a poll in a benchmark"),
    ("tests/tests/flows/wrong_fulfilment.rs", "virtual time passes in a simulated cluster"),
    ("framework/store-embedded/src/disk.rs", "retries a lock that a reader may hold for a moment"),
];

fn empty_names(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        for part in file.path.split('/').map(|part| part.trim_end_matches(".rs")) {
            if EMPTY_NAMES.contains(&part) {
                findings.push(
                    file.finding_at_top(format!("`{part}` describes no concept: name the file after its content")),
                );
            }
        }
    }
    findings
}

fn long_files(files: &[File], allowed: &[(&str, &str)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let lines = file.text.lines().count();
        let reason = allowed.iter().find(|(path, _)| *path == file.path);
        match reason {
            None if lines > LINES => {
                findings.push(file.finding_at_top(format!("{lines} lines: move a concept to a file of its own")));
            }
            Some(_) if lines <= LINES => {
                findings.push(file.finding_at_top("is short enough now: remove it from the list of long files"));
            }
            _ => {}
        }
    }
    for (path, _) in allowed {
        if !files.iter().any(|file| file.path == *path) {
            findings.push(File::new(path, "").finding_at_top("does not exist: remove it from the list of long files"));
        }
    }
    findings
}

/// Comments directly next to doc comments: most are doc lines without a slash, which rustdoc does not show.
fn adjacent_comments(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let lines: Vec<(usize, &str)> = file.lines().map(|(at, line)| (at, line.trim_start())).collect();
        for pair in lines.windows(2) {
            let plain = |line: &str| line.starts_with("//") && !line.starts_with("///") && !line.starts_with("//!");
            let doc = |line: &str| line.starts_with("///") && !line.starts_with("////");
            if plain(pair[0].1) && doc(pair[1].1) || doc(pair[0].1) && plain(pair[1].1) {
                findings.push(file.finding(pair[0].0, "rustdoc does not show a comment next to a doc comment"));
            }
        }
    }
    findings
}

/// Files without a module doc.
fn missing_module_docs(files: &[File]) -> Vec<Finding> {
    let silent = |file: &&File| file.is_rust() && !file.path.contains("/ui/") && !file.text.starts_with("//!");
    files.iter().filter(silent).map(|file| file.finding_at_top("begins without a module doc (`//!`)")).collect()
}

/// Tests and examples that do not run.
fn ignored(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        if file.is_rust() {
            let code = file.code();
            for at in places(&code, "#[ignore").into_iter().chain(places(&code, "#[cfg_attr(ignore")) {
                findings.push(file.finding(at, "an ignored test proves nothing"));
            }
        }
        for (at, line) in file.lines() {
            let line = line.trim_start().trim_start_matches("///").trim_start_matches("//!").trim_start();
            let Some(words) = line.strip_prefix("```") else { continue };
            if words.split([',', ' ']).any(|word| word.starts_with("ignore")) {
                findings.push(file.finding(at, "an example must compile; use `no_run` if it needs a server"));
            }
        }
    }
    findings
}

fn sleepers(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && !SLEEPERS.iter().any(|(path, _)| *path == file.path)) {
        let code = file.code();
        // A timeout of a future that never ends is a sleep.
        let ends = |at: usize| code[at..].find(['\n', ';']).map_or(code.len(), |end| at + end);
        let disguised = places(&code, "timeout").into_iter().filter(|at| code[*at..ends(*at)].contains("pending"));
        for at in places(&code, "thread::sleep").into_iter().chain(disguised) {
            findings.push(file.finding(at, "wait for a condition with a deadline (`eventually`), not for a duration"));
        }
    }
    findings
}

/// The names of the test functions in `code`, with their places.
pub(crate) fn test_functions(code: &str) -> Vec<(usize, &str)> {
    let marks = ["#[test]", "#[tokio::test", "#[actix_rt::test", "#[actix::test", "#[whizbang::test"];
    let tests = marks.iter().flat_map(|mark| code.match_indices(mark));
    tests
        .filter_map(|(at, _)| code[at..].find("fn ").map(|found| at + found + 3))
        .map(|at| (at, name_at(code, at)))
        .collect()
}

/// Tests whose names do not describe behavior.
fn names_of_tests(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && !file.path.contains("/ui/")) {
        for (at, name) in test_functions(&file.code()) {
            if name.starts_with("test_") || name.split('_').count() < 3 {
                findings.push(file.finding(at, format!("`{name}` does not describe behavior")));
            }
        }
    }
    findings
}

/// Text that is true only on one machine.
fn traces_of_one_machine(files: &[File]) -> Vec<Finding> {
    // Assembled here, so that this file is not a finding.
    let folders = ["root", "work", "home"].map(|folder| format!("/{folder}/"));
    let mut findings = Vec::new();
    for file in files {
        for folder in &folders {
            for (at, _) in file.text.match_indices(folder.as_str()) {
                // Not part of a longer path or address.
                let before = file.text[..at].chars().next_back();
                if before.is_none_or(|before| !before.is_alphanumeric() && !"./-_*}>)".contains(before)) {
                    findings.push(file.finding(at, format!("`{folder}` is a folder of one machine")));
                }
            }
        }
        let mut lower = file.text.to_lowercase();
        lower.truncate(if lower.len() == file.text.len() { lower.len() } else { 0 });
        for (at, found) in lower.match_indices("issue ") {
            let rest = lower[at + found.len()..].trim_start_matches('#');
            if rest.starts_with(|c: char| c.is_ascii_digit()) {
                findings.push(file.finding(at, "explain the reason instead of pointing to a number"));
            }
        }
    }
    findings
}

#[test]
fn file_names_describe_a_concept() {
    assert_none(&empty_names(&repository()));
}

#[test]
fn files_are_short() {
    assert_none(&long_files(&repository(), &LONG_FILES));
}

#[test]
fn no_comment_is_next_to_a_doc_comment() {
    assert_none(&adjacent_comments(&repository()));
}

#[test]
fn every_file_has_a_module_doc() {
    assert_none(&missing_module_docs(&repository()));
}

#[test]
fn every_test_and_every_example_runs() {
    assert_none(&ignored(&repository()));
}

#[test]
fn nothing_sleeps_for_a_duration() {
    assert_none(&sleepers(&repository()));
}

#[test]
fn names_of_tests_describe_behavior() {
    assert_none(&names_of_tests(&repository()));
}

#[test]
fn text_is_true_on_every_machine() {
    assert_none(&traces_of_one_machine(&repository()));
}

#[test]
fn empty_file_name_is_found() {
    assert_eq!(empty_names(&[File::new("framework/core/src/store/util.rs", "")]).len(), 1);
    assert_eq!(empty_names(&[File::new("framework/core/src/common/mod.rs", "")]).len(), 1);
    assert_eq!(empty_names(&[File::new("framework/core/src/store/utility_rates.rs", "")]).len(), 0);
}

#[test]
fn long_file_and_stale_exception_are_found() {
    let long = [File::new("a.rs", &"\n".repeat(LINES + 1))];
    let short = [File::new("a.rs", &"\n".repeat(LINES))];
    let exception = [("a.rs", "because")];
    assert_eq!(long_files(&long, &[]).len(), 1);
    assert_eq!(long_files(&long, &exception).len(), 0);
    assert_eq!(long_files(&short, &[]).len(), 0);
    assert_eq!(long_files(&short, &exception).len(), 1);
    assert_eq!(long_files(&[], &exception).len(), 1);
}

#[test]
fn comment_next_to_a_doc_comment_is_found() {
    let found = |text: &str| adjacent_comments(&[File::new("a.rs", text)]).len();
    assert_eq!(found("// Lost\n/// Kept.\nfn f() {}"), 1);
    assert_eq!(found("    /// Kept.\n    // Lost\n    fn f() {}"), 1);
    assert_eq!(found("// A remark.\n\n/// Kept.\nfn f() {} // fine\n// also\nfn g() {}"), 0);
}

#[test]
fn missing_module_doc_is_found() {
    assert_eq!(missing_module_docs(&[File::new("a.rs", "use x;\n//! late\n")]).len(), 1);
    assert_eq!(missing_module_docs(&[File::new("a.rs", "//! Says it.\n")]).len(), 0);
}

#[test]
fn ignored_test_and_example_are_found() {
    let found = |path: &str, text: &str| ignored(&[File::new(path, text)]).len();
    assert_eq!(found("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}"), 1);
    assert_eq!(found("a.rs", "/// ```rust,ignore\n/// x\n/// ```\nfn f() {}"), 1);
    assert_eq!(found("README.md", "```ignore\nx\n```"), 1);
    assert_eq!(found("a.rs", "// #[ignore]\n/// ```no_run\nlet x = \"#[ignore]\";"), 0);
}

#[test]
fn sleep_is_found() {
    assert_eq!(sleepers(&[File::new("tests/tests/a.rs", "fn f() { std::thread::sleep(SPAN); }")]).len(), 1);
    assert_eq!(sleepers(&[File::new("tests/tests/a.rs", "fn f() { timeout(SPAN, pending::<()>()).await; }")]).len(), 1);
    assert_eq!(sleepers(&[File::new("tests/tests/a.rs", "fn f() { timeout(SPAN, reply).await; }")]).len(), 0);
    assert_eq!(sleepers(&[File::new("tests/tests/a.rs", "// thread::sleep\nfn f() {}")]).len(), 0);
}

#[test]
fn meaningless_test_name_is_found() {
    let found = |text: &str| names_of_tests(&[File::new("a.rs", text)]).len();
    assert_eq!(found("#[test]\nfn test_the_thing_works() {}"), 1);
    assert_eq!(found("#[tokio::test(start_paused = true)]\nasync fn works() {}"), 1);
    assert_eq!(found("#[test]\nfn it_works_twice() {}"), 0);
}

#[test]
fn trace_of_one_machine_is_found() {
    let found = |text: &str| traces_of_one_machine(&[File::new("docs/a.md", text)]).len();
    for folder in ["root", "work", "home"] {
        assert_eq!(found(&format!("see `/{folder}/x`")), 1);
        assert_eq!(found(&format!("see tests/{folder}/x and https://a.b/{folder}/x")), 0);
    }
    assert_eq!(found(&format!("as {} {} says", "Issue", 7)), 1);
    assert_eq!(found("an issue of 7 pages"), 0);
}
