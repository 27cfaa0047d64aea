//! Dead letters of a worker: redriven or discarded.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::Worker;
use super::commit::{End, JobEntry};
use super::dispatcher::WorkerDispatcher;
use super::job_log::{JobLog, JobNumber};
use super::ledger::Ledger;
use crate::actor::OwnedShard;
use crate::router::{DedupKey, Outcome};
use whizbang_core::message::{Codec, Coded as _, Domain as _, Envelope, Kind, MessageId, Rejection};
use whizbang_core::store::{DeadLetter, DeadLetterReason, Note, StoreError};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Number of dead letters read at a time: at most 16 MiB of payload.
const PAGE: usize = 32;

impl<W: Worker> WorkerDispatcher<W> {
    /// Runs the jobs of a key's dead letters again, oldest first, until one fails again.
    pub(super) async fn redrive(self: &Rc<Self>, number: JobNumber, shard: &Rc<OwnedShard>, errand: Envelope) {
        let outcome = match self.dead_letters(shard, &errand.key).await {
            Ok(dead_letters) => self.redrive_all(number, shard, &errand.key, dead_letters).await,
            Err(error) => Outcome::Refused(error),
        };
        self.settle(number, &outcome);
    }

    /// Redrives the dead letters with these ids. Only ids are held in memory: a key may have any number of dead
    /// letters of up to half a MiB.
    async fn redrive_all(
        self: &Rc<Self>,
        number: JobNumber,
        shard: &Rc<OwnedShard>,
        key: &str,
        dead_letters: Vec<MessageId>,
    ) -> Outcome {
        for id in dead_letters {
            let dead_letter = match self.find_dead_letter(shard, key, id).await {
                Ok(Some(dead_letter)) => dead_letter,
                Ok(None) => continue,
                Err(error) => return Outcome::Refused(error),
            };
            let envelope = &dead_letter.envelope;
            let log = self.log(shard, envelope);
            let ledger = match self.ledger(&log).await {
                Ok(ledger) => ledger,
                Err(error) => return Outcome::Refused(error),
            };
            if !begin(&log, number, envelope, self.context.digest(envelope).value()) {
                return Outcome::Busy;
            }
            // Another task may have resolved it since the ids were read.
            let outcome = match self.is_unresolved(shard, &dead_letter).await {
                Ok(true) => self.redrive_one(number, &log, ledger, &dead_letter).await,
                Ok(false) => Outcome::Done(Bytes::new(), Codec::Bincode),
                Err(error) => Outcome::Refused(error),
            };
            self.close(&log, envelope.id, number);
            if !matches!(outcome, Outcome::Done(..)) {
                return outcome;
            }
        }
        Outcome::Done(Bytes::new(), Codec::Bincode)
    }

    async fn redrive_one(
        &self,
        number: JobNumber,
        log: &JobLog,
        ledger: &RefCell<Ledger>,
        dead_letter: &DeadLetter,
    ) -> Outcome {
        let envelope = &dead_letter.envelope;
        let place = self.enter_line(&log.shard, envelope, &DedupKey::Internal, None).await;
        if let Some(place) = &place
            && !self.holds_line(place, &log.shard).await
        {
            return Outcome::Stopped;
        }
        let done = {
            let pass = self.enter(&log.shard, self.priority(envelope)).await;
            let Ok(_slot) = self.slots.acquire().await else { return Outcome::Stopped };
            let Some(admitted) = self.admit_job(&log.shard).await else { return Outcome::Stopped };
            drop(pass);
            self.begin(number);
            self.run_once(&log.shard, envelope, dead_letter.attempts + 1, admitted).await
        };
        match done {
            Ok(done) => match self.finish(log, ledger, envelope, End::Resolved, &done).await {
                Ok(outcome) => outcome,
                Err(failure) => Outcome::DeadLetter(failure.text().to_owned()),
            },
            Err(failure) => Outcome::DeadLetter(failure.text().to_owned()),
        }
    }

