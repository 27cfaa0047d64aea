//! The crates of the framework as trees of modules, read from their source.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use syn::{Attribute, Item, UseTree, Visibility};

/// A module with its items, without tests and without modules that are tests.
pub(crate) struct Module {
    pub(crate) is_public: bool,
    pub(crate) is_hidden: bool,
    pub(crate) items: Vec<Item>,
    pub(crate) modules: BTreeMap<String, Module>,
}

/// All crates by the names that code has for them.
pub(crate) struct Crates(BTreeMap<String, Module>);

/// A place in a crate: its name, and the path of a module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) package: String,
    pub(crate) path: Vec<String>,
}

/// The target of a name.
pub(crate) enum Target<'a> {
    Module(Place),
    Item(Place, &'a Item),
}

pub(crate) fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Returns true for `#[doc(hidden)]`.
pub(crate) fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("doc")
            && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "hidden")
    })
}

/// Returns true for an item that is compiled into tests only.
pub(crate) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.meta.require_list().is_ok_and(|list| list.tokens.to_string() == "test")
    })
}

/// The attributes of an item that has a name.
pub(crate) fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The name of an item, and true if it is public.
pub(crate) fn name(item: &Item) -> Option<(String, bool)> {
    Some(match item {
        Item::Const(item) => (item.ident.to_string(), is_public(&item.vis)),
        Item::Enum(item) => (item.ident.to_string(), is_public(&item.vis)),
        Item::Fn(item) => (derived(item), is_public(&item.vis)),
        Item::Static(item) => (item.ident.to_string(), is_public(&item.vis)),
        Item::Struct(item) => (item.ident.to_string(), is_public(&item.vis)),
        Item::Trait(item) => (item.ident.to_string(), is_public(&item.vis)),
        Item::Type(item) => (item.ident.to_string(), is_public(&item.vis)),
        Item::Macro(item) => {
            let is_exported = item.attrs.iter().any(|attribute| attribute.path().is_ident("macro_export"));
            (item.ident.as_ref()?.to_string(), is_exported)
        }
        _ => return None,
    })
}

/// The name of a function; of a derive macro, the name of the derive.
fn derived(item: &syn::ItemFn) -> String {
    let derive = item.attrs.iter().find(|attribute| attribute.path().is_ident("proc_macro_derive"));
    let tokens = derive.and_then(|derive| derive.meta.require_list().ok()).map(|list| list.tokens.to_string());
    let name = tokens.and_then(|tokens| tokens.split([',', ' ']).next().map(str::to_owned));
    name.unwrap_or_else(|| item.sig.ident.to_string())
}

/// The names that a `use` binds: each with its path; `*` for a glob.
pub(crate) fn bindings(tree: &UseTree) -> Vec<(Vec<String>, String)> {
    let nested = |head: &str, tree: &UseTree| {
        let inner = bindings(tree).into_iter();
        inner
            .map(|(mut path, name)| {
                path.insert(0, head.to_owned());
                (path, name)
            })
            .collect()
    };
    match tree {
        UseTree::Path(path) => nested(&path.ident.to_string(), &path.tree),
        UseTree::Name(name) => vec![(vec![name.ident.to_string()], name.ident.to_string())],
        UseTree::Rename(rename) => vec![(vec![rename.ident.to_string()], rename.rename.to_string())],
        UseTree::Glob(_) => vec![(Vec::new(), "*".to_owned())],
        UseTree::Group(group) => group.items.iter().flat_map(bindings).collect(),
    }
}

impl Module {
    fn read(file: &Path, folder: &Path, is_public: bool, is_hidden: bool) -> Self {
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        Self::new(parsed.items, folder, is_public, is_hidden)
    }

    fn new(all: Vec<Item>, folder: &Path, is_public: bool, is_hidden: bool) -> Self {
        let (mut items, mut modules) = (Vec::new(), BTreeMap::new());
        for item in all.into_iter().filter(|item| !is_test(attributes(item))) {
            let Item::Mod(module) = item else {
                items.push(item);
                continue;
            };
            let (name, public) = (module.ident.to_string(), self::is_public(&module.vis));
            let (hidden, below) = (self::is_hidden(&module.attrs), folder.join(&name));
            let read = match module.content {
                Some((_, items)) => Self::new(items, &below, public, hidden),
                None => {
                    let beside = folder.join(format!("{name}.rs"));
                    let file = if beside.exists() { beside } else { below.join("mod.rs") };
                    Self::read(&file, &below, public, hidden)
                }
            };
            modules.insert(name, read);
        }
        Self { is_public, is_hidden, items, modules }
    }
}

