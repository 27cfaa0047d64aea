//! Real nodes beside a hostile client: callers get the same results as without it, and no node's memory grows.

use std::time::Duration;

use futures_util::future::{join, join_all};
use whizbang::bridge::Bridge;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::Name;
use whizbang::prelude::*;
use whizbang::testing::bridge::hostile::{Forgery, Hostile, Target};
use whizbang::testing::bridge::run;
use whizbang_tests::checker::ShardLog;
use whizbang_tests::nats::{NatsServer, UntrustedClient};
use whizbang_tests::resident_mib;

use crate::bank::{Account, Bank, Transfer, Transfers, deposit, outcome, transfer};
use crate::event_recorder::EventRecorder;
use crate::services::bridge;
use crate::{BOTH, until};

/// The number of messages of the hostile client; one sixteenth of them exceeds half a megabyte each.
const FORGERIES: usize = 1500;
/// The number of accounts in a round, enough for each shard of the bank to have some.
const ACCOUNTS: usize = 100;
/// The maximum growth in MiB of this process with three nodes.
const GROWTH: u64 = 64;

/// The results that callers get in a round.
#[derive(Debug, PartialEq)]
struct Results {
    replies: Vec<Vec<u64>>,
    outcomes: Vec<String>,
    balances: Vec<u64>,
}

/// Three services, each on its own node.
struct Trio {
    money: MemoryStore,
    accounts: Node,
    transfers: Node,
    recorder: Node,
}

impl Trio {
    async fn start<B: Bridge>(bridge: impl AsyncFn() -> B) -> Self {
        let money = MemoryStore::new();
        let accounts = Node::builder("accounts", money.clone()).aggregate::<Account>().bridge(bridge().await).start();
        let accounts = accounts.await.expect("starts");
        let transfers =
            Node::builder("transfers", MemoryStore::new()).saga::<Transfer>().bridge(bridge().await).start();
        let transfers = transfers.await.expect("starts");
        let recorder =
            Node::builder("recorder", MemoryStore::new()).projection::<EventRecorder>().bridge(bridge().await).start();
        let recorder = recorder.await.expect("starts");
        Self { money, accounts, transfers, recorder }
    }

    /// Deposits and transfers, each from the other side of the bridge.
    async fn round(&self, round: &str) -> Results {
        let client = self.transfers.client();
        let account = |number: usize| format!("{round}-{}", number % ACCOUNTS);
        let replies = join_all((0..ACCOUNTS).map(async |number| {
            let mut replies = Vec::new();
            for cents in [100, 20, 3] {
                replies.push(client.send(deposit(&account(number), cents)).await.expect("is handled"));
            }
            replies
        }));
        let replies = replies.await;
        let outcomes = join_all((0..20).map(async |number| {
            let name = format!("{round}-t{number}");
            let begun = client.send(transfer(&name, &account(number), &account(number + 1), 7)).await;
            begun.expect("begins");
            let is = async || client.send(outcome(&name)).await.expect("gets a reply");
            until("a transfer", async || is().await != "open").await;
            is().await
        }));
        let outcomes = outcomes.await;
        let balance = async |number| client.send(deposit(&account(number), 0)).await.expect("is handled");
        let balances = join_all((0..ACCOUNTS).map(balance)).await;
        Results { replies, outcomes, balances }
    }

    /// Compares a round without a hostile client with one beside it. The client is seeded with `seed` and publishes with `write`.
    async fn withstands(self, seed: u64, write: impl AsyncFn(Forgery)) {
        let quiet = self.round("quiet").await;
        for node in [&self.transfers, &self.accounts, &self.recorder] {
            assert!(
                tokio::time::timeout(Duration::from_secs(60), node.wait_idle()).await.is_ok(),
                "{node:?} is not idle"
            );
        }
        let name = |text: &str| Name::new(text).expect("a name");
        let target = |domain: &str, shards, [command, event, actor]: [&str; 3], has_begun| Target {
            domain: name(domain),
            shards,
            command: name(command),
            event: name(event),
            actor: name(actor),
            has_begun,
        };
        let bank = target("bank", Bank::SHARDS, ["Deposit", "Deposited", "Account"], true);
        let moves = target("transfers", Transfers::SHARDS, ["Begin", "TransferStarted", "Transfer"], false);
        let mut hostile = Hostile::new(seed, vec![bank, moves]);
        let before = resident_mib();
        let attack = async {
            let mut most = 0;
            for _ in 0..FORGERIES {
                write(hostile.forge().expect("a forgery")).await;
                most = most.max(resident_mib());
            }
            most
        };
        let (most, attacked) = join(attack, self.round("quiet-not")).await;
        assert_eq!(attacked, quiet);
        let grown = most.max(resident_mib()).saturating_sub(before);
        println!("{before} MiB before, {grown} MiB more during {FORGERIES} forgeries");
        assert!(grown < GROWTH, "{grown} MiB more than {before} MiB");
        assert!(self.recorder.metrics().events_dropped > 0, "no known position was contradicted");
        for node in [&self.transfers, &self.accounts, &self.recorder] {
            until("a node that is ready", async || node.health().ready).await;
        }
        for node in [self.transfers, self.accounts, self.recorder] {
            node.stop().await.expect("stops");
        }
        let logs = ShardLog::read_domain::<Bank>(&self.money).await.expect("the store can be read");
        assert!(logs.iter().all(|log| log.dead_letters.is_empty()));
    }
}

#[test]
fn hostile_client_on_nats_affects_no_result_and_no_memory() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let trio = Trio::start(async || bridge(&server.url()).await).await;
            let stranger = UntrustedClient::connect(&server.url()).await;
            trio.withstands(3, async |forgery| {
                stranger.write(forgery).await;
                stranger.flush().await;
            })
            .await;
        });
    }
}

#[test]
fn hostile_client_in_a_process_affects_no_result_and_no_memory() {
    run(async {
        let hub = LoopbackHub::new();
        let trio = Trio::start(async || hub.bridge()).await;
        trio.withstands(4, async |forgery| hub.forge(&forgery.address, forgery.packet).await).await;
    });
}
