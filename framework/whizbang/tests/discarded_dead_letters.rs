//! Discarded dead letters: every caller that waits for the message gets a reply, and no saga is stuck.

mod instrumented_store;
mod orders;

use std::sync::Arc;

use instrumented_store::{InstrumentedStore, StoreProbe};
use orders::*;
use whizbang::message::Kind;
use whizbang::prelude::*;
use whizbang::{SendError, WorkError};

fn code(error: &SendError) -> &str {
    error.rejection().map_or("", Rejection::code)
}

#[whizbang::test]
async fn discarded_step_is_rejected_and_saga_compensates() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    place(&node, "o", &["a", "broken", "b"]).await.unwrap();
    node.wait_idle().await;
    let letter = only(node.dead_letters().await.unwrap());
    assert_eq!((taken(&node, "a").await, taken(&node, "b").await, letter.key.as_str()), (1, 1, "broken"));
    node.discard(&letter).await.unwrap();
    node.wait_idle().await;
    assert_eq!(story(&node, "o").await, "placed command.discarded");
    assert_eq!((taken(&node, "a").await, taken(&node, "b").await, taken(&node, "broken").await), (0, 0, 0));
    assert!(has_ended(&node, "o").await);
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn discarded_compensation_does_not_stop_the_remaining_ones() {
    // The dead letter is discarded before or after a restart.
    for restarts in [false, true] {
        let store = MemoryStore::new();
        let mut node = start(&store).await;
        place(&node, "o", &["a", "stuck", "b"]).await.unwrap();
        node.wait_idle().await;
        finish(&node, "o", How::Compensate).await.unwrap();
        node.wait_idle().await;
        assert_eq!((taken(&node, "a").await, taken(&node, "b").await), (1, 0), "the last step is undone first");
        if restarts {
            drop(node);
            node = start(&store).await;
        }
        let letter = only(node.dead_letters().await.unwrap());
        assert_eq!(letter.reason.as_str(), "compensation");
        node.discard(&letter).await.unwrap();
        node.wait_idle().await;
        assert_eq!((taken(&node, "a").await, taken(&node, "stuck").await), (0, 1));
        assert_eq!(node.metrics().given_up, 1, "a step that stays done is counted");
        assert!(has_ended(&node, "o").await);
        drop(node);
        let node = start(&store).await;
        node.wait_idle().await;
        assert_eq!((taken(&node, "a").await, node.dead_letters().await.unwrap().len()), (0, 0));
    }
}

#[whizbang::test]
async fn discarded_reply_to_step_counts_for_compensation() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    place(&node, "shaky", &["a"]).await.unwrap();
    node.wait_idle().await;
    let letter = only(node.dead_letters().await.unwrap());
    assert_eq!((letter.key.as_str(), letter.envelope.name.as_str()), ("shaky", "Take"));
    node.discard(&letter).await.unwrap();
    finish(&node, "shaky", How::Compensate).await.unwrap();
    node.wait_idle().await;
    assert_eq!(taken(&node, "a").await, 0, "the step was done, so it is undone");
    assert!(has_ended(&node, "shaky").await);
}

#[whizbang::test]
async fn discarded_command_behind_letter_rejects_its_caller() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    place(&node, "o", &["broken"]).await.unwrap();
    node.wait_idle().await;
    let (client, take) = (node.client(), Take { shelf: "broken".to_owned() });
    let id = client.new_id();
    assert!(matches!(client.send(take.clone()).id(id).await, Err(SendError::DeadLetter { .. })));
    let letters = node.dead_letters().await.unwrap();
    let behind = letters.iter().find(|letter| letter.envelope.id == id).unwrap();
    node.discard(behind).await.unwrap();
    assert_eq!(code(&client.send(take.clone()).id(id).await.unwrap_err()), "command.discarded");
    drop(node);
    let node = start(&store).await;
    let error = node.client().send(take).id(id).await.unwrap_err();
    assert_eq!(code(&error), "command.discarded", "every reply to one command is the same");
}

