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

/// The number of messages sent, and the number in one turn of the sender.
const MESSAGES: usize = 50_000;
const BATCH: usize = 500;
const KEYS: usize = 1000;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

#[derive(Domain)]
#[domain(name = "sender", shards = 1)]
struct Senders;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Senders)]
struct Send {
    #[key]
    sender: String,
    first: usize,
    /// Every how many messages one fails; 0 for none. Of jobs the first is slow if it is not 0.
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
                effects.send(Take { key: format!("failing-{n}"), fails: true });
            } else {
                effects.send(Take { key: format!("k{}", n % KEYS), fails: false });
            }
        }
        Ok(())
    }
}

#[derive(Domain)]
#[domain(name = "taker", shards = 1)]
struct Takers;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Takers)]
struct Take {
    #[key]
    key: String,
    fails: bool,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Takers, handles(Take))]
struct Taker;

impl Handle<Take> for Taker {
    fn handle(&self, take: Take, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        assert!(!take.fails, "it fails");
        TAKEN.fetch_add(1, Ordering::Relaxed);
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
            TAKEN.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Messages to keys whose handlers succeed, taken in a second, while 1 % of all messages fail in each attempt.
pub(crate) fn failing_messages() {
    let silent = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    pairs("failing_1_percent", "the same without failing messages", |failing| async move {
        let failing = if failing { 100 } else { 0 };
        let node = Node::builder("bench", MemoryStore::new()).aggregate::<Sender>().aggregate::<Taker>();
        let node = node.threads(0).start().await.expect("it starts");
        let good = MESSAGES - MESSAGES.checked_div(failing).unwrap_or(0);
        let each = taken(&node, good, failing, false).await;
        drop(node);
        each
    });
    std::panic::set_hook(silent);
}

/// Jobs done in a second while one takes longer than all others together.
pub(crate) fn slow_job() {
    pairs("slow_job", "the same without the slow job", |slow| async move {
        let release = Arc::new(Notify::new());
        let node = Node::builder("bench", MemoryStore::new()).aggregate::<Sender>().worker(Smith(Arc::clone(&release)));
        let node = node.threads(0).start().await.expect("it starts");
        let each = taken(&node, MESSAGES - usize::from(slow), usize::from(slow), true).await;
        release.notify_waiters();
        drop(node);
        each
    });
}

/// Sends all messages. Returns how many good ones are handled in a second.
#[allow(clippy::disallowed_methods, reason = "the handlers count, and nothing wakes a reader of the count")]
async fn taken(node: &Node, good: usize, failing: usize, jobs: bool) -> f64 {
    TAKEN.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    for first in (0..MESSAGES).step_by(BATCH) {
        let send = Send { sender: "s".to_owned(), first, failing, jobs };
        node.client().send(send).await.expect("it is handled");
    }
    while TAKEN.load(Ordering::Relaxed) < good {
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
