//! Reads what came in, and refuses what says otherwise inside than its subject does.
//!
//! Called by the intake. The server's permissions decide who may write to a subject; so whoever forges an origin inside a
//! message is found out by the subject he had to use.

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde_json::Value;

use super::headers;
use super::streams::{StreamContent, StreamSource};
use crate::bridge::subject::{Address, Namespace};
use crate::bridge::wire::Packet;
use crate::bridge::{BridgeError, Notification, Request};
use crate::message::{Envelope, Kind, MAX_PAYLOAD_BYTES, Name, ShardId, shard_of};

/// The most bytes of headers that are copied with a refused message. A stream takes 64 KiB of them.
const MAX_COPIED_HEADER_BYTES: usize = 16 * 1024;
/// The bytes that are copied of a payload larger than [`MAX_PAYLOAD_BYTES`].
const MAX_COPIED_OVERSIZE_BYTES: usize = 64 * 1024;

/// The one envelope in a message of a stream.
fn envelope(namespace: &Namespace, source: &StreamSource, message: &Message) -> Result<Envelope, BridgeError> {
    let place = namespace.parse(&message.subject).ok_or_else(|| subject_mismatch("the subject"))?;
    let mut envelope = Packet::read_envelope(headers::from_nats(message.headers.as_ref()), message.payload.clone())?;
    let origin = envelope.origin.as_ref().map(|origin| &origin.shard);
    match (source.content, place) {
        (StreamContent::Direct, Address::Direct { to, from }) => {
            // A reply belongs to what an actor has sent: nobody else has one to give.
            let is_direct = match from {
                Some(_) => matches!(envelope.kind, Kind::Command | Kind::Reply | Kind::Document),
                None => matches!(envelope.kind, Kind::Command | Kind::Document),
            };
            check(is_direct, "the kind")?;
            check(to.domain == source.domain && to.shard < source.shards, "the destination")?;
            check(envelope.to.as_ref().is_none_or(|said| *said == to), "the destination")?;
            check(envelope.kind != Kind::Command || envelope.domain == to.domain, "the domain")?;
            check(origin == from.as_ref(), "the origin")?;
            let speaks_for_itself = from.as_ref().is_none_or(|from| from.domain == envelope.domain);
            check(envelope.kind != Kind::Reply || speaks_for_itself, "the domain")?;
            // Handled in another shard than its own, a key would have two histories. What an actor sends so has its number among
            // all that it sends, so it is not put aside here: it becomes a dead letter.
            check(from.is_some() || shard_of(&envelope.key, source.shards) == to.shard, "the shard of the key")?;
            envelope.to = Some(to);
        }
        (StreamContent::Events, Address::Event { shard, name }) => {
            check(envelope.kind == Kind::Event, "the kind")?;
            // It may be of a shard that this program does not know of: the node says so.
            check(shard.domain == source.domain, "the shard")?;
            check(origin == Some(&shard), "the origin")?;
            check(envelope.name == name && envelope.domain == shard.domain, "the name")?;
        }
        _ => return Err(subject_mismatch("the subject")),
    }
    Ok(envelope)
}

/// All envelopes in a message of a stream: one, or the events of a pack.
pub(super) fn envelopes(
    namespace: &Namespace,
    source: &StreamSource,
    message: &Message,
) -> Result<Vec<Envelope>, BridgeError> {
    let shard = match (source.content, namespace.parse(&message.subject)) {
        (StreamContent::Events, Some(Address::Events(shard))) => shard,
        _ => return Ok(vec![envelope(namespace, source, message)?]),
    };
    check(shard.domain == source.domain, "the shard")?;
    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
    let events = Packet::read_events(&headers, message.payload.clone())?;
    for event in &events {
        check(event.kind == Kind::Event, "the kind")?;
        check(event.origin.as_ref().is_some_and(|origin| origin.shard == shard), "the origin")?;
        check(event.domain == shard.domain, "the domain")?;
    }
    Ok(events)
}

/// A question.
///
/// A command whose caller does not know the number of shards gets the shard of its key; `owns` has the domains' shards.
pub(super) fn request(namespace: &Namespace, owns: &[(Name, u16)], message: &Message) -> Result<Request, BridgeError> {
    let place = namespace.parse(&message.subject).ok_or_else(|| subject_mismatch("the subject"))?;
    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
    let mut asked = Packet::read_request(&headers, message.payload.clone())?;
    let (said, meant) = (Address::for_request(&asked), place);
    let agrees = match (&said, &meant) {
        // A caller that does not know the number of shards leaves the shard out.
        (Address::CommandRequest { domain, shard: None }, Address::CommandRequest { domain: other, .. }) => {
            domain == other
        }
        _ => said == meant,
    };
    check(agrees, "the subject")?;
    if let Request::Command(envelope) | Request::Query(envelope) = &asked {
        // Whoever asks is no actor: actors send, and hear by message.
        check(envelope.origin.is_none(), "the origin")?;
    }
    if let Request::Command(envelope) = &mut asked {
        let owned = owns.iter().find(|(domain, _)| *domain == envelope.domain);
        let shard = owned.map(|(domain, shards)| ShardId::new(domain.clone(), shard_of(&envelope.key, *shards)));
        check(envelope.to.is_none() || envelope.to == shard, "the shard of the key")?;
        envelope.to = shard;
    }
    Ok(asked)
}

