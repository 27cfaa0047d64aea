//! Deduplication state of one actor: the messages it has handled, so that duplicates are detected.
//!
//! Called by actors and workers before and after each turn. Never forgets: an evicted id is looked up in the store.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Digest, MessageId, Name, ShardId};
use whizbang_core::store::{Source, SourceKind, StoredTurn};

/// Most ids without a time (idempotency keys) in memory. Older ones are found in the store.
const KEYED_CAPACITY: usize = 32;

/// Most ids with a time in memory.
const MAX_RECENT: usize = 128;

/// Largest reply kept in memory, in bytes: the store has larger ones, and few callers repeat a command.
const MAX_CACHED_REPLY: usize = 256;

/// Deduplication state of one actor.
///
/// Messages of actors, and events, are identified by their sequence: for each source only the last one is kept,
/// because an actor handles the messages of one source in order. There is no time window, and the memory is one
/// number per source.
///
/// Messages from outside are identified by their id. Ids that contain a time are evicted smallest first: an id above
/// the largest evicted one that is not in memory is certainly new, whatever the clocks say; one below it is looked up
/// in the store, in constant time however many turns there are. The memory is bounded in bytes: few ids, and short
/// replies only.
///
/// `RECENT` is the initial number of ids with a time in memory. Where ids arrive far out of order because there are
/// many concurrent callers, it grows up to 128: see [`grow`](Self::grow).
#[derive(Clone, Debug, Default)]
pub struct DedupStateOf<const RECENT: usize> {
    places: Vec<(Source, u64)>,
    recent: VecDeque<SeenId>,
    /// Number of ids kept, if more than `RECENT`.
    room: usize,
    /// Largest evicted id; 0 if none.
    forgotten: u128,
    /// Ids without a time.
    keyed: Option<Box<KeyedIds>>,
}

/// Ids without a time, oldest first.
#[derive(Clone, Debug, Default)]
struct KeyedIds {
    ids: VecDeque<(Timestamp, SeenId)>,
    /// Some ids were evicted.
    forgotten: bool,
}

/// Deduplication state of one aggregate or saga.
///
/// Few ids at first: there may be a million keys, and an id with its reply takes 48 bytes.
pub type DedupState = DedupStateOf<8>;

/// A handled id, with its reply.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SeenId {
    id: MessageId,
    digest: u64,
    reply: SmallReply,
}

/// A stored reply; most are short enough to need no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SmallReply {
    Inline(Codec, u8, [u8; 21]),
    Heap(Codec, Box<[u8]>),
    /// The reply is in the store only.
    Stored,
}

impl SmallReply {
    fn new(bytes: &[u8], codec: Codec) -> Self {
        let mut inline = [0; 21];
        match (u8::try_from(bytes.len()), inline.get_mut(..bytes.len())) {
            (Ok(length), Some(room)) => {
                room.copy_from_slice(bytes);
                Self::Inline(codec, length, inline)
            }
            _ if bytes.len() > MAX_CACHED_REPLY => Self::Stored,
            _ => Self::Heap(codec, bytes.into()),
        }
    }

    fn get(&self) -> Option<(&[u8], Codec)> {
        match self {
            Self::Inline(codec, length, bytes) => Some((bytes.get(..usize::from(*length)).unwrap_or_default(), *codec)),
            Self::Heap(codec, bytes) => Some((bytes, *codec)),
            Self::Stored => None,
        }
    }
}

/// Result of checking whether a message was handled before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It was not handled.
    New,
    /// It was handled, with this reply.
    Duplicate(Bytes, Codec),
    /// Its id was used with another payload.
    Conflict,
    /// An id that is not known in memory: look it up in the store.
    LookUp,
}

impl<const RECENT: usize> DedupStateOf<RECENT> {
    /// Returns whether the message at `sequence` of `source` is new.
    pub fn admit_sequence(&self, source: &Source, sequence: u64) -> bool {
        self.places.iter().find(|(known, _)| known == source).is_none_or(|(_, last)| sequence > *last)
    }

    /// Records the message at `sequence` of `source` as handled.
    pub fn place(&mut self, source: &Source, sequence: u64) {
        match self.places.iter_mut().find(|(known, _)| known == source) {
            Some((_, last)) => *last = (*last).max(sequence),
            None => self.places.push((source.clone(), sequence)),
        }
    }

    /// Checks the message `id` from outside, with this digest. Ids without a time that were handled before `oldest`
    /// have expired.
    pub(crate) fn admit_id(&self, id: MessageId, digest: &Digest<'_>, oldest: Timestamp) -> Admission {
        let timed = id.time().is_some();
        let found = if timed {
            match self.recent.back() {
                Some(last) if last.id < id => None,
                _ => self.recent.binary_search_by_key(&id, |seen| seen.id).ok().and_then(|at| self.recent.get(at)),
            }
        } else {
            let keyed = self.keyed.iter().flat_map(|keyed| keyed.ids.iter().rev());
            keyed.filter(|(time, _)| *time >= oldest).map(|(_, seen)| seen).find(|seen| seen.id == id)
        };
        match found {
            Some(seen) if digest.matches(seen.digest) => match seen.reply.get() {
                Some((reply, codec)) => Admission::Duplicate(Bytes::copy_from_slice(reply), codec),
                None => Admission::LookUp,
            },
            Some(_) => Admission::Conflict,
            None if timed && id.as_u128() <= self.forgotten => Admission::LookUp,
            None if !timed && self.keyed.as_ref().is_some_and(|keyed| keyed.forgotten) => Admission::LookUp,
            None => Admission::New,
        }
    }

