//! Send windows: what one shard sends to other shards, one window of in-flight entries per destination.
//!
//! Called by the relay for destinations on this node and by the publisher for remote ones. A window separates two
//! watermarks. A *note* of the destination moves the window at once, but may be forged. Only a *confirmed* watermark,
//! from the owner's answer or the store, lets the store delete entries; an exaggerated note is rolled back by the
//! next confirmation.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::page;
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, ShardId};
use whizbang_core::store::{ShardReader, StoreError};
use whizbang_core::telemetry::{Counts, passes};

/// Most entries in flight in a window.
const WINDOW: u64 = 1024;
/// Most payload bytes in flight in a window; a single entry may exceed them.
const MAX_BYTES: usize = 16 << 20;
/// Number of entries read at a time.
const PAGE: usize = 128;
/// Time without progress after which a window's entries are sent again; doubles up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// A window that reaches it is reported as stalled.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Forwards an entry, and returns whether more may follow. The destination's commit is reported to
/// [`SendWindows::committed`].
pub(crate) type Forward = Rc<dyn Fn(Envelope) -> bool>;

/// Effect of a destination's note about what it has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConfirmationCheck {
    /// It has committed more than before.
    Advanced,
    /// It has committed more than before, after a stall that was reported.
    Resumed,
    /// It has committed nothing new.
    Unchanged,
    /// It claims more than was ever sent to it. Accepting that would skip the next entries.
    Impossible,
}

struct SendWindow {
    /// Last sequence forwarded.
    offered: u64,
    /// Sizes of the entries in flight, by sequence, and their sum.
    sizes: VecDeque<(u64, usize)>,
    bytes: usize,
    /// Last sequence committed by the destination, according to its notes.
    committed: u64,
    /// Last sequence committed according to the owner's answer or the store. Notes can be forged: only confirmed
    /// entries are deleted.
    confirmed: u64,
    /// The destination's owner is being asked to confirm.
    is_confirming: bool,
    /// Last sequence that the store knows to be committed.
    stored: u64,
    /// Time at which the entries in flight are sent again.
    again: Instant,
    retry_delay: Duration,
    /// Sending is stopped, and notes are ignored.
    stopped: bool,
    /// The stall was reported.
    stalled: bool,
    /// Lowest sequence in flight that the bridge refused.
    refused: Option<u64>,
    /// Last sequence that may be forwarded: the bridge refused it, and the entries behind it are not read again before it is
    /// accepted.
    probe: Option<u64>,
    /// The destination is being queried about its progress.
    is_queried: bool,
}

impl SendWindow {
    /// Creates a window without entries in flight.
    fn from(committed: u64) -> Self {
        Self {
            offered: committed,
            sizes: VecDeque::new(),
            bytes: 0,
            committed,
            confirmed: committed,
            is_confirming: false,
            stored: committed,
            again: instant() + FIRST_RETRY,
            retry_delay: FIRST_RETRY,
            stopped: false,
            stalled: false,
            refused: None,
            probe: None,
            is_queried: false,
        }
    }
}

impl SendWindow {
    /// Returns how many more entries may be in flight.
    fn room(&self) -> u64 {
        let last = self.committed.saturating_add(WINDOW).min(self.probe.unwrap_or(u64::MAX));
        if self.bytes >= MAX_BYTES { 0 } else { last.saturating_sub(self.offered) }
    }

    fn offer(&mut self, sequence: u64, bytes: usize) {
        self.offered = sequence;
        self.sizes.push_back((sequence, bytes));
        self.bytes += bytes;
    }

    fn commit(&mut self, through: u64) {
        self.committed = self.committed.max(through);
        self.offered = self.offered.max(through);
        self.refused = self.refused.filter(|refused| *refused > through);
        self.probe = self.probe.filter(|probe| *probe > through);
        while let Some((_, bytes)) = self.sizes.pop_front_if(|(sequence, _)| *sequence <= through) {
            self.bytes -= bytes;
        }
    }

    /// Applies the owner's answer that it has committed up to `through`, requested after `noted` was noted. Returns
    /// whether the note was exaggerated; uncommitted entries are sent again in that case.
    fn confirm(&mut self, through: u64, noted: u64) -> bool {
        self.confirmed = self.confirmed.max(through);
        if through < noted && self.confirmed < self.committed {
            self.committed = self.confirmed;
            self.restart();
            return true;
        }
        self.commit(through);
        false
    }

    /// Treats nothing as in flight: uncommitted entries are sent again.
    fn restart(&mut self) {
        self.offered = self.committed;
        self.sizes.clear();
        self.bytes = 0;
        (self.refused, self.probe) = (None, None);
    }

