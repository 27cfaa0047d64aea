//! Stored watermarks: records how far received and sent messages are done, where no turn has recorded it.
//!
//! Called by the background tasks of a thread, and before a shard is handed over. Without these records a restarted
//! node, or the next owner of a shard, would read the same messages again and drop them as duplicates.

use std::rc::Rc;

use crate::actor::OwnedShard;
use crate::node::thread::{SubscriptionGroup, ThreadRuntime};
use whizbang_core::message::ShardId;
use whizbang_core::store::{Appended, StoreError, Watermark};

impl ThreadRuntime {
    /// Stores the watermarks of received and sent messages that the store does not know yet. Those of sent messages
    /// only if they have risen by `at_least`.
    pub(in crate::node) fn store_watermarks(&self, at_least: u64) {
        for (_, subscription, _) in self.groups.iter().flat_map(SubscriptionGroup::each) {
            for (shard, source, through) in subscription.unstored() {
                self.advance(&shard, &Watermark { source, through });
            }
        }
        for window in self.receive_windows.borrow().values() {
            if let Some(watermark) = self.shard(&window.to).and_then(|_| window.unstored()) {
                self.advance(&window.to, &watermark);
            }
        }
        for (id, windows) in self.all_windows() {
            let Some(shard) = self.shard(&id) else { continue };
            for (to, through) in windows.unstored(at_least) {
                let sent = shard.writer.borrow_mut().sent(&to, through);
                self.note_watermark(&shard, sent);
            }
        }
    }

    fn advance(&self, id: &ShardId, watermark: &Watermark) {
        if let Some(shard) = self.shard(id) {
            let advanced = shard.writer.borrow_mut().advance(watermark);
            self.note_watermark(&shard, advanced);
        }
    }

    fn note_watermark(&self, shard: &Rc<OwnedShard>, appended: Result<Appended, StoreError>) {
        match appended {
            Ok(appended) => shard.last_watermark.set((!appended.committed).then_some(appended.ticket)),
            Err(error) => self.context.report_append_error(&error),
        }
    }
}
