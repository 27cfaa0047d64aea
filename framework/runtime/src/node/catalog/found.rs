//! Searches the store for data under a name that the program does not know.
//!
//! Called by the [catalog](crate::node::catalog). Calls the store. Every search here is expensive, and runs only when a
//! name has been removed from the program.

use std::sync::Arc;

use crate::actor::own_timer_name;
use crate::node::error::StartError;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{ShardReader, Store, StoreError, TimerCursor};

/// Number of events, outbox entries, timers or dead letters read at a time.
const PAGE: usize = 1024;

/// Returns whether a saved view exists that contains any event.
pub(in crate::node) async fn has_view(store: &dyn Store, projection: &str) -> Result<bool, StartError> {
    let view = store.view(&Name::new(projection)?).await?;
    Ok(view.is_some_and(|view| view.checkpoint.iter().any(|(_, position)| *position > 0)))
}

pub(in crate::node) async fn readers(
    store: &dyn Store,
    domain: &str,
    shards: u16,
) -> Result<Vec<Arc<dyn ShardReader>>, StartError> {
    let domain = Name::new(domain)?;
    let mut readers = Vec::new();
    for shard in 0..shards {
        readers.extend(store.read(&ShardId::new(domain.clone(), shard)).await?);
    }
    Ok(readers)
}

/// Returns whether a shard's log contains an event of that name. Reads the whole log if it does not.
pub(in crate::node) async fn has_event(reader: &dyn ShardReader, name: &str) -> Result<bool, StoreError> {
    let mut after = 0;
    loop {
        let events = reader.events(after, PAGE).await?;
        if events.iter().any(|event| event.name.as_str() == name) {
            return Ok(true);
        }
        match events.last() {
            Some(last) => after = last.position,
            None => return Ok(false),
        }
    }
}

/// Returns whether a timer of that name is set for an actor type. Reads all timers of the type if none is.
pub(in crate::node) fn has_timer(reader: &dyn ShardReader, actor: &Name, name: &str) -> bool {
    let mut after = TimerCursor::default();
    loop {
        let page = reader.timers_of(actor, after, Timestamp::from_millis(u64::MAX), PAGE);
        if page.due.iter().any(|(_, timer)| own_timer_name(&timer.name).0 == name) {
            return true;
        }
        match page.due.last() {
            Some((place, _)) => after = *place,
            None => return false,
        }
    }
}

/// Returns whether a command of that name is in a shard's outbox or among its dead letters.
pub(in crate::node) async fn has_command(
    reader: &dyn ShardReader,
    domain: &str,
    name: &str,
) -> Result<bool, StoreError> {
    for (to, committed, _) in reader.outbox_heads() {
        let mut after = committed;
        while to.domain.as_str() == domain {
            let entries = reader.outbox(&to, after, PAGE).await?;
            if entries.iter().any(|entry| entry.envelope.name.as_str() == name) {
                return Ok(true);
            }
            match entries.last() {
                Some(last) => after = last.sequence,
                None => break,
            }
        }
    }
    let mut after = None;
    loop {
        let dead_letters = reader.dead_letters(after, PAGE).await?;
        let is_it = |envelope: &whizbang_core::message::Envelope| {
            envelope.domain.as_str() == domain && envelope.name.as_str() == name
        };
        if dead_letters.iter().any(|dead_letter| is_it(&dead_letter.envelope)) {
            return Ok(true);
        }
        match dead_letters.last() {
            Some(last) => after = Some(last.envelope.id),
            None => return Ok(false),
        }
    }
}
