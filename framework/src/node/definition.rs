//! What all threads of a node share: frozen when it starts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use foldhash::fast::FixedState;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::hosted::HostedType;
use super::known_owners::KnownOwners;
use super::thread_handles::ThreadHandles;
use super::{Health, Metrics, NodeConfig, NodeEnd};
use crate::bridge::{Bridge, NodeCard};
use crate::inbox::HealthIssues;
use crate::message::{Envelope, Name, ShardId, StoreId};
use crate::projection::ViewType;
use crate::retry::Retries;
use crate::router::{Manifest, NodeId, PeerShapes};
use crate::store::{DeadLetterReason, ShardReader, Store};
use crate::telemetry::Counts;
use crate::user_code::{Ticks, UserCode};

/// The thread that has the projections.
pub(super) const VIEWS: usize = 0;

/// How many letters are looked through for one that is not only deferred.
const EXAMPLES: usize = 16;

/// What all threads of a node share.
pub(super) struct NodeDefinition {
    pub(super) id: NodeId,
    pub(super) manifest: Manifest,
    pub(super) card: NodeCard,
    pub(super) config: NodeConfig,
    pub(super) retries: Retries,
    pub(super) store: Arc<dyn Store>,
    pub(super) bridge: Option<Arc<dyn Bridge>>,
    pub(super) actors: Vec<ActorDefinition>,
    pub(super) views: Vec<ViewDefinition>,
    /// Which projection answers a query, by domain and name.
    pub(super) answers: HashMap<(Name, Name), usize, FixedState>,
    pub(super) issues: Arc<HealthIssues>,
    /// The known shapes of other services; nothing without a bridge.
    pub(super) shapes: Arc<PeerShapes>,
    /// Held while another service is asked for shapes.
    pub(super) asks_for_shapes: tokio::sync::Mutex<super::peers::Failed>,
    /// Owned domains and their number of shards.
    pub(super) domains: BTreeMap<Name, u16>,
    /// Domains whose events are taken, with their number of shards.
    pub(super) sources: BTreeMap<Name, u16>,
    pub(super) readers: Mutex<HashMap<ShardId, Arc<dyn ShardReader>, FixedState>>,
    /// How user code is called, by thread; and with it what each thread counts.
    pub(super) user_code: Vec<Arc<UserCode>>,
    /// Whether there may be threads besides those of the shares; not in a simulation.
    pub(super) has_threads: bool,
    /// Measures user code; stands still in a simulation.
    pub(super) ticks: Arc<Ticks>,
    pub(super) draining: AtomicBool,
    /// One permit: what was under way when the process ended before is delivered one at a time.
    pub(super) suspect_permits: Arc<Semaphore>,
    pub(super) broken: Mutex<Option<String>>,
    /// Set once the node has ended itself.
    pub(super) ended: watch::Sender<Option<NodeEnd>>,
    /// The identity of the store; set before anything leaves the node.
    pub(super) identity: OnceLock<OwnIdentity>,
    pub(super) known_owners: KnownOwners,
}

/// The store of this node, as other nodes know it.
pub(super) struct OwnIdentity {
    pub(super) store: StoreId,
    /// An operator has said that it stands in for another one, or for a newer state of itself.
    pub(super) in_place_of_other: bool,
}

/// One hosted actor type.
pub(super) struct ActorDefinition {
    pub(super) domain: Name,
    pub(super) actor: Name,
    pub(super) hosted: Arc<dyn HostedType>,
    /// The commands it handles.
    pub(super) handles: Vec<Name>,
    /// The events it takes: source domain and name.
    pub(super) takes: Vec<(Name, Name)>,
    /// The names that the domain's stored events may have.
    pub(super) events: Arc<HashSet<String>>,
    /// It takes events through feeds of its own, because it may be slow.
    pub(super) apart: bool,
}

/// One hosted projection.
pub(super) struct ViewDefinition {
    pub(super) name: Name,
    pub(super) hosted: Arc<dyn ViewType>,
    /// The events it takes: source domain and name.
    pub(super) takes: Vec<(Name, Name)>,
}

impl NodeDefinition {
    /// How many threads have a share of the node.
    pub(super) fn shares(&self) -> usize {
        self.user_code.len().max(1)
    }

    /// How user code is called on a thread.
    pub(super) fn code(&self, share: usize) -> Arc<UserCode> {
        self.user_code.get(share).cloned().unwrap_or_else(|| UserCode::new(&self.ticks))
    }

    /// The thread that has a shard.
    pub(super) fn home(&self, shard: u16) -> usize {
        usize::from(shard) % self.shares()
    }

    pub(super) fn owns(&self, domain: &str) -> Option<u16> {
        self.domains.get(domain).copied()
    }

    /// Returns whether events of an event's shard are taken here.
    pub(super) fn takes_from(&self, event: &Envelope) -> bool {
        let source = event.origin.as_ref().map(|origin| &origin.shard);
        source.is_some_and(|source| self.sources.get(&source.domain).is_some_and(|shards| source.shard < *shards))
    }

    pub(super) fn reader(&self, shard: &ShardId) -> Option<Arc<dyn ShardReader>> {
        self.readers.lock().get(shard).cloned()
    }

    /// The identity of the store, if it has one.
    pub(super) fn store_id(&self) -> Option<StoreId> {
        self.identity.get().map(|own| own.store)
    }

    /// The envelope as it leaves the node.
    pub(super) fn signed(&self, mut envelope: Envelope) -> Envelope {
        if let Some(origin) = &mut envelope.origin {
            origin.store = self.store_id();
        }
        envelope
    }

