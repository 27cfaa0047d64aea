//! What waits for a slow worker, or behind a gap, leaves everything else that comes by its stream its room.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;
use tokio::sync::Semaphore;
use whizbang::bridge::Bridge;
use whizbang::bridge::nats::NatsBridge;
use whizbang::prelude::*;
use whizbang::testing::bridge::cases::sample::{command, shard};
use whizbang::testing::bridge::node::{Manners, TestNode, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, Deposited, deposit};
use crate::diary::{self, Diary};
use crate::{BOTH, town, until};

#[derive(Domain)]
#[domain(name = "post")]
struct Post;

/// Prints a letter for each deposit, once it is let.
#[derive(Worker)]
#[worker(domain = Post, on(Deposited))]
struct Printer(Arc<Press>);

struct Press {
    paper: Semaphore,
    begun: AtomicUsize,
    printed: AtomicUsize,
}

impl On<Deposited> for Printer {
    async fn on(&self, _: Deposited, _: Job) -> Result<(), WorkError> {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        // The semaphore is never closed.
        if let Ok(sheet) = self.0.paper.acquire().await {
            sheet.forget();
            self.0.printed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn events_for_a_slow_worker_delay_no_other_subscriber() {
    const EVENTS: usize = 6_000;
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bank = Node::builder("accounts", MemoryStore::new()).host::<Account>();
            let bank = bank.bridge(town::bridge(&server.url()).await).start().await.expect("starts");
            let press = Press { paper: Semaphore::new(0), begun: AtomicUsize::new(0), printed: AtomicUsize::new(0) };
            let press = Arc::new(press);
            let office = Node::builder("office", MemoryStore::new()).worker(Printer(Arc::clone(&press)));
            let office = office.projection::<Diary>().bridge(town::bridge(&server.url()).await);
            let office = office.start().await.expect("starts");
            let client = bank.client();
            for round in 0..EVENTS / 100 {
                let deposits = (0..100).map(|n| client.send(deposit(&format!("a{n}"), 1 + round as u64)).into_future());
                assert!(join_all(deposits).await.iter().all(Result::is_ok));
            }
            // No sheet is printed, and the diary has all of them.
            until("all events in the diary", async || diary::read(&office.client()).await.len() == EVENTS).await;
            assert_eq!(press.printed.load(Ordering::Relaxed), 0);
            assert!((1..EVENTS).contains(&press.begun.load(Ordering::Relaxed)), "the others wait for a slot");
            press.paper.add_permits(EVENTS);
            until("all sheets", async || press.printed.load(Ordering::Relaxed) == EVENTS).await;
            office.stop().await.expect("stops");
            bank.stop().await.expect("stops");
        });
    }
}

#[test]
fn messages_behind_a_gap_leave_commands_their_room() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bank = Node::builder("accounts", MemoryStore::new()).host::<Account>();
            let bank = bank.bridge(town::bridge(&server.url()).await).start().await.expect("starts");
            // The first of what this shop has sent was lost, and it does not answer what that was.
            let shop: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
            let shop =
                TestNode::attach(shop, service("shop").owning("shop"), Manners::default()).await.expect("attaches");
            let from = shard("shop", 0);
            for to in 0..5 {
                let sending = (2..=1_200).map(|at| shop.bridge.send(command(&from, &shard("bank", to), at)));
                assert!(join_all(sending).await.iter().all(Result::is_ok));
            }
            let teller = Client::connect("teller", town::bridge(&server.url()).await).await.expect("connects");
            teller.post(deposit("ada", 5)).await.expect("is kept");
            until("the deposit", async || teller.send(deposit("ada", 0)).await.is_ok_and(|cents| cents == 5)).await;
            assert!(bank.metrics().gaps >= 5);
            teller.disconnect().await;
            bank.stop().await.expect("stops");
            shop.stop().await;
        });
    }
}
