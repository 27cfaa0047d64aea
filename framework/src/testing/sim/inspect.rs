//! What can be seen of a simulated cluster: its stores, as far as they are committed.

#![expect(clippy::expect_used, reason = "what cannot fail in memory ends the test if it does")]

use std::sync::Arc;

use futures_util::FutureExt;

use super::world::Service;
use super::{World, check};
use crate::actor::{Stateful, user_state};
use crate::message::{Domain, Event, Name, ShardId};
use crate::projection::Projection;
use crate::store::{DeadLetter, ShardReader, Store as _, StoredEvent, StoredTurn};

impl World {
    /// Who takes an event: for each actor type of a domain, the key.
    pub(super) fn takers(&self, shard: &ShardId, event: &StoredEvent) -> Vec<(Name, Name, String)> {
        let nodes = self.services().iter().map(|service| service.node.borrow());
        nodes.flat_map(|node| node.as_ref().map(|node| node.takers(shard, event)).unwrap_or_default()).collect()
    }

    /// The shards of a service's store, read from what is committed.
    pub(super) fn shards_of(&self, service: &Service) -> Vec<(ShardId, Arc<dyn ShardReader>)> {
        service.disk.readers()
    }

    fn turns_of(&self, domain: &str, is_named: impl Fn(&Name) -> bool) -> Vec<(String, Vec<StoredTurn>)> {
        let mut streams = Vec::new();
        for service in self.services() {
            for (_, reader) in self.shards_of(service).into_iter().filter(|(id, _)| id.domain.as_str() == domain) {
                streams.extend(check::streams(&reader).into_iter().filter(|(of, _)| is_named(of)).map(|(of, key)| {
                    let turns = check::history(&reader, &of, &key);
                    (key, turns)
                }));
            }
        }
        streams.sort_by(|one, other| one.0.cmp(&other.0));
        streams
    }

    /// The states of all aggregates or sagas of a type by key, as far as they are committed.
    ///
    /// # Panics
    /// If stored events cannot be applied.
    pub fn states<A: Stateful>(&self) -> Vec<(String, A)> {
        // It is stored under the name that it had first.
        let is_named = |stored: &Name| stored.as_str() == A::NAME || A::FORMERLY.contains(&stored.as_str());
        let turns = self.turns_of(A::Domain::NAME, is_named);
        turns.into_iter().map(|(key, turns)| (key, user_state(&turns).expect("stored events can be applied"))).collect()
    }

    /// The state of one aggregate or saga, as far as it is committed; the initial one if nothing is.
    ///
    /// # Panics
    /// If stored events cannot be applied.
    pub fn state<A: Stateful>(&self, key: &str) -> A {
        self.states::<A>().into_iter().find(|(known, _)| known == key).map_or_else(A::initial, |(_, state)| state)
    }

    /// All events of a type with the keys of those who recorded them, as far as they are committed: shard by shard, in the order
    /// of each.
    ///
    /// # Panics
    /// If a stored event cannot be read.
    pub fn events<E: Event>(&self) -> Vec<(String, E)> {
        let readers = self.services().iter().flat_map(|service| self.shards_of(service));
        let readers = readers.filter(|(shard, _)| shard.domain.as_str() == E::Domain::NAME);
        let events = readers.flat_map(|(_, reader)| check::events(&reader));
        events
            .filter(|event| event.name.as_str() == E::NAME || E::FORMERLY.contains(&event.name.as_str()))
            .map(|event| {
                let read = E::decode(event.version, event.codec, &event.payload);
                (event.key, read.expect("stored events can be read"))
            })
            .collect()
    }

    /// A projection's view as it was saved last; the initial one if it never was. Views are saved some seconds after a change
    /// at the latest, and at the end of a run.
    ///
    /// # Panics
    /// If the view cannot be read.
    pub fn view<P: Projection>(&self) -> P {
        let name = Name::new(P::NAME).expect("the derive has checked the name");
        let views =
            self.services().iter().filter_map(|service| service.disk.view(&name).now_or_never()?.ok().flatten());
        let view = views.into_iter().find(|view| view.schema == P::SCHEMA);
        view.map_or_else(P::initial, |view| P::restore(&view.bytes).expect("a saved view can be read"))
    }

    /// The unresolved dead letters of all services.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        let readers = self.services().iter().flat_map(|service| self.shards_of(service));
        readers
            .flat_map(|(_, reader)| {
                let read = reader.dead_letters(None, usize::MAX).now_or_never();
                read.and_then(Result::ok).unwrap_or_default()
            })
            .collect()
    }
}
