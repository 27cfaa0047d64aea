//! The words that travel: messages, their envelopes, their names and ids, and how they become bytes.
//!
//! Used by every room. Calls the [clock](crate::clock), and user code where a type is traced.
//! It knows no actor, no store and no broker.

use std::sync::Arc;

mod bincode_reader;
mod canonical;
mod checked;
mod codec;
mod coded;
mod digest;
mod domain;
mod envelope;
mod facts;
mod fingerprint;
mod id;
mod identity;
mod key;
mod name;
mod reply;
mod shape;
mod verified;

pub use codec::{Codec, CodecError, MAX_PAYLOAD_BYTES, MAX_STATE_BYTES};
pub use coded::{Coded, StateCoding};
#[cfg(feature = "testing")]
pub(crate) use digest::unkeyed as unkeyed_digest;
pub(crate) use digest::{Digest, stable_hash};
pub use domain::{Domain, Of, Shard, ShardId, shard_of};
pub use envelope::{Envelope, Kind, Origin, ReplyMode};
pub(crate) use facts::MessageFacts;
pub use fingerprint::{Fingerprint, ReplyShape};
pub(crate) use fingerprint::{MAX_SHAPES_BYTES, MessageShapes, SHAPE};
pub use id::{IdSource, MessageId};
pub use identity::{ReplacedStore, Run, StoreId, StoreIdentity};
pub use key::Key;
pub use name::{Name, NameError};
pub use reply::{Rejection, rejection_in};
pub use shape::{Difference, Field, Plain, Shape, Variant};
pub use verified::Trust;
pub(crate) use verified::{encode_command_verified, encode_reply_verified, encode_verified};

/// A typed value that travels: a [command](Command), an [event](Event), a [query](Query) or a [document](Document).
///
/// Derived with `#[derive(Command)]` and its sisters; there is no need to write it by hand, and lists such as `handles(…)`
/// take derived messages only.
pub trait Message: Sized + Send + 'static {
    /// The domain this message belongs to.
    type Domain: Domain;
    /// Its name on the wire and in the store, unique in its domain. Independent of the Rust type's path.
    const NAME: &'static str;
    /// What kind of message it is.
    const KIND: Kind;
    /// The version of its schema, from 1. Messages stored with an older version are upcast when they are read.
    const VERSION: u32 = 1;

    /// The names it had before, newest first: stored messages and those of older senders with these names are read as this type.
    /// The derives take them from `formerly = "…"`.
    const FORMERLY: &'static [&'static str] = &[];

    /// Appends the message's bytes to `into`. On an error `into` is as long as before.
    ///
    /// # Errors
    /// What [`Codec::encode`] says.
    fn encode(&self, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads a message that was written with schema version `version`.
    ///
    /// The derives upcast the older versions that are listed in `upcast(1 = OldType)`.
    ///
    /// # Errors
    /// [`CodecError::Version`] if there is no way from `version` to [`Self::VERSION`]; otherwise what [`Codec::decode`] says.
    fn decode(version: u32, codec: Codec, bytes: &[u8]) -> Result<Self, CodecError>;

    /// The record of whether a value of this type was checked to read back as it was written, if that is a property of the
    /// type: then only the first value is checked. The derives return one for types whose fields are all of the standard
    /// library's plain types, without serde attributes. Default `None`: every value is checked.
    #[doc(hidden)]
    fn trust() -> Option<&'static Trust> {
        None
    }

    /// Reads a stored event whose older version may have become several: `each` is called with all of them, in their order.
    ///
    /// The derive splits the older versions that are listed in `split(1 = OldType)`. All others are one event.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    fn decode_each(version: u32, codec: Codec, bytes: &[u8], each: &mut dyn FnMut(Self)) -> Result<(), CodecError> {
        Self::decode(version, codec, bytes).map(each)
    }

    /// The shape that bytes of schema version `version` have in this program; `None` if it is not known. A node compares it at
    /// start with the shape in its store.
    fn shape(version: u32, codec: Codec) -> Option<Arc<Shape>> {
        let _ = (version, codec);
        None
    }
}

/// Asks the owner of a domain to do something. Exactly one handler; may be rejected.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a command",
    label = "expected a command",
    note = "derive it: `#[derive(Command, Serialize, Deserialize)] #[command(domain = …, reply = …)]`"
)]
pub trait Command: Message {
    /// What the sender gets back when the command is not rejected.
    type Reply: Coded + Send + 'static;

    /// The key of the aggregate that handles it: the field marked `#[key]`.
    fn key(&self) -> Key<'_>;
}

/// A fact already recorded. Any number of sagas and projections take it; it is never rejected.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "expected an event",
    note = "derive it: `#[derive(Event, Serialize, Deserialize)] #[event(domain = …)]`"
)]
pub trait Event: Message {}

/// Asks a view for one answer. No effect.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a query",
    label = "expected a query",
    note = "derive it: `#[derive(Query, Serialize, Deserialize)] #[query(domain = …, reply = …)]`"
)]
pub trait Query: Message {
    /// The answer.
    type Reply: Coded + Send + 'static;
}

/// Data handed over; it claims nothing happened. Sagas use documents as their timers' content.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a document",
    label = "expected a document",
    note = "derive it: `#[derive(Document, Serialize, Deserialize)] #[document(domain = …)]`"
)]
pub trait Document: Message {}
