//! The ownership task: renews the lease of this node and moves shards as the plan says.
//!
//! Started by the builder, on a thread of its own if the node has threads: a busy actor must not cost the node its
//! shards. One loop owns all state. Renewals and moves run as futures beside it, so that none waits for another.
//!
//! Every view of the leases belongs to a renewal, and renewals are counted. An opening or closing that ended after a
//! renewal began is not contradicted by the view of that renewal: the view may be older.

mod leaving;
mod receiving;
mod renewal;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, pending};
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::cluster::ShardMove;
use super::host::{Opening, ShardHost};
use super::moves::{self, Move, Moved};
use super::plan::{Plan, plan};
use super::{Membership, MembershipCounts};
use crate::inbox::HealthIssues;
use whizbang_core::clock::instant;
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, Leases, MemberId, ShardLeases, StoreError};
use whizbang_core::telemetry::{TARGET, error_chain};

/// Most shards that all members hand over at the same time: a join delays the callers of few keys at once.
const HAND_OVERS: usize = 4;
/// Most shards that this node opens at the same time. Shards without an owner serve nothing, so this is only a bound.
const OPENINGS: usize = 16;
/// Interval of the renewals while this node waits for a shard of another member, or another one for its shards.
const POLL: Duration = Duration::from_millis(100);
/// Longest wait for the store when the node leaves.
const LEAVE: Duration = Duration::from_secs(2);

/// Returns the interval of the renewals. A third of the lease leaves two more attempts; a tenth notices the end of another
/// member's lease soon. At least a second, and at most two: a member that leaves waits for one interval.
pub(super) fn interval(ttl: Duration) -> Duration {
    (ttl / 3).min((ttl / 10).clamp(Duration::from_secs(1), Duration::from_secs(2)))
}

/// Returns the time for which the members must stay the same before shards are handed over, so that a rolling restart
/// does not move every shard at every step.
fn settling(ttl: Duration) -> Duration {
    ttl / 4
}

/// A shard that this node has opened, or is opening or closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    Opening,
    /// Open, since that many renewals had begun.
    Open {
        epoch: Epoch,
        since: u64,
    },
    HandingOver,
    Dropping,
    /// Closed, or not opened, since that many renewals had begun.
    Closed {
        since: u64,
    },
}

/// A finished renewal.
struct Renewal {
    number: u64,
    begun: Instant,
    renewed: Result<Leases, RenewalError>,
}

/// Reason why a lease was not renewed.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("no answer from the store in {0:?}")]
    Timeout(Duration),
}

/// The announced leave of this member.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    /// The time at which the announcement was known to be in the store.
    announced: Instant,
    /// The number of shards that the member had.
    held: usize,
}

/// The state of the task.
pub(in crate::node) struct OwnershipTask {
    membership: Arc<Membership>,
    leases: Arc<dyn ShardLeases>,
    host: Arc<dyn ShardHost>,
    issues: Arc<HealthIssues>,
    /// All shards of the service.
    shards: Vec<ShardId>,
    has_bridge: bool,
    local: BTreeMap<ShardId, Local>,
    moves: FuturesUnordered<Move>,
    renewing: Option<BoxFuture<'static, Renewal>>,
    /// The number of renewals that have begun.
    renewals: u64,
    next_renewal: Instant,
    /// The last view, with the number of its renewal.
    seen: Option<(u64, Leases)>,
    /// The members that take shards, and since when they are the same.
    takers: (Vec<MemberId>, Instant),
    /// Since when the leases are the same.
    unchanged: Instant,
    renewed: Instant,
    failures: u32,
    /// The end of serving, unless the lease has run out.
    serves_until: Option<Instant>,
    /// Shards for which receiving has not begun yet, with the number of attempts.
    silent: BTreeMap<ShardId, u32>,
    /// Since when shards have no owner.
    unowned: Option<Instant>,
    first: Option<oneshot::Sender<Result<(), StoreError>>>,
    start_failed: bool,
    /// The lease had run out, and shards that were taken are still being closed.
    is_resuming: bool,
    /// Shards that could not be opened.
    unopened: BTreeSet<ShardId>,
    /// The leave of this member, once a renewal has announced it.
    leaving: Option<Leaving>,
}

