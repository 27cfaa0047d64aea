//! A nats-server as a broker of the broker suite: streams and consumers through async-nats.

use std::sync::Mutex;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, Stream};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::OnceCell;
use whizbang::testing::broker::{
    Acknowledgement, Broker, BrokerStream, ConsumerSettings, Discard, PublishAck, PublishError, ReceivedMessage,
    Retention, StreamSettings,
};

use super::{NatsServer, Release};

/// The time limit for the first response after a restart.
const START: Duration = Duration::from_secs(20);

/// A broker with one server per case.
pub struct JetStreamBroker {
    server: Mutex<NatsServer>,
    client: OnceCell<Client>,
}

impl JetStreamBroker {
    /// Starts a server.
    pub fn start(release: Release) -> Self {
        Self { server: Mutex::new(NatsServer::start(release)), client: OnceCell::new() }
    }

    async fn client(&self) -> &Client {
        let url = self.server.lock().expect("no test has panicked").url();
        self.client.get_or_init(async || async_nats::connect(url).await.expect("connects")).await
    }

    async fn context(&self) -> Context {
        jetstream::new(self.client().await.clone())
    }

    async fn stream(&self, name: &str) -> Option<Stream> {
        self.context().await.get_stream(name).await.ok()
    }

    async fn consumer(&self, stream: &str, name: &str) -> Option<PullConsumer> {
        self.stream(stream).await?.get_consumer(name).await.ok()
    }
}

impl Broker for JetStreamBroker {
    const VIRTUAL_TIME: bool = false;

    fn create_stream<'a>(&'a self, name: &'a str, settings: StreamSettings) -> BoxFuture<'a, ()> {
        async move {
            let config = Config {
                name: name.to_owned(),
                subjects: vec![name.to_owned()],
                retention: match settings.retention {
                    Retention::WorkQueue => RetentionPolicy::WorkQueue,
                    Retention::Limits => RetentionPolicy::Limits,
                },
                discard: match settings.discard {
                    Discard::New => DiscardPolicy::New,
                    Discard::Old => DiscardPolicy::Old,
                },
                max_messages: if settings.max_messages == 0 { -1 } else { settings.max_messages.cast_signed() },
                duplicate_window: settings.duplicate_window,
                ..Config::default()
            };
            self.context().await.create_stream(config).await.expect("makes a stream");
        }
        .boxed()
    }

    fn delete_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        async move {
            self.context().await.delete_stream(name).await.expect("deletes a stream");
        }
        .boxed()
    }

    fn purge_stream<'a>(&'a self, name: &'a str) -> BoxFuture<'a, ()> {
        async move {
            self.stream(name).await.expect("the stream is there").purge().await.expect("empties a stream");
        }
        .boxed()
    }

    fn state<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Option<BrokerStream>> {
        async move {
            let mut stream = self.stream(name).await?;
            let info = stream.info().await.expect("its state");
            let state = &info.state;
            Some(BrokerStream {
                incarnation: info.created.to_string(),
                first: state.first_sequence,
                last: state.last_sequence,
                messages: state.messages,
            })
        }
        .boxed()
    }

    fn create_consumer<'a>(&'a self, stream: &'a str, name: &'a str, settings: ConsumerSettings) -> BoxFuture<'a, ()> {
        async move {
            let config = pull::Config {
                durable_name: Some(name.to_owned()),
                ack_policy: AckPolicy::Explicit,
                ack_wait: settings.ack_wait,
                max_ack_pending: i64::try_from(settings.max_ack_pending).expect("fits"),
                max_deliver: -1,
                ..pull::Config::default()
            };
            let stream = self.stream(stream).await.expect("the stream is there");
            stream.create_consumer(config).await.expect("makes a consumer");
        }
        .boxed()
    }

    fn delete_consumer<'a>(&'a self, stream: &'a str, name: &'a str) -> BoxFuture<'a, ()> {
        async move {
            let stream = self.stream(stream).await.expect("the stream is there");
            stream.delete_consumer(name).await.expect("deletes a consumer");
        }
        .boxed()
    }

    fn publish<'a>(
        &'a self,
        stream: &'a str,
        id: Option<&'a str>,
        payload: &'a [u8],
    ) -> BoxFuture<'a, Result<PublishAck, PublishError>> {
        async move {
            let mut headers = HeaderMap::new();
            if let Some(id) = id {
                headers.insert("Nats-Msg-Id", id);
            }
            let context = self.context().await;
            let sent = context.publish_with_headers(stream.to_owned(), headers, payload.to_vec().into()).await;
            match sent.expect("is sent").await {
                Ok(taken) => Ok(PublishAck { sequence: taken.sequence, duplicate: taken.duplicate }),
                Err(error) if error.kind() == PublishErrorKind::StreamNotFound => Err(PublishError::NoStream),
                Err(error) if error.to_string().contains("maximum messages") => Err(PublishError::Full),
                Err(error) => panic!("{error}"),
            }
        }
        .boxed()
    }

    fn pull<'a>(
        &'a self,
        stream: &'a str,
        consumer: &'a str,
        count: usize,
        wait: Duration,
    ) -> BoxFuture<'a, Option<Vec<ReceivedMessage>>> {
        async move {
            let from = self.consumer(stream, consumer).await?;
            let mut batch = from.batch().max_messages(count).expires(wait).messages().await.expect("is asked");
            let mut taken = Vec::new();
            while let Some(message) = batch.next().await {
                let message = message.expect("a message");
                let info = message.info().expect("numbers of its own");
                taken.push(ReceivedMessage {
                    stream: stream.to_owned(),
                    consumer: consumer.to_owned(),
                    sequence: info.stream_sequence,
                    deliveries: u32::try_from(info.delivered).expect("fits"),
                    payload: message.payload.to_vec(),
                    reply: message.reply.as_ref().expect("an acknowledgement subject").to_string(),
                });
            }
            Some(taken)
        }
        .boxed()
    }

    fn acknowledge<'a>(&'a self, message: &'a ReceivedMessage, acknowledgement: Acknowledgement) -> BoxFuture<'a, ()> {
        async move {
            let word = match acknowledgement {
                Acknowledgement::Ack => "+ACK".to_owned(),
                Acknowledgement::Nak(wait) if wait.is_zero() => "-NAK".to_owned(),
                Acknowledgement::Nak(wait) => format!("-NAK {{\"delay\":{}}}", wait.as_nanos()),
                Acknowledgement::InProgress => "+WPI".to_owned(),
                Acknowledgement::Term => "+TERM".to_owned(),
            };
            let client = self.client().await;
            let said = client.request(message.reply.clone(), word.into());
            // The server confirms an acknowledgement, unless the message is not pending.
            let _ = tokio::time::timeout(Duration::from_millis(500), said).await;
        }
        .boxed()
    }

    fn restart(&self) -> BoxFuture<'_, ()> {
        async {
            self.server.lock().expect("no test has panicked").restart();
            let answers = async {
                while self.context().await.query_account().await.is_err_and(|error| error.to_string().contains("timed"))
                {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(START, answers).await.expect("the server responds again");
        }
        .boxed()
    }
}
