//! Shards that are opened and closed while the node runs, and their recovery after failed commits.
//!
//! Called when the node starts, by the owner of the node's leases, and when a commit of a shard is fenced. Works on the
//! thread of the shard.
//!
//! The order of closing matters: a caller that waits for a commit must receive "outcome unknown" before any other part
//! answers that nothing was done. So pending commits fail first; then actors, jobs and windows are discarded.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::actor::{CommitNotifier, OwnedShard};
use crate::node::relay::republish;
use crate::node::thread::ThreadRuntime;
use crate::node::thread::Threads;
use crate::relay::SendWindows;
use whizbang_core::message::ShardId;
use whizbang_core::store::{CommitListener, ShardHandle, Source, SourceKind, StoreError, Watermark};
use whizbang_core::telemetry::{TARGET, error_chain};

/// Longest wait for the turns and jobs of a shard that is handed over. Unfinished ones are handled again by the
/// next owner.
const HAND_OVER: Duration = Duration::from_secs(10);

/// Longest wait for the broker to accept the events of a shard that is handed over. The next owner asks the broker for its last
/// event and publishes the rest, so callers need not wait longer for a broker that hangs.
const PUBLISHING: Duration = Duration::from_secs(1);

/// Reason for closing a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum Closing {
    /// The shard moves to another node as planned: what was accepted is finished first.
    HandOver,
    /// Another node owns the shard, or may own it: nothing more is committed.
    Lost,
}

impl ThreadRuntime {
    /// Installs an opened shard in everything that works for it. Its deferred messages are not loaded yet.
    pub(in crate::node) fn install(&self, id: ShardId, handle: ShardHandle) -> Rc<OwnedShard> {
        let relays = self.definition.bridge.is_some() || self.definition.sources.contains_key(&id.domain);
        let shard = OwnedShard::new(id.clone(), handle, relays);
        shard.watched_by(self.definition.watches.flag());
        self.context.shards.borrow_mut().insert(id.clone(), Rc::clone(&shard));
        self.context.openings.set(self.context.openings.get() + 1);
        let windows = SendWindows::new(Arc::clone(&self.context.counts));
        self.send_windows.borrow_mut().insert(id.clone(), windows);
        self.definition.readers.insert(id.clone(), shard.reader());
        self.for_endpoints(&id, |endpoint| endpoint.open_shard(id.shard));
        shard
    }

    fn for_endpoints(&self, id: &ShardId, action: impl Fn(&dyn crate::router::ActorEndpoint)) {
        let of_domain = self.endpoints.iter().filter(|((domain, _), _)| *domain == id.domain);
        of_domain.for_each(|(_, endpoint)| action(&**endpoint));
    }

    /// Opens a shard that the store has leased to this node: its keys are served from now on. `failures` is the number of
    /// [failures](crate::actor::CommitNotifier::failures) before the store opened it.
    ///
    /// # Errors
    /// A transient one if commits have failed since then: such a handle refuses every append, and [`recover`](Self::recover) may
    /// have missed it. The errors of reading the shard, which is closed then.
    pub(in crate::node) async fn open_shard(
        self: &Rc<Self>,
        id: ShardId,
        handle: ShardHandle,
        failures: u64,
    ) -> Result<(), StoreError> {
        if self.has_ended.get() || self.context.stopped.get() {
            return Err(StoreError::Closed);
        }
        // Without a wait between this look and the entry in the list of shards, which the next recovery reads.
        if self.context.commits.failures() != failures {
            return Err(StoreError::io("opening the shard", std::io::Error::other("commits have failed in between")));
        }
        if self.end_if_shorter_log(&id, handle.reader.position()) {
            return Err(StoreError::Closed);
        }
        if let Some(earlier) = self.shard(&id) {
            self.drop_shard(&earlier, &StoreError::Closed);
        }
        let shard = self.install(id, handle);
        if let Err(error) = self.load_deferred_of(&shard.id).await {
            if self.is_current(&shard) {
                self.drop_shard(&shard, &error);
            }
            return Err(error);
        }
        if !self.is_current(&shard) {
            return Err(StoreError::Closed);
        }
        self.begin(&shard);
        Ok(())
    }

    /// Begins to serve an installed shard.
    fn begin(self: &Rc<Self>, shard: &Rc<OwnedShard>) {
        self.remind_senders(shard);
        republish::start_publishing(self, shard);
        // Before anything new: messages recorded in the log for a key are older.
        self.deliver_deferred(&shard.id);
        let known = shard.reader().watermarks();
        let watermark = |source: &Source| {
            known.iter().find(|mark| mark.source == *source).map_or(0, |Watermark { through, .. }| *through)
        };
        for subscription in self.groups.iter().flat_map(|group| group.subscriptions.values()) {
            subscription.open_shard(&shard.id, &watermark);
        }
        self.definition.open_shards.set(&shard.id, true);
        self.announce_move(&shard.id);
        self.context.mark_dirty(shard);
        self.context.timers.notify_one();
        self.start_singletons(shard);
        tracing::info!(target: TARGET, shard = %shard.id, epoch = shard.epoch(), "shard opened");
    }

