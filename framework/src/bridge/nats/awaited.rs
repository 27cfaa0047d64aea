//! What was written and is not answered yet, and how much of it may wait for the acknowledgement of a stream.
//!
//! Used by what goes out alone.

use std::collections::HashMap;

use async_nats::{Message, Subject};
use tokio::sync::oneshot;

use super::acknowledgement::Untaken;
use crate::bridge::BridgeError;

/// How many messages may wait for their acknowledgement by a stream.
const WINDOW: usize = 1024;
/// How many bytes of payload they have at most; one message may have more.
const WINDOW_BYTES: usize = 16 << 20;

/// What is awaited after a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Awaits {
    /// The stream's acknowledgement: counts in the window, and fails when the connection is lost.
    Acknowledgement,
    /// Somebody's answer, which may still come after the connection was lost.
    Answer,
}

/// What came back.
#[derive(Clone, Debug)]
pub(super) enum Answered {
    /// Somebody's answer.
    Message(Message),
    /// What the stream says.
    Stream(Result<(), Untaken>),
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum Unanswered {
    /// It was not sent.
    NotSent(BridgeError),
    /// It was sent, and the connection was lost before an answer came: it may have arrived.
    Lost,
}

pub(super) struct Awaited {
    /// Known once it is written.
    pub(super) subject: Option<Subject>,
    pub(super) awaits: Awaits,
    /// Its bytes, once it is written. Of a pack only the first counts in the window.
    pub(super) written: Option<usize>,
    /// What else is in the same pack: one answer is for all.
    pub(super) others: Vec<u64>,
    pub(super) done: oneshot::Sender<Result<Answered, Unanswered>>,
}

/// What is not answered, by number.
#[derive(Default)]
pub(super) struct Open {
    pub(super) awaited: HashMap<u64, Awaited, foldhash::fast::FixedState>,
    unacknowledged: usize,
    bytes: usize,
}

impl Open {
    /// Whether one more message may be written that waits for its acknowledgement.
    pub(super) fn has_room(&self) -> bool {
        self.unacknowledged < WINDOW && self.bytes < WINDOW_BYTES
    }

    /// Whether a stream still has to acknowledge something.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.unacknowledged == 0
    }

    /// Notes that a message is being written. Returns `false` if its sender no longer waits.
    pub(super) fn write(&mut self, number: u64, subject: &Subject, bytes: usize) -> bool {
        let Some(awaited) = self.awaited.get_mut(&number) else { return false };
        awaited.written = Some(bytes);
        awaited.subject = Some(subject.clone());
        if awaited.awaits == Awaits::Acknowledgement {
            self.unacknowledged += 1;
            self.bytes += bytes;
        }
        true
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Awaited> {
        let awaited = self.awaited.remove(&number)?;
        if let Some(bytes) = awaited.written.filter(|_| awaited.awaits == Awaits::Acknowledgement) {
            self.unacknowledged -= 1;
            self.bytes -= bytes;
        }
        Some(awaited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unacknowledged_messages_are_bounded_in_count_and_bytes() {
        for (bytes, most) in [(0, WINDOW), (WINDOW_BYTES / 4, 4), (2 * WINDOW_BYTES, 1)] {
            let mut open = Open::default();
            let mut written = 0;
            while open.has_room() {
                let (done, _) = oneshot::channel();
                let awaits = Awaits::Acknowledgement;
                let awaited = Awaited { subject: None, awaits, written: None, others: Vec::new(), done };
                open.awaited.insert(written, awaited);
                assert!(open.write(written, &Subject::from("a"), bytes));
                written += 1;
            }
            assert_eq!(written, most as u64);
            assert!(open.remove(0).is_some() && open.has_room() && !open.write(0, &Subject::from("a"), bytes));
            (1..written).for_each(|number| drop(open.remove(number)));
            assert!(open.is_acknowledged() && open.bytes == 0);
        }
    }
}
