//! Durable turns: an event, a handled command and its reply in a store on disk, against raw appends and flushes of as many bytes
//! in the same folder.
//!
//! On a busy core every flush waits for a tick of the scheduler, and every ratio becomes 1. A repetition in which the raw flush
//! takes longer than [`SLOWEST_FLUSH`] is discarded and reported.

pub(crate) mod activation;
pub(crate) mod keys;
mod raw;

use std::path::Path;
use std::time::{Duration, Instant};

use actix::Actor as _;
use whizbang::derive::block_on;
use whizbang::store::embedded::EmbeddedStore;
use whizbang::{Client, Node, NodeConfig};

use crate::account::{Account, deposit};
use crate::report::{REPETITIONS, median, report};
use raw::{Append, Gatherer};

/// In microseconds.
const SLOWEST_FLUSH: f64 = 500.0;

const KEYS: usize = 1000;

/// The figures of one repetition: appends or turns a second, and the 99th percentile of the wait, in ms.
#[derive(Clone, Copy)]
pub(crate) struct Rate {
    pub(crate) each_second: f64,
    pub(crate) p99: f64,
}

async fn open(folder: &Path) -> Node {
    let store = EmbeddedStore::open(folder.join("store")).expect("it opens");
    Node::builder("bank", store)
        .config(NodeConfig::default())
        .aggregate::<Account>()
        .threads(0)
        .start()
        .await
        .expect("it starts")
}

/// Returns the bytes of log per turn, including its share of the batch.
fn bytes_each(folder: &Path, turns: usize) -> usize {
    let mut used = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log-")) {
            let bytes = std::fs::read(path).expect("it can be read");
            used += bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0).saturating_sub(512);
        }
    }
    (used / turns).max(1)
}

/// Returns true if the disk is as fast as on a quiet machine.
pub(crate) fn is_quiet(folder: &Path) -> bool {
    let flush = median(raw::alone(folder, 200, 200).into_iter());
    if flush > SLOWEST_FLUSH {
        eprintln!("  discarded: a raw flush takes {flush:.0} us");
    }
    flush <= SLOWEST_FLUSH
}

/// Prints a row, unless every repetition was discarded.
pub(crate) fn print(bench: &str, unit: &str, anchor: &str, pairs: &[(f64, f64)]) {
    if pairs.is_empty() {
        eprintln!("  {bench}: nothing was measured, the machine is busy");
    } else {
        report(bench, unit, anchor, pairs);
    }
}

/// Measures one turn at a time.
pub(crate) fn alone() {
    const TURNS: usize = 2000;
    let mut pairs = Vec::new();
    for _ in 0..REPETITIONS {
        let folder = tempfile::tempdir().expect("a folder");
        if !is_quiet(folder.path()) {
            continue;
        }
        let task = async {
            let node = open(folder.path()).await;
            let client = node.client();
            client.send(deposit("ada")).await.expect("it is handled");
            let mut each = Vec::new();
            for _ in 0..TURNS {
                let begun = Instant::now();
                client.send(deposit("ada")).await.expect("it is handled");
                each.push(begun.elapsed().as_secs_f64() * 1e6);
            }
            node.stop().await.expect("it stops");
            each
        };
        let ours = block_on(task);
        let raw = raw::alone(folder.path(), bytes_each(&folder.path().join("store"), TURNS + 1), TURNS);
        pairs.push((median(ours.into_iter()), median(raw.into_iter())));
    }
    print("durable_alone", "us", "raw write and fdatasync of as many bytes, on the same thread", &pairs);
}

/// Runs tasks that each send commands to one of `keys` repeatedly.
pub(crate) async fn many(tasks: usize, keys: usize, each: usize, client: &Client) -> Rate {
    let ask = |task: usize| {
        let client = client.clone();
        async move {
            let name = format!("account-{}", task % keys);
            let mut waits = Vec::with_capacity(each);
            for _ in 0..each {
                let begun = Instant::now();
                client.send(deposit(&name)).await.expect("it is handled");
                waits.push(begun.elapsed());
            }
            waits
        }
    };
    measure(tasks, ask).await
}

pub(crate) async fn measure<F>(tasks: usize, ask: impl Fn(usize) -> F) -> Rate
where
    F: Future<Output = Vec<Duration>> + 'static,
{
    let begun = Instant::now();
    let tasks: Vec<_> = (0..tasks).map(|task| tokio::task::spawn_local(ask(task))).collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await.expect("it ends"));
    }
    let took = begun.elapsed().as_secs_f64();
    waits.sort_unstable();
    let p99 = waits.get(waits.len() * 99 / 100).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3);
    Rate { each_second: waits.len() as f64 / took, p99 }
}

async fn raw_many(folder: &Path, bytes: usize, each: usize) -> Rate {
    let gatherer = Gatherer::start(folder);
    let addrs: Vec<_> = (0..KEYS).map(|_| gatherer.writer(bytes).start()).collect();
    let ask = |task: usize| {
        let addr = addrs.get(task).expect("an actor for each task").clone();
        async move {
            let mut waits = Vec::with_capacity(each);
            for _ in 0..each {
                let begun = Instant::now();
                addr.send(Append).await.expect("it answers");
                waits.push(begun.elapsed());
            }
            waits
        }
    };
    measure(KEYS, ask).await
}

/// Measures concurrent turns: one of each of 1,000 keys, and 256 of one key.
pub(crate) fn together() {
    const EACH: usize = 300;
    let (mut rates, mut waits, mut hot) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=REPETITIONS {
        let folder = tempfile::tempdir().expect("a folder");
        if !is_quiet(folder.path()) {
            continue;
        }
        let (ours, one_key) = block_on(async {
            let node = open(folder.path()).await;
            many(KEYS, KEYS, 1, &node.client()).await;
            let ours = many(KEYS, KEYS, EACH, &node.client()).await;
            node.stop().await.expect("it stops");
            let bytes = bytes_each(&folder.path().join("store"), KEYS * (EACH + 1));
            std::fs::remove_dir_all(folder.path().join("store")).expect("it is deleted");
            let node = open(folder.path()).await;
            many(256, 1, 1, &node.client()).await;
            let one_key = many(256, 1, EACH, &node.client()).await;
            node.stop().await.expect("it stops");
            ((ours, bytes), one_key)
        });
        let (ours, bytes) = ours;
        let raw = block_on(raw_many(folder.path(), bytes, EACH));
        rates.push((ours.each_second, raw.each_second));
        waits.push((ours.p99, raw.p99));
        hot.push((one_key.each_second, ours.each_second));
    }
    // The first pair is a warm-up.
    let kept = |pairs: &[(f64, f64)]| pairs.get(1..).unwrap_or_default().to_vec();
    let anchor = "as many bytes behind 1,000 raw actors, gathered and flushed by a thread";
    print("durable_1000_keys", "turns/s", anchor, &kept(&rates));
    print("durable_1000_keys_p99", "ms", anchor, &kept(&waits));
    print("durable_hot_key", "turns/s", "1,000 keys at once", &kept(&hot));
}
