//! Binary format of the records in a shard's log, shared by all stores that keep a log.
//!
//! Called by the stores to write, and by all readers of a log: loading, recovery, the [index](crate::index). A record
//! holds exactly one turn. Reading borrows from the bytes, checks every length before using it, and never panics on any
//! input. The first byte is the format, the second the kind. Every released format stays readable forever.
//!
//! Numbers have a variable length, texts and lists a length or a count in front. A record begins with format, kind, number of
//! the shard in the log, and epoch. A later program reads all records of an earlier one; a record of a later format is an
//! error, never skipped.

pub mod decode;
pub mod encode;
mod envelope;
mod layout;
mod names;
mod read;
mod stored;
mod write;

pub use names::Names;
pub use read::{MarkRecord, NoteRecord, Record, SourceRecord, TurnRecord};
pub use write::write_opened;
pub use write::{RecordContext, Sent, turn_bound, write_advance, write_sent, write_turn};

/// The location of a record in its log. Locations increase with each record and are never 0.
pub type Location = u64;

/// The format that this program writes.
pub(crate) const FORMAT: u8 = 1;

/// The second byte of a turn.
const KIND_TURN: u8 = 1;
/// The second byte of a watermark.
const KIND_ADVANCE: u8 = 2;
/// The second byte of the progress of a destination.
const KIND_SENT: u8 = 3;
/// The second byte of an opening, which only a log of several shards has.
const KIND_OPENED: u8 = 4;

/// Bytes that are not a valid record, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// Reads all parts of a record. Returns whether it is valid.
///
/// Called by `whizbang::testing::decoders` only.
#[doc(hidden)]
pub fn reads_record(bytes: &bytes::Bytes) -> bool {
    use whizbang_core::message::{Name, ShardId};
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
