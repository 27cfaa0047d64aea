//! A turn of a live aggregate with the memory store, against a raw actix request.

use std::time::Instant;

use whizbang::derive::block_on;
use whizbang::layer::Layer;
use whizbang::{Client, MemoryStore, Node};

use crate::account::{Account, deposit};
use crate::anchor::{Echo, Ping, echoes};
use crate::report::{REPETITIONS, nanos_each, report};

const REQUESTS: usize = 200_000;

pub(crate) fn one_key() {
    block_on(sequential("turn_1_key", 1));
}

pub(crate) fn ten_thousand_keys() {
    block_on(sequential("turn_10k_keys", 10_000));
}

/// Runs as a task, because the future of `block_on` parks the thread at every wait and a task does not.
async fn sequential(bench: &'static str, keys: usize) {
    let task = tokio::task::spawn_local(async move {
        let names: Vec<String> = (0..keys).map(|key| format!("account-{key}")).collect();
        let mut pairs = Vec::new();
        for _ in 0..=REPETITIONS {
            let raw = raw(keys).await;
            let node = Node::builder("bank", MemoryStore::new())
                .aggregate::<Account>()
                .threads(0)
                .start()
                .await
                .expect("it starts");
            let client = node.client();
            for name in &names {
                client.send(deposit(name)).await.expect("it is handled");
            }
            let ours = ours(&client, &names).await;
            node.stop().await.expect("it stops");
            pairs.push((ours, raw));
        }
        // The first pair is a warm-up.
        report(bench, "ns", "raw actix send().await on the same thread", pairs.get(1..).unwrap_or_default());
    });
    task.await.expect("it ends");
}

async fn raw(keys: usize) -> f64 {
    let addrs = echoes(keys);
    let name = "account-1";
    let begun = Instant::now();
    for request in 0..REQUESTS {
        if let Some(addr) = addrs.get(request % keys) {
            let cents = addr.send(Ping(deposit(name))).await.expect("it answers");
            std::hint::black_box(cents);
        }
    }
    nanos_each(begun.elapsed(), REQUESTS)
}

async fn ours(client: &Client, names: &[String]) -> f64 {
    let begun = Instant::now();
    for request in 0..REQUESTS {
        if let Some(name) = names.get(request % names.len()) {
            let cents = client.send(deposit(name)).await.expect("it is handled");
            std::hint::black_box(cents);
        }
    }
    nanos_each(begun.elapsed(), REQUESTS)
}

struct Empty;

impl Layer for Empty {}

/// Measures turns inside three empty layers, against the same turns without them.
pub(crate) fn layered() {
    block_on(async {
        let task = tokio::task::spawn_local(async {
            let names = vec!["account-1".to_owned()];
            let mut pairs = Vec::new();
            for _ in 0..=REPETITIONS {
                let mut measured = [0.0; 2];
                for (layers, nanos) in [0, 3].into_iter().zip(&mut measured) {
                    let mut builder = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().threads(0);
                    for _ in 0..layers {
                        builder = builder.layer(Empty);
                    }
                    let node = builder.start().await.expect("it starts");
                    let client = node.client();
                    client.send(deposit("account-1")).await.expect("it is handled");
                    *nanos = ours(&client, &names).await;
                    node.stop().await.expect("it stops");
                }
                let [bare, layered] = measured;
                pairs.push((layered, bare));
            }
            // The first pair is a warm-up.
            report("turn_3_layers", "ns", "the same turn without layers", pairs.get(1..).unwrap_or_default());
        });
        task.await.expect("it ends");
    });
}

/// Measures 256 requests in flight from this thread to actors on another.
pub(crate) fn in_flight() {
    const KEYS: usize = 1000;
    const TASKS: usize = 256;
    const EACH: usize = 1000;
    let mut pairs = Vec::new();
    for _ in 0..=REPETITIONS {
        let raw = block_on(async {
            let (send, addrs) = std::sync::mpsc::channel::<Vec<actix::Addr<Echo>>>();
            let (end, ended) = tokio::sync::oneshot::channel::<()>();
            let thread = std::thread::spawn(move || {
                block_on(async move {
                    send.send(echoes(KEYS)).expect("the receiver waits");
                    let _ = ended.await;
                });
            });
            let addrs = addrs.recv().expect("they start");
            let begun = Instant::now();
            let tasks: Vec<_> = (0..TASKS)
                .map(|task| {
                    let addrs = addrs.clone();
                    tokio::task::spawn_local(async move {
                        for request in 0..EACH {
                            if let Some(addr) = addrs.get((task * 7 + request) % KEYS) {
                                addr.send(Ping(deposit("account-1"))).await.expect("it answers");
                            }
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("it ends");
            }
            let each = nanos_each(begun.elapsed(), TASKS * EACH);
            let _ = end.send(());
            thread.join().expect("it ends");
            each
        });
        let ours = block_on(async {
            let node = Node::builder("bank", MemoryStore::new())
                .aggregate::<Account>()
                .threads(1)
                .start()
                .await
                .expect("it starts");
            let client = node.client();
            for key in 0..KEYS {
                client.send(deposit(&format!("account-{key}"))).await.expect("it is handled");
            }
            let begun = Instant::now();
            let tasks: Vec<_> = (0..TASKS)
                .map(|task| {
                    let client = client.clone();
                    tokio::task::spawn_local(async move {
                        for request in 0..EACH {
                            let name = format!("account-{}", (task * 7 + request) % KEYS);
                            client.send(deposit(&name)).await.expect("it is handled");
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("it ends");
            }
            let each = nanos_each(begun.elapsed(), TASKS * EACH);
            node.stop().await.expect("it stops");
            each
        });
        pairs.push((ours, raw));
    }
    report("turn_256_in_flight", "ns", "raw actix send().await to another thread", pairs.get(1..).unwrap_or_default());
}
