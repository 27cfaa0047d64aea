//! Reads a service's logs from its store, when no node works on it.

use std::sync::Arc;

use whizbang::Domain;
use whizbang::message::{Name, ShardId};
use whizbang::store::{CommitListener, ShardReader, Store, StoreError, StoredEvent, Ticket};

use crate::service::ShopError;

/// How many events are read at a time.
const PAGE: usize = 1000;

/// Calls `each` with every event of a domain, shard by shard and in the order of their positions, then `shard` after each
/// shard. Counts the dead letters.
///
/// # Errors
/// What reading a store can meet.
pub async fn each_event<D: Domain>(
    store: &impl Store,
    mut each: impl FnMut(&StoredEvent) -> Result<(), ShopError>,
) -> Result<u64, ShopError> {
    let broken = |error: StoreError| ShopError::Log { service: D::NAME, reason: error.to_string() };
    let mut dead = 0;
    for shard in 0..D::SHARDS {
        let (_, reader) = open_shard::<D>(store, shard).await?;
        let mut after = 0;
        loop {
            let events = reader.events(after, PAGE).await.map_err(broken)?;
            let Some(last) = events.last().map(|event| event.position) else { break };
            events.iter().try_for_each(&mut each)?;
            after = last;
        }
        dead += reader.dead_letters(None, PAGE).await.map_err(broken)?.len() as u64;
    }
    Ok(dead)
}

/// Opens a shard of a domain for reading.
///
/// # Errors
/// What opening a shard can meet.
pub async fn open_shard<D: Domain>(
    store: &impl Store,
    shard: u16,
) -> Result<(ShardId, Arc<dyn ShardReader>), ShopError> {
    let broken = |reason: String| ShopError::Log { service: D::NAME, reason };
    let domain = Name::new(D::NAME).map_err(|error| broken(error.to_string()))?;
    let shard = ShardId::new(domain, shard);
    let opened = store.open(&shard, D::SHARDS, Arc::new(Deaf)).await.map_err(|error| broken(error.to_string()))?;
    Ok((shard, opened.reader))
}

/// Nothing is written here, so there is nothing to hear of.
struct Deaf;

impl CommitListener for Deaf {
    fn committed(&self, _: Ticket) {}

    fn failed(&self, _: StoreError) {}
}
