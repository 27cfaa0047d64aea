//! Services with the types of one bank, each in a version of its own, and the required fate of their messages. The same
//! over every bridge.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "the programs in here are written as their users write them"
)]

#[path = "../eventually/mod.rs"]
mod polls;

pub use polls::eventually;
use whizbang::bridge::Bridge;
use whizbang::prelude::*;
use whizbang::store::DeadLetterReason;
use whizbang::{Client, Health, Retry, SendError};

/// The bank's messages in one program.
macro_rules! contract {
    ($contract:ident, Pay { $($pay:tt)* } -> $reply:ty, Paid { $($paid:tt)* }, Total -> $total:ty) => {
        pub mod $contract {
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain(name = "bank", shards = 2)]
            pub struct Bank;

            #[derive(Command, Clone, Debug, Serialize, Deserialize)]
            #[command(domain = Bank, reply = $reply)]
            pub struct Pay {
                #[key]
                pub account: String,
                $($pay)*
            }

            #[derive(Event, Clone, Debug, Serialize, Deserialize)]
            #[event(domain = Bank)]
            pub enum Paid { $($paid)* }

            #[derive(Query, Clone, Debug, Serialize, Deserialize)]
            #[query(domain = Bank, reply = $total)]
            pub struct Total {}

            pub fn pay(cents: u8) -> Pay {
                Pay { account: "ada".into(), cents: cents.into(), tip: 0 }
            }
        }
    };
}

contract!(owned, Pay { pub cents: u64, pub tip: u64, } -> u64, Paid { In { cents: u64 }, Out { cents: u64 } }, Total -> u64);
contract!(same, Pay { pub cents: u64, pub tip: u64, } -> u64, Paid { In { cents: u64 }, Out { cents: u64 } }, Total -> u64);
contract!(reordered, Pay { pub tip: u64, pub cents: u64, } -> u64, Paid { Out { cents: u64 }, In { cents: u64 } }, Total -> u64);
contract!(signed, Pay { pub cents: i64, pub tip: u64, } -> u64, Paid { In { cents: i64 }, Out { cents: i64 } }, Total -> u64);
contract!(
    inserted,
    Pay { pub cents: u64, pub tip: u64, } -> u64,
    Paid { Fee { cents: u64 }, In { cents: u64 }, Out { cents: u64 } },
    Total -> u64
);
contract!(
    appended,
    Pay { pub cents: u64, pub tip: u64, } -> u64,
    Paid { In { cents: u64 }, Out { cents: u64 }, Fee { cents: u64 } },
    Total -> u64
);
contract!(answered, Pay { pub cents: u64, pub tip: u64, } -> i64, Paid { In { cents: u64 }, Out { cents: u64 } }, Total -> i64);

/// A command of a JSON domain in one program.
macro_rules! note {
    ($contract:ident { $($field:tt)* }) => {
        pub mod $contract {
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain(name = "notes", shards = 2, codec = json)]
            pub struct Notes;

            #[derive(Command, Clone, Debug, Default, Serialize, Deserialize)]
            #[command(domain = Notes, reply = String)]
            pub struct Write {
                #[key]
                pub book: String,
                $($field)*
            }
        }
    };
}

note!(notes { pub text: String, pub tag: Option<String>, });
note!(longer_notes { pub priority: u8, pub text: String, });
note!(other_notes { pub text: Vec<String>, });

#[derive(Aggregate, Default)]
#[aggregate(domain = owned::Bank, handles(owned::Pay), applies(owned::Paid))]
struct Account {
    cents: u64,
}

impl Handle<owned::Pay> for Account {
    fn handle(&self, pay: owned::Pay, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if pay.cents > 0 {
            effects.record(owned::Paid::In { cents: pay.cents });
        }
        Ok(self.cents + pay.cents)
    }
}

