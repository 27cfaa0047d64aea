//! The packets of other nodes that a hostile client has observed, and the forgeries that it derives from them.
//!
//! Used by the [hostile client](super). Every client of a broker without permissions can read all packets. A packet must be
//! observed only after its receivers have handled it: a changed copy that arrives first cannot be told from the original.

use std::collections::VecDeque;

use bytes::Bytes;

use whizbang_core::message::{Envelope, IdSource, Kind, MessageId};
use whizbang_wire::Packet;
use whizbang_wire::subject::Address;

/// The maximum number of packets that are kept. The oldest are discarded.
const MAX_OBSERVED: usize = 4096;

/// The observed packets with their addresses.
#[derive(Debug, Default)]
pub(super) struct Observed(VecDeque<(Address, Packet)>);

impl Observed {
    /// Adds a packet.
    pub(super) fn add(&mut self, address: Address, packet: Packet) {
        if self.0.len() >= MAX_OBSERVED {
            self.0.pop_front();
        }
        self.0.push_back((address, packet));
    }

    /// Returns a random observed packet, unchanged.
    pub(super) fn replay(&self, random: &IdSource) -> Option<(Address, Packet)> {
        self.pick(random, |_| true)
    }

    /// Returns a random message or request with another payload. Its id, its sequence and its address are those of the original.
    pub(super) fn another_payload(&self, random: &IdSource) -> Option<(Address, Packet)> {
        let (address, mut packet) = self.pick(random, |packet| packet.envelope().is_ok())?;
        let mut payload = packet.payload.to_vec();
        match payload.last_mut() {
            // Usually another amount, which can be decoded.
            Some(last) if random.below(2) == 0 => *last = last.wrapping_add(1),
            _ => payload.push(0xFF),
        }
        packet.payload = payload.into();
        Some((address, packet))
    }

    /// Returns a random message of a kind with another id and payload, under the sequence of the original.
    pub(super) fn another_id(
        &self,
        random: &IdSource,
        kind: Kind,
        id: MessageId,
        payload: Bytes,
    ) -> Option<(Address, Packet)> {
        let is_numbered = |envelope: &Envelope| envelope.kind == kind && envelope.origin.is_some();
        let is_of_kind = |packet: &Packet| packet.envelope().is_ok_and(|envelope| is_numbered(&envelope));
        let (address, packet) = self.pick(random, is_of_kind)?;
        let forged = Envelope { id, correlation: id, payload, ..packet.envelope().ok()? };
        Some((address, Packet::from_envelope(&forged).ok()?))
    }

    /// Returns a random packet that is suitable: the first one from a random place on.
    fn pick(&self, random: &IdSource, is_suitable: impl Fn(&Packet) -> bool) -> Option<(Address, Packet)> {
        let start = usize::try_from(random.below((self.0.len() as u64).max(1))).ok()?;
        let mut from_start = self.0.iter().cycle().skip(start).take(self.0.len());
        from_start.find(|(_, packet)| is_suitable(packet)).cloned()
    }
}
