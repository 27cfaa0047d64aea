//! Snapshots, which the writer saves when nothing else is to be written.
//!
//! Called by the shards (add) and by the [writer](super) (save).

use std::sync::Arc;

use whizbang_core::message::Name;

use super::{Line, Writer};
use crate::failure::Failure;
use crate::shard::Shard;
use crate::snapshots;

impl Writer {
    /// Notes a snapshot that waits in its shard.
    pub(crate) fn add_snapshot(&self, shard: Arc<Shard>, actor: Name, key: String) {
        self.snapshots.lock().push(snapshots::Waiting { shard, actor, key });
        let mut queue = self.queue.lock();
        queue.unfinished = true;
        self.wake(queue);
    }

    /// Writes the snapshots whose turns are committed. They are a cache: a failure is logged and they are dropped. Returns
    /// whether there were any. A statement bounded in rows and bytes, so commits wait for it only briefly.
    pub(super) fn save_snapshots(&self, line: &mut Line) -> bool {
        let Some(driver) = &mut line.driver else { return false };
        let batch = snapshots::Batch::take(&mut self.snapshots.lock());
        let Some(batch) = batch else { return false };
        let batch = Arc::new(batch);
        let (client, sql, sent) = (Arc::clone(&driver.client), Arc::clone(&self.sql), Arc::clone(&batch));
        let mut saving = Box::pin(async move { sent.save(&client, &sql).await });
        if let Some(Err(error)) = self.wait(driver, saving.as_mut()) {
            tracing::warn!(target: crate::TARGET, error = %Failure::from(error), "failed to write snapshots");
        }
        let newer = batch.done();
        self.snapshots.lock().extend(newer);
        true
    }
}
