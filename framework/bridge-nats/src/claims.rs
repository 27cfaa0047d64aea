//! The claims of this node's store on its domains: messages of one stream, in which the last message of each subject counts.
//!
//! Called by the bridge at attach and detach, and by a loop of the bridge's actor that renews the claims. A claim is written with
//! the stream sequence of the claim that it replaces, and the server rejects the write if that is no longer the last one. The
//! result of the write decides, so clocks and pauses of nodes do not matter.
//!
//! A node that loses a claim ends: another store has the domain, and two stores that own one domain would give two meanings
//! to its positions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, select_all};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::connection::LinkState;
use super::jetstream::{DesiredConfig, JetStream, PublishOutcome};
use super::log_limits::LogLimits;
use super::report::Report;
use whizbang_core::bridge::claim;
use whizbang_core::bridge::claim::Claim;
use whizbang_core::bridge::{BridgeError, Inbound, NodeCard, StoreCard};
use whizbang_core::clock::monotonic;
use whizbang_core::message::{Name, StoreId};
use whizbang_core::telemetry::{LogLimit, error_chain};
use whizbang_wire::subject::Namespace;

/// The interval of renewals. A renewal also reveals a rival whose message was missed.
pub(super) const RENEW_INTERVAL: Duration = Duration::from_secs(5);
/// The minimum interval of renewals: messages on the subject of a claim must not cause a loop of writes.
const MIN_RENEW_INTERVAL: Duration = Duration::from_millis(250);
/// The maximum number of attempts of a write whose result is unknown or that conflicted with another write.
const MAX_ATTEMPTS: usize = 5;
/// The key of the issue about claims.
const ISSUE: &str = "claims";

/// The claims of one node.
pub(super) struct Claims {
    /// Reads and conditionally writes the messages of the stream.
    pub(super) jetstream: JetStream,
    /// The prefix of the subjects of claims.
    pub(super) namespace: Namespace,
    /// The desired configuration of the stream of all claims.
    pub(super) stream: DesiredConfig,
    /// The description of the node: its service, its domains, and whether it shares their shards.
    pub(super) card: NodeCard,
    /// The limits of log lines that any client can cause.
    pub(super) log_limits: Arc<LogLimits>,
    /// The identity of the store, and the starts of the node on it.
    pub(super) store: StoreCard,
    /// The stream sequence of this node's claim, by domain.
    held: Mutex<BTreeMap<Name, u64>>,
    /// The node was stopped in order, or has lost a claim.
    ended: AtomicBool,
}

/// The inputs of the loop that renews the claims.
pub(super) struct ClaimWatch {
    /// The messages on the subjects of the claims.
    watched: SelectAll<Subscriber>,
    /// A reconnection causes a renewal at once: the server may have lost the claims.
    link: watch::Receiver<LinkState>,
    /// The node, which ends when a claim is lost.
    inbound: Arc<dyn Inbound>,
    /// The issues, of which a failing renewal is one.
    report: Arc<Report>,
}

impl ClaimWatch {
    /// Returns the inputs of the loop. Nothing is renewed until it runs.
    pub(super) fn new(
        watched: Vec<Subscriber>,
        link: watch::Receiver<LinkState>,
        inbound: Arc<dyn Inbound>,
        report: Arc<Report>,
    ) -> Self {
        Self { watched: select_all(watched), link, inbound, report }
    }
}

/// The result of a renewal.
enum RenewalOutcome {
    /// The claim is this node's, or the service's with leases.
    Held,
    /// Another store or a later start has the domain; with its claim, if it could be read.
    Lost(Option<Claim>),
}

/// Returns the store that holds the claim on a domain at the server, if there is one.
pub(super) async fn owner(
    jetstream: &JetStream,
    namespace: &Namespace,
    domain: &Name,
) -> Result<Option<StoreId>, BridgeError> {
    let stored = jetstream.last_message(&namespace.claims_stream(), &namespace.claim_subject(domain)).await?;
    stored.map(|stored| Ok(parse_claim(domain, &stored.payload)?.store)).transpose()
}

/// Parses a claim and names the domain in the error.
fn parse_claim(domain: &Name, payload: &[u8]) -> Result<Claim, BridgeError> {
    let named = |error| BridgeError::Malformed { reason: format!("domain `{domain}`: {error}") };
    Claim::parse(payload).map_err(named)
}

