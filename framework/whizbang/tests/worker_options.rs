//! Options of a worker: retries by the type of the error, attempts, limits of one worker.

mod eventually;
mod payments;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use eventually::eventually;
use parking_lot::Mutex;
use payments::{Charge, Mailer, Order, Payments, World, background, charge, place, state};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use whizbang::prelude::*;
use whizbang::{CircuitBreaker, ConfigError, JobError, Retry, RetryDecision, SendError, StartError, WorkerOptions};

/// An error of a provider.
#[derive(Debug)]
enum ProviderError {
    TooMany { retry_after: Duration },
    Closed,
    NoAnswer,
}

impl std::fmt::Display for ProviderError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "provider: {self:?}")
    }
}

impl std::error::Error for ProviderError {}

/// An error whose source is that of a provider.
#[derive(Debug)]
struct CallError(ProviderError);

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the call failed")
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

/// A provider that fails as the amount says, and counts.
struct Provider {
    attempts: Mutex<BTreeMap<String, Vec<Instant>>>,
    now: AtomicUsize,
    most: AtomicUsize,
    /// A call with an amount below 100 needs a permit.
    open: Semaphore,
    /// A call with an amount of 503 fails.
    is_down: AtomicBool,
}

impl Provider {
    fn new(open: usize) -> Arc<Self> {
        let (now, most, is_down) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(true));
        Arc::new(Self { attempts: Mutex::default(), now, most, open: Semaphore::new(open), is_down })
    }

    fn attempts(&self, order: &str) -> Vec<Instant> {
        self.attempts.lock().get(order).cloned().unwrap_or_default()
    }

    async fn call(&self, charge: &Charge, first: bool) -> Result<(), CallError> {
        self.attempts.lock().entry(charge.order.clone()).or_default().push(Instant::now());
        match charge.cents {
            429 if first => Err(CallError(ProviderError::TooMany { retry_after: Duration::from_millis(30) })),
            403 => Err(CallError(ProviderError::Closed)),
            503 if !self.is_down.load(Ordering::Relaxed) => Ok(()),
            500 | 503 => Err(CallError(ProviderError::NoAnswer)),
            666 => panic!("unlucky"),
            999 => std::future::pending().await,
            cents if cents < 100 => {
                let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
                self.most.fetch_max(now, Ordering::Relaxed);
                drop(self.open.acquire().await);
                self.now.fetch_sub(1, Ordering::Relaxed);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

#[derive(Worker)]
#[worker(domain = Payments, performs(Charge))]
struct Cashier(Arc<Provider>);

impl Perform<Charge> for Cashier {
    async fn perform(&self, charge: Charge, job: Job) -> Result<String, WorkError> {
        self.0.call(&charge, job.delivery == 1).await?;
        Ok(format!("{} charged", charge.cents))
    }
}

/// Waits that no test survives: a job that is retried by default hangs.
const HOURS: Retry = Retry { attempts: 4, first: Duration::from_secs(3600), longest: Duration::from_secs(3600) };

fn by_type(options: WorkerOptions) -> WorkerOptions {
    options.retry_error(|error: &ProviderError, _attempt| match error {
        ProviderError::TooMany { retry_after } => RetryDecision::After(*retry_after),
        ProviderError::Closed => RetryDecision::GiveUp,
        ProviderError::NoAnswer => RetryDecision::Policy,
    })
}

async fn start(provider: &Arc<Provider>, options: WorkerOptions, retry: Retry) -> Node {
    let cashier = Cashier(Arc::clone(provider));
    let node = Node::builder("shop", MemoryStore::new()).threads(0).saga::<Order>().retry(retry);
    node.worker_with(cashier, options).start().await.unwrap()
}

#[whizbang::test]
async fn error_type_decides_when_a_job_is_retried() {
    let provider = Provider::new(1);
    let node = start(&provider, by_type(WorkerOptions::new()), HOURS).await;
    assert_eq!(node.client().send(charge("o1", 429)).await.unwrap(), "429 charged");
    // The message of a saga is recorded while it waits.
    node.client().send(place("o2", 429)).await.unwrap();
    eventually(async || node.client().send(state("o2")).await.unwrap() == "paid").await;
    for order in ["o1", "o2"] {
        let attempts = provider.attempts(order);
        assert_eq!(attempts.len(), 2, "{order}");
        assert!(attempts[1] - attempts[0] >= Duration::from_millis(30), "{order}: {attempts:?}");
    }
}

#[whizbang::test]
async fn error_type_that_gives_up_makes_a_dead_letter_at_once() {
    let provider = Provider::new(1);
    let node = start(&provider, by_type(WorkerOptions::new()), HOURS).await;
    let error = node.client().send(charge("o1", 403)).await.unwrap_err();
    assert!(
        matches!(&error, SendError::DeadLetter { reason } if reason == "the call failed: provider: Closed"),
        "{error}"
    );
    node.client().send(place("o2", 403)).await.unwrap();
    eventually(async || node.dead_letters().await.unwrap().len() == 2).await;
    assert_eq!((provider.attempts("o1").len(), provider.attempts("o2").len()), (1, 1));
    assert_eq!(node.metrics().retries, 0);
}

#[whizbang::test]
async fn worker_has_its_own_attempts_and_waits() {
    let quick = Retry { attempts: 2, first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let provider = Provider::new(1);
    let node = start(&provider, by_type(WorkerOptions::new()).retry(quick), HOURS).await;
    node.client().send(charge("o1", 500)).await.unwrap_err();
    node.client().send(place("o2", 500)).await.unwrap();
    eventually(async || node.dead_letters().await.unwrap().len() == 2).await;
    assert_eq!((provider.attempts("o1").len(), provider.attempts("o2").len()), (2, 2));
    node.stop().await.unwrap();
    // The policy of a message type takes precedence.
    let node = Node::builder("shop", MemoryStore::new())
        .threads(0)
        .worker_with(Cashier(Arc::clone(&provider)), WorkerOptions::new().retry(HOURS))
        .retry_of::<Charge>(Retry::NEVER)
        .start()
        .await
        .unwrap();
    node.client().send(charge("o3", 500)).await.unwrap_err();
    assert_eq!(provider.attempts("o3").len(), 1);
}

#[whizbang::test]
async fn rule_decides_about_hanging_and_panicking_jobs() {
    let (provider, seen) = (Provider::new(1), Arc::<Mutex<Vec<(JobError, u32)>>>::default());
    let errors = Arc::clone(&seen);
    let options =
        WorkerOptions::new().job_limit(Duration::from_millis(20)).retry_error(move |error: &JobError, attempt| {
            errors.lock().push((error.clone(), attempt));
            if attempt < 2 { RetryDecision::After(Duration::ZERO) } else { RetryDecision::GiveUp }
        });
    let node = start(&provider, options, HOURS).await;
    let error = node.client().send(charge("o1", 999)).await.unwrap_err();
    assert!(matches!(&error, SendError::DeadLetter { reason } if reason == "job took longer than 20ms"), "{error}");
    let error = node.client().send(charge("o2", 666)).await.unwrap_err();
    assert!(matches!(&error, SendError::DeadLetter { reason } if reason == "job panicked: unlucky"), "{error}");
    let late = JobError::TimedOut { limit: Duration::from_millis(20) };
    assert_eq!(seen.lock()[..2], [(late.clone(), 1), (late, 2)]);
    assert!(
        matches!(&seen.lock()[2..], [(JobError::Panicked { text }, 1), (JobError::Panicked { .. }, 2)] if text == "unlucky")
    );
}

#[whizbang::test]
async fn panicking_rule_decides_nothing() {
    let quick = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let provider = Provider::new(1);
    let options = WorkerOptions::new()
        .retry_error(|_: &ProviderError, _| panic!("planned: a rule"))
        .retry_error(|_: &JobError, _| panic!("planned: a rule"));
    let node = start(&provider, options, quick).await;
    let error = node.client().send(charge("o1", 500)).await.unwrap_err();
    assert!(matches!(&error, SendError::DeadLetter { reason } if reason.contains("planned: a rule")), "{error}");
    assert_eq!(provider.attempts("o1").len(), 3);
    assert_eq!(node.client().send(charge("o2", 200)).await.unwrap(), "200 charged");
}

#[whizbang::test]
async fn jobs_of_a_worker_are_limited_on_the_whole_node() {
    let provider = Provider::new(0);
    let node = Node::builder("shop", MemoryStore::new())
        .threads(3)
        .saga::<Order>()
        .worker_with(Cashier(Arc::clone(&provider)), WorkerOptions::new().jobs(2))
        .start()
        .await
        .unwrap();
    let orders: Vec<_> = (0..24).map(|n| format!("o{n}")).collect();
    let calls: Vec<_> = orders.iter().map(|order| background(node.client().send(charge(order, 5)))).collect();
    for order in &orders {
        node.client().send(place(order, 7)).await.unwrap();
    }
    eventually(async || provider.now.load(Ordering::Relaxed) == 2).await;
    provider.open.add_permits(1);
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), "5 charged");
    }
    node.wait_idle().await;
    assert_eq!(provider.most.load(Ordering::Relaxed), 2);
    for order in &orders {
        assert_eq!(node.client().send(state(order)).await.unwrap(), "paid");
    }
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn option_out_of_its_range_is_refused() {
    let refused = async |options| {
        let node = Node::builder("shop", MemoryStore::new()).threads(0).worker_with(Cashier(Provider::new(1)), options);
        match node.start().await {
            Err(StartError::Config(ConfigError::Range { key, .. })) => key,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(WorkerOptions::new().jobs(0)).await, "WorkerOptions::jobs");
    assert_eq!(refused(WorkerOptions::new().jobs(usize::MAX)).await, "WorkerOptions::jobs");
    assert_eq!(refused(WorkerOptions::new().job_limit(Duration::ZERO)).await, "WorkerOptions::job_limit");
    let never = Retry { attempts: 0, ..Retry::NEVER };
    assert_eq!(refused(WorkerOptions::new().retry(never)).await, "WorkerOptions::retry attempts");
    let window = Duration::from_secs(1);
    assert_eq!(refused(WorkerOptions::new().rate(0, window)).await, "WorkerOptions::rate attempts");
    assert_eq!(refused(WorkerOptions::new().rate(1, Duration::MAX)).await, "WorkerOptions::rate window");
    let breaker = |breaker| WorkerOptions::new().circuit_breaker(breaker);
    assert_eq!(refused(breaker(CircuitBreaker::failures(0))).await, "CircuitBreaker attempts");
    assert_eq!(refused(breaker(CircuitBreaker::failure_ratio(101, 9))).await, "CircuitBreaker percent");
    assert_eq!(refused(breaker(CircuitBreaker::failures(1).pause(Duration::ZERO))).await, "CircuitBreaker pause");
}

#[whizbang::test]
async fn open_circuit_pauses_a_worker_and_closes_by_itself() {
    let provider = Provider::new(1);
    let quick = Retry { attempts: 9, first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let pause = Duration::from_millis(500);
    let options = WorkerOptions::new().circuit_breaker(CircuitBreaker::failures(3).pause(pause));
    let node = Node::builder("shop", MemoryStore::new())
        .threads(0)
        .saga::<Order>()
        .worker_with(Cashier(Arc::clone(&provider)), options)
        .retry(quick)
        .start()
        .await
        .unwrap();
    node.client().send(place("o1", 503)).await.unwrap();
    eventually(async || node.metrics().open_circuits == 1).await;
    let opened = provider.attempts("o1")[2];
    let health = node.health();
    provider.is_down.store(false, Ordering::Relaxed);
    let note = "worker payments/cashier has paused its jobs";
    let reason = health.reasons.iter().find(|reason| reason.starts_with(note)).expect("health names the worker");
    assert!(health.ready && reason.ends_with("its last error: the call failed: provider: NoAnswer"), "{health:?}");
    // These wait without an attempt.
    for n in 2..40 {
        node.client().send(place(&format!("o{n}"), 200 + n)).await.unwrap();
    }
    let outside = background(node.client().send(charge("o40", 240)));
    assert_eq!(outside.await.unwrap().unwrap(), "240 charged");
    node.wait_idle().await;
    for n in 1..40 {
        assert_eq!(node.client().send(state(&format!("o{n}"))).await.unwrap(), "paid", "o{n}");
    }
    for attempts in (2..=40).map(|n| provider.attempts(&format!("o{n}"))) {
        assert!(matches!(attempts[..], [begun] if begun - opened >= pause), "{opened:?} {attempts:?}");
    }
    let metrics = node.metrics();
    assert_eq!((metrics.open_circuits, metrics.circuits_opened, metrics.dead_letters), (0, 1, 0));
    assert!(!node.health().reasons.iter().any(|reason| reason.starts_with(note)));
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn paused_worker_delays_neither_others_nor_the_stop() {
    let (provider, mails, store) = (Provider::new(1), Arc::<World>::default(), MemoryStore::new());
    let start = async |options| {
        let node = Node::builder("shop", store.clone()).threads(0).saga::<Order>().worker(Mailer(Arc::clone(&mails)));
        node.worker_with(Cashier(Arc::clone(&provider)), options).retry(HOURS).start().await.unwrap()
    };
    let hour = Duration::from_secs(3600);
    let breaker = CircuitBreaker::failures(1).pause(hour);
    let node = start(WorkerOptions::new().circuit_breaker(breaker).rate(1, hour).jobs(1)).await;
    node.client().send(place("o1", 503)).await.unwrap();
    eventually(async || node.metrics().open_circuits == 1).await;
    node.client().send(place("o2", 200)).await.unwrap();
    node.client().send(place("o4", 200)).await.unwrap();
    let outside = background(node.client().send(charge("o3", 200)).no_retry());
    // The other worker continues.
    eventually(async || mails.calls("mail 200").await.len() == 2).await;
    // One of them has the slot and waits for the circuit.
    eventually(async || node.metrics().deferred == 2).await;
    tokio::time::timeout(Duration::from_secs(5), node.stop()).await.expect("nothing waits for the pause").unwrap();
    assert!(!outside.await.unwrap().unwrap_err().may_have_happened());
    // No job was lost.
    provider.is_down.store(false, Ordering::Relaxed);
    let node = start(WorkerOptions::new()).await;
    node.wait_idle().await;
    for order in ["o1", "o2", "o4"] {
        assert_eq!(node.client().send(state(order)).await.unwrap(), "paid");
    }
    let attempts = ["o2", "o3", "o4"].map(|order| provider.attempts(order).len());
    assert_eq!(attempts, [1, 0, 1]);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn exclusive_key_waits_for_its_own_jobs_only() {
    let provider = Provider::new(0);
    let node = start(&provider, WorkerOptions::new().exclusive_by_key(), Retry::NEVER).await;
    let first = background(node.client().send(charge("o1", 5)));
    eventually(async || provider.attempts("o1").len() == 1).await;
    let second = background(node.client().send(charge("o1", 6)));
    node.client().send(place("o1", 7)).await.unwrap();
    eventually(async || node.metrics().deferred == 1).await;
    assert_eq!(node.client().send(charge("o2", 200)).await.unwrap(), "200 charged");
    assert_eq!(provider.attempts("o1").len(), 1);
    provider.open.add_permits(1);
    assert_eq!(
        (first.await.unwrap().unwrap(), second.await.unwrap().unwrap()),
        ("5 charged".into(), "6 charged".into())
    );
    node.wait_idle().await;
    assert_eq!(node.client().send(state("o1")).await.unwrap(), "paid");
    assert_eq!((provider.attempts("o1").len(), provider.most.load(Ordering::Relaxed)), (3, 1));
    assert_eq!(node.metrics().deferred, 0);
    // A dead letter makes way, and takes its turn when it is redriven.
    node.client().send(place("o3", 503)).await.unwrap();
    eventually(async || node.dead_letters().await.unwrap().len() == 1).await;
    assert_eq!(node.client().send(charge("o3", 200)).await.unwrap(), "200 charged");
    provider.is_down.store(false, Ordering::Relaxed);
    node.redrive(&node.dead_letters().await.unwrap()[0]).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().send(state("o3")).await.unwrap(), "paid");
    node.stop().await.unwrap();
}
