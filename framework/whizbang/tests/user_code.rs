//! User code that panics or blocks in unusual places: while a snapshot is saved, in `Default`, in the choice of a key, in the drop
//! of a value.

mod bank;
mod eventually;

use std::cell::Cell;
use std::sync::mpsc;
use std::time::Duration;

use eventually::eventually;
use parking_lot::Mutex;
use serde::Serializer;
use whizbang::message::Key;
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::{NodeConfig, Retry, SendError};

#[derive(Domain)]
#[domain(name = "shelves")]
struct Shelves;

/// The place where the code panics.
#[derive(Clone, Copy, PartialEq)]
enum PanicIn {
    Nowhere,
    Save,
    Default,
    Key,
}

thread_local! {
    static PANIC_IN: Cell<PanicIn> = const { Cell::new(PanicIn::Nowhere) };
}

fn panic_if_planned(at: PanicIn) {
    assert!(PANIC_IN.get() != at, "planned: user code panics");
}

#[derive(Clone, Serialize, Deserialize)]
struct Label(String);

impl<'a> From<&'a Label> for Key<'a> {
    fn from(label: &'a Label) -> Self {
        panic_if_planned(PanicIn::Key);
        Key::from(label.0.as_str())
    }
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Shelves, reply = u64)]
struct Put {
    #[key]
    shelf: Label,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Shelves)]
struct Filled {}

fn saved<S: Serializer>(books: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    panic_if_planned(PanicIn::Save);
    serializer.serialize_u64(*books)
}

#[derive(Aggregate, Serialize, Deserialize)]
#[aggregate(domain = Shelves, handles(Put), applies(Filled), snapshot(every = 2))]
struct Shelf {
    #[serde(serialize_with = "saved")]
    books: u64,
}

impl Default for Shelf {
    fn default() -> Self {
        panic_if_planned(PanicIn::Default);
        Self { books: 0 }
    }
}

impl Handle<Put> for Shelf {
    fn handle(&self, _put: Put, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Filled {});
        Ok(self.books + 1)
    }
}

impl Apply<Filled> for Shelf {
    fn apply(&mut self, _filled: &Filled) {
        self.books += 1;
    }
}

/// Has a book put on a shelf, so that the relay activates the shelf.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Shelves, reply = ())]
struct Order {
    #[key]
    desk: String,
    shelf: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Shelves)]
struct Ordered {}

#[derive(Saga, Default)]
#[saga(domain = Shelves, handles(Order), applies(Ordered))]
struct Desk {}

impl Handle<Order> for Desk {
    fn handle(&self, order: Order, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Ordered {});
        effects.send(put(&order.shelf));
        Ok(())
    }
}

impl Apply<Ordered> for Desk {
    fn apply(&mut self, _ordered: &Ordered) {}
}

fn put(shelf: &str) -> Put {
    Put { shelf: Label(shelf.to_owned()) }
}

fn quick() -> Retry {
    Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(4) }
}

async fn shelves() -> Node {
    let builder = Node::builder("library", MemoryStore::new()).threads(0).retry(quick());
    builder.aggregate::<Shelf>().saga::<Desk>().start().await.unwrap()
}