/// Reads the last message on the subject of a claim. `None` if it is not a claim: a service can direct a response of JetStream there,
/// which replaces the claim. A claim that this version cannot read is an error.
fn read_claim(domain: &Name, payload: &[u8], limit: &LogLimit) -> Result<Option<Claim>, BridgeError> {
    let error = match parse_claim(domain, payload) {
        Ok(claim) => return Ok(Some(claim)),
        Err(error) => error,
    };
    if serde_json::from_slice::<serde_json::Value>(payload).is_ok_and(|message| message.get("store").is_some()) {
        return Err(error);
    }
    if limit.admits(monotonic()) {
        tracing::warn!(%domain, "another program has replaced the claim on a domain with a message that is not a claim");
    }
    Ok(None)
}

impl Claims {
    /// Returns the claims of a node. `None` if its store has no identity or it owns no domain.
    pub(super) fn new(
        jetstream: JetStream,
        namespace: Namespace,
        stream: DesiredConfig,
        card: &NodeCard,
        log_limits: &Arc<LogLimits>,
    ) -> Option<Self> {
        let store = card.store.clone().filter(|_| !card.owns.is_empty())?;
        Some(Self {
            jetstream,
            namespace,
            stream,
            card: card.clone(),
            log_limits: Arc::clone(log_limits),
            store,
            held: Mutex::default(),
            ended: AtomicBool::new(false),
        })
    }

    /// Returns the domains that the node owns.
    fn domains(&self) -> impl Iterator<Item = &Name> {
        self.card.owns.iter().map(|(domain, _)| domain)
    }

    /// Returns the subjects of this node's claims. A message of another node on one of them is a rival claim.
    pub(super) fn subjects(&self) -> Vec<String> {
        self.domains().map(|domain| self.namespace.claim_subject(domain)).collect()
    }

    /// Ensures the stream of claims and checks that no other store holds a claim on a domain of this node. Claims nothing
    /// yet. Called before anything is created at the server.
    ///
    /// # Errors
    /// [`BridgeError::Claimed`] names the store that has a domain, or the node on this store that still renews its claim.
    pub(super) async fn check(&self, client: &Client) -> Result<(), BridgeError> {
        self.jetstream.ensure_stream(&self.stream).await?;
        for domain in self.domains() {
            if let (last, Some(found)) = self.read(domain).await? {
                found.admits(&self.card, &self.store, domain)?;
                if self.continues(&found) && self.is_renewed(client, domain, last, &found).await? {
                    return Err(found.renewed_error(&self.store, domain));
                }
            }
        }
        Ok(())
    }

    /// Returns true for the claim of an earlier start on this store that was not stopped in order, or of a start on a copy. Nodes with
    /// leases do not ask: the leases fence an exclusive node.
    fn continues(&self, found: &Claim) -> bool {
        let is_of_another_start = found.store == self.store.store && !found.is_of(&self.store);
        let is_accepted = found.released || self.card.has_leased_shards || self.store.replaces.includes(found.store);
        is_of_another_start && !is_accepted
    }

    /// Claims all domains and returns those that another store held before. Releases the new claims again after an error.
    ///
    /// # Errors
    /// The first error. No claim of this start is left.
    pub(super) async fn claim_all(&self) -> Result<Vec<Name>, BridgeError> {
        let mut replaced = Vec::new();
        for domain in self.domains() {
            match self.claim_one(domain).await {
                Ok(true) => replaced.push(domain.clone()),
                Ok(false) => {}
                Err(error) => {
                    self.release().await;
                    return Err(error);
                }
            }
        }
        Ok(replaced)
    }

    /// Claims a domain. Returns true if another store held the claim before.
    async fn claim_one(&self, domain: &Name) -> Result<bool, BridgeError> {
        let mut replaces = false;
        let mut failed = self.contended(domain);
        for _ in 0..MAX_ATTEMPTS {
            let (last, found) = self.read(domain).await?;
            if let Some(found) = found {
                found.admits(&self.card, &self.store, domain)?;
                if found.is_shared_with(&self.card, &self.store) {
                    return Ok(replaces);
                }
                replaces |= found.store != self.store.store;
            }
            match self.write(domain, last, false).await {
                Ok(true) => return Ok(replaces),
                // Another node was quicker, or this node's own write succeeded without a response. The next read tells.
                Ok(false) => {}
                Err(error) if error.is_transient() => failed = error,
                Err(error) => return Err(error),
            }
        }
        Err(failed)
    }

