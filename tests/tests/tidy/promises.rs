//! Each promise and each claim about security names tests that exist.
//!
//! A page states promises in the rows of tables: number and text. A second page lists the tests of each number below a heading,
//! one test a line, so that a renamed test changes one line.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{File, Finding, assert_none, file, repository};

/// Guarantees that must have a row. There is no I15.
const GUARANTEES: [u32; 26] =
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27];

/// Sections of the page on security that describe and claim nothing; all others hold rows.
const WITHOUT_CLAIMS: [&str; 3] = ["Assets", "Identities", "Assumptions"];

/// The numbers of the rows that begin with `| I` or another letter, in their order; a row without a text is a finding.
fn rows<'a>(page: &'a File, letter: &str, findings: &mut Vec<Finding>) -> Vec<&'a str> {
    let mut numbers = Vec::new();
    for (at, line) in page.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let is_row = line.strip_prefix("| ").and_then(|row| row.strip_prefix(letter));
        if is_row.is_some_and(|row| row.starts_with(|c: char| c.is_ascii_digit())) {
            match cells[..] {
                [number, text] if !text.is_empty() => numbers.push(number),
                _ => findings.push(page.finding(at, "expected two cells: number and text")),
            }
        }
    }
    numbers
}

/// Rows without a test that exists, and sections of the second page that belong to no row.
fn untested(page: &File, tests: &File, letter: &str, files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let numbers = rows(page, letter, &mut findings);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut section = "";
    for (at, line) in tests.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
            if !numbers.contains(&section) || counts.insert(section, 0).is_some() {
                findings
                    .push(tests.finding(at, format!("`{section}` is not a row of {}, or is listed twice", page.path)));
            }
        } else if !section.is_empty() && !line.is_empty() {
            let test = line.strip_prefix("- `").and_then(|line| line.strip_suffix('`')).unwrap_or_default();
            if !exists(test, files) {
                findings.push(tests.finding(at, format!("{section} names the test `{test}`, which does not exist")));
            }
            *counts.entry(section).or_default() += 1;
        }
    }
    for number in numbers.iter().filter(|number| counts.get(*number).copied().unwrap_or_default() == 0) {
        findings.push(page.finding_at_top(format!("{number} has no test in {}", tests.path)));
    }
    findings
}

/// True if `path::name_of_the_test` is a function of that file.
fn exists(test: &str, files: &[File]) -> bool {
    test.rsplit_once("::").is_some_and(|(path, name)| {
        let head = format!("fn {name}(");
        files.iter().any(|file| file.path == path && file.code().contains(&head))
    })
}

/// Guarantees without a row.
fn missing_guarantees(page: &File) -> Vec<Finding> {
    let numbers: BTreeSet<&str> = rows(page, "I", &mut Vec::new()).into_iter().collect();
    let wanted = GUARANTEES.map(|number| format!("I{number}"));
    let missing = wanted.iter().filter(|number| !numbers.contains(number.as_str()));
    missing.map(|number| page.finding_at_top(format!("{number} has no row"))).collect()
}

/// Claims about security that are not numbered 1, 2, 3, and claims outside of rows.
fn stray_claims(page: &File) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, number) in rows(page, "S", &mut findings).into_iter().enumerate() {
        if number != format!("S{}", index + 1) {
            findings.push(page.finding_at_top(format!("{number} is not S{}", index + 1)));
        }
    }
    let mut section = "";
    for (at, line) in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        } else if !section.is_empty() && !WITHOUT_CLAIMS.contains(&section) && !is_table(line) {
            findings.push(page.finding(at, "claims something outside of a row, which would have a test"));
        }
    }
    findings
}

/// True for an empty line, a row, and the head of a table.
fn is_table(line: &str) -> bool {
    line.is_empty() || line.starts_with("| S") || line.starts_with("| number |") || line.starts_with("|---")
}

#[test]
fn every_guarantee_names_tests_that_exist() {
    let (page, tests) = (file("docs/guarantees.md"), file("docs/guarantees-tests.md"));
    assert_none(&untested(&page, &tests, "I", &repository()));
    assert_none(&missing_guarantees(&page));
}

#[test]
fn every_claim_about_security_names_tests_that_exist() {
    let (page, tests) = (file("docs/security.md"), file("docs/security-tests.md"));
    assert_none(&untested(&page, &tests, "S", &repository()));
    assert_none(&stray_claims(&page));
}

#[test]
fn promise_without_a_test_is_found() {
    let files = [File::new("tests/tests/a.rs", "#[test]\nfn it_holds() {}\n// fn it_does_not_hold() {}")];
    let found = |rows: &str, sections: &str| {
        let (page, tests) = (File::new("docs/a.md", rows), File::new("docs/a-tests.md", sections));
        untested(&page, &tests, "I", &files).len()
    };
    let row = "| I1 | x |\n";
    assert_eq!(found(row, "About.\n\n## I1\n\n- `tests/tests/a.rs::it_holds`\n"), 0);
    assert_eq!(found(row, "## I1\n\n- `tests/tests/a.rs::it_does_not_hold`\n"), 1);
    assert_eq!(found(row, "## I1\n\n- `tests/tests/b.rs::it_holds`\n"), 1);
    assert_eq!(found(row, "## I1\n\nsurely\n"), 1);
    assert_eq!(found(row, "## I1\n"), 1);
    assert_eq!(found(row, ""), 1);
    assert_eq!(found("", "## I1\n\n- `tests/tests/a.rs::it_holds`\n"), 1, "a section without a row");
    assert_eq!(found("| I1 | |\n", ""), 1, "a row without a text");
    assert_eq!(found("| I1 | x | `tests/tests/a.rs::it_holds` |\n", ""), 1, "a row of three cells");
    let section = "## I1\n\n- `tests/tests/a.rs::it_holds`\n";
    assert_eq!(found(row, &section.repeat(2)), 1, "a number that is listed twice");
}

#[test]
fn missing_guarantee_is_found() {
    let found = |rows: &str| missing_guarantees(&File::new("docs/guarantees.md", rows)).len();
    let all: String = GUARANTEES.iter().map(|number| format!("| I{number} | x |\n")).collect();
    assert_eq!(found(&all), 0);
    assert_eq!(found(&all.replace("| I7 | x |\n", "")), 1);
}

#[test]
fn stray_claim_about_security_is_found() {
    let found = |text: &str| {
        stray_claims(&File::new("docs/security.md", &format!("# S\n\n## Assets\n\nMoney.\n\n## A peer\n\n{text}")))
            .len()
    };
    let head = "| number | claim |\n|---|---|\n";
    assert_eq!(found(&format!("{head}| S1 | x |\n")), 0);
    assert_eq!(found(&format!("{head}| S2 | x |\n")), 1);
    assert_eq!(found(&format!("A peer is harmless.\n\n{head}| S1 | x |\n")), 1);
}
