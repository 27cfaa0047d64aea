//! Pages of a log or an outbox, bounded in bytes.
//!
//! Called wherever events or outbox entries are read to be sent, returned or handled. A store reads by count, and an
//! entry has from zero bytes to half a megabyte, so a page is read in steps, which grow only while the entries are
//! small.

use whizbang_core::message::ShardId;
use whizbang_core::store::{OutboxEntry, ShardReader, StoreError, StoredEvent};

/// Payload bytes after which a page ends. Its last entry may exceed them.
pub(crate) const PAGE_BYTES: usize = 1 << 20;
/// Number of entries in the first step: 4 MiB if each has the largest size.
const FIRST_STEP: usize = 8;
/// Most entries read in one step.
const MAX_STEP: usize = 32;

/// Returns the last sequence that a shard has sent to another.
pub(crate) fn sent_to(reader: &dyn ShardReader, to: &ShardId) -> u64 {
    reader.outbox_heads().into_iter().find(|(known, ..)| known == to).map_or(0, |(_, _, head)| head)
}

/// Reads events above a position: at most `limit`, and none after [`PAGE_BYTES`].
pub(crate) async fn events(reader: &dyn ShardReader, after: u64, limit: usize) -> Result<Vec<StoredEvent>, StoreError> {
    let (mut page, mut read) = (Vec::new(), PageReader::default());
    while let Some(step) = read.next_count(limit) {
        let after = page.last().map_or(after, |event: &StoredEvent| event.position);
        let events = reader.events(after, step).await?;
        read.record(step, events.iter().map(|event| event.payload.len()));
        page.extend(events);
    }
    read.truncate(&mut page, |event| event.payload.len());
    Ok(page)
}

/// Reads outbox entries for `to` above a sequence: at most `limit`, and none after [`PAGE_BYTES`].
pub(crate) async fn outbox(
    reader: &dyn ShardReader,
    to: &ShardId,
    after: u64,
    limit: usize,
) -> Result<Vec<OutboxEntry>, StoreError> {
    let (mut page, mut read) = (Vec::new(), PageReader::default());
    while let Some(step) = read.next_count(limit) {
        let after = page.last().map_or(after, |entry: &OutboxEntry| entry.sequence);
        let entries = reader.outbox(to, after, step).await?;
        read.record(step, entries.iter().map(|entry| entry.envelope.payload.len()));
        page.extend(entries);
    }
    read.truncate(&mut page, |entry| entry.envelope.payload.len());
    Ok(page)
}

/// Progress of reading a page.
#[derive(Default)]
struct PageReader {
    count: usize,
    bytes: usize,
    /// Size of the largest entry so far.
    largest: usize,
    /// The end of the log or outbox is reached.
    ended: bool,
}

impl PageReader {
    /// Returns how many entries to read next; `None` if the page is full or the end is reached.
    fn next_count(&self, limit: usize) -> Option<usize> {
        let left = limit.saturating_sub(self.count);
        if self.ended || left == 0 || self.bytes >= PAGE_BYTES {
            return None;
        }
        // At most as many as already read, and as many as fit if they are as large as the largest of those.
        let fit = (PAGE_BYTES - self.bytes) / self.largest.max(1);
        Some(self.count.min(fit).clamp(1, MAX_STEP).max(if self.count == 0 { FIRST_STEP } else { 1 }).min(left))
    }

    /// Counts the entries of a step. Fewer than requested mean the end.
    fn record(&mut self, step: usize, sizes: impl Iterator<Item = usize>) {
        let before = self.count;
        for size in sizes {
            self.count += 1;
            self.bytes += size;
            self.largest = self.largest.max(size);
        }
        self.ended = self.count - before < step;
    }

    /// Drops the entries behind the one that fills the page.
    fn truncate<T>(&self, page: &mut Vec<T>, size: impl Fn(&T) -> usize) {
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

    /// Returns how many entries of these sizes a page has, and the most bytes read in one step.
    fn page(sizes: &[usize], limit: usize) -> (usize, usize) {
        let (mut entries, mut read, mut most) = (Vec::new(), PageReader::default(), 0);
        while let Some(step) = read.next_count(limit) {
            let taken: Vec<usize> = sizes.iter().skip(entries.len()).take(step).copied().collect();
            read.record(step, taken.iter().copied());
            most = most.max(taken.iter().sum());
            entries.extend(taken);
        }
        read.truncate(&mut entries, |size| *size);
        (entries.len(), most)
    }

    #[test]
    fn pages_are_bounded_in_count_and_bytes() {
        assert_eq!(page(&[10; 1000], 256).0, 256);
        assert_eq!(page(&[10; 100], 256).0, 100);
        assert_eq!(page(&[], 256).0, 0);
        assert_eq!(page(&[0; 1000], 1000).0, 1000);
        let large = page(&[400_000; 1500], 1024);
        assert_eq!(large, (3, FIRST_STEP * 400_000));
        // Small entries at the front promise nothing about those behind them.
        let mixed: Vec<usize> = std::iter::repeat_n(100, 64).chain(std::iter::repeat_n(500_000, 1000)).collect();
        let (count, most) = page(&mixed, 1024);
        assert_eq!(count, 67);
        assert!(most <= MAX_STEP * 500_000, "{most}");
    }
}
