//! Rejects fields that contain shared or mutable data: `Rc`, `Cell`, `RefCell`, `Mutex` and similar types.
//!
//! Called by the derives of messages and states. Calls nothing. A message is bytes between two threads, and a state is
//! the fold of its events: a change of a `Cell` in a handler is in no event, so it is lost in the next rebuild. Only
//! well-known type names are detected.
//!
//! The check reads names, not types: `type Shared = Rc<str>` is not found. It is a help for the frequent mistake and no proof; the
//! replay of the simulation finds state that is kept outside of events.

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::DeriveInput;

use crate::diagnostics::Diagnostics;
use crate::fields::Item;
use crate::recursion::without_phantoms;
use crate::shape::{header, with_article};

/// The types, and their modules.
const SHARED: &[&str] = &["Rc"];
/// Types whose value changes behind a shared reference.
const CHANGEABLE: &[&str] = &["Cell", "RefCell", "OnceCell", "UnsafeCell", "Mutex", "RwLock"];
/// The modules in which these names are the known types.
const MODULES: &[&str] = &["rc", "cell", "sync", "parking_lot"];

/// Reports the first such field of a message.
pub(crate) fn reject_in_message(item: &Item<'_>, word: &str, mistakes: &mut Diagnostics) {
    reject(item, mistakes, |found| {
        format!(
            "found `{found}` in {}; a message is bytes between two actors, so nothing in it can be shared or changed from outside: store \
             the value itself",
            with_article(word)
        )
    });
}

/// Reports the first such field of a state.
pub(crate) fn reject_in_state(item: &Item<'_>, word: &str, mistakes: &mut Diagnostics) {
    reject(item, mistakes, |found| {
        format!(
            "found `{found}` in the state of {}; a state is the fold of its events, and any other change is lost when it is \
             rebuilt: store the value itself, and change it in `apply`",
            with_article(word)
        )
    });
}

/// Reports the first field with a type that must not be there.
fn reject(item: &Item<'_>, mistakes: &mut Diagnostics, text: impl Fn(&Ident) -> String) {
    for part in item.parts() {
        if let Some(found) = mention(part.field.ty.to_token_stream(), &[SHARED, CHANGEABLE]) {
            return mistakes.add(found.span(), text(&found));
        }
    }
}

/// Returns whether the derives of a message have rejected an item because a value in it cannot be sent.
pub(crate) fn is_rejected_message(input: &DeriveInput) -> bool {
    let is_message = |name| input.attrs.iter().any(|attribute| attribute.path().is_ident(name));
    ["command", "event", "query", "document"].into_iter().any(is_message) && is_shared(&Item::of(input))
}

/// Returns whether a field shares its value.
fn is_shared(item: &Item<'_>) -> bool {
    item.parts().any(|part| mention(part.field.ty.to_token_stream(), &[SHARED]).is_some())
}

/// Returns a stub that keeps the compiler from reporting again that a rejected item cannot be sent.
pub(crate) fn stub(item: &Item<'_>, input: &DeriveInput) -> TokenStream {
    if !is_shared(item) {
        return TokenStream::new();
    }
    let header = header(input, &quote!(::core::marker::Send), &quote!('static));
    quote!(#[automatically_derived] #[allow(unsafe_code)] unsafe #header {})
}

/// Returns the first identifier in `tokens` that names one of the types with parameters, by its own name or with its module.
/// Types in the parameters of `PhantomData` do not count: it has no value of them.
fn mention(tokens: TokenStream, names: &[&[&str]]) -> Option<Ident> {
    let tokens: Vec<TokenTree> = without_phantoms(tokens).into_iter().collect();
    let is = |token: Option<&TokenTree>, mark: char| matches!(token, Some(TokenTree::Punct(found)) if found.as_char() == mark);
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if names.iter().any(|names| names.iter().any(|name| word == name)) => {
                let module = match at.checked_sub(3).map(|at| tokens.get(at)) {
                    Some(Some(TokenTree::Ident(module))) if is(tokens.get(at - 1), ':') => Some(module),
                    _ => None,
                };
                // `::Cell` alone, or in another module, is a type of the program.
                let is_known = match module {
                    Some(module) => MODULES.iter().any(|known| module == known),
                    None => at == 0 || !is(tokens.get(at - 1), ':'),
                };
                if is_known && is(tokens.get(at + 1), '<') {
                    return Some(word.clone());
                }
            }
            TokenTree::Group(group) => {
                if let Some(found) = mention(group.stream(), names) {
                    return Some(found);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_and_changeable_fields_are_found() {
        let finds = |item: &str| {
            let input: DeriveInput = syn::parse_str(item).expect("the item is one");
            let mut mistakes = Diagnostics::default();
            reject_in_message(&Item::of(&input), "event", &mut mistakes);
            mistakes.count()
        };
        for item in [
            "struct E { a: Rc<str> }",
            "struct E(u8, std::cell::Cell<u8>);",
            "struct E { a: Vec<(u8, Option<RefCell<u8>>)> }",
            "enum E { A, B { a: Arc<Mutex<u8>> } }",
            "struct E { a: [parking_lot::RwLock<u8>; 2], b: Rc<u8> }",
        ] {
            assert_eq!(finds(item), 1, "{item}");
        }
        for item in [
            "struct E { a: Arc<str>, b: Box<u8> }",
            "struct E { a: self::Cell<u8>, b: grid::Cell<u8>, c: ::Cell<u8> }",
            "struct E { a: Cell }",
            "struct E { a: PhantomData<Rc<u8>> }",
        ] {
            assert_eq!(finds(item), 0, "{item}");
        }
    }
}
