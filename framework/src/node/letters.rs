//! Dead letters, for those who look after a node: list them, drive a key again, throw one away.

use tokio::sync::oneshot;

use super::spec::Type;
use super::{Error, Node};
use crate::message::{Envelope, Kind, MessageId, Name, ShardId, shard_of};
use crate::router::{Outcome, SendError, Work};
use crate::store::{DeadLetter, StoreError};

/// How many dead letters are read at a time.
const PAGE: usize = 256;

impl Node {
    /// The unresolved dead letters of the domains this node owns, those that wait behind one included. Cost grows with their
    /// number.
    ///
    /// # Errors
    /// [`Error::Store`] if they cannot be read.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        let mut letters = Vec::new();
        for (domain, shards) in &self.spec.domains {
            for shard in 0..*shards {
                let Some(reader) = self.spec.reader(&ShardId::new(domain.clone(), shard)) else { continue };
                let mut after = None;
                loop {
                    let page = reader.dead_letters(after, PAGE).await?;
                    let full = page.len() >= PAGE;
                    after = page.last().map(|letter| letter.envelope.id).or(after);
                    letters.extend(page);
                    if !full {
                        break;
                    }
                }
            }
        }
        Ok(letters)
    }

    /// Handles the dead letters of one key again, oldest first, and what waits behind them; then the key goes on. Stops at the
    /// first that fails again: it stays a dead letter and the key stays parked.
    ///
    /// # Errors
    /// [`SendError::DeadLetter`] with the reason if one failed again; [`SendError::Unhandled`] if this node hosts no such actor.
    pub async fn redrive(&self, letter: &DeadLetter) -> Result<(), SendError> {
        self.tend(letter, Work::Redrive).await
    }

    /// Throws one dead letter away: it will never be handled, and the key goes on if it was the last. The letter stays
    /// readable in the key's history.
    ///
    /// # Errors
    /// [`SendError::Unhandled`] if there is no such dead letter (any more).
    pub async fn discard(&self, letter: &DeadLetter) -> Result<(), SendError> {
        self.tend(letter, Work::Discard { message: letter.envelope.id }).await
    }

    /// The domain of the actor that should have taken a dead letter.
    async fn domain_of(&self, letter: &DeadLetter) -> Result<Option<Name>, StoreError> {
        // An event's envelope names the domain it comes from, and not the one it was for.
        let may_be = |hosted: &&Type| {
            hosted.actor == letter.actor && letter.envelope.to.as_ref().is_none_or(|to| to.domain == hosted.domain)
        };
        let id = letter.envelope.id;
        let before = id.as_u128().checked_sub(1).map(MessageId::from_u128);
        let mut first = None;
        for hosted in self.spec.types.iter().filter(may_be) {
            let Some(shards) = self.spec.owns(&hosted.domain) else { continue };
            let shard = ShardId::new(hosted.domain.clone(), shard_of(&letter.key, shards));
            let Some(reader) = self.spec.reader(&shard) else { continue };
            // All letters of one id come together.
            let letters = reader.dead_letters(before, 1).await?;
            if letters.iter().any(|one| one.envelope.id == id && (&one.actor, &one.key) == (&letter.actor, &letter.key))
            {
                return Ok(Some(hosted.domain.clone()));
            }
            first.get_or_insert_with(|| hosted.domain.clone());
        }
        // It is resolved by now; its actor says so.
        Ok(first)
    }

    async fn tend(&self, letter: &DeadLetter, work: Work) -> Result<(), SendError> {
        let unhandled =
            || SendError::Unhandled { domain: letter.envelope.domain.to_string(), name: letter.actor.to_string() };
        let domain = self.domain_of(letter).await.map_err(SendError::Refused)?.ok_or_else(unhandled)?;
        let shard = shard_of(&letter.key, self.spec.owns(&domain).unwrap_or(1));
        let id = self.client.new_id();
        let envelope = errand(id, domain.clone(), shard, letter, self.client.now());
        let (tell, told) = oneshot::channel();
        let actor = letter.actor.clone();
        self.links.run(
            self.spec.home(shard),
            Box::new(move |share| {
                let settle = Box::new(move |outcome| {
                    let _ = tell.send(outcome);
                });
                share.inside(&actor, work, envelope, settle);
            }),
        );
        let outcome = told.await.unwrap_or(Outcome::Stopped);
        SendError::of(outcome, &domain, &letter.actor, id).map(drop)
    }
}

/// The envelope of an errand of the node itself to one of its actors.
fn errand(id: MessageId, domain: Name, shard: u16, letter: &DeadLetter, now: crate::clock::Timestamp) -> Envelope {
    Envelope {
        version: letter.envelope.version,
        to: Some(ShardId::new(domain.clone(), shard)),
        key: letter.key.clone(),
        actor: Some(letter.actor.clone()),
        correlation: letter.envelope.correlation,
        causation: Some(letter.envelope.id),
        ..Envelope::new(id, Kind::Document, domain, letter.envelope.name.clone(), now)
    }
}
