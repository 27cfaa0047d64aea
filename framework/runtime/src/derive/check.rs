//! Bounds that turn a mistake in a list into one error with the fix.
//!
//! Called by derived code. Calls nothing at run time: the compiler evaluates the checks.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::actor::{Answer, Stateful};
use crate::aggregate::{Apply, Handle, OnReply, React};
use crate::projection::{Project, Projection};
use crate::saga::OnTimer;
use crate::worker::{OnEvent, OnEventBatch, OnJobReply, Perform, PerformBatch, Worker};
use whizbang_core::message::{Codec, CodecError, Command, Document, Domain, Event, Key, Message, Of, Query, Shape};

/// The type of a field marked `#[key]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a key",
    label = "expected text, an integer or a UUID",
    note = "use `String`, an integer or `uuid::Uuid`, or write `impl<'a> From<&'a {Self}> for Key<'a>` for a type of your own"
)]
pub trait KeyField {
    /// Returns the key in the field.
    fn key(&self) -> Key<'_>;
}

#[diagnostic::do_not_recommend]
impl<T> KeyField for T
where
    for<'a> Key<'a>: From<&'a T>,
{
    fn key(&self) -> Key<'_> {
        Key::from(self)
    }
}

/// The type of an older version of the message `New`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be upcast to `{New}`",
    label = "expected the type of an older version",
    note = "derive `Deserialize` for `{Self}` and write `impl From<{Self}> for {New}`"
)]
pub trait Upcast<New>: Sized {
    /// Decodes the older version and converts it to the current one.
    ///
    /// # Errors
    /// Decoding failed.
    fn upcast(codec: Codec, bytes: &[u8]) -> Result<New, CodecError>;

    /// Returns the shape of the older version.
    fn shape(codec: Codec) -> Arc<Shape>;
}

#[diagnostic::do_not_recommend]
impl<Old: DeserializeOwned + Into<New> + 'static, New> Upcast<New> for Old {
    fn upcast(codec: Codec, bytes: &[u8]) -> Result<New, CodecError> {
        codec.decode::<Old>(bytes).map(Old::into)
    }

    fn shape(codec: Codec) -> Arc<Shape> {
        Shape::of::<Old>(codec)
    }
}

/// The type of an older version that is still written in place of the message `New`.
#[diagnostic::on_unimplemented(
    message = "`{New}` cannot be written as `{Self}`",
    label = "expected the type of the version that is written",
    note = "derive `Serialize` for `{Self}` and write `impl From<&{New}> for {Self}`"
)]
pub trait Downcast<New> {
    /// Appends the message to `into`, converted to the older version.
    ///
    /// # Errors
    /// Encoding failed.
    fn downcast(message: &New, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError>;
}

#[diagnostic::do_not_recommend]
impl<Old: Serialize + for<'a> From<&'a New>, New> Downcast<New> for Old {
    fn downcast(message: &New, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> {
        codec.encode(&Old::from(message), into)
    }
}

/// The type of an older version of the event `New`, which was split into several events.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be split into `{New}`",
    label = "expected the type of an older version",
    note = "derive `Deserialize` for `{Self}` and write `impl From<{Self}> for Vec<{New}>`"
)]
pub trait Split<New>: Sized {
    /// Decodes the older version and converts it to the current events.
    ///
    /// # Errors
    /// Decoding failed.
    fn split(codec: Codec, bytes: &[u8]) -> Result<Vec<New>, CodecError>;

    /// Returns the shape of the older version.
    fn shape(codec: Codec) -> Arc<Shape>;
}

#[diagnostic::do_not_recommend]
impl<Old: DeserializeOwned + Into<Vec<New>> + 'static, New> Split<New> for Old {
    fn split(codec: Codec, bytes: &[u8]) -> Result<Vec<New>, CodecError> {
        codec.decode::<Old>(bytes).map(Old::into)
    }

    fn shape(codec: Codec) -> Arc<Shape> {
        Shape::of::<Old>(codec)
    }
}

/// Fails the compilation with `text` if the codec is bincode, which cannot decode such a message.
///
/// # Panics
/// In the compiler, which evaluates it.
#[track_caller]
pub const fn not_in_bincode(codec: Codec, text: &'static str) {
    if matches!(codec, Codec::Bincode) {
        reject(text)
    }
}

/// Fails the compilation with `text` if the codec is JSON, which cannot decode such a message.
///
/// # Panics
/// In the compiler, which evaluates it.
#[track_caller]
pub const fn not_in_json(codec: Codec, text: &'static str) {
    if matches!(codec, Codec::Json) {
        reject(text)
    }
}

