//! The commits that a thread waits for: callbacks that run once an append is durable, or has failed.
//!
//! Called by everything that appends. The store reports commits on its own thread to the
//! [`CommitNotifier`](super::CommitNotifier); the callbacks run on the thread of the shard.
//!
//! Why a ticket alone decides nothing: all shards of a thread share one sequence of tickets, and a ticket is reported
//! as durable although the shard that it was issued for is fenced. The store reports the fence first. So every look at
//! the tickets is followed by a look at the fences, and an append of a fenced shard never counts as committed.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use super::owned_shard::OwnedShard;
use super::pending_commits::PendingCommit;
use super::thread::ThreadContext;
use whizbang_core::store::{Appended, StoreError, Ticket};

/// A failure of commits that the store has reported.
#[derive(Debug)]
pub(crate) enum CommitFailure {
    /// These shards belong to other owners. All others continue.
    Fenced(Vec<StoreError>),
    /// No shard of the thread commits until it is reopened. All pending callbacks were called with the error.
    Failed(StoreError),
}

impl ThreadContext {
    /// Returns whether an append is durable already.
    pub(crate) fn is_committed(appended: &Appended) -> bool {
        appended.committed
    }

    /// Calls `then` once the append is durable: immediately if it is.
    pub(crate) fn after_commit(
        &self,
        shard: &Rc<OwnedShard>,
        appended: Appended,
        then: impl FnOnce(Result<(), StoreError>) + 'static,
    ) {
        if Self::is_committed(&appended) {
            self.report_commit();
            then(Ok(()));
        } else {
            self.after_ticket(shard, appended.ticket, then);
        }
    }

    /// Calls `then` once everything that was appended to `shard` up to `ticket` is durable.
    pub(crate) fn after_ticket(
        &self,
        shard: &Rc<OwnedShard>,
        ticket: Ticket,
        then: impl FnOnce(Result<(), StoreError>) + 'static,
    ) {
        let (through, _) = self.commits.committed_so_far();
        self.see_fences();
        if shard.is_lost() {
            then(Err(StoreError::Closed));
        } else if ticket <= through {
            then(Ok(()));
        } else {
            shard.pending_commits.set(shard.pending_commits.get() + 1);
            let pending = PendingCommit { ticket, shard: Rc::clone(shard), release: Box::new(then) };
            self.pending_commits.queue.borrow_mut().push_back(pending);
        }
    }

    /// Runs the callbacks of commits as the store reports them, until commits fail.
    pub(crate) async fn complete_commits(&self) -> CommitFailure {
        loop {
            self.commits.changed.notified().await;
            let (through, failed) = self.commits.committed_so_far();
            self.complete_through(through);
            if let Some(failed) = failed {
                self.fail_pending_commits(&failed.error);
                return CommitFailure::Failed(failed.error);
            }
            let fences = std::mem::take(&mut *self.pending_commits.fences.borrow_mut());
            if !fences.is_empty() {
                return CommitFailure::Fenced(fences);
            }
        }
    }

    /// Takes the failure that is not handled yet, and fails every commit that it leaves open. Called before the shards are reopened:
    /// the tickets of a reopened shard are higher, so that its next commit would seem to cover the open ones.
    pub(crate) fn abandon_pending_commits(&self) {
        let (through, _) = self.commits.committed_so_far();
        self.complete_through(through);
        let failed = self.commits.take_failure();
        self.fail_pending_commits(&failed.map_or(StoreError::Closed, |failed| failed.error));
    }

    /// Fails every pending commit: its record may or may not have been written.
    pub(crate) fn fail_pending_commits(&self, error: &StoreError) {
        self.generation.set(self.generation.get() + 1);
        for shard in self.shards.borrow().values() {
            shard.generation.set(shard.generation.get() + 1);
        }
        let lost = std::mem::take(&mut *self.pending_commits.queue.borrow_mut());
        for pending in lost {
            pending.complete(Err(error.clone()));
        }
    }

    /// Fails the pending commits of one shard.
    pub(crate) fn fail_commits_of(&self, shard: &Rc<OwnedShard>, error: &StoreError) {
        let (lost, left) = {
            let mut queue = self.pending_commits.queue.borrow_mut();
            std::mem::take(&mut *queue).into_iter().partition(|pending| Rc::ptr_eq(&pending.shard, shard))
        };
        let lost: VecDeque<PendingCommit> = lost;
        *self.pending_commits.queue.borrow_mut() = left;
        for pending in lost {
            pending.complete(Err(error.clone()));
        }
    }

    /// Marks the shards whose fence was reported as lost.
    ///
    /// Called after a look at the committed tickets: the store reports a fence before it covers the fenced tickets.
    pub(super) fn see_fences(&self) {
        let reported = self.commits.fences.load(Ordering::Acquire);
        if reported == self.pending_commits.fences_seen.replace(reported) {
            return;
        }
        for error in std::mem::take(&mut *self.commits.fenced.lock()) {
            let StoreError::Fenced { shard, mine, .. } = &error else { continue };
            let shards = self.shards.borrow();
            match shards.get(shard) {
                // A fence of an earlier opening. One that is being reopened is replaced by this node itself, and the
                // result of that shows whether it has another owner.
                Some(opened) if opened.epoch() > *mine || opened.is_reopening() => continue,
                Some(opened) => opened.lose(),
                None => {}
            }
            drop(shards);
            self.pending_commits.fences.borrow_mut().push(error);
        }
    }

