//! Habits of the text: names and sizes of files, comments that reach their reader, tests that run and wait for something.

use crate::source::{File, Finding, assert_none, name_at, places, repository};

/// Names of files that say nothing: the thing inside has a name.
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

/// Files may be longer than this only with a reason in [`LONG_FILES`].
const LINES: usize = 500;

/// Files past the limit, and why they stay whole.
const LONG_FILES: [(&str, &str); 0] = [];

/// Where a thread may sleep, and why.
const SLEEPERS: [(&str, &str); 5] = [
    ("tests/src/eventually.rs", "looks again and again at what cannot wake it: other processes, their files and ports"),
    ("tests/bench/src/idle.rs", "measures a node that does nothing for a while"),
    ("tests/bench/src/nats/ours.rs", "the interval of a poll in a benchmark"),
    ("tests/tests/flows/wrong_fulfilment.rs", "virtual time passes in a simulated cluster"),
    ("framework/src/store/embedded/disk.rs", "asks again for a lock that somebody may have who only looks"),
];

fn empty_names(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        for part in file.path.split('/').map(|part| part.trim_end_matches(".rs")) {
            if EMPTY_NAMES.contains(&part) {
                findings.push(file.finding_at_top(format!("`{part}` says nothing: what is inside has a name")));
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
                findings.push(file.finding_at_top(format!("{lines} lines: a concept inside wants its own file")));
            }
            Some(_) if lines <= LINES => {
                findings.push(file.finding_at_top("is short enough now: strike it off the list of long files"));
            }
            _ => {}
        }
    }
    for (path, _) in allowed {
        if !files.iter().any(|file| file.path == *path) {
            findings.push(File::new(path, "").finding_at_top("is gone: strike it off the list of long files"));
        }
    }
    findings
}

/// Comments directly above doc comments: most are doc lines with a slash missing, which rustdoc never shows.
fn glued_comments(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let lines: Vec<(usize, &str)> = file.lines().map(|(at, line)| (at, line.trim_start())).collect();
        for pair in lines.windows(2) {
            let plain = |line: &str| line.starts_with("//") && !line.starts_with("///") && !line.starts_with("//!");
            let doc = |line: &str| line.starts_with("///") && !line.starts_with("////");
            if plain(pair[0].1) && doc(pair[1].1) || doc(pair[0].1) && plain(pair[1].1) {
                findings.push(file.finding(pair[0].0, "a comment glued to a doc comment is lost to rustdoc"));
            }
        }
    }
    findings
}

/// Files that do not say at their top what they are.
fn missing_module_docs(files: &[File]) -> Vec<Finding> {
    let silent = |file: &&File| file.is_rust() && !file.path.contains("/ui/") && !file.text.starts_with("//!");
    files.iter().filter(silent).map(|file| file.finding_at_top("begins without `//!`: what is this file?")).collect()
}

/// Tests and examples that do not run.
fn switched_off(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files {
        if file.is_rust() {
            let code = file.code();
            for at in places(&code, "#[ignore").into_iter().chain(places(&code, "#[cfg_attr(ignore")) {
                findings.push(file.finding(at, "a test that does not run proves nothing"));
            }
        }
        for (at, line) in file.lines() {
            let line = line.trim_start().trim_start_matches("///").trim_start_matches("//!").trim_start();
            let Some(words) = line.strip_prefix("```") else { continue };
            if words.split([',', ' ']).any(|word| word.starts_with("ignore")) {
                findings.push(file.finding(at, "an example that is not compiled rots; `no_run` if it needs a server"));
            }
        }
    }
    findings
}

fn sleepers(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && !SLEEPERS.iter().any(|(path, _)| *path == file.path)) {
        let code = file.code();
        // A timeout of what never ends is a sleep.
        let ends = |at: usize| code[at..].find(['\n', ';']).map_or(code.len(), |end| at + end);
        let disguised = places(&code, "timeout").into_iter().filter(|at| code[*at..ends(*at)].contains("pending"));
        for at in places(&code, "thread::sleep").into_iter().chain(disguised) {
            findings.push(file.finding(at, "wait for a condition with a deadline (`eventually`), not for a span"));
        }
    }
    findings
}

/// Tests whose names are no sentences about behavior.
fn names_of_tests(files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && !file.path.contains("/ui/")) {
        let code = file.code();
        for mark in ["#[test]", "#[tokio::test", "#[actix_rt::test", "#[actix::test", "#[whizbang::test"] {
            for (at, _) in code.match_indices(mark) {
                let Some(name) = code[at..].find("fn ").map(|found| at + found + 3) else { continue };
                let words = name_at(&code, name);
                if words.starts_with("test_") || words.split('_').count() < 3 {
                    findings.push(file.finding(name, format!("`{words}` is no sentence about behavior")));
                }
            }
        }
    }
    findings
}

/// Text that is true only where it was written.
fn traces_of_the_workplace(files: &[File]) -> Vec<Finding> {
    // Put together here, so that this file is not its own finding.
    let folders = ["root", "work", "home"].map(|folder| format!("/{folder}/"));
    let mut findings = Vec::new();
    for file in files {
        for folder in &folders {
            for (at, _) in file.text.match_indices(folder.as_str()) {
                // Part of a longer path or address.
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
                findings.push(file.finding(at, "a text explains itself and does not point to a number"));
            }
        }
    }
    findings
}

