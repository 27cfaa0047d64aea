//! The clients of a simulated cluster.

use std::time::Duration;

use bytes::Bytes;

use super::World;
use super::payload::Payload;
use super::world::Ack;
use crate::client::SendError;
use crate::message::{Coded, Command, Domain, MessageId, Query};

/// How long a client waits for a reply before it asks again with the same id.
const PATIENCE: Duration = Duration::from_secs(2);
/// After what time it asks again first, if it was told that nobody is there; then later and later.
const SOON: Duration = Duration::from_millis(50);

impl World {
    /// Sends a command and waits for its reply, as a patient client does: asks again with the same id until the outcome is
    /// known.
    ///
    /// # Errors
    /// [`SendError`] if asking again does not help: a rejection, a dead letter, a message that cannot be read.
    pub async fn send<C: Command>(&self, command: C) -> Result<C::Reply, SendError> {
        let (id, codec) = (self.0.ids.borrow().message_id(), C::Domain::CODEC);
        let mut bytes = Vec::new();
        command.encode(codec, &mut bytes).map_err(SendError::Encode)?;
        let payload = Payload::new(C::NAME, C::VERSION, codec, Bytes::copy_from_slice(&bytes));
        self.0.seen.asked(id, C::Domain::NAME, payload);
        let mut wait = SOON;
        loop {
            let client = match &*self.0.client.borrow() {
                Some(node) => node.client(),
                None => return Err(SendError::Stopped),
            };
            // Each try needs a command of its own, and not all of them can be cloned.
            let again = C::decode(C::VERSION, codec, &bytes).map_err(SendError::Encode)?;
            match client.send(again).id(id).deadline(PATIENCE).await {
                Err(error) if error.is_transient() || matches!(error, SendError::Late) => {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(PATIENCE);
                }
                told => {
                    let told = match told {
                        Err(SendError::Rejected(no)) => Ok(Err(no)),
                        Ok(reply) => Ok(Ok(reply)),
                        Err(error) => Err(error),
                    };
                    if let Ok(reply) = &told {
                        self.acknowledged(id, &command, reply);
                    }
                    return told.and_then(|reply| reply.map_err(SendError::Rejected));
                }
            }
        }
    }

    fn acknowledged<C: Command>(
        &self,
        id: MessageId,
        command: &C,
        reply: &Result<C::Reply, crate::message::Rejection>,
    ) {
        let mut bytes = Vec::new();
        if C::Reply::write_reply(reply, C::Domain::CODEC, &mut bytes).is_err() {
            return;
        }
        let verdict = if reply.is_ok() { "a reply" } else { "a rejection" };
        self.0.trace.add(format_args!("a client hears {verdict} to {} {id}", C::NAME));
        self.0.acks.borrow_mut().push(Ack {
            id,
            domain: C::Domain::NAME.to_owned(),
            key: command.key().as_str().to_owned(),
            name: C::NAME,
            reply: bytes,
        });
    }

    /// Asks a view, again until it answers.
    ///
    /// # Errors
    /// [`SendError`] if asking again does not help.
    pub async fn query<Q: Query + Clone>(&self, query: Q) -> Result<Q::Reply, SendError> {
        loop {
            let client = match &*self.0.client.borrow() {
                Some(node) => node.client(),
                None => return Err(SendError::Stopped),
            };
            match client.query(query.clone()).await {
                Err(error) if error.is_transient() => tokio::time::sleep(SOON).await,
                answered => return answered,
            }
        }
    }
}
