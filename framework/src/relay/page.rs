//! Pages of a log and of an outbox that are bounded in bytes.
//!
//! Called wherever events or outbox entries are read to be sent, answered or taken. A store reads by count, and an entry has
//! from no bytes to half a megabyte: so a page is read in steps, which grow only while the entries turn out to be small.

use crate::message::ShardId;
use crate::store::{OutboxEntry, ShardReader, StoreError, StoredEvent};

/// The bytes of payload after which a page ends. The last entry of a page may exceed them.
pub(crate) const PAGE_BYTES: usize = 1 << 20;
/// How many entries are read in the first step: of the largest size they have 4 MiB.
const FIRST: usize = 8;
/// How many entries are read in one step at most.
const MOST: usize = 32;

/// Events above a position: `limit` at most, and no more after [`PAGE_BYTES`].
pub(crate) async fn events(reader: &dyn ShardReader, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
    let (mut page, mut read) = (Vec::new(), Read::default());
    while let Some(step) = read.step(limit) {
        let after = page.last().map_or(after, |event: &StoredEvent| event.position);
        let events = reader.events(after, step).await?;
        read.took(step, events.iter().map(|event| event.payload.len()));
        page.extend(events);
    }
    read.cut(&mut page, |event| event.payload.len());
    Ok(page)
}

/// Outbox entries for `to` above a sequence: `limit` at most, and no more after [`PAGE_BYTES`].
pub(crate) async fn outbox(
    reader: &dyn ShardReader,
    to: &ShardId,
    after: u64,
    limit: usize,
) -> Result<Vec<OutboxEntry>, StoreError> {
    let (mut page, mut read) = (Vec::new(), Read::default());
    while let Some(step) = read.step(limit) {
        let after = page.last().map_or(after, |entry: &OutboxEntry| entry.sequence);
        let entries = reader.outbox(to, after, step).await?;
        read.took(step, entries.iter().map(|entry| entry.envelope.payload.len()));
        page.extend(entries);
    }
    read.cut(&mut page, |entry| entry.envelope.payload.len());
    Ok(page)
}

/// How far a page is read.
#[derive(Default)]
struct Read {
    count: usize,
    bytes: usize,
    /// The size of the largest entry so far.
    largest: usize,
    /// There is nothing more to be read.
    ended: bool,
}

impl Read {
    /// How many entries to read next; `None` if the page is full, or there are no more.
    fn step(&self, limit: usize) -> Option<usize> {
        let left = limit.saturating_sub(self.count);
        if self.ended || left == 0 || self.bytes >= PAGE_BYTES {
            return None;
        }
        // Twice as many as were read, and as many as have room if they are like the largest of those.
        let fit = (PAGE_BYTES - self.bytes) / self.largest.max(1);
        Some(self.count.min(fit).clamp(1, MOST).max(if self.count == 0 { FIRST } else { 1 }).min(left))
    }

    fn took(&mut self, step: usize, sizes: impl Iterator<Item = usize>) {
        let before = self.count;
        for size in sizes {
            self.count += 1;
            self.bytes += size;
            self.largest = self.largest.max(size);
        }
        self.ended = self.count - before < step;
    }

    /// Drops what was read behind the entry with which the page is full.
    fn cut<T>(&self, page: &mut Vec<T>, size: impl Fn(&T) -> usize) {
        let mut bytes = 0;
        let full = page.iter().position(|entry| {
            bytes += size(entry);
            bytes >= PAGE_BYTES
        });
        if let Some(last) = full {
            page.truncate(last + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many entries of these sizes a page has, and how many were read at most in one step.
    fn page(sizes: &[usize], limit: usize) -> (usize, usize) {
        let (mut entries, mut read, mut most) = (Vec::new(), Read::default(), 0);
        while let Some(step) = read.step(limit) {
            let taken: Vec<usize> = sizes.iter().skip(entries.len()).take(step).copied().collect();
            read.took(step, taken.iter().copied());
            most = most.max(taken.iter().sum());
            entries.extend(taken);
        }
        read.cut(&mut entries, |size| *size);
        (entries.len(), most)
    }

    #[test]
    fn pages_are_bounded_in_count_and_bytes() {
        assert_eq!(page(&[10; 1000], 256).0, 256);
        assert_eq!(page(&[10; 100], 256).0, 100);
        assert_eq!(page(&[], 256).0, 0);
        assert_eq!(page(&[0; 1000], 1000).0, 1000);
        let large = page(&[400_000; 1500], 1024);
        assert_eq!(large, (3, FIRST * 400_000));
        // Small ones at the front are no promise for those behind them.
        let mixed: Vec<usize> = std::iter::repeat_n(100, 64).chain(std::iter::repeat_n(500_000, 1000)).collect();
        let (count, most) = page(&mixed, 1024);
        assert_eq!(count, 67);
        assert!(most <= MOST * 500_000, "{most}");
    }
}
