//! The backlogs of the shards that are open.

use std::cell::RefCell;
use std::rc::Rc;

use super::Backlog;
use whizbang_core::message::Shard;

/// The open shards of one actor type on one thread, each with its backlog, by shard number.
pub(crate) struct Backlogs(Box<[RefCell<Option<Rc<Backlog>>>]>);

impl Backlogs {
    pub(in crate::actor) fn new(shards: Shard) -> Self {
        Self((0..shards).map(|_| RefCell::default()).collect())
    }

    /// Returns the number of shards, open or not.
    pub(in crate::actor) fn shards(&self) -> Shard {
        Shard::try_from(self.0.len()).unwrap_or(Shard::MAX)
    }

    pub(in crate::actor) fn get(&self, shard: Shard) -> Option<Rc<Backlog>> {
        self.0.get(usize::from(shard))?.borrow().clone()
    }

    pub(in crate::actor) fn open(&self, backlog: Rc<Backlog>) {
        if let Some(slot) = self.0.get(usize::from(backlog.shard.id.shard)) {
            slot.replace(Some(backlog));
        }
    }

    pub(in crate::actor) fn close(&self, shard: Shard) -> Option<Rc<Backlog>> {
        self.0.get(usize::from(shard))?.take()
    }

    pub(in crate::actor) fn all(&self) -> Vec<Rc<Backlog>> {
        self.0.iter().filter_map(|slot| slot.borrow().clone()).collect()
    }
}
