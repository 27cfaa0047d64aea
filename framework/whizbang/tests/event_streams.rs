//! Streams of events of a client of the owner itself: their start, their cursor, their errors and their end.

mod eventually;
mod plant;

use std::task::{Context, Poll};

use eventually::eventually;
use futures_util::StreamExt;
use plant::*;
use whizbang::message::CodecError;
use whizbang::prelude::*;
use whizbang::subscribe::{Cursor, SubscribeError};

#[whizbang::test]
async fn stream_from_the_start_reads_every_event_once() {
    let node = plant(&MemoryStore::new()).start().await.unwrap();
    let client = node.client();
    measure(&client, 0..700).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>().from_start(), Collected::default());
    collected.take(&mut stream, 700).await;
    collected.assert_exactly(0..700);
    for number in 700..720 {
        measure(&client, [number]).await;
        collected.take(&mut stream, 1).await;
    }
    collected.assert_exactly(0..720);
    assert!(poll(&mut stream).is_none());
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn stream_from_now_begins_where_it_has_started() {
    let node = plant(&MemoryStore::new()).start().await.unwrap();
    let client = node.client();
    measure(&client, 0..50).await;
    let mut stream = client.subscribe::<Measured>();
    assert_eq!(stream.cursor(), None, "nothing is read before the first poll");
    stream.started().await.unwrap();
    let start = stream.cursor().unwrap();
    assert_eq!((0..4).filter_map(|shard| start.position(shard)).sum::<u64>(), 50);
    measure(&client, 50..80).await;
    let mut collected = Collected::default();
    collected.take(&mut stream, 30).await;
    collected.assert_exactly(50..80);
    // The cursor of a stream that has read nothing is a start as well.
    let (mut again, mut collected) = (client.subscribe::<Measured>().start_at(start), Collected::default());
    collected.take(&mut again, 30).await;
    collected.assert_exactly(50..80);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn saved_cursor_continues_without_loss_or_duplicate() {
    let store = MemoryStore::new();
    let (mut collected, mut saved) = (Collected::default(), None::<String>);
    for run in 0..4 {
        let node = plant(&store).start().await.unwrap();
        let client = node.client();
        measure(&client, run * 300..(run + 1) * 300).await;
        let mut stream = match &saved {
            None => client.subscribe::<Measured>().from_start(),
            Some(text) => client.subscribe::<Measured>().start_at(text.parse::<Cursor>().unwrap()),
        };
        // Fewer than there are, so that the rest is in memory when the stream is dropped; all of them in the last run.
        let count = if run < 3 { 217 } else { 4 * 300 - collected.numbers.len() };
        collected.take(&mut stream, count).await;
        saved = stream.cursor().map(|cursor| cursor.to_string());
        drop(stream);
        node.stop().await.unwrap();
    }
    collected.assert_exactly(0..1200);
}

#[whizbang::test]
async fn events_of_other_types_move_the_cursor() {
    let node = plant(&MemoryStore::new()).start().await.unwrap();
    let client = node.client();
    client.publish("a", Started {}).await.unwrap();
    client.publish("a", Measured { number: 1 }).await.unwrap();
    for _ in 0..600 {
        client.publish("a", Started {}).await.unwrap();
    }
    let mut stream = client.subscribe::<Measured>().from_start();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!((first.event.number, first.context.position), (1, 2));
    let shard = first.context.shard;
    assert_eq!(stream.cursor().unwrap().position(shard), Some(2));
    eventually(async || poll(&mut stream).is_none() && stream.cursor().unwrap().position(shard) == Some(602)).await;
    node.stop().await.unwrap();
}

#[derive(Debug, PartialEq)]
enum Seen {
    Started(Started),
    Measured(Measured),
}

#[whizbang::test]
async fn several_types_share_a_stream_in_the_order_of_their_key() {
    let node = plant(&MemoryStore::new()).start().await.unwrap();
    let client = node.client();
    for number in 0..5 {
        client.publish("a", Started {}).await.unwrap();
        client.publish("a", Measured { number }).header("tenant", "acme").await.unwrap();
    }
    let stream = client.subscribe_to::<Plant, Seen>().event(Seen::Started).event(Seen::Measured).from_start();
    // It is a stream like any other.
    let items: Vec<_> = stream.take(10).map(Result::unwrap).collect().await;
    for (pair, number) in items.chunks(2).zip(0..) {
        assert_eq!(pair[0].event, Seen::Started(Started {}));
        assert_eq!(pair[1].event, Seen::Measured(Measured { number }));
        assert_eq!(pair[1].context.header("tenant"), Some("acme"));
        assert_eq!(pair[1].context.version, number * 2 + 2);
        assert_ne!(pair[0].id, pair[1].id);
    }
    node.stop().await.unwrap();
}

mod newer {
    use super::*;

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Plant, version = 2, upcast(1 = super::Measured))]
    pub(super) struct Measured {
        pub(super) number: u64,
        pub(super) unit: String,
    }

    impl From<super::Measured> for Measured {
        fn from(older: super::Measured) -> Self {
            Self { number: older.number, unit: "m".to_owned() }
        }
    }
}

