//! What the derives say about an actor type: who it is and what it takes.

use std::marker::PhantomData;

use crate::clock::Timestamp;
use crate::message::{CodecError, Domain, MessageId, Name};

/// What an actor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Guards one consistency boundary.
    Aggregate,
    /// Reacts to events by sending commands.
    Saga,
}

/// What `#[derive(Aggregate)]` and `#[derive(Saga)]` fill in.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` is neither an aggregate nor a saga",
    note = "derive it: `#[derive(Aggregate, Default)] #[aggregate(domain = …, handles(…), applies(…))]`"
)]
pub trait Stateful: Sized + 'static {
    /// The domain whose shard logs hold its events.
    type Domain: Domain;
    /// Its name in the store, unique in its domain.
    const NAME: &'static str;
    /// What it is.
    const ROLE: Role;
    /// After how many turns a snapshot is kept; 0 for never.
    const SNAPSHOT_EVERY: u32 = 0;
    /// The schema of its snapshots; another one in the store is ignored.
    const SNAPSHOT_SCHEMA: u32 = 1;

    /// The state before the first event: its `Default`.
    fn initial() -> Self;

    /// Lists what it takes.
    fn wire(plan: &mut Plan<Self>);

    /// Its state as bytes, if it keeps snapshots.
    fn save(&self) -> Option<Result<Vec<u8>, CodecError>> {
        None
    }

    /// Its state from bytes; `None` if they cannot be used.
    fn restore(_bytes: &[u8]) -> Option<Self> {
        None
    }
}

/// The list that [`Stateful::wire`] fills.
#[doc(hidden)]
pub struct Plan<A>(PhantomData<A>);

/// What is known about an event besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct About {
    /// The domain it belongs to.
    pub domain: Name,
    /// The key of the aggregate or saga that recorded it.
    pub key: String,
    /// Its version in that stream, from 1.
    pub version: u64,
    /// The shard of the domain.
    pub shard: u16,
    /// Its place in the shard's log.
    pub position: u64,
    /// When it was recorded.
    pub time: Timestamp,
    /// The correlation id.
    pub correlation: MessageId,
}
