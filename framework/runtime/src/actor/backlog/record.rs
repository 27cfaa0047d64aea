//! The log records of a [backlog](super).

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::queues::{BacklogState, Deferred, Written};
use super::{Backlog, MAX_KEYS};
use crate::router::{Action, DedupKey, Delivery};
use whizbang_core::message::{Codec, Envelope, MessageId, Name, ShardId};
use whizbang_core::store::{
    Appended, DeadLetter, DeadLetterReason, Mark, Note, OutboxWrite, Snapshot, Source, SourceKind, StoreError, Ticket,
    Turn,
};
use whizbang_core::telemetry::TARGET;

/// The number of turns between snapshots of deferred messages, unless more than [`MAX_SNAPSHOT_MESSAGES`] are deferred.
pub(super) const SNAPSHOT_EVERY: u64 = 1024;
pub(super) const MAX_SNAPSHOT_MESSAGES: usize = 4096;
pub(super) const SCHEMA: u32 = 1;

/// One deferred message in a snapshot: key, id, the source's domain and shard, whether it is an event, its sequence, whether
/// it is parked.
type SavedMessage = (String, MessageId, String, u16, bool, u64, bool);

impl Backlog {
    /// Reads the deferred messages from the log. No message may be delivered to the actors before.
    ///
    /// # Errors
    /// Reading the log failed.
    pub(crate) async fn load_deferred(self: Rc<Self>) -> Result<(), StoreError> {
        let (reader, generation) = (self.shard.reader(), self.generation());
        let key = self.actor.to_string();
        let mut pages = reader.pages(&self.deferred, &key, true).await?;
        let mut saved = Vec::new();
        let mut turns = 0;
        if let Some(snapshot) = pages.snapshot() {
            match self.restore(snapshot) {
                Some(restored) => (turns, saved) = (snapshot.turn, restored),
                // A snapshot is a cache; the log is complete without it.
                None => pages = reader.pages(&self.deferred, &key, false).await?,
            }
        }
        let mut order = BTreeMap::new();
        let mut numbers = HashMap::new();
        for (key, entry) in saved {
            numbers.insert(entry.id, numbers.len());
            order.insert(numbers.len() - 1, (key, entry));
        }
        let mut next = numbers.len();
        let mut read = BacklogState::default();
        loop {
            // Payloads of one page are in memory at a time.
            let page = pages.next().await?;
            if page.is_empty() {
                break;
            }
            for turn in &page {
                turns = turn.number;
                for note in &turn.notes {
                    match (note, &turn.from) {
                        (Note::DeadLetter(dead_letter), Some((source, sequence))) => {
                            let (key, source) = (Rc::from(dead_letter.key.as_str()), Rc::new(source.clone()));
                            if dead_letter.reason == DeadLetterReason::Waiting {
                                read.spill(&key, &source, *sequence, turn.number);
                                continue;
                            }
                            // While others of its key are only in the log, it is the first of them, written again.
                            read.restore_first(&key);
                            let id = dead_letter.envelope.id;
                            let entry = Deferred {
                                id,
                                source,
                                sequence: *sequence,
                                ticket: None,
                                parked: false,
                                message: None,
                            };
                            if let Some(before) = numbers.insert(id, next) {
                                order.remove(&before);
                            }
                            order.insert(next, (key, entry));
                            next += 1;
                        }
                        (Note::DeadLetter(dead_letter), None) => {
                            let known = numbers.get(&dead_letter.envelope.id).and_then(|number| order.get_mut(number));
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
        }
        let mut state = self.state.borrow_mut();
        // The shard was reopened or closed since then, or another call has loaded them.
        if state.loaded || state.generation != generation {
            return Ok(());
        }
        for (key, entry) in order.into_values() {
            read.push(&key, entry);
        }
        (state.queues, state.waiting, state.spilled) = (read.queues, read.waiting, read.spilled);
        (state.turns, state.loaded) = (turns, true);
        self.update_counts(&state);
        Ok(())
    }

    pub(super) fn dead_letter(
        &self,
        key: &str,
        action: &Action,
        envelope: &Envelope,
        reason: DeadLetterReason,
        error: Option<String>,
    ) -> DeadLetter {
        let refused = match action {
            Action::DeadLetter(reason) => Some(reason.clone()),
            _ => None,
        };
        DeadLetter {
            actor: self.actor.clone(),
            key: key.to_owned(),
            reason,
            // Attempts are counted where they are made. Here the number is whether to handle the message at all.
            attempts: u32::from(refused.is_some()),
            error: error.or(refused).unwrap_or_else(|| "deferred until its key can handle it".to_owned()),
            time: self.context.ids.clock().now(),
            envelope: envelope.clone(),
        }
    }

    pub(super) fn write_message(&self, key: &str, delivery: &Delivery) -> Result<Written, StoreError> {
        let DedupKey::Sequence { source, sequence, tracker } = &delivery.dedup_key else {
            return Err(StoreError::Closed);
        };
        let (is_full, spills) = {
            let state = self.state.borrow();
            (state.queues.len() >= MAX_KEYS && !state.queues.contains_key(key), state.must_spill(key))
        };
        if is_full {
            let why = format!(
                "{MAX_KEYS} keys of `{}` in {} have deferred messages: those of other keys are not accepted",
                self.actor, self.shard.id
            );
            if self.context.settings.issues.raise(&self.issue_name(""), why) {
                tracing::error!(
                    target: TARGET, actor = %self.actor, shard = %self.shard.id,
                    "too many keys with deferred messages; those of other keys are not accepted",
                );
            }
            return Err(StoreError::Closed);
        }
        let envelope = &delivery.envelope;
        let reason = if spills { DeadLetterReason::Waiting } else { DeadLetterReason::Deferred };
        let dead_letter = self.dead_letter(key, &delivery.action, envelope, reason, None);
        let notes = [Note::DeadLetter(Box::new(dead_letter))];
        let mark = Mark::From { source, sequence: *sequence, floor: tracker.watermark_after(*sequence) };
        let appended = self.write((envelope.id, envelope.correlation), mark, &notes, &[])?;
        Ok(Written { appended, spilled: spills.then(|| self.state.borrow().turns) })
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
        // A snapshot holds the turns before this one.
        self.save_due_snapshot();
        let mut state = self.state.borrow_mut();
        if !state.loaded {
            return Err(StoreError::Closed);
        }
        let turn = Turn {
            actor: &self.deferred,
            key: &self.actor,
            stream: state.stream,
            number: state.turns + 1,
            version: 0,
            time: self.context.ids.clock().now(),
            id,
            correlation,
            traceparent: None,
            headers: &[],
            mark,
            reply: &[],
            reply_codec: Codec::Bincode,
            events: &[],
            outbox,
            timers: &[],
            notes,
        };
        let appended = self
            .shard
            .writer
            .borrow_mut()
            .append(&turn)
            .inspect_err(|error| self.context.report_append_error(error))?;
        state.turns += 1;
        state.stream = appended.stream;
        state.last = (!appended.committed).then_some(appended.ticket);
        Ok(appended)
    }

    /// Saves a snapshot of the deferred messages, if one is due.
    fn save_due_snapshot(&self) {
        let state = self.state.borrow();
        let count = state.waiting + state.committing.len();
        // It would lack the messages that are only in the log.
        if state.spilled > 0
            || state.turns == 0
            || !state.turns.is_multiple_of(SNAPSHOT_EVERY)
            || count > MAX_SNAPSHOT_MESSAGES
        {
            return;
        }
        let passing = state.committing.values().map(|(key, entry)| (key, entry));
        let waiting = state.queues.iter().flat_map(|(key, queue)| queue.entries.iter().map(move |entry| (key, entry)));
        let saved: Vec<SavedMessage> = passing
            .chain(waiting)
            .map(|(key, entry)| {
                let Source { shard, kind } = &*entry.source;
                let (domain, shard, event) = (shard.domain.to_string(), shard.shard, *kind != SourceKind::Direct);
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

    /// Decodes a snapshot; `None` if it is unusable.
    fn restore(&self, snapshot: &Snapshot) -> Option<Vec<(Rc<str>, Deferred)>> {
        if snapshot.schema != SCHEMA {
            return None;
        }
        let saved: Vec<SavedMessage> = Codec::Bincode.decode(&snapshot.bytes).ok()?;
        let entries = saved.into_iter().map(|(key, id, domain, shard, event, sequence, parked)| {
            let kind = if event { SourceKind::Events { subscriber: self.actor.clone() } } else { SourceKind::Direct };
            let source = Rc::new(Source { shard: ShardId::new(Name::new(&domain).ok()?, shard), kind });
            Some((Rc::from(key), Deferred { id, source, sequence, ticket: None, parked, message: None }))
        });
        entries.collect()
    }

    /// Reads a message that is not in memory; `None` if it is no longer deferred.
    pub(super) async fn read(
        &self,
        key: &str,
        id: MessageId,
        ticket: Option<Ticket>,
    ) -> Result<Option<(Action, Envelope)>, StoreError> {
        if let Some(ticket) = ticket {
            let (tell, told) = oneshot::channel();
            self.context.after_ticket(&self.shard, ticket, move |committed| {
                let _ = tell.send(committed);
            });
            told.await.unwrap_or(Err(StoreError::Closed))?;
        }
        let before = id.as_u128().checked_sub(1).map(MessageId::from_u128);
        let dead_letters = self.shard.reader().dead_letters(before, 1).await?;
        let found = dead_letters.into_iter().find(|dead_letter| {
            let waits = matches!(dead_letter.reason, DeadLetterReason::Deferred | DeadLetterReason::Unloadable);
            waits && dead_letter.envelope.id == id && dead_letter.actor == self.actor && dead_letter.key == key
        });
        Ok(found.map(message_of))
    }
}

/// Returns the message of a record, and the action to perform.
pub(super) fn message_of(dead_letter: DeadLetter) -> (Action, Envelope) {
    let action = if dead_letter.attempts > 0 {
        Action::DeadLetter(dead_letter.error)
    } else {
        Action::of(&dead_letter.envelope)
    };
    (action, Envelope { key: dead_letter.key, ..dead_letter.envelope })
}
