//! Encodes requests that leave the thread, or that no actor of this process handles.

use std::time::Duration;

use bytes::Bytes;

use super::Client;
use crate::router::{CommandMeta, SendError};
use whizbang_core::message::{
    Command, Domain as _, Envelope, Fingerprint, Key, Kind, MessageFacts, Name, Query, ShardId,
    encode_command_verified, encode_verified, shard_of,
};
use whizbang_core::telemetry::passes;
use whizbang_core::user_code::user_code;

/// Encodes a command.
///
/// # Errors
/// [`SendError::Key`], [`SendError::Encode`], and [`SendError::Header`].
pub(super) fn of_command<C: Command>(
    client: &Client,
    command: &C,
    meta: Option<Box<CommandMeta>>,
    deadline: Duration,
) -> Result<Envelope, SendError> {
    let (facts, key) = (MessageFacts::of::<C>(), command.key());
    let mut payload = Vec::new();
    // The key is checked first: a command without an owner is not even encoded.
    if key.is_valid()
        && let Err(error) = encode_command_verified(command, facts.codec, &mut payload)
    {
        return Err(SendError::Encode(error));
    }
    envelope(client, facts, Fingerprint::of_command::<C>, payload, Kind::Command, Some(key), meta, deadline)
}

/// Returns the number of bytes of an encoded command; 0 if it cannot be encoded, which its actor reports.
pub(super) fn encoded_len<C: Command>(command: &C) -> usize {
    let mut payload = Vec::new();
    // A panic here would reach the task of the caller.
    let encoded = user_code(|| command.encode(C::Domain::CODEC, &mut payload));
    if matches!(encoded, Ok(Ok(()))) { payload.len() } else { 0 }
}

/// Encodes a query. The query of a key travels like a command, to the owner of the key.
///
/// # Errors
/// [`SendError::Key`] and [`SendError::Encode`].
pub(super) fn of_query<Q: Query>(
    client: &Client,
    query: &Q,
    meta: Option<Box<CommandMeta>>,
    deadline: Duration,
) -> Result<Envelope, SendError> {
    let facts = MessageFacts::of::<Q>();
    let mut payload = Vec::new();
    match encode_verified(query, facts.codec, &mut payload) {
        Ok(_) => {
            let key = query.key();
            let kind = if key.is_some() { Kind::Command } else { Kind::Query };
            envelope(client, facts, Fingerprint::of_query::<Q>, payload, kind, key, meta, deadline)
        }
        Err(error) => Err(SendError::Encode(error)),
    }
}

#[expect(clippy::too_many_arguments, reason = "facts of the message and options of the caller")]
pub(super) fn envelope(
    client: &Client,
    message: MessageFacts,
    shape: fn() -> Option<Fingerprint>,
    payload: Vec<u8>,
    kind: Kind,
    key: Option<Key<'_>>,
    meta: Option<Box<CommandMeta>>,
    deadline: Duration,
) -> Result<Envelope, SendError> {
    if let Some(key) = key.as_ref().filter(|key| !key.is_valid()) {
        return Err(SendError::Key { bytes: key.as_str().len() });
    }
    let mut meta = *meta.unwrap_or_default();
    let no_name = |name: &str| {
        SendError::Encode(whizbang_core::message::CodecError::Encode { reason: format!("invalid name `{name}`") })
    };
    let domain = Name::from_static(message.domain).map_err(|_| no_name(message.domain))?;
    let name = Name::from_static(message.name).map_err(|_| no_name(message.name))?;
    let now = client.inner.clock.now();
    meta.begin_life(now)?;
    let id = meta.id.unwrap_or_else(|| client.new_id());
    passes!("client", message.name, id, meta.correlation.unwrap_or(id));
    Ok(Envelope {
        version: message.version,
        shape: shape(),
        to: key.as_ref().map(|key| ShardId::new(domain.clone(), shard_of(key.as_str(), message.shards))),
        key: key.map(Key::into_string).unwrap_or_default(),
        correlation: meta.correlation.unwrap_or(id),
        deadline: Some(now.after(deadline)),
        traceparent: meta.traceparent.map(String::from),
        headers: meta.headers,
        codec: message.codec,
        payload: Bytes::from(payload),
        ..Envelope::new(id, kind, domain, name, now)
    })
}
