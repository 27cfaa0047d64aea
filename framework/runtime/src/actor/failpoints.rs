//! Fault injection for user code in simulations: a handler panics; a job fails, hangs or is killed after its effect.
//!
//! Called by the simulated cluster of `whizbang-testing`, which runs on one thread, by the dispatchers before they
//! call user code, and by workers after it. Compiled only with the feature `testing`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use tokio::sync::Notify;

use whizbang_core::message::{Envelope, MessageId};

/// The most faults injected into one message: it must succeed before its attempts are used up.
const MAX_PER_MESSAGE: u32 = 2;

/// A fault to inject.
#[derive(Clone, Debug)]
pub enum Failpoint {
    /// A handler or a job panics before it does anything.
    Panic,
    /// A job fails after its effect.
    Fail,
    /// A job never ends after its effect: the node's time limit ends it.
    Hang,
    /// A job never ends after its effect; the receiver of the notification kills its process.
    Kill(Rc<Notify>),
    /// A message of an actor panics in every attempt until it is cured.
    Poison,
}

/// The number of faults injected so far.
pub type Count = Rc<Cell<u64>>;

/// The faults armed on this thread.
#[derive(Default, Debug)]
pub struct Failpoints {
    armed: Vec<Armed>,
    hits: BTreeMap<MessageId, u32>,
    poisoned: Vec<(MessageId, Count)>,
}

#[derive(Debug)]
struct Armed {
    domain: String,
    failpoint: Failpoint,
    remaining: u32,
    count: Count,
}

thread_local! {
    static FAILPOINTS: RefCell<Failpoints> = RefCell::default();
}

impl Failpoints {
    /// Arms a fault for the next `times` messages of a domain.
    pub fn arm(domain: &str, failpoint: Failpoint, times: u32, count: &Count) {
        let armed = Armed { domain: domain.to_owned(), failpoint, remaining: times, count: Rc::clone(count) };
        FAILPOINTS.with_borrow_mut(|failpoints| failpoints.armed.push(armed));
    }

    /// Disarms the faults with this counter.
    pub fn disarm(count: &Count) {
        FAILPOINTS.with_borrow_mut(|failpoints| failpoints.armed.retain(|armed| !Rc::ptr_eq(&armed.count, count)));
    }

    /// Disarms every fault.
    pub fn clear() {
        FAILPOINTS.with_borrow_mut(|failpoints| *failpoints = Self::default());
    }

    /// Panics if a panic is due in the domain: like a panic in user code, but without output on the console.
    pub(crate) fn hit(domain: &str, envelope: &Envelope) {
        let message = envelope.id;
        if envelope.origin.is_some() {
            Self::poison(domain, message);
        }
        if Self::is_poisoned(message)
            || Self::take_due(domain, message, |failpoint| matches!(failpoint, Failpoint::Panic)).is_some()
        {
            std::panic::resume_unwind(Box::new("injected panic in a handler"));
        }
    }

    /// Returns the fault to inject into a job after its effect, if one is due in the domain.
    pub(crate) fn after_effect(domain: &str, message: MessageId) -> Option<Failpoint> {
        Self::take_due(domain, message, |failpoint| !matches!(failpoint, Failpoint::Panic | Failpoint::Poison))
    }

    /// Returns the message that was poisoned with this counter.
    pub fn poisoned(count: &Count) -> Option<MessageId> {
        FAILPOINTS.with_borrow(|failpoints| {
            let mut poisoned = failpoints.poisoned.iter();
            poisoned.find(|(_, of)| Rc::ptr_eq(of, count)).map(|(message, _)| *message)
        })
    }

    /// Cures a poisoned message.
    pub fn cure(message: MessageId) {
        FAILPOINTS.with_borrow_mut(|failpoints| failpoints.poisoned.retain(|(of, _)| *of != message));
    }

    fn is_poisoned(message: MessageId) -> bool {
        FAILPOINTS.with_borrow(|failpoints| failpoints.poisoned.iter().any(|(of, _)| *of == message))
    }

    /// Poisons a message, if that is due in the domain.
    fn poison(domain: &str, message: MessageId) {
        FAILPOINTS.with_borrow_mut(|failpoints| {
            let is_due = |armed: &&mut Armed| {
                armed.remaining > 0 && armed.domain == domain && matches!(armed.failpoint, Failpoint::Poison)
            };
            // One of the domains of a service is enough.
            if let Some(armed) = failpoints.armed.iter_mut().find(is_due).filter(|armed| armed.count.get() == 0) {
                armed.remaining = 0;
                armed.count.set(1);
                failpoints.poisoned.push((message, Rc::clone(&armed.count)));
            }
        });
    }

    fn take_due(domain: &str, message: MessageId, is: impl Fn(&Failpoint) -> bool) -> Option<Failpoint> {
        FAILPOINTS.with_borrow_mut(|failpoints| {
            let mut armed = failpoints.armed.iter_mut();
            let armed = armed.find(|armed| armed.remaining > 0 && armed.domain == domain && is(&armed.failpoint))?;
            let hits = failpoints.hits.entry(message).or_default();
            if *hits >= MAX_PER_MESSAGE {
                return None;
            }
            *hits += 1;
            armed.remaining -= 1;
            armed.count.set(armed.count.get() + 1);
            Some(armed.failpoint.clone())
        })
    }
}
