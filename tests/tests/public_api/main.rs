//! The public API of `whizbang` is the one in `tests/public-api.txt`.
//!
//! The list is read from the source of the crates, so it needs neither a nightly compiler nor the network. It has each item that a
//! user can name, with its signature, its fields or variants, its public functions and its traits. An item that is visible under
//! several paths is described under the shortest one. Items hidden from the documentation are not part of it, and neither is code
//! that a macro generates. To accept a change, run this test with `PUBLIC_API=overwrite` and add a note in `changes/unreleased`.

mod render;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use syn::Item;
use whizbang_tests::root;

use source::{Crates, Place, Target, attributes, bindings, is_hidden, is_public, name};

const SNAPSHOT: &str = "tests/public-api.txt";

/// An item that users can name: the place and the name of its definition.
type Id = (Place, String);

/// The public items below a root, with the paths under which they are visible.
struct Api<'a> {
    crates: &'a Crates,
    items: BTreeMap<Id, (&'a Item, BTreeSet<String>)>,
    /// Modules that are being visited, against cycles of re-exports.
    visited: BTreeSet<(String, Place)>,
}

impl<'a> Api<'a> {
    fn of(crates: &'a Crates, package: &str) -> Self {
        let mut api = Self { crates, items: BTreeMap::new(), visited: BTreeSet::new() };
        api.visit(&Place { package: package.to_owned(), path: Vec::new() }, package);
        api
    }

    fn visit(&mut self, place: &Place, visible: &str) {
        let Some(module) = self.crates.module(place) else { return };
        if !self.visited.insert((visible.to_owned(), place.clone())) {
            return;
        }
        let is_shown = |(_, inner): &(&String, &source::Module)| inner.is_public && !inner.is_hidden;
        for (name, _) in module.modules.iter().filter(is_shown) {
            let mut path = place.path.clone();
            path.push(name.clone());
            self.visit(&Place { path, ..place.clone() }, &format!("{visible}::{name}"));
        }
        for item in module.items.iter().filter(|item| !is_hidden(attributes(item))) {
            match item {
                Item::Use(item) if is_public(&item.vis) => {
                    for (path, name) in bindings(&item.tree) {
                        self.bind(place, &path, &name, visible);
                    }
                }
                // Exported macros are added at the root of the crate that users name.
                Item::Macro(_) => {}
                item => {
                    if let Some((name, true)) = name(item) {
                        self.add(place, item, format!("{visible}::{name}"));
                    }
                }
            }
        }
    }

    fn bind(&mut self, from: &Place, path: &[String], name: &str, visible: &str) {
        match self.crates.resolve(from, path) {
            Some(Target::Module(place)) if name == "*" => self.visit(&place, visible),
            Some(Target::Module(place)) => self.visit(&place, &format!("{visible}::{name}")),
            Some(Target::Item(place, item)) => self.add(&place, item, format!("{visible}::{name}")),
            // An item of another crate, such as serde.
            None => {}
        }
    }

    fn add(&mut self, place: &Place, item: &'a Item, path: String) {
        let Some((name, _)) = name(item) else { return };
        // A derive and the trait of its name are two items.
        let kind = if matches!(item, Item::Fn(_)) { "fn" } else { "" };
        let id = (place.clone(), format!("{name}{kind}"));
        self.items.entry(id).or_insert_with(|| (item, BTreeSet::new())).1.insert(path);
    }

    fn render(&self) -> String {
        let mut blocks = BTreeMap::new();
        for ((place, _), (item, paths)) in &self.items {
            let shortest = paths.iter().min_by_key(|path| (path.matches("::").count(), path.len(), (*path).clone()));
            let Some(shortest) = shortest else { continue };
            let mut lines = render::item(item, shortest);
            let name = name(item).map(|(name, _)| name).unwrap_or_default();
            if matches!(item, Item::Struct(_) | Item::Enum(_) | Item::Type(_)) {
                lines.extend(self.implementations(place, &name));
            }
            lines.extend(paths.iter().filter(|path| *path != shortest).map(|path| format!("    also {path}")));
            blocks.insert((shortest.clone(), lines.first().cloned()), lines.join("\n"));
        }
        blocks.into_values().collect::<Vec<_>>().join("\n") + "\n"
    }

    /// The lines of documentation of the public items, and the lines of their signatures.
    fn documented(&self) -> (usize, usize) {
        let (mut documented, mut signatures) = (0, 0);
        for ((place, _), (item, paths)) in &self.items {
            let Some(path) = paths.first() else { continue };
            documented += match item {
                Item::Fn(item) => item.attrs.iter().map(render::documentation).sum(),
                item => render::documentation(item),
            };
            signatures += render::item(item, path).len();
            let Some((name, _)) = name(item).filter(|_| matches!(item, Item::Struct(_) | Item::Enum(_))) else {
                continue;
            };
            documented += self.impls(place, &name).map(render::documented_functions).sum::<usize>();
            signatures += self.impls(place, &name).map(|item| render::implementation(item).len()).sum::<usize>();
        }
        (documented, signatures)
    }

