//! Queries that an aggregate answers from its committed state: without a turn, behind the commits they depend on, at the owner
//! of the key.
#![cfg(feature = "testing")]

mod poll_once;

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::Mutex;
use poll_once::poll_once;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::Clock;
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::{NodeConfig, Retry, SendError, StartError};

/// Keys whose events cannot be applied. Each test has keys of its own.
static UNLOADABLE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

#[derive(Domain)]
#[domain(name = "bank")]
struct Bank;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

/// Fails in every attempt.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Explode {
    #[key]
    account: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    account: String,
    cents: u64,
}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct BalanceOf {
    #[key]
    account: String,
}

/// Panics.
#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct SecretOf {
    #[key]
    account: String,
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Bank, handles(Deposit, Explode), applies(Deposited), answers(BalanceOf, SecretOf))]
struct Account {
    cents: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        let Deposit { account, cents } = deposit;
        effects.record(Deposited { account, cents });
        Ok(self.cents + cents)
    }
}

impl Handle<Explode> for Account {
    fn handle(&self, _explode: Explode, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        panic!("boom")
    }
}

impl Answer<BalanceOf> for Account {
    fn answer(&self, _query: BalanceOf) -> u64 {
        self.cents
    }
}

impl Answer<SecretOf> for Account {
    fn answer(&self, _query: SecretOf) -> u64 {
        panic!("no secrets")
    }
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, deposited: &Deposited) {
        assert!(!UNLOADABLE.lock().contains(&deposited.account), "cannot be applied");
        self.cents += deposited.cents;
    }
}

/// Sends `Explode` to its account: a message of an actor that fails parks its key.
#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, reacts(Deposited))]
struct Bomber {}

impl React<Deposited> for Bomber {
    fn key(deposited: &Deposited, _context: &EventContext) -> Option<String> {
        deposited.account.starts_with("parked").then(|| deposited.account.clone())
    }

    fn react(&self, deposited: Deposited, effects: &mut Effects<Self>) {
        effects.send(Explode { account: deposited.account });
    }
}

fn deposit(account: &str, cents: u64) -> Deposit {
    Deposit { account: account.to_owned(), cents }
}

fn balance(account: &str) -> BalanceOf {
    BalanceOf { account: account.to_owned() }
}

