//! Dead letters of a node, for operators: list them, redrive a key, discard one.
//!
//! Called by users on the node and its handle. Runs on the thread of the dead letter's key.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::definition::NodeDefinition;
use super::thread_handles::ThreadHandles;
use super::{Error, Node, NodeHandle};
use crate::client::Client;
use crate::message::{Envelope, Kind, MessageId, Name, ShardId, shard_of};
use crate::router::{Action, Outcome, SendError};
use crate::store::{DeadLetter, DeadLetterReason};

/// Number of dead letters read at a time.
const PAGE: usize = 256;

impl Node {
    /// Returns the unresolved dead letters of the domains that this node owns, including messages parked behind one.
    /// Each is addressed to the shard that holds it, events too. Costs their number.
    ///
    /// # Errors
    /// [`Error::Store`] if the dead letters cannot be read.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        list(&self.spec).await
    }

    /// Handles the dead letters of one key again, oldest first, then the messages parked behind them; after that the
    /// key is unparked. Stops at the first that fails again: it stays a dead letter and the key stays parked.
    ///
    /// ```
    /// # use whizbang::doc_fixtures::*;
    /// # whizbang::derive::block_on(async {
    /// # let node = bank().await;
    /// for letter in node.dead_letters().await? {
    ///     node.redrive(&letter).await?;
    /// }
    /// # Ok::<_, whizbang::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`SendError::DeadLetter`] with the reason if one failed again. [`SendError::Unhandled`] if this node hosts no
    /// such actor.
    pub async fn redrive(&self, letter: &DeadLetter) -> Result<(), SendError> {
        tend(&self.spec, &self.links, &self.client, letter, Action::Redrive).await
    }

    /// Discards one dead letter: it will never be handled, and the key is unparked if none remain. The letter stays
    /// readable in the key's history.
    ///
    /// # Errors
    /// [`SendError::Unhandled`] if the dead letter no longer exists.
    pub async fn discard(&self, letter: &DeadLetter) -> Result<(), SendError> {
        tend(&self.spec, &self.links, &self.client, letter, Action::Discard { message: letter.envelope.id }).await
    }
}

impl NodeHandle {
    /// As [`Node::dead_letters`].
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] in [`Error::Send`] if the node has ended.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        list(&*self.spec().ok_or(SendError::Stopped)?).await
    }

    /// As [`Node::redrive`].
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] if the node has ended.
    pub async fn redrive(&self, letter: &DeadLetter) -> Result<(), SendError> {
        let spec = self.spec().ok_or(SendError::Stopped)?;
        tend(&spec, &self.links, &self.client, letter, Action::Redrive).await
    }

    /// As [`Node::discard`].
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] if the node has ended.
    pub async fn discard(&self, letter: &DeadLetter) -> Result<(), SendError> {
        let spec = self.spec().ok_or(SendError::Stopped)?;
        tend(&spec, &self.links, &self.client, letter, Action::Discard { message: letter.envelope.id }).await
    }
}

async fn list(spec: &NodeDefinition) -> Result<Vec<DeadLetter>, Error> {
    let mut letters = Vec::new();
    for (domain, shards) in &spec.domains {
        for shard in 0..*shards {
            let shard = ShardId::new(domain.clone(), shard);
            let Some(reader) = spec.reader(&shard) else { continue };
            let mut after = None;
            let first = letters.len();
            loop {
                let page = reader.dead_letters(after, PAGE).await?;
                let full = page.len() >= PAGE;
                after = page.last().map(|letter| letter.envelope.id).or(after);
                letters.extend(page.into_iter().map(|letter| addressed(letter, &shard)));
                if !full {
                    break;
                }
            }
            // Deferred messages are delivered without an operator, unless their key cannot be loaded or their type is
            // not hosted.
            let mut of_shard = letters.split_off(first);
            let hosted =
                |actor: &Name| spec.actors.iter().any(|hosted| hosted.domain == *domain && hosted.actor == *actor);
            let stopped: BTreeSet<(Name, String)> = of_shard
                .iter()
                .filter(|letter| letter.reason == DeadLetterReason::Unloadable || !hosted(&letter.actor))
                .map(|letter| (letter.actor.clone(), letter.key.clone()))
                .collect();
            of_shard.retain(|letter| {
                let deferred = letter.reason == DeadLetterReason::Deferred;
                !deferred || stopped.contains(&(letter.actor.clone(), letter.key.clone()))
            });
            for letter in of_shard.iter_mut().filter(|letter| letter.reason == DeadLetterReason::Deferred) {
                letter.reason = DeadLetterReason::Behind;
            }
            letters.append(&mut of_shard);
        }
    }
    Ok(letters)
}

async fn tend(
    spec: &NodeDefinition,
    links: &ThreadHandles,
    client: &Client,
    letter: &DeadLetter,
    work: Action,
) -> Result<(), SendError> {
    // An event's envelope names its source domain; the dead letter is in the domain of the actor that handles it, to
    // which it is addressed.
    let domain = letter.envelope.to.as_ref().map_or(&letter.envelope.domain, |to| &to.domain).clone();
    let shard = shard_of(&letter.key, spec.owns(&domain).unwrap_or(1));
    let id = client.new_id();
    let envelope = errand(id, domain.clone(), shard, letter, client.now());
    let (tell, told) = oneshot::channel();
    let actor = letter.actor.clone();
    links.run(
        spec.home(shard),
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

/// Addresses a dead letter to the shard whose log contains it. An event has no destination, and several domains may
/// have an actor type of that name.
fn addressed(mut letter: DeadLetter, shard: &ShardId) -> DeadLetter {
    letter.envelope.to.get_or_insert_with(|| shard.clone());
    letter
}

/// Returns the envelope of an operator's request to one of the node's actors.
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
