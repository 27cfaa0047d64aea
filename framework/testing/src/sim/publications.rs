//! Events that the clients of a scenario publish without an aggregate, and the check that none is lost.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::World;
use super::call::{FIRST_BACKOFF, FUTURE_ID_BACKOFF};
use super::payload::Payload;
use whizbang_core::message::{Event, MessageFacts, MessageId};
use whizbang_runtime::client::SendError;

impl World {
    /// Publishes an event under a key, as [`Client::publish`](whizbang_runtime::Client::publish). Retries with the same id until the
    /// event is committed. It must then be in the log of its domain once, whatever faults occur.
    ///
    /// ```
    /// use whizbang::prelude::*;
    /// use whizbang::testing::Sim;
    ///
    /// #[derive(Domain)]
    /// struct Plant;
    ///
    /// #[derive(Event, Clone, Serialize, Deserialize)]
    /// #[event(domain = Plant)]
    /// struct Measured { celsius: i32 }
    ///
    /// let run = Sim::new(7).service("plant", |node| node.publishes::<Measured>()).run(async |world| {
    ///     world.publish("boiler", Measured { celsius: 81 }).await.unwrap();
    /// });
    /// assert!(run.is_ok());
    /// ```
    ///
    /// # Errors
    /// [`SendError`] if a retry does not help: no service publishes the event, or it cannot be encoded.
    pub async fn publish<E: Event + Clone>(&self, key: &str, event: E) -> Result<(), SendError> {
        let facts = MessageFacts::of::<E>();
        let mut bytes = Vec::new();
        event.encode(facts.codec, &mut bytes).map_err(SendError::Encode)?;
        let payload = Payload::new(facts.name, facts.version, facts.codec, Bytes::from(bytes));
        let mut id = self.new_id();
        self.0.step_log.client_sent(id, facts.domain, payload);
        loop {
            let client = self.client_of(id).ok_or(SendError::Stopped)?;
            match client.publish(key, event.clone()).id(id).no_retry().await {
                Ok(()) => {
                    let published = format!("{}.{} {id} for `{key}`", facts.domain, facts.name);
                    self.0.clients.record_publication(published, id);
                    return Ok(());
                }
                // The clock that made the id was wrong, and the id was never accepted.
                Err(SendError::IdInFuture) => {
                    tokio::time::sleep(FUTURE_ID_BACKOFF).await;
                    let new = self.new_id();
                    self.0.step_log.client_sent_with_new_id(id, new);
                    id = new;
                }
                Err(error) if error.is_transient() => tokio::time::sleep(FIRST_BACKOFF).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Checks I1: a publication that was acknowledged is in the log.
    pub(super) fn check_publications(&self, handled: &BTreeSet<MessageId>) -> Result<(), String> {
        match self.0.clients.publications().into_iter().find(|(_, id)| !handled.contains(id)) {
            Some((published, _)) => Err(format!("I1: {published} was published and is not in the store")),
            None => Ok(()),
        }
    }
}
