//! Rejects messages that contain themselves.
//!
//! Called by the message derives. Calls nothing. bincode decodes a value by recursion: malicious bytes would nest a
//! recursive type deeper than the stack and end the process.
//!
//! Only direct mentions are found: two messages that contain each other need two types with names, and the second one is not visible
//! to the derive of the first.

use proc_macro2::{Group, TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::{Attribute, Data, DeriveInput, Field, Ident};

use crate::diagnostics::Diagnostics;
use crate::shape::with_article;

/// Reports the first field whose type names the message itself.
///
/// `word` names the kind of message for the error. Fields that serde does not decode are not considered. One mistake is
/// reported for a message, because its cure usually changes the other fields as well.
pub(crate) fn reject(input: &DeriveInput, word: &str, mistakes: &mut Diagnostics) {
    let fields: Vec<&Field> = match &input.data {
        Data::Struct(data) => data.fields.iter().collect(),
        Data::Enum(data) => data.variants.iter().flat_map(|variant| variant.fields.iter()).collect(),
        Data::Union(_) => return,
    };
    let ident = input.ident.unraw();
    for field in fields {
        if is_skipped(&field.attrs) {
            continue;
        }
        if let Some(found) = mention(field.ty.to_token_stream(), &ident) {
            mistakes.add(
                found.span(),
                format!(
                    "`{ident}` contains itself; {} must not, because hostile bytes could nest it deeper than the stack: \
                     write the parts as a flat list that refer to each other by key or index",
                    with_article(word)
                ),
            );
            return;
        }
    }
}

/// Returns whether serde never decodes the field.
fn is_skipped(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("serde")).any(|attribute| {
        let tokens = attribute.meta.to_token_stream();
        tokens.into_iter().any(|token| match token {
            TokenTree::Group(group) => group.stream().into_iter().any(
                |token| matches!(&token, TokenTree::Ident(word) if word == "skip" || word == "skip_deserializing"),
            ),
            _ => false,
        })
    })
}

/// Returns the first identifier in `tokens` that names the type, as `Self` or by its own name, not as part of a longer
/// path.
///
/// The search covers every depth: arguments of types, tuples, arrays and functions. `other::Tree` and `Tree::Leaf` name other
/// types and are not found.
fn mention(tokens: TokenStream, ident: &Ident) -> Option<Ident> {
    let tokens: Vec<TokenTree> = without_phantoms(tokens).into_iter().collect();
    let is_colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    let back = |at: usize, by: usize| at.checked_sub(by).and_then(|at| tokens.get(at));
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) => {
                // `self::Tree` is `Tree`; a longer path names another type.
                let is_here =
                    matches!(back(at, 3), Some(TokenTree::Ident(module)) if module == "self") && !is_colon(back(at, 4));
                let names_it = word == "Self" || word.unraw() == *ident;
                if names_it && (is_here || !is_colon(back(at, 1))) && !is_colon(tokens.get(at + 1)) {
                    return Some(word.clone());
                }
            }
            TokenTree::Group(group) => {
                if let Some(found) = mention(group.stream(), ident) {
                    return Some(found);
                }
            }
            _ => {}
        }
    }
    None
}

/// Returns the tokens of a type without the parameters of each `PhantomData`, which contains no value of them.
///
/// The name `PhantomData` itself stays. Angle brackets are not groups in the tokens, so they are counted, and the `>` of an
/// arrow `->` is not.
pub(crate) fn without_phantoms(tokens: TokenStream) -> TokenStream {
    let mut kept = TokenStream::new();
    let mut tokens = tokens.into_iter().peekable();
    let is = |token: Option<&TokenTree>, mark: char| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == mark);
    while let Some(token) = tokens.next() {
        let is_phantom = matches!(&token, TokenTree::Ident(word) if word == "PhantomData");
        kept.extend([match token {
            TokenTree::Group(group) => {
                let mut inside = Group::new(group.delimiter(), without_phantoms(group.stream()));
                inside.set_span(group.span());
                TokenTree::Group(inside)
            }
            token => token,
        }]);
        if !is_phantom {
            continue;
        }
        while is(tokens.peek(), ':') {
            tokens.next();
        }
        if !is(tokens.peek(), '<') {
            continue;
        }
        let (mut open, mut is_arrow) = (0_usize, false);
        for token in tokens.by_ref() {
            if is(Some(&token), '<') {
                open += 1;
            } else if is(Some(&token), '>') && !is_arrow {
                open -= 1;
            }
            is_arrow = is(Some(&token), '-');
            if open == 0 {
                break;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_mentioned(ty: &str) -> bool {
        mention(ty.parse().expect("the type is tokens"), &quote::format_ident!("Tree")).is_some()
    }

    #[test]
    fn recursion_is_found_at_every_position_in_a_type() {
        for ty in [
            "Tree",
            "Self",
            "Box<Self>",
            "Vec<(u8, Tree)>",
            "[Box<Tree>; 2]",
            "Vec<(PhantomData<u8>, Tree)>",
            "(std::marker::PhantomData<fn(Tree) -> Vec<Tree>>, Option<Box<Tree>>)",
            "Result<PhantomData<Tree>, Tree>",
            "HashMap<String, Vec<[Tree; 4]>>",
            "std::vec::Vec<self::Tree>",
        ] {
            assert!(is_mentioned(ty), "{ty}");
        }
    }

    #[test]
    fn names_of_other_types_are_not_recursion() {
        for ty in [
            "u8",
            "other::Tree",
            "Tree::Leaf",
            "PhantomData<Tree>",
            "PhantomData::<fn() -> Tree>",
            "(PhantomData<Vec<Tree>>, u8)",
            "Vec<PhantomData<fn(&Tree) -> Tree>>",
        ] {
            assert!(!is_mentioned(ty), "{ty}");
        }
    }
}
