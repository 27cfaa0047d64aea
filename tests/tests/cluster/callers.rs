//! Callers outside the cluster: each sends its commands one after the other until the test ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use tokio::sync::Mutex;
use whizbang::bridge::nats::NatsBridge;
use whizbang::message::Coded;
use whizbang::prelude::*;
use whizbang::{Command, SendError, error_chain};
use whizbang_tests::checker::{Ledger, reply_bytes};

use crate::bank::{deposit, outcome, transfer};

/// The number of callers, each with its own account.
pub(crate) const CALLERS: usize = 24;

/// The first deposit to each account, in cents.
pub(crate) const FIRST: u64 = 100_000;

/// The time limit of a command, retries of the client included: the default of clients.
const DEADLINE: Duration = Duration::from_secs(30);

/// The time limit for the end of all transfers once faults have stopped: several takeovers and the longest backoff of a message.
const LIMIT: Duration = Duration::from_secs(120);

/// The state that all callers share.
pub(crate) struct Callers {
    clients: Vec<Client>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) answered: AtomicUsize,
    /// The errors that callers saw before a reply.
    pub(crate) errors: Mutex<Vec<String>>,
    /// The longest time between a command and its reply.
    pub(crate) longest: Mutex<Duration>,
    pub(crate) stops: AtomicBool,
    begun: Mutex<Vec<String>>,
}

fn account(number: usize) -> String {
    format!("account{number}")
}

impl Callers {
    pub(crate) async fn connect(url: &str) -> Arc<Self> {
        let mut clients = Vec::new();
        for number in 0..4 {
            let bridge = NatsBridge::connect(url).await.expect("connects");
            clients.push(Client::connect(&format!("caller-{number}"), bridge).await.expect("connects"));
        }
        Arc::new(Self {
            clients,
            ledger: Mutex::default(),
            answered: AtomicUsize::new(0),
            errors: Mutex::default(),
            longest: Mutex::default(),
            stops: AtomicBool::new(false),
            begun: Mutex::default(),
        })
    }

    /// Sends a command until there is a reply; the same id each time.
    async fn send<C: Command + Clone>(&self, caller: usize, command: C) -> Option<C::Reply>
    where
        C::Reply: Clone + Coded,
    {
        let client = &self.clients[caller % self.clients.len()];
        let id = client.new_id();
        loop {
            self.ledger.lock().await.sends(id);
            let begun = Instant::now();
            let reply = match client.send(command.clone()).id(id).deadline(DEADLINE).await {
                Ok(reply) => Ok(reply),
                Err(SendError::Rejected(no)) => Err(no),
                Err(error) => {
                    assert!(error.is_transient(), "{error}");
                    let waited = begun.elapsed();
                    self.errors.lock().await.push(format!(
                        "{} after {waited:?}: {}",
                        <C as whizbang::message::Message>::NAME,
                        error_chain(&error)
                    ));
                    if !error.may_have_happened() {
                        self.ledger.lock().await.refused(id);
                    }
                    continue;
                }
            };
            self.ledger.lock().await.replied(id, reply_bytes::<C>(&reply));
            self.answered.fetch_add(1, Ordering::Relaxed);
            let mut longest = self.longest.lock().await;
            *longest = begun.elapsed().max(*longest);
            drop(longest);
            return reply.ok();
        }
    }

    /// Gives every account its first deposit.
    pub(crate) async fn open_accounts(&self) {
        let deposits = (0..CALLERS).map(|number| self.send(number, deposit(&account(number), FIRST)));
        let balances = join_all(deposits).await;
        assert!(balances.iter().all(|balance| *balance == Some(FIRST)), "{balances:?}");
    }

    /// Transfers money in a circle until the callers stop.
    pub(crate) async fn transfer(&self, caller: usize) {
        let mut number = 0;
        while !self.stops.load(Ordering::Relaxed) {
            number += 1;
            let name = format!("transfer{caller}-{number}");
            let to = account((caller + number) % CALLERS);
            if self.send(caller, transfer(&name, &account(caller), &to, 7)).await.is_some() {
                self.begun.lock().await.push(name);
            }
            // A read of the own account: its reply shows the order of turns.
            self.send(caller, deposit(&account(caller), 0)).await;
        }
    }

    /// Waits until every transfer has ended. Returns their number.
    pub(crate) async fn wait_for_ends(&self) -> usize {
        let begun = std::mem::take(&mut *self.begun.lock().await);
        let started = Instant::now();
        let waits = begun.iter().enumerate().map(|(number, name)| self.wait_for_end(number, name, started));
        stream::iter(waits).buffer_unordered(CALLERS).collect::<Vec<_>>().await.len()
    }

    async fn wait_for_end(&self, number: usize, name: &str, started: Instant) {
        while self.send(number, outcome(name)).await.is_none_or(|outcome| outcome == "open") {
            assert!(started.elapsed() < LIMIT, "{name} does not end");
            #[expect(
                clippy::disallowed_methods,
                reason = "another process cannot wake this one; no result depends on it"
            )]
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the sum of all accounts.
    pub(crate) async fn total(&self) -> u64 {
        let reads = (0..CALLERS).map(|number| self.send(number, deposit(&account(number), 0)));
        join_all(reads).await.into_iter().map(|balance| balance.expect("an open account")).sum()
    }

    pub(crate) async fn disconnect(&self) {
        for client in &self.clients {
            client.clone().disconnect().await;
        }
    }
}
