//! Messages: their types, envelopes, names, ids and encoding.
//!
//! Used by every module. Calls the [clock](crate::clock), and user code when a type is traced. It does not depend on
//! actors, stores or brokers.

use std::sync::Arc;

mod bincode_reader;
mod canonical;
mod checked;
mod codec;
mod coded;
mod digest;
mod domain;
mod encoding;
mod envelope;
mod expiry;
mod facts;
mod fingerprint;
mod hash;
mod headers;
mod id;
mod identity;
mod key;
mod name;
mod read_back;
mod rejection_fields;
mod reply;
mod shape;
mod state;
mod verified;

pub use codec::{Codec, CodecError, MAX_PAYLOAD_BYTES, MAX_STATE_BYTES};
pub use coded::{Coded, StateCoding};
pub use digest::Digest;
#[doc(hidden)]
pub use digest::unkeyed as unkeyed_digest;
pub use domain::{Domain, Of, Shard, ShardId, shard_of};
pub use envelope::{Envelope, Kind, Origin, ReplyMode};
pub use expiry::{EXPIRY, expiry, set_expiry};
#[doc(hidden)]
pub use facts::MessageFacts;
pub use fingerprint::{Fingerprint, ReplyShape};
pub use fingerprint::{MAX_SHAPES_BYTES, MessageShapes, SHAPE};
#[doc(hidden)]
pub use hash::stable_hash;
pub use headers::{HeaderError, MAX_HEADER_BYTES, MAX_HEADERS, header, is_header_name, is_header_value, set_header};
pub use id::{IdSource, MessageId};
pub use identity::{ReplacedStore, Run, StoreId, StoreIdentity};
pub use key::Key;
pub use name::{Name, NameError};
#[doc(hidden)]
pub use rejection_fields::{FieldCoding, FieldValue, ReceivedFields, RejectionFields, reason_in};
pub use reply::{Rejection, TypedRejection, rejection_in};
pub use shape::{Difference, Field, Plain, Shape, Variant};
#[doc(hidden)]
pub use verified::{Trust, encode_command_verified, encode_reply_verified, encode_verified};

/// A typed value that is sent: a [command](Command), an [event](Event), a [query](Query) or a [document](Document).
///
/// Derived with `#[derive(Command)]`, `#[derive(Event)]`, `#[derive(Query)]` or `#[derive(Document)]`. Lists such as
/// `handles(…)` accept derived messages only.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Account, Bank, Deposit};
/// use whizbang::message::{Codec, Domain, Kind, Message};
///
/// assert_eq!((<Bank as Domain>::NAME, Deposit::NAME, Deposit::VERSION), ("bank", "Deposit", 1));
/// assert_eq!(Deposit::KIND, Kind::Command);
///
/// let mut bytes = Vec::new();
/// Deposit { account: "ada".into(), cents: 500 }.encode(Codec::Json, &mut bytes)?;
/// assert_eq!(bytes, br#"{"account":"ada","cents":500}"#);
/// # Ok::<_, whizbang::message::CodecError>(())
/// ```
pub trait Message: Sized + Send + 'static {
    /// The domain to which this message belongs.
    type Domain: Domain;
    /// Its name on the wire and in the store, unique in its domain and independent of the Rust type's path.
    const NAME: &'static str;
    /// The kind of message.
    const KIND: Kind;
    /// Its schema version, from 1. Stored messages of an older version are upcast when they are decoded.
    const VERSION: u32 = 1;

    /// The schema version that [`encode`](Self::encode) writes. The derives take it from `writes = 1`, which keeps the older
    /// version while nodes of a service run that do not know the current one. Default: [`VERSION`](Self::VERSION).
    const WRITES: u32 = Self::VERSION;

    /// Its former names, newest first. Stored messages and messages of older senders with these names are decoded as
    /// this type. The derives take them from `formerly = "…"`.
    const FORMERLY: &'static [&'static str] = &[];

    /// Appends the message to `into`, encoded as version [`WRITES`](Self::WRITES). On an error `into` keeps its length.
    ///
    /// # Errors
    /// The errors of [`Codec::encode`].
    fn encode(&self, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes a message of schema version `version`.
    ///
    /// The derives upcast the older versions that are listed in `upcast(1 = OldType)`.
    ///
    /// # Errors
    /// [`CodecError::Version`] if `version` cannot be converted to [`Self::VERSION`]; otherwise the errors of
    /// [`Codec::decode`].
    fn decode(version: u32, codec: Codec, bytes: &[u8]) -> Result<Self, CodecError>;

    /// Returns the record of whether a value of this type was checked to read back as it was written, if one check
    /// suffices for the type: then only the first value is checked. The derives return one for types whose fields are
    /// all plain types of the standard library without serde attributes. Default `None`: every value is checked.
    #[doc(hidden)]
    fn trust() -> Option<&'static Trust> {
        None
    }

    /// Decodes a stored event whose older version may have become several events, and calls `each` with all of them, in
    /// order.
    ///
    /// The derive splits the older versions that are listed in `split(1 = OldType)`. All others are one event.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode).
    fn decode_each(version: u32, codec: Codec, bytes: &[u8], each: &mut dyn FnMut(Self)) -> Result<(), CodecError> {
        Self::decode(version, codec, bytes).map(each)
    }

    /// Returns the shape of the type at schema version `version`, or `None` if it is not known. A node compares it with
    /// the shape in its store at start.
    fn shape(version: u32, codec: Codec) -> Option<Arc<Shape>> {
        let _ = (version, codec);
        None
    }
}

