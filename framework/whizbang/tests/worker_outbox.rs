//! Outboxes of workers: what a job sends leaves once, with the commit that marks the job as done, and replies come back as
//! jobs.

mod eventually;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventually::eventually;
use tokio::sync::Notify;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::MessageId;
use whizbang::prelude::*;
use whizbang::{NodeConfig, Retry, SendError};

#[derive(Domain)]
#[domain(name = "desks", shards = 4)]
struct Desks;

/// A job of a clerk. `how` says what it does besides booking `count` entries.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Desks, reply = u64)]
struct Order {
    #[key]
    order: String,
    how: How,
    count: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    Plain,
    // These do it in the first two attempts, after sending.
    FailTwice,
    PanicTwice,
    HangTwice,
    /// Fails in every attempt until the clerk is told otherwise.
    Fail,
    Reject,
    /// Runs so long that its message is deferred.
    Slow,
    EmptyKey,
    /// Sends messages of 300 KiB.
    Large,
    /// Sends from a task that outlives the job.
    Late,
    /// Asks a view first.
    Query,
    /// Sends each message 20 ms after the one before it, and cancels the second one.
    Delay,
    /// Cancels the first message of the job before it.
    Cancel,
}

#[derive(Domain)]
#[domain(name = "books", shards = 4)]
struct Books;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Books, reply = u64)]
struct Book {
    #[key]
    book: String,
    number: u64,
    text: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Books, reply = Vec<u64>)]
struct Read {
    #[key]
    book: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Books)]
struct Booked {
    number: u64,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Books, reply = u64)]
struct CountOfEntries;

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Books, handles(Book, Read), applies(Booked))]
struct Ledger {
    numbers: Vec<u64>,
}

impl Handle<Book> for Ledger {
    fn handle(&self, book: Book, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if book.number == 13 {
            return Err(Rejection::new("books.unlucky", "thirteen is not booked"));
        }
        effects.record(Booked { number: book.number });
        Ok(book.number)
    }
}

impl Handle<Read> for Ledger {
    fn handle(&self, _read: Read, _effects: &mut Effects<Self>) -> Result<Vec<u64>, Rejection> {
        Ok(self.numbers.clone())
    }
}

impl Apply<Booked> for Ledger {
    fn apply(&mut self, booked: &Booked) {
        self.numbers.push(booked.number);
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Booked), answers(CountOfEntries))]
struct Entries {
    count: u64,
}

impl Project<Booked> for Entries {
    fn project(&mut self, _booked: &Booked, _context: &EventContext) {
        self.count += 1;
    }
}

impl Answer<CountOfEntries> for Entries {
    fn answer(&self, _query: CountOfEntries) -> u64 {
        self.count
    }
}

/// Key of the job, answered command, reply or code.
type HandledReply = (String, MessageId, Result<u64, String>);

/// The observations and the behavior of the clerks.
#[derive(Default)]
struct Desk {
    attempts: AtomicUsize,
    works: AtomicUsize,
    /// The ids of sent commands, by attempt.
    sent: Mutex<Vec<Vec<MessageId>>>,
    replies: Mutex<Vec<HandledReply>>,
    /// Ends a reply's job with an error.
    refuses_replies: AtomicUsize,
    go: Notify,
    late: Mutex<Option<Job>>,
}

#[derive(Worker)]
#[worker(domain = Desks, performs(Order), replies(Book))]
struct Clerk(Arc<Desk>);

impl Perform<Order> for Clerk {
    async fn perform(&self, order: Order, job: Job) -> Result<u64, WorkError> {
        let attempt = self.0.attempts.fetch_add(1, Ordering::Relaxed);
        let mut seen = 0;
        if order.how == How::Query {
            seen = job.query(CountOfEntries).await?;
        }
        let text = if order.how == How::Large { "x".repeat(300 * 1024) } else { String::new() };
        let book = |number| Book { book: order.order.clone(), number, text: text.clone() };
        let send = |number| {
            let sent = job.send(book(number));
            let delay = Duration::from_millis(20 * number);
            if order.how == How::Delay { sent.after(delay).id() } else { sent.id() }
        };
        let sent: Vec<_> = (1..=order.count).map(send).collect();
        match order.how {
            How::Delay => job.cancel(sent[1]),
            How::Cancel => job.cancel(self.0.sent.lock().unwrap()[0][0]),
            _ => {}
        }
        self.0.sent.lock().unwrap().push(sent);
        match order.how {
            How::Plain | How::Large | How::Query | How::Delay | How::Cancel => {}
            How::FailTwice if attempt < 2 => return Err(WorkError::Retry("the line is busy".into())),
            How::PanicTwice if attempt < 2 => panic!("the pen broke"),
            How::HangTwice if attempt < 2 => std::future::pending().await,
            How::FailTwice | How::PanicTwice | How::HangTwice => {}
            How::Fail if self.0.works.load(Ordering::Relaxed) == 0 => return Err(WorkError::Fail("closed".into())),
            How::Fail => {}
            How::Reject => return Err(Rejection::new("desks.no", "not today").into()),
            How::Slow => self.0.go.notified().await,
            How::EmptyKey => {
                job.send(Book { book: String::new(), number: 1, text: String::new() });
            }
            How::Late => *self.0.late.lock().unwrap() = Some(job),
        }
        Ok(seen)
    }
}

