//! Events of a turn are applied once and in order, or never; on the thread of the sender and on others.

use std::time::Duration;

use whizbang::prelude::*;
use whizbang::{Retry, SendError};

#[derive(Domain)]
struct Diaries;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Reply,
    Reject,
    Panic,
}

/// Records each line as an event: even lines of one type, odd lines of another.
#[derive(Command, Clone, Serialize, Deserialize)]
#[command(domain = Diaries, reply = Vec<u32>)]
struct Write {
    #[key]
    diary: String,
    lines: Vec<u32>,
    end: End,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Diaries)]
struct EvenWritten {
    line: u32,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Diaries)]
struct OddWritten {
    text: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Diaries, handles(Write), applies(EvenWritten, OddWritten))]
struct Diary {
    lines: Vec<u32>,
}

impl Handle<Write> for Diary {
    /// Replies with the lines that were written before.
    fn handle(&self, write: Write, effects: &mut Effects<Self>) -> Result<Vec<u32>, Rejection> {
        for line in write.lines {
            if line % 2 == 0 {
                effects.record(EvenWritten { line });
            } else {
                effects.record(OddWritten { text: line.to_string() });
            }
        }
        match write.end {
            End::Reply => Ok(self.lines.clone()),
            End::Reject => Err(Rejection::new("diaries.no", "it was all a dream")),
            End::Panic => panic!("out of ink"),
        }
    }
}

impl Apply<EvenWritten> for Diary {
    fn apply(&mut self, written: &EvenWritten) {
        self.lines.push(written.line);
    }
}

impl Apply<OddWritten> for Diary {
    fn apply(&mut self, written: &OddWritten) {
        self.lines.push(written.text.parse().expect("it is a number"));
    }
}

const NOTHING: [u32; 0] = [];

fn write(diary: &str, lines: &[u32], end: End) -> Write {
    Write { diary: diary.to_owned(), lines: lines.to_vec(), end }
}

async fn node(threads: usize) -> Node {
    let once = Retry { attempts: 1, ..Retry::default() };
    Node::builder("diaries", MemoryStore::new())
        .aggregate::<Diary>()
        .threads(threads)
        .retry(once)
        .start()
        .await
        .unwrap()
}

#[whizbang::test]
async fn recorded_events_apply_in_order_and_discarded_never() {
    let many: Vec<u32> = (100..150).collect();
    let turns: [(&[u32], End); 8] = [
        (&[2, 1, 4, 3], End::Reply),
        (&[5, 7, 6], End::Reject),
        (&[8], End::Reply),
        (&many, End::Reply),
        (&[], End::Reply),
        (&many, End::Reject),
        (&[9, 11], End::Reply),
        (&[12, 13, 14], End::Reply),
    ];
    for threads in [0, 1, 2] {
        let node = node(threads).await;
        let mut written = Vec::new();
        for (lines, end) in turns {
            let reply = node.client().send(write("ada", lines, end)).await;
            if end == End::Reply {
                assert_eq!(reply.unwrap(), written, "{threads} threads");
                written.extend_from_slice(lines);
            } else {
                assert_eq!(reply.unwrap_err().rejection().map(Rejection::code), Some("diaries.no"));
            }
        }
        assert_eq!(node.client().send(write("ada", &[], End::Reply)).await.unwrap(), written);
        node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn events_of_a_panicking_turn_reach_no_other_key() {
    for threads in [0, 2] {
        let node = node(threads).await;
        let dead = node.client().send(write("bob", &[2, 4, 6], End::Panic)).await;
        assert!(matches!(dead, Err(SendError::Failed { .. })), "{dead:?}");
        for lines in [&[][..], &[8, 9]] {
            assert_eq!(
                node.client().send(write("ada", lines, End::Reply)).await.unwrap(),
                NOTHING,
                "{threads} threads"
            );
        }
        assert_eq!(node.client().send(write("ada", &[], End::Reply)).await.unwrap(), [8, 9]);
        node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn sender_gets_the_same_result_on_every_thread() {
    for threads in [0, 1, 3] {
        let node = node(threads).await;
        let client = node.client();
        let unnamed = client.send(write("", &[1], End::Reply)).await;
        assert!(matches!(unnamed, Err(SendError::Key { bytes: 0 })), "{unnamed:?}");
        for diary in ["ada", "bob", "cleo", "dan", "eve"] {
            // The caller's own id is kept wherever the actor is.
            let id = client.new_id();
            let first = client.send(write(diary, &[1, 2], End::Reply)).id(id).deadline(Duration::from_secs(30)).await;
            assert_eq!(first.unwrap(), NOTHING);
            assert_eq!(
                client.send(write(diary, &[1, 2], End::Reply)).id(id).await.unwrap(),
                NOTHING,
                "{threads} threads"
            );
            let other = client.send(write(diary, &[3], End::Reply)).id(id).await;
            assert!(matches!(other, Err(SendError::Conflict)), "{other:?}");
            assert_eq!(client.send(write(diary, &[], End::Reply)).await.unwrap(), [1, 2]);
        }
        node.stop().await.unwrap();
        let late = client.send(write("ada", &[1], End::Reply)).await;
        assert!(matches!(late, Err(SendError::Stopped)), "{late:?}");
    }
}

/// A line that cannot be serialized.
#[derive(Clone, Deserialize)]
struct Unserializable;

impl Serialize for Unserializable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("it must not be said");
    }
}

#[derive(Command, Clone, Serialize, Deserialize)]
#[command(domain = Diaries)]
struct Whisper {
    #[key]
    diary: String,
    what: Unserializable,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Diaries, handles(Whisper))]
struct Listener;

impl Handle<Whisper> for Listener {
    fn handle(&self, _: Whisper, _: &mut Effects<Self>) -> Result<(), Rejection> {
        Ok(())
    }
}

#[whizbang::test]
async fn command_whose_serialization_panics_is_refused() {
    let node = Node::builder("diaries", MemoryStore::new())
        .threads(0)
        .aggregate::<Diary>()
        .aggregate::<Listener>()
        .start()
        .await
        .unwrap();
    let client = node.client();
    for _ in 0..2 {
        let whisper = client.send(Whisper { diary: "ada".into(), what: Unserializable });
        let error = whisper.await.unwrap_err();
        assert!(
            matches!(&error, SendError::Encode(reason) if reason.to_string().contains("must not be said")),
            "{error}"
        );
        assert!(!error.may_have_happened());
    }
    let metrics = node.metrics();
    assert_eq!((metrics.panics, metrics.activations, metrics.turns), (2, 0, 0), "it is encoded before it is queued");
}
