//! The shape of a type: names, order and kinds of all parts of its encoding.
//!
//! Called by the node at start, through the derives, to compare the types of a program with the types whose bytes are
//! in the store. Calls the `Deserialize` of the type with artificial input, without a value. A part that cannot be seen
//! is [`Opaque`](Shape::Opaque) and equal to everything: a comparison has no false positives, but may miss differences.

mod access;
mod compare;
mod explorer;
mod part;
mod probe;
mod samples;

use std::any::TypeId;
use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;

pub use self::compare::Difference;
use self::explorer::Explorer;
pub use self::part::{Field, Plain, Shape, Variant};
use self::probe::Probe;
use super::Codec;
use crate::user_code::user_code;

impl Shape {
    /// Returns the shape of `T` as read by `codec`.
    ///
    /// The first call for a type runs its `Deserialize` a few dozen times on artificial input; later calls return the
    /// cached result. A panic of the type's own code counts as a refusal of the input.
    pub fn of<T: DeserializeOwned + 'static>(codec: Codec) -> Arc<Self> {
        Self::known(TypeId::of::<T>(), codec, &mut |probe| T::deserialize(probe).is_ok())
    }

    /// Returns the shape of a type. Runs its `Deserialize` through `pass` unless the shape is cached.
    fn known(of: TypeId, codec: Codec, pass: &mut dyn FnMut(Probe<'_>) -> bool) -> Arc<Self> {
        type Known = HashMap<(TypeId, Codec), Arc<Shape>>;
        // A cache of a pure function: nodes that start often, as in simulations, trace each type once.
        static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
        let place = (of, codec);
        if let Some(shape) = KNOWN.lock().as_ref().and_then(|known| known.get(&place)) {
            return Arc::clone(shape);
        }
        // Not with the lock held: the type's `Deserialize` is user code.
        let mut pass = |probe: Probe<'_>| user_code(|| pass(probe)).unwrap_or(false);
        let shape = Arc::new(Explorer::explore(codec, &mut pass));
        KNOWN.lock().get_or_insert_default().insert(place, Arc::clone(&shape));
        shape
    }
}

#[cfg(test)]
mod tests;