/// Fails the compilation with `text` if a list contains one message twice under two paths.
///
/// # Panics
/// In the compiler, which evaluates it.
#[track_caller]
pub const fn listed_once<One: Message, Other: Message>(text: &'static str) {
    if is_same(One::Domain::NAME, Other::Domain::NAME) && is_same(One::NAME, Other::NAME) {
        reject(text)
    }
}

const fn is_same(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.as_bytes(), other.as_bytes());
    while let ([first, rest @ ..], [second, others @ ..]) = (one, other) {
        if *first != *second {
            return false;
        }
        (one, other) = (rest, others);
    }
    one.is_empty() && other.is_empty()
}

#[track_caller]
#[expect(clippy::panic, reason = "evaluated by the compiler only")]
const fn reject(text: &'static str) {
    panic!("{}", text)
}

/// Checks that `M` is a command.
pub const fn command<M: Command>() -> usize {
    0
}

/// Checks that `M` is an event.
pub const fn event<M: Event>() -> usize {
    0
}

/// Checks that `M` is a query.
pub const fn query<M: Query>() -> usize {
    0
}

/// Checks that `M` is a document.
pub const fn document<M: Document>() -> usize {
    0
}

/// Checks an entry of `handles(…)`.
pub const fn handles<A: Stateful + Handle<M>, M: Command + Of<A::Domain>>() -> usize {
    0
}

/// Checks an entry of `applies(…)`.
pub const fn applies<A: Stateful + Apply<M>, M: Event + Of<A::Domain>>() -> usize {
    0
}

/// Checks an entry of `records(…)`.
pub const fn records<A: Stateful, M: Event + Of<A::Domain>>() -> usize {
    0
}

/// Checks an entry of `reacts(…)`.
pub const fn reacts<A: React<M>, M: Event>() -> usize {
    0
}

/// Checks an entry of `replies(…)`.
pub const fn replies<A: OnReply<M>, M: Command>() -> usize {
    0
}

/// Checks an entry of `timers(…)`.
pub const fn timers<A: OnTimer<M>, M: Document>() -> usize {
    0
}

/// Checks an entry of `projects(…)`.
pub const fn projects<P: Project<M>, M: Event>() -> usize {
    0
}

/// Checks an entry of `answers(…)` of a projection.
pub const fn answers<P: Projection + Answer<M>, M: Query>() -> usize {
    0
}

/// Checks an entry of `answers(…)` of an aggregate or a saga.
pub const fn answers_for_key<A: Stateful + Answer<M>, M: Query + Of<A::Domain>>() -> usize {
    0
}

/// Fails the compilation if the answering type does not fit the query: `for_key` is true for an aggregate or a saga.
///
/// # Panics
/// In the compiler, which evaluates it.
#[track_caller]
pub const fn answering<M: Query>(for_key: bool) {
    match (M::IS_KEYED, for_key) {
        (true, false) => {
            reject("found a query with a `#[key]`, which an aggregate or a saga answers; leave out the `#[key]`")
        }
        (false, true) => reject(
            "found a query without a key; mark the field that selects the aggregate or saga: `#[key] account: String`",
        ),
        _ => {}
    }
}

/// Checks an entry of `performs(…)`.
pub const fn performs<W: Worker + Perform<M>, M: Command + Of<W::Domain>>() -> usize {
    0
}

/// Checks an entry of `performs_batch(…)`.
pub const fn performs_batch<W: Worker + PerformBatch<M>, M: Command + Of<W::Domain>>() -> usize {
    0
}

/// Checks an entry of `on_batch(…)`.
pub const fn on_batch<W: OnEventBatch<M>, M: Event>() -> usize {
    0
}

/// Checks an entry of `replies(…)` of a worker.
pub const fn replied<W: OnJobReply<M>, M: Command>() -> usize {
    0
}

/// Checks an entry of `on(…)`.
pub const fn on<W: OnEvent<M>, M: Event>() -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_codec_is_accepted() {
        not_in_bincode(Codec::Json, "");
        not_in_json(Codec::Bincode, "");
    }

    #[test]
    #[should_panic = "no names"]
    fn unreadable_bincode_is_rejected() {
        not_in_bincode(Codec::Bincode, "no names");
    }

    #[test]
    #[should_panic = "two names"]
    fn unreadable_json_is_rejected() {
        not_in_json(Codec::Json, "two names");
    }

    #[test]
    #[should_panic = "twice"]
    fn message_listed_under_two_paths_is_rejected() {
        listed_once::<crate::tests::Deposit, crate::tests::Deposit>("twice");
    }

    #[test]
    fn different_messages_may_be_listed() {
        listed_once::<crate::tests::Deposit, crate::tests::Deposited>("twice");
        assert!(is_same("a", "a") && !is_same("a", "ab") && !is_same("ab", "a") && !is_same("ab", "aa"));
    }
}
