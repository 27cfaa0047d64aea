//! The parts that all derives have in common: the item's kind, generics, name and domain.
//!
//! Called by the derives. Calls [names](crate::names).
//!
//! The aliases of the listed types are the least obvious part. A derive cannot know whether a listed type exists, is of the right kind,
//! and has the trait that its list requires: only the compiler does. Each alias asks one of these questions, and the next one is
//! computed from its answer. A wrong answer makes the compiler report that alias and nothing else.
//!
//! Everything here may be called by any derive, and none of it knows messages, actors or projections.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, GenericParam, Ident, Meta, Type};

use crate::attribute::Given;
use crate::diagnostics::Diagnostics;
use crate::names;

/// Reports a union and returns whether the item is one. It gets no stub, because no implementation would be correct.
///
/// A caller returns the mistakes alone if the result is true.
pub(crate) fn reject_union(input: &DeriveInput, word: &str, mistakes: &mut Diagnostics) -> bool {
    let Data::Union(data) = &input.data else { return false };
    let ident = &input.ident;
    mistakes.add(
        data.union_token.span(),
        format!("found a union; {} `{ident}` cannot be one: write `struct {ident}`", with_article(word)),
    );
    true
}

/// Reports an enum.
///
/// The item still gets its implementations, so that its uses compile.
pub(crate) fn reject_enum(input: &DeriveInput, word: &str, mistakes: &mut Diagnostics) {
    if let Data::Enum(data) = &input.data {
        let ident = &input.ident;
        mistakes.add(
            data.enum_token.span(),
            format!("found an enum; {} `{ident}` cannot be one: write `struct {ident}`", with_article(word)),
        );
    }
}

/// Reports generic parameters.
///
/// `why` completes the error: it names the property of the kind of item that generics would break, such as a name in the
/// store that must belong to one type.
pub(crate) fn reject_generics(input: &DeriveInput, word: &str, why: &str, mistakes: &mut Diagnostics) {
    if let Some(first) = input.generics.params.first() {
        let ident = &input.ident;
        let (found, instead) = match first {
            GenericParam::Lifetime(lifetime) => (lifetime.lifetime.to_string(), "with owned fields such as `String`"),
            GenericParam::Type(ty) => (ty.ident.to_string(), "for one concrete type"),
            GenericParam::Const(constant) => (constant.ident.to_string(), "for one concrete value"),
        };
        mistakes.add(
            first.span(),
            format!(
                "found the generic parameter `{found}`; {} has none, because {why}: \
                 write `struct {ident}` {instead}",
                with_article(word)
            ),
        );
    }
}

/// Returns the given name, or the default.
///
/// A name that was given and is invalid was reported when the attribute was read.
pub(crate) fn name(given: &Given, ident: &Ident, word: &str, default: String, mistakes: &mut Diagnostics) -> String {
    if let Some(name) = given.name("name") {
        return name;
    }
    if given.key("name").is_none() && !names::is_valid(&default) {
        mistakes.add(
            ident.span(),
            format!(
                "`{default}` ({} bytes) is not a valid name: use {}; write `#[{word}(name = \"…\")]`",
                default.len(),
                names::RULE
            ),
        );
    }
    default
}

