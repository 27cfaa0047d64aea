//! The condition of a bridge, as the node's health and metrics report it.

/// The condition of a bridge, for the node's health and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BridgeHealth {
    /// What keeps messages from moving, each with the thing to do about it. Empty while everything works; an entry disappears
    /// once its cause is gone. The node is not ready while there is one.
    pub issues: Vec<String>,
    /// The number of messages moved to the refused stream since the node started: they could not be read, or no handler exists
    /// for them here.
    pub refused: u64,
    /// The number of stalled consumers that were recreated since the node started.
    pub recreated_consumers: u64,
}

impl BridgeHealth {
    /// The condition of a bridge with these issues.
    pub fn new(issues: Vec<String>) -> Self {
        Self { issues, ..Self::default() }
    }
}
