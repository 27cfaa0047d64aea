//! Node definition: the state that all threads of a node share.
//!
//! Built once by the builder, then read by the threads, the bridge handler and the handles. The set of types, domains
//! and subscriptions never changes after the start.

pub(in crate::node) mod known_owners;
pub(in crate::node) mod local_watches;
pub(in crate::node) mod log_limits;
pub(in crate::node) mod peers;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use foldhash::fast::FixedState;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::actor::FailureLog;
use crate::inbox::HealthIssues;
use crate::layer::Layers;
use crate::node::catalog::hosted::HostedType;
use crate::node::catalog::newer_types::NewerTypes;
use crate::node::config::NodeConfig;
use crate::node::definition::known_owners::KnownOwners;
use crate::node::definition::local_watches::LocalWatches;
use crate::node::definition::log_limits::LogLimits;
use crate::node::error::NodeEnd;
use crate::node::health::{Health, Metrics};
use crate::node::ownership::{Membership, MembershipCounts};
use crate::node::singleton::HostedSingleton;
use crate::node::thread_handles::{NodeThread, ThreadHandles};
use crate::projection::ViewType;
use crate::router::{Manifest, NodeId, OpenShards, PeerShapes};
use whizbang_core::bridge::{Bridge, NodeCard};
use whizbang_core::message::{Envelope, Name, ShardId, StoreId};
use whizbang_core::retry::Retries;
use whizbang_core::store::{DeadLetterReason, MemberId, ShardReader, Store};
use whizbang_core::telemetry::{Counts, error_chain};
use whizbang_core::user_code::{Ticks, UserCode};

/// Time-out of a request to another node for missing messages. Short: repeating the request is cheap, waiting delays
/// others.
pub(in crate::node) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Index of the thread that runs the projections.
pub(in crate::node) const VIEW_THREAD: usize = 0;

/// Domains whose owners could not be reached, and when.
pub(in crate::node) type FailedPeers = HashMap<Name, Instant, FixedState>;

/// Number of dead letters read to find one that is not only deferred.
const EXAMPLES_READ: usize = 16;

/// State that all threads of a node share.
pub(in crate::node) struct NodeDefinition {
    pub(in crate::node) id: NodeId,
    pub(in crate::node) manifest: Arc<Manifest>,
    pub(in crate::node) card: NodeCard,
    pub(in crate::node) config: NodeConfig,
    pub(in crate::node) retries: Retries,
    /// The names of the headers that are passed on from a handled message to everything that it causes.
    pub(in crate::node) propagated: Arc<[String]>,
    /// The layers around the handlers.
    pub(in crate::node) layers: Arc<Layers>,
    pub(in crate::node) store: Arc<dyn Store>,
    pub(in crate::node) bridge: Option<Arc<dyn Bridge>>,
    pub(in crate::node) actors: Vec<ActorDefinition>,
    pub(in crate::node) views: Vec<ViewDefinition>,
    /// Index of the projection that answers a query, by domain and name.
    pub(in crate::node) answers: HashMap<(Name, Name), usize, FixedState>,
    /// Queries that actors answer from the state of a key, by domain and name.
    pub(in crate::node) keyed_queries: HashSet<(Name, Name), FixedState>,
    pub(in crate::node) issues: Arc<HealthIssues>,
    /// Known shapes of other services; empty without a bridge.
    pub(in crate::node) shapes: Arc<PeerShapes>,
    /// Locked while shapes are requested from another service.
    pub(in crate::node) shape_requests: tokio::sync::Mutex<FailedPeers>,
    /// Owned domains with their number of shards.
    pub(in crate::node) domains: BTreeMap<Name, u16>,
    /// Subscribed domains with their number of shards.
    pub(in crate::node) sources: BTreeMap<Name, u16>,
    /// The shards of the owned domains that are open here.
    pub(in crate::node) open_shards: Arc<OpenShards>,
    /// The node as a member of its service, if the store leases shards.
    pub(in crate::node) member: OnceLock<MemberId>,
    /// Readers of the open shards, including those that are handed over.
    pub(in crate::node) readers: DashMap<ShardId, Arc<dyn ShardReader>, FixedState>,
    /// User-code runner of each thread, with the thread's counters.
    pub(in crate::node) user_code: Vec<Arc<UserCode>>,
    /// Permission to start helper threads may be started; false in a simulation.
    pub(in crate::node) has_threads: bool,
    /// Clock that measures user code; does not advance in a simulation.
    pub(in crate::node) ticks: Arc<Ticks>,
    pub(in crate::node) draining: AtomicBool,
    /// One permit: messages in flight when the process last ended are delivered one at a time, so that a crash is
    /// blamed on the right one.
    pub(in crate::node) suspect_permits: Arc<Semaphore>,
    pub(in crate::node) broken: Mutex<Option<String>>,
    /// Set once the node has ended itself.
    pub(in crate::node) ended: watch::Sender<Option<NodeEnd>>,
    /// Identity of the store; set before any message leaves the node.
    pub(in crate::node) identity: OnceLock<OwnIdentity>,
    pub(in crate::node) known_owners: KnownOwners,
    pub(in crate::node) log_limits: Arc<LogLimits>,
    pub(in crate::node) failure_log: Arc<FailureLog>,
    /// Streams of events that clients of this node read.
    pub(in crate::node) watches: Arc<LocalWatches>,
    /// The leases of this node, if several nodes share the store.
    pub(in crate::node) membership: Option<Arc<Membership>>,
    /// Types of nodes with a newer program.
    pub(in crate::node) newer: NewerTypes,
    pub(in crate::node) singletons: Vec<HostedSingleton>,
}

