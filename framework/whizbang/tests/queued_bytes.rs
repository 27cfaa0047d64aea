//! Bytes of commands that wait for a busy key or a slow worker: beyond the bound callers are refused, other keys are not.
//! The clock is paused.
#![cfg(feature = "testing")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Semaphore;
use whizbang::prelude::*;
use whizbang::{Retry, SendError};

/// The payload of each command.
const LARGE: usize = 256 * 1024;
/// The bound of one key, in such commands.
const PER_KEY: usize = (16 << 20) / LARGE;
/// The bound of a thread.
const PER_THREAD: usize = (64 << 20) / LARGE;

#[derive(Domain)]
#[domain(name = "press", shards = 1)]
struct Press;

/// A command that panics in its first attempt if the key begins with `slow`, so the key is in back-off.
#[derive(Command, Clone, Serialize, Deserialize)]
#[command(domain = Press)]
struct Print {
    #[key]
    roll: String,
    picture: Vec<u8>,
    panics: bool,
}

/// A job.
#[derive(Command, Clone, Serialize, Deserialize)]
#[command(domain = Press)]
struct Scan {
    #[key]
    roll: String,
    picture: Vec<u8>,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Press)]
struct Printed {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Press, handles(Print), applies(Printed))]
struct Roll {}

thread_local! {
    static FAILURES: AtomicUsize = const { AtomicUsize::new(0) };
}

impl Handle<Print> for Roll {
    fn handle(&self, print: Print, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let left = |failures: &AtomicUsize| {
            failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        };
        assert!(!(print.panics && FAILURES.with(left)), "planned: the roll is slow");
        effects.record(Printed {});
        Ok(())
    }
}

impl Apply<Printed> for Roll {
    fn apply(&mut self, _: &Printed) {}
}

#[derive(Worker)]
#[worker(domain = Press, performs(Scan))]
struct Scanner(Arc<Semaphore>);

impl Perform<Scan> for Scanner {
    async fn perform(&self, _: Scan, _: Job) -> Result<(), WorkError> {
        let _permit = self.0.acquire().await;
        Ok(())
    }
}

async fn start(scanner: &Arc<Semaphore>) -> Node {
    let hour = Duration::from_secs(3600);
    Node::builder("press", MemoryStore::new())
        .threads(0)
        .aggregate::<Roll>()
        .worker(Scanner(Arc::clone(scanner)))
        .retry(Retry { attempts: 2, first: hour, longest: hour })
        .start()
        .await
        .unwrap()
}

fn print(roll: &str, bytes: usize) -> Print {
    Print { roll: roll.to_owned(), picture: vec![7; bytes], panics: roll.starts_with("slow") }
}

/// Returns the numbers of commands that were done and refused as busy.
fn counted(outcomes: Vec<Result<(), SendError>>) -> (usize, usize) {
    let busy = outcomes.iter().filter(|outcome| matches!(outcome, Err(SendError::Busy { .. }))).count();
    let done = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(busy + done, outcomes.len(), "{outcomes:?}");
    (done, busy)
}

/// Returns how many of the commands wait, after `before` refusals of earlier ones.
async fn waiting(node: &Node, sent: usize, before: u64) -> usize {
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    sent - usize::try_from(node.metrics().busy - before).unwrap()
}

async fn paused<F: Future<Output = ()>>(test: F) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn large_commands_to_a_busy_key_are_refused() {
    paused(async {
        let node = start(&Arc::new(Semaphore::new(1))).await;
        let client = node.client();
        // With a message id the command is queued in an envelope, otherwise as a typed value.
        for (round, has_id) in [(0, false), (1, true)] {
            FAILURES.with(|failures| failures.store(1, Ordering::Relaxed));
            let (slow, before) = (format!("slow{round}"), node.metrics().busy);
            let sends = (0..3 * PER_KEY).map(|_| {
                let send = client.send(print(&slow, LARGE)).no_retry();
                if has_id { send.id(client.new_id()) } else { send }
            });
            let sends = tokio::task::spawn_local(join_all(sends.collect::<Vec<_>>()));
            while node.metrics().retries <= round {
                tokio::task::yield_now().await;
            }
            let waiting = waiting(&node, 3 * PER_KEY, before).await;
            assert!(waiting < PER_KEY && waiting > PER_KEY / 2, "{waiting} of {PER_KEY} wait");
            // Other callers are served, and small commands to the key as well.
            client.send(print("fast", LARGE)).no_retry().await.unwrap();
            let (done, busy) = counted(sends.await.unwrap());
            assert_eq!(done, waiting);
            assert!(busy > PER_KEY, "{busy}");
        }
        client.send(print("slow0", LARGE)).no_retry().await.unwrap();
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn waiting_commands_of_all_keys_are_bounded_in_bytes() {
    paused(async {
        let node = start(&Arc::new(Semaphore::new(1))).await;
        let client = node.client();
        FAILURES.with(|failures| failures.store(8, Ordering::Relaxed));
        let sends = (0..8 * PER_KEY).map(|n| client.send(print(&format!("slow{}", n % 8), LARGE)).no_retry());
        let sends = tokio::task::spawn_local(join_all(sends.collect::<Vec<_>>()));
        while node.metrics().retries < 8 {
            tokio::task::yield_now().await;
        }
        let waiting = waiting(&node, 8 * PER_KEY, 0).await;
        assert!(waiting < PER_THREAD && waiting > PER_THREAD / 2, "{waiting} of {PER_THREAD} wait");
        let (done, _) = counted(sends.await.unwrap());
        assert_eq!(done, waiting);
        client.send(print("fast", LARGE)).no_retry().await.unwrap();
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn jobs_that_wait_are_bounded_in_bytes() {
    paused(async {
        let scanner = Arc::new(Semaphore::new(0));
        let node = start(&scanner).await;
        let client = node.client();
        let scan = |n: usize| Scan { roll: format!("r{n}"), picture: vec![7; LARGE] };
        let mut sends = Vec::new();
        for n in 0..2 * PER_THREAD {
            sends.push(tokio::task::spawn_local(client.send(scan(n)).no_retry().into_future()));
            // The thread takes it before the next one.
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
        }
        let waiting = waiting(&node, 2 * PER_THREAD, 0).await;
        assert!(waiting < PER_THREAD && waiting > PER_THREAD / 2, "{waiting} of {PER_THREAD} wait");
        // Commands to actors have a bound of their own.
        client.send(print("fast", LARGE)).no_retry().await.unwrap();
        scanner.add_permits(1);
        let outcomes = join_all(sends).await.into_iter().map(Result::unwrap).collect();
        assert_eq!(counted(outcomes).0, waiting);
        node.stop().await.unwrap();
    })
    .await;
}
