//! The contents of one shard's log, read through the public traits of the store.

use std::sync::Arc;

use whizbang::Domain;
use whizbang::message::{Name, ShardId};
use whizbang::store::{
    CommitListener, DeadLetter, ShardHandle, ShardReader, Store, StoreError, StoredEvent, StoredTurn, Ticket, Watermark,
};

/// The number of rows read at once.
const PAGE: usize = 1_000;

/// The content of the log of one shard.
#[derive(Clone, Debug)]
pub struct ShardLog {
    /// The shard.
    pub shard: ShardId,
    /// The position of the last event, as the store reports it.
    pub position: u64,
    /// The events, in the order in which the store lists them.
    pub events: Vec<StoredEvent>,
    /// The streams with all their turns.
    pub streams: Vec<StreamLog>,
    /// For each destination: the last committed sequence, and the last assigned sequence.
    pub outbox_heads: Vec<(ShardId, u64, u64)>,
    /// The shard's watermark for each of its sources.
    pub watermarks: Vec<Watermark>,
    /// The unresolved dead letters, as the store lists them.
    pub dead_letters: Vec<DeadLetter>,
}

/// All turns of one stream.
#[derive(Clone, Debug)]
pub struct StreamLog {
    /// The actor's type.
    pub actor: Name,
    /// The actor's key.
    pub key: String,
    /// The turns, in the order in which the store lists them.
    pub turns: Vec<StoredTurn>,
}

/// A commit listener for reading only.
struct NoListener;

impl CommitListener for NoListener {
    fn committed(&self, _through: Ticket) {}
    fn failed(&self, _error: StoreError) {}
}

impl ShardLog {
    /// Opens every shard of a domain and reads its content. The previous owner of the shards cannot commit afterwards.
    ///
    /// # Errors
    /// The error of the store if it cannot be read.
    ///
    /// # Panics
    /// If the name of the domain is invalid.
    pub async fn read_domain<D: Domain>(store: &dyn Store) -> Result<Vec<Self>, StoreError> {
        let domain = Name::from_static(D::NAME).expect("a domain has a name");
        let mut logs = Vec::new();
        for number in 0..D::SHARDS {
            let shard = ShardId::new(domain.clone(), number);
            let ShardHandle { reader, .. } = store.open(&shard, D::SHARDS, Arc::new(NoListener)).await?;
            logs.push(Self::read(&shard, &*reader).await?);
        }
        Ok(logs)
    }

    /// Reads the content of a shard that is not written at the same time.
    ///
    /// # Errors
    /// The error of the store if it cannot be read.
    pub async fn read(shard: &ShardId, reader: &dyn ShardReader) -> Result<Self, StoreError> {
        let mut events = Vec::new();
        loop {
            let after = events.last().map_or(0, |event: &StoredEvent| event.position);
            let page = reader.events(after, PAGE).await?;
            let has_more = page.last().is_some_and(|event| event.position > after);
            events.extend(page);
            if !has_more {
                break;
            }
        }
        let mut dead_letters: Vec<DeadLetter> = Vec::new();
        loop {
            let after = dead_letters.last().map(|letter| letter.envelope.id);
            let page = reader.dead_letters(after, PAGE).await?;
            let has_more = page.last().is_some_and(|letter| Some(letter.envelope.id) > after);
            dead_letters.extend(page);
            if !has_more {
                break;
            }
        }
        let mut streams = Vec::new();
        for (actor, key) in reader.streams().await? {
            // A deferred message is handled by a turn of its own key.
            if actor.as_str() == "whizbang-deferred" {
                continue;
            }
            let turns = reader.history(&actor, &key).await?;
            streams.push(StreamLog { actor, key, turns });
        }
        Ok(Self {
            shard: shard.clone(),
            position: reader.position(),
            events,
            streams,
            outbox_heads: reader.outbox_heads(),
            watermarks: reader.watermarks(),
            dead_letters,
        })
    }
}

impl StreamLog {
    /// Returns the name of the stream in findings.
    pub(super) fn named(&self, shard: &ShardId) -> String {
        format!("{shard} {}/{}", self.actor, self.key)
    }
}
