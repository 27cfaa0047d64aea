//! `#[derive(Serialize)]` and `#[derive(Deserialize)]` of the prelude: serde's own, for programs that do not list serde
//! in their Cargo.toml.
//!
//! Called by the entry points; calls serde's derives.
//! serde's derives refer to the crate `serde`, which the program may not have, unless an attribute on the type gives
//! another path; and a derive cannot add an attribute to the type. So they receive a copy of the type with the
//! attribute, and generate the implementation for the original (serde calls that a remote derive). Every serde
//! attribute works as documented.
//!
//! # Input and output
//!
//! ```text
//! #[derive(Serialize)]
//! struct Deposit { account: String, cents: u64 }
//! ```
//!
//! becomes, apart from lints:
//!
//! ```text
//! const _: () = {
//!     #[derive(::whizbang::derive::serde::Serialize)]
//!     #[serde(crate = "::whizbang::derive::serde", remote = "Deposit")]
//!     #[serde(rename = "Deposit")]
//!     struct __WhizbangDeposit { account: String, cents: u64 }
//!     impl serde::Serialize for Deposit {
//!         fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> { __WhizbangDeposit::serialize(self, to) }
//!     }
//! };
//! ```
//!
//! The copy has the fields and the serde attributes of the original and nothing else, so it needs no other derive.

use proc_macro2::{Group, Literal, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Field, GenericParam, Ident, Meta, Type, Visibility};

use crate::diagnostics::Diagnostics;
use crate::{bounds, fields, held, owned, shape};

/// The trait to derive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Encoding.
    Serialize,
    /// Decoding, of owned data only.
    Deserialize,
}

/// Expands one of the two derives.
///
/// The input must not have lifetimes for `Deserialize`: what is decoded outlives the buffer from which it came.
pub(crate) fn expand(direction: Direction, input: &DeriveInput) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    if direction == Direction::Deserialize
        && let Some(lifetime) = input.generics.lifetimes().next()
    {
        mistakes.add(
            lifetime.span(),
            format!(
                "found the lifetime `{}`; whizbang's `Deserialize` is for owned data: write `String` for `&str`, \
                 or add serde to Cargo.toml and write `#[derive(serde::Deserialize)]`",
                lifetime.lifetime
            ),
        );
        return mistakes.into_tokens();
    }
    // Both derives report these mistakes in the same words, so the compiler shows each once.
    reject_own_keys(input, &mut mistakes);
    if direction == Direction::Deserialize {
        reject_references(input, &mut mistakes);
    }
    if !mistakes.is_empty() || held::is_rejected_message(input) {
        let stub = stub(direction, input);
        let mistakes = mistakes.into_tokens();
        return quote!(#stub #mistakes);
    }
    let copy = copy(input);
    let original = input.ident.to_string();
    let rename = match has_key(&copy.attrs, "rename") {
        true => TokenStream::new(),
        false => {
            let name = input.ident.unraw().to_string();
            quote!(#[serde(rename = #name)])
        }
    };
    // serde requires `Default` of the copy but uses that of the original.
    let default = (direction == Direction::Deserialize && has_key(&copy.attrs, "default")).then(|| default(&copy));
    let (derive, implementation) = match direction {
        Direction::Serialize => (quote!(Serialize), serialize(input, &copy.ident)),
        Direction::Deserialize => (quote!(Deserialize), deserialize(input, &copy.ident)),
    };
    let lints = shape::lints(input);
    quote! {
        #lints
        #[doc(hidden)]
        #[allow(clippy::all, clippy::pedantic)]
        const _: () = {
            #[derive(::whizbang::derive::serde::#derive)]
            #[serde(crate = "::whizbang::derive::serde", remote = #original)]
            #rename
            #copy
            #default
            #[automatically_derived]
            #implementation
        };
    }
}

/// Reports keys that whizbang's derives pass to serde themselves.
///
/// The keys are `crate` and `remote`. serde would report the second one as repeated, at a place in generated code.
fn reject_own_keys(input: &DeriveInput, mistakes: &mut Diagnostics) {
    for key in fields::keys(&input.attrs) {
        if key.ident == "remote" || key.ident == "crate" {
            mistakes.add(
                key.span(),
                format!(
                    "found `{}`; whizbang's `Serialize` and `Deserialize` set it themselves: leave it out, or add serde to \
                     Cargo.toml and derive serde's own",
                    key.ident
                ),
            );
        }
    }
}

/// Reports references in decoded fields.
///
/// Fields that are read by a function of the user are not checked, since serde does not decode them itself.
fn reject_references(input: &DeriveInput, mistakes: &mut Diagnostics) {
    for field in fields(input) {
        let keys = fields::keys(&field.attrs);
        let is_read_otherwise = |key: &fields::Key| {
            ["skip", "skip_deserializing", "with", "deserialize_with"].iter().any(|known| key.ident == known)
        };
        if !keys.iter().any(is_read_otherwise) {
            owned::reject(&field.ty, "a type that derives `Deserialize`", mistakes);
        }
    }
}

/// Returns the fields of all variants.
fn fields(input: &DeriveInput) -> Vec<&Field> {
    match &input.data {
        Data::Struct(data) => data.fields.iter().collect(),
        Data::Enum(data) => data.variants.iter().flat_map(|variant| variant.fields.iter()).collect(),
        Data::Union(_) => Vec::new(),
    }
}

/// Generates a stub of the implementation for a type with a mistake, to suppress follow-up errors.
///
/// The body is a loop without an end: it has every type and is never run, since the program does not compile.
fn stub(direction: Direction, input: &DeriveInput) -> TokenStream {
    let ident = &input.ident;
    let (generics, arguments, bounds) = input.generics.split_for_impl();
    match direction {
        Direction::Serialize => quote! {
            #[automatically_derived]
            impl #generics ::whizbang::derive::serde::ser::Serialize for #ident #arguments #bounds {
                fn serialize<WhizbangTo: ::whizbang::derive::serde::ser::Serializer>(
                    &self,
                    _: WhizbangTo,
                ) -> ::core::result::Result<WhizbangTo::Ok, WhizbangTo::Error> {
                    loop {}
                }
            }
        },
        Direction::Deserialize => {
            let mut generics = input.generics.clone();
            generics.params.insert(0, syn::parse_quote!('whizbang));
            let (generics, ..) = generics.split_for_impl();
            quote! {
                #[automatically_derived]
                impl #generics ::whizbang::derive::serde::de::Deserialize<'whizbang> for #ident #arguments #bounds {
                    fn deserialize<WhizbangFrom: ::whizbang::derive::serde::de::Deserializer<'whizbang>>(
                        _: WhizbangFrom,
                    ) -> ::core::result::Result<Self, WhizbangFrom::Error> {
                        loop {}
                    }
                }
            }
        }
    }
}

