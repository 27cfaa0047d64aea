//! Given-when-then tests: one actor handles messages one by one, and its effects are compared with expectations.
//!
//! Called by users' tests. Runs the framework's own turns on a store in memory, so a scenario shows what a node would store. No message
//! leaves the actor, time passes only when the scenario advances it, and no runtime is needed around it.

#![expect(clippy::panic, reason = "a failed expectation panics, as every assertion does")]

mod expect;
mod harness;
mod step;

use std::marker::PhantomData;
use std::time::Duration;

use harness::{Harness, fail};
use step::Step;
use whizbang_core::message::{Command, Document, Event, Rejection};
use whizbang_runtime::actor::Stateful;
use whizbang_runtime::aggregate::{Applies, Handle, React};
use whizbang_runtime::saga::OnTimer;

/// The state of a scenario without a command.
#[derive(Debug)]
pub struct NoCommand;

/// One aggregate or saga under test.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang::testing::Scenario;
///
/// Scenario::<Account>::new()
///     .given([Deposited { cents: 100 }])
///     .when(Deposit { account: "ada".into(), cents: 50 })
///     .replies(150)
///     .records(Deposited { cents: 50 });
/// ```
///
/// Each step ([`when`](Scenario::when), [`on`](Self::on), [`on_reply`](Self::on_reply),
/// [`fire_timer`](Self::fire_timer)) is one turn; the expectations after it are about that turn. Events are compared by
/// their bytes, so they need no `PartialEq`. Once an event of a step is expected, the step must record exactly the
/// expected events; the same holds for sent commands.
///
/// A scenario has a small runtime of its own: use it in plain `#[test]` functions, not in async ones.
///
/// # Sagas
///
/// The replies to the commands of a saga are given by [`on_reply`](Self::on_reply), and its timers fire when the scenario says
/// so:
/// ```
/// use std::time::Duration;
/// use whizbang::prelude::*;
/// use whizbang::testing::Scenario;
///
/// #[derive(Domain)]
/// struct Shop;
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Shop)]
/// struct PlaceOrder(#[key] String);
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Shop)]
/// struct Charge(#[key] String);
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Shop)]
/// struct Refund(#[key] String);
/// #[derive(Event, Serialize, Deserialize)]
/// #[event(domain = Shop)]
/// struct OrderPlaced(String);
/// #[derive(Document, Serialize, Deserialize)]
/// #[document(domain = Shop)]
/// struct Overdue;
///
/// #[derive(Saga, Default)]
/// #[saga(domain = Shop, handles(PlaceOrder), records(OrderPlaced), replies(Charge), timers(Overdue))]
/// struct Order;
///
/// impl Handle<PlaceOrder> for Order {
///     fn handle(&self, PlaceOrder(order): PlaceOrder, effects: &mut Effects<Self>) -> Result<(), Rejection> {
///         effects.send(Charge(order.clone())).compensate_with(Refund(order.clone()));
///         effects.set_timer(&Overdue, Duration::from_secs(60));
///         effects.record(OrderPlaced(order));
///         Ok(())
///     }
/// }
///
/// impl OnReply<Charge> for Order {
///     fn on_reply(&self, reply: Result<(), Rejection>, effects: &mut Effects<Self>) {
///         match reply {
///             Ok(()) => effects.complete(),
///             Err(_) => {
///                 effects.compensate();
///             }
///         }
///     }
/// }
///
/// impl OnTimer<Overdue> for Order {
///     fn on_timer(&self, _overdue: Overdue, effects: &mut Effects<Self>) {
///         effects.compensate();
///     }
/// }
///
/// let placed = || {
///     Scenario::<Order>::new()
///         .when(PlaceOrder("o1".into()))
///         .records(OrderPlaced("o1".into()))
///         .sends(Charge("o1".into()))
///         .sets_timer::<Overdue>(Duration::from_secs(60))
/// };
/// placed().on_reply::<Charge>(Ok(())).ends_completed();
/// // The timer fires while the charge is still open: its outcome decides whether there is something to undo.
/// placed().fire_timer::<Overdue>().compensates().on_reply::<Charge>(Ok(())).sends(Refund("o1".into()));
/// ```
pub struct Scenario<A: Stateful, C = NoCommand> {
    /// The actor and its last step.
    run: Run<A>,
    /// The type of the command whose reply is expected next.
    command: PhantomData<fn(C)>,
}

impl<A: Stateful, C> std::fmt::Debug for Scenario<A, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scenario").finish_non_exhaustive()
    }
}

/// The actor, and the effects of its last turn.
struct Run<A: Stateful> {
    /// The actor and everything around it.
    harness: Harness<A>,
    /// The last step, whose effects are not compared yet.
    step: Option<Step>,
}

impl<A: Stateful> Scenario<A> {
    /// Returns a scenario of an actor without stored events.
    ///
    /// The time of a new scenario stands still until [`after`](Self::after) or [`fire_timer`](Self::fire_timer)
    /// advances it.
    pub fn new() -> Self {
        Self { run: Run { harness: Harness::new(), step: None }, command: PhantomData }
    }
}