    /// Renews the claims until the node stops or has lost one of them. After a panic it can be called again.
    pub(super) async fn run(&self, ClaimWatch { watched, link, inbound, report }: &mut ClaimWatch) {
        let rivals = Notify::new();
        tokio::select! {
            biased;
            () = self.watch_rivals(watched, &rivals) => {}
            () = self.renew_all(&rivals, link, &**inbound, report) => {}
        }
    }

    /// Reads the messages on the subjects of the claims as they arrive, and notifies `rivals` of those that indicate a rival.
    ///
    /// It waits for no renewal: the client library would keep unread messages of any number and size in memory. Messages that arrive
    /// between two renewals cause one renewal.
    async fn watch_rivals(&self, watched: &mut SelectAll<Subscriber>, rivals: &Notify) {
        while let Some(message) = watched.next().await {
            let written = serde_json::from_slice::<Claim>(&message.payload);
            let is_held = |claim: &Claim| claim.is_of(&self.store) || claim.is_shared_with(&self.card, &self.store);
            if !written.is_ok_and(|claim| is_held(&claim)) {
                rivals.notify_one();
            }
        }
        // The client has ended. The renewals end with the node.
        std::future::pending().await
    }

    /// Renews the claims after each notification of `rivals`, and from time to time.
    async fn renew_all(
        &self,
        rivals: &Notify,
        link: &mut watch::Receiver<LinkState>,
        inbound: &dyn Inbound,
        report: &Report,
    ) {
        loop {
            self.wait_for_renewal(rivals, link).await;
            if self.ended.load(Ordering::Acquire) {
                return;
            }
            for domain in self.domains() {
                match self.renew(domain).await {
                    Ok(RenewalOutcome::Held) => drop(report.issues.close(ISSUE)),
                    Ok(RenewalOutcome::Lost(found)) if !self.ended.swap(true, Ordering::AcqRel) => {
                        return inbound.claim_lost(claim::lost_reason(domain, found.as_ref()));
                    }
                    Ok(RenewalOutcome::Lost(_)) => return,
                    Err(error) if link.borrow().up => {
                        let text = format!(
                            "failed to renew the claim on domain `{domain}`: {}; retrying",
                            error_chain(&error)
                        );
                        if report.issues.open(ISSUE, || text) && self.log_limits.claims.admits(monotonic()) {
                            tracing::error!(
                                %domain, error = %error_chain(&error),
                                "failed to renew a claim; retrying",
                            );
                        }
                    }
                    // Nothing can be published while the link is down, and the claim is renewed after the reconnection.
                    Err(_) => {}
                }
            }
        }
    }

    /// Waits until the next renewal is due or a message indicates a rival.
    async fn wait_for_renewal(&self, rivals: &Notify, link: &mut watch::Receiver<LinkState>) {
        tokio::time::sleep(MIN_RENEW_INTERVAL).await;
        let reconnected = async {
            let before = link.borrow_and_update().epoch;
            if link.wait_for(|link| link.up && link.epoch != before).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = rivals.notified() => {}
            () = reconnected => {}
            () = tokio::time::sleep(RENEW_INTERVAL - MIN_RENEW_INTERVAL) => {}
        }
    }

