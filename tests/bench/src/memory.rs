//! The cost of an idle key: the memory of a live aggregate that has handled one command, against that of a bare actor.

use whizbang::derive::block_on;
use whizbang::{MemoryStore, Node};

use crate::account::{Account, deposit};
use crate::anchor::{Ping, echoes};
use crate::report::report;

const KEYS: usize = 100_000;

/// Measures resident pages. Earlier actors are kept alive, because freed memory would be reused and not counted.
pub(crate) fn idle_key() {
    block_on(async {
        let names: Vec<String> = (0..KEYS).map(|key| format!("account-{key}")).collect();
        let before = resident_bytes();
        let echoes = echoes(KEYS);
        for echo in &echoes {
            echo.send(Ping(deposit("account-1"))).await.expect("it answers");
        }
        let raw = resident_bytes() - before;
        let node = Node::builder("bank", MemoryStore::new())
            .aggregate::<Account>()
            .threads(0)
            .start()
            .await
            .expect("it starts");
        let client = node.client();
        let before = resident_bytes();
        for name in &names {
            client.send(deposit(name)).await.expect("it is handled");
        }
        let ours = resident_bytes() - before;
        let metrics = node.metrics();
        assert_eq!((metrics.activations, metrics.passivations), (KEYS as u64, 0), "all are live");
        report("memory_per_idle_key", "bytes", "a raw actix actor that has answered once", &[(each(ours), each(raw))]);
        node.stop().await.expect("it stops");
        drop(echoes);
    });
}

fn each(bytes: usize) -> f64 {
    bytes as f64 / KEYS as f64
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("it is Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number of pages");
    pages * 4096
}
