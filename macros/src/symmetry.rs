//! Rejects serde attributes whose output the codec cannot decode.
//!
//! Called by the derives of messages and of stored states. Calls nothing. A derive does not know the codec of a
//! message's domain: that is a constant of another type. A restriction of one codec therefore becomes a check that the
//! compiler evaluates. A stored state is always bincode.
//!
//! Serde accepts attributes whose output it cannot read back in every format: a skipped field shifts the fields after it in bincode,
//! and a field with two names has another one in JSON than its reader expects. Such a message would be stored and could never be
//! read again. So it is an error of the compiler, at the attribute:
//!
//! | attribute | in bincode | in JSON |
//! |---|---|---|
//! | `flatten`, `tag`, `untagged` | refused: it has no names | accepted |
//! | `skip`, `skip_serializing_if` | refused: it has all fields | accepted with `default` |
//! | `skip_deserializing` | refused: the value is lost | refused: the value is lost |
//! | `rename(serialize = …, deserialize = …)` | accepted: it has no names | refused without an alias |

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, quote_spanned};
use syn::{Field, Type};

use crate::diagnostics::Diagnostics;
use crate::fields::{Item, Key, Part};
use crate::shape::with_article;

/// The item that is encoded and decoded.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    /// A message, in the codec of this domain; unknown without one.
    Message { word: &'a str, domain: Option<&'a Type> },
    /// The state in a snapshot or in a stored view.
    State { word: &'a str },
}

/// The codecs that cannot decode the output of an attribute.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    /// No codec can decode it.
    Both,
    /// Bincode cannot decode it; JSON can.
    Bincode,
    /// JSON cannot decode it; bincode can.
    Json,
}

/// Reports every such attribute: as a mistake if it is wrong in any codec, otherwise in the returned checks.
///
/// The returned checks are constants that fail to compile if the domain has the wrong codec. They are empty for most items.
pub(crate) fn reject(item: &Item<'_>, place: Target<'_>, mistakes: &mut Diagnostics) -> TokenStream {
    let mut found = Checker { place, checks: TokenStream::new(), mistakes };
    let given = |name: &str| item.keys.iter().any(|key| key.ident == name);
    for key in &item.keys {
        match key.ident.to_string().as_str() {
            "untagged" => found.report_needs_names(key),
            "tag" => found.report_needs_names(key),
            "content" if !given("tag") => found.report_needs_names(key),
            "rename_all" | "rename_all_fields" => found.report_rename(key, &[]),
            _ => {}
        }
    }
    for group in &item.groups {
        for key in &group.keys {
            match key.ident.to_string().as_str() {
                "skip" | "skip_serializing" | "skip_deserializing" => found.report_skipped_variant(key),
                "untagged" => found.report_needs_names(key),
                "rename" => found.report_rename(key, &group.keys),
                "rename_all" => found.report_rename(key, &[]),
                _ => {}
            }
        }
        found.check_fields(&group.parts, !group.is_variant && given("default"));
    }
    found.checks
}

/// The state of the check.
struct Checker<'a> {
    /// The item, which decides the codec.
    place: Target<'a>,
    /// The checks that the compiler evaluates with the codec of the domain.
    checks: TokenStream,
    /// The mistakes that do not depend on the codec.
    mistakes: &'a mut Diagnostics,
}

