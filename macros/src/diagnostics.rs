//! The mistakes of one item, collected so that each is told once and none hides another.
//!
//! Called by every reader of attributes. Calls nothing.
//! A mistake never ends an expansion: what stands beside it is still read, and a stub keeps its consequences quiet.

use std::fmt::Display;

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::parse::ParseStream;

/// What is wrong with one item.
#[derive(Default)]
pub(crate) struct Mistakes(Vec<syn::Error>);

impl Mistakes {
    /// Notes one mistake at the user's token.
    pub(crate) fn add(&mut self, span: Span, text: impl Display) {
        self.0.push(syn::Error::new(span, text));
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Tells the latest mistake in the place of a type.
    ///
    /// The compiler stays quiet about everything that depends on a type it could not read, so a missing domain or reply is one
    /// error however often the message is used.
    pub(crate) fn in_place_of_type(&mut self) -> TokenStream {
        match self.0.pop() {
            Some(mistake) => {
                let text = mistake.to_string();
                quote_spanned!(mistake.span()=> [(); ::core::compile_error! { #text }])
            }
            None => quote!(()),
        }
    }

    /// One `compile_error!` for each mistake.
    pub(crate) fn into_tokens(self) -> TokenStream {
        self.0.iter().map(syn::Error::to_compile_error).collect()
    }
}

/// How the next token is named in an error, without consuming it.
pub(crate) fn next_token(input: ParseStream<'_>) -> String {
    match input.fork().parse::<TokenTree>() {
        Ok(token) => shown(&token.to_string()),
        Err(_) => "nothing".to_owned(),
    }
}

/// `text` in backticks, cut to a length that fits into a line.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 40;
    if text.chars().count() <= MOST {
        format!("`{text}`")
    } else {
        let start: String = text.chars().take(MOST).collect();
        format!("`{start}…`")
    }
}
