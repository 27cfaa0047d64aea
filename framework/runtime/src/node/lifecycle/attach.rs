//! Attaches a bridge, on its own thread or the caller's, and claims the node's domains for its store.
//!
//! Called when a node starts and when a client connects. Calls the bridge and the store.

use std::sync::Arc;

use crate::node::definition::{NodeDefinition, OwnIdentity};
use crate::node::error::StartError;
use crate::node::inbound::bridge_handler::BridgeHandler;
use whizbang_core::bridge::{Bridge, Inbound, NodeCard, StoreCard};
use whizbang_core::message::{ReplacedStore, Run, StoreIdentity};
use whizbang_core::spawn::LocalThread;
use whizbang_core::store::{Store, StoreError};

/// Attaches the bridge, which claims the node's domains for its store. Returns the bridge's thread, if the node has
/// threads.
pub(in crate::node) async fn attach(
    definition: &NodeDefinition,
    bridge: &Arc<dyn Bridge>,
    mut card: NodeCard,
    handler: Arc<BridgeHandler>,
    nonce: u64,
) -> Result<Option<LocalThread>, StartError> {
    let thread = match definition.config.threads {
        0 => None,
        _ => Some(LocalThread::start("whizbang-bridge").map_err(|_| StartError::Thread)?),
    };
    let identity = match definition.domains.is_empty() {
        true => None,
        false => definition.store.identity().await?,
    };
    let Some(identity) = identity else {
        attach_on_thread(thread.as_ref(), bridge, card, handler).await?;
        return Ok(thread);
    };
    // Saved before the claim is written: a node that crashes in between must recognize its claim at the next start.
    let (earlier, run) = try_start(&*definition.store, identity, nonce).await?;
    let (store, replaces) = (earlier.store, definition.config.replaces_store);
    // Permanent: knowledge that peers have of the other store surfaces shard by shard, also after later starts.
    let in_place_of_other = earlier.in_place_of_other || replaces != ReplacedStore::None;
    // Set before any message leaves or enters the node.
    let own = OwnIdentity { store, in_place_of_other };
    drop(definition.identity.set(own));
    card = card.store(StoreCard::new(store, run).continuing(earlier.runs()).replacing(replaces));
    attach_on_thread(thread.as_ref(), bridge, card, handler).await?;
    let saved = record_start(&*definition.store, run, in_place_of_other).await;
    if let Err(error) = saved {
        bridge.abandon();
        return Err(error.into());
    }
    tracing::info!(target: whizbang_core::telemetry::TARGET, %store, start = run.epoch, "domains claimed for the store");
    Ok(thread)
}

/// Adds this start to the store's identity. Returns the identity before it, and the start. Another node of the service may
/// start at the same time: each is added to what the other has saved. Ends because each failed attempt is a start of
/// another node.
async fn try_start(
    store: &dyn Store,
    mut identity: StoreIdentity,
    nonce: u64,
) -> Result<(StoreIdentity, Run), StoreError> {
    loop {
        let (tried, run) = identity.clone().trying(nonce);
        if store.replace_identity(identity.clone(), tried).await? {
            return Ok((identity, run));
        }
        identity = current(store).await?;
    }
}

/// Records that a start has acquired its claims.
async fn record_start(store: &dyn Store, run: Run, in_place_of_other: bool) -> Result<(), StoreError> {
    loop {
        let identity = current(store).await?;
        let mut won = identity.clone().has_won(run);
        won.in_place_of_other |= in_place_of_other;
        if store.replace_identity(identity, won).await? {
            return Ok(());
        }
    }
}

async fn current(store: &dyn Store) -> Result<StoreIdentity, StoreError> {
    // A store that had an identity has lost it: nothing can be claimed for it.
    store.identity().await?.ok_or(StoreError::Closed)
}

/// Attaches the bridge on `thread`, where its tasks then run; without one, on the current thread.
pub(in crate::node) async fn attach_on_thread(
    thread: Option<&LocalThread>,
    bridge: &Arc<dyn Bridge>,
    card: NodeCard,
    handler: Arc<dyn Inbound>,
) -> Result<(), StartError> {
    let Some(thread) = thread else { return Ok(bridge.attach(card, handler).await?) };
    let bridge = Arc::clone(bridge);
    let attached = thread.run(move || async move { bridge.attach(card, handler).await }).await;
    Ok(attached.ok_or(StartError::Thread)??)
}
