//! Keys parked behind dead letters: reported by health, bounded, and redriven without delaying other keys.

#![cfg(feature = "testing")]

mod eventually;
mod orders;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use eventually::eventually;
use orders::*;
use whizbang::SendError;
use whizbang::prelude::*;

/// Parks the shelf `broken`.
async fn park(node: &Node) {
    place(node, "parks", &["broken"]).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap().len(), 1);
}

fn take() -> Take {
    Take { shelf: "broken".to_owned() }
}

#[whizbang::test]
async fn health_names_dead_letters_until_they_are_gone() {
    let store = MemoryStore::new();
    let mut node = start(&store).await;
    park(&node).await;
    for restarts in [false, true] {
        if restarts {
            drop(node);
            node = start(&store).await;
        }
        let health = node.health();
        assert!(health.ready && health.live, "one parked key stops no others: {health:?}");
        let [reason] = &health.reasons[..] else { panic!("{health:?}") };
        for part in ["1 message", "`Take` of shelf `broken`", "the shelf is broken", "redrive or discard"] {
            assert!(reason.contains(part), "{part}: {reason}");
        }
    }
    node.discard(&only(node.dead_letters().await.unwrap())).await.unwrap();
    assert_eq!(node.health().reasons, [""; 0]);
}

#[whizbang::test]
async fn redrive_does_not_delay_other_keys() {
    let node = start(&MemoryStore::new()).await;
    park(&node).await;
    let client = node.client();
    const MANY: i64 = 2_000;
    for _ in 1..MANY {
        assert!(matches!(client.send(take()).await, Err(SendError::DeadLetter { .. })));
    }
    let letter = node.dead_letters().await.unwrap().remove(0);
    repair();
    let (answered, ends) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
    let others = {
        let (answered, ends, client) = (Rc::clone(&answered), Rc::clone(&ends), client.clone());
        tokio::task::spawn_local(async move {
            while !ends.get() {
                client.send(Take { shelf: "other".to_owned() }).await.unwrap();
                answered.set(answered.get() + 1);
                tokio::task::yield_now().await;
            }
        })
    };
    node.redrive(&letter).await.unwrap();
    ends.set(true);
    others.await.unwrap();
    assert_eq!(taken(&node, "broken").await, MANY);
    assert!(answered.get() >= 20, "{} commands were answered while {MANY} were redriven", answered.get());
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

/// Sends a command of a given size in bytes to a box.
#[derive(Command, Clone, Serialize, Deserialize)]
#[command(domain = Stock, reply = u64)]
struct Pack {
    #[key]
    name: String,
    number: u64,
    bytes: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Stock)]
struct Packed {
    number: u64,
}

thread_local! {
    /// Each live crate has a copy.
    static TOKEN: Arc<()> = Arc::default();
    /// The number of a pack that fails.
    static FAILING: Cell<u64> = const { Cell::new(u64::MAX) };
}

struct Token(#[allow(dead_code, reason = "counted")] Arc<()>);

impl Default for Token {
    fn default() -> Self {
        Self(TOKEN.with(Arc::clone))
    }
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Stock, handles(Pack), applies(Packed))]
struct Crate {
    packed: Vec<u64>,
    _token: Token,
}

impl Handle<Pack> for Crate {
    fn handle(&self, pack: Pack, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        // The first one parks the crate.
        assert!(pack.number > 0 || !FAULTS.with(|faults| faults.0.load(std::sync::atomic::Ordering::SeqCst)));
        assert_ne!(pack.number, FAILING.get(), "planned");
        if let Some(last) = self.packed.last().filter(|last| **last >= pack.number && pack.number < 1_000_000) {
            panic!("{} comes behind {last}", pack.number);
        }
        if pack.number < 1_000_000 {
            effects.record(Packed { number: pack.number });
        }
        Ok(self.packed.len() as u64)
    }
}

impl Apply<Packed> for Crate {
    fn apply(&mut self, packed: &Packed) {
        self.packed.push(packed.number);
    }
}

