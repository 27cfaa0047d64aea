//! Ids made by handlers: different for each actor, the same when the turn is retried.

mod wallet;

use wallet::{Filled, Wallet, fill};
use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "books")]
struct Books;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Books)]
struct Booked {
    id: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Books, reply = Vec<String>)]
struct Read {
    #[key]
    book: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Books, reply = Vec<String>)]
struct ReadCopy {
    #[key]
    book: String,
}

macro_rules! book {
    ($name:ident, $read:ident) => {
        #[derive(Aggregate, Default)]
        #[aggregate(domain = Books, handles($read), reacts(Filled), applies(Booked))]
        struct $name {
            ids: Vec<String>,
        }

        impl Handle<$read> for $name {
            fn handle(&self, _read: $read, _effects: &mut Effects<Self>) -> Result<Vec<String>, Rejection> {
                Ok(self.ids.clone())
            }
        }

        impl React<Filled> for $name {
            fn react(&self, _filled: Filled, effects: &mut Effects<Self>) {
                for _ in 0..2 {
                    let id = effects.new_id().to_string();
                    effects.record(Booked { id });
                }
            }
        }

        impl Apply<Booked> for $name {
            fn apply(&mut self, booked: &Booked) {
                self.ids.push(booked.id.clone());
            }
        }
    };
}

book!(Book, Read);
book!(Copy, ReadCopy);

#[whizbang::test]
async fn actors_handling_one_event_get_different_ids() {
    let builder = Node::builder("books", MemoryStore::new())
        .threads(0)
        .aggregate::<Wallet>()
        .aggregate::<Book>()
        .aggregate::<Copy>();
    let node = builder.start().await.unwrap();
    node.client().send(fill("t")).await.unwrap();
    node.wait_idle().await;
    let mut ids = node.client().send(Read { book: "t".into() }).await.unwrap();
    ids.extend(node.client().send(ReadCopy { book: "t".into() }).await.unwrap());
    assert_eq!(ids.len(), 4);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "{ids:?}");
}
