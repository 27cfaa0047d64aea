//! A number that is the sum of parts, each of which leaves it when it is dropped.
//!
//! Used for the messages that wait at the server for all consumers, and for the bytes of the messages that a consumer holds. The
//! consumer loop changes the parts; any thread reads the sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The sum of its parts.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum(Arc<AtomicU64>);

impl Sum {
    /// Returns the sum now.
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds a part.
    pub(super) fn add(&self, amount: u64) -> Part {
        let mut part = Part { sum: self.clone(), amount: 0 };
        part.set(amount);
        part
    }
}

/// A part of a [`Sum`]. Dropping it subtracts its amount.
#[derive(Debug)]
pub(super) struct Part {
    sum: Sum,
    amount: u64,
}

impl Part {
    /// Replaces the amount.
    pub(super) fn set(&mut self, amount: u64) {
        // Wrapping: the difference may be negative.
        self.sum.0.fetch_add(amount.wrapping_sub(self.amount), Ordering::Relaxed);
        self.amount = amount;
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_that_of_the_parts_that_exist() {
        let sum = Sum::default();
        let (mut first, second) = (sum.add(7), sum.add(10));
        assert_eq!(sum.get(), 17);
        first.set(3);
        assert_eq!(sum.get(), 13);
        drop(second);
        assert_eq!(sum.get(), 3);
        drop(first);
        assert_eq!(sum.get(), 0);
    }
}
