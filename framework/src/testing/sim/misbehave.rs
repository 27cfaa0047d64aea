//! One attempt of a client, and what clients of a simulated cluster do wrong while a fault says so.
//!
//! Called by [calls](super::call). What goes on beside the story is over before the faults stop.

use std::time::Duration;

use bytes::Bytes;

use super::call::{PATIENCE, SOON};
use super::clients::{Mischief, Written};
use super::{FaultEvent, World};
use crate::client::{Client, SendError};
use crate::message::{Coded, Command, Domain, MessageId};

/// How often something beside the story is tried: for longer than any fault lasts that lets no answer through.
const TRIES: usize = 30;
/// How long after a command it is sent once more at the latest, in milliseconds.
const REPEATED: u64 = 3000;
/// The year 2000 and the year 2100: far from every clock of a cluster, whatever faults do to them.
const OTHER_TIMES: [u64; 2] = [946_684_800_000, 4_102_444_800_000];

impl World {
    pub(super) fn client(&self) -> Option<Client> {
        self.0.client.borrow().as_ref().map(crate::node::Node::client)
    }

    pub(super) fn asked(&self, written: &Written) {
        self.0.seen.asked(written.id, written.domain, written.payload());
    }

    /// The same command under a new id, if it can have had no effect under the old one.
    pub(super) fn renewed(&self, written: Written) -> Written {
        if !self.0.clients.abandon(written.id) {
            return written;
        }
        let renewed = written.under(self.new_id());
        self.0.seen.asked_anew(written.id, renewed.id);
        renewed
    }

    /// One attempt with a command.
    pub(super) async fn once<C: Command>(
        &self,
        written: &Written,
        key: Option<&str>,
        deadline: Duration,
    ) -> Result<C::Reply, SendError> {
        let sending = self.client().ok_or(SendError::Stopped)?.send(written.read::<C>()?).deadline(deadline);
        let sending = match key {
            Some(key) => sending.idempotency_key(key),
            None => sending.id(written.id),
        };
        self.tries(written);
        let told = match sending.await {
            Err(SendError::Rejected(no)) => Ok(Err(no)),
            Ok(reply) => Ok(Ok(reply)),
            Err(error) => Err(error),
        };
        let mut bytes = Vec::new();
        let heard = match &told {
            Ok(reply) => C::Reply::write_reply(reply, C::Domain::CODEC, &mut bytes).is_ok().then_some(Ok(bytes)),
            Err(error) => Some(Err(error)),
        };
        if let Some(heard) = heard {
            let verdict = if matches!(told, Ok(Ok(_))) { "a reply" } else { "a rejection" };
            self.hears(written, heard.map(|bytes| (Bytes::from(bytes), verdict)));
        }
        told.and_then(|reply| reply.map_err(SendError::Rejected))
    }

    /// One attempt with a command whose type is not known.
    async fn once_more(&self, written: &Written, deadline: Duration) -> Result<Bytes, SendError> {
        let client = self.client().ok_or(SendError::Stopped)?;
        let envelope = written.envelope(self.0.clients.clock.now(), deadline);
        self.tries(written);
        let told = client.remote().send(envelope, deadline).await;
        self.hears(written, told.as_ref().map(|bytes| (bytes.clone(), "a reply")));
        told
    }

    fn tries(&self, written: &Written) {
        self.0.clients.begins(written.id);
        self.0.seen.may_happen(written.id);
    }

    /// An attempt has ended.
    fn hears(&self, written: &Written, told: Result<(Bytes, &str), &SendError>) {
        let Written { id, name, .. } = written;
        let doubt = told.as_ref().map_or_else(|error| error.may_have_happened(), |_| true);
        if self.0.clients.ends(*id, doubt) {
            self.0.seen.cannot_happen(*id);
        }
        match told {
            Ok((reply, verdict)) => {
                self.0.trace.add(format_args!("a client hears {verdict} to {name} {id}"));
                if let Err(wrong) = self.0.clients.heard(written, reply) {
                    self.violated(wrong);
                }
                if let Some(count) = self.0.clients.take_reuse(*id) {
                    let (world, changed) = (self.clone(), written.changed());
                    self.0.clients.probe(async move {
                        if world.reuses(&changed).await {
                            world.0.tally.one(FaultEvent::IdReused);
                            count.set(count.get() + 1);
                        }
                    });
                }
            }
            Err(error) => self.0.trace.add(format_args!("a client hears no reply to {name} {id}: {error}")),
        }
    }

