//! Rules for the English of comments, docs, messages, Markdown and names of tests: software is not a person, a doc comment does not
//! start with a question word, worn words are avoided, a name is short.
//!
//! Other names in code and code spans of Markdown are not read. CONTRIBUTING.md explains the rules.

use crate::habits::test_functions;
use crate::source::{File, Finding, assert_none, places, repository};

/// Words for persons. A caller, store, node or subscriber has a name of its own.
const PERSONS: [&str; 14] = [
    "whoever",
    "nobody",
    "somebody",
    "someone",
    "anybody",
    "anyone",
    "everybody",
    "everyone",
    "no one",
    "who",
    "whom",
    "he",
    "his",
    "him",
];

/// Worn words. "Until then", "still" and "again" say the same.
const WORN: [&str; 7] = ["meanwhile", "all the same", "in vain", "at present", "over and over", "any more", "anew"];

/// Words that do not start a doc comment. "Returns …", "Publishes …" and "A node that …" do.
const QUESTIONS: [&str; 11] =
    ["What", "Who", "Whom", "Whose", "Whoever", "When", "Where", "Whether", "Why", "How", "Which"];

/// The longest name of a test.
const NAME: usize = 60;

/// The file that has to spell the words out.
const THIS: &str = "tests/tests/tidy/english.rs";

/// A file with blanks for everything that is not prose, in lower case; every byte keeps its place.
fn prose(file: &File) -> String {
    let mut out = file.text.to_ascii_lowercase().into_bytes();
    let mut blank = |from: usize, to: usize| out[from..to].iter_mut().filter(|b| **b != b'\n').for_each(|b| *b = b' ');
    if file.is_rust() {
        for (at, byte) in file.code().bytes().enumerate() {
            if byte != b' ' {
                blank(at, at + 1);
            }
        }
    } else if file.path.ends_with(".md") {
        let (mut is_block, mut is_code) = (false, false);
        for (at, line) in file.lines() {
            let is_fence = line.trim_start().starts_with("```");
            is_block ^= is_fence;
            if is_block || is_fence {
                blank(at, at + line.len());
                continue;
            }
            // A code span may go on in the next line, and ends with its paragraph.
            is_code &= !line.is_empty();
            for (index, byte) in line.bytes().enumerate() {
                is_code ^= byte == b'`';
                if is_code {
                    blank(at + index, at + index + 1);
                }
            }
        }
    } else {
        // Scripts, TOML files and the heads of patches.
        for (at, line) in file.lines().filter(|(_, line)| !line.trim_start().starts_with('#')) {
            blank(at, at + line.len());
        }
    }
    String::from_utf8(out).expect("only whole characters and parts of them were replaced by blanks")
}

fn persons(files: &[&File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path != THIS) {
        let prose = prose(file);
        for word in PERSONS {
            for at in places(&prose, word) {
                findings.push(file.finding(at, format!("`{word}`: name the caller, sender, owner or node instead")));
            }
        }
    }
    findings
}

fn worn(files: &[&File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.path != THIS && file.path != "CONTRIBUTING.md") {
        let prose = prose(file);
        for word in WORN {
            let places = places(&prose, word);
            findings.extend(places.into_iter().map(|at| file.finding(at, format!("`{word}`: use a plain word"))));
        }
    }
    findings
}

fn questions(files: &[&File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && file.path != THIS) {
        let mut last = None;
        for (at, line) in file.lines() {
            let mark = ["///", "//!"].into_iter().find(|mark| line.trim_start().starts_with(mark));
            if let Some(mark) = mark.filter(|_| mark != last) {
                let text = line.trim_start().trim_start_matches(mark).trim_start();
                let first = text.split(|c: char| !c.is_alphabetic()).next().unwrap_or_default();
                if QUESTIONS.contains(&first) {
                    findings.push(file.finding(at, format!("starts with `{first}`: start with a noun or a verb")));
                }
            }
            last = mark;
        }
    }
    findings
}

fn names_of_tests(files: &[&File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() && !file.path.contains("/ui/")) {
        for (at, name) in test_functions(&file.code()) {
            if name.len() > NAME {
                findings.push(file.finding(at, format!("`{name}` has {} characters, more than {NAME}", name.len())));
            }
            if ["who_", "what_", "whoever_"].iter().any(|question| name.starts_with(question)) {
                findings.push(file.finding(at, format!("`{name}`: start with the subject")));
            }
        }
    }
    findings
}

#[test]
fn software_is_not_a_person() {
    assert_none(&persons(&repository().iter().collect::<Vec<_>>()));
}

#[test]
fn prose_has_no_worn_words() {
    assert_none(&worn(&repository().iter().collect::<Vec<_>>()));
}

#[test]
fn doc_comments_start_with_a_noun_or_a_verb() {
    assert_none(&questions(&repository().iter().collect::<Vec<_>>()));
}

#[test]
fn names_of_tests_are_short_and_start_with_their_subject() {
    assert_none(&names_of_tests(&repository().iter().collect::<Vec<_>>()));
}

#[test]
fn long_name_of_a_test_is_found() {
    let found = |name: &str| names_of_tests(&[&File::new("a.rs", &format!("#[test]\nfn {name}() {{}}"))]).len();
    assert_eq!(found(&"a".repeat(NAME)), 0);
    assert_eq!(found(&"a".repeat(NAME + 1)), 1);
    assert_eq!(found("who_waits_is_told"), 1);
}

#[test]
fn word_for_a_person_is_found_in_prose_only() {
    let found = |path: &str, text: &str| persons(&[&File::new(path, text)]).len();
    assert_eq!(found("a.rs", "// Whoever sends waits, or anyone who asks.\nfn f() { log(\"somebody is in\") }"), 4);
    assert_eq!(found("a.rs", "fn nobody() { his(b'x'); } // the\nlet whoever = \"none\";"), 0);
    assert_eq!(found("a.md", "He waits.\n`his`\n```rust\nlet him = 1; // nobody\n```\nThere is no one.\n"), 2);
    assert_eq!(
        found("a.md", "A `code span of\ntwo lines with nobody` and an open ` mark\n\nof which nobody knows.\n"),
        1
    );
    assert_eq!(found("run", "#!/bin/sh\n# nobody\nsu nobody\n"), 1);
}

#[test]
fn worn_word_is_found_in_prose_only() {
    let found = |path: &str, text: &str| worn(&[&File::new(path, text)]).len();
    assert_eq!(found("a.rs", "// Meanwhile it is sent over and over.\nlet meanwhile = anew();"), 2);
    assert_eq!(found("a.md", "How many more?\n"), 0);
}

#[test]
fn question_at_the_start_of_a_doc_comment_is_found() {
    let found = |text: &str| questions(&[&File::new("a.rs", text)]).len();
    assert_eq!(found("/// Whose it is.\nfn f() {}\n/// When it is.\nfn g() {}\n"), 2);
    assert_eq!(found("//! What it is.\n\n/// Whether it is.\nfn f() {}\n    /// How, and why.\n"), 3);
    assert_eq!(found("/// Returns whether it is,\n/// Which it is not.\n// What?\nfn f() {}\n"), 0);
    assert_eq!(found("/// Whatever comes.\n"), 0);
}