#[whizbang::test]
async fn unreadable_event_is_an_item_and_not_the_end() {
    let store = MemoryStore::new();
    let node = plant(&store).start().await.unwrap();
    measure(&node.client(), [10, 20]).await;
    node.stop().await.unwrap();
    let node = Node::builder("plant", store).publishes::<newer::Measured>().publishes::<Started>();
    let node = node.start().await.unwrap();
    let client = node.client();
    client.publish("meter-0", newer::Measured { number: 30, unit: "km".to_owned() }).await.unwrap();
    let mut stream = client.subscribe::<Measured>().from_start();
    for number in [10, 20] {
        assert_eq!(stream.next().await.unwrap().unwrap().event.number, number);
    }
    match stream.next().await.unwrap() {
        Err(error @ SubscribeError::Unreadable { position: 3, source: CodecError::Version { .. }, .. }) => {
            assert!(!error.is_last() && error.to_string().contains("`Measured` at position 3"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    client.publish("meter-0", newer::Measured { number: 40, unit: String::new() }).await.unwrap();
    assert!(matches!(stream.next().await, Some(Err(SubscribeError::Unreadable { position: 4, .. }))));
    // The newer program reads all of them, the older ones upcast.
    let newer = client.subscribe::<newer::Measured>().from_start().take(4).map(|item| item.unwrap().event);
    let newer: Vec<_> = newer.map(|event| (event.number, event.unit)).collect().await;
    let expected = [(10, "m"), (20, "m"), (30, "km"), (40, "")].map(|(number, unit)| (number, unit.to_owned()));
    assert_eq!(newer, expected);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn panicking_conversion_is_an_unreadable_event() {
    let node = plant(&MemoryStore::new()).start().await.unwrap();
    let client = node.client();
    measure(&client, [10, 20, 30]).await;
    let convert = |event: Measured| if event.number == 20 { panic!("not this one") } else { event.number };
    let mut stream = client.subscribe_to::<Plant, u64>().event(convert).from_start();
    assert_eq!(stream.next().await.unwrap().unwrap().event, 10);
    match stream.next().await.unwrap() {
        Err(SubscribeError::Unreadable { position: 2, source, .. }) => {
            assert_eq!(source.to_string(), "panicked: not this one");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(stream.next().await.unwrap().unwrap().event, 30);
    node.stop().await.unwrap();
}

#[derive(Domain)]
#[domain(name = "plant", shards = 2)]
struct SmallPlant;

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = SmallPlant, name = "Measured")]
struct MeasuredInSmallPlant {
    number: u64,
}

#[whizbang::test]
async fn cursor_that_does_not_fit_ends_the_stream() {
    let node = plant(&MemoryStore::new()).start().await.unwrap();
    let client = node.client();
    for text in ["1:other:-:0.0.0.0", "1:plant:-:0.0"] {
        let mut stream = client.subscribe::<Measured>().start_at(text.parse().unwrap());
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(matches!(error, SubscribeError::Cursor { .. }) && error.is_last(), "{error}");
        assert!(stream.next().await.is_none() && stream.cursor().is_none());
        assert!(matches!(stream.started().await, Err(SubscribeError::Stopped)), "it has ended");
    }
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn program_with_fewer_shards_ends_with_an_error() {
    let node = plant(&MemoryStore::new()).start().await.unwrap();
    let client = node.client();
    let mut stream = client.subscribe::<MeasuredInSmallPlant>();
    stream.started().await.unwrap();
    measure(&client, 0..10).await;
    let error = loop {
        if let Err(error) = stream.next().await.unwrap() {
            break error;
        }
    };
    assert!(matches!(error, SubscribeError::Shards { shards: 2, shard: 2 | 3, .. }), "{error}");
    assert!(stream.next().await.is_none());
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn diverged_log_ends_the_stream() {
    let cursor = async |events: u64| {
        let node = plant(&MemoryStore::new()).start().await.unwrap();
        let client = node.client();
        measure(&client, (0..events).map(|number| number * 10)).await;
        let mut stream = client.subscribe::<Measured>().from_start();
        for _ in 0..events {
            stream.next().await.unwrap().unwrap();
        }
        (stream.cursor().unwrap(), node)
    };
    let (of_three, first) = cursor(3).await;
    first.stop().await.unwrap();
    // The other log is shorter, or has another event at the position.
    for events in [2, 3, 4] {
        let (_, node) = cursor(events).await;
        let mut stream = node.client().subscribe::<Measured>().start_at(of_three.clone());
        let error = stream.next().await.unwrap().unwrap_err();
        assert!(matches!(error, SubscribeError::Diverged { position: 3, .. }), "{error}");
        assert_eq!(stream.cursor(), Some(of_three.clone()), "the place remains known");
        assert!(stream.next().await.is_none());
        node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn stream_ends_with_the_node_of_its_client() {
    for stops in [true, false] {
        let node = plant(&MemoryStore::new()).start().await.unwrap();
        let client = node.client();
        measure(&client, 0..20).await;
        let (mut stream, mut collected) = (client.subscribe::<Measured>().from_start(), Collected::default());
        collected.take(&mut stream, 20).await;
        let cursor = stream.cursor();
        let waiting = tokio::task::spawn_local(async move {
            let error = stream.next().await.unwrap().unwrap_err();
            assert!(matches!(error, SubscribeError::Stopped), "{error}");
            assert!(stream.next().await.is_none());
            stream.cursor()
        });
        tokio::task::yield_now().await;
        if stops {
            node.stop().await.unwrap();
        } else {
            drop(node);
        }
        assert_eq!(waiting.await.unwrap(), cursor);
        let error = client.subscribe::<Measured>().from_start().next().await.unwrap().unwrap_err();
        assert!(matches!(error, SubscribeError::Stopped), "{error}");
    }
}

#[whizbang::test]
async fn domain_out_of_reach_is_an_error() {
    let node = Node::builder("office", MemoryStore::new()).start().await.unwrap();
    let error = node.client().subscribe::<Measured>().next().await.unwrap().unwrap_err();
    assert!(matches!(error, SubscribeError::NoBridge { .. }), "{error}");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn stream_without_new_events_is_not_woken() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    let node = plant(&MemoryStore::new()).start().await.unwrap();
    let client = node.client();
    measure(&client, 0..5).await;
    let (mut stream, mut collected) = (client.subscribe::<Measured>().from_start(), Collected::default());
    collected.take(&mut stream, 5).await;
    let count = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Arc::clone(&count).into();
    let mut context = Context::from_waker(&waker);
    let mut poll_counted = || match stream.poll_next_unpin(&mut context) {
        Poll::Ready(item) => Some(item.unwrap().unwrap().event.number),
        Poll::Pending => None,
    };
    // The commits may still be announced, and the logs are read again from time to time.
    eventually(async || {
        assert_eq!(poll_counted(), None);
        tokio::task::yield_now().await;
        count.0.store(0, Ordering::Relaxed);
        node.wait_idle().await;
        count.0.load(Ordering::Relaxed) == 0
    })
    .await;
    measure(&client, [5]).await;
    eventually(async || count.0.load(Ordering::Relaxed) > 0).await;
    eventually(async || poll_counted() == Some(5)).await;
    node.stop().await.unwrap();
}
