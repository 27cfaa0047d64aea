//! The name under which an actor's timer stands in the store.
//!
//! Called by the actor, by the task that rings timers and by the test kit. Calls nothing.
//! A document of the actor's own domain stands under its name, `Overdue`; one of another domain under both, `bank.Overdue`, so
//! that two documents of one name are two timers. A dot is in no name, so the two cannot be mixed up. Stores of older versions
//! hold documents of other domains under their name alone: `Plan` says which one that means.

use std::borrow::Cow;

use super::Stateful;
use crate::message::{Domain, Envelope, Message};

/// The stored name of the timer `T` of the actor `A`.
pub(crate) fn timer_name<A: Stateful, T: Message>() -> Cow<'static, str> {
    stored(A::Domain::NAME, T::Domain::NAME, T::NAME)
}

/// The stored name of the timer that an envelope brings to an actor of the domain `own`.
pub(crate) fn timer_in<'a>(own: &str, envelope: &'a Envelope) -> Cow<'a, str> {
    stored(own, &envelope.domain, &envelope.name)
}

/// The stored name of a document of `domain`, for an actor of the domain `own`.
pub(crate) fn stored<'a>(own: &str, domain: &str, name: &'a str) -> Cow<'a, str> {
    if domain == own { name.into() } else { format!("{domain}.{name}").into() }
}

/// The domain and the name in a stored name; no domain if it is the actor's own.
pub(crate) fn parts(stored: &str) -> (Option<&str>, &str) {
    match stored.split_once('.') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, stored),
    }
}
