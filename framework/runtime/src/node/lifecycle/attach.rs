//! Attaches a bridge, on its own thread or the caller's, and claims the node's domains for its store.
//!
//! Called when a node starts and when a client connects. Calls the bridge and the store.

use std::sync::Arc;

use crate::node::definition::{NodeDefinition, OwnIdentity};
use crate::node::error::StartError;
use crate::node::inbound::bridge_handler::BridgeHandler;
use whizbang_core::bridge::{Bridge, Inbound, NodeCard, StoreCard};
use whizbang_core::message::ReplacedStore;
use whizbang_core::spawn::LocalThread;

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
    let earlier = identity.runs();
    let (mut tried, run) = identity.trying(nonce);
    let store = tried.store;
    // Saved before the claim is written: a node that crashes in between must recognize its claim at the next start.
    definition.store.save_identity(tried.clone()).await?;
    let replaces = definition.config.replaces_store;
    // Permanent: knowledge that peers have of the other store surfaces shard by shard, also after later starts.
    tried.in_place_of_other |= replaces != ReplacedStore::None;
    // Set before any message leaves or enters the node.
    let own = OwnIdentity { store, in_place_of_other: tried.in_place_of_other };
    drop(definition.identity.set(own));
    card = card.store(StoreCard::new(store, run).continuing(earlier).replacing(replaces));
    attach_on_thread(thread.as_ref(), bridge, card, handler).await?;
    let saved = definition.store.save_identity(tried.has_won(run)).await;
    if let Err(error) = saved {
        bridge.abandon();
        return Err(error.into());
    }
    tracing::info!(target: whizbang_core::telemetry::TARGET, %store, start = run.epoch, "domains claimed for the store");
    Ok(thread)
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
