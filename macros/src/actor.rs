//! `#[derive(Aggregate)]` and `#[derive(Saga)]`.
//!
//! Called by the entry points. Calls [attribute](crate::attribute) for the user's input. The output only lists the
//! handled messages; a listed type without its trait is an error at the listed type.
//!
//! # Input and output
//!
//! ```text
//! #[derive(Aggregate, Default)]
//! #[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
//! struct Account { cents: u64 }
//! ```
//!
//! becomes, apart from spans and lints:
//!
//! ```text
//! const _: () = {
//!     type __WhizbangNamedInHandles0 = Deposit;            // the only place that names the listed type
//!     type __WhizbangOfKindInHandles0 = …;                 // an error here: `Deposit` is not a command
//!     type __WhizbangCheckedInHandles0 = …;                // an error here: no `impl Handle<Deposit> for Account`
//!     impl Stateful for Account {
//!         type Domain = Bank;
//!         const NAME: &'static str = "account";
//!         const ROLE: Role = Role::Aggregate;
//!         fn coding() -> Option<StateCoding<Self>> { … }   // `None` if the state has no `Serialize`
//!         fn initial() -> Self { Default::default() }
//!         fn wire(plan: &mut Plan<Self>) { plan.handles::<…>(); plan.applies::<…>(); }
//!     }
//!     impl Aggregate for Account {}
//!     impl Applies<Deposited> for Account {}               // lets handlers record the event
//! };
//! ```
//!
//! The output does not contain the body of any handler, so it stays small however much a handler does.
//!
//! # Mistakes
//!
//! An item with a mistake gets the same implementations with empty lists. So the rest of the program compiles, and the mistake is
//! the only error that the user sees.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{DeriveInput, Type};

use crate::attribute::{Form, Given, Known, read};
use crate::diagnostics::Diagnostics;
use crate::fields::Item;
use crate::symmetry::{self, Target};
use crate::values::text_of;
use crate::{held, names, shape};

/// The role that a type gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// An aggregate: handles commands, and events if it reacts to some.
    Aggregate,
    /// A saga: starts with an event or a command, and has an end.
    Saga,
}

/// The domain that owns the keys. Required.
const DOMAIN: Known = Known { name: "domain", form: Form::Path, write: "domain = Bank" };
/// The name in the store. Default: the name of the type in lower case with hyphens.
const NAME: Known = Known { name: "name", form: Form::Name, write: "name = \"account\"" };
/// The commands. Each needs `Handle`.
const HANDLES: Known = Known { name: "handles", form: Form::Paths, write: "handles(Deposit, Withdraw)" };
/// The events that change the state. Each needs `Apply`.
const APPLIES: Known = Known { name: "applies", form: Form::Paths, write: "applies(Deposited, Withdrawn)" };
/// The events that are recorded and change nothing.
const RECORDS: Known = Known { name: "records", form: Form::Paths, write: "records(StatementSent)" };
/// The events of other actors. Each needs `React`.
const REACTS: Known = Known { name: "reacts", form: Form::Paths, write: "reacts(OrderPlaced)" };
/// The commands whose replies the actor wants. Each needs `OnReply`.
const REPLIES: Known = Known { name: "replies", form: Form::Paths, write: "replies(Reserve)" };
/// The queries about one key. Each needs `Answer`.
const ANSWERS: Known = Known { name: "answers", form: Form::Paths, write: "answers(BalanceOf)" };
/// The documents of timers. Each needs `OnTimer`.
const TIMERS: Known = Known { name: "timers", form: Form::Paths, write: "timers(PaymentOverdue)" };
/// The snapshot setting. Without it snapshots are kept if the state can be encoded.
const SNAPSHOT: Known =
    Known { name: "snapshot", form: Form::Nested(SNAPSHOT_KEYS), write: "snapshot(every = 200, schema = 1)" };
/// The keys of the snapshot setting.
const SNAPSHOT_KEYS: &[Known] = &[
    Known { name: "every", form: Form::Number { least: 1, most: 1_000_000 }, write: "every = 200" },
    Known { name: "schema", form: Form::Number { least: 1, most: u32::MAX }, write: "schema = 1" },
    Known { name: "never", form: Form::Flag, write: "never" },
];
/// Names that the actor had before, under which its streams are still found.
const FORMERLY: Known = Known { name: "formerly", form: Form::Names, write: "formerly = \"account\"" };
/// All keys of both attributes.
const KEYS: &[Known] = &[DOMAIN, NAME, HANDLES, APPLIES, RECORDS, REACTS, REPLIES, TIMERS, ANSWERS, SNAPSHOT, FORMERLY];