/// Identity of this node's store, as other nodes know it.
pub(in crate::node) struct OwnIdentity {
    pub(in crate::node) store: StoreId,
    /// An operator has declared that it replaces another store, or a newer state of itself.
    pub(in crate::node) in_place_of_other: bool,
}

/// One hosted actor type.
pub(in crate::node) struct ActorDefinition {
    pub(in crate::node) domain: Name,
    pub(in crate::node) actor: Name,
    pub(in crate::node) hosted: Arc<dyn HostedType>,
    /// Commands it handles, with their newest schema version.
    pub(in crate::node) handles: Vec<(Name, u32)>,
    /// Events it subscribes to: source domain and name.
    pub(in crate::node) takes: Vec<(Name, Name)>,
    /// Names that the domain's stored events may have.
    pub(in crate::node) events: Arc<HashSet<String>>,
    /// Has its own subscriptions because it may be slow.
    pub(in crate::node) is_isolated: bool,
}

/// One hosted projection.
pub(in crate::node) struct ViewDefinition {
    pub(in crate::node) name: Name,
    pub(in crate::node) hosted: Arc<dyn ViewType>,
    /// Events it subscribes to: source domain and name.
    pub(in crate::node) takes: Vec<(Name, Name)>,
}

impl NodeDefinition {
    /// Returns the number of actor threads.
    pub(in crate::node) fn thread_count(&self) -> usize {
        self.user_code.len().max(1)
    }

    /// Returns the user-code runner of a thread.
    pub(in crate::node) fn code(&self, thread: usize) -> Arc<UserCode> {
        self.user_code.get(thread).cloned().unwrap_or_else(|| UserCode::new(&self.ticks))
    }

    /// Returns the thread that owns a shard.
    pub(in crate::node) fn thread_of(&self, shard: u16) -> usize {
        usize::from(shard) % self.thread_count()
    }

    /// Returns whether this node may answer from memory for its shards and views: always, unless its lease has run out.
    pub(in crate::node) fn serves(&self) -> bool {
        self.membership.as_ref().is_none_or(|membership| membership.is_valid())
    }

    /// Returns the time until which this node [serves](Self::serves), or `None` if there is no such time.
    pub(in crate::node) fn serves_until(&self) -> Option<Instant> {
        self.membership.as_ref().and_then(|membership| membership.validity.end())
    }

    pub(in crate::node) fn owns(&self, domain: &str) -> Option<u16> {
        self.domains.get(domain).copied()
    }

    /// Returns whether messages for a shard are handled on this node.
    pub(in crate::node) fn is_local(&self, shard: &ShardId) -> bool {
        self.open_shards.is_open(shard)
    }

    /// Returns whether events of the event's shard have subscribers here.
    pub(in crate::node) fn subscribes_to(&self, event: &Envelope) -> bool {
        let source = event.origin.as_ref().map(|origin| &origin.shard);
        source.is_some_and(|source| self.sources.get(&source.domain).is_some_and(|shards| source.shard < *shards))
    }

    pub(in crate::node) fn reader(&self, shard: &ShardId) -> Option<Arc<dyn ShardReader>> {
        self.readers.get(shard).map(|reader| Arc::clone(&reader))
    }

