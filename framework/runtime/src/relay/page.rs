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
    use super::super::tests::{CountedReader, bank};
    use super::*;

    /// Returns the positions of a page of events of these sizes, and the reads, each with its first position and its size.
    async fn page_of(sizes: &[usize], after: u64, limit: usize) -> (Vec<u64>, Vec<(u64, usize)>) {
        let to = bank(3);
        let reader = CountedReader {
            events: sizes.to_vec(),
            outbox: vec![(to.clone(), 0, sizes.to_vec())],
            ..Default::default()
        };
        let events = events(&reader, after, limit).await.unwrap();
        let reads = std::mem::take(&mut *reader.reads.lock());
        let entries = outbox(&reader, &to, after, limit).await.unwrap();
        let positions: Vec<u64> = events.iter().map(|event| event.position).collect();
        assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), positions);
        assert_eq!(*reader.reads.lock(), reads);
        (positions, reads)
    }

    #[tokio::test]
    async fn page_ends_at_its_limit_or_at_the_end() {
        let (page, reads) = page_of(&[10; 100], 0, 20).await;
        assert_eq!((page, reads), ((1..=20).collect(), vec![(0, 8), (8, 8), (16, 4)]));
        let (page, reads) = page_of(&[0; 10], 3, 256).await;
        assert_eq!((page, reads), ((4..=10).collect(), vec![(3, 8)]), "fewer than requested are the end");
        let (page, reads) = page_of(&[10; 8], 0, 256).await;
        assert_eq!((page, reads), ((1..=8).collect(), vec![(0, 8), (8, 8)]));
        assert_eq!(page_of(&[], 0, 256).await, (vec![], vec![(0, 8)]));
        assert_eq!(page_of(&[10; 9], 0, 0).await, (vec![], vec![]));
    }

    #[tokio::test]
    async fn page_ends_behind_the_entry_that_fills_it() {
        let (page, reads) = page_of(&[PAGE_BYTES / 8; 20], 0, 256).await;
        assert_eq!((page, reads), ((1..=8).collect(), vec![(0, 8)]), "exactly full");
        let (page, reads) = page_of(&[PAGE_BYTES / 4; 20], 0, 256).await;
        assert_eq!((page, reads), ((1..=4).collect(), vec![(0, 8)]));
        let (page, _) = page_of(&[400_000; 1500], 0, 1024).await;
        assert_eq!(page, [1, 2, 3]);
    }

    #[tokio::test]
    async fn steps_grow_as_far_as_entries_fit() {
        let (page, reads) = page_of(&[10_000; 200], 0, 256).await;
        assert_eq!(page.len(), 105, "the last one exceeds the page");
        assert_eq!(reads, [(0, 8), (8, 8), (16, 16), (32, 32), (64, 32), (96, 8), (104, 1)]);
        // Small entries at the front promise nothing about those behind them.
        let mixed: Vec<usize> = std::iter::repeat_n(100, 64).chain(std::iter::repeat_n(500_000, 1000)).collect();
        let (page, reads) = page_of(&mixed, 0, 1024).await;
        assert_eq!((page.len(), reads.last()), (67, Some(&(64, MAX_STEP))));
    }

    #[test]
    fn last_sent_sequence_is_that_of_the_destination() {
        let outbox = vec![(bank(1), 2, vec![0; 5]), (bank(2), 0, vec![0; 7])];
        let reader = CountedReader { outbox, ..Default::default() };
        assert_eq!([1, 2, 3].map(|shard| sent_to(&reader, &bank(shard))), [5, 7, 0]);
    }
}
