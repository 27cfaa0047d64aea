//! The progress of a stream in the log of one shard: what was read, and whether a page continues it.
//!
//! Called by the [follower](super::follower). Pure: it neither reads nor waits.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::cursor::Mark;
use crate::router::LogPage;
use whizbang_core::message::{Envelope, Name};

/// Number of events read from a log at a time. The owner also limits a page in bytes.
const PAGE: u32 = 256;

/// Number of consecutive readings that contradict earlier ones until the log counts as diverged. A single one may have been answered
/// by a node that has lost its shard.
const DOUBTS: u32 = 2;

/// The progress in the log of one shard.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The last event that was read; `None` until the end of the log is known, where the stream starts.
    read: Option<Mark>,
    /// The last event that the caller has received or that is not for it.
    pub(super) given: Mark,
    /// A position that was reported and not read yet.
    pub(super) reported: u64,
    /// The log may have grown since the current reading began.
    pub(super) is_due_again: bool,
    pub(super) is_reading: bool,
    /// It is in a queue of the follower: to be read, or to be read after a wait.
    pub(super) is_queued: bool,
    /// The next reading checks that the log still contains the last event.
    pub(super) verifies: bool,
    /// Readings in a row that contradict what was read before.
    doubts: u32,
    /// Readings in a row that have failed, and the time of the first.
    pub(super) failures: u32,
    pub(super) failing_since: Option<Instant>,
    pub(super) was_reported_failing: bool,
}

/// A reading of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRequest {
    pub(super) after: u64,
    pub(super) limit: u32,
    /// The page begins with the last event that was read.
    pub(super) verifies: bool,
}

/// An event of a page.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) mark: Mark,
    /// `None` if it is not for the stream.
    pub(super) envelope: Option<Box<Envelope>>,
}

/// The result of a page.
#[derive(Debug)]
pub(super) enum Applied {
    /// It continues what was read before. With `more`, the log has further events.
    Read { entries: VecDeque<Entry>, more: bool },
    /// It cannot be used. Holds the reason.
    Unusable(&'static str),
    /// The log does not contain the event that was read at this position.
    Diverged(u64),
}

impl Progress {
    /// Creates the progress of a stream that starts behind an event, or at the end of the log.
    pub(super) fn starting_at(start: Option<Mark>) -> Self {
        Self {
            read: start,
            given: start.unwrap_or_default(),
            verifies: start.is_some_and(|mark| mark.check.is_some()),
            ..Self::default()
        }
    }

    /// Returns whether the place at which the stream starts is known.
    pub(super) fn is_started(&self) -> bool {
        self.read.is_some()
    }

    /// Returns whether the log is reported to have events that were not read.
    pub(super) fn is_behind(&self) -> bool {
        self.read.is_none_or(|read| read.position < self.reported)
    }

    /// Begins a reading.
    pub(super) fn begin(&mut self) -> PageRequest {
        // The page returns the end of the log, so only later reports count.
        (self.is_reading, self.is_due_again, self.reported) = (true, false, 0);
        match self.read {
            // A page behind every event is empty and names the end of the log.
            None => PageRequest { after: u64::MAX, limit: 0, verifies: false },
            Some(Mark { position: position @ 1.., check: Some(_) }) if self.verifies => {
                PageRequest { after: position - 1, limit: PAGE + 1, verifies: true }
            }
            Some(mark) => PageRequest { after: mark.position, limit: PAGE, verifies: false },
        }
    }

    /// Applies a page. `takes` selects the events for the stream.
    pub(super) fn apply(&mut self, asked: PageRequest, page: LogPage, takes: impl Fn(&Name) -> bool) -> Applied {
        let Some(read) = self.read else {
            let end = Mark { position: page.last, check: None };
            (self.read, self.given) = (Some(end), end);
            return Applied::Read { entries: VecDeque::new(), more: self.has_more(end.position, page.last) };
        };
        let mut events = page.events.into_iter().peekable();
        let place = |event: &Envelope| event.origin.as_ref().map_or(0, |origin| origin.sequence);
        if asked.verifies {
            let is_there = events.next_if(|event| read.is(place(event), event.id)).is_some();
            if !is_there && page.last >= read.position && events.peek().is_none() {
                return Applied::Unusable("page without the event that was read last");
            }
            if !is_there {
                return self.doubt(read);
            }
        } else if page.last < read.position && events.peek().is_none() {
            return self.doubt(read);
        }
        (self.verifies, self.doubts) = (false, 0);
        let (mut entries, mut last) = (VecDeque::<Entry>::new(), read);
        for event in events {
            let next = last.position.checked_add(1).filter(|next| *next == place(&event));
            let Some(next) = next else { return Applied::Unusable("page with a gap") };
            last = Mark::of(next, event.id);
            // Events that are not for the stream only move its cursor: one entry for several of them.
            let envelope = takes(&event.name).then(|| Box::new(event));
            match entries.back_mut() {
                Some(before) if before.envelope.is_none() && envelope.is_none() => before.mark = last,
                _ => entries.push_back(Entry { mark: last, envelope }),
            }
        }
        if entries.is_empty() && page.last > last.position {
            return Applied::Unusable("empty page although the log has further events");
        }
        self.read = Some(last);
        Applied::Read { entries, more: self.has_more(last.position, page.last) }
    }

    fn has_more(&self, read: u64, last: u64) -> bool {
        self.is_due_again || last.max(self.reported) > read
    }

    fn doubt(&mut self, read: Mark) -> Applied {
        self.doubts += 1;
        self.verifies = true;
        match self.doubts >= DOUBTS {
            true => Applied::Diverged(read.position),
            false => Applied::Unusable("the log does not contain the event that was read last"),
        }
    }
}