#[test]
fn files_are_named_after_what_is_inside() {
    assert_none(&empty_names(&repository()));
}

#[test]
fn files_are_short() {
    assert_none(&long_files(&repository(), &LONG_FILES));
}

#[test]
fn no_comment_is_glued_to_a_doc_comment() {
    assert_none(&glued_comments(&repository()));
}

#[test]
fn every_file_says_what_it_is() {
    assert_none(&missing_module_docs(&repository()));
}

#[test]
fn every_test_and_every_example_runs() {
    assert_none(&switched_off(&repository()));
}

#[test]
fn nothing_sleeps_for_a_span() {
    assert_none(&sleepers(&repository()));
}

#[test]
fn tests_are_named_as_sentences() {
    assert_none(&names_of_tests(&repository()));
}

#[test]
fn the_text_is_true_on_every_machine() {
    assert_none(&traces_of_the_workplace(&repository()));
}

#[test]
fn a_file_with_an_empty_name_is_found() {
    assert_eq!(empty_names(&[File::new("framework/src/store/util.rs", "")]).len(), 1);
    assert_eq!(empty_names(&[File::new("framework/src/common/mod.rs", "")]).len(), 1);
    assert_eq!(empty_names(&[File::new("framework/src/store/utility_rates.rs", "")]).len(), 0);
}

#[test]
fn a_long_file_is_found_and_so_is_a_stale_excuse() {
    let long = [File::new("a.rs", &"\n".repeat(LINES + 1))];
    let short = [File::new("a.rs", &"\n".repeat(LINES))];
    let excuse = [("a.rs", "because")];
    assert_eq!(long_files(&long, &[]).len(), 1);
    assert_eq!(long_files(&long, &excuse).len(), 0);
    assert_eq!(long_files(&short, &[]).len(), 0);
    assert_eq!(long_files(&short, &excuse).len(), 1);
    assert_eq!(long_files(&[], &excuse).len(), 1);
}

#[test]
fn a_glued_comment_is_found() {
    let found = |text: &str| glued_comments(&[File::new("a.rs", text)]).len();
    assert_eq!(found("// Lost\n/// Kept.\nfn f() {}"), 1);
    assert_eq!(found("    /// Kept.\n    // Lost\n    fn f() {}"), 1);
    assert_eq!(found("// A remark.\n\n/// Kept.\nfn f() {} // fine\n// also\nfn g() {}"), 0);
}

#[test]
fn a_file_without_its_doc_is_found() {
    assert_eq!(missing_module_docs(&[File::new("a.rs", "use x;\n//! late\n")]).len(), 1);
    assert_eq!(missing_module_docs(&[File::new("a.rs", "//! Says it.\n")]).len(), 0);
}

#[test]
fn a_test_or_an_example_that_does_not_run_is_found() {
    let found = |path: &str, text: &str| switched_off(&[File::new(path, text)]).len();
    assert_eq!(found("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}"), 1);
    assert_eq!(found("a.rs", "/// ```rust,ignore\n/// x\n/// ```\nfn f() {}"), 1);
    assert_eq!(found("README.md", "```ignore\nx\n```"), 1);
    assert_eq!(found("a.rs", "// #[ignore]\n/// ```no_run\nlet x = \"#[ignore]\";"), 0);
}

#[test]
fn a_sleep_is_found() {
    assert_eq!(sleepers(&[File::new("tests/tests/a.rs", "fn f() { std::thread::sleep(SPAN); }")]).len(), 1);
    assert_eq!(sleepers(&[File::new("tests/tests/a.rs", "fn f() { timeout(SPAN, pending::<()>()).await; }")]).len(), 1);
    assert_eq!(sleepers(&[File::new("tests/tests/a.rs", "fn f() { timeout(SPAN, reply).await; }")]).len(), 0);
    assert_eq!(sleepers(&[File::new("tests/tests/a.rs", "// thread::sleep\nfn f() {}")]).len(), 0);
}

#[test]
fn a_name_that_is_no_sentence_is_found() {
    let found = |text: &str| names_of_tests(&[File::new("a.rs", text)]).len();
    assert_eq!(found("#[test]\nfn test_the_thing_works() {}"), 1);
    assert_eq!(found("#[tokio::test(start_paused = true)]\nasync fn works() {}"), 1);
    assert_eq!(found("#[test]\nfn it_works_twice() {}"), 0);
}

#[test]
fn a_trace_of_the_workplace_is_found() {
    let found = |text: &str| traces_of_the_workplace(&[File::new("docs/a.md", text)]).len();
    for folder in ["root", "work", "home"] {
        assert_eq!(found(&format!("see `/{folder}/x`")), 1);
        assert_eq!(found(&format!("see tests/{folder}/x and https://a.b/{folder}/x")), 0);
    }
    assert_eq!(found(&format!("as {} {} says", "Issue", 7)), 1);
    assert_eq!(found("an issue of 7 pages"), 0);
}
