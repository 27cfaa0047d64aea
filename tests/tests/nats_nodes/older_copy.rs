//! A node on an older copy of its own store: the server has events of this store that the copy does not contain.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_nats::jetstream;
use whizbang::NodeEnd;
use whizbang::bridge::Bridge;
use whizbang::message::{ReplacedStore, shard_of};
use whizbang::prelude::*;
use whizbang::testing::bridge::cases::sample::{event, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;
use whizbang_tests::{until, wait_for};

use crate::bank::{Account, Bank, deposit};
use crate::event_recorder::{self, EventRecorder};
use crate::{BOTH, services};

async fn bank(server: &NatsServer, folder: &Path, replaces: ReplacedStore) -> Node {
    let store = EmbeddedStore::open(folder).expect("opens");
    let node = Node::builder("bank", store).aggregate::<Account>().replaces_store(replaces);
    node.bridge(services::bridge(&server.url()).await).start().await.expect("its claim continues")
}

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("creates");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

async fn deposits(node: &Node, account: &str, count: u64) {
    for _ in 0..count {
        node.client().send(deposit(account, 1)).await.expect("is handled");
    }
    node.wait_idle().await;
}

/// Waits until a node ends by itself, and returns the reason.
async fn end_of(node: &Node) -> NodeEnd {
    wait_for("the end of the node", async || node.ended()).await
}

/// Waits until a view contains this number of events.
async fn events_arrive(recorder: &Node, count: usize) {
    until("the events", async || event_recorder::read(&recorder.client()).await.len() == count).await;
}

/// Runs a case on a server of each release.
fn on_both(case: impl AsyncFn(NatsServer)) {
    for release in BOTH {
        run(async { case(NatsServer::start(release)).await });
    }
}

/// Returns an account of another shard than `account`.
fn elsewhere(account: &str) -> String {
    let shard = |key: &str| shard_of(key, Bank::SHARDS);
    let mut names = (0..).map(|number| format!("bob{number}"));
    names.find(|name| shard(name) != shard(account)).expect("two shards")
}

/// The copy is of the running start, so its claim continues. Subscribers have handled the events that it lacks.
#[test]
fn older_copy_ends_before_it_publishes_other_events() {
    on_both(async |server| {
        let folders = tempfile::tempdir().expect("a folder");
        let (newest, older) = (folders.path().join("newest"), folders.path().join("older"));
        let node = bank(&server, &newest, ReplacedStore::None).await;
        let recorder = Node::builder("recorder", MemoryStore::new()).projection::<EventRecorder>();
        let recorder = recorder.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
        deposits(&node, "ada", 5).await;
        copy(&newest, &older);
        deposits(&node, "ada", 5).await;
        events_arrive(&recorder, 10).await;
        drop(node);
        let node = bank(&server, &older, ReplacedStore::None).await;
        let end = end_of(&node).await;
        assert!(matches!(end, NodeEnd::OlderLog { published: 10, here: 5, .. }), "{end:?}");
        assert!(!node.health().live && node.health().reasons[0].contains("replaces_store"), "{:?}", node.health());
        assert_eq!(event_recorder::read(&recorder.client()).await.len(), 10, "nothing else was published");
        assert!(recorder.health().ready, "{:?}", recorder.health());
        drop(node);
        // On the newest store nothing has happened. The copy has taken over its claim.
        let node = bank(&server, &newest, ReplacedStore::Any).await;
        deposits(&node, "ada", 1).await;
        events_arrive(&recorder, 11).await;
        drop(node);
        // An operator may prefer the copy.
        let node = bank(&server, &older, ReplacedStore::Any).await;
        deposits(&node, "ada", 1).await;
        assert_eq!(node.ended(), None);
        node.stop().await.expect("stops");
        recorder.stop().await.expect("stops");
    });
}

/// The copy has no event at all of a shard that has some at the server.
#[test]
fn older_copy_without_events_of_a_shard_ends() {
    on_both(async |server| {
        let folders = tempfile::tempdir().expect("a folder");
        let (newest, older) = (folders.path().join("newest"), folders.path().join("older"));
        let node = bank(&server, &newest, ReplacedStore::None).await;
        deposits(&node, "ada", 1).await;
        copy(&newest, &older);
        deposits(&node, &elsewhere("ada"), 1).await;
        drop(node);
        let end = end_of(&bank(&server, &older, ReplacedStore::None).await).await;
        assert!(matches!(end, NodeEnd::OlderLog { published: 1, here: 0, .. }), "{end:?}");
    });
}

/// Without logins, a peer can name the store of the owner.
#[test]
fn forged_later_event_ends_the_next_start() {
    on_both(async |server| {
        let folder = tempfile::tempdir().expect("a folder");
        let node = bank(&server, folder.path(), ReplacedStore::None).await;
        deposits(&node, "ada", 1).await;
        node.stop().await.expect("stops");
        let stranger: Arc<dyn Bridge> = Arc::new(services::bridge(&server.url()).await);
        let card = service("stranger").subscribing(named("bank"), Bank::SHARDS, [named("Happened")]);
        let stranger = TestNode::attach(stranger, card, NodeBehavior::default()).await.expect("attaches");
        let store = stranger.bridge.owner(&named("bank")).await.expect("reads").expect("a claim");
        let mut forged = event(&shard("bank", shard_of("ada", Bank::SHARDS)), 99);
        forged.origin.as_mut().expect("an origin").store = Some(store);
        stranger.bridge.publish(forged).await.expect("publishes");
        stranger.stop().await;
        let node = bank(&server, folder.path(), ReplacedStore::None).await;
        let end = end_of(&node).await;
        assert!(matches!(end, NodeEnd::OlderLog { published: 99, .. }), "{end:?}");
        drop(node);
        let node = bank(&server, folder.path(), ReplacedStore::Any).await;
        deposits(&node, "ada", 1).await;
        assert_eq!(node.ended(), None);
        node.stop().await.expect("stops");
    });
}

/// A second start on the same store takes the claim over, as configured. The server then loses all claims.
#[test]
fn replaced_start_ends_although_the_claims_are_lost() {
    on_both(async |server| {
        let store = MemoryStore::new();
        let start = async |replaces| {
            let node = Node::builder("bank", store.clone()).aggregate::<Account>().replaces_store(replaces);
            node.bridge(services::bridge(&server.url()).await).start().await.expect("starts")
        };
        let first = start(ReplacedStore::None).await;
        let second = start(ReplacedStore::Any).await;
        let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
        operator.delete_stream("whizbang_claims").await.expect("deletes");
        let end = end_of(&first).await;
        assert!(matches!(end, NodeEnd::TakenOver { .. }), "{end:?}");
        until("the claim of the second node", async || {
            let Ok(stream) = operator.get_stream("whizbang_claims").await else { return false };
            stream.get_last_raw_message_by_subject("whizbang.claim.bank").await.is_ok()
        })
        .await;
        deposits(&second, "ada", 1).await;
        until("a node that is ready", async || second.health().ready).await;
        assert_eq!(second.ended(), None);
        second.stop().await.expect("stops");
    });
}
