//! The index as bytes, so that opening a store need not read the whole log.
//!
//! What is saved is what readers see: the state after the last committed record. It is a cache: it follows from the log.

use std::collections::HashMap;

use super::outbox::SavedDestination;
use super::stream::{Stream, StreamHasher};
use super::{Change, Head, Index, POSITIONS_PER_ANCHOR};
use crate::clock::Timestamp;
use crate::message::ShardId;
use crate::store::record::decode::Decoder;
use crate::store::record::encode;
use crate::store::record::{Location, Malformed, Names, SourceRecord};
use crate::store::{SourceKind, Timer, Watermark};

/// So many entries are written at once: appends wait for as long as that takes.
pub(crate) const ENTRIES_AT_ONCE: usize = 4096;

/// An index that is being saved in slices, while appends go on in between. What is saved is the state at the beginning.
///
/// What only grows is read later up to where it was. What is small is copied: the destinations and the sources of a shard. Of the
/// rest, heads, timers and letters, what changes before its turn comes is kept as it was.
#[derive(Debug)]
pub(super) struct IndexSave {
    stage: Stage,
    /// The next entry of the stage.
    next: usize,
    /// How many heads there were at the beginning.
    count: usize,
    /// The heads that have changed since the beginning, or that were not committed then, as they are to be saved.
    old: HashMap<u32, Option<Head>, foldhash::fast::FixedState>,
    /// How many places of positions were remembered.
    anchors: usize,
    /// The place before the next one.
    last_anchor: Location,
    destinations: Vec<SavedDestination>,
    watermarks: Vec<Watermark>,
    timers: usize,
    letters: usize,
}

/// The parts of an index, in the order in which they are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Heads,
    Anchors,
    /// The destination with this number, and its marks.
    Outbox(usize),
    Watermarks,
    Timers,
    DeadLetters,
}

impl IndexSave {
    /// The head with this number is about to change.
    pub(super) fn preserve(&mut self, number: u32, head: Head) {
        let place = number as usize;
        if self.stage == Stage::Heads && place >= self.next && place < self.count {
            self.old.entry(number).or_insert(Some(head));
        }
    }

    fn go_to(&mut self, stage: Stage) {
        (self.stage, self.next, self.last_anchor) = (stage, 0, 0);
    }
}

impl Index {
    /// Begins to save the index: appends to `into` what comes before the entries. Those follow in slices, by
    /// [`save_next`](Self::save_next). One that was begun before and not ended is given up.
    ///
    /// The cost grows with the destinations and sources of the shard and with the appends that are not committed.
    pub(crate) fn begin_saving(&mut self, into: &mut Vec<u8>) {
        self.outbox.commit_through(self.committed.through);
        encode::number(into, self.committed.through);
        encode::number(into, self.committed.position);
        encode::number(into, self.committed.events);
        // Of a stream with pending appends the first one knows what is committed.
        let (count, mut old) = (self.heads.len(), HashMap::default());
        for (stream, before) in self.pending.iter().filter_map(|one| Some((one.stream?, one.before))) {
            if let Some(number) = self.heads.number(stream) {
                old.entry(number).or_insert(before);
            }
        }
        let new = old.values().filter(|head| head.is_none()).count();
        encode::number(into, (count - new) as u64);
        let marks = usize::try_from(self.committed.position.div_ceil(POSITIONS_PER_ANCHOR)).unwrap_or(usize::MAX);
        self.timers.begin_saving();
        self.saving = Some(IndexSave {
            stage: Stage::Heads,
            next: 0,
            count,
            old,
            anchors: marks.min(self.anchors.len()),
            last_anchor: 0,
            destinations: self.outbox.committed(),
            watermarks: self.watermarks.clone(),
            timers: self.timers.len(),
            letters: self.dead_letters.begin_saving(),
        });
    }

    /// Appends the next entries, up to [`ENTRIES_AT_ONCE`]; whether there are more.
    pub(crate) fn save_next(&mut self, into: &mut Vec<u8>) -> bool {
        let Some(mut saving) = self.saving.take() else { return false };
        let more = self.save_stage(&mut saving, into);
        if more {
            self.saving = Some(saving);
        }
        more
    }

    /// Saves no further: what was written cannot be kept. Without this, what changes would be kept until the next beginning.
    pub(crate) fn abort_saving(&mut self) {
        self.saving = None;
        self.timers.abort_saving();
        self.dead_letters.abort_saving();
    }

