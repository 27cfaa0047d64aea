//! The derives of whizbang. They describe types; traits implement the behavior.
//!
//! Each parses one attribute and collects all mistakes in it. Each mistake is reported once, at the user's token,
//! beside a stub that suppresses follow-up errors. Users import the derives from the crate `whizbang`, which documents
//! them. The output refers only to `::whizbang::derive`, which `#[whizbang(crate = …)]` replaces.
//!
//! # Reading order
//! `message` is the longest derive and shows the pattern of all: read the attribute, check the item, generate
//! implementations, and return them with the mistakes. The attribute is read by `attribute` from a table of
//! known keys, so all derives report the same mistakes in the same words.
//!
//! A derive never panics. Input that is not an item of Rust is reported by the compiler before, and everything else becomes a
//! mistake at a token.

mod actor;
mod attribute;
mod bounds;
mod coding;
mod diagnostics;
mod domain;
mod entry;
mod fields;
mod held;
mod lists;
#[cfg(test)]
mod malformed;
mod message;
mod names;
mod owned;
mod placeholders;
mod plain;
mod projection;
mod recursion;
mod rejection;
mod root;
mod serial;
mod shape;
mod symmetry;
mod values;
mod versions;
mod worker;

use proc_macro::TokenStream;
use syn::DeriveInput;

/// Parses the input and expands it. A mistake in the item itself is reported by syn.
fn derive(input: TokenStream, expand: impl FnOnce(&DeriveInput) -> proc_macro2::TokenStream) -> TokenStream {
    match syn::parse::<DeriveInput>(input) {
        Ok(input) => root::with_crate_attribute(&input.attrs, expand(&input)).into(),
        Err(error) => error.to_compile_error().into(),
    }
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Domain, attributes(domain, whizbang))]
pub fn domain(input: TokenStream) -> TokenStream {
    derive(input, domain::expand)
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Command, attributes(command, key, event, query, document, whizbang))]
pub fn command(input: TokenStream) -> TokenStream {
    derive(input, |input| message::expand(message::Kind::Command, input))
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Event, attributes(event, key, command, query, document, whizbang))]
pub fn event(input: TokenStream) -> TokenStream {
    derive(input, |input| message::expand(message::Kind::Event, input))
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Query, attributes(query, key, command, event, document, whizbang))]
pub fn query(input: TokenStream) -> TokenStream {
    derive(input, |input| message::expand(message::Kind::Query, input))
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Document, attributes(document, key, command, event, query, whizbang))]
pub fn document(input: TokenStream) -> TokenStream {
    derive(input, |input| message::expand(message::Kind::Document, input))
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Aggregate, attributes(aggregate, saga, whizbang))]
pub fn aggregate(input: TokenStream) -> TokenStream {
    derive(input, |input| actor::expand(actor::Role::Aggregate, input))
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Saga, attributes(saga, aggregate, whizbang))]
pub fn saga(input: TokenStream) -> TokenStream {
    derive(input, |input| actor::expand(actor::Role::Saga, input))
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Projection, attributes(projection, whizbang))]
pub fn projection(input: TokenStream) -> TokenStream {
    derive(input, projection::expand)
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Worker, attributes(worker, whizbang))]
pub fn worker(input: TokenStream) -> TokenStream {
    derive(input, worker::expand)
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Rejection, attributes(rejection, whizbang))]
pub fn rejection(input: TokenStream) -> TokenStream {
    derive(input, rejection::expand)
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Serialize, attributes(serde, whizbang))]
pub fn serialize(input: TokenStream) -> TokenStream {
    derive(input, |input| serial::expand(serial::Direction::Serialize, input))
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_derive(Deserialize, attributes(serde, whizbang))]
pub fn deserialize(input: TokenStream) -> TokenStream {
    derive(input, |input| serial::expand(serial::Direction::Deserialize, input))
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_attribute]
pub fn main(arguments: TokenStream, item: TokenStream) -> TokenStream {
    entry::expand(entry::Entry::Main, arguments.into(), item.into()).into()
}

#[allow(missing_docs, reason = "documented where the framework exports it")]
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    entry::expand(entry::Entry::Test, arguments.into(), item.into()).into()
}
