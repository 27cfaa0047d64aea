//! The bounds that the prelude's `Serialize` and `Deserialize` require of type parameters: the same as serde's own
//! derives.
//!
//! Called by [serial](crate::serial). Calls nothing.
//! serde generates its bounds for the copy of the type; the implementation for the original has to repeat them. A
//! parameter is bounded where a value of it is encoded or decoded, not inside `PhantomData`, and `bound` replaces that.
//!
//! ```text
//! #[derive(Serialize)]
//! struct Page<T, M: Money> { rows: Vec<T>, total: M::Amount, kind: PhantomData<M> }
//! ```
//!
//! requires `T: Serialize` and `M::Amount: Serialize`, and nothing of `M` itself, because no value of `M` is encoded.

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::{Attribute, Data, DeriveInput, Field, Generics, Token, WherePredicate};

use crate::fields::{Key, keys};
use crate::recursion::without_phantoms;
use crate::serial::Direction;

/// Returns the original's generics with the bounds of one direction.
///
/// The bounds of the user are kept. A type without parameters gets no bounds: the compiler
/// would check them at the declaration, and report an error in generated code.
pub(crate) fn of(input: &DeriveInput, direction: Direction) -> Generics {
    let mut generics = input.generics.clone();
    let parameters: Vec<Ident> = generics.type_params().map(|parameter| parameter.ident.clone()).collect();
    if parameters.is_empty() {
        return generics;
    }
    let bound = match direction {
        Direction::Serialize => quote!(::whizbang::derive::serde::ser::Serialize),
        Direction::Deserialize => quote!(::whizbang::derive::serde::de::Deserialize<'whizbang>),
    };
    let mut predicates = Vec::new();
    let container = given_bounds(&input.attrs, direction);
    let mut require = |of: TokenStream, bound: TokenStream| predicates.push(quote!(#of: #bound));
    let mut own = Vec::new();
    for (field, variant) in fields(input) {
        let of_field = keys(&field.attrs);
        let of_variant = variant.map(keys).unwrap_or_default();
        let bounds =
            [given_bounds(&field.attrs, direction), variant.and_then(|variant| given_bounds(variant, direction))];
        let has_own = bounds.iter().any(Option::is_some);
        own.extend(bounds.into_iter().flatten().flatten());
        if container.is_some() {
            continue;
        }
        let is_given = |keys: &[Key], names: &[&str]| keys.iter().any(|key| names.iter().any(|name| key.ident == name));
        let (one_way, with) = match direction {
            Direction::Serialize => ("skip_serializing", "serialize_with"),
            Direction::Deserialize => ("skip_deserializing", "deserialize_with"),
        };
        let unbounded = ["skip", one_way, "with", with];
        if !has_own && !is_given(&of_field, &unbounded) && !is_given(&of_variant, &unbounded) {
            used_parameters(field, &parameters).into_iter().for_each(|of| require(of, bound.clone()));
        }
        // serde requires `Default` for a field that it does not decode, unless a function is given.
        let default = of_field.iter().find(|key| key.ident == "default");
        let is_made = match default {
            Some(default) => default.value.is_none(),
            None => is_given(&of_field, &["skip", "skip_deserializing"]),
        };
        if direction == Direction::Deserialize && is_made {
            let parameters = used_parameters(field, &parameters).into_iter().filter(|of| !of.to_string().contains(':'));
            parameters.for_each(|of| require(of, quote!(::core::default::Default)));
        }
    }
    let bounds = &mut generics.make_where_clause().predicates;
    bounds.extend(own);
    match container {
        Some(container) => bounds.extend(container),
        None => {
            let mut seen: Vec<String> = Vec::new();
            for predicate in predicates {
                let text = predicate.to_string();
                if !seen.contains(&text) {
                    seen.push(text);
                    bounds.extend(syn::parse2::<WherePredicate>(predicate));
                }
            }
        }
    }
    generics
}

/// Returns all fields, each with the attributes of its variant.
fn fields<'a>(input: &'a DeriveInput) -> Vec<(&'a Field, Option<&'a [Attribute]>)> {
    match &input.data {
        Data::Struct(data) => data.fields.iter().map(|field| (field, None)).collect(),
        Data::Enum(data) => {
            let of = |variant: &'a syn::Variant| variant.fields.iter().map(|field| (field, Some(&*variant.attrs)));
            data.variants.iter().flat_map(of).collect()
        }
        Data::Union(_) => Vec::new(),
    }
}

/// Returns the bounds that `bound` gives for one direction.
///
/// Reads `bound = "…"` and `bound(serialize = "…")`. `None` if neither is given, and an empty list if one is given that
/// requires nothing: serde then derives no bounds of its own.
fn given_bounds(attributes: &[Attribute], direction: Direction) -> Option<Vec<WherePredicate>> {
    let side = match direction {
        Direction::Serialize => "serialize",
        Direction::Deserialize => "deserialize",
    };
    let mut found = None;
    for key in keys(attributes).into_iter().filter(|key| key.ident == "bound") {
        let inside = key.inside.unwrap_or_default().into_iter().find(|(of, _)| of == side).map(|(_, text)| text);
        let Some(text) = key.value.or(inside) else { continue };
        // serde itself reports unparsable bounds. `'de` is the lifetime in its documentation.
        let text = text.replace("'de ", "'whizbang ").replace("'de>", "'whizbang>");
        let predicates = Punctuated::<WherePredicate, Token![,]>::parse_terminated.parse_str(&text);
        found.get_or_insert_with(Vec::new).extend(predicates.into_iter().flatten());
    }
    found
}

/// Returns the type parameters of which a field has values, and types that belong to one, such as `M::Amount`.
///
/// A type inside `PhantomData` does not count: no value of it is encoded.
fn used_parameters(field: &Field, parameters: &[Ident]) -> Vec<TokenStream> {
    let mut found = Vec::new();
    collect_parameters(without_phantoms(field.ty.to_token_stream()), parameters, &mut found);
    found
}

/// Collects the type parameters that occur in the tokens of a type.
///
/// Adds a parameter once for each occurrence; the caller removes the repetitions.
fn collect_parameters(tokens: TokenStream, parameters: &[Ident], found: &mut Vec<TokenStream>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is_mark = |at: Option<usize>| matches!(at.and_then(|at| tokens.get(at)), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if parameters.contains(word) && !is_mark(at.checked_sub(1)) => {
                let of = match (is_mark(Some(at + 1)), tokens.get(at + 3)) {
                    (true, Some(TokenTree::Ident(part))) => quote!(#word::#part),
                    _ => quote!(#word),
                };
                found.push(of);
            }
            TokenTree::Group(group) => collect_parameters(group.stream(), parameters, found),
            _ => {}
        }
    }
}
