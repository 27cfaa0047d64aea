//! Decodes received messages and rejects those whose headers contradict their subject.
//!
//! Called by the consumer loop. The permissions of the server decide who may publish to a subject, so the subject reveals a forged
//! origin inside a message.

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde_json::Value;

use super::headers;
use super::streams::{StreamContent, StreamSource};
use whizbang_core::bridge::{BridgeError, Notification, Request};
use whizbang_core::message::{Envelope, Kind, MAX_PAYLOAD_BYTES, Name, ShardId, shard_of};
use whizbang_wire::Packet;
use whizbang_wire::subject::{Address, Namespace};

/// The maximum size in bytes of the headers that are copied with a refused message. A stream accepts 64 KiB of them.
const MAX_COPIED_HEADER_BYTES: usize = 16 * 1024;
/// The number of bytes that are copied of a payload larger than [`MAX_PAYLOAD_BYTES`].
const MAX_COPIED_OVERSIZE_BYTES: usize = 64 * 1024;

/// Decodes the single envelope in a message of a stream.
fn envelope(namespace: &Namespace, source: &StreamSource, message: &Message) -> Result<Envelope, BridgeError> {
    let address = namespace.parse(&message.subject).ok_or_else(unexpected_subject)?;
    let mut envelope = Packet::read_envelope(headers::from_nats(message.headers.as_ref()), message.payload.clone())?;
    let origin = envelope.origin.as_ref().map(|origin| &origin.shard);
    match (source.content, address) {
        (StreamContent::Direct, Address::Direct { to, from }) => {
            // A reply answers a command that an actor sent, so it comes from a shard.
            let is_direct = match from {
                Some(_) => matches!(envelope.kind, Kind::Command | Kind::Reply | Kind::Document),
                None => matches!(envelope.kind, Kind::Command | Kind::Document),
            };
            check(is_direct, "kind")?;
            check(to.domain == source.domain && to.shard < source.shards, "destination")?;
            check(envelope.to.as_ref().is_none_or(|claimed| *claimed == to), "destination")?;
            check(envelope.kind != Kind::Command || envelope.domain == to.domain, "domain")?;
            check(origin == from.as_ref(), "origin")?;
            let is_own_reply = from.as_ref().is_none_or(|from| from.domain == envelope.domain);
            check(envelope.kind != Kind::Reply || is_own_reply, "domain")?;
            // A key that is handled in another shard than its own would have two histories. A message of an actor is not refused
            // here, because it has a number in the sequence of its sender: it becomes a dead letter.
            check(from.is_some() || shard_of(&envelope.key, source.shards) == to.shard, "shard of the key")?;
            envelope.to = Some(to);
        }
        (StreamContent::Events, Address::Event { shard, name }) => {
            check(envelope.kind == Kind::Event, "kind")?;
            // The shard may be unknown to this program: the node reports that.
            check(shard.domain == source.domain, "shard")?;
            check(origin == Some(&shard), "origin")?;
            check(envelope.name == name && envelope.domain == shard.domain, "name")?;
        }
        _ => return Err(unexpected_subject()),
    }
    Ok(envelope)
}

/// Decodes all envelopes in a message of a stream: a single one, or the events of a pack.
pub(super) fn envelopes(
    namespace: &Namespace,
    source: &StreamSource,
    message: &Message,
) -> Result<Vec<Envelope>, BridgeError> {
    let shard = match (source.content, namespace.parse(&message.subject)) {
        (StreamContent::Events, Some(Address::Events(shard))) => shard,
        _ => return Ok(vec![envelope(namespace, source, message)?]),
    };
    check(shard.domain == source.domain, "shard")?;
    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
    let events = Packet::read_events(&headers, message.payload.clone())?;
    for event in &events {
        check(event.kind == Kind::Event, "kind")?;
        check(event.origin.as_ref().is_some_and(|origin| origin.shard == shard), "origin")?;
        check(event.domain == shard.domain, "domain")?;
    }
    Ok(events)
}

/// Decodes a request.
///
/// A command whose caller does not know the number of shards gets the shard of its key; `owns` has the domains' shard counts.
pub(super) fn request(namespace: &Namespace, owns: &[(Name, u16)], message: &Message) -> Result<Request, BridgeError> {
    let address = namespace.parse(&message.subject).ok_or_else(unexpected_subject)?;
    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
    let mut request = Packet::read_request(&headers, message.payload.clone())?;
    let claimed = Address::for_request(&request);
    let agrees = match (&claimed, &address) {
        // A caller that does not know the number of shards leaves the shard out.
        (Address::CommandRequest { domain, shard: None }, Address::CommandRequest { domain: other, .. }) => {
            domain == other
        }
        _ => claimed == address,
    };
    if !agrees {
        return Err(unexpected_subject());
    };
    if let Request::Command(envelope) | Request::Query(envelope) = &request {
        // The caller is not an actor: actors send one-way messages and receive replies as messages.
        check(envelope.origin.is_none(), "origin")?;
    }
    if let Request::Command(envelope) = &mut request {
        let owned = owns.iter().find(|(domain, _)| *domain == envelope.domain);
        let shard = owned.map(|(domain, shards)| ShardId::new(domain.clone(), shard_of(&envelope.key, *shards)));
        check(envelope.to.is_none() || envelope.to == shard, "shard of the key")?;
        envelope.to = shard;
    }
    Ok(request)
}