/// Returns the type under another name, with only serde's attributes.
///
/// The copy is private and has no other attributes. `Self` in the types of its fields, and in paths of serde attributes, is
/// replaced by the original type.
fn copy(input: &DeriveInput) -> DeriveInput {
    let ident = &input.ident;
    let (_, arguments, _) = input.generics.split_for_impl();
    let receiver = quote!(#ident #arguments);
    let mut copy = input.clone();
    copy.ident = format_ident!("__Whizbang{}", ident.unraw());
    copy.vis = Visibility::Inherited;
    // serde needs to see a packed type.
    copy.attrs.retain(|attribute| attribute.path().is_ident("serde") || attribute.path().is_ident("repr"));
    let of_original = |attributes: &mut Vec<Attribute>| {
        for attribute in attributes {
            if let Meta::List(list) = &mut attribute.meta {
                list.tokens = paths_without_self(std::mem::take(&mut list.tokens), &receiver);
            }
        }
    };
    of_original(&mut copy.attrs);
    let keep_serde = |attributes: &mut Vec<Attribute>| {
        attributes.retain(|attribute| attribute.path().is_ident("serde"));
        of_original(attributes);
    };
    let clean = |field: &mut Field| {
        keep_serde(&mut field.attrs);
        field.ty = Type::Verbatim(without_self(field.ty.to_token_stream(), &receiver));
    };
    match &mut copy.data {
        Data::Struct(data) => data.fields.iter_mut().for_each(clean),
        Data::Enum(data) => {
            for variant in &mut data.variants {
                keep_serde(&mut variant.attrs);
                variant.fields.iter_mut().for_each(clean);
            }
        }
        Data::Union(_) => {}
    }
    copy
}

/// Generates the implementation through a copy of the type that serde derives.
fn serialize(input: &DeriveInput, copy: &Ident) -> TokenStream {
    let ident = &input.ident;
    let generics = bounds::of(input, Direction::Serialize);
    let (generics, arguments, bounds) = generics.split_for_impl();
    let turbofish = arguments.as_turbofish();
    quote! {
        impl #generics ::whizbang::derive::serde::ser::Serialize for #ident #arguments #bounds {
            fn serialize<WhizbangTo: ::whizbang::derive::serde::ser::Serializer>(
                &self,
                to: WhizbangTo,
            ) -> ::core::result::Result<WhizbangTo::Ok, WhizbangTo::Error> {
                use ::whizbang::derive::serial::Serialized as _;
                #copy #turbofish ::serialize(self, to)
            }
        }
    }
}

