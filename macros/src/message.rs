//! `#[derive(Command)]`, `#[derive(Event)]`, `#[derive(Query)]`, `#[derive(Document)]`.
//!
//! Called by the entry points. Calls [attribute](crate::attribute) for what the user wrote.
//! The output names a domain, a name and a version; how a message becomes bytes is serde's and the codec's matter.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Field};

use crate::attribute::{Form, Given, Known, read};
use crate::mistakes::Mistakes;
use crate::{nesting, shape};

/// Which of the four a type becomes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Command,
    Event,
    Query,
    Document,
}

const DOMAIN: Known = Known { name: "domain", form: Form::Path, write: "domain = Bank" };
const REPLY: Known = Known { name: "reply", form: Form::Type, write: "reply = u64" };
const NAME: Known = Known { name: "name", form: Form::Name, write: "name = \"Deposit\"" };
const VERSION: Known = Known { name: "version", form: Form::Number { least: 1, most: u32::MAX }, write: "version = 2" };
const UPCAST: Known = Known { name: "upcast", form: Form::Upcasts, write: "upcast(1 = DepositV1)" };

const WITH_REPLY: &[Known] = &[DOMAIN, REPLY, NAME, VERSION, UPCAST];
const WITHOUT_REPLY: &[Known] = &[DOMAIN, NAME, VERSION, UPCAST];

impl Kind {
    /// The attribute, which is also the word for it in errors.
    fn attribute(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Event => "event",
            Self::Query => "query",
            Self::Document => "document",
        }
    }

    fn sisters(self) -> Vec<&'static str> {
        [Self::Command, Self::Event, Self::Query, Self::Document]
            .into_iter()
            .filter(|kind| *kind != self)
            .map(Self::attribute)
            .collect()
    }

    fn keys(self) -> &'static [Known] {
        match self {
            Self::Command | Self::Query => WITH_REPLY,
            Self::Event | Self::Document => WITHOUT_REPLY,
        }
    }

    fn ident(self) -> TokenStream {
        match self {
            Self::Command => quote!(Command),
            Self::Event => quote!(Event),
            Self::Query => quote!(Query),
            Self::Document => quote!(Document),
        }
    }
}

