//! `#[derive(Projection)]`.
//!
//! Called by the entry point. Calls [attribute](crate::attribute) for the user's input.
//!
//! # Input and output
//!
//! ```text
//! #[derive(Projection, Default, Serialize, Deserialize)]
//! #[projection(projects(Deposited), answers(BalanceOf), schema = 2)]
//! struct Balances { … }
//! ```
//!
//! becomes, apart from spans and lints:
//!
//! ```text
//! const _: () = {
//!     const __WHIZBANG_CODING: StateCoding<Balances> = state_coding::<Balances>();   // requires serde's traits
//!     impl Projection for Balances {
//!         const NAME: &'static str = "balances";
//!         const SCHEMA: u32 = 2;
//!         fn shape() -> Option<Arc<Shape>> { … }      // a changed shape rebuilds the view, like a changed schema
//!         fn initial() -> Self { Default::default() }
//!         fn wire(plan: &mut ProjectionPlan<Self>) { plan.projects::<…>(); plan.answers::<…>(); }
//!         fn save(&self) -> Result<Vec<u8>, CodecError> { … }
//!         fn restore(bytes: &[u8]) -> Result<Self, CodecError> { … }
//!     }
//! };
//! ```
//!
//! A view is always saved, so a projection without serde's traits is an error, unlike an aggregate.

use proc_macro2::TokenStream;
use quote::quote;
use syn::DeriveInput;
use syn::ext::IdentExt;

use crate::attribute::{Form, Known, read};
use crate::diagnostics::Diagnostics;
use crate::fields::Item;
use crate::symmetry::{self, Target};
use crate::{held, names, shape};

/// The keys of the attribute. `projects` is required.
const KEYS: &[Known] = &[
    Known { name: "projects", form: Form::Paths, write: "projects(Deposited)" },
    Known { name: "answers", form: Form::Paths, write: "answers(BalanceOf)" },
    Known { name: "name", form: Form::Name, write: "name = \"balances\"" },
    Known { name: "schema", form: Form::Number { least: 1, most: u32::MAX }, write: "schema = 1" },
    Known { name: "formerly", form: Form::Names, write: "formerly = \"balances\"" },
    Known { name: "reset", form: Form::Text, write: "reset = \"DELETE FROM balances\"" },
];

/// The lists, the kind of message in each, and the function that checks and lists an entry.
const LISTS: &[(&str, &str, &str)] = &[("projects", "event", "projects"), ("answers", "query", "answers")];

/// Expands the derive.
pub(crate) fn expand(input: &DeriveInput) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    if shape::reject_union(input, "projection", &mut mistakes) {
        return mistakes.into_tokens();
    }
    let given = read(&input.attrs, "projection", &[], KEYS, &mut mistakes);
    shape::reject_generics(input, "projection", "its name in the store would refer to several types", &mut mistakes);
    let ident = &input.ident;
    let name = shape::name(&given, ident, "projection", names::kebab(&ident.unraw().to_string()), &mut mistakes);
    let formerly = shape::formerly(&given, &name, &mut mistakes);
    if mistakes.is_empty() && given.key("projects").is_none() {
        mistakes.add(
            ident.span(),
            format!(
                "the projection `{ident}` projects nothing; write `#[projection(projects(Deposited))]` with its events"
            ),
        );
    }
    let item = Item::of(input);
    held::reject_in_state(&item, "projection", &mut mistakes);
    symmetry::reject(&item, Target::State { word: "projection" }, &mut mistakes);
    let reset = given.text("reset").map(|reset| {
        quote!(const RESET: ::core::option::Option<&'static ::core::primitive::str> = ::core::option::Option::Some(#reset);)
    });
    let schema = given.number("schema").map_or(1, |(schema, _)| schema);
    let correct = mistakes.is_empty();
    let ((wire, aliases), required) = match correct {
        true => (shape::wire(&given, ident, LISTS), shape::require_state_coding(ident, ident.span())),
        false => Default::default(),
    };
    let shape_of = correct.then(|| {
        quote! {
            fn shape() -> ::core::option::Option<::whizbang::derive::Arc<::whizbang::derive::Shape>> {
                __WHIZBANG_CODING.shape()
            }
        }
    });
    let (save, restore) = match correct {
        true => (quote!(__WHIZBANG_CODING.save(self)), quote!(__WHIZBANG_CODING.restore(__bytes))),
        false => (
            quote!(::whizbang::derive::never_coded()),
            quote!({
                let _ = __bytes;
                ::whizbang::derive::never_coded()
            }),
        ),
    };
    let initial = shape::initial(ident, correct);
    let header = shape::header(input, &quote!(::whizbang::derive::Projection), &quote!(::core::marker::Send + 'static));
    let lints = shape::lints(input);
    let sent = held::stub(&item, input);
    let mistakes = mistakes.into_tokens();
    quote! {
        #lints
        const _: () = {
            #required
            #aliases
            #[automatically_derived]
            #header {
                const NAME: &'static ::core::primitive::str = #name;
                const SCHEMA: ::core::primitive::u32 = #schema;
                #formerly
                #reset
                #shape_of
                #initial
                fn wire(__plan: &mut ::whizbang::derive::ProjectionPlan<Self>) {
                    let _ = &__plan;
                    #wire
                }
                fn save(
                    &self,
                ) -> ::core::result::Result<
                    ::whizbang::derive::Vec<::core::primitive::u8>,
                    ::whizbang::derive::CodecError,
                > {
                    #save
                }
                fn restore(__bytes: &[::core::primitive::u8]) -> ::core::result::Result<Self, ::whizbang::derive::CodecError> {
                    #restore
                }
            }
            #sent
        };
        #mistakes
    }
}