impl Checker<'_> {
    /// Checks the fields of a struct or variant. `all_default` is true if a missing field gets its default.
    ///
    /// A key field that is skipped is a mistake in every codec, and no other mistake is reported for it.
    fn check_fields(&mut self, parts: &[Part<'_>], all_default: bool) {
        for Part { field, keys, is_key: is_marked, .. } in parts {
            if let Some(skip) = keys.iter().find(|key| key.ident.to_string().starts_with("skip"))
                && *is_marked
            {
                let text = format!(
                    "found `{}` on the `#[key]`; the key is encoded and decoded with the command: remove `{0}`",
                    skip.ident
                );
                self.mistakes.add(skip.span(), text);
                continue;
            }
            self.check_field(field, keys, all_default);
        }
    }

    /// Checks the attributes of one field.
    ///
    /// The first reason that applies is reported; a field with three wrong attributes has one mistake. Renames are checked in
    /// addition, since they concern the name and not the value.
    fn check_field(&mut self, field: &Field, keys: &[Key], all_default: bool) {
        let key = |name: &str| keys.iter().find(|key| key.ident == name);
        let is_read_if_missing = all_default
            || key("default").is_some()
            || (is_named(&field.ty, "Option") && key("with").is_none() && key("deserialize_with").is_none());
        // Without names, a missing value shifts the values after it.
        let reads = |is_skipped: bool| match is_skipped || (is_read_if_missing && field.ident.is_some()) {
            true => Unreadable::Bincode,
            false => Unreadable::Both,
        };
        if let Some(flatten) = key("flatten") {
            let text =
                format!("found `flatten`; {} write the fields out", self.why(Unreadable::Bincode, "stores no names"));
            self.add(flatten, Unreadable::Bincode, &text);
        }
        if let Some(rename) = key("rename") {
            self.report_rename(rename, keys);
        }
        // An empty field loses no data.
        if is_named(&field.ty, "PhantomData") || matches!(&field.ty, Type::Tuple(tuple) if tuple.elems.is_empty()) {
            return;
        }
        let pair = key("skip_serializing").zip(key("skip_deserializing")).map(|(skip, _)| skip);
        if let Some(skip) = key("skip").or(pair) {
            let text = format!(
                "found `{}`; {} remove it or the field",
                skip.ident,
                self.why(Unreadable::Bincode, "stores every field")
            );
            self.add(skip, Unreadable::Bincode, &text);
        } else if let Some(skip) = key("skip_deserializing") {
            let text =
                "found `skip_deserializing`; the field is encoded and never decoded, so its value is lost: remove it";
            self.add(skip, Unreadable::Both, text);
        } else if let Some(skip) = key("skip_serializing").or_else(|| key("skip_serializing_if")) {
            let fails = reads(false);
            let text = match fails {
                Unreadable::Both if field.ident.is_none() => format!(
                    "found `{}` on a field without a name; the fields after it would be decoded in its place: remove it",
                    skip.ident
                ),
                Unreadable::Both => format!(
                    "found `{}` without `default`; an omitted field cannot be decoded: remove it, or add `default`",
                    skip.ident
                ),
                _ => format!("found `{}`; {} remove it", skip.ident, self.why(fails, "stores every field")),
            };
            self.add(skip, fails, &text);
        }
    }

    /// Reports an attribute that needs the names which bincode omits.
    fn report_needs_names(&mut self, key: &Key) {
        let text = format!("found `{}`; {} remove it", key.ident, self.why(Unreadable::Bincode, "stores no names"));
        self.add(key, Unreadable::Bincode, &text);
    }

    /// Reports a variant that is encoded and not decoded, or the other way around.
    fn report_skipped_variant(&mut self, key: &Key) {
        let word = match self.place {
            Target::Message { word, .. } | Target::State { word } => word,
        };
        let text = format!(
            "found `{}` on a variant; {} of it cannot be encoded and decoded: remove `{0}` or the variant",
            key.ident,
            with_article(word)
        );
        self.add(key, Unreadable::Both, &text);
    }

    /// Reports different names for encoding and decoding. `keys` are the keys beside it.
    ///
    /// An alias with the written name makes the pair readable, and nothing is reported.
    fn report_rename(&mut self, key: &Key, keys: &[Key]) {
        let Some(inside) = &key.inside else { return };
        let side = |name: &str| inside.iter().find(|(side, _)| side == name).map(|(_, text)| text.as_str());
        let (written, read) = (side("serialize"), side("deserialize"));
        let also_read = |key: &Key| key.ident == "alias" && key.value.as_deref() == written;
        if written == read || (written.is_some() && keys.iter().any(also_read)) {
            return;
        }
        let text = format!(
            "found `{}` with different names for encoding and decoding; a JSON domain could not decode its own messages: give one name, \
             or add `alias = …` for an older one",
            key.ident
        );
        self.add(key, Unreadable::Json, &text);
    }

    /// Returns why the codec cannot do it, and the alternative of a message.
    fn why(&self, fails: Unreadable, what: &str) -> String {
        match self.place {
            Target::Message { word, .. } if fails == Unreadable::Bincode => {
                format!("{} in bincode {what}: give the domain `codec = json`, or", with_article(word))
            }
            Target::Message { .. } => String::new(),
            Target::State { word: "projection" } => format!("a view is saved in bincode, which {what}:"),
            Target::State { .. } => {
                format!("a snapshot is saved in bincode, which {what}: write `snapshot(never)`, or")
            }
        }
    }

    /// Reports a mistake, or adds a check if it depends on the codec of the domain. Without a domain nothing is reported: the
    /// missing domain is a mistake of its own.
    fn add(&mut self, key: &Key, fails: Unreadable, text: &str) {
        let span = key.span();
        let check = match (fails, self.place) {
            (Unreadable::Both, _) | (Unreadable::Bincode, Target::State { .. }) => {
                return self.mistakes.add(span, text);
            }
            (Unreadable::Json, Target::State { .. }) | (_, Target::Message { domain: None, .. }) => return,
            (Unreadable::Bincode, Target::Message { domain: Some(domain), .. }) => ("not_in_bincode", domain),
            (Unreadable::Json, Target::Message { domain: Some(domain), .. }) => ("not_in_json", domain),
        };
        let (check, domain) = (Ident::new(check.0, span), respanned(check.1, span));
        self.checks.extend(quote_spanned! {span=>
            const _: () = ::whizbang::derive::#check(<#domain as ::whizbang::derive::Domain>::CODEC, #text);
        });
    }
}