    /// Reminds peers that have sent to the shard how far it has committed.
    pub(in crate::node) fn remind_senders(&self, shard: &Rc<OwnedShard>) {
        for mark in shard.reader().watermarks() {
            let is_remote = self.definition.bridge.is_some() && !self.is_local(&mark.source.shard);
            if is_remote && mark.source.kind == SourceKind::Direct {
                self.confirmations.borrow_mut().insert((mark.source.shard, shard.id.clone()), mark.through);
                self.publisher.notify();
            }
        }
    }

    /// Makes every thread send what it has for a shard on its new way, local or over the bridge.
    fn announce_move(&self, id: &ShardId) {
        let moved = id.clone();
        self.threads.run_all(move |runtime| runtime.reroute(&moved));
    }

    /// Sends again, on the present way, what may have been under way to a shard that was opened or closed here, and
    /// reads what its log may have gained.
    pub(in crate::node) fn reroute(&self, to: &ShardId) {
        for (from, windows) in self.all_windows() {
            if windows.reroute(to)
                && let Some(shard) = self.shard(&from)
            {
                self.context.mark_dirty(&shard);
            }
        }
        for subscription in self.subscriptions.get(to).into_iter().flatten() {
            subscription.start_filling();
        }
    }

    /// Closes a shard. Returns once nothing of it is left on this thread; it can then be released.
    pub(in crate::node) async fn close_shard(self: &Rc<Self>, id: &ShardId, closing: Closing) {
        let Some(shard) = self.shard(id) else { return };
        if closing == Closing::HandOver {
            self.hand_over(&shard).await;
        }
        // It may have been lost while it was handed over.
        if self.is_current(&shard) {
            self.drop_shard(&shard, &StoreError::Closed);
            tracing::info!(target: TARGET, shard = %id, ?closing, "shard closed");
        }
    }

    /// Closes a shard that another node has taken over. The other shards are not affected.
    pub(in crate::node) fn lose_fenced(self: &Rc<Self>, error: &StoreError) {
        let StoreError::Fenced { shard: id, mine, .. } = error else { return };
        let Some(shard) = self.shard(id).filter(|shard| shard.epoch() <= *mine) else { return };
        tracing::warn!(
            target: TARGET, shard = %id, error = %error_chain(error),
            "shard taken over by another node: closed here",
        );
        self.drop_shard(&shard, error);
        self.report_lost(&shard);
    }

    /// Reports to the owner of the node's leases that a shard was lost.
    fn report_lost(&self, shard: &OwnedShard) {
        if let Some(membership) = &self.definition.membership {
            membership.report_lost(&shard.id, shard.epoch());
        }
    }

    /// Refuses new messages for a shard, waits until everything that was accepted is committed, and stores its
    /// watermarks.
    async fn hand_over(self: &Rc<Self>, shard: &Rc<OwnedShard>) {
        shard.begin_moving();
        self.definition.open_shards.set(&shard.id, false);
        self.announce_move(&shard.id);
        self.context.drain_started.notify_waiters();
        for window in self.receive_windows.borrow().values().filter(|window| window.to == shard.id) {
            window.release_held();
        }
        let drained = async {
            self.context.idle.wait_until(|| shard.is_lost() || shard.is_drained()).await;
            self.store_watermarks(1);
            if let Some(last) = shard.last_watermark.get() {
                let (tell, told) = oneshot::channel::<()>();
                self.context.after_ticket(shard, last, |_| drop(tell));
                drop(told.await);
            }
        };
        if tokio::time::timeout(HAND_OVER, drained).await.is_err() {
            tracing::warn!(target: TARGET, shard = %shard.id, "turns or jobs of a moving shard not finished in time: closed anyway");
            return;
        }
        // Subscribers elsewhere then lack nothing that they would have to ask for.
        let published = self.context.idle.wait_until(|| shard.is_lost() || self.publisher.has_published(shard));
        if tokio::time::timeout(PUBLISHING, published).await.is_err() {
            tracing::warn!(target: TARGET, shard = %shard.id, "events of a moving shard not published in time: left to its next owner");
        }
    }

    /// Drops everything of a shard. Callers that wait for its commits get `error` as the reason why the outcome is
    /// unknown.
    fn drop_shard(self: &Rc<Self>, shard: &Rc<OwnedShard>, error: &StoreError) {
        let id = &shard.id;
        self.known_positions.note(shard);
        shard.lose();
        self.context.shards.borrow_mut().remove(id);
        self.context.openings.set(self.context.openings.get() + 1);
        self.definition.readers.remove(id);
        let was_open = self.definition.open_shards.set(id, false);
        self.context.fail_commits_of(shard, error);
        for subscription in self.groups.iter().flat_map(|group| group.subscriptions.values()) {
            subscription.close_shard(id);
        }
        let closed: Vec<_> = self.receive_windows.borrow_mut().extract_if(|(_, to), _| to == id).collect();
        closed.iter().for_each(|(_, window)| window.close());
        self.for_endpoints(id, |endpoint| endpoint.close_shard(id.shard));
        let windows = self.send_windows.borrow_mut().remove(id);
        windows.iter().for_each(|windows| self.reset_windows(id, windows));
        self.publisher.closed(id);
        self.unread.borrow_mut().retain(|(of, _), _| of != id);
        shard.drop_writer();
        if was_open {
            self.announce_move(id);
        }
        self.context.drain_started.notify_waiters();
        self.context.timers.notify_one();
        self.context.idle.notify();
    }

