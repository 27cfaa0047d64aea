//! The last event of a shard at the broker.

use crate::message::StoreId;

/// The last event of a shard that a broker holds.
///
/// ```
/// use whizbang::bridge::LastPublished;
/// use whizbang::message::StoreId;
///
/// let last = LastPublished::new(12, StoreId::from_u128(7));
/// assert_eq!((last.position, last.store), (12, Some(StoreId::from_u128(7))));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LastPublished {
    /// The position of the event.
    pub position: u64,
    /// The store whose log contains the event; `None` if the event does not name it.
    pub store: Option<StoreId>,
}

impl LastPublished {
    /// Creates the description of an event at a position in the log of a store.
    pub fn new(position: u64, store: impl Into<Option<StoreId>>) -> Self {
        Self { position, store: store.into() }
    }
}
