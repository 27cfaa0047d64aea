//! Two nodes over one shared store: their shards move back and forth under load.

mod hanging_broker;
mod lost_lines;
mod stale_handle;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::{Closing, PUBLISHING};
use crate::client::{Client, SendError};
use crate::node::{Node, NodeBuilder};
use crate::tests::pots::{Add, Doer, Inspect, POTS, Pot, SHARDS, Seen, TotalAdded, Totals, Watch, pot};
use whizbang_core::clock::Clock;
use whizbang_core::message::{Name, ShardId, shard_of};
use whizbang_core::store::{Epoch, Member, MemberId, ShardHandle, ShardLeases, Store as _};
use whizbang_log::memory::MemoryStore;
use whizbang_wire::loopback::LoopbackHub;

/// A node whose shards the test opens and closes.
struct Peer {
    node: Node,
    member: MemberId,
    leases: Arc<dyn ShardLeases>,
    epochs: Mutex<BTreeMap<ShardId, Epoch>>,
}

fn shard(number: u16) -> ShardId {
    ShardId::new(Name::from_static("pots").unwrap(), number)
}

impl Peer {
    async fn start(builder: NodeBuilder, store: &MemoryStore, id: u128) -> Self {
        let leases = store.leases().unwrap();
        let builder = builder.aggregate::<Pot>().saga::<Watch>().worker(Doer);
        let node = builder.start_with(|_, _| None).await.unwrap();
        let member = MemberId::from_u128(id);
        node.definition.member.set(member).unwrap();
        let peer = Self { node, member, leases, epochs: Mutex::default() };
        peer.renew(Duration::from_secs(300)).await;
        peer
    }

    async fn renew(&self, ttl: Duration) {
        let member = Member::new(self.member, Name::from_static("pots").unwrap(), "test");
        self.leases.renew(&member, ttl).await.unwrap();
    }

    async fn open(&self, id: &ShardId) -> bool {
        self.open_with(id, |handle| handle).await
    }

    async fn open_with(&self, id: &ShardId, wrap: impl FnOnce(ShardHandle) -> ShardHandle) -> bool {
        let definition = &self.node.definition;
        let thread = definition.thread_of(id.shard);
        let listener = self.node.threads.listener(thread).await.unwrap();
        let failures = listener.failures();
        let Some(handle) = self.leases.open(self.member, id, SHARDS, listener).await.unwrap() else { return false };
        let epoch = handle.writer.epoch();
        self.node.threads.open_shard(thread, id.clone(), wrap(handle), failures).await.unwrap();
        self.epochs.lock().insert(id.clone(), epoch);
        definition.bridge.as_ref().unwrap().own(id, epoch).await.unwrap();
        true
    }

    async fn hand_over(&self, id: &ShardId) {
        self.close(id, Closing::HandOver).await;
    }

    async fn lose(&self, id: &ShardId) {
        self.close(id, Closing::Lost).await;
    }

    async fn close(&self, id: &ShardId, closing: Closing) {
        let definition = &self.node.definition;
        definition.bridge.as_ref().unwrap().disown(id).await;
        self.node.threads.close_shard(definition.thread_of(id.shard), id.clone(), closing).await;
        let epoch = self.epochs.lock().remove(id).unwrap();
        self.leases.release(self.member, id, epoch).await.unwrap();
    }

    fn opened(&self) -> BTreeSet<ShardId> {
        self.node.definition.readers.iter().map(|reader| reader.key().clone()).collect()
    }
}

fn builder(store: &MemoryStore, hub: &LoopbackHub, threads: usize) -> NodeBuilder {
    Node::builder("pots", store.clone()).bridge(hub.bridge()).threads(threads)
}

/// Two nodes; the first one has all shards.
async fn two_nodes(threads: usize) -> (MemoryStore, [Arc<Peer>; 2]) {
    let (store, hub) = (MemoryStore::shared(&Clock::system()), LoopbackHub::new());
    let first = Peer::start(builder(&store, &hub, threads), &store, 1).await;
    let second = Peer::start(builder(&store, &hub, threads).projection::<Totals>(), &store, 2).await;
    for number in 0..SHARDS {
        assert!(first.open(&shard(number)).await);
    }
    (store, [first, second].map(Arc::new))
}