    fn save_stage(&mut self, saving: &mut IndexSave, into: &mut Vec<u8>) -> bool {
        match saving.stage {
            Stage::Heads => {
                let end = saving.count.min(saving.next + ENTRIES_AT_ONCE);
                for number in (saving.next..end).filter_map(|number| u32::try_from(number).ok()) {
                    let Some((stream, now)) = self.heads.at(number) else { continue };
                    if let Some(head) = saving.old.remove(&number).unwrap_or(Some(now)) {
                        encode_stream(into, stream);
                        encode::number(into, head.location);
                        encode::number(into, head.number);
                    }
                }
                saving.next = end;
                if end == saving.count {
                    saving.go_to(Stage::Anchors);
                    encode::number(into, saving.anchors as u64);
                }
            }
            Stage::Anchors => {
                if encode_anchors(into, &self.anchors, saving.anchors, &mut saving.next, &mut saving.last_anchor) {
                    saving.go_to(Stage::Outbox(0));
                    encode::number(into, saving.destinations.len() as u64);
                }
            }
            Stage::Outbox(number) => match saving.destinations.get(number) {
                Some(SavedDestination { id, numbers, anchors: marks }) => {
                    if saving.next == 0 {
                        encode_shard(into, id);
                        numbers.iter().for_each(|number| encode::number(into, *number));
                        encode::number(into, *marks as u64);
                    }
                    if encode_anchors(
                        into,
                        self.outbox.anchors(number),
                        *marks,
                        &mut saving.next,
                        &mut saving.last_anchor,
                    ) {
                        saving.go_to(Stage::Outbox(number + 1));
                    }
                }
                None => {
                    saving.go_to(Stage::Watermarks);
                    encode::number(into, saving.watermarks.len() as u64);
                }
            },
            Stage::Watermarks => {
                for watermark in saving.watermarks.iter().skip(saving.next).take(ENTRIES_AT_ONCE) {
                    encode_watermark(into, watermark);
                    saving.next += 1;
                }
                if saving.next >= saving.watermarks.len() {
                    saving.go_to(Stage::Timers);
                    encode::number(into, saving.timers as u64);
                }
            }
            Stage::Timers => {
                let timers = self.timers.save_next(ENTRIES_AT_ONCE);
                timers.iter().for_each(|(stream, timer)| encode_timer(into, *stream, timer));
                if self.timers.is_saved() {
                    saving.go_to(Stage::DeadLetters);
                    encode::number(into, saving.letters as u64);
                }
            }
            Stage::DeadLetters => {
                for (id, stream, location) in self.dead_letters.save_next(ENTRIES_AT_ONCE) {
                    encode::id(into, id);
                    encode_stream(into, stream);
                    encode::number(into, location);
                }
                return !self.dead_letters.is_saved();
            }
        }
        true
    }

    /// Reads what [`begin_saving`](Self::begin_saving) and [`save_next`](Self::save_next) have written.
    pub(crate) fn restore(take: &mut Decoder<'_>, hasher: StreamHasher, names: &mut Names) -> Result<Self, Malformed> {
        let mut index = Self::new(hasher);
        index.committed.through = take.number()?;
        index.committed.position = take.number()?;
        index.committed.events = take.number()?;
        index.position = index.committed.position;
        index.events = index.committed.events;
        let heads = take.count()?;
        index.heads.reserve(heads);
        for _ in 0..heads {
            let stream = decode_stream(take)?;
            let head = Head { location: take.number()?, number: take.number()? };
            match index.heads.number(stream) {
                Some(number) => index.heads.set(number, head),
                None => drop(index.heads.add(stream, head)),
            }
        }
        index.anchors = decode_anchors(take)?;
        index.outbox.restore(take, names)?;
        for _ in 0..take.count()? {
            let (domain, shard) = (take.text()?, take.shard()?);
            let source = SourceRecord { domain, shard, subscriber: take.text()? }.to_source(names)?;
            let (source, through) = (index.source(&source), take.number()?);
            index.apply_change(None, 0, Change::Watermark { source, through });
        }
        for _ in 0..take.count()? {
            let (stream, timer) = decode_timer(take, names)?;
            index.timers.set(stream, timer);
        }
        for _ in 0..take.count()? {
            let (id, stream) = (take.id()?, decode_stream(take)?);
            index.dead_letters.restore(id, stream, take.number()?);
        }
        Ok(index)
    }
}

fn encode_stream(into: &mut Vec<u8>, stream: Stream) {
    into.extend_from_slice(&stream.0.to_le_bytes());
    into.extend_from_slice(&stream.1.to_le_bytes());
}

fn decode_stream(take: &mut Decoder<'_>) -> Result<Stream, Malformed> {
    Ok(Stream(u64::from_le_bytes(take.array()?), u64::from_le_bytes(take.array()?)))
}

fn encode_shard(into: &mut Vec<u8>, shard: &ShardId) {
    encode::text(into, &shard.domain);
    encode::number(into, u64::from(shard.shard));
}

/// Appends the next of the first `count` marks, and says whether these were the last. Marks rise, so each is written as the way from the
/// one before.
fn encode_anchors(into: &mut Vec<u8>, marks: &[u64], count: usize, next: &mut usize, before: &mut u64) -> bool {
    let end = count.min(*next + ENTRIES_AT_ONCE);
    for mark in marks.get(*next..end).unwrap_or_default() {
        encode::number(into, mark.wrapping_sub(*before));
        *before = *mark;
    }
    *next = end;
    end == count
}

fn encode_watermark(into: &mut Vec<u8>, Watermark { source, through }: &Watermark) {
    encode_shard(into, &source.shard);
    encode::text(
        into,
        match &source.kind {
            SourceKind::Direct => "",
            SourceKind::Events { subscriber } => subscriber,
        },
    );
    encode::number(into, *through);
}

pub(super) fn decode_anchors(take: &mut Decoder<'_>) -> Result<Vec<u64>, Malformed> {
    let count = take.count()?;
    let mut marks = Vec::with_capacity(count);
    let mut mark = 0u64;
    for _ in 0..count {
        mark = mark.wrapping_add(take.number()?);
        marks.push(mark);
    }
    Ok(marks)
}

fn encode_timer(into: &mut Vec<u8>, stream: Stream, timer: &Timer) {
    encode_stream(into, stream);
    encode::text(into, &timer.actor);
    encode::text(into, &timer.key);
    encode::text(into, &timer.name);
    encode::number(into, timer.turn);
    encode::number(into, timer.due.as_millis());
    encode::number(into, u64::from(timer.version));
    into.push(timer.codec.id());
    encode::bytes(into, &timer.payload);
    encode::id(into, timer.correlation);
}

fn decode_timer(take: &mut Decoder<'_>, names: &mut Names) -> Result<(Stream, Timer), Malformed> {
    let stream = decode_stream(take)?;
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
