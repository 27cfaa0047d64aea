//! Views: every event once and in order, saved with their checkpoint, queried locally and remotely.

mod bank;
mod eventually;

use std::collections::BTreeMap;
use std::time::Duration;

use bank::*;
use eventually::eventually;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;
use whizbang::store::Store as _;
use whizbang::{SendError, StartError};

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Bank, reply = (u64, u64))]
struct BalanceOf {
    account: String,
}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Bank, reply = BTreeMap<String, u64>)]
struct Summary {}

#[derive(Query, Clone, Debug, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct NobodyKnows {}

/// Balances, and the number of events of each.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited, Withdrawn), answers(BalanceOf, Summary))]
struct Balances {
    accounts: BTreeMap<String, (u64, u64)>,
    positions: BTreeMap<u16, u64>,
    out_of_order: u64,
}

impl Balances {
    fn note(&mut self, context: &EventContext) {
        let last = self.positions.entry(context.shard).or_default();
        if context.position <= *last {
            self.out_of_order += 1;
        }
        *last = context.position;
    }
}

impl Project<Deposited> for Balances {
    fn project(&mut self, deposited: &Deposited, context: &EventContext) {
        self.note(context);
        let account = self.accounts.entry(context.key.clone()).or_default();
        account.0 += deposited.cents;
        account.1 += 1;
    }
}

impl Project<Withdrawn> for Balances {
    fn project(&mut self, withdrawn: &Withdrawn, context: &EventContext) {
        self.note(context);
        let account = self.accounts.entry(context.key.clone()).or_default();
        account.0 -= withdrawn.cents;
        account.1 += 1;
    }
}

impl Answer<BalanceOf> for Balances {
    fn answer(&self, query: BalanceOf) -> (u64, u64) {
        assert_ne!(query.account, "explode", "boom");
        self.accounts.get(&query.account).copied().unwrap_or_default()
    }
}

impl Answer<Summary> for Balances {
    fn answer(&self, _query: Summary) -> BTreeMap<String, u64> {
        let sum = |of: fn(&(u64, u64)) -> u64| self.accounts.values().map(of).sum();
        let numbers = [("cents", sum(|a| a.0)), ("events", sum(|a| a.1)), ("out of order", self.out_of_order)];
        numbers.map(|(name, number)| (name.to_owned(), number)).into()
    }
}

fn balance(account: &str) -> BalanceOf {
    BalanceOf { account: account.into() }
}

async fn bank(store: &MemoryStore) -> Node {
    Node::builder("bank", store.clone())
        .threads(0)
        .aggregate::<Account>()
        .projection::<Balances>()
        .start()
        .await
        .unwrap()
}

async fn checkpoint(store: &MemoryStore, projection: &'static str) -> u64 {
    let name = whizbang::message::Name::from_static(projection).unwrap();
    let view = store.view(&name).await.unwrap();
    view.map_or(0, |view| view.checkpoint.iter().map(|(_, position)| position).sum())
}

