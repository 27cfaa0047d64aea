//! How a [backlog](super) stands in its shard's log.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::queues::Entry;
use super::{Backlog, MOST};
use crate::actor::routing::work_of;
use crate::message::{Codec, Envelope, MessageId, Name, ShardId};
use crate::router::{Action, DedupKey, Delivery};
use crate::store::{
    Appended, DeadLetter, DeadLetterReason, Mark, Note, OutboxWrite, Snapshot, Source, SourceKind, StoreError,
    StreamState, Ticket, Turn,
};
use crate::telemetry::TARGET;

/// After how many turns a snapshot of what waits is kept, unless more wait than [`LARGEST_SNAPSHOT`].
const SNAPSHOT_EVERY: u64 = 1024;
const LARGEST_SNAPSHOT: usize = 4096;
const SCHEMA: u32 = 1;

/// One waiting message in a snapshot: key, id, the source's domain and shard, whether it is an event, its place, whether it is
/// parked.
type Saved = (String, MessageId, String, u16, bool, u64, bool);

impl Backlog {
    /// Reads what waits from the log. Nothing may be delivered to the actors before.
    ///
    /// # Errors
    /// What reading can meet.
    pub(crate) async fn recall(self: Rc<Self>) -> Result<(), StoreError> {
        let reader = self.shard.reader();
        let key = self.actor.to_string();
        let mut stored = reader.load(&self.deferred, &key).await?;
        if stored.snapshot.as_ref().is_some_and(|snapshot| self.restore(snapshot).is_none()) {
            // A snapshot is a cache: without it the log says everything.
            stored = StreamState { snapshot: None, turns: reader.history(&self.deferred, &key).await? };
        }
        let mut turns = 0;
        let mut order = BTreeMap::new();
        let mut numbers = HashMap::new();
        if let Some(snapshot) = &stored.snapshot {
            turns = snapshot.turn;
            for (key, entry) in self.restore(snapshot).unwrap_or_default() {
                numbers.insert(entry.id, numbers.len());
                order.insert(numbers.len() - 1, (key, entry));
            }
        }
        let mut next = numbers.len();
        for turn in &stored.turns {
            turns = turn.number;
            for note in &turn.notes {
                match (note, &turn.from) {
                    (Note::DeadLetter(letter), Some((source, sequence))) => {
                        let entry = Entry {
                            id: letter.envelope.id,
                            source: Rc::new(source.clone()),
                            sequence: *sequence,
                            ticket: None,
                            parked: false,
                            message: None,
                        };
                        if let Some(before) = numbers.insert(entry.id, next) {
                            order.remove(&before);
                        }
                        order.insert(next, (Rc::from(letter.key.as_str()), entry));
                        next += 1;
                    }
                    (Note::DeadLetter(letter), None) => {
                        let known = numbers.get(&letter.envelope.id).and_then(|number| order.get_mut(number));
                        if let Some((_, entry)) = known {
                            entry.parked = true;
                        }
                    }
                    (Note::Resolved { message }, _) => {
                        if let Some(number) = numbers.remove(message) {
                            order.remove(&number);
                        }
                    }
                    _ => {}
                }
            }
        }
        let mut state = self.state.borrow_mut();
        state.turns = turns;
        for (key, entry) in order.into_values() {
            state.push(&key, entry);
        }
        state.known = true;
        self.noted(&state);
        Ok(())
    }

    pub(super) fn letter(
        &self,
        key: &str,
        work: &Action,
        envelope: &Envelope,
        reason: DeadLetterReason,
        error: Option<String>,
    ) -> DeadLetter {
        let refused = match work {
            Action::DeadLetter(reason) => Some(reason.clone()),
            _ => None,
        };
        DeadLetter {
            actor: self.actor.clone(),
            key: key.to_owned(),
            reason,
            // How often it was tried is counted where it is tried. Here the number says whether it is to be tried at all.
            attempts: u32::from(refused.is_some()),
            error: error.or(refused).unwrap_or_else(|| "it waits for its key".to_owned()),
            time: self.host.ids.clock().now(),
            envelope: envelope.clone(),
        }
    }

    pub(super) fn write_message(&self, key: &str, delivery: &Delivery) -> Result<Appended, StoreError> {
        let DedupKey::Sequence { source, sequence, tracker: floor } = &delivery.dedup_key else {
            return Err(StoreError::Closed);
        };
        if self.state.borrow().waiting >= MOST {
            let why =
                format!("{MOST} messages wait for keys of `{}` in {}: no more are taken", self.actor, self.shard.id);
            if self.host.settings.issues.raise(&self.name(""), why) {
                tracing::error!(
                    target: TARGET, actor = %self.actor, shard = %self.shard.id,
                    "too many messages wait for their keys: no more are taken",
                );
            }
            return Err(StoreError::Closed);
        }
        let envelope = &delivery.envelope;
        let letter = self.letter(key, &delivery.action, envelope, DeadLetterReason::Deferred, None);
        let notes = [Note::DeadLetter(Box::new(letter))];
        let mark = Mark::From { source, sequence: *sequence, floor: floor.watermark_after(*sequence) };
        self.write((envelope.id, envelope.correlation), mark, &notes, &[])
    }

