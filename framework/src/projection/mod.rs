//! Code that projects events into a view, and the view that answers queries.
//!
//! Called by the node's feeds with events in their order, and by whoever asks; calls the [store](crate::store) for the view and
//! its checkpoint. View and checkpoint are saved together or not at all, and no event is ever skipped.
//! Read on in `view.rs`: one actor per projection has the view.

mod endpoint;
mod plan;
mod view;

mod halt;
mod restore;
mod save;
mod skips;
mod subscriber;

pub(crate) use endpoint::{ProjectionType, ViewContext, ViewEndpoint, ViewType};
pub use plan::ProjectionPlan;
pub(crate) use skips::skipped;
pub use skips::{SkipError, SkippedEvent};

use std::sync::Arc;

use crate::actor::EventContext;
use crate::message::{CodecError, Event, Query, Shape};
use crate::store::View;

/// A view that events are projected into. Derived with `#[derive(Projection)]`, hosted with
/// [`NodeBuilder::projection`](crate::NodeBuilder::projection).
///
/// The struct is the view. It takes events of any domain, of this node and of others, from the first one on, each once and in
/// the order of its shard. It is kept in memory and saved as a whole with its checkpoint, after as many events as make that
/// cheap and at the latest some seconds after a change; what came after the last save is projected again after a restart. It
/// may have [`MAX_STATE_BYTES`](crate::message::MAX_STATE_BYTES) bytes.
///
/// A panic in [`project`](Project::project) is tried again from the last save on. If the same event fails in every attempt, or
/// cannot be read, the projection halts before it in the event's shard. Other shards and other projections go on, and the
/// node's [health](crate::Node::health) names the place; the node stays ready. Either a deployment that can project the event
/// goes on from there, or an operator has it [skipped](crate::Node::skip_event). Answers never go backwards: they come from
/// the view with everything up to the event.
///
/// A view that is built anew, because its schema is another one or it is new, gives no answer before it has come to the end of
/// the logs of its node as they were at the start: queries wait for that, and the node is not ready. The thread does other
/// work in between.
///
/// Encoding the view for a save costs time that grows with it, about 0.1 s for a million entries. From 256 KiB on it is done on
/// a thread of its own; events and queries of this projection wait for it, actors do not.
///
/// ```
/// # use whizbang::doc_fixtures::{Bank, Account, Deposit, Deposited};
/// use std::collections::BTreeMap;
/// use whizbang::prelude::*;
///
/// #[derive(Query, Serialize, Deserialize)]
/// #[query(domain = Bank, reply = u64)]
/// struct BalanceOf { account: String }
///
/// #[derive(Projection, Default, Serialize, Deserialize)]
/// #[projection(projects(Deposited), answers(BalanceOf))]
/// struct Balances { cents: BTreeMap<String, u64> }
///
/// impl Project<Deposited> for Balances {
///     fn project(&mut self, deposited: &Deposited, about: &EventContext) {
///         *self.cents.entry(about.key.clone()).or_default() += deposited.cents;
///     }
/// }
///
/// impl Answer<BalanceOf> for Balances {
///     fn answer(&self, query: BalanceOf) -> u64 {
///         self.cents.get(&query.account).copied().unwrap_or(0)
///     }
/// }
///
/// # whizbang::derive::block_on(async {
/// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().projection::<Balances>().start().await?;
/// node.client().send(Deposit { account: "ada".into(), cents: 500 }).await?;
/// node.wait_idle().await; // A view follows its events; a test waits until it has.
/// assert_eq!(node.client().query(BalanceOf { account: "ada".into() }).await?, 500);
/// node.stop().await
/// # }).unwrap();
/// ```
pub trait Projection: Sized + Send + 'static {
    /// Its name in the store, unique in its service.
    const NAME: &'static str;
    /// The schema of the view: raise it when the struct, or what is projected, changes, and the view is rebuilt from the first
    /// event.
    const SCHEMA: u32 = 1;

    /// The names it had before: a view that was saved under one of them is this projection's.
    #[doc(hidden)]
    const FORMERLY: &'static [&'static str] = &[];

    /// The shape of the view.
    #[doc(hidden)]
    fn shape() -> Option<Arc<Shape>> {
        None
    }

    /// The view before the first event: its `Default`.
    #[doc(hidden)]
    fn initial() -> Self;

    /// Lists what it takes.
    #[doc(hidden)]
    fn wire(plan: &mut ProjectionPlan<Self>);

    /// The view as bytes.
    #[doc(hidden)]
    fn save(&self) -> Result<Vec<u8>, CodecError>;

    /// The view from bytes.
    #[doc(hidden)]
    fn restore(bytes: &[u8]) -> Result<Self, CodecError>;
}

/// The view that was saved for a projection, for programs that look into a store that no node of theirs has; ask a node with
/// a [query](crate::Client::query) otherwise. `None` if it was saved by a projection of another schema, or cannot be read.
pub fn saved<P: Projection>(view: &View) -> Option<P> {
    let restored = (view.schema == P::SCHEMA).then(|| crate::user_code::user_code(|| P::restore(&view.bytes)));
    restored?.ok()?.ok()
}

/// Projects an event into the view.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not project `{E}`",
    label = "listed in `projects(…)`, but not projected",
    note = "write `impl Project<{E}> for {Self} {{ fn project(&mut self, event: &{E}, about: &EventContext) {{ … }} }}`"
)]
pub trait Project<E: Event>: Projection {
    /// Changes the view by `event`. Called once for each event, in the order of its shard: the view and how far it has come are
    /// saved together, so an event that is projected again after a restart meets a view without it.
    fn project(&mut self, event: &E, about: &EventContext);
}

/// Answers a query from the view.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not answer `{Q}`",
    label = "listed in `answers(…)`, but not answered",
    note = "write `impl Answer<{Q}> for {Self} {{ fn answer(&self, query: {Q}) -> … {{ … }} }}`"
)]
pub trait Answer<Q: Query>: Projection {
    /// The answer, from what has been projected so far. A panic is told to whoever asked, and changes nothing.
    fn answer(&self, query: Q) -> Q::Reply;
}
