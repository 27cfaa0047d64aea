//! `#[whizbang::main]` and `#[whizbang::test]`.
//!
//! Called by the entry points. Calls nothing.
//! The user's function stays as it is and is called from a plain one, so its errors point into the user's own code.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{ItemFn, Signature};

use crate::mistakes::Mistakes;

/// Which of the two attributes stands on the function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    Main,
    Test,
}

impl Entry {
    fn attribute(self) -> &'static str {
        match self {
            Self::Main => "#[whizbang::main]",
            Self::Test => "#[whizbang::test]",
        }
    }
}

/// Expands one of the two attributes.
pub(crate) fn expand(entry: Entry, arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut mistakes = Mistakes::default();
    let attribute = entry.attribute();
    let Ok(function) = syn::parse2::<ItemFn>(item.clone()) else {
        let span = item.clone().into_iter().next().map_or_else(proc_macro2::Span::call_site, |token| token.span());
        mistakes.add(
            span,
            format!("{attribute} stands on something that is no function; write `async fn name() {{ … }}` below it"),
        );
        let mistakes = mistakes.into_tokens();
        return quote!(#mistakes #item);
    };
    if let Some(argument) = arguments.into_iter().next() {
        mistakes
            .add(argument.span(), format!("found `{argument}` in {attribute}; it takes nothing: write `{attribute}`"));
    }
    check(&function.sig, attribute, &mut mistakes);
    let mistakes_told = !mistakes.is_empty();
    let told = mistakes.into_tokens();
    if function.sig.asyncness.is_none() || !function.sig.inputs.is_empty() || !function.sig.generics.params.is_empty() {
        // It cannot be called as it is, so what other code sees of it stays the user's own.
        let mut plain = function;
        plain.sig.asyncness = None;
        if mistakes_told
            && entry == Entry::Main
            && (!plain.sig.inputs.is_empty() || !plain.sig.generics.params.is_empty())
        {
            plain.sig.inputs.clear();
            plain.sig.generics = syn::Generics::default();
            plain.sig.output = syn::ReturnType::Default;
            *plain.block = syn::parse_quote!({});
        }
        return quote!(#told #plain);
    }
    let ItemFn { attrs, vis, sig, block, .. } = &function;
    let name = &sig.ident;
    let output = &sig.output;
    let test = match entry {
        Entry::Main => TokenStream::new(),
        Entry::Test => quote_spanned!(name.span()=> #[::core::prelude::v1::test]),
    };
    quote! {
        #told
        #test
        #(#attrs)*
        #vis fn #name() #output {
            #sig #block
            ::whizbang::derive::block_on(#name())
        }
    }
}

fn check(signature: &Signature, attribute: &str, mistakes: &mut Mistakes) {
    let name = &signature.ident;
    if signature.asyncness.is_none() {
        mistakes.add(
            signature.fn_token.span(),
            format!("`{name}` is not async; {attribute} runs async functions: write `async fn {name}`"),
        );
    }
    if let Some(first) = signature.inputs.first() {
        mistakes.add(
            first.span(),
            format!("found a parameter; {attribute} calls `{name}` without any: write `async fn {name}()`"),
        );
    }
    if let Some(first) = signature.generics.params.first() {
        mistakes.add(
            first.span(),
            format!("found a generic parameter; {attribute} calls `{name}` as it is: write `async fn {name}()`"),
        );
    }
}
