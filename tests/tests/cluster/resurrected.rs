//! Owners that are cut off from the database with a queue of commands, lose their shards, and come back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use whizbang::bridge::nats::NatsBridge;
use whizbang::message::shard_of;
use whizbang::prelude::*;
use whizbang::{NodeConfig, PostgresStore};
use whizbang_tests::checker::{Ledger, ShardLog, Stage, reply_bytes};
use whizbang_tests::nats::{NatsServer, Release};
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::{Direction, StallingProxy, brief_or_long, eventually};

use crate::bank::{Account, Bank, deposit};
use crate::nodes::LEASE;

/// The commands that an owner has accepted when it loses its shards.
const QUEUED: usize = 100;

/// The time limit of a step: several leases, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A node with its own way to the database.
struct Owner {
    node: Node,
    proxy: StallingProxy,
}

impl Owner {
    async fn start(postgres: &PostgresServer, nats: &NatsServer) -> Self {
        let proxy = StallingProxy::start(postgres.port());
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
        let store = PostgresStore::builder(&url).schema("bank").connect().await.expect("connects");
        let bridge = NatsBridge::builder(&nats.url()).connect().await.expect("connects");
        let config = NodeConfig { lease: LEASE, ..NodeConfig::default() };
        let node = Node::builder("bank", store).bridge(bridge).config(config).aggregate::<Account>();
        Self { node: node.start().await.expect("a node"), proxy }
    }

    /// Returns whether the node owns the shard of an account, as far as it knows.
    fn owns(&self, account: &str) -> bool {
        let cluster = self.node.cluster().expect("a shared store");
        let shard = shard_of(account, Bank::SHARDS);
        cluster.shards.iter().any(|one| one.shard == shard && one.owner == Some(cluster.member))
    }

    /// Waits until the node serves half of the shards. Blocks; the nodes have threads of their own.
    fn wait_for_its_share(&self) {
        let mut last = Shown(String::new());
        eventually("an equal share", LIMIT, || {
            let cluster = self.node.cluster().expect("a shared store");
            last.0 = format!("{cluster:?}\n{:?}\n{:?}", self.node.health(), self.node.metrics());
            let owned = cluster.shards.iter().filter(|shard| shard.owner == Some(cluster.member)).count();
            let is_even = owned == usize::from(Bank::SHARDS) / 2;
            (cluster.is_serving && is_even && self.node.health().ready).then_some(())
        });
    }
}

/// A text that is printed if the test fails while it exists.
struct Shown(String);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}

#[test]
fn resurrected_owners_commit_nothing_of_their_queues() {
    let (postgres, nats) = (PostgresServer::start(), NatsServer::start(Release::Pinned));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let mut balance = 0;
    runtime.block_on(async {
        let owners = [Owner::start(&postgres, &nats).await, Owner::start(&postgres, &nats).await];
        let bridge = NatsBridge::connect(&nats.url()).await.expect("connects");
        let client = Client::connect("caller", bridge).await.expect("connects");
        for round in 0..brief_or_long(4, 200) {
            for owner in &owners {
                owner.wait_for_its_share();
            }
            let owner = &owners[round % 2];
            let accounts: Vec<_> =
                (0..).map(|number| format!("account{number}")).filter(|one| owner.owns(one)).take(QUEUED).collect();
            let before = owner.node.metrics();
            owner.proxy.stall(Direction::Requests);
            // All of them reach the owner first, and are repeated until the next one replies.
            let sends = accounts.iter().map(|account| {
                let (client, ledger) = (client.clone(), Arc::clone(&ledger));
                async move {
                    let id = client.new_id();
                    ledger.lock().await.sends(id);
                    let reply = client.send(deposit(account, 1)).id(id).deadline(LIMIT).await.expect("a reply");
                    ledger.lock().await.replied(id, reply_bytes::<crate::bank::Deposit>(&Ok(reply)));
                }
            });
            join_all(sends).await;
            balance += u64::try_from(accounts.len()).expect("small");
            let queued = owner.node.metrics().turns - before.turns;
            assert!(
                queued > QUEUED as u64 / 2,
                "only {queued} turns of round {round} were with the owner that lost them"
            );
            owner.proxy.resume();
            owner.wait_for_its_share();
            let lost = owner.node.metrics().shards_lost - before.shards_lost;
            assert!(lost > 0, "the owner has lost its shards in round {round}");
        }
        client.disconnect().await;
        for Owner { node, .. } in owners {
            node.stop().await.expect("stops");
        }
    });
    runtime.block_on(async {
        let store =
            PostgresStore::builder(&postgres.url()).schema("bank").exclusive().connect().await.expect("connects");
        let mut ledger = std::mem::take(&mut *ledger.lock().await);
        let logs = ShardLog::read_domain::<Bank>(&store).await.expect("reads the log");
        logs.into_iter().for_each(|log| ledger.log(log));
        let verdict = ledger.check(Stage::Idle);
        println!("{balance} deposits\n{verdict}");
        verdict.assert_clean();
    });
}
