//! Projections: code that projects events into a view, and the view that answers queries.
//!
//! Called by subscriptions with events in order, and by queries; calls the [store](whizbang_core::store) for the view and its
//! checkpoint. View and checkpoint are saved atomically, and no event is ever skipped unless an operator requests it.
//! Start reading at `view.rs`: one actor per projection owns the view.

mod endpoint;
mod plan;
mod view;

mod batch;
mod claim;
mod context;
mod halt;
mod requests;
mod restore;
mod save;
mod saver;
mod skips;
mod source;
mod statements;
mod subscriber;

pub(crate) use context::ViewContext;
pub(crate) use endpoint::{ProjectionType, ViewEndpoint, ViewType};
pub use plan::ProjectionPlan;
pub(crate) use skips::skipped;
pub use skips::{SkipError, SkippedEvent};

use std::sync::Arc;

pub use crate::actor::Answer;
use crate::actor::EventContext;
use whizbang_core::message::{CodecError, Event, Shape};
use whizbang_core::store::{Statement, View};

/// A view into which events are projected. Derived with `#[derive(Projection)]`, hosted with
/// [`NodeBuilder::projection`](crate::NodeBuilder::projection).
///
/// The struct is the view. It receives the events of any domain, of this node and of others, from the first one on,
/// each once and in the order of its shard. It is kept in memory and saved as a whole with its checkpoint: after
/// enough events to make that cheap, and at most some seconds after a change. Events after the last save are
/// projected again after a restart. A view may have [`MAX_STATE_BYTES`](whizbang_core::message::MAX_STATE_BYTES) bytes.
///
/// A panic in [`project`](Project::project) is retried from the last save. If the same event fails in every attempt,
/// or cannot be decoded, the projection halts at it in the event's shard. Other shards and other projections
/// continue, and the node's [health](crate::Node::health) names shard and position; the node stays ready. The
/// projection continues with a deployment that can project the event, or after an operator has
/// [skipped](crate::Node::skip_event) it. Answers never go backwards: they come from the view with everything up to
/// the event.
///
/// A view that is rebuilt, because it is new or its schema changed, answers no query until it has reached the end
/// that the node's logs had at the start: queries wait, and the node is not ready. The thread does other work in
/// between.
///
/// Encoding the view takes time that grows with it, about 0.1 s for a million entries. From 256 KiB on it is done on
/// a separate thread; events and queries of this projection wait for it, actors do not.
///
/// ```
/// # use bank_fixture::{Bank, Account, Deposit, Deposited};
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
    /// Name in the store, unique in its service.
    const NAME: &'static str;
    /// Schema of the view. Raise it when the struct or the projected data changes: the view is rebuilt from the first
    /// event.
    const SCHEMA: u32 = 1;

    /// The statement that empties the tables of the projection, if it [returns statements](Project::statements).
    #[doc(hidden)]
    const RESET: Option<&'static str> = None;

    /// Former names: a view saved under one of them belongs to this projection.
    #[doc(hidden)]
    const FORMERLY: &'static [&'static str] = &[];

    /// Returns the shape of the view.
    #[doc(hidden)]
    fn shape() -> Option<Arc<Shape>> {
        None
    }

    /// Returns the view before the first event: its `Default`.
    #[doc(hidden)]
    fn initial() -> Self;

    /// Lists its events and queries.
    #[doc(hidden)]
    fn wire(plan: &mut ProjectionPlan<Self>);

    /// Encodes the view.
    #[doc(hidden)]
    fn save(&self) -> Result<Vec<u8>, CodecError>;

    /// Decodes the view.
    #[doc(hidden)]
    fn restore(bytes: &[u8]) -> Result<Self, CodecError>;
}

/// Decodes the saved view of a projection, for programs that inspect a store which no node of theirs has open;
/// otherwise send a [query](crate::Client::query) to a node. `None` if the view was saved under another schema, or
/// cannot be decoded.
pub fn saved<P: Projection>(view: &View) -> Option<P> {
    let restored = (view.schema == P::SCHEMA).then(|| whizbang_core::user_code::user_code(|| P::restore(&view.bytes)));
    restored?.ok()?.ok()
}

/// Projects an event into the view. [`Projection`] has the complete program.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::Deposited;
/// use whizbang::prelude::*;
///
/// #[derive(Projection, Default, Serialize, Deserialize)]
/// #[projection(projects(Deposited))]
/// struct Total {
///     cents: u64,
///     /// The positions up to which the shards were counted.
///     seen: std::collections::BTreeMap<u16, u64>,
/// }
///
/// impl Project<Deposited> for Total {
///     fn project(&mut self, deposited: &Deposited, about: &EventContext) {
///         self.cents += deposited.cents;
///         self.seen.insert(about.shard, about.position);
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not project `{E}`",
    label = "listed in `projects(…)`, but not projected",
    note = "write `impl Project<{E}> for {Self} {{ fn project(&mut self, event: &{E}, about: &EventContext) {{ … }} }}`"
)]
pub trait Project<E: Event>: Projection {
    /// Changes the view by `event`. Called once for each event, in the order of its shard. The view and its
    /// checkpoint are saved atomically, so an event that is projected again after a restart is applied to a view without it.
    fn project(&mut self, event: &E, about: &EventContext);

    /// Returns statements that write the event to tables of the same database. Called after [`project`](Self::project). The
    /// default returns none.
    ///
    /// The statements of all events since the last save run in order, in the transaction that saves the view and its
    /// checkpoint, about 50 ms after the first of them. So the tables contain exactly the events up to the checkpoint,
    /// whatever fails, and a table is never ahead of the log. Statements do not see values of the view in memory; they may
    /// read and change tables.
    ///
    /// The derive names a statement that empties the tables, `#[projection(projects(…), reset = "DELETE FROM …")]`. It runs
    /// before all others when the view is built from the first event: at the first start, and after a change of `schema`.
    /// Without `reset` an event with statements halts the projection. The store must
    /// [run statements](whizbang_core::store::Store::runs_statements), otherwise the node does not start.
    ///
    /// A statement that fails, for example by a constraint, is retried like a panic; after the last attempt the projection
    /// halts at its event, and nothing of the event is in the tables. While a lock or the database is not available the
    /// projection waits, and health says so.
    ///
    /// ```
    /// # use bank_fixture as bank;
    /// use bank::Deposited;
    /// use whizbang::prelude::*;
    /// use whizbang::store::Statement;
    ///
    /// /// The table `balances (account text PRIMARY KEY, cents bigint NOT NULL)`.
    /// #[derive(Projection, Default, Serialize, Deserialize)]
    /// #[projection(projects(Deposited), reset = "DELETE FROM balances")]
    /// struct BalanceTable {}
    ///
    /// impl Project<Deposited> for BalanceTable {
    ///     fn project(&mut self, _deposited: &Deposited, _about: &EventContext) {}
    ///
    ///     fn statements(&self, deposited: &Deposited, about: &EventContext) -> Vec<Statement> {
    ///         let sql = "INSERT INTO balances VALUES ($1, $2)
    ///             ON CONFLICT (account) DO UPDATE SET cents = balances.cents + excluded.cents";
    ///         vec![Statement::new(sql).bind(&about.key).bind(deposited.cents as i64)]
    ///     }
    /// }
    /// ```
    fn statements(&self, event: &E, about: &EventContext) -> Vec<Statement> {
        let _ = (event, about);
        Vec::new()
    }
}
