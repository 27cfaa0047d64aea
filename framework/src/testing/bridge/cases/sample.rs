//! The messages that the cases send, and what of them arrives.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::super::node::named;
use crate::clock::Timestamp;
use crate::message::{Codec, Envelope, Kind, MessageId, Origin, ReplyMode, Shard, ShardId, shard_of};
use crate::testing::bridge::SHARDS;

/// A shard of a domain.
pub fn shard(domain: &'static str, number: u16) -> ShardId {
    ShardId::new(named(domain), number)
}

/// A key of a shard, another for each number.
pub fn key_in(shard: Shard, number: u64) -> String {
    key_of(shard, SHARDS, number)
}

/// A key of a shard of a domain with so many shards, another for each number.
pub fn key_of(shard: Shard, shards: u16, number: u64) -> String {
    let mut tries = 0u64..;
    let mut keys = tries.by_ref().map(|salt| format!("key {number} {salt}"));
    // One in `shards` keys fits, so this ends soon.
    keys.find(|key| shard_of(key, shards) == shard % shards.max(1)).unwrap_or_default()
}

/// A command number `sequence` from `from` for `to`.
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

fn crc(shard: &ShardId) -> u32 {
    u32::from(shard_of(&shard.to_string(), u16::MAX))
}

/// A command number `number` that no actor sent.
pub fn outside(to: &ShardId, number: u64) -> Envelope {
    Envelope { origin: None, ..command(to, to, number) }
}

/// The event of a shard at a position.
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

/// The effects of what came: each way and number once.
pub fn effects(envelopes: &[Envelope]) -> BTreeSet<(String, u64)> {
    let way = |origin: &Origin, to: &Option<ShardId>| match to {
        Some(to) => format!("{} -> {to}", origin.shard),
        None => origin.shard.to_string(),
    };
    let with_origin = envelopes.iter().filter_map(|envelope| Some((envelope.origin.as_ref()?, &envelope.to)));
    with_origin.map(|(origin, to)| (way(origin, to), origin.sequence)).collect()
}