    /// Records the message `id` from outside, handled at `time`, with its reply. A dead letter has no reply until it
    /// is redriven; recording it again replaces the reply.
    pub fn id(&mut self, id: MessageId, time: Timestamp, digest: u64, reply: &[u8], codec: Codec) {
        let seen = SeenId { id, digest, reply: SmallReply::new(reply, codec) };
        if id.time().is_none() {
            return self.keyed.get_or_insert_default().id(time, seen);
        }
        // Ids nearly always rise, so this is a push at the end. Evict first, so that the buffer never grows past its
        // capacity.
        let full = self.recent.len() >= self.room.max(RECENT);
        match self.recent.back() {
            Some(last) if last.id >= id => match self.recent.binary_search_by_key(&id, |seen| seen.id) {
                Ok(at) => self.recent.iter_mut().skip(at).take(1).for_each(|known| *known = seen.clone()),
                // Below all remembered ids: it would be evicted next.
                Err(0) if full => self.forgotten = self.forgotten.max(id.as_u128()),
                Err(at) => {
                    if full {
                        self.evict_smallest();
                    }
                    self.recent.insert(at - usize::from(full), seen);
                }
            },
            _ => {
                if full {
                    self.evict_smallest();
                }
                self.recent.push_back(seen);
            }
        }
    }

    fn evict_smallest(&mut self) {
        if let Some(gone) = self.recent.pop_front() {
            self.forgotten = self.forgotten.max(gone.id.as_u128());
        }
    }

    /// Doubles the number of remembered ids: an id that was looked up turned out to be new, so ids arrive further out
    /// of order than memory reaches.
    pub fn grow(&mut self) {
        self.room = (self.room.max(RECENT) * 2).min(MAX_RECENT);
    }

    /// Records a turn read back from the log.
    pub fn turn(&mut self, turn: &StoredTurn) {
        if let Some((source, sequence)) = &turn.from {
            self.place(source, *sequence);
        }
        if let Some(digest) = turn.digest {
            self.id(turn.id, turn.time, digest, &turn.reply, turn.reply_codec);
        }
    }

    /// Returns the state as it is kept in a snapshot.
    pub fn save(&self) -> SavedDedupState {
        // A reply that only the store has is looked up again, and so is its id.
        let stored = self.recent.iter().filter(|seen| seen.reply.get().is_none()).map(|seen| seen.id.as_u128()).max();
        let forgotten = self.forgotten.max(stored.unwrap_or(0));
        let save = |seen: &SeenId| {
            let (reply, codec) = seen.reply.get()?;
            Some((seen.id, seen.digest, reply.to_vec(), codec.id()))
        };
        SavedDedupState {
            places: self
                .places
                .iter()
                .map(|(source, last)| {
                    let subscriber = match &source.kind {
                        SourceKind::Direct => None,
                        SourceKind::Events { subscriber } => Some(subscriber.to_string()),
                    };
                    (source.shard.domain.to_string(), source.shard.shard, subscriber, *last)
                })
                .collect(),
            recent: self.recent.iter().filter_map(save).collect(),
            forgotten: (forgotten > 0).then_some(MessageId::from_u128(forgotten)),
            // The store finds them.
            keyed: Vec::new(),
            keyed_forgotten: self.keyed.is_some(),
        }
    }

    /// Restores the state from a snapshot; `None` if it cannot be used.
    pub fn restore(saved: SavedDedupState) -> Option<Self> {
        let restore = |(id, digest, reply, codec): (MessageId, u64, Vec<u8>, u8)| {
            Some(SeenId { id, digest, reply: SmallReply::new(&reply, Codec::from_id(codec)?) })
        };
        let places = saved.places.into_iter().map(|(domain, shard, subscriber, last)| {
            let kind = match subscriber {
                None => SourceKind::Direct,
                Some(name) => SourceKind::Events { subscriber: Name::new(&name).ok()? },
            };
            Some((Source { shard: ShardId::new(Name::new(&domain).ok()?, shard), kind }, last))
        });
        // Older versions kept ids without their time; the store finds these ids with it.
        let forgotten = saved.keyed_forgotten || !saved.keyed.is_empty();
        Some(Self {
            places: places.collect::<Option<_>>()?,
            room: saved.recent.len().min(MAX_RECENT),
            recent: saved.recent.into_iter().map(restore).collect::<Option<_>>()?,
            forgotten: saved.forgotten.map_or(0, MessageId::as_u128),
            keyed: forgotten.then(|| Box::new(KeyedIds { ids: VecDeque::new(), forgotten })),
        })
    }
}

impl KeyedIds {
    fn id(&mut self, time: Timestamp, seen: SeenId) {
        if let Some(known) = self.ids.iter_mut().rev().find(|(_, known)| known.id == seen.id) {
            *known = (time, seen);
            return;
        }
        if self.ids.len() >= KEYED_CAPACITY {
            self.ids.pop_front();
            self.forgotten = true;
        }
        self.ids.push_back((time, seen));
    }
}

/// Deduplication state in a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDedupState {
    places: Vec<(String, u16, Option<String>, u64)>,
    recent: Vec<(MessageId, u64, Vec<u8>, u8)>,
    forgotten: Option<MessageId>,
    keyed: Vec<(MessageId, u64, Vec<u8>, u8)>,
    keyed_forgotten: bool,
}

#[cfg(test)]
mod tests;