async fn start(store: MemoryStore) -> Node {
    let retry = Retry { attempts: 2, first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let builder = Node::builder("bank", store).threads(0).retry(retry);
    builder.aggregate::<Account>().aggregate::<Bomber>().start().await.unwrap()
}

async fn turn_over() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[whizbang::test]
async fn queries_add_nothing_to_the_log() {
    let node = start(MemoryStore::new()).await;
    let client = node.client();
    for cents in 1..=3 {
        let held = client.send(deposit("ada", cents)).await.unwrap();
        assert_eq!(client.query(balance("ada")).await.unwrap(), held, "a command that was answered is in the state");
    }
    let before = node.metrics();
    for _ in 0..1000 {
        assert_eq!(client.query(balance("ada")).await.unwrap(), 6);
    }
    assert_eq!(client.query(balance("without an event")).await.unwrap(), 0);
    let after = node.metrics();
    assert_eq!((after.turns, after.events), (before.turns, before.events));
    assert_eq!(after.answers, before.answers + 1001);
    assert_eq!(node.in_flight(), 0);
}

#[whizbang::test]
async fn query_waits_for_the_commits_it_depends_on() {
    let (store, faults) = MemoryStore::faulty();
    let node = start(store).await;
    let client = node.client();
    client.send(deposit("ada", 1)).await.unwrap();
    client.send(deposit("bob", 5)).await.unwrap();
    faults.hold();
    let reply = poll_once(client.send(deposit("ada", 2)));
    let mut answer = poll_once(client.query(balance("ada")));
    turn_over().await;
    assert_eq!(faults.waiting(), 1, "the turn is taken, and not committed");
    assert!(futures_util::poll!(&mut answer).is_pending());
    assert_eq!(client.query(balance("bob")).await.unwrap(), 5, "another key waits for nothing");
    // A later turn of the key delays the answer no further.
    let later = poll_once(client.send(deposit("ada", 4)));
    turn_over().await;
    faults.commit(1);
    assert_eq!((reply.await.unwrap(), answer.await.unwrap()), (3, 3));
    faults.resume();
    assert_eq!(later.await.unwrap(), 7);
}

#[whizbang::test]
async fn query_never_shows_a_failed_commit() {
    let (store, faults) = MemoryStore::faulty();
    let node = start(store).await;
    let client = node.client();
    client.send(deposit("ada", 1)).await.unwrap();
    faults.hold();
    let reply = poll_once(client.send(deposit("ada", 2)));
    let once = poll_once(client.query(balance("ada")).no_retry());
    let repeated = poll_once(client.query(balance("ada")));
    turn_over().await;
    faults.fail(0, StoreError::io("flushing", std::io::Error::other("the disk is gone")));
    assert!(matches!(reply.await, Err(SendError::Unknown { .. })));
    let error = once.await.unwrap_err();
    assert!(error.is_transient() && !error.may_have_happened(), "{error}");
    assert_eq!(repeated.await.unwrap(), 1, "the state as it is in the log");
}

#[whizbang::test]
async fn query_reaches_the_owner_over_a_bridge() {
    let hub = LoopbackHub::new();
    let owner = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().bridge(hub.bridge());
    let owner = owner.start().await.unwrap();
    let client = Client::connect("outside", hub.bridge()).await.unwrap();
    assert_eq!(client.query(balance("ada")).await.unwrap(), 0);
    client.send(deposit("ada", 5)).await.unwrap();
    let turns = owner.metrics().turns;
    assert_eq!(client.query(balance("ada")).await.unwrap(), 5);
    assert_eq!((owner.metrics().turns, owner.metrics().answers), (turns, 2));
    let error = client.query(SecretOf { account: "ada".into() }).await.unwrap_err();
    assert!(matches!(&error, SendError::Unanswered { name, .. } if name == "SecretOf"), "{error:?}");
    let invalid = client.query(balance("")).await.unwrap_err();
    assert!(matches!(invalid, SendError::Key { bytes: 0 }), "{invalid:?}");
}

#[whizbang::test]
async fn nodes_of_a_service_answer_for_all_keys() {
    let (store, hub) = (MemoryStore::shared(&Clock::system()), LoopbackHub::new());
    let node = async |label: &str| {
        let config = NodeConfig { lease: Duration::from_secs(2), ..NodeConfig::default() };
        let builder = Node::builder("bank", store.clone()).config(config).label(label).aggregate::<Account>();
        builder.bridge(hub.bridge()).start().await.unwrap()
    };
    let (one, two) = (node("one").await, node("two").await);
    let keys: Vec<_> = (0..64).map(|n| format!("account{n}")).collect();
    for (cents, key) in keys.iter().enumerate() {
        let [writer, reader] = if cents % 2 == 0 { [&one, &two] } else { [&two, &one] };
        writer.client().send(deposit(key, cents as u64)).await.unwrap();
        assert_eq!(reader.client().query(balance(key)).await.unwrap(), cents as u64);
    }
    one.stop().await.unwrap();
    for (cents, key) in keys.iter().enumerate() {
        assert_eq!(two.client().query(balance(key)).await.unwrap(), cents as u64);
    }
    assert!(two.metrics().answers >= 64, "the node that is left answers for all keys");
}

#[whizbang::test]
async fn query_of_a_parked_key_is_unanswered() {
    let node = start(MemoryStore::new()).await;
    let client = node.client();
    client.send(deposit("parked", 5)).await.unwrap();
    node.wait_idle().await;
    let error = client.query(balance("parked")).await.unwrap_err();
    let SendError::Unanswered { reason, .. } = &error else { panic!("{error:?}") };
    assert!(reason.contains("behind a dead letter"), "{reason}");
    assert!(!error.is_transient());
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1, "the query is not one of them");
    node.discard(&letters[0]).await.unwrap();
    assert_eq!(client.query(balance("parked")).await.unwrap(), 5);
}

#[whizbang::test]
async fn query_of_an_unloadable_key_is_refused() {
    let store = MemoryStore::new();
    let node = start(store.clone()).await;
    node.client().send(deposit("unloadable", 5)).await.unwrap();
    drop(node);
    UNLOADABLE.lock().insert("unloadable".to_owned());
    let node = start(store).await;
    let client = node.client();
    let error = client.query(balance("unloadable")).no_retry().await.unwrap_err();
    assert!(matches!(&error, SendError::Refused(_)), "{error:?}");
    UNLOADABLE.lock().clear();
    assert_eq!(client.query(balance("unloadable")).await.unwrap(), 5);
}

#[whizbang::test]
async fn panic_in_an_answer_is_reported_to_the_caller() {
    let node = start(MemoryStore::new()).await;
    let client = node.client();
    client.send(deposit("ada", 5)).await.unwrap();
    let error = client.query(SecretOf { account: "ada".into() }).await.unwrap_err();
    assert!(matches!(&error, SendError::Unanswered { reason, .. } if reason.contains("no secrets")), "{error:?}");
    assert_eq!(client.query(balance("ada")).await.unwrap(), 5, "the state is unchanged");
    assert_eq!(node.metrics().panics, 1);
}

