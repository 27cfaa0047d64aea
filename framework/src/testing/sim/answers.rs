//! What clients were told, asked for once more when nothing is under way any longer.

use std::collections::BTreeSet;
use std::time::Duration;

use super::clients::{Ack, Post};
use super::{FaultEvent, World};
use crate::client::SendError;
use crate::message::{MessageId, Name};

/// The clocks of a cluster jump by less, unless its flow says otherwise.
const JUMPS: Duration = Duration::from_secs(24 * 3600);

impl World {
    /// Sends every acknowledged command once more: it is answered as it was the first time, and nothing is handled.
    pub(super) async fn ask_again(&self) -> Result<(), String> {
        for ack in self.0.clients.acks() {
            if self.is_remembered(&ack) {
                self.ask_once_more(&ack).await?;
            }
        }
        Ok(())
    }

    async fn ask_once_more(&self, ack: &Ack) -> Result<(), String> {
        let written = &ack.written;
        let what = format!("{}.{} {} for `{}`", written.domain, written.name, written.id, written.key);
        match self.try_often(written, |_| false).await {
            // Another reply is found when it is heard.
            Some(Ok(_)) => Ok(()),
            // Its id holds its time, so it is refused rather than handled anew.
            Some(Err(SendError::Expired)) if !self.is_young(ack) => Ok(()),
            Some(Err(error)) => Err(format!("I4: {what} was acknowledged, sent once more and answered with: {error}")),
            None => Err(format!("I4: {what} was acknowledged, and nothing answers when it is sent once more")),
        }
    }

    /// How long the owner of a domain remembers ids, if it is hosted.
    fn remembers(&self, domain: &str) -> Option<Duration> {
        let domain = Name::new(domain).ok()?;
        let nodes = self.0.services.iter().map(|service| service.node.borrow());
        nodes.filter_map(|node| node.as_ref()?.remembers(&domain)).next()
    }

    /// Returns whether a command was sent so lately that its owner remembers it, whatever the clocks were meanwhile.
    fn is_young(&self, ack: &Ack) -> bool {
        let jumped = if self.0.tally.counts().contains_key(&FaultEvent::ClockJumped) { JUMPS } else { Duration::ZERO };
        self.remembers(ack.written.domain).is_some_and(|remember| ack.at.elapsed() + jumped < remember)
    }

    /// Returns whether a command may be sent once more. An id without a time that is forgotten would be handled anew.
    fn is_remembered(&self, ack: &Ack) -> bool {
        self.remembers(ack.written.domain).is_some() && (ack.written.id.time().is_some() || self.is_young(ack))
    }

    /// I3: what was accepted without a reply is handled, a dead letter, or put aside with a reason.
    pub(super) fn posts_handled(&self, handled: &BTreeSet<MessageId>) -> Result<(), String> {
        let letters = self.dead_letters();
        let is_letter = |id| letters.iter().any(|letter| letter.envelope.id == id);
        for Post { written, begun, accepted } in self.0.clients.posts() {
            let (id, broker) = (written.id, &self.0.broker);
            if accepted && !handled.contains(&id) && !is_letter(id) && !broker.has_lost(id, begun) {
                return Err(format!(
                    "I3: {}.{} {id} for `{}` was accepted without a reply and never handled",
                    written.domain, written.name, written.key
                ));
            }
        }
        Ok(())
    }
}
