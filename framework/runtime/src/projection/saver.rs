//! The saver of a view: if several nodes share a store, each hosts the projection, and one of them saves its view.
//!
//! Called after each renewal of the node's lease. All nodes compute the saver from the members that they see. If they
//! disagree for a moment, the view's epoch decides: the store rejects a save of an earlier saver, and that node continues
//! without saving. A view is derived from the events, so nothing depends on which node saves it or how often that changes;
//! for that reason a saver needs no lease of its own.

use whizbang_core::store::Epoch;

/// The right of this node to save a view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Saver {
    /// Another node saves the view, or none does yet.
    No,
    /// The node becomes the saver.
    Claiming,
    /// The node saves the view under this epoch.
    Yes(Epoch),
}

impl Saver {
    pub(super) fn epoch(self) -> Option<Epoch> {
        match self {
            Self::Yes(epoch) => Some(epoch),
            Self::No | Self::Claiming => None,
        }
    }
}
