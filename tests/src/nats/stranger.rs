//! A program on the server that belongs to no service: writes what it likes, where it likes.

use async_nats::{Client, HeaderMap};
use whizbang::bridge::subject::{Address, Namespace};
use whizbang::testing::bridge::hostile::Forgery;

/// A stranger's connection.
pub struct Stranger(Client);

impl Stranger {
    /// Connects without a login.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub async fn connect(url: &str) -> Self {
        Self(async_nats::connect(url).await.expect("connects"))
    }

    /// Writes a packet to its place and waits for nothing.
    ///
    /// # Panics
    /// If the connection is closed.
    pub async fn write(&self, forgery: Forgery) {
        let mut headers = HeaderMap::new();
        for (name, value) in &forgery.packet.headers {
            headers.append(name.as_ref(), value.as_str());
        }
        let (subject, payload) = (Namespace::default().subject(&forgery.place), forgery.packet.payload);
        let is_question = matches!(
            forgery.place,
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

    /// Waits until the server has everything that was written.
    ///
    /// # Panics
    /// If the connection is closed.
    pub async fn flush(&self) {
        self.0.flush().await.expect("the connection is open");
    }
}
