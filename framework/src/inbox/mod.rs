//! Admits each message once, in order, and notices what is missing.
//!
//! Called by the bridge's door and by actors; calls the doors of actors, and asks for what is missing.
//! Nothing here has a time window: everything follows from positions and sequences.

mod dedup;
mod doubt;
mod health_issues;
mod idle;
mod receive_window;
mod recent_ids;
mod reorder_buffer;
mod subscription;
mod watermark;

pub use dedup::{Admission, DedupState, DedupStateOf, SavedDedupState};
pub(crate) use health_issues::HealthIssues;
pub(crate) use idle::IdleNotifier;
pub(crate) use receive_window::ReceiveWindow;
pub(crate) use recent_ids::RecentIds;
pub(crate) use subscription::{Pages, Subscriber, Subscription};
pub(crate) use watermark::{ActorSubscriber, WatermarkTracker};

/// Called once when a message needs no more looking after.
pub(crate) type Done = Box<dyn FnOnce()>;
