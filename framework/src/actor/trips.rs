//! Where simulations let handlers panic: a clumsy handler is a fault like any other.
//!
//! Called by the [simulated cluster](crate::testing::sim), which runs on one thread, and by the doors before they call user
//! code. Without the feature `testing` there is none of it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::message::MessageId;

/// How often one message is tripped at most: it must get through before its attempts are used up.
const EACH: u32 = 2;

/// The panics that are to come on this thread.
#[derive(Default)]
pub(crate) struct Trips {
    armed: BTreeMap<String, u32>,
    tripped: BTreeMap<MessageId, u32>,
}

thread_local! {
    static TRIPS: RefCell<Trips> = RefCell::default();
}

impl Trips {
    /// Lets the next `times` handlers of a domain panic.
    pub(crate) fn arm(domain: &str, times: u32) {
        TRIPS.with_borrow_mut(|trips| trips.armed.insert(domain.to_owned(), times));
    }

    /// How many times a handler has panicked since [`clear`](Self::clear).
    pub(crate) fn tripped() -> u64 {
        TRIPS.with_borrow(|trips| trips.tripped.values().map(|times| u64::from(*times)).sum())
    }

    /// Lets nothing panic any more.
    pub(crate) fn clear() {
        TRIPS.with_borrow_mut(|trips| *trips = Self::default());
    }

    /// Panics, if a panic is due in the domain. As a panic in user code would, but without a word on the console.
    pub(crate) fn trip(domain: &str, message: MessageId) {
        let due = TRIPS.with_borrow_mut(|trips| {
            let Some(armed) = trips.armed.get_mut(domain).filter(|armed| **armed > 0) else { return false };
            let tripped = trips.tripped.entry(message).or_default();
            if *tripped >= EACH {
                return false;
            }
            *tripped += 1;
            *armed -= 1;
            true
        });
        if due {
            std::panic::resume_unwind(Box::new("a simulated handler panics"));
        }
    }
}