impl Apply<owned::Paid> for Account {
    fn apply(&mut self, paid: &owned::Paid) {
        if let owned::Paid::In { cents } = paid {
            self.cents += cents;
        }
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(owned::Paid), answers(owned::Total))]
struct Totals {
    cents: u64,
}

impl Project<owned::Paid> for Totals {
    fn project(&mut self, paid: &owned::Paid, _: &EventContext) {
        if let owned::Paid::In { cents } = paid {
            self.cents += cents;
        }
    }
}

impl Answer<owned::Total> for Totals {
    fn answer(&self, _: owned::Total) -> u64 {
        self.cents
    }
}

#[derive(Aggregate, Default)]
#[aggregate(domain = notes::Notes, handles(notes::Write))]
struct Book {}

impl Handle<notes::Write> for Book {
    fn handle(&self, write: notes::Write, _: &mut Effects<Self>) -> Result<String, Rejection> {
        Ok(format!("{} {:?}", write.text, write.tag))
    }
}

/// Starts the node that owns the bank.
pub async fn bank(bridge: impl Bridge) -> Node {
    let builder =
        Node::builder("bank", MemoryStore::new()).aggregate::<Account>().aggregate::<Book>().projection::<Totals>();
    builder.retry(Retry::NEVER).bridge(bridge).start().await.unwrap()
}

/// A service that pays and listens with a contract of its own.
macro_rules! shop {
    ($shop:ident, $contract:ident) => {
        pub mod $shop {
            use super::$contract::{Paid, Pay, pay};
            use whizbang::Retry;
            use whizbang::bridge::Bridge;
            use whizbang::prelude::*;

            #[derive(Domain)]
            #[domain(name = "shop", shards = 2)]
            pub struct Shop;

            #[derive(Command, Clone, Debug, Serialize, Deserialize)]
            #[command(domain = Shop, reply = String)]
            pub struct Order {
                #[key]
                pub order: String,
                pub cents: u8,
            }

            #[derive(Event, Clone, Debug, Serialize, Deserialize)]
            #[event(domain = Shop)]
            pub struct Heard {
                pub what: String,
            }

            /// Replies with the events it has received.
            #[derive(Aggregate, Default)]
            #[aggregate(domain = Shop, handles(Order), applies(Heard), reacts(Paid), replies(Pay))]
            struct Basket {
                heard: String,
            }

            impl Handle<Order> for Basket {
                fn handle(&self, order: Order, effects: &mut Effects<Self>) -> Result<String, Rejection> {
                    if order.cents > 0 {
                        effects.send(pay(order.cents));
                    }
                    Ok(self.heard.clone())
                }
            }

            impl OnReply<Pay> for Basket {
                fn on_reply(&self, reply: Result<<Pay as Command>::Reply, Rejection>, effects: &mut Effects<Self>) {
                    effects.record(Heard { what: format!("{reply:?} ") });
                }
            }

            impl React<Paid> for Basket {
                fn key(_: &Paid, _: &EventContext) -> Option<String> {
                    Some("ear".to_owned())
                }

                fn react(&self, paid: Paid, effects: &mut Effects<Self>) {
                    effects.record(Heard { what: format!("{paid:?} ") });
                }
            }

            impl Apply<Heard> for Basket {
                fn apply(&mut self, heard: &Heard) {
                    self.heard.push_str(&heard.what);
                }
            }

            #[derive(Projection, Default, Serialize, Deserialize)]
            #[projection(projects(Paid))]
            struct Payments {}

            impl Project<Paid> for Payments {
                fn project(&mut self, _: &Paid, _: &EventContext) {}
            }

            pub async fn start(store: &MemoryStore, bridge: impl Bridge) -> Node {
                let builder = Node::builder("shop", store.clone()).aggregate::<Basket>().projection::<Payments>();
                builder.retry(Retry::NEVER).bridge(bridge).start().await.unwrap()
            }

            pub async fn order(node: &Node, order: &str, cents: u8) -> String {
                node.client().send(Order { order: order.into(), cents }).await.unwrap()
            }
        }
    };
}

