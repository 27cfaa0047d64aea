//! Keys parked behind dead letters: reported by health, bounded, and redriven without delaying other keys.

mod orders;

use std::cell::Cell;
use std::rc::Rc;

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

#[derive(Aggregate, Default)]
#[aggregate(domain = Stock, handles(Pack), applies(Packed))]
struct Crate {
    packed: Vec<u64>,
}

impl Handle<Pack> for Crate {
    fn handle(&self, pack: Pack, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        // The first one parks the crate.
        assert!(pack.number > 0 || !FAULTS.with(|faults| faults.0.load(std::sync::atomic::Ordering::SeqCst)));
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

#[whizbang::test]
async fn messages_parked_behind_a_dead_letter_are_bounded() {
    const BYTES: usize = 400 * 1024;
    const SENT: u64 = 60;
    let builder = Node::builder("shop", MemoryStore::new())
        .threads(0)
        .aggregate::<Crate>()
        .aggregate::<Shipment>()
        .aggregate::<Shelf>();
    let node = builder.retry(quick()).start().await.unwrap();
    let client = node.client();
    let ship = |from, to, bytes| Ship { order: "o".to_owned(), from, to, bytes };
    client.send(ship(0, 1, 0)).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap().len(), 1);
    // Callers fill the bound of parked messages, and are rejected from then on.
    let mut accepted = 0;
    let error = loop {
        match client.send(pack(1_000_000, BYTES)).no_retry().await {
            Err(SendError::DeadLetter { .. }) => accepted += 1,
            other => break other.unwrap_err(),
        }
        assert!(accepted < 1_000, "nothing ends it");
    };
    assert!(matches!(error, SendError::Busy { .. }) && accepted >= 100, "{accepted}: {error}");
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