/// Sends a number of them.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Ship {
    #[key]
    order: String,
    from: u64,
    to: u64,
    bytes: usize,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Orders, handles(Ship))]
struct Shipment;

impl Handle<Ship> for Shipment {
    fn handle(&self, ship: Ship, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for number in ship.from..ship.to {
            effects.send(pack(number, ship.bytes));
        }
        Ok(())
    }
}

fn pack(number: u64, bytes: usize) -> Pack {
    Pack { name: "c".to_owned(), number, bytes: "x".repeat(bytes) }
}

const BYTES: usize = 400 * 1024;

fn ship(from: u64, to: u64, bytes: usize) -> Ship {
    Ship { order: "o".to_owned(), from, to, bytes }
}

/// A node with a crate that is parked, and whose bound of parked messages is reached.
async fn full_crate(store: MemoryStore) -> Node {
    let builder =
        Node::builder("shop", store).threads(0).aggregate::<Crate>().aggregate::<Shipment>().aggregate::<Shelf>();
    let node = builder.retry(quick()).start().await.unwrap();
    let client = node.client();
    client.send(ship(0, 1, 0)).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap().len(), 1);
    // Callers fill the bound of parked messages, and are rejected from then on.
    let mut accepted = 0;
    let error = loop {
        match client.send(pack(1_000_000 + accepted, BYTES)).no_retry().await {
            Err(SendError::DeadLetter { .. }) => accepted += 1,
            other => break other.unwrap_err(),
        }
        assert!(accepted < 1_000, "nothing ends it");
    };
    assert!(matches!(error, SendError::Busy { .. }) && accepted >= 100, "{accepted}: {error}");
    node
}

/// The messages in memory refer to their actor, and the actor to them.
#[whizbang::test]
async fn reopened_shard_frees_messages_over_the_limit() {
    let (store, faults) = MemoryStore::faulty();
    let node = full_crate(store).await;
    for from in [1, 4, 7] {
        node.client().send(ship(from, from + 3, BYTES)).await.unwrap();
    }
    for _ in 0..5 {
        let broken = whizbang::store::StoreError::io("flushing", std::io::Error::other("planned"));
        faults.fail(0, broken);
        // The crate is live again once it has received a message.
        eventually(async || {
            let sent = node.client().send(pack(1_000_001, 0)).no_retry().await;
            matches!(sent, Err(SendError::Busy { .. } | SendError::DeadLetter { .. }))
        })
        .await;
    }
    // One for the test, one for the live crate.
    eventually(async || TOKEN.with(Arc::strong_count) <= 2).await;
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn redrive_that_fails_admits_messages_over_the_limit() {
    let node = full_crate(MemoryStore::new()).await;
    node.client().send(ship(1, 4, BYTES)).await.unwrap();
    let before = node.dead_letters().await.unwrap();
    repair();
    FAILING.set(1_000_050);
    let failed = node.redrive(&before[0]).await;
    assert!(failed.is_err(), "{failed:?}");
    // The first one and 50 others are resolved, and those three are parked.
    eventually(async || node.dead_letters().await.unwrap().len() == before.len() - 51 + 3).await;
    FAILING.set(u64::MAX);
    node.redrive(&before[51]).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap(), []);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn messages_parked_behind_a_dead_letter_are_bounded() {
    const SENT: u64 = 60;
    let node = full_crate(MemoryStore::new()).await;
    let client = node.client();
    // Messages of actors are neither lost nor overtaken, and other keys proceed.
    for from in (1..SENT).step_by(3) {
        client.send(ship(from, from + 3, BYTES)).await.unwrap();
    }
    client.send(Take { shelf: "other".to_owned() }).await.unwrap();
    assert!(matches!(client.send(pack(1_000_001, 0)).no_retry().await, Err(SendError::Busy { .. })));
    let held = node.dead_letters().await.unwrap();
    repair();
    node.redrive(&held[0]).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(client.send(pack(1_000_002, 0)).await.unwrap(), SENT + 1, "each once, in order");
    node.stop().await.unwrap();
}
