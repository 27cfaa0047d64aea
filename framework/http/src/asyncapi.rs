//! The AsyncAPI 3.0 description of a node's messages on a broker.

use serde_json::{Map, Value, json};
use whizbang_core::message::Codec;
use whizbang_runtime::router::{Manifest, MessageCard};

use crate::schema::json_schema;

/// Returns the AsyncAPI 3.0 description of the messages that a node receives and publishes, from its manifest.
///
/// `namespace` is the first part of every NATS subject, by default `whizbang`. The description contains the commands that the
/// node's actors and workers handle, and the events that they record. docs/wire.md in the repository describes the headers.
///
/// ```
/// # use bank_fixture::*;
/// # whizbang::derive::block_on(async {
/// # let node = bank().await;
/// let description = whizbang_http::asyncapi(node.manifest(), "whizbang", "1.0.0");
/// assert_eq!(description["asyncapi"], "3.0.0");
/// # });
/// ```
pub fn asyncapi(manifest: &Manifest, namespace: &str, version: &str) -> Value {
    let (mut channels, mut operations, mut messages) = (Map::new(), Map::new(), Map::new());
    let mut add = |card: &MessageCard, kind: &str, action: &str, address: String| {
        let name = format!("{}.{}", card.domain, card.name);
        // A `.` would be a step in a JSON pointer of some tools.
        let id = format!("{}-{}-{kind}", card.domain, card.name);
        messages.insert(id.clone(), message(card, &name));
        let shard = json!({ "description": "The number of the key's shard, from 0" });
        let reference = json!({ "$ref": format!("#/components/messages/{id}") });
        let channel = json!({ "address": address, "parameters": { "shard": shard }, "messages": { &id: reference } });
        channels.insert(id.clone(), channel);
        let channel = json!({ "$ref": format!("#/channels/{id}") });
        operations.insert(id, json!({ "action": action, "channel": channel }));
    };
    for actor in manifest.domains.iter().flat_map(|domain| &domain.actors) {
        for command in &actor.handles {
            let address = format!("{namespace}.cmd.{}.{{shard}}.outside", command.domain);
            add(command, "command", "receive", address);
        }
        for event in &actor.records {
            let address = format!("{namespace}.evt.{}.{{shard}}.{}", event.domain, event.name);
            add(event, "event", "send", address);
        }
    }
    json!({
        "asyncapi": "3.0.0",
        "info": { "title": manifest.service, "version": version },
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages },
    })
}

fn message(card: &MessageCard, name: &str) -> Value {
    let kind = match card.codec {
        Codec::Json => "application/json",
        _ => "application/x-bincode",
    };
    // Bytes of bincode have no JSON Schema; the JSON form of the same type shows its fields.
    let shape = card.shapes.of(card.version, Codec::Json);
    let payload = shape.map_or(json!(true), |shape| json_schema(&shape));
    json!({ "name": name, "contentType": kind, "x-schema-version": card.version, "payload": payload })
}
