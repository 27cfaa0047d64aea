//! A node in its own process that tests kill: a bank, loaded by its own clients.
//!
//! `bank-node PLACE LIFE [NATS]` uses the embedded store in a folder, or PostgreSQL at a URL, and a NATS server if there is an
//! address. It prints the knowledge of its clients,
//! line by line: `sends ID` before a command is sent, `replied ID BYTES` once it is acknowledged, `refused ID` if it was
//! certainly not handled, `begun TRANSFER`; and `ready` once the node works. A line is written at once and completely, so that a
//! reader knows every reply before a kill.

#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use bank::{Account, Transfer, deposit, transfer, withdraw};
use whizbang::bridge::nats::NatsBridge;
use whizbang::client::SendCommand;
use whizbang::message::MessageId;
use whizbang::prelude::*;
use whizbang::store::Store;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::{Command, PostgresStore, SendError};
use whizbang_tests::checker::reply_bytes;

/// The number of clients that wait for replies at the same time.
const CLIENTS: u64 = 48;

const ACCOUNTS: u64 = 9;

fn say(line: &str) {
    // One system call: another process sees the whole line or nothing. It fails if the reader has closed the pipe.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

/// The node has stopped.
struct Stopped;

/// The pause after a refused command: the store is out of reach, and the client has retried until its deadline.
const PAUSE: Duration = Duration::from_millis(20);

/// Sends a command and prints its result. Returns true if the reply is not a rejection.
async fn send<C: Command>(id: MessageId, sending: SendCommand<C>) -> Result<bool, Stopped>
where
    C::Reply: Clone,
{
    say(&format!("sends {id}\n"));
    let reply = match sending.id(id).await {
        Ok(reply) => Ok(reply),
        Err(SendError::Rejected(no)) => Err(no),
        Err(error) if error.may_have_happened() => return Ok(false),
        Err(error) => {
            say(&format!("refused {id}\n"));
            if matches!(error, SendError::Stopped) {
                return Err(Stopped);
            }
            // For a person that reads why a test has failed.
            eprintln!("refused {id}: {}", whizbang::error_chain(&error));
            #[expect(
                clippy::disallowed_methods,
                reason = "a caller pauses after a refusal; no test waits for this time"
            )]
            tokio::time::sleep(PAUSE).await;
            return Ok(false);
        }
    };
    let mut line = format!("replied {id} ");
    for byte in reply_bytes::<C>(&reply) {
        let _ = write!(line, "{byte:02x}");
    }
    line.push('\n');
    say(&line);
    Ok(reply.is_ok())
}

async fn be_a_client(client: Client, life: u64, number: u64) -> Result<(), Stopped> {
    let account = |chance: u64| format!("account{}", chance % ACCOUNTS);
    for turn in 0.. {
        let chance = (life * 7_919 + number * 31 + turn).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
        let (from, to, cents) = (account(chance), account(chance / ACCOUNTS), chance % 100);
        match chance % 10 {
            0..2 => {
                let name = format!("t-{life}-{number}-{turn}");
                if send(client.new_id(), client.send(transfer(&name, &from, &to, cents))).await? {
                    say(&format!("begun {name}\n"));
                }
            }
            2..4 => drop(send(client.new_id(), client.send(withdraw(&from, cents, ""))).await?),
            _ => drop(send(client.new_id(), client.send(deposit(&from, cents))).await?),
        }
    }
    Ok(())
}

#[whizbang::main]
async fn main() -> Result<(), whizbang::Error> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, place, life, servers @ ..] = &arguments[..] else { panic!("bank-node PLACE LIFE [NATS]") };
    let life = life.parse().expect("a number");
    if place.starts_with("postgres://") {
        // Small checkpoints, so that kills hit them. A node that is started again takes over at once.
        let store = PostgresStore::builder(place).checkpoint_turns(50).exclusive().connect().await?;
        return run(store, life, servers.first()).await;
    }
    // Small files and many checkpoints, so that kills hit every operation of the store.
    let config = EmbeddedConfig::default().segment_bytes(256 * 1024).checkpoint_bytes(128 * 1024);
    run(EmbeddedStore::open_with(place, &config)?, life, servers.first()).await
}

/// Runs until the process is terminated.
async fn run(store: impl Store + 'static, life: u64, server: Option<&String>) -> Result<(), whizbang::Error> {
    let mut builder = Node::builder("bank", store).threads(1).aggregate::<Account>().saga::<Transfer>();
    if let Some(server) = server {
        builder = builder.bridge(NatsBridge::connect(server).await?);
    }
    let node = builder.start().await?;
    say("ready\n");
    for number in 0..CLIENTS {
        tokio::task::spawn_local(be_a_client(node.client(), life, number));
    }
    node.run().await?;
    say("stopped\n");
    Ok(())
}
