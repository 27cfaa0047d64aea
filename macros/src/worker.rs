//! `#[derive(Worker)]`.
//!
//! Called by the entry point. Calls [attribute](crate::attribute) for the user's input.
//!
//! # Input and output
//!
//! ```text
//! #[derive(Worker)]
//! #[worker(domain = Payments, performs(Charge), on(OrderShipped))]
//! struct Charger { gateway: Gateway }
//! ```
//!
//! becomes, apart from spans and lints:
//!
//! ```text
//! const _: () = {
//!     impl Worker for Charger {
//!         type Domain = Payments;
//!         const NAME: &'static str = "charger";
//!         fn wire(plan: &mut WorkerPlan<Self>) { plan.performs::<…>(); plan.on::<…>(); }
//!     }
//! };
//! ```
//!
//! A worker has no state in the store, so nothing of its fields is read here: they may contain connections and locks.

use proc_macro2::TokenStream;
use quote::quote;
use syn::DeriveInput;
use syn::ext::IdentExt;

use crate::attribute::{Form, Known, read};
use crate::diagnostics::Diagnostics;
use crate::{names, shape};

/// The keys of the attribute. `domain` is required, and one of the lists of handled messages.
const KEYS: &[Known] = &[
    Known { name: "domain", form: Form::Path, write: "domain = Payments" },
    Known { name: "performs", form: Form::Paths, write: "performs(Charge)" },
    Known { name: "on", form: Form::Paths, write: "on(OrderShipped)" },
    Known { name: "performs_batch", form: Form::Paths, write: "performs_batch(Charge)" },
    Known { name: "on_batch", form: Form::Paths, write: "on_batch(OrderShipped)" },
    Known { name: "replies", form: Form::Paths, write: "replies(Reserve)" },
    Known { name: "name", form: Form::Name, write: "name = \"card-charger\"" },
    Known { name: "formerly", form: Form::Names, write: "formerly = \"charger\"" },
];

/// The lists, the kind of message in each, and the function that checks and lists an entry.
const LISTS: &[(&str, &str, &str)] = &[
    ("performs", "command", "performs"),
    ("on", "event", "on"),
    ("performs_batch", "command", "performs_batch"),
    ("on_batch", "event", "on_batch"),
    ("replies", "command", "replied"),
];
/// The lists of which one is required.
const HANDLED: &[&str] = &["performs", "on", "performs_batch", "on_batch"];

/// Expands the derive.
pub(crate) fn expand(input: &DeriveInput) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    if shape::reject_union(input, "worker", &mut mistakes) {
        return mistakes.into_tokens();
    }
    let given = read(&input.attrs, "worker", &[], KEYS, &mut mistakes);
    shape::reject_generics(input, "worker", "its name in the store would refer to several types", &mut mistakes);
    let ident = &input.ident;
    let name = shape::name(&given, ident, "worker", names::kebab(&ident.unraw().to_string()), &mut mistakes);
    let formerly = shape::formerly(&given, &name, &mut mistakes);
    let idle = HANDLED.iter().all(|list| given.key(list).is_none());
    if mistakes.is_empty() && idle && given.key("domain").is_some() {
        mistakes.add(
            ident.span(),
            format!("the worker `{ident}` handles nothing; list its commands: `performs(Charge)`, or events: `on(OrderShipped)`"),
        );
    }
    let correct = mistakes.is_empty() && given.ty("domain").is_some();
    let domain = shape::domain(&given, ident, "worker", &mut mistakes);
    let (wire, aliases) = if correct { shape::wire(&given, ident, LISTS) } else { Default::default() };
    let header = shape::header(
        input,
        &quote!(::whizbang::derive::Worker),
        &quote!(::core::marker::Send + ::core::marker::Sync + 'static),
    );
    let lints = shape::lints(input);
    let mistakes = mistakes.into_tokens();
    quote! {
        #lints
        const _: () = {
            #aliases
            #[automatically_derived]
            #header {
                type Domain = #domain;
                const NAME: &'static ::core::primitive::str = #name;
                #formerly
                fn wire(__plan: &mut ::whizbang::derive::WorkerPlan<Self>) {
                    let _ = &__plan;
                    #wire
                }
            }
        };
        #mistakes
    }
}
