//! Real runs under the eyes of the checker: a node that is killed and started again, callers that repeat themselves.

#[path = "../../framework/tests/bank/mod.rs"]
mod bank;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use bank::{Bank, Outcome, Transfers, deposit, eventually, outcome, transfer, withdraw};
use whizbang::client::Sending;
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::{IdSource, MessageId};
use whizbang::prelude::*;
use whizbang::{Command, SendError};
use whizbang_tests::checker::{Ledger, ShardLog, Stage, Verdict, reply_bytes};
use whizbang_tests::{Panics, brief_or_long};

/// A run: a store, what clients were told, and the seed's chances.
struct Run {
    store: MemoryStore,
    clients: Rc<Clients>,
    chance: IdSource,
    sent: u64,
}

/// What clients know.
#[derive(Default)]
struct Clients {
    ledger: RefCell<Ledger>,
    /// The transfers of which one knows that they have begun.
    begun: RefCell<BTreeSet<String>>,
}

impl Clients {
    /// Sends a command and writes down what is told. `true` if it was handled and not rejected.
    async fn send<C: Command>(&self, id: MessageId, sending: Sending<C>) -> bool {
        self.ledger.borrow_mut().sends(id);
        let told = sending.id(id).await;
        let mut ledger = self.ledger.borrow_mut();
        match told {
            Ok(reply) => {
                ledger.replied(id, reply_bytes::<C>(&Ok(reply)));
                return true;
            }
            Err(SendError::Rejected(no)) => ledger.replied(id, reply_bytes::<C>(&Err(no))),
            Err(SendError::DeadLetter { .. }) => ledger.is_dead_letter(id),
            Err(error) if error.may_have_happened() => {}
            Err(_) => ledger.refused(id),
        }
        false
    }
}

impl Run {
    fn new(seed: u64) -> Self {
        let clock = Clock::manual(Timestamp::from_millis(1_800_000_000_000)).0;
        let chance = IdSource::seeded(clock, seed);
        Self { store: MemoryStore::new(), clients: Rc::default(), chance, sent: 0 }
    }

    /// Starts a node, lets callers send `commands`, each `deliveries` times at once, and kills the node in the midst of it.
    async fn round(&mut self, commands: u64, deliveries: u64) {
        let node = bank::start(self.store.clone()).await;
        let client = node.client();
        let mut callers = Vec::new();
        for _ in 0..commands {
            self.sent += 1;
            let number = format!("t{}", self.sent);
            let [from, to] = [(), ()].map(|()| format!("account{}", self.chance.below(5)));
            let (id, cents, what) = (client.new_id(), self.chance.below(100), self.chance.below(10));
            for _ in 0..deliveries {
                let (client, clients) = (client.clone(), Rc::clone(&self.clients));
                let (number, from, to) = (number.clone(), from.clone(), to.clone());
                callers.push(tokio::task::spawn_local(async move {
                    match what {
                        0..3 => {
                            if clients.send(id, client.send(transfer(&number, &from, &to, cents))).await {
                                clients.begun.borrow_mut().insert(number);
                            }
                        }
                        3..6 => drop(clients.send(id, client.send(withdraw(&from, cents, ""))).await),
                        _ => drop(clients.send(id, client.send(deposit(&from, cents))).await),
                    }
                }));
            }
        }
        // All of it is over after a few rounds of the runtime.
        for _ in 0..self.chance.below(12) {
            tokio::task::yield_now().await;
        }
        drop(node);
        for caller in callers {
            caller.await.expect("no caller panics");
        }
    }

    /// Lets everything come to its end, then reads the logs and compares.
    async fn verdict(self) -> Verdict {
        let Self { store, clients, .. } = self;
        let node = bank::start(store.clone()).await;
        let client = node.client();
        let begun = clients.begun.take();
        assert!(!begun.is_empty(), "no transfer has begun");
        for transfer in &begun {
            eventually(async || {
                let id = client.new_id();
                clients.ledger.borrow_mut().sends(id);
                let reply = client.send(outcome(transfer)).id(id).await.expect("a saga answers");
                let is_open = reply == "open";
                clients.ledger.borrow_mut().replied(id, reply_bytes::<Outcome>(&Ok(reply)));
                !is_open
            })
            .await;
        }
        node.stop().await.expect("a node stops in order");
        let mut ledger = clients.ledger.take();
        for log in ShardLog::read_domain::<Bank>(&store).await.expect("the store can be read") {
            ledger.log(log);
        }
        for log in ShardLog::read_domain::<Transfers>(&store).await.expect("the store can be read") {
            ledger.log(log);
        }
        ledger.check(Stage::Quiet)
    }
}

/// Runs with several seeds: `rounds` rounds of `commands` commands, each delivered `deliveries` times.
async fn check(seeds: std::ops::Range<u64>, rounds: u64, commands: u64, deliveries: u64) {
    let panics = Panics::watch();
    let mut refused = 0;
    for seed in seeds {
        let mut run = Run::new(seed);
        for _ in 0..rounds {
            run.round(commands, deliveries).await;
        }
        let verdict = run.verdict().await;
        println!("seed {seed}: {verdict}");
        verdict.assert_clean();
        refused += verdict.refused;
    }
    panics.assert_only(&[]);
    assert!(refused > 0, "no kill came in the midst of a command");
}

#[whizbang::test]
async fn a_node_that_is_killed_again_and_again_loses_doubles_and_invents_nothing() {
    check(0..brief_or_long(10, 300), 20, 30, 1).await;
}

#[whizbang::test]
async fn commands_delivered_three_times_in_any_order_are_decided_once() {
    check(1_000..1_000 + brief_or_long(10, 300), 10, 20, 3).await;
}
