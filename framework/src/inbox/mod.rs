//! Admits each message once, in order, and notices what is missing.
//!
//! Called by the bridge's door and by actors; calls the doors of actors, and the bridge to fill gaps.
//! Nothing here has a time window: everything follows from positions and sequences.

mod seen;

pub use seen::{Admission, SavedSeen, Seen};
