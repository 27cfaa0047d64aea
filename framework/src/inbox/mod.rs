//! Admits each message once, in order, and notices what is missing.
//!
//! Called by the bridge's door and by actors; calls the doors of actors, and asks for what is missing.
//! Nothing here has a time window: everything follows from positions and sequences.

mod doubt;
mod feed;
mod gate;
mod held;
mod quiet;
mod seen;
mod standing;
mod track;
mod trail;

pub(crate) use feed::{Feed, Pages, Taker};
pub(crate) use gate::Gate;
pub(crate) use quiet::Quiet;
pub use seen::{Admission, SavedSeen, Seen, SeenOf};
pub(crate) use standing::Standing;
pub(crate) use track::{ActorTaker, Track};
pub(crate) use trail::Trail;

/// Called once when a message needs no more looking after.
pub(crate) type Done = Box<dyn FnOnce()>;
