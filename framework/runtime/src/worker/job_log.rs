//! The log of one stream of a worker, and its jobs in progress.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use foldhash::fast::FixedState;
use tokio::sync::OnceCell;

use super::ledger::Ledger;
use crate::actor::{OwnedShard, StuckKey};
use whizbang_core::message::MessageId;
use whizbang_core::store::Ticket;

/// Identifies one job of a dispatcher.
pub(super) type JobNumber = u64;

/// Log of one stream of a worker: one per shard, and one per idempotency key, so that a key is found with one read
/// however long ago it was used.
pub(super) struct JobLog {
    pub(super) shard: Rc<OwnedShard>,
    pub(super) key: String,
    /// Belongs to one idempotency key, and is dropped when its job ends.
    pub(super) single: bool,
    pub(super) ledger: OnceCell<RefCell<Ledger>>,
    /// Jobs in progress, with the digest of their message.
    pub(super) running: RefCell<HashMap<MessageId, (JobNumber, u64), FixedState>>,
    /// Last append that may not be durable yet.
    pub(super) last: Cell<Option<Ticket>>,
    /// Appends that the store has refused since the last accepted one.
    pub(super) refused: Rc<RefCell<StuckKey>>,
    /// Failed reads of the ledger.
    pub(super) unread: Rc<RefCell<StuckKey>>,
    /// Failed reads of deferred jobs, by message.
    pub(super) unread_jobs: RefCell<BTreeMap<MessageId, StuckKey>>,
}
