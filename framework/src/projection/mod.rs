//! Code that projects events into a view, and the view that answers queries.
//!
//! Called by the node with events in their order; calls the [store](crate::store) for the view and its checkpoint.
//! View and checkpoint are saved together or not at all.

use crate::actor::About;
use crate::message::{CodecError, Event, Query};

/// A view that events are projected into. Derived with `#[derive(Projection)]`.
///
/// The struct is the view. It is kept in memory and saved with its checkpoint; what came after the last save is projected
/// again after a restart.
pub trait Projection: Sized + Send + 'static {
    /// Its name in the store, unique in its service.
    const NAME: &'static str;
    /// The schema of the view: raise it when the struct changes, and the view is rebuilt from the first event.
    const SCHEMA: u32 = 1;

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

/// Projects an event into the view.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not project `{E}`",
    label = "listed in `projects(…)`, but not projected",
    note = "write `impl Project<{E}> for {Self} {{ fn project(&mut self, event: &{E}, about: &About) {{ … }} }}`"
)]
pub trait Project<E: Event>: Projection {
    /// Changes the view by `event`. Called once for each event, in the order of its shard.
    fn project(&mut self, event: &E, about: &About);
}

/// Answers a query from the view.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not answer `{Q}`",
    label = "listed in `answers(…)`, but not answered",
    note = "write `impl Answer<{Q}> for {Self} {{ fn answer(&self, query: {Q}) -> … {{ … }} }}`"
)]
pub trait Answer<Q: Query>: Projection {
    /// The answer, from what has been projected so far.
    fn answer(&self, query: Q) -> Q::Reply;
}

/// The list that [`Projection::wire`] fills.
#[doc(hidden)]
pub struct ProjectionPlan<P>(std::marker::PhantomData<P>);

impl<P: Projection> ProjectionPlan<P> {
    /// Lists an event that is projected.
    pub fn projects<E: Event>(&mut self)
    where
        P: Project<E>,
    {
    }

    /// Lists a query that is answered.
    pub fn answers<Q: Query>(&mut self)
    where
        P: Answer<Q>,
    {
    }
}
