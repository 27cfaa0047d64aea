//! The bytes of the messages that a consumer has received and not completed.
//!
//! Used by the consumer loop, which pulls nothing more while a consumer holds too many. A message takes its bytes along wherever
//! it goes, and returns them when it is completed, released or dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes that a consumer holds.
#[derive(Clone, Debug, Default)]
pub(super) struct HeldBytes(Arc<AtomicUsize>);

impl HeldBytes {
    /// Returns the sum over the messages.
    pub(super) fn sum(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds the bytes of a message.
    pub(super) fn hold(&self, bytes: usize) -> MessageBytes {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        MessageBytes { all: self.clone(), bytes }
    }
}

/// The bytes of one message. Dropping it returns them.
#[derive(Debug)]
pub(super) struct MessageBytes {
    all: HeldBytes,
    bytes: usize,
}

impl Drop for MessageBytes {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_held_until_their_message_is_dropped() {
        let held = HeldBytes::default();
        let (first, second) = (held.hold(10), held.hold(5));
        assert_eq!(held.sum(), 15);
        drop(first);
        assert_eq!(held.sum(), 5);
        drop(second);
        assert_eq!(held.sum(), 0);
    }
}