/// Generates the implementation through a copy of the type that serde derives.
fn deserialize(input: &DeriveInput, copy: &Ident) -> TokenStream {
    let ident = &input.ident;
    let mut generics = bounds::of(input, Direction::Deserialize);
    let (_, arguments, _) = input.generics.split_for_impl();
    let turbofish = arguments.as_turbofish();
    let lifetime: GenericParam = syn::parse_quote!('whizbang);
    generics.params.insert(0, lifetime);
    let (generics, _, bounds) = generics.split_for_impl();
    quote! {
        impl #generics ::whizbang::derive::serde::de::Deserialize<'whizbang> for #ident #arguments #bounds {
            fn deserialize<WhizbangFrom: ::whizbang::derive::serde::de::Deserializer<'whizbang>>(
                from: WhizbangFrom,
            ) -> ::core::result::Result<Self, WhizbangFrom::Error> {
                use ::whizbang::derive::serial::Deserialized as _;
                #copy #turbofish ::deserialize(from)
            }
        }
    }
}

/// Generates a `Default` of the copy that is required and never called.
fn default(copy: &DeriveInput) -> TokenStream {
    let ident = &copy.ident;
    let (generics, arguments, bounds) = copy.generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #generics ::core::default::Default for #ident #arguments #bounds {
            fn default() -> Self {
                loop {}
            }
        }
    }
}

/// Replaces `Self` by the original's name in paths that serde attributes give as text.
fn paths_without_self(tokens: TokenStream, receiver: &TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let replace = |(at, token): (usize, &TokenTree)| -> TokenTree {
        let key = at.checked_sub(2).and_then(|key| tokens.get(key));
        let is_path = matches!(key, Some(TokenTree::Ident(key)) if PATHS.iter().any(|path| key == path));
        match token {
            TokenTree::Literal(literal) if is_path => {
                let path = syn::parse2::<syn::LitStr>(literal.to_token_stream()).ok();
                let path = path.and_then(|path| path.value().parse::<TokenStream>().ok());
                match path.filter(|path| path.to_string().contains("Self")) {
                    Some(path) => {
                        let mut text = Literal::string(&without_self(path, receiver).to_string());
                        text.set_span(literal.span());
                        text.into()
                    }
                    None => token.clone(),
                }
            }
            token => token.clone(),
        }
    };
    tokens.iter().enumerate().map(replace).collect()
}

/// The keys whose text is a path.
const PATHS: &[&str] = &["default", "with", "serialize_with", "deserialize_with", "skip_serializing_if"];

/// Replaces `Self` by the original's name in `tokens`; in the copy it would be the copy.
fn without_self(tokens: TokenStream, receiver: &TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let begins =
        |at: usize, mark: char| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == mark);
    let replace = |(at, token): (usize, &TokenTree)| match token {
        TokenTree::Ident(word) if word == "Self" && begins(at + 1, ':') => quote!(<#receiver>),
        // The compiler reports `Self<…>` and `'Self` as errors.
        TokenTree::Ident(word) if word == "Self" && !begins(at + 1, '<') && !begins(at.wrapping_sub(1), '\'') => {
            receiver.clone()
        }
        TokenTree::Group(group) => {
            let mut replaced = Group::new(group.delimiter(), without_self(group.stream(), receiver));
            replaced.set_span(group.span());
            TokenTree::Group(replaced).into()
        }
        token => token.clone().into(),
    };
    tokens.iter().enumerate().flat_map(replace).collect()
}

/// Returns whether the user has given `key` in a serde attribute.
fn has_key(attributes: &[Attribute], key: &str) -> bool {
    fields::keys(attributes).iter().any(|given| given.ident == key)
}
