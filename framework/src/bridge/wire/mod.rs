//! How envelopes, questions, answers and tidings become headers and bytes, and how they are read back.
//!
//! Called by every bridge, so that what is tested in process is what travels. Calls nothing but messages.
//! A single message travels as CloudEvents 1.0 in binary mode ([`Packet::from_envelope`]): any language can take part. What
//! only nodes say to each other is a compact frame. Whatever comes in is either read whole or refused as
//! [`Malformed`](BridgeError::Malformed) or [`Oversize`](BridgeError::Oversize); nothing panics, nothing allocates on a claim.

pub(crate) mod frame;
mod headers;
mod instant;
mod pack;
pub(crate) mod percent;
mod request;

use std::borrow::Cow;

use bytes::Bytes;

pub use headers::{MAX_HEADER_BYTES, MAX_HEADERS};

use super::BridgeError;
use crate::message::Envelope;

/// A message as a broker carries it: headers and payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The headers, no name twice.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// The bytes behind them.
    pub payload: Bytes,
}

impl Packet {
    /// An envelope in CloudEvents binary mode.
    ///
    /// # Errors
    /// [`BridgeError::Oversize`] if the payload or the passed-on headers are too large, [`BridgeError::Malformed`] if a key or
    /// a header cannot be sent. Nothing of it was sent.
    pub fn from_envelope(envelope: &Envelope) -> Result<Self, BridgeError> {
        headers::write(envelope)
    }

    /// The envelope in a packet that came in.
    ///
    /// # Errors
    /// [`BridgeError::Oversize`] or [`BridgeError::Malformed`], which says what is wrong.
    pub fn envelope(&self) -> Result<Envelope, BridgeError> {
        headers::read(self.headers.iter().map(|(name, value)| (name.as_ref(), value.as_str())), self.payload.clone())
    }

    /// The envelope in headers and a payload that came in, for brokers with a header type of their own.
    ///
    /// # Errors
    /// As [`envelope`](Self::envelope).
    pub fn read_envelope<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        payload: Bytes,
    ) -> Result<Envelope, BridgeError> {
        headers::read(headers, payload)
    }

    /// How many bytes it has, as a broker counts them: names, values, payload and the bytes between them.
    pub fn size(&self) -> usize {
        // A NATS header block is a version line, `name: value` lines and an empty line; the same is near enough elsewhere.
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        headers + 12 + self.payload.len()
    }
}

/// A [`BridgeError::Malformed`] for `reason`.
fn malformed(reason: impl Into<String>) -> BridgeError {
    BridgeError::Malformed { reason: reason.into() }
}

/// What came in, short enough and harmless enough to stand in an error text.
fn excerpt(text: &str) -> String {
    text.chars().take(48).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