impl OnJobReply<Book> for Clerk {
    async fn on_job_reply(&self, reply: Result<u64, Rejection>, job: Job) -> Result<(), WorkError> {
        if self.0.refuses_replies.load(Ordering::Relaxed) > 0 {
            return Err(WorkError::Fail("the tray is full".into()));
        }
        let command = job.replied_command.expect("a reply answers a command");
        let reply = reply.map_err(|no| no.code().to_owned());
        self.0.replies.lock().unwrap().push((job.key, command, reply));
        Ok(())
    }
}

/// A worker that does not handle replies, and copies each entry to another book.
#[derive(Worker)]
#[worker(domain = Desks, on(Booked))]
struct Copyist;

impl OnEvent<Booked> for Copyist {
    async fn on_event(&self, booked: Booked, job: Job) -> Result<(), WorkError> {
        if !job.key.starts_with("copy-") {
            job.send(Book { book: format!("copy-{}", job.key), number: booked.number, text: String::new() });
        }
        Ok(())
    }
}

fn quick() -> NodeConfig {
    let retry = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(4) };
    NodeConfig { threads: 0, retry, job_limit: Duration::from_millis(50), ..NodeConfig::default() }
}

async fn start_with(store: &MemoryStore, desk: &Arc<Desk>, config: NodeConfig) -> Node {
    let node = Node::builder("office", store.clone()).aggregate::<Ledger>().projection::<Entries>();
    node.worker(Clerk(Arc::clone(desk))).worker(Copyist).config(config).start().await.unwrap()
}

async fn start(store: &MemoryStore, desk: &Arc<Desk>) -> Node {
    start_with(store, desk, quick()).await
}

fn order(order: &str, how: How, count: u64) -> Order {
    Order { order: order.to_owned(), how, count }
}

async fn booked(node: &Node, book: &str) -> Vec<u64> {
    node.wait_idle().await;
    node.client().send(Read { book: book.to_owned() }).await.unwrap()
}

fn replies(desk: &Desk) -> Vec<HandledReply> {
    let mut replies = desk.replies.lock().unwrap().clone();
    replies.sort_by_key(|(key, _, reply)| (key.clone(), reply.clone()));
    replies
}

#[whizbang::test]
async fn job_sends_commands_and_handles_their_replies() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    node.client().send(order("a", How::Plain, 2)).await.unwrap();
    node.client().send(order("b", How::Plain, 13)).await.unwrap();
    assert_eq!(booked(&node, "a").await, [1, 2]);
    assert_eq!(booked(&node, "copy-a").await, [1, 2], "a job of an event sends as well");
    assert_eq!(booked(&node, "b").await, (1..13).collect::<Vec<_>>());
    let sent = desk.sent.lock().unwrap().clone();
    let mut expected: Vec<_> = [("a", &sent[0]), ("b", &sent[1])]
        .into_iter()
        .flat_map(|(key, ids)| ids.iter().zip(1..).map(move |(id, number)| (key.to_owned(), *id, Ok(number))))
        .collect();
    expected.last_mut().unwrap().2 = Err("books.unlucky".to_owned());
    expected.sort_by_key(|(key, _, reply)| (key.clone(), reply.clone()));
    assert_eq!(replies(&desk), expected);
}

#[whizbang::test]
async fn failed_attempts_of_a_job_send_nothing() {
    for how in [How::FailTwice, How::PanicTwice, How::HangTwice] {
        let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
        let node = start(&store, &desk).await;
        node.client().send(order("a", how, 3)).await.unwrap();
        assert_eq!(booked(&node, "a").await, [1, 2, 3], "{how:?}");
        let sent = desk.sent.lock().unwrap().clone();
        assert_eq!(sent.len(), 3, "{how:?}");
        assert!(sent.iter().all(|ids| *ids == sent[0]), "every attempt gives the same ids: {sent:?}");
        assert_eq!(replies(&desk).len(), 3, "{how:?}");
    }
}

