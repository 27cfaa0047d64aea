//! The life of a keyed actor: activation, turns, effects, speculation, passivation.
//!
//! Called by the router's doors; calls the [store](crate::store). One live actor per key; one turn at a time.
//! A reply never leaves before its turn is committed. A panic in user code fails one turn and nothing else.

mod effects;
mod plan;

pub use effects::Effects;
pub use plan::{About, Plan, Role, Stateful};
