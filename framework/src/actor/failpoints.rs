//! Where simulations let user code go wrong: a handler panics, a job fails, hangs or dies once its effect is done.
//!
//! Called by the [simulated cluster](crate::testing::sim), which runs on one thread, by the doors before they call user code,
//! and by workers after it. Without the feature `testing` there is none of it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::message::{Envelope, MessageId};

/// How often one message is tripped at most: it must get through before its attempts are used up.
const EACH: u32 = 2;

/// What goes wrong.
#[derive(Clone, Debug)]
pub(crate) enum Failpoint {
    /// A handler or a job panics before it does anything.
    Panics,
    /// A job fails once its effect is done.
    Fails,
    /// A job never ends once its effect is done: the node's limit of time ends it.
    Hangs,
    /// A job never ends once its effect is done, and who is notified kills its process.
    Dies(Rc<Notify>),
    /// A message of an actor panics in every attempt, until it is cured.
    Poisons,
}

/// How often a trip that was armed has come, counted while it comes.
pub(crate) type Count = Rc<Cell<u64>>;

/// What is to go wrong on this thread.
#[derive(Default)]
pub(crate) struct Failpoints {
    armed: Vec<Armed>,
    tripped: BTreeMap<MessageId, u32>,
    poisoned: Vec<(MessageId, Count)>,
}

struct Armed {
    domain: String,
    trip: Failpoint,
    left: u32,
    count: Count,
}

thread_local! {
    static TRIPS: RefCell<Failpoints> = RefCell::default();
}

impl Failpoints {
    /// Lets the next `times` messages of a domain trip.
    pub(crate) fn arm(domain: &str, trip: Failpoint, times: u32, count: &Count) {
        let armed = Armed { domain: domain.to_owned(), trip, left: times, count: Rc::clone(count) };
        TRIPS.with_borrow_mut(|trips| trips.armed.push(armed));
    }

    /// Takes back what was armed with this count.
    pub(crate) fn disarm(count: &Count) {
        TRIPS.with_borrow_mut(|trips| trips.armed.retain(|armed| !Rc::ptr_eq(&armed.count, count)));
    }

    /// Lets nothing go wrong any more.
    pub(crate) fn clear() {
        TRIPS.with_borrow_mut(|trips| *trips = Self::default());
    }

    /// Panics, if a panic is due in the domain. As a panic in user code would, but without a word on the console.
    pub(crate) fn trip(domain: &str, envelope: &Envelope) {
        let message = envelope.id;
        if envelope.origin.is_some() {
            Self::poison(domain, message);
        }
        if Self::is_poisoned(message) || Self::due(domain, message, |trip| matches!(trip, Failpoint::Panics)).is_some()
        {
            std::panic::resume_unwind(Box::new("a simulated handler panics"));
        }
    }

    /// What goes wrong with a job whose effect is done, if something is due in the domain.
    pub(crate) fn after_effect(domain: &str, message: MessageId) -> Option<Failpoint> {
        Self::due(domain, message, |trip| !matches!(trip, Failpoint::Panics | Failpoint::Poisons))
    }

    /// The message that was poisoned with this count.
    pub(crate) fn poisoned(count: &Count) -> Option<MessageId> {
        TRIPS.with_borrow(|trips| {
            let mut poisoned = trips.poisoned.iter();
            poisoned.find(|(_, of)| Rc::ptr_eq(of, count)).map(|(message, _)| *message)
        })
    }

    /// Lets a message fail no more.
    pub(crate) fn cure(message: MessageId) {
        TRIPS.with_borrow_mut(|trips| trips.poisoned.retain(|(of, _)| *of != message));
    }

    fn is_poisoned(message: MessageId) -> bool {
        TRIPS.with_borrow(|trips| trips.poisoned.iter().any(|(of, _)| *of == message))
    }

    /// Poisons a message, if that is due in the domain.
    fn poison(domain: &str, message: MessageId) {
        TRIPS.with_borrow_mut(|trips| {
            let is_due = |armed: &&mut Armed| {
                armed.left > 0 && armed.domain == domain && matches!(armed.trip, Failpoint::Poisons)
            };
            // One of the domains of a service is enough.
            if let Some(armed) = trips.armed.iter_mut().find(is_due).filter(|armed| armed.count.get() == 0) {
                armed.left = 0;
                armed.count.set(1);
                trips.poisoned.push((message, Rc::clone(&armed.count)));
            }
        });
    }

    fn due(domain: &str, message: MessageId, is: impl Fn(&Failpoint) -> bool) -> Option<Failpoint> {
        TRIPS.with_borrow_mut(|trips| {
            let mut armed = trips.armed.iter_mut();
            let armed = armed.find(|armed| armed.left > 0 && armed.domain == domain && is(&armed.trip))?;
            let tripped = trips.tripped.entry(message).or_default();
            if *tripped >= EACH {
                return None;
            }
            *tripped += 1;
            armed.left -= 1;
            armed.count.set(armed.count.get() + 1);
            Some(armed.trip.clone())
        })
    }
}
