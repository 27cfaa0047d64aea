//! Parses the lists in attributes: `handles(A, B)`, `formerly = ("a", "b")`, `upcast(1 = A)`.
//!
//! Called by [attribute](crate::attribute). Calls the parsers of single [values](crate::values).
//!
//! A list keeps its good elements after a mistake, so that the rest of the program has no errors about them.

use proc_macro2::Span;
use syn::parse::ParseStream;
use syn::{Ident, LitStr, Token, Type};

use crate::diagnostics::{Diagnostics, next_token};
use crate::values::{read_name, read_number, read_type, skip_to_comma, text_of};

/// One `1 = OldType` of `upcast(…)`.
pub(crate) struct Upcast {
    /// The older version.
    pub(crate) version: u32,
    /// The span of the version.
    pub(crate) span: Span,
    /// The type of messages of this version.
    pub(crate) old: Type,
}

/// Reads one name or a list of them.
///
/// Accepts the content of `formerly("Deposit", "PutIn")`. A repeated name is a mistake and is left out. `None` if the list is
/// empty.
pub(crate) fn read_names(
    key: &Ident,
    input: ParseStream<'_>,
    write: &str,
    mistakes: &mut Diagnostics,
) -> Option<Vec<LitStr>> {
    if input.is_empty() {
        mistakes.add(key.span(), format!("`{key}()` lists nothing; list a name or leave it out; write `{write}`"));
        return None;
    }
    let mut names: Vec<LitStr> = Vec::new();
    while !input.is_empty() {
        let span = input.span();
        let count = mistakes.count();
        if let Some(name) = read_name(input, write, mistakes) {
            if names.iter().any(|before| before.value() == name.value()) {
                mistakes.add(span, format!("found the same name twice in `{key}(…)`; keep one of the two"));
            } else {
                names.push(name);
            }
        }
        end_of_element(key, input, write, mistakes.count() > count, mistakes);
    }
    Some(names)
}

/// Reads a list of types by their paths.
///
/// Accepts the content of `handles(Deposit, bank::Withdraw)`. A type that is listed twice with the same text is a mistake;
/// one that has two texts is found later, by the compiler. `None` if the list is empty.
pub(crate) fn read_paths(
    key: &Ident,
    input: ParseStream<'_>,
    write: &str,
    mistakes: &mut Diagnostics,
) -> Option<Vec<Type>> {
    if input.is_empty() {
        mistakes.add(key.span(), format!("`{key}()` lists nothing; list a type or leave it out; write `{write}`"));
        return None;
    }
    let mut types: Vec<Type> = Vec::new();
    while !input.is_empty() {
        let span = input.span();
        let count = mistakes.count();
        if let Some(ty) = read_type(input, false, write, mistakes) {
            if types.iter().any(|before| text_of(before) == text_of(&ty)) {
                mistakes.add(span, format!("found the same type twice in `{key}(…)`; keep one of the two"));
            } else {
                types.push(ty);
            }
        }
        end_of_element(key, input, write, mistakes.count() > count, mistakes);
    }
    Some(types)
}

/// Reads a list of versions with their types.
///
/// Accepts the content of `upcast(1 = DepositV1, 2 = DepositV2)`. The order and the completeness of the versions are checked
/// by [versions](crate::versions). `None` if the list is empty.
pub(crate) fn read_upcasts(
    key: &Ident,
    input: ParseStream<'_>,
    write: &str,
    mistakes: &mut Diagnostics,
) -> Option<Vec<Upcast>> {
    if input.is_empty() {
        mistakes.add(
            key.span(),
            format!("`{key}()` lists nothing; list the older versions or leave it out; write `{write}`"),
        );
        return None;
    }
    let mut upcasts = Vec::new();
    while !input.is_empty() {
        let span = input.span();
        let count = mistakes.count();
        let found = next_token(input);
        match read_number(input) {
            Some(version) if input.parse::<Token![=]>().is_ok() => {
                if let Some(old) = read_type(input, false, write, mistakes) {
                    upcasts.push(Upcast { version, span, old });
                }
            }
            Some(version) => mistakes
                .add(span, format!("found version {version} without a type; expected its type; write `{write}`")),
            None => {
                mistakes.add(span, format!("found {found}; expected an older version and its type; write `{write}`"))
            }
        }
        end_of_element(key, input, write, mistakes.count() > count, mistakes);
    }
    Some(upcasts)
}

/// Parses the end of a list element: a comma, the end of the list, or a mistake.
///
/// `is_reported` is true if the element itself was a mistake: then what follows it is skipped without a second one.
fn end_of_element(key: &Ident, input: ParseStream<'_>, write: &str, is_reported: bool, mistakes: &mut Diagnostics) {
    if input.is_empty() || input.parse::<Token![,]>().is_ok() {
        return;
    }
    if !is_reported {
        let found = next_token(input);
        mistakes.add(input.span(), format!("found {found} in `{key}(…)`; expected `,` or its end; write `{write}`"));
    }
    skip_to_comma(input);
    let _ = input.parse::<Token![,]>();
}
