//! The writer of a shard of a simulated store: appends are pending until the store commits them.
//!
//! Created by the [store](super::store) when a node opens a shard.

use std::sync::Arc;

use super::crash_points::CrashPoint;
use super::incarnation::Incarnation;
use super::owned_turn::OwnedTurn;
use super::pending_appends::PendingAppend;
use super::shared_store::SharedStore;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Appended, Epoch, ShardWriter, Snapshot, StoreError, Turn, Watermark};

/// The writer of one incarnation.
pub(super) struct SimWriter {
    /// The store.
    pub(super) shared: Arc<SharedStore>,
    /// The incarnation of the node that has opened the shard.
    pub(super) incarnation: Arc<Incarnation>,
    /// The shard.
    pub(super) id: ShardId,
    /// The writer of the backend.
    pub(super) inner: Box<dyn ShardWriter>,
}

impl SimWriter {
    /// Appends in the backend, and keeps the append as pending until the store commits it. `turn` is recorded in the step
    /// log.
    ///
    /// # Errors
    /// [`StoreError::Closed`] after the end of the incarnation, and the errors of the backend.
    fn append_with(
        &mut self,
        turn: Option<Box<OwnedTurn>>,
        append: impl FnOnce(&mut dyn ShardWriter) -> Result<Appended, StoreError>,
    ) -> Result<Appended, StoreError> {
        if self.incarnation.pending_appends.lock().closed {
            return Err(StoreError::Closed);
        }
        self.shared.recorder.ownership.appended(&self.id, self.inner.epoch());
        let appended = append(self.inner.as_mut()).inspect_err(|error| {
            if matches!(error, StoreError::Fenced { .. }) {
                self.shared.recorder.report_fenced(error);
            }
        })?;
        if turn.is_some() {
            self.shared.recorder.crash_points.reach(CrashPoint::Commit);
        }
        let ticket = self.incarnation.first_ticket + appended.ticket;
        let mut pending_appends = self.incarnation.pending_appends.lock();
        pending_appends.last = pending_appends.last.max(ticket);
        let (shard, epoch, position) = (self.id.clone(), self.inner.epoch(), appended.position);
        pending_appends.pending.push_back(PendingAppend { ticket, shard, epoch, turn, position });
        drop(pending_appends);
        self.shared.start_flush();
        Ok(Appended { ticket, ..appended })
    }
}

impl ShardWriter for SimWriter {
    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }

    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        let owned = OwnedTurn::of(turn);
        self.shared.recorder.step_log.appended(&owned);
        self.append_with(Some(Box::new(owned)), |inner| inner.append(turn))
    }

    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        self.append_with(None, |inner| inner.advance(watermark))
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        self.append_with(None, |inner| inner.sent(to, through))
    }

    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        self.inner.save_snapshot(actor, key, snapshot);
    }
}