    /// Ends the whole node: it must not answer for what is not its own, or do again what it has done. Taking the shards back from
    /// another node would only have the two take them from each other in turns.
    pub(super) fn retire(&self, links: &ThreadHandles, why: NodeEnd) {
        self.broken.lock().get_or_insert(why.to_string());
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(why);
            is_first
        });
        if let Some(bridge) = &self.bridge {
            bridge.abandon();
        }
        links.run_all(|share| share.end());
    }

    /// The health of the node whose threads are behind `thread_handles`.
    pub(super) fn health_with(&self, links: &ThreadHandles) -> Health {
        let mut health = self.health();
        // Of a node that was taken over all threads have ended, and it is known why.
        if health.live
            && let Some(thread) = links.ended()
        {
            health.live = false;
            health.ready = false;
            health.reasons.push(format!("thread {thread} of the node has ended"));
        }
        health
    }

    fn health(&self) -> Health {
        let mut reasons = Vec::new();
        if let Some(reason) = self.broken.lock().clone() {
            reasons.push(reason);
        }
        let live = reasons.is_empty();
        if self.draining.load(Ordering::Relaxed) {
            reasons.push("the node stops".to_owned());
        }
        reasons.extend(self.issues.reasons());
        reasons.extend(self.store.issues().iter().map(|trouble| format!("the store: {trouble}")));
        if let Some(bridge) = &self.bridge {
            reasons.extend(bridge.health().issues);
        }
        for (thread, code) in self.user_code.iter().enumerate() {
            if let Some((since, actor, message)) = code.blocked(self.config.blocked_after) {
                reasons
                    .push(format!("thread {thread} is blocked since {since:?} by user code: `{message}` at `{actor}`"));
            }
        }
        let ready = reasons.is_empty();
        reasons.extend(self.issues.notes());
        for (thread, code) in self.user_code.iter().enumerate() {
            reasons.extend(code.failures().into_iter().map(|failure| format!("thread {thread}: {failure}")));
        }
        reasons.extend(self.known_owners.strangers());
        // They are listed, and the node is ready: all other keys are served.
        let keys = self.issues.keys();
        let all: u64 = self.user_code.iter().map(|code| code.counts.unloadable.get()).sum();
        let listed = keys.len() as u64;
        reasons.extend(keys);
        if all > listed {
            reasons.push(format!("{all} keys cannot be loaded, {listed} of them are listed here"));
        }
        // One bad key stops no others: the node is ready all the same, and an operator is told.
        reasons.extend(self.letters());
        Health { live, ready, reasons }
    }

    /// How many dead letters wait for an operator, and one of them. Costs the number of shards.
    fn letters(&self) -> Option<String> {
        let readers = self.readers.lock();
        let count: u64 = readers.values().map(|reader| reader.dead_letter_count()).sum();
        let first = readers.values().find(|reader| reader.dead_letter_count() > 0)?;
        // A store that has to wait for its answer is not waited for.
        let letters = first.dead_letters(None, EXAMPLES).now_or_never().and_then(Result::ok).unwrap_or_default();
        let example = letters.iter().find(|letter| letter.reason != DeadLetterReason::Deferred);
        let example = example.map_or_else(String::new, |letter| {
            let (actor, key, name) = (&letter.actor, letter.key.escape_debug(), &letter.envelope.name);
            format!(", for example `{name}` of {actor} `{key}`: {}", letter.error)
        });
        let them = if count == 1 { "message waits as a dead letter" } else { "messages wait as dead letters" };
        Some(format!("{count} {them} (Node::dead_letters): redrive or discard{example}"))
    }

    /// Turns in flight now.
    pub(super) fn in_flight(&self) -> u64 {
        self.user_code.iter().map(|code| code.counts.in_flight.get()).sum()
    }

    /// Jobs in memory now.
    #[cfg(feature = "testing")]
    pub(super) fn jobs(&self) -> u64 {
        self.user_code.iter().map(|code| code.counts.jobs.get()).sum()
    }

    pub(super) fn metrics(&self) -> Metrics {
        let sum = |of: fn(&Counts) -> u64| self.user_code.iter().map(|code| of(&code.counts)).sum();
        let bridge = self.bridge.as_ref().map(|bridge| bridge.health()).unwrap_or_default();
        Metrics {
            turns: sum(|counts| counts.turns.get()),
            events: sum(|counts| counts.events.get()),
            rejections: sum(|counts| counts.rejections.get()),
            duplicates: sum(|counts| counts.duplicates.get()),
            retries: sum(|counts| counts.retries.get()),
            dead_letters: sum(|counts| counts.dead_letters.get()),
            failed: sum(|counts| counts.failed.get()),
            given_up: sum(|counts| counts.given_up.get()),
            panics: sum(|counts| counts.panics.get()),
            failed_tasks: sum(|counts| counts.failed_tasks.get()),
            snapshots_skipped: sum(|counts| counts.snapshots_skipped.get()),
            longest_call: self.user_code.iter().map(|code| code.longest()).max().unwrap_or_default(),
            busy: sum(|counts| counts.busy.get()),
            activations: sum(|counts| counts.activations.get()),
            passivations: sum(|counts| counts.passivations.get()),
            unloadable_keys: sum(|counts| counts.unloadable.get()),
            deferred: sum(|counts| counts.deferred.get()),
            gaps: sum(|counts| counts.gaps.get()),
            events_dropped: sum(|counts| counts.events_dropped.get()),
            commands_dropped: sum(|counts| counts.commands_dropped.get()),
            sent: sum(|counts| counts.sent.get()),
            shape_refusals: self.shapes.refused.load(Ordering::Relaxed),
            refused: bridge.refused,
            recreated_consumers: bridge.recreated_consumers,
        }
    }
}
