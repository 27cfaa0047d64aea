//! Commands of clients: a failing command fails for its caller only, and the key handles the next one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use whizbang::prelude::*;
use whizbang::{NodeConfig, Retry, SendError};

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

/// The log lines so far: the message, or the cause and the number of lines that were left out.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn count(&self, line: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|known| *known == line).count()
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    cause: String,
    left_out: u64,
}

impl tracing::field::Visit for Fields {
    fn record_u64(&mut self, field: &tracing::field::Field, value: u64) {
        if field.name() == "left_out" {
            self.left_out = value;
        }
    }

    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "cause" {
            value.clone_into(&mut self.cause);
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        // The text of the line; the name of the failed message follows in a field of the same name.
        if field.name() == "message" && self.message.is_empty() {
            self.message = format!("{value:?}");
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, cause, left_out } = fields;
        self.0.lock().unwrap().push(if left_out > 0 { format!("{cause}: {left_out}") } else { message });
    }
}

#[tokio::test(start_paused = true)]
async fn flood_of_failing_commands_writes_few_log_lines() {
    let test = async {
        let lines = Lines::default();
        let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        let retry = Retry { attempts: 2, first: Duration::from_millis(1), longest: Duration::from_millis(2) };
        let node = Node::builder("notes", MemoryStore::new())
            .aggregate::<Note>()
            .config(NodeConfig { threads: 0, passivate_after: Duration::from_secs(8), ..NodeConfig::default() })
            .retry(retry)
            .start()
            .await
            .unwrap();
        for _ in 0..101 {
            let failed = node.client().send(write(What::Panic)).await;
            assert!(matches!(failed, Err(SendError::Failed { .. })), "{failed:?}");
        }
        let failed = "command failed after its last attempt; the caller receives the error";
        assert_eq!((lines.count("delivery failed"), lines.count(failed)), (100, 100));
        assert_eq!((node.metrics().failed, node.metrics().retries, node.metrics().panics), (101, 101, 202));
        // The sweep after the end of the interval reports the lines that were left out, once.
        tokio::time::sleep(Duration::from_secs(30)).await;
        let left_out = ["delivery of a command failed: 102", "command failed after its last attempt: 1"];
        assert_eq!(left_out.map(|line| lines.count(line)), [1, 1], "{:?}", lines.0.lock().unwrap().last());
        assert!(node.client().send(write(What::Panic)).await.is_err());
        assert_eq!((lines.count("delivery failed"), lines.count(failed)), (102, 101), "a new interval");
    };
    tokio::task::LocalSet::new().run_until(test).await;
}
