//! The rooms of the framework use each other as the table in ARCHITECTURE.md says, and never in a circle.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{File, Finding, assert_none, file, name_at, places, repository};

/// What stands beside the rooms in framework/src and may use all of them; no room uses it.
const ROOT: [&str; 3] = ["lib", "prelude", "doc_fixtures"];

/// How the second cell of a room begins that is not built yet.
const PLANNED: &str = "planned: ";

/// From each room to the rooms it may use.
type Table = BTreeMap<String, BTreeSet<String>>;

/// Reads the table whose head is `| room | holds | uses |`: the rooms that are built and what they may use, and those that
/// are planned.
fn table(architecture: &File) -> (Table, BTreeSet<String>) {
    let lines = architecture.text.lines().skip_while(|line| !line.starts_with("| room | holds | uses |")).skip(2);
    let (mut built, mut planned) = (Table::new(), BTreeSet::new());
    for line in lines.take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [room, holds, uses] = cells[..] else { panic!("not three cells: {line}") };
        let clean = |name: &str| name.trim_matches('`').to_owned();
        if holds.starts_with(PLANNED) {
            planned.insert(clean(room));
        } else {
            let uses = uses.split_whitespace().filter(|&word| word != "-");
            built.insert(clean(room), uses.map(clean).collect());
        }
    }
    (built, planned)
}

/// The room a file of the framework belongs to.
fn room(file: &File) -> Option<&str> {
    let inside = file.path.strip_prefix("framework/src/")?;
    Some(inside.split('/').next()?.trim_end_matches(".rs"))
}

/// What a file takes from other modules of the crate's root: the name and where it stands.
fn uses(file: &File) -> Vec<(String, usize)> {
    let code = file.product_code();
    let mut uses = Vec::new();
    // The crate calls itself `whizbang` as well, for the derives' output.
    for root in ["crate::", "whizbang::"] {
        for at in places(&code, root) {
            names_behind(&code, at + root.len(), &mut uses);
        }
    }
    // `super::` chains that climb to the root reach the same modules under another name.
    let mut depth = file.path.trim_start_matches("framework/src/").split('/').count();
    if file.path.ends_with("/mod.rs") {
        depth -= 1;
    }
    let to_root = "super::".repeat(depth);
    for at in places(&code, &to_root) {
        if !code[..at].ends_with("super::") && !code[at + to_root.len()..].starts_with("super::") {
            names_behind(&code, at + to_root.len(), &mut uses);
        }
    }
    uses
}

