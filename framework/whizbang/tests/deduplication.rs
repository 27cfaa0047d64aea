//! Deduplication of commands of clients: their ids and idempotency keys, the retention time, and the cost.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod counting_disk;

use std::sync::Arc;
use std::time::Duration;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::{Clock, ManualClock, Timestamp};
use whizbang::message::{IdSource, MessageId};
use whizbang::prelude::*;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::{NodeConfig, SendError};

#[derive(Domain)]
#[domain(name = "vault", shards = 1)]
struct Vault;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Vault, reply = u64)]
struct Add {
    #[key]
    account: String,
    cents: u64,
    text: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Vault, reply = String)]
struct Long {
    #[key]
    account: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Vault)]
struct Added {
    cents: u64,
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Vault, handles(Add, Long), applies(Added), snapshot(every = 5))]
struct Account {
    cents: u64,
}

impl Handle<Add> for Account {
    fn handle(&self, add: Add, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Added { cents: add.cents });
        Ok(self.cents + add.cents)
    }
}

impl Handle<Long> for Account {
    fn handle(&self, _: Long, effects: &mut Effects<Self>) -> Result<String, Rejection> {
        effects.record(Added { cents: 1 });
        Ok("x".repeat(100_000))
    }
}

impl Apply<Added> for Account {
    fn apply(&mut self, added: &Added) {
        self.cents += added.cents;
    }
}

fn add(account: &str, cents: u64) -> Add {
    Add { account: account.to_owned(), cents, text: String::new() }
}

fn noon() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

async fn node(store: impl whizbang::store::Store, clock: Clock) -> Node {
    let config = NodeConfig { threads: 0, passivate_after: Duration::from_secs(1), ..NodeConfig::default() };
    Node::builder("vault", store).threads(0).aggregate::<Account>().config(config).clock(clock).start().await.unwrap()
}

async fn memory() -> (Node, ManualClock, IdSource) {
    let (clock, hand) = Clock::manual(noon());
    (node(MemoryStore::new(), clock.clone()).await, hand, IdSource::seeded(clock, 5))
}

#[whizbang::test]
async fn idempotency_key_counts_for_one_target() {
    let (node, ..) = memory().await;
    let client = node.client();
    let send = |account: &str, cents| client.send(add(account, cents)).idempotency_key("order-1");
    assert_eq!(send("ada", 500).await.unwrap(), 500);
    assert_eq!(send("bob", 900).await.unwrap(), 900, "another target is another command");
    assert_eq!(send("ada", 500).await.unwrap(), 500);
    assert!(matches!(send("ada", 501).await, Err(SendError::Conflict)));
    // The same holds for an id chosen by the caller.
    let id = MessageId::from_u128(7);
    assert_eq!(client.send(add("ada", 1)).id(id).await.unwrap(), 501);
    assert_eq!(client.send(add("bob", 2)).id(id).await.unwrap(), 902);
    assert!(matches!(client.send(add("ada", 2)).id(id).await, Err(SendError::Conflict)));
    // The ids are therefore different, wherever they appear.
    let of = |target| MessageId::from_idempotency_key("vault", target, "order-1");
    assert_ne!(of("ada"), of("bob"));
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Vault, reply = u64)]
struct Visit {
    #[key]
    account: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Vault, handles(Visit))]
struct Visitors {}

impl Handle<Visit> for Visitors {
    fn handle(&self, _: Visit, _: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(1)
    }
}

/// Two actor types of a domain may have equal keys. Neither knows what the other one has handled.
#[whizbang::test]
async fn idempotency_key_counts_for_one_actor_type() {
    let builder = Node::builder("vault", MemoryStore::new()).threads(0);
    let node = builder.aggregate::<Account>().aggregate::<Visitors>().start().await.unwrap();
    let client = node.client();
    for _ in 0..2 {
        assert_eq!(client.send(add("ada", 5)).idempotency_key("order-1").await.unwrap(), 5);
        assert_eq!(client.send(Visit { account: "ada".to_owned() }).idempotency_key("order-1").await.unwrap(), 1);
    }
    // Two messages of one actor type share the key.
    let long = client.send(Long { account: "ada".to_owned() }).idempotency_key("order-1").await;
    assert!(matches!(long, Err(SendError::Conflict)), "{long:?}");
    assert_eq!(node.metrics().duplicates, 2);
}

