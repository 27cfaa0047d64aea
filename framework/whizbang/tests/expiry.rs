//! Expiry: a command that its receiver reaches too late is not handled, and its sender gets a recorded rejection.

mod eventually;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use eventually::eventually;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::{Clock, ManualClock, Timestamp};
use whizbang::message::HeaderError;
use whizbang::prelude::*;
use whizbang::{Retry, SendError, WorkerOptions};

const SECOND: Duration = Duration::from_secs(1);
const LIFE: Duration = Duration::from_secs(10);

#[derive(Domain)]
#[domain(name = "orders", shards = 2)]
struct Orders;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Place {
    #[key]
    order: String,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Orders, reply = String)]
struct State {
    #[key]
    order: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
struct Stepped {
    state: String,
}

#[derive(Domain)]
#[domain(name = "stock", shards = 2)]
struct Stock;

/// Adds to an item, or takes from it.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Stock, reply = i64)]
struct Move {
    #[key]
    item: String,
    units: i64,
}

/// Blocks the thread of the item until the test continues.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Stock)]
struct Block {
    #[key]
    item: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Stock)]
struct Moved {
    units: i64,
}

/// Takes two items: the first in any case, the second within a time.
#[derive(Saga, Debug, Default)]
#[saga(domain = Orders, handles(Place), applies(Stepped), replies(Move), answers(State))]
struct Order {
    state: String,
}

impl Handle<Place> for Order {
    fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let take = |item: &str, units| Move { item: format!("{}-{item}", place.order), units };
        effects.send(take("first", -1)).compensate_with(take("first", 1));
        effects.send(take("second", -1)).expires_in(LIFE).compensate_with(take("second", 1));
        Ok(())
    }
}

impl OnReply<Move> for Order {
    fn on_reply(&self, reply: Result<i64, Rejection>, effects: &mut Effects<Self>) {
        match reply {
            Ok(_) => effects.record(Stepped { state: format!("{} taken", self.state) }),
            Err(no) => {
                effects.record(Stepped { state: no.code().to_owned() });
                effects.compensate();
            }
        }
    }
}

impl Apply<Stepped> for Order {
    fn apply(&mut self, stepped: &Stepped) {
        self.state = stepped.state.clone();
    }
}

impl Answer<State> for Order {
    fn answer(&self, _state: State) -> String {
        self.state.clone()
    }
}

static BLOCKED: Mutex<Option<(Sender<()>, Receiver<()>)>> = Mutex::new(None);

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Stock, handles(Move, Block), applies(Moved))]
struct Shelf {
    units: i64,
    moves: u32,
}

static IS_JAMMED: AtomicBool = AtomicBool::new(false);

impl Handle<Move> for Shelf {
    fn handle(&self, moves: Move, effects: &mut Effects<Self>) -> Result<i64, Rejection> {
        assert!(moves.item != "jam-second" || !IS_JAMMED.load(Ordering::Relaxed), "planned: the shelf is jammed");
        effects.record(Moved { units: moves.units });
        Ok(self.units + moves.units)
    }
}

impl Handle<Block> for Shelf {
    fn handle(&self, _block: Block, _effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let (begun, go) = BLOCKED.lock().take().expect("one test blocks");
        begun.send(()).expect("the test waits");
        go.recv().expect("the test continues");
        Ok(())
    }
}

impl Apply<Moved> for Shelf {
    fn apply(&mut self, moved: &Moved) {
        (self.units, self.moves) = (self.units + moved.units, self.moves + 1);
    }
}

fn clock() -> (Clock, ManualClock) {
    Clock::manual(Timestamp::from_millis(1_800_000_000_000))
}

async fn orders(hub: &LoopbackHub, clock: &Clock) -> Node {
    let node = Node::builder("orders", MemoryStore::new()).threads(0).saga::<Order>().clock(clock.clone());
    node.bridge(hub.bridge()).start().await.unwrap()
}