    /// Treats the refused entry and those behind it as not in flight. The refused one is sent alone: reading the whole window for
    /// each attempt would keep the thread busy while the bridge accepts nothing.
    fn rewind(&mut self, refused: u64) {
        self.offered = self.committed.max(refused.saturating_sub(1));
        self.probe = Some(self.offered + 1);
        while let Some((_, bytes)) = self.sizes.pop_back_if(|(sequence, _)| *sequence >= refused) {
            self.bytes -= bytes;
        }
    }
}

/// Result of checking the windows to remote destinations that make no progress.
#[derive(Default)]
pub(crate) struct StalledWindows {
    /// Some entries must be sent again.
    pub(crate) restarted: bool,
    /// Destinations to be queried, each with the last sequence sent to it.
    pub(crate) to_query: Vec<(ShardId, u64)>,
    /// Time of the next check.
    pub(crate) next: Option<Instant>,
}

/// Send windows of one shard.
pub(crate) struct SendWindows {
    windows: RefCell<BTreeMap<ShardId, SendWindow>>,
    counts: Arc<Counts>,
}

impl SendWindows {
    pub(crate) fn new(counts: Arc<Counts>) -> Rc<Self> {
        Rc::new(Self { windows: RefCell::default(), counts })
    }

    /// Returns when to check windows to matching destinations for progress.
    pub(crate) fn next_retry(&self, of: impl Fn(&ShardId) -> bool) -> Option<Instant> {
        let windows = self.windows.borrow();
        let waiting = windows.iter().filter(|(to, window)| window.offered > window.committed && of(to));
        waiting.map(|(_, window)| window.again).min()
    }

    /// Restarts all windows: entries in flight may have been lost and are sent again by the next run.
    pub(crate) fn restart_all(&self) {
        self.windows.borrow_mut().values_mut().for_each(SendWindow::restart);
    }

    /// Restarts the window to one destination, unless it is stopped.
    pub(crate) fn restart(&self, to: &ShardId) {
        if let Some(window) = self.windows.borrow_mut().get_mut(to).filter(|window| !window.stopped) {
            window.restart();
        }
    }

    /// Restarts the window to a destination that has moved to or from this node: its entries are sent on the new way at
    /// once. Returns whether there is such a window.
    pub(crate) fn reroute(&self, to: &ShardId) -> bool {
        let mut windows = self.windows.borrow_mut();
        let Some(window) = windows.get_mut(to).filter(|window| !window.stopped) else { return false };
        window.restart();
        (window.retry_delay, window.again) = (FIRST_RETRY, instant() + FIRST_RETRY);
        true
    }

    /// Restarts the window to one destination, unless its entries were just sent.
    pub(crate) fn restart_if_stalled(&self, to: &ShardId) {
        let now = instant();
        if let Some(window) = self.windows.borrow_mut().get_mut(to)
            && !window.stopped
            && window.again > now + FIRST_RETRY / 2
            && window.retry_delay > FIRST_RETRY
        {
            window.retry_delay = FIRST_RETRY;
            window.restart();
        }
    }

    /// Records that the bridge refused an entry: it is sent again after a delay, with those behind it.
    pub(crate) fn refused(&self, to: &ShardId, sequence: u64) {
        if let Some(window) = self.windows.borrow_mut().get_mut(to).filter(|window| sequence > window.committed) {
            window.refused = Some(window.refused.map_or(sequence, |refused| refused.min(sequence)));
        }
    }

    /// Records that the bridge accepted an entry. Returns whether the entries behind it may be forwarded now.
    pub(crate) fn accepted(&self, to: &ShardId, sequence: u64) -> bool {
        self.windows
            .borrow_mut()
            .get_mut(to)
            .is_some_and(|window| window.probe.take_if(|probe| *probe <= sequence).is_some())
    }

    /// Makes the next check query matching destinations: entries in flight may have been lost.
    pub(crate) fn query_all_soon(&self, of: impl Fn(&ShardId) -> bool) {
        let now = instant();
        for (_, window) in self.windows.borrow_mut().iter_mut().filter(|(to, _)| of(to)) {
            (window.retry_delay, window.again) = (FIRST_RETRY, now);
        }
    }

    /// Makes the next check query one destination, unless a query is due or its entries were just sent.
    pub(crate) fn query_soon(&self, to: &ShardId) {
        let now = instant();
        if let Some(window) = self.windows.borrow_mut().get_mut(to)
            && window.again > now + FIRST_RETRY / 2
            && window.retry_delay > FIRST_RETRY
        {
            (window.retry_delay, window.again) = (FIRST_RETRY, now);
        }
    }

    /// Records that the destination has answered a query. Returns whether `through` is more than was known.
    pub(crate) fn answered(&self, to: &ShardId, through: u64) -> bool {
        self.windows.borrow_mut().get_mut(to).is_some_and(|window| {
            window.is_queried = false;
            through > window.committed
        })
    }

