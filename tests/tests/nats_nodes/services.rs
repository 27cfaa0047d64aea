//! Three services on one server: accounts, transfers between them, and a record of all events.

use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder};
use whizbang::prelude::*;
use whizbang_tests::checker::{ShardLog, Stage, Verdict};
use whizbang_tests::nats::NatsServer;
use whizbang_tests::wait_for;

use crate::bank::{Account, Bank, Transfer, Transfers, deposit, outcome, transfer};
use crate::callers::Callers;
use crate::event_recorder::{self, EventRecorder};
use crate::until;

/// The time limit for all nodes to become idle once faults have stopped.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The services, their stores and their callers.
pub(crate) struct Services {
    url: String,
    replicas: u8,
    money: MemoryStore,
    moves: MemoryStore,
    pub(crate) accounts: Node,
    pub(crate) transfers: Node,
    pub(crate) recorder: Node,
    pub(crate) callers: Rc<Callers>,
}

/// The load of the callers.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) callers: usize,
    pub(crate) each: usize,
    /// Some commands are posted; a post that the broker loses is lost.
    pub(crate) posts: bool,
}

/// Connects a bridge whose server redelivers after a second.
pub(crate) async fn bridge(url: &str) -> NatsBridge {
    builder(url).connect().await.expect("connects")
}

pub(crate) fn builder(url: &str) -> NatsBuilder {
    NatsBridge::builder(url).ack_wait(Duration::from_secs(1))
}

/// Opens a store once the threads of an earlier node have closed it.
pub(crate) async fn open(folder: &Path) -> EmbeddedStore {
    wait_for("the folder", async || EmbeddedStore::open(folder).ok()).await
}

impl Services {
    pub(crate) async fn start(server: &NatsServer) -> Self {
        Self::start_at(server.url(), 1).await
    }

    /// Starts the services at the servers of a URL, with so many replicas of each stream.
    pub(crate) async fn start_at(url: String, replicas: u8) -> Self {
        let bridge = async |url: &str| builder(url).replicas(replicas).connect().await.expect("connects");
        let (money, moves) = (MemoryStore::new(), MemoryStore::new());
        let accounts = Node::builder("accounts", money.clone())
            .threads(0)
            .aggregate::<Account>()
            .bridge(bridge(&url).await)
            .start();
        let accounts = accounts.await.expect("starts");
        let transfers =
            Node::builder("transfers", moves.clone()).threads(0).saga::<Transfer>().bridge(bridge(&url).await).start();
        let transfers = transfers.await.expect("starts");
        let recorder = Node::builder("recorder", MemoryStore::new())
            .threads(0)
            .projection::<EventRecorder>()
            .bridge(bridge(&url).await)
            .start();
        let recorder = recorder.await.expect("starts");
        Self { url, replicas, money, moves, accounts, transfers, recorder, callers: Rc::default() }
    }

    /// Runs the load of all callers, while `other` runs.
    pub(crate) async fn call(&self, load: Load, other: impl Future<Output = ()>) {
        let mut clients = Vec::new();
        for number in 0..4 {
            let name = format!("caller-{number}");
            let bridge = builder(&self.url).replicas(self.replicas).connect().await.expect("connects");
            clients.push(Client::connect(&name, bridge).await.expect("connects"));
        }
        let calling = (0..load.callers).map(|caller| {
            let client = clients[caller % clients.len()].clone();
            async move {
                for number in 0..load.each {
                    self.send_one(&client, caller, number, load.posts).await;
                }
            }
        });
        tokio::join!(join_all(calling), other);
        for client in clients {
            client.disconnect().await;
        }
    }

    async fn send_one(&self, client: &Client, caller: usize, number: usize, posts: bool) {
        let mine = format!("account{caller}");
        match number % 10 {
            0 => {
                let (name, other) = (format!("t{caller}-{number}"), format!("account{}", (caller + 1) % 100));
                if self.callers.send_until_answered(client, transfer(&name, &mine, &other, 7)).await.is_some() {
                    self.callers.begun.borrow_mut().push(name);
                }
            }
            1..=3 if posts => self.callers.post(client, deposit(&mine, 1)).await,
            _ => drop(self.callers.send_until_answered(client, deposit(&mine, 5)).await),
        }
    }

    /// Waits until everything has completed, stops the services and compares their stores.
    pub(crate) async fn verdict(self) -> Verdict {
        let client = self.transfers.client();
        let begun = self.callers.begun.take();
        assert!(!begun.is_empty(), "no transfer has begun");
        for name in &begun {
            let ended =
                async || self.callers.send_until_answered(&client, outcome(name)).await.is_some_and(|is| is != "open");
            until(&format!("the end of transfer {name}"), ended).await;
        }
        for _ in 0..2 {
            for node in [&self.transfers, &self.accounts, &self.recorder] {
                assert!(
                    tokio::time::timeout(IDLE_TIMEOUT, node.wait_idle()).await.is_ok(),
                    "{node:?} does not become idle"
                );
            }
        }
        let applied = event_recorder::read(&self.recorder.client()).await;
        let gaps = self.accounts.metrics().gaps + self.transfers.metrics().gaps + self.recorder.metrics().gaps;
        println!("{} commands were sent again, {gaps} gaps were seen", self.callers.retries.get());
        for node in [self.transfers, self.accounts, self.recorder] {
            node.stop().await.expect("stops");
        }
        let mut ledger = self.callers.ledger.take();
        let mut logs = ShardLog::read_domain::<Bank>(&self.money).await.expect("the store can be read");
        logs.extend(ShardLog::read_domain::<Transfers>(&self.moves).await.expect("the store can be read"));
        logs.into_iter().for_each(|log| ledger.log(log));
        ledger.subscriber("the recorder", |domain, _| domain == "bank" || domain == "transfers", applied);
        ledger.check(Stage::Idle)
    }
}
