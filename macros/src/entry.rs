//! `#[whizbang::main]` and `#[whizbang::test]`.
//!
//! Called by the entry points. Calls [root](crate::root) for the user's input. The user's function is kept and called
//! from a synchronous one, so its errors point into the user's own code.
//!
//! # Input and output
//!
//! ```text
//! #[whizbang::main]
//! async fn main() -> Result<(), Error> { … }
//! ```
//!
//! becomes:
//!
//! ```text
//! fn main() -> Result<(), Error> {
//!     async fn main() -> Result<(), Error> { … }
//!     ::whizbang::derive::block_on(main())
//! }
//! ```
//!
//! `block_on` provides what a node without threads of its own needs: a runtime with one thread, and a `LocalSet`.

use proc_macro2::{Span, TokenStream, TokenTree};
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{ItemFn, Safety, Signature, Token};

use crate::diagnostics::Diagnostics;
use crate::root;

/// The attribute on the function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// `#[whizbang::main]`.
    Main,
    /// `#[whizbang::test]`, which also makes the function a test.
    Test,
}

impl Entry {
    /// Returns the name of the attribute, for errors.
    fn attribute(self) -> &'static str {
        match self {
            Self::Main => "#[whizbang::main]",
            Self::Test => "#[whizbang::test]",
        }
    }
}

/// Expands one of the two attributes. A function with a parameter or a generic parameter is kept as it is beside its mistake,
/// so that its body has no further errors.
pub(crate) fn expand(entry: Entry, arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut mistakes = Diagnostics::default();
    let attribute = entry.attribute();
    let mut function = match syn::parse2::<ItemFn>(item.clone()) {
        Ok(function) => function,
        Err(error) => {
            report_not_a_function(attribute, &item, &error, &mut mistakes);
            let mistakes = mistakes.into_tokens();
            return quote!(#mistakes #item);
        }
    };
    let given = root::given(arguments, attribute, &mut mistakes);
    check(&function.sig, attribute, &mut mistakes);
    let mistakes = mistakes.into_tokens();
    // A missing `async` was reported. It is added so that an `.await` inside is not a second error.
    let fn_token = function.sig.fn_token;
    function.sig.asyncness.get_or_insert_with(|| Token![async](fn_token.span));
    function.sig.safety = Safety::Default;
    let ItemFn { attrs, vis, sig, block, .. } = &function;
    let (name, output) = (&sig.ident, &sig.output);
    if !sig.inputs.is_empty() || !sig.generics.params.is_empty() {
        return quote! {
            #mistakes
            #vis fn #name() {
                #[allow(dead_code)]
                #(#attrs)*
                #sig #block
            }
        };
    }
    let test = match entry {
        Entry::Main => TokenStream::new(),
        Entry::Test => quote_spanned!(name.span()=> #[::core::prelude::v1::test]),
    };
    let output = quote! {
        #mistakes
        #test
        #(#attrs)*
        #vis fn #name() #output {
            #sig #block
            ::whizbang::derive::block_on(#name())
        }
    };
    match given.ty("crate") {
        Some(root) => root::with_root(output, root),
        None => output,
    }
}

/// Reports why the item cannot be run.
fn report_not_a_function(attribute: &str, item: &TokenStream, error: &syn::Error, mistakes: &mut Diagnostics) {
    let mut tokens = item.clone().into_iter();
    if tokens.any(|token| matches!(token, TokenTree::Ident(word) if word == "fn")) {
        mistakes.add(error.span(), error);
        return;
    }
    let span = item.clone().into_iter().next().map_or_else(Span::call_site, |token| token.span());
    mistakes.add(
        span,
        format!("{attribute} is on an item that is not a function; write `async fn name() {{ … }}` below it"),
    );
}

/// Reports what the entry function must not have.
fn check(signature: &Signature, attribute: &str, mistakes: &mut Diagnostics) {
    let name = &signature.ident;
    if signature.asyncness.is_none() {
        mistakes.add(
            signature.fn_token.span(),
            format!("`{name}` is not async; {attribute} runs async functions: write `async fn {name}`"),
        );
    }
    if let Safety::Unsafe(unsafety) = &signature.safety {
        mistakes.add(
            unsafety.span(),
            format!(
                "`{name}` is unsafe; {attribute} calls it in safe code: write `async fn {name}`, with `unsafe` inside"
            ),
        );
    }
    if let Some(first) = signature.inputs.first() {
        mistakes.add(
            first.span(),
            format!("found a parameter; {attribute} calls `{name}` without arguments: write `async fn {name}()`"),
        );
    }
    if let Some(first) = signature.generics.params.first() {
        mistakes.add(
            first.span(),
            format!("found a generic parameter; {attribute} calls `{name}` without generic arguments: write `async fn {name}()`"),
        );
    }
}
