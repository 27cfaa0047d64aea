//! The write buffer: the end of the log that is appended but not yet written.
//!
//! Called by the shards' writers, which add records under a short lock, and by the [log writer](super::writer), which
//! takes the gathered batch, writes and flushes it, and reports how far the log is committed. Records that arrive
//! during a flush form the next batch: there is no timer and no delay to fill a batch.
//!
//! The order of the log is decided here: a record gets its location, and its listener a ticket, when it is copied into the
//! buffer. Everything after that only makes the order durable. A batch lies in one segment, so a record that does not fit
//! into the rest of the current segment begins the next one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::frame::{BATCH_BYTES, FRAME_BYTES, close_frame};
use super::segment::{BatchLocation, FIRST_OFFSET, NextSegment, Segment};
use whizbang_core::store::{CommitListener, StoreError, Ticket};
use whizbang_log::index::OutOfTurn;
use whizbang_log::record::Location;

/// Buffers larger than this are not reused for later batches.
const KEPT_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// The appended and not yet written records of all shards. One lock protects it; it is held for the copy of one record, never
/// during a write.
pub(super) struct WriteBuffer {
    /// The end of the log.
    pub(super) tail: Mutex<Tail>,
    /// The log writer waits here for a batch.
    work: Condvar,
    /// Appends wait here for the next segment.
    pub(super) segment_ready: Condvar,
    /// The preallocator waits here until the next segment is requested.
    pub(super) segment_requested: Condvar,
    /// A pause waits here for the end of the store.
    pub(super) ended: Condvar,
    /// Every record before this location is durable.
    committed: AtomicU64,
    /// `true` if the last flush was slow.
    slow: AtomicBool,
    /// The path of the folder, for messages.
    at: String,
}

/// The part of the buffer that appends change.
pub(super) struct Tail {
    /// The phase of the life of the buffer.
    pub(super) state: BufferState,
    /// The segment that is appended to.
    pub(super) segment: Arc<Segment>,
    /// The offset of the next byte in the segment.
    offset: u64,
    /// The segment after it.
    pub(super) spare: NextSegment,
    /// `true` if an append needs the next segment.
    pub(super) segment_requested: bool,
    /// The reason of the last rejected append, until there is space again.
    pub(super) refusal: Option<StoreError>,
    /// Oldest first; only the last one is still appended to.
    batches: VecDeque<PendingBatch>,
    /// Memory of written batches, for the next ones.
    buffers: Vec<Vec<u8>>,
    /// The listeners by their numbers. None is removed, so that its number and its tickets stay.
    listeners: Vec<ListenerTickets>,
    /// Callers that wait until a location is durable. At most one for each opening of a shard, and one for the end.
    waiters: Vec<(Location, oneshot::Sender<Result<(), StoreError>>)>,
    /// `true` while the writing thread waits.
    idle: bool,
    /// The error that stopped the store.
    failure: Option<StoreError>,
    /// The place of the last durable batch.
    last: Option<BatchLocation>,
}

/// The life of a buffer, which goes in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BufferState {
    /// Appends are accepted.
    Open,
    /// Appends are rejected; existing batches are still written.
    Closing,
    /// All batches are written, or the store has failed.
    Closed,
}

/// Records that are written and flushed together, all in one segment.
pub(super) struct PendingBatch {
    /// The segment that it is written to.
    pub(super) segment: Arc<Segment>,
    /// The offset of the batch in the segment.
    pub(super) offset: u64,
    /// Space for the batch's header, then frames.
    pub(super) bytes: Vec<u8>,
    /// The last ticket in the batch for each listener.
    tickets: Vec<(usize, Ticket)>,
}

impl PendingBatch {
    /// Returns the location after its last byte.
    pub(super) fn end(&self) -> Location {
        self.segment.start + self.offset + self.bytes.len() as u64
    }
}

/// The tickets of one listener.
struct ListenerTickets {
    /// Owned by the writers of the shards that were opened with it.
    listener: Weak<dyn CommitListener>,
    /// The last ticket. They begin with 1 and have no gaps.
    last: Ticket,
}

