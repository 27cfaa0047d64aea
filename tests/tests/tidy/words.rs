//! One term per concept: docs/glossary.md has one row for each term of ours, and former terms are not used any longer.
//!
//! Standard terms of other frameworks are never rejected.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{File, Finding, assert_none, file, name_at, places, repository};

/// The rows of the table with this head: the byte at which each begins, and its cells.
fn rows<'a>(glossary: &'a File, head: &str) -> Vec<(usize, Vec<&'a str>)> {
    let lines = glossary.lines().skip_while(|(_, line)| *line != head).skip(2);
    let rows = lines.take_while(|(_, line)| line.starts_with('|'));
    rows.map(|(at, line)| (at, line.trim_matches('|').split('|').map(str::trim).collect())).collect()
}

/// Terms with two rows, and terms that another row lists as known elsewhere: two of our terms for one concept.
fn double_terms(glossary: &File) -> Vec<Finding> {
    let rows = rows(glossary, "| term | meaning here | known elsewhere as |");
    let mut findings = Vec::new();
    let mut terms = BTreeSet::new();
    for (at, cells) in &rows {
        let [names, meaning, _] = cells[..] else {
            findings.push(glossary.finding(*at, "expected three cells: term, meaning, known elsewhere as"));
            continue;
        };
        if meaning.is_empty() {
            findings.push(glossary.finding(*at, format!("`{names}` has no meaning")));
        }
        for term in names.split(", ").filter(|term| !terms.insert(*term)) {
            findings.push(glossary.finding(*at, format!("`{term}` has a row already")));
        }
    }
    for (at, cells) in &rows {
        for word in cells.get(2).into_iter().flat_map(|known| known.split(", ")).filter(|word| terms.contains(word)) {
            findings.push(glossary.finding(*at, format!("`{word}` is a term of ours with a row of its own")));
        }
    }
    findings
}

/// Former terms, each with the one that replaced it.
fn former(glossary: &File) -> Vec<(String, String)> {
    let rows = rows(glossary, "| former | term |").into_iter();
    let pair = |cells: Vec<&str>| match cells[..] {
        [former, term] => (former.to_owned(), term.to_owned()),
        _ => panic!("expected two cells: {cells:?}"),
    };
    rows.map(|(_, cells)| pair(cells)).collect()
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

/// The former term in a name, if there is one, and the term to use; a plural counts.
fn objection<'a>(name: &str, former: &'a [(String, String)]) -> Option<&'a (String, String)> {
    let name = spelled(name);
    former.iter().find(|(bad, _)| {
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

fn former_names(files: &[File], former: &[(String, String)]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ours = ["framework/", "macros/", "samples/", "tests/"];
    for file in files.iter().filter(|file| file.is_rust() && ours.iter().any(|folder| file.path.starts_with(folder))) {
        for part in file.path.split('/').skip(1).map(|part| part.trim_end_matches(".rs")) {
            if let Some((bad, good)) = objection(part, former) {
                findings.push(file.finding_at_top(format!("file name `{part}`: {bad} is a former term for {good}")));
            }
        }
        if file.is_product() {
            for (at, name) in public_names(&file.product_code()) {
                if let Some((bad, good)) = objection(name, former) {
                    findings.push(file.finding(at, format!("public name `{name}`: {bad} is a former term for {good}")));
                }
            }
        }
    }
    findings
}

/// Public types of one name. The fixtures of two suites have the same role, and so the same name.
fn overloaded(api: &File) -> Vec<Finding> {
    const SAME_ROLE: [&str; 1] = ["Fixture"];
    let mut paths = BTreeMap::<&str, (usize, &str)>::new();
    let mut findings = Vec::new();
    for (at, line) in api.lines() {
        let kinds = ["struct ", "enum ", "trait ", "union "];
        let Some(path) =
            kinds.iter().find_map(|kind| line.split_once(&format!("{kind}whizbang::"))).map(|(_, rest)| rest)
        else {
            continue;
        };
        let path = path.split(|c: char| !c.is_alphanumeric() && c != ':' && c != '_').next().unwrap_or_default();
        let path = path.trim_end_matches(':');
        let name = path.rsplit("::").next().unwrap_or_default();
        match paths.insert(name, (at, path)) {
            Some((_, other)) if other != path && !SAME_ROLE.contains(&name) => {
                findings.push(api.finding(at, format!("`{path}` has the name of `{other}`")));
            }
            _ => {}
        }
    }
    findings
}

#[test]
fn each_public_type_has_a_name_of_its_own() {
    let api = file("tests/public-api.txt");
    assert!(api.text.contains("struct whizbang::"), "the types were not found");
    assert_none(&overloaded(&api));
}

#[test]
fn second_public_type_of_a_name_is_found() {
    let found = |text: &str| overloaded(&File::new("tests/public-api.txt", text)).len();
    assert_eq!(found("struct whizbang::Run\nstruct whizbang::a::Run<T: A>\n"), 1);
    assert_eq!(found("trait whizbang::a::Fixture\ntrait whizbang::b::Fixture: Sized\n    pub run: Run\n"), 0);
    assert_eq!(found("#[derive(Debug)] struct whizbang::Run\nenum whizbang::Runs\n"), 0);
}

#[test]
fn each_concept_has_one_term() {
    let glossary = file("docs/glossary.md");
    assert!(rows(&glossary, "| term | meaning here | known elsewhere as |").len() >= 60, "the table was not found");
    assert_none(&double_terms(&glossary));
}

#[test]
fn names_contain_no_former_term() {
    let former = former(&file("docs/glossary.md"));
    assert!(!former.is_empty(), "the table of former terms was not found");
    assert_none(&former_names(&repository(), &former));
}

#[test]
fn second_term_for_a_concept_is_found() {
    let found = |rows: &str| {
        let head = "| term | meaning here | known elsewhere as |\n|---|---|---|\n";
        double_terms(&File::new("docs/glossary.md", &format!("# Glossary\n\n{head}{rows}\n| no | row |\n"))).len()
    };
    assert_eq!(found("| saga | x | process manager, workflow |\n| stream, log | y | topic |\n"), 0);
    assert_eq!(found("| saga | x | - |\n| stream, saga | y | - |\n"), 1);
    assert_eq!(found("| saga | x | - |\n| stream | y | topic, saga |\n"), 1);
    assert_eq!(found("| saga | | - |\n"), 1);
    assert_eq!(found("| saga | x |\n"), 1);
}

#[test]
fn former_term_is_found_however_it_is_spelled() {
    let glossary = "| former | term |\n|---|---|\n| process manager | saga |\n| topic | stream |\n";
    let former = former(&File::new("docs/glossary.md", glossary));
    assert_eq!(former, [("process manager".into(), "saga".into()), ("topic".into(), "stream".into())]);
    let found = |path: &str, text: &str| former_names(&[File::new(path, text)], &former).len();
    let path = "framework/runtime/src/saga/mod.rs";
    assert_eq!(found("framework/runtime/src/saga/process_manager.rs", ""), 1);
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
