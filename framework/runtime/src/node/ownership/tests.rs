//! Tests of the ownership task: several members over one shared store, on paused time.

mod leaving;
mod limits;
mod savers;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::host::{Opening, ShardHost};
use super::task::OwnershipTask;
use super::*;
use crate::inbox::HealthIssues;
use whizbang_core::clock::{Clock, Timestamp, instant};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{CommitListener, ShardHandle, ShardLeases, Store, StoreError, Ticket};
use whizbang_log::memory::MemoryStore;

const TTL: Duration = Duration::from_secs(10);
const SHARDS: u16 = 16;

struct Silent;

impl CommitListener for Silent {
    fn committed(&self, _through: Ticket) {}
    fn failed(&self, _error: StoreError) {}
}

/// The leases as one member reaches them.
struct Link {
    leases: Arc<dyn ShardLeases>,
    is_cut: AtomicBool,
    is_failing: AtomicBool,
}

impl Link {
    fn pass<'a, T: Send + 'a>(
        &'a self,
        call: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(async move {
            if self.is_cut.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            if self.is_failing.load(Ordering::Relaxed) {
                return Err(StoreError::io("renewing", std::io::Error::other("no route")));
            }
            call.await
        })
    }
}

impl ShardLeases for Link {
    fn renew<'a>(&'a self, member: &'a Member, ttl: Duration) -> BoxFuture<'a, Result<Leases, StoreError>> {
        self.pass(Box::pin(async move { self.leases.renew(member, ttl).await }))
    }

    fn open<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<Option<ShardHandle>, StoreError>> {
        self.pass(Box::pin(async move { self.leases.open(member, shard, shards, listener).await }))
    }

    fn release<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        epoch: Epoch,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.pass(Box::pin(async move { self.leases.release(member, shard, epoch).await }))
    }

    fn leave(&self, member: MemberId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.pass(Box::pin(async move { self.leases.leave(member).await }))
    }
}

/// The threads of a node, which only keep what is open.
struct Host {
    link: Arc<Link>,
    member: MemberId,
    open: Arc<Mutex<BTreeMap<ShardId, ShardHandle>>>,
    received: Arc<Mutex<BTreeSet<ShardId>>>,
    dropped: Arc<Mutex<Vec<ShardId>>>,
    /// While set, shards are not drained.
    is_busy: AtomicBool,
    idle: Arc<Notify>,
    refuses: AtomicBool,
    /// Shards with a type in their log that the program does not know.
    unknown: Arc<Mutex<BTreeSet<ShardId>>>,
    is_dead: AtomicBool,
}

impl ShardHost for Host {
    fn open(&self, shard: ShardId) -> BoxFuture<'static, Result<Opening, StoreError>> {
        let (link, member, open) = (Arc::clone(&self.link), self.member, Arc::clone(&self.open));
        let unknown = self.unknown.lock().contains(&shard).then(|| "the event `Refunded` version 1".to_owned());
        Box::pin(async move {
            if let Some(found) = unknown {
                return Ok(Opening::Unknown(found));
            }
            let Some(handle) = link.open(member, &shard, SHARDS, Arc::new(Silent)).await? else {
                return Ok(Opening::Taken);
            };
            let epoch = handle.writer.epoch();
            assert!(open.lock().insert(shard, handle).is_none(), "a shard is opened once");
            Ok(Opening::Open(epoch))
        })
    }

    fn drain(&self, shard: ShardId) -> BoxFuture<'static, ()> {
        let (open, received) = (Arc::clone(&self.open), Arc::clone(&self.received));
        let idle = self.is_busy.load(Ordering::Relaxed).then(|| Arc::clone(&self.idle));
        Box::pin(async move {
            assert!(!received.lock().contains(&shard), "receiving ends before the shard is drained");
            if let Some(idle) = idle {
                idle.notified().await;
            }
            open.lock().remove(&shard);
        })
    }

    fn drop_shard(&self, shard: ShardId) -> BoxFuture<'static, ()> {
        let (open, dropped) = (Arc::clone(&self.open), Arc::clone(&self.dropped));
        Box::pin(async move {
            // As on a thread that is doing something else.
            tokio::time::sleep(Duration::from_millis(20)).await;
            open.lock().remove(&shard);
            dropped.lock().push(shard);
        })
    }

    fn receive(&self, shard: ShardId, _epoch: Epoch) -> BoxFuture<'static, Result<(), String>> {
        if self.refuses.load(Ordering::Relaxed) {
            return Box::pin(std::future::ready(Err("no connection".to_owned())));
        }
        self.received.lock().insert(shard);
        Box::pin(std::future::ready(Ok(())))
    }

    fn stop_receiving(&self, shard: ShardId) -> BoxFuture<'static, ()> {
        self.received.lock().remove(&shard);
        Box::pin(std::future::ready(()))
    }

    fn is_live(&self) -> bool {
        !self.is_dead.load(Ordering::Relaxed)
    }
}

