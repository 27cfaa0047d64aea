//! `#[derive(Serialize)]` and `#[derive(Deserialize)]` as the prelude exports them: serde's own, for programs that do not
//! list serde in their Cargo.toml.
//!
//! Called by the entry points; calls serde's derives.
//! serde's derives name the crate `serde`, which the program may not have, unless an attribute on the type says otherwise; and
//! a derive cannot add an attribute to the type. So they get a copy of the type that carries the attribute, and write for the
//! original what they read off the copy (serde calls that a remote derive). Every serde attribute works as documented.

use proc_macro2::{Group, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DeriveInput, Expr, Field, GenericParam, Generics, Ident, Token, Type, Visibility, WherePredicate,
    parenthesized, token,
};

use crate::mistakes::Mistakes;

/// Which of the two traits is derived.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Serialize,
    Deserialize,
}

/// Expands one of the two derives.
pub(crate) fn expand(direction: Direction, input: &DeriveInput) -> TokenStream {
    let mut mistakes = Mistakes::default();
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
    let copy = copy(input);
    let original = input.ident.to_string();
    let rename = match has_key(&copy.attrs, "rename") {
        true => TokenStream::new(),
        false => {
            let name = input.ident.unraw().to_string();
            quote!(#[serde(rename = #name)])
        }
    };
    // serde asks the copy for the `Default` that it then takes from the original.
    let default = (direction == Direction::Deserialize && has_key(&copy.attrs, "default")).then(|| default(&copy));
    let (derive, implementation) = match direction {
        Direction::Serialize => (quote!(Serialize), serialize(input, &copy.ident)),
        Direction::Deserialize => (quote!(Deserialize), deserialize(input, &copy.ident)),
    };
    quote! {
        #[doc(hidden)]
        #[allow(non_camel_case_types, dead_code, clippy::all, clippy::pedantic)]
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

/// The type once more under another name, with nothing on it but what is serde's.
fn copy(input: &DeriveInput) -> DeriveInput {
    let ident = &input.ident;
    let (_, arguments, _) = input.generics.split_for_impl();
    let receiver = quote!(#ident #arguments);
    let mut copy = input.clone();
    copy.ident = format_ident!("__Whizbang{}", ident.unraw());
    copy.vis = Visibility::Inherited;
    keep_serde(&mut copy.attrs);
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

/// The original's generics with `bound` on each type parameter, as serde's derives put it where the parameter is used.
fn bounded(input: &DeriveInput, bound: &TokenStream) -> Generics {
    let mut generics = input.generics.clone();
    let parameters: Vec<Ident> = generics.type_params().map(|parameter| parameter.ident.clone()).collect();
    if !parameters.is_empty() {
        let bounds = &mut generics.make_where_clause().predicates;
        bounds.extend(parameters.iter().map(|of| -> WherePredicate { syn::parse_quote!(#of: #bound) }));
    }
    generics
}

fn serialize(input: &DeriveInput, copy: &Ident) -> TokenStream {
    let ident = &input.ident;
    let generics = bounded(input, &quote!(::whizbang::derive::serde::ser::Serialize));
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

fn deserialize(input: &DeriveInput, copy: &Ident) -> TokenStream {
    let ident = &input.ident;
    let mut generics = bounded(input, &quote!(::whizbang::derive::serde::de::Deserialize<'whizbang>));
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

/// A `Default` of the copy that is asked for and never called.
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

/// `tokens` with the original's name in the place of `Self`, which in the copy would be the copy.
fn without_self(tokens: TokenStream, receiver: &TokenStream) -> TokenStream {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let begins =
        |at: usize, mark: char| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == mark);
    let replace = |(at, token): (usize, &TokenTree)| match token {
        TokenTree::Ident(word) if word == "Self" && begins(at + 1, ':') => quote!(<#receiver>),
        // `Self<…>` and `'Self` mean nothing, and the compiler says so.
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

fn keep_serde(attributes: &mut Vec<Attribute>) {
    attributes.retain(|attribute| attribute.path().is_ident("serde"));
}

/// Whether the user has given `key` in a serde attribute.
fn has_key(attributes: &[Attribute], key: &str) -> bool {
    let mut found = false;
    for attribute in attributes {
        // Whatever serde does not understand it tells itself.
        let _ = attribute.parse_nested_meta(|meta| {
            found |= meta.path.is_ident(key);
            if meta.input.peek(Token![=]) {
                meta.value()?.parse::<Expr>()?;
            } else if meta.input.peek(token::Paren) {
                let content;
                parenthesized!(content in meta.input);
                content.parse::<TokenStream>()?;
            }
            Ok(())
        });
    }
    found
}
