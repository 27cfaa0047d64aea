//! Known owners: which store owns each remote domain.
//!
//! Called by the bridge handler and by requests to other services. Two stores must never speak for one domain: their
//! logs assign the same positions to different messages. The claim at the broker names the owner; it is read when an
//! unknown store appears.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use whizbang_core::bridge::Bridge;
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, Kind, Name, StoreId};
use whizbang_core::telemetry::{LogLimit, TARGET, error_chain};

/// Most domains remembered. A forger can name any number of domains.
const MAX_DOMAINS: usize = 1024;
/// Shortest interval between reads of the claim on a domain.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait for another task that reads the claim. Reading takes at most [`MIN_INTERVAL`].
const LONGEST_READING: Duration = Duration::from_secs(2);
/// Time for which a domain without a claim counts as unclaimed.
const UNCLAIMED: Duration = Duration::from_secs(30);
/// Time for which a foreign store is listed after its last message.
const LISTED: Duration = Duration::from_secs(300);

/// Relation of a store to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum Ownership {
    /// The store owns the domain, or nothing contradicts it.
    Owner,
    /// Another store owns the domain.
    Foreign,
    /// The claim must be read first.
    Unknown,
}

/// Knowledge about one domain.
#[derive(Default)]
struct DomainClaim {
    /// Store of the last claim that was read.
    owner: Option<StoreId>,
    /// Time of the last read of the claim.
    read_at: Option<Instant>,
    /// Held while the claim is read, by one task at a time.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// Last foreign store, and the time of its last message.
    foreign: Option<(StoreId, Instant)>,
}

/// Owning stores of remote domains.
pub(in crate::node) struct KnownOwners {
    domains: Mutex<BTreeMap<Name, DomainClaim>>,
    /// Events of foreign stores that were dropped.
    pub(in crate::node) events_dropped: AtomicU64,
    /// Commands and replies of foreign stores that were dropped.
    pub(in crate::node) commands_dropped: AtomicU64,
    /// The limit of lines about claims: a forger can name any number of domains and stores.
    pub(in crate::node) log_limit: LogLimit,
}

impl Default for KnownOwners {
    fn default() -> Self {
        Self {
            domains: Mutex::default(),
            events_dropped: AtomicU64::new(0),
            commands_dropped: AtomicU64::new(0),
            log_limit: LogLimit::new("claims of domains", 10),
        }
    }
}

impl KnownOwners {
    /// Counts a message of a foreign store that was dropped.
    pub(in crate::node) fn count_dropped(&self, kind: Kind) {
        let count = if kind == Kind::Event { &self.events_dropped } else { &self.commands_dropped };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether `store` owns a domain, as far as known. A sender without an identity is not doubted.
    pub(in crate::node) fn ownership(&self, domain: &Name, store: Option<StoreId>) -> Ownership {
        let Some(store) = store else { return Ownership::Owner };
        let mut peers = self.domains.lock();
        let Some(peer) = peers.get_mut(domain) else { return Ownership::Unknown };
        if peer.owner == Some(store) {
            return Ownership::Owner;
        }
        let Some(since) = peer.read_at.map(|read| instant().duration_since(read)) else { return Ownership::Unknown };
        match peer.owner {
            None if since < UNCLAIMED => Ownership::Owner,
            Some(_) if since < MIN_INTERVAL => {
                peer.foreign = Some((store, instant()));
                Ownership::Foreign
            }
            None | Some(_) => Ownership::Unknown,
        }
    }

    /// Like [`ownership`](Self::ownership), after reading the claim if it is unknown.
    pub(in crate::node) async fn find(&self, bridge: &dyn Bridge, domain: &Name, store: Option<StoreId>) -> Ownership {
        if self.ownership(domain, store) == Ownership::Unknown {
            self.learn(bridge, domain, store).await;
        }
        match self.ownership(domain, store) {
            // The table is full, or reading took longer than an answer is valid.
            Ownership::Unknown => Ownership::Owner,
            known => known,
        }
    }

    async fn learn(&self, bridge: &dyn Bridge, domain: &Name, store: Option<StoreId>) {
        let reading = {
            let mut peers = self.domains.lock();
            if peers.len() >= MAX_DOMAINS && !peers.contains_key(domain) {
                peers.retain(|_, peer| peer.owner.is_some() || Arc::strong_count(&peer.reading) > 1);
                if peers.len() >= MAX_DOMAINS {
                    return;
                }
            }
            Arc::clone(&peers.entry(domain.clone()).or_default().reading)
        };
        // The task that reads may be one that its caller does not poll: the claim is then read by this one as well.
        let _reading = tokio::time::timeout(LONGEST_READING, reading.lock()).await.ok();
        if self.ownership(domain, store) != Ownership::Unknown {
            return;
        }
        let claimed = tokio::time::timeout(MIN_INTERVAL, bridge.owner(domain)).await;
        let mut peers = self.domains.lock();
        let Some(peer) = peers.get_mut(domain) else { return };
        peer.read_at = Some(instant());
        match claimed {
            Ok(Ok(Some(owner))) if peer.owner != Some(owner) => {
                if let Some(before) = peer.owner
                    && self.log_limit.admits(instant())
                {
                    tracing::warn!(target: TARGET, %domain, %before, store = %owner, "domain claimed for a different store than before");
                }
                peer.owner = Some(owner);
                peer.foreign = None;
            }
            // A lost claim is renewed by its node: until then the known owner stands.
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) if !self.log_limit.admits(instant()) => {}
            Ok(Err(error)) => tracing::warn!(
                target: TARGET, %domain, error = %error_chain(&error),
                "failed to read the claim on a domain",
            ),
            Err(_) => tracing::warn!(target: TARGET, %domain, "claim on a domain not read in time"),
        }
        let owner = peer.owner;
        if let (Some(store), Some(owner)) = (store, owner)
            && store != owner
            && self.log_limit.admits(instant())
        {
            tracing::error!(target: TARGET, %domain, %store, %owner, "messages dropped: their store does not own the domain");
        }
    }

    /// Returns the foreign stores seen recently, for health.
    pub(in crate::node) fn foreign_stores(&self) -> Vec<String> {
        let now = instant();
        let peers = self.domains.lock();
        let heard = peers.iter().filter_map(|(domain, peer)| {
            let (store, _) = peer.foreign.filter(|(_, at)| now.duration_since(*at) < LISTED)?;
            let owner = peer.owner?;
            Some(format!(
                "messages of domain `{domain}` from store {store} are dropped: the domain is claimed for store {owner}. \
                 End the node on {store}, or see \"Claims\" in docs/running.md"
            ))
        });
        heard.collect()
    }
}

/// Returns the domain and the store that an envelope claims as its origin.
pub(in crate::node) fn claimed_store(envelope: &Envelope) -> Option<(&Name, StoreId)> {
    let origin = envelope.origin.as_ref()?;
    Some((&origin.shard.domain, origin.store?))
}