    pub(super) fn write_release(&self, message: MessageId) -> Result<Appended, StoreError> {
        self.write((message, message), Mark::None, &[Note::Resolved { message }], &[])
    }

    pub(super) fn write(
        &self,
        (id, correlation): (MessageId, MessageId),
        mark: Mark<'_>,
        notes: &[Note],
        outbox: &[OutboxWrite<'_>],
    ) -> Result<Appended, StoreError> {
        // What memory holds now is what the turns before this one have written.
        self.save();
        let mut state = self.state.borrow_mut();
        if !state.known {
            return Err(StoreError::Closed);
        }
        let turn = Turn {
            actor: &self.deferred,
            key: &self.actor,
            stream: state.stream,
            number: state.turns + 1,
            version: 0,
            time: self.host.ids.clock().now(),
            id,
            correlation,
            traceparent: None,
            mark,
            reply: &[],
            reply_codec: Codec::Bincode,
            events: &[],
            outbox,
            timers: &[],
            notes,
        };
        let appended = self.shard.writer.borrow_mut().append(&turn).inspect_err(|error| self.host.refused(error))?;
        state.turns += 1;
        state.stream = appended.stream;
        state.last = (!appended.committed).then_some(appended.ticket);
        Ok(appended)
    }

    /// Keeps a snapshot of what waits, if one is due.
    fn save(&self) {
        let state = self.state.borrow();
        let count = state.waiting + state.passing.len();
        if state.turns == 0 || !state.turns.is_multiple_of(SNAPSHOT_EVERY) || count > LARGEST_SNAPSHOT {
            return;
        }
        let passing = state.passing.values().map(|(key, entry)| (key, entry));
        let waiting = state.keys.iter().flat_map(|(key, queue)| queue.entries.iter().map(move |entry| (key, entry)));
        let saved: Vec<Saved> = passing
            .chain(waiting)
            .map(|(key, entry)| {
                let Source { shard, kind: lane } = &*entry.source;
                let (domain, shard, event) = (shard.domain.to_string(), shard.shard, *lane != SourceKind::Direct);
                (key.to_string(), entry.id, domain, shard, event, entry.sequence, entry.parked)
            })
            .collect();
        let turn = state.turns;
        drop(state);
        let mut bytes = Vec::new();
        if Codec::Bincode.encode(&saved, &mut bytes).is_ok() {
            let snapshot = Snapshot { turn, version: 0, schema: SCHEMA, bytes: Bytes::from(bytes) };
            self.shard.writer.borrow_mut().save_snapshot(&self.deferred, &self.actor, snapshot);
        }
    }

    /// What waited when a snapshot was kept; `None` if it cannot be used.
    fn restore(&self, snapshot: &Snapshot) -> Option<Vec<(Rc<str>, Entry)>> {
        if snapshot.schema != SCHEMA {
            return None;
        }
        let saved: Vec<Saved> = Codec::Bincode.decode(&snapshot.bytes).ok()?;
        let entries = saved.into_iter().map(|(key, id, domain, shard, event, sequence, parked)| {
            let lane = if event { SourceKind::Events { subscriber: self.actor.clone() } } else { SourceKind::Direct };
            let source = Rc::new(Source { shard: ShardId::new(Name::new(&domain).ok()?, shard), kind: lane });
            Some((Rc::from(key), Entry { id, source, sequence, ticket: None, parked, message: None }))
        });
        entries.collect()
    }

    /// Reads a message that is not in memory; `None` if it waits no longer.
    pub(super) async fn read(
        &self,
        key: &str,
        id: MessageId,
        ticket: Option<Ticket>,
    ) -> Result<Option<(Action, Envelope)>, StoreError> {
        if let Some(ticket) = ticket {
            let (tell, told) = oneshot::channel();
            self.host.after_ticket(ticket, move |committed| {
                let _ = tell.send(committed);
            });
            told.await.unwrap_or(Err(StoreError::Closed))?;
        }
        let before = id.as_u128().checked_sub(1).map(MessageId::from_u128);
        let letters = self.shard.reader().dead_letters(before, 1).await?;
        let found = letters.into_iter().find(|letter| {
            let waits = matches!(letter.reason, DeadLetterReason::Deferred | DeadLetterReason::Unloadable);
            waits && letter.envelope.id == id && letter.actor == self.actor && letter.key == key
        });
        Ok(found.map(|letter| {
            let work = if letter.attempts > 0 { Action::DeadLetter(letter.error) } else { work_of(&letter.envelope) };
            (work, Envelope { key: letter.key, ..letter.envelope })
        }))
    }
}
