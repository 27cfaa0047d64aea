//! The mistakes of one item, collected so that each is reported once and none hides another.
//!
//! Called by every parser of attributes. Calls nothing. A mistake never ends an expansion: the rest is still parsed,
//! and a stub suppresses follow-up errors.
//!
//! The compiler reports an error for every use of a type that has no implementation. So an item with a mistake gets a stub of each
//! implementation beside its `compile_error!`, and the user sees one error for one mistake.

use std::fmt::Display;

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::parse::ParseStream;

/// The mistakes in one item.
#[derive(Default)]
pub(crate) struct Diagnostics(Vec<syn::Error>);

impl Diagnostics {
    /// Adds one mistake at the user's token.
    pub(crate) fn add(&mut self, span: Span, text: impl Display) {
        self.0.push(syn::Error::new(span, text));
    }

    /// Returns whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of mistakes.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Reports the latest mistake in the position of a type.
    ///
    /// The compiler reports nothing that depends on a type it could not parse, so a missing domain or reply is one
    /// error regardless of how often the message is used.
    pub(crate) fn instead_of_type(&mut self) -> TokenStream {
        match self.0.pop() {
            Some(mistake) => {
                let text = mistake.to_string();
                quote_spanned!(mistake.span()=> [(); ::core::compile_error! { #text }])
            }
            None => quote!(()),
        }
    }

    /// Returns one `compile_error!` for each mistake.
    pub(crate) fn into_tokens(self) -> TokenStream {
        self.0.iter().map(syn::Error::to_compile_error).collect()
    }
}

/// Returns the next token as an error shows it, without consuming it.
pub(crate) fn next_token(input: ParseStream<'_>) -> String {
    match input.fork().parse::<TokenTree>() {
        Ok(token) => shown(&token.to_string()),
        Err(_) => "nothing".to_owned(),
    }
}

/// Returns `text` in backticks, shortened to fit into a line.
pub(crate) fn shown(text: &str) -> String {
    const MOST: usize = 40;
    if text.chars().count() <= MOST {
        format!("`{text}`")
    } else {
        let start: String = text.chars().take(MOST).collect();
        format!("`{start}…`")
    }
}
