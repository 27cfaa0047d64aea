//! Delayed messages: what clients, aggregates and sagas send later is sent once, when it is due, unless it is cancelled or
//! moved. Several timers of one type. The clock is paused.
#![cfg(feature = "testing")]

mod raw_peer;

use std::time::Duration;

use raw_peer::{connect_raw_peer, name};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::bridge::{Bridge, Request, Response};
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::{Codec, Coded, Envelope, Kind, Message, MessageId, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::testing::Scenario;
use whizbang::{Rejection, SendError};

#[derive(Domain)]
#[domain(name = "notes", shards = 4)]
struct Notes;

/// Adds a number to a note.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Notes)]
struct Write {
    #[key]
    note: String,
    number: u64,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Notes, reply = Vec<u64>)]
struct Read {
    #[key]
    note: String,
}

/// Makes the note write to others, by `how`.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Notes)]
struct Copy {
    #[key]
    note: String,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    /// Numbers 1 to 3, ten seconds after each other.
    Later,
    /// The same, and cancels number 2.
    Cancel,
    /// The time at which the test begins, which has passed.
    Past,
    /// Sets a timer for each of three names, and clears the second.
    Timers,
    /// Sets a timer without a name of its own and with an empty name.
    EmptyName,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Notes)]
struct Remind {}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Notes)]
struct Written {
    number: u64,
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Notes, handles(Write, Copy), applies(Written), answers(Read), timers(Remind))]
struct Note {
    numbers: Vec<u64>,
}

impl Handle<Write> for Note {
    fn handle(&self, write: Write, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Written { number: write.number });
        Ok(())
    }
}

impl Handle<Copy> for Note {
    fn handle(&self, copy: Copy, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        match copy.how {
            How::Later | How::Cancel => {
                let send = |effects: &mut Effects<Self>, number| {
                    let after = Duration::from_secs(10 * number);
                    effects.send(write("copies", number)).header("number", &number.to_string()).after(after).id()
                };
                let sent = [1, 2, 3].map(|number| send(effects, number));
                if copy.how == How::Cancel {
                    effects.cancel(sent[1]);
                }
            }
            How::Past => drop(effects.send(write("copies", 1)).at(BEGIN).id()),
            How::Timers => {
                for (name, after) in [("b", 20), ("a", 10), ("c", 30)] {
                    effects.set_named_timer(name, &Remind {}, Duration::from_secs(after));
                }
                effects.set_timer(&Remind {}, Duration::from_secs(5));
                effects.set_named_timer_at("at", &Remind {}, effects.now().after(Duration::from_secs(40)));
                effects.clear_named_timer::<Remind>("b");
            }
            How::EmptyName => effects.set_named_timer("", &Remind {}, Duration::from_secs(1)),
        }
        Ok(())
    }
}

impl OnTimer<Remind> for Note {
    fn on_timer(&self, _remind: Remind, effects: &mut Effects<Self>) {
        let number = match effects.timer_name() {
            None => 0,
            Some("a") => 1,
            Some("c") => 3,
            Some("at") => 4,
            Some(other) => panic!("a timer `{other}` fired"),
        };
        assert_eq!(effects.headers(), []);
        effects.record(Written { number });
    }
}

impl Apply<Written> for Note {
    fn apply(&mut self, written: &Written) {
        self.numbers.push(written.number);
    }
}

impl Answer<Read> for Note {
    fn answer(&self, _read: Read) -> Vec<u64> {
        self.numbers.clone()
    }
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Notes)]
struct Heard {
    number: u64,
}

/// Writes what is heard after a minute; a command that can be undone is refused.
#[derive(Saga, Debug, Default)]
#[saga(domain = Notes, reacts(Heard))]
struct Listener {}

impl React<Heard> for Listener {
    fn react(&self, heard: Heard, effects: &mut Effects<Self>) {
        let sent = effects.send(write("heard", heard.number)).after(Duration::from_secs(60));
        if heard.number == 13 {
            sent.compensate_with(write("heard", 0));
        }
    }
}

/// A domain for services in other languages.
#[derive(Domain)]
#[domain(name = "memos", shards = 2, codec = json)]
struct Memos;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Memos, reply = u64)]
struct Keep {
    #[key]
    memo: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Memos)]
struct Kept {}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Memos, handles(Keep), applies(Kept))]
struct Memo {
    count: u64,
}

impl Handle<Keep> for Memo {
    fn handle(&self, _keep: Keep, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Kept {});
        Ok(self.count)
    }
}

impl Apply<Kept> for Memo {
    fn apply(&mut self, _kept: &Kept) {
        self.count += 1;
    }
}

const BEGIN: Timestamp = Timestamp::from_millis(10_000_000);

fn write(note: &str, number: u64) -> Write {
    Write { note: note.to_owned(), number }
}

fn builder(store: &MemoryStore) -> whizbang::NodeBuilder {
    let (clock, _) = Clock::ticking(BEGIN);
    let node = Node::builder("notes", store.clone()).threads(0).aggregate::<Note>().saga::<Listener>();
    node.publishes::<Heard>().clock(clock)
}

