//! `#[derive(Command)]`, `#[derive(Event)]`, `#[derive(Query)]`, `#[derive(Document)]`.
//!
//! Called by the entry points. Calls [attribute](crate::attribute) for the user's input. The output gives a domain, a
//! name and a version; serde and the codec define the bytes.
//!
//! # Input and output
//!
//! ```text
//! #[derive(Command, Serialize, Deserialize)]
//! #[command(domain = Bank, reply = u64, version = 2, upcast(1 = DepositV1))]
//! struct Deposit { #[key] account: String, cents: u64 }
//! ```
//!
//! becomes, apart from spans and lints:
//!
//! ```text
//! const _: () = {
//!     const __WHIZBANG_CODING: Coding<Deposit> = coding::<Deposit>();                     // requires serde's traits
//!     const __WHIZBANG_VERSION_1: Upcasting<Deposit> = upcast::<DepositV1, Deposit>();    // requires `From<DepositV1>`
//!     impl Message for Deposit {
//!         type Domain = Bank;
//!         const NAME: &'static str = "Deposit";
//!         const KIND: Kind = Kind::Command;
//!         const VERSION: u32 = 2;
//!         fn shape(version: u32, codec: Codec) -> Option<Arc<Shape>> { … }
//!         fn encode(&self, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> { … }
//!         fn decode(version: u32, codec: Codec, bytes: &[u8]) -> Result<Self, CodecError> { … }
//!     }
//!     impl Command for Deposit { type Reply = u64; fn key(&self) -> Key<'_> { … } }
//!     impl Of<Bank> for Deposit {}                                                        // lets actors of `Bank` list it
//! };
//! ```
//!
//! Everything generic is in the framework, so a message costs the compiler a few hundred tokens, whatever its fields.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Field, Member, Type};

use crate::attribute::{Form, Given, Known, read};
use crate::coding::coding;
use crate::diagnostics::Diagnostics;
use crate::fields::Item;
use crate::symmetry::{self, Target};
use crate::values::text_of;
use crate::{held, owned, plain, recursion, shape, versions};

/// The kind of message that a type becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A request to one key, which has a reply.
    Command,
    /// A fact that an actor has recorded.
    Event,
    /// A question to a view or to one key.
    Query,
    /// The content of a timer, or another stored value that is not a message.
    Document,
}

/// The keys of the attributes, with the form in which errors show them.
const DOMAIN: Known = Known { name: "domain", form: Form::Path, write: "domain = Bank" };
/// The type of the reply. Default for a command: `()`. Required for a query.
const REPLY: Known = Known { name: "reply", form: Form::Type, write: "reply = u64" };
/// The name on the wire. Default: the name of the type.
const NAME: Known = Known { name: "name", form: Form::Name, write: "name = \"Deposit\"" };
/// The version of the schema. Default: 1.
const VERSION: Known = Known { name: "version", form: Form::Number { least: 1, most: u32::MAX }, write: "version = 2" };
/// The older versions, each with the type that it had.
const UPCAST: Known = Known { name: "upcast", form: Form::Upcasts, write: "upcast(1 = DepositV1)" };

/// The older versions of an event that has become several.
const SPLIT: Known = Known { name: "split", form: Form::Upcasts, write: "split(1 = DepositV1)" };
/// The older version that is still written, until all receivers know the current one.
const WRITES: Known = Known { name: "writes", form: Form::Number { least: 1, most: u32::MAX }, write: "writes = 1" };
/// Names that the message had before, under which stored ones are still read.
const FORMERLY: Known = Known { name: "formerly", form: Form::Names, write: "formerly = \"Paid\"" };

/// The keys of a command and of a query.
const WITH_REPLY: &[Known] = &[DOMAIN, REPLY, NAME, VERSION, UPCAST, WRITES, FORMERLY];
/// The keys of a document.
const WITHOUT_REPLY: &[Known] = &[DOMAIN, NAME, VERSION, UPCAST, WRITES, FORMERLY];
/// The keys of an event.
const OF_EVENT: &[Known] = &[DOMAIN, NAME, VERSION, UPCAST, SPLIT, WRITES, FORMERLY];

impl Kind {
    /// All kinds, in the order in which conflicts are reported.
    const ALL: [Self; 4] = [Self::Command, Self::Event, Self::Query, Self::Document];

