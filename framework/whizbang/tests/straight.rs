//! Commands that find nothing before them are taken where they are sent, and all holds for them that holds for the others.

mod polled;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use polled::polled;
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

/// How often this guest stumbles.
const CLUMSY: u32 = 13;
/// This one brings another one along.
const GUIDE: u32 = 100;

thread_local! {
    static STUMBLES: Cell<u32> = const { Cell::new(0) };
    static CLIENT: RefCell<Option<Client>> = const { RefCell::new(None) };
}

impl Handle<Enter> for Room {
    /// Replies with who was there before.
    fn handle(&self, enter: Enter, effects: &mut Effects<Self>) -> Result<Vec<u32>, Rejection> {
        if enter.guest == CLUMSY && STUMBLES.get() > 0 {
            STUMBLES.set(STUMBLES.get() - 1);
            panic!("over the threshold");
        }
        if enter.guest >= GUIDE {
            // No handler should, but one may have a client and send, and nothing must come of it but a command.
            let client = CLIENT.with_borrow(Clone::clone).expect("the test has left one");
            for room in [enter.room.as_str(), "next", "unknown"] {
                drop(polled(client.send(self::enter(room, enter.guest - GUIDE))));
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
async fn others_run_while_a_task_sends_over_and_over() {
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
        assert!(sent < 10_000, "it never lets others run");
    }
    other.await.unwrap();
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn while_a_failed_turn_is_tried_again_what_comes_later_waits_for_it() {
    let node = rooms().await;
    let client = node.client();
    client.send(enter("hall", 1)).await.unwrap();
    STUMBLES.set(2);
    // All are sent before any is waited for.
    let clumsy = polled(client.send(enter("hall", CLUMSY)));
    let other = polled(client.send(enter("bar", 2)));
    let later = polled(client.send(enter("hall", 3)));
    assert_eq!(other.await.unwrap(), [0; 0], "another room has nothing to do with it");
    assert_eq!(later.await.unwrap(), [1, CLUMSY]);
    assert_eq!(clumsy.await.unwrap(), [1]);
    assert_eq!(STUMBLES.get(), 0);
    assert_eq!(client.send(enter("hall", 4)).await.unwrap(), [1, CLUMSY, 3]);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn what_a_handler_sends_is_handled_after_its_own_turn() {
    let node = rooms().await;
    let client = node.client();
    for room in ["hall", "next"] {
        client.send(enter(room, 1)).await.unwrap();
    }
    CLIENT.set(Some(client.clone()));
    assert_eq!(client.send(enter("hall", GUIDE + 2)).await.unwrap(), [1]);
    CLIENT.set(None);
    assert_eq!(client.send(enter("hall", 3)).await.unwrap(), [1, GUIDE + 2, 2]);
    assert_eq!(client.send(enter("next", 3)).await.unwrap(), [1, 2]);
    assert_eq!(client.send(enter("unknown", 3)).await.unwrap(), [2]);
    node.stop().await.unwrap();
}
