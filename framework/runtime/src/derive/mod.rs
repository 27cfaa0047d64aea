//! The items to which derived code refers. Not a public API; it may change at any time.
//!
//! Called by the code that the derives generate in users' programs. Calls the traits of [message](whizbang_core::message),
//! [actor](crate::actor), [projection](crate::projection) and [worker](crate::worker). It contains no logic: it checks
//! the listed types, so that a mistake is one error at the listed type.

mod check;
mod coding;
pub mod derives;
mod described;
mod maybe_coded;
mod older;
mod run;
pub mod serial;

pub use check::{
    Downcast, KeyField, Split, Upcast, answering, answers, answers_for_key, applies, command, document, event, handles,
    listed_once, not_in_bincode, not_in_json, on, on_batch, performs, performs_batch, projects, query, reacts, records,
    replied, replies, timers,
};
pub use coding::{Coding, coding, never_coded, state_coding};
pub use described::{Described, DescribedByDebug, NotDescribed};
pub use maybe_coded::{CodedState, MaybeCoded, UncodedState};
pub use older::{Downcasting, Splitting, Upcasting, downcast, split, upcast};
pub use run::block_on;
/// serde, for programs that do not list it themselves.
pub use serde;
/// Items of the standard library, which a program may not call `std`.
pub use std::string::{String, ToString};
pub use std::sync::Arc;
pub use std::vec::Vec;

pub use crate::actor::{Plan, Role, Snapshots, Stateful};
pub use crate::aggregate::{Aggregate, Applies, Apply};
pub use crate::projection::{Projection, ProjectionPlan};
pub use crate::saga::Saga;
pub use crate::worker::{WorkError, Worker, WorkerPlan};
pub use whizbang_core::message::{
    Codec, CodecError, Coded, Command, Document, Domain, Event, FieldCoding, Key, Kind, Message, Name, Of, Query,
    ReceivedFields, Rejection, RejectionFields, Shape, StateCoding, Trust, TypedRejection, reason_in,
};

/// Returns the error for a message with a version that this program does not know.
pub fn unknown_version<M: Message>(found: u32) -> CodecError {
    CodecError::Version { name: M::NAME, found, known: M::VERSION }
}