    /// Discards a dead letter. The sender of a command gets a rejection in the same commit.
    pub(super) async fn discard(
        self: &Rc<Self>,
        number: JobNumber,
        shard: &Rc<OwnedShard>,
        errand: Envelope,
        message: MessageId,
    ) {
        let outcome = match self.find_dead_letter(shard, &errand.key, message).await {
            Ok(Some(dead_letter)) => self.discard_one(number, shard, &dead_letter).await,
            Ok(None) => Outcome::Unhandled,
            Err(error) => Outcome::Refused(error),
        };
        self.settle(number, &outcome);
    }

    async fn discard_one(&self, number: JobNumber, shard: &Rc<OwnedShard>, dead_letter: &DeadLetter) -> Outcome {
        let envelope = &dead_letter.envelope;
        let log = self.log(shard, envelope);
        let ledger = match self.ledger(&log).await {
            Ok(ledger) => ledger,
            Err(error) => return Outcome::Refused(error),
        };
        // A job in progress cannot be discarded.
        if !begin(&log, number, envelope, self.context.digest(envelope).value()) {
            return Outcome::Busy;
        }
        let outcome = match self.is_unresolved(shard, dead_letter).await {
            Ok(true) => {
                let notes = [Note::Resolved { message: envelope.id }];
                let mut reply = Vec::new();
                if envelope.kind == Kind::Command
                    && let Err(error) = <()>::write_reply(&Err(Rejection::discarded()), W::Domain::CODEC, &mut reply)
                {
                    tracing::error!(
                        target: TARGET, worker = %self.actor, error = %error_chain(&error),
                        "failed to encode a rejection",
                    );
                }
                let entry =
                    JobEntry { envelope, end: End::Resolved, reply: &reply, rejected: true, notes: &notes, sent: &[] };
                self.commit(&log, ledger, &entry, Outcome::Done(Bytes::new(), Codec::Bincode)).await
            }
            Ok(false) => Outcome::Unhandled,
            Err(error) => Outcome::Refused(error),
        };
        self.close(&log, envelope.id, number);
        outcome
    }

    /// Returns whether a dead letter that was read is still unresolved.
    async fn is_unresolved(&self, shard: &OwnedShard, dead_letter: &DeadLetter) -> Result<bool, StoreError> {
        Ok(self.find_dead_letter(shard, &dead_letter.key, dead_letter.envelope.id).await?.is_some())
    }

    /// Returns the dead letter of a key with this id, if it is unresolved.
    async fn find_dead_letter(
        &self,
        shard: &OwnedShard,
        key: &str,
        id: MessageId,
    ) -> Result<Option<DeadLetter>, StoreError> {
        let before = id.as_u128().checked_sub(1).map(MessageId::from_u128);
        let known = shard.reader().dead_letters(before, 1).await?;
        Ok(known.into_iter().find(|dead_letter| dead_letter.envelope.id == id && self.is_dead_letter(dead_letter, key)))
    }

    fn is_dead_letter(&self, dead_letter: &DeadLetter, key: &str) -> bool {
        // Deferred jobs start without an operator.
        dead_letter.reason != DeadLetterReason::Deferred && dead_letter.actor == self.actor && dead_letter.key == key
    }

    /// Returns the ids of a key's dead letters, oldest first.
    async fn dead_letters(&self, shard: &OwnedShard, key: &str) -> Result<Vec<MessageId>, StoreError> {
        let reader = shard.reader();
        let (mut dead_letters, mut after) = (Vec::new(), None);
        loop {
            let page = reader.dead_letters(after, PAGE).await?;
            let full = page.len() >= PAGE;
            after = page.last().map(|dead_letter| dead_letter.envelope.id).or(after);
            let own = page.iter().filter(|dead_letter| self.is_dead_letter(dead_letter, key));
            dead_letters.extend(own.map(|dead_letter| (dead_letter.time, dead_letter.envelope.id)));
            if !full {
                break;
            }
        }
        dead_letters.sort_by_key(|(time, _)| *time);
        Ok(dead_letters.into_iter().map(|(_, id)| id).collect())
    }
}

/// Marks a message as in progress; `false` if it is already.
fn begin(log: &JobLog, number: JobNumber, envelope: &Envelope, digest: u64) -> bool {
    let mut running = log.running.borrow_mut();
    if running.contains_key(&envelope.id) {
        return false;
    }
    running.insert(envelope.id, (number, digest));
    true
}
