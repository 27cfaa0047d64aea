//! Everything that the readers of a store return, to compare two stores.

use std::collections::BTreeMap;
use std::fmt::Debug;

use whizbang::Projection;
use whizbang::message::{Domain, Name, ShardId};
use whizbang::store::Store;

use crate::bank::{Bank, Branches, Transfers};
use crate::service::{Alarms, Balances, Notices, Senders};

/// The content of a store by shard and part, as text.
pub(crate) type Content = BTreeMap<String, String>;

/// The content of all domains of the service.
pub(crate) async fn content(store: &dyn Store) -> Content {
    let mut content = Content::new();
    domain::<Bank>(store, &mut content).await;
    domain::<Transfers>(store, &mut content).await;
    domain::<Branches>(store, &mut content).await;
    domain::<Alarms>(store, &mut content).await;
    domain::<Senders>(store, &mut content).await;
    domain::<Notices>(store, &mut content).await;
    content.insert("identity".to_owned(), format!("{:?}", store.identity().await.unwrap()));
    content.insert("digest key".to_owned(), store.digest_key().to_string());
    content.insert("catalog".to_owned(), format!("{:?}", store.catalog().await.unwrap()));
    let balances = Name::from_static(Balances::NAME).unwrap();
    content.insert("view".to_owned(), format!("{:?}", store.view(&balances).await.unwrap()));
    content
}

fn sorted<T: Debug>(items: impl IntoIterator<Item = T>) -> String {
    let mut items: Vec<String> = items.into_iter().map(|item| format!("{item:?}")).collect();
    items.sort();
    items.join("\n")
}

async fn domain<D: Domain>(store: &dyn Store, content: &mut Content) {
    let name = Name::from_static(D::NAME).unwrap();
    for number in 0..D::SHARDS {
        let shard = ShardId::new(name.clone(), number);
        let Some(reader) = store.read(&shard).await.unwrap() else { continue };
        let mut put = |part: &str, text: String| drop(content.insert(format!("{shard} {part}"), text));
        put("position", reader.position().to_string());
        put("events", format!("{:?}", reader.events(0, 10_000).await.unwrap()));
        put("watermarks", sorted(reader.watermarks()));
        put("timers", sorted(reader.timer_counts()));
        put("next timer", format!("{:?}", reader.next_timer()));
        put("dead letters", format!("{:?}", reader.dead_letters(None, 100).await.unwrap()));
        let heads = reader.outbox_heads();
        for (to, ..) in &heads {
            put(&format!("outbox {to}"), format!("{:?}", reader.outbox(to, 0, 10_000).await.unwrap()));
        }
        put("outbox", sorted(heads));
        for (actor, key) in reader.streams().await.unwrap() {
            let turns = reader.history(&actor, &key).await.unwrap();
            for turn in turns.iter().filter(|turn| turn.digest.is_some()) {
                let found = reader.find_turn(&actor, &key, turn.id).await.unwrap();
                assert_eq!(found.as_ref().map(|found| found.id), Some(turn.id), "{actor} {key}");
            }
            put(&format!("turns {actor} {key}"), format!("{turns:?}"));
        }
    }
}

/// Compares two contents part by part.
#[track_caller]
pub(crate) fn assert_same(before: &Content, after: &Content) {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (part, text) in before {
        assert_eq!(text, &after[part], "{part}");
    }
}