impl Crates {
    /// Reads the crates from their folders.
    pub(crate) fn read(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        let read = |folder: PathBuf| {
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
            let name = manifest.lines().find_map(|line| line.strip_prefix("name = ")).expect("a name");
            let source = folder.join("src");
            let root = Module::read(&source.join("lib.rs"), &source, true, false);
            (name.trim_matches('"').replace('-', "_"), root)
        };
        Self(folders.into_iter().map(read).collect())
    }

    /// The names of all crates.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns true if one of the crates defines a trait of this name.
    pub(crate) fn has_trait(&self, wanted: &str) -> bool {
        let modules = self.0.keys().flat_map(|package| self.modules(package));
        modules.flat_map(|module| &module.items).any(|item| matches!(item, Item::Trait(item) if item.ident == wanted))
    }

    pub(crate) fn module(&self, place: &Place) -> Option<&Module> {
        let root = self.0.get(&place.package)?;
        place.path.iter().try_fold(root, |module, name| module.modules.get(name))
    }

    /// All modules of a crate.
    pub(crate) fn modules(&self, package: &str) -> Vec<&Module> {
        let mut found: Vec<&Module> = self.0.get(package).into_iter().collect();
        let mut next = 0;
        while let Some(module) = found.get(next).copied() {
            found.extend(module.modules.values());
            next += 1;
        }
        found
    }

    /// Resolves a path that is written in a module.
    pub(crate) fn resolve(&self, from: &Place, path: &[String]) -> Option<Target<'_>> {
        self.resolve_within(from, path, 32)
    }

    fn resolve_within(&self, from: &Place, path: &[String], depth: usize) -> Option<Target<'_>> {
        let depth = depth.checked_sub(1)?;
        let Some((first, rest)) = path.split_first() else { return Some(Target::Module(from.clone())) };
        let root = |package: &str| Place { package: package.to_owned(), path: Vec::new() };
        match first.as_str() {
            "self" => return self.resolve_within(from, rest, depth),
            "crate" => return self.resolve_within(&root(&from.package), rest, depth),
            "super" => {
                let above = from.path.split_last().map_or(Vec::new(), |(_, above)| above.to_vec());
                return self.resolve_within(&Place { path: above, ..from.clone() }, rest, depth);
            }
            _ => {}
        }
        match self.lookup(from, first, depth) {
            Some(Target::Module(place)) => self.resolve_within(&place, rest, depth),
            Some(item) if rest.is_empty() => Some(item),
            Some(_) => None,
            None if self.0.contains_key(first) => self.resolve_within(&root(first), rest, depth),
            None => None,
        }
    }

    /// Finds the module or the item that a name stands for in a module.
    fn lookup(&self, from: &Place, wanted: &str, depth: usize) -> Option<Target<'_>> {
        let module = self.module(from)?;
        if module.modules.contains_key(wanted) {
            let mut path = from.path.clone();
            path.push(wanted.to_owned());
            return Some(Target::Module(Place { path, ..from.clone() }));
        }
        let named = module.items.iter().find(|item| name(item).is_some_and(|(name, _)| name == wanted));
        if let Some(item) = named {
            return Some(Target::Item(from.clone(), item));
        }
        // A macro is at the root of its crate, in whichever module it is defined.
        if from.path.is_empty() {
            let exported = self.modules(&from.package).into_iter().flat_map(|module| &module.items);
            let mut exported = exported.filter(|item| matches!(item, Item::Macro(_)));
            if let Some(item) = exported.find(|item| name(item) == Some((wanted.to_owned(), true))) {
                return Some(Target::Item(from.clone(), item));
            }
        }
        let uses = module.items.iter().filter_map(|item| match item {
            Item::Use(item) => Some(bindings(&item.tree)),
            _ => None,
        });
        let uses: Vec<_> = uses.flatten().collect();
        if let Some((path, _)) = uses.iter().find(|(_, name)| name == wanted) {
            return self.resolve_within(from, path, depth);
        }
        uses.iter().filter(|(_, name)| name == "*").find_map(|(path, _)| {
            let Some(Target::Module(place)) = self.resolve_within(from, path, depth) else { return None };
            self.lookup(&place, wanted, depth.checked_sub(1)?)
        })
    }
}
