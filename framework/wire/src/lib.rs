//! The wire encoding: envelopes, requests, responses and notifications as headers and bytes.
//!
//! Called by every bridge, so the loopback tests the same encoding that brokers carry. Depends on messages only.
//! A single message is a CloudEvent 1.0 in binary mode ([`Packet::from_envelope`]), so clients in any language can take part.
//! Traffic between nodes uses a compact frame. Received data is decoded completely or rejected as
//! [`Malformed`](BridgeError::Malformed) or [`Oversize`](BridgeError::Oversize). Decoding never panics and never allocates more
//! than the received bytes justify.

// docs.rs marks the items that need a feature.
#![cfg_attr(docsrs, feature(doc_cfg))]
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod accept;
pub(crate) mod frame;
mod headers;
pub mod loopback;
mod pack;
pub mod percent;
#[doc(hidden)]
pub mod queue;
mod request;
pub mod subject;

use std::borrow::Cow;

use bytes::Bytes;

pub use whizbang_core::message::{MAX_HEADER_BYTES, MAX_HEADERS};

use whizbang_core::bridge::BridgeError;
use whizbang_core::message::Envelope;

/// A message as a broker carries it: headers and payload.
///
/// ```
/// use whizbang::bridge::wire::Packet;
/// use whizbang::clock::Timestamp;
/// use whizbang::message::{Envelope, Kind, MessageId, Name};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (id, time) = (MessageId::from_u128(7), Timestamp::from_millis(1_700_000_000_000));
/// let mut envelope = Envelope::new(id, Kind::Command, Name::new("bank")?, Name::new("Deposit")?, time);
/// envelope.key = "ada".to_owned();
/// let packet = Packet::from_envelope(&envelope)?;
/// assert!(packet.headers.iter().any(|(name, value)| name == "ce-type" && value == "bank.Deposit"));
/// assert_eq!(packet.envelope()?, envelope);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// The headers; each name occurs once.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// The payload.
    pub payload: Bytes,
}

impl Packet {
    /// Encodes an envelope in CloudEvents binary mode.
    ///
    /// # Errors
    /// [`BridgeError::Oversize`] if the payload or the extra headers are too large, [`BridgeError::Malformed`] if a key or a header
    /// cannot be encoded.
    pub fn from_envelope(envelope: &Envelope) -> Result<Self, BridgeError> {
        headers::write(envelope)
    }

    /// Decodes the envelope in a packet.
    ///
    /// # Errors
    /// [`BridgeError::Oversize`] or [`BridgeError::Malformed`] with the defect.
    pub fn envelope(&self) -> Result<Envelope, BridgeError> {
        headers::read(self.headers.iter().map(|(name, value)| (name.as_ref(), value.as_str())), self.payload.clone())
    }

    /// Decodes an envelope from headers and a payload, for brokers with a header type of their own.
    ///
    /// # Errors
    /// As for [`envelope`](Self::envelope).
    pub fn read_envelope<'a>(
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
        payload: Bytes,
    ) -> Result<Envelope, BridgeError> {
        headers::read(headers, payload)
    }

    /// Returns the size in bytes as a broker counts it: names, values, separators and payload.
    pub fn size(&self) -> usize {
        // A NATS header block is a version line, `name: value` lines and an empty line. Other brokers count about the same.
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        headers + 12 + self.payload.len()
    }
}

/// Returns a [`BridgeError::Malformed`] for `reason`.
fn malformed(reason: impl Into<String>) -> BridgeError {
    BridgeError::Malformed { reason: reason.into() }
}

/// Returns received text, shortened and escaped for an error text.
fn excerpt(text: &str) -> String {
    text.chars().take(48).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests;
