//! Several events of one shard in one packet.
//!
//! Called by bridges whose broker costs so much for each message that carrying several at once is worth it. Only nodes read
//! packs: events of a domain that other languages take travel one by one.

use bytes::Bytes;

use super::frame::{Reader, Writer};
use super::request::{FRAME, framed, read_store, single_header};
use super::{BridgeError, Packet, excerpt, headers, malformed};
use crate::message::Envelope;

impl Packet {
    /// Events of one store in one packet, in their order.
    pub fn from_events(events: &[Envelope]) -> Self {
        let mut frame = Writer::new();
        frame.envelopes(events, usize::MAX);
        let store = events.first().and_then(|event| event.origin.as_ref()).and_then(|origin| origin.store);
        framed("events", frame).with_store(store)
    }

    /// How many bytes an event has in a pack, at most.
    #[cfg(feature = "nats")]
    pub(crate) fn packed_size(event: &Envelope) -> usize {
        let origin = event.origin.as_ref().map_or(0, |origin| origin.key.len());
        let headers: usize = event.headers.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        // Ids, numbers and lengths, five names of 64 bytes and a trace context.
        512 + origin + event.key.len() + headers + event.payload.len()
    }

    /// What must hold of an envelope before it can travel, in whatever form.
    ///
    /// # Errors
    /// As [`from_envelope`](Self::from_envelope).
    pub fn check(envelope: &Envelope) -> Result<(), BridgeError> {
        headers::check(envelope)
    }

    /// The events in the headers and the payload of a pack.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] or [`BridgeError::Oversize`]; one bad event spoils the pack.
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
                if events.is_empty() { Err(malformed("a pack without events")) } else { Ok(events) }
            }
            Some(other) => Err(malformed(format!("a frame of `{}` is no pack of events", excerpt(other)))),
            None => Err(malformed(format!("header `{FRAME}` is missing"))),
        }
    }
}
