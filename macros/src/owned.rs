//! Refuses references in what is read from bytes.
//!
//! Called by the derives of messages and of `Deserialize`. Calls nothing.

use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{GenericArgument, PathArguments, Type};

use crate::diagnostics::{Mistakes, shown};

/// Reports a reference in `ty`, which `what` of the program has.
pub(crate) fn refuse(ty: &Type, what: &str, mistakes: &mut Mistakes) -> bool {
    let Some((found, span)) = reference(ty) else { return false };
    let instead = match found.replace(' ', "").as_str() {
        text if text.ends_with("str") => "write `String`",
        text if text.ends_with(']') => "write `Vec<…>`",
        _ => "write the type without `&`",
    };
    mistakes.add(span, format!("found {}; {what} is read from bytes and owns its data: {instead}", shown(&found)));
    true
}

/// The first reference whose value would be read.
fn reference(ty: &Type) -> Option<(String, Span)> {
    match ty {
        Type::Reference(found) => Some((shorter(&found.to_token_stream().to_string()), found.and_token.span())),
        Type::Path(path) => {
            let last = path.path.segments.last().filter(|last| last.ident != "PhantomData")?;
            let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
            arguments.args.iter().find_map(|argument| match argument {
                GenericArgument::Type(ty) => reference(ty),
                _ => None,
            })
        }
        Type::Tuple(tuple) => tuple.elems.iter().find_map(reference),
        Type::Array(array) => reference(&array.elem),
        Type::Group(group) => reference(&group.elem),
        Type::Paren(paren) => reference(&paren.elem),
        _ => None,
    }
}

/// A type as people write it.
fn shorter(tokens: &str) -> String {
    tokens.replace("& ", "&").replace("' ", "'")
}
