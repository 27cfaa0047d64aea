//! Membership: which shards of the service this node opens, when several nodes share the store.
//!
//! Started by the builder if the store has leases. The [task](task) renews the node's lease, computes the [plan](plan),
//! and opens and closes shards through a [host](host::ShardHost). It never decides what is committed: the store rejects
//! the commits of an earlier owner by the shard's epoch, whatever this module assumes.
//!
//! Why the node serves only for a part of its lease: the store counts the lease by its own clock from the moment at
//! which it handled the renewal, the node by its monotonic clock from the moment before it sent the renewal. The node's
//! time is therefore over first, by the part that is left. The margin covers clocks that run at different speeds.

pub(super) mod cluster;
pub(super) mod host;
mod moves;
mod plan;
pub(super) mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use self::cluster::{Cluster, ClusterMember, ClusterShard};
use whizbang_core::clock::instant;
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, Leases, Member, MemberId};

/// The tenths of a lease during which a member serves, counted from the start of its renewal.
const SERVED_TENTHS: u32 = 8;

/// The ownership of a node, as its threads, its handles and its task share it.
pub(super) struct Membership {
    pub(super) member: Member,
    pub(super) ttl: Duration,
    pub(super) validity: Validity,
    pub(super) counts: MembershipCounts,
    seen: Mutex<Seen>,
    /// Shards whose loss a thread has reported, with the epoch that was lost.
    lost: Mutex<Vec<(ShardId, Epoch)>>,
    /// The request to hand everything over and leave.
    stop: Mutex<Option<oneshot::Sender<()>>>,
    stopping: AtomicBool,
    has_ended: AtomicBool,
    wake: Notify,
    limits: Mutex<Limits>,
}

/// The shards that this member refuses and yields, because other nodes run another version of the program.
#[derive(Clone, Default)]
struct Limits {
    /// With the type that was found in the log.
    refuses: BTreeMap<ShardId, String>,
    yields: BTreeSet<ShardId>,
    /// Changed since the last renewal began.
    is_news: bool,
}

/// The last renewal and the moves in progress, for reports.
#[derive(Default)]
struct Seen {
    leases: Leases,
    renewed: Option<Instant>,
    moves: BTreeMap<ShardId, cluster::ShardMove>,
    open: BTreeMap<ShardId, Epoch>,
}

/// Counters of a node's ownership.
#[derive(Default)]
pub(super) struct MembershipCounts {
    pub(super) opened: AtomicU64,
    pub(super) handed_over: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) renewals_failed: AtomicU64,
}

