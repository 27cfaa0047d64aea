//! A key with a long history is activated without delaying the other keys of its thread.
#![cfg(all(feature = "testing", feature = "embedded"))]

use std::cell::Cell;
use std::rc::Rc;

use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;

#[derive(Domain)]
#[domain(name = "meters", shards = 1)]
struct Meters;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Meters, reply = u64)]
struct Count {
    #[key]
    meter: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Meters)]
struct Counted {}

/// Without snapshots.
#[derive(Aggregate, Default)]
#[aggregate(domain = Meters, handles(Count), applies(Counted))]
struct Meter {
    count: u64,
}

impl Handle<Count> for Meter {
    fn handle(&self, _: Count, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Counted {});
        Ok(self.count + 1)
    }
}

impl Apply<Counted> for Meter {
    fn apply(&mut self, _: &Counted) {
        self.count += 1;
    }
}

async fn node(folder: &std::path::Path) -> Node {
    Node::builder("meters", EmbeddedStore::open(folder).unwrap()).threads(0).aggregate::<Meter>().start().await.unwrap()
}

fn count(meter: &str) -> Count {
    Count { meter: meter.to_owned() }
}

#[whizbang::test]
async fn long_history_delays_no_other_key() {
    const TURNS: u64 = 20_000;
    let folder = tempfile::tempdir().unwrap();
    let first = node(folder.path()).await;
    let client = first.client();
    for _ in 0..TURNS / 500 {
        let sent = (0..500).map(|_| async { client.send(count("old")).await.unwrap() });
        futures_util::future::join_all(sent).await;
    }
    first.stop().await.unwrap();

    let again = node(folder.path()).await;
    let client = again.client();
    assert_eq!(client.send(count("young")).await.unwrap(), 1);
    let loaded = Rc::new(Cell::new(false));
    let old = {
        let (client, loaded) = (client.clone(), Rc::clone(&loaded));
        tokio::task::spawn_local(async move {
            let reply = client.send(count("old")).await.unwrap();
            loaded.set(true);
            reply
        })
    };
    // Many commands of the other key are answered while the long history is read.
    let mut answered = 0;
    while !loaded.get() {
        client.send(count("young")).await.unwrap();
        tokio::task::yield_now().await;
        answered += u64::from(!loaded.get());
    }
    assert_eq!(old.await.unwrap(), TURNS + 1);
    assert!(answered >= 20, "{answered} commands of the other key were answered while {TURNS} turns were read");
}
