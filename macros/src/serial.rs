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
use syn::{Attribute, Data, DeriveInput, Field, GenericParam, Type};

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
    let ident = &input.ident;
    let name = ident.unraw().to_string();
    let copy_ident = format_ident!("__Whizbang{}", ident.unraw());
    let mut copy = input.clone();
    copy.ident = copy_ident.clone();
    copy.vis = syn::Visibility::Inherited;
    keep_serde(&mut copy.attrs);
    let (_, arguments, _) = input.generics.split_for_impl();
    let receiver = quote!(#ident #arguments);
    let clean = |field: &mut Field| {
        keep_serde(&mut field.attrs);
        let ty = without_self(field.ty.to_token_stream(), &receiver);
        field.ty = Type::Verbatim(ty);
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
    let original = ident.to_string();
    let rename = match renames(&copy.attrs) {
        true => TokenStream::new(),
        false => quote!(#[serde(rename = #name)]),
    };
    let mut bounded = input.generics.clone();
    let bound = match direction {
        Direction::Serialize => quote!(::whizbang::derive::serde::ser::Serialize),
        Direction::Deserialize => quote!(::whizbang::derive::serde::de::DeserializeOwned),
    };
    let parameters: Vec<_> = input.generics.type_params().map(|parameter| parameter.ident.clone()).collect();
    if !parameters.is_empty() {
        let bounds = &mut bounded.make_where_clause().predicates;
        bounds.extend(
            parameters.iter().map(|parameter| -> syn::WherePredicate { syn::parse_quote!(#parameter: #bound) }),
        );
    }
    let (derive, implementation) = match direction {
        Direction::Serialize => {
            let (generics, arguments, bounds) = bounded.split_for_impl();
            let turbofish = arguments.as_turbofish();
            (
                quote!(Serialize),
                quote! {
                    impl #generics ::whizbang::derive::serde::ser::Serialize for #ident #arguments #bounds {
                        fn serialize<WhizbangTo: ::whizbang::derive::serde::ser::Serializer>(
                            &self,
                            to: WhizbangTo,
                        ) -> ::core::result::Result<WhizbangTo::Ok, WhizbangTo::Error> {
                            use ::whizbang::derive::serial::Serialized as _;
                            #copy_ident #turbofish ::serialize(self, to)
                        }
                    }
                },
            )
        }
        Direction::Deserialize => {
            let mut with_lifetime = bounded.clone();
            let lifetime: GenericParam = syn::parse_quote!('whizbang);
            with_lifetime.params.insert(0, lifetime);
            let (generics, _, bounds) = with_lifetime.split_for_impl();
            let (_, arguments, _) = bounded.split_for_impl();
            let turbofish = arguments.as_turbofish();
            (
                quote!(Deserialize),
                quote! {
                    impl #generics ::whizbang::derive::serde::de::Deserialize<'whizbang> for #ident #arguments #bounds {
                        fn deserialize<WhizbangFrom: ::whizbang::derive::serde::de::Deserializer<'whizbang>>(
                            from: WhizbangFrom,
                        ) -> ::core::result::Result<Self, WhizbangFrom::Error> {
                            use ::whizbang::derive::serial::Deserialized as _;
                            #copy_ident #turbofish ::deserialize(from)
                        }
                    }
                },
            )
        }
    };
    quote! {
        #[doc(hidden)]
        #[allow(non_camel_case_types, dead_code, clippy::all, clippy::pedantic)]
        const _: () = {
            #[derive(::whizbang::derive::serde::#derive)]
            #[serde(crate = "::whizbang::derive::serde", remote = #original)]
            #rename
            #copy
            #[automatically_derived]
            #implementation
        };
    }
}

/// `tokens` with the original's name in the place of `Self`, which in the copy would be the copy.
fn without_self(tokens: TokenStream, receiver: &TokenStream) -> TokenStream {
    let replace = |token: TokenTree| match token {
        TokenTree::Ident(word) if word == "Self" => receiver.clone(),
        TokenTree::Group(group) => {
            let mut replaced = Group::new(group.delimiter(), without_self(group.stream(), receiver));
            replaced.set_span(group.span());
            TokenTree::Group(replaced).into()
        }
        token => token.into(),
    };
    tokens.into_iter().flat_map(replace).collect()
}

fn keep_serde(attributes: &mut Vec<Attribute>) {
    attributes.retain(|attribute| attribute.path().is_ident("serde"));
}

/// Whether the user has given the container a name.
fn renames(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let mut renamed = false;
        // Whatever serde does not understand it tells itself.
        let _ = attribute.parse_nested_meta(|meta| {
            renamed |= meta.path.is_ident("rename");
            if meta.input.peek(syn::Token![=]) {
                meta.value()?.parse::<syn::Expr>()?;
            } else if meta.input.peek(syn::token::Paren) {
                let content;
                syn::parenthesized!(content in meta.input);
                content.parse::<TokenStream>()?;
            }
            Ok(())
        });
        renamed
    })
}
