//! A store with many keys: their memory, and their effect on the turns of live keys.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use whizbang::derive::block_on;
use whizbang::store::embedded::EmbeddedStore;
use whizbang::{Client, Node, NodeConfig};

use super::{Rate, bytes_each, is_quiet, measure, print};
use crate::account::{Account, deposit};
use crate::report::REPETITIONS;

/// The number of keys with turns in each of the two stores.
const FEW: usize = 10_000;
const MANY: usize = 1_000_000;

/// The number of turns in flight.
const TASKS: usize = 1_000;

/// The number of turns of passivated keys that each task requests.
const SPREAD: usize = 20;

async fn open(folder: &Path) -> Node {
    let store = EmbeddedStore::open(folder).expect("it opens");
    // The passivated keys are those without further commands.
    let config = NodeConfig { live_actors: 2 * FEW, passivate_after: Duration::from_secs(1), ..NodeConfig::default() };
    Node::builder("bank", store).config(config).aggregate::<Account>().threads(0).start().await.expect("it starts")
}

/// Runs `each` turns in each of the tasks; `key` maps a rising number to the key.
async fn turns(client: &Client, each: usize, key: fn(usize) -> usize) -> Rate {
    let ask = |task: usize| {
        let client = client.clone();
        async move {
            let mut waits = Vec::with_capacity(each);
            for nth in 0..each {
                let name = format!("account-{}", key(nth * TASKS + task));
                let begun = Instant::now();
                client.send(deposit(&name)).await.expect("it is handled");
                waits.push(begun.elapsed());
            }
            waits
        }
    };
    measure(TASKS, ask).await
}

/// Measures turns of 10,000 live keys.
async fn of_few(folder: &Path) -> Rate {
    let node = open(folder).await;
    turns(&node.client(), FEW / TASKS, |number| number % FEW).await;
    let rate = turns(&node.client(), 100, |number| number % FEW).await;
    node.stop().await.expect("it stops");
    rate
}

/// Measures turns spread over all keys, nearly each of which needs an activation. Large steps avoid neighbors in the log.
async fn of_all(folder: &Path) -> Rate {
    let node = open(folder).await;
    let rate = turns(&node.client(), SPREAD, |number| (number * 382_981 + 17) % MANY).await;
    node.stop().await.expect("it stops");
    rate
}

fn fill(folder: &Path, keys: usize) {
    block_on(async {
        let node = open(folder).await;
        let client = node.client();
        match keys {
            FEW => turns(&client, FEW / TASKS, |number| number).await,
            _ => turns(&client, MANY / TASKS, |number| number).await,
        };
        node.stop().await.expect("it stops");
    });
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("VmRSS on Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS on Linux");
    line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") * 1024.0
}

/// The argument of the process that measures the memory: this process would reuse memory that it has freed.
pub(crate) const MEMORY: &str = "keys_1m_memory";

/// Opens the store in `folder` and prints its memory, against a map of as many hashes and positions.
pub(crate) fn memory(folder: &Path) {
    let before = resident();
    let store = EmbeddedStore::open(folder).expect("it opens");
    let index = resident() - before;
    let before = resident();
    let raw: HashMap<[u64; 2], [u64; 2]> = (0..MANY as u64).map(|key| ([key, key], [key, key])).collect();
    let map = resident() - before;
    std::hint::black_box(&raw);
    let pair = (index / MANY as f64, map / MANY as f64);
    print(MEMORY, "bytes a key", "a map of 1,000,000 hashes of 16 bytes to places of 16 bytes", &[pair]);
    eprintln!("  the whole process: {:.0} MB", resident() / 1e6);
    drop(store);
}

pub(crate) fn live() {
    compare("keys_1m", of_few);
}

pub(crate) fn spread() {
    compare("keys_1m_spread", of_all);
}

/// Measures turns in the store with many keys against turns of few keys in a store without others.
fn compare(bench: &str, done: impl AsyncFn(&Path) -> Rate) {
    let folder = tempfile::tempdir().expect("a folder");
    let (few, many) = (folder.path().join("few"), folder.path().join("many"));
    fill(&few, FEW);
    let begun = Instant::now();
    fill(&many, MANY);
    let filled = begun.elapsed().as_secs_f64();
    eprintln!("  {MANY} keys with a turn each made in {filled:.1} s, {} bytes of log each", bytes_each(&many, MANY));
    let program = std::env::current_exe().expect("this program");
    let status = std::process::Command::new(program).arg(MEMORY).arg(&many).status().expect("it runs");
    assert!(status.success(), "the memory was not measured");
    let mut pairs = Vec::new();
    for _ in 0..=REPETITIONS {
        if !is_quiet(folder.path()) {
            continue;
        }
        let (of_few, of_many) = (block_on(of_few(&few)), block_on(done(&many)));
        pairs.push((of_many.each_second, of_few.each_second));
    }
    // The first pair is a warm-up.
    let kept = pairs.get(1..).unwrap_or_default();
    print(bench, "turns/s", "10,000 live keys of a store with no others", kept);
}
