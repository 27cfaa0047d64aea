//! The wait for commits, so that a fast source does not fill the memory of a slow target.

use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use whizbang_core::store::{CommitListener, StoreError, Ticket};

/// The number of bytes that are appended before the copy waits for the commit of the same amount before.
const WINDOW_BYTES: usize = 2 * 1024 * 1024;

/// The commits of the target, and the appends that the copy has not waited for.
#[derive(Debug, Default)]
pub(super) struct Flow {
    commits: Arc<Commits>,
    /// The last append.
    last: Ticket,
    /// The last append of the window before.
    before: Ticket,
    /// The bytes since then.
    bytes: usize,
}

/// Hears what the target commits.
#[derive(Debug, Default)]
struct Commits(Mutex<Heard>);

#[derive(Debug, Default)]
struct Heard {
    through: Ticket,
    error: Option<StoreError>,
    waker: Option<Waker>,
}

impl Flow {
    /// The listener of all shards of the target.
    pub(super) fn listener(&self) -> Arc<dyn CommitListener> {
        Arc::clone(&self.commits) as Arc<dyn CommitListener>
    }

    /// Notes an append. At the end of a window it waits until the window before is committed.
    ///
    /// # Errors
    /// The error that the target has reported.
    pub(super) async fn appended(&mut self, ticket: Ticket, bytes: usize) -> Result<(), StoreError> {
        self.last = ticket;
        self.bytes += bytes;
        if self.bytes < WINDOW_BYTES {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.before, ticket);
        self.bytes = 0;
        self.commits.reach(before).await
    }

    /// Waits until every append is committed.
    ///
    /// # Errors
    /// The error that the target has reported.
    pub(super) async fn finish(&self) -> Result<(), StoreError> {
        self.commits.reach(self.last).await
    }
}

impl Commits {
    async fn reach(&self, ticket: Ticket) -> Result<(), StoreError> {
        std::future::poll_fn(|context| {
            let mut heard = self.0.lock();
            if let Some(error) = &heard.error {
                return Poll::Ready(Err(error.clone()));
            }
            if heard.through >= ticket {
                return Poll::Ready(Ok(()));
            }
            heard.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    fn hear(&self, change: impl FnOnce(&mut Heard)) {
        let mut heard = self.0.lock();
        change(&mut heard);
        let waker = heard.waker.take();
        drop(heard);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl CommitListener for Commits {
    fn committed(&self, through: Ticket) {
        self.hear(|heard| heard.through = heard.through.max(through));
    }

    fn failed(&self, error: StoreError) {
        self.hear(|heard| {
            heard.error.get_or_insert(error);
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn appends_wait_for_the_window_before() {
        let mut flow = Flow::default();
        assert!(flow.appended(1, WINDOW_BYTES).now_or_never().is_some(), "nothing is before the first window");
        assert!(flow.appended(2, WINDOW_BYTES - 1).now_or_never().is_some(), "the window is not full");
        assert!(flow.appended(3, 1).now_or_never().is_none(), "the first window is not committed");
        flow.listener().committed(1);
        assert!(flow.appended(4, WINDOW_BYTES).now_or_never().is_none(), "the second window is not committed");
        flow.listener().committed(3);
        assert!(flow.finish().now_or_never().is_none(), "the last append is not committed");
        flow.listener().committed(4);
        assert!(flow.finish().now_or_never().is_some_and(|finished| finished.is_ok()));
    }

    #[test]
    fn failed_commit_ends_the_copy() {
        let flow = Flow { last: 1, ..Flow::default() };
        flow.listener().failed(StoreError::Closed);
        assert!(matches!(flow.finish().now_or_never(), Some(Err(StoreError::Closed))));
    }
}
