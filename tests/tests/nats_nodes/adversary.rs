//! Real nodes beside a hostile client: callers get the same results as without it, and no node's memory grows.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
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
use crate::observed_bridge::Observer;
use crate::services::bridge;
use crate::{BOTH, until};

/// The minimum number of messages of the hostile client; one of about 30 exceeds half a megabyte.
const FORGERIES: usize = 20_000;
/// The hostile client replaces a claim after this number of messages.
const CLAIM_INTERVAL: usize = 50;
/// The hostile client waits for the server after this number of messages: its own queue is in the measured process, too.
const FLUSH_INTERVAL: usize = 20;
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
    observer: Observer,
    money: MemoryStore,
    accounts: Node,
    transfers: Node,
    recorder: Node,
}

impl Trio {
    async fn start<B: Bridge>(bridge: impl AsyncFn() -> B) -> Self {
        let (observer, money) = (Observer::new(), MemoryStore::new());
        let bridge = async || observer.observe(bridge().await);
        let accounts = Node::builder("accounts", money.clone()).aggregate::<Account>().bridge(bridge().await).start();
        let accounts = accounts.await.expect("starts");
        let transfers =
            Node::builder("transfers", MemoryStore::new()).saga::<Transfer>().bridge(bridge().await).start();
        let transfers = transfers.await.expect("starts");
        let recorder =
            Node::builder("recorder", MemoryStore::new()).projection::<EventRecorder>().bridge(bridge().await).start();
        let recorder = recorder.await.expect("starts");
        Self { observer, money, accounts, transfers, recorder }
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

    /// Compares a round without a hostile client with one beside it. The client is seeded with `seed`, publishes with `write` and
    /// replaces claims with `claim`. It has observed the first round, and is active until the second one is over.
    async fn withstands(self, seed: u64, write: impl AsyncFn(Forgery), claim: impl AsyncFn(Name, Bytes)) {
        let quiet = self.round("quiet").await;
        for node in [&self.transfers, &self.accounts, &self.recorder] {
            assert!(
                tokio::time::timeout(Duration::from_secs(60), node.wait_idle()).await.is_ok(),
                "{node:?} is not idle"
            );
        }
        let name = |text: &str| Name::new(text).expect("a name");
        let target = |domain: &str, shards, [command, event, actor]: [&str; 3]| Target {
            domain: name(domain),
            shards,
            command: name(command),
            event: name(event),
            actor: name(actor),
            query: (name("diaries"), name("Read")),
        };
        let bank = target("bank", Bank::SHARDS, ["Deposit", "Deposited", "Account"]);
        let moves = target("transfers", Transfers::SHARDS, ["Begin", "TransferStarted", "Transfer"]);
        let mut hostile = Hostile::new(seed, vec![bank, moves]);
        for (address, packet) in self.observer.finish() {
            hostile.observe(address, packet);
        }
        let before = resident_mib();
        let (is_over, written) = (Cell::new(false), Cell::new(0));
        let attack = async {
            let (mut most, mut kinds) = (0, BTreeSet::new());
            while written.get() < FORGERIES || !is_over.get() {
                let forgery = hostile.forge().expect("a forgery");
                kinds.insert(forgery.kind);
                write(forgery).await;
                written.set(written.get() + 1);
                if written.get() % CLAIM_INTERVAL == 0 {
                    let (domain, content) = hostile.forge_claim().expect("a claim");
                    claim(domain, content).await;
                }
                most = most.max(resident_mib());
                if written.get() < FORGERIES {
                    // The hub of a process never waits, and the round must have its turns.
                    tokio::task::yield_now().await;
                } else {
                    // The attack lasts as long as the round, at a lower rate.
                    whizbang_tests::poll_interval().await;
                }
            }
            (most, kinds)
        };
        let round = async {
            let results = self.round("quiet-not").await;
            is_over.set(true);
            (results, written.get())
        };
        let ((most, kinds), (attacked, during)) = join(attack, round).await;
        assert_eq!(attacked, quiet);
        assert_eq!(kinds, Hostile::kinds().collect());
        let grown = most.max(resident_mib()).saturating_sub(before);
        println!(
            "{before} MiB before, {grown} MiB more, {during} forgeries during the round, {} in all",
            written.get()
        );
        assert!(grown < GROWTH, "{grown} MiB more than {before} MiB");
        assert!(during > 0, "the attack began after the round");
        assert!(self.recorder.metrics().events_dropped > 0, "no known position was contradicted");
        assert!(self.accounts.metrics().commands_dropped > 0, "no known sequence was contradicted");
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
            let written = Cell::new(0_usize);
            let write = async |forgery| {
                stranger.write(forgery).await;
                written.set(written.get() + 1);
                if written.get().is_multiple_of(FLUSH_INTERVAL) {
                    stranger.flush().await;
                }
            };
            trio.withstands(3, write, async |domain, content| stranger.write_claim(&domain, content).await).await;
        });
    }
}

#[test]
fn hostile_client_in_a_process_affects_no_result_and_no_memory() {
    run(async {
        let hub = LoopbackHub::new();
        let trio = Trio::start(async || hub.bridge()).await;
        let write = async |forgery: Forgery| hub.forge(&forgery.address, forgery.packet).await;
        // The clients of a hub cannot write claims.
        trio.withstands(4, write, async |_, _| {}).await;
    });
}
