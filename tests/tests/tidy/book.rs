//! The documentation as a book: each page is in its summary, each Rust block is a doctest, and the README's program is the sample.

use std::collections::BTreeSet;

use crate::docs::plain_path;
use crate::source::{File, Finding, assert_none, file, repository};

/// The pages whose Rust blocks are compiled elsewhere, and where.
const ELSEWHERE: [(&str, &str); 2] = [
    ("docs/patterns.md", "compared with the programs in tests/tests/patterns"),
    ("docs/testing-sagas.md", "compared with the code of framework/whizbang/tests/testing_sagas.rs"),
];

/// The limit for the README's program, in lines that are not blank.
const HELLO_LINES: usize = 30;

/// The pages that a summary links to, from the root of the repository.
fn listed(summary: &File) -> BTreeSet<String> {
    let links = summary.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    links.map(|page| format!("docs/{page}")).collect()
}

/// Pages of the book that its summary does not list.
fn missing_pages(files: &[File], summary: &File) -> Vec<Finding> {
    let listed = listed(summary);
    let is_page = |file: &&File| file.path.starts_with("docs/") && file.path.ends_with(".md");
    let missing = |file: &&File| file.path != summary.path && !listed.contains(&file.path);
    let pages = files.iter().filter(is_page).filter(missing);
    pages.map(|page| page.finding_at_top("is not listed in docs/SUMMARY.md")).collect()
}

/// Pages with a Rust block that is not a doctest.
fn untested_pages(files: &[File], doctests: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.path.ends_with(".md")) {
        let is_tested = doctests.text.contains(&format!("= \"{}\",", page.path));
        let is_elsewhere = ELSEWHERE.iter().any(|(path, _)| *path == page.path);
        if let Some((at, _)) = page.lines().find(|(_, line)| line.starts_with("```rust"))
            && !is_tested
            && !is_elsewhere
        {
            findings.push(page.finding(at, format!("is not a doctest: list the page in {}", doctests.path)));
        }
    }
    findings
}

/// The anchor that GitHub and mdBook give to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Links to headings that their page does not have.
fn dead_anchors(files: &[File]) -> Vec<Finding> {
    let is_page = |file: &&File| file.path.ends_with(".md");
    let mut anchors = BTreeSet::new();
    for page in files.iter().filter(is_page) {
        let headings = page.text.lines().filter(|line| line.starts_with('#'));
        anchors.extend(headings.map(|line| (&*page.path, anchor(line.trim_start_matches('#')))));
    }
    let mut findings = Vec::new();
    for page in files.iter().filter(is_page) {
        let folder = page.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (at, _) in page.text.match_indices("](") {
            let link = page.text[at + 2..].split([')', ' ', '\n']).next().unwrap_or_default();
            let Some((target, heading)) = link.split_once('#').filter(|_| !link.contains("://")) else { continue };
            let path = if target.is_empty() { page.path.clone() } else { plain_path(folder, target) };
            if path.ends_with(".md") && !anchors.contains(&(&*path, heading.to_owned())) {
                findings.push(page.finding(at, format!("links to `{link}`, and there is no such heading")));
            }
        }
    }
    findings
}

/// Relative links of the book's pages to files outside of the book. They work where the repository is shown, and not in the
/// book.
fn links_out_of_the_book(files: &[File]) -> Vec<Finding> {
    let is_page = |file: &&File| file.path.starts_with("docs/") && file.path.ends_with(".md");
    let mut findings = Vec::new();
    for page in files.iter().filter(is_page) {
        let folder = page.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (at, _) in page.text.match_indices("](") {
            let link = page.text[at + 2..].split([')', '#', ' ', '\n']).next().unwrap_or_default();
            if !link.is_empty() && !link.contains(':') && !plain_path(folder, link).starts_with("docs/") {
                findings
                    .push(page.finding(at, format!("links to `{link}`, outside of the book: name its path instead")));
            }
        }
    }
    findings
}

/// The first Rust block of a page.
fn first_program(page: &File) -> &str {
    let block = page.text.split("```rust\n").nth(1).unwrap_or_default();
    block.split("```").next().unwrap_or_default()
}

#[test]
fn every_page_is_listed_in_the_summary() {
    assert_none(&missing_pages(&repository(), &file("docs/SUMMARY.md")));
}

#[test]
fn every_rust_block_of_a_page_is_compiled() {
    assert_none(&untested_pages(&repository(), &file("tests/src/pages.rs")));
}

