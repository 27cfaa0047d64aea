//! The end of the log: what is appended and not yet written.
//!
//! Called by the shards' writers, which put records into a buffer under a short lock and go on, and by the [writer](super::writer),
//! which takes the buffer away, writes and flushes it, and says how far the log is committed. What comes while a flush is
//! under way is the next batch: no timer, no waiting for company.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::super::index::OutOfTurn;
use super::super::record::Location;
use super::frame::{BATCH_BYTES, FRAME_BYTES, close_frame};
use super::scan::BatchLocation;
use super::segment::{FIRST_OFFSET, Segment};
use crate::store::{CommitListener, StoreError, Ticket};

/// Buffers larger than this are not kept for the next batch.
const KEPT_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// After this long it is tried again to make a segment, also if nothing is appended: a node that says that it is not ready may
/// get nothing to append.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct WriteBuffer {
    tail: Mutex<Tail>,
    /// The writer waits here for something to write.
    work: Condvar,
    /// Appends wait here for the next segment.
    segment_ready: Condvar,
    /// The preparer waits here until the next segment is wanted.
    segment_requested: Condvar,
    /// Whoever pauses waits here for the end.
    ended: Condvar,
    /// Every record before this location is durable.
    committed: AtomicU64,
    /// Whether the last flush was slow.
    slow: AtomicBool,
    /// What people call the folder.
    at: String,
}

struct Tail {
    state: BufferState,
    segment: Arc<Segment>,
    /// Where in the segment the next byte goes.
    offset: u64,
    spare: NextSegment,
    /// Whether somebody misses the spare.
    segment_requested: bool,
    /// Why the last append was refused, until there is room again.
    refusal: Option<StoreError>,
    /// Oldest first; only the last one is still added to.
    batches: VecDeque<PendingBatch>,
    buffers: Vec<Vec<u8>>,
    listeners: Vec<ListenerTickets>,
    waiters: Vec<(Location, oneshot::Sender<Result<(), StoreError>>)>,
    /// Whether the writing thread waits.
    idle: bool,
    /// What has broken the store.
    failure: Option<StoreError>,
    /// Where the last durable batch begins, and its number.
    last: Option<BatchLocation>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BufferState {
    Open,
    /// Nothing more is taken in; what is there is still written.
    Closing,
    Closed,
}

/// The segment after this one. It is made before it is needed: when there is no room for one, appends are refused, and
/// nothing that was taken in is stuck.
#[derive(Clone, Debug)]
pub(super) enum NextSegment {
    /// It is there.
    Ready(Arc<Segment>),
    /// It is being made.
    Pending,
    /// It could not be made.
    Failed(StoreError),
}

/// Records that are written and flushed together, all in one segment.
pub(super) struct PendingBatch {
    pub(super) segment: Arc<Segment>,
    /// Where in the segment it begins.
    pub(super) offset: u64,
    /// Room for the batch's head, then frames.
    pub(super) bytes: Vec<u8>,
    /// For each row of tickets the last one in it.
    tickets: Vec<(usize, Ticket)>,
}

impl PendingBatch {
    /// The location behind its last byte.
    pub(super) fn end(&self) -> Location {
        self.segment.start + self.offset + self.bytes.len() as u64
    }
}

/// One listener's row of tickets.
struct ListenerTickets {
    /// Kept by the writers of the shards that were opened with it.
    listener: Weak<dyn CommitListener>,
    last: Ticket,
}

/// Who writes what is appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// The writing thread, which is woken.
    Thread,
    /// Whoever appends. It must write at once, or [wake](WriteBuffer::wake) the thread.
    Inline,
}

/// Why nothing was appended.
pub(super) enum AppendRefused {
    /// The next segment is not ready: wait for it and come again.
    Wait,
    OutOfTurn(OutOfTurn),
    Store(StoreError),
}

impl WriteBuffer {
    /// A journal that goes on at `offset` of `segment`.
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

    /// Whether the last flush was slow.
    pub(super) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// The last flush was slow, or was not.
    pub(super) fn set_slow(&self, slow: bool) {
        self.slow.store(slow, Ordering::Relaxed);
    }

    /// Every record before this location is durable.
    pub(super) fn committed(&self) -> Location {
        self.committed.load(Ordering::Acquire)
    }

    /// The row of tickets of a listener.
    pub(super) fn register_listener(&self, listener: &Arc<dyn CommitListener>) -> usize {
        let mut tail = self.tail.lock();
        let same = |row: &ListenerTickets| {
            row.listener.upgrade().is_some_and(|known| std::ptr::addr_eq(Arc::as_ptr(&known), Arc::as_ptr(listener)))
        };
        if let Some(number) = tail.listeners.iter().position(same) {
            return number;
        }
        tail.listeners.push(ListenerTickets { listener: Arc::downgrade(listener), last: 0 });
        tail.listeners.len() - 1
    }

