//! A client of the server that belongs to no service and publishes any message to any subject.

use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use whizbang::bridge::subject::{Address, Namespace};
use whizbang::message::Name;
use whizbang::testing::bridge::hostile::Forgery;

/// The connection of an untrusted client.
pub struct UntrustedClient(Client);

impl UntrustedClient {
    /// Connects without a login.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub async fn connect(url: &str) -> Self {
        Self(async_nats::connect(url).await.expect("connects"))
    }

    /// Publishes a packet to its address without waiting.
    ///
    /// # Panics
    /// If the connection is closed.
    pub async fn write(&self, forgery: Forgery) {
        let mut headers = HeaderMap::new();
        for (name, value) in &forgery.packet.headers {
            headers.append(name.as_ref(), value.as_str());
        }
        let (subject, payload) = (Namespace::default().subject(&forgery.address), forgery.packet.payload);
        let is_question = matches!(
            forgery.address,
            Address::CommandRequest { .. }
                | Address::QueryRequest { .. }
                | Address::EventsRequest(_)
                | Address::OutboxRequest { .. }
                | Address::WatermarkRequest { .. }
        );
        let written = if is_question {
            let inbox = self.0.new_inbox();
            self.0.publish_with_reply_and_headers(subject, inbox, headers, payload).await
        } else {
            self.0.publish_with_headers(subject, headers, payload).await
        };
        written.expect("the connection is open");
    }

    /// Replaces the claim on a domain with any bytes, without waiting.
    ///
    /// # Panics
    /// If the connection is closed.
    pub async fn write_claim(&self, domain: &Name, content: Bytes) {
        let subject = Namespace::default().claim_subject(domain);
        self.0.publish(subject, content).await.expect("the connection is open");
    }

    /// Waits until the server has received everything written before.
    ///
    /// # Panics
    /// If the connection is closed.
    pub async fn flush(&self) {
        self.0.flush().await.expect("the connection is open");
    }
}