impl OwnershipTask {
    /// Creates the task. `first` is notified after the first round: every free shard that the plan gives to this node
    /// is open then.
    pub(in crate::node) fn new(
        membership: Arc<Membership>,
        leases: Arc<dyn ShardLeases>,
        host: Arc<dyn ShardHost>,
        issues: Arc<HealthIssues>,
        shards: Vec<ShardId>,
        has_bridge: bool,
        first: oneshot::Sender<Result<(), StoreError>>,
    ) -> Self {
        let now = instant();
        Self {
            membership,
            leases,
            host,
            issues,
            shards,
            has_bridge,
            local: BTreeMap::new(),
            moves: FuturesUnordered::new(),
            renewing: None,
            renewals: 0,
            next_renewal: now,
            seen: None,
            takers: (Vec::new(), now),
            unchanged: now,
            renewed: now,
            failures: 0,
            serves_until: None,
            silent: BTreeMap::new(),
            unowned: None,
            first: Some(first),
            start_failed: false,
            is_resuming: false,
            unopened: BTreeSet::new(),
            leaving: None,
        }
    }

    /// Runs until the node has left, has ended itself, or was dropped.
    pub(in crate::node) async fn run(mut self, mut dropped: oneshot::Receiver<()>) {
        while self.host.is_live() && !self.has_left() && !self.start_failed {
            self.begin_renewal();
            tokio::select! {
                biased;
                _ = &mut dropped => return,
                Some(moved) = self.moves.next() => self.moved(moved),
                renewal = awaited(&mut self.renewing) => {
                    self.renewing = None;
                    self.renewal_ended(renewal);
                }
                () = until(self.next_renewal), if self.renewing.is_none() => {}
                () = ends(self.serves_until) => self.suspend(),
                () = self.membership.wake.notified() => self.take_reports(),
            }
            self.act();
            self.report();
        }
        self.leave().await;
    }

    fn me(&self) -> MemberId {
        self.membership.member.id
    }

    fn is_suspended(&self) -> bool {
        self.serves_until.is_none()
    }

    /// Ends the start of the node, which returns the error.
    fn fail_start(&mut self, error: impl FnOnce() -> StoreError) {
        if let Some(first) = self.first.take() {
            self.start_failed = true;
            drop(first.send(Err(error())));
        }
    }

    fn lose(&mut self, shard: ShardId) {
        MembershipCounts::one(&self.membership.counts.lost);
        self.forget_silent(&shard);
        self.local.insert(shard.clone(), Local::Dropping);
        self.moves.push(moves::drop_lost(&self.host, shard));
    }

    /// Takes the reports of the threads: shards that were fenced are closed there already.
    fn take_reports(&mut self) {
        let reports = std::mem::take(&mut *self.membership.lost.lock());
        for (shard, lost) in reports {
            if matches!(self.local.get(&shard), Some(Local::Open { epoch, .. }) if *epoch <= lost) {
                self.lose(shard);
                self.next_renewal = instant();
            }
        }
        if self.membership.limits.lock().is_news {
            self.next_renewal = instant();
        }
        if self.membership.is_stopping() && self.seen.as_ref().is_some_and(|(_, seen)| !self.is_draining_in(seen)) {
            // A renewal now lets the other members take the shards without waiting for the next one.
            self.next_renewal = instant();
        }
    }

    fn is_draining_in(&self, leases: &Leases) -> bool {
        leases.members.iter().any(|member| member.id == self.me() && member.is_draining)
    }

    fn open_epochs(&self) -> BTreeMap<ShardId, Epoch> {
        let open = self.local.iter().filter_map(|(shard, local)| match local {
            Local::Open { epoch, .. } => Some((shard.clone(), *epoch)),
            _ => None,
        });
        open.collect()
    }