    /// Writes the summaries of log lines that were left out.
    pub(in crate::node) fn flush_log_limits(&self, now: Instant) {
        self.log_limits.flush(now);
        self.failure_log.flush(now);
        self.known_owners.log_limit.flush(now);
    }

    /// Returns the identity of the store, if it has one.
    pub(in crate::node) fn store_id(&self) -> Option<StoreId> {
        self.identity.get().map(|own| own.store)
    }

    /// Returns the envelope with this store's identity, as it leaves the node.
    pub(in crate::node) fn signed(&self, mut envelope: Envelope) -> Envelope {
        if let Some(origin) = &mut envelope.origin {
            origin.store = self.store_id();
        }
        envelope
    }

    /// Ends the whole node: it must neither answer for shards that it lost nor repeat committed work. It does not try
    /// to take the shards back: two nodes would take them from each other in turns.
    pub(in crate::node) fn end_node<T: NodeThread>(&self, threads: &ThreadHandles<T>, why: NodeEnd) {
        self.broken.lock().get_or_insert(why.to_string());
        self.ended.send_if_modified(|ended| {
            let is_first = ended.is_none();
            ended.get_or_insert(why);
            is_first
        });
        if let Some(bridge) = &self.bridge {
            bridge.abandon();
        }
        threads.run_all(|runtime| runtime.end());
        self.watches.end();
    }

