//! Messages that serde writes and cannot read, or reads as another value: refused before anything is committed, or used
//! as they read.
//!
//! Each kind of such a type is tried as an event and a reply. `round_trip_commands` tries commands, and `saved_states` snapshots. After every answer the actor
//! is rebuilt from the log, so that the acknowledged state is the state in the log.

use std::cell::RefCell;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::{
    Aggregate, Apply, Client, Command, Domain, Effects, Event, Handle, MemoryStore, Node, Rejection,
};
use whizbang::{Error, SendError};

#[derive(Domain)]
struct Lists;

#[derive(Domain)]
#[domain(codec = json)]
struct Texts;

/// A type of another crate, whose attributes are not visible to our derives.
mod foreign {
    use serde::{Deserialize, Serialize};

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    pub(crate) struct Skipping {
        #[serde(skip_serializing_if = "Option::is_none")]
        pub(crate) coupon: Option<u8>,
        pub(crate) paid: u64,
        pub(crate) memo: String,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    pub(crate) enum Tagged {
        Card { number: u64 },
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(untagged)]
    pub(crate) enum Untagged {
        Number(u64),
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(crate) enum Gap {
        A,
        #[serde(skip)]
        B,
        C(u64),
        D(u64),
    }

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
    pub(crate) struct Hidden {
        pub(crate) shown: u64,
        #[serde(skip)]
        pub(crate) hidden: u64,
    }

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    pub(crate) struct Nested(pub(crate) Vec<Nested>);

    /// Returns a value nested `levels` deep.
    pub(crate) fn nested(levels: usize) -> Nested {
        (1..levels).fold(Nested(Vec::new()), |inner, _| Nested(vec![inner]))
    }
}

use foreign::{Gap, Hidden, Skipping, Tagged, Untagged, nested};

/// Declares an aggregate that records given values and replies with its state.
macro_rules! recorder {
    ($module:ident, $domain:ident, $value:ty) => {
        #[allow(dead_code, reason = "not every type is tried as a reply")]
        mod $module {
            use super::*;

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = $domain, name = "Put", reply = String)]
            pub(crate) struct Put {
                #[key]
                pub(crate) key: String,
                pub(crate) number: usize,
            }

            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = $domain, name = "Stored")]
            pub(crate) struct Stored {
                pub(crate) value: $value,
            }

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = $domain, name = "Look", reply = String)]
            pub(crate) struct Look {
                #[key]
                pub(crate) key: String,
            }

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = $domain, name = "Ask", reply = $value)]
            pub(crate) struct Ask {
                #[key]
                pub(crate) key: String,
                pub(crate) number: usize,
            }

            #[derive(Aggregate, Default)]
            #[aggregate(domain = $domain, handles(Put, Look, Ask), applies(Stored))]
            pub(crate) struct Recorder {
                values: Vec<String>,
            }

            thread_local! {
                /// The values for `Put` and `Ask`, because a command cannot contain them.
                pub(crate) static VALUES: RefCell<Vec<$value>> = const { RefCell::new(Vec::new()) };
            }

            impl Handle<Put> for Recorder {
                fn handle(&self, put: Put, effects: &mut Effects<Self>) -> Result<String, Rejection> {
                    let value = VALUES.with_borrow(|values| values[put.number].clone());
                    effects.record(Stored { value });
                    Ok("put".to_owned())
                }
            }

            impl Handle<Look> for Recorder {
                fn handle(&self, _: Look, _: &mut Effects<Self>) -> Result<String, Rejection> {
                    Ok(self.values.join("; "))
                }
            }

            impl Handle<Ask> for Recorder {
                fn handle(&self, ask: Ask, _: &mut Effects<Self>) -> Result<$value, Rejection> {
                    Ok(VALUES.with_borrow(|values| values[ask.number].clone()))
                }
            }

            impl Apply<Stored> for Recorder {
                fn apply(&mut self, stored: &Stored) {
                    let mut text: Vec<char> = format!("{:?}", stored.value).chars().collect();
                    // Its entries have another order each time.
                    if std::any::type_name::<$value>().contains("HashMap") {
                        text.sort_unstable();
                    }
                    self.values.push(format!("{} {}", text.len(), text.iter().take(1_000).collect::<String>()));
                }
            }

            /// Returns whether each value is accepted. An accepted one is the same in the state before and after a
            /// restart.
            pub(crate) async fn accepted(values: Vec<$value>) -> Vec<bool> {
                let store = MemoryStore::new();
                let start = async || {
                    Node::builder("service", store.clone())
                        .threads(0)
                        .aggregate::<Recorder>()
                        .start()
                        .await
                        .expect("starts")
                };
                let count = values.len();
                VALUES.set(values);
                let mut accepted = Vec::new();
                for number in 0..count {
                    let key = format!("k{number}");
                    let node = start().await;
                    let put = node.client().send(Put { key: key.clone(), number }).await;
                    accepted.push(put.is_ok());
                    if put.is_err() {
                        node.stop().await.expect("stops");
                        continue;
                    }
                    let live = look(&node.client(), &key).await;
                    assert!(!live.is_empty(), "value {number} is in the state");
                    node.stop().await.expect("stops");
                    let node = start().await;
                    assert_eq!(look(&node.client(), &key).await, live, "value {number} after a restart");
                    node.stop().await.expect("stops");
                }
                accepted
            }

            async fn look(client: &Client, key: &str) -> String {
                client.send(Look { key: key.to_owned() }).await.expect("the key answers")
            }

            /// Returns the replies on the two paths of one process: typed, and as bytes.
            pub(crate) async fn replies(values: Vec<$value>) -> Vec<(Option<$value>, Option<$value>)> {
                let count = values.len();
                VALUES.set(values);
                let node = Node::builder("service", MemoryStore::new())
                    .threads(0)
                    .aggregate::<Recorder>()
                    .start()
                    .await
                    .expect("starts");
                let client = node.client();
                let mut replies = Vec::new();
                for number in 0..count {
                    // Each path has a key of its own; the first command makes the actor live, so that the next is
                    // handled inline.
                    let key = format!("k{number}");
                    look(&client, &key).await;
                    let ask = || Ask { key: key.clone(), number };
                    let typed = client.send(ask()).await.ok();
                    let ask = || Ask { key: format!("d{number}"), number };
                    let encoded = client.send(ask()).deadline(std::time::Duration::from_secs(10)).await.ok();
                    replies.push((typed, encoded));
                }
                node.stop().await.expect("stops");
                replies
            }
        }
    };
}

