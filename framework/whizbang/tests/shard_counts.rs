//! Programs with different shard counts for one domain: refused with the name of the domain, or reported, and nothing
//! is lost.
#![cfg(feature = "testing")]

mod bank;
mod eventually;

use eventually::eventually;
use whizbang::StartError;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::shard_of;
use whizbang::prelude::*;
use whizbang::store::StoreError;

/// A program with its own shard count for the desk.
macro_rules! program {
    ($module:ident, $shards:literal) => {
        #[allow(dead_code, reason = "each program uses a part of it")]
        mod $module {
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain(name = "desk", shards = $shards)]
            pub(super) struct Desk;

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = Desk, reply = u64)]
            pub(super) struct Stamp {
                #[key]
                pub(super) paper: String,
            }

            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = Desk)]
            pub(super) struct Stamped {}

            #[derive(Aggregate, Default)]
            #[aggregate(domain = Desk, handles(Stamp), applies(Stamped))]
            pub(super) struct Paper {
                stamps: u64,
            }

            impl Handle<Stamp> for Paper {
                fn handle(&self, _stamp: Stamp, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
                    effects.record(Stamped {});
                    Ok(self.stamps + 1)
                }
            }

            impl Apply<Stamped> for Paper {
                fn apply(&mut self, _stamped: &Stamped) {
                    self.stamps += 1;
                }
            }

            #[derive(Domain)]
            #[domain(name = "clerks", shards = 1)]
            pub(super) struct Clerks;

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = Clerks)]
            pub(super) struct Do {
                #[key]
                pub(super) clerk: String,
                pub(super) papers: Vec<String>,
            }

            #[derive(Saga, Default)]
            #[saga(domain = Clerks, handles(Do))]
            pub(super) struct Clerk;

            impl Handle<Do> for Clerk {
                fn handle(&self, work: Do, effects: &mut Effects<Self>) -> Result<(), Rejection> {
                    for paper in work.papers {
                        effects.send(Stamp { paper });
                    }
                    Ok(())
                }
            }

            #[derive(Query, Serialize, Deserialize)]
            #[query(domain = Clerks, reply = u64)]
            pub(super) struct Seen {}

            #[derive(Projection, Default, Serialize, Deserialize)]
            #[projection(projects(Stamped), answers(Seen))]
            pub(super) struct Watch {
                seen: u64,
            }

            impl Project<Stamped> for Watch {
                fn project(&mut self, _stamped: &Stamped, _context: &EventContext) {
                    self.seen += 1;
                }
            }

            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = Desk)]
            pub(super) struct Filed {}

            #[derive(Projection, Default, Serialize, Deserialize)]
            #[projection(projects(Filed))]
            pub(super) struct Files {}

            impl Project<Filed> for Files {
                fn project(&mut self, _filed: &Filed, _context: &EventContext) {}
            }

            impl whizbang::Answer<Seen> for Watch {
                fn answer(&self, _query: Seen) -> u64 {
                    self.seen
                }
            }
        }
    };
}

program!(two, 2);
program!(four, 4);
program!(eight, 8);

/// Returns one paper for each of eight shards; the shards of four and of two follow from that.
fn papers() -> Vec<String> {
    let of = |shard| (0..).map(|n| format!("p{n}")).find(|key| shard_of(key, 8) == shard).unwrap();
    (0..8).map(of).collect()
}

/// Starts the owner, with four shards for the desk.
async fn owner(hub: &LoopbackHub) -> Node {
    let builder = Node::builder("desk", MemoryStore::new()).aggregate::<four::Paper>().threads(2);
    builder.bridge(hub.bridge()).start().await.unwrap()
}

fn reports(node: &Node, text: &str) -> bool {
    let health = node.health();
    assert!(health.live, "{health:?}");
    health.reasons.iter().any(|reason| reason.contains("`desk`") && reason.contains(text))
}

#[whizbang::test]
async fn conflicting_shard_counts_are_refused_at_start() {
    let start = Node::builder("desk", MemoryStore::new())
        .threads(0)
        .aggregate::<four::Paper>()
        .projection::<two::Files>()
        .start()
        .await;
    assert!(matches!(start, Err(StartError::Shards { one: 4, other: 2, .. })), "{start:?}");
}

#[whizbang::test]
async fn store_with_another_shard_count_is_refused_at_start() {
    let store = MemoryStore::new();
    Node::builder("desk", store.clone())
        .threads(0)
        .aggregate::<four::Paper>()
        .start()
        .await
        .unwrap()
        .stop()
        .await
        .unwrap();
    let start = Node::builder("desk", store).threads(0).aggregate::<eight::Paper>().start().await;
    let refused = matches!(start, Err(StartError::Store(StoreError::Shards { found: 4, wanted: 8, .. })));
    assert!(refused, "{start:?}");
}

