//! The claims of stores on domains at a hub.
//!
//! Called when a node attaches, and when it is detached in order.

use super::hub::Hub;
use whizbang_core::bridge::claim::Claim;
use whizbang_core::bridge::{BridgeError, NodeCard, claim};

impl Hub {
    /// Claims the domains of a node for its store, all or none, and notifies the previous holders.
    pub(super) fn claim(&self, card: &NodeCard) -> Result<(), BridgeError> {
        let Some(store) = &card.store else { return Ok(()) };
        let mut claims = self.claims.lock();
        for (domain, _) in &card.owns {
            if let Some(found) = claims.get(domain) {
                found.admits(card, store, domain)?;
            }
        }
        let mut lost = Vec::new();
        for (domain, _) in &card.owns {
            if claims.get(domain).is_some_and(|found| found.is_shared_with(card, store)) {
                continue;
            }
            let claim = Claim::of(card, store);
            if let Some(before) = claims.insert(domain.clone(), claim.clone()) {
                lost.push((domain, before, claim));
            }
        }
        drop(claims);
        let members = self.members.lock().1.clone();
        for (domain, before, claim) in lost {
            let holders = members.iter().filter(|member| {
                member.card.store.as_ref().is_some_and(|store| before.is_of(store))
                    && member.card.owns.iter().any(|(owned, _)| owned == domain)
            });
            holders.for_each(|member| member.inbound.claim_lost(claim::lost_reason(domain, Some(&claim))));
        }
        Ok(())
    }

    /// Records that a node was stopped in order: a copy of its store may continue its claims. The other nodes of its service
    /// keep a shared claim.
    pub(super) fn release_claims(&self, card: &NodeCard) {
        let Some(store) = &card.store else { return };
        for claim in self.claims.lock().values_mut().filter(|claim| claim.is_of(store) && !claim.shared) {
            claim.released = true;
        }
    }
}
