//! A node in its own process that aborts while it handles one message, as a stack overflow or an out-of-memory kill would.
//!
//! `crash-node FOLDER WHERE first|again` sends one bad message and many good ones in its first life, then waits until the node is
//! idle and prints the dead letters, one key per line. WHERE is the place of the abort: `job`, `turn` or `event`.

use std::io::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;
use whizbang::{NodeConfig, Retry, WorkError};

static WHERE: OnceLock<String> = OnceLock::new();

fn abort_at(place: &str, key: &str) {
    if key.starts_with("bad") && WHERE.get().is_some_and(|at| at == place) {
        std::process::abort();
    }
}

#[derive(Domain)]
#[domain(name = "starts")]
struct Starts;

#[derive(Domain)]
#[domain(name = "ends")]
struct Ends;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Starts)]
struct Start {
    #[key]
    key: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Starts)]
struct Started {}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Ends)]
struct Work {
    #[key]
    key: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Ends)]
struct Turn {
    #[key]
    key: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Ends)]
struct Turned {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Starts, handles(Start), records(Started))]
struct Starter;

impl Handle<Start> for Starter {
    fn handle(&self, start: Start, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Started {});
        effects.send(Work { key: start.key.clone() });
        effects.send(Turn { key: start.key });
        Ok(())
    }
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Ends, handles(Turn), reacts(Started), records(Turned))]
struct Turner;

impl Handle<Turn> for Turner {
    fn handle(&self, turn: Turn, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        abort_at("turn", &turn.key);
        effects.record(Turned {});
        Ok(())
    }
}

impl React<Started> for Turner {
    fn react(&self, _started: Started, effects: &mut Effects<Self>) {
        let key = effects.key().to_owned();
        abort_at("event", &key);
        effects.record(Turned {});
    }
}

#[derive(Worker)]
#[worker(domain = Ends, performs(Work))]
struct Doer;

impl Perform<Work> for Doer {
    async fn perform(&self, work: Work, _job: Job) -> Result<(), WorkError> {
        abort_at("job", &work.key);
        Ok(())
    }
}

#[whizbang::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let (folder, place) = (arguments.next().unwrap(), arguments.next().unwrap());
    WHERE.set(place).unwrap();
    let retry = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(2) };
    let config = NodeConfig { threads: 2, retry, ..NodeConfig::default() };
    let builder = Node::builder("crashes", EmbeddedStore::open(folder).unwrap()).config(config);
    let node = builder.aggregate::<Starter>().aggregate::<Turner>().worker(Doer).start().await.unwrap();
    if arguments.next().as_deref() == Some("first") {
        let (client, mut waits) = (node.client(), Vec::new());
        for number in 0..50 {
            let key = if number == 25 { "bad".to_owned() } else { format!("good{number}") };
            waits.push(tokio::task::spawn_local(client.send(Start { key })));
        }
        for wait in waits {
            // The process may end first.
            let _ = wait.await;
        }
    }
    node.wait_idle().await;
    for letter in node.dead_letters().await.unwrap() {
        let line = format!("{} {}\n", letter.key, letter.error);
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
    node.stop().await.unwrap();
}
