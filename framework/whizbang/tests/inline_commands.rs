//! Commands to an empty mailbox run inline on the thread of the sender, with the guarantees of all other commands.

mod poll_once;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use poll_once::poll_once;
use whizbang::prelude::*;
use whizbang::{NodeConfig, Retry};

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