#[whizbang::test]
async fn discarded_command_to_unloadable_key_is_rejected() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    node.client().send(Take { shelf: "a".to_owned() }).await.unwrap();
    drop(node);
    UNLOADABLE.with(|unloadable| unloadable.store(true, std::sync::atomic::Ordering::SeqCst));
    let node = start(&store).await;
    place(&node, "o", &["a"]).await.unwrap();
    node.wait_idle().await;
    let letter = only(node.dead_letters().await.unwrap());
    assert_eq!(letter.reason.as_str(), "unloadable");
    node.discard(&letter).await.unwrap();
    node.wait_idle().await;
    assert_eq!(story(&node, "o").await, "placed command.discarded");
    assert!(has_ended(&node, "o").await);
}

fn loads(can: bool) {
    UNLOADABLE.with(|unloadable| unloadable.store(!can, std::sync::atomic::Ordering::SeqCst));
}

/// The same for orders.
fn orders_load(can: bool) {
    UNLOADABLE_ORDERS.with(|unloadable| unloadable.store(!can, std::sync::atomic::Ordering::SeqCst));
}

#[whizbang::test]
async fn discarded_compensation_to_unloadable_key_gives_its_step_up() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    place(&node, "o", &["b", "a"]).await.unwrap();
    node.wait_idle().await;
    drop(node);
    loads(false);
    let node = start(&store).await;
    finish(&node, "o", How::Compensate).await.unwrap();
    node.wait_idle().await;
    let letter = only(node.dead_letters().await.unwrap());
    assert_eq!((letter.reason.as_str(), &*letter.key, &*letter.envelope.name), ("unloadable", "a", "PutBack"));
    node.discard(&letter).await.unwrap();
    node.wait_idle().await;
    // The saga has the rejection, and an operator decides about the step.
    let letters = node.dead_letters().await.unwrap();
    let rejected = letters.iter().find(|letter| letter.reason.as_str() == "compensation").unwrap();
    assert_eq!((&*rejected.key, rejected.error.contains("discarded")), ("o", true), "{}", rejected.error);
    node.discard(rejected).await.unwrap();
    node.wait_idle().await;
    loads(true);
    let letters = node.dead_letters().await.unwrap();
    let stuck = letters.iter().find(|letter| &*letter.key == "b").unwrap();
    node.redrive(stuck).await.unwrap();
    node.wait_idle().await;
    assert_eq!((taken(&node, "a").await, taken(&node, "b").await, node.metrics().given_up), (1, 0, 1));
    assert!(has_ended(&node, "o").await);
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn letter_inside_unloadable_key_is_discarded_once_it_loads() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    node.client().send(Take { shelf: "broken".to_owned() }).await.unwrap_err();
    repair();
    node.client().send(Take { shelf: "broken".to_owned() }).await.unwrap();
    FAULTS.with(|faults| faults.set(true));
    place(&node, "o", &["broken"]).await.unwrap();
    node.wait_idle().await;
    drop(node);
    loads(false);
    let node = start(&store).await;
    let letter = only(node.dead_letters().await.unwrap());
    assert_eq!(letter.reason.as_str(), "attempts", "parked in the stream that cannot be read");
    let refused = node.discard(&letter).await.unwrap_err();
    assert!(matches!(refused, SendError::Refused(_)), "{refused}");
    assert_eq!(only(node.dead_letters().await.unwrap()).envelope.id, letter.envelope.id, "it stays listed");
    assert_eq!(story(&node, "o").await, "placed");
    loads(true);
    node.discard(&letter).await.unwrap();
    node.wait_idle().await;
    assert_eq!(story(&node, "o").await, "placed command.discarded");
    assert!(has_ended(&node, "o").await);
}

