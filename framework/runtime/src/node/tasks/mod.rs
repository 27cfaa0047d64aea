//! Background tasks of each thread: commits, timers, passivation, and the supervisor that restarts them.
//!
//! Started by the [lifecycle](super::lifecycle).

pub(in crate::node) mod background;
pub(in crate::node) mod singletons;
pub(in crate::node) mod supervisor;
pub(in crate::node) mod timers;