/// The lists, the kind of message in each, and the function that checks and lists an entry.
const LISTS: &[(&str, &str, &str)] = &[
    ("handles", "command", "handles"),
    ("applies", "event", "applies"),
    ("records", "event", "records"),
    ("reacts", "event", "reacts"),
    ("replies", "command", "replies"),
    ("timers", "document", "timers"),
    ("answers", "query", "answers_for_key"),
];

/// The number of turns between two snapshots if `every` is not given: frequent enough that a rebuild reads few events,
/// rare enough that most turns write none.
const SNAPSHOT_EVERY: u32 = 200;

impl Role {
    /// Returns the attribute's name, which errors use as well.
    fn attribute(self) -> &'static str {
        match self {
            Self::Aggregate => "aggregate",
            Self::Saga => "saga",
        }
    }

    /// Returns the name of the marker trait and of the variant of `Role`.
    fn ident(self) -> TokenStream {
        match self {
            Self::Aggregate => quote!(Aggregate),
            Self::Saga => quote!(Saga),
        }
    }

    /// Returns the lists of which at least one is required, and the advice for the error. An actor without them would
    /// never run.
    fn required_lists(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Aggregate => {
                (&["handles", "reacts"], "list its commands: `handles(Deposit)`, or events: `reacts(OrderPlaced)`")
            }
            Self::Saga => (&["reacts", "handles"], "list the events that start it: `reacts(OrderPlaced)`"),
        }
    }
}

/// Expands one of the two derives. The checks come first and only collect mistakes; the output follows from what was read.
/// Only an item without a mistake lists its messages.
pub(crate) fn expand(role: Role, input: &DeriveInput) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    let word = role.attribute();
    if shape::reject_union(input, word, &mut mistakes) {
        return mistakes.into_tokens();
    }
    let other = match role {
        Role::Aggregate => Role::Saga,
        Role::Saga => Role::Aggregate,
    };
    let given = read(&input.attrs, word, &[other.attribute()], KEYS, &mut mistakes);
    shape::reject_generics(input, word, "its name in the store would refer to several types", &mut mistakes);
    let ident = &input.ident;
    let name = shape::name(&given, ident, word, names::kebab(&ident.unraw().to_string()), &mut mistakes);
    let formerly = shape::formerly(&given, &name, &mut mistakes);
    let (required, how) = role.required_lists();
    if mistakes.is_empty() && required.iter().all(|list| given.key(list).is_none()) && given.key("domain").is_some() {
        mistakes.add(ident.span(), format!("the {word} `{ident}` handles nothing, so it would never run; {how}"));
    }
    for recorded in given.types("records") {
        if given.types("applies").iter().any(|applied| text_of(applied) == text_of(recorded)) {
            let text = "found the same event in `applies(…)` and in `records(…)`; an applied event is recorded as well: \
                        leave it out here";
            mistakes.add(recorded.span(), text);
        }
    }
    let item = Item::of(input);
    held::reject_in_state(&item, word, &mut mistakes);
    let never = given.nested("snapshot").and_then(|nested| nested.key("never"));
    match (never, given.nested("snapshot")) {
        (None, _) => drop(symmetry::reject(&item, Target::State { word }, &mut mistakes)),
        (Some(_), Some(nested)) => {
            for key in ["every", "schema"].into_iter().filter_map(|key| nested.key(key)) {
                mistakes.add(key.span(), format!("found `{key}` beside `never`; keep one of the two"));
            }
        }
        (Some(_), None) => {}
    }
    let correct = mistakes.is_empty() && given.ty("domain").is_some();
    let domain = shape::domain(&given, ident, word, &mut mistakes);

    let stub = quote!(::core::marker::Unpin + 'static);
    let stateful = shape::header(input, &quote!(::whizbang::derive::Stateful), &stub);
    let role_ident = role.ident();
    let marker = shape::header(input, &quote!(::whizbang::derive::#role_ident), &stub);
    let ((wire, aliases), applies) = match correct {
        true => (shape::wire(&given, ident, LISTS), applies(&given, input)),
        // The stub lists nothing, so nothing is missing, and lets handlers record every applied event.
        false => (Default::default(), applies_everything(input)),
    };
    let (snapshot, required) = match given.key("snapshot") {
        Some(_) if correct => snapshot(&given, input),
        None if correct => (snapshot_if_coded(), TokenStream::new()),
        _ => (TokenStream::new(), TokenStream::new()),
    };
    let initial = shape::initial(ident, correct);
    let lints = shape::lints(input);
    let mistakes = mistakes.into_tokens();
    quote! {
        #lints
        const _: () = {
            #required
            #aliases
            #[automatically_derived]
            #stateful {
                type Domain = #domain;
                const NAME: &'static ::core::primitive::str = #name;
                const ROLE: ::whizbang::derive::Role = ::whizbang::derive::Role::#role_ident;
                #formerly
                #snapshot
                #initial
                fn described(&self) -> ::core::option::Option<::std::string::String> {
                    #[allow(unused_imports)]
                    use ::whizbang::derive::{DescribedByDebug as _, NotDescribed as _};
                    (&::whizbang::derive::Described(self)).described()
                }
                fn wire(__plan: &mut ::whizbang::derive::Plan<Self>) {
                    let _ = &__plan;
                    #wire
                }
            }
            #[automatically_derived]
            #marker {}
            #applies
        };
        #mistakes
    }
}

/// Generates the implementations that let handlers record the listed events. A recorded event that changes nothing gets an
/// empty `Apply` as well, so that handlers need not know the difference.
fn applies(given: &Given, input: &DeriveInput) -> TokenStream {
    let implement = |list: &'static str, (at, event): (usize, &Type)| {
        // Spanned at the listed event: a missing `Apply` is reported where this implementation is.
        let span = event.span();
        let mut ident = input.ident.clone();
        ident.set_span(span);
        let checked = shape::checked(list, at, span);
        let nothing = (list == "records").then(|| {
            quote_spanned! {span=>
                #[automatically_derived]
                impl ::whizbang::derive::Apply<#checked> for #ident {
                    fn apply(&mut self, _: &#checked) {}
                }
            }
        });
        quote_spanned! {span=>
            #[automatically_derived] impl ::whizbang::derive::Applies<#checked> for #ident {}
            #nothing
        }
    };
    let list = |list: &'static str| given.types(list).iter().enumerate().map(move |event| implement(list, event));
    list("applies").chain(list("records")).collect()
}

