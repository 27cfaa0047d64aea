//! The way of one job: let in once, worked on, committed, told.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use bytes::Bytes;
use foldhash::fast::FixedState;
use futures_util::FutureExt;
use tokio::sync::OnceCell;

use super::door::{Number, WorkerDoor};
use super::ledger::Ledger;
use super::plan::{Done, Undone};
use super::{Job, Worker};
use crate::actor::{ShardCell, panic_text, replied_before};
use crate::inbox::Admission;
use crate::message::{Codec, Domain, Envelope, Kind, MessageId, ShardId, Wants, digest};
use crate::router::{Arrival, Outcome};
use crate::store::{
    Appended, DeadLetter, DeadLetterReason, Mark, Note, OutboxWrite, StoreError, StreamState, Ticket, Turn,
};
use crate::telemetry::TARGET;

/// After how many turns of a stream a snapshot of its ledger is kept.
const SNAPSHOT_EVERY: u64 = 1024;
/// How many dead letters are read at a time.
const PAGE: usize = 256;

/// One stream of a worker: one per shard, and one per idempotency key, so that a key is found in one read however long ago
/// it was used.
pub(super) struct Book {
    shard: Rc<ShardCell>,
    key: String,
    /// It is of one idempotency key, and is forgotten when its job ends.
    single: bool,
    ledger: OnceCell<RefCell<Ledger>>,
    /// The jobs under way, with the digest of their message.
    running: RefCell<HashMap<MessageId, (Number, u64), FixedState>>,
    /// The last append that may not be durable yet.
    last: Cell<Option<Ticket>>,
}

/// How a turn ends a message, or does not.
#[derive(Clone, Copy)]
enum End<'a> {
    /// The message is done or put aside.
    Marked(&'a Arrival),
    /// A dead letter is done after all, or thrown away.
    Resolved,
    /// The message is not at its end.
    Not,
}

/// What is written about a message.
struct Entry<'a> {
    envelope: &'a Envelope,
    end: End<'a>,
    reply: &'a [u8],
    rejected: bool,
    notes: &'a [Note],
}

impl<W: Worker> WorkerDoor<W> {
    /// Takes a message from its delivery to its outcome.
    pub(super) async fn take(
        self: &Rc<Self>,
        number: Number,
        shard: Rc<ShardCell>,
        envelope: Envelope,
        arrival: Arrival,
    ) {
        let book = self.book(&shard, &envelope);
        let outcome = loop {
            match self.ledger(&book).await {
                Ok(ledger) => match self.admit(number, &book, ledger, &envelope, &arrival).await {
                    Admitted::Yes => break self.perform(number, &book, ledger, &envelope, &arrival).await,
                    Admitted::Joined => return,
                    Admitted::No(outcome) => break self.after(book.last.get(), outcome).await,
                },
                Err(error) if matches!(arrival, Arrival::Outside) => break Outcome::Refused(error),
                Err(error) => {
                    tracing::warn!(target: TARGET, worker = %self.actor, %error, "a worker's stream cannot be read yet");
                    tokio::time::sleep(self.host.settings.retry.wait(3, &self.host.ids)).await;
                }
            }
        };
        self.close(&book, envelope.id, number);
        self.settle(number, &outcome);
    }

    /// The stream in which the message is written down.
    fn book(&self, shard: &Rc<ShardCell>, envelope: &Envelope) -> Rc<Book> {
        let single = envelope.kind == Kind::Command && envelope.origin.is_none() && envelope.id.time().is_none();
        let key = if single { format!("key-{}", envelope.id) } else { format!("shard-{}", shard.id.shard) };
        let mut books = self.books.borrow_mut();
        let book = books.entry(key.clone()).or_insert_with(|| {
            Rc::new(Book {
                shard: Rc::clone(shard),
                key,
                single,
                ledger: OnceCell::new(),
                running: RefCell::default(),
                last: Cell::new(None),
            })
        });
        Rc::clone(book)
    }

