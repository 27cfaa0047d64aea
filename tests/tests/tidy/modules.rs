//! The modules of the framework use each other as the table in ARCHITECTURE.md says, and without cycles.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{File, Finding, assert_none, file, name_at, places, repository};

/// The crate that re-exports all others, and the roots of the crates that have modules. No module uses them.
const ROOT: [&str; 2] = ["lib", "whizbang"];

/// Crates of one module each, by the names that code has for them.
const CRATES: [(&str, &str); 8] = [
    ("whizbang_http", "http"),
    ("whizbang_log", "log"),
    ("whizbang_store_embedded", "store-embedded"),
    ("whizbang_store_postgres", "store-postgres"),
    ("whizbang_wire", "wire"),
    ("whizbang_bridge_nats", "bridge-nats"),
    ("whizbang_conformance", "conformance"),
    ("whizbang_testing", "testing"),
];

/// From each module to the modules it may use.
pub(super) type Table = BTreeMap<String, BTreeSet<String>>;

/// The rows of the table whose first column is `first`: the byte at which each begins, and its cells.
fn rows<'a>(architecture: &'a File, first: &str) -> Vec<(usize, [&'a str; 4])> {
    let head = format!("| {first} | contents | start reading at | uses |");
    let lines = architecture.lines().skip_while(|(_, line)| *line != head).skip(2);
    let rows = lines.take_while(|(_, line)| line.starts_with('|'));
    rows.map(|(at, line)| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        (at, cells.try_into().unwrap_or_else(|_| panic!("expected four cells: {line}")))
    })
    .collect()
}

/// The modules and what each may use.
fn table(architecture: &File) -> Table {
    table_of(architecture, "module")
}

/// The rows of the table whose first column is `first`, and what each may use.
pub(super) fn table_of(architecture: &File, first: &str) -> Table {
    let clean = |name: &str| name.trim_matches('`').to_owned();
    let row = |[module, _, _, uses]: [&str; 4]| {
        (clean(module), uses.split_whitespace().filter(|&word| word != "-").map(clean).collect())
    };
    rows(architecture, first).into_iter().map(|(_, cells)| row(cells)).collect()
}

/// Entry points that do not exist.
fn missing_entry_points(architecture: &File, files: &[File]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, [module, _, start, _]) in rows(architecture, "module") {
        let (module, start) = (module.trim_matches('`'), start.trim_matches('`'));
        let is_inside = start == format!("{module}.rs") || start.starts_with(&format!("{module}/"));
        if !is_inside || files.iter().all(|file| file.inside().as_deref() != Some(start)) {
            findings.push(architecture.finding(at, format!("`{start}` is not a file of `{module}`")));
        }
    }
    findings
}

/// Names of types and variants in the diagrams that the framework does not define.
fn unknown_names(architecture: &File, files: &[File]) -> Vec<Finding> {
    let code: Vec<String> = files.iter().filter(|file| file.is_product()).map(File::product_code).collect();
    let (mut findings, mut is_diagram) = (Vec::new(), false);
    for (at, line) in architecture.lines() {
        is_diagram ^= line.starts_with("```");
        let words = line.split(|c: char| !c.is_alphanumeric()).filter(|_| is_diagram);
        for name in words.filter(|word| word.starts_with(|c: char| c.is_ascii_uppercase())) {
            if code.iter().all(|code| places(code, name).is_empty()) {
                findings.push(architecture.finding(at, format!("`{name}` does not occur in the framework")));
            }
        }
    }
    findings
}

/// The module of a file of the framework.
fn module(file: &File) -> Option<String> {
    Some(file.inside()?.split('/').next()?.trim_end_matches(".rs").to_owned())
}

/// Returns true for a file of a crate that is divided into modules.
fn has_modules(file: &File) -> bool {
    file.path.starts_with("framework/core/") || file.path.starts_with("framework/runtime/")
}