/// The broker does not identify callers: an idempotency key belongs to the first that uses it for a target. A caller
/// that shares the domain with others starts its keys with an unguessable prefix.
#[whizbang::test]
async fn guessable_idempotency_key_can_be_occupied() {
    let hub = LoopbackHub::new();
    let node =
        Node::builder("vault", MemoryStore::new()).aggregate::<Account>().bridge(hub.bridge()).start().await.unwrap();
    let shop = Client::connect("shop", hub.bridge()).await.unwrap();
    let intruder = Client::connect("intruder", hub.bridge()).await.unwrap();
    let secret = "9d3c2b7e5f0a4c81";
    let guesses = ["order-1043", "/order-1043", "shop/order-1043", "9d3c2b7e5f0a4c80/order-1043"];
    for guess in guesses {
        assert_eq!(intruder.send(add("ada", 0)).idempotency_key(guess).await.unwrap(), 0);
    }
    let guessed = shop.send(add("ada", 500)).idempotency_key("order-1043").await;
    assert!(matches!(guessed, Err(SendError::Conflict)), "{guessed:?}");
    let key = format!("{secret}/order-1043");
    assert_eq!(shop.send(add("ada", 500)).idempotency_key(&key).await.unwrap(), 500);
    assert_eq!(shop.send(add("ada", 500)).idempotency_key(&key).await.unwrap(), 500, "handled once");
    // For another target the guess is useless.
    assert_eq!(shop.send(add("bob", 500)).idempotency_key("order-1043").await.unwrap(), 500);
    shop.disconnect().await;
    intruder.disconnect().await;
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn empty_idempotency_key_is_refused() {
    let (node, ..) = memory().await;
    let client = node.client();
    for _ in 0..2 {
        let sent = client.send(add("ada", 5)).idempotency_key("").await;
        assert!(matches!(sent, Err(SendError::EmptyIdempotencyKey)), "{sent:?}");
        let posted = client.post(add("ada", 5)).idempotency_key("").await;
        assert!(matches!(posted, Err(SendError::EmptyIdempotencyKey)), "{posted:?}");
    }
    assert_eq!(client.send(add("ada", 1)).await.unwrap(), 1, "nothing was done");
}

#[whizbang::test]
async fn id_from_the_future_is_refused() {
    let (node, hand, _) = memory().await;
    let client = node.client();
    let ahead = |minutes: u64| {
        let now = noon().after(Duration::from_secs(60 * minutes));
        IdSource::seeded(Clock::manual(now).0, minutes).message_id()
    };
    let id = ahead(6);
    let early = client.send(add("ada", 1)).id(id).await.unwrap_err();
    assert!(matches!(early, SendError::IdInFuture) && !early.may_have_happened(), "{early:?}");
    assert_eq!(client.send(add("ada", 1)).id(ahead(4)).await.unwrap(), 1, "clocks may differ a little");
    hand.advance(Duration::from_secs(120));
    assert_eq!(client.send(add("ada", 1)).id(id).await.unwrap(), 2, "once it is not that far ahead");
}

#[whizbang::test]
async fn id_older_than_remembered_is_expired() {
    let (node, hand, ids) = memory().await;
    let client = node.client();
    let (handled, unhandled) = (ids.message_id(), ids.message_id());
    assert_eq!(client.send(add("ada", 1)).id(handled).await.unwrap(), 1);
    let week = NodeConfig::default().remember;
    hand.advance(week);
    assert_eq!(client.send(add("ada", 1)).id(handled).await.unwrap(), 1, "still remembered");
    hand.advance(Duration::from_millis(1));
    for id in [handled, unhandled] {
        let sent = client.send(add("ada", 1)).id(id).await;
        assert!(matches!(sent, Err(SendError::Expired)), "{sent:?}");
    }
    assert_eq!(client.send(add("ada", 1)).await.unwrap(), 2, "nothing was done");
}

#[whizbang::test]
async fn idempotency_key_is_remembered_and_expires() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, hand) = Clock::manual(noon());
    let week = NodeConfig::default().remember;
    let open = || EmbeddedStore::open(folder.path()).unwrap();
    let mut node = node(open(), clock.clone()).await;
    let mut cents = 0;
    for key in 0..50 {
        cents += 1;
        let sent = node.client().send(add("ada", 1)).idempotency_key(&key.to_string());
        assert_eq!(sent.await.unwrap(), cents);
    }
    // In memory, and after a restart from the store alone.
    hand.advance(week);
    for restart in [false, true] {
        if restart {
            node.stop().await.unwrap();
            node = self::node(open(), clock.clone()).await;
        }
        for key in 0..50 {
            let sent = node.client().send(add("ada", 1)).idempotency_key(&key.to_string());
            assert_eq!(sent.await.unwrap(), key + 1, "the first reply");
        }
    }
    hand.advance(Duration::from_millis(1));
    for restart in [false, true] {
        if restart {
            node.stop().await.unwrap();
            node = self::node(open(), clock.clone()).await;
        }
        for key in 25 * u64::from(restart)..25 + 25 * u64::from(restart) {
            cents += 1;
            let sent = node.client().send(add("ada", 1)).idempotency_key(&key.to_string());
            assert_eq!(sent.await.unwrap(), cents, "handled again");
        }
    }
}