recorder!(skipping, Lists, Skipping);
recorder!(tagged, Lists, Tagged);
recorder!(untagged, Lists, Untagged);
recorder!(gap, Lists, Gap);
recorder!(hidden, Lists, Hidden);
recorder!(numbers, Lists, Vec<u64>);
recorder!(wide, Lists, Vec<u128>);
recorder!(nothing, Lists, Vec<()>);
recorder!(deep, Lists, foreign::Nested);
recorder!(maps, Lists, HashMap<String, u64>);
recorder!(floats, Texts, f64);
recorder!(some, Texts, Option<Option<u64>>);
recorder!(maybe, Texts, Option<f64>);
recorder!(deep_text, Texts, foreign::Nested);
recorder!(skipping_text, Texts, Skipping);
recorder!(tuple_keys, Texts, HashMap<(u8, u8), u8>);
recorder!(dynamic, Lists, serde_json::Value);

fn skipping_value() -> Skipping {
    Skipping { coupon: None, paid: 0, memo: format!("A{}", "z".repeat(66)) }
}

#[whizbang::test]
async fn events_that_do_not_read_back_are_refused() -> Result<(), Error> {
    let full = Skipping { coupon: Some(1), ..skipping_value() };
    assert_eq!(skipping::accepted(vec![full, skipping_value()]).await, [true, false]);
    assert_eq!(tagged::accepted(vec![Tagged::Card { number: 7 }]).await, [false]);
    assert_eq!(untagged::accepted(vec![Untagged::Number(7)]).await, [false]);
    assert_eq!(gap::accepted(vec![Gap::A, Gap::C(5), Gap::D(5), Gap::B]).await, [true, false, false, false]);
    assert_eq!(dynamic::accepted(vec![serde_json::json!({ "a": 1 })]).await, [false]);
    assert_eq!(deep::accepted(vec![nested(60), nested(200)]).await, [true, false]);
    assert_eq!(nothing::accepted(vec![vec![(); 1_000], vec![(); 1 << 20]]).await, [true, false]);
    Ok(())
}

#[whizbang::test]
async fn json_events_that_do_not_read_back_are_refused() -> Result<(), Error> {
    let floats = vec![907.303_832_202_868_9, f64::MIN_POSITIVE, 5e-324, f64::NAN, f64::INFINITY];
    assert_eq!(floats::accepted(floats).await, [true, true, true, false, false]);
    assert_eq!(some::accepted(vec![None, Some(Some(1)), Some(None)]).await, [true, true, false]);
    assert_eq!(maybe::accepted(vec![None, Some(1.5), Some(f64::NAN)]).await, [true, true, false]);
    assert_eq!(deep_text::accepted(vec![nested(60), nested(127), nested(1_000)]).await, [true, false, false]);
    // Skipped fields have names here, and read as absent.
    assert_eq!(skipping_text::accepted(vec![skipping_value()]).await, [true]);
    assert_eq!(tuple_keys::accepted(vec![HashMap::from([((1, 2), 3)])]).await, [false]);
    Ok(())
}

