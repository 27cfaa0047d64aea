//! The decoders of bytes that come from outside, each as a function of any bytes.
//!
//! Called by the tests that spoil input, and by the fuzz targets in `tests/fuzz`. Each function returns whether the input was
//! accepted and panics where a property does not hold: what was read is written and read again as the same, and an error can
//! be shown. They call what bridges and stores call and decode nothing themselves.

use std::borrow::Cow;

use bytes::Bytes;

use crate::bridge::BridgeError;
use crate::bridge::subject::Namespace;
use crate::bridge::wire::Packet;
use crate::message::MAX_PAYLOAD_BYTES;

/// The most bytes that an answer has here.
const ANSWER_BYTES: usize = 1 << 20;

/// A packet as bytes that can be spoilt: a line for each header, an empty line, the payload.
pub fn flat(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in &packet.headers {
        bytes.extend_from_slice(format!("{name}: {value}\n").as_bytes());
    }
    bytes.push(b'\n');
    bytes.extend_from_slice(&packet.payload);
    bytes
}

/// The packet that any bytes stand for: headers of any content, doubled ones included.
pub fn unflat(input: &[u8]) -> Packet {
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

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, behind) = bytes.split_at(end);
    Some((line, behind.get(1..).unwrap_or_default()))
}

/// Whether an error can be shown: it goes into logs and onto terminals.
fn is_harmless(error: &impl ToString) -> bool {
    let text = error.to_string();
    text.len() < 2_000 && text.chars().all(|c| !c.is_control())
}

/// Returns whether it was read. What was read must be the same after it was written and read again.
fn same_again<T: PartialEq + std::fmt::Debug>(
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

/// A message in a packet.
pub fn envelope(input: &[u8]) -> bool {
    let read = unflat(input).envelope();
    assert!(read.as_ref().map_or(true, |envelope| envelope.payload.len() <= MAX_PAYLOAD_BYTES));
    same_again(read, |envelope| Packet::from_envelope(envelope)?.envelope())
}

/// A question in a packet.
pub fn question(input: &[u8]) -> bool {
    same_again(unflat(input).request(), |asked| Packet::from_request(asked)?.request())
}

/// An answer in a packet.
pub fn answer(input: &[u8]) -> bool {
    same_again(unflat(input).response(), |answer| Packet::from_response(answer, ANSWER_BYTES).response())
}

/// A pack of events.
pub fn pack(input: &[u8]) -> bool {
    let read = |packet: &Packet| {
        let pairs: Vec<_> = packet.headers.iter().map(|(name, value)| (name.as_ref(), value.as_str())).collect();
        Packet::read_events(&pairs, packet.payload.clone())
    };
    same_again(read(&unflat(input)), |events| read(&Packet::from_events(events)))
}

/// News in a packet.
pub fn tidings(input: &[u8]) -> bool {
    same_again(unflat(input).notification(), |tidings| Packet::from_notification(tidings).notification())
}

/// A subject. One place has one subject, so that a permission to write to one is not a permission to write to another.
pub fn subject(input: &[u8]) -> bool {
    let (namespace, subject) = (Namespace::default(), String::from_utf8_lossy(input));
    let Some(place) = namespace.parse(&subject) else { return false };
    assert_eq!(namespace.subject(&place), *subject);
    true
}

/// A record of a log: a turn with everything that stands in it.
pub fn log_record(input: &[u8]) -> bool {
    crate::store::reads_record(&Bytes::copy_from_slice(input))
}

/// A claim on a domain, in JSON.
pub fn claim(input: &[u8]) -> bool {
    crate::bridge::parses_claim(input)
}

/// What JetStream answers in JSON: acknowledgements, stored messages, states of consumers.
#[cfg(feature = "nats")]
pub fn stream_answer(input: &[u8]) -> bool {
    crate::bridge::nats::decode::parses_response(input)
}