/// The thread that writes an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// The writing thread, which is woken.
    Thread,
    /// The appending thread. It must write immediately, or [wake](WriteBuffer::wake) the writing thread.
    Inline,
}

/// The reason for which nothing was appended.
pub(super) enum AppendRefused {
    /// The next segment is not ready: wait for it and retry.
    Wait,
    /// The number of the turn does not follow. The record was not added.
    OutOfTurn(OutOfTurn),
    /// The store is closed, or has no space.
    Store(StoreError),
}

impl WriteBuffer {
    /// Creates a buffer that continues at `offset` of `segment`.
    pub(super) fn new(
        segment: Arc<Segment>,
        offset: u64,
        last_batch: Option<BatchLocation>,
        spare: NextSegment,
        at: String,
    ) -> Self {
        let committed = AtomicU64::new(segment.start + offset);
        let tail = Tail {
            state: BufferState::Open,
            segment,
            offset,
            segment_requested: matches!(spare, NextSegment::Pending),
            refusal: None,
            spare,
            batches: VecDeque::new(),
            buffers: Vec::new(),
            listeners: Vec::new(),
            waiters: Vec::new(),
            idle: false,
            failure: None,
            last: last_batch,
        };
        Self {
            tail: Mutex::new(tail),
            work: Condvar::new(),
            segment_ready: Condvar::new(),
            segment_requested: Condvar::new(),
            ended: Condvar::new(),
            committed,
            slow: AtomicBool::new(false),
            at,
        }
    }