    fn moved(&mut self, moved: Moved) {
        let closed = Local::Closed { since: self.renewals };
        match moved {
            Moved::Opened(shard, Ok(Opening::Open(epoch))) => {
                MembershipCounts::one(&self.membership.counts.opened);
                if self.unopened.remove(&shard) {
                    self.issues.clear_note(&open_issue(&shard));
                }
                self.local.insert(shard.clone(), Local::Open { epoch, since: self.renewals });
                if !self.is_suspended() {
                    self.receive(shard, epoch);
                }
            }
            Moved::Opened(shard, Ok(Opening::Taken)) => drop(self.local.insert(shard, closed)),
            Moved::Opened(shard, Ok(Opening::Unknown(found))) => {
                self.refuse(&shard, &found);
                self.local.insert(shard, closed);
            }
            Moved::Opened(shard, Err(error)) => {
                tracing::warn!(target: TARGET, %shard, error = %error_chain(&error), "failed to open the shard: retrying");
                self.issues
                    .note(&open_issue(&shard), format!("shard {shard} cannot be opened: {}", error_chain(&error)));
                self.unopened.insert(shard.clone());
                self.local.insert(shard, closed);
                if !error.is_transient() {
                    // A node does not start on a damaged store.
                    self.fail_start(|| error);
                }
            }
            Moved::HandedOver(shard) => {
                tracing::info!(target: TARGET, %shard, "shard handed over");
                MembershipCounts::one(&self.membership.counts.handed_over);
                self.local.insert(shard, closed);
            }
            Moved::Dropped(shard) => drop(self.local.insert(shard, closed)),
            Moved::Receiving(shard, epoch, received) => self.receiving(shard, epoch, received),
            Moved::ReceiveDue(shard, epoch) => {
                if self.is_open_at(&shard, epoch) && self.silent.contains_key(&shard) {
                    self.moves.push(moves::receive(&self.host, shard, epoch));
                }
            }
            Moved::Silenced => {}
        }
    }

    /// Leaves a shard to members whose program knows the type `found` in its log.
    fn refuse(&mut self, shard: &ShardId, found: &str) {
        self.membership.refuse(shard, found);
        // The other members learn of it from the next renewal.
        self.next_renewal = instant();
        if self.issues.note(&refused_issue(shard), refusal(shard, found)) {
            tracing::warn!(target: TARGET, %shard, found, "unknown type in the log: leaving the shard to other nodes");
        }
    }

    fn is_open_at(&self, shard: &ShardId, epoch: Epoch) -> bool {
        matches!(self.local.get(shard), Some(Local::Open { epoch: now, .. }) if *now == epoch)
    }

    /// Begins the moves of the plan.
    fn act(&mut self) {
        self.is_resuming &= self.is_dropping();
        self.membership.validity.set(self.serves_until.filter(|_| !self.is_resuming));
        let Some((number, leases)) = self.seen.take() else { return };
        if self.membership.is_stopping() {
            self.leave_shards(number, &leases);
        } else if !self.is_suspended() {
            let plan = plan(&leases, &self.shards, self.me(), HAND_OVERS);
            self.begin_opening(number, &leases, &plan);
            self.begin_hand_overs(number, &plan);
            self.hurry(&plan, &leases);
            self.check_unowned(&leases, &plan);
            self.finish_first_round(number, &plan);
        }
        self.seen = Some((number, leases));
    }

    /// Returns whether shards are being closed that another member has taken.
    fn is_dropping(&self) -> bool {
        self.local.values().any(|local| *local == Local::Dropping)
    }

    fn begin_opening(&mut self, number: u64, leases: &Leases, plan: &Plan) {
        let me = self.me();
        // Shards whose opening was begun and not finished belong to this member as well.
        let mine = leases.shards.iter().filter(|lease| lease.owner == Some(me)).map(|lease| &lease.shard);
        let opening = self.local.values().filter(|local| **local == Local::Opening).count();
        let wanted: BTreeSet<&ShardId> =
            plan.open.iter().chain(mine).filter(|shard| self.may_open(shard, number)).collect();
        let wanted: Vec<ShardId> = wanted.into_iter().take(OPENINGS.saturating_sub(opening)).cloned().collect();
        for shard in wanted {
            self.local.insert(shard.clone(), Local::Opening);
            self.moves.push(moves::open(&self.host, shard));
        }
    }

    /// Returns whether nothing is known of the shard that is newer than the view of the renewal `number`.
    fn may_open(&self, shard: &ShardId, number: u64) -> bool {
        match self.local.get(shard) {
            None => true,
            Some(Local::Closed { since }) => *since < number,
            Some(_) => false,
        }
    }

    fn begin_hand_overs(&mut self, number: u64, plan: &Plan) {
        let is_settled = self.takers.1.elapsed() >= settling(self.membership.ttl);
        for shard in plan.give_soon.iter().chain(plan.give.iter().filter(|_| is_settled)) {
            if let Some(Local::Open { epoch, since }) = self.local.get(shard).copied()
                && since < number
            {
                self.hand_over(shard.clone(), epoch);
            }
        }
    }

