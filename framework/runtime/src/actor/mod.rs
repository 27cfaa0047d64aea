//! The life of a keyed actor: activation, turns, effects, commits, retries, passivation.
//!
//! Called by the router through its endpoints; calls the [store](whizbang_core::store). At most one actor per key is live, and
//! it runs one turn at a time. A reply never leaves before its turn is committed. A panic in user code fails one turn
//! and nothing else.

mod actor_type;
mod answers;
mod back_off;
mod backlog;
mod command_dispatcher;
mod commits;
mod compensation;
mod dead_letters;
mod dispatcher;
mod effects;
mod endpoint;
mod event_context;
mod expiry;
#[cfg(feature = "testing")]
mod failpoints;
mod failure_log;
mod handler_table;
mod identity;
mod inline;
mod instance;
mod layered;
mod live_actor;
mod loading;
mod mailbox;
mod owned_shard;
mod parked;
mod pending_commits;
mod plan;
mod planned_command;
mod query_context;
mod registry;
#[cfg(feature = "testing")]
mod replay_checker;
mod requested;
mod retry;
mod routing;
mod sends;
mod snapshot_policy;
mod snapshots;
mod state;
#[cfg(feature = "testing")]
mod stored;
mod stuck_key;
mod thread;
mod timer_name;
mod timer_requests;
mod turn;
mod turn_error;
mod typed_command;
mod unanswered;
mod user_state;

pub use actor_type::{ActorType, typed, typed_state};
pub use answers::Answer;
pub(crate) use answers::answer_with;
pub use backlog::{DEFERRED, MIN_WAIT};
pub(crate) use command_dispatcher::{CommandCall, CommandDispatcher};
pub(crate) use commits::CommitFailure;
#[cfg(feature = "testing")]
pub use compensation::CompensationChange;
#[cfg(feature = "schedules")]
pub(crate) use effects::record_own;
pub use effects::{CompensationScope, Effects, Sent};
pub use event_context::EventContext;
#[cfg(feature = "testing")]
pub use failpoints::{Count, Failpoint, Failpoints};
pub use failure_log::FailureLog;
pub use handler_table::HandlerTable;
pub use identity::Role;
pub(crate) use instance::duplicate_outcome;
pub(crate) use layered::PUBLISHER;
pub use live_actor::Dispatcher;
pub(crate) use mailbox::LocalMessage;
pub use owned_shard::OwnedShard;
pub use pending_commits::CommitNotifier;
pub(crate) use plan::names;
pub use plan::{Plan, Stateful, timer_name};
pub use query_context::QueryContext;
#[cfg(feature = "testing")]
pub use replay_checker::ReplayChecker;
#[cfg(feature = "schedules")]
pub(crate) use requested::RequestedEffects;
pub(crate) use requested::{AnyEffects, Outgoing, TimerSlot, propagate};
pub use snapshot_policy::Snapshots;
#[cfg(feature = "testing")]
pub use stored::{begins_compensation, compensation_change, finishes_compensation, restarts, user_state};
pub(crate) use stuck_key::StuckKey;
pub use thread::{InFlightGuard, ThreadContext, ThreadSettings};
pub use timer_name::stored as stored_timer;
pub use timer_name::{TIMER_NAME, named as named_timer, own_name as own_timer_name, parts as timer_parts};
pub(crate) use unanswered::Unanswered;

#[cfg(test)]
mod tests;