async fn start(store: &MemoryStore) -> Node {
    builder(store).start().await.unwrap()
}

async fn read(node: &Node, note: &str) -> Vec<u64> {
    node.client().query(Read { note: note.to_owned() }).await.unwrap()
}

/// Advances virtual time and runs everything that is due in it.
async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn run(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn message_of_a_client_is_sent_once_when_it_is_due() {
    run(async {
        let store = MemoryStore::new();
        let node = start(&store).await;
        let client = node.client();
        client.post(write("a", 1)).after(seconds(60)).await.unwrap();
        client.post(write("a", 2)).at(BEGIN.after(seconds(120))).await.unwrap();
        client.post(write("a", 3)).at(BEGIN).await.unwrap();
        client.publish("b", Heard { number: 4 }).after(seconds(60)).await.unwrap();
        pass(1).await;
        assert_eq!(read(&node, "a").await, [3], "a time that has passed is now");
        pass(58).await;
        assert_eq!(read(&node, "a").await, [3]);
        pass(2).await;
        assert_eq!(read(&node, "a").await, [3, 1], "less than a second late");
        pass(600).await;
        assert_eq!(read(&node, "a").await, [3, 1, 2]);
        assert_eq!(read(&node, "heard").await, [4], "the event was published later, and the saga wrote later still");
        assert_eq!(node.dead_letters().await.unwrap(), []);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn message_that_was_due_while_the_node_was_down_is_sent() {
    run(async {
        let store = MemoryStore::new();
        let node = start(&store).await;
        let client = node.client();
        for number in 1..=3 {
            client.post(write("a", number)).after(seconds(10 * number)).await.unwrap();
        }
        client.send(Copy { note: "c".to_owned(), how: How::Later }).await.unwrap();
        pass(11).await;
        drop(node);
        pass(15).await;
        // The clock of the next start begins 26 s later.
        let (clock, _) = Clock::ticking(BEGIN.after(seconds(26)));
        let node = builder(&store).clock(clock).start().await.unwrap();
        pass(1).await;
        assert_eq!((read(&node, "a").await, read(&node, "copies").await), (vec![1, 2], vec![1, 2]));
        pass(60).await;
        assert_eq!((read(&node, "a").await, read(&node, "copies").await), (vec![1, 2, 3], vec![1, 2, 3]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn waiting_message_is_moved_and_cancelled_by_its_id() {
    run(async {
        let store = MemoryStore::new();
        let node = start(&store).await;
        let client = node.client();
        let (moved, cancelled, sent) = (client.new_id(), client.new_id(), client.new_id());
        client.post(write("a", 1)).id(moved).after(seconds(10)).await.unwrap();
        client.post(write("a", 2)).id(moved).after(seconds(100)).await.unwrap();
        client.post(write("b", 1)).id(cancelled).after(seconds(10)).await.unwrap();
        assert!(client.cancel::<Notes>(cancelled).await.unwrap());
        assert!(client.cancel::<Notes>(cancelled).await.unwrap(), "a repeated cancellation has the first reply");
        let at = BEGIN.after(seconds(10));
        client.post(write("c", 1)).id(sent).at(at).await.unwrap();
        let early = client.new_id();
        assert!(client.cancel::<Notes>(early).await.unwrap());
        let late = client.post(write("d", 1)).id(early).after(seconds(1)).await.unwrap_err();
        assert_eq!(late.rejection().map(Rejection::code), Some(Rejection::SAGA_ENDED));
        pass(50).await;
        assert_eq!((read(&node, "a").await, read(&node, "b").await), (vec![], vec![]));
        assert!(!client.cancel::<Notes>(sent).await.unwrap(), "it was sent already");
        client.post(write("c", 1)).id(sent).at(at).await.unwrap();
        let late = client.post(write("c", 1)).id(sent).after(seconds(1)).await.unwrap_err();
        assert_eq!(late.rejection().map(Rejection::code), Some(Rejection::SAGA_ENDED));
        pass(100).await;
        let all = (read(&node, "a").await, read(&node, "b").await, read(&node, "c").await, read(&node, "d").await);
        assert_eq!(all, (vec![2], vec![], vec![1], vec![]));
        let other = client.post(write("c", 2)).id(sent).at(at).await.unwrap_err();
        assert!(matches!(other, SendError::Conflict), "{other}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn message_to_a_domain_in_json_waits_as_well() {
    run(async {
        let hub = LoopbackHub::new();
        let (clock, _) = Clock::ticking(BEGIN);
        let memos = Node::builder("memos", MemoryStore::new()).threads(0).aggregate::<Memo>().clock(clock);
        let memos = memos.bridge(hub.bridge()).start().await.unwrap();
        let other = builder(&MemoryStore::new()).bridge(hub.bridge()).start().await.unwrap();
        let keep = || Keep { memo: "a".to_owned() };
        for client in [memos.client(), other.client()] {
            let id = client.new_id();
            client.post(keep()).after(seconds(10)).await.unwrap();
            client.post(keep()).id(id).after(seconds(10)).await.unwrap();
            assert!(client.cancel::<Memos>(id).await.unwrap());
        }
        pass(60).await;
        assert_eq!(memos.client().send(keep()).await.unwrap(), 2);
        drop(other);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn aggregates_send_later_and_cancel() {
    run(async {
        for (how, expected) in [(How::Later, vec![1, 2, 3]), (How::Cancel, vec![1, 3]), (How::Past, vec![1])] {
            let store = MemoryStore::new();
            let node = start(&store).await;
            node.client().send(Copy { note: "a".to_owned(), how }).await.unwrap();
            pass(9).await;
            assert_eq!(read(&node, "copies").await, if how == How::Past { vec![1] } else { vec![] }, "{how:?}");
            pass(2).await;
            assert_eq!(read(&node, "copies").await, [1], "{how:?}");
            pass(60).await;
            assert_eq!(read(&node, "copies").await, expected, "{how:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn delayed_step_that_can_be_undone_is_refused() {
    run(async {
        let node = start(&MemoryStore::new()).await;
        node.client().publish("l", Heard { number: 13 }).await.unwrap();
        pass(600).await;
        let letters = node.dead_letters().await.unwrap();
        assert_eq!(letters.len(), 1);
        assert!(letters[0].error.contains("is sent later and cannot be compensated"), "{}", letters[0].error);
        assert!(read(&node, "heard").await.is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn timers_of_one_type_fire_by_name() {
    run(async {
        let store = MemoryStore::new();
        let node = start(&store).await;
        node.client().send(Copy { note: "a".to_owned(), how: How::Timers }).await.unwrap();
        pass(11).await;
        assert_eq!(read(&node, "a").await, [0, 1]);
        drop(node);
        let (clock, _) = Clock::ticking(BEGIN.after(seconds(11)));
        let node = builder(&store).clock(clock).start().await.unwrap();
        pass(60).await;
        assert_eq!(read(&node, "a").await, [0, 1, 3, 4]);
        let error = node.client().send(Copy { note: "a".to_owned(), how: How::EmptyName }).await.unwrap_err();
        assert!(error.to_string().contains("invalid name of a timer"), "{error}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn foreign_sender_schedules_only_messages_to_the_domain() {
    run(async {
        let hub = LoopbackHub::new();
        let node = builder(&MemoryStore::new()).bridge(hub.bridge()).start().await.unwrap();
        let peer = connect_raw_peer(&hub).await;
        let mut answers = Vec::new();
        for (id, domain, header) in [(1, "notes", "tenant"), (2, "bank", "tenant"), (3, "notes", "bad name")] {
            let request = Request::Command(schedule(id, domain, header));
            answers.push(match peer.request(request, seconds(1)).await.unwrap() {
                Response::Reply(reply) => <() as Coded>::read_reply(Codec::Bincode, &reply).unwrap(),
                other => panic!("no reply: {other:?}"),
            });
        }
        let codes: Vec<_> = answers.iter().map(|answer| answer.as_ref().err().map(Rejection::code)).collect();
        assert_eq!(codes, [None, Some("whizbang.delayed-message"), Some("whizbang.delayed-message")]);
        pass(600).await;
        assert_eq!((read(&node, "a").await, node.dead_letters().await.unwrap()), (vec![1], vec![]));
    })
    .await;
}

/// Returns the command of a client that schedules a message to a note. Its bytes are frozen: they are stored.
fn schedule(id: u128, domain: &str, header: &str) -> Envelope {
    let (id, mut payload) = (MessageId::from_u128(id), Vec::new());
    let mut command = Vec::new();
    write("a", 1).encode(Codec::Bincode, &mut command).unwrap();
    // A shard that does not exist: the owner computes it.
    let message = (domain, 99_u16, "a", "Write", 1_u32, Codec::Bincode.id(), command);
    let headers = vec![(header.to_owned(), "acme".to_owned())];
    Codec::Bincode.encode(&(BEGIN.as_millis(), message, None::<String>, headers), &mut payload).unwrap();
    let key = id.to_string();
    Envelope {
        to: Some(ShardId::new(name("notes"), shard_of(&key, 4))),
        key,
        payload: payload.into(),
        ..Envelope::new(id.derive("schedule", 0), Kind::Command, name("notes"), name("whizbang-schedule"), BEGIN)
    }
}

#[test]
fn scenario_sees_delayed_commands_and_named_timers() {
    let copy = |how| Copy { note: "a".to_owned(), how };
    Scenario::<Note>::new()
        .when(copy(How::Later))
        .sends_after(seconds(10), write("copies", 1))
        .sends_after(seconds(20), write("copies", 2))
        .sends_after(seconds(30), write("copies", 3))
        .when(copy(How::Timers))
        .sets_named_timer::<Remind>("a", seconds(10))
        .sets_timer::<Remind>(seconds(5))
        .clears_named_timer::<Remind>("b")
        .fire_named_timer::<Remind>("a")
        .records(Written { number: 1 })
        .fire_timer::<Remind>()
        .records(Written { number: 0 });
}