/// Answers a query of the accounts as well.
#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, reacts(Deposited), answers(BalanceOf))]
struct Copycat {}

impl React<Deposited> for Copycat {
    fn react(&self, _deposited: Deposited, _effects: &mut Effects<Self>) {}
}

impl Answer<BalanceOf> for Copycat {
    fn answer(&self, _query: BalanceOf) -> u64 {
        0
    }
}

#[whizbang::test]
async fn query_has_one_answering_type() {
    let builder = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().aggregate::<Copycat>();
    let error = builder.start().await.unwrap_err();
    assert!(matches!(&error, StartError::DoubleAnswer { query, .. } if query == "BalanceOf"), "{error:?}");
}

#[whizbang::test]
async fn query_without_an_owner_type_is_unhandled() {
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Bomber>().start().await.unwrap();
    let error = node.client().query(balance("ada")).await.unwrap_err();
    assert!(matches!(&error, SendError::Unhandled { name, .. } if name == "BalanceOf"), "{error:?}");
    assert_eq!(node.dead_letters().await.unwrap().len(), 0);
}

/// Counts all deposits.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited), answers(DepositsSeen))]
struct DepositCount {
    deposits: u64,
}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct DepositsSeen {}

impl Project<Deposited> for DepositCount {
    fn project(&mut self, _deposited: &Deposited, _context: &EventContext) {
        self.deposits += 1;
    }
}

impl Answer<DepositsSeen> for DepositCount {
    fn answer(&self, _query: DepositsSeen) -> u64 {
        self.deposits
    }
}

/// A process that is stopped after a query has arrived and continues after its lease: other nodes may own the key by then.
/// Time jumps before any task runs, as it does for such a process.
#[tokio::test(start_paused = true)]
async fn query_across_a_suspension_is_not_answered() {
    let test = async {
        let (store, lease) = (MemoryStore::shared(&Clock::system()), Duration::from_secs(2));
        let config = NodeConfig { lease, threads: 0, ..NodeConfig::default() };
        let commits = store.commit_control();
        let node = Node::builder("bank", store).config(config).aggregate::<Account>().projection::<DepositCount>();
        let node = node.start().await.unwrap();
        let client = node.client();
        client.send(deposit("ada", 5)).await.unwrap();
        node.wait_idle().await;
        for _ in 0..3 {
            let key = poll_once(client.query(balance("ada")).no_retry());
            let view = poll_once(client.query(DepositsSeen {}).no_retry());
            assert_eq!((key.await.unwrap(), view.await.unwrap() > 0), (5, true));
            let key = poll_once(client.query(balance("ada")).no_retry());
            let view = poll_once(client.query(DepositsSeen {}).no_retry());
            tokio::time::advance(lease).await;
            assert!(key.await.is_err(), "the state of a key was shown after the lease");
            assert!(view.await.is_err(), "a view was shown after the lease");
            // No other node has taken the shards, so this one serves them again.
            assert_eq!(client.query(balance("ada")).await.unwrap(), 5);
            // The state of a key was read, and its answer waits for a commit. The commit itself is reported: it is in the store.
            commits.hold();
            let reply = poll_once(client.send(deposit("ada", 0)));
            let key = poll_once(client.query(balance("ada")).no_retry());
            turn_over().await;
            assert_eq!(commits.waiting(), 1, "the turn is taken, and not committed");
            commits.resume();
            tokio::time::advance(lease).await;
            assert!(key.await.is_err(), "an answer that waited for a commit was shown after the lease");
            assert_eq!(reply.await.unwrap(), 5);
            assert_eq!(client.query(balance("ada")).await.unwrap(), 5);
            while client.query(DepositsSeen {}).no_retry().await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[whizbang::test]
async fn node_that_lost_its_shards_answers_nothing() {
    let store = MemoryStore::new();
    let old = start(store.clone()).await;
    old.client().send(deposit("ada", 1)).await.unwrap();
    let young = start(store).await;
    // It learns of the loss at its next commit.
    old.client().send(deposit("ada", 2)).no_retry().await.unwrap_err();
    old.client().query(balance("ada")).no_retry().await.unwrap_err();
    young.client().send(deposit("ada", 4)).await.unwrap();
    assert_eq!(young.client().query(balance("ada")).await.unwrap(), 5);
}