impl<A: Stateful> Default for Scenario<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Stateful, C> Scenario<A, C> {
    /// Sets the actor's key. Needed only if no command or event determines it first.
    ///
    /// # Panics
    /// If another key is determined already: one scenario is about one actor.
    #[track_caller]
    pub fn key(mut self, key: &str) -> Self {
        self.run.harness.set_key(key);
        self
    }

    /// Adds events that the actor has recorded before. Call it once per event type; the order is kept.
    ///
    /// Each event becomes a turn of its own in the log, in the version that the event type writes now.
    ///
    /// # Panics
    /// If the last step had effects that were not expected, or if an event cannot be encoded.
    #[track_caller]
    pub fn given<E: Event>(mut self, events: impl IntoIterator<Item = E>) -> Self
    where
        A: Applies<E>,
    {
        self.run.assert_no_unexpected();
        for event in events {
            self.run.harness.given(&event);
        }
        self
    }

    /// Sends a command to the actor.
    ///
    /// The command passes through deduplication, [`Handle`] and a commit, as in a node. It has a new
    /// id, so the same command twice is two commands.
    ///
    /// # Panics
    /// If the last step had effects that were not expected, or if the command has another key than the scenario.
    #[track_caller]
    pub fn when<D: Command>(mut self, command: D) -> Scenario<A, D>
    where
        A: Handle<D>,
    {
        self.run.assert_no_unexpected();
        self.run.step = Some(self.run.harness.when(&command));
        Scenario { run: self.run, command: PhantomData }
    }

    /// Delivers an event that the actor with the same key recorded.
    ///
    /// # Panics
    /// Same as [`on_from`](Self::on_from).
    #[track_caller]
    pub fn on<E: Event>(self, event: E) -> Self
    where
        A: React<E>,
    {
        self.on_from("", event)
    }

    /// Delivers an event that the actor with the key `from` recorded.
    ///
    /// [`React::key`] selects the actor. Without it the key is `from`, or the key of the scenario
    /// if `from` is empty.
    ///
    /// # Panics
    /// If the last step had effects that were not expected, or if the event is for another actor.
    #[track_caller]
    pub fn on_from<E: Event>(mut self, from: &str, event: E) -> Self
    where
        A: React<E>,
    {
        self.run.assert_no_unexpected();
        self.run.step = Some(self.run.harness.on(from, &event));
        self
    }

    /// Delivers the reply to the last command of this type that the actor has sent and that has no reply yet.
    ///
    /// # Panics
    /// If the actor has sent no such command, or each of them has a reply.
    #[track_caller]
    pub fn on_reply<D: Command>(mut self, reply: Result<D::Reply, Rejection>) -> Self {
        self.run.assert_no_unexpected();
        self.run.step = Some(self.run.harness.on_reply::<D>(&reply));
        self
    }

    /// Advances the time. It fires no timer: see [`fire_timer`](Self::fire_timer).
    ///
    /// Handlers see the new time from the next step on. A timer that has become due stays set.
    pub fn after(mut self, span: Duration) -> Self {
        self.run.harness.advance(span);
        self
    }

    /// Fires the timer `T` at its due time; the time advances to it.
    ///
    /// # Panics
    /// If the timer is not set.
    #[track_caller]
    pub fn fire_timer<T: Document>(mut self) -> Self
    where
        A: OnTimer<T>,
    {
        self.run.assert_no_unexpected();
        self.run.step = Some(self.run.harness.fire_timer::<T>(None));
        self
    }

    /// Fires the timer `T` of this [name](whizbang_runtime::Effects::set_named_timer), as
    /// [`fire_timer`](Self::fire_timer).
    ///
    /// # Panics
    /// If no timer of this name is set.
    #[track_caller]
    pub fn fire_named_timer<T: Document>(mut self, name: &str) -> Self
    where
        A: OnTimer<T>,
    {
        self.run.assert_no_unexpected();
        self.run.step = Some(self.run.harness.fire_timer::<T>(Some(name)));
        self
    }

    /// Reads the state, rebuilt from the stored events.
    ///
    /// It is for assertions about data that no event, command or reply shows. The turn is committed at this point.
    #[track_caller]
    pub fn state(mut self, look: impl FnOnce(&A)) -> Self {
        look(&self.run.harness.state());
        self
    }
}

impl<A: Stateful> Run<A> {
    /// Fails if the last step had effects that were not expected.
    #[track_caller]
    fn assert_no_unexpected(&self) {
        if let Some(difference) = self.step.as_ref().and_then(Step::unexpected_effects) {
            fail(&self.harness.report(), &difference);
        }
    }
}

impl<A: Stateful> Drop for Run<A> {
    fn drop(&mut self) {
        // After a failed expectation a second panic would abort the process.
        if !std::thread::panicking() {
            self.assert_no_unexpected();
        }
    }
}
