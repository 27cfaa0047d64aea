//! Callers from outside and what they write down.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use whizbang::client::SendCommand;
use whizbang::message::{IdSource, MessageId};
use whizbang::prelude::*;
use whizbang::{Command, SendError};
use whizbang_tests::checker::{Ledger, reply_bytes};

use crate::bank::{deposit, transfer, withdraw};

/// How long a caller waits for a reply, in virtual time.
const DEADLINE: Duration = Duration::from_secs(5);

/// What the callers of a run know.
#[derive(Default)]
pub(crate) struct Callers {
    pub(crate) ledger: RefCell<Ledger>,
    /// The transfers of which one knows that they have begun.
    pub(crate) begun: RefCell<BTreeSet<String>>,
}

/// A command that a caller sends.
#[derive(Clone)]
pub(crate) enum Wish {
    Deposit { account: String, cents: u64 },
    Withdraw { account: String, cents: u64 },
    Transfer { number: String, from: String, to: String, cents: u64 },
}

impl Wish {
    /// Any of them, between a few accounts.
    pub(crate) fn any(number: u64, chance: &IdSource) -> Self {
        let account = || format!("account{}", chance.below(5));
        let cents = chance.below(100);
        match chance.below(10) {
            0..3 => Self::Transfer { number: format!("t{number}"), from: account(), to: account(), cents },
            3..6 => Self::Withdraw { account: account(), cents },
            _ => Self::Deposit { account: account(), cents },
        }
    }
}

impl Callers {
    /// Sends what is wished.
    pub(crate) async fn call(&self, client: &Client, id: MessageId, wish: Wish) {
        match wish {
            Wish::Deposit { account, cents } => drop(self.send(id, client.send(deposit(&account, cents))).await),
            Wish::Withdraw { account, cents } => drop(self.send(id, client.send(withdraw(&account, cents, ""))).await),
            Wish::Transfer { number, from, to, cents } => {
                if self.send(id, client.send(transfer(&number, &from, &to, cents))).await.is_some() {
                    self.begun.borrow_mut().insert(number);
                }
            }
        }
    }

    /// Sends a command and writes down what is told. Gives the reply, if there is one and it is no rejection.
    pub(crate) async fn send<C: Command>(&self, id: MessageId, sending: SendCommand<C>) -> Option<C::Reply>
    where
        C::Reply: Clone,
    {
        self.ledger.borrow_mut().sends(id);
        let told = sending.id(id).deadline(DEADLINE).await;
        let mut ledger = self.ledger.borrow_mut();
        match told {
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
