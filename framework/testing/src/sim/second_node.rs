//! A second node of a simulated service on another store.
//!
//! Called by the [fault scheduler](super::fault_scheduler).

use super::bridge::SimulatedBridge;
use super::{FaultEvent, World};
use whizbang_core::bridge::BridgeError;
use whizbang_log::memory::MemoryStore;
use whizbang_runtime::node::{Node, StartError};

impl World {
    /// Starts a second node of a service on an empty store. If the service owns a domain, the broker must refuse the node. Returns
    /// whether it did.
    pub(super) async fn start_second_node(&self, at: usize) -> bool {
        let Some(service) = self.0.services.get(at) else { return false };
        let owns = service.manifest.borrow().as_ref().is_some_and(|manifest| !manifest.domains.is_empty());
        let Some(build) = self.0.sim.build_of(at, service.version.get()).filter(|_| owns) else { return false };
        let builder = Node::builder(&service.name, MemoryStore::new())
            .bridge(SimulatedBridge::new(self.0.broker.clone(), at, 0, None))
            .clock(service.clock.clone())
            .seed(self.below(u64::MAX));
        match build(builder).start().await {
            Err(StartError::Bridge(BridgeError::Claimed(_))) => {
                self.0.fault_counts.one(FaultEvent::SecondNodeRefused);
                self.0.trace.add(format_args!("a second node of {} is refused", service.name));
                true
            }
            Err(error) => {
                self.report_violation(format!(
                    "claims: a node of {} on an empty store failed to start: {error}",
                    service.name
                ));
                false
            }
            Ok(node) => {
                self.report_violation(format!("claims: a node of {} on an empty store was accepted", service.name));
                drop(node);
                false
            }
        }
    }
}
