//! A second node of a simulated service, on a store that is not the service's.
//!
//! Called by what [brings faults about](super::fault_scheduler).

use super::{FaultEvent, World};
use crate::bridge::BridgeError;
use crate::node::{Node, StartError};
use crate::store::memory::MemoryStore;

impl World {
    /// Starts a second node of a service on an empty store. It must be refused if the service owns a domain. Returns whether it
    /// was.
    pub(super) async fn rival(&self, at: usize) -> bool {
        let Some(service) = self.0.services.get(at) else { return false };
        let owns = service.hosts.borrow().as_ref().is_some_and(|hosts| !hosts.domains.is_empty());
        let Some(build) = self.0.sim.build_of(at, service.version.get()).filter(|_| owns) else { return false };
        let builder = Node::builder(&service.name, MemoryStore::new())
            .bridge(self.0.broker.bridge(at))
            .clock(service.clock.clone())
            .seed(self.below(u64::MAX));
        match build(builder).start().await {
            Err(StartError::Bridge(BridgeError::Claimed(_))) => {
                self.0.tally.one(FaultEvent::RivalRefused);
                self.0.trace.add(format_args!("a second node of {} is refused", service.name));
                true
            }
            Err(error) => {
                self.violated(format!("claims: a node of {} on an empty store ends with {error}", service.name));
                false
            }
            Ok(rival) => {
                self.violated(format!("claims: a node of {} on an empty store is accepted", service.name));
                drop(rival);
                false
            }
        }
    }
}
