//! The cases, each a guarantee of every store.
//!
//! Each is a public function, so that an author of a store can run one alone. The first paragraph of its documentation is the
//! guarantee; the second says what would go wrong in a node without it. [`store_suite!`](crate::store_suite) creates a test
//! for each.

mod catalog;
mod commits;
mod dead_letters;
mod identity;
mod ids;
pub mod leases;
mod outbox;
mod owners;
mod reading;
mod timers;
mod turns;
mod views;
mod watermarks;

pub use catalog::*;
pub use commits::*;
pub use dead_letters::*;
pub use identity::{changed_identity_is_not_replaced, starts_at_the_same_time_are_all_recorded};
pub use ids::*;
pub use outbox::*;
pub use owners::*;
pub use reading::*;
pub use timers::*;
pub use turns::*;
pub use views::*;
pub use watermarks::*;
