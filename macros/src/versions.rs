//! The versions of a message: the older ones that are read, and the one that is written.
//!
//! Called by the [message derives](crate::message).
//!
//! A message of version 3 needs one way from each older version: `upcast(1 = A, 2 = B)` reads `A` and `B` with their own types and
//! converts them with `From`. `split` is the same for an event that has become several. `writes = 2` keeps the wire at an older version
//! until all nodes of a rolling upgrade know the new one.

use proc_macro2::{Ident, Span, TokenStream};
use quote::quote_spanned;
use syn::spanned::Spanned as _;

use crate::attribute::Given;
use crate::diagnostics::Diagnostics;
use crate::lists::Upcast;

/// Checks that every version before the current one has exactly one upcaster.
///
/// Upcasters and splits are checked together: a version has one or the other. A missing version is reported only if there is
/// no other mistake, since a mistyped number explains it.
pub(crate) fn check(given: &Given, version: u32, mistakes: &mut Diagnostics) {
    let upcasts: Vec<_> = given.upcasts("upcast").iter().chain(given.upcasts("split")).collect();
    for (at, upcast) in upcasts.iter().enumerate() {
        let found = upcast.version;
        if found == 0 {
            mistakes.add(upcast.span, "found version 0; versions count from 1");
        } else if found >= version {
            mistakes.add(
                upcast.span,
                format!("found version {found}, which is not older than the message's `version = {version}`; raise `version` or leave this out"),
            );
        } else if upcasts.iter().take(at).any(|before| before.version == found) {
            mistakes.add(upcast.span, format!("found version {found} twice; keep one of the two"));
        }
    }
    // A missing version is certain only if the given ones are correct.
    if !mistakes.is_empty() {
        return;
    }
    let known: std::collections::BTreeSet<u32> = upcasts.iter().map(|upcast| upcast.version).collect();
    if let Some(missing) = (1..version).find(|version| !known.contains(version)) {
        let span = match (given.key("upcast").or(given.key("split")), given.number("version")) {
            (Some(key), _) => key.span(),
            (None, Some((_, span))) => span,
            (None, None) => return,
        };
        mistakes.add(
            span,
            format!(
                "version {missing} has no upcaster, so stored messages of that version could not be decoded; \
                 write `upcast({missing} = OldType)` with the type that version {missing} had"
            ),
        );
    }
}

/// Checks that the version that is written has an upcaster.
///
/// `writes` must be an older version, and one with an upcaster: the type of that version is what is encoded. A version that
/// is split is several events and cannot be written as one.
pub(crate) fn check_written(given: &Given, version: u32, mistakes: &mut Diagnostics) {
    let Some((writes, span)) = given.number("writes") else { return };
    if writes >= version {
        mistakes.add(
            span,
            format!(
                "found `writes = {writes}`, which is not older than the message's `version = {version}`; leave it out"
            ),
        );
    } else if given.upcasts("split").iter().any(|split| split.version == writes) {
        mistakes.add(
            span,
            format!(
                "version {writes} is split into several events, so one event cannot be written as it; leave this out"
            ),
        );
    }
}

/// Returns the older version that is written in place of the current one.
///
/// `None` if the current version is written, which is the normal case.
pub(crate) fn written_version(given: &Given) -> Option<&Upcast> {
    let (writes, _) = given.number("writes")?;
    given.upcasts("upcast").iter().find(|upcast| upcast.version == writes)
}

/// Returns the constant that decodes an older version.
///
/// The name contains the number, so that an error in the conversion shows which version it is about.
pub(crate) fn older_version(upcast: &Upcast) -> Ident {
    Ident::new(&format!("__WHIZBANG_VERSION_{}", upcast.version), Span::call_site())
}

/// Generates one constant per older version, the only place that requires its conversion.
///
/// Each constant holds the functions that decode the older type and convert it. The spans are those of the older types, so a
/// missing `From` is reported at the type in the attribute.
pub(crate) fn require_older(given: &Given, ident: &Ident) -> TokenStream {
    let require = |read: &str, held: &str, upcast: &Upcast| {
        let span = upcast.old.span();
        let (constant, old) = (older_version(upcast), &upcast.old);
        let (read, held) = (Ident::new(read, span), Ident::new(held, span));
        let mut ident = ident.clone();
        ident.set_span(span);
        quote_spanned!(span=>
            const #constant: ::whizbang::derive::#held<#ident> = ::whizbang::derive::#read::<#old, #ident>();
        )
    };
    let upcasts = given.upcasts("upcast").iter().map(|upcast| require("upcast", "Upcasting", upcast));
    let splits = given.upcasts("split").iter().map(|split| require("split", "Splitting", split));
    let written = written_version(given).map(|upcast| {
        let (span, old) = (upcast.old.span(), &upcast.old);
        let mut ident = ident.clone();
        ident.set_span(span);
        let downcast = Ident::new("downcast", span);
        quote_spanned!(span=>
            const __WHIZBANG_WRITTEN: ::whizbang::derive::Downcasting<#ident> = ::whizbang::derive::#downcast::<#old, #ident>();
        )
    });
    upcasts.chain(splits).chain(written).collect()
}