#[whizbang::test]
async fn reply_to_unloadable_saga_is_not_discarded() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    place(&node, "o", &["a", "broken"]).await.unwrap();
    node.wait_idle().await;
    drop(node);
    orders_load(false);
    let node = start(&store).await;
    // The discarded step is rejected to a saga that cannot be loaded.
    node.discard(&only(node.dead_letters().await.unwrap())).await.unwrap();
    node.wait_idle().await;
    let reply = only(node.dead_letters().await.unwrap());
    assert_eq!((reply.reason.as_str(), &*reply.key, reply.envelope.kind), ("unloadable", "o", Kind::Reply));
    // Without the reply the saga would wait for it forever.
    let refused = node.discard(&reply).await.unwrap_err();
    assert!(matches!(refused, SendError::Refused(_)), "{refused}");
    assert_eq!(only(node.dead_letters().await.unwrap()).envelope.id, reply.envelope.id, "it stays listed");
    assert_eq!(taken(&node, "a").await, 1);
    orders_load(true);
    node.redrive(&reply).await.unwrap();
    node.wait_idle().await;
    assert_eq!(story(&node, "o").await, "placed command.discarded");
    assert_eq!((taken(&node, "a").await, has_ended(&node, "o").await), (0, true));
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[derive(Domain)]
#[domain(name = "mail")]
struct Mail;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Mail)]
struct Write {
    #[key]
    order: String,
}

#[derive(Worker)]
#[worker(domain = Mail, performs(Write))]
struct Writer;

impl Perform<Write> for Writer {
    async fn perform(&self, _write: Write, _job: Job) -> Result<(), WorkError> {
        Err(WorkError::Fail("no paper".into()))
    }
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders, reply = String)]
struct Announce {
    #[key]
    order: String,
}

#[derive(Saga, Default)]
#[saga(domain = Orders, handles(Announce), applies(Noted), replies(Write))]
struct Announcement {
    heard: String,
}

impl Handle<Announce> for Announcement {
    fn handle(&self, announce: Announce, effects: &mut Effects<Self>) -> Result<String, Rejection> {
        if self.heard.is_empty() {
            effects.send(Write { order: announce.order });
        }
        Ok(self.heard.clone())
    }
}

impl OnReply<Write> for Announcement {
    fn on_reply(&self, reply: Result<(), Rejection>, effects: &mut Effects<Self>) {
        let what = reply.map_or_else(|no| no.code().to_owned(), |()| "written".to_owned());
        effects.record(Noted { what });
    }
}

impl Apply<Noted> for Announcement {
    fn apply(&mut self, noted: &Noted) {
        self.heard.clone_from(&noted.what);
    }
}

#[whizbang::test]
async fn discarded_job_is_rejected() {
    let builder = Node::builder("shop", MemoryStore::new()).threads(0).worker(Writer).saga::<Announcement>();
    let node = builder.retry(quick()).start().await.unwrap();
    let client = node.client();
    client.send(Announce { order: "o".into() }).await.unwrap();
    node.wait_idle().await;
    let id = client.new_id();
    assert!(matches!(client.send(Write { order: "p".into() }).id(id).await, Err(SendError::DeadLetter { .. })));
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 2);
    for letter in &letters {
        node.discard(letter).await.unwrap();
    }
    node.wait_idle().await;
    assert_eq!(client.send(Announce { order: "o".into() }).await.unwrap(), "command.discarded");
    assert_eq!(code(&client.send(Write { order: "p".into() }).id(id).await.unwrap_err()), "command.discarded");
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn letter_of_unreadable_worker_stays_listed() {
    let store = MemoryStore::new();
    let probe = Arc::<StoreProbe>::default();
    let start = async || {
        let store = InstrumentedStore(store.clone(), Arc::clone(&probe));
        let builder = Node::builder("shop", store).threads(0).worker(Writer).saga::<Announcement>();
        builder.retry(quick()).start().await.unwrap()
    };
    let node = start().await;
    node.client().send(Announce { order: "o".into() }).await.unwrap();
    node.wait_idle().await;
    drop(node);
    probe.panic_in("load writer", usize::MAX);
    let node = start().await;
    let letter = only(node.dead_letters().await.unwrap());
    assert!(node.discard(&letter).await.is_err());
    assert_eq!(only(node.dead_letters().await.unwrap()).envelope.id, letter.envelope.id);
    assert!(node.health().reasons.iter().any(|reason| reason.contains("writer")), "{:?}", node.health());
    probe.panic_in("none", 1);
    node.discard(&letter).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().send(Announce { order: "o".into() }).await.unwrap(), "command.discarded");
    assert_eq!(node.dead_letters().await.unwrap(), []);
}