    /// Lets go wrong with a command what is due. Returns how long its first attempt waits.
    pub(super) fn misbehave(&self, written: &Written, deadline: Duration) -> Duration {
        self.asked(written);
        let mut first = deadline;
        for (mischief, count) in self.0.clients.mischief(|_| true) {
            let trouble = match mischief {
                Mischief::Reuses => {
                    self.0.clients.reuse(written.id, count);
                    continue;
                }
                Mischief::Hurries(deadline) => {
                    first = deadline;
                    FaultEvent::CallHurried
                }
                Mischief::Repeats => {
                    self.repeat(written.clone());
                    FaultEvent::CommandRepeated
                }
                Mischief::OutOfTime => {
                    self.use_other_times(written);
                    FaultEvent::IdOutOfTime
                }
            };
            self.0.tally.one(trouble);
            count.set(count.get() + 1);
        }
        first
    }

    /// Returns whether a command that is handed over is to be handed over once more.
    pub(super) fn repeats_post(&self) -> bool {
        let mischief = self.0.clients.mischief(|mischief| mischief == Mischief::Repeats);
        for (_, count) in &mischief {
            self.0.tally.one(FaultEvent::CommandRepeated);
            count.set(count.get() + 1);
        }
        !mischief.is_empty()
    }

    /// Sends a command once more beside the story, at once or later.
    fn repeat(&self, written: Written) {
        let after = if self.below(2) == 0 { 0 } else { self.below(REPEATED) };
        let world = self.clone();
        self.0.clients.probe(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            world.try_often(&written, |_| false).await;
        });
    }

    /// Tries until there is an answer that another attempt does not change.
    pub(super) async fn try_often(
        &self,
        written: &Written,
        ends: impl Fn(&SendError) -> bool,
    ) -> Option<Result<Bytes, SendError>> {
        let mut wait = SOON;
        for _ in 0..TRIES {
            if self.0.clients.is_abandoned(written.id) {
                return None;
            }
            match self.once_more(written, PATIENCE).await {
                Err(error) if error.is_transient() && !ends(&error) => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(PATIENCE);
                }
                told => return Some(told),
            }
        }
        None
    }

    /// Uses the id of a command that was acknowledged for another one: that is a conflict. Returns whether there was an answer.
    async fn reuses(&self, changed: &Written) -> bool {
        let Some(told) = self.try_often(changed, |_| false).await else { return false };
        if !matches!(told, Err(SendError::Conflict)) {
            self.violated(format!(
                "conflict: the id {} of {}.{} for `{}` was used for another payload and answered with {told:?}",
                changed.id, changed.domain, changed.name, changed.key
            ));
        }
        true
    }

    /// Sends a command with ids that are too old or from the future, before it is sent as it should be: nothing is done.
    fn use_other_times(&self, written: &Written) {
        for (at, millis) in OTHER_TIMES.into_iter().enumerate() {
            let random = u128::from(self.below(u64::MAX));
            let id = (u128::from(millis) << 80) | (0x7 << 76) | (0b10 << 62) | (random >> 2);
            let (world, written) = (self.clone(), written.under(MessageId::from_u128(id)));
            self.0.clients.probe(async move {
                let told = world.try_often(&written, |error| matches!(error, SendError::IdInFuture)).await;
                let right = match (&told, at) {
                    (None, _) => return,
                    (Some(Err(SendError::Expired)), 0) | (Some(Err(SendError::IdInFuture)), 1) => true,
                    _ => false,
                };
                if !right {
                    world.violated(format!("times: the id {} was answered with {told:?}", written.id));
                }
                world.0.seen.cannot_happen(written.id);
            });
        }
    }
}
