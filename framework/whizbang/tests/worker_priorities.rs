//! Priorities of jobs: which of those that wait begins first, and the bounds for the others.

mod eventually;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eventually::eventually;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use whizbang::layer::Call;
use whizbang::prelude::*;
use whizbang::{Priority, WorkerOptions};

#[derive(Domain)]
#[domain(name = "presses", shards = 1)]
struct Presses;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Presses)]
struct Print {
    #[key]
    page: String,
    number: u32,
}

/// Has pages printed: so many of low priority, then so many urgent ones. The same key for all, or one for each.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Presses)]
struct Issue {
    #[key]
    paper: String,
    low: u32,
    urgent: u32,
    same: bool,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Presses, handles(Issue))]
struct Paper;

impl Handle<Issue> for Paper {
    fn handle(&self, issue: Issue, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for number in 0..issue.low + issue.urgent {
            let priority = if number < issue.low { "low" } else { "urgent" };
            let page = if issue.same { "same".to_owned() } else { format!("{priority}{number}") };
            effects.send(Print { page, number }).header("priority", priority);
        }
        Ok(())
    }
}

/// The press: pages in the order in which their jobs began. A job ends when it gets a permit.
struct Press {
    begun: Mutex<Vec<(Priority, u32)>>,
    open: Semaphore,
    /// Calls of the rule.
    asked: AtomicUsize,
}

impl Press {
    fn closed() -> Arc<Self> {
        Arc::new(Self { begun: Mutex::default(), open: Semaphore::new(0), asked: AtomicUsize::new(0) })
    }

    /// Lets all jobs end.
    fn open(&self) {
        self.open.add_permits(1_000);
    }

    fn begun(&self) -> Vec<(Priority, u32)> {
        self.begun.lock().clone()
    }

    /// Options with priorities by header.
    fn options(self: &Arc<Self>) -> WorkerOptions {
        let press = Arc::clone(self);
        WorkerOptions::new().priority(move |call| {
            press.asked.fetch_add(1, Ordering::Relaxed);
            by_header(call.header("priority"))
        })
    }
}

fn by_header(header: Option<&str>) -> Priority {
    match header {
        Some("urgent") => Priority::Urgent,
        Some("low") => Priority::Low,
        _ => Priority::Normal,
    }
}

#[derive(Worker)]
#[worker(domain = Presses, performs(Print))]
struct Printer(Arc<Press>);

impl Perform<Print> for Printer {
    async fn perform(&self, print: Print, job: Job) -> Result<(), WorkError> {
        self.0.begun.lock().push((by_header(job.header("priority")), print.number));
        drop(self.0.open.acquire().await);
        Ok(())
    }
}

async fn start(store: &MemoryStore, press: &Arc<Press>, options: WorkerOptions) -> Node {
    let node = Node::builder("presses", store.clone()).threads(0).aggregate::<Paper>();
    node.worker_with(Printer(Arc::clone(press)), options).start().await.unwrap()
}

/// Sends a page in the background.
fn print(node: &Node, priority: &'static str, number: u32) -> tokio::task::JoinHandle<()> {
    let client = node.client().clone();
    let print = Print { page: format!("{priority}{number}"), number };
    tokio::task::spawn_local(async move { client.send(print).header("priority", priority).await.unwrap() })
}

/// Returns the indices of a priority.
fn places(begun: &[(Priority, u32)], priority: Priority) -> Vec<usize> {
    begun.iter().enumerate().filter(|(_, (of, _))| *of == priority).map(|(at, _)| at).collect()
}

/// Checks that the jobs of each priority began in order.
fn assert_in_order(begun: &[(Priority, u32)]) {
    for priority in [Priority::Low, Priority::Normal, Priority::Urgent] {
        let numbers: Vec<_> = begun.iter().filter(|(of, _)| *of == priority).map(|(_, number)| *number).collect();
        assert!(numbers.is_sorted(), "{priority:?}: {numbers:?}");
    }
}

