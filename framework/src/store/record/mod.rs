//! A turn as bytes: what stands in a shard's log, in every store that keeps one.
//!
//! Called by the stores (write) and by whatever reads a log: loading, recovery, the [index](super::index). One record holds
//! one turn, whole. Reading borrows, checks every length before it believes it, and never panics, whatever the bytes are.
//! The first byte is the format, the second the kind; a format once released is read for ever.

pub(in crate::store) mod decode;
pub(in crate::store) mod encode;
mod envelope;
mod read;
mod stored;
mod write;

pub(crate) use read::{MarkRecord, NoteRecord, Record, SourceRecord, TurnRecord};
pub(crate) use stored::Names;
#[cfg(feature = "embedded")]
pub(crate) use write::write_opened;
pub(crate) use write::{RecordContext, Sent, turn_bound, write_advance, write_sent, write_turn};

/// The most bytes one turn may have in a store: 2 MiB. Events, outbox entries, timers, notes and reply count together.
pub const MAX_TURN_BYTES: usize = 2 * 1024 * 1024;

/// Where a record begins in its log: a number that rises with each record and is never 0.
pub(crate) type Location = u64;

/// The format this program writes.
pub(crate) const FORMAT: u8 = 1;

const KIND_TURN: u8 = 1;
const KIND_ADVANCE: u8 = 2;
const KIND_SENT: u8 = 3;
const KIND_OPENED: u8 = 4;

/// Bytes that are no record, and what is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Reads everything that stands in a record, for tests that spoil it. Returns whether it is one.
#[cfg(feature = "testing")]
pub(crate) fn reads_record(bytes: &bytes::Bytes) -> bool {
    use crate::message::{Name, ShardId};
    let Ok(name) = Name::from_static("orders") else { return false };
    match Record::read(bytes, Location::MAX) {
        Ok((_, _, Record::Turn(turn))) => {
            let names = &mut Names::default();
            let shard = ShardId::new(name, 1);
            let outbox = turn.outbox().all(|entry| turn.to_outbox_entry(entry, &shard, bytes, names).is_ok());
            turn.to_turn(bytes, names).is_ok() && outbox
        }
        read => read.is_ok(),
    }
}

#[cfg(test)]
mod tests;
