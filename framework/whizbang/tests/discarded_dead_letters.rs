//! Discarded dead letters: every caller that waits for the message gets a reply, and no saga is stuck.

mod orders;

use orders::*;
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
