//! A nats-server as the fixture of the bridge suite.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream;
use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::OnceCell;
use whizbang::bridge::Bridge;
use whizbang::bridge::nats::NatsBridge;
use whizbang::bridge::subject::Namespace;
use whizbang::bridge::wire::Packet;
use whizbang::message::{Name, ShardId};
use whizbang::testing::bridge::Fixture;
use whizbang::testing::bridge::hostile::Forgery;

use super::{NatsServer, Release, UntrustedClient};

/// A fixture with one server per case.
pub struct NatsFixture(Mutex<NatsServer>, OnceCell<UntrustedClient>);

impl NatsFixture {
    /// Starts a server.
    pub fn start(release: Release) -> Self {
        Self(Mutex::new(NatsServer::start(release)), OnceCell::new())
    }

    fn url(&self) -> String {
        self.0.lock().expect("no test has panicked").url()
    }

    async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("connects")
    }
}

impl Fixture for NatsFixture {
    fn bridge(&self) -> BoxFuture<'_, Arc<dyn Bridge>> {
        async {
            let bridge = NatsBridge::connect(&self.url()).await.expect("connects");
            Arc::new(bridge) as Arc<dyn Bridge>
        }
        .boxed()
    }

    fn interrupt(&self) -> BoxFuture<'_, ()> {
        async { self.0.lock().expect("no test has panicked").restart() }.boxed()
    }

    fn inject(&self, to: ShardId, packet: Packet) -> BoxFuture<'_, ()> {
        async move {
            let mut headers = async_nats::HeaderMap::new();
            for (name, value) in &packet.headers {
                headers.append(name.as_ref(), value.as_str());
            }
            let subject = format!("{}.cmd.{}.{}.outside", Namespace::default(), to.domain, to.shard);
            let stream = jetstream::new(self.client().await);
            let taken = stream.publish_with_headers(subject, headers, packet.payload).await.expect("publishes");
            taken.await.expect("is acknowledged");
        }
        .boxed()
    }

    fn forge(&self, forgery: Forgery) -> BoxFuture<'_, ()> {
        async move {
            let stranger = self.1.get_or_init(async || UntrustedClient::connect(&self.url()).await).await;
            stranger.write(forgery).await;
            stranger.flush().await;
        }
        .boxed()
    }

    fn forge_claim(&self, domain: Name, content: Bytes) -> BoxFuture<'_, ()> {
        async move {
            let stranger = self.1.get_or_init(async || UntrustedClient::connect(&self.url()).await).await;
            stranger.write_claim(&domain, content).await;
            stranger.flush().await;
        }
        .boxed()
    }

    fn refused(&self) -> BoxFuture<'_, usize> {
        async {
            let context = jetstream::new(self.client().await);
            let mut count = 0;
            let mut names = std::pin::pin!(context.stream_names());
            while let Some(Ok(name)) = futures_util::StreamExt::next(&mut names).await {
                if name.starts_with("whizbang_refused_") {
                    let mut stream = context.get_stream(name).await.expect("a stream");
                    count += usize::try_from(stream.info().await.expect("its state").state.messages).expect("fits");
                }
            }
            count
        }
        .boxed()
    }
}

/// The time limit for a message that must arrive in tests of bridges.
pub const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(30);
