//! The nodes of a run, their stores and their courier, and how they are killed.

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
use crate::clients::{Callers, Wish};
use crate::{Plan, chance};

/// How long everything may take to come to its end once faults have stopped, in virtual time.
const PATIENCE: Duration = Duration::from_secs(600);

/// What the wall clocks show at first.
const NOON: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// How far they jump at most, in either direction.
const JUMP: Duration = Duration::from_secs(2 * 3600);

/// A service with its store, and its node while that lives.
struct Place {
    service: &'static str,
    store: MemoryStore,
    faults: CommitControl,
    clock: Clock,
    hand: ManualClock,
    node: Option<Node>,
}

/// All of a run.
pub(crate) struct World {
    plan: Plan,
    chance: IdSource,
    hub: LoopbackHub,
    places: Vec<Place>,
    callers: Rc<Callers>,
    sent: u64,
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        let place = |service: &&'static str| {
            let (store, faults) = MemoryStore::faulty();
            let (clock, hand) = Clock::manual(NOON);
            Place { service, store, faults, clock, hand, node: None }
        };
        let hub = LoopbackHub::new();
        if let Some(faults) = plan.faults {
            hub.set_faults(faults, chance(seed ^ 0xFA));
        }
        let places = plan.services.iter().map(place).collect();
        Self { plan, chance: chance(seed), hub, places, callers: Rc::default(), sent: 0 }
    }

    /// Starts what does not live, lets callers send, and kills something in the midst of it.
    pub(crate) async fn round(&mut self) {
        self.start().await;
        if self.plan.late_commits {
            self.places.iter().for_each(|place| place.faults.hold());
        }
        let mut callers = Vec::new();
        for _ in 0..self.plan.commands {
            self.sent += 1;
            let wish = Wish::any(self.sent, &self.chance);
            let client = self.client();
            let id = client.new_id();
            for _ in 0..self.plan.deliveries {
                let (client, callers_know, wish) = (client.clone(), Rc::clone(&self.callers), wish.clone());
                callers.push(tokio::task::spawn_local(async move { callers_know.call(&client, id, wish).await }));
            }
        }
        // Most of it is over after a few rounds of the runtime, and the rest takes long.
        let longest = 1 << self.chance.below(9);
        for _ in 0..self.chance.below(longest) {
            tokio::task::yield_now().await;
            if self.plan.clocks_jump && self.chance.below(3) == 0 {
                let at = self.any_place();
                let early = Timestamp::from_millis(NOON.as_millis() - JUMP.as_millis() as u64);
                let millis = 2 * JUMP.as_millis() as u64;
                self.places[at].hand.set(early.after(Duration::from_millis(self.chance.below(millis))));
            }
            if self.plan.late_commits && self.chance.below(3) == 0 {
                let at = self.any_place();
                self.places[at].faults.commit(1 + self.chance.below(20) as usize);
            }
        }
        let at = self.any_place();
        self.kill(at);
        if self.chance.below(4) == 0 {
            (0..self.places.len()).for_each(|at| self.kill(at));
        }
        self.places.iter().for_each(|place| place.faults.go_on());
        for caller in callers {
            caller.await.expect("no caller panics");
        }
    }

    fn any_place(&self) -> usize {
        self.chance.below(self.places.len() as u64) as usize
    }

    /// A client of any node that lives.
    fn client(&self) -> Client {
        let nodes: Vec<&Node> = self.places.iter().filter_map(|place| place.node.as_ref()).collect();
        nodes[self.chance.below(nodes.len() as u64) as usize].client()
    }

    async fn start(&mut self) {
        for place in self.places.iter_mut().filter(|place| place.node.is_none()) {
            let node = Node::builder(place.service, place.store.clone()).seed(self.chance.next_u64());
            let node = node.clock(place.clock.clone());
            let node = match place.service {
                "accounts" => node.aggregate::<Account>().bridge(self.hub.bridge()),
                "transfers" => node.saga::<Transfer>().bridge(self.hub.bridge()),
                _ => node.aggregate::<Account>().saga::<Transfer>(),
            };
            place.node = Some(node.start().await.expect("a node starts"));
        }
    }

    /// Kills a node as `kill -9` does: its store keeps what was committed, and of what was not, any first part.
    fn kill(&mut self, at: usize) {
        let place = &mut self.places[at];
        let Some(node) = place.node.take() else { return };
        let kept = self.chance.below(place.faults.waiting() as u64 + 1) as usize;
        // The node must not hear of it: whoever is killed tells nobody anything more.
        drop(node);
        place.faults.fail(kept, StoreError::Closed);
    }

    /// Stops the faults, lets everything come to its end, then reads the logs and compares.
    pub(crate) async fn verdict(mut self) -> Verdict {
        self.hub.clear_faults();
        // Late enough for every timer that was set.
        self.places.iter().for_each(|place| place.hand.set(NOON.after(2 * JUMP)));
        self.start().await;
        let begun = self.callers.begun.take();
        assert!(!begun.is_empty(), "no transfer has begun");
        let client = self.places[0].node.as_ref().expect("it was started").client();
        let end = tokio::time::Instant::now() + PATIENCE;
        let mut open = Vec::new();
        for transfer in &begun {
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
        for place in &mut self.places {
            place.node.take().expect("it was started").stop().await.expect("a node stops in order");
        }
        let mut ledger = self.callers.ledger.take();
        for (at, place) in self.places.iter().enumerate() {
            let mut logs = Vec::new();
            if at == 0 {
                logs.extend(ShardLog::read_domain::<Bank>(&place.store).await.expect("the store can be read"));
            }
            if at + 1 == self.places.len() {
                logs.extend(ShardLog::read_domain::<Transfers>(&place.store).await.expect("the store can be read"));
            }
            logs.into_iter().for_each(|log| ledger.log(log));
        }
        let verdict = ledger.check(Stage::Idle);
        assert!(open.is_empty(), "transfers {open:?} have not ended: {verdict}");
        verdict
    }
}

/// Lets virtual time pass; real time does not.
#[expect(clippy::disallowed_methods, reason = "the runtime's time is paused: it passes when nothing else happens")]
async fn virtual_time(span: Duration) {
    tokio::time::sleep(span).await;
}
