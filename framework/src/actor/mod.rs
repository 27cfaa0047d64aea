//! The life of a keyed actor: activation, turns, effects, speculation, passivation.
//!
//! Called by the router's doors; calls the [store](crate::store). One live actor per key; one turn at a time.
//! A reply never leaves before its turn is committed. A panic in user code fails one turn and nothing else.

mod attempt;
mod backlog;
mod decide;
mod door;
mod effects;
mod host;
mod keyed;
mod keys;
mod letters;
mod mailbox;
#[cfg(feature = "testing")]
mod mirror;
mod parked;
mod plan;
mod requested;
mod snapshots;
mod state;
#[cfg(feature = "testing")]
mod stored;
mod straight;
mod timer_name;
#[cfg(feature = "testing")]
mod trips;
mod turn;
mod typed;
mod undo;
mod wiring;

pub(crate) use backlog::{DEFERRED, MIN_WAIT};
pub(crate) use door::TypeDoor;
pub use effects::{Compensating, Effects, Sent};
pub(crate) use host::{Flight, Host, HostSettings, ShardCell};
pub(crate) use keyed::replied_before;
pub(crate) use mailbox::Here;
#[cfg(feature = "testing")]
pub(crate) use mirror::Mirror;
pub(crate) use plan::names;
pub use plan::{About, Plan, Role, Stateful};
pub(crate) use requested::TimerSlot;
pub use snapshots::Snapshots;
#[cfg(feature = "testing")]
pub(crate) use stored::{begins_undo, finished_undo, restarts, undo_change, user_state};
pub(crate) use timer_name::stored as stored_timer;
pub(crate) use timer_name::{parts as timer_parts, timer_name};
#[cfg(feature = "testing")]
pub(crate) use trips::{Count, Trip, Trips};
pub(crate) use typed::{Asking, TypedDoor};
#[cfg(feature = "testing")]
pub(crate) use undo::{PlannedCommand, UndoChange};
pub(crate) use wiring::{Wiring, typed, typed_state};
