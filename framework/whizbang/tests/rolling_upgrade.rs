//! Two versions of a service run side by side on one store: nothing that only the new version knows reaches the old one, and
//! nothing becomes a dead letter.

#![allow(unreachable_pub, reason = "the versions are modules of one file")]

mod bank;
mod eventually;

use std::time::Duration;

use eventually::eventually;
use whizbang::NodeConfig;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::Clock;
use whizbang::message::{Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::store::Store;
use whizbang::{NodeBuilder, SendError};

const LEASE: Duration = Duration::from_secs(2);
const PATIENT: Duration = Duration::from_secs(30);
const ACCOUNTS: usize = 48;

/// The first version.
mod v1 {
    use super::*;

    #[derive(Domain)]
    #[domain(name = "purses")]
    pub struct Purses;

    #[derive(Command, Clone, Debug, Serialize, Deserialize)]
    #[command(domain = Purses, reply = u64)]
    pub struct Fill {
        #[key]
        pub purse: String,
        pub cents: u64,
    }

    #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    #[event(domain = Purses)]
    pub struct Filled {
        pub cents: u64,
    }

    #[derive(Aggregate, Default, Serialize, Deserialize)]
    #[aggregate(domain = Purses, handles(Fill), applies(Filled))]
    pub struct Purse {
        cents: u64,
    }

    impl Handle<Fill> for Purse {
        fn handle(&self, fill: Fill, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
            effects.record(Filled { cents: fill.cents });
            Ok(self.cents + fill.cents)
        }
    }

    impl Apply<Filled> for Purse {
        fn apply(&mut self, filled: &Filled) {
            self.cents += filled.cents;
        }
    }
}

/// The second version: another schema of an event, and a new command with a new event. With `writes` it writes the old schema.
macro_rules! second_version {
    ($module:ident $($writes:tt)*) => {
        mod $module {
            use super::*;

            #[derive(Domain)]
            #[domain(name = "purses")]
            pub struct Purses;

            #[derive(Command, Clone, Debug, Serialize, Deserialize)]
            #[command(domain = Purses, reply = u64)]
            pub struct Fill {
                #[key]
                pub purse: String,
                pub cents: u64,
            }

            #[derive(Command, Clone, Debug, Serialize, Deserialize)]
            #[command(domain = Purses, reply = u64)]
            pub struct Empty {
                #[key]
                pub purse: String,
            }

            #[derive(Command, Clone, Debug, Serialize, Deserialize)]
            #[command(domain = Purses, reply = u64)]
            pub struct CountMemos {
                #[key]
                pub purse: String,
            }

            #[derive(Event, Clone, Debug, Serialize, Deserialize)]
            #[event(domain = Purses, version = 2, upcast(1 = FilledV1) $($writes)*)]
            pub struct Filled {
                pub cents: u64,
                pub memo: String,
            }

            #[derive(Serialize, Deserialize)]
            pub struct FilledV1 {
                cents: u64,
            }

            impl From<FilledV1> for Filled {
                fn from(old: FilledV1) -> Self {
                    Self { cents: old.cents, memo: String::new() }
                }
            }

            impl From<&Filled> for FilledV1 {
                fn from(new: &Filled) -> Self {
                    Self { cents: new.cents }
                }
            }

            #[derive(Event, Clone, Debug, Serialize, Deserialize)]
            #[event(domain = Purses)]
            pub struct Emptied {}

            #[derive(Aggregate, Default, Serialize, Deserialize)]
            #[aggregate(domain = Purses, handles(Fill, Empty, CountMemos), applies(Filled, Emptied))]
            pub struct Purse {
                cents: u64,
                memos: u64,
            }

            impl Handle<Fill> for Purse {
                fn handle(&self, fill: Fill, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
                    effects.record(Filled { cents: fill.cents, memo: "new".to_owned() });
                    Ok(self.cents + fill.cents)
                }
            }

            impl Handle<Empty> for Purse {
                fn handle(&self, _: Empty, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
                    effects.record(Emptied {});
                    Ok(self.cents)
                }
            }

            impl Handle<CountMemos> for Purse {
                fn handle(&self, _: CountMemos, _: &mut Effects<Self>) -> Result<u64, Rejection> {
                    Ok(self.memos)
                }
            }

            impl Apply<Filled> for Purse {
                fn apply(&mut self, filled: &Filled) {
                    self.cents += filled.cents;
                    self.memos += u64::from(!filled.memo.is_empty());
                }
            }

            impl Apply<Emptied> for Purse {
                fn apply(&mut self, _: &Emptied) {
                    self.cents = 0;
                }
            }
        }
    };
}

second_version!(v2_writes_v1, writes = 1);
second_version!(v2);

/// Another service, whose actors empty purses.
mod cleaning {
    use super::*;

    #[derive(Domain)]
    #[domain(name = "cleaning")]
    pub struct Cleaning;

    #[derive(Command, Clone, Debug, Serialize, Deserialize)]
    #[command(domain = Cleaning)]
    pub struct Clean {
        #[key]
        pub purse: String,
    }

    #[derive(Event, Clone, Debug, Serialize, Deserialize)]
    #[event(domain = Cleaning)]
    pub struct Cleaned {}

    #[derive(Aggregate, Default, Serialize, Deserialize)]
    #[aggregate(domain = Cleaning, handles(Clean), applies(Cleaned))]
    pub struct Cleaner {}

    impl Handle<Clean> for Cleaner {
        fn handle(&self, clean: Clean, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            effects.record(Cleaned {});
            effects.send(v2::Empty { purse: clean.purse });
            Ok(())
        }
    }

    impl Apply<Cleaned> for Cleaner {
        fn apply(&mut self, _: &Cleaned) {}
    }
}

fn shared() -> MemoryStore {
    MemoryStore::shared(&Clock::system())
}

fn builder(store: &MemoryStore, hub: &LoopbackHub, label: &str) -> NodeBuilder {
    let config = NodeConfig { lease: LEASE, ..NodeConfig::default() };
    Node::builder("purses", store.clone()).config(config).label(label).bridge(hub.bridge())
}

async fn first(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    builder(store, hub, "first").aggregate::<v1::Purse>().start().await.unwrap()
}

async fn second(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    builder(store, hub, "second").aggregate::<v2::Purse>().start().await.unwrap()
}

async fn second_writing_v1(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    builder(store, hub, "second-v1").aggregate::<v2_writes_v1::Purse>().start().await.unwrap()
}

async fn cleaning(hub: &LoopbackHub) -> Node {
    let node = Node::builder("cleaning", MemoryStore::new()).aggregate::<cleaning::Cleaner>();
    node.bridge(hub.bridge()).start().await.unwrap()
}

fn purse(number: usize) -> String {
    format!("purse-{number}")
}

/// Fills every purse with one cent, and compares the balances.
async fn fill_all(client: &Client, balance: u64) {
    for number in 0..ACCOUNTS {
        let fill = v1::Fill { purse: purse(number), cents: 1 };
        assert_eq!(client.send(fill).deadline(PATIENT).await.unwrap(), balance, "{}", purse(number));
    }
}

fn owned(node: &Node) -> u64 {
    node.metrics().shards_owned
}

/// Returns the schema versions of all stored events of a name.
async fn versions(store: &MemoryStore, event: &str) -> Vec<u32> {
    let mut found = Vec::new();
    for shard in 0..16 {
        let shard = ShardId::new(Name::new("purses").unwrap(), shard);
        if let Some(reader) = store.read(&shard).await.unwrap() {
            let events = reader.events(0, 100_000).await.unwrap();
            found
                .extend(events.into_iter().filter(|stored| stored.name.as_str() == event).map(|stored| stored.version));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

#[whizbang::test]
async fn new_version_writes_the_old_schema_until_it_is_told() {
    let (store, hub) = (shared(), LoopbackHub::new());
    let old = first(&store, &hub).await;
    fill_all(&old.client(), 1).await;
    let new = second_writing_v1(&store, &hub).await;
    eventually(async || owned(&old) == 8 && owned(&new) == 8).await;
    fill_all(&old.client(), 2).await;
    fill_all(&new.client(), 3).await;
    assert_eq!(versions(&store, "Filled").await, [1]);
    // A rollback: the first version reads everything that the second one has written.
    new.stop().await.unwrap();
    eventually(async || owned(&old) == 16).await;
    fill_all(&old.client(), 4).await;
    assert!(old.health().ready && old.health().reasons.is_empty(), "{:?}", old.health());
    assert_eq!(old.metrics().dead_letters, 0);
    // The rollout again, and its second step.
    let new = second_writing_v1(&store, &hub).await;
    old.stop().await.unwrap();
    let newest = second(&store, &hub).await;
    eventually(async || owned(&newest) == 8).await;
    fill_all(&newest.client(), 5).await;
    assert_eq!(versions(&store, "Filled").await, [1, 2]);
    // A rollback of the second step: the same program reads both schemas.
    newest.stop().await.unwrap();
    eventually(async || owned(&new) == 16).await;
    fill_all(&new.client(), 6).await;
    assert_eq!(new.metrics().dead_letters, 0);
}

#[whizbang::test]
async fn state_equals_a_replay_of_the_written_version() {
    let (store, hub) = (shared(), LoopbackHub::new());
    let node = second_writing_v1(&store, &hub).await;
    for balance in 1..=3 {
        let fill = v2_writes_v1::Fill { purse: purse(1), cents: 1 };
        assert_eq!(node.client().send(fill).await.unwrap(), balance);
    }
    let count = || v2_writes_v1::CountMemos { purse: purse(1) };
    assert_eq!(node.client().send(count()).await.unwrap(), 0, "the first schema has no memo");
    node.stop().await.unwrap();
    let node = second_writing_v1(&store, &hub).await;
    assert_eq!(node.client().send(count()).deadline(PATIENT).await.unwrap(), 0);
}

#[whizbang::test]
async fn old_version_leaves_shards_with_new_types_to_the_new_one() {
    let (store, hub) = (shared(), LoopbackHub::new());
    let new = second(&store, &hub).await;
    let (marked, other) = ("purse-0", 16);
    assert_eq!(new.client().send(v2::Fill { purse: marked.to_owned(), cents: 5 }).await.unwrap(), 5);
    let shard = format!("purses/{}", shard_of(marked, other));
    let old = first(&store, &hub).await;
    eventually(async || owned(&old) >= 7 && owned(&old) + owned(&new) == 16).await;
    let owner = |node: &Node| {
        let cluster = node.cluster().unwrap();
        let mut shards = cluster.shards.iter();
        shards.find(|found| format!("{}/{}", found.domain, found.shard) == shard).and_then(|found| found.owner)
    };
    // The new version is gone: its shard waits, and everything else is served.
    new.stop().await.unwrap();
    eventually(async || owned(&old) == 15).await;
    eventually(async || old.health().reasons.iter().any(|note| note.contains(&shard) && note.contains("`Filled`")))
        .await;
    eventually(async || old.cluster().unwrap().members[0].refuses == [shard.clone()]).await;
    assert!(old.health().ready, "{:?}", old.health());
    assert_eq!(owner(&old), None);
    let elsewhere = (1..).map(purse).find(|purse| shard_of(purse, other) != shard_of(marked, other)).unwrap();
    assert_eq!(old.client().send(v1::Fill { purse: elsewhere, cents: 1 }).deadline(PATIENT).await.unwrap(), 1);
    // It is served again once a node knows its types; the caller has only waited.
    let client = old.client();
    let waiting = client.send(v1::Fill { purse: marked.to_owned(), cents: 1 }).deadline(PATIENT);
    let (balance, new) = futures_util::future::join(waiting, second(&store, &hub)).await;
    assert_eq!(balance.unwrap(), 6);
    eventually(async || owner(&old).is_some() && owner(&old) == new.cluster().map(|cluster| cluster.member)).await;
    assert_eq!(old.metrics().dead_letters + new.metrics().dead_letters, 0);
}

#[whizbang::test]
async fn new_commands_wait_for_the_new_version() {
    let (store, hub) = (shared(), LoopbackHub::new());
    // The new version was here, and has left its types in the catalog.
    second_writing_v1(&store, &hub).await.stop().await.unwrap();
    let old = first(&store, &hub).await;
    fill_all(&old.client(), 1).await;
    let cleaning = cleaning(&hub).await;
    // One command of an actor, one of a caller that waits, and one of a caller that does not.
    cleaning.client().send(cleaning::Clean { purse: purse(1) }).await.unwrap();
    cleaning.client().post_to_broker(v2::Empty { purse: purse(3) }).await.unwrap();
    let client = cleaning.client();
    let call = client.send(v2::Empty { purse: purse(2) }).deadline(PATIENT);
    let rollout = async {
        eventually(async || old.health().reasons.iter().any(|note| note.contains("purses.Empty"))).await;
        assert!(old.health().ready, "{:?}", old.health());
        assert_eq!(old.metrics().newer_commands, 1);
        // Other commands are handled in the meantime.
        assert_eq!(old.client().send(v1::Fill { purse: purse(2), cents: 1 }).await.unwrap(), 2);
        second_writing_v1(&store, &hub).await
    };
    let (emptied, new) = futures_util::future::join(call, rollout).await;
    assert_eq!(emptied.unwrap(), 2, "the call has only waited");
    assert_eq!(new.metrics().newer_commands, 0);
    let emptied = async |number: usize| {
        let fill = v1::Fill { purse: purse(number), cents: 0 };
        new.client().send(fill).deadline(PATIENT).await.unwrap() == 0
    };
    eventually(async || emptied(1).await && emptied(3).await).await;
    cleaning.wait_idle().await;
    for node in [&old, &new, &cleaning] {
        assert_eq!(node.metrics().dead_letters, 0, "{:?}", node.health());
    }
    old.stop().await.unwrap();
    new.stop().await.unwrap();
}

#[whizbang::test]
async fn command_of_no_version_is_refused() {
    let (store, hub) = (shared(), LoopbackHub::new());
    let old = first(&store, &hub).await;
    let cleaning = cleaning(&hub).await;
    let refused = cleaning.client().send(v2::Empty { purse: purse(1) }).deadline(PATIENT).await;
    assert!(matches!(refused, Err(SendError::Unhandled { .. })), "{refused:?}");
    cleaning.client().send(cleaning::Clean { purse: purse(1) }).await.unwrap();
    eventually(async || old.metrics().dead_letters == 1).await;
}

#[whizbang::test]
async fn command_of_a_version_that_never_comes_is_refused() {
    let (store, hub) = (shared(), LoopbackHub::new());
    second_writing_v1(&store, &hub).await.stop().await.unwrap();
    let config = NodeConfig { lease: LEASE, newer_commands: Duration::from_secs(1), ..NodeConfig::default() };
    let old = builder(&store, &hub, "first").config(config).aggregate::<v1::Purse>().start().await.unwrap();
    let cleaning = cleaning(&hub).await;
    let refused = cleaning.client().send(v2::Empty { purse: purse(1) }).deadline(PATIENT).await;
    assert!(matches!(refused, Err(SendError::Unhandled { .. })), "{refused:?}");
    cleaning.client().send(cleaning::Clean { purse: purse(1) }).await.unwrap();
    eventually(async || old.metrics().dead_letters == 1).await;
}
