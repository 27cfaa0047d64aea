//! Which store speaks for each domain of others.
//!
//! Called by the node's door and by what asks others. Two stores must never speak for one domain: their logs give the same positions
//! to different messages. The claim at the broker says which one is the owner's; it is read when a store appears that is not known.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bridge::Bridge;
use crate::clock::instant;
use crate::message::{Envelope, Name, StoreId};
use crate::telemetry::TARGET;

/// How many domains are known at most. Anyone can name domains without end.
const MOST: usize = 1024;
/// How often the claim on a domain is read at most.
const PACE: Duration = Duration::from_secs(1);
/// How long a domain counts as unclaimed that had no claim.
const UNCLAIMED: Duration = Duration::from_secs(30);
/// How long a stranger is listed after its last message.
const LISTED: Duration = Duration::from_secs(300);

/// Whether a store speaks for a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KnownOwner {
    /// It is the owner's, or nothing says otherwise.
    Owner,
    /// Another store is.
    Stranger,
    /// The claim is to be read first.
    Unknown,
}

/// What is known of one domain.
#[derive(Default)]
struct Peer {
    /// The store of the last claim that was read.
    owner: Option<StoreId>,
    /// When the claim was last read.
    read: Option<Instant>,
    /// One reader at a time.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// The last store that is not the owner's, and when it was last heard.
    stranger: Option<(StoreId, Instant)>,
}

/// Which store speaks for each domain of others.
#[derive(Default)]
pub(super) struct KnownOwners(Mutex<BTreeMap<Name, Peer>>);

impl KnownOwners {
    /// Returns whether `store` speaks for a domain, by what is known now. A sender without an identity is not doubted.
    pub(super) fn speaker(&self, domain: &Name, store: Option<StoreId>) -> KnownOwner {
        let Some(store) = store else { return KnownOwner::Owner };
        let mut peers = self.0.lock();
        let Some(peer) = peers.get_mut(domain) else { return KnownOwner::Unknown };
        if peer.owner == Some(store) {
            return KnownOwner::Owner;
        }
        let Some(since) = peer.read.map(|read| instant().duration_since(read)) else { return KnownOwner::Unknown };
        match peer.owner {
            None if since < UNCLAIMED => KnownOwner::Owner,
            Some(_) if since < PACE => {
                peer.stranger = Some((store, instant()));
                KnownOwner::Stranger
            }
            None | Some(_) => KnownOwner::Unknown,
        }
    }

    /// The same, after the claim was read if need be.
    pub(super) async fn find(&self, bridge: &dyn Bridge, domain: &Name, store: Option<StoreId>) -> KnownOwner {
        if self.speaker(domain, store) == KnownOwner::Unknown {
            self.learn(bridge, domain, store).await;
        }
        match self.speaker(domain, store) {
            // There are more domains than are kept, or reading has taken as long as an answer is good for.
            KnownOwner::Unknown => KnownOwner::Owner,
            known => known,
        }
    }

    async fn learn(&self, bridge: &dyn Bridge, domain: &Name, store: Option<StoreId>) {
        let reading = {
            let mut peers = self.0.lock();
            if peers.len() >= MOST && !peers.contains_key(domain) {
                peers.retain(|_, peer| peer.owner.is_some() || Arc::strong_count(&peer.reading) > 1);
                if peers.len() >= MOST {
                    return;
                }
            }
            Arc::clone(&peers.entry(domain.clone()).or_default().reading)
        };
        let _reading = reading.lock().await;
        if self.speaker(domain, store) != KnownOwner::Unknown {
            return;
        }
        let claimed = tokio::time::timeout(PACE, bridge.owner(domain)).await;
        let mut peers = self.0.lock();
        let Some(peer) = peers.get_mut(domain) else { return };
        peer.read = Some(instant());
        match claimed {
            Ok(Ok(Some(owner))) if peer.owner != Some(owner) => {
                if let Some(before) = peer.owner {
                    tracing::warn!(target: TARGET, %domain, %before, store = %owner, "a domain is claimed for another store than before");
                }
                peer.owner = Some(owner);
                peer.stranger = None;
            }
            // A claim that is lost is made again by its node: until then what was known holds.
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(target: TARGET, %domain, %error, "failed to read the claim on a domain"),
            Err(_) => tracing::warn!(target: TARGET, %domain, "the claim on a domain was not read in time"),
        }
        let owner = peer.owner;
        if let (Some(store), Some(owner)) = (store, owner)
            && store != owner
        {
            tracing::error!(target: TARGET, %domain, %store, %owner, "messages of a store that does not own their domain are dropped");
        }
    }

    /// The strangers that were heard of late, for health.
    pub(super) fn strangers(&self) -> Vec<String> {
        let now = instant();
        let peers = self.0.lock();
        let heard = peers.iter().filter_map(|(domain, peer)| {
            let (store, _) = peer.stranger.filter(|(_, at)| now.duration_since(*at) < LISTED)?;
            let owner = peer.owner?;
            Some(format!(
                "messages of domain `{domain}` from store {store} are dropped: the domain is claimed for store {owner}. \
                 End the node on {store}, or see \"Claims\" in docs/running.md"
            ))
        });
        heard.collect()
    }
}

/// The domain and the store that an envelope says it comes from.
pub(super) fn said_by(envelope: &Envelope) -> Option<(&Name, StoreId)> {
    let origin = envelope.origin.as_ref()?;
    Some((&origin.shard.domain, origin.store?))
}
