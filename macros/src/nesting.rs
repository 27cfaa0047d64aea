//! Refuses messages that contain themselves.
//!
//! Called by the message derives. Calls nothing.
//! bincode reads a value by recursion: hostile bytes would nest a recursive type deeper than the stack and end the process.

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::ext::IdentExt;
use syn::{Attribute, Data, DeriveInput, Field, Ident};

use crate::mistakes::Mistakes;
use crate::shape::with_article;

/// Tells the first field whose type names the message itself.
pub(crate) fn refuse(input: &DeriveInput, word: &str, mistakes: &mut Mistakes) {
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

/// Whether serde never reads the field.
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

/// Where `tokens` name the type: as `Self` or by its own name, not as part of a longer path.
fn mention(tokens: TokenStream, ident: &Ident) -> Option<Ident> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is_colon = |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(mark)) if mark.as_char() == ':');
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if word == "PhantomData" => return None,
            TokenTree::Ident(word) => {
                let before = at.checked_sub(1).and_then(|at| tokens.get(at));
                let names_it = word == "Self" || word.unraw() == *ident;
                if names_it && !is_colon(before) && !is_colon(tokens.get(at + 1)) {
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
