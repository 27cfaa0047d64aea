//! Commands to an empty mailbox run inline on the thread of the sender, with the guarantees of all other commands.

mod poll_once;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use poll_once::poll_once;
use whizbang::prelude::*;
use whizbang::{NodeConfig, Retry, SendError};

#[derive(Domain)]
struct Rooms;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Rooms, reply = Vec<u32>)]
struct Enter {
    #[key]
    room: String,
    guest: u32,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Rooms)]
struct Entered {
    guest: u32,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Rooms, handles(Enter), applies(Entered))]
struct Room {
    guests: Vec<u32>,
}

/// The guest for which the handler panics [`PANICS`] times.
const PANICKING: u32 = 13;
/// The first of the guests for which the handler itself sends commands.
const SENDING: u32 = 100;

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
    static CLIENT: RefCell<Option<Client>> = const { RefCell::new(None) };
}

impl Handle<Enter> for Room {
    /// Replies with the guests that entered before.
    fn handle(&self, enter: Enter, effects: &mut Effects<Self>) -> Result<Vec<u32>, Rejection> {
        if enter.guest == PANICKING && PANICS.get() > 0 {
            PANICS.set(PANICS.get() - 1);
            panic!("planned: the guest makes the handler panic");
        }
        if enter.guest >= SENDING {
            // Handlers should not send through a client, but they can: the commands must be handled like any other.
            let client = CLIENT.with_borrow(Clone::clone).expect("the test has set one");
            for room in [enter.room.as_str(), "next", "unknown"] {
                drop(poll_once(client.send(self::enter(room, enter.guest - SENDING))));
            }
        }
        effects.record(Entered { guest: enter.guest });
        Ok(self.guests.clone())
    }
}

impl Apply<Entered> for Room {
    fn apply(&mut self, entered: &Entered) {
        self.guests.push(entered.guest);
    }
}

fn enter(room: &str, guest: u32) -> Enter {
    Enter { room: room.to_owned(), guest }
}

async fn rooms() -> Node {
    let retry = Retry { first: Duration::from_millis(1), longest: Duration::from_millis(2), ..Retry::default() };
    let config = NodeConfig { threads: 0, retry, ..NodeConfig::default() };
    Node::builder("hotel", MemoryStore::new()).threads(0).config(config).aggregate::<Room>().start().await.unwrap()
}

#[whizbang::test]
async fn loop_of_sends_yields_to_other_tasks() {
    let node = rooms().await;
    let client = node.client();
    client.send(enter("hall", 0)).await.unwrap();
    let ran = Rc::new(Cell::new(false));
    let other = tokio::task::spawn_local({
        let ran = Rc::clone(&ran);
        async move { ran.set(true) }
    });
    let mut sent = 0;
    while !ran.get() {
        client.send(enter("hall", 1)).await.unwrap();
        sent += 1;
        assert!(sent < 10_000, "other tasks never ran");
    }
    other.await.unwrap();
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn later_commands_wait_for_a_retried_turn() {
    let node = rooms().await;
    let client = node.client();
    client.send(enter("hall", 1)).await.unwrap();
    PANICS.set(2);
    // All are sent before any reply is awaited.
    let panicking = poll_once(client.send(enter("hall", PANICKING)));
    let other = poll_once(client.send(enter("bar", 2)));
    let later = poll_once(client.send(enter("hall", 3)));
    assert_eq!(other.await.unwrap(), [0; 0], "another room is independent");
    assert_eq!(later.await.unwrap(), [1, PANICKING]);
    assert_eq!(panicking.await.unwrap(), [1]);
    assert_eq!(PANICS.get(), 0);
    assert_eq!(client.send(enter("hall", 4)).await.unwrap(), [1, PANICKING, 3]);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn command_sent_by_a_handler_runs_after_its_turn() {
    let node = rooms().await;
    let client = node.client();
    for room in ["hall", "next"] {
        client.send(enter(room, 1)).await.unwrap();
    }
    CLIENT.set(Some(client.clone()));
    assert_eq!(client.send(enter("hall", SENDING + 2)).await.unwrap(), [1]);
    CLIENT.set(None);
    assert_eq!(client.send(enter("hall", 3)).await.unwrap(), [1, SENDING + 2, 2]);
    assert_eq!(client.send(enter("next", 3)).await.unwrap(), [1, 2]);
    assert_eq!(client.send(enter("unknown", 3)).await.unwrap(), [2]);
    node.stop().await.unwrap();
}

thread_local! {
    /// The place at which the next span of a turn panics: its begin or its end.
    static PANIC_AT: Cell<&'static str> = const { Cell::new("") };
}

/// A subscriber of spans that panics at the begin or the end of a turn. Spans are outside of the guard for user code.
struct PanickingSubscriber;

/// The id of the spans of turns.
const TURN: u64 = 1;

impl tracing::Subscriber for PanickingSubscriber {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_span()
    }

    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(if span.metadata().name() == "turn" { TURN } else { TURN + 1 })
    }

    fn record(&self, _span: &tracing::span::Id, _values: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _span: &tracing::span::Id, _follows: &tracing::span::Id) {}

    fn event(&self, _event: &tracing::Event<'_>) {}

    fn enter(&self, span: &tracing::span::Id) {
        panic_if_planned("begin", span);
    }

    fn exit(&self, span: &tracing::span::Id) {
        panic_if_planned("end", span);
    }
}

fn panic_if_planned(at: &str, span: &tracing::span::Id) {
    if span.into_u64() == TURN && PANIC_AT.get() == at {
        PANIC_AT.set("");
        panic!("planned: the {at} of a span panics");
    }
}

/// A turn inline, in the mailbox of a key that becomes live, and as an envelope with its own id. The first two are appended when
/// the panic occurs. The sender is told that the outcome is unknown and does not panic; the log decides.
#[whizbang::test]
async fn panic_beside_a_turn_is_answered_as_unknown() {
    let _subscribed = tracing::subscriber::set_default(PanickingSubscriber);
    let node = rooms().await;
    let client = node.client();
    for (room, first, at, in_log) in
        [("hall", true, "end", vec![1, 2]), ("bar", false, "end", vec![2]), ("attic", true, "begin", vec![1])]
    {
        if first {
            assert_eq!(client.send(enter(room, 1)).await.unwrap(), [0; 0]);
        }
        PANIC_AT.set(at);
        let sent = client.send(enter(room, 2)).no_retry();
        let unknown = if room == "attic" { sent.id(client.new_id()).await } else { sent.await };
        assert_eq!(PANIC_AT.get(), "", "{room}: the span has panicked");
        assert!(matches!(unknown, Err(SendError::Unknown { .. })), "{room}: {unknown:?}");
        // A command that arrives while the shards are reopened is not handled.
        let guests = loop {
            match client.send(enter(room, 3)).await {
                Ok(guests) => break guests,
                Err(SendError::Stopped) => tokio::task::yield_now().await,
                Err(other) => panic!("{room}: {other:?}"),
            }
        };
        assert_eq!(guests, in_log, "{room}");
    }
    node.wait_idle().await;
    assert!(node.health().live && node.health().ready, "{:?}", node.health());
    node.stop().await.unwrap();
}