impl MembershipCounts {
    fn one(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Membership {
    /// Creates the ownership of a member that serves nothing yet.
    pub(super) fn new(member: Member, ttl: Duration) -> Self {
        Self {
            member,
            ttl,
            validity: Validity::new(),
            counts: MembershipCounts::default(),
            seen: Mutex::default(),
            lost: Mutex::default(),
            stop: Mutex::default(),
            stopping: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            wake: Notify::new(),
            limits: Mutex::default(),
        }
    }

    /// Takes a shard no more: its log contains a type that the program does not know.
    fn refuse(&self, shard: &ShardId, found: &str) {
        let mut limits = self.limits.lock();
        let is_news = limits.refuses.insert(shard.clone(), found.to_owned()).is_none();
        limits.is_news |= is_news;
    }

    /// Gives a shard to any member that takes it: a command waits there that the program does not know. Does not block.
    pub(super) fn yield_shard(&self, shard: &ShardId) {
        let mut limits = self.limits.lock();
        let is_news = limits.yields.insert(shard.clone());
        limits.is_news |= is_news;
        drop(limits);
        if is_news {
            self.wake.notify_one();
        }
    }

    /// Returns whether this member may answer from memory for the shards it has open.
    pub(super) fn is_valid(&self) -> bool {
        self.validity.holds()
    }

    /// Reports that a thread has closed a shard because another member took it. Does not block.
    pub(super) fn report_lost(&self, shard: &ShardId, epoch: Epoch) {
        self.lost.lock().push((shard.clone(), epoch));
        self.wake.notify_one();
    }

    /// Asks the task to hand all shards over and to leave. The receiver ends once that is done, or if the task has
    /// ended.
    pub(super) fn leave(&self) -> oneshot::Receiver<()> {
        let (done, wait) = oneshot::channel();
        let mut stop = self.stop.lock();
        if !self.has_ended.load(Ordering::Acquire) {
            *stop = Some(done);
        }
        drop(stop);
        self.stopping.store(true, Ordering::Release);
        self.wake.notify_one();
        wait
    }

    /// The task has ended: nothing is served.
    fn end(&self) {
        self.validity.set(None);
        let mut stop = self.stop.lock();
        self.has_ended.store(true, Ordering::Release);
        drop(stop.take());
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Returns the cluster as this node has last seen it.
    pub(super) fn cluster(&self) -> Cluster {
        let seen = self.seen.lock();
        let live: BTreeSet<MemberId> = seen.leases.members.iter().map(|member| member.id).collect();
        let leases = seen.leases.shards.iter();
        let leased =
            leases.map(|lease| (&lease.shard, (lease.owner.filter(|owner| live.contains(owner)), lease.epoch)));
        let mut shards: BTreeMap<&ShardId, (Option<MemberId>, Epoch)> = leased.collect();
        // Opened since the last renewal.
        shards.extend(seen.open.iter().map(|(shard, epoch)| (shard, (Some(self.member.id), *epoch))));
        let owned = |id: MemberId| shards.values().filter(|(owner, _)| *owner == Some(id)).count();
        Cluster {
            member: self.member.id,
            lease: self.ttl,
            renewed: seen.renewed.map(|renewed| renewed.elapsed()),
            is_serving: self.is_valid(),
            members: seen
                .leases
                .members
                .iter()
                .map(|member| ClusterMember {
                    id: member.id,
                    label: member.label.clone(),
                    is_draining: member.is_draining,
                    shards: owned(member.id),
                    refuses: member.refuses.iter().map(ShardId::to_string).collect(),
                    yields: member.yields.iter().map(ShardId::to_string).collect(),
                })
                .collect(),
            shards: shards
                .iter()
                .map(|(shard, (owner, epoch))| ClusterShard {
                    domain: shard.domain.to_string(),
                    shard: shard.shard,
                    owner: *owner,
                    epoch: *epoch,
                    moving: seen.moves.get(*shard).copied(),
                })
                .collect(),
        }
    }

    /// Returns the number of shards that are open here.
    pub(super) fn owned(&self) -> u64 {
        self.seen.lock().open.len() as u64
    }

    /// Returns the member that saves a view, or `None` before the first renewal: the one with the highest hash together
    /// with the view's name, so that views are spread and a member that joins or leaves moves few of them. A member that leaves
    /// saves views only if no other member stays: the last one saves them when it stops.
    pub(super) fn saver_of(&self, view: &str) -> Option<MemberId> {
        let seen = self.seen.lock();
        let members = seen.leases.members.iter();
        members.map(|member| (!member.is_draining, weight(member.id, view), member.id)).max().map(|(.., id)| id)
    }
}

/// Returns the weight of a member for a view, for rendezvous hashing (Thaler and Ravishankar, 1998).
fn weight(member: MemberId, view: &str) -> u64 {
    whizbang_core::message::stable_hash(&format!("{view} {member}"))
}

/// The time until which a member may serve. Read by every thread.
#[derive(Debug)]
pub(super) struct Validity {
    base: Instant,
    /// Microseconds after `base`; 0 means never.
    until: AtomicU64,
}

impl Validity {
    fn new() -> Self {
        Self { base: instant(), until: AtomicU64::new(0) }
    }

    /// Returns until when the member may serve, or `None` if it may not.
    pub(super) fn end(&self) -> Option<Instant> {
        let until = self.until.load(Ordering::Acquire);
        (until > 0).then(|| self.base + Duration::from_micros(until))
    }

    /// Returns the end of serving for a renewal that began at `begun`.
    fn end_of(begun: Instant, ttl: Duration) -> Instant {
        begun + ttl * SERVED_TENTHS / 10
    }

    fn set(&self, until: Option<Instant>) {
        let micros = until.map_or(0, |until| until.saturating_duration_since(self.base).as_micros());
        self.until.store(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Returns whether the member may serve now. Costs a reading of the monotonic clock: a process that was stopped
    /// finds the end by itself, before any of its tasks has run.
    pub(super) fn holds(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        until > 0 && self.base.elapsed() < Duration::from_micros(until)
    }
}

#[cfg(test)]
mod tests;
