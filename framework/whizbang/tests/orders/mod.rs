//! Shelves and orders: a saga that takes items from shelves, each of which can be put back. Some shelves fail,
//! depending on their name.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use whizbang::clock::Clock;
use whizbang::prelude::*;
use whizbang::store::DeadLetter;
use whizbang::{Retry, SendError};

#[derive(Domain)]
#[domain(name = "stock")]
pub struct Stock;

#[derive(Domain)]
#[domain(name = "orders")]
pub struct Orders;

/// True if shelves whose name begins with `broken`, and orders that receive events of `shaky` ones, panic.
pub struct FaultSwitch(pub AtomicBool);

impl FaultSwitch {
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::SeqCst);
    }
}

thread_local! {
    /// Thread-local, because each test runs on its own thread.
    pub static FAULTS: FaultSwitch = const { FaultSwitch(AtomicBool::new(true)) };
}

fn in_trouble() -> bool {
    FAULTS.with(|faults| faults.0.load(Ordering::SeqCst))
}

pub fn repair() {
    FAULTS.with(|faults| faults.set(false));
}

/// Takes one item. On a shelf named `broken…` it panics, on one named `empty…` it is rejected.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Stock, reply = u64)]
pub struct Take {
    #[key]
    pub shelf: String,
}

/// Puts one item back. On a shelf named `stuck…` it is rejected.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Stock)]
pub struct PutBack {
    #[key]
    pub shelf: String,
}

/// Returns the number of items taken and not put back.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Stock, reply = i64)]
pub struct Count {
    #[key]
    pub shelf: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Stock)]
pub struct Taken {}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Stock)]
pub struct Returned {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Stock, handles(Take, PutBack, Count), applies(Taken, Returned))]
pub struct Shelf {
    taken: i64,
}

impl Handle<Take> for Shelf {
    fn handle(&self, take: Take, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        assert!(!(take.shelf.starts_with("broken") && in_trouble()), "the shelf is broken");
        if take.shelf.starts_with("empty") {
            return Err(Rejection::new("stock.empty", "nothing is left"));
        }
        effects.record(Taken {});
        Ok(1)
    }
}

impl Handle<PutBack> for Shelf {
    fn handle(&self, put: PutBack, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if put.shelf.starts_with("stuck") && in_trouble() {
            return Err(Rejection::new("stock.stuck", "nothing can be put back"));
        }
        effects.record(Returned {});
        Ok(())
    }
}

impl Handle<Count> for Shelf {
    fn handle(&self, _count: Count, _effects: &mut Effects<Self>) -> Result<i64, Rejection> {
        Ok(self.taken)
    }
}

thread_local! {
    /// True if shelves cannot be loaded.
    pub static UNLOADABLE: AtomicBool = const { AtomicBool::new(false) };
    /// True if orders cannot be loaded.
    pub static UNLOADABLE_ORDERS: AtomicBool = const { AtomicBool::new(false) };
}

impl Apply<Taken> for Shelf {
    fn apply(&mut self, _taken: &Taken) {
        assert!(
            !UNLOADABLE.with(|unloadable| unloadable.load(Ordering::SeqCst)),
            "planned: the shelf cannot be loaded"
        );
        self.taken += 1;
    }
}

impl Apply<Returned> for Shelf {
    fn apply(&mut self, _returned: &Returned) {
        self.taken -= 1;
    }
}

/// Takes one item from each shelf, each with its compensation.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
pub struct Place {
    #[key]
    pub order: String,
    pub shelves: Vec<String>,
}

/// Ends the order.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
pub struct Finish {
    #[key]
    pub order: String,
    pub how: How,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum How {
    Complete,
    Compensate,
    CompensateThenComplete,
    CompleteThenCompensate,
}

/// Returns the events the order has recorded.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders, reply = String)]
pub struct Story {
    #[key]
    pub order: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
pub struct Noted {
    pub what: String,
}

#[derive(Saga, Default)]
#[saga(domain = Orders, handles(Place, Finish, Story), applies(Noted), replies(Take))]
pub struct Order {
    story: Vec<String>,
}

fn note(what: &str, effects: &mut Effects<Order>) {
    effects.record(Noted { what: what.to_owned() });
}

impl Handle<Place> for Order {
    fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for shelf in place.shelves {
            effects.send(Take { shelf: shelf.clone() }).compensate_with(PutBack { shelf });
        }
        note("placed", effects);
        Ok(())
    }
}

impl Handle<Finish> for Order {
    fn handle(&self, finish: Finish, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        match finish.how {
            How::Complete => effects.complete(),
            How::Compensate => {
                effects.compensate();
            }
            How::CompensateThenComplete => {
                effects.compensate();
                effects.complete();
            }
            How::CompleteThenCompensate => {
                effects.complete();
                effects.compensate();
            }
        }
        note("finished", effects);
        Ok(())
    }
}

impl Handle<Story> for Order {
    fn handle(&self, _story: Story, _effects: &mut Effects<Self>) -> Result<String, Rejection> {
        Ok(self.story.join(" "))
    }
}

impl OnReply<Take> for Order {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        assert!(!(effects.key().starts_with("shaky") && in_trouble()), "the order is shaky");
        if let Err(no) = reply {
            note(no.code(), effects);
            effects.compensate();
        }
    }
}

impl Apply<Noted> for Order {
    fn apply(&mut self, noted: &Noted) {
        assert!(
            !UNLOADABLE_ORDERS.with(|unloadable| unloadable.load(Ordering::SeqCst)),
            "planned: the order cannot be loaded"
        );
        self.story.push(noted.what.clone());
    }
}

pub fn quick() -> Retry {
    Retry { attempts: 2, first: Duration::from_millis(1), longest: Duration::from_millis(2) }
}

pub async fn start(store: &MemoryStore) -> Node {
    builder(store).start().await.unwrap()
}

pub fn builder(store: &MemoryStore) -> whizbang::NodeBuilder {
    Node::builder("shop", store.clone())
        .threads(0)
        .aggregate::<Shelf>()
        .saga::<Order>()
        .retry(quick())
        .clock(Clock::system())
}

pub async fn place(node: &Node, order: &str, shelves: &[&str]) -> Result<(), SendError> {
    let shelves = shelves.iter().map(|shelf| (*shelf).to_owned()).collect();
    node.client().send(Place { order: order.to_owned(), shelves }).await
}

pub async fn finish(node: &Node, order: &str, how: How) -> Result<(), SendError> {
    node.client().send(Finish { order: order.to_owned(), how }).await
}

pub async fn story(node: &Node, order: &str) -> String {
    node.client().send(Story { order: order.to_owned() }).await.unwrap()
}

pub async fn taken(node: &Node, shelf: &str) -> i64 {
    node.client().send(Count { shelf: shelf.to_owned() }).await.unwrap()
}

/// The only dead letter.
#[track_caller]
pub fn only(letters: Vec<DeadLetter>) -> DeadLetter {
    let [letter]: [DeadLetter; 1] = letters.try_into().unwrap();
    letter
}

/// Returns whether the saga has ended: it then rejects further commands.
pub async fn has_ended(node: &Node, order: &str) -> bool {
    let again = place(node, order, &[]).await;
    matches!(&again, Err(error) if error.rejection().is_some_and(|no| no.code() == "saga.ended"))
}