#[whizbang::test]
async fn panic_while_a_snapshot_is_saved_loses_only_the_snapshot() {
    let node = shelves().await;
    let client = node.client();
    PANIC_IN.set(PanicIn::Save);
    for turn in 1..=20 {
        // A command with its own id goes through the mailbox; one without runs inline.
        let sent = client.send(put("a"));
        let sent = if turn % 4 < 2 { sent.id(client.new_id()) } else { sent };
        assert_eq!(sent.await.unwrap(), turn, "a turn that is committed is answered with its reply");
    }
    let metrics = node.metrics();
    assert_eq!((metrics.activations, metrics.turns, metrics.snapshots_skipped), (1, 20, 10));
    assert_eq!(metrics.panics, 10);
    PANIC_IN.set(PanicIn::Nowhere);
    assert_eq!(client.send(put("a")).await.unwrap(), 21);
    assert_eq!(client.send(put("a")).await.unwrap(), 22);
    assert_eq!(node.metrics().snapshots_skipped, 10, "the next snapshot is kept");
    assert_eq!(node.metrics().activations, 1, "one actor of the key was live throughout");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn panic_in_default_fails_one_key_and_no_other() {
    let node = shelves().await;
    let client = node.client();
    client.send(Order { desk: "d".into(), shelf: "live".into() }).await.unwrap();
    client.send(put("live")).await.unwrap();
    node.wait_idle().await;
    PANIC_IN.set(PanicIn::Default);
    assert!(matches!(client.send(put("new")).await, Err(SendError::Refused(_) | SendError::DeadLetter { .. })));
    // Messages of actors are moved by a background task of the node, which keeps moving the others.
    client.send(Order { desk: "d".into(), shelf: "new".into() }).await.unwrap();
    for _ in 0..100 {
        client.send(Order { desk: "d".into(), shelf: "live".into() }).await.unwrap();
    }
    eventually(async || client.send(put("live")).await.unwrap() > 102).await;
    assert!(node.metrics().panics > 0);
    PANIC_IN.set(PanicIn::Nowhere);
    eventually(async || client.send(put("new")).await.is_ok()).await;
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn panic_in_choice_of_key_is_reported_to_its_caller() {
    let node = shelves().await;
    PANIC_IN.set(PanicIn::Key);
    let refused = node.client().send(put("a")).await;
    assert!(matches!(refused, Err(SendError::Encode(_))), "{refused:?}");
    PANIC_IN.set(PanicIn::Nowhere);
    assert_eq!(node.client().send(put("a")).await.unwrap(), 1);
    node.stop().await.unwrap();
}

#[derive(Domain)]
#[domain(name = "locks")]
struct Locks;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Locks, reply = ())]
struct Wait {
    #[key]
    lock: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Locks, handles(Wait))]
struct Lock {}

/// The handler blocks here, like one that makes a slow call.
static GATE: Mutex<Option<mpsc::Receiver<()>>> = Mutex::new(None);

impl Handle<Wait> for Lock {
    fn handle(&self, _wait: Wait, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if let Some(gate) = GATE.lock().take() {
            let _ = gate.recv();
        }
        Ok(())
    }
}

#[whizbang::test]
async fn blocked_thread_is_named_in_health_until_it_runs_again() {
    let config = NodeConfig { threads: 1, blocked_after: Duration::from_millis(100), ..NodeConfig::default() };
    let node =
        Node::builder("locks", MemoryStore::new()).threads(0).config(config).aggregate::<Lock>().start().await.unwrap();
    let client = node.client();
    client.send(Wait { lock: "a".into() }).await.unwrap();
    assert!(node.health().ready, "{:?}", node.health());
    // Once for each path into a turn.
    for own_id in [false, true] {
        let (release, gate) = mpsc::channel();
        *GATE.lock() = Some(gate);
        let sent = client.send(Wait { lock: "a".into() });
        let sent = if own_id { sent.id(client.new_id()) } else { sent };
        let sending = tokio::task::spawn_local(sent);
        let said = |reason: &String| reason.contains("thread 0") && reason.contains("`Wait` of `lock`");
        eventually(async || {
            let health = node.health();
            health.live && !health.ready && health.reasons.iter().any(said)
        })
        .await;
        release.send(()).unwrap();
        sending.await.unwrap().unwrap();
        eventually(async || node.health().ready).await;
        assert!(node.metrics().longest_call >= Duration::from_millis(100), "{:?}", node.metrics());
    }
    node.stop().await.unwrap();
}

thread_local! {
    /// The number of drops until one panics; 0 if none does.
    static DROPS: Cell<u32> = const { Cell::new(0) };
}

/// A value whose drop panics if that is planned.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Fragile(u32);

impl Drop for Fragile {
    fn drop(&mut self) {
        let left = DROPS.get();
        DROPS.set(left.saturating_sub(1));
        assert!(left != 1, "planned: a drop panics");
    }
}

#[derive(Domain)]
#[domain(name = "parcels", shards = 1)]
struct Parcels;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Parcels, reply = Fragile)]
struct Pack {
    #[key]
    parcel: String,
    item: Fragile,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Parcels)]