shop!(same_shop, same);
shop!(signed_shop, signed);
shop!(answered_shop, answered);
shop!(inserted_shop, inserted);
shop!(appended_shop, appended);

fn mentions(health: &Health, text: &str) -> bool {
    health.reasons.iter().any(|reason| reason.contains(text))
}

#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T, SendError>, parts: &[&str]) {
    let Err(error @ SendError::Shape { .. }) = outcome else { panic!("not refused: {outcome:?}") };
    let text = error.to_string();
    for part in [&["version 1", "raise `version` and add `upcast"], parts].concat() {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    assert!(!error.may_have_happened() && !error.is_transient(), "{text}");
}

/// Callers that are not actors: each refusal names type, difference and remedy, before anything is done.
pub async fn callers_are_refused<B: Bridge>(bridge: impl AsyncFn() -> B) {
    let owner = bank(bridge().await).await;
    let client = Client::connect("cashier", bridge().await).await.unwrap();
    assert_eq!(client.send(same::pay(5)).await.unwrap(), 5);
    assert_eq!(owner.metrics().shape_refusals, 0);
    // Twice, because the second time it is cached.
    for _ in 0..2 {
        refused(client.send(reordered::pay(5)).await, &["the `bank.Pay`", "`tip: u64`", "`cents: u64`"]);
        refused(
            client.send(signed::pay(5)).await,
            &["the `bank.Pay`", "`cents` is `i64` there and `u64` at the receiver"],
        );
        refused(client.send(answered::pay(5)).await, &["the reply to `bank.Pay`", "it is `u64` there and `i64`"]);
        refused(client.query(answered::Total {}).await, &["the reply to `bank.Total`"]);
    }
    assert_eq!(owner.metrics().shape_refusals, 8);
    let health = owner.health();
    assert!(health.ready && mentions(&health, "refused from a caller: the `bank.Pay`"), "{health:?}");
    // The others are handled, and health clears.
    eventually(async || {
        assert_eq!(client.send(same::pay(0)).await.unwrap(), 5, "nothing was done");
        !mentions(&owner.health(), "`bank.Pay`")
    })
    .await;
    eventually(async || client.query(same::Total {}).await.is_ok_and(|total| total == 5)).await;

    // The reply to a command that was posted to the broker is not read.
    client.post_to_broker(answered::pay(2)).await.unwrap();
    eventually(async || client.send(same::pay(0)).await.unwrap() == 7).await;
    client.post_to_broker(signed::pay(1)).await.unwrap();
    eventually(async || owner.metrics().shape_refusals == 9).await;
    assert_eq!(client.send(same::pay(0)).await.unwrap(), 7);
    client.disconnect().await;
    owner.stop().await.unwrap();
}

/// JSON contains names, so fields may be added and removed where the receiver does not need them.
pub async fn compatible_json_passes<B: Bridge>(bridge: impl AsyncFn() -> B) {
    let owner = bank(bridge().await).await;
    let client = Client::connect("writer", bridge().await).await.unwrap();
    let write = longer_notes::Write { book: "b".into(), priority: 3, text: "hello".into() };
    for _ in 0..2 {
        assert_eq!(client.send(write.clone()).await.unwrap(), "hello None");
    }
    client.post(write).await.unwrap();
    assert_eq!(owner.metrics().shape_refusals, 0);
    let other = other_notes::Write { book: "b".into(), text: vec!["hello".into()] };
    refused(client.send(other).await, &["the `notes.Write`", "`text` is `[text]` there and `text`"]);
    client.disconnect().await;
    owner.stop().await.unwrap();
}