#[whizbang::test]
async fn view_follows_its_events_and_answers_queries() {
    let node = bank(&MemoryStore::new()).await;
    let client = node.client();
    client.send(deposit("ada", 500)).await.unwrap();
    client.send(withdraw("ada", 20, "")).await.unwrap();
    node.wait_idle().await;
    assert_eq!(client.query(balance("ada")).await.unwrap(), (480, 2));
    assert_eq!(client.query(balance("bob")).await.unwrap(), (0, 0));
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn view_answers_queries_from_all_threads() {
    let node = Node::builder("bank", MemoryStore::new())
        .aggregate::<Account>()
        .projection::<Balances>()
        .threads(3)
        .start()
        .await
        .unwrap();
    let client = node.client();
    for n in 0..64u64 {
        client.send(deposit(&format!("a{n}"), n)).await.unwrap();
    }
    node.wait_idle().await;
    let (sender, answer) = tokio::sync::oneshot::channel();
    let asking = node.client();
    std::thread::spawn(move || {
        let answer = whizbang::derive::block_on(async { asking.query(Summary {}).await.unwrap() });
        sender.send(answer).unwrap();
    });
    let answer = answer.await.unwrap();
    assert_eq!((answer["cents"], answer["events"], answer["out of order"]), (63 * 32, 64, 0));
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn late_projection_receives_the_whole_history() {
    let store = MemoryStore::new();
    let node = Node::builder("bank", store.clone()).threads(0).aggregate::<Account>().start().await.unwrap();
    for n in 0..3000u64 {
        node.client().send(deposit(&format!("a{}", n % 7), 1)).await.unwrap();
    }
    node.stop().await.unwrap();
    let node = bank(&store).await;
    node.wait_idle().await;
    let answer = node.client().query(Summary {}).await.unwrap();
    assert_eq!((answer["cents"], answer["events"], answer["out of order"]), (3000, 3000, 0));
}

#[whizbang::test]
async fn view_saved_at_stop_resumes_at_its_position() {
    let store = MemoryStore::new();
    let node = bank(&store).await;
    for _ in 0..10 {
        node.client().send(deposit("ada", 1)).await.unwrap();
    }
    node.wait_idle().await;
    node.stop().await.unwrap();
    assert_eq!(checkpoint(&store, "balances").await, 10);
    let node = bank(&store).await;
    node.client().send(deposit("ada", 1)).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().query(balance("ada")).await.unwrap(), (11, 11));
}

#[whizbang::test]
async fn node_killed_at_any_moment_projects_every_event_once() {
    let store = MemoryStore::new();
    for round in 0..8u64 {
        let node = bank(&store).await;
        for n in 0..300 + round {
            node.client().send(deposit(&format!("a{}", n % 5), 1)).await.unwrap();
        }
        drop(node);
    }
    let node = bank(&store).await;
    node.wait_idle().await;
    let answer = node.client().query(Summary {}).await.unwrap();
    assert_eq!((answer["cents"], answer["events"], answer["out of order"]), (2428, 2428, 0));
    assert!(checkpoint(&store, "balances").await > 0, "views are saved while the node works");
}

#[tokio::test(start_paused = true)]
async fn change_is_saved_after_some_seconds() {
    let test = async {
        let store = MemoryStore::new();
        let node = bank(&store).await;
        node.client().send(deposit("ada", 1)).await.unwrap();
        node.wait_idle().await;
        assert_eq!(checkpoint(&store, "balances").await, 0);
        // The clock is paused: this takes no time.
        tokio::time::advance(Duration::from_secs(6)).await;
        eventually(async || checkpoint(&store, "balances").await == 1).await;
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[whizbang::test]
async fn view_larger_than_any_message_is_saved() {
    let store = MemoryStore::new();
    let node = bank(&store).await;
    let client = node.client();
    for n in 0..4000u64 {
        client.post(deposit(&format!("{n:0>200}"), 1)).await.unwrap();
    }
    node.stop().await.unwrap();
    assert_eq!(checkpoint(&store, "balances").await, 4000);
    let node = bank(&store).await;
    assert_eq!(node.client().query(Summary {}).await.unwrap()["events"], 4000);
}

mod renewed {
    use super::*;

    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Deposited), answers(BalanceOf), name = "balances", schema = 2)]
    pub(super) struct Counts {
        counts: BTreeMap<String, u64>,
    }

    impl Project<Deposited> for Counts {
        fn project(&mut self, _deposited: &Deposited, context: &EventContext) {
            *self.counts.entry(context.key.clone()).or_default() += 1;
        }
    }

    impl Answer<BalanceOf> for Counts {
        fn answer(&self, query: BalanceOf) -> (u64, u64) {
            (0, self.counts.get(&query.account).copied().unwrap_or_default())
        }
    }
}

#[whizbang::test]
async fn another_schema_rebuilds_the_view_from_the_first_event() {
    let store = MemoryStore::new();
    let node = bank(&store).await;
    for cents in [5, 6, 7] {
        node.client().send(deposit("ada", cents)).await.unwrap();
    }
    node.stop().await.unwrap();
    let node = Node::builder("bank", store)
        .threads(0)
        .aggregate::<Account>()
        .projection::<renewed::Counts>()
        .start()
        .await
        .unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().query(balance("ada")).await.unwrap(), (0, 3));
}

