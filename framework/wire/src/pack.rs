//! Several events of one shard in one packet.
//!
//! Called by bridges to a broker with a high cost per message. Only nodes read packs: events of a domain that clients in other
//! languages subscribe to are sent one by one.

use bytes::Bytes;

use super::frame::{Reader, Writer};
use super::request::{FRAME, framed, read_store, single_header};
use super::{BridgeError, Packet, excerpt, headers, malformed};
use whizbang_core::message::Envelope;

impl Packet {
    /// Encodes events of one store into one packet, in their order.
    ///
    /// All must be of one store, which the packet names once. The caller limits the size, see
    /// [`packed_size`](Self::packed_size).
    pub fn from_events(events: &[Envelope]) -> Self {
        let mut frame = Writer::new();
        frame.envelopes(events, usize::MAX);
        let store = events.first().and_then(|event| event.origin.as_ref()).and_then(|origin| origin.store);
        framed("events", frame).with_store(store)
    }

    /// Returns the maximum size in bytes of an event in a pack.
    ///
    /// It is an upper bound, computed without encoding. A sender adds them up to fill a packet to the limit of the
    /// broker.
    pub fn packed_size(event: &Envelope) -> usize {
        let origin = event.origin.as_ref().map_or(0, |origin| origin.key.len());
        let headers: usize = event.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        // Ids, numbers and lengths, five names of 64 bytes and a trace context take at most 512 bytes.
        512 + origin + event.key.len() + headers + event.payload.len()
    }

    /// Checks the limits that every transferred envelope must meet, in either encoding.
    ///
    /// # Errors
    /// As for [`from_envelope`](Self::from_envelope).
    pub fn check(envelope: &Envelope) -> Result<(), BridgeError> {
        headers::check(envelope)
    }

    /// Decodes the events from the headers and the payload of a pack.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] or [`BridgeError::Oversize`]; one invalid event makes the whole pack invalid.
    pub fn read_events(headers: &[(&str, &str)], payload: Bytes) -> Result<Vec<Envelope>, BridgeError> {
        match single_header(headers, FRAME)? {
            Some("events") => {
                let mut frame = Reader::new(payload)?;
                let mut events = frame.envelopes()?;
                frame.finish()?;
                let store = read_store(headers)?;
                for origin in events.iter_mut().filter_map(|event| event.origin.as_mut()) {
                    origin.store = store;
                }
                if events.is_empty() { Err(malformed("pack without events")) } else { Ok(events) }
            }
            Some(other) => Err(malformed(format!("frame `{}` is not a pack of events", excerpt(other)))),
            None => Err(malformed(format!("header `{FRAME}` is missing"))),
        }
    }
}
