//! docs/running.md has a row for every key of the configuration, every error of a sender and every metric, and no others.

use std::collections::BTreeSet;

use crate::source::{File, Finding, assert_none, file, repository};

/// The names in code spans in the first cells of the table below a heading.
fn first_cells<'a>(page: &'a File, heading: &str) -> BTreeSet<&'a str> {
    let section = page.text.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// The names in code spans in the table with this head.
fn names_below<'a>(page: &'a File, head: &str) -> BTreeSet<&'a str> {
    let rows = page.text.lines().skip_while(|line| *line != head).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect()
}

/// The fields or variants of an item: the first words of its lines that are indented once.
fn members<'a>(code: &'a File, item: &str) -> BTreeSet<&'a str> {
    let body = code.text.split(&format!("{item} {{\n")).nth(1).unwrap_or_default();
    let lines = body.lines().take_while(|line| *line != "}");
    let members =
        lines.filter_map(|line| line.strip_prefix("    ")).filter(|line| line.starts_with(char::is_alphabetic));
    let name =
        |line: &'a str| line.strip_prefix("pub ").unwrap_or(line).split(|c: char| !c.is_alphanumeric() && c != '_');
    members.map(|line| name(line).next().unwrap_or_default()).collect()
}

/// Names without a row, and rows without a name.
fn differences(page: &File, written: &BTreeSet<&str>, code: &File, item: &str) -> Vec<Finding> {
    let there = members(code, item);
    if there.is_empty() {
        return vec![code.finding_at_top(format!("has no `{item}`"))];
    }
    let unknown = written.difference(&there).map(|name| format!("`{name}` is not in `{item}`"));
    let missing = there.difference(written).map(|name| format!("`{name}` of `{item}` has no row"));
    unknown.chain(missing).map(|text| page.finding_at_top(text)).collect()
}

/// Logs and reasons that the page quotes and the framework does not contain. A quote is a code span of three words and more, with
/// `…` for the parts that vary.
fn stale_quotes(page: &File, files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, line) in page.lines() {
        for quote in line.split('`').skip(1).step_by(2) {
            let is_prose = quote.chars().all(|c| c.is_ascii_lowercase() || c == ' ' || c == '…');
            let parts = quote.split('…').map(str::trim).filter(|part| part.contains(' '));
            for part in parts.filter(|_| is_prose && quote.split(' ').count() >= 3) {
                if !files.iter().any(|file| file.is_product() && file.text.contains(part)) {
                    findings.push(page.finding(at, format!("`{part}` is not a text of the framework")));
                }
            }
        }
    }
    findings
}

#[test]
fn quoted_texts_exist() {
    assert_none(&stale_quotes(&file("docs/running.md"), &repository()));
}

#[test]
fn stale_quote_is_found() {
    let files = [File::new("framework/core/src/a.rs", "log(\"store {} is full of bytes\");")];
    let found = |text: &str| stale_quotes(&File::new("docs/a.md", text), &files).len();
    assert_eq!(found("`store … is full of bytes` or `cargo run` or `Some text of code`"), 0);
    assert_eq!(found("`store … is empty now`"), 1);
}

#[test]
fn every_configuration_key_has_a_row() {
    let (page, code) = (file("docs/running.md"), file("framework/runtime/src/node/config/mod.rs"));
    assert_none(&differences(&page, &first_cells(&page, "Configuration"), &code, "struct FileConfig"));
}

/// The rows of the configuration table: key, default and range.
fn configuration_rows(page: &File) -> Vec<(String, String, String)> {
    let section = page.text.split("\n## Configuration\n").nth(1).unwrap_or_default();
    let rows = section.lines().take_while(|line| !line.starts_with("## ")).filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(str::trim).skip(1).map(str::to_owned).collect::<Vec<_>>());
    let row = |cells: Vec<String>| {
        let [key, default, range, ..] = &cells[..] else { panic!("expected four cells: {cells:?}") };
        // The unit for people follows the number in parentheses.
        let default = default.split(" (").next().unwrap_or_default();
        (key.trim_matches('`').to_owned(), default.to_owned(), range.clone())
    };
    cells.map(row).collect()
}

/// Rows whose default or range is not that of the program.
fn wrong_rows(page: &File) -> Vec<Finding> {
    let rows = configuration_rows(page);
    let mut findings = Vec::new();
    for (key, default, mut range) in whizbang::NodeConfig::documented() {
        // Checked against the other value at start.
        if key == "retry_longest_ms" {
            range = "at least `retry_first_ms`".to_owned();
        }
        let expected = (key.to_owned(), default, range);
        if !rows.contains(&expected) {
            findings.push(page.finding_at_top(format!("expected the row {expected:?}")));
        }
    }
    findings
}

#[test]
fn configuration_rows_match_the_program() {
    assert_none(&wrong_rows(&file("docs/running.md")));
    let text = file("docs/running.md").text.replace("| 16,384 | 1 to", "| 16,385 | 1 to");
    assert_eq!(wrong_rows(&File { text, ..file("docs/running.md") }).len(), 1);
}

#[test]
fn every_send_error_has_a_row() {
    let (page, code) = (file("docs/running.md"), file("framework/runtime/src/router/error.rs"));
    assert_none(&differences(&page, &first_cells(&page, "Errors of senders"), &code, "pub enum SendError"));
}

#[test]
fn every_metric_has_a_row() {
    let (page, code) = (file("docs/running.md"), file("framework/runtime/src/node/health.rs"));
    assert_none(&differences(&page, &names_below(&page, "| counts | fields |"), &code, "pub struct Metrics"));
}

#[test]
fn missing_and_stale_rows_are_found() {
    let code = File::new("a.rs", "struct C {\n    /// One.\n    one: u8,\n    two: Option<u8>,\n}\n");
    let found = |rows: &str| {
        let page = File::new("docs/a.md", &format!("# A\n\n## Keys\n\n| key |\n|---|\n{rows}\n## Else\n\n| `six` |\n"));
        differences(&page, &first_cells(&page, "Keys"), &code, "struct C").len()
    };
    assert_eq!(found("| `one`, `two` | both |\n"), 0);
    assert_eq!(found("| `one` | `two` |\n"), 1);
    assert_eq!(found("| `one` |\n| `two` |\n| `three` |\n"), 1);
    let nothing = File::new("docs/a.md", "# A\n");
    assert_eq!(differences(&nothing, &first_cells(&nothing, "Keys"), &code, "struct D").len(), 1);
    let table = File::new("docs/a.md", "| counts | fields |\n|---|---|\n| all | `one` and `two` |\n\n| `six` |\n");
    assert_eq!(names_below(&table, "| counts | fields |"), BTreeSet::from(["one", "two"]));
}
