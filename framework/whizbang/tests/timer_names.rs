//! Timers of two documents with one name, of two domains, and timers that an older version stored under their plain
//! name.

mod bank;
mod eventually;

use std::time::Duration;

use eventually::eventually;
use whizbang::clock::Timestamp;
use whizbang::message::{Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::Store;

/// Another domain, with a document of the same name and other fields.
mod foreign {
    use whizbang::prelude::*;

    #[derive(Domain)]
    #[domain(name = "calendar")]
    pub(crate) struct Calendar;

    #[derive(Document, Serialize, Deserialize)]
    #[document(domain = Calendar)]
    pub(crate) struct Overdue {
        pub(crate) days: u64,
    }
}

#[derive(Domain)]
#[domain(shards = 1)]
struct Shop;

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Shop)]
struct Overdue {
    cents: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Shop)]
struct Place {
    #[key]
    order: String,
    own: Option<Duration>,
    foreign: Option<Duration>,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Shop)]
struct Forget {
    #[key]
    order: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Shop, reply = Vec<String>)]
struct ReadFired {
    #[key]
    order: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Shop)]
struct Rang {
    text: String,
}

/// The parts that both versions of the order share.
macro_rules! order {
    () => {
        impl Apply<Rang> for Order {
            fn apply(&mut self, rang: &Rang) {
                self.fired.push(rang.text.clone());
            }
        }

        impl Handle<ReadFired> for Order {
            fn handle(&self, _: ReadFired, _: &mut Effects<Self>) -> Result<Vec<String>, Rejection> {
                Ok(self.fired.clone())
            }
        }
    };
}

#[derive(Saga, Default)]
#[saga(
    domain = Shop,
    handles(Place, Forget, ReadFired),
    applies(Rang),
    timers(Overdue, foreign::Overdue)
)]
struct Order {
    fired: Vec<String>,
}

order!();

impl Handle<Place> for Order {
    fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if let Some(after) = place.own {
            effects.set_timer(&Overdue { cents: 7 }, after);
        }
        if let Some(after) = place.foreign {
            effects.set_timer(&foreign::Overdue { days: 3 }, after);
        }
        Ok(())
    }
}

impl Handle<Forget> for Order {
    fn handle(&self, _: Forget, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.clear_timer::<foreign::Overdue>();
        Ok(())
    }
}

impl OnTimer<Overdue> for Order {
    fn on_timer(&self, overdue: Overdue, effects: &mut Effects<Self>) {
        effects.record(Rang { text: format!("{} cents", overdue.cents) });
    }
}

impl OnTimer<foreign::Overdue> for Order {
    fn on_timer(&self, overdue: foreign::Overdue, effects: &mut Effects<Self>) {
        effects.record(Rang { text: format!("{} days", overdue.days) });
    }
}

/// The same actor, whose only document is of the other domain. An older version stored it under the plain name, as it
/// did for the document of [`Order`].
mod reader {
    use super::*;

    #[derive(Saga, Default)]
    #[saga(domain = Shop, handles(Place, Forget, ReadFired), applies(Rang), timers(foreign::Overdue))]
    pub(super) struct Order {
        fired: Vec<String>,
    }

    order!();

    impl Handle<Place> for Order {
        fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            if let Some(after) = place.foreign {
                effects.set_timer(&foreign::Overdue { days: 4 }, after);
            }
            Ok(())
        }
    }

    impl Handle<Forget> for Order {
        fn handle(&self, _: Forget, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            effects.clear_timer::<foreign::Overdue>();
            Ok(())
        }
    }

    impl OnTimer<foreign::Overdue> for Order {
        fn on_timer(&self, overdue: foreign::Overdue, effects: &mut Effects<Self>) {
            effects.record(Rang { text: format!("{} days", overdue.days) });
        }
    }
}

const SOON: Option<Duration> = Some(Duration::from_millis(1));
const LATER: Option<Duration> = Some(Duration::from_secs(3_600));