struct Packed {
    item: Fragile,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Parcels, handles(Pack), applies(Packed))]
struct Parcel {
    count: u32,
    last: Fragile,
}

impl Handle<Pack> for Parcel {
    fn handle(&self, pack: Pack, effects: &mut Effects<Self>) -> Result<Fragile, Rejection> {
        effects.record(Packed { item: pack.item });
        Ok(Fragile(self.count + 1))
    }
}

impl Apply<Packed> for Parcel {
    fn apply(&mut self, packed: &Packed) {
        self.count += 1;
        self.last = packed.item.clone();
    }
}

/// Commands, events, replies and states are dropped in many places. Each of them panics once: no caller panics, and each command
/// that was answered with its reply is in the state once.
#[whizbang::test]
async fn panic_in_any_drop_stays_inside_the_node() {
    let mut places = 0;
    loop {
        let config = NodeConfig { threads: 0, live_actors: 1, retry: quick(), ..NodeConfig::default() };
        let builder = Node::builder("post", MemoryStore::new()).threads(0).config(config);
        let node = builder.aggregate::<Parcel>().start().await.unwrap();
        let client = node.client();
        let pack = |parcel: &str| client.send(Pack { parcel: parcel.to_owned(), item: Fragile(7) });
        let (mut answered, mut failed) = (0, 0);
        DROPS.set(places + 1);
        // Inline, through the mailbox, and with a bound wait. A second key passivates the first one.
        for parcel in ["a", "a", "b", "a"] {
            for sent in [pack(parcel), pack(parcel).id(client.new_id()), pack(parcel).deadline(Duration::from_secs(20))]
            {
                match sent.await {
                    // The test's own drop is not inside the node.
                    Ok(reply) => std::mem::forget(reply),
                    Err(_) if parcel == "b" => continue,
                    Err(_) => {
                        failed += 1;
                        continue;
                    }
                }
                answered += u32::from(parcel == "a");
            }
        }
        let is_reached = DROPS.replace(0) == 0;
        eventually(async || pack("b").await.is_ok()).await;
        let count = pack("a").await.unwrap().0 - 1;
        assert!((answered..=answered + failed).contains(&count), "place {places}: {count} of {answered} and {failed}");
        node.stop().await.unwrap();
        if !is_reached {
            break;
        }
        places += 1;
    }
    assert!(places > 30, "{places} drops");
}

/// The command and the reply of a turn that the store refuses are dropped by the node. Each drop panics once: no caller panics,
/// and the key keeps serving.
#[whizbang::test]
async fn panic_in_drop_of_a_refused_turn_stays_inside() {
    let mut places = 0;
    loop {
        let (store, faults) = MemoryStore::faulty();
        let builder = Node::builder("post", store).threads(0).retry(quick());
        let node = builder.aggregate::<Parcel>().start().await.unwrap();
        let client = node.client();
        let pack = || client.send(Pack { parcel: "a".to_owned(), item: Fragile(7) }).no_retry();
        let (mut answered, mut failed) = (0, 0);
        for round in 0..6 {
            if round == 2 {
                DROPS.set(places + 1);
            }
            if round >= 2 {
                faults.refuse(1, StoreError::Full { at: "memory".to_owned() });
            }
            // Inline, and through the mailbox.
            let sent = if round % 2 == 0 { pack() } else { pack().id(client.new_id()) };
            match sent.await {
                Ok(reply) => {
                    std::mem::forget(reply);
                    answered += 1;
                }
                Err(_) => failed += 1,
            }
        }
        let is_reached = DROPS.replace(0) == 0;
        assert!(failed >= 4 || is_reached, "{failed} turns were refused");
        let mut count = 0;
        while count == 0 {
            count = pack().await.map_or(0, |reply| reply.0);
        }
        assert!(
            (answered..=answered + failed).contains(&(count - 1)),
            "place {places}: {count} of {answered}, {failed}"
        );
        node.stop().await.unwrap();
        if !is_reached {
            break;
        }
        places += 1;
    }
    assert!(places > 10, "{places} drops");
}
