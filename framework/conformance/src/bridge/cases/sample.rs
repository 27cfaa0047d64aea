//! The messages of the cases, and the effects of received messages.
//!
//! Envelopes are complete, so that a bridge that drops or changes a field fails the comparison. Ids and keys follow from
//! shards and numbers: the same arguments give the same message in every run.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::super::node::named;
use crate::bridge::SHARDS;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Envelope, Kind, MessageId, Origin, ReplyMode, Shard, ShardId, shard_of};

/// Returns a shard of a domain.
pub fn shard(domain: &'static str, number: u16) -> ShardId {
    ShardId::new(named(domain), number)
}

/// Returns a key of a shard, distinct for each number.
pub fn key_in(shard: Shard, number: u64) -> String {
    key_of(shard, SHARDS, number)
}

/// Returns a key of a shard in a domain of `shards` shards, distinct for each number.
pub fn key_of(shard: Shard, shards: u16, number: u64) -> String {
    let mut tries = 0u64..;
    let mut keys = tries.by_ref().map(|salt| format!("key {number} {salt}"));
    // One key in `shards` fits, so the search ends soon.
    keys.find(|key| shard_of(key, shards) == shard % shards.max(1)).unwrap_or_default()
}

/// Returns command number `sequence` from `from` to `to`.
///
/// The id depends on both shards and the sequence. The payload is the sequence in 8 bytes, big-endian.
pub fn command(from: &ShardId, to: &ShardId, sequence: u64) -> Envelope {
    let id = MessageId::from_u128(u128::from(sequence) << 64 | u128::from(crc(from)) << 32 | u128::from(crc(to)));
    Envelope {
        id,
        kind: Kind::Command,
        name: named("Do"),
        version: 1,
        shape: None,
        domain: to.domain.clone(),
        to: Some(to.clone()),
        key: key_in(to.shard, sequence),
        actor: None,
        origin: Some(Origin {
            shard: from.clone(),
            actor: named("Sender"),
            key: "sender".to_owned(),
            sequence,
            version: 0,
            store: None,
        }),
        correlation: id,
        causation: None,
        time: Timestamp::from_millis(1_700_000_000_000),
        deadline: None,
        wants: ReplyMode::Reply,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Bincode,
        payload: Bytes::from(sequence.to_be_bytes().to_vec()),
    }
}

/// Returns a number for a shard, for ids that differ by route.
fn crc(shard: &ShardId) -> u32 {
    u32::from(shard_of(&shard.to_string(), u16::MAX))
}

/// Returns command number `number` of an external caller.
pub fn external_command(to: &ShardId, number: u64) -> Envelope {
    Envelope { origin: None, ..command(to, to, number) }
}

/// Returns the event of a shard at a position.
///
/// It has no addressee and wants no reply. Its name is `Happened`, to which the cases subscribe.
pub fn event(shard: &ShardId, position: u64) -> Envelope {
    Envelope {
        kind: Kind::Event,
        name: named("Happened"),
        to: None,
        key: String::new(),
        wants: ReplyMode::Nothing,
        origin: Some(Origin {
            shard: shard.clone(),
            actor: named("Recorder"),
            key: "stream".to_owned(),
            sequence: position,
            version: position,
            store: None,
        }),
        ..command(shard, shard, position)
    }
}

/// Returns the effects of the received messages: each route and sequence once.
///
/// A message that arrived twice counts once, as it has one effect at a receiver with watermarks.
pub fn effects(envelopes: &[Envelope]) -> BTreeSet<(String, u64)> {
    let way = |origin: &Origin, to: &Option<ShardId>| match to {
        Some(to) => format!("{} -> {to}", origin.shard),
        None => origin.shard.to_string(),
    };
    let with_origin = envelopes.iter().filter_map(|envelope| Some((envelope.origin.as_ref()?, &envelope.to)));
    with_origin.map(|(origin, to)| (way(origin, to), origin.sequence)).collect()
}