    fn impls(&self, place: &Place, name: &str) -> impl Iterator<Item = &'a syn::ItemImpl> {
        let modules = self.crates.modules(&place.package);
        modules.into_iter().flat_map(|module| &module.items).filter_map(move |item| match item {
            Item::Impl(item) if render::self_name(item).is_some_and(|own| own == name) => Some(item),
            _ => None,
        })
    }

    /// The public functions and the traits of a type, in the order of the alphabet.
    fn implementations(&self, place: &Place, name: &str) -> BTreeSet<String> {
        let is_shown = |item: &&syn::ItemImpl| match render::trait_name(item) {
            Some(name) => !self.crates.has_trait(&name) || self.items.keys().any(|(_, known)| *known == name),
            None => true,
        };
        self.impls(place, name).filter(is_shown).flat_map(render::implementation).collect()
    }
}

fn folders() -> Vec<PathBuf> {
    let framework = std::fs::read_dir(root().join("framework")).expect("the crates");
    let framework = framework.map(|entry| entry.expect("a folder").path());
    framework.filter(|path| path.join("Cargo.toml").exists()).chain([root().join("macros")]).collect()
}

#[test]
fn public_api_is_the_one_in_the_snapshot() {
    let crates = Crates::read(folders());
    let found = Api::of(&crates, "whizbang").render();
    let file = root().join(SNAPSHOT);
    if std::env::var_os("PUBLIC_API").is_some_and(|mode| mode == "overwrite") {
        std::fs::write(&file, &found).expect("writes the snapshot");
    }
    let known = std::fs::read_to_string(&file).expect("the snapshot");
    let (known, found): (BTreeSet<&str>, BTreeSet<&str>) = (known.lines().collect(), found.lines().collect());
    let removed: Vec<_> = known.difference(&found).collect();
    let added: Vec<_> = found.difference(&known).collect();
    assert!(
        removed.is_empty() && added.is_empty(),
        "the public API has changed: run this test with PUBLIC_API=overwrite and add a note in changes/unreleased\n\
         removed: {removed:#?}\nadded: {added:#?}"
    );
}

/// The smallest share of documentation among the lines that rustdoc shows, in percent.
const DOCUMENTED: usize = 20;

#[test]
fn public_items_of_each_crate_are_documented() {
    let crates = Crates::read(folders());
    let mut sparse = Vec::new();
    // The derives are documented where users see them, in `whizbang`.
    for package in crates.names().filter(|package| *package != "whizbang_macros") {
        let (documented, signatures) = Api::of(&crates, package).documented();
        println!("{package}: {documented} lines of documentation, {signatures} of signatures");
        if documented * (100 - DOCUMENTED) < signatures * DOCUMENTED {
            sparse.push(format!("{package}: {documented} lines of documentation, {signatures} of signatures"));
        }
    }
    assert!(sparse.is_empty(), "less than {DOCUMENTED} % documentation: {sparse:#?}");
}

#[test]
fn snapshot_has_the_items_that_users_name_and_no_interior() {
    let crates = Crates::read(folders());
    let text = Api::of(&crates, "whizbang").render();
    let has = |line: &str| text.lines().any(|known| known == line || known.starts_with(&format!("{line} ")));
    for line in [
        "trait whizbang::Handle<C: Command>: Stateful",
        "    fn handle(&self, command: C, effects: &mut Effects<Self>) -> Result<C::Reply, Rejection>",
        "derive whizbang::Aggregate: Aggregate, attributes(aggregate, saga, whizbang)",
        "macro whizbang::bridge_suite!",
        "trait whizbang::store::Store: Send + Sync + 'static",
    ] {
        assert!(has(line), "`{line}` is missing in\n{text}");
    }
    for interior in ["whizbang::router", "whizbang::inbox", "whizbang::actor", "whizbang::telemetry", "Failpoint"] {
        assert!(!text.contains(interior), "{interior} is visible");
    }
}

#[test]
fn changed_signature_changes_the_text() {
    let parse = |text: &str| render::item(&syn::parse_str::<Item>(text).expect("an item"), "a::B").join("\n");
    assert_eq!(
        parse("pub struct B { pub c: Vec<u8>, d: u8 }"),
        "struct a::B\n    pub c: Vec<u8>\n    // private fields"
    );
    assert_eq!(
        parse("#[non_exhaustive] pub enum B { C(u8), D { e: u8 } }"),
        "#[non_exhaustive] enum a::B\n    C(u8)\n    D { e: u8 }"
    );
    let one = parse("pub trait B: Send { fn c(&self, d: &str) -> bool { true } #[doc(hidden)] fn e(); }");
    assert_eq!(one, "trait a::B: Send\n    fn c(&self, d: &str) -> bool { … }");
    assert_ne!(one, parse("pub trait B: Send { fn c(&self, d: &str) -> bool; }"));
}
