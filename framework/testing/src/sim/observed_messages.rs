//! The messages that a hostile client has observed at the simulated broker.
//!
//! Called by the [broker](super::broker) for each acknowledgement, and by the [hostile client](super::hostile_client).

use std::collections::{BTreeSet, VecDeque};

use whizbang_core::message::{Envelope, Kind, Name};
use whizbang_wire::Packet;
use whizbang_wire::subject::Address;

/// The maximum number of messages.
const MAX_OBSERVED: usize = 256;

/// The last acknowledged messages, with the services that have acknowledged them. Their receivers have handled them, so a changed
/// copy contradicts something known.
#[derive(Default)]
pub(super) struct ObservedMessages(VecDeque<(Envelope, BTreeSet<usize>)>);

impl ObservedMessages {
    /// Adds an acknowledgement.
    pub(super) fn add(&mut self, service: usize, envelope: &Envelope) {
        if let Some((_, services)) = self.0.iter_mut().find(|(known, _)| known.id == envelope.id) {
            services.insert(service);
            return;
        }
        if self.0.len() >= MAX_OBSERVED {
            self.0.pop_front();
        }
        self.0.push_back((envelope.clone(), BTreeSet::from([service])));
    }

    /// Returns the messages of a kind and a domain.
    pub(super) fn of(&self, kind: Kind, domain: &Name) -> impl Iterator<Item = &Envelope> {
        let envelopes = self.0.iter().map(|(envelope, _)| envelope);
        envelopes.filter(move |envelope| envelope.kind == kind && envelope.domain == *domain)
    }

    /// Returns the packets of the messages that all receivers have acknowledged. `subscribers` returns those of a domain's events.
    pub(super) fn handled(&self, subscribers: impl Fn(&Name) -> BTreeSet<usize>) -> Vec<(Address, Packet)> {
        let is_handled = |(envelope, services): &&(Envelope, BTreeSet<usize>)| {
            envelope.kind != Kind::Event || subscribers(&envelope.domain).is_subset(services)
        };
        let address = |envelope: &Envelope| match envelope.kind {
            Kind::Event => Address::for_event(envelope),
            _ => Address::for_message(envelope),
        };
        let handled = self.0.iter().filter(is_handled).map(|(envelope, _)| envelope);
        handled.filter_map(|envelope| Some((address(envelope)?, Packet::from_envelope(envelope).ok()?))).collect()
    }
}
