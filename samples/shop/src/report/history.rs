//! Reads the logs in the store of a service, also while a node uses it. Writes nothing.

use std::sync::Arc;

use whizbang::Domain;
use whizbang::message::{Name, ShardId};
use whizbang::store::{DeadLetterReason, ShardReader, StoreError, StoredEvent};

use crate::logs::Logs;
use crate::service::ShopError;

/// The number of events read at a time.
const PAGE: usize = 1000;

/// Calls `each` with every event of a domain, shard by shard in order of position. Returns the number of dead letters.
///
/// # Errors
/// [`ShopError`] if the store cannot be read.
pub async fn each_event<D: Domain>(
    store: &Logs,
    mut each: impl FnMut(&StoredEvent) -> Result<(), ShopError>,
) -> Result<u64, ShopError> {
    let broken =
        |error: StoreError| ShopError::Log { service: D::NAME, reason: whizbang::error_chain(&error).to_string() };
    let mut dead = 0;
    for shard in 0..D::SHARDS {
        let Some((_, reader)) = shard_log::<D>(store, shard).await? else { continue };
        let mut after = 0;
        loop {
            let events = reader.events(after, PAGE).await.map_err(broken)?;
            let Some(last) = events.last().map(|event| event.position) else { break };
            events.iter().try_for_each(&mut each)?;
            after = last;
        }
        let letters = reader.dead_letters(None, PAGE).await.map_err(broken)?;
        // Messages that wait behind a parked one are stored with the dead letters, but are not dead letters.
        dead += letters.iter().filter(|letter| letter.reason != DeadLetterReason::Deferred).count() as u64;
    }
    Ok(dead)
}

/// A shard and its log.
pub type ShardLog = (ShardId, Arc<dyn ShardReader>);

/// Returns the log of a shard of a domain; `None` if nothing was ever written to it.
///
/// # Errors
/// [`ShopError`] if the store cannot be read.
pub async fn shard_log<D: Domain>(store: &Logs, shard: u16) -> Result<Option<ShardLog>, ShopError> {
    let domain = Name::new(D::NAME).map_err(|error| ShopError::Log { service: D::NAME, reason: error.to_string() })?;
    let shard = ShardId::new(domain, shard);
    let broken = |error: StoreError| ShopError::Log { service: D::NAME, reason: error.to_string() };
    Ok(store.read(&shard).await.map_err(broken)?.map(|reader| (shard, reader)))
}