struct TestNode {
    membership: Arc<Membership>,
    host: Arc<Host>,
    link: Arc<Link>,
    issues: Arc<HealthIssues>,
    _alive: oneshot::Sender<()>,
}

fn shards() -> Vec<ShardId> {
    (0..SHARDS).map(|shard| ShardId::new(Name::from_static("bank").unwrap(), shard)).collect()
}

impl TestNode {
    async fn start(store: &MemoryStore, number: u64) -> Self {
        Self::try_start(store, number, false).await.unwrap()
    }

    async fn try_start(store: &MemoryStore, number: u64, is_failing: bool) -> Result<Self, StoreError> {
        Self::start_with(store, number, is_failing, BTreeSet::new()).await
    }

    async fn start_with(
        store: &MemoryStore,
        number: u64,
        is_failing: bool,
        unknown: BTreeSet<ShardId>,
    ) -> Result<Self, StoreError> {
        let link = Arc::new(Link {
            leases: store.clone().leases().unwrap(),
            is_cut: AtomicBool::new(false),
            is_failing: AtomicBool::new(is_failing),
        });
        let member = Member::new(MemberId::from_u128(u128::from(number)), Name::from_static("bank").unwrap(), "node");
        let host = Arc::new(Host {
            link: Arc::clone(&link),
            member: member.id,
            open: Arc::default(),
            received: Arc::default(),
            dropped: Arc::default(),
            is_busy: AtomicBool::new(false),
            idle: Arc::default(),
            refuses: AtomicBool::new(false),
            unknown: Arc::new(Mutex::new(unknown)),
            is_dead: AtomicBool::new(false),
        });
        let (membership, issues) = (Arc::new(Membership::new(member, TTL)), Arc::<HealthIssues>::default());
        let (first, started) = oneshot::channel();
        let task = OwnershipTask::new(
            Arc::clone(&membership),
            Arc::clone(&link) as Arc<dyn ShardLeases>,
            Arc::clone(&host) as Arc<dyn ShardHost>,
            Arc::clone(&issues),
            shards(),
            true,
            first,
        );
        let (alive, dropped) = oneshot::channel();
        whizbang_core::spawn::alone("ownership", task.run(dropped));
        started.await.unwrap()?;
        Ok(Self { membership, host, link, issues, _alive: alive })
    }

    fn open(&self) -> usize {
        self.host.open.lock().len()
    }

    fn serves(&self) -> bool {
        self.membership.is_valid()
    }

