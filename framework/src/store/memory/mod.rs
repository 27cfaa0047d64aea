//! In memory: for tests, for the hello, and as the oracle the other stores are compared with.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

use super::*;
use crate::message::{Envelope, Origin};

/// A store in memory. A clone shares what is stored, so that a node started again finds it.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    shards: HashMap<ShardId, Arc<Mutex<Shard>>>,
    views: HashMap<Name, View>,
}

#[derive(Default)]
struct Shard {
    count: u16,
    epoch: Epoch,
    ticket: Ticket,
    streams: HashMap<(Name, String), (Option<Snapshot>, Vec<StoredTurn>)>,
    events: Vec<StoredEvent>,
    outbox: BTreeMap<ShardId, (u64, Vec<OutboxEntry>)>,
    marks: HashMap<Source, u64>,
    timers: BTreeMap<(Timestamp, Name, String, String), Timer>,
    letters: BTreeMap<MessageId, DeadLetter>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for MemoryStore {
    fn open<'a>(
        &'a self,
        id: &'a ShardId,
        shards: u16,
        _listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        let shard = Arc::clone(self.0.lock().shards.entry(id.clone()).or_default());
        let epoch = {
            let mut shard = shard.lock();
            if shard.count == 0 {
                shard.count = shards;
            }
            if shard.count != shards {
                let error = StoreError::Shards { domain: id.domain.to_string(), found: shard.count, wanted: shards };
                return Box::pin(ready(Err(error)));
            }
            shard.epoch += 1;
            shard.epoch
        };
        let memory = MemoryShard { id: id.clone(), epoch, shard };
        Box::pin(ready(Ok(ShardHandle { writer: Box::new(memory.clone()), reader: Arc::new(memory) })))
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        Box::pin(ready(Ok(self.0.lock().views.get(projection).cloned())))
    }

    fn save_view<'a>(&'a self, projection: &'a Name, view: View) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.lock().views.insert(projection.clone(), view);
        Box::pin(ready(Ok(())))
    }

    fn durability(&self) -> &'static str {
        "in memory: nothing survives the process"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(ready(Ok(())))
    }
}

#[derive(Clone)]
struct MemoryShard {
    id: ShardId,
    epoch: Epoch,
    shard: Arc<Mutex<Shard>>,
}

impl MemoryShard {
    fn fenced(&self, shard: &Shard) -> Result<(), StoreError> {
        if shard.epoch == self.epoch {
            Ok(())
        } else {
            Err(StoreError::Fenced { shard: self.id.clone(), mine: self.epoch, current: shard.epoch })
        }
    }
}

