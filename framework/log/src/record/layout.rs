//! The bits and numbers in the record of a turn. They are frozen: every released one keeps its meaning.

/// The correlation id follows. Without the bit it is the id of the turn.
pub(super) const CORRELATION: u8 = 1;
/// The trace context follows.
pub(super) const TRACEPARENT: u8 = 1 << 1;
/// The codec and the bytes of the reply follow.
pub(super) const REPLY: u8 = 1 << 2;
/// The link to the record with the event before, and the events follow.
pub(super) const EVENTS: u8 = 1 << 3;
/// The messages that were sent follow.
pub(super) const OUTBOX: u8 = 1 << 4;
/// The timers that were set and cleared follow.
pub(super) const TIMERS: u8 = 1 << 5;
/// The notes of the actor and the headers follow.
pub(super) const NOTES: u8 = 1 << 6;
/// The turn's id contains the time of the turn, so the time is not written.
pub(super) const TIME_OF_ID: u8 = 1 << 7;

/// The turn handled nothing that could be repeated.
pub(super) const MARK_NONE: u8 = 0;
/// The turn handled a message from outside: its digest follows, and its id is that of the turn.
pub(super) const MARK_OUTSIDE: u8 = 1;
/// The turn handled a message with a sequence: source, sequence and floor follow.
pub(super) const MARK_FROM: u8 = 2;
/// The turn handled a timer: its stored name follows.
pub(super) const MARK_TIMER: u8 = 3;

/// The timer with the following name was cleared.
pub(super) const TIMER_CLEAR: u8 = 0;
/// A timer was set: name, due time, version, codec and payload follow.
pub(super) const TIMER_SET: u8 = 1;

/// An attempt has failed or may have: message and number of the attempt.
pub(super) const NOTE_ATTEMPT: u8 = 1;
/// A message became a dead letter.
pub(super) const NOTE_DEAD_LETTER: u8 = 2;
/// A dead letter was redriven or discarded.
pub(super) const NOTE_RESOLVED: u8 = 3;
/// A saga has ended.
pub(super) const NOTE_ENDED: u8 = 4;
/// A note of the framework's actor code, which the store does not read.
pub(super) const NOTE_OWN: u8 = 5;
/// The headers of the turn, which are not a note of the actor. The flags of a turn have no bit left.
pub(super) const NOTE_HEADERS: u8 = 6;
