//! Publishers: record the events of a domain that no aggregate decides on, such as log lines, measurements and changes
//! captured from a database.
//!
//! Hosted by the node for [`NodeBuilder::publishes`](crate::NodeBuilder::publishes). A publisher is an actor like an
//! aggregate, one per key, without a state: its commands are the events themselves. So a published event has everything that
//! the events of aggregates have: deduplication, order within its key, a position in its shard's log.

use std::marker::PhantomData;

use crate::actor::{HandlerTable, PUBLISHER, Role, Snapshots, Stateful, typed};
use whizbang_core::message::{Domain, Event};

/// The publisher of a domain.
pub(crate) struct Publisher<D>(PhantomData<fn() -> D>);

impl<D: Domain> Stateful for Publisher<D> {
    type Domain = D;
    const NAME: &'static str = PUBLISHER;
    const ROLE: Role = Role::Aggregate;
    const SNAPSHOTS: Snapshots = Snapshots::Never;

    fn initial() -> Self {
        Self(PhantomData)
    }

    fn wire(_plan: &mut crate::actor::Plan<Self>) {}
}

/// Lists an event in the handlers of its domain's publisher.
pub(crate) fn publish<E: Event>(table: &mut HandlerTable) {
    table.add_published::<E>(|state, envelope, effects| {
        let (_, effects) = typed::<Publisher<E::Domain>>(state, effects)?;
        // An event keeps the headers that it was published with.
        effects.requested.headers.clone_from(&envelope.headers);
        E::decode_each(envelope.version, envelope.codec, &envelope.payload, &mut |event| {
            effects.record_with(event, |_, _| {});
        })?;
        drop(effects.requested.set_reply::<()>(<E::Domain as Domain>::CODEC, Ok(())));
        Ok(())
    });
}