    /// Runs the callbacks of commits up to a ticket.
    fn complete_through(&self, through: Ticket) {
        self.see_fences();
        loop {
            // One at a time and outside the borrow: a callback may append and re-enter this function.
            let next = {
                let mut waiting = self.pending_commits.queue.borrow_mut();
                match waiting.front() {
                    Some(pending) if pending.ticket <= through => waiting.pop_front(),
                    _ => None,
                }
            };
            let Some(pending) = next else { break };
            if pending.shard.is_lost() {
                pending.complete(Err(StoreError::Closed));
                continue;
            }
            self.report_commit();
            let shard = pending.complete(Ok(()));
            if shard.is_leaving() && shard.is_drained() {
                self.idle.notify();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures_util::FutureExt as _;

    use super::super::tests::{broken, context, open};
    use super::*;
    use whizbang_core::store::CommitListener as _;

    type Reports = Rc<RefCell<Vec<(&'static str, Result<(), String>)>>>;

    fn fence(shard: &OwnedShard) -> StoreError {
        StoreError::Fenced { shard: shard.id.clone(), mine: shard.epoch(), current: shard.epoch() + 1 }
    }

    fn watch(context: &Rc<ThreadContext>, shard: &Rc<OwnedShard>, ticket: Ticket, name: &'static str, to: &Reports) {
        let to = Rc::clone(to);
        context.after_ticket(shard, ticket, move |result| {
            to.borrow_mut().push((name, result.map_err(|error| error.to_string())));
        });
    }

    #[test]
    fn fenced_commit_is_not_reported_as_committed() {
        let context = context();
        let (lost, kept) = (open(&context, 0), open(&context, 1));
        let reports = Reports::default();
        watch(&context, &lost, 1, "lost", &reports);
        watch(&context, &kept, 2, "kept", &reports);
        // As a store reports it: the fence, then all tickets of the group.
        context.commits.failed(fence(&lost));
        context.commits.committed(2);
        // Also without waiting for the notification.
        watch(&context, &lost, 1, "lost later", &reports);
        watch(&context, &kept, 2, "kept later", &reports);
        let Some(CommitFailure::Fenced(fences)) = context.complete_commits().now_or_never() else { panic!("no fence") };
        assert_eq!(fences.len(), 1);
        let all: std::collections::BTreeMap<_, _> =
            reports.borrow().iter().map(|(name, result)| (*name, result.is_ok())).collect();
        assert_eq!(all, [("lost", false), ("kept", true), ("lost later", false), ("kept later", true)].into());
    }

    #[test]
    fn fenced_shard_fails_alone() {
        let context = context();
        let (lost, kept) = (open(&context, 0), open(&context, 1));
        let reports = Reports::default();
        watch(&context, &kept, 1, "kept", &reports);
        watch(&context, &lost, 2, "lost", &reports);
        watch(&context, &kept, 3, "kept too", &reports);
        context.fail_commits_of(&lost, &fence(&lost));
        assert_eq!(reports.borrow().len(), 1, "{reports:?}");
        assert!((lost.is_drained(), kept.is_drained()) == (true, false));
        context.commits.committed(3);
        assert!(context.complete_commits().now_or_never().is_none());
        let names: Vec<_> = reports.borrow().iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["lost", "kept", "kept too"]);
        assert!(kept.is_drained() && reports.borrow().iter().filter(|(_, result)| result.is_ok()).count() == 2);
    }

    #[test]
    fn commit_after_a_failure_covers_no_lost_append() {
        let context = context();
        let (one, other) = (open(&context, 0), open(&context, 1));
        let reports = Reports::default();
        watch(&context, &one, 1, "kept", &reports);
        watch(&context, &one, 2, "lost", &reports);
        context.commits.committed(1);
        context.commits.failed(broken());
        // Of the other shard, which was reopened after the failure.
        context.commits.committed(3);
        watch(&context, &one, 2, "lost, asked for later", &reports);
        let Some(CommitFailure::Failed(_)) = context.complete_commits().now_or_never() else { panic!("no failure") };
        // The shards are reopened, and the store fails once more.
        context.abandon_pending_commits();
        watch(&context, &one, 4, "lost again", &reports);
        context.commits.failed(broken());
        context.abandon_pending_commits();
        watch(&context, &other, 5, "kept after it", &reports);
        context.commits.committed(5);
        assert!(context.complete_commits().now_or_never().is_none());
        let all: Vec<_> = reports.borrow().iter().map(|(name, result)| (*name, result.is_ok())).collect();
        let lost = [("lost", false), ("lost, asked for later", false), ("lost again", false)];
        assert_eq!(all, [&[("kept", true)], &lost[..], &[("kept after it", true)]].concat());
    }

    #[test]
    fn panic_loses_no_commit_unless_the_store_fails_as_well() {
        for fails in [false, true] {
            let context = context();
            let shard = open(&context, 0);
            let reports = Reports::default();
            context.commits.panicked(broken());
            watch(&context, &shard, 1, "appended while the shards wait", &reports);
            if fails {
                context.commits.failed(broken());
            }
            context.commits.committed(1);
            context.abandon_pending_commits();
            assert_eq!(reports.borrow()[0].1.is_ok(), !fails);
        }
    }

    #[test]
    fn fence_of_an_earlier_opening_is_ignored() {
        let context = context();
        let shard = open(&context, 0);
        let error = StoreError::Fenced { shard: shard.id.clone(), mine: shard.epoch() - 1, current: shard.epoch() };
        context.commits.failed(error);
        assert!(context.complete_commits().now_or_never().is_none());
        assert!(shard.is_open());
    }
}
