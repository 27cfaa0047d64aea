//! States and views that do not restore from their saved form: they are never saved, and the node reports it.
#![cfg(feature = "testing")]

mod eventually;

use eventually::eventually;
use whizbang::prelude::*;

/// States that are saved.
mod saved {
    use super::*;

    #[derive(Domain)]
    #[domain(name = "saved")]
    pub(super) struct Saved;

    #[derive(Command, Serialize, Deserialize)]
    #[command(domain = Saved, reply = String)]
    pub(super) struct Put {
        #[key]
        pub(super) shelf: String,
        pub(super) number: u64,
    }
    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Saved)]
    pub(super) struct Stored {
        pub(super) number: u64,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    #[serde(untagged)]
    pub(super) enum Untagged {
        B { a: u8, b: u8 },
    }

    /// The number after which a state has two megabytes. Such a state is not read back when it is saved.
    pub(super) const LARGE: u64 = 1_000_001;

    /// A state that cannot be restored while its number is odd.
    #[derive(Clone, Debug, Default, Serialize, Deserialize)]
    pub(super) struct Shape {
        number: u64,
        odd: Option<Untagged>,
        large: String,
    }
    impl Shape {
        fn put(&mut self, number: u64) {
            self.number += number;
            self.odd = (self.number % 2 == 1).then_some(Untagged::B { a: 1, b: 2 });
            self.large = "x".repeat(if self.number == LARGE { 2 << 20 } else { 0 });
        }
    }

    #[derive(Aggregate, Default, Serialize, Deserialize)]
    #[aggregate(domain = Saved, handles(Put), applies(Stored), snapshot(every = 1))]
    pub(super) struct Shelf {
        shape: Shape,
    }
    impl Handle<Put> for Shelf {
        fn handle(&self, put: Put, effects: &mut Effects<Self>) -> Result<String, Rejection> {
            effects.record(Stored { number: put.number });
            Ok(format!("{} {:?}", self.shape.number, self.shape.odd))
        }
    }
    impl Apply<Stored> for Shelf {
        fn apply(&mut self, event: &Stored) {
            self.shape.put(event.number);
        }
    }

    #[derive(Query, Serialize, Deserialize)]
    #[query(domain = Saved, reply = u64)]
    pub(super) struct Sum {}

    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Stored), answers(Sum))]
    pub(super) struct Sums {
        shape: Shape,
    }
    impl Project<Stored> for Sums {
        fn project(&mut self, event: &Stored, _: &EventContext) {
            self.shape.put(event.number);
        }
    }
    impl whizbang::Answer<Sum> for Sums {
        fn answer(&self, _: Sum) -> u64 {
            self.shape.number
        }
    }

    pub(super) fn put(number: u64) -> Put {
        Put { shelf: "s".into(), number }
    }

    pub(super) async fn start(store: &MemoryStore) -> Node {
        Node::builder("saved", store.clone())
            .threads(0)
            .aggregate::<Shelf>()
            .projection::<Sums>()
            .start()
            .await
            .unwrap()
    }
}

#[whizbang::test]
async fn snapshots_that_do_not_restore_are_never_saved() {
    use saved::*;
    let store = MemoryStore::new();
    let node = start(&store).await;
    let notes = || node.health().reasons.iter().filter(|reason| reason.contains("`saved.shelf`")).count();
    node.client().send(put(2)).await.unwrap();
    assert_eq!((node.metrics().snapshots_skipped, notes()), (0, 0));
    node.client().send(put(1)).await.unwrap();
    node.client().send(put(2)).await.unwrap();
    assert_eq!((node.metrics().snapshots_skipped, notes()), (2, 1), "{:?}", node.health());
    assert!(node.health().ready);
    let live = node.client().send(put(0)).await.unwrap();
    node.stop().await.unwrap();
    let node = start(&store).await;
    assert_eq!(node.client().send(put(0)).await.unwrap(), live);
    let notes = || node.health().reasons.iter().filter(|reason| reason.contains("`saved.shelf`")).count();
    assert_eq!(notes(), 1);
    node.client().send(put(1)).await.unwrap();
    assert_eq!(notes(), 0, "the next snapshot is kept: {:?}", node.health());
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn views_that_do_not_restore_are_never_saved() {
    use saved::*;
    let store = MemoryStore::new();
    let node = start(&store).await;
    let seen = async |node: &Node| node.client().query(Sum {}).await.unwrap();
    node.client().send(put(1)).await.unwrap();
    eventually(async || seen(&node).await == 1).await;
    eventually(async || node.health().reasons.iter().any(|reason| reason.contains("view of projection"))).await;
    assert!(node.health().ready, "{:?}", node.health());
    node.client().send(put(1)).await.unwrap();
    eventually(async || seen(&node).await == 2).await;
    eventually(async || !node.health().reasons.iter().any(|reason| reason.contains("view of projection"))).await;
    node.stop().await.unwrap();
    let node = start(&store).await;
    eventually(async || seen(&node).await == 2).await;
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn large_states_that_are_not_restored_show_in_health() {
    use saved::*;
    let store = MemoryStore::new();
    let node = start(&store).await;
    let seen = async |node: &Node, sum| eventually(async || node.client().query(Sum {}).await.unwrap() == sum).await;
    node.client().send(put(LARGE)).await.unwrap();
    seen(&node, LARGE).await;
    let live = node.client().send(put(0)).await.unwrap();
    node.stop().await.unwrap();
    let node = start(&store).await;
    seen(&node, LARGE).await;
    assert_eq!(node.client().send(put(0)).await.unwrap(), live, "read from the log");
    let health = node.health();
    for text in ["snapshots of `saved.shelf` are not restored: that of `s`: ", "view of projection `sums` not restored"]
    {
        assert!(health.reasons.iter().any(|reason| reason.contains(text)), "{text}: {health:?}");
    }
    assert_eq!((health.ready, node.metrics().states_unrestored), (true, 2));
    node.client().send(put(1)).await.unwrap();
    seen(&node, LARGE + 1).await;
    node.stop().await.unwrap();
    let node = start(&store).await;
    seen(&node, LARGE + 1).await;
    node.client().send(put(0)).await.unwrap();
    assert_eq!((node.metrics().states_unrestored, node.health().reasons), (0, vec![]));
    node.stop().await.unwrap();
}
