//! Payments by a provider that may fail, wait or never answer; orders that are charged; mails.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use whizbang::Retry;
use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "payments")]
pub struct Payments;

#[derive(Domain)]
#[domain(name = "orders")]
pub struct Orders;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Payments, reply = String)]
pub struct Charge {
    #[key]
    pub order: String,
    pub cents: u64,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
pub struct Place {
    #[key]
    pub order: String,
    pub cents: u64,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders, reply = String)]
pub struct State {
    #[key]
    pub order: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct Placed {
    pub cents: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct Settled {
    pub state: String,
}

/// An order that is charged.
#[derive(Saga, Debug, Default)]
#[saga(domain = Orders, handles(Place, State), applies(Placed, Settled), replies(Charge))]
pub struct Order {
    pub state: String,
}

impl Handle<Place> for Order {
    fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Placed { cents: place.cents });
        effects.send(Charge { order: place.order, cents: place.cents });
        Ok(())
    }
}

impl Handle<State> for Order {
    fn handle(&self, _state: State, _effects: &mut Effects<Self>) -> Result<String, Rejection> {
        Ok(self.state.clone())
    }
}

impl OnReply<Charge> for Order {
    fn on_reply(&self, reply: Result<String, Rejection>, effects: &mut Effects<Self>) {
        let state = reply.map_or_else(|no| no.code().to_owned(), |_| "paid".to_owned());
        effects.record(Settled { state });
    }
}

impl Apply<Placed> for Order {
    fn apply(&mut self, _placed: &Placed) {
        self.state = "placed".to_owned();
    }
}

impl Apply<Settled> for Order {
    fn apply(&mut self, settled: &Settled) {
        self.state = settled.state.clone();
    }
}

/// The external provider: its calls by idempotency key, and its behavior.
#[derive(Default)]
pub struct World {
    pub calls: Mutex<BTreeMap<String, Vec<(String, u32)>>>,
    pub fails: AtomicUsize,
    /// All calls, or the listed ones, wait until they are released.
    pub holds: AtomicBool,
    pub held: Mutex<Vec<String>>,
    pub go: Notify,
    pub now: AtomicUsize,
    pub most: AtomicUsize,
}

impl World {
    /// Calls the provider for `what`, and fails if the behavior says so.
    async fn call(&self, what: &str, job: &Job) -> Result<(), WorkError> {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        struct Leave<'a>(&'a AtomicUsize);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let _leave = Leave(&self.now);
        self.calls
            .lock()
            .await
            .entry(what.to_owned())
            .or_default()
            .push((job.idempotency_key.to_string(), job.delivery));
        while self.holds.load(Ordering::Relaxed) && self.holds_back(what).await {
            self.go.notified().await;
        }
        tokio::task::yield_now().await;
        if self.fails.load(Ordering::Relaxed) > 0 {
            self.fails.fetch_sub(1, Ordering::Relaxed);
            return Err(WorkError::Retry("the provider does not answer".into()));
        }
        Ok(())
    }

    async fn holds_back(&self, what: &str) -> bool {
        let held = self.held.lock().await;
        held.is_empty() || held.iter().any(|held| held == what)
    }

    pub async fn calls(&self, what: &str) -> Vec<(String, u32)> {
        self.calls.lock().await.get(what).cloned().unwrap_or_default()
    }

    pub async fn called(&self, what: &str) -> bool {
        !self.calls(what).await.is_empty()
    }

    pub fn release(&self) {
        self.holds.store(false, Ordering::Relaxed);
        self.go.notify_waiters();
    }
}

#[derive(Worker)]
#[worker(domain = Payments, performs(Charge))]
pub struct Charger(pub Arc<World>);

impl Perform<Charge> for Charger {
    async fn perform(&self, charge: Charge, job: Job) -> Result<String, WorkError> {
        let what = if charge.order == "o" { format!("o {}", charge.cents) } else { charge.order };
        self.0.call(&what, &job).await?;
        match charge.cents {
            0 => Err(Rejection::new("payments.nothing", "nothing to charge").into()),
            13 => panic!("unlucky"),
            666 => Err(WorkError::Fail("the account is blocked".into())),
            cents => Ok(format!("{cents} charged")),
        }
    }
}

#[derive(Worker)]
#[worker(domain = Payments, on(Placed))]
pub struct Mailer(pub Arc<World>);

impl OnEvent<Placed> for Mailer {
    async fn on_event(&self, placed: Placed, job: Job) -> Result<(), WorkError> {
        self.0.call(&format!("mail {}", placed.cents), &job).await
    }
}

pub fn charge(order: &str, cents: u64) -> Charge {
    Charge { order: order.into(), cents }
}

pub fn place(order: &str, cents: u64) -> Place {
    Place { order: order.into(), cents }
}

pub fn state(order: &str) -> State {
    State { order: order.into() }
}

pub fn quick() -> Retry {
    Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(4) }
}

pub async fn start(store: &MemoryStore, world: &Arc<World>) -> Node {
    Node::builder("shop", store.clone())
        .threads(0)
        .saga::<Order>()
        .worker(Charger(Arc::clone(world)))
        .worker(Mailer(Arc::clone(world)))
        .retry(quick())
        .start()
        .await
        .unwrap()
}

/// Runs `future` in the background.
pub fn background<T: 'static>(future: impl Future<Output = T> + 'static) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_local(future)
}
