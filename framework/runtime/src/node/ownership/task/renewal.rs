//! Renewals of the lease: their results, and the suspension of the node when the lease runs out.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Local, OwnershipTask, POLL, Renewal, RenewalError, interval, open_issue, refusal, refused_issue, store_error,
};
use crate::node::ownership::moves;
use crate::node::ownership::plan::Plan;
use crate::node::ownership::{MembershipCounts, Validity};
use whizbang_core::clock::instant;
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, Leases, Member, MemberId};
use whizbang_core::telemetry::{TARGET, error_chain};

/// Names of the health issues.
const LEASE: &str = "lease";
const UNOWNED: &str = "shards without owner";
const NO_BRIDGE: &str = "second member without a bridge";

impl OwnershipTask {
    pub(super) fn begin_renewal(&mut self) {
        let begun = instant();
        if self.renewing.is_some() || begun < self.next_renewal {
            return;
        }
        self.renewals += 1;
        let (leases, member, ttl, number) =
            (Arc::clone(&self.leases), self.member(), self.membership.ttl, self.renewals);
        let limit = ttl / 3;
        self.renewing = Some(Box::pin(async move {
            let renewed = match tokio::time::timeout(limit, leases.renew(&member, ttl)).await {
                Ok(renewed) => renewed.map_err(RenewalError::from),
                Err(_) => Err(RenewalError::Timeout(limit)),
            };
            Renewal { number, begun, renewed }
        }));
    }

    pub(super) fn renewal_ended(&mut self, renewal: Renewal) {
        let error = match renewal.renewed {
            Ok(leases) => return self.renewal_succeeded(renewal.number, renewal.begun, leases),
            Err(error) => error,
        };
        MembershipCounts::one(&self.membership.counts.renewals_failed);
        self.failures += 1;
        // Later attempts are further apart, because the store may be overloaded.
        self.next_renewal = instant() + (POLL * self.failures).min(interval(self.membership.ttl));
        self.report_failure(&error);
        self.fail_start(|| store_error(error));
    }

    fn report_failure(&self, error: &RenewalError) {
        let (since, ttl) = (self.renewed.elapsed(), self.membership.ttl);
        if self.failures == 1 {
            tracing::warn!(target: TARGET, error = %error_chain(error), "failed to renew the lease: retrying");
        }
        let reason = format!("lease not renewed since {since:?}: {}", error_chain(error));
        if self.is_suspended() {
            self.issues.raise(LEASE, format!("{reason}. Nothing is served until the store can be reached"));
        } else {
            let end = Validity::end_of(self.renewed, ttl).saturating_duration_since(instant());
            self.issues.note(LEASE, format!("{reason}. Nothing is served after {end:?} more"));
        }
    }

    fn renewal_succeeded(&mut self, number: u64, begun: Instant, leases: Leases) {
        let (now, ttl) = (instant(), self.membership.ttl);
        self.failures = 0;
        self.renewed = begun;
        self.issues.clear_note(LEASE);
        self.close_lost(number, &leases);
        let was_suspended = self.is_suspended() && self.seen.is_some();
        self.serves_until = Some(Validity::end_of(begun, ttl));
        if was_suspended {
            tracing::info!(target: TARGET, member = %self.me(), "lease renewed: serving again");
            self.issues.resolve(LEASE);
            self.is_resuming = true;
            self.receive_all();
        }
        let takers = leases.members.iter().filter(|member| !member.is_draining).map(|member| member.id).collect();
        let joined = self.takers.0 != takers;
        if joined {
            let (members, me) = (leases.members.len(), self.me());
            tracing::info!(target: TARGET, members, member = %me, "members of the service have changed");
            self.takers = (takers, now);
        }
        if self.seen.as_ref().is_none_or(|(_, before)| *before != leases) {
            self.unchanged = now;
        }
        self.check_bridge(&leases);
        let owned = |shard: &ShardId| leases.owner(shard).is_some_and(|owner| owner != self.membership.member.id);
        for shard in self.unopened.extract_if(.., owned) {
            self.issues.clear_note(&open_issue(&shard));
        }
        for (shard, found) in &self.membership.limits.lock().refuses {
            if owned(shard) {
                self.issues.clear_note(&refused_issue(shard));
            } else {
                self.issues.note(&refused_issue(shard), refusal(shard, found));
            }
        }
        self.membership.seen.lock().leases.clone_from(&leases);
        self.seen = Some((number, leases));
        // Shards that were refused or yielded in between are reported at once.
        let is_news = self.membership.limits.lock().is_news;
        self.next_renewal = if is_news { now } else { begun + interval(ttl) };
        self.host.members_changed(joined);
    }