#[whizbang::test]
async fn dead_letter_of_a_job_sends_when_it_is_redriven() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    let error = node.client().send(order("a", How::Fail, 2)).await.unwrap_err();
    assert!(matches!(&error, SendError::DeadLetter { reason } if reason == "closed"), "{error}");
    assert!(booked(&node, "a").await.is_empty(), "a failed job sends nothing");
    drop(node);
    let node = start(&store, &desk).await;
    desk.works.store(1, Ordering::Relaxed);
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1);
    node.redrive(&letters[0]).await.unwrap();
    assert_eq!(booked(&node, "a").await, [1, 2]);
    let sent = desk.sent.lock().unwrap().clone();
    assert_eq!(sent[0], sent[1], "a redriven job gives the same ids");
    assert_eq!(replies(&desk).len(), 2);
}

#[whizbang::test]
async fn discarded_or_rejected_job_sends_nothing() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    let error = node.client().send(order("a", How::Reject, 2)).await.unwrap_err();
    assert_eq!(error.rejection().map(Rejection::code), Some("desks.no"));
    node.client().send(order("b", How::Fail, 2)).await.unwrap_err();
    let letters = node.dead_letters().await.unwrap();
    node.discard(&letters[0]).await.unwrap();
    assert_eq!((booked(&node, "a").await, booked(&node, "b").await), (vec![], vec![]));
}

#[whizbang::test]
async fn repeated_command_of_a_caller_sends_once() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    for _ in 0..2 {
        // The first run of this loop ends without a stop.
        let node = start(&store, &desk).await;
        for _ in 0..2 {
            node.client().send(order("a", How::Plain, 2)).idempotency_key("k").await.unwrap();
        }
        assert_eq!(booked(&node, "a").await, [1, 2]);
    }
    let replies = replies(&desk);
    assert_eq!(replies.len(), 2);
    assert!(replies.iter().all(|(key, ..)| key == "a"), "{replies:?}");
}

#[whizbang::test]
async fn messages_that_cannot_be_stored_make_a_dead_letter_at_once() {
    for (how, count, expected) in [
        (How::Plain, 1_001, "job sent more than 1000 messages"),
        (How::Large, 8, "job sent messages of more than 2097152 bytes"),
        (How::EmptyKey, 1, "job sent `Book` to an invalid key: 0 bytes, expected 1 to 256"),
    ] {
        let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
        let node = start(&store, &desk).await;
        let error = node.client().send(order("a", how, count)).await.unwrap_err();
        assert!(matches!(&error, SendError::DeadLetter { reason } if reason == expected), "{error}");
        assert_eq!(desk.attempts.load(Ordering::Relaxed), 1, "another attempt would fail as well");
        assert!(booked(&node, "a").await.is_empty(), "{how:?}");
        assert_eq!(node.dead_letters().await.unwrap().len(), 1);
    }
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    node.client().send(order("a", How::Plain, 1_000)).await.unwrap();
    node.client().send(order("b", How::Large, 6)).await.unwrap();
    assert_eq!((booked(&node, "a").await.len(), booked(&node, "b").await.len()), (999, 6));
}

#[whizbang::test]
async fn message_sent_after_the_job_is_dropped() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    node.client().send(order("a", How::Late, 1)).await.unwrap();
    let job = desk.late.lock().unwrap().take().unwrap();
    job.send(Book { book: "a".to_owned(), number: 2, text: String::new() });
    assert_eq!(booked(&node, "a").await, [1]);
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn delayed_messages_are_sent_later_and_cancelled_ones_never() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    node.client().send(order("a", How::Delay, 4)).await.unwrap();
    node.wait_idle().await;
    // The message of the fourth is due last, so that it shows that the second one is not sent.
    eventually(async || booked(&node, "a").await == [1, 3, 4]).await;
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(replies(&desk).len(), 0, "no reply to a delayed message is delivered");
}

