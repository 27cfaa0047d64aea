//! The path of the framework in the program: `::whizbang`, or the one in `#[whizbang(crate = …)]`.
//!
//! Called by the entry points. Calls [attribute](crate::attribute) for the user's input. The derives generate
//! `::whizbang::derive` everywhere; the path of a program that renames or re-exports the crate is substituted at the
//! end, so that no derive handles it.
//!
//! The path is replaced in the finished tokens, also inside of groups and in the text that serde's derives receive. An error keeps the
//! place that it had, because each replaced token keeps the span of the one before.

use proc_macro2::{Group, Literal, Span, TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::{ParseStream, Parser};
use syn::{Attribute, Type};

use crate::attribute::{Form, Given, Known, read, read_keys};
use crate::diagnostics::Diagnostics;

/// The only key.
const KEYS: &[Known] = &[Known { name: "crate", form: Form::Path, write: "crate = my_facade::whizbang" }];

/// Parses the arguments of `#[whizbang::main(…)]`.
pub(crate) fn given(arguments: TokenStream, attribute: &str, mistakes: &mut Diagnostics) -> Given {
    let mut given = Given::default();
    let read = |input: ParseStream<'_>| {
        read_keys(input, attribute, KEYS, &mut given, mistakes);
        Ok(())
    };
    // It parses to the end, so nothing is left over.
    let _ = read.parse2(arguments);
    given
}

/// Applies `#[whizbang(crate = …)]` of an item to the output of a derive.
pub(crate) fn with_crate_attribute(attributes: &[Attribute], output: TokenStream) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    let given = read(attributes, "whizbang", &[], KEYS, &mut mistakes);
    let mut output = match given.ty("crate") {
        Some(root) => with_root(output, root),
        None => output,
    };
    output.extend(mistakes.into_tokens());
    output
}

/// Replaces each `::whizbang` before `::derive` in `output` by `root`.
pub(crate) fn with_root(output: TokenStream, root: &Type) -> TokenStream {
    let text = root.to_token_stream().to_string().replace(' ', "");
    replace(output, &root.to_token_stream(), &text)
}

/// Replaces the path of the framework in generated code.
fn replace(output: TokenStream, root: &TokenStream, text: &str) -> TokenStream {
    let tokens: Vec<TokenTree> = output.into_iter().collect();
    let is_mark = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    let is_word = |at: usize, word: &str| matches!(tokens.get(at), Some(TokenTree::Ident(found)) if found == word);
    let begins = |at: usize| {
        (0..2).chain(3..5).all(|mark| is_mark(at + mark)) && is_word(at + 2, "whizbang") && is_word(at + 5, "derive")
    };
    let mut replaced = TokenStream::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if begins(at) {
            let span = token.span();
            replaced.extend(root.clone().into_iter().map(|token| located_at(token, span)));
            at += 3;
            continue;
        }
        replaced.extend([match token {
            TokenTree::Group(group) => {
                let mut inside = Group::new(group.delimiter(), replace(group.stream(), root, text));
                inside.set_span(group.span());
                TokenTree::Group(inside)
            }
            // serde's derives receive the path as text.
            TokenTree::Literal(literal) if literal.to_string() == "\"::whizbang::derive::serde\"" => {
                let mut path = Literal::string(&format!("{text}::derive::serde"));
                path.set_span(literal.span());
                TokenTree::Literal(path)
            }
            token => token.clone(),
        }]);
        at += 1;
    }
    replaced
}

/// Returns the token with errors at `span`; it still resolves as before.
fn located_at(mut token: TokenTree, span: Span) -> TokenTree {
    token.set_span(token.span().located_at(span));
    token
}