    /// Appends the record that `write` appends to the buffer it is given, of at most `bound` bytes.
    pub(super) fn append<T>(
        &self,
        bound: usize,
        row: Option<usize>,
        hand: WriteMode,
        write: impl FnOnce(Location, &mut Vec<u8>) -> Result<T, OutOfTurn>,
    ) -> Result<(Ticket, T), AppendRefused> {
        let mut tail = self.tail.lock();
        self.reserve(&mut tail, bound)?;
        let Tail { batches: parts, listeners: rows, offset, segment, .. } = &mut *tail;
        let Some(part) = parts.back_mut() else { return Err(AppendRefused::Store(StoreError::Closed)) };
        let location = segment.start + *offset;
        let start = part.bytes.len();
        part.bytes.extend_from_slice(&[0; FRAME_BYTES]);
        let written = match write(location, &mut part.bytes) {
            Ok(written) => written,
            Err(out_of_turn) => {
                part.bytes.truncate(start);
                if part.bytes.len() == BATCH_BYTES {
                    // A part without a record would be taken for a mark.
                    *offset -= BATCH_BYTES as u64;
                    parts.pop_back();
                }
                return Err(AppendRefused::OutOfTurn(out_of_turn));
            }
        };
        close_frame(&mut part.bytes, start);
        *offset += (part.bytes.len() - start) as u64;
        let mut ticket = 0;
        if let Some((number, row)) = row.and_then(|number| Some((number, rows.get_mut(number)?))) {
            row.last += 1;
            ticket = row.last;
            match part.tickets.iter_mut().find(|(known, _)| *known == number) {
                Some((_, last)) => *last = ticket,
                None => part.tickets.push((number, ticket)),
            }
        }
        let wake = hand == WriteMode::Thread && std::mem::take(&mut tail.idle);
        drop(tail);
        if wake {
            self.work.notify_one();
        }
        Ok((ticket, written))
    }

    /// Has the thread write what is there.
    pub(super) fn wake(&self) {
        let wake = std::mem::take(&mut self.tail.lock().idle);
        if wake {
            self.work.notify_one();
        }
    }