fn place(own: Option<Duration>, foreign: Option<Duration>) -> Place {
    Place { order: "o1".into(), own, foreign }
}

async fn fired(node: &Node) -> Vec<String> {
    node.client().send(ReadFired { order: "o1".into() }).await.unwrap()
}

async fn node<A: Saga>(store: &MemoryStore) -> Node {
    // The version that has only the foreign document declares its own one as retired.
    Node::builder("shop", store.clone()).threads(0).retired("Overdue").saga::<A>().start().await.unwrap()
}

/// Returns the names under which timers are stored.
async fn stored(store: &MemoryStore) -> Vec<String> {
    struct Deaf;
    impl whizbang::store::CommitListener for Deaf {
        fn committed(&self, _: whizbang::store::Ticket) {}
        fn failed(&self, _: whizbang::store::StoreError) {}
    }
    let shard = ShardId::new(Name::new("shop").unwrap(), 0);
    let handle = store.open(&shard, 1, std::sync::Arc::new(Deaf)).await.unwrap();
    let timers = handle.reader.timers_due(Timestamp::from_millis(u64::MAX), 100);
    timers.into_iter().map(|timer| timer.name).collect()
}

#[whizbang::test]
async fn documents_of_one_name_fire_timers_of_their_type() {
    let node = node::<Order>(&MemoryStore::new()).await;
    node.client().send(place(SOON, None)).await.unwrap();
    eventually(async || fired(&node).await == ["7 cents"]).await;
    node.client().send(place(None, SOON)).await.unwrap();
    eventually(async || fired(&node).await == ["7 cents", "3 days"]).await;
    node.client().send(place(SOON, SOON)).await.unwrap();
    eventually(async || fired(&node).await.len() == 4).await;
    let mut fired = fired(&node).await;
    fired.sort();
    assert_eq!(fired, ["3 days", "3 days", "7 cents", "7 cents"]);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn documents_of_one_name_are_set_and_cleared_alone() {
    let store = MemoryStore::new();
    let first = node::<Order>(&store).await;
    first.client().send(place(LATER, LATER)).await.unwrap();
    first.stop().await.unwrap();
    assert_eq!(stored(&store).await, ["Overdue", "calendar.Overdue"]);
    // After a restart, so that the replay is tested.
    let second = node::<Order>(&store).await;
    second.client().send(Forget { order: "o1".into() }).await.unwrap();
    second.stop().await.unwrap();
    assert_eq!(stored(&store).await, ["Overdue"]);
    let third = node::<Order>(&store).await;
    third.client().send(place(SOON, None)).await.unwrap();
    eventually(async || fired(&third).await == ["7 cents"]).await;
    third.stop().await.unwrap();
    assert_eq!(stored(&store).await, Vec::<String>::new());
}

#[whizbang::test]
async fn timer_stored_without_its_domain_fires() {
    let store = MemoryStore::new();
    let older = node::<Order>(&store).await;
    older.client().send(place(Some(Duration::from_millis(200)), None)).await.unwrap();
    older.stop().await.unwrap();
    assert_eq!(stored(&store).await, ["Overdue"]);
    let newer = node::<reader::Order>(&store).await;
    // The bytes are those of the single number in both documents.
    eventually(async || fired(&newer).await == ["7 days"]).await;
    newer.stop().await.unwrap();
}

#[whizbang::test]
async fn timer_stored_without_its_domain_is_set_again_and_cleared() {
    for again in [true, false] {
        let store = MemoryStore::new();
        let older = node::<Order>(&store).await;
        older.client().send(place(LATER, None)).await.unwrap();
        older.stop().await.unwrap();
        let newer = node::<reader::Order>(&store).await;
        if again {
            newer.client().send(place(None, SOON)).await.unwrap();
            eventually(async || fired(&newer).await == ["4 days"]).await;
        } else {
            newer.client().send(Forget { order: "o1".into() }).await.unwrap();
        }
        newer.stop().await.unwrap();
        assert_eq!(stored(&store).await, Vec::<String>::new(), "set again: {again}");
    }
}
