//! Single attempts of clients, and the faults that clients cause: duplicates, reused ids, wrong times, short deadlines.
//!
//! Called by [calls](super::call). Background attempts finish before the faults stop.

use std::time::Duration;

use bytes::Bytes;

use super::call::{ATTEMPT_DEADLINE, AttemptMode, FIRST_BACKOFF};
use super::clients::{ClientFault, EncodedCommand};
use super::{FaultEvent, World};
use whizbang_core::message::{Coded, Command, Domain, MessageId};
use whizbang_runtime::client::{Client, SendError};

/// Attempts of a background command: more than the longest fault can prevent.
const MAX_ATTEMPTS: usize = 30;
/// Maximum delay before a command is duplicated, in milliseconds.
const MAX_DUPLICATE_DELAY: u64 = 3000;
/// The years 2000 and 2100, far from every clock of the cluster.
const WRONG_TIMES: [u64; 2] = [946_684_800_000, 4_102_444_800_000];

impl World {
    /// Returns the client of the cluster. `None` before its node has started and after it has stopped.
    pub(super) fn client(&self) -> Option<Client> {
        self.0.client.borrow().as_ref().map(whizbang_runtime::node::Node::client)
    }

    /// Tells the step log that a client has sent a command, so that its turn is not taken for a message from nowhere.
    pub(super) fn record_sent(&self, encoded: &EncodedCommand) {
        self.0.step_log.client_sent(encoded.id, encoded.domain, encoded.payload());
    }

    /// Returns the command with a new id, if no attempt with the old id can have had an effect.
    pub(super) fn with_new_id(&self, encoded: EncodedCommand) -> EncodedCommand {
        if !self.0.clients.abandon(encoded.id) {
            return encoded;
        }
        let with_new_id = encoded.with_id(self.new_id());
        self.0.step_log.client_sent_with_new_id(encoded.id, with_new_id.id);
        with_new_id
    }

    /// Makes one attempt.
    pub(super) async fn attempt<C: Command>(
        &self,
        encoded: &EncodedCommand,
        key: Option<&str>,
        deadline: Duration,
        mode: AttemptMode,
    ) -> Result<C::Reply, SendError> {
        let client = self.client_of(encoded.id).ok_or(SendError::Stopped)?;
        let sending = client.send(encoded.decode::<C>()?).deadline(deadline);
        let sending = match key {
            Some(key) => sending.idempotency_key(key),
            None => sending.id(encoded.id),
        };
        let sending = if mode == AttemptMode::Once { sending.no_retry() } else { sending };
        self.attempt_started(encoded);
        let result = match sending.await {
            Err(SendError::Rejected(no)) => Ok(Err(no)),
            Ok(reply) => Ok(Ok(reply)),
            Err(error) => Err(error),
        };
        let mut bytes = Vec::new();
        let reply = match &result {
            Ok(reply) => C::Reply::write_reply(reply, C::Domain::CODEC, &mut bytes).is_ok().then_some(Ok(bytes)),
            Err(error) => Some(Err(error)),
        };
        if let Some(reply) = reply {
            let kind = if matches!(result, Ok(Ok(_))) { "a reply" } else { "a rejection" };
            self.attempt_finished(encoded, reply.map(|bytes| (Bytes::from(bytes), kind)));
        }
        result.and_then(|reply| reply.map_err(SendError::Rejected))
    }

    /// Makes one attempt with an encoded command.
    async fn attempt_encoded(&self, encoded: &EncodedCommand, deadline: Duration) -> Result<Bytes, SendError> {
        let client = self.client_of(encoded.id).ok_or(SendError::Stopped)?;
        let envelope = encoded.envelope(self.client_time_of(encoded.id), deadline);
        self.attempt_started(encoded);
        let result = client.remote().send(envelope, deadline).await;
        self.attempt_finished(encoded, result.as_ref().map(|bytes| (bytes.clone(), "a reply")));
        result
    }

    /// Counts an attempt, and begins its waiting time.
    fn attempt_started(&self, encoded: &EncodedCommand) {
        self.0.clients.attempt_started(encoded.id);
        self.0.step_log.attempt_started(encoded.id);
    }

    /// Records the end of an attempt.
    fn attempt_finished(&self, encoded: &EncodedCommand, result: Result<(Bytes, &str), &SendError>) {
        let EncodedCommand { id, name, .. } = encoded;
        let may_have_happened = result.as_ref().map_or_else(|error| error.may_have_happened(), |_| true);
        if self.0.clients.attempt_ended(*id, may_have_happened) {
            self.0.step_log.attempts_had_no_effect(*id);
        }
        match result {
            Ok((reply, kind)) => {
                self.0.trace.add(format_args!("a client receives {kind} to {name} {id}"));
                if let Err(violation) = self.0.clients.record_reply(encoded, reply) {
                    self.report_violation(violation);
                }
                if let Some(count) = self.0.clients.take_reuse(*id) {
                    let (world, changed) = (self.clone(), encoded.with_changed_payload());
                    self.0.clients.spawn_background(async move {
                        if world.send_with_reused_id(&changed).await {
                            world.0.fault_counts.one(FaultEvent::IdReused);
                            count.set(count.get() + 1);
                        }
                    });
                }
            }
            Err(error) => self.0.trace.add(format_args!("a client receives no reply to {name} {id}: {error}")),
        }
    }

