//! The page on running a node names every key of the configuration and every error of a sender, and no other.

use std::collections::BTreeSet;

use crate::source::{File, Finding, assert_none, file};

/// The names in the first cells of a table's rows, in code marks. The table is the one below a heading.
fn first_cells<'a>(page: &'a File, heading: &str) -> BTreeSet<&'a str> {
    let section = page.text.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.filter_map(|row| row.split('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// The beginnings of the lines that are indented once between an item's first line and its end: fields and variants.
fn members<'a>(code: &'a File, item: &str) -> BTreeSet<&'a str> {
    let body = code.text.split(&format!("{item} {{\n")).nth(1).unwrap_or_default();
    let lines = body.lines().take_while(|line| *line != "}");
    let members =
        lines.filter_map(|line| line.strip_prefix("    ")).filter(|line| line.starts_with(char::is_alphabetic));
    members.map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()).collect()
}

/// What stands in one and not in the other.
fn differences(page: &File, heading: &str, code: &File, item: &str) -> Vec<Finding> {
    let (written, there) = (first_cells(page, heading), members(code, item));
    if there.is_empty() {
        return vec![code.finding_at_top(format!("has no `{item}`"))];
    }
    let unknown = written.difference(&there).map(|name| format!("`{name}` is not in `{item}`"));
    let missing = there.difference(&written).map(|name| format!("`{name}` of `{item}` has no row"));
    unknown.chain(missing).map(|text| page.finding_at_top(text)).collect()
}

#[test]
fn every_key_of_the_configuration_has_a_row() {
    let (page, code) = (file("docs/running.md"), file("framework/src/node/config.rs"));
    assert_none(&differences(&page, "Configuration", &code, "struct FileConfig"));
}

#[test]
fn every_error_of_a_sender_has_a_row() {
    let (page, code) = (file("docs/running.md"), file("framework/src/router/error.rs"));
    assert_none(&differences(&page, "Errors of senders", &code, "pub enum SendError"));
}

#[test]
fn a_key_without_a_row_and_a_row_without_a_key_are_found() {
    let code = File::new("a.rs", "struct C {\n    /// One.\n    one: u8,\n    two: Option<u8>,\n}\n");
    let found = |rows: &str| {
        let page = File::new("docs/a.md", &format!("# A\n\n## Keys\n\n| key |\n|---|\n{rows}\n## Else\n\n| `six` |\n"));
        differences(&page, "Keys", &code, "struct C").len()
    };
    assert_eq!(found("| `one`, `two` | both |\n"), 0);
    assert_eq!(found("| `one` | `two` |\n"), 1);
    assert_eq!(found("| `one` |\n| `two` |\n| `three` |\n"), 1);
    let nothing = File::new("docs/a.md", "# A\n");
    assert_eq!(differences(&nothing, "Keys", &code, "struct D").len(), 1);
}