#[whizbang::test]
async fn limits_of_writing_and_reading_are_the_same() -> Result<(), Error> {
    // One byte each, eight or sixteen in memory.
    assert_eq!(numbers::accepted(vec![vec![1; 500_000], vec![1; 600_000]]).await, [true, false]);
    assert_eq!(wide::accepted(vec![vec![1; 500_000]]).await, [true]);
    let map: HashMap<_, _> = (0..100).map(|number| (format!("key {number}"), number)).collect();
    assert_eq!(maps::accepted(vec![map]).await, [true]);
    Ok(())
}

#[whizbang::test]
async fn hidden_fields_are_the_same_before_and_after_a_restart() -> Result<(), Error> {
    // Not refused, because both directions skip the field; the state gets the value in the log.
    assert_eq!(hidden::accepted(vec![Hidden { shown: 10, hidden: 5 }]).await, [true]);
    let replies = hidden::replies(vec![Hidden { shown: 10, hidden: 5 }]).await;
    let read = Some(Hidden { shown: 10, hidden: 0 });
    assert_eq!(replies, [(read.clone(), read)]);
    Ok(())
}

#[whizbang::test]
async fn replies_are_the_same_on_every_path() -> Result<(), Error> {
    let full = Skipping { coupon: Some(1), ..skipping_value() };
    let replies = skipping::replies(vec![full.clone(), skipping_value()]).await;
    assert_eq!(replies, [(Some(full.clone()), Some(full)), (None, None)]);
    assert_eq!(tagged::replies(vec![Tagged::Card { number: 7 }]).await, [(None, None)]);
    assert_eq!(
        some::replies(vec![Some(None), Some(Some(1))]).await,
        [(None, None), (Some(Some(Some(1))), Some(Some(Some(1))))]
    );
    let many = vec![1; 400_000];
    assert_eq!(numbers::replies(vec![many.clone()]).await, [(Some(many.clone()), Some(many))]);
    let float = 907.303_832_202_868_9;
    assert_eq!(floats::replies(vec![float]).await, [(Some(float), Some(float))]);
    Ok(())
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Lists, reply = Tagged)]
struct Charge {
    #[key]
    card: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Lists)]
struct Charged {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Lists, handles(Charge), applies(Charged))]
struct Card;

impl Handle<Charge> for Card {
    fn handle(&self, _charge: Charge, effects: &mut Effects<Self>) -> Result<Tagged, Rejection> {
        effects.record(Charged {});
        Ok(Tagged::Card { number: 7 })
    }
}

impl Apply<Charged> for Card {
    fn apply(&mut self, _charged: &Charged) {}
}

/// Otherwise a caller that sends the command again, because it cannot read the reply, would be charged twice.
#[whizbang::test]
async fn unreadable_reply_records_nothing_on_any_path() -> Result<(), Error> {
    let hub = LoopbackHub::new();
    let builder = Node::builder("cards", MemoryStore::new()).threads(0).aggregate::<Card>().bridge(hub.bridge());
    let node = builder.start().await?;
    let (local, remote) = (node.client(), Client::connect("shop", hub.bridge()).await?);
    let charge = || Charge { card: "c".to_owned() };
    for _ in 0..2 {
        let limit = std::time::Duration::from_secs(3);
        let answers = [
            local.send(charge()).await,
            local.send(charge()).deadline(limit).await,
            local.send(charge()).id(local.new_id()).await,
            remote.send(charge()).deadline(limit).await,
        ];
        for answer in answers {
            let error = answer.expect_err("the reply is refused");
            assert!(!error.is_transient() && !error.may_have_happened(), "{error:?}");
        }
    }
    assert_eq!(node.metrics().events, 0);
    remote.disconnect().await;
    node.stop().await
}

/// The error names the type and the fix.
#[whizbang::test]
async fn error_of_an_unreadable_event_names_its_type() -> Result<(), Error> {
    tagged::VALUES.set(vec![Tagged::Card { number: 7 }]);
    let node = Node::builder("service", MemoryStore::new()).threads(0).aggregate::<tagged::Recorder>().start().await?;
    let error = node.client().send(tagged::Put { key: "k".to_owned(), number: 0 }).await.expect_err("is refused");
    let text = format!("{error} {error:?}");
    assert!(text.contains("Stored") && text.contains("`tag`"), "{text}");
    assert!(!matches!(error, SendError::Unknown { .. }), "{error:?}");
    node.stop().await
}
