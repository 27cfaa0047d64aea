//! The call of a handler, job or request as a layer sees it, and its outcome.

use whizbang_core::clock::Timestamp;
use whizbang_core::message::{
    Codec, CodecError, Domain as _, Envelope, Kind, Message, MessageFacts, MessageId, Rejection, header,
};

/// The call of a handler or a job with a message, or the request of a client, as [layers](super::Layer) see it.
///
/// ```
/// use whizbang::layer::{Call, CallOutcome, Layer};
///
/// /// Writes each handled message and its outcome.
/// struct Journal;
///
/// impl Layer for Journal {
///     fn after(&self, call: &Call<'_>, outcome: CallOutcome<'_>) {
///         println!("{}.{} for `{}`: {outcome:?}", call.domain(), call.name(), call.key());
///     }
/// }
/// ```
pub struct Call<'a> {
    pub(crate) handler: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) name: &'a str,
    pub(crate) kind: Kind,
    pub(crate) key: &'a str,
    pub(crate) id: MessageId,
    pub(crate) version: u32,
    pub(crate) codec: Codec,
    pub(crate) payload: &'a [u8],
    pub(crate) headers: &'a [(String, String)],
    pub(crate) time: Timestamp,
}

impl<'a> Call<'a> {
    /// Returns the call of a handler of unknown name.
    pub(crate) fn of(envelope: &'a Envelope, key: &'a str, time: Timestamp) -> Self {
        Self {
            handler: "",
            domain: &envelope.domain,
            name: &envelope.name,
            kind: envelope.kind,
            key,
            id: envelope.id,
            version: envelope.version,
            codec: envelope.codec,
            payload: &envelope.payload,
            headers: &envelope.headers,
            time,
        }
    }
}

impl Call<'_> {
    /// Returns the name of the aggregate, saga or worker; empty in a client.
    pub fn handler(&self) -> &str {
        self.handler
    }

    /// Returns the domain of the message.
    pub fn domain(&self) -> &str {
        self.domain
    }

    /// Returns the name of the message in its domain.
    pub fn name(&self) -> &str {
        self.name
    }

    /// Returns the kind of the message. An event that is published without an aggregate is a command with the name of the event, in
    /// the client and at its owner. Only a client has layers around queries.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the key of the aggregate or saga that handles the message. For a job it is that of [`Job`](crate::Job); a query of
    /// a view has none.
    pub fn key(&self) -> &str {
        self.key
    }

    /// Returns the id of the message.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Returns the time of the clock of the node or client, which a simulation sets.
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Returns the headers of the message, sorted by name.
    pub fn headers(&self) -> &[(String, String)] {
        self.headers
    }

    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(self.headers, name)
    }

    /// Returns the encoded message.
    pub fn payload(&self) -> &[u8] {
        self.payload
    }

    /// Returns whether the message is an `M`, now or under a former name.
    pub fn is<M: Message>(&self) -> bool {
        self.domain == M::Domain::NAME && MessageFacts::of::<M>().names().any(|name| name == self.name)
    }

    /// Decodes the message as an `M`; `None` if it is another one. Costs a decoding: the handler gets its own value.
    ///
    /// # Errors
    /// The message cannot be decoded. Its handler fails with the same error.
    pub fn message<M: Message>(&self) -> Result<Option<M>, CodecError> {
        if self.is::<M>() { M::decode(self.version, self.codec, self.payload).map(Some) } else { Ok(None) }
    }
}

impl std::fmt::Debug for Call<'_> {
    /// Without the payload and the headers, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("handler", &self.handler)
            .field("domain", &self.domain)
            .field("name", &self.name)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The outcome of a [call](Call), before its commit.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum CallOutcome<'a> {
    /// The message was handled. Its effects are committed next, or lost together.
    Done,
    /// The command was rejected, by its handler or by an inner layer.
    Rejected(&'a Rejection),
    /// An inner layer has refused the message for now.
    Busy,
    /// The turn failed: a panic, a message that cannot be decoded, effects that cannot be written, a store that refuses them, an
    /// event that a layer has rejected. Nothing of it is stored. Holds the text of the log.
    Failed(&'a str),
}
