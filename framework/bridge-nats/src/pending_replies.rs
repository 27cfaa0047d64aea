//! Written messages that wait for a reply, and the limit of those that wait for the acknowledgement of a stream.
//!
//! Used by the publisher only.

use std::collections::HashMap;

use async_nats::{Message, Subject};
use tokio::sync::oneshot;

use super::acknowledgement::PublishFailure;
use whizbang_core::bridge::BridgeError;

/// The maximum number of messages that wait for an acknowledgement.
const MAX_UNACKNOWLEDGED: usize = 1024;
/// The maximum total payload of these messages in bytes; a single message may exceed it.
const MAX_UNACKNOWLEDGED_BYTES: usize = 16 << 20;

/// The kind of reply that a message waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyKind {
    /// The acknowledgement of a stream: counts in the window, and fails when the connection is lost.
    Acknowledgement,
    /// The response of another node, which may still arrive after a reconnection.
    Response,
}

/// A received reply.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// The response of another node.
    Response(Message),
    /// The acknowledgement of a stream.
    Acknowledgement(Result<(), PublishFailure>),
}

/// The reason for a missing reply.
#[derive(Clone, Debug)]
pub(super) enum ReplyError {
    /// The message was not sent.
    NotSent(BridgeError),
    /// The message was sent and the connection was lost before a reply arrived: it may have been delivered.
    ConnectionLost,
}

/// A message from its registration to its reply.
pub(super) struct PendingReply {
    /// The subject, known once the message is written.
    pub(super) subject: Option<Subject>,
    /// The kind of reply. Only acknowledgements count in the window.
    pub(super) kind: ReplyKind,
    /// The size in bytes, known once the message is written.
    pub(super) written_bytes: Option<usize>,
    /// Completes the sender's future.
    pub(super) reply: oneshot::Sender<Result<Reply, ReplyError>>,
}

/// The messages without a reply, by number.
#[derive(Default)]
pub(super) struct PendingReplies {
    /// All registered messages, written or not.
    pub(super) entries: HashMap<u64, PendingReply, foldhash::fast::FixedState>,
    /// The number of written messages that wait for an acknowledgement.
    unacknowledged: usize,
    /// The payload bytes of these messages.
    bytes: usize,
}

impl PendingReplies {
    /// Returns true if one more message that waits for an acknowledgement may be written.
    pub(super) fn has_capacity(&self) -> bool {
        self.unacknowledged < MAX_UNACKNOWLEDGED && self.bytes < MAX_UNACKNOWLEDGED_BYTES
    }

    /// Returns true if no message waits for an acknowledgement.
    pub(super) fn all_acknowledged(&self) -> bool {
        self.unacknowledged == 0
    }

    /// Records that a message is being written, and returns the kind of its reply. `None` if its sender no longer waits.
    pub(super) fn mark_written(&mut self, number: u64, subject: &Subject, bytes: usize) -> Option<ReplyKind> {
        let entry = self.entries.get_mut(&number)?;
        entry.written_bytes = Some(bytes);
        entry.subject = Some(subject.clone());
        if entry.kind == ReplyKind::Acknowledgement {
            self.unacknowledged += 1;
            self.bytes += bytes;
        }
        Some(entry.kind)
    }

    /// Removes a message and returns its capacity to the window. The caller completes it.
    pub(super) fn remove(&mut self, number: u64) -> Option<PendingReply> {
        let entry = self.entries.remove(&number)?;
        if let Some(bytes) = entry.written_bytes.filter(|_| entry.kind == ReplyKind::Acknowledgement) {
            self.unacknowledged -= 1;
            self.bytes -= bytes;
        }
        Some(entry)
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
            let mut pending = PendingReplies::default();
            let mut written = 0;
            while pending.has_capacity() {
                let (reply, _) = oneshot::channel();
                let kind = ReplyKind::Acknowledgement;
                let entry = PendingReply { subject: None, kind, written_bytes: None, reply };
                pending.entries.insert(written, entry);
                assert_eq!(pending.mark_written(written, &Subject::from("a"), bytes), Some(kind));
                written += 1;
            }
            assert_eq!(written, most as u64);
            assert!(pending.remove(0).is_some() && pending.has_capacity());
            assert_eq!(pending.mark_written(0, &Subject::from("a"), bytes), None);
            (1..written).for_each(|number| drop(pending.remove(number)));
            assert!(pending.all_acknowledged() && pending.bytes == 0);
        }
    }
}
