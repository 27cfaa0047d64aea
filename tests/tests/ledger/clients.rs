//! External callers, which record their commands and replies in the ledger.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use whizbang::client::SendCommand;
use whizbang::message::{IdSource, MessageId};
use whizbang::prelude::*;
use whizbang::{Command, SendError};
use whizbang_tests::checker::{Ledger, reply_bytes};

use crate::bank::{deposit, transfer, withdraw};

/// Time that a caller waits for a reply, in virtual time.
const DEADLINE: Duration = Duration::from_secs(5);

/// The shared knowledge of the callers of a run.
#[derive(Default)]
pub(crate) struct Callers {
    pub(crate) ledger: RefCell<Ledger>,
    /// The transfers that are known to have started.
    pub(crate) started: RefCell<BTreeSet<String>>,
}

/// A command of a caller.
#[derive(Clone)]
pub(crate) enum CallerCommand {
    Deposit { account: String, cents: u64 },
    Withdraw { account: String, cents: u64 },
    Transfer { number: String, from: String, to: String, cents: u64 },
}

impl CallerCommand {
    /// Draws a command between a few accounts.
    pub(crate) fn any(number: u64, rng: &IdSource) -> Self {
        let account = || format!("account{}", rng.below(5));
        let cents = rng.below(100);
        match rng.below(10) {
            0..3 => Self::Transfer { number: format!("t{number}"), from: account(), to: account(), cents },
            3..6 => Self::Withdraw { account: account(), cents },
            _ => Self::Deposit { account: account(), cents },
        }
    }
}

impl Callers {
    /// Sends a command.
    pub(crate) async fn call(&self, client: &Client, id: MessageId, command: CallerCommand) {
        match command {
            CallerCommand::Deposit { account, cents } => {
                self.send(id, client.send(deposit(&account, cents))).await;
            }
            CallerCommand::Withdraw { account, cents } => {
                self.send(id, client.send(withdraw(&account, cents, ""))).await;
            }
            CallerCommand::Transfer { number, from, to, cents } => {
                if self.send(id, client.send(transfer(&number, &from, &to, cents))).await.is_some() {
                    self.started.borrow_mut().insert(number);
                }
            }
        }
    }

    /// Sends a command and records the outcome. Returns the reply, unless it is missing or a rejection.
    pub(crate) async fn send<C: Command>(&self, id: MessageId, request: SendCommand<C>) -> Option<C::Reply>
    where
        C::Reply: Clone,
    {
        self.ledger.borrow_mut().sends(id);
        let result = request.id(id).deadline(DEADLINE).await;
        let mut ledger = self.ledger.borrow_mut();
        match result {
            Ok(reply) => {
                ledger.replied(id, reply_bytes::<C>(&Ok(reply.clone())));
                return Some(reply);
            }
            Err(SendError::Rejected(no)) => ledger.replied(id, reply_bytes::<C>(&Err(no))),
            Err(SendError::DeadLetter { .. }) => ledger.is_dead_letter(id),
            Err(error) if error.may_have_happened() => {}
            Err(_) => ledger.refused(id),
        }
        None
    }
}