    /// Returns the health of the node whose threads are `threads`.
    pub(in crate::node) fn health_with<T: NodeThread>(&self, threads: &ThreadHandles<T>) -> Health {
        let mut health = self.health();
        // After a takeover all threads have ended, and the reason is known.
        if health.live
            && let Some(thread) = threads.ended()
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
            reasons.push("node is shutting down".to_owned());
        }
        reasons.extend(self.issues.reasons());
        reasons.extend(self.store.issues().iter().map(|issue| format!("the store: {}", error_chain(issue))));
        let bridge = self.bridge.as_ref().map(|bridge| bridge.health()).unwrap_or_default();
        reasons.extend(bridge.issues);
        for (thread, code) in self.user_code.iter().enumerate() {
            if let Some((since, actor, message)) = code.blocked(self.config.blocked_after) {
                reasons.push(format!("thread {thread} blocked by user code for {since:?}: `{message}` of `{actor}`"));
            }
        }
        let ready = reasons.is_empty();
        reasons.extend(self.issues.notes());
        reasons.extend(bridge.notes);
        for (thread, code) in self.user_code.iter().enumerate() {
            reasons.extend(code.failed_tasks().into_iter().map(|failure| format!("thread {thread}: {failure}")));
        }
        reasons.extend(self.known_owners.foreign_stores());
        // Listed without affecting readiness: all other keys are served.
        let keys = self.issues.keys();
        let all: u64 = self.user_code.iter().map(|code| code.counts.unloadable.get()).sum();
        let listed = keys.len() as u64;
        reasons.extend(keys);
        if all > listed {
            reasons.push(format!("{all} keys cannot be loaded, {listed} of them are listed"));
        }
        let stuck = self.issues.stuck_keys();
        let all: u64 = self.user_code.iter().map(|code| code.counts.stuck_keys.get()).sum();
        let listed = stuck.len() as u64;
        reasons.extend(stuck);
        if all > listed {
            reasons.push(format!("{all} keys fail repeatedly, {listed} of them are listed"));
        }
        reasons.extend(self.issues.unread_sources());
        reasons.extend(self.actors.iter().filter_map(|actor| actor.hosted.pauses().0));
        // One bad key does not stop the others, so the node stays ready.
        reasons.extend(self.dead_letters());
        Health { live, ready, reasons }
    }

    /// Returns the number of dead letters and one example. Costs the number of shards.
    fn dead_letters(&self) -> Option<String> {
        let count: u64 = self.readers.iter().map(|reader| reader.dead_letter_count()).sum();
        let with_letters = self.readers.iter().filter(|reader| reader.dead_letter_count() > 0);
        // The order of the table differs between machines; the example does not.
        let first = with_letters.min_by(|a, b| a.key().cmp(b.key())).map(|reader| Arc::clone(reader.value()))?;
        // Health does not wait for a store that must wait itself.
        let dead_letters =
            first.dead_letters(None, EXAMPLES_READ).now_or_never().and_then(Result::ok).unwrap_or_default();
        let example = dead_letters.iter().find(|dead_letter| dead_letter.reason != DeadLetterReason::Deferred);
        let example = example.map_or_else(String::new, |dead_letter| {
            let (actor, key, name) = (&dead_letter.actor, dead_letter.key.escape_debug(), &dead_letter.envelope.name);
            format!(", for example `{name}` of {actor} `{key}`: {}", dead_letter.error)
        });
        let them = if count == 1 { "message waits as a dead letter" } else { "messages wait as dead letters" };
        Some(format!("{count} {them} (Node::dead_letters): redrive or discard{example}"))
    }

    /// Returns whether the node accepts no message any longer: it is shutting down, or has ended.
    pub(in crate::node) fn has_ended(&self) -> bool {
        self.draining.load(Ordering::Relaxed) || self.broken.lock().is_some()
    }

    /// Returns the number of turns in flight.
    pub(in crate::node) fn in_flight(&self) -> u64 {
        self.user_code.iter().map(|code| code.counts.in_flight.get()).sum()
    }

    /// Returns the number of jobs in memory.
    pub(in crate::node) fn jobs(&self) -> u64 {
        self.user_code.iter().map(|code| code.counts.jobs.get()).sum()
    }

    pub(in crate::node) fn metrics(&self) -> Metrics {
        let sum = |of: fn(&Counts) -> u64| self.user_code.iter().map(|code| of(&code.counts)).sum();
        let owned = |of: fn(&MembershipCounts) -> &AtomicU64| {
            self.membership.as_ref().map_or(0, |membership| of(&membership.counts).load(Ordering::Relaxed))
        };
        let bridge = self.bridge.as_ref().map(|bridge| bridge.health()).unwrap_or_default();
        Metrics {
            turns: sum(|counts| counts.turns.get()),
            events: sum(|counts| counts.events.get()),
            answers: sum(|counts| counts.answers.get()),
            rejections: sum(|counts| counts.rejections.get()),
            expired: sum(|counts| counts.expired.get()),
            duplicates: sum(|counts| counts.duplicates.get()),
            retries: sum(|counts| counts.retries.get()),
            dead_letters: sum(|counts| counts.dead_letters.get()),
            failed: sum(|counts| counts.failed.get()),
            given_up: sum(|counts| counts.given_up.get()),
            panics: sum(|counts| counts.panics.get()),
            failed_tasks: sum(|counts| counts.failed_tasks.get()),
            snapshots_skipped: sum(|counts| counts.snapshots_skipped.get()),
            states_unrestored: sum(|counts| counts.states_unrestored.get()),
            longest_call: self.user_code.iter().map(|code| code.longest()).max().unwrap_or_default(),
            busy: sum(|counts| counts.busy.get()),
            activations: sum(|counts| counts.activations.get()),
            passivations: sum(|counts| counts.passivations.get()),
            unloadable_keys: sum(|counts| counts.unloadable.get()),
            stuck_keys: sum(|counts| counts.stuck_keys.get()) + self.issues.unread_sources().len() as u64,
            deferred: sum(|counts| counts.deferred.get()),
            gaps: sum(|counts| counts.gaps.get()),
            events_dropped: sum(|counts| counts.events_dropped.get())
                + self.known_owners.events_dropped.load(Ordering::Relaxed),
            commands_dropped: sum(|counts| counts.commands_dropped.get())
                + self.known_owners.commands_dropped.load(Ordering::Relaxed),
            sent: sum(|counts| counts.sent.get()),
            shape_refusals: self.shapes.refused.load(Ordering::Relaxed),
            refused: bridge.refused,
            discarded: bridge.discarded,
            refused_requests: bridge.refused_requests,
            denied_responses: bridge.denied_responses,
            dropped_messages: bridge.dropped_messages,
            lag: bridge.lag,
            disconnected_seconds: bridge.disconnected.as_secs(),
            blocked_streams: bridge.blocked_streams,
            recreated_consumers: bridge.recreated_consumers,
            shards_owned: self.membership.as_ref().map_or(0, |membership| membership.owned()),
            shards_opened: owned(|counts| &counts.opened),
            shards_handed_over: owned(|counts| &counts.handed_over),
            shards_lost: owned(|counts| &counts.lost),
            lease_failures: owned(|counts| &counts.renewals_failed),
            newer_commands: self.newer.waiting(),
            open_circuits: self.actors.iter().filter(|actor| actor.hosted.pauses().0.is_some()).count() as u64,
            circuits_opened: self.actors.iter().map(|actor| actor.hosted.pauses().1).sum(),
            singletons: self.singletons.iter().filter(|singleton| singleton.is_running()).count() as u64,
        }
    }
}