#[whizbang::test]
async fn ids_and_keys_are_known_after_snapshot_and_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, _) = Clock::manual(noon());
    let ids = IdSource::seeded(clock.clone(), 9);
    let open = || EmbeddedStore::open(folder.path()).unwrap();
    let mut node = node(open(), clock.clone()).await;
    let (mut handled, mut cents) = (Vec::new(), 0);
    for turn in 0..60u64 {
        cents += turn;
        let id = match turn % 2 {
            0 => ids.message_id(),
            _ => MessageId::from_idempotency_key("vault", "ada", &turn.to_string()),
        };
        assert_eq!(node.client().send(add("ada", turn)).id(id).await.unwrap(), cents);
        handled.push((id, turn, cents));
    }
    let long = MessageId::from_u128(77);
    let reply = node.client().send(Long { account: "ada".to_owned() }).id(long).await.unwrap();
    for _ in 0..3 {
        for (id, turn, first) in &handled {
            assert_eq!(node.client().send(add("ada", *turn)).id(*id).await.unwrap(), *first, "turn {turn}");
            let other = node.client().send(add("ada", turn + 1)).id(*id).await;
            assert!(matches!(other, Err(SendError::Conflict)), "{other:?}");
        }
        assert_eq!(node.client().send(Long { account: "ada".to_owned() }).id(long).await.unwrap(), reply);
        node.stop().await.unwrap();
        node = self::node(open(), clock.clone()).await;
    }
}

#[whizbang::test]
async fn colliding_payloads_are_distinguished() {
    // Constructed for the unkeyed digest of older versions: a word equal to its state resets it.
    let (node, ..) = memory().await;
    let client = node.client();
    let with = |cents, text: &str| Add { account: "ada".to_owned(), cents, text: text.to_owned() };
    assert_eq!(client.send(with(1, "one")).idempotency_key("k").await.unwrap(), 1);
    assert!(matches!(client.send(with(200, "two")).idempotency_key("k").await, Err(SendError::Conflict)));
}

#[test]
fn look_up_reads_no_history() {
    whizbang::testing::store::run(async {
        use counting_disk::{Disk, counting_disk};
        use whizbang::message::{Name, ShardId};
        use whizbang::testing::store::{Owner, TurnBuilder};
        let mut reads = Vec::new();
        for turns in [1_000u64, 20_000] {
            let disk = counting_disk(u64::MAX);
            let config = EmbeddedConfig::default().checkpoint_bytes(64 << 10);
            let store = EmbeddedStore::open_on(Arc::clone(&disk) as Arc<Disk>, &config, Some(1)).unwrap();
            let store: Arc<dyn whizbang::store::Store> = Arc::new(store);
            let (bank, name) = (ShardId::new(Name::new("bank").unwrap(), 0), Name::new("Account").unwrap());
            let mut owner = Owner::take(&store, &bank).await;
            let mut last = None;
            for turn in 1..=turns {
                let draft =
                    TurnBuilder::new("Account", "ada", turn).at(turn, turn - 1).event("Happened", "1").outside(1);
                last = Some(owner.append_alone(&draft).unwrap());
            }
            owner.settled(last.unwrap()).await;
            let id = |number: u64| MessageId::from_u128(u128::from(number) << 32 | 0x5EED);
            let before = disk.read();
            for number in [1, turns / 2, turns] {
                let found = owner.reader.find_turn(&name, "ada", id(number)).await.unwrap();
                assert_eq!(found.map(|turn| turn.number), Some(number));
            }
            for number in 0..10 {
                assert_eq!(owner.reader.find_turn(&name, "ada", id(turns + 1 + number)).await.unwrap(), None);
            }
            reads.push(disk.read() - before);
        }
        let (few, many) = (reads[0], reads[1]);
        assert!(many <= 13 * 8 * 4096 && many <= few + 13 * 8 * 4096, "{few} and {many} bytes for 13 look-ups");
    });
}

/// From the 33rd idempotency key on, each further one is looked up in the store.
#[whizbang::test]
async fn look_up_of_a_key_does_not_wait_for_commits() {
    let (store, faults) = MemoryStore::faulty();
    let node = node(store, Clock::manual(noon()).0).await;
    let client = node.client();
    let send = |n: u64| client.send(add("ada", 1)).idempotency_key(&format!("order-{n}"));
    for n in 0..40 {
        assert_eq!(send(n).await.unwrap(), n + 1);
    }
    faults.hold();
    let run = async |from, to| {
        let mut replies: Vec<_> = (from..to).map(&send).collect();
        for reply in &mut replies {
            assert!(futures_util::poll!(reply).is_pending());
        }
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
        replies
    };
    let first = run(40, 100).await;
    assert_eq!(faults.waiting(), 60, "all of them were decided although none is committed");
    // No longer in memory, and not found by the store.
    let again = run(40, 60).await;
    assert_eq!(faults.waiting(), 60, "none of them is decided twice");
    faults.resume();
    for (n, reply) in (40..100).zip(first).chain((40..60).zip(again)) {
        assert_eq!(reply.await.unwrap(), n + 1);
    }
    node.stop().await.unwrap();
}