/// Asks the owner of a domain to do something. It has exactly one handler and may be rejected.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Bank;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Bank, reply = i64)]
/// struct Deposit {
///     #[key]
///     account: String,
///     cents: i64,
/// }
///
/// assert_eq!(Deposit { account: "ada".to_owned(), cents: 5 }.key().as_str(), "ada");
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a command",
    label = "expected a command",
    note = "derive it: `#[derive(Command, Serialize, Deserialize)] #[command(domain = …, reply = …)]`"
)]
pub trait Command: Message {
    /// The reply to the sender if the command is not rejected.
    type Reply: Coded + Send + 'static;

    /// Returns the key of the aggregate that handles it: the field marked `#[key]`.
    fn key(&self) -> Key<'_>;
}

/// A fact that is already recorded. Any number of sagas, projections and workers handle it; it is never rejected.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "expected an event",
    note = "derive it: `#[derive(Event, Serialize, Deserialize)] #[event(domain = …)]`"
)]
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use whizbang::Message;
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Bank;
///
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(domain = Bank)]
/// struct Deposited {
///     cents: i64,
/// }
///
/// assert_eq!(Deposited::NAME, "Deposited");
/// ```
pub trait Event: Message {}

/// Asks a view, or the aggregate or saga of a key, for one answer and has no effect.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a query",
    label = "expected a query",
    note = "derive it: `#[derive(Query, Serialize, Deserialize)] #[query(domain = …, reply = …)]`"
)]
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use whizbang::Message;
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Bank;
///
/// #[derive(Query, Serialize, Deserialize)]
/// #[query(domain = Bank, reply = i64)]
/// struct Balance {
///     account: String,
/// }
///
/// assert_eq!(Balance::NAME, "Balance");
/// ```
pub trait Query: Message {
    /// The answer.
    type Reply: Coded + Send + 'static;

    /// True if an aggregate or a saga answers the query and not a view: a field is marked `#[key]`.
    #[doc(hidden)]
    const IS_KEYED: bool = false;

    /// Returns the key of the aggregate or saga that answers the query: the field marked `#[key]`. `None` for the query of a
    /// view.
    fn key(&self) -> Option<Key<'_>> {
        None
    }
}

/// Data without a statement that something happened. Sagas use documents as the content of their timers.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a document",
    label = "expected a document",
    note = "derive it: `#[derive(Document, Serialize, Deserialize)] #[document(domain = …)]`"
)]
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use whizbang::Message;
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Bank;
///
/// #[derive(Document, Serialize, Deserialize)]
/// #[document(domain = Bank)]
/// struct PaymentDue {
///     cents: i64,
/// }
///
/// assert_eq!(PaymentDue::NAME, "PaymentDue");
/// ```
pub trait Document: Message {}