    /// Applies the armed faults to a command. Returns the deadline of its first attempt.
    pub(super) fn inject_client_faults(&self, encoded: &EncodedCommand, deadline: Duration) -> Duration {
        self.record_sent(encoded);
        let mut first = deadline;
        for (client_fault, count) in self.0.clients.take_faults(|_| true) {
            let event = match client_fault {
                ClientFault::ReuseId => {
                    self.0.clients.reuse(encoded.id, count);
                    continue;
                }
                ClientFault::ShortDeadline(deadline) => {
                    first = deadline;
                    FaultEvent::DeadlineShortened
                }
                ClientFault::Duplicate => {
                    self.spawn_duplicate(encoded.clone());
                    FaultEvent::CommandDuplicated
                }
                ClientFault::WrongTimeIds => {
                    self.send_wrong_time_ids(encoded);
                    FaultEvent::IdOutsideTimeWindow
                }
            };
            self.0.fault_counts.one(event);
            count.set(count.get() + 1);
        }
        first
    }

    /// Returns whether a posted command is to be posted twice.
    pub(super) fn duplicates_post(&self) -> bool {
        let client_fault = self.0.clients.take_faults(|client_fault| client_fault == ClientFault::Duplicate);
        for (_, count) in &client_fault {
            self.0.fault_counts.one(FaultEvent::CommandDuplicated);
            count.set(count.get() + 1);
        }
        !client_fault.is_empty()
    }

    /// Sends a command again in the background, at once or later.
    fn spawn_duplicate(&self, encoded: EncodedCommand) {
        let after = if self.below(2) == 0 { 0 } else { self.below(MAX_DUPLICATE_DELAY) };
        let world = self.clone();
        self.0.clients.spawn_background(async move {
            tokio::time::sleep(Duration::from_millis(after)).await;
            world.retry_attempts(&encoded, |_| false).await;
        });
    }

    /// Retries until the outcome is final.
    pub(super) async fn retry_attempts(
        &self,
        encoded: &EncodedCommand,
        ends: impl Fn(&SendError) -> bool,
    ) -> Option<Result<Bytes, SendError>> {
        let mut wait = FIRST_BACKOFF;
        for _ in 0..MAX_ATTEMPTS {
            if self.0.clients.is_abandoned(encoded.id) {
                return None;
            }
            match self.attempt_encoded(encoded, ATTEMPT_DEADLINE).await {
                Err(error) if error.is_transient() && !ends(&error) => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(ATTEMPT_DEADLINE);
                }
                result => return Some(result),
            }
        }
        None
    }

    /// Reuses the id of an acknowledged command for another payload, which must be a conflict. Returns whether there was a reply.
    async fn send_with_reused_id(&self, changed: &EncodedCommand) -> bool {
        let Some(result) = self.retry_attempts(changed, |_| false).await else { return false };
        // A node that has lost its shard and does not know it yet may refuse a payload without having seen the id.
        let is_refused = matches!(result, Err(SendError::Undecodable { .. })) && !changed.is_decodable();
        if !is_refused && !matches!(result, Err(SendError::Conflict)) {
            self.report_violation(format!(
                "conflict: the id {} of {}.{} for `{}` was used for another payload, result {result:?}",
                changed.id, changed.domain, changed.name, changed.key
            ));
        }
        true
    }

    /// Sends a command with ids that are too old or in the future before its regular attempt. Both must be rejected.
    fn send_wrong_time_ids(&self, encoded: &EncodedCommand) {
        for (at, millis) in WRONG_TIMES.into_iter().enumerate() {
            let random = u128::from(self.below(u64::MAX));
            let id = (u128::from(millis) << 80) | (0x7 << 76) | (0b10 << 62) | (random >> 2);
            let (world, encoded) = (self.clone(), encoded.with_id(MessageId::from_u128(id)));
            self.0.clients.spawn_background(async move {
                let result = world.retry_attempts(&encoded, |error| matches!(error, SendError::IdInFuture)).await;
                let right = match (&result, at) {
                    (None, _) => return,
                    (Some(Err(SendError::Expired)), 0) | (Some(Err(SendError::IdInFuture)), 1) => true,
                    _ => false,
                };
                if !right {
                    world.report_violation(format!("times: the id {} out of time got {result:?}", encoded.id));
                }
                world.0.step_log.attempts_had_no_effect(encoded.id);
            });
        }
    }
}
