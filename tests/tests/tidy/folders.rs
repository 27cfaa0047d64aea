//! The folders of the module `node` use each other as their table in ARCHITECTURE.md says, and its files without cycles.
//!
//! Files of `node` name each other by paths from the root of the crate, so that the check is a search.

use std::collections::BTreeSet;

use super::modules::{Table, cycle, table_of};
use super::source::{File, Finding, assert_none, file, name_at, places, repository};

const ROOT: &str = "framework/runtime/src/node/";
const PATH: &str = "crate::node::";

/// A file of `node` without its folder's `mod`, and the folder or file at the top to which it belongs.
fn place(path: &str) -> Option<(&str, &str)> {
    let inside = path.strip_prefix(ROOT)?.strip_suffix(".rs")?;
    let file = inside.strip_suffix("/mod").unwrap_or(inside);
    Some((file, inside.split('/').next().unwrap_or(inside)))
}

/// The files that product code of `node` uses, with the places: of each path as much as names a file.
fn uses(file: &File, all: &BTreeSet<&str>) -> Vec<(String, usize)> {
    let code = file.product_code();
    let mut uses = Vec::new();
    for at in places(&code, PATH) {
        let first = name_at(&code, at + PATH.len());
        let next = at + PATH.len() + first.len();
        let second = if code[next..].starts_with("::") { name_at(&code, next + 2) } else { "" };
        let both = format!("{first}/{second}");
        uses.push((if all.contains(both.as_str()) { both } else { first.to_owned() }, at));
    }
    uses
}

/// The files of `node`, except for tests and its root, which re-exports the public items.
fn parts(files: &[File]) -> impl Iterator<Item = (&File, &str, &str)> {
    let product = files.iter().filter(|file| file.is_product());
    product
        .filter_map(|file| place(&file.path).map(|(name, folder)| (file, name, folder)))
        .filter(|(_, name, _)| *name != "mod")
}

/// Every use that the table does not allow, and every folder without a row.
fn edges_against_the_table(files: &[File], table: &Table) -> Vec<Finding> {
    let all: BTreeSet<&str> = parts(files).map(|(_, name, _)| name).collect();
    let mut findings = Vec::new();
    for (file, _, folder) in parts(files) {
        let Some(allowed) = table.get(folder) else {
            findings.push(file.finding_at_top(format!("`{folder}` is not in the table of folders in ARCHITECTURE.md")));
            continue;
        };
        for at in places(&file.product_code(), "super::super::") {
            findings.push(file.finding(at, "name the file from the root of the crate"));
        }
        for (to, at) in uses(file, &all) {
            let to = to.split('/').next().unwrap_or_default();
            if to != folder && !allowed.contains(to) {
                findings.push(file.finding(at, format!("`{folder}` uses `{to}`, which the table does not allow")));
            }
        }
    }
    findings
}

/// The uses between files.
fn edges(files: &[File]) -> Table {
    let all: BTreeSet<&str> = parts(files).map(|(_, name, _)| name).collect();
    let mut edges = Table::new();
    for (file, name, _) in parts(files) {
        let to = uses(file, &all).into_iter().map(|(to, _)| to).filter(|to| to != name);
        edges.entry(name.to_owned()).or_default().extend(to);
    }
    edges
}

#[test]
fn folders_of_node_use_only_allowed_folders() {
    let table = table_of(&file("ARCHITECTURE.md"), "folder of `node`");
    assert_none(&edges_against_the_table(&repository(), &table));
    assert_eq!(cycle(&table), None, "in the table of ARCHITECTURE.md");
    let built: BTreeSet<_> = parts(&repository()).map(|(_, _, folder)| folder.to_owned()).collect();
    assert_eq!(table.into_keys().collect::<BTreeSet<_>>(), built, "folders of the table and of the code");
}

#[test]
fn files_of_node_have_no_cycle() {
    assert_eq!(cycle(&edges(&repository())), None);
}

#[test]
fn forbidden_use_and_cycle_of_node_are_found() {
    let at = |path: &str, text: &str| File::new(&format!("{ROOT}{path}"), text);
    let table = Table::from([("a".to_owned(), BTreeSet::from(["b".to_owned()])), ("b".to_owned(), BTreeSet::new())]);
    let down = at("a/mod.rs", "use crate::node::b::one::X; // crate::node::c");
    let up = at("b/one.rs", "use crate::node::a::X;");
    assert_eq!(edges_against_the_table(std::slice::from_ref(&down), &table).len(), 0);
    assert_eq!(edges_against_the_table(std::slice::from_ref(&up), &table).len(), 1);
    assert_eq!(edges_against_the_table(&[at("c.rs", "")], &table).len(), 1);
    assert_eq!(edges_against_the_table(&[at("b/two.rs", "use super::super::a::X;")], &table).len(), 1);
    assert_eq!(cycle(&edges(&[down])), None);
    let both = [at("b/one.rs", "use crate::node::b::two::X;"), at("b/two.rs", "use crate::node::b::one::X;")];
    assert!(cycle(&edges(&both)).is_some());
}
