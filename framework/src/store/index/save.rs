//! The index as bytes, so that opening a store need not read the whole log.
//!
//! What is saved is what readers see: the state after the last committed record. It is a cache: it follows from the log.

use std::collections::HashMap;

use super::stream::{Stream, StreamHasher};
use super::{Change, Head, Index, POSITIONS_A_MARK};
use crate::clock::Timestamp;
use crate::message::ShardId;
use crate::store::record::put;
use crate::store::record::take::Take;
use crate::store::record::{Malformed, Names, SourceRecord};
use crate::store::{Lane, Timer, Watermark};

/// So many heads are written at once: appends wait for as long as that takes.
pub(crate) const HEADS_AT_ONCE: usize = 4096;

/// An index that is being saved in slices, while appends go on in between. What is saved is the state at the beginning.
#[derive(Debug)]
pub(super) struct Saving {
    /// The first head that is not saved yet, and how many there were at the beginning.
    next: usize,
    count: usize,
    /// The heads that have changed since the beginning, or that were not committed then, as they are to be saved.
    old: HashMap<u32, Option<Head>, foldhash::fast::FixedState>,
}

impl Saving {
    /// The head with this number is about to change.
    pub(super) fn keep(&mut self, number: u32, head: Head) {
        let place = number as usize;
        if place >= self.next && place < self.count {
            self.old.entry(number).or_insert(Some(head));
        }
    }
}

impl Index {
    /// Begins to save the index: appends to `into` what comes before the heads and to `behind` what comes after them. The heads
    /// follow in slices, by [`save_heads`](Self::save_heads). One that was begun before and not ended is given up.
    pub(crate) fn begin_saving(&mut self, into: &mut Vec<u8>, behind: &mut Vec<u8>) {
        self.outbox.settle(self.committed.through);
        put::number(into, self.committed.through);
        put::number(into, self.committed.position);
        put::number(into, self.committed.events);
        // Of a stream with pending appends the first one knows what is committed.
        let mut saving = Saving { next: 0, count: self.heads.len(), old: HashMap::default() };
        for (stream, before) in self.pending.iter().filter_map(|one| Some((one.stream?, one.before))) {
            if let Some(number) = self.heads.number(stream) {
                saving.old.entry(number).or_insert(before);
            }
        }
        let new = saving.old.values().filter(|head| head.is_none()).count();
        put::number(into, (saving.count - new) as u64);
        self.saving = Some(saving);
        let marks = usize::try_from(self.committed.position.div_ceil(POSITIONS_A_MARK)).unwrap_or(usize::MAX);
        put_marks(behind, self.marks.get(..marks).unwrap_or(&self.marks));
        self.outbox.save(behind);
        put::number(behind, self.watermarks.len() as u64);
        for Watermark { source, through } in &self.watermarks {
            put_shard(behind, &source.shard);
            put::text(
                behind,
                match &source.lane {
                    Lane::Direct => "",
                    Lane::Events { subscriber } => subscriber,
                },
            );
            put::number(behind, *through);
        }
        put::number(behind, self.timers.len() as u64);
        for (stream, timer) in self.timers.all() {
            put_timer(behind, stream, timer);
        }
        let letters = self.letters.all();
        put::number(behind, letters.len() as u64);
        for (id, stream, location) in letters {
            put::id(behind, id);
            put_stream(behind, stream);
            put::number(behind, location);
        }
    }

    /// Appends the next heads; whether there are more.
    pub(crate) fn save_heads(&mut self, into: &mut Vec<u8>) -> bool {
        let Self { heads, saving: slot, .. } = self;
        let Some(saving) = slot else { return false };
        let end = saving.count.min(saving.next + HEADS_AT_ONCE);
        for number in (saving.next..end).filter_map(|number| u32::try_from(number).ok()) {
            let Some((stream, now)) = heads.at(number) else { continue };
            let head = saving.old.remove(&number).unwrap_or(Some(now));
            if let Some(head) = head {
                put_stream(into, stream);
                put::number(into, head.location);
                put::number(into, head.number);
            }
        }
        saving.next = end;
        let more = end < saving.count;
        if !more {
            *slot = None;
        }
        more
    }

