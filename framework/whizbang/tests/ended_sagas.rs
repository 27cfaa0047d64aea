//! Sagas that have ended: later commands are rejected, and a restarted saga has everything that a new one has.

mod bank;
mod eventually;
mod orders;

use std::time::Duration;

use eventually::eventually;
use orders::*;
use whizbang::clock::{Clock, Timestamp};
use whizbang::prelude::*;

#[whizbang::test]
async fn command_to_ended_saga_is_rejected_and_records_nothing() {
    for how in [How::Complete, How::Compensate] {
        let store = MemoryStore::new();
        let node = start(&store).await;
        place(&node, "o", &["a"]).await.unwrap();
        node.wait_idle().await;
        finish(&node, "o", how).await.unwrap();
        node.wait_idle().await;
        let (before, events) = (taken(&node, "a").await, node.metrics().events);
        // Inline, and as an envelope through the mailbox.
        let again = || Place { order: "o".to_owned(), shelves: vec!["a".to_owned()] };
        let client = node.client();
        let id = client.new_id();
        let errors = [
            client.send(again()).await.unwrap_err(),
            client.send(again()).id(id).deadline(Duration::from_secs(60)).await.unwrap_err(),
            client.send(again()).id(id).await.unwrap_err(),
        ];
        for error in &errors {
            assert_eq!(error.rejection().map(Rejection::code), Some(Rejection::SAGA_ENDED), "{error}");
        }
        node.wait_idle().await;
        assert_eq!((taken(&node, "a").await, node.metrics().events), (before, events));
        assert_eq!(story(&node, "o").await, "placed finished", "what only asks is answered");
    }
}

#[whizbang::test]
async fn complete_beside_compensate_still_undoes() {
    for how in [How::CompensateThenComplete, How::CompleteThenCompensate] {
        let node = start(&MemoryStore::new()).await;
        place(&node, "o", &["a", "b"]).await.unwrap();
        node.wait_idle().await;
        finish(&node, "o", how).await.unwrap();
        node.wait_idle().await;
        assert_eq!((taken(&node, "a").await, taken(&node, "b").await), (0, 0), "{how:?}");
        assert!(has_ended(&node, "o").await, "{how:?}");
    }
}

#[whizbang::test]
async fn complete_while_undoing_does_not_end_early() {
    let node = start(&MemoryStore::new()).await;
    place(&node, "o", &["a", "stuck"]).await.unwrap();
    node.wait_idle().await;
    finish(&node, "o", How::Compensate).await.unwrap();
    // The saga waits for the reply, or for the operator: either way the command is handled while it compensates.
    drop(finish(&node, "o", How::Complete).await);
    node.wait_idle().await;
    for letter in node.dead_letters().await.unwrap() {
        node.discard(&letter).await.unwrap();
    }
    node.wait_idle().await;
    assert_eq!((taken(&node, "a").await, taken(&node, "stuck").await), (0, 1));
}

/// Takes one from the shelf and waits a minute. Restarts an ended saga.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Try {
    #[key]
    order: String,
    shelf: String,
    undoes: bool,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Stop {
    #[key]
    order: String,
    undoes: bool,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders, reply = String)]
struct Heard {
    #[key]
    order: String,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Orders)]
struct Minute {}

#[derive(Saga, Default)]
#[saga(domain = Orders, handles(Try, Stop, Heard), applies(Noted), replies(Take), timers(Minute))]
struct Attempt {
    heard: Vec<String>,
}

impl Handle<Try> for Attempt {
    fn handle(&self, again: Try, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.restart();
        let sent = effects.send(Take { shelf: again.shelf.clone() });
        if again.undoes {
            sent.compensate_with(PutBack { shelf: again.shelf });
        }
        effects.set_timer(&Minute {}, Duration::from_secs(60));
        Ok(())
    }
}

impl Handle<Stop> for Attempt {
    fn handle(&self, stop: Stop, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if stop.undoes {
            effects.compensate();
        } else {
            effects.complete();
        }
        Ok(())
    }
}

impl Handle<Heard> for Attempt {
    fn handle(&self, _heard: Heard, _effects: &mut Effects<Self>) -> Result<String, Rejection> {
        Ok(self.heard.join(" "))
    }
}

