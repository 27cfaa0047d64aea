//! Dead letters, for operators: lists them, redrives a key, discards one.
//!
//! Called by the node and its handle. Calls the actors of the key on their thread.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use super::definition::NodeDefinition;
use super::thread_handles::ThreadHandles;
use super::{Error, Node, NodeHandle};
use crate::client::Client;
use crate::message::{Envelope, Kind, MessageId, Name, ShardId, shard_of};
use crate::router::{Action, Outcome, SendError};
use crate::store::{DeadLetter, DeadLetterReason};

/// How many dead letters are read at a time.
const PAGE: usize = 256;

impl Node {
    /// The unresolved dead letters of the domains this node owns, those that wait behind one included. Each is addressed to the
    /// shard that holds it, events too. Cost grows with their number.
    ///
    /// # Errors
    /// [`Error::Store`] if they cannot be read.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        list(&self.spec).await
    }

    /// Handles the dead letters of one key again, oldest first, and what waits behind them; then the key continues. Stops at the
    /// first that fails again: it stays a dead letter and the key stays parked.
    ///
    /// # Errors
    /// [`SendError::DeadLetter`] with the reason if one failed again; [`SendError::Unhandled`] if this node hosts no such actor.
    pub async fn redrive(&self, letter: &DeadLetter) -> Result<(), SendError> {
        tend(&self.spec, &self.links, &self.client, letter, Action::Redrive).await
    }

    /// Discards one dead letter: it will never be handled, and the key continues if it was the last. The letter stays
    /// readable in the key's history.
    ///
    /// # Errors
    /// [`SendError::Unhandled`] if there is no such dead letter any longer.
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
            // What is only deferred is delivered without a person, unless its key cannot be loaded or its type is not hosted.
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
    // An event's envelope names the domain it comes from; the letter is in the domain of the actor that takes it, which is
    // where it is addressed to.
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

/// A dead letter with the shard in whose log it stands. An event is sent to nobody in particular, and several domains may have
/// an actor of the name that could not take it.
fn addressed(mut letter: DeadLetter, shard: &ShardId) -> DeadLetter {
    letter.envelope.to.get_or_insert_with(|| shard.clone());
    letter
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