    /// Checks the windows to matching remote destinations that make no progress.
    ///
    /// The bridge accepted the entries in flight, so they are not sent again: an owner that is away would later
    /// receive them many times. Instead, the owner is queried, told how far everything was sent, and fetches what it
    /// lacks. Only entries that the bridge refused are sent again. A window that has reached the longest retry delay
    /// is reported to `stalled`, once.
    pub(crate) fn check_stalled(
        &self,
        of: impl Fn(&ShardId) -> bool,
        mut stalled: impl FnMut(&ShardId),
    ) -> StalledWindows {
        let now = instant();
        let mut found = StalledWindows::default();
        let mut windows = self.windows.borrow_mut();
        for (to, window) in windows.iter_mut().filter(|(to, window)| window.offered > window.committed && of(to)) {
            if window.again <= now {
                if window.retry_delay == LONGEST_RETRY && !std::mem::replace(&mut window.stalled, true) {
                    stalled(to);
                }
                match window.refused.take() {
                    Some(refused) => {
                        window.rewind(refused);
                        found.restarted = true;
                    }
                    None if window.is_queried => {}
                    None => {
                        window.is_queried = true;
                        found.to_query.push((to.clone(), window.offered));
                    }
                }
                window.retry_delay = (window.retry_delay * 2).min(LONGEST_RETRY);
                window.again = now + window.retry_delay;
            }
            found.next = Some(found.next.map_or(window.again, |next: Instant| next.min(window.again)));
        }
        found
    }

    /// Forgets all windows: uncommitted entries are sent again. Returns the destinations that were reported, as stalled or
    /// because sending was stopped.
    #[must_use]
    pub(crate) fn reset(&self) -> Vec<ShardId> {
        let windows = std::mem::take(&mut *self.windows.borrow_mut());
        windows.into_iter().filter(|(_, window)| window.stalled || window.stopped).map(|(to, _)| to).collect()
    }

