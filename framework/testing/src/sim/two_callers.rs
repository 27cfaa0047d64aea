//! The fault that makes the clocks of two callers of one service differ.
//!
//! Injected by the [fault scheduler](super::fault_scheduler). While it runs, every second new id is created by the second caller, and
//! all attempts with that id are its own, also after the fault.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::bridge::SimulatedBridge;
use super::other_caller::OtherCaller;
use super::world::START_TIME;
use super::{FaultEvent, World};
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::{IdSource, MessageId};
use whizbang_runtime::client::Client;
use whizbang_runtime::node::Node;

impl World {
    /// Sets the clock of the second caller wrong and lets it send every second command. Returns whether it has sent any.
    pub(super) async fn skew_one_client(&self, millis: i64, duration: Duration) -> bool {
        let Some(caller) = self.start_other_caller().await else { return false };
        let sent = caller.sent.borrow().len();
        caller.jumps.jump(millis);
        caller.faults.set(caller.faults.get() + 1);
        tokio::time::sleep(duration).await;
        if caller.faults.get() > 0 {
            caller.faults.set(caller.faults.get() - 1);
            caller.jumps.jump(-millis);
        }
        caller.sent.borrow().len() > sent
    }

    /// Returns the second caller, which is started by the first fault.
    async fn start_other_caller(&self) -> Option<Rc<OtherCaller>> {
        let known = self.0.clients.other.borrow().clone();
        if known.is_some() {
            return known;
        }
        let (clock, jumps) = Clock::ticking(START_TIME.after(self.now()));
        let ids = IdSource::seeded(clock.clone(), self.0.ids.borrow().next_u64());
        let bridge = SimulatedBridge::new(self.0.broker.clone(), self.0.services.len(), 1, None);
        let node = Node::builder("clients", whizbang_log::memory::MemoryStore::new()).bridge(bridge).clock(clock);
        match node.seed(ids.next_u64()).start().await {
            Ok(node) => {
                let (faults, is_next) = (Cell::new(0), Cell::new(false));
                let caller = Rc::new(OtherCaller { node, ids, jumps, faults, is_next, sent: RefCell::default() });
                // Two faults may begin at once; the first one wins.
                Some(Rc::clone(self.0.clients.other.borrow_mut().get_or_insert(caller)))
            }
            Err(error) => {
                self.report_violation(format!("the second caller failed to start: {error}"));
                None
            }
        }
    }

    /// Returns a new id of the second caller, if it is its turn.
    pub(super) fn other_callers_id(&self) -> Option<MessageId> {
        let other = self.0.clients.other.borrow();
        let caller = other.as_ref().filter(|caller| caller.faults.get() > 0)?;
        caller.is_next.set(!caller.is_next.get());
        if !caller.is_next.get() {
            return None;
        }
        let id = caller.ids.message_id();
        caller.sent.borrow_mut().insert(id);
        self.0.fault_counts.one(FaultEvent::ClientClocksDiffered);
        Some(id)
    }

    /// Returns the client that sends the command with an id. `None` before its node has started and after it has stopped.
    pub(super) fn client_of(&self, id: MessageId) -> Option<Client> {
        let other = self.0.clients.other.borrow();
        match other.as_ref().filter(|caller| caller.sent.borrow().contains(&id)) {
            Some(caller) => Some(caller.node.client()),
            None => self.client(),
        }
    }

    /// Returns the time of the caller that sends the command with an id.
    pub(super) fn client_time_of(&self, id: MessageId) -> Timestamp {
        let other = self.0.clients.other.borrow();
        let caller = other.as_ref().filter(|caller| caller.sent.borrow().contains(&id));
        caller.map_or_else(|| self.0.clients.clock.now(), |caller| caller.now())
    }
}
