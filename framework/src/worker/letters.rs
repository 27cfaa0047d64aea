//! Dead letters of a worker, done again or thrown away.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::Worker;
use super::commit::{Book, End, Entry};
use super::door::{Number, WorkerDoor};
use super::ledger::Ledger;
use super::plan::Done;
use crate::actor::ShardCell;
use crate::message::{Codec, Envelope, MessageId, digest};
use crate::router::Outcome;
use crate::store::{DeadLetter, Note, StoreError};

/// How many dead letters are read at a time.
const PAGE: usize = 256;

impl<W: Worker> WorkerDoor<W> {
    /// Does the jobs of a key's dead letters again, oldest first, until one fails again.
    pub(super) async fn redrive(self: &Rc<Self>, number: Number, shard: &Rc<ShardCell>, errand: Envelope) {
        let outcome = match self.letters(shard, &errand.key).await {
            Ok(letters) => self.redrive_all(number, shard, letters).await,
            Err(error) => Outcome::Refused(error),
        };
        self.settle(number, &outcome);
    }

    async fn redrive_all(self: &Rc<Self>, number: Number, shard: &Rc<ShardCell>, letters: Vec<DeadLetter>) -> Outcome {
        for letter in letters {
            let envelope = &letter.envelope;
            let book = self.book(shard, envelope);
            let ledger = match self.ledger(&book).await {
                Ok(ledger) => ledger,
                Err(error) => return Outcome::Refused(error),
            };
            if book.running.borrow().contains_key(&envelope.id) {
                return Outcome::Busy;
            }
            book.running.borrow_mut().insert(envelope.id, (number, digest(&envelope.name, &envelope.payload)));
            let outcome = self.redrive_one(number, &book, ledger, &letter).await;
            self.close(&book, envelope.id, number);
            if !matches!(outcome, Outcome::Done(..)) {
                return outcome;
            }
        }
        Outcome::Done(Bytes::new(), Codec::Bincode)
    }

    async fn redrive_one(&self, number: Number, book: &Book, ledger: &RefCell<Ledger>, letter: &DeadLetter) -> Outcome {
        let envelope = &letter.envelope;
        let done = {
            let Ok(_slot) = self.slots.acquire().await else { return Outcome::Stopped };
            self.begin(number);
            self.once(envelope, letter.attempts + 1).await
        };
        match done {
            Ok(Done { reply, rejected }) => {
                let notes = [Note::Resolved { message: envelope.id }];
                let entry = Entry { envelope, end: End::Resolved, reply: &reply, rejected, notes: &notes };
                self.commit(book, ledger, &entry, Outcome::Done(Bytes::new(), Codec::Bincode)).await
            }
            Err(failure) => Outcome::DeadLetter(failure.text().to_owned()),
        }
    }

    /// Throws a dead letter away.
    pub(super) async fn discard(
        self: &Rc<Self>,
        number: Number,
        shard: &Rc<ShardCell>,
        errand: Envelope,
        message: MessageId,
    ) {
        let outcome = match self.letters(shard, &errand.key).await {
            Ok(letters) => match letters.into_iter().find(|letter| letter.envelope.id == message) {
                Some(letter) => {
                    let book = self.book(shard, &letter.envelope);
                    let outcome = match self.ledger(&book).await {
                        Ok(ledger) => {
                            let notes = [Note::Resolved { message }];
                            let (envelope, end) = (&letter.envelope, End::Resolved);
                            let entry = Entry { envelope, end, reply: &[], rejected: false, notes: &notes };
                            self.commit(&book, ledger, &entry, Outcome::Done(Bytes::new(), Codec::Bincode)).await
                        }
                        Err(error) => Outcome::Refused(error),
                    };
                    self.close(&book, message, number);
                    outcome
                }
                None => Outcome::Unhandled,
            },
            Err(error) => Outcome::Refused(error),
        };
        self.settle(number, &outcome);
    }

    /// The dead letters of a key, oldest first.
    async fn letters(&self, shard: &ShardCell, key: &str) -> Result<Vec<DeadLetter>, StoreError> {
        let reader = shard.reader();
        let (mut letters, mut after) = (Vec::new(), None);
        loop {
            let page = reader.dead_letters(after, PAGE).await?;
            let full = page.len() >= PAGE;
            after = page.last().map(|letter| letter.envelope.id).or(after);
            letters.extend(page.into_iter().filter(|letter| letter.actor == self.actor && letter.key == key));
            if !full {
                break;
            }
        }
        letters.sort_by_key(|letter| letter.time);
        Ok(letters)
    }
}