    /// Closes the open shards that have another owner, and adopts the epochs of those that were opened again by their
    /// thread.
    fn close_lost(&mut self, number: u64, leases: &Leases) {
        let me = self.me();
        let known: BTreeMap<&ShardId, (Option<MemberId>, Epoch)> =
            leases.shards.iter().map(|lease| (&lease.shard, (lease.owner, lease.epoch))).collect();
        let open = self.local.iter().filter_map(|(shard, local)| match local {
            Local::Open { epoch, since } if *since < number => Some((shard.clone(), *epoch)),
            _ => None,
        });
        for (shard, epoch) in open.collect::<Vec<_>>() {
            match known.get(&shard) {
                Some((Some(owner), now)) if *owner == me => {
                    if *now > epoch {
                        self.local.insert(shard.clone(), Local::Open { epoch: *now, since: self.renewals });
                        self.receive(shard, *now);
                    }
                }
                other => {
                    let owner = other.and_then(|(owner, _)| *owner).map(|owner| owner.to_string());
                    tracing::warn!(target: TARGET, %shard, epoch, owner, "shard taken over by another node: closing it");
                    self.lose(shard);
                }
            }
        }
    }

    /// The lease may have run out: stops receiving. Turns and queries are refused by the validity itself.
    pub(super) fn suspend(&mut self) {
        self.serves_until = None;
        let since = self.renewed.elapsed();
        tracing::error!(
            target: TARGET, member = %self.me(), ?since, "lease not renewed in time: serving nothing until it is renewed",
        );
        self.issues.clear_note(LEASE);
        let reason = format!("lease not renewed since {since:?}. Nothing is served until the store can be reached");
        self.issues.raise(LEASE, reason);
        for shard in self.open_epochs().into_keys() {
            self.forget_silent(&shard);
            self.moves.push(moves::stop_receiving(&self.host, shard));
        }
    }

    pub(super) fn check_unowned(&mut self, leases: &Leases, plan: &Plan) {
        if plan.unowned == 0 {
            self.unowned = None;
            self.issues.clear_note(UNOWNED);
            return;
        }
        let since = self.unowned.get_or_insert_with(instant).elapsed();
        if since > self.membership.ttl {
            let members = leases.members.len();
            let reason = format!(
                "{} shards have no owner since {since:?}, with {members} members: messages to them wait. See the health and \
                 the logs of the other nodes",
                plan.unowned,
            );
            if self.issues.note(UNOWNED, reason) {
                tracing::warn!(target: TARGET, shards = plan.unowned, ?since, "shards have no owner");
            }
        }
    }

    fn check_bridge(&self, leases: &Leases) {
        let other = leases.members.iter().find(|member| member.id != self.me()).filter(|_| !self.has_bridge);
        let Some(other) = other else {
            self.issues.resolve(NO_BRIDGE);
            return;
        };
        let reason = format!(
            "node `{}` shares the store of this service, and this node has no bridge: messages for the shards of the other node \
             stay in the outbox. Start all nodes of the service with a bridge",
            other.label
        );
        if self.issues.raise(NO_BRIDGE, reason) {
            tracing::error!(target: TARGET, other = other.label, "second node of the service, and no bridge");
        }
    }

    fn member(&self) -> Member {
        let mut limits = self.membership.limits.lock();
        limits.is_news = false;
        let member =
            self.membership.member.clone().limited(limits.refuses.keys().cloned().collect(), limits.yields.clone());
        drop(limits);
        if self.membership.is_stopping() { member.draining() } else { member }
    }
}
