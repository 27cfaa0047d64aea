//! What a handler asks for: nothing has happened yet.

use std::marker::PhantomData;

/// What a handler asks for: record, send, schedule. Nothing of it has happened before the turn is committed.
pub struct Effects<A: ?Sized>(PhantomData<A>);
