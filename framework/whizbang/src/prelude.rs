//! The imports of a file that declares messages and actors: `use whizbang::prelude::*;`.
//!
//! Contains the traits that users implement, their derives, and serde's `Serialize` and `Deserialize` with derives that
//! work without serde in the program's Cargo.toml. An explicit `use serde::{Deserialize, Serialize};` takes precedence.
//! It has no name in common with actix's prelude.

pub use crate::derive::serde::de::Deserialize;
pub use crate::derive::serde::ser::Serialize;

#[cfg(feature = "embedded")]
pub use crate::EmbeddedStore;
#[cfg(feature = "nats")]
pub use crate::NatsBridge;
pub use crate::derive::derives::{Deserialize, Serialize};
pub use crate::{
    Aggregate, Answer, Apply, Client, Command, Document, Domain, Effects, Event, EventContext, Handle, Job,
    MemoryStore, Node, OnEvent, OnEventBatch, OnJobReply, OnReply, OnTimer, Perform, PerformBatch, Project, Projection,
    Query, QueryContext, React, Rejection, Saga, WorkError, Worker,
};