async fn stock(store: &MemoryStore, hub: &LoopbackHub, clock: &Clock) -> Node {
    let node = Node::builder("stock", store.clone()).threads(0).aggregate::<Shelf>().clock(clock.clone());
    node.bridge(hub.bridge()).start().await.unwrap()
}

async fn units(node: &Node, item: &str) -> i64 {
    node.client().send(Move { item: item.to_owned(), units: 0 }).await.unwrap()
}

async fn state(node: &Node) -> String {
    node.client().query(State { order: "o".to_owned() }).await.unwrap()
}

fn assert_expired<T: std::fmt::Debug>(reply: Result<T, SendError>) {
    match reply {
        Err(SendError::Rejected(no)) => assert_eq!(no.code(), Rejection::EXPIRED),
        other => panic!("{other:?}"),
    }
}

#[whizbang::test]
async fn saga_compensates_when_a_command_has_expired() {
    let (hub, store, (clock, hand)) = (LoopbackHub::new(), MemoryStore::new(), clock());
    let orders = orders(&hub, &clock).await;
    orders.client().send(Place { order: "o".to_owned() }).await.unwrap();
    hand.advance(LIFE + SECOND);
    let stock_node = stock(&store, &hub, &clock).await;
    eventually(async || state(&orders).await == Rejection::EXPIRED).await;
    eventually(async || stock_node.metrics().events == 2).await;
    assert_eq!((units(&stock_node, "o-first").await, units(&stock_node, "o-second").await), (0, 0));
    assert_eq!((stock_node.metrics().expired, stock_node.metrics().rejections), (1, 1));
    assert_eq!(stock_node.metrics().events, 4, "the first item was taken and returned");
    // The rejection is in the log: nothing is handled again.
    stock_node.stop().await.unwrap();
    let stock_node = stock(&store, &hub, &clock).await;
    assert_eq!(units(&stock_node, "o-second").await, 0);
    assert_eq!((stock_node.metrics().expired, state(&orders).await.as_str()), (0, Rejection::EXPIRED));
}

#[whizbang::test]
async fn expiry_is_a_time_by_the_clock_of_the_receiver() {
    for (ahead, behind) in [(240, 0), (0, 240)] {
        let (hub, (clock, hand), (other, other_hand)) = (LoopbackHub::new(), clock(), clock());
        hand.advance(behind * SECOND);
        other_hand.advance(ahead * SECOND);
        let stock_node = stock(&MemoryStore::new(), &hub, &other).await;
        let orders = orders(&hub, &clock).await;
        orders.client().send(Place { order: "o".to_owned() }).await.unwrap();
        let expected = if ahead > 0 { Rejection::EXPIRED } else { " taken taken" };
        eventually(async || state(&orders).await == expected).await;
        let take = orders.client().send(Move { item: "other".to_owned(), units: -1 }).expires_in(LIFE).await;
        if ahead > 0 {
            assert_expired(take)
        } else {
            assert_eq!(take.unwrap(), -1)
        }
        assert_eq!(stock_node.metrics().expired, if ahead > 0 { 2 } else { 0 });
    }
}

