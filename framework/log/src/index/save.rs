//! Encodes the index, so that opening a store does not have to read the whole log.
//!
//! Called by the writer of checkpoints and, to decode, by recovery.
//! The saved state is the state that readers see, after the last committed record. It is a cache: it can be rebuilt
//! from the log.
//!
//! A save begins with the state of one moment. A part that only grows is read up to its former length. Of the others, the
//! former value of a changed entry is kept. So appends never wait for the whole save.

use std::collections::HashMap;

use super::anchors::{ENTRIES_AT_ONCE, POSITIONS_PER_ANCHOR, decode_anchors, encode_anchors};
use super::index_save::{IndexSave, Stage};
use super::latest_versions::Head;
use super::outbox::SavedDestination;
use super::stream::{Stream, StreamHasher};
use super::{Change, Index};
use crate::record::decode::Decoder;
use crate::record::encode;
use crate::record::{Malformed, Names, SourceRecord};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::ShardId;
use whizbang_core::store::{SourceKind, Timer, Watermark};

impl Index {
    /// Begins to save the index: appends the part before the entries to `into`. The entries follow in slices through
    /// [`save_next`](Self::save_next). A save that is not finished is aborted.
    ///
    /// The cost grows with the destinations and sources of the shard and with the uncommitted appends.
    pub fn begin_saving(&mut self, into: &mut Vec<u8>) {
        self.outbox.commit_through(self.committed.through);
        encode::number(into, self.committed.through);
        encode::number(into, self.committed.position);
        encode::number(into, self.committed.events);
        // For a stream with pending appends, the first of them holds the committed head.
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
            dead_letters: self.dead_letters.begin_saving(),
        });
    }

    /// Appends up to [`ENTRIES_AT_ONCE`] further entries. Returns whether there are more.
    pub fn save_next(&mut self, into: &mut Vec<u8>) -> bool {
        let Some(mut saving) = self.saving.take() else { return false };
        let more = self.save_stage(&mut saving, into);
        if more {
            self.saving = Some(saving);
        }
        more
    }

    /// Aborts the save, because its output could not be written. Otherwise former values would be preserved until the
    /// next save.
    pub fn abort_saving(&mut self) {
        self.saving = None;
        self.timers.abort_saving();
        self.dead_letters.abort_saving();
    }

    /// Encodes one slice of the current part. Returns whether the part is complete.
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
                    encode::number(into, saving.dead_letters as u64);
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

    /// Decodes the output of [`begin_saving`](Self::begin_saving) and [`save_next`](Self::save_next).
    pub fn restore(decoder: &mut Decoder<'_>, hasher: StreamHasher, names: &mut Names) -> Result<Self, Malformed> {
        let mut index = Self::new(hasher);
        index.committed.through = decoder.number()?;
        index.committed.position = decoder.number()?;
        index.committed.events = decoder.number()?;
        index.position = index.committed.position;
        index.events = index.committed.events;
        let heads = decoder.count()?;
        index.heads.reserve(heads);
        for _ in 0..heads {
            let stream = decode_stream(decoder)?;
            let head = Head { location: decoder.number()?, number: decoder.number()? };
            match index.heads.number(stream) {
                Some(number) => index.heads.set(number, head),
                None => drop(index.heads.add(stream, head)),
            }
        }
        index.anchors = decode_anchors(decoder)?;
        index.outbox.restore(decoder, names)?;
        for _ in 0..decoder.count()? {
            let (domain, shard) = (decoder.text()?, decoder.shard()?);
            let source = SourceRecord { domain, shard, subscriber: decoder.text()? }.to_source(names)?;
            let (source, through) = (index.source(&source), decoder.number()?);
            index.apply_change(None, 0, Change::Watermark { source, through });
        }
        for _ in 0..decoder.count()? {
            let (stream, timer) = decode_timer(decoder, names)?;
            index.timers.set(stream, timer);
        }
        for _ in 0..decoder.count()? {
            let (id, stream) = (decoder.id()?, decode_stream(decoder)?);
            index.dead_letters.restore(id, stream, decoder.number()?);
        }
        Ok(index)
    }
}

/// Writes both halves of a stream.
fn encode_stream(into: &mut Vec<u8>, stream: Stream) {
    into.extend_from_slice(&stream.0.to_le_bytes());
    into.extend_from_slice(&stream.1.to_le_bytes());
}

/// Reads both halves of a stream.
fn decode_stream(decoder: &mut Decoder<'_>) -> Result<Stream, Malformed> {
    Ok(Stream(u64::from_le_bytes(decoder.array()?), u64::from_le_bytes(decoder.array()?)))
}

/// Writes domain and number of a shard.
fn encode_shard(into: &mut Vec<u8>, shard: &ShardId) {
    encode::text(into, &shard.domain);
    encode::number(into, u64::from(shard.shard));
}

/// Writes a watermark with its source.
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

/// Writes a timer with all that its turn needs.
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

/// Reads a timer.
fn decode_timer(decoder: &mut Decoder<'_>, names: &mut Names) -> Result<(Stream, Timer), Malformed> {
    let stream = decode_stream(decoder)?;
    let timer = Timer {
        actor: names.get(decoder.text()?)?,
        key: decoder.text()?.to_owned(),
        name: decoder.text()?.to_owned(),
        turn: decoder.number()?,
        due: Timestamp::from_millis(decoder.number()?),
        version: decoder.small()?,
        codec: decoder.codec()?,
        payload: bytes::Bytes::copy_from_slice(decoder.bytes()?),
        correlation: decoder.id()?,
    };
    Ok((stream, timer))
}