/// Tidings.
pub(super) fn notification(namespace: &Namespace, message: &Message) -> Result<Notification, BridgeError> {
    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
    let tidings = Packet::read_notification(&headers, message.payload.clone())?;
    check(namespace.parse(&message.subject) == Some(Address::for_notification(&tidings)), "the subject")?;
    Ok(tidings)
}

fn check(agrees: bool, what: &str) -> Result<(), BridgeError> {
    if agrees { Ok(()) } else { Err(subject_mismatch(what)) }
}

fn subject_mismatch(what: &str) -> BridgeError {
    BridgeError::Malformed { reason: format!("{what} inside is not that of the subject it came by") }
}

/// The copy of a refused message: its payload and headers, the subject it came by, and why it was refused.
///
/// A message that a node can have sent is copied whole. Of a larger one only the start is kept, so that a few of them cannot fill
/// the stream.
pub(super) fn refused_copy(message: &Message, error: &BridgeError) -> (HeaderMap, Bytes) {
    let mut kept = HeaderMap::new();
    let mut size = 0;
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let name_text: &str = name.as_ref();
        // The broker must not take the headers of a stranger for commands of ours.
        let is_command = name_text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
        for value in values.iter().filter(|_| !is_command) {
            size += name_text.len() + value.as_str().len();
            if size <= MAX_COPIED_HEADER_BYTES {
                kept.append(name.clone(), value.clone());
            }
        }
    }
    kept.insert("whizbang-refused", excerpt(&error.to_string()).as_str());
    kept.insert("whizbang-subject", excerpt(&message.subject).as_str());
    let room = if message.payload.len() > MAX_PAYLOAD_BYTES { MAX_COPIED_OVERSIZE_BYTES } else { MAX_PAYLOAD_BYTES };
    (kept, message.payload.slice(..message.payload.len().min(room)))
}

/// A message as a stream holds it.
pub(super) struct StoredMessage {
    /// Its number in the stream.
    pub(super) number: u64,
    pub(super) headers: Vec<(String, String)>,
    pub(super) payload: Bytes,
}

impl StoredMessage {
    /// Reads a stored message from the API's answer, which has headers and payload in base64.
    pub(super) fn read(answer: &Value) -> Option<Self> {
        let part = |name: &str| {
            let text = answer.pointer(name).and_then(Value::as_str).unwrap_or_default();
            data_encoding::BASE64.decode(text.as_bytes()).ok()
        };
        let headers = String::from_utf8(part("/message/hdrs")?).ok()?;
        let lines = headers.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        let headers = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
        let number = answer.pointer("/message/seq").and_then(Value::as_u64)?;
        Some(Self { number, headers, payload: Bytes::from(part("/message/data")?) })
    }
}

/// Returns the position of the last event of a shard in a stored message; `None` if it cannot be read.
pub(super) fn last_position(shard: &ShardId, headers: &[(String, String)], payload: Bytes) -> Option<u64> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let events = match Packet::read_events(&headers, payload.clone()) {
        Ok(events) => events,
        Err(_) => vec![Packet::read_envelope(headers.iter().copied(), payload).ok()?],
    };
    let origin = events.into_iter().filter_map(|event| event.origin).filter(|origin| origin.shard == *shard);
    origin.map(|origin| origin.sequence).max()
}

/// Reads any bytes as JetStream's answers to each kind of request, for tests. Returns whether they say something.
#[cfg(feature = "testing")]
pub(crate) fn parses_response(payload: &[u8]) -> bool {
    let acknowledged = super::acknowledgement::parse_payload(payload);
    let Ok(answer) = serde_json::from_slice::<Value>(payload) else { return acknowledged.is_ok() };
    let _ = super::consumer_setup::ConsumerState::read(&answer).has_outstanding();
    let stored = StoredMessage::read(&answer);
    if let (Some(stored), Ok(name)) = (&stored, crate::message::Name::from_static("bank")) {
        let _ = last_position(&ShardId::new(name, 0), &stored.headers, stored.payload.clone());
    }
    let _ = delivery_numbers(answer.get("reply").and_then(Value::as_str).unwrap_or_default());
    acknowledged.is_ok() || stored.is_some()
}

/// A text of a stranger, short enough and harmless enough for logs and headers.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(300).flat_map(char::escape_debug).collect()
}

/// How often JetStream has delivered a message, and its number in the stream, from the subject of its acknowledgement.
pub(super) fn delivery_numbers(reply: &str) -> (u32, u64) {
    // `$JS.ACK.stream.consumer.deliveries.number…`; later servers may put a domain and an account before the stream.
    let tokens: Vec<&str> = reply.split('.').collect();
    let at = if tokens.len() > 9 { 6 } else { 4 };
    let deliveries = tokens.get(at).and_then(|token| token.parse().ok()).unwrap_or(1);
    (deliveries, tokens.get(at + 1).and_then(|token| token.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_both_forms_of_an_acknowledgement() {
        for (reply, found) in [
            ("$JS.ACK.stream.consumer.3.10.7.1700000000000000000.5", (3, 10)),
            ("$JS.ACK.hub.ABCDEF.stream.consumer.4.11.7.1700000000000000000.5.x", (4, 11)),
            ("$JS.ACK", (1, 0)),
        ] {
            assert_eq!(delivery_numbers(reply), found, "{reply}");
        }
    }
}