    fn lost(&self) -> u64 {
        self.membership.counts.lost.load(Ordering::Relaxed)
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let set = tokio::task::LocalSet::new();
    set.block_on(&runtime, async { tokio::time::timeout(Duration::from_secs(3600), test).await.expect("it ends") });
}

fn shared() -> MemoryStore {
    let (clock, _) = Clock::ticking(Timestamp::from_millis(1_000));
    MemoryStore::shared(&clock)
}

/// Waits until the condition holds, and returns how long that took.
async fn until(what: &str, condition: impl Fn() -> bool) -> Duration {
    let begun = instant();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(600), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    begun.elapsed()
}

async fn three(store: &MemoryStore) -> [TestNode; 3] {
    let one = TestNode::start(store, 1).await;
    let two = TestNode::start(store, 2).await;
    let three = TestNode::start(store, 3).await;
    let nodes = [one, two, three];
    until("an even spread", || is_even(&nodes)).await;
    nodes
}

fn is_even(nodes: &[TestNode]) -> bool {
    let counts = || nodes.iter().map(TestNode::open);
    let is_whole = counts().sum::<usize>() == usize::from(SHARDS);
    is_whole && counts().max().unwrap_or(0) - counts().min().unwrap_or(0) <= 1
}

/// Lets the time of a lease pass.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[test]
fn first_node_opens_everything_before_it_has_started() {
    run(async {
        let node = TestNode::start(&shared(), 1).await;
        assert_eq!((node.open(), node.host.received.lock().len()), (16, 16));
        assert!(node.serves());
        let cluster = node.membership.cluster();
        assert_eq!((cluster.members.len(), cluster.is_serving), (1, true));
    });
}

#[test]
fn nodes_spread_the_shards_evenly() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        pass(TTL).await;
        assert!(is_even(&nodes));
        for node in &nodes {
            assert_eq!(node.host.received.lock().len(), node.open());
            let cluster = node.membership.cluster();
            assert_eq!(cluster.members.iter().map(|member| member.shards).sum::<usize>(), 16);
            assert!(cluster.shards.iter().all(|shard| shard.owner.is_some() && shard.moving.is_none()));
        }
        let handed: u64 = nodes.iter().map(|node| node.membership.counts.handed_over.load(Ordering::Relaxed)).sum();
        // The first node keeps 6: nothing was moved twice, because both others joined at once.
        assert_eq!((handed, nodes.iter().map(TestNode::lost).sum::<u64>()), (10, 0));
    });
}

#[test]
fn leaving_node_hands_everything_over() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        let left = nodes[0].membership.leave();
        drop(left.await);
        assert_eq!(nodes[0].open(), 0);
        assert!(!nodes[0].serves());
        let took = until("the others have all shards", || is_even(&nodes[1..])).await;
        assert!(took <= Duration::from_secs(2), "{took:?}");
        assert_eq!(nodes.iter().map(TestNode::lost).sum::<u64>(), 0);
        let cluster = nodes[1].membership.cluster();
        assert_eq!(cluster.members.len(), 2);
    });
}

#[test]
fn crashed_node_is_replaced_after_its_lease() {
    run(async {
        let store = shared();
        let [one, two, three] = three(&store).await;
        let (open, begun) = (two.open() + three.open(), instant());
        drop(one);
        let rest = [two, three];
        until("a takeover", || rest.iter().map(TestNode::open).sum::<usize>() > open).await;
        let after = begun.elapsed();
        assert!(after > TTL * 8 / 10 && after <= TTL + Duration::from_secs(1), "{after:?}");
        until("everything is taken over", || is_even(&rest)).await;
    });
}

#[test]
fn node_without_the_store_stops_serving_before_it_is_replaced() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        let cut = &nodes[0];
        let held = cut.open();
        cut.link.is_cut.store(true, Ordering::Relaxed);
        let stopped = until("it stops", || !cut.serves()).await;
        assert!(stopped <= TTL * 8 / 10, "{stopped:?}");
        assert_eq!(nodes[1].open() + nodes[2].open() + held, 16, "not before");
        until("receiving stops", || cut.host.received.lock().is_empty()).await;
        assert!(cut.issues.reasons().iter().any(|reason| reason.contains("lease not renewed")));
        until("it is replaced", || is_even(&nodes[1..])).await;
        cut.link.is_cut.store(false, Ordering::Relaxed);
        until("it serves again", || cut.serves()).await;
        assert_eq!(cut.lost(), held as u64);
        assert_eq!(cut.open(), 0, "what was lost is closed before the node serves");
        until("an even spread", || is_even(&nodes)).await;
        assert!(cut.issues.reasons().is_empty(), "{:?}", cut.issues.reasons());
        assert_eq!(cut.host.received.lock().len(), cut.open());
    });
}

#[test]
fn node_that_was_not_replaced_keeps_its_shards() {
    run(async {
        let store = shared();
        let node = TestNode::start(&store, 1).await;
        node.link.is_cut.store(true, Ordering::Relaxed);
        until("it stops", || !node.serves()).await;
        pass(3 * TTL).await;
        node.link.is_cut.store(false, Ordering::Relaxed);
        until("it serves again", || node.serves()).await;
        until("it receives again", || node.host.received.lock().len() == 16).await;
        assert_eq!((node.open(), node.lost()), (16, 0));
        assert_eq!(node.membership.counts.opened.load(Ordering::Relaxed), 16);
    });
}

