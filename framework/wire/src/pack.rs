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
    /// [`of_first_events`](Self::of_first_events).
    pub fn from_events(events: &[Envelope]) -> Self {
        Self::of_first_events(events, usize::MAX).0
    }

    /// Encodes the first events of a list into one packet, as many as fit into `max_bytes` of payload, and returns their number.
    ///
    /// The number is zero if the first event alone is larger. All must be of one store, as for [`from_events`](Self::from_events).
    pub fn of_first_events(events: &[Envelope], max_bytes: usize) -> (Self, usize) {
        let mut frame = Writer::new();
        let count = frame.envelopes(events, max_bytes);
        let store = events.first().and_then(|event| event.origin.as_ref()).and_then(|origin| origin.store);
        (framed("events", frame).with_store(store), count)
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
