//! Callers from outside: each sends its commands one after the other, again with the same id until it is told what became of it.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tokio::sync::Notify;
use whizbang::message::{Coded, MessageId};
use whizbang::prelude::*;
use whizbang::{Command, SendError};
use whizbang_tests::checker::{Ledger, reply_bytes};

/// How long a caller waits for a reply before it asks again.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);

/// What all callers of a test know.
#[derive(Default)]
pub(crate) struct Callers {
    pub(crate) ledger: RefCell<Ledger>,
    /// The transfers that have begun.
    pub(crate) begun: RefCell<Vec<String>>,
    /// How many commands were told of.
    pub(crate) told: Cell<usize>,
    /// How often a command had to be sent again.
    pub(crate) again: Cell<usize>,
    news: Notify,
}

impl Callers {
    /// Sends a command until it is answered.
    pub(crate) async fn insist<C: Command + Clone>(&self, client: &Client, command: C) -> Option<C::Reply>
    where
        C::Reply: Clone + Coded,
    {
        let id = client.new_id();
        loop {
            self.ledger.borrow_mut().sends(id);
            let told = client.send(command.clone()).id(id).deadline(DEADLINE).await;
            match told {
                Ok(reply) => {
                    self.heard(|ledger| ledger.replied(id, reply_bytes::<C>(&Ok(reply.clone()))));
                    return Some(reply);
                }
                Err(SendError::Rejected(no)) => {
                    self.heard(|ledger| ledger.replied(id, reply_bytes::<C>(&Err(no))));
                    return None;
                }
                Err(error) => self.failed(id, &error),
            }
            self.wait().await;
        }
    }

    /// Hands a command over until it is accepted.
    pub(crate) async fn post<C: Command + Clone>(&self, client: &Client, command: C) {
        let id: MessageId = client.new_id();
        loop {
            self.ledger.borrow_mut().sends(id);
            match client.post(command.clone()).id(id).await {
                Ok(()) => return self.heard(|ledger| ledger.accepted(id)),
                Err(error) => self.failed(id, &error),
            }
            self.wait().await;
        }
    }

    fn heard(&self, note: impl FnOnce(&mut Ledger)) {
        note(&mut self.ledger.borrow_mut());
        self.told.set(self.told.get() + 1);
        self.news.notify_waiters();
    }

    fn failed(&self, id: MessageId, error: &SendError) {
        assert!(error.is_transient(), "{error}");
        if !error.may_have_happened() {
            self.ledger.borrow_mut().refused(id);
        }
    }

    /// The time until a command is sent again: until another was answered, a little while at most.
    async fn wait(&self) {
        self.again.set(self.again.get() + 1);
        self.news.notify_waiters();
        #[expect(
            clippy::disallowed_methods,
            reason = "the back-off of a caller that sends again; no result depends on it"
        )]
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    /// Waits until `holds`.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !holds(self) {
                self.news.notified().await;
            }
        };
        let limit = Duration::from_secs(60);
        let so_far = || (self.told.get(), self.again.get());
        assert!(tokio::time::timeout(limit, waiting).await.is_ok(), "{what}: not within {limit:?}; {:?}", so_far());
    }
}
