//! External callers: each sends its commands one after the other and retries with the same id until the result is known.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use tokio::sync::Notify;
use whizbang::message::{Coded, MessageId};
use whizbang::prelude::*;
use whizbang::{Command, SendError};
use whizbang_tests::checker::{Ledger, reply_bytes};

/// The time that a caller waits for a reply before it retries.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);

/// The knowledge of all callers of a test.
#[derive(Default)]
pub(crate) struct Callers {
    pub(crate) ledger: RefCell<Ledger>,
    /// The transfers that have begun.
    pub(crate) begun: RefCell<Vec<String>>,
    /// The number of commands with a result.
    pub(crate) answered: Cell<usize>,
    /// The number of retries.
    pub(crate) retries: Cell<usize>,
    news: Notify,
}

impl Callers {
    /// Sends a command until there is a reply. The client does not retry by itself, because a test waits for a retry.
    pub(crate) async fn send_until_answered<C: Command + Clone>(&self, client: &Client, command: C) -> Option<C::Reply>
    where
        C::Reply: Clone + Coded,
    {
        let id = client.new_id();
        loop {
            self.ledger.borrow_mut().sends(id);
            let told = client.send(command.clone()).id(id).deadline(DEADLINE).no_retry().await;
            match told {
                Ok(reply) => {
                    self.record(|ledger| ledger.replied(id, reply_bytes::<C>(&Ok(reply.clone()))));
                    return Some(reply);
                }
                Err(SendError::Rejected(no)) => {
                    self.record(|ledger| ledger.replied(id, reply_bytes::<C>(&Err(no))));
                    return None;
                }
                Err(error) => self.failed(id, &error),
            }
            self.wait().await;
        }
    }

    /// Posts a command until it is accepted: every other one by the broker, the others by the commit of the owner.
    pub(crate) async fn post<C: Command + Clone>(&self, client: &Client, command: C) {
        let id: MessageId = client.new_id();
        loop {
            self.ledger.borrow_mut().sends(id);
            let by_broker = self.answered.get().is_multiple_of(2);
            let post = if by_broker { client.post_to_broker(command.clone()) } else { client.post(command.clone()) };
            match post.id(id).deadline(DEADLINE).no_retry().await {
                Ok(()) => return self.record(|ledger| ledger.accepted(id)),
                Err(error) => self.failed(id, &error),
            }
            self.wait().await;
        }
    }

    fn record(&self, note: impl FnOnce(&mut Ledger)) {
        note(&mut self.ledger.borrow_mut());
        self.answered.set(self.answered.get() + 1);
        self.news.notify_waiters();
    }

    fn failed(&self, id: MessageId, error: &SendError) {
        assert!(error.is_transient(), "{error}");
        if !error.may_have_happened() {
            self.ledger.borrow_mut().refused(id);
        }
    }

    /// Waits before a retry: until another command is answered, but not long.
    async fn wait(&self) {
        self.retries.set(self.retries.get() + 1);
        self.news.notify_waiters();
        #[expect(clippy::disallowed_methods, reason = "the backoff of a retry; no result depends on it")]
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
        let so_far = || (self.answered.get(), self.retries.get());
        assert!(tokio::time::timeout(limit, waiting).await.is_ok(), "{what}: not within {limit:?}; {:?}", so_far());
    }
}
