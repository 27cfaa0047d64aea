//! Layers: around handlers, jobs and requests; their order, their refusals, and the layers of a repetition.

mod eventually;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventually::eventually;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::{Clock, Timestamp};
use whizbang::layer::{Call, CallOutcome, Layer, Refusal};
use whizbang::message::Kind;
use whizbang::prelude::*;
use whizbang::{Retry, SendError};

#[derive(Domain)]
#[domain(name = "shop", shards = 2)]
struct Shop;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Shop, reply = u64)]
struct Add {
    #[key]
    cart: String,
    items: u64,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Shop, reply = u64)]
struct Count {
    #[key]
    cart: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Shop)]
struct Added {
    items: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Shop, handles(Add, Count), applies(Added))]
struct Cart {
    items: u64,
}

impl Handle<Add> for Cart {
    fn handle(&self, add: Add, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if add.items == 0 {
            return Err(Rejection::new("shop.nothing", "nothing to add"));
        }
        effects.record(Added { items: add.items });
        Ok(self.items + add.items)
    }
}

impl Handle<Count> for Cart {
    fn handle(&self, _count: Count, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(self.items)
    }
}

impl Apply<Added> for Cart {
    fn apply(&mut self, added: &Added) {
        self.items += added.items;
    }
}

/// Counts the items of a cart as they arrive.
#[derive(Saga, Default)]
#[saga(domain = Shop, handles(Seen), reacts(Added), applies(Noted))]
struct Watch {
    seen: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Shop, reply = String)]
struct Seen {
    #[key]
    cart: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Shop)]
struct Noted {
    items: u64,
}

impl React<Added> for Watch {
    fn react(&self, added: Added, effects: &mut Effects<Self>) {
        effects.record(Noted { items: added.items });
    }
}

impl Apply<Noted> for Watch {
    fn apply(&mut self, noted: &Noted) {
        self.seen += &format!("{} ", noted.items);
    }
}

impl Handle<Seen> for Watch {
    fn handle(&self, _seen: Seen, _effects: &mut Effects<Self>) -> Result<String, Rejection> {
        Ok(self.seen.clone())
    }
}

#[derive(Domain)]
#[domain(name = "mail", shards = 1)]
struct Mail;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Mail, reply = u64)]
struct SendMail {
    #[key]
    to: String,
}

#[derive(Worker)]
#[worker(domain = Mail, performs(SendMail))]
struct Mailer;

impl Perform<SendMail> for Mailer {
    async fn perform(&self, _mail: SendMail, job: Job) -> Result<u64, WorkError> {
        Ok(u64::from(job.delivery))
    }
}

/// Writes down what it sees, under a name.
#[derive(Clone)]
struct Trace(&'static str, Arc<Mutex<Vec<String>>>);

impl Trace {
    fn new(name: &'static str) -> Self {
        Self(name, Arc::default())
    }

    fn lines(&self) -> Vec<String> {
        std::mem::take(&mut self.1.lock().unwrap())
    }

    fn add(&self, line: String) {
        self.1.lock().unwrap().push(format!("{} {line}", self.0));
    }
}

impl Layer for Trace {
    fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
        self.add(format!("before {}.{} {}", call.handler(), call.name(), call.key()));
        Ok(())
    }

    fn after(&self, call: &Call<'_>, outcome: CallOutcome<'_>) {
        self.add(match outcome {
            CallOutcome::Rejected(rejection) => format!("after {} {}", call.name(), rejection.code()),
            CallOutcome::Failed(text) => format!("after {} failed: {text}", call.name()),
            outcome => format!("after {} {outcome:?}", call.name()),
        });
    }
}

/// Does what its function says before a message.
struct Before<F>(F);

impl<F: Fn(&Call<'_>) -> Result<(), Refusal> + Send + Sync + 'static> Layer for Before<F> {
    fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
        (self.0)(call)
    }
}

fn no(code: &'static str) -> Result<(), Refusal> {
    Err(Rejection::new(code, "a layer says no").into())
}

fn add(cart: &str, items: u64) -> Add {
    Add { cart: cart.to_owned(), items }
}