/// Expands one of the four derives.
pub(crate) fn expand(kind: Kind, input: &DeriveInput) -> TokenStream {
    let mut mistakes = Mistakes::default();
    let word = kind.attribute();
    if shape::refuse_union(input, word, &mut mistakes) {
        return mistakes.into_tokens();
    }
    let given = read(&input.attrs, word, &kind.sisters(), kind.keys(), &mut mistakes);
    shape::refuse_generics(input, word, "its name on the wire would stand for several types", &mut mistakes);
    nesting::refuse(input, word, &mut mistakes);

    let ident = &input.ident;
    let name = shape::name(&given, ident, ident.unraw().to_string(), &mut mistakes);
    let version = given.number("version").map_or(1, |(version, _)| version);
    check_versions(&given, version, &mut mistakes);
    let body = match kind {
        Kind::Command => {
            let key = key(input, &mut mistakes);
            let reply = match given.ty("reply") {
                Some(reply) => quote!(#reply),
                None if given.key("reply").is_some() => mistakes.in_place_of_type(),
                None => quote!(()),
            };
            quote! {
                type Reply = #reply;
                fn key(&self) -> ::whizbang::derive::Key<'_> { #key }
            }
        }
        Kind::Query => {
            let reply = reply_of_query(&given, input, &mut mistakes);
            quote!(type Reply = #reply;)
        }
        Kind::Event | Kind::Document => TokenStream::new(),
    };
    let domain = shape::domain(&given, ident, word, &mut mistakes);
    let decode = decode(&given, version);
    let kind = kind.ident();
    let stub = quote!(::whizbang::derive::Coded + ::core::marker::Send + 'static);
    let message = shape::header(input, &quote!(::whizbang::derive::Message), &stub);
    let sort = shape::header(input, &quote!(::whizbang::derive::#kind), &stub);
    let mistakes = mistakes.into_tokens();
    quote! {
        #[automatically_derived]
        #message {
            type Domain = #domain;
            const NAME: &'static str = #name;
            const KIND: ::whizbang::derive::Kind = ::whizbang::derive::Kind::#kind;
            const VERSION: u32 = #version;
            #decode
        }
        #[automatically_derived]
        #sort { #body }
        #mistakes
    }
}

fn reply_of_query(given: &Given, input: &DeriveInput, mistakes: &mut Mistakes) -> TokenStream {
    match given.ty("reply") {
        Some(reply) => quote!(#reply),
        None => {
            if given.key("reply").is_none() {
                let ident = &input.ident;
                mistakes.add(
                    ident.span(),
                    format!("the query `{ident}` has no reply; write `#[query(domain = …, reply = u64)]` with the answer's type"),
                );
            }
            mistakes.in_place_of_type()
        }
    }
}

/// The expression for a command's key.
fn key(input: &DeriveInput, mistakes: &mut Mistakes) -> TokenStream {
    let nothing = quote!(::whizbang::derive::Key::from(""));
    let ident = &input.ident;
    let how = "mark the field that says which aggregate handles it: `#[key] account: String`";
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
            mistakes.add(mark.path().span(), "found `#[key]` with something behind it; write just `#[key]`");
        }
        if let Some(again) = marks.next() {
            mistakes.add(again.path().span(), "found `#[key]` twice on one field; keep one of the two");
        }
        if let Some((_, first)) = marked {
            let first = first.ident.as_ref().map_or_else(|| "a field before".to_owned(), |first| format!("`{first}`"));
            mistakes.add(
                mark.path().span(),
                format!("found a second `#[key]`, {first} has one; a command has exactly one key: keep one of the two"),
            );
            continue;
        }
        marked = Some((at, field));
    }
    match marked {
        Some((at, field)) => {
            let member = match &field.ident {
                Some(name) => quote!(#name),
                None => {
                    let at = syn::Index::from(at);
                    quote!(#at)
                }
            };
            let span = field.ty.span();
            quote_spanned!(span=> ::whizbang::derive::KeyField::key(&self.#member))
        }
        None => {
            mistakes.add(ident.span(), format!("the command `{ident}` has no key; {how}"));
            nothing
        }
    }
}

/// Every version from 1 to the one before the current has exactly one upcaster.
fn check_versions(given: &Given, version: u32, mistakes: &mut Mistakes) {
    let upcasts = given.upcasts("upcast");
    let told = mistakes.count();
    for (at, upcast) in upcasts.iter().enumerate() {
        let found = upcast.version;
        if found == 0 {
            mistakes.add(upcast.span, "found version 0; versions count from 1");
        } else if found >= version {
            mistakes.add(
                upcast.span,
                format!("found version {found}, which is not older than the message's `version = {version}`; raise `version` or leave this out"),
            );
        } else if upcasts.iter().take(at).any(|before| before.version == found) {
            mistakes.add(upcast.span, format!("found version {found} twice; keep one of the two"));
        }
    }
    // What is missing is only clear once what is there is.
    if mistakes.count() > told || (upcasts.is_empty() && given.key("upcast").is_some()) {
        return;
    }
    let known: std::collections::BTreeSet<u32> = upcasts.iter().map(|upcast| upcast.version).collect();
    if let Some(missing) = (1..version).find(|version| !known.contains(version)) {
        let span = match (given.key("upcast"), given.number("version")) {
            (Some(key), _) => key.span(),
            (None, Some((_, span))) => span,
            (None, None) => return,
        };
        mistakes.add(
            span,
            format!(
                "version {missing} has no upcaster, so messages stored with it could not be read; \
                 write `upcast({missing} = OldType)` with the type that version {missing} had"
            ),
        );
    }
}

/// The reading of older versions; nothing if there is none.
fn decode(given: &Given, version: u32) -> TokenStream {
    let upcasts = given.upcasts("upcast");
    if upcasts.is_empty() {
        return TokenStream::new();
    }
    let arms = upcasts.iter().filter(|upcast| upcast.version < version).map(|upcast| {
        let (older, old) = (upcast.version, &upcast.old);
        let read = quote_spanned!(old.span()=> ::whizbang::derive::upcast::<#old, Self>(codec, bytes));
        quote!(#older => #read,)
    });
    quote! {
        fn decode(
            version: u32,
            codec: ::whizbang::derive::Codec,
            bytes: &[u8],
        ) -> ::core::result::Result<Self, ::whizbang::derive::CodecError> {
            match version {
                #version => ::whizbang::derive::decode(codec, bytes),
                #(#arms)*
                found => ::core::result::Result::Err(::whizbang::derive::unknown_version::<Self>(found)),
            }
        }
    }
}