/// The name behind a path's `::`, or the first name of each path in its braces.
fn names_behind(code: &str, at: usize, into: &mut Vec<(String, usize)>) {
    let name = name_at(code, at);
    if !name.is_empty() {
        // An exported macro lives at the root, whatever room it is written in.
        if !code[at + name.len()..].starts_with('!') {
            into.push((name.to_owned(), at));
        }
        return;
    }
    let (mut depth, mut expects_name) = (0_usize, false);
    let mut end = at;
    for (place, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'{' => (depth, expects_name) = (depth + 1, depth == 0),
            b'}' => depth = depth.saturating_sub(1),
            b',' => expects_name = depth == 1,
            b' ' | b'\n' => {}
            _ if expects_name && place >= end => {
                let name = name_at(code, place);
                into.push((name.to_owned(), place));
                (expects_name, end) = (false, place + name.len());
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
}

/// Every use of a room that the table does not allow, and every module of the root that is no room.
fn edges_against_the_table(files: &[File], table: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_product()) {
        let Some(from) = room(file).filter(|room| !ROOT.contains(room)) else { continue };
        let Some(allowed) = table.get(from) else {
            findings.push(file.finding_at_top(format!("`{from}` is not in the table of rooms in ARCHITECTURE.md")));
            continue;
        };
        for (to, at) in uses(file) {
            if to == from || allowed.contains(&to) {
            } else if table.contains_key(&to) {
                findings.push(file.finding(at, format!("`{from}` uses `{to}`, which the table does not allow")));
            } else {
                findings.push(file.finding(at, format!("`crate::{to}` is no room: name the room that has it")));
            }
        }
    }
    findings
}

/// The edges that the code really has.
fn edges(files: &[File]) -> Table {
    let mut edges = Table::new();
    for file in files.iter().filter(|file| file.is_product()) {
        let Some(from) = room(file).filter(|room| !ROOT.contains(room)) else { continue };
        let to = uses(file).into_iter().map(|(to, _)| to).filter(|to| to != from);
        edges.entry(from.to_owned()).or_default().extend(to);
    }
    edges
}

/// One circle among the rooms, if there is any.
fn circle(edges: &Table) -> Option<Vec<String>> {
    fn walk(room: &str, edges: &Table, path: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        if let Some(start) = path.iter().position(|seen| seen == room) {
            path.drain(..start);
            path.push(room.to_owned());
            return true;
        }
        if done.contains(room) {
            return false;
        }
        path.push(room.to_owned());
        for next in edges.get(room).into_iter().flatten() {
            if walk(next, edges, path, done) {
                return true;
            }
        }
        path.pop();
        done.insert(room.to_owned());
        false
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|room| {
        let mut path = Vec::new();
        walk(room, edges, &mut path, &mut done).then_some(path)
    })
}

#[test]
fn rooms_use_only_what_the_table_allows() {
    assert_none(&edges_against_the_table(&repository(), &table(&file("ARCHITECTURE.md")).0));
}

#[test]
fn rooms_are_not_in_a_circle() {
    assert_eq!(circle(&table(&file("ARCHITECTURE.md")).0), None, "in the table of ARCHITECTURE.md");
    assert_eq!(circle(&edges(&repository())), None, "in the code");
}

#[test]
fn the_table_names_every_room_and_tells_the_built_from_the_planned() {
    let (table, planned) = table(&file("ARCHITECTURE.md"));
    let built = edges(&repository()).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(table.into_keys().collect::<BTreeSet<_>>(), built, "rooms of the table and rooms of the code");
    assert_eq!(built.intersection(&planned).collect::<Vec<_>>(), Vec::<&String>::new(), "planned, and yet there");
}

#[test]
fn a_use_that_the_table_forbids_is_found_however_it_is_written() {
    let (table, planned) = table(&File::new(
        "ARCHITECTURE.md",
        "| room | holds | uses |\n|---|---|---|\n| `message` | x | - |\n| `store` | y | `message` |\n| `actor` | z | `store` |\n| `node` | planned: w | `actor` |\n",
    ));
    assert_eq!((table.len(), planned.len()), (3, 1));
    let found = |path: &str, text: &str| edges_against_the_table(&[File::new(path, text)], &table).len();
    let store = "framework/src/store/memory/mod.rs";
    assert_eq!(found(store, "use crate::message::Name; // crate::actor\nuse crate::store::Turn;"), 0);
    assert_eq!(found(store, "use crate::actor::Effects;"), 1);
    assert_eq!(found(store, "use crate::{message::Name, actor::{Effects, Plan}};"), 1);
    assert_eq!(found(store, "fn f(x: &crate::actor::Effects) {}"), 1);
    assert_eq!(found(store, "use super::super::actor::Effects;"), 1);
    assert_eq!(found(store, "use ::whizbang::actor::Effects;"), 1);
    assert_eq!(found(store, "use super::Turn;"), 0);
    assert_eq!(found(store, "macro_rules! m { () => { $crate::m!() } }"), 0);
    assert_eq!(found(store, "use crate::Effects;"), 1);
    assert_eq!(found(store, "#[cfg(test)]\nmod tests { use crate::actor::Effects; }"), 0);
    assert_eq!(found("framework/src/cellar/mod.rs", ""), 1);
    assert_eq!(found("framework/src/lib.rs", "pub use crate::actor::Effects;"), 0);
}

#[test]
fn a_circle_is_found() {
    let files = [
        File::new("framework/src/a/mod.rs", "use crate::b::X;"),
        File::new("framework/src/b.rs", "use crate::c::X;"),
        File::new("framework/src/c.rs", "use crate::b::Y;"),
    ];
    assert_eq!(circle(&edges(&files)), Some(vec!["b".into(), "c".into(), "b".into()]));
    assert_eq!(circle(&edges(&files[..2])), None);
}