fn code<T: std::fmt::Debug>(result: Result<T, SendError>) -> String {
    result.unwrap_err().rejection().expect("a rejection").code().to_owned()
}

fn shop() -> whizbang::NodeBuilder {
    Node::builder("shop", MemoryStore::new()).threads(0).aggregate::<Cart>().saga::<Watch>()
}

async fn count(node: &Node, cart: &str) -> u64 {
    node.client().send(Count { cart: cart.to_owned() }).await.unwrap()
}

#[whizbang::test]
async fn layers_run_in_order_around_a_turn() {
    let trace = Trace::new("outer");
    let inner = Trace("inner", Arc::clone(&trace.1));
    let of = Trace("typed", Arc::clone(&trace.1));
    // The layer of a type is inside those of the node, although it is placed first.
    let node = shop().layer_of::<Add>(of).layer(trace.clone()).layer(inner).start().await.unwrap();
    node.client().send(add("a", 2)).await.unwrap();
    node.wait_idle().await;
    let turn = [
        "outer before cart.Add a",
        "inner before cart.Add a",
        "typed before cart.Add a",
        "typed after Add Done",
        "inner after Add Done",
        "outer after Add Done",
    ];
    let reaction = [
        "outer before watch.Added a",
        "inner before watch.Added a",
        "inner after Added Done",
        "outer after Added Done",
    ];
    assert_eq!(trace.lines(), turn.into_iter().chain(reaction).collect::<Vec<_>>());
    assert_eq!(code(node.client().send(add("a", 0)).await), "shop.nothing");
    assert_eq!(
        trace.lines()[3..],
        ["typed after Add shop.nothing", "inner after Add shop.nothing", "outer after Add shop.nothing"]
    );
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn rejection_by_a_layer_is_the_stored_reply() {
    let (asked, trace) = (Arc::new(AtomicU32::new(0)), Trace::new("outer"));
    let counted = Arc::clone(&asked);
    // It rejects the first message only.
    let layer = Before(
        move |_: &Call<'_>| if counted.fetch_add(1, Ordering::Relaxed) == 0 { no("shop.closed") } else { Ok(()) },
    );
    let node = shop().layer(trace.clone()).layer_of::<Add>(layer).start().await.unwrap();
    let client = node.client();
    let sent = async || client.send(add("a", 5)).idempotency_key("order 1").await;
    assert_eq!(code(sent().await), "shop.closed");
    assert_eq!(trace.lines(), ["outer before cart.Add a", "outer after Add shop.closed"]);
    // The repeated command gets its stored reply and passes no layer.
    assert_eq!(code(sent().await), "shop.closed");
    assert_eq!((asked.load(Ordering::Relaxed), trace.lines().len()), (1, 0));
    assert_eq!(node.metrics().rejections, 1);
    // Another command passes, and nothing of the rejected one was recorded.
    assert_eq!(client.send(add("a", 5)).await.unwrap(), 5);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn panic_of_a_layer_is_a_panic_of_the_turn() {
    for after in [false, true] {
        struct Bomb(bool, Arc<AtomicU32>);
        impl Layer for Bomb {
            fn before(&self, _call: &Call<'_>) -> Result<(), Refusal> {
                self.1.fetch_add(1, Ordering::Relaxed);
                assert!(self.0, "planned: before");
                Ok(())
            }
            fn after(&self, _call: &Call<'_>, outcome: CallOutcome<'_>) {
                assert!(!self.0 || !matches!(outcome, CallOutcome::Done), "planned: after");
            }
        }
        let (runs, trace) = (Arc::new(AtomicU32::new(0)), Trace::new("outer"));
        let retry = Retry { attempts: 2, first: Duration::from_millis(1), longest: Duration::from_millis(1) };
        let node = shop().retry(retry).layer(trace.clone()).layer_of::<Add>(Bomb(after, Arc::clone(&runs)));
        let node = node.start().await.unwrap();
        let failed = node.client().send(add("a", 5)).await.unwrap_err();
        let place = if after { "planned: after" } else { "planned: before" };
        assert!(matches!(&failed, SendError::Failed { reason } if reason.contains(place)), "{failed:?}");
        assert_eq!((runs.load(Ordering::Relaxed), node.metrics().panics), (2, 2), "it was tried again like a handler");
        let failures = trace.lines().iter().filter(|line| line.contains("failed") && line.contains(place)).count();
        assert_eq!(failures, 2, "the other layer has seen both failures");
        assert_eq!(count(&node, "a").await, 0);
        node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn busy_layer_delays_events_and_returns_commands() {
    let asked = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&asked);
    // The third attempt of each passes.
    let layer = move |_: &Call<'_>| match counted.fetch_add(1, Ordering::Relaxed) % 3 {
        2 => Ok(()),
        _ => Err(Refusal::Busy { after: Duration::from_millis(1) }),
    };
    let node = shop().layer_of::<Added>(Before(layer)).start().await.unwrap();
    for items in 1..=3 {
        node.client().send(add("a", items)).await.unwrap();
    }
    eventually(async || node.client().send(Seen { cart: "a".to_owned() }).await.unwrap() == "1 2 3 ").await;
    assert_eq!((asked.load(Ordering::Relaxed), node.metrics().dead_letters), (9, 0), "no wait was an attempt");
    node.stop().await.unwrap();

    let busy = Before(|_: &Call<'_>| Err(Refusal::Busy { after: Duration::from_millis(1) }));
    let node = shop().layer_of::<Add>(busy).start().await.unwrap();
    let refused = node.client().send(add("a", 1)).await.unwrap_err();
    assert!(matches!(refused, SendError::Busy { .. }), "{refused:?}");
    assert_eq!((count(&node, "a").await, node.metrics().busy), (0, 1));
    node.stop().await.unwrap();
}

/// A layer that is busy for ever uses up no attempt of an event or a command of an actor, so nothing else would show it.
#[tokio::test(start_paused = true)]
async fn layer_that_is_busy_for_long_shows_until_it_lets_pass() {
    let test = async {
        let is_busy = Arc::new(AtomicU32::new(1));
        let layer = |is_busy: &Arc<AtomicU32>| {
            let is_busy = Arc::clone(is_busy);
            Before(move |_: &Call<'_>| match is_busy.load(Ordering::Relaxed) {
                0 => Ok(()),
                _ => Err(Refusal::Busy { after: Duration::from_millis(500) }),
            })
        };
        let node = shop().worker(Mailer).layer_of::<Added>(layer(&is_busy)).layer_of::<SendMail>(layer(&is_busy));
        let node = node.start().await.unwrap();
        let metrics = || (node.metrics().stuck_keys, node.metrics().dead_letters, node.metrics().retries);
        node.client().send(add("a", 1)).await.unwrap();
        node.client().send(add("a", 2)).await.unwrap();
        let mail = tokio::task::spawn_local(node.client().post(SendMail { to: "ada".to_owned() }));
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!((metrics(), node.health().reasons), ((0, 0, 0), Vec::new()), "a rate limit may take as long");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let health = node.health();
        assert!(health.ready && health.reasons.len() == 2, "{health:?}");
        for text in
            ["a layer has refused a message of key `a` of `watch` in shop/", "a layer has refused a job of `mailer`"]
        {
            assert!(health.reasons.iter().any(|reason| reason.starts_with(text)), "{health:?}");
        }
        assert_eq!(metrics(), (2, 0, 0));
        assert!((40..=46).contains(&node.metrics().busy), "{}", node.metrics().busy);
        is_busy.store(0, Ordering::Relaxed);
        mail.await.unwrap().unwrap();
        node.wait_idle().await;
        assert_eq!((metrics(), node.health().reasons), ((0, 0, 0), Vec::new()));
        assert_eq!(node.client().send(Seen { cart: "a".to_owned() }).await.unwrap(), "1 2 ");
        node.stop().await.unwrap();
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[whizbang::test]
async fn event_refused_after_a_restart_is_no_suspect() {
    let (store, (clock, hand)) = (MemoryStore::new(), Clock::manual(Timestamp::from_millis(1_800_000_000_000)));
    let refusals = Arc::new(AtomicU32::new(u32::MAX));
    let start = async || {
        let left = Arc::clone(&refusals);
        let one_less = move || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        let layer = Before(move |_: &Call<'_>| match one_less() {
            Ok(_) => Err(Refusal::Busy { after: Duration::from_millis(1) }),
            Err(_) => Ok(()),
        });
        let node = Node::builder("shop", store.clone()).threads(0).aggregate::<Cart>().saga::<Watch>();
        node.clock(clock.clone()).layer_of::<Added>(layer).start().await.unwrap()
    };
    let node = start().await;
    node.client().send(add("a", 1)).await.unwrap();
    eventually(async || node.metrics().deferred == 1).await;
    drop(node);
    // The event is older than the next start, and is refused more often than a message may end the process.
    hand.advance(Duration::from_secs(1));
    refusals.store(20, Ordering::Relaxed);
    let node = start().await;
    eventually(async || refusals.load(Ordering::Relaxed) == 0 || node.metrics().dead_letters > 0).await;
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(node.client().send(Seen { cart: "a".to_owned() }).await.unwrap(), "1 ");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn event_rejected_by_a_layer_waits_as_a_dead_letter() {
    let closed = Arc::new(AtomicU32::new(1));
    let is_closed = Arc::clone(&closed);
    let layer =
        Before(move |_: &Call<'_>| if is_closed.load(Ordering::Relaxed) == 1 { no("shop.closed") } else { Ok(()) });
    let node = shop().layer_of::<Added>(layer).start().await.unwrap();
    node.client().send(add("a", 1)).await.unwrap();
    node.wait_idle().await;
    let letters = node.dead_letters().await.unwrap();
    assert!(letters.len() == 1 && letters[0].error.contains("shop.closed"), "{letters:?}");
    node.redrive(&letters[0]).await.unwrap_err();
    closed.store(0, Ordering::Relaxed);
    node.redrive(&letters[0]).await.unwrap();
    assert_eq!(node.client().send(Seen { cart: "a".to_owned() }).await.unwrap(), "1 ");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn layer_decodes_the_message_and_reads_its_headers() {
    let layer = Before(|call: &Call<'_>| {
        assert!(call.is::<Add>() && !call.is::<Added>() && call.message::<Added>().unwrap().is_none());
        assert_eq!((call.domain(), call.kind()), ("shop", Kind::Command));
        match (call.message::<Add>().unwrap(), call.header("role")) {
            (Some(add), None) if add.items > 10 => no("shop.too-many"),
            _ => Ok(()),
        }
    });
    let node = shop().layer_of::<Add>(layer).start().await.unwrap();
    let client = node.client();
    assert_eq!(code(client.send(add("a", 11)).await), "shop.too-many");
    assert_eq!(client.send(add("a", 11)).header("role", "admin").await.unwrap(), 11);
    assert_eq!(client.send(add("a", 10)).id(client.new_id()).await.unwrap(), 21);
    // The same decision for a message that travels as bytes.
    let posted = client.post(add("a", 12));
    posted.await.unwrap();
    node.wait_idle().await;
    assert_eq!(count(&node, "a").await, 21);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn delayed_command_passes_the_layers_of_its_handler() {
    let layer = Before(|call: &Call<'_>| if call.header("role").is_some() { Ok(()) } else { no("shop.no-role") });
    let trace = Trace::new("outer");
    let node = shop().layer(trace.clone()).layer(layer).start().await.unwrap();
    // The command that delays it is one of the framework's own, and has no role.
    node.client().post(add("a", 4)).header("role", "clerk").after(Duration::from_millis(1)).await.unwrap();
    eventually(async || trace.1.lock().unwrap().iter().any(|line| line == "outer after Add Done")).await;
    assert_eq!(trace.lines().first().unwrap(), "outer before cart.Add a");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn layers_run_around_each_attempt_of_a_job() {
    let trace = Trace::new("outer");
    let asked = AtomicU32::new(0);
    let layer = Before(move |call: &Call<'_>| match (asked.fetch_add(1, Ordering::Relaxed), call.key()) {
        (_, "stranger") => no("mail.unknown"),
        (0 | 1, _) => Err(Refusal::Busy { after: Duration::from_millis(1) }),
        (2, _) => panic!("planned: a layer of a job"),
        _ => Ok(()),
    });
    let retry = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(1) };
    let builder = Node::builder("mail", MemoryStore::new()).threads(0).worker(Mailer).retry(retry);
    let node = builder.layer(trace.clone()).layer(layer).start().await.unwrap();
    let client = node.client();
    // The waits of the layer are not attempts, its panic is one.
    assert_eq!(client.send(SendMail { to: "ada".to_owned() }).await.unwrap(), 2);
    let lines = trace.lines();
    assert_eq!(lines.iter().filter(|line| **line == "outer after SendMail Busy").count(), 2, "{lines:?}");
    let failed = "outer after SendMail failed: job panicked: planned: a layer of a job";
    assert_eq!(lines.iter().filter(|line| **line == failed).count(), 1, "{lines:?}");
    assert_eq!(lines.last().unwrap(), "outer after SendMail Done");
    let rejected = async || client.send(SendMail { to: "stranger".to_owned() }).idempotency_key("mail 1").await;
    assert_eq!(code(rejected().await), "mail.unknown");
    assert_eq!(trace.lines(), ["outer before mailer.SendMail stranger", "outer after SendMail mail.unknown"]);
    assert_eq!(code(rejected().await), "mail.unknown");
    assert_eq!(trace.lines(), [""; 0], "the repeated command gets the stored reply");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn layers_of_a_client_see_each_request_once() {
    let (hub, trace) = (LoopbackHub::new(), Trace::new("client"));
    let owner = shop().publishes::<Added>().bridge(hub.bridge()).start().await.unwrap();
    let caller = Client::connect("caller", hub.bridge()).await.unwrap();
    for bare in [owner.client(), caller.clone()] {
        let client = bare.layer(trace.clone());
        client.send(add("a", 3)).await.unwrap();
        client.post(add("a", 3)).await.unwrap();
        client.publish("b", Added { items: 1 }).await.unwrap();
        assert_eq!(code(client.send(add("a", 0)).await), "shop.nothing");
        let lines = trace.lines();
        let expected = [
            "client before .Add a",
            "client after Add Done",
            "client before .Add a",
            "client after Add Done",
            "client before .Added b",
            "client after Added Done",
            "client before .Add a",
            "client after Add shop.nothing",
        ];
        assert_eq!(lines, expected);
        // The client without the layer has none.
        bare.send(add("a", 1)).await.unwrap();
        assert_eq!(trace.lines(), [""; 0]);
    }
    caller.disconnect().await;
    owner.stop().await.unwrap();
}

#[whizbang::test]
async fn refusal_by_a_layer_of_a_client_sends_nothing() {
    let node = shop().start().await.unwrap();
    let turns = node.metrics().turns;
    let client = node.client().layer(Before(|_: &Call<'_>| no("client.closed")));
    assert_eq!(code(client.send(add("a", 3)).await), "client.closed");
    assert_eq!(code(client.post(add("a", 3)).await), "client.closed");
    let client = node.client().layer(Before(|_: &Call<'_>| Err(Refusal::Busy { after: Duration::from_millis(1) })));
    for request in [client.send(add("a", 3)).no_retry(), client.send(add("a", 3)).deadline(Duration::from_millis(20))] {
        let busy = request.await.unwrap_err();
        assert!(matches!(busy, SendError::Busy { .. }), "{busy:?}");
    }
    let client = node.client().layer(Before(|_: &Call<'_>| panic!("planned: a layer of a client")));
    let failed = client.send(add("a", 3)).await.unwrap_err();
    assert!(matches!(&failed, SendError::Failed { reason } if reason.contains("planned")), "{failed:?}");
    assert_eq!(node.metrics().turns, turns, "nothing was sent");
    node.stop().await.unwrap();
}