    /// Reopens the shards after a failed commit. Discards all uncommitted state, in the store and in memory. Ends the node if the
    /// store has lost committed events.
    pub(in crate::node) async fn recover(self: &Rc<Self>) -> Result<(), StoreError> {
        // Before anything is reopened: a failure that is reported from here on is another one, and makes the shards reopen again.
        self.context.abandon_pending_commits();
        // Nothing is accepted, or read for a turn, with the earlier handles.
        for shard in self.shards() {
            self.known_positions.note(&shard);
            shard.begin_reopening();
        }
        self.discard_uncommitted();
        for shard in self.shards() {
            match self.reopen(&shard.id).await? {
                // Closed in between.
                _ if !self.is_current(&shard) => {}
                Some(handle) if self.end_if_shorter_log(&shard.id, handle.reader.position()) => return Ok(()),
                Some(handle) => {
                    self.definition.readers.insert(shard.id.clone(), Arc::clone(&handle.reader));
                    shard.reopen(handle);
                }
                // Another node has taken it over.
                None => {
                    self.drop_shard(&shard, &StoreError::Closed);
                    self.report_lost(&shard);
                }
            }
        }
        self.load_deferred().await?;
        self.context.commits.wake();
        self.shards().iter().for_each(|shard| self.deliver_deferred(&shard.id));
        self.set_takers();
        self.catch_up();
        Ok(())
    }

    /// Opens a shard of this node again; `None` if another node owns it.
    async fn reopen(&self, id: &ShardId) -> Result<Option<ShardHandle>, StoreError> {
        let listener: Arc<dyn CommitListener> = Arc::clone(&self.context.commits) as _;
        let count = self.definition.owns(&id.domain).unwrap_or(1);
        match (self.definition.store.leases(), self.definition.member.get()) {
            (None, _) => self.definition.store.open(id, count, listener).await.map(Some),
            (Some(leases), Some(member)) => leases.open(*member, id, count, listener).await,
            (Some(_), None) => Ok(None),
        }
    }

    /// Loads the deferred messages of all shards.
    pub(in crate::node) async fn load_deferred(&self) -> Result<(), StoreError> {
        for shard in self.shards() {
            self.load_deferred_of(&shard.id).await?;
        }
        Ok(())
    }

    async fn load_deferred_of(&self, id: &ShardId) -> Result<(), StoreError> {
        for (_, endpoint) in self.endpoints.iter().filter(|((domain, _), _)| *domain == id.domain) {
            endpoint.load_deferred(id.shard).await?;
        }
        Ok(())
    }

    pub(in crate::node) fn deliver_deferred(&self, id: &ShardId) {
        self.for_endpoints(id, |endpoint| endpoint.deliver_deferred(id.shard));
    }
}

impl Threads {
    /// Returns the listener with which the shards of a thread are opened; `None` if the thread has ended.
    pub(in crate::node) async fn listener(&self, thread: usize) -> Option<Arc<CommitNotifier>> {
        let (tell, told) = oneshot::channel();
        self.run(thread, Box::new(move |runtime| drop(tell.send(Arc::clone(&runtime.context.commits)))));
        told.await.ok()
    }

    /// Opens a shard on its thread, see [`ThreadRuntime::open_shard`].
    ///
    /// # Errors
    /// As there, and [`StoreError::Closed`] if the thread has ended.
    pub(in crate::node) async fn open_shard(
        &self,
        thread: usize,
        id: ShardId,
        handle: ShardHandle,
        failures: u64,
    ) -> Result<(), StoreError> {
        let (tell, told) = oneshot::channel();
        let open = move |runtime: &Rc<ThreadRuntime>| {
            let me = Rc::clone(runtime);
            whizbang_core::spawn::detached(&runtime.context.user_code, "open a shard", async move {
                let _ = tell.send(me.open_shard(id, handle, failures).await);
            });
        };
        self.run(thread, Box::new(open));
        told.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Closes a shard on its thread, see [`ThreadRuntime::close_shard`].
    pub(in crate::node) async fn close_shard(&self, thread: usize, id: ShardId, closing: Closing) {
        let (tell, told) = oneshot::channel();
        let close = move |runtime: &Rc<ThreadRuntime>| {
            let me = Rc::clone(runtime);
            whizbang_core::spawn::detached(&runtime.context.user_code, "close a shard", async move {
                me.close_shard(&id, closing).await;
                let _ = tell.send(());
            });
        };
        self.run(thread, Box::new(close));
        drop(told.await);
    }
}

#[cfg(test)]
mod tests;