    fn hand_over(&mut self, shard: ShardId, epoch: Epoch) {
        self.forget_silent(&shard);
        self.local.insert(shard.clone(), Local::HandingOver);
        self.moves.push(moves::hand_over(&self.host, &self.leases, self.me(), shard, epoch));
    }

    /// Renews soon while shards move to or from this member, but not for longer than a lease without any change.
    fn hurry(&mut self, plan: &Plan, leases: &Leases) {
        let is_moving = plan.expected > 0 || plan.surplus > 0 || !plan.open.is_empty();
        if is_moving && self.failures == 0 && self.unchanged.elapsed() < self.membership.ttl {
            self.next_renewal = self.next_renewal.min(self.renewed + POLL);
        }
        self.follow_leaving(leases);
    }

    fn finish_first_round(&mut self, number: u64, plan: &Plan) {
        let is_opening = self.local.values().any(|local| *local == Local::Opening);
        // A start of receiving that has failed once is repeated in the background and does not delay the node.
        let is_silent = self.silent.values().any(|attempts| *attempts == 0);
        let is_left = plan.open.iter().any(|shard| self.may_open(shard, number));
        if !is_opening
            && !is_silent
            && !is_left
            && let Some(first) = self.first.take()
        {
            // The node's first reader finds what is open.
            self.report();
            drop(first.send(Ok(())));
        }
    }

    /// Publishes the state for [`Node::cluster`](crate::node::Node::cluster). Costs the number of local shards.
    fn report(&self) {
        let moving = |(shard, local): (&ShardId, &Local)| {
            let moving = match local {
                Local::Opening => ShardMove::Opening,
                Local::HandingOver => ShardMove::HandingOver,
                Local::Dropping => ShardMove::Closing,
                Local::Open { .. } | Local::Closed { .. } => return None,
            };
            Some((shard.clone(), moving))
        };
        let mut seen = self.membership.seen.lock();
        seen.moves = self.local.iter().filter_map(moving).collect();
        seen.open = self.open_epochs();
        seen.renewed = self.seen.is_some().then_some(self.renewed);
    }

    /// Returns whether the node stops and nothing is open or moving.
    fn has_left(&self) -> bool {
        let is_closed = |local: &Local| matches!(local, Local::Closed { .. });
        self.membership.is_stopping() && self.local.values().all(is_closed)
    }

    /// Releases the lease. Shards that are still open are closed with the node.
    async fn leave(mut self) {
        self.membership.validity.set(None);
        self.local.clear();
        self.report();
        match tokio::time::timeout(LEAVE, self.leases.leave(self.me())).await {
            Ok(Ok(())) => tracing::info!(target: TARGET, member = %self.me(), "left the service"),
            Ok(Err(error)) => {
                tracing::warn!(target: TARGET, error = %error_chain(&error), "failed to leave the service: the lease runs out");
            }
            Err(_) => tracing::warn!(target: TARGET, "failed to leave the service in time: the lease runs out"),
        }
    }
}

/// Also after a panic: nothing is served without the renewals.
impl Drop for OwnershipTask {
    fn drop(&mut self) {
        self.membership.end();
    }
}

fn open_issue(shard: &ShardId) -> String {
    format!("open {shard}")
}

fn refused_issue(shard: &ShardId) -> String {
    format!("refused {shard}")
}

fn refusal(shard: &ShardId, found: &str) -> String {
    format!(
        "shard {shard} is not taken: its log contains {found}, which this program does not know. A node with the program that \
         wrote it takes the shard"
    )
}

fn store_error(error: RenewalError) -> StoreError {
    match error {
        RenewalError::Store(error) => error,
        error @ RenewalError::Timeout(_) => {
            StoreError::io("renewing the lease", std::io::Error::other(error.to_string()))
        }
    }
}

async fn awaited(renewing: &mut Option<BoxFuture<'static, Renewal>>) -> Renewal {
    match renewing {
        Some(renewing) => renewing.await,
        None => pending().await,
    }
}

async fn until(at: Instant) {
    tokio::time::sleep_until(at).await;
}

async fn ends(at: Option<Instant>) {
    match at {
        Some(at) => until(at).await,
        None => pending().await,
    }
}
