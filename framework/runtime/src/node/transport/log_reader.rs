//! Pages of the logs of shards: of this node's own, and of other owners over the bridge.
//!
//! Called by the client transports for streams of events, and by the subscriptions of the node.

use crate::node::definition::REQUEST_TIMEOUT;
use crate::node::definition::known_owners::{KnownOwners, Ownership};
use crate::relay::{envelope_of, page};
use crate::router::{LogPage, ReadError};
use whizbang_core::bridge::{Bridge, Page, Request, RequestError, Response};
use whizbang_core::message::{Fingerprint, ShardId, StoreId};
use whizbang_core::store::ShardReader;
use whizbang_core::telemetry::error_chain;

/// Reads a page of a log of this node.
pub(in crate::node) async fn read_here(
    reader: &dyn ShardReader,
    shard: &ShardId,
    after: u64,
    limit: usize,
    store: Option<StoreId>,
) -> Result<LogPage, ReadError> {
    // Read before the events: an event committed in between may be missing from the page, and is announced again.
    let last = reader.position();
    let events = page::events(reader, after, limit).await.map_err(|error| later(error_chain(&error)))?;
    Ok(LogPage { events: events.into_iter().map(|event| envelope_of(shard, event)).collect(), last, store })
}

/// Requests a page from the owner of a log, and checks that it is of this log. The caller checks the [owner](check_owner).
pub(in crate::node) async fn request_page(
    bridge: &dyn Bridge,
    shard: ShardId,
    after: u64,
    limit: u32,
) -> Result<Page, ReadError> {
    let asked = Request::Events { shard, after, limit };
    match bridge.request(asked.clone(), REQUEST_TIMEOUT).await? {
        Response::Envelopes(page) if page.envelopes.iter().all(|event| asked.admits(event)) => Ok(page),
        Response::Envelopes(..) => Err(later("owner returned events of a different shard")),
        other => Err(later(format!("{other:?}"))),
    }
}

/// Checks that a page comes from the store that owns the domain.
pub(in crate::node) async fn check_owner(
    bridge: &dyn Bridge,
    owners: &KnownOwners,
    shard: &ShardId,
    store: Option<StoreId>,
) -> Result<(), ReadError> {
    match owners.find(bridge, &shard.domain, store).await {
        Ownership::Owner => Ok(()),
        _ => Err(later("answered by a store that does not own the domain")),
    }
}

/// Requests the shapes of an event from the owner of its shard.
pub(in crate::node) async fn request_shapes(
    bridge: &dyn Bridge,
    shard: ShardId,
    shape: Fingerprint,
) -> Result<Option<String>, ReadError> {
    match bridge.request(Request::Shape { from: shard, to: None, shape }, REQUEST_TIMEOUT).await? {
        Response::Shape(text) => Ok(Some(text)),
        // The service now runs another program than the one that wrote the event, perhaps without this request.
        Response::Refused(RequestError::Unhandled(_) | RequestError::Undecodable(_)) => Ok(None),
        other => Err(later(format!("{other:?}"))),
    }
}

fn later(reason: impl std::fmt::Display) -> ReadError {
    ReadError::Later(reason.to_string())
}
