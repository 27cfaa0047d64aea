//! A copy of the folder of a node that runs: its claim alone admits it, because it contains the running start.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use whizbang::bridge::BridgeError;
use whizbang::message::ReplacedStore;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang::{NodeEnd, StartError};
use whizbang_tests::nats::NatsServer;
use whizbang_tests::{Direction, StallingProxy, wait_for};

use crate::bank::{Account, deposit};
use crate::event_recorder::{self, EventRecorder};
use crate::older_copy::copy;
use crate::{BOTH, services, until};

/// A node on a folder, a copy of the folder that was made while it ran, a subscriber and a caller.
struct Copied {
    node: Node,
    copy: PathBuf,
    recorder: Node,
    teller: Client,
    _folders: TempDir,
}

async fn start(server: &NatsServer, folder: &Path, replaces: ReplacedStore) -> Result<Node, StartError> {
    start_at(&server.url(), folder, replaces).await
}

async fn start_at(url: &str, folder: &Path, replaces: ReplacedStore) -> Result<Node, StartError> {
    let store = services::open(folder).await;
    let node = Node::builder("bank", store).aggregate::<Account>().replaces_store(replaces);
    node.bridge(services::bridge(url).await).start().await
}

impl Copied {
    /// The log of the copy ends five deposits before that of the node.
    async fn new(server: &NatsServer) -> Self {
        let folders = tempfile::tempdir().expect("a folder");
        let (original, copied) = (folders.path().join("original"), folders.path().join("copy"));
        let node = start(server, &original, ReplacedStore::None).await.expect("starts");
        let recorder = Node::builder("recorder", MemoryStore::new()).projection::<EventRecorder>();
        let recorder = recorder.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
        let teller = Client::connect("teller", services::bridge(&server.url()).await).await.expect("attaches");
        for cents in 1..=5 {
            assert_eq!(teller.send(deposit("ada", 1)).await.expect("a reply"), cents);
        }
        copy(&original, &copied);
        for cents in 6..=10 {
            assert_eq!(teller.send(deposit("ada", 1)).await.expect("a reply"), cents);
        }
        Self { node, copy: copied, recorder, teller, _folders: folders }
    }

    /// Checks that the subscriber has applied each of the deposits once, and agrees with the owner.
    async fn assert_applied(&self, count: usize) {
        until("the events", async || event_recorder::read(&self.recorder.client()).await.len() >= count).await;
        let applied = event_recorder::read(&self.recorder.client()).await;
        let positions: Vec<_> = applied.iter().map(|event| event.position).collect();
        assert_eq!(positions, (1..=count as u64).collect::<Vec<_>>());
        assert!(self.recorder.health().ready, "{:?}", self.recorder.health());
    }
}

#[test]
fn copy_of_a_running_node_is_refused() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let copied = Copied::new(&server).await;
            for _ in 0..2 {
                match start(&server, &copied.copy, ReplacedStore::None).await.map(drop) {
                    Err(StartError::Bridge(BridgeError::Claimed(claim))) => {
                        assert!(claim.to_string().contains("runs and renews the claim"), "{claim}");
                    }
                    other => panic!("{other:?}"),
                }
            }
            for cents in 11..=20 {
                assert_eq!(copied.teller.send(deposit("ada", 1)).await.expect("a reply"), cents);
            }
            assert_eq!(copied.node.ended(), None);
            assert!(copied.node.health().ready, "{:?}", copied.node.health());
            copied.assert_applied(20).await;
            copied.node.stop().await.expect("stops");
        });
    }
}

/// The node has crashed: nothing renews its claim, and the next start does not wait for the time of a renewal.
#[test]
fn node_that_crashed_starts_again_at_once() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let store = MemoryStore::new();
            let bank = async || {
                let node = Node::builder("bank", store.clone()).aggregate::<Account>();
                node.bridge(services::bridge(&server.url()).await).start().await.expect("starts")
            };
            let mut node = bank().await;
            let begun = tokio::time::Instant::now();
            for _ in 0..3 {
                drop(node);
                node = bank().await;
            }
            let each = begun.elapsed() / 3;
            println!("{release:?}: {each:?} for each start");
            assert!(each < Duration::from_secs(3), "{each:?}: a renewal takes five seconds");
            node.stop().await.expect("stops");
        });
    }
}

/// An operator starts the copy nevertheless. The original ends, one of the two decides at any time, and subscribers do not accept two
/// versions of one position.
#[test]
fn copy_that_replaces_a_running_node_ends_it() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let copied = Copied::new(&server).await;
            copied.assert_applied(10).await;
            let copy = start(&server, &copied.copy, ReplacedStore::Any).await.expect("starts");
            let end = wait_for("the end of the original", async || copied.node.ended()).await;
            assert!(matches!(end, NodeEnd::TakenOver { .. }), "{end:?}");
            assert!(copied.node.client().send(deposit("ada", 1)).await.is_err(), "it decides nothing more");
            // The copy has five deposits. What it decides again differs from what the subscriber has applied.
            let balance = copied.teller.send(deposit("ada", 1)).await.expect("a reply of the copy");
            assert_eq!(balance, 6);
            until("the report of the subscriber", async || !copied.recorder.health().ready).await;
            let applied = event_recorder::read(&copied.recorder.client()).await;
            assert_eq!(applied.len(), 10, "nothing was applied twice");
            copy.stop().await.expect("stops");
        });
    }
}

/// The server takes the connection for open, and nothing passes it: the node cannot renew its claim. Both nodes decide, and only the
/// decisions of the copy are accepted.
#[test]
fn node_that_was_cut_off_ends_after_its_copy_took_over() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let proxy = StallingProxy::start(server.port());
            let folders = tempfile::tempdir().expect("a folder");
            let (original, copied) = (folders.path().join("original"), folders.path().join("copy"));
            let url = format!("nats://127.0.0.1:{}", proxy.port());
            let node = start_at(&url, &original, ReplacedStore::None).await.expect("starts");
            let recorder = Node::builder("recorder", MemoryStore::new()).projection::<EventRecorder>();
            let recorder = recorder.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            let applied = async |count| {
                until("the events", async || event_recorder::read(&recorder.client()).await.len() == count).await;
            };
            for _ in 0..10 {
                node.client().send(deposit("ada", 1)).await.expect("is handled");
            }
            applied(10).await;
            copy(&original, &copied);
            proxy.stall(Direction::Requests);
            let begun = tokio::time::Instant::now();
            let new = start(&server, &copied, ReplacedStore::None).await.expect("nothing renews the claim");
            println!("{release:?}: the copy starts after {:?}", begun.elapsed());
            // Only callers in its process reach the old node.
            assert_eq!(node.client().send(deposit("ada", 100)).await.expect("is handled"), 110);
            assert_eq!(new.client().send(deposit("ada", 1)).await.expect("is handled"), 11);
            applied(11).await;
            proxy.resume();
            let end = wait_for("the end of the original", async || node.ended()).await;
            assert!(matches!(end, NodeEnd::TakenOver { .. }), "{end:?}");
            assert_eq!(new.client().send(deposit("ada", 1)).await.expect("is handled"), 12);
            applied(12).await;
            until("a subscriber that is ready", async || recorder.health().ready).await;
            assert_eq!(new.ended(), None);
            new.stop().await.expect("stops");
            recorder.stop().await.expect("stops");
        });
    }
}