    /// Writes the claim on a domain again, or reads it if the nodes of the service share it.
    ///
    /// # Errors
    /// The claim may be unchanged after an error: the caller retries at the next interval.
    async fn renew(&self, domain: &Name) -> Result<RenewalOutcome, BridgeError> {
        let mut last = self.held.lock().get(domain).copied().unwrap_or(0);
        if self.card.has_leased_shards {
            // The nodes of the service hold it together: reading suffices, and writing would make them conflict.
            match self.read(domain).await? {
                (_, Some(found)) if found.is_shared_with(&self.card, &self.store) => return Ok(RenewalOutcome::Held),
                (_, Some(found)) if found.store != self.store.store || found.service != self.card.service.as_str() => {
                    return Ok(RenewalOutcome::Lost(Some(found)));
                }
                // An exclusive node of the same store: the leases fence it, and it ends when it finds this claim.
                (number, Some(_)) => last = number,
                (number, None) => {
                    self.jetstream.ensure_stream(&self.stream).await?;
                    last = number;
                }
            }
        }
        for _ in 0..MAX_ATTEMPTS {
            match self.write(domain, last, false).await {
                Ok(true) => return Ok(RenewalOutcome::Held),
                Ok(false) => {}
                Err(error) => {
                    // The stream may be missing; create it for the next renewal.
                    self.jetstream.ensure_stream(&self.stream).await?;
                    return Err(error);
                }
            }
            // The last claim is not the one this node wrote last. Either a rival wrote it, or this node did without receiving the
            // result, or the server has lost its newest messages or all of them.
            match self.read(domain).await? {
                (number, Some(found))
                    if found.store == self.store.store && found.service == self.card.service.as_str() =>
                {
                    let is_mine = found.is_of(&self.store) || self.store.earlier.contains(&found.run);
                    // Nodes with leases take an exclusive claim over, and never the other way around.
                    let is_held = self.card.has_leased_shards || is_mine && !found.shared;
                    if !is_held {
                        return Ok(RenewalOutcome::Lost(Some(found)));
                    }
                    last = number;
                }
                (_, Some(found)) => return Ok(RenewalOutcome::Lost(Some(found))),
                (number, None) => {
                    self.jetstream.ensure_stream(&self.stream).await?;
                    last = number;
                }
            }
        }
        Err(self.contended(domain))
    }

    /// Returns the error for a claim that changes in every attempt.
    fn contended(&self, domain: &Name) -> BridgeError {
        self.jetstream
            .refused(format!("the claim on domain `{domain}` keeps changing: another node writes it at the same time"))
    }

    /// Records that this node was stopped in order: its claims may be continued on a copy of its store. A failure is logged:
    /// the claim then names a store that has ended, and only that store can continue it.
    pub(super) async fn release(&self) {
        self.ended.store(true, Ordering::Release);
        if self.card.has_leased_shards {
            // The other nodes keep it.
            return;
        }
        let held = std::mem::take(&mut *self.held.lock());
        for (domain, last) in held {
            if let Err(error) = self.release_one(&domain, last).await {
                tracing::warn!(
                    %domain, error = %error_chain(&error),
                    "failed to release a claim: only this store can continue it, no copy of it",
                );
            }
        }
    }

    /// Marks the last claim on a domain as released, unless it is a rival's.
    async fn release_one(&self, domain: &Name, last: u64) -> Result<(), BridgeError> {
        if !self.write(domain, last, true).await? {
            // A renewal may have been in flight. A rival's claim is left as it is.
            let (number, found) = self.read(domain).await?;
            if found.is_some_and(|claim| claim.is_of(&self.store)) {
                self.write(domain, number, true).await?;
            }
        }
        Ok(())
    }

    /// Returns the sequence of the last message on the subject of a claim, 0 if there is none, and the claim in it.
    pub(super) async fn read(&self, domain: &Name) -> Result<(u64, Option<Claim>), BridgeError> {
        let subject = self.namespace.claim_subject(domain);
        let Some(stored) = self.jetstream.last_message(&self.stream.path, &subject).await? else {
            return Ok((0, None));
        };
        Ok((stored.number, read_claim(domain, &stored.payload, &self.log_limits.claims)?))
    }

    /// Replaces the claim with the sequence `last`. Returns false if that was no longer the last one.
    async fn write(&self, domain: &Name, last: u64, released: bool) -> Result<bool, BridgeError> {
        let payload = Claim::of(&self.card, &self.store).released(released).to_bytes()?;
        match self.jetstream.publish_after(self.namespace.claim_subject(domain), payload.into(), last).await? {
            PublishOutcome::Stored(number) => {
                if !released {
                    self.held.lock().insert(domain.clone(), number);
                }
                Ok(true)
            }
            PublishOutcome::Conflict => Ok(false),
        }
    }
}
