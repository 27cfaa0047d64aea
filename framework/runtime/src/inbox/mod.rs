//! Inbox: admits each message once and in order, and detects missing messages.
//!
//! Called by the node's threads for messages from the bridge, the relay and logs; calls the endpoints of actors and
//! requests missing messages. Never uses a time window: everything follows from positions and sequences.

mod dedup;
mod divergence;
mod health_issues;
mod idle;
mod queued_bytes;
mod receive_window;
mod recent_ids;
mod reorder_buffer;
mod subscription;
mod watermark;

pub use dedup::{Admission, DedupState, DedupStateOf, SavedDedupState};
pub(crate) use health_issues::HealthIssues;
pub(crate) use idle::IdleNotifier;
pub(crate) use queued_bytes::{MAX_QUEUED_BYTES_PER_KEY, QueuedBytes, QueuedKind, is_within};
pub(crate) use receive_window::{ReceiveWindow, WindowContext};
pub(crate) use recent_ids::RecentIds;
pub(crate) use subscription::{ReadEvents, Subscriber, Subscription};
pub(crate) use watermark::{ActorSubscriber, WatermarkTracker};

/// Callback, called once when a message is settled here.
pub(crate) type Done = Box<dyn FnOnce()>;
