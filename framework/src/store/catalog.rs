//! What a store knows about the types whose bytes are in it.

use serde::{Deserialize, Serialize};

/// One line of a store's catalog: a name that something was stored under, and the shape that its bytes have.
///
/// The [node](crate::Node) writes the catalog and compares it at start with its types. A store keeps it and looks at nothing in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// What the name belongs to: a domain, an actor type as `domain/actor`, or a service.
    pub owner: String,
    /// What it names: `domain`, `actor`, `projection`, `event`, `command`, `timer` or `snapshot`. Newer versions may add others.
    pub kind: String,
    /// The name.
    pub name: String,
    /// The schema version of the shape; for a domain its number of shards. 0 where there is none.
    pub version: u32,
    /// The [number](crate::message::Codec::id) of the codec that the shape is of; 0 where there is none.
    pub codec: u8,
    /// The shape as JSON, for people to read; empty if it is not known.
    pub shape: String,
}
