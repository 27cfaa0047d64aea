//! Services made of actors: event-sourced aggregates and sagas that lose nothing, wired over NATS.
//!
//! The rooms, in the order of a command's way.

// Nothing that comes in from outside may bring a node down, so nothing here panics; clippy.toml lets tests do it.
#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::print_stdout,
    clippy::print_stderr
)]

pub mod clock;
pub mod message;

pub mod actor;
pub mod aggregate;
pub mod saga;
pub mod store;

pub mod bridge;

pub mod projection;
pub mod worker;

pub use actor::{About, Effects};
pub use aggregate::{Aggregate, Apply, Handle, OnReply, React};
pub use message::{Command, Document, Domain, Event, Message, Query, Rejection};
pub use projection::{Answer, Project, Projection};
pub use saga::{Saga, Wake};
pub use worker::{Job, On, Perform, WorkError, Worker};

/// What the derives' output names. Not for people; it may change at any time.
#[doc(hidden)]
pub mod derive {
    pub use crate::actor::{Plan, Role, Stateful};
    pub use crate::aggregate::Applies;
    pub use crate::message::{Codec, CodecError, Key, Kind, Name};
    pub use crate::projection::ProjectionPlan;
    pub use crate::worker::WorkerPlan;
}