#[test]
fn failed_renewals_within_the_lease_change_nothing() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        nodes[0].link.is_failing.store(true, Ordering::Relaxed);
        let failed = || nodes[0].membership.counts.renewals_failed.load(Ordering::Relaxed);
        until("renewals fail", || failed() >= 3).await;
        assert!(nodes[0].serves() && nodes[0].issues.reasons().is_empty());
        assert_eq!(nodes[0].issues.notes().len(), 1);
        nodes[0].link.is_failing.store(false, Ordering::Relaxed);
        until("the lease is renewed", || nodes[0].issues.notes().is_empty()).await;
        pass(TTL).await;
        assert!(is_even(&nodes) && nodes.iter().all(|node| node.lost() == 0));
    });
}

#[test]
fn node_does_not_start_without_the_store() {
    run(async {
        let started = TestNode::try_start(&shared(), 1, true).await;
        assert!(matches!(started.map(drop), Err(StoreError::Io { .. })));
    });
}

#[test]
fn fenced_shard_is_closed_alone() {
    run(async {
        let store = shared();
        let node = TestNode::start(&store, 1).await;
        let shard = shards().remove(3);
        let epoch = node.host.open.lock().get(&shard).unwrap().writer.epoch();
        node.membership.report_lost(&shard, epoch);
        until("it is closed", || node.host.dropped.lock().contains(&shard)).await;
        assert_eq!((node.lost(), node.host.received.lock().len()), (1, 15));
        // The report was wrong: by the leases it still belongs to this node, which opens it again.
        until("it is opened again", || node.open() == 16).await;
        assert!(node.host.open.lock().get(&shard).unwrap().writer.epoch() > epoch);
        let stale = node.lost();
        node.membership.report_lost(&shard, epoch);
        pass(TTL).await;
        assert_eq!(node.lost(), stale, "a report of an earlier opening is ignored");
    });
}

#[test]
fn slow_turns_do_not_delay_renewals() {
    run(async {
        let store = shared();
        let one = TestNode::start(&store, 1).await;
        one.host.is_busy.store(true, Ordering::Relaxed);
        let two = TestNode::start(&store, 2).await;
        let moving =
            |node: &TestNode| node.membership.cluster().shards.iter().filter(|shard| shard.moving.is_some()).count();
        until("hand-overs begin", || moving(&one) > 0).await;
        assert_eq!(moving(&one), 4, "at most four at once");
        pass(Duration::from_secs(9)).await;
        assert!(one.serves() && two.open() == 0);
        one.host.is_busy.store(false, Ordering::Relaxed);
        one.host.idle.notify_waiters();
        let nodes = [one, two];
        until("an even spread", || is_even(&nodes)).await;
        assert!(nodes[0].host.dropped.lock().is_empty());
    });
}

#[test]
fn endless_turns_are_cut_off() {
    run(async {
        let store = shared();
        let one = TestNode::start(&store, 1).await;
        one.host.is_busy.store(true, Ordering::Relaxed);
        let two = TestNode::start(&store, 2).await;
        until("shards move anyway", || two.open() >= 4).await;
        assert!(one.host.dropped.lock().len() >= 4 && one.serves());
    });
}

#[test]
fn receiving_is_tried_again() {
    run(async {
        let store = shared();
        let one = TestNode::start(&store, 1).await;
        let two = TestNode::start(&store, 2).await;
        two.host.refuses.store(true, Ordering::Relaxed);
        until("shards are not received", || !two.issues.reasons().is_empty()).await;
        let nodes = [one, two];
        until("an even spread", || is_even(&nodes)).await;
        assert!(nodes[1].issues.reasons().iter().all(|reason| reason.contains("not received")));
        nodes[1].host.refuses.store(false, Ordering::Relaxed);
        until("all are received", || nodes[1].host.received.lock().len() == 8).await;
        until("nothing is left in health", || nodes[1].issues.reasons().is_empty()).await;
    });
}

#[test]
fn ended_node_leaves() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        nodes[0].host.is_dead.store(true, Ordering::Relaxed);
        let took = until("the others have all shards", || is_even(&nodes[1..])).await;
        assert!(took < TTL / 2, "{took:?}: an ended node does not keep its lease");
    });
}