/// Decodes a notification.
pub(super) fn notification(namespace: &Namespace, message: &Message) -> Result<Notification, BridgeError> {
    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
    let notification = Packet::read_notification(&headers, message.payload.clone())?;
    let agrees = namespace.parse(&message.subject) == Some(Address::for_notification(&notification));
    if agrees { Ok(notification) } else { Err(unexpected_subject()) }
}

fn check(agrees: bool, what: &str) -> Result<(), BridgeError> {
    if agrees { Ok(()) } else { Err(subject_mismatch(what)) }
}

fn unexpected_subject() -> BridgeError {
    BridgeError::Malformed { reason: "the subject does not fit the content of the message".to_owned() }
}

fn subject_mismatch(what: &str) -> BridgeError {
    BridgeError::Malformed { reason: format!("the {what} contradicts the subject of the message") }
}

/// Returns the copy of a refused message: its payload, headers and subject, and the reason of the refusal.
///
/// A message of a size that a node can send is copied completely. A larger one is truncated, so that a few of them cannot fill the
/// stream.
pub(super) fn refused_copy(message: &Message, error: &BridgeError) -> (HeaderMap, Bytes) {
    let mut kept = HeaderMap::new();
    let mut size = 0;
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let name_text: &str = name.as_ref();
        // The broker must not obey headers that another party wrote.
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
    let limit = if message.payload.len() > MAX_PAYLOAD_BYTES { MAX_COPIED_OVERSIZE_BYTES } else { MAX_PAYLOAD_BYTES };
    (kept, message.payload.slice(..message.payload.len().min(limit)))
}

/// A message as a stream holds it.
pub(super) struct StoredMessage {
    /// The sequence in the stream.
    pub(super) number: u64,
    pub(super) headers: Vec<(String, String)>,
    pub(super) payload: Bytes,
}

impl StoredMessage {
    /// Parses a stored message from the response of the API, which has headers and payload in base64.
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

/// Parses any bytes as a JetStream response to each kind of request, for tests. Returns true if one parser accepts them.
#[cfg(feature = "testing")]
pub fn parses_response(payload: &[u8]) -> bool {
    let acknowledged = super::acknowledgement::parse_payload(payload);
    let Ok(answer) = serde_json::from_slice::<Value>(payload) else { return acknowledged.is_ok() };
    let _ = super::consumer_setup::ConsumerState::read(&answer).has_outstanding();
    let stored = StoredMessage::read(&answer);
    if let (Some(stored), Ok(name)) = (&stored, whizbang_core::message::Name::from_static("bank")) {
        let _ = last_position(&ShardId::new(name, 0), &stored.headers, stored.payload.clone());
    }
    let _ = delivery_numbers(answer.get("reply").and_then(Value::as_str).unwrap_or_default());
    acknowledged.is_ok() || stored.is_some()
}

/// Returns the text of another party, shortened and escaped for logs and headers.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(300).flat_map(char::escape_debug).collect()
}

/// Returns the number of deliveries of a message and its sequence in the stream, from the subject of its acknowledgement.
pub(super) fn delivery_numbers(ack_subject: &str) -> (u32, u64) {
    // `$JS.ACK.stream.consumer.deliveries.sequence…`; later servers may put a domain and an account before the stream.
    let tokens: Vec<&str> = ack_subject.split('.').collect();
    let index = if tokens.len() > 9 { 6 } else { 4 };
    let deliveries = tokens.get(index).and_then(|token| token.parse().ok()).unwrap_or(1);
    (deliveries, tokens.get(index + 1).and_then(|token| token.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_numbers_are_read_from_both_acknowledgement_forms() {
        for (reply, found) in [
            ("$JS.ACK.stream.consumer.3.10.7.1700000000000000000.5", (3, 10)),
            ("$JS.ACK.hub.ABCDEF.stream.consumer.4.11.7.1700000000000000000.5.x", (4, 11)),
            ("$JS.ACK", (1, 0)),
        ] {
            assert_eq!(delivery_numbers(reply), found, "{reply}");
        }
    }
}