#[whizbang::test]
async fn command_behind_a_slow_one_expires_in_its_queue() {
    let (clock, hand) = clock();
    let node = Node::builder("stock", MemoryStore::new()).threads(1).aggregate::<Shelf>().clock(clock);
    let node = node.start().await.unwrap();
    let ((begun, has_begun), (go, may_go)) = (channel(), channel());
    *BLOCKED.lock() = Some((begun, may_go));
    let client = node.client();
    let block = tokio::task::spawn_local(client.send(Block { item: "i".to_owned() }));
    eventually(async || has_begun.try_recv().is_ok()).await;
    let moves = || Move { item: "i".to_owned(), units: 1 };
    let id = client.new_id();
    let mut late = std::pin::pin!(client.send(moves()).expires_in(LIFE));
    let mut early = std::pin::pin!(client.send(moves()).id(id).expires_in(LIFE * 2));
    assert!(futures_util::poll!(&mut late).is_pending() && futures_util::poll!(&mut early).is_pending());
    hand.advance(LIFE + SECOND);
    go.send(()).unwrap();
    block.await.unwrap().unwrap();
    assert_expired(late.await);
    assert_eq!(early.await.unwrap(), 1);
    // A repeated request gets the first reply, however late it is.
    hand.advance(LIFE * 3);
    assert_eq!(client.send(moves()).id(id).expires_in(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(units(&node, "i").await, 1);
    assert_eq!(node.metrics().expired, 1);
    node.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn delayed_command_expires_after_it_is_due() {
    let test = async {
        let (store, hub, begin) = (MemoryStore::new(), LoopbackHub::new(), Timestamp::from_millis(1_800_000_000_000));
        let node = stock(&store, &hub, &Clock::ticking(begin).0).await;
        let put = |item: &str| node.client().post(Move { item: item.to_owned(), units: 1 });
        put("in time").expires_in(LIFE).after(60 * SECOND).await.unwrap();
        put("late").after(90 * SECOND).expires_in(LIFE).await.unwrap();
        tokio::time::sleep(62 * SECOND).await;
        assert_eq!(node.metrics().events, 1);
        node.stop().await.unwrap();
        let node = stock(&store, &hub, &Clock::ticking(begin.after(101 * SECOND)).0).await;
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!((units(&node, "in time").await, units(&node, "late").await), (1, 0));
        assert_eq!(node.metrics().expired, 1);
        node.stop().await.unwrap();
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

/// As for the dead letter of a worker, the operator decides. The command that only waited behind it expires like one in a queue.
#[whizbang::test]
async fn redriven_dead_letter_is_handled_and_those_behind_it_expire() {
    let (hub, store, (clock, hand)) = (LoopbackHub::new(), MemoryStore::new(), clock());
    IS_JAMMED.store(true, Ordering::Relaxed);
    let retry = Retry { attempts: 1, ..Retry::default() };
    let node = Node::builder("stock", store).threads(0).aggregate::<Shelf>().clock(clock.clone()).retry(retry);
    let stock = node.bridge(hub.bridge()).start().await.unwrap();
    let orders = orders(&hub, &clock).await;
    for _ in 0..2 {
        orders.client().send(Place { order: "jam".to_owned() }).await.unwrap();
    }
    eventually(async || stock.dead_letters().await.unwrap().len() == 2).await;
    hand.advance(LIFE + SECOND);
    IS_JAMMED.store(false, Ordering::Relaxed);
    stock.redrive(&stock.dead_letters().await.unwrap()[0]).await.unwrap();
    assert!(stock.dead_letters().await.unwrap().is_empty());
    assert_eq!(stock.metrics().expired, 1);
    // The sender learns of both: it returns the three items that were taken.
    eventually(async || stock.metrics().events == 6).await;
    assert_eq!((units(&stock, "jam-first").await, units(&stock, "jam-second").await), (0, 0));
    let answer = orders.client().query(State { order: "jam".to_owned() }).await.unwrap();
    assert_eq!(answer, Rejection::EXPIRED);
}

#[whizbang::test]
async fn expiry_counts_among_the_headers_of_a_message() {
    let node = stock(&MemoryStore::new(), &LoopbackHub::new(), &Clock::system()).await;
    let moves = || Move { item: "i".to_owned(), units: 1 };
    let full = (0..64).fold(node.client().send(moves()), |send, n| send.header(&format!("h{n}"), ""));
    let refused = full.expires_in(LIFE).await.unwrap_err();
    assert!(matches!(refused, SendError::Header(HeaderError::TooMany { limit: 64 })), "{refused}");
    assert_eq!(units(&node, "i").await, 0);
}

#[derive(Domain)]
#[domain(name = "mail", shards = 1)]
struct Mail;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Mail, reply = u32)]
struct Deliver {
    #[key]
    to: String,
    failures: u32,
}

/// A service that delivers with a permit, and fails as often as the mail says.
struct Post {
    open: Semaphore,
    begun: Mutex<Vec<String>>,
}

#[derive(Worker)]
#[worker(domain = Mail, performs(Deliver))]
struct Postman(Arc<Post>);

impl Perform<Deliver> for Postman {
    async fn perform(&self, mail: Deliver, job: Job) -> Result<u32, WorkError> {
        self.0.begun.lock().push(mail.to);
        self.0.open.acquire().await?.forget();
        if job.delivery <= mail.failures {
            return Err(WorkError::retry("no answer"));
        }
        Ok(job.delivery)
    }
}

async fn postman(store: &MemoryStore, clock: &Clock, options: WorkerOptions) -> (Node, Arc<Post>) {
    let post = Arc::new(Post { open: Semaphore::new(0), begun: Mutex::default() });
    let retry = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let node = Node::builder("mail", store.clone()).threads(0).clock(clock.clone()).retry(retry);
    let node = node.worker_with(Postman(Arc::clone(&post)), options.jobs(1)).start().await.unwrap();
    (node, post)
}

fn mail(to: &str, failures: u32) -> Deliver {
    Deliver { to: to.to_owned(), failures }
}

#[whizbang::test]
async fn job_that_waits_expires_and_one_that_has_begun_is_completed() {
    let (store, (clock, hand)) = (MemoryStore::new(), clock());
    let (node, post) = postman(&store, &clock, WorkerOptions::new()).await;
    let client = node.client();
    let first = tokio::task::spawn_local(client.send(mail("first", 1)).expires_in(LIFE));
    eventually(async || post.begun.lock().len() == 1).await;
    let id = client.new_id();
    let mut late = std::pin::pin!(client.send(mail("late", 0)).id(id).expires_in(LIFE));
    let mut early = std::pin::pin!(client.send(mail("early", 0)).expires_in(3 * LIFE));
    assert!(futures_util::poll!(&mut late).is_pending() && futures_util::poll!(&mut early).is_pending());
    hand.advance(LIFE + SECOND);
    post.open.add_permits(10);
    assert_eq!(first.await.unwrap().unwrap(), 2, "its second attempt began after the expiry");
    assert_expired(late.await);
    assert_eq!(early.await.unwrap(), 1);
    let mut begun = post.begun.lock().clone();
    begun.sort();
    assert_eq!(begun, ["early", "first", "first"]);
    assert_eq!((node.metrics().expired, node.metrics().dead_letters), (1, 0));
    // The rejection is recorded: the same request gets it after a restart, with another time to live.
    node.stop().await.unwrap();
    let (node, post) = postman(&store, &clock, WorkerOptions::new()).await;
    assert_expired(node.client().send(mail("late", 0)).id(id).expires_in(3 * LIFE).await);
    assert!(post.begun.lock().is_empty());
}

#[whizbang::test]
async fn expired_job_is_a_dead_letter_if_its_worker_keeps_it() {
    let (clock, hand) = clock();
    let (node, post) = postman(&MemoryStore::new(), &clock, WorkerOptions::new().dead_letter_expired()).await;
    let first = tokio::task::spawn_local(node.client().send(mail("first", 0)));
    eventually(async || post.begun.lock().len() == 1).await;
    let mut late = std::pin::pin!(node.client().send(mail("late", 0)).expires_in(LIFE));
    assert!(futures_util::poll!(&mut late).is_pending());
    hand.advance(LIFE + SECOND);
    post.open.add_permits(10);
    first.await.unwrap().unwrap();
    assert!(matches!(late.await, Err(SendError::DeadLetter { .. })));
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].error.as_str(), letters[0].attempts), ("expired before its job began", 0));
    assert_eq!((node.metrics().expired, node.metrics().dead_letters), (1, 1));
    // An operator decides that it is not too late.
    node.redrive(&letters[0]).await.unwrap();
    assert_eq!(*post.begun.lock(), ["first", "late"]);
    assert!(node.dead_letters().await.unwrap().is_empty());
}