    /// Returns the attribute's name, which errors use as well.
    fn attribute(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Event => "event",
            Self::Query => "query",
            Self::Document => "document",
        }
    }

    /// Returns the attribute names of the other kinds, which are a mistake here.
    fn others(self) -> Vec<&'static str> {
        Self::ALL.into_iter().filter(|kind| *kind != self).map(Self::attribute).collect()
    }

    /// Returns the keys that the kind has.
    fn keys(self) -> &'static [Known] {
        match self {
            Self::Command | Self::Query => WITH_REPLY,
            Self::Event => OF_EVENT,
            Self::Document => WITHOUT_REPLY,
        }
    }

    /// Returns the trait's name.
    fn name(self) -> &'static str {
        match self {
            Self::Command => "Command",
            Self::Event => "Event",
            Self::Query => "Query",
            Self::Document => "Document",
        }
    }
}

/// Expands one of the four derives.
pub(crate) fn expand(kind: Kind, input: &DeriveInput) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    let word = kind.attribute();
    if shape::reject_union(input, word, &mut mistakes) {
        return mistakes.into_tokens();
    }
    let item = Item::of(input);
    match other_derive(kind, input, &item) {
        Some(OtherDerive::ReportsBoth) => return TokenStream::new(),
        Some(OtherDerive::IsIntended(mistake)) => {
            mistakes.add(mistake.0, mistake.1);
            return mistakes.into_tokens();
        }
        None => {}
    }
    let given = read(&input.attrs, word, &kind.others(), kind.keys(), &mut mistakes);
    shape::reject_generics(input, word, "its name on the wire would refer to several types", &mut mistakes);
    recursion::reject(input, word, &mut mistakes);
    held::reject_in_message(&item, word, &mut mistakes);
    let checks = symmetry::reject(&item, Target::Message { word, domain: given.ty("domain") }, &mut mistakes);

    let ident = &input.ident;
    let name = shape::name(&given, ident, word, ident.unraw().to_string(), &mut mistakes);
    let formerly = shape::formerly(&given, &name, &mut mistakes);
    let version = given.number("version").map_or(1, |(version, _)| version);
    versions::check(&given, version, &mut mistakes);
    versions::check_written(&given, version, &mut mistakes);
    // A query without a key is for a view.
    let is_keyed = kind == Kind::Command || (kind == Kind::Query && has_key(input));
    if !is_keyed {
        reject_keys(input, word, &mut mistakes);
    }
    let body = match kind {
        Kind::Command => {
            let key = key(input, word, &mut mistakes);
            let reply = match given.ty("reply") {
                Some(reply) => owned_reply(reply, &mut mistakes),
                None if given.key("reply").is_some() => mistakes.instead_of_type(),
                None => quote!(()),
            };
            quote! {
                type Reply = #reply;
                fn key(&self) -> ::whizbang::derive::Key<'_> { #key }
            }
        }
        Kind::Query => {
            let reply = reply_of_query(&given, input, &mut mistakes);
            let key = is_keyed.then(|| {
                let key = key(input, word, &mut mistakes);
                quote! {
                    const IS_KEYED: ::core::primitive::bool = true;
                    fn key(&self) -> ::core::option::Option<::whizbang::derive::Key<'_>> {
                        ::core::option::Option::Some(#key)
                    }
                }
            });
            quote! { type Reply = #reply; #key }
        }
        Kind::Event | Kind::Document => TokenStream::new(),
    };
    let of = of(&given, input);
    let correct =
        mistakes.is_empty() && given.ty("domain").is_some() && (kind != Kind::Query || given.ty("reply").is_some());
    let domain = shape::domain(&given, ident, word, &mut mistakes);
    let required = correct.then(|| {
        let coding = shape::require_coding(ident, ident.span());
        let older = versions::require_older(&given, ident);
        quote!(#coding #older)
    });
    // Beside a mistake the checks might be wrong about the codec; they return once it is fixed.
    let checks = correct.then_some(checks);
    let coding = coding(&given, version, correct);
    // A value written as an older version reads back as another one: the value that was read back is used.
    let trust = (plain::is_plain(&item) && given.key("writes").is_none()).then(plain::trust);
    let sent = held::stub(&item, input);
    let kind = format_ident!("{}", kind.name());
    let stub = quote!(::core::marker::Send + 'static);
    let message = shape::header(input, &quote!(::whizbang::derive::Message), &stub);
    let sort = shape::header(input, &quote!(::whizbang::derive::#kind), &stub);
    let lints = shape::lints(input);
    let mistakes = mistakes.into_tokens();
    quote! {
        #checks
        #lints
        const _: () = {
            #required
            #[automatically_derived]
            #message {
                type Domain = #domain;
                const NAME: &'static ::core::primitive::str = #name;
                const KIND: ::whizbang::derive::Kind = ::whizbang::derive::Kind::#kind;
                const VERSION: ::core::primitive::u32 = #version;
                #formerly
                #coding
                #trust
            }
            #[automatically_derived]
            #sort { #body }
            #of
            #sent
        };
        #mistakes
    }
}

/// The conclusion about another message derive on the same item.
enum OtherDerive {
    /// The other derive reports the conflict.
    ReportsBoth,
    /// The other derive is the intended one; this one is the mistake.
    IsIntended((Span, String)),
}

/// Determines from the attributes whether another message derive is on the item. A derive does not see the others, and
/// the output of two of them would conflict in every trait.
///
/// `None` if this derive is alone. Otherwise one of the two derives reports the conflict and the other one stays silent, so
/// that the compiler shows it once.
fn other_derive(kind: Kind, input: &DeriveInput, item: &Item<'_>) -> Option<OtherDerive> {
    let attribute = |of: Kind| input.attrs.iter().find(|attribute| attribute.path().is_ident(of.attribute()));
    let mut others = Kind::ALL.into_iter().filter(|other| *other != kind && attribute(*other).is_some());
    let first = others.next()?;
    if attribute(kind).is_some() {
        // The first of them reports the second one's attribute.
        let is_first = Kind::ALL.into_iter().find(|any| attribute(*any).is_some()) == Some(kind);
        return (!is_first).then_some(OtherDerive::ReportsBoth);
    }
    // Only the other attribute is here. Either it is misspelled, or its derive is here as well and reads it.
    let (is_marked, attribute) = (item.parts().any(|part| part.is_key), attribute(first)?);
    let has_reply = attribute.meta.to_token_stream().to_string().contains("reply");
    let suits = match first {
        Kind::Command => is_marked,
        Kind::Query => has_reply && !is_marked,
        Kind::Event | Kind::Document => !has_reply && !is_marked && kind != Kind::Command,
    };
    let (word, other) = (kind.attribute(), first.attribute());
    let text = format!(
        "found `#[{other}(…)]` on {}; a type is one kind of message: leave out the derive of `{}`, or write `#[{word}(…)]` in place of \
         `#[{other}(…)]`",
        shape::with_article(word),
        kind.name(),
    );
    suits.then(|| OtherDerive::IsIntended((attribute.path().span(), text)))
}

/// Generates the domain that may list the message. A message of an unknown domain belongs to all of them, so that no
/// list reports a second error.
///
/// The trait is what the lists of actors require: `handles(Deposit)` compiles if `Deposit` belongs to the domain of the
/// actor.
fn of(given: &Given, input: &DeriveInput) -> TokenStream {
    let mut input = input.clone();
    let header = match given.ty("domain") {
        Some(domain) => shape::header(&input, &quote!(::whizbang::derive::Of<#domain>), &quote!('static)),
        None => {
            let (_, arguments, _) = input.generics.split_for_impl();
            let arguments = quote!(#arguments);
            input.generics.params.push(syn::parse_quote!(WhizbangDomain));
            let ident = &input.ident;
            let (generics, _, bounds) = input.generics.split_for_impl();
            quote!(impl #generics ::whizbang::derive::Of<WhizbangDomain> for #ident #arguments #bounds)
        }
    };
    quote!(#[automatically_derived] #header {})
}

/// Returns the reply type of a query, which is required.
///
/// A command may leave its reply out, since "done" is an answer. A query without a reply would ask for nothing.
fn reply_of_query(given: &Given, input: &DeriveInput, mistakes: &mut Diagnostics) -> TokenStream {
    match given.ty("reply") {
        Some(reply) => owned_reply(reply, mistakes),
        None => {
            if given.key("reply").is_none() {
                let ident = &input.ident;
                mistakes.add(
                    ident.span(),
                    format!("the query `{ident}` has no reply; write `#[query(domain = …, reply = u64)]` with the answer's type"),
                );
            }
            mistakes.instead_of_type()
        }
    }
}

/// Returns the reply type, unless it borrows.
fn owned_reply(reply: &Type, mistakes: &mut Diagnostics) -> TokenStream {
    match owned::reject(reply, "a reply", mistakes) {
        true => mistakes.instead_of_type(),
        false => quote!(#reply),
    }
}

/// Returns whether a field of a struct is marked `#[key]`.
fn has_key(input: &DeriveInput) -> bool {
    let Data::Struct(data) = &input.data else { return false };
    data.fields.iter().flat_map(|field| &field.attrs).any(|attribute| attribute.path().is_ident("key"))
}

/// Generates the expression of the key of a command or a query.
///
/// A command has exactly one key field. A query may have one: then the actor of that key answers it, and otherwise a view
/// does.
fn key(input: &DeriveInput, word: &str, mistakes: &mut Diagnostics) -> TokenStream {
    let nothing = quote!(::whizbang::derive::Key::from(""));
    let ident = &input.ident;
    let how = "mark the field that selects its aggregate: `#[key] account: String`";
    let Data::Struct(data) = &input.data else {
        mistakes.add(
            ident.span(),
            format!("the command `{ident}` is an enum; write one struct for each command, each with its own `#[key]`"),
        );
        return nothing;
    };
    let mut marked: Option<(usize, &Field)> = None;
    for (at, field) in data.fields.iter().enumerate() {
        let mut marks = field.attrs.iter().filter(|attribute| attribute.path().is_ident("key"));
        let Some(mark) = marks.next() else { continue };
        if mark.meta.require_path_only().is_err() {
            mistakes.add(mark.path().span(), "found `#[key]` with arguments; write `#[key]`");
        }
        if let Some(again) = marks.next() {
            mistakes.add(again.path().span(), "found `#[key]` twice on one field; keep one of the two");
        }
        if let Some((_, first)) = marked {
            let first = first.ident.as_ref().map_or_else(|| "a field before".to_owned(), |first| format!("`{first}`"));
            mistakes.add(
                mark.path().span(),
                format!("found a second `#[key]`, {first} has one; a {word} has exactly one key: keep one of the two"),
            );
            continue;
        }
        marked = Some((at, field));
    }
    match marked {
        Some((at, field)) => {
            let span = field.ty.span();
            if let Some(size) = ["usize", "isize"].into_iter().find(|size| text_of(&field.ty) == *size) {
                let instead = if size == "usize" { "u64" } else { "i64" };
                let text =
                    format!("`{size}` cannot be a key, because its size depends on the machine: write `{instead}`");
                mistakes.add(span, text);
                return nothing;
            }
            let member = match &field.ident {
                // Spanned at the type, because an invalid key type is the mistake.
                Some(name) => {
                    let mut name = name.clone();
                    name.set_span(span);
                    Member::Named(name)
                }
                None => Member::from(at),
            };
            quote_spanned!(span=> ::whizbang::derive::KeyField::key(&self.#member))
        }
        None => {
            mistakes.add(ident.span(), format!("the command `{ident}` has no key; {how}"));
            nothing
        }
    }
}

/// Reports a `#[key]` on a message that no aggregate handles.
///
/// A marked field would otherwise have no effect, and its author would expect that the message reaches the actor of that key.
fn reject_keys(input: &DeriveInput, word: &str, mistakes: &mut Diagnostics) {
    let fields: Vec<&Field> = match &input.data {
        Data::Struct(data) => data.fields.iter().collect(),
        Data::Enum(data) => data.variants.iter().flat_map(|variant| variant.fields.iter()).collect(),
        Data::Union(_) => return,
    };
    let marks = fields.iter().flat_map(|field| &field.attrs).filter(|attribute| attribute.path().is_ident("key"));
    for mark in marks {
        mistakes.add(
            mark.path().span(),
            format!(
                "found `#[key]` in {}; only the struct of a command or a query has a key: leave it out",
                shape::with_article(word)
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts the tokens of a text, including those inside brackets.
    fn tokens(text: TokenStream) -> usize {
        let count = |token| match token {
            proc_macro2::TokenTree::Group(group) => 2 + tokens(group.stream()),
            _ => 1,
        };
        text.into_iter().map(count).sum()
    }

    #[test]
    fn message_expansion_stays_small() {
        let expanded = |kind: Kind, fields: &str| {
            let word = kind.attribute();
            let item = format!("#[{word}(domain = Bank)] struct Deposit {{ {fields} }}");
            tokens(expand(kind, &syn::parse_str(&item).expect("the item is one")))
        };
        let (event, more) = (expanded(Kind::Event, "a: u8"), expanded(Kind::Event, "a: u8, b: u8, c: u8"));
        assert_eq!(event, more, "it does not grow with the fields");
        // The size when this was written plus a tenth: the compiler parses it for each message of a program.
        assert!((100..=585).contains(&event), "an event has {event} tokens");
    }
}