/// The names that a file uses from modules at the crate's root, with their places.
fn uses(file: &File) -> Vec<(String, usize)> {
    let code = file.product_code();
    let mut uses = Vec::new();
    // The crate is also named `whizbang` inside itself, for generated code.
    let roots: &[&str] = if has_modules(file) { &["crate::", "whizbang::"] } else { &["whizbang::"] };
    for root in roots.iter().chain(&["whizbang_core::", "whizbang_runtime::"]) {
        for at in places(&code, root) {
            names_behind(&code, at + root.len(), &mut uses);
        }
    }
    for (name, module) in CRATES {
        uses.extend(places(&code, &format!("{name}::")).into_iter().map(|at| (module.to_owned(), at)));
    }
    if !has_modules(file) {
        return uses;
    }
    // `super::` chains up to the root reach the same modules.
    let mut depth = file.inside().unwrap_or_default().split('/').count();
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

/// The name after a path's `::`, or the first name of each path in its braces.
fn names_behind(code: &str, at: usize, into: &mut Vec<(String, usize)>) {
    let name = name_at(code, at);
    if !name.is_empty() {
        // An exported macro is at the root, in whichever module it is defined.
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

/// Every use of a module that the table does not allow, and every module without a row.
fn edges_against_the_table(files: &[File], table: &Table) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in files.iter().filter(|file| file.is_product()) {
        let Some(from) = module(file).filter(|module| !ROOT.contains(&module.as_str())) else { continue };
        let Some(allowed) = table.get(&from) else {
            findings.push(file.finding_at_top(format!("`{from}` is not in the table of modules in ARCHITECTURE.md")));
            continue;
        };
        for (to, at) in uses(file) {
            // An exported macro is at the root, also where the module that defines it re-exports it.
            let is_own_macro = file.text.contains(&format!("macro_rules! {to} "));
            if to == from || allowed.contains(&to) || is_own_macro {
            } else if table.contains_key(&to) {
                findings.push(file.finding(at, format!("`{from}` uses `{to}`, which the table does not allow")));
            } else {
                findings
                    .push(file.finding(at, format!("`crate::{to}` is not a module: name the module that defines it")));
            }
        }
    }
    findings
}

/// The edges in the code.
fn edges(files: &[File]) -> Table {
    let mut edges = Table::new();
    for file in files.iter().filter(|file| file.is_product()) {
        let Some(from) = module(file).filter(|module| !ROOT.contains(&module.as_str())) else { continue };
        let to: Vec<String> = uses(file).into_iter().map(|(to, _)| to).filter(|to| *to != from).collect();
        edges.entry(from).or_default().extend(to);
    }
    edges
}

/// One cycle among the modules, if there is any.
pub(super) fn cycle(edges: &Table) -> Option<Vec<String>> {
    fn walk(module: &str, edges: &Table, path: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        if let Some(start) = path.iter().position(|seen| seen == module) {
            path.drain(..start);
            path.push(module.to_owned());
            return true;
        }
        if done.contains(module) {
            return false;
        }
        path.push(module.to_owned());
        for next in edges.get(module).into_iter().flatten() {
            if walk(next, edges, path, done) {
                return true;
            }
        }
        path.pop();
        done.insert(module.to_owned());
        false
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|module| {
        let mut path = Vec::new();
        walk(module, edges, &mut path, &mut done).then_some(path)
    })
}

#[test]
fn modules_use_only_allowed_modules() {
    assert_none(&edges_against_the_table(&repository(), &table(&file("ARCHITECTURE.md"))));
}

#[test]
fn modules_have_no_cycle() {
    assert_eq!(cycle(&table(&file("ARCHITECTURE.md"))), None, "in the table of ARCHITECTURE.md");
    assert_eq!(cycle(&edges(&repository())), None, "in the code");
}

#[test]
fn table_has_every_module_and_its_entry_point() {
    let (architecture, files) = (file("ARCHITECTURE.md"), repository());
    let built = edges(&files).into_keys().collect::<BTreeSet<_>>();
    assert_eq!(
        table(&architecture).into_keys().collect::<BTreeSet<_>>(),
        built,
        "modules of the table and of the code"
    );
    assert_none(&missing_entry_points(&architecture, &files));
}

#[test]
fn diagrams_name_existing_types() {
    assert_none(&unknown_names(&file("ARCHITECTURE.md"), &repository()));
}

#[test]
fn unknown_name_in_a_diagram_is_found() {
    let files = [File::new("framework/core/src/client.rs", "pub struct Client; // Server")];
    let found = |text: &str| unknown_names(&File::new("ARCHITECTURE.md", text), &files).len();
    assert_eq!(found("Server\n```text\nClient::send ──▶ store\n```\n"), 0);
    assert_eq!(found("```text\nClient::send ──▶ Server\n```\n"), 1);
}

const TABLE: &str = "| module | contents | start reading at | uses |
|---|---|---|---|
| `message` | x | `message.rs` | - |
| `store` | y | `store/mod.rs` | `message` |
| `actor` | z | `store/mod.rs` | `store` |
";

#[test]
fn wrong_entry_point_is_found() {
    let files = ["message.rs", "store/mod.rs"].map(|path| File::new(&format!("framework/core/src/{path}"), ""));
    let found = |table: &str| missing_entry_points(&File::new("ARCHITECTURE.md", table), &files).len();
    assert_eq!(found(TABLE), 1, "the entry point of `actor` is in another module");
    assert_eq!(found(&TABLE.replace("store/mod.rs", "store/none.rs")), 2);
}

#[test]
fn forbidden_use_is_found_however_it_is_written() {
    let table = table(&File::new("ARCHITECTURE.md", TABLE));
    assert_eq!(table.len(), 3);
    let found = |path: &str, text: &str| edges_against_the_table(&[File::new(path, text)], &table).len();
    let store = "framework/core/src/store/memory/mod.rs";
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
    assert_eq!(found("framework/core/src/cellar/mod.rs", ""), 1);
    assert_eq!(found("framework/whizbang/src/lib.rs", "pub use crate::actor::Effects;"), 0);
}

#[test]
fn cycle_is_found() {
    let files = [
        File::new("framework/core/src/a/mod.rs", "use crate::b::X;"),
        File::new("framework/core/src/b.rs", "use crate::c::X;"),
        File::new("framework/core/src/c.rs", "use crate::b::Y;"),
    ];
    assert_eq!(cycle(&edges(&files)), Some(vec!["b".into(), "c".into(), "b".into()]));
    assert_eq!(cycle(&edges(&files[..2])), None);
}
