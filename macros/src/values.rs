//! Parses the values in attributes: a name, a number, a type.
//!
//! Called by [attribute](crate::attribute) and [lists](crate::lists). Each function reports its own mistake with an example of the
//! right form, and returns `None` after it.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::{ParseBuffer, ParseStream};
use syn::{LitInt, LitStr, Token, Type, parenthesized};

use crate::diagnostics::{Diagnostics, next_token, shown};
use crate::names;

/// Returns the content of the next parentheses.
pub(crate) fn open(input: ParseStream<'_>) -> syn::Result<ParseBuffer<'_>> {
    let content;
    parenthesized!(content in input);
    Ok(content)
}

/// Reads and validates a name.
pub(crate) fn read_name(input: ParseStream<'_>, write: &str, mistakes: &mut Diagnostics) -> Option<LitStr> {
    let span = input.span();
    let found = next_token(input);
    match input.parse::<LitStr>() {
        Ok(text) if names::is_valid(&text.value()) => Some(text),
        Ok(text) => {
            let length = text.value().len();
            let found = shown(&text.value());
            mistakes.add(
                span,
                format!("{found} ({length} bytes) is not a valid name: use {}; write `{write}`", names::RULE),
            );
            None
        }
        Err(_) => {
            mistakes.add(span, format!("found {found}; expected a name in quotes; write `{write}`"));
            None
        }
    }
}

/// Reads a number without a suffix.
///
/// `None` for another token, a number with a suffix such as `7u32`, and one that is greater than [`u32::MAX`].
pub(crate) fn read_number(input: ParseStream<'_>) -> Option<u32> {
    let number = input.parse::<LitInt>().ok()?;
    if number.suffix().is_empty() { number.base10_parse().ok() } else { None }
}

/// Parses a type; only a path unless `any` is set.
pub(crate) fn read_type(input: ParseStream<'_>, any: bool, write: &str, mistakes: &mut Diagnostics) -> Option<Type> {
    let span = input.span();
    let found = next_token(input);
    if let Ok(text) = input.parse::<LitStr>() {
        mistakes.add(span, format!("found {found} in quotes; expected a type; write `{write}`"));
        return text.parse().ok();
    }
    let broken = shown(&up_to_comma(input));
    match input.parse::<Type>().map(bare) {
        Ok(ty @ Type::Path(_)) => Some(ty),
        Ok(Type::Infer(_) | Type::ImplTrait(_)) | Err(_) => {
            mistakes.add(span, format!("found {broken}; expected a type; write `{write}`"));
            None
        }
        Ok(ty) if any => Some(ty),
        Ok(_) => {
            mistakes.add(span, format!("found {found}; expected the name of a type; write `{write}`"));
            None
        }
    }
}

/// Removes parentheses, including the invisible ones around a `$domain:ty` of a macro by example.
///
/// A type that came through a macro of the user is wrapped in an invisible group. It would otherwise not be recognized as a
/// path.
fn bare(ty: Type) -> Type {
    match ty {
        Type::Group(group) => bare(*group.elem),
        Type::Paren(paren) => bare(*paren.elem),
        ty => ty,
    }
}

/// Returns the type's text for comparison; two types may be equal with different texts.
pub(crate) fn text_of(ty: &Type) -> String {
    let text = ty.to_token_stream().to_string();
    text.strip_prefix("self :: ").map_or_else(|| text.clone(), str::to_owned)
}

/// Returns the text before the next comma without consuming it.
fn up_to_comma(input: ParseStream<'_>) -> String {
    let fork = input.fork();
    let mut tokens = TokenStream::new();
    while !fork.is_empty() && !fork.peek(Token![,]) {
        let Ok(token) = fork.parse::<TokenTree>() else { break };
        tokens.extend([token]);
    }
    tokens.to_string()
}

/// Skips the rest of a value after a mistake, so that the next key is read.
///
/// Groups are one token, so commas inside parentheses do not end it.
pub(crate) fn skip_to_comma(input: ParseStream<'_>) {
    while !input.is_empty() && !input.peek(Token![,]) {
        if input.parse::<TokenTree>().is_err() {
            return;
        }
    }
}