/// Returns the type with errors at `span`; its names still resolve as before.
///
/// The compiler shows a failed check at its span. Without this it would show the domain in the attribute, and not the serde
/// attribute that is wrong.
fn respanned(ty: &Type, span: Span) -> TokenStream {
    let respan = |token: proc_macro2::TokenTree| {
        let mut token = token;
        token.set_span(token.span().located_at(span));
        token
    };
    ty.to_token_stream().into_iter().map(respan).collect()
}

/// Returns whether the last name of a path is this one.
fn is_named(ty: &Type, name: &str) -> bool {
    match ty {
        Type::Path(path) => path.path.segments.last().is_some_and(|last| last.ident == name),
        Type::Group(group) => is_named(&group.elem, name),
        Type::Paren(paren) => is_named(&paren.elem, name),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use syn::DeriveInput;

    use super::*;

    /// Returns the rejection of a message: a mistake in any codec, a check for bincode, one for JSON, or nothing.
    fn rejection(item: &str) -> &'static str {
        let input: DeriveInput = syn::parse_str(item).expect("the item is one");
        let domain: Type = syn::parse_str("Bank").expect("the domain is a type");
        let mut mistakes = Diagnostics::default();
        let item = Item::of(&input);
        let checks = reject(&item, Target::Message { word: "event", domain: Some(&domain) }, &mut mistakes).to_string();
        match (mistakes.is_empty(), checks.contains("not_in_bincode"), checks.contains("not_in_json")) {
            (false, false, false) => "any",
            (true, true, false) => "bincode",
            (true, false, true) => "json",
            (true, false, false) => "nothing",
            _ => "several",
        }
    }

    #[test]
    fn asymmetric_attributes_are_rejected_by_codec() {
        for (item, expected) in [
            ("struct E { a: u8 }", "nothing"),
            (
                "#[serde(rename_all = \"camelCase\", deny_unknown_fields)] struct E { #[serde(default)] a: u8 }",
                "nothing",
            ),
            ("#[serde(tag = \"t\")] enum E { A }", "bincode"),
            ("#[serde(tag = \"t\", content = \"c\")] enum E { A }", "bincode"),
            ("#[serde(untagged)] enum E { A }", "bincode"),
            ("enum E { A, #[serde(untagged)] B(u8) }", "bincode"),
            ("struct E { #[serde(flatten)] a: A }", "bincode"),
            ("enum E { A { #[serde(flatten)] a: A } }", "bincode"),
            ("struct E { #[serde(skip)] a: u8 }", "bincode"),
            ("struct E(#[serde(skip)] u8, u8);", "bincode"),
            ("struct E { #[serde(skip)] a: PhantomData<u8>, #[serde(skip)] b: () }", "nothing"),
            ("struct E { #[serde(skip_serializing, skip_deserializing)] a: u8 }", "bincode"),
            ("struct E { #[serde(skip_serializing)] #[serde(skip_deserializing)] a: u8 }", "bincode"),
            ("struct E { #[serde(skip_serializing, default)] a: u8 }", "bincode"),
            ("struct E { #[serde(skip_serializing)] a: Option<u8> }", "bincode"),
            ("struct E { #[serde(skip_serializing)] a: u8 }", "any"),
            ("struct E { #[serde(skip_deserializing)] a: u8 }", "any"),
            ("struct E { #[serde(skip_serializing_if = \"f\")] a: Option<u8> }", "bincode"),
            ("#[serde(default)] struct E { #[serde(skip_serializing_if = \"f\")] a: u8 }", "bincode"),
            ("struct E { #[serde(skip_serializing_if = \"f\", default = \"g\")] a: u8 }", "bincode"),
            ("struct E { #[serde(skip_serializing_if = \"f\")] a: u8 }", "any"),
            ("struct E { #[serde(skip_serializing_if = \"f\", with = \"m\")] a: Option<u8> }", "any"),
            ("struct E(#[serde(skip_serializing_if = \"f\", default)] u8);", "any"),
            ("enum E { A { #[serde(skip_serializing_if = \"f\")] a: u8 } }", "any"),
            ("enum E { A, #[serde(skip)] B }", "any"),
            ("enum E { A, #[serde(skip_serializing)] B }", "any"),
            ("enum E { A, #[serde(skip_deserializing)] B }", "any"),
            ("struct E { #[key] #[serde(skip)] a: u8 }", "any"),
            ("struct E { #[serde(default, skip_serializing_if = \"f\")] #[key] a: u8 }", "any"),
            ("struct E { #[serde(rename(serialize = \"x\", deserialize = \"y\"))] a: u8 }", "json"),
            ("struct E { #[serde(rename(serialize = \"x\"))] a: u8 }", "json"),
            ("struct E { #[serde(rename(serialize = \"x\", deserialize = \"x\"))] a: u8 }", "nothing"),
            ("struct E { #[serde(rename(serialize = \"x\", deserialize = \"y\"), alias = \"x\")] a: u8 }", "nothing"),
            ("#[serde(rename_all(deserialize = \"lowercase\"))] enum E { A }", "json"),
            ("enum E { #[serde(rename(deserialize = \"x\"))] A }", "json"),
        ] {
            assert_eq!(rejection(item), expected, "{item}");
        }
    }

    #[test]
    fn saved_states_are_always_bincode() {
        for item in [
            "#[serde(tag = \"t\")] enum S { A }",
            "struct S { #[serde(skip)] a: u8 }",
            "struct S { #[serde(default, skip_serializing_if = \"f\")] a: u8 }",
            "enum S { A, #[serde(skip)] B }",
        ] {
            let input: DeriveInput = syn::parse_str(item).expect("the item is one");
            let mut mistakes = Diagnostics::default();
            let checks = reject(&Item::of(&input), Target::State { word: "projection" }, &mut mistakes);
            assert!(!mistakes.is_empty() && checks.is_empty(), "{item}");
        }
    }
}