#[whizbang::test]
async fn low_priority_does_not_starve_in_a_flood_of_urgent_jobs() {
    let press = Press::closed();
    let node = start(&MemoryStore::new(), &press, press.options().jobs(1)).await;
    let mut sent = vec![print(&node, "first", 0)];
    eventually(async || press.begun().len() == 1).await;
    sent.extend((0..4).map(|number| print(&node, "low", number)));
    sent.extend((0..12).map(|number| print(&node, "normal", number)));
    sent.extend((0..150).map(|number| print(&node, "urgent", number)));
    eventually(async || press.asked.load(Ordering::Relaxed) == sent.len()).await;
    press.open();
    for sent in sent {
        sent.await.unwrap();
    }
    let begun = &press.begun()[1..];
    assert_in_order(begun);
    let (low, normal) = (places(begun, Priority::Low), places(begun, Priority::Normal));
    // One job had left the admission queue before the others arrived. Then the stated bounds, and no less: urgent jobs go first.
    assert_eq!(low, [0, 17, 34, 51]);
    assert!(normal[0] == 5 && normal.windows(2).all(|pair| (5..=6).contains(&(pair[1] - pair[0]))), "{normal:?}");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn recorded_jobs_overtake_by_priority_and_after_a_restart() {
    let (store, press) = (MemoryStore::new(), Press::closed());
    let node = start(&store, &press, press.options().jobs(1)).await;
    node.client().send(Issue { paper: "p".into(), low: 40, urgent: 12, same: false }).await.unwrap();
    eventually(async || press.begun().len() == 1 && node.metrics().deferred == 51).await;
    drop(node);
    // All of them are read when the node starts again; the first one has the place.
    press.begun.lock().clear();
    let node = start(&store, &press, press.options().jobs(1)).await;
    eventually(async || press.begun().len() == 1 && node.metrics().deferred >= 50).await;
    eventually(async || press.asked.load(Ordering::Relaxed) >= 104).await;
    press.open();
    node.wait_idle().await;
    let begun = &press.begun()[1..];
    assert_eq!(begun.len(), 51);
    assert_in_order(begun);
    let urgent = places(begun, Priority::Urgent);
    assert!(urgent[11] <= 12, "at most one that was admitted already: {urgent:?}");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn urgent_job_overtakes_those_that_wait_for_the_rate() {
    let press = Press::closed();
    press.open();
    let node = start(&MemoryStore::new(), &press, press.options().rate(1, Duration::from_millis(40))).await;
    let mut sent: Vec<_> = (0..10).map(|number| print(&node, "low", number)).collect();
    eventually(async || press.asked.load(Ordering::Relaxed) == 10).await;
    sent.push(print(&node, "urgent", 0));
    for sent in sent {
        sent.await.unwrap();
    }
    let begun = press.begun();
    // One job runs, and one waits for the rate.
    assert!(places(&begun, Priority::Urgent)[0] <= 3, "{begun:?}");
    assert_in_order(&begun);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn urgent_job_waits_for_those_of_its_exclusive_key() {
    let press = Press::closed();
    let node = start(&MemoryStore::new(), &press, press.options().exclusive_by_key().jobs(2)).await;
    node.client().send(Issue { paper: "p".into(), low: 3, urgent: 2, same: true }).await.unwrap();
    eventually(async || press.begun().len() == 1 && node.metrics().deferred == 4).await;
    press.open();
    node.wait_idle().await;
    let numbers: Vec<_> = press.begun().into_iter().map(|(_, number)| number).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn job_is_a_normal_one_if_its_rule_panics() {
    let press = Press::closed();
    press.open();
    let options = WorkerOptions::new().priority(|_: &Call<'_>| panic!("planned: a rule"));
    let node = start(&MemoryStore::new(), &press, options).await;
    print(&node, "urgent", 7).await.unwrap();
    assert_eq!(press.begun(), [(Priority::Urgent, 7)]);
    assert_eq!(node.metrics().panics, 1);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn stop_does_not_wait_for_queued_jobs() {
    let press = Press::closed();
    let hour = Duration::from_secs(3600);
    press.open();
    let store = MemoryStore::new();
    let node = start(&store, &press, press.options().rate(1, hour)).await;
    node.client().send(Issue { paper: "p".into(), low: 2, urgent: 2, same: false }).await.unwrap();
    eventually(async || press.begun().len() == 1).await;
    let outside = node.client().clone();
    let outside =
        tokio::task::spawn_local(
            async move { outside.send(Print { page: "outside".into(), number: 9 }).no_retry().await },
        );
    eventually(async || press.asked.load(Ordering::Relaxed) >= 5).await;
    tokio::time::timeout(Duration::from_secs(5), node.stop()).await.expect("nothing waits for the rate").unwrap();
    assert!(!outside.await.unwrap().unwrap_err().may_have_happened());
    // No job was lost.
    let node = start(&store, &press, press.options()).await;
    node.wait_idle().await;
    let mut numbers: Vec<_> = press.begun().into_iter().map(|(_, number)| number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2, 3]);
    node.stop().await.unwrap();
}