#[whizbang::test]
async fn unanswered_and_panicking_queries_are_distinct_errors() {
    let node = bank(&MemoryStore::new()).await;
    let error = node.client().query(NobodyKnows {}).await.unwrap_err();
    assert!(matches!(&error, SendError::Unhandled { name, .. } if name == "NobodyKnows"), "{error}");
    let error = node.client().query(balance("explode")).await.unwrap_err();
    assert!(matches!(&error, SendError::Unanswered { reason, .. } if reason.contains("boom")), "{error}");
    assert!(!error.may_have_happened());
    assert_eq!(node.client().query(balance("ada")).await.unwrap(), (0, 0));
}

#[whizbang::test]
async fn another_nodes_events_are_projected_and_its_queries_answered() {
    let hub = LoopbackHub::new();
    let store = MemoryStore::new();
    let bank = Node::builder("bank", store.clone())
        .threads(0)
        .aggregate::<Account>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    for n in 0..700u64 {
        bank.client().send(deposit(&format!("a{}", n % 5), 1)).await.unwrap();
    }
    let reports = Node::builder("reports", MemoryStore::new())
        .threads(0)
        .projection::<Balances>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    reports.wait_idle().await;
    assert_eq!(reports.client().query(Summary {}).await.unwrap()["events"], 700);
    // Live, and queried from the other service and from a process that hosts nothing.
    bank.client().send(deposit("ada", 5)).await.unwrap();
    reports.wait_idle().await;
    assert_eq!(bank.client().query(balance("ada")).await.unwrap(), (5, 1));
    let outside = Client::connect("cashier", hub.bridge()).await.unwrap();
    assert_eq!(outside.query(balance("ada")).await.unwrap(), (5, 1));
    assert_eq!(outside.send(deposit("ada", 1)).await.unwrap(), 6);
    outside.post(deposit("ada", 1)).await.unwrap();
    eventually(async || {
        bank.wait_idle().await;
        reports.wait_idle().await;
        outside.query(balance("ada")).await.unwrap() == (7, 3)
    })
    .await;
    let error = outside.query(balance("explode")).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(&error, SendError::Unanswered { .. }), "{error}");
    assert!(text.contains("see the owner's log for ") && !text.contains("boom"), "{text}");
    let error = outside.query(NobodyKnows {}).no_retry().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("NobodyKnows"), "{error}");
    outside.disconnect().await;
    reports.stop().await.unwrap();
    bank.stop().await.unwrap();
}

#[whizbang::test]
async fn manifest_lists_projections_and_conflicts_are_refused() {
    let node = bank(&MemoryStore::new()).await;
    let text = node.manifest().to_string();
    assert!(text.contains("projection balances") && text.contains("answers: bank.BalanceOf v1"), "{text}");
    let twice = Node::builder("bank", MemoryStore::new())
        .threads(0)
        .aggregate::<Account>()
        .projection::<Balances>()
        .projection::<renewed::Counts>()
        .start()
        .await;
    assert!(matches!(twice, Err(StartError::DoubleProjection { .. })), "{twice:?}");

    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Deposited), answers(BalanceOf))]
    struct Rival {}
    impl Project<Deposited> for Rival {
        fn project(&mut self, _deposited: &Deposited, _context: &EventContext) {}
    }
    impl Answer<BalanceOf> for Rival {
        fn answer(&self, _query: BalanceOf) -> (u64, u64) {
            (0, 0)
        }
    }
    let twice = Node::builder("bank", MemoryStore::new())
        .threads(0)
        .aggregate::<Account>()
        .projection::<Balances>()
        .projection::<Rival>()
        .start()
        .await;
    assert!(matches!(&twice, Err(StartError::DoubleAnswer { query, .. }) if query == "BalanceOf"), "{twice:?}");
}
