//! The dependencies of a projection on its thread.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use crate::inbox::{HealthIssues, Subscription};
use crate::router::PeerShapes;
use whizbang_core::message::{IdSource, Name, ShardId};
use whizbang_core::retry::Retry;
use whizbang_core::store::Store;
use whizbang_core::user_code::UserCode;

/// Size in bytes above which a view is encoded and decoded on a separate thread. Smaller ones take less than a
/// millisecond.
pub(super) const LARGE_VIEW: usize = 256 * 1024;

/// Dependencies of a projection.
pub(crate) struct ViewContext {
    pub(crate) name: Name,
    pub(crate) store: Arc<dyn Store>,
    /// A subscription for each source shard, for this projection alone: a slow or rebuilding projection delays no
    /// other.
    pub(crate) subscriptions: BTreeMap<ShardId, Rc<Subscription>>,
    pub(crate) retry: Retry,
    pub(crate) ids: IdSource,
    pub(crate) code: Arc<UserCode>,
    pub(crate) issues: Arc<HealthIssues>,
    /// Known shapes of other services.
    pub(crate) shapes: Arc<PeerShapes>,
    /// Large views may be encoded on threads of their own; false in a simulation, which has one thread.
    pub(crate) has_threads: bool,
    /// Most queries that may wait for an answer.
    pub(crate) queries: usize,
    /// Several nodes share the store: one of them saves the view, as [`ViewEndpoint::set_saver`] says.
    pub(crate) is_shared: bool,
}

impl ViewContext {
    /// Runs user code for a view of this size, on a separate thread if it is large.
    pub(super) async fn run_user_code<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if bytes <= LARGE_VIEW || !self.has_threads {
            return Some(work());
        }
        whizbang_core::spawn::run_on_new_thread("whizbang-view", work).await
    }
}
