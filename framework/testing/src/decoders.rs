//! The decoders of external bytes, each as a function of any bytes.
//!
//! Called by tests that corrupt input, and by the fuzz targets in `tests/fuzz`. Each function returns true if the input was accepted,
//! and panics if a property does not hold: an accepted value survives encoding and decoding, and an error can be displayed. The
//! functions call the decoders of bridges and stores and decode nothing themselves.

use std::borrow::Cow;

use bytes::Bytes;

use whizbang_core::bridge::BridgeError;
use whizbang_core::bridge::claim::{Claim, lost_reason};
use whizbang_core::message::{Codec, MAX_PAYLOAD_BYTES, Name, Shape};
use whizbang_wire::Packet;
use whizbang_wire::subject::Namespace;

/// The maximum size of a response here.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// Returns a packet as bytes that can be corrupted: a line for each header, an empty line, the payload.
pub fn flatten(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in &packet.headers {
        bytes.extend_from_slice(format!("{name}: {value}\n").as_bytes());
    }
    bytes.push(b'\n');
    bytes.extend_from_slice(&packet.payload);
    bytes
}

/// Returns the packet for any bytes: headers of any content, repeated ones included.
pub fn unflatten(input: &[u8]) -> Packet {
    let mut headers = Vec::new();
    let mut rest = input;
    while let Some((line, behind)) = split_line(rest) {
        rest = behind;
        if line.is_empty() {
            break;
        }
        let line = String::from_utf8_lossy(line);
        let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
        headers.push((Cow::Owned(name.to_owned()), value.to_owned()));
    }
    Packet { headers, payload: Bytes::copy_from_slice(rest) }
}

/// Splits bytes at the first line break.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, behind) = bytes.split_at(end);
    Some((line, behind.get(1..).unwrap_or_default()))
}

/// Returns true if an error can be displayed in logs and on terminals.
fn is_harmless(error: &impl ToString) -> bool {
    let text = error.to_string();
    text.len() < 2_000 && text.chars().all(|c| !c.is_control())
}

/// Returns true if the value was decoded. It must be the same after encoding and decoding it again.
fn round_trips<T: PartialEq + std::fmt::Debug>(
    read: Result<T, BridgeError>,
    again: impl Fn(&T) -> Result<T, BridgeError>,
) -> bool {
    match read {
        Ok(value) => {
            let second = again(&value);
            assert!(second.as_ref().is_ok_and(|second| *second == value), "{value:?} became {second:?}");
            true
        }
        Err(error) => {
            assert!(is_harmless(&error), "{error}");
            false
        }
    }
}

/// Decodes an envelope from a packet.
pub fn envelope(input: &[u8]) -> bool {
    let read = unflatten(input).envelope();
    assert!(read.as_ref().map_or(true, |envelope| envelope.payload.len() <= MAX_PAYLOAD_BYTES));
    round_trips(read, |envelope| Packet::from_envelope(envelope)?.envelope())
}

/// Decodes a request from a packet.
pub fn request(input: &[u8]) -> bool {
    round_trips(unflatten(input).request(), |request| Packet::from_request(request)?.request())
}

/// Decodes a response from a packet.
pub fn response(input: &[u8]) -> bool {
    round_trips(unflatten(input).response(), |response| Packet::from_response(response, MAX_RESPONSE_BYTES).response())
}

/// Decodes a pack of events.
pub fn pack(input: &[u8]) -> bool {
    let read = |packet: &Packet| {
        let pairs: Vec<_> = packet.headers.iter().map(|(name, value)| (name.as_ref(), value.as_str())).collect();
        Packet::read_events(&pairs, packet.payload.clone())
    };
    round_trips(read(&unflatten(input)), |events| read(&Packet::from_events(events)))
}

/// Decodes a notification from a packet.
pub fn notification(input: &[u8]) -> bool {
    round_trips(unflatten(input).notification(), |notification| Packet::from_notification(notification).notification())
}

/// Parses a subject. An address has one subject, so that a permission for one subject is not a permission for another.
pub fn subject(input: &[u8]) -> bool {
    let (namespace, subject) = (Namespace::default(), String::from_utf8_lossy(input));
    let Some(address) = namespace.parse(&subject) else { return false };
    assert_eq!(namespace.subject(&address), *subject);
    true
}

/// Decodes a record of a log: a turn with all its parts.
pub fn log_record(input: &[u8]) -> bool {
    whizbang_log::record::reads_record(&Bytes::copy_from_slice(input))
}

/// Parses a claim on a domain in JSON.
pub fn claim(input: &[u8]) -> bool {
    let claim = Claim::parse(input);
    if let (Ok(claim), Ok(domain)) = (&claim, Name::from_static("bank")) {
        assert!(lost_reason(&domain, Some(claim)).contains("bank"));
        let again = claim.to_bytes().and_then(|bytes| Claim::parse(&bytes));
        assert!(again.as_ref().is_ok_and(|again| again == claim), "{claim:?} became {again:?}");
    }
    claim.is_ok()
}

/// Parses JetStream responses in JSON: acknowledgements, stored messages, states of consumers.
#[cfg(feature = "nats")]
pub fn stream_response(input: &[u8]) -> bool {
    whizbang_bridge_nats::decode::parses_response(input)
}

/// Parses a JSON request for events, as a client in another language sends it. The first line is the subject.
#[cfg(feature = "nats")]
pub fn json_request(input: &[u8]) -> bool {
    let (subject, payload) = split_line(input).unwrap_or((b"", input));
    match whizbang_bridge_nats::decode::parses_json_request(&String::from_utf8_lossy(subject), payload) {
        Ok(()) => true,
        Err(error) => {
            assert!(is_harmless(&error), "{error}");
            false
        }
    }
}

/// Parses the text of a shape, as a store contains it and another service sends it. Returns true if it is known.
pub fn shape(input: &[u8]) -> bool {
    let shape = Shape::from_text(&String::from_utf8_lossy(input));
    assert_eq!(Shape::from_text(&shape.to_text()), shape, "after encoding and decoding it again");
    let difference = shape.difference(&shape, Codec::Bincode);
    assert!(difference.is_none(), "{difference:?} of a shape and itself");
    // A name that occurs twice, which no program writes, stands for the first of its fields.
    let _ = shape.difference(&shape.merged(&shape), Codec::Json);
    shape != Shape::Opaque
}
