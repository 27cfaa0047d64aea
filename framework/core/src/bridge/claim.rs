//! The claim of a store on a domain: which store's node owns the domain at a broker.
//!
//! Used by bridges, which keep one claim per domain and replace it only by compare-and-set. The result of that write decides,
//! never a clock. A start on the same store continues the claim of the previous start. Another store is refused, and so is a
//! copy of the store whose starts do not include the start of the claim. A copy that was made while its node ran includes it: a
//! bridge that can observe that the node renews its claim refuses such a start with [`Claim::renewed_error`].
//!
//! Nodes that share the shards of a domain by leases hold its claim together: the first one writes it as shared, and it admits
//! every node with the same store. Which of them owns a shard is decided by the leases, so their starts are not compared. A
//! shared claim replaces the exclusive claim of the same store, and never the other way around.

use serde::{Deserialize, Serialize};

use super::{BridgeError, NodeCard, RivalClaim, StoreCard};
use crate::message::{Name, Run, StoreId};

/// The claim of a store on a domain, as the broker holds it.
///
/// A bridge whose broker has compare-and-set keeps one claim for each domain:
///
/// ```
/// use whizbang::bridge::{NodeCard, StoreCard, claim::Claim};
/// use whizbang::message::{Name, Run, StoreId};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bank = Name::new("bank")?;
/// let start = StoreCard::new(StoreId::from_u128(7), Run { epoch: 1, nonce: 10 });
/// let card = NodeCard::new(bank.clone()).owning(bank.clone(), 16).store(start.clone());
/// let held = Claim::parse(&Claim::of(&card, &start).to_bytes()?)?;
/// // The node writes its claim over `held` if the claim admits it, and only if `held` is still the last one.
/// held.admits(&card, &start, &bank)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Claim {
    /// The service whose node holds the claim.
    pub service: String,
    /// The store that holds the domain.
    pub store: StoreId,
    /// The start that made the claim.
    pub run: Run,
    /// The node was stopped in order: any start on the same store, or on a copy of it, may continue the claim.
    #[serde(default)]
    pub released: bool,
    /// All nodes with the same store hold the claim: they share the shards of the domain by leases.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
}

/// Returns true for the default, which is not written: an exclusive claim stays the same text for older versions.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Claim {
    /// Returns the claim of a node on one of its domains.
    pub fn of(card: &NodeCard, store: &StoreCard) -> Self {
        Self {
            service: card.service.to_string(),
            store: store.store,
            run: store.run,
            released: false,
            shared: card.has_leased_shards,
        }
    }

    /// Parses a claim as the broker holds it.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] with the defect.
    pub fn parse(bytes: &[u8]) -> Result<Self, BridgeError> {
        serde_json::from_slice(bytes)
            .map_err(|error| BridgeError::Malformed { reason: format!("invalid claim on a domain: {error}") })
    }

    /// Encodes the claim for the broker, as JSON.
    ///
    /// # Errors
    /// [`BridgeError::Malformed`] if it has no JSON form.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BridgeError> {
        serde_json::to_vec(self).map_err(|error| BridgeError::Malformed { reason: error.to_string() })
    }

    /// Returns the claim of a node that has been stopped in order.
    #[must_use]
    pub fn released(mut self, released: bool) -> Self {
        self.released = released;
        self
    }

    /// Returns true if this start made the claim.
    pub fn is_of(&self, store: &StoreCard) -> bool {
        self.store == store.store && self.run == store.run
    }

    /// Returns true if the node holds the claim together with the node that wrote it: it need not write the claim.
    pub fn is_shared_with(&self, card: &NodeCard, mine: &StoreCard) -> bool {
        self.shared && card.has_leased_shards && self.store == mine.store && self.service == card.service.as_str()
    }

    /// Checks that a node may replace the found claim.
    ///
    /// # Errors
    /// [`BridgeError::Claimed`] with a remedy.
    pub fn admits(&self, card: &NodeCard, mine: &StoreCard, domain: &Name) -> Result<(), BridgeError> {
        let is_same_store = self.store == mine.store;
        let is_same_service = self.service == card.service.as_str();
        let continues = self.is_of(mine) || mine.earlier.contains(&self.run) || self.released;
        // The leases of the store decide between nodes that share it, and they fence an exclusive owner. An exclusive node
        // would open all shards, also those of running nodes.
        let continues = card.has_leased_shards || continues && !self.shared;
        if is_same_store && is_same_service && continues {
            return Ok(());
        }
        if mine.replaces.includes(self.store) {
            tracing::warn!(
                %domain, service = self.service, store = %self.store, new_store = %mine.store,
                "replacing the claim of another store, as configured",
            );
            return Ok(());
        }
        let remedy = match (is_same_store, is_same_service) {
            (true, true) if self.shared => {
                "the nodes of the service share their shards by leases and this one does not: start it in the same way, or stop \
                 them all and start once with this store as `replaces_store`"
            }
            (true, true) => {
                "this store is a copy: end the node on the other copy; if that copy is gone for good, start once with it as \
                 `replaces_store`"
            }
            (true, false) => {
                "the service has another name than before: restore the name, or remove the old consumers and start once with the \
                 store as `replaces_store`"
            }
            (false, true) => {
                "start this node on the store of the claim (is its folder mounted?); if that store is gone for good, start once \
                 with it as `replaces_store`"
            }
            (false, false) => {
                "two services own the domain: remove it from one of them; if the other is gone for good, start once with its store \
                 as `replaces_store`"
            }
        };
        Err(self.refuses(mine, domain, remedy))
    }

    /// Returns the error for a start that continues the claim while the node that wrote it still renews it: one of the two runs on a
    /// copy of the store that was made while the other one ran.
    pub fn renewed_error(&self, mine: &StoreCard, domain: &Name) -> BridgeError {
        let remedy = "a node on this store, or on a copy of it, runs and renews the claim: end that node first, or start once with the \
                      store as `replaces_store`, which ends it";
        self.refuses(mine, domain, remedy)
    }

    fn refuses(&self, mine: &StoreCard, domain: &Name, remedy: &'static str) -> BridgeError {
        BridgeError::Claimed(Box::new(RivalClaim {
            domain: domain.to_string(),
            service: self.service.clone(),
            store: self.store,
            epoch: self.run.epoch,
            mine: mine.store,
            remedy,
        }))
    }
}