#[test]
fn every_link_to_a_heading_finds_it() {
    assert_none(&dead_anchors(&repository()));
}

#[test]
fn every_link_of_the_book_stays_inside() {
    assert_none(&links_out_of_the_book(&repository()));
}

#[test]
fn hello_of_the_readme_is_the_sample_and_short() {
    let (readme, sample) = (file("README.md"), file("samples/hello/src/main.rs"));
    let program = first_program(&readme);
    assert!(sample.text.ends_with(&format!("\n\n{program}")), "samples/hello/src/main.rs is another program");
    assert_eq!(first_program(&file("framework/whizbang/README.md")), program, "the README that crates.io shows");
    let lines = program.lines().filter(|line| !line.is_empty()).count();
    assert!((10..=HELLO_LINES).contains(&lines), "{lines} lines");
}

/// A program after a diff without positions: each group of `+` lines replaces the `-` lines before it.
fn patched(program: &str, diff: &str) -> Option<String> {
    let lines =
        |sign: char| diff.lines().filter_map(move |line| line.strip_prefix(sign)).collect::<Vec<_>>().join("\n");
    let (removed, added) = (lines('-'), lines('+'));
    let is_there = !removed.is_empty() && program.matches(&removed).count() == 1;
    is_there.then(|| program.replace(&removed, &added))
}

#[test]
fn diff_of_the_readme_gives_the_example_of_the_sample() {
    let (readme, example) = (file("README.md"), file("samples/hello/examples/durable.rs"));
    let diff = readme.text.split("```diff\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a diff");
    let program = patched(first_program(&readme), diff).expect("the diff applies to the program of the README");
    assert!(example.text.ends_with(&format!("\n\n{program}")), "samples/hello/examples/durable.rs is another program");
    assert_eq!(patched("a\nb\n", "-a\n+c\n+d\n").as_deref(), Some("c\nd\nb\n"));
    assert_eq!(patched("a\nb\n", "-x\n+c\n"), None);
}

#[test]
fn settings_of_the_book_can_be_read() {
    let settings: toml::Table = file("docs/book.toml").text.parse().expect("docs/book.toml is TOML");
    assert_eq!(settings["book"]["src"].as_str(), Some("."));
}

#[test]
fn page_missing_from_the_summary_is_found() {
    let files = [File::new("docs/a.md", ""), File::new("docs/b/c.md", ""), File::new("README.md", "")];
    let found = |summary: &str| missing_pages(&files, &File::new("docs/SUMMARY.md", summary)).len();
    assert_eq!(found("- [A](a.md)\n- [C](b/c.md)\n"), 0);
    assert_eq!(found("- [A](a.md)\n"), 1);
    assert_eq!(found(""), 2);
}

#[test]
fn link_to_a_missing_heading_is_found() {
    let page = |text: &str| File::new("docs/a.md", &format!("# One `Two`, three\n\n{text}\n"));
    let other = || File::new("docs/b/c.md", "## Last-one\n");
    let found = |text: &str| dead_anchors(&[page(text), other()]).len();
    assert_eq!(found("[x](#one-two-three) [y](b/c.md#last-one) [z](https://a.b/c.md#x) [w](b/c.md)"), 0);
    assert_eq!(found("[x](#one) [y](b/c.md#first-one)"), 2);
}

#[test]
fn link_out_of_the_book_is_found() {
    let found = |path: &str, text: &str| links_out_of_the_book(&[File::new(path, text)]).len();
    assert_eq!(found("docs/a.md", "[x](b/c.md#d) [y](https://a.b/c) [z](#part) [w](../docs/e.md)"), 0);
    assert_eq!(found("docs/b/c.md", "[x](../../README.md) [y](../a.md)"), 1);
    assert_eq!(found("docs/a.md", "[x](../samples/b/README.md#c)"), 1);
    assert_eq!(found("README.md", "[x](samples/b/README.md)"), 0);
}

#[test]
fn page_that_is_not_a_doctest_is_found() {
    let doctests = File::new("pages.rs", "pages! {\n    A = \"docs/a.md\",\n}\n");
    let found = |path: &str, text: &str| untested_pages(&[File::new(path, text)], &doctests).len();
    assert_eq!(found("docs/a.md", "```rust,no_run\n```"), 0);
    assert_eq!(found("docs/b.md", "```sh\n```"), 0);
    assert_eq!(found("docs/b.md", "text\n```rust\n```"), 1);
}
