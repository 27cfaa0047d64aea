//! Checks of replies once the cluster is idle: acknowledged commands are sent again, and posts must have been handled.
//!
//! Called at the end of a run and by the [store checks](super::store_checks).

use std::collections::BTreeSet;
use std::time::Duration;

use super::clients::{AckedCommand, Post};
use super::{FaultEvent, World};
use whizbang_core::message::{MessageId, Name};
use whizbang_runtime::client::SendError;

/// Upper bound for clock jumps, unless the flow sets another.
const MAX_CLOCK_JUMP: Duration = Duration::from_secs(24 * 3600);

impl World {
    /// Sends every acknowledged command again. It must get the same reply and must not be handled again.
    pub(super) async fn recheck_replies(&self) -> Result<(), String> {
        for ack in self.0.clients.acks() {
            if self.is_remembered(&ack) {
                self.recheck_reply(&ack).await?;
            }
        }
        Ok(())
    }

    /// Sends an acknowledged command again. Its reply must be the same, unless the command has expired in between.
    ///
    /// # Errors
    /// The violation of I4, in words.
    async fn recheck_reply(&self, ack: &AckedCommand) -> Result<(), String> {
        let encoded = &ack.encoded;
        let command = format!("{}.{} {} for `{}`", encoded.domain, encoded.name, encoded.id, encoded.key);
        match self.retry_attempts(encoded, |_| false).await {
            // A different reply is detected by `record_reply`.
            Some(Ok(_)) => Ok(()),
            // The id contains its time, so it is rejected instead of handled again.
            Some(Err(SendError::Expired)) if !self.is_recent(ack) => Ok(()),
            Some(Err(error)) => Err(format!("I4: {command} was acknowledged; sent again it failed: {error}")),
            None => Err(format!("I4: {command} was acknowledged; sent again it got no reply")),
        }
    }

    /// Returns the time for which the owner of a domain remembers ids. `None` if the domain is not hosted.
    fn id_retention(&self, domain: &str) -> Option<Duration> {
        let domain = Name::new(domain).ok()?;
        self.0.services.iter().find_map(|service| service.any_node(|node| node.remembers(&domain))?)
    }

    /// Returns whether the owner still remembers the command, allowing for clock jumps.
    fn is_recent(&self, ack: &AckedCommand) -> bool {
        let jumped = if self.0.fault_counts.counts().contains_key(&FaultEvent::ClockJumped) {
            MAX_CLOCK_JUMP
        } else {
            Duration::ZERO
        };
        self.id_retention(ack.encoded.domain).is_some_and(|remember| ack.at.elapsed() + jumped < remember)
    }

    /// Returns whether a command may be sent again. A forgotten id without a time would be handled again.
    fn is_remembered(&self, ack: &AckedCommand) -> bool {
        self.id_retention(ack.encoded.domain).is_some() && (ack.encoded.id.time().is_some() || self.is_recent(ack))
    }

    /// Checks I3: a post that was accepted is handled, is a dead letter, or was rejected with a reason.
    pub(super) fn check_posts_handled(&self, handled: &BTreeSet<MessageId>) -> Result<(), String> {
        let dead_letters = self.dead_letters();
        let is_dead_letter = |id| dead_letters.iter().any(|dead_letter| dead_letter.envelope.id == id);
        for Post { encoded, started, accepted, committed } in self.0.clients.posts() {
            let id = encoded.id;
            let may_be_lost = !committed && self.0.broker.may_have_lost(id, started);
            if accepted && !handled.contains(&id) && !is_dead_letter(id) && !may_be_lost {
                return Err(format!(
                    "I3: {}.{} {id} for `{}` was accepted and never handled",
                    encoded.domain, encoded.name, encoded.key
                ));
            }
        }
        Ok(())
    }
}
