//! One word per concept: what docs/glossary.md rejects stands in no file name and in no public name.

use crate::source::{File, Finding, assert_none, file, name_at, places, repository};

/// Rejected words, each with the word to use: what stands in `code` in the glossary's last column.
fn rejected(glossary: &File) -> Vec<(String, String)> {
    let rows = glossary.text.lines().skip_while(|line| !line.starts_with("| word | means here | not |")).skip(2);
    let mut rejected = Vec::new();
    for line in rows.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [word, _, not] = cells[..] else { panic!("not three cells: {line}") };
        for bad in not.split('`').skip(1).step_by(2) {
            rejected.push((bad.to_owned(), word.to_owned()));
        }
    }
    rejected
}

/// A name in lower case with `_` between its words and at both ends: `DeadLetter`, `dead-letter` and `dead_letter` are one.
fn spelled(name: &str) -> String {
    let mut out = String::from("_");
    let mut was_lower = false;
    for c in name.chars() {
        if c.is_uppercase() && was_lower || !c.is_alphanumeric() {
            out.push('_');
        }
        was_lower = c.is_lowercase() || c.is_ascii_digit();
        if c.is_alphanumeric() {
            out.extend(c.to_lowercase());
        }
    }
    out.push('_');
    out
}

/// The rejected word in a name, if there is one, and the word to use; a plural counts.
fn objection<'a>(name: &str, rejected: &'a [(String, String)]) -> Option<&'a (String, String)> {
    let name = spelled(name);
    rejected.iter().find(|(bad, _)| {
        let bad = spelled(bad);
        let plural = format!("{}s_", bad.trim_end_matches('_'));
        name.contains(&bad) || name.contains(&plural)
    })
}

/// The names that a file makes public, with their places.
fn public_names(code: &str) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    for at in places(code, "pub") {
        let mut at = at + "pub".len();
        loop {
            at += code[at..].len() - code[at..].trim_start().len();
            let word = name_at(code, at);
            match word {
                "const" | "static" | "struct" | "enum" | "trait" | "fn" | "type" | "mod" | "async" | "unsafe"
                | "mut" => {
                    at += word.len();
                }
                "" | "use" | "crate" => break,
                name => {
                    names.push((at, name));
                    break;
                }
            }
        }
    }
    names
}

fn rejected_names(files: &[File], rejected: &[(String, String)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ours = ["framework/", "macros/", "samples/", "tests/"];
    for file in files.iter().filter(|file| file.is_rust() && ours.iter().any(|folder| file.path.starts_with(folder))) {
        for part in file.path.split('/').skip(1).map(|part| part.trim_end_matches(".rs")) {
            if let Some((bad, good)) = objection(part, rejected) {
                findings.push(file.finding_at_top(format!("file name `{part}`: here a {bad} is a {good}")));
            }
        }
        if file.is_product() {
            for (at, name) in public_names(&file.product_code()) {
                if let Some((bad, good)) = objection(name, rejected) {
                    findings.push(file.finding(at, format!("public name `{name}`: here a {bad} is a {good}")));
                }
            }
        }
    }
    findings
}

#[test]
fn names_use_the_words_of_the_glossary() {
    let rejected = rejected(&file("docs/glossary.md"));
    assert!(rejected.len() >= 30, "the glossary's table was not found: {rejected:?}");
    assert_none(&rejected_names(&repository(), &rejected));
}

#[test]
fn a_rejected_word_is_found_however_it_is_spelled() {
    let glossary = "| word | means here | not |\n|---|---|---|\n| saga | x | `process manager`, context |\n| stream | y | `topic` |\n";
    let rejected = rejected(&File::new("docs/glossary.md", glossary));
    assert_eq!(rejected, [("process manager".into(), "saga".into()), ("topic".into(), "stream".into())]);
    let found = |path: &str, text: &str| rejected_names(&[File::new(path, text)], &rejected).len();
    let path = "framework/src/saga/mod.rs";
    assert_eq!(found("framework/src/saga/process_manager.rs", ""), 1);
    assert_eq!(found("tests/tests/topics.rs", ""), 1);
    assert_eq!(found(path, "pub struct ProcessManagerBuilder;"), 1);
    assert_eq!(found(path, "pub async fn topic(&self) {}"), 1);
    assert_eq!(found(path, "struct X { pub topics: u8, }"), 1);
    assert_eq!(found(path, "pub const TOPIC: u8 = 1;"), 1);
    assert_eq!(
        found(path, "pub struct Context; pub fn isotopic() {} // pub fn topic\nfn topic() { pub(crate) fn x() {} }"),
        0
    );
}