async fn eventually(what: &str, holds: impl AsyncFn() -> Result<(), String>) {
    let begun = whizbang_core::clock::instant();
    loop {
        match holds().await {
            Ok(()) => return,
            Err(why) => assert!(begun.elapsed() < Duration::from_secs(30), "{what}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Adds to some pots, one after the other, until told to stop; returns the number of rounds.
async fn load(client: Client, pots: Vec<u64>, stops: Arc<AtomicBool>, rounds: Arc<AtomicU64>) -> u64 {
    let mut nth = 0;
    while !stops.load(Ordering::Relaxed) || nth < 20 {
        nth += 1;
        for number in &pots {
            let count = client.send(Add { pot: pot(*number), nth }).await;
            assert_eq!(count.unwrap_or_else(|error| panic!("{} {nth}: {error}", pot(*number))), nth);
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
    nth
}

async fn moved_shards_lose_nothing(threads: usize) {
    let (_store, peers) = two_nodes(threads).await;
    let (stops, rounds) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let loads: Vec<_> = (0..POTS)
        .map(|number| {
            let client = peers[usize::from(number % 2 == 1)].node.client();
            tokio::task::spawn_local(load(client, vec![number], Arc::clone(&stops), Arc::clone(&rounds)))
        })
        .collect();
    let mut moves = 0;
    for round in 0..6u16 {
        for number in 0..SHARDS {
            let id = shard(number);
            let from = usize::from(peers[1].opened().contains(&id));
            if (number + round) % 3 == 0 {
                continue;
            }
            let before = rounds.load(Ordering::Relaxed);
            peers[from].hand_over(&id).await;
            assert!(!peers[from].opened().contains(&id) && peers[1 - from].open(&id).await);
            moves += 1;
            // The load continues between the moves.
            eventually("load", async || {
                let now = rounds.load(Ordering::Relaxed);
                if now >= before + POTS { Ok(()) } else { Err(format!("{now} rounds, before the move {before}")) }
            })
            .await;
        }
    }
    assert!(moves > 20);
    stops.store(true, Ordering::Relaxed);
    let mut counts = Vec::new();
    for load in loads {
        counts.push(load.await.unwrap());
    }
    for (peer, number) in peers.iter().flat_map(|peer| (0..POTS).map(move |number| (peer, number))) {
        let sender = counts[usize::try_from((number + POTS - 1) % POTS).unwrap()];
        let count = counts[usize::try_from(number).unwrap()];
        eventually("state", async || check(&peer.node.client(), number, count, sender).await).await;
    }
    let all: u64 = counts.iter().sum();
    eventually("view", async || {
        let totals = peers[1].node.client().query(TotalAdded {}).await.map_err(|error| error.to_string())?;
        if totals == (all, 0) { Ok(()) } else { Err(format!("{totals:?} of {all}")) }
    })
    .await;
}

/// Checks that a pot and its watch have received everything once and in order: `count` of its own, `passed` from its
/// predecessor.
async fn check(client: &Client, number: u64, count: u64, passed: u64) -> Result<(), String> {
    let name = pot(number);
    let report = client.send(Inspect { pot: name.clone() }).await.map_err(|error| error.to_string())?;
    let worked: BTreeMap<u64, u64> = (1..=count).map(|nth| (nth, 1)).collect();
    let is_whole = report.added.is_whole(count) && report.passed.is_whole(passed) && report.worked == worked;
    let seen = client.send(Seen { pot: format!("watch-{name}") }).await.map_err(|error| error.to_string())?;
    if is_whole && seen == (count, count, 0, count) {
        return Ok(());
    }
    let missing: Vec<_> = (1..=count).filter(|nth| report.worked.get(nth) != Some(&1)).collect();
    Err(format!(
        "{name}: {:?} of {count}, {:?} of {passed}, watch {seen:?}, work {missing:?}",
        report.added, report.passed
    ))
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

#[test]
fn moved_shards_lose_and_repeat_nothing() {
    run(moved_shards_lose_nothing(0));
}

#[test]
fn moved_shards_of_threads_lose_and_repeat_nothing() {
    run(moved_shards_lose_nothing(2));
}

#[test]
fn shard_taken_over_is_closed_and_the_others_go_on() {
    run(async {
        let (_store, [old, young]) = two_nodes(0).await;
        let taken = shard_of(&pot(0), SHARDS);
        let others: Vec<u64> = (0..POTS).filter(|number| shard_of(&pot(*number), SHARDS) != taken).collect();
        let client = old.node.client();
        for number in 0..POTS {
            assert_eq!(client.send(Add { pot: pot(number), nth: 1 }).await.unwrap(), 1);
        }
        // The lease of the old owner expires, and it does not know.
        old.renew(Duration::from_millis(1)).await;
        eventually(
            "takeover",
            async || {
                if young.open(&shard(taken)).await { Ok(()) } else { Err("still owned".to_owned()) }
            },
        )
        .await;
        let refused = client.send(Add { pot: pot(0), nth: 2 }).no_retry().await;
        assert!(matches!(refused, Err(SendError::Moved { .. })), "{refused:?}");
        eventually(
            "close",
            async || {
                if old.opened().contains(&shard(taken)) { Err("still open".to_owned()) } else { Ok(()) }
            },
        )
        .await;
        assert_eq!(old.opened().len(), usize::from(SHARDS) - 1);
        assert!(old.node.health().live, "{:?}", old.node.health());
        // The others were not touched, and the lost one is reached at its new owner.
        for number in others {
            assert_eq!(client.send(Add { pot: pot(number), nth: 2 }).await.unwrap(), 2);
        }
        assert_eq!(client.send(Add { pot: pot(0), nth: 2 }).await.unwrap(), 2);
        assert_eq!(young.node.client().send(Add { pot: pot(0), nth: 3 }).await.unwrap(), 3);
    });
}

/// The listener of a thread outlives the openings of its shards, and remembers what was committed under earlier ones.
#[test]
fn node_that_had_no_shard_replies_after_the_commit() {
    run(async {
        let (store, [first, second]) = two_nodes(0).await;
        let commits = store.commit_control();
        let client = first.node.client();
        for nth in 1..=20 {
            client.send(Add { pot: pot(0), nth }).await.unwrap();
        }
        for number in 0..SHARDS {
            first.hand_over(&shard(number)).await;
        }
        assert!(first.opened().is_empty());
        assert!(first.open(&shard(shard_of(&pot(0), SHARDS))).await);
        commits.hold();
        let sent = tokio::task::spawn_local(async move { client.send(Add { pot: pot(0), nth: 21 }).await });
        eventually("append", async || match commits.waiting() {
            0 => Err("nothing is appended".to_owned()),
            _ => Ok(()),
        })
        .await;
        // Everything that is ready runs, a reply included.
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert!(!sent.is_finished(), "a reply before the commit");
        commits.resume();
        assert_eq!(sent.await.unwrap().unwrap(), 21);
        drop(second);
    });
}

#[test]
fn pending_commit_of_a_lost_shard_is_unknown() {
    run(async {
        let (store, [old, young]) = two_nodes(0).await;
        let commits = store.commit_control();
        let taken = shard_of(&pot(0), SHARDS);
        let other = (0..POTS).find(|number| shard_of(&pot(*number), SHARDS) != taken).unwrap();
        let client = old.node.client();
        for number in [0, other] {
            client.send(Add { pot: pot(number), nth: 1 }).await.unwrap();
        }
        commits.hold();
        let sent = [0, other].map(|number| {
            let client = old.node.client();
            tokio::task::spawn_local(async move { client.send(Add { pot: pot(number), nth: 2 }).await })
        });
        eventually("appends", async || {
            let waiting = commits.waiting();
            if waiting >= 2 { Ok(()) } else { Err(format!("{waiting} appends")) }
        })
        .await;
        old.renew(Duration::from_millis(1)).await;
        eventually(
            "takeover",
            async || {
                if young.open(&shard(taken)).await { Ok(()) } else { Err("still owned".to_owned()) }
            },
        )
        .await;
        commits.resume();
        let [lost, kept] = sent;
        let (lost, kept) = (lost.await.unwrap(), kept.await.unwrap());
        assert!(matches!(&lost, Err(error @ SendError::Unknown { .. }) if error.is_transient()), "{lost:?}");
        assert_eq!(kept.unwrap(), 2);
        // It was not committed: the number is still free.
        assert_eq!(young.node.client().send(Add { pot: pot(0), nth: 2 }).await.unwrap(), 2);
    });
}

/// While the shards of a thread are reopened after a failed commit, one of them is lost. The subscriptions have no subscribers
/// then, and must not stay closed for the shards that are left.
#[test]
fn events_arrive_after_a_shard_was_lost_during_recovery() {
    run(async {
        let (_store, [old, _young]) = two_nodes(0).await;
        let kept = pot(0);
        let needed = [shard_of(&kept, SHARDS), shard_of(&format!("watch-{kept}"), SHARDS)];
        let lost = shard((0..SHARDS).find(|number| !needed.contains(number)).unwrap());
        let client = old.node.client();
        client.send(Add { pot: kept.clone(), nth: 1 }).await.unwrap();
        let seen = async |times: u64| match client.send(Seen { pot: format!("watch-{kept}") }).await {
            Ok((count, ..)) if count == times => Ok(()),
            other => Err(format!("{other:?}")),
        };
        eventually("the first event", async || seen(1).await).await;
        let (tell, told) = tokio::sync::oneshot::channel();
        let recover = move |runtime: &std::rc::Rc<crate::node::thread::ThreadRuntime>| {
            let runtime = std::rc::Rc::clone(runtime);
            drop(tokio::task::spawn_local(async move {
                runtime.discard_uncommitted();
                runtime.close_shard(&lost, Closing::Lost).await;
                tell.send(runtime.recover().await).unwrap();
            }));
        };
        old.node.threads.run(0, Box::new(recover));
        told.await.unwrap().unwrap();
        client.send(Add { pot: kept.clone(), nth: 2 }).await.unwrap();
        eventually("the second event", async || seen(2).await).await;
    });
}

#[test]
fn hand_over_finishes_what_was_accepted() {
    run(async {
        let (store, [old, young]) = two_nodes(0).await;
        let commits = store.commit_control();
        let id = shard(shard_of(&pot(0), SHARDS));
        let client = old.node.client();
        client.send(Add { pot: pot(0), nth: 1 }).await.unwrap();
        commits.hold();
        let sent = tokio::task::spawn_local(async move { client.send(Add { pot: pot(0), nth: 2 }).await });
        eventually("append", async || if commits.waiting() > 0 { Ok(()) } else { Err("none".to_owned()) }).await;
        let moving = {
            let (old, id) = (Arc::clone(&old), id.clone());
            tokio::task::spawn_local(async move { old.hand_over(&id).await })
        };
        let definition = &old.node.definition;
        eventually("refusal", async || if definition.is_local(&id) { Err("open".to_owned()) } else { Ok(()) }).await;
        assert!(!moving.is_finished() && old.opened().contains(&id), "closed with a pending commit");
        commits.resume();
        assert_eq!(sent.await.unwrap().unwrap(), 2);
        moving.await.unwrap();
        assert!(young.open(&id).await);
        assert_eq!(young.node.client().send(Add { pot: pot(0), nth: 3 }).await.unwrap(), 3);
    });
}

#[test]
fn closed_shard_keeps_no_live_actor() {
    run(async {
        let (_store, [old, young]) = two_nodes(0).await;
        let client = old.node.client();
        client.send(Add { pot: pot(0), nth: 1 }).await.unwrap();
        let id = shard(shard_of(&pot(0), SHARDS));
        for _ in 0..3 {
            old.hand_over(&id).await;
            assert!(young.open(&id).await);
            let before = young.node.client().send(Inspect { pot: pot(0) }).await.unwrap().added.count;
            assert_eq!(young.node.client().send(Add { pot: pot(0), nth: before + 1 }).await.unwrap(), before + 1);
            young.hand_over(&id).await;
            assert!(old.open(&id).await);
            // An actor that is still alive would not know the turns of the other node.
            assert_eq!(client.send(Add { pot: pot(0), nth: before + 2 }).await.unwrap(), before + 2);
        }
    });
}

#[test]
fn command_of_an_absent_shard_is_refused_without_a_bridge() {
    run(async {
        let store = MemoryStore::shared(&Clock::system());
        let alone = Peer::start(Node::builder("pots", store.clone()).threads(0), &store, 1).await;
        let refused = alone.node.client().send(Add { pot: pot(0), nth: 1 }).await;
        assert!(matches!(&refused, Err(error @ SendError::NoBridge { .. }) if !error.is_transient()), "{refused:?}");
    });
}