/// Generates `const FORMERLY`, if former names were given. Reports a former name that is the current one.
pub(crate) fn formerly(given: &Given, name: &str, mistakes: &mut Diagnostics) -> TokenStream {
    let former = given.names("formerly");
    if let Some(same) = former.iter().find(|former| former.value() == name) {
        mistakes
            .add(same.span(), format!("found `\"{name}\"` as a former name, but it is the current one; leave it out"));
    }
    match former.is_empty() {
        true => TokenStream::new(),
        false => quote!(const FORMERLY: &'static [&'static ::core::primitive::str] = &[#(#former),*];),
    }
}

/// Returns the given domain; otherwise a type that causes no follow-up errors.
///
/// Without a domain in the attribute, the mistake is reported at the name of the type; after a mistake in the value, nothing
/// more is.
pub(crate) fn domain(given: &Given, ident: &Ident, word: &str, mistakes: &mut Diagnostics) -> TokenStream {
    if let Some(domain) = given.ty("domain") {
        return domain.to_token_stream();
    }
    if given.key("domain").is_none() {
        mistakes.add(
            ident.span(),
            format!("the {word} `{ident}` has no domain; write `#[{word}(domain = Bank)]` with the type that derives `Domain`"),
        );
    }
    mistakes.instead_of_type()
}

/// Returns `a command`, `an event`.
pub(crate) fn with_article(word: &str) -> String {
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {word}")
}

/// Generates `impl … for Type`. A type with generic parameters was reported as a mistake; `stub` is the bound that its
/// stub needs.
pub(crate) fn header(input: &DeriveInput, of: &TokenStream, stub: &TokenStream) -> TokenStream {
    let ident = &input.ident;
    let mut generics = input.generics.clone();
    if !generics.params.is_empty() {
        generics.make_where_clause().predicates.push(syn::parse_quote!(Self: #stub));
    }
    let (generics, arguments, bounds) = generics.split_for_impl();
    quote!(impl #generics #of for #ident #arguments #bounds)
}

/// Generates the lint attributes of the output. A deprecated item is still implemented, stored and listed, and the
/// user's `allow` on the item applies to the code generated for it. Nothing else is allowed: a program may forbid it.
pub(crate) fn lints(input: &DeriveInput) -> TokenStream {
    let of_fields = |fields: &syn::Fields| fields.iter().any(|field| is_deprecated(&field.attrs));
    let is_deprecated = is_deprecated(&input.attrs)
        || match &input.data {
            Data::Struct(data) => of_fields(&data.fields),
            Data::Enum(data) => {
                data.variants.iter().any(|variant| is_deprecated(&variant.attrs) || of_fields(&variant.fields))
            }
            Data::Union(_) => false,
        };
    let mut lints = if is_deprecated { quote!(#[allow(deprecated)]) } else { TokenStream::new() };
    for attribute in &input.attrs {
        if let Meta::List(list) = &attribute.meta
            && (list.path.is_ident("allow") || list.path.is_ident("expect"))
        {
            let listed = &list.tokens;
            // An expectation about the item need not hold for its implementations.
            lints.extend(quote!(#[allow(#listed)]));
        }
    }
    lints
}

/// Returns whether an attribute marks the item as deprecated.
fn is_deprecated(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("deprecated"))
}

/// Generates the only place in the output that requires serde's traits of a message. Other code uses its constant. An error
/// about a missing trait is therefore reported once, at the name of the type.
pub(crate) fn require_coding(ident: &Ident, span: Span) -> TokenStream {
    let mut ident = ident.clone();
    ident.set_span(span);
    quote_spanned!(span=>
        const __WHIZBANG_CODING: ::whizbang::derive::Coding<#ident> = ::whizbang::derive::coding::<#ident>();
    )
}

/// Like [`require_coding`], for a stored state.
pub(crate) fn require_state_coding(ident: &Ident, span: Span) -> TokenStream {
    let mut ident = ident.clone();
    ident.set_span(span);
    quote_spanned!(span=>
        const __WHIZBANG_CODING: ::whizbang::derive::StateCoding<#ident> = ::whizbang::derive::state_coding::<#ident>();
    )
}

/// Generates the only place in the output that requires `Default`. A missing `Default` is reported at the name of the type.
///
/// `correct` is false for an item with a mistake: its derive of `Default` may be missing for the same reason.
pub(crate) fn initial(ident: &Ident, correct: bool) -> TokenStream {
    let body = match correct {
        true => quote_spanned!(ident.span()=> ::core::default::Default::default()),
        // Never runs, because an item with a mistake does not compile, and requires nothing.
        false => quote!(loop {}),
    };
    quote!(fn initial() -> Self { #body })
}

/// Generates the calls that list messages, and aliases of the listed types.
///
/// The first alias is the only place that names the type, the second checks its kind, the third the trait of its list.
/// A type that does not exist, one of another kind and one without the trait are therefore one error each, at the
/// listed type, without follow-up errors: `<Deposit as WhizbangListed<{ command::<Deposit>() }>>::It` is `Deposit`; if
/// the check fails, the compiler reports it and nothing about the type that it could not compute.
///
/// The trait behind it belongs to the item. In the framework, another implementation of it might be added for a type of
/// a third crate. Two listed types of that crate could then be one type, and the implementations for them would
/// conflict.
pub(crate) fn wire(given: &Given, ident: &Ident, lists: &[(&str, &str, &str)]) -> (TokenStream, TokenStream) {
    let (mut calls, mut aliases) = (TokenStream::new(), TokenStream::new());
    for (list, kind, call) in lists {
        for (at, listed) in given.types(list).iter().enumerate() {
            let span = listed.span();
            let (call, kind) = (Ident::new(call, span), Ident::new(kind, span));
            let [named, of_kind, checked] =
                ["Named", "OfKind", "Checked"].map(|step| alias_ident(step, list, at, span));
            let mut ident = ident.clone();
            ident.set_span(span);
            aliases.extend(quote_spanned! {span=>
                type #named = #listed;
                type #of_kind = <#named as WhizbangListed<{ ::whizbang::derive::#kind::<#named>() }>>::It;
                type #checked = <#of_kind as WhizbangListed<{ ::whizbang::derive::#call::<#ident, #of_kind>() }>>::It;
            });
            // Named at the call site of the derive, like the parameter: a listed type may come from the caller of a
            // user's macro.
            let twin = given.types(list).iter().take(at).position(|before| last_name(before) == last_name(listed));
            if let Some(before) = twin.filter(|_| !["applies", "records"].contains(list)) {
                let before = alias_ident("Checked", list, before, span);
                let text = format!("found the same type twice in `{list}(…)`; keep one of the two");
                aliases.extend(quote_spanned! {span=>
                    const _: () = ::whizbang::derive::listed_once::<#before, #checked>(#text);
                });
            }
            // A message has one handler.
            if let Some(single) = list.strip_suffix("_batch") {
                let twin = given.types(single).iter().position(|other| last_name(other) == last_name(listed));
                if let Some(other) = twin {
                    let other = alias_ident("Checked", single, other, span);
                    let text = format!("found the same type in `{single}(…)` and `{list}(…)`; keep one of the two");
                    aliases.extend(quote_spanned! {span=>
                        const _: () = ::whizbang::derive::listed_once::<#other, #checked>(#text);
                    });
                }
            }
            // Not in `call`: an error there shows the name of the alias.
            if kind == "query" {
                let for_key = call == "answers_for_key";
                aliases.extend(quote_spanned! {span=>
                    const _: () = ::whizbang::derive::answering::<#checked>(#for_key);
                });
            }
            let plan = Ident::new("__plan", Span::call_site());
            calls.extend(quote_spanned!(span=> #plan.#call::<#checked>();));
        }
    }
    if !aliases.is_empty() {
        aliases.extend(quote! {
            /// A listed type. Public, like the implementations for it. It has docs and no `allow`, which a program may
            /// forbid.
            pub trait WhizbangListed<const CHECKED: ::core::primitive::usize> {
                /// The type.
                type It;
            }
            impl<T, const CHECKED: ::core::primitive::usize> WhizbangListed<CHECKED> for T {
                type It = T;
            }
        });
    }
    (calls, aliases)
}

/// Returns the last name of a path. Two listed types with the same last name may be one type; only the compiler knows.
fn last_name(ty: &Type) -> Option<String> {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|last| last.ident.unraw().to_string()),
        _ => None,
    }
}

/// Returns the last alias of the type at index `at` of `list`.
pub(crate) fn checked(list: &str, at: usize, span: Span) -> Ident {
    alias_ident("Checked", list, at, span)
}

/// Returns the name of an alias. It contains the list and the index, so that an error names both.
fn alias_ident(step: &str, list: &str, at: usize, span: Span) -> Ident {
    Ident::new(&format!("__Whizbang{step}In{}{at}", capitalized(list)), span)
}

/// Returns the name of a key in the case of types: `OnBatch` for `on_batch`.
fn capitalized(key: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect::<String>()
    };
    key.split('_').map(word).collect()
}
