//! A second caller with a clock of its own, so that the clocks of two callers of one service differ.
//!
//! Started by the [first fault of this kind](super::two_callers).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use whizbang_core::clock::{ClockJumps, Timestamp};
use whizbang_core::message::{IdSource, MessageId};
use whizbang_runtime::node::Node;

/// The second caller.
pub(super) struct OtherCaller {
    /// Its node, which hosts nothing.
    pub(super) node: Node,
    /// Its ids, by its clock.
    pub(super) ids: IdSource,
    /// The jumps of its clock.
    pub(super) jumps: ClockJumps,
    /// The number of faults during which it sends.
    pub(super) faults: Cell<u32>,
    /// True if the next id is one of its own.
    pub(super) is_next: Cell<bool>,
    /// The ids of its commands.
    pub(super) sent: RefCell<BTreeSet<MessageId>>,
}

impl OtherCaller {
    /// Stops sending new commands and corrects the clock.
    pub(super) fn disarm(&self) {
        self.faults.set(0);
        self.jumps.undo();
    }

    /// Returns the time of its clock.
    pub(super) fn now(&self) -> Timestamp {
        self.ids.clock().now()
    }
}
