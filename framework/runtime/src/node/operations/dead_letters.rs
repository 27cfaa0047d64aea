//! Dead letters of a node, for operators: list them, redrive a key, discard one.
//!
//! Called by users on the node and its handle. Runs on the thread of the dead letter's key.

use std::collections::BTreeSet;

use tokio::sync::oneshot;

use crate::client::Client;
use crate::node::definition::NodeDefinition;
use crate::node::error::Error;
use crate::node::lifecycle::handle::NodeHandle;
use crate::node::lifecycle::node::Node;
use crate::node::thread::Threads;
use crate::router::{Action, Outcome, SendError};
use whizbang_core::message::{Envelope, Kind, MessageId, Name, ShardId, shard_of};
use whizbang_core::store::{DeadLetter, DeadLetterReason};

/// Number of dead letters read at a time.
const PAGE: usize = 256;

impl Node {
    /// Returns the unresolved dead letters of the domains that this node owns, including messages parked behind one.
    /// Each is addressed to the shard that holds it, events too. Costs their number.
    ///
    /// # Errors
    /// [`Error::Store`] if the dead letters cannot be read.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        list(&self.definition).await
    }

    /// Handles the dead letters of one key again, oldest first, then the messages parked behind them; after that the
    /// key is unparked. Stops at the first that fails again: it stays a dead letter and the key stays parked.
    ///
    /// ```
    /// # use bank_fixture::*;
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
    pub async fn redrive(&self, dead_letter: &DeadLetter) -> Result<(), SendError> {
        resolve(&self.definition, &self.threads, &self.client, dead_letter, Action::Redrive).await
    }

    /// Discards one dead letter: it will never be handled, and the key is unparked if none remain. The letter stays
    /// readable in the key's history.
    ///
    /// # Errors
    /// [`SendError::Unhandled`] if the dead letter no longer exists.
    pub async fn discard(&self, dead_letter: &DeadLetter) -> Result<(), SendError> {
        resolve(
            &self.definition,
            &self.threads,
            &self.client,
            dead_letter,
            Action::Discard { message: dead_letter.envelope.id },
        )
        .await
    }
}

impl NodeHandle {
    /// Same as [`Node::dead_letters`].
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] in [`Error::Send`] if the node has ended.
    pub async fn dead_letters(&self) -> Result<Vec<DeadLetter>, Error> {
        list(&*self.definition().ok_or(SendError::Stopped)?).await
    }

    /// Same as [`Node::redrive`].
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] if the node has ended.
    pub async fn redrive(&self, dead_letter: &DeadLetter) -> Result<(), SendError> {
        let definition = self.definition().ok_or(SendError::Stopped)?;
        resolve(&definition, &self.threads, &self.client, dead_letter, Action::Redrive).await
    }

    /// Same as [`Node::discard`].
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] if the node has ended.
    pub async fn discard(&self, dead_letter: &DeadLetter) -> Result<(), SendError> {
        let definition = self.definition().ok_or(SendError::Stopped)?;
        resolve(
            &definition,
            &self.threads,
            &self.client,
            dead_letter,
            Action::Discard { message: dead_letter.envelope.id },
        )
        .await
    }
}

async fn list(definition: &NodeDefinition) -> Result<Vec<DeadLetter>, Error> {
    let mut dead_letters = Vec::new();
    for (domain, shards) in &definition.domains {
        for shard in 0..*shards {
            let shard = ShardId::new(domain.clone(), shard);
            let Some(reader) = definition.reader(&shard) else { continue };
            let mut after = None;
            let first = dead_letters.len();
            loop {
                let page = reader.dead_letters(after, PAGE).await?;
                let full = page.len() >= PAGE;
                after = page.last().map(|dead_letter| dead_letter.envelope.id).or(after);
                dead_letters.extend(page.into_iter().map(|dead_letter| addressed(dead_letter, &shard)));
                if !full {
                    break;
                }
            }
            // Deferred messages are delivered without an operator, unless their key cannot be loaded or their type is
            // not hosted.
            let mut of_shard = dead_letters.split_off(first);
            let hosted = |actor: &Name| {
                definition.actors.iter().any(|hosted| hosted.domain == *domain && hosted.actor == *actor)
            };
            let stopped: BTreeSet<(Name, String)> = of_shard
                .iter()
                .filter(|dead_letter| dead_letter.reason == DeadLetterReason::Unloadable || !hosted(&dead_letter.actor))
                .map(|dead_letter| (dead_letter.actor.clone(), dead_letter.key.clone()))
                .collect();
            of_shard.retain(|dead_letter| {
                let deferred = dead_letter.reason == DeadLetterReason::Deferred;
                !deferred || stopped.contains(&(dead_letter.actor.clone(), dead_letter.key.clone()))
            });
            for dead_letter in
                of_shard.iter_mut().filter(|dead_letter| dead_letter.reason == DeadLetterReason::Deferred)
            {
                dead_letter.reason = DeadLetterReason::Behind;
            }
            dead_letters.append(&mut of_shard);
        }
    }
    Ok(dead_letters)
}

async fn resolve(
    definition: &NodeDefinition,
    threads: &Threads,
    client: &Client,
    dead_letter: &DeadLetter,
    work: Action,
) -> Result<(), SendError> {
    // An event's envelope names its source domain; the dead letter is in the domain of the actor that handles it, to
    // which it is addressed.
    let domain = dead_letter.envelope.to.as_ref().map_or(&dead_letter.envelope.domain, |to| &to.domain).clone();
    let shard = shard_of(&dead_letter.key, definition.owns(&domain).unwrap_or(1));
    let id = client.new_id();
    let envelope = operator_envelope(id, domain.clone(), shard, dead_letter, client.now());
    let (tell, told) = oneshot::channel();
    let actor = dead_letter.actor.clone();
    threads.run(
        definition.thread_of(shard),
        Box::new(move |runtime| {
            let settle = Box::new(move |outcome| {
                let _ = tell.send(outcome);
            });
            runtime.deliver_internal(&actor, work, envelope, settle);
        }),
    );
    let outcome = told.await.unwrap_or(Outcome::Stopped);
    SendError::of(outcome, &domain, &dead_letter.actor, id).map(drop)
}

/// Addresses a dead letter to the shard whose log contains it. An event has no destination, and several domains may
/// have an actor type of that name.
fn addressed(mut dead_letter: DeadLetter, shard: &ShardId) -> DeadLetter {
    dead_letter.envelope.to.get_or_insert_with(|| shard.clone());
    dead_letter
}

/// Returns the envelope of an operator's request to one of the node's actors.
fn operator_envelope(
    id: MessageId,
    domain: Name,
    shard: u16,
    dead_letter: &DeadLetter,
    now: whizbang_core::clock::Timestamp,
) -> Envelope {
    Envelope {
        version: dead_letter.envelope.version,
        to: Some(ShardId::new(domain.clone(), shard)),
        key: dead_letter.key.clone(),
        actor: Some(dead_letter.actor.clone()),
        correlation: dead_letter.envelope.correlation,
        causation: Some(dead_letter.envelope.id),
        ..Envelope::new(id, Kind::Document, domain, dead_letter.envelope.name.clone(), now)
    }
}
