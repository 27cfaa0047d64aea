//! Messages over a limit: of a key that has too many parked ones, and those that are not kept in memory.
//!
//! A key may have more messages than fit into memory. Those are only in the log, behind the ones in memory, and in the order of
//! their turns. Once the key has handled the others, the next of them are written again as ordinary deferred messages.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::queues::{Deferred, HeadState, Spilled};
use super::record::message_of;
use super::{Backlog, READ_TASK, SLOW_RETRY};
use crate::router::Delivery;
use whizbang_core::store::{DeadLetter, DeadLetterReason, Mark, Note, Source, StoreError};

impl Backlog {
    /// Keeps the first message of a key until the key [resumes](Self::resume): too many messages are parked for it.
    pub(crate) fn rest(&self, key: &Rc<str>, delivery: Delivery) {
        let Delivery { action, envelope, .. } = delivery;
        self.state.borrow_mut().cache(key, envelope.id, Some(Box::new((action, envelope))));
        self.set_head(key, HeadState::Parked);
        self.context.idle.notify();
    }

    /// Delivers the first message of a key that rests.
    pub(crate) fn resume(self: &Rc<Self>, key: &Rc<str>) {
        let rests = {
            let mut state = self.state.borrow_mut();
            let queue = state.queues.get_mut(key).filter(|queue| queue.head == HeadState::Parked);
            queue.map(|queue| queue.head = HeadState::Idle).is_some()
        };
        if rests {
            self.deliver_next(key);
        }
    }

    /// Reads the next messages of a key that are only in the log, and delivers the first one.
    pub(super) fn deliver_spilled(self: &Rc<Self>, key: &Rc<str>) {
        let (this, key, generation) = (Rc::clone(self), Rc::clone(key), self.generation());
        // It counts as in flight, so waiting for an idle node includes it.
        let flight = self.context.track_in_flight(&self.shard);
        whizbang_core::spawn::detached(&self.context.user_code, READ_TASK, async move {
            let restored = this.context.call_store(READ_TASK, this.restore_spilled(&key, generation)).await;
            if this.generation() != generation {
                return;
            }
            match restored {
                Ok(restored) => {
                    this.message_read(&key);
                    if restored == 0 {
                        // The shard closes, or the log lacks them.
                        return this.retry_after(&key, SLOW_RETRY, false);
                    }
                    this.set_head(&key, HeadState::Idle);
                    this.deliver_next(&key);
                }
                Err(error) => {
                    this.failed_to_read(&key, &error);
                    this.retry_after(&key, SLOW_RETRY, false);
                }
            }
            drop(flight);
        });
    }

    /// Writes the next messages of a key again that are only in the log. Returns their number.
    async fn restore_spilled(&self, key: &Rc<str>, generation: u64) -> Result<usize, StoreError> {
        // Readers see committed turns only.
        let (tell, told) = oneshot::channel();
        self.after(self.state.borrow().last, move |committed| {
            let _ = tell.send(committed);
        });
        told.await.unwrap_or(Err(StoreError::Closed))?;
        let of_actor = self.actor.to_string();
        let mut pages = self.shard.reader().pages(&self.deferred, &of_actor, true).await?;
        let (most, Spilled { count, from, mut skip }) = {
            let state = self.state.borrow();
            (state.restorable(), state.queues.get(key).map_or(Spilled::default(), |queue| queue.spilled))
        };
        let mut restored = 0;
        loop {
            let page = pages.next().await?;
            if page.is_empty() || self.generation() != generation || self.context.is_closing(&self.shard) {
                return Ok(restored);
            }
            for turn in page.into_iter().filter(|turn| turn.number >= from) {
                let Some((source, sequence)) = turn.from else { continue };
                for note in turn.notes {
                    let Note::DeadLetter(letter) = note else { continue };
                    if letter.reason != DeadLetterReason::Waiting || *letter.key != **key {
                        continue;
                    }
                    if skip > 0 {
                        skip -= 1;
                        continue;
                    }
                    self.restore_message(key, *letter, &Rc::new(source.clone()), sequence)?;
                    restored += 1;
                }
                if restored >= most.min(count) {
                    return Ok(restored);
                }
            }
            // Other keys of the thread run between two pages.
            tokio::task::yield_now().await;
        }
    }

    fn restore_message(
        &self,
        key: &Rc<str>,
        letter: DeadLetter,
        source: &Rc<Source>,
        sequence: u64,
    ) -> Result<(), StoreError> {
        let letter = DeadLetter { reason: DeadLetterReason::Deferred, ..letter };
        let about = (letter.envelope.id, letter.envelope.correlation);
        let (message, note) = (message_of(letter.clone()), Note::DeadLetter(Box::new(letter)));
        let appended = self.write(about, Mark::From { source, sequence, floor: 0 }, &[note], &[])?;
        let mut state = self.state.borrow_mut();
        // The queue must not be empty in between: it knows the last sequences.
        state.push(key, Deferred::new(about.0, source, sequence, &appended));
        state.restore_first(key);
        state.cache(key, about.0, Some(Box::new(message)));
        self.update_counts(&state);
        Ok(())
    }
}
