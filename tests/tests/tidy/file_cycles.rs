//! The files of a crate use each other without cycles, so that there is an order in which they can be read.
//!
//! A use is a path to an item of another file, in an import or in code. A path to an item that a folder re-exports counts as
//! a use of the file that defines the item. Calls of methods are not seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::modules::Table;
use crate::source::{File, is_name_byte, name_at, places, repository};

/// Cycles that stay: the crate, their files, and the reason.
const KNOWN: [(&str, &[&str], &str); 3] = [
    (
        "conformance",
        &["bridge", "bridge/cases/sample", "bridge/hostile", "bridge/node"],
        "the cases share the fixture, and the fixture their names",
    ),
    (
        "core",
        &["message/shape/access", "message/shape/explorer", "message/shape/probe"],
        "a deserializer and the parts that it hands to visitors call each other, as the traits of serde do",
    ),
    (
        "log",
        &["memory", "memory/commit_control", "memory/leases", "memory/shard"],
        "a store creates its shards and leases, and each keeps its store alive",
    ),
];

/// A file of a crate: its path from the crate's root without `mod`, and what it imports.
struct Module {
    path: Vec<String>,
    code: String,
    imports: Vec<Import>,
}

/// One imported path, and the name that it has in its file.
struct Import {
    path: Vec<String>,
    name: String,
    is_public: bool,
}

/// The files of a crate.
struct Modules(BTreeMap<Vec<String>, Module>);

impl Modules {
    /// Reads the product files of a crate of the framework.
    fn of(package: &str, files: &[File]) -> Self {
        let root = format!("framework/{package}/src/");
        let product = files.iter().filter(|file| file.is_product() && !file.path.ends_with("_tests.rs"));
        let modules = product.filter_map(|file| {
            let inside = file.path.strip_prefix(&root)?.strip_suffix(".rs")?;
            let mut path: Vec<String> = inside.split('/').map(str::to_owned).collect();
            if path.last().is_some_and(|last| last == "mod") || inside == "lib" {
                path.pop();
            }
            let mut code = file.product_code();
            let imports = take_imports(&mut code);
            Some((path.clone(), Module { path, code, imports }))
        });
        Self(modules.collect())
    }

    /// A path that a module names, from the root of the crate; `None` if it leads elsewhere.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Vec<String>> {
        let (mut base, mut rest) = (module.path.clone(), path);
        match path.first()?.as_str() {
            "crate" => (base, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while let Some(("super", next)) = rest.split_first().map(|(first, next)| (first.as_str(), next)) {
                    base.pop()?;
                    rest = next;
                }
            }
            first => {
                base.push(first.to_owned());
                if !self.0.contains_key(&base) {
                    return None;
                }
                rest = &path[1..];
            }
        }
        base.extend_from_slice(rest);
        Some(base)
    }

    /// The file that defines the item at a path from the root, through re-exports.
    fn defines(&self, path: &[String], depth: usize) -> Option<&Module> {
        let module = (0..=path.len()).rev().find_map(|length| self.0.get(&path[..length]))?;
        let Some(name) = path.get(module.path.len()) else { return Some(module) };
        let import = module.imports.iter().find(|import| import.name == *name).filter(|_| depth < 8);
        let Some(import) = import else { return Some(module) };
        let target = self.absolute(module, &import.path)?;
        self.defines(&[target, path[module.path.len() + 1..].to_vec()].concat(), depth + 1)
    }

    /// The files that each file uses.
    fn edges(&self) -> Table {
        let mut edges = Table::new();
        for module in self.0.values().filter(|module| !module.path.is_empty()) {
            let into = edges.entry(module.path.join("/")).or_default();
            for path in self.uses(module) {
                if let Some(to) = self.defines(&path, 0)
                    && !to.path.is_empty()
                    && to.path != module.path
                {
                    into.insert(to.path.join("/"));
                }
            }
        }
        edges
    }

    /// The paths that a file names, from the root. A folder that re-exports its own files does not use them.
    fn uses(&self, module: &Module) -> Vec<Vec<String>> {
        let mut uses = Vec::new();
        for import in &module.imports {
            let target = self.absolute(module, &import.path);
            uses.extend(target.filter(|target| !(import.is_public && target.starts_with(&module.path))));
        }
        for path in paths(&module.code) {
            let imported = || module.imports.iter().find(|import| import.name == path[0]);
            let target = self.absolute(module, &path).or_else(|| {
                let target = self.absolute(module, &imported()?.path)?;
                self.0.contains_key(&target).then(|| [&target, &path[1..]].concat())
            });
            uses.extend(target);
        }
        uses
    }
}

/// The imports of code, which are removed from it.
fn take_imports(code: &mut String) -> Vec<Import> {
    let (mut imports, mut spans) = (Vec::new(), Vec::new());
    for at in places(code, "use") {
        let Some(end) = code[at..].find(';').map(|length| at + length) else { continue };
        if !code[at + 3..].starts_with([' ', '\n']) {
            continue;
        }
        let line = code[..at].rfind('\n').map_or(0, |at| at + 1);
        let is_public = code[line..at].contains("pub");
        tree(code[at + 3..end].trim(), &[], is_public, &mut imports);
        spans.push(at..end);
    }
    for span in spans.into_iter().rev() {
        code.replace_range(span, "");
    }
    imports
}

