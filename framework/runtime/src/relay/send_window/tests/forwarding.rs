//! Entries on their way from the outbox into the windows.

use std::cell::{Cell, RefCell};

use super::super::super::tests::{CountedReader, bank};
use super::*;

/// The windows of one shard, and the entries that they forward.
struct Sender {
    windows: Rc<SendWindows>,
    forwarded: Rc<RefCell<Vec<u128>>>,
    onward: Forward,
}

impl Sender {
    /// Accepts at most `most` entries.
    fn new(most: usize) -> Self {
        let forwarded = Rc::<RefCell<Vec<u128>>>::default();
        let (sink, left) = (Rc::clone(&forwarded), Cell::new(most));
        let onward: Forward = Rc::new(move |envelope| {
            sink.borrow_mut().push(envelope.id.as_u128());
            left.set(left.get() - 1);
            left.get() > 0
        });
        Self { windows: SendWindows::new(Arc::default()), forwarded, onward }
    }

    async fn forward(&self, reader: &Arc<CountedReader>) -> bool {
        let reader: Arc<dyn ShardReader> = Arc::clone(reader) as _;
        self.windows.forward_pending(&reader, &self.onward, |_| true).await.unwrap()
    }

    fn take(&self) -> Vec<u128> {
        self.forwarded.take()
    }
}

/// The outbox of entries of these sizes for one destination, of which `done` are committed.
fn outbox(done: u64, sizes: Vec<usize>) -> Arc<CountedReader> {
    Arc::new(CountedReader { outbox: vec![(bank(3), done, sizes)], ..Default::default() })
}

#[test]
fn outbox_is_forwarded_once_and_in_order() {
    on_paused_time(async {
        let (sender, reader) = (Sender::new(usize::MAX), outbox(0, vec![1; 300]));
        assert!(sender.forward(&reader).await);
        assert_eq!(sender.take(), (1..=300).collect::<Vec<_>>());
        assert_eq!(sender.windows.counts.sent.get(), 300);
        let pages: Vec<_> =
            reader.reads.lock().iter().map(|(after, _)| *after).filter(|after| after % 128 == 0).collect();
        assert_eq!(pages, [0, 128, 256]);
        reader.reads.lock().clear();
        assert!(sender.forward(&reader).await);
        assert_eq!((sender.take(), reader.reads.lock().len()), (vec![], 0), "everything was sent");
    });
}

#[test]
fn full_window_reads_nothing_until_a_commit() {
    on_paused_time(async {
        let (sender, reader) = (Sender::new(usize::MAX), outbox(0, vec![1; 2 * WINDOW as usize]));
        sender.forward(&reader).await;
        assert_eq!(sender.take().len() as u64, WINDOW);
        reader.reads.lock().clear();
        sender.forward(&reader).await;
        assert_eq!((sender.take(), reader.reads.lock().len()), (vec![], 0));
        sender.windows.committed(&bank(3), 3, || WINDOW);
        sender.forward(&reader).await;
        assert_eq!(sender.take(), (1..=3).map(|nth| u128::from(WINDOW) + nth).collect::<Vec<_>>());
    });
}

#[test]
fn window_is_bounded_by_the_bytes_of_its_entries() {
    on_paused_time(async {
        // The window is full in the middle of a page.
        const SIZE: usize = 300 << 10;
        let (sender, reader) = (Sender::new(usize::MAX), outbox(0, vec![SIZE; 100]));
        sender.forward(&reader).await;
        assert_eq!(sender.take().len(), MAX_BYTES.div_ceil(SIZE));
    });
}

#[test]
fn forwarding_stops_when_no_more_is_accepted() {
    on_paused_time(async {
        let (sender, reader) = (Sender::new(5), outbox(0, vec![1; 9]));
        assert!(!sender.forward(&reader).await);
        assert_eq!(sender.take(), [1, 2, 3, 4, 5]);
    });
}

#[test]
fn entries_committed_during_the_read_are_skipped() {
    on_paused_time(async {
        let (sender, reader) = (Sender::new(usize::MAX), outbox(0, vec![1; 9]));
        let commit = async { sender.windows.committed(&bank(3), 3, || 9) };
        let (_, committed) = tokio::join!(sender.forward(&reader), commit);
        assert_eq!((committed, sender.take()), (ConfirmationCheck::Advanced, vec![4, 5, 6, 7, 8, 9]));
    });
}

#[test]
fn windows_forgotten_during_the_read_forward_nothing() {
    on_paused_time(async {
        let (sender, reader) = (Sender::new(usize::MAX), outbox(0, vec![1; 9]));
        let forget = async { sender.windows.reset() };
        let (more, _) = tokio::join!(sender.forward(&reader), forget);
        assert_eq!((more, sender.take()), (true, vec![]));
        sender.forward(&reader).await;
        assert_eq!(sender.take().len(), 9);
    });
}

#[test]
fn only_open_windows_to_matching_destinations_are_filled() {
    on_paused_time(async {
        let (sender, reader) = (Sender::new(usize::MAX), outbox(0, vec![1; 9]));
        let any: Arc<dyn ShardReader> = Arc::clone(&reader) as _;
        assert!(sender.windows.forward_pending(&any, &sender.onward, |to| to.shard != 3).await.unwrap());
        assert!(!sender.windows.has(&bank(3)));
        sender.windows.stop(&bank(3));
        assert!(sender.forward(&reader).await);
        assert_eq!((sender.take(), reader.reads.lock().len()), (vec![], 0));
        sender.windows.resume(&bank(3));
        sender.forward(&reader).await;
        assert_eq!(sender.take().len(), 9);
    });
}

#[test]
fn committed_entries_of_the_store_are_confirmed() {
    on_paused_time(async {
        let (sender, reader) = (Sender::new(usize::MAX), outbox(4, vec![1; 9]));
        sender.forward(&reader).await;
        assert_eq!(sender.take(), [5, 6, 7, 8, 9]);
        assert_eq!((sender.windows.confirmed(&bank(3)), sender.windows.confirmed(&bank(4))), (4, 0));
        assert_eq!((sender.windows.unconfirmed_note(&bank(3)), sender.windows.unstored(0)), (None, vec![]));
        // The store has learned more: those entries are no longer in flight.
        sender.forward(&outbox(8, vec![1; 9])).await;
        assert_eq!((sender.windows.confirmed(&bank(3)), sender.windows.unstored(0)), (8, vec![]));
        assert_eq!(sender.windows.committed(&bank(3), 8, || 9), ConfirmationCheck::Unchanged);
    });
}

#[test]
fn retry_delay_begins_with_the_first_entry_in_flight() {
    on_paused_time(async {
        let sender = Sender::new(usize::MAX);
        let next = || sender.windows.next_retry(|_| true);
        sender.forward(&outbox(0, vec![1; 3])).await;
        let due = instant() + FIRST_RETRY;
        assert_eq!(next(), Some(due));
        tokio::time::advance(FIRST_RETRY / 4).await;
        sender.forward(&outbox(0, vec![1; 6])).await;
        assert_eq!(next(), Some(due), "others are in flight");
        sender.forward(&outbox(6, vec![1; 9])).await;
        assert_eq!((next(), sender.take().len()), (Some(instant() + FIRST_RETRY), 9));
    });
}