#[whizbang::test]
async fn delayed_messages_survive_a_restart() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    node.client().send(order("a", How::Delay, 3)).await.unwrap();
    drop(node);
    let node = start(&store, &desk).await;
    eventually(async || booked(&node, "a").await == [1, 3]).await;
    node.client().send(order("b", How::Cancel, 1)).await.unwrap();
    assert_eq!(booked(&node, "b").await, [1]);
    assert_eq!(booked(&node, "a").await, [1, 3]);
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn job_queries_a_view() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    node.client().send(order("a", How::Plain, 2)).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().send(order("b", How::Query, 1)).await.unwrap(), 4, "two entries and their copies");
    assert_eq!(booked(&node, "b").await, [1]);
}

#[whizbang::test]
async fn failed_reply_becomes_a_dead_letter_and_is_redriven() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let node = start(&store, &desk).await;
    desk.refuses_replies.store(1, Ordering::Relaxed);
    node.client().send(order("a", How::Plain, 2)).await.unwrap();
    node.wait_idle().await;
    let letters = node.dead_letters().await.unwrap();
    let about: Vec<_> = letters.iter().map(|letter| (letter.key.as_str(), letter.error.as_str())).collect();
    assert_eq!(about, [("a", "the tray is full"); 2]);
    desk.refuses_replies.store(0, Ordering::Relaxed);
    node.redrive(&letters[0]).await.unwrap();
    node.wait_idle().await;
    assert_eq!((replies(&desk).len(), node.dead_letters().await.unwrap().len()), (2, 0));
}

#[whizbang::test]
async fn reply_that_is_no_longer_listed_is_dropped() {
    /// The clerk of an older program.
    #[derive(Worker)]
    #[worker(domain = Desks, name = "clerk", performs(Order))]
    struct Plain;

    impl Perform<Order> for Plain {
        async fn perform(&self, order: Order, job: Job) -> Result<u64, WorkError> {
            job.send(Book { book: order.order, number: 1, text: String::new() });
            Ok(0)
        }
    }

    let (hub, desk) = (LoopbackHub::new(), Arc::<Desk>::default());
    let desks = MemoryStore::new();
    let node = Node::builder("desks", desks.clone()).worker(Clerk(Arc::clone(&desk))).threads(0).bridge(hub.bridge());
    let node = node.start().await.unwrap();
    node.client().send(order("a", How::Plain, 1)).await.unwrap();
    // The owner of the books starts later: the command waits in the outbox of the worker's shard.
    node.stop().await.unwrap();
    let books = Node::builder("books", MemoryStore::new()).aggregate::<Ledger>().threads(0).bridge(hub.bridge());
    let books = books.start().await.unwrap();
    let node = Node::builder("desks", desks).worker(Plain).threads(0).bridge(hub.bridge()).start().await.unwrap();
    node.client().send(order("b", How::Plain, 1)).await.unwrap();
    eventually(async || booked(&books, "a").await == [1] && booked(&books, "b").await == [1]).await;
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(replies(&desk).len(), 0);
}

#[whizbang::test]
async fn deferred_job_sends_once() {
    let (store, desk) = (MemoryStore::new(), Arc::<Desk>::default());
    let (hub, orders) = (LoopbackHub::new(), MemoryStore::new());
    let config = NodeConfig { job_limit: Duration::from_secs(60), ..quick() };
    let office = |store: &MemoryStore| {
        let node = Node::builder("office", store.clone()).aggregate::<Ledger>().worker(Clerk(Arc::clone(&desk)));
        node.config(config.clone()).bridge(hub.bridge())
    };
    let node = office(&store).start().await.unwrap();
    let planner = Node::builder("plans", orders).aggregate::<Planner>().threads(0).bridge(hub.bridge());
    let planner = planner.start().await.unwrap();
    planner.client().send(Plan { order: "a".to_owned() }).await.unwrap();
    eventually(async || node.metrics().turns > 0 && desk.attempts.load(Ordering::Relaxed) == 1).await;
    // Killed while its job is deferred and running; the message of the job is settled already.
    drop(node);
    let node = office(&store).start().await.unwrap();
    eventually(async || desk.attempts.load(Ordering::Relaxed) == 2).await;
    desk.go.notify_waiters();
    desk.go.notify_one();
    eventually(async || booked(&node, "a").await == [1, 2]).await;
    eventually(async || replies(&desk).len() == 2).await;
    let sent = desk.sent.lock().unwrap().clone();
    assert_eq!(sent[0], sent[1]);
}

#[derive(Domain)]
#[domain(name = "plans")]
struct Plans;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Plans)]
struct Plan {
    #[key]
    order: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Plans, handles(Plan))]
struct Planner {}

impl Handle<Plan> for Planner {
    fn handle(&self, plan: Plan, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(order(&plan.order, How::Slow, 2));
        Ok(())
    }
}
