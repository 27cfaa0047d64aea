//! The stored names of an actor's timers.
//!
//! Called by the actor, by the timer loop and by the test kit. Calls nothing.
//! A document of the actor's own domain is stored under its name, `Overdue`; one of another domain under both,
//! `bank.Overdue`, so that two documents of one name are two timers. A name contains no dot, so the two forms are
//! distinct. A timer with a name of its own is stored with it, `Overdue#invoice-7`: no name of a document contains a `#`. The
//! envelope of such a timer carries the name in the header [`TIMER_NAME`]. Stores of older versions contain documents of other domains under their name alone: the [handler
//! table](super::handler_table) resolves them.

use std::borrow::Cow;

use whizbang_core::message::{Envelope, header, is_header_value};

/// The header of a fired timer that has a name of its own.
pub const TIMER_NAME: &str = "whizbang-timer";
/// Longest name of a timer, in bytes.
const MAX_NAME: usize = 128;

/// Returns the stored name of an envelope's timer, for an actor of the domain `own`.
pub(crate) fn timer_in<'a>(own: &str, envelope: &'a Envelope) -> Cow<'a, str> {
    let stored = stored(own, &envelope.domain, &envelope.name);
    match header(&envelope.headers, TIMER_NAME) {
        Some(name) => named(&stored, name).into(),
        None => stored,
    }
}

/// Returns the stored name of a timer with a name of its own.
pub fn named(stored: &str, name: &str) -> String {
    format!("{stored}#{name}")
}

/// Returns whether a text can be the name of a timer: 1 to 128 bytes without control characters and surrounding spaces.
pub(crate) fn is_valid(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && is_header_value(name)
}

/// Splits a stored name into the part for the document and the timer's own name, if it has one.
pub fn own_name(stored: &str) -> (&str, Option<&str>) {
    match stored.split_once('#') {
        Some((document, name)) => (document, Some(name)),
        None => (stored, None),
    }
}

/// Returns the stored name of a document of `domain`, for an actor of the domain `own`.
pub fn stored<'a>(own: &str, domain: &str, name: &'a str) -> Cow<'a, str> {
    if domain == own { name.into() } else { format!("{domain}.{name}").into() }
}

/// Splits a stored name into domain and name; no domain if it is the actor's own.
pub fn parts(stored: &str) -> (Option<&str>, &str) {
    match stored.split_once('.') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, stored),
    }
}
