//! An owner of a shard, as used by a node.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::turn_builder::{TurnBuilder, name};
use super::{RecordingListener, SHARDS};
use whizbang_core::message::ShardId;
use whizbang_core::store::{
    Appended, MemberId, ShardReader, ShardWriter, Snapshot, Store, StoreError, StoredEvent, StreamState, Watermark,
};

/// An owner of one shard, with its writer, its reader and its commit listener.
pub struct Owner {
    /// The shard.
    pub shard: ShardId,
    /// The writer.
    pub writer: Box<dyn ShardWriter>,
    /// A reader.
    pub reader: Arc<dyn ShardReader>,
    /// The commit listener.
    pub listener: Arc<RecordingListener>,
}

impl std::fmt::Debug for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owner").field("shard", &self.shard).finish_non_exhaustive()
    }
}

impl Owner {
    /// Takes ownership of a shard.
    ///
    /// # Panics
    /// If the store refuses the shard.
    pub async fn take(store: &Arc<dyn Store>, shard: &ShardId) -> Self {
        Self::take_with(store, shard, Arc::default()).await
    }

    /// Takes ownership of a shard, with a listener that other owners may share.
    ///
    /// # Panics
    /// If the store refuses the shard.
    pub async fn take_with(store: &Arc<dyn Store>, shard: &ShardId, listener: Arc<RecordingListener>) -> Self {
        let reported = Arc::clone(&listener) as Arc<_>;
        let handle = store.open(shard, SHARDS, reported).await.expect("the shard opens");
        Self { shard: shard.clone(), writer: handle.writer, reader: handle.reader, listener }
    }

    /// Takes ownership of a shard under the lease of a member. Returns `None` if the store refuses it.
    ///
    /// # Panics
    /// If the store has no leases, or fails.
    pub async fn lease(store: &Arc<dyn Store>, member: MemberId, shard: &ShardId) -> Option<Self> {
        Self::lease_with(store, member, shard, Arc::default()).await
    }

    /// Like [`lease`](Self::lease), with a listener that other owners may share.
    pub async fn lease_with(
        store: &Arc<dyn Store>,
        member: MemberId,
        shard: &ShardId,
        listener: Arc<RecordingListener>,
    ) -> Option<Self> {
        let leases = store.leases().expect("the store has leases");
        let reported = Arc::clone(&listener) as Arc<_>;
        let handle = leases.open(member, shard, SHARDS, reported).await.expect("the shard opens or is refused")?;
        Some(Self { shard: shard.clone(), writer: handle.writer, reader: handle.reader, listener })
    }

    /// Appends a turn and waits for its outcome. A store may reject a fenced writer in the append or when it commits.
    ///
    /// # Errors
    /// The error of the store.
    pub async fn try_commit(&mut self, draft: &TurnBuilder) -> Result<Appended, StoreError> {
        let appended = self.append(draft)?;
        if !appended.committed {
            self.listener.until_settled(&self.shard, self.writer.epoch(), appended.ticket).await?;
        }
        Ok(appended)
    }

    /// Appends a turn without waiting for the commit.
    ///
    /// # Errors
    /// The error of the store.
    pub fn append(&mut self, draft: &TurnBuilder) -> Result<Appended, StoreError> {
        draft.write(|turn| self.writer.append(turn))
    }

    /// Appends a turn through `append_alone` without waiting for the commit.
    ///
    /// # Errors
    /// The error of the store.
    pub fn append_alone(&mut self, draft: &TurnBuilder) -> Result<Appended, StoreError> {
        draft.write(|turn| self.writer.append_alone(turn))
    }

    /// Appends a turn and waits for the commit.
    ///
    /// # Panics
    /// If the store refuses the turn or fails.
    pub async fn commit(&mut self, draft: &TurnBuilder) -> Appended {
        let appended = self.append(draft).expect("the turn is appended");
        self.settled(appended).await;
        appended
    }

    /// Records a watermark and waits for the commit.
    ///
    /// # Panics
    /// If the store fails.
    pub async fn advance(&mut self, watermark: &Watermark) {
        let appended = self.writer.advance(watermark).expect("the watermark is appended");
        self.settled(appended).await;
    }