/// A command of an actor that cannot be read becomes a dead letter of its owner; the same if its reply could not be
/// read.
pub async fn command_of_an_actor_becomes_a_dead_letter<B: Bridge>(bridge: impl AsyncFn() -> B, by_its_reply: bool) {
    let (owner, store) = (bank(bridge().await).await, MemoryStore::new());
    let place = if by_its_reply { "the reply to `bank.Pay`" } else { "the `bank.Pay`" };
    let shop = if by_its_reply {
        answered_shop::start(&store, bridge().await).await
    } else {
        signed_shop::start(&store, bridge().await).await
    };
    if by_its_reply {
        answered_shop::order(&shop, "one", 5).await;
    } else {
        signed_shop::order(&shop, "one", 5).await;
    }
    eventually(async || owner.dead_letters().await.unwrap().len() == 1).await;
    let letter = owner.dead_letters().await.unwrap().remove(0);
    assert_eq!(letter.reason, DeadLetterReason::Undecodable, "{letter:?}");
    assert!(letter.error.contains(place) && letter.error.contains("raise `version`"), "{letter:?}");
    assert!(mentions(&owner.health(), &format!("refused from `shop`: {place}")), "{:?}", owner.health());
    assert!(owner.metrics().shape_refusals > 0);
    // A redrive does not read it either.
    drop(owner.redrive(&letter).await);
    let letters = owner.dead_letters().await.unwrap();
    assert!(letters.len() == 1 && letters[0].error.contains("shape"), "{letters:?}");
    assert_eq!(owner.client().query(owned::Total {}).await.unwrap(), 0);
    shop.stop().await.unwrap();
    owner.stop().await.unwrap();
}

/// A service with the same types sends commands and gets replies.
pub async fn command_of_an_actor_is_replied_to<B: Bridge>(bridge: impl AsyncFn() -> B) {
    let (owner, store) = (bank(bridge().await).await, MemoryStore::new());
    let shop = same_shop::start(&store, bridge().await).await;
    same_shop::order(&shop, "one", 5).await;
    eventually(async || same_shop::order(&shop, "one", 0).await == "Ok(5) ").await;
    assert_eq!(owner.metrics().shape_refusals, 0);
    shop.stop().await.unwrap();
    owner.stop().await.unwrap();
}

/// An event that cannot be read halts a projection and becomes a dead letter of an actor.
pub async fn drifted_events_halt<B: Bridge>(bridge: impl AsyncFn() -> B) {
    let owner = bank(bridge().await).await;
    assert_eq!(owner.client().send(owned::pay(5)).await.unwrap(), 5);
    let store = MemoryStore::new();
    let shop = inserted_shop::start(&store, bridge().await).await;
    eventually(async || !shop.dead_letters().await.unwrap().is_empty()).await;
    let letter = shop.dead_letters().await.unwrap().remove(0);
    assert!(letter.error.contains("the `bank.Paid` version 1"), "{letter:?}");
    eventually(async || mentions(&shop.health(), "projection `payments` halted")).await;
    assert!(mentions(&shop.health(), "refused from `bank`: the `bank.Paid`"), "{:?}", shop.health());
    assert_eq!(inserted_shop::order(&shop, "ear", 0).await, "", "it is not read as a fee");
    shop.stop().await.unwrap();
    owner.stop().await.unwrap();
}

/// A subscriber may have more variants after those of the owner.
pub async fn compatible_events_are_read<B: Bridge>(bridge: impl AsyncFn() -> B) {
    let owner = bank(bridge().await).await;
    assert_eq!(owner.client().send(owned::pay(5)).await.unwrap(), 5);
    let store = MemoryStore::new();
    let shop = appended_shop::start(&store, bridge().await).await;
    let heard = "In { cents: 5 } ";
    eventually(async || appended_shop::order(&shop, "ear", 0).await == heard).await;
    assert!(shop.health().ready && shop.metrics().shape_refusals == 0, "{:?}", shop.health());
    // Live, too.
    owner.client().send(owned::pay(6)).await.unwrap();
    let both = "In { cents: 5 } In { cents: 6 } ";
    eventually(async || appended_shop::order(&shop, "ear", 0).await == both).await;
    shop.stop().await.unwrap();
    owner.stop().await.unwrap();
}
