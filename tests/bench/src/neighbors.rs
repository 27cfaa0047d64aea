//! The cost of failing messages and a slow job for other messages: the same flow with and without them.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::Notify;
use whizbang::derive::block_on;
use whizbang::prelude::*;
use whizbang::{MemoryStore, Node};

use crate::report::{REPETITIONS, report};

/// The number of messages.
const MESSAGES: usize = 50_000;
/// The number of messages that one turn sends.
const BATCH: usize = 500;
const KEYS: usize = 1000;

static HANDLED: AtomicUsize = AtomicUsize::new(0);

#[derive(Domain)]
#[domain(name = "sender", shards = 1)]
struct Senders;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Senders)]
struct Send {
    #[key]
    sender: String,
    first: usize,
    /// One of this many messages fails; 0 for none. With jobs, a value above 0 makes the first one slow.
    failing: usize,
    jobs: bool,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Senders, handles(Send))]
struct Sender;

impl Handle<Send> for Sender {
    fn handle(&self, send: Send, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for n in send.first..send.first + BATCH {
            if send.jobs {
                let slow = n == 0 && send.failing > 0;
                effects.send(Work { key: format!("k{}", n % KEYS), slow });
            } else if send.failing > 0 && n % send.failing == 0 {
                effects.send(Receive { key: format!("failing-{n}"), fails: true });
            } else {
                effects.send(Receive { key: format!("k{}", n % KEYS), fails: false });
            }
        }
        Ok(())
    }
}

#[derive(Domain)]
#[domain(name = "taker", shards = 1)]
struct Receivers;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Receivers)]
struct Receive {
    #[key]
    key: String,
    fails: bool,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Receivers, handles(Receive))]
struct Receiver;

impl Handle<Receive> for Receiver {
    fn handle(&self, take: Receive, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        assert!(!take.fails, "it fails");
        HANDLED.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Domain)]
#[domain(name = "works", shards = 1)]
struct Works;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Works)]
struct Work {
    #[key]
    key: String,
    slow: bool,
}

#[derive(Worker)]
#[worker(domain = Works, performs(Work))]
struct Smith(Arc<Notify>);

impl Perform<Work> for Smith {
    async fn perform(&self, work: Work, _job: Job) -> Result<(), WorkError> {
        if work.slow {
            self.0.notified().await;
        } else {
            HANDLED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Measures the messages handled per second, while 1 % of all messages fail in each attempt.
pub(crate) fn failing_messages() {
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    pairs("failing_1_percent", "the same without failing messages", |failing| async move {
        let failing = if failing { 100 } else { 0 };
        let node = Node::builder("bench", MemoryStore::new()).aggregate::<Sender>().aggregate::<Receiver>();
        let node = node.threads(0).start().await.expect("it starts");
        let good = MESSAGES - MESSAGES.checked_div(failing).unwrap_or(0);
        let each = throughput(&node, good, failing, false).await;
        drop(node);
        each
    });
    std::panic::set_hook(silent);
}

/// Measures the jobs done per second, while one job takes longer than all others together.
pub(crate) fn slow_job() {
    pairs("slow_job", "the same without the slow job", |slow| async move {
        let release = Arc::new(Notify::new());
        let node = Node::builder("bench", MemoryStore::new()).aggregate::<Sender>().worker(Smith(Arc::clone(&release)));
        let node = node.threads(0).start().await.expect("it starts");
        let each = throughput(&node, MESSAGES - usize::from(slow), usize::from(slow), true).await;
        release.notify_waiters();
        drop(node);
        each
    });
}

/// Sends all messages. Returns the number of successful ones per second.
#[allow(clippy::disallowed_methods, reason = "the handlers count, and nothing wakes a reader of the count")]
async fn throughput(node: &Node, good: usize, failing: usize, jobs: bool) -> f64 {
    HANDLED.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    for first in (0..MESSAGES).step_by(BATCH) {
        let send = Send { sender: "s".to_owned(), first, failing, jobs };
        node.client().send(send).await.expect("it is handled");
    }
    while HANDLED.load(Ordering::Relaxed) < good {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    good as f64 / begun.elapsed().as_secs_f64()
}

fn pairs<T: Future<Output = f64>>(bench: &str, anchor: &str, run: impl Fn(bool) -> T) {
    block_on(async {
        let mut pairs = Vec::new();
        for _ in 0..=REPETITIONS {
            let without = run(false).await;
            pairs.push((run(true).await, without));
        }
        // The first warms up.
        report(bench, "1/s", anchor, pairs.get(1..).unwrap_or_default());
    });
}
