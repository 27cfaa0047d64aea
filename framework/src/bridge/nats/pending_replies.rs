//! What was written and is not answered yet, and how much of it may wait for the acknowledgement of a stream.
//!
//! Used by what goes out alone.

use std::collections::HashMap;

use async_nats::{Message, Subject};
use tokio::sync::oneshot;

use super::acknowledgement::PublishFailure;
use crate::bridge::BridgeError;

/// How many messages may wait for their acknowledgement by a stream.
const MAX_UNACKNOWLEDGED: usize = 1024;
/// How many bytes of payload they have at most; one message may have more.
const MAX_UNACKNOWLEDGED_BYTES: usize = 16 << 20;

/// What is awaited after a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyKind {
    /// The stream's acknowledgement: counts in the window, and fails when the connection is lost.
    Acknowledgement,
    /// Somebody's answer, which may still come after the connection was lost.
    Response,
}

/// What came back.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// Somebody's answer.
    Response(Message),
    /// What the stream says.
    Acknowledgement(Result<(), PublishFailure>),
}

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) enum ReplyError {
    /// It was not sent.
    NotSent(BridgeError),
    /// It was sent, and the connection was lost before an answer came: it may have arrived.
    ConnectionLost,
}

pub(super) struct PendingReply {
    /// Known once it is written.
    pub(super) subject: Option<Subject>,
    pub(super) kind: ReplyKind,
    /// Its bytes, once it is written. Of a pack only the first counts in the window.
    pub(super) written_bytes: Option<usize>,
    /// What else is in the same pack: one answer is for all.
    pub(super) packed_with: Vec<u64>,
    pub(super) reply: oneshot::Sender<Result<Reply, ReplyError>>,
}

/// What is not answered, by number.
#[derive(Default)]
pub(super) struct PendingReplies {
    pub(super) entries: HashMap<u64, PendingReply, foldhash::fast::FixedState>,
    unacknowledged: usize,
    bytes: usize,
}

impl PendingReplies {
    /// Whether one more message may be written that waits for its acknowledgement.
    pub(super) fn has_capacity(&self) -> bool {
        self.unacknowledged < MAX_UNACKNOWLEDGED && self.bytes < MAX_UNACKNOWLEDGED_BYTES
    }

    /// Whether a stream still has to acknowledge something.
    pub(super) fn all_acknowledged(&self) -> bool {
        self.unacknowledged == 0
    }

    /// Notes that a message is being written. Returns `false` if its sender no longer waits.
    pub(super) fn mark_written(&mut self, number: u64, subject: &Subject, bytes: usize) -> bool {
        let Some(awaited) = self.entries.get_mut(&number) else { return false };
        awaited.written_bytes = Some(bytes);
        awaited.subject = Some(subject.clone());
        if awaited.kind == ReplyKind::Acknowledgement {
            self.unacknowledged += 1;
            self.bytes += bytes;
        }
        true
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<PendingReply> {
        let awaited = self.entries.remove(&number)?;
        if let Some(bytes) = awaited.written_bytes.filter(|_| awaited.kind == ReplyKind::Acknowledgement) {
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
        for (bytes, most) in
            [(0, MAX_UNACKNOWLEDGED), (MAX_UNACKNOWLEDGED_BYTES / 4, 4), (2 * MAX_UNACKNOWLEDGED_BYTES, 1)]
        {
            let mut open = PendingReplies::default();
            let mut written = 0;
            while open.has_capacity() {
                let (done, _) = oneshot::channel();
                let awaits = ReplyKind::Acknowledgement;
                let awaited = PendingReply {
                    subject: None,
                    kind: awaits,
                    written_bytes: None,
                    packed_with: Vec::new(),
                    reply: done,
                };
                open.entries.insert(written, awaited);
                assert!(open.mark_written(written, &Subject::from("a"), bytes));
                written += 1;
            }
            assert_eq!(written, most as u64);
            assert!(
                open.remove(0).is_some() && open.has_capacity() && !open.mark_written(0, &Subject::from("a"), bytes)
            );
            (1..written).for_each(|number| drop(open.remove(number)));
            assert!(open.all_acknowledged() && open.bytes == 0);
        }
    }
}