    /// Sees to it that there is a part with room for a record of up to `bound` bytes.
    fn reserve(&self, tail: &mut MutexGuard<'_, Tail>, bound: usize) -> Result<(), AppendRefused> {
        loop {
            if tail.state != BufferState::Open {
                return Err(AppendRefused::Store(StoreError::Closed));
            }
            let open = tail.batches.back().is_some_and(|part| Arc::ptr_eq(&part.segment, &tail.segment));
            // A mark behind the batch must always fit, so that a full segment can be closed as well as any other.
            let need = FRAME_BYTES + bound + BATCH_BYTES + if open { 0 } else { BATCH_BYTES };
            if tail.offset + need as u64 <= tail.segment.size {
                if !open {
                    let mut bytes = tail.buffers.pop().unwrap_or_default();
                    bytes.resize(BATCH_BYTES, 0);
                    let part = PendingBatch {
                        segment: Arc::clone(&tail.segment),
                        offset: tail.offset,
                        bytes,
                        tickets: Vec::new(),
                    };
                    tail.batches.push_back(part);
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

    fn request_segment(&self, tail: &mut Tail) {
        tail.segment_requested = true;
        self.segment_requested.notify_one();
    }

    /// Waits until the next segment is wanted, or until one that could not be made is to be tried again; `false` once the
    /// journal is closed.
    pub(super) fn wait_for_request(&self) -> bool {
        let mut tail = self.tail.lock();
        while tail.state == BufferState::Open && !std::mem::take(&mut tail.segment_requested) {
            if !matches!(tail.spare, NextSegment::Failed(_)) {
                self.segment_requested.wait(&mut tail);
            } else if self.segment_requested.wait_for(&mut tail, RETRY_INTERVAL).timed_out() {
                break;
            }
        }
        tail.state == BufferState::Open
    }

    /// Waits for `pause`, or until the journal is closed. Whoever wants a segment meanwhile does not make it longer.
    pub(super) fn pause(&self, pause: Duration) {
        let mut tail = self.tail.lock();
        while tail.state == BufferState::Open && !self.ended.wait_for(&mut tail, pause).timed_out() {}
    }

    /// The number of the segment that is appended to.
    pub(super) fn segment(&self) -> u64 {
        self.tail.lock().segment.number
    }

    /// Whether the next segment is there.
    pub(super) fn has_spare(&self) -> bool {
        matches!(self.tail.lock().spare, NextSegment::Ready(_))
    }

    /// The next segment is there, or cannot be made.
    pub(super) fn set_spare(&self, spare: NextSegment) {
        let mut tail = self.tail.lock();
        if let NextSegment::Ready(_) = spare {
            tail.refusal = None;
        }
        tail.spare = spare;
        drop(tail);
        self.segment_ready.notify_all();
    }

    /// Why appends are refused, if they are.
    pub(super) fn refused(&self) -> Option<StoreError> {
        let tail = self.tail.lock();
        tail.failure.clone().or_else(|| tail.refusal.clone())
    }

    /// Waits until the next segment is there or cannot be made.
    pub(super) fn wait_for_segment(&self) {
        let mut tail = self.tail.lock();
        while tail.state == BufferState::Open && matches!(tail.spare, NextSegment::Pending) {
            self.segment_ready.wait(&mut tail);
        }
    }

    /// Hears when everything before `location` is durable.
    pub(super) fn when_durable(&self, location: Location) -> oneshot::Receiver<Result<(), StoreError>> {
        let (tell, told) = oneshot::channel();
        let mut tail = self.tail.lock();
        if location <= self.committed() {
            let _ = tell.send(Ok(()));
        } else if tail.state == BufferState::Closed {
            let _ = tell.send(Err(tail.failure.clone().unwrap_or(StoreError::Closed)));
        } else {
            tail.waiters.push((location, tell));
        }
        told
    }

    /// Takes nothing in any more. The writer writes what is there and ends.
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

    /// Waits until there is a part to write. `false` once the journal is closed and every part is taken.
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

    /// The next part to write, if there is one.
    pub(super) fn take_batch(&self) -> Option<PendingBatch> {
        self.tail.lock().batches.pop_front()
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_idle(&self) -> bool {
        self.tail.lock().batches.is_empty()
    }

    /// The part is durable: lets readers see it and tells those who wait for it.
    pub(super) fn mark_durable(&self, part: PendingBatch, batch: u64) {
        let through = part.end();
        self.committed.store(through, Ordering::Release);
        let mut tail = self.tail.lock();
        tail.last = Some(BatchLocation { segment: part.segment.number, offset: part.offset, batch });
        let ready: Vec<_> = tail.waiters.extract_if(.., |(location, _)| *location <= through).collect();
        let reports: Vec<_> = part
            .tickets
            .iter()
            .filter_map(|(row, ticket)| Some((tail.listeners.get(*row)?.listener.upgrade()?, *ticket)))
            .collect();
        if part.bytes.capacity() <= KEPT_BUFFER_BYTES && tail.buffers.len() < 2 {
            let mut bytes = part.bytes;
            bytes.clear();
            tail.buffers.push(bytes);
        }
        drop(tail);
        for (_, tell) in ready {
            let _ = tell.send(Ok(()));
        }
        for (listener, ticket) in reports {
            listener.committed(ticket);
        }
    }

    /// Writing has failed: nothing that is not committed will be, and nothing more is taken in.
    pub(super) fn fail(&self, error: &StoreError) {
        let mut tail = self.tail.lock();
        tail.state = BufferState::Closed;
        tail.failure = Some(error.clone());
        tail.batches.clear();
        let waiters = std::mem::take(&mut tail.waiters);
        let listeners: Vec<_> = tail.listeners.iter().filter_map(|row| row.listener.upgrade()).collect();
        drop(tail);
        self.work.notify_all();
        self.segment_ready.notify_all();
        self.segment_requested.notify_all();
        self.ended.notify_all();
        for (_, tell) in waiters {
            let _ = tell.send(Err(error.clone()));
        }
        for listener in listeners {
            listener.failed(error.clone());
        }
    }

    /// Everything is written and nothing will be.
    pub(super) fn mark_closed(&self) {
        let mut tail = self.tail.lock();
        tail.state = BufferState::Closed;
        let waiters = std::mem::take(&mut tail.waiters);
        drop(tail);
        for (_, tell) in waiters {
            let _ = tell.send(Err(StoreError::Closed));
        }
    }

    /// Where the last durable batch begins.
    pub(super) fn last(&self) -> Option<BatchLocation> {
        self.tail.lock().last
    }

    /// Whether nothing will be written any more.
    pub(super) fn is_closed(&self) -> bool {
        self.tail.lock().state == BufferState::Closed
    }

    /// What has broken the store.
    pub(super) fn failure(&self) -> Option<StoreError> {
        self.tail.lock().failure.clone()
    }

    /// What people call the folder.
    pub(super) fn at(&self) -> &str {
        &self.at
    }
}