    /// Reads what [`begin_saving`](Self::begin_saving) and [`save_heads`](Self::save_heads) have written.
    pub(crate) fn restore(take: &mut Take<'_>, hasher: StreamHasher, names: &mut Names) -> Result<Self, Malformed> {
        let mut index = Self::new(hasher);
        index.committed.through = take.number()?;
        index.committed.position = take.number()?;
        index.committed.events = take.number()?;
        index.position = index.committed.position;
        index.events = index.committed.events;
        let heads = take.count()?;
        index.heads.reserve(heads);
        for _ in 0..heads {
            let stream = take_stream(take)?;
            let head = Head { location: take.number()?, number: take.number()? };
            match index.heads.number(stream) {
                Some(number) => index.heads.set(number, head),
                None => drop(index.heads.add(stream, head)),
            }
        }
        index.marks = take_marks(take)?;
        index.outbox.restore(take, names)?;
        for _ in 0..take.count()? {
            let (domain, shard) = (take.text()?, take.shard()?);
            let source = SourceRecord { domain, shard, subscriber: take.text()? }.to_source(names)?;
            let (source, through) = (index.source(&source), take.number()?);
            index.change(None, 0, Change::Watermark { source, through });
        }
        for _ in 0..take.count()? {
            let (stream, timer) = take_timer(take, names)?;
            index.timers.set(stream, timer);
        }
        for _ in 0..take.count()? {
            let (id, stream) = (take.id()?, take_stream(take)?);
            index.letters.restore(id, stream, take.number()?);
        }
        Ok(index)
    }
}

fn put_stream(into: &mut Vec<u8>, stream: Stream) {
    into.extend_from_slice(&stream.0.to_le_bytes());
    into.extend_from_slice(&stream.1.to_le_bytes());
}

fn take_stream(take: &mut Take<'_>) -> Result<Stream, Malformed> {
    Ok(Stream(u64::from_le_bytes(take.array()?), u64::from_le_bytes(take.array()?)))
}

pub(super) fn put_shard(into: &mut Vec<u8>, shard: &ShardId) {
    put::text(into, &shard.domain);
    put::number(into, u64::from(shard.shard));
}

/// Marks rise, so each is written as the way from the one before.
pub(super) fn put_marks(into: &mut Vec<u8>, marks: &[u64]) {
    put::number(into, marks.len() as u64);
    let mut before = 0;
    for mark in marks {
        put::number(into, mark.wrapping_sub(before));
        before = *mark;
    }
}

pub(super) fn take_marks(take: &mut Take<'_>) -> Result<Vec<u64>, Malformed> {
    let count = take.count()?;
    let mut marks = Vec::with_capacity(count);
    let mut mark = 0u64;
    for _ in 0..count {
        mark = mark.wrapping_add(take.number()?);
        marks.push(mark);
    }
    Ok(marks)
}

fn put_timer(into: &mut Vec<u8>, stream: Stream, timer: &Timer) {
    put_stream(into, stream);
    put::text(into, &timer.actor);
    put::text(into, &timer.key);
    put::text(into, &timer.name);
    put::number(into, timer.turn);
    put::number(into, timer.due.as_millis());
    put::number(into, u64::from(timer.version));
    into.push(timer.codec.id());
    put::bytes(into, &timer.payload);
    put::id(into, timer.correlation);
}

fn take_timer(take: &mut Take<'_>, names: &mut Names) -> Result<(Stream, Timer), Malformed> {
    let stream = take_stream(take)?;
    let timer = Timer {
        actor: names.get(take.text()?)?,
        key: take.text()?.to_owned(),
        name: take.text()?.to_owned(),
        turn: take.number()?,
        due: Timestamp::from_millis(take.number()?),
        version: take.small()?,
        codec: take.codec()?,
        payload: bytes::Bytes::copy_from_slice(take.bytes()?),
        correlation: take.id()?,
    };
    Ok((stream, timer))
}
