//! Tests of malformed input: the derives always expand to parsable code and never panic.
//!
//! An editor runs the derives on every half-written line. A panic would show as an error without a place. Output that cannot be
//! parsed would show as an error in code that the user has not written.

use proc_macro2::{Group, TokenStream, TokenTree};
use syn::DeriveInput;

use crate::{actor, domain, entry, message, projection, rejection, serial, worker};

/// The expansion of one derive.
type Expand = fn(&DeriveInput) -> TokenStream;

/// Every derive with a correct item that uses all keys.
const ITEMS: &[(&str, Expand)] = &[
    ("#[domain(name = \"bank\", shards = 16, codec = json)] struct Bank;", domain::expand),
    (
        "#[command(domain = a::Bank, reply = Vec<u8>, name = \"d\", version = 3, upcast(1 = A, 2 = b::B))] \
         struct Deposit { #[key] account: String, #[serde(skip)] cents: [u64; 2] }",
        |input| message::expand(message::Kind::Command, input),
    ),
    ("#[event(domain = Bank)] enum Moved { In(u64), #[x] Out { cents: Option<Box<u64>> }, None }", |input| {
        message::expand(message::Kind::Event, input)
    }),
    ("#[query(domain = Bank, reply = (u8, u8))] struct BalanceOf(String);", |input| {
        message::expand(message::Kind::Query, input)
    }),
    ("#[document(domain = Bank, version = 2, upcast(1 = Old<u8>))] struct Overdue<T: X>(T) where T: Y;", |input| {
        message::expand(message::Kind::Document, input)
    }),
    (
        "#[aggregate(domain = Bank, name = \"a\", handles(A, B), applies(C), snapshot(every = 200, schema = 1),)] \
         struct Account<'a, const N: usize>(&'a [u8; N]);",
        |input| actor::expand(actor::Role::Aggregate, input),
    ),
    (
        "#[saga(domain = Bank, reacts(a::A, crate::B), replies(R), timers(T), snapshot)] enum Plan { Open, Done(u8) }",
        |input| actor::expand(actor::Role::Saga, input),
    ),
    (
        "#[projection(projects(A, B), answers(Q), name = \"p\", schema = 4, reset = \"DELETE FROM p\")] struct View { a: u8 }",
        projection::expand,
    ),
    ("#[worker(domain = Bank, performs(A), on(B, C), name = \"w\")] struct Teller;", worker::expand),
    (
        "#[rejection(domain = Bank)] enum No { #[rejection(text = \"{a} {{\", code = \"x\")] A { a: u8, r#in: B }, \
         #[rejection(text = \"{0}\")] B(u8, T), #[rejection(text = \"no\")] C }",
        rejection::expand,
    ),
    (
        "#[serde(default, rename = \"x\")] struct Page<T> { #[serde(with = \"m\")] next: Option<Box<Self>>, t: T }",
        |i| serial::expand(serial::Direction::Deserialize, i),
    ),
    ("#[serde(tag = \"t\")] enum Line<'a> { A(&'a str), B { b: Vec<Self> } }", |input| {
        serial::expand(serial::Direction::Serialize, input)
    }),
];

/// The replacements of a token.
const JUNK: &[&str] = &[
    "", "7", "-", "=", "\"text\"", "::", "name", "domain", "()", "(,)", "[]", "'a", "r#type", "<", "Self", ",", "1.5",
    "ß",
];

/// Returns `tokens` with each token, at any depth, replaced by each junk text once, and duplicated once.
///
/// Groups are mutated inside as well. A hundred tokens give some two thousand items, which take less than a second.
fn mutations(tokens: &TokenStream) -> Vec<TokenStream> {
    let tokens: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let mut mutated = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let with = |instead: TokenStream| -> TokenStream {
            let before = tokens.iter().take(at).cloned();
            before.chain(instead).chain(tokens.iter().skip(at + 1).cloned()).collect()
        };
        for junk in JUNK {
            mutated.push(with(junk.parse().expect("the junk is tokens")));
        }
        mutated.push(with([token.clone(), token.clone()].into_iter().collect()));
        if let TokenTree::Group(group) = token {
            let inner = mutations(&group.stream()).into_iter();
            mutated.extend(inner.map(|inside| with(TokenTree::Group(Group::new(group.delimiter(), inside)).into())));
        }
    }
    mutated
}

/// Checks the derives with every mutation of [`ITEMS`].
#[test]
fn malformed_item_expands_to_parsable_code() {
    for (item, expand) in ITEMS {
        let tokens: TokenStream = item.parse().expect("the item is tokens");
        let mut expanded = 0;
        for mutated in mutations(&tokens).into_iter().chain([tokens]) {
            // The compiler rejects this before a derive sees it.
            let Ok(input) = syn::parse2::<DeriveInput>(mutated.clone()) else { continue };
            let output = expand(&input);
            assert!(syn::parse2::<syn::File>(output.clone()).is_ok(), "{mutated}\nbecame\n{output}");
            expanded += 1;
        }
        assert!(expanded > 100, "only {expanded} of {item}");
    }
}

#[test]
fn malformed_function_expands_to_parsable_code() {
    let item = "#[a] pub async fn main() -> Result<(), E> { go().await?; Ok(()) }";
    let tokens: TokenStream = item.parse().expect("the item is tokens");
    for which in [entry::Entry::Main, entry::Entry::Test] {
        for mutated in mutations(&tokens).into_iter().chain([tokens.clone()]) {
            if syn::parse2::<syn::Item>(mutated.clone()).is_err() {
                continue;
            }
            let output = entry::expand(which, TokenStream::new(), mutated.clone());
            assert!(syn::parse2::<syn::File>(output.clone()).is_ok(), "{mutated}\nbecame\n{output}");
        }
    }
}
