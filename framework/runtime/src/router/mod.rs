//! Router: finds the endpoint of a message, and defines the outcomes that its sender gets.
//!
//! Called by the client, the inbox and the relay; calls the endpoints that actors install. The endpoints are fixed when
//! the node starts, so routing takes no lock. Only the [open shards](OpenShards) change.

mod delayed;
mod delivery;
mod endpoint;
mod error;
mod local;
mod log_page;
mod manifest;
mod open_shards;
mod planned_command;
mod remote;
mod shapes;

pub use delayed::DelayedMessage;
pub(crate) use delayed::{CANCEL, SCHEDULE, SCHEDULER, SCHEDULES, cancellation};
pub use delivery::{Action, Completion, DedupKey, Delivery, Outcome, SequenceTracker};
pub use endpoint::{
    ActorEndpoint, CommandEndpoint, CommandFailure, CommandMeta, ReturnedCommand, SentReply, Submission, TypedReply,
};
pub use error::SendError;
pub use local::{LocalRoutes, NodeId};
pub use log_page::{LogPage, ReadError};
#[cfg(feature = "testing")]
pub use manifest::PayloadTexts;
pub use manifest::{ActorCard, DomainCard, Manifest, MessageCard, Shapes, StateCard};
pub use open_shards::OpenShards;
#[cfg(not(feature = "testing"))]
pub(crate) use planned_command::PlannedCommand;
#[cfg(feature = "testing")]
pub use planned_command::PlannedCommand;
pub(crate) use remote::Unconnected;
pub use remote::{Remote, RoutedJob};
pub(crate) use shapes::{Judgment, PeerShapes, attach_shapes, is_from_actor};
