//! Commands of clients: a failing command fails for its caller only, and the key handles the next one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use whizbang::prelude::*;
use whizbang::{Retry, SendError};

#[derive(Domain)]
#[domain(name = "notes")]
struct Notes;

/// A command that fails in a given way.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Notes, reply = String)]
struct Write {
    #[key]
    note: String,
    what: What,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum What {
    Line,
    LongReply,
    LongEvent,
    LongTurn,
    LongKey,
    NoKey,
    Panic,
    /// Panics as many times as [`PANICS`] says.
    PanicForNow,
}

static PANICS: AtomicU32 = AtomicU32::new(0);

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Notes)]
struct Written {
    line: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Notes, handles(Write), applies(Written))]
struct Note {
    lines: usize,
}

impl Handle<Write> for Note {
    fn handle(&self, write: Write, effects: &mut Effects<Self>) -> Result<String, Rejection> {
        effects.record(Written { line: "line".to_owned() });
        let send = |effects: &mut Effects<Self>, note: String| {
            effects.send(Write { note, what: What::Line });
        };
        match write.what {
            What::Line => {}
            What::LongReply => return Ok("x".repeat(600 * 1024)),
            What::LongEvent => effects.record(Written { line: "x".repeat(600 * 1024) }),
            What::LongTurn => (0..5).for_each(|_| effects.record(Written { line: "x".repeat(450 * 1024) })),
            What::LongKey => send(effects, "k".repeat(300)),
            What::NoKey => send(effects, String::new()),
            What::Panic => panic!("boom"),
            What::PanicForNow => {
                let left = PANICS.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                assert!(left.is_err(), "boom for now");
            }
        }
        Ok(format!("{}", self.lines + 1))
    }
}

impl Apply<Written> for Note {
    fn apply(&mut self, _written: &Written) {
        self.lines += 1;
    }
}

async fn start(store: &MemoryStore) -> Node {
    let retry = Retry { attempts: 2, first: Duration::from_millis(1), longest: Duration::from_millis(2) };
    Node::builder("notes", store.clone()).threads(0).aggregate::<Note>().retry(retry).start().await.unwrap()
}

fn write(what: What) -> Write {
    Write { note: "n".to_owned(), what }
}

#[whizbang::test]
async fn failing_command_of_a_client_parks_nothing() {
    let store = MemoryStore::new();
    let mut node = start(&store).await;
    let mut lines = 0;
    for what in [What::LongReply, What::LongEvent, What::LongTurn, What::LongKey, What::NoKey, What::Panic] {
        // Inline, and as an envelope through the mailbox.
        for deadline in [None, Some(Duration::from_secs(60))] {
            let client = node.client();
            let error = match deadline {
                None => client.send(write(what)).await.unwrap_err(),
                Some(deadline) => client.send(write(what)).deadline(deadline).await.unwrap_err(),
            };
            assert!(matches!(error, SendError::Failed { .. } | SendError::Refused(_)), "{what:?}: {error}");
            assert!(!error.may_have_happened() && !error.is_transient(), "{what:?}: {error}");
            lines += 1;
            assert_eq!(client.send(write(What::Line)).await.unwrap(), lines.to_string(), "{what:?}");
        }
    }
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(node.health().reasons, [""; 0]);
    assert!(node.metrics().failed >= 2 && node.metrics().panics == 4, "{:?}", node.metrics());
    drop(node);
    node = start(&store).await;
    assert_eq!(node.client().send(write(What::Line)).await.unwrap(), (lines + 1).to_string());
}

#[whizbang::test]
async fn failed_command_runs_again_under_its_id() {
    let node = start(&MemoryStore::new()).await;
    let client = node.client();
    let id = client.new_id();
    PANICS.store(2, Ordering::SeqCst);
    let error = client.send(write(What::PanicForNow)).id(id).await.unwrap_err();
    assert!(matches!(&error, SendError::Failed { reason } if reason.contains("boom for now")), "{error}");
    for _ in 0..2 {
        assert_eq!(client.send(write(What::PanicForNow)).id(id).await.unwrap(), "1", "handled once, remembered then");
    }
}
