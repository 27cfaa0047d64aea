//! The page on security names a test for each of its claims, and makes no claim elsewhere.

use crate::docs::is_there;
use crate::source::{File, Finding, assert_none, file, repository};

/// Sections that describe and claim nothing; all others hold rows.
const WITHOUT_CLAIMS: [&str; 3] = ["Assets", "Identities", "Assumptions"];

/// Rows of claims without a number in order or without a test, and claims outside of rows.
fn untested_claims(page: &File, files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut section, mut last) = ("", 0);
    for (at, line) in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading;
        }
        if let Some(row) = line.strip_prefix("| S") {
            last += 1;
            let cells: Vec<&str> = row.trim_end_matches('|').split('|').map(str::trim).collect();
            let [number, claim, tests] = cells[..] else {
                findings.push(page.finding(at, "not three cells: number, claim, tests"));
                continue;
            };
            if number != last.to_string() || claim.is_empty() {
                findings.push(page.finding(at, format!("S{number} is not S{last}, or claims nothing")));
            }
            let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
            if named.is_empty() {
                findings.push(page.finding(at, format!("S{number} names no test")));
            }
            for test in named.into_iter().filter(|test| !is_there(test, files)) {
                findings.push(page.finding(at, format!("S{number} names the test `{test}`, which is not there")));
            }
        } else if !section.is_empty() && !WITHOUT_CLAIMS.contains(&section) && !is_frame(line) {
            findings.push(page.finding(at, "claims something outside of a row, which would name its test"));
        }
    }
    if last == 0 {
        findings.push(page.finding_at_top("has no claims"));
    }
    findings
}

/// Whether a line is part of a page's frame: empty, a heading, the head of a table.
fn is_frame(line: &str) -> bool {
    line.is_empty() || line.starts_with('#') || line.starts_with("| number |") || line.starts_with("|---")
}

#[test]
fn every_claim_about_security_names_tests_that_exist() {
    assert_none(&untested_claims(&file("docs/security.md"), &repository()));
}

#[test]
fn a_claim_about_security_without_a_test_is_found() {
    let files = [File::new("tests/tests/a.rs", "#[test]\nfn it_holds() {}\n")];
    let found = |rows: &str| {
        let page = format!("# Security\n\nAbout.\n\n## Assets\n\nMoney.\n\n## A peer\n\n{rows}");
        untested_claims(&File::new("docs/security.md", &page), &files).len()
    };
    let head = "| number | claim | tests |\n|---|---|---|\n";
    assert_eq!(found(&format!("{head}| S1 | x | `tests/tests/a.rs::it_holds` |\n")), 0);
    assert_eq!(found(&format!("{head}| S2 | x | `tests/tests/a.rs::it_holds` |\n")), 1);
    assert_eq!(found(&format!("{head}| S1 | x | `tests/tests/a.rs::it_fails` |\n")), 1);
    assert_eq!(found(&format!("{head}| S1 | x | surely |\n")), 1);
    assert_eq!(found(&format!("{head}| S1 | | `tests/tests/a.rs::it_holds` |\n")), 1);
    assert_eq!(found(&format!("A peer is harmless.\n\n{head}| S1 | x | `tests/tests/a.rs::it_holds` |\n")), 1);
    assert_eq!(found(""), 1);
}
