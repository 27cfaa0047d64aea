//! The stored names of an actor's timers.
//!
//! Called by the actor, by the timer loop and by the test kit. Calls nothing.
//! A document of the actor's own domain is stored under its name, `Overdue`; one of another domain under both,
//! `bank.Overdue`, so that two documents of one name are two timers. A name contains no dot, so the two forms are
//! distinct. Stores of older versions contain documents of other domains under their name alone: the [handler
//! table](super::handler_table) resolves them.

use std::borrow::Cow;

use super::Stateful;
use whizbang_core::message::{Domain, Envelope, Message};

/// Returns the stored name of the timer `T` of the actor `A`.
pub fn timer_name<A: Stateful, T: Message>() -> Cow<'static, str> {
    stored(A::Domain::NAME, T::Domain::NAME, T::NAME)
}

/// Returns the stored name of an envelope's timer, for an actor of the domain `own`.
pub(crate) fn timer_in<'a>(own: &str, envelope: &'a Envelope) -> Cow<'a, str> {
    stored(own, &envelope.domain, &envelope.name)
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
