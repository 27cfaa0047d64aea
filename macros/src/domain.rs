//! `#[derive(Domain)]`.
//!
//! Called by the entry point. Calls [attribute](crate::attribute) for the user's input.
//!
//! # Input and output
//!
//! ```text
//! #[derive(Domain)]
//! #[domain(shards = 4, codec = json)]
//! struct Bank;
//! ```
//!
//! becomes:
//!
//! ```text
//! impl Domain for Bank {
//!     const NAME: &'static str = "bank";
//!     const SHARDS: u16 = 4;
//!     const CODEC: Codec = Codec::Json;
//! }
//! ```
//!
//! A key that is not given is left out, so that its default is that of the trait.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput};

use crate::attribute::{Form, Known, read};
use crate::diagnostics::Diagnostics;
use crate::{names, shape};

/// The keys of the attribute. None is required.
const KEYS: &[Known] = &[
    Known { name: "name", form: Form::Name, write: "name = \"bank\"" },
    Known { name: "shards", form: Form::Number { least: 1, most: 1024 }, write: "shards = 16" },
    Known { name: "codec", form: Form::Word(&["json", "bincode"]), write: "codec = json" },
    Known { name: "retired", form: Form::Names, write: "retired(\"Paid\")" },
];

/// Expands the derive. A domain is a name for the compiler and has no values, so fields and generic parameters are mistakes.
pub(crate) fn expand(input: &DeriveInput) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    let given = read(&input.attrs, "domain", &[], KEYS, &mut mistakes);
    if !shape::reject_union(input, "domain", &mut mistakes) {
        shape::reject_enum(input, "domain", &mut mistakes);
    }
    shape::reject_generics(input, "domain", "it has one name", &mut mistakes);
    if input.generics.params.is_empty()
        && let Data::Struct(data) = &input.data
        && let Some(field) = data.fields.iter().next()
    {
        let ident = &input.ident;
        mistakes.add(field.span(), format!("found a field; a domain has no data: write `struct {ident};`"));
    }
    let name =
        shape::name(&given, &input.ident, "domain", names::kebab(&input.ident.unraw().to_string()), &mut mistakes);
    let shards = given.number("shards").map(|(shards, _)| shards).and_then(|shards| u16::try_from(shards).ok());
    let shards = shards.map(|shards| quote!(const SHARDS: ::core::primitive::u16 = #shards;));
    let codec = given.word("codec").map(|codec| {
        let codec = if codec == "json" { format_ident!("Json") } else { format_ident!("Bincode") };
        quote!(const CODEC: ::whizbang::derive::Codec = ::whizbang::derive::Codec::#codec;)
    });
    let retired = given.names("retired");
    let retired = (!retired.is_empty())
        .then(|| quote!(const RETIRED: &'static [&'static ::core::primitive::str] = &[#(#retired),*];));
    let header = shape::header(input, &quote!(::whizbang::derive::Domain), &quote!('static));
    let lints = shape::lints(input);
    let mistakes = mistakes.into_tokens();
    quote! {
        #lints
        #[automatically_derived]
        #header {
            const NAME: &'static ::core::primitive::str = #name;
            #shards
            #codec
            #retired
        }
        #mistakes
    }
}
