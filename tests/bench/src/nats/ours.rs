//! Commands and events between nodes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use whizbang::bridge::nats::NatsBridge;
use whizbang::bridge::subject::Namespace;
use whizbang::derive::block_on;
use whizbang::prelude::*;

use super::{BYTES, Measured, thread};

#[derive(Domain)]
pub(crate) struct Notes;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Notes, reply = u64)]
pub(crate) struct Write {
    #[key]
    book: String,
    text: Vec<u8>,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Notes)]
pub(crate) struct Written {
    text: Vec<u8>,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Notes, handles(Write), applies(Written))]
pub(crate) struct Book {
    notes: u64,
}

impl Handle<Write> for Book {
    fn handle(&self, write: Write, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Written { text: write.text });
        Ok(self.notes + 1)
    }
}

impl Apply<Written> for Book {
    fn apply(&mut self, _: &Written) {
        self.notes += 1;
    }
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Notes, reply = u64)]
pub(crate) struct HowMany {}

/// The number of events that all subscribers have projected.
static PROJECTED: AtomicU64 = AtomicU64::new(0);

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Written), answers(HowMany))]
pub(crate) struct Reader {
    books: BTreeMap<String, u64>,
}

impl Project<Written> for Reader {
    fn project(&mut self, _: &Written, about: &EventContext) {
        *self.books.entry(about.key.clone()).or_default() += 1;
        PROJECTED.fetch_add(1, Ordering::Relaxed);
    }
}

impl Answer<HowMany> for Reader {
    fn answer(&self, _: HowMany) -> u64 {
        self.books.values().sum()
    }
}

pub(crate) fn write(book: usize) -> Write {
    Write { book: format!("book-{book}"), text: vec![7; BYTES] }
}

pub(crate) async fn bridge(url: &str, run: u64) -> NatsBridge {
    // Each run has its own namespace, so that it ignores streams of the previous run.
    let namespace = Namespace::new(&format!("run{run}")).expect("a namespace");
    NatsBridge::builder(url).namespace(namespace).stream_bytes(64 << 20).connect().await.expect("connects")
}

pub(crate) fn next_run() -> u64 {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    RUNS.fetch_add(1, Ordering::Relaxed)
}

/// Measures commands to a node with this number of actor threads, from another node if there are none and from a client with its
/// own thread otherwise.
pub(super) fn commands(url: &str, threads: usize, in_flight: usize, each: usize) -> Measured {
    let run = next_run();
    let owner = thread(url, move |url, ready, ended| async move {
        let bridge = bridge(&url, run).await;
        let node = Node::builder("notes", MemoryStore::new())
            .threads(threads)
            .aggregate::<Book>()
            .bridge(bridge)
            .start()
            .await
            .expect("starts");
        let _ = ready.send(());
        let _ = ended.await;
        node.stop().await.expect("stops");
    });
    let measured = block_on(async {
        let bridge = bridge(url, run).await;
        let (client, node) = if threads == 0 {
            let node = Node::builder("caller", MemoryStore::new()).threads(0).bridge(bridge).start().await;
            let node = node.expect("starts");
            (node.client(), Some(node))
        } else {
            (Client::connect("caller", bridge).await.expect("connects"), None)
        };
        for book in 0..1000 {
            client.send(write(book)).await.expect("is handled");
        }
        let caller = client.clone();
        let measured = super::in_flight(in_flight, each, move |number| {
            let sending = caller.send(write(number % 1000));
            async move {
                sending.await.expect("is handled");
            }
        })
        .await;
        match node {
            Some(node) => node.stop().await.expect("stops"),
            None => client.disconnect().await,
        }
        measured
    });
    owner.end();
    measured
}

/// Measures events of a node to others, each with this number of actor threads.
pub(super) fn events(url: &str, threads: usize, subscribers: usize, count: usize) -> f64 {
    let run = next_run();
    PROJECTED.store(0, Ordering::Relaxed);
    let wanted = (count * subscribers) as u64;
    let (span, _) = block_on(async {
        let source = Node::builder("notes", MemoryStore::new())
            .threads(threads)
            .aggregate::<Book>()
            .bridge(bridge(url, run).await)
            .start()
            .await
            .expect("starts");
        let taking = thread(url, move |url, ready, ended| async move {
            let mut nodes = Vec::new();
            for number in 0..subscribers {
                let service = format!("reader-{number}");
                let node = Node::builder(&service, MemoryStore::new())
                    .threads(threads)
                    .projection::<Reader>()
                    .bridge(bridge(&url, run).await)
                    .start()
                    .await
                    .expect("starts");
                nodes.push(node);
            }
            let _ = ready.send(());
            let _ = ended.await;
            for node in nodes {
                let applied = node.client().query(HowMany {}).await.expect("answers");
                assert_eq!(applied, count as u64, "each event once");
                node.stop().await.expect("stops");
            }
        });
        let client = source.client();
        let begun = Instant::now();
        super::in_flight(256, count.div_ceil(256), move |number| {
            let sending = (number < count).then(|| client.send(write(number % 1000)));
            async move {
                if let Some(sending) = sending {
                    sending.await.expect("is handled");
                }
            }
        })
        .await;
        while PROJECTED.load(Ordering::Relaxed) < wanted {
            tokio::task::yield_now().await;
            tokio::time::timeout(std::time::Duration::from_millis(1), std::future::pending::<()>()).await.ok();
            assert!(begun.elapsed().as_secs() < 120, "{} of {wanted}", PROJECTED.load(Ordering::Relaxed));
        }
        let span = begun.elapsed();
        taking.end();
        source.stop().await.expect("stops");
        (span, ())
    });
    wanted as f64 / span.as_secs_f64()
}
