//! Timers, views, domains and commands whose names change.

use std::time::Duration;

use whizbang::clock::{Clock, Timestamp};
use whizbang::node::NodeBuilder;
use whizbang::prelude::*;

use super::eventually::eventually;
use super::names::renamed_formerly;
use super::shapes::first;
use super::states::parts_first;
use super::{refused, start};

parts!(chime, Chime, [#[document(domain = Bank)] pub struct Chime { n: u64 }], [cents: u64],
    [#[projection(projects(Rang), answers(Rings))] pub struct Log { rings: u64 }],
    [#[saga(domain = Bank, handles(Pay), applies(Rang), timers(Chime), name = "clockwork")] pub struct Clockwork { rings: u64 }]);
parts!(chime_formerly, Chime, [#[document(domain = Bank, formerly = "Ring")] pub struct Chime { n: u64 }], [cents: u64],
    [#[projection(projects(Rang), answers(Rings), name = "strikes", formerly = "log")] pub struct Log { rings: u64 }],
    [#[saga(domain = Bank, handles(Pay), applies(Rang), timers(Chime), name = "tower", formerly = "clockwork")]
    pub struct Clockwork { rings: u64 }]);
parts!(other_view, Ring, [#[document(domain = Bank)] pub struct Ring { n: u64 }], [cents: u64],
    [#[projection(projects(Rang), answers(Rings), name = "strikes")] pub struct Log { rings: u64 }],
    [#[saga(domain = Bank, handles(Pay), applies(Rang), timers(Ring))] pub struct Clockwork { rings: u64 }]);

#[whizbang::test]
async fn timers_of_a_renamed_saga_fire() {
    let (clock, hand) = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let store = MemoryStore::new();
    let begin = |host: fn(NodeBuilder) -> NodeBuilder| {
        host(Node::builder("bank", store.clone()).threads(0).clock(clock.clone()))
    };
    let node = begin(parts_first::host).start().await.unwrap();
    parts_first::pay(&node, 1).await.unwrap();
    drop(node);
    let error = begin(chime::host).start().await.unwrap_err().to_string();
    assert!(error.contains("the timer `bank/clockwork.Ring`, which this program does not know"), "{error}");

    let node = begin(chime_formerly::host).start().await.unwrap();
    // Set again under its new name it is still one timer.
    chime_formerly::pay(&node, 1).await.unwrap();
    drop(node);
    hand.advance(Duration::from_secs(100));
    let node = begin(chime_formerly::host).start().await.unwrap();
    eventually(async || chime_formerly::pay(&node, 0).await.unwrap() > 0).await;
    node.wait_idle().await;
    assert_eq!(chime_formerly::pay(&node, 0).await.unwrap(), 1);
    assert_eq!(node.client().query(chime_formerly::Rings {}).await.unwrap(), 1);
    drop(node);

    // A timer that was set before fires under its old name.
    let node = begin(parts_first::host).start().await.unwrap();
    parts_first::pay(&node, 1).await.unwrap();
    drop(node);
    hand.advance(Duration::from_secs(100));
    let node = begin(chime_formerly::host).start().await.unwrap();
    eventually(async || chime_formerly::pay(&node, 0).await.unwrap() == 2).await;
}

#[whizbang::test]
async fn removed_projection_and_domain_are_refused() {
    let store = MemoryStore::new();
    let (clock, hand) = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let begin = |host: fn(NodeBuilder) -> NodeBuilder| {
        host(Node::builder("bank", store.clone()).threads(0).clock(clock.clone()))
    };
    let node = begin(parts_first::host).start().await.unwrap();
    parts_first::pay(&node, 1).await.unwrap();
    drop(node);
    hand.advance(Duration::from_secs(100));
    let node = begin(parts_first::host).start().await.unwrap();
    eventually(async || parts_first::pay(&node, 0).await.unwrap() == 1).await;
    node.wait_idle().await;
    node.stop().await.unwrap();
    let error = begin(other_view::host).start().await.unwrap_err().to_string();
    assert!(error.contains("the projection `log`, which this program does not know"), "{error}");
    assert!(error.contains("NodeBuilder::retired"), "{error}");
    let node = begin(other_view::host).retired("log").start().await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().query(other_view::Rings {}).await.unwrap(), 1);
    node.stop().await.unwrap();
    let error = begin(elsewhere::host).retired("log").retired("strikes").start().await.unwrap_err().to_string();
    assert!(error.contains("the domain `bank`, which this program does not know"), "{error}");
    drop(begin(elsewhere::host).retired("log").retired("strikes").retired("bank").start().await.unwrap());
}

program!(
    elsewhere,
    (name = "savings"),
    {
        #[event(domain = Bank)]
        pub struct Paid {
            from: u64,
            to: u64,
        }
        impl Paid {
            fn new(cents: u64) -> Self {
                Self { from: cents, to: 1 }
            }
        }
    },
    Paid,
    |paid| format!("{}>{} ", paid.from, paid.to)
);

/// A command that becomes a dead letter.
macro_rules! failing {
    ($program:ident, $Charge:ident, [$($charge:tt)*], $fails:expr) => {
        mod $program {
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain(name = "bank")]
            pub struct Bank;

            #[derive(Command, Serialize, Deserialize)]
            $($charge)*
            pub struct $Charge { #[key] pub account: String }

            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = Bank)]
            pub struct Charged {}

            /// Sends the command to `bob`: from an actor it becomes a dead letter, from a caller it is rejected.
            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = Bank)]
            pub struct Ask { #[key] pub account: String }

            #[derive(Aggregate, Default)]
            #[aggregate(domain = Bank, handles($Charge, Ask), applies(Charged))]
            pub struct Account {}

            impl Handle<$Charge> for Account {
                fn handle(&self, _: $Charge, effects: &mut Effects<Self>) -> Result<(), Rejection> {
                    assert!(!$fails, "no");
                    effects.record(Charged {});
                    Ok(())
                }
            }
            impl Handle<Ask> for Account {
                fn handle(&self, _: Ask, effects: &mut Effects<Self>) -> Result<(), Rejection> {
                    effects.send($Charge { account: "bob".into() });
                    Ok(())
                }
            }
            impl Apply<Charged> for Account {
                fn apply(&mut self, _: &Charged) {}
            }

            pub fn host(builder: whizbang::node::NodeBuilder) -> whizbang::node::NodeBuilder {
                builder.aggregate::<Account>()
            }
        }
    };
}

failing!(charge, Charge, [#[command(domain = Bank)]], true);
failing!(debit, Debit, [#[command(domain = Bank)]], false);
failing!(debit_formerly, Debit, [#[command(domain = Bank, formerly = "Charge")]], false);

#[whizbang::test]
async fn dead_letter_of_a_renamed_command_can_be_redriven() {
    let store = MemoryStore::new();
    let node = start(store.clone(), charge::host).await.unwrap();
    node.client().send(charge::Ask { account: "ada".into() }).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap().len(), 1);
    node.stop().await.unwrap();
    let error = refused(&store, debit::host).await;
    assert!(error.contains("the command `bank.Charge`, which this program does not know"), "{error}");
    let node = start(store.clone(), debit_formerly::host).await.unwrap();
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1);
    node.redrive(&letters[0]).await.unwrap();
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(node.metrics().events, 1);
    node.stop().await.unwrap();
    // The old name is unused, so it need not be declared.
    drop(start(store, debit::host).await.unwrap());
}

/// A command from one domain to another.
macro_rules! orders {
    ($program:ident, $Ship:ident, [$($ship:tt)*]) => {
        mod $program {
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain(name = "orders")]
            pub struct Orders;

            #[derive(Domain)]
            #[domain(name = "depot")]
            pub struct Depot;

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = Orders)]
            pub struct Place { #[key] pub order: String }

            #[derive(Command, Serialize, Deserialize)]
            $($ship)*
            pub struct $Ship { #[key] pub order: String }

            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = Depot)]
            pub struct Shipped {}

            #[derive(Aggregate, Default)]
            #[aggregate(domain = Orders, handles(Place))]
            pub struct Order {}

            impl Handle<Place> for Order {
                fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
                    effects.send($Ship { order: place.order });
                    Ok(())
                }
            }

            #[derive(Aggregate, Default)]
            #[aggregate(domain = Depot, handles($Ship), records(Shipped))]
            pub struct Parcel {}

            impl Handle<$Ship> for Parcel {
                fn handle(&self, _: $Ship, effects: &mut Effects<Self>) -> Result<(), Rejection> {
                    effects.record(Shipped {});
                    Ok(())
                }
            }
        }
    };
}

orders!(ship, Ship, [#[command(domain = Depot)]]);
orders!(dispatch, Dispatch, [#[command(domain = Depot, formerly = "Ship")]]);
orders!(undeclared, Dispatch, [#[command(domain = Depot)]]);

#[whizbang::test]
async fn command_in_an_outbox_is_handled_under_its_old_name() {
    let store = MemoryStore::new();
    // The store knows the names of the depot's commands.
    let node = start(store.clone(), |builder| builder.aggregate::<ship::Order>().aggregate::<ship::Parcel>());
    node.await.unwrap().stop().await.unwrap();
    let node = start(store.clone(), |builder| builder.aggregate::<ship::Order>()).await.unwrap();
    // The depot is not reachable, so the command stays in the outbox.
    node.client().send(ship::Place { order: "o1".into() }).await.unwrap();
    node.stop().await.unwrap();
    let undeclared = |builder: NodeBuilder| builder.aggregate::<undeclared::Order>().aggregate::<undeclared::Parcel>();
    let error = refused(&store, undeclared).await;
    assert!(error.contains("the command `depot.Ship`, which this program does not know"), "{error}");
    let host = |builder: NodeBuilder| builder.aggregate::<dispatch::Order>().aggregate::<dispatch::Parcel>();
    let node = start(store.clone(), host).await.unwrap();
    node.wait_idle().await;
    assert_eq!((node.metrics().events, node.dead_letters().await.unwrap().len()), (1, 0));
    node.stop().await.unwrap();
    // The outbox is empty, so the old name need not be declared.
    drop(start(store, undeclared).await.unwrap());
}

#[whizbang::test]
async fn former_name_of_another_type_is_refused() {
    let store = MemoryStore::new();
    let error = refused(&store, |builder| builder.saga::<chime_formerly::Clockwork>().saga::<parts_first::Clockwork>());
    let error = error.await;
    assert!(error.contains("domain `bank` has two actor types named `clockwork`"), "{error}");
    let error = refused(&store, |builder| builder.projection::<chime_formerly::Log>().projection::<parts_first::Log>());
    let error = error.await;
    assert!(error.contains("two projections are named `log`"), "{error}");
    let error =
        refused(&store, |builder| builder.aggregate::<renamed_formerly::Account>().projection::<first::Unused>());
    let error = error.await;
    assert!(error.contains("`bank.Paid` is the name of"), "{error}");
}
