//! Rejects references in types that are decoded from bytes.
//!
//! Called by the derives of messages and of `Deserialize`. Calls nothing.
//!
//! A borrowed field would need bytes that live as long as the message. A message is moved to another thread and outlives its bytes.

use proc_macro2::Span;
use quote::ToTokens;
use syn::spanned::Spanned;
use syn::{GenericArgument, PathArguments, Type};

use crate::diagnostics::{Diagnostics, shown};

/// Reports a reference in `ty`; `what` names the type's role in the error.
pub(crate) fn reject(ty: &Type, what: &str, mistakes: &mut Diagnostics) -> bool {
    let Some((found, span)) = reference(ty) else { return false };
    let instead = match found.replace(' ', "").as_str() {
        text if text.ends_with("str") => "write `String`",
        text if text.ends_with(']') => "write `Vec<…>`",
        _ => "write the type without `&`",
    };
    mistakes.add(span, format!("found {}; {what} is read from bytes and owns its data: {instead}", shown(&found)));
    true
}

/// Returns the first reference whose value would be decoded.
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

/// Returns the usual notation of a type.
fn shorter(tokens: &str) -> String {
    tokens.replace("& ", "&").replace("' ", "'")
}
