//! Items as lines of text: their signatures, without bodies and documentation.

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, TraitItem, Type};

use crate::source::{is_hidden, is_public, is_test};

/// Tokens as compact text.
fn text(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string().replace('\n', " ");
    for (spaced, compact) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" ::", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" <", "<"),
        ("& ", "&"),
        (" ,", ","),
        (" ;", ";"),
        (" :", ":"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        ("[ ", "["),
        (" ]", "]"),
        ("' ", "'"),
        (" . ", "."),
        (" !", "!"),
        ("? ", "?"),
        (",)", ")"),
        (",>", ">"),
        ("->", " ->"),
        ("  ->", " ->"),
        (")->", ") ->"),
        ("=>", " =>"),
    ] {
        text = text.replace(spaced, compact);
    }
    text.replace("- >", "->").replace(" -> ", "->").replace("->", " -> ").replace("  ", " ").trim().to_owned()
}

/// The derives of an item, and its being open for growth.
fn head(attributes: &[Attribute]) -> String {
    let mut head = String::new();
    for attribute in attributes {
        if attribute.path().is_ident("non_exhaustive") {
            head += "#[non_exhaustive] ";
        }
    }
    let lists = attributes.iter().filter(|attribute| attribute.path().is_ident("derive"));
    let derives: Vec<String> =
        lists.filter_map(|derive| derive.meta.require_list().ok().map(|list| text(&list.tokens))).collect();
    if !derives.is_empty() {
        head += &format!("#[derive({})] ", derives.join(", "));
    }
    head
}

fn fields(fields: &Fields, into: &mut Vec<String>) {
    let mut has_private = false;
    for (index, field) in fields.iter().enumerate() {
        if !is_public(&field.vis) {
            has_private = true;
        } else if !is_hidden(&field.attrs) {
            let name = field.ident.as_ref().map_or_else(|| index.to_string(), ToString::to_string);
            into.push(format!("    pub {name}: {}", text(&field.ty)));
        }
    }
    if has_private {
        into.push("    // private fields".to_owned());
    }
}

fn variant(variant: &syn::Variant) -> String {
    let mut variant = variant.clone();
    variant.attrs.clear();
    variant.fields.iter_mut().for_each(|field| field.attrs.clear());
    format!("    {}", text(&variant))
}

/// The lines of an item that is visible as `path`.
pub(crate) fn item(item: &Item, path: &str) -> Vec<String> {
    let mut lines = Vec::new();
    match item {
        Item::Const(item) => lines.push(format!("const {path}: {}", text(&item.ty))),
        Item::Static(item) => lines.push(format!("static {path}: {}", text(&item.ty))),
        Item::Type(item) => lines.push(format!("type {path}{} = {}", text(&item.generics), text(&item.ty))),
        Item::Macro(_) => lines.push(format!("macro {path}!")),
        Item::Fn(item) => match item.attrs.iter().find(|attribute| attribute.path().is_ident("proc_macro_derive")) {
            Some(derive) => {
                let tokens = derive.meta.require_list().map(|list| text(&list.tokens)).unwrap_or_default();
                lines.push(format!("derive {path}: {tokens}"));
            }
            None if item.attrs.iter().any(|attribute| attribute.path().is_ident("proc_macro_attribute")) => {
                lines.push(format!("attribute {path}"));
            }
            None => lines.push(format!("fn {path}: {}", text(&item.sig))),
        },
        Item::Struct(item) => {
            let (generics, bounds) = (text(&item.generics), text(&item.generics.where_clause));
            lines.push(format!("{}struct {path}{generics} {bounds}", head(&item.attrs)));
            fields(&item.fields, &mut lines);
        }
        Item::Enum(item) => {
            lines.push(format!("{}enum {path}{}", head(&item.attrs), text(&item.generics)));
            lines.extend(item.variants.iter().filter(|variant| !is_hidden(&variant.attrs)).map(variant));
        }
        Item::Trait(item) => {
            let above =
                if item.supertraits.is_empty() { String::new() } else { format!(": {}", text(&item.supertraits)) };
            lines.push(format!("trait {path}{}{above}", text(&item.generics)));
            lines.extend(item.items.iter().filter_map(trait_item));
        }
        _ => {}
    }
    for line in &mut lines {
        line.truncate(line.trim_end().len());
    }
    lines
}

fn trait_item(item: &TraitItem) -> Option<String> {
    let line = match item {
        TraitItem::Fn(function) if !is_hidden(&function.attrs) => {
            let provided = if function.default.is_some() { " { … }" } else { "" };
            format!("    {}{provided}", text(&function.sig))
        }
        TraitItem::Const(item) if !is_hidden(&item.attrs) => {
            let provided = if item.default.is_some() { " = …" } else { "" };
            format!("    const {}: {}{provided}", item.ident, text(&item.ty))
        }
        TraitItem::Type(item) if !is_hidden(&item.attrs) => {
            let bounds = if item.bounds.is_empty() { String::new() } else { format!(": {}", text(&item.bounds)) };
            format!("    type {}{bounds}", item.ident)
        }
        _ => return None,
    };
    Some(line)
}

/// The name of the type of an `impl`.
pub(crate) fn self_name(item: &ItemImpl) -> Option<String> {
    match &*item.self_ty {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()),
        _ => None,
    }
}

/// The name of the trait of an `impl`.
pub(crate) fn trait_name(item: &ItemImpl) -> Option<String> {
    let (path, ..) = item.trait_.as_ref()?;
    path.segments.last().map(|segment| segment.ident.to_string())
}

/// The lines of an `impl`: its public functions, or its trait.
pub(crate) fn implementation(item: &ItemImpl) -> Vec<String> {
    let (generics, own) = (text(&item.generics), text(&item.self_ty));
    let bounds = text(&item.generics.where_clause);
    if let Some((path, ..)) = &item.trait_ {
        return vec![format!("    impl{generics} {} for {own} {bounds}", text(path)).trim_end().to_owned()];
    }
    let is_shown = |attributes: &[Attribute]| !is_hidden(attributes) && !is_test(attributes);
    let inside = item.items.iter().filter_map(|inside| match inside {
        ImplItem::Fn(function) if is_public(&function.vis) && is_shown(&function.attrs) => {
            Some(format!("    pub {}", text(&function.sig)))
        }
        ImplItem::Const(constant) if is_public(&constant.vis) && is_shown(&constant.attrs) => {
            Some(format!("    pub const {}: {}", constant.ident, text(&constant.ty)))
        }
        _ => None,
    });
    inside.collect()
}

/// The lines of documentation of an item, with those of its fields, variants and functions.
pub(crate) fn documentation(item: &impl ToTokens) -> usize {
    item.to_token_stream().to_string().matches("# [doc =").count()
}

/// The lines of documentation of the public functions of an `impl`.
pub(crate) fn documented_functions(item: &ItemImpl) -> usize {
    let inside = item.items.iter().filter_map(|inside| match inside {
        ImplItem::Fn(function) if is_public(&function.vis) && !is_hidden(&function.attrs) => {
            Some(function.attrs.iter().map(documentation).sum::<usize>())
        }
        _ => None,
    });
    inside.sum()
}
