//! Given, when, then: one actor taken through messages by hand, what it asks for compared with what was expected.
//!
//! Called by users' tests. Runs the framework's own turns on a store in memory, one message at a time: what a scenario shows is
//! what a node would store. Nothing leaves the actor, time stands still until it is moved, and no runtime is needed around it.

#![expect(clippy::panic, reason = "an expectation that does not hold fails by panicking, as every assertion does")]

mod bench;
mod expect;
mod step;

use std::marker::PhantomData;
use std::time::Duration;

use crate::actor::Stateful;
use crate::aggregate::{Applies, Handle, React};
use crate::message::{Command, Document, Event, Rejection};
use crate::saga::OnTimer;
use bench::Bench;
use step::Step;

/// No command has been given yet.
#[derive(Debug)]
pub struct NoCommand;

/// One aggregate or saga under test.
///
/// ```
/// # use whizbang::doc_fixtures::*;
/// use whizbang::testing::Scenario;
///
/// Scenario::<Account>::new()
///     .given([Deposited { cents: 100 }])
///     .when(Deposit { account: "ada".into(), cents: 50 })
///     .replies(150)
///     .records(Deposited { cents: 50 });
/// ```
///
/// Each step ([`when`](Scenario::when), [`on`](Self::on), [`on_reply`](Self::on_reply), [`wake`](Self::wake)) is one turn; the
/// expectations behind it are about that turn. Events are compared by their bytes, so they need no `PartialEq`. A step whose
/// events are compared at all must record exactly those; the same holds for the commands it sends.
///
/// It has a small runtime of its own, so it is used in plain `#[test]` functions, not in async ones.
pub struct Scenario<A: Stateful, C = NoCommand> {
    run: Run<A>,
    command: PhantomData<fn(C)>,
}

/// The actor, and what its last turn did.
struct Run<A: Stateful> {
    bench: Bench<A>,
    step: Option<Step>,
}

impl<A: Stateful> Scenario<A> {
    /// An actor of which nothing is stored.
    pub fn new() -> Self {
        Self { run: Run { bench: Bench::new(), step: None }, command: PhantomData }
    }
}

impl<A: Stateful> Default for Scenario<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Stateful, C> Scenario<A, C> {
    /// Sets the actor's key. Needed only if no command or event says it first.
    #[track_caller]
    pub fn key(mut self, key: &str) -> Self {
        self.run.bench.is_key(key);
        self
    }

    /// The actor has recorded these events before. Several calls for several types; they keep their order.
    #[track_caller]
    pub fn given<E: Event>(mut self, events: impl IntoIterator<Item = E>) -> Self
    where
        A: Applies<E>,
    {
        self.run.checked();
        for event in events {
            self.run.bench.given(&event);
        }
        self
    }

    /// The actor takes a command.
    #[track_caller]
    pub fn when<D: Command>(mut self, command: D) -> Scenario<A, D>
    where
        A: Handle<D>,
    {
        self.run.checked();
        self.run.step = Some(self.run.bench.when(&command));
        Scenario { run: self.run, command: PhantomData }
    }

    /// The actor takes an event, recorded by the actor with the same key.
    #[track_caller]
    pub fn on<E: Event>(self, event: E) -> Self
    where
        A: React<E>,
    {
        self.on_from("", event)
    }

    /// The actor takes an event, recorded by the actor with the key `from`.
    #[track_caller]
    pub fn on_from<E: Event>(mut self, from: &str, event: E) -> Self
    where
        A: React<E>,
    {
        self.run.checked();
        self.run.step = Some(self.run.bench.on(from, &event));
        self
    }

    /// The actor hears the reply to the last command of this type that it has sent and that is not replied to.
    #[track_caller]
    pub fn on_reply<D: Command>(mut self, reply: Result<D::Reply, Rejection>) -> Self {
        self.run.checked();
        self.run.step = Some(self.run.bench.on_reply::<D>(&reply));
        self
    }

    /// Time passes. No timer rings by itself: see [`wake`](Self::wake).
    pub fn after(mut self, span: Duration) -> Self {
        self.run.bench.pass(span);
        self
    }

    /// The timer `T` rings, at the moment for which it is set; time passes until then.
    #[track_caller]
    pub fn wake<T: Document>(mut self) -> Self
    where
        A: OnTimer<T>,
    {
        self.run.checked();
        self.run.step = Some(self.run.bench.wake::<T>());
        self
    }

    /// Looks at the state, rebuilt from what is stored.
    #[track_caller]
    pub fn state(mut self, look: impl FnOnce(&A)) -> Self {
        look(&self.run.bench.state());
        self
    }
}

impl<A: Stateful> Run<A> {
    /// What the last step did and nobody has expected is a difference, too.
    #[track_caller]
    fn checked(&self) {
        if let Some(difference) = self.step.as_ref().and_then(Step::rest) {
            fail(&self.bench.story(), &difference);
        }
    }
}

impl<A: Stateful> Drop for Run<A> {
    fn drop(&mut self) {
        // Where a difference has been found already, a second panic would end the whole program.
        if !std::thread::panicking() {
            self.checked();
        }
    }
}

/// A difference between what was expected and what happened ends the test.
#[track_caller]
fn fail(story: &str, difference: &str) -> ! {
    panic!("{story}{difference}")
}
