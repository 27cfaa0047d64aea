//! The bits and numbers in the record of a turn. They are frozen: every released one keeps its meaning.

pub(super) const CORRELATION: u8 = 1;
pub(super) const TRACEPARENT: u8 = 1 << 1;
pub(super) const REPLY: u8 = 1 << 2;
pub(super) const EVENTS: u8 = 1 << 3;
pub(super) const OUTBOX: u8 = 1 << 4;
pub(super) const TIMERS: u8 = 1 << 5;
pub(super) const NOTES: u8 = 1 << 6;
/// The turn's id contains the time of the turn, so the time is not written.
pub(super) const TIME_OF_ID: u8 = 1 << 7;

pub(super) const MARK_NONE: u8 = 0;
pub(super) const MARK_OUTSIDE: u8 = 1;
pub(super) const MARK_FROM: u8 = 2;
pub(super) const MARK_TIMER: u8 = 3;

pub(super) const TIMER_CLEAR: u8 = 0;
pub(super) const TIMER_SET: u8 = 1;

pub(super) const NOTE_ATTEMPT: u8 = 1;
pub(super) const NOTE_DEAD_LETTER: u8 = 2;
pub(super) const NOTE_RESOLVED: u8 = 3;
pub(super) const NOTE_ENDED: u8 = 4;
pub(super) const NOTE_OWN: u8 = 5;
/// Not a note of the actor: the headers of the turn. The flags of a turn have no bit left.
pub(super) const NOTE_HEADERS: u8 = 6;