#[whizbang::test]
async fn caller_with_another_shard_count_gets_its_reply() {
    let hub = LoopbackHub::new();
    let owner = owner(&hub).await;
    let client = Client::connect("caller", hub.bridge()).await.unwrap();
    for (n, paper) in papers().into_iter().enumerate() {
        assert_eq!(client.send(two::Stamp { paper: paper.clone() }).await.unwrap(), 1, "{n}");
        assert_eq!(client.send(eight::Stamp { paper: paper.clone() }).await.unwrap(), 2, "{n}");
        assert_eq!(owner.client().send(four::Stamp { paper }).await.unwrap(), 3, "{n}");
    }
}

#[whizbang::test]
async fn subscriber_with_too_few_shards_is_reported() {
    let hub = LoopbackHub::new();
    let owner = owner(&hub).await;
    let builder = Node::builder("watch", MemoryStore::new()).threads(0).projection::<two::Watch>();
    let watch = builder.bridge(hub.bridge()).start().await.unwrap();
    for paper in papers() {
        owner.client().send(four::Stamp { paper }).await.unwrap();
    }
    eventually(async || watch.client().query(two::Seen {}).await.unwrap() == 4).await;
    eventually(async || reports(&watch, "2 shards")).await;
}

#[whizbang::test]
async fn subscriber_with_too_many_shards_receives_all_events() {
    let hub = LoopbackHub::new();
    let owner = owner(&hub).await;
    let builder = Node::builder("watch", MemoryStore::new()).threads(0).projection::<eight::Watch>();
    let watch = builder.bridge(hub.bridge()).start().await.unwrap();
    for paper in papers() {
        owner.client().send(four::Stamp { paper }).await.unwrap();
    }
    eventually(async || watch.client().query(eight::Seen {}).await.unwrap() == 8).await;
    assert!(watch.health().ready, "{:?}", watch.health());
}

#[whizbang::test]
async fn command_to_too_few_shards_is_handled_or_a_dead_letter() {
    let hub = LoopbackHub::new();
    let owner = owner(&hub).await;
    let builder = Node::builder("clerks", MemoryStore::new()).threads(0).saga::<two::Clerk>();
    let clerks = builder.bridge(hub.bridge()).start().await.unwrap();
    clerks.client().send(two::Do { clerk: "c".into(), papers: papers() }).await.unwrap();
    // Of eight papers, those whose shard is the same among two as among four.
    eventually(async || owner.metrics().events == 4).await;
    eventually(async || owner.dead_letters().await.unwrap().len() == 4).await;
    let letters = owner.dead_letters().await.unwrap();
    assert!(letters.iter().any(|letter| letter.error.contains("`desk` has 4 shards")), "{letters:?}");
    clerks.wait_idle().await;
}

#[whizbang::test]
async fn command_to_a_missing_shard_stays_and_is_reported() {
    let hub = LoopbackHub::new();
    let owner = owner(&hub).await;
    let builder = Node::builder("clerks", MemoryStore::new()).threads(0).saga::<eight::Clerk>();
    let clerks = builder.bridge(hub.bridge()).start().await.unwrap();
    clerks.client().send(eight::Do { clerk: "c".into(), papers: papers() }).await.unwrap();
    eventually(async || owner.metrics().events == 4).await;
    eventually(async || reports(&owner, "4 shards")).await;
    assert_eq!(owner.dead_letters().await.unwrap(), []);
}

/// Two types of one domain with different codecs.
mod codecs {
    use whizbang::prelude::*;

    #[derive(Domain)]
    #[domain(name = "desk", codec = json)]
    pub(crate) struct Desk;

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Desk)]
    pub(crate) struct Noted;

    #[derive(Query, Serialize, Deserialize)]
    #[query(domain = Desk, reply = u64)]
    pub(crate) struct Notes;

    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Noted), answers(Notes))]
    pub(crate) struct Counted(u64);

    impl Project<Noted> for Counted {
        fn project(&mut self, _: &Noted, _: &EventContext) {
            self.0 += 1;
        }
    }

    impl Answer<Notes> for Counted {
        fn answer(&self, _: Notes) -> u64 {
            self.0
        }
    }

    #[derive(Domain)]
    #[domain(name = "desk")]
    pub(crate) struct Mirror;

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Mirror)]
    pub(crate) struct Filed;

    #[derive(Worker)]
    #[worker(domain = Mirror, on(Filed))]
    pub(crate) struct Porter;

    impl OnEvent<Filed> for Porter {
        async fn on_event(&self, _: Filed, _: Job) -> Result<(), WorkError> {
            Ok(())
        }
    }
}

#[whizbang::test]
async fn two_codecs_of_one_domain_are_refused_at_start() {
    let builder = || Node::builder("desk", MemoryStore::new()).threads(0);
    builder().projection::<codecs::Counted>().start().await.unwrap().stop().await.unwrap();
    builder().worker(codecs::Porter).start().await.unwrap().stop().await.unwrap();
    let start = builder().projection::<codecs::Counted>().worker(codecs::Porter).start().await;
    assert!(matches!(&start, Err(StartError::Codecs { domain, .. }) if domain == "desk"), "{start:?}");
}