/// Returns the reason that a node reports when it has lost a claim.
#[doc(hidden)]
pub fn lost_reason(domain: &Name, found: Option<&Claim>) -> String {
    match found {
        Some(claim) => format!(
            "another node has taken over: domain `{domain}` is claimed by service `{}` with store {} (start {})",
            claim.service, claim.store, claim.run.epoch
        ),
        None => format!("another node has taken over: the claim on domain `{domain}` is lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ReplacedStore;

    fn card(service: &'static str, store: u128, run: u64, earlier: &[u64]) -> (NodeCard, StoreCard) {
        let start = |nonce: u64| Run { epoch: 1, nonce };
        let store = StoreCard {
            store: StoreId::from_u128(store),
            run: start(run),
            earlier: earlier.iter().copied().map(start).collect(),
            replaces: ReplacedStore::None,
        };
        let card = NodeCard { store: Some(store.clone()), ..NodeCard::new(Name::from_static(service).unwrap()) };
        (card, store)
    }

    #[test]
    fn claim_admits_only_its_own_line_of_starts() {
        let domain = Name::from_static("bank").unwrap();
        let (holder, held) = card("bank", 1, 5, &[4]);
        let claim = Claim::of(&holder, &held);
        let admits = |claim: &Claim, (card, store): &(NodeCard, StoreCard)| claim.admits(card, store, &domain);
        assert!(admits(&claim, &card("bank", 1, 5, &[])).is_ok(), "the start itself");
        assert!(admits(&claim, &card("bank", 1, 6, &[3, 5])).is_ok(), "the next start");
        let copy = card("bank", 1, 6, &[4]);
        for other in [&copy, &card("bank", 2, 6, &[]), &card("shop", 2, 6, &[]), &card("renamed", 1, 6, &[5])] {
            assert!(matches!(admits(&claim, other), Err(BridgeError::Claimed(_))), "{other:?}");
        }
        let released = Claim { released: true, ..claim.clone() };
        assert!(admits(&released, &copy).is_ok(), "its node has ended");
        assert!(admits(&released, &card("bank", 2, 6, &[])).is_err(), "a store without its history");
        let mut new = card("bank", 2, 6, &[]);
        new.1.replaces = ReplacedStore::Store(StoreId::from_u128(1));
        assert!(admits(&claim, &new).is_ok(), "configured by an operator");
        new.1.replaces = ReplacedStore::Store(StoreId::from_u128(3));
        assert!(admits(&claim, &new).is_err(), "another store is configured");
    }

    #[test]
    fn shared_claim_admits_every_node_of_its_store() {
        let domain = Name::from_static("bank").unwrap();
        let leased = |service, store, run, earlier: &[u64]| {
            let (card, store) = card(service, store, run, earlier);
            (NodeCard { has_leased_shards: true, ..card }, store)
        };
        let (holder, held) = leased("bank", 1, 5, &[]);
        let claim = Claim::of(&holder, &held);
        let admits = |claim: &Claim, (card, store): &(NodeCard, StoreCard)| claim.admits(card, store, &domain);
        let second = leased("bank", 1, 6, &[]);
        assert!(admits(&claim, &second).is_ok() && claim.is_shared_with(&second.0, &second.1));
        for other in [&leased("bank", 2, 6, &[]), &leased("shop", 1, 6, &[]), &card("bank", 1, 6, &[5])] {
            assert!(matches!(admits(&claim, other), Err(BridgeError::Claimed(_))), "{other:?}");
            assert!(!claim.is_shared_with(&other.0, &other.1));
        }
        let (exclusive, store) = card("bank", 1, 4, &[]);
        let exclusive = Claim::of(&exclusive, &store);
        assert!(admits(&exclusive, &second).is_ok(), "the leases fence the exclusive node");
        assert!(!exclusive.is_shared_with(&second.0, &second.1));
        let text = serde_json::to_string(&exclusive).unwrap();
        assert!(!text.contains("shared"), "{text}");
        assert_eq!(serde_json::from_str::<Claim>(&text).unwrap(), exclusive);
    }
}