/// Generates the implementation that lets handlers record every applied event, listed or not.
fn applies_everything(input: &DeriveInput) -> TokenStream {
    let ident = &input.ident;
    let mut generics = input.generics.clone();
    generics.params.push(syn::parse_quote!(WhizbangEvent: ::whizbang::derive::Event));
    generics.make_where_clause().predicates.push(syn::parse_quote!(Self: ::whizbang::derive::Apply<WhizbangEvent>));
    let (generics, _, bounds) = generics.split_for_impl();
    let (_, arguments, _) = input.generics.split_for_impl();
    quote! {
        #[automatically_derived]
        impl #generics ::whizbang::derive::Applies<WhizbangEvent> for #ident #arguments #bounds {}
    }
}

/// Generates the snapshot items of `Stateful`, and the requirement of serde's traits at the key that causes it. Returns the
/// items and the constant that requires serde's traits.
fn snapshot(given: &Given, input: &DeriveInput) -> (TokenStream, TokenStream) {
    let (Some(nested), Some(key)) = (given.nested("snapshot"), given.key("snapshot")) else {
        return (TokenStream::new(), TokenStream::new());
    };
    if nested.key("never").is_some() {
        let never = quote! {
            const SNAPSHOTS: ::whizbang::derive::Snapshots = ::whizbang::derive::Snapshots::Never;
        };
        return (never, TokenStream::new());
    }
    let every = nested.number("every").map_or(SNAPSHOT_EVERY, |(every, _)| every);
    let schema = nested.number("schema").map_or(1, |(schema, _)| schema);
    let required = shape::require_state_coding(&input.ident, key.span());
    let methods = quote! {
        const SNAPSHOTS: ::whizbang::derive::Snapshots =
            ::whizbang::derive::Snapshots::Given { every: #every, schema: #schema };
        fn coding() -> ::core::option::Option<::whizbang::derive::StateCoding<Self>> {
            ::core::option::Option::Some(__WHIZBANG_CODING)
        }
    };
    (methods, required)
}

/// Generates the snapshot items of `Stateful` for a type without a snapshot setting.
fn snapshot_if_coded() -> TokenStream {
    quote! {
        fn coding() -> ::core::option::Option<::whizbang::derive::StateCoding<Self>> {
            #[allow(unused_imports)]
            use ::whizbang::derive::{CodedState as _, UncodedState as _};
            (&::whizbang::derive::MaybeCoded::<Self>::new()).coding()
        }
    }
}