    /// Records the progress of a destination and waits for the commit.
    ///
    /// Entries of the outbox up to the sequence `through` may be removed then.
    ///
    /// # Panics
    /// If the store fails.
    pub async fn sent(&mut self, to: &ShardId, through: u64) {
        let appended = self.writer.sent(to, through).expect("it is appended");
        self.settled(appended).await;
    }

    /// Waits for the commit of an append.
    ///
    /// Returns at once if the append was returned as committed: there is no report then.
    ///
    /// # Panics
    /// If the store fails before the commit.
    pub async fn settled(&self, appended: Appended) {
        if !appended.committed {
            self.listener.until(appended.ticket).await.expect("the append is committed");
        }
    }

    /// Commits `turns` turns of one event each, alternating between the streams `keys`, and waits for the last.
    ///
    /// Turn `n` of all handles message `n`, and its event has `n` as its payload. The streams must be empty before.
    ///
    /// # Panics
    /// If the store refuses a turn or fails.
    pub async fn fill(&mut self, actor: &str, keys: &[&str], turns: u64) {
        let mut last = None;
        for turn in 0..turns {
            let streams = keys.len() as u64;
            let (key, before) = (keys[usize::try_from(turn % streams).unwrap()], turn / streams);
            let draft = TurnBuilder::new(actor, key, turn).at(before + 1, before).event("Happened", turn.to_string());
            last = Some(self.append(&draft).expect("the turn is appended"));
        }
        if let Some(last) = last {
            self.settled(last).await;
        }
    }

    /// Appends turns of one deposit each to the account of ada, without waiting for a commit.
    pub(super) fn append_deposits(&mut self, numbers: RangeInclusive<u64>) -> Vec<Appended> {
        let deposit = |number| {
            TurnBuilder::new("Account", "ada", number).at(number, number - 1).event("Deposited", number.to_string())
        };
        numbers.map(|number| self.append(&deposit(number)).expect("the turn is appended")).collect()
    }

    /// Checks that `young`, which has just opened the shard of this owner, finds the appends that are committed in the end and
    /// no others. The `pending` appends are the last ones of this owner, and all turns of the shard are of the account of ada.
    pub(super) async fn check_takeover(&self, pending: &[Appended], young: &mut Self) {
        let found = young.load("Account", "ada").await.turns.len() as u64;
        let mut committed = pending.first().map_or(0, |first| first.position - 1);
        for appended in pending {
            let outcome = match appended.committed {
                true => Ok(()),
                false => self.listener.until_settled(&self.shard, self.writer.epoch(), appended.ticket).await,
            };
            match outcome {
                Ok(()) => committed += 1,
                Err(StoreError::Fenced { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(found, committed, "the new owner has found another log than the one that was committed");
        let kept = young.load("Account", "ada").await.turns.len() as u64;
        assert_eq!((kept, young.reader.position()), (committed, committed));
        young.append_deposits(committed + 1..=committed + 1);
    }

    /// Loads a stream.
    ///
    /// # Panics
    /// If the store fails.
    pub async fn load(&self, actor: &str, key: &str) -> StreamState {
        self.reader.load(&name(actor), key).await.expect("the stream is loaded")
    }

    /// Reads a page of events.
    ///
    /// Returns at most `limit` events, after the position `after` of the shard.
    ///
    /// # Panics
    /// If the store fails.
    pub async fn events(&self, after: u64, limit: usize) -> Vec<StoredEvent> {
        self.reader.events(after, limit).await.expect("the events are read")
    }

    /// Saves a snapshot.
    ///
    /// `turn` is the last turn in it. Snapshots are not reported: a store may lose one in a crash.
    pub fn snapshot(&mut self, actor: &str, key: &str, turn: u64, bytes: &'static [u8]) {
        let snapshot = Snapshot { turn, version: turn, schema: 7, bytes: bytes.into() };
        self.writer.save_snapshot(&name(actor), key, snapshot);
    }
}
