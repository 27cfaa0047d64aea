//! The nodes of a run, with their stores and their bridge.

use std::rc::Rc;
use std::time::Duration;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::{Clock, ManualClock, Timestamp};
use whizbang::message::IdSource;
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::store::memory::CommitControl;
use whizbang_tests::checker::{ShardLog, Stage, Verdict};

use crate::bank::{Account, Bank, Transfer, Transfers, outcome};
use crate::clients::{CallerCommand, Callers};
use crate::{Plan, rng};

/// Time in which all work must finish once faults have stopped, in virtual time.
const TIME_LIMIT: Duration = Duration::from_secs(600);

/// The initial time of the wall clocks.
const START_TIME: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// The maximum jump of a wall clock, in either direction.
const MAX_JUMP: Duration = Duration::from_secs(2 * 3600);

/// A service with its store, and its node while that runs.
struct ServiceSlot {
    service: &'static str,
    store: MemoryStore,
    faults: CommitControl,
    clock: Clock,
    manual_clock: ManualClock,
    node: Option<Node>,
}

/// The state of a run.
pub(crate) struct World {
    plan: Plan,
    rng: IdSource,
    hub: LoopbackHub,
    slots: Vec<ServiceSlot>,
    callers: Rc<Callers>,
    sent: u64,
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        let slot = |service: &&'static str| {
            let (store, faults) = MemoryStore::faulty();
            let (clock, manual_clock) = Clock::manual(START_TIME);
            ServiceSlot { service, store, faults, clock, manual_clock, node: None }
        };
        let hub = LoopbackHub::new();
        if let Some(faults) = plan.faults {
            faults.inject(&hub, rng(seed ^ 0xFA));
        }
        let slots = plan.services.iter().map(slot).collect();
        Self { plan, rng: rng(seed), hub, slots, callers: Rc::default(), sent: 0 }
    }

    /// Starts all stopped nodes, lets callers send commands, and kills a node in between.
    pub(crate) async fn round(&mut self) {
        self.start().await;
        if self.plan.late_commits {
            self.slots.iter().for_each(|slot| slot.faults.hold());
        }
        let mut callers = Vec::new();
        for _ in 0..self.plan.commands {
            self.sent += 1;
            let command = CallerCommand::any(self.sent, &self.rng);
            let client = self.client();
            let id = client.new_id();
            for _ in 0..self.plan.deliveries {
                let (client, shared, command) = (client.clone(), Rc::clone(&self.callers), command.clone());
                callers.push(tokio::task::spawn_local(async move { shared.call(&client, id, command).await }));
            }
        }
        // Most work is done after a few polls of the runtime, the rest takes long.
        let longest = 1 << self.rng.below(9);
        for _ in 0..self.rng.below(longest) {
            tokio::task::yield_now().await;
            if self.plan.clocks_jump && self.rng.below(3) == 0 {
                let at = self.any_slot();
                let early = Timestamp::from_millis(START_TIME.as_millis() - MAX_JUMP.as_millis() as u64);
                let millis = 2 * MAX_JUMP.as_millis() as u64;
                self.slots[at].manual_clock.set(early.after(Duration::from_millis(self.rng.below(millis))));
            }
            if self.plan.late_commits && self.rng.below(3) == 0 {
                let at = self.any_slot();
                self.slots[at].faults.commit(1 + self.rng.below(20) as usize);
            }
        }
        let at = self.any_slot();
        self.kill(at);
        if self.rng.below(4) == 0 {
            (0..self.slots.len()).for_each(|at| self.kill(at));
        }
        self.slots.iter().for_each(|slot| slot.faults.resume());
        for caller in callers {
            caller.await.expect("no caller panics");
        }
    }

    fn any_slot(&self) -> usize {
        self.rng.below(self.slots.len() as u64) as usize
    }

    /// Returns a client of a random running node.
    fn client(&self) -> Client {
        let nodes: Vec<&Node> = self.slots.iter().filter_map(|slot| slot.node.as_ref()).collect();
        nodes[self.rng.below(nodes.len() as u64) as usize].client()
    }

    async fn start(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| slot.node.is_none()) {
            let node = Node::builder(slot.service, slot.store.clone()).seed(self.rng.next_u64());
            let node = node.clock(slot.clock.clone());
            let node = match slot.service {
                "accounts" => node.aggregate::<Account>().bridge(self.hub.bridge()),
                "transfers" => node.saga::<Transfer>().bridge(self.hub.bridge()),
                _ => node.aggregate::<Account>().saga::<Transfer>(),
            };
            slot.node = Some(node.start().await.expect("a node starts"));
        }
    }

    /// Kills a node as `kill -9` does. Its store keeps committed data and any prefix of the pending appends.
    fn kill(&mut self, at: usize) {
        let slot = &mut self.slots[at];
        let Some(node) = slot.node.take() else { return };
        let kept = self.rng.below(slot.faults.waiting() as u64 + 1) as usize;
        // Drop the node first: a killed node must not be notified.
        drop(node);
        slot.faults.fail(kept, StoreError::Closed);
    }

    /// Stops the faults, waits for all work, then compares the logs with the ledger.
    pub(crate) async fn verdict(mut self) -> Verdict {
        self.hub.deliver_all();
        // Late enough for all timers.
        self.slots.iter().for_each(|slot| slot.manual_clock.set(START_TIME.after(2 * MAX_JUMP)));
        self.start().await;
        let started = self.callers.started.take();
        assert!(!started.is_empty(), "no transfer has begun");
        let client = self.slots[0].node.as_ref().expect("it was started").client();
        let end = tokio::time::Instant::now() + TIME_LIMIT;
        let mut open = Vec::new();
        for transfer in &started {
            while self.callers.send(client.new_id(), client.send(outcome(transfer))).await.is_none_or(|is| is == "open")
            {
                if tokio::time::Instant::now() > end {
                    open.push(transfer.clone());
                    break;
                }
                virtual_time(Duration::from_secs(1)).await;
            }
        }
        virtual_time(Duration::from_secs(60)).await;
        for slot in &mut self.slots {
            slot.node.take().expect("it was started").stop().await.expect("a node stops in order");
        }
        let mut ledger = self.callers.ledger.take();
        for (at, slot) in self.slots.iter().enumerate() {
            let mut logs = Vec::new();
            if at == 0 {
                logs.extend(ShardLog::read_domain::<Bank>(&slot.store).await.expect("the store can be read"));
            }
            if at + 1 == self.slots.len() {
                logs.extend(ShardLog::read_domain::<Transfers>(&slot.store).await.expect("the store can be read"));
            }
            logs.into_iter().for_each(|log| ledger.log(log));
        }
        let verdict = ledger.check(Stage::Idle);
        assert!(open.is_empty(), "transfers {open:?} have not ended: {verdict}");
        verdict
    }
}

/// Advances virtual time.
#[expect(clippy::disallowed_methods, reason = "the runtime's time is paused: it passes when nothing else happens")]
async fn virtual_time(span: Duration) {
    tokio::time::sleep(span).await;
}
