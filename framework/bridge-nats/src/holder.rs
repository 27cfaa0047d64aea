//! Tells a node that still renews its claim from one that has crashed and left the same claim behind.
//!
//! Called by the check of the claims, before anything changes at the server. The copy of a folder that was made while its node ran
//! contains the start of that node, so its claim alone does not refuse the copy.
//!
//! The server ends the subscriptions of a process that has crashed together with its connection. Then it responds at once to a
//! request for the owner of the domain that there is none, and the next start does not wait. Otherwise the claim is watched for one
//! renewal. A node that is paused or cut off from the server renews nothing: its claim is replaced, and it ends when it
//! finds that out.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;

use super::acknowledgement::has_no_responder;
use super::claims::{Claims, RENEW_INTERVAL};
use super::headers;
use super::inboxes::Inboxes;
use super::pending_replies::ReplyKind;
use super::subscriptions::subscribe;
use whizbang_core::bridge::claim::Claim;
use whizbang_core::bridge::{BridgeError, Request};
use whizbang_core::clock::monotonic;
use whizbang_core::message::{Name, ShardId};
use whizbang_wire::Packet;
use whizbang_wire::subject::Address;

/// The time for which a claim is watched: a renewal, and some time for a busy server.
const WATCHED_FOR: Duration = RENEW_INTERVAL.saturating_add(Duration::from_secs(2));
/// The pause between two looks, and the time limit of a response.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

impl Claims {
    /// Returns true if the node that wrote this claim, the message with the sequence `last`, renews it. Takes up to
    /// [`WATCHED_FOR`], and one round trip if no node receives the requests for the domain.
    pub(super) async fn is_renewed(
        &self,
        client: &Client,
        domain: &Name,
        mut last: u64,
        held: &Claim,
    ) -> Result<bool, BridgeError> {
        let until = monotonic() + WATCHED_FOR;
        loop {
            if !self.has_owner(client, domain).await? {
                return Ok(false);
            }
            match self.read(domain).await? {
                (number, _) if number == last => {}
                (_, Some(found)) => return Ok(found.run == held.run && !found.released),
                // Another program has replaced it with a message that is not a claim. A running owner writes its claim again.
                (number, None) => last = number,
            }
            if monotonic() >= until {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Returns false if no connection receives the requests to the owner of a domain. The question is one that every service may ask
    /// about its own domain, and its response has no effect.
    async fn has_owner(&self, client: &Client, domain: &Name) -> Result<bool, BridgeError> {
        let shard = ShardId::new(domain.clone(), 0);
        let question = Request::Watermark { from: shard.clone(), to: shard };
        let packet = Packet::from_request(&question)?;
        let subject = self.namespace.subject(&Address::for_request(&question));
        let inbox = Inboxes::new(&client.new_inbox(), &self.namespace, &self.card.service);
        let reply = inbox.reply_subject(0, ReplyKind::Response);
        let mut replies = subscribe(client, reply.to_string(), None).await?;
        let headers = headers::to_nats(&packet)?;
        let asked = client.publish_with_reply_and_headers(subject, reply, headers, packet.payload).await;
        if asked.is_err() {
            // The connection has ended, which the next request reports.
            return Ok(true);
        }
        let answer = tokio::time::timeout(LOOK_INTERVAL, replies.next()).await;
        Ok(!matches!(answer, Ok(Some(message)) if has_no_responder(&message)))
    }
}
