//! A reader of a made-up log and outbox that records what is read.

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Envelope, Kind, MessageId, Name, ShardId};
use whizbang_core::store::{
    DeadLetter, OutboxEntry, ShardReader, StoreError, StoredEvent, StoredTurn, StreamState, Timer, TimerCursor,
    TimerPage, Watermark,
};

/// The largest payload.
const LARGEST: usize = 1 << 20;

#[derive(Default)]
pub(super) struct CountedReader {
    /// The payload bytes of the events, from position 1.
    pub(super) events: Vec<usize>,
    /// The last committed sequence of each destination, and the payload bytes of its entries, from sequence 1.
    pub(super) outbox: Vec<(ShardId, u64, Vec<usize>)>,
    /// The reads so far: the position or sequence before the first entry, and the number of requested entries.
    pub(super) reads: Mutex<Vec<(u64, usize)>>,
}

/// Returns a shard of the domain `bank`.
pub(super) fn bank(shard: u16) -> ShardId {
    ShardId::new(Name::from_static("bank").unwrap(), shard)
}

/// Returns the numbers and payloads of a read.
fn read(sizes: &[usize], after: u64, limit: usize) -> Vec<(u64, Bytes)> {
    let bytes = Bytes::from(vec![0; LARGEST]);
    let numbered = (1..).zip(sizes).skip(usize::try_from(after).unwrap()).take(limit);
    numbered.map(|(number, size)| (number, bytes.slice(..*size))).collect()
}

impl ShardReader for CountedReader {
    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.reads.lock().push((after, limit));
        let event = |(position, payload): (u64, Bytes)| StoredEvent {
            position,
            actor: Name::from_static("account").unwrap(),
            key: "k".to_owned(),
            stream_version: position,
            name: Name::from_static("Deposited").unwrap(),
            version: 1,
            codec: Codec::Bincode,
            payload,
            time: Timestamp::default(),
            cause: MessageId::from_u128(1),
            correlation: MessageId::from_u128(1),
            traceparent: None,
            headers: Vec::new(),
        };
        let events = read(&self.events, after, limit).into_iter().map(event).collect();
        async { Ok(events) }.boxed()
    }

    /// Returns the entries at the second poll, so that other work of the thread runs during the read.
    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.reads.lock().push((after, limit));
        let sizes = self.outbox.iter().find(|(known, ..)| known == to).map_or(&[][..], |(_, _, sizes)| sizes);
        let name = Name::from_static("Deposit").unwrap();
        let entry = |(sequence, payload): (u64, Bytes)| {
            let id = MessageId::from_u128(sequence.into());
            let time = Timestamp::default();
            let envelope = Envelope::new(id, Kind::Command, to.domain.clone(), name.clone(), time);
            OutboxEntry { sequence, envelope: Envelope { payload, ..envelope } }
        };
        let entries = read(sizes, after, limit).into_iter().map(entry).collect();
        async {
            tokio::task::yield_now().await;
            Ok(entries)
        }
        .boxed()
    }

    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        self.outbox.iter().map(|(to, done, sizes)| (to.clone(), *done, sizes.len() as u64)).collect()
    }

    fn position(&self) -> u64 {
        self.events.len() as u64
    }

    fn load<'a>(&'a self, _: &'a Name, _: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        panic!("the relay reads no stream")
    }

    fn history<'a>(&'a self, _: &'a Name, _: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        panic!("the relay reads no stream")
    }

    fn watermarks(&self) -> Vec<Watermark> {
        Vec::new()
    }

    fn timers_due(&self, _: Timestamp, _: usize) -> Vec<Timer> {
        Vec::new()
    }

    fn next_timer(&self) -> Option<Timestamp> {
        None
    }

    fn timers_of(&self, _: &Name, _: TimerCursor, _: Timestamp, _: usize) -> TimerPage {
        panic!("the relay reads no timers")
    }

    fn timer_counts(&self) -> Vec<(Name, usize)> {
        Vec::new()
    }

    fn dead_letters(&self, _: Option<MessageId>, _: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        panic!("the relay reads no dead letters")
    }

    fn dead_letter_count(&self) -> u64 {
        0
    }

    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        panic!("the relay reads no stream")
    }
}
