//! The connection of one simulated node to the store of its service: it can be cut, and ends with the node.
//!
//! Used by the [store](super::store), its [readers](super::reader) and its [leases](super::sim_leases). Requests and replies wait
//! while their direction is cut, as over TCP; a caller may give up before.

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::LinkDirection;
use whizbang_core::store::{MemberId, Statement, StoreError};

/// The store's reply to a request.
pub(super) type Reply<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The statements of a save.
pub(super) type Statements<'a> = &'a [Statement];

/// One node's connection to the store.
#[derive(Default)]
pub(super) struct StoreHandle {
    /// The state of the connection.
    state: Mutex<ConnectionState>,
    /// Notified when a cut ends, and when the connection ends.
    changed: Notify,
}

/// The cuts of a connection. They are counted, because two faults may cut it at the same time.
#[derive(Default)]
struct ConnectionState {
    /// The node has ended, and the store accepts nothing more from it.
    is_revoked: bool,
    /// The number of faults because of which replies of the store do not arrive.
    inbound_cuts: u32,
    /// The number of faults because of which requests of the node do not arrive.
    outbound_cuts: u32,
    /// The node as a member of its service.
    member: Option<MemberId>,
}

impl StoreHandle {
    /// Revokes the connection: the killed node can no longer open anything.
    pub(super) fn revoke(&self) {
        self.state.lock().is_revoked = true;
        self.changed.notify_waiters();
    }

    /// Checks that the node has not ended.
    ///
    /// # Errors
    /// [`StoreError::Closed`] if it has.
    pub(super) fn check_alive(&self) -> Result<(), StoreError> {
        if self.state.lock().is_revoked { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Cuts one or both directions until the same is [restored](Self::restore).
    pub(super) fn cut(&self, direction: LinkDirection) {
        let mut state = self.state.lock();
        state.inbound_cuts += u32::from(direction != LinkDirection::Outbound);
        state.outbound_cuts += u32::from(direction != LinkDirection::Inbound);
    }

    /// Ends one cut of a direction.
    pub(super) fn restore(&self, direction: LinkDirection) {
        let mut state = self.state.lock();
        state.inbound_cuts -= u32::from(direction != LinkDirection::Outbound);
        state.outbound_cuts -= u32::from(direction != LinkDirection::Inbound);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Returns true if nothing of the store reaches the node.
    pub(super) fn is_inbound_cut(&self) -> bool {
        self.state.lock().inbound_cuts > 0
    }

    /// Returns true if nothing of the node reaches the store.
    pub(super) fn is_outbound_cut(&self) -> bool {
        self.state.lock().outbound_cuts > 0
    }

    /// Returns true if a direction is cut.
    pub(super) fn is_cut(&self) -> bool {
        self.is_inbound_cut() || self.is_outbound_cut()
    }

    /// Waits until a request reaches the store.
    pub(super) async fn request(&self) -> Result<(), StoreError> {
        self.wait(Self::is_outbound_cut).await
    }

    /// Waits until a reply reaches the node.
    pub(super) async fn reply(&self) -> Result<(), StoreError> {
        self.wait(Self::is_inbound_cut).await
    }

    /// Waits until requests and replies arrive.
    pub(super) async fn round_trip(&self) {
        // A killed node reads nothing any longer; an error would not be seen.
        drop(self.wait(Self::is_cut).await);
    }

    /// Waits while a cut lasts.
    ///
    /// # Errors
    /// [`StoreError::Closed`] if the node ends before.
    async fn wait(&self, is_cut: impl Fn(&Self) -> bool) -> Result<(), StoreError> {
        loop {
            // Registers before the check, so that a change in between is not missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            self.check_alive()?;
            if !is_cut(self) {
                return Ok(());
            }
            changed.await;
        }
    }

    /// Sets the member as which the node has renewed a lease.
    pub(super) fn set_member(&self, member: MemberId) {
        self.state.lock().member = Some(member);
    }

    /// Returns that member. `None` before the first renewal.
    pub(super) fn member(&self) -> Option<MemberId> {
        self.state.lock().member
    }
}