    /// Returns whether the last flush was slow.
    pub(super) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// Sets whether the last flush was slow.
    pub(super) fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
    }

    /// Returns the location before which every record is durable.
    pub(super) fn committed(&self) -> Location {
        self.committed.load(Ordering::Acquire)
    }

    /// Returns the number of a listener; registers it if it is new. Costs a comparison with each known listener, once for
    /// each opening of a shard.
    pub(super) fn register_listener(&self, listener: &Arc<dyn CommitListener>) -> usize {
        let mut tail = self.tail.lock();
        let same = |tickets: &ListenerTickets| {
            tickets
                .listener
                .upgrade()
                .is_some_and(|known| std::ptr::addr_eq(Arc::as_ptr(&known), Arc::as_ptr(listener)))
        };
        if let Some(number) = tail.listeners.iter().position(same) {
            return number;
        }
        tail.listeners.push(ListenerTickets { listener: Arc::downgrade(listener), last: 0 });
        tail.listeners.len() - 1
    }

    /// Appends the record that `write` writes to the given buffer, of at most `bound` bytes. Ticket and location are given
    /// under the lock, so both rise in the order of the appends. Costs a copy of the record, whatever else waits.
    ///
    /// # Errors
    /// [`AppendRefused`] with the reason. The buffer is as before.
    pub(super) fn append<T>(
        &self,
        bound: usize,
        listener: Option<usize>,
        mode: WriteMode,
        write: impl FnOnce(Location, &mut Vec<u8>) -> Result<T, OutOfTurn>,
    ) -> Result<(Ticket, T), AppendRefused> {
        let mut tail = self.tail.lock();
        self.reserve(&mut tail, bound)?;
        let Tail { batches, listeners, offset, segment, .. } = &mut *tail;
        let Some(pending) = batches.back_mut() else { return Err(AppendRefused::Store(StoreError::Closed)) };
        let location = segment.start + *offset;
        let start = pending.bytes.len();
        pending.bytes.extend_from_slice(&[0; FRAME_BYTES]);
        let written = match write(location, &mut pending.bytes) {
            Ok(written) => written,
            Err(out_of_turn) => {
                pending.bytes.truncate(start);
                if pending.bytes.len() == BATCH_BYTES {
                    // A batch without records would be taken for a mark.
                    *offset -= BATCH_BYTES as u64;
                    batches.pop_back();
                }
                return Err(AppendRefused::OutOfTurn(out_of_turn));
            }
        };
        close_frame(&mut pending.bytes, start);
        *offset += (pending.bytes.len() - start) as u64;
        let mut ticket = 0;
        if let Some((number, tickets)) = listener.and_then(|number| Some((number, listeners.get_mut(number)?))) {
            tickets.last += 1;
            ticket = tickets.last;
            match pending.tickets.iter_mut().find(|(known, _)| *known == number) {
                Some((_, last)) => *last = ticket,
                None => pending.tickets.push((number, ticket)),
            }
        }
        // The writing thread sets `idle` under this lock before it waits, so taking it here cannot lose a wake-up. Only
        // the first of many appends takes it, which saves a system call for each of the others.
        let wake = mode == WriteMode::Thread && std::mem::take(&mut tail.idle);
        drop(tail);
        if wake {
            self.work.notify_one();
        }
        Ok((ticket, written))
    }

    /// Wakes the writing thread if it waits.
    pub(super) fn wake(&self) {
        let wake = std::mem::take(&mut self.tail.lock().idle);
        if wake {
            self.work.notify_one();
        }
    }

    /// Makes sure that there is a batch with space for a record of up to `bound` bytes. Moves on to the next segment if the
    /// record does not fit into the rest of the current one.
    fn reserve(&self, tail: &mut MutexGuard<'_, Tail>, bound: usize) -> Result<(), AppendRefused> {
        loop {
            if tail.state != BufferState::Open {
                return Err(AppendRefused::Store(StoreError::Closed));
            }
            let open = tail.batches.back().is_some_and(|pending| Arc::ptr_eq(&pending.segment, &tail.segment));
            // Reserve space for a mark after the batch, so that a full segment can be marked like any other.
            let need = FRAME_BYTES + bound + BATCH_BYTES + if open { 0 } else { BATCH_BYTES };
            if tail.offset + need as u64 <= tail.segment.size {
                if !open {
                    let mut bytes = tail.buffers.pop().unwrap_or_default();
                    bytes.resize(BATCH_BYTES, 0);
                    let pending = PendingBatch {
                        segment: Arc::clone(&tail.segment),
                        offset: tail.offset,
                        bytes,
                        tickets: Vec::new(),
                    };
                    tail.batches.push_back(pending);
                    tail.offset += BATCH_BYTES as u64;
                }
                return Ok(());
            }
            match std::mem::replace(&mut tail.spare, NextSegment::Pending) {
                NextSegment::Ready(spare) => {
                    tail.segment = spare;
                    tail.offset = FIRST_OFFSET;
                    self.request_segment(tail);
                }
                NextSegment::Pending => return Err(AppendRefused::Wait),
                NextSegment::Failed(error) => {
                    tail.spare = NextSegment::Failed(error.clone());
                    tail.refusal = Some(error.clone());
                    self.request_segment(tail);
                    return Err(AppendRefused::Store(error));
                }
            }
        }
    }

    /// Wakes the preallocator. The caller holds the lock.
    fn request_segment(&self, tail: &mut Tail) {
        tail.segment_requested = true;
        self.segment_requested.notify_one();
    }

    /// Returns the reason for which appends are rejected, if they are.
    pub(super) fn refused(&self) -> Option<StoreError> {
        let tail = self.tail.lock();
        tail.failure.clone().or_else(|| tail.refusal.clone())
    }

    /// Returns a receiver that resolves when everything before `location` is durable.
    pub(super) fn when_durable(&self, location: Location) -> oneshot::Receiver<Result<(), StoreError>> {
        let (sender, receiver) = oneshot::channel();
        let mut tail = self.tail.lock();
        if location <= self.committed() {
            let _ = sender.send(Ok(()));
        } else if tail.state == BufferState::Closed {
            let _ = sender.send(Err(tail.failure.clone().unwrap_or(StoreError::Closed)));
        } else {
            tail.waiters.push((location, sender));
        }
        receiver
    }

    /// Rejects further appends. The log writer writes the existing batches and ends.
    pub(super) fn close(&self) {
        let mut tail = self.tail.lock();
        if tail.state == BufferState::Open {
            tail.state = BufferState::Closing;
        }
        tail.idle = false;
        drop(tail);
        self.work.notify_one();
        self.segment_ready.notify_all();
        self.segment_requested.notify_all();
        self.ended.notify_all();
    }

    /// Waits until there is a batch to write. Returns `false` once the buffer is closed and all batches are taken.
    pub(super) fn wait_for_batch(&self) -> bool {
        let mut tail = self.tail.lock();
        while tail.batches.is_empty() {
            if tail.state != BufferState::Open {
                return false;
            }
            tail.idle = true;
            self.work.wait(&mut tail);
        }
        true
    }

    /// Takes the next batch to write, if there is one.
    pub(super) fn take_batch(&self) -> Option<PendingBatch> {
        self.tail.lock().batches.pop_front()
    }

    /// Returns whether there is no batch to write.
    pub(super) fn is_idle(&self) -> bool {
        self.tail.lock().batches.is_empty()
    }

    /// Makes a durable batch visible to readers and notifies its waiters and listeners.
    pub(super) fn mark_durable(&self, pending: PendingBatch, batch: u64) {
        let through = pending.end();
        // `committed` is set before the lock is taken. A waiter that registers concurrently checks it under the lock, so
        // it either sees the new value or is found in `waiters`. Waiters and listeners are notified after the lock is
        // released: they may append, which takes the lock again.
        self.committed.store(through, Ordering::Release);
        let mut tail = self.tail.lock();
        tail.last = Some(BatchLocation { segment: pending.segment.number, offset: pending.offset, batch });
        let ready: Vec<_> = tail.waiters.extract_if(.., |(location, _)| *location <= through).collect();
        let reports: Vec<_> = pending
            .tickets
            .iter()
            .filter_map(|(number, ticket)| Some((tail.listeners.get(*number)?.listener.upgrade()?, *ticket)))
            .collect();
        if pending.bytes.capacity() <= KEPT_BUFFER_BYTES && tail.buffers.len() < 2 {
            let mut bytes = pending.bytes;
            bytes.clear();
            tail.buffers.push(bytes);
        }
        drop(tail);
        for (_, sender) in ready {
            let _ = sender.send(Ok(()));
        }
        for (listener, ticket) in reports {
            listener.committed(ticket);
        }
    }

    /// Stops the store after a failed write: uncommitted records will never be reported, and further appends are
    /// rejected.
    pub(super) fn fail(&self, error: &StoreError) {
        let mut tail = self.tail.lock();
        tail.state = BufferState::Closed;
        tail.failure = Some(error.clone());
        tail.batches.clear();
        let waiters = std::mem::take(&mut tail.waiters);
        let listeners: Vec<_> = tail.listeners.iter().filter_map(|tickets| tickets.listener.upgrade()).collect();
        drop(tail);
        self.work.notify_all();
        self.segment_ready.notify_all();
        self.segment_requested.notify_all();
        self.ended.notify_all();
        for (_, sender) in waiters {
            let _ = sender.send(Err(error.clone()));
        }
        for listener in listeners {
            listener.failed(error.clone());
        }
    }

    /// Completes closing after the last batch was written.
    pub(super) fn mark_closed(&self) {
        let mut tail = self.tail.lock();
        tail.state = BufferState::Closed;
        let waiters = std::mem::take(&mut tail.waiters);
        drop(tail);
        for (_, sender) in waiters {
            let _ = sender.send(Err(StoreError::Closed));
        }
    }

    /// Returns the place of the last durable batch.
    pub(super) fn last(&self) -> Option<BatchLocation> {
        self.tail.lock().last
    }

    /// Returns whether no further batch will be written.
    pub(super) fn is_closed(&self) -> bool {
        self.tail.lock().state == BufferState::Closed
    }

    /// Returns the error that stopped the store.
    pub(super) fn failure(&self) -> Option<StoreError> {
        self.tail.lock().failure.clone()
    }

    /// Returns the path of the folder, for messages.
    pub(super) fn at(&self) -> &str {
        &self.at
    }
}

#[cfg(test)]
mod tests;
