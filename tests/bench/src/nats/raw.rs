//! The anchors: the same work with the NATS client alone, as efficiently as possible.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, consumer, stream};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use whizbang::derive::block_on;

use super::{BYTES, Measured, thread};
use crate::report::median;

/// The number of publications that wait for their acknowledgement.
const WINDOW: usize = 1000;

/// Measures a command through a stream to the connection of another thread; the reply is sent over core NATS before the ack.
pub(super) fn commands(url: &str, in_flight: usize, each: usize) -> Measured {
    let owner = thread(url, |url, ready, ended| async move {
        let client = async_nats::connect(url).await.expect("connects");
        let context = jetstream::new(client.clone());
        let config = stream::Config {
            name: "raw".to_owned(),
            subjects: vec!["raw.>".to_owned()],
            retention: stream::RetentionPolicy::WorkQueue,
            ..stream::Config::default()
        };
        let stream = context.create_stream(config).await.expect("creates");
        let consumer = stream.create_consumer(durable("owner")).await.expect("creates");
        let mut messages = consumer.messages().await.expect("pulls");
        let _ = ready.send(());
        let mut ended = ended.fuse();
        loop {
            tokio::select! {
                message = messages.next() => {
                    let Some(Ok(message)) = message else { continue };
                    let reply = message.headers.as_ref().and_then(|map| map.get("reply")).map(ToString::to_string);
                    client.publish(reply.expect("a reply subject"), message.payload.clone()).await.expect("replies");
                    message.ack().await.expect("acknowledges");
                }
                _ = &mut ended => break,
            }
        }
        context.delete_stream("raw").await.expect("deletes");
    });
    let measured = block_on(async {
        let client = async_nats::connect(url).await.expect("connects");
        let context = Rc::new(jetstream::new(client.clone()));
        let inbox = client.new_inbox();
        let waiting: Rc<RefCell<HashMap<String, oneshot::Sender<()>>>> = Rc::default();
        let mut replies = client.subscribe(format!("{inbox}.*")).await.expect("subscribes");
        let taking = Rc::clone(&waiting);
        let taker = tokio::task::spawn_local(async move {
            while let Some(reply) = replies.next().await {
                if let Some(waiting) = taking.borrow_mut().remove(reply.subject.as_str()) {
                    let _ = waiting.send(());
                }
            }
        });
        let measured = super::in_flight(in_flight, each, move |number| {
            let (context, waiting, reply) = (Rc::clone(&context), Rc::clone(&waiting), format!("{inbox}.{number}"));
            async move {
                let (done, replied) = oneshot::channel();
                waiting.borrow_mut().insert(reply.clone(), done);
                let mut headers = HeaderMap::new();
                headers.insert("reply", reply.as_str());
                let taken = context.publish_with_headers("raw.cmd", headers, payload()).await.expect("publishes");
                let (taken, replied) = tokio::join!(taken.into_future(), replied);
                taken.expect("is acknowledged");
                replied.expect("is replied");
            }
        })
        .await;
        taker.abort();
        measured
    });
    owner.end();
    measured
}

/// Measures events through a stream to subscribers with their own connections, each event applied once.
pub(super) fn events(url: &str, subscribers: usize, count: usize) -> f64 {
    let (counted, counts) = std::sync::mpsc::channel();
    let taking = thread(url, move |url, ready, ended| async move {
        let context = jetstream::new(async_nats::connect(&url).await.expect("connects"));
        let config =
            stream::Config { name: "raw".to_owned(), subjects: vec!["raw.>".to_owned()], ..stream::Config::default() };
        context.create_stream(config).await.expect("creates");
        let mut tasks = Vec::new();
        for number in 0..subscribers {
            let context = jetstream::new(async_nats::connect(&url).await.expect("connects"));
            let stream = context.get_stream("raw").await.expect("a stream");
            let consumer = stream.create_consumer(durable(&format!("s{number}"))).await.expect("creates");
            let mut messages = consumer.messages().await.expect("pulls");
            let counted = counted.clone();
            tasks.push(tokio::task::spawn_local(async move {
                let mut seen = HashSet::new();
                while seen.len() < count {
                    let message = messages.next().await.expect("the stream is open").expect("a message");
                    let id: u64 = message
                        .headers
                        .as_ref()
                        .and_then(|map| map.get("Nats-Msg-Id"))
                        .and_then(|id| id.as_str().parse().ok())
                        .expect("an id");
                    seen.insert(id);
                    message.ack().await.expect("acknowledges");
                }
                let _ = counted.send(Instant::now());
            }));
        }
        let _ = ready.send(());
        for task in tasks {
            task.await.expect("ends");
        }
        let _ = ended.await;
        context.delete_stream("raw").await.expect("deletes");
    });
    let begun = Instant::now();
    block_on(async {
        let context = jetstream::new(async_nats::connect(url).await.expect("connects"));
        let mut acknowledging = futures_util::stream::FuturesUnordered::new();
        for number in 0..count {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", number.to_string().as_str());
            let taken = context.publish_with_headers("raw.evt", headers, payload()).await.expect("publishes");
            acknowledging.push(taken.into_future());
            while acknowledging.len() >= WINDOW {
                acknowledging.next().await.expect("one is left").expect("is acknowledged");
            }
            while let Some(Some(taken)) = acknowledging.next().now_or_never() {
                taken.expect("is acknowledged");
            }
        }
        while let Some(taken) = acknowledging.next().await {
            taken.expect("is acknowledged");
        }
    });
    let last = (0..subscribers).map(|_| counts.recv_timeout(Duration::from_secs(120)).expect("ends")).max();
    let span = last.expect("a subscriber") - begun;
    taking.end();
    (count * subscribers) as f64 / span.as_secs_f64()
}

fn durable(name: &str) -> consumer::pull::Config {
    consumer::pull::Config {
        durable_name: Some(name.to_owned()),
        ack_policy: consumer::AckPolicy::Explicit,
        max_ack_pending: 20_000,
        ..consumer::pull::Config::default()
    }
}

fn payload() -> Bytes {
    Bytes::from(vec![7; BYTES])
}

/// Returns the median span.
pub(super) fn p50(spans: &[Duration]) -> f64 {
    median(spans.iter().map(|span| span.as_secs_f64() * 1e6))
}