impl OnReply<Take> for Attempt {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        let what = reply.map_or_else(|no| no.code().to_owned(), |_| "taken".to_owned());
        effects.record(Noted { what });
    }
}

impl OnTimer<Minute> for Attempt {
    fn on_timer(&self, _minute: Minute, effects: &mut Effects<Self>) {
        effects.record(Noted { what: "minute".to_owned() });
    }
}

impl Apply<Noted> for Attempt {
    fn apply(&mut self, noted: &Noted) {
        self.heard.push(noted.what.clone());
    }
}

async fn attempts(store: &MemoryStore, clock: &Clock) -> Node {
    let builder = Node::builder("shop", store.clone()).threads(0).aggregate::<Shelf>().saga::<Attempt>();
    builder.retry(quick()).clock(clock.clone()).start().await.unwrap()
}

async fn heard(node: &Node) -> String {
    node.client().send(Heard { order: "o".into() }).await.unwrap()
}

async fn again(node: &Node, shelf: &str, undoes: bool) {
    node.client().send(Try { order: "o".into(), shelf: shelf.to_owned(), undoes }).await.unwrap();
}

async fn stop(node: &Node, undoes: bool) {
    node.client().send(Stop { order: "o".into(), undoes }).await.unwrap();
    node.wait_idle().await;
}

#[whizbang::test]
async fn restarted_saga_has_replies_timers_and_compensation() {
    let (store, (clock, hand)) = (MemoryStore::new(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
    let mut node = attempts(&store, &clock).await;
    again(&node, "a", true).await;
    node.wait_idle().await;
    stop(&node, true).await;
    assert_eq!((heard(&node).await.as_str(), taken(&node, "a").await), ("taken", 0));
    // The saga restarts. The state of its second run is only in the log, so it is rebuilt in the middle of it.
    again(&node, "b", true).await;
    node.wait_idle().await;
    drop(node);
    node = attempts(&store, &clock).await;
    assert_eq!((heard(&node).await.as_str(), taken(&node, "b").await), ("taken taken", 1));
    hand.advance(Duration::from_secs(61));
    drop(node);
    node = attempts(&store, &clock).await;
    eventually(async || heard(&node).await == "taken taken minute").await;
    stop(&node, true).await;
    assert_eq!((taken(&node, "a").await, taken(&node, "b").await), (0, 0), "each step is undone once");
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn reply_to_earlier_run_is_ignored() {
    let clock = Clock::system();
    for rebuilt in [false, true] {
        let store = MemoryStore::new();
        let mut node = attempts(&store, &clock).await;
        again(&node, "broken", false).await;
        node.wait_idle().await;
        stop(&node, false).await;
        again(&node, "b", true).await;
        node.wait_idle().await;
        if rebuilt {
            drop(node);
            node = attempts(&store, &clock).await;
        }
        // Now the command of the first run is answered.
        let letter = only(node.dead_letters().await.unwrap());
        node.discard(&letter).await.unwrap();
        node.wait_idle().await;
        assert_eq!(heard(&node).await, "taken");
        assert_eq!(taken(&node, "b").await, 1, "the second run continues");
    }
}

/// Returns the nanoseconds for which this thread has run on a CPU. Other work of the machine does not count.
fn cpu_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse().unwrap()
}

/// With a cost that grows with the number of open steps, eight times as many steps would cost 64 times as much.
#[whizbang::test]
async fn cost_of_a_saga_grows_linearly_with_its_steps() {
    let mut costs = Vec::new();
    for steps in [150, 1_200] {
        let shelves: Vec<String> = (0..steps).map(|step| format!("shelf-{step}")).collect();
        let shelves: Vec<&str> = shelves.iter().map(String::as_str).collect();
        let mut cheapest = u64::MAX;
        for _ in 0..2 {
            let node = start(&MemoryStore::new()).await;
            let before = cpu_time();
            place(&node, "o", &shelves).await.unwrap();
            node.wait_idle().await;
            finish(&node, "o", How::Compensate).await.unwrap();
            node.wait_idle().await;
            cheapest = cheapest.min(cpu_time() - before);
            assert!(has_ended(&node, "o").await);
            assert_eq!(taken(&node, "shelf-7").await, 0);
        }
        costs.push(cheapest);
    }
    assert!(costs[1] < 24 * costs[0], "{costs:?} ns for 150 and 1,200 steps");
}
