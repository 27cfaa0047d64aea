//! Requests of timers: set or cleared under the names of their type and their own.
//!
//! Called by [`Effects`](super::effects::Effects), which adds the types.

use std::borrow::Cow;
use std::ops::Range;

use super::requested::{RequestedEffects, TimerSlot};
use super::timer_name::{is_valid, named, stored};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{CodecError, MessageFacts};

impl RequestedEffects {
    /// Sets a timer whose document is encoded already.
    pub(crate) fn set_timer(
        &mut self,
        document: &MessageFacts,
        own: Option<&str>,
        due: Timestamp,
        payload: Range<usize>,
    ) {
        self.clear_former(document, own);
        if let Some(name) = self.timer_of(document.domain, document.name, own) {
            let (version, codec) = (document.version, document.codec);
            self.timers.push(TimerSlot::Set { name, due, version, codec, payload });
        }
    }

    /// Clears a timer.
    pub(crate) fn clear_timer(&mut self, document: &MessageFacts, own: Option<&str>) {
        self.clear_former(document, own);
        if let Some(name) = self.timer_of(document.domain, document.name, own) {
            self.timers.push(TimerSlot::Clear { name });
        }
    }

    /// Clears timers that were set under former names of the type: it is one timer.
    fn clear_former(&mut self, document: &MessageFacts, own: Option<&str>) {
        for former in document.names().filter(|name| *name != document.name) {
            if let Some(name) = self.timer_of(document.domain, former, own) {
                self.timers.push(TimerSlot::Clear { name });
            }
        }
    }

    /// Returns the stored name of a timer; `None` if its own name is invalid, which fails the turn.
    fn timer_of(&mut self, domain: &str, name: &'static str, own: Option<&str>) -> Option<Cow<'static, str>> {
        let stored = stored(self.identity.facts.domain, domain, name);
        match own {
            None => Some(stored),
            Some(own) if is_valid(own) => Some(named(&stored, own).into()),
            Some(own) => {
                let reason = format!("invalid name of a timer: {} bytes, expected 1 to 128 printable ones", own.len());
                self.error.get_or_insert(CodecError::Encode { reason });
                None
            }
        }
    }
}
