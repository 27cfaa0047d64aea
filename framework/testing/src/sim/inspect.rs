//! Queries of the committed data of a simulated cluster: states, events, views and dead letters.
//!
//! Called by users' rules and by the checks of the simulation.

#![expect(clippy::expect_used, reason = "these reads cannot fail in memory; a failure ends the test")]

use std::sync::Arc;

use futures_util::FutureExt;

use super::service::Service;
use super::{World, store_checks};
use whizbang_core::message::{Domain, Event, Name, ShardId};
use whizbang_core::store::{DeadLetter, ShardReader, Store as _, StoredEvent, StoredTurn};
use whizbang_runtime::actor::{Stateful, user_state};
use whizbang_runtime::projection::Projection;

impl World {
    /// Returns the subscribers of an event: domain, actor type and key.
    pub(super) fn subscribers(&self, shard: &ShardId, event: &StoredEvent) -> Vec<(Name, Name, String)> {
        let services = self.services().iter();
        services
            .flat_map(|service| service.any_node(|node| node.subscribers_of(shard, event)).unwrap_or_default())
            .collect()
    }

    /// Returns the shards of a service's store, with readers of committed data.
    pub(super) fn shards_of(&self, service: &Service) -> Vec<(ShardId, Arc<dyn ShardReader>)> {
        service.store.readers()
    }

    /// Reads the streams of actor types of a domain, sorted by key. Costs the number of turns.
    fn streams_of(&self, domain: &str, is_named: impl Fn(&Name) -> bool) -> Vec<(String, Vec<StoredTurn>)> {
        let mut streams = Vec::new();
        for service in self.services() {
            for (_, reader) in self.shards_of(service).into_iter().filter(|(id, _)| id.domain.as_str() == domain) {
                streams.extend(store_checks::streams(&reader).into_iter().filter(|(of, _)| is_named(of)).map(
                    |(of, key)| {
                        let turns = store_checks::history(&reader, &of, &key);
                        (key, turns)
                    },
                ));
            }
        }
        streams.sort_by(|one, other| one.0.cmp(&other.0));
        streams
    }

    /// Returns the committed states of all aggregates or sagas of a type, by key.
    ///
    /// # Panics
    /// If stored events cannot be applied.
    ///
    /// The states are rebuilt from the log, also in a cluster whose nodes are down. The cost grows with all turns of the type.
    pub fn states<A: Stateful>(&self) -> Vec<(String, A)> {
        // Streams are stored under the first name of the actor type.
        let is_named = |stored: &Name| stored.as_str() == A::NAME || A::FORMERLY.contains(&stored.as_str());
        let turns = self.streams_of(A::Domain::NAME, is_named);
        turns.into_iter().map(|(key, turns)| (key, user_state(&turns).expect("stored events can be applied"))).collect()
    }

    /// Returns the committed state of one aggregate or saga. It is the initial state if no event is committed.
    ///
    /// # Panics
    /// If stored events cannot be applied.
    ///
    /// It costs as much as [`states`](Self::states).
    pub fn state<A: Stateful>(&self, key: &str) -> A {
        self.states::<A>().into_iter().find(|(known, _)| known == key).map_or_else(A::initial, |(_, state)| state)
    }

    /// Returns all committed events of a type, with the keys of their streams: shard by shard, in the order of each shard.
    ///
    /// # Panics
    /// If a stored event cannot be decoded.
    ///
    /// Older versions are upcast, and events under a former name are included.
    pub fn events<E: Event>(&self) -> Vec<(String, E)> {
        let readers = self.services().iter().flat_map(|service| self.shards_of(service));
        let readers = readers.filter(|(shard, _)| shard.domain.as_str() == E::Domain::NAME);
        let events = readers.flat_map(|(_, reader)| store_checks::events(&reader));
        events
            .filter(|event| event.name.as_str() == E::NAME || E::FORMERLY.contains(&event.name.as_str()))
            .map(|event| {
                let read = E::decode(event.version, event.codec, &event.payload);
                (event.key, read.expect("stored events can be decoded"))
            })
            .collect()
    }

    /// Returns the saved view of a projection. It is the initial view if none was saved. Views are saved within seconds of a
    /// change, and at the end of a run.
    ///
    /// # Panics
    /// If the view cannot be decoded.
    pub fn view<P: Projection>(&self) -> P {
        let name = Name::new(P::NAME).expect("the derive checked the name");
        let views =
            self.services().iter().filter_map(|service| service.store.view(&name).now_or_never()?.ok().flatten());
        let view = views.into_iter().find(|view| view.schema == P::SCHEMA);
        view.map_or_else(P::initial, |view| P::restore(&view.bytes).expect("saved views can be decoded"))
    }

    /// Returns the unresolved dead letters of all services.
    ///
    /// A dead letter that was redriven or discarded is resolved and not returned. They are in the order of the services.
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
