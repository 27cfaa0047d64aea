//! The catalog: the types whose bytes are in a store.

use serde::{Deserialize, Serialize};

/// An entry of a store's catalog: a stored name and the shape of its bytes.
///
/// The node writes the catalog and compares it with its own types at start. A store keeps the catalog
/// and does not interpret it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// The owner of the name: a domain, an actor type as `domain/actor`, or a service.
    pub owner: String,
    /// The kind of the named thing: `domain`, `actor`, `projection`, `event`, `command`, `timer` or `snapshot`. Newer
    /// versions may add others.
    pub kind: String,
    /// The name.
    pub name: String,
    /// The schema version of the shape; for a domain its number of shards; 0 if there is none.
    pub version: u32,
    /// The [number](crate::message::Codec::id) of the shape's codec; 0 if there is none.
    pub codec: u8,
    /// The shape as readable JSON; empty if it is not known.
    pub shape: String,
}