impl ShardWriter for MemoryShard {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        let mut guard = self.shard.lock();
        self.fenced(&guard)?;
        let shard = &mut *guard;
        shard.ticket += 1;
        let mut events = Vec::new();
        for (at, event) in turn.events.iter().enumerate() {
            let stored = StoredEvent {
                position: shard.events.len() as u64 + 1,
                actor: turn.actor.clone(),
                key: turn.key.to_owned(),
                stream_version: turn.version + at as u64 + 1,
                name: Name::new(event.name).map_err(|error| StoreError::io("naming an event", error))?,
                version: event.version,
                codec: event.codec,
                payload: Bytes::copy_from_slice(event.payload),
                time: turn.time,
                cause: turn.id,
                correlation: turn.correlation,
                traceparent: turn.traceparent.map(str::to_owned),
            };
            shard.events.push(stored.clone());
            events.push(stored);
        }
        for write in turn.outbox {
            let (_, entries) = shard.outbox.entry(write.to.clone()).or_default();
            let sequence = entries.len() as u64 + 1;
            let origin = Origin {
                shard: self.id.clone(),
                actor: turn.actor.clone(),
                key: turn.key.to_owned(),
                sequence,
                version: 0,
            };
            let envelope = Envelope { origin: Some(origin), ..write.envelope.clone() };
            entries.push(OutboxEntry { sequence, envelope });
        }
        let (mut from, mut digest, mut rang) = (None, None, None);
        match &turn.mark {
            Mark::None => {}
            Mark::Outside { digest: value } => digest = Some(*value),
            Mark::From { source, sequence, floor } => {
                from = Some(((*source).clone(), *sequence));
                let mark = shard.marks.entry((*source).clone()).or_default();
                *mark = (*mark).max(*floor);
            }
            Mark::Timer { name } => {
                rang = Some((*name).to_owned());
                shard
                    .timers
                    .retain(|_, timer| !(timer.actor == *turn.actor && timer.key == turn.key && timer.name == *name));
            }
        }
        let mut timers = Vec::new();
        for timer in turn.timers {
            let name = match timer {
                TimerWrite::Set { name, .. } | TimerWrite::Clear { name } => *name,
            };
            shard
                .timers
                .retain(|_, timer| !(timer.actor == *turn.actor && timer.key == turn.key && timer.name == name));
            if let TimerWrite::Set { due, version, codec, payload, .. } = timer {
                let timer = Timer {
                    actor: turn.actor.clone(),
                    key: turn.key.to_owned(),
                    name: name.to_owned(),
                    turn: turn.number,
                    due: *due,
                    version: *version,
                    codec: *codec,
                    payload: Bytes::copy_from_slice(payload),
                    correlation: turn.correlation,
                };
                shard.timers.insert((*due, turn.actor.clone(), turn.key.to_owned(), name.to_owned()), timer);
            }
            timers.push((name.to_owned(), matches!(timer, TimerWrite::Set { .. })));
        }
        for note in turn.notes {
            match note {
                Note::DeadLetter(letter) => drop(shard.letters.insert(letter.envelope.id, (**letter).clone())),
                Note::Resolved { message } => drop(shard.letters.remove(message)),
                _ => {}
            }
        }
        let stored = StoredTurn {
            number: turn.number,
            version: turn.version,
            time: turn.time,
            id: turn.id,
            correlation: turn.correlation,
            from,
            digest,
            timer: rang,
            reply: Bytes::copy_from_slice(turn.reply),
            reply_codec: turn.reply_codec,
            events,
            timers,
            sent: turn.outbox.iter().map(|write| (write.envelope.id, write.envelope.wants)).collect(),
            notes: turn.notes.to_vec(),
        };
        shard.streams.entry((turn.actor.clone(), turn.key.to_owned())).or_default().1.push(stored);
        Ok(Appended { ticket: shard.ticket, position: shard.events.len() as u64, committed: true })
    }

    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        let mut shard = self.shard.lock();
        self.fenced(&shard)?;
        shard.ticket += 1;
        let mark = shard.marks.entry(watermark.source.clone()).or_default();
        *mark = (*mark).max(watermark.through);
        Ok(Appended { ticket: shard.ticket, position: shard.events.len() as u64, committed: true })
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        let mut shard = self.shard.lock();
        self.fenced(&shard)?;
        shard.ticket += 1;
        let (done, _) = shard.outbox.entry(to.clone()).or_default();
        *done = (*done).max(through);
        Ok(Appended { ticket: shard.ticket, position: shard.events.len() as u64, committed: true })
    }

    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        let mut shard = self.shard.lock();
        if let Some((kept, _)) = shard.streams.get_mut(&(actor.clone(), key.to_owned())) {
            *kept = Some(snapshot);
        }
    }
}

impl ShardReader for MemoryShard {
    fn position(&self) -> u64 {
        self.shard.lock().events.len() as u64
    }

    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        let shard = self.shard.lock();
        let found = shard.streams.get(&(actor.clone(), key.to_owned()));
        let state = found.map_or_else(StreamState::default, |(snapshot, turns)| {
            let after = snapshot.as_ref().map_or(0, |snapshot| snapshot.turn);
            StreamState {
                snapshot: snapshot.clone(),
                turns: turns.iter().filter(|turn| turn.number > after).cloned().collect(),
            }
        });
        Box::pin(ready(Ok(state)))
    }

    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        let shard = self.shard.lock();
        let found = shard.streams.get(&(actor.clone(), key.to_owned()));
        Box::pin(ready(Ok(found.map(|(_, turns)| turns.clone()).unwrap_or_default())))
    }

    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        let shard = self.shard.lock();
        let from = usize::try_from(after).unwrap_or(usize::MAX);
        Box::pin(ready(Ok(shard.events.iter().skip(from).take(limit).cloned().collect())))
    }

    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        let shard = self.shard.lock();
        let from = usize::try_from(after).unwrap_or(usize::MAX);
        let entries = shard.outbox.get(to).map(|(_, entries)| entries.iter().skip(from).take(limit).cloned().collect());
        Box::pin(ready(Ok(entries.unwrap_or_default())))
    }

    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        let shard = self.shard.lock();
        shard.outbox.iter().map(|(to, (done, entries))| (to.clone(), *done, entries.len() as u64)).collect()
    }

    fn watermarks(&self) -> Vec<Watermark> {
        let shard = self.shard.lock();
        shard.marks.iter().map(|(source, through)| Watermark { source: source.clone(), through: *through }).collect()
    }

    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.shard.lock().timers.values().take_while(|timer| timer.due <= now).take(limit).cloned().collect()
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.shard.lock().timers.values().next().map(|timer| timer.due)
    }

    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        let shard = self.shard.lock();
        let letters = shard.letters.iter().filter(|(id, _)| after.is_none_or(|after| **id > after));
        Box::pin(ready(Ok(letters.take(limit).map(|(_, letter)| letter.clone()).collect())))
    }

    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        Box::pin(ready(Ok(self.shard.lock().streams.keys().cloned().collect())))
    }
}