/// Adds every path of the tree of an import.
fn tree(text: &str, prefix: &[String], is_public: bool, into: &mut Vec<Import>) {
    let segments = |path: &str| -> Vec<String> {
        path.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
    };
    if let Some(open) = text.find('{') {
        let prefix: Vec<String> = prefix.iter().cloned().chain(segments(&text[..open])).collect();
        let inside = &text[open + 1..text.rfind('}').unwrap_or(text.len())];
        let (mut depth, mut from) = (0, 0);
        for (at, byte) in inside.bytes().chain([b',']).enumerate() {
            match byte {
                b'{' => depth += 1,
                b'}' => depth -= 1,
                b',' if depth == 0 => {
                    tree(inside[from..at].trim(), &prefix, is_public, into);
                    from = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let (path, alias) = text.split_once(" as ").unwrap_or((text, ""));
    let mut path: Vec<String> = prefix.iter().cloned().chain(segments(path)).collect();
    if path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    if let Some(name) = path.last().cloned() {
        let name = if alias.is_empty() { name } else { alias.trim().to_owned() };
        into.push(Import { path, name, is_public });
    }
}

/// The paths of two or more names in code without imports.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("::") {
        let start = code[..at].bytes().rposition(|byte| !is_name_byte(byte)).map_or(0, |before| before + 1);
        // Only the beginning of a path, and not an exported macro's.
        if start == at || code[..start].ends_with("::") || code[..start].ends_with('$') {
            continue;
        }
        let (mut path, mut next) = (vec![code[start..at].to_owned()], at);
        while code[next..].starts_with("::") && !name_at(code, next + 2).is_empty() {
            let name = name_at(code, next + 2);
            path.push(name.to_owned());
            next += 2 + name.len();
        }
        paths.push(path);
    }
    paths
}

/// The groups of files that use each other in cycles: each file reaches each other one of its group.
fn cycles(edges: &Table) -> BTreeSet<Vec<String>> {
    let reach = |from: &str| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(next) = open.pop() {
            let new: Vec<String> = edges.get(&next).into_iter().flatten().cloned().collect();
            open.extend(new.into_iter().filter(|name| reached.insert(name.clone())));
        }
        reached
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = edges.keys().map(|name| (name, reach(name))).collect();
    let group = |name: &String| -> Vec<String> {
        let others = reached[name].iter().filter(|other| reached.get(other).is_some_and(|back| back.contains(name)));
        others.cloned().collect()
    };
    edges.keys().map(group).filter(|group| !group.is_empty()).collect()
}

/// The crates of the framework.
fn packages(files: &[File]) -> BTreeSet<String> {
    let package = |file: &File| Some(file.path.strip_prefix("framework/")?.split_once("/src/")?.0.to_owned());
    files.iter().filter(|file| file.is_product()).filter_map(package).collect()
}

#[test]
fn files_of_each_crate_have_no_cycle() {
    let files = repository();
    let mut wrong = String::new();
    for package in packages(&files) {
        let found = cycles(&Modules::of(&package, &files).edges());
        let known = KNOWN.iter().filter(|(of, ..)| *of == package);
        let known: BTreeSet<Vec<String>> =
            known.map(|(_, files, _)| files.iter().map(|&file| file.to_owned()).collect()).collect();
        for cycle in found.difference(&known) {
            wrong += &format!("\n  {package}: a cycle of {cycle:?}");
        }
        for cycle in known.difference(&found) {
            wrong += &format!("\n  {package}: no such cycle any longer, remove it from KNOWN: {cycle:?}");
        }
    }
    assert!(wrong.is_empty(), "{wrong}\n");
}

#[test]
fn cycle_of_files_is_found_however_it_is_written() {
    let groups = |texts: &[(&str, &str)]| {
        let file = |&(path, text): &(&str, &str)| File::new(&format!("framework/log/src/{path}"), text);
        cycles(&Modules::of("log", &texts.iter().map(file).collect::<Vec<_>>()).edges())
    };
    let both = BTreeSet::from([vec!["a/one".to_owned(), "a/two".to_owned()]]);
    let folder =
        ("a/mod.rs", "mod one;\nmod two;\npub(crate) use one::One;\npub use self::two::{Two, Second as Other};");
    let found = |one: &str, two: &str| groups(&[folder, ("a/one.rs", one), ("a/two.rs", two)]);
    assert_eq!(found("use super::two::Two;", "use super::one::One;"), both);
    assert_eq!(found("use super::Two;", "fn f() -> crate::a::One {}"), both, "through re-exports");
    assert_eq!(found("use crate::{a::{Other, X}};", "use super::one;\nfn f() { one::f(); }"), both);
    assert_eq!(found("use super::two::Two;", "use super::two::X; // super::one::One"), BTreeSet::new());
    assert_eq!(
        found("use super::two::Two;", "#[cfg(test)]\nmod tests { use super::super::one::One; }"),
        BTreeSet::new()
    );
    let parent = [("a/mod.rs", "mod one;\npub use one::One;\npub struct Item;"), ("a/one.rs", "use super::Item;")];
    assert_eq!(groups(&parent), BTreeSet::new(), "a re-export is no use");
    let user = [("a/mod.rs", "mod one;\nuse one::One;\npub struct Item;"), ("a/one.rs", "use super::Item;")];
    assert_eq!(groups(&user), BTreeSet::from([vec!["a".to_owned(), "a/one".to_owned()]]));
}