    async fn ledger<'a>(&self, book: &'a Book) -> Result<&'a RefCell<Ledger>, StoreError> {
        let load = || async {
            let reader = book.shard.reader();
            let mut stored = reader.load(&self.actor, &book.key).await?;
            if stored.snapshot.as_ref().is_some_and(|snapshot| !Ledger::accepts(snapshot)) {
                // A snapshot is a cache: without it the log says everything.
                let turns = reader.history(&self.actor, &book.key).await?;
                stored = StreamState { snapshot: None, turns };
            }
            Ok(RefCell::new(Ledger::rebuild(&stored, reader.watermarks())))
        };
        book.ledger.get_or_try_init(load).await
    }

    /// Whether the message is new. If it is, it is under way from now on.
    async fn admit(
        &self,
        number: Number,
        book: &Book,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &Arrival,
    ) -> Admitted {
        let (id, digest) = (envelope.id, digest(&envelope.payload));
        let mut looked_up = false;
        loop {
            if let Some((first, known)) = book.running.borrow().get(&id).copied() {
                self.host.counts.duplicates.one();
                if known != digest {
                    return Admitted::No(Outcome::Conflict);
                }
                self.join(number, first);
                return Admitted::Joined;
            }
            match arrival {
                Arrival::From { source, sequence, floor } => {
                    if ledger.borrow().has(source, *sequence) {
                        floor.appended(*sequence);
                        self.host.counts.duplicates.one();
                        return Admitted::No(Outcome::Done(Bytes::new(), Codec::Bincode));
                    }
                }
                Arrival::Outside => {
                    let admission = ledger.borrow().seen.admit_id(id, digest);
                    match admission {
                        Admission::LookUp if !looked_up => {
                            looked_up = true;
                            match self.look_up(book, id, digest).await {
                                Some(outcome) => return Admitted::No(outcome),
                                // Another delivery may have begun meanwhile.
                                None => continue,
                            }
                        }
                        Admission::New | Admission::LookUp => {
                            if let Some(outcome) = self.too_late(envelope) {
                                return Admitted::No(outcome);
                            }
                        }
                        Admission::Duplicate(reply, codec) => {
                            self.host.counts.duplicates.one();
                            return Admitted::No(replied_before(reply, codec));
                        }
                        Admission::Conflict => return Admitted::No(Outcome::Conflict),
                    }
                }
                Arrival::Inside => {}
            }
            book.running.borrow_mut().insert(id, (number, digest));
            return Admitted::Yes;
        }
    }

    /// Looks into the whole stream for an id that memory has forgotten.
    async fn look_up(&self, book: &Book, id: MessageId, digest: u64) -> Option<Outcome> {
        let turns = match book.shard.reader().history(&self.actor, &book.key).await {
            Ok(turns) => turns,
            Err(error) => return Some(Outcome::Refused(error)),
        };
        let turn = turns.into_iter().rev().find(|turn| turn.id == id && turn.digest.is_some())?;
        if turn.digest != Some(digest) {
            return Some(Outcome::Conflict);
        }
        self.host.counts.duplicates.one();
        Some(replied_before(turn.reply, turn.reply_codec))
    }

    fn too_late(&self, envelope: &Envelope) -> Option<Outcome> {
        let now = self.host.ids.clock().now();
        if envelope.id.time().is_some_and(|made| now.since(made) > self.host.settings.remember) {
            return Some(Outcome::Expired);
        }
        envelope.deadline.is_some_and(|deadline| now > deadline).then_some(Outcome::Late)
    }

    /// Does the job, again if need be, and commits that it is done.
    async fn perform(
        &self,
        number: Number,
        book: &Book,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &Arrival,
    ) -> Outcome {
        let retry = self.host.settings.retry;
        let mut failed = ledger.borrow().failing.get(&envelope.id).copied().unwrap_or(0);
        loop {
            let done = {
                let Ok(_slot) = self.slots.acquire().await else { return Outcome::Stopped };
                if self.host.draining.get() || self.host.stopped.get() {
                    // It stays where it is, and is done once the node has started again.
                    return Outcome::Stopped;
                }
                // It may have waited long for its slot.
                let first = failed == 0 && matches!(arrival, Arrival::Outside);
                if let Some(outcome) = self.too_late(envelope).filter(|_| first) {
                    return outcome;
                }
                self.begin(number);
                self.once(envelope, failed + 1).await
            };
            let failure = match done {
                Ok(Done { reply, rejected }) => {
                    if rejected {
                        self.host.counts.rejections.one();
                    }
                    let entry = Entry { envelope, end: End::Marked(arrival), reply: &reply, rejected, notes: &[] };
                    let done = Outcome::Done(Bytes::copy_from_slice(&reply), W::Domain::CODEC);
                    return self.commit(book, ledger, &entry, done).await;
                }
                Err(failure) => failure,
            };
            // A sender from outside is there to be told; nothing was done.
            match &failure {
                Failure::Undecodable(text) if matches!(arrival, Arrival::Outside) => {
                    return Outcome::Undecodable(text.clone());
                }
                Failure::Unhandled if matches!(arrival, Arrival::Outside) => return Outcome::Unhandled,
                _ => {}
            }
            failed += 1;
            let again = matches!(failure, Failure::Retry(_)) && failed < retry.attempts.max(1);
            tracing::warn!(
                target: TARGET, worker = %self.actor, message = %envelope.name, id = %envelope.id, attempt = failed,
                error = failure.text(), again, "a job has failed",
            );
            if !again {
                return self.put_aside(book, ledger, envelope, arrival, &failure, failed).await;
            }
            self.host.counts.retries.one();
            // Counted in the log before the next try: a crash loop must come to its end, too.
            let notes = [Note::Attempt { message: envelope.id, attempt: failed }];
            let entry = Entry { envelope, end: End::Not, reply: &[], rejected: false, notes: &notes };
            let noted = self.commit(book, ledger, &entry, Outcome::Done(Bytes::new(), Codec::Bincode)).await;
            if !matches!(noted, Outcome::Done(..)) {
                return noted;
            }
            ledger.borrow_mut().failing.insert(envelope.id, failed);
            let drains = self.host.drains.notified();
            if !self.host.draining.get() {
                tokio::select! {
                    biased;
                    () = drains => {}
                    () = tokio::time::sleep(retry.wait(failed, &self.host.ids)) => {}
                }
            }
        }
    }

    /// Calls user code once.
    async fn once(&self, envelope: &Envelope, delivery: u32) -> Result<Done, Failure> {
        let list = if envelope.kind == Kind::Event { &self.plan.on } else { &self.plan.performs };
        let run = list.get(&(&*envelope.domain, &*envelope.name)).ok_or(Failure::Unhandled)?;
        tracing::debug!(
            target: TARGET, room = "worker", worker = %self.actor, message = %envelope.name, id = %envelope.id,
            correlation = %envelope.correlation, delivery, "a job begins",
        );
        let job = Job { idempotency_key: envelope.id, delivery, correlation: envelope.correlation };
        let (worker, message) = (std::sync::Arc::clone(&self.worker), envelope.clone());
        match AssertUnwindSafe(async move { run(worker, message, job).await }).catch_unwind().await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(Undone::Undecodable(error))) => Err(Failure::Undecodable(error.to_string())),
            Ok(Err(Undone::Retry(text))) => Err(Failure::Retry(text)),
            Ok(Err(Undone::Fail(text))) => Err(Failure::Fail(text)),
            Err(panic) => {
                self.host.counts.panics.one();
                Err(Failure::Retry(format!("the job panicked: {}", panic_text(&panic))))
            }
        }
    }

    /// Puts a message aside after its last delivery. Others go on: jobs are in no order.
    async fn put_aside(
        &self,
        book: &Book,
        ledger: &RefCell<Ledger>,
        envelope: &Envelope,
        arrival: &Arrival,
        failure: &Failure,
        attempts: u32,
    ) -> Outcome {
        self.host.counts.dead_letters.one();
        tracing::error!(
            target: TARGET, worker = %self.actor, message = %envelope.name, id = %envelope.id, attempts,
            error = failure.text(), "a message is a dead letter now",
        );
        let notes = [Note::DeadLetter(Box::new(DeadLetter {
            actor: self.actor.clone(),
            key: envelope.key.clone(),
            reason: failure.reason(),
            error: failure.text().to_owned(),
            attempts,
            time: self.host.ids.clock().now(),
            envelope: envelope.clone(),
        }))];
        let entry = Entry { envelope, end: End::Marked(arrival), reply: &[], rejected: false, notes: &notes };
        self.commit(book, ledger, &entry, Outcome::DeadLetter(failure.text().to_owned())).await
    }

    /// Writes a turn, and waits until it is durable. What cannot be written for the moment is tried again: what was done
    /// outside is done, and only the writing is missing.
    async fn commit(&self, book: &Book, ledger: &RefCell<Ledger>, entry: &Entry<'_>, outcome: Outcome) -> Outcome {
        let outside = matches!(entry.end, End::Marked(Arrival::Outside));
        let mut failures = 0;
        let appended = loop {
            match self.append(book, ledger, entry) {
                Ok(appended) => break appended,
                Err(error) if outside || !error.is_transient() => return Outcome::Unknown(error),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(target: TARGET, worker = %self.actor, %error, "a job is done and cannot be committed yet");
                    tokio::time::sleep(self.host.settings.retry.wait(failures, &self.host.ids)).await;
                }
            }
        };
        self.after((!appended.committed).then_some(appended.ticket), outcome).await
    }

    /// The outcome once everything up to `ticket` is durable.
    async fn after(&self, ticket: Option<Ticket>, outcome: Outcome) -> Outcome {
        let Some(ticket) = ticket else { return outcome };
        let (tell, told) = tokio::sync::oneshot::channel();
        self.host.after_ticket(ticket, move |committed| {
            let _ = tell.send(committed);
        });
        match told.await {
            Ok(Ok(())) => outcome,
            Ok(Err(error)) => Outcome::Unknown(error),
            Err(_) => Outcome::Unknown(StoreError::Closed),
        }
    }

    fn append(&self, book: &Book, ledger: &RefCell<Ledger>, entry: &Entry<'_>) -> Result<Appended, StoreError> {
        let envelope = entry.envelope;
        let time = self.host.ids.clock().now();
        let reply = self.reply_to_origin(entry, time);
        let outbox: Vec<_> = reply.iter().map(|(to, envelope)| OutboxWrite { to, envelope }).collect();
        let digest = digest(&envelope.payload);
        let mark = match entry.end {
            End::Marked(Arrival::Outside) => Mark::Outside { digest },
            End::Marked(Arrival::From { source, sequence, floor }) => {
                Mark::From { source, sequence: *sequence, floor: floor.once_appended(*sequence) }
            }
            // Marked again, so that the sender who asks again gets the reply.
            End::Resolved if !entry.reply.is_empty() && is_from_outside(envelope) => Mark::Outside { digest },
            End::Marked(Arrival::Inside) | End::Resolved | End::Not => Mark::None,
        };
        let mut ledger = ledger.borrow_mut();
        let turn = Turn {
            actor: &self.actor,
            key: &book.key,
            number: ledger.turns + 1,
            version: 0,
            time,
            id: envelope.id,
            correlation: envelope.correlation,
            traceparent: envelope.traceparent.as_deref(),
            mark,
            reply: entry.reply,
            reply_codec: W::Domain::CODEC,
            events: &[],
            outbox: &outbox,
            timers: &[],
            notes: entry.notes,
        };
        let appended = book.shard.writer.borrow_mut().append(&turn)?;
        ledger.turns += 1;
        match &turn.mark {
            Mark::Outside { digest } => ledger.seen.id(envelope.id, *digest, entry.reply, W::Domain::CODEC),
            Mark::From { source, sequence, floor } => ledger.place(source, *sequence, *floor),
            Mark::None | Mark::Timer { .. } => {}
        }
        if let End::Marked(Arrival::From { sequence, floor, .. }) = entry.end {
            // Only now: a floor above a message that is not in the log would lose it.
            floor.appended(*sequence);
        }
        if !matches!(entry.end, End::Not) {
            ledger.failing.remove(&envelope.id);
        }
        book.last.set((!appended.committed).then_some(appended.ticket));
        self.host.counts.turns.one();
        if !outbox.is_empty() {
            let (shard, host) = (Rc::clone(&book.shard), Rc::clone(&self.host));
            self.host.after(appended, move |_| shard.soil(&host));
        }
        if ledger.turns.is_multiple_of(SNAPSHOT_EVERY) {
            match ledger.save() {
                Ok(snapshot) => book.shard.writer.borrow_mut().save_snapshot(&self.actor, &book.key, snapshot),
                Err(error) => {
                    tracing::warn!(target: TARGET, worker = %self.actor, %error, "a snapshot cannot be written");
                }
            }
        }
        Ok(appended)
    }

    /// The reply for the actor that sent the command, if it wants one.
    fn reply_to_origin(&self, entry: &Entry<'_>, time: crate::clock::Timestamp) -> Option<(ShardId, Envelope)> {
        let envelope = entry.envelope;
        let wanted = match envelope.wants {
            Wants::Nothing => false,
            Wants::Rejection => entry.rejected,
            Wants::Reply => true,
        };
        let wanted = wanted && envelope.kind == Kind::Command && !entry.reply.is_empty();
        let origin = envelope.origin.as_ref().filter(|_| wanted)?;
        let to = origin.shard.clone();
        let reply = Envelope {
            id: envelope.id.derive("reply", 0),
            kind: Kind::Reply,
            name: envelope.name.clone(),
            version: envelope.version,
            domain: self.domain.clone(),
            to: Some(to.clone()),
            key: origin.key.clone(),
            actor: Some(origin.actor.clone()),
            origin: None,
            correlation: envelope.correlation,
            causation: Some(envelope.id),
            time,
            deadline: None,
            wants: Wants::Nothing,
            traceparent: envelope.traceparent.clone(),
            headers: Vec::new(),
            codec: W::Domain::CODEC,
            payload: Bytes::copy_from_slice(entry.reply),
        };
        Some((to, reply))
    }

    /// The message is not under way any more.
    fn close(&self, book: &Rc<Book>, id: MessageId, number: Number) {
        let mut running = book.running.borrow_mut();
        if running.get(&id).is_some_and(|(first, _)| *first == number) {
            running.remove(&id);
        }
        if book.single && running.is_empty() {
            let mut books = self.books.borrow_mut();
            if books.get(&book.key).is_some_and(|known| Rc::ptr_eq(known, book)) {
                books.remove(&book.key);
            }
        }
    }

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
            book.running.borrow_mut().insert(envelope.id, (number, digest(&envelope.payload)));
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

fn is_from_outside(envelope: &Envelope) -> bool {
    envelope.kind == Kind::Command && envelope.origin.is_none()
}

/// Whether a message is let in.
enum Admitted {
    Yes,
    /// Its job is under way already; it waits for that.
    Joined,
    No(Outcome),
}

/// Why a job is not done.
enum Failure {
    Undecodable(String),
    Unhandled,
    Retry(String),
    Fail(String),
}

impl Failure {
    fn text(&self) -> &str {
        match self {
            Self::Undecodable(text) | Self::Retry(text) | Self::Fail(text) => text,
            Self::Unhandled => "nobody here handles such a message",
        }
    }

    fn reason(&self) -> DeadLetterReason {
        match self {
            Self::Undecodable(_) => DeadLetterReason::Undecodable,
            Self::Unhandled => DeadLetterReason::Unhandled,
            Self::Retry(_) | Self::Fail(_) => DeadLetterReason::Attempts,
        }
    }
}