    /// Forwards stored entries to matching destinations, as far as the windows allow. Returns `false` if `onward`
    /// accepts no more.
    pub(crate) async fn forward_pending(
        &self,
        reader: &Arc<dyn ShardReader>,
        onward: &Forward,
        of: impl Fn(&ShardId) -> bool,
    ) -> Result<bool, StoreError> {
        for (to, done, head) in reader.outbox_heads().into_iter().filter(|(to, ..)| of(to)) {
            loop {
                let (after, room) = {
                    let mut windows = self.windows.borrow_mut();
                    let window = windows.entry(to.clone()).or_insert_with(|| SendWindow::from(done));
                    if window.stopped {
                        break;
                    }
                    window.commit(done);
                    window.confirmed = window.confirmed.max(done);
                    window.stored = window.stored.max(done);
                    if window.offered == window.committed {
                        window.again = instant() + window.retry_delay;
                    }
                    (window.offered, window.room())
                };
                if after >= head || room == 0 {
                    break;
                }
                let entries =
                    page::outbox(&**reader, &to, after, PAGE.min(usize::try_from(room).unwrap_or(PAGE))).await?;
                if entries.is_empty() {
                    break;
                }
                for entry in entries {
                    {
                        let mut windows = self.windows.borrow_mut();
                        let Some(window) = windows.get_mut(&to) else { return Ok(true) };
                        // A commit reported during the read may have advanced the window.
                        if entry.sequence <= window.offered {
                            continue;
                        }
                        if window.room() == 0 {
                            break;
                        }
                        window.offer(entry.sequence, entry.envelope.payload.len());
                    }
                    self.counts.sent.one();
                    let envelope = entry.envelope;
                    passes!("relay", envelope.name, envelope.id, envelope.correlation);
                    if !onward(envelope) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Applies a destination's note that it has committed everything up to `through`. `head` returns the last
    /// sequence sent to it and is called only if `through` exceeds what was forwarded.
    pub(crate) fn committed(&self, to: &ShardId, through: u64, head: impl FnOnce() -> u64) -> ConfirmationCheck {
        let mut windows = self.windows.borrow_mut();
        // Without a window nothing was forwarded since the start: the store's head is the limit.
        let Some(window) = windows.get_mut(to) else {
            return if through > head() { ConfirmationCheck::Impossible } else { ConfirmationCheck::Unchanged };
        };
        if through <= window.committed || window.stopped {
            return ConfirmationCheck::Unchanged;
        }
        // A destination may fetch more than was forwarded, but never more than exists.
        if through > window.offered && through > head() {
            return ConfirmationCheck::Impossible;
        }
        window.commit(through);
        window.retry_delay = FIRST_RETRY;
        window.again = instant() + FIRST_RETRY;
        if std::mem::take(&mut window.stalled) { ConfirmationCheck::Resumed } else { ConfirmationCheck::Advanced }
    }

    /// Marks a destination as being confirmed and returns its last noted sequence; `None` if there is no window or it
    /// is being confirmed already.
    pub(crate) fn begin_confirming(&self, to: &ShardId) -> Option<u64> {
        let mut windows = self.windows.borrow_mut();
        let window = windows.get_mut(to).filter(|window| !window.is_confirming)?;
        window.is_confirming = true;
        Some(window.committed)
    }

    /// Returns whether there is a window to a destination.
    pub(crate) fn has(&self, to: &ShardId) -> bool {
        self.windows.borrow().contains_key(to)
    }

    /// Returns the last sequence that a destination has confirmed, 0 without a window.
    pub(crate) fn confirmed(&self, to: &ShardId) -> u64 {
        self.windows.borrow().get(to).map_or(0, |window| window.confirmed)
    }

    /// Returns the last sequence that a destination has noted beyond its confirmed one, if any.
    pub(crate) fn unconfirmed_note(&self, to: &ShardId) -> Option<u64> {
        self.windows
            .borrow()
            .get(to)
            .filter(|window| window.committed > window.confirmed)
            .map(|window| window.committed)
    }

    /// Marks a destination as no longer being confirmed.
    pub(crate) fn end_confirming(&self, to: &ShardId) {
        if let Some(window) = self.windows.borrow_mut().get_mut(to) {
            window.is_confirming = false;
        }
    }

    /// Applies the owner's answer to a request sent after `noted` was noted: everything up to `through` is committed.
    /// Returns whether the note was exaggerated.
    pub(crate) fn confirm(&self, to: &ShardId, through: u64, noted: u64) -> bool {
        self.windows.borrow_mut().get_mut(to).is_some_and(|window| window.confirm(through, noted))
    }

    /// Returns the destinations that have noted more than they have confirmed.
    pub(crate) fn unconfirmed(&self) -> Vec<ShardId> {
        let windows = self.windows.borrow();
        windows.iter().filter(|(_, window)| window.committed > window.confirmed).map(|(to, _)| to.clone()).collect()
    }

    /// Stops sending to a destination.
    pub(crate) fn stop(&self, to: &ShardId) {
        let mut windows = self.windows.borrow_mut();
        let window = windows.entry(to.clone()).or_insert_with(|| SendWindow::from(0));
        window.stopped = true;
        // The caller keeps asking the owner; recorded here for windows that did not exist before.
        window.is_confirming = true;
        window.restart();
    }

    /// Resumes sending to a destination. Returns whether it was stopped.
    pub(crate) fn resume(&self, to: &ShardId) -> bool {
        let mut windows = self.windows.borrow_mut();
        windows.get_mut(to).is_some_and(|window| std::mem::take(&mut window.stopped))
    }

    /// Returns whether every entry ever sent, according to the store, is committed by its destination.
    pub(crate) fn is_idle(&self, heads: &[(ShardId, u64, u64)]) -> bool {
        let windows = self.windows.borrow();
        heads
            .iter()
            .all(|(to, done, head)| windows.get(to).map_or(*done, |window| window.committed.max(*done)) >= *head)
    }

    /// Returns confirmed watermarks to be stored, by destination, and counts them as stored.
    pub(crate) fn unstored(&self, at_least: u64) -> Vec<(ShardId, u64)> {
        let mut windows = self.windows.borrow_mut();
        windows
            .iter_mut()
            .filter(|(_, window)| window.confirmed >= window.stored + at_least.max(1))
            .map(|(to, window)| {
                window.stored = window.confirmed;
                (to.clone(), window.confirmed)
            })
            .collect()
    }

    /// Restarts the windows to matching destinations that make no progress. Returns whether any was restarted, and
    /// when to check next. A window that has reached the longest retry delay is reported to `stalled`, once.
    pub(crate) fn restart_stalled(
        &self,
        of: impl Fn(&ShardId) -> bool,
        mut stalled: impl FnMut(&ShardId),
    ) -> (bool, Option<Instant>) {
        let now = instant();
        let (mut restarted, mut next) = (false, None);
        let mut windows = self.windows.borrow_mut();
        for (to, window) in windows.iter_mut().filter(|(to, window)| window.offered > window.committed && of(to)) {
            if window.again <= now {
                restarted = true;
                if window.retry_delay == LONGEST_RETRY && !std::mem::replace(&mut window.stalled, true) {
                    stalled(to);
                }
                window.restart();
                window.retry_delay = (window.retry_delay * 2).min(LONGEST_RETRY);
                window.again = now + window.retry_delay;
            }
            next = Some(next.map_or(window.again, |next: Instant| next.min(window.again)));
        }
        (restarted, next)
    }
}

#[cfg(test)]
mod tests;
